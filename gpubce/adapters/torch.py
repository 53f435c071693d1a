"""PyTorch's losses, computed by gpubce: change the import.

The classes and functions have the signatures of ``torch.nn``, ``torch.nn.functional`` and ``torchvision.ops``; what
else :class:`gpubce.BinaryCrossEntropy` knows may be given by keyword. They are operators of PyTorch's own
(``torch.ops.gpubce``), so autograd, ``torch.compile``, ``torch.export`` and the transforms of ``torch.func`` see one
node each. Backward keeps the inputs and nothing else (of at most 2^20 elements on a CPU the gradient too), and never
waits for a device.

Inputs are tensors of float16, bfloat16, float32 or float64, of any shape, on the CPU or a CUDA device; targets have the
same shape, in [0, 1], and any type; ``weight`` and ``pos_weight`` broadcast to them. Losses are in nats, of the shape
and type of the input for reduction "none", else one float32 (float64 for float64).
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.loss import _WeightedLoss

from gpubce import checks, dispatch
from gpubce.arrays.torch import PLAIN
from gpubce.errors import ArrayError, OptionError
from gpubce.linear import CHUNK, LAYER, LinearBinaryCrossEntropy
from gpubce.loss import IMMUTABLE, BinaryCrossEntropy, from_options

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "linear_binary_cross_entropy",
    "sigmoid_focal_loss",
]


IN_ONE_PASS = 1 << 20
"""Elements of a loss on the CPU up to which forward makes the gradient too, and keeps it until backward takes it: one
pass for both in place of one for each."""


# The operators ------------------------------------------------------------------------------------------------------
#
# "options" is JSON: torch.export writes it into its programs. Each operator takes the inputs, then that.


@lru_cache(maxsize=256)
def _parsed(options: str) -> BinaryCrossEntropy:
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(options).items()
    }
    return from_options(given)


@torch.compiler.assume_constant_result
def _written(options: dict[str, Any]) -> str:
    # JSON takes 4 us. What is equal but of another type, as 1 and True, is not the same option.
    return _written_before(**options) if IMMUTABLE.issuperset(map(type, options.values())) else json.dumps(options)


@lru_cache(maxsize=256, typed=True)
def _written_before(**options: Any) -> str:
    return json.dumps(options)


@torch.compiler.assume_constant_result
def _with(options: str, changed: dict[str, Any]) -> str:
    return json.dumps(json.loads(options) | changed)


@torch.compiler.assume_constant_result
def _reduction_of(options: str) -> str:
    return _parsed(options).reduction


@torch.compiler.assume_constant_result
def _reduced(options: str, ndim: int) -> list[int]:
    """The axes that the loss of an input with so many axes sums over."""
    return [*_parsed(options)._reduced_axes(ndim)]


@torch.compiler.assume_constant_result
def _refuse_other_gradients(options: str) -> None:
    """Raise where the loss is not linear in targets and weights, or the mean's denominator depends on them."""
    loss = _parsed(options)
    for name, absent in {"gamma": 0.0, "alpha": None, "label_smoothing": 0.0, "ignore_index": None}.items():
        if getattr(loss, name) != absent:
            raise OptionError(f"with {name} there is no gradient with respect to targets and weights: detach them")
    if loss.denominator != "elements":
        raise OptionError(
            f"with denominator={loss.denominator!r} there is no gradient with respect to targets and weights: detach "
            "them"
        )


def _arguments(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, check: bool | None = None
) -> dispatch.Arguments:
    return dispatch.Arguments(input, target, weight, check=check, pos_weight=pos_weight, signed=True)


def _value_of(input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, options: str) -> Tensor:
    loss = _parsed(options)
    return dispatch.value(loss._formula, loss._reduction, _arguments(input, target, weight, pos_weight), None)


def _gradient_of(
    grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, options: str
) -> Tensor:
    """The gradient with respect to the input, times the gradient of what comes after the loss."""
    return _derivative("gradient", grad, input, target, weight, pos_weight, options)


def _hessian_of(
    grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, options: str
) -> Tensor:
    """The second derivative of each element's part of the loss, likewise."""
    return _derivative("hessian", grad, input, target, weight, pos_weight, options)


