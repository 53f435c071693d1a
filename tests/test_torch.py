"""PyTorch's losses and the drop-ins: the same values, gradients, gradients of gradients, under every transform."""

import sys
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the adapter is PyTorch's")

import gpubce  # noqa: E402
from gpubce import BinaryCrossEntropy  # noqa: E402
from gpubce.adapters import torch as ours  # noqa: E402
from gpubce.errors import DtypeError, GpubceError, InvalidValueError, OptionError, ShapeError  # noqa: E402
from tests import tolerances  # noqa: E402
from tests.processes import run  # noqa: E402

theirs = torch.nn.functional

REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def numbers(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def unit(*shape, dtype=torch.float64):
    return torch.rand(shape, dtype=dtype).clamp(0.01, 0.99)


LOGITS = partial(ours.binary_cross_entropy_with_logits), partial(theirs.binary_cross_entropy_with_logits), numbers
PROBABILITIES = partial(ours.binary_cross_entropy), partial(theirs.binary_cross_entropy), unit
SPACES = pytest.mark.parametrize(("own", "peer", "make"), [LOGITS, PROBABILITIES], ids=["logits", "probabilities"])

WEIGHTS = {"none": None, "scalar": (), "by label": (3,), "by row": (4, 1), "by element": (4, 3)}


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.meaning
@SPACES
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_values_and_gradients_are_those_of_pytorch(own, peer, make, reduction, weight):
    weight = None if WEIGHTS[weight] is None else unit(*WEIGHTS[weight])
    results = []
    x, y, upstream = make(4, 3), unit(4, 3), numbers(4, 3)
    for function in (own, peer):
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        value = function(x, y, weight, reduction=reduction)
        (value * upstream).sum().backward()
        results.append((value.detach(), x.grad, y.grad))
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=tolerances.TORCH_ADAPTER, atol=tolerances.TORCH_ADAPTER)


@pytest.mark.meaning
@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 3)])
def test_pos_weight_broadcasts_as_in_pytorch(shape):
    x, y, pos_weight = numbers(4, 3), unit(4, 3), 3 * unit(*shape)
    for reduction in REDUCTIONS:
        torch.testing.assert_close(
            ours.binary_cross_entropy_with_logits(x, y, pos_weight=pos_weight, reduction=reduction),
            theirs.binary_cross_entropy_with_logits(x, y, pos_weight=pos_weight, reduction=reduction),
            rtol=tolerances.TORCH_ADAPTER,
            atol=tolerances.TORCH_ADAPTER,
        )


@pytest.mark.meaning
@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
def test_pytorchs_own_samples_pass(name):
    invocations = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason="expecttest")
    info = next(entry for entry in invocations.op_db if entry.name == f"nn.functional.{name}")
    samples = list(info.sample_inputs("cpu", torch.float64, requires_grad=True))
    assert len(samples) > 10
    for sample in samples:
        mine, other = (getattr(module, name)(sample.input, *sample.args, **sample.kwargs) for module in (ours, theirs))
        torch.testing.assert_close(mine, other, rtol=tolerances.TORCH_ADAPTER, atol=tolerances.TORCH_ADAPTER)
        if mine.numel():
            gradients = [torch.autograd.grad(value.sum(), sample.input)[0] for value in (mine, other)]
            torch.testing.assert_close(*gradients, rtol=tolerances.TORCH_ADAPTER, atol=tolerances.TORCH_ADAPTER)


def test_the_focal_loss_has_its_gradient():
    x, y = numbers(5, 3).requires_grad_(), unit(5, 3)
    loss = gpubce.BinaryCrossEntropy(from_logits=True, gamma=2.0, alpha=0.25, reduction="sum")
    value, gradient = loss.value_and_grad(x, y)
    own = ours.sigmoid_focal_loss(x, y, reduction="sum")
    own.backward()
    assert torch.equal(own, value) and torch.equal(x.grad, gradient)
    unbalanced = gpubce.BinaryCrossEntropy(from_logits=True, gamma=3.0, reduction="none")
    assert torch.equal(ours.sigmoid_focal_loss(x, y, alpha=-1, gamma=3), unbalanced(x, y))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16])
