"""What a histogram of the logits of each class says: ROC, precision and recall, calibration.

All of it is known up to the order of samples within a bin, so each figure comes with a bound of its error. Weights
are rounded to a quantum (:func:`gpubce.spec.bins.quantum`), which the bounds include where it is not exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gpubce.errors import OptionError
from gpubce.spec.bins import SPECIAL, edges

CALIBRATION_BINS = 15
"""As in Guo et al. 2017."""


class Estimate(NamedTuple):
    """A figure, and how far the exact one may be from it."""

    value: np.ndarray
    bound: np.ndarray


class Reliability(NamedTuple):
    """A reliability curve, one item for each bin of predictions that holds something.

    Attributes
    ----------
    prediction : array of float64
        The mean predicted probability.
    target : array of float64
        The mean target: equal to ``prediction`` where the predictions are calibrated.
    weight : array of float64
        The sum of weights.
    """

    prediction: np.ndarray
    target: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Curves:
    """The classes' weights by bins of logits, lowest first.

    Attributes
    ----------
    negatives, positives : arrays of float64, shape (..., bins)
        The weight w (1 - y) and w y in each bin.
    rounding : array of float64, shape (...)
        How far the weight of either class may be from the exact one.
    sound : array of bool, shape (...)
        False where a prediction is NaN, a weight is above the largest one that was declared, or a sample is invalid;
        figures are NaN there.
    """

    negatives: np.ndarray
    positives: np.ndarray
    rounding: np.ndarray
    sound: np.ndarray

    @classmethod
    def of(cls, histogram: np.ndarray, quantum: float, elements: np.ndarray, sound: np.ndarray) -> Curves:
        """From the cells of :class:`gpubce.LossState`, on the host."""
        counts = histogram.view(np.uint64)
        bins = counts.shape[-2] - SPECIAL
        unit = round(1.0 / quantum)
        exact = unit > 0 and not (counts[..., :bins, :] % np.uint64(max(1, unit))).any()
        weights = counts[..., :bins, :] * quantum
        clean = (counts[..., bins, :] == 0).all(axis=-1) & (counts[..., bins + 1, 1] == 0)
        rounding = np.zeros_like(elements) if exact else elements * (quantum / 2.0)
        return cls(weights[..., 0], weights[..., 1], rounding, sound & clean)

    @property
    def bins(self) -> int:
        """How many there are."""
        return self.negatives.shape[-1]

    def __len__(self) -> int:
        return len(self.negatives)

    def __getitem__(self, index: int) -> Curves:
        """Those of one label."""
        return Curves(self.negatives[index], self.positives[index], self.rounding[index], self.sound[index])

    def logits(self) -> np.ndarray:
        """The bins' limits, shape (bins + 1,)."""
        return edges(self.bins)

    def roc(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(false positive rate, true positive rate, smallest logit that counts as positive), from (0, 0) to (1, 1)."""
        false, true = self._from_the_top()
        with np.errstate(all="ignore"):
            return false / false[-1], true / true[-1], self._thresholds()

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(precision, recall, smallest logit that counts as positive), recall rising from 0 to 1. Where nothing counts
        as positive, the precision is 1."""
        false, true = self._from_the_top()
        with np.errstate(all="ignore"):
            precision = np.where(true + false > 0.0, true / (true + false), 1.0)
            return precision, true / true[-1], self._thresholds()

    def reliability(self, bins: int = CALIBRATION_BINS, by: str = "width") -> Reliability:
        """The reliability curve over bins of equal width in probability, or of equal weight (``by="weight"``).

        Limits of bins are moved to those of the histogram's, and a prediction counts as the middle of its bin: with
        4,096 bins it moves by at most 0.001.
        """
        total = self.negatives + self.positives
        if by == "weight":
            with np.errstate(all="ignore"):
                middle = (np.cumsum(total) - total / 2.0) / np.sum(total)
            place = np.minimum(np.nan_to_num(middle * bins).astype(np.int64), bins - 1)
        elif by == "width":
            place = np.minimum((self._middles() * bins).astype(np.int64), bins - 1)
        else:
            raise OptionError(f"by={by!r} is not one of 'width', 'weight'")
        sums = [np.bincount(place, values, bins) for values in (total * self._middles(), self.positives, total)]
        kept = sums[2] > 0.0
        return Reliability(sums[0][kept] / sums[2][kept], sums[1][kept] / sums[2][kept], sums[2][kept])

    def roc_auc(self) -> Estimate:
        """The area under the ROC curve: how often a positive scores above a negative, a tie counting half (Hanley and
        McNeil 1982). NaN with one class only.

        With P and N the weights of the classes, the bound is sum_b P_b N_b / (2 P N): samples of both classes in one
        bin count as ties.
        """
        negatives, positives = self.negatives, self.positives
        below = np.cumsum(negatives, axis=-1) - negatives
        all_negatives, all_positives = negatives.sum(axis=-1), positives.sum(axis=-1)
        with np.errstate(all="ignore"):
            pairs = all_negatives * all_positives
            ties = (positives * negatives).sum(axis=-1) / 2.0 / pairs
            value = ((positives * below).sum(axis=-1)) / pairs + ties
            return self._estimate(value, ties, all_negatives, all_positives)

    def average_precision(self) -> Estimate:
        """The sum over thresholds of precision times the recall gained, as scikit-learn's average_precision_score.
        NaN without positives.

        The bound assumes that the positives of a bin score above all its negatives, or below.
        """
        true, false = (np.cumsum(part[..., ::-1], axis=-1) for part in (self.positives, self.negatives))
        gained, more = self.positives[..., ::-1], self.negatives[..., ::-1]
        all_positives = true[..., -1]
        with np.errstate(all="ignore"):
            share = gained / all_positives[..., None]
            at_end = np.where(gained > 0.0, true / (true + false), 0.0)
            best = np.where(gained > 0.0, true / (true + false - more), 0.0)
            before = true - gained
            worst = np.where(before > 0.0, before / (before + false), 0.0)
            value = (share * at_end).sum(axis=-1)
            bound = np.maximum((share * best).sum(axis=-1) - value, value - (share * worst).sum(axis=-1))
            return self._estimate(value, bound, all_positives, all_positives)

    def calibration_error(self, bins: int = CALIBRATION_BINS) -> Estimate:
        """The expected calibration error: the mean distance of mean target and mean prediction over ``bins`` bins of
        equal width in probability, weighted by what they hold (Naeini et al. 2015, Guo et al. 2017).

        The bound adds half the width of each of the histogram's bins, and twice what those that lie across a limit of
        the ``bins`` could move from one side to the other.
        """
        total = self.negatives + self.positives
        weight = total.sum(axis=-1)
        middles, (low, high) = self._middles(), self._limits()
        place = np.minimum((middles * bins).astype(np.int64), bins - 1)
        starts = [*np.searchsorted(place, np.arange(bins)), self.bins]
        # A bin across a limit is counted on one side of it: the other side lacks at most all its samples of one class.
        across = np.floor(low * bins) != np.ceil(high * bins) - 1
        moved = np.maximum(self.positives * (1.0 - low), self.negatives * high)
        with np.errstate(all="ignore"):
            distance = total * middles - self.positives
            value = sum(abs(distance[..., a:b].sum(axis=-1)) for a, b in pairwise(starts)) / weight
            bound = (total * np.maximum(high - middles, middles - low) + 2.0 * across * moved).sum(axis=-1) / weight
            return self._estimate(value, bound, weight, weight)

    def _estimate(self, value, bound, one: np.ndarray, other: np.ndarray) -> Estimate:
        """With the effect of rounded weights on a quotient of such totals."""
        rounded = 2.0 * self.rounding * (1.0 / one + 1.0 / other)
        return Estimate(np.where(self.sound, value, np.nan), np.where(self.sound, bound + rounded, np.nan))

    def _from_the_top(self) -> tuple[np.ndarray, np.ndarray]:
        false, true = (np.concatenate([[0.0], np.cumsum(part[::-1])]) for part in (self.negatives, self.positives))
        return false, true

    def _thresholds(self) -> np.ndarray:
        return np.concatenate([[np.inf], self.logits()[-2:0:-1], [-np.inf]])

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest probability of each bin."""
        p = 1.0 / (1.0 + np.exp(-self.logits()))
        p[[0, -1]] = 0.0, 1.0
        return p[:-1], p[1:]

    def _middles(self) -> np.ndarray:
        logits = self.logits()
        return 1.0 / (1.0 + np.exp(-(logits[:-1] + logits[1:]) / 2.0))

    def __iter__(self) -> Iterator[Curves]:
        return (self[k] for k in range(len(self)))
