"""Promise 6 on a CPU: whatever library, type, shape and strides come in, and what comes back."""

import ctypes
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import gpubce
from gpubce import BinaryCrossEntropy, checks, dispatch
from gpubce.arrays import dlpack
from gpubce.arrays.buffer import Buffer, Device
from gpubce.backends.devices import Gpu
from gpubce.errors import ArrayError, DeviceError, OptionError
from tests.cases import bits

torch = pytest.importorskip("torch", reason="PyTorch is one of the libraries here")


class OnlyDLPack:
    """An array of a library that nobody knows."""

    def __init__(self, array):
        self.array = np.array(array)

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyArray:
    """As the columns of data frames are."""

    def __init__(self, array):
        self.array = np.array(array)

    def __array__(self, dtype=None, copy=None):
        return self.array


class OnCuda:
    """An array that says it is on a GPU."""

    __cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012


LIBRARIES = {
    "NumPy": (np.array, np.ndarray),
    "list": (lambda array: array.tolist(), np.ndarray),
    "array interface": (OnlyArray, np.ndarray),
    "DLPack": (OnlyDLPack, np.ndarray),
    "PyTorch": (torch.tensor, torch.Tensor),
    "Parameter": (lambda array: torch.nn.Parameter(torch.tensor(array), array.dtype.kind == "f"), torch.Tensor),
}
"""How an array is made, and the type of what comes back."""

TYPES = {
    "float16": (np.float16, torch.float16, "float16", "float32"),
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16, "bfloat16", "float32"),
    "float32": (np.float32, torch.float32, "float32", "float32"),
    "float64": (np.float64, torch.float64, "float64", "float64"),
}
"""NumPy's and PyTorch's type, then the types of elements and of a reduced value: the table of the design."""

each = BinaryCrossEntropy(from_logits=True, reduction="none")
mean = BinaryCrossEntropy(from_logits=True)

rng = np.random.default_rng(5)
X = rng.normal(0, 3, (6, 4))
Y = (rng.random((6, 4)) < 0.4).astype(np.float64)


def to_numpy(array) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        assert not array.requires_grad
        return array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
    return np.asarray(array)


def type_name(array) -> str:
    return str(array.dtype).removeprefix("torch.")


def same(one, two) -> bool:
    one, two = to_numpy(one), to_numpy(two)
    return one.shape == two.shape and np.array_equal(bits(one), bits(two))


def results(x, y) -> list:
    """What every method gives, as arrays."""
    return [each(x, y), *mean.value_and_grad(x, y), *mean.grad_and_hess(x, y), mean.state(x, y).values]


# Libraries and types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_results_are_of_the_library_and_have_the_bits_of_numpy(library):
    make, kind = LIBRARIES[library]
    found = results(make(X), make(Y))
    assert isinstance(found[0], kind)
    assert isinstance(found[2], kind)
    assert [type_name(array) for array in found] == ["float64"] * 6
    assert [same(*pair) for pair in zip(found, results(X, Y), strict=True)] == [True] * 6


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_and_masks_may_be_numbers(library):
    make, _ = LIBRARIES[library]
    for x, y in ((X, Y), (X[0, 0], Y[0, 0])):
        assert same(mean(make(x), make(y), weight=2.5), mean(x, y, weight=np.full(x.shape, 2.5)))
        assert np.isnan(to_numpy(mean(make(x), make(y), mask=False)))


class OnlyOnADevice:
    """Numba's device arrays have no tolist."""

    def __init__(self, array):
        self.array = np.array(array)

    def copy_to_host(self):
        return self.array


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, OnlyOnADevice])
def test_numbers_for_labels_come_in_lists_and_in_arrays(make):
    expected = BinaryCrossEntropy(pos_weight=(1.0, 2.5), class_weight=(1.0, 2.5), label_weight=(1.0, 2.5))
    given = make([1.0, 2.5])
    assert BinaryCrossEntropy(pos_weight=given, class_weight=given, label_weight=given) == expected
    if make not in (list, tuple):
        assert BinaryCrossEntropy(pos_weight=make(2.5)) == BinaryCrossEntropy(pos_weight=2.5)


