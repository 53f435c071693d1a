"""The cases: each is one of the tests' (tests/cases.py), of ordinary numbers, with a name and a width."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tests.cases import Case, aligned_empty

LOGITS = Case((("from_logits", True),), edges="none", hard=True)
SOFT = replace(LOGITS, hard=False)
BY_LABEL = Case((("axis", 0), ("from_logits", True)), target_type="uint8", edges="none")
BY_ROW = replace(BY_LABEL, options=(("axis", 1), ("from_logits", True)))
PROBABILITIES = Case(target_type="uint8", edges="none")


@dataclass(frozen=True)
class Workload:
    """A case of which the number of elements is still open."""

    case: Case
    labels: int | None = None
    """The columns of a matrix; None for a vector."""
    gradient: bool = False
    """The value and the gradient; else the value alone."""
    into: bool = False
    """Whether the gradient goes into an array that is there already. A new one costs the system as much as the pass."""

    def arrays(self, elements: int) -> dict[str, np.ndarray]:
        """The arguments of a call, with at most so many elements."""
        shape = (elements,) if self.labels is None else (max(1, elements // self.labels), self.labels)
        return replace(self.case, shape=shape).arrays

    @property
    def from_logits(self) -> bool:
        return dict(self.case.options).get("from_logits", False)

    @property
    def axis(self) -> int | None:
        return dict(self.case.options).get("axis")


def typed(case: Case, name: str) -> Case:
    """The case with predictions of that type and uint8 targets."""
    return replace(case, input_type=name, target_type="uint8")


CASES = {
    "loss": Workload(LOGITS),
    "loss and gradient": Workload(LOGITS, gradient=True),
    "loss and gradient, into an array": Workload(LOGITS, gradient=True, into=True),
    "loss, soft targets": Workload(SOFT),
    "loss and gradient, soft targets": Workload(SOFT, gradient=True),
    "loss, uint8 targets": Workload(typed(LOGITS, "float32")),
    "loss, float16": Workload(typed(LOGITS, "float16")),
    "loss, bfloat16": Workload(typed(LOGITS, "bfloat16")),
    "loss and gradient, bfloat16": Workload(typed(LOGITS, "bfloat16"), gradient=True),
    "loss, float64": Workload(typed(LOGITS, "float64")),
    "loss of probabilities": Workload(PROBABILITIES),
    "loss of each label, (n, 1000)": Workload(BY_LABEL, labels=1000),
    "loss of each label, (n, 3)": Workload(BY_LABEL, labels=3),
    "loss of each row, (n, 1000)": Workload(BY_ROW, labels=1000),
    "loss of each row, (n, 3)": Workload(BY_ROW, labels=3),
    "loss, weight of each row, (n, 1000)": Workload(replace(LOGITS, weight="column"), labels=1000),
    "loss, mask": Workload(replace(LOGITS, mask="full")),
}
"""Predictions are float32 logits and targets float32, all 0 or 1, where a name says nothing else; half of the soft ones
lie between. Three types have uint8 targets, and so have probabilities, labels and rows. A loss is the mean, along the
rows where it is of each label, and along the labels where it is of each row."""

CURVES = ("loss", "loss and gradient")
"""The cases that are timed at many sizes."""

QUICK = ("loss", "loss and gradient", "loss of probabilities", "loss of each label, (n, 3)", "loss, mask")

MOST_SETS = 16
"""Smaller arrays than a sixteenth of the cache are found in it, as those that a program has just made."""


def input_sets(arrays: dict[str, np.ndarray], cache: int) -> list[dict[str, np.ndarray]]:
    """The arrays and copies of them: so many that after a turn through all of them none is left in a cache of so many
    bytes. Copies begin at multiples of 64 bytes, as the arrays do."""
    size = max(1, sum(array.nbytes for array in arrays.values()))
    count = min(MOST_SETS, max(2, -(-2 * cache // size)))
    copies: list[dict[str, np.ndarray]] = [arrays]
    for _ in range(count - 1):
        copies.append({})
        for name, array in arrays.items():
            copies[-1][name] = aligned_empty(array.shape, array.dtype)
            copies[-1][name][...] = array
    return copies


def curve_sizes(largest: int) -> Sequence[int]:
    """2^6, 2^8, ... as far as the largest."""
    return [1 << power for power in range(6, largest.bit_length(), 2)]
