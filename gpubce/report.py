"""What a report says, and how each figure follows from the sums of a state."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import NormalDist
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubce import checks
from gpubce.curves import Curves
from gpubce.errors import OptionError
from gpubce.loss import BinaryCrossEntropy
from gpubce.spec.bins import quantum
from gpubce.spec.state import LossState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpubce.pictures import Seen

_PLAIN = ("weight", "positives", "cross_entropy")
_CONFUSION = ("weight", "positives", "predicted", "found")

SUMS: dict[str, tuple[str, ...]] = {
    "loss": (),
    "standard_error": ("squared_loss",),
    "normalized_entropy": _PLAIN,
    "loss_of_positives": (*_PLAIN, "positive_entropy"),
    "loss_of_negatives": (*_PLAIN, "positive_entropy"),
    "target_entropy": ("weight", "target_entropy"),
    "base_rate": ("weight", "positives"),
    "balancing_pos_weight": ("weight", "positives"),
    "mean_prediction": ("weight", "predictions"),
    "calibration_ratio": ("predictions", "positives"),
    "brier_score": ("weight", "squared_error"),
    "accuracy": _CONFUSION,
    "precision": _CONFUSION,
    "recall": _CONFUSION,
    "f1": _CONFUSION,
    "roc_auc": (),
    "average_precision": (),
    "calibration_error": (),
    "difference": ("difference", "squared_difference"),
}
"""Every metric that can be asked for, and the sums it needs beside the loss."""

FROM_HISTOGRAM = ("roc_auc", "average_precision", "calibration_error")

BY_DEFAULT = (
    "loss",
    "normalized_entropy",
    "base_rate",
    "mean_prediction",
    "calibration_ratio",
    "brier_score",
)

SPREAD = {
    "weights": ("loss_by_weight", "squared_weight"),
    "positives": ("loss_by_positives", "squared_positives"),
}
"""For the standard error: the sums of loss times divisor and of the divisor's square, where the mean divides by those
sums. Elsewhere the divisor of every element is the same."""

SPREAD_OF_DIFFERENCE = {
    "weights": ("difference_by_weight", "squared_weight"),
    "positives": ("difference_by_positives", "squared_positives"),
}
"""The same for the difference from a baseline."""


def metric_names(value: Any) -> tuple[str, ...]:
    """The metrics asked for, in the order of :data:`SUMS`: None stands for those of :data:`BY_DEFAULT`."""
    if value is None:
        return BY_DEFAULT
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple | set | frozenset):
        raise OptionError(f"metrics={checks.shown(value)} is neither 'all' nor a list of names")
    for name in names:
        checks.choice("metrics", name, ("all", *SUMS))
    asked = {"loss", *names, *(set(SUMS) - {"difference"} if "all" in names else ())}
    return tuple(name for name in SUMS if name in asked)


def sums_for(metrics: Sequence[str], denominator: str) -> tuple[str, ...]:
    """What has to be summed for these metrics, in a fixed order."""
    needed = {name for metric in metrics for name in SUMS[metric]}
    if "standard_error" in metrics:
        needed.update(SPREAD.get(denominator, ()))
    if "difference" in metrics:
        needed.update(SPREAD_OF_DIFFERENCE.get(denominator, ()))
    parts = (*SUMS.values(), *SPREAD.values(), *SPREAD_OF_DIFFERENCE.values())
    order = dict.fromkeys(name for names in parts for name in names)
    return tuple(name for name in order if name in needed)


@dataclass(frozen=True)
class Report:
    """What the predictions seen so far are worth. A figure that was not asked for is None.

    Sums run over counted elements, with w = weight times label_weight, target y, probability p; W is the sum of w and
    P that of w y. Means below the loss are weighted means, and have no unit unless one is given.

    Attributes
    ----------
    loss : float
        The loss with all options, in nats. Its mean divides by the evaluator's ``denominator``.
    loss_bits : float
        The same in bits.
    standard_error : float
        Of ``loss``, in nats, for independent elements: sqrt(n / (n - 1) sum (l - d loss)^2) / D, where l is the loss
        of an element, d its share in the divisor D, and n the number of elements (the ratio estimator, Cochran 1977,
        6.4).
    normalized_entropy : float
        The plain cross-entropy over that of always predicting the base rate (He et al. 2014, eq. 1): below 1 is better
        than knowing the base rate only. With one class only, the divisor is 0: inf, or NaN for a perfect prediction.
    loss_of_positives, loss_of_negatives : float
        sum w y (-log p) / P and sum w (1 - y) (-log(1 - p)) / (W - P), in nats.
    target_entropy : float
        The mean of -y log y - (1 - y) log(1 - y), in nats: the least that the plain cross-entropy of soft targets can
        be. 0 for hard ones.
    base_rate : float
        The mean target, P / W.
    balancing_pos_weight : float
        (W - P) / P: the ``pos_weight`` that gives both classes the same weight.
    mean_prediction : float
        The mean predicted probability.
    calibration_ratio : float
        The sum of predictions over the sum of targets; 1 is calibrated on average.
    brier_score : float
        The mean of (p - y)^2 (Brier 1950, for the positive class).
    accuracy, precision, recall, f1 : float
        At the evaluator's ``threshold``: with T = sum w y where p >= threshold and A = sum w there, precision T / A,
        recall T / P, f1 their harmonic mean 2 T / (A + P), accuracy (W - A - P + 2 T) / W. 0 / 0 is NaN.
    roc_auc, average_precision, calibration_error : float
        See :meth:`Curves.roc_auc`, :meth:`Curves.average_precision` and :meth:`Curves.calibration_error`.
    roc_auc_bound, average_precision_bound, calibration_error_bound : float
        How far the exact figure may be from that of the histogram.
    difference : float
        The mean loss minus that of the baseline, in nats: below 0 the predictions are better. See :meth:`compare`.
    difference_error : float
        Its standard error, of the differences element by element, formed as ``standard_error`` is.
    weight : float
        The sum of weights, W.
    count : int
        Elements that were counted.
    invalid : int
        Elements with a target or probability outside [0, 1], or a bad weight; if there are any, the figures are NaN.
    labels : sequence of Report
        Each label's, where the evaluator was asked for them.
    groups : dict
        Each group's, by its number, where batches had groups.
    curves : Curves
        The curves behind the last figures.
    """

    loss: float
    loss_bits: float
    standard_error: float | None = None
    normalized_entropy: float | None = None
    loss_of_positives: float | None = None
    loss_of_negatives: float | None = None
    target_entropy: float | None = None
    base_rate: float | None = None
    balancing_pos_weight: float | None = None
    mean_prediction: float | None = None
    calibration_ratio: float | None = None
    brier_score: float | None = None
    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    roc_auc: float | None = None
    roc_auc_bound: float | None = None
    average_precision: float | None = None
    average_precision_bound: float | None = None
    calibration_error: float | None = None
    calibration_error_bound: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    weight: float | None = None
    count: int = 0
    invalid: int = 0
    labels: Sequence[Report] = ()
    groups: dict[int, Report] | None = None
    curves: Curves | None = field(default=None, compare=False, repr=False)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Where the mean loss lies with that confidence, by the normal approximation: loss -+ z standard_error.

        >>> import gpubce
        >>> low, high = gpubce.Report(loss=0.5, loss_bits=0.72, standard_error=0.01).interval()
        >>> round(low, 4), round(high, 4)
        (0.4804, 0.5196)
        """
        if self.standard_error is None:
            raise OptionError("the report has no standard error: ask for it with metrics=['standard_error']")
        return _interval(self.loss, self.standard_error, confidence)

    def compare(self, other: Report | None = None) -> Difference:
        """How much the mean loss differs from that of the baseline, or from that of another report.

        Against the baseline the losses of the same element are compared (metric "difference"). Another report is taken
        as that of independent elements, and both need their standard errors: where both have seen the same targets,
        that error is too large.

        >>> import gpubce
        >>> old = gpubce.Report(loss=0.53, loss_bits=0.76, standard_error=0.004)
        >>> print(gpubce.Report(loss=0.5, loss_bits=0.72, standard_error=0.003).compare(old))
        The predictions are better: their mean loss is 0.03 nats lower (95 % between 0.0202 and 0.0398 lower). If both
        were equally good, chance would make such a difference once in 500,000,000 times.
        """
        if other is None:
            if self.difference is None or self.difference_error is None:
                raise OptionError("the report has no difference: update with baseline=, and metrics=['difference']")
            return Difference(self.difference, self.difference_error, True)
        if not isinstance(other, Report):
            raise OptionError(f"a report can only be compared with a Report, not with {type(other).__name__}")
        if self.standard_error is None or other.standard_error is None:
            raise OptionError("a report has no standard error: ask for it with metrics=['standard_error']")
        error = math.hypot(self.standard_error, other.standard_error)
        return Difference(self.loss - other.loss, error, False)

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, those that were asked for; "labels" is a list and "groups" a dictionary of such
        dictionaries, left out where there are none."""
        figures = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _PARTS}
        figures = {name: figure for name, figure in figures.items() if figure is not None}
        if self.labels:
            figures["labels"] = [label.as_dict() for label in self.labels]
        if self.groups is not None:
            figures["groups"] = {str(number): group.as_dict() for number, group in self.groups.items()}
        return figures

    def plot(self, label_names: Sequence[str] | None = None) -> Figure:
        """Six pictures in a matplotlib figure: calibration, scores, losses, ROC, precision and recall, and the loss of
        each label (without labels: the scores it comes from).

        They need a histogram (``metrics="all"``) and matplotlib. ``label_names`` has a name for each label; numbers
        are the default. The figure can be shown in a notebook, or saved with ``savefig``.

        Raises
        ------
        gpubce.errors.OptionError
            Without a histogram, or where there are not as many names as labels.
        gpubce.errors.MissingDependencyError
            Without matplotlib.
        """
        from gpubce import pictures  # Few calls need it, and importing gpubce is quick.

        return pictures.figure(self._seen(label_names))

    def html(
        self,
        title: str = "Predictions evaluated",
        label_names: Sequence[str] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> str:
        """One page with the figures, the pictures of :meth:`plot` and the labels: a file that needs no other and no
        network. The same report gives the same page.

        Of more than 200 labels, the 20 worst and the 20 best are listed. ``details`` are shown below the title: where
        the predictions come from, say. Texts may hold anything; they are shown as they are. Raises the errors of
        :meth:`plot`.
        """
        from gpubce import page

        return page.written(self, self._seen(label_names), title, details or {})

    def _seen(self, label_names: Sequence[str] | None) -> Seen:
        from gpubce.pictures import Seen

        if self.curves is None:
            raise OptionError('the report has no curves to draw: they need a histogram, ask for it with metrics="all"')
        labels = self.labels
        losses = labels.figures["loss"] if isinstance(labels, Reports) else [label.loss for label in labels]
        names = checks.label_names(label_names, len(labels))
        return Seen(self.curves, np.asarray(losses, np.float64), names)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(what, how much, unit) for each line of a table."""
        yield "loss", f"{self.loss:.9g}", "nats"
        yield "", f"{self.loss_bits:.9g}", "bits"
        if self.standard_error is not None:
            low, high = self.interval()
            yield "standard error", f"{self.standard_error:.3g}", f"nats; 95 % between {low:.6g} and {high:.6g}"
        for name, (words, unit) in _LINES.items():
            figure = getattr(self, name)
            if figure is not None:
                bound = getattr(self, f"{name}_bound", None)
                yield words, f"{figure:.6g}", unit if bound is None else f"+- {bound:.1g}"
        if self.difference is not None:
            low, high = self.compare().interval()
            yield "less the baseline", f"{self.difference:.6g}", f"nats; 95 % between {low:.6g} and {high:.6g}"
        yield "elements", f"{self.count:,}", ""
        if self.weight is not None and self.weight != self.count:
            yield "sum of weights", f"{self.weight:.9g}", ""
        if self.invalid:
            yield "invalid elements", f"{self.invalid:,}", ""

    def __str__(self) -> str:
        lines = [f"{what:<20}{much:>16} {unit}".rstrip() for what, much, unit in self.rows()]
        for name, parts in (("label", enumerate(self.labels)), ("group", (self.groups or {}).items())):
            shown = [(number, report) for number, report in parts]
            columns = [column for column in _COLUMNS if shown and getattr(shown[0][1], column) is not None]
            if shown:
                heads = (f"{_COLUMNS[column][0]:>{_COLUMNS[column][1]}}" for column in columns)
                lines += ["", "".join([f"{name:>8}", *heads])]
            for number, report in shown:
                cells = (f"{getattr(report, c):>{_COLUMNS[c][1]}.{_COLUMNS[c][2]}g}" for c in columns)
                lines.append("".join([f"{number:>8}", *cells]))
        return "\n".join(lines)


