"""The order of every addition.

The plan depends on the number of elements and on constants alone, never on threads, devices or launch geometry.

*Whole reductions.* The elements, in C order, are cut into blocks of ``lanes * rows``. Lane j of a block owns the
elements j, j + lanes, j + 2 lanes, ... of the block and adds them in that order, starting from 0. A halving tree then
adds lane j + width to lane j for width = lanes / 2, ..., 1. The totals of the blocks are reduced by the same plan,
until one is left.

*Reductions along axes.* Each output adds runs of ``chunk`` consecutive reduced elements in order; the runs' totals
are reduced by the plan above.

Elements of float32 are added in float64. Elements of float64, and all totals of blocks and runs, are pairs (hi, lo)
which :func:`add_to_pair` and :func:`merge_pairs` add.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


def two_sum(a, b):
    """The rounded sum of a and b, and its exact error (Knuth, TAOCP vol. 2, 4.2.2, theorem B)."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def add_to_pair(hi, lo, value):
    """Add one value to a pair."""
    total, error = two_sum(hi, value)
    return total, lo + error


def merge_pairs(hi, lo, other_hi, other_lo):
    """Add one pair to another."""
    total, error = two_sum(hi, other_hi)
    return total, (lo + other_lo) + error


def add_to_total(hi, lo, value):
    """Add one value to a pair whose low part stays as it is."""
    return hi + value, lo


def merge_totals(hi, lo, other_hi, other_lo):
    """Add one such pair to another."""
    return hi + other_hi, lo


class Addition(NamedTuple):
    """How a block or a run adds: a value to a pair, and one pair to another."""

    add: Callable
    merge: Callable


def addition(compensated: bool) -> Addition:
    """How elements are added: ``compensated``, to pairs; else to totals, whose low parts stay as they are."""
    return Addition(add_to_pair, merge_pairs) if compensated else Addition(add_to_total, merge_totals)


def first_width(lanes, count):
    """The first width of the halving tree that can matter when only ``count`` lanes hold something.

    Wider steps would add lanes that are 0, which changes no bit.
    """
    width = lanes // 2
    while width >= count and width > 0:
        width //= 2
    return width


class Plan(NamedTuple):
    """The constants of the plan. Tests shrink them; everything else uses :data:`PLAN`."""

    lanes: int = 1024
    rows: int = 8
    chunk: int = 256

    @property
    def block(self) -> int:
        """Elements in a block."""
        return self.lanes * self.rows

    def blocks(self, count: int) -> int:
        """How many blocks hold ``count`` elements."""
        return -(-count // self.block)

    def chunks(self, count: int) -> int:
        """How many runs hold ``count`` reduced elements of one output."""
        return -(-count // self.chunk)


PLAN = Plan()


def sum_by_plan(values: Sequence[float], plan: Plan = PLAN, compensated: bool = False) -> tuple[float, float]:
    """Sum floats as the kernels do, element by element: the plan in plain Python, for tests and readers.

    >>> sum_by_plan([0.5, 0.25, 0.125])
    (0.875, 0.0)
    """
    pairs = [(float(value), 0.0) for value in values]
    merge = addition(compensated).merge
    while True:
        pairs = [
            _sum_block(pairs[start : start + plan.block], plan, merge) for start in range(0, len(pairs), plan.block)
        ] or [(0.0, 0.0)]
        merge = merge_pairs
        if len(pairs) == 1:
            return pairs[0]


def _sum_block(pairs, plan: Plan, merge: Callable) -> tuple[float, float]:
    lanes = [(0.0, 0.0)] * plan.lanes
    for index, pair in enumerate(pairs):
        lanes[index % plan.lanes] = merge(*lanes[index % plan.lanes], *pair)
    width = plan.lanes // 2
    while width > 0:
        lanes = [merge(*lanes[lane], *lanes[lane + width]) for lane in range(width)]
        width //= 2
    return lanes[0]
