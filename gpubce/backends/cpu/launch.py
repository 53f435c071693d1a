"""Run a job on the CPU, on several threads.

Threads take ranges of blocks; which thread does which block changes no bit. The threads are our own and not Numba's:
its default threading layer ends the process when two Python threads enter at once.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba

from gpubce.backends.cpu import compile as compiled
from gpubce.backends.cpu.kernels import scratch_cells
from gpubce.backends.kernel_key import SettleKey
from gpubce.spec.job import Settlement
from gpubce.spec.plan import Plan

WORTH_A_THREAD = 1 << 16
"""Elements below which a second thread costs more than it saves: handing work over takes about 30 us."""

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)


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

        def work(first, last):
            memory = compiled.scratch(cells)
            kernel(first, last, elements, addresses, geometry, parameters, ignored, memory.ctypes.data, partials, count)

        self._share(work, key.plan.blocks(elements), elements)

    def along_axes(self, key, reduced, outputs, addresses, geometry, parameters, ignored, partials, count):
        kernel = compiled.along_axes(key)
        cells = scratch_cells(key)

        def work(first, last):
            memory = compiled.scratch(cells)
            kernel(
                first,
                last,
                reduced,
                outputs,
                addresses,
                geometry,
                parameters,
                ignored,
                memory.ctypes.data,
                partials,
                count,
            )

        self._share(work, count, reduced * outputs)

    def combine(self, plan: Plan, sums, size, outputs, source, target):
        kernel = compiled.combine(plan)
        blocks = plan.blocks(size)

        def work(first, last):
            memory = compiled.scratch(2 * plan.lanes)
            kernel(first, last, size, outputs, source, target, blocks, memory.ctypes.data)

        self._share(work, sums * blocks * outputs, sums * size * outputs)

    def settle(self, settlement: Settlement):
        key, arguments = SettleKey.of(settlement)
        compiled.settle(key)(*arguments)

    def clear(self, address, cells):
        ctypes.memset(address, 0, 8 * cells)

    def _share(self, work: Callable[[int, int], None], tasks: int, elements: int) -> None:
        """Do tasks 0 .. tasks - 1, in ranges, on as many threads as pay. This thread does the first range itself."""
        threads = min(self.threads, tasks, -(-elements // WORTH_A_THREAD))
        if threads <= 1:
            work(0, tasks)
            return
        edges = [tasks * k // threads for k in range(threads + 1)]
        pool = _pools.get(threads)
        if pool is None:
            pool = _pools.setdefault(threads, ThreadPoolExecutor(threads - 1, thread_name_prefix="gpubce"))
        others = [pool.submit(partial(work, edges[k], edges[k + 1])) for k in range(1, threads)]
        work(edges[0], edges[1])
        for other in others:
            other.result()
