"""How long a process takes until its first result: importing gpubce, and the first call, with kernels on disk.

    python -m benchmarks.start [--rounds N] [--output DIRECTORY]

Each round is a process of its own; the first, which compiles, and writes Python's bytecode, is shown by itself. Where
there is a GPU, the first call on it is measured too. Times are those beyond Python and NumPy, unless said otherwise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from gpubce.backends.devices import find_gpus

GOALS = {"import gpubce": 0.05, "both on the CPU": 1.0, "both on CUDA": 2.0}

PROGRAM = """
import json, sys, time
start = time.perf_counter()
import numpy as np
numpy = time.perf_counter()
import gpubce
imported = time.perf_counter()
x, y = np.float32([0.5, -1.0, 2.0]), np.array([True, False, True])
gpubce.binary_cross_entropy_with_logits(x, y, device=sys.argv[1])
called = time.perf_counter()
place = {"cpu": "the CPU", "cuda": "CUDA"}[sys.argv[1]]
print(json.dumps({
    "import numpy": numpy - start,
    "import gpubce": imported - numpy,
    f"first call on {place}": called - imported,
    f"both on {place}": called - numpy,
}))
"""


def process(device: str, folder: str) -> dict[str, float]:
    """The seconds of each step in a new process."""
    changed = {"NUMBA_CACHE_DIR": folder, "PYTHONPYCACHEPREFIX": folder}
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | changed
    command = [sys.executable, "-c", PROGRAM, device]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="write the results as JSON into this directory")
    arguments = parser.parse_args()
    rows = [("", "first process, ms", "later, ms", "fastest, ms", "goal, ms")]
    seconds = {}
    gpus, reason = find_gpus()
    for device in ("cpu", *(["cuda"] if gpus else [])):
        with tempfile.TemporaryDirectory() as folder:
            first = process(device, folder)
            later = [process(device, folder) for _ in range(arguments.rounds)]
        for name, time in first.items():
            times = [each[name] for each in later]
            seconds[name] = {"first": time, "later": statistics.median(times), "fastest": min(times)}
            goal = f"{1e3 * GOALS[name]:.0f}" if name in GOALS else ""
            rows.append((name, *(f"{1e3 * each:.0f}" for each in seconds[name].values()), goal))
    print(measure.table(rows))
    if not gpus:
        print(f"not on CUDA: {reason}")
    if arguments.output:
        measure.write({"rounds": arguments.rounds, "seconds": seconds}, arguments.output / "start.json")


if __name__ == "__main__":
    main()
