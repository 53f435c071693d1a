"""Who is compared: each provider says how it computes a case, in the words that its users would write.

Where a library is not there, or cannot do a case, the provider is left out with the reason. gpubce, PyTorch and
scikit-learn's HalfBinomialLoss use the same number of threads, JAX every processor that the process may use; NumPy and
scikit-learn's log_loss know only one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import limits
from benchmarks.cases import Workload
from benchmarks.libraries import Arrays, CuPy, DeviceBytes, Jax, LeftOut, NumPy, Torch, module
from gpubce.backends.cpu.launch import thread_count

Run = Callable[[Arrays], Any]
"""Gives the value, or the pair of value and gradient."""

Build = Callable[[Workload, Any, Arrays], Run]
"""Makes what is timed, for a case, with a library and one set of its arrays."""


def refuse(workload: Workload, *features: str, types: tuple[str, ...] = ()) -> None:
    """Leave a provider out of the cases with these features, or with predictions of another type."""
    case = workload.case
    has = {
        "gradient": workload.gradient,
        "loss of logits": workload.from_logits,
        "loss of probabilities": not workload.from_logits,
        "loss along an axis": workload.axis is not None,
        "mask": case.mask is not None,
        "soft targets": not case.target_type.startswith("uint"),
        "weight": case.weight is not None,
        case.input_type: bool(types) and case.input_type not in types,
    }
    for feature in (*features, case.input_type):
        if has[feature]:
            raise LeftOut(f"it has no {feature}")


def with_limit(workload: Workload, library: Any, arrays: Arrays) -> Run:
    if isinstance(library, DeviceBytes):
        return limits.copying(workload, arrays, library)
    return limits.reading(workload, arrays, thread_count())


def with_gpubce(workload: Workload, library: Any, arrays: Arrays) -> Run:
    loss = workload.case.loss
    how: Arrays = {"device": "cpu"} if library.device == "cpu" else {}
    if workload.into:
        how["grad_out"] = library.empty_like(arrays["predictions"])
    call = loss.value_and_grad if workload.gradient else loss
    return lambda given: call(**given, **how)


# PyTorch -------------------------------------------------------------------------------------------------------------


def _forward_or_both(loss: Callable[..., Any], workload: Workload, library: Torch) -> Run:
    """A loss of tensors, or its forward and backward pass."""

    def forward(given: Arrays) -> Any:
        with library.torch.no_grad():
            return loss(**given)

    def both(given: Arrays) -> Any:
        x = given["predictions"].detach().requires_grad_()
        value = loss(**(given | {"predictions": x}))
        value.backward()
        return value, x.grad

    return both if workload.gradient else forward


def with_drop_in(workload: Workload, library: Torch, arrays: Arrays) -> Run:
    """gpubce.adapters.torch: PyTorch's autograd asks it for the gradient."""
    refuse(workload, "mask")
    adapter = importlib.import_module("gpubce.adapters.torch")
    function = adapter.binary_cross_entropy_with_logits if workload.from_logits else adapter.binary_cross_entropy
    options = {} if workload.axis is None else {"axis": workload.axis}

    def loss(predictions, targets, weight=None):
        return function(predictions, targets, weight, **options)

    return _forward_or_both(loss, workload, library)


def _torch_loss(workload: Workload, library: Torch) -> Callable[..., Any]:
    functional, axis = library.torch.nn.functional, workload.axis
    function = functional.binary_cross_entropy_with_logits if workload.from_logits else functional.binary_cross_entropy

    def loss(predictions, targets, weight=None, mask=None):
        targets = targets.to(predictions.dtype)  # It takes no others.
        if mask is not None:
            return (function(predictions, targets, reduction="none") * mask).sum() / mask.sum()
        if axis is not None:
            return function(predictions, targets, reduction="none").mean(axis)
        return function(predictions, targets, weight)

    return loss


def with_torch(workload: Workload, library: Torch, arrays: Arrays) -> Run:
    return _forward_or_both(_torch_loss(workload, library), workload, library)


def with_torch_compile(workload: Workload, library: Torch, arrays: Arrays) -> Run:
    library.torch.compiler.reset()  # Of one function it compiles eight variants, and runs the ninth uncompiled.
    compiled = library.torch.compile(_torch_loss(workload, library), dynamic=False)
    return _forward_or_both(compiled, workload, library)


def with_triton(workload: Workload, library: Torch, arrays: Arrays) -> Run:
    """A hand-written kernel."""
    others = "loss of probabilities", "loss along an axis", "mask", "weight"
    refuse(workload, *others, types=("float16", "bfloat16", "float32"))
    mean_loss = module("benchmarks.triton_kernel", "Triton").mean_loss
    if not workload.gradient:
        return lambda given: mean_loss(given["predictions"], given["targets"])
    there = library.empty_like(arrays["predictions"]) if workload.into else None

    def both(given: Arrays) -> Any:
        gradient = library.empty_like(given["predictions"]) if there is None else there
        return mean_loss(given["predictions"], given["targets"], gradient), gradient

    return both


# JAX, scikit-learn, NumPy, CuPy --------------------------------------------------------------------------------------


def with_jax(workload: Workload, library: Jax, arrays: Arrays) -> Run:
    """optax's function of logits, jitted. Of probabilities it has none."""
    jnp, optax = library.jax.numpy, module("optax", "optax")

    def loss(predictions, targets, weight=None, mask=None):
        y = targets.astype(predictions.dtype)
        if workload.from_logits:
            losses = optax.sigmoid_binary_cross_entropy(predictions, y)
        else:
            losses = -y * jnp.log(predictions) - (1 - y) * jnp.log1p(-predictions)
        if weight is not None:
            losses = losses * weight
        return jnp.mean(losses, axis=workload.axis, where=mask)

    function = library.jax.jit(library.jax.value_and_grad(loss) if workload.gradient else loss)

    def run(given: Arrays) -> Any:
        others = dict(given)
        return function(others.pop("predictions"), **others)

    return run


