"""gpubce evaluate --resume: whatever ends a run, the next one goes on from the saved state to the same figures."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import gpubce
from gpubce import scoring
from gpubce.checkpoint import Checkpoint
from gpubce.cli import main
from tests.processes import finish, start
from tests.test_shards import FORMATS, cut, needs, write

ROWS = 3000
OPTIONS = ("--weight", "weight", "--group", "country", "--metrics", "all", "--max-weight", "1", "--batch", "250")


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    prediction = random.random(ROWS)
    return {
        "prediction": prediction,
        "target": (random.random(ROWS) < prediction).astype(np.uint8),
        "weight": random.random(ROWS),
        "country": random.integers(0, 3, ROWS),
    }


@pytest.fixture
def evaluate(capsys, tmp_path, monkeypatch):
    """Run `gpubce evaluate` in an empty folder, stopped after some batches if asked to: its code, figures, errors."""
    monkeypatch.chdir(tmp_path)
    update = gpubce.Evaluator.update

    def run(*arguments: object, stop: int | None = None) -> tuple[int, dict | None, str]:
        left = iter(range(stop if stop is not None else 10**9))

        def stopping(*args, **options):
            if next(left, None) is None:
                raise KeyboardInterrupt
            update(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(gpubce.Evaluator, "update", stopping)
            code = main(["evaluate", *map(str, arguments), "--json", "-", "--no-progress", "--save-every", "0"])
        out, err = capsys.readouterr()
        return code, json.loads(out)["figures"] if out else None, err

    return run


def as_float32(figures):
    """Figures to the last bit of float32; counts and names as they are."""
    if isinstance(figures, dict):
        return {name: as_float32(value) for name, value in figures.items()}
    return np.float32(figures) if isinstance(figures, float) else figures


# The same figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_an_interrupted_run_goes_on_to_the_same_figures(evaluate, columns, tmp_path, suffix):
    needs(suffix)
    parts = cut(tmp_path / "parts", suffix, columns, [100, 1700, 1700])
    _, expected, _ = evaluate(parts, *OPTIONS)
    given = (parts, *OPTIONS, "--resume", "state")
    assert evaluate(*given, stop=3) == (130, None, "")
    assert json.loads(Path("state").read_text())["progress"]["rows"] == 750
    assert evaluate(*given, stop=4) == (130, None, "")
    assert json.loads(Path("state").read_text())["progress"]["rows"] == 1750
    assert evaluate(*given) == (0, expected, "")  # The same batches: the same bits of float64.
    assert not Path("state").exists()
    # Other batches, and one of them for all that is left.
    assert evaluate(*given, stop=5)[0] == 130
    code, figures, _ = evaluate(*given, "--batch", 1111)
    assert (code, as_float32(figures)) == (0, as_float32(expected))


def test_a_run_that_is_stopped_after_its_last_batch(evaluate, columns, tmp_path, monkeypatch):
    write(tmp_path / "a.npz", columns)
    _, expected, _ = evaluate("a.npz", *OPTIONS)
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "_finite", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate("a.npz", *OPTIONS, "--resume", "state")
    assert json.loads(Path("state").read_text())["progress"]["rows"] == ROWS
    assert evaluate("a.npz", *OPTIONS, "--resume", "state", stop=0) == (0, expected, "")
    assert not Path("state").exists()


@pytest.mark.parametrize("whole", [True, False], ids=["between batches", "while it is saved"])
def test_kill_9(evaluate, columns, tmp_path, whole):
    np.save(tmp_path / "p.npy", columns["prediction"])
    cut(tmp_path / "targets", ".npz", columns, [999])
    given = ["p.npy", "targets", *OPTIONS, "--resume", "state"]
    _, expected, _ = evaluate(*given)
    program = f"""
import os, signal
from gpubce import checkpoint, writing
from gpubce.cli import main
os.chdir({str(tmp_path)!r})
name = "write_whole" if {whole} else "fsync"
place = checkpoint if {whole} else writing.os
called, call = [], getattr(place, name)
def dying(*arguments):
    call(*arguments)
    called.append(1)
    if len(called) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(place, name, dying)
