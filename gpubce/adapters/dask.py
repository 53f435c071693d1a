"""Evaluate dask arrays and dataframes: each worker evaluates its chunks, and the states are merged in a tree.

The tree follows the order of the chunks, so the figures have the same bits whichever worker did what, and a chunk that
is done twice, because a worker died, counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpubce.checks import shown
from gpubce.errors import ArrayError, MissingDependencyError, ShapeError
from gpubce.evaluator import Evaluator

BRANCHES = 8
"""States that are merged at a time: one state a chunk of a large cluster would be much for one worker."""


def evaluate(
    evaluator: Evaluator, predictions: Any, targets: Any, *, weight: Any = None, mask: Any = None, groups: Any = None
) -> Evaluator:
    """Add dask arrays to an evaluator; returns it. Runs on the current dask scheduler, and waits for it.

    Parameters
    ----------
    evaluator : Evaluator
        Its options say what is evaluated. Nothing is added if a chunk raises.
    predictions, targets : dask arrays of one shape, or columns (series or frames) of a dask dataframe
        Chunks of NumPy and of CuPy arrays are evaluated where they are. Arrays are cut along the first axis alone, as
        ``predictions`` are; dataframes by their partitions.
    weight, mask, groups : the same, optional
        As for :meth:`gpubce.Evaluator.update`. A weight or mask that broadcasts along the first axis is an array in
        memory.

    Raises
    ------
    gpubce.errors.ArrayError
        If predictions are neither a dask array nor of a dask dataframe.
    gpubce.errors.ShapeError
        If arrays have different numbers of partitions.

    Examples
    --------
    >>> import dask.array, numpy as np, gpubce
    >>> from gpubce.adapters.dask import evaluate
    >>> logits = dask.array.from_array(np.linspace(-2.0, 2.0, 1000), chunks=300)
    >>> evaluator = evaluate(gpubce.Evaluator(from_logits=True), logits, logits > 0.5)
    >>> evaluator.report().count
    1000
    """
    try:
        import dask
    except ImportError:
        raise MissingDependencyError("gpubce.adapters.dask needs dask: pip install 'gpubce[dask]'") from None

    given = {"predictions": predictions, "targets": targets, "weight": weight, "mask": mask, "groups": groups}
    chunks = _chunks({name: array for name, array in given.items() if array is not None})
    template = evaluator._empty()
    states = [dask.delayed(_evaluated, pure=True)(template, **arrays) for arrays in chunks]
    while len(states) > 1:
        pairs = range(0, len(states), BRANCHES)
        states = [dask.delayed(_merged, pure=True)(states[k : k + BRANCHES]) for k in pairs]
    return evaluator.merge(*dask.compute(*states))


def _evaluated(evaluator: Evaluator, **arrays: Any) -> Evaluator:
    """One chunk's, on the host, from where it can be sent."""
    own = evaluator._empty()
    own.update(**{name: _plain(array) for name, array in arrays.items()})
    return own._on_host()


def _merged(evaluators: Sequence[Evaluator]) -> Evaluator:
    first, *others = evaluators
    return first._empty().merge(first, *others)


def _plain(array: Any) -> Any:
    """The array of a partition of a dataframe."""
    return array.to_numpy() if hasattr(array, "to_numpy") else array


def _chunks(arrays: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of each chunk."""
    predictions = arrays["predictions"]
    if _is_frame(predictions):
        parts = {name: array.to_delayed() for name, array in arrays.items() if _is_frame(array)}
        counts = {name: len(part) for name, part in parts.items()}
        if len(set(counts.values())) > 1:
            raise ShapeError(
                f"the columns have different numbers of partitions, {counts}: take them from one dataframe"
            )
    elif _is_array(predictions):
        parts = {name: _by_rows(name, array, predictions) for name, array in arrays.items() if _is_array(array)}
    else:
        raise ArrayError(f"predictions={shown(predictions)} is neither a dask array nor a column of a dask dataframe")
    whole = {name: array for name, array in arrays.items() if name not in parts}
    for row in zip(*parts.values(), strict=True):
        yield whole | dict(zip(parts, row, strict=True))


def _is_frame(array: Any) -> bool:
    return hasattr(array, "to_delayed") and not _is_array(array)


def _is_array(array: Any) -> bool:
    return hasattr(array, "to_delayed") and hasattr(array, "rechunk")


def _by_rows(name: str, array: Any, predictions: Any) -> list[Any]:
    """The chunks along the first axis, cut as those of the predictions."""
    if array.ndim == 0 or np.isnan(array.shape[0]):
        raise ShapeError(f"{name} has shape {array.shape}: its length must be known, call compute_chunk_sizes()")
    if array.shape[0] != predictions.shape[0]:
        raise ShapeError(
            f"{name} has {array.shape[0]} rows, predictions have {predictions.shape[0]}: they must be equal, or, for a "
            "weight or mask that broadcasts, an array in memory"
        )
    rows = {0: predictions.chunks[0]} | dict.fromkeys(range(1, array.ndim), -1)
    return list(array.rechunk(rows).to_delayed().ravel())
