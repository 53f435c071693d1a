"""Compiled kernels on disk, keyed by a hash of the specification.

Numba's own file cache looks at one source file and at the closure of one function. A kernel here is put together from
the formulas of many files, so its cache entry is keyed by the kernel key, and goes stale when any file of the
specification changes.
"""

import hashlib
import logging
from functools import cache
from pathlib import Path

from numba.core.caching import IndexDataCacheFile

_PACKAGE = Path(__file__).resolve().parent.parent
logger = logging.getLogger("gpubce")


@cache
def specification_hash() -> str:
    """The hash of every source file that decides what a kernel does."""
    digest = hashlib.sha256()
    for folder in ("spec", "backends"):
        for path in sorted((_PACKAGE / folder).rglob("*.py")):
            digest.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def kernel_name(kind: str, key: object) -> str:
    """A short name that tells kernels apart: of the cache's files and of the symbols in the machine code.

    One file per kernel: two processes that save different kernels at once never choose the same file.
    """
    return f"gpubce_{kind}_{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"


def keep_on_disk(dispatcher, base: type) -> None:
    """Give a Numba dispatcher a cache of class ``base`` (Numba's, for its target) with our keys.

    Numba has no public way to choose the key. If its internals change, kernels are compiled in each process instead.
    """

    class SpecificationCache(base):
        def __init__(self, function):
            super().__init__(function)
            self._cache_file = IndexDataCacheFile(
                cache_path=self._cache_path,
                filename_base=self._impl.filename_base,
                source_stamp=specification_hash(),
            )

        def _index_key(self, signature, codegen):
            return signature, codegen.magic_tuple()

    try:
        dispatcher._cache = SpecificationCache(dispatcher.py_func)
    except (AttributeError, TypeError, RuntimeError, OSError) as error:
        logger.info("kernels are not kept on disk: %s", error)


def named(function, kind: str, key: object):
    """The same function under its kernel name."""
    function.__name__ = function.__qualname__ = kernel_name(kind, key)
    return function
