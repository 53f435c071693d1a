"""Timing, machine and results: what every benchmark shares.

Times are compared within one run only: every row is measured in turn, several times over, so that a slow spell of the
machine hits all of them.
"""

import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

import gpubce

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = (
    *("numpy", "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton"),
    *("jax", "jaxlib", "optax", "scikit-learn"),
)
"""Those that are timed here, or that time depends on."""

FEWEST_ROUNDS = 3
"""A median of fewer says nothing about spread."""

Function = Callable[[int], object]
"""What is timed. It takes the number of the call, to choose one of several sets of inputs."""

Clock = Callable[[Function, int, int], float]
"""Seconds of one call of a function: it is called so many times, from a number on."""


# Timing ---------------------------------------------------------------------------------------------------------------


def on_host(function: Function, first: int, calls: int) -> float:
    """The clock of the host. What it times has to wait for its own results."""
    start = time.perf_counter()
    for call in range(first, first + calls):
        function(call)
    return (time.perf_counter() - start) / calls


def by_events(function: Function, first: int, calls: int) -> float:
    """CUDA events on the default stream, which CuPy, PyTorch and Triton share. They are around all the calls together:
    around one, the time of launching it would be counted too."""
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for call in range(first, first + calls):
        function(call)
    stop.record()
    stop.synchronize()
    return 1e-3 * cupy.cuda.get_elapsed_time(start, stop) / calls


@dataclass
class Samples:
    """What was measured of one function."""

    calls: int = 1
    """In each round."""
    rounds: int = 0
    """In which it takes part."""
    seconds: list[float] = field(default_factory=list)
    """Of one call, for each of these rounds."""
    error: Exception | None = None
    """What it raised; it was not called again."""


def samples(
    functions: Mapping[str, Function],
    rounds: int,
    clocks: Mapping[str, Clock] | None = None,
    enough: float = 0.0,
    budget: float = math.inf,
) -> dict[str, Samples]:
    """Time all functions in interleaved rounds.

    First calls are not counted. A short function is called over and over for ``enough`` seconds a round. One that would
    take more than ``budget`` seconds in all takes part in fewer rounds.
    """
    found = {name: Samples() for name in functions}
    for turn in range(rounds + 1):
        order = list(functions.items())
        if turn:  # Else one would always come after the one that has just given back a gigabyte.
            random.Random(turn).shuffle(order)
        for name, function in order:
            clock, sample = (clocks or {}).get(name, on_host), found[name]
            try:
                if turn == 0:
                    guess = clock(function, 0, 1)
                    if guess < 10 * enough:  # The first call may be ten times as slow as those that follow.
                        guess = clock(function, 1, 3)
                    sample.calls = max(1, math.ceil(enough / max(guess, 1e-9)))
                    sample.rounds = max(FEWEST_ROUNDS, int(min(rounds, budget / max(guess, enough, 1e-9))))
                elif turn <= sample.rounds:
                    sample.seconds.append(clock(function, turn * sample.calls, sample.calls))
            except Exception as error:
                sample.error, sample.rounds = error, 0
    return found


def seconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each function over ``rounds`` turns, after one turn that is not counted."""
    numbered = {name: lambda call, function=function: function() for name, function in functions.items()}
    found = samples(numbered, rounds)
    for sample in found.values():
        if sample.error:
            raise sample.error
    return {name: statistics.median(sample.seconds) for name, sample in found.items()}


def middle_half(times: list[float]) -> tuple[float, float]:
    """The quartiles: half of the times lie between them."""
    if len(times) == 1:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


# The machine ----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {"gpubce": gpubce.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    # A virtual machine may say no more than "AMD EPYC", with AVX-512 or without.
    processor += f" ({llvm.get_host_cpu_name()})"
    return {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def gpu() -> dict[str, Any]:
    """Name, memory and driver of the GPU that is used."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "memory": properties["totalGlobalMem"],
        "cache": properties["l2CacheSize"],
        "driver": _driver(),
        "cuda": cupy.cuda.runtime.driverGetVersion(),
    }


def _driver() -> str:
    """The version of NVIDIA's."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def cache_bytes(device: str) -> int:
    """The size of the last-level cache."""
    if device == "cuda":
        return gpu()["cache"]
    found = {}
    for folder in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        found[(folder / "shared_cpu_list").read_text()] = int((folder / "size").read_text().strip().rstrip("K")) << 10
    return sum(found.values()) or 1 << 26


def commit() -> str:
    """The commit of the working tree, marked where a program of it is changed. Where there is no repository, what the
    variable COMMIT says."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        programs = ["status", "--porcelain", "--", "gpubce", "tests", "benchmarks", ":!benchmarks/results"]
        changed = subprocess.run([*command, *programs], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")
    return head.stdout.strip() + ("-changed" if changed.stdout.strip() else "")


# Results --------------------------------------------------------------------------------------------------------------


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns, the first to the left and the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def described(results: dict[str, Any]) -> dict[str, Any]:
    """The results, with the day, the commit and the machine."""
    return {"date": date.today().isoformat(), "commit": commit(), "machine": machine(), **results}


def file_name(name: str) -> str:
    """The name of a device as that of a file."""
    return name.replace(" ", "-").lower()


def save(document: dict[str, Any], path: Path) -> None:
    """A results file; its "rows", if it has any, take a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: value for name, value in document.items() if name != "rows"}, indent=1)
    if rows := document.get("rows"):
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        text = f'{text.removesuffix("}").rstrip()},\n "rows": [\n  {lines}\n ]\n}}'
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def write(results: dict[str, Any], path: Path) -> None:
    """Describe the results and save them."""
    save(described(results), path)
    print(f"wrote {path}", file=sys.stderr)
