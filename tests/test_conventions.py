"""Whose number it is: the options of like() give what the libraries themselves give, and explain() says so."""

from __future__ import annotations

import importlib.util
import json
import re

import numpy as np
import pytest

import gpubce
from gpubce import BinaryCrossEntropy, conventions
from gpubce.errors import OptionError
from tests import tolerances
from tests.processes import run

pytestmark = pytest.mark.meaning

LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0])
WEIGHT = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 0.25, 1.5, 1.0])


def edges(storage):
    """Probabilities with exact and nearly exact misses at both ends."""
    tiny = {"float64": 1e-18, "float32": 1e-20}[storage]
    return np.array([0.0, 1.0, tiny, 1.0, 1e-9, 0.3, 0.6, 1 - 2.0**-20], storage)


def agree(own, other, storage):
    assert float(own) == pytest.approx(float(other), rel=tolerances.CONVENTION[storage])


STORAGES = pytest.mark.parametrize("storage", ["float64", "float32"])
WEIGHTS = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])


@STORAGES
@WEIGHTS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_torch(storage, weight, reduction):
    torch = pytest.importorskip("torch", reason="the number is PyTorch's")
    p, y = torch.tensor(edges(storage)), torch.tensor(LABELS.astype(storage))
    w = None if weight is None else torch.tensor(weight.astype(storage))
    own = BinaryCrossEntropy.like("torch", reduction=reduction)
    agree(own(p, y, weight=w), torch.nn.functional.binary_cross_entropy(p, y, w, reduction=reduction), storage)
    own = BinaryCrossEntropy.like("torch", from_logits=True, reduction=reduction)
    x = torch.linspace(-30, 30, 8, dtype=p.dtype)
    agree(
        own(x, y, weight=w), torch.nn.functional.binary_cross_entropy_with_logits(x, y, w, reduction=reduction), storage
    )


@STORAGES
@WEIGHTS
@pytest.mark.parametrize("normalize", [True, False])
def test_sklearn(storage, weight, normalize):
    metrics = pytest.importorskip("sklearn.metrics", reason="the number is scikit-learn's")
    own = BinaryCrossEntropy.like("sklearn", predictions=storage, reduction="mean" if normalize else "sum")
    other = metrics.log_loss(LABELS, edges(storage), sample_weight=weight, normalize=normalize)
    agree(own(edges(storage), LABELS, weight=weight), other, storage)


KERAS = """
import json, os
import numpy as np
import keras
given, found = json.loads(os.environ["GIVEN"]), []
for from_logits, predictions, reduction, weight in given["cases"]:
    reduction = "sum_over_batch_size" if reduction == "mean" else reduction
    loss = keras.losses.BinaryCrossentropy(from_logits=from_logits, reduction=reduction)
    value = loss(np.array(given["labels"], "float32"), np.array(predictions), sample_weight=weight and np.array(weight))
    found.append(np.asarray(value).tolist())
print(json.dumps(found))
"""


def test_keras():
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("the number is Keras's, which computes with PyTorch here")
    p, y = edges("float32").reshape(4, 2), LABELS.reshape(4, 2)
    x = np.linspace(-30, 30, 8).reshape(4, 2).astype(np.float32)
    cases = [
        (from_logits, predictions, reduction, rows)
        for from_logits, predictions in ((False, p), (True, x))
        for reduction in ("mean", "none")
        for rows in (None, WEIGHT[:4])
    ]
    given = {
        "labels": y.tolist(),
        "cases": [
            (logits, predictions.tolist(), reduction, None if rows is None else rows.tolist())
            for logits, predictions, reduction, rows in cases
        ],
    }
    found = json.loads(run(KERAS, GIVEN=json.dumps(given), KERAS_BACKEND="torch"))
    for (from_logits, predictions, reduction, rows), other in zip(cases, found, strict=True):
        own = BinaryCrossEntropy.like("keras", from_logits=from_logits, reduction=reduction)
        value = own(predictions, y, weight=None if rows is None else rows[:, None])
        assert np.allclose(value, other, rtol=tolerances.CONVENTION["float32"], atol=0)


