"""Strided arrays on a CPU: pieces of them are brought into scratch, by tiles, and what is written goes back the same
way. Wherever the elements lie, a call gives the same bits and writes nothing else."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

import gpubce
from gpubce import dispatch
from gpubce.backends.kernel_key import FEW_OUTPUTS, PIECE, ROWS, KernelKey, Scratch
from gpubce.spec.geometry import FLAT, STRIDED
from gpubce.spec.plan import PLAN, Plan
from gpubce.spec.primitives import TURNED
from gpubce.spec.quantities import QUANTITIES
from gpubce.spec.recipe import Recipe
from tests import backends
from tests.cases import bits, dtype

SHAPES = {
    (3, 37, 53): (None, (0, 2)),
    (9, 8, 1100): (None, 1),
    (70, 1, 300): (0,),
    (5, 61, 3): (None, (0, 1)),
    (3, 4, 500): (None, 1),
}
"""Tiles with and without edges, rows longer than one of lanes, an axis that is no axis, and rows and columns narrower
than a tile; with axes to reduce."""


def drawn(shape, name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(shape))
    return rng.normal(size=shape).astype(np.float32).astype(dtype(name)), rng.random(shape) < 0.3


def placed(values: np.ndarray, order: tuple[int, ...], gap: int = 1) -> np.ndarray:
    """The same values, whose axes lie in memory in that order, ``gap`` elements apart."""
    lengths = [values.shape[axis] for axis in order]
    room = np.zeros((*lengths[:-1], lengths[-1] * gap), values.dtype)
    view = room[..., ::gap].transpose(np.argsort(order))
    view[...] = values
    return view


def same(one, other) -> bool:
    return all(np.array_equal(bits(np.asarray(a)), bits(np.asarray(b))) for a, b in zip(one, other, strict=True))


def results(loss, x, y, threads: int, grad_out):
    with backends.replaced(lambda: backends.CpuEngine(threads), PLAN):
        return loss.value_and_grad(x, y, grad_out=grad_out)


@pytest.mark.parametrize(("shape", "axis"), [(shape, axis) for shape in SHAPES for axis in SHAPES[shape]], ids=str)
def test_every_order_of_axes_gives_the_same_bits(shape, axis):
    loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction="sum", axis=axis)
    x, y = drawn(shape, "float32")
    room = np.empty_like(x)
    expected = results(loss, x, y, 1, grad_out=room)
    for order in permutations(range(3)):
        there = placed(np.zeros_like(x), order[::-1])
        found = results(loss, placed(x, order), placed(y, order), 2, grad_out=there)
        assert same(found, expected), order
    assert same([there], [room])


@pytest.mark.parametrize(("name", "axis"), [("float16", None), ("float16", 0), ("float64", 0)])
def test_elements_of_every_size(name, axis):
    loss = gpubce.BinaryCrossEntropy(from_logits=True, axis=axis)
    for shape in (67, 41), (67, 3), (3, 67):
        x, y = drawn(shape, name)
        expected = results(loss, x, y, 1, grad_out=np.empty_like(x))
        there = placed(np.zeros_like(x), (1, 0))
        assert same(results(loss, placed(x, (1, 0)), placed(y, (1, 0)), 1, grad_out=there), expected)


@pytest.mark.parametrize("axis", [None, 1])
def test_gaps_are_left_alone(axis):
    """Outputs with neighbours that are not theirs, along rows and along columns."""
    loss = gpubce.BinaryCrossEntropy(from_logits=True, axis=axis)
    x, y = drawn((67, 41), "float32")
    _, expected = results(loss, x, y, 1, grad_out=np.empty_like(x))
    for order in ((0, 1), (1, 0)):
        there = placed(np.zeros_like(x), order, gap=3)
        results(loss, x, y, 1, grad_out=there)
        assert same([there], [expected])
        memory = there if there.base is None else there.base
        assert np.count_nonzero(memory) == np.count_nonzero(expected)


@pytest.mark.parametrize("axis", [None, 0])
def test_a_gradient_in_place_of_transposed_predictions(axis):
    loss = gpubce.BinaryCrossEntropy(from_logits=True, axis=axis)
    x, y = drawn((67, 41), "float32")
    expected = results(loss, x, y, 1, grad_out=np.empty_like(x))
    place = placed(x, (1, 0))
    assert same(results(loss, place, placed(y, (1, 0)), 1, grad_out=place), expected)


def sums_of_a_loss(x, y, w) -> np.ndarray:
    """With the losses, for which another kernel makes fewer sums."""
    loss = gpubce.BinaryCrossEntropy(from_logits=True, axis=0, denominator="weights")
    return np.concatenate(
        [loss.state(x, y, weight=w).values, np.broadcast_to(loss(x, y, weight=w), (1, 2, x.shape[1]))]
    )


def sums_of_all_metrics(x, y, w) -> np.ndarray:
    """With what the histogram says."""
    evaluator = gpubce.Evaluator(from_logits=True, per_label=True, metrics="all", bins=32, max_weight=8.0)
    evaluator.update(x, y, weight=w)
    (update,) = evaluator.state_dict()["updates"]
    areas = np.array([label.roc_auc for label in evaluator.report().labels])
    return np.concatenate([update["state"]["values"], np.broadcast_to(areas, (1, 2, *areas.shape))])


@pytest.mark.parametrize(
    ("outputs", "name", "sums_of"),
    [
        (1, "float32", sums_of_a_loss),
        (3, "float32", sums_of_a_loss),
        (FEW_OUTPUTS, "float32", sums_of_a_loss),
        (3, "float64", sums_of_a_loss),
        (3, "float32", sums_of_all_metrics),
    ],
)
def test_few_labels_are_added_as_many_are(outputs, name, sums_of):
    """Runs are the lanes where labels are few; beside others, labels are. One run less, one more, and a part of one."""
    plan = Plan(32, 2, 8)
    for runs in (TURNED - 1, TURNED, 3 * TURNED + 2):
        for more in (-1, 0, 1):
            x, y = drawn((plan.chunk * runs + more, TURNED + 1), name)
            w = np.abs(drawn((len(x), 1), name)[0])
            with backends.replaced(lambda: backends.CpuEngine(2), plan):
                few = sums_of(*(np.ascontiguousarray(each[:, :outputs]) for each in (x, y)), w)
                assert same(few, sums_of(x, y, w)[..., :outputs]), (runs, more)
                turned = sums_of(*(placed(each[:, :outputs], (1, 0)) for each in (x, y)), w)
                assert same(turned, few), (runs, more)


def key_of(*layouts: str, **options) -> KernelKey:
    return KernelKey(Recipe(sums=("loss",), **options), layouts, 2)


def test_a_line_of_memory_is_brought_once():
    """Of a transposed array, so many rows at once as fill a line; of others a row of lanes."""
    transposed, sliced, repeated = ((50, 1000, 4, 200), (50, 1000, 8000, 4), (50, 1000, 0, 4))
    for geometry, room in ((transposed, ROWS * 1000), (sliced, PLAN.lanes), (repeated, PLAN.lanes)):
        found = key_of(STRIDED, FLAT).room(geometry)
        assert room <= found < room + PLAN.block
    assert key_of(STRIDED, FLAT).room((50, 10**9, 4, 200)) == PIECE


def test_tiles_of_distant_outputs_are_narrow():
    assert key_of(STRIDED, STRIDED).tile((1000, 50, 4, 4000, 4, 4000)) < PLAN.lanes
    assert key_of(STRIDED, STRIDED).tile((1000, 50, 8000, 4, 8000, 4)) == PLAN.lanes
    assert key_of(FLAT, FLAT).tile((0,)) == PLAN.lanes


@pytest.mark.parametrize(
    ("reduced", "outputs", "tile", "sums", "plan", "few"),
    [
        (8 * 256, 3, 3, 1, PLAN, True),
        (8 * 256, FEW_OUTPUTS, 1024, 15, PLAN, True),
        (8 * 256 - 1, 3, 3, 1, PLAN, False),
        (8 * 256, FEW_OUTPUTS + 1, 1024, 1, PLAN, False),
        (8 * 256, 3, 2, 1, PLAN, False),
        (8 * 256, 0, 1024, 1, PLAN, False),
        (8 * 256, 3, 3, 0, PLAN, False),
        (8 * 256, 3, 3, 1, Plan(64, 1, 3), False),
        (8 * 256, 4, 4, 1, Plan(64, 1, 6), True),
    ],
)
def test_runs_are_added_side_by_side_where_outputs_are_few(reduced, outputs, tile, sums, plan, few):
    """And where there are as many runs, which fill tiles: for small arrays nobody waits for that kernel."""
    key = KernelKey(Recipe(sums=("loss",) * sums), (FLAT, FLAT), plan=plan)
    found = key.along(reduced, outputs, tile)
    assert found == replace(key, few=few)
    assert found is key.along(reduced, outputs, tile)


def test_scratch_has_room_for_all_of_it():
    """Nothing overlaps: what follows begins behind what was before."""
    recipe = Recipe(weight="float64", bins=64, quantised=True, sums=("loss", "weight"), outputs=())
    for along_axes, few in ((False, False), (True, False), (True, True)):
        memory = Scratch(KernelKey(recipe, (STRIDED, FLAT, STRIDED), 2, few=few), along_axes)
        assert memory.kept >= 2 * 2 * memory.row
        assert memory.placed >= memory.kept + 2 * memory.field
        assert memory.turned >= memory.placed + 3 * memory.row
        assert memory.placed % 8 == memory.row % 8 == 0  # As loads of int64 are told.
        assert memory.field >= 4 * memory.steps * PLAN.lanes
        if few:
            assert memory.field >= 4 * TURNED * PLAN.chunk * FEW_OUTPUTS
            assert memory.pairs >= memory.turned + 2 * memory.turned_field
            assert memory.turned_field >= 4 * TURNED * TURNED
            assert memory.part >= 8 * TURNED * FEW_OUTPUTS
        assert memory.pieces >= (memory.pairs + 2 * 2 * memory.part if few else memory.turned)
        assert memory.pieces % 64 == 0
        assert 8 * memory.cells(100) >= memory.pieces + (4 + 8) * 100


@pytest.mark.parametrize("sums", [1, 12])
def test_many_sums_and_a_transposed_gradient(sums):
    """Lanes are taken in strips then: the end of a row is not the end of a block."""
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    x, y = drawn((667, 41), "float32")
    collection = replace(dispatch.NOTHING_MORE, sums=tuple(QUANTITIES)[:sums], threshold=0.5)
    found = []
    for order in ((0, 1), (1, 0)):
        there = placed(np.zeros_like(x), order)
        with backends.replaced(lambda: backends.CpuEngine(1), PLAN):
            state = dispatch.state(loss._formula, loss._reduction, dispatch.Arguments(x, y), collection, there)
        found.append((state.values, there))
    assert same(*found)
