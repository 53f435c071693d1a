"""Promise 7: bad input is loud. What is refused, with which exception, and what its message says."""

import math
import pickle
from dataclasses import replace
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import gpubce
from gpubce import BinaryCrossEntropy, Evaluator, checks, dispatch
from gpubce.errors import (
    ArrayError,
    DeviceError,
    DtypeError,
    GpubceError,
    InvalidValueError,
    OptionError,
    ShapeError,
    StateError,
)
from tests.cases import dtype

X = np.float32([0.5, -1.0, 2.0])
Y = np.float32([1.0, 0.0, 1.0])
X2, Y2 = np.tile(X, (2, 1)), np.tile(Y, (2, 1))


def logits(**options):
    return BinaryCrossEntropy(from_logits=True, **options)


each, mean, probabilities = logits(reduction="none"), logits(), BinaryCrossEntropy()
room = np.zeros(4, np.float32)
fixed = np.zeros((), np.float32)
fixed.flags.writeable = False
shared = np.lib.stride_tricks.as_strided(np.zeros(5, np.float32), (2, 3), (8, 4))
summed = mean.state(X, Y)


def finished(**changes):
    """Finish a state that somebody changed."""
    return mean.finish(replace(summed, **changes))


OPTIONS = [
    ({"reduction": "avg"}, "reduction='avg'", "'none', 'sum', 'mean'"),
    ({"denominator": "n"}, "denominator='n'", "'elements', 'weights', 'positives', 'rows'"),
    ({"denominator": "weights", "reduction": "sum"}, "denominator='weights'", "reduction='sum'", "only a mean"),
    ({"denominator": "rows", "reduction": "none"}, "denominator='rows'", "reduction='none'"),
    ({"axis": 0, "reduction": "none"}, "axis=(0,)", "reduction='none'", "leave one of them out"),
    ({"axis": ()}, "axis=()", "leave it out"),
    ({"axis": 1.0}, "axis=1.0", "number of an axis"),
    ({"axis": True}, "axis=True", "number of an axis"),
    ({"axis": 2**31}, "axis=2147483648", "number of an axis"),
    ({"axis": -(2**31)}, "axis=-2147483648", "number of an axis"),
    ({"label_axis": "last"}, "label_axis='last'", "number of an axis"),
    ({"from_logits": 1}, "from_logits=1", "True or False"),
    ({"pos_weight": -1.0}, "pos_weight=-1.0", "not negative"),
    ({"pos_weight": [1.0, np.inf]}, "pos_weight=inf", "finite"),
    ({"pos_weight": "3"}, "pos_weight='3'", "not a number"),
    ({"pos_weight": 10**400}, "pos_weight", "no floating-point type can hold"),
    ({"pos_weight": []}, "pos_weight is empty", "one for each label"),
    ({"label_weight": [[1.0, 2.0]]}, "label_weight=[1.0, 2.0]", "not a number"),
    ({"class_weight": 3.0}, "class_weight has 1 value", "(w0, w1)"),
    ({"class_weight": (1.0, 2.0, 3.0)}, "class_weight has 3 values", "(w0, w1)"),
    ({"class_weight": {0: 1.0, 1: 3.0}}, "class_weight={0: 1.0, 1: 3.0}"),
    ({"class_weight": "balanced"}, "class_weight='balanced'"),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0", "below 1"),
    ({"label_smoothing": True}, "label_smoothing=True", "not a number"),
    ({"gamma": -0.5}, "gamma=-0.5", "not negative"),
    ({"alpha": 2}, "alpha=2", "between 0 and 1"),
    ({"eps": 0.1, "from_logits": True}, "eps", "from_logits=True", "leave eps out"),
    ({"eps": 0.1, "log_floor": -5.0}, "eps and log_floor", "one of them"),
    ({"eps": 0.1, "log_floor": None}, "eps and log_floor", "one of them"),
    ({"eps": 0.5}, "eps=0.5", "below 0.5"),
    ({"eps": (0.1, 0.5)}, "eps[1]=0.5", "at least 0 and below 0.5"),
    ({"eps": (0.0, 0.1)}, "eps[0]=0.0", "above 0"),
    ({"eps": (0.1, 0.1, 0.1)}, "eps has 3 values", "[low, 1 - high]"),
    ({"log_floor": 1.0}, "log_floor=1.0", "negative, or None"),
    ({"base": 1}, "base=1", "above 1, or None"),
    ({"dtype": "int32"}, "dtype='int32'", "float16, bfloat16, float32, float64"),
    ({"dtype": 5}, "dtype=5", "float16, bfloat16, float32, float64"),
    ({"ignore_index": "none"}, "ignore_index='none'", "not a number"),
    ({"ignore_index": 10**400}, "ignore_index", "no floating-point type can hold"),
]

