"""Cases: a loss, a shape and a seed, from which the arrays of a call are made."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import gpubce

Results = dict[str, np.ndarray]

INPUT_TYPES = ("float16", "bfloat16", "float32", "float64")
TARGET_TYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", *INPUT_TYPES)

LOGIT_EDGES = (np.inf, -np.inf, np.nan, 0.0, -0.0, 90.0, -90.0, 88.0, -87.33, 16.6, -16.6, 1e-30, -1e-30, 1e4, -1e4)
PROBABILITY_EDGES = (0.0, 1.0, np.nan, 0.5, 1e-30, 2.0**-24, 1 - 2.0**-11, 0.29, 0.71, 1e-45, 0.25, 0.75)


def dtype(name: str) -> np.dtype:
    """The NumPy type of that name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@dataclass(frozen=True)
class Case:
    """What to compute. ``options`` are those of BinaryCrossEntropy."""

    options: tuple[tuple[str, Any], ...] = ()
    input_type: str = "float32"
    target_type: str = "float32"
    shape: tuple[int, ...] = (7, 13)
    weight: str | None = None
    """None, or the type of a full weight array, or "row" or "column" for a broadcast one."""
    mask: str | None = None
    """None, "full" or "row"."""
    layout: str = "C"
    """"C", "F", "strided" (every second element), "reversed", or "unaligned" (not on a 16-byte boundary)."""
    seed: int = 0
    edges: bool = True
    """Whether some predictions are infinities, NaN and the like."""
    methods: tuple[str, ...] = ("value_and_grad",)

    @property
    def loss(self) -> gpubce.BinaryCrossEntropy:
        return gpubce.BinaryCrossEntropy(**dict(self.options))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arguments of a call."""
        rng = np.random.default_rng(self.seed)
        options = dict(self.options)
        size = int(np.prod(self.shape))
        logits = rng.normal(0.0, 4.0, size)
        if options.get("from_logits"):
            predictions, edges = logits, LOGIT_EDGES
        else:
            predictions, edges = 1.0 / (1.0 + np.exp(-logits)), PROBABILITY_EDGES
        if self.edges:
            count = min(size, len(edges))
            predictions[rng.permutation(size)[:count]] = edges[:count]
        if self.target_type in INPUT_TYPES:
            targets = np.where(rng.random(size) < 0.5, rng.random(size), rng.random(size) < 0.4)
        else:
            targets = (rng.random(size) < 0.4).astype(np.float64)
        ignored = options.get("ignore_index")
        if ignored is not None:
            targets[rng.random(size) < 0.2] = ignored
        with np.errstate(over="ignore"):
            arrays = {
                "predictions": self.laid_out(predictions.astype(dtype(self.input_type)).reshape(self.shape)),
                "targets": self.laid_out(targets.astype(dtype(self.target_type)).reshape(self.shape)),
            }
        if self.weight in ("row", "column"):
            shape = self.shape[-1:] if self.weight == "row" else (*self.shape[:1], *(1,) * (len(self.shape) - 1))
            arrays["weight"] = rng.integers(0, 4, shape).astype(np.float32) * np.float32(0.3)
        elif self.weight is not None:
            arrays["weight"] = (rng.integers(0, 4, self.shape) * 0.3).astype(dtype(self.weight))
        if self.mask is not None:
            arrays["mask"] = rng.random(self.shape if self.mask == "full" else self.shape[-1:]) < 0.7
        return arrays

    def laid_out(self, array: np.ndarray) -> np.ndarray:
        """The same elements with other strides."""
        if self.layout == "F":
            return np.asfortranarray(array)
        if self.layout == "strided":
            wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
            wide[..., ::2] = array
            return wide[..., ::2]
        if self.layout == "reversed":
            return array[..., ::-1].copy()[..., ::-1]
        if self.layout == "unaligned":
            room = np.zeros(array.size + 1, array.dtype)
            room[1:] = array.ravel()
            return room[1:].reshape(array.shape)
        return array


METHODS = ("value", "value_and_grad", "grad_and_hess", "state")


def run_case(case: Case, device: str = "auto") -> Results:
    """What the case's methods give."""
    loss, arrays = case.loss, case.arrays
    call = {**arrays, "device": device, "check": False}
    results: Results = {}
    if "value" in case.methods:
        results["value"] = np.asarray(loss(**call))
    if "value_and_grad" in case.methods:
        value, gradient = loss.value_and_grad(**call, grad_scale=0.75)
        results |= {"value beside gradient": np.asarray(value), "gradient": gradient}
    if "grad_and_hess" in case.methods:
        results["element gradient"], results["hessian"] = loss.grad_and_hess(**call)
    if "state" in case.methods and loss.reduction != "none":
        everything = ("weight", "positives", "predictions", "squared_error", "cross_entropy")
        state = loss.state(**call, sums=everything)
        results["sums"] = np.asarray(state.values)
        results["finished"] = np.asarray(loss.finish(state))
    return results


def bits(array: np.ndarray) -> np.ndarray:
    """The bits of an array, every NaN as the same one."""
    array = np.ascontiguousarray(array)
    unsigned = array.view(f"uint{8 * array.dtype.itemsize}")
    return np.where(array != array, np.array(-1, np.int64).astype(unsigned.dtype), unsigned)


def differences(one: Results, two: Results) -> list[str]:
    """Where the bits of two results differ, in words; empty where they are the same."""
    found = [f"only one has {name}" for name in set(one) ^ set(two)]
    for name in one:
        if name in two:
            if one[name].shape != two[name].shape or one[name].dtype != two[name].dtype:
                found.append(f"{name}: {one[name].dtype}{one[name].shape} and {two[name].dtype}{two[name].shape}")
            elif not np.array_equal(bits(one[name]), bits(two[name])):
                where = np.flatnonzero(bits(one[name]).ravel() != bits(two[name]).ravel())
                first = where[0]
                found.append(
                    f"{name}: {where.size} of {one[name].size} differ, first at {first}: "
                    f"{one[name].ravel()[first]!r} and {two[name].ravel()[first]!r}"
                )
    return found
