"""The inputs that are gone through, in chunks that do not know of each other.

A chunk is a function from its number to a record: {"rows": [...], "digest": {...}, "reference": {...}}, each part
present where the chunk makes it. Records are plain JSON; :func:`collect` puts those of all chunks together.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import ml_dtypes
import numpy as np

import gpubce
from gpubce.spec.coefficients import COEFFICIENTS
from tests import tolerances
from tests.accuracy import digest
from tests.accuracy.comparison import Row, Tally
from tests.accuracy.reference import FUNCTIONS, ROWS, allocate, compiled, measured_error

BLOCK = 1 << 16
"""Predictions of one call: as many as the package computes on one thread, so that chunks can share the processors."""

LOSS, GRADIENT, HESSIAN = range(3)
PROBABILITIES = 0x3F800000 + 1
"""How many float32 numbers there are from 0 to 1."""

RANDOM_CHUNK = 1 << 20
RANDOM_CHUNKS = {"logits": 96, "probabilities": 16}
"""Float64 points: 100,663,296 logits and 16,777,216 probabilities."""


CHUNKS = 2**32 // digest.CHUNK
"""Of all float32 logits."""


@dataclass(frozen=True)
class Part:
    """One space of inputs: its name, how many chunks it has, and what makes the record of one."""

    name: str
    chunks: int
    record: Callable[[int], dict]


def loss_of(space: str, **options) -> gpubce.BinaryCrossEntropy:
    """The loss of a space, without limits."""
    exact = {"from_logits": True} if space == "logits" else {"log_floor": None}
    return gpubce.BinaryCrossEntropy(**exact, **({"reduction": "none"} | options))


def ordered_logits(first: int, count: int, width: int = 32) -> np.ndarray:
    """Bit patterns of floating-point numbers, as unsigned integers, in the order of the numbers: position 0 is the
    negative NaN with the largest fraction, the middle is between -0 and +0, and the last position is a NaN again."""
    bits = np.empty(count, f"uint{width}")
    _fill_ordered(first, 1 << (width - 1), bits)
    return bits


@compiled
def _fill_ordered(first, half, bits):
    for i in range(bits.size):
        position = first + i
        bits[i] = 2 * half - 1 - position if position < half else position - half


class Results:
    """Loss, gradient and hessian of the package for both targets, in arrays that are used again and again."""

    def __init__(self, loss: gpubce.BinaryCrossEntropy, size: int, dtype: np.dtype, device: str = "cpu"):
        self.loss, self.size, self.device = loss, size, device
        self.found = np.empty((len(ROWS), size), dtype)
        self.again = np.empty((2, size), dtype)
        """The gradient of each target once more, from the other method."""
        self.targets = [np.full(size, target, np.uint8) for target in (0, 1)]

    def compute(self, predictions: np.ndarray) -> None:
        for target, labels in enumerate(self.targets):
            rows = self.found[3 * target : 3 * target + 3]
            call = {"device": self.device, "check": False}
            self.loss.value_and_grad(predictions, labels, out=rows[LOSS], grad_out=rows[GRADIENT], **call)
            self.loss.grad_and_hess(predictions, labels, grad_out=self.again[target], hess_out=rows[HESSIAN], **call)

    def tally(self, tally: Tally, first: int, base: int) -> None:
        """Count what does not need the truth."""
        for target in (0, 1):
            row = 3 * target
            tally.count_steps(row, self.found[row], base)
            tally.count_differences(row + GRADIENT, self.found[row + GRADIENT], self.again[target], first, base)


# Every float32 --------------------------------------------------------------------------------------------------------


def float32_chunk(space: str, chunk: int, size: int = digest.CHUNK) -> dict:
    """``size`` consecutive float32 numbers. Each block starts with the number before it, for the steps of the loss."""
    from_logits = space == "logits"
    total = 2**32 if from_logits else PROBABILITIES
    tally = Tally("float32", "float32", from_logits)
    sums = [0] * len(ROWS)
    results, true = None, ()
    for start in range(chunk * size, min((chunk + 1) * size, total), BLOCK):
        stop = min(start + BLOCK, (chunk + 1) * size, total)
        lead = min(start, 1)
        base, count = start - lead, stop - start + lead
        if results is None or results.size != count:
            results = Results(loss_of(space), count, np.dtype(np.float32))
            true = allocate(False, count)
        bits = ordered_logits(base, count) if from_logits else np.arange(base, stop, dtype=np.uint32)
        predictions = bits.view(np.float32)
        results.compute(predictions)
        FUNCTIONS["float32", from_logits](predictions, *true)
        for row in range(len(ROWS)):
            tally.compare(row, results.found[row], true, lead, base)
            if from_logits:
                sums[row] += int(digest.digest(bits, results.found[row].view(np.uint32), lead))
        results.tally(tally, lead, base)

    def prediction_at(position: int) -> float:
        bits = ordered_logits(position, 1) if from_logits else np.array([position], np.uint32)
        return float(bits.view(np.float32)[0])

    record = {"rows": labelled(tally.rows(prediction_at), type="float32", space=space, result="float32")}
    if from_logits:
        record["digest"] = {str(chunk): [digest.as_text(value) for value in sums]}
    return record


def digests(device: str, chunks: Iterable[int], size: int = digest.CHUNK) -> Iterator[tuple[int, list[str]]]:
    """The digests of these chunks of float32 logits, computed on ``device`` ("cpu" or "cuda") from host arrays."""
    block = min(size, BLOCK if device == "cpu" else digest.CHUNK)
    results = Results(loss_of("logits"), block, np.dtype(np.float32), device)
    for chunk in chunks:
        sums = [0] * len(ROWS)
        for start in range(chunk * size, (chunk + 1) * size, block):
            bits = ordered_logits(start, block)
            results.compute(bits.view(np.float32))
            for row, found in enumerate(results.found):
                sums[row] += int(digest.digest(bits, found.view(np.uint32), 0))
        yield chunk, [digest.as_text(value) for value in sums]


# Every float16 and bfloat16 -------------------------------------------------------------------------------------------


def sixteen_bit_chunk(name: str, space: str, _: int) -> dict:
    """All 65,536 numbers of a type, or those in [0, 1]: every output in that type, and the loss reduced to float32
    and to float64, one number at a time."""
    from_logits = space == "logits"
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if from_logits:
        predictions = ordered_logits(0, 2**16, 16).view(dtype)
    else:
        predictions = np.arange(int(np.array(1, dtype).view(np.uint16)) + 1, dtype=np.uint16).view(dtype)
    results = Results(loss_of(space), predictions.size, dtype)
    results.compute(predictions)
    true = allocate(False, predictions.size)
    with np.errstate(invalid="ignore"):  # Widening a signalling NaN.
        wide = predictions.astype(np.float32)
        found = results.found.astype(np.float32)
    FUNCTIONS["float32", from_logits](wide, *true)
    at = lambda position: float(wide[position])  # noqa: E731
    tally = Tally(name, "float32", from_logits)
    for row in range(len(ROWS)):
        tally.compare(row, found[row], true, 0, 0)
    results.tally(tally, 0, 0)
    rows = labelled(tally.rows(at), type=name, space=space, result=name)
    for reduced in ("float32", "float64"):
        loss = loss_of(space, reduction="sum", axis=1, dtype=reduced)
        tally = Tally("float32", "float32", from_logits)
        for target, labels in enumerate(results.targets):
            values = loss(predictions[:, None], labels[:, None], device="cpu", check=False)
            tally.compare(3 * target, values, true, 0, 0)
            tally.count_steps(3 * target, values.astype(np.float32), 0)
        made = labelled(tally.rows(at), type=name, space=space, result=reduced)
        rows += [row for row in made if row["output"] == "loss"]
    return {"rows": rows}


# Float64, sampled -----------------------------------------------------------------------------------------------------


def neighbours(values: np.ndarray, reach: int = 2) -> np.ndarray:
    """Values and the float64 numbers beside them."""
    bits = values.astype(np.float64).view(np.int64)
    return (bits[:, None] + np.arange(-reach, reach + 1)).ravel().view(np.float64)


def structured(space: str) -> np.ndarray:
    """Powers of two, integers and the ends of the type, with their neighbours."""
    powers = 2.0 ** np.arange(-1022, 1024)
    ends = np.array([0.0, 5e-324, np.finfo(np.float64).tiny, np.finfo(np.float64).max, np.inf, np.nan])
    if space == "logits":
        some = np.concatenate([neighbours(powers[:-1]), neighbours(np.arange(1.0, 1025.0)), ends])
        return np.concatenate([some, -some])
    some = np.concatenate([neighbours(powers[powers <= 0.5]), neighbours(np.arange(1.0, 1024.0) / 1024.0)])
    return np.concatenate([some, 1.0 - some[some > 2.0**-54], ends[:3], [1.0, np.nan]])


def random_points(space: str, chunk: int, count: int = RANDOM_CHUNK) -> np.ndarray:
    """Float64 predictions in order: several kinds of random ones, and in chunk 0 the structured ones too."""
    rng = np.random.default_rng([2, chunk, space == "logits"])
    base = structured(space)[:count] if chunk == 0 else np.empty(0)
    kinds = ("bits", "exponents", "wide", "narrow", "beside", "runs")
    shares = np.array([0.1, 0.3, 0.15, 0.15, 0.1, 0.2]) * (count - base.size)
    size = dict(zip(kinds, shares.astype(int).tolist(), strict=True))
    size["wide"] += count - base.size - sum(size.values())
    length = 64  # Of a run of predictions so close that t = exp(-|x|) changes by a unit in the last place at a time.

    def spread(low: int, high: int, size: int) -> np.ndarray:
        """All exponents alike, all fractions alike."""
        return np.ldexp(rng.uniform(1.0, 2.0, size), rng.integers(low, high, size))

    def beside(places: list[float], size: int) -> np.ndarray:
        """Numbers within 2^20 of a place."""
        return (rng.choice(places, size).view(np.int64) + rng.integers(-(2**20), 2**20, size)).view(np.float64)

    def runs(starts: np.ndarray) -> np.ndarray:
        step = np.maximum(np.spacing(starts), 2.0**-54)
        return (starts[:, None] + step[:, None] * np.arange(length)).ravel()

    starts = -(-size["runs"] // length)
    if space == "logits":
        largest = COEFFICIENTS["float64"].largest_exponent
        # Where exp(-|x|) ends, where 1 + exp(-|x|) is 1, where the reduction of the exponential changes.
        places = [largest, 708.3964185322641, 745.1332191019412, 36.7368, 37.4299, 0.34657359, 1.03972077, 0.5]
        points = np.concatenate(
            [
                rng.integers(0, 0x7FF << 52, size["bits"]).view(np.float64),
                spread(-60, 10, size["exponents"]),
                rng.uniform(0.0, 750.0, size["wide"]),
                rng.uniform(0.0, 40.0, size["narrow"]),
                beside(places, size["beside"]),
            ]
        )
        points = np.concatenate([points, runs(spread(-30, 5, starts))[: size["runs"]]])
        points *= np.where(rng.random(points.size) < 0.5, -1.0, 1.0)
        signs = np.repeat(np.where(rng.random(starts) < 0.5, -1.0, 1.0), length)[: size["runs"]]
        points[points.size - size["runs"] :] = np.abs(points[points.size - size["runs"] :]) * signs
    else:
        # Where the logarithms of p and 1 - p change their exponents.
        places = [0.5, 0.25, 0.75, np.sqrt(0.5), 1.0 - np.sqrt(0.5), np.sqrt(0.125)]
        points = np.concatenate(
            [
                rng.integers(0, 0x3FF << 52, size["bits"]).view(np.float64),
                spread(-60, -1, size["exponents"]),
                rng.uniform(0.0, 1.0, size["wide"]),
                1.0 - spread(-40, -1, size["narrow"]),
                beside(places, size["beside"]),
                runs(spread(-30, -1, starts))[: size["runs"]],
            ]
        )
        points = np.minimum(points, 1.0)
    return np.sort(np.concatenate([base, points]))


def float64_chunk(space: str, chunk: int, count: int = RANDOM_CHUNK) -> dict:
    """``count`` float64 predictions."""
    from_logits = space == "logits"
    points = random_points(space, chunk, count)
    tally = Tally("float64", "float64", from_logits)
    for start in range(0, count, BLOCK // 4):
        lead = min(start, 1)
        predictions = points[start - lead : start + BLOCK // 4]
        results = Results(loss_of(space), predictions.size, np.dtype(np.float64))
        results.compute(predictions)
        true = allocate(True, predictions.size)
        FUNCTIONS["float64", from_logits](predictions, *true)
        for row in range(len(ROWS)):
            tally.compare(row, results.found[row], true, lead, start - lead)
        results.tally(tally, lead, start - lead)
    rows = tally.rows(lambda position: float(points[position]))
    return {"rows": labelled(rows, type="float64", space=space, result="float64")}


# The reference itself -------------------------------------------------------------------------------------------------


def reference_points(real: str, space: str, count: int) -> np.ndarray:
    """About ``count`` inputs, every kind of which is among them, finite and not 0 or 1 as probabilities."""
    rng = np.random.default_rng(5)
    points = np.concatenate([random_points(space, 1, count // 2), rng.permutation(structured(space))[: count // 2]])
    if real == "float32":
        points = points[(np.abs(points) < 120.0) & (np.abs(points) >= 2.0**-149)].astype(np.float32)
    points = points[np.isfinite(points) & (points != 0)]
    return points if space == "logits" else points[points < 1]


def reference_chunk(_: int, count: int = 4000) -> dict:
    """The error of both references against mpmath."""
    made = {}
    for real, from_logits in FUNCTIONS:
        space = "logits" if from_logits else "probabilities"
        points = reference_points(real, space, count)
        made[f"{real} {space}"] = {"points": points.size, "relative": measured_error(real, points, from_logits)}
    return {"reference": made}


# All together ---------------------------------------------------------------------------------------------------------

PARTS = {
    part.name: part
    for part in (
        Part("reference", 1, reference_chunk),
        *(
            Part(f"{name} {space}", 1, partial(sixteen_bit_chunk, name, space))
            for name in ("float16", "bfloat16")
            for space in ("logits", "probabilities")
        ),
        Part("float32 logits", CHUNKS, partial(float32_chunk, "logits")),
        Part("float32 probabilities", -(-PROBABILITIES // digest.CHUNK), partial(float32_chunk, "probabilities")),
        *(Part(f"float64 {space}", chunks, partial(float64_chunk, space)) for space, chunks in RANDOM_CHUNKS.items()),
    )
}


def labelled(rows: list[Row], **labels: str) -> list[dict]:
    """Rows as plain dictionaries, with what they are rows of. Gpubce's own, unless ``library`` is among the labels."""
    return [
        {"library": "gpubce", **labels, "target": target, "output": output, **asdict(row)}
        for (target, output), row in zip(ROWS, rows, strict=True)
    ]


