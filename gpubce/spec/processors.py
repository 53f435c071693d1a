"""What Numba compiles for, and what that has."""

from collections.abc import Callable
from functools import cache

import llvmlite.binding as llvm
from llvmlite import ir


def is_cuda(context) -> bool:
    """Whether Numba compiles for CUDA."""
    return "CUDA" in type(context).__name__


def converts_float16(context) -> bool:
    """Whether the target has instructions between float16 and float32. x86 has had them since 2012 (F16C); GPUs have
    them. Without them LLVM calls a function of the compiler's runtime library, which is not in the process: "LLVM
    ERROR: Symbol not found: __extendhfsf2" ends it. Integers do it too, but they would cost 20 to 60% of the time of a
    float16 loss elsewhere."""
    return is_cuda(context) or _cpu_converts_float16(*context.codegen().magic_tuple())


@cache
def _cpu_converts_float16(triple: str, cpu: str, features: str) -> bool:
    def widen(builder, half):
        builder.ret(builder.fpext(half, ir.FloatType()))

    text = _assembly(triple, cpu, features, ir.FunctionType(ir.FloatType(), [ir.HalfType()]), widen)
    return not any(name in text for name in ("__extendhfsf2", "__gnu_h2f_ieee", "__aeabi_h2f"))


def vector_registers(context) -> int:
    """How many vector registers a CPU has: 16 on x86, 32 there with AVX-512 and on all others, which are ARM for
    Numba."""
    return 16 if _is_x86(context.codegen().magic_tuple()[0]) and vector_bits(context) < 512 else 32


def vector_bits(context) -> int:
    """How wide a CPU's vector registers are: 512 bits with AVX-512, 256 with AVX, 128 on other x86 and on ARM."""
    return _cpu_vector_bits(*context.codegen().magic_tuple())


@cache
def _cpu_vector_bits(triple: str, cpu: str, features: str) -> int:
    if not _is_x86(triple):
        return 128
    sixteen = ir.VectorType(ir.FloatType(), 16)

    def add(builder, one, other):
        builder.ret(builder.fadd(one, other))

    text = _assembly(triple, cpu, features, ir.FunctionType(sixteen, [sixteen] * 2), add)
    return 512 if "zmm" in text else 256 if "ymm" in text else 128


def _is_x86(triple: str) -> bool:
    return triple.startswith(("x86", "i686"))


def _assembly(triple: str, cpu: str, features: str, kind: ir.FunctionType, fill: Callable) -> str:
    """A function as that CPU gets it; ``fill(builder, *arguments)`` says what it does."""
    module = ir.Module()
    function = ir.Function(module, kind, "function")
    fill(ir.IRBuilder(function.append_basic_block()), *function.args)
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))
