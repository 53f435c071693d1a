"""Which module knows an array: a look-up on its type. A new library is one file and one row."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np

import gpubce.arrays.numpy  # noqa: F401  (A child that is forked while another thread imports it could not.)
from gpubce.arrays.buffer import Buffer, Glance
from gpubce.errors import ArrayError


class Library(Protocol):
    """What each module of this package offers. Those that know their arrays at a glance have ``glance``, and
    ``address`` for arrays that they have made."""

    NAME: str

    def buffer(self, array: Any) -> Buffer: ...
    def address(self, array: Any) -> int | None: ...
    def empty(self, shape: Sequence[int], storage: str, like: Buffer) -> Any: ...
    def from_numbers(self, values: Sequence[float], storage: str, like: Buffer) -> Any: ...
    def stream(self, like: Buffer) -> int: ...
    def on_stream(self, like: Buffer, handle: int) -> AbstractContextManager[Any]: ...
    def to_host(self, array: Any) -> np.ndarray: ...
    def take(self, array: Any, rows: np.ndarray) -> Any: ...
    def result(self, array: Any, like: Buffer) -> Any: ...


_BY_PACKAGE = {
    "numpy": "gpubce.arrays.numpy",
    "cupy": "gpubce.arrays.cupy",
    "numba": "gpubce.arrays.numba",
    "torch": "gpubce.arrays.torch",
}
_HOST_VALUES = (list, tuple, int, float)
_ARRAY_MARKS = ("__array__", "__cuda_array_interface__", "__dlpack__", "__cuda_ndarray__")
"""What classes of arrays have one of; the last is of Numba's simulator. PyTorch and Numba have other classes too."""


@cache
def _module_for(kind: type) -> str | None:
    """The look-up follows the bases, so a subclass of torch.Tensor is PyTorch's."""
    if issubclass(kind, _HOST_VALUES):
        return "gpubce.arrays.numpy"
    for base in kind.__mro__:
        module = _BY_PACKAGE.get(str(base.__module__).partition(".")[0])
        if module is not None and (
            module == "gpubce.arrays.numpy" or any(hasattr(kind, mark) for mark in _ARRAY_MARKS)
        ):
            return module
    if hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__dlpack__"):
        return "gpubce.arrays.dlpack"
    if hasattr(kind, "__array__"):
        return "gpubce.arrays.numpy"
    return None


def library_of(array: Any, argument: str) -> Library:
    """The module that knows this array; ``argument`` names it in the error."""
    kind: Any = type(array)
    module = _module_for(kind)
    if module is None:
        raise ArrayError(
            f"{argument} is a {type(array).__module__}.{type(array).__qualname__}, which is not an array: pass a "
            "NumPy, CuPy, Numba or PyTorch array, a list, or anything with DLPack or the CUDA array interface"
        )
    return _loaded(module)


def glance(array: Any) -> Glance | None:
    """How an array looks, and its address; None where only its library's ``buffer`` can tell. 0.5 us where that takes
    3."""
    kind: Any = type(array)
    return _glance_of(kind)(array)


@cache
def _glance_of(kind: type) -> Callable[[Any], Glance | None]:
    module = _module_for(kind)
    return getattr(_loaded(module), "glance", _no_glance) if module else _no_glance


def _no_glance(array: Any) -> None:
    """For libraries that need more than a glance."""


@cache
def _loaded(module: str) -> Library:
    """Not from sys.modules: a module that another thread is importing is there before it is complete."""
    return import_module(module)  # type: ignore[return-value]