CALLS = [
    (lambda: mean(X, Y[:2]), ShapeError, "logits", "(3,)", "targets", "(2,)", "reshape"),
    (lambda: probabilities(X, Y2), ShapeError, "probabilities", "(3,)", "targets", "(2, 3)"),
    (lambda: mean(X2, Y2, weight=np.ones(2)), ShapeError, "weight", "(2,)", "(2, 3)", "broadcast"),
    (lambda: mean(X, Y, mask=np.ones((2, 3), bool)), ShapeError, "mask", "(2, 3)", "(3,)", "broadcast"),
    (lambda: mean(np.arange(3), Y), DtypeError, "logits", "int64", "float32", "convert"),
    (lambda: mean(X * 1j, Y), DtypeError, "logits", "complex64", "convert"),
    (lambda: mean(X, np.array(["a", "b", "c"])), DtypeError, "targets", "str", "bool"),
    (lambda: mean(X, np.array([1, 0, None])), DtypeError, "targets", "object"),
    (lambda: mean(X, Y, mask=np.array([1, 0, 1])), DtypeError, "mask", "int64", "bool", "mask != 0"),
    (lambda: mean(X, Y, weight=Y * 1j), DtypeError, "weight", "complex64"),
    (lambda: mean("abc", Y), ArrayError, "logits", "str", "not an array", "DLPack"),
    (lambda: mean(X, None), ArrayError, "targets", "NoneType", "not an array"),
    (lambda: mean([[1.0], [1.0, 2.0]], Y), ArrayError, "logits", "list"),
    (lambda: mean(np.ma.masked_array(X), Y), ArrayError, "logits", "mask=~numpy.ma.getmaskarray"),
    (lambda: mean(X, np.ma.masked_array(Y)), ArrayError, "targets", "mask=~numpy.ma.getmaskarray"),
    (lambda: mean(X.astype(">f4"), Y), ArrayError, "logits", ">f4", "astype('float32')"),
    (lambda: mean(X, Y, weight=Y.astype(">f4")), ArrayError, "weight", ">f4", "astype('float32')"),
    (lambda: logits(axis=1)(X, Y), ShapeError, "axis=(1,)", "(3,)"),
    (lambda: logits(axis=(0, -2))(X2, Y2), ShapeError, "axis=(0, -2)", "(2, 3)", "twice"),
    (
        lambda: logits(pos_weight=[1, 2, 3])(X, Y),
        *(ShapeError, "pos_weight has 3 values", "shape (3,), which is one label, has 1 label:"),
    ),
    (
        lambda: logits(pos_weight=[1, 2])(X2, Y2),
        *(ShapeError, "pos_weight has 2 values", "axis -1 of shape (2, 3) has 3 labels:", "label_axis"),
    ),
    (lambda: logits(label_weight=[1, 2], label_axis=2)(X2, Y2), ShapeError, "label_axis=2", "(2, 3)"),
    (lambda: logits(ignore_index=300)(X, Y.astype(np.int8)), OptionError, "ignore_index=300", "int8"),
    (lambda: logits(ignore_index=np.nan)(X, Y.astype(int)), OptionError, "ignore_index", "NaN", "int64"),
    *(
        (partial(lambda value, kind: logits(ignore_index=value)(X, Y.astype(kind)), *row), OptionError, *words)
        for *row, words in [
            (2, bool, ("ignore_index=2", "bool")),
            (0.5, bool, ("ignore_index=0.5", "bool")),
            (128, np.int8, ("ignore_index=128", "int8")),
            (-129, np.int8, ("ignore_index=-129", "int8")),
            (1.5, np.int8, ("ignore_index=1.5", "int8")),
            (np.inf, np.int8, ("ignore_index=inf", "int8")),
            (-1, np.uint64, ("ignore_index=-1", "uint64")),
            (2**64, np.uint64, ("ignore_index=18446744073709551616", "uint64")),
            (0.1, np.float16, ("ignore_index=0.1", "float16")),
            (1e5, np.float16, ("ignore_index=100000.0", "float16")),
            (0.1, ml_dtypes.bfloat16, ("ignore_index=0.1", "bfloat16")),
            (1 + 2.0**-8, ml_dtypes.bfloat16, ("ignore_index=1.00390625", "bfloat16")),
            (0.5 + 2.0**-40, ml_dtypes.bfloat16, ("ignore_index=0.5000", "bfloat16")),
            (np.int64(2**53 + 1), np.float64, ("ignore_index=", "9007199254740993", "float64")),
        ]
    ),
    (lambda: mean(X, Y, device="gpu"), OptionError, "device='gpu'", "'auto', 'cpu', 'cuda'"),
    (lambda: mean(X, Y, check="never"), OptionError, "check='never'", "'auto', True, False"),
    (lambda: mean(X, Y, check=np.ones(2)), OptionError, "check=", "'auto', True, False"),
    (lambda: mean(X, Y, check=1), OptionError, "check=1", "'auto', True, False"),
    (lambda: mean(X, Y, stream=0), OptionError, "stream=", "CPU"),
    (lambda: mean(X, Y, out=np.zeros(1, np.float32)), ShapeError, "out", "(1,)", "()"),
    (lambda: mean(X, Y, out=np.zeros(())), DtypeError, "out", "float64", "float32"),
    (lambda: mean(X, Y, out=fixed), ArrayError, "out", "writable"),
    (lambda: each(X.tolist(), Y.tolist(), out=[0.0] * 3), ArrayError, "out", "writable"),
    (lambda: each(X, Y, out=X), ArrayError, "out", "logits", "array of its own"),
    (lambda: each(X, Y, out=Y), ArrayError, "out", "targets", "array of its own"),
    (lambda: logits(axis=0)(X2, Y2, out=np.zeros(6, np.float32)[::2]), ArrayError, "out", "C-contiguous"),
    (lambda: logits(reduction="none")(X2, Y2, out=shared), ArrayError, "out", "share memory"),
    (lambda: mean.value_and_grad(room[:3], Y, grad_out=room[1:]), ArrayError, "grad_out", "logits itself"),
    (lambda: mean.value_and_grad(X, Y, grad_out=Y), ArrayError, "grad_out", "targets", "array of its own"),
    (lambda: each.value_and_grad(X, Y, out=room[:3], grad_out=room[1:]), ArrayError, "out", "grad_out"),
    (lambda: each.value_and_grad(X, Y, out=room[:3], grad_out=room[:3]), ArrayError, "out", "grad_out"),
    (lambda: mean.grad_and_hess(X, Y, hess_out=room[:3], grad_out=room[1:]), ArrayError, "hess_out", "grad_out"),
    (lambda: mean.grad_and_hess(X, Y, hess_out=room[:3], grad_out=room[:3]), ArrayError, "hess_out", "grad_out"),
    (lambda: mean.value_and_grad(X, Y, grad_out=np.zeros(3)), DtypeError, "grad_out", "float64", "float32"),
    (lambda: mean.value_and_grad(X, Y, grad_scale=np.ones(2)), ShapeError, "grad_scale", "2 float64", "one"),
    (lambda: mean.value_and_grad(X, Y, grad_scale=np.nan), OptionError, "grad_scale=nan", "finite"),
    (lambda: mean.value_and_grad(X, Y, grad_scale=np.array(np.nan)), OptionError, "grad_scale=nan", "finite"),
    (lambda: each.state(X, Y), OptionError, "reduction='none'", "'mean' or 'sum'"),
    (lambda: mean.state(X, Y, sums=("auc",)), OptionError, "sums='auc'", "'weight'"),
    (lambda: mean.state(X, Y).total("weight"), StateError, "'weight'", "loss, count, invalid"),
    (lambda: mean.state(X, Y) + logits(axis=0).state(X2, Y2), StateError, "()", "(3,)"),
    (lambda: mean.state(X, Y) + logits(denominator="weights").state(X, Y), StateError, "different", "'weight'"),
    (lambda: mean.state(X, Y).merge(3), StateError, "LossState", "int"),
    (lambda: logits(denominator="weights").finish(mean.state(X, Y)), StateError, "'weight'"),
    (lambda: mean.finish(3.0), OptionError, "LossState", "float"),
    (lambda: finished(sums=list(summed.sums)), StateError, "state.sums=['loss', ", "tuple of names"),
    (lambda: finished(sums=("loss", "count", 3)), StateError, "state.sums=('loss', 'count', 3)", "tuple of names"),
    (lambda: finished(values=summed.values.astype(np.float32)), StateError, "state.values is float32", "float64"),
    (lambda: finished(values=summed.values[:2]), StateError, "shape (2, 2)", "3 sums", "(3, 2)"),
    (lambda: finished(values=summed.values[:, :1]), StateError, "shape (3, 1)", "(3, 2)"),
    (lambda: finished(values=summed.values[0]), StateError, "shape (2,)", "(3, 2)"),
    (lambda: finished(values=np.zeros((3, 2, 4))[..., ::2]), ArrayError, "state.values", "gaps", "C-contiguous"),
    (lambda: finished(rows=True), StateError, "state.rows=True", "not a number"),
    (lambda: finished(rows="3"), StateError, "state.rows='3'", "not a number"),
    (lambda: gpubce.binary_cross_entropy(X, Y, posweight=3), OptionError, "'posweight'", "pos_weight"),
    (lambda: gpubce.binary_cross_entropy(X, Y, from_logits=True), OptionError, "from_logits", "other function"),
    (lambda: Evaluator(posweight=3), OptionError, "'posweight'", "pos_weight"),
]