def with_scikit_learn(workload: Workload, library: NumPy, arrays: Arrays) -> Run:
    """log_loss of probabilities; of logits HalfBinomialLoss, which its linear models and boosted trees use."""
    refuse(workload, "loss along an axis", "mask", "weight")
    if not workload.from_logits:
        refuse(workload, "gradient", "soft targets")
        log_loss = module("sklearn.metrics", "scikit-learn").log_loss
        return lambda given: log_loss(given["targets"], given["predictions"], labels=[0, 1])
    refuse(workload, types=("float32", "float64"))
    half_binomial = module("sklearn._loss", "scikit-learn").HalfBinomialLoss()

    def value(given: Arrays) -> Any:
        z = given["predictions"]
        return half_binomial.loss(given["targets"].astype(z.dtype, copy=False), z, n_threads=thread_count()).mean()

    def both(given: Arrays) -> Any:
        z = given["predictions"]
        y = given["targets"].astype(z.dtype, copy=False)
        losses, gradient = half_binomial.loss_gradient(y, z, n_threads=thread_count())
        gradient /= gradient.size
        return losses.mean(), gradient

    return both if workload.gradient else value


def with_numpy(workload: Workload, library: NumPy, arrays: Arrays) -> Run:
    """The usual formula. Means are float64: along the rows NumPy adds float32 one by one."""
    refuse(workload, types=("float16", "float32", "float64"))

    def value(given: Arrays) -> Any:
        z, y = given["predictions"], given["targets"]
        if workload.from_logits:
            losses = np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))
        else:
            losses = -(y * np.log(z) + (1 - y) * np.log1p(-z))
        if "weight" in given:
            losses *= given["weight"]
        return losses.mean(axis=workload.axis, dtype=np.float64, where=given.get("mask", True))

    def both(given: Arrays) -> Any:
        z, y = given["predictions"], given["targets"]
        return value(given), (1 / (1 + np.exp(-z)) - y) / z.dtype.type(z.size)

    return both if workload.gradient else value


def with_cupy(workload: Workload, library: CuPy, arrays: Arrays) -> Run:
    """A kernel that writes the loss of each element, then CuPy's mean."""
    refuse(workload, types=("float16", "float32", "float64"))
    real = "double" if workload.case.input_type == "float64" else "float"
    of_logits = f"max(v, ({real})0) - v * t + log1p(exp(-abs(v)))"
    of_probabilities = "-(t * log(v) + (1 - t) * log1p(-v))"
    element = f"""
        const {real} v = ({real})z, t = ({real})y;
        loss = {of_logits if workload.from_logits else of_probabilities};
    """
    loss = library.cupy.ElementwiseKernel("T z, Y y", "T loss", element, "bce_loss")
    loss_and_gradient = library.cupy.ElementwiseKernel(
        "T z, Y y, float64 scale",
        "T loss, T gradient",
        f"{element} gradient = (1 / (1 + exp(-v)) - t) * ({real})scale;",
        "bce_loss_and_gradient",
    )

    def value(given: Arrays) -> Any:
        losses = loss(given["predictions"], given["targets"])
        if "weight" in given:
            losses *= given["weight"]
        if "mask" in given:
            return (losses * given["mask"]).sum() / given["mask"].sum()
        return losses.mean(axis=workload.axis)

    def both(given: Arrays) -> Any:
        z = given["predictions"]
        losses, gradient = loss_and_gradient(z, given["targets"], 1.0 / z.size)
        return losses.mean(), gradient

    return both if workload.gradient else value


# The table -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provider:
    """Who computes a case, and with whose arrays on which device."""

    name: str
    build: Build
    libraries: Mapping[str, type[NumPy]]
    writes: bool = False
    """Whether it can write the gradient into an array that is there."""

    def library(self, workload: Workload, device: str) -> type[NumPy]:
        """Whose arrays."""
        if device not in self.libraries:
            raise LeftOut("it computes on the CPU only" if device == "cuda" else "it computes on a GPU only")
        if workload.into and not self.writes:
            raise LeftOut("it makes a new array for the gradient")
        found = self.libraries[device]
        # CuPy knows bfloat16 from version 14 on only.
        return Torch if found is CuPy and workload.case.input_type == "bfloat16" else found


LIMIT = Provider("limit", with_limit, {"cpu": NumPy, "cuda": DeviceBytes}, writes=True)

PROVIDERS = (
    Provider("gpubce", with_gpubce, {"cpu": NumPy, "cuda": CuPy}, writes=True),
    Provider("gpubce.adapters.torch", with_drop_in, {"cpu": Torch, "cuda": Torch}),
    Provider("PyTorch", with_torch, {"cpu": Torch, "cuda": Torch}),
    Provider("torch.compile", with_torch_compile, {"cpu": Torch, "cuda": Torch}),
    Provider("JAX", with_jax, {"cpu": Jax, "cuda": Jax}),
    Provider("scikit-learn", with_scikit_learn, {"cpu": NumPy}),
    Provider("NumPy", with_numpy, {"cpu": NumPy}),
    Provider("CuPy", with_cupy, {"cuda": CuPy}),
    Provider("Triton", with_triton, {"cuda": Torch}, writes=True),
)
