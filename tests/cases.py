"""Cases: a loss, a shape and a seed, from which the arrays of a call are made.

The arrays have the same bits on every machine and with every version of NumPy, because the results are compared with
committed digests (tests/matrix.py). They are made from the words of PCG64, a stream that NumPy promises never to
change, by operations that IEEE 754 rounds correctly. NumPy's exp, and normal with it, depend on the processor.
"""

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

import gpubce
from gpubce.spec.quantities import QUANTITIES

Results = dict[str, np.ndarray]

INPUT_TYPES = ("float16", "bfloat16", "float32", "float64")
TARGET_TYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", *INPUT_TYPES)

LOGIT_EDGES = (
    *(np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-30, -1e-30, 0.4995, -0.4995, 0.5, -0.5),
    *(16.6, -16.6, -87.33, 88.0, 90.0, -90.0, 1e4, -1e4),
)
PROBABILITY_EDGES = (0.0, 1.0, np.nan, 0.5, 1e-30, 2.0**-24, 1 - 2.0**-11, 0.29, 0.71, 1e-45, 0.25, 0.75)

PERIOD = 2**20 + 7
"""Longer arrays repeat themselves after that many elements: drawing the numbers would take longer than their loss."""


def dtype(name: str) -> np.dtype:
    """The NumPy type of that name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def rounded(values: np.ndarray, name: str) -> np.ndarray:
    """The values in that type. To the narrow types by way of float32, because each of the two steps is a rounding to
    nearest everywhere; in one step ml_dtypes rounds twice and NumPy once."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32).astype(dtype(name)) if name.endswith("float16") else values.astype(name)


def aligned_empty(shape: Sequence[int], kind: np.dtype) -> np.ndarray:
    """A new array that starts at a multiple of 64 bytes and ends with its memory, so that what is written behind it is
    noticed. GPUs align memory so; NumPy does to 16 bytes, which leaves it to chance whether four float64 are loaded
    at once."""
    size = int(np.prod(shape)) * kind.itemsize
    if size == 0:
        return np.empty(shape, kind)
    room = np.empty(size + 63, np.uint8)
    cells = (ctypes.c_uint8 * size).from_buffer(room, -room.ctypes.data % 64)
    return np.frombuffer(cells, kind).reshape(shape)


class Numbers:
    """Reproducible numbers."""

    def __init__(self, seed: int):
        self._generator = np.random.PCG64(seed)

    def words(self, size: int) -> np.ndarray:
        """Integers of 64 bits."""
        return self._generator.random_raw(size)

    def unit(self, size: int) -> np.ndarray:
        """Multiples of 2^-53 in [0, 1)."""
        return (self.words(size) >> np.uint64(11)) * 2.0**-53

    def integers(self, bound: int, size: int) -> np.ndarray:
        """Integers from 0 to bound - 1."""
        return (self.words(size) % np.uint64(bound)).astype(np.int64)

    def order(self, size: int) -> np.ndarray:
        """A permutation."""
        return np.argsort(self.words(size), kind="stable")

    def logits(self, size: int) -> np.ndarray:
        """Most between -16 and 16 with a peak at 0; one in eight up to 128, and one in eight up to 1024."""
        scale = np.array([16.0] * 6 + [128.0, 1024.0])[self.integers(8, size)]
        return (self.unit(size) + self.unit(size) - 1.0) * scale

    def probabilities(self, size: int) -> np.ndarray:
        """Numbers from 0 to 1, halves of such, quarters, ... as far as 2^-13, and 1 minus those."""
        near_zero = self.unit(size) / (1 << self.integers(14, size))
        return np.where(self.unit(size) < 0.5, near_zero, 1.0 - near_zero)


