"""Any call with any arguments gives the oracle's answer or an error of the package: never a crash, a hang, another
exception, a wrong type, library or shape.

What decides which kernels are compiled stands in a table of families; hypothesis draws everything else. Arguments that
have no meaning are tried on an engine that computes nothing, so that no combination of types costs a compilation.
"""

from __future__ import annotations

import array
import ctypes
import decimal
import fractions
import itertools
import json
import math
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gpubce
from gpubce import BinaryCrossEntropy, Evaluator, LossState, dispatch
from gpubce.errors import ArrayError, GpubceError
from gpubce.spec.quantities import QUANTITIES
from tests import tolerances
from tests.cases import INPUT_TYPES, TARGET_TYPES, dtype
from tests.oracle import mp, truth
from tests.test_oracle import oracle_arguments

torch = pytest.importorskip("torch", reason="PyTorch is one of the libraries here")


@pytest.fixture(autouse=True, scope="module")
def _no_gpu():
    """Arrays that only say they are on a GPU would end the context of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "find_gpus", lambda: ((), "no array here is on one"))
        yield


def examples(few: int, many: int) -> Any:
    """A few examples in every run, always the same ones; many, and others each time, in the long one."""
    common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    profiles = [
        pytest.param(settings(max_examples=few, derandomize=True, database=None, **common), id="few"),
        pytest.param(settings(max_examples=many, **common), id="many", marks=pytest.mark.exhaustive),
    ]
    return pytest.mark.parametrize("profile", profiles)


# Valid calls: families ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """What decides the kernels of a call, and nothing else. ``options`` are names; hypothesis draws their numbers."""

    method: str
    from_logits: bool
    input_type: str
    target_type: str
    options: tuple[str, ...] = ()
    reduction: str = "mean"
    denominator: str = "elements"
    axis: int | None = None
    weight: str | None = None
    """None, a type, "number" or "row"."""
    mask: str | None = None
    """None, "full" or "row"."""
    strided: bool = False
    check: bool | str = "auto"

    def __str__(self) -> str:
        return " ".join((self.method, "logits" if self.from_logits else "probabilities", self.input_type))

    @property
    def compute(self) -> str:
        return "float64" if self.input_type == "float64" else "float32"

    @property
    def needs_two_axes(self) -> bool:
        """Whether other shapes than (n, labels) are laid out otherwise, and so are kernels of their own."""
        broadcast = self.weight in ("row", "number") or self.mask == "row"
        return (
            self.strided
            or self.axis is not None
            or broadcast
            or bool({"pos_weights", "label_weights"} & {*self.options})
        )


FAMILIES = (
    Family("value_and_grad", True, "float32", "bool"),
    Family(
        "grad_and_hess",
        True,
        "float64",
        "float64",
        ("class_weight", "label_smoothing", "alpha"),
        weight="float64",
        mask="full",
    ),
    Family("value", False, "float32", "uint8", denominator="weights", weight="float32", strided=True),
    Family("value_and_grad", False, "float64", "float64", ("eps", "gamma", "pos_weight"), "none"),
    Family("value_and_grad", True, "float16", "int8", ("ignore_index",), "none", check=False),
    Family("value", True, "bfloat16", "bfloat16", ("base",), "sum", weight="number"),
    Family("value_and_grad", True, "float32", "float32", ("pos_weights", "label_weights"), "mean", "positives", 0),
    Family("grad_and_hess", True, "float64", "uint64", strided=True, check=False),
    Family("state", False, "float16", "float64", ("log_floor",), denominator="rows"),
    Family("value", False, "bfloat16", "bool", weight="row", mask="row", check=False),
    Family("value", True, "float32", "int64", ("ignore_nothing",), axis=1),
    Family("value_and_grad", True, "float32", "float64", ("gamma", "alpha", "label_smoothing", "pos_weight", "base")),
)


def any_family(seed: int) -> Family:
    """For the long test."""
    rng = np.random.default_rng(seed)
    pick = lambda *choices: choices[rng.integers(len(choices))]  # noqa: E731
    from_logits, target_type, method = pick(True, False), pick(*TARGET_TYPES), pick(*METHODS)
    known = ["class_weight", "pos_weight", "pos_weights", "label_weights", "label_smoothing", "gamma", "alpha", "base"]
    known += [] if from_logits else ["eps", "log_floor"]
    known += [] if target_type.startswith(("bool", "uint")) else ["ignore_index"]
    options = {name for name in known if rng.random() < 0.3}
    options -= {"pos_weight"} if "pos_weights" in options else set()
    options -= {"log_floor"} if "eps" in options else set()
    reduction = pick("mean", "sum") if method == "state" else pick("mean", "sum", "none")
    return Family(
        method,
        from_logits,
        pick(*INPUT_TYPES),
        target_type,
        tuple(sorted(options)),
        reduction,
        pick("elements", "weights", "positives", "rows") if reduction == "mean" else "elements",
        pick(None, 0, 1) if reduction != "none" else None,
        pick(None, "number", "row", *TARGET_TYPES),
        pick(None, "full", "row"),
        pick(True, False),
        pick("auto", False),
    )


METHODS = ("value", "value_and_grad", "grad_and_hess", "state")

# Valid calls: what hypothesis draws ---------------------------------------------------------------------------------

LOGIT_EDGES = (0.0, -0.0, math.inf, -math.inf, 1e4, -1e4, 88.0, -87.4, 16.7, 1e-3)
FACTORS = st.floats(0.125, 8.0, width=32).filter(lambda value: value != 1.0)  # A factor of 1 is another kernel.
VECTORS = lambda shape: st.lists(FACTORS, min_size=shape[-1], max_size=shape[-1])  # noqa: E731

NUMBERS = {
    "class_weight": lambda shape: st.tuples(FACTORS, FACTORS),
    "pos_weight": lambda shape: FACTORS,
    "pos_weights": VECTORS,
    "label_weights": VECTORS,
    "label_smoothing": lambda shape: st.integers(1, 31).map(lambda k: k / 32),
    "gamma": lambda shape: st.floats(0.25, 5.0),
    "alpha": lambda shape: st.integers(0, 32).map(lambda k: k / 32),
    "eps": lambda shape: st.integers(1, 100).map(lambda k: k / 257),  # Never a prediction, beside rounding.
    "log_floor": lambda shape: st.floats(-100.0, -0.5),
    "base": lambda shape: st.floats(1.25, 20.0),
    "ignore_index": lambda shape: st.just(-1),
    "ignore_nothing": lambda shape: st.integers(2, 2**62) | st.integers(-(2**62), -2),
}
KEYWORDS = {"pos_weights": "pos_weight", "label_weights": "label_weight", "ignore_nothing": "ignore_index"}
SHAPES = ((7,), (13,), (3, 4), (2, 3, 4), (2, 1, 3, 2), (30,), (1,), (), (0,), (2, 0, 3))
LIBRARIES = ("NumPy", "read-only", "memory-mapped", "DLPack", "PyTorch")


class Lent:
    """An array of a library that speaks DLPack only."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@dataclass(frozen=True)
