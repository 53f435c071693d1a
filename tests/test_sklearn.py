"""scikit-learn's log_loss and ours: the same number where it has one, and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest

metrics = pytest.importorskip("sklearn.metrics", reason="the adapter is scikit-learn's")

from gpubce import BinaryCrossEntropy  # noqa: E402
from gpubce.adapters.sklearn import log_loss, scorer  # noqa: E402
from gpubce.errors import ArrayError, DtypeError, GpubceError, InvalidValueError, OptionError, ShapeError  # noqa: E402
from tests import tolerances  # noqa: E402

pytestmark = pytest.mark.meaning

RNG = np.random.default_rng(5)
Y = RNG.integers(0, 2, 200)
P = np.where(RNG.random(200) < 0.1, RNG.integers(0, 2, 200), RNG.random(200))
W = RNG.random(200)


def same(own, other, storage="float64"):
    assert isinstance(own, float)
    assert own == pytest.approx(other, rel=tolerances.CONVENTION[storage])


@pytest.mark.parametrize("storage", ["float64", "float32"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(
    "names",
    [(0, 1), (False, True), (-1, 1), (1, 2), (0.0, 1.0), (1.0, 2.0), ("ham", "spam")],
    ids=lambda names: repr(names[0]),
)
def test_it_is_the_same_number(storage, normalize, weight, columns, names):
    p = P.astype(storage)
    y_proba = p if columns == 1 else np.stack([1 - p, p], axis=1)
    given = np.array(names)[Y], y_proba
    how = {"normalize": normalize, "sample_weight": weight}
    same(log_loss(*given, **how), metrics.log_loss(*given, **how), storage)


def test_the_second_column_has_digits_that_the_first_has_lost():
    """In float32, 1 - 1.3e-6 is held to 5 %, and the column of the other class knows."""
    small = 1.3e-6
    y_proba = np.array([[small, 1 - small], [1 - small, small]], np.float32)
    for y_true in ([0, 0], [1, 1], [0, 1], [1, 0]):
        wrong = sum(y == row for row, y in enumerate(y_true))
        same(log_loss(y_true, y_proba), -np.mean([np.log(small)] * wrong + [np.log1p(-small)] * (2 - wrong)), "float32")


def test_lists_and_keywords_are_taken():
    given = [1, 0, 1], [0.9, 0.2, 0.6]
    expected = metrics.log_loss(*given)
    same(log_loss(*given), expected)
    same(log_loss(y_true=given[0], y_proba=given[1]), expected)
    same(log_loss(given[0], y_pred=given[1]), expected)
    same(log_loss(np.reshape(given[0], (3, 1)), np.reshape(given[1], (3, 1))), expected)
    same(log_loss([1, 0], [1, 0]), metrics.log_loss([1, 0], [1, 0]))


def test_a_class_may_be_missing():
    """scikit-learn refuses this without labels, which only names need."""
    same(log_loss([1, 1], [0.5, 0.25]), metrics.log_loss([1, 1], [0.5, 0.25], labels=[0, 1]))
    same(log_loss([0, 0], [0.5, 0.25]), metrics.log_loss([0, 0], [0.5, 0.25], labels=[0, 1]))
    same(
        log_loss(["a", "a"], [0.5, 0.25], labels=["a", "b"]),
        metrics.log_loss(["a", "a"], [0.5, 0.25], labels=["a", "b"]),
    )


def test_soft_targets():
    soft = RNG.random(200)
    true = -np.average(soft * np.log(0.3) + (1 - soft) * np.log(0.7), weights=W)
    same(log_loss(soft, np.full(200, 0.3), sample_weight=W), true)
    same(log_loss(soft, np.tile([0.7, 0.3], (200, 1)), sample_weight=W), true)
    same(
        log_loss(soft, np.tile([0.3, 0.7], (200, 1)), sample_weight=W),
        log_loss(1 - soft, np.full(200, 0.3), sample_weight=W),
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [None, W[:50]], ids=["plain", "weighted"])
def test_several_labels(normalize, weight):
    y_true, y_proba = Y.reshape(50, 4), P.reshape(50, 4)
    how = {"normalize": normalize, "sample_weight": weight}
    each = [metrics.log_loss(y_true[:, k], y_proba[:, k], **how) for k in range(4)]
    found = log_loss(y_true, y_proba, average=None, **how)
    assert found.dtype == np.float64
    assert np.allclose(found, each, rtol=tolerances.CONVENTION["float64"], atol=0)
    same(log_loss(y_true, y_proba, average="macro", **how), np.mean(each))
    forest = [np.stack([1 - y_proba[:, k], y_proba[:, k]], axis=1) for k in range(4)]
    assert np.array_equal(log_loss(y_true, forest, average=None, **how), found)


def test_options_of_the_loss_are_added():
    same(log_loss(Y, P, log_floor=-5), float(BinaryCrossEntropy(log_floor=-5, dtype="float64")(P, Y)))
    assert log_loss([1], [0.0], log_floor=None) == np.inf
    same(log_loss(Y, P, pos_weight=3), log_loss(Y, P, sample_weight=np.where(Y == 1, 3, 1), normalize=False) / 200)
    assert np.float32(log_loss(Y, P)) == log_loss(Y, P, dtype="float32")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: log_loss([0, 1]), OptionError, "give y_proba"),
        (lambda: log_loss([0, 1], [0, 1], y_pred=[0, 1]), OptionError, "not both"),
        (lambda: log_loss([0, 1], [0.5, 0.5], average="micro"), OptionError, "average='micro' is not one of"),
        (lambda: log_loss([0, 1], [0.5, 0.5], axis=0), OptionError, "axis is what log_loss decides"),
        (lambda: log_loss([0, 1], [0.5, 0.5], normalize=1), OptionError, "normalize=1"),
        (lambda: log_loss(["a", "a"], [0.5, 0.5]), OptionError, "y_true has 1 class, ['a']"),
        (lambda: log_loss([0, 1, 2], np.full((3, 3), 1 / 3)), OptionError, "y_true has 3 classes, [0, 1, 2]"),
        (lambda: log_loss([0, 1], [0.5, 0.5], labels=[0, 1, 2]), OptionError, "labels has 3 classes"),
        (lambda: log_loss([0, 3], [0.5, 0.5], labels=[0, 1]), InvalidValueError, "y_true has 3, which is none of"),
        (lambda: log_loss([0, 1], np.full((2, 3), 1 / 3)), ShapeError, "3 columns"),
        (lambda: log_loss([[0, 1]], [[0.5, 0.5]]), OptionError, "average='macro' or average=None"),
        (lambda: log_loss([0, 1], [[0.5, 0.5], [0.5, 0.6]]), InvalidValueError, "off by 0.1"),
        (lambda: log_loss([0, 1], np.zeros((2, 2, 2))), ShapeError, "(2, 2, 2)"),
        (lambda: log_loss([0, 1], [0.5, 1.5]), InvalidValueError, "1.5"),
        (lambda: log_loss([0, 1.5], [0.5, 0.5]), InvalidValueError, "1.5"),
        (lambda: log_loss([0, 1], [0.5, np.nan]), None, ""),
        (
            lambda: log_loss([1], [[0.5, 0.5], [0.5, 0.5]]),
            ShapeError,
            "the first axis of y_proba has shape (2,), y_true",
        ),
        (lambda: log_loss([0, 1], [0.5, 0.5], sample_weight=[2.0]), ShapeError, "sample_weight has shape (1,)"),
        (lambda: log_loss([0, 1], np.ma.masked_array([0.5, 0.5])), ArrayError, "masked array"),
        (lambda: log_loss([[0, 1]], [np.ones((1, 2)) / 2, np.ones((1, 3)) / 3], average=None), ShapeError, "(n, 2)"),
        (lambda: log_loss([0, 2, 5], [0.5, 0.5, 0.5], ignore_index=5), OptionError, "targets 0 and 1"),
        (lambda: log_loss([0, 1], ["a", "b"]), DtypeError, "y_proba has type"),
    ],
)
def test_what_is_refused(call, error, words):
    if error is None:
        assert np.isnan(call())
        return
    with pytest.raises(error, match=re.escape(words)) as caught:
        call()
    assert type(caught.value) is error
    assert isinstance(caught.value, GpubceError)


@pytest.mark.parametrize(
    "options",
    [
        {"pos_weight": 3},
        {"class_weight": (1, 3)},
        {"alpha": 0.2},
        {"eps": (0.2, 0.1)},
        {"eps": 0.1},
        {"label_smoothing": 0.1},
        {"gamma": 2},
        {"ignore_index": 0},
        {"ignore_index": 1},
    ],
    ids=str,
)
def test_one_column_and_two_are_the_same_problem(options):
    one, two = log_loss(Y, P, **options), log_loss(Y, np.stack([1 - P, P], axis=1), **options)
    same(one, two)


def test_ignored_targets_are_no_class():
    same(log_loss([0, -1, 1], [0.3, 0.9, 0.6], ignore_index=-1), log_loss([0, 1], [0.3, 0.6]))
    two = [[0.7, 0.3], [0.1, 0.9], [0.4, 0.6]]
    same(log_loss([1, -1, 1], two, ignore_index=-1), log_loss([1, 1], [0.3, 0.6]))


def test_tensors_are_taken():
    torch = pytest.importorskip("torch", reason="of PyTorch")
    y, p = torch.tensor(Y), torch.tensor(P)
    same(log_loss(y, p), metrics.log_loss(Y, P))
    same(log_loss(y, torch.stack([1 - p, p], 1)), metrics.log_loss(Y, P))
    each = log_loss(y.reshape(50, 4), p.reshape(50, 4), average=None, sample_weight=torch.tensor(W[:50]))
    assert isinstance(each, torch.Tensor)
    assert np.array_equal(
        each.numpy(), log_loss(Y.reshape(50, 4), P.reshape(50, 4), average=None, sample_weight=W[:50])
    )
    with pytest.raises(OptionError, match="labels are for NumPy arrays"):
        log_loss(y, p, labels=[0, 1])


def test_model_selection_takes_the_scorer():
    """cross_val_score and GridSearchCV, with the figures of scikit-learn's own scorer; and with several labels."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier

    inputs, labels = load_breast_cancer(return_X_y=True)
    named = np.array(["benign", "malignant"])[labels]
    own = cross_val_score(GaussianNB(), inputs, named, scoring=scorer())
    assert np.allclose(
        own, cross_val_score(GaussianNB(), inputs, named, scoring="neg_log_loss"), rtol=tolerances.CONVENTION["float64"]
    )
    grid = {"C": [1e-4, 1e-2, 1.0]}
    best = [
        GridSearchCV(LogisticRegression(solver="liblinear"), grid, scoring=scoring).fit(inputs, named).best_params_
        for scoring in (scorer(), "neg_log_loss")
    ]
    assert best[0] == best[1]
    several = np.stack([labels, 1 - labels, inputs[:, 0] > 14], axis=1)
    scores = cross_val_score(KNeighborsClassifier(20), inputs, several, scoring=scorer(average="macro"))
    assert scores.shape == (5,)
    assert (scores < 0).all()
