"""The argument types that the kernels of both backends share."""

from numba import types

from gpubce.backends.kernel_key import KernelKey
from gpubce.spec.geometry import STRIDED
from gpubce.spec.precision import widened

INDEX = types.int64
"""Sizes, positions and addresses."""

SETTLEMENT = (*(INDEX,) * 5, *(types.float64,) * 4, INDEX)
"""outputs, states, result, numerator, denominator; divisor, least, grad_scale, unit; factor"""


def element_arguments(key: KernelKey) -> tuple:
    """addresses, geometry, parameters, ignored"""
    strided = key.layouts.count(STRIDED)
    numbers = key.dimensions * (1 + strided) if strided else 1
    return (
        types.UniTuple(INDEX, max(1, len(key.arrays))),
        types.UniTuple(INDEX, numbers),
        types.UniTuple(getattr(types, key.recipe.compute), len(key.recipe.parameters)),
        getattr(types, widened(key.recipe.target or key.recipe.compute)),
    )
