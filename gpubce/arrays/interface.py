"""The CUDA array interface (version 3), which CuPy, Numba, PyTorch, JAX and others speak."""

from typing import Any

import numpy as np

from gpubce.arrays.buffer import Buffer, Device
from gpubce.errors import ArrayError
from gpubce.spec.geometry import c_strides


def from_cuda_array_interface(array: Any, device: Device) -> Buffer:
    """The buffer that the interface describes."""
    description = array.__cuda_array_interface__
    if description.get("mask") is not None:
        raise ArrayError("an array with a mask of its own was given: pass its data, and mask=")
    dtype = np.dtype(description["typestr"])
    if not dtype.isnative:
        raise ArrayError(f"the array's bytes are in the other order ({dtype.str}): convert it to {dtype.name} first")
    shape = tuple(description["shape"])
    address, read_only = description["data"]
    strides = description.get("strides") or c_strides(shape, dtype.itemsize)
    return Buffer(address or 0, dtype.name, shape, tuple(strides), device, array, not read_only)
