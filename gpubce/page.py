"""A report as one page of HTML: pictures, figures and labels in a file that asks nothing of any network.

Every text that is not written here goes through :func:`_text`. The page's own policy forbids whatever is not its one
style sheet and its one script, so that even a text which got through could neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from gpubce import pictures

if TYPE_CHECKING:
    from gpubce.report import Report

MOST_ROWS = 200
"""A table of more labels shows the worst and the best only,"""

SHOWN = 20
"""so many of each."""

COLUMNS = {
    "loss": "loss",
    "normalized_entropy": "normalized entropy",
    "base_rate": "base rate",
    "mean_prediction": "mean prediction",
    "calibration_ratio": "calibration ratio",
    "brier_score": "Brier score",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "count": "elements",
}
"""Of the tables of labels and groups."""


def written(report: Report, seen: pictures.Seen, title: str, details: Mapping[str, object]) -> str:
    """The page."""
    style = Template(_read("page.css")).substitute(
        light="\n  ".join(f"--{name}: {colour};" for name, colour in pictures.COLOURS.items())
    )
    script = _read("page.js")
    body = [
        _warning(report),
        _headline(report),
        _pictures(seen),
        _labels(report, seen),
        _groups(report),
        _all_figures(report),
    ]
    return Template(_read("page.html")).substitute(
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        title=_text(title),
        details=_pairs(details),
        style=style,
        script=script,
        body="\n".join(part for part in body if part),
    )


def _read(name: str) -> str:
    return resources.files("gpubce").joinpath("data", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(text: object) -> str:
    """Somebody else's words, fit for an element or for an attribute in quotes."""
    return html.escape(pictures.printable(str(text)))


def _pairs(details: Mapping[str, object]) -> str:
    if not details:
        return ""
    pairs = (f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in details.items())
    return "\n".join(["<dl>", *pairs, "</dl>"])


# Parts --------------------------------------------------------------------------------------------------------------


def _warning(report: Report) -> str:
    if report.invalid:
        words = f"Invalid elements: {report.invalid:,} (a target or probability outside [0, 1], or a bad weight)"
        return f'<p class="warning">{words}. The figures are NaN.</p>'
    if not report.count:
        return '<p class="warning">Nothing was counted.</p>'
    if math.isnan(report.loss):
        return '<p class="warning">The loss is NaN: a prediction is.</p>'
    return ""


def _headline(report: Report) -> str:
    """The figures that most people ask for first."""

    def bound(name: str) -> str:
        error = getattr(report, f"{name}_bound")
        return "" if error is None or math.isnan(error) else f"± {error:.1g}, from the histogram"

    cards = [("Loss", report.loss, "nats", f"{_number(report.loss_bits)} bits")]
    if report.standard_error is not None and math.isfinite(report.standard_error):
        low, high = report.interval()
        cards = [("Loss", report.loss, "nats", f"95 % between {low:.4f} and {high:.4f}")]
    entropy = report.normalized_entropy
    if entropy is not None:
        better = "better than" if entropy < 1.0 else "no better than"
        remark = "" if math.isnan(entropy) else f"{better} knowing the base rate only"
        cards.append(("Normalized entropy", entropy, "", remark))
    if report.roc_auc is not None:
        cards.append(("ROC AUC", report.roc_auc, "", bound("roc_auc")))
    if report.average_precision is not None:
        cards.append(("Average precision", report.average_precision, "", bound("average_precision")))
    if report.calibration_ratio is not None:
        cards.append(("Calibration ratio", report.calibration_ratio, "", "predictions over targets; 1 is best"))
    if report.calibration_error is not None:
        cards.append(("Calibration error", report.calibration_error, "", bound("calibration_error")))
    if report.brier_score is not None:
        cards.append(("Brier score", report.brier_score, "", "mean squared error"))
    rate = math.nan if report.base_rate is None else report.base_rate
    cards.append(("Elements", report.count, "", "" if math.isnan(rate) else f"{100.0 * rate:.2f} % positive"))
    lines = (
        f'<div><dt>{name}</dt><dd class="figure">{_number(figure)}{unit and f" <small>{unit}</small>"}</dd>'
        f"<dd>{remark}</dd></div>"
        for name, figure, unit, remark in cards
    )
    return "\n".join(['<dl class="headline">', *lines, "</dl>"])