class Call:
    """``plain`` are the arrays that the oracle reads, ``given`` the same as a user of the library has them.

    ``place`` is where the gradient goes: None, "own" for the predictions themselves, or "new" for another array.
    """

    family: Family
    library: str
    options: dict[str, Any]
    plain: dict[str, np.ndarray]
    given: dict[str, Any]
    grad_scale: float
    place: str | None


@st.composite
def calls(draw, family: Family) -> Call:
    """Numbers of options, shapes, values, strides and libraries."""
    if family.needs_two_axes:
        shape = (draw(st.integers(2, 5)), draw(st.integers(2, 4)))
    else:
        shape = draw(st.sampled_from(SHAPES))
    numbers = {name: draw(NUMBERS[name](shape)) for name in family.options}
    if family.from_logits:
        values = st.floats(-40, 40, width=16) | st.sampled_from(LOGIT_EDGES)
    else:
        values = st.integers(1, 255).map(lambda k: k / 256)
        # Derivatives at 0 and 1 are limits of their own, which test_edges has in a table.
        if family.method in ("value", "state") and not {"gamma", "eps"} & {*numbers}:
            values |= st.sampled_from([0.0, 1.0])
    values |= st.just(math.nan) if family.check is False else st.nothing()
    plain = {
        "predictions": draw(filled(family.input_type, shape, values)),
        "targets": draw(filled(family.target_type, shape, fractions_of(64, 64))),
    }
    if "ignore_index" in numbers:
        plain["targets"][draw(arrays(np.bool_, shape))] = -1
    if family.weight == "number":
        plain["weight"] = np.array(draw(st.integers(1, 32)) / 8)
    elif family.weight is not None:
        kind, lengths = ("float32", shape[-1:]) if family.weight == "row" else (family.weight, shape)
        plain["weight"] = draw(filled(kind, lengths, fractions_of(8, 32)))
    if family.mask is not None:
        plain["mask"] = draw(arrays(np.bool_, shape[-1:] if family.mask == "row" else shape))
    library = draw(st.sampled_from(LIBRARIES))
    if library == "DLPack" and "bfloat16" in (family.input_type, family.target_type, family.weight):
        library = "NumPy"  # NumPy reads no bfloat16 through DLPack.
    given = {name: handed(draw, library, one, family.strided) for name, one in plain.items()}
    if family.weight == "number":
        given["weight"] = float(plain["weight"])
    # What would be kernels of their own: strides in outputs, and a pass that judges probabilities first.
    own = family.from_logits and not family.strided and library != "read-only"
    place = draw(st.sampled_from([None, "new", "own"] if own else [None, "new"]))
    options = {KEYWORDS.get(name, name): value for name, value in numbers.items()}
    return Call(family, library, options, plain, given, draw(st.floats(0.125, 0.9375, width=16)), place)


def fractions_of(whole: int, most: int) -> Any:
    """0 and 1, and multiples of 1 / whole, which every floating-point type holds."""
    return st.sampled_from([0.0, 1.0]) | st.integers(0, most).map(lambda k: k / whole)


def filled(kind: str, shape: tuple[int, ...], elements: Any) -> Any:
    """Arrays of a type, bfloat16 too. Other types get 0 and 1 only."""
    elements = elements if kind in INPUT_TYPES else elements.map(lambda value: float(value > 0.5))
    whole = arrays(np.float64, shape, elements=elements, fill=st.nothing())
    return whole.map(lambda one: one.astype(dtype(kind)))


def handed(draw, library: str, one: np.ndarray, strided: bool) -> Any:
    """A copy of the array in a library: C-contiguous, or with strides in both axes."""
    views = {
        "copy": lambda: one.copy(),
        "unaligned": lambda: np.frombuffer(bytearray(b"\0" + one.tobytes()), one.dtype, one.size, 1).reshape(one.shape),
    }
    if strided and one.ndim == 2:
        views = {
            "transposed": lambda: np.ascontiguousarray(one.T).T,
            "padded": lambda: np.concatenate([one, one[:, :1]], axis=1)[:, :-1],
            "every second": lambda: np.repeat(one, 2, axis=0)[::2],
            "reversed": lambda: np.ascontiguousarray(one[::-1])[::-1],
        }
    elif one.size == 0 or library == "PyTorch":
        del views["unaligned"]
    if library == "PyTorch":
        views.pop("reversed", None)
    view = views[draw(st.sampled_from(sorted(views)))]()
    if library == "PyTorch":
        narrow = one.dtype.name == "bfloat16"
        tensor = torch.from_numpy(view.view(np.uint16) if narrow else view)
        return tensor.view(torch.bfloat16) if narrow else tensor
    if library == "DLPack":
        return Lent(view)
    if library == "memory-mapped" and one.size and not strided:
        with tempfile.TemporaryFile() as file:
            mapped = np.memmap(file, one.dtype, "w+", shape=one.shape)
        mapped[...] = one
        return mapped
    view.flags.writeable = library != "read-only"
    return view


# Valid calls: what is right -----------------------------------------------------------------------------------------

FAR, NEAR_0, NEAR_1 = 1e30, mp.mpf("1e-400"), 1 - mp.mpf("1e-48")
"""What the oracle takes for infinity, 0 and 1. Losses there are infinite, or at the floor."""

INFINITE = 1e15


