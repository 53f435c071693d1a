"""Where an array is and what it holds, whatever library owns it."""

import ctypes
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpubce.spec.precision import ITEMSIZE


@dataclass(frozen=True)
class Device:
    """ "cpu", or "cuda" with the number of the GPU."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


CPU = Device()

LONGEST_LINE = 400
"""Characters of another library's error that a message repeats: NumPy repeats a header of 10,000."""


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line of bounded length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= LONGEST_LINE else f"{lines[0][: LONGEST_LINE - 3]}..."


Glance = tuple[Hashable, int]
"""How an array looks, and its address. Arrays that look the same have buffers that differ in address and owner only; on
a GPU their addresses lie as far behind a multiple of BOUNDARY."""

BOUNDARY = 32
"""The bytes that a CUDA thread loads of an array at once are at most so many: addresses decide whether it can."""


class Buffer(NamedTuple):
    """``strides`` are in bytes. ``owner`` and ``holder`` keep the memory alive."""

    address: int
    storage: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: Device
    owner: Any
    writable: bool = True
    holder: Any = None

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def reach(self) -> tuple[int, int]:
        """How many bytes behind the address the memory begins, and how many behind it ends."""
        if self.size == 0:
            return 0, 0
        steps = [stride * (length - 1) for length, stride in zip(self.shape, self.strides, strict=True)]
        low = sum(step for step in steps if step < 0)
        high = sum(step for step in steps if step > 0)
        return low, high + ITEMSIZE[self.storage]

    @property
    def extent(self) -> tuple[int, int]:
        """The first address, and the first one behind the last element."""
        low, high = self.reach
        return self.address + low, self.address + high

    def overlaps(self, other: "Buffer") -> bool:
        """Whether the two may share memory."""
        if self.device != other.device or not (self.size and other.size):
            return False
        first, second = self.extent, other.extent
        return first[0] < second[1] and second[0] < first[1]

    def same_elements(self, other: "Buffer") -> bool:
        """Whether element k of both is the same memory, for every k."""
        return (self.address, self.storage, self.shape, self.strides) == (
            other.address,
            other.storage,
            other.shape,
            other.strides,
        )


def as_numpy(buffer: Buffer) -> np.ndarray:
    """The memory of a host buffer as a NumPy view; bfloat16 as its bits in uint16."""
    dtype = np.dtype("uint16" if buffer.storage == "bfloat16" else buffer.storage)
    low, high = buffer.extent
    memory: Any = (ctypes.c_char * (high - low)).from_address(low)
    return np.ndarray(buffer.shape, dtype, memory, buffer.address - low, buffer.strides)
