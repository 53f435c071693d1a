"""Many callers at once: threads, executors, processes and forked children. Each gets the bits of a call by itself."""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpubce
from gpubce import dispatch
from gpubce.backends import threads
from gpubce.backends.cpu import compile as compiled
from gpubce.backends.cpu.launch import CpuEngine
from gpubce.spec.plan import Plan
from tests.processes import SMALL_CALL, finish, run, small_call, start

CALLERS = 8

has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

random = np.random.default_rng(5)
SMALL, LARGE = ((random.normal(0, 3, n).astype(np.float32), random.random(n) < 0.4) for n in (1000, 500_000))
mean = gpubce.BinaryCrossEntropy(from_logits=True)
label_mean = gpubce.BinaryCrossEntropy(from_logits=True, axis=0)


@pytest.fixture(autouse=True)
def no_hang(request):
    """What hangs here, and not in a process of its own, ends this one, with a trace of every thread."""
    asked = request.getfixturevalue("seconds") if "seconds" in request.fixturenames else 0
    faulthandler.dump_traceback_later(200 + 4 * asked, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def value(arrays) -> bytes:
    return mean(*arrays).tobytes()


def value_and_grad(arrays) -> bytes:
    return b"".join(array.tobytes() for array in mean.value_and_grad(*arrays))


def grad_and_hess(arrays) -> bytes:
    return b"".join(array.tobytes() for array in mean.grad_and_hess(*arrays))


def label_losses(arrays) -> bytes:
    return label_mean(*(array.reshape(-1, 50) for array in arrays)).tobytes()


def invalid(arrays) -> bytes:
    with pytest.raises(gpubce.errors.InvalidValueError) as caught:
        mean(arrays[0], np.float32(2) + arrays[1])
    return str(caught.value).encode()


def report(arrays) -> bytes:
    evaluator = gpubce.Evaluator(from_logits=True)
    for part in np.array_split(np.arange(len(arrays[0])), 3):
        evaluator.update(*(array[part] for array in arrays))
    return repr(evaluator.report()).encode()


KINDS: tuple[Callable[..., bytes], ...] = (value, value_and_grad, grad_and_hess, label_losses, invalid, report)
JOBS = [(kind, arrays) for kind in KINDS for arrays in (SMALL, LARGE)]


@pytest.fixture(scope="module")
def alone() -> list[bytes]:
    """What each job gives when nothing else runs."""
    return [kind(arrays) for kind, arrays in JOBS]


# Threads ------------------------------------------------------------------------------------------------------------


def test_eight_threads_with_the_same_and_with_different_calls(alone):
    start_together = threading.Barrier(CALLERS)
    found: dict[int, list[bytes]] = {}

    def caller(k: int) -> None:
        start_together.wait()
        found[k] = [kind(arrays) for kind, arrays in JOBS]  # All with the same one.
        order = [(place + k) % len(JOBS) for place in range(len(JOBS))]  # Each with its own.
        again = {place: JOBS[place][0](JOBS[place][1]) for place in order}
        found[k] += [again[place] for place in range(len(JOBS))]

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(CALLERS)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert found == dict.fromkeys(range(CALLERS), alone + alone)


def test_thread_pool(alone):
    with ThreadPoolExecutor(CALLERS) as pool:
        assert list(pool.map(lambda job: job[0](job[1]), JOBS * 3)) == alone * 3


def test_asyncio(alone):
    async def everything():
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(CALLERS) as pool:
            elsewhere = [loop.run_in_executor(pool, kind, arrays) for kind, arrays in JOBS]
            other = [asyncio.to_thread(kind, arrays) for kind, arrays in JOBS]
            here = [kind(arrays) for kind, arrays in JOBS]
            return [await asyncio.gather(*elsewhere), await asyncio.gather(*other), here]

    assert asyncio.run(everything()) == [alone] * 3


def test_evaluators_of_threads_merge_to_the_bits_of_one_thread():
    parts = np.array_split(np.arange(len(LARGE[0])), CALLERS)

    def evaluated(part) -> gpubce.Evaluator:
        evaluator = gpubce.Evaluator(from_logits=True)
        evaluator.update(*(array[part] for array in LARGE))
        return evaluator

    with ThreadPoolExecutor(CALLERS) as pool:
        first, *others = pool.map(evaluated, parts)
    whole, *rest = map(evaluated, parts)
    assert first.merge(*others).state_dict() == whole.merge(*rest).state_dict()


def test_no_more_threads_than_asked_for(alone):
    def helpers():
        return sum(thread.name.startswith("gpubce") for thread in threading.enumerate())

    before, before_helpers = threading.active_count(), helpers()  # Other tests may have asked for more.
    for size in range(100_000, 2_000_000, 100_000):  # From 2 to 30 threads would pay.
        mean(np.broadcast_to(np.float32(0.5), (size,)), np.broadcast_to(np.True_, (size,)))
    assert threading.active_count() == before
    assert helpers() <= max(before_helpers, gpubce.devices().threads - 1)


def test_a_kernel_that_threads_need_at_once_is_compiled_once(monkeypatch):
    compilations = []

    def compile_slowly(*arguments):
        compilations.append(arguments)
        time.sleep(0.2)
        return object()

    monkeypatch.setattr(compiled, "_compiled", compile_slowly)
    of_nobody = Plan(lanes=2, rows=3, chunk=5)
    with ThreadPoolExecutor(CALLERS) as pool:
        kernels = list(pool.map(compiled.combine, [of_nobody] * CALLERS))
    assert len(compilations) == len(set(kernels)) == 1


def test_first_calls_of_eight_threads(tmp_path):
    """Nothing is imported and nothing compiled before they start, four with one kernel and four with another."""
    program = f"""
import sys, threading, time
{SMALL_CALL}
def slowly(frame, event, argument):
    if frame.f_code.co_name == "<module>" and str(frame.f_globals.get("__name__")).startswith("gpubce"):
        time.sleep(0.02)  # The others run while this module is half imported.
threading.settrace(slowly)
def gradient():
    return gpubce.BinaryCrossEntropy(from_logits=True, reduction="sum").value_and_grad(x, y)[1].tobytes()
found = {{}}
together = threading.Barrier({CALLERS})
def caller(k):
    together.wait()
    found[k] = (call, gradient)[k % 2]()
callers = [threading.Thread(target=caller, args=(k,)) for k in range({CALLERS})]
for thread in callers:
    thread.start()
for thread in callers:
    thread.join()
assert found == {{k: (call, gradient)[k % 2]() for k in range({CALLERS})}}, found
print(call().hex())
"""
    assert run(program, tmp_path).strip() == small_call().hex()


def test_calls_as_the_interpreter_ends():
    """Of a thread that outlives the main one, and of a function that runs at exit."""
    program = f"""
import atexit, threading
{SMALL_CALL}
x, y = np.resize(x, 500_000), np.resize(y, 500_000)
expected = call()
def late():
    threading.main_thread().join()
    print("thread", call() == expected)
threading.Thread(target=late).start()
atexit.register(lambda: print("exit", call() == expected))
"""
    assert run(program) == "thread True\nexit True\n"


# Numba's threading layers -------------------------------------------------------------------------------------------

BESIDE = f"""
import sys, threading
{SMALL_CALL}
import numba
x, y = np.resize(x, 500_000), np.resize(y, 500_000)
expected = call()
results = set()
def caller():
    for _ in range(20):
        results.add(call())
callers = [threading.Thread(target=caller) for _ in range({CALLERS})]
"""

ALONE = """
for thread in callers:
    thread.start()
for thread in callers:
    thread.join()
try:
    print(numba.threading_layer())
except ValueError as error:
    print("none" if "not initialized" in str(error) else error)
print(results == {expected})
"""

WITH_PARALLEL_CODE = """
@numba.njit(parallel=True)
def total(array):
    result = 0
    for k in numba.prange(array.size):
        result += array[k]
    return result
ones = np.ones(100_000, np.int64)
try:
    assert total(ones) == 100_000
except ValueError:  # The layer's library cannot be loaded.
    print("missing")
    sys.exit()
print(numba.threading_layer())
for thread in callers:
    thread.start()
while any(thread.is_alive() for thread in callers):
    assert total(ones) == 100_000
print(results == {expected})
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_no_threading_layer_is_entered(layer):
    """Numba says that none has been launched, whichever is asked for, there or not."""
    assert run(BESIDE + ALONE, NUMBA_THREADING_LAYER=layer) == "none\nTrue\n"


@pytest.mark.parametrize(
    "layer",
    ["workqueue", pytest.param("omp", marks=pytest.mark.exhaustive), pytest.param("tbb", marks=pytest.mark.exhaustive)],
)
def test_beside_parallel_code_of_the_user(layer):
    """The default layer, workqueue, ends the process when a second thread enters while one is in it."""
    # Where pip installs the library of tbb, the loader does not look.
    libraries = os.pathsep.join([f"{sys.prefix}/lib", os.environ.get("LD_LIBRARY_PATH", "")])
    printed = run(BESIDE + WITH_PARALLEL_CODE, NUMBA_THREADING_LAYER=layer, LD_LIBRARY_PATH=libraries)
    if printed == "missing\n":
        pytest.skip(f"the library of Numba's threading layer {layer} is not installed")
    assert printed == f"{layer}\nTrue\n"


# Processes ----------------------------------------------------------------------------------------------------------


def test_processes_share_an_empty_cache(tmp_path):
    """They start at once, so each finds nothing, compiles, and saves under the same name."""
    program = SMALL_CALL + "print(call().hex())"
    processes = [start(program, tmp_path) for _ in range(4)]
    assert len({finish(process) for process in processes}) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbc"}
    assert len(files) == len({path.name.partition("-")[0] for path in files}), "a kernel was saved under two names"


def test_spawned_processes():
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.starmap(mean.value_and_grad, [LARGE, LARGE])
        loss = pool.apply(gpubce.binary_cross_entropy_with_logits, SMALL)
    assert [b"".join(array.tobytes() for array in pair) for pair in found] == [value_and_grad(LARGE)] * 2
    assert loss.tobytes() == value(SMALL)


FORK = f"""
import os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
{SMALL_CALL}
large = np.resize(x, 500_000), np.resize(y, 500_000)
def both():
    return call(), gpubce.binary_cross_entropy_with_logits(*large).tobytes()
def fork():
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # Longer than the parent waits.
        tell()
        os._exit(0)
    return child
def tell():
    os.write(1, (" ".join(part.hex() for part in both()) + "\\n").encode())  # Children write at once: in one piece.
def join(children):
    end = time.monotonic() + 40
    while children:
        for child in list(children):
            if os.waitpid(child, os.WNOHANG)[0]:
                children.remove(child)
        if time.monotonic() > end:
            for child in children:
                os.kill(child, signal.SIGKILL)
            sys.exit(f"{{len(children)}} children hang")
        time.sleep(0.01)
"""

MOMENTS = {
    "before the first call": "children = [fork()]",
    "after a call": "both()\nchildren = [fork() for _ in range(3)]",
    "with threads of its own": """
both()
def both(both=both):
    results = both()
    assert any(thread.name.startswith("gpubce_") for thread in threading.enumerate()), "the child computes alone"
    return results
children = [fork()]
""",
    "in a child": """
both()
child = os.fork()
children = [child or fork()]
if not child:
    join(children)
    os._exit(0)
""",
    "while other threads compute": """
both()
stop = False
def small():
    while not stop:
        call()
def slow():
    while not stop:
        gpubce.binary_cross_entropy_with_logits(np.broadcast_to(x, (2**20, 3)), np.broadcast_to(y, (2**20, 3)))
others = [threading.Thread(target=work) for work in (small, small, slow)]
for thread in others:
    thread.start()
children = []
for _ in range(80):
    children.append(fork())
    time.sleep(0.002)
stop = True
""",
}


def children_agree(printed: str) -> bool:
    lines = printed.splitlines()
    expected = " ".join(part.hex() for part in (value(FORKED[0]), value(FORKED[1])))
    return len(lines) >= 1 and set(lines) == {expected}


x, y = np.float32([0.5, -1.0, 2.0]), np.array([True, False, True])
FORKED = (x, y), (np.resize(x, 500_000), np.resize(y, 500_000))


@has_fork
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_forked_children(moment):
    assert children_agree(run(f"{FORK}{MOMENTS[moment]}\njoin(children)", NUMBA_NUM_THREADS="2"))


@has_fork
@pytest.mark.parametrize("pause", [0.01, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in (0, 0.1, 0.3, 0.7))])
def test_forked_while_another_thread_makes_its_first_call(tmp_path, pause):
    """A fork waits until that thread has imported and compiled: its child has neither the thread nor its locks."""
    program = f"""{FORK}
first = threading.Thread(target=both)
first.start()
children = []
while first.is_alive():
    time.sleep({pause})
    children.append(fork())
join(children)
"""
    assert children_agree(run(program, tmp_path))


@has_fork
def test_pool_of_forked_processes():
    program = f"""{FORK}
import multiprocessing
expected = both()
with multiprocessing.get_context("fork").Pool(3) as pool:
    results = [pool.apply_async(both) for _ in range(9)]
    print({{result.get() for result in results}} == {{expected}})
"""
    assert run(program) == "True\n"


@has_fork
def test_a_handler_that_forks_in_the_middle_of_a_call():
    """The child, which comes back into the call without the other threads, gets an error and may call again."""
    program = f"""{FORK}
both()
def handler(*_):
    global child
    child = os.fork()
signal.signal(signal.SIGALRM, handler)
rows = np.broadcast_to(np.resize(x, 2**12), (2**18, 2**12)), np.broadcast_to(np.resize(y, 2**12), (2**18, 2**12))
gpubce.binary_cross_entropy_with_logits(*(each[:2] for each in rows))  # Compiles: a signal would wait for that.
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    gpubce.binary_cross_entropy_with_logits(*rows)
except gpubce.errors.DeviceError as error:
    print(child, error, flush=True)
if not child:
    tell()
    os._exit(0)
join([child])
"""
    printed = run(program, NUMBA_NUM_THREADS="2").splitlines(keepends=True)
    assert children_agree(printed[-1])
    assert [line[:29] for line in printed[:-1]] == ["0 a signal's handler forked t"]


# A handler that calls, wherever it interrupts -----------------------------------------------------------------------

WITHIN = f"""
import sys
{SMALL_CALL}
from gpubce import dispatch
from gpubce.backends import threads
from gpubce.backends.cpu.launch import CpuEngine
dispatch.cpu_engine = lambda: CpuEngine(2)
x, y = np.resize(x, 500_000), np.resize(y, 500_000)
expected = call()
inner = []
starting = False  # Whether only what is called to start threads is interrupted.
def frames(frame):
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back
def call_too(frame, event, argument):
    if starting and "grow" not in frames(frame.f_back):
        return
    if str(frame.f_globals.get("__name__")).startswith(("gpubce", "threading", "queue", "concurrent")):
        inner.append(call())
"""


@pytest.mark.parametrize("helpers", ["waiting", "not started"])
def test_a_call_within_a_call_at_every_point(helpers):
    """As of a signal's handler or a finalizer: a lock that the interrupted call holds would never be released."""
    program = f"""
{WITHIN}
starting = {helpers == "not started"}
if starting:
    threads._helpers = threads._Helpers()
sys.setprofile(call_too)
outer = call()
sys.setprofile(None)
print(outer == expected, set(inner) == {{expected}}, len(inner) > 5, len(threads._helpers.threads) <= 2)
"""
    assert run(program) == "True True True True\n"


@pytest.fixture
def two_threads(monkeypatch):
    """However many processors there are."""
    monkeypatch.setattr(dispatch, "cpu_engine", lambda: CpuEngine(2))


def test_where_no_thread_can_be_started(two_threads, monkeypatch):
    expected = value(LARGE)
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())

    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert value(LARGE) == expected
    assert threads._helpers.calls.empty()


# For long ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process holds is read from /proc")
@pytest.mark.parametrize("seconds", [10, pytest.param(600, marks=pytest.mark.exhaustive)])
def test_nothing_grows(seconds):
    program = f"import tests.soak; line, grew = tests.soak.soak({seconds}); print(line); raise SystemExit(grew)"
    assert "nothing grew" in run(program, seconds=3 * seconds + 100)
