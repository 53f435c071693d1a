"""The benchmarks measure what they say: their reference is the oracle's, wrong results are noticed and not timed, and
results of different machines are not put together. No time is compared."""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import cases, measure, report, run
from benchmarks.compare import Settings, compare
from benchmarks.expected import expected, of_elements
from benchmarks.libraries import CuPy, LeftOut, NumPy
from benchmarks.providers import PROVIDERS, Provider, refuse
from tests.oracle import truth

SETTINGS = Settings(rounds=3, cache=1 << 12)
ELEMENTS = 64
BY_NAME = {provider.name: provider for provider in PROVIDERS}


def found(name, *providers, elements=ELEMENTS):
    rows = compare(name, elements, providers, SETTINGS)
    return {row["provider"]: row for row in rows}


@pytest.fixture(scope="module")
def document():
    """A results file of two cases, one of them at two sizes."""
    rows = [
        row
        for name, elements in (("loss", ELEMENTS), ("loss", 2 * ELEMENTS), ("loss of each label, (n, 3)", 2 * ELEMENTS))
        for row in compare(name, elements, (BY_NAME["gpubce"], BY_NAME["NumPy"], BY_NAME["Triton"]), SETTINGS)
    ]
    given = {"device": "cpu", "gpu": None, "threads": 2, "cache": 1 << 12, "tests": "", "table_size": 2 * ELEMENTS}
    return measure.described(given) | {"rows": rows}


@pytest.mark.parametrize("name", ["loss", "loss, float64", "loss of probabilities"])
def test_the_reference_is_that_of_the_oracle(name):
    workload = cases.CASES[name]
    arrays = workload.arrays(24)
    elements = zip(arrays["predictions"], arrays["targets"], strict=True)
    exact = [truth(float(z), float(y), workload.from_logits) for z, y in elements]
    loss, gradient = of_elements(arrays["predictions"], arrays["targets"], workload.from_logits)
    np.testing.assert_allclose(loss, [float(one.loss) for one in exact], rtol=1e-13)
    np.testing.assert_allclose(gradient, [float(one.gradient) for one in exact], rtol=1e-12, atol=1e-15)
    assert expected(workload, arrays, 1).value == pytest.approx(float(sum(one.loss for one in exact) / 24), rel=1e-13)


def test_the_reference_weighs_masks_and_reduces(monkeypatch):
    """In several chunks, as a large case."""
    monkeypatch.setattr("benchmarks.expected.CHUNK", 7)
    for name in ("loss of each label, (n, 3)", "loss, weight of each row, (n, 1000)", "loss, mask"):
        workload = cases.CASES[name]
        arrays = workload.arrays(3000)
        losses = of_elements(arrays["predictions"], arrays["targets"], True)[0] * arrays.get("weight", 1.0)
        value = losses.mean(axis=workload.axis, where=arrays.get("mask", True))
        np.testing.assert_allclose(expected(workload, arrays, 2).value, value, rtol=1e-13)


@pytest.mark.parametrize("name", ["loss and gradient", "loss, mask"])
def test_a_row_says_what_was_measured(name):
    rows = found(name, BY_NAME["gpubce"], BY_NAME["NumPy"])
    assert list(rows) == ["limit", "gpubce", "NumPy"]
    for row in rows.values():
        assert row["status"] == "timed", row
        assert (row["case"], row["device"], row["size"], row["elements"]) == (name, "cpu", ELEMENTS, ELEMENTS)
        assert row["bytes"] == ELEMENTS * (12 if "gradient" in name else 9)
        low, high = row["middle_half"]
        assert 0 < low <= row["median"] <= high
        assert row["first_call"] > 0
        assert row["rounds"] == 3
        assert row["calls"] >= 1
    json.dumps(rows)


def wrong_loss(workload, library, arrays):
    loss = workload.case.loss
    return lambda given: 1.0001 * loss(**given)


def wrong_gradient(workload, library, arrays):
    def both(given):
        value, gradient = workload.case.loss.value_and_grad(**given)
        gradient[5] *= -1
        return value, gradient

    return both


@pytest.mark.parametrize(("case", "build"), [("loss", wrong_loss), ("loss and gradient", wrong_gradient)])
def test_who_is_wrong_is_named_and_not_timed(case, build):
    rows = found(case, Provider("wrong", build, {"cpu": NumPy}), BY_NAME["gpubce"])
    assert rows["wrong"]["status"] == "wrong"
    assert "should be" in rows["wrong"]["reason"]
    assert "median" not in rows["wrong"]
    assert rows["gpubce"]["status"] == "timed"


