"""Small calls on arrays that look like those of one before go through no session: with the same results and errors."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from gpubce import BinaryCrossEntropy, dispatch
from gpubce.arrays.registry import glance
from gpubce.backends.cpu import launch
from gpubce.errors import ArrayError, GpubceError, InvalidValueError
from gpubce.spec.quantities import QUANTITIES
from gpubce.spec.recipe import WITH_BASELINE
from tests import backends

SHAPE = (9, 5)

OPTIONS = {
    "logits": {"from_logits": True},
    "probabilities": {},
    "sum": {"from_logits": True, "reduction": "sum", "dtype": "float64"},
    "each": {"from_logits": True, "reduction": "none", "base": 2.0},
    "weights": {"from_logits": True, "denominator": "weights"},
    "positives": {"denominator": "positives", "eps": 1e-3},
    "rows": {"from_logits": True, "denominator": "rows", "pos_weight": 3.0, "label_smoothing": 0.1},
    "focal": {"from_logits": True, "gamma": 1.5, "alpha": 0.25, "ignore_index": 0.5},
}

METHODS = {
    "value": lambda loss, given: (loss(*given[:2], **given[2]),),
    "value_and_grad": lambda loss, given: loss.value_and_grad(*given[:2], **given[2], grad_scale=2.5),
    "grad_and_hess": lambda loss, given: loss.grad_and_hess(*given[:2], **given[2]),
}

KINDS = ("float32", "bfloat16", "float64", "float16")


def drawn(seed: int, kind: str = "float32", targets: str = "float32", shape=SHAPE, beside=()) -> tuple:
    """Predictions that are logits as well as probabilities, targets, and what else is given."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else np.dtype(kind)
    others = {"weight": rng.random(shape), "mask": rng.random(shape[-1:]) < 0.7}
    return (
        rng.random(shape).astype(dtype),
        rng.integers(0, 2, shape).astype(targets),
        {name: others[name] for name in beside},
    )


def same(found, expected) -> bool:
    return all(
        type(a) is type(b) and a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture
def sessions(monkeypatch):
    """The formulas of the sessions that there were."""
    formulas, begin = [], dispatch.Session.__init__
    monkeypatch.setattr(
        dispatch.Session,
        "__init__",
        lambda session, formula, arguments: (formulas.append(formula), begin(session, formula, arguments))[1],
    )
    return formulas


def times(sessions, loss) -> int:
    return sum(formula is loss._formula for formula in sessions)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", OPTIONS)
def test_again_gives_what_a_session_gives(sessions, method, options):
    """One type of predictions for each, by turns."""
    loss = BinaryCrossEntropy(**OPTIONS[options])
    kind = KINDS[(list(OPTIONS).index(options) + list(METHODS).index(method)) % len(KINDS)]
    beside = {"sum": ("weight", "mask"), "each": ("mask",), "rows": ("weight", "mask")}.get(options, ("weight",))
    for seed in range(3):
        given = drawn(seed, kind, "uint8" if options == "logits" else "float32", beside=beside)
        assert same(METHODS[method](loss, given), METHODS[method](replace(loss), given))
    two_passes = method == "value_and_grad" and options in ("weights", "positives", "focal")
    assert times(sessions, loss) == (3 if two_passes else 1)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"axis": 0}, {}),
        ({"label_weight": 2.0}, {}),
        ({"pos_weight": (1.0, 2.0, 3.0, 4.0, 5.0)}, {}),
        ({}, {"weight": 2.0}),
        ({}, {"stream": None, "mask": [True] * 5}),
    ],
    ids=str,
)
def test_what_takes_more_than_a_glance_is_a_session(sessions, options, arguments):
    loss = BinaryCrossEntropy(**options)
    for seed in range(2):
        predictions, targets, _ = drawn(seed)
        expected = replace(loss)(predictions, targets, **arguments).copy()
        assert same([loss(predictions, targets, **arguments)], [expected])
    assert times(sessions, loss) == 2