def test_targets_of_any_type_are_taken_as_they_are(dtype):
    x, y = numbers(64, dtype=torch.float32), torch.rand(64) < 0.5
    expected = ours.binary_cross_entropy_with_logits(x, y.float())
    assert torch.equal(ours.binary_cross_entropy_with_logits(x, y.to(dtype)), expected)


def test_options_beyond_pytorch_are_those_of_the_package():
    x, y = numbers(5, 3).requires_grad_(), torch.tensor([[0, 1, -1]] * 5)
    options = {"ignore_index": -1, "label_smoothing": 0.1, "denominator": "elements"}
    value, gradient = gpubce.BinaryCrossEntropy(from_logits=True, **options).value_and_grad(x, y)
    own = ours.binary_cross_entropy_with_logits(x, y, **options)
    own.backward()
    assert torch.equal(own, value) and torch.equal(x.grad, gradient)


def test_where_pytorch_loses_all_digits():
    """logits of 30 and y = 1: 1 / (1 + exp(-30)) is 1 in float32."""
    x = torch.tensor([30.0, torch.inf, -torch.inf], requires_grad=True)
    value = ours.binary_cross_entropy_with_logits(x, torch.tensor([1.0, 1.0, 0.0]), reduction="none")
    value.sum().backward()
    expected = np.log1p(np.exp(-30.0))
    assert value.tolist() == [pytest.approx(expected, rel=tolerances.ONE_ULP_FLOAT32), 0.0, 0.0]
    assert x.grad.tolist() == [pytest.approx(-expected, rel=tolerances.ONE_ULP_FLOAT32), 0.0, 0.0]


def test_half_precision_is_reduced_in_float32():
    x = torch.full((2**17,), 100.0, dtype=torch.float16, requires_grad=True)
    value = ours.binary_cross_entropy_with_logits(x, torch.zeros(2**17), reduction="sum")
    assert value.dtype == torch.float32 and value.item() == 100 * 2**17
    value.backward()
    assert x.grad.dtype == torch.float16 and x.grad.tolist() == [1.0] * 2**17


# Derivatives ----------------------------------------------------------------------------------------------------------


@pytest.mark.meaning
@SPACES
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_are_those_of_differences(own, peer, make, reduction):
    """Of the prediction, the target and the weight; and the derivatives of the derivatives."""
    inputs = [make(3, 2), unit(3, 2), unit(3, 1)]
    function = partial(own, reduction=reduction)
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.meaning
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pos_weight_has_a_gradient(reduction):
    inputs = [tensor.requires_grad_() for tensor in (numbers(3, 2), unit(3, 2), unit(2))]

    def function(x, y, pos_weight):
        return ours.binary_cross_entropy_with_logits(x, y, pos_weight=pos_weight, reduction=reduction)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.meaning
@pytest.mark.parametrize("options", [{"axis": 0}, {"axis": (0, -1)}, {"axis": 1, "reduction": "sum"}], ids=str)
def test_results_along_axes_have_gradients(options):
    x, y = numbers(2, 3, 2).requires_grad_(), unit(2, 3, 2).requires_grad_()
    function = partial(ours.binary_cross_entropy_with_logits, **options)
    assert torch.autograd.gradcheck(function, (x, y))
    assert torch.autograd.gradgradcheck(function, (x, y))


@pytest.mark.meaning
@pytest.mark.parametrize(
    "options",
    [{"gamma": 2.0}, {"alpha": 0.3}, {"label_smoothing": 0.1}, {"ignore_index": 0}, {"denominator": "weights"}],
    ids=str,
)
def test_missing_derivatives_are_refused(options):
    x, y = numbers(4).requires_grad_(), unit(4).requires_grad_()
    value = ours.binary_cross_entropy_with_logits(x, y, **options)
    with pytest.raises(OptionError, match=f"{next(iter(options))}.* detach"):
        value.backward()
    ours.binary_cross_entropy_with_logits(x, y.detach(), **options).backward()


