"""Mutation testing of the specification, the checks and the dispatch, with cosmic-ray.

    python ci/mutation.py run --interpreted      # with the specification executed as Python: seconds for each mutant
    python ci/mutation.py run [MODULE ...]       # every module of TESTS; goes on where it stopped
    python ci/mutation.py run --first 3          # with the first three tests of each module, in a third of the time
    python ci/mutation.py again [MODULE ...]     # the unlisted survivors once more, with the tests as they are now
    python ci/mutation.py again MODULE --tests tests/test_laws.py ...       # with those that are thought to kill them
    python ci/mutation.py report                 # the score, and every survivor with its reason, as Markdown

Each module is mutated in a copy of the repository, so the working tree is never touched. A mutant is killed by the
first test that fails. ``ci/mutation_survivors.toml`` holds the mutants that no test can kill, each with the reason; a
survivor that is not listed there makes ``report`` fail.
"""

import argparse
import ast
import hashlib
import importlib
import os
import pickle
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult
from mutation_resident import OPTIONS, Resident

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".exhaustive" / "mutation"
SURVIVORS = ROOT / "ci" / "mutation_survivors.toml"

_FORMULAS = [
    "tests/test_oracle.py::test_options_agree_with_the_oracle[everything-float32-logits]",
    "tests/test_oracle.py::test_options_agree_with_the_oracle[everything-float32-probabilities]",
    "tests/test_accuracy.py::test_float32_logits_keep_the_promises",
    "tests/test_accuracy.py::test_float64_keeps_the_promises",
    "tests/test_accuracy.py::test_float32_probabilities_keep_the_promises",
    "tests/test_edges.py",
    "tests/test_oracle.py",
    "tests/test_accuracy.py",
    "tests/test_matrix.py",
]
_CALLS = ["tests/test_errors.py", "tests/test_arrays.py", "tests/test_evaluator.py", "tests/test_plan.py"]

TESTS = {
    "gpubce/checks.py": [*_CALLS, "tests/test_matrix.py", "tests/test_fuzz_calls.py", "tests/test_simulated_device.py"],
    "gpubce/dispatch.py": [
        "tests/test_passes.py",
        *_CALLS,
        "tests/test_simulated_device.py",
        "tests/test_small_calls.py",
        "tests/test_matrix.py",
        "tests/test_laws.py",
        "tests/test_large.py",
        "tests/test_edges.py",
        "tests/test_fuzz_calls.py",
        "tests/test_imports.py",
        "tests/test_layout.py",
    ],
    "gpubce/spec/bins.py": [
        "tests/test_histogram.py",
        "tests/test_metrics.py",
        "tests/test_resume.py",
        "tests/test_matrix.py",
    ],
    "gpubce/spec/coefficients.py": ["tests/test_coefficients.py", *_FORMULAS],
    "gpubce/spec/edges.py": ["tests/test_edges.py", "tests/test_layout.py"],
    "gpubce/spec/elements.py": [
        *_FORMULAS,
        "tests/test_state.py",
        "tests/test_errors.py",
        "tests/test_laws.py",
        "tests/test_simulated_device.py",
    ],
    "gpubce/spec/geometry.py": [
        "tests/test_geometry.py",
        "tests/test_arrays.py",
        "tests/test_layout.py",
        "tests/test_matrix.py",
        "tests/test_contract.py",
    ],
    "gpubce/spec/histogram.py": [
        "tests/test_histogram.py",
        "tests/test_metrics.py",
        "tests/test_contract.py",
        "tests/test_matrix.py",
    ],
    "gpubce/spec/job.py": [
        "tests/test_recipe.py",
        "tests/test_layout.py",
        "tests/test_plan.py",
        "tests/test_evaluator.py",
        "tests/test_matrix.py",
    ],
    "gpubce/spec/plan.py": [
        "tests/test_plan.py",
        "tests/test_layout.py",
        "tests/test_sums.py",
        "tests/test_contract.py",
    ],
    "gpubce/spec/precision.py": [
        "tests/test_arrays.py",
        "tests/test_layout.py",
        "tests/test_matrix.py",
        "tests/test_errors.py",
    ],
    "gpubce/spec/primitives.py": [
        "tests/test_primitives.py",
        *_FORMULAS[:5],
        "tests/test_plan.py",
        *_FORMULAS[5:],
        "tests/test_contract.py",
        "tests/test_cuda_kernels.py",
    ],
    "gpubce/spec/quantities.py": [
        "tests/test_metrics.py",
        "tests/test_evaluator.py",
        "tests/test_matrix.py",
        "tests/test_errors.py",
    ],
    "gpubce/spec/recipe.py": [
        "tests/test_recipe.py",
        "tests/test_layout.py",
        "tests/test_errors.py",
        "tests/test_matrix.py",
    ],
    "gpubce/spec/state.py": [
        "tests/test_state.py",
        "tests/test_evaluator.py",
        "tests/test_layout.py",
        "tests/test_laws.py",
        "tests/test_plan.py",
        "tests/test_edges.py",
        "tests/test_simulated_device.py",
    ],
    "gpubce/spec/subroutines.py": ["tests/test_subroutines.py", "tests/test_cuda_kernels.py", "tests/test_compile.py"],
    "gpubce/spec/processors.py": ["tests/test_processors.py", "tests/test_subroutines.py"],
}
"""The tests that each module's mutants meet, those that kill most first."""

