"""The formulas, each a function of one sample.

Notation: x is a logit, p = 1 / (1 + exp(-x)) a probability, y a target, and

    loss = a (-log p) + b (-log(1 - p)),        a = w w1 y,  b = w w0 (1 - y).

Both terms are non-negative and each is accurate by itself, so nothing cancels. A *space* (logit or probability) gives
the two branches -log p and -log(1 - p) with their first and second derivatives; weights, smoothing, clipping, floors
and the focal factor are written once, on top of the branches. A term whose factor is 0 is not there: 0 * inf never
appears.

Logits share t = exp(-|x|):  -log p = max(-x, 0) + log1p(t),  -log(1 - p) = max(x, 0) + log1p(t), and for |x| < 1/2
log(2 cosh(x / 2)) - x / 2 and log(2 cosh(x / 2)) + x / 2. Where a target is known to be 0 or 1, one of the two is
enough: :func:`one_sided`.

Everything is built from the operations of :mod:`gpubce.spec.primitives`, in the type named ``real``.
"""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import njit, types

from gpubce.spec import state
from gpubce.spec.coefficients import COEFFICIENTS
from gpubce.spec.histogram import placer
from gpubce.spec.precision import INTEGERS, widened
from gpubce.spec.primitives import (
    fma,
    is_nan,
    loader,
    polynomial,
    positive_part,
    product,
    scale_by_low_bits,
    select,
    split_exponent,
    storer,
)
from gpubce.spec.quantities import FIELDS
from gpubce.spec.recipe import LOGIT, PARAMETERS, PROBABILITY, Recipe
from gpubce.spec.subroutines import subroutine

inlined = njit(inline="always", error_model="numpy")
settled, mean, derivative_scale = inlined(state.settled), inlined(state.mean), inlined(state.derivative_scale)


