"""The definition of every option in mpmath, element by element, with 50 digits: what "true" means in the tests.

It is written from the definitions (loss, product rule), not from the package's formulas.
"""

from dataclasses import dataclass

import mpmath as mp

mp.mp.dps = 50


@dataclass(frozen=True)
class Truth:
    """Value and derivatives, and the sums of the absolute values of the terms they consist of."""

    loss: mp.mpf
    gradient: mp.mpf
    hessian: mp.mpf
    gradient_size: mp.mpf
    hessian_size: mp.mpf


def truth(
    prediction: float,
    target: float,
    from_logits: bool,
    weight: float = 1.0,
    w0: float = 1.0,
    w1: float = 1.0,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    log_floor: float | None = None,
    eps: float | None = None,
    unit: mp.mpf | float = 1.0,
) -> Truth:
    """The loss of one element and its derivatives with respect to the prediction."""
    z, y = mp.mpf(prediction), mp.mpf(target)
    s = mp.mpf(smoothing)
    y = y * (1 - s) + s / 2
    if from_logits:
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        slope, bend = p * q, p * q * (q - p)
        log_p, log_q = -mp.log1p(mp.exp(-z)), -mp.log1p(mp.exp(z))
        dlog_p, dlog_q, ddlog = q, -p, -p * q
        ddlog_p = ddlog_q = ddlog
        outside = False
    else:
        p = z
        outside = eps is not None and not eps <= p <= 1 - mp.mpf(eps)
        if eps is not None:
            p = min(max(p, mp.mpf(eps)), 1 - mp.mpf(eps))
        q = 1 - p
        slope, bend = mp.mpf(1), mp.mpf(0)
        log_p, log_q = mp.log(p), mp.log1p(-p)
        dlog_p, dlog_q = 1 / p, -1 / q
        ddlog_p, ddlog_q = -1 / p**2, -1 / q**2
    if log_floor is not None:
        log_p, log_q = max(log_p, mp.mpf(log_floor)), max(log_q, mp.mpf(log_floor))
    balance = mp.mpf(1) if alpha is None else alpha * y + (1 - mp.mpf(alpha)) * (1 - y)
    a, b = weight * balance * mp.mpf(w1) * y, weight * balance * mp.mpf(w0) * (1 - y)
    ce = [-a * log_p, -b * log_q]
    ce1 = [-a * dlog_p, -b * dlog_q]
    ce2 = [-a * ddlog_p, -b * ddlog_q]
    if gamma == 0:
        loss_terms, gradient_terms, hessian_terms = ce, ce1, ce2
    else:
        g = mp.mpf(gamma)
        f = p * (1 - y) + q * y
        f1, f2 = slope * (1 - 2 * y), bend * (1 - 2 * y)
        m, m1 = f**g, g * f ** (g - 1) * f1
        m2 = g * (g - 1) * f ** (g - 2) * f1**2 + g * f ** (g - 1) * f2
        loss_terms = [m * t for t in ce]
        gradient_terms = [m1 * t for t in ce] + [m * t for t in ce1]
        hessian_terms = [m2 * t for t in ce] + [2 * m1 * t for t in ce1] + [m * t for t in ce2]
    if outside:
        gradient_terms, hessian_terms = [mp.mpf(0)], [mp.mpf(0)]
    total = [unit * mp.fsum(terms) for terms in (loss_terms, gradient_terms, hessian_terms)]
    sizes = [abs(unit) * mp.fsum(abs(t) for t in terms) for terms in (gradient_terms, hessian_terms)]
    return Truth(*total, *sizes)
