"""The backends that the contract suite runs on, each a function of a case.

Every backend takes NumPy arrays. ``cpu`` is the CPU path; ``ptx`` is the CUDA path with its kernels compiled to PTX and
executed by the interpreter; ``simulator`` is the CUDA path under Numba's simulator, in a process of its own because
the simulator is chosen when Numba is imported; ``gpu`` is the CUDA path on a device. All but the last work on host
memory, so the engine is all that is exchanged. ``reference`` is the CPU path on one thread, for the processor of this
machine, whatever processor this process compiles for.
"""

import ctypes
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from gpubce import dispatch
from gpubce.arrays import numpy as host_arrays
from gpubce.backends.cpu.launch import CpuEngine
from gpubce.backends.cuda.launch import CudaEngine, Direct, layout_of
from gpubce.backends.kernel_key import KernelKey
from gpubce.spec.geometry import FLAT
from gpubce.spec.plan import PLAN, Plan
from gpubce.spec.recipe import Recipe
from tests.cases import Case, Results, aligned_empty, run_case
from tests.ptx.interpreter import Kernel, Memory, launch
from tests.simulator import share_processor

COMPUTE_CAPABILITY = (9, 0)

SMALL_PLAN = Plan(lanes=32, rows=2, chunk=8)
"""For the backends that execute one thread after the other."""


@contextmanager
def replaced(engine: Callable[[], object], plan: Plan, buffer: Callable | None = None):
    """Calls on NumPy arrays use this engine and plan; ``buffer`` sees every array that a call touches, and what a call
    allocates is then aligned as on a GPU."""
    before = dispatch.cpu_engine, dispatch.PLAN, host_arrays.buffer, host_arrays.empty
    dispatch.cpu_engine, dispatch.PLAN = engine, plan
    if buffer is not None:
        host_arrays.buffer = buffer
        host_arrays.empty = lambda shape, storage, like: buffer(aligned_empty(shape, host_arrays.dtype(storage))).owner
    try:
        yield
    finally:
        dispatch.cpu_engine, dispatch.PLAN, host_arrays.buffer, host_arrays.empty = before


def cpu(case: Case, plan: Plan = PLAN, threads: int = 2) -> Results:
    """The CPU path on that many threads, however small the case."""
    from gpubce.backends.cpu import launch as cpu_launch

    worth = cpu_launch.WORTH_A_THREAD
    cpu_launch.WORTH_A_THREAD = 1
    try:
        with replaced(lambda: CpuEngine(threads), plan):
            return run_case(case)
    finally:
        cpu_launch.WORTH_A_THREAD = worth


@lru_cache(maxsize=256)
def compiled_ptx(kind: str, key, compute_capability: tuple[int, int] = COMPUTE_CAPABILITY) -> Kernel:
    """The kernel, parsed: this refuses a product that could be fused with an addition."""
    from gpubce.backends.cuda.compile import ptx

    return Kernel(ptx(kind, key, compute_capability))


def given(extra: int) -> bytes:
    """The bytes of a kernel's parameters, as ``cuLaunchKernel`` is told where they are."""
    pointer_comes, buffer, size_comes, size, end = (ctypes.c_void_p * 5).from_address(extra)
    assert (pointer_comes, size_comes, end) == (1, 2, None)
    return ctypes.string_at(buffer, ctypes.c_size_t.from_address(size).value)


class PtxEngine(CudaEngine):
    """Launches by interpretation, with the parameters as the driver gets them. ``touch`` registers the memory of an
    array before a kernel sees its address."""

    def __init__(self, compute_capability: tuple[int, int] = COMPUTE_CAPABILITY):
        super().__init__()
        self.compute_capability = compute_capability
        self.memory = Memory()
        self.owners: list[np.ndarray] = []
        self.known: set[int] = set()

    def touch(self, array):
        buffer = _buffer(array)
        root = buffer.owner
        while isinstance(root.base, np.ndarray):
            root = root.base
        if root.nbytes and root.ctypes.data not in self.known:
            self.known.add(root.ctypes.data)
            self.owners.append(root)
            cells = (ctypes.c_uint8 * root.nbytes).from_address(root.ctypes.data)
            self.memory.register(np.frombuffer(cells, np.uint8))
        return buffer

    def starter(self, kind, key):
        from gpubce.backends.cuda.compile import signature

        kernel = compiled_ptx(kind, key, self.compute_capability)

        def start(handle, grid, _1, _2, team, _3, _4, shared, stream, parameters, extra):
            launch(kernel, self.memory, grid, team, given(extra))
            return (0,)

        return Direct(start, 0, layout_of(signature(kind, key).args))

    def context(self):
        return 0


_buffer = host_arrays.buffer


def ptx(case: Case, plan: Plan = SMALL_PLAN, compute_capability: tuple[int, int] = COMPUTE_CAPABILITY) -> Results:
    """The compiled PTX, executed."""
    engine = PtxEngine(compute_capability)
    with replaced(lambda: engine, plan, engine.touch):
        return run_case(case)


class SimulatedEngine(CudaEngine):
    """Every thread is a Python thread: fewer of them."""

    team = 8


def _simulate(case: Case, plan: Plan) -> Results:
    with replaced(SimulatedEngine, plan):
        return run_case(case)


@contextmanager
def environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Environment variables with other values; None takes one away."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


_processes: dict[str, ProcessPoolExecutor] = {}


def _process(name: str) -> ProcessPoolExecutor:
    """A process of that name; it keeps the environment of its first task."""
    if name not in _processes:
        begin = share_processor if name == "simulator" else None
        _processes[name] = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=begin)
    return _processes[name]


def end_processes() -> None:
    """Without this they outlive a worker of pytest-xdist, which ends without Python's own cleaning up."""
    while _processes:
        _processes.popitem()[1].shutdown()


def simulator(case: Case, plan: Plan = SMALL_PLAN) -> Results:
    """Numba's CUDA simulator."""
    with environment({"NUMBA_ENABLE_CUDASIM": "1"}):
        return _process("simulator").submit(_simulate, case, plan).result()


TARGET_VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "GLIBC_TUNABLES")
"""What decides which instructions a process uses."""


def reference(case: Case, plan: Plan = PLAN) -> Results:
    """The CPU path on one thread, for this machine's processor."""
    if not any(name in os.environ for name in TARGET_VARIABLES):
        return cpu(case, plan, threads=1)
    with environment(dict.fromkeys(TARGET_VARIABLES)):
        return _process("reference").submit(cpu, case, plan, 1).result()


def instructions() -> set[str]:
    """What the machine code of a float16 kernel for the CPU holds: "fma", "f16c" (conversions of float16), "ymm" and
    "zmm" (registers of 256 and 512 bits). The kernel must not be in Numba's cache yet, which keeps no text."""
    from gpubce.backends.cpu import compile as compiled

    recipe = Recipe(prediction="float16", target="float16", outputs=("loss", "gradient"), sums=("loss",))
    kernel = compiled.whole(KernelKey(recipe, (FLAT,) * 4))
    text = "\n".join(kernel.inspect_asm().values())
    patterns = {"fma": r"\bvfn?m(add|sub)\d", "f16c": r"\bvcvtp(h2ps|s2ph)", "ymm": "%ymm", "zmm": "%zmm"}
    return {name for name, pattern in patterns.items() if re.search(pattern, text)}


def gpu(case: Case, plan: Plan = PLAN) -> Results:
    """A CUDA device: host arrays are brought there and back."""
    before = dispatch.PLAN
    dispatch.PLAN = plan
    try:
        return run_case(case, device="cuda")
    finally:
        dispatch.PLAN = before
