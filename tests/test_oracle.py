"""Accuracy of every option against the oracle, and against PyTorch in float64."""

import math

import numpy as np
import pytest

import gpubce
from tests import tolerances
from tests.oracle import mp, truth

pytestmark = pytest.mark.meaning

OPTIONS = {
    "plain": {},
    "class_weight": {"class_weight": (0.3, 1.7)},
    "pos_weight": {"pos_weight": 3.0},
    "label_smoothing": {"label_smoothing": 0.1},
    "focal 2": {"gamma": 2.0, "alpha": 0.25},
    "focal 0.5": {"gamma": 0.5},
    "focal 1": {"gamma": 1.0},
    "focal 5": {"gamma": 5.0, "pos_weight": 2.0},
    "alpha": {"alpha": 0.75},
    "log_floor": {"log_floor": -2.0},
    "bits": {"base": 2.0},
    "everything": {"pos_weight": 2.0, "label_smoothing": 0.2, "gamma": 1.5, "alpha": 0.6, "base": 2.0},
}


def oracle_arguments(options: dict, real: str) -> dict:
    """The options in the oracle's words, as the compute type holds them."""
    held = lambda value: float(np.dtype(real).type(value))  # noqa: E731
    w0, w1 = options.get("class_weight", (1.0, 1.0))
    arguments = {
        "w0": held(w0),
        "w1": held(w1 * options.get("pos_weight", 1.0)),
        "smoothing": options.get("label_smoothing", 0.0),
        "gamma": held(options.get("gamma", 0.0)),
        "alpha": options.get("alpha"),
        "log_floor": options.get("log_floor"),
        "eps": options.get("eps"),
    }
    if "base" in options:
        arguments["unit"] = 1 / mp.log(options["base"])
    return arguments


def samples(real: str, from_logits: bool) -> tuple[np.ndarray, np.ndarray]:
    """Predictions over many binades, with soft and hard targets."""
    rng = np.random.default_rng(7)
    count = 60
    if from_logits:
        reach = 80.0 if real == "float32" else 600.0
        predictions = np.concatenate(
            [rng.normal(0, 4, count), rng.uniform(-reach, reach, count), 10.0 ** rng.uniform(-8, 1, count)]
        )
    else:
        deep = -30 if real == "float32" else -250
        predictions = np.concatenate(
            [rng.random(count), 10.0 ** rng.uniform(deep, 0, count), 1 - 10.0 ** rng.uniform(-6, -1, count)]
        )
    targets = np.where(
        rng.random(predictions.size) < 0.5, rng.random(predictions.size), rng.random(predictions.size) < 0.5
    )
    return predictions.astype(real), targets.astype(real)


@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("name", [*OPTIONS, "eps"])
def test_options_agree_with_the_oracle(name, real, from_logits):
    # eps is for probabilities; along logits an odd gamma takes its place.
    options = {**OPTIONS, "eps": {"gamma": 3.0} if from_logits else {"eps": 1e-3}}[name]
    exact = {} if from_logits or "eps" in options or "log_floor" in options else {"log_floor": None}
    loss = gpubce.BinaryCrossEntropy(from_logits=from_logits, reduction="none", **options, **exact)
    predictions, targets = samples(real, from_logits)
    weight = np.linspace(0.5, 2.0, predictions.size).astype(real)
    values = loss(predictions, targets, weight=weight)
    gradients, hessians = loss.grad_and_hess(predictions, targets, weight=weight)
    tolerance = tolerances.RELATIVE[real]
    limits = np.finfo(real)
    # 1 / p and its square are limited beside a floor; that is a table of its own, in test_edges.
    limited = "log_floor" in options and not from_logits
    for k in range(predictions.size):
        with mp.workdps(60):
            true = truth(
                float(predictions[k]),
                float(targets[k]),
                from_logits,
                float(weight[k]),
                **oracle_arguments(options, real),
            )
            checked = [("loss", values[k], true.loss, true.loss)]
            if not limited or 1e-5 < predictions[k] < 1 - 1e-5:
                checked += [
                    ("gradient", gradients[k], true.gradient, true.gradient_size),
                    ("hessian", hessians[k], true.hessian, true.hessian_size),
                ]
            for what, found, expected, size in checked:
                # Results so close to the ends of the type that a factor of theirs leaves it are not promised.
                if not limits.tiny / tolerance < size < limits.max * tolerance:
                    continue
                error = abs(mp.mpf(float(found)) - expected) / size
                assert error <= tolerance, (what, predictions[k], targets[k], found, float(expected), float(error))


