"""Read columns of numbers from .npy, .npz, .csv and .parquet files, a piece at a time.

Every format gives a :class:`Source`, so what is read, and in which batches, does not depend on the format. Arrays of
.npy files and uncompressed arrays of .npz files are memory-mapped; .csv and .parquet are streamed with pyarrow, which
is optional. Every failure is a FormatError or MissingDependencyError that names the file.
"""

from __future__ import annotations

import importlib
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubce.errors import FormatError, MissingDependencyError

Piece = Mapping[str, np.ndarray]
"""Columns by name, with equally many rows."""

BLOCK_ROWS = 1 << 16
"""Rows that a Parquet file is asked for at a time: a few of these make a batch."""

BUFFER_BYTES = 1 << 20
"""What is read of a Parquet column at a time."""

TYPES = {"halffloat": "f2", "float": "f4", "double": "f8", "bool": "?"}
TYPES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""The types of Arrow that can be read, and NumPy's names for them."""

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""The head of a zip file's member: signature, length of the name, length of the extra field."""


class Source:
    """Columns of one file, to be read once, from the first row to the last.

    Parameters
    ----------
    path : str
        The file, as the user named it.
    groups : sequence of sequences of str
        What :meth:`take` gives: one array for each group; a group of several columns has them side by side.
    shapes : mapping from column to the shape of one row
    rows : int or None
        How many rows there are, where that is known before reading.
    pieces : iterator of Piece
        The columns, in consecutive pieces of any length.
    """

    def __init__(
        self,
        path: str,
        groups: Sequence[Sequence[str]],
        shapes: Mapping[str, tuple[int, ...]],
        rows: int | None,
        pieces: Iterator[Piece],
    ):
        self.path = path
        self.groups = [tuple(group) for group in groups]
        self.rows = rows
        self.taken = 0
        self._pieces = pieces
        self._rest: Piece | None = None
        for group in self.groups:
            for name in group:
                if len(group) > 1 and shapes[name]:
                    raise FormatError(
                        f"{path}: array {name!r} has {len(shapes[name]) + 1} axes: only arrays of one axis can be put "
                        "side by side, name one array"
                    )
        self.shapes = [(len(group),) if len(group) > 1 else shapes[group[0]] for group in self.groups]

    def take(self, rows: int) -> list[np.ndarray]:
        """The next ``rows`` rows of each group, fewer at the end of the file."""
        parts: list[Piece] = []
        missing = rows
        while missing:
            if self._rest is None:
                self._rest = next(self._pieces, None)
                if self._rest is None:
                    break
            length = _rows(self._rest)
            parts.append({name: column[:missing] for name, column in self._rest.items()})
            self._rest = {name: column[missing:] for name, column in self._rest.items()} if length > missing else None
            missing -= min(missing, length)
        self.taken += rows - missing
        return [self._group(parts, group, shape) for group, shape in zip(self.groups, self.shapes, strict=True)]

    def drain(self) -> int:
        """Read to the end; how many rows the file has."""
        while len(self.take(BLOCK_ROWS)[0]):
            pass
        return self.taken

    @staticmethod
    def _group(parts: list[Piece], group: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        if not parts:
            return np.empty((0, *shape))
        columns = [_plain([part[name] for part in parts]) for name in group]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def open_source(path: str, groups: Sequence[Sequence[str]] | None) -> Source:
    """The columns of a file, by its suffix. ``groups`` is None for a .npy file, which has one array and no names."""
    place = Path(path)
    reader = READERS.get(place.suffix.lower())
    try:
        if place.is_dir():
            raise FormatError(f"{path} is a directory: name a file in it")
        if place.stat().st_size == 0:
            raise FormatError(f"{path} is empty (0 bytes)")
        if reader is None:
            raise FormatError(f"{path}: the suffix {place.suffix!r} is not known: use one of {', '.join(READERS)}")
        return reader(path, groups)
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error


def names_columns(path: str) -> bool:
    """Whether a file of this suffix has named columns."""
    return Path(path).suffix.lower() != ".npy"


def read_npy(path: str, groups: Sequence[Sequence[str]] | None) -> Source:
    """The array of a .npy file, memory-mapped. It has no name; its group is [""]."""
    if groups is not None:
        raise FormatError(f"{path} holds one array without a name: leave out its name, or use .npz")
    return _whole(path, [[""]], {"": _mapped(path, 0, path)})


def read_npz(path: str, groups: Sequence[Sequence[str]] | None) -> Source:
    """Arrays of a .npz file, memory-mapped if they are not compressed."""
    names = _wanted(groups)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            _require(path, "array", names, list(members))
            return _whole(path, groups or [], {name: _member(path, archive, members[name], name) for name in names})
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FormatError(f"{path} cannot be read as .npz, it may be damaged: {_first_line(error)}") from error


def read_csv(path: str, groups: Sequence[Sequence[str]] | None) -> Source:
    """Columns of a .csv file with a header, streamed. Numbers are float64, empty cells NaN; true and false bool."""
    csv = _pyarrow("csv", path)
    names = _wanted(groups)
    reading = csv.ReadOptions(use_threads=False)  # With threads, pyarrow's errors do not say the row; 10 % slower.
    # The types that pyarrow guesses are those of the first block only: integers there may be fractions later on.
    guessed = _arrow(path, lambda: [(field.name, str(field.type)) for field in csv.open_csv(path, reading).schema])
    header = [name for name, _ in guessed]
    _require(path, "column", names, header)
    types = {name: "bool" if kind == "bool" else "float64" for name, kind in guessed}
    converting = csv.ConvertOptions(include_columns=names, column_types=types)
    reader = _arrow(path, lambda: csv.open_csv(path, reading, convert_options=converting), header)
    return _streamed(path, groups, names, None, reader, header)


def read_parquet(path: str, groups: Sequence[Sequence[str]] | None) -> Source:
    """Columns of a .parquet file, streamed. Nulls are NaN in columns of floats and refused in others."""
    parquet = _pyarrow("parquet", path)
    names = _wanted(groups)
    # With pyarrow's own settings a file of 75 MB takes 73 MB while it is read, with these 7 MB, and no more time.
    file = _arrow(path, lambda: parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False))
    kinds = _arrow(path, lambda: [(field.name, str(field.type)) for field in file.schema_arrow])
    _require(path, "column", names, [name for name, _ in kinds])
    for name, kind in kinds:
        if name not in names:
            continue
        if kind not in TYPES:
            raise FormatError(f"{path}: column {name!r} has type {kind}: only columns of numbers and bool can be read")
    batches = file.iter_batches(batch_size=BLOCK_ROWS, columns=names)
    return _streamed(path, groups, names, file.metadata.num_rows, batches)


READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv, ".parquet": read_parquet}


# Arrays in files ----------------------------------------------------------------------------------------------------


def _whole(path: str, groups: Sequence[Sequence[str]], arrays: dict[str, np.ndarray]) -> Source:
    """A source of arrays that need not be streamed: mapped, or in memory."""
    for name, array in arrays.items():
        where = f"{path}: array {name!r}" if name else path
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise FormatError(
                f"{where} has type {array.dtype}: only real numbers of up to 8 bytes and bool can be read"
            )
        if not array.ndim:
            raise FormatError(f"{where} is a single number: rows are counted along the first axis, give it one")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} has {length} rows" for name, length in lengths.items())
        raise FormatError(f"{path}: {listed}: they must be equal")
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    return Source(path, groups, shapes, next(iter(lengths.values())), iter([arrays]))


def _mapped(path: str, offset: int, where: str) -> np.ndarray:
    """The array in .npy format that begins at this byte of the file."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(6) != b"\x93NUMPY":
            raise FormatError(f"{where} is not in .npy format (its first bytes are others): write it with numpy.save")
        file.seek(offset)
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        except (ValueError, tokenize.TokenError) as error:
            raise FormatError(f"{where} cannot be read, it may be damaged: {_first_line(error)}") from error
        if dtype.hasobject:
            raise FormatError(f"{where} holds Python objects: convert it to numbers and save it again")
        if 0 in shape:
            return np.empty(shape, dtype)  # An empty map does not exist.
        begin, end = file.tell(), file.seek(0, 2)
    needed = dtype.itemsize * int(np.prod(shape, dtype=object))
    if min(shape, default=0) < 0:
        raise FormatError(f"{where} cannot be read, it may be damaged: its shape is {shape}")
    if end - begin < needed:
        raise FormatError(
            f"{where} is truncated: shape {shape} of {dtype} takes {needed} bytes, {end - begin} are there; write it "
            "again"
        )
    return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")


def _member(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    """An array of an .npz file: mapped if it is stored as it is, else loaded."""
    where = f"{path}: array {name!r}"
    if info.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            _, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        return _mapped(path, info.header_offset + LOCAL_HEADER.size + name_length + extra_length, where)
    try:
        with archive.open(info) as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    except (ValueError, tokenize.TokenError) as error:
        raise FormatError(f"{where} cannot be read, it may be damaged: {_first_line(error)}") from error


def _plain(parts: list[np.ndarray]) -> np.ndarray:
    """One array in native byte order and aligned, copied only if it must be: members of an .npz begin anywhere."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.require(whole, whole.dtype.newbyteorder("="), "A")


