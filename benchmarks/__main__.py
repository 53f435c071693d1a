"""Cases x providers, timed side by side in one run: see ``python -m benchmarks --help``."""

import os
import sys
import tempfile

CACHES = ("NUMBA_CACHE_DIR", "CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Where compiled code is kept from one process to the next."""

# Everybody begins with empty caches, so that first calls compile. It is also what makes torch.compile comparable: code
# that a machine with less to offer has left in its cache was ten times as slow. Numba reads the variable when it is
# imported.
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    os.environ |= {name: os.path.join(folder, name.lower()) for name in CACHES}
    from benchmarks.run import main

    sys.exit(main())
