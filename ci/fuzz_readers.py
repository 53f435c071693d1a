"""Fuzz the readers of .npy, .npz, .csv and .parquet files, guided by coverage.

Anything but an error of gpubce.errors is a finding: another exception, a crash, a hang, 2 GB of memory, or arrays that
are not what their Source says. The input is saved in the folder of findings and the exit code is 1.

An input is two bytes and a file: the first byte chooses the format, the second what is asked for. One format is a .npy
file that is deflated and put into a .npz file here: checksums keep every other change of a compressed file out.

Example: python ci/fuzz_readers.py --seconds 600 --findings findings
         python ci/fuzz_readers.py --replay findings/crash-0123abcd

It needs atheris (pip install atheris), which is no dependency of the package, and pyarrow.
"""

import argparse
import contextlib
import io
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

if "--fuzz" in sys.argv:
    import atheris

    watched = atheris.instrument_imports(include=["gpubce.files", "numpy.lib._format_impl", "zipfile"])
else:
    watched = contextlib.nullcontext()
with watched:
    import zipfile

    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from gpubce import files
    from gpubce.errors import GpubceError

FORMATS = (".npy", ".npz", ".csv", ".parquet", "deflated")

QUESTIONS = (
    [["prediction"], ["target"]],
    [["prediction"]],
    [["prediction", "target"]],
    [["target"], ["target"], ["weight"]],
)

MEMORY_MB = 2048
SLOWEST_SECONDS = 10
LONGEST_INPUT = 4096

TAKES = 40
"""Pieces that are read of one input; what a few bytes can stand for in Parquet has no end."""

ROWS = (1, 7, 1000, 5000)

WORDS = (
    *(r"\x93NUMPY", r"\x01\x00", r"\x02\x00", r"\x03\x00", "'descr'", "'shape'", "'fortran_order'", "True", "(2,3)"),
    *("'<f8'", "'>f4'", "'|b1'", "'<u8'", "'|O'", "'|V0'", "'<U3'", "'<m8[s]'", "[('a','<f4')]", "-1", str(2**63 - 1)),
    *(r"PK\x01\x02", r"PK\x03\x04", r"PK\x05\x06", r"PK\x06\x06", r"PK\x06\x07", ".npy", "PAR1", "PARE", "true", "NaN"),
    *("prediction", "target", "weight", "null", r"\xff\xff\xff\xff", r"\xff\xff\xff\x7f", r"\x22"),
)
"""What the formats are made of, in libFuzzer's words for bytes."""

TABLES = (
    {"compression": "none", "use_dictionary": False},
    {"compression": "zstd", "row_group_size": 2},
    {"compression": "gzip", "data_page_version": "2.0"},
    {"write_page_index": True, "store_schema": False},
)
"""How Parquet files of the seeds are written."""


