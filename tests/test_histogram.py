"""Where a sample falls in a histogram and what it adds there, by the definition of the bins."""

import math

import numpy as np
import pytest
from numba import njit

from gpubce.spec.bins import (
    LARGEST,
    LIMIT,
    MOST_ELEMENTS,
    QUANTUM_BITS,
    SMALLEST,
    SPECIAL,
    cells,
    edges,
    quantum,
)
from gpubce.spec.histogram import placer
from tests.interpreted import formulas

REALS = pytest.mark.parametrize("real", ["float32", "float64"])


def placing(compiled: bool, *arguments):
    """histogram.placer as a function of numbers: compiled, or as Python."""
    if not compiled:
        return formulas()["histogram"].placer(*arguments)
    place = placer(*arguments)
    return njit(lambda *sample: place(*sample))


def bin_of(logit: float, bins: int) -> int:
    """By the limits between the bins; what is at a limit belongs to the bin above."""
    if math.isnan(logit):
        return bins
    return int(np.clip(np.searchsorted(edges(bins), logit, "right") - 1, 0, bins - 1))


def logits(real: str, bins: int) -> np.ndarray:
    """Every limit and its neighbours in the type, the outer bins and NaN."""
    limits = edges(bins).astype(real)
    beside = [np.nextafter(limits, np.dtype(real).type(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([limits, *beside, np.array([-np.inf, np.inf, np.nan, -0.0, 1e30, -1e30, 1e-30], real)])


@REALS
@pytest.mark.parametrize("compiled", [False, True], ids=["Python", "compiled"])
@pytest.mark.parametrize("bins", [32, 4096])
def test_a_sample_falls_between_the_limits_of_its_bin(bins, compiled, real):
    number, place = np.dtype(real).type, placing(compiled, bins, False, real)
    every = logits(real, bins)
    for logit in every if bins == 32 else every[::97]:
        for target in (0, 1):
            sample = True, logit, number(1), np.int64(target), number(0)
            assert place(*sample) == (2 * bin_of(float(logit), bins) + target, 1, 0), logit


@REALS
@pytest.mark.parametrize("compiled", [False, True], ids=["Python", "compiled"])
def test_a_weight_counts_in_quanta(compiled, real):
    """To the nearest, a half to the even number; the part of the positives first, and the rest is the negatives'."""
    number, bins, per_unit = np.dtype(real).type, 32, 2.0**QUANTUM_BITS
    place = placing(compiled, bins, True, real)

    def found(weight, target, logit=0.0, counted=True):
        return tuple(map(int, place(counted, number(logit), number(weight), number(target), number(per_unit))))

    middle = 2 * (bins // 2)
    assert found(1.0, 1.0) == (middle, 2**QUANTUM_BITS, 0)
    assert found(1.0, 0.0) == (middle, 0, 2**QUANTUM_BITS)
    assert found(0.75, 0.25) == (middle, 3 * 2**20, 9 * 2**20)
    assert found(2.5 / per_unit, 0.0) == (middle, 0, 2)
    assert found(3.5 / per_unit, 1.0) == (middle, 4, 0)
    assert found(1.4 / per_unit, 1.0) == (middle, 1, 0)
    assert found(1.0, 1.0, -20.0)[0] == 0
    assert found(1.0, 1.0, math.nan)[0] == 2 * bins


@REALS
@pytest.mark.parametrize("compiled", [False, True], ids=["Python", "compiled"])
def test_what_cannot_be_placed_is_in_the_last_pair_of_cells(compiled, real):
    """A weight above the largest adds 1, a sample that is not counted nothing, or 1 unit where nothing is weighted."""
    number, bins = np.dtype(real).type, 32
    elsewhere = cells(bins) - 2
    per_unit = number(2.0**QUANTUM_BITS)
    weighted, plain = placing(compiled, bins, True, real), placing(compiled, bins, False, real)
    above = np.nextafter(number(1), number(2))
    for weight in (above, number(2), number(math.inf), number(math.nan)):
        assert weighted(True, number(0), weight, number(1), per_unit) == (elsewhere, 1, 0)
        assert weighted(False, number(0), weight, number(1), per_unit) == (elsewhere, 0, 0)
    for target in (0, 1):
        assert weighted(False, number(0), number(1), number(target), per_unit) == (elsewhere, 0, 0)
    assert plain(False, number(0), number(1), np.int64(1), number(0)) == (elsewhere, 1, 0)


def test_the_bins_are_a_promise():
    """Saved histograms hold them."""
    assert (LIMIT, SPECIAL, SMALLEST, LARGEST, QUANTUM_BITS) == (16.0, 2, 32, 65_536, 24)
    for bins in (SMALLEST, 4096, LARGEST):
        assert cells(bins) == 2 * (bins + 2)
        limits = edges(bins)
        assert (limits.size, limits[0], limits[-1]) == (bins + 1, -16.0, 16.0)
        assert (np.diff(limits) == 32.0 / bins).all()


@pytest.mark.parametrize("max_weight", [1.0, 0.7, 0.5, 2.0, 3.0, 1e-3, 2.0**-20, 1e6])
def test_a_quantum_is_the_power_of_two_that_the_largest_weight_allows(max_weight):
    """So that the largest weight is at most 2^24 quanta, and more than half of that."""
    step = quantum(max_weight)
    assert math.frexp(step)[0] == 0.5
    assert 2 ** (QUANTUM_BITS - 1) < max_weight / step <= 2**QUANTUM_BITS


def test_a_cell_holds_the_most_elements_of_the_largest_weight():
    assert MOST_ELEMENTS * 2**QUANTUM_BITS == 2**64
