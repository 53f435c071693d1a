"""Read columns of numbers from .npy, .npz, .csv and .parquet files, a piece at a time.

Every format gives a :class:`Source`, so what is read, and in which batches, does not depend on the format. Arrays of
.npy files and uncompressed arrays of .npz files are memory-mapped, compressed ones are streamed; .csv and .parquet are
streamed with pyarrow, which is optional. A source can pass over rows: arrays that are mapped and row groups of .parquet
are then not read. Every failure is a FormatError or MissingDependencyError that names the file.

Nothing that a file says is believed before it is compared with the file: a damaged or hostile one costs no more memory
than a good one. Pickled objects are refused, never loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import mmap
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpubce.arrays.buffer import first_line
from gpubce.checks import shown
from gpubce.errors import FormatError, MissingDependencyError

Piece = Mapping[str, np.ndarray]
"""Columns by name, with equally many rows."""

BLOCK_ROWS = 1 << 16
"""Rows that a Parquet file is asked for at a time: a few of these make a batch."""

BUFFER_BYTES = 1 << 20
"""What is read of a Parquet column at a time."""

WINDOW_BYTES = 1 << 26
"""Of a mapped array: the system is asked for so much ahead, and what lies before it is given back. A map that is read
to its end would otherwise count as memory in use, all of it. Much smaller windows cost time at their edges, where a
batch is copied."""

TYPES = {"halffloat": "f2", "float": "f4", "double": "f8", "bool": "?"}
TYPES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""The types of Arrow that can be read, and NumPy's names for them."""

LONGEST_HEADER = 10_000
"""Bytes of a .npy file's header: NumPy's own limit, here before they are read."""

MOST_AXES = 64
"""NumPy's."""

MOST_NAMES = 50
"""Names of columns that a message lists."""

LARGEST_PART = 1 << 30
"""Bytes of a compressed array that may have to be in memory at once: a row, or all of it in Fortran order."""

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""The head of a zip file's member: signature, length of the name, length of the extra field."""


Pieces = Callable[[int], tuple[int, Iterator[Piece]]]
"""Given a number of rows to pass over: how many of them need not be read, and the columns from there on, in consecutive
pieces of any length."""


class Source:
    """Columns of one file, or of several one after the other, to be read once, from the first row to the last.

    Parameters
    ----------
    path : str
        The file, as the user named it.
    groups : sequence of sequences of str
        What :meth:`take` gives: one array for each group; a group of several columns has them side by side.
    shapes : mapping from column to the shape of one row
    types : mapping from column to the type of its elements
    rows : int or None
        How many rows there are, where that is known before reading.
    begin : Pieces
        Called once, when the first row is wanted.
    decodes : bool
        Whether reading takes a processor's time, so that a thread of its own is worth it.
    """

    def __init__(
        self,
        path: str,
        groups: Sequence[Sequence[str]],
        shapes: Mapping[str, tuple[int, ...]],
        types: Mapping[str, np.dtype],
        rows: int | None,
        begin: Pieces,
        decodes: bool,
    ):
        self.path = path
        self.files = [path]
        self.groups = [tuple(group) for group in groups]
        self.types = {name: kind.newbyteorder("=") for name, kind in types.items()}
        self.rows = rows
        self.decodes = decodes
        self.taken = 0
        self._begin = begin
        self._pieces: Iterator[Piece] | None = None
        self._rest: Piece | None = None
        for group in self.groups:
            for name in group:
                if len(group) > 1 and shapes[name]:
                    raise FormatError(
                        f"{path}: array {name!r} has {len(shapes[name]) + 1} axes: only arrays of one axis can be put "
                        "side by side, name one array"
                    )
        self.shapes = [(len(group),) if len(group) > 1 else shapes[group[0]] for group in self.groups]

    def skip(self, rows: int) -> int:
        """Pass over the first rows, before any are taken. They are not read where the format allows it. How many there
        were: fewer at the end of the file."""
        self.taken, self._pieces = self._begin(rows)
        while self.taken < rows and (piece := next(self._pieces, None)) is not None:
            passed = min(_rows(piece), rows - self.taken)
            self.taken += passed
            if passed < _rows(piece):
                self._rest = {name: column[passed:] for name, column in piece.items()}
        return self.taken

    def pieces(self) -> Iterator[Piece]:
        """What has not been taken."""
        following = self._following()
        rest, self._rest = self._rest, None
        if rest is not None:
            yield rest
        yield from following

    def take(self, rows: int) -> list[np.ndarray]:
        """The next ``rows`` rows of each group, fewer at the end of the file."""
        following = self._following()
        parts: list[Piece] = []
        missing = rows
        while missing:
            if self._rest is None:
                self._rest = next(following, None)
                if self._rest is None:
                    break
            length = _rows(self._rest)
            parts.append({name: column[:missing] for name, column in self._rest.items()})
            self._rest = {name: column[missing:] for name, column in self._rest.items()} if length > missing else None
            missing -= min(missing, length)
        self.taken += rows - missing
        return [self._group(parts, group, shape) for group, shape in zip(self.groups, self.shapes, strict=True)]

    def _following(self) -> Iterator[Piece]:
        if self._pieces is None:
            self.taken, self._pieces = self._begin(0)
        return self._pieces

    def drain(self) -> int:
        """Read to the end; how many rows the file has."""
        while len(self.take(BLOCK_ROWS)[0]):
            pass
        return self.taken

    def locate(self, row: int) -> tuple[str, int]:
        """The file that holds a row that was read or passed over, and the row's number in it."""
        return self.path, row

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
        try:
            found = place.stat()
        except ValueError as error:  # A name with a zero byte, or that the file system cannot encode.
            raise FormatError(f"{path!r} is not the name of a file: {error}") from None
        if stat.S_ISDIR(found.st_mode):
            raise FormatError(f"{path} is a directory: name a file in it")
        if not stat.S_ISREG(found.st_mode):  # Opening a pipe waits for somebody to write to it.
            raise FormatError(f"{path} is not a file but a pipe or a device: copy what it gives to a file")
        if found.st_size == 0:
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
    return _arrays(path, [[""]], {"": _mapped(path, 0, None, path)})


