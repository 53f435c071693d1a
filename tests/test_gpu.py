"""What only a device can show: nothing waits, bad input leaves the context usable, streams run side by side, more than
2^32 elements, no memory left, and no kernel reads or writes where it should not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpubce
from gpubce import BinaryCrossEntropy
from gpubce.cli import main
from gpubce.errors import InvalidValueError
from tests.cases import bits
from tests.processes import run

pytestmark = pytest.mark.gpu

LIBRARIES = ("cupy", "torch")
SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""
HALF_A_SECOND = 10**9
"""Cycles, at about 2 GHz."""


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", reason="the spinning kernel and the streams are CuPy's")


@pytest.fixture
def spin(cupy):
    """Keep a stream busy for half a second."""
    kernel = cupy.RawKernel(SPIN, "spin")
    kernel((1,), (1,), (np.int64(0),))
    cupy.cuda.Device().synchronize()
    return lambda stream: kernel((1,), (1,), (np.int64(HALF_A_SECOND),), stream=stream)


def warm(cupy, stream, call) -> None:
    """What is compiled, and what memory the stream's pool begins with, is not waited for later."""
    with stream:
        call()
    cupy.cuda.Device().synchronize()


def host_data(size: int = 100_003):
    rng = np.random.default_rng(0)
    return ((rng.integers(-(2**20), 2**20, size) * 2.0**-17).astype(np.float32), rng.random(size) < 0.3)


def on_device(library: str, *arrays):
    module = pytest.importorskip(library, reason=f"{library} owns the arrays of this test")
    if library == "torch":
        return tuple(module.as_tensor(array, device="cuda") for array in arrays)
    return tuple(module.asarray(array) for array in arrays)


def to_host(array) -> np.ndarray:
    return array.get() if hasattr(array, "get") else array.cpu().numpy()


CALLS = {
    "value": lambda x, y: BinaryCrossEntropy(from_logits=True)(x, y),
    "value and gradient": lambda x, y: BinaryCrossEntropy(from_logits=True).value_and_grad(x, y),
    "gradient and hessian": lambda x, y: BinaryCrossEntropy(from_logits=True).grad_and_hess(x, y),
    "two passes": lambda x, y: BinaryCrossEntropy(from_logits=True, denominator="positives").value_and_grad(x, y),
    "state": lambda x, y: BinaryCrossEntropy(from_logits=True).state(x, y).values,
    "per label": lambda x, y: BinaryCrossEntropy(from_logits=True, axis=0, pos_weight=(1.0, 2.0, 3.0))(
        x[:99].reshape(33, 3), y[:99].reshape(33, 3)
    ),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CALLS)
def test_calls_return_before_the_device_has_done_them(name, library, cupy, spin):
    """Promise 6: nothing waits. The stream is busy when the call is made and still busy when it returns."""
    x, y = on_device(library, *host_data())
    CALLS[name](x, y)  # Compiles.
    cupy.cuda.Device().synchronize()
    if library == "torch":
        import torch

        current = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
    else:
        current = cupy.cuda.get_current_stream()
    spin(current)
    found = CALLS[name](x, y)
    done = cupy.cuda.Event()
    done.record(current)
    assert not done.done
    done.synchronize()
    host = CALLS[name](*host_data())
    for one, two in zip(*(item if isinstance(item, tuple) else (item,) for item in (found, host)), strict=True):
        assert np.array_equal(bits(to_host(one)), bits(np.asarray(two)))


def test_two_streams_run_side_by_side(cupy, spin):
    """A call on one stream does not wait for another one, and is not ordered behind it."""
    x, y = on_device("cupy", *host_data())
    loss = BinaryCrossEntropy(from_logits=True)
    expected = loss(*host_data())
    loss(x, y)
    cupy.cuda.Device().synchronize()
    busy, free = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    for stream in (busy, free):
        warm(cupy, stream, lambda: loss(x, y))
    spin(busy)
    with busy:
        late = loss(x, y)
    with free:
        soon = loss(x, y)
    free.synchronize()
    assert not busy.done
    assert soon.get(stream=free) == expected
    busy.synchronize()
    assert late.get(stream=busy) == expected