def true_elements(call: Call) -> dict[str, np.ndarray]:
    """Of each element: loss, gradient, hessian and the sizes of their terms; whether it counts; w, y and w y."""
    family, plain = call.family, call.plain
    shape = plain["predictions"].shape
    wide = {name: np.broadcast_to(one, shape).astype(np.float64) for name, one in plain.items()}
    names = ("loss", "loss_size", "gradient", "gradient_size", "hessian", "hessian_size", "counted", "weight")
    found = {name: np.zeros(shape) for name in names}
    options = dict(call.options)
    ignored = options.pop("ignore_index", None)
    if not family.from_logits and not {"eps", "log_floor"} & {*options}:
        options["log_floor"] = -100.0
    vectors = {
        name: options.pop(name) for name in ("pos_weight", "label_weight") if isinstance(options.get(name), list)
    }
    for place in np.ndindex(*shape):
        x, y, w = wide["predictions"][place], wide["targets"][place], wide.get("weight", np.ones(shape))[place]
        own = {name: vector[place[-1]] for name, vector in vectors.items()}
        w *= np.dtype(family.compute).type(own.pop("label_weight", 1.0))
        if not wide.get("mask", np.ones(shape))[place] or y == ignored:
            continue
        found["counted"][place], found["weight"][place] = 1, w
        if math.isnan(x):
            for name in names[:6]:
                found[name][place] = math.nan
            continue
        if family.from_logits:
            stand_in = math.copysign(FAR, x) if math.isinf(x) else float(x)
        else:
            stand_in = {0.0: NEAR_0, 1.0: NEAR_1}.get(float(x), float(x))
        arguments = oracle_arguments({**options, **own}, family.compute)
        true = truth(stand_in, float(y), family.from_logits, mp.mpf(float(w)), **arguments)
        loss = float(true.loss) if true.loss < INFINITE else math.inf
        row = (loss, loss, true.gradient, true.gradient_size, true.hessian, true.hessian_size)
        for name, value in zip(names, row, strict=False):
            found[name][place] = float(value)
    found["elements"], found["weights"] = found["counted"], found["weight"]
    found["positives"] = found["weight"] * wide["targets"] * found["counted"]
    return found


def true_divisor(call: Call, true: dict[str, np.ndarray]) -> np.ndarray | float:
    """What results are divided by, from the table of denominators."""
    family, shape = call.family, true["loss"].shape
    if family.reduction != "mean" or family.method == "grad_and_hess":
        return 1.0
    if family.denominator == "rows":
        reduced = math.prod(shape) if family.axis is None else shape[family.axis]
        over_labels = len(shape) > 1 and family.axis in (None, len(shape) - 1) and shape[-1]
        return np.float64(reduced) / (shape[-1] if over_labels else 1)
    total = true[family.denominator].sum(family.axis)
    return np.maximum(total, 1.0) if family.denominator == "positives" else total


def close(found: Any, true: Any, size: Any, family: Family, kind: str) -> None:
    """Within the tolerance of the compute type, and one rounding to the type of the result."""
    found, true, size = (np.asarray(one, np.float64) for one in (found, true, size))
    limits, real = float_limits(kind), np.finfo(family.compute)
    with np.errstate(invalid="ignore"):
        room = tolerances.RELATIVE[family.compute] * size + limits["eps"] * np.abs(true)
        room = room + limits["smallest"] + tolerances.VANISHING * float(real.tiny) + tolerances.BESIDE_ONE
        near = (np.abs(found - true) <= room) | (found == true) | (np.isnan(found) & np.isnan(true))
        beyond = np.isinf(found) & (np.sign(found) == np.sign(true)) & (np.abs(true) + room >= limits["max"])
    assert (near | beyond).all(), (found, true, size)


def float_limits(kind: str) -> dict[str, float]:
    exponent, fraction = {"float16": (15, 10), "bfloat16": (127, 7), "float32": (127, 23), "float64": (1023, 52)}[kind]
    largest = math.ldexp(2 - 2.0**-fraction, exponent)
    return {"eps": 2.0**-fraction, "smallest": math.ldexp(1.0, 1 - exponent - fraction), "max": largest}


def is_of(found: Any, library: str, kind: str, shape: tuple[int, ...]) -> None:
    """The documented library, type, shape and device."""
    wanted = torch.Tensor if library == "PyTorch" else (np.ndarray, np.generic)
    assert isinstance(found, wanted)
    assert type(found) in (torch.Tensor, np.ndarray) or shape == ()
    assert (str(found.dtype).removeprefix("torch."), tuple(found.shape)) == (kind, shape)
    assert library != "PyTorch" or (found.device.type == "cpu" and not found.requires_grad)


def in_numpy(found: Any) -> np.ndarray:
    found = found.array if isinstance(found, Lent) else found
    return found.to(torch.float64).numpy() if isinstance(found, torch.Tensor) else np.asarray(found, np.float64)


def agrees(call: Call) -> None:
    """Make the call, and compare everything about its results."""
    family, true = call.family, true_elements(call)
    shape, axis = true["loss"].shape, None if call.family.reduction == "none" else call.family.axis
    loss = BinaryCrossEntropy(
        from_logits=family.from_logits,
        reduction=family.reduction,
        denominator=family.denominator,
        axis=axis,
        **call.options,
    )
    divisor = true_divisor(call, true)
    with np.errstate(all="ignore"):
        if family.reduction == "none":
            value, value_size, kept = true["loss"], true["loss_size"], shape
        else:
            value, value_size = (true[name].sum(axis) / divisor for name in ("loss", "loss_size"))
            kept = np.shape(value)
        scale = call.grad_scale / (np.expand_dims(divisor, axis) if np.ndim(divisor) else divisor)
    given = {**call.given, "check": family.check}
    reduced = family.input_type if family.reduction == "none" else family.compute
    if family.method == "value":
        found = loss(**given)
        is_of(found, call.library, reduced, kept)
        return close(in_numpy(found), value, value_size, family, reduced)
    if family.method == "state":
        state = loss.state(**given, sums=("weight",))
        assert (state.count, state.invalid) == (true["counted"].sum(), 0)
        found = loss.finish(state)
        is_of(found, call.library, "float64", kept)
        return close(in_numpy(found), value, value_size, family, "float64")
    place = None
    if call.place is not None:
        source = call.given["predictions"]
        place = source if call.place == "own" else new_like(call)
    given |= {"grad_scale": call.grad_scale, "grad_out": place}
    names = ("gradient", "hessian")
    if family.method == "value_and_grad":
        result, *derivatives = loss.value_and_grad(**given)
        is_of(result, call.library, reduced, kept)
        close(in_numpy(result), value, value_size, family, reduced)
        names = ("gradient",)
    else:
        derivatives, scale = loss.grad_and_hess(**given), call.grad_scale
    for name, found in zip(names, derivatives, strict=True):
        if name == "gradient" and place is not None:
            assert found is place
        else:
            is_of(found, call.library, family.input_type, shape)
        if np.all(np.isfinite(scale)):  # The gradient of a mean of nothing has no value.
            close(in_numpy(found), true[name] * scale, true[name + "_size"] * scale, family, family.input_type)
    return None


