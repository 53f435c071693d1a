"""Break each promise in one line and see a test turn red.

    python ci/breaks.py            # all of them, in a copy of the repository; prints a Markdown table

Exit status 1 where a break goes unnoticed.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mutation import copy_repository


@dataclass(frozen=True)
class Break:
    """One line changed, and the tests that ought to notice."""

    promise: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


BREAKS = [
    Break(
        "1 one algorithm: CUDA adds its lanes in another order",
        "gpubce/backends/cuda/kernels.py",
        "width = first_width(lanes, min(lanes, size - base))",
        "width = 2 * first_width(lanes, min(lanes, size - base))",
        ("tests/test_contract.py", "tests/test_matrix.py"),
    ),
    Break(
        "2 same bits: a product that compilers may fuse",
        "gpubce/spec/primitives.py",
        "return builder.fma(*args, ir.Constant(args[0].type, 0.0))",
        "return builder.fmul(*args)",
        ("tests/test_cuda_kernels.py", "tests/test_contract.py"),
    ),
    Break(
        "2 same bits: a row of soft targets is taken for 0 and 1",
        "gpubce/backends/cpu/kernels.py",
        "        if not hard:",
        "        if False:",
        ("tests/test_interpreted.py",),
    ),
    Break(
        "3 accurate: ln 2 in one piece in exp",
        "gpubce/spec/elements.py",
        "r = fma(n, -REDUCTION_LOW, fma(n, -REDUCTION_HIGH, -a))",
        "r = fma(n, -REDUCTION_HIGH, -a)",
        ("tests/test_accuracy.py", "tests/test_oracle.py"),
    ),
    Break(
        "3 accurate: pairs merged without their error",
        "gpubce/spec/plan.py",
        "return total, (lo + other_lo) + error",
        "return total, lo + other_lo",
        ("tests/test_sums.py",),
    ),
    Break(
        "4 edges: a term whose factor is 0 is there",
        "gpubce/spec/elements.py",
        "return select(factor == ZERO, ZERO, product(factor, value))",
        "return product(factor, value)",
        ("tests/test_edges.py",),
    ),
    Break(
        "5 one pass: scratch as large as the input",
        "gpubce/backends/pipeline.py",
        "    return allocate(cells * size)",
        "    return allocate(cells * size + job.elements)",
        ("tests/test_large.py",),
    ),
    Break(
        "6 no hidden copy: results always in NumPy",
        "gpubce/dispatch.py",
        "return self.library.result(array, self.predictions) if out is None else out",
        "return self.library.to_host(array) if out is None else out",
        ("tests/test_arrays.py",),
    ),
    Break(
        "7 bad input is loud: targets above 1 are valid",
        "gpubce/spec/elements.py",
        "valid = valid & (target >= TARGET_ZERO) & (target <= TARGET_ONE)",
        "valid = valid & (target >= TARGET_ZERO)",
        ("tests/test_errors.py",),
    ),
    Break(
        "8 no GPU, no problem: CUDA is imported with the package",
        "gpubce/__init__.py",
        "from gpubce.dispatch import devices",
        "import numba.cuda\nfrom gpubce.dispatch import devices",
        ("tests/test_imports.py",),
    ),
    Break(
        "8 no GPU, no problem: device='cuda' falls back",
        "gpubce/dispatch.py",
        "        _require_gpu(\"device='cuda'\")",
        "        return bool(find_gpus()[0])",
        ("tests/test_errors.py",),
    ),
]


def first_failure(broken: Break) -> str | None:
    """The first test that fails, or None."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "gpubce"
        copy_repository(tree)
        path = tree / broken.file
        text = path.read_text()
        if text.count(broken.before) != 1:
            raise SystemExit(f"{broken.file} holds {broken.before!r} {text.count(broken.before)} times, not once")
        path.write_text(text.replace(broken.before, broken.after))
        environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(Path(scratch) / "compiled")}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        done = subprocess.run([*command, *broken.tests], cwd=tree, env=environment, capture_output=True, text=True)
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        return found[1] if found else None


def main():
    unnoticed = 0
    print("| promise and break | before | after | caught by |\n|---|---|---|---|")
    for broken in BREAKS:
        caught = first_failure(broken)
        unnoticed += caught is None
        before, after = (
            f"`{text.strip()}`".replace("|", "\\|").replace("\n", "; ") for text in (broken.before, broken.after)
        )
        print(f"| {broken.promise} | {before} | {after} | {f'`{caught}`' if caught else '**nothing**'} |", flush=True)
    sys.exit(unnoticed > 0)


if __name__ == "__main__":
    main()
