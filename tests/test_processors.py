"""What Numba compiles for, and what that has."""

from types import SimpleNamespace

import pytest
from numba.core.registry import cpu_target

from gpubce.spec.processors import converts_float16, is_cuda, vector_bits, vector_registers

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


@pytest.fixture(autouse=True)
def numba_is_ready():
    """It tells LLVM for which processors there will be code; this file alone fails where nothing else has asked it."""
    return cpu_target.target_context


def target(triple: str, cpu: str, features: str = ""):
    """What Numba hands to code that asks what it compiles for."""
    return SimpleNamespace(codegen=lambda: SimpleNamespace(magic_tuple=lambda: (triple, cpu, features)))


@pytest.mark.parametrize(
    ("triple", "cpu", "features", "registers", "bits"),
    [
        (X86, "nehalem", "", 16, 128),
        (X86, "sandybridge", "", 16, 256),
        (X86, "x86-64-v3", "", 16, 256),
        (X86, "x86-64-v4", "", 32, 512),
        (X86, "skylake-avx512", "", 32, 512),
        (X86, "znver4", "", 32, 512),
        (X86, "znver4", "-avx512f", 16, 256),
        (ARM, "neoverse-n1", "", 32, 128),
    ],
)
def test_vector_registers(triple, cpu, features, registers, bits):
    what = target(triple, cpu, features)
    assert (vector_registers(what), vector_bits(what)) == (registers, bits)


@pytest.mark.parametrize(
    ("cpu", "features", "converts"), [("nehalem", "", False), ("x86-64-v3", "", True), ("x86-64-v3", "-f16c", False)]
)
def test_instructions_for_float16(cpu, features, converts):
    assert converts_float16(target(X86, cpu, features)) is converts


def test_a_gpu_is_no_cpu():
    class CUDATargetContext:
        """Has no codegen that a CPU's question could be put to."""

    assert is_cuda(CUDATargetContext()) and converts_float16(CUDATargetContext())
    assert not is_cuda(target(X86, "nehalem"))