@pytest.mark.meaning
def test_a_third_derivative_is_refused():
    x = numbers(4).requires_grad_()
    gradient = torch.autograd.grad(ours.binary_cross_entropy_with_logits(x, unit(4)), x, create_graph=True)[0]
    hessian = torch.autograd.grad(gradient.sum(), x, create_graph=True)[0]
    with pytest.raises(OptionError, match="third"):
        hessian.sum().backward()


def test_backward_keeps_the_inputs_and_nothing_else():
    x, y = numbers(1000, dtype=torch.float32).requires_grad_(), torch.rand(1000) < 0.5
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours.binary_cross_entropy_with_logits(x, y)
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), y.data_ptr()}


# Transforms -----------------------------------------------------------------------------------------------------------


@pytest.mark.meaning
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("in_dims", [(0, 0, None), (1, 1, None), (0, None, None), (None, 0, None), (0, 0, 0)], ids=str)
def test_vmap_gives_one_result_for_each_sample(reduction, in_dims):
    shapes = [(4, 3), (4, 3), (3,)]
    sizes = [(*shape[: dim or 0], 5, *shape[dim or 0 :]) for shape, dim in zip(shapes, in_dims, strict=True)]
    inputs = [
        make(*(shape if dim is None else size))
        for make, shape, size, dim in zip((numbers, unit, unit), shapes, sizes, in_dims, strict=True)
    ]
    for transform in (lambda function: function, lambda function: torch.func.grad(lambda *a: function(*a).sum())):
        mine, other = (
            torch.func.vmap(
                transform(
                    lambda x, y, w, module=module: module.binary_cross_entropy_with_logits(x, y, w, reduction=reduction)
                ),
                in_dims,
            )(*inputs)
            for module in (ours, theirs)
        )
        torch.testing.assert_close(mine, other, rtol=tolerances.TORCH_ADAPTER, atol=tolerances.TORCH_ADAPTER)


def test_vmap_of_single_numbers():
    x, y = numbers(5), unit(5)
    mine = torch.func.vmap(ours.binary_cross_entropy_with_logits)(x, y)
    assert torch.equal(mine, ours.binary_cross_entropy_with_logits(x, y, reduction="none"))


def test_the_hessian_by_reverse_mode_twice():
    x, y = numbers(4), unit(4)
    hessian = torch.func.jacrev(torch.func.jacrev(partial(ours.binary_cross_entropy_with_logits, reduction="sum")))(
        x, y
    )
    _, diagonal = gpubce.BinaryCrossEntropy(from_logits=True).grad_and_hess(x, y)
    torch.testing.assert_close(
        hessian, torch.diag(diagonal), rtol=tolerances.TORCH_ADAPTER, atol=tolerances.TORCH_ADAPTER
    )


@SPACES
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(1,), (2**13 + 1,)], ids=str)
@pytest.mark.parametrize("upstream", [torch.inf, -torch.inf, torch.nan])
def test_a_training_that_diverges_is_told_as_by_pytorch(own, peer, make, reduction, shape, upstream):
    """By gradients that are not finite: a scaler of gradients looks for them."""
    x = make(*shape, dtype=torch.float32).requires_grad_()
    y = (torch.rand(shape) < 0.5).float()
    found, expected = (torch.autograd.grad((f(x, y, reduction=reduction) * upstream).sum(), x)[0] for f in (own, peer))
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.meaning
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_several_gradients_at_once(reduction):
    x, y = numbers(5), unit(5)
    jacobian = partial(torch.autograd.functional.jacobian, vectorize=True)
    found, expected = (
        jacobian(lambda x, f=f: f(x, y, reduction=reduction), x)
        for f in (ours.binary_cross_entropy_with_logits, theirs.binary_cross_entropy_with_logits)
    )
    torch.testing.assert_close(found, expected, rtol=tolerances.TORCH_ADAPTER, atol=tolerances.TORCH_ADAPTER)


