"""The command ``gpubce``: evaluate predictions in files, compile kernels ahead, and say what there is to compute on.

Wrong usage and wrong input give one line on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Sequence
from typing import NoReturn

import gpubce
from gpubce import checks, compile_ahead
from gpubce.errors import GpubceError, OptionError
from gpubce.report import SUMS
from gpubce.scoring import evaluate as _evaluate
from gpubce.spec.precision import PRECISIONS

PACKAGES = (
    *("numpy", "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "cupy", "torch"),
    *("pyarrow", "tqdm", "matplotlib", "dask"),
)

METRICS = [name for name in SUMS if name not in ("loss", "difference")]
"""That can be asked for: the loss is always there, and a difference needs two kinds of predictions."""


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
        what, _, names = message.partition("unrecognized arguments: ")
        first = names.partition(" ")[0]
        if not what and os.path.exists(first):  # The shell has replaced a pattern.
            message = f"there are more than two files ({first} and so on): put a pattern in quotes, or name a directory"
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
        description="Evaluate the predictions in .npy, .npz, .csv or .parquet files of any size and number.",
        epilog="Several files may stand for one: a directory, or a pattern in quotes ('part-*.parquet'), in natural "
        "order (part-2 before part-10). Predictions and targets need not be cut in the same places.",
    )
    evaluate.set_defaults(run=_evaluate, baseline=None)
    add = evaluate.add_argument
    add("predictions", metavar="PREDICTIONS", nargs="?", help="files with predictions; with targets too, if alone")
    add("targets", metavar="TARGETS", nargs="?", help="files with targets, in the same order")
    add("--demo", action="store_true", help="evaluate the predictions that come with the package")

    _add_options(evaluate)
    figures = evaluate.add_argument_group("figures", argument_default=argparse.SUPPRESS)
    add = figures.add_argument
    add("--metrics", type=metrics, metavar="NAME[,NAME...]|all", help=f"beside the loss: {', '.join(METRICS)}")
    add("--threshold", type=float, metavar="P", help="probability from which a prediction is positive (default: 0.5)")
    add("--bins", type=int, metavar="N", help="of the histogram: a power of two (default: 4096)")
    add("--max-weight", type=float, metavar="W", help="the largest weight, where a histogram counts weights")
    add("--html", metavar="FILE", default=None, help="write a page with pictures of all metrics too (needs matplotlib)")

    compare = commands.add_parser(
        "compare",
        help="which of two predictions of the same targets is better, and how sure that is",
        description="Compare the losses of two predictions of the same targets, element by element.",
    )
    compare.set_defaults(run=_evaluate, demo=False, html=None)
    compare.add_argument("baseline", metavar="A", help="files with predictions")
    compare.add_argument("predictions", metavar="B", help="files with other predictions, in the same order")
    compare.add_argument("--targets", metavar="T", required=True, help="files with the targets, in the same order")
    _add_options(compare)

    ahead = commands.add_parser(
        "compile",
        help="compile kernels before they are needed, as for the image of a container",
        description="Compile the kernels of common calls, and keep them on disk: means, their gradients, losses of "
        "each element and label, and an evaluator's usual figures, of logits and probabilities.",
        epilog="They are kept in the folder that the environment variable NUMBA_CACHE_DIR names, for this version of "
        "gpubce and of Python, and for this kind of processor or that compute capability.",
    )
    ahead.set_defaults(run=compile_ahead.run)
    add = ahead.add_argument
    add(
        "--types",
        type=names,
        metavar="NAME[,NAME...]",
        default=[],
        help=f"of predictions; default: {', '.join(PRECISIONS)}",
    )
    add(
        "--targets",
        type=names,
        metavar="NAME[,NAME...]",
        default=[],
        help=f"default: {', '.join(compile_ahead.USUAL_TARGETS)}, and the type of the predictions",
    )
    add("--cuda", type=capability, nargs="+", metavar="X.Y", help="not for this CPU, but for GPUs of this capability")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """What every command that reads predictions takes."""
    columns = parser.add_argument_group("columns (arrays of .npz; columns of .csv and .parquet)")
    columns.add_argument("--prediction", type=names, metavar="NAME[,NAME...]", help="default: prediction")
    columns.add_argument("--target", type=names, metavar="NAME[,NAME...]", help="default: target")
    columns.add_argument("--weight", metavar="NAME", help="in the files that hold the targets; default: none")
    columns.add_argument("--group", metavar="NAME", help="integers beside the targets; each group is reported too")

    # Without a default, an option that is not given does not exist, and the default is the library's.
    options = parser.add_argument_group("options of the loss", argument_default=argparse.SUPPRESS)
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

    running = parser.add_argument_group("running")
    add = running.add_argument
    add("--device", choices=checks.DEVICES, default="auto")
    add("--batch", type=row_count, metavar="ROWS", help="rows at a time (default: 2^22 elements)")
    add("--json", metavar="FILE", help="write the figures as JSON too; - is stdout, without the table")
    add("--resume", metavar="STATE", help="keep a state in this file, and continue from it after an interruption")
    add("--save-every", type=seconds, metavar="S", default=30.0, help="seconds between two states (default: 30)")
    add("--no-progress", action="store_true", help="neither a progress bar nor the rate on stderr")


def names(text: str) -> list[str]:
    """Of columns. (argparse names these functions in its messages: "invalid number value".)"""
    return text.split(",")


def metrics(text: str) -> str | list[str]:
    """Names of figures, or all of them."""
    return "all" if "all" in names(text) else names(text)


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


def seconds(text: str) -> float:
    """A time, from 0 on."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: give one from 0 on")
    return value


def capability(text: str) -> tuple[int, int]:
    """A compute capability, such as 9.0."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a compute capability: give two numbers, such as 9.0")
    return int(major), int(minor)


# gpubce info --------------------------------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> None:
    versions = {"gpubce": gpubce.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    print(gpubce.devices(), "", *(f"{name:<14}{version}" for name, version in versions.items()), sep="\n", flush=True)
