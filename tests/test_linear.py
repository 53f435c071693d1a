"""The loss of a linear layer in chunks: that of its logits, whatever the chunks, and the gradients of autograd."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import gpubce
from gpubce import BinaryCrossEntropy, LinearBinaryCrossEntropy, PairwiseSigmoidLoss
from gpubce.errors import ArrayError, DtypeError, InvalidValueError, OptionError, ShapeError
from tests import tolerances
from tests.processes import run

pytestmark = pytest.mark.meaning

torch = pytest.importorskip("torch", reason="autograd is the reference")

ROWS, LABELS, FEATURES = 7, 11, 3
RNG = np.random.default_rng(11)
F = RNG.normal(size=(ROWS, FEATURES))
W = RNG.normal(size=(LABELS, FEATURES))
B = RNG.normal(size=LABELS)
HARD = (RNG.random((ROWS, LABELS)) < 0.3).astype(np.uint8)
SOFT = RNG.random((ROWS, LABELS)) * HARD
HOLES = np.where(RNG.random((ROWS, LABELS)) < 0.2, -1, HARD).astype(np.int8)
BY_ROW = RNG.random(ROWS)
PAIR = np.nonzero(HARD)

CHUNKS = (1, 7, 30, 10**6)
"""Smaller than a row, a column, in between, and everything."""

OPTIONS = [
    {},
    {"reduction": "sum"},
    {"denominator": "rows"},
    {"denominator": "positives"},
    {"denominator": "weights", "label_weight": tuple(range(LABELS))},
    {"pos_weight": tuple(range(1, LABELS + 1))},
    {"pos_weight": 3.0, "label_smoothing": 0.1, "base": 2},
    {"gamma": 2.0, "alpha": 0.25},
]


def close(own, other, storage="float64"):
    assert np.allclose(own, other, rtol=tolerances.LINEAR[storage], atol=tolerances.LINEAR[storage])


def by_chain_rule(targets, bias, row_weight=None, **options):
    """The loss of all logits at once, and its gradients."""
    weight = None if row_weight is None else row_weight[:, None]
    logits = F @ W.T + (0 if bias is None else bias)
    value, of_logits = BinaryCrossEntropy(from_logits=True, **options).value_and_grad(logits, targets, weight=weight)
    of_bias = of_logits.sum(None if np.ndim(bias) == 0 else 0)
    return value, (of_logits @ W, of_logits.T @ F, *([] if bias is None else [of_bias]))


def by_autograd(denominator):
    """PyTorch's own loss of all logits."""
    leaves = tensors(F, W, B)
    logits, targets = leaves[0] @ leaves[1].T + leaves[2], torch.tensor(HARD, dtype=torch.float64)
    value = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / denominator
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_dense_targets(chunk, options):
    loss = LinearBinaryCrossEntropy(chunk=chunk, **options)
    value, gradients = loss.value_and_grad(F, W, B, HARD)
    expected, of_leaves = by_chain_rule(HARD, B, **options)
    close(value, expected)
    close(loss(F, W, B, HARD), expected)
    for own, other in zip(gradients, of_leaves, strict=True):
        close(own, other)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("bias", [None, B, 0.7], ids=["none", "vector", "number"])
@pytest.mark.parametrize(("targets", "options"), [(SOFT, {}), (HOLES, {"ignore_index": -1})], ids=["soft", "holes"])
def test_biases_weights_and_holes(chunk, bias, targets, options):
    loss = LinearBinaryCrossEntropy(chunk=chunk, **options)
    value, gradients = loss.value_and_grad(F, W, bias, targets, row_weight=BY_ROW, grad_scale=8.0)
    expected, of_leaves = by_chain_rule(targets, bias, BY_ROW, **options)
    close(value, expected)
    assert (gradients[2] is None) == (bias is None)
    for own, other in zip(gradients, of_leaves, strict=False):
        close(own, 8 * other)


def spread(kind):
    sparse = pytest.importorskip("scipy.sparse", reason="the matrix is SciPy's") if kind != "pair" else None
    shuffled = RNG.permutation(len(PAIR[0]))
    if kind == "pair":
        return PAIR[0][shuffled], PAIR[1][shuffled]
    if kind == "lists":
        return PAIR[0].tolist(), PAIR[1].tolist()
    if kind == "repeated":
        return np.tile(PAIR[0], 2), np.tile(PAIR[1], 2)
    return getattr(sparse, kind)(HARD)