def read_npz(path: str, groups: Sequence[Sequence[str]] | None) -> Source:
    """Arrays of a .npz file, memory-mapped if they are not compressed, else streamed."""
    names = _wanted(groups)

    def opened() -> Source:
        with zipfile.ZipFile(path) as archive:
            members = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
            _require(path, "array", names, [name for name, _ in members])
            by_name = dict(members)
            return _arrays(path, groups or [], {name: _member(path, archive, by_name[name], name) for name in names})

    return _unzipped(path, opened)


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

    def begin(skipped: int) -> tuple[int, Iterator[Piece]]:
        return 0, _streamed(path, names, reader, 0, None, header)

    kinds = {name: np.dtype(TYPES["bool" if types[name] == "bool" else "double"]) for name in names}
    return Source(path, groups or [], dict.fromkeys(names, ()), kinds, None, begin, decodes=True)


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
    rows = file.metadata.num_rows

    def begin(skipped: int) -> tuple[int, Iterator[Piece]]:
        """From the row group that holds the first row that is wanted."""
        passed, group = 0, 0
        while group < file.num_row_groups and 0 <= (own := file.metadata.row_group(group).num_rows) <= skipped - passed:
            passed, group = passed + own, group + 1
        wanted = range(group, file.num_row_groups)
        batches = _arrow(path, lambda: file.iter_batches(batch_size=BLOCK_ROWS, row_groups=wanted, columns=names))
        return passed, _streamed(path, names, batches, passed, rows)

    types = {name: np.dtype(TYPES[kind]) for name, kind in kinds if name in names}
    return Source(path, groups or [], dict.fromkeys(names, ()), types, rows, begin, decodes=True)


READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv, ".parquet": read_parquet}


# Arrays in files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compressed:
    """An array of a .npz file that is compressed: its rows can only be read one after the other."""

    member: zipfile.ZipInfo
    begin: int
    """Bytes of the member before the first row."""
    shape: tuple[int, ...]
    dtype: np.dtype
    where: str

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def read(self, path: str, stream: Any, rows: int) -> np.ndarray:
        """The next rows."""
        data = _unzipped(path, lambda: stream.read(rows * self.row_bytes))
        if len(data) < rows * self.row_bytes:
            raise FormatError(f"{self.where} is truncated: it ends before its last row; write it again")
        return np.ndarray((rows, *self.shape[1:]), self.dtype, data)


