"""Where there is no GPU, tests marked ``gpu`` are skipped, with the reason. Under --require-gpu nothing may be skipped.

Tests marked ``meaning`` are about what calls mean and not about kernels. They take the specification executed as
Python, which gives the kernels' bits (test_interpreted, test_contract): the kernels of these 700 tests took a fifth of
the suite's time to compile. With --compiled, as in ci/exhaustive, they meet kernels.

Tests marked ``exhaustive`` are left out unless -m asks for them by name, as ci/exhaustive does."""

import gc
import sys

import pytest

from gpubce.backends.devices import find_gpus
from gpubce.spec.plan import PLAN

# Most of the suite's time compiles kernels, which makes many objects and few cycles: 10% of it was looking for these.
gc.set_threshold(100_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="fail where a test would be skipped")
    parser.addoption("--interpreted", action="store_true", help="execute the specification as Python in every test")
    parser.addoption("--compiled", action="store_true", help="execute kernels in tests of what calls mean too")


@pytest.fixture(autouse=True)
def _interpreted(request):
    """ci/mutation.py asks for either in every test; where it is as Python, nothing is compiled anew for each mutant."""
    asked = request.config.getoption
    about_meaning = "meaning" in request.keywords and not (asked("--compiled") or asked("--require-gpu"))
    if not (about_meaning or asked("--interpreted")):
        yield
        return
    from tests.backends import replaced
    from tests.interpreted import InterpretedEngine

    with replaced(InterpretedEngine, PLAN):
        yield


@pytest.fixture(autouse=True)
def _loadable():
    """Of all kernels that tests compile, none may need what a process that loads it does not set up."""
    yield
    if kept := sys.modules.get("gpubce.backends.kernel_cache"):
        assert not [error for error in kept.refused if "memory management" in str(error)]


def pytest_collection_modifyitems(config, items):
    def leave_out(marker):
        config.hook.pytest_deselected(items=[item for item in items if marker in item.keywords])
        items[:] = [item for item in items if marker not in item.keywords]

    if "exhaustive" not in config.getoption("-m"):
        leave_out("exhaustive")
    if config.getoption("--require-gpu"):
        for marker in ("browser", "peer", "example"):  # Pages and programs that have nothing to do with a device.
            leave_out(marker)
    gpus, reason = find_gpus()
    if gpus or config.getoption("--require-gpu"):
        leave_out("no_gpu")
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.config.getoption("--require-gpu") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under --require-gpu: {report.longrepr}"


def pytest_sessionfinish(session):
    if backends := sys.modules.get("tests.backends"):
        backends.end_processes()
