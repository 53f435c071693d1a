"""The edge table: what loss and derivatives are where formulas written down naively give NaN.

Each row is the mathematical limit. The elements are not made from this table; the tests hold every type and backend
to it, and it is what the README promises.
"""

from dataclasses import dataclass
from math import inf

from gpubce.spec.recipe import LOGIT, PROBABILITY


@dataclass(frozen=True)
class Edge:
    """Loss, gradient and hessian at one prediction, for a target that may be a fraction (soft)."""

    space: str
    prediction: float
    target: float
    loss: float
    gradient: float
    hessian: float
    log_floor: float | None = None


SOFT = 0.25
LIMIT = 1e12
"""1 / p and 1 / (1 - p) beside a floor."""

EDGES = (
    Edge(LOGIT, inf, 1.0, 0.0, 0.0, 0.0),
    Edge(LOGIT, inf, 0.0, inf, 1.0, 0.0),
    Edge(LOGIT, inf, SOFT, inf, 1.0 - SOFT, 0.0),
    Edge(LOGIT, -inf, 1.0, inf, -1.0, 0.0),
    Edge(LOGIT, -inf, 0.0, 0.0, 0.0, 0.0),
    Edge(LOGIT, -inf, SOFT, inf, -SOFT, 0.0),
    Edge(PROBABILITY, 0.0, 1.0, inf, -inf, inf),
    Edge(PROBABILITY, 0.0, 0.0, 0.0, 1.0, 1.0),
    Edge(PROBABILITY, 0.0, SOFT, inf, -inf, inf),
    Edge(PROBABILITY, 1.0, 1.0, 0.0, -1.0, 1.0),
    Edge(PROBABILITY, 1.0, 0.0, inf, inf, inf),
    Edge(PROBABILITY, 1.0, SOFT, inf, inf, inf),
    Edge(PROBABILITY, 0.0, 1.0, 100.0, -LIMIT, LIMIT**2, log_floor=-100.0),
    Edge(PROBABILITY, 0.0, 0.0, 0.0, 1.0, 1.0, log_floor=-100.0),
    Edge(PROBABILITY, 1.0, 1.0, 0.0, -1.0, 1.0, log_floor=-100.0),
    Edge(PROBABILITY, 1.0, 0.0, 100.0, LIMIT, LIMIT**2, log_floor=-100.0),
)