def refused(call, error, *fragments):
    """The call raises exactly this error, in one line that holds the fragments."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: str(row[0])[:60])
def test_options_are_checked_when_the_object_is_made(row):
    refused(lambda: BinaryCrossEntropy(**row[0]), OptionError, *row[1:])


WRITTEN = [
    ("x" * 198, "'" + 198 * "x" + "'"),
    ("x" * 199, "'" + 196 * "x" + "..."),
    ([[["x"]]], "[[['x']]]"),
    ([[[["x"]]]], "<list>"),
    ([0] * 200, "[" + 65 * "0, " + "0..."),
    ([0] * 201, "<list>"),
    ({"a": (1, {2})}, "{'a': (1, {2})}"),
    ({"a": mean}, "<dict>"),
    ([10**5000], "<list>"),
    (np.complex64(2), repr(np.complex64(2))),
    (np.ones(2), "<ndarray>"),
    ("a  b\N{NO-BREAK SPACE}", "'a b\\xa0'"),
]


@pytest.mark.parametrize("row", WRITTEN, ids=lambda row: row[1][:20])
def test_a_wrong_value_is_shown_in_200_characters(row):
    value, text = row
    refused(lambda: logits(gamma=value), OptionError, f"gamma={text} is not a number")


@pytest.mark.parametrize(
    "options",
    [
        *({"alpha": 0}, {"alpha": 1}, {"class_weight": (0, 1)}, {"class_weight": (1, 0)}, {"pos_weight": 0}),
        *({"label_weight": 0}, {"label_weight": 1e-40}),
    ],
    ids=str,
)
def test_the_ends_of_a_range_belong_to_it(options):
    assert np.isfinite(logits(**options)(X, Y))


@pytest.mark.parametrize("axis", [2**31 - 1, 1 - 2**31, np.int64(63)])
def test_the_number_of_an_axis_has_31_bits(axis):
    assert logits(axis=axis).axis == (axis,)
    assert logits(label_axis=axis).label_axis == axis


SMALLEST, LARGEST = (float(getattr(np.finfo(np.float32), end)) for end in ("tiny", "max"))
TOO_SMALL, TOO_LARGE = SMALLEST / 2, LARGEST * 2
HELD = [
    ({"eps": SMALLEST}, {"eps": TOO_SMALL}, "eps"),
    ({"gamma": SMALLEST}, {"gamma": TOO_SMALL}, "gamma"),
    ({"pos_weight": LARGEST}, {"pos_weight": TOO_LARGE}, "pos_weight times class_weight"),
    ({"pos_weight": (TOO_SMALL, 0, LARGEST)}, {"pos_weight": (0, 0, TOO_LARGE)}, "the largest pos_weight"),
]


@pytest.mark.parametrize("row", HELD, ids=lambda row: row[2])
def test_numbers_are_those_that_the_type_of_the_call_holds(row):
    """Float64 predictions are computed in float64, which holds all of these."""
    held, too_far, words = row
    p = np.full((2, 3), 0.5, np.float32)
    assert not np.isnan(BinaryCrossEntropy(**held)(p, Y2))
    refused(
        lambda: BinaryCrossEntropy(**too_far)(p, Y2), OptionError, f"{words} is ", "float32, which holds 1.2e-38 to"
    )
    assert not np.isnan(BinaryCrossEntropy(**too_far)(p.astype(np.float64), Y2))


def test_a_grad_scale_may_be_too_small_to_hold():
    for scale in (TOO_SMALL, SMALLEST, np.float32(SMALLEST)):
        assert (abs(mean.value_and_grad(X, Y, grad_scale=scale)[1]) < SMALLEST).all()
    refused(lambda: mean.value_and_grad(X, Y, grad_scale=TOO_LARGE), OptionError, "grad_scale is ", "float32")


@pytest.mark.parametrize("row", CALLS, ids=[f"{row[1].__name__}-{' '.join(row[2:4])}"[:60] for row in CALLS])
def test_calls_are_checked(row):
    refused(*row)


def test_an_option_unknown_to_the_class_is_an_unknown_keyword():
    with pytest.raises(TypeError, match="posweight"):
        BinaryCrossEntropy(posweight=3)


def test_tensors_are_checked():
    torch = pytest.importorskip("torch", reason="PyTorch is optional")
    x, y = torch.tensor(X), torch.tensor(Y)
    refused(lambda: mean(x, Y), ArrayError, "logits", "PyTorch", "targets", "NumPy", "convert")
    refused(lambda: mean(x, y, weight=Y), ArrayError, "PyTorch", "weight", "NumPy")
    refused(lambda: mean(X, Y, out=torch.zeros(())), ArrayError, "NumPy", "out", "PyTorch")
    refused(lambda: mean.value_and_grad(X, Y, grad_scale=x[0]), ArrayError, "NumPy", "grad_scale", "PyTorch")
    refused(lambda: mean(x.to_sparse(), y), ArrayError, "logits", "sparse", "to_dense()")
    refused(lambda: mean(x, y.to_sparse()), ArrayError, "targets", "sparse", "to_dense()")
    refused(lambda: mean(x.to("meta"), y), ArrayError, "logits", "meta")
    refused(lambda: mean(x, y, mask=y), DtypeError, "mask", "float32", "bool")
    refused(lambda: logits(dtype=torch.int32), OptionError, "dtype=torch.int32", "float32")
    refused(lambda: mean.value_and_grad(x, y, grad_out=torch.zeros(1).expand(3)), ArrayError, "grad_out", "broadcast")
    refused(lambda: mean.state(x, y) + mean.state(X, Y), StateError, "torch", "numpy", "to_host()")
    refused(lambda: mean(x, 7 * y), InvalidValueError, "targets[0] is 7.0")
    refused(lambda: logits(pos_weight=x.to("meta")), OptionError, "pos_weight", "values cannot be read")
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    refused(lambda: logits(pos_weight=freed), OptionError, "pos_weight", "values cannot be read", "was freed")


def test_cuda_without_a_gpu_is_an_error_and_not_a_fallback(monkeypatch):
    monkeypatch.setattr(dispatch, "find_gpus", lambda: ((), "there is no driver"))
    refused(lambda: mean(X, Y, device="cuda"), DeviceError, "device='cuda'", "there is no driver")


def test_errors_are_what_a_caller_expects():
    builtin = {
        "OptionError": ValueError,
        "ShapeError": ValueError,
        "DtypeError": TypeError,
        "ArrayError": TypeError,
        "InvalidValueError": ValueError,
        "DeviceError": RuntimeError,
        "StateError": ValueError,
        "FormatError": ValueError,
        "MissingDependencyError": ImportError,
    }
    found = {name: kind for name, kind in vars(gpubce.errors).items() if isinstance(kind, type)}
    assert set(found) == {"GpubceError", *builtin}
    assert all(issubclass(found[name], kind) and issubclass(found[name], GpubceError) for name, kind in builtin.items())


# Values -------------------------------------------------------------------------------------------------------------

METHODS = {
    "mean": mean,
    "none": each,
    "value_and_grad": mean.value_and_grad,
    "grad_and_hess": mean.grad_and_hess,
    "state": mean.state,
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_refuses_an_invalid_target(method):
    for value in (7.0, -1.0, np.nan, np.inf):
        wrong = np.float32([1.0, value, 0.0])
        for check in ("auto", True, np.True_):
            call = partial(method, X, wrong, check=check)
            refused(call, InvalidValueError, f"targets[1] is {value}", "mask")
        method(X, wrong, check=False)


def test_probabilities_and_weights_are_checked():
    for value in (1.5, -0.25, np.inf, -np.inf):
        wrong = np.float32([0.5, 0.5, value])
        refused(partial(probabilities, wrong, Y), InvalidValueError, f"probabilities[2] is {value}", "with_logits")
    for value in (-1.0, np.inf, np.nan):
        wrong = np.float32([value, 1.0, 1.0])
        refused(partial(mean, X, Y, weight=wrong), InvalidValueError, f"weight[0] is {value}", "not negative")


@pytest.mark.parametrize("kind", ["int8", "uint64", "float16", "float32", "float64"])
def test_what_is_next_to_0_and_1_is_invalid(kind):
    """Targets between the two, and both of them, are not."""
    if kind.startswith("float"):
        number = np.dtype(kind).type
        inside, outside = [0, 0.5, 1], [-np.finfo(kind).tiny, np.nextafter(number(1), number(2)), 1.5, 2]
    else:
        inside, outside = [0, 1], [2, 3] if kind == "uint64" else [-1, 2, 3]
    targets = np.array(inside + outside, kind)
    assert mean.state(np.zeros(targets.size), targets, check=False).invalid == len(outside)


def test_unchecked_invalid_elements_are_nan_and_counted():
    wrong = np.float32([1.0, 7.0, -1.0])
    assert np.isnan(mean(X, wrong, check=False))
    assert np.isnan(each(X, wrong, check=False)).tolist() == [False, True, True]
    assert np.isnan(mean.value_and_grad(X, wrong, check=False)[1]).tolist() == [False, True, True]
    assert mean.state(X, wrong, check=False).invalid == 2


def test_a_nan_prediction_is_not_invalid():
    for loss in (mean, probabilities):
        assert np.isnan(loss(np.float32([0.5, np.nan, 0.5]), Y, check=True))


def test_what_is_not_counted_is_never_invalid():
    wrong = np.float32([1.0, 7.0, 1.0])
    counted = np.array([True, False, True])
    assert mean(X, wrong, mask=counted) == mean(X[counted], Y[counted])
    assert logits(ignore_index=7)(X, wrong) == mean(X[counted], Y[counted])
    assert logits(ignore_index=np.nan)(X, np.float32([1.0, np.nan, 1.0])) == mean(X[counted], Y[counted])


IGNORED = {
    "bool": (0, 1),
    "int8": (-128, -1, 127, np.int8(2), 2.0),
    "uint8": (2, 255),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (2, 2**63 - 1, 2**63, 2**64 - 1, np.uint64(2**63)),
    "float16": (0.5, -1, 65504.0),
    "bfloat16": (0.5, -1, 1 + 2.0**-7, 3.0e38 // 2**121 * 2**121),
    "float64": (0.1, 2**53, np.int64(2**53), np.inf),
}


@pytest.mark.parametrize("kind", IGNORED)
def test_every_value_of_the_targets_type_can_be_ignored(kind):
    for value in IGNORED[kind]:
        targets = np.array([1, 0, 1, 0]).astype(dtype(kind))
        targets[1] = value
        kept = targets != targets[1]
        x, y = np.float32([0.5, -1.0, 2.0, 0.25]), np.float32([1, 0, 1, 0])
        assert logits(ignore_index=value)(x, targets) == mean(x[kept], y[kept]), value


def test_the_element_that_is_named_is_invalid_itself():
    both, hidden = np.float32([7.0, 9.0, 1.0]), np.array([False, True, True])
    refused(lambda: mean(X, both, mask=hidden), InvalidValueError, "targets[1] is 9.0:")
    refused(lambda: logits(ignore_index=7)(X, both), InvalidValueError, "targets[1] is 9.0:")
    unknown = np.float32([np.nan, 9.0, 1.0])
    refused(lambda: logits(ignore_index=np.nan)(X, unknown), InvalidValueError, "targets[1] is 9.0:")
    refused(lambda: probabilities(np.float32([np.nan, 1.5, 0.5]), Y), InvalidValueError, "probabilities[1] is 1.5:")


def test_the_error_of_an_invalid_value_says_where_it_is():
    targets = np.float32([[0, 1, 0], [1, 0, 7]])
    with pytest.raises(InvalidValueError) as raised:
        mean(np.zeros_like(targets), targets)
    error = pickle.loads(pickle.dumps(raised.value))
    assert (error.argument, error.index, error.value, str(error)) == ("targets", (1, 2), 7, str(raised.value))


def zeros(shape, **values):
    array = np.zeros(shape, np.float32)
    for place, value in values.items():
        array.reshape(-1)[int(place[1:])] = value
    return array


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (zeros((), _0=3), "targets is 3.0:"),
        (zeros((2, 3), _4=5, _5=6), "targets[1, 1] is 5.0 (2 elements are invalid)"),
        (zeros((2, 2, 2), _6=-2), "targets[1, 1, 0] is -2.0:"),
        (zeros(2**20 + 20, _1048583=-2, _1048585=4), "targets[1048583] is -2.0 (2 elements are invalid)"),
        (zeros((3, 2**19 + 1), _1048583=7), "targets[2, 5] is 7.0:"),
        (zeros((2, 2**20 + 1), _1048578=7), "targets[1, 1] is 7.0:"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.shape),
)
def test_the_first_invalid_element_is_named(targets, message):
    refused(lambda: mean(np.zeros_like(targets), targets), InvalidValueError, message)


def test_the_first_invalid_element_is_named_in_any_layout_and_type():
    targets = zeros((3, 2), _3=7)
    refused(lambda: mean(np.zeros((2, 3), np.float32), targets.T), InvalidValueError, "targets[1, 1] is 7.0:")
    refused(lambda: mean(X, zeros(3, _2=7)[::-1]), InvalidValueError, "targets[0] is 7.0:")
    narrow = zeros(3, _1=7).astype(ml_dtypes.bfloat16)
    refused(lambda: mean(X.astype(ml_dtypes.bfloat16), narrow), InvalidValueError, "targets[1] is 7.0:")
    row = np.float32([1, 1, -1])
    refused(lambda: mean(X2, Y2, weight=row), InvalidValueError, "weight[0, 2] is -1.0 (2 elements")


# Outputs ------------------------------------------------------------------------------------------------------------


def test_the_gradient_may_take_the_place_of_the_predictions():
    for loss, given in ((mean, X), (probabilities, np.float32([0.25, 0.5, 0.75]))):
        value, gradient = loss.value_and_grad(given, Y)
        place = given.copy()
        again, written = loss.value_and_grad(place, Y, grad_out=place)
        assert written is place
        assert (again, written.tobytes()) == (value, gradient.tobytes())


def test_predictions_are_judged_before_the_gradient_takes_their_place():
    place = np.float32([0.25, np.nan, 0.5])
    assert np.isnan(probabilities.value_and_grad(place, Y, grad_out=place)[0])
    for method in (probabilities.value_and_grad, probabilities.grad_and_hess):
        place = np.float32([0.25, 1.5, 0.5])
        refused(partial(method, place, Y, grad_out=place), InvalidValueError, "probabilities[1] is 1.5:")


# The options of an evaluator ----------------------------------------------------------------------------------------

TAKEN = [
    (checks.bin_count, [0, 32, 64, 4096, 65_536, np.int64(32)], [-1, 1, 16, 31, 33, 48, 131_072, True, 32.0, "32"]),
    (checks.largest_weight, [None, 2.0**-64, 1, 2.0**64], [2.0**-65, 2.0**65, 0, -1.0, math.nan, math.inf, "1"]),
    (checks.window_length, [None, 1, 2, 2**31 - 1, np.int8(3)], [0, -1, 2**31, True, 1.0, "1"]),
    (checks.group_numbers, [np.int64([]), [3], [1, 2], np.uint8([1])], [[0.5], [[1]], 1, ["a"], [True]]),
    (
        lambda names: checks.label_names(names, 2),
        [("a", "b"), ["a", 3], {"a": 0, "b": 1}],
        ["ab", b"ab", 2, ["a"], iter(("a", "b"))],
    ),
    (lambda axis: checks.label_count((2, 3), axis), [-2, -1, 0, 1], [-3, 2]),
    (lambda weight: checks.quanta_per_unit(weight, True), [1.0, 2.0**64, 2.0**-64], [None]),
    (lambda weight: checks.quanta_per_unit(weight, False), [None, 1.0, 2.0**24], [2.0**25, 2.0**24 + 1]),
]


@pytest.mark.parametrize(("rule", "good", "bad"), TAKEN)
def test_rules_hold_at_both_ends(rule, good, bad):
    """What is taken is kept as it is; None stands for what is meant without."""
    for value in good:
        rule(value)
    for value in bad:
        with pytest.raises(GpubceError):
            rule(value)


def test_what_is_taken_is_kept():
    assert [checks.bin_count(bins) for bins in (0, 32, np.int64(64))] == [0, 32, 64]
    assert (checks.largest_weight(None), checks.largest_weight(2)) == (None, 2.0)
    assert (checks.window_length(None), checks.window_length(np.int8(3))) == (None, 3)
    assert checks.group_numbers([2, 1]).tolist() == [2, 1]
    assert checks.label_names(None, 3) == ("0", "1", "2")
    assert checks.label_names(["a", 3], 2) == ("a", "3")
    assert checks.quanta_per_unit(None, False) == checks.quanta_per_unit(0.7, True) == 2.0**24
    assert checks.quanta_per_unit(2.0**24, False) == 1.0


def test_the_remedy_is_for_the_report_that_was_asked_for():
    with pytest.raises(OptionError, match="give one for each label$"):
        checks.label_names(["a"], 2)
    with pytest.raises(OptionError, match="per_label=True, or leave them out"):
        checks.label_names(["a"], 0)
    with pytest.raises(OptionError, match="difference compares with other predictions"):
        mean.state(X, Y, sums=("difference",))
