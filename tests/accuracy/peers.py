"""The same comparison for other libraries, on the same samples of float32 inputs.

Results whose true value is below 2^-126 are left out for everybody, gpubce too: what a library makes of subnormal
numbers is another question. Libraries that are not installed are left out and named.
"""

from collections.abc import Callable
from importlib import import_module

import numpy as np

from tests.accuracy.comparison import LEFT_OUT, Tally
from tests.accuracy.reference import FUNCTIONS, ROWS, allocate
from tests.accuracy.sweep import BLOCK, Part, Results, labelled, loss_of

SAMPLE = 1 << 21
"""Inputs of a sample: half of them uniform over bit patterns, half uniform over values."""

LOGITS = (2.0**-20, 104.0)
"""Sizes of logits whose bit patterns are sampled; 104 is where exp(-x) leaves float32 altogether."""

PROBABILITIES = (2.0**-30, 1.0 - 2.0**-24)
"""PyTorch limits p (1 - p) to 1e-12 from below, by intention; above 2^-30 the limit is not reached."""


def sample(space: str, count: int = SAMPLE) -> np.ndarray:
    """The inputs, in order, each once."""
    rng = np.random.default_rng(9)
    low, high = (np.float32(end) for end in (LOGITS if space == "logits" else PROBABILITIES))
    patterns = rng.integers(low.view(np.int32), high.view(np.int32) + 1, count // 2, dtype=np.int32).view(np.float32)
    if space == "logits":
        patterns = patterns * rng.choice([-1, 1], patterns.size).astype(np.float32)
        values = rng.uniform(-high, high, count - patterns.size).astype(np.float32)
    else:
        values = np.clip(rng.random(count - patterns.size), low, high).astype(np.float32)
    return np.unique(np.concatenate([patterns, values]))


def of_gpubce(space: str, predictions: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    results = Results(loss_of(space), predictions.size, predictions.dtype)
    results.compute(predictions)
    return {label: results.found[row] for row, label in enumerate(ROWS)}


def of_torch(space: str, predictions: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    torch = import_module("torch")
    functional = torch.nn.functional
    function = functional.binary_cross_entropy_with_logits if space == "logits" else functional.binary_cross_entropy
    found = {}
    for target in (0, 1):
        x = torch.tensor(predictions, requires_grad=True)
        loss = function(x, torch.full_like(x, target), reduction="none")
        loss.sum().backward()
        found[target, "loss"], found[target, "gradient"] = loss.detach().numpy(), x.grad.numpy()
    return found


def of_optax(space: str, predictions: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    jax, optax = import_module("jax"), import_module("optax")
    if space != "logits":
        return {}
    found = {}
    for target in (0, 1):
        labels = np.full_like(predictions, target)
        loss = jax.jit(lambda x, labels=labels: optax.sigmoid_binary_cross_entropy(x, labels))
        gradient = jax.jit(jax.grad(lambda x, labels=labels: optax.sigmoid_binary_cross_entropy(x, labels).sum()))
        found[target, "loss"], found[target, "gradient"] = np.array(loss(predictions)), np.array(gradient(predictions))
    return found


def of_sklearn(space: str, predictions: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    half_binomial = import_module("sklearn._loss").HalfBinomialLoss()
    if space != "logits":
        return {}
    found = {}
    for target in (0, 1):
        call = {"y_true": np.full_like(predictions, target), "raw_prediction": predictions, "n_threads": 1}
        found[target, "loss"] = half_binomial.loss(**call)
        found[target, "gradient"], found[target, "hessian"] = half_binomial.gradient_hessian(**call)
    return found


LIBRARIES: dict[str, Callable] = {
    "gpubce": of_gpubce,
    "PyTorch": of_torch,
    "JAX and optax": of_optax,
    "scikit-learn": of_sklearn,
}


def compared(library: str, space: str, count: int = SAMPLE) -> list[dict]:
    """The rows of one library; ImportError where it is not installed."""
    from_logits = space == "logits"
    predictions = sample(space, count)
    found = LIBRARIES[library](space, predictions)
    tally = Tally("float32", "float32", from_logits, small=LEFT_OUT)
    for start in range(0, predictions.size, BLOCK):
        part = slice(start, start + BLOCK)
        true = allocate(False, predictions[part].size)
        FUNCTIONS["float32", from_logits](predictions[part], *true)
        for row, label in enumerate(ROWS):
            if label in found:
                tally.compare(row, found[label][part], true, 0, start)
    for row, label in enumerate(ROWS):
        if label in found and label[1] == "loss":
            tally.count_steps(row, np.ascontiguousarray(found[label]), 0)
    rows = labelled(
        tally.rows(lambda position: float(predictions[position])),
        library=library,
        type="float32",
        space=f"sampled {space}",
        result="float32",
    )
    return [row for row in rows if (row["target"], row["output"]) in found]


def peers_chunk(chunk: int) -> dict:
    """One library in both spaces."""
    library = list(LIBRARIES)[chunk]
    try:
        return {"rows": compared(library, "logits") + compared(library, "probabilities")}
    except ImportError as error:
        return {"missing": {library: str(error)}}


PART = Part("peers", len(LIBRARIES), peers_chunk)