def tagger():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # By Dynamo itself.
def test_a_compiled_step_has_no_graph_break_and_the_same_result():
    model, loss = tagger(), ours.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0]))
    inputs, targets = torch.randn(32, 8), torch.rand(32, 3) < 0.3
    gradients = []

    def step(inputs, targets):
        return loss(model(inputs), targets)

    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        value = function(inputs, targets)
        value.backward()
        gradients.append([value.detach(), *(parameter.grad for parameter in model.parameters())])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_an_exported_program_has_the_loss_in_it():
    class WithLoss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.loss = tagger(), ours.BCEWithLogitsLoss(label_smoothing=0.1)

        def forward(self, inputs, targets):
            return self.loss(self.model(inputs), targets)

    module, example = WithLoss(), (torch.randn(32, 8), torch.rand(32, 3) < 0.3)
    program = torch.export.export(module, example)
    assert "gpubce.loss" in program.graph_module.code
    assert torch.equal(program.module()(*example), module(*example))


def test_checkpointing_recomputes_it():
    x, y = numbers(5, 3).requires_grad_(), unit(5, 3)
    ours.binary_cross_entropy_with_logits(x, y).backward()
    expected, x.grad = x.grad, None
    torch.utils.checkpoint.checkpoint(ours.binary_cross_entropy_with_logits, x, y, use_reentrant=False).backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.meaning
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_gives_float32(reduction):
    model, targets = tagger(), torch.rand(32, 3) < 0.3
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(32, 8))
        value = ours.binary_cross_entropy_with_logits(logits, targets, reduction=reduction)
        probabilities = ours.binary_cross_entropy(logits.sigmoid(), targets, reduction=reduction)
    assert (logits.dtype, value.dtype, probabilities.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    value.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


PARALLEL = """
import torch
from gpubce.adapters.torch import BCEWithLogitsLoss

torch.distributed.init_process_group("gloo", init_method="file://{meet}", rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 3))
BCEWithLogitsLoss()(model(torch.randn(32, 8)), torch.rand(32, 3) < 0.3).backward()
print(all(parameter.grad.abs().sum() > 0 for parameter in model.parameters()))
del model  # Before the group: otherwise they wait for each other now and then.
torch.distributed.destroy_process_group()
"""


def test_distributed_data_parallel_trains_with_it(tmp_path):
    assert run(PARALLEL.format(meet=tmp_path / "meet"), seconds=200) == "True\n"


@pytest.mark.parametrize("operator", ["loss", "gradient", "hessian"])
def test_the_operators_are_what_pytorch_expects(operator):
    x, y, options = numbers(4, 3), unit(4, 3), '{"from_logits": true, "axis": 0}'
    inputs = (x, y, unit(3), unit(3), options)
    grad = () if operator == "loss" else (numbers(3),)
    torch.library.opcheck(getattr(torch.ops.gpubce, operator), (*grad, *inputs))


# Modules --------------------------------------------------------------------------------------------------------------


def train(loss, dtype):
    """The losses of three epochs on a problem that can be learnt."""
    torch.manual_seed(2)
    features = torch.randn(512, 8, dtype=dtype)
    targets = (features @ torch.randn(8, 3, dtype=dtype) + 0.5 * torch.randn(512, 3, dtype=dtype) > 0).to(dtype)
    model = tagger().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        for rows in torch.arange(512).split(64):
            optimizer.zero_grad()
            value = loss(model(features[rows]), targets[rows])
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses


@pytest.mark.parametrize("name", tolerances.TRAINING)
def test_training_takes_the_same_way(name):
    dtype, tolerance = getattr(torch, name), tolerances.TRAINING[name]
    pos_weight = torch.tensor([1.0, 2.0, 0.5], dtype=dtype)
    mine = train(ours.BCEWithLogitsLoss(pos_weight=pos_weight), dtype)
    assert mine == pytest.approx(train(torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight), dtype), rel=tolerance)
    assert mine[-1] < 0.7 * mine[0]


@pytest.mark.parametrize("name", ["BCELoss", "BCEWithLogitsLoss"])
def test_modules_have_the_buffers_and_the_legacy_arguments_of_pytorch(name):
    weight = torch.tensor([1.0, 2.0, 3.0])
    mine, other = (getattr(module, name)(weight=weight) for module in (ours, torch.nn))
    assert mine.state_dict().keys() == other.state_dict().keys()
    mine.load_state_dict(other.state_dict())
    with pytest.warns(UserWarning, match="reduction='sum'"):
        assert getattr(ours, name)(size_average=False).reduction == "sum"
    assert "gamma=2.0" in repr(getattr(ours, name)(gamma=2.0))


