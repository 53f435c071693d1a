"""The bins of histograms of logits: where they lie, and in what steps they count.

The bins are equally wide on the logit scale, from -LIMIT to LIMIT; the first and the last hold what lies beyond. A
click model keeps all probabilities below 0.05, which is one bin of twenty on the probability scale.

A sample adds integers, so the order of additions changes nothing and histograms merge exactly. A weight counts in
steps of :func:`quantum`, which is a power of two, 2^-24 of the largest weight or less.
"""

import math

import numpy as np

LIMIT = 16.0
"""sigmoid(-16) = 1.1e-7."""

SPECIAL = 2
"""Pairs of cells after those of the bins: predictions that are NaN; then samples that are not counted or invalid, and
samples whose weight is above the maximum."""

SMALLEST, LARGEST = 32, 65_536
"""Numbers of bins."""

QUANTUM_BITS = 24

MOST_ELEMENTS = 1 << (64 - QUANTUM_BITS)
"""So many elements of the largest weight fit into one cell, an int64 that is read as a uint64: 1.1e12."""


def cells(bins: int) -> int:
    """How many cells the histogram of one label has: for each bin and special place one of negatives and one of
    positives.

    >>> cells(4096)
    8196
    """
    return 2 * (bins + SPECIAL)


def quantum(max_weight: float) -> float:
    """What 1 in a cell stands for.

    >>> quantum(1.0) == quantum(0.7) == 2.0**-24
    True
    """
    fraction, exponent = math.frexp(max_weight)
    return math.ldexp(1.0, exponent - (fraction == 0.5) - QUANTUM_BITS)


def edges(bins: int) -> np.ndarray:
    """The logits between the bins, and the two that limit the ends.

    >>> edges(32)[:3]
    array([-16., -15., -14.])
    """
    return np.linspace(-LIMIT, LIMIT, bins + 1)
