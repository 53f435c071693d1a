"""The way of arrays to a device and back, where the device is Numba's simulator: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
import ml_dtypes
import numpy as np
from numba import cuda
import gpubce
from gpubce import dispatch
from gpubce.arrays import numba as device_memory
from gpubce.backends import pipeline
from gpubce.spec.plan import Plan

dispatch.PLAN = Plan(lanes=32, rows=2, chunk=8)
rng = np.random.default_rng(0)
logits, targets = rng.normal(size=(9, 5)).astype(np.float32), rng.random((9, 5)) < 0.4
weight = rng.random((9, 1))
loss = gpubce.BinaryCrossEntropy(from_logits=True, pos_weight=(1, 2, 3, 4, 5), denominator="weights")
assert gpubce.devices().gpus

value, gradient = loss.value_and_grad(logits, targets, weight=weight, device="cpu")

# Host arrays that are sent there: the results come back to the host.
sent_value, sent = loss.value_and_grad(logits, targets, weight=weight, device="cuda")
assert isinstance(sent, np.ndarray) and np.array_equal(sent, gradient) and sent_value == value
own = np.empty_like(logits)
assert loss.value_and_grad(logits.T.copy().T, targets, weight=weight, device="cuda", grad_out=own)[1] is own
assert np.array_equal(own, gradient)
try:
    loss(logits, targets.astype(np.int8) + 6, device="cuda")
except gpubce.errors.InvalidValueError as error:
    assert "targets[0, 0] is" in str(error)
else:
    raise SystemExit("an invalid target was not refused")

# Device arrays: the results stay there, an invalid element gives NaN and a count.
there = [cuda.to_device(array) for array in (logits, targets, weight)]
there_value, there_gradient = loss.value_and_grad(there[0], there[1], weight=there[2])
assert hasattr(there_gradient, "copy_to_host")
assert np.array_equal(there_gradient.copy_to_host(), gradient) and there_value.copy_to_host() == value
few = [array[:2].copy_to_host() for array in there]
there_few = [cuda.to_device(array) for array in few]
for denominator in ("elements", "weights"):
    mean = gpubce.BinaryCrossEntropy(from_logits=True, denominator=denominator)
    scaled = mean.value_and_grad(*there_few[:2], weight=there_few[2], grad_scale=cuda.to_device(np.float32([2.0])))[1]
    expected = mean.value_and_grad(*few[:2], weight=few[2], grad_scale=2.0)[1]
    assert np.array_equal(scaled.copy_to_host(), expected)
total = gpubce.BinaryCrossEntropy(from_logits=True, reduction="sum")
assert total(*there_few[:2], weight=2.5, mask=True).copy_to_host() == total(*few[:2], weight=2.5)
assert mean.finish(mean.state(*there_few[:2])).copy_to_host() == mean.finish(mean.state(*few[:2]))
halves = few[0].astype(ml_dtypes.bfloat16)
for one, two in zip(total.value_and_grad(halves, few[1], device="cuda"), total.value_and_grad(halves, few[1])):
    assert one.dtype == two.dtype and np.array_equal(one, two)
assert mean(np.float32(0.5), np.True_, device="cuda") == mean(np.float32(0.5), np.True_)

# Vectors of labels go there once.
sent, send = [], device_memory.from_numbers
device_memory.from_numbers = lambda values, *rest: (sent.append(values), send(values, *rest))[1]
for factors in ((1, 2, 3, 4, 8), (1, 2, 3, 4, 6)) * 2:
    each = gpubce.BinaryCrossEntropy(from_logits=True, label_weight=factors)
    assert each(*there_few[:2]).copy_to_host() == each(*few[:2])
assert sent == [(1, 2, 3, 4, 8), (1, 2, 3, 4, 6)], sent
dispatch.KEPT_NUMBERS = 0
for factors in ((1, 2, 3, 4, 6), (1, 2, 3, 4, 7), (1, 2, 3, 4, 7)):
    gpubce.BinaryCrossEntropy(from_logits=True, label_weight=factors)(*there_few[:2])
assert sent[2:] == 2 * [(1, 2, 3, 4, 7)], "where there is no room, anew each time"

# A stream of one's own is that of new arrays too; else they are made on the library's.
# Copies are ordered by it.
assert device_memory.stream(None) == 0
copied = []
device_memory._copies = lambda: copied.append(device_memory.stream(None)) or 0
mean(*there_few[:2])
assert copied == []
mean(*there_few[:2], stream=7)
assert device_memory.stream(None) == 0 and copied == []
mean(*there_few[:2], stream=7, weight=2.0)
assert copied == [7], "the number"
copied.clear()
mean.value_and_grad(*few[:2], device="cuda", stream=7, check=False)
assert copied == 4 * [7], "two there, two back"
copied.clear()
assert mean.state(*few[:2], device="cuda", stream=7) + mean.state(*few[:2]) and set(copied) == {7}

# An evaluator adds up on the stream of its updates, and waits for it where another one follows.
evaluator = gpubce.Evaluator(from_logits=True, window=9)
copied.clear()
for stream, waits in ((7, [7]), (7, [7]), (8, [7, 8, 8]), (None, [8, 0]), (9, [0, 9, 9])):
    evaluator.update(*there_few[:2], stream=stream)
    assert copied == waits, (stream, copied)
    copied.clear()
assert evaluator.__getstate__()["_stream"] is None and copied == [9], "another process has no such stream"
copied.clear()
other = gpubce.Evaluator(from_logits=True, window=9)
other.update(*there_few[:2], stream=6)
evaluator.merge(other)
assert copied == [6, 6, 0], copied
assert evaluator.report().count == 60 and copied == [6, 6, 0]

bad = cuda.to_device(np.where(targets, 7, 0).astype(np.int8))
assert np.isnan(loss(there[0], bad).copy_to_host())
state = loss.state(there[0], bad)
assert state.invalid == targets.sum() and state.merge(state).count == 2 * logits.size
sums, run = [], pipeline.run
pipeline.run = lambda job, *rest: (sums.append(job.work.recipe.sums), run(job, *rest))
try:
    loss(there[0], bad, check=True)
except gpubce.errors.InvalidValueError as error:
    assert f"{targets.sum()} of 45 elements are invalid" in str(error)
else:
    raise SystemExit("check=True did not raise")
assert sums == [("loss", "invalid")], "one pass over the memory of a device"
mean.state(*there_few[:2])
assert sums[1:] == [("loss", "weight", "count", "invalid")], "nobody looks at what other sums follow from"
pipeline.run = run
for wrong in ({"device": "cpu"}, {"weight": weight}):
    try:
        loss(there[0], there[1], **wrong)
    except gpubce.errors.GpubceError:
        continue
    raise SystemExit(f"{wrong} was not refused")
evaluator = gpubce.Evaluator(from_logits=True)
evaluator.update(*there[:2])
evaluator.update(*there[:2])
assert evaluator.report().count == 90
print("passed")
"""

