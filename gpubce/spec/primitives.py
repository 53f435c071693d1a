"""The operations from which every element is built: those that IEEE 754 rounds correctly, and bit moves.

They compile unchanged for the CPU and for CUDA, with no device present, as the functions of
:mod:`gpubce.spec.subroutines` do.

The rule that keeps the bits equal: **no multiply feeds an addition**. NVVM fuses such a pair in the PTX and ptxas once
more after it; LLVM on a CPU does not. Where a rounded product is added, write :func:`product`; where one rounding is
wanted, write :func:`fma`.
"""

from functools import cache
from types import FunctionType

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from gpubce.spec import plan
from gpubce.spec.precision import ITEMSIZE, widened
from gpubce.spec.processors import converts_float16, is_cuda
from gpubce.spec.subroutines import intrinsic, subroutine

WIDE_TYPES = {"float32": types.float32, "float64": types.float64, "int64": types.int64}
"""The Numba types in which kernels see stored values."""

_FRACTION_BITS = {32: 23, 64: 52}


@intrinsic
def fma(typingctx, a, b, c):
    """a b + c, rounded once."""
    if not (a == b == c and isinstance(a, types.Float)):
        return None

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, b, c), codegen


@intrinsic
def product(typingctx, a, b):
    """a b, rounded, in a form that no compiler fuses with an addition: fma(a, b, +0)."""
    if not (a == b and isinstance(a, types.Float)):
        return None

    def codegen(context, builder, signature, args):
        return builder.fma(*args, ir.Constant(args[0].type, 0.0))

    return a(a, b), codegen


@intrinsic
def select(typingctx, condition, a, b):
    """a where the condition holds, else b; both are evaluated, nothing branches."""
    if not (condition == types.boolean and a == b):
        return None

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return a(condition, a, b), codegen


@intrinsic
def is_nan(typingctx, a):
    """Whether a is not a number."""
    if not isinstance(a, types.Float):
        return None

    def codegen(context, builder, signature, args):
        return builder.fcmp_unordered("uno", args[0], args[0])

    return types.boolean(a), codegen


@intrinsic
def positive_part(typingctx, a):
    """max(a, 0), and 0 of a NaN: one instruction everywhere, where a comparison and a select are two on CUDA."""
    if not isinstance(a, types.Float):
        return None

    def codegen(context, builder, signature, args):
        real = args[0].type
        name, kind = f"llvm.maxnum.f{a.bitwidth}", ir.FunctionType(real, [real, real])
        larger = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(larger, [args[0], ir.Constant(real, 0.0)])

    return a(a), codegen


@intrinsic
def scale_by_low_bits(typingctx, value, shifted):
    """value 2^(k - bias), where k stands in the low bits of the fraction of ``shifted``.

    This is the last step of exp: adding 1.5 2^fraction + bias to a real rounds it to the integer k - bias and leaves
    k in those bits. The power of two is multiplied (as fma(value, power, +0)) and not added to the exponent of value,
    because a NaN has to stay a NaN.
    """
    if not (value == shifted and isinstance(value, types.Float)):
        return None

    def codegen(context, builder, signature, args):
        real = args[0].type
        bits = value.bitwidth
        word = ir.IntType(bits)
        exponent = builder.shl(builder.bitcast(args[1], word), word(_FRACTION_BITS[bits]))
        return builder.fma(args[0], builder.bitcast(exponent, real), ir.Constant(real, 0.0))

    return value(value, shifted), codegen


@intrinsic
def split_exponent(typingctx, value):
    """(k, m) with value = 2^k m and m in [sqrt(1/2), sqrt(2)), for a positive normal value; k is of value's type."""
    if not isinstance(value, types.Float):
        return None

    def codegen(context, builder, signature, args):
        real = args[0].type
        bits = value.bitwidth
        word = ir.IntType(bits)
        fraction = word(_FRACTION_BITS[bits])
        root = np.sqrt(np.array(0.5, f"float{bits}")).view(f"int{bits}")
        whole = builder.bitcast(args[0], word)
        exponent = builder.ashr(builder.sub(whole, word(int(root))), fraction)
        mantissa = builder.bitcast(builder.sub(whole, builder.shl(exponent, fraction)), real)
        return context.make_tuple(builder, signature.return_type, (builder.sitofp(exponent, real), mantissa))

    return types.UniTuple(value, 2)(value), codegen


