"""The rules that arguments and options keep: one function a rule, one message a rule.

Each message names the argument, both sides of the disagreement, and the remedy.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any

import numpy as np

from gpubce.arrays.buffer import Buffer, first_line
from gpubce.arrays.registry import library_of
from gpubce.errors import (
    ArrayError,
    DtypeError,
    InvalidValueError,
    OptionError,
    ShapeError,
    StateError,
)
from gpubce.spec.bins import LARGEST, SMALLEST, quantum
from gpubce.spec.geometry import is_flat
from gpubce.spec.precision import ACCUMULATOR, ITEMSIZE, MASKS, PRECISIONS, TARGETS, WEIGHTS
from gpubce.spec.recipe import WITH_BASELINE

REDUCTIONS = ("none", "sum", "mean")
DENOMINATORS = ("elements", "weights", "positives", "rows")
DEVICES = ("auto", "cpu", "cuda")


# Messages -----------------------------------------------------------------------------------------------------------

LONGEST_VALUE = 200
"""Characters of a wrong value that a message shows."""

_WRITTEN = ("builtins", "numpy", "torch", "fractions", "decimal")
"""The packages whose values are written out."""


def shown(value: Any) -> str:
    """A value as messages show it: in one line of bounded length, whatever it is.

    Of arrays and other people's objects it is the type: to write a tensor waits for its device, and a tensor whose
    memory was freed ends the process.
    """
    try:
        text = " ".join(repr(value).split()) if _is_written(value, 3) else f"<{type(value).__qualname__}>"
    except Exception:  # An integer of more than 4300 digits.
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _is_written(value: Any, depth: int) -> bool:
    kind = type(value)
    if isinstance(value, list | tuple | set | frozenset | dict):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and len(value) <= LONGEST_VALUE and all(_is_written(item, depth - 1) for item in items)
    if hasattr(kind, "__array__") and not isinstance(value, np.generic):
        return False
    return str(kind.__module__).partition(".")[0] in _WRITTEN


# Options ------------------------------------------------------------------------------------------------------------


def checking(value: Any) -> bool | None:
    """Whether to raise on invalid values; None leaves it to the place of the arrays."""
    if isinstance(value, str) and value == "auto":
        return None
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"check={shown(value)} is not one of 'auto', True, False")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{name}={shown(value)} is not one of {', '.join(map(repr, choices))}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"{name}={shown(value)} is not True or False")
    return bool(value)


def number(name: str, value: Any, low: float, high: float, rule: str, open_high: bool = False) -> float:
    """A finite real number in a range; ``rule`` says the range in words."""
    as_float = real(name, value)
    inside = low <= as_float < high if open_high else low <= as_float <= high
    if not (inside and math.isfinite(as_float)):
        raise OptionError(f"{name}={shown(value)} is out of range: it must be {rule}")
    return as_float


def real(name: str, value: Any) -> float:
    """A real number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise OptionError(f"{name}={shown(value)} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise OptionError(f"{name} is an integer that no floating-point type can hold") from None


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """Finite numbers that are not negative, from a number, a list, a tuple or an array (on any device)."""
    if hasattr(value, "tolist") or hasattr(value, "copy_to_host"):
        value = listed(name, value)
    if isinstance(value, Mapping):
        raise OptionError(f"{name}={shown(value)} is not a sequence of numbers: give them in order")
    # Nothing else that can be iterated over: it may have no order, be read only once, or never end.
    values = value if isinstance(value, list | tuple) else [value]
    checked = tuple(number(name, item, 0.0, math.inf, "finite and not negative") for item in values)
    if not checked:
        raise OptionError(f"{name} is empty: give one number, or one for each label")
    return checked


def listed(name: str, array: Any) -> Any:
    """The values of an array as a list."""
    try:
        if hasattr(type(array), "data_ptr"):  # A tensor: to read one whose memory was freed ends the process.
            library_of(array, name).buffer(array)
        return array.tolist() if hasattr(array, "tolist") else array.copy_to_host().tolist()
    except Exception as error:  # One without values raises what it likes.
        raise OptionError(f"{name} is an array whose values cannot be read: {first_line(error)}") from None


def clip_bounds(value: Any) -> float | tuple[float, float]:
    """How far probabilities are kept from 0 and 1: one number, or one for each end, where two are not the same."""
    if not isinstance(value, tuple | list):
        return number("eps", value, math.ulp(0.0), 0.5, "above 0 and below 0.5", open_high=True)
    if len(value) != 2:
        raise OptionError(f"eps has {len(value)} values: it is one number, or the pair (low, high) for [low, 1 - high]")
    low = number("eps[0]", value[0], math.ulp(0.0), 0.5, "above 0 and below 0.5", open_high=True)
    high = number("eps[1]", value[1], 0.0, 0.5, "at least 0 and below 0.5", open_high=True)
    return low if low == high else (low, high)


def label_vector(name: str, value: Any) -> float | tuple[float, ...] | None:
    """None, one number, or one number for each label."""
    if value is None:
        return None
    values = numbers(name, value)
    return values[0] if len(values) == 1 else values


def axes(value: Any) -> tuple[int, ...] | None:
    """None, or the axes to reduce."""
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise OptionError("axis=() reduces nothing: leave it out, or use reduction='none'")
    return tuple(axis_number("axis", item) for item in values)


def axis_number(name: str, value: Any) -> int:
    """The number of an axis."""
    if not isinstance(value, Integral) or isinstance(value, bool) or abs(int(value)) >= 2**31:
        raise OptionError(f"{name}={shown(value)} is not the number of an axis")
    return int(value)


def result_type(value: Any) -> str | None:
    """None, or the name of a floating-point type."""
    if value is None:
        return None
    kind, name = type(value), None
    if isinstance(value, str):
        name = value
    elif (kind.__module__, kind.__name__) == ("torch", "dtype"):
        name = str(value).removeprefix("torch.")
    elif isinstance(value, type | np.dtype):  # NumPy would write any other object into its error.
        with contextlib.suppress(Exception):
            name = np.dtype(value).name
    if name not in PRECISIONS:
        raise OptionError(f"dtype={shown(value)} is not one of {', '.join(PRECISIONS)}")
    return name


# Arrays -------------------------------------------------------------------------------------------------------------


def prediction_type(name: str, storage: str) -> str:
    """Predictions are floating-point."""
    if storage not in PRECISIONS:
        raise DtypeError(f"{name} has type {storage}, but must be one of {', '.join(PRECISIONS)}: convert it first")
    return storage


def baseline_type(name: str, storage: str, buffer: Buffer) -> str:
    """A baseline is computed as the predictions are."""
    prediction_type("baseline", buffer.storage)
    if PRECISIONS[buffer.storage].compute != PRECISIONS[storage].compute:
        raise DtypeError(f"baseline has type {buffer.storage}, {name} {storage}: convert one of them")
    return buffer.storage


def has_baseline(sums: Sequence[str], baseline: Any) -> None:
    """A baseline is given where a sum compares with it, and nowhere else."""
    needed = [name for name in sums if name in WITH_BASELINE]
    if needed and baseline is None:
        raise OptionError(f"{needed[0]} compares with other predictions: give them as baseline=")
    if baseline is not None and not needed:
        raise OptionError("baseline is given, but nothing compares with it: ask for 'difference'")


def target_type(buffer: Buffer) -> str:
    """Targets are bool, integer or floating-point."""
    return one_of_targets("targets", buffer.storage)


def one_of_targets(name: str, storage: str) -> str:
    """The type of targets by whatever name."""
    return _one_of(name, storage, TARGETS)


def weight_type(buffer: Buffer) -> str:
    """Weights are numbers."""
    return _one_of("weight", buffer.storage, WEIGHTS)


def mask_type(buffer: Buffer) -> str:
    """Masks are boolean, so that nobody gives weights in their place."""
    if buffer.storage not in MASKS:
        raise DtypeError(f"mask has type {buffer.storage}, but must be bool (True = counted): pass mask != 0")
    return buffer.storage


def _one_of(name: str, storage: str, types: Sequence[str]) -> str:
    if storage not in types:
        raise DtypeError(f"{name} has type {storage}, which is not supported: use one of {', '.join(types)}")
    return storage


def same_library(first: str, first_library: str, other: str, other_library: str) -> None:
    """Libraries are not mixed."""
    if first_library != other_library:
        raise ArrayError(
            f"{first} is an array of {first_library}, {other} one of {other_library}: convert one of them, libraries "
            "are not mixed silently"
        )


def same_device(first: str, first_buffer: Buffer, other: str, other_buffer: Buffer) -> None:
    """Devices are not mixed."""
    if first_buffer.device != other_buffer.device:
        raise ArrayError(
            f"{first} is on {first_buffer.device}, {other} on {other_buffer.device}: move one of them, nothing is "
            "copied between devices silently"
        )


def same_shape(name: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> None:
    """No broadcasting: it hides mistakes."""
    if shape != other_shape:
        raise ShapeError(
            f"{name} has shape {shape}, {other} has shape {other_shape}: they must be equal, reshape or index one"
        )


def broadcast_strides(
    name: str, own: tuple[int, ...], strides: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The strides of an array over a shape to which it broadcasts by NumPy's rules."""
    return (0,) * missing_axes(name, own, shape) + tuple(
        0 if length == 1 else stride for length, stride in zip(own, strides, strict=True)
    )


def missing_axes(name: str, own: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many axes an array lacks that broadcasts to a shape by NumPy's rules."""
    missing = len(shape) - len(own)
    if missing < 0 or any(length not in (1, wanted) for length, wanted in zip(own, shape[missing:], strict=True)):
        raise ShapeError(
            f"{name} has shape {own}, which does not broadcast to the predictions' shape {shape}: "
            "it needs the same trailing lengths, or 1"
        )
    return missing


def label_count(shape: tuple[int, ...], label_axis: int) -> int:
    """How many labels there are: one in an array of less than two axes."""
    if len(shape) < 2:
        return 1
    if not -len(shape) <= label_axis < len(shape):
        raise ShapeError(f"label_axis={label_axis} does not exist in an array of shape {shape}")
    return shape[label_axis]


def one_per_label(name: str, values: tuple[float, ...], shape: tuple[int, ...], label_axis: int) -> None:
    """A vector over the labels has their length."""
    labels = label_count(shape, label_axis)
    if len(values) != labels:
        where = f"axis {label_axis} of shape {shape}" if len(shape) > 1 else f"shape {shape}, which is one label,"
        raise ShapeError(
            f"{name} has {len(values)} values, but {where} has {labels} label{'s' * (labels != 1)}: give one value "
            "for each label, or choose label_axis"
        )


def reduced_axes(axis: tuple[int, ...] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes to reduce, counted from 0, each once."""
    if axis is None:
        return tuple(range(len(shape)))
    if not all(-len(shape) <= item < len(shape) for item in axis):
        raise ShapeError(f"axis={shown(axis)} does not exist in an array of shape {shape}")
    positive = tuple(sorted(item % len(shape) for item in axis))
    if len(set(positive)) != len(positive):
        raise ShapeError(f"axis={shown(axis)} names an axis of shape {shape} twice")
    return positive


def output(name: str, buffer: Buffer, shape: tuple[int, ...], storage: str) -> None:
    """An output array fits what is written to it."""
    if buffer.shape != shape:
        raise ShapeError(f"{name} has shape {buffer.shape}, but the result has shape {shape}")
    if buffer.storage != storage:
        raise DtypeError(f"{name} has type {buffer.storage}, but the result has type {storage}")
    if not buffer.writable:
        raise ArrayError(f"{name} cannot be written to: pass a writable array")
    # From the shortest step to the longest, each must leave the memory of the shorter ones behind. Views of NumPy and
    # PyTorch do, but those that broadcast, slide or are made by as_strided.
    reach = ITEMSIZE[storage]
    for stride, length in sorted((abs(s), n) for s, n in zip(buffer.strides, shape, strict=True) if n > 1):
        if stride < reach and buffer.size:
            raise ArrayError(f"{name} is a view whose elements share memory (broadcast): pass an array of its own")
        reach += stride * (length - 1)


def one_piece(name: str, buffer: Buffer) -> None:
    """A reduced result is small: it is written as one piece."""
    if buffer.size and not is_flat(buffer.shape, buffer.strides, ITEMSIZE[buffer.storage]):
        raise ArrayError(f"{name} has gaps between its elements: pass a C-contiguous array for a reduced result")


def aligned(name: str, buffer: Buffer) -> None:
    """A GPU reads numbers at multiples of their size. Anywhere else it ends the context, for good."""
    if buffer.device.kind != "cpu" and buffer.size and buffer.storage in ITEMSIZE:
        size = ITEMSIZE[buffer.storage]
        steps = [stride for stride, length in zip(buffer.strides, buffer.shape, strict=True) if length > 1]
        if any(place % size for place in (buffer.address, *steps)):
            raise ArrayError(
                f"{name} has {buffer.storage} elements at addresses that are no multiples of {size}, which no GPU can "
                "read: pass a copy"
            )


def separate(name: str, buffer: Buffer, other: str, other_buffer: Buffer, may_be_same: bool = False) -> None:
    """What is written is not what is read, except element for element where that is safe."""
    if buffer.overlaps(other_buffer) and not (may_be_same and buffer.same_elements(other_buffer)):
        remedy = f"pass {other} itself or an array of its own" if may_be_same else "pass an array of its own"
        raise ArrayError(f"{name} shares memory with {other}: {remedy}")


def bin_count(value: Any) -> int:
    """How many bins a histogram has: a power of two, or 0 for no histogram."""
    bins = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else -1
    if bins != 0 and (not SMALLEST <= bins <= LARGEST or bins & (bins - 1)):
        raise OptionError(f"bins={shown(value)} is not a power of two from {SMALLEST} to {LARGEST}, nor 0")
    return bins


def largest_weight(value: Any) -> float | None:
    """None, or the largest weight that a histogram will be given."""
    return None if value is None else number("max_weight", value, 2.0**-64, 2.0**64, "between 2^-64 and 2^64")


def window_length(value: Any) -> int | None:
    """None, or how many updates a window holds."""
    return None if value is None else number_of("window", value, "updates")


def number_of(name: str, value: Any, things: str) -> int:
    """How many of something; at least one."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) < 2**31:
        raise OptionError(f"{name}={shown(value)} is not a number of {things}: give an integer from 1 on")
    return int(value)


def group_numbers(groups: Any) -> np.ndarray:
    """Integers, one for each row, on the host."""
    numbers = np.asarray(groups)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise DtypeError(
            f"groups has type {numbers.dtype} and {numbers.ndim} axes, but must be one integer for each index along "
            "the first axis of predictions: number the groups"
        )
    return numbers


def label_names(value: Any, labels: int) -> tuple[str, ...]:
    """A name for each label of a report; None stands for their numbers."""
    if value is None:
        return tuple(map(str, range(labels)))
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        raise OptionError(f"label_names={shown(value)} is not a list of names: give one name for each label")
    if len(value) != labels:
        remedy = "give one for each label" if labels else "evaluate with per_label=True, or leave them out"
        raise OptionError(f"label_names has {len(value)} names, but the report has {labels} labels: {remedy}")
    return tuple(map(str, value))


def quanta_per_unit(max_weight: float | None, weighted: bool) -> float:
    """In how many steps a histogram counts a weight of 1."""
    if max_weight is None and weighted:
        raise OptionError(
            "weights are given, and a histogram counts them in steps of the largest one: say max_weight=..., or leave "
            "out the metrics that need a histogram"
        )
    quanta = 1.0 / quantum(1.0 if max_weight is None else max_weight)
    if not weighted and quanta < 1.0:
        raise OptionError(f"max_weight={max_weight:g} is given, but no weight: a weight of 1 would count as 0")
    return quanta


def sound_state(sums: Any, rows: Any, buffer: Buffer) -> None:
    """A state that somebody put together has the parts of one that was summed: kernels read it by address."""
    if not isinstance(sums, tuple) or not all(isinstance(name, str) for name in sums):
        raise StateError(f"state.sums={shown(sums)} is not a tuple of names")
    if buffer.storage != ACCUMULATOR or buffer.shape[:2] != (len(sums), 2):
        raise StateError(
            f"state.values is {buffer.storage} of shape {buffer.shape}, but {len(sums)} sums are {ACCUMULATOR} of "
            f"shape ({len(sums)}, 2) and that of the result: pass what state() gave"
        )
    if isinstance(rows, bool) or not isinstance(rows, Real):
        raise StateError(f"state.rows={shown(rows)} is not a number")


def one_number(name: str, buffer: Buffer) -> None:
    """A scalar in an array."""
    if buffer.size != 1 or buffer.storage not in PRECISIONS:
        raise ShapeError(f"{name} is an array of {buffer.size} {buffer.storage}: it must be one floating-point number")


def of_type(name: str, buffer: Buffer, storage: str) -> None:
    """An array that a kernel takes in one type only."""
    if buffer.storage != storage:
        raise DtypeError(f"{name} is an array of {buffer.storage}, but these predictions are computed in {storage}")


def scale_of_elements(name: str, buffer: Buffer, unit: float) -> None:
    """Numbers that each multiply the derivative of one element."""
    _one_of(name, buffer.storage, tuple(PRECISIONS))
    if unit != 1.0:
        raise OptionError(f"{name} has {buffer.size} numbers and base is not None: leave base out, or give one number")


# Values -------------------------------------------------------------------------------------------------------------


def first_invalid(
    predictions: dict[str, np.ndarray],
    targets: np.ndarray,
    weight: np.ndarray | None,
    counted: np.ndarray,
    start: int,
    count: int,
    compute: str,
    signed: bool,
) -> InvalidValueError | None:
    """The error for the first invalid element, with its place and value; None if there is none.

    All arrays have one shape and begin at index ``start`` of the user's first axis. ``predictions`` are probabilities
    by the names of their arguments; logits cannot be invalid. ``count`` is how many elements are invalid in all,
    ``compute`` the type in which weights must be finite; ``signed`` allows negative ones.
    """
    in_range, remedy = "a probability must lie in [0, 1]", "for logits use the function with_logits"
    sign = "" if signed else " and not negative"
    rules: list[tuple[str, np.ndarray | None, str, str]] = [
        ("targets", targets, "a target must lie in [0, 1]", "use ignore_index or mask for unlabelled elements"),
        *((name, values, in_range, remedy) for name, values in predictions.items()),
        ("weight", weight, f"a weight must be finite (in {compute}){sign}", "drop or mask such elements"),
    ]
    for name, values, rule, remedy in rules:
        if values is None:
            continue
        highest = np.float64(_limits(compute)[1]) if name == "weight" else 1
        lowest = -highest if signed and name == "weight" else 0
        wrong = ~((values >= lowest) & (values <= highest))
        if name in predictions:
            wrong &= ~np.isnan(values)
        wrong &= counted
        if wrong.any():
            place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            index = tuple(int(k) + (start if axis == 0 else 0) for axis, k in enumerate(place))
            where = str([*index]) if index else ""
            others = f" ({count} elements are invalid)" if count > 1 else ""
            message = f"{name}{where} is {values[place]!s}{others}: {rule}; {remedy}"
            return InvalidValueError(message, name, index, values[place])
    return None


def held(name: str, value: float, compute: str, may_vanish: bool = False) -> None:
    """A number that a kernel takes is one that its type holds: infinity times 0 would be NaN, and eps = 0 no bound."""
    smallest, largest = _limits(compute)
    size = abs(value)
    if not (size <= largest and (size >= smallest or size == 0.0 or may_vanish)):
        raise OptionError(
            f"{name} is {value:g}, but these predictions are computed in {compute}, which holds {smallest:.2g} to "
            f"{largest:.2g}: choose a number in between"
        )


@cache
def _limits(compute: str) -> tuple[float, float]:
    """The smallest normal number and the largest."""
    return float(np.finfo(compute).tiny), float(np.finfo(compute).max)


def not_ignored(targets: np.ndarray, ignore_index: float | int | None) -> Any:
    """Which targets count."""
    if ignore_index is None:
        return np.True_
    return targets != ignore_index if ignore_index == ignore_index else ~np.isnan(targets)


def ignorable(value: Any, storage: str) -> tuple[str, float | int]:
    """How to compare targets with ignore_index: ("nan", 0), or ("value", the value in the target's type)."""
    if isinstance(value, float) and math.isnan(value):
        if storage not in PRECISIONS:
            raise OptionError(f"ignore_index is NaN, which targets of type {storage} cannot hold")
        return "nan", 0
    given = int(value) if isinstance(value, Integral) else value  # Those of NumPy are compared as float64.
    if storage in PRECISIONS:
        held = _rounded(float(value), storage)
        exact = held == given
        kept: float | int = held
    else:
        limits = (0, 1) if storage == "bool" else (int(np.iinfo(storage).min), int(np.iinfo(storage).max))
        exact = math.isfinite(value) and limits[0] <= given <= limits[1] and int(given) == given
        kept = int(given) if exact else 0
        if kept > np.iinfo(np.int64).max:  # Kernels see a uint64 as the int64 of the same bits.
            kept -= 1 << 64
    if not exact:
        raise OptionError(f"ignore_index={shown(value)} is not a value that targets of type {storage} can hold")
    return "value", kept


def _rounded(value: float, storage: str) -> float:
    with np.errstate(over="ignore"):
        if storage != "bfloat16":
            return float(np.dtype(storage).type(value))
        bits = int(np.float32(value).view(np.uint32))
        return value if bits & 0xFFFF == 0 and float(np.float32(value)) == value else math.nan
