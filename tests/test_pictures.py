"""Pictures and pages of reports: what they show, that they are the same each time, and that no name can run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import gpubce
from gpubce import page, pictures
from gpubce.cli import main
from gpubce.curves import Curves
from gpubce.errors import MissingDependencyError, OptionError

pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")

HOSTILE = (
    "<script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "</svg></style></script><svg onload=document.title='pwned'>",
    "$\\frac{1}{$ & \x00\x1b \ud800 \u202e 中文",
    "javascript:alert(1)",
    "plain",
)

TITLES = ["Calibration", "Scores", "Losses", "ROC", "Precision and recall", "Where the loss comes from"]


@pytest.fixture(scope="module")
def report() -> gpubce.Report:
    """Five labels: two usual ones, positives only, negatives only, and one whose predictions are perfect."""
    rng = np.random.default_rng(3)
    logits = rng.normal(-1.0, 1.5, (2_000, 5))
    targets = rng.random(logits.shape) < 1.0 / (1.0 + np.exp(-logits))
    targets[:, 2], targets[:, 3] = True, False
    logits[:, 4] = np.where(targets[:, 4], np.inf, -np.inf)
    evaluator = gpubce.Evaluator(from_logits=True, metrics="all", per_label=True)
    evaluator.update(logits, targets)
    return evaluator.report()


def made(labels: int = 0, **figures) -> gpubce.Report:
    """A report without any evaluation, with so many labels, whose losses are shuffled."""
    positives = np.zeros(64)
    positives[20:44] = np.arange(24.0)
    curves = Curves(positives[::-1].copy(), positives, np.zeros(()), np.asarray(True))
    losses = np.random.default_rng(0).permutation(labels) / 100.0
    parts = [gpubce.Report(loss=float(loss), loss_bits=0.0, count=7) for loss in losses]
    return gpubce.Report(**({"loss": 0.5, "loss_bits": 0.7, "count": 552} | figures), curves=curves, labels=parts)


class Seen(HTMLParser):
    """How often each tag occurs, and the texts of the elements."""

    def __init__(self, document: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


# Pictures -----------------------------------------------------------------------------------------------------------


def heights(axes) -> list[np.ndarray]:
    """Of the outlines of the histograms in a panel."""
    from matplotlib.patches import StepPatch

    return [patch.get_data().values for patch in axes.patches if isinstance(patch, StepPatch) and not patch.get_fill()]


def test_the_panels_show_what_the_figures_say(report):
    label = report.labels[0]
    figure = label.plot()
    assert [axes.get_title(loc="left") for axes in figure.axes] == TITLES
    calibration, scores, losses, roc, precision, source = figure.axes
    assert len(calibration.lines) == 3
    assert [part.sum() for part in heights(scores)] == pytest.approx([100.0, 100.0])
    assert sum(part.sum() for part in heights(losses)) == pytest.approx(99.0, abs=0.5)
    assert roc.texts[0].get_text() == f"area {label.roc_auc:.4f}"
    assert f"{label.average_precision:.4f}" in precision.texts[0].get_text()
    # The positives stand upon the negatives: the upper outline is the mean loss, up to the width of a bin.
    assert heights(source)[-1].sum() == pytest.approx(label.loss, abs=32.0 / 4096.0)


def test_the_histogram_of_losses_is_that_of_the_losses():
    rng = np.random.default_rng(1)
    logits = rng.normal(0.0, 2.0, 20_000)
    y = rng.random(logits.size) < 0.4
    counts = [np.histogram(logits[y == side], np.linspace(-16, 16, 4097))[0].astype(float) for side in (False, True)]
    drawn = (
        gpubce.Report(loss=0.0, loss_bits=0.0, curves=Curves(*counts, np.zeros(()), np.asarray(True))).plot().axes[2]
    )
    outlines = [patch for patch in drawn.patches if not patch.get_fill()]
    for side, outline in zip((False, True), outlines, strict=True):
        shares, edges, _ = outline.get_data()
        exact = np.histogram(np.logaddexp(0.0, np.where(y, -logits, logits))[y == side], edges)[0]
        assert shares == pytest.approx(100.0 * exact / logits.size, abs=0.25)


def test_one_class_nan_and_perfection_are_drawn_without_a_warning(report):
    ones, zeros, perfect = (report.labels[k].plot() for k in (2, 3, 4))
    whole = made()
    unknown = replace(whole, curves=replace(whole.curves, sound=np.asarray(False))).plot()
    for figure in (ones, zeros, unknown, perfect):
        figure.draw_without_rendering()
    said = [[text.get_text() for text in axes.texts] for axes in zeros.axes]
    assert said[3:5] == [["needs both classes"], ["needs positives"]]
    assert [text.get_text() for text in ones.axes[3].texts] == ["needs both classes"]
    assert all("a prediction is NaN" in axes.texts[0].get_text() for axes in unknown.axes)
    assert perfect.axes[3].texts[0].get_text() == "area 1.0000"
    empty = gpubce.Evaluator(from_logits=True, metrics="all").report()
    assert empty.plot().axes[0].texts[0].get_text() == "nothing was counted"
    assert "Nothing was counted" in empty.html()


def test_labels_are_named_while_there_is_room(report):
    names = ["a", "b", "c", "d", "x" * 50]
    drawn = report.plot(label_names=names).axes[5]
    assert drawn.get_title(loc="left") == "Labels"
    shown = [label.get_text() for label in drawn.get_yticklabels()]
    order = sorted(range(5), key=lambda k: -report.labels[k].loss)
    assert shown == [names[k] if k < 4 else "x" * 17 + "…" for k in order]
    assert list(made(300).plot().axes[5].lines[0].get_ydata()) == [k / 100.0 for k in range(299, -1, -1)]


def test_names_are_one_for_each_label(report):
    with pytest.raises(OptionError, match="label_names has 1 names, but the report has 5 labels: give one for each"):
        report.html(label_names=["rain"])
    with pytest.raises(OptionError, match="label_names has 1 names, but the report has 0 labels.*per_label=True"):
        made().plot(label_names=["rain"])
    with pytest.raises(OptionError, match="label_names='abcdef' is not a list of names"):
        report.plot(label_names="abcdef")


def test_curves_have_to_be_asked_for():
    bare = gpubce.Report(loss=0.5, loss_bits=0.7)
    for call in (bare.plot, bare.html):
        with pytest.raises(OptionError, match='no curves to draw.*metrics="all"'):
            call()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (made().plot, made().html):
        with pytest.raises(MissingDependencyError, match=r"pip install 'gpubce\[report\]'"):
            call()
    assert main(["evaluate", "--demo", "--html", str(tmp_path / "a.html")]) == 2
    assert "pip install 'gpubce[report]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_of_the_callers_is_touched():
    program = """
