"""Files that are parts of one table: which ones are meant, and their rows as one long stream.

What is read in which batches depends on neither the number of shards nor their lengths.
"""

from __future__ import annotations

import glob
import os
import re
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from gpubce.errors import FormatError
from gpubce.files import BLOCK_ROWS, READERS, Piece, Source, open_source

Item = TypeVar("Item")


def find_shards(name: str) -> list[str]:
    """The files that a user means: one file, those in a directory, or those that match a pattern.

    They are in natural order, part-2 before part-10. Of a directory they are the files with a known suffix; names that
    begin with a dot or an underscore are left out, as Hadoop, Spark and pyarrow do. A file whose own name looks like a
    pattern is that file.
    """
    known = ", ".join(READERS)
    if "\0" in name:
        return [name]  # Opening it says what is wrong.
    if os.path.isdir(name):
        try:
            own = [entry.path for entry in os.scandir(name) if entry.is_file() and entry.name[0] not in "._"]
        except OSError as error:
            raise FormatError(f"{name} cannot be read: {error.strerror or error}") from error
        found = [path for path in own if _suffix(path) in READERS]
        if not found:
            raise FormatError(f"{name} is a directory without files of a known suffix: use one of {known}")
    elif glob.escape(name) != name and not os.path.lexists(name):
        found = glob.glob(name, recursive=True)
        if not found:
            raise FormatError(f"no file matches {name}: correct the pattern, or name a file or a directory")
    else:
        return [name]
    if len(kinds := sorted({_suffix(path) for path in found})) > 1:
        listed = ", ".join(kind or "no suffix" for kind in kinds)
        raise FormatError(
            f"{name} stands for files of several kinds ({listed}): name those of one, as in '*{kinds[-1]}'"
        )
    return sorted(found, key=_natural)


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _natural(path: str) -> tuple[list[str | int], str]:
    """Sorts text as text and numbers as numbers; text stands in every even place, so they never meet."""
    parts = re.split("([0-9]+)", str(Path(path).with_suffix("")))
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], path


def open_shards(name: str, paths: Sequence[str], groups: Sequence[Sequence[str]] | None) -> Source:
    """The columns of all these files, one after the other. ``name`` is what the user called them.

    Each is opened first to compare it with the others, and later to be read, so that not all are open at once.
    """
    if len(paths) == 1:
        return open_source(paths[0], groups)
    first = open_source(paths[0], groups)
    lengths = [first.rows]
    for path in paths[1:]:
        source = open_source(path, groups)
        _same_form(source, first)
        lengths.append(source.rows)
    return _Shards(name, paths, groups, first, lengths)


def _same_form(source: Source, first: Source) -> None:
    for shape, other, group in zip(source.shapes, first.shapes, source.groups, strict=True):
        if shape != other:
            what = f"a row of {group[0]!r}" if group[0] else "a row"
            raise FormatError(
                f"{source.path}: {what} has shape {shape}, in {first.path} {other}: all shards must have the same"
            )
    for column, kind in source.types.items():
        if kind != first.types[column]:
            what = f"{column!r} has" if column else "it has"
            raise FormatError(
                f"{source.path}: {what} type {kind}, in {first.path} {first.types[column]}: all shards must have the "
                "same, convert one"
            )


class _Shards(Source):
    """Several files as one source."""

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        groups: Sequence[Sequence[str]] | None,
        first: Source,
        lengths: Sequence[int | None],
    ):
        known = [length for length in lengths if length is not None]
        rows = sum(known) if len(known) == len(lengths) else None
        shapes: dict[str, tuple[int, ...]] = {column: () for group in first.groups for column in group}
        shapes |= {group[0]: shape for group, shape in zip(first.groups, first.shapes, strict=True) if len(group) == 1}
        super().__init__(name, first.groups, shapes, first.types, rows, self._from, first.decodes)
        self.files = list(paths)
        self._wanted = groups
        self._lengths = lengths
        self._starts: list[int] = []
        """The first row of every shard that was opened or passed over."""

    def locate(self, row: int) -> tuple[str, int]:
        shard = bisect_right(self._starts, row) - 1
        return self.files[shard], row - self._starts[shard]

    def _from(self, skipped: int) -> tuple[int, Iterator[Piece]]:
        passed = 0
        for shard, (path, length) in enumerate(zip(self.files, self._lengths, strict=True)):
            self._starts.append(passed)
            if length is not None and length <= skipped - passed:
                passed += length
                continue
            source = self._open(path, length)
            passed += source.skip(skipped - passed)
            if passed == skipped:
                return passed, self._joined(source, shard + 1, passed)
        return passed, iter(())

    def _joined(self, source: Source, following: int, start: int) -> Iterator[Piece]:
        """What is left of this shard, and those that follow."""
        while True:
            for piece in source.pieces():
                length = len(next(iter(piece.values())))
                start += length
                # A mapped array keeps its file open, and a batch may take thousands of small shards.
                yield {name: column.copy() for name, column in piece.items()} if length < BLOCK_ROWS else piece
            if following == len(self.files):
                return
            self._starts.append(start)
            source = self._open(self.files[following], self._lengths[following])
            following += 1

    def _open(self, path: str, length: int | None) -> Source:
        source = open_source(path, self._wanted)
        if source.rows != length or source.shapes != self.shapes or source.types != self.types:
            raise FormatError(f"{path} was changed while it was read: begin again")
        return source


def read_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; each is made by a thread while the one before it is in use. Close it to end the thread.

    For .parquet, .csv and compressed .npz only, which take a processor's time: on two cores that compute as well, 3 x
    10^7 rows of .parquet went from 71 to 98 million a second to 86 to 109. Mapped arrays gain nothing.
    """
    end = object()
    with ThreadPoolExecutor(1, "gpubce-reader") as reader:
        try:
            following = reader.submit(next, items, end)
            while (item := following.result()) is not end:
                following = reader.submit(next, items, end)
                yield item  # type: ignore[misc]
        finally:
            # By the thread that made them: a GPU is current in one thread.
            reader.submit(getattr(items, "close", int))
