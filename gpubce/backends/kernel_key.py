"""What identifies a compiled kernel: the recipe, where its arrays lie, and the plan."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpubce.made_once import made_once
from gpubce.spec.geometry import FLAT, SCALAR, STRIDED
from gpubce.spec.job import Settlement
from gpubce.spec.plan import PLAN, Plan
from gpubce.spec.precision import ITEMSIZE
from gpubce.spec.primitives import TURNED
from gpubce.spec.quantities import FIELDS, needed
from gpubce.spec.recipe import Recipe

FEW_SUMS, STRIP = 4, 128
"""What is kept for so many sums fits into the caches of a CPU as it comes; of more, so many lanes do. Kernels of more
sums than that also add one step after the other, and so compile sooner."""

CACHE_LINE = 64

QUAD = 4
"""How many neighbouring elements a CUDA thread has."""

TILE_BYTES, LEAST_TILE = 2**12, 16
"""Outputs of a tile lie in so many bytes of a scattered array, or are so few. Reduced along the last axis, 2^24 losses
of shape (n, 1024) took 10.8 ms with tiles of 128 outputs at least and take 7.9, those of (n, 16) 11.7 with 16 KiB and
take 7.8."""

ROWS, PIECE = 16, 2**18
"""Of a transposed array, so many rows are brought at once, but not more than so many elements. 2^24 losses of the
transpose of (16384, 1000) took 57 ms with 2^16 elements at most, and 13 with 2^17 or with 8 rows; they take 10."""

STEPS, FEW_OUTPUTS = 4, 7
"""So many reduced elements are added to the sum of an output before the next output's is loaded: on one thread, 2^24
losses of 16 labels take 5.7 ms, and 6.6 with two. Of so few outputs, runs are added side by side: an evaluator of 4
million rows of 3 labels takes 11.7 ms, and 37 when labels were the lanes."""


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
    few: bool = False
    """Whether a CPU adds runs side by side, in reductions along axes."""

    def __hash__(self) -> int:
        return self._hash

    @made_once
    def _hash(self) -> int:
        """Each call looks its kernel up: 0.2 us, and 4 where all fields are hashed anew."""
        return hash((self.recipe, self.layouts, self.dimensions, self.plan, self.vector, self.shared, self.few))

    @property
    def zero(self) -> np.floating:
        """0 in the compute type."""
        return np.dtype(self.recipe.compute).type(0)

    @property
    def itemsize(self) -> int:
        """The bytes of a number of the compute type."""
        return ITEMSIZE[self.recipe.compute]

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

        Each lane adds its rows in order either way. In strips, what is kept of a row and its sums stay in the L1 cache:
        the usual figures of an evaluator take 5.9 and not 6.4 ms for 10^7 samples, all metrics 9.8 and not 10.4. Few
        sums read ahead better at once: 10^7 losses took 3.2 ms, and 4.3 in strips.
        """
        return self.plan.lanes if len(self.recipe.sums) <= FEW_SUMS else min(STRIP, self.plan.lanes)

    @made_once
    def mixed(self) -> bool:
        """Whether numbers of 64 bits are among the float32 of a row, in a loop of a CPU: what is added to a histogram
        in parts, or an array's. With as many lanes as a register holds of those, losses of int64 or float64 targets
        took 1.3 to 1.7 times as long."""
        recipe = self.recipe
        read = zip(recipe.roles, self.layouts, strict=False)
        wide = any(layout != SCALAR and ITEMSIZE[getattr(recipe, role)] == 8 for role, layout in read)
        return recipe.compute == "float32" and (recipe.quantised or wide)

    @made_once
    def scattered(self) -> bool:
        """Whether a CPU brings pieces of all arrays into scratch in reductions along axes: the elements of one reduced
        element may lie far apart."""
        return any(
            self.layouts[self.position(role)] == STRIDED for role in ("prediction", "target") if role in self.arrays
        )

    def tile(self, geometry: tuple[int, ...]) -> int:
        """The outputs that a CPU thread works on at once, at most, in reductions along axes.

        Where neighbouring outputs lie far apart, neighbouring reduced elements may share cache lines: a tile is narrow,
        and a piece of it has many of them.
        """
        if not self.scattered:
            return self.plan.lanes
        apart = max(1, *(abs(across) for across, _ in self._steps(geometry)))
        return min(max(TILE_BYTES // apart, LEAST_TILE), self.plan.lanes)

    def along(self, reduced: int, outputs: int, tile: int) -> "KernelKey":
        """The key of the CPU's kernel for so many reduced elements and outputs, of which it works on ``tile`` at once:
        where there are few outputs, and enough runs of them, it adds runs side by side."""
        enough = reduced >= TURNED * self.plan.chunk and self.plan.chunk * outputs % TURNED == 0
        return self._few if enough and 0 < outputs <= min(tile, FEW_OUTPUTS) and self.recipe.sums else self

    @made_once
    def _few(self) -> "KernelKey":
        return replace(self, few=True)

    def room(self, geometry: tuple[int, ...]) -> int:
        """The elements of which a CPU brings strided arrays into scratch at once, in whole reductions.

        Where the rows of a transposed array lie side by side, so many that a cache line is brought once for 16 of them.
        """
        turned = any(0 < abs(down) < abs(across) for across, down in self._steps(geometry))
        # A piece of several blocks would be given back at its last element, behind which strips go on.
        if not turned or (self.recipe.outputs and self.strip < self.plan.lanes):
            return self.strip
        return self.plan.block * self.plan.blocks(min(ROWS * geometry[self.dimensions - 1], PIECE))

    def _steps(self, geometry: tuple[int, ...]) -> list[tuple[int, int]]:
        """The bytes between neighbours along the last axis, and along the one before, of each strided array."""
        last, before = self.dimensions - 1, max(0, self.dimensions - 2)
        slots = range(self.dimensions, len(geometry), self.dimensions)
        return [(geometry[slot + last], geometry[slot + before]) for slot in slots]

    def parts(self, most: int) -> Iterator[tuple[int, "KernelKey"]]:
        """The kernels that do this one's work, each with at most so many of the sums: (the position of its first sum,
        the kernel). They read the same arrays; the first one alone fills the histogram. Only states have so
        many sums, and callers are given no outputs beside them."""
        sums = self.recipe.sums
        if len(sums) <= most:
            yield 0, self
            return
        share = -(-len(sums) // -(-len(sums) // most))
        for first in range(0, len(sums), share):
            bins = 0 if first else self.recipe.bins
            yield first, replace(self, recipe=replace(self.recipe, sums=sums[first : first + share], bins=bins))

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


@dataclass(frozen=True)
class Scratch:
    """What a CPU thread's own memory holds for a kernel, by the number of its first byte, and how large it is.

    First the accumulators: for each sum a row with the high parts of all lanes, then one with the low parts. Then rows
    of samples: some for each field that the sums need, three for what goes into a histogram. Where runs are added side
    by side, fields that are turned and the pairs of their runs follow. Then pieces of strided arrays, with room behind
    each for what movers write too much.
    """

    key: KernelKey
    along_axes: bool = False

    @property
    def row(self) -> int:
        """The bytes of one row of 8-byte cells."""
        return 8 * self.key.plan.lanes + self._apart

    @property
    def _apart(self) -> int:
        """The bytes left free behind a row. Without them the same lane of each lies a multiple of 4 KiB from the
        others, in one set of the L1 cache: 10^7 losses with 8 sums took 8.5 and not 7.4 ms."""
        return 5 * CACHE_LINE if self.key.strip == self.key.plan.lanes else 8 * self.key.strip + CACHE_LINE

    @property
    def kept(self) -> int:
        """Where the rows of the fields begin."""
        return 2 * self.row * max(1, len(self.key.recipe.sums))

    @property
    def field(self) -> int:
        """The bytes of one of them. It holds as many rows of lanes as are added at once, or as many runs."""
        plan = self.key.plan
        runs = TURNED * plan.chunk * FEW_OUTPUTS if self.key.few else 0
        return self.key.itemsize * max(runs, self.steps * plan.lanes) + self._apart

    @property
    def placed(self) -> int:
        """Where the rows for the histogram begin."""
        return self.kept + self.field * len(self.key.fields)

    @property
    def turned(self) -> int:
        """Where the fields are kept of TURNED elements of as many runs, element by element."""
        rows = 3 * self.row if self.key.recipe.bins else 0
        return -(-(self.placed + rows) // CACHE_LINE) * CACHE_LINE

    @property
    def steps(self) -> int:
        """The reduced elements that are added to the sum of an output at once, or the rows to the lanes of a block. Two
        rows were slower where no pairs are added: losses took 4.3 and not 3.6 ms, nobody knows why."""
        few_sums = len(self.key.recipe.sums) <= FEW_SUMS
        return STEPS if few_sums and (self.along_axes or self.key.recipe.compensated) else 1

    @property
    def turned_field(self) -> int:
        """The bytes of one of these."""
        return TURNED * TURNED * self.key.itemsize

    @property
    def pairs(self) -> int:
        """Where the pairs of as many runs are: for each sum the high parts, then the low parts; run by run for each of
        the outputs."""
        return self.turned + self.turned_field * len(self.key.fields)

    @property
    def part(self) -> int:
        """The bytes of the high parts of one sum."""
        return 8 * TURNED * FEW_OUTPUTS

    @made_once
    def pieces(self) -> int:
        """Where the pieces of strided arrays begin."""
        end = self.pairs + 2 * self.part * len(self.key.recipe.sums) if self.key.few else self.turned
        return -(-end // CACHE_LINE) * CACHE_LINE

    @made_once
    def staged(self) -> dict[str, tuple[int, int, int]]:
        """The arrays of which there are pieces: for each the bytes of an element, those of the elements of the arrays
        before it, and how far its piece lies behind theirs."""
        found: dict[str, tuple[int, int, int]] = {}
        before = apart = 0
        for name, layout in zip(self.key.arrays, self.key.layouts, strict=True):
            if layout == STRIDED or (self.every and layout == FLAT):
                size = ITEMSIZE[getattr(self.key.recipe, name, None) or self.key.recipe.stored]
                found[name] = size, before, apart
                before, apart = before + size, apart + 5 * CACHE_LINE
        return found

    @property
    def every(self) -> bool:
        """Whether there are pieces of flat arrays too."""
        return self.along_axes and self.key.scattered

    def cells(self, room: int) -> int:
        """The 8-byte cells that it takes, with pieces of ``room`` elements."""
        pieces = sum(size * room + 5 * CACHE_LINE for size, _, _ in self.staged.values())
        return -(-(self.pieces + pieces) // 8)


@lru_cache(maxsize=1024)
def scratch_of(key: KernelKey, along_axes: bool) -> Scratch:
    """The same object for every call: what it has worked out, it knows. Otherwise a call took 10 us longer."""
    return Scratch(key, along_axes)


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
