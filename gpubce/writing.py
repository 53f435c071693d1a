"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpubce.errors import OptionError


def check_place(option: str, path: str, inputs: Sequence[str]) -> None:
    """Refuse a file that could not be written, or is read, before the work and not after it."""
    if "\0" in path:
        raise OptionError(f"{option} {path!r} is not the name of a file: it has a zero byte")
    place = Path(path)
    with writing(option, path):
        if place.is_dir() or not place.absolute().parent.is_dir():
            raise OptionError(f"{option} {path} is a directory, or is in none: name a file in a directory that exists")
        if place.exists() and any(place.samefile(other) for other in inputs):
            raise OptionError(f"{option} {path} would overwrite a file that is evaluated: name another")


def write_whole(option: str, path: str, text: str) -> None:
    """Write a text file; a pipe or a device is written as it is."""
    with writing(option, path):
        if path.startswith(("/dev/", "/proc/")) or (Path(path).exists() and not Path(path).is_file()):
            Path(path).write_text(text, encoding="utf-8")
        else:
            _replace(Path(path).resolve(), text)


def _replace(place: Path, text: str) -> None:
    """Write a file so that whoever reads it sees what was there before, or all of the text."""
    unfinished = place.with_name(f".gpubce-{uuid.uuid4().hex}")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            place.open("a").close()  # A file that must not be written to is not replaced either.
            shutil.copymode(place, unfinished)
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(option: str, path: str, failed: str = "written") -> Iterator[None]:
    """Errors of the file system as errors of the option that named the file."""
    try:
        yield
    except OSError as error:
        raise OptionError(f"{option} {path} cannot be {failed}: {error.strerror or error}") from error
