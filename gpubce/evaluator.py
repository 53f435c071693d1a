"""Evaluate predictions that come in batches, from several workers, or from a file larger than memory."""

from __future__ import annotations

import base64
import contextlib
import copy
import math
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from gpubce import checks, dispatch
from gpubce.errors import MissingDependencyError, OptionError, StateError
from gpubce.loss import BinaryCrossEntropy
from gpubce.report import FROM_HISTOGRAM, Report, metric_names, report, reports, sums_for
from gpubce.spec.bins import SPECIAL
from gpubce.spec.plan import merge_pairs
from gpubce.spec.state import LossState

VERSION = 2
"""Of the dictionary that state_dict gives."""


class Evaluator:
    """Streaming evaluation: update with batches, merge workers, report at any time.

    Device arrays stay on their device and nothing waits for it until :meth:`report`, :meth:`state_dict` or
    :meth:`merge` of evaluators on different devices. The memory does not depend on the number of elements: about 200
    bytes for each label, and 16 (bins + 2) more where a metric needs a histogram; as much again for each group, and
    for each update of a window.

    Parameters
    ----------
    metrics : "all", or names of metrics, default None
        What to report beside the loss: names of :class:`Report`'s figures. None stands for normalized_entropy,
        base_rate, mean_prediction, calibration_ratio and brier_score; "all" for all but difference, which needs a
        ``baseline`` in every update. Fewer metrics take less time; roc_auc, average_precision and calibration_error
        need a histogram.
    per_label : bool, default False
        Report each label (index along ``label_axis``) too. Batches then have at least two axes.
    threshold : float, default 0.5
        The probability from which a prediction counts as positive, for accuracy, precision, recall and f1.
    bins : int, default 4096
        Of the histogram, equally wide between the logits -16 and 16: a power of two. More make the bounds of its
        figures smaller.
    max_weight : float, optional
        The largest weight times label_weight that any batch will have; needed where a histogram counts weights. It does
        so in steps of 2^-24 of the next power of two.
    window : int, optional
        Report the last so many updates only.
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

    _stream: Any = None
    """The stream of the updates, as it was given; None for the current one of the arrays' library."""

    def __init__(
        self,
        *,
        metrics: str | Iterable[str] | None = None,
        per_label: bool = False,
        threshold: float = 0.5,
        bins: int = 4096,
        max_weight: float | None = None,
        window: int | None = None,
        **options: Any,
    ):
        for name in ("reduction", "axis", "base", "dtype"):
            if name in options:
                raise OptionError(f"{name} has no meaning for an Evaluator: it reports the mean in nats and in bits")
        known = {field.name for field in fields(BinaryCrossEntropy)}
        for name in options:
            if name not in known:
                own = "metrics, per_label, threshold, bins, max_weight and window"
                raise OptionError(f"{name!r} is not an option: there are {', '.join(sorted(known))}, {own}")
        options.setdefault("denominator", "weights")
        self.loss = BinaryCrossEntropy(**options)
        self.metrics = metric_names(metrics)
        self.per_label = checks.flag("per_label", per_label)
        self.threshold = checks.number("threshold", threshold, 0.0, 1.0, "between 0 and 1")
        self.bins = checks.bin_count(bins)
        if self.bins == 0 and (needing := [name for name in self.metrics if name in FROM_HISTOGRAM]):
            raise OptionError(f"bins=0 leaves no histogram for {needing[0]}: choose bins, or leave out the metric")
        self.max_weight = checks.largest_weight(max_weight)
        self.window = checks.window_length(window)
        self._updates: deque[_Update] = deque(maxlen=self.window)

    def __repr__(self) -> str:
        own = ("metrics", "per_label", "threshold", "bins", "max_weight", "window")
        return f"Evaluator({self.loss!r}, {', '.join(f'{name}={getattr(self, name)!r}' for name in own)})"

    @property
    def _histogram_bins(self) -> int:
        """How many this evaluator's metrics need."""
        return self.bins if set(FROM_HISTOGRAM) & set(self.metrics) else 0

    @property
    def _names(self) -> tuple[str, ...]:
        """What its states hold."""
        return _held(self.metrics, self.loss.denominator)

    def update(
        self,
        predictions: Any,
        targets: Any,
        *,
        weight: Any = None,
        mask: Any = None,
        groups: Any = None,
        baseline: Any = None,
        device: str = "auto",
        stream: Any = None,
        check: bool | str = "auto",
    ) -> None:
        """Add a batch. The arguments and the errors are those of calling a BinaryCrossEntropy; a batch that raises is
        not added.

        ``groups`` are integers, one for each index along the first axis (a country, a segment): each group is reported
        too. They are read on the host, so device arrays are waited for, and their rows are copied in the groups' order.

        ``baseline`` are other predictions of the same targets, for the metric "difference".

        The updates of device arrays are added up on their stream. Where ``stream`` is another one than before, the one
        before is waited for.
        """
        loss = self.loss
        if self.per_label:
            axes = dispatch.axis_count(predictions)
            if axes < 2:
                raise OptionError(f"per_label=True needs batches of at least two axes, but this one has {axes}")
            kept = loss.label_axis % axes
            loss = replace(loss, axis=tuple(axis for axis in range(axes) if axis != kept))
        how = {
            "device": device,
            "stream": stream,
            "check": check,
            "sums": self._names,
            "threshold": self.threshold,
            "bins": self._histogram_bins,
            "max_weight": self.max_weight,
        }
        arrays = {
            "predictions": predictions, "targets": targets, "weight": weight, "mask": mask, "baseline": baseline
        }  # fmt: skip
        handle, before = dispatch.stream_handle(stream), dispatch.stream_handle(self._stream)
        held = tuple(self._updates) if handle != before else ()
        if held:
            dispatch.wait_for(held[-1].state.values, before)
        self._stream = stream
        with dispatch.on_stream(predictions, handle):
            batch = _Update(loss.state(**arrays, **how), {})
            if groups is not None:
                for number, rows in dispatch.grouped(groups, arrays):
                    batch.groups[number] = loss.state(**rows, **how)
            if handle is not None and hasattr(batch.state.values, "copy_to_host"):
                dispatch.wait_for(batch.state.values, handle)  # Numba's are added up on the host.
            self._add(batch)
        if held:  # What was added up may now be given back to the stream that made it.
            dispatch.wait_for(self._updates[-1].state.values, handle)

    def _wait(self) -> bool:
        """Wait for the stream that updates were given, so that any other may read them. Whether there was one."""
        stream, self._stream = self._stream, None
        if stream is None or not self._updates:
            return False
        dispatch.wait_for(self._updates[-1].state.values, dispatch.stream_handle(stream))
        return True

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes, which do not have the stream."""
        self._wait()
        return self.__dict__

    def _add(self, update: _Update) -> None:
        # In one step, between whose halves no interrupt can lose what was seen.
        if self.window is None and self._updates:
            self._updates[-1] = self._updates[-1].merge(update)
        else:
            self._updates.append(update)

    def merge(self, *others: Evaluator) -> Evaluator:
        """Add what other evaluators with the same options have seen; returns this one. An evaluator with a window
        keeps its last updates, the others' after its own."""
        for other in others:
            if not isinstance(other, Evaluator):
                raise StateError(f"an Evaluator can only be merged with an Evaluator, not with {type(other).__name__}")
            if repr(self) != repr(other):
                raise StateError(f"evaluators with different options cannot be merged: {self!r} and {other!r}")
            held = tuple(self._updates)
            waited = self._wait() | other._wait()
            for update in tuple(other._updates):
                self._add(update)
            if waited and held:  # As in update.
                dispatch.wait_for(self._updates[-1].state.values, None)
        return self

    def sync(self, group: Any = None) -> Evaluator:
        """A new evaluator that has seen what the evaluators of all processes of a torch.distributed group have seen,
        the same bits on each of them; this one stays as it is. Waits for the device and for the other processes.

        ``group`` is a process group of any backend; None stands for all processes.
        """
        if self.window is not None:
            raise OptionError("window= is given, and the last updates of several processes have no order: leave it out")
        try:
            from torch import distributed
        except ImportError:
            raise MissingDependencyError("sync() needs PyTorch: pip install 'gpubce[torch]'") from None
        if not (distributed.is_available() and distributed.is_initialized()):
            raise StateError("sync() needs a process group: call torch.distributed.init_process_group() first")
        gathered: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(gathered, (repr(self), self._on_host()._updates), group)
        together = self._empty()
        for options, updates in gathered:
            if options != repr(self):
                raise StateError(f"evaluators with different options cannot be merged: {self!r} and {options}")
            for update in updates:
                together._add(update)
        return together

    def _empty(self) -> Evaluator:
        """Another one with the same options."""
        other = copy.copy(self)
        other._updates = deque(maxlen=self.window)
        return other

    def _on_host(self) -> Evaluator:
        """The same with its states in NumPy, which any process can unpickle."""
        other = self._empty()
        self._wait()
        for update in self._updates:
            other._updates.append(update.to_host())
        return other

    def reset(self) -> None:
        """Forget everything."""
        self._updates.clear()
        self._stream = None

    def report(self) -> Report:
        """The figures of everything seen so far. Waits for the device."""
        whole = self._seen()
        groups = {number: self._report(state) for number, state in sorted(whole.groups.items())}
        return replace(self._report(whole.state), groups=groups or None)

    def _seen(self) -> _Update:
        """All updates in one."""
        if not self._updates:
            names, shape, bins = self._names, (0,) * self.per_label, self._histogram_bins
            histogram = np.zeros((*shape, bins + SPECIAL, 2), np.int64) if bins else None
            return _Update(LossState(names, np.zeros((len(names), 2, *shape)), 0, 0.0, histogram), {})
        self._wait()
        whole, *rest = self._updates
        for update in rest:
            whole = whole.merge(update)
        return whole

    def _is_nan(self) -> bool:
        """Whether the loss of what was seen so far is NaN. Waits for the device."""
        state = self._seen().state.to_host()
        return bool(np.isnan(state.values[state.sums.index("loss"), 0]).any())

    def _report(self, state: LossState) -> Report:
        state = state.to_host()
        how = self.metrics, self.max_weight or 1.0
        if not self.per_label:
            return report(self.loss, state, *how)
        return replace(report(self.loss, _together(state), *how), labels=reports(self.loss, state, *how))

    def state_dict(self) -> dict[str, Any]:
        """Everything seen so far as a dictionary that JSON can hold, for :meth:`load_state_dict`. Waits for the
        device."""
        self._wait()
        return {
            "version": VERSION,
            "options": repr(self),
            "updates": [
                {
                    "state": _as_saved(update.state),
                    "groups": {str(number): _as_saved(state) for number, state in update.groups.items()},
                }
                for update in self._updates
            ],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state. Raises StateError if it is from an evaluator with other options."""
        if not isinstance(saved, Mapping) or not {"version", "options", "updates"} <= set(saved):
            raise StateError("this is not the state_dict of an Evaluator: it has no 'version', 'options' and 'updates'")
        if type(saved["version"]) is not int or saved["version"] != VERSION:
            version = checks.shown(saved["version"])
            raise StateError(f"the saved state is of version {version}, this package reads version {VERSION}")
        if not isinstance(saved["options"], str) or saved["options"] != repr(self):
            options = checks.shown(saved["options"])
            raise StateError(f"the saved state is of {options}, this is {self!r}: use the same options")
        form = self._names, 2 + self.per_label, self._histogram_bins
        loaded = []
        updates = saved["updates"] if isinstance(saved["updates"], list | tuple) else [None]
        for update in updates:
            with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, OverflowError, zlib.error):
                if isinstance(update, Mapping) and isinstance(update["groups"], Mapping):
                    groups = {int(number): _from_saved(state, *form) for number, state in update["groups"].items()}
                    loaded.append(_Update(_from_saved(update["state"], *form), groups))
                    continue
            raise StateError("the saved state is damaged: save it again with state_dict()")
        if self.window is None and len(loaded) > 1:
            raise StateError("the saved state is damaged: save it again with state_dict()")
        self._updates, self._stream = deque(loaded, maxlen=self.window), None


class _Update:
    """What one update, or several together, have added: the whole state, and each group's."""

    def __init__(self, state: LossState, groups: dict[int, LossState]):
        self.state = state
        self.groups = groups

    def merge(self, other: _Update) -> _Update:
        groups = dict(self.groups)
        for number, state in other.groups.items():
            groups[number] = _merged(groups[number], state) if number in groups else state
        return _Update(_merged(self.state, other.state), groups)

    def to_host(self) -> _Update:
        return _Update(self.state.to_host(), {number: state.to_host() for number, state in self.groups.items()})


def _merged(one: LossState, other: LossState) -> LossState:
    """Both together; on the host where they are of different libraries, or on different devices."""
    places = [getattr(state.values, "device", None) for state in (one, other)]
    if type(one.values) is not type(other.values) or places[0] != places[1]:
        one, other = one.to_host(), other.to_host()
    return one.merge(other)


@lru_cache(maxsize=256)
def _held(metrics: tuple[str, ...], denominator: str) -> tuple[str, ...]:
    """What states hold for these metrics."""
    return dispatch.state_names(dispatch.Reduction(denominator=denominator), sums_for(metrics, denominator))


def _together(state: LossState) -> LossState:
    """The state of all labels together: those of the first half are merged with those of the second, and again."""
    values = state.values
    with np.errstate(all="ignore"):
        while values.shape[2] != 1:
            half = max(1, -(-values.shape[2] // 2))
            padded = np.zeros((*values.shape[:2], 2 * half))
            padded[:, :, : values.shape[2]] = values
            one, two = padded[:, :, :half], padded[:, :, half:]
            values = np.stack(merge_pairs(one[:, 0], one[:, 1], two[:, 0], two[:, 1]), axis=1)
    histogram = None if state.histogram is None else state.histogram.sum(axis=0)
    return LossState(state.sums, values[:, :, 0], state.elements * state.shape[0], state.rows, histogram)


# Saved states -------------------------------------------------------------------------------------------------------


def _as_saved(state: LossState) -> dict[str, Any]:
    state = state.to_host()
    cells = None
    if state.histogram is not None:
        packed = zlib.compress(np.ascontiguousarray(state.histogram, "<i8").tobytes())
        cells = base64.b64encode(packed).decode("ascii")
    return {
        "sums": list(state.sums),
        "values": state.values.tolist(),
        "elements": state.elements,
        "rows": state.rows,
        "histogram": cells,
    }


def _from_saved(state: Any, names: tuple[str, ...], axes: int, bins: int) -> LossState:
    """The state, or ValueError and its like if it is damaged."""
    if not isinstance(state, Mapping):
        raise ValueError
    sums, values, elements, rows, cells = (state[name] for name in ("sums", "values", "elements", "rows", "histogram"))
    known = isinstance(sums, list | tuple) and all(isinstance(name, str) for name in sums) and tuple(sums) == names
    if not known or not _are_numbers(values, axes) or isinstance(cells, str) != (bins > 0):
        raise ValueError
    pairs, count = np.array(values, np.float64), int(checks.real("elements", elements))
    found = LossState(names, pairs, count, checks.real("rows", rows))
    if not _is_sound(found, axes):
        raise ValueError
    if not isinstance(cells, str):
        return found
    shape = (*found.shape, bins + SPECIAL, 2)
    size = 8 * math.prod(shape)
    unpacked = zlib.decompressobj().decompress(base64.b64decode(cells, validate=True), size + 1)
    if len(unpacked) != size:
        raise ValueError
    return replace(found, histogram=np.frombuffer(unpacked, "<i8").astype(np.int64).reshape(shape))


def _are_numbers(values: Any, axes: int) -> bool:
    """Whether these are lists in lists of numbers, as JSON has them: to convert others (a range) may not even end."""
    if axes == 0:
        return isinstance(values, int | float)
    return isinstance(values, list | tuple) and all(_are_numbers(value, axes - 1) for value in values)


def _is_sound(state: LossState, axes: int) -> bool:
    """Whether a state could have been summed: pairs, and counts that are numbers."""
    sums, values = state.sums, state.values
    if values.ndim != axes or values.shape[:2] != (len(sums), 2):
        return False
    counts = values[[sums.index("count"), sums.index("invalid")]]
    counted = bool(np.isfinite(counts).all() and (counts[:, 0] >= 0).all())
    return counted and state.elements >= 0 and math.isfinite(state.rows)