@dataclass(frozen=True)
class _Mapped:
    """An array in a file that is mapped, or (``memory`` is None) in memory already."""

    array: np.ndarray
    memory: mmap.mmap | None
    begin: int
    """Bytes of the map before the first row."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def expect(self, start: int, stop: int) -> None:
        """These rows will be read soon. 2 x 10^8 rows of float16 and uint8 from a cold disk, in millions a second: 52
        to 90 without this, 93 to 115 with it, 102 to 130 with a thread that reads. From memory all are the same."""
        self._advise("MADV_WILLNEED", start, stop)

    def release(self, start: int, stop: int) -> None:
        """These rows were read. Whoever still holds them can read them again."""
        self._advise("MADV_DONTNEED", start, stop)

    def _advise(self, name: str, start: int, stop: int) -> None:
        advice = getattr(mmap, name, None)  # Windows has none.
        if self.memory is None or advice is None or not self.array.flags.c_contiguous or stop <= start:
            return
        first = self.begin + start * self.row_bytes
        first -= first % mmap.PAGESIZE
        with contextlib.suppress(OSError):  # Advice.
            self.memory.madvise(advice, first, self.begin + stop * self.row_bytes - first)


_Array = _Mapped | _Compressed


def _arrays(path: str, groups: Sequence[Sequence[str]], arrays: dict[str, _Array]) -> Source:
    """A source of whole arrays."""
    for name, array in arrays.items():
        if not array.shape:
            where = f"{path}: array {name!r}" if name else path
            raise FormatError(f"{where} is a single number: rows are counted along the first axis, give it one")
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} has {length} rows" for name, length in lengths.items())
        raise FormatError(f"{path}: {listed}: they must be equal")
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    types = {name: array.dtype for name, array in arrays.items()}
    rows = next(iter(lengths.values()))
    compressed = any(isinstance(array, _Compressed) for array in arrays.values())

    def begin(skipped: int) -> tuple[int, Iterator[Piece]]:
        passed = 0 if compressed else min(skipped, rows)
        return passed, _pieces(path, arrays, passed, rows)

    return Source(path, groups, shapes, types, rows, begin, decodes=compressed)


def _pieces(path: str, arrays: dict[str, _Array], first: int, rows: int) -> Iterator[Piece]:
    """The arrays from this row to the last."""
    compressed = {name: array for name, array in arrays.items() if isinstance(array, _Compressed)}
    mapped = {name: array for name, array in arrays.items() if isinstance(array, _Mapped)}
    width = max(array.row_bytes for array in (compressed or arrays).values())
    step = max(1, (BUFFER_BYTES if compressed else WINDOW_BYTES) // width) if width else max(1, rows)
    with contextlib.ExitStack() as opened:
        streams = {}
        if compressed:
            archive = opened.enter_context(_unzipped(path, lambda: zipfile.ZipFile(path)))
            streams = {name: opened.enter_context(_opened(path, archive, array)) for name, array in compressed.items()}
        for start in range(first, rows, step):
            stop = min(start + step, rows)
            for array in mapped.values():
                array.expect(stop, min(stop + step, rows))
            streamed = {name: array.read(path, streams[name], stop - start) for name, array in compressed.items()}
            yield {name: array.array[start:stop] for name, array in mapped.items()} | streamed
            for array in mapped.values():
                array.release(start, stop)


def _opened(path: str, archive: zipfile.ZipFile, array: _Compressed) -> Any:
    """The stream of a compressed array, at its first row."""
    stream = _unzipped(path, lambda: archive.open(array.member))
    _unzipped(path, lambda: stream.read(array.begin))
    return stream


def _mapped(path: str, offset: int, length: int | None, where: str) -> _Mapped:
    """The array in .npy format that begins at this byte of the file, and takes ``length`` bytes or the rest of it."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        end = size if length is None else min(size, offset + length)
        file.seek(offset)
        if file.read(6) != b"\x93NUMPY":
            raise FormatError(f"{where} is not in .npy format (its first bytes are others): write it with numpy.save")
        file.seek(offset)
        shape, fortran, dtype = _header(file, where)
        begin = file.tell()
        needed = dtype.itemsize * math.prod(shape)
        if end - begin < needed:
            raise FormatError(
                f"{where} is truncated: shape {shape} of {dtype} takes {needed} bytes, {max(0, end - begin)} are "
                "there; write it again"
            )
        try:
            if needed == 0:
                return _Mapped(np.empty(shape, dtype), None, begin)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _Mapped(np.ndarray(shape, dtype, memory, begin, order="F" if fortran else "C"), memory, begin)
        except (ValueError, OverflowError) as error:
            raise FormatError(f"{where} cannot be mapped: {first_line(error)}") from error


