"""What a call on 1,024 elements of host memory takes beside PyTorch's: there the calls are the cost, not the loss.

    python -m benchmarks.small_calls [--rounds N] [--output DIRECTORY]

Rounds are interleaved, and the median call is shown. PyTorch's threads wait as they do by default; the other benchmarks
have them sleep.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

os.environ.pop("OMP_WAIT_POLICY", None)  # Read when torch is imported.
import torch
import torch.nn.functional as F

from benchmarks import measure
from gpubce import BinaryCrossEntropy, binary_cross_entropy_with_logits
from gpubce.adapters import torch as drop_in

ELEMENTS = 1024

CALLS = 200
"""Of each in a round."""


def ways() -> dict[str, dict[str, Callable[[], object]]]:
    """For each result, the ways to it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=ELEMENTS).astype(np.float32)
    y = (rng.random(ELEMENTS) < 0.3).astype(np.float32)
    logits, targets = torch.from_numpy(x), torch.from_numpy(y)
    room = np.empty_like(x)
    leaf = logits.clone().requires_grad_()
    loss = BinaryCrossEntropy(from_logits=True)

    def backward(function: Callable[..., torch.Tensor]) -> None:
        leaf.grad = None
        function(leaf, targets).backward()

    return {
        "loss": {
            "PyTorch": lambda: F.binary_cross_entropy_with_logits(logits, targets),
            "gpubce, arrays": lambda: binary_cross_entropy_with_logits(x, y),
            "gpubce, tensors": lambda: binary_cross_entropy_with_logits(logits, targets),
            "gpubce.adapters.torch": lambda: drop_in.binary_cross_entropy_with_logits(logits, targets),
        },
        "loss and gradient": {
            "PyTorch": lambda: backward(F.binary_cross_entropy_with_logits),
            "gpubce, arrays": lambda: loss.value_and_grad(x, y),
            "gpubce, arrays, grad_out=": lambda: loss.value_and_grad(x, y, grad_out=room),
            "gpubce, tensors": lambda: loss.value_and_grad(logits, targets),
            "gpubce.adapters.torch": lambda: backward(drop_in.binary_cross_entropy_with_logits),
        },
    }


def median(call: Callable[[], object]) -> float:
    """The seconds of the median call."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="write the results as JSON into this directory")
    arguments = parser.parse_args()
    calls = {(result, way): call for result, each in ways().items() for way, call in each.items()}
    rounds = [{name: median(call) for name, call in calls.items()} for _ in range(arguments.rounds + 1)][1:]
    rows, seconds = [("", "", "us", "PyTorch's time")], {}
    for (result, way), _ in calls.items():
        time = statistics.median(each[result, way] for each in rounds)
        ratio = statistics.median(each[result, way] / each[result, "PyTorch"] for each in rounds)
        seconds[f"{result}: {way}"] = {"median": time, "of PyTorch": ratio}
        rows.append((result, way, f"{1e6 * time:.1f}", f"{ratio:.2f}"))
    print(measure.table(rows))
    if arguments.output:
        measure.write(
            {"elements": ELEMENTS, "rounds": arguments.rounds, "seconds": seconds},
            arguments.output / "small-calls.json",
        )


if __name__ == "__main__":
    main()
