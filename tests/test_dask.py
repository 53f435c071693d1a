"""Evaluation on dask: the figures are those of one evaluator, whatever the chunks, the scheduler and the workers."""

import os
import signal

import numpy as np
import pytest

from gpubce import Evaluator
from gpubce.errors import ArrayError, InvalidValueError, ShapeError

pytest.importorskip("dask", reason="dask is not installed")
import dask
import dask.array
import dask.dataframe

from gpubce.adapters.dask import BRANCHES, evaluate

ROWS, LABELS = 4_000, 3


def arrays():
    """(logits, targets, weight, groups)"""
    rng = np.random.default_rng(5)
    logits = rng.normal(-1.0, 2.0, (ROWS, LABELS)).astype(np.float32)
    return logits, rng.random((ROWS, LABELS)) < 0.3, rng.random((ROWS, LABELS)), rng.integers(0, 3, ROWS)


OPTIONS = {"from_logits": True, "metrics": "all", "per_label": True, "max_weight": 1.0, "bins": 256}


def in_memory() -> Evaluator:
    evaluator = Evaluator(**OPTIONS)
    logits, targets, weight, groups = arrays()
    evaluator.update(logits, targets, weight=weight, groups=groups)
    return evaluator


def on_dask(chunks, other_chunks=None, evaluator=None) -> Evaluator:
    given = [dask.array.from_array(array, chunks=(chunks, *array.shape[1:])) for array in arrays()]
    given[1] = given[1].rechunk(other_chunks or chunks)
    names = ("predictions", "targets", "weight", "groups")
    return evaluate(evaluator or Evaluator(**OPTIONS), **dict(zip(names, given, strict=True)))


def rounded(report) -> str:
    """A report to the last bit of float32."""
    return str({name: np.float32(value) for name, value in flat(report.as_dict())})


def flat(figures, path=""):
    if isinstance(figures, dict | list):
        items = figures.items() if isinstance(figures, dict) else enumerate(figures)
        for name, value in items:
            yield from flat(value, f"{path}.{name}")
    else:
        yield path, figures


@pytest.mark.parametrize("chunks", [ROWS, 1_001, ROWS // (BRANCHES**2 + 1)])
def test_chunks_do_not_show(chunks):
    expected = rounded(in_memory().report())
    with dask.config.set(scheduler="threads", num_workers=3):
        assert rounded(on_dask(chunks).report()) == expected
        assert rounded(on_dask(chunks, 777).report()) == expected


def test_schedulers_give_the_same_bits():
    reports = []
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            reports.append(str(on_dask(300).state_dict()))
    assert reports[0] == reports[1]


def test_what_the_evaluator_has_seen_stays():
    twice = on_dask(1_001, evaluator=on_dask(1_001))
    assert twice.report().count == 2 * ROWS * LABELS


def test_columns_of_dataframes():
    import pandas

    logits, targets, weight, groups = arrays()
    table = pandas.DataFrame({"x": logits[:, 0], "y": targets[:, 0], "w": weight[:, 0], "g": groups})
    frame = dask.dataframe.from_pandas(table, npartitions=5)
    options = OPTIONS | {"per_label": False}
    found = evaluate(Evaluator(**options), frame["x"], frame["y"], weight=frame["w"], groups=frame["g"])
    expected = Evaluator(**options)
    expected.update(logits[:, 0], targets[:, 0], weight=weight[:, 0], groups=groups)
    assert rounded(found.report()) == rounded(expected.report())
    with pytest.raises(ShapeError, match="partitions.*'predictions': 5, 'targets': 2"):
        evaluate(Evaluator(**options), frame["x"], dask.dataframe.from_pandas(table, npartitions=2)["y"])


def test_what_broadcasts_stays_in_memory():
    logits, targets, *_ = (dask.array.from_array(array, chunks=1_001) for array in arrays()[:2])
    weight = np.float32([0.5, 1.0, 0.0])
    found = evaluate(Evaluator(from_logits=True), logits, targets, weight=weight)
    expected = Evaluator(from_logits=True)
    expected.update(*arrays()[:2], weight=weight)
    assert rounded(found.report()) == rounded(expected.report())


def test_what_cannot_be_evaluated_is_refused():
    logits = dask.array.from_array(arrays()[0], chunks=1_001)
    with pytest.raises(ArrayError, match="neither a dask array nor a column"):
        evaluate(Evaluator(), arrays()[0], logits)
    with pytest.raises(ShapeError, match="targets has 7 rows, predictions have 4000"):
        evaluate(Evaluator(), logits, logits[:7])
    with pytest.raises(ShapeError, match="compute_chunk_sizes"):
        evaluate(Evaluator(), logits, logits[logits[:, 0] > 0])
    evaluator = Evaluator(from_logits=True)
    with pytest.raises(InvalidValueError, match="targets"):
        evaluate(evaluator, logits, logits)
    assert evaluator.report().count == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_cluster_gives_the_same_bits(workers):
    distributed = pytest.importorskip("distributed", reason="dask's distributed scheduler is not installed")
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        found = str(on_dask(300).state_dict())
    with dask.config.set(scheduler="synchronous"):
        assert found == str(on_dask(300).state_dict())


def _kill_once(block, marker):
    """The identity, which kills the first worker that computes it."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return block
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_does_not_show(tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask's distributed scheduler is not installed")
    logits, targets, *_ = arrays()
    with (
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        lazy = dask.array.from_array(logits, chunks=(300, LABELS))
        dying = lazy.map_blocks(_kill_once, str(tmp_path / "killed"), dtype=lazy.dtype, meta=np.empty((0, 0), "f4"))
        found = evaluate(Evaluator(from_logits=True), dying, dask.array.from_array(targets, chunks=(300, LABELS)))
    assert (tmp_path / "killed").exists()
    expected = Evaluator(from_logits=True)
    expected.update(logits, targets)
    assert rounded(found.report()) == rounded(expected.report())
