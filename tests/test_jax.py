"""The adapter of JAX: the bits of the package under every transform, and derivatives of JAX's own formulas."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the adapter is JAX's")

import jax.numpy as jnp  # noqa: E402

from gpubce import BinaryCrossEntropy  # noqa: E402
from gpubce.adapters.jax import binary_cross_entropy, sigmoid_binary_cross_entropy, sigmoid_focal_loss  # noqa: E402
from gpubce.errors import DtypeError, InvalidValueError, OptionError, ShapeError  # noqa: E402
from tests import tolerances  # noqa: E402
from tests.processes import run  # noqa: E402

pytestmark = pytest.mark.meaning

RNG = np.random.default_rng(3)
X = RNG.normal(size=(4, 5, 3)).astype(np.float32)
P = RNG.random((4, 5, 3), np.float32)
Y = RNG.integers(0, 2, X.shape).astype(np.int8)
W = RNG.random((5, 1), np.float32)

OPTIONS = [
    {},
    {"reduction": "mean"},
    {"reduction": "sum", "axis": 1},
    {"reduction": "mean", "axis": (0, -1)},
    {"gamma": 1.5, "label_smoothing": 0.1},
    {"reduction": "mean", "denominator": "rows"},
    {"reduction": "mean", "ignore_index": 0, "label_axis": 2, "pos_weight": (1.0, 2.0, 3.0)},
    {"reduction": "mean", "denominator": "weights", "label_weight": (1.0, 2.0, 3.0)},
]
SPACES = pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
BY_OPTIONS = pytest.mark.parametrize("options", OPTIONS, ids=str)


def space(from_logits):
    return (sigmoid_binary_cross_entropy, X) if from_logits else (binary_cross_entropy, P)


def in_numpy(from_logits, **options):
    return BinaryCrossEntropy(**{"from_logits": from_logits, "reduction": "none", **options})


@SPACES
@BY_OPTIONS
@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_values_and_gradients_have_the_bits_of_the_package(from_logits, options, how):
    function, predictions = space(from_logits)
    loss = in_numpy(from_logits, **options)
    value, gradient = loss.value_and_grad(predictions, Y, weight=W)
    found = how(lambda z: function(z, Y, weight=W, **options))(predictions)
    assert found.dtype == np.asarray(value).dtype
    assert np.array_equal(found, value)
    found = how(jax.grad(lambda z: function(z, Y, weight=W, **options).sum()))(predictions)
    assert found.dtype == gradient.dtype
    assert np.array_equal(found, gradient)


@SPACES
@pytest.mark.parametrize("options", OPTIONS[::3], ids=str)
@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("axes", [(0, 0, 0), (1, None, 1), (None, 2, None)], ids=str)
def test_vmap_is_a_loop(from_logits, options, how, axes):
    function, predictions = space(from_logits)
    four = np.stack([predictions, predictions[::-1], predictions / 2, predictions**2])
    targets = np.stack([Y, Y[::-1], 1 - Y, Y])
    weights = np.stack([W, W / 2, W * 3, W + 1])
    given = [
        array[0] if axis is None else np.moveaxis(array, 0, axis)
        for array, axis in zip((four, targets, weights), axes, strict=True)
    ]
    one = lambda z, y, w: function(z, y, weight=w, **options)  # noqa: E731
    for f in (one, jax.grad(lambda z, y, w: one(z, y, w).sum())):
        found = how(jax.vmap(f, axes))(*given)
        for k in range(4):
            sample = [
                array if axis is None else np.take(array, k, axis) for array, axis in zip(given, axes, strict=True)
            ]
            assert np.array_equal(found[k], f(*sample))


def test_vmap_of_vmap_and_of_scalars():
    mean = lambda z, y: sigmoid_binary_cross_entropy(z, y, reduction="mean")  # noqa: E731
    twice = jax.vmap(jax.vmap(mean))(X, Y)
    assert np.array_equal(twice, in_numpy(True, reduction="mean", axis=2)(X, Y))
    each = jax.vmap(jax.vmap(jax.vmap(mean)))(X, Y)
    assert np.array_equal(each, in_numpy(True)(X, Y))
    slopes = jax.vmap(jax.grad(mean))(X.ravel(), Y.ravel())
    assert np.array_equal(slopes.reshape(X.shape), in_numpy(True).value_and_grad(X, Y)[1])


def test_a_vector_is_one_label_under_vmap_too():
    rows = lambda z, y: sigmoid_binary_cross_entropy(z, y, reduction="mean", denominator="rows", label_axis=0)  # noqa: E731
    found = jax.vmap(rows)(X[0], Y[0])
    assert np.array_equal(found, [rows(z, y) for z, y in zip(X[0], Y[0], strict=True)])


@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_second_derivatives(how):
    x, y = X[0, :, 0], Y[0, :, 0]
    mean = lambda z: sigmoid_binary_cross_entropy(z, y, reduction="mean", pos_weight=2.0)  # noqa: E731
    plain = lambda z: jnp.mean(2 * y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z))  # noqa: E731
    through = lambda f: lambda z: jnp.sum(jax.grad(f)(z**2) ** 2)  # noqa: E731
    for one, other in ((mean, plain), (through(mean), through(plain))):
        close(how(jax.grad(one))(x), jax.grad(other)(x))
    hessian = how(jax.jacrev(jax.grad(mean)))(x)
    close(hessian, jax.hessian(plain)(x))


def close(own, other):
    assert np.allclose(own, other, rtol=tolerances.JAX, atol=tolerances.JAX)


def test_under_checkpoint_and_scan():
    def step(total, both):
        z, y = both
        return total + jax.checkpoint(lambda z: sigmoid_binary_cross_entropy(jnp.tanh(z), y, reduction="mean"))(z), z

    whole = lambda x: jax.lax.scan(step, 0.0, (x, jnp.asarray(Y)))[0]  # noqa: E731
    plain = lambda x: sigmoid_binary_cross_entropy(jnp.tanh(x), Y, reduction="mean") * 4  # noqa: E731
    close(whole(X), plain(X))
    close(jax.grad(whole)(X), jax.grad(plain)(X))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_narrow_types(kind, how):
    x = jnp.asarray(X, kind)
    loss = in_numpy(True, reduction="mean")
    value, gradient = loss.value_and_grad(np.asarray(x), Y)
    found, slopes = how(jax.value_and_grad(lambda z: sigmoid_binary_cross_entropy(z, Y, reduction="mean")))(x)
    assert (found.dtype, slopes.dtype) == (jnp.float32, jnp.dtype(kind))
    assert np.array_equal(found, value)
    assert np.array_equal(slopes, gradient)
    assert how(lambda z: sigmoid_binary_cross_entropy(z, Y))(x).dtype == jnp.dtype(kind)


DOUBLE = """
import json
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from gpubce import BinaryCrossEntropy
from gpubce.adapters.jax import sigmoid_binary_cross_entropy
x, y = np.linspace(-50, 50, 101), np.arange(101) % 2
loss = lambda z: sigmoid_binary_cross_entropy(z, y, reduction="mean")
value, gradient = BinaryCrossEntropy(from_logits=True).value_and_grad(x, y)
found = [f(x) for f in (jax.value_and_grad(loss), jax.jit(jax.value_and_grad(loss)))]
print(json.dumps([[str(v.dtype), bool(v == value), str(g.dtype), bool((g == gradient).all())] for v, g in found]))
"""


def test_float64():
    assert json.loads(run(DOUBLE)) == [["float64", True, "float64", True]] * 2


def test_infinite_logits_and_focal_loss():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.inf, -jnp.inf])
    y = jnp.array([1, 0, 0, 1])
    assert sigmoid_binary_cross_entropy(x, y).tolist() == [0, 0, np.inf, np.inf]
    assert jax.grad(lambda z: sigmoid_binary_cross_entropy(z, y).sum())(x).tolist() == [0, 0, 1, -1]
    found = sigmoid_focal_loss(X, Y, alpha=0.25, gamma=3.0)
    assert np.array_equal(found, in_numpy(True, alpha=0.25, gamma=3.0)(X, Y))
    assert np.array_equal(sigmoid_focal_loss(X, Y), in_numpy(True, gamma=2.0)(X, Y))


def test_nothing_is_copied_outside_of_jit():
    """The kernel reads and writes JAX's own memory."""
    from gpubce.arrays import registry

    x = jnp.asarray(X)
    library = registry.library_of(x, "x")
    assert library.buffer(x).address == x.unsafe_buffer_pointer()


