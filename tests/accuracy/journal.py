"""Finished chunks on disk, one line each, so that a sweep goes on where it was stopped, however it was stopped."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import date
from importlib import metadata
from itertools import islice
from pathlib import Path
from time import thread_time

from benchmarks import measure
from gpubce.backends.kernel_cache import specification_hash
from tests.accuracy.sweep import Part, collect

HERE = Path(__file__).parent
PEERS = ("torch", "jax", "optax", "scikit-learn")


def conditions() -> dict:
    """What the results depend on: the formulas, this program, the machine and the versions."""
    machine = measure.machine()
    for package in ("mpmath", *PEERS):
        try:
            machine["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    program = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        if path.name not in ("page.py", "__main__.py"):
            program.update(path.read_bytes())
    return {"formulas": specification_hash(), "program": program.hexdigest(), "machine": machine}


def commit() -> str:
    """The commit of the working tree, marked where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Journal:
    """The journal of a directory. ``fresh`` says whether it starts anew: there was none, or not of these conditions."""

    def __init__(self, folder: Path):
        self.path = folder / "journal.jsonl"
        self.done: dict[tuple[str, int], dict] = {}
        """By part and chunk: {"part", "chunk", "seconds", "record"}."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        wanted = conditions()
        # The last line may have been cut off while it was written.
        whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        self.fresh = not whole or whole[0]["conditions"] != wanted
        if self.fresh:
            whole = [{"conditions": wanted, "commit": commit(), "date": date.today().isoformat()}]
        self.header = whole[0]
        for entry in whole[1:]:
            self.done[entry["part"], entry["chunk"]] = entry
        replacement = self.path.with_suffix(".new")
        replacement.write_text("".join(json.dumps(entry) + "\n" for entry in whole))
        os.replace(replacement, self.path)

    def add(self, part: str, chunk: int, seconds: float, record: dict) -> None:
        """Keep one chunk."""
        entry = {"part": part, "chunk": chunk, "seconds": seconds, "record": record}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.done[part, chunk] = entry

    def missing(self, parts: Iterable[Part]) -> list[tuple[Part, int]]:
        """The chunks that are still to be done, in order."""
        return [(part, chunk) for part in parts for chunk in range(part.chunks) if (part.name, chunk) not in self.done]

    def results(self, parts: Iterable[Part]) -> dict:
        """Everything that was found in these parts, and under which conditions. Chunks stand in order, so that it
        does not depend on the order in which they were done."""
        entries = [self.done[part.name, chunk] for part in parts for chunk in range(part.chunks)]
        seconds: dict[str, float] = {}
        for entry in entries:
            seconds[entry["part"]] = seconds.get(entry["part"], 0.0) + entry["seconds"]
        return self.header | {"seconds": seconds} | collect(entry["record"] for entry in entries)


def run(journal: Journal, parts: Iterable[Part], threads: int, progress=lambda: None) -> None:
    """Do what is missing, several chunks at a time, and call ``progress`` after each."""

    def work(part: Part, chunk: int):
        start = thread_time()
        record = part.record(chunk)
        return part.name, chunk, round(thread_time() - start, 3), record

    waiting = iter(journal.missing(parts))
    with ThreadPoolExecutor(threads, thread_name_prefix="accuracy") as pool:
        running = {pool.submit(work, *item) for item in islice(waiting, threads)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                journal.add(*future.result())
                progress()
                running |= {pool.submit(work, *item) for item in islice(waiting, 1)}
