"""What gradient boosting asks of a loss: derivatives of raw scores, and a figure to watch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubce import checks
from gpubce.errors import OptionError
from gpubce.loss import from_options

FIXED = ("from_logits", "reduction", "denominator", "axis", "eps", "log_floor", "base", "dtype")
"""Options that make no sense here: scores are logits, and every row has its own derivatives."""


class Objective:
    """A loss of raw scores (logits) for boosting.

    Parameters
    ----------
    scale_pos_weight : float > 0, default 1
        Multiplies the weight of rows whose label is exactly 1, as the parameter of the same name in XGBoost and
        LightGBM does. For soft labels ``pos_weight`` is the consistent one.
    least_hessian : float >= 0, default 1e-16
        Second derivatives are not below this: XGBoost's limit. Those of the focal loss can be negative.
    **options
        Those of :class:`gpubce.BinaryCrossEntropy`: ``gamma``, ``alpha``, ``label_smoothing``, ``pos_weight`` and so
        on. Labels may be any number in [0, 1].

    Raises
    ------
    gpubce.errors.OptionError
        For an option that has no meaning here.
    """

    name = "logloss"

    def __init__(self, *, scale_pos_weight: float = 1.0, least_hessian: float = 1e-16, **options: Any):
        for name in options:
            if name in FIXED:
                raise OptionError(f"{name} has no meaning for boosting, whose scores are logits: leave it out")
        self.loss = from_options({"from_logits": True, "denominator": "weights", **options})
        positive = math.ulp(0.0), math.inf, "finite and positive"
        self.scale_pos_weight = checks.number("scale_pos_weight", scale_pos_weight, *positive)
        self.least_hessian = checks.number("least_hessian", least_hessian, 0.0, math.inf, "finite and not negative")

    def __repr__(self) -> str:
        options = repr(self.loss).partition("(")[2].removesuffix(")")
        return f"{type(self).__name__}(scale_pos_weight={self.scale_pos_weight!r}, {options})"

    def _prepared(self, scores: Any, labels: Any, weight: Any) -> tuple[Any, Any]:
        """Labels and weights beside the scores, of their shape; a library may give labels on the device and scores on
        the host."""
        if isinstance(scores, np.ndarray):
            labels, weight = (array.get() if hasattr(array, "get") else array for array in (labels, weight))
        labels = labels.reshape(scores.shape)
        weight = None if weight is None or len(weight) == 0 else weight.reshape(-1, *[1] * (scores.ndim - 1))
        if self.scale_pos_weight != 1.0:
            factor = (labels == 1) * (self.scale_pos_weight - 1.0) + 1.0
            weight = factor if weight is None else factor * weight
        return labels, weight

    def derivatives(self, scores: Any, labels: Any, weight: Any = None) -> tuple[Any, Any]:
        """The gradient and hessian of each row's loss, of the shape and type of the scores.

        ``scores`` are logits of float32 or float64, shape (rows,) or (rows, targets), NumPy or CuPy; ``labels`` as many
        numbers in [0, 1], ``weight`` one number a row. Raises the errors of :class:`gpubce.BinaryCrossEntropy`.
        """
        labels, weight = self._prepared(scores, labels, weight)
        gradient, hessian = self.loss.grad_and_hess(scores, labels, weight=weight)
        return gradient, hessian.clip(self.least_hessian, None, out=hessian)

    def value(self, scores: Any, labels: Any, weight: Any = None) -> float:
        """The mean loss in nats, by weights; arguments and errors as for :meth:`derivatives`."""
        labels, weight = self._prepared(scores, labels, weight)
        return float(self.loss(scores, labels, weight=weight))

    def initial_score(self, labels: Any, weight: Any = None) -> float:
        """The score from which boosting starts best: the logit of the mean label, by weights.

        Of the plain loss, whatever the options; 0 where all labels are 0 or all are 1.
        """
        mean = float(np.average(np.asarray(labels, np.float64), weights=weight))
        return math.log(mean / (1.0 - mean)) if 0.0 < mean < 1.0 else 0.0