@pytest.mark.parametrize("kind", ["pair", "lists", "repeated", "csr_matrix", "csc_array", "coo_array"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_positives_give_the_bits_of_dense_targets(kind, chunk):
    loss = LinearBinaryCrossEntropy(chunk=chunk, pos_weight=2.0)
    for own, other in zip(results(loss, spread(kind)), results(loss, HARD), strict=True):
        assert np.array_equal(own, other)


def results(loss, targets):
    value, gradients = loss.value_and_grad(F, W, B, targets)
    return value, *gradients


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_sparse_matrix_may_hold_soft_targets(chunk):
    sparse = pytest.importorskip("scipy.sparse", reason="the matrix is SciPy's")
    loss = LinearBinaryCrossEntropy(chunk=chunk)
    for own, other in zip(results(loss, sparse.csr_array(SOFT)), results(loss, SOFT), strict=True):
        assert np.array_equal(own, other)


def test_without_positives():
    empty = [], []
    assert LinearBinaryCrossEntropy()(F, W, B, empty) == LinearBinaryCrossEntropy()(F, W, B, np.zeros_like(HARD))


@pytest.mark.parametrize("storage", ["float16", "float32", "float64"])
def test_the_loss_of_one_chunk_has_the_bits_of_its_logits(storage):
    f, w = F.astype(storage), W.astype(storage)
    found = LinearBinaryCrossEntropy()(f, w, None, HARD)
    expected = BinaryCrossEntropy(from_logits=True)(f @ w.T, HARD)
    assert found.dtype == expected.dtype
    assert found == expected
    gradients = LinearBinaryCrossEntropy().value_and_grad(f, w, None, HARD)[1]
    assert [str(one.dtype) for one in gradients[:2]] == [storage] * 2


def test_some_gradients_only():
    loss = LinearBinaryCrossEntropy(chunk=20)
    whole = loss.value_and_grad(F, W, B, HARD)[1]
    for k, name in enumerate(("features", "weight", "bias")):
        some = loss.value_and_grad(F, W, B, HARD, of=(name,))[1]
        assert [one is None for one in some] == [j != k for j in range(3)]
        assert np.array_equal(some[k], whole[k])
    assert loss.value_and_grad(F, W, B, HARD, of=())[1] == (None, None, None)


# PyTorch --------------------------------------------------------------------------------------------------------------


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float64).requires_grad_() for array in arrays]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("chunk", [5, 10**6])
@pytest.mark.parametrize("kind", ["dense", "pair", "coo", "csr"])
def test_under_autograd(kind, chunk):
    from gpubce.adapters.torch import linear_binary_cross_entropy

    given = {
        "dense": lambda: torch.tensor(HARD),
        "pair": lambda: tuple(torch.tensor(numbers) for numbers in PAIR),
        "coo": lambda: torch.tensor(HARD).to_sparse(),
        "csr": lambda: torch.sparse_csr_tensor(*csr_parts(), size=HARD.shape, check_invariants=True),
    }[kind]()
    leaves = tensors(F, W, B)
    value = linear_binary_cross_entropy(*leaves, given, chunk=chunk, denominator="rows")
    (3 * value).backward()
    expected, of_leaves = by_autograd(ROWS)
    close(value.detach(), expected)
    for leaf, other in zip(leaves, of_leaves, strict=True):
        close(leaf.grad, 3 * other)


def csr_parts():
    starts = np.append(0, np.cumsum(HARD.sum(1, dtype=np.int64)))
    return torch.tensor(starts), torch.tensor(PAIR[1]), torch.ones(len(PAIR[1]), dtype=torch.uint8)


def test_only_what_needs_a_gradient_is_given_one():
    from gpubce.adapters.torch import linear_binary_cross_entropy

    f, w, b = tensors(F, W, B)
    linear_binary_cross_entropy(f.detach(), w, None, torch.tensor(HARD)).backward()
    assert w.grad is not None
    assert f.grad is None
    value = linear_binary_cross_entropy(f, w.detach(), b, torch.tensor(HARD))
    with pytest.raises(OptionError, match="no second derivative"):
        torch.autograd.grad(value, f, create_graph=True)
    soft = torch.tensor(SOFT).requires_grad_()
    with pytest.raises(OptionError, match=r"with respect to targets: give targets\.detach"):
        linear_binary_cross_entropy(f, w, b, soft)
    with pytest.raises(OptionError, match="with respect to row_weight"):
        linear_binary_cross_entropy(f, w, b, torch.tensor(HARD), row_weight=torch.tensor(BY_ROW).requires_grad_())