@pytest.mark.parametrize("shape", [(1,), (4,), (1, 1), (1, 4), (6, 1)], ids=str)
def test_weights_and_masks_broadcast(shape):
    weight, mask = np.linspace(0.5, 2.0, np.prod(shape)).reshape(shape), np.arange(np.prod(shape)).reshape(shape) != 1
    full = {"weight": np.array(np.broadcast_to(weight, X.shape)), "mask": np.array(np.broadcast_to(mask, X.shape))}
    for one, two in zip(
        mean.value_and_grad(X, Y, weight=weight, mask=mask), mean.value_and_grad(X, Y, **full), strict=True
    ):
        assert same(one, two)


@pytest.mark.parametrize("make", [float, np.float32, np.int64, np.array, OnlyArray, torch.tensor])
def test_derivatives_may_be_scaled(make):
    """By a number, or by one in an array: that of a chain rule."""
    x, y = (torch.tensor(X), torch.tensor(Y)) if make is torch.tensor else (X, Y)
    for loss, at in ((mean, np.s_[:]), (mean, np.s_[:1, :1]), (each, np.s_[:])):
        one = loss.value_and_grad(x[at], y[at])[1]
        value, gradient = loss.value_and_grad(x[at], y[at], grad_scale=make(2.0))
        assert same(value, loss(x[at], y[at]))
        assert same(gradient, 2 * one)
    found, plain = mean.grad_and_hess(x, y, grad_scale=make(2.0)), mean.grad_and_hess(x, y)
    assert [same(scaled, 2 * one) for scaled, one in zip(found, plain, strict=True)] == [True, True]


@pytest.mark.parametrize("name", TYPES)
def test_types_follow_the_table(name):
    numpy_type, torch_type, elements, reduced = TYPES[name]
    coarse, y = np.round(4 * X) / 4, Y.astype(bool)  # Every type holds these.
    expected = results(coarse.astype(numpy_type), y)
    found = results(torch.tensor(coarse).to(torch_type), torch.tensor(y))
    types = [elements, reduced, elements, elements, elements, "float64"]
    for one, two, wanted in zip(expected, found, types, strict=True):
        assert (type_name(one), type_name(two)) == (wanted, wanted)
        assert same(one.astype(np.float32) if wanted == "bfloat16" else one, two)


@pytest.mark.parametrize("name", TYPES)
def test_the_result_type_can_be_chosen(name):
    numpy_type, torch_type, *_ = TYPES[name]
    for dtype in (name, numpy_type, torch_type):
        loss = BinaryCrossEntropy(from_logits=True, dtype=dtype)
        assert loss == BinaryCrossEntropy(from_logits=True, dtype=name)
        assert type_name(loss(X, Y)) == type_name(loss(torch.tensor(X), torch.tensor(Y))) == name


def test_a_reduced_value_is_a_number_of_numpy_and_a_tensor_of_torch():
    assert type(mean(X, Y)) is np.float64
    assert type(each(np.float32(1), np.float32(1))) is np.float32
    assert type(mean(1.0, 1)) is np.float64
    value = mean(torch.tensor(X), torch.tensor(Y))
    assert (type(value), value.shape, value.device.type) == (torch.Tensor, (), "cpu")


def test_tensors_that_require_gradients_are_read_as_data():
    x = torch.tensor(X, requires_grad=True)
    found = results(2 * x, torch.tensor(Y))
    assert [(array.requires_grad, array.grad_fn) for array in found] == [(False, None)] * 6
    assert x.grad is None


# Shapes and strides -------------------------------------------------------------------------------------------------