@WEIGHTS
def test_xgboost(weight):
    xgboost = pytest.importorskip("xgboost", reason="the number is XGBoost's")
    margins = np.array([-100, 100, -30, 17.5, -5, -0.5, 0.25, 14])
    data = xgboost.DMatrix(np.zeros((8, 1)), LABELS, weight=weight, base_margin=margins)
    model = xgboost.train({"objective": "binary:logistic", "eval_metric": "logloss", "nthread": 1}, data, 0)
    other = float(re.search(r"logloss:(\S+)", model.eval(data))[1])
    own = BinaryCrossEntropy.like("xgboost")(model.predict(data), LABELS, weight=weight)
    agree(own, other, "float32")


@STORAGES
@WEIGHTS
@pytest.mark.parametrize("from_logits", [False, True])
def test_torcheval(storage, weight, from_logits):
    torch = pytest.importorskip("torch", reason="torcheval needs PyTorch")
    functional = pytest.importorskip("torcheval.metrics.functional", reason="the number is torcheval's")
    predictions = np.linspace(-30, 30, 8).astype(storage) if from_logits else edges(storage)
    other = functional.binary_normalized_entropy(
        torch.tensor(predictions),
        torch.tensor(LABELS.astype(storage)),
        weight=None if weight is None else torch.tensor(weight.astype(storage)),
        from_logits=from_logits,
    )
    own = BinaryCrossEntropy.like("torcheval", from_logits=from_logits)(predictions, LABELS, weight=weight)
    rate = np.average(LABELS, weights=weight)
    agree(own / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)), other, storage)


@STORAGES
def test_cuml_as_read(storage):
    """cuML needs a GPU; this is its formula, as its source has it."""
    p, real = edges(storage), np.dtype(storage).type
    clipped = np.clip(p, real(1e-15), real(1) - real(1e-15))
    with np.errstate(divide="ignore"):
        losses = -np.log(np.where(LABELS == 1, clipped, real(1) - clipped))
    own = BinaryCrossEntropy.like("cuml", predictions=storage)(p, LABELS, weight=WEIGHT)
    agree(own, np.average(losses, weights=WEIGHT), storage)
    assert np.isinf(own) == (storage == "float32")


def test_other_options_are_added():
    own = BinaryCrossEntropy.like("sklearn", predictions=np.float32, pos_weight=3.0, dtype="float64")
    assert own == BinaryCrossEntropy(eps=2.0**-23, denominator="weights", pos_weight=3.0, dtype="float64")


@pytest.mark.parametrize(
    ("library", "options", "words"),
    [
        ("tensorflow", {}, "library='tensorflow' is not one of 'torch', 'keras'"),
        ("torch", {"log_floor": None}, "log_floor is what like('torch') decides: leave it out"),
        ("sklearn", {"denominator": "elements"}, "denominator is what like('sklearn') decides"),
        ("sklearn", {"from_logits": True}, "sklearn.metrics.log_loss takes probabilities only"),
        ("sklearn", {"predictions": "bfloat16"}, "do not take this type"),
        ("cuml", {"predictions": "float16"}, "1e-15 is 0 in that type"),
        ("sklearn", {"predictions": "int32"}, "float16, bfloat16, float32, float64"),
        ("keras", {"reduction": "sum"}, "adds means of rows"),
        ("torch", {"posweight": 3}, "'posweight' is not an option"),
    ],
)
def test_what_like_refuses(library, options, words):
    with pytest.raises(OptionError, match=re.escape(words)):
        BinaryCrossEntropy.like(library, **options)


@pytest.mark.parametrize("library", conventions.CONVENTIONS)
def test_each_explanation_names_its_library(library):
    text = BinaryCrossEntropy.like(library).explain()
    assert conventions.CONVENTIONS[library].function in text