def test_targets_that_changed_before_backward_are_noticed():
    from gpubce.adapters.torch import linear_binary_cross_entropy

    targets = torch.tensor(HARD)
    value = linear_binary_cross_entropy(*tensors(F, W, B), targets)
    targets.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_nothing_counted_gives_no_gradient():
    """The mean of nothing is NaN, as everywhere, and its gradient 0: a batch without labels trains nothing."""
    for targets in (np.full((ROWS, LABELS), -1, np.int8), torch.full((ROWS, LABELS), -1)):
        given = (F, W, B) if isinstance(targets, np.ndarray) else [torch.tensor(array) for array in (F, W, B)]
        value, gradients = LinearBinaryCrossEntropy(ignore_index=-1).value_and_grad(*given, targets)
        assert value != value
        assert all((gradient == 0).all() for gradient in gradients)


def test_no_rows_and_no_labels():
    for f, w in ((F[:0], W), (F, W[:0])):
        targets = np.zeros((len(f), len(w)))
        assert np.isnan(LinearBinaryCrossEntropy()(f, w, None, targets))
        assert LinearBinaryCrossEntropy(reduction="sum")(f, w, None, ([], [])) == 0
        gradients = LinearBinaryCrossEntropy().value_and_grad(f, w, None, targets)[1]
        assert [one.shape for one in gradients[:2]] == [f.shape, w.shape]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_sums_of_narrow_types_are_wide(kind):
    """Of 5,000 rows, and of 200,000 labels in many chunks: float16 alone would stop at 2,048 or overflow."""
    for rows, labels in ((5_000, 2), (1, 200_000)):
        f, w = torch.ones(rows, 1, dtype=getattr(torch, kind)), torch.ones(labels, 1, dtype=getattr(torch, kind))
        loss = LinearBinaryCrossEntropy(reduction="mean", chunk=1000)
        found = loss.value_and_grad(f, w, None, ([], []))[1][:2]
        wide = loss.value_and_grad(f.float(), w.float(), None, ([], []))[1][:2]
        for own, other in zip(found, wide, strict=True):
            assert own.dtype == f.dtype
            assert torch.allclose(own.float(), other, rtol=tolerances.LINEAR[kind], atol=2.0**-24)
    if kind == "float16":
        bias = LinearBinaryCrossEntropy(denominator="rows").value_and_grad(
            np.ones((4096, 2), "f2"), np.zeros((3, 2), "f2"), np.zeros(3, "f2"), ([], [])
        )[1][2]
        assert bias.tolist() == [0.5] * 3


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "int32", "uint64"])
def test_indices_may_be_of_any_integer_type(kind):
    loss = LinearBinaryCrossEntropy(chunk=20)
    expected = loss(F, W, B, HARD)
    assert loss(F, W, B, tuple(numbers.astype(kind) for numbers in PAIR)) == expected
    given = [torch.tensor(array) for array in (F, W, B)]
    pair = tuple(torch.tensor(numbers).to(getattr(torch, kind)) for numbers in PAIR)
    assert loss(*given, pair) == loss(*given, torch.tensor(HARD))
    assert loss(*given, tuple(numbers[::-1] for numbers in PAIR)) == loss(*given, torch.tensor(HARD))


def test_under_autocast():
    from gpubce.adapters.torch import linear_binary_cross_entropy

    layer = torch.nn.Linear(FEATURES, LABELS)
    f, targets = torch.tensor(F, dtype=torch.float32), torch.tensor(HARD)
    with torch.autocast("cpu", torch.bfloat16):
        value = linear_binary_cross_entropy(f, layer.weight, layer.bias, targets)
        expected = BinaryCrossEntropy(from_logits=True)(layer(f), targets)
        plain = LinearBinaryCrossEntropy().value_and_grad(f, layer.weight, None, targets)[1]
    assert value.item() == pytest.approx(expected.item(), rel=tolerances.LINEAR["bfloat16"])
    value.backward()
    assert layer.weight.grad.dtype == torch.float32
    again = LinearBinaryCrossEntropy().value_and_grad(f, layer.weight, None, targets)[1]
    assert torch.equal(plain[0], again[0])


