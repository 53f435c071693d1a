"""Signals, memory that runs out, full disks, files that are damaged or gone: an error, and nothing is left behind.

What a call gives after a fault has the bits of a call before it.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import numba
import numpy as np
import pytest

import gpubce
from gpubce import cli, dispatch
from gpubce.backends import threads
from gpubce.backends.cpu import compile as compiled
from gpubce.backends.cpu import launch
from gpubce.backends.kernel_key import SettleKey
from tests.processes import SMALL_CALL, finish, run, small_call, start
from tests.tolerances import ANONYMOUS_MEGABYTES, INTERRUPT_SECONDS

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and memory are those of Linux")
has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

N = 500_000
random = np.random.default_rng(3)
X, Y = random.normal(0, 3, N).astype(np.float32), random.random(N) < 0.4
mean = gpubce.BinaryCrossEntropy(from_logits=True)
EXPECTED = mean(X, Y).tobytes()


class Stop(Exception):
    """What a signal's handler raises."""


@pytest.fixture
def two_threads(monkeypatch):
    """However many processors there are."""
    monkeypatch.setattr(dispatch, "cpu_engine", lambda: launch.CpuEngine(2))


def at_work() -> list[str]:
    """The threads of ours that work on a call."""
    found = []
    for thread in threading.enumerate():
        frame = sys._current_frames().get(thread.ident or 0)
        while frame is not None and thread.name.startswith("gpubce"):
            if frame.f_code is threads._Call.work.__code__:
                found.append(thread.name)
            frame = frame.f_back
    return found


# Signals ------------------------------------------------------------------------------------------------------------


def test_an_exception_of_a_handler_ends_a_long_call():
    """In the kernels over all elements and along axes, which would take 10 s and more; later calls are right."""
    program = f"""
import os, signal, sys, threading, time
{SMALL_CALL}
expected = call()
class Stop(Exception):
    pass
def stop(*_):
    raise Stop
signal.signal(signal.SIGALRM, stop)
row, labels = np.resize(x, 2**16), np.resize(y, 2**16)
whole = gpubce.BinaryCrossEntropy(from_logits=True)
labelled = gpubce.BinaryCrossEntropy(from_logits=True, axis=0)
cases = (
    (whole, np.broadcast_to(row, (2**17, 2**16)), np.broadcast_to(labels, (2**17, 2**16))),
    (labelled, *(np.broadcast_to(np.resize(a, 256)[:, None], (256, 2**23)) for a in (x, y))),  # One run of them.
)
for loss, logits, targets in cases:
    loss(logits[:2, :8], targets[:2, :8])
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGALRM, Stop)):
        sent = []
        def send():
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)
        timer = threading.Timer(0.3, send)
        timer.start()
        try:
            loss(logits, targets)
        except error:
            print(time.monotonic() - sent[0])
        else:
            sys.exit("the call ended before the signal")
        timer.join()
        assert call() == expected
"""
    waited = [float(line) for line in run(program).split()]
    assert len(waited) == 4
    assert max(waited) < INTERRUPT_SECONDS


def test_nothing_is_written_once_the_exception_has_left(two_threads):
    """The memory of the results may belong to others then."""
    rows = np.broadcast_to(X[: 2**12], (2**12, 2**12))
    targets = np.broadcast_to(Y[: 2**12], rows.shape)
    out = np.zeros(rows.shape, np.float32)
    loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")
    loss(rows[:2], targets[:2])

    def stop(*_):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for seconds in (0.001, 0.002, 0.005, 0.01, 0.02):
            out[:] = -1.0
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                loss(rows, targets, out=out)
                time.sleep(1.0)  # The signal was late.
            except Stop:
                assert at_work() == []
            left = out.copy()
            time.sleep(0.05)
            assert np.array_equal(left, out)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_an_exception_at_every_point_of_a_call(two_threads):
    """A handler can raise wherever Python looks for signals: here at each call and return of a function."""
    modules = ("gpubce.", "contextlib", "queue", "threading")
    points = 0
    while True:
        seen = 0

        def interrupt(frame, event, argument, until=points):
            nonlocal seen
            if frame.f_globals.get("__name__", "").startswith(modules):
                seen += 1
                if seen > until:
                    sys.setprofile(None)
                    raise Stop

        sys.setprofile(interrupt)
        try:
            found = mean(X, Y).tobytes()
        except Stop:
            points += 1
            assert at_work() == []
            continue
        finally:
            sys.setprofile(None)
        assert found == EXPECTED
        break
    assert points > 100
    assert mean(X, Y).tobytes() == EXPECTED


