"""Loss and gradient of float32 logits on the CPU, beside PyTorch and beside the time of reading the same arrays.

    python -m benchmarks.cpu [--elements N] [--output DIRECTORY]

Results are compared before they are timed. All rows use the same number of threads.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
import torch

import gpubce
from benchmarks import measure
from gpubce.adapters.torch import binary_cross_entropy_with_logits as drop_in
from gpubce.backends.cpu.launch import thread_count


@numba.njit(nogil=True, fastmath=True)
def _read(one, two):
    """The sum of both arrays: as fast as they can be read."""
    total = np.float32(0)
    for k in range(one.size):
        total += one[k] + two[k]
    return total


def compare(elements: int, rounds: int) -> dict:
    """The median seconds of each row."""
    threads = thread_count()
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 3.0, elements).astype(np.float32)
    targets = (rng.random(elements) < 0.3).astype(np.float32)
    tensor, labels = torch.from_numpy(logits), torch.from_numpy(targets)
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    gradient = np.empty_like(logits)

    def forward(function):
        with torch.no_grad():
            return function(tensor, labels)

    def both(function):
        x = tensor.detach().requires_grad_()
        value = function(x, labels)
        value.backward()
        return value.detach(), x.grad

    eager = torch.nn.functional.binary_cross_entropy_with_logits
    compiled = torch.compile(eager)
    theirs, their_gradient = both(eager)
    for ours, our_gradient in (loss.value_and_grad(logits, targets), both(drop_in), both(compiled)):
        np.testing.assert_allclose(float(ours), theirs.item(), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(our_gradient), their_gradient.numpy(), atol=3e-7 / elements)

    edges = [elements * k // threads for k in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:

        def read():
            parts = pairwise(edges)
            return sum(pool.map(lambda part: _read(logits[slice(*part)], targets[slice(*part)]), parts))

        return measure.seconds(
            {
                "read": read,
                "gpubce loss": lambda: loss(logits, targets),
                "torch loss": lambda: forward(eager),
                "torch.compile loss": lambda: forward(compiled),
                "gpubce loss and gradient": lambda: loss.value_and_grad(logits, targets, grad_out=gradient),
                "gpubce loss and gradient, drop-in": lambda: both(drop_in),
                "torch loss and gradient": lambda: both(eager),
                "torch.compile loss and gradient": lambda: both(compiled),
            },
            rounds,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the results as JSON into this directory")
    arguments = parser.parse_args()
    times = compare(arguments.elements, arguments.rounds)
    peers = "torch", "torch.compile"
    rows = [("", "ms", "of reading", *(f"{peer} / gpubce" for peer in peers))]
    for name, time in times.items():
        kind = name.removeprefix("gpubce ").removesuffix(", drop-in")
        own = name.startswith("gpubce")
        ratios = (f"{times[f'{peer} {kind}'] / time:.1f}" if own else "" for peer in peers)
        rows.append((name, f"{1e3 * time:.2f}", f"{time / times['read']:.2f}", *ratios))
    print(f"{arguments.elements:,} float32 logits and targets, {thread_count()} threads, torch {torch.__version__}")
    print(measure.table(rows))
    if arguments.output:
        results = {"elements": arguments.elements, "threads": thread_count(), "seconds": times}
        measure.write(results, arguments.output / "cpu.json")


if __name__ == "__main__":
    main()