def test_mistakes_are_named():
    x, y = numbers(4, 3), unit(4, 3)
    with pytest.raises(ShapeError, match=r"targets has shape \(3,\)"):
        ours.binary_cross_entropy_with_logits(x, y[0])
    with pytest.raises(InvalidValueError, match=r"targets\[0, 0\] is 7"):
        ours.binary_cross_entropy_with_logits(x, 0 * y + 7)
    with pytest.raises(InvalidValueError, match="probabilities"):
        ours.binary_cross_entropy(x + 7, y)
    with pytest.raises(OptionError, match="gamma"):
        ours.BCEWithLogitsLoss(gamma=-1)
    with pytest.raises(OptionError, match="base"):
        ours.binary_cross_entropy(unit(3), unit(3), base=2)
    with pytest.raises(ShapeError, match="pos_weight has shape"):
        ours.binary_cross_entropy_with_logits(x, y, pos_weight=unit(4))
    with pytest.raises(GpubceError):
        ours.binary_cross_entropy_with_logits(x.to_sparse(), y)
    with pytest.raises(DtypeError):
        ours.binary_cross_entropy_with_logits(x.long(), y)


# On a GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_gpu_gives_the_bits_of_the_cpu(reduction):
    x, y, upstream = numbers(1000, 3, dtype=torch.float32), torch.rand(1000, 3) < 0.3, numbers(1000, 3)
    results = []
    for device in ("cpu", "cuda"):
        own = x.detach().to(device).requires_grad_()
        pos_weight = torch.tensor([1.0, 2.0, 3.0], device=device)
        value = ours.binary_cross_entropy_with_logits(own, y.to(device), reduction=reduction, pos_weight=pos_weight)
        value.backward(upstream.to(device, value.dtype) if reduction == "none" else None)
        results.append((value.detach().cpu(), own.grad.cpu()))
    for host, device in zip(*results, strict=True):
        assert torch.equal(host, device)


def test_pos_weight_may_be_the_option():
    """One number for each label along label_axis, where a tensor follows the last axes."""
    x, y = numbers(4, 3, 5), unit(4, 3, 5).round()
    weights = [1.0, 2.0, 5.0]
    expected = theirs.binary_cross_entropy_with_logits(
        x, y, pos_weight=torch.tensor(weights, dtype=x.dtype).reshape(3, 1)
    )
    layer = ours.BCEWithLogitsLoss(pos_weight=weights, label_axis=1)
    assert "pos_weight" not in layer.state_dict()
    for value in (layer(x, y), ours.binary_cross_entropy_with_logits(x, y, pos_weight=tuple(weights), label_axis=1)):
        torch.testing.assert_close(value, expected, rtol=tolerances.TORCH_ADAPTER, atol=0)
    expected = theirs.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor(3.0, dtype=x.dtype))
    torch.testing.assert_close(
        ours.BCEWithLogitsLoss(pos_weight=3)(x, y), expected, rtol=tolerances.TORCH_ADAPTER, atol=0
    )
    with pytest.raises(OptionError, match="pos_weight=-1"):
        ours.BCEWithLogitsLoss(pos_weight=[1, -1])


@pytest.mark.parametrize("weights", [range(1, 4), np.array([1.0, 2, 3]), [np.float32(1), 2, 3], (1, 2, 3)], ids=type)
def test_pos_weight_may_be_any_sequence_of_numbers(weights):
    x, y = numbers(2, 3), torch.ones(2, 3, dtype=torch.float64)
    expected = ours.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor([1.0, 2.0, 3.0]))
    assert ours.binary_cross_entropy_with_logits(x, y, pos_weight=weights) == expected
    if not isinstance(weights, range):
        layer = ours.BCEWithLogitsLoss(pos_weight=weights)
        assert layer(x, y) == expected
        assert "pos_weight=(1.0, 2.0, 3.0)" in repr(layer)


@pytest.mark.meaning
@pytest.mark.parametrize(
    "options",
    [
        {"pos_weight": [1.0, 2.0, 3.0], "label_axis": 0},
        {"label_weight": (1.0, 2.0, 3.0), "label_axis": 0},
        {"label_weight": (1.0, 2.0, 3.0), "label_axis": -1, "reduction": "none"},
        {"denominator": "rows"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 2, 3)], ids=str)