def test_a_stream_given_by_name_is_used(cupy, spin):
    x, y = on_device("cupy", *host_data())
    loss = BinaryCrossEntropy(from_logits=True)
    loss(x, y)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    warm(cupy, stream, lambda: loss(x, y))
    spin(stream)
    value = loss(x, y, stream=stream)
    assert cupy.cuda.get_current_stream().done
    assert not stream.done
    stream.synchronize()
    assert value.get() == loss(*host_data())


@pytest.mark.parametrize("library", LIBRARIES)
def test_calls_are_repeated_at_any_address(library, cupy):
    """A view that begins between two loads of 16 bytes looks the same but for its address."""
    logits, targets = host_data(5_003)
    x, y = on_device(library, logits, targets.astype(np.float32))
    loss = BinaryCrossEntropy(from_logits=True)
    for start in (0, 1, 0, 1, 4, 3, 0):
        part = slice(start, start + 4_999)
        value, gradient = loss.value_and_grad(x[part], y[part])
        expected = loss.value_and_grad(logits[part], targets[part].astype(np.float32))
        assert to_host(value) == expected[0]
        assert np.array_equal(to_host(gradient), expected[1])


def test_an_evaluator_may_change_its_stream(cupy, spin):
    """What it holds is neither read nor given back too early: here the new stream is busy, and the old one takes what
    memory there is."""
    x, y = on_device("cupy", *host_data())
    expected = gpubce.Evaluator(from_logits=True)
    evaluator = gpubce.Evaluator(from_logits=True)
    side = cupy.cuda.Stream(non_blocking=True)
    evaluator.update(x, y)
    spin(side)
    evaluator.update(x, y, stream=side)
    evaluator.update(x, y, stream=side)
    taken = [cupy.full(64, cupy.nan) for _ in range(200)]
    for _ in range(3):
        expected.update(*host_data())
    for name in ("loss", "count", "mean_prediction", "brier_score"):
        assert getattr(evaluator.report(), name) == getattr(expected.report(), name)
    assert len(taken) == 200


def test_a_cuda_graph_replays_a_trainers_step(cupy):
    """As docs/trainers.md has it: captured with a pool of its own, replayed with other values."""
    x, y = on_device("cupy", *host_data())
    other = x[::-1].copy()
    loss, scale = BinaryCrossEntropy(from_logits=True), cupy.ones((), cupy.float32)
    value, gradient = cupy.empty((), cupy.float32), cupy.empty_like(x)
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        step = lambda: loss.value_and_grad(x, y, out=value, grad_out=gradient, grad_scale=scale)  # noqa: E731
        step()
        stream.begin_capture()
        step()
        graph = stream.end_capture()
    x[...], scale[...] = other, 1024
    cupy.cuda.Device().synchronize()
    graph.launch(stream)
    stream.synchronize()
    expected, slopes = loss.value_and_grad(other, y, grad_scale=1024)
    assert value.get() == expected.get()
    assert np.array_equal(gradient.get(), slopes.get())


def test_invalid_values_leave_the_context_usable(cupy, spin):
    """Promise 7: NaN and a count, an error where it is asked for, and other streams go on."""
    logits, targets = host_data()
    wrong = targets.astype(np.float32)
    wrong[[5, 77]] = 2.0
    x, y, good = on_device("cupy", logits, wrong, targets)
    loss = BinaryCrossEntropy(from_logits=True)
    stream = cupy.cuda.Stream(non_blocking=True)
    warm(cupy, stream, lambda: loss(x, good))

    def refused() -> bool:
        assert np.isnan(loss(x, y).get())
        assert loss.state(x, y).invalid == 2
        with pytest.raises(InvalidValueError, match="2 of"):
            loss(x, y, check=True)
        return True

    assert refused()  # Compiles.
    spin(stream)
    with stream:
        undisturbed = loss(x, good)
    assert refused()
    assert not stream.done
    stream.synchronize()
    assert undisturbed.get(stream=stream) == loss(logits, targets)
    assert loss(x, good).get() == loss(logits, targets)