def new_like(call: Call) -> Any:
    """An array of the library for the gradient."""
    room = np.full(call.plain["predictions"].shape, 7, dtype(call.family.input_type))
    if call.library == "PyTorch":
        return torch.empty(room.shape, dtype=getattr(torch, call.family.input_type))
    return Lent(room) if call.library == "DLPack" else room


@examples(50, 300)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_valid_calls_give_the_oracles_answer(family, profile):
    profile(given(calls(family))(agrees))()


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(100))
def test_valid_calls_of_any_family_give_the_oracles_answer(seed):
    family = any_family(seed)
    settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))(given(calls(family))(agrees))()


# Odd calls that are valid -------------------------------------------------------------------------------------------

X = np.float32([0.5, -1.0, 2.0])
Y = np.float32([1.0, 0.0, 1.0])


class Series:
    """As the columns of data frames are."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class Subclass(np.ndarray):
    pass


def misplaced(values: np.ndarray) -> np.ndarray:
    """At an odd address."""
    return np.frombuffer(b"\0" + values.tobytes(), values.dtype, values.size, 1)


ODD = {
    "a subclass": lambda values: values.view(Subclass),
    "an iterator over an array": lambda values: values.flat,
    "a column": Series,
    "a record": lambda values: np.rec.fromarrays([values], names="a").a,
    "at an odd address": misplaced,
    "in Fortran order": lambda values: np.asfortranarray(values[:, None])[:, 0],
    "a parameter": lambda values: torch.nn.Parameter(torch.tensor(values)),
    "a tensor in a graph": lambda values: 1.0 * torch.tensor(values, requires_grad=True),
    "a negated view": lambda values: torch.complex(torch.tensor(values), -torch.tensor(values)).conj().imag,
    "an inference tensor": lambda values: torch.inference_mode()(torch.tensor)(values),
    "a tensor of an array that is read-only": lambda values: torch.from_dlpack(np.array(values)),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_arrays_are_read_as_what_they_mean(make):
    loss = BinaryCrossEntropy(from_logits=True)
    value, gradient = loss.value_and_grad(make(X), make(Y))
    expected_value, expected_gradient = loss.value_and_grad(X, Y)
    library = "PyTorch" if isinstance(make(X), torch.Tensor) else "NumPy"
    is_of(value, library, "float32", ())
    is_of(gradient, library, "float32", (3,))
    assert in_numpy(value) == expected_value
    assert np.array_equal(in_numpy(gradient), expected_gradient)


# Any calls: what is drawn -------------------------------------------------------------------------------------------


class Raises:
    """An object whose methods all fail."""

    def __getattribute__(self, name):
        if name in ("__class__", "__array__", "__dlpack__", "__dlpack_device__", "tolist"):
            return object.__getattribute__(self, name)
        raise AttributeError(name)

    def __repr__(self):
        raise KeyError("repr")

    def __array__(self, *arguments, **options):
        raise KeyError("array")

    def tolist(self):
        raise KeyError("tolist")


class RaisesInDLPack(Raises):
    def __dlpack__(self, **options):
        raise KeyError("dlpack")

    def __dlpack_device__(self):
        raise KeyError("device")


class Narrowing(Lent):
    """Of a library that holds no float64, and does not say so."""

    @staticmethod
    def __array_namespace__():
        return Narrowing

    @staticmethod
    def from_dlpack(array):
        return np.from_dlpack(array).astype(np.float32)


def on_cuda(description: Any) -> Any:
    return type("OnCuda", (), {"__cuda_array_interface__": description})()


def circular() -> list:
    found: list = []
    found.append(found)
    return found


def freed(values: np.ndarray = X) -> Any:
    """A tensor whose memory was given back."""
    tensor = torch.tensor(values)
    tensor.untyped_storage().resize_(0)
    return tensor


def shortened() -> Any:
    """A tensor with less memory than its shape says."""
    tensor = torch.tensor(X)
    tensor.untyped_storage().resize_(4)
    return tensor


def fake() -> Any:
    """A tensor of PyTorch's compiler, which has a shape and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(3)


def nested() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A prototype of PyTorch's.
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.quint8)


def sliding(values: np.ndarray) -> np.ndarray:
    """Elements share memory, and no stride is 0."""
    return np.lib.stride_tricks.as_strided(values, (3, 3), (4, 4))


HUGE = 10**5000  # Which Python refuses to write down.

VALUES = (
    None, True, False, 0, 1, -1, 2, 7, 64, 2**31, 2**63, 2**64, 10**400, HUGE, -HUGE, 0.5, -0.0, 1e300, 1e-300, 5e-324,
    -1e300, math.nan, math.inf, -math.inf, 1j, "", "mean", "none", "auto", "cpu", "cuda", "3", "\n", "x" * 10_000, b"",
    b"ab", (), (1.0,), (0.5, 2.0), (1, 2, 3), (0, 0), (-1,), [], [0.5, 2.0, 1.0], [[1.0, 2.0]], [None], {}, {0: 1.0},
    set(), {1.0}, np.ndarray, np.float32, float, int, object, np.dtype("float32"), "float64", "bfloat16", torch.float16,
    fractions.Fraction(1, 3), fractions.Fraction(1, 2), decimal.Decimal("0.5"), np.float16(0.5), np.float32(0.1),
    np.float64(2), np.longdouble("1e4000"), np.int8(1), np.uint64(2**64 - 1), np.bool_(True), np.datetime64("2020"),
    np.str_("mean"), torch.int8, torch.Size([3]), torch.nn.Linear(1, 1), range(3), range(2**62), Ellipsis, slice(3),
    NotImplemented, lambda: 3, print, np, torch, np.zeros, Raises(), type("Nowhere", (), {"__module__": None})(),
    array.array("f", [0.5, 1.0, 1.0]), bytearray(b"abc"), memoryview(X), iter([1.0]), itertools.count(),
    torch.zeros(3).untyped_storage(), np.random.default_rng(0), ("weight",), ["loss", "loss"], "weight",
)  # fmt: skip