# One row for each option: two values of it differ in these words, and in nothing they should not.
WORDS = [
    ({"from_logits": True}, "of logits, in nats"),
    ({"base": 2}, "in bits"),
    ({"base": 10}, "in units of ln 10 nats"),
    ({"reduction": "none"}, "One loss for each element"),
    ({"reduction": "sum"}, "The sum over all elements, divided by nothing"),
    ({"denominator": "positives"}, "sum of the weighted targets, or 1 where that is less"),
    ({"denominator": "rows"}, "number of rows"),
    ({"axis": 0}, "The mean over axis 0:"),
    ({"axis": (0, 2)}, "The mean over axes (0, 2):"),
    ({"log_floor": None}, "infinite loss"),
    ({"log_floor": -20}, "not below -20"),
    ({"eps": 0.01}, "[0.01, 1 - 0.01], so a confident miss costs at most 4.605 nats"),
    ({"eps": (0.01, 0.02)}, "[0.01, 1 - 0.02], so a confident miss costs 4.605 or 3.912 nats"),
    ({"eps": (0.01, 0)}, "[0.01, 1], so a confident miss costs 4.605 nats where the target is 1, and infinitely many"),
    ({"label_smoothing": 0.1}, "0 becomes 0.05 and 1 becomes 0.95"),
    ({"class_weight": (1, 3)}, "negative part of each loss is multiplied by 1, the positive part by 3"),
    ({"pos_weight": 3}, "positive part is multiplied by 3"),
    ({"pos_weight": (1, 3)}, "a factor of its label"),
    ({"label_weight": 2}, "Each loss is multiplied by 2"),
    ({"label_weight": (1, 3)}, "the weight of its label"),
    ({"alpha": 0.25}, "Positives are multiplied by 0.25 and negatives by 0.75"),
    ({"gamma": 2}, "(1 - p_t)^2"),
    ({"ignore_index": 255}, "Elements whose target is 255 are not counted"),
]


@pytest.mark.parametrize(("options", "words"), WORDS, ids=lambda value: str(value))
def test_each_option_is_explained(options, words):
    assert words in BinaryCrossEntropy(**options).explain()
    assert words not in BinaryCrossEntropy().explain()


def test_the_figures_of_an_explanation_are_true():
    """The worst loss that the words allow is the one that there is."""
    ends, wrong = np.array([0.0, 1.0]), np.array([1, 0])
    for options in ({}, {"eps": 0.01}, {"eps": (0.01, 0.02)}, {"log_floor": -20}):
        loss = BinaryCrossEntropy(reduction="none", **options)
        costs = {
            float(cost) for cost in re.search(r"miss costs (.*) nats", loss.explain())[1].split() if cost[0].isdigit()
        }
        assert costs == {float(f"{value:.4g}") for value in loss(ends, wrong)}


@pytest.mark.parametrize("input_type", ["float32", "float64"])
def test_an_uneven_clip_is_two_even_ones(input_type):
    """Of (low, high), the lower half is clipped as by low, the upper half as by high."""
    p = np.linspace(0, 1, 1001).astype(input_type)
    y = np.tile([0.0, 1.0, 0.3], 334)[:1001]
    for gamma in (0.0, 1.5):
        made = [BinaryCrossEntropy(eps=eps, gamma=gamma, reduction="none") for eps in ((0.02, 0.1), 0.02, 0.1)]
        uneven, at_low, at_high = ([*loss.value_and_grad(p, y), *loss.grad_and_hess(p, y)] for loss in made)
        for own, low, high in zip(uneven, at_low, at_high, strict=True):
            assert np.array_equal(own, np.where(p < 0.5, low, high))


def test_no_clip_at_the_top():
    loss = BinaryCrossEntropy(eps=(0.01, 0), reduction="none")
    assert loss(np.array([0.0, 1.0]), np.array([1, 0])).tolist() == [-np.log(0.01), np.inf]
    assert gpubce.BinaryCrossEntropy(eps=(0.1, 0.1)) == gpubce.BinaryCrossEntropy(eps=0.1)
