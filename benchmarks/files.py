"""gpubce evaluate on files, beside the loss alone of the same arrays in memory.

    python -m benchmarks.files [--rows N] [--rounds N] [--device cuda] [--output DIRECTORY]

float16 predictions and uint8 targets (float32 in Parquet, where few programs write halves), written into a temporary
folder. They are read from the system's cache of files unless it is smaller than they are. All rows use the same number
of threads.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

import gpubce
from benchmarks import measure
from gpubce.backends.cpu.launch import thread_count
from gpubce.cli import main as command

SHARDS = 8


def evaluate(device: str, *arguments: object) -> Callable[[], None]:
    """What runs the command and shows nothing."""

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if command(["evaluate", *map(str, arguments), "--no-progress", "--device", device]):
                raise SystemExit("gpubce evaluate has failed")

    return run


def compare(rows: int, rounds: int, device: str, folder: Path) -> dict[str, float]:
    """The median seconds of each way."""
    rng = np.random.default_rng(0)
    predictions = rng.random(rows, np.float32).clip(0.001, 0.999).astype(np.float16)
    targets = (rng.random(rows, np.float32) < 0.3).astype(np.uint8)
    p, y = folder / "p.npy", folder / "y.npy"
    np.save(p, predictions)
    np.save(y, targets)
    for name in ("p", "y", "parquet"):
        (folder / name).mkdir()
    for k, (one, two) in enumerate(
        zip(np.array_split(predictions, SHARDS), np.array_split(targets, SHARDS), strict=True)
    ):
        np.save(folder / "p" / f"{k}.npy", one)
        np.save(folder / "y" / f"{k}.npy", two)
        table = pyarrow.table({"prediction": one.astype(np.float32), "target": two})
        pyarrow.parquet.write_table(table, folder / "parquet" / f"{k}.parquet")
    wide = predictions.astype(np.float32)
    loss = gpubce.BinaryCrossEntropy()
    return measure.seconds(
        {
            "float16 in memory, the loss alone": lambda: loss(predictions, targets, device=device),
            ".npy, the loss alone": evaluate(device, p, y, "--metrics", "loss"),
            f"{SHARDS} .npy, the loss alone": evaluate(device, folder / "p", folder / "y", "--metrics", "loss"),
            ".npy, the usual figures": evaluate(device, p, y),
            "float32 in memory, the loss alone": lambda: loss(wide, targets, device=device),
            f"{SHARDS} .parquet, the loss alone": evaluate(device, folder / "parquet", "--metrics", "loss"),
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1 << 27)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="write the results as JSON into this directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = compare(arguments.rows, arguments.rounds, arguments.device, Path(folder))
    rows = [("", "million rows/s", "of memory")]
    memory = 0.0
    for name, time in times.items():
        memory = time if "in memory" in name else memory
        rows.append((name, f"{arguments.rows / time / 1e6:.0f}", f"{memory / time:.0%}"))
    print(f"{arguments.rows:,} rows, {thread_count()} threads, on {arguments.device}")
    print(measure.table(rows))
    if arguments.output:
        results = {
            "elements": arguments.rows,
            "device": arguments.device,
            "threads": thread_count(),
            "seconds": times,
        }
        measure.write(results, arguments.output / f"files-{arguments.device}.json")


if __name__ == "__main__":
    main()
