"""Laws of the loss, over random batches: every path to one quantity agrees.

Predictions are float64 and targets are multiples of 1/1024, so that 1 - y is exact.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpubce import BinaryCrossEntropy
from tests.cases import bits

pytestmark = pytest.mark.meaning

few = settings(max_examples=25, deadline=None)

SUM = 1e-15
"""Sums are pairs of float64 and exact to the last place, whatever the order; a mean divides once more."""

TARGETS = 1e-14
"""Smoothed targets, rounded before or after the products with them."""

NUMPY = 1e-13
"""NumPy's own logarithms, differences 1 - p and sums over at most a hundred elements."""

STEP = 1e-5
DIFFERENCE = 2e-9
"""Central differences with that step, relative to 1 + the third derivative's bound, which is below 10 for these
options and predictions: STEP^2 / 6 times it, and the rounding of the losses over STEP (1e-15 / 1e-5)."""


def logits_loss(**options):
    return BinaryCrossEntropy(from_logits=True, **options)


each, total, mean = logits_loss(reduction="none"), logits_loss(reduction="sum"), logits_loss()


def batches(labels: int | None = None, low: float = -30.0, high: float = 30.0):
    """(predictions, targets, weight, mask), each of shape (n,) or (7, labels).

    Few shapes: lengths of 1, and what they leave contiguous, are compiled as kernels of their own.
    """
    soft = st.integers(0, 1024).map(lambda k: k / 1024)

    def of_size(n):
        shape = (n,) if labels is None else (n, labels)
        return st.tuples(
            arrays(np.float64, shape, elements=st.floats(low, high, allow_subnormal=False)),
            arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0]) | soft),
            arrays(np.float64, shape, elements=st.integers(0, 5).map(float)),
            arrays(np.bool_, shape),
        )

    return (st.integers(2, 20) if labels is None else st.just(7)).flatmap(of_size)


def same(one, two) -> bool:
    return np.array_equal(bits(np.asarray(one)), bits(np.asarray(two)))


def close(relative: float, absolute: float = 0.0):
    return lambda one, two: np.testing.assert_allclose(one, two, rtol=relative, atol=absolute)


# Symmetry, order, splitting -----------------------------------------------------------------------------------------


@few
@given(batches())
def test_swapping_the_classes_swaps_nothing_else(batch):
    x, y, *_ = batch
    assert same(each(x, y), each(-x, 1 - y))
    assert same(mean(x, y), mean(-x, 1 - y))
    (g, h), (swapped_g, swapped_h) = mean.grad_and_hess(x, y), mean.grad_and_hess(-x, 1 - y)
    assert (g == -swapped_g).all()  # A gradient of 0 is +0 both times.
    assert same(h, swapped_h)
    assert same(logits_loss(class_weight=(0.3, 1.7))(x, y), logits_loss(class_weight=(1.7, 0.3))(-x, 1 - y))


@few
@given(batches(), st.randoms(use_true_random=False))
def test_order_does_not_show(batch, random):
    x, y, *_ = batch
    order = random.sample(range(x.size), x.size)
    close(SUM)(mean(x[order], y[order]), mean(x, y))


@few
@given(batches(), st.lists(st.integers(0, 20), max_size=4))
def test_states_of_parts_merge_to_the_whole(batch, cuts):
    x, y, *_ = batch
    parts = [mean.state(*part) for part in zip(np.split(x, sorted(cuts)), np.split(y, sorted(cuts)), strict=True)]
    for ordered in (parts, parts[::-1]):
        merged = sum(ordered[1:], ordered[0])
        close(SUM)(mean.finish(merged), mean(x, y))
        assert (merged.elements, merged.rows, merged.count) == (x.size, x.size, x.size)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("denominator", [None, "elements", "weights", "positives", "rows"])
def test_a_finished_state_is_the_value(denominator, axis):
    options = {"reduction": "sum"} if denominator is None else {"denominator": denominator}
    rng = np.random.default_rng(6)
    x, y, weight = rng.normal(size=(7, 3)), rng.random((7, 3)) / 16, rng.random((7, 3))
    given = {"weight": weight} if denominator in ("weights", "positives") else {}
    for label_axis in (-1, 0):
        loss = logits_loss(axis=axis, label_axis=label_axis, **options)
        assert same(loss.finish(loss.state(x, y, **given)), loss(x, y, **given))


