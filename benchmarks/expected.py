"""What a provider has to give before it is timed: the case in float64. The tests compare it with the oracle.

The loss is the definition, not the package's formula.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Workload
from tests.tolerances import PEER

CHUNK = 1 << 20
"""Elements at a time: their arrays of float64 stay in the cache."""


def of_elements(predictions: np.ndarray, targets: np.ndarray, from_logits: bool) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient of each element, in float64."""
    z, y = predictions.astype(np.float64), targets.astype(np.float64)
    if from_logits:
        return y * np.logaddexp(0.0, -z) + (1.0 - y) * np.logaddexp(0.0, z), 1.0 / (1.0 + np.exp(-z)) - y
    return -y * np.log(z) - (1.0 - y) * np.log1p(-z), (z - y) / (z * (1.0 - z))


@dataclass(frozen=True)
class Expected:
    """The results of a case."""

    value: np.ndarray
    gradient: np.ndarray | None
    scale: float
    """What a gradient of 1 becomes in that of the mean."""
    real: str
    """The type of the predictions."""

    def problem(self, value: np.ndarray, gradient: np.ndarray | None) -> str:
        """What is wrong with these results, in words; "" if nothing is."""
        if value.shape != self.value.shape:
            return f"the loss has shape {value.shape} and should have {self.value.shape}"
        error = np.abs(value.astype(np.float64) - self.value)
        wrong = ~(error <= PEER[self.real] * (1.0 + np.abs(self.value))).ravel()
        if wrong.any():
            k = int(wrong.argmax())
            return f"the loss is {float(value.ravel()[k]):.9g} and should be {self.value.ravel()[k]:.9g}"
        if self.gradient is None:
            return ""
        if gradient is None or gradient.shape != self.gradient.shape:
            return f"there is no gradient of shape {self.gradient.shape}"
        for start in range(0, gradient.size, CHUNK):
            part = slice(start, start + CHUNK)
            found, true = gradient.ravel()[part].astype(np.float64), self.gradient.ravel()[part]
            wrong = ~(np.abs(found - true) <= PEER[self.real] * (self.scale + np.abs(true)))
            if wrong.any():
                k = int(wrong.argmax())
                return f"the gradient of element {start + k} is {found[k]:.9g} and should be {true[k]:.9g}"
        return ""


def expected(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> Expected:
    """The mean loss, of each label or row where the case says so, and its gradient."""
    predictions = arrays["predictions"]
    rows, row = len(predictions), max(1, predictions[:1].size)
    gradient = np.empty(predictions.shape) if workload.gradient else None

    def of_rows(start: int) -> tuple[np.ndarray, int]:
        part = slice(start, start + max(1, CHUNK // row))
        loss, slope = of_elements(predictions[part], arrays["targets"][part], workload.from_logits)
        counted = loss.size
        for name in ("weight", "mask"):
            if name in arrays:
                factor = arrays[name][part] if len(arrays[name]) == rows else arrays[name]
                loss, slope = loss * factor, slope * factor
        if "mask" in arrays:
            counted = int(np.count_nonzero(np.broadcast_to(arrays["mask"], predictions.shape)[part]))
        if gradient is not None:
            gradient[part] = slope
        return loss.sum(axis=workload.axis), counted

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(of_rows, range(0, rows, max(1, CHUNK // row))))
    totals = [total for total, _ in parts]
    total = np.concatenate(totals) if workload.axis == 1 else sum(totals)
    count = {0: rows, 1: row}.get(workload.axis, sum(counted for _, counted in parts))
    if gradient is not None:
        gradient /= count
    value = np.asarray(total / count)
    return Expected(value, gradient, 1.0 / count, predictions.dtype.name)