main(["evaluate", *{given!r}, "--save-every", "0"])
"""
    finish(start(program), expected=-signal.SIGKILL)
    rows = json.loads((tmp_path / "state").read_text())["progress"]["rows"]
    assert rows == (1250 if whole else 1000)
    assert evaluate(*given) == (0, expected, "")


def test_where_nans_are_is_remembered(evaluate, columns, tmp_path):
    wrong = columns["prediction"].copy()
    wrong[[123, 2900]] = np.nan
    write(tmp_path / "a.npz", columns | {"prediction": wrong})
    given = ("a.npz", "--batch", 500, "--resume", "state")
    assert evaluate(*given, stop=2)[0] == 130
    code, figures, said = evaluate(*given)
    assert (code, figures["loss"]) == (0, None)
    assert said == "gpubce: note: a.npz: 2 predictions are NaN, the first in row 123: the loss is NaN\n"


def test_the_rate_is_that_of_what_was_read(evaluate, columns, tmp_path, capsys):
    write(tmp_path / "a.npz", columns)
    assert evaluate("a.npz", "--batch", 500, "--resume", "state", stop=4)[0] == 130
    assert main(["evaluate", "a.npz", "--resume", "state"]) == 0
    assert capsys.readouterr().err.startswith("gpubce: 1,000 rows after 2,000 that were done before in ")


def test_a_state_is_not_saved_all_the_time(columns, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.npz", columns)
    monkeypatch.setattr("gpubce.checkpoint.write_whole", lambda *_: pytest.fail("it took no 30 seconds"))
    assert main(["evaluate", "a.npz", "--batch", "100", "--resume", "state"]) == 0


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(evaluate, columns, tmp_path):
    """A run that was stopped, as a function of other arguments: the line with which it must fail to go on."""
    write(tmp_path / "a.npz", columns | {"other": columns["target"]})
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    given = ("--batch", 500, "--resume", "state")
    assert evaluate("a.npz", *given, stop=2)[0] == 130
    before = Path("state").read_bytes()

    def resume(*arguments: object) -> str:
        code, figures, said = evaluate(*arguments, *given)
        assert (code, figures, said.count("\n")) == (2, None, 1)
        assert Path("state").exists()
        assert said.startswith("gpubce: error: --resume state ")
        return said.removeprefix("gpubce: error: --resume state ").rstrip("\n")

    resume.before = before  # type: ignore[attr-defined]
    return resume


def test_states_of_other_runs(stopped, columns, tmp_path, monkeypatch):
    remedy = "; repeat that run, or remove the file to begin anew"
    for arguments, difference in (
        (["b.npz"], f"its predictions are {tmp_path}/a.npz, here {tmp_path}/b.npz"),
        (["a.npz", "b.npz"], f"its targets are in no file of their own, here {tmp_path}/b.npz"),
        (
            ["a.npz", "--target", "other"],
            "its columns are {'predictions': [['prediction'], ['target']]}, here "
            "{'predictions': [['prediction'], ['other']]}",
        ),
        (["a.npz", "--gamma", 2], "its gamma is 0.0, here 2.0"),
        (["a.npz", "--logits"], "its from_logits is False, here True"),
        (["a.npz", "--threshold", 0.25], "its threshold is 0.5, here 0.25"),
    ):
        assert stopped(*arguments) == f"is the state of another run: {difference}{remedy}"
    with monkeypatch.context() as patched:
        patched.setattr(gpubce, "__version__", "9.9")
        found = stopped("a.npz")
        assert found == f"is the state of another run: it is of gpubce 0.1.0, this is 9.9{remedy}"
    os.utime(tmp_path / "a.npz", (1, 1))
    assert stopped("a.npz") == (
        f"is the state of another run: {tmp_path}/a.npz has changed since (its size or its time){remedy}"
    )


def test_damaged_states(stopped):
    damaged = "is damaged: remove it to begin anew"
    foreign = "is not a state that gpubce evaluate has saved: name another file, or a new one"
    whole = stopped.before
    for place in range(0, len(whole) - 1, 97):  # The last byte ends the line.
        Path("state").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert stopped("a.npz") in (damaged, foreign), place
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 3):
        Path("state").write_bytes(whole[:length])
        assert stopped("a.npz") == (damaged if length > 50 else foreign)
    Path("state").write_bytes(whole[:30] + b"[" * 100_000)
    assert stopped("a.npz") == damaged
    Path("state").write_text('{"figures": {}}')
    assert stopped("a.npz") == foreign


def test_places_where_no_state_can_be(evaluate, columns, tmp_path):
    write(tmp_path / "a.npz", columns)

    def fails(*arguments: object) -> str:
        code, _, said = evaluate("a.npz", *arguments)
        assert code == 2
        return said.removeprefix("gpubce: error: ").rstrip("\n")

    (tmp_path / "folder").mkdir()
    nowhere = "is a directory, or is in none: name a file in a directory that exists"
    assert fails("--resume", "folder") == f"--resume folder {nowhere}"
    assert fails("--resume", "none/state") == f"--resume none/state {nowhere}"
    assert fails("--resume", "a.npz") == "--resume a.npz would overwrite a file that is evaluated: name another"
    Path("text").write_text("a diary\n")
    assert fails("--resume", "text").startswith("--resume text is not a state that gpubce evaluate has saved")
    assert Path("text").read_text() == "a diary\n"
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
        assert fails("--resume", "pipe").startswith("--resume pipe is not a file but a pipe, a device or a link")
    assert main(["evaluate", "a.npz", "--resume", "x.json", "--json", "x.json"]) == 2


def test_saving_gives_way_where_it_takes_long(tmp_path, monkeypatch):
    times = iter([0.0, 31.0, 33.0, 70.0, 72.9])
    monkeypatch.setattr("gpubce.checkpoint.time.monotonic", lambda: next(times))
    saved = []
    checkpoint = Checkpoint(str(tmp_path / "state"), {}, 30.0)
    checkpoint.offer(lambda: saved.append(1) or {})  # Takes 2 seconds, so that 40 pass before the next.
    checkpoint.offer(lambda: saved.append(1) or {})
    assert saved == [1]
    checkpoint.offer(lambda: saved.append(1) or {})
    assert saved == [1]
