"""Same bits from every backend (promise 2): a covering array of the options, for every type of input."""

import numpy as np
import pytest

from gpubce.spec.plan import PLAN, Plan
from tests import backends
from tests.cases import INPUT_TYPES, METHODS, TARGET_TYPES, Case, differences
from tests.pairwise import covering_rows

FACTORS = {
    "reduction": [
        {"reduction": "none"},
        {"reduction": "sum"},
        {"reduction": "mean"},
        {"denominator": "weights"},
        {"denominator": "positives"},
    ],
    "target": ["bool", "int64", "float32", "float64"],
    "method": list(METHODS),
    "space": [
        {"from_logits": True},
        {},
        {"log_floor": None},
        {"eps": 1e-3},
    ],
    "axis": [{}, {"axis": 0}, {"axis": -1}],
    "weight": [None, "float32", "row", "column"],
    "mask": [None, "full", "row"],
    "pos_weight": [{}, {"pos_weight": 2.5}, {"pos_weight": tuple(0.5 + 0.25 * k for k in range(13))}],
    "label_weight": [{}, {"label_weight": 0.7}, {"label_weight": tuple(0.1 * k for k in range(13))}],
    "class_weight": [{}, {"class_weight": (0.3, 1.7)}],
    "smoothing": [{}, {"label_smoothing": 0.1}],
    "focal": [{}, {"gamma": 2.0}, {"gamma": 0.5, "alpha": 0.25}, {"alpha": 0.75}],
    "ignore": [{}, {"ignore_index": 0}, {"ignore_index": 1}],
    "base": [{}, {"base": 2.0}],
    "layout": ["C", "strided", "unaligned"],
}
"""The values of each factor; dictionaries are options."""


def covering_array(input_type: str) -> list[Case]:
    """Cases in which every pair of values of two factors occurs."""
    cases = []
    for row in covering_rows([len(values) for values in FACTORS.values()]):
        chosen = {name: values[k] for (name, values), k in zip(FACTORS.items(), row, strict=True)}
        options: dict = {}
        for value in chosen.values():
            if isinstance(value, dict):
                options.update(value)
        if options.get("reduction") == "none":
            options.pop("axis", None)
        if chosen["method"] == "state" and options.get("reduction") == "none":
            chosen["method"] = "value"
        cases.append(
            Case(
                tuple(sorted(options.items())),
                input_type,
                chosen["target"],
                weight=chosen["weight"],
                mask=chosen["mask"],
                layout=chosen["layout"],
                seed=len(cases),
                methods=(chosen["method"],),
            )
        )
    return cases


COVERING = [case for input_type in INPUT_TYPES for case in covering_array(input_type)]


def identify(case: Case) -> str:
    return f"{case.input_type}-{case.seed}"


def assert_all_agree(case: Case) -> None:
    """One thread, two threads, the compiled PTX and the simulator, on the shrunken plan."""
    expected = backends.cpu(case, backends.SMALL_PLAN, threads=1)
    assert differences(expected, backends.cpu(case, backends.SMALL_PLAN, threads=2)) == []
    assert differences(expected, backends.ptx(case)) == []
    assert differences(expected, backends.simulator(case)) == []


@pytest.mark.emulated
@pytest.mark.parametrize("case", COVERING, ids=identify)
def test_backends_agree(case):
    assert_all_agree(case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", COVERING, ids=identify)
def test_gpu_agrees(case):
    assert differences(backends.cpu(case), backends.gpu(case)) == []


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


MORE = [
    Case((("denominator", "rows"), ("from_logits", True)), methods=METHODS),
    Case((("axis", (0, 2)), ("denominator", "rows"), ("from_logits", True)), shape=(3, 5, 4), methods=METHODS),
    Case((("from_logits", True), ("log_floor", -5.0)), "float64", "uint8", layout="F", methods=METHODS),
    Case((("from_logits", True), ("ignore_index", float("nan"))), "float16", "float16", methods=METHODS),
    Case((("axis", 1), ("label_axis", 1), ("pos_weight", (1.0, 2.0, 3.0))), shape=(2, 3, 2, 5), layout="reversed"),
    Case((("from_logits", True),), shape=(3, 2, 2, 3, 2), weight="column", layout="strided"),
    Case((("from_logits", True),), shape=(0, 4), edges=False, methods=METHODS),
    Case((("axis", 0), ("from_logits", True)), shape=(0, 4), edges=False, methods=METHODS),
    Case((("axis", 0), ("from_logits", True)), "bfloat16", "uint64", shape=(70, 3), methods=METHODS),
]
"""What the factors leave out: rows, several axes, floors of logits, NaN as the ignored value, many axes, nothing."""


@pytest.mark.emulated
@pytest.mark.parametrize("case", MORE, ids=lambda case: f"{case.input_type}-{case.shape}-{len(case.options)}")
def test_backends_agree_on_more(case):
    assert_all_agree(case)


FULL = [
    Case((("from_logits", True),), "float32", "uint8", shape=(20_011,), methods=("value_and_grad",)),
    Case((("from_logits", True),), "float64", "float32", shape=(9_000,), methods=("value",)),
    Case((), "bfloat16", "bool", shape=(16_384,), methods=("value",)),
    Case((("from_logits", True), ("axis", 0)), "float16", "bool", shape=(1_000, 13), methods=("value_and_grad",)),
]


@pytest.mark.emulated
@pytest.mark.parametrize("case", FULL, ids=lambda case: f"{case.input_type}-{case.shape}")
def test_ptx_agrees_on_the_full_plan(case):
    assert differences(backends.cpu(case, PLAN, threads=1), backends.cpu(case, PLAN, threads=3)) == []
    assert differences(backends.cpu(case, PLAN), backends.ptx(case, PLAN)) == []


SMALL_EDGES = [0, 1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129, 64 * 64, 64 * 64 + 1]
"""Sizes on both sides of a vector load, a row of lanes (32), a block (64) and a block of blocks."""


@pytest.mark.emulated
@pytest.mark.parametrize("size", SMALL_EDGES)
def test_backends_agree_at_every_edge_of_the_plan(size):
    for layout in ("C", "unaligned"):
        case = Case((("from_logits", True),), shape=(size,), layout=layout, methods=("value_and_grad",))
        expected = backends.cpu(case, backends.SMALL_PLAN)
        assert differences(expected, backends.ptx(case)) == []


def test_the_array_covers_every_pair():
    rows = covering_rows([3, 2, 4, 2])
    for one, two in ((0, 1), (0, 2), (1, 3), (2, 3)):
        assert len({(row[one], row[two]) for row in rows}) == [3, 2, 4, 2][one] * [3, 2, 4, 2][two]


@pytest.mark.parametrize("plan", [Plan(32, 2, 8), Plan(64, 1, 3)], ids=str)
def test_strides_do_not_change_a_bit(plan):
    for axis in (None, 0, -1, (0, 2)):
        options = (("from_logits", True), ("axis", axis))
        results = [
            backends.cpu(Case(options, shape=(9, 5, 14), layout=layout), plan)
            for layout in ("C", "F", "strided", "reversed", "unaligned")
        ]
        for other in results[1:]:
            assert differences(results[0], other) == []


def test_the_comparison_sees_one_bit():
    one = {"value": np.float32([1.0, np.nan])}
    assert differences(one, {"value": np.float32([1.0, -np.nan])}) == []
    assert differences(one, {"value": np.nextafter(np.float32([1.0, np.nan]), np.float32(2))}) != []
    assert differences(one, {"value": np.float64([1.0, np.nan])}) != []