SHAPES = [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (3, 0), (0, 3), (2, 0, 3)]


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["NumPy", "PyTorch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, make):
    x = make(np.zeros(shape, np.float32))
    value, gradient = mean.value_and_grad(x, x)
    assert [tuple(array.shape) for array in (each(x, x), value, gradient)] == [shape, (), shape]
    assert np.isnan(to_numpy(value)) == (0 in shape)
    total = BinaryCrossEntropy(from_logits=True, reduction="sum")(x, x)
    assert to_numpy(total) == pytest.approx(np.prod(shape) * np.log(2))
    for axis in range(len(shape)):
        value, gradient = BinaryCrossEntropy(from_logits=True, axis=axis).value_and_grad(x, x)
        assert [tuple(value.shape), tuple(gradient.shape)] == [shape[:axis] + shape[axis + 1 :], shape]
        assert np.isnan(to_numpy(value)).all() if shape[axis] == 0 else to_numpy(value) == pytest.approx(np.log(2))


VIEWS = {
    "transposed": lambda array: array.T,
    "every second": lambda array: array[::2, ::2],
    "one column": lambda array: array[:, 1],
    "a new axis": lambda array: array[:, None, :2],
}
NUMPY_VIEWS = {
    "reversed": lambda array: array[::-1, ::-1],
    "broadcast": lambda array: np.broadcast_to(array[0], (3, 4)),
    "broadcast column": lambda array: np.broadcast_to(array[:, :1], (6, 4)),
    "a field": lambda array: np.rec.fromarrays([array, array != 0], names="number,flag").number,
}


@pytest.mark.parametrize("view", [*VIEWS, *NUMPY_VIEWS])
def test_views_give_the_bits_of_copies(view):
    look = {**VIEWS, **NUMPY_VIEWS}[view]
    x, y = look(X), look(Y)
    expected = mean.value_and_grad(np.array(x, order="C"), np.array(y, order="C"))
    assert [same(*pair) for pair in zip(mean.value_and_grad(x, y), expected, strict=True)] == [True, True]
    if view in VIEWS:
        found = mean.value_and_grad(look(torch.tensor(X)), look(torch.tensor(Y)))
        assert [same(*pair) for pair in zip(found, expected, strict=True)] == [True, True]


@pytest.mark.parametrize("axis", [0, 1])
def test_axes_are_counted_from_either_end(axis):
    found = [
        BinaryCrossEntropy(from_logits=True, axis=k, label_axis=k, label_weight=np.arange(1, 1 + X.shape[axis]))(X, Y)
        for k in (axis, axis - 2)
    ]
    assert same(*found)
    assert found[0].shape == (X.shape[1 - axis],)


def test_expanded_tensors():
    x, y = (torch.tensor(array[:1]).expand(6, 4) for array in (X, Y))
    assert same(mean(x, y), mean(np.tile(X[:1], (6, 1)), np.tile(Y[:1], (6, 1))))


# Outputs ------------------------------------------------------------------------------------------------------------

ROOMS = {
    "contiguous": lambda make: make(np.full((6, 4), 99.0)),
    "transposed": lambda make: make(np.full((4, 6), 99.0)).T,
    "every second": lambda make: make(np.full((6, 8), 99.0))[:, ::2],
}
NEW_AXES = {"first": (None, slice(None)), "last": (slice(None), None)}


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["NumPy", "PyTorch"])
@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_outputs_are_written_and_returned(room, make):
    x, y = make(X), make(Y)
    out, grad, element_grad, hess, value = *(room(make) for _ in range(4)), make(np.zeros(()))
    assert each(x, y, out=out) is out
    written = [*mean.value_and_grad(x, y, out=value, grad_out=grad)]
    written += mean.grad_and_hess(x, y, grad_out=element_grad, hess_out=hess)
    assert [one is two for one, two in zip(written, (value, grad, element_grad, hess), strict=True)] == [True] * 4
    expected = results(x, y)[:5]
    assert [same(*pair) for pair in zip((out, *written), expected, strict=True)] == [True] * 5


def test_nothing_is_written_between_the_elements_of_an_output():
    wide = np.full((6, 8), 99.0)
    mean.value_and_grad(X, Y, grad_out=wide[:, ::2])
    assert (wide[:, 1::2] == 99.0).all()
    assert same(wide[:, ::2], mean.value_and_grad(X, Y)[1])


@pytest.mark.parametrize("index", NEW_AXES.values(), ids=NEW_AXES)
def test_outputs_may_have_a_new_axis(index):
    """Its stride is 0 in NumPy."""
    room = np.full(6, 99.0)
    written = each(X[:, 0][index], Y[:, 0][index], out=room[index])
    assert same(room, each(X[:, 0], Y[:, 0]))
    assert same(written, room[index])


def test_outputs_of_other_libraries_are_written():
    out, grad = OnlyDLPack(np.zeros((6, 4))), OnlyDLPack(np.zeros((6, 4)))
    assert each.value_and_grad(OnlyDLPack(X), OnlyDLPack(Y), out=out, grad_out=grad) == (out, grad)
    assert same(out.array, each(X, Y))
    assert same(grad.array, each.value_and_grad(X, Y)[1])


