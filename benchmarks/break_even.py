"""The loss of host arrays on the CPU and on a GPU, by their size: from where on sending them to the GPU pays.

python -m benchmarks.break_even [--output DIRECTORY]
"""

import argparse
from pathlib import Path

import numpy as np

import gpubce
from benchmarks import measure
from gpubce.backends.cpu.launch import thread_count

SIZES = tuple(1 << power for power in range(16, 27, 2))


def compare(elements: int, rounds: int) -> dict[str, float]:
    """The median seconds on each device."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(elements, dtype=np.float32)
    targets = (rng.random(elements) < 0.3).astype(np.float32)
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    if loss(logits, targets, device="cpu") != loss(logits, targets, device="cuda"):
        raise SystemExit("the GPU's bits differ from the CPU's: nothing is timed")
    return measure.seconds(
        {
            "cpu": lambda: loss(logits, targets, device="cpu"),
            "cuda": lambda: loss(logits, targets, device="cuda"),
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the results as JSON into this directory")
    arguments = parser.parse_args()
    if not gpubce.devices().gpus:
        raise SystemExit(f"there is no GPU to measure: {gpubce.devices().why_no_gpu}")
    found = {elements: compare(elements, arguments.rounds) for elements in SIZES}
    rows = [("elements", "CPU, ms", "GPU, ms")]
    rows += [(f"{n:,}", f"{1e3 * times['cpu']:.3f}", f"{1e3 * times['cuda']:.3f}") for n, times in found.items()]
    print(f"float32 logits and targets in NumPy, {thread_count()} threads")
    print(measure.table(rows))
    if arguments.output:
        gpu = measure.gpu()
        results = {"gpu": gpu, "threads": thread_count(), "seconds": found}
        measure.write(results, arguments.output / f"break-even-{measure.file_name(gpu['name'])}.json")


if __name__ == "__main__":
    main()
