"""Many files as one: which are meant, the same rows and figures however they are cut, and rows that are passed over."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpubce
from gpubce import files, scoring
from gpubce.cli import main
from gpubce.errors import FormatError
from gpubce.report import BY_DEFAULT
from gpubce.shards import find_shards, open_shards, read_ahead

ROWS = 3000
FORMATS = (".npy", ".npz", "compressed.npz", ".csv", ".parquet")


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    prediction = random.random(ROWS)
    return {
        "prediction": prediction,
        "target": (random.random(ROWS) < prediction).astype(np.uint8),
        "weight": random.random(ROWS),
        "country": random.integers(-2, 3, ROWS),
    }


def needs(suffix: str) -> None:
    if suffix in (".csv", ".parquet"):
        pytest.importorskip("pyarrow", reason=f"{suffix} files are read with pyarrow")


def write(path: Path, columns: dict[str, np.ndarray]) -> None:
    """One shard; a .npy file holds the first column only."""
    if path.suffix == ".npy":
        np.save(path, next(iter(columns.values())))
    elif path.suffix == ".npz":
        (np.savez_compressed if "compressed" in path.name else np.savez)(path, **columns)  # type: ignore[operator]
    elif path.suffix == ".csv":
        lines = [",".join(map(repr, row)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
        path.write_text("\n".join([",".join(columns), *lines, ""]))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="writing .parquet needs pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="writing .parquet needs pyarrow")
        parquet.write_table(pyarrow.table(columns), path, row_group_size=333)


def cut(place: Path, suffix: str, columns: dict[str, np.ndarray], edges: list[int]) -> str:
    """Shards in a folder of their own, cut before these rows; the pattern that names them."""
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    for k, (start, stop) in enumerate(zip([0, *edges], [*edges, ROWS], strict=True)):
        write(place / f"part-{k}{suffix}", {name: column[start:stop] for name, column in columns.items()})
    return str(place / f"part-*{suffix}")


def rest(source: files.Source, rows: int) -> list[np.ndarray]:
    """What is left, in batches."""
    taken = []
    while len((batch := source.take(rows))[0]):
        taken.append(batch)
    return [np.concatenate(arrays) for arrays in zip(*taken, strict=True)] or [np.empty(0)] * len(source.groups)


# Which files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["part-1", "part-2", "part-10", "part-11"],
        ["2024-1-9", "2024-1-31", "2024-02-1", "2024-10-1"],
        ["a", "a1", "a1b2", "a1b10", "a2", "b"],
        ["1", "02", "2", "x"],
    ],
)
def test_shards_are_in_natural_order(tmp_path, names):
    for name in reversed(names):
        np.save(tmp_path / f"{name}.npy", np.ones(1))
    expected = [str(tmp_path / f"{name}.npy") for name in names]
    assert find_shards(str(tmp_path)) == expected
    assert find_shards(str(tmp_path / "*.npy")) == expected


def test_folders_of_other_programs(tmp_path):
    for name in ("b.npy", "a.NPY", "_SUCCESS", "_old.npy", ".hidden.npy", "README.md", ".a.npy.crc"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.npy").mkdir()
    assert [Path(path).name for path in find_shards(str(tmp_path))] == ["a.NPY", "b.npy"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    for name in ("a[1].npy", "a1.npy"):
        np.save(tmp_path / name, np.ones(1))
    assert find_shards(str(tmp_path / "a[1].npy")) == [str(tmp_path / "a[1].npy")]
    assert find_shards(str(tmp_path / "none.npy")) == [str(tmp_path / "none.npy")]


def test_names_that_stand_for_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    expected = {
        "parts": "parts is a directory without files of a known suffix: use one of .npy, .npz, .csv, .parquet",
        "parts/*.npy": "no file matches parts/*.npy: correct the pattern, or name a file or a directory",
    }
    for name, message in expected.items():
        with pytest.raises(FormatError) as caught:
            find_shards(name)
        assert str(caught.value) == message
    for name in ("a.npy", "b.csv"):
        (tmp_path / "parts" / name).touch()
    for name in ("parts", "parts/*"):
        with pytest.raises(FormatError) as caught:
            find_shards(name)
        kinds = "stands for files of several kinds (.csv, .npy): name those of one, as in '*.npy'"
        assert str(caught.value) == f"{name} {kinds}"


# The same rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_shards_are_one_file_wherever_they_are_cut_and_whatever_is_passed_over(suffix, columns, tmp_path):
    needs(suffix)
    names = ["prediction"] if suffix == ".npy" else ["prediction", "target"]
    groups = None if suffix == ".npy" else [["prediction"], ["target"]]

    @settings(max_examples=12, deadline=None)
    @given(
        st.lists(st.integers(0, ROWS), max_size=4).map(sorted),
        st.integers(0, ROWS + 5),
        st.sampled_from([ROWS, 1000, 77]),
    )
    def law(edges, skipped, rows):
        pattern = cut(tmp_path / "parts", suffix, {name: columns[name] for name in names}, edges)
        source = open_shards(pattern, find_shards(pattern), groups)
        assert source.rows == (None if suffix == ".csv" else ROWS)
        assert source.skip(skipped) == source.taken == min(skipped, ROWS)
        for name, got in zip(names, rest(source, rows), strict=True):
            np.testing.assert_array_equal(got, columns[name][skipped:])
        assert source.taken == ROWS
        starts = [0, *edges]
        for row in {0, skipped, ROWS - 1} - {ROWS, *range(ROWS, ROWS + 6)}:
            path, place = source.locate(row)
            shard = source.files.index(path)
            assert (starts[shard] + place, place >= 0) == (row, True)

    law()


def test_groups_of_columns_in_shards(columns, tmp_path):
    pattern = cut(tmp_path / "parts", ".npz", columns, [100, 1000])
    source = open_shards(pattern, find_shards(pattern), [["prediction", "weight"], ["weight"]])
    assert source.shapes == [(2,), ()]
    pair, weight = source.take(ROWS)
    np.testing.assert_array_equal(pair, np.stack([columns["prediction"], columns["weight"]], axis=1))
    np.testing.assert_array_equal(weight, columns["weight"])


def test_what_is_passed_over_is_not_read(columns, tmp_path):
    needs(".parquet")
    path = tmp_path / "a.parquet"
    write(path, columns)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 2000 + whole[2004:])  # Pages of the first row group.
    with pytest.raises(FormatError):
        files.open_source(str(path), [["prediction"]]).take(9)
    source = files.open_source(str(path), [["prediction"]])
    source.skip(340)
    np.testing.assert_array_equal(rest(source, 500)[0], columns["prediction"][340:])
    cut(tmp_path / "parts", ".npy", columns, [1000, 2000])
    paths = find_shards(str(tmp_path / "parts"))
    source = open_shards("parts", paths, None)
    Path(paths[0]).unlink()
    source.skip(1500)
    np.testing.assert_array_equal(rest(source, 500)[0], columns["prediction"][1500:])


def test_shards_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def message(groups: list[list[str]] | None, **arrays: object) -> str:
        for name, columns in arrays.items():
            write(tmp_path / f"{name}.{'npy' if groups is None else 'npz'}", columns)  # type: ignore[arg-type]
        paths = [f"{name}.{'npy' if groups is None else 'npz'}" for name in arrays]
        with pytest.raises(FormatError) as caught:
            open_shards("parts", paths, groups).drain()
        return str(caught.value)

    one, two = {"p": np.ones(3)}, {"p": np.ones((3, 2))}
    assert message([["p"]], a=one, b=two) == (
        "b.npz: a row of 'p' has shape (2,), in a.npz (): all shards must have the same"
    )
    assert message(None, a=one, b=two) == "b.npy: a row has shape (2,), in a.npy (): all shards must have the same"
    assert message([["p"]], a=one, b={"p": np.ones(3, np.float32)}) == (
        "b.npz: 'p' has type float32, in a.npz float64: all shards must have the same, convert one"
    )
    assert message([["p"]], a=one, b={"q": np.ones(3)}) == "b.npz has no array 'p': it has 'q'"


def test_a_shard_that_changes_is_noticed(tmp_path):
    paths = [str(tmp_path / f"{k}.npy") for k in range(2)]
    for path in paths:
        np.save(path, np.ones(5))
    source = open_shards("parts", paths, None)
    np.save(paths[1], np.ones(6))
    with pytest.raises(FormatError, match=r"1\.npy was changed while it was read: begin again"):
        source.take(10)


def test_many_shards_are_not_open_at_once(tmp_path):
    resource = pytest.importorskip("resource", reason="open files are limited with the module resource")
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    for k in range(200):
        np.save(tmp_path / f"{k}.npy", np.full(3, k))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(100, few[0]), few[1]))
    try:
        (got,) = open_shards("parts", find_shards(str(tmp_path)), None).take(600)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)
    np.testing.assert_array_equal(got, np.repeat(np.arange(200), 3))


# A thread that reads ahead ------------------------------------------------------------------------------------------


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("gpubce-reader")]


def test_reading_ahead_gives_the_same_and_leaves_no_thread():
    assert list(read_ahead(iter(range(9)))) == [*range(9)]
    assert readers() == []
    items = read_ahead(iter(range(9)))
    assert next(items) == 0
    assert len(readers()) == 1
    items.close()
    assert readers() == []


def test_the_thread_that_reads_ends_what_it_reads():
    """It may hold what belongs to a thread, as a GPU that was made the current one."""
    ended = []

    def items() -> Iterator[int]:
        try:
            yield from range(9)
        finally:
            ended.append(threading.current_thread().name)

    ahead = read_ahead(items())
    assert next(ahead) == 0
    ahead.close()
    assert [name.rpartition("_")[0] for name in ended] == ["gpubce-reader"]


@pytest.mark.parametrize("error", [FormatError("damaged"), KeyboardInterrupt(), MemoryError()])
def test_errors_of_the_reader_arrive_in_their_place(error):
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    items = read_ahead(failing())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(type(error)):
        next(items)
    assert readers() == []


def test_no_reader_is_left_where_computing_fails(columns, tmp_path, monkeypatch):
    write(tmp_path / "compressed.npz", columns)

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpubce.Evaluator, "update", fail)
    assert main(["evaluate", str(tmp_path / "compressed.npz"), "--batch", "100"]) == 130
    assert readers() == []


# Memory -------------------------------------------------------------------------------------------------------------


def test_pages_that_were_read_are_given_back(tmp_path):
    """A map that is read to its end counts as memory in use; what limits containers counts it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory in use is read from /proc")
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (100_000_000,)).flush()  # 400 MB, sparse.
    program = f"""
from gpubce.files import open_source
def mapped():
    return int(open("/proc/self/status").read().split("RssFile:")[1].split()[0]) / 1000
before = most = mapped()
source = open_source({str(path)!r}, None)
while len(batch := source.take(1 << 22)[0]):
    batch.max()
    most = max(most, mapped())
print(most - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3 * files.WINDOW_BYTES / 1e6


@pytest.mark.exhaustive
def test_two_billion_predictions_in_a_gigabyte(tmp_path):
    """float16 predictions and uint8 targets, 6 GB: a block a thousand times over has the block's figures."""
    pytest.importorskip("resource", reason="the memory of a process is asked with the module resource")
    random = np.random.default_rng(1)
    prediction = random.uniform(0.001, 0.999, 2_000_000).astype(np.float16)
    target = (random.random(prediction.size) < prediction).astype(np.uint8)
    paths = tmp_path / "prediction.npy", tmp_path / "target.npy"
    try:
        for path, block in zip(paths, (prediction, target), strict=True):
            with path.open("wb") as file:
                head = {"descr": block.dtype.str, "fortran_order": False, "shape": (1000 * block.size,)}
                np.lib.format.write_array_header_1_0(file, head)
                for _ in range(1000):
                    file.write(block)
        program = f"""
import resource
from gpubce.cli import main
assert main(["evaluate", {str(paths[0])!r}, {str(paths[1])!r}, "--json", {str(tmp_path / "a.json")!r}]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    assert int(done.stdout.split()[-1]) < 1e6  # kB: all that was resident, the pages of files too.
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    evaluator = gpubce.Evaluator()
    evaluator.update(prediction, target)
    expected = evaluator.report().as_dict()
    for name in ("weight", "count"):
        expected[name] *= 1000
    assert {name: np.float32(value) for name, value in figures.items()} == {
        name: np.float32(value) for name, value in expected.items()
    }


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(capsys):
    """The JSON document of `gpubce evaluate`."""

    def evaluate(*arguments: object) -> dict:
        code = main(["evaluate", *map(str, arguments), "--json", "-", "--no-progress"])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return json.loads(out)["figures"]

    return evaluate


@pytest.fixture
def fails(capsys):
    """The one line with which `gpubce evaluate` must fail."""

    def evaluate(*arguments: object) -> str:
        code = main(["evaluate", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("gpubce: error: ").rstrip("\n")

    return evaluate


EVERYTHING = ("--weight", "weight", "--group", "country", "--metrics", "all", "--max-weight", "1", "--batch", "700")


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_shards_give_the_figures_of_one_file(figures, columns, tmp_path, suffix):
    needs(suffix)
    write(tmp_path / "all.npz", columns)
    expected = figures(tmp_path / "all.npz", *EVERYTHING)
    evaluator = gpubce.Evaluator(metrics="all", max_weight=1.0)
    evaluator.update(columns["prediction"], columns["target"], weight=columns["weight"], groups=columns["country"])
    whole = evaluator.report().as_dict()
    assert np.float32(expected["loss"]) == np.float32(whole["loss"])
    assert [*expected["groups"]] == [*whole["groups"]] == ["-2", "-1", "0", "1", "2"]
    assert [*expected] == [*whole]
    pattern = cut(tmp_path / "parts", suffix, columns, [5, 1400, 1401, 2999])
    assert figures(pattern, *EVERYTHING) == expected
    assert figures(tmp_path / "parts", *EVERYTHING) == expected
    # Predictions and targets, cut in other places.
    cut(tmp_path / "predictions", ".npy", columns, [1000, 2000])
    assert figures(tmp_path / "predictions", pattern, *EVERYTHING) == expected


def test_shards_are_counted_above_the_table(capsys, columns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut(tmp_path / "parts", ".npz", columns, [10, 20])
    assert main(["evaluate", "parts", "parts/part-*", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("parts (3 files) against parts/part-* (3 files): probabilities, on cpu\n")
    assert err.startswith("gpubce: 3,000 rows in ")
    assert err.endswith("B/s\n")


def test_what_is_wrong_is_said_of_the_shard(fails, columns, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value, option, expected in (
        ("target", 7, (), "target 7 is not in [0, 1]"),
        ("prediction", 1.5, (), "probability 1.5 is not in [0, 1]"),
        ("weight", -1.0, ("--weight", "weight"), "weight -1.0 is negative or not finite"),
        ("country", 0.5, ("--group", "country"), "group 0.5 in column 'country' is not an integer of up to 2^53"),
        ("country", np.nan, ("--group", "country"), "group nan in column 'country' is not an integer of up to 2^53"),
    ):
        wrong = columns[name].astype(np.result_type(columns[name].dtype, np.asarray(value).dtype)).copy()
        wrong[1234] = value
        cut(tmp_path / "parts", ".npz", columns | {name: wrong}, [500, 1000])
        assert fails("parts", *option, "--batch", 400).startswith(f"parts/part-2.npz, row 234: {expected}")
    wrong = columns["prediction"].copy()
    wrong[[999, 2000]] = np.nan
    cut(tmp_path / "parts", ".npz", columns | {"prediction": wrong}, [500, 1000])
    assert main(["evaluate", "parts", "--no-progress"]) == 0
    assert capsys.readouterr().err == (
        "gpubce: note: parts: 2 predictions are NaN, the first in parts/part-1.npz, row 499: the loss is NaN\n"
    )


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_nans_of_every_type_are_seen(kind):
    for value in (np.nan, -np.nan):
        assert scoring._has_nan(np.array([0, value, -1, 1], kind))
    assert not scoring._has_nan(np.array([0, -0.0, np.inf, -np.inf, 6e-8, -1], kind))
    if kind == np.float16:
        every = np.arange(2**16, dtype=np.uint16).view(kind)
        assert [scoring._has_nan(every[k : k + 1]) for k in range(2**16)] == np.isnan(every).tolist()


def test_a_pattern_without_quotes(fails, columns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut(tmp_path / "parts", ".npz", columns, [500, 1000])
    assert fails(*sorted(Path("parts").iterdir())) == (
        "there are more than two files (parts/part-2.npz and so on): put a pattern in quotes, or name a directory (see "
        "gpubce --help)"
    )


def test_groups_that_are_none(fails, columns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.npz", columns | {"pair": np.zeros((ROWS, 2), int), "flag": columns["target"] > 0})
    np.save("t.npy", columns["target"])
    assert fails("a.npz", "--group", "pair") == "a row of groups in a.npz has shape (2,): give one integer a row"
    assert fails("a.npz", "t.npy", "--group", "g") == (
        "--group names a column beside the targets, but t.npy holds one array only: use .npz"
    )
    assert main(["evaluate", "a.npz", "--group", "flag", "--no-progress"]) == 0


def test_wrong_metrics(fails, columns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.npz", columns)
    assert fails("a.npz", "--metrics", "loss,auc").startswith("metrics='auc' is not one of 'all', 'loss', ")
    assert fails("a.npz", "--metrics", "difference") == (
        "--metrics difference compares with other predictions: use gpubce compare"
    )
    assert fails("a.npz", "--threshold", "2") == "threshold=2.0 is out of range: it must be between 0 and 1"
    assert fails("a.npz", "--bins", "100").startswith("bins=100 is not a power of two ")
    assert fails("a.npz", "--metrics", "roc_auc", "--weight", "weight").startswith("weights are given, ")
    assert fails("a.npz", "--save-every", "-1").startswith("argument --save-every: '-1' is not a number of seconds")


def test_metrics_reach_the_evaluator(figures, columns, tmp_path):
    write(tmp_path / "a.npz", columns)
    evaluator = gpubce.Evaluator(metrics="all", threshold=0.25, bins=64, max_weight=2.0)
    evaluator.update(columns["prediction"], columns["target"], weight=columns["weight"])
    given = ("--weight", "weight", "--threshold", 0.25, "--bins", 64, "--max-weight", 2)
    everything = figures(tmp_path / "a.npz", "--metrics", "accuracy,all", *given)
    assert everything == evaluator.report().as_dict()
    usual = figures(tmp_path / "a.npz", "--metrics", ",".join(BY_DEFAULT), "--weight", "weight")
    assert usual == figures(tmp_path / "a.npz", "--weight", "weight")
    assert set(usual) < set(everything)
