"""Go through all spaces of inputs, or write the report on them.

Run again after it was stopped, it goes on with the chunks that are missing. The exit status is 1 when a promise is
broken.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gpubce.backends.cpu.launch import thread_count
from tests.accuracy import digest, page
from tests.accuracy.journal import Journal, run
from tests.accuracy.peers import PART as PEERS
from tests.accuracy.sweep import PARTS, broken

ALL = PARTS | {PEERS.name: PEERS}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, default=Path(".exhaustive"), help="directory of what is finished")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=list(ALL), help=f"some of: {', '.join(ALL)}")
    parser.add_argument("--threads", type=int, default=thread_count(), help="chunks at a time")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the report on finished sweeps, sweep nothing")
    parser.add_argument(
        "--digest",
        type=Path,
        metavar="FILE",
        help="compare the digests of the finished float32 logits with FILE, or write what it lacks; sweep nothing",
    )
    arguments = parser.parse_args(words)
    results_path = arguments.state / "results.json"
    if arguments.page or arguments.digest:
        if not results_path.exists():
            parser.error(f"{results_path} is not there: run python -m tests.accuracy --state {arguments.state} first")
        results = json.loads(results_path.read_text())
        return write_reports(results, arguments.page, arguments.digest)

    parts = [ALL[name] for name in arguments.only or ALL]
    journal = Journal(arguments.state)
    missing = len(journal.missing(parts))
    chunks = sum(part.chunks for part in parts)
    if missing < chunks:
        print(f"{arguments.state}: {chunks - missing} of {chunks} chunks are done", file=sys.stderr)
    with tqdm(total=chunks, initial=chunks - missing, unit="chunk", smoothing=0.02) as bar:
        run(journal, parts, arguments.threads, bar.update)
    results = journal.results(parts)
    replacement = results_path.with_suffix(".new")
    replacement.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(replacement, results_path)
    found = broken(results)
    print("\n".join(found) or "every promise is kept", file=sys.stderr)
    return int(bool(found))


def write_reports(results: dict, page_path: Path | None, digest_path: Path | None) -> int:
    """The page and the digests of finished sweeps."""
    found = []
    if digest_path:
        ours = {int(chunk): values for chunk, values in results["digest"].items()}
        known = digest.read(digest_path)
        found = digest.differences(ours, known)
        if not found:
            digest.write(known | ours, digest_path)
    if page_path:
        page_path.write_text(page.text(results))
    print("\n".join(found), end="", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
