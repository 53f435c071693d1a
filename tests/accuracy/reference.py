"""The truth: loss, gradient and hessian of hard targets, from the definitions, far beyond the type under test.

For float32 and narrower inputs it is computed in float64 with the C library's exp, log and log1p, relative error about
2^-51, which is 2^-27 units in the last place of a float32. For float64 inputs it is computed in pairs of float64
(hi + lo), relative error about 2^-100. :func:`measured_error` compares both with mpmath.

Nothing here is shared with the package. Every function fills six rows, in the order of :data:`ROWS`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, localcontext
from fractions import Fraction
from threading import Lock

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from tests.oracle import mp, truth

ROWS = tuple((target, output) for target in (0, 1) for output in ("loss", "gradient", "hessian"))
"""(target, output) of each row of results."""

compiled = njit(nogil=True, error_model="numpy")


# In float64, for float32 and narrower ---------------------------------------------------------------------------------


@compiled
def logits_in_float64(logits, true):
    """The six rows for logits. exp(-|x|) is formed once, and the two targets mirror each other."""
    for i in range(logits.size):
        x = np.float64(logits[i])
        t = math.exp(-abs(x))
        soft = math.log1p(t)
        u = 1.0 + t
        near, far = 1.0 / u, t / u
        curvature = far / u
        if x >= 0.0:
            true[0, i], true[1, i], true[3, i], true[4, i] = x + soft, near, soft, -far
        else:
            true[0, i], true[1, i], true[3, i], true[4, i] = soft, far, soft - x, -near
        true[2, i] = true[5, i] = curvature


@compiled
def probabilities_in_float64(probabilities, true):
    """The six rows for probabilities; 1 - p is rounded to float64 in the derivatives only, where that is harmless."""
    for i in range(probabilities.size):
        p = np.float64(probabilities[i])
        q = 1.0 - p
        true[0, i], true[1, i], true[2, i] = -math.log1p(-p), 1.0 / q, 1.0 / (q * q)
        true[3, i], true[4, i], true[5, i] = -math.log(p), -1.0 / p, 1.0 / (p * p)


# In pairs of float64, for float64 -------------------------------------------------------------------------------------


def _parts(value: Fraction, count: int) -> list[float]:
    """A number as an unevaluated sum of floats."""
    parts = []
    for _ in range(count):
        parts.append(float(value))
        value -= Fraction(parts[-1])
    return parts


with localcontext(prec=80):
    _LN2 = Fraction(Decimal(2).ln())
LN2_HIGH = math.floor(_LN2 * 2**32) / 2.0**32
"""The first 32 bits of ln 2: its product with an exponent is exact."""
LN2_MIDDLE, LN2_LOW = _parts(_LN2 - Fraction(LN2_HIGH), 2)
PAIRED_TERMS, PLAIN_TERMS = 15, 27
"""expm1(r) = r (1 + r / 2 + ...): coefficients 1 / k! up to k = 15 are pairs. From there to 27 the terms are below
2^-60 of the result, and float64 is enough; what is left out is below 2^-110."""
_INVERSE_FACTORIALS = [_parts(Fraction(1, math.factorial(k)), 2) for k in range(PLAIN_TERMS + 1)]
TERM_HIGH, TERM_LOW = (np.array([pair[part] for pair in _INVERSE_FACTORIALS]) for part in (0, 1))
DEEP = 300.0
"""From this |x| on, t = exp(-|x|) is below 2^-430: log1p(t), t / (1 + t) and t / (1 + t)^2 are t."""


@intrinsic
def _fma(typing_context, a, b, c):
    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), codegen


@compiled
def _two_sum(a, b):
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


@compiled
def _ordered_sum(a, b):
    """_two_sum where |a| >= |b| or a = 0."""
    total = a + b
    return total, b - (total - a)


@compiled
def _add(ah, al, bh, bl):
    high, error = _two_sum(ah, bh)
    low, rest = _two_sum(al, bl)
    high, error = _ordered_sum(high, error + low)
    return _ordered_sum(high, error + rest)


@compiled
def _multiply(ah, al, bh, bl):
    high = ah * bh
    low = _fma(ah, bh, -high)
    return _ordered_sum(high, _fma(ah, bl, _fma(al, bh, low)))


@compiled
def _divide(ah, al, bh, bl):
    """a / b: a quotient of the high parts, and twice the quotient of what is left."""
    first = ah / bh
    h, low = _multiply(first, 0.0, bh, bl)
    rh, rl = _add(ah, al, -h, -low)
    second = rh / bh
    h, low = _multiply(second, 0.0, bh, bl)
    rh, rl = _add(rh, rl, -h, -low)
    high, low = _ordered_sum(first, second)
    return _ordered_sum(high, low + rh / bh)


@compiled
def _expm1(x):
    """(n, hi, lo) with exp(x) = 2^n (1 + hi + lo); n = 0 for |x| <= ln 2 / 2, where hi + lo is expm1(x)."""
    n = np.rint(x / LN2_HIGH)
    product = n * LN2_MIDDLE
    rest = _fma(n, LN2_MIDDLE, -product) + n * LN2_LOW
    rh, rl = _two_sum(x - n * LN2_HIGH, -product)
    rh, rl = _ordered_sum(rh, rl - rest)
    plain = 0.0
    for k in range(PLAIN_TERMS, PAIRED_TERMS, -1):
        plain = (plain + TERM_HIGH[k]) * rh
    sh, sl = plain, 0.0
    for k in range(PAIRED_TERMS, 1, -1):
        sh, sl = _add(TERM_HIGH[k], TERM_LOW[k], sh, sl)
        sh, sl = _multiply(sh, sl, rh, rl)
    sh, sl = _add(1.0, 0.0, sh, sl)
    sh, sl = _multiply(sh, sl, rh, rl)
    return n, sh, sl


@compiled
def _log_beside(guess, zh, zl):
    """log(1 + z) for z > -1/2, by one step of Newton from a guess that is good to float64.

    With e = expm1(guess): log(1 + z) = guess + log1p(d), d = (z - e) / (1 + e). As d is about 2^-53 of the result, d
    stands for log1p(d).
    """
    n, eh, el = _expm1(guess)
    if n != 0.0:
        power = math.ldexp(1.0, int(n))
        eh, el = _add(power - 1.0, 0.0, eh * power, el * power)
    dh, dl = _add(zh, zl, -eh, -el)
    oh, ol = _add(1.0, 0.0, eh, el)
    dh, dl = _divide(dh, dl, oh, ol)
    return _add(guess, 0.0, dh, dl)


@compiled
def logits_in_pairs(logits, high, low, exponent):
    """The six rows for float64 logits: (high + low) 2^exponent, so that nothing underflows."""
    for i in range(logits.size):
        x = logits[i]
        a = abs(x)
        if not a < np.inf:
            t = 0.0 if a == a else a
            high[0, i], high[3, i] = max(x, 0.0) + t, max(-x, 0.0) + t
            high[1, i], high[4, i] = (1.0 if x > 0.0 else 0.0) + t, -(1.0 if x < 0.0 else 0.0) - t
            high[2, i] = high[5, i] = t
            for row in range(6):
                low[row, i], exponent[row, i] = 0.0, 0
            continue
        n, eh, el = _expm1(-min(a, 10000.0))
        eh, el = _add(1.0, 0.0, eh, el)
        if a > DEEP:
            # Of the far side, everything is t = 2^n e; on the near side it is below the pair's precision.
            depth = int(n)
            soft_h, soft_l, far_h, far_l, bend_h, bend_l = eh, el, eh, el, eh, el
            near_h, near_l = 1.0, 0.0
            loss_h, loss_l = a, 0.0
        else:
            depth = 0
            power = math.ldexp(1.0, int(n))
            th, tl = eh * power, el * power
            uh, ul = _add(1.0, 0.0, th, tl)
            soft_h, soft_l = _log_beside(math.log1p(th), th, tl)
            near_h, near_l = _divide(1.0, 0.0, uh, ul)
            far_h, far_l = _divide(th, tl, uh, ul)
            bend_h, bend_l = _divide(far_h, far_l, uh, ul)
            loss_h, loss_l = _add(a, 0.0, soft_h, soft_l)
        positive = x >= 0.0
        wrong, right = (0, 3) if positive else (3, 0)  # The rows of the target that the logit is against, and for.
        sign = 1.0 if positive else -1.0
        high[wrong, i], low[wrong, i], exponent[wrong, i] = loss_h, loss_l, 0
        high[right, i], low[right, i], exponent[right, i] = soft_h, soft_l, depth
        high[wrong + 1, i], low[wrong + 1, i], exponent[wrong + 1, i] = sign * near_h, sign * near_l, 0
        high[right + 1, i], low[right + 1, i], exponent[right + 1, i] = -sign * far_h, -sign * far_l, depth
        high[wrong + 2, i], low[wrong + 2, i], exponent[wrong + 2, i] = bend_h, bend_l, depth
        high[right + 2, i], low[right + 2, i], exponent[right + 2, i] = bend_h, bend_l, depth


@compiled
def _minus_log(z):
    """-log z as a pair, for 0 < z <= 1."""
    m, k = math.frexp(z)
    if m < 0.7071067811865476:
        m, k = 2.0 * m, k - 1
    lh, ll = _log_beside(math.log(m), m - 1.0, 0.0)
    if k != 0:
        product = k * LN2_MIDDLE
        rest = _fma(np.float64(k), LN2_MIDDLE, -product) + k * LN2_LOW
        sh, sl = _add(k * LN2_HIGH, 0.0, product, rest)
        lh, ll = _add(sh, sl, lh, ll)
    return -lh, -ll


@compiled
def probabilities_in_pairs(probabilities, high, low, exponent):
    """The six rows for float64 probabilities: (high + low) 2^exponent. p and 1 - p are taken as they are, exactly."""
    for i in range(probabilities.size):
        p = probabilities[i]
        for row in range(6):
            low[row, i], exponent[row, i] = 0.0, 0
        if not 0.0 < p < 1.0:
            ends = (0.0, 1.0, 1.0, np.inf, -np.inf, np.inf)
            for row in range(6):
                # p = 1 mirrors p = 0: the targets change places and the gradient its sign.
                value = ends[row] if p == 0.0 else ends[(row + 3) % 6] * (-1.0 if row % 3 == 1 else 1.0)
                high[row, i] = value if p == p else p
            continue
        qh, ql = _two_sum(1.0, -p)
        if p >= 0.5:
            high[0, i], low[0, i] = _minus_log(qh)  # 1 - p is exact.
        elif p < 2.0**-200:
            # p + p^2 / 2 + ... is p, kept away from where the pair would lose its low part.
            high[0, i] = p
        else:
            lh, ll = _log_beside(math.log1p(-p), -p, 0.0)
            high[0, i], low[0, i] = -lh, -ll
        dh, dl = _divide(1.0, 0.0, qh, ql)
        high[1, i], low[1, i] = dh, dl
        high[2, i], low[2, i] = _multiply(dh, dl, dh, dl)
        high[3, i], low[3, i] = _minus_log(p)
        m, k = math.frexp(p)
        dh, dl = _divide(1.0, 0.0, m, 0.0)
        high[4, i], low[4, i], exponent[4, i] = -dh, -dl, -k
        high[5, i], low[5, i] = _multiply(dh, dl, dh, dl)
        exponent[5, i] = -2 * k


# Against mpmath -------------------------------------------------------------------------------------------------------


_one_at_a_time = Lock()


@contextmanager
def digits(count: int) -> Iterator[None]:
    """Mpmath with so many decimal digits. Its precision belongs to the process, so threads take turns."""
    with _one_at_a_time, mp.workdps(count):
        yield


def exact(prediction: float, row: int, from_logits: bool) -> mp.mpf:
    """The same from the tests' oracle, in the precision mpmath has at the moment."""
    target, output = ROWS[row]
    return getattr(truth(prediction, float(target), from_logits), output)


