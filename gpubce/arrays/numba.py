"""Numba device arrays, and the device memory of calls that bring host arrays to a GPU."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import cuda

from gpubce.arrays.buffer import Buffer, Device, as_numpy
from gpubce.arrays.interface import from_cuda_array_interface

NAME = "Numba"

simulated = getattr(cuda.config, "ENABLE_CUDASIM", False)
"""Whether device memory is host memory."""

_chosen = threading.local()


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
    return _sent(np.array(values, storage))


def stream(like: Buffer) -> int:
    """Numba launches on the default stream unless told otherwise."""
    return getattr(_chosen, "handle", 0)


@contextmanager
def on_stream(like: Buffer, handle: int) -> Iterator[None]:
    """Copies are ordered by that stream. Numba's memory belongs to none: freeing it waits."""
    before = getattr(_chosen, "handle", 0)
    _chosen.handle = handle
    try:
        yield
    finally:
        _chosen.handle = before


def _copies() -> Any:
    """The stream of copies, as Numba takes it. One on the default stream would not wait for the kernels of a stream
    that does not block it."""
    handle = getattr(_chosen, "handle", 0)
    return cuda.external_stream(handle) if handle and not simulated else 0


def _sent(array: np.ndarray) -> Any:
    return cuda.to_device(array, stream=_copies())


def _fetched(array: Any, into: np.ndarray | None = None) -> np.ndarray:
    order = _copies()
    found = array.copy_to_host(into, stream=order)
    if order:
        order.synchronize()
    return found


def to_host(array: Any) -> np.ndarray:
    """A copy in NumPy; waits for the device."""
    return _fetched(array)


def take(array: Any, rows: np.ndarray) -> Any:
    """Some rows, copied. Numba has no such operation, so they go through the host."""
    return _sent(_fetched(array)[rows])


def result(array: Any, like: Buffer) -> Any:
    """The array as it is."""
    return array


def to_device(host: Buffer) -> Buffer:
    """A copy of a host buffer in C order on the current device."""
    there = buffer(_sent(np.asarray(as_numpy(host), order="C")))
    return Buffer(there.address, host.storage, there.shape, there.strides, there.device, there.owner)


def from_device(there: Buffer, host: Buffer) -> None:
    """Copy a device buffer back into a host buffer of the same shape; waits for the device."""
    place = as_numpy(host)
    if place.flags.c_contiguous:
        _fetched(there.owner, place)
    else:
        place[...] = _fetched(there.owner)