_PARTS = ("labels", "groups", "curves")

_LINES = {
    "normalized_entropy": ("normalized entropy", ""),
    "loss_of_positives": ("loss of positives", "nats"),
    "loss_of_negatives": ("loss of negatives", "nats"),
    "target_entropy": ("entropy of targets", "nats"),
    "base_rate": ("base rate", ""),
    "balancing_pos_weight": ("balancing weight", ""),
    "mean_prediction": ("mean prediction", ""),
    "calibration_ratio": ("calibration ratio", ""),
    "brier_score": ("Brier score", ""),
    "accuracy": ("accuracy", ""),
    "precision": ("precision", ""),
    "recall": ("recall", ""),
    "f1": ("F1", ""),
    "roc_auc": ("ROC AUC", ""),
    "average_precision": ("average precision", ""),
    "calibration_error": ("calibration error", ""),
}

_COLUMNS = {
    "loss": ("loss (nats)", 16, 9),
    "normalized_entropy": ("norm. entropy", 16, 6),
    "base_rate": ("base rate", 12, 6),
    "calibration_ratio": ("calibration", 13, 6),
    "roc_auc": ("ROC AUC", 12, 6),
    "difference": ("less baseline", 16, 6),
    "difference_error": ("std. error", 12, 3),
}
"""Of the tables of labels and groups: head, width and digits."""


