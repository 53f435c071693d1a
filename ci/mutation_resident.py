"""Pytest that stays: it runs the tests once, then in a forked child for each mutant of a module.

For modules that no kernel is compiled from, and for formulas that are executed as Python. A child has everything
imported and compiled, exchanges the code of the functions that were mutated, and runs the tests that reach a mutated
line: a tenth of a second where the first of them fails. What is mutated outside of functions (a default, a decorator, a
constant) is imported anew by a process of its own.
"""

import difflib
import functools
import gc
import importlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

OPTIONS = ["-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
OPTIONS += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]


class Resident:
    """A plugin of pytest in whose place of running the tests it answers whoever knocks.

    ``answer`` takes a function; it waits for a knock, has a child return the function's result, and gives what the
    child said.
    """

    def __init__(self, module: str, tests: list[str], timeout: int, answer: Callable[[Callable[[], int]], str]):
        self.path = Path(module).resolve()
        self.name = module.removesuffix(".py").replace("/", ".")
        self.source = self.path.read_text()
        self.tests, self.timeout, self.answer = tests, timeout, answer
        self.failed = False
        self.kills: Counter[str] = Counter()
        self.lines: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report):
        self.failed |= report.failed

    def pytest_runtestloop(self, session):
        # The first time compiles kernels, which tracing would make twice as long.
        if not self.passes(session.items):
            raise session.Failed("a test fails with no mutation")
        forget = remembered()
        gc.freeze()
        for item in session.items:
            forget()
            start = time.monotonic()
            with traced(str(self.path)) as self.lines[item.nodeid]:
                self.passes([item])
            self.seconds[item.nodeid] = time.monotonic() - start
        forget()
        while True:
            said = self.answer(lambda: self.meet(session.items))
            for line in said.splitlines():
                if line.startswith("killed by "):
                    self.kills[line.removeprefix("killed by ")] += 1

    def passes(self, items: list) -> bool:
        """Whether all of them pass; the first that does not is named."""
        self.failed = False
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                print(f"killed by {item.nodeid}", flush=True)
                return False
        return True

    def meet(self, items: list) -> int:
        """In a child: 0 if the module passes as it is on disk now."""
        signal.alarm(self.timeout)
        mutated = self.path.read_text()
        try:
            known = exchange(vars(importlib.import_module(self.name)), compiled(self.source), compiled(mutated))
        except (SyntaxError, ValueError):
            known = False
        if not known:
            os.execv(sys.executable, [sys.executable, "-m", "pytest", "-x", *OPTIONS, *self.tests])
        return 0 if self.passes(self.chosen(items, changed_lines(self.source, mutated))) else 1

    def chosen(self, items: list, changed: set[int]) -> list:
        """The tests that reach these lines, those first that have killed most, and quickly. A test that takes its time
        and reaches none of the module may do so in another process."""
        reaching = [
            item
            for item in items
            if self.lines[item.nodeid] & changed or (not self.lines[item.nodeid] and self.seconds[item.nodeid] > 0.1)
        ]
        return sorted(
            reaching if changed else items,
            key=lambda item: (
                not self.lines[item.nodeid],
                -self.kills[item.nodeid] / (0.05 + self.seconds[item.nodeid]),
                self.seconds[item.nodeid],
            ),
        )


@contextmanager
def traced(path: str) -> Iterator[set[int]]:
    """The lines of that file that run."""
    lines: set[int] = set()

    def within(frame, event, argument):
        lines.add(frame.f_lineno)
        return within

    def calls(frame, event, argument):
        return within(frame, event, argument) if frame.f_code.co_filename == path else None

    sys.settrace(calls)
    threading.settrace(calls)
    try:
        yield lines
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]


def remembered() -> Callable[[], None]:
    """A function that empties what the package remembers of calls, and its formulas as Python, but not its kernels."""
    from gpubce.dispatch import Formula
    from tests.interpreted import formulas

    caches = [formulas]
    for thing in gc.get_objects():
        if type(thing) is Formula:
            thing.repeats.clear()
        elif type(thing) is functools._lru_cache_wrapper:
            where = thing.__module__ or ""
            if where.startswith("gpubce.") and not where.startswith(("gpubce.backends", "gpubce.spec")):
                caches.append(thing)

    def forget():
        for known in caches:
            known.cache_clear()

    return forget


def compiled(source: str) -> CodeType:
    return compile(source, "module", "exec", dont_inherit=True)


def changed_lines(before: str, after: str) -> set[int]:
    """The lines that are not the same any more, by their numbers before."""
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    return {
        line + 1 for kind, first, last, _, _ in matcher.get_opcodes() if kind != "equal" for line in range(first, last)
    }


def exchange(names: Any, before: CodeType, after: CodeType) -> bool:
    """Give the functions among these names the code that they have now; False if more than their code has changed."""
    if plain(before) != plain(after):
        return False
    for old, new in zip(nested(before), nested(after), strict=True):
        if old == new:
            continue
        live = names.get(old.co_name)
        if isinstance(live, type):
            if not exchange(vars(live), old, new):
                return False
        else:
            function = unwrapped(live)
            if function is None:
                return False
            function.__code__ = new.replace(co_filename=function.__code__.co_filename)
    return True


def nested(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def plain(code: CodeType) -> tuple:
    """What a code does beside making functions and classes."""
    constants = [item.co_name if isinstance(item, CodeType) else (type(item), item) for item in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


def unwrapped(thing: Any) -> FunctionType | None:
    """The function in a method, a property or a decorated function."""
    for _ in range(9):
        if isinstance(thing, FunctionType) and not hasattr(thing, "__wrapped__"):
            return thing
        for attribute in ("__wrapped__", "__func__", "fget", "make"):
            if hasattr(thing, attribute):
                thing = getattr(thing, attribute)
                break
    return None