def test_memory_for_options_by_label_is_bounded():
    loss = LinearBinaryCrossEntropy(pos_weight=[1.0] * 1000, chunk=1000)
    weight = np.ones((1000, 1))
    for rows in range(1, 40):
        loss(np.ones((rows, 1)), weight, None, ([], []))
    assert len(loss._parts) < 300


def test_bfloat16_is_pytorchs():
    f, w = torch.tensor(F).bfloat16(), torch.tensor(W).bfloat16()
    value, (of_features, _, _) = LinearBinaryCrossEntropy().value_and_grad(f, w, None, torch.tensor(HARD))
    assert (value.dtype, of_features.dtype) == (torch.float32, torch.bfloat16)
    assert value == BinaryCrossEntropy(from_logits=True)(f @ w.T, torch.tensor(HARD))


# SigLIP ---------------------------------------------------------------------------------------------------------------


def siglip(images, texts, log_scale, bias):
    """As open_clip computes it, from the paper's formula."""
    logits = log_scale.exp() * images @ texts.T + bias
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(images)


@pytest.mark.parametrize("chunk", [3, 10**6])
def test_siglip(chunk):
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (F, RNG.normal(size=F.shape))]
    leaves = tensors(*unit, np.log(10.0), -10.0)
    expected = siglip(*leaves)
    expected.backward()
    loss = PairwiseSigmoidLoss(chunk=chunk)
    value, gradients = loss.value_and_grad(*unit, 10.0, -10.0)
    close(value, expected.detach())
    assert loss(*unit, 10.0, -10.0) == value == loss(unit[0].tolist(), unit[1].tolist(), 10, np.float32(-10))
    of_images, of_texts, of_scale, of_bias = gradients
    for own, leaf in zip((of_images, of_texts, 10 * of_scale, of_bias), leaves, strict=True):
        close(own, leaf.grad)
    scaled = loss.value_and_grad(*unit, np.array(10.0), np.array([-10.0]), grad_scale=4.0)[1]
    for own, other in zip(scaled, gradients, strict=True):
        close(own, 4 * other)


def test_siglip_over_two_processes_is_that_of_one():
    """Each has its own texts; the others' are negatives, and there may be more of them."""
    images, texts = F, RNG.normal(size=F.shape)
    whole = PairwiseSigmoidLoss()(images, texts, 2.0, -1.0)
    loss = PairwiseSigmoidLoss()
    nothing = [], []
    parts = [
        loss(images[:4], texts[:4], 2.0, -1.0) * 4 + loss(images[:4], texts[4:], 2.0, -1.0, positives=nothing) * 4,
        loss(images[4:], texts[4:], 2.0, -1.0) * 3 + loss(images[4:], texts[:4], 2.0, -1.0, positives=nothing) * 3,
    ]
    close(sum(parts) / 7, whole)


# What is refused ------------------------------------------------------------------------------------------------------

