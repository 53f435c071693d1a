"""Fit the polynomials behind the element functions and print their coefficients and errors.

Four functions are approximated as a fixed leading part plus a polynomial P of the given degree:

    exp            exp(r)   = 1 + r + r^2 P(r)    for |r| <= 0.3467 (ln(2)/2 and a margin)
    log1p_unit     log1p(t) = t + t^2 P(t)        for 0 <= t <= 1
    log1p_centred  log1p(f) = f + f^2 P(f)        for sqrt(1/2) - 1 <= f <= sqrt(2) - 1
    log_cosh       log(2 cosh(sqrt(z) / 2)) = ln 2 + z P(z)    for 0 <= z <= 1/4

P minimises the largest relative error of the function value (Remez exchange on a grid, in extended precision). The
coefficients are rounded to the working type one at a time, from low order to high order; the ones not yet rounded are
fitted anew each time, so that they absorb the rounding error of the earlier ones. The result is then evaluated as the
package does it, by Horner's rule with fused multiply-adds in the working type, and compared with mpmath.

Example: python ci/fit_polynomials.py --type float64 --function log1p_unit --degree 19
"""

import argparse

import mpmath
import numpy as np
from mpmath import mpf
from numba import types, vectorize
from numba.extending import intrinsic

mpmath.mp.dps = 80
DEGREES = {  # of P, where the errors of rounding outweigh those of the approximation
    ("float32", "exp"): 4,
    ("float32", "log1p_unit"): 8,
    ("float32", "log1p_centred"): 8,
    ("float32", "log_cosh"): 2,
    ("float64", "exp"): 9,
    ("float64", "log1p_unit"): 19,
    ("float64", "log1p_centred"): 19,
    ("float64", "log_cosh"): 6,
}
INTERVALS = {
    "exp": (mpf("-0.3467"), mpf("0.3467")),
    "log1p_unit": (mpf(0), mpf(1)),
    "log1p_centred": (mpmath.sqrt(mpf(1) / 2) - 1, mpmath.sqrt(2) - 1),
    "log_cosh": (mpf(0), mpf(1) / 4),
}


@intrinsic
def _fma(typing_context, a, b, c):
    if not (a == b == c and isinstance(a, types.Float)):
        return None

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return a(a, b, c), codegen


@vectorize(["f4(f4,f4,f4)", "f8(f8,f8,f8)"])
def fma(a, b, c):
    return _fma(a, b, c)


def function_value(function, x):
    if function == "log_cosh":
        return mpmath.log(2 * mpmath.cosh(mpmath.sqrt(x) / 2))
    return mpmath.exp(x) if function == "exp" else mpmath.log1p(x)


def target_and_weight(function, points):
    """What P has to approximate at `points` (none of them 0), and the weight that makes its error a relative one."""
    value = np.array([function_value(function, x) for x in points])
    if function == "log_cosh":
        return (value - mpmath.log(2)) / points, abs(points / value)
    leading = 1 + points if function == "exp" else points
    return (value - leading) / points**2, abs(points**2 / value)


def chebyshev_grid(function, count):
    low, high = INTERVALS[function]
    points = [(low + high) / 2 - (high - low) / 2 * mpmath.cospi(mpf(i) / (count - 1)) for i in range(count)]
    return np.array([x for x in points if x != 0])


