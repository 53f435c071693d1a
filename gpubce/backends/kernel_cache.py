"""Compiled kernels on disk, keyed by a hash of the specification.

Numba's own file cache looks at one source file and at the closure of one function. A kernel here is put together from
the formulas of many files, so its cache entry is keyed by the kernel key, and goes stale when any file of the
specification changes.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import sys
import uuid
from functools import cache
from pathlib import Path

import llvmlite
import numba
from numba.core.serialize import dumps

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
    """A short name that tells kernels apart: of the cache's files and of the symbols in the machine code."""
    return f"gpubce_{kind}_{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"


class _KernelFiles:
    """What a cache of Numba's keeps its kernels in: here one file for each kernel and kind of processor.

    Numba's own class has an index beside the kernels. Of two processes that save at once, one's index may then point
    to the other's kernel, and what a damaged file does is not known. Here a file begins with a hash of what it is for
    and of all that follows, and is written under another name first. A file that is not as it should be is not read.
    """

    def __init__(self, folder: str, name: str):
        self._start = os.path.join(folder, name)

    def _place(self, key: object) -> tuple[str, bytes]:
        """The file for a key of the cache, and what its hash begins with: all that decides what is in it."""
        path = f"{self._start}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"
        versions = sys.version, numba.__version__, llvmlite.__version__, specification_hash()
        return path, repr((os.path.basename(path), key, versions)).encode()

    def load(self, key: object) -> object:
        """What was saved, or None."""
        path, purpose = self._place(key)
        try:
            with open(path, "rb") as file:
                digest, data = file.read(32), file.read()
        except OSError:
            return None
        return pickle.loads(data) if hashlib.sha256(purpose + data).digest() == digest else None

    def save(self, key: object, content: object) -> None:
        """Keep it, whole or not at all."""
        path, purpose = self._place(key)
        data = dumps(content)
        unfinished = f"{path}.{uuid.uuid4().hex[:16]}.tmp"
        try:
            with open(unfinished, "wb") as file:
                file.write(hashlib.sha256(purpose + data).digest() + data)
            os.replace(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise


def keep_on_disk(dispatcher, base: type) -> None:
    """Give a Numba dispatcher a cache of class ``base`` (Numba's, for its target) with our keys and files.

    Numba has no public way to choose them. If its internals change, or nothing can be written, kernels are compiled in
    each process instead.
    """

    class SpecificationCache(base):
        def __init__(self, function):
            super().__init__(function)
            self._cache_file = _KernelFiles(self._cache_path, self._impl.filename_base)

        def _index_key(self, signature, codegen):
            return signature, codegen.magic_tuple()

        def save_overload(self, signature, data):
            try:
                super().save_overload(signature, data)
            except OSError as error:
                logger.info("a kernel is not kept on disk: %s", error)

    try:
        dispatcher._cache = SpecificationCache(dispatcher.py_func)
    except (AttributeError, TypeError, RuntimeError, OSError) as error:
        logger.info("kernels are not kept on disk: %s", error)


def named(function, kind: str, key: object):
    """The same function under its kernel name."""
    function.__name__ = function.__qualname__ = kernel_name(kind, key)
    return function