def outputs(method: str, options: dict, kind: str, shape=SHAPE) -> dict[str, np.ndarray]:
    """An array for each result."""
    given = drawn(0, kind, shape=shape)
    results = METHODS[method](BinaryCrossEntropy(**options), given)
    names = {"value": ("out",), "value_and_grad": ("out", "grad_out"), "grad_and_hess": ("grad_out", "hess_out")}[
        method
    ]
    return {name: np.full_like(np.asarray(result), 7) for name, result in zip(names, results, strict=True)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", ["logits", "probabilities", "each"])
def test_arrays_for_results_are_written_again(sessions, method, options):
    """All that there are, or the last one alone; each time others, or the same."""
    loss = BinaryCrossEntropy(**OPTIONS[options])
    for kind in ("float32", "float16"):
        every = outputs(method, OPTIONS[options], kind)
        for names in {tuple(every), tuple(every)[-1:]}:
            sessions.clear()
            for seed in range(4):
                given = drawn(seed, kind)
                expected = METHODS[method](replace(loss), given)
                outs = {name: every[name] if seed % 2 else every[name].copy() for name in names}
                found = METHODS[method](loss, (*given[:2], outs))
                assert same([np.asarray(one) for one in found], [np.asarray(one) for one in expected])
                assert all(any(one is out for one in found) for out in outs.values())
            assert times(sessions, loss) == 1


def test_arrays_with_gaps_are_written_again(sessions):
    loss, room = BinaryCrossEntropy(from_logits=True), np.zeros((2 * SHAPE[0], 3 * SHAPE[1]), np.float32)
    for seed in range(3):
        given = drawn(seed)[:2]
        loss.value_and_grad(*given, grad_out=room[::-2, ::3])
        assert np.array_equal(room[::-2, ::3], replace(loss).value_and_grad(*given)[1])
        assert np.count_nonzero(room) <= room[::2, ::3].size
    assert times(sessions, loss) == 1


@pytest.mark.parametrize(("first", "second"), [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_shared_memory_is_told_as_by_a_session(first, second):
    """An output's with that of every other array, behind it and before it."""
    loss = BinaryCrossEntropy(from_logits=True, reduction="none")
    room, apart = np.zeros((6, 10), np.float32), [np.zeros((4, 10), np.float32) for _ in range(4)]
    x, y, out, grad_out = apart
    loss.value_and_grad(x, y, out=out, grad_out=grad_out)
    for one, other in ((room[:4], room[2:]), (room[2:], room[:4])):
        arrays = [*apart]
        arrays[first], arrays[second] = one, other
        x, y, out, grad_out = arrays
        with pytest.raises(ArrayError, match="shares memory"):
            loss.value_and_grad(x, y, out=out, grad_out=grad_out)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_gradient_in_the_place_of_logits_is_that_of_the_logits(value):
    """Also where the loss is NaN, and a session looks why."""
    loss, (logits, targets, _) = BinaryCrossEntropy(from_logits=True), drawn(0)
    loss.value_and_grad(logits, targets, grad_out=np.empty_like(logits))
    logits[2, 2] = value
    expected = replace(loss).value_and_grad(logits, targets)[1]
    for _ in range(2):
        place = logits.copy()
        assert np.array_equal(loss.value_and_grad(place, targets, grad_out=place)[1], expected, equal_nan=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda out: out[1:],
        lambda out: out.astype(np.float64),
        lambda out: np.frombuffer(out.tobytes(), out.dtype).reshape(out.shape),
        lambda out: np.broadcast_to(out[0], out.shape),
        lambda out: out.tolist(),
    ],
    ids=["another shape", "another type", "read-only", "broadcast", "a list"],
)
def test_what_cannot_be_written_is_told_as_by_a_session(wrong):
    loss, given, out = BinaryCrossEntropy(from_logits=True), drawn(0)[:2], np.zeros(SHAPE, np.float32)
    loss.value_and_grad(*given, grad_out=out)
    for _ in range(2):
        with pytest.raises(GpubceError, match="grad_out"):
            loss.value_and_grad(*given, grad_out=wrong(out))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_several_blocks_are_repeated(sessions, monkeypatch, method, threads):
    """Their partials are combined in one step, or in several, as many numbers as there are sums."""
    if threads > 1:
        monkeypatch.setattr(launch, "WORTH_A_THREAD", 1)
    sizes = {dispatch.PLAN: 2 * dispatch.PLAN.block + 1, backends.SMALL_PLAN: 5000}
    for plan, size in list(sizes.items())[: 1 + (method == "value")]:
        with backends.replaced(lambda: launch.CpuEngine(threads), plan):
            for options in ("logits", "weights", "each"):
                sessions.clear()
                loss = BinaryCrossEntropy(**OPTIONS[options])
                for seed in range(3):
                    given = drawn(seed, shape=(size,), beside=("weight",))
                    assert same(METHODS[method](loss, given), METHODS[method](replace(loss), given))
                assert times(sessions, loss) == (3 if method == "value_and_grad" and options == "weights" else 1)


def test_much_scratch_is_not_kept(monkeypatch, sessions):
    """What pieces of transposed arrays take."""
    monkeypatch.setattr(launch, "_spare", [])
    loss = BinaryCrossEntropy(from_logits=True)
    for seed in range(3):
        turned = [array.T for array in drawn(seed, shape=(16_000, 40))[:2]]
        assert same([loss(*turned)], [replace(loss)(*turned)])
    assert times(sessions, loss) == 1 and launch._spare == []
    loss(*drawn(0)[:2])
    assert same([loss(*drawn(1)[:2])], [replace(loss)(*drawn(1)[:2])]) and len(launch._spare) == 1


EVERY_SUM = tuple(name for name in QUANTITIES if name not in WITH_BASELINE)


@pytest.mark.parametrize("shape", [SHAPE, (3, 7000)], ids=["one block", "several"])
@pytest.mark.parametrize("beside", [(), ("weight", "mask")], ids=["alone", "weight, mask"])
@pytest.mark.parametrize("options", ["logits", "probabilities"])
def test_states_are_repeated(sessions, options, beside, shape):
    """With sums that kernels make, and those that are known without."""
    loss = BinaryCrossEntropy(**OPTIONS[options])
    for seed in range(3):
        predictions, targets, others = drawn(seed, targets="int8", shape=shape, beside=beside)
        for threshold in (0.4, 0.6):
            how = {**others, "sums": EVERY_SUM, "threshold": threshold}
            found, expected = loss.state(predictions, targets, **how), replace(loss).state(predictions, targets, **how)
            assert same([found.values], [expected.values])
            assert {**vars(found), "values": None} == {**vars(expected), "values": None}
    assert times(sessions, loss) == 2


def test_states_of_tensors_are_tensors():
    torch = pytest.importorskip("torch", reason="PyTorch is optional")
    loss = BinaryCrossEntropy(from_logits=True)
    states = [loss.state(*map(torch.from_numpy, drawn(0)[:2])) for _ in range(2)]
    assert [type(state.values) for state in states] == [torch.Tensor] * 2
    assert torch.equal(states[0].values, states[1].values)


@pytest.mark.parametrize("how", [{"bins": 32}, {"axis": 0}, {"label_weight": 2.0}, {"value": np.nan}], ids=str)
def test_states_that_take_more_than_a_glance_are_sessions(sessions, how):
    """A histogram, several outputs, an array of the options', and what the loss does not tell."""
    options = {name: how[name] for name in ("axis", "label_weight") if name in how}
    loss = BinaryCrossEntropy(from_logits=True, **options)
    for seed in range(2):
        logits, targets, _ = drawn(seed)
        logits[0, 0] = how.get("value", 0.0)
        found, expected = (each.state(logits, targets, bins=how.get("bins", 0)) for each in (loss, replace(loss)))
        assert same([found.values], [expected.values])
    assert times(sessions, loss) == 2


@pytest.mark.parametrize("check", [True, False])
def test_invalid_elements_are_counted_again(check):
    loss, (predictions, targets, _) = BinaryCrossEntropy(), drawn(0)
    loss.state(predictions, targets, check=check)
    predictions[2, :3] = 1.5
    if check:
        with pytest.raises(InvalidValueError, match="3 elements"):
            loss.state(predictions, targets)
    else:
        assert loss.state(predictions, targets, check=False).invalid == 3


def test_what_is_long_or_empty_is_a_session(sessions, monkeypatch):
    loss, block = BinaryCrossEntropy(from_logits=True), dispatch.PLAN.block
    monkeypatch.setattr(launch, "REPEATED", 3 * block)
    for size, expected in ((3 * block, 1), (3 * block + 1, 3), (0, 5)):
        for seed in range(2):
            given = drawn(seed, shape=(size,))
            assert same([loss(*given[:2])], [replace(loss)(*given[:2])])
        assert times(sessions, loss) == expected


def test_what_looks_different_is_another_call():
    loss = BinaryCrossEntropy()
    wide = drawn(0, shape=(18, 10))
    columns = tuple(np.asfortranarray(array) for array in drawn(1)[:2])
    variants = [
        drawn(2)[:2],
        drawn(2, "float64")[:2],
        drawn(2, targets="bool")[:2],
        drawn(2, targets="int8")[:2],
        (wide[0][::2, ::2], wide[1][::2, ::2]),
        (wide[0][::-2, ::2], wide[1][::2, ::-2]),
        columns,
        (columns[0], np.ascontiguousarray(columns[1])),
        drawn(2, shape=(45,))[:2],
        drawn(2, shape=(5, 9))[:2],
        drawn(2, shape=(9, 5, 1))[:2],
    ]
    for _ in range(2):
        for predictions, targets in variants:
            assert same(loss.value_and_grad(predictions, targets), replace(loss).value_and_grad(predictions, targets))


def test_arrays_that_cannot_be_written_are_read():
    loss = BinaryCrossEntropy()
    for seed in range(2):
        given = drawn(seed)[:2]
        expected = replace(loss)(*given)
        for array in given:
            array.flags.writeable = False
        assert loss(*given) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", ["target", "probability", "weight"])
def test_what_is_invalid_is_told_as_by_a_session(method, wrong):
    loss, call = BinaryCrossEntropy(), METHODS[method]
    call(loss, drawn(0, beside=("weight",)))
    given = drawn(1, beside=("weight",))
    {"target": given[1], "probability": given[0], "weight": given[2]["weight"]}[wrong][3, 1] = -0.25
    with pytest.raises(InvalidValueError) as again:
        call(loss, given)
    with pytest.raises(InvalidValueError) as first:
        call(replace(loss), given)
    assert str(again.value) == str(first.value)
    unchecked = (*given[:2], {**given[2], "check": False})
    assert same(call(loss, unchecked), call(loss, unchecked))


def test_what_is_not_a_number_gives_that():
    loss = BinaryCrossEntropy(from_logits=True)
    for place in (None, 0, 4):
        logits, targets, _ = drawn(0)
        if place is not None:
            logits[place, place] = np.nan
        assert np.isnan(loss(logits, targets)) == (place is not None)
        assert np.isnan(loss.value_and_grad(logits, targets)[1]).sum() == (place is not None)


def test_scales_are_told_apart():
    loss, (logits, targets, _) = BinaryCrossEntropy(from_logits=True), drawn(0)
    ones = (np.array([4.0]), np.array([5.0]))
    arrays = (np.array(2.0), np.array(3.0, np.float32), *ones, np.array(0.0), np.array(-0.0))
    for scale in (1, 1.0, 2.0, -2.0, 0.0, -0.0, np.float32(2.0), *arrays) * 2:
        found = loss.value_and_grad(logits, targets, grad_scale=scale)
        assert same(found, replace(loss).value_and_grad(logits, targets, grad_scale=scale))


def test_scales_that_are_arrays_are_repeated(sessions):
    loss, (logits, targets, _) = BinaryCrossEntropy(from_logits=True), drawn(0)
    for _ in range(3):
        loss.value_and_grad(logits, targets, grad_scale=np.array(0.25))
    assert times(sessions, loss) == 1


def test_arrays_that_were_moved_are_moved_again(sessions, monkeypatch):
    """Where they were is not where the kernel found them."""
    again, loss, given = dispatch.Session.again, BinaryCrossEntropy(from_logits=True), drawn(0)[:2]
    monkeypatch.setattr(
        dispatch.Session, "again", lambda session, *rest: (setattr(session, "moved", True), again(session, *rest))[1]
    )
    for calls in (1, 2, 3):
        loss(*given)
        assert times(sessions, loss) == calls


@pytest.mark.parametrize("scale", [1j, "x", None, np.datetime64("2026-01-01"), True, 1], ids=str)
def test_what_is_no_scale_is_told_as_by_a_session(scale):
    loss, (logits, targets, _) = BinaryCrossEntropy(from_logits=True), drawn(0)
    loss.value_and_grad(logits, targets)
    with pytest.raises(GpubceError, match="grad_scale"):
        loss.value_and_grad(logits, targets, grad_scale=np.array(scale))


def test_threads_repeat_at_once():
    loss = BinaryCrossEntropy(from_logits=True)
    sizes = (2_000, 20_000, 200_000)
    given = [drawn(seed, shape=(sizes[seed % 3],))[:2] for seed in range(8)]
    expected = [replace(loss).value_and_grad(*each) for each in given]

    def agrees(place: int) -> bool:
        return all(same(loss.value_and_grad(*given[place]), expected[place]) for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(agrees, range(8)))


def test_what_is_remembered_is_bounded_and_holds_no_array(monkeypatch):
    monkeypatch.setattr(dispatch, "REMEMBERED", 3)
    loss = BinaryCrossEntropy()
    predictions, targets, _ = drawn(0)
    loss.value_and_grad(predictions, targets)
    assert len(loss._formula.repeats) == 1
    seen = [weakref.ref(predictions), weakref.ref(targets)]
    del predictions, targets
    gc.collect()
    assert [each() for each in seen] == [None, None]
    for size in range(1, 9):
        loss(*drawn(0, shape=(size,))[:2])
        assert 1 <= len(loss._formula.repeats) <= 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_repeats_its_own_calls(copied):
    loss, given = BinaryCrossEntropy(from_logits=True), drawn(0)[:2]
    expected = [loss.value_and_grad(*given) for _ in range(2)]
    other = copied(loss)
    assert other == loss
    for _ in range(2):
        assert same(other.value_and_grad(*given), expected[0])


# A GPU ----------------------------------------------------------------------------------------------------------------


@pytest.mark.emulated
@pytest.mark.parametrize("size", [45, 64, 65, 5_000])
def test_kernels_are_started_again(sessions, monkeypatch, size):
    """Of one block, and of so many that their sums take two more kernels; each call with numbers of its own."""
    engine, plan = backends.PtxEngine(), backends.SMALL_PLAN
    loss, methods = BinaryCrossEntropy(from_logits=True), ("value", "value_and_grad", "grad_and_hess")
    monkeypatch.setattr(dispatch, "glance", lambda array: (engine.touch(np.asarray(array)), glance(array))[1])
    given = [(*drawn(seed, targets="uint8", shape=(size,))[:2], {"check": False}) for seed in range(3)]
    with backends.replaced(lambda: engine, plan, engine.touch):
        found = {method: [METHODS[method](loss, each) for each in given] for method in methods}
    with backends.replaced(backends.CpuEngine, plan):
        expected = {method: [METHODS[method](replace(loss), each) for each in given] for method in methods}
    for method in methods:
        assert all(same(one, other) for one, other in zip(found[method], expected[method], strict=True))
    assert times(sessions, loss) == 3


def test_kernels_are_not_started_in_another_context(sessions, monkeypatch):
    """As in a thread in which another device is current, or none is."""
    engine, contexts = backends.PtxEngine(), iter([1, 1, 2, 1])
    monkeypatch.setattr(engine, "context", lambda: next(contexts))
    monkeypatch.setattr(dispatch, "glance", lambda array: (engine.touch(np.asarray(array)), glance(array))[1])
    loss, given = BinaryCrossEntropy(from_logits=True), drawn(0, targets="uint8")[:2]
    with backends.replaced(lambda: engine, backends.SMALL_PLAN, engine.touch):
        for expected in (1, 1, 2):
            loss(*given, check=False)
            assert times(sessions, loss) == expected


# Tensors --------------------------------------------------------------------------------------------------------------


def test_tensors_are_repeated_too(sessions):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    loss = BinaryCrossEntropy(from_logits=True)
    for seed in range(3):
        logits, targets = (torch.from_numpy(array) for array in drawn(seed)[:2])
        value, gradient = loss.value_and_grad(logits, targets)
        expected = replace(loss).value_and_grad(logits.numpy(), targets.numpy())
        assert value.numpy().tobytes() == expected[0].tobytes()
        assert gradient.numpy().tobytes() == expected[1].tobytes()
    assert times(sessions, loss) == 1


def test_tensors_that_lost_their_memory_are_refused():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from gpubce.errors import ArrayError

    loss = BinaryCrossEntropy(from_logits=True)
    logits, targets = (torch.from_numpy(array.copy()) for array in drawn(0)[:2])
    loss(logits, targets)
    for size in (0, 4):
        shrunk = torch.empty(SHAPE)
        shrunk.untyped_storage().resize_(size)
        with pytest.raises(ArrayError, match="memory was freed"):
            loss(shrunk, targets)


def test_a_transform_is_told_as_by_a_session():
    """New tensors have no memory there."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from gpubce.errors import ArrayError

    loss, (logits, targets) = BinaryCrossEntropy(from_logits=True), map(torch.from_numpy, drawn(0)[:2])
    loss(logits, targets)
    with pytest.raises(ArrayError, match="cannot be read"):
        torch.func.grad(lambda scale: (scale * loss(logits, targets)).sum())(torch.ones(()))
    with pytest.raises(ArrayError, match="never had any"):  # There they have an address, 0.
        torch.func.functionalize(lambda scale: (scale * loss(logits, targets)).sum())(torch.ones(()))


def test_tracers_and_watchers_see_the_operators():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    from gpubce.adapters.torch import binary_cross_entropy_with_logits

    def step(logits, targets):
        value = binary_cross_entropy_with_logits(logits, targets)
        (gradient,) = torch.autograd.grad(value, logits)
        return gradient

    class Watcher(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            self.seen.append(str(function))
            return function(*args, **(kwargs or {}))

    logits, targets = (torch.from_numpy(array) for array in drawn(0)[:2])
    logits.requires_grad_()
    expected = step(logits, targets)
    with Watcher() as watcher:
        assert torch.equal(step(logits, targets), expected)
    traced = str(make_fx(step, tracing_mode="real")(logits, targets).graph)
    for name in ("gpubce.loss", "gpubce.gradient"):
        assert [seen for seen in watcher.seen if seen.startswith(name)]
        assert name in traced
