"""The passes of a job, in order. An engine (cpu.launch or cuda.launch) does each of them."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from gpubce.backends.kernel_key import KernelKey
from gpubce.spec.geometry import FLAT, lay_out
from gpubce.spec.job import Job, Settlement
from gpubce.spec.plan import Plan
from gpubce.spec.precision import ITEMSIZE, widened

Allocate = Callable[[int], int]
"""Gives the address of that many float64 cells which live as long as the call."""


class Engine(Protocol):
    """What a backend can do. All memory is given by address; nothing waits unless the backend has no other way."""

    loads_vectors: bool
    """Whether its kernels for aligned arrays differ from those for others."""

    def whole(self, key, elements, addresses, geometry, parameters, ignored, partials, count, histogram, unit) -> None:
        """Work on all elements; leave a pair for each sum and block at partials[sum, :, block], and add to the
        histogram."""

    def along_axes(
        self, key, reduced, outputs, addresses, geometry, parameters, ignored, partials, count, histogram, unit
    ) -> None:
        """Work on all elements; leave a pair for each sum, run and output at partials[sum, :, run, output], and add to
        the histogram of each output."""

    def combine(self, plan: Plan, sums: int, size: int, outputs: int, source: int, target: int) -> None:
        """Reduce source[sum, :, size, output] to target[sum, :, plan.blocks(size), output]."""

    def settle(self, settlement: Settlement) -> None:
        """Turn sums into values or scales."""

    def clear(self, address: int, cells: int) -> None:
        """Set float64 cells to 0."""


def run(job: Job, engine: Engine, allocate: Allocate) -> None:
    """Do one pass over the inputs and reduce its sums."""
    recipe, plan = job.recipe, job.plan
    sums, outputs = len(recipe.sums), job.outputs
    cells = 2 * sums * outputs
    if job.elements == 0:
        if cells:
            engine.clear(job.states, cells)
        return
    geometry = lay_out(job.shape, job.operands)
    addresses = tuple(operand.address for operand in job.operands) or (0,)
    aligned = engine.loads_vectors and all(
        layout != FLAT or operand.address % (4 * ITEMSIZE[operand.storage]) == 0
        for layout, operand in zip(geometry.layouts, job.operands, strict=True)
    )
    rows_stay_aligned = job.kept == 0 or outputs % 4 == 0
    key = KernelKey(recipe, geometry.layouts, geometry.dimensions, plan, 4 if aligned and rows_stay_aligned else 1)
    number = np.dtype(recipe.compute).type
    parameters = tuple(number(job.parameters.get(name, 0.0)) for name in recipe.parameters)
    ignored = np.dtype(widened(recipe.target or recipe.compute)).type(job.ignored)

    size = plan.chunks(job.reduced) if job.kept else plan.blocks(job.elements)
    partials = _destination(job, size, cells, allocate)
    work = addresses, geometry.numbers, parameters, ignored, partials, size, job.histogram, job.unit
    if job.kept:
        engine.along_axes(key, job.reduced, outputs, *work)
    else:
        engine.whole(key, job.elements, *work)
    while sums and size > 1:
        source, size_before = partials, size
        size = plan.blocks(size)
        partials = _destination(job, size, cells, allocate)
        engine.combine(plan, sums, size_before, outputs, source, partials)


def _destination(job: Job, size: int, cells: int, allocate: Allocate) -> int:
    """Where a pass that leaves ``size`` partials writes: one partial is the state itself."""
    if cells == 0 or size == 1:
        return job.states
    return allocate(cells * size)