@dataclass(frozen=True)
class Difference:
    """A difference of mean losses; printing it gives a sentence.

    Attributes
    ----------
    value : float
        The mean loss of the predictions minus that of the others, in nats.
    standard_error : float
        Of ``value``.
    paired : bool
        Whether losses of the same elements were compared, or means of independent ones.
    """

    value: float
    standard_error: float
    paired: bool

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Where the difference lies with that confidence, by the normal approximation."""
        return _interval(self.value, self.standard_error, confidence)

    @property
    def p_value(self) -> float:
        """How often chance would make so large a difference, in either direction, if there were none."""
        if self.standard_error == 0.0:
            return 1.0 if self.value == 0.0 else 0.0
        return math.erfc(abs(self.value) / self.standard_error / math.sqrt(2.0))

    def __str__(self) -> str:
        size, error = abs(self.value), self.standard_error
        if not math.isfinite(size) or math.isnan(error):
            return (
                f"The difference of the mean losses is {self.value:g} nats: which predictions are better is not known."
            )
        low, high = _interval(size, error, 0.95)
        if self.p_value > 0.05:
            return (
                f"It is not known which predictions are better: the mean losses differ by {size:.3g} nats, with a "
                f"standard error of {error:.3g}."
            )
        better, less = ("better", "lower") if self.value < 0.0 else ("worse", "higher")
        chance = (
            "less than once in 10^15" if self.p_value < 1e-15 else f"once in {float(f'{1 / self.p_value:.1g}'):,.0f}"
        )
        return (
            f"The predictions are {better}: their mean loss is {size:.3g} nats {less} (95 % between {low:.3g} and "
            f"{high:.3g} {less}). If both were equally good, chance would make such a difference {chance} times."
        )


class Reports(Sequence[Report]):
    """The reports of many labels, each made when it is asked for: 10^5 of them at once would take seconds."""

    def __init__(self, figures: dict[str, np.ndarray], curves: Curves | None):
        self.figures = figures
        self.curves = curves

    def __len__(self) -> int:
        return len(self.figures["loss"])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        own: dict[str, Any] = {name: _number(name, values[index]) for name, values in self.figures.items()}
        return Report(**own, curves=None if self.curves is None else self.curves[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]


def report(loss: BinaryCrossEntropy, state: LossState, metrics: Sequence[str], max_weight: float) -> Report:
    """The report of one result."""
    figures, curves = _figures(loss, state, metrics, max_weight)
    own: dict[str, Any] = {name: _number(name, value) for name, value in figures.items()}
    return Report(**own, curves=curves)


def reports(loss: BinaryCrossEntropy, state: LossState, metrics: Sequence[str], max_weight: float) -> Reports:
    """The reports of a vector of results."""
    return Reports(*_figures(loss, state, metrics, max_weight))


def _interval(value: float, error: float, confidence: float) -> tuple[float, float]:
    level = checks.number("confidence", confidence, 0.0, 1.0, "at least 0 and below 1", open_high=True)
    half = NormalDist().inv_cdf(0.5 + level / 2.0) * error
    return value - half, value + half


def _number(name: str, value: Any) -> float | int:
    return int(value) if name in ("count", "invalid") else float(value)


def _figures(
    loss: BinaryCrossEntropy, state: LossState, metrics: Sequence[str], max_weight: float
) -> tuple[dict[str, np.ndarray], Curves | None]:
    """Each figure, in arrays of the state's shape, by the field of a report."""
    total = {name: np.asarray(state.total(name)) for name in state.sums}
    count, invalid = total.pop("count"), total.pop("invalid")
    total = {name: np.where(invalid == 0, values, np.nan) for name, values in total.items()}
    mean = np.asarray(loss.finish(state), np.float64)
    found: dict[str, np.ndarray] = {"loss": mean, "loss_bits": mean / math.log(2.0), "count": count, "invalid": invalid}
    with np.errstate(all="ignore"):  # 0 / 0 is NaN, as everywhere here.
        if "standard_error" in metrics:
            found["standard_error"] = _error_of_mean("loss", SPREAD, loss.denominator, count, total, state)
        if "difference" in metrics:
            # Both means divide by the same.
            found["difference"] = _mean_of("difference", loss, state)
            how = SPREAD_OF_DIFFERENCE, loss.denominator, count, total, state
            found["difference_error"] = _error_of_mean("difference", *how)
        sums = SimpleNamespace(**total)
        for name in metrics:
            if name in _FORMULAS:
                found[name] = _FORMULAS[name](sums)
    if "weight" in total:
        found["weight"] = total["weight"]
    curves = None
    if state.histogram is not None:
        elements = np.full(state.shape, float(state.elements))
        curves = Curves.of(state.histogram, quantum(max_weight), elements, invalid == 0)
        for name in FROM_HISTOGRAM:
            if name in metrics:
                found[name], found[f"{name}_bound"] = getattr(curves, name)()
    return found, curves


