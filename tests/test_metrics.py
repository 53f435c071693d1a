"""The figures of a report against scikit-learn and torcheval, on real predictions and at the edges."""

import math
from functools import cache

import numpy as np
import pytest

from gpubce import BinaryCrossEntropy, Evaluator
from gpubce.errors import DtypeError, InvalidValueError, OptionError, ShapeError
from gpubce.report import FROM_HISTOGRAM, SUMS, Difference
from gpubce.scoring import DEMO
from tests.tolerances import FIGURES_AGREE

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is the peer here")
from sklearn import calibration, datasets, linear_model, metrics  # noqa: E402

pytestmark = pytest.mark.meaning

SETS = ("flights", "breast cancer", "digits", "soft")


@cache
def predictions(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probabilities, targets, weights) of a data set."""
    rng = np.random.default_rng(7)
    if name == "flights":
        with np.load(DEMO) as demo:
            p, y = demo["prediction"].astype(np.float64), demo["target"].astype(np.float64)
    elif name == "soft":
        p, y = rng.random(5_000), rng.random(5_000)
    else:
        features, classes = getattr(datasets, f"load_{name.replace(' ', '_')}")(return_X_y=True)
        y = (classes == 1).astype(np.float64)
        scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
        p = linear_model.LogisticRegression(C=0.05, max_iter=500).fit(scaled, y).predict_proba(scaled)[:, 1]
    return p, y, 0.1 + rng.random(p.size)


def report_of(p, y, weight=None, **options):
    evaluator = Evaluator(**({"metrics": "all", "max_weight": 2.0, "log_floor": None} | options))
    evaluator.update(p, y, weight=weight)
    return evaluator.report()


WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


@WEIGHTED
@pytest.mark.parametrize("name", SETS)
def test_sums_are_those_of_scikit_learn(name, weighted):
    p, y, w = predictions(name)
    w = w if weighted else np.ones_like(w)
    report = report_of(p, y, w if weighted else None, threshold=0.3)
    loss = -y * np.log(p) - (1 - y) * np.log1p(-p)
    mean = np.average(loss, weights=w)
    expected = {
        "loss_of_positives": np.sum(w * y * -np.log(p)) / np.sum(w * y),
        "loss_of_negatives": np.sum(w * (1 - y) * -np.log1p(-p)) / np.sum(w * (1 - y)),
        "balancing_pos_weight": np.sum(w * (1 - y)) / np.sum(w * y),
        "standard_error": math.sqrt(np.sum((w * (loss - mean)) ** 2) * y.size / (y.size - 1)) / np.sum(w),
    }
    with np.errstate(all="ignore"):
        entropy = np.nan_to_num(-y * np.log(y)) + np.nan_to_num(-(1 - y) * np.log1p(-y))
    expected["target_entropy"] = np.average(entropy, weights=w)
    if name != "soft":
        for metric in ("accuracy", "precision", "recall", "f1"):
            score = getattr(metrics, f"{metric}_score")
            expected[metric] = score(y, p >= 0.3, sample_weight=w)
    found = {metric: getattr(report, metric) for metric in expected}
    assert found == pytest.approx(expected, rel=FIGURES_AGREE, abs=0)


@WEIGHTED
@pytest.mark.parametrize("bins", [64, 4096])
@pytest.mark.parametrize("name", SETS[:-1])
def test_histogram_figures_are_within_their_bounds(name, bins, weighted):
    p, y, w = predictions(name)
    w = w if weighted else np.ones_like(w)
    report = report_of(p, y, w if weighted else None, bins=bins)
    expected = {
        "roc_auc": metrics.roc_auc_score(y, p, sample_weight=w),
        "average_precision": metrics.average_precision_score(y, p, sample_weight=w),
        "calibration_error": expected_calibration_error(p, y, w),
    }
    for metric, exact in expected.items():
        bound = getattr(report, f"{metric}_bound")
        assert abs(getattr(report, metric) - exact) <= bound + FIGURES_AGREE, metric
        # A bound that is always 1 would be kept too.
        assert bound < 150.0 / bins, metric


def expected_calibration_error(p, y, w, bins=15):
    """By its definition."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    distance = np.bincount(place, w * (p - y), bins)
    return np.abs(distance).sum() / w.sum()


def test_bounds_are_reached():
    """One bin holds everything: all positives may score above all negatives, or below."""
    same = report_of([0.5001, 0.5002, 0.5003, 0.5004], [1, 1, 0, 0], bins=32)
    assert (same.roc_auc, same.roc_auc_bound) == (0.5, 0.5)
    assert same.average_precision == 0.5
    assert same.average_precision_bound == 0.5


