"""JAX's losses, computed by gpubce, under ``jit``, ``grad``, ``vmap`` and ``checkpoint``.

The functions have the signatures of ``optax.losses``; what else :class:`gpubce.BinaryCrossEntropy` knows may be given
by keyword, ``reduction`` too, which is "none" here. Losses are in nats, of the shape and type of the predictions for
reduction "none", else float32 (float64 for float64).

Where the values are known, outside of ``jit``, arrays are read where they are, on the CPU or a GPU, and the results are
handed over by DLPack. Inside of ``jit`` the loss is a ``jax.pure_callback``: on the CPU it reads XLA's memory without a
copy, and XLA copies the result; on a GPU everything goes to the host and back, which is slow. bfloat16 takes the
callback everywhere. An invalid element raises InvalidValueError where arrays are read where they are on the CPU, and
makes the loss NaN on a GPU and in a callback.

What does not work: gradients with respect to labels and weights (an error says so), forward mode (``jvp``, ``jacfwd``),
third derivatives, and arrays that are sharded over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from gpubce import checks, dispatch
from gpubce.errors import OptionError
from gpubce.loss import BinaryCrossEntropy, from_options
from gpubce.spec.precision import PRECISIONS

__all__ = ["binary_cross_entropy", "sigmoid_binary_cross_entropy", "sigmoid_focal_loss"]


def sigmoid_binary_cross_entropy(logits: Any, labels: Any, *, weight: Any = None, **options: Any) -> jax.Array:
    """``optax.losses.sigmoid_binary_cross_entropy``, right at infinite logits too.

    Parameters
    ----------
    logits : array of float16, bfloat16, float32 or float64, any shape
    labels : array of bool, integers or floats in [0, 1], the same shape
    weight : array, optional
        Broadcastable to the logits; finite and not negative.
    **options
        Of :class:`gpubce.BinaryCrossEntropy`.

    Raises
    ------
    gpubce.errors.ShapeError, DtypeError, ArrayError, InvalidValueError, OptionError

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gpubce.adapters.jax import sigmoid_binary_cross_entropy
    >>> loss = lambda x: sigmoid_binary_cross_entropy(x, jnp.array([1, 0]), reduction="mean", pos_weight=3.0)
    >>> value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.array([2.0, -1.0]))
    >>> print(value, gradient)
    0.34702283 [-0.17880438  0.13447072]
    """
    return _call(logits, labels, weight, {"from_logits": True, **options})


def binary_cross_entropy(probabilities: Any, labels: Any, *, weight: Any = None, **options: Any) -> jax.Array:
    """Binary cross-entropy of probabilities, logarithms not below -100 unless an option says otherwise.

    The arguments and errors are those of :func:`sigmoid_binary_cross_entropy`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gpubce.adapters.jax import binary_cross_entropy
    >>> print(binary_cross_entropy(jnp.array([0.9, 0.2]), jnp.array([True, False])))
    [0.10536055 0.22314356]
    """
    return _call(probabilities, labels, weight, options)


def sigmoid_focal_loss(
    logits: Any, labels: Any, alpha: float | None = None, gamma: float = 2.0, *, weight: Any = None, **options: Any
) -> jax.Array:
    """``optax.losses.sigmoid_focal_loss``: the focal loss (Lin et al. 2017, eq. 5).

    ``alpha`` and ``gamma`` are numbers known to Python. The other arguments and the errors are those of
    :func:`sigmoid_binary_cross_entropy`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gpubce.adapters.jax import sigmoid_focal_loss
    >>> print(sigmoid_focal_loss(jnp.array([2.0, -1.0]), jnp.array([1.0, 0.0])))
    [0.00180356 0.02265806]
    """
    return _call(logits, labels, weight, {"from_logits": True, "alpha": alpha, "gamma": gamma, **options})


def _call(predictions: Any, labels: Any, weight: Any, options: dict[str, Any]) -> jax.Array:
    loss = from_options({"reduction": "none", **options})
    predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
    name = "logits" if loss.from_logits else "probabilities"
    # What is known now is not left to XLA, which would put its own error around ours.
    checks.prediction_type(name, str(predictions.dtype))
    checks.same_shape(name, predictions.shape, "labels", labels.shape)
    checks.one_of_targets("labels", str(labels.dtype))
    for option in ("pos_weight", "label_weight"):
        if isinstance(values := getattr(loss, option), tuple):
            checks.one_per_label(option, values, predictions.shape, loss.label_axis)
    checks.label_count(predictions.shape, loss.label_axis)
    if loss.ignore_index is not None:
        checks.ignorable(loss.ignore_index, str(labels.dtype))
    if loss.axis is not None:
        checks.reduced_axes(checks.axes(loss.axis), predictions.shape)
    if weight is not None:
        weight = jnp.asarray(weight)
        missing = checks.missing_axes("weight", weight.shape, predictions.shape)
        weight = weight.reshape((1,) * missing + weight.shape)
    return _loss(loss, predictions, labels, weight)


# The functions and their derivatives --------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(loss: BinaryCrossEntropy, predictions: Any, labels: Any, weight: Any) -> Any:
    return _evaluate("value", loss, predictions, labels, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(loss: BinaryCrossEntropy, predictions: Any, labels: Any, weight: Any) -> Any:
    """Of the reduced value; each element's own with reduction "none"."""
    return _evaluate("gradient", loss, predictions, labels, weight)