@pytest.mark.parametrize(
    "seconds", [0.3, *(pytest.param(s / 10, marks=pytest.mark.exhaustive) for s in (0.1, 0.5, 1, 2, 4, 6, 8, 10, 12))]
)
def test_interrupted_again_and_again_during_the_first_call(tmp_path, seconds):
    """While Numba is imported and kernels are compiled; calls of this and other threads are right later."""
    program = f"""
import signal, threading
{SMALL_CALL}
class Stop(Exception):
    pass
def stop(*_):
    raise Stop
signal.signal(signal.SIGALRM, stop)
stops = 0
while True:
    signal.setitimer(signal.ITIMER_REAL, {seconds})
    try:
        found = call()
        signal.setitimer(signal.ITIMER_REAL, 0)
        break
    except Stop:
        stops += 1
def other():
    print(stops, found.hex(), call().hex())
thread = threading.Thread(target=other)
thread.start()
thread.join()
"""
    assert run(program, tmp_path).split()[1:] == [small_call().hex()] * 2


def test_terminated():
    """SIGTERM ends the process at once, also while its threads compute."""
    program = f"""
{SMALL_CALL}
call()
print("ready", flush=True)
gpubce.binary_cross_entropy_with_logits(*(np.broadcast_to(np.resize(a, 2**16), (2**17, 2**16)) for a in (x, y)))
"""
    process = start(program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.terminate()
    finish(process, INTERRUPT_SECONDS, expected=-signal.SIGTERM)


# Errors in threads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_an_error_leaves_when_all_threads_are_through(who):
    """Whichever thread it is in."""
    both_begun = threading.Barrier(2)
    ended = []

    def begin():
        caller = threading.current_thread() is threading.main_thread()

        def work(first, last):
            both_begun.wait(10)
            if caller == (who == "caller"):
                raise Stop
            time.sleep(0.2)
            ended.append(first)

        return work

    with pytest.raises(Stop):
        threads.share(begin, tasks=2, threads=2, first_slice=1)
    assert len(ended) == 1


def test_an_error_stops_the_others():
    done: list[int] = []

    def begin():
        caller = threading.current_thread() is threading.main_thread()

        def work(first, last):
            time.sleep(0.0005 * (last - first))
            done.extend(range(first, last))
            if caller:
                raise Stop

        return work

    with pytest.raises(Stop):
        threads.share(begin, tasks=10_000, threads=4, first_slice=1)
    assert len(done) < 2000


def test_every_task_is_done_once():
    for tasks, count, first_slice in itertools.product((1, 2, 3, 17, 1000), (1, 2, 3, 8), (1, 2, 1000)):
        done: list[int] = []
        threads.share(lambda done=done: lambda first, last: done.extend(range(first, last)), tasks, count, first_slice)
        assert sorted(done) == list(range(tasks))


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_too_little_memory_for_one_thread(two_threads, monkeypatch, who):
    scratch = compiled.scratch

    def fail(cells):
        if (threading.current_thread() is threading.main_thread()) == (who == "caller"):
            raise MemoryError("no scratch")
        time.sleep(0.01)
        return scratch(cells)

    def many_calls():
        for _ in range(100):  # The caller may have done everything before the helper came.
            mean(X, Y)

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "scratch", fail)
        with pytest.raises(MemoryError, match="no scratch"):
            many_calls()
    assert at_work() == []
    assert mean(X, Y).tobytes() == EXPECTED


