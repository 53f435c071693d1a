"""The constants of the elementary functions, fitted by ``ci/fit_polynomials.py``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Coefficients:
    """Constants of one type.

    ``exp``: exp(r) = 1 + r + r^2 (exp[0] + exp[1] r + ...) for |r| <= ln 2 / 2.
    ``log1p_unit``: log(1 + t) = t + t^2 (c[0] + c[1] t + ...) for 0 <= t <= 1.
    ``log1p_centred``: the same for sqrt(1/2) - 1 <= t <= sqrt(2) - 1.
    ``rounder``: 1.5 2^fraction bits + exponent bias; adding it rounds to an integer and leaves the exponent's bits.
    ``reduction_*`` and ``ln2_*``: ln 2 in two parts; n reduction_high is formed inside an fma, k ln2_high is exact.
    ``largest_exponent``: the largest a for which exp(-a) is computed as a normal number.
    """

    exp: tuple[float, ...]
    log1p_unit: tuple[float, ...]
    log1p_centred: tuple[float, ...]
    rounder: float
    log2_e: float
    reduction_high: float
    reduction_low: float
    ln2_high: float
    ln2_low: float
    largest_exponent: float
    subnormal_shift: int


COEFFICIENTS = {
    "float32": Coefficients(
        exp=(
            0.4999999403953552,
            0.1666652113199234,
            0.04166828840970993,
            0.008368703536689281,
            0.0013818938750773668,
        ),
        log1p_unit=(
            -0.4999993145465851,
            0.333304762840271,
            -0.2495824694633484,
            0.1969374567270279,
            -0.1535084992647171,
            0.10673169046640396,
            -0.05759408697485924,
            0.02016826532781124,
            -0.0033106280025094748,
        ),
        log1p_centred=(
            -0.4999993145465851,
            0.333304762840271,
            -0.2495824694633484,
            0.1969374567270279,
            -0.1535084992647171,
            0.10673169046640396,
            -0.05759408697485924,
            0.02016826532781124,
            -0.0033106280025094748,
        ),
        rounder=12583039.0,
        log2_e=1.4426950408889634,
        reduction_high=0.693147182464599609375,
        reduction_low=-1.904654299957767878541e-9,
        ln2_high=0.693145751953125,
        ln2_low=1.42860676533018e-06,
        largest_exponent=87.33654,
        subnormal_shift=24,
    ),
}