LABELS = ("library", "type", "space", "result", "target", "output")


def collect(records: Iterable[dict]) -> dict:
    """The records of chunks, in their order, as one."""
    rows: dict[tuple, Row] = {}
    whole = {"digest": {}, "reference": {}, "missing": {}}
    for record in records:
        for row in record.get("rows", ()):
            counts = {name: value for name, value in row.items() if name not in LABELS}
            label = tuple(row[name] for name in LABELS)
            rows[label] = rows[label].merged(Row(**counts)) if label in rows else Row(**counts)
        for name, part in whole.items():
            part.update(record.get(name, {}))
    return {"rows": [dict(zip(LABELS, label, strict=True)) | asdict(row) for label, row in rows.items()], **whole}


def broken(results: dict) -> list[str]:
    """The promises that the results break, in words."""
    found = []
    for row in results["rows"]:
        if row["library"] != "gpubce":
            continue
        what = f"{row['type']} {row['space']}, y = {row['target']}, {row['output']} in {row['result']}"
        narrow = row["result"] in tolerances.ULP_NARROW
        limit = tolerances.ULP_NARROW[row["result"]] if narrow else tolerances.ULP_HARD_TARGETS
        if not row["largest"] <= limit:
            found.append(f"{what}: {row['largest']:.3f} ulp at {row['largest_at']!r}, promised {limit}")
        if row["wrong"]:
            found.append(f"{what}: {row['wrong']} results of the wrong kind, one of them at {row['wrong_at']!r}")
        if row["longest"] > tolerances.BACKWARD_STEP_ULP:
            found.append(f"{what}: goes back by {row['longest']} ulp at {row['longest_at']!r}")
    for name, error in results["reference"].items():
        limit = tolerances.REFERENCE_RELATIVE[name.split()[0]]
        if not error["relative"] <= limit:
            found.append(f"the reference for {name} is off by {error['relative']:.3g}, more than {limit:.3g}")
    return found + digest.differences({int(k): v for k, v in results["digest"].items()}, digest.read())
