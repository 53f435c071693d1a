"""The operations that elements are built from."""

import math

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from gpubce.spec.primitives import fma, is_nan, product, scale_by_low_bits, select, split_exponent

ONE, ONE_OF_64 = np.float32(1), np.float64(1)
REFUSED = {
    "fma of two types": (lambda a, b: fma(a, a, b), ONE, ONE_OF_64),
    "fma of integers": (lambda a, b: fma(a, b, b), 1, 1),
    "product of two types": (lambda a, b: product(a, b), ONE, ONE_OF_64),
    "product of integers": (lambda a, b: product(a, b), 1, 1),
    "select from two types": (lambda a, b: select(a == a, a, b), ONE, ONE_OF_64),
    "select by a number": (lambda a, b: select(a, b, b), ONE, ONE),
    "is_nan of an integer": (lambda a, b: is_nan(a), 1, 1),
    "scale_by_low_bits of two types": (lambda a, b: scale_by_low_bits(a, b), ONE, ONE_OF_64),
    "scale_by_low_bits of integers": (lambda a, b: scale_by_low_bits(a, b), 1, 1),
    "split_exponent of an integer": (lambda a, b: split_exponent(a), 1, 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_take_one_type(name):
    """Nothing is converted without a word."""
    operation, *arguments = REFUSED[name]
    with pytest.raises(TypingError):
        njit(operation)(*arguments)


def test_fma_rounds_once_and_a_product_by_itself():
    a = 1.0 + 2.0**-30
    assert njit(lambda a, c: fma(a, a, c))(a, -1.0) == 2.0**-29 + 2.0**-60
    assert njit(lambda a, c: product(a, a) + c)(a, -1.0) == 2.0**-29


@pytest.mark.parametrize("value", [1.0, 0.75, 1.5, 2.0**-1000, math.pi * 2.0**700])
def test_an_exponent_is_split_off(value):
    k, m = njit(lambda value: split_exponent(value))(value)
    assert m * 2.0**k == value
    assert 0.5 <= m * m < 2.0
