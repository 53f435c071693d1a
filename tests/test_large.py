"""Promise 5: one pass, and little memory. More elements than 32-bit indices reach, without their memory: broadcast
views."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import gpubce
from gpubce import dispatch
from gpubce.backends import pipeline
from gpubce.backends.cpu.launch import CpuEngine
from gpubce.spec.plan import PLAN, Plan
from tests.backends import replaced

BEYOND = 2**31 + 9


def test_more_than_2_to_the_31_elements():
    logits = np.broadcast_to(np.float32(0.5), (BEYOND,))
    targets = np.broadcast_to(np.True_, (BEYOND,))
    one = float(gpubce.binary_cross_entropy_with_logits(logits[:1], targets[:1], reduction="none")[0])
    loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction="sum", dtype="float64")
    assert loss(logits, targets) == BEYOND * one


def test_offsets_of_more_than_2_to_the_31_bytes():
    """The last row of a strided array lies 4 GB behind the first."""
    room = np.zeros(2**32 + 64, np.uint8)  # Pages that nothing touches take no memory.
    rows = np.ndarray((2, 3), np.float32, room, strides=(2**32, 8))
    rows[...] = [[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]
    targets = np.array([[1, 0, 1], [0, 1, 0]])
    loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")
    assert np.array_equal(loss(rows, targets), loss(rows.copy(), targets))


def test_extra_memory_is_that_of_the_blocks():
    """Promise 5: a value and a gradient in place take a few bytes for each block, whatever is masked or strided."""
    logits = np.random.default_rng(0).normal(size=(2**11, 2**11)).astype(np.float32)
    targets, mask = logits.T > 0, logits > -2
    loss = gpubce.BinaryCrossEntropy(from_logits=True, pos_weight=tuple(range(2**11)))
    loss.value_and_grad(logits.copy(), targets, mask=mask)  # Compiles, which takes memory once.
    tracemalloc.start()
    loss.value_and_grad(logits, targets, mask=mask, grad_out=logits)
    extra = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert extra < logits.nbytes / 16


ROWS, LABELS = 2**16, 64
BLOCKS = PLAN.blocks(ROWS * LABELS)
CHUNKS = PLAN.chunks(ROWS) * LABELS
"""Of reductions along the first axis, for each label."""

MEMORY = {
    "a mean": (lambda c: c.mean(c.x, c.y), 0, 1, BLOCKS),
    "a masked mean": (lambda c: c.mean(c.x, c.y, mask=c.y), 0, 2, BLOCKS),
    "a mean of probabilities": (lambda c: c.probabilities(c.x, c.y), 0, 1, BLOCKS),
    "a mean and its gradient": (lambda c: c.mean.value_and_grad(c.x, c.y), 1, 1, BLOCKS),
    "a gradient into an array": (lambda c: c.mean.value_and_grad(c.x, c.y, grad_out=c.room), 0, 1, BLOCKS),
    "a gradient in place": (lambda c: c.mean.value_and_grad(c.place, c.y, grad_out=c.place), 0, 1, BLOCKS),
    "a gradient in place of probabilities": (
        lambda c: c.probabilities.value_and_grad(c.place, c.y, grad_out=c.place),
        *(0, 1, BLOCKS),
    ),
    "derivatives": (lambda c: c.mean.grad_and_hess(c.x, c.y), 2, 1, BLOCKS),
    "derivatives into arrays": (
        lambda c: c.mean.grad_and_hess(c.x, c.y, grad_out=c.room, hess_out=c.other),
        *(0, 1, BLOCKS),
    ),
    "elements": (lambda c: c.each(c.x, c.y), 1, 1, BLOCKS),
    "elements and their gradients": (lambda c: c.each.value_and_grad(c.x, c.y), 2, 1, BLOCKS),
    "a state": (lambda c: c.mean.state(c.x, c.y), 0, 3, BLOCKS),
    "means of labels": (lambda c: c.labels(c.x, c.y), 0, 1, CHUNKS),
    "means of labels and their gradient": (lambda c: c.labels.value_and_grad(c.x, c.y), 1, 1, CHUNKS),
    "means of rows": (lambda c: c.rows(c.x.reshape(-1, 4), c.y.reshape(-1, 4)), 1 / 4, 1, 2 * pipeline.PART),
    "states of labels": (lambda c: c.labels.state(c.x, c.y), 0, 3, CHUNKS),
    "finishing states of labels": (lambda c: c.labels.finish(c.state), 0, 0, 0),
    "an evaluator": (lambda c: gpubce.Evaluator(from_logits=True).update(c.x, c.y), 0, 8, BLOCKS),
}
"""A call, how many results as large as the predictions it gives back, how many sums it has, and how many pieces,
blocks, chunks or rows of a part, leave a pair of numbers for each sum."""


class MemoryCalls:
    """What the calls above are made of: 2^22 elements, of which one byte each would be 4 MiB."""

    mean = gpubce.BinaryCrossEntropy(from_logits=True)
    probabilities = gpubce.BinaryCrossEntropy()
    each = replace(mean, reduction="none")
    labels = replace(mean, axis=0)
    rows = replace(mean, axis=1)

    def __init__(self):
        self.x = np.random.default_rng(0).random((ROWS, LABELS), np.float32)
        self.y = self.x > 0.5
        self.place, self.room, self.other = self.x.copy(), np.empty_like(self.x), np.empty_like(self.x)
        self.state = self.labels.state(self.x, self.y)

    def extra(self, name: str) -> int:
        """The most bytes that the call holds at once, beside the arrays it gives back."""
        call, results, *_ = MEMORY[name]
        with replaced(lambda: CpuEngine(2), PLAN):  # Each thread has scratch of its own.
            self.place[...] = self.x
            call(self)  # Compiles, which takes memory once.
            self.place[...] = self.x
            tracemalloc.start()
            call(self)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak - results * self.x.nbytes


@pytest.fixture(scope="module")
def memory_calls() -> MemoryCalls:
    return MemoryCalls()


@pytest.mark.parametrize("name", MEMORY)
def test_every_call_takes_memory_for_blocks_alone(memory_calls, name):
    """For each sum, a pair of float64 for each piece and then for the pieces of pieces, and scratch of the threads."""
    _, _, sums, pieces = MEMORY[name]
    assert memory_calls.extra(name) < 2**18 + sums * (2**16 + 2 * 16 * pieces) < 2**22


def test_a_gradient_in_place_adds_nothing(memory_calls):
    """Beside a mean alone: a row of scratch for each thread."""
    for name in ("a gradient in place", "a gradient into an array"):
        assert memory_calls.extra(name) < memory_calls.extra("a mean") + 2**17


LOGITS, TARGETS = np.float32([0.5, -1.0, 2.0]), np.float32([1.0, 0.0, 1.0])
mean, each = (gpubce.BinaryCrossEntropy(from_logits=True, reduction=reduction) for reduction in ("mean", "none"))
probabilities = gpubce.BinaryCrossEntropy(log_floor=None)
MASK = np.array([True, False, True])


def in_place(loss, **options):
    place = np.float32([0.5, 0.25, 1.0])
    return loss.value_and_grad(place, TARGETS, grad_out=place, **options)


PASSES = {
    "a mean": (lambda: mean(LOGITS, TARGETS), ["prediction target > : loss"]),
    "a masked mean": (lambda: mean(LOGITS, TARGETS, mask=MASK), ["prediction target mask > : loss count"]),
    "a mean in bits": (lambda: replace(mean, base=2)(LOGITS, TARGETS), ["prediction target > : loss"]),
    "elements": (lambda: each(LOGITS, TARGETS), ["prediction target > loss : loss"]),
    "unchecked elements": (lambda: each(LOGITS, TARGETS, check=False), ["prediction target > loss :"]),
    "a mean and its gradient": (
        lambda: mean.value_and_grad(LOGITS, TARGETS),
        ["prediction target scale > gradient : loss"],
    ),
    "a masked mean and its gradient": (
        lambda: mean.value_and_grad(LOGITS, TARGETS, mask=MASK),
        ["target mask > : count", "prediction target mask scale > gradient : loss count"],
    ),
    "a mean of weighted elements and its gradient": (
        lambda: mean.value_and_grad(LOGITS, TARGETS, weight=TARGETS),
        ["prediction target weight scale > gradient : loss"],
    ),
    "elements and their gradients": (
        lambda: each.value_and_grad(LOGITS, TARGETS),
        ["prediction target > loss gradient : loss"],
    ),
    "derivatives": (
        lambda: mean.grad_and_hess(LOGITS, TARGETS),
        ["prediction target > gradient hessian : invalid"],
    ),
    "unchecked derivatives": (
        lambda: mean.grad_and_hess(LOGITS, TARGETS, check=False),
        ["prediction target > gradient hessian :"],
    ),
    "a state, whose counts are known": (lambda: mean.state(LOGITS, TARGETS), ["prediction target > : loss"]),
    "a state, whose weights are 1": (
        lambda: mean.state(LOGITS, TARGETS > 0, sums=("squared_weight", "target_entropy", "loss_by_weight")),
        ["prediction target > : loss"],
    ),
    "a state with a mask": (
        lambda: mean.state(LOGITS, TARGETS, mask=TARGETS > 0, sums=("weight",)),
        ["prediction target mask > : loss count"],
    ),
    "a state whose weights need not be finite": (
        lambda: mean.state(LOGITS, TARGETS > 0, weight=TARGETS, sums=("target_entropy",)),
        ["prediction target weight > : loss target_entropy"],
    ),
    "a state with weights": (
        lambda: mean.state(LOGITS, TARGETS, weight=TARGETS, sums=("weight", "loss_by_weight")),
        ["prediction target weight > : loss weight loss_by_weight"],
    ),
    "a state of a NaN, which may come from an invalid element": (
        lambda: mean.state(LOGITS * np.float32(np.nan), TARGETS),
        ["prediction target > : loss", "prediction target > : invalid"],
    ),
    "a gradient in place of logits": (lambda: in_place(mean), ["prediction target scale > gradient : loss"]),
    "a gradient beside probabilities": (
        lambda: probabilities.value_and_grad(TARGETS, TARGETS, grad_out=np.empty(3, np.float32)),
        ["prediction target scale > gradient : loss"],
    ),
    "a gradient in place of probabilities, which must be judged first": (
        lambda: in_place(probabilities),
        ["prediction target > : invalid", "prediction target scale > gradient : loss"],
    ),
    "a gradient in place of unchecked probabilities": (
        lambda: in_place(probabilities, check=False),
        ["prediction target scale > gradient : loss"],
    ),
}
"""What is read, arrays and then numbers; what is written; and what is summed."""


@pytest.mark.parametrize("name", PASSES)
def test_inputs_are_read_once(name, monkeypatch):
    """Twice only where a gradient is divided by a sum, or written over what must be judged."""
    call, expected = PASSES[name]
    passes, run = [], pipeline.run

    def told(job, *rest):
        recipe = job.work.recipe
        numbers = " ".join(["", *recipe.parameters]).replace(" unused", "")
        passes.append(f"{' '.join(recipe.roles)}{numbers} > {' '.join((*recipe.outputs, ':', *recipe.sums))}")
        run(job, *rest)

    monkeypatch.setattr(pipeline, "run", told)
    monkeypatch.setattr(dispatch, "_again", lambda *call: None)
    call()
    assert passes == expected


def test_what_is_remembered_knows_its_plan(monkeypatch):
    """A pass is prepared once for arrays that look alike, and once for each plan; and so are small calls."""
    plans, run, fresh = [], pipeline.run, replace(mean)
    monkeypatch.setattr(pipeline, "run", lambda job, *rest: (plans.append(job.work.plan), run(job, *rest)))
    for plan in (dispatch.PLAN, Plan(lanes=32, rows=2, chunk=8)):
        monkeypatch.setattr(dispatch, "PLAN", plan)
        fresh(LOGITS, TARGETS)
    assert plans == [Plan(), plan]