_loss = torch.library.custom_op("gpubce::loss", _value_of, mutates_args=())
_gradient = torch.library.custom_op("gpubce::gradient", _gradient_of, mutates_args=())
_hessian = torch.library.custom_op("gpubce::hessian", _hessian_of, mutates_args=())


def _derivative(name, grad, input, target, weight, pos_weight, options) -> Tensor:
    loss = _parsed(options)
    arguments = _arguments(input, target, weight, pos_weight, check=False)  # The loss has checked them.
    in_one = (loss.reduction == "none" or grad.numel() == 1) and not _diverged(grad)
    scale = grad if in_one else 1.0
    derivative, *_ = dispatch.derivatives(loss._formula, loss._reduction, arguments, {name: None}, scale)
    return derivative if in_one else derivative.mul_(_over(grad, input, options))


def _diverged(grad: Tensor) -> bool:
    """Whether it is one number in host memory that is not finite. gpubce refuses such a number; trainers with PyTorch
    look for it in what comes of it, and leave the step out."""
    return grad.is_cpu and grad.numel() == 1 and not math.isfinite(grad.item())


def _over(grad: Tensor, input: Tensor, options: str) -> Tensor:
    """A gradient of the result, broadcast against the input."""
    if grad.ndim:
        for axis in _reduced(options, input.ndim):
            grad = grad.unsqueeze(axis)
    return grad


@_loss.register_fake
def _(input, target, weight, pos_weight, options):
    loss = _parsed(options)
    if loss.reduction == "none":
        return input.new_empty(input.shape)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    reduced = _reduced(options, input.ndim)
    kept = [length for axis, length in enumerate(input.shape) if axis not in reduced]
    return input.new_empty(kept, dtype=getattr(torch, loss.dtype) if loss.dtype else dtype)


@_gradient.register_fake
@_hessian.register_fake
def _(grad, input, target, weight, pos_weight, options):
    return input.new_empty(input.shape)


# Their derivatives --------------------------------------------------------------------------------------------------


def _linear(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], options: str, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The derivatives with respect to target, weight and pos_weight of a function with one value for each element.

    Without focal factor the loss is linear in each of them, and so is its gradient: the slope is the value at 1, less
    the value at 0. No formula is written a second time.
    """
    input, target, weight, pos_weight = inputs
    _refuse_other_gradients(options)
    slopes: list[Tensor | None] = [None, None, None]
    if needed[0]:
        one, zero = torch.ones_like(input), torch.zeros_like(input)
        slopes[0] = function(input, one, weight, pos_weight) - function(input, zero, weight, pos_weight)
    if needed[1]:
        slopes[1] = function(input, target, None, pos_weight)
    if needed[2]:
        one, zero = torch.ones_like(pos_weight), torch.zeros_like(pos_weight)
        slopes[2] = function(input, target, weight, one) - function(input, target, weight, zero)
    return slopes


def _spread(grad: Tensor, input: Tensor, options: str) -> Tensor:
    """The gradient of each element's own loss, from that of the result."""
    spread = _over(grad, input, options)
    if _reduction_of(options) == "mean":
        spread = spread / math.prod(input.shape[axis] for axis in _reduced(options, input.ndim))
    return spread


def _sum_to(slope: Tensor | None, factor: Tensor, like: Tensor | None) -> Tensor | None:
    if slope is None or like is None:
        return None
    return (slope * factor).sum_to_size(like.shape).to(like.dtype)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.options = inputs[-1]