def test_more_than_2_to_the_32_elements(cupy):
    """Real memory, 13 GB of it: half logits and bytes."""
    count = 2**32 + 4_099
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < 4 * count:
        pytest.fail(f"this test needs {4 * count / 2**30:.0f} GiB of device memory, and {free / 2**30:.0f} are free")
    logits = cupy.full(count, 0.5, cupy.float16)
    targets = cupy.ones(count, cupy.uint8)
    logits[-1], targets[-2] = -3.0, 0
    loss = BinaryCrossEntropy(from_logits=True, reduction="sum", dtype="float64")
    one = float(loss(logits[:1], targets[:1]))
    ends = float(loss(logits[-2:], targets[-2:]))
    assert abs(float(loss(logits, targets)) - ((count - 2) * one + ends)) <= 2.0**-45 * count * one
    state = BinaryCrossEntropy(from_logits=True).state(logits, targets, sums=("positives",))
    assert (state.count, state.total("positives")) == (count, count - 1)
    _, gradient = BinaryCrossEntropy(from_logits=True, reduction="sum").value_and_grad(logits, targets, grad_out=logits)
    expected = BinaryCrossEntropy(from_logits=True, reduction="sum").value_and_grad(
        np.float16([0.5, 0.5, -3.0]), np.uint8([1, 0, 1])
    )[1]
    assert np.array_equal(gradient[-3:].get(), expected)
    assert (gradient[:-2] == expected[0]).all()


def test_no_memory_left_is_an_error_that_passes(cupy):
    logits, targets = on_device("cupy", *host_data(2**24))
    loss = BinaryCrossEntropy(from_logits=True)
    expected = loss(logits, targets).get()
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 2**20)
    try:
        with pytest.raises(MemoryError):
            loss.value_and_grad(logits, targets)
        assert loss(logits, targets).get() == expected  # The blocks' sums fit.
    finally:
        pool.set_limit(size=0)
    assert loss.value_and_grad(logits, targets)[0].get() == expected


@pytest.mark.parametrize("name", [*CALLS, "in place"])
def test_memory_beside_results_is_that_of_the_blocks(name, cupy):
    """Promise 5: whatever is asked for takes less than a sixteenth of the logits, and a gradient in place no more."""
    logits, targets = on_device("cupy", *host_data(2**24))
    loss = BinaryCrossEntropy(from_logits=True)
    call = CALLS.get(name, lambda x, y: loss.value_and_grad(x, y, grad_out=x)[0])
    call(logits, targets)
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    results = call(logits, targets)
    given_back = sum(array.nbytes for array in (results if isinstance(results, tuple) else (results,)))
    assert pool.total_bytes() - before - given_back < logits.nbytes / 16


AHEAD = """
import json
import numpy as np
from numba import cuda
from numba.cuda import dispatcher
import gpubce
compiled, compile = [], dispatcher._Kernel.__init__
def note(kernel, function, *rest, **options):
    compiled.append(function.__name__)
    compile(kernel, function, *rest, **options)
dispatcher._Kernel.__init__ = note
x = np.linspace(-3, 3, 70_000, dtype=np.float32).reshape(-1, 4)
y = x > 0
loss = gpubce.BinaryCrossEntropy(from_logits=True)
expected = loss.value_and_grad(x, y, device="cpu")
for arrays, options in (((cuda.to_device(x), cuda.to_device(y)), {}), ((x, y), {"device": "cuda"})):
    both = loss.value_and_grad(*arrays, **options)
    value, gradient = both if options else (array.copy_to_host() for array in both)
    assert value == expected[0] and np.array_equal(gradient, expected[1])
    loss(*arrays, **options)
    gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")(*arrays, **options)
    gpubce.BinaryCrossEntropy(from_logits=True, axis=0)(*arrays, **options)
    evaluator = gpubce.Evaluator(from_logits=True)
    evaluator.update(*arrays, **options)
    evaluator.report()
before = len(compiled)
loss.grad_and_hess(cuda.to_device(x), cuda.to_device(y))  # Which is not compiled ahead: what counts must see it.
print(json.dumps([before, len(compiled)]))
"""


