"""Evaluate predictions that come in batches, from several workers, or from a file larger than memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from gpubce import checks, dispatch
from gpubce.errors import OptionError, StateError
from gpubce.loss import BinaryCrossEntropy
from gpubce.spec.state import LossState

SUMS = ("weight", "positives", "predictions", "squared_error", "cross_entropy")


@dataclass(frozen=True)
class Report:
    """What the predictions seen so far are worth.

    Weights are weight times label_weight; means below the loss are weighted means.

    Attributes
    ----------
    loss : float
        The loss with all options, in nats. Its mean divides by the evaluator's ``denominator``.
    loss_bits : float
        The same in bits.
    normalized_entropy : float
        The plain cross-entropy over that of always predicting the base rate (He et al. 2014, eq. 1): below 1 is better
        than knowing the base rate only. With one class only, the divisor is 0: inf, or NaN for a perfect prediction.
    base_rate : float
        The mean target.
    mean_prediction : float
        The mean predicted probability.
    calibration_ratio : float
        The sum of predictions over the sum of targets; 1 is calibrated on average.
    brier_score : float
        The mean of (p - y)^2 (Brier 1950, for the positive class).
    weight : float
        The sum of weights.
    count : int
        Elements that were counted.
    invalid : int
        Elements with a target or probability outside [0, 1], or a bad weight; if there are any, the figures are NaN.
    """

    loss: float
    loss_bits: float
    normalized_entropy: float
    base_rate: float
    mean_prediction: float
    calibration_ratio: float
    brier_score: float
    weight: float
    count: int
    invalid: int
    labels: tuple[Report, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The figures by name; "labels" is a list of such dictionaries, left out where there are none."""
        figures = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "labels"}
        if self.labels:
            figures["labels"] = [label.as_dict() for label in self.labels]
        return figures

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(what, how much, unit) for each line of a table."""
        yield "loss", f"{self.loss:.9g}", "nats"
        yield "", f"{self.loss_bits:.9g}", "bits"
        yield "normalized entropy", f"{self.normalized_entropy:.6g}", ""
        yield "base rate", f"{self.base_rate:.6g}", ""
        yield "mean prediction", f"{self.mean_prediction:.6g}", ""
        yield "calibration ratio", f"{self.calibration_ratio:.6g}", ""
        yield "Brier score", f"{self.brier_score:.6g}", ""
        yield "elements", f"{self.count:,}", ""
        if self.weight != self.count:
            yield "sum of weights", f"{self.weight:.9g}", ""
        if self.invalid:
            yield "invalid elements", f"{self.invalid:,}", ""

    def __str__(self) -> str:
        lines = [f"{what:<20}{much:>16} {unit}".rstrip() for what, much, unit in self.rows()]
        if self.labels:
            lines += ["", f"{'label':>8}{'loss (nats)':>16}{'norm. entropy':>16}{'base rate':>12}{'calibration':>13}"]
            lines += [
                f"{k:>8}{label.loss:>16.9g}{label.normalized_entropy:>16.6g}{label.base_rate:>12.6g}"
                f"{label.calibration_ratio:>13.6g}"
                for k, label in enumerate(self.labels)
            ]
        return "\n".join(lines)


class Evaluator:
    """Streaming evaluation: update with batches, merge workers, report at any time.

    Device arrays stay on their device and nothing waits for it until :meth:`report`, :meth:`state_dict` or
    :meth:`merge` of evaluators on different devices.

    Parameters
    ----------
    per_label : bool, default False
        Report each label (index along ``label_axis``) too. Batches then have at least two axes.
    **options
        Those of :class:`gpubce.BinaryCrossEntropy`, except ``reduction``, ``axis``, ``base`` and ``dtype``.
        ``denominator`` is "weights" unless given: without weights that is the number of counted elements.

    Raises
    ------
    gpubce.errors.OptionError
        For an option without meaning here.

    Examples
    --------
    >>> import numpy as np, gpubce
    >>> evaluator = gpubce.Evaluator(from_logits=True)
    >>> for logits, targets in [([2.0, -1.0], [1, 0]), ([0.5, -3.0], [0, 0])]:
    ...     evaluator.update(np.array(logits), np.array(targets))
    >>> report = evaluator.report()
    >>> round(report.loss, 6), report.base_rate, report.count
    (0.365714, 0.25, 4)
    """

    def __init__(self, *, per_label: bool = False, **options: Any):
        for name in ("reduction", "axis", "base", "dtype"):
            if name in options:
                raise OptionError(f"{name} has no meaning for an Evaluator: it reports the mean in nats and in bits")
        known = {field.name for field in fields(BinaryCrossEntropy)}
        for name in options:
            if name not in known:
                raise OptionError(f"{name!r} is not an option: there are {', '.join(sorted(known))} and per_label")
        options.setdefault("denominator", "weights")
        self.loss = BinaryCrossEntropy(**options)
        self.per_label = checks.flag("per_label", per_label)
        self._state: LossState | None = None

    def __repr__(self) -> str:
        return f"Evaluator({self.loss!r}, per_label={self.per_label})"

    def update(
        self,
        predictions: Any,
        targets: Any,
        *,
        weight: Any = None,
        mask: Any = None,
        device: str = "auto",
        stream: Any = None,
        check: bool | str = "auto",
    ) -> None:
        """Add a batch. The arguments and the errors are those of calling a BinaryCrossEntropy; a batch that raises is
        not added."""
        loss = self.loss
        if self.per_label:
            axes = dispatch.axis_count(predictions)
            if axes < 2:
                raise OptionError(f"per_label=True needs batches of at least two axes, but this one has {axes}")
            kept = loss.label_axis % axes
            loss = replace(loss, axis=tuple(axis for axis in range(axes) if axis != kept))
        batch = loss.state(
            predictions, targets, weight=weight, mask=mask, device=device, stream=stream, check=check, sums=SUMS
        )
        self._state = batch if self._state is None else self._state.merge(batch)

    def merge(self, *others: Evaluator) -> Evaluator:
        """Add what other evaluators with the same options have seen; returns this one."""
        for other in others:
            if not isinstance(other, Evaluator):
                raise StateError(f"an Evaluator can only be merged with an Evaluator, not with {type(other).__name__}")
            if (self.loss, self.per_label) != (other.loss, other.per_label):
                raise StateError(f"evaluators with different options cannot be merged: {self!r} and {other!r}")
            if other._state is None:
                continue
            if self._state is None:
                self._state = other._state
            elif type(self._state.values) is type(other._state.values):
                self._state = self._state.merge(other._state)
            else:
                self._state = self._state.to_host().merge(other._state.to_host())
        return self

    def reset(self) -> None:
        """Forget everything."""
        self._state = None

    def report(self) -> Report:
        """The figures of everything seen so far. Waits for the device."""
        if self._state is None:
            names = ("loss", "count", "invalid", *SUMS)
            return self._figures(LossState(names, np.zeros((len(names), 2)), 0, 0.0))
        state = self._state.to_host()
        if not self.per_label:
            return self._figures(state)
        labels = _split(state)
        nothing = LossState(state.sums, np.zeros((len(state.sums), 2)), 0, state.rows)
        together = replace(_merged([nothing, *labels]), rows=state.rows)
        return replace(self._figures(together), labels=tuple(self._figures(label) for label in labels))

    def _figures(self, state: LossState) -> Report:
        total = {name: float(state.total(name)) for name in state.sums}
        if total["invalid"]:
            total |= dict.fromkeys(SUMS, math.nan)
        weight, positives = total["weight"], total["positives"]
        loss = float(self.loss.finish(state))
        with np.errstate(all="ignore"):
            over = lambda a, b: float(np.float64(a) / np.float64(b))  # noqa: E731  (0 / 0 is NaN, as everywhere here)
            base_rate = over(positives, weight)
            return Report(
                loss=loss,
                loss_bits=loss / math.log(2.0),
                normalized_entropy=over(over(total["cross_entropy"], weight), _entropy(base_rate)),
                base_rate=base_rate,
                mean_prediction=over(total["predictions"], weight),
                calibration_ratio=over(total["predictions"], positives),
                brier_score=over(total["squared_error"], weight),
                weight=weight,
                count=int(total["count"]),
                invalid=int(total["invalid"]),
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything seen so far as a dictionary that JSON can hold, for :meth:`load_state_dict`. Waits for the
        device."""
        if self._state is None:
            return {"options": repr(self), "state": None}
        state = self._state.to_host()
        return {
            "options": repr(self),
            "state": {
                "sums": list(state.sums),
                "values": state.values.tolist(),
                "elements": state.elements,
                "rows": state.rows,
            },
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state. Raises StateError if it is from an evaluator with other options."""
        if not isinstance(saved, Mapping) or not {"options", "state"} <= set(saved):
            raise StateError("this is not the state_dict of an Evaluator: it has no 'options' and 'state'")
        if not isinstance(saved["options"], str) or saved["options"] != repr(self):
            options = checks.shown(saved["options"])
            raise StateError(f"the saved state is of {options}, this is {self!r}: use the same options")
        state = saved["state"]
        if state is None:
            self._state = None
            return
        if not isinstance(state, Mapping):
            state = {}
        loaded = None
        with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, OverflowError):
            sums, values, elements, rows = (state[name] for name in ("sums", "values", "elements", "rows"))
            if isinstance(sums, list | tuple) and _are_numbers(values, 2 + self.per_label):
                pairs, count = np.array(values, np.float64), int(checks.real("elements", elements))
                found = LossState(tuple(sums), pairs, count, checks.real("rows", rows))
                loaded = found if _is_sound(found, 2 + self.per_label) else None
        if loaded is None:
            raise StateError("the saved state is damaged: save it again with state_dict()")
        self._state = loaded


def _are_numbers(values: Any, axes: int) -> bool:
    """Whether these are lists in lists of numbers, as JSON has them: to convert others (a range) may not even end."""
    if axes == 0:
        return isinstance(values, int | float)
    return isinstance(values, list | tuple) and all(_are_numbers(value, axes - 1) for value in values)


def _is_sound(state: LossState, axes: int) -> bool:
    """Whether a state could have been summed: all that a report needs, in pairs, and counts that are numbers."""
    sums, values = state.sums, state.values
    if values.ndim != axes or values.shape[:2] != (len(sums), 2) or len(set(sums)) != len(sums):
        return False
    counts = values[[sums.index("count"), sums.index("invalid")]]
    counted = bool(np.isfinite(counts).all() and (counts[:, 0] >= 0).all())
    return counted and state.elements >= 0 and math.isfinite(state.rows) and {"loss", *SUMS} <= set(sums)


def _split(state: LossState) -> list[LossState]:
    """The state of each label."""
    return [
        LossState(state.sums, np.ascontiguousarray(state.values[:, :, k]), state.elements, state.rows)
        for k in range(state.shape[0])
    ]


def _merged(states: list[LossState]) -> LossState:
    whole, *rest = states
    for state in rest:
        whole = whole.merge(state)
    return whole


def _entropy(p: float) -> float:
    """The entropy of a coin with probability p, in nats."""
    return 0.0 if p in (0.0, 1.0) else -(p * math.log(p) + (1.0 - p) * math.log1p(-p)) if 0.0 < p < 1.0 else math.nan
