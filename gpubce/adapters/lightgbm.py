"""Objectives and metrics for LightGBM, for ``lightgbm.train`` and for its scikit-learn classes.

LightGBM itself is not imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubce.boosting import Objective as _Objective

__all__ = ["Metric", "Objective"]


class Objective(_Objective):
    """The ``objective`` in the parameters of ``lightgbm.train``, and of ``LGBMClassifier`` and ``LGBMRegressor``.

    LightGBM starts a custom objective from 0 and not from the mean: give the dataset
    ``init_score=np.full(n, objective.initial_score(labels))`` and add it to predictions, which are logits.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubce.adapters.lightgbm import Objective
    >>> gradient, hessian = Objective()(np.array([0, 1]), np.array([0.0, 0.0]))     # y_true, y_pred
    >>> print(gradient, hessian)
    [ 0.5 -0.5] [0.25 0.25]
    """

    def __call__(self, first: Any, second: Any, weight: Any = None) -> tuple[Any, Any]:
        """(gradient, hessian) of ``(scores, Dataset)`` or, as scikit-learn has it, ``(labels, scores, weight)``."""
        return self.derivatives(*_read(first, second, weight))


class Metric(_Objective):
    """The ``feval`` of ``lightgbm.train``, beside an :class:`Objective` with the same options; and the ``eval_metric``
    of the scikit-learn classes.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubce.adapters.lightgbm import Metric
    >>> Metric()(np.array([0, 1]), np.array([0.0, 0.0]))     # y_true, y_pred
    ('logloss', 0.6931471805599453, False)
    """

    def __call__(self, first: Any, second: Any, weight: Any = None) -> tuple[str, float, bool]:
        """("logloss", value, whether higher is better) of the same arguments."""
        return self.name, self.value(*_read(first, second, weight)), False


def _read(first: Any, second: Any, weight: Any) -> tuple[Any, Any, Any]:
    """(scores, labels, weight), whose order differs between LightGBM's two interfaces."""
    if hasattr(second, "get_label"):
        return first, np.asarray(second.get_label()), second.get_weight()
    return second, np.asarray(first), weight