def test_who_fails_or_cannot_is_named_and_the_others_are_timed():
    def broken(workload, library, arrays):
        raise RuntimeError("no compiler\nand more")

    def without_masks(workload, library, arrays):
        refuse(workload, "mask")

    def exhausted(workload, library, arrays):
        calls = iter([workload.case.loss(**arrays)] * 3)
        return lambda given: next(calls)

    rows = found(
        "loss, mask",
        Provider("broken", broken, {"cpu": NumPy}),
        Provider("maskless", without_masks, {"cpu": NumPy}),
        Provider("exhausted", exhausted, {"cpu": NumPy}),
        BY_NAME["Triton"],
        BY_NAME["gpubce"],
    )
    assert rows["broken"]["reason"] == "RuntimeError: no compiler"
    assert (rows["maskless"]["status"], rows["maskless"]["reason"]) == ("left out", "it has no mask")
    assert rows["exhausted"]["status"] == "failed"
    assert rows["exhausted"]["reason"].startswith("StopIteration")
    assert "median" not in rows["exhausted"]
    assert rows["Triton"]["reason"] == "it computes on a GPU only"
    assert rows["gpubce"]["status"] == "timed"
    with pytest.raises(LeftOut, match="no float16"):
        refuse(cases.CASES["loss, float16"], types=("float32",))


class PretendedEvent:
    """A CUDA event that is the host's clock."""

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


@pytest.fixture
def pretended_gpu(monkeypatch):
    """NumPy in the place of CuPy: what is timed on a GPU, but for the GPU."""
    device = SimpleNamespace(synchronize=lambda: None)
    elapsed = lambda start, stop: 1e3 * (stop.time - start.time)  # noqa: E731
    cuda = SimpleNamespace(Device=lambda: device, Event=PretendedEvent, get_elapsed_time=elapsed)
    names = ("asarray", "zeros", "empty", "empty_like", "copyto", "uint8")
    cupy = SimpleNamespace(cuda=cuda, asnumpy=np.asarray, **{name: getattr(np, name) for name in names})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


@pytest.mark.parametrize("name", ["loss", "loss and gradient"])
def test_the_limit_of_a_gpu_copies_half_of_the_bytes(name, pretended_gpu, monkeypatch):
    copied = []
    monkeypatch.setattr(pretended_gpu, "copyto", lambda target, source: copied.append((target.nbytes, source.nbytes)))
    settings = Settings("cuda", rounds=3, cache=1 << 12)
    rows = compare(name, ELEMENTS, (BY_NAME["gpubce"], BY_NAME["NumPy"]), settings)
    assert [row["status"] for row in rows] == ["timed", "timed", "left out"]
    half = rows[0]["bytes"] // 2
    assert set(copied) == {(half, half)}
    assert half == ELEMENTS * (6 if "gradient" in name else 4)


def test_a_gpu_has_to_give_the_bits_of_the_cpu(pretended_gpu, monkeypatch):
    """Even where the result is right."""

    def one_bit_off(workload, library, arrays):
        return lambda given: np.nextafter(workload.case.loss(**given), np.float32(9))

    rows = compare("loss", ELEMENTS, (Provider("gpubce", one_bit_off, {"cuda": CuPy}),), Settings("cuda", 3))
    assert rows[1]["reason"] == "its bits differ from those of the CPU"


def test_inputs_rotate_past_the_cache():
    arrays = cases.CASES["loss"].arrays(1000)  # 8,000 bytes
    assert len(cases.input_sets(arrays, 1000)) == 2
    sets = cases.input_sets(arrays, 16_000)
    assert len(sets) == 4
    assert len({given["predictions"].ctypes.data for given in sets}) == 4
    assert all(given["predictions"].ctypes.data % 64 == 0 for given in sets)
    assert len(cases.input_sets(arrays, 10**9)) == cases.MOST_SETS


def test_rounds_are_interleaved_and_slow_functions_take_part_in_fewer():
    order, clock = [], {"fast": 0.001, "slow": 1.0}
    functions = {name: lambda call, name=name: order.append(name) for name in clock}

    def pretended(name):
        def time(function, first, calls):
            for call in range(first, first + calls):
                function(call)
            return clock[name]

        return time

    samples = measure.samples(functions, 5, {name: pretended(name) for name in clock}, enough=0.002, budget=3.0)
    assert len(samples["fast"].seconds) == 5
    assert (samples["fast"].calls, samples["slow"].calls) == (2, 1)
    assert len(samples["slow"].seconds) == measure.FEWEST_ROUNDS
    guesses = ["fast"] * 4 + ["slow"]
    assert order[:5] == guesses
    turns = [order[5 + 3 * turn : 8 + 3 * turn] for turn in range(3)]
    assert all(turn in (["fast", "fast", "slow"], ["slow", "fast", "fast"]) for turn in turns)
    assert order[14:] == ["fast"] * 4