@intrinsic
def floored(typingctx, value):
    """The largest int32 that is not above a real within the range of int32. llvm.floor would call a function of the C
    library on CPUs without SSE4.1."""
    if not isinstance(value, types.Float):
        return None

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        towards_zero = builder.fptosi(args[0], word)
        above = builder.fcmp_ordered(">", builder.sitofp(towards_zero, args[0].type), args[0])
        return builder.sub(towards_zero, builder.zext(above, word))

    return types.int32(value), codegen


@intrinsic
def low_bits(typingctx, shifted):
    """The integer k < 2^52 as an int64, from 2^52 + k: adding 2^52 rounds a real to an integer, in instructions that
    every CPU has for vectors (AVX2 has none from float64 to int64)."""
    if shifted != types.float64:
        return None

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        return builder.and_(builder.bitcast(args[0], word), word((1 << 52) - 1))

    return types.int64(types.float64), codegen


@cache
def polynomial(coefficients, real: str):
    """An intrinsic of one variable: Horner's scheme, one fma a step; coefficients from the constant upwards."""
    numba_type = WIDE_TYPES[real]

    @intrinsic
    def horner(typingctx, x):
        if x != numba_type:
            return None

        def codegen(context, builder, signature, args):
            *rest, value = [ir.Constant(args[0].type, float(np.dtype(real).type(c))) for c in coefficients]
            for coefficient in reversed(rest):
                value = builder.fma(value, args[0], coefficient)
            return value

        return numba_type(x), codegen

    return horner


two_sum = njit(inline="always")(plan.two_sum)
"""plan.two_sum, compiled. Its additions feed each other and no multiply, so nothing can be fused."""


first_width = njit(inline="always")(plan.first_width)
"""plan.first_width, compiled."""


@cache
def addition(compensated: bool) -> plan.Addition:
    """plan.addition, compiled from the source of its functions with the compiled two_sum in its place."""
    names = {"two_sum": two_sum}
    return plan.Addition._make(
        njit(inline="always")(FunctionType(function.__code__, names, function.__name__))
        for function in plan.addition(compensated)
    )


merge_pairs = addition(True).merge
"""plan.merge_pairs, compiled."""


# ---------------------------------------------------------------------------------------------------------------------
# Memory. Arrays reach a kernel as addresses, so the kernels are the same for every array library, take few arguments
# and read any type: float16 and bfloat16 (which Numba cannot load on a CPU) as bits.
# ---------------------------------------------------------------------------------------------------------------------


def _storage_type(storage: str) -> ir.Type:
    if storage == "float32":
        return ir.FloatType()
    if storage == "float64":
        return ir.DoubleType()
    return ir.IntType(8 * ITEMSIZE[storage])


def _widen_float16(builder, raw):
    """float16 bits to a float32, by integers and one exact subtraction."""
    word, real = ir.IntType(32), ir.FloatType()
    half = builder.zext(raw, word)
    magnitude = builder.and_(half, word(0x7FFF))
    shifted = builder.shl(magnitude, word(13))
    normal = builder.add(shifted, word((127 - 15) << 23))
    special = builder.add(shifted, word((255 - 31) << 23))
    # m 2^-24 = 2^-14 (1 + m / 1024) - 2^-14
    above = builder.bitcast(builder.add(shifted, word((127 - 14) << 23)), real)
    subnormal = builder.bitcast(builder.fsub(above, ir.Constant(real, 2.0**-14)), word)
    finite = builder.select(builder.icmp_unsigned("<", magnitude, word(0x0400)), subnormal, normal)
    unsigned = builder.select(builder.icmp_unsigned("<", magnitude, word(0x7C00)), finite, special)
    sign = builder.shl(builder.and_(half, word(0x8000)), word(16))
    return builder.bitcast(builder.or_(unsigned, sign), real)


def _narrow_float16(builder, value):
    """A float32 to float16 bits, rounded to nearest even, by integers and one addition."""
    word, real = ir.IntType(32), ir.FloatType()
    bits = builder.bitcast(value, word)
    magnitude = builder.and_(bits, word(0x7FFFFFFF))
    # As for bfloat16 below. A fraction that overflows adds 1 to the exponent, as it should.
    last = builder.and_(builder.lshr(magnitude, word(13)), word(1))
    rebiased = builder.sub(magnitude, word((127 - 15) << 23))
    normal = builder.lshr(builder.add(rebiased, builder.add(last, word(0x0FFF))), word(13))
    # The last place of a float32 between 1/2 and 1 is 2^-24, the unit of float16's subnormals.
    above = builder.fadd(builder.bitcast(magnitude, real), ir.Constant(real, 0.5))
    subnormal = builder.sub(builder.bitcast(above, word), word(126 << 23))
    finite = builder.select(builder.icmp_unsigned("<", magnitude, word((127 - 14) << 23)), subnormal, normal)
    fits = builder.icmp_unsigned("<", magnitude, word((127 + 16) << 23))
    not_nan = builder.select(fits, finite, word(0x7C00))
    unsigned = builder.select(builder.fcmp_unordered("uno", value, value), word(0x7E00), not_nan)
    sign = builder.and_(builder.lshr(bits, word(16)), word(0x8000))
    return builder.trunc(builder.or_(unsigned, sign), ir.IntType(16))


