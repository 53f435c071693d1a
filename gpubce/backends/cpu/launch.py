"""Run a job on the CPU, on several threads.

Threads take ranges of blocks; which thread does which block changes no bit.
"""

import ctypes
from collections.abc import Callable

import numba

from gpubce.backends.cpu import compile as compiled
from gpubce.backends.cpu.kernels import scratch_cells, tiles
from gpubce.backends.kernel_key import SettleKey
from gpubce.backends.threads import Work, share
from gpubce.spec.job import Settlement
from gpubce.spec.plan import Plan

WORTH_A_THREAD = 1 << 16
"""Elements below which a second thread costs more than it saves: handing work over takes about 30 us."""

FIRST_SLICE = 1 << 22
"""Elements of a call's first kernels, between which Python sees signals: 2 ms for the loss alone, 0.2 s at worst."""


def thread_count() -> int:
    """How many threads a large call uses: NUMBA_NUM_THREADS, else the processors that this process may use."""
    return int(getattr(numba.config, "NUMBA_NUM_THREADS"))  # noqa: B009  (Numba sets it at run time)


class CpuEngine:
    """See :class:`gpubce.backends.pipeline.Engine`."""

    loads_vectors = False

    def __init__(self, threads: int | None = None):
        self.threads = threads or thread_count()

    def whole(self, key, elements, addresses, geometry, parameters, ignored, partials, count):
        kernel = compiled.whole(key)
        cells = scratch_cells(key)

        def begin():
            memory = compiled.scratch(cells)
            rest = elements, addresses, geometry, parameters, ignored
            return lambda first, last: kernel(first, last, *rest, memory.ctypes.data, partials, count)

        self._share(begin, key.plan.blocks(elements), elements)

    def along_axes(self, key, reduced, outputs, addresses, geometry, parameters, ignored, partials, count):
        kernel = compiled.along_axes(key)
        cells = scratch_cells(key)

        def begin():
            memory = compiled.scratch(cells)
            rest = reduced, outputs, addresses, geometry, parameters, ignored
            return lambda first, last: kernel(first, last, *rest, memory.ctypes.data, partials, count)

        self._share(begin, count * tiles(outputs, key.plan), reduced * outputs)

    def combine(self, plan: Plan, sums, size, outputs, source, target):
        kernel = compiled.combine(plan)
        blocks = plan.blocks(size)

        def begin():
            memory = compiled.scratch(2 * plan.lanes)
            return lambda first, last: kernel(first, last, size, outputs, source, target, blocks, memory.ctypes.data)

        self._share(begin, sums * blocks * outputs, sums * size * outputs)

    def settle(self, settlement: Settlement):
        key, arguments = SettleKey.of(settlement)
        compiled.settle(key)(*arguments)

    def clear(self, address, cells):
        ctypes.memset(address, 0, 8 * cells)

    def _share(self, begin: Callable[[], Work], tasks: int, elements: int) -> None:
        """Do tasks 0 .. tasks - 1, in ranges, on as many threads as pay."""
        threads = min(self.threads, tasks, -(-elements // WORTH_A_THREAD))
        share(begin, tasks, threads, max(1, FIRST_SLICE * tasks // elements))
