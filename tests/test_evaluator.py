"""The figures of a report against their definitions, and the laws of collecting them."""

import json
import math
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubce import BinaryCrossEntropy, Evaluator, Report
from gpubce.errors import GpubceError, InvalidValueError, OptionError, ShapeError, StateError

FIGURES = (
    "loss",
    "loss_bits",
    "normalized_entropy",
    "base_rate",
    "mean_prediction",
    "calibration_ratio",
    "brier_score",
)

SUMS_AGREE = 1e-13
"""NumPy's own float64 logarithms, sums and quotients over a few hundred elements."""

ORDER_AGREES = 1e-15
"""Pairs of float64 make every sum exact to its last place; a figure divides a few times after that."""


def batch(size=(300,), soft=False, seed=0):
    """(logits, targets, weight, mask) with all weights positive and both classes in each column."""
    rng = np.random.default_rng(seed)
    targets = rng.random(size) if soft else (rng.random(size) < 0.3).astype(np.float64)
    return rng.normal(-1.0, 2.0, size), targets, 0.1 + rng.random(size), rng.random(size) < 0.8


def figures(logits, targets, weight=1.0):
    """The definitions, in NumPy."""
    p = 1.0 / (1.0 + np.exp(-logits))
    w = np.broadcast_to(weight, p.shape)
    loss = np.average(-targets * np.log(p) - (1 - targets) * np.log1p(-p), weights=w)
    rate = np.average(targets, weights=w)
    return {
        "loss": loss,
        "loss_bits": loss / math.log(2),
        "normalized_entropy": loss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)),
        "base_rate": rate,
        "mean_prediction": np.average(p, weights=w),
        "calibration_ratio": np.sum(w * p) / np.sum(w * targets),
        "brier_score": np.average((p - targets) ** 2, weights=w),
        "weight": np.sum(w),
        "count": p.size,
        "invalid": 0,
    }


def seen(*batches, **options) -> Evaluator:
    """An evaluator that has seen batches of (logits, targets[, weight])."""
    evaluator = Evaluator(from_logits=True, **options)
    for logits, targets, *weight in batches:
        evaluator.update(logits, targets, weight=weight[0] if weight else None)
    return evaluator


def agree(report: Report, expected: dict, relative: float):
    found = report.as_dict()
    found.pop("labels", None)
    assert found == pytest.approx(expected, rel=relative, abs=0, nan_ok=True)


@pytest.mark.parametrize("soft", [False, True])
def test_figures_are_their_definitions(soft):
    logits, targets, weight, mask = batch(soft=soft)
    agree(seen((logits, targets)).report(), figures(logits, targets), SUMS_AGREE)
    agree(seen((logits, targets, weight)).report(), figures(logits, targets, weight), SUMS_AGREE)
    evaluator = Evaluator(from_logits=True)
    evaluator.update(logits, targets, weight=weight, mask=mask)
    agree(evaluator.report(), figures(logits[mask], targets[mask], weight[mask]), SUMS_AGREE)


def test_probabilities_give_the_figures_of_logits():
    logits, targets, weight, _ = batch()
    evaluator = Evaluator(log_floor=None)
    evaluator.update(1.0 / (1.0 + np.exp(-logits)), targets, weight=weight)
    agree(evaluator.report(), figures(logits, targets, weight), SUMS_AGREE)


def test_the_other_figures_are_plain_whatever_the_options():
    logits, targets, weight, _ = batch()
    options = {"gamma": 2.0, "alpha": 0.25, "pos_weight": 3.0, "label_smoothing": 0.1}
    expected = figures(logits, targets, weight)
    each = BinaryCrossEntropy(from_logits=True, reduction="none", **options)
    expected["loss"] = np.sum(each(logits, targets, weight=weight)) / np.sum(weight)
    expected["loss_bits"] = expected["loss"] / math.log(2)
    agree(seen((logits, targets, weight), **options).report(), expected, SUMS_AGREE)


@pytest.mark.parametrize("axis", [0, 1])
def test_each_label_is_reported(axis):
    logits, targets, weight, _ = batch((60, 3))
    given = [np.moveaxis(array, -1, axis) for array in (logits, targets, weight)]
    report = seen(given, per_label=True, label_axis=axis).report()
    agree(report, figures(logits, targets, weight), SUMS_AGREE)
    for k in range(3):
        agree(report.labels[k], figures(logits[:, k], targets[:, k], weight[:, k]), SUMS_AGREE)
    assert len(report.as_dict()["labels"]) == 3
    assert len(str(report).splitlines()) == len(list(report.rows())) + 2 + 3