import sys, numpy as np, gpubce
from gpubce.curves import Curves
assert not any(name.startswith("matplotlib") for name in sys.modules)
import matplotlib
matplotlib.rcParams["font.size"] = 31.0
report = gpubce.Report(loss=0.5, loss_bits=0.7, curves=Curves(np.ones(64), np.ones(64), np.zeros(()), np.asarray(True)))
report.plot()
one = report.html()
assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["svg.fonttype"]) == (31.0, "path")
matplotlib.rcdefaults()
assert report.html() == one
assert "matplotlib.pyplot" not in sys.modules
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The page -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_pictures(monkeypatch):
    """They take half a second."""
    monkeypatch.setattr(page, "_pictures", lambda seen: "")


def test_a_page_holds_everything_and_asks_for_nothing(report):
    document = report.html("Five labels", list("abcde"), {"predictions": "p.npy"})
    assert document == report.html("Five labels", list("abcde"), {"predictions": "p.npy"})
    assert len(document) < 250_000
    seen = Seen(document)
    assert seen.tags["svg"] == 6
    assert (seen.tags["style"], seen.tags["script"], seen.tags["link"], seen.tags["img"]) == (1, 1, 0, 0)
    assert seen.attributes["src"] == seen.attributes["style"] == 0
    assert "://" not in document
    assert seen.texts["h1"] == ["Five labels"]
    assert {"predictions", "p.npy"} <= {*seen.texts["dt"], *seen.texts["dd"]}
    assert f"{report.loss:.4f} " in seen.texts["dd"]
    assert seen.texts["h3"] == [*TITLES[:5], "Labels"]
    ids = re.findall(r'\bid="([^"]+)"', document)
    assert len(set(ids)) == len(ids)
    assert {*re.findall(r"url\(#([^)]+)\)", document), *re.findall(r'href="#([^"]+)"', document)} <= set(ids)


