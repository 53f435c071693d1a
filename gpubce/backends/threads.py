"""Share the tasks of a call among threads of our own.

The calling thread always works itself, and threads that wait for work help it. They are not Numba's: its default
threading layer ends the process when two Python threads enter at once. They are not a ThreadPoolExecutor's either: a
signal's handler that calls while the interrupted call hands work over would wait for itself there, and once the main
thread has ended it takes no work.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from time import perf_counter

from gpubce.errors import DeviceError

Work = Callable[[int, int], None]
"""Do the tasks from one number up to, but not including, another."""

SLICE_SECONDS = 0.05
"""A kernel that took less than half of this is given twice as many tasks the next time. Between kernels Python sees
signals: Ctrl-C ends a call after about this time. Shorter ones cost more where other threads keep Python busy: each
return to Python may wait 5 ms for the GIL."""

RANGES = 4
"""For each thread: one that is behind keeps the others waiting for a part of its work only. Files were evaluated at
1,720 million rows a second, and at 1,650 with one range."""

_RUNNING = object()
logger = logging.getLogger("gpubce")


class _Helpers:
    """Threads that wait for calls to help with, until the process ends."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.threads: list[Thread] = []
        self.lock = RLock()  # A signal's handler may come back here.

    def ask(self, call: "_Call", number: int) -> None:
        """Have at most this many threads help with the call: fewer where the system has no more, none of them if they
        are behind with others."""
        if len(self.threads) < number:
            self.grow(number)
        number = min(number, len(self.threads))
        if self.calls.qsize() < 4 * number:
            for place in range(number):
                self.calls.put(partial(call.help, place))

    def grow(self, number: int) -> None:
        """Start threads until there are this many."""
        with self.lock:
            while len(self.threads) < number:
                thread = Thread(target=_help, args=(self.calls,), name=f"gpubce_{len(self.threads)}", daemon=True)
                try:
                    thread.start()
                except (RuntimeError, MemoryError) as error:
                    logger.info("%d threads compute, and not %d: %s", len(self.threads) + 1, number + 1, error)
                    return
                self.threads.append(thread)


def _help(calls: "SimpleQueue[Callable[[], None]]") -> None:
    while True:
        with contextlib.suppress(BaseException):  # The call has it, and raises it where the user is.
            calls.get()()


_helpers = _Helpers()


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Call:
    """The ranges of tasks of one call, and who works on them.

    Every step is a single operation of a dictionary, deque or queue, which a signal can interrupt before or after, and
    which may be repeated.
    """

    def __init__(self, begin: Callable[[], Work], ranges: list[tuple[int, int]], first_slice: int, helpers: int):
        self.begin = begin
        self.ranges = deque(ranges)
        self.first_slice = first_slice
        self.stopped = False
        self.joined: dict[int, bool] = {}
        """For each place of a helper, whether one took it, or the call ended before."""
        self.ended: dict[int, object] = dict.fromkeys(range(helpers), _RUNNING)
        """For each place, None or the error with which the helper ended."""
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.process = os.getpid()

    def work(self) -> None:
        """Take ranges until none is left."""
        do = self.begin()
        step = self.first_slice
        while not self.stopped:
            try:
                first, last = self.ranges.popleft()
            except IndexError:
                return
            while first < last and not self.stopped:
                end = min(first + step, last)
                started = perf_counter()
                do(first, end)
                if end - first == step and perf_counter() - started < SLICE_SECONDS / 2:
                    step *= 2
                first = end

    def help(self, place: int) -> None:
        """The same in another thread, unless the call has ended."""
        if not self.joined.setdefault(place, True):
            return
        try:
            self.work()
        except BaseException as error:
            self.stopped = True
            self.ended[place] = error
        else:
            self.ended[place] = None
        self.bell.put(None)

    def wait(self) -> None:
        """Wait for the helpers that have begun. The others will find that the call has ended."""
        begun = [place for place in self.ended if self.joined.setdefault(place, False)]
        # A list and no generator: an interrupt that arrives while a generator is thrown away is lost.
        while [place for place in begun if self.ended[place] is _RUNNING]:
            if os.getpid() != self.process:
                raise DeviceError(
                    "a signal's handler forked this process in the middle of a call, whose other threads stayed in the "
                    "parent: the child must call again"
                )
            with contextlib.suppress(Empty):
                self.bell.get(timeout=0.1)  # The bell may have rung for a wait that a signal interrupted.

    def errors(self) -> list[BaseException]:
        """Those of the helpers, handed over: an error knows the frames that know the call."""
        found = [error for error in self.ended.values() if isinstance(error, BaseException)]
        self.ended.clear()
        return found


def share(begin: Callable[[], Work], tasks: int, threads: int, first_slice: int) -> None:
    """Do tasks 0 .. tasks - 1 on at most that many threads.

    Each thread calls ``begin`` once, then what it gives with ranges of at first ``first_slice`` tasks. If anything
    raises, in whichever thread, the others are through when the error leaves: the arrays may be freed then.
    """
    if threads <= 1 and tasks <= first_slice:
        begin()(0, tasks)
        return
    ranges = min(tasks, RANGES * threads)
    edges = [tasks * k // ranges for k in range(ranges + 1)]
    call = _Call(begin, list(pairwise(edges)), first_slice, threads - 1)
    try:
        if threads > 1:
            _helpers.ask(call, threads - 1)
        call.work()
        call.wait()
    except BaseException:
        call.stopped = True
        while True:
            try:
                call.wait()
            except DeviceError:
                break
            except BaseException:  # A second Ctrl-C does not leave earlier than the first.
                continue
            break
        raise
    errors = call.errors()
    if errors:
        raise errors.pop()