def test_the_labels_under_vmap_are_those_of_a_sample(options, shape):
    if len(shape) == 1 and ("pos_weight" in options or "label_weight" in options):
        x, y = numbers(4, *shape), unit(4, *shape)
        with pytest.raises(ShapeError):
            torch.func.vmap(partial(ours.binary_cross_entropy_with_logits, **options))(x, y)
        return
    x, y = numbers(4, *shape), unit(4, *shape)
    function = partial(ours.binary_cross_entropy_with_logits, **options)
    slope = torch.func.grad(lambda x, y: function(x, y).sum())
    for mapped in (function, slope):
        found = torch.func.vmap(mapped)(x, y)
        assert torch.equal(found, torch.stack([mapped(*sample) for sample in zip(x, y, strict=True)]))


def test_compiled_where_nobody_wants_a_gradient():
    """The step of validation."""
    x, y = numbers(4, 3), unit(4, 3)
    loss = ours.BCEWithLogitsLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert compiled(x, y) == loss(x, y)
    assert compiled(x, y) == loss(x, y)


STEP = """
import torch
from gpubce.adapters.torch import binary_cross_entropy_with_logits as loss

def held(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

def step(x, y):
    loss(x, y).backward()

step(torch.randn(2**17).requires_grad_(), torch.rand(2**17))  # Loads, compiles and starts threads.
x, y = torch.randn(2**24).requires_grad_(), torch.rand(2**24)
open("/proc/self/clear_refs", "w").write("5")  # The peak is that from here on.
before = held("VmRSS:")
step(x, y)
print(held("VmHWM:") - before, x.grad.nbytes / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is Linux's")
def test_a_step_takes_the_memory_of_the_gradient():
    taken, gradient = map(float, run(STEP).split())
    assert gradient == 64
    assert taken < gradient + tolerances.STEP_MEGABYTES


def test_more_than_any_memory_is_a_memory_error():
    x = torch.zeros(1, 1).expand(2**40, 2**22)
    with pytest.raises(MemoryError):
        BinaryCrossEntropy(from_logits=True, reduction="none")(x, x)


@pytest.mark.gpu
def test_a_cuda_graph_replays_it():
    x, y = torch.randn(10_000, device="cuda").requires_grad_(), torch.rand(10_000, device="cuda")

    def step():
        x.grad = None
        value = ours.binary_cross_entropy_with_logits(x, y)
        value.backward()
        return value.detach(), x.grad

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    for replayed, expected in zip([tensor.clone() for tensor in captured], step(), strict=True):
        assert torch.equal(replayed, expected)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_backward_does_not_wait_for_the_device():
    x, y = torch.randn(1000, device="cuda").requires_grad_(), torch.rand(1000, device="cuda")
    ours.binary_cross_entropy_with_logits(x, y).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.binary_cross_entropy_with_logits(x, y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_options_are_read_anew_where_they_may_have_changed():
    """A tensor is the same key after a change in place."""
    from gpubce import binary_cross_entropy_with_logits as loss

    weight, logits, targets = torch.ones(2), torch.zeros(1, 2), torch.ones(1, 2)
    before = loss(logits, targets, pos_weight=weight)
    weight.mul_(3)
    assert loss(logits, targets, pos_weight=weight) == 3 * before


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_where_nobody_wants_a_gradient_there_is_no_function(monkeypatch):
    """It takes as long as all the rest. But it is what refuses forward mode."""
    from torch.autograd import forward_ad

    logits, targets = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    expected = ours.binary_cross_entropy_with_logits(logits.clone().requires_grad_(), targets)
    assert expected.requires_grad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, torch.ones(2))
        with pytest.raises(RuntimeError, match="jvp"):
            ours.binary_cross_entropy_with_logits(dual, targets)
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda x: ours.binary_cross_entropy_with_logits(x, targets), (logits,), (torch.ones(2),))
    monkeypatch.setattr(ours, "_Loss", None)
    found = ours.binary_cross_entropy_with_logits(logits, targets)
    assert found == expected
    assert not found.requires_grad
    with torch.no_grad():
        assert ours.binary_cross_entropy_with_logits(logits.clone().requires_grad_(), targets) == expected


# Small losses on a CPU, whose forward makes the gradient too ----------------------------------------------------------


@pytest.fixture
def small(monkeypatch) -> list[str]:
    """What was asked of the package, by the names of its functions."""
    asked = []
    for name in ("value", "value_and_grad", "derivatives"):
        function = getattr(ours.dispatch, name)
        monkeypatch.setattr(
            ours.dispatch,
            name,
            lambda *given, _name=name, _function=function: (asked.append(_name), _function(*given))[1],
        )
    return asked


SMALL_OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "by weights": {"denominator": "weights"},
    "pos_weight": {"pos_weight": (2.0, 3.0, 0.5)},
}


@pytest.mark.parametrize("options", SMALL_OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_step_of_a_small_loss_is_one_pass(small, options, dtype):
    options, y, w = SMALL_OPTIONS[options], torch.rand(40, 3) < 0.4, torch.rand(40, 3)
    x = numbers(40, 3, dtype=torch.float32).to(dtype).requires_grad_()
    value = ours.binary_cross_entropy_with_logits(x, y, w, **options)
    value.backward()
    assert small == ["value_and_grad"]
    own = BinaryCrossEntropy(from_logits=True, **options)
    expected = own.value_and_grad(x.detach(), y, weight=w)
    assert torch.equal(value.detach(), expected[0])
    assert torch.equal(x.grad, expected[1])
    assert value.dtype == expected[0].dtype


def test_what_else_a_small_loss_is_asked_for_is_computed(small):
    """Another gradient than its own, a second time, or as a function of the inputs."""
    x, y = numbers(5, dtype=torch.float32).requires_grad_(), torch.rand(5)
    for scale in (1.0, 3.0):
        (expected,) = torch.autograd.grad(theirs.binary_cross_entropy_with_logits(x, y), x)
        (found,) = torch.autograd.grad(scale * ours.binary_cross_entropy_with_logits(x, y), x)
        torch.testing.assert_close(found, scale * expected)
    assert small == ["value_and_grad", "value_and_grad", "derivatives"]
    value = ours.binary_cross_entropy_with_logits(x, y)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(value, x, retain_graph=True)
    assert torch.equal(second, kept)
    (third,) = torch.autograd.grad(value, x, create_graph=True)
    assert third.requires_grad
    assert torch.equal(third.detach(), kept)


def test_the_gradient_of_a_small_loss_is_given_away_once():
    """Compiled autograd has a context of its own, which forgets what is assigned to it."""
    from torch._dynamo import compiled_autograd

    x, y = numbers(5, dtype=torch.float32).requires_grad_(), torch.rand(5)
    value = ours.binary_cross_entropy_with_logits(x, y)
    with compiled_autograd._enable(lambda graph: graph):
        (first,) = torch.autograd.grad(value, x, retain_graph=True)
        kept = first.clone()
        first.zero_()
        assert torch.equal(torch.autograd.grad(value, x, retain_graph=True)[0], kept)


def test_inputs_of_a_small_loss_are_not_changed_before_backward():
    x, y = numbers(5).requires_grad_(), torch.rand(5)
    value = ours.binary_cross_entropy_with_logits(x, y)
    y.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize(
    "change", [{"reduction": "none"}, {"axis": 0}, {"pos_weight": True}, {"size": ours.IN_ONE_PASS + 1}], ids=str
)
def test_other_losses_keep_the_inputs_alone(small, change):
    x = numbers(change.pop("size", 4), dtype=torch.float32).requires_grad_()
    if change.get("pos_weight"):
        change["pos_weight"] = torch.ones(4, requires_grad=True)
    ours.binary_cross_entropy_with_logits(x, torch.rand(len(x)), **change)
    assert small == ["value"]


def test_a_small_loss_checks_its_inputs():
    x = torch.tensor([0.5, 1.5], requires_grad=True)
    with pytest.raises(InvalidValueError, match="1.5"):
        ours.binary_cross_entropy(x, torch.ones(2))