@pytest.mark.parametrize("name", SETS[:-1])
def test_curves_are_those_of_scikit_learn_at_the_limits_of_bins(name):
    p, y, _ = predictions(name)
    curves = report_of(p, y).curves
    false, true, thresholds = curves.roc()
    logits = np.log(p) - np.log1p(-p)
    for k in range(0, thresholds.size, 97):
        chosen = logits >= thresholds[k]
        assert true[k] == pytest.approx(np.sum(y[chosen]) / y.sum(), rel=FIGURES_AGREE)
        assert false[k] == pytest.approx(np.sum(1 - y[chosen]) / np.sum(1 - y), rel=FIGURES_AGREE)
    assert (false[0], true[0], false[-1], true[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert report_of(p, y).roc_auc == pytest.approx(metrics.auc(false, true), rel=FIGURES_AGREE)
    precision, recall, _ = curves.precision_recall()
    assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(report_of(p, y).average_precision)


def test_the_reliability_curve_is_that_of_scikit_learn():
    p, y, _ = predictions("flights")
    curves = report_of(p, y, bins=65_536).curves
    ours = curves.reliability(10)
    target, prediction = calibration.calibration_curve(y, p, n_bins=10)
    # The limits of the ten bins move by up to half a bin of the histogram: a handful of flights change sides.
    assert ours.target == pytest.approx(target, abs=2e-3)
    assert ours.prediction == pytest.approx(prediction, abs=2e-3)
    assert ours.weight.sum() == y.size
    equal = curves.reliability(10, by="weight")
    assert equal.weight.min() > 0.05 * y.size
    assert np.average(equal.target, weights=equal.weight) == pytest.approx(y.mean())
    with pytest.raises(OptionError, match="by='mass'.*'width', 'weight'"):
        curves.reliability(by="mass")


@pytest.mark.peer
def test_normalized_entropy_is_that_of_torcheval():
    functional = pytest.importorskip("torcheval.metrics.functional", reason="torcheval is the peer here")
    import torch

    for name in SETS[:-1]:
        p, y, w = predictions(name)
        given = [torch.from_numpy(array) for array in (p, y, w)]
        theirs = functional.binary_normalized_entropy(given[0], given[1], weight=given[2])
        assert report_of(p, y, w).normalized_entropy == pytest.approx(float(theirs), rel=1e-7)


# Edges ---------------------------------------------------------------------------------------------------------------


def test_one_class_has_neither_area_nor_precision():
    ones, zeros = report_of([0.2, 0.7], [1, 1]), report_of([0.2, 0.7], [0, 0])
    assert math.isnan(ones.roc_auc)
    assert math.isnan(zeros.roc_auc)
    assert math.isnan(zeros.average_precision)
    assert math.isnan(zeros.recall)
    assert (ones.average_precision, ones.precision, ones.recall) == (1.0, 1.0, 0.5)
    assert zeros.precision == 0.0


@pytest.mark.parametrize("logits", [False, True])
def test_the_threshold_itself_is_positive(logits):
    for threshold, expected in ((0.0, 3), (0.5, 2), (1.0, 1)):
        evaluator = Evaluator(from_logits=logits, metrics=["recall"], threshold=threshold)
        evaluator.update([-np.inf, 0.0, np.inf] if logits else [0.0, 0.5, 1.0], [1, 1, 1])
        assert evaluator.report().recall == expected / 3


def test_extreme_predictions_fall_into_the_outer_bins():
    p = np.array([0.0, 1e-30, 1.0 - 1e-16, 1.0])
    curves = report_of(p, [0, 1, 0, 1]).curves
    assert curves.negatives[[0, -1]].tolist() == curves.positives[[0, -1]].tolist() == [1.0, 1.0]


def test_what_a_histogram_cannot_count_makes_its_figures_nan():
    sound = ([0.2, 0.7, 0.4], [0, 1, 1])
    for p, weight in (([0.2, np.nan, 0.4], [1.0, 1.0, 1.0]), (sound[0], [1.0, 5.0, 1.0])):
        report = report_of(p, sound[1], weight)
        assert math.isnan(report.roc_auc)
        assert math.isnan(report.calibration_error_bound)
    assert report_of(*sound, [1.0, 2.0, 1.0]).roc_auc == 1.0


def test_only_what_is_asked_for_is_reported():
    always = {"loss", "loss_bits", "weight", "count", "invalid"}
    for names in (["loss"], ["f1"], ["recall", "roc_auc"]):
        found = report_of(*predictions("flights")[:2], metrics=names).as_dict()
        assert set(found) == always | set(names) | ({"roc_auc_bound"} if "roc_auc" in names else set())
    everything = report_of(*predictions("flights")[:2]).as_dict()
    assert set(everything) == always | (set(SUMS) - {"difference"}) | {f"{metric}_bound" for metric in FROM_HISTOGRAM}


@pytest.mark.parametrize("denominator", ["elements", "weights", "rows", "positives"])
def test_the_standard_error_is_how_much_the_loss_varies(denominator):
    """Against the spread of the loss over many samples; 10 % is three times the spread of a spread of 400."""
    rng = np.random.default_rng(0)
    losses, errors = [], []
    for _ in range(400):
        logits, weight = rng.normal(-1, 1, 1_000), rng.random(1_000)
        targets = rng.random(1_000) < 1 / (1 + np.exp(-logits))
        evaluator = Evaluator(from_logits=True, metrics=["standard_error"], denominator=denominator)
        evaluator.update(logits, targets, weight=weight)
        losses.append(evaluator.report().loss)
        errors.append(evaluator.report().standard_error)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.1)


def test_intervals_are_symmetric_and_widen():
    report = report_of(*predictions("flights")[:2])
    low, high = report.interval(0.9)
    assert (low + high) / 2 == pytest.approx(report.loss)
    assert report.interval(0.99)[0] < low < high < report.interval(0.99)[1]
    assert report.interval(0.0) == (report.loss, report.loss)


# Differences ---------------------------------------------------------------------------------------------------------


@WEIGHTED
@pytest.mark.parametrize("denominator", ["elements", "weights", "rows", "positives"])
def test_differences_are_those_of_the_losses(denominator, weighted):
    p, y, w = predictions("flights")
    w = w if weighted else np.ones_like(w)
    other = np.clip(p + 0.05 * np.sin(np.arange(p.size)), 0.01, 0.99)
    options = {"metrics": ["difference"], "denominator": denominator, "log_floor": None}
    evaluator = Evaluator(**options)
    evaluator.update(p, y, weight=w if weighted else None, baseline=other)
    report = evaluator.report()
    ours, theirs = (w * (-y * np.log(q) - (1 - y) * np.log1p(-q)) for q in (p, other))
    share = {"weights": w, "positives": w * y}.get(denominator, np.ones_like(w))
    difference = np.sum(ours - theirs) / np.sum(share)
    error = math.sqrt(np.sum((ours - theirs - share * difference) ** 2) * y.size / (y.size - 1)) / np.sum(share)
    assert report.difference == pytest.approx(difference, rel=1e-9)
    assert report.difference_error == pytest.approx(error, rel=1e-9)
    again = Evaluator(**options)
    again.update(other, y, weight=w if weighted else None, baseline=p)
    assert again.report().difference == pytest.approx(-report.difference, rel=1e-9)


def test_equal_predictions_do_not_differ():
    evaluator = Evaluator(from_logits=True, metrics=["difference"])
    logits = [np.inf, -np.inf, 0.5]
    evaluator.update(logits, [0, 1, 1], baseline=logits)
    found = evaluator.report().compare()
    assert (found.value, found.standard_error, found.p_value, found.paired) == (0.0, 0.0, 1.0, True)
    assert "not known which" in str(found)


SENTENCES = [
    (
        Difference(-0.01, 0.002, True),
        ["are better", "0.01 nats lower", "between 0.00608 and 0.0139 lower", "2,000,000"],
    ),
    (Difference(0.01, 0.004, True), ["are worse", "0.01 nats higher", "once in 80 times"]),
    (Difference(0.01, 0.01, True), ["not known", "differ by 0.01 nats", "standard error of 0.01"]),
    (Difference(-1.0, 0.01, True), ["are better", "less than once in 10^15"]),
    (Difference(math.inf, math.nan, True), ["not known", "inf nats"]),
    (Difference(-0.5, 0.0, True), ["are better", "less than once in 10^15"]),
]


@pytest.mark.parametrize(("difference", "fragments"), SENTENCES)
def test_a_sentence_says_which_is_better_and_how_sure_that_is(difference, fragments):
    assert [fragment for fragment in fragments if fragment not in str(difference)] == [], str(difference)


def test_reports_are_compared_as_independent():
    one, two = (report_of(*predictions(name)[:2]) for name in ("flights", "digits"))
    found = one.compare(two)
    assert (found.value, found.paired) == (one.loss - two.loss, False)
    assert found.standard_error == pytest.approx(math.hypot(one.standard_error, two.standard_error))
    with pytest.raises(OptionError, match="not with int"):
        one.compare(3)
    with pytest.raises(OptionError, match="baseline="):
        one.compare()
    with pytest.raises(OptionError, match="standard_error"):
        one.compare(report_of(*predictions("flights")[:2], metrics=["loss"]))


def test_a_baseline_belongs_to_the_metric():
    p, y, _ = predictions("flights")
    for metric, baseline, said in (("difference", None, "baseline="), ("loss", p, "nothing compares")):
        with pytest.raises(OptionError, match=said):
            Evaluator(metrics=metric).update(p, y, baseline=baseline)
    for baseline, error, said in (
        (p[1:], ShapeError, "baseline has shape"),
        (p.astype(np.float32), DtypeError, "baseline has type float32, probabilities float64"),
        (y.astype(np.uint8), DtypeError, "baseline has type uint8"),
        (p + 2.0, InvalidValueError, r"baseline\[0\] is 2"),
    ):
        with pytest.raises(error, match=said):
            Evaluator(metrics="difference").update(p, y, baseline=baseline)


@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
def test_what_is_invalid_beside_a_baseline_is_counted(logits):
    """A target, a prediction or a baseline: each once, and NaN never."""
    good = np.array([0.5, 0.5, 0.5, 0.5, np.nan, 0.5])
    wrong = np.array([0.5, 2.0, 0.5, -1.0, 0.5, np.nan])
    y = np.array([3.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    for p, other in ((good, wrong), (wrong, good), (wrong, wrong)):
        loss = BinaryCrossEntropy(from_logits=logits)
        assert loss.state(p, y, baseline=other, sums=("difference",), check=False).invalid == (1 if logits else 3)