ARRAYS = {
    "numbers": X,
    "targets": Y,
    "float16": X.astype(np.float16),
    "bfloat16": X.astype(dtype("bfloat16")),
    "float64": X.astype(np.float64),
    "int64": np.array([1, 0, 1]),
    "uint64": np.array([1, 0, 2**64 - 1], np.uint64),
    "bool": Y > 0,
    "bool of other bytes": np.uint8([2, 0, 255]).view(np.bool_),
    "two axes": np.float32([[0.5, -1.0, 2.0], [1.0, 0.0, 1.0]]),
    "no axes": np.float32(0.5),
    "empty": X[:0],
    "empty axes": np.zeros((3, 0, 2), np.float32),
    "a longer one": np.zeros(4, np.float32),
    "64 axes": np.zeros((1,) * 64, np.float32),
    "complex": X * 1j,
    "objects": np.array([1.0, None, "a"]),
    "words": np.array(["a", "b", "c"]),
    "bytes": np.array([b"a", b"b", b"c"]),
    "records": np.zeros(3, "f4,f4"),
    "void": np.zeros(3, "V4"),
    "dates": np.array(["2020-01-01"] * 3, "M8[s]"),
    "spans": np.array([1, 2, 3], "m8[s]"),
    "long double": X.astype(np.longdouble),
    "big-endian": X.astype(">f4"),
    "masked": np.ma.masked_array(X, [0, 1, 0]),
    "all NaN": np.float32([np.nan] * 3),
    "infinite": np.float32([np.inf, -np.inf, 1.0]),
    "invalid": np.float32([7.0, -1.0, 0.0]),
    "reversed": X[::-1],
    "broadcast": np.broadcast_to(X[0], 3),
    "sliding": sliding(np.zeros(5, np.float32)),
    "read-only": np.frombuffer(X.tobytes(), np.float32),
    "huge": np.broadcast_to(np.float32(0.5), (2**50,)),
    "huge with axes": np.broadcast_to(np.float16(0.5), (2**59, 2)),
    "list": X.tolist(),
    "ragged list": [[1.0], [1.0, 2.0]],
    "circular list": circular(),
    "list of huge integers": [HUGE, 1, 0],
    "list of tensors": [torch.tensor(1.0, requires_grad=True)] * 3,
    "list of failures": [Raises()] * 3,
    "failure": Raises(),
    "failure in DLPack": RaisesInDLPack(),
    "lent": Lent(X),
    "lent objects": Lent(np.array([None])),
    "lent and narrowed": Narrowing(X),
    "tensor": torch.tensor(X),
    "bfloat16 tensor": torch.tensor(X).bfloat16(),
    "tensor with a gradient": torch.tensor(X, requires_grad=True),
    "conjugate tensor": torch.zeros(3, dtype=torch.complex64).conj(),
    "negated tensor": torch.zeros(3, dtype=torch.complex64).conj().imag,
    "sparse tensor": torch.tensor(X).to_sparse(),
    "meta tensor": torch.zeros(3, device="meta"),
    "freed tensor": freed(),
    "shortened tensor": shortened(),
    "fake tensor": fake(),
    "nested tensor": nested(),
    "quantized tensor": quantized(),
    "MKL tensor": torch.tensor(X).to_mkldnn(),
    "tensor to come": torch.nn.parameter.UninitializedParameter(),
    "huge tensor": torch.zeros(1).expand(2**50),
    "float8 tensor": torch.tensor(X).to(torch.float8_e5m2),
    "on a GPU": on_cuda({"shape": (3,), "typestr": "<f4", "data": (4096, False), "version": 3}),
    "nowhere": on_cuda({"shape": (3,)}),
    "on a GPU without strides": on_cuda({"shape": (3,), "typestr": "<f4", "data": (4096, False), "strides": (4, 4)}),
    "on a GPU of other types": on_cuda("none"),
}

HUGE_RESULTS = {"huge", "huge with axes", "huge tensor"}
"""Results of their shape are a MemoryError, which is Python's own word for it."""

FIELDS = tuple(BinaryCrossEntropy.__dataclass_fields__)


@dataclass(frozen=True)
class Item:
    """One of VALUES or ARRAYS: hypothesis hashes and prints what it draws, which not all of them bear."""

    key: int | str

    @property
    def value(self) -> Any:
        return VALUES[self.key] if isinstance(self.key, int) else ARRAYS[self.key]


def given_value(one: Any) -> Any:
    return one.value if isinstance(one, Item) else one


GOOD_OPTIONS = {
    "from_logits": (True, False),
    "reduction": ("none", "sum", "mean"),
    "denominator": ("elements", "weights", "positives", "rows"),
    "axis": (0, (0,), -1, (0, 1)),
    "pos_weight": (2.0, [1.0, 2.0, 3.0]),
    "ignore_index": (-1, math.nan, 0.5, 2**53 + 1),
    "log_floor": (-5.0, None),
    "dtype": ("float16", "bfloat16", "float64"),
    "label_axis": (0, 1, -1),
    "base": (2,),
}
GOOD_ARGUMENTS = {
    "weight": (Item("targets"), Item("tensor"), 2.0, Item("broadcast")),
    "mask": (Item("bool"), True),
    "grad_scale": (0.5, Item("no axes")),
    "device": ("auto", "cpu"),
    "check": (True, False),
    "sums": (("weight",), [*QUANTITIES]),
    "per_label": (True,),
}
ARGUMENTS = {
    "call": ("weight", "mask", "out", "device", "stream", "check"),
    "value_and_grad": ("weight", "mask", "out", "grad_out", "grad_scale", "device", "stream", "check"),
    "grad_and_hess": ("weight", "mask", "grad_out", "hess_out", "grad_scale", "device", "stream", "check"),
    "state": ("weight", "mask", "device", "stream", "check", "sums"),
    "update": ("weight", "mask", "device", "stream", "check", "per_label"),
    "binary_cross_entropy": ("weight", "mask", "out", "device", "stream", "check"),
    "binary_cross_entropy_with_logits": ("weight", "mask", "out", "device", "stream", "check"),
}
PAIRS = (("numbers", "targets"), ("float64", "bool"), ("tensor", "tensor"), ("lent", "lent"), ("two axes", "two axes"))


any_array = st.sampled_from(sorted(ARRAYS)).map(Item)
any_value = st.integers(0, len(VALUES) - 1).map(Item) | st.floats() | st.integers() | st.text(max_size=3)