def _one_for_each_sample(function: Any, leading: int, info: Any, in_dims: tuple, inputs: tuple) -> tuple[Tensor, int]:
    """The rule for ``torch.func.vmap``: one call, with one result for each sample. ``leading`` is the number of
    tensors before the input, which have the shape of the result."""
    *tensors, options = inputs
    places = in_dims[: len(tensors)]
    ndim = tensors[leading].ndim - (places[leading] is not None)
    # A sample of one axis is one label: behind the axis of the samples, one more keeps it so.
    one_label, reduced = ndim == 1, _reduction_of(options) != "none"
    moved = []
    for k, (tensor, place) in enumerate(zip(tensors, places, strict=True)):
        if tensor is not None and place is not None:
            tensor = tensor.movedim(place, 0)
            if k > leading + 1:  # Weights broadcast from the last axis on.
                tensor = tensor.reshape(info.batch_size, *[1] * (ndim + 1 - tensor.ndim), *tensor.shape[1:])
        elif tensor is not None and k <= leading + 1:
            tensor = tensor.expand(info.batch_size, *tensor.shape)
        if tensor is not None and one_label and tensor.ndim and not (k < leading and reduced):
            tensor = tensor.unsqueeze(-1)
        moved.append(tensor)
    options = _of_samples(options, ndim)
    result = function.apply(*moved, options)
    return result.squeeze(-1) if one_label and (leading or not reduced) else result, 0


@torch.compiler.assume_constant_result
def _of_samples(options: str, ndim: int) -> str:
    """The options for inputs with an axis of samples in front, and one behind samples of one axis."""
    loss = _parsed(options)
    changed: dict[str, Any] = {}
    if loss.label_axis >= 0 and ndim > 1:
        changed["label_axis"] = loss.label_axis - ndim
    elif ndim == 1:
        changed["label_axis"] = -1
    if loss.reduction != "none":
        axes = [axis + 1 for axis in _reduced(options, ndim)] + ([2] if ndim == 1 else [])
        changed |= {"axis": axes} if axes else {"reduction": "none", "axis": None}
    return _with(options, changed)


_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {_loss: _value_of, _gradient: _gradient_of, _hessian: _hessian_of}
_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
_transforms = getattr(torch._C, "_are_functorch_transforms_active", None)
_is_batch = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", None)
"""Whether a tensor stands for several, as gradients do under ``is_grads_batched``."""


def _seen_by_nobody(inputs: Sequence[Any]) -> bool:
    """Whether these are tensors in host memory, and nothing traces, transforms or watches what is done with them."""
    if torch.compiler.is_compiling() or _modes is None or _modes() or torch.jit.is_tracing():
        return False
    if _transforms is None or _transforms() or _is_batch is None or _is_batch(inputs[0]):
        return False
    return all(tensor is None or (type(tensor) in PLAIN and tensor.is_cpu) for tensor in inputs[:-1])


def _are_plain(inputs: Sequence[Any]) -> bool:
    """Whether forward mode takes no part either."""
    return _seen_by_nobody(inputs) and forward_ad._current_level < 0


def _run(operator: Any, inputs: Sequence[Any]) -> Tensor:
    """What the operator does. PyTorch's registry of operators takes 8 us; only tracers and watchers need it."""
    return _FUNCTIONS[operator](*inputs) if _seen_by_nobody(inputs) else operator(*inputs)


def _apply(function: Any, operator: Any, *inputs: Any) -> Tensor:
    """Inside of a backward: torch.compile has no double backward, and fails on a function within a function. Where
    nobody asks for a second derivative, there is no need for one."""
    if torch.compiler.is_compiling():
        return operator(*inputs)
    if torch.is_grad_enabled() or not _are_plain(inputs):
        return function.apply(*inputs)
    return _FUNCTIONS[operator](*inputs)