def remez(points, target, weight, degree):
    """Coefficients of the polynomial that minimises the largest weight * |polynomial - target| over the points."""
    unknowns = degree + 2
    powers = np.array([points**k for k in range(degree + 1)])
    reference = np.linspace(0, len(points) - 1, unknowns).round().astype(int)
    while True:
        matrix, right = mpmath.matrix(unknowns, unknowns), mpmath.matrix(unknowns, 1)
        for row, i in enumerate(reference):
            matrix[row, :] = mpmath.matrix([[*(powers[:, i] * weight[i]), mpf((-1) ** row)]])
            right[row] = target[i] * weight[i]
        *coefficients, level = mpmath.lu_solve(matrix, right)
        error = (np.array(coefficients) @ powers - target) * weight
        if max(abs(error)) <= abs(level) * mpf("1.000001"):
            return coefficients
        # The new reference: the largest error in each stretch of one sign, less the smallest (inner ones in pairs).
        stretches = np.split(np.arange(len(points)), np.flatnonzero(np.diff(error > 0)) + 1)
        extremes = [stretch[np.argmax(abs(error[stretch]))] for stretch in stretches]
        while (excess := len(extremes) - unknowns) > 0:
            size = abs(error[extremes])
            smallest = np.argmin(size)
            if excess == 1 or smallest in (0, len(size) - 1):
                del extremes[0 if size[0] < size[-1] else -1]
            else:
                start = smallest - (size[smallest - 1] < size[smallest + 1])
                del extremes[start : start + 2]
        reference = extremes


def fit(function, degree, dtype):
    """The rounded coefficients of P, low order first, and the largest relative error before and after rounding."""
    points = chebyshev_grid(function, 40 * (degree + 2))
    target, weight = target_and_weight(function, points)
    exact, rounded = None, []
    for remaining in range(degree, -1, -1):
        coefficients = remez(points, target, weight, remaining)
        exact = exact or coefficients
        rounded.append(dtype.type(coefficients[0]))
        target, weight = (target - mpf(float(rounded[-1]))) / points, weight * abs(points)
    return rounded, relative_error(function, exact), relative_error(function, [mpf(float(c)) for c in rounded])


def relative_error(function, coefficients):
    points = chebyshev_grid(function, 3001)
    target, weight = target_and_weight(function, points)
    return max(abs(np.polynomial.polynomial.polyval(points, coefficients) - target) * weight)


def evaluate(function, coefficients, x):
    """The approximation in the arithmetic of x's type, in the order of operations the package uses."""
    value = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = fma(value, x, c)
    if function == "exp":
        one = x.dtype.type(1)
        return fma(fma(value, x, one), x, one)
    if function == "log_cosh":
        return fma(value, x, x.dtype.type(np.log(2.0)))
    return fma(value, x * x, x)


def measured_error(function, coefficients, dtype, count):
    """The largest error over `count` random arguments, in ulp of the exact value, and where it occurs."""
    low, high = (float(bound) for bound in INTERVALS[function])
    x = np.random.default_rng(1).uniform(low, high, count).astype(dtype)
    exact = np.array([function_value(function, mpf(float(v))) for v in x])
    ulp = abs(np.spacing(exact.astype(dtype)))
    errors = abs(evaluate(function, coefficients, x).astype(float) - exact) / ulp.astype(float)
    worst = np.argmax(errors)
    return float(errors[worst]), float(x[worst])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=["float32", "float64"], default="float32")
    parser.add_argument("--function", choices=list(INTERVALS), default="exp")
    parser.add_argument("--degree", type=int, help="degree of P (default: the smallest one sufficient)")
    parser.add_argument("--points", type=int, default=20000, help="arguments to measure the error at")
    arguments = parser.parse_args()
    dtype = np.dtype(arguments.type)
    degree = DEGREES[arguments.type, arguments.function] if arguments.degree is None else arguments.degree
    coefficients, exact_error, rounded_error = fit(arguments.function, degree, dtype)
    for k, c in enumerate(coefficients):
        print(f"c{k} = {float(c)!r}")
    exact_error, rounded_error = (float(mpmath.log(error, 2)) for error in (exact_error, rounded_error))
    print(f"relative error 2^{exact_error:.2f}, with rounded coefficients 2^{rounded_error:.2f}")
    error, worst = measured_error(arguments.function, coefficients, dtype, arguments.points)
    print(f"evaluated in {dtype} at {arguments.points} arguments: at most {error:.3f} ulp, at {worst!r}")


if __name__ == "__main__":
    main()
