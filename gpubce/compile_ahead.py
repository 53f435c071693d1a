"""What ``gpubce compile`` does: compile kernels before they are needed, and keep them on disk.

The library itself is asked which kernels: :func:`calls` are made, and what they compile is what such calls need. For
GPUs that are not here, the calls meet an engine that notes kernels and launches none.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gpubce import dispatch
from gpubce.arrays import numpy as host_arrays
from gpubce.backends.devices import simulated
from gpubce.errors import DeviceError, MissingDependencyError, OptionError
from gpubce.evaluator import Evaluator
from gpubce.loss import BinaryCrossEntropy
from gpubce.spec.plan import PLAN
from gpubce.spec.precision import ITEMSIZE, PRECISIONS, TARGETS

USUAL_TARGETS = ("uint8", "bool", "int64")
"""Types of targets unless --targets says otherwise, beside that of the predictions."""

SHAPE = PLAN.lanes * PLAN.rows, 4
"""Rows and labels of the calls: several blocks, so that their sums are combined."""

MANY = 32
"""Labels where there are many."""

Step = Callable[[str], None]
"""Told what comes next."""


@dataclass(frozen=True)
class Call:
    """A call of the library, and what it is in words. ``make`` takes the options of a call."""

    name: str
    make: Callable[..., object]


def calls(types: Sequence[str], targets: Sequence[str] = ()) -> list[Call]:
    """What is compiled for: a mean, with and without its gradient, the loss of each element, the mean of each label (a
    CPU has another kernel where there are few), and an evaluator's usual figures, of logits and of probabilities.

    >>> for call in calls(["float32"], ["bool"]):
    ...     print(call.name)
    logits of float32, targets of bool: mean
    logits of float32, targets of bool: mean and gradient
    logits of float32, targets of bool: each element
    logits of float32, targets of bool: each label
    logits of float32, targets of bool: each of many labels
    logits of float32, targets of bool: evaluator
    probabilities of float32, targets of bool: mean
    probabilities of float32, targets of bool: mean and gradient
    probabilities of float32, targets of bool: each element
    probabilities of float32, targets of bool: each label
    probabilities of float32, targets of bool: each of many labels
    probabilities of float32, targets of bool: evaluator
    """
    found = []
    for kind in types:
        for target in targets or (*USUAL_TARGETS, kind):
            arrays = np.full(SHAPE, 0.5, host_arrays.dtype(kind)), np.zeros(SHAPE, host_arrays.dtype(target))
            of_many = [array.reshape(-1, MANY) for array in arrays]
            for space in ("logits", "probabilities"):
                mean = BinaryCrossEntropy(from_logits=space == "logits")
                of_labels = replace(mean, axis=0)
                made: dict[str, Callable[..., object]] = {
                    "mean": partial(mean, *arrays),
                    "mean and gradient": partial(mean.value_and_grad, *arrays),
                    "each element": partial(replace(mean, reduction="none"), *arrays),
                    "each label": partial(of_labels, *arrays),
                    "each of many labels": partial(of_labels, *of_many),
                    "evaluator": partial(Evaluator(from_logits=mean.from_logits).update, *arrays),
                }
                for name, call in made.items():
                    found.append(Call(f"{space} of {kind}, targets of {target}: {name}", call))
    return found


def run(arguments: argparse.Namespace) -> None:
    """The command."""
    _check_names("--types", arguments.types, tuple(PRECISIONS))
    _check_names("--targets", arguments.targets, TARGETS)
    types = arguments.types or [
        kind for kind in PRECISIONS if kind != "bfloat16" or importlib.util.find_spec("ml_dtypes")
    ]
    wanted = calls(types, arguments.targets)
    dispatch.cpu_engine()  # Imports Numba in one piece.
    from gpubce.backends.kernel_cache import refused, written

    written.clear()
    refused.clear()
    _check_folder()
    with _progress() as step:
        if arguments.cuda:
            made = compile_for_gpus(wanted, arguments.cuda, step)
            place = "CUDA " + ", ".join(map(_text, arguments.cuda))
        else:
            made = compile_for_this_cpu(wanted, step)
            place = f"the processor {_processor()}"
    print(f"{made} kernel{'s' * (made != 1)} for {place}")
    if written:
        folders = " and ".join(sorted({os.path.dirname(path) for path in written}))
        print(f"{len(written)} written, {sum(written.values()) / 1e6:.1f} MB, to {folders}")
    else:
        print("all were on disk already")
    if "bfloat16" not in types and not arguments.types:
        print("none for bfloat16: it needs ml_dtypes (pip install ml_dtypes)")


def _check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise OptionError(f"{option} {name} is no type that is read: choose among {', '.join(known)}")


def _check_folder() -> None:
    """Refuse a folder that cannot be written before the work. Without this Numba would choose another one."""
    import numba

    folder = str(getattr(numba.config, "CACHE_DIR", ""))
    if folder:
        try:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = error.strerror or error
            raise OptionError(
                f"NUMBA_CACHE_DIR {folder} cannot be written ({reason}): name a folder that can"
            ) from None


def _check_kept() -> None:
    from gpubce.backends.kernel_cache import refused

    if refused:
        reason = getattr(refused[0], "strerror", None) or refused[0]
        raise OptionError(
            f"a compiled kernel cannot be kept on disk ({reason}): set NUMBA_CACHE_DIR to a folder with room for it"
        )


@contextlib.contextmanager
def _progress() -> Iterator[Step]:
    """A line on stderr for a person who waits, which is gone in the end."""
    shown = sys.stderr is not None and sys.stderr.isatty()

    def step(text: str) -> None:
        if shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield step
    finally:
        step("")


# The CPU ------------------------------------------------------------------------------------------------------------


def compile_for_this_cpu(wanted: Sequence[Call], step: Step) -> int:
    """Make the calls; how many kernels they use."""
    from gpubce.backends.cpu.compile import known

    Evaluator().report()
    for number, call in enumerate(wanted, 1):
        step(f"{number} of {len(wanted)}: {call.name}")
        call.make(device="cpu")
        _check_kept()
    return len(known())


def _processor() -> str:
    from numba.core.registry import cpu_target

    return str(cpu_target.target_context.codegen().magic_tuple()[1])


# GPUs ---------------------------------------------------------------------------------------------------------------


def compile_for_gpus(wanted: Sequence[Call], capabilities: Sequence[tuple[int, int]], step: Step) -> int:
    """Compile what the calls launch on arrays of a GPU and on host arrays that are sent there; how many kernels."""
    if simulated():
        raise DeviceError("NUMBA_ENABLE_CUDASIM is set: Numba's simulator compiles nothing, unset it")
    if importlib.util.find_spec("numba_cuda") is None:
        raise MissingDependencyError("--cuda needs numba-cuda: pip install 'gpubce[cuda12]' or 'gpubce[cuda13]'")
    try:
        from gpubce.backends.cuda import compile as compiled

        known = compiled.known_capabilities()
    except Exception as error:  # Whatever a broken installation raises.
        raise DeviceError(f"CUDA kernels cannot be compiled here: {type(error).__name__}: {error}") from error
    for capability in capabilities:
        if capability not in known:
            raise OptionError(f"--cuda {_text(capability)}: this CUDA compiles for {', '.join(map(_text, known))}")
    Evaluator().report()  # Its last step is taken on the host.
    kernels = launched(wanted)
    number = 0
    for capability in capabilities:
        for kind, key in kernels:
            number += 1
            step(f"{number} of {len(kernels) * len(capabilities)}, for {_text(capability)}")
            try:
                compiled.keep_ahead(kind, key, capability)
            except Exception as error:
                raise DeviceError(
                    f"CUDA kernels cannot be compiled for {_text(capability)} here: {type(error).__name__}: {error}"
                ) from error
            _check_kept()
    return number


def launched(wanted: Sequence[Call]) -> list[tuple[str, Any]]:
    """The kernels, kind and key, that a GPU launches for these calls.

    With check=False, host arrays ask for those of a GPU's arrays, which are not checked otherwise.
    """
    engine = _noting_engine()
    before, dispatch.cpu_engine = dispatch.cpu_engine, lambda: engine
    try:
        for call in wanted:
            for check in ("auto", False):
                call.make(device="cpu", check=check)
    finally:
        dispatch.cpu_engine = before
    return list(engine.noted)


def _noting_engine() -> Any:
    """An engine that launches nothing, and notes what it would. Sums are 0, so nothing is found to be invalid."""
    from gpubce.backends.cuda.kernels import QUAD
    from gpubce.backends.cuda.launch import CudaEngine

    class NotingEngine(CudaEngine):
        def __init__(self) -> None:
            super().__init__()
            self.noted: dict[tuple[str, Any], None] = {}

        def whole(self, key, elements, *work):
            _clear(work[4], len(key.recipe.sums) * work[5])
            super().whole(replace(key, vector=QUAD), elements, *work)  # Memory of a GPU is aligned.

        def along_axes(self, key, reduced, outputs, *work):
            _clear(work[4], len(key.recipe.sums) * work[5] * outputs)
            for vector in (QUAD, 1):  # Whether rows are aligned too, depends on the number of labels.
                super().along_axes(replace(key, vector=vector), reduced, outputs, *work)

        def combine(self, plan, sums, size, outputs, source, target):
            _clear(target, sums * plan.blocks(size) * outputs)
            super().combine(plan, sums, size, outputs, source, target)

        def launch(self, kind, key, grid, team, arguments):
            self.noted[kind, key] = None

        def repeat(self, *what):
            return None  # Every call is to be noted.

    return NotingEngine()


def _clear(address: int, pairs: int) -> None:
    ctypes.memset(address, 0, 2 * ITEMSIZE["float64"] * pairs)


def _text(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)