@cache
def functions(real: str) -> SimpleNamespace:
    """The branches of both spaces in one type, a power and a guarded product, and the exp and log they are made of."""
    constants = COEFFICIENTS[real]
    number = np.dtype(real).type
    REAL = getattr(types, real)
    ZERO, ONE, TWO, HALF = number(0), number(1), number(2), number(0.5)
    INFINITY, SMALLEST_NORMAL = number(np.inf), np.finfo(real).tiny
    NEAR = number(constants.near)
    LARGEST_EXPONENT = number(constants.largest_exponent)
    MINUS_LOG2_E = number(-constants.log2_e)
    ROUNDER = number(constants.rounder)
    REDUCTION_HIGH, REDUCTION_LOW = number(constants.reduction_high), number(constants.reduction_low)
    LN2_HIGH, LN2_LOW = number(constants.ln2_high), number(constants.ln2_low)
    SUBNORMAL_SCALE, SUBNORMAL_SHIFT = number(2.0**constants.subnormal_shift), number(constants.subnormal_shift)
    exp_tail = polynomial((1.0, 1.0, *constants.exp), real)
    log1p_unit_tail = polynomial(constants.log1p_unit, real)
    log1p_centred_tail = polynomial(constants.log1p_centred, real)
    log_cosh_tail = polynomial(constants.log_cosh, real)

    one, two, five = subroutine(REAL), subroutine(types.UniTuple(REAL, 2)), subroutine(types.UniTuple(REAL, 5))
    six = subroutine(types.UniTuple(REAL, 6))

    @one
    def exp_negative(a):
        """exp(-a) for a >= 0; 0 where the result would be subnormal, so a GPU that flushes them agrees.

        -a = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) by a polynomial.
        """
        shifted = fma(a, MINUS_LOG2_E, ROUNDER)
        n = shifted - ROUNDER
        r = fma(n, -REDUCTION_LOW, fma(n, -REDUCTION_HIGH, -a))
        return select(a > LARGEST_EXPONENT, ZERO, scale_by_low_bits(exp_tail(r), shifted))

    @one
    def log1p_unit(t):
        """log(1 + t) for 0 <= t <= 1, with no range reduction."""
        return fma(log1p_unit_tail(t), t * t, t)

    @two
    def minus_log_pair(q, error):
        """-log(q + error) as an unevaluated sum (hi, lo), for 0 <= q <= 1.

        ``error`` is 0, or the rounding error of q = 1 - p; then q > 1/2 and error 2^-k (k is 0 or -1) completes
        m - 1 to an exact number. q = 2^k m, log q = k ln 2 + log1p(m - 1). Infinite for q = 0.
        """
        subnormal = q < SMALLEST_NORMAL
        k, m = split_exponent(select(subnormal, product(q, SUBNORMAL_SCALE), q))
        k = k - select(subnormal, SUBNORMAL_SHIFT, ZERO)
        f = fma(error, select(k < ZERO, TWO, ONE), m - ONE)
        tail = fma(k, LN2_LOW, fma(log1p_centred_tail(f), f * f, f))
        whole = product(k, LN2_HIGH)
        high = whole + tail
        low = tail - (high - whole)
        zero = q == ZERO
        return select(zero, INFINITY, -high), select(zero | is_nan(q), q, -low)

    @one
    def minus_log(q, error):
        """-log(q + error), rounded once more than the pair."""
        return minus_log_pair(q, error)[0] + minus_log_pair(q, error)[1]

    @one
    def power(base, exponent):
        """base^exponent for 0 <= base <= 1 and exponent > 0; 0 where the result would be subnormal.

        The exponential magnifies the error of its argument by that argument (87 in float32), so the argument is a
        pair: exp(-(h + l)) = exp(-h) (1 - l).
        """
        high, low = minus_log_pair(base, ZERO)
        whole = product(exponent, high)
        rest = fma(exponent, low, fma(exponent, high, -whole))
        value = exp_negative(whole)
        return select(whole > LARGEST_EXPONENT, ZERO, fma(-value, rest, value))

    @one
    def reciprocal(q, error):
        """1 / (q + error) where ``error`` is the rounding error of q; infinite for q = 0."""
        d = ONE / q
        refined = fma(d, fma(-d, error, fma(-q, d, ONE)), d)
        return select(d < INFINITY, refined, d)

    @six
    def about_logit(x):
        """What both sides of a logit share. With t = exp(-|x|): log(1 + t), log(cosh(x / 2)) and the low part of log 2
        where |x| < ``NEAR``, t, the rounded 1 + t, its rounding error, and the rounded 1 / (1 + t)."""
        t = exp_negative(abs(x))
        square = x * x
        u = ONE + t
        return log1p_unit(t), fma(log_cosh_tail(square), square, LN2_LOW), t, u, t - (u - ONE), ONE / u

    @one
    def softplus(z, about):
        """log(1 + exp(z)) for z = x or -x: -log(1 - p) or -log p."""
        # Near 0, z + log1p(t) is rounded three times, and goes back by up to 2 ulp where t takes a step: 4.8 million
        # times among the float32 logits. log(2 cosh(z / 2)) + z / 2 never does.
        return select(abs(z) < NEAR, LN2_HIGH + fma(z, HALF, about[1]), positive_part(z) + about[0])

    @one
    def logistic(z, about):
        """1 / (1 + exp(-z)) for z = x or -x: p or 1 - p. It is 1 / (1 + t) or t / (1 + t)."""
        numerator = select(z >= ZERO, ONE, about[2])
        quotient = numerator * about[5]
        return fma(fma(-quotient, about[4], fma(-quotient, about[3], numerator)), about[5], quotient)

    @one
    def curvature(about):
        """p (1 - p) = t / (1 + t)^2"""
        t, u, error = about[2], about[3], about[4]
        v = u * u
        r = fma(error + error, u, fma(u, u, -v))
        h = t / v
        return fma(fma(-h, r, fma(-h, v, t)), ONE / v, h)

    @two
    def complement(p):
        """1 - p, and its rounding error."""
        q = ONE - p
        return q, (ONE - q) - p

    @five
    def probability_branches(p):
        """Of a probability: (-log p, -log(1 - p)), 1 - p, 1 / p and 1 / (1 - p)."""
        q, error = complement(p)
        return minus_log(p, ZERO), minus_log(q, error), q, reciprocal(p, ZERO), reciprocal(q, error)

    @two
    def probability_branch(positive, p):
        """One of the two: -log p and 1 / p, or -log(1 - p) and 1 / (1 - p)."""
        q, error = complement(p)
        own, rest = select(positive, p, q), select(positive, ZERO, error)
        return minus_log(own, rest), reciprocal(own, rest)

    @one
    def term(factor, value):
        """factor * value, absent where the factor is 0."""
        return select(factor == ZERO, ZERO, product(factor, value))

    @one
    def entropy(y):
        """-y log y - (1 - y) log(1 - y), 0 at both ends."""
        rest, error = complement(y)
        return term(y, minus_log(y, ZERO)) + term(rest, minus_log(rest, error))

    return SimpleNamespace(
        power=power,
        entropy=entropy,
        about_logit=about_logit,
        softplus=softplus,
        logistic=logistic,
        curvature=curvature,
        probability_branches=probability_branches,
        probability_branch=probability_branch,
        term=term,
    )


