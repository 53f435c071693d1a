"""What calls ask the kernels for (promise 5): how many passes, what each reads, and which sums it makes. The passes are
executed as Python: which they are depends on no compiler."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

import gpubce
from gpubce import BinaryCrossEntropy, Evaluator, dispatch
from gpubce.backends import pipeline
from gpubce.errors import DtypeError, InvalidValueError, ShapeError
from gpubce.spec.bins import SPECIAL
from gpubce.spec.plan import PLAN
from gpubce.spec.recipe import Recipe
from tests.backends import replaced
from tests.interpreted import InterpretedEngine

LOGITS = np.linspace(-6.0, 6.0, 60, dtype=np.float32).reshape(12, 5)
P = np.linspace(0.01, 0.99, 60, dtype=np.float32).reshape(12, 5)
CLASSES = (np.arange(60).reshape(12, 5) % 3 == 0).astype(np.uint8)
SOFT = np.linspace(0.0, 1.0, 60, dtype=np.float32).reshape(12, 5)
WEIGHT = np.linspace(0.5, 2.0, 60, dtype=np.float32).reshape(12, 5)
MASK = np.arange(60).reshape(12, 5) % 4 != 0
BAD = np.where(CLASSES == 1, 3, 0).astype(np.int8)

logistic = BinaryCrossEntropy(from_logits=True)
plain = BinaryCrossEntropy()


@pytest.fixture(autouse=True)
def _as_python():
    with replaced(InterpretedEngine, PLAN):
        yield


@pytest.fixture
def passes(monkeypatch) -> list[Recipe]:
    """The recipe of every pass."""
    seen: list[Recipe] = []
    run = pipeline.run
    monkeypatch.setattr(pipeline, "run", lambda job, *rest: (seen.append(job.work.recipe), run(job, *rest))[1])
    monkeypatch.setattr(dispatch, "_again", lambda *call: None)
    return seen


def sums_of(passes: list[Recipe]) -> list[tuple[str, ...]]:
    return [recipe.sums for recipe in passes]


VALUES: dict[str, tuple[BinaryCrossEntropy, dict[str, Any], list[tuple[str, ...]]]] = {
    "mean": (logistic, {}, [("loss",)]),
    "mean of weighted elements": (logistic, {"weight": WEIGHT}, [("loss",)]),
    "mean of counted elements": (logistic, {"mask": MASK}, [("loss", "count")]),
    "by weights that are all 1": (replace(logistic, denominator="weights"), {}, [("loss",)]),
    "by weights": (replace(logistic, denominator="weights"), {"weight": WEIGHT}, [("loss", "weight")]),
    "by positives": (replace(logistic, denominator="positives"), {}, [("loss", "positives")]),
    "by rows": (replace(logistic, denominator="rows"), {"mask": MASK}, [("loss",)]),
    "sum": (replace(logistic, reduction="sum"), {"mask": MASK}, [("loss",)]),
    "each": (replace(logistic, reduction="none"), {}, [("loss",)]),
    "each, unchecked": (replace(logistic, reduction="none"), {"check": False}, [()]),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_one_pass_with_the_sums_that_it_needs(name, passes):
    loss, arguments, expected = VALUES[name]
    loss(LOGITS, CLASSES, **arguments)
    assert sums_of(passes) == expected


def test_a_gradient_is_of_the_same_pass_unless_its_scale_depends_on_data(passes):
    for loss, arguments in (
        (logistic, {}),
        (logistic, {"weight": WEIGHT}),
        (replace(logistic, denominator="rows"), {}),
    ):
        loss.value_and_grad(LOGITS, CLASSES, **arguments)
    assert len(passes) == 3
    passes.clear()
    by_positives = replace(logistic, denominator="positives")
    by_positives.value_and_grad(LOGITS, CLASSES)
    assert sums_of(passes) == [("positives",), ("loss", "positives")]
    assert [recipe.prediction for recipe in passes] == [None, "float32"], "the first reads the targets alone"


@pytest.mark.parametrize("check", [True, False])
def test_probabilities_that_are_overwritten_are_judged_first(passes, check):
    """Any other gradient takes one pass, wherever it is written."""
    for loss, predictions in ((logistic, LOGITS.copy()), (plain, P.copy())):
        loss.value_and_grad(predictions, CLASSES, grad_out=np.empty_like(predictions), check=check)
        loss.grad_and_hess(predictions, CLASSES, hess_out=np.empty_like(predictions), check=check)
        assert len(passes) == 2
        passes.clear()
        loss.value_and_grad(predictions, CLASSES, grad_out=predictions, check=check)
        judged = check and loss is plain
        assert sums_of(passes) == [("invalid",)] * judged + [("loss",)]
        passes.clear()


@pytest.mark.parametrize("from_logits", [True, False])
def test_all_metrics_are_one_pass_that_makes_no_sum_twice(passes, from_logits):
    """Of what unweighted classes need, other sums and the shape tell the rest."""
    evaluator, predictions = Evaluator(from_logits=from_logits, metrics="all"), LOGITS if from_logits else P
    evaluator.update(predictions, CLASSES)
    assert len(passes) == 1
    (made,) = sums_of(passes)
    assert len(set(made)) == len(made)
    assert not {"count", "weight", "invalid", "target_entropy"} & set(made)
    expected = evaluator.report()
    other = Evaluator(from_logits=from_logits, metrics="all", max_weight=1.0)
    other.update(predictions, CLASSES.astype(np.float32), weight=np.ones_like(LOGITS), mask=np.ones_like(MASK))
    assert {"count", "weight", "target_entropy"} <= set(sums_of(passes)[1])
    assert {name: getattr(other.report(), name) for name in ("loss", "normalized_entropy", "count", "invalid")} == {
        name: getattr(expected, name) for name in ("loss", "normalized_entropy", "count", "invalid")
    }


def test_weights_of_less_than_1_are_divided_by_too():
    """Positives are at least 1, weights are not."""
    by_weights = replace(logistic, denominator="weights", dtype="float64")
    expected = by_weights(LOGITS, CLASSES, weight=WEIGHT)
    assert by_weights(LOGITS, CLASSES, weight=WEIGHT / 1024) == pytest.approx(expected, rel=1e-12)
    by_positives = replace(logistic, denominator="positives", dtype="float64")
    total = replace(logistic, reduction="sum", dtype="float64")(LOGITS, CLASSES, weight=WEIGHT / 1024)
    assert by_positives(LOGITS, CLASSES, weight=WEIGHT / 1024) == total


@pytest.mark.parametrize(
    ("targets", "weight", "quantised"),
    [(CLASSES, None, False), (CLASSES, WEIGHT, True), (SOFT, None, True), (SOFT, WEIGHT, True)],
)
def test_histograms_count_unless_samples_are_parts_of_one(passes, targets, weight, quantised):
    Evaluator(from_logits=True, metrics=("roc_auc",), max_weight=2.0).update(LOGITS, targets, weight=weight)
    assert [recipe.quantised for recipe in passes] == [quantised]


@pytest.mark.parametrize("labels", [False, True])
def test_a_histogram_has_two_cells_for_each_bin(passes, labels):
    collection = replace(dispatch.NOTHING_MORE, bins=23)
    loss = replace(logistic, axis=0) if labels else logistic
    arguments = dispatch.Arguments(LOGITS, CLASSES)
    state = dispatch.state(loss._formula, loss._reduction, arguments, collection)
    assert state.histogram.shape == (*(5,) * labels, 23 + SPECIAL, 2)
    assert np.count_nonzero(state.histogram) > 10, "the samples are spread"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_element_may_have_a_scale(size):
    each, scale = replace(logistic, reduction="none"), np.arange(1.0, 1.0 + size, dtype=np.float32)
    logits, classes = LOGITS.ravel()[:size], CLASSES.ravel()[:size]
    _, gradient = each.value_and_grad(logits, classes, grad_scale=scale)
    assert np.array_equal(gradient, scale * each.value_and_grad(logits, classes)[1])


def test_sums_that_are_not_computed_are_right():
    state = logistic.state(LOGITS, CLASSES, sums=("count", "weight", "target_entropy", "positives"))
    assert [state.total(name) for name in ("count", "weight", "target_entropy", "invalid")] == [60, 60, 0, 0]
    assert state.total("positives") == CLASSES.sum()
    uncounted = logistic.state(LOGITS, CLASSES, mask=MASK, sums=("count", "target_entropy"))
    assert (uncounted.count, uncounted.total("target_entropy")) == (MASK.sum(), 0)
    soft = logistic.state(LOGITS, SOFT, sums=("target_entropy",))
    inner = SOFT.astype(np.float64).ravel()[1:-1]
    entropy = -(inner * np.log(inner) + (1 - inner) * np.log1p(-inner)).sum()
    assert soft.total("target_entropy") == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("loss", [logistic, plain], ids=["logits", "probabilities"])
@pytest.mark.parametrize("in_place", [False, True])
def test_invalid_elements_are_counted_beside_a_gradient(loss, in_place):
    """Also where it takes the place of the probabilities, which may be invalid themselves."""
    predictions = (LOGITS if loss is logistic else P).copy()
    expected = loss.state(predictions, BAD, check=False)
    each = replace(loss, reduction="none").grad_and_hess(predictions, BAD, check=False)[0]
    where = predictions if in_place else np.empty_like(predictions)
    arguments = dispatch.Arguments(predictions, BAD, check=False)
    state = dispatch.state(loss._formula, loss._reduction, arguments, dispatch.NOTHING_MORE, where)
    assert state.invalid == expected.invalid == (BAD == 3).sum()
    assert np.array_equal(where, each, equal_nan=True)


def test_invalid_elements_are_refused_along_axes_too():
    for axis in (0, 1):
        loss = replace(plain, axis=axis)
        assert not np.isnan(loss(P, CLASSES)).any()
        with pytest.raises(InvalidValueError, match="3"):
            loss(P, BAD)
        hole = P.copy()
        hole[3, 2] = np.nan
        assert np.isnan(loss(hole, CLASSES)).sum() == 1


def test_signed_weights_are_finite():
    """Those of the adapters that stand in for PyTorch's, which may be negative."""
    weight = np.array([-1.5, 0.0, 2.0, np.inf, -np.inf, np.nan], np.float32)
    predictions, targets = np.full(6, 0.25, np.float32), np.ones(6, np.uint8)
    each = replace(plain, reduction="none")
    for signed, valid in ((True, 3), (False, 2)):
        arguments = dispatch.Arguments(predictions, targets, weight, check=False, signed=signed)
        losses = dispatch.value(each._formula, each._reduction, arguments, None)
        expected = -np.log(0.25) * weight[3 - valid : 3]
        np.testing.assert_allclose(losses[3 - valid : 3], expected, rtol=1e-6)
        assert np.isnan(losses).sum() == 6 - valid
        state = dispatch.state(plain._formula, plain._reduction, arguments, dispatch.NOTHING_MORE)
        assert state.invalid == 6 - valid