def allocate(pairs: bool, size: int) -> tuple[np.ndarray, ...]:
    """The arrays that a reference fills: one, or the three of pairs."""
    if not pairs:
        return (np.empty((len(ROWS), size)),)
    return np.empty((len(ROWS), size)), np.empty((len(ROWS), size)), np.empty((len(ROWS), size), np.int64)


FUNCTIONS = {
    ("float32", True): logits_in_float64,
    ("float32", False): probabilities_in_float64,
    ("float64", True): logits_in_pairs,
    ("float64", False): probabilities_in_pairs,
}
"""By the type under test (float32 stands for the narrower ones too) and whether the inputs are logits."""


def measured_error(real: str, predictions: np.ndarray, from_logits: bool) -> float:
    """The largest relative error of the reference over these inputs, all of them finite and not 0 or 1 as
    probabilities. True values below float64's smallest number are left out: there only their being so matters."""
    filled = allocate(real == "float64", predictions.size)
    FUNCTIONS[real, from_logits](predictions, *filled)
    largest = mp.mpf(0)
    with digits(60):
        for i, prediction in enumerate(predictions):
            for row in range(len(ROWS)):
                true = exact(float(prediction), row, from_logits)
                if abs(true) < mp.ldexp(1, -1080):
                    continue
                found = mp.mpf(filled[0][row, i])
                if real == "float64":
                    found = mp.ldexp(found + mp.mpf(filled[1][row, i]), int(filled[2][row, i]))
                largest = max(largest, abs(found / true - 1))
    return float(largest)