def test_label_weights_multiply_weights():
    logits, targets, weight, _ = batch((60, 3))
    factors = (0.5, 2.0, 1.0)
    report = seen((logits, targets, weight), label_weight=factors).report()
    agree(report, figures(logits, targets, weight * factors), SUMS_AGREE)


def test_scikit_learn_agrees():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the peer here")
    logits, targets, weight, _ = batch()
    p = 1.0 / (1.0 + np.exp(-logits))
    for w in (None, weight):
        evaluator = Evaluator()
        evaluator.update(p, targets, weight=w)
        report = evaluator.report()
        assert report.loss == pytest.approx(metrics.log_loss(targets, p, sample_weight=w), rel=1e-12)
        assert report.brier_score == pytest.approx(metrics.brier_score_loss(targets, p, sample_weight=w), rel=1e-12)


# Laws ---------------------------------------------------------------------------------------------------------------

WHOLE = batch()[:3]


@cache
def whole_figures() -> dict:
    return seen(WHOLE).report().as_dict()


def pieces(cuts):
    edges = [0, *sorted(cuts), 300]
    return [tuple(array[a:b] for array in WHOLE) for a, b in pairwise(edges)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=6), st.randoms(use_true_random=False))
def test_neither_splitting_nor_order_shows(cuts, random):
    parts = pieces(cuts)
    random.shuffle(parts)
    agree(seen(*parts).report(), whole_figures(), ORDER_AGREES)
    workers = [seen(part) for part in parts]
    while len(workers) > 1:  # Any tree of merges.
        one = workers.pop(random.randrange(len(workers)))
        workers[random.randrange(len(workers))].merge(one)
    agree(workers[0].report(), whole_figures(), ORDER_AGREES)
    first, *others = [seen(part) for part in parts]
    assert first.merge(Evaluator(from_logits=True), *others) is first
    agree(first.report(), whole_figures(), ORDER_AGREES)


@pytest.mark.parametrize("options", [{}, {"per_label": True}])
def test_a_saved_state_goes_through_json(options):
    infinite = (np.float64([[np.inf, 1.0]]), np.float64([[0, 1]]))
    for batches in ([], [batch((60, 2))[:2]], [batch((60, 2))[:2], infinite]):
        evaluator, other = seen(*batches, **options), seen(infinite, **options)
        other.load_state_dict(json.loads(json.dumps(evaluator.state_dict())))
        assert other.report() == evaluator.report() or not batches
        assert str(other.report()) == str(evaluator.report())
        for one in (evaluator, other):
            one.update(*batch((60, 2), seed=1)[:2])
        assert other.state_dict() == evaluator.state_dict() or batches[1:]  # NaN is not equal to itself.
        assert str(other.report()) == str(evaluator.report())


def test_reset_forgets():
    evaluator = seen(WHOLE)
    evaluator.reset()
    assert str(evaluator.report()) == str(Evaluator(from_logits=True).report())
    evaluator.update(*WHOLE[:2], weight=WHOLE[2])
    assert evaluator.report().as_dict() == whole_figures()


def test_a_batch_that_raises_is_not_added():
    evaluator = seen(WHOLE)
    with pytest.raises(InvalidValueError):
        evaluator.update([0.0], [7])
    assert evaluator.report().as_dict() == whole_figures()


# Edges --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [[], [([], [])], [([1.0], [-1])]], ids=["no batch", "empty batch", "ignored"])
def test_nothing_seen_is_nan(batches):
    report = seen(*batches, ignore_index=-1).report()
    assert all(math.isnan(getattr(report, name)) for name in FIGURES)
    assert (report.weight, report.count, report.invalid) == (0.0, 0, 0)


def test_one_class_has_no_entropy_to_compare_with():
    assert seen(([2.0, -1.0], [1, 1])).report().normalized_entropy == math.inf
    assert seen(([2.0, -1.0], [0, 0])).report().calibration_ratio == math.inf
    perfect = seen(([math.inf, math.inf], [1, 1])).report()
    assert math.isnan(perfect.normalized_entropy)
    assert (perfect.loss, perfect.calibration_ratio, perfect.brier_score) == (0.0, 1.0, 0.0)


def test_certain_predictions_that_are_right_add_nothing():
    """Not 0 times the infinite logarithm of the other class."""
    report = seen(([math.inf, -math.inf, 0.0, 0.0], [1, 0, 1, 0])).report()
    assert report.normalized_entropy == pytest.approx(0.5, rel=SUMS_AGREE)
    assert report.brier_score == 0.125


