"""How many instructions the CPU's hot loops take for one element: what a timed test would watch, without a clock.

    python -m benchmarks.cpu_code                                   # the table, beside the committed figures
    python -m benchmarks.cpu_code --output tests/instructions.json  # commit those of today

Kernels are compiled for processors of two generations, on any x86-64; nothing is executed. An exponential takes one
shift of an exponent into its place, so these shifts say how many elements one turn of a loop is for. The hot loops are
those with the widest registers: the others do what is left at the end of a row. Where there are two, the shorter one is
for rows whose targets are all 0 or 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FIGURES = Path(__file__).resolve().parent.parent / "tests" / "instructions.json"

PROCESSORS = {"AVX2": "x86-64-v3", "AVX-512": "x86-64-v4"}
"""LLVM's names. Left alone, it takes all 512 bits of AVX-512 on AMD's processors and 256 on this one, as on Intel's."""

LOOPS = {
    "loss": {"outputs": (), "sums": ("loss",)},
    "loss, uint8 targets": {"target": "uint8", "sums": ("loss",)},
    "loss, float16 logits, uint8 targets": {"prediction": "float16", "target": "uint8", "sums": ("loss",)},
    "loss, bfloat16 logits, uint8 targets": {"prediction": "bfloat16", "target": "uint8", "sums": ("loss",)},
    "loss, int64 targets": {"target": "int64", "sums": ("loss",)},
    "loss, float64 targets": {"target": "float64", "sums": ("loss",)},
    "loss, mask": {"mask": "bool", "sums": ("loss", "count")},
    "loss, weight": {"weight": "float32", "sums": ("loss", "weight")},
    "loss and gradient": {"outputs": ("gradient",), "sums": ("loss",), "scaled": True},
    "gradient": {"outputs": ("gradient",), "scaled": True},
    "gradient and hessian": {"outputs": ("gradient", "hessian")},
    "all three, weight and mask": {
        "weight": "float32",
        "mask": "bool",
        "outputs": ("loss", "gradient", "hessian"),
        "sums": ("loss",),
    },
    "loss and histogram, weight": {"weight": "float32", "sums": ("loss",), "bins": 4096, "quantised": True},
    "focal loss": {"gamma": True, "sums": ("loss",)},
    "float64 loss": {"prediction": "float64", "target": "float64", "compute": "float64", "sums": ("loss",)},
}
"""The recipes, all of logits in flat arrays."""

_WIDTH = {"x": 128, "y": 256, "z": 512}


def per_element(assembly: str, real: str, exponentials: int) -> list[float]:
    """Instructions of the hot loops for one element, which takes so many exponentials; the largest number first."""
    bits = {"float32": 32, "float64": 64}[real]
    shift = {"float32": r"vpslld\s+\$23", "float64": r"vpsllq\s+\$52"}[real]
    found: dict[int, list[float]] = {}
    for block in re.split(r"\n(?=\.LBB)", assembly):
        lines = [line for line in block.splitlines() if re.match(r"\t[a-z]", line)]
        label = block.partition(":")[0]
        ends = [place for place, line in enumerate(lines) if re.match(rf"\tj\w+\s+{re.escape(label)}$", line)]
        if ends:
            body = lines[: ends[-1] + 1]
            widths = [
                _WIDTH[register[1]]
                for line in body
                if re.search(shift, line) and (register := re.search(r"%([xyz])mm\d+$", line))
            ]
            if widths:
                per_turn = sum(width // bits for width in widths) / exponentials
                found.setdefault(max(widths), []).append(round(len(body) / per_turn, 2))
    return sorted(found[max(found)], reverse=True) if found else []


def measured() -> dict[str, float]:
    """Those of every loop, for the processor that this process compiles for."""
    from gpubce.backends.cpu import compile as compiled
    from gpubce.backends.kernel_key import KernelKey
    from gpubce.spec.geometry import FLAT
    from gpubce.spec.recipe import Recipe

    found = {}
    for name, options in LOOPS.items():
        recipe = Recipe(**options)
        key = KernelKey(recipe, (FLAT,) * len(recipe.roles + recipe.outputs))
        text = "\n".join(compiled.whole(key).inspect_asm().values())
        longest, *shorter = per_element(text, recipe.compute, 2 if recipe.gamma else 1)
        found[name] = longest
        if shorter:
            found[f"{name}, targets of 0 and 1"] = shorter[-1]
    return found


def for_processors() -> dict[str, dict[str, float]]:
    """Each in a process of its own, with an empty folder of compiled kernels: those on disk keep no text."""
    found = {}
    for generation, processor in PROCESSORS.items():
        with tempfile.TemporaryDirectory() as folder:
            changed = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": folder}
            program = "import json; from benchmarks import cpu_code; print(json.dumps(cpu_code.measured()))"
            done = subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, **changed},
                cwd=FIGURES.parent.parent,
                capture_output=True,
                text=True,
                check=True,
            )
        found[generation] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    before = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    found = for_processors()
    for name in found["AVX2"]:
        columns = [f"{found[each][name]:8.2f} ({before.get(each, {}).get(name, 0):.2f})" for each in PROCESSORS]
        print(f"{name:38} " + "  ".join(columns))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