def read(data: bytes, folder: Path) -> None:
    """Read the input as a user's file. Raises what is a finding."""
    suffix, question = FORMATS[data[0] % len(FORMATS)], QUESTIONS[data[1] % len(QUESTIONS)]
    content = data[2:]
    if suffix == "deflated":
        suffix, content = ".npz", deflated(content)
    # A file of its own each time: one that is mapped must not become shorter.
    handle, path = tempfile.mkstemp(suffix, dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        source = files.open_source(path, None if suffix == ".npy" else question)
        check(source)
    except GpubceError:
        pass
    finally:
        os.unlink(path)


def deflated(member: bytes) -> bytes:
    """A .npz file whose arrays all are this one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("prediction", "target", "weight"):
            archive.writestr(f"{name}.npy", member)
    return file.getvalue()


def check(source: files.Source) -> None:
    """Every piece has the rows that were asked for, fewer at the end only, of the shapes that were announced."""
    taken = 0
    for k in range(TAKES):
        rows = ROWS[k % len(ROWS)]
        row_bytes = max(8 * math.prod(shape) for shape in source.shapes)
        if row_bytes > 2**27:
            return
        arrays = source.take(rows)
        lengths = {len(array) for array in arrays}
        taken += len(arrays[0])
        if len(lengths) != 1 or len(arrays) != len(source.groups) or max(lengths) > rows or source.taken != taken:
            raise RuntimeError(f"{lengths} rows of {rows}, {source.taken} taken of {taken}")
        for array, shape in zip(arrays, source.shapes, strict=True):
            if array.shape[1:] != shape or not array.dtype.isnative or array.dtype.kind not in "biuf":
                raise RuntimeError(f"a piece is {array.dtype} {array.shape}, announced was {shape}")
            np.array(array)  # Touches every byte of a mapped file.
        if len(arrays[0]) < rows:
            if source.rows is not None and source.rows != taken:
                raise RuntimeError(f"{source.rows} rows were announced, {taken} came")
            return


# Seeds --------------------------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Valid files of every format."""
    columns = {
        "prediction": np.linspace(0, 1, 9, dtype=np.float32),
        "target": np.arange(9, dtype=np.uint8) % 2,
        "weight": np.arange(9.0),
    }
    found: list[tuple[str, bytes]] = []

    def written(suffix, write, *arguments, **options):
        file = io.BytesIO()
        write(file, *arguments, **options)
        found.append((suffix, file.getvalue()))

    for array in (*columns.values(), np.asfortranarray(np.ones((4, 3))), np.ones((2, 3, 2), ">f4"), np.ones(3) < 0):
        written(".npy", lambda file, array=array: np.save(file, array))
        written("deflated", lambda file, array=array: np.save(file, array))
    for version in ((2, 0), (3, 0)):
        written(".npy", lambda file, v=version: np.lib.format.write_array(file, columns["weight"], v))
    for save in (np.savez, np.savez_compressed):
        written(".npz", save, **columns)
        written(".npz", save, prediction=np.asfortranarray(np.ones((3, 2))), target=np.ones((3, 2), ">i2"))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with (
            zipfile.ZipFile(file, "w", method) as archive,
            archive.open("prediction.npy", "w", force_zip64=True) as member,
        ):
            np.save(member, columns["prediction"])
        found.append((".npz", file.getvalue()))
    for text in ("prediction,target,weight\n0.5,1,2\n,0,\n", 'target,"prediction"\r\ntrue,1e-3\r\nfalse,nan\r\n'):
        found.append((".csv", text.encode()))
    table = pa.table(columns)
    nulls = pa.table({"prediction": pa.array([0.5, None, 1.0]), "target": pa.array([True, False, True])})
    for given in (table, nulls):
        for options in TABLES:
            written(".parquet", lambda file, t=given, o=options: pa.parquet.write_table(t, file, **o))
    return [
        bytes([FORMATS.index(suffix), question]) + content
        for suffix, content in found
        for question in range(len(QUESTIONS))
        if question == 0 or suffix == ".npz"
    ]


# Running ------------------------------------------------------------------------------------------------------------


def fuzz(arguments: list[str]) -> None:
    """Be libFuzzer, until it ends this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def one(data: bytes) -> None:
            if len(data) > 2:
                read(data, folder)

        atheris.Setup([sys.argv[0], *arguments], one)
        atheris.Fuzz()


def run(seconds: int, findings: Path) -> int:
    """Fuzz in a process of its own, so that a crash can be told; the exit code."""
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    with tempfile.TemporaryDirectory() as name:
        corpus, words = Path(name) / "corpus", Path(name) / "words"
        corpus.mkdir()
        for k, seed in enumerate(seeds()):
            (corpus / f"{k}").write_bytes(seed)
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        command = [sys.executable, __file__, "--fuzz", str(corpus), f"-dict={words}", f"-max_total_time={seconds}"]
        command += [f"-max_len={LONGEST_INPUT}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SLOWEST_SECONDS}"]
        command += [
            f"-artifact_prefix={findings}/",
            "-print_final_stats=1",
            "-reload=0",
            "-len_control=0",
            "-keep_seed=1",
        ]
        log = findings / "log.txt"
        with open(log, "w") as file:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": name}
            ).returncode
        text = log.read_text(errors="replace")
    print(*re.findall(r"^(?:stat::.*|#\d+\s+DONE.*)$", text, re.MULTILINE), sep="\n")
    new = sorted(path for path in set(findings.iterdir()) - before if path != log and not path.name.startswith("slow"))
    if not new and code == 0:
        return 0
    print(text[-4000:], f"findings, exit code {code}:", *new, sep="\n", file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files, guided by coverage.")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument(
        "--findings", type=Path, default=Path("findings"), help="folder for inputs that fail, and a log"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read one saved input, without libFuzzer")
    parser.add_argument("--fuzz", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fuzz is not None:
        fuzz(arguments.fuzz)
    if arguments.replay is not None:
        with tempfile.TemporaryDirectory() as name:
            read(arguments.replay.read_bytes(), Path(name))
        return 0
    return run(arguments.seconds, arguments.findings)


if __name__ == "__main__":
    sys.exit(main())