@st.composite
def any_calls(draw) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(method, options, arguments).

    Most of a call is as it should be, so that what is not is reached.
    """
    method = draw(st.sampled_from(sorted(ARGUMENTS)))
    known = sorted(GOOD_OPTIONS) if method in METHODS + ("call",) else sorted({*GOOD_OPTIONS} - {"from_logits"})
    good = draw(st.lists(st.sampled_from(known), max_size=2, unique=True))
    options: dict[str, Any] = {name: draw(st.sampled_from(GOOD_OPTIONS[name])) for name in good}
    if method in METHODS + ("call",):
        options.setdefault("from_logits", True)
    arguments: dict[str, Any] = dict(
        zip(("predictions", "targets"), map(Item, draw(st.sampled_from(PAIRS))), strict=True)
    )
    for name in draw(st.lists(st.sampled_from(sorted(GOOD_ARGUMENTS)), max_size=2, unique=True)):
        if name in ARGUMENTS[method]:
            arguments[name] = draw(st.sampled_from(GOOD_ARGUMENTS[name]))
    wrong = st.sampled_from(ARGUMENTS[method]) | st.sampled_from(("predictions", "targets")) | st.sampled_from(FIELDS)
    for name in draw(st.lists(wrong, max_size=2, unique=True)):
        (options if name in FIELDS else arguments)[name] = draw(any_array | any_value)
    return method, options, arguments


class Idle:
    """An engine that computes nothing: every sum is 0. What it is asked for must be what a kernel can take."""

    loads_vectors = False
    at_once = True
    along_axes_settled = None

    def whole(self, key, elements, addresses, geometry, parameters, ignored, partials, count, *_):
        self.check(key, elements, addresses, geometry, parameters)
        ctypes.memset(partials, 0, 16 * len(key.recipe.sums) * count if count < 2**20 else 0)

    def along_axes(self, key, reduced, outputs, addresses, geometry, parameters, ignored, partials, count, *_):
        self.check(key, reduced * outputs, addresses, geometry, parameters)
        ctypes.memset(partials, 0, 16 * len(key.recipe.sums) * count * outputs if count * outputs < 2**20 else 0)

    @staticmethod
    def check(key, elements, addresses, geometry, parameters):
        assert 0 < elements < 2**63
        assert all(type(number) is int and -(2**63) <= number < 2**63 for number in (*addresses, *geometry))
        assert all(np.isfinite(number) or number == np.inf for number in parameters)
        assert len(addresses) == max(1, len(key.arrays))

    def combine(self, plan, sums, size, outputs, source, target):
        self.clear(target, 2 * sums * plan.blocks(size) * outputs)

    def settle(self, settlement):
        assert settlement.states or settlement.outputs == 0 or settlement.denominator is None

    def clear(self, address, cells):
        ctypes.memset(address, 0, 8 * cells if cells < 2**20 else 0)

    def repeat(self, *what):
        return None


@contextmanager
def idle() -> Iterator[None]:
    before = dispatch.cpu_engine
    dispatch.cpu_engine = Idle  # type: ignore[assignment]
    try:
        yield
    finally:
        dispatch.cpu_engine = before


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where this takes longer; a loop that never ends is interrupted."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SECONDS = 10.0
"""For one call that computes nothing. It takes milliseconds; the machine may be busy."""


def refused(error: BaseException) -> None:
    """The error is the package's own, of the documented kinds, and of one line."""
    assert isinstance(error, GpubceError), repr(error)
    message = str(error)
    assert message and "\n" not in message and len(message) < 2000, message


# Any calls: what may come of them -----------------------------------------------------------------------------------


def outcome(method: str, options: dict[str, Any], arguments: dict[str, Any]) -> None:
    """The call gives results of the documented types, or is refused by the package."""
    own, options = ({name: given_value(one) for name, one in given.items()} for given in (arguments, options))
    predictions, targets = own.pop("predictions"), own.pop("targets")
    try:
        with within(SECONDS), np.errstate(all="raise"):
            if method == "update":
                evaluator = Evaluator(per_label=own.pop("per_label", False), **options)
                evaluator.update(predictions, targets, **own)
                assert isinstance(evaluator.report().loss, float)
                return
            if method.startswith("binary"):
                found = getattr(gpubce, method)(predictions, targets, **own, **options)
                loss = BinaryCrossEntropy(**options)
            else:
                loss = BinaryCrossEntropy(**options)
                assert eval(repr(loss), REPR_NAMES) == loss
                found = (loss if method == "call" else getattr(loss, method))(predictions, targets, **own)
    except MemoryError:
        assert any(isinstance(one, Item) and one.key in HUGE_RESULTS for one in arguments.values())
        return
    except Exception as error:
        refused(error)
        return
    kind, shape = type_and_shape(predictions)
    results = list(found) if isinstance(found, tuple) else [found]
    places = [own.get(name) for name in ("out", "grad_out", "hess_out") if name in ARGUMENTS[method]]
    if method == "state":
        return
    if method != "grad_and_hess":
        reduced = loss.dtype or ("float64" if kind == "float64" else "float32")
        assert type_and_shape(results[0])[0] == (kind if loss.reduction == "none" else reduced)
    for result in results if method == "grad_and_hess" else results[1:]:
        assert type_and_shape(result) == (kind, shape)
    for result, place in zip(results, places, strict=True):
        assert (
            result is place
            if place is not None
            else isinstance(result, torch.Tensor) == isinstance(predictions, torch.Tensor)
        )


REPR_NAMES = {
    "nan": math.nan,
    "inf": math.inf,
    "np": np,
    "Fraction": fractions.Fraction,
    "BinaryCrossEntropy": BinaryCrossEntropy,
}


def type_and_shape(one: Any) -> tuple[str, tuple[int, ...]]:
    one = one.array if isinstance(one, Lent) else one if isinstance(one, torch.Tensor) else np.asarray(one)
    return str(one.dtype).removeprefix("torch."), tuple(one.shape)


ITEMS = tuple(map(Item, (*range(len(VALUES)), *ARRAYS)))


def all_items(outcome_of) -> None:
    """One after the other; which one failed is said."""
    for item in ITEMS:
        try:
            outcome_of(item)
        except BaseException as error:
            raise AssertionError(f"with {item}") from error


@pytest.mark.parametrize("name", sorted({"predictions", "targets"}.union(*ARGUMENTS.values())))
def test_one_argument_may_be_anything(name):
    method = next(method for method in ("call", *ARGUMENTS) if name in ("predictions", "targets", *ARGUMENTS[method]))
    with idle():
        for predictions, targets in (("numbers", "targets"), ("tensor", "tensor"), ("lent", "lent")):
            arguments = {"predictions": Item(predictions), "targets": Item(targets)}
            all_items(lambda item, given=arguments: outcome(method, {"from_logits": True}, {**given, name: item}))


@pytest.mark.parametrize("name", FIELDS)
def test_one_option_may_be_anything(name):
    arguments = {"predictions": Item("numbers"), "targets": Item("targets")}
    with idle():
        all_items(lambda item: outcome("call", {"from_logits": True, name: item}, arguments))


