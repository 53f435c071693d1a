"""CuPy arrays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np

from gpubce.arrays import numpy as host
from gpubce.arrays.buffer import BOUNDARY, Buffer, Device, Glance

NAME = "CuPy"


def buffer(array: "cupy.ndarray") -> Buffer:
    """Where the array is."""
    device = Device("cuda", array.device.id)
    return Buffer(array.data.ptr, array.dtype.name, array.shape, array.strides, device, array)


def glance(array: Any) -> Glance | None:
    """See :func:`gpubce.arrays.registry.glance`."""
    if type(array) is not cupy.ndarray:
        return None
    where = array.data.ptr
    return (array.dtype, array.shape, array.strides, array.device.id, where % BOUNDARY), where


def address(array: "cupy.ndarray") -> int:
    """Where a new array is."""
    return array.data.ptr


def empty(shape: Sequence[int], storage: str, like: Buffer) -> "cupy.ndarray":
    """A new array on the device of ``like``, from CuPy's pool."""
    with cupy.cuda.Device(like.device.index):
        return cupy.empty(tuple(shape), host.dtype(storage))


def from_numbers(values: Sequence[float], storage: str, like: Buffer) -> "cupy.ndarray":
    """A new vector with these values on the device of ``like``."""
    with cupy.cuda.Device(like.device.index):
        if len(values) == 1:
            return cupy.full(1, values[0], storage)
        return cupy.asarray(np.array(values, storage))  # By page-locked memory: it does not wait.


def stream(like: Buffer) -> int:
    """CuPy's current stream on that device."""
    with cupy.cuda.Device(like.device.index):
        return cupy.cuda.get_current_stream().ptr


@contextmanager
def on_stream(like: Buffer, handle: int) -> Iterator[None]:
    """New arrays belong to that stream: CuPy's pool gives freed memory to later work of the same stream only."""
    with cupy.cuda.Device(like.device.index), cupy.cuda.ExternalStream(handle, like.device.index):
        yield


def to_host(array: "cupy.ndarray") -> np.ndarray:
    """A copy in NumPy; waits for the device."""
    return cupy.asnumpy(array)


def take(array: "cupy.ndarray", rows: np.ndarray) -> "cupy.ndarray":
    """Some rows, copied."""
    with cupy.cuda.Device(array.device.id):
        return array[cupy.asarray(rows)]


def result(array: "cupy.ndarray", like: Buffer) -> Any:
    """The array as it is."""
    return array
