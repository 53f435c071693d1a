"""The hot loops of the CPU take no more instructions than they did: the guard of speed that needs no clock."""

from __future__ import annotations

import json
import platform

import pytest

from benchmarks import cpu_code

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="Numba compiles for x86-64 on x86-64 only"
)

GROWTH = 1.15
"""From here on a loop has to be looked at: other versions of LLVM move a few instructions."""


@pytest.fixture(scope="module")
def found():
    return cpu_code.for_processors()


COMMITTED = json.loads(cpu_code.FIGURES.read_text())


@pytest.mark.parametrize("name", COMMITTED["AVX2"])
@pytest.mark.parametrize("generation", cpu_code.PROCESSORS)
def test_no_loop_grows(found, generation, name):
    assert found[generation][name] <= GROWTH * COMMITTED[generation][name]


@pytest.mark.parametrize("name", [name for name in COMMITTED["AVX2"] if "float64" not in name])
def test_registers_of_512_bits_are_used_whole(found, name):
    """16 float32 at a time, and not 8."""
    assert found["AVX-512"][name] < 0.6 * found["AVX2"][name]


def test_the_hot_loop_is_found_in_text():
    """Not the one for the rest of a row, nor code outside of loops."""
    main = "\tvmovups\t(%rsi), %zmm1\n\tvpslld\t$23, %zmm1, %zmm2\n\tvaddps\t%zmm1, %zmm2, %zmm3\n\tjne\t.LBB0_1"
    rest = "\tvpslld\t$23, %xmm1, %xmm2\n" + "\tvaddps\t%xmm1, %xmm2, %xmm3\n" * 50 + "\tjne\t.LBB0_2"
    after = "\tvpslld\t$23, %zmm1, %zmm2\n\tjne\t.LBB0_1"
    text = f"start:\n\n.LBB0_1:\n{main}\n\n.LBB0_2:\n{rest}\n\n.LBB0_3:\n{after}\n"
    assert cpu_code.per_element(text, "float32", 1) == [4 / 16]
    twice = text + main.replace("LBB0_1", "LBB0_4").join(["\n.LBB0_4:\n\tvpslld\t$23, %zmm1, %zmm5\n", "\n"])
    assert cpu_code.per_element(twice, "float32", 1) == [4 / 16, round(5 / 32, 2)]
    assert cpu_code.per_element("nothing", "float32", 1) == []
