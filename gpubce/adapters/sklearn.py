"""scikit-learn's ``log_loss`` with soft targets, several labels and GPU arrays, and a scorer for model selection.

scikit-learn itself is imported by :func:`scorer` alone.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from gpubce import checks
from gpubce.arrays.registry import library_of
from gpubce.errors import InvalidValueError, MissingDependencyError, OptionError, ShapeError
from gpubce.loss import BinaryCrossEntropy, from_options

__all__ = ["log_loss", "scorer"]

FIXED = ("from_logits", "reduction", "denominator", "axis", "label_axis", "base")
"""Options that log_loss decides."""

SYMMETRIC = {"dtype", "log_floor", "label_smoothing", "gamma"}
"""Options for which the two classes are alike."""


def log_loss(
    y_true: Any,
    y_proba: Any = None,
    *,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Any = None,
    average: str | None = "binary",
    y_pred: Any = None,
    **options: Any,
) -> Any:
    """``sklearn.metrics.log_loss`` of a binary problem, or of several at once, in nats.

    Parameters
    ----------
    y_true : array of shape (n,) or (n, labels)
        Classes, of which the greater one is positive, as in scikit-learn; or soft targets: floats in [0, 1], which
        scikit-learn refuses. Numbers that are all 0 or 1 need no ``labels``, even where one of them is missing. Where
        a fold may have the one class of {1, 2} that could be meant otherwise, give ``labels``.
    y_proba : array of shape (n,), (n, 2) or (n, labels), or a list of (n, 2)
        Probabilities of the positive class; of both classes; of each label; or what ``predict_proba`` of a forest
        gives for several labels. Array-like, or CuPy or PyTorch with the other arrays beside it.
    normalize : bool, default True
        The mean by ``sample_weight``, or else the sum.
    sample_weight : array of shape (n,), optional
        Finite and not negative.
    labels : pair of classes, optional
        For classes of which one may be missing.
    average : {"binary", "macro", None}
        "binary" is for one label. With several it is refused, as in scikit-learn's other metrics, because its log_loss
        takes such rows for one class in several: "macro" is the mean over the labels, None one loss for each label.
    y_pred : array, optional
        The name of ``y_proba`` before scikit-learn 1.9.
    **options
        Of :class:`gpubce.BinaryCrossEntropy`: ``pos_weight``, ``gamma``, ``ignore_index`` and so on. Probabilities are
        clipped by the epsilon of their type, as scikit-learn does, unless ``eps`` or ``log_floor`` is given; with
        ``log_floor=None`` nothing is clipped.

    Returns
    -------
    float, or with several labels and ``average=None`` an array of shape (labels,) of float64 beside ``y_proba``

    Raises
    ------
    gpubce.errors.OptionError, ShapeError, DtypeError, ArrayError, InvalidValueError
        Two columns that do not sum to 1 are an InvalidValueError; scikit-learn warns.

    Examples
    --------
    >>> from gpubce.adapters.sklearn import log_loss
    >>> y_proba = [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]]
    >>> round(log_loss(["spam", "ham", "ham", "spam"], y_proba), 5)
    0.21616
    >>> round(log_loss([0.9, 0.2], [0.8, 0.3]), 5)                     # soft targets
    0.44395
    >>> print(log_loss([[1, 0], [1, 1]], [[0.9, 0.2], [0.6, 0.7]], average=None).round(5))
    [0.30809 0.28991]
    """
    if (y_proba is None) == (y_pred is None):
        raise OptionError("give y_proba, or y_pred, its name before scikit-learn 1.9, and not both")
    if average is not None:
        checks.choice("average", average, ("binary", "macro"))
    for name in FIXED:
        if name in options:
            raise OptionError(f"{name} is what log_loss decides: leave it out")
    normalize = checks.flag("normalize", normalize)
    predictions = _predictions(y_pred if y_proba is None else y_proba)
    targets = _targets(y_true, labels, options.get("ignore_index"))
    weight = None if sample_weight is None else _array("sample_weight", sample_weight)
    if weight is not None and tuple(weight.shape) != tuple(targets.shape[:1]):
        raise ShapeError(f"sample_weight has shape {tuple(weight.shape)}: it must be {tuple(targets.shape[:1])}")
    per_label = targets.ndim == 2
    if per_label and average == "binary":
        raise OptionError(
            f"y_true has {targets.shape[1]} columns, which scikit-learn takes for one class in {targets.shape[1]}: for "
            "several labels give average='macro' or average=None; for one class use sklearn.metrics.log_loss"
        )
    if not per_label and predictions.ndim == 2:
        predictions, targets = _of_two_columns(predictions, targets, exchangeable=SYMMETRIC.issuperset(options))

    options = {"dtype": "float64", **options}
    options |= {"reduction": "mean" if normalize else "sum", "axis": 0 if per_label else None}
    if {"eps", "log_floor"} & {*options}:
        loss = from_options(options | {"denominator": "weights" if normalize else "elements"})
    else:
        loss = BinaryCrossEntropy.like("sklearn", predictions=_type_of(predictions), **options)
    if weight is not None and per_label:
        weight = weight.reshape(-1, 1)
    value = loss(predictions, targets, weight=weight)
    return value if per_label and average is None else float(value.mean())


def scorer(**options: Any) -> Any:
    """A scorer for ``cross_val_score``, ``GridSearchCV`` and the like: minus :func:`log_loss`, whose arguments
    ``options`` are. Raises MissingDependencyError without scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from gpubce.adapters.sklearn import scorer
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> print(cross_val_score(GaussianNB(), X, y, scoring=scorer(log_floor=-20), cv=3).round(2))
    [-0.81 -0.46 -0.41]
    """
    try:
        from sklearn.metrics import make_scorer
    except ImportError:
        raise MissingDependencyError("scorer() needs scikit-learn: pip install 'gpubce[sklearn]'") from None
    return make_scorer(log_loss, response_method="predict_proba", greater_is_better=False, **options)


# What scikit-learn's users give ---------------------------------------------------------------------------------------


def _array(name: str, given: Any) -> Any:
    """An array of CuPy or PyTorch as it is, anything else in NumPy. Masked arrays are refused."""
    library = library_of(given, name)
    if library.NAME in ("CuPy", "PyTorch"):
        return given
    if isinstance(given, np.ndarray):
        library.buffer(given)
    return np.asarray(given)


def _type_of(predictions: Any) -> str:
    """The name of their type. Raises DtypeError where they are no floating-point numbers."""
    return checks.prediction_type("y_proba", library_of(predictions, "y_proba").buffer(predictions).storage)


def _predictions(given: Any) -> Any:
    if isinstance(given, list | tuple) and given and all(getattr(one, "ndim", 0) == 2 for one in given):
        shapes = {tuple(one.shape) for one in given}
        if len(shapes) > 1 or next(iter(shapes))[1] != 2:
            raise ShapeError(f"y_proba is a list of arrays of shape {shapes}: each must be (n, 2), for two classes")
        given = np.stack([one[:, 1] for one in given], axis=1)
    array = _array("y_proba", given)
    if isinstance(array, np.ndarray) and array.dtype.kind in "biu":
        array = array.astype(np.float64)
    _type_of(array)
    if array.ndim not in (1, 2):
        raise ShapeError(f"y_proba has shape {tuple(array.shape)}: it has one axis, or two")
    return array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array


def _targets(given: Any, labels: Any, ignored: Any) -> Any:
    """1 for the positive class and 0 for the other, or soft targets as they are; and what is ignored."""
    array = _array("y_true", given)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(-1)
    if not isinstance(array, np.ndarray):
        if labels is not None:
            raise OptionError("labels are for NumPy arrays: give y_true as bool, integers 0 and 1, or soft targets")
        return array
    if labels is None and array.dtype.kind in "biuf":
        seen = array if ignored is None else array[(array != ignored) & (array == array)]
        whole = array.dtype.kind != "f" or np.array_equal(seen, np.floor(seen))
        if not whole or seen.size == 0 or (seen.min() >= 0 and seen.max() <= 1):
            return array  # What is out of range is found where the loss is computed.
    if ignored is not None:
        raise OptionError("ignore_index is for targets 0 and 1 and soft ones: leave out labels, or such rows")
    classes = np.unique(array if labels is None else np.asarray(labels))
    if len(classes) != 2:
        source = "y_true" if labels is None else "labels"
        raise OptionError(
            f"{source} has {len(classes)} class{'es' * (len(classes) != 1)}, {checks.shown(classes.tolist()[:5])}: "
            "log_loss is for two; give both as labels=, or use sklearn.metrics.log_loss for more"
        )
    unknown = ~np.isin(array, classes)
    if unknown.any():
        raise InvalidValueError(
            f"y_true has {checks.shown(array[unknown][0].item())}, which is none of "
            f"labels={checks.shown(classes.tolist())}"
        )
    return array == classes[1]


def _of_two_columns(columns: Any, targets: Any, exchangeable: bool) -> tuple[Any, Any]:
    """The same problem with one column: that of the less likely class where the classes are exchangeable, because 1 - p
    has lost the digits that it has."""
    checks.same_shape("the first axis of y_proba", tuple(columns.shape[:1]), "y_true", tuple(targets.shape))
    checks.same_library("y_proba", library_of(columns, "y_proba").NAME, "y_true", library_of(targets, "y_true").NAME)
    if columns.shape[1] != 2:
        raise ShapeError(
            f"y_proba has {columns.shape[1]} columns and y_true one: log_loss is for two classes; use "
            "sklearn.metrics.log_loss for more"
        )
    namespace = getattr(columns, "__array_namespace__", None)
    library = namespace() if namespace else sys.modules[type(columns).__module__.partition(".")[0]]
    off = abs(columns[:, 0] + columns[:, 1] - 1)
    storage = _type_of(columns)
    room = math.sqrt(2.0**-7 if storage == "bfloat16" else np.finfo(storage).eps)  # scikit-learn's
    if bool((off > room).any()):
        raise InvalidValueError(
            f"y_proba has rows that do not sum to 1 (off by {float(off.max()):.3g}): pass probabilities of both classes"
        )
    if not exchangeable:
        return columns[:, 1], targets
    likely = columns[:, 1] > 0.5
    return library.where(likely, columns[:, 0], columns[:, 1]), library.where(likely, 1 - 1 * targets, 1 * targets)
