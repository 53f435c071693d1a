"""Run a job on a GPU, on a stream. Nothing here waits for the device."""

import contextlib
import ctypes
import struct
import warnings
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from numba import types

from gpubce.backends.cuda import compile as compiled
from gpubce.backends.cuda.kernels import threads
from gpubce.backends.devices import simulated
from gpubce.backends.kernel_key import QUAD, KernelKey, SettleKey
from gpubce.backends.pipeline import Repeat
from gpubce.errors import DeviceError
from gpubce.spec.job import Settlement
from gpubce.spec.plan import Plan
from gpubce.spec.precision import ITEMSIZE
from gpubce.spec.recipe import Recipe


@contextlib.contextmanager
def current_device(index: int) -> Iterator[None]:
    """Make a GPU the current one for Numba."""
    if simulated():
        yield
        return
    from numba import cuda

    with cuda.gpus[index]:
        yield


class CudaEngine:
    """See :class:`gpubce.backends.pipeline.Engine`. ``stream`` is a CUDA stream's handle, ``device`` its device's
    number; that device is current."""

    team = 128
    """Threads of a thread block where no block of the plan fixes them."""

    loads_vectors = True
    at_once = False
    along_axes_settled = None

    def __init__(self, stream: int = 0, device: int = 0):
        self.stream = stream
        self.device = device

    def whole(self, key, elements, *work):
        for part, rest in _in_registers(key, 1, *work):
            self.launch("whole", part, key.plan.blocks(elements), threads(key.plan), (elements, *rest))

    def along_axes(self, key, reduced, outputs, *work):
        workers = key.plan.chunks(reduced) * -(-outputs // QUAD)
        for part, rest in _in_registers(key, outputs, *work):
            self.launch("along_axes", part, -(-workers // self.team), self.team, (reduced, outputs, *rest))

    def combine(self, plan: Plan, sums, size, outputs, source, target):
        blocks = plan.blocks(size)
        self.launch("combine", plan, sums * blocks * outputs, threads(plan), (size, outputs, source, target, blocks))

    def settle(self, settlement: Settlement):
        key, arguments = SettleKey.of(settlement)
        self.launch("settle", key, -(-settlement.outputs // self.team), self.team, arguments)

    def clear(self, address, cells):
        # Settling 0 / 1 writes zeros: rare (empty input), so it needs no kernel of its own.
        key = SettleKey("float64", True, False, None)
        self.launch("settle", key, -(-cells // self.team), self.team, (cells, 0, address, 0, 0, 1.0, 0.0, 0.0, 1.0, 0))

    def repeat(self, key, elements, sizes, geometry, parameters, ignored, settlement, leaves_sums):
        plan, sums, settles = key.plan, len(key.recipe.sums), settlement is not None
        if leaves_sums or sums > most_sums(key.recipe):
            return None
        settle_key, (outputs, _, _, *rest) = SettleKey.of(settlement) if settles else (None, (0, 0, 0))
        begin = self.starter("whole", key)
        combine = self.starter("combine", plan) if sizes[1:] else begin
        settle = self.starter("settle", settle_key) if settles else begin
        if None in (begin, combine, settle):
            return None
        pair = 2 * ITEMSIZE["float64"] * sums
        places = [0, *accumulate(pair * size for size in sizes)]
        combined = tuple(zip(pairwise(sizes), pairwise(places), strict=False))
        context, team, own_team = self.context(), threads(plan), self.team

        def once_more(addresses, result, room, stream):
            if self.context() != context:  # Another device is current in this thread, or none is.
                return None
            work = elements, addresses, geometry, parameters, ignored, room, sizes[0], 0, 1
            begin(plan.blocks(elements), team, stream, work)
            for (before, after), (source, target) in combined:
                combine(sums * after, team, stream, (before, 1, room + source, room + target, after))
            if settles:
                settle(1, own_team, stream, (outputs, room + places[-2], result, *rest))
            return 0.0

        return Repeat(places[-1] // ITEMSIZE["float64"], once_more)

    def context(self) -> int:
        """The context that is current in this thread."""
        from cuda.bindings import driver

        return int(driver.cuCtxGetCurrent()[1])

    def starter(self, kind: str, key) -> "Direct | None":
        """What starts a kernel, unless Numba has to."""
        return None if simulated() else _direct(kind, key, self.device)

    def launch(self, kind: str, key, grid: int, team: int, arguments: tuple) -> None:
        """Start one kernel on the stream."""
        if not grid:
            return
        if (start := self.starter(kind, key)) is not None:
            start(grid, team, self.stream, arguments)
        elif simulated():
            # A simulated kernel remembers one geometry only, so nothing can be kept.
            compiled.kernel(kind, key, self.device)[grid, team](*arguments)
        else:
            _configured(kind, key, self.device, grid, team, self.stream)(*arguments)


def most_sums(recipe: Recipe) -> int:
    """How many sums one kernel has; where there are more, several kernels run one after the other.

    15 sums at once lie in local memory, which is device memory: 480 bytes a thread (ptxas for 9.0). 8 take 132
    registers as a whole and 154 by label. As pairs 8 take 254 and local memory besides, and 6 take at most 186. The
    sums of each element do not depend on what stands beside them, so the bits are the same.
    """
    return 6 if recipe.compensated else 8


def _in_registers(
    key: KernelKey, outputs: int, addresses, geometry, parameters, ignored, partials, count, *rest
) -> Iterator[tuple[KernelKey, tuple]]:
    """The kernels that do this one's work, each with its arguments."""
    for first, part in key.parts(most_sums(key.recipe)):
        where = partials + ITEMSIZE["float64"] * 2 * first * count * outputs
        yield part, (addresses, geometry, parameters, ignored, where, count, *rest)


@lru_cache(maxsize=4096)
def _configured(kind: str, key, device: int, grid: int, team: int, stream: int):
    """The kernel with its launch geometry. Small grids are no mistake here: the warning about them is for beginners."""
    from numba import cuda

    kernel = compiled.kernel(kind, key, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kernel[grid, team, cuda.external_stream(stream)]


_CODES = {types.int64: "q", types.uint64: "Q", types.float32: "f", types.float64: "d"}


def layout_of(argument_types: tuple[Any, ...]) -> str:
    """The numbers that a kernel takes, as :mod:`struct` has them: each at a multiple of its size, one after the other.
    A tuple's are its items'."""
    code = "@"
    for kind in argument_types:
        items: Any = kind if isinstance(kind, types.BaseTuple) else (kind,)
        code += "".join(_CODES[item] for item in items)
    return code


class Direct:
    """A kernel that one call of the driver starts, with its numbers in a row.

    Numba's own launch makes an object of each number, and finds out for each call which kernel is meant: with nothing
    behind it, 10 numbers take it 16 us, and this 1.5.
    """

    def __init__(self, launch: Any, handle: int, layout: str):
        self.launch = launch
        self.handle = handle
        self.layout = struct.Struct(layout)
        self._spare: list[_Numbers] = []
        """As many as there were threads here at once."""

    def __call__(self, grid: int, team: int, stream: int, arguments: tuple) -> None:
        values: list[Any] = []
        for argument in arguments:
            if type(argument) is tuple:
                values += argument
            else:
                values.append(argument)
        try:
            numbers = self._spare.pop()
        except IndexError:
            numbers = _Numbers(self.layout.size)
        self.layout.pack_into(numbers.buffer, 0, *values)
        (error,) = self.launch(self.handle, grid, 1, 1, team, 1, 1, 0, stream, None, numbers.address)
        self._spare.append(numbers)  # The driver has read them.
        if error:
            raise DeviceError(f"the GPU could not start a kernel: {error}")


class _Numbers:
    """A buffer, and what tells the driver where it is: CU_LAUNCH_PARAM_BUFFER_POINTER, its address,
    CU_LAUNCH_PARAM_BUFFER_SIZE, the address of its size, CU_LAUNCH_PARAM_END."""

    def __init__(self, size: int):
        self.buffer = ctypes.create_string_buffer(size)
        self._size = ctypes.c_size_t(size)
        self._told = (ctypes.c_void_p * 5)(1, ctypes.addressof(self.buffer), 2, ctypes.addressof(self._size), 0)
        self.address = ctypes.addressof(self._told)


@lru_cache(maxsize=4096)
def _direct(kind: str, key, device: int) -> Direct | None:
    """None where Numba's insides are others than those that are known here: then Numba launches."""
    dispatcher = compiled.kernel(kind, key, device)
    try:
        from cuda.bindings import driver

        (kernel,) = dispatcher.overloads.values()
        layout, handle = layout_of(kernel.argument_types), int(kernel._codelibrary.get_cufunc().handle)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return Direct(driver.cuLaunchKernel, handle, layout)
