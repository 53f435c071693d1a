"""Unfinished sums, and how they become values.

:func:`settled`, :func:`mean` and :func:`derivative_scale` work on numbers, and compiled inside kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubce.errors import StateError
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
        (w (p - y)^2), "cross_entropy" (w times the plain loss), "count" (counted elements), "invalid" (elements with
        a target or probability outside [0, 1], or a weight that is negative or not finite).
    values : array of float64, shape (len(sums), 2) + the shape of the result
        In the array library and on the device of the inputs.
    elements : int
        Elements per result, counted or not.
    rows : float
        Elements per result over the number of labels, masks ignored.

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
        return LossState(self.sums, merged, self.elements + other.elements, self.rows + other.rows)

    def __add__(self, other: LossState) -> LossState:
        return self.merge(other) if isinstance(other, LossState) else NotImplemented

    def to_host(self) -> LossState:
        """The same state in NumPy. Waits for the device."""
        values = self.values
        for method in ("copy_to_host", "get"):
            if hasattr(values, method):
                values = getattr(values, method)()
                break
        else:
            values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
        return LossState(self.sums, values, self.elements, self.rows)

    def total(self, name: str) -> np.ndarray | float:
        """One sum as float64, on the host. Waits for the device. Raises StateError if it was not summed."""
        if name not in self.sums:
            raise StateError(f"this state does not hold {name!r}, only {', '.join(self.sums)}")
        values = self.to_host().values[self.sums.index(name)]
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
