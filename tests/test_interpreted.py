"""Same bits without a compiler (promises 1 and 2): the specification executed as Python gives the digests."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from gpubce.backends.cpu.launch import CpuEngine
from gpubce.spec.quantities import FIELDS, QUANTITIES
from gpubce.spec.recipe import LOGIT, PROBABILITY, Recipe
from tests import backends
from tests.cases import LOGIT_EDGES, PROBABILITY_EDGES, Case, Results, bits, differences, digest, run_case
from tests.interpreted import InterpretedEngine, formulas
from tests.matrix import Row, committed, matrix


def interpreted(case: Case) -> Results:
    with backends.replaced(InterpretedEngine, backends.SMALL_PLAN):
        return run_case(case)


@pytest.mark.parametrize("row", [row for row in matrix() if row.small], ids=lambda row: row.name)
def test_python_gives_the_digests(row: Row):
    expected = committed()[row.name]["small"].split()
    for case, known in zip(row.small, expected, strict=True):
        assert digest(interpreted(case)) == known, case


# Hard targets -------------------------------------------------------------------------------------------------------

ONE_SIDED = {
    "plain": {},
    "weight": {"weight": "float32"},
    "signed weight": {"weight": "float32", "signed": True},
    "factors": {"factors": True},
    "weight, factors": {"weight": "float64", "factors": True},
    "mask, ignored value": {"mask": "bool", "ignore": "value"},
    "ignored NaN, scaled": {"ignore": "nan", "scaled": True, "unit": True},
    "floor": {"floor": True},
    "floor, signed weight, factors": {"floor": True, "weight": "float32", "signed": True, "factors": True},
}
"""Recipes of which one side is enough where a target is 0 or 1."""


PREDICTIONS = {LOGIT: LOGIT_EDGES, PROBABILITY: (*PROBABILITY_EDGES, -0.0, -1.0, 1.5, 5e-324)}
WEIGHTS = (1.0, 0.0, 0.3, -2.0, -1e-40, np.inf, np.nan)
NUMBERS = {"negative_factor": 0.25, "positive_factor": 3.0, "log_cap": 100.0, "reciprocal_cap": 1e12}
OF_ONE_BRANCH = ("cross_entropy", "positive_entropy")


def samples(recipe: Recipe, targets, hard: bool = False):
    """The outputs, the fields and the quantities of every combination of prediction, target, weight and mask; but for
    what takes a branch where a target is neither 0 nor 1, which is then NaN as a whole."""
    number = np.dtype(recipe.compute).type
    weights = WEIGHTS if recipe.weight else (1.0,)
    random = np.random.default_rng(7).normal(scale=6.0, size=300)
    if recipe.space == PROBABILITY:
        random = 1.0 / (1.0 + np.exp(random))
    grid = np.array([*itertools.product((*PREDICTIONS[recipe.space], *random), targets, weights, (True, False))]).T
    with np.errstate(all="ignore"):
        z, y, w = number(grid[0]), grid[1].astype(recipe.target), grid[2].astype(recipe.weight or "float32")
        parameters, absent = [NUMBERS.get(name, 1.7) for name in recipe.parameters], np.True_
        outputs, fields, _ = formulas()["elements"].element(recipe, hard)(
            np.ones(z.shape, bool), (z, absent, y, w, grid[3] != 0, *[absent] * 3), number(parameters), 1
        )
        fields = [np.broadcast_to(values, z.shape) for values in fields]
        names = tuple(name for name in QUANTITIES if "difference" not in name)
        quantities = dict(zip(names, formulas()["quantities"].collector(names)(fields), strict=True))
    for name in OF_ONE_BRANCH:
        quantities[name] = np.where(np.isin(y, (0, 1)), quantities[name], np.nan)
    named = dict(zip(FIELDS, fields, strict=True))
    # Where a target is 0 or 1, nothing takes the other side's branch.
    del named["minus_log_p"], named["minus_log_q"]
    found = outputs, named.values(), quantities.values()
    return [np.broadcast_to(values, z.shape) for values in itertools.chain(*found)]


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("name", ONE_SIDED)
@pytest.mark.parametrize("space", [LOGIT, PROBABILITY])
def test_one_side_of_a_hard_target_is_what_both_give(space, name, real):
    """Bit for bit, signs of zeros too, for all edges and all weights, valid or not."""
    recipe = Recipe(space=space, compute=real, prediction=real, target=real, **ONE_SIDED[name])
    assert formulas()["elements"].one_sided(recipe)
    for one, both in zip(samples(recipe, (0, 1), hard=True), samples(recipe, (0, 1)), strict=True):
        assert np.array_equal(bits(one), bits(both))
    if recipe.ignore != "nan":
        # Integers have one side always, and may be invalid.
        integers = replace(recipe, target="int8")
        for one, both in zip(samples(integers, (0, 1, 2, -1)), samples(recipe, (0, 1, 2, -1)), strict=True):
            assert np.array_equal(bits(one), bits(both))


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [{}, {"space": PROBABILITY}, {"smoothing": True}, {"space": PROBABILITY, "bins": 32, "quantised": True}],
    ids=str,
)
def test_a_target_of_0_or_1_has_no_entropy(options, real):
    """Also where both sides count."""
    recipe = Recipe(compute=real, prediction=real, target=real, sums=("loss", "target_entropy"), **options)
    assert formulas()["elements"].may_be_hard(recipe)
    for one, both in zip(samples(recipe, (0, 1), hard=True), samples(recipe, (0, 1)), strict=True):
        assert np.array_equal(bits(one), bits(both))
    assert any(np.any(np.float32(values) == np.float32(0.6931472)) for values in samples(recipe, (0.5,)))


@pytest.mark.parametrize(
    "options",
    [
        *({name: True} for name in ("smoothing", "alpha", "gamma", "clip")),
        *({name: "float32"} for name in ("pos_weight", "label_weight", "baseline")),
        *({"space": PROBABILITY, "bins": 16}, {"target": None}, {"prediction": None}),
    ],
    ids=str,
)
def test_both_sides_are_computed_where_both_count(options):
    assert not formulas()["elements"].one_sided(Recipe(**options))


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("layout", ["C", "strided"])
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
def test_rows_of_soft_targets_behind_hard_ones_are_done_once_more(axis, layout, in_place):
    """A CPU takes a row's targets for 0 and 1 where the last row's were."""
    case = Case((("from_logits", True), ("axis", axis)), shape=(60, 9), layout=layout, edges="finite", hard=True)
    targets = case.arrays["targets"]
    for place in (100, 333, *range(400, 440)):
        targets[np.unravel_index(place, targets.shape)] = 0.3

    def results() -> Results:
        predictions = case.arrays["predictions"]
        where = predictions if in_place else None
        state = case.loss.state(predictions, targets, sums=("target_entropy", "cross_entropy"), bins=32)
        value, gradient = case.loss.value_and_grad(predictions, targets, grad_out=where)
        sums = {"state": state.values, "histogram": state.histogram}
        return {"value": np.asarray(value), "gradient": np.array(gradient), **sums}

    with backends.replaced(InterpretedEngine, backends.SMALL_PLAN):
        expected = results()
    with backends.replaced(CpuEngine, backends.SMALL_PLAN):
        assert differences(expected, results()) == []
