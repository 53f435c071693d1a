"""The edge table (promise 4): every cell, every type, value and derivatives; and what nothing counted gives."""

from contextlib import nullcontext

import numpy as np
import pytest

import gpubce
from gpubce.spec.coefficients import COEFFICIENTS
from gpubce.spec.edges import EDGES
from gpubce.spec.plan import PLAN
from gpubce.spec.recipe import LOGIT
from tests.backends import replaced
from tests.cases import INPUT_TYPES, dtype
from tests.interpreted import InterpretedEngine


@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("edge", EDGES, ids=lambda e: f"{e.space}={e.prediction} y={e.target} floor={e.log_floor}")
def test_edge_table(edge, input_type):
    real = dtype(input_type)
    from_logits = edge.space == LOGIT
    loss = gpubce.BinaryCrossEntropy(from_logits=from_logits, reduction="none", log_floor=edge.log_floor)
    prediction, target = np.full(3, edge.prediction, real), np.full(3, edge.target, real)
    gradient, hessian = loss.grad_and_hess(prediction, target)
    with np.errstate(over="ignore"):
        expected = [
            np.float32(v).astype(real) if input_type != "float64" else v
            for v in (edge.loss, edge.gradient, edge.hessian)
        ]
    if input_type == "float64" and edge.log_floor is not None:
        assert float(hessian[0]) == pytest.approx(expected[2], rel=1e-15)
    else:
        assert hessian[0] == expected[2]
    assert loss(prediction, target)[0] == expected[0]
    assert gradient[0] == expected[1]


@pytest.fixture(params=["compiled", "as Python"])
def formulas(request):
    """Those of the specification; compiling a kernel for each takes 15 s for what Python does in one."""
    with replaced(InterpretedEngine, PLAN) if request.param == "as Python" else nullcontext():
        yield request.param


@pytest.mark.parametrize("input_type", ["float32", "float64"])
@pytest.mark.parametrize("from_logits", [True, False])
def test_weight_0_and_options_keep_the_edges(formulas, from_logits, input_type):
    """No 0 * inf, whatever multiplies the terms."""
    if formulas == "compiled" and (from_logits, input_type) != (False, "float32"):
        return  # The contract suite compares these kernels with Python.
    infinite = np.array([np.inf, -np.inf] if from_logits else [1.0, 0.0], dtype(input_type))
    right, wrong = np.array([1, 0]), np.array([0, 1])
    exact = {} if from_logits else {"log_floor": None}
    for options in ({}, {"gamma": 2.0, "base": 2}, {"gamma": 0.5, "alpha": 0.25, "class_weight": (2.0, 0.5)}):
        loss = gpubce.BinaryCrossEntropy(from_logits=from_logits, reduction="none", **exact, **options)
        assert (loss(infinite, right) == 0).all(), options
        assert np.isposinf(loss(infinite, wrong).astype(np.float64)).all(), options
        assert (loss(infinite, wrong, weight=0) == 0).all(), options
        for derivative in loss.grad_and_hess(infinite, right) + loss.grad_and_hess(infinite, wrong, weight=0):
            assert not np.isnan(derivative.astype(np.float64)).any(), options


SEEN = ("predictions", "squared_error", "cross_entropy", "positive_entropy")
"""The sums of what is predicted, whatever the options of the loss."""