def _header(file: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran order, type) of the array in .npy format that begins here in the file."""
    damaged = f"{where} cannot be read, it may be damaged"
    try:
        version = np.lib.format.read_magic(file)
    except ValueError as error:
        raise FormatError(f"{damaged}: {first_line(error)}") from error
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FormatError(f"{damaged}: version {version} of the format is not known")
    length = file.read(2 if version == (1, 0) else 4)
    count = int.from_bytes(length, "little")
    if count > LONGEST_HEADER:
        raise FormatError(f"{damaged}: its header is said to take {count} bytes, more than {LONGEST_HEADER}")
    text = io.BytesIO(length + file.read(count))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Files of Python 2 can be read.
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(text)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(text)
    except Exception as error:  # It is parsed as Python, nested 1,000 times perhaps, and then as a type.
        raise FormatError(f"{damaged}: {first_line(error)}") from error
    if dtype.hasobject:
        raise FormatError(f"{where} holds Python objects: convert it to numbers and save it again")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise FormatError(f"{where} has type {dtype}: only real numbers of up to 8 bytes and bool can be read")
    if len(shape) > MOST_AXES or not all(0 <= axis < 2**63 for axis in shape):
        raise FormatError(f"{damaged}: its shape is {shown(shape)}")
    return tuple(map(int, shape)), fortran, dtype


def _member(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Array:
    """An array of an .npz file: mapped if it is stored as it is, else to be streamed."""
    where = f"{path}: array {name!r}"
    if info.flag_bits & 1:
        raise FormatError(f"{where} is encrypted: decrypt it, or save it again with numpy.savez")
    if info.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            _, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        begin = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        return _mapped(path, begin, info.file_size, where)
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise FormatError(f"{where} is compressed by method {info.compress_type}: save it with numpy.savez_compressed")
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream, where)
        begin, needed = stream.tell(), dtype.itemsize * math.prod(shape)
        if info.file_size - begin < needed:
            raise FormatError(
                f"{where} is truncated: shape {shape} of {dtype} takes {needed} bytes, {info.file_size - begin} are "
                "there; write it again"
            )
        whole = fortran and len(shape) > 1
        part = needed if whole else dtype.itemsize * math.prod(shape[1:])
        if part > LARGEST_PART:
            raise FormatError(
                f"{where} is compressed, and {part} bytes of it would be in memory at once: save it with numpy.savez"
                + (", or in C order" if whole else "")
            )
        if not whole:
            return _Compressed(info, begin, shape, dtype, where)
        array = _Compressed(info, begin, (1, *shape[::-1]), dtype, where).read(path, stream, 1)[0].T
        return _Mapped(array, None, 0)


def _unzipped(path: str, call: Callable[[], Any]) -> Any:
    """What a call that reads a zip file gives; whatever it finds wrong names the file."""
    try:
        return call()
    except (FormatError, MemoryError):
        raise
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile says BadZipFile, NotImplementedError, struct.error, zlib.error, ValueError ...
        raise FormatError(f"{path} cannot be read as .npz, it may be damaged: {first_line(error)}") from error


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
        message = first_line(error)
    where = path
    if row := re.search(r"Row #(\d+): ", message):
        where += f", row {int(row[1]) - 2}"  # The header line is their row 1.
        message = message.replace(row[0], "")
    if (column := re.search(r"In CSV column #(\d+): ", message)) and int(column[1]) < len(header):
        message = message.replace(column[0], f"column {header[int(column[1])]!r}: ")
    raise FormatError(f"{where} cannot be read as {Path(path).suffix.lower()}: {message}")


def _streamed(
    path: str, names: list[str], batches: Iterable[Any], start: int, rows: int | None, header: Sequence[str] = ()
) -> Iterator[Piece]:
    """The columns of pyarrow's record batches, from row ``start`` to the last of ``rows``, if that is known."""
    iterator = iter(batches)
    while (batch := _arrow(path, lambda: next(iterator, None), header)) is not None:
        yield {name: _column(path, name, batch.column(name), start) for name in names}
        start += batch.num_rows
    if rows not in (None, start):
        raise FormatError(f"{path} says that it has {rows} rows, but {start} are there: it is damaged")


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
            listed = [shown(other) for other in existing[:MOST_NAMES]] + ["..."] * (len(existing) > MOST_NAMES)
            raise FormatError(f"{path} has no {what} {shown(name)}: it has {', '.join(listed) or 'none'}")
        if existing.count(name) > 1:
            raise FormatError(f"{path} has {existing.count(name)} {what}s named {shown(name)}: rename all but one")


def _rows(piece: Piece) -> int:
    return len(next(iter(piece.values())))
