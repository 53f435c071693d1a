"""The order of additions (promise 1): kernels against the plan in plain Python."""

import math

import numpy as np
import pytest

import gpubce
from gpubce.spec.plan import PLAN, Plan, add_to_pair, first_width, merge_pairs, sum_by_plan, two_sum
from tests import backends
from tests.backends import replaced

SMALL = backends.SMALL_PLAN


def losses_and_sum(logits: np.ndarray, plan: Plan) -> tuple[list[float], tuple[float, float]]:
    """The elements' losses, and the pair that their sum is."""
    targets = np.zeros(logits.shape, bool)
    elements = gpubce.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    with replaced(backends.CpuEngine, plan):
        state = gpubce.BinaryCrossEntropy(from_logits=True).state(logits, targets)
    return [float(v) for v in elements], tuple(float(v) for v in state.values[0])


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 65, 1000, 64 * 64 + 1])
def test_kernels_add_in_the_order_of_the_plan(size, real):
    logits = np.random.default_rng(size).normal(0, 5, size).astype(real)
    elements, pair = losses_and_sum(logits, SMALL)
    assert pair == sum_by_plan(elements, SMALL, compensated=real is np.float64)


def test_the_full_plan_is_the_default():
    logits = np.random.default_rng(0).normal(0, 5, 3 * PLAN.block + 17).astype(np.float32)
    targets = np.zeros(logits.shape, bool)
    elements = gpubce.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    state = gpubce.BinaryCrossEntropy(from_logits=True).state(logits, targets)
    assert tuple(state.values[0]) == sum_by_plan([float(v) for v in elements])


def test_the_constants_of_the_plan_are_part_of_the_promise():
    """Others give other bits."""
    assert (PLAN.lanes, PLAN.rows, PLAN.chunk) == (1024, 8, 256)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_runs_along_axes_add_one_after_the_other(real):
    logits = np.random.default_rng(1).normal(0, 5, (29, 3)).astype(real)
    targets = np.zeros(logits.shape, bool)
    elements = gpubce.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    with replaced(backends.CpuEngine, SMALL):
        state = gpubce.BinaryCrossEntropy(from_logits=True, axis=0).state(logits, targets)
    for label in range(3):
        runs = []
        for start in range(0, 29, SMALL.chunk):
            pair = (0.0, 0.0)
            for value in elements[start : start + SMALL.chunk, label]:
                value = float(value)
                pair = add_to_pair(*pair, value) if real is np.float64 else (pair[0] + value, 0.0)
            runs.append(pair)
        total = runs[0] if len(runs) == 1 else _merge_by_plan(runs)
        assert tuple(state.values[0, :, label]) == total


def _merge_by_plan(runs):
    """A block of pairs that has no more elements than lanes: the halving tree alone."""
    lanes = runs + [(0.0, 0.0)] * (SMALL.lanes - len(runs))
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [merge_pairs(*lanes[k], *lanes[k + half]) for k in range(half)]
    return lanes[0]


@pytest.mark.parametrize(
    ("count", "blocks", "chunks"), [(0, 0, 0), (1, 1, 1), (8, 1, 1), (9, 1, 2), (64, 1, 8), (65, 2, 9)]
)
def test_a_plan_has_as_many_blocks_and_runs_as_it_needs(count, blocks, chunks):
    assert (SMALL.blocks(count), SMALL.chunks(count)) == (blocks, chunks)


def test_the_sum_of_nothing_is_0():
    assert sum_by_plan([]) == (0.0, 0.0)


def test_two_sum_is_exact():
    rng = np.random.default_rng(2)
    for a, b in rng.normal(size=(200, 2)) * 10.0 ** rng.integers(-20, 20, (200, 2)):
        total, error = two_sum(float(a), float(b))
        assert math.fsum([total, error, -a, -b]) == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 31, 32])
def test_a_narrower_tree_skips_only_zeros(count):
    width = first_width(32, count)
    assert width == 0 or width < count
    assert 2 * width >= min(count, 32) or (width == 0 and count == 1)
