"""Importing and compiling kernels in one piece, whatever signals and forks come meanwhile.

An exception in the middle, such as that of Ctrl-C, leaves Numba with half a module, half a kernel, or a lock that
nobody releases: later calls failed or waited forever. A child that is forked in the middle, by another thread, waited
forever for the thread that did not come with it.
"""

import contextlib
import logging  # noqa: F401  (It has functions for forks too. If it came while a fork waits here, half of them would run.)
import os
import sys
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import RLock, Thread, current_thread, main_thread
from typing import Any, TypeVar

Result = TypeVar("Result")

loading = RLock()
"""Held by a thread while it imports the kernels."""

_held: list[Any] = []


def _hold() -> None:
    """Let no thread be importing or compiling when this process is forked."""
    loading.acquire()
    _held.append(loading)
    compiler = sys.modules.get("numba.core.compiler_lock")
    if compiler is not None:
        compiler.global_compiler_lock.acquire()
        _held.append(compiler.global_compiler_lock)


def _release() -> None:
    while _held:
        _held.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release)


def in_one_piece(work: Callable[[], Result]) -> Result:
    """What ``work`` gives. Signals are handled in the main thread: there another thread works, and an exception of a
    signal's handler leaves when it is through."""
    if current_thread() is not main_thread():
        return work()
    results: list[Result] = []
    errors: list[BaseException] = []
    bell: SimpleQueue[None] = SimpleQueue()
    process = os.getpid()

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        bell.put(None)

    def wait() -> None:
        # Not Thread.join: in Python 3.11 it takes a thread for ended when a handler raises.
        while not (results or errors) and os.getpid() == process:
            with contextlib.suppress(Empty):
                bell.get(timeout=0.1)

    try:
        Thread(target=do, name="gpubce_compiler").start()
    except RuntimeError:  # The system has no more, or the interpreter is ending.
        return work()
    try:
        wait()
    finally:
        wait()
    if errors:
        raise errors.pop()
    return results.pop() if results else work()  # In a child that a handler forked, there is no such thread.
