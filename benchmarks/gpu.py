"""Loss and gradient of float32 logits on a GPU, beside PyTorch and beside a device copy that moves the same bytes.

    python -m benchmarks.gpu [--elements N] [--output DIRECTORY]

Results are compared before they are timed. Times are of CUDA events around one pass; inputs rotate, so that no pass
finds its data in the last-level cache. The last rows are what the choice of a device needs: the time of a call on host
arrays, on the CPU and on the GPU.
"""

import argparse
from pathlib import Path

import cupy
import numpy as np

import gpubce
from benchmarks import measure

SETS = 3
"""Input sets to rotate through."""


def event_seconds(functions: dict, rounds: int) -> dict[str, float]:
    """The median time of each function by CUDA events; functions take the number of the turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    for turn in range(rounds + 2):
        for name, function in functions.items():
            start.record()
            function(turn)
            stop.record()
            stop.synchronize()
            if turn > 1:
                times[name].append(1e-3 * cupy.cuda.get_elapsed_time(start, stop))
    return {name: float(np.median(values)) for name, values in times.items()}


def torch_rows(logits: list, targets: list) -> dict:
    """PyTorch's rows on the same memory, or none where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    function = torch.nn.functional.binary_cross_entropy_with_logits
    x = [torch.from_dlpack(array).requires_grad_() for array in logits]
    y = [torch.from_dlpack(array) for array in targets]
    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)

    def forward(turn):
        with torch.no_grad(), torch.cuda.stream(stream):
            return function(x[turn % SETS], y[turn % SETS])

    def both(turn):
        with torch.cuda.stream(stream):
            x[turn % SETS].grad = None
            function(x[turn % SETS], y[turn % SETS]).backward()

    rows = {"torch loss": forward, "torch loss and gradient": both}
    compiled = torch.compile(function)

    def compiled_forward(turn):
        with torch.no_grad(), torch.cuda.stream(stream):
            return compiled(x[turn % SETS], y[turn % SETS])

    def compiled_both(turn):
        with torch.cuda.stream(stream):
            x[turn % SETS].grad = None
            compiled(x[turn % SETS], y[turn % SETS]).backward()

    try:
        compiled_both(0)
    except Exception as error:  # torch.compile needs a compiler, which not every machine has.
        print(f"torch.compile cannot be measured: {type(error).__name__}")
        return rows
    return rows | {"torch.compile loss": compiled_forward, "torch.compile loss and gradient": compiled_both}


def compare(elements: int, rounds: int) -> dict[str, float]:
    """The median seconds of each row."""
    rng = cupy.random.default_rng(0)
    logits = [3 * rng.standard_normal(elements, dtype=cupy.float32) for _ in range(SETS)]
    targets = [(rng.random(elements, dtype=cupy.float32) < 0.3).astype(cupy.float32) for _ in range(SETS)]
    gradient = cupy.empty_like(logits[0])
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    few = 1 << 20
    on_host = loss.value_and_grad(logits[0][:few].get(), targets[0][:few].get())
    on_gpu = loss.value_and_grad(logits[0][:few], targets[0][:few])
    for one, two in zip(on_host, on_gpu, strict=True):
        if not np.array_equal(np.asarray(one), two.get()):
            raise SystemExit("the GPU's bits differ from the CPU's: nothing is timed")
    half = elements // 2
    return event_seconds(
        {
            # A copy of n floats reads n and writes n: as many bytes as reading logits and targets.
            "copy of the bytes of a loss": lambda turn: cupy.copyto(gradient, logits[turn % SETS]),
            "gpubce loss": lambda turn: loss(logits[turn % SETS], targets[turn % SETS]),
            "copy of the bytes of both": lambda turn: (
                cupy.copyto(gradient, logits[turn % SETS]),
                cupy.copyto(gradient[:half], targets[turn % SETS][:half]),
            ),
            "gpubce loss and gradient": lambda turn: loss.value_and_grad(
                logits[turn % SETS], targets[turn % SETS], grad_out=gradient
            ),
            **torch_rows(logits, targets),
        },
        rounds,
    )


def break_even(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a loss of host arrays on the CPU and on the GPU, by the number of elements."""
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    found = {}
    for power in range(16, 27, 2):
        rng = np.random.default_rng(power)
        logits = rng.standard_normal(1 << power, dtype=np.float32)
        targets = (rng.random(1 << power) < 0.3).astype(np.float32)
        found[str(1 << power)] = measure.seconds(
            {
                "cpu": lambda x=logits, y=targets: loss(x, y, device="cpu"),
                "cuda": lambda x=logits, y=targets: loss(x, y, device="cuda"),
            },
            rounds,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 28)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--tests", default="", help="what the tests said, for the results file")
    arguments = parser.parse_args()
    if not gpubce.devices().gpus:
        raise SystemExit(f"there is nothing to measure: {gpubce.devices().why_no_gpu}")
    times = compare(arguments.elements, arguments.rounds)
    host = break_even(5)
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    rows = [("", "ms", "GB/s")]
    for row, time in times.items():
        arrays = 3 if "gradient" in row or "both" in row else 2
        rows.append((row, f"{1e3 * time:.3f}", f"{4e-9 * arrays * arguments.elements / time:.0f}"))
    print(f"{name}, {arguments.elements:,} float32 logits and targets")
    print(measure.table(rows))
    print(f"loss / copy: {times['gpubce loss'] / times['copy of the bytes of a loss']:.3f}")
    print(f"loss and gradient / copy: {times['gpubce loss and gradient'] / times['copy of the bytes of both']:.3f}")
    results = {
        "device": name,
        "tests": arguments.tests,
        "elements": arguments.elements,
        "seconds": times,
        "host arrays": host,
    }
    measure.write(results, arguments.output / f"{name.replace(' ', '-').lower()}.json")


if __name__ == "__main__":
    main()
