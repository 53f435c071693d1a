"""Small PTX programs, by hand and by Numba, against expected values computed without the interpreter."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numba import types

from .interpreter import Kernel, Memory, PTXError, launch

pytestmark = pytest.mark.emulated

DTYPES = {f"{k}{b}": np.dtype(f"{n}{b // 8}") for k, n in (("u", "u"), ("b", "u"), ("s", "i")) for b in (8, 16, 32, 64)}
DTYPES |= {f"f{b}": np.dtype(f"f{b // 8}") for b in (16, 32, 64)}
REGISTERS = """
    .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .f64 %fd<9>;
"""


def program(body: str, params: str = "", module: str = "") -> str:
    declared = ", ".join(f".param .{p.split()[0]} {p.split()[1]}" for p in params.split(",") if p.strip())
    header = f".version 8.8\n.target sm_90\n.address_size 64\n{module}\n"
    return f"{header}.visible .entry k({declared})\n{{{REGISTERS}{body}\n}}"


def run(
    body: str,
    arrays: list[np.ndarray],
    scalars: Sequence[Any] = (),
    *,
    grid: int = 1,
    threads: int = 1,
    module: str = "",
) -> Any:
    """Runs a program with the parameters `a0`, `a1`, ... (addresses, also in %rd0, %rd1, ...), then `s0`, `s1`, ..."""
    params = [f"u64 a{k}" for k in range(len(arrays))] + [f"u64 s{k}" for k in range(len(scalars))]
    loads = "".join(f"ld.param.u64 %rd{k}, [a{k}];\n" for k in range(len(arrays)))
    memory = Memory()
    addresses = [memory.register(array) for array in arrays]
    return launch(
        Kernel(program(loads + body, ", ".join(params), module)), memory, grid, threads, [*addresses, *scalars]
    )


def compute(code: str, result: str, *inputs: tuple[str, Any], **options: Any) -> np.ndarray:
    """`code` for every element: inputs (type, values) in %a, %b, %c, the output in %o."""
    arrays = [np.ascontiguousarray(values, DTYPES[type_]) for type_, values in inputs]
    out = np.zeros(arrays[0].size, DTYPES[result])
    kinds = [*(type_ for type_, _ in inputs), result]
    names = [*"abc"[: len(inputs)], "o"]
    lines = [".reg .b64 %i, %at, %n; .reg .u32 %x, %y, %z; .reg .pred %done;"]
    for name, type_ in zip(names, kinds, strict=True):
        bits = max(DTYPES[type_].itemsize * 8, 16)
        lines.append(f".reg .{type_ if type_ in ('f32', 'f64') else f'b{bits}'} %{name};")
    lines.append("mov.u32 %x, %tid.x; mov.u32 %y, %ctaid.x; mov.u32 %z, %ntid.x; mad.lo.u32 %x, %y, %z, %x;")
    lines.append(f"cvt.u64.u32 %i, %x; setp.ge.u64 %done, %i, {out.size}; @%done ret;")
    for k, (name, type_) in enumerate(zip(names, kinds, strict=True)):
        size, access = DTYPES[type_].itemsize, type_ if type_ != "f16" else "b16"
        lines.append(f"mad.lo.u64 %at, %i, {size}, %rd{k};")
        lines.append(code + f"st.global.{access} [%at], %o;" if name == "o" else f"ld.global.{access} %{name}, [%at];")
    run("\n".join(lines) + "ret;", [*arrays, out], grid=-(-out.size // 96), threads=96, **options)
    return out


def same(actual: np.ndarray, expected: Any) -> bool:
    """Equal bits; any NaN is like any other."""
    expected = np.asarray(expected, actual.dtype)
    if actual.dtype.kind != "f":
        return np.array_equal(actual, expected)
    bits = f"u{actual.dtype.itemsize}"
    nan = np.isnan(actual) & np.isnan(expected)
    return bool(((actual.view(bits) == expected.view(bits)) | nan).all())


def wrapped(values: list[int], type_: str) -> np.ndarray:
    return np.array([v % (1 << 64) for v in values], np.uint64).astype(DTYPES[type_])


def integers(type_: str, seed: int = 0, count: int = 150) -> np.ndarray:
    limits = np.iinfo(DTYPES[type_])
    edges = [0, 1, 2, 3, limits.max, limits.max - 1, limits.min, limits.min + 1, limits.max // 3]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(limits.min, limits.max, count, DTYPES[type_], endpoint=True)
    return rng.permutation(np.concatenate([np.array(edges, DTYPES[type_]), drawn, drawn % 7]).astype(DTYPES[type_]))


def floats(type_: str = "f32", seed: int = 0) -> np.ndarray:
    """Random bits, and everything special."""
    dtype = DTYPES[type_]
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << (dtype.itemsize * 8), 300, np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
    near = rng.normal(0, 3, 300).astype(dtype)
    special = [0.0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 4]
    return rng.permutation(np.concatenate([bits, near, np.repeat(np.array(special, dtype), 8)]))


# Integers


@pytest.mark.parametrize("type_", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integer_arithmetic(type_: str) -> None:
    a, b, c = (integers(type_, seed) for seed in range(3))
    x, y, z = a.tolist(), b.tolist(), c.tolist()
    bits, inputs = a.dtype.itemsize * 8, [(type_, a), (type_, b)]
    cases: dict[str, Callable[[int, int], int]] = {
        "add": operator.add,
        "sub": operator.sub,
        "min": min,
        "max": max,
        "mul.lo": operator.mul,
        "mul.hi": lambda p, q: (p * q) >> bits,
    }
    for opcode, function in cases.items():
        actual = compute(f"{opcode}.{type_} %o, %a, %b;", type_, *inputs)
        assert same(actual, wrapped([function(p, q) for p, q in zip(x, y, strict=True)], type_)), opcode
    actual = compute(f"mad.lo.{type_} %o, %a, %b, %c;", type_, *inputs, (type_, c))
    assert same(actual, wrapped([p * q + r for p, q, r in zip(x, y, z, strict=True)], type_))
    if bits < 64:
        wide = f"{type_[0]}{2 * bits}"
        actual = compute(f"mul.wide.{type_} %o, %a, %b;", wide, *inputs)
        assert same(actual, wrapped([p * q for p, q in zip(x, y, strict=True)], wide))


@pytest.mark.parametrize("type_", ["s32", "u32", "s64", "u64"])
def test_division_rounds_towards_zero(type_: str) -> None:
    a, b = integers(type_), integers(type_, 1)
    b = np.where(b == 0, -1 if type_[0] == "s" else 7, b).astype(b.dtype)

    def quotient(p: int, q: int) -> int:
        return abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)

    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    expected = wrapped([quotient(p, q) for p, q in pairs], type_)
    assert same(compute(f"div.{type_} %o, %a, %b;", type_, (type_, a), (type_, b)), expected)
    expected = wrapped([p - q * quotient(p, q) for p, q in pairs], type_)
    assert same(compute(f"rem.{type_} %o, %a, %b;", type_, (type_, a), (type_, b)), expected)


def test_division_by_zero_is_refused() -> None:
    with pytest.raises(PTXError, match="div.s32.*division by zero"):
        compute("div.s32 %o, %a, %b;", "s32", ("s32", [1, 2]), ("s32", [1, 0]))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bits_and_shifts(bits: int) -> None:
    a, b = integers(f"u{bits}"), integers(f"u{bits}", 1)
    n = np.random.default_rng(2).integers(0, bits + 9, a.size).astype(np.uint32)
    n[:3] = bits, 1 << 16, 0xFFFFFFFF
    t, pairs = f"b{bits}", [(f"b{bits}", a), (f"b{bits}", b)]
    assert same(compute(f"and.{t} %o, %a, %b;", t, *pairs), a & b)
    assert same(compute(f"or.{t} %o, %a, %b;", t, *pairs), a | b)
    assert same(compute(f"xor.{t} %o, %a, %b;", t, *pairs), a ^ b)
    assert same(compute(f"not.{t} %o, %a;", t, pairs[0]), ~a)
    assert same(compute(f"neg.s{bits} %o, %a;", t, pairs[0]), wrapped([-v for v in a.tolist()], t))
    signed = a.view(f"i{bits // 8}").tolist()
    assert same(compute(f"abs.s{bits} %o, %a;", t, pairs[0]), wrapped([abs(v) for v in signed], t))
    amounts = [("b32", n)]
    shifted = [v << int(s) if s < 64 else 0 for v, s in zip(a.tolist(), n, strict=True)]
    assert same(compute(f"shl.{t} %o, %a, %b;", t, pairs[0], *amounts), wrapped(shifted, t))
    for kind, values in (("u", a.tolist()), ("s", signed)):
        expected = wrapped([v >> int(min(s, 99)) for v, s in zip(values, n, strict=True)], t)
        assert same(compute(f"shr.{kind}{bits} %o, %a, %b;", t, pairs[0], *amounts), expected)


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_and_fields(bits: int) -> None:
    a, b = integers(f"u{bits}"), integers(f"u{bits}", 1)
    t, x = f"b{bits}", a.tolist()
    assert same(compute(f"popc.{t} %o, %a;", "u32", (t, a)), [v.bit_count() for v in x])
    assert same(compute(f"clz.{t} %o, %a;", "u32", (t, a)), [bits - v.bit_length() for v in x])
    assert same(compute(f"brev.{t} %o, %a;", t, (t, a)), [int(f"{v:0{bits}b}"[::-1], 2) for v in x])
    for position, length in ((0, 8), (8, 8), (bits - 4, 8), (5, 0), (bits, 3), (0, bits), (3, 70)):
        digits = [f"{v:0{bits}b}"[::-1] for v in x]  # the least significant first
        for kind in "us":
            sign = [d[min(position + length, bits) - 1] if length and kind == "s" else "0" for d in digits]
            taken = [(d[position : position + length] + s * bits)[:length] for d, s in zip(digits, sign, strict=True)]
            expected = [int((k + s * bits)[:bits][::-1], 2) for k, s in zip(taken, sign, strict=True)]
            actual = compute(f"bfe.{kind}{bits} %o, %a, {position}, {length};", t, (t, a))
            assert same(actual, np.array(expected, np.uint64)), (kind, position, length)
        mask = ((1 << length) - 1) << position
        expected = [(q & ~mask) | ((p << position) & mask) for p, q in zip(x, b.tolist(), strict=True)]
        assert same(compute(f"bfi.{t} %o, %a, %b, {position}, {length};", t, (t, a), (t, b)), wrapped(expected, t))


def test_permute_and_funnel_shift() -> None:
    a, b = integers("u32"), integers("u32", 1)
    ab = [("b32", a), ("b32", b)]
    source = [list(int(p).to_bytes(4, "little") + int(q).to_bytes(4, "little")) for p, q in zip(a, b, strict=True)]
    for selector in (0x3210, 0x7654, 0x5140, 0x9BFC):
        nibbles = [(selector >> 4 * k) & 15 for k in range(4)]
        chosen = [[255 * (s[i & 7] >> 7) if i & 8 else s[i & 7] for i in nibbles] for s in source]
        expected = [int.from_bytes(bytes(c), "little") for c in chosen]
        assert same(compute(f"prmt.b32 %o, %a, %b, {selector};", "b32", *ab), expected)
    both = [(int(q) << 32) | int(p) for p, q in zip(a, b, strict=True)]
    for n, amount in ((0, 0), (7, 7), (32, 32), (37, 32)):
        left, right = [(v << amount) >> 32 for v in both], [v >> amount for v in both]
        assert same(compute(f"shf.l.clamp.b32 %o, %a, %b, {n};", "b32", *ab), wrapped(left, "b32"))
        assert same(compute(f"shf.r.clamp.b32 %o, %a, %b, {n};", "b32", *ab), wrapped(right, "b32"))
    rotated = compute("shf.l.wrap.b32 %o, %a, %a, 37;", "b32", ab[0])
    assert same(rotated, wrapped([(v << 5) | (v >> 27) for v in a.tolist()], "b32"))


def test_immediates() -> None:
    cases = {
        "-1": 0xFFFFFFFF,
        "0x1F": 31,
        "017": 15,
        "0b101": 5,
        "5U": 5,
        "-0x10": 0xFFFFFFF0,
        "4294967295": 0xFFFFFFFF,
    }
    for text, value in cases.items():
        assert compute(f"add.u32 %o, %a, {text};", "u32", ("u32", [0]))[0] == value, text
    assert compute("add.f32 %o, %a, 0f3F800000;", "f32", ("f32", [1]))[0] == 2
    assert compute("add.f64 %o, %a, 0d4008000000000000;", "f64", ("f64", [1]))[0] == 4
    assert compute("mov.b32 %o, 0f3F800000;", "u32", ("u32", [0]))[0] == 0x3F800000
    with pytest.raises(PTXError, match="0d4008"):
        compute("add.f32 %o, %a, 0d4008000000000000;", "f32", ("f32", [1]))


# Floating point


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_float_arithmetic(type_: str) -> None:
    a, b = floats(type_), floats(type_, 1)
    b[:20] = a[:20]
    pair, one = [(type_, a), (type_, b)], [(type_, a)]
    with np.errstate(all="ignore"):
        assert same(compute(f"add.rn.{type_} %o, %a, %b;", type_, *pair), a + b)
        assert same(compute(f"sub.{type_} %o, %a, %b;", type_, *pair), a - b)
        assert same(compute(f"mul.{type_} %o, %a, %b;", type_, *pair), a * b)
        assert same(compute(f"div.rn.{type_} %o, %a, %b;", type_, *pair), a / b)
        assert same(compute(f"rcp.rn.{type_} %o, %a;", type_, *one), 1 / a)
        assert same(compute(f"sqrt.rn.{type_} %o, %a;", type_, *one), np.sqrt(a))
    assert same(compute(f"neg.{type_} %o, %a;", type_, *one), -a)
    assert same(compute(f"abs.{type_} %o, %a;", type_, *one), abs(a))
    assert same(compute(f"copysign.{type_} %o, %a, %b;", type_, *pair), np.copysign(b, a))


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_fma_is_rounded_once(type_: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 1, 400).astype(DTYPES[type_]) for _ in range(2))
    c = (-a * b * (1 + rng.integers(-1, 2, 400) * 1e-3)).astype(DTYPES[type_])  # cancels: the rounding shows
    exact = [Fraction(p) * Fraction(q) + Fraction(r) for p, q, r in zip(*(v.tolist() for v in (a, b, c)), strict=True)]
    actual = compute(f"fma.rn.{type_} %o, %a, %b, %c;", type_, (type_, a), (type_, b), (type_, c))
    assert (actual != a * b + c).any()
    for value, true in zip(actual, exact, strict=True):
        error = abs(Fraction(float(value)) - true)
        for neighbour in (
            np.nextafter(value, -np.inf, dtype=value.dtype),
            np.nextafter(value, np.inf, dtype=value.dtype),
        ):
            assert error <= abs(Fraction(float(neighbour)) - true)


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_extrema_drop_nan_and_order_zeros(type_: str) -> None:
    values = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]
    a, b = (v.ravel() for v in np.meshgrid(values, values))

    def expected(larger: bool) -> list[float]:
        result = []
        for p, q in zip(a.tolist(), b.tolist(), strict=True):
            known = sorted((v for v in (p, q) if v == v), key=lambda v: (v, math.copysign(1, v)))
            result.append((known[-1] if larger else known[0]) if known else math.nan)
        return result

    pair = [(type_, a), (type_, b)]
    assert same(compute(f"max.{type_} %o, %a, %b;", type_, *pair), expected(True))
    assert same(compute(f"min.{type_} %o, %a, %b;", type_, *pair), expected(False))
    nan = np.isnan(a) | np.isnan(b)
    assert same(compute(f"max.NaN.{type_} %o, %a, %b;", type_, *pair), np.where(nan, np.nan, expected(True)))


def test_float32_results_have_the_canonical_nan() -> None:
    payload = np.array([0x7FC12345, 0xFFC00000], np.uint32).view(np.float32)
    for code in ("add.f32 %o, %a, 0f3F800000;", "fma.rn.f32 %o, %a, %a, %a;", "sqrt.rn.f32 %o, %a;"):
        assert (compute(code, "f32", ("f32", payload)).view(np.uint32) == 0x7FFFFFFF).all(), code
    assert same(compute("mov.f32 %o, %a;", "f32", ("f32", payload)).view(np.uint32), payload.view(np.uint32))


# Comparison, selection, moves


def predicate(code: str) -> str:
    return ".reg .pred %q, %t;" + code + "selp.u32 %o, 1, 0, %q;"


@pytest.mark.parametrize("type_", ["s32", "u32", "s64", "u64", "b32", "b64", "s16"])
def test_integer_comparison(type_: str) -> None:
    a, b = integers(type_), integers(type_, 1)
    b[:50] = a[:50]
    names = ["eq", "ne"] if type_[0] == "b" else ["eq", "ne", "lt", "le", "gt", "ge"]
    for name in names:
        actual = compute(predicate(f"setp.{name}.{type_} %q, %a, %b;"), "u32", (type_, a), (type_, b))
        assert same(actual, getattr(operator, name)(a, b)), name
    if type_[0] == "u":
        for name, plain in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
            actual = compute(predicate(f"setp.{name}.{type_} %q, %a, %b;"), "u32", (type_, a), (type_, b))
            assert same(actual, getattr(operator, plain)(a, b)), name


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_float_comparison(type_: str) -> None:
    a, b = floats(type_), floats(type_, 1)
    b[:150] = a[:150]
    unordered = np.isnan(a) | np.isnan(b)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        truth = getattr(operator, name)(a, b)
        ordered = compute(predicate(f"setp.{name}.{type_} %q, %a, %b;"), "u32", (type_, a), (type_, b))
        assert same(ordered, truth & ~unordered), name
        either = compute(predicate(f"setp.{name}u.{type_} %q, %a, %b;"), "u32", (type_, a), (type_, b))
        assert same(either, truth | unordered), name
    assert same(compute(predicate(f"setp.nan.{type_} %q, %a, %b;"), "u32", (type_, a), (type_, b)), unordered)
    assert same(compute(predicate(f"setp.num.{type_} %q, %a, %b;"), "u32", (type_, a), (type_, b)), ~unordered)


def test_combined_and_negated_predicates() -> None:
    a, b = integers("s32"), integers("s32", 1)
    pair = [("s32", a), ("s32", b)]
    first = "setp.gt.s32 %t, %b, -5;"
    for logic in ("and", "or", "xor"):
        combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[logic]
        code = predicate(f"{first} setp.lt.{logic}.s32 %q, %a, %b, %t;")
        assert same(compute(code, "u32", *pair), combine(a < b, b > -5))
        code = predicate(f"{first} setp.lt.{logic}.s32 %q, %a, %b, !%t;")
        assert same(compute(code, "u32", *pair), combine(a < b, b <= -5))
    code = f".reg .pred %t; {first} mov.u32 %o, 1; @%t mov.u32 %o, 2; @!%t add.u32 %o, %o, 4;"
    assert same(compute(code, "u32", *pair), np.where(b > -5, 2, 5))
    code = predicate("setp.lt.s32 %q, %a, %b; not.pred %q, %q; mov.pred %t, %q; and.pred %q, %q, %t;")
    assert same(compute(code, "u32", *pair), a >= b)
    for constant, value in {"0": 0, "1": 1, "-1": 1}.items():
        assert same(compute(predicate(f"mov.pred %q, {constant};"), "u32", *pair), np.full(len(a), value))
    assert same(compute("set.lt.u32.s32 %o, %a, %b;", "u32", *pair), np.where(a < b, 0xFFFFFFFF, 0))
    assert same(compute("set.lt.f32.s32 %o, %a, %b;", "f32", *pair), np.where(a < b, 1.0, 0.0))


def test_packing() -> None:
    a = integers("u64")
    code = ".reg .b32 %l, %u; mov.b64 {%l, %u}, %a; mov.b64 %o, {%u, %l};"
    assert same(compute(code, "u64", ("u64", a)), (a << np.uint64(32)) | (a >> np.uint64(32)))
    code = "{ .reg .b16 %w, %x, %y, %z; mov.b64 {%w, %x, %y, %z}, %a; mov.b64 %o, {%w, %z, %y, %x}; }"
    words = np.ascontiguousarray(a.view(np.uint16).reshape(-1, 4)[:, [0, 3, 2, 1]])
    assert same(compute(code, "u64", ("u64", a)), words.view(np.uint64).ravel())
    code = ".reg .b32 %u; mov.b64 {_, %u}, %a; mov.b32 %o, %u;"
    assert same(compute(code, "u32", ("u64", a)), a >> np.uint64(32))


# Conversion


@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_integer_conversion(source: str) -> None:
    a = integers(source)
    for target in ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"):
        assert same(compute(f"cvt.{target}.{source} %o, %a;", target, (source, a)), a.astype(DTYPES[target])), target
        limits = np.iinfo(DTYPES[target])
        clamped = [min(max(v, limits.min), limits.max) for v in a.tolist()]
        assert same(
            compute(f"cvt.sat.{target}.{source} %o, %a;", target, (source, a)), np.array(clamped, DTYPES[target])
        )
    # A short result fills its wider register: by the sign for s8, by zeros for u8.
    narrow = compute("cvt.s8.s64 %r1, %a; mov.u32 %o, %r1;", "u32", ("s64", a.astype(np.int64)))
    assert same(narrow, a.astype(np.int8).astype(np.int32).view(np.uint32))


def test_loads_of_bytes_extend_by_their_type() -> None:
    data, out = np.arange(256, dtype=np.uint8), np.zeros(256, np.uint64)
    for type_, wide in (("s8", "s64"), ("u8", "u64"), ("b8", "u64")):
        for register in ("%h1", "%r1", "%rd3"):
            width = {"%h1": 16, "%r1": 32, "%rd3": 64}[register]
            kind = "s" if type_ == "s8" else "u"
            body = f"""mov.u32 %r2, %tid.x; cvt.u64.u32 %rd4, %r2; add.u64 %rd5, %rd0, %rd4;
                ld.global.{type_} {register}, [%rd5]; cvt.{kind}64.{kind}{width} %rd6, {register};
                mad.lo.u64 %rd7, %rd4, 8, %rd1; st.global.u64 [%rd7], %rd6; ret;"""
            run(body, [data, out], threads=256)
            assert same(out, data.view(DTYPES[type_]).astype(DTYPES[wide]).astype(np.uint64)), (type_, register)


@pytest.mark.parametrize("source", ["s32", "u32", "s64", "u64", "s16", "u8"])
def test_integer_to_float_is_rounded_once(source: str) -> None:
    a = integers(source, count=400)
    if source[1:] == "64":
        a[:4] = [(1 << 62) + (1 << 38) + 1, (1 << 62) + (1 << 38), (1 << 60) + (1 << 36) + 1, (1 << 53) + 1]
    # Python's int to float is correctly rounded; for float32, to odd first (53 >= 2 * 24 + 2 bits).
    assert same(compute(f"cvt.rn.f64.{source} %o, %a;", "f64", (source, a)), [float(v) for v in a.tolist()])

    def to_odd(v: int) -> float:
        extra = max(abs(v).bit_length() - 50, 0)
        kept = abs(v) >> extra
        kept |= int(kept << extra != abs(v))
        return math.copysign(math.ldexp(kept, extra), v)

    expected = np.array([to_odd(v) for v in a.tolist()]).astype(np.float32)
    assert same(compute(f"cvt.rn.f32.{source} %o, %a;", "f32", (source, a)), expected)


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", ["s32", "u32", "s64", "u64", "s16", "u8"])
def test_float_to_integer(source: str, target: str) -> None:
    a = np.concatenate([floats(source), np.array([2**31, 2**63, 2**64, -(2**63), 2**32 - 1, 255.5], DTYPES[source])])
    limits = np.iinfo(DTYPES[target])
    for_nan = 0 if source == "f32" and target[1:] != "64" else 1 << (limits.bits - 1)
    roundings: dict[str, Callable[[float], int]] = {
        "rni": round,
        "rzi": math.trunc,
        "rmi": math.floor,
        "rpi": math.ceil,
    }
    for name, function in roundings.items():
        expected = []
        for v in a.astype(np.float64).tolist():
            if v != v:
                expected.append(for_nan)
            else:
                bounded = v if abs(v) < 2.0**70 else math.copysign(2.0**70, v)
                expected.append(min(max(function(bounded), limits.min), limits.max))
        actual = compute(f"cvt.{name}.{target}.{source} %o, %a;", target, (source, a))
        assert same(actual, wrapped(expected, target)), name


def test_float_to_float() -> None:
    single, double = floats("f32"), floats("f64")
    double = np.concatenate([double, single.astype(np.float64), single.astype(np.float64) * (1 + 2**-24)])
    with np.errstate(all="ignore"):
        assert same(compute("cvt.f64.f32 %o, %a;", "f64", ("f32", single)), single.astype(np.float64))
        assert same(compute("cvt.rn.f32.f64 %o, %a;", "f32", ("f64", double)), double.astype(np.float32))
    for name, function in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        assert same(compute(f"cvt.{name}.f32.f32 %o, %a;", "f32", ("f32", single)), function(single))
    clamped = np.clip(np.nan_to_num(single, nan=0.0), 0, 1)
    assert same(abs(compute("cvt.sat.f32.f32 %o, %a;", "f32", ("f32", single))), abs(clamped))
    with pytest.raises(PTXError, match="rounding"):
        compute("cvt.f32.f64 %o, %a;", "f32", ("f64", double))


def test_half_precision_round_trip_of_all_values() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    half = bits.view(np.float16)
    wide = compute("cvt.f32.f16 %o, %a;", "f32", ("b16", bits))
    assert same(wide, half.astype(np.float32))
    back = compute("cvt.rn.f16.f32 %o, %a;", "f16", ("f32", wide))
    assert same(back, half)
    between = (wide[:-1] * np.float32(0.5) + wide[1:] * np.float32(0.5))[np.isfinite(wide[:-1]) & np.isfinite(wide[1:])]
    with np.errstate(over="ignore"):
        assert same(compute("cvt.rn.f16.f32 %o, %a;", "f16", ("f32", between)), between.astype(np.float16))


# Control flow


def test_divergence_and_loops() -> None:
    n = np.random.default_rng(0).integers(0, 40, 500).astype(np.uint32)
    code = """.reg .pred %p; .reg .u32 %k; mov.u32 %o, 0; mov.u32 %k, 0;
        TOP: setp.ge.u32 %p, %k, %a; @%p bra END;
        and.b32 %x, %k, 1; setp.eq.u32 %p, %x, 0; @%p bra EVEN;
        add.u32 %o, %o, %k; bra.uni NEXT;
        EVEN: mad.lo.u32 %o, %k, 3, %o;
        NEXT: add.u32 %k, %k, 1; bra TOP;
        END: """
    expected = [sum(k if k % 2 else 3 * k for k in range(m)) for m in n.tolist()]
    assert same(compute(code, "u32", ("u32", n)), expected)


def test_indexed_branch() -> None:
    code = """brx.idx %a, TABLE;
        TABLE: .branchtargets ZERO, ONE, TWO;
        ZERO: mov.u32 %o, 10; bra END;
        ONE: mov.u32 %o, 11; bra END;
        TWO: mov.u32 %o, 12;
        END: """
    a = np.arange(300, dtype=np.uint32) % 3
    assert same(compute(code, "u32", ("u32", a)), a + 10)
    with pytest.raises(PTXError, match="beyond 3 targets"):
        compute(code, "u32", ("u32", a + 1))


REDUCTION = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.u32 %r4, %r2, %r3, %r1;
    ld.param.u64 %rd2, [s0]; cvt.u64.u32 %rd3, %r4;
    setp.ge.u64 %p1, %rd3, %rd2; mov.f64 %fd1, 0d0000000000000000;
    @%p1 bra LOADED;
    shl.b64 %rd4, %rd3, 3; add.s64 %rd4, %rd0, %rd4; ld.global.f64 %fd1, [%rd4];
    LOADED: mov.u64 %rd5, room; mul.wide.u32 %rd6, %r1, 8; add.s64 %rd6, %rd5, %rd6; st.shared.f64 [%rd6], %fd1;
    mov.u32 %r5, 32;
    HALVE: bar.sync 0;
    setp.ge.u32 %p2, %r1, %r5; @%p2 bra SKIP;
    mul.wide.u32 %rd7, %r5, 8; add.s64 %rd7, %rd6, %rd7;
    ld.shared.f64 %fd2, [%rd6]; ld.shared.f64 %fd3, [%rd7]; add.f64 %fd2, %fd2, %fd3; st.shared.f64 [%rd6], %fd2;
    SKIP: shr.u32 %r5, %r5, 1; setp.ne.u32 %p3, %r5, 0; @%p3 bra HALVE;
    setp.ne.u32 %p4, %r1, 0; @%p4 ret;
    ld.shared.f64 %fd4, [room]; mul.wide.u32 %rd8, %r2, 8; add.s64 %rd8, %rd1, %rd8; st.global.f64 [%rd8], %fd4;
    ret;
"""