def _widen(context, builder, storage: str, raw):
    if storage == "float16":
        if not converts_float16(context):
            return _widen_float16(builder, raw)
        return builder.fpext(builder.bitcast(raw, ir.HalfType()), ir.FloatType())
    if storage == "bfloat16":
        word = builder.shl(builder.zext(raw, ir.IntType(32)), ir.IntType(32)(16))
        return builder.bitcast(word, ir.FloatType())
    if storage in ("float32", "float64"):
        return raw
    extend = builder.sext if storage.startswith("int") else builder.zext
    return raw if raw.type.width == 64 else extend(raw, ir.IntType(64))


def _narrow(context, builder, storage: str, value):
    if storage == "float16":
        if not converts_float16(context):
            return _narrow_float16(builder, value)
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))
    if storage == "bfloat16":
        # Round to nearest even: add half of the last kept place, less one where that place is even.
        word = ir.IntType(32)
        bits = builder.bitcast(value, word)
        last = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.add(bits, builder.add(last, word(0x7FFF)))
        kept = builder.select(builder.fcmp_unordered("uno", value, value), word(0x7FC00000), rounded)
        return builder.trunc(builder.lshr(kept, word(16)), ir.IntType(16))
    if isinstance(value.type, ir.IntType) and value.type.width > 8 * ITEMSIZE[storage]:
        return builder.trunc(value, _storage_type(storage))
    return value


def _pointer(context, builder, storage: str, address, index, count: int):
    """The typed pointer to ``count`` elements from ``index`` on. CUDA gets one into global memory, so that loads are
    ``ld.global`` and not generic."""
    space = 1 if is_cuda(context) else 0
    element = _storage_type(storage)
    base = builder.inttoptr(address, element.as_pointer(space))
    pointer = builder.gep(base, [index])
    if count == 1:
        return pointer
    return builder.bitcast(pointer, ir.VectorType(element, count).as_pointer(space))


REGIONS = (("operands", "outputs", "scratch"), ("array", "piece"))
"""The kinds of memory of a kernel. No sample reads what another sample writes in a different region of the first group;
and a piece of an array, which is moved to or from scratch, does not lie in that array."""


def _mark_region(context, builder, instruction, region: str) -> None:
    """Tell LLVM on a CPU that the regions of a group are independent, so that it vectorises without comparing every
    pair of pointers at run time (it used to give up at nine pairs)."""
    if is_cuda(context):
        return
    module = builder.module
    domain = module.add_metadata(["gpubce"])
    group = next(group for group in REGIONS if region in group)
    scopes = {name: module.add_metadata([f"gpubce {name}", domain]) for name in group}
    others = [scope for name, scope in scopes.items() if name != region]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[region]]))
    instruction.set_metadata("noalias", module.add_metadata(others))


@cache
def loader(storage: str, count: int = 1, region: str = "operands"):
    """An intrinsic (address, index) -> the widened element at that index, or a tuple of ``count`` of them.

    More than one is a single aligned vector load on CUDA: the address of the first must be a multiple of its size.
    """
    wide = WIDE_TYPES[widened(storage)]
    result = wide if count == 1 else types.UniTuple(wide, count)

    @intrinsic
    def load(typingctx, address, index):
        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, storage, *args, count)
            value = builder.load(pointer, align=ITEMSIZE[storage] * count)
            _mark_region(context, builder, value, region)
            if count == 1:
                return _widen(context, builder, storage, value)
            lanes = (builder.extract_element(value, ir.IntType(32)(k)) for k in range(count))
            return context.make_tuple(builder, result, [_widen(context, builder, storage, lane) for lane in lanes])

        return result(types.int64, types.int64), codegen

    return load


