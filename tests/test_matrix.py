"""Same bits, everywhere (promise 2): the matrix on other instruction sets, beside Numba's threading layers, on a GPU,
and in full on the rest. The default suite does a handful; what takes minutes is marked exhaustive."""

import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import njit, types
from numba.extending import intrinsic

from gpubce.spec import primitives
from gpubce.spec.primitives import loader, storer
from tests import backends, matrix
from tests.cases import INPUT_TYPES
from tests.matrix import ALONG_AXES, WHOLE, Row, committed, named, problems
from tests.test_contract import EVERYDAY, MORE_THAN_CORES, SIMULATED

ROOT = Path(__file__).parent.parent
HANDFUL = "float16-1,bfloat16-7,float32-8,float64-3"
by_name = {"ids": lambda row: row.name}


# The matrix itself --------------------------------------------------------------------------------------------------


def test_there_is_a_digest_for_every_case():
    assert list(committed()) == [row.name for row in matrix.matrix()]
    for row in matrix.matrix():
        entry = committed()[row.name]
        assert [len(entry[plan].split()) for plan in matrix.PLANS] == [len(row.small), len(row.full)]


def test_the_default_suite_interprets_every_edge_with_every_reduction():
    """In its few cases, and on every compute capability."""
    met, capabilities = defaultdict(set), defaultdict(set)
    for row in EVERYDAY:
        if row.name.split("-")[0] in INPUT_TYPES:
            options = dict(row.small[0].options)
            reduction = options.get("reduction") or options.get("denominator")
            capabilities[reduction].add(row.compute_capability)
            met[reduction, options.get("axis") is None].update(row.interpreted)
    assert all(found == set(matrix.COMPUTE_CAPABILITIES) for found in capabilities.values())
    assert len(capabilities) == 5
    assert met.pop(("none", True)) == set(range(len(WHOLE["small"])))
    assert len(met) == 8
    for (_, is_whole), edges in met.items():
        assert edges == set(range(len((WHOLE if is_whole else ALONG_AXES)["small"])))


@pytest.mark.parametrize("name", [*HANDFUL.split(","), "sizes-unaligned", "more-4", "rare-3"])
def test_inputs_are_reproducible(name):
    assert named(name).inputs() == committed()[name]["inputs"]


def one_bit_off(case, plan):
    results = backends.cpu(case, plan)
    results["gradient"].view(np.uint32).ravel()[1:2] ^= 1
    return results


def test_a_difference_is_reported(monkeypatch):
    """With the place of the first one, and whether the CPU gives the digest's bits."""
    row = named("sizes-C")
    assert len(problems(row, "small", one_bit_off)) == len(row.small) - 2, "all but those of no and of one element"
    (text,) = problems(row, "small", one_bit_off, chosen=[4])
    assert "sizes-C" in text
    assert "(4,)" in text
    assert "the CPU gives the bits of the digest" in text
    assert "gradient: 1 of 4 differ, first at 1" in text
    other = committed()[row.name] | {"small": " ".join(["0" * 16] * len(row.small))}
    monkeypatch.setattr(matrix, "committed", lambda: {row.name: other})
    (text,) = problems(row, "small", backends.cpu, chosen=[4])
    assert "one thread of this machine's CPU does not give the bits of the digest, and this gives the same" in text
    monkeypatch.setattr(matrix, "committed", lambda: {row.name: other | {"inputs": "0" * 8}})
    (text,) = problems(row, "small", backends.cpu, chosen=[4])
    assert "the inputs are not those of the digests" in text


