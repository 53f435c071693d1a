"""What identifies a compiled kernel: the recipe, where its arrays lie, and the plan."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gpubce.spec.geometry import STRIDED
from gpubce.spec.job import Settlement
from gpubce.spec.plan import PLAN, Plan
from gpubce.spec.recipe import HELD_NARROW, Recipe

FEW_SUMS = 8
"""So many fit into the caches of a CPU as they come."""

TILE_BYTES, LEAST_TILE = 2**14, 128
"""Reduced along the last axis, 2^24 losses of shape (n, 1024) took 120 ms with tiles of 1024 outputs, whose lines fall
into one set of the cache, and take 44."""


@dataclass(frozen=True)
class KernelKey:
    """``layouts`` and positions follow the kernel's arrays: the recipe's roles, then its outputs."""

    recipe: Recipe
    layouts: tuple[str, ...]
    dimensions: int = 1
    plan: Plan = PLAN
    vector: int = 1
    """How many neighbouring elements one CUDA thread loads at once; 1 where an array is not aligned."""
    shared: bool = False
    """Whether several CPU threads add to one histogram."""

    @property
    def zero(self) -> np.floating:
        """0 in the compute type."""
        return np.dtype(self.recipe.compute).type(0)

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the kernel's arrays."""
        return self.recipe.roles + self.recipe.outputs

    def position(self, role: str) -> int:
        """Which of the kernel's addresses is that array's."""
        return self.arrays.index(role)

    def slot(self, role: str) -> int:
        """Which of the strided arrays it is."""
        return self.layouts[: self.position(role)].count(STRIDED)

    @property
    def strip(self) -> int:
        """The lanes for which a CPU thread does all rows of a block before it goes on to the next lanes.

        Each lane adds its rows in order either way. With all lanes at once, the accumulators of 14 sums are 112 KiB and
        took 8.9 ns an element; in strips they stay in the L1 cache, 3.1 ns. 8 sums took 2.3 ns at once and 2.5 in
        strips.
        """
        return self.plan.lanes if len(self.recipe.sums) <= FEW_SUMS else min(128, self.plan.lanes)

    def tile(self, geometry: tuple[int, ...]) -> int:
        """The outputs that a CPU thread works on at once, at most, in reductions along axes.

        Where predictions are strided, neighbouring outputs may lie far apart. The cache lines of a tile are still in
        the L1 cache when the next reduced elements are read from them.
        """
        if "prediction" not in self.recipe.roles or self.layouts[self.position("prediction")] != STRIDED:
            return self.plan.lanes
        apart = max(1, abs(geometry[self.dimensions * (2 + self.slot("prediction")) - 1]))
        return min(max(TILE_BYTES // apart // 64 * 64, LEAST_TILE), self.plan.lanes)

    @property
    def per_sum(self) -> int:
        """The bytes of a CPU thread's scratch that hold the accumulators of one sum. Those of a strip lie beside each
        other in a cache, and not in one set of it."""
        pad = 0 if self.strip == self.plan.lanes else 8 * self.strip
        return 16 * self.plan.lanes + pad

    def parts(self, most: int) -> Iterator[tuple[int, "KernelKey"]]:
        """The kernels that do this one's work, each with at most so many of the sums: (the position of its first sum,
        the kernel). They read the same arrays; the first one alone fills the histogram. Only states have so
        many sums, and they have no outputs."""
        sums = self.recipe.sums
        if len(sums) <= most:
            yield 0, self
            return
        share = -(-len(sums) // -(-len(sums) // most))
        for first in range(0, len(sums), share):
            bins = 0 if first else self.recipe.bins
            yield first, replace(self, recipe=replace(self.recipe, sums=sums[first : first + share], bins=bins))

    def staging(self, role: str) -> int:
        """The byte offset of its row in a CPU thread's scratch."""
        return self.per_sum * max(1, len(self.recipe.sums)) + 8 * self.plan.lanes * self.position(role)

    @property
    def narrow(self) -> bool:
        """Whether a CPU thread keeps a row's values in the compute type before it adds them as float64.

        A loop without float64 has twice as many lanes in a register: with AVX-512 and two threads, 2^24 losses take
        5.6 and not 9.0 ms.
        """
        sums = self.recipe.sums
        return self.recipe.compute == "float32" and bool(sums) and set(sums) <= set(HELD_NARROW)

    @property
    def narrowed(self) -> int:
        """The byte offset of the rows in a CPU thread's scratch that hold such values."""
        return self.per_sum * max(1, len(self.recipe.sums)) + 8 * self.plan.lanes * len(self.layouts)

    @property
    def placing(self) -> int:
        """The byte offset of the rows in a CPU thread's scratch that hold what goes into the histogram."""
        return self.narrowed + 8 * self.plan.lanes * len(self.recipe.sums) * self.narrow


@dataclass(frozen=True)
class SettleKey:
    """What a settling kernel does: see :class:`gpubce.spec.job.Settlement`."""

    storage: str
    makes_scale: bool
    divides_by_sum: bool
    factor_storage: str | None

    @classmethod
    def of(cls, settlement: Settlement) -> tuple["SettleKey", tuple]:
        """The key and the kernel's arguments."""
        s = settlement
        factor_storage = s.factor_storage if s.factor else None
        key = cls(s.storage, s.numerator is None, s.denominator is not None, factor_storage)
        positions = (s.outputs, s.states, s.result, s.numerator or 0, s.denominator or 0)
        numbers = (s.divisor, s.least, s.grad_scale, s.unit)
        return key, (*positions, *(float(number) for number in numbers), s.factor)
