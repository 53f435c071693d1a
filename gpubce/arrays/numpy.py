"""NumPy arrays, with the bfloat16 of ml_dtypes; lists, numbers and whatever else NumPy reads."""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from gpubce.arrays.buffer import CPU, Buffer, Glance, first_line
from gpubce.errors import ArrayError

NAME = "NumPy"

_BYTE = ctypes.c_char.from_buffer


def buffer(array: Any) -> Buffer:
    """Where the array is. A masked array is refused: its mask would be lost."""
    # NumPy imports numpy.ma when it is first asked for: here only a masked array would need it.
    if "numpy.ma" in sys.modules and isinstance(array, np.ma.MaskedArray):
        raise ArrayError(
            "a NumPy masked array was given, whose mask would be ignored: "
            "pass array.data, and mask=~numpy.ma.getmaskarray(array)"
        )
    # What NumPy makes of anything else may be a copy: not a place to write to.
    writable = isinstance(array, np.ndarray) and bool(array.flags.writeable)
    if not isinstance(array, np.ndarray):
        try:
            array = np.asarray(array)
        except Exception as error:  # The object's own __array__ may raise anything.
            raise ArrayError(
                f"NumPy cannot make an array of this {type(array).__name__}: {first_line(error)}"
            ) from None
    if not array.dtype.isnative:
        raise ArrayError(
            f"the array's bytes are in the other order ({array.dtype.str}): pass array.astype({array.dtype.name!r})"
        )
    return Buffer(address(array), _name(array.dtype), array.shape, array.strides, CPU, array, writable)


def glance(array: Any) -> Glance | None:
    """See :func:`gpubce.arrays.registry.glance`."""
    if type(array) is not np.ndarray:
        return None
    try:  # As in address: a call of it takes 0.1 us, and a small call on arrays 6.
        return (array.dtype, array.shape, array.strides), ctypes.addressof(_BYTE(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        return (array.dtype, array.shape, array.strides), array.ctypes.data


def address(array: np.ndarray) -> int:
    """array.ctypes.data, for which NumPy makes an object (0.8 us): most arrays tell it in 0.15 us."""
    try:
        return ctypes.addressof(_BYTE(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # Read-only, with gaps, empty, or of a type that buffers do not know.
        return array.ctypes.data


@cache
def _name(dtype: np.dtype) -> str:
    """dtype.name, which NumPy puts together anew each time (5 us)."""
    return dtype.name


@cache
def dtype(storage: str) -> np.dtype:
    """The NumPy type of that name."""
    if storage == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ArrayError("a bfloat16 result needs the package ml_dtypes: pip install ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(storage)


def empty(shape: Sequence[int], storage: str, like: Buffer) -> np.ndarray:
    """A new array. One that no memory can hold is a MemoryError too."""
    try:
        return np.empty(shape, dtype(storage))
    except ValueError as error:
        raise MemoryError(str(error)) from None


def from_numbers(values: Sequence[float], storage: str, like: Buffer) -> np.ndarray:
    """A new vector with these values."""
    return np.array(values, dtype(storage))


def stream(like: Buffer) -> int:
    """There are no streams on a CPU."""
    return 0


def on_stream(like: Buffer, handle: int) -> AbstractContextManager[Any]:
    """There are no streams on a CPU."""
    return nullcontext()


def to_host(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return np.asarray(array)


def take(array: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows, copied."""
    return np.asarray(array)[rows]


def result(array: np.ndarray, like: Buffer) -> Any:
    """The array; a NumPy number where it has no axes."""
    return array[()] if array.ndim == 0 else array
