"""What one PTX arithmetic instruction computes, as a function of NumPy arrays (PTX ISA 8.8, chapter 9.7).

`decode` turns an opcode and its modifiers into an `Operation`. The functions take arrays of one element or of one
element per thread, in the types that the operation names, and return a new array; they never write into their operands.
Integers wrap around in silence. Only round-to-nearest-even is supported, and neither f16 arithmetic nor anything
approximate is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import vectorize
from numba.extending import intrinsic

Array = np.ndarray[Any, Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(bool),
    **{f"{prefix}{bits}": np.dtype(f"u{bits // 8}") for prefix in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}
CANONICAL_NAN = np.array([0x7FFFFFFF], np.uint32).view(np.float32)


class PTXError(Exception):
    """The program cannot be run, must not be run, or did something wrong."""


@dataclass(frozen=True)
class Operation:
    """`function` maps arrays of the types `operands` to an array of the type `result`."""

    function: Callable[..., Array]
    result: str
    operands: tuple[str, ...]


_Decoder = Callable[[str, Sequence[str], Sequence[str]], Operation]
_DECODERS: dict[str, tuple[frozenset[str], _Decoder]] = {}


def decode(opcode: str, modifiers: Sequence[str]) -> Operation:
    """The operation of e.g. `mul`, `("wide", "s32")`; PTXError for what is not supported."""
    if opcode not in _DECODERS:
        raise PTXError("unsupported instruction")
    allowed, decoder = _DECODERS[opcode]
    types = [m for m in modifiers if m in DTYPES]
    flags = [m for m in modifiers if m not in DTYPES]
    if not types or not allowed.issuperset(flags):
        raise PTXError("unsupported modifier")
    return decoder(opcode, flags, types)


def _decodes(opcodes: str, flags: str = "") -> Callable[[_Decoder], _Decoder]:
    def add(decoder: _Decoder) -> _Decoder:
        _DECODERS.update({opcode: (frozenset(flags.split()), decoder) for opcode in opcodes.split()})
        return decoder

    return add


def _is_float(type_: str) -> bool:
    if type_ == "f16":
        raise PTXError("f16 arithmetic is not supported")
    return type_[0] == "f"


def _bits(type_: str) -> int:
    return DTYPES[type_].itemsize * 8


def _kind(type_: str, kind: str, scale: int = 1) -> str:
    """The integer type of another kind (`s` or `u`), or `scale` times as wide."""
    return f"{kind}{_bits(type_) * scale}"


# Floating point


@intrinsic
def _llvm_fma(typingctx, a, b, c):
    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, b, c), codegen


@vectorize(["f4(f4,f4,f4)", "f8(f8,f8,f8)"])
def fused_multiply_add(a, b, c):
    """a b + c, rounded once."""
    return _llvm_fma(a, b, c)


def _canonical(function: Callable[..., Array]) -> Callable[..., Array]:
    """Results of float32 arithmetic have one NaN on a GPU; payloads would hide a program that looks at the bits."""

    def canonical(*operands: Array) -> Array:
        result = function(*operands)
        if result.dtype == np.float32:
            nan = np.isnan(result)
            if nan.any():
                return np.where(nan, CANONICAL_NAN, result)
        return result

    return canonical


def _minimum(a: Array, b: Array) -> Array:
    # np.fmin leaves the sign of min(+0, -0) open, PTX does not. Equal numbers differ in the sign of zero at most.
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return np.where(a == b, (a.view(bits) | b.view(bits)).view(a.dtype), np.fmin(a, b))


def _maximum(a: Array, b: Array) -> Array:
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return np.where(a == b, (a.view(bits) & b.view(bits)).view(a.dtype), np.fmax(a, b))


@_decodes("fma", "rn")
def _decode_fma(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    if not _is_float(types[0]) or "rn" not in flags:
        raise PTXError("unsupported fma")
    return Operation(_canonical(fused_multiply_add), types[0], (types[0],) * 3)


@_decodes("sqrt rcp", "rn")
def _decode_root(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    if not _is_float(types[0]) or "rn" not in flags:
        raise PTXError("only .rn is supported")
    return Operation(_canonical(np.sqrt if opcode == "sqrt" else np.reciprocal), types[0], (types[0],))


@_decodes("copysign")
def _decode_copysign(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    _is_float(types[0])
    return Operation(lambda sign, magnitude: np.copysign(magnitude, sign), types[0], (types[0],) * 2)


# Integers, and what integers and floats have in common


def _truncated(opcode: str, a: Array, b: Array) -> Array:
    """Signed division rounds towards zero; -2^63 / -1 wraps. A zero divisor is the caller's to refuse."""
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    magnitude_a, magnitude_b = np.abs(a).view(unsigned), np.abs(b).view(unsigned)
    magnitude_b = np.where(magnitude_b == 0, unsigned.type(1), magnitude_b)
    if opcode == "div":
        quotient = magnitude_a // magnitude_b
        return np.where((a < 0) != (b < 0), np.negative(quotient), quotient).view(a.dtype)
    remainder = magnitude_a % magnitude_b
    return np.where(a < 0, np.negative(remainder), remainder).view(a.dtype)