def _positions(recipe: Recipe) -> dict[str, int]:
    """Where each number that a kernel takes stands among its parameters; 0 for those that it does not take."""
    return {name: recipe.parameters.index(name) if name in recipe.parameters else 0 for name in PARAMETERS}


def _of_sides(recipe: Recipe) -> Recipe:
    """The recipe without what the sides of a sample have nothing to do with, so that kernels share them."""
    real = recipe.compute
    return replace(
        recipe,
        prediction=real,
        baseline=None,
        target=real,
        weight=real if recipe.weight else None,
        mask=None,
        pos_weight=real if recipe.pos_weight else None,
        label_weight=None,
        scale=None,
        ignore=None,
        outputs=(),
        sums=(),
        bins=0,
    )


def one_sided(recipe: Recipe) -> bool:
    """Whether a target of 0 or 1 leaves one side of a sample to compute: one term of the loss."""
    options = recipe.smoothing, recipe.alpha, recipe.gamma, recipe.clip, recipe.pos_weight, recipe.label_weight
    both = recipe.baseline or (recipe.space == PROBABILITY and recipe.bins)  # Whose logit is made of both.
    return recipe.prediction is not None and recipe.target is not None and not any(options) and not both


def may_be_hard(recipe: Recipe) -> bool:
    """Whether it is worth to look if targets are 0 or 1, and then to ask for the ``hard`` :func:`element`: one side is
    enough, or their entropy is asked for, which is 0 then. Integers always are, or invalid."""
    return (one_sided(recipe) or "target_entropy" in recipe.sums) and recipe.target not in INTEGERS


@cache
def _one_side(recipe: Recipe):
    """What :func:`_both_sides` gives where the target is 0 or 1: the side whose factor is 0 is left out, and its plain
    branch is the other's. The numbers are the same."""
    real = recipe.compute
    number, f = np.dtype(real).type, functions(real)
    term, about_logit, softplus, logistic, curvature = f.term, f.about_logit, f.softplus, f.logistic, f.curvature
    probability_branch = f.probability_branch
    ZERO, NAN = number(0), number(np.nan)
    IN_LOGITS, FLOOR, SIGNED = recipe.space == LOGIT, recipe.floor, recipe.signed
    WEIGHT, FACTORS = recipe.weight is not None, recipe.factors
    at = _positions(recipe)
    K_NEGATIVE, K_POSITIVE = at["negative_factor"], at["positive_factor"]
    K_LOG_CAP, K_RECIPROCAL_CAP = at["log_cap"], at["reciprocal_cap"]

    @subroutine(types.UniTuple(getattr(types, real), 6))
    def one_side(valid, z, y, positive, w, pos_weight, parameters):
        p = z
        if IN_LOGITS:
            about = about_logit(z)
            side = select(positive, -z, z)
            plain, slope, p = softplus(side, about), logistic(side, about), logistic(z, about)
        else:
            plain, slope = probability_branch(positive, z)
        loss = plain
        if FLOOR:
            loss = select(loss > parameters[K_LOG_CAP], parameters[K_LOG_CAP], loss)
            if not IN_LOGITS:
                slope = select(slope > parameters[K_RECIPROCAL_CAP], parameters[K_RECIPROCAL_CAP], slope)
        gradient = slope
        if WEIGHT or FACTORS:
            factor = w
            if FACTORS:
                factor = product(factor, select(positive, parameters[K_POSITIVE], parameters[K_NEGATIVE]))
            # For NaN predictions of weight 0.
            factor = select(z == z, factor, NAN)
            loss, gradient = term(factor, loss), term(factor, slope)
            hessian = term(factor, curvature(about)) if IN_LOGITS else term(gradient, slope)
        else:
            hessian = curvature(about) if IN_LOGITS else product(slope, slope)
        # The other term is +0, and a sum with it never -0: -log 1 is, and what is too small of a negative weight.
        if SIGNED or not IN_LOGITS:
            loss = loss + ZERO
        if SIGNED:
            hessian = hessian + ZERO
        gradient = select(positive, ZERO - gradient, gradient)
        loss, gradient, hessian = select(valid, loss, NAN), select(valid, gradient, NAN), select(valid, hessian, NAN)
        return loss, gradient, hessian, p, plain, plain

    return one_side