def test_a_result_of_another_type_than_was_asked_for_is_refused():
    """As JAX makes of a float64, and as DLPack makes of a bfloat16."""
    arrays_of = {"float64": (Narrowing(X), Narrowing(Y)), "bfloat16": (Narrowing(X), Narrowing(Y))}
    for kind, (x, y) in arrays_of.items():
        with pytest.raises(ArrayError, match=rf"the result.* {kind}.* another dtype"):
            BinaryCrossEntropy(from_logits=True, dtype=kind)(x, y)


@examples(600, 20_000)
def test_any_call_gives_a_result_or_an_error_of_the_package(profile):
    @profile
    @given(any_calls())
    def law(call):
        outcome(*call)

    with idle():
        law()


# Where a crash is possible ------------------------------------------------------------------------------------------


def of_tensors(call: str) -> Any:
    """A call inside one of PyTorch's transforms, whose tensors have no memory."""
    transform = getattr(torch.func, call)
    return lambda: transform(lambda one: mean(one, torch.zeros(3)))(
        torch.zeros(3) if call == "grad" else torch.zeros(2, 3)
    )


mean, each = BinaryCrossEntropy(from_logits=True), BinaryCrossEntropy(from_logits=True, reduction="none")
WITHOUT_VALUES = (
    "freed tensor",
    "shortened tensor",
    "fake tensor",
    "nested tensor",
    "tensor to come",
    "sparse tensor",
    "meta tensor",
    "MKL tensor",
)
SQUARE = np.zeros((3, 3), np.float32)
SUSPECTS = {
    **{f"predictions: {name}": lambda one=ARRAYS[name]: mean(one, torch.tensor(Y)) for name in WITHOUT_VALUES},
    **{f"targets: {name}": lambda one=ARRAYS[name]: mean(torch.tensor(X), one) for name in WITHOUT_VALUES},
    **{
        f"out: {name}": lambda one=ARRAYS[name]: each(torch.tensor(X), torch.tensor(Y), out=one)
        for name in WITHOUT_VALUES
    },
    **{f"pos_weight: {name}": lambda one=ARRAYS[name]: BinaryCrossEntropy(pos_weight=one) for name in WITHOUT_VALUES},
    **{f"dtype: {name}": lambda one=ARRAYS[name]: BinaryCrossEntropy(dtype=one) for name in WITHOUT_VALUES},
    **{f"reduction: {name}": lambda one=ARRAYS[name]: BinaryCrossEntropy(reduction=[one]) for name in WITHOUT_VALUES},
    "inside grad": of_tensors("grad"),
    "inside vmap": of_tensors("vmap"),
    "on a GPU that is not there": lambda: mean(ARRAYS["on a GPU"], 1.0),
    "written where elements share memory": lambda: each(SQUARE, SQUARE, out=sliding(np.zeros(5, np.float32))),
    "written where a tensor shares memory": lambda: each(
        torch.zeros(3, 3), torch.zeros(3, 3), out=torch.zeros(5).as_strided((3, 3), (1, 1))
    ),
    "written to a negated view": lambda: each(
        torch.zeros(3), torch.zeros(3), out=torch.zeros(3, dtype=torch.complex64).conj().imag
    ),
    "a state of float32": lambda: mean.finish(LossState(("loss", "count"), np.ones((2, 2), np.float32), 3, 3.0)),
    "a state of fewer sums": lambda: mean.finish(LossState(("loss", "count"), np.ones((1, 2)), 3, 3.0)),
    "a state without pairs": lambda: mean.finish(LossState(("loss", "count"), np.ones(2), 3, 3.0)),
    "a state with gaps": lambda: mean.finish(LossState(("loss", "count"), np.ones((2, 4))[:, ::2], 3, 3.0)),
    "a state without memory": lambda: mean.finish(LossState(("loss", "count"), freed(np.ones((2, 2))), 3, 3.0)),
    "a huge result": lambda: each(ARRAYS["huge"], ARRAYS["huge"]),
    "a huge result in PyTorch": lambda: each(ARRAYS["huge tensor"], ARRAYS["huge tensor"]),
    "a huge row of results": lambda: BinaryCrossEntropy(from_logits=True, axis=1)(*2 * [ARRAYS["huge with axes"]]),
}


def suspects() -> None:
    """Try each, and write what came of it. For a process of its own."""
    for name, call in SUSPECTS.items():
        print(json.dumps(name), end=" ", flush=True)
        try:
            found = call()
        except Exception as error:
            found = error
        print(type(found).__name__, flush=True)


def test_memory_that_is_not_there_is_never_read():
    program = "from tests.test_fuzz_calls import suspects; suspects()"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert [json.loads(name) for name in found] == [*SUSPECTS]
    errors = {name for name, kind in vars(gpubce.errors).items() if isinstance(kind, type)} | {"MemoryError"}
    assert {name: kind for name, kind in found.items() if kind not in errors} == {}
    assert {name for name, kind in found.items() if kind == "MemoryError"} == {
        f'"{name}"' for name in SUSPECTS if "huge" in name
    }


# States -------------------------------------------------------------------------------------------------------------

NUMBERS_OF_STATES = st.floats(-1e300, 1e300) | st.sampled_from([0.0, math.inf, -math.inf, math.nan])


@st.composite
def some_sound_states(draw) -> LossState:
    sums = draw(st.lists(st.sampled_from(["loss", "count", "weight"]), min_size=1, max_size=3, unique=True).map(tuple))
    shape = draw(st.sampled_from([(), (2,)]))
    values = draw(
        arrays(np.float64, (len(sums), 2, *shape), elements=st.floats(0, 1e300) | st.sampled_from([math.inf, math.nan]))
    )
    values[:, 1] = 0.0
    return LossState(sums, values, draw(st.integers(0, 2**62)), draw(st.floats(0, 1e9)))


sound_states = some_sound_states()