@pytest.mark.parametrize("probability", [0.001, 0.2, 0.5, 0.731, 0.999])
def test_a_threshold_of_logits_is_that_of_their_probabilities(probability):
    def counted(loss, predictions) -> float:
        return loss.state(predictions, CLASSES, sums=("predicted",), threshold=probability).total("predicted")

    boundary = np.log(probability / (1 - probability))
    logits = (boundary + np.linspace(-0.5, 0.5, 60).reshape(12, 5)).astype(np.float64)
    assert counted(logistic, logits) == 30
    assert counted(plain, 1 / (1 + np.exp(-logits))) == 30


def test_errors_name_the_output_that_is_wrong():
    for name in ("grad_out", "hess_out"):
        with pytest.raises(ShapeError, match=name):
            logistic.grad_and_hess(LOGITS, CLASSES, **{name: np.empty(3, np.float32)})
        with pytest.raises(DtypeError, match=name):
            logistic.grad_and_hess(LOGITS, CLASSES, **{name: np.empty(LOGITS.shape)})


@pytest.mark.parametrize("thing", [gpubce.devices(), logistic._formula, dispatch.NOTHING_MORE], ids=str)
def test_what_calls_are_remembered_by_does_not_change(thing):
    with pytest.raises(FrozenInstanceError):
        setattr(thing, next(iter(vars(thing))), None)
