"""Objectives and metrics for XGBoost, for ``xgboost.train`` and for its scikit-learn classes.

XGBoost itself is not imported.
"""

from __future__ import annotations

from typing import Any

from gpubce.boosting import Objective as _Objective

__all__ = ["Metric", "Objective"]


class Objective(_Objective):
    """The ``obj`` of ``xgboost.train`` and the ``objective`` of ``XGBClassifier`` and ``XGBRegressor``.

    In ``xgboost.train`` and ``XGBRegressor``, XGBoost takes the scores of a custom objective for what they are:
    predictions are logits, and ``base_score`` is one (``objective.initial_score(labels)``). ``XGBClassifier`` reads
    ``base_score`` as a probability, and predicts classes and probabilities as usual.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubce.adapters.xgboost import Objective
    >>> objective = Objective(gamma=2.0)
    >>> gradient, hessian = objective(np.array([0, 1]), np.array([0.5, 0.5]))     # y_true, y_pred
    >>> print(gradient)
    [ 0.52615182 -0.137937  ]
    """

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """(gradient, hessian) of ``(scores, DMatrix)`` or, as scikit-learn has it, ``(labels, scores, weight)``."""
        return self.derivatives(*_read(first, second, sample_weight))


class Metric(_Objective):
    """The ``custom_metric`` of ``xgboost.train``, beside an :class:`Objective` with the same options; and the
    ``eval_metric`` of the scikit-learn classes.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubce.adapters.xgboost import Metric
    >>> Metric()(np.array([0, 1]), np.array([0.0, 0.0]))     # y_true, y_pred
    0.6931471805599453
    """

    __name__ = "logloss"

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        """("logloss", value) of ``(scores, DMatrix)``; value of ``(labels, scores, weight)``."""
        value = self.value(*_read(first, second, sample_weight))
        return (self.name, value) if hasattr(second, "get_label") else value


def _read(first: Any, second: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """(scores, labels, weight), whose order differs between XGBoost's two interfaces."""
    if hasattr(second, "get_label"):
        return first, second.get_label(), second.get_weight()
    return second, first, sample_weight
