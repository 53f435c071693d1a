"""Numba device arrays, and the device memory of calls that bring host arrays to a GPU."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numba import cuda

from gpubce.arrays.buffer import Buffer, Device, as_numpy
from gpubce.arrays.interface import from_cuda_array_interface

NAME = "Numba"

simulated = getattr(cuda.config, "ENABLE_CUDASIM", False)
"""Whether device memory is host memory."""


def buffer(array: Any) -> Buffer:
    """Where the array is."""
    if simulated:
        memory = array._ary
        return Buffer(memory.ctypes.data, memory.dtype.name, memory.shape, memory.strides, Device("cuda"), array)
    return from_cuda_array_interface(array, Device("cuda", cuda.get_current_device().id))


def empty(shape: Sequence[int], storage: str, like: Buffer) -> Any:
    """A new array on the current device. Numba has no bfloat16: its bits are given as uint16."""
    return cuda.device_array(tuple(shape), np.dtype("uint16" if storage == "bfloat16" else storage))


def from_numbers(values: Sequence[float], storage: str, like: Buffer) -> Any:
    """A new vector with these values on the current device."""
    return cuda.to_device(np.array(values, storage))


def stream(like: Buffer) -> int:
    """Numba launches on the default stream unless told otherwise."""
    return 0


def on_stream(like: Buffer, handle: int) -> AbstractContextManager[Any]:
    """Numba's memory belongs to no stream: freeing it waits."""
    return nullcontext()


def to_host(array: Any) -> np.ndarray:
    """A copy in NumPy; waits for the device."""
    return array.copy_to_host()


def take(array: Any, rows: np.ndarray) -> Any:
    """Some rows, copied. Numba has no such operation, so they go through the host."""
    return cuda.to_device(array.copy_to_host()[rows])


def result(array: Any, like: Buffer) -> Any:
    """The array as it is."""
    return array


def to_device(host: Buffer) -> Buffer:
    """A copy of a host buffer in C order on the current device."""
    there = buffer(cuda.to_device(np.ascontiguousarray(as_numpy(host))))
    return Buffer(there.address, host.storage, there.shape, there.strides, there.device, there.owner)


def from_device(there: Buffer, host: Buffer) -> None:
    """Copy a device buffer back into a host buffer of the same shape; waits for the device."""
    as_numpy(host)[...] = there.owner.copy_to_host()