def test_errors_hold_no_memory(two_threads, monkeypatch):
    """Once they are dropped, the arrays of the call are free, without the garbage collector."""

    def fail(cells):
        raise MemoryError

    def failing(logits, targets):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "scratch", fail)
            mean(logits, targets)

    def invalid(logits, targets):
        mean(logits, targets + np.float32(2))

    def unfit(logits, targets):
        mean(logits, targets[:-1])

    gc.collect()
    gc.disable()
    try:
        for wrong, error in (
            (failing, MemoryError),
            (invalid, gpubce.errors.InvalidValueError),
            (unfit, gpubce.errors.ShapeError),
        ):
            logits, targets = X.copy(), Y.copy()
            left = weakref.ref(logits), weakref.ref(targets)
            try:
                wrong(logits, targets)
            except error:
                pass
            else:
                pytest.fail(f"{wrong.__name__} raises nothing")
            del logits, targets
            assert [reference() for reference in left] == [None, None], wrong.__name__
    finally:
        gc.enable()


def test_calls_hold_no_memory(two_threads):
    """Nor do the threads that helped."""
    gc.collect()
    gc.disable()
    try:
        logits, targets = X.copy(), Y.copy()
        left = weakref.ref(logits), weakref.ref(targets)
        gradient = mean.value_and_grad(logits, targets)[1]
        left += (weakref.ref(gradient),)
        del logits, targets, gradient
        assert [reference() for reference in left] == [None] * 3
    finally:
        gc.enable()


# Limits of memory ---------------------------------------------------------------------------------------------------

LIMIT = """
import resource, threading
def limit(megabytes, kind="RLIMIT_DATA", what="VmData:"):
    used = int(open("/proc/self/status").read().split(what)[1].split()[0]) * 1024
    resource.setrlimit(getattr(resource, kind), (used + (megabytes << 20), resource.RLIM_INFINITY))
def unlimit():
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
"""


@on_linux
def test_memory_that_runs_out():
    """A result that does not fit is a MemoryError; smaller calls are right, before and after the limit is gone."""
    program = f"""
import gc
{LIMIT}
{SMALL_CALL}
n = 2**25
views = np.broadcast_to(np.float32(0.5), (n,)), np.broadcast_to(np.True_, (n,))
each = gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")
part = each(views[0][:500_000], views[1][:500_000])
expected = call()
for kind, what in (("RLIMIT_DATA", "VmData:"), ("RLIMIT_AS", "VmSize:")):
    limit(64, kind, what)
    pages = []
    for _ in range(4):
        try:
            each(*views)
        except MemoryError as error:
            assert "Unable to allocate 128" in str(error), error
        else:
            raise SystemExit("the limit does not work")
        pages.append(int(open("/proc/self/statm").read().split()[0]))
    assert max(pages) - pages[0] < 256, pages  # Less than 1 MB, of 128 that were asked for each time.
    assert call() == expected
    assert np.array_equal(each(views[0][:500_000], views[1][:500_000]), part)
    unlimit()
assert each(*views)[-1] == part[0]
print(call() == expected)
"""
    assert run(program) == "True\n"


@on_linux
def test_threads_that_the_limit_forbids():
    """A thread needs memory for its stack: without it, the calling one does everything."""
    program = f"""
{LIMIT}
{SMALL_CALL}
call()
x, y = np.resize(x, 500_000), np.resize(y, 500_000)
from gpubce.backends.cpu import launch
from gpubce import dispatch
dispatch.cpu_engine, two = (lambda: launch.CpuEngine(1)), lambda: launch.CpuEngine(2)
expected = call()
dispatch.cpu_engine = two
threading.stack_size(64 << 20)  # The C library keeps smaller ones of threads that have ended.
limit(4)
print(call() == expected, threading.active_count())
unlimit()
print(call() == expected, threading.active_count())
"""
    assert run(program) == "True 1\nTrue 2\n"


@on_linux
def test_too_little_memory_to_compile_many_sums(tmp_path):
    """They take more of it than the kernel that was compiled before."""
    program = f"""
{LIMIT}
{SMALL_CALL}
call()
evaluator = gpubce.Evaluator(from_logits=True, per_label=True, metrics="all")
def update():
    evaluator.update(np.zeros((2048, 3), np.float32), np.zeros((2048, 3), bool))
limit(70, "RLIMIT_AS", "VmSize:")
try:
    update()
except MemoryError as error:
    print("raise its limit of memory" in str(error))
unlimit()
update()
print(evaluator.report().count)
"""
    assert run(program, tmp_path) == "True\n6144\n"


