"""The passes of a job, in order. An engine (cpu.launch or cuda.launch) does each of them."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpubce.backends.kernel_key import QUAD, KernelKey
from gpubce.spec.geometry import FLAT
from gpubce.spec.job import Job, Pass, Settlement
from gpubce.spec.plan import Plan
from gpubce.spec.precision import ITEMSIZE, widened

PART = 1 << 15
"""Outputs whose sums a thread settles before it goes on to others, where there are more."""

Allocate = Callable[[int], int]
"""Gives the address of that many float64 cells which live as long as the call."""


class Repeat(NamedTuple):
    """How a job and what settles it are done once more."""

    cells: int
    """The float64 cells of memory that it takes."""
    do: Callable[[tuple[int, ...], int, int, int], float | None]
    """Takes the addresses of its operands, of the value that settles it or the sums that it leaves, and of those cells;
    and a stream. Gives the first sum, 0 where nobody looks at it; None where it was not done."""


class Engine(Protocol):
    """What a backend can do. All memory is given by address; nothing waits unless the backend has no other way."""

    loads_vectors: bool
    """Whether its kernels for aligned arrays differ from those for others."""
    at_once: bool
    """Whether what a method does is done when it returns, and can be read without waiting."""

    def whole(self, key, elements, addresses, geometry, parameters, ignored, partials, count, histogram, unit) -> None:
        """Work on all elements; leave a pair for each sum and block at partials[sum, :, block], and add to the
        histogram."""

    def along_axes(
        self, key, reduced, outputs, addresses, geometry, parameters, ignored, partials, count, histogram, unit
    ) -> None:
        """Work on all elements; leave a pair for each sum, run and output at partials[sum, :, run, output], and add to
        the histogram of each output."""

    @property
    def along_axes_settled(self) -> Callable[..., bool] | None:
        """:meth:`along_axes` of one run and :meth:`settle` for ``part`` outputs at a time: (key, reduced, outputs,
        addresses, geometry, parameters, ignored, part, settlement). False if one of the first sums was NaN. None where
        nobody could read that yet."""

    def combine(self, plan: Plan, sums: int, size: int, outputs: int, source: int, target: int) -> None:
        """Reduce source[sum, :, size, output] to target[sum, :, plan.blocks(size), output]."""

    def settle(self, settlement: Settlement) -> None:
        """Turn sums into values or scales."""

    def clear(self, address: int, cells: int) -> None:
        """Set float64 cells to 0."""

    def repeat(
        self,
        key,
        elements,
        sizes: tuple[int, ...],
        geometry,
        parameters,
        ignored,
        settlement: Settlement | None,
        leaves_sums: bool,
    ) -> Repeat | None:
        """:meth:`whole`, :meth:`combine` for each of ``sizes`` but the first, and :meth:`settle`, to be done again and
        again; None where that is no quicker than one after the other. It can leave its sums in place of a value."""


class _Prepared(NamedTuple):
    """What follows from a pass and the width of its loads, beside what the pass says itself."""

    key: KernelKey
    parameters: tuple[str, ...]
    """The names of the kernel's numbers."""
    number: Callable
    """Their type."""
    ignored: Callable
    """The type of the number that targets are compared with."""
    sizes: tuple[int, ...]
    """How many partials of each sum and output the first kernel leaves, then those that combine them."""

    def numbers(self, job: Job) -> tuple[tuple[int, ...], tuple, Any]:
        """The kernel's geometry, its parameters, and the number that targets are compared with."""
        parameters = tuple([self.number(job.parameters.get(name, 0.0)) for name in self.parameters])
        return job.work.geometry.numbers, parameters, self.ignored(job.ignored)


@lru_cache(maxsize=1024)
def _prepared(work: Pass, vector: int) -> _Prepared:
    recipe, plan, geometry = work.recipe, work.plan, work.geometry
    sizes = [plan.chunks(work.reduced) if work.kept else plan.blocks(work.elements)]
    while recipe.sums and sizes[-1] > 1:
        sizes.append(plan.blocks(sizes[-1]))
    return _Prepared(
        KernelKey(recipe, geometry.layouts, geometry.dimensions, plan, vector),
        recipe.parameters,
        np.dtype(recipe.compute).type,
        np.dtype(widened(recipe.target or recipe.compute)).type,
        tuple(sizes),
    )


@lru_cache(maxsize=1024)
def _boundaries(work: Pass) -> tuple[int, ...] | None:
    """Of which number of bytes each address must be a multiple for four elements to be loaded at once; None where they
    cannot be."""
    if work.kept and work.outputs % QUAD:
        return None
    return tuple(
        QUAD * ITEMSIZE[operand.storage] if layout == FLAT else 1
        for layout, operand in zip(work.geometry.layouts, work.operands, strict=True)
    )


def run(job: Job, engine: Engine, allocate: Allocate) -> None:
    """Do one pass over the inputs and reduce its sums."""
    work = job.work
    sums = len(work.recipe.sums)
    cells = 2 * sums * work.outputs
    if work.elements == 0:
        if cells:
            engine.clear(job.states, cells)
        return
    does = _prepared(work, _vector(job, engine))
    partials = _destination(job, does.sizes[0], cells, allocate)
    given = (job.addresses or (0,), *does.numbers(job), partials, does.sizes[0], job.histogram, job.unit)
    if work.kept:
        engine.along_axes(does.key, work.reduced, work.outputs, *given)
    else:
        engine.whole(does.key, work.elements, *given)
    for before, size in pairwise(does.sizes):
        source, partials = partials, _destination(job, size, cells, allocate)
        engine.combine(work.plan, sums, before, work.outputs, source, partials)


def by_parts(work: Pass, engine: Engine) -> Callable[[Job, Settlement], bool] | None:
    """:func:`run` and what settles it, where the sums need not be there all at once: false if a first sum was NaN.

    16 bytes for each of 5.6 million outputs were 90 MB, which the system cleared and one thread settled: 2^24 losses in
    rows of 3 took 31 ms, and take 22.
    """
    settle_along_axes = engine.along_axes_settled
    if settle_along_axes is None or not work.kept or not 0 < work.reduced <= work.plan.chunk or work.outputs <= PART:
        return None

    def run_and_settle(job: Job, settlement: Settlement) -> bool:
        does = _prepared(work, 1)
        given = (job.addresses or (0,), *does.numbers(job), PART, settlement)
        return settle_along_axes(does.key, work.reduced, work.outputs, *given)

    return run_and_settle


def _vector(job: Job, engine: Engine) -> int:
    """How many neighbouring elements the job's kernel loads at once."""
    if engine.loads_vectors:
        boundaries = _boundaries(job.work)
        if boundaries and all(address % step == 0 for address, step in zip(job.addresses, boundaries, strict=True)):
            return QUAD
    return 1


def repeat(job: Job, settlement: Settlement | None, engine: Engine, leaves_sums: bool = False) -> Repeat | None:
    """The job and its settlement for arrays that lie elsewhere, at addresses that are multiples of the same numbers;
    None where that is no quicker. It can leave its sums in place of a value."""
    work = job.work
    if work.kept or work.elements == 0 or job.histogram:
        return None
    does = _prepared(work, _vector(job, engine))
    return engine.repeat(does.key, work.elements, does.sizes, *does.numbers(job), settlement, leaves_sums)


def _destination(job: Job, size: int, cells: int, allocate: Allocate) -> int:
    """Where a pass that leaves ``size`` partials writes: one partial is the state itself."""
    if cells == 0 or size == 1:
        return job.states
    return allocate(cells * size)