def test_invalid_values():
    bad = jnp.asarray(Y.astype(np.float32)).at[0, 0, 0].set(2.0)
    with pytest.raises(InvalidValueError, match=r"2\.0"):
        sigmoid_binary_cross_entropy(X, bad)
    assert np.isnan(jax.jit(lambda z: sigmoid_binary_cross_entropy(z, bad, reduction="sum"))(X))


@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: sigmoid_binary_cross_entropy(x, Y[:2]), ShapeError, "logits has shape (4, 5, 3), labels has"),
        (lambda x: binary_cross_entropy(x, Y[0]), ShapeError, "probabilities has shape"),
        (lambda x: sigmoid_binary_cross_entropy(x, Y, weight=np.ones((1, 4, 5, 3))), ShapeError, "(1, 4, 5, 3)"),
        (lambda x: sigmoid_binary_cross_entropy(x, Y, weight=np.ones(2)), ShapeError, "weight"),
        (lambda x: sigmoid_binary_cross_entropy(x, Y, reduction="mean", axis=3), ShapeError, "axis=(3,)"),
        (lambda x: sigmoid_binary_cross_entropy(x, Y, gama=2), OptionError, "'gama' is not an option"),
        (lambda x: sigmoid_binary_cross_entropy((x > 0).astype(int), Y), DtypeError, "logits has type int32"),
        (
            lambda x: jax.grad(lambda y: sigmoid_binary_cross_entropy(x, y).sum())(Y.astype(np.float32)),
            *(OptionError, "no gradient with respect to labels: give jax.lax.stop_gradient(labels)"),
        ),
        (
            lambda x: jax.grad(lambda w: sigmoid_binary_cross_entropy(x, Y, weight=w).sum())(W),
            *(OptionError, "no gradient with respect to weight"),
        ),
    ],
)
def test_what_is_refused(how, call, error, words):
    """When the function is traced, so before XLA runs anything."""
    with pytest.raises(error, match=re.escape(words)):
        how(call)(X)


def test_training_reaches_the_loss_of_jaxs_own_formula():
    inputs, targets = X.reshape(20, 3), (X.reshape(20, 3).sum(1) > 0).astype(np.float32)

    def train(loss):
        step = jax.jit(jax.value_and_grad(lambda w: loss(jnp.asarray(inputs) @ w, targets)))
        weights, losses = jnp.zeros(3), []
        for _ in range(30):
            value, gradient = step(weights)
            weights, losses = weights - 0.5 * gradient, [*losses, float(value)]
        return losses

    own = train(lambda z, y: sigmoid_binary_cross_entropy(z, y, reduction="mean"))
    other = train(lambda z, y: jnp.mean(y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z)))
    assert own == pytest.approx(other, rel=tolerances.TRAINING["float32"])
    assert own[-1] < own[0] / 2
