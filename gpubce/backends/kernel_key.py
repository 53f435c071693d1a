"""What identifies a compiled kernel: the recipe, where its arrays lie, and the plan."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gpubce.made_once import made_once
from gpubce.spec.geometry import STRIDED
from gpubce.spec.job import Settlement
from gpubce.spec.plan import PLAN, Plan
from gpubce.spec.quantities import FIELDS, needed
from gpubce.spec.recipe import Recipe

FEW_SUMS, STRIP = 8, 128
"""So many sums fit into the caches of a CPU as they come, and so many lanes of more."""

CACHE_LINE = 64

QUAD = 4
"""How many neighbouring elements a CUDA thread has."""

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

    def __hash__(self) -> int:
        return self._hash

    @made_once
    def _hash(self) -> int:
        """Each call looks its kernel up: 0.2 us, and 4 where all fields are hashed anew."""
        return hash((self.recipe, self.layouts, self.dimensions, self.plan, self.vector, self.shared))

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

    @made_once
    def strip(self) -> int:
        """The lanes for which a CPU thread does all rows of a block before it goes on to the next lanes.

        Each lane adds its rows in order either way. With all lanes at once, the accumulators of 14 sums are 112 KiB and
        took 8.9 ns an element; in strips they stay in the L1 cache, 3.1 ns. Few sums read ahead better at once: 10^7
        losses take 3.2 ms, and 4.3 in strips.
        """
        return self.plan.lanes if len(self.recipe.sums) <= FEW_SUMS else min(STRIP, self.plan.lanes)

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
        """The bytes of a CPU thread's scratch that hold the accumulators of one sum."""
        return 16 * self.plan.lanes + self._apart

    @property
    def row(self) -> int:
        """The bytes of one row of 8-byte cells in a CPU thread's scratch."""
        return 8 * self.plan.lanes + self._apart

    @property
    def _apart(self) -> int:
        """The bytes left free behind the accumulators of a sum, and behind a row. Without them the same lane of each
        lies a multiple of 4 KiB from the others, in one set of the L1 cache: 10^7 losses with 8 sums took 8.5 and not
        7.4 ms."""
        return 5 * CACHE_LINE if self.strip == self.plan.lanes else 8 * self.strip + CACHE_LINE

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
        return self.per_sum * max(1, len(self.recipe.sums)) + self.row * self.position(role)

    @property
    def fields(self) -> tuple[str, ...]:
        """What a CPU thread keeps of each sample of a row, in the compute type, until all of them are there: then it
        makes float64 sums of it.

        A loop without float64 has twice as many lanes in a register: with AVX-512 and two threads, 2^24 losses take
        5.6 and not 9.0 ms.
        """
        recipe = self.recipe
        used = {field for name in recipe.sums for field in needed(name)}
        if recipe.sums and (recipe.mask is not None or recipe.ignore is not None or not used):
            used.add("counted")
        return tuple(field for field in FIELDS if field in used)

    @property
    def staged_at(self) -> int:
        """The byte offset of the rows in a CPU thread's scratch that hold them."""
        return self.per_sum * max(1, len(self.recipe.sums)) + self.row * len(self.layouts)

    @made_once
    def placing(self) -> int:
        """The byte offset of the rows in a CPU thread's scratch that hold what goes into the histogram."""
        return self.staged_at + self.row * len(self.fields)


class SettleKey(NamedTuple):
    """What a settling kernel does: see :class:`gpubce.spec.job.Settlement`."""

    storage: str
    makes_scale: bool
    divides_by_sum: bool
    factor_storage: str | None

    @classmethod
    def of(cls, s: Settlement) -> tuple["SettleKey", tuple]:
        """The key and the kernel's arguments."""
        factor_storage = s.factor_storage if s.factor else None
        key = cls(s.storage, s.numerator is None, s.denominator is not None, factor_storage)
        positions = (s.outputs, s.states, s.result, s.numerator or 0, s.denominator or 0)
        numbers = (s.divisor, s.least, s.grad_scale, s.unit)
        return key, (*positions, *(float(number) for number in numbers), s.factor)