def test_invalid_elements_are_counted_and_make_the_figures_nan():
    evaluator = Evaluator(from_logits=True)
    evaluator.update([0.5, -1.0, 2.0], [1.0, 7.0, -1.0], check=False)
    report = evaluator.report()
    assert (report.count, report.invalid) == (3, 2)
    assert {name: getattr(report, name) for name in FIGURES} == pytest.approx(
        dict.fromkeys(FIGURES, math.nan), nan_ok=True
    )
    assert "invalid elements" in str(report)


REFUSED = [
    (lambda: Evaluator(reduction="sum"), OptionError, "reduction", "Evaluator"),
    (lambda: Evaluator(axis=0), OptionError, "axis"),
    (lambda: Evaluator(base=2), OptionError, "base", "bits"),
    (lambda: Evaluator(gama=2.0), OptionError, "'gama'", "gamma", "per_label"),
    (lambda: seen(([0.0], [1]), per_label=True), OptionError, "per_label=True", "two axes", "has 1"),
    (lambda: seen(([[0.0]], [[1]]), per_label=True, label_axis=2), ShapeError, "label_axis=2", "(1, 1)"),
    (lambda: Evaluator().merge(3), StateError, "Evaluator", "int"),
    (lambda: Evaluator().merge(Evaluator(gamma=2.0)), StateError, "different options", "gamma=2.0"),
    (lambda: Evaluator().load_state_dict({}), StateError, "'version', 'options' and 'updates'"),
    (lambda: Evaluator().load_state_dict(seen().state_dict() | {"version": 3}), StateError, "version 3", "version 2"),
    (lambda: Evaluator().load_state_dict(seen().state_dict() | {"version": True}), StateError, "version True"),
    (lambda: Evaluator(metrics="all").load_state_dict(Evaluator().state_dict()), StateError, "same options"),
    (lambda: Evaluator(metrics="auc"), OptionError, "metrics='auc'", "'roc_auc'"),
    (lambda: Evaluator(metrics=3), OptionError, "metrics=3", "list of names"),
    (lambda: Evaluator(threshold=1.5), OptionError, "threshold=1.5", "between 0 and 1"),
    (lambda: Evaluator(bins=1000), OptionError, "bins=1000", "power of two"),
    (lambda: Evaluator(metrics="all", bins=0), OptionError, "bins=0", "roc_auc"),
    (lambda: Evaluator(bins=True), OptionError, "bins=True", "power of two"),
    (lambda: Evaluator(max_weight=0), OptionError, "max_weight=0"),
    (lambda: Evaluator(window=0), OptionError, "window=0", "from 1 on"),
    (lambda: Evaluator(window=2.0), OptionError, "window=2.0"),
    (lambda: seen(WHOLE, metrics="all"), OptionError, "max_weight", "histogram"),
    (lambda: seen(WHOLE[:2], metrics="all", max_weight=2.0**25), OptionError, "max_weight=3.35544e+07", "no weight"),
    (lambda: seen(WHOLE[:2]).report().interval(), OptionError, "standard_error"),
    (lambda: Evaluator().load_state_dict(seen().state_dict()), StateError, "from_logits=True", "same options"),
    (lambda: seen(([[0.0]], [[1]]), ([[0.0] * 2], [[1] * 2]), per_label=True), StateError, "(1,)", "(2,)"),
]
SOUND = seen(WHOLE[:2]).state_dict()["updates"][0]
DAMAGED = [
    3,
    [3],
    [{}],
    [{"state": SOUND["state"]}],
    [{"state": None, "groups": {}}],
    [{"state": SOUND["state"], "groups": {"north": SOUND["state"]}}],
    [{"state": SOUND["state"], "groups": {"1": {}}}],
    [SOUND, SOUND],
    *(
        [{"state": SOUND["state"] | change, "groups": {}}]
        for change in (
            {"sums": ["loss"]},
            {"values": [[0.0, 0.0]]},
            {"elements": -1},
            {"rows": math.nan},
            {"histogram": "AAAA"},
        )
    ),
]
REFUSED += [
    (partial(seen().load_state_dict, seen().state_dict() | {"updates": row}), StateError, "damaged") for row in DAMAGED
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: " ".join(row[2:])[:60])
def test_what_has_no_meaning_is_refused(row):
    call, error, *fragments = row
    with pytest.raises(GpubceError) as caught:
        call()
    assert type(caught.value) is error
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == [], str(caught.value)
