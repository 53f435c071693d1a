"""What is counted when results stand beside the truth.

An error is measured in units in the last place (ulp) of the true value, in the type of the result: the distance of the
numbers of that type in the true value's binade, or the distance of the subnormal numbers below the smallest normal one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from tests.accuracy.reference import ROWS, compiled, digits, exact
from tests.oracle import mp

LOGIT_BOUNDS = {"loss": math.inf, "gradient": 1.0, "hessian": 0.25}
"""What no result along logits exceeds; their signs are those of the true values."""

MARGIN = {"float32": 2.0**-49, "float64": 2.0**-100}
"""How near to a rounding boundary the reference cannot decide, relative to the value: several times its error."""

MOST_UNDECIDED = 1 << 12
"""How many results beside a rounding boundary are kept for mpmath in one chunk and row."""


@dataclass(frozen=True)
class Format:
    """A type of results: its bits of fraction, the exponent of its smallest normal number, and the smallest value that
    rounds to infinity (float64: infinity, as the pairs' exponents are compared)."""

    fraction: int
    least: int
    overflow: float

    @property
    def scales(self) -> np.ndarray:
        """1 / ulp of a value, by the exponent bits of its float64."""
        exponents = np.maximum(np.arange(2048) - 1023, self.least)
        return np.ldexp(1.0, np.minimum(self.fraction - exponents, 1023))


FORMATS = {
    "float16": Format(10, -14, (1.0 - 2.0**-12) * 2.0**16),
    "bfloat16": Format(7, -126, (1.0 - 2.0**-9) * 2.0**128),
    "float32": Format(23, -126, (1.0 - 2.0**-25) * 2.0**128),
    "float64": Format(52, -1022, math.inf),
}


@dataclass(frozen=True)
class Row:
    """What was counted for one output and target, over a part of a space or all of it."""

    points: int = 0
    """Results whose true value is at least the smallest normal number of the type that is computed in."""
    right: int = 0
    """Of these, the correctly rounded ones."""
    within_one: int = 0
    """Of these, the ones within 1 ulp."""
    asked: int = 0
    """Of these, the ones too near to a rounding boundary for the reference, so that mpmath decided."""
    undecided: int = 0
    """Of these, the ones beyond MOST_UNDECIDED, where it is open; they are not counted as right."""
    small: int = 0
    """Results whose true value is smaller, 0 too."""
    wrong: int = 0
    """Results of the wrong sign or out of range; not 0 where 0 is promised; NaN or infinite where the true value is
    not, or the reverse; or different between two functions that give the same."""
    wrong_at: float | None = None
    largest: float = 0.0
    """The largest error in ulp, over points, and over small ones where 0 is not promised."""
    largest_at: float | None = None
    steps: int = 0
    """How often the loss goes back from one prediction to the next."""
    longest: int = 0
    """The longest step back, in numbers of the type."""
    longest_at: float | None = None

    def merged(self, other: "Row") -> "Row":
        """Both parts; of two equal errors, the place of the first stands."""
        worse = self if self.largest >= other.largest else other
        longer = self if self.longest >= other.longest else other
        sums = {name: getattr(self, name) + getattr(other, name) for name in SUMMED}
        return replace(
            self,
            **sums,
            wrong_at=other.wrong_at if self.wrong_at is None else self.wrong_at,
            largest=worse.largest,
            largest_at=worse.largest_at,
            longest=longer.longest,
            longest_at=longer.longest_at,
        )


SUMMED = tuple(item.name for item in fields(Row) if item.type is int and item.name != "longest")

# The loops, which add up in local variables. --------------------------------------------------------------------------

PLACES = ("points", "right", "within_one", "waiting", "small", "wrong", "wrong_at", "largest_at", "steps", "longest")
POINTS, RIGHT, WITHIN_ONE, WAITING, SMALL, WRONG, WRONG_AT, LARGEST_AT, STEPS, LONGEST = range(len(PLACES))
LONGEST_AT = len(PLACES)
ZERO, ROUNDED, LEFT_OUT = range(3)
"""What results have to be whose true value is below the smallest normal number of the type that is computed in."""


@compiled
def _compare_floats(
    found, true, bits, first, base, scales, overflow, smallest, small_is, bound, margin, counts, largest, kept_at, kept
):
    """One row of results beside float64 truths, whose bits are ``bits``. Element i is at position ``base + i``."""
    points = right = within = small = wrong = 0
    wrong_at = largest_at = np.int64(-1)
    waiting = counts[WAITING]
    worst = largest[0]
    for i in range(first, found.size):
        r, f = true[i], np.float64(found[i])
        size = abs(r)
        if not size < overflow:  # NaN too.
            expected = math.copysign(np.inf, r) if r == r else r
            if not (f == expected or (f != f and r != r)):
                wrong, wrong_at = wrong + 1, base + i
            continue
        scale = scales[(bits[i] >> 52) & 0x7FF]
        a = size * scale
        g = math.copysign(scale, r) * f
        error = abs(g - a)
        if not (g >= 0.0 and abs(f) <= bound and error < np.inf):
            wrong, wrong_at = wrong + 1, base + i
        if size < smallest:
            small += 1
            if small_is == ZERO and f != 0.0:
                wrong, wrong_at = wrong + 1, base + i
            if small_is == ROUNDED and error > worst:
                worst, largest_at = error, base + i
            continue
        points += 1
        within += error <= 1.0
        if error > worst:
            worst, largest_at = error, base + i
        if abs(error - 0.5) > a * margin:
            right += error < 0.5
            continue
        if waiting < kept.size:
            kept_at[waiting], kept[waiting] = base + i, f
        waiting += 1
    _add_up(counts, points, right, within, waiting, small, wrong, wrong_at, largest_at)
    largest[0] = worst


@compiled
def _compare_pairs(found, high, low, exponent, first, base, small_is, bound, margin, counts, largest, kept_at, kept):
    """The same for float64 results beside the truths (high + low) 2^exponent."""
    points = right = within = small = wrong = 0
    wrong_at = largest_at = np.int64(-1)
    waiting = counts[WAITING]
    worst = largest[0]
    for i in range(first, found.size):
        r, f = high[i], found[i]
        e = math.frexp(r)[1] - 1 + exponent[i]
        if not abs(r) < np.inf or e > 1023:
            expected = math.copysign(np.inf, r) if r == r else r
            if not (f == expected or (f != f and r != r)):
                wrong, wrong_at = wrong + 1, base + i
            continue
        # In units of the last place; both are within float64's reach, and their difference is exact.
        unit = max(e, -1022) - 52
        sign = math.copysign(1.0, r)
        a = math.ldexp(abs(r), exponent[i] - unit)
        g = math.ldexp(sign * f, -unit)
        error = abs((g - a) - math.ldexp(sign * low[i], exponent[i] - unit))
        if not (g >= 0.0 and abs(f) <= bound and error < np.inf):
            wrong, wrong_at = wrong + 1, base + i
        if e < -1022:
            small += 1
            if small_is == ZERO and f != 0.0:
                wrong, wrong_at = wrong + 1, base + i
            if small_is == ROUNDED and error > worst:
                worst, largest_at = error, base + i
            continue
        points += 1
        within += error <= 1.0
        if error > worst:
            worst, largest_at = error, base + i
        if abs(error - 0.5) > a * margin:
            right += error < 0.5
            continue
        if waiting < kept.size:
            kept_at[waiting], kept[waiting] = base + i, f
        waiting += 1
    _add_up(counts, points, right, within, waiting, small, wrong, wrong_at, largest_at)
    largest[0] = worst


@compiled
def _add_up(counts, points, right, within, waiting, small, wrong, wrong_at, largest_at):
    counts[POINTS] += points
    counts[RIGHT] += right
    counts[WITHIN_ONE] += within
    counts[WAITING] = waiting
    counts[SMALL] += small
    counts[WRONG] += wrong
    if wrong_at >= 0:
        counts[WRONG_AT] = wrong_at
    if largest_at >= 0:
        counts[LARGEST_AT] = largest_at


@compiled
def _count_steps(bits, infinity, rises, base, counts):
    """Where a loss goes back. The bits of numbers that are not negative have the numbers' order."""
    for i in range(1, bits.size):
        before, now = np.int64(bits[i - 1]), np.int64(bits[i])
        step = before - now if rises else now - before
        if step > 0 and 0 <= before <= infinity and 0 <= now <= infinity:
            counts[STEPS] += 1
            if step > counts[LONGEST]:
                counts[LONGEST], counts[LONGEST_AT] = step, base + i


class Tally:
    """The counts of one chunk: one row for each of :data:`ROWS`.

    ``result``: the type of the results. ``compute``: the type that they are computed in, float32 or float64.
    ``small``: what results have to be whose true value is below that type's smallest normal number, ZERO, ROUNDED or
    LEFT_OUT. By default, as the package promises: 0 along logits, and rounded like others along probabilities.
    Along logits gradient and hessian are bounded, too.
    """

    def __init__(self, result: str, compute: str, from_logits: bool, small: int | None = None):
        self.result, self.compute, self.from_logits = FORMATS[result], compute, from_logits
        self.small = (ZERO if from_logits else ROUNDED) if small is None else small
        self.scales = self.result.scales
        self.counts = np.zeros((len(ROWS), len(PLACES) + 1), np.int64)
        self.counts[:, [WRONG_AT, LARGEST_AT, LONGEST_AT]] = -1
        self.largest = np.zeros((len(ROWS), 1))
        self.kept_at = np.zeros((len(ROWS), MOST_UNDECIDED), np.int64)
        self.kept = np.zeros((len(ROWS), MOST_UNDECIDED))

    def compare(self, row: int, found: np.ndarray, true: tuple[np.ndarray, ...], first: int, base: int) -> None:
        """Results of one row from element ``first`` on; ``true`` as a reference of :mod:`.reference` fills it."""
        bound = LOGIT_BOUNDS[ROWS[row][1]] if self.from_logits else math.inf
        rest = (self.small, bound, MARGIN[self.compute], self.counts[row], self.largest[row])
        rest += (self.kept_at[row], self.kept[row])
        if self.compute == "float64":
            _compare_pairs(found, *(part[row] for part in true), first, base, *rest)
            return
        bits = true[0].view(np.int64)[row]
        smallest = 2.0 ** FORMATS[self.compute].least
        _compare_floats(found, true[0][row], bits, first, base, self.scales, self.result.overflow, smallest, *rest)

    def count_steps(self, row: int, found: np.ndarray, base: int) -> None:
        """Steps back of a loss between each element and the one before, in the order of the predictions."""
        integers = np.dtype(f"int{8 * found.itemsize}")
        infinity = np.array(np.inf, found.dtype).view(integers)
        _count_steps(found.view(integers), np.int64(infinity), ROWS[row][0] == 0, base, self.counts[row])

    def count_differences(self, row: int, one: np.ndarray, other: np.ndarray, first: int, base: int) -> None:
        """What two functions of the package give for the same row; it has to be equal."""
        integers = np.dtype(f"int{8 * one.itemsize}")
        same = (one.view(integers) == other.view(integers)) | ((one != one) & (other != other))
        for i in first + np.flatnonzero(~same[first:]):
            self.counts[row, WRONG] += 1
            self.counts[row, WRONG_AT] = base + i

    def rows(self, prediction_at: Callable[[int], float]) -> list[Row]:
        """The counts; mpmath decides what the reference could not. ``prediction_at`` gives the input at a position."""
        at = lambda position: None if position < 0 else prediction_at(int(position))  # noqa: E731
        made = []
        for row, (counts, largest) in enumerate(zip(self.counts.tolist(), self.largest[:, 0].tolist(), strict=True)):
            known = min(counts[WAITING], MOST_UNDECIDED)
            right = counts[RIGHT] + sum(
                self._is_right(row, prediction_at(int(self.kept_at[row, k])), self.kept[row, k]) for k in range(known)
            )
            made.append(
                Row(
                    points=counts[POINTS],
                    right=right,
                    within_one=counts[WITHIN_ONE],
                    asked=known,
                    undecided=counts[WAITING] - known,
                    small=counts[SMALL],
                    wrong=counts[WRONG],
                    wrong_at=at(counts[WRONG_AT]),
                    largest=largest,
                    largest_at=at(counts[LARGEST_AT]),
                    steps=counts[STEPS],
                    longest=counts[LONGEST],
                    longest_at=at(counts[LONGEST_AT]),
                )
            )
        return made

    def _is_right(self, row: int, prediction: float, found: float) -> bool:
        with digits(120):
            true = exact(prediction, row, self.from_logits)
            exponent = max(mp.frexp(true)[1] - 1, self.result.least)
            return bool(abs(mp.mpf(found) - true) <= mp.ldexp(0.5, exponent - self.result.fraction))
