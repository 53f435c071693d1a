"""The constants of the elementary functions (promise 3): what each has to be, from the mathematics alone."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from gpubce.spec.coefficients import COEFFICIENTS
from tests.tolerances import POLYNOMIAL_EPSILONS

DIGITS = 50
with mpmath.workdps(DIGITS):
    LN2 = mpmath.log(2)
    ROOT = mpmath.sqrt(2)

FUNCTIONS = {
    "exp": (mpmath.exp, lambda r, tail: 1 + r + r * r * tail, -LN2 / 2, LN2 / 2),
    "log1p_unit": (mpmath.log1p, lambda t, tail: t + t * t * tail, mpf(0), mpf(1)),
    "log1p_centred": (mpmath.log1p, lambda t, tail: t + t * t * tail, 1 / ROOT - 1, ROOT - 1),
    "log_cosh": (
        lambda x: mpmath.log(2 * mpmath.cosh(x / 2)),
        lambda x, tail: LN2 + x * x * tail,
        mpf(0),
        None,  # near, where a logit stops to be near 0
    ),
}
"""Each function, its form with the polynomial in it, and the interval where the form is used."""

REALS = pytest.mark.parametrize("real", COEFFICIENTS)


@REALS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_polynomials_are_as_good_as_their_type(name, real):
    """At 99 places inside their interval, which is more than any of them has coefficients."""
    function, form, low, high = FUNCTIONS[name]
    constants = COEFFICIENTS[real]
    coefficients = [mpf(c) for c in reversed(getattr(constants, name))]
    with mpmath.workdps(DIGITS):
        high = mpf(constants.near) if high is None else high
        for step in range(1, 100):
            x = low + (high - low) * step / 100
            tail = mpmath.polyval(coefficients, x * x if name == "log_cosh" else x)
            error = abs(form(x, tail) / function(x) - 1)
            assert error < POLYNOMIAL_EPSILONS * np.finfo(real).eps, x


@REALS
def test_constants_are_rounded_once(real):
    c, number = COEFFICIENTS[real], np.dtype(real).type
    with mpmath.workdps(DIGITS):
        assert c.log2_e == number(1 / LN2)
        assert c.reduction_high == number(LN2)
        assert c.reduction_low == number(LN2 - mpf(c.reduction_high))
        assert c.ln2_low == number(LN2 - mpf(c.ln2_high))


@REALS
def test_the_high_part_of_ln_2_times_an_exponent_is_exact(real):
    c, info, number = COEFFICIENTS[real], np.finfo(real), np.dtype(real).type
    for k in range(info.minexp - info.nmant - 1, info.maxexp + 1):
        assert Fraction(float(number(k) * number(c.ln2_high))) == k * Fraction(c.ln2_high), k


@REALS
def test_the_rounder_leaves_a_biased_exponent_in_its_lowest_bits(real):
    """exp(-a) makes sign and exponent of 2^n of them."""
    info, number = np.finfo(real), np.dtype(real).type
    rounder = number(COEFFICIENTS[real].rounder)
    for n in range(info.minexp, 1):
        bits = int((number(n + 0.25) + rounder).view(f"int{info.bits}"))
        assert math.ldexp(1.0, (bits & (4 * info.maxexp - 1)) - (info.maxexp - 1)) == math.ldexp(1.0, n)


@REALS
def test_the_largest_exponent_is_the_last_that_gives_a_normal_number(real):
    last, smallest = np.dtype(real).type(COEFFICIENTS[real].largest_exponent), float(np.finfo(real).tiny)
    with mpmath.workdps(DIGITS):
        assert mpmath.exp(-mpf(float(last))) >= smallest > mpmath.exp(-mpf(float(np.nextafter(last, np.inf))))


@REALS
def test_every_subnormal_number_is_scaled_to_a_normal_one(real):
    info = np.finfo(real)
    assert Fraction(float(info.smallest_subnormal)) * 2 ** COEFFICIENTS[real].subnormal_shift >= Fraction(
        float(info.tiny)
    )
