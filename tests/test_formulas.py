"""The formulas where one number decides: at the ends of what a function takes, executed as Python."""

import mpmath
import numpy as np
import pytest

import gpubce
from gpubce.spec.coefficients import COEFFICIENTS
from gpubce.spec.job import Settlement
from gpubce.spec.plan import PLAN
from tests.backends import replaced
from tests.cases import dtype, rounded
from tests.interpreted import InterpretedEngine, formulas

REALS = pytest.mark.parametrize("real", COEFFICIENTS)


def limits(real: str):
    """(the functions, the type, the largest exponent, the next number, the smallest normal number)."""
    number = np.dtype(real).type
    last = number(COEFFICIENTS[real].largest_exponent)
    return formulas()["elements"].functions(real), number, last, np.nextafter(last, number(np.inf)), np.finfo(real).tiny


@REALS
def test_the_last_logit_whose_probability_is_a_normal_number(real):
    """Behind it the rest is 0, on a GPU that flushes subnormal numbers too."""
    f, _, last, behind, tiny = limits(real)
    for sign in (1, -1):
        about = f.about_logit(sign * last)
        assert min(f.logistic(last, about), f.logistic(-last, about)) >= tiny
        about = f.about_logit(sign * behind)
        assert min(f.logistic(behind, about), f.logistic(-behind, about)) == 0


@REALS
def test_the_last_power_that_is_a_normal_number(real):
    f, number, last, behind, tiny = limits(real)
    minus_log = number(np.log(2.0))
    exponents = number(last / minus_log) + np.arange(-4, 5, dtype=real) * np.spacing(number(last / minus_log))
    found = {float(e * minus_log): float(f.power(number(0.5), e)) for e in exponents}
    assert found[float(last)] >= tiny
    assert found[float(behind)] == 0


@REALS
def test_the_least_probability_that_does_not_vanish_in_a_focal_loss(real):
    """(p^(1/2) (-log(1 - p)))' is 3/2 p^(1/2) at first."""
    _, number, _, _, tiny = limits(real)
    loss = gpubce.BinaryCrossEntropy(gamma=0.5, reduction="none", log_floor=None)
    with replaced(InterpretedEngine, PLAN):
        gradient, _ = loss.grad_and_hess(np.array([tiny, np.nextafter(tiny, number(0))]), np.zeros(2))
    assert gradient[0] == pytest.approx(1.5 * float(tiny) ** 0.5, rel=1e-5, abs=0)
    assert gradient[1] == 0


@REALS
def test_the_logarithm_of_a_subnormal_probability(real):
    f, number, _, _, tiny = limits(real)
    least = np.finfo(real).smallest_subnormal
    q = np.array([least, 3 * least, tiny / 8, np.nextafter(tiny, number(0)), tiny, 2 * tiny], real)
    with np.errstate(all="ignore"):
        found = f.probability_branches(q)[0]
    with mpmath.workdps(50):
        expected = [float(-mpmath.log(mpmath.mpf(float(one)))) for one in q]
    assert found == pytest.approx(expected, rel=float(np.finfo(real).eps))


# Settlements ---------------------------------------------------------------------------------------------------------

SUMS = np.array([[[6.0, 10.0], [2.0**-52, 0.0]], [[3.0, 5.0], [0.0, 0.25]], [[0.5, 4.0], [0.0, 0.0]]])
"""[sum, hi or lo, output]"""


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("numerator", [0, 1, 2])
@pytest.mark.parametrize("denominator", [None, 0, 1, 2])
def test_a_value_is_a_total_over_a_denominator(denominator, numerator, storage):
    totals = SUMS.sum(axis=1)
    below = 4.0 if denominator is None else np.maximum(totals[denominator], 1.0)
    expected = totals[numerator] / below * 0.3
    found = np.zeros(2, dtype(storage))
    settlement = settled(found, storage, numerator=numerator, denominator=denominator, divisor=4.0, least=1.0, unit=0.3)
    InterpretedEngine().settle(settlement)
    assert found.tolist() == rounded(expected, storage).tolist()


@pytest.mark.parametrize("factor", [None, "float16", "float64", "int32"])
@pytest.mark.parametrize("denominator", [None, 1, 2])
def test_a_scale_of_derivatives_is_a_number_over_a_denominator(denominator, factor):
    totals = SUMS.sum(axis=1)
    below = 4.0 if denominator is None else np.maximum(totals[denominator], 1.0)
    found, times = np.zeros(2), np.array([3, 5], factor or "float64")
    more = {"factor": times.ctypes.data, "factor_storage": factor} if factor else {}
    settlement = settled(found, "float64", None, denominator, divisor=4.0, least=1.0, unit=0.3, grad_scale=7.0, **more)
    InterpretedEngine().settle(settlement)
    assert found.tolist() == (7.0 * (3.0 if factor else 1.0) * (1.0 / below) * np.full(2, 0.3)).tolist()


def settled(found: np.ndarray, storage: str, numerator, denominator, **numbers) -> Settlement:
    """Of SUMS, for both outputs."""
    return Settlement(2, SUMS.ctypes.data, found.ctypes.data, storage, numerator, denominator, **numbers)