@cache
def _both_sides(recipe: Recipe):
    """The subroutine (valid, prediction z, target y, whether y is 1, weight w, pos_weight, parameters) -> the loss, its
    derivatives, p, and the plain branches -log p and -log(1 - p)."""
    real = recipe.compute
    number, f = np.dtype(real).type, functions(real)
    term, power, probability_branches = f.term, f.power, f.probability_branches
    about_logit, softplus, logistic, curvature_of = f.about_logit, f.softplus, f.logistic, f.curvature
    ZERO, ONE, TWO, INFINITY, NAN = number(0), number(1), number(2), number(np.inf), number(np.nan)
    SMALLEST_NORMAL = number(np.finfo(real).tiny)
    IN_LOGITS, POS_WEIGHT = recipe.space == LOGIT, recipe.pos_weight is not None
    FACTORS, SMOOTHING, ALPHA, FOCAL = recipe.factors, recipe.smoothing, recipe.alpha, recipe.gamma
    FLOOR, CLIP = recipe.floor, recipe.clip
    at = _positions(recipe)
    K_NEGATIVE, K_POSITIVE = at["negative_factor"], at["positive_factor"]
    K_KEEP, K_HALF = at["smoothing_keep"], at["smoothing_half"]
    K_ALPHA_POSITIVE, K_ALPHA_NEGATIVE = at["alpha_positive"], at["alpha_negative"]
    K_GAMMA, K_CORNER = at["gamma"], at["focal_corner"]
    K_LOG_CAP, K_RECIPROCAL_CAP = at["log_cap"], at["reciprocal_cap"]
    K_LOW, K_LOW_LOG, K_LOW_REST = at["clip_low"], at["clip_low_log"], at["clip_low_rest"]
    K_HIGH, K_HIGH_LOG, K_HIGH_REST = at["clip_high"], at["clip_high_log"], at["clip_high_rest"]

    @subroutine(types.UniTuple(getattr(types, real), 6))
    def both_sides(valid, z, y, positive, w, pos_weight, parameters):
        # The factors a and b of the two terms. Never 1 minus a rounded y: that costs 1,217 ulp with smoothing.
        y_positive, y_negative = y, ONE - y
        if SMOOTHING:
            y_positive = fma(y, parameters[K_KEEP], parameters[K_HALF])
            y_negative = fma(ONE - y, parameters[K_KEEP], parameters[K_HALF])
        common = w
        if ALPHA:
            balance = fma(parameters[K_ALPHA_POSITIVE], y_positive, product(parameters[K_ALPHA_NEGATIVE], y_negative))
            common = product(w, balance)
        a = product(common, y_positive)
        b = product(common, y_negative)
        if FACTORS:
            a = product(a, parameters[K_POSITIVE])
            b = product(b, parameters[K_NEGATIVE])
        if POS_WEIGHT:
            a = product(a, pos_weight)
        # One NaN factor makes all outputs NaN: for invalid samples, and for NaN predictions of weight 0.
        a = select(valid & (z == z), a, NAN)

        # The branches: value, first and second derivative of -log p and -log(1 - p).
        inside = True
        p = z
        if IN_LOGITS:
            about = about_logit(z)
            minus_log_p, minus_log_q = softplus(-z, about), softplus(z, about)
            p, q, curvature = logistic(z, about), logistic(-z, about), curvature_of(about)
            plain_p, plain_q = minus_log_p, minus_log_q
            slope_p, slope_q = q, p
            focal_p, focal_slope, focal_bend = p, curvature, q - p
            if FLOOR:
                minus_log_p = select(minus_log_p > parameters[K_LOG_CAP], parameters[K_LOG_CAP], minus_log_p)
                minus_log_q = select(minus_log_q > parameters[K_LOG_CAP], parameters[K_LOG_CAP], minus_log_q)
        else:
            minus_log_p, minus_log_q, q, slope_p, slope_q = probability_branches(z)
            plain_p, plain_q = minus_log_p, minus_log_q
            if FLOOR:
                minus_log_p = select(minus_log_p > parameters[K_LOG_CAP], parameters[K_LOG_CAP], minus_log_p)
                minus_log_q = select(minus_log_q > parameters[K_LOG_CAP], parameters[K_LOG_CAP], minus_log_q)
                slope_p = select(slope_p > parameters[K_RECIPROCAL_CAP], parameters[K_RECIPROCAL_CAP], slope_p)
                slope_q = select(slope_q > parameters[K_RECIPROCAL_CAP], parameters[K_RECIPROCAL_CAP], slope_q)
            focal_p, focal_slope, focal_bend = z, ONE, ZERO
            if CLIP:
                # The branches are clipped and not p: 1 - eps may round to 1, and then -log(1 - p) would be infinite.
                low, high = z < parameters[K_LOW], q < parameters[K_HIGH]
                inside = (low | high) == False  # noqa: E712  (`not` branches)
                minus_log_p = select(low, parameters[K_LOW_LOG], select(high, parameters[K_HIGH_REST], minus_log_p))
                minus_log_q = select(low, parameters[K_LOW_REST], select(high, parameters[K_HIGH_LOG], minus_log_q))
                focal_p = select(low, parameters[K_LOW], select(high, ONE - parameters[K_HIGH], z))
                q = select(low, ONE - parameters[K_LOW], select(high, parameters[K_HIGH], q))

        loss = term(a, minus_log_p) + term(b, minus_log_q)
        gradient = term(b, slope_q) - term(a, slope_p)
        if IN_LOGITS:
            hessian = term(a, curvature) + term(b, curvature)
        else:
            # Factor by factor: 1 / p^2 may overflow where a / p^2 does not.
            hessian = term(term(a, slope_p), slope_p) + term(term(b, slope_q), slope_q)

        if FOCAL:
            # loss f^gamma with f = 1 - p_t = p (1 - y) + (1 - p) y (Lin et al. 2017, eq. 5; soft targets as the
            # expectation). With u = f'/f:
            #   (L f^g)'  = f^g (g u L + L')
            #   (L f^g)'' = f^g u ((g - 1) g u L + g (2 L' + L f''/f')) + f^g L''
            # Along probabilities f^g u is f^(g - 1): f^g alone may underflow where its product with u does not.
            gamma = parameters[K_GAMMA]
            failure = fma(focal_p, y_negative, product(q, y_positive))
            direction = y_negative - y_positive
            vanishes = failure < SMALLEST_NORMAL
            factor = select(vanishes, ZERO, power(failure, gamma))
            u = select(vanishes, ZERO, focal_slope * direction / failure)
            factor_u = product(factor, u)
            if not IN_LOGITS:
                factor_u = select(gamma >= ONE, product(power(failure, gamma - ONE), direction), factor_u)
            pull = product(gamma, term(u, loss))
            inner = fma(gamma - ONE, pull, product(gamma, fma(TWO, gradient, product(focal_bend, loss))))
            rise = select(hessian < INFINITY, term(factor_u, inner) + term(factor, hessian), hessian)
            at_corner = term(a + b, parameters[K_CORNER])
            hessian = select(vanishes, at_corner, rise)
            gradient = select(factor == ZERO, ZERO, product(factor, pull + gradient))
            loss = term(factor, loss)
            # A factor of 0 must not hide an invalid sample or a NaN prediction.
            loss, gradient, hessian = (
                select(is_nan(a), a, loss),
                select(is_nan(a), a, gradient),
                select(is_nan(a), a, hessian),
            )

        if CLIP:
            sound = inside | is_nan(a)
            gradient = select(sound, gradient, ZERO)
            hessian = select(sound, hessian, ZERO)
        return loss, gradient, hessian, p, plain_p, plain_q

    return both_sides