def test_the_table_is_of_one_size_and_shows_the_limit(document):
    lines = report.cells(document)
    assert lines[0] == ("", "limit", "gpubce", "NumPy")
    assert [line[0] for line in lines[1:]] == ["loss", "loss of each label, (n, 3)", "first call, loss"]
    text = report.text(document)
    for part in (document["machine"]["processor"], document["commit"], document["date"], "128 elements"):
        assert part in text
    assert report.left_out(document["rows"]) == ["Triton (every case) left out: it computes on a GPU only"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("machine", {"processor": "another", "versions": {}}),
        ("commit", "another"),
        ("gpu", {"name": "a GPU", "driver": "1"}),
        ("threads", 3),
    ],
)
def test_results_of_different_origin_are_not_put_together(key, value, document):
    other = json.loads(json.dumps(document)) | {"rows": []}
    assert len(report.together([document, other])["rows"]) == len(document["rows"])
    with pytest.raises(report.MixedResults, match=f"different {key}"):
        report.together([document, other | {key: value}])


def test_other_versions_are_another_machine(document):
    other = json.loads(json.dumps(document)) | {"rows": []}
    other["machine"]["versions"]["numpy"] = "0.1"
    with pytest.raises(report.MixedResults, match="different machine"):
        report.together([document, other])


def test_a_row_that_was_measured_twice_is_refused(document):
    with pytest.raises(report.MixedResults, match="measured twice"):
        report.together([document, document])


def test_the_report_goes_between_its_marks(document, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot is drawn with matplotlib")
    readme, results, picture = tmp_path / "README.md", tmp_path / "cpu.json", tmp_path / "docs" / "speed.png"
    readme.write_text("before\n<!-- benchmark cpu -->\nold\n<!-- /benchmark cpu -->\nafter\n")
    measure.save(document, results)
    report.main([str(results), "--readme", str(readme), "--plot", str(picture)])
    text = readme.read_text()
    assert text.startswith("before\n<!-- benchmark cpu -->\n\n128 elements")
    assert text.endswith("(docs/speed.png)\n\n<!-- /benchmark cpu -->\nafter\n")
    assert "old" not in text
    assert picture.stat().st_size > 1000
    with pytest.raises(SystemExit, match="<!-- benchmark cpu -->"):
        report.put_into("no marks", "cpu", "block")


def test_times_have_three_digits():
    given = (1.2345e-6, 0.98765, 12.3456e-3, 234.56e-6, 9.999e-4, 3.0, 12.0)
    assert [report.duration(seconds) for seconds in given] == [
        *("1.23 us", "988 ms", "12.3 ms", "235 us", "1.00 ms", "3.00 s", "12.0 s")
    ]


def test_the_command_prints_and_writes(tmp_path, capsys):
    words = ["--cases", "loss", "--providers", "gpubce", "NumPy", "--sizes", "64", "2^7", "--rounds", "3"]
    assert run.main([*words, "--output", str(tmp_path)]) == 0
    assert "| loss |" in capsys.readouterr().out
    written = json.loads((tmp_path / "cpu.json").read_text())
    assert written["table_size"] == 128
    assert {(row["size"], row["provider"]) for row in written["rows"]} == {
        (size, name) for size in (64, 128) for name in ("limit", "gpubce", "NumPy")
    }
    with pytest.raises(SystemExit):
        run.parse(["--sizes", "2^"])


def test_the_work_of_each_mode():
    quick = run.work(run.parse(["--quick"]))
    assert quick[0] == run.QUICK_TABLE
    assert set(cases.QUICK) <= set(cases.CASES)
    assert {name for name, _ in quick[1]} == set(cases.QUICK)
    table, everything = run.work(run.parse([]))
    halves = [run.work(run.parse(["--only", half]))[1] for half in ("table", "curves")]
    assert halves[0] + halves[1] == everything
    assert {size for _, size in halves[0]} == {table}
    assert table not in {size for _, size in halves[1]}
    assert len(set(everything)) == len(everything)
    assert [name for name, elements in everything if elements == table] == list(cases.CASES)
    gpu = run.work(run.parse(["--device", "cuda"]))[1]
    for curve in cases.CURVES:
        assert sorted(elements for name, elements in gpu if name == curve) == [1 << power for power in range(6, 29, 2)]
