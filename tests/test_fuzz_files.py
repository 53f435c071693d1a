"""Files that are damaged, mislabelled or hostile: the readers give arrays or a FormatError, the command figures or one
line. Nothing is executed, nothing hangs, and no claim of a file costs memory.

ci/fuzz_readers.py looks for more of them, guided by coverage.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
import struct
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubce import files
from gpubce.cli import main
from gpubce.errors import FormatError
from tests.test_fuzz_calls import examples, idle, refused, within

pyarrow = pytest.importorskip("pyarrow", reason=".csv and .parquet files are read with pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason=".parquet files are read with pyarrow")

SUFFIXES = (".npy", ".npz", ".csv", ".parquet")

SECONDS = 10.0
"""For one small file; it takes milliseconds. One that waits for somebody waits for ever."""

MEMORY = 4e6
"""Bytes for a small file, whatever it claims: pieces of 1 MB, a few times over."""

COLUMNS = {
    "prediction": np.linspace(0, 1, 9, dtype=np.float32),
    "target": np.arange(9, dtype=np.uint8) % 2,
    "weight": np.arange(9.0),
}


# Files --------------------------------------------------------------------------------------------------------------


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version)
    return file.getvalue()


def npy_of(header: str | bytes, version: int = 1, length: int | None = None, data: bytes = b"") -> bytes:
    """A file in .npy format with any header."""
    text = header.encode("latin1") if isinstance(header, str) else header
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def claiming(shape: Any, descr: Any = "<f8", fortran: bool = False) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of names that are there twice.
        for name, content in members.items():
            archive.writestr(name.removesuffix(" "), content)
    return file.getvalue()


def saved(write: Callable, **options: Any) -> bytes:
    file = io.BytesIO()
    write(file, **options)
    return file.getvalue()


@cache
def seeds() -> tuple[tuple[str, bytes], ...]:
    """Valid files."""
    table = pyarrow.table(COLUMNS)
    nulls = pyarrow.table({"prediction": pyarrow.array([0.5, None, 1.0]), "target": [True, False, True]})
    found = [(".npy", npy(array)) for array in COLUMNS.values()]
    found += [(".npy", npy(np.asfortranarray(np.ones((4, 3), ">f4")))), (".npy", npy(np.ones(3), (2, 0)))]
    found += [(".npz", saved(save, **COLUMNS)) for save in (np.savez, np.savez_compressed)]
    found += [
        (".npz", saved(np.savez_compressed, prediction=np.asfortranarray(np.ones((3, 2))), target=np.ones((3, 2))))
    ]
    found += [
        (".csv", text.encode())
        for text in ("prediction,target\n0.5,1\n0.25,0\n", '"target",prediction\r\ntrue,1e-3\r\n')
    ]
    for options in ({"compression": "none"}, {"compression": "zstd", "row_group_size": 2, "data_page_version": "2.0"}):
        found += [
            (".parquet", saved(lambda file, t=t, **o: parquet.write_table(t, file, **o), **options))
            for t in (table, nulls)
        ]
    return tuple(found)


GROUPS = [["prediction"], ["target"]]


def read(path: Path, groups: Any = GROUPS, skipped: int = 0) -> list[np.ndarray] | FormatError:
    """What is in the file behind some rows, or why it cannot be read."""
    try:
        with within(SECONDS):
            source = files.open_source(str(path), None if path.suffix == ".npy" else groups)
            parts = []
            if skipped:
                assert source.skip(skipped) == source.taken <= skipped
            while len((part := source.take(1000))[0]) and len(parts) < 100:
                assert [one.shape[1:] for one in part] == source.shapes
                assert len({len(one) for one in part}) == 1
                parts.append(part)
            assert source.rows in (None, source.taken) or len(parts) == 100
    except Exception as error:
        refused(error)
        return error  # type: ignore[return-value]
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]  # Nothing, if all was passed over.


def command(*arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of gpubce evaluate: 0 and figures, or 2 and one line."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), within(SECONDS):
        code = main(["evaluate", *map(str, arguments), "--no-progress"])
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    figures, said = texts
    if code == 0:
        assert "normalized entropy" in figures
        assert said == "" or said.startswith("gpubce: note: ")
    else:
        assert (code, figures) == (2, "")
        assert said.startswith("gpubce: error: ") and said.endswith("\n")
    assert said.count("\n") <= 1
    return code, figures, said


# Mutations ----------------------------------------------------------------------------------------------------------

EXTREMES = tuple(
    bytes.fromhex(text) for text in ("ffffffff", "ffffff7f", "00000080", "00000000", "ff" * 7 + "7f", "ff" * 8)
)


@st.composite
def mutated(draw, suffix: str) -> bytes:
    """A valid file with a few bytes changed, cut out, repeated, or taken from another valid file."""
    own = [content for kind, content in seeds() if kind == suffix]
    data = bytearray(draw(st.sampled_from(own)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        place, other = (draw(st.integers(0, len(data) - 1)) for _ in range(2))
        action = draw(st.sampled_from(["bit", "byte", "extreme", "cut", "truncate", "repeat", "splice"]))
        if action == "bit":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif action == "byte":
            data[place] = draw(st.integers(0, 255))
        elif action == "extreme":
            value = draw(st.sampled_from(EXTREMES))
            data[place : place + len(value)] = value
        elif action == "cut":
            del data[min(place, other) : max(place, other)]
        elif action == "truncate":
            del data[place:]
        elif action == "repeat":
            data[place:place] = data[other : other + draw(st.integers(1, 64))]
        else:
            donor = draw(st.sampled_from(seeds()))[1]
            data[place:] = donor[min(other, len(donor)) :]
    return bytes(data)


@examples(150, 4_000)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_are_read_or_refused(suffix, profile, tmp_path):
    numbers = iter(range(10**9))

    @profile
    @given(mutated(suffix))
    def law(data):
        # A name of its own: a file that is mapped must not become shorter.
        path = tmp_path / f"{next(numbers)}{suffix}"
        path.write_bytes(data)
        read(path)
        read(path, skipped=3)
        path.unlink()

    law()


@examples(60, 1_500)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_command_on_damaged_files_gives_figures_or_one_line(suffix, profile, tmp_path):
    numbers = iter(range(10**9))
    others = [".npy"] if suffix == ".npy" else []
    (tmp_path / "other.npy").write_bytes(npy(COLUMNS["target"]))

    @profile
    @given(mutated(suffix), st.sampled_from([[], ["--logits"], ["--batch", "2"], ["--ignore-index", "0"]]))
    def law(data, options):
        path = tmp_path / f"{next(numbers)}{suffix}"
        path.write_bytes(data)
        command(path, *[tmp_path / f"other{other}" for other in others], *options)
        path.unlink()

    with idle():  # What is computed is no matter here, and every type would be a kernel of its own.
        law()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("contents", SUFFIXES)
def test_mislabelled_files(contents, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(next(content for kind, content in seeds() if kind == contents))
    assert isinstance(read(path), list) == (contents == suffix)
    other = [path] if suffix == ".npy" else []
    assert command(path, *other)[0] == (0 if contents == suffix else 2)


# Headers that lie ---------------------------------------------------------------------------------------------------

HEADERS = {
    "2^62 elements": npy_of(claiming("(4611686018427387904,)")),
    "2^62 elements of a byte": npy_of(claiming("(4611686018427387904,)", "|b1")),
    "more bytes than there are numbers": npy_of(claiming("(9223372036854775807,)")),
    "2^64 rows": npy_of(claiming("(18446744073709551616,)")),
    "2^64 rows of nothing": npy_of(claiming("(18446744073709551616, 0)")),
    "no rows of 2^63": npy_of(claiming("(0, 9223372036854775807)")),
    "no rows of 2^200": npy_of(claiming(f"(0, {2**200})")),
    "a shape of 4000 digits": npy_of(claiming(f"({10**4000}, {10**3000})")),
    "less than nothing": npy_of(claiming("(-1, 0)")),
    "65 axes": npy_of(claiming("(" + "1, " * 65 + ")"), data=b"\0" * 8),
    "500 axes of 2^63": npy_of(claiming("(" + f"{2**63 - 1}, " * 400 + ")")),
    "a fraction of a row": npy_of(claiming("(1.5,)")),
    "a header of 4 GB": npy_of(claiming("(1,)"), 2, 2**32 - 1, b"\0" * 100),
    "a header of 2 GB": npy_of(claiming("(1,)"), 3, 2**31, b"\0" * 100),
    "a header of 64 kB": npy_of(" " * 65000 + claiming("(1,)"), 1, None, b"\0" * 8),
    "a header cut short": npy_of(claiming("(1,)"), 1, 5000),
    "nothing behind the version": b"\x93NUMPY\x01\x00",
    "an unknown version": npy_of(claiming("(1,)"), 9, None, b"\0" * 8),
    "parentheses, deep": npy_of("(" * 9000),
    "signs, deep": npy_of(claiming("-" * 9000 + "1")),
    "brackets, deep": npy_of(claiming("[" * 4000 + "]" * 4000)),
    "a name": npy_of(claiming("__import__('os').abort()")),
    "a call": npy_of("__import__('os').abort()"),
    "zero bytes": npy_of(b"\0" * 118),
    "no UTF-8": npy_of(b"\xff" * 118, 3),
    "a type that does not exist": npy_of(claiming("(1,)", "<x9"), data=b"\0" * 16),
    "a type of no bytes": npy_of(claiming("(4611686018427387904,)", "|V0")),
    "words of no bytes": npy_of(claiming("(4611686018427387904,)", "<U0")),
    "records": npy_of(claiming("(1,)", [("a", "<f8")]), data=b"\0" * 8),
    "records in records": npy_of(claiming("(1,)", [("a", [("b", "<f8", (2, 3))])]), data=b"\0" * 48),
    "records of 2^40 bytes": npy_of(claiming("(1,)", [("a", "<f8", (2**37,))])),
    "objects": npy_of(claiming("(1,)", "|O"), data=pickle.dumps([1])),
    "objects in records": npy_of(claiming("(1,)", [("a", "|O")]), data=pickle.dumps([1])),
    "dates": npy_of(claiming("(1,)", "<M8[s]"), data=b"\0" * 8),
    "dates of a unit that does not exist": npy_of(claiming("(1,)", "<M8[q]"), data=b"\0" * 8),
    "complex numbers": npy_of(claiming("(1,)", "<c8"), data=b"\0" * 8),
    "long double": npy_of(claiming("(1,)", "<f16"), data=b"\0" * 16),
}


@contextlib.contextmanager
def little_memory(most: float = MEMORY) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / 1e6:.1f} MB"


@pytest.mark.parametrize("place", ["npy", "stored", "deflated"])
@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie_are_refused_at_no_cost(content, place, tmp_path):
    path = tmp_path / ("a.npy" if place == "npy" else "a.npz")
    method = zipfile.ZIP_DEFLATED if place == "deflated" else zipfile.ZIP_STORED
    path.write_bytes(content if place == "npy" else npz({"prediction.npy": content}, method))
    with little_memory():
        found = read(path, [["prediction"]])
    assert isinstance(found, FormatError), found


def test_a_file_of_python_2_is_read_without_a_word(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy_of(claiming("(2L,)"), data=np.ones(2).tobytes()))
    (found,) = read(path)
    assert found.tolist() == [1, 1]


# Pickles ------------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["a.npy", "stored.npz", "deflated.npz", "b.csv", "c.parquet"])
def test_pickles_are_never_loaded(name, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / name
    bomb = np.array([Bomb(trace)], object)
    content = saved(lambda file: np.lib.format.write_array(file, bomb, allow_pickle=True))
    if name.endswith(".npz"):
        method = zipfile.ZIP_DEFLATED if name.startswith("deflated") else zipfile.ZIP_STORED
        content = npz({"prediction.npy": content, "target.npy": content, "bare.pkl": pickle.dumps(Bomb(trace))}, method)
    path.write_bytes(content)
    for groups in (GROUPS, [["bare.pkl"]]):
        assert isinstance(read(path, groups), FormatError)
    assert command(path, *[path] * (path.suffix == ".npy"))[0] == 2
    path.write_bytes(pickle.dumps(Bomb(trace)))
    assert isinstance(read(path), FormatError)
    assert not trace.exists()
    np.load(io.BytesIO(saved(lambda file: np.lib.format.write_array(file, bomb))), allow_pickle=True)
    assert trace.exists()  # The bomb is one.


# Zip files ----------------------------------------------------------------------------------------------------------


def zeros_of(length: int) -> bytes:
    return npy_of(claiming(f"({length},)")) + bytes(8 * length)


def test_a_compressed_array_is_streamed(tmp_path):
    """A bomb of 50 kB that takes 48 MB: it costs time only."""
    path, rows = tmp_path / "a.npz", 6_000_000
    path.write_bytes(npz({"prediction.npy": zeros_of(rows), "target.npy": zeros_of(rows)}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 200_000
    with little_memory(16e6):
        source, taken = files.open_source(str(path), GROUPS), 0
        while len(part := source.take(100_000)[0]):
            taken += len(part)
            assert not part.any()
    assert taken == source.rows == rows


def lengthen(data: bytearray, size: int) -> None:
    """Let the directory of a zip file say that its first member has this many bytes."""
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", size)


@pytest.mark.parametrize(
    ("shape", "fortran"), [((2, 2**27), True), ((1, 2**28), False)], ids=["Fortran order", "one row"]
)
def test_compressed_arrays_that_must_be_in_memory_are_refused_if_large(shape, fortran, tmp_path):
    path, content = tmp_path / "a.npz", npy_of(claiming(shape, fortran=fortran))
    data = bytearray(npz({"prediction.npy": content}, zipfile.ZIP_DEFLATED))
    lengthen(data, 2**32 - 2)
    path.write_bytes(data)
    with little_memory():
        found = read(path, [["prediction"]])
    assert "bytes of it would be in memory at once: save it with numpy.savez" in str(found)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("claimed", [9, 10])
def test_compressed_arrays_that_end_early(claimed, fortran, tmp_path):
    path = tmp_path / "a.npz"
    content = npy_of(claiming(f"({claimed}, 2)", fortran=fortran), data=np.arange(18.0).tobytes())
    for extra, said in ((b"", 0), (b"\0" * 8, 0), (b"", 10**6)):
        data = bytearray(npz({"prediction.npy": content + extra}, zipfile.ZIP_DEFLATED))
        if said:
            lengthen(data, said)
        path.write_bytes(data)
        found = read(path, [["prediction"]])
        if claimed == 10:
            assert "is truncated" in str(found)
        else:
            expected = np.arange(18.0).reshape(9, 2, order="F" if fortran else "C")
            np.testing.assert_array_equal(found[0], expected)


def test_an_array_ends_where_its_member_does(tmp_path):
    """Its header claims the rows of its neighbour too."""
    path, content = tmp_path / "a.npz", npy(np.zeros(2))
    path.write_bytes(npz({"prediction.npy": content.replace(b"(2,)", b"(9,)"), "target.npy": npy(np.ones(100))}))
    assert "is truncated: shape (9,) of float64 takes 72 bytes, 16 are there" in str(read(path, [["prediction"]]))


def test_names_of_members_are_names_only(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    names = ("../up", "/tmp/absolute", "..\\up", "C:\\up", "a/b", "", ".", "\n", "e\u0301", "x" * 60_000)
    path = folder / "a.npz"
    path.write_bytes(npz({f"{name}.npy": npy(np.full(3, k)) for k, name in enumerate(names)}))
    with zipfile.ZipFile(path) as archive:
        written = [name.removesuffix(".npy") for name in archive.namelist()]
    for k, name in enumerate(written):
        assert read(path, [[name]])[0].tolist() == [k] * 3
    assert sorted(tmp_path.rglob("*")) == [folder, path]
    assert command(path)[2].startswith(f"gpubce: error: {path} has no array 'prediction': it has ")


def test_members_that_cannot_be_meant_are_refused(tmp_path):
    path, content = tmp_path / "a.npz", npy(np.ones(3))
    path.write_bytes(npz({"prediction.npy": content, "prediction.npy ": content}))
    assert str(read(path, [["prediction"]])).endswith("has 2 arrays named 'prediction': rename all but one")
    path.write_bytes(npz({"prediction.npy": content, "prediction": content}))
    assert str(read(path, [["prediction"]])).endswith("has 2 arrays named 'prediction': rename all but one")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path.write_bytes(npz({"prediction.npy": content}, method))
        assert f"is compressed by method {method}: save it with numpy.savez_compressed" in str(
            read(path, [["prediction"]])
        )
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = bytearray(npz({"prediction.npy": content}, method))
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(signature) + offset] |= 1
        path.write_bytes(data)
        assert "array 'prediction' is encrypted" in str(read(path, [["prediction"]]))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_byte_of_a_zip_files_headers(method, tmp_path):
    """Each byte but those of the data, with each of its bits changed."""
    data = npz({"prediction.npy": npy(np.float32([0.25, 0.5]))}, method)
    path, numbers = tmp_path / "a.npz", iter(range(10**9))
    for place in [*range(60), *range(data.index(b"PK\x01\x02"), len(data))]:
        for value in {data[place] ^ 1, data[place] ^ 128, 0, 255}:
            path = tmp_path / f"{next(numbers)}.npz"
            path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            found = read(path, [["prediction"]])
            if isinstance(found, list):
                np.testing.assert_array_equal(found[0], np.float32([0.25, 0.5]))


# Parquet ------------------------------------------------------------------------------------------------------------


def test_a_parquet_file_has_as_many_rows_as_it_says(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prediction": np.full(40, 0.5)}), path)
    whole, lies = path.read_bytes(), 0
    for place in range(len(whole) - 400, len(whole) - 8):
        path = tmp_path / f"{place}.parquet"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with contextlib.suppress(Exception):
            lies += parquet.read_metadata(path).num_rows != 40
        found = read(path, [["prediction"]])
        if isinstance(found, list):
            assert len(found[0]) == parquet.read_metadata(path).num_rows
    assert lies


# Places -------------------------------------------------------------------------------------------------------------

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other kinds of files")


@POSIX
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_places_that_are_no_files(suffix, tmp_path):
    pipe, loop, null, zero, folder = (
        tmp_path / f"{name}{suffix}" for name in ("pipe", "loop", "null", "zero", "folder")
    )
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    null.symlink_to("/dev/null")
    zero.symlink_to("/dev/zero")
    folder.mkdir()
    expected = {
        pipe: "is not a file but a pipe or a device: copy what it gives to a file",
        null: "is not a file but a pipe or a device: copy what it gives to a file",
        zero: "is not a file but a pipe or a device: copy what it gives to a file",
        loop: "cannot be read: Too many levels of symbolic links",
        folder: "is a directory: name a file in it",
        tmp_path / f"{'x' * 300}{suffix}": "cannot be read: File name too long",
        pipe / f"a{suffix}": "cannot be read: Not a directory",
    }
    for path, message in expected.items():
        assert str(read(path)) == f"{path} {message}"
        if path != folder:  # The command reads the files in a directory.
            assert command(path, *[path] * (suffix == ".npy"))[2] == f"gpubce: error: {path} {message}\n"
    for name in ("/dev/zero", "/dev/null"):
        assert command(name, name)[0] == 2


@POSIX
def test_a_socket_is_no_file(tmp_path):
    path = tmp_path / "a.npz"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))
        assert "is not a file but a pipe or a device" in str(read(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name", ["a\nb", " ", "-", "--json", "%s", "a'b\"c", "\x1b[31m", "e\u0301", "\udcff", "a?b#c", "s3:"]
)
def test_names_of_files_are_names_only(name, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{name}{suffix}"
    try:
        path.write_bytes(next(content for kind, content in seeds() if kind == suffix))
    except OSError:
        pytest.skip("this file system has no such names")
    code, figures, said = command(f"./{name}{suffix}", *[f"./{name}{suffix}"] * (suffix == ".npy"))
    if name == "\udcff" and suffix in (".csv", ".parquet"):
        assert (code, said.count("\n")) == (2, 1)  # pyarrow takes names of UTF-8 only.
        return
    assert (code, said) == (0, "")
    assert figures.count("\n") == 10 + (name == "a\nb") * (1 + (suffix == ".npy"))


def test_names_that_no_file_has(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(saved(np.savez, **COLUMNS))
    assert "is not the name of a file" in command("a\0b.npz")[2]
    assert "is not the name of a file" in command("a.npz", "b\0.npz")[2] or command("a.npz")[0] == 2
    assert "--json 'a\\x00b' is not the name of a file" in command(path, "--json", "a\0b")[2]
    assert command("")[0] == command(".")[0] == command("..")[0] == command(".npz")[0] == 2


# Values -------------------------------------------------------------------------------------------------------------


def test_signalling_nans_are_nans(tmp_path):
    for kind, bits in (("f2", 0x7C01), ("f4", 0x7F800001), ("f8", 0x7FF0000000000001)):
        values = np.full(4, bits, f"u{kind[1]}").view(kind)
        path = tmp_path / f"{kind}.npz"
        path.write_bytes(saved(np.savez, prediction=values, target=np.ones(4, np.uint8)))
        code, _, said = command(path)
        assert code == 0
        assert said.endswith("4 predictions are NaN, the first in row 0: the loss is NaN\n")


def test_bools_of_other_bytes_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(saved(np.savez, prediction=np.full(2, 0.5), target=np.uint8([1, 7]).view(bool)))
    assert command(path)[2] == (
        "gpubce: error: 1 of 2 elements are invalid: they hold bytes that are no value of their type, as a bool that "
        "is neither 0 nor 1: make them anew, with != 0\n"
    )
