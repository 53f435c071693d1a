"""Reading files: every format gives the same rows, in any batches, without taking the file into memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gpubce import files
from gpubce.errors import FormatError, MissingDependencyError
from gpubce.files import open_source

ROWS = 2500
FORMATS = (".npz", ".csv", ".parquet")
ONE_FILE = [["prediction"], ["target"]]


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "prediction": random.random(ROWS),
        "target": random.integers(0, 2, ROWS).astype(np.uint8),
        "other": random.random(ROWS),
        "flag": random.random(ROWS) < 0.5,
    }


@pytest.fixture(scope="module")
def folder(columns: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same columns in every format."""
    place = tmp_path_factory.mktemp("files")
    for suffix in FORMATS:
        write(place / f"all{suffix}", columns)
    return place


def write(path: Path, columns: dict[str, np.ndarray]) -> str:
    """Write columns in the format of the suffix; the path as text."""
    if path.suffix == ".npy":
        (array,) = columns.values()
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **columns)  # type: ignore[arg-type]
    elif path.suffix == ".csv":
        lists = [column.tolist() for column in columns.values()]
        lines = [",".join(map(repr, row)) for row in zip(*lists, strict=True)]
        path.write_text("\n".join([",".join(columns), *lines, ""]))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="writing .parquet needs pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="writing .parquet needs pyarrow")
        # Row groups that fit no batch.
        parquet.write_table(pyarrow.table(columns), path, row_group_size=777)
    return str(path)


def needs(suffix: str) -> None:
    if suffix in (".csv", ".parquet"):
        pytest.importorskip("pyarrow", reason=f"{suffix} files are read with pyarrow")


# Rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_every_row_once_in_batches_of_the_asked_length(folder, columns, suffix, rows):
    needs(suffix)
    source = open_source(str(folder / f"all{suffix}"), [["prediction"], ["target"], ["flag"]])
    lengths, taken = [], []
    while len((batch := source.take(rows))[0]):
        lengths.append(len(batch[0]))
        taken.append(batch)
    assert lengths == [rows] * (ROWS // rows) + [ROWS % rows] * (ROWS % rows > 0)
    for name, got in zip(("prediction", "target", "flag"), zip(*taken, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(got), columns[name])
    assert source.taken == ROWS
    assert source.rows in (None, ROWS)


@pytest.mark.parametrize("suffix", FORMATS)
def test_several_columns_are_side_by_side_in_the_order_of_their_names(folder, columns, suffix):
    needs(suffix)
    source = open_source(str(folder / f"all{suffix}"), [["other", "prediction"], ["target"]])
    assert source.shapes == [(2,), ()]
    pair, target = source.take(100)
    np.testing.assert_array_equal(pair, np.stack([columns["other"], columns["prediction"]], axis=1)[:100])
    np.testing.assert_array_equal(target, columns["target"][:100])


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_column_may_play_two_roles(folder, columns, suffix):
    needs(suffix)
    first, second = open_source(str(folder / f"all{suffix}"), [["flag"], ["flag"]]).take(10)
    np.testing.assert_array_equal(first, second)


def test_types_are_kept_by_formats_that_have_them(folder):
    pytest.importorskip("pyarrow", reason=".csv and .parquet files are read with pyarrow")
    groups = [["prediction"], ["target"], ["flag"]]
    types = {
        suffix: [a.dtype.name for a in open_source(str(folder / f"all{suffix}"), groups).take(5)] for suffix in FORMATS
    }
    assert types == {
        ".npz": ["float64", "uint8", "bool"],
        ".parquet": ["float64", "uint8", "bool"],
        ".csv": ["float64", "float64", "bool"],  # Text has no types: numbers are numbers.
    }


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i4", ">u2", "|b1"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_several_axes_any_byte_order_and_any_layout(tmp_path, suffix, dtype, order):
    array = np.asarray(np.arange(60).reshape(10, 3, 2) % 2, dtype=dtype, order=order)
    path = write(tmp_path / f"a{suffix}", {"a": array})
    source = open_source(path, None if suffix == ".npy" else [["a"]])
    assert (source.rows, source.shapes) == (10, [(3, 2)])
    got = np.concatenate([source.take(4)[0], source.take(100)[0]])
    np.testing.assert_array_equal(got, array)
    assert got.dtype.isnative


def test_batches_of_an_npz_are_aligned_wherever_its_arrays_begin(tmp_path):
    # A member begins where the zip file's headers end: a name of each length gives each remainder of 8 bytes.
    for length in range(1, 9):
        path = write(tmp_path / "a.npz", {"n" * length: np.arange(10.0)})
        (batch,) = open_source(path, [["n" * length]]).take(10)
        assert batch.flags.aligned
        np.testing.assert_array_equal(batch, np.arange(10.0))


def test_a_compressed_npz_gives_the_same(tmp_path, columns):
    path = tmp_path / "small.npz"
    np.savez_compressed(path, **columns)
    prediction, target = open_source(str(path), ONE_FILE).take(ROWS)
    np.testing.assert_array_equal(prediction, columns["prediction"])
    np.testing.assert_array_equal(target, columns["target"])


def test_suffixes_may_be_in_capitals(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    assert open_source(str(tmp_path / "A.NPY"), None).rows == 3


# Empty cells --------------------------------------------------------------------------------------------------------


def test_empty_cells_of_a_csv_are_nan(tmp_path):
    needs(".csv")
    path = tmp_path / "a.csv"
    path.write_text("prediction,target\n0.5,1\n,0\n0.25,\nnan,NA\n")
    prediction, target = open_source(str(path), ONE_FILE).take(9)
    np.testing.assert_array_equal(prediction, [0.5, np.nan, 0.25, np.nan])
    np.testing.assert_array_equal(target, [1, 0, np.nan, np.nan])


def test_fractions_far_below_integers_are_read_from_a_csv(tmp_path):
    # pyarrow guesses types from the first megabyte.
    needs(".csv")
    path = tmp_path / "a.csv"
    path.write_text("prediction,target\n" + "1,0\n" * 400_000 + "0.5,0.25\n")
    source = open_source(str(path), ONE_FILE)
    assert len(source.take(400_000)[0]) == 400_000
    assert [array.tolist() for array in source.take(9)] == [[0.5], [0.25]]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_nulls_in_columns_of_floats_are_nan(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow", reason=".parquet files are read with pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason=".parquet files are read with pyarrow")
    values = pyarrow.array([np.dtype(kind).type(0.5), None], pyarrow.from_numpy_dtype(np.dtype(kind)))
    parquet.write_table(pyarrow.table({"a": values}), tmp_path / "a.parquet")
    (got,) = open_source(str(tmp_path / "a.parquet"), [["a"]]).take(9)
    assert got.dtype == kind
    np.testing.assert_array_equal(got, np.array([0.5, np.nan], kind))


def test_nulls_in_every_place_of_a_bitmap(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason=".parquet files are read with pyarrow")
    random = np.random.default_rng(3)
    for flags in (random.random(1003) < 0.5, np.arange(17) == 16):
        values = pyarrow.array(np.where(flags, 0.25, 0.5), mask=flags)
        pyarrow.parquet.write_table(pyarrow.table({"a": values, "b": flags}), tmp_path / "a.parquet")
        a, b = open_source(str(tmp_path / "a.parquet"), [["a"], ["b"]]).take(2000)
        np.testing.assert_array_equal(a, np.where(flags, np.nan, 0.5))
        np.testing.assert_array_equal(b, flags)


@pytest.mark.parametrize("begin", [0, 3, 8, 13])
def test_parts_of_a_column_that_begin_anywhere_in_its_memory(begin):
    pyarrow = pytest.importorskip("pyarrow", reason="what is read are arrays of pyarrow")
    flags = np.random.default_rng(5).random(40) < 0.5
    for whole in (pyarrow.array(flags), pyarrow.array(np.arange(40.0), mask=flags)):
        part = whole.slice(begin, 21)
        expected = np.where(flags, np.nan, np.arange(40.0)) if whole.null_count else flags
        np.testing.assert_array_equal(files._column("", "", part, 0), expected[begin : begin + 21])


def test_pandas_is_not_imported_for_a_table(folder):
    pytest.importorskip("pyarrow", reason=".csv and .parquet files are read with pyarrow")
    pytest.importorskip("pandas", reason="whether pandas is imported shows only where it is installed")
    program = f"""
import sys
from gpubce.files import open_source
for suffix in (".csv", ".parquet"):
    open_source({str(folder / "all")!r} + suffix, [["prediction"], ["flag"]]).drain()
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


@pytest.mark.parametrize("value", [3, True])
def test_nulls_in_other_columns_are_refused_with_their_row(tmp_path, value):
    pyarrow = pytest.importorskip("pyarrow", reason=".parquet files are read with pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason=".parquet files are read with pyarrow")
    rows = files.BLOCK_ROWS + 9
    table = pyarrow.table({"a": pyarrow.array([value] * rows + [None])})
    parquet.write_table(table, tmp_path / "a.parquet")
    kind = {3: "int64", True: "bool"}[value]
    with pytest.raises(
        FormatError, match=rf"a\.parquet, row {rows}: column 'a' is empty \(null\), and its type {kind}"
    ):
        open_source(str(tmp_path / "a.parquet"), [["a"]]).drain()


# What cannot be read ------------------------------------------------------------------------------------------------


def message(path: object, groups: list[list[str]] | None) -> str:
    """The error of reading the whole file, without the folder."""
    with pytest.raises(FormatError) as caught:
        open_source(str(path), groups).drain()
    return str(caught.value).replace(f"{Path(str(path)).parent}/", "")


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "a.txt").write_text("0.5")
    (tmp_path / "empty.npy").touch()
    assert message(tmp_path / "none.npy", None) == "none.npy does not exist"
    assert message(tmp_path / "a.txt" / "b.npy", None) == "b.npy cannot be read: Not a directory"
    assert message(tmp_path / "folder.npy", None) == "folder.npy is a directory: name a file in it"
    assert message(tmp_path / "empty.npy", None) == "empty.npy is empty (0 bytes)"
    known = "use one of .npy, .npz, .csv, .parquet"
    assert message(tmp_path / "a.txt", None) == f"a.txt: the suffix '.txt' is not known: {known}"


def test_npy_files_that_are_none(tmp_path):
    (tmp_path / "text.npy").write_text("0.5\n0.25\n")
    assert message(tmp_path / "text.npy", None) == (
        "text.npy is not in .npy format (its first bytes are others): write it with numpy.save"
    )
    np.savez(tmp_path / "zip.npz", a=np.ones(3))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    assert message(tmp_path / "zip.npy", None).startswith("zip.npy is not in .npy format")
    np.save(tmp_path / "objects.npy", np.array([None, 1], object))
    assert message(tmp_path / "objects.npy", None) == (
        "objects.npy holds Python objects: convert it to numbers and save it again"
    )
    np.save(tmp_path / "complex.npy", np.ones(3, complex))
    assert message(tmp_path / "complex.npy", None) == (
        "complex.npy has type complex128: only real numbers of up to 8 bytes and bool can be read"
    )
    np.save(tmp_path / "scalar.npy", np.array(0.5))
    assert message(tmp_path / "scalar.npy", None) == (
        "scalar.npy is a single number: rows are counted along the first axis, give it one"
    )


def test_truncated_npy_files(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones(1000))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert message(path, None) == (
        "a.npy is truncated: shape (1000,) of float64 takes 8000 bytes, 7992 are there; write it again"
    )
    for length in range(1, 128):
        path.write_bytes(whole[:length])
        assert message(path, None).startswith("a.npy ")


def test_damaged_headers_of_npy_files(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones(10))
    whole = path.read_bytes()
    for old, new in [
        (b"'shape': (10,), }", b"'shape': (10,    "),  # tokenize raises an error of its own
        (b"'shape': (10,)", b"'shape': (-9,)"),
        (b"'<f8'", b"'<x8'"),
        (b"'descr'", b"'desc' "),
        (b"NUMPY\x01", b"NUMPY\x07"),
    ]:
        path.write_bytes(whole.replace(old, new))
        assert message(path, None).startswith("a.npy cannot be read, it may be damaged: "), new


def test_damaged_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, a=np.random.default_rng(0).random(100))
        whole = path.read_bytes()
        for length in (1, 4, 30, 200, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert message(path, [["a"]]).startswith("a.npz cannot be read as .npz, it may be damaged: ")
    path.write_bytes(whole[:200] + b"\xff" * 20 + whole[220:])
    assert message(path, [["a"]]).startswith("a.npz cannot be read as .npz, it may be damaged: ")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", "0.5")
        archive.writestr(zipfile.ZipInfo("b.npy"), "0.5", zipfile.ZIP_DEFLATED)
    assert message(path, [["a"]]).startswith("a.npz: array 'a' is not in .npy format")
    assert message(path, [["b"]]).startswith("a.npz: array 'b' cannot be read, it may be damaged: ")


def test_npz_files_that_do_not_fit(tmp_path):
    path = write(tmp_path / "a.npz", {"a": np.ones(3), "b": np.ones(4), "c": np.ones((3, 2))})
    assert message(path, [["a"], ["x"]]) == "a.npz has no array 'x': it has 'a', 'b', 'c'"
    assert message(path, [["a"], ["b"]]) == "a.npz: 'a' has 3 rows, 'b' has 4 rows: they must be equal"
    assert message(path, [["a", "c"]]) == (
        "a.npz: array 'c' has 2 axes: only arrays of one axis can be put side by side, name one array"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a,b\n1,2\n1,x\n",
            "a.csv, row 1 cannot be read as .csv: column 'b': CSV conversion error to double: invalid ",
        ),
        (
            "a,b\n1,2\n\n1,2\n1,2,3\n",
            "a.csv, row 2 cannot be read as .csv: CSV parse error: Expected 2 columns, got 3: ",
        ),
        ("b\n" + "2\n" * 700_000 + "x\n", "a.csv, row 700000 cannot be read as .csv: column 'b': CSV conversion error"),
        ("a,c\n1,2\n", "a.csv has no column 'b': it has 'a', 'c'"),
        ("b,a,b\n1,2,3\n", "a.csv has 2 columns named 'b': rename all but one"),
        ("\n", "a.csv cannot be read as .csv: "),
        ("b\n2001-01-01\n", "a.csv, row 0 cannot be read as .csv: column 'b': CSV conversion error to double"),
        ("b\nyes\n\nno\n", "a.csv, row 0 cannot be read as .csv: column 'b': "),
        ("b,a\ntrue,1\n,1\n", "a.csv, row 1: column 'b' is empty (null), and its type bool has no NaN"),
        ("\xe5,b\n1,2\n", "a.csv cannot be read as .csv: 'utf-8' codec can't decode byte 0xe5"),
    ],
)
def test_csv_files_that_do_not_fit(tmp_path, text, expected):
    needs(".csv")
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="latin1")
    assert message(path, [["b"]]).startswith(expected)


def test_parquet_files_that_do_not_fit(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason=".parquet files are read with pyarrow")
    path = tmp_path / "a.parquet"
    write(path, {"a": np.random.default_rng(0).random(3000), "b": np.array(["x"] * 3000)})
    assert message(path, [["c"]]) == "a.parquet has no column 'c': it has 'a', 'b'"
    kind = pyarrow.parquet.read_schema(path).field("b").type
    assert (
        message(path, [["b"]]) == f"a.parquet: column 'b' has type {kind}: only columns of numbers and bool can be read"
    )
    whole = path.read_bytes()
    for length in (3, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert message(path, [["a"]]).startswith("a.parquet cannot be read as .parquet: ")
    path.write_bytes(whole[:9000] + b"\xff" * 9000 + whole[18000:])  # The footer is whole, some pages are not.
    assert message(path, [["a"]]).startswith("a.parquet cannot be read as .parquet: ")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_without_pyarrow_the_error_says_what_to_install(folder, monkeypatch, suffix):
    needs(suffix)
    monkeypatch.setitem(sys.modules, f"pyarrow{suffix}", None)  # Importing it now raises ImportError.
    with pytest.raises(MissingDependencyError) as caught:
        open_source(str(folder / f"all{suffix}"), ONE_FILE)
    assert str(caught.value).endswith(f"all{suffix} needs pyarrow to be read: pip install 'gpubce[cli]'")


def test_without_pyarrow_arrays_are_read(tmp_path, columns):
    path = write(tmp_path / "a.npz", columns)
    program = f"""
import sys
sys.modules["pyarrow"] = sys.modules["tqdm"] = None
from gpubce.cli import main
assert main(["evaluate", {path!r}]) == 0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_importing_the_package_imports_none_of_this():
    program = "import sys, gpubce; assert not {'gpubce.files', 'gpubce.cli', 'argparse', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


# Memory -------------------------------------------------------------------------------------------------------------

LARGE = 8_000_000
"""Rows of float64: 64 MB."""

LIMIT = 16e6
"""Bytes for a large file in batches of 100,000 rows: 0.8 MB of predictions, a few times over, and buffers."""


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_large_arrays_stay_in_their_file(tmp_path, suffix):
    path = tmp_path / f"large{suffix}"
    write(path, {"a": np.linspace(0, 1, LARGE)})
    tracemalloc.start()
    try:
        source = open_source(str(path), None if suffix == ".npy" else [["a"]])
        total = 0.0
        while len(batch := source.take(100_000)[0]):
            total += float(batch.sum())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == pytest.approx(LARGE / 2)
    assert peak < LIMIT, f"{peak / 1e6:.1f} MB of a file of {path.stat().st_size / 1e6:.1f} MB"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_large_tables_are_streamed(tmp_path, suffix):
    pyarrow = pytest.importorskip("pyarrow", reason=f"{suffix} files are read with pyarrow")
    csv = pytest.importorskip("pyarrow.csv", reason=f"{suffix} files are read with pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason=f"{suffix} files are read with pyarrow")
    path = tmp_path / f"large{suffix}"
    rows = LARGE // 2 if suffix == ".csv" else LARGE  # 77 or 73 MB.
    table = pyarrow.table({"a": np.random.default_rng(0).random(rows)})
    if suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path, row_group_size=rows)  # One group: the worst case.
    assert path.stat().st_size > 60e6
    # pyarrow's memory is seen by its own counter only, which counts from the start of the process.
    program = f"""
import numpy, pyarrow, tracemalloc
from gpubce.files import open_source
source = open_source({str(path)!r}, [["a"]])
tracemalloc.start()  # Not before pyarrow is imported.
while len(source.take(100_000)[0]):
    pass
assert source.taken == {rows}
print(pyarrow.default_memory_pool().max_memory(), tracemalloc.get_traced_memory()[1])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True)
    arrow, python = map(int, done.stdout.split())
    # pyarrow reads ahead in a .csv: 39 MB, and the same for one of 230 MB.
    assert arrow < (48e6 if suffix == ".csv" else LIMIT), f"pyarrow held {arrow / 1e6:.1f} MB"
    assert python < LIMIT, f"Python held {python / 1e6:.1f} MB"