# Tables -------------------------------------------------------------------------------------------------------------


def _pyarrow(module: str, path: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise MissingDependencyError(f"{path} needs pyarrow to be read: pip install 'gpubce[cli]'") from error


def _arrow(path: str, call: Callable[[], Any], header: Sequence[str] = ()) -> Any:
    """What a call of pyarrow gives; its errors name the file, and the row and column where they say them."""
    lib = _pyarrow("lib", path)
    try:
        return call()
    except (lib.ArrowException, ValueError, OSError) as error:
        message = _first_line(error)
    where = path
    if row := re.search(r"Row #(\d+): ", message):
        where += f", row {int(row[1]) - 2}"  # The header line is their row 1.
        message = message.replace(row[0], "")
    if (column := re.search(r"In CSV column #(\d+): ", message)) and int(column[1]) < len(header):
        message = message.replace(column[0], f"column {header[int(column[1])]!r}: ")
    raise FormatError(f"{where} cannot be read as {Path(path).suffix.lower()}: {message}")


def _streamed(
    path: str,
    groups: Sequence[Sequence[str]] | None,
    names: list[str],
    rows: int | None,
    batches: Iterable[Any],
    header: Sequence[str] = (),
) -> Source:
    """A source of the record batches of pyarrow."""
    iterator = iter(batches)

    def pieces() -> Iterator[Piece]:
        start = 0
        while (batch := _arrow(path, lambda: next(iterator, None), header)) is not None:
            yield {name: _column(path, name, batch.column(name), start) for name in names}
            start += batch.num_rows

    return Source(path, groups or [], dict.fromkeys(names, ()), rows, pieces())


def _column(path: str, name: str, column: Any, start: int) -> np.ndarray:
    """A column as an array that shares its memory; ``start`` is the row where it begins.

    Its buffers are read here because pyarrow's own to_numpy imports pandas where that is installed: 0.3 s and 28 MB.
    """
    kind = str(column.type)
    valid, data = column.buffers()
    begin, end = column.offset, column.offset + len(column)
    if not len(column):
        return np.empty(0, TYPES[kind])
    array = _bits(data, begin, end) if kind == "bool" else np.frombuffer(data, TYPES[kind])[begin:end]
    if column.null_count:
        missing = ~_bits(valid, begin, end)
        if array.dtype.kind != "f":
            raise FormatError(
                f"{path}, row {start + int(np.argmax(missing))}: column {name!r} is empty (null), and its type {kind} "
                "has no NaN: fill or drop such rows"
            )
        array = np.where(missing, array.dtype.type(np.nan), array)
    return array


def _bits(buffer: Any, begin: int, end: int) -> np.ndarray:
    """Bits of Arrow's bitmaps as booleans."""
    covering = np.frombuffer(buffer, np.uint8)[begin // 8 : (end + 7) // 8]
    return np.unpackbits(covering, bitorder="little")[begin % 8 :][: end - begin].view(np.bool_)


def _wanted(groups: Sequence[Sequence[str]] | None) -> list[str]:
    """The columns to read, each once."""
    return list(dict.fromkeys(name for group in groups or [] for name in group))


def _require(path: str, what: str, names: list[str], existing: list[str]) -> None:
    for name in names:
        if name not in existing:
            raise FormatError(f"{path} has no {what} {name!r}: it has {', '.join(map(repr, existing)) or 'none'}")
        if existing.count(name) > 1:
            raise FormatError(f"{path} has {existing.count(name)} {what}s named {name!r}: rename all but one")


def _rows(piece: Piece) -> int:
    return len(next(iter(piece.values())))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