def _entropy(p: np.ndarray) -> np.ndarray:
    """The entropy of a coin with probability p, in nats."""
    certain = (p == 0.0) | (p == 1.0)
    return np.where(certain, 0.0, -(p * np.log(p) + (1.0 - p) * np.log1p(-p)))


_FORMULAS: dict[str, Callable[[Any], np.ndarray]] = {
    "normalized_entropy": lambda s: s.cross_entropy / s.weight / _entropy(s.positives / s.weight),
    "loss_of_positives": lambda s: s.positive_entropy / s.positives,
    "loss_of_negatives": lambda s: (s.cross_entropy - s.positive_entropy) / (s.weight - s.positives),
    "target_entropy": lambda s: s.target_entropy / s.weight,
    "base_rate": lambda s: s.positives / s.weight,
    "balancing_pos_weight": lambda s: (s.weight - s.positives) / s.positives,
    "mean_prediction": lambda s: s.predictions / s.weight,
    "calibration_ratio": lambda s: s.predictions / s.positives,
    "brier_score": lambda s: s.squared_error / s.weight,
    "accuracy": lambda s: (s.weight - s.predicted - s.positives + 2.0 * s.found) / s.weight,
    "precision": lambda s: s.found / s.predicted,
    "recall": lambda s: s.found / s.positives,
    "f1": lambda s: 2.0 * s.found / (s.predicted + s.positives),
}
"""Each figure as a function of the sums that :data:`SUMS` names."""


def _mean_of(name: str, loss: BinaryCrossEntropy, state: LossState) -> np.ndarray:
    """The mean of another sum, divided as the loss is."""
    order = list(state.sums)
    values = state.values.copy()
    values[order.index("loss")] = values[order.index(name)]
    return np.asarray(loss.finish(replace(state, values=values)), np.float64)


def _error_of_mean(
    name: str, spread: dict, denominator: str, n: np.ndarray, total: dict[str, np.ndarray], state: LossState
) -> np.ndarray:
    """The standard error of the mean of a sum whose squares are summed as squared_(name)."""
    if denominator in spread:
        by_divisor, squared_divisor = (total[part] for part in spread[denominator])
        divisor = total["weight"] if denominator == "weights" else np.maximum(total["positives"], 1.0)
        share = total[name] / divisor
    else:
        # Every element has the same divisor: it is compared with the mean of all.
        by_divisor, squared_divisor = total[name], n
        share = total[name] / n
        divisor = n if denominator == "elements" else np.full_like(n, state.rows)
    squares = total[f"squared_{name}"] - 2.0 * share * by_divisor + share * share * squared_divisor
    return np.sqrt(np.maximum(squares, 0.0) * n / (n - 1.0)) / divisor