def _pictures(seen: pictures.Seen) -> str:
    parts = []
    for k, panel in enumerate(pictures.panels(seen)):
        drawing = ElementTree.tostring(pictures.svg(panel, seen, f"p{k}-"), encoding="unicode")
        parts.append(
            f"<figure><figcaption><h3>{panel.title}</h3><p>{panel.text}</p></figcaption>\n{drawing}\n</figure>"
        )
    return "\n".join(["<h2>Pictures</h2>", '<div class="pictures">', *parts, "</div>"])


def _labels(report: Report, seen: pictures.Seen) -> str:
    if not len(report.labels):
        return ""
    order = np.argsort(-seen.losses, kind="stable")  # NaN comes last.
    if order.size <= MOST_ROWS:
        parts = [_table("Labels, the worst first", [(seen.names[k], report.labels[k]) for k in order], "label")]
    else:
        order = order[~np.isnan(seen.losses[order])]
        parts = [
            _table(caption, [(seen.names[k], report.labels[k]) for k in chosen], "label")
            for caption, chosen in (
                (f"The {SHOWN} worst of {seen.losses.size:,} labels", order[:SHOWN]),
                (f"The {SHOWN} best", order[: -SHOWN - 1 : -1]),
            )
        ]
        if order.size < seen.losses.size:
            parts.append(f'<p class="quiet">Labels without a loss (NaN): {seen.losses.size - order.size:,}.</p>')
    return "\n".join(["<h2>Labels</h2>", *parts])


def _groups(report: Report) -> str:
    if not report.groups:
        return ""
    rows = [(str(number), group) for number, group in report.groups.items()]
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: -row[1].loss if row[1].loss == row[1].loss else math.inf)[:MOST_ROWS]
        caption = f"The {MOST_ROWS} worst of {len(report.groups):,} groups"
    else:
        caption = "Groups"
    return "\n".join(["<h2>Groups</h2>", _table(caption, rows, "group")])


def _table(caption: str, rows: Sequence[tuple[str, Report]], what: str) -> str:
    """Each report's figures, those that were asked for."""
    columns = {name: words for name, words in COLUMNS.items() if getattr(rows[0][1], name) is not None} if rows else {}
    heads = "".join(f'<th scope="col">{words}</th>' for words in columns.values())
    lines = [
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table class="sortable">',
        f"<caption>{caption}</caption>",
        f'<thead><tr><th scope="col" class="name">{what}</th>{heads}</tr></thead>',
        "<tbody>",
    ]
    for name, report in rows:
        cells = "".join(_cell(getattr(report, column)) for column in columns)
        lines.append(f'<tr><th scope="row"><bdi>{_text(name)}</bdi></th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>", "</table></div>"])


def _cell(figure: float) -> str:
    value = repr(figure).replace("inf", "Infinity")  # As JavaScript reads it.
    return f'<td data-value="{value}">{_number(figure)}</td>'


def _all_figures(report: Report) -> str:
    lines = [
        "<h2>All figures</h2>",
        '<div class="wide"><table>',
        '<thead><tr><th scope="col" class="name">figure</th><th scope="col">value</th>'
        '<th scope="col" class="name">unit or range</th></tr></thead>',
        "<tbody>",
    ]
    name = ""
    for what, much, unit in report.rows():
        name = what or name  # The second line of a figure.
        cells = f'<th scope="row">{_text(name)}</th><td>{_text(much)}</td><td class="unit">{_text(unit)}</td>'
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _number(figure: float) -> str:
    """With four decimals, so that a column lines up, unless nothing or too much would be left."""
    if isinstance(figure, int):
        return f"{figure:,}"
    if math.isnan(figure):
        return "NaN"
    if math.isinf(figure):
        return "∞" if figure > 0.0 else "-∞"
    return f"{figure:.4f}" if figure == 0.0 or 5e-4 <= abs(figure) < 1e5 else f"{figure:.3g}"
