"""Calls of every kind for a long time: nothing grows.

``python -m tests.soak --seconds 600`` makes calls from several threads, samples memory, threads, open files and
objects, and compares the last third of the time with the third before it: the first is for warming up. It prints one
line, and the exit code is 1 if something grew.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import threading
import time
from array import array
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

import gpubce
from gpubce import cli
from tests.tolerances import SOAK_MEGABYTES, SOAK_OBJECTS

CALLERS = 3
SIZES = (1, 1000, 70_001, 700_003)


@dataclass(frozen=True)
class Sample:
    """What a process holds."""

    megabytes: float
    threads: int
    files: int
    objects: int

    @classmethod
    def now(cls) -> Sample:
        """Taken when no caller is at work."""
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        return cls(resident, threading.active_count(), len(os.listdir("/proc/self/fd")), len(gc.get_objects()))


def files(folder: Path) -> tuple[str, str]:
    """Predictions and targets as the command reads them."""
    random = np.random.default_rng(1)
    np.save(folder / "p.npy", random.random(30_000))
    np.save(folder / "y.npy", random.random(30_000) < 0.3)
    return str(folder / "p.npy"), str(folder / "y.npy")


def calls(predictions: str, targets: str, turn: int, expected: dict[tuple, object]) -> int:
    """One call of each kind, for arrays of the size whose turn it is; each time with the same bits. How many calls."""
    made = 0

    def same(name: str, *results: object) -> None:
        nonlocal made
        made += 1
        found = b"".join(np.asarray(result).tobytes() for result in results)
        if expected.setdefault((name, size), found) != found:
            raise AssertionError(f"{name} of {size} elements has other bits than before")

    size = SIZES[turn % len(SIZES)]
    random = np.random.default_rng(size)
    logits = random.normal(0, 3, size).astype(np.float32)
    labels, weight, mask = random.random(size) < 0.4, random.random(size), random.random(size) < 0.9
    mean = gpubce.BinaryCrossEntropy(from_logits=True, pos_weight=2.0)
    each = gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")
    out = np.empty_like(logits)
    same("value", mean(logits, labels))
    same("function", gpubce.binary_cross_entropy_with_logits(logits, labels, weight=weight, mask=mask))
    same("none", each(logits, labels, out=out))
    same("strided", each(logits[::-1], labels))
    same("gradient", *mean.value_and_grad(logits, labels, grad_out=out))
    same("hessian", *mean.grad_and_hess(logits, labels))
    state = mean.state(logits, labels)
    same("state", mean.finish(state + state))
    if size % 1000 == 0:
        labelled = gpubce.BinaryCrossEntropy(from_logits=True, axis=0)
        same("axis", labelled(logits.reshape(-1, 10), labels.reshape(-1, 10)))
    for error, arguments in (
        (gpubce.errors.InvalidValueError, (logits, labels + 2)),
        (gpubce.errors.ShapeError, (logits, labels[:-1])),
        (gpubce.errors.DtypeError, (logits, labels.astype(complex))),
    ):
        made += 1
        try:
            mean(*arguments)
        except error:
            continue
        raise AssertionError(f"{error.__name__} is not raised")
    evaluator = gpubce.Evaluator(from_logits=True)
    for part in (slice(None, size // 2), slice(size // 2, None)):
        evaluator.update(logits[part], labels[part])
    other = gpubce.Evaluator(from_logits=True)
    other.load_state_dict(json.loads(json.dumps(evaluator.state_dict())))
    same("evaluator", np.frombuffer(str(evaluator.merge(other).report()).encode(), np.uint8))
    return made


def command(predictions: str, targets: str, folder: Path) -> int:
    """The command, with a good file and a bad one. How many calls."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        codes = [
            cli.main(["evaluate", predictions, targets, "--json", str(folder / "out.json"), "--batch", "7000"]),
            cli.main(["evaluate", predictions, str(folder / "none.npy")]),
            cli.main(["evaluate", "--demo"]),
        ]
    if codes != [0, 2, 0]:
        raise AssertionError(f"the command ended with {codes}")
    return len(codes)


def round_of_calls(folder: Path, turn: int, expected: dict[tuple, object]) -> int:
    """One round: from several threads at once, then the command. How many calls."""
    predictions, targets = str(folder / "p.npy"), str(folder / "y.npy")
    made: list[int] = []

    def caller(k: int) -> None:
        made.append(calls(predictions, targets, turn + k, expected))

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(CALLERS)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    if len(made) < CALLERS:
        raise AssertionError("a caller failed")
    return sum(made) + command(predictions, targets, folder)


def soak(seconds: float) -> tuple[str, bool]:
    """What was seen, in one line, and whether something grew."""
    made, turn = 0, 0
    expected: dict[tuple, object] = {}
    samples: array[float] = array("d")  # Numbers, which are no objects that grow with the time.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files(folder)
        for turn in range(len(SIZES)):
            made += round_of_calls(folder, turn, expected)  # Everything is compiled.
        start = time.monotonic()
        while (passed := time.monotonic() - start) < seconds:
            turn += 1
            made += round_of_calls(folder, turn, expected)
            samples.extend((passed, *astuple(Sample.now())))
    table = np.array(samples).reshape(-1, 5)
    middle, last = (table[(table[:, 0] >= seconds * k / 3) & (table[:, 0] < seconds * (k + 1) / 3)] for k in (1, 2))
    most, later = (Sample(third[0], *map(int, third[1:])) for third in (middle.max(0)[1:], last.max(0)[1:]))
    grew = (
        later.megabytes - most.megabytes > SOAK_MEGABYTES
        or later.threads > most.threads
        or later.files > most.files
        or later.objects - most.objects > SOAK_OBJECTS
    )
    line = (
        f"{made} calls in {seconds:.0f} s: memory {most.megabytes:.1f} -> {later.megabytes:.1f} MB, threads "
        f"{most.threads} -> {later.threads}, open files {most.files} -> {later.files}, objects {most.objects} -> "
        f"{later.objects}: {'GREW' if grew else 'nothing grew'}"
    )
    return line, grew


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    line, grew = soak(parser.parse_args().seconds)
    print(line)
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