def test_names_are_shown_as_they_are():
    document = made(6).html(HOSTILE[0], HOSTILE, {HOSTILE[1]: HOSTILE[2], "n": 3})
    seen = Seen(document)
    assert (seen.tags["script"], seen.tags["img"], seen.tags["svg"]) == (1, 0, 6)
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert seen.texts["title"] == seen.texts["h1"] == [HOSTILE[0]]
    expected = [pictures.printable(name) for name in HOSTILE]
    assert sorted(seen.texts["bdi"]) == sorted(expected)
    assert expected[3] == "$\\frac{1}{$ & \ufffd\ufffd ? \u202e 中文"
    document.encode("utf-8")


@pytest.mark.parametrize(
    ("labels", "tables", "rows"), [(0, 0, 0), (1, 1, 1), (200, 1, 200), (201, 2, 40), (300, 2, 40)]
)
def test_of_many_labels_the_worst_and_the_best(without_pictures, labels, tables, rows):
    document = made(labels).html()
    losses = [float(loss) for loss in re.findall(r'</th><td data-value="([^"]+)">', document)]
    worst = [k / 100.0 for k in range(labels - 1, -1, -1)]
    assert losses == (worst if rows == labels else worst[:20] + worst[:-21:-1])
    assert document.count('<table class="sortable">') == tables


def test_labels_without_a_loss_come_last_or_are_counted(without_pictures):
    few, many = made(3), made(300)
    few.labels[0] = many.labels[0] = gpubce.Report(loss=float("nan"), loss_bits=0.0)
    assert Seen(few.html()).texts["bdi"][-1] == "0"
    assert "Labels without a loss (NaN): 1." in many.html()


def test_figures_that_are_not_finite(without_pictures):
    document = made(loss=float("nan"), invalid=3, count=2, roc_auc=0.5, normalized_entropy=float("inf")).html()
    assert "Invalid elements: 3 " in document
    assert "∞" in Seen(document).texts["dd"]
    assert "NaN " in Seen(document).texts["dd"]
    assert 'data-value="Infinity"' in page._cell(float("inf"))
    assert [page._number(figure) for figure in (0.0, 1.0, 1e-7, 123456.0, 1234567)] == [
        "0.0000", "1.0000", "1e-07", "1.23e+05", "1,234,567",
    ]  # fmt: skip


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page(tmp_path, capsys):
    path = tmp_path / "page.html"
    assert main(["evaluate", "--demo", "--html", str(path), "--gamma", "0"]) == 0
    assert "ROC AUC" in capsys.readouterr().out
    seen = Seen(path.read_text(encoding="utf-8"))
    assert seen.texts["h1"] == ["flights.npz"]
    assert {"probabilities", "gamma", "0.0"} <= {*seen.texts["dt"], *seen.texts["dd"]}
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_the_command_names_labels_by_their_columns(tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns = {name: rng.random(50) for name in ("<b>p</b>", "q")} | {name: rng.random(50) < 0.5 for name in "yz"}
    np.savez(tmp_path / "a.npz", **columns)
    how = [
        "--prediction",
        "<b>p</b>,q",
        "--target",
        "y,z",
        "--per-label",
        "--logits",
        "--html",
        str(tmp_path / "b.html"),
    ]
    assert main(["evaluate", str(tmp_path / "a.npz"), *how, "--json", "-"]) == 0
    assert capsys.readouterr().out.startswith("{")
    assert sorted(Seen((tmp_path / "b.html").read_text()).texts["bdi"]) == ["<b>p</b>", "q"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "-"], "--html - is no file, and stdout is for figures: name a file"),
        (["--html", "."], "--html . is a directory, or is in none: name a file in a directory that exists"),
        (["--html", "no/a"], "--html no/a is a directory, or is in none: name a file in a directory that exists"),
        (["--html", "a", "--json", "a"], "--html a and --json a are the same file: name two"),
        (["--html", "x" * 300], f"--html {'x' * 300} cannot be written: File name too long"),
    ],
    ids=lambda value: None,
)
def test_a_page_that_cannot_be_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--demo", *arguments]) == 2
    assert capsys.readouterr() == ("", f"gpubce: error: {message}\n")
    assert not list(tmp_path.iterdir())