def test_the_command_writes_and_checks(monkeypatch, tmp_path, capsys):
    assert matrix.main(["--check", "--rows", "sizes-C,more-6", "--threads", "3"]) == 0
    assert "2 rows" in capsys.readouterr().out
    file = tmp_path / "digests.json"
    file.write_text(json.dumps({"more-6": {"inputs": "", "small": "", "full": ""}, "of old": {}}))
    with monkeypatch.context() as patch:
        patch.setattr(matrix, "DIGESTS", file)
        assert matrix.main(["--write", "--rows", "more-6,more-7"]) == 0
    assert json.loads(file.read_text()) == {name: committed()[name] for name in ("more-6", "more-7")}
    assert "2 rows: 1 new, 1 gone, 1 changed more-6" in capsys.readouterr().out
    monkeypatch.setattr(matrix, "committed", lambda: {"more-7": committed()["more-6"]})
    assert matrix.main(["--check", "--rows", "more-7", "--plan", "small"]) == 1
    assert "more-7" in capsys.readouterr().err


# Other instruction sets ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InstructionSet:
    """A processor for LLVM to compile for; what its machine code must and must not hold (backends.instructions)."""

    cpu: str
    features: str
    holds: frozenset[str]
    needs: frozenset[str] = frozenset()
    """What this machine must have to run it, in LLVM's words."""
    environment: tuple[tuple[str, str], ...] = ()


INSTRUCTION_SETS = {
    # LLVM then calls fma and fmaf of the C library; the tunable makes glibc take its versions without the instruction.
    "without FMA": InstructionSet(
        "x86-64", "", frozenset(), environment=(("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX2_Usable"),)
    ),
    "FMA without F16C": InstructionSet("x86-64", "+fma", frozenset({"fma", "ymm"}), frozenset({"fma"})),
    "AVX2": InstructionSet("haswell", "", frozenset({"fma", "f16c", "ymm"}), frozenset({"avx2", "fma", "f16c"})),
    "AVX-512": InstructionSet(
        "skylake-avx512",
        "-prefer-256-bit",
        frozenset({"fma", "f16c", "ymm", "zmm"}),
        frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}),
    ),
}

CHECK_AND_TELL = """
import sys
from tests import backends, matrix
status = matrix.main(sys.argv[1:])
print(*sorted(backends.instructions()))
sys.exit(status)
"""


