"""Where the elements of a call lie: shapes and strides of all its arrays, reduced to what a kernel needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpubce.spec.precision import ITEMSIZE

FLAT = "flat"
SCALAR = "scalar"
STRIDED = "strided"

_DIMENSIONS = (1, 2, 3, 4, 8, 16, 32, 64)
"""Kernels exist for these numbers of dimensions; other shapes are padded with axes of length 1."""


@dataclass(frozen=True)
class Operand:
    """One array of a call as a kernel sees it: what it holds, and byte strides over the call's shape (0 along axes on
    which it is broadcast)."""

    storage: str
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """The joint layout of several arrays over one shape.

    ``layouts`` says for each array whether its elements follow one another in C order (flat), are one element
    (scalar), or need ``numbers``: the shape, then the strides of each strided array in order.
    """

    layouts: tuple[str, ...]
    dimensions: int
    numbers: tuple[int, ...]


def c_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The byte strides of a C-contiguous array.

    >>> c_strides((2, 3), 4)
    (12, 4)
    """
    strides = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def is_flat(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether the elements follow one another in C order."""
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1:
            if stride != expected:
                return False
            expected *= length
    return True


def lay_out(shape: Sequence[int], operands: Sequence[Operand]) -> Geometry:
    """Classify the operands and merge the axes that all strided ones step through evenly.

    >>> vector = Operand("float32", (0, 4))
    >>> lay_out((5, 3), [Operand("float32", (12, 4)), vector])
    Geometry(layouts=('flat', 'strided'), dimensions=2, numbers=(5, 3, 0, 4))
    """
    layouts = []
    strided = []
    for operand in operands:
        if is_flat(shape, operand.strides, ITEMSIZE[operand.storage]):
            layouts.append(FLAT)
        elif all(stride == 0 or length == 1 for length, stride in zip(shape, operand.strides, strict=True)):
            layouts.append(SCALAR)
        else:
            layouts.append(STRIDED)
            strided.append(operand.strides)
    if not strided:
        return Geometry(tuple(layouts), 1, (0,))

    axes: list[tuple[int, tuple[int, ...]]] = []
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        steps = tuple(strides[axis] for strides in strided)
        if axes and all(outer == inner * length for outer, inner in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * length, steps)
        else:
            axes.append((length, steps))
    dimensions = next(size for size in _DIMENSIONS if size >= len(axes))
    axes = [(1, (0,) * len(strided))] * (dimensions - len(axes)) + axes
    lengths = tuple(length for length, _ in axes)
    steps_by_operand = zip(*(steps for _, steps in axes), strict=True)
    return Geometry(tuple(layouts), dimensions, lengths + tuple(step for steps in steps_by_operand for step in steps))