# In a browser -------------------------------------------------------------------------------------------------------

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1280,1600",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium; its driver is the one that is installed, and nothing is downloaded."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        pytest.skip("there is no chromium with its chromedriver here")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(found[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page; what the console said, and what was asked of a network."""

    def load(document: str) -> tuple[list[str], list[str]]:
        path = tmp_path / "page.html"
        path.write_text(document, encoding="utf-8")
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(path.as_uri())
        console = [entry["message"] for entry in browser.get_log("browser")]
        events = [entry["message"] for entry in browser.get_log("performance")]
        asked = [
            url for event in events for url in re.findall(r'requestWillBeSent".*?"request":.*?"url":"([^"]+)', event)
        ]
        assert path.as_uri() in asked  # The log is one.
        return console, [url for url in asked if url != path.as_uri()]

    return load


def column(browser, k: int) -> list[str]:
    rows = "return [...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[arguments[0]]"
    return browser.execute_script(f"{rows}.textContent)", k)


@pytest.mark.browser
def test_a_browser_shows_the_page_and_runs_nothing_else(browser, opened):
    assert opened(made(6).html(HOSTILE[0], HOSTILE, {HOSTILE[1]: HOSTILE[2]})) == ([], [])
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.title == HOSTILE[0]
    assert browser.execute_script("return [document.images.length, document.scripts.length]") == [0, 1]
    assert sorted(column(browser, 0)) == sorted(pictures.printable(name) for name in HOSTILE)
    # Style sheet and pictures have been accepted.
    wide = "return [...document.querySelectorAll('svg')].map(drawing => drawing.getBoundingClientRect().width > 250)"
    assert browser.execute_script(wide) == [True] * 6
    assert (
        browser.execute_script("return getComputedStyle(document.querySelector('svg path[stroke]')).stroke") != "none"
    )


@pytest.mark.browser
def test_the_policy_stops_what_would_not_be_escaped(browser, opened, monkeypatch):
    """The second lock, and proof that the test before looks at the right things."""
    monkeypatch.setattr(page, "_text", str)
    console, asked = opened(made(3).html("title", HOSTILE[:3]))
    assert browser.title == "title"
    assert browser.execute_script("return document.images.length") == 1
    assert any("Content Security Policy" in said and "script-src" in said for said in console)
    assert not [url for url in asked if not url.endswith("/x")]


@pytest.mark.browser
def test_heads_sort_their_columns(browser, opened):
    from selenium.webdriver.common.by import By

    report = made(30)
    report.labels[3] = gpubce.Report(loss=float("nan"), loss_bits=0.0, count=1_000)
    names = [f"label {k}" for k in range(30)]
    assert opened(report.html(label_names=names)) == ([], [])
    name, loss, count = browser.find_elements(By.CSS_SELECTOR, "table.sortable th button")
    losses = sorted(part.loss for k, part in enumerate(report.labels) if k != 3)
    for expected, state in ((losses, "ascending"), (losses[::-1], "descending")):
        loss.click()
        assert column(browser, 1) == [*(f"{value:.4f}" for value in expected), "NaN"]
        heads = browser.find_elements(By.CSS_SELECTOR, "table.sortable thead th")
        assert [head.get_attribute("aria-sort") for head in heads] == [None, state, None]
    name.click()
    assert column(browser, 0) == names
    count.click()
    assert column(browser, 2)[-2:] == ["7", "1,000"]


@pytest.mark.browser
def test_the_page_needs_no_script(browser, opened):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        assert opened(made(3).html(label_names=["a", "b", "c"]))[1] == []
        tree = browser.execute_cdp_cmd("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
        document = browser.execute_cdp_cmd("DOM.getOuterHTML", {"nodeId": tree})["outerHTML"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    seen = Seen(document)
    assert seen.tags["button"] == 0  # What does nothing is not there.
    assert seen.tags["svg"] == 6
    assert sorted(seen.texts["bdi"]) == ["a", "b", "c"]
    assert "loss" in seen.texts["th"]