@pytest.mark.parametrize(
    ("shape", "axis", "label_axis", "rows"),
    [
        *[((), None, -1, 1), ((5,), None, -1, 5), ((0,), None, -1, 0), ((0, 3), None, -1, 0), ((3, 0), None, -1, 0)],
        *[((7, 3), None, -1, 7), ((7, 3), None, 0, 3), ((7, 3), None, 1, 7)],
        *[((7, 3), 0, -1, 7), ((7, 3), 0, 0, 1), ((7, 3), 1, -1, 1), ((7, 3), 1, 0, 3), ((7, 3), -1, 0, 3)],
    ],
)
def test_rows_are_elements_over_labels(shape, axis, label_axis, rows):
    zeros = np.zeros(shape)
    assert logits_loss(axis=axis, label_axis=label_axis).state(zeros, zeros).rows == rows


# Weights, masks, ignoring -------------------------------------------------------------------------------------------


@few
@given(batches())
def test_a_weight_counts_repetitions(batch):
    x, y, weight, _ = batch
    times = weight.astype(int)
    close(SUM)(total(x, y, weight=weight), total(np.repeat(x, times), np.repeat(y, times)))
    weighted = logits_loss(denominator="weights")
    close(SUM)(weighted(x, y, weight=weight), mean(np.repeat(x, times), np.repeat(y, times)))


@few
@given(batches())
def test_weight_0_is_a_mask_to_a_sum(batch):
    x, y, _, mask = batch
    for one, two in zip(total.value_and_grad(x, y, weight=mask), total.value_and_grad(x, y, mask=mask), strict=True):
        assert (one == two).all()


@few
@given(batches())
def test_masking_is_ignoring_is_dropping(batch):
    x, y, _, mask = batch
    value, gradient = mean.value_and_grad(x, y, mask=mask)
    for label in (-1.0, math.nan):
        ignoring = logits_loss(ignore_index=label)
        ignored = np.where(mask, y, label)
        assert all(map(same, ignoring.value_and_grad(x, ignored), (value, gradient)))
    close(SUM)(value, mean(x[mask], y[mask]))
    close(SUM)(gradient[mask], mean.value_and_grad(x[mask], y[mask])[1])
    assert (gradient[~mask] == 0).all()
    assert ignoring.state(x, ignored).count == mask.sum()


# Derivatives --------------------------------------------------------------------------------------------------------

SMOOTH = {
    "plain": {},
    "focal": {"gamma": 2.0, "alpha": 0.25, "pos_weight": 3.0},
    "bits of smoothed targets": {"base": 2.0, "label_smoothing": 0.2},
}