def _of_sample(recipe: Recipe) -> Recipe:
    """The recipe without what a sample has nothing to do with: how its arrays are stored, and what becomes of it."""
    seen: dict[str, Any] = {role: widened(getattr(recipe, role)) for role in recipe.roles}
    entropy = tuple(name for name in recipe.sums if name == "target_entropy")
    return replace(recipe, **seen, outputs=(), sums=entropy)


def element(recipe: Recipe, hard: bool = False):
    """The subroutine of one sample that a kernel calls. ``hard`` says that its target is known to be 0 or 1, where the
    recipe :func:`may_be_hard`: the same numbers, with fewer instructions.

    It takes (counted, inputs, parameters, ignored) and gives (outputs, sample, placed). The inputs are a tuple in the
    order of recipe.ROLES, each of the widened type of its role (anything where the recipe has no such role); the
    outputs and the sample follow recipe.OUTPUTS and quantities.FIELDS, in the compute type; histogram.placer gives what
    is placed.
    """
    one = one_sided(recipe) and (hard or recipe.target in INTEGERS)
    sides = (_one_side if one else _both_sides)(_of_sides(recipe))
    return _element(_of_sample(recipe), hard, sides)


@cache
def _element(recipe: Recipe, hard: bool, sides):
    """What :func:`element` gives for such recipes."""
    real = recipe.compute
    number = np.dtype(real).type
    REAL = getattr(types, real)
    cast = subroutine(REAL)(lambda value: number(value))
    f = functions(real)
    entropy = f.entropy
    ZERO, ONE, INFINITY = number(0), number(1), number(np.inf)
    at = _positions(recipe)
    as_target = np.dtype(widened(recipe.target or real)).type
    as_weight = np.dtype(widened(recipe.weight or real)).type
    TARGET_ZERO, TARGET_ONE, WEIGHT_ZERO = as_target(0), as_target(1), as_weight(0)

    READS_PREDICTION = recipe.prediction is not None
    READS_TARGET = recipe.target is not None
    IN_LOGITS = recipe.space == LOGIT
    WEIGHT, MASK = recipe.weight is not None, recipe.mask is not None
    LABEL_WEIGHT, SCALE_ARRAY = recipe.label_weight is not None, recipe.scale is not None
    UNIT, SCALED, SIGNED = recipe.unit, recipe.scaled, recipe.signed
    IGNORE_VALUE, IGNORE_NAN = recipe.ignore == "value", recipe.ignore == "nan"
    K_UNIT, K_SCALE, K_QUANTA = at["unit"], at["scale"], at["quanta"]
    BASELINE = recipe.baseline is not None
    # The same parameters in the same order.
    of_baseline = element(replace(recipe, baseline=None, sums=(), bins=0)) if BASELINE else None
    THRESHOLD, K_THRESHOLD = recipe.threshold, at["threshold"]
    # Integers are 0 or 1, or invalid.
    INTEGER = recipe.target in INTEGERS
    ENTROPY = "target_entropy" in recipe.sums and not INTEGER and not hard
    HISTOGRAM = recipe.bins > 0
    place = placer(recipe.bins, recipe.quantised, real)

    @subroutine(
        types.Tuple((types.UniTuple(REAL, 3), types.UniTuple(REAL, len(FIELDS)), types.UniTuple(types.int64, 3)))
    )
    def one_sample(counted, inputs, parameters, ignored):
        prediction, baseline, target, weight, mask, pos_weight, label_weight, scale = inputs
        # What is counted, and what is valid. Comparisons are made in the widened type, before any rounding.
        if MASK:
            counted = counted & (mask != 0)
        if IGNORE_VALUE:
            counted = counted & (target != ignored)
        if IGNORE_NAN:
            counted = counted & (target == target)
        valid = True
        y, positive = ZERO, False
        if READS_TARGET:
            y, positive = cast(target), target == TARGET_ONE
            if not hard:
                valid = valid & (target >= TARGET_ZERO) & (target <= TARGET_ONE)
        w = ONE
        if WEIGHT:
            bounded = cast(weight) > -INFINITY if SIGNED else weight >= WEIGHT_ZERO
            valid = valid & bounded & (cast(weight) < INFINITY)
            w = cast(weight)
            if LABEL_WEIGHT:
                w = product(w, label_weight)
        elif LABEL_WEIGHT:
            w = label_weight
        z = ONE
        if READS_PREDICTION:
            z = prediction
            if not IN_LOGITS:
                valid = valid & ((z >= ZERO) & (z <= ONE) | is_nan(z))
                if BASELINE:
                    valid = valid & ((baseline >= ZERO) & (baseline <= ONE) | is_nan(baseline))

        loss, gradient, hessian, p, plain_p, plain_q = sides(valid, z, y, positive, w, pos_weight, parameters)
        reached = False
        if THRESHOLD:
            reached = z >= parameters[K_THRESHOLD]
        uncertainty = ZERO
        if ENTROPY:
            uncertainty = entropy(y)
        other = ZERO
        if BASELINE:
            (other, _, _), _, _ = of_baseline(counted, (baseline,) + inputs[1:], parameters, ignored)
        sample = (
            select(counted, ONE, ZERO),
            loss,
            w,
            y,
            p,
            plain_p,
            plain_q,
            select(reached, ONE, ZERO),
            uncertainty,
            other,
            select(valid, ZERO, ONE),
        )
        placed = (0, 0, 0)
        if HISTOGRAM:
            logit = z if IN_LOGITS else plain_q - plain_p
            placed = place(counted & valid, logit, w, y, parameters[K_QUANTA])
        if SCALE_ARRAY:
            gradient = product(gradient, cast(scale))
            hessian = product(hessian, cast(scale))
        elif SCALED:
            gradient = product(gradient, parameters[K_SCALE])
            hessian = product(hessian, parameters[K_SCALE])
        if UNIT:
            loss = product(loss, parameters[K_UNIT])
        return (
            (
                select(counted, loss, ZERO),
                select(counted, gradient, ZERO),
                select(counted, hessian, ZERO),
            ),
            sample,
            placed,
        )

    return one_sample


@cache
def settlement(storage: str, makes_scale: bool, divides_by_sum: bool, factor_storage: str | None):
    """The inlined function that turns the sums of output ``o`` into a value or a scale; see job.Settlement."""
    load = loader("float64")
    store = storer(storage)
    load_factor = loader(factor_storage or "float32")
    HAS_FACTOR = factor_storage is not None
    narrow = np.dtype(widened(storage)).type

    @inlined
    def settle_output(o, outputs, states, result, numerator, denominator, divisor, least, grad_scale, unit, factor):
        if divides_by_sum:
            total = settled(
                load(states, 2 * denominator * outputs + o), load(states, (2 * denominator + 1) * outputs + o)
            )
            divisor = least if total < least else total
        if makes_scale:
            if HAS_FACTOR:
                grad_scale = grad_scale * np.float64(load_factor(factor, 0))
            value = derivative_scale(grad_scale, divisor, unit)
        else:
            total = settled(load(states, 2 * numerator * outputs + o), load(states, (2 * numerator + 1) * outputs + o))
            value = mean(total, divisor, unit)
        store(result, o, narrow(value))

    return settle_output
