"""Timing, machine and results: what every benchmark shares.

Times are compared within one run only: every row is measured in turn, several times over, so that a slow spell of the
machine hits all of them.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import gpubce


def seconds(functions: dict[str, Callable[[], object]], rounds: int, wait: Callable[[], object] = lambda: None) -> dict:
    """The median time of each function over ``rounds`` turns, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            wait()
            start = time.perf_counter()
            function()
            wait()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {"gpubce": gpubce.__version__}
    for package in ("numpy", "numba", "numba-cuda", "torch", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


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


def write(results: dict[str, Any], path: Path) -> None:
    """The results as JSON, with the day and the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"date": date.today().isoformat(), "machine": machine(), **results}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)