def ulps(found: np.ndarray, true: np.ndarray, real: str) -> np.ndarray:
    """The error in units in the last place of the true value; 0 where that is below the smallest normal number."""
    limits = np.finfo(real)
    spacing = np.spacing(np.maximum(np.abs(true), limits.tiny).astype(real)).astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        error = np.abs(found.astype(np.longdouble) - true) / spacing
    return np.where(np.abs(true) < limits.tiny, np.where(found == 0, 0, np.abs(found) > limits.tiny), error)


def test_hard_targets_are_within_2_ulp_of_the_truth():
    """10^7 random float32 logits, all bit patterns alike, against long double (64 bits of fraction)."""
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double has no 64-bit fraction on this platform, so it cannot be the reference")
    rng = np.random.default_rng(11)
    worst = {}
    for _ in range(10):
        logits = rng.integers(0, 2**32, 10**6, dtype=np.uint32).view(np.float32)
        logits = logits[np.isfinite(logits)]
        x = logits.astype(np.longdouble)
        with np.errstate(all="ignore"):
            t = np.exp(-np.abs(x))
            soft = np.log1p(t)
            near, far = 1 / (1 + t), t / (1 + t)
            p, q = np.where(x >= 0, near, far), np.where(x >= 0, far, near)
        for y in (0, 1):
            targets = np.full(logits.shape, y, np.uint8)
            loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")
            values = loss(logits, targets)
            gradients, hessians = loss.grad_and_hess(logits, targets)
            true_loss = soft + np.maximum(-x if y else x, 0)
            for what, found, true in (
                ("loss", values, true_loss),
                ("gradient", gradients, -q if y else p),
                ("hessian", hessians, p * q),
            ):
                worst[what, y] = max(worst.get((what, y), 0.0), float(ulps(found, true, "float32").max()))
    assert max(worst.values()) <= tolerances.ULP_HARD_TARGETS, worst


TORCH_CASES = {
    "plain": {},
    "pos_weight": {"pos_weight": tuple(0.5 + k for k in range(5))},
    "pos_weight scalar": {"pos_weight": 3.0},
}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", TORCH_CASES)
def test_logits_agree_with_torch_in_float64(name, reduction):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 5, (40, 5))
    logits[0] = [1e4, -1e4, 700.0, -700.0, 0.0]
    targets, weight = rng.random((40, 5)), rng.random((40, 5))
    targets[0] = [1, 0, 1, 0, 1]
    options = TORCH_CASES[name]
    loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction=reduction, **options)
    value, gradient = loss.value_and_grad(logits, targets, weight=weight)
    x = torch.tensor(logits, requires_grad=True)
    pos_weight = torch.tensor(options["pos_weight"], dtype=torch.float64) if options else None
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        x, torch.tensor(targets), torch.tensor(weight), pos_weight=pos_weight, reduction=reduction
    )
    theirs.sum().backward()
    scale = np.maximum(1.0, np.abs(theirs.detach().numpy()))
    assert np.max(np.abs(value - theirs.detach().numpy()) / scale) <= tolerances.TORCH_ABSOLUTE
    assert np.max(np.abs(gradient - x.grad.numpy())) <= tolerances.TORCH_ABSOLUTE


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_probabilities_agree_with_torch_in_float64(reduction):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(4)
    probabilities, targets = rng.random(60), (rng.random(60) < 0.5).astype(np.float64)
    probabilities[:4], targets[:4] = [0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]
    weight = rng.random(60)
    loss = gpubce.BinaryCrossEntropy(reduction=reduction)
    value, gradient = loss.value_and_grad(probabilities, targets, weight=weight)
    p = torch.tensor(probabilities, requires_grad=True)
    function = torch.nn.functional.binary_cross_entropy
    theirs = function(p, torch.tensor(targets), torch.tensor(weight), reduction=reduction)
    theirs.sum().backward()
    scale = np.maximum(1.0, np.abs(theirs.detach().numpy()))
    assert np.max(np.abs(value - theirs.detach().numpy()) / scale) <= tolerances.TORCH_ABSOLUTE
    inside = np.arange(60) >= 2  # Where p = y, PyTorch's gradient is 0 and the limit is +-1.
    relative = np.abs(gradient - p.grad.numpy()) / np.maximum(1.0, np.abs(gradient))
    assert np.max(relative[inside][2:]) <= tolerances.TORCH_ABSOLUTE
    assert np.max(relative[2:4]) <= tolerances.TORCH_LIMIT_RELATIVE
    assert list(gradient[:2] / (weight[:2] / (60 if reduction == "mean" else 1))) == pytest.approx([1.0, -1.0])


def test_the_oracle_knows_a_value_by_hand():
    true = truth(0.0, 1.0, True)
    assert math.isclose(true.loss, math.log(2))
    assert (true.gradient, true.hessian) == (-0.5, 0.25)