def _high_product(a: Array, b: Array) -> Array:
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    ua, ub = a.view(np.uint64), b.view(np.uint64)
    a1, a0, b1, b0 = ua >> half, ua & low, ub >> half, ub & low
    middle = a1 * b0 + ((a0 * b0) >> half)
    high = a1 * b1 + (middle >> half) + ((a0 * b1 + (middle & low)) >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    return high.view(a.dtype)


def _product(flags: Sequence[str], type_: str) -> tuple[Callable[[Array, Array], Array], str]:
    if "wide" in flags:
        wide = _kind(type_, type_[0], 2)
        return lambda a, b: a.astype(DTYPES[wide]) * b.astype(DTYPES[wide]), wide
    if "hi" in flags:
        return _high_product, type_
    if "lo" in flags:
        return np.multiply, type_
    raise PTXError("an integer product needs .lo, .hi or .wide")


@_decodes("mul mad", "lo hi wide rn")
def _decode_product(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    type_ = types[0]
    if _is_float(type_):
        if opcode == "mad":
            raise PTXError("mad of floats is not supported")
        return Operation(_canonical(np.multiply), type_, (type_, type_))
    product, result = _product(flags, type_)
    if opcode == "mul":
        return Operation(product, result, (type_, type_))
    return Operation(lambda a, b, c: product(a, b) + c, result, (type_, type_, result))


@_decodes("add sub", "rn")
def _decode_sum(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    function = np.add if opcode == "add" else np.subtract
    return Operation(_canonical(function) if _is_float(types[0]) else function, types[0], (types[0],) * 2)


@_decodes("min max", "NaN")
def _decode_extremum(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    type_ = types[0]
    if not _is_float(type_):
        return Operation(np.minimum if opcode == "min" else np.maximum, type_, (type_, type_))
    dropping = _minimum if opcode == "min" else _maximum

    def propagating(a: Array, b: Array) -> Array:
        return np.where(np.isnan(a) | np.isnan(b), np.add(a, b), dropping(a, b))

    return Operation(_canonical(propagating if "NaN" in flags else dropping), type_, (type_, type_))


@_decodes("div rem", "rn")
def _decode_division(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    type_ = types[0]
    if _is_float(type_):
        if opcode == "rem" or "rn" not in flags:
            raise PTXError("only div.rn of floats is supported")
        return Operation(_canonical(np.divide), type_, (type_, type_))
    return Operation(lambda a, b: _truncated(opcode, a, b), type_, (type_, type_))


@_decodes("neg abs")
def _decode_sign(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    _is_float(types[0])
    return Operation(np.negative if opcode == "neg" else np.abs, types[0], (types[0],))


@_decodes("and or xor not")
def _decode_logic(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.bitwise_not}
    return Operation(functions[opcode], types[0], (types[0],) * (1 if opcode == "not" else 2))


@_decodes("shl shr")
def _decode_shift(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    type_, bits = types[0], _bits(types[0])
    shift = np.left_shift if opcode == "shl" else np.right_shift
    # NumPy shifts by the width and beyond as PTX does: to zero, or to the sign.
    return Operation(lambda a, n: shift(a, np.minimum(n, bits).astype(a.dtype)), type_, (type_, "u32"))


@_decodes("shf", "l r clamp wrap")
def _decode_funnel(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    def funnel(low: Array, high: Array, n: Array) -> Array:
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        amount = (n & 31 if "wrap" in flags else np.minimum(n, 32)).astype(np.uint64)
        shifted = (both << amount) >> np.uint64(32) if "l" in flags else both >> amount
        return shifted.astype(np.uint32)

    return Operation(funnel, "b32", ("b32", "b32", "u32"))


def _binary_digits(a: Array) -> Array:
    """One row per number, the most significant bit first."""
    big_endian = np.ascontiguousarray(a).astype(a.dtype.newbyteorder(">"))
    return np.unpackbits(big_endian.view(np.uint8).reshape(a.size, -1), axis=1)


@_decodes("popc clz brev")
def _decode_count(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    bits, dtype = _bits(types[0]), DTYPES[types[0]]
    if opcode == "popc":
        return Operation(lambda a: _binary_digits(a).sum(axis=1, dtype=np.uint32), "u32", (types[0],))
    if opcode == "clz":
        return Operation(
            lambda a: np.where(a == 0, bits, _binary_digits(a).argmax(axis=1)).astype(np.uint32), "u32", (types[0],)
        )
    return Operation(
        lambda a: np.packbits(_binary_digits(a)[:, ::-1], axis=1).view(dtype.newbyteorder(">")).ravel().astype(dtype),
        types[0],
        (types[0],),
    )


@_decodes("bfe")
def _decode_extract(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    bits, dtype = _bits(types[0]), DTYPES[types[0]]

    def extract(a: Array, position: Array, length: Array) -> Array:
        position, length = position & 0xFF, length & 0xFF
        unused = bits - np.minimum(position + length, bits)
        down = np.minimum(unused + position, bits)
        return np.where(length == 0, dtype.type(0), (a << unused.astype(dtype)) >> down.astype(dtype))

    return Operation(extract, types[0], (types[0], "u32", "u32"))


@_decodes("bfi")
def _decode_insert(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    dtype = DTYPES[types[0]]

    def insert(a: Array, b: Array, position: Array, length: Array) -> Array:
        position, length = (position & 0xFF).astype(dtype), (length & 0xFF).astype(dtype)
        mask = ((np.ones(1, dtype) << length) - dtype.type(1)) << position
        return (b & ~mask) | ((a << position) & mask)

    return Operation(insert, types[0], (types[0], types[0], "u32", "u32"))


@_decodes("prmt")
def _decode_permute(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros(1, np.uint32)
        for k in range(4):
            choice = (selector >> np.uint32(4 * k)) & np.uint32(15)
            byte = ((both >> ((choice & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(
                np.uint32
            )
            sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
            result = result | (np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * k))
        return result

    return Operation(permute, "b32", ("b32",) * 3)


# Comparison and selection

_COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_LOGIC: dict[str, Callable[[Array, Array], Array]] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_COMPARISON_FLAGS = " ".join([*_COMPARISONS, *_UNSIGNED, *(c + "u" for c in _COMPARISONS), "num nan", *_LOGIC])


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _comparison(name: str, type_: str) -> tuple[Callable[[Array, Array], Array], str]:
    """The comparison and the type in which its operands are to be read. f16 is compared too: compilers compare before
    they widen."""
    if type_ == "f16" or _is_float(type_):
        if name in ("num", "nan"):
            return (lambda a, b: _unordered(a, b) == (name == "nan")), type_
        if name == "ne":
            return (lambda a, b: (a != b) & ~_unordered(a, b)), type_
        if name in _COMPARISONS:
            return _COMPARISONS[name], type_
        if name not in _UNSIGNED:
            compare = _COMPARISONS[name[:2]]
            return (lambda a, b: compare(a, b) | _unordered(a, b)), type_
    elif name in _UNSIGNED:
        return _COMPARISONS[_UNSIGNED[name]], _kind(type_, "u")
    elif name in _COMPARISONS and (type_[0] != "b" or name in ("eq", "ne")):
        return _COMPARISONS[name], type_
    raise PTXError("unsupported comparison")


@_decodes("setp set", _COMPARISON_FLAGS)
def _decode_comparison(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    if not 1 <= len(flags) <= 2:
        raise PTXError("unsupported comparison")
    compare, type_ = _comparison(flags[0], types[-1])
    operands: tuple[str, ...] = (type_, type_)
    condition: Callable[..., Array] = compare
    if len(flags) == 2:
        logic = _LOGIC[flags[1]]
        operands = (type_, type_, "pred")
        condition = lambda a, b, c: logic(compare(a, b), c)  # noqa: E731
    if opcode == "setp":
        return Operation(condition, "pred", operands)
    dtype = DTYPES[types[0]]
    true = dtype.type(1.0) if types[0] == "f32" else np.array(-1).astype(dtype)
    return Operation(lambda *values: np.where(condition(*values), true, dtype.type(0)), types[0], operands)


@_decodes("selp")
def _decode_select(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    def select(a: Array, b: Array, condition: Array) -> Array:
        return np.where(condition, a, b)

    return Operation(select, types[0], (types[0], types[0], "pred"))


# Conversion

_ROUNDINGS: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _float_to_integer(source: str, target: str, rounding: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Out of range saturates. NaN gives 0 between short types, and the highest bit where 64 bits take part."""
    dtype, limits = DTYPES[target], np.iinfo(DTYPES[target])
    beyond = float(limits.max) + 1.0 if _bits(target) < 64 else 2.0 ** (64 if target[0] == "u" else 63)
    for_nan = 0 if source != "f64" and _bits(target) < 64 else 1 << (_bits(target) - 1)
    nan_value = np.array([for_nan], np.uint64).astype(f"u{dtype.itemsize}").view(dtype)

    def convert(a: Array) -> Array:
        rounded = rounding(a.astype(np.float64))
        inside = (rounded >= float(limits.min)) & (rounded < beyond)
        result = np.where(inside, rounded, 0.0).astype(dtype)
        result = np.where(rounded >= beyond, dtype.type(limits.max), result)
        result = np.where(rounded < float(limits.min), dtype.type(limits.min), result)
        return np.where(np.isnan(rounded), nan_value, result)

    return convert


@_decodes("cvt", "rn rni rzi rmi rpi sat")
def _decode_conversion(opcode: str, flags: Sequence[str], types: Sequence[str]) -> Operation:
    if len(types) != 2:
        raise PTXError("unsupported conversion")
    target, source = types
    dtype = DTYPES[target]
    saturate = "sat" in flags
    rounding = next((_ROUNDINGS[f] for f in flags if f in _ROUNDINGS), None)
    convert: Callable[[Array], Array]
    if target[0] != "f" and source[0] != "f":
        if flags not in ([], ["sat"]):
            raise PTXError("unsupported conversion")
        if saturate:
            # In Python's integers, since no NumPy type holds both s64 and u64.
            limits = np.iinfo(dtype)

            def clamp(a: Array) -> Array:
                return np.array([min(max(int(v), int(limits.min)), int(limits.max)) for v in a], dtype)

            convert = clamp
        else:
            convert = lambda a: a.astype(dtype)  # noqa: E731
    elif target[0] != "f":
        if rounding is None:
            raise PTXError("a conversion from float to integer needs a rounding")
        convert = _float_to_integer(source, target, rounding)
    else:
        narrowing = source[0] != "f" or _bits(source) > _bits(target)
        if (narrowing and "rn" not in flags) or (rounding is not None and source != target):
            raise PTXError("unsupported rounding")
        integral = rounding or (lambda a: a)

        def convert(a: Array) -> Array:
            result = integral(a).astype(dtype)
            return np.where(result > 0, np.minimum(result, dtype.type(1)), dtype.type(0)) if saturate else result

        convert = _canonical(convert)
    return Operation(convert, target, (source,))
