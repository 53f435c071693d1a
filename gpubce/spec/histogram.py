"""Into which bin of a histogram a sample falls, and what it adds there: see :mod:`gpubce.spec.bins`."""

from functools import cache

import numpy as np
from numba import types

from gpubce.spec.bins import LIMIT, QUANTUM_BITS
from gpubce.spec.primitives import floored, fma, is_nan, low_bits, product, select
from gpubce.spec.subroutines import subroutine


@cache
def binner(bins: int, real: str):
    """The subroutine logit -> number of its bin, ``bins`` for NaN. Every step is exact."""
    number = np.dtype(real).type
    PER_UNIT, LEAST, MOST = number(bins / (2.0 * LIMIT)), number(-bins // 2), number(bins // 2 - 1)
    HALF, NOT_A_NUMBER = bins // 2, np.int64(bins)

    @subroutine(types.int64)
    def bin_of(logit):
        place = product(logit, PER_UNIT)
        inside = select(place > LEAST, place, LEAST)
        inside = select(inside < MOST, inside, MOST)
        return select(is_nan(logit), NOT_A_NUMBER, np.int64(floored(inside)) + HALF)

    return bin_of


@subroutine(types.int64)
def quanta(value, per_unit):
    """A value between 0 and the largest weight in quanta, rounded to the nearest."""
    return low_bits(fma(value, per_unit, 4503599627370496.0))  # 2^52


@cache
def placer(bins: int, quantised: bool, real: str):
    """The subroutine (counted, logit, weight, target, quanta per unit) -> (cell, positive, negative): where a sample
    falls and what it adds to ``cell + 1`` and to ``cell``.

    Where targets are 0 or 1 and nothing is weighted, the cell is that of the sample's class and it adds ``positive``,
    which is 1, there.
    """
    bin_of = binner(bins, real)
    ELSEWHERE, NOTHING, ONE = np.int64(2 * (bins + 1)), np.int64(0), np.int64(1)
    MOST_QUANTA = float(1 << QUANTUM_BITS)

    @subroutine(types.UniTuple(types.int64, 3))
    def place_quanta(counted, logit, weight, target, per_unit):
        wide, per_unit = np.float64(weight), np.float64(per_unit)
        fits = product(wide, per_unit) <= MOST_QUANTA
        both = quanta(select(fits, wide, 0.0), per_unit)
        positive = quanta(select(fits, product(wide, np.float64(target)), 0.0), per_unit)
        cell = select(counted & fits, 2 * bin_of(logit), ELSEWHERE)
        too_heavy = select(fits, NOTHING, ONE)
        return (
            cell,
            select(counted, select(fits, positive, too_heavy), NOTHING),
            select(counted & fits, both - positive, NOTHING),
        )

    @subroutine(types.UniTuple(types.int64, 3))
    def place_one(counted, logit, weight, target, per_unit):
        own = 2 * bin_of(logit) + np.int64(target != 0)
        return select(counted, own, ELSEWHERE), ONE, NOTHING

    return place_quanta if quantised else place_one
