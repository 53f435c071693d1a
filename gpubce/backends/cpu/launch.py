"""Run a job on the CPU, on several threads.

Threads take ranges of blocks; which thread does which block changes no bit.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numba
import numpy as np

from gpubce.backends.cpu import compile as compiled
from gpubce.backends.kernel_key import SettleKey, scratch_of
from gpubce.backends.pipeline import Repeat
from gpubce.backends.threads import Work, share
from gpubce.spec.bins import cells as histogram_cells
from gpubce.spec.job import Settlement
from gpubce.spec.plan import Plan
from gpubce.spec.precision import ACCUMULATOR, ITEMSIZE

WORTH_A_THREAD = 1 << 17
"""Elements below which a second thread costs more than it saves: handing work over takes 30 to 90 us, and the loss
alone 45 to 80 for so many."""

FIRST_SLICE = 1 << 22
"""Elements of a call's first kernels, between which Python sees signals: 2 ms for the loss alone, 0.2 s at worst."""

REPEATED = 1 << 20
"""Elements up to which a call is done again without a session: it takes 50 to 80 us, and the kernels 500 for so many.
Where the loss is NaN the work is done for nothing, because a session has to tell why."""

_spare: list[tuple[int, np.ndarray | None, int]] = []
"""Scratch of such calls that have ended: cells, owner and address. As many as there were at once; new scratch takes
0.7 us."""

KEPT_CELLS = 1 << 17
"""Cells of scratch up to which it is kept for the next call: 1 MiB. Pieces of transposed arrays may take more."""

OWN_CELLS = 1 << 20
"""Cells of histograms up to which every thread has its own: 8 MiB."""


def thread_count() -> int:
    """How many threads a large call uses: NUMBA_NUM_THREADS, else the processors that this process may use."""
    return int(getattr(numba.config, "NUMBA_NUM_THREADS"))  # noqa: B009  (Numba sets it at run time)