@on_linux
@pytest.mark.parametrize("megabytes", [60, pytest.param(250, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("kind", "what"),
    [("RLIMIT_AS", "VmSize:"), pytest.param("RLIMIT_DATA", "VmData:", marks=pytest.mark.exhaustive)],
)
def test_too_little_memory_to_compile(tmp_path, kind, what, megabytes):
    """LLVM ends the process where it gets no memory, and importing SciPy may hang: the error comes before that."""
    program = f"""
{LIMIT}
{SMALL_CALL}
limit({megabytes}, "{kind}", "{what}")
for _ in range(2):
    try:
        call()
    except MemoryError as error:
        assert "raise its limit of memory" in str(error), error
        print("MemoryError")
unlimit()
print(call().hex())
"""
    *errors, found = run(program, tmp_path).split()
    assert errors in ([], ["MemoryError"], ["MemoryError"] * 2)  # What importing takes, differs.
    assert errors or megabytes > 200
    assert found == small_call().hex()


# Kernels on disk ----------------------------------------------------------------------------------------------------

KEY = SettleKey("float32", False, False, None)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of compiled kernels."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def settled() -> tuple[float, int]:
    """What a kernel made or loaded now computes, and whether it was loaded."""
    kernel = compiled.settle.__wrapped__(KEY)
    states, result = np.array([[3.0, 0.5]]), np.zeros(1, np.float32)
    kernel(1, states.ctypes.data, result.ctypes.data, 0, 0, 2.0, 0.0, 1.0, 1.0, 0)
    return float(result[0]), sum(kernel.stats.cache_hits.values())


def kernel_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_kernel_is_kept_in_one_file(folder):
    assert [settled(), settled()] == [(1.75, 0), (1.75, 1)]
    (path,) = kernel_files(folder)
    assert path.suffix == ".nbc"


def test_damaged_files_are_not_read(folder):
    """Whatever is done to a file: the value is right, and the file is put right."""
    settled()
    (path,) = kernel_files(folder)
    whole = path.read_bytes()
    other = bytearray(whole)
    other[:32] = bytes(32)
    damaged = [b"", b"\n", whole[:20], whole[:-1], whole + b"\0", whole[32:], bytes(len(whole)), bytes(other)]
    for place in np.linspace(0, len(whole) - 1, 12).astype(int):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        assert settled() == (1.75, 0)
        assert settled() == (1.75, 1)
        assert len(kernel_files(folder)) == 1


def test_files_of_another_kernel_or_another_version_are_not_read(folder, monkeypatch):
    from gpubce.backends import kernel_cache

    settled()
    (path,) = kernel_files(folder)
    whole = path.read_bytes()
    compiled.settle.__wrapped__(SettleKey("float64", False, False, None))
    (other,) = set(kernel_files(folder)) - {path}
    path.write_bytes(other.read_bytes())
    assert settled() == (1.75, 0)
    path.write_bytes(whole)
    monkeypatch.setattr(kernel_cache, "specification_hash", lambda: "of later formulas")
    assert settled() == (1.75, 0)
    assert settled() == (1.75, 1)


def test_a_folder_that_is_deleted_or_in_the_way(folder):
    settled()
    for path in kernel_files(folder):
        path.unlink()
    for place in sorted(folder.rglob("*"), reverse=True):
        place.rmdir()
    folder.rmdir()
    assert [settled(), settled()] == [(1.75, 0), (1.75, 1)]
    (path,) = kernel_files(folder)
    path.unlink()
    path.mkdir()
    assert [settled(), settled()] == [(1.75, 0), (1.75, 0)]
    assert kernel_files(folder) == []


def fails(*arguments, **keywords):
    raise OSError(28, "No space left on device")


def no_writing(path, mode="r", *rest, **options):
    return fails() if "w" in mode else open(path, mode, *rest, **options)


@pytest.mark.parametrize("what", ["open", "os.replace", "os.makedirs"])
def test_a_disk_that_is_full_or_read_only(folder, monkeypatch, what):
    """Each of the steps of saving a kernel may fail. Nothing half done stays."""
    with monkeypatch.context() as patch:
        if what == "open":
            patch.setattr("gpubce.backends.kernel_cache.open", no_writing, raising=False)
        else:
            patch.setattr(what, fails)
        assert [settled(), settled()] == [(1.75, 0), (1.75, 0)]
        assert kernel_files(folder) == []
    assert [settled(), settled()] == [(1.75, 0), (1.75, 1)]


def test_a_folder_filled_before_it_was_made_read_only(folder, monkeypatch):
    """As in the image of a container: what is there is read, and nothing is written elsewhere instead."""
    settled()
    monkeypatch.setattr("gpubce.backends.kernel_cache.open", no_writing, raising=False)
    for step in ("os.makedirs", "os.replace", "tempfile.TemporaryFile"):
        monkeypatch.setattr(step, fails)
    assert settled() == (1.75, 1)


@pytest.fixture
def home(folder, monkeypatch) -> Path:
    """The user's own folder, the last that Numba chooses. Kernels have keys that no other test has."""
    home = folder.parent / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr("gpubce.backends.kernel_cache.specification_hash", lambda: "of this test alone")
    return home


def only_there(patch: pytest.MonkeyPatch, place: Path) -> None:
    """Nothing else can be written."""
    makedirs = os.makedirs
    patch.setattr("os.access", lambda path, mode: str(path).startswith(str(place)))
    patch.setattr("os.makedirs", lambda path, **how: makedirs(path, **how) if str(place) in path else fails())


def test_a_folder_that_is_read_only_is_read_first(folder, home, monkeypatch):
    """Other kernels go to the next folder that Numba would choose and that can be written."""
    settled()
    only_there(monkeypatch, home)
    other = SettleKey("float64", False, False, None)
    hits = [sum(compiled.settle.__wrapped__(other).stats.cache_hits.values()) for _ in range(2)]
    assert hits == [0, 1]
    assert settled() == (1.75, 1)
    assert len(kernel_files(folder)) == len(kernel_files(home)) == 1


def test_a_folder_that_can_be_written_is_read_alone(folder, home, monkeypatch):
    """What is in another must not be missing from an image into which this one is copied."""
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "CACHE_DIR", "")
        only_there(patch, home)
        assert [settled(), settled()] == [(1.75, 0), (1.75, 1)]
    assert settled() == (1.75, 0)
    assert len(kernel_files(folder)) == len(kernel_files(home)) == 1


@on_linux
def test_a_first_call_where_nothing_can_be_written(tmp_path):
    """Files of at most 100 bytes, which is what a full disk is like, in a folder that is not there."""
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
{SMALL_CALL}
print(call().hex())
"""
    assert run(program, tmp_path / "none").strip() == small_call().hex()
    assert kernel_files(tmp_path) == []


# gpubce evaluate ----------------------------------------------------------------------------------------------------

FILES = """
import json, os, resource, signal, sys
from pathlib import Path
import numpy as np
from gpubce import cli
folder = Path({folder!r})
np.savez(folder / "a.npz", prediction=[0.25, 0.5], target=[1, 0])
target = folder / "out.json"
def evaluate():
    return cli.main(["evaluate", str(folder / "a.npz"), "--json", str(target)])
sys.stdout = open(os.devnull, "w")
assert evaluate() == 0
new = target.read_text()
"""


@has_fork
@pytest.mark.parametrize("old", ["", "what was there before\n" * 100])
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_at_every_point_of_writing(tmp_path, old, step):
    """kill -9 leaves the old file or the new one, whole."""
    program = f"""
{FILES.format(folder=str(tmp_path))}
old = {old!r}
def child(points):
    seen = 0
    def kill(frame, event, argument):
        nonlocal seen
        seen += 1
        if seen > points:
            os.kill(os.getpid(), signal.SIGKILL)
    def dumps(*arguments, **options):  # The last thing before the file is written.
        text = to_text(*arguments, **options)
        sys.setprofile(kill)
        return text
    to_text, json.dumps = json.dumps, dumps
    evaluate()
    sys.setprofile(None)
    os._exit(0)
kept = {{}}
for points in range(0, 1000, {step}):
    target.unlink(missing_ok=True)
    if old:
        target.write_text(old)
    pid = os.fork()
    if not pid:
        child(points)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = target.read_text() if target.exists() else ""
    kept[found] = kept.get(found, 0) + 1
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    assert found in (old, new), found
assert found == new
assert set(kept) == {{old, new}}
assert kept[old] > 10, kept
print(kept[old], kept[new])
"""
    run(program)


@on_linux
def test_a_disk_that_is_full_as_json_is_written(tmp_path):
    """The old file stays, and nothing else."""
    program = f"""
{FILES.format(folder=str(tmp_path))}
before = sorted(path.name for path in folder.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
assert evaluate() == 2
assert target.read_text() == new
target.unlink()
assert evaluate() == 2
assert sorted([*(path.name for path in folder.iterdir()), "out.json"]) == before
"""
    process = start(program)
    assert process.stderr is not None
    finish(process)


def test_json_through_a_link_and_with_its_mode(tmp_path):
    np.savez(tmp_path / "a.npz", prediction=[0.25], target=[1])
    (tmp_path / "elsewhere").mkdir()
    kept = tmp_path / "elsewhere" / "kept.json"
    kept.write_text("{}")
    kept.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(kept)
    assert cli.main(["evaluate", str(tmp_path / "a.npz"), "--json", str(link)]) == 0
    assert link.is_symlink()
    assert json.loads(kept.read_text())["figures"]["count"] == 1
    assert kept.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.npz", "elsewhere", "kept.json", "link.json"]


# Inputs in files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path) -> tuple[Path, Path]:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    return tmp_path / "x.npy", tmp_path / "y.npy"


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_mapped_inputs(stored, mode):
    before = [path.read_bytes() for path in stored]
    x, y = (np.load(path, mmap_mode=mode) for path in stored)
    assert mean(x, y).tobytes() == EXPECTED
    value, gradient = mean.value_and_grad(x, y)
    assert value.tobytes() == EXPECTED
    assert type(gradient) is np.ndarray
    if mode == "r":
        with pytest.raises(gpubce.errors.ArrayError, match="grad_out"):
            mean.value_and_grad(x, y, grad_out=x)
    else:
        in_place = mean.value_and_grad(x, y, grad_out=x)[1]
        assert in_place is x
        assert np.array_equal(x, gradient)
    if mode != "r+":
        assert [path.read_bytes() for path in stored] == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps mapped files")
def test_inputs_that_are_deleted_while_mapped(stored):
    x, y = (np.load(path, mmap_mode="r") for path in stored)
    for path in stored:
        path.unlink()
    assert mean(x, y).tobytes() == EXPECTED


@on_linux
@pytest.mark.parametrize("elements", [30_000_000, pytest.param(3_000_000_000, marks=pytest.mark.exhaustive)])
def test_more_elements_than_memory(tmp_path, elements):
    """float16 logits and uint8 targets in sparse files, 3 bytes an element: what is not in the files stays small."""
    for name, size in (("x", 2 * elements), ("y", elements)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    program = f"""
import threading, time
import numpy as np
import gpubce
def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024
x = np.memmap({str(tmp_path / "x")!r}, np.float16, "r")
y = np.memmap({str(tmp_path / "y")!r}, np.uint8, "r")
assert x.shape == y.shape == ({elements},)
loss = gpubce.BinaryCrossEntropy(from_logits=True)
one = loss(x[:1], y[:1])
start = most = anonymous()
results = []
thread = threading.Thread(target=lambda: results.append(loss(x, y)))
thread.start()
while thread.is_alive():
    most = max(most, anonymous())
    time.sleep(0.01)
assert results == [one], (results, one)
assert one == np.float32(np.log(2))
print(most - start)
"""
    assert float(run(program, seconds=590)) < ANONYMOUS_MEGABYTES
