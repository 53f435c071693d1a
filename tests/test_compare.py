"""``gpubce compare``: the figures are the evaluator's, and what cannot be compared is refused."""

import json

import numpy as np
import pytest

from gpubce import Evaluator
from gpubce.cli import main

ROWS = 500


@pytest.fixture
def files(tmp_path):
    """Writes arrays to files, and gives (arrays, arguments of the command)."""
    rng = np.random.default_rng(3)

    def write(shape=(ROWS,), **changes):
        logits = rng.normal(-1.0, 1.5, shape)
        arrays = {
            "a": logits + rng.normal(0.0, 1.0, shape),
            "b": logits,
            "t": rng.random(shape) < 1 / (1 + np.exp(-logits)),
        } | changes
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        a, b, t = (str(tmp_path / f"{name}.npy") for name in "abt")
        return arrays, ["compare", a, b, "--targets", t, "--logits"]

    return write


def run(capsys, arguments, expected=0):
    assert main(arguments) == expected
    return capsys.readouterr()


def test_figures_are_the_evaluators(files, capsys):
    arrays, arguments = files()
    evaluator = Evaluator(from_logits=True, metrics=["standard_error", "difference"])
    evaluator.update(arrays["b"], arrays["t"], baseline=arrays["a"])
    report = evaluator.report()
    document = json.loads(run(capsys, [*arguments, "--batch", "77", "--json", "-"]).out)
    assert document["figures"] == pytest.approx(report.as_dict(), rel=1e-12)
    assert document["conclusion"] == str(report.compare())
    assert document["p_value"] == pytest.approx(report.compare().p_value)
    assert document["baseline"] == arguments[1]
    out = run(capsys, arguments).out
    assert f"{arguments[2]}, compared with {arguments[1]}, against {arguments[4]}: logits" in out
    assert str(report.compare()) in out
    assert "are better" in out


def test_labels_are_compared_too(files, capsys):
    arrays, arguments = files((ROWS, 3))
    document = json.loads(run(capsys, [*arguments, "--per-label", "--json", "-"]).out)
    for k, label in enumerate(document["figures"]["labels"]):
        evaluator = Evaluator(from_logits=True, metrics=["difference"])
        evaluator.update(*(arrays[name][:, k] for name in "bt"), baseline=arrays["a"][:, k])
        assert label["difference"] == pytest.approx(evaluator.report().difference, rel=1e-12)
    assert "less baseline" in run(capsys, [*arguments, "--per-label"]).out


def test_what_cannot_be_compared_is_refused(files, capsys):
    for changes, said in (
        ({"a": np.zeros(ROWS - 1)}, "a.npy has 499 rows"),
        ({"a": np.zeros((ROWS, 2))}, "a.npy (2,): they must be equal"),
        ({"a": np.zeros(ROWS, np.float32)}, "baseline has type float32, logits float64"),
    ):
        _, arguments = files(**changes)
        error = run(capsys, arguments, expected=2).err
        assert said in error
        assert error.count("\n") == 1
    _, arguments = files(a=np.full(ROWS, 1.5), b=np.full(ROWS, 0.5))
    assert "a.npy, row 0: probability 1.5 is not in [0, 1]" in run(capsys, arguments[:-1], expected=2).err
    assert "--targets" in run(capsys, arguments[:3], expected=2).err