class CpuEngine:
    """See :class:`gpubce.backends.pipeline.Engine`."""

    loads_vectors = False
    at_once = True

    def __init__(self, threads: int | None = None):
        self.own_threads = threads

    def whole(self, key, elements, addresses, geometry, parameters, ignored, partials, count, histogram, unit):
        blocks = key.plan.blocks(elements)
        room, cells = _scratch_for(key, blocks, geometry)
        size, given = (room, elements), (addresses, geometry, parameters, ignored)
        self._pass(compiled.whole, key, cells, size, blocks, 1, elements, given, (partials, count), histogram, unit)

    def along_axes(
        self, key, reduced, outputs, addresses, geometry, parameters, ignored, partials, count, histogram, unit
    ):
        tile = key.tile(geometry)
        key = key.along(reduced, outputs, tile)
        tasks = key.plan.chunks(reduced) * -(-outputs // tile)
        cells = scratch_of(key, True).cells(key.plan.block)
        size, given = (tile, reduced, outputs), (addresses, geometry, parameters, ignored)
        where = partials, 8 * count * outputs, count
        self._pass(
            compiled.along_axes, key, cells, size, tasks, outputs, reduced * outputs, given, where, histogram, unit
        )

    def along_axes_settled(
        self, key, reduced, outputs, addresses, geometry, parameters, ignored, part: int, settlement: Settlement
    ) -> bool:
        tile, sums = key.tile(geometry), len(key.recipe.sums)
        tasks, together = -(-outputs // tile), max(1, part // tile)
        cells = scratch_of(key, True).cells(key.plan.block)
        settle_key, (_, _, result, *rest) = SettleKey.of(settlement)
        kernel, settle = compiled.along_axes(key), compiled.settle(settle_key)
        lost: list[int] = []

        def begin():
            memory, scratch = compiled.scratch(cells)
            sums_of_part = np.empty(2 * sums * together * tile)
            states = sums_of_part.ctypes.data

            def work(first, last, _keep=memory):
                for task in range(first, last, together):
                    end = min(task + together, last)
                    before = task * tile
                    held = min(end * tile, outputs) - before
                    kernel(
                        task, end, tile, reduced, outputs, addresses, geometry, parameters, ignored, scratch,
                        states - 8 * before, 8 * held, 1, 0, 1,
                    )  # fmt: skip
                    settle(held, states, result + ITEMSIZE[settlement.storage] * before, *rest)
                    if np.isnan(sums_of_part[:held]).any():
                        lost.append(task)

            return work

        elements = reduced * outputs
        self._share(begin, tasks, self._threads(tasks, elements), elements)
        return not lost

    def _pass(
        self, compile_for, key, cells, size, tasks, outputs, elements, given, where, histogram, unit
    ):  # fmt: skip
        threads = self._threads(tasks, elements)
        counts = None
        if histogram:
            counts = _Histogram(histogram, outputs * histogram_cells(key.recipe.bins), threads)
            if counts.shared:
                key = replace(key, shared=True)
        kernel = compile_for(key)

        own = counts.own if counts else _no_histogram
        self._share(_begins(kernel, cells, size, given, where, own, unit), tasks, threads, elements)
        if counts:
            counts.add_up()

    def combine(self, plan: Plan, sums, size, outputs, source, target):
        kernel = compiled.combine(plan)
        blocks = plan.blocks(size)

        def begin():
            memory, scratch = compiled.scratch(2 * plan.lanes)

            def work(first, last, _keep=memory):
                kernel(first, last, size, outputs, source, target, blocks, scratch)

            return work

        tasks, elements = sums * blocks * outputs, sums * size * outputs
        self._share(begin, tasks, self._threads(tasks, elements), elements)

    def settle(self, settlement: Settlement):
        key, arguments = SettleKey.of(settlement)
        compiled.settle(key)(*arguments)

    def clear(self, address, cells):
        ctypes.memset(address, 0, 8 * cells)

    def repeat(self, key, elements, sizes, geometry, parameters, ignored, settlement, leaves_sums):
        if elements > REPEATED:
            return None
        kernel, settle = compiled.whole(key), None
        combine = compiled.combine(key.plan) if sizes[1:] else None
        blocks, sums = sizes[0], len(key.recipe.sums)
        piece, own_cells = _scratch_for(key, blocks, geometry)
        # What combines blocks takes two rows of lanes of it: a sum has those.
        cells = own_cells + 2 * sums * sum(sizes)
        if settlement is not None:
            settle_key, (outputs, _, _, *rest) = SettleKey.of(settlement)
            settle = compiled.settle(settle_key)
        alone = blocks == 1 or elements <= WORTH_A_THREAD

        def once_more(addresses, result, room, stream):
            try:  # Other threads take some too.
                spare = _spare.pop()
            except IndexError:
                spare = 0, None, 0
            if spare[0] < cells:
                spare = cells, *compiled.scratch(cells)
            scratch = spare[2]
            states = scratch + ITEMSIZE[ACCUMULATOR] * own_cells
            size, given = (piece, elements), (addresses, geometry, parameters, ignored)
            if alone:
                kernel(0, blocks, *size, *given, scratch, states, blocks, 0, 1)
            else:
                begin = _begins(kernel, own_cells, size, given, (states, blocks), _no_histogram, 1)
                self._share(begin, blocks, self._threads(blocks, elements), elements)
            for before, after in pairwise(sizes):
                source, states = states, states + ITEMSIZE[ACCUMULATOR] * 2 * sums * before
                combine(0, sums * after, before, 1, source, states, after, scratch)
            if settle is not None:
                settle(outputs, states, result, *rest)
            if leaves_sums:
                ctypes.memmove(result, states, ITEMSIZE[ACCUMULATOR] * 2 * sums)
            first = ctypes.c_double.from_address(states).value
            if cells <= KEPT_CELLS:
                _spare.append(spare)
            return first

        return Repeat(0, once_more)

    def _share(self, begin: Callable[[], Work], tasks: int, threads: int, elements: int) -> None:
        """Do tasks 0 .. tasks - 1, in ranges."""
        share(begin, tasks, threads, max(1, FIRST_SLICE * tasks // elements))

    def _threads(self, tasks: int, elements: int) -> int:
        return min(self.own_threads or thread_count(), tasks, -(-elements // WORTH_A_THREAD))


def _scratch_for(key, blocks: int, geometry) -> tuple[int, int]:
    """The elements of which a pass over so many blocks brings strided arrays into scratch at once, and its cells."""
    room = min(key.room(geometry), blocks * key.plan.block)
    return room, scratch_of(key, False).cells(room)


def _begins(kernel, cells, size, given, where, histogram: Callable[[], int], unit) -> Callable[[], Work]:
    """What begins a kernel's work in a thread, with scratch of its own."""

    def begin() -> Work:
        memory, scratch = compiled.scratch(cells)  # Memory lives as long as the work that it is given to.
        own = histogram()

        def work(first, last, _keep=memory):
            kernel(first, last, *size, *given, scratch, *where, own, unit)

        return work

    return begin


def _no_histogram() -> int:
    return 0


class _Histogram:
    """Where the threads of a call add their counts: each into cells of its own, which :meth:`add_up` adds to those at
    ``address``; or, where that would be much memory, all into the same cells with atomic additions."""

    def __init__(self, address: int, cells: int, threads: int):
        self.address = address
        self.cells = cells
        self.alone = threads == 1
        self.shared = not self.alone and cells > OWN_CELLS
        self._copies: list[np.ndarray] = []

    def own(self) -> int:
        """The address at which the calling thread adds."""
        if self.alone or self.shared:
            return self.address
        own = np.zeros(self.cells, np.int64)
        self._copies.append(own)
        return own.ctypes.data

    def add_up(self) -> None:
        """Once all threads are done."""
        if self._copies:
            there = np.ctypeslib.as_array((ctypes.c_int64 * self.cells).from_address(self.address))
            for copy in self._copies:
                there += copy