INTERPRETED = [
    "tests/test_passes.py",
    "tests/test_edges.py",
    "tests/test_interpreted.py",
    "tests/test_evaluator.py",
    "tests/test_metrics.py",
    "tests/test_arrays.py",
    "tests/test_errors.py",
    "tests/test_plan.py",
    "tests/test_state.py",
    "tests/test_laws.py",
    "tests/test_layout.py",
]
"""Those that they meet under ``--interpreted``, when no kernel is compiled (tests/interpreted.py)."""

PLAIN = {"gpubce/checks.py", "gpubce/dispatch.py"}
"""Modules that no kernel is compiled from."""

FORMULAS = {f"gpubce/spec/{name}.py" for name in ("elements", "histogram", "quantities")}
"""Those of which tests/interpreted.py makes Python."""

OPERATORS = {
    "AddNot", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop",
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ReplaceUnaryOperator_Delete_USub",
    "ReplaceUnaryOperator_Delete_Not",
    *(f"ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Mul", "Pow_Mul", "BitOr_BitAnd",
        "BitAnd_BitOr", "LShift_RShift", "RShift_LShift",
    )),
    *(f"ReplaceComparisonOperator_{pair}" for pair in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "GtE_Lt", "Gt_LtE", "LtE_Gt",
        "Is_IsNot", "IsNot_Is",
    )),
}  # fmt: skip
"""The opposite of every operator and both sides of every comparison; numbers become one more. cosmic-ray's other
partners of each operator (3,000 more mutants) are left out for time."""


def inert(source: str) -> list[tuple[int, int]]:
    """The line ranges whose mutation changes nothing that runs: annotations."""
    found = []
    for node in ast.walk(ast.parse(source)):
        notes = []
        if isinstance(node, ast.FunctionDef):
            notes = [node.returns, *(a.annotation for a in (*node.args.args, *node.args.kwonlyargs))]
        elif isinstance(node, ast.AnnAssign):
            notes = [node.annotation]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            notes = [node.test]
        found += [
            ((note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset))
            for note in notes
            if note is not None
        ]
    return found


def select(session: Path, source: str) -> None:
    """Mark the mutants that are left out as skipped."""
    ranges = inert(source)
    with use_db(session, WorkDB.Mode.open) as database:
        for item in database.pending_work_items:
            mutation = item.mutations[0]
            left_out = mutation.operator_name.split("/")[-1] not in OPERATORS
            left_out |= "NumberReplacer" in mutation.operator_name and mutation.occurrence % 2 == 1
            left_out |= any(start <= mutation.start_pos < end for start, end in ranges)
            if left_out:
                database.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def folder(module: str) -> Path:
    return STATE / module.replace("/", ".").removesuffix(".py")


