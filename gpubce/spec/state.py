"""Unfinished sums, and how they become values.

:func:`settled`, :func:`mean` and :func:`derivative_scale` work on numbers, and compiled inside kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubce.errors import StateError
from gpubce.spec.bins import MOST_ELEMENTS
from gpubce.spec.plan import merge_pairs


def settled(hi, lo):
    """The value of a pair. After an infinite element the low part is NaN and says nothing."""
    return hi + lo if lo == lo else hi


def mean(total, denominator, unit):
    """A total per counted thing, in the unit asked for. 0 / 0 is NaN: the mean of nothing."""
    return total / denominator * unit


def derivative_scale(grad_scale, denominator, unit):
    """What derivatives of a mean are multiplied by, formed in float64."""
    return grad_scale * (1.0 / denominator) * unit


@dataclass(frozen=True, eq=False)
class LossState:
    """The unfinished sums of a batch, a stream or a worker: merge them in any order, then finish.

    Every sum is a pair of float64, (hi, lo), merged by TwoSum, so neither order nor splitting shows in a float32
    result. Get one from :meth:`gpubce.BinaryCrossEntropy.state`.

    Attributes
    ----------
    sums : tuple of str
        What was summed: "loss" (nats), "weight" (w), "positives" (w y), "predictions" (w p), "squared_error"
        (w (p - y)^2), "cross_entropy" (w times the plain loss), "positive_entropy" (its part -w y log p),
        "target_entropy" (w times the entropy of y), "predicted" (w where p is at least ``threshold``), "found" (w y
        there), "squared_loss", "squared_weight" (w^2), "loss_by_weight" (the loss once more times w),
        "squared_positives" ((w y)^2), "loss_by_positives" (the loss once more times w y), "difference" (the loss minus
        the baseline's), "squared_difference", "difference_by_weight" and "difference_by_positives" likewise, "count"
        (counted elements), "invalid" (elements with a target or probability outside [0, 1], or a weight that is
        negative or not finite).
    values : array of float64, shape (len(sums), 2) + the shape of the result
        In the array library and on the device of the inputs.
    elements : int
        Elements per result, counted or not.
    rows : float
        Elements per result over the number of labels, masks ignored.
    histogram : array of int64, the shape of the result + (bins + 2, 2), or None
        How much weight of the negatives and of the positives falls into each bin of logits, in quanta, modulo 2^64
        (see :mod:`gpubce.spec.bins`). In the array library and on the device of ``values``.

    Examples
    --------
    >>> import numpy as np
    >>> import gpubce
    >>> loss = gpubce.BinaryCrossEntropy(from_logits=True)
    >>> logits, targets = np.array([2.0, -1.0, 0.5]), np.array([1, 0, 1])
    >>> state = loss.state(logits[:1], targets[:1]) + loss.state(logits[1:], targets[1:])
    >>> float(loss.finish(state)) == float(loss(logits, targets))
    True
    """

    sums: tuple[str, ...]
    values: Any
    elements: int
    rows: float
    histogram: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(self.values.shape[2:])

    def merge(self, other: LossState) -> LossState:
        """The state of both together. Raises StateError if they do not hold the same sums of the same shape."""
        if not isinstance(other, LossState):
            raise StateError(f"a LossState can only be merged with a LossState, not with {type(other).__name__}")
        if self.sums != other.sums or self.shape != other.shape:
            raise StateError(
                f"states of different losses cannot be merged: one holds {self.sums} of shape {self.shape}, the other "
                f"{other.sums} of shape {other.shape}"
            )
        if getattr(self.histogram, "shape", None) != getattr(other.histogram, "shape", None):
            raise StateError("states with different histograms cannot be merged: ask for the same number of bins")
        elements = self.elements + other.elements
        if self.histogram is not None and elements * math.prod(self.shape) > MOST_ELEMENTS:
            raise StateError(f"a histogram holds at most {MOST_ELEMENTS:,} elements: begin another state")
        one, two = self.values, other.values
        if type(one) is not type(two):
            raise StateError(
                f"one state is in {type(one).__module__}, the other in {type(two).__module__}: merge state.to_host()"
            )
        if hasattr(one, "copy_to_host"):  # Numba device arrays have no arithmetic.
            return self.to_host().merge(other.to_host())
        merged = one + two  # The shape, type and device; every value is then set.
        with np.errstate(invalid="ignore"):
            merged[:, 0], merged[:, 1] = merge_pairs(one[:, 0], one[:, 1], two[:, 0], two[:, 1])
        histogram = None if self.histogram is None else self.histogram + other.histogram
        return LossState(self.sums, merged, elements, self.rows + other.rows, histogram)

    def __add__(self, other: LossState) -> LossState:
        return self.merge(other) if isinstance(other, LossState) else NotImplemented

    def to_host(self) -> LossState:
        """The same state in NumPy. Waits for the device."""
        histogram = None if self.histogram is None else _to_host(self.histogram)
        return LossState(self.sums, _to_host(self.values), self.elements, self.rows, histogram)

    def total(self, name: str) -> np.ndarray | float:
        """One sum as float64, on the host. Waits for the device. Raises StateError if it was not summed."""
        if name not in self.sums:
            raise StateError(f"this state does not hold {name!r}, only {', '.join(self.sums)}")
        values = self.to_host().values[self.sums.index(name)]
        with np.errstate(all="ignore"):
            total = np.vectorize(settled, otypes=[np.float64])(values[0], values[1])
        return float(total) if total.ndim == 0 else total

    @property
    def count(self) -> int:
        """How many elements were counted (not masked, not ignored). Waits for the device."""
        return int(np.sum(self.total("count")))

    @property
    def invalid(self) -> int:
        """How many elements were invalid. Waits for the device."""
        return int(np.sum(self.total("invalid")))


def _to_host(array: Any) -> np.ndarray:
    for method in ("copy_to_host", "get"):
        if hasattr(array, method):
            return getattr(array, method)()
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)