LABEL_VECTORS = {
    "pos_weight": lambda labels: tuple(0.5 + 0.25 * (k % 8) for k in range(labels)),
    "label_weight": lambda labels: tuple(0.1 * (k % 16) for k in range(labels)),
}
"""One number for each label."""


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
    edges: str = "all"
    """"all": some predictions are infinities, NaN, probabilities of 0 and 1; "finite": only the other edges, so that a
    sum is a number and shows every bit that went into it; "none": what benchmarks time, logits from -16 to 16 and
    probabilities from 2^-14 to 1 - 2^-14, where no library clips and no processor slows down for subnormal numbers."""
    methods: tuple[str, ...] = ("value_and_grad",)
    hard: bool = False
    """Whether every target is 0 or 1: floating-point targets may lie between them otherwise."""

    @property
    def loss(self) -> gpubce.BinaryCrossEntropy:
        return gpubce.BinaryCrossEntropy(**dict(self.options))

    def at(self, shape: tuple[int, ...], seed: int, edges: str) -> "Case":
        """The same computation on other arrays; one number for each label where there was one for each."""
        options = tuple(
            (name, LABEL_VECTORS[name](shape[-1]) if name in LABEL_VECTORS and isinstance(value, tuple) else value)
            for name, value in self.options
        )
        return replace(self, options=options, shape=shape, seed=seed, edges=edges)

    @cached_property
    def _special(self) -> np.ndarray:
        """The edges among the predictions."""
        logits = dict(self.options).get("from_logits")
        edges = rounded(np.array(LOGIT_EDGES if logits else PROBABILITY_EDGES), self.input_type).astype(np.float64)
        if self.edges == "all":
            return edges
        if self.edges == "none":
            return edges[:0]
        return edges[np.isfinite(edges) if logits else (edges > 0) & (edges < 1)]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arguments of a call."""
        numbers = Numbers(self.seed)
        options = dict(self.options)
        size = min(int(np.prod(self.shape)), PERIOD)
        if options.get("from_logits"):
            predictions = numbers.logits(size)
            if self.edges == "none":
                predictions = np.clip(predictions, -16.0, 16.0)
        else:
            gap = float(ml_dtypes.finfo(dtype(self.input_type)).epsneg)
            largest = 1.0 - (max(gap, 2.0**-14) if self.edges == "none" else gap)
            predictions = np.clip(numbers.probabilities(size), 2.0**-14, largest)
        chosen = numbers.order(size)[: min(size // 2, len(self._special))]
        predictions[chosen] = self._special[numbers.order(len(self._special))[: len(chosen)]]
        targets = (numbers.unit(size) < 0.4).astype(np.float64)
        if self.target_type in INPUT_TYPES and not self.hard:
            targets = np.where(numbers.unit(size) < 0.5, numbers.unit(size), targets)
        ignored = options.get("ignore_index")
        targets = rounded(targets, self.target_type)
        if ignored is not None:
            targets[numbers.unit(size) < 0.2] = ignored
        arrays = {
            "predictions": self._laid_out(rounded(predictions, self.input_type)),
            "targets": self._laid_out(targets),
        }
        if self.weight in ("row", "column"):
            shape = self.shape[-1:] if self.weight == "row" else (*self.shape[:1], *(1,) * (len(self.shape) - 1))
            weights = numbers.integers(4, int(np.prod(shape))).reshape(shape) * 0.3
            arrays["weight"] = rounded(weights, "float32")
        elif self.weight is not None:
            arrays["weight"] = self._filled(rounded(numbers.integers(4, size) * 0.3, self.weight))
        if self.mask == "full":
            arrays["mask"] = self._filled(numbers.unit(size) < 0.7)
        elif self.mask == "row":
            arrays["mask"] = numbers.unit(self.shape[-1]) < 0.7
        return arrays

    def _filled(self, values: np.ndarray) -> np.ndarray:
        """The values, repeated where they are too few, in the case's shape and C order."""
        array = aligned_empty(self.shape, values.dtype)
        array[...] = np.resize(values, self.shape)
        return array

    def _laid_out(self, values: np.ndarray) -> np.ndarray:
        """The same elements with the case's strides."""
        array = self._filled(values)
        if self.layout == "F":
            return np.asfortranarray(array)
        if self.layout == "strided":
            wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
            wide[..., ::2] = array
            return wide[..., ::2]
        if self.layout == "reversed":
            return array[..., ::-1].copy()[..., ::-1]
        if self.layout == "unaligned":
            room = aligned_empty((array.size + 1,), array.dtype)
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
    if "evaluation" in case.methods:
        other = arrays["predictions"][..., ::-1]
        how = {"sums": tuple(QUANTITIES), "threshold": 0.3, "bins": 64, "max_weight": 0.7}
        state = loss.state(**call, baseline=other, **how)
        results["sums"], results["histogram"] = np.asarray(state.values), np.asarray(state.histogram)
    return results


def bits(array: np.ndarray) -> np.ndarray:
    """The bits of an array, every NaN as the same one."""
    array = np.ascontiguousarray(array)
    unsigned = array.view(f"uint{8 * array.dtype.itemsize}")
    if array.dtype.kind in "iu":
        return unsigned
    return np.where(array != array, np.array(-1, np.int64).astype(unsigned.dtype), unsigned)


def digest(arrays: dict[str, np.ndarray]) -> str:
    """16 hexadecimal digits of SHA-256 over the names, types, shapes and bits of arrays."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        unsigned = bits(array)
        sha.update(unsigned.astype(unsigned.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()[:16]


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
