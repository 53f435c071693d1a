"""Compiled kernels on disk, keyed by a hash of the specification.

Numba's own file cache looks at one source file and at the closure of one function. A kernel here is put together from
the formulas of many files, so its cache entry is keyed by the kernel key, and goes stale when any file of the
specification changes.
"""

import contextlib
import hashlib
import inspect
import logging
import os
import pickle
import sys
import uuid
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import llvmlite
import numba
from numba.core.serialize import dumps

_PACKAGE = Path(__file__).resolve().parent.parent
logger = logging.getLogger("gpubce")

written: dict[str, int] = {}
"""The files that this process has written, and their bytes."""

refused: list[Exception] = []
"""Why kernels that this process has compiled are not on disk."""


def _not_kept(error: Exception) -> None:
    refused.append(error)
    logger.info("a kernel is not kept on disk: %s", error)


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

    It is looked for in each of the folders, and written to the first that can be written.
    """

    def __init__(self, folders: list[str], name: str, versions: tuple[str, ...]):
        self._folders = folders
        self._name = name
        self._versions = (sys.version, numba.__version__, llvmlite.__version__, *versions)

    def _place(self, key: object) -> tuple[str, bytes]:
        """The name of the file for a key of the cache, and what its hash begins with: all that decides what is in
        it."""
        name = f"{self._name}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"
        return name, repr((name, key, (*self._versions, specification_hash()))).encode()

    def load(self, key: object) -> object:
        """What was saved, or None."""
        name, purpose = self._place(key)
        for folder in self._folders:
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    digest, data = file.read(32), file.read()
            except OSError:
                continue
            if hashlib.sha256(purpose + data).digest() == digest:
                return pickle.loads(data)
        return None

    def save(self, key: object, content: object) -> None:
        """Keep it, whole or not at all."""
        name, purpose = self._place(key)
        data = dumps(content)
        file, unfinished, path = self._begin(name)
        try:
            with file:
                file.write(hashlib.sha256(purpose + data).digest() + data)
            os.replace(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise
        written[path] = 32 + len(data)

    def _begin(self, name: str) -> tuple[BinaryIO, str, str]:
        """A file with another name, that name, and the one it will have."""
        errors: list[OSError] = []
        for folder in self._folders:
            path = os.path.join(folder, name)
            unfinished = f"{path}.{uuid.uuid4().hex[:16]}.tmp"
            try:
                os.makedirs(folder, exist_ok=True)
                return open(unfinished, "wb"), unfinished, path
            except OSError as error:
                errors.append(error)
        raise errors[0]


def _can_be_written(folder: str) -> bool:
    """Whether it is there, or can be made, and the system permits to write in it."""
    place = Path(os.path.abspath(folder))
    there = next((each for each in (place, *place.parents) if os.path.lexists(each)), place)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


@cache
def _wherever(locator: Any) -> Any:
    """One of Numba's locators, which each know a folder; this one knows it even if it cannot be written."""

    class Locator(locator):
        def ensure_cache_path(self):
            pass

    return Locator


@cache
def _searching(implementation: Any) -> Any:
    """The part of a cache of Numba's that chooses a folder: NUMBA_CACHE_DIR, the ``__pycache__`` beside the source, or
    the user's own. Numba takes the first that can be written: one that was filled beforehand, such as in the image of a
    container, would not be read where it is read only."""

    class Implementation(implementation):
        _locator_classes = tuple(map(_wherever, implementation._locator_classes))

        def folders(self, function) -> list[str]:
            """Numba's, up to the first that can be written."""
            if getattr(numba.config, "CACHE_LOCATOR_CLASSES", None):
                return [self.locator.get_cache_path()]
            source, found = inspect.getfile(function), []
            for each in self._locator_classes:
                locator = each.from_function(function, source)
                if locator is not None:
                    found.append(locator.get_cache_path())
                    if _can_be_written(found[-1]):
                        break
            return found

    return Implementation


def _plain(value: Any) -> Any:
    """Tuples without names: NVIDIA's compute capability is one with names where there is a GPU."""
    return tuple(_plain(part) for part in value) if isinstance(value, tuple) else value


def keep_on_disk(dispatcher, base: Any, *versions: str) -> None:
    """Give a Numba dispatcher a cache of class ``base`` (Numba's, for its target) with our keys and files.
    ``versions`` are those of other packages that decide what is in a file.

    Numba has no public way to choose them. If its internals change, or nothing can be written, kernels are compiled in
    each process instead.
    """

    class SpecificationCache(base):
        _impl_class = _searching(base._impl_class)

        def __init__(self, function):
            super().__init__(function)
            self._cache_file = _KernelFiles(self._impl.folders(function), self._impl.filename_base, versions)

        def _index_key(self, signature, codegen):
            return signature, _plain(codegen.magic_tuple())

        def load_overload(self, signature, target_context):
            try:
                return super().load_overload(signature, target_context)
            except Exception as error:  # Whatever is wrong with what was saved: it can be compiled.
                logger.info("a kernel on disk is not used: %s: %s", type(error).__name__, error)
                return None

        def save_overload(self, signature, data):
            try:
                super().save_overload(signature, data)
            except OSError as error:
                _not_kept(error)

    try:
        dispatcher._cache = SpecificationCache(dispatcher.py_func)
    except (AttributeError, TypeError, RuntimeError, OSError) as error:
        _not_kept(error)


def named(function, kind: str, key: object):
    """The same function under its kernel name."""
    function.__name__ = function.__qualname__ = kernel_name(kind, key)
    return function
