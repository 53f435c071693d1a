"""The kernels on a CPU."""

import sys

import numpy as np


def require_memory(megabytes: int, purpose: str) -> None:
    """Raise MemoryError where a limit of the process is closer. LLVM ends the process if it gets no memory, and what
    Numba imports may hang, so it is asked for here first, and given back. Memory that runs out without such a limit is
    not noticed."""
    try:
        np.empty(megabytes << 20, np.uint8)
    except MemoryError:
        raise MemoryError(
            f"{purpose} may take {megabytes} MB, which this process cannot have: raise its limit of memory"
        ) from None


if "numba" not in sys.modules:
    require_memory(192, "importing Numba")  # Measured: 180 MB of addresses, 20 MB of data.
