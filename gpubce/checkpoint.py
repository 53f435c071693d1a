"""How far a run of ``gpubce evaluate`` has come, in a file, so that another run can go on from there.

The file holds what identifies the run (files with their sizes and times, columns, options, the version of the package:
another one may give other bits), the rows that are done, and the evaluator's state. A digest over all of it shows
damage. The size of batches and the device are no part of it: they change no bit of the figures as float32.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpubce.checks import shown
from gpubce.errors import FormatError, OptionError
from gpubce.files import Source
from gpubce.writing import write_whole, writing

FORMAT = "gpubce evaluate"
BEGINNING = f'{{"state of": "{FORMAT}"'
"""Of every such file, so that no other is read to its end, however large."""

PATIENCE = 20
"""Saving may take one part in so many of the time: a state with many histograms is large."""


class Checkpoint:
    """A state file.

    Parameters
    ----------
    path : str
        Where it is, or will be.
    run : dict
        What identifies the run, from :func:`identity`.
    every : float
        Seconds between two savings.
    """

    def __init__(self, path: str, run: dict[str, Any], every: float):
        self.path = path
        self.run = run
        self.every = every
        self._due = time.monotonic() + every

    def load(self) -> dict[str, Any] | None:
        """What was saved, or None if nothing was. Raises OptionError if it cannot be continued here."""
        with writing("--resume", self.path, "read"):
            if not os.path.lexists(self.path):
                return None
            if not Path(self.path).is_file():
                raise OptionError(f"--resume {self.path} is not a file but a pipe, a device or a link to nothing")
            with open(self.path, "rb") as file:
                text = file.read(len(BEGINNING))
                foreign = text != BEGINNING.encode()
                text += b"" if foreign else file.read()
        if foreign:
            raise OptionError(
                f"--resume {self.path} is not a state that gpubce evaluate has saved: name another file, or a new one"
            )
        try:
            document = json.loads(text)
            digest = document.pop("digest")
        except (ValueError, KeyError, RecursionError):
            digest = None
        if digest is None or digest != _digest(document):
            raise OptionError(f"--resume {self.path} is damaged: remove it to begin anew")
        if found := _difference(document["run"], self.run):
            raise OptionError(
                f"--resume {self.path} is the state of another run: {found}; repeat that run, or remove the file to "
                "begin anew"
            )
        return document["progress"]

    def offer(self, progress: Callable[[], dict[str, Any]]) -> None:
        """Save, if it is time to."""
        began = time.monotonic()
        if began < self._due:
            return
        document: dict[str, Any] = {"state of": FORMAT, "run": self.run, "progress": progress()}
        text = json.dumps(document | {"digest": _digest(document)})
        write_whole("--resume", self.path, text + "\n")
        now = time.monotonic()
        self._due = now + max(self.every, PATIENCE * (now - began) if self.every else 0.0)

    def remove(self) -> None:
        """The run is finished."""
        with writing("--resume", self.path, "removed"):
            Path(self.path).unlink(missing_ok=True)


def identity(sources: Mapping[str, Source], options: Mapping[str, Any], version: str) -> dict[str, Any]:
    """What makes two runs the same: their input, and what is asked of it."""
    files = {role: [_described(path) for path in source.files] for role, source in sources.items()}
    columns = {role: [list(group) for group in source.groups] for role, source in sources.items()}
    return {
        "version": version,
        "files": files,
        "columns": columns,
        "options": {name: repr(value) for name, value in options.items()},
    }


def _described(path: str) -> list[Any]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    return [os.path.abspath(path), found.st_size, found.st_mtime_ns]


def _difference(saved: dict[str, Any], here: dict[str, Any]) -> str | None:
    """The first thing in which two runs differ, in words."""
    if saved["version"] != here["version"]:
        return f"it is of gpubce {saved['version']}, this is {here['version']}"
    for role in saved["files"] | here["files"]:
        before, files = saved["files"].get(role, []), here["files"].get(role, [])
        if (names := [path for path, *_ in before]) != [path for path, *_ in files]:
            return f"its {role} are {_listed(names)}, here {_listed([path for path, *_ in files])}"
        for old, new in zip(before, files, strict=True):
            if old != new:
                return f"{new[0]} has changed since (its size or its time)"
    if saved["columns"] != here["columns"]:
        return f"its columns are {shown(saved['columns'])}, here {shown(here['columns'])}"
    for name, value in here["options"].items():
        if saved["options"].get(name) != value:
            return f"its {name} is {saved['options'].get(name)}, here {value}"
    return None


def _listed(paths: list[str]) -> str:
    return (
        (paths[0] if len(paths) == 1 else f"{len(paths)} files, the first {paths[0]}")
        if paths
        else "in no file of their own"
    )


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