@cache
def storer(storage: str, count: int = 1, region: str = "outputs"):
    """An intrinsic (address, index, value) that rounds to the stored type and writes, or (address, index,
    tuple) for a single aligned vector store of ``count`` elements."""
    wide = WIDE_TYPES[widened(storage)]
    given = wide if count == 1 else types.UniTuple(wide, count)

    @intrinsic
    def store(typingctx, address, index, value):
        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, storage, *args[:2], count)
            if count == 1:
                stored = _narrow(context, builder, storage, args[2])
            else:
                stored = ir.Constant(ir.VectorType(_storage_type(storage), count), ir.Undefined)
                for k in range(count):
                    lane = _narrow(context, builder, storage, builder.extract_value(args[2], k))
                    stored = builder.insert_element(stored, lane, ir.IntType(32)(k))
            instruction = builder.store(stored, pointer, align=ITEMSIZE[storage] * count)
            _mark_region(context, builder, instruction, region)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, given), codegen

    return store


@intrinsic
def add_atomically(typingctx, address, index, amount):
    """Add to an int64 in memory to which other threads add at the same time. Integers have one sum in any order."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, "int64", *args[:2], 1)
        builder.atomic_rmw("add", pointer, args[2], "monotonic")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


TURNED = 8
"""The rows and columns that :func:`transposer` turns at once: with 4 bytes each, eight registers of AVX2."""


@cache
def transposer(itemsize: int):
    """An intrinsic (source, source_step, target, target_step, rows, wide, written) that moves rows of neighbours to
    columns: element k of row j goes to element j of row k. The steps are bytes between rows. There are TURNED ``rows``
    of as many elements, or fewer: nothing else is read. So many elements of each target row are ``written``, in the
    order of the rows; those without a source may be anything.

    Three rounds of shuffles, each of which exchanges the off-diagonal halves of ever smaller squares.
    """
    element = ir.IntType(8 * itemsize)
    row = ir.VectorType(element, TURNED)
    places = ir.VectorType(ir.IntType(32), TURNED)

    @intrinsic
    def transpose(typingctx, source, source_step, target, target_step, rows, wide, written):
        def codegen(context, builder, signature, args):
            source, source_step, target, target_step, rows, wide, written = args

            def place(start, step, k):
                return builder.inttoptr(builder.add(start, builder.mul(step, step.type(k))), row.as_pointer())

            def below(k, count):
                return builder.icmp_signed("<", count.type(k), count)

            def first(count):
                """The mask of so many elements."""
                count = builder.trunc(count, places.element)
                one = builder.insert_element(ir.Constant(places, ir.Undefined), count, places.element(0))
                all_of_them = builder.shuffle_vector(one, one, ir.Constant(places, None))
                return builder.icmp_signed("<", ir.Constant(places, [*range(TURNED)]), all_of_them)

            def pick(one, other, order):
                return builder.shuffle_vector(one, other, ir.Constant(places, order))

            def masked(kind, result, *given):
                """A call of LLVM's masked load or store: a plain one where the mask is known to be full."""
                own = ir.FunctionType(result, [value.type for value in given])
                name = f"llvm.masked.{kind}.v{TURNED}i{8 * itemsize}.p0"
                return builder.call(cgutils.get_or_insert_function(builder.module, own, name), given)

            align, zero = ir.IntType(32)(itemsize), ir.Constant(row, None)
            held, own = [], first(wide)
            for k in range(TURNED):
                # A row that is not there: the first one once more. With an empty mask, memory that nobody has took
                # hundreds of cycles.
                step = builder.select(below(k, rows), source_step, source_step.type(0))
                held.append(masked("load", row, place(source, step, k), align, own, zero))
            half = TURNED // 2
            while half:
                low = [k + (TURNED - half if k & half else 0) for k in range(TURNED)]
                for k in range(TURNED):
                    if not k & half:
                        one, other = held[k], held[k + half]
                        held[k] = pick(one, other, low)
                        held[k + half] = pick(one, other, [k + half for k in low])
                half //= 2
            own = first(written)
            for k in range(TURNED):
                with builder.if_then(below(k, wide)):
                    masked("store", ir.VoidType(), held[k], place(target, target_step, k), align, own)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 7), codegen

    return transpose


@cache
def strided_offset(dimensions: int, slot: int):
    """A subroutine (index, geometry) -> the byte offset of the element with that index in C order.

    ``geometry`` is a tuple of integers: the shape, then the byte strides of one array after the other; ``slot`` counts
    those arrays. The outermost coordinate needs no division.
    """
    innermost = dimensions - 1
    first_stride = dimensions * (1 + slot)

    @subroutine(types.int64)
    def offset(index, geometry):
        total = 0
        for back in range(innermost):
            axis = innermost - back
            outer = index // geometry[axis]
            total += (index - outer * geometry[axis]) * geometry[first_stride + axis]
            index = outer
        return total + index * geometry[first_stride]

    return offset