def test_kernels_compiled_without_a_gpu_are_used(tmp_path):
    """gpubce compile --cuda in a process that sees no GPU; then one with a GPU compiles nothing."""
    capability = "{}.{}".format(*gpubce.devices().gpus[0].compute_capability)
    options = ["compile", "--types", "float32", "--targets", "bool", "--cuda", capability]
    program = f"import sys; from gpubce.cli import main; sys.exit(main({options!r}))"
    assert f"kernels for CUDA {capability}" in run(program, tmp_path, 300.0, CUDA_VISIBLE_DEVICES="")
    assert json.loads(run(AHEAD, tmp_path)) == [0, 1]


JAX = """
import jax
import jax.numpy as jnp
import numpy as np
from gpubce import BinaryCrossEntropy
from gpubce.adapters.jax import sigmoid_binary_cross_entropy
rng = np.random.default_rng(0)
x, y = rng.normal(size=(300, 7)).astype(np.float32), rng.random((300, 7)) < 0.3
expected, slopes = BinaryCrossEntropy(from_logits=True).value_and_grad(x, y)
each = BinaryCrossEntropy(from_logits=True, reduction="none")(x, y)
there = jnp.asarray(x)
assert there.devices() == {jax.devices("cuda")[0]}
loss = lambda z: sigmoid_binary_cross_entropy(z, y, reduction="mean")
for function in (jax.value_and_grad(loss), jax.jit(jax.value_and_grad(loss))):
    value, gradient = function(there)
    assert value == expected and np.array_equal(gradient, slopes)
for _ in range(100):  # XLA is still making what is read, and makes something else of the results.
    there = (jnp.asarray(x) * 2 + 1 - 1) / 2
    found = sigmoid_binary_cross_entropy(there, y) * 2
    there = None
    assert np.array_equal(found, 2 * each)
assert np.isnan(sigmoid_binary_cross_entropy(x, y * 3, reduction="mean"))
"""


def test_jax_arrays_are_read_where_they_are():
    pytest.importorskip("jax", reason="the adapter is JAX's")
    run(JAX, JAX_PLATFORMS="cuda,cpu", XLA_PYTHON_CLIENT_PREALLOCATE="false")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_host_arrays_give_the_same_bits_on_every_device(device):
    logits, targets = host_data()
    loss = BinaryCrossEntropy(from_logits=True)
    value, gradient = loss.value_and_grad(logits, targets, device=device)
    assert isinstance(gradient, np.ndarray)
    expected = loss.value_and_grad(logits, targets, device="cpu")
    assert value == expected[0]
    assert np.array_equal(bits(gradient), bits(expected[1]))


def test_files_give_the_same_figures_on_every_device(tmp_path, capsys):
    """With more batches than there is room for on the device, the last one shorter, and inputs of all kinds."""
    rng = np.random.default_rng(0)
    predictions, targets = rng.random((1_000_003, 3)).astype(np.float16), rng.random((1_000_003, 3)) < 0.3
    np.savez(tmp_path / "all.npz", prediction=predictions, target=targets, weight=rng.random(1_000_003))
    options = ["--metrics", "all", "--per-label", "--weight", "weight", "--max-weight", "1"]
    options += ["--batch", "70000", "--no-progress", "--json", "-"]
    figures = []
    for device in ("cpu", "cuda"):
        assert main(["evaluate", str(tmp_path / "all.npz"), *options, "--device", device]) == 0
        figures.append(json.loads(capsys.readouterr().out)["figures"])
    assert figures[0] == figures[1]


def test_every_device_is_listed():
    assert gpubce.devices().gpus


def sanitizer() -> str | None:
    found = shutil.which("compute-sanitizer")
    folders = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    paths = [Path(folder) / "bin" / "compute-sanitizer" for folder in folders if folder]
    return found or next((str(path) for path in paths if path.exists()), None)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool):
    """The kernels of every eighth row of the matrix, under compute-sanitizer."""
    program = sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    # Calls of the driver that fail are no findings: libraries look for functions that a driver may not have.
    command = [program, "--tool", tool, "--error-exitcode", "3", "--report-api-errors", "no"]
    command += [sys.executable, "-m", "tests.matrix", "--check", "--backend", "gpu", "--part", "1/8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