def run(module: str, timeout: int, chosen: list[str], again: bool) -> None:
    """Mutate one module, and run these tests."""
    place = folder(module)
    session, tree, settings = place / "session.sqlite", place / "tree", place / "settings.toml"
    place.mkdir(parents=True, exist_ok=True)
    copy_repository(tree)
    tests = [test for test in chosen if test.startswith("--") or (tree / test.split("::")[0]).exists()]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("NUMBA_CACHE_DIR", str(place / "compiled"))
    door = Path(tempfile.mkdtemp()) / "door"
    command = [sys.executable, str(Path(__file__).resolve()), "serve", str(door), str(timeout), module, *tests]
    with subprocess.Popen(command, cwd=tree, env=environment) as server:
        try:
            while not door.exists():
                time.sleep(0.1)
            ask = f"{sys.executable} -I -S {Path(__file__).resolve().parent / 'mutation_client.py'} {door}"
            settings.write_text(
                f'[cosmic-ray]\nmodule-path = "{module}"\ntimeout = {2.0 * timeout}\nexcluded-modules = []\n'
                f'test-command = "{ask}"\n[cosmic-ray.distributor]\nname = "local"\n'
            )
            # Without a mutation every test passes, or "killed" would mean nothing.
            subprocess.run(ask.split(), cwd=tree, check=True)
            if not session.exists():
                subprocess.run(["cosmic-ray", "init", settings, session], cwd=tree, check=True)
                select(session, (ROOT / module).read_text())
            with sqlite3.connect(session) as database:  # No test has met those that a stopped server left.
                database.execute(
                    "DELETE FROM work_results WHERE test_outcome = 'INCOMPETENT' OR output LIKE '%no server%'"
                )
                if again:
                    survivors = database.execute(
                        "SELECT job_id, diff FROM work_results WHERE test_outcome = 'SURVIVED'"
                    )
                    unlisted = [(job,) for job, diff in survivors if (module, *changed(diff)) not in reasons()]
                    database.executemany("DELETE FROM work_results WHERE job_id = ?", unlisted)
            subprocess.run(["cosmic-ray", "exec", settings, session], cwd=tree, check=True)
        finally:
            server.kill()


def serve(door: str, timeout: str, module: str, *tests: str) -> None:
    """Run the tests in a forked child each time somebody knocks: importing Numba, PyTorch and the rest takes 3 s, and
    killing a mutant one. A child that takes longer than the timeout is killed, and so is its mutant."""
    for name in ("numba.cuda", "pytest", "hypothesis", "torch", "ml_dtypes", "mpmath", "pyarrow", "sklearn.metrics"):
        importlib.import_module(name)
    importlib.import_module("tests.ptx.arithmetic")  # Compiles, and imports nothing that is mutated.
    pairwise = importlib.import_module("tests.pairwise")
    pairwise.covering_rows = remembered(pairwise.covering_rows, Path(door).parent)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(door)
    listener.listen()
    main = sys.modules["pytest"].main
    sys.path.insert(0, os.getcwd())
    if module in PLAIN or (module in FORMULAS and "--interpreted" in tests):
        sys.modules["torch"].set_num_threads(1)  # A forked child would wait for PyTorch's threads.
        resident = Resident(module, list(tests), int(timeout), lambda work: answer(listener, work))
        sys.exit(main(["-s", *OPTIONS, *tests], plugins=[resident]))
    options = ["-x", *OPTIONS]
    # The first run compiles kernels that later ones find on disk, and pytest rewrites the tests once.
    answer(listener, lambda: int(main([*options, *tests])))
    for folder_of_bytecode in Path("gpubce").rglob("__pycache__"):  # What is mutated must not be found as it was.
        shutil.rmtree(folder_of_bytecode)
    sys.dont_write_bytecode = True

    def meet() -> int:
        signal.alarm(int(timeout))
        return int(main([*options, *tests]))

    while True:
        answer(listener, meet)


