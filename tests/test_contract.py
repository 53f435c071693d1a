"""Same bits from every backend (promise 2): the everyday rows of the matrix, and what the matrix rests on."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gpubce.spec.plan import Plan
from tests import backends
from tests.cases import INPUT_TYPES, TARGET_TYPES, Case, differences
from tests.matrix import FULL, Row, matrix, named, problems
from tests.pairwise import covering_rows

EVERYDAY = [row for row in matrix() if row.everyday]
MORE_THAN_CORES = (os.cpu_count() or 1) + 3
SIMULATED = {row.name for row in EVERYDAY[::8]}
"""The simulator compiles every kernel once more and takes as long as all the rest; ci/exhaustive simulates all rows."""


@pytest.mark.emulated
@pytest.mark.parametrize("row", EVERYDAY, ids=lambda row: row.name)
def test_backends_agree(row: Row):
    """Any number of threads, the compiled PTX and by turns the simulator, on the small plan."""
    for threads in (1, 2, MORE_THAN_CORES):
        assert problems(row, "small", partial(backends.cpu, threads=threads)) == []
    ptx = partial(backends.ptx, compute_capability=row.compute_capability)
    assert problems(row, "small", ptx, row.interpreted) == []
    if row.name in SIMULATED:
        assert problems(row, "small", backends.simulator, row.simulated) == []


@pytest.mark.emulated
@pytest.mark.parametrize("name", [f"full-{k}" for k in range(len(FULL))])
def test_ptx_agrees_on_the_full_plan(name):
    for threads in (1, 3):
        assert problems(named(name), "full", partial(backends.cpu, threads=threads)) == []
    assert problems(named(name), "full", backends.ptx) == []


@pytest.mark.parametrize("target_type", TARGET_TYPES)
@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_targets_of_every_type_are_read(input_type, target_type):
    """A target means the same number whatever holds it."""
    options = (("from_logits", True), ("reduction", "none"))
    case = Case(options, input_type, target_type, seed=3)
    arrays = case.arrays
    as_float64 = {**arrays, "targets": arrays["targets"].astype(np.float64)}
    one = {"loss": case.loss(**arrays)}
    two = {"loss": case.loss(**as_float64)}
    assert differences(one, two) == []


ONE_SIDED = {
    "loss": ({"reduction": "none"}, {}),
    "weights": ({"reduction": "none", "pos_weight": 3.0}, {"weight": "float32"}),
    "ignored": ({"reduction": "sum", "ignore_index": 0}, {"mask": "full"}),
    "each label": ({"axis": 0}, {}),
    "probabilities": ({"from_logits": False, "reduction": "none"}, {"weight": "float32"}),
    "probabilities, each label": ({"from_logits": False, "axis": 0}, {}),
}
"""What is computed of one side where a target is 0 or 1: (options, arrays)."""


@pytest.mark.emulated
@pytest.mark.parametrize("name", ONE_SIDED)
def test_the_other_side_of_a_hard_target_is_not_missed(name):
    """Integers have it left out everywhere; of floating-point targets, those of a CUDA thread that are all 0 or 1."""
    options, others = ONE_SIDED[name]
    case = Case(tuple({"from_logits": True, **options}.items()), shape=(9, 29), hard=True, **others)
    expected = backends.cpu(case, backends.SMALL_PLAN)
    assert differences(expected, backends.ptx(case)) == []
    integers = replace(case, target_type="uint8")
    assert differences(expected, backends.cpu(integers, backends.SMALL_PLAN)) == []
    assert differences(expected, backends.ptx(integers)) == []


def test_the_array_covers_every_pair():
    sizes, first_sizes = [3, 5, 4, 2], [3, 2, 4, 2]
    first = covering_rows(first_sizes)
    rows = covering_rows(sizes, first)
    assert rows[: len(first)] == first
    for one in range(4):
        for two in range(one):
            assert len({(row[one], row[two]) for row in first}) == first_sizes[one] * first_sizes[two]
            assert len({(row[one], row[two]) for row in rows}) == sizes[one] * sizes[two]


@pytest.mark.parametrize("plan", [Plan(32, 2, 8), pytest.param(Plan(64, 1, 3), marks=pytest.mark.exhaustive)], ids=str)
def test_strides_do_not_change_a_bit(plan):
    for axis in (None, 0, -1, (0, 2)):
        options = (("from_logits", True), ("axis", axis))
        results = [
            backends.cpu(Case(options, shape=(9, 5, 14), layout=layout, edges="finite"), plan)
            for layout in ("C", "F", "strided", "reversed", "unaligned")
        ]
        for other in results[1:]:
            assert differences(results[0], other) == []


def test_the_comparison_sees_one_bit():
    one = {"value": np.float32([1.0, np.nan])}
    assert differences(one, {"value": np.float32([1.0, -np.nan])}) == []
    assert differences(one, {"value": np.nextafter(np.float32([1.0, np.nan]), np.float32(2))}) != []
    assert differences(one, {"value": np.float64([1.0, np.nan])}) != []