@pytest.mark.parametrize("blocks", [1, 5, 300])
def test_tree_reduction_over_blocks(blocks: int) -> None:
    """300 blocks of 64 threads are several batches; the last block is not full."""
    n = blocks * 64 - 13
    x = np.random.default_rng(0).normal(0, 1, n)
    sums = np.zeros(blocks)
    statistics = run(
        REDUCTION, [x, sums], [n], grid=blocks, threads=64, module=".visible .shared .align 8 .b8 room[512];"
    )
    lanes = np.concatenate([x, np.zeros(13)]).reshape(blocks, 64)
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    assert same(sums, lanes[:, 0])
    assert statistics.batches == -(-blocks // 128)
    assert statistics.steps > 60 * statistics.batches


def test_barriers() -> None:
    """Those who have exited are not waited for; those who wait elsewhere are, for ever."""
    out = np.zeros(64, np.uint32)
    leave = """mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, 20; @%p1 ret; barrier.sync 0;
        mul.wide.u32 %rd1, %r1, 4; add.u64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], 7; ret;"""
    run(leave, [out], threads=64)
    assert same(out, np.where(np.arange(64) < 20, 7, 0))
    split = (
        """mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, 20; @%p1 bra B; bar.sync {0}; bra C; B: bar.sync {1}; C: ret;"""
    )
    run(split.replace("{0}", "0").replace("{1}", "0"), [out], threads=64)
    with pytest.raises(PTXError, match="deadlock"):
        run(split.replace("{0}", "0").replace("{1}", "1"), [out], threads=64)


def test_traps_and_endless_loops() -> None:
    with pytest.raises(PTXError, match="trap.*block 0, thread 3"):
        run("mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, 3; @%p1 trap; ret;", [], threads=5)
    with pytest.raises(PTXError, match="no end"):
        launch(Kernel(program("L: bra L;")), Memory(), 1, 1, [], max_steps=1000)


# Memory


def test_vectors_of_four() -> None:
    """All four values of loads and of stores: the result holds them in another order."""
    x = np.random.default_rng(0).normal(0, 1, 4 * 100).astype(np.float32)
    out = np.zeros_like(x)
    body = """mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 16; add.u64 %rd3, %rd0, %rd2; add.u64 %rd4, %rd1, %rd2;
        ld.global.nc.v4.f32 {%f0, %f1, %f2, %f3}, [%rd3]; st.global.v4.f32 [%rd4], {%f2, %f0, %f3, %f1}; ret;"""
    run(body, [x, out], threads=100)
    assert same(out, x.reshape(-1, 4)[:, [2, 0, 3, 1]].ravel())


@pytest.mark.parametrize(
    ("type_", "register"), [("u8", "%h"), ("u16", "%h"), ("b32", "%r"), ("f64", "%fd"), ("u64", "%rd")]
)
def test_vectors_of_two(type_: str, register: str) -> None:
    dtype = DTYPES[type_]
    x = np.arange(1, 101).astype(dtype)
    out = np.zeros_like(x)
    names = f"{{{register}5, {register}6}}"
    body = f"""mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, {2 * dtype.itemsize};
        add.u64 %rd3, %rd0, %rd2; add.u64 %rd4, %rd1, %rd2;
        ld.global.v2.{type_} {names}, [%rd3]; st.global.v2.{type_} [%rd4], {{{register}6, {register}5}}; ret;"""
    run(body, [x, out], threads=50)
    assert same(out, x.reshape(-1, 2)[:, ::-1].ravel())


LOAD = "mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd2, %rd0, %rd2; "


def test_accesses_outside_of_arrays_are_refused() -> None:
    x = np.zeros(10, np.float32)
    with pytest.raises(PTXError, match=r"ld.global.f32 .*out of bounds.*0x.*block 0, thread 10"):
        run(LOAD + "ld.global.f32 %f1, [%rd2]; ret;", [x], threads=11)
    with pytest.raises(PTXError, match="st.global.f32 .*out of bounds.*thread 9"):
        run(LOAD + "st.global.f32 [%rd2+4], 0f00000000; ret;", [x], threads=10)
    with pytest.raises(PTXError, match="out of bounds.*thread 0"):
        run(LOAD + "ld.global.f32 %f1, [%rd2+-4]; ret;", [x], threads=10)
    with pytest.raises(PTXError, match="out of bounds"):
        run("ld.global.f32 %f1, [64]; ret;", [])
    with pytest.raises(PTXError, match="out of bounds"):
        run("ld.shared.f32 %f1, [room+16]; ret;", [], module=".shared .align 16 .b8 room[16];")
    with pytest.raises(PTXError, match="out of bounds"):
        run(".local .align 8 .b8 depot[16]; mov.u64 %rd1, depot; st.local.f64 [%rd1+16], 0d0000000000000000; ret;", [])
    memory = Memory()
    memory.register(x)
    memory.forget(x)
    kernel = Kernel(program("ld.param.u64 %rd1, [a]; ld.global.f32 %f1, [%rd1]; ret;", "u64 a"))
    with pytest.raises(PTXError, match="out of bounds"):
        launch(kernel, memory, 1, 1, [x.ctypes.data])
    with pytest.raises(PTXError, match="not registered"):
        memory.forget(x)


def test_misaligned_accesses_are_refused() -> None:
    x = np.zeros(64, np.float32)
    x = x[-(x.ctypes.data // 4) % 4 :][:32]  # starts at a multiple of 16
    run("ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0+16]; ret;", [x])
    with pytest.raises(PTXError, match="misaligned access of 16 bytes"):
        run("ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0+4]; ret;", [x])
    with pytest.raises(PTXError, match="misaligned access of 8 bytes"):
        run("st.global.v2.f32 [%rd0+4], {0f00000000, 0f00000000}; ret;", [x])
    with pytest.raises(PTXError, match="misaligned access of 4 bytes"):
        run("ld.global.u32 %r1, [%rd0+2]; ret;", [x])


def test_arrays_may_start_at_any_address() -> None:
    data = np.arange(101, dtype=np.uint8)
    for shift in (0, 1, 2, 3):
        part, out = data[shift:], np.zeros(1, np.uint32)
        first = -part.ctypes.data % 4
        run(f"ld.global.u32 %r1, [%rd0+{first}]; st.global.u32 [%rd1], %r1; ret;", [part, out])
        assert out[0] == int.from_bytes(bytes(part[first : first + 4]), "little")


def test_threads_may_access_several_arrays_at_once() -> None:
    x, y, out = np.arange(0, 40, dtype=np.uint32), np.arange(100, 140, dtype=np.uint32), np.zeros(40, np.uint32)
    body = """mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; setp.lt.u32 %p1, %r1, 17; selp.b64 %rd4, %rd0, %rd1, %p1;
        add.u64 %rd4, %rd4, %rd3; add.u64 %rd5, %rd2, %rd3; ld.global.u32 %r2, [%rd4]; st.global.u32 [%rd5], %r2;
        ld.u32 %r3, [%rd4]; add.u32 %r3, %r3, 1; st.u32 [%rd4], %r3; ret;"""
    run(body, [x, y, out], threads=40)
    chosen = np.arange(40) < 17
    assert same(out, np.arange(40) + np.where(chosen, 0, 100))
    assert same(x, np.arange(40) + chosen)
    assert same(y, np.arange(100, 140) + ~chosen)


def test_registration() -> None:
    memory, x = Memory(), np.zeros(8, np.float32)
    kernel = Kernel(program("ld.param.u64 %rd1, [a]; st.global.f32 [%rd1], 0f3F800000; ret;", "u64 a"))
    assert memory.register(x, readonly=True) == x.ctypes.data
    with pytest.raises(PTXError, match="st.global.f32.*read-only"):
        launch(kernel, memory, 1, 1, [x.ctypes.data])
    memory.register(x)  # the same array as an output
    launch(kernel, memory, 1, 1, [x.ctypes.data])
    assert x[0] == 1
    memory.forget(x)
    launch(kernel, memory, 1, 1, [x.ctypes.data])
    with pytest.raises(PTXError, match="overlaps"):
        memory.register(x[2:])
    with pytest.raises(PTXError, match="contiguous"):
        memory.register(np.zeros((4, 4))[:, 1])
    frozen = np.zeros(3, np.float32)
    frozen.flags.writeable = False
    memory.register(frozen)
    with pytest.raises(PTXError, match="read-only"):
        launch(kernel, memory, 1, 1, [frozen.ctypes.data])
    memory.register(np.zeros(0))


def test_local_memory_and_generic_addresses() -> None:
    """Each thread writes a table of its own and reads it backwards; shared memory is read by its generic address."""
    body = """.local .align 8 .b8 depot[32]; .reg .b64 %SP; .reg .b64 %SPL;
        mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL; add.u64 %rd2, %SP, 0; add.u64 %rd1, %SPL, 0;
        mov.u32 %r1, %tid.x; add.u32 %r2, %r1, 100;
        st.local.v2.u32 [%rd1+8], {%r1, %r2}; ld.u32 %r3, [%rd2+12]; ld.local.u32 %r4, [%rd1+8];
        mov.u64 %rd3, room; cvta.shared.u64 %rd4, %rd3; mul.wide.u32 %rd5, %r1, 4; add.u64 %rd6, %rd4, %rd5;
        st.u32 [%rd6], %r3; bar.sync 0; xor.b32 %r5, %r1, 1; mul.wide.u32 %rd7, %r5, 4; add.u64 %rd7, %rd4, %rd7;
        cvta.to.shared.u64 %rd8, %rd7; ld.shared.u32 %r6, [%rd8]; mad.lo.u32 %r6, %r4, 1000, %r6;
        add.u64 %rd0, %rd0, %rd5; st.global.u32 [%rd0], %r6; ret;"""
    out = np.zeros(64, np.uint32)
    run(body, [out], threads=64, module=".shared .align 4 .b8 room[256];")
    t = np.arange(64)
    assert same(out, t * 1000 + (t ^ 1) + 100)


def test_module_variables_and_dynamic_shared_memory() -> None:
    module = """.const .align 4 .b8 table[8] = {0, 0, 128, 63, 0, 0, 0, 64};
        .global .align 8 .f64 numbers[3] = {0d3FF0000000000000, 0d4000000000000000, 2.5};
        .extern .shared .align 16 .b8 more[]; .shared .align 4 .u32 fixed;"""
    body = """ld.const.f32 %f1, [table+4]; mov.u64 %rd2, numbers; ld.global.f64 %fd1, [%rd2+16];
        cvt.rn.f32.f64 %f2, %fd1; st.shared.u32 [fixed], 5; st.shared.u32 [more], 6; st.shared.f32 [more+8], %f2;
        ld.shared.f32 %f3, [more+8]; add.f32 %f1, %f1, %f3;
        ld.shared.u32 %r2, [fixed]; cvt.rn.f32.u32 %f5, %r2; add.f32 %f1, %f1, %f5;
        mov.u32 %r1, %dynamic_smem_size; cvt.rn.f32.u32 %f4, %r1; add.f32 %f1, %f1, %f4;
        ld.param.u64 %rd1, [a]; st.global.f32 [%rd1], %f1; ret;"""
    out, memory = np.zeros(1, np.float32), Memory()
    memory.register(out)
    kernel = Kernel(program(body, "u64 a", module))
    launch(kernel, memory, 1, 1, [out.ctypes.data], dynamic_shared=12)
    assert out[0] == 2.0 + 2.5 + 5 + 12
    with pytest.raises(PTXError, match="out of bounds"):
        launch(kernel, memory, 1, 1, [out.ctypes.data])


def test_undefined_registers_are_refused() -> None:
    with pytest.raises(PTXError, match="undefined register %f1"):
        run("add.f32 %f2, %f1, %f1; ret;", [])
    half = "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 7; @%p1 mov.u32 %r2, 1;"
    run(half + "@%p1 add.u32 %r3, %r2, 1; ret;", [], threads=9)
    with pytest.raises(PTXError, match="%r2, undefined in block 0, thread 7"):
        run(half + "add.u32 %r3, %r2, 1; ret;", [], threads=9)
    run(half + "@!%p1 mov.u32 %r2, 2; add.u32 %r3, %r2, 1; ret;", [], threads=9)


# Atomics and warps


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(space: str) -> None:
    """97 threads hit 10 counters; what each of them found there is checked too."""
    cases: dict[str, tuple[str, str, Callable[[int, int], int]]] = {
        "add.u32": ("", "%r1", lambda old, x: old + x),
        "max.s32": ("", "%r1", max),
        "min.u32": ("", "%r1", min),
        "exch.b32": ("", "%r1", lambda old, x: x),
        "inc.u32": ("", "4", lambda old, _: 0 if old >= 4 else old + 1),
        "dec.u32": ("", "4", lambda old, _: 4 if old == 0 or old > 4 else old - 1),
        "or.b32": ("", "%r1", lambda old, x: old | x),
        "cas.b32": ("3, ", "%r1", lambda old, x: x if old == 3 else old),
    }
    for name, (compare, operand, function) in cases.items():
        counters, found = np.full(10, 3, np.uint32), np.zeros(97, np.uint32)
        use = "mov.u64 %rd3, room;" if space == "shared" else "mov.u64 %rd3, %rd0;"
        body = f"""mov.u32 %r1, %tid.x; rem.u32 %r2, %r1, 10; mul.wide.u32 %rd2, %r2, 4; {use} add.u64 %rd3, %rd3, %rd2;
            add.u64 %rd4, %rd0, %rd2; ld.global.u32 %r4, [%rd4];
            bar.sync 0; mul.wide.u32 %rd5, %r1, 4; add.u64 %rd5, %rd1, %rd5;
            {"st.shared.u32 [%rd3], %r4; bar.sync 0;" if space == "shared" else ""}
            atom.{space}.{name} %r3, [%rd3], {compare}{operand}; st.global.u32 [%rd5], %r3; bar.sync 0;
            {"ld.shared.u32 %r5, [%rd3]; st.global.u32 [%rd4], %r5;" if space == "shared" else ""} ret;"""
        run(body, [counters, found], threads=97, module=".shared .align 4 .b8 room[40];")
        expected, before = [3] * 10, []
        for t in range(97):
            before.append(expected[t % 10])
            expected[t % 10] = function(expected[t % 10], t)
        assert same(counters, expected) and same(found, before), name


def test_atomic_sum_of_floats_over_blocks() -> None:
    x, total = np.random.default_rng(0).normal(0, 1, 5 * 64).astype(np.float32), np.zeros(1, np.float32)
    body = """mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r1, %r2, 64, %r1; mul.wide.u32 %rd2, %r1, 4;
        add.u64 %rd2, %rd0, %rd2; ld.global.f32 %f1, [%rd2]; red.global.add.f32 [%rd1], %f1; ret;"""
    run(body, [x, total], grid=5, threads=64)
    expected = np.float32(0)
    for value in x:
        expected += value
    assert total[0] == expected


def test_shuffles() -> None:
    x = integers("u32", count=82)[:96]
    lane = np.arange(96) % 32
    warp = np.arange(96) - lane
    cases = {
        "bfly.b32 %o, %a, 5, 31, -1": warp + (lane ^ 5),
        "down.b32 %o, %a, 3, 31, -1": warp + np.where(lane + 3 < 32, lane + 3, lane),
        "up.b32 %o, %a, 3, 0, -1": warp + np.where(lane >= 3, lane - 3, lane),
        "idx.b32 %o, %a, 7, 31, -1": warp + 7,
        "idx.b32 %o, %a, 1, 0x181f, -1": warp + (lane & 24) + 1,
        "down.b32 %o, %a, 2, 0x181f, -1": warp + np.where(lane % 8 + 2 < 8, lane + 2, lane),
    }
    for code, source in cases.items():
        assert same(compute(f"shfl.sync.{code};", "u32", ("u32", x)), x[source]), code
    code = ".reg .pred %v; shfl.sync.down.b32 %x|%v, %a, 3, 31, -1; selp.u32 %o, 1, 0, %v;"
    assert same(compute(code, "u32", ("u32", x)), lane + 3 < 32)
    with pytest.raises(PTXError, match="not active"):
        compute("shfl.sync.bfly.b32 %o, %a, 16, 31, -1;", "u32", ("u32", x[:80]))
    with pytest.raises(PTXError, match="not active"):
        compute(
            ".reg .pred %v; setp.lt.u32 %v, %x, 5; mov.u32 %o, 0; @%v shfl.sync.bfly.b32 %o, %a, 8, 31, -1;",
            "u32",
            ("u32", x),
        )


def test_votes() -> None:
    x = np.random.default_rng(0).integers(0, 2, 96).astype(np.uint32)
    x[32:64] = 1
    words = np.repeat([int("".join(map(str, w[::-1])), 2) for w in x.reshape(3, 32)], 32).astype(np.uint32)
    test = ".reg .pred %v, %w; setp.ne.u32 %v, %a, 0; "
    assert same(compute(test + "vote.sync.ballot.b32 %o, %v, -1;", "u32", ("u32", x)), words)
    for mode, expected in (("all", words == 0xFFFFFFFF), ("any", words != 0), ("uni", (words + np.uint32(1)) <= 1)):
        code = test + f"vote.sync.{mode}.pred %w, %v, -1; selp.u32 %o, 1, 0, %w;"
        assert same(compute(code, "u32", ("u32", x)), expected), mode
    assert same(compute(test + "mov.u32 %o, 0; @%v activemask.b32 %o;", "u32", ("u32", x)), np.where(x, words, 0))


# The guard


@pytest.mark.parametrize(
    "between",
    ["", "mov.f32 %f4, %f3;", "neg.f32 %f4, %f3;", "selp.f32 %f4, %f1, %f3, %p1;", "max.f32 %f4, %f3, %f1;"]
    + ["mov.b32 %r1, %f3; mov.b32 %f4, %r1;", "st.local.f32 [depot], %f3; ld.local.f32 %f4, [depot];"],
)
@pytest.mark.parametrize("product", ["mul.f32", "mul.rn.f32"])
@pytest.mark.parametrize("total", ["add.f32", "sub.rn.f32"])
def test_sums_of_products_are_refused(between: str, product: str, total: str) -> None:
    factor = "%f4" if between else "%f3"
    start = ".local .align 4 .b8 depot[8]; mov.f32 %f1, 0f3F800000; setp.eq.u32 %p1, 0, 0;"
    refused = program(f"{start} {product} %f3, %f1, %f1; {between} {total} %f5, %f1, {factor}; ret;")
    with pytest.raises(PTXError, match="product enters a sum"):
        Kernel(refused)
    Kernel(refused, allow_contraction=True)
    Kernel(program(f"{start} fma.rn.f32 %f3, %f1, %f1, %f1; {between} {total} %f5, %f1, {factor}; ret;"))
    Kernel(program(f"{start} {product} %f3, %f1, %f1; {between} fma.rn.f32 %f5, %f1, %f1, {factor}; ret;"))


def test_the_guard_sees_definitions_that_come_later() -> None:
    loop = "mov.f32 %f1, 0f3F800000; L: add.f32 %f2, %f1, %f1; mul.f32 %f1, %f2, %f2; bra L;"
    with pytest.raises(PTXError, match="product enters a sum"):
        Kernel(program(loop))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("add.ftz.f32 %f1, %f1, %f1;", "not exact"),
        ("ex2.approx.f32 %f1, %f1;", "not exact"),
        ("div.full.f32 %f1, %f1, %f1;", "not exact"),
        ("add.rz.f32 %f1, %f1, %f1;", "unsupported modifier"),
        ("fma.rm.f32 %f1, %f1, %f1, %f1;", "unsupported modifier"),
        ("tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%rd1, {%r1}];", "tex.1d.*unsupported"),
        ("call foo;", "call foo: unsupported"),
        ("add.f32 %f1, %f1, %bad;", "%bad"),
        ("add.u32 %r1, %r1;", "operands"),
        ("add.u32 %r1, %rd1, %h1;", "does not fit"),
        ("bra NOWHERE;", "no label"),
    ],
)
def test_unsupported_programs_are_refused(code: str, message: str) -> None:
    with pytest.raises(PTXError, match=message):
        Kernel(program(code))


# Parameters


def test_parameters() -> None:
    text = program("ret;", "u8 a, u64 b, f32 c, s16 d")
    kernel = Kernel(text)
    assert [(p.name, p.type, p.offset) for p in kernel.params.values()] == [
        ("a", "u8", 0),
        ("b", "u64", 8),
        ("c", "f32", 16),
        ("d", "s16", 20),
    ]
    launch(kernel, Memory(), 1, 1, [255, -1, 0.5, -3])
    for bad in ([256, 0, 0.0, 0], [0, 0.5, 0.0, 0], [0, 0, 0.0]):
        with pytest.raises(PTXError, match="argument"):
            launch(kernel, Memory(), 1, 1, bad)
    with pytest.raises(PTXError, match="threads"):
        launch(kernel, Memory(), 1, 2000, [0, 0, 0.0, 0])
    with pytest.raises(PTXError, match="which of the 2"):
        Kernel(text + text.replace(".entry k", ".entry other"))
    assert Kernel(text + text.replace(".entry k", ".entry other"), "other").name == "other"
    assert Kernel(program("add.u32 %r1, 1, 2; add.u32 %r1, %r1, 2; ret;")).opcodes() == {"add.u32": 2, "ret": 1}


def test_parameter_of_bytes() -> None:
    """Its scalars are what the program loads from it; the second is never loaded."""
    text = program(
        """ld.param.u64 %rd1, [t]; ld.param.f64 %fd1, [t+16]; ld.param.v2.u32 {%r1, %r2}, [t+24];
        ld.param.u64 %rd2, [out];
        cvt.rn.f64.s64 %fd2, %rd1; add.f64 %fd1, %fd1, %fd2; cvt.rn.f64.u32 %fd2, %r2; add.f64 %fd1, %fd1, %fd2;
        st.global.f64 [%rd2], %fd1; ret;"""
    ).replace("k()", "k(.param .align 8 .b8 t[32], .param .u64 .ptr .global .align 8 out)")
    kernel, out, memory = Kernel(text), np.zeros(1), Memory()
    assert kernel.params["t"].fields == [(0, "u64"), (8, "b64"), (16, "f64"), (24, "u32"), (28, "u32")]
    memory.register(out)
    launch(kernel, memory, 1, 1, [-5, 77, 0.25, 1, 1000, out.ctypes.data])
    assert out[0] == -5 + 0.25 + 1000


# What Numba compiles


@pytest.fixture
def cuda() -> Any:
    """numba.cuda of the package numba-cuda; Numba without it has another, older one, or none."""
    pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the PTX, is not installed")
    return importlib.import_module("numba.cuda")


def compiled(cuda: Any, function: Callable[..., None], *parameters: Any) -> Kernel:
    signature = types.void(*parameters)
    return Kernel(cuda.compile(function, signature, cc=(9, 0), device=False, abi="numba", output="ptx")[0])


def test_compiled_scalars_and_arrays(cuda: Any) -> None:
    """A tuple comes as scalars of its own; an array as seven."""

    def scale(table, n, factor, x, out):
        i = cuda.grid(1)
        if i < n:
            out[i] = x[i] // table[i % 3] if x[i] > 10 else factor

    kernel = compiled(
        cuda, scale, types.UniTuple(types.int64, 3), types.int64, types.int32, types.int32[::1], types.int64[::1]
    )
    assert [p.type for p in kernel.params.values()][:5] == ["u64", "u64", "u64", "u64", "u32"]
    x, out, memory = np.arange(-50, 950, dtype=np.int32), np.zeros(1000, np.int64), Memory()
    for array in (x, out):
        memory.register(array)
    arrays = [v for a in (x, out) for v in (0, 0, a.size, a.itemsize, a.ctypes.data, a.size, a.itemsize)]
    launch(kernel, memory, 8, 128, [3, 5, 7, 990, -4, *arrays])
    expected = np.where(x > 10, x // np.array([3, 5, 7])[np.arange(1000) % 3], -4)
    assert same(out, np.where(np.arange(1000) < 990, expected, 0))


def test_compiled_memory_of_all_kinds(cuda: Any) -> None:
    """Constant, local and shared arrays, barriers, loops of different length, and 300 blocks."""
    table = np.arange(5, dtype=np.float32) * np.float32(1.5)

    def mix(steps, out):
        i, t = cuda.grid(1), cuda.threadIdx.x
        own = cuda.local.array(8, types.float64)
        room = cuda.shared.array(64, types.float64)
        constant = cuda.const.array_like(table)
        for k in range(8):
            own[k] = constant[(k + i) % 5] + k
        total = 0.0
        for k in range(steps[t]):
            total += own[(i * k) % 8]
        room[t] = total
        cuda.syncthreads()
        out[i] = room[63 - t]

    pointer = types.CPointer
    kernel = compiled(cuda, mix, pointer(types.int32), pointer(types.float64))
    assert kernel.program.sizes["local"] >= 64 and kernel.program.sizes["shared"] == 512
    blocks = 300
    steps, out, memory = np.random.default_rng(0).integers(0, 20, 64).astype(np.int32), np.zeros(blocks * 64), Memory()
    memory.register(steps, readonly=True)
    memory.register(out)
    launch(kernel, memory, blocks, 64, [steps.ctypes.data, out.ctypes.data])
    expected = np.zeros(blocks * 64)
    for i in range(expected.size):
        own = [float(table[(k + i) % 5]) + k for k in range(8)]
        expected[i] = sum((own[(i * k) % 8] for k in range(steps[i % 64])), 0.0)
    assert same(out, expected.reshape(blocks, 64)[:, ::-1].ravel())


def test_compiled_products_are_refused_and_fma_accepted(cuda: Any) -> None:
    """NVVM itself contracts x * y + z; a product that is rounded by libdevice is left to ptxas."""

    def contracted(x, out):
        i = cuda.threadIdx.x
        out[i] = cuda.fma(x[i], x[i], x[i])

    def rounded(x, out):
        i = cuda.threadIdx.x
        out[i] = cuda.libdevice.fmul_rn(x[i], x[i]) + x[i]

    pointer = types.CPointer(types.float32)
    kernel = compiled(cuda, contracted, pointer, pointer)
    assert kernel.opcodes()["fma.rn.f32"] == 1
    x, out, memory = np.random.default_rng(0).normal(0, 1, 256).astype(np.float32), np.zeros(256, np.float32), Memory()
    memory.register(x)
    memory.register(out)
    launch(kernel, memory, 1, 256, [x.ctypes.data, out.ctypes.data])
    wide = x.astype(np.float64)
    assert same(out, (wide * wide + wide).astype(np.float32))
    with pytest.raises(PTXError, match="product enters a sum"):
        compiled(cuda, rounded, pointer, pointer)