def _forward(function: Callable, loss: BinaryCrossEntropy, *given: Any) -> tuple[Any, tuple]:
    for name, one in zip(("labels", "weight"), given[1:], strict=True):
        if one is not None and one.perturbed:
            raise OptionError(f"there is no gradient with respect to {name}: give jax.lax.stop_gradient({name})")
    arrays = tuple(None if one is None else one.value for one in given)
    return function(loss, *arrays), arrays


def _backward_of_loss(loss: BinaryCrossEntropy, arrays: tuple, cotangent: Any) -> tuple:
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros_like(arrays[0]), None, None
    reduced = loss._reduced_axes(arrays[0].ndim)
    cotangent = jnp.expand_dims(cotangent, reduced)
    return (_gradient(loss, *arrays) * cotangent).astype(arrays[0].dtype), None, None


def _backward_of_gradient(loss: BinaryCrossEntropy, arrays: tuple, cotangent: Any) -> tuple:
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros_like(arrays[0]), None, None
    return _evaluate("hessian", loss, *arrays) * cotangent, None, None


_loss.defvjp(partial(_forward, _loss), _backward_of_loss, symbolic_zeros=True)
_gradient.defvjp(partial(_forward, _gradient), _backward_of_gradient, symbolic_zeros=True)


# Calls --------------------------------------------------------------------------------------------------------------


def _evaluate(what: str, loss: BinaryCrossEntropy, predictions: Any, labels: Any, weight: Any) -> Any:
    """The value, gradient or hessian: at once where values are known, else when XLA calls. DLPack does not bring
    results of bfloat16 back from NumPy or CuPy."""
    known = not any(isinstance(array, jax.core.Tracer) for array in (predictions, labels, weight))
    if known and predictions.dtype != jnp.bfloat16:
        return _compute(what, loss, dispatch.Arguments(predictions, labels, weight))
    shape, storage = predictions.shape, str(predictions.dtype)
    result = jax.ShapeDtypeStruct(shape, predictions.dtype)
    if what == "value" and loss.reduction != "none":
        reduced = loss._reduced_axes(len(shape))
        kept = tuple(length for axis, length in enumerate(shape) if axis not in reduced)
        result = jax.ShapeDtypeStruct(kept, np.dtype(loss.dtype or PRECISIONS[storage].reduced))
    return jax.pure_callback(
        partial(_called, what, loss, len(shape), np.dtype(result.dtype)), result, predictions, labels, weight,
        vmap_method="expand_dims",
    )  # fmt: skip


def _compute(what: str, loss: BinaryCrossEntropy, arguments: dispatch.Arguments) -> Any:
    if what == "value":
        return dispatch.value(loss._formula, loss._reduction, arguments, None)
    return dispatch.derivatives(loss._formula, loss._reduction, arguments, {what: None}, 1.0)[0]


def _called(
    what: str, loss: BinaryCrossEntropy, ndim: int, kind: np.dtype, predictions: Any, labels: Any, weight: Any = None
) -> np.ndarray:
    """On the host. ``vmap`` has put axes in front, of length 1 where an array is the same for all samples."""
    given = [np.asarray(one) for one in (predictions, labels, weight) if one is not None]
    samples = given[0].ndim - ndim
    shape = np.broadcast_shapes(*(array.shape for array in given))
    given[:2] = (np.broadcast_to(array, shape) for array in given[:2])
    # Of fewer than two axes none holds labels, and those in front must not be taken for one.
    missing = max(0, 2 - ndim)
    names = ("predictions", "targets", "weight")
    padded: Any = {name: one.reshape(one.shape + (1,) * missing) for name, one in zip(names, given, strict=False)}
    arguments = dispatch.Arguments(**padded, check=False)
    found = _compute(what, _of_samples(loss, ndim, missing), arguments)
    reduced = loss._reduced_axes(ndim) if what == "value" else ()
    kept = tuple(length for axis, length in enumerate(shape[samples:]) if axis not in reduced)
    return np.asarray(found, kind).reshape(shape[:samples] + kept)


@lru_cache(maxsize=256)
def _of_samples(loss: BinaryCrossEntropy, ndim: int, missing: int) -> BinaryCrossEntropy:
    """The loss with axes counted from the end, beside ``missing`` more."""
    label_axis = loss.label_axis if loss.label_axis < 0 or not ndim else loss.label_axis - ndim
    axis = tuple(axis - ndim - missing for axis in loss._reduced_axes(ndim)) + tuple(range(-missing, 0))
    if loss.reduction == "none":
        return replace(loss, label_axis=label_axis)
    return replace(loss, label_axis=label_axis if ndim > 1 else -1, axis=axis)