def check_compiled_for(name: str, cache: Path, *arguments: str) -> None:
    """tests.matrix --check in a process that compiles for that instruction set; its kernels go into ``cache``."""
    wanted = INSTRUCTION_SETS[name]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"the instruction sets are those of x86-64, and this is {platform.machine()}")
    features = llvm.get_host_cpu_features()
    lacking = {feature for feature in wanted.needs if not features.get(feature)}
    if lacking:
        pytest.skip(f"this processor lacks {', '.join(sorted(lacking))}")
    variables = {"NUMBA_CPU_NAME": wanted.cpu, "NUMBA_CPU_FEATURES": wanted.features, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", CHECK_AND_TELL, "--check", *arguments],
        env={**os.environ, **variables, **dict(wanted.environment)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(done.stdout.splitlines()[-1].split()) == wanted.holds


@pytest.mark.parametrize("name", ["without FMA", "AVX2"])
def test_instruction_sets_agree(name, tmp_path):
    check_compiled_for(name, tmp_path, "--plan", "full", "--rows", HANDFUL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", ["1/4", "2/4", "3/4", "4/4"])
@pytest.mark.parametrize("name", ["without FMA", "AVX2", "AVX-512"])
def test_instruction_sets_agree_on_the_matrix(name, part, tmp_path):
    check_compiled_for(name, tmp_path, "--plan", "full", "--part", part)


@pytest.mark.exhaustive
def test_fma_without_conversions_of_float16(tmp_path):
    """Only the conversions tell it from AVX2 or from no FMA."""
    rows = ",".join(row.name for row in EVERYDAY if row.name.startswith("float16"))
    check_compiled_for("FMA without F16C", tmp_path, "--plan", "full", "--rows", rows)


def _converted(function, source, target):
    """An intrinsic of one of the conversions by integers, which this machine's processor may have no need of."""

    @intrinsic
    def convert(typingctx, value):
        def codegen(context, builder, signature, args):
            return function(builder, args[0])

        return target(source), codegen

    return convert


widen = _converted(primitives._widen_float16, types.uint16, types.float32)
narrow = _converted(primitives._narrow_float16, types.float32, types.uint16)
load, store = loader("float32"), storer("float32")


@njit
def widen_all(bits, values):
    for k in range(bits.size):
        values[k] = widen(bits[k])


@njit
def narrow_all(values, bits):
    for k in range(values.size):
        bits[k] = narrow(values[k])


def wrongly_narrowed(words: np.ndarray) -> int:
    """How many float32, given as bits, are not rounded to float16 as NumPy does."""
    values, found = words.view(np.float32), np.empty(words.size, np.uint16)
    narrow_all(values, found)
    with np.errstate(over="ignore", under="ignore"):
        expected = values.astype(np.float16)
    is_nan = np.isnan(expected)
    wrong = np.where(is_nan, ~np.isnan(found.view(np.float16)), found != expected.view(np.uint16))
    return int(np.count_nonzero(wrong))


def test_integers_convert_float16():
    """All float16; the float32 beside all float16, beside all points halfway between two, and beyond the largest."""
    everything = np.arange(2**16, dtype=np.uint16)
    values = np.empty(2**16, np.float32)
    widen_all(everything, values)
    expected = everything.view(np.float16).astype(np.float32)
    assert np.array_equal(values, expected, equal_nan=True)
    assert np.array_equal(np.signbit(values), np.signbit(expected))
    words = values.view(np.uint32)
    halfway = words + np.uint32(1 << 12)
    subnormal = (np.arange(2**12, dtype=np.float32) * np.float32(2.0**-26)).view(np.uint32)
    beyond = np.arange(65504, 2**18, 13, dtype=np.float32).view(np.uint32)
    beside = [w + np.uint32(step) for w in (words, halfway, subnormal, beyond) for step in (0, 1, 2**32 - 1)]
    for one in beside:
        assert wrongly_narrowed(one) == 0


@pytest.mark.exhaustive
def test_integers_narrow_every_float32():
    for start in range(0, 2**32, 2**24):
        assert wrongly_narrowed(np.arange(start, start + 2**24, dtype=np.uint32)) == 0


# Threading layers ---------------------------------------------------------------------------------------------------

BESIDE_A_LAYER = """
import sys
import numba
try:
    numba.get_num_threads()
except ValueError as error:
    sys.exit(f"skip: {error}")
assert numba.threading_layer() == numba.config.THREADING_LAYER
from tests import matrix
sys.exit(matrix.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_threading_layers_agree(layer):
    """gpubce has threads of its own and takes no layer of Numba's: none may disturb it when it runs beside it."""
    # pip puts TBB's library there, and the loader does not look.
    libraries = os.pathsep.join([*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), f"{sys.prefix}/lib"])
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_A_LAYER, "--check", "--plan", "small", "--rows", HANDFUL],
        env={**os.environ, "NUMBA_THREADING_LAYER": layer, "LD_LIBRARY_PATH": libraries},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.stderr.startswith("skip: "):
        pytest.skip(f"Numba cannot load its threading layer {layer}: {' '.join(done.stderr.split())}")
    assert done.returncode == 0, done.stdout + done.stderr


# The full matrix ----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", matrix.matrix(), **by_name)
def test_threads_agree_on_the_matrix(row: Row):
    for plan in matrix.PLANS:
        for threads in (1, 2, MORE_THAN_CORES):
            assert problems(row, plan, partial(backends.cpu, threads=threads)) == []


@pytest.mark.exhaustive
@pytest.mark.emulated
@pytest.mark.parametrize("row", [row for row in matrix.matrix() if row.small and row.name not in SIMULATED], **by_name)
def test_emulated_backends_agree_on_the_matrix(row: Row):
    """The rows that the default suite does not take to both."""
    ptx = partial(backends.ptx, compute_capability=row.compute_capability)
    assert problems(row, "small", ptx) == []
    assert problems(row, "small", backends.simulator, row.simulated) == []


@pytest.mark.gpu
@pytest.mark.parametrize("row", matrix.matrix(), **by_name)
def test_gpu_agrees_on_the_matrix(row: Row):
    assert problems(row, "full", backends.gpu) == []
