"""Time gpubce beside other libraries and beside what memory allows, in one run.

    python -m benchmarks                          # everything: a quarter of an hour on two cores
    python -m benchmarks --quick                  # a first look, under five minutes
    python -m benchmarks --device cuda --output benchmarks/results
    python -m benchmarks.report benchmarks/results/cpu.json --readme README.md

Every result is checked before it is timed; who is wrong is named and not timed. The cases are in benchmarks/cases.py,
the providers in benchmarks/providers.py. Some cases are timed at one size, and those of the plot at many.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gpubce
from benchmarks import libraries, measure, report
from benchmarks.cases import CASES, CURVES, QUICK, curve_sizes
from benchmarks.compare import Row, Settings, compare
from benchmarks.providers import PROVIDERS
from gpubce.backends.cpu.launch import thread_count

TABLE = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Elements of the cases of the table: several times the last-level cache."""

LARGEST = {"cpu": 1 << 26, "cuda": 1 << 28}
"""Of the curves. On two cores the slowest peer takes two seconds there."""

QUICK_TABLE = 1 << 20


def size(text: str) -> int:
    """A number of elements: "4096" or "2^12"."""
    base, hat, power = text.partition("^")
    try:
        found = int(base) ** int(power) if hat else int(base)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of elements: write 4096 or 2^12")
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    names = [provider.name for provider in PROVIDERS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases, small arrays, few rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of {'; '.join(CASES)}")
    parser.add_argument("--providers", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--sizes", nargs="+", type=size, metavar="N", help="elements, as 4096 or 2^12, for every case")
    parser.add_argument("--only", choices=["table", "curves"], help="one half; the report takes both files")
    parser.add_argument("--rounds", type=int, help="turns in which everybody is timed")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="write the results as JSON into it")
    parser.add_argument("--tests", default="", help="what the tests said, for the results file")
    return parser.parse_args(words)


def work(arguments: argparse.Namespace) -> tuple[int, list[tuple[str, int]]]:
    """The size of the table, and the cases and sizes to measure: the table first, whose first calls compile."""
    cases = arguments.cases or (QUICK if arguments.quick else tuple(CASES))
    if arguments.sizes:
        largest, *_ = sizes = sorted(arguments.sizes, reverse=True)
        return largest, [(name, elements) for elements in sizes for name in cases]
    table = QUICK_TABLE if arguments.quick else TABLE[arguments.device]
    sizes = curve_sizes(table)[1::2] if arguments.quick else curve_sizes(LARGEST[arguments.device])
    curves = [(name, elements) for name in cases if name in CURVES for elements in sizes if elements != table]
    rows = [(name, table) for name in cases]
    return table, {"table": rows, "curves": curves, None: rows + curves}[arguments.only]


def measured(arguments: argparse.Namespace, todo: Sequence[tuple[str, int]], cache: int) -> Iterator[Row]:
    """The rows, as they are found; progress goes to the error output."""
    chosen = [provider for provider in PROVIDERS if provider.name in (arguments.providers or [provider.name])]
    rounds = arguments.rounds or (5 if arguments.quick else 9)
    settings = Settings(arguments.device, rounds, 2.0 if arguments.quick else 10.0, cache)
    began = time.monotonic()
    for number, (name, elements) in enumerate(todo):
        if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
            print(f"out of time: {len(todo) - number} of {len(todo)} are left out", file=sys.stderr)
            return
        print(f"[{number + 1}/{len(todo)}] {name}, {elements:,} elements", file=sys.stderr, flush=True)
        yield from compare(name, elements, chosen, settings)
        libraries.release(arguments.device)


def origin(device: str) -> dict[str, Any]:
    """What the rows depend on, beside what every results file says."""
    return {
        "device": device,
        "gpu": measure.gpu() if device == "cuda" else None,
        "threads": thread_count(),
        "cache": measure.cache_bytes(device),
    }


def main(words: Sequence[str] | None = None) -> int:
    """0, or 1 where gpubce itself was wrong or has failed."""
    arguments = parse(words)
    if arguments.device == "cuda" and not gpubce.devices().gpus:
        raise SystemExit(f"there is no GPU to measure: {gpubce.devices().why_no_gpu}")
    given = origin(arguments.device)
    table, todo = work(arguments)
    document = measure.described({**given, "tests": arguments.tests, "table_size": table})
    document["rows"] = []
    where = None
    if arguments.output:
        name = given["gpu"]["name"] if given["gpu"] else "cpu"
        where = arguments.output / f"{measure.file_name(name)}{'-curves' * (arguments.only == 'curves')}.json"
    for row in measured(arguments, todo, given["cache"]):
        document["rows"].append(row)
        if where:  # A run that is stopped leaves what it has found.
            measure.save(document, where)
    if where:
        print(f"wrote {where}", file=sys.stderr)
    print(report.text(document))
    if reasons := report.left_out(document["rows"]):
        print("\nLeft out:\n" + "\n".join(f"* {reason}" for reason in reasons))
    ours = [row for row in document["rows"] if row["provider"].startswith("gpubce")]
    return int(any(row["status"] in ("wrong", "failed") for row in ours))
