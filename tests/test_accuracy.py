"""The accuracy sweeps: that their reference is true, that they find what is wrong, and small parts of them.

``python -m tests.accuracy`` goes through all inputs; ``docs/accuracy.md`` is its report.
"""

import json
from functools import partial

import numpy as np
import pytest

from tests import tolerances
from tests.accuracy import digest, journal, page, peers, sweep
from tests.accuracy.__main__ import main
from tests.accuracy.comparison import LEFT_OUT, Row, Tally
from tests.accuracy.reference import FUNCTIONS, ROWS, allocate, measured_error

SPACES = {"logits": True, "probabilities": False}
SMALL_CHUNK = 1 << 16


def position(logit: float) -> int:
    """Where a float32 logit stands among all of them."""
    bits = int(np.float32(logit).view(np.uint32))
    return bits + 2**31 if bits < 2**31 else 2**32 - 1 - bits


# The reference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_the_reference_agrees_with_mpmath(real, space):
    points = sweep.reference_points(real, space, 200)
    assert points.size > 50
    assert measured_error(real, points, SPACES[space]) <= tolerances.REFERENCE_RELATIVE[real]


def test_logits_are_ordered():
    for width, dtype in ((16, np.float16), (32, np.float32)):
        numbers = sweep.ordered_logits(2 ** (width - 1) - 5000, 10000, width).view(dtype)
        assert np.all(np.diff(numbers.astype(np.float64)) >= 0) and np.unique(numbers).size == 9999
        assert np.signbit(numbers[4999]) and not np.signbit(numbers[5000])
    ends = sweep.ordered_logits(0, 2**16, 16).view(np.float16)
    assert np.isnan(ends[[0, -1]]).all() and np.unique(ends.view(np.uint16)).size == 2**16


# The comparison can fail ----------------------------------------------------------------------------------------------