@pytest.mark.parametrize("from_logits", [True, False])
def test_nan_predictions_give_nan_and_are_not_invalid(from_logits):
    loss = gpubce.BinaryCrossEntropy(from_logits=from_logits, gamma=2.0)
    predictions, targets = np.array([np.nan, 0.5]), np.array([1, 0])
    assert np.isnan(loss(predictions, targets))
    assert np.isnan(loss(predictions, targets, weight=np.array([0.0, 1.0])))
    state = loss.state(predictions, targets, sums=SEEN)
    assert state.invalid == 0
    assert np.isnan([state.total(name) for name in SEEN]).all()
    assert not np.isnan(loss(predictions, targets, mask=np.array([False, True])))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_focal_hessian_at_probability_0_is_the_limit(gamma):
    """Along p the loss of y = 0 is p^(gamma + 1) at first: the second derivative is (gamma + 1) gamma p^(gamma - 1)."""
    loss = gpubce.BinaryCrossEntropy(gamma=gamma, reduction="none", log_floor=None)
    for prediction, target in ((0.0, 0), (1.0, 1)):
        _, hessian = loss.grad_and_hess(np.array([prediction]), np.array([target]))
        assert hessian[0] == {0.5: np.inf, 1.0: 2.0}.get(gamma, 0.0)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_the_smallest_loss_is_a_normal_number(real):
    """Up to the last logit for which it can be one; 0 from the next on (promise 3)."""
    last = real(COEFFICIENTS[np.dtype(real).name].largest_exponent)
    logits = np.array([last, np.nextafter(last, real(np.inf))])
    smallest, nothing = gpubce.binary_cross_entropy_with_logits(logits, np.ones(2), reduction="none")
    assert smallest == pytest.approx(np.exp(-np.float64(last)), rel=1e-6)
    assert smallest >= np.finfo(real).tiny
    assert nothing == 0


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_the_focal_factor_vanishes_below_the_smallest_normal_number(real):
    """There, along p for y = 0, the gradient is still (gamma + 1) p^gamma."""
    smallest = np.finfo(real).tiny
    loss = gpubce.BinaryCrossEntropy(gamma=0.5, reduction="none", log_floor=None)
    p = np.array([smallest / 2, smallest], real)
    gradient = loss.grad_and_hess(p, np.zeros(2))[0]
    assert gradient[0] == 0
    assert gradient[1] == pytest.approx(1.5 * float(smallest) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_nothing(shape):
    nothing = np.zeros(shape, np.float32)
    function = gpubce.binary_cross_entropy_with_logits
    assert np.isnan(function(nothing, nothing))
    assert function(nothing, nothing, reduction="sum") == 0
    assert function(nothing, nothing, reduction="none").shape == shape
    value, gradient = gpubce.BinaryCrossEntropy(from_logits=True).value_and_grad(nothing, nothing)
    assert np.isnan(value)
    assert gradient.shape == shape


def test_nothing_counted():
    logits, targets = np.ones((4, 3)), np.ones((4, 3))
    mask = np.zeros((4, 3), bool)
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    value, gradient = loss.value_and_grad(logits, targets, mask=mask)
    assert np.isnan(value)
    assert (gradient == 0).all()
    assert gpubce.binary_cross_entropy_with_logits(logits, targets, mask=mask, reduction="sum") == 0
    elements = gpubce.binary_cross_entropy_with_logits(logits, targets, mask=mask, reduction="none")
    assert (elements == 0).all()


def test_infinite_losses_give_infinite_sums():
    """TwoSum of an infinity leaves NaN in the low part, which must not reach the value."""
    for real in (np.float32, np.float64):
        logits = np.array([np.inf, 1.0, 2.0], real)
        assert gpubce.binary_cross_entropy_with_logits(logits, np.zeros(3)) == np.inf
        loss = gpubce.BinaryCrossEntropy(from_logits=True)
        state = loss.state(logits[:1], np.zeros(1)) + loss.state(logits[1:], np.zeros(2))
        assert loss.finish(state) == np.inf


def test_clipping_holds_where_1_minus_eps_rounds_to_1():
    """Both ends of the loss are -log eps in every type."""
    ends, wrong = np.array([0.0, 1.0], np.float32), np.array([1, 0])
    for eps in (1e-7, 1e-15):
        found = gpubce.binary_cross_entropy(ends, wrong, eps=eps, reduction="none")
        assert found.tolist() == [np.float32(-np.log(eps))] * 2


@pytest.mark.parametrize("input_type", ["float32", "float64"])
def test_the_bounds_of_clipping_belong_to_the_inside(input_type):
    """Derivatives are 0 outside only."""
    loss, eps = gpubce.BinaryCrossEntropy(eps=0.125, reduction="none"), 0.125
    p = np.array([0.12, eps, 1 - eps, 0.88], input_type)
    y = np.array([1, 1, 0, 0])
    gradient, hessian = loss.grad_and_hess(p, y)
    assert gradient.tolist() == [0, -8, 8, 0]
    assert hessian.tolist() == [0, 64, 64, 0]
    assert np.unique(loss(p, y)).tolist() == [np.array(-np.log(eps), input_type)]
