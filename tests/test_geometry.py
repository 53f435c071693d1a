"""Where elements lie: a geometry leads to the bytes that the strides say, in as few numbers as it can."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubce.spec.geometry import FLAT, SCALAR, STRIDED, Geometry, Operand, c_strides, is_flat, lay_out
from gpubce.spec.primitives import strided_offset

KERNELS = (1, 2, 3, 4, 8, 16, 32, 64)
"""The numbers of dimensions for which there are kernels; a change means other kernels to compile."""

shapes = st.lists(st.integers(1, 4), max_size=5).map(tuple)
STORAGE = {1: "uint8", 2: "float16", 4: "float32", 8: "float64"}


@st.composite
def layouts(draw):
    """A shape, and one to three operands over it: flat, broadcast, or with any strides."""
    shape = draw(shapes)
    operands = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.sampled_from([1, 2, 4, 8]))
        strides = list(c_strides(shape, size))
        for axis in range(len(shape)):
            change = draw(st.sampled_from(["none", "none", "broadcast", "reversed", "doubled", "any"]))
            strides[axis] *= {"broadcast": 0, "reversed": -1, "doubled": 2}.get(change, 1)
            if change == "any":
                strides[axis] = draw(st.integers(-64, 64))
        operands.append(Operand(STORAGE[size], tuple(strides)))
    return shape, operands


def offsets(shape, strides):
    """By definition, in C order."""
    return [sum(k * stride for k, stride in zip(place, strides, strict=True)) for place in np.ndindex(shape)]


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_a_geometry_leads_to_every_element(layout):
    shape, operands = layout
    geometry = lay_out(shape, operands)
    slot = 0
    for kind, operand in zip(geometry.layouts, operands, strict=True):
        expected = offsets(shape, operand.strides)
        size = np.dtype(operand.storage).itemsize
        is_scalar, in_order = set(expected) == {0}, expected == [k * size for k in range(math.prod(shape))]
        assert kind == (FLAT if in_order else SCALAR if is_scalar else STRIDED)
        if kind == STRIDED:
            find = strided_offset(geometry.dimensions, slot).py_func
            assert [find(k, geometry.numbers) for k in range(math.prod(shape))] == expected
            slot += 1
    if slot:
        assert len(geometry.numbers) == geometry.dimensions * (1 + slot)
        assert math.prod(geometry.numbers[: geometry.dimensions]) == math.prod(shape)


@pytest.mark.parametrize("axes", range(1, 65))
def test_kernels_exist_for_few_numbers_of_dimensions(axes):
    """No two of these axes merge. What is added in front has length 1 and no stride."""
    strides = tuple(4 * 3 ** (axes - k) for k in range(axes))
    geometry = lay_out((2,) * axes, [Operand("float32", strides)])
    dimensions = min(size for size in KERNELS if size >= axes)
    ahead = dimensions - axes
    assert geometry == Geometry((STRIDED,), dimensions, ((1,) * ahead + (2,) * axes) + ((0,) * ahead + strides))


def test_axes_merge_where_all_operands_step_evenly():
    shape, every_second = (2, 3, 5), tuple(2 * stride for stride in c_strides((2, 3, 5), 4))
    one = Operand("float32", every_second)
    assert lay_out(shape, [one]) == Geometry((STRIDED,), 1, (30, 8))
    other = Operand("float64", (8, 16, 48))
    assert lay_out(shape, [one, other]).dimensions == 3
    rows = Operand("float64", (8 * 3, 8, 0))
    assert lay_out(shape, [one, rows]) == Geometry((STRIDED, STRIDED), 2, (6, 5, 40, 8, 8, 0))
    assert lay_out((2, 1, 5), [Operand("float32", (80, 999, 8))]).numbers == (2, 5, 80, 8)


def test_no_numbers_are_needed_where_nothing_is_strided():
    """A kernel's tuple of integers is not empty, because an empty one has no type."""
    flat, scalar = Operand("float32", (12, 4)), Operand("float64", (0, 0))
    assert lay_out((2, 3), [flat, scalar]) == Geometry((FLAT, SCALAR), 1, (0,))


def test_axes_of_length_1_have_any_stride():
    assert is_flat((2, 1, 3), (12, -7, 4), 4)
    assert not is_flat((2, 1, 3), (16, 4, 4), 4)
    assert is_flat((), (), 4)


@given(shapes, st.sampled_from([1, 2, 4, 8]))
def test_strides_of_c_order_are_those_of_numpy(shape, size):
    assert c_strides(shape, size) == np.empty(shape, f"V{size}").strides