def exactly_rounded(real: str, space: str, predictions: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Results as good as the type allows, and the truth."""
    true = allocate(real == "float64", predictions.size)
    FUNCTIONS[real, SPACES[space]](predictions, *true)
    with np.errstate(over="ignore"):
        value = true[0] if real == "float32" else np.ldexp(true[0], true[2])
        small = np.abs(value) < np.finfo(real).tiny
        return np.where(small & SPACES[space], 0.0, value).astype(real), true


def tallied(real: str, space: str, predictions: np.ndarray, found: np.ndarray, true, small=None) -> list[Row]:
    tally = Tally(real, real, SPACES[space], small)
    for row, (_, output) in enumerate(ROWS):
        tally.compare(row, found[row], true, 0, 0)
        if output == "loss":
            tally.count_steps(row, found[row], 0)
    return tally.rows(lambda place: float(predictions[place]))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_correctly_rounded_results_are_found_to_be_so(real, space):
    points = np.concatenate([sweep.random_points(space, 0, 5000), sweep.random_points(space, 1, 5000)])
    with np.errstate(over="ignore"):
        predictions = np.sort(points.astype(real))
    found, true = exactly_rounded(real, space, predictions)
    for row in tallied(real, space, predictions, found, true):
        assert row.points > 2500 and row.within_one == row.points
        assert row.points - row.asked <= row.right <= row.points and row.asked < row.points / 2
        assert row.largest <= 0.5 and row.wrong == row.steps == row.undecided == 0


MIDDLE = 4  # The middle of nine predictions.
SPOILT = {
    "3 ulp": (1.0, 0, lambda v: v * (1 + 3 * np.finfo(v.dtype).eps), lambda row: 2.4 < row.largest < 6.1),
    "NaN": (1.0, 1, lambda v: v * np.nan, lambda row: row.wrong == 1),
    "infinity": (1.0, 0, lambda v: v + np.inf, lambda row: row.wrong == 1),
    "wrong sign": (1.0, 3, lambda v: -v, lambda row: row.wrong == 1),
    "beyond 1": (100.0, 1, lambda v: np.nextafter(v, v.dtype.type(2)), lambda row: row.wrong == 1),
    "beyond 1/4": (0.0, 2, lambda v: np.nextafter(v, v.dtype.type(1)), lambda row: row.wrong == 1),
    "not 0": (-1000.0, 0, lambda v: v + np.finfo(v.dtype).tiny, lambda row: row.wrong == 1),
    "0": (-5.0, 1, lambda v: v * 0, lambda row: row.largest > 2**22 and row.wrong == 0),
    "not NaN": (np.nan, 0, lambda v: np.zeros_like(v), lambda row: row.wrong == 1),
    "not infinite": (np.inf, 0, lambda v: np.zeros_like(v), lambda row: row.wrong == 1),
    "step back": (
        1.0,
        0,
        lambda v: v * (1 - 99 * np.finfo(v.dtype).eps),
        lambda row: row.steps == 1 and row.longest > 1,
    ),
    "step up": (1.0, 3, lambda v: v * (1 + 99 * np.finfo(v.dtype).eps), lambda row: row.steps == 1 and row.longest > 1),
}


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("name", SPOILT)
def test_one_wrong_result_is_found(name, real):
    logit, row, spoil, is_found = SPOILT[name]
    logits = np.full(9, logit, real)
    found, true = exactly_rounded(real, "logits", logits)
    before = tallied(real, "logits", logits, found, true)[row]
    assert not is_found(before)
    found[row, MIDDLE] = spoil(found[row, MIDDLE])
    logits = np.arange(9.0)  # From here on they only say where.
    after = tallied(real, "logits", logits, found, true)[row]
    assert is_found(after)
    assert MIDDLE in (after.wrong_at, after.largest_at, after.longest_at)


def test_two_functions_that_differ_are_found():
    tally = Tally("float32", "float32", True)
    one = np.array([0.0, 1.0, np.nan, 2.0], np.float32)
    tally.count_differences(1, one, one.copy(), 0, 0)
    assert tally.rows(float)[1].wrong == 0
    tally.count_differences(1, one, np.array([-0.0, 1.0, np.nan, 2.0000002], np.float32), 0, 100)
    assert tally.rows(float)[1].wrong == 2 and tally.rows(float)[1].wrong_at == 103


def test_mpmath_decides_what_the_reference_cannot():
    """sigmoid(2^-23) is 2^-75 below the middle of two float32 numbers, which float64 cannot tell apart."""
    logits = np.full(2, 2.0**-23, np.float32)
    found, true = exactly_rounded("float32", "logits", logits)
    found[1] = [0.5, np.nextafter(np.float32(0.5), np.float32(1))]
    row = tallied("float32", "logits", logits, found, true)[1]
    assert (row.asked, row.right, row.undecided) == (2, 1, 0)


def test_small_values_may_be_left_out():
    logits = np.full(3, -100.0, np.float32)
    found, true = exactly_rounded("float32", "logits", logits)
    found[0] = [0, 1e-40, 1e-44]
    assert tallied("float32", "logits", logits, found, true)[0].wrong == 2
    row = tallied("float32", "logits", logits, found, true, LEFT_OUT)[0]
    assert (row.points, row.small, row.wrong, row.largest) == (0, 3, 0, 0.0)


# Small parts of the sweeps --------------------------------------------------------------------------------------------

PLACES = {
    "where the exponential ends": -87.33654,
    "before it ends on the other side": 87.3365,
    "where 1 + t is 1": 16.6,
    "near 0": 0.0078335,
    "on the other side of 0": -0.0078335,
    "beside 1/2": 0.5,
    "minus infinity and NaN": -np.inf,
    "infinity and NaN": np.inf,
    "0": 0.0,
}


@pytest.mark.parametrize("name", PLACES)
def test_float32_logits_keep_the_promises(name):
    chunk = position(PLACES[name]) // SMALL_CHUNK
    results = sweep.collect(sweep.float32_chunk("logits", c, SMALL_CHUNK) for c in (chunk - 1, chunk) if c < 2**16)
    results["digest"] = {}  # Those of small chunks; the committed ones are of large ones.
    assert sum(row["points"] + row["small"] for row in results["rows"]) > 0
    assert sweep.broken(results) == []


@pytest.mark.parametrize("number", [0.0, 2.0**-126, 0.29, 0.70710678, 1.0])
def test_float32_probabilities_keep_the_promises(number):
    chunk = int(np.float32(number).view(np.uint32)) // SMALL_CHUNK
    assert sweep.broken(sweep.collect([sweep.float32_chunk("probabilities", chunk, SMALL_CHUNK)])) == []


# The kernels of one more type take 5 to 8 s to compile, so the default suite has one of each width.
LONG = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("float16", "logits"),
        pytest.param("bfloat16", "logits", marks=LONG),
        pytest.param("float16", "probabilities", marks=LONG),
        pytest.param("bfloat16", "probabilities", marks=LONG),
    ],
)
def test_every_16_bit_number_keeps_the_promises(name, space):
    results = sweep.collect([sweep.sixteen_bit_chunk(name, space, 0)])
    assert {row["result"] for row in results["rows"]} == {name, "float32", "float64"}
    assert sweep.broken(results) == []


@pytest.mark.parametrize("space", ["logits", pytest.param("probabilities", marks=LONG)])
def test_float64_keeps_the_promises(space):
    assert sweep.broken(sweep.collect([sweep.float64_chunk(space, 0, 1 << 16)])) == []


@pytest.mark.parametrize(
    "change",
    [{"largest": 2.001}, {"largest": np.nan}, {"wrong": 1}, {"longest": 2}],
    ids=lambda change: " ".join(map(str, change.items())),
)
def test_a_broken_promise_is_named(change):
    rows = sweep.labelled([Row(points=9)] * len(ROWS), type="float32", space="logits", result="float32")
    assert sweep.broken({"rows": rows, "reference": {}, "digest": {}}) == []
    rows[4] |= change
    (said,) = sweep.broken({"rows": rows, "reference": {}, "digest": {}})
    assert "float32 logits, y = 1, gradient" in said


def test_a_bad_reference_and_a_different_digest_are_named():
    assert (
        "float64 logits"
        in sweep.broken({"rows": [], "digest": {}, "reference": {"float64 logits": {"relative": 1e-20}}})[0]
    )
    known = digest.read()
    chunk = next(iter(known))
    wrong = {str(chunk): ["0" * 16, *known[chunk][1:]]}
    assert len(sweep.broken({"rows": [], "reference": {}, "digest": wrong})) == 1


# Going on after a stop ------------------------------------------------------------------------------------------------

PARTS = [
    sweep.Part("logits", 4, lambda chunk: sweep.float32_chunk("logits", position(0.3) // 4096 + chunk, 4096)),
    sweep.Part("probabilities", 2, lambda chunk: sweep.float32_chunk("probabilities", 200000 + chunk, 4096)),
]


def results_of(book: journal.Journal) -> dict:
    return {name: value for name, value in book.results(PARTS).items() if name != "seconds"}


def test_a_sweep_that_was_stopped_gives_the_same_as_one_that_was_not(tmp_path):
    whole = journal.Journal(tmp_path / "whole")
    journal.run(whole, PARTS, threads=1)
    journal.run(stopped := journal.Journal(tmp_path / "stopped"), PARTS, threads=2)
    lines = stopped.path.read_bytes().splitlines(keepends=True)
    stopped.path.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # Killed while it wrote its third chunk.
    again = journal.Journal(tmp_path / "stopped")
    assert not again.fresh and len(again.missing(PARTS)) == 4
    done = []
    journal.run(again, PARTS, threads=2, progress=lambda: done.append(1))
    assert len(done) == 4
    assert results_of(again) == results_of(whole)
    assert results_of(journal.Journal(tmp_path / "stopped")) == results_of(whole)


def test_no_step_is_lost_at_the_edges_of_blocks_and_chunks(monkeypatch):
    """A loss that goes back at every logit is counted once for each, whatever the blocks and chunks."""

    def falling(self, predictions):
        self.found[:] = self.again[:] = 0
        self.found[0] = (np.int32(2**30) - predictions.view(np.int32)).view(np.float32)

    monkeypatch.setattr(sweep.Results, "compute", falling)
    first, size = position(0.0078335) // 8192, 8192
    for parts, block in ((1, size), (1, 1000), (4, size), (4, 700)):
        monkeypatch.setattr(sweep, "BLOCK", block)
        chunks = range(first * parts, (first + 1) * parts)
        rows = sweep.collect(sweep.float32_chunk("logits", chunk, size // parts) for chunk in chunks)["rows"]
        assert (rows[0]["points"], rows[0]["steps"], rows[0]["longest"]) == (size, size, 1)


def test_small_chunks_give_the_same_as_large_ones():
    first = position(0.0078335) // 8192
    large = sweep.collect([sweep.float32_chunk("logits", first, 8192)])
    small = sweep.collect([sweep.float32_chunk("logits", 2 * first + k, 4096) for k in (0, 1)])
    assert large["rows"] == small["rows"]
    total = sum(int(values[0], 16) for values in small["digest"].values())
    assert large["digest"][str(first)][0] == digest.as_text(total)


def test_other_conditions_start_anew(tmp_path, monkeypatch):
    journal.run(journal.Journal(tmp_path), PARTS[1:], threads=1)
    assert not journal.Journal(tmp_path).missing(PARTS[1:])
    monkeypatch.setattr(journal, "specification_hash", lambda: "other formulas")
    assert journal.Journal(tmp_path).fresh and len(journal.Journal(tmp_path).missing(PARTS[1:])) == 2


# Digests --------------------------------------------------------------------------------------------------------------

COMPARED = (191,)
"""Logits from 1/2 to 2."""


def test_the_cpu_has_the_committed_digests():
    known = digest.read()
    found = dict(sweep.digests("cpu", COMPARED))
    assert {chunk: known[chunk] for chunk in COMPARED} == found


@pytest.mark.gpu
def test_the_gpu_has_the_committed_digests():
    """Promise 2 for every float32 logit: loss, gradient and hessian of both targets, bit for bit."""
    known = digest.read()
    assert sorted(known) == list(range(sweep.CHUNKS)), "write them: python -m tests.accuracy, then with --digest"
    for chunk, found in sweep.digests("cuda", known):
        assert not digest.differences({chunk: found}, known)


def test_both_ways_to_a_digest_agree():
    chunk = position(-3.0) // SMALL_CHUNK
    swept = sweep.float32_chunk("logits", chunk, SMALL_CHUNK)["digest"]
    assert {int(key): value for key, value in swept.items()} == dict(sweep.digests("cpu", [chunk], SMALL_CHUNK))


def test_a_digest_shows_every_change_and_no_kind_of_nan():
    rng = np.random.default_rng(0)
    logits = sweep.ordered_logits(position(1.0), 1000)
    results = rng.normal(size=1000).astype(np.float32)
    bits = results.view(np.uint32)
    of = partial(digest.digest, logits, first=0)
    one = int(of(results=bits))
    for place in rng.integers(0, 1000, 20):
        changed = bits.copy()
        changed[place] ^= np.uint32(1)
        assert int(of(results=changed)) != one
        changed = bits.copy()
        changed[[place, 0]] = changed[[0, place]]
        assert place == 0 or int(of(results=changed)) != one
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7F800001], np.uint32)
    same = {int(digest.digest(logits[:1], nans[k : k + 1], 0)) for k in range(3)}
    infinity = np.array([0x7F800000], np.uint32)
    assert len(same) == 1 and int(digest.digest(logits[:1], infinity, 0)) not in same


def test_a_file_of_digests_is_compared_and_completed(tmp_path):
    path = tmp_path / "digest.json"
    ours = {0: ["1"] * 6, 3: ["2"] * 6}
    digest.write(ours, path)
    assert digest.read(path) == ours
    results = {"digest": {"3": ["2"] * 6, "5": ["7"] * 6}, "rows": [], "reference": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["--state", str(tmp_path), "--digest", str(path)]) == 0
    assert digest.read(path) == ours | {5: ["7"] * 6}
    results["digest"]["0"] = ["1"] * 5 + ["9"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    before = path.read_bytes()
    assert main(["--state", str(tmp_path), "--digest", str(path)]) == 1
    assert path.read_bytes() == before


# Peers and the report -------------------------------------------------------------------------------------------------


def test_a_library_that_is_not_there_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(peers, "import_module", missing)
    records = [peers.peers_chunk(chunk) for chunk in range(1, len(peers.LIBRARIES))]
    assert sweep.collect(records)["missing"].keys() == set(peers.LIBRARIES) - {"gpubce"}


def test_the_report_shows_what_was_found(tmp_path, capsys):
    state = ["--state", str(tmp_path / "state")]
    with pytest.raises(SystemExit):
        main([*state, "--page", str(tmp_path / "page.md")])
    assert "results.json is not there" in capsys.readouterr().err
    assert main([*state, "--only", "float16 logits"]) == 0
    assert main([*state, "--only", "float16 logits"]) == 0
    assert "1 of 1 chunks are done" in capsys.readouterr().err
    assert main([*state, "--page", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    results = json.loads((tmp_path / "state" / "results.json").read_text())
    for row in results["rows"]:
        assert page.ulp(row["largest"]) in text and f"{row['points']:,}" in text
    assert "No promise is broken" in text and "Not measured: reference, float16 probabilities" in text
    results["rows"][0]["largest"] = 9.0
    assert "Promises broken" in page.text(results)


def test_a_broken_promise_is_an_exit_status(tmp_path, monkeypatch):
    monkeypatch.setitem(tolerances.ULP_NARROW, "float16", 0.4)
    assert main(["--state", str(tmp_path), "--only", "float16 logits"]) == 1


def test_figures_are_never_better_than_the_truth():
    assert page.share(999_999, 1_000_000) == "99.99 %" and page.share(7, 7) == "all"
    assert page.ulp(0.500001) == "0.50001" and page.ulp(np.inf) == "inf"