def answer(listener: socket.socket, work: Callable[[], int]) -> str:
    """Wait until somebody knocks, have a forked child do the work, and tell its result and the last that it said."""
    knock, _ = listener.accept()
    with knock, tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            listener.close()
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = 1
            try:
                code = work()
            finally:
                sys.stdout.flush()
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        told = said.read()[-4000:]
        knock.sendall(bytes([status & 255]) + told)
    return told.decode(errors="replace")


def remembered(function, place: Path):
    """The function, whose results are kept in files there. The rows of the matrix take 2 s to find, in each child."""

    def recall(*arguments):
        file = place / hashlib.sha256(repr(arguments).encode()).hexdigest()
        if not file.exists():
            file.write_bytes(pickle.dumps(function(*arguments)))
        return pickle.loads(file.read_bytes())

    return recall


def copy_repository(tree: Path) -> None:
    """A copy of the tracked files, where cosmic-ray may write. It also mends what a stopped run left mutated."""
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


def changed(diff: str) -> tuple[str, str]:
    """The mutated lines of a diff, before and after."""
    lines = diff.splitlines()
    before = [line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---")]
    after = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    return " ".join(before), " ".join(after)


@cache
def reasons() -> dict[tuple[str, str, str], str]:
    """Why no test can tell, for each (module, lines before, lines after) that is listed."""
    rows = tomllib.loads(SURVIVORS.read_text())["survivor"]
    return {(row["module"], row["before"], row["after"]): row["reason"] for row in rows}


def report() -> int:
    """Print the score and the survivors; how many have no reason."""
    score, survivors, unlisted = [], [], 0
    for module in TESTS:
        session = folder(module) / "session.sqlite"
        if not session.exists():
            continue
        killed = survived = pending = 0
        with use_db(session, WorkDB.Mode.open) as database:
            pending = sum(1 for _ in database.pending_work_items)
            for _, result in database.results:
                if result.worker_outcome == WorkerOutcome.SKIPPED:
                    continue
                if result.test_outcome == TestOutcome.INCOMPETENT:
                    pending += 1
                    continue
                if result.test_outcome == TestOutcome.SURVIVED:
                    survived += 1
                    key = (module, *changed(result.diff))
                    unlisted += key not in reasons()
                    survivors.append((*key, reasons().get(key, "**not explained**")))
                else:
                    killed += 1
        score.append((module, killed, survived, pending))
    print("| module | mutants | killed | survived | not run |\n|---|---|---|---|---|")
    for module, killed, survived, pending in score:
        print(f"| `{module}` | {killed + survived} | {killed} | {survived} | {pending} |")
    total = [sum(row[k] for row in score) for k in (1, 2, 3)]
    print(f"| all | {total[0] + total[1]} | {total[0]} | {total[1]} | {total[2]} |")
    print("\n| module | before | after | why no test can tell |\n|---|---|---|---|")
    for module, before, after, reason in survivors:
        cells = (text.replace("|", "\\|") for text in (before, after))
        print(f"| `{module}` | " + " | ".join(f"`{cell}`" for cell in cells) + f" | {reason} |")
    return unlisted


def main():
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "again", "report"])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="default: all")
    parser.add_argument("--timeout", type=int, default=900, help="seconds until a mutant counts as killed")
    parser.add_argument("--first", type=int, help="so many of each module's tests (default: all)")
    parser.add_argument("--interpreted", action="store_true", help="execute the specification as Python")
    parser.add_argument("--tests", nargs="+", help="these tests instead of the modules' own")
    arguments = parser.parse_intermixed_args()
    if arguments.what == "report":
        sys.exit(report() > 0)
    for module in arguments.modules:
        tests = arguments.tests or (INTERPRETED if arguments.interpreted else TESTS[module])[: arguments.first]
        tests += ["--interpreted" if arguments.interpreted else "--compiled"]
        run(module, arguments.timeout, tests, arguments.what == "again")


if __name__ == "__main__":
    main()