def test_inputs_are_not_modified():
    given = [X.copy(), Y.copy(), rng.random((6, 4)), Y > 0]
    kept = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    for make in (np.asarray, torch.tensor):
        x, y, weight, mask = (make(array) for array in given)
        mean.value_and_grad(x, y, weight=weight, mask=mask)
        mean.grad_and_hess(x, y, weight=weight, mask=mask)
        assert [same(*pair) for pair in zip((x, y, weight, mask), kept, strict=True)] == [True] * 4


# Threads and processes ----------------------------------------------------------------------------------------------

LARGE = [(rng.normal(0, 3, n).astype(np.float32), rng.random(n) < 0.4) for n in range(150_000, 310_000, 20_000)]


def both(arrays) -> bytes:
    value, gradient = mean.value_and_grad(*arrays)
    return value.tobytes() + gradient.tobytes()


def test_threads_may_call_at_once():
    expected = [both(arrays) for arrays in LARGE]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(both, LARGE)) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_may_call():
    expected = both(LARGE[0])  # The parent's threads exist now; the child has none of them.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*fork", RuntimeWarning)  # JAX, where another test has loaded it.
        child = os.fork()
    if child == 0:
        os._exit(0 if both(LARGE[0]) == expected else 1)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


# Without a GPU ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(dispatch, "find_gpus", lambda: ((), "there is no driver"))


def test_device_arrays_are_refused(no_gpu):
    with pytest.raises(DeviceError, match=r"logits is on cuda:0, .*there is no driver"):
        mean(OnCuda(), OnCuda())
    with pytest.raises(DeviceError, match="device='cpu', but logits is on cuda:0"):
        mean(OnCuda(), OnCuda(), device="cpu")
    with pytest.raises(ArrayError, match="targets"):
        mean(np.zeros(3, np.float32), OnCuda())


def test_cupy_arrays_are_refused(no_gpu):
    cupy = pytest.importorskip("cupy", reason="CuPy is optional")
    lent = np.zeros(3, np.float32)
    memory = cupy.cuda.UnownedMemory(lent.ctypes.data, lent.nbytes, lent, device_id=0)
    array = cupy.ndarray((3,), np.float32, cupy.cuda.MemoryPointer(memory, 0))
    with pytest.raises(DeviceError, match=r"logits is on cuda:0, .*there is no driver"):
        mean(array, array)
    with pytest.raises(ArrayError, match="logits is an array of CuPy, targets one of NumPy"):
        mean(array, lent)


@pytest.fixture
def a_gpu(monkeypatch):
    """One that is found; nothing runs on it."""
    monkeypatch.setattr(dispatch, "find_gpus", lambda: ((Gpu(0, "H200", (9, 0)),), ""))


def test_host_arrays_stay_on_the_cpu(a_gpu, monkeypatch):
    """Unless device="cuda" asks for the GPU, or "auto" for as many elements as are worth it."""
    value = mean(X, Y)
    assert mean(X, Y, device="cpu") == value
    monkeypatch.setattr(dispatch, "BREAK_EVEN", 10)
    chosen = {(device, n): dispatch._wants_gpu(device, n) for device in ("auto", "cpu", "cuda") for n in (0, 9, 10, 11)}
    assert {key for key, wants in chosen.items() if wants} == {
        *(("auto", 10), ("auto", 11)),
        *(("cuda", n) for n in (0, 9, 10, 11)),
    }
    monkeypatch.setattr(dispatch, "find_gpus", lambda: ((), "there is no driver"))
    assert not dispatch._wants_gpu("auto", 10)


class Stream:
    """What streams of other libraries are: a handle in an attribute."""

    def __init__(self, **handle):
        vars(self).update(handle)


STREAMS = {
    "a number": (7, 7),
    "of CuPy": (Stream(ptr=7), 7),
    "of PyTorch": (Stream(cuda_stream=7), 7),
    "of Numba": (Stream(handle=ctypes.c_void_p(7)), 7),
    "the default one of Numba": (Stream(handle=ctypes.c_void_p(None)), 0),
}


