"""Where outputs are many, a CPU settles their sums part by part, so that they never are in memory all at once: the same
bits and errors as if they were."""

from dataclasses import replace

import numpy as np
import pytest

import gpubce
from gpubce.backends import pipeline
from gpubce.backends.cpu import launch
from gpubce.errors import InvalidValueError
from gpubce.spec.plan import PLAN
from tests import backends
from tests.cases import bits

ROWS, LABELS = 2_533, 7
"""Several parts for each thread, and a last one that is shorter."""

logistic = gpubce.BinaryCrossEntropy(from_logits=True, axis=1)
rng = np.random.default_rng(0)
X = rng.normal(size=(ROWS, LABELS)).astype(np.float32)
Y = (rng.random((ROWS, LABELS)) < 0.3).astype(np.float32)
WEIGHT = rng.random((ROWS, LABELS)).astype(np.float32)
MASK = rng.random((ROWS, LABELS)) < 0.8


@pytest.fixture
def settled(monkeypatch) -> list[int]:
    """The number of outputs of each pass that was settled by parts."""
    seen: list[int] = []
    by_parts = launch.CpuEngine.along_axes_settled

    def counted(self, key, reduced, outputs, *rest):
        seen.append(outputs)
        return by_parts(self, key, reduced, outputs, *rest)

    monkeypatch.setattr(launch.CpuEngine, "along_axes_settled", counted)
    return seen


def called(monkeypatch, call, part: int, threads: int = 2):
    monkeypatch.setattr(pipeline, "PART", part)
    monkeypatch.setattr(launch, "WORTH_A_THREAD", 64)
    with backends.replaced(lambda: backends.CpuEngine(threads), PLAN):
        return call()


def arrays(results) -> tuple[np.ndarray, ...]:
    return results if isinstance(results, tuple) else (results,)


CALLS = {
    "mean": (lambda: logistic(X, Y), 1),
    "sum of float64": (lambda: replace(logistic, reduction="sum", dtype="float64")(X, Y), 1),
    "float64": (lambda: logistic(X.astype(np.float64), Y), 1),
    "by weights": (lambda: replace(logistic, denominator="weights")(X, Y, weight=WEIGHT), 1),
    "by positives": (lambda: replace(logistic, denominator="positives", base=2)(X, Y), 1),
    "by counted elements": (lambda: logistic(X, Y, mask=MASK), 1),
    "transposed": (lambda: replace(logistic, axis=0)(X.T, Y.T), 1),
    "of the first axis": (
        lambda: replace(logistic, axis=0)(np.ascontiguousarray(X.T), np.ascontiguousarray(Y.T)),
        1,
    ),
    "with its gradient": (lambda: logistic.value_and_grad(X, Y, weight=WEIGHT), 1),
    "with the gradient of counted elements": (lambda: logistic.value_and_grad(X, Y, mask=MASK), 2),
    "with the gradient by weights": (
        lambda: replace(logistic, denominator="weights").value_and_grad(X, Y, weight=WEIGHT),
        2,
    ),
    "into an array": (lambda: logistic(X, Y, out=np.empty(ROWS, np.float32)), 1),
}
"""Calls, and how many of their passes have a sum for each row."""


@pytest.mark.parametrize("name", CALLS)
def test_parts_have_the_bits_of_the_whole(name, monkeypatch, settled):
    call, passes = CALLS[name]
    expected = called(monkeypatch, call, part=ROWS)
    assert not settled
    for part, threads in ((1, 1), (300, 1), (300, 3), (ROWS - 1, 2)):
        found = called(monkeypatch, call, part, threads)
        for one, other in zip(arrays(found), arrays(expected), strict=True):
            assert np.array_equal(bits(one), bits(other))
    assert settled == [ROWS] * 4 * passes


@pytest.mark.parametrize("row", [0, ROWS // 2, ROWS - 1])
def test_an_invalid_element_of_any_part_is_told(row, monkeypatch, settled):
    y = Y.copy()
    y[row, 3] = 1.5
    with pytest.raises(InvalidValueError, match=rf"{row}, 3.*1\.5"):
        called(monkeypatch, lambda: logistic(X, y), part=300)
    assert settled == [ROWS]


def test_a_prediction_that_is_nan_is_no_error(monkeypatch, settled):
    x = X.copy()
    x[300, 2] = np.nan
    found = called(monkeypatch, lambda: logistic(x, Y), part=300)
    assert np.flatnonzero(np.isnan(found)).tolist() == [300]


def test_rows_of_several_runs_are_settled_at_the_end(monkeypatch, settled):
    """And those of none, and states, which are made of the sums."""
    wide, none = np.repeat(X, PLAN.chunk, axis=1), X[:, :0]
    called(monkeypatch, lambda: logistic(wide, np.repeat(Y, PLAN.chunk, axis=1)), part=300)
    called(monkeypatch, lambda: replace(logistic, reduction="sum")(none, none), part=300)
    called(monkeypatch, lambda: logistic.state(X, Y), part=300)
    assert not settled