class _Loss(torch.autograd.Function):
    """The loss, with its derivatives. Operators with ``register_autograd`` would not work under ``torch.func.grad``."""

    @staticmethod
    def forward(*inputs):
        return _run(_loss, inputs)

    setup_context = staticmethod(_save)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _one_for_each_sample(_Loss, 0, info, in_dims, inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs = input, *others = ctx.saved_tensors
        options, needed = ctx.options, ctx.needs_input_grad
        of_input = _apply(_Gradient, _gradient, grad, *inputs, options) if needed[0] else None
        of_others = [None] * 3
        if any(needed[1:4]):
            each = _with(options, {"reduction": "none", "axis": None})
            slopes = _linear(lambda *tensors: _apply(_Loss, _loss, *tensors, each), inputs, options, needed[1:4])
            factor = _spread(grad, input, options)
            of_others = [_sum_to(slope, factor, like) for slope, like in zip(slopes, others, strict=True)]
        return of_input, *of_others, None


class _SmallLoss(torch.autograd.Function):
    """The loss of few elements, with the gradient that its own backward asks for: one pass makes both. Two calls took
    58 us, and take 30. What else is asked for is computed from the inputs, as in :class:`_Loss`."""

    @staticmethod
    def forward(ctx, *inputs):
        *tensors, options = inputs
        loss = _parsed(options)
        arguments = _arguments(*tensors)
        value, *ctx.gradients = dispatch.value_and_grad(loss._formula, loss._reduction, arguments, None, None, 1.0)
        _save(ctx, inputs, value)
        return value

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled() or not _are_plain((grad, None)) or grad.item() != 1.0:
            return _Loss.backward(ctx, grad)
        try:
            gradient = ctx.gradients.pop()  # Whom it is given to may change it: nobody gets it a second time.
        except IndexError:
            return _Loss.backward(ctx, grad)
        ctx.saved_tensors  # noqa: B018  (It raises where one was changed since.)
        return gradient, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient with respect to the input, times a given one; its own gradient is that of double backward."""

    @staticmethod
    def forward(*inputs):
        return _run(_gradient, inputs)

    setup_context = staticmethod(_save)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _one_for_each_sample(_Gradient, 1, info, in_dims, inputs)

    @staticmethod
    def backward(ctx, grad):
        given, *inputs = ctx.saved_tensors
        input, *others = inputs
        options, needed = ctx.options, ctx.needs_input_grad
        of_given = of_input = None
        if needed[0]:
            shared = grad * _Gradient.apply(torch.ones_like(given), *inputs, options)
            if axes := _reduced(options, input.ndim):
                shared = shared.sum(axes)
            of_given = shared.to(given.dtype)
        if needed[1]:
            of_input = grad * _Hessian.apply(given, *inputs, options)
        of_others = [None] * 3
        if any(needed[2:5]):
            slopes = _linear(lambda *tensors: _Gradient.apply(given, *tensors, options), inputs, options, needed[2:5])
            of_others = [_sum_to(slope, grad, like) for slope, like in zip(slopes, others, strict=True)]
        return of_given, of_input, *of_others, None


class _Hessian(torch.autograd.Function):
    """The second derivative, likewise. There is no third."""

    @staticmethod
    def forward(*inputs):
        return _run(_hessian, inputs)

    setup_context = staticmethod(_save)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _one_for_each_sample(_Hessian, 1, info, in_dims, inputs)

    @staticmethod
    def backward(ctx, grad):
        raise OptionError("there is no third derivative of the loss")


# Function.apply binds arguments to the signature, which takes 8 us to make.
for _function in (_Loss, _Gradient, _Hessian):
    setattr(_function.forward, "__signature__", inspect.signature(_function.forward))  # noqa: B010  (It has no type.)


# What users call ----------------------------------------------------------------------------------------------------


PosWeight = Tensor | Sequence[float] | float
"""A tensor that broadcasts to the logits, as in PyTorch; or the option: one number, or one for each label along
``label_axis``."""


def _call(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: PosWeight | None, options: dict[str, Any]
) -> Tensor:
    if "base" in options:
        raise OptionError("base changes the unit of the loss: PyTorch's is nats, so leave it out")
    if options.get("reduction") == "none" and torch.is_autocast_enabled(input.device.type):
        input = input.float()  # Autocast gives these losses in float32.
    if isinstance(pos_weight, Tensor):
        pos_weight = pos_weight.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    elif pos_weight is not None:
        options, pos_weight = options | {"pos_weight": _numbers(pos_weight)}, None
    inputs = input, target, weight, pos_weight, _written(options)
    wanted = _wants_gradient(inputs[:-1])
    if torch.compiler.is_compiling():  # Dynamo fails on a function of which nobody wants a gradient.
        return _Loss.apply(*inputs) if wanted else _loss(*inputs)
    # The function says of what takes part in forward mode that it has none. It takes 9 us.
    if _are_plain(inputs):
        if not wanted:
            return _value_of(*inputs)
        if input.numel() <= IN_ONE_PASS and _is_one_value(inputs[-1]) and not _wants_gradient(inputs[1:-1]):
            return _SmallLoss.apply(*inputs)
    return _Loss.apply(*inputs)


@lru_cache(maxsize=256)
def _is_one_value(options: str) -> bool:
    loss = _parsed(options)
    return loss.reduction != "none" and loss.axis is None


@torch.compiler.assume_constant_result
def _numbers(pos_weight: Any) -> float | tuple[float, ...] | None:
    return checks.label_vector("pos_weight", list(pos_weight) if isinstance(pos_weight, range) else pos_weight)


def _wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is None and reduce is None:
        return reduction
    return torch.nn._reduction.legacy_get_string(size_average, reduce)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """``torch.nn.functional.binary_cross_entropy``: of probabilities, logarithms not below -100.

    Differs from it where it fails: float16, bfloat16 and autocast work; targets may be bool or integers; on CUDA an
    invalid element gives NaN and not a failed assertion, after which a process cannot use the GPU any more. A reduced
    value is float32 (float64 for float64). Where p = y the gradient is the limit, +-1, where PyTorch has 0.

    Raises
    ------
    gpubce.errors.ShapeError, DtypeError, ArrayError, InvalidValueError, OptionError

    Examples
    --------
    >>> import torch
    >>> from gpubce.adapters.torch import binary_cross_entropy
    >>> p = torch.tensor([0.9, 0.2], requires_grad=True)
    >>> binary_cross_entropy(p, torch.tensor([1.0, 0.0])).backward()
    >>> p.grad
    tensor([-0.5556,  0.6250])
    """
    return _call(input, target, weight, None, {"reduction": _reduction(size_average, reduce, reduction), **options})


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: PosWeight | None = None,
    **options: Any,
) -> Tensor:
    """``torch.nn.functional.binary_cross_entropy_with_logits``.

    ``options`` are those of :class:`gpubce.BinaryCrossEntropy`: ``label_smoothing``, ``ignore_index``, ``gamma`` and so
    on. ``pos_weight`` may be a number or a sequence too, one for each label along ``label_axis``. Differs from
    PyTorch's where that fails: infinite logits, targets of bool and integers, targets outside [0, 1].
    Raises what :func:`binary_cross_entropy` raises.

    Examples
    --------
    >>> import torch
    >>> from gpubce.adapters.torch import binary_cross_entropy_with_logits
    >>> x = torch.tensor([2.0, -1.0], requires_grad=True)
    >>> binary_cross_entropy_with_logits(x, torch.tensor([True, False]), pos_weight=torch.tensor(3.0)).backward()
    >>> x.grad
    tensor([-0.1788,  0.1345])
    """
    reduction = _reduction(size_average, reduce, reduction)
    return _call(input, target, weight, pos_weight, {"from_logits": True, "reduction": reduction, **options})


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none", **options: Any
) -> Tensor:
    """``torchvision.ops.sigmoid_focal_loss``: the focal loss of logits (Lin et al. 2017, eq. 5). A negative ``alpha``
    leaves the classes unbalanced. Raises what :func:`binary_cross_entropy` raises.

    Examples
    --------
    >>> import torch
    >>> from gpubce.adapters.torch import sigmoid_focal_loss
    >>> sigmoid_focal_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
    tensor([0.0005, 0.0170])
    """
    options = {"from_logits": True, "reduction": reduction, "gamma": gamma, **options}
    return _call(inputs, targets, None, None, options | ({"alpha": alpha} if alpha >= 0 else {}))


class _Linear(torch.autograd.Function):
    """The loss of a linear layer; backward makes the logits once more."""

    @staticmethod
    def forward(ctx, loss, targets, row_weight, features, weight, bias):
        # PyTorch refuses to go backward where one of these was changed in place.
        ctx.pair = isinstance(targets, tuple)
        parts = [torch.as_tensor(part) for part in targets] if ctx.pair else [targets]
        ctx.save_for_backward(features, weight, bias, row_weight, *parts)
        ctx.loss = loss
        return loss(features, weight, bias, targets, row_weight=row_weight)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise OptionError("there is no second derivative of linear_binary_cross_entropy: leave create_graph out")
        features, weight, bias, row_weight, *parts = ctx.saved_tensors
        targets = tuple(parts) if ctx.pair else parts[0]
        of = [name for name, needed in zip(LAYER, ctx.needs_input_grad[3:], strict=True) if needed]
        how = {"row_weight": row_weight, "grad_scale": grad, "of": of, "check": False}  # The loss has checked them.
        return None, None, None, *ctx.loss.value_and_grad(features, weight, bias, targets, **how)[1]


@torch.compiler.disable
def linear_binary_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Any,
    *,
    row_weight: Tensor | None = None,
    chunk: int = CHUNK,
    **options: Any,
) -> Tensor:
    """The loss of ``torch.nn.Linear`` with many labels, whose logits are never stored whole: see
    :class:`gpubce.LinearBinaryCrossEntropy` for the arguments and errors.

    Forward keeps the inputs; backward makes each chunk of logits once more. Gradients are those of features, weight and
    bias, once: there is no second derivative. Autocast converts the three as it does for ``torch.nn.Linear``.
    ``torch.compile`` leaves this call to Python.

    Examples
    --------
    >>> import torch
    >>> from gpubce.adapters.torch import linear_binary_cross_entropy
    >>> layer = torch.nn.Linear(4, 1000)
    >>> positives = torch.tensor([0, 1, 1]), torch.tensor([7, 12, 900])      # rows and labels
    >>> loss = linear_binary_cross_entropy(torch.randn(2, 4), layer.weight, layer.bias, positives, denominator="rows")
    >>> loss.backward()
    >>> layer.weight.grad.shape
    torch.Size([1000, 4])
    """
    for name, array in (("targets", targets), ("row_weight", row_weight)):
        if isinstance(array, Tensor) and array.requires_grad:
            raise OptionError(f"there is no gradient with respect to {name}: give {name}.detach()")
    if not isinstance(targets, Tensor | tuple):
        raise ArrayError(f"targets is a {type(targets).__name__}: give a tensor, or (row numbers, label numbers)")
    if isinstance(bias, float | int):
        bias = features.new_tensor(bias)
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        half = torch.get_autocast_dtype(kind)
        features, weight = features.to(half), weight.to(half)
        bias = None if bias is None else bias.to(half)
    loss = LinearBinaryCrossEntropy(chunk=chunk, **options)
    return _Linear.apply(loss, targets, row_weight, features, weight, bias)


class BCELoss(_WeightedLoss):
    """``torch.nn.BCELoss``; see :func:`binary_cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from gpubce.adapters.torch import BCELoss
    >>> BCELoss(reduction="sum")(torch.tensor([0.9, 0.2]), torch.tensor([1, 0]))
    tensor(0.3285)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        **options: Any,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        from_options({"reduction": self.reduction, **options})  # Raises if they have no meaning.
        self.options = options

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return binary_cross_entropy(input, target, self.weight, reduction=self.reduction, **self.options)

    def extra_repr(self) -> str:
        """The options that PyTorch's class has not."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class BCEWithLogitsLoss(_WeightedLoss):
    """``torch.nn.BCEWithLogitsLoss``; see :func:`binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import torch
    >>> from gpubce.adapters.torch import BCEWithLogitsLoss
    >>> loss = BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0]), label_smoothing=0.1)
    >>> loss(torch.zeros(4, 2), torch.ones(4, 2))
    tensor(1.3516)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: PosWeight | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        from_options({"from_logits": True, "reduction": self.reduction, **options})
        self.pos_weight: PosWeight | None
        if pos_weight is None or isinstance(pos_weight, Tensor):
            self.register_buffer("pos_weight", pos_weight)
        else:
            self.pos_weight = checks.label_vector("pos_weight", pos_weight)
        self.options = options

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight, **self.options
        )

    def extra_repr(self) -> str:
        """The options that PyTorch's class has not."""
        own = {} if self.pos_weight is None or isinstance(self.pos_weight, Tensor) else {"pos_weight": self.pos_weight}
        return ", ".join(f"{name}={value!r}" for name, value in (own | self.options).items())