def test_streams_are_known_by_their_handles(a_gpu, monkeypatch):
    monkeypatch.setattr(dlpack, "stream", lambda like: 99)
    on_gpu = partial(dispatch.Arguments, OnCuda(), OnCuda())
    call = dispatch.Session(mean._formula, on_gpu())
    assert (call.stream, call.own_stream) == (99, None), "the current one of the library"
    for name, (stream, handle) in STREAMS.items():
        call = dispatch.Session(mean._formula, on_gpu(stream=stream))
        assert (call.stream, call.own_stream) == (handle, handle), name
    with pytest.raises(OptionError, match="stream=.* is not a CUDA stream"):
        dispatch.Session(mean._formula, on_gpu(stream=Stream(number=7)))


@pytest.mark.parametrize("wrong", [{"data": (4098, False)}, {"strides": (6,)}], ids=str)
def test_what_no_gpu_can_read_is_refused(a_gpu, wrong):
    """A misaligned address would end the context of the whole process."""
    array = type("Misaligned", (), {"__cuda_array_interface__": OnCuda.__cuda_array_interface__ | wrong})()
    for arrays in ((array, OnCuda()), (OnCuda(), array)):
        with pytest.raises(ArrayError, match=r"no multiples of 4, which no GPU can read: pass a copy"):
            mean(*arrays)
    gpu, cpu = Device("cuda"), Device("cpu")
    with pytest.raises(ArrayError, match="no multiples of 4"):
        checks.aligned("two elements", Buffer(4096, "float32", (2,), (6,), gpu, None))
    checks.aligned("an axis that nobody steps along", Buffer(4096, "float32", (1, 3), (6, 4), gpu, None))
    checks.aligned("no elements", Buffer(4098, "float32", (0,), (4,), gpu, None))
    checks.aligned("what is refused for its type", Buffer(4098, "complex64", (3,), (8,), gpu, None))
    checks.aligned("an array of the host", Buffer(4098, "float32", (3,), (6,), cpu, None))


@pytest.mark.parametrize("given", [{"weight": 2.0}, {"mask": True}], ids=str)
def test_pytorchs_default_device_is_not_that_of_numbers(given):
    """They lie beside the tensors. Memory of the default device would be read as if it were the host's."""
    loss = replace(mean, pos_weight=(1.0, 2.0, 3.0, 4.0))
    tensors, expected = (torch.tensor(X), torch.tensor(Y)), loss(X, Y, **given)
    with torch.device("meta"):
        assert loss(*tensors, **given).item() == expected


def test_exporters_on_a_gpu_are_asked_by_dlpack(monkeypatch):
    """Which orders streams: the CUDA array interface of JAX's arrays names none. But it says what is read-only."""
    lent = Buffer(8192, "float32", (3,), (4,), Device("cuda", 1), "CuPy's array")
    cupy = SimpleNamespace(cupy=SimpleNamespace(from_dlpack=lambda array: array), buffer=lambda array: lent)
    described = {"shape": (3,), "typestr": "<f4", "data": (4096, True), "version": 2}
    on_gpu = {"__dlpack_device__": lambda self: (2, 1), "__dlpack__": None}
    bare, both = type("Bare", (), on_gpu)(), type("Both", (), on_gpu | {"__cuda_array_interface__": described})()
    monkeypatch.setattr(dlpack, "_cupy", lambda: cupy)
    assert dlpack.buffer(bare) == lent._replace(owner=bare, holder=lent.owner)
    assert dlpack.buffer(both) == lent._replace(owner=both, holder=lent.owner, writable=False)
    cupy.buffer = pytest.fail  # CuPy does not know every type.
    cupy.cupy.from_dlpack = lambda array: {}[array]
    assert dlpack.buffer(both).address == 4096
    with pytest.raises(ArrayError, match="the Bare cannot be read through DLPack"):
        dlpack.buffer(bare)


def test_devices_are_printed_one_a_line():
    lines = str(dispatch.Devices(1, (), "there is no driver")).splitlines()
    assert lines == ["cpu     1 thread; host arrays under device='auto'", "cuda    not used: there is no driver"]
    lines = str(dispatch.Devices(2, (Gpu(0, "H200", (9, 0)), Gpu(1, "T4", (7, 5))), "")).splitlines()
    assert lines == [
        "cpu     2 threads; host arrays under device='auto'",
        "cuda:0  H200, compute capability 9.0",
        "cuda:1  T4, compute capability 7.5",
    ]


def test_devices_say_why_there_is_no_gpu(no_gpu):
    lines = str(gpubce.devices()).splitlines()
    assert lines[0].startswith("cpu ")
    assert lines[1:] == ["cuda    not used: there is no driver"]
