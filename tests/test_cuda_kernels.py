"""What the compiled CUDA kernels are made of, read from PTX and machine code with no device."""

import importlib.util
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from gpubce.backends.cuda.compile import ptx
from gpubce.backends.kernel_key import KernelKey
from gpubce.spec.geometry import FLAT
from gpubce.spec.recipe import PROBABILITY, Recipe
from tests.backends import compiled_ptx

pytestmark = pytest.mark.emulated

CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


def key(vector: int = 4, **recipe) -> KernelKey:
    made = Recipe(**{"sums": ("loss",), **recipe})
    return KernelKey(made, (FLAT,) * (len(made.roles) + len(made.outputs)), vector=vector)


KERNELS = {
    "loss": key(),
    "loss and gradient": key(outputs=("gradient",)),
    "bytes": key(prediction="bfloat16", target="uint8", outputs=("gradient",)),
    "float64": key(
        compute="float64", prediction="float64", outputs=("gradient", "hessian"), sums=("loss", "positives")
    ),
    "focal": key(gamma=True, smoothing=True, weight="float32", outputs=("gradient", "hessian")),
    "probability": key(space=PROBABILITY, floor=True, outputs=("gradient", "hessian"), sums=("loss", "squared_error")),
}


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_every_compute_capability_compiles(capability):
    assert compiled_ptx("whole", KERNELS["loss and gradient"], capability).opcodes()["fma.rn.f32"] > 0


@pytest.mark.parametrize("name", KERNELS)
def test_arrays_are_moved_in_vectors_and_nothing_is_spilled(name):
    text = ptx("whole", KERNELS[name], (9, 0))
    moves = Counter(re.findall(r"\b((?:ld|st)\.global\S*)", text))
    recipe = KERNELS[name].recipe
    wide = {"float32": "ld.global.v4.f32", "bfloat16": "ld.global.v4.u16", "float64": "ld.global.v4.f64"}
    if recipe.prediction != "float64":
        assert moves[wide[recipe.prediction]], moves
    assert not re.search(r"\b(ld|st)\.local", text)
    assert not re.search(r"\bcall\b", text)
    assert not re.search(r"\.ftz|\.approx|div\.full", text)


def test_float32_kernels_hold_no_float64_but_the_sums():
    """A bare literal would promote an element to float64."""
    opcodes = compiled_ptx("whole", KERNELS["loss and gradient"]).opcodes()
    double = {name for name in opcodes if name.endswith("f64") and not name.startswith(("ld", "st", "mov", "cvt"))}
    assert double <= {"add.f64", "add.rn.f64", "selp.f64"}, double


def tool(name: str) -> Path:
    """A program of CUDA's wheels, or a skip that says what is missing."""
    for package in ("nvidia",):
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else []:
            for path in Path(folder).rglob(f"bin/{name}"):
                return path
    pytest.skip(f"{name} is not installed: pip install nvidia-cuda-nvcc-cu12 nvidia-cuda-nvdisasm")


def floating_point(text: str, folder: Path, fuse: bool) -> tuple[Counter, str]:
    """How often each floating-point instruction stands in the machine code, and what ptxas says of resources."""
    source, binary = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(text)
    command = [tool("ptxas"), "-arch=sm_90", "-v", f"--fmad={str(fuse).lower()}", source, "-o", binary]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    code = subprocess.run([tool("nvdisasm"), "-c", binary], check=True, capture_output=True, text=True).stdout
    return Counter(re.findall(r"\b([FD](?:FMA|MUL|ADD))\b", code)), said


@pytest.mark.parametrize("name", KERNELS)
def test_the_assembler_fuses_nothing(name, tmp_path):
    """The same number of each instruction with and without fusing: no product feeds an addition."""
    text = ptx("whole", KERNELS[name], (9, 0))
    fused, said = floating_point(text, tmp_path, True)
    plain, _ = floating_point(text, tmp_path, False)
    assert fused == plain
    assert sum(fused.values()) > 0
    assert "0 bytes spill stores, 0 bytes spill loads" in said


def test_the_assembler_would_fuse_a_product(tmp_path):
    """The test above can fail: a plain product that feeds an addition is fused."""
    from numba import cuda, float32, types

    def kernel(x, y):
        y[0] = x[0] * x[1] + x[2] * float32(3.0)

    array = types.float32[::1]
    text, _ = cuda.compile(kernel, types.void(array, array), cc=(9, 0), device=False, abi="numba", output="ptx")
    text = re.sub(r"fma\.rn\.f32\s+(%f\d+), (%f\d+), (\S+), (%f\d+);", r"mul.f32 \1, \2, \3; add.f32 \1, \1, \4;", text)
    fused, _ = floating_point(text, tmp_path, True)
    plain, _ = floating_point(text, tmp_path, False)
    assert fused != plain