@st.composite
def states(draw) -> LossState:
    """Sound states, and others."""
    sums = draw(st.lists(st.sampled_from([*QUANTITIES]), min_size=1, max_size=4, unique=True).map(tuple))
    shape = draw(st.sampled_from([(), (1,), (2,), (0,)]))
    values: Any = draw(arrays(np.float64, (len(sums), 2, *shape), elements=NUMBERS_OF_STATES))
    rows: Any = draw(st.floats(0, 1e9))
    wrong = draw(st.sampled_from(["", "", "sums", "values", "rows"]))
    if wrong == "sums":
        sums = given_value(draw(any_value | st.just([*sums]) | st.just((*sums, "loss"))))
    if wrong == "rows":
        rows = given_value(draw(any_value))
    if wrong == "values":
        views = (
            lambda one: one.astype(np.float32),
            lambda one: one[:-1],
            lambda one: one[:, :1],
            lambda one: one.tolist(),
            lambda one: one.astype(">f8"),
            lambda one: one * 1j,
            torch.tensor,
            lambda one: np.repeat(one, 2, axis=0)[::2],
        )
        with np.errstate(all="ignore"):
            values = draw(st.sampled_from(views))(values) if draw(st.booleans()) else draw(any_array).value
    return LossState(sums, values, draw(st.integers(0, 2**62)), rows)


def finishes(state: LossState, reduction: str, denominator: str) -> None:
    """A sound state gives its quotient, every other one an error of the package."""
    loss = BinaryCrossEntropy(reduction=reduction, denominator=denominator if reduction == "mean" else "elements")
    try:
        with within(SECONDS):
            found = loss.finish(state)
    except Exception as error:
        refused(error)
        return
    assert isinstance(state.sums, tuple) and "loss" in state.sums
    values = in_numpy(state.values)
    assert values.shape[:2] == (len(state.sums), 2)
    with np.errstate(all="ignore"):
        settled = np.where(np.isnan(values[:, 1]), values[:, 0], values[:, 0] + values[:, 1])
        divisor: Any = 1.0
        if reduction == "mean":
            name = {"elements": "count", "weights": "weight", "positives": "positives"}.get(denominator)
            divisor = state.rows if name is None else settled[state.sums.index(name)]
            least = 1.0 if name == "positives" else 0.0  # No sum of weights is negative.
            divisor = np.where(divisor < least, least, divisor) if name is not None else divisor
        expected = settled[state.sums.index("loss")] / np.float64(divisor)
    assert in_numpy(found).shape == expected.shape
    assert np.array_equal(in_numpy(found), expected, equal_nan=True)


@examples(300, 5_000)
def test_a_state_is_finished_or_refused(profile):
    denominators = st.sampled_from(["elements", "weights", "positives", "rows"])
    profile(given(states(), st.sampled_from(["mean", "sum"]), denominators)(finishes))()


@examples(200, 5_000)
def test_states_merge_or_are_refused(profile):
    def merges(one: LossState, two: LossState) -> None:
        try:
            merged = one + two
        except Exception as error:
            refused(error)
            return
        with np.errstate(all="ignore"):
            expected = in_numpy(one.values)[:, 0] + in_numpy(two.values)[:, 0]
        high, low = np.moveaxis(in_numpy(merged.values), 1, 0)
        assert np.array_equal(np.isfinite(high), np.isfinite(expected))
        assert (merged.elements, merged.sums) == (one.elements + two.elements, one.sums)
        assert (np.abs(low) <= np.abs(high))[np.isfinite(high) & np.isfinite(low)].all()

    profile(given(sound_states, sound_states)(merges))()


# Saved states -------------------------------------------------------------------------------------------------------

LOGITS, TARGETS = np.float64([[0.5, -1.0], [2.0, 0.0]]), np.float64([[1.0, 0.0], [0.0, 1.0]])


def evaluator_of(per_label: bool) -> Evaluator:
    evaluator = empty_evaluator(per_label)
    evaluator.update(LOGITS, TARGETS, groups=np.arange(len(LOGITS)) % 2)
    return evaluator


def empty_evaluator(per_label: bool) -> Evaluator:
    return Evaluator(from_logits=True, per_label=per_label, metrics=["roc_auc", "brier_score"], bins=32)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "loss", "count", "Infinity", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["values", "sums", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw, saved: Any) -> Any:
    """A saved state with one part exchanged, taken away or repeated."""
    if not isinstance(saved, dict | list) or not saved or draw(st.integers(0, 3)) == 0:
        return given_value(draw(json_values | any_value | any_array))
    changed = dict(saved) if isinstance(saved, dict) else list(saved)
    key = draw(st.sampled_from(sorted(saved) if isinstance(saved, dict) else range(len(saved))))
    action = draw(st.sampled_from(["go deeper", "go deeper", "take away", "repeat"]))
    if action == "take away":
        del changed[key]
    elif action == "repeat" and isinstance(changed, list):
        changed.append(changed[key])
    else:
        changed[key] = draw(damaged(saved[key]))
    return changed


@examples(300, 5_000)
@pytest.mark.parametrize("per_label", [False, True])
def test_a_saved_state_is_loaded_or_refused(per_label, profile):
    saved = json.loads(json.dumps(evaluator_of(per_label).state_dict()))

    profile(given(damaged(saved))(lambda found: loads_or_refuses(found, per_label)))()


def loads_or_refuses(found: Any, per_label: bool) -> None:
    """An evaluator continues from it, or keeps what it has."""
    evaluator = empty_evaluator(per_label)
    before = str(evaluator.report())
    try:
        with within(SECONDS):
            evaluator.load_state_dict(found)
    except Exception as error:
        refused(error)
        assert str(evaluator.report()) == before
        return
    assert str(evaluator.report())
    try:
        evaluator.update(LOGITS, TARGETS)
    except Exception as error:  # It may be the state of another number of labels.
        refused(error)
    json.dumps(evaluator.state_dict())


def parts(saved: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a saved state."""
    yield path
    if isinstance(saved, dict | list):
        for key in saved if isinstance(saved, dict) else range(len(saved)):
            yield from parts(saved[key], *path, key)


def exchanged(saved: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = dict(saved) if isinstance(saved, dict) else list(saved)
    changed[path[0]] = exchanged(saved[path[0]], path[1:], value)
    return changed


@pytest.mark.parametrize("per_label", [False, True])
def test_one_part_of_a_saved_state_may_be_anything(per_label):
    saved = json.loads(json.dumps(evaluator_of(per_label).state_dict()))
    # Of the numbers, one of each sum.
    places = [path for path in parts(saved) if "values" not in path or path[-1] == "values" or path[-2:] == (0, 0)]
    assert ("updates", 0, "groups", "1", "elements") in places
    for path in places:
        all_items(lambda item, path=path: loads_or_refuses(exchanged(saved, path, item.value), per_label))


def test_labels_may_be_none():
    evaluator = Evaluator(from_logits=True, per_label=True)
    evaluator.update(np.zeros((3, 0)), np.zeros((3, 0)))
    report = evaluator.report()
    assert (report.count, report.labels) == (0, ())
    assert math.isnan(report.loss)