@pytest.mark.parametrize("options", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
def test_derivatives_are_differences(from_logits, options):
    loss = BinaryCrossEntropy(from_logits=from_logits, reduction="none", **options)
    close_to = close(DIFFERENCE, DIFFERENCE) if from_logits else close(5e-8, 5e-8)  # 1 / p^4 up to 40 at p = 0.4.

    @few
    @given(batches(None, *((-5.0, 5.0) if from_logits else (0.4, 0.6))))
    def law(batch):
        x, y, *_ = batch
        up, down = x + STEP, x - STEP
        gradient, hessian = loss.grad_and_hess(x, y)
        close_to(gradient, (loss(up, y) - loss(down, y)) / (up - down))
        close_to(hessian, (loss.grad_and_hess(up, y)[0] - loss.grad_and_hess(down, y)[0]) / (up - down))

    law()


@few
@given(batches())
def test_the_gradient_of_a_mean_is_that_of_its_elements_scaled(batch):
    x, y, weight, mask = batch
    gradient = mean.grad_and_hess(x, y, weight=weight, mask=mask)[0]
    scale = 1.0 / mask.sum() if mask.any() else 1.0
    assert same(mean.value_and_grad(x, y, weight=weight, mask=mask)[1], gradient * scale)


# Options ------------------------------------------------------------------------------------------------------------


@few
@given(batches())
def test_options_at_their_neutral_values_change_nothing(batch):
    x, y, *_ = batch
    for neutral in ({"gamma": 0.0}, {"pos_weight": 1.0}, {"class_weight": (1, 1)}, {"label_smoothing": 0.0}):
        assert same(logits_loss(reduction="none", **neutral)(x, y), each(x, y))
    assert same(logits_loss(reduction="none", alpha=0.5)(x, y), each(x, y) / 2)
    assert same(logits_loss(reduction="none", label_weight=2.0)(x, y), each(x, y) * 2)


@few
@given(batches())
def test_smoothing_is_smoothed_targets(batch):
    x, y, *_ = batch
    close(TARGETS)(logits_loss(reduction="none", label_smoothing=0.1)(x, y), each(x, y * (1 - 0.1) + 0.1 / 2))


@few
@given(batches(3))
def test_pos_weight_is_a_class_weight_is_a_vector(batch):
    x, y, *_ = batch
    expected = logits_loss(pos_weight=3.0).value_and_grad(x, y)
    for options in ({"class_weight": (1, 3)}, {"pos_weight": [3.0, 3.0, 3.0]}):
        assert all(map(same, logits_loss(**options).value_and_grad(x, y), expected))


@pytest.mark.parametrize("denominator", ["elements", "weights"])
def test_label_weights_are_weights(denominator):
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(7, 3)), rng.random((7, 3)) < 0.4
    for label_weight in ((0.5, 2.0, 1.0), 3.0):
        found = logits_loss(denominator=denominator, label_weight=label_weight)(x, y)
        assert same(found, logits_loss(denominator=denominator)(x, y, weight=np.broadcast_to(label_weight, x.shape)))


@few
@given(batches())
def test_bits_are_nats_over_log_2(batch):
    x, y, *_ = batch
    for kind in ("none", "sum", "mean"):
        in_bits = logits_loss(reduction=kind, base=2)(x, y)
        close(3 * 2.0**-52)(in_bits, logits_loss(reduction=kind)(x, y) / math.log(2))


@few
@given(batches(3))
def test_denominators(batch):
    x, y, weight, mask = batch
    label_weight = (0.5, 2.0, 1.0)
    w = weight * label_weight
    losses = w * (np.logaddexp(0, -x) * y + np.logaddexp(0, x) * (1 - y)) * mask
    divisors = {
        "elements": mask.sum(),
        "weights": (w * mask).sum(),
        "positives": max((w * y * mask).sum(), 1.0),
        "rows": x.shape[0],
    }
    for name, divisor in divisors.items():
        loss = logits_loss(denominator=name, label_weight=label_weight)
        value, gradient = loss.value_and_grad(x, y, weight=weight, mask=mask)
        with np.errstate(invalid="ignore"):
            close(NUMPY)(value, np.float64(losses.sum()) / divisor)
        if divisor:
            sigmoid = np.exp(-np.logaddexp(0, -x))
            close(NUMPY, NUMPY)(gradient, w * mask * (sigmoid - y) / divisor)
    assert same(loss.finish(loss.state(x, y, weight=weight, mask=mask)), value)


@few
@given(batches(3), st.sampled_from(["elements", "weights"]))
def test_an_axis_is_a_loop_over_slices(batch, denominator):
    x, y, weight, mask = batch
    options = {"denominator": denominator}
    whole = logits_loss(**options)
    for axis in (0, 1):
        values, gradient = logits_loss(axis=axis, **options).value_and_grad(x, y, weight=weight, mask=mask)
        for k in range(x.shape[1 - axis]):
            part = [np.take(array, k, 1 - axis) for array in batch]
            value, slice_gradient = whole.value_and_grad(*part[:2], weight=part[2], mask=part[3])
            close(SUM)(values[k], value)
            assert same(np.take(gradient, k, 1 - axis), slice_gradient)


@few
@given(batches(low=0.01, high=0.99))
def test_it_is_the_categorical_cross_entropy_of_two_classes(batch):
    p, y, *_ = batch
    classes, truth = np.stack([1 - p, p], -1), np.stack([1 - y, y], -1)
    categorical = -np.mean(np.sum(truth * np.log(classes), -1))
    close(NUMPY)(BinaryCrossEntropy()(p, y), categorical)
    close(NUMPY)(mean(np.log(p / (1 - p)), y), categorical)