REFUSED = [
    (lambda: LinearBinaryCrossEntropy(axis=0), OptionError, "axis has no meaning for a linear layer"),
    (lambda: LinearBinaryCrossEntropy(posweight=3), OptionError, "'posweight' is not an option"),
    (lambda: LinearBinaryCrossEntropy(reduction="none"), OptionError, "use 'mean' or 'sum'"),
    (lambda: LinearBinaryCrossEntropy(chunk=0), OptionError, "chunk=0 is not a number of logits"),
    (lambda: LinearBinaryCrossEntropy()(F, W[:, :2], B, HARD), ShapeError, "(7, 3)", "(11, 2)", "(labels, d)"),
    (lambda: LinearBinaryCrossEntropy()(F[0], W, B, HARD), ShapeError, "(3,)", "(rows, d)"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B[:3], HARD), ShapeError, "bias has shape (3,)", "(11,)"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, HARD[:3]), ShapeError, "(3, 11)", "(7, 11)", "index arrays"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, HARD, row_weight=B), ShapeError, "row_weight has shape (11,)", "(7,)"),
    (lambda: LinearBinaryCrossEntropy()(F, W.astype("f4"), B, HARD), DtypeError, "float64 and weight float32"),
    (lambda: LinearBinaryCrossEntropy()(HARD, HARD, None, HARD), DtypeError, "features has type uint8"),
    (lambda: LinearBinaryCrossEntropy()(F, torch.tensor(W), B, HARD), ArrayError, "NumPy", "weight one of PyTorch"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, torch.tensor(HARD)), ArrayError, "NumPy", "targets one of PyTorch"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, ([0], [11])), InvalidValueError, "label number 11: there are 11"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, ([-1], [0])), InvalidValueError, "row number -1: there are 7"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, ([0.5], [0])), DtypeError, "row numbers of type float64"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, ([0, 1], [0])), ShapeError, "(2,)", "(1,)", "one length"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, ([0], [0], [1.0])), ShapeError, "tuple of 3"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, HARD * 2.5), InvalidValueError, "2.5"),
    (lambda: LinearBinaryCrossEntropy()(np.ma.masked_array(F), W, B, HARD), ArrayError, "masked array"),
    (lambda: LinearBinaryCrossEntropy()(F, None, B, HARD), ArrayError, "weight is a builtins.NoneType"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, HARD, row_weight=2.0), ShapeError, "row_weight has shape ()", "(7,)"),
    (lambda: LinearBinaryCrossEntropy()(F, W, True, HARD), DtypeError, "bias bool"),
    (lambda: LinearBinaryCrossEntropy().value_and_grad(F, W, B, HARD, grad_scale="2"), ArrayError, "grad_scale"),
    (lambda: LinearBinaryCrossEntropy().value_and_grad(F, W, B, HARD, grad_scale=[1.0, 2.0]), ShapeError, "grad_scale"),
    (lambda: LinearBinaryCrossEntropy()(F, W, B, torch.tensor(HARD).to_sparse()), ArrayError, "targets one of PyTorch"),
    (
        lambda: LinearBinaryCrossEntropy(chunk=1)(F, W, B, np.where(np.arange(LABELS) == 4, 7, HARD)),
        *(InvalidValueError, "targets[0, 4] is 7"),
    ),
    (
        lambda: LinearBinaryCrossEntropy(chunk=2)(F, W, B, HARD, row_weight=BY_ROW - 2 * (np.arange(ROWS) == 5)),
        *(InvalidValueError, "row_weight[5] is -"),
    ),
    (lambda: PairwiseSigmoidLoss()(F, F, [1.0, 2.0], 0.0), ShapeError, "scale"),
    (lambda: PairwiseSigmoidLoss()(F, F[:, :2], 1.0, 0.0), ShapeError, "images has shape (7, 3) and texts (7, 2)"),
    (lambda: LinearBinaryCrossEntropy(pos_weight=(1, 2))(F, W, B, HARD), ShapeError, "pos_weight has 2", "11 labels"),
    (lambda: LinearBinaryCrossEntropy().value_and_grad(F, W, B, HARD, of=("logits",)), OptionError, "of='logits'"),
    (lambda: PairwiseSigmoidLoss()(F, F[:3], 1.0, 0.0), ShapeError, "7 images and 3 texts"),
    (lambda: gpubce.linear_binary_cross_entropy(F, W, B, HARD, eps=0.1), OptionError, "eps has no meaning"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[2])
def test_what_is_refused(row):
    call, error, *words = row
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


# Memory ---------------------------------------------------------------------------------------------------------------

MANY = """
import json, tracemalloc
import numpy as np
from gpubce import LinearBinaryCrossEntropy

rows, features, labels = 256, 128, 10**6
rng = np.random.default_rng(0)
given = rng.standard_normal((rows, features), np.float32), rng.standard_normal((labels, features), np.float32), None
positives = np.repeat(np.arange(rows), 20), rng.integers(0, labels, 20 * rows)
loss = LinearBinaryCrossEntropy(denominator="rows")
loss.value_and_grad(given[0], given[1][:20_000], None, ([0], [0]))  # Loads and compiles.
tracemalloc.start()
value, gradients = loss.value_and_grad(*given, positives)
peak = tracemalloc.get_traced_memory()[1]
print(json.dumps({"beyond": peak - sum(one.nbytes for one in gradients[:2]), "dense": rows * labels * (4 + 1)}))
"""


def test_a_million_labels_take_little_memory():
    """Beyond inputs and gradients: under a tenth of dense logits (float32) and targets (a byte each); 5 bytes for each
    of the 2^22 logits of a chunk, and the product of a chunk that is added to the gradients."""
    found = json.loads(run(MANY, seconds=300))
    assert found["beyond"] < found["dense"] / 10
    documented = re.search(r"about (\d+) ``chunk`` bytes", LinearBinaryCrossEntropy.__doc__)[1]
    assert found["beyond"] < 1.05 * (int(documented) * 2**22 + 2**22 * 4 * 128 / 256)
