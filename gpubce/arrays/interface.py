"""The CUDA array interface (version 3), which CuPy, Numba, PyTorch, JAX and others speak."""

from typing import Any

import numpy as np

from gpubce.arrays.buffer import Buffer, Device, first_line
from gpubce.errors import ArrayError
from gpubce.spec.geometry import c_strides


def from_cuda_array_interface(array: Any, device: Device) -> Buffer:
    """The buffer that the interface describes."""
    try:
        description = array.__cuda_array_interface__
        dtype, shape = np.dtype(description["typestr"]), tuple(map(int, description["shape"]))
        address, read_only = description["data"]
        address = int(address or 0)
        strides = tuple(map(int, description.get("strides") or c_strides(shape, dtype.itemsize)))
    except Exception as error:  # A property of the object's class.
        raise ArrayError(
            f"the CUDA array interface of this {type(array).__name__} cannot be read: {first_line(error)}"
        ) from None
    if len(strides) != len(shape):
        raise ArrayError(
            f"the CUDA array interface of this {type(array).__name__} has shape {shape}, strides {strides}"
        )
    if description.get("mask") is not None:
        raise ArrayError("an array with a mask of its own was given: pass its data, and mask=")
    if not dtype.isnative:
        raise ArrayError(f"the array's bytes are in the other order ({dtype.str}): convert it to {dtype.name} first")
    return Buffer(address, dtype.name, shape, strides, device, array, not read_only)