COMMAND = """
import contextlib, io, json
import numpy as np
from gpubce import dispatch, staging
from gpubce.cli import main
from gpubce.spec.plan import Plan

dispatch.PLAN = Plan(lanes=32, rows=2, chunk=8)
rng = np.random.default_rng(0)
columns = {"prediction": rng.random((47, 3)), "target": rng.random((47, 3)) < 0.4, "weight": rng.random(47)}
np.savez("all.npz", **columns)

def figures(device, *more):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        done = main(["evaluate", "all.npz", "--device", device, "--json", "-", "--no-progress", *more])
    return json.loads(out.getvalue())["figures"] if done == 0 else done

slots = []
begin = staging._Slot.__init__
staging._Slot.__init__ = lambda slot, stream: (slots.append(slot), begin(slot, stream))[1]
options = "--metrics", "loss,brier_score", "--weight", "weight", "--per-label"
expected = figures("cpu", *options)
assert not slots and expected["count"] == 141
for rows in ("9", "100"):  # More batches than slots, the last one shorter; and fewer.
    assert figures("cuda", *options, "--batch", rows) == expected, rows
assert len(slots) == 2 * staging.SLOTS

columns["target"] = columns["target"].astype(np.int8)
columns["target"][30, 1] = 7
np.savez("all.npz", **columns)
with contextlib.redirect_stderr(io.StringIO()) as said:
    assert figures("cuda", "--batch", "20", "--metrics", "loss") != 0
assert "row 30, element [1]: target 7 is not in [0, 1]" in said.getvalue(), said.getvalue()
print("passed")
"""
"""The figures of a stream of batches are those of the CPU, so no batch overwrites one that is still needed."""


@pytest.mark.emulated
@pytest.mark.parametrize("program", [PROGRAM, COMMAND], ids=["arrays", "command"])
def test_arrays_go_to_a_device_and_back(program, tmp_path):
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from tests.simulator import share_processor; share_processor()" + program]
    run = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.stdout == "passed\n", run.stderr
