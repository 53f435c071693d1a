"""Pictures of a result, drawn with matplotlib from the histogram of logits and the labels' losses.

Figures are made as objects, never with pyplot: no display is needed, and nothing of the caller's is changed.
"""

from __future__ import annotations

import importlib
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpubce.curves import Curves
from gpubce.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"ink": "#1b1f24", "muted": "#5c6672", "line": "#d8dde3", "accent": "#1f5fbf", "other": "#8d99a6"}
"""Positives, and what matters, have the accent; negatives the other. A page replaces them by its own."""

SIZE = 4.2, 2.9
"""Of one panel, in inches."""

BARS = 48

MOST_NAMED = 16
"""So many labels have room for their names."""

NAME_LENGTH = 18

TICKS = (0.5, 0.1, 0.9, 0.01, 0.99, 1e-3, 0.999, 1e-4, 0.9999, 1e-5, 0.99999, 1e-6, 0.999999) + (
    0.2, 0.8, 0.05, 0.95, 0.3, 0.7, 0.4, 0.6, 0.02, 0.98, 0.005, 0.995, 0.25, 0.75, 0.15, 0.85, 0.35, 0.65, 0.45, 0.55,
)  # fmt: skip
"""Probabilities to mark on a scale of logits, the most welcome first."""


class Seen(NamedTuple):
    """What the panels show.

    Attributes
    ----------
    curves : Curves
        Of one result.
    losses : array of float64
        Each label's mean loss; empty without labels.
    names : sequence of str
        The labels' names.
    """

    curves: Curves
    losses: np.ndarray
    names: Sequence[str]


class Panel(NamedTuple):
    """One picture: its title, what is seen in it, and who draws it."""

    title: str
    text: str
    draw: Callable[[Axes, Seen], None]


def load() -> None:
    """Import matplotlib, or say how to get it."""
    try:
        for name in ("figure", "style", "backends.backend_svg"):
            importlib.import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise MissingDependencyError("pictures are drawn with matplotlib: pip install 'gpubce[report]'") from error


def figure(seen: Seen) -> Figure:
    """All panels in one figure."""
    load()
    from matplotlib.figure import Figure

    whole = Figure(figsize=(3.0 * SIZE[0], 2.0 * SIZE[1]), layout="constrained")
    for axes, panel in zip(whole.subplots(2, 3).flat, panels(seen), strict=True):
        axes.set_title(panel.title, loc="left", fontsize=10, color=COLOURS["ink"])
        _draw(panel, axes, seen)
    return whole


def svg(panel: Panel, seen: Seen, prefix: str) -> ElementTree.Element:
    """A panel as an ``svg`` element for a page: without title and background, with attributes in place of styles, which
    a strict page forbids, and with the same bytes every time.

    ``prefix`` begins the element's ids.
    """
    load()
    from matplotlib import style
    from matplotlib.figure import Figure

    written = io.BytesIO()
    # Whatever the caller has chosen for pictures of their own, the page looks the same. Text stays text.
    with style.context(["default", {"svg.fonttype": "none"}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # The browser has more fonts.
        drawing = Figure(figsize=SIZE, layout="constrained")
        _draw(panel, drawing.subplots(), seen)
        drawing.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(ElementTree.fromstring(written.getvalue()), panel, prefix)


def panels(seen: Seen) -> list[Panel]:
    """The six of them."""
    return [*_OF_CURVES, _LOSS_OF_LABELS if len(seen.losses) else _LOSS_BY_SCORE]


def printable(text: str) -> str:
    """Text without control characters, which neither SVG nor a line of a table can hold, and without halves of
    characters (a file name that is not UTF-8), which no file can."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", re.sub(r"[\t\n\r]+", " ", whole))


# Panels -------------------------------------------------------------------------------------------------------------


def _draw(panel: Panel, axes: Axes, seen: Seen) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(COLOURS["line"])
    axes.tick_params(colors=COLOURS["muted"], labelsize=8, length=0, pad=4)
    axes.grid(color=COLOURS["line"], linewidth=0.6)
    axes.set_axisbelow(True)
    missing = None if panel is _LOSS_OF_LABELS else _missing(seen.curves)
    if missing:
        _say(axes, missing)
    else:
        panel.draw(axes, seen)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=COLOURS["muted"], fontsize=8)


def _missing(curves: Curves) -> str | None:
    """Why nothing can be drawn."""
    if not curves.sound:
        return "not known: a prediction is NaN,\nan element is invalid,\nor a weight is above max_weight"
    return None if (curves.negatives + curves.positives).any() else "nothing was counted"


def _say(axes: Axes, words: str) -> None:
    """In place of a picture."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=9, color=COLOURS["muted"], transform=axes.transAxes)


def _note(axes: Axes, words: str, x: float = 0.97, y: float = 0.06) -> None:
    side = "bottom" if y < 0.5 else "top"
    axes.text(x, y, words, fontsize=9, color=COLOURS["ink"], ha="right", va=side, transform=axes.transAxes)


def _legend(axes: Axes, title: str | None = None) -> None:
    how: dict[str, Any] = {"fontsize": 8, "title_fontsize": 8, "labelcolor": COLOURS["muted"], "handlelength": 1.2}
    axes.legend(frameon=False, title=title, **how).get_title().set_color(COLOURS["muted"])


def _calibration(axes: Axes, seen: Seen) -> None:
    both = [seen.curves.reliability(by=by) for by in ("width", "weight")]
    end = min(1.0, 1.08 * max(max(curve.prediction.max(), curve.target.max()) for curve in both)) or 1.0
    axes.plot([0.0, end], [0.0, end], color=COLOURS["muted"], linewidth=0.8, dashes=(4, 3))
    for curve, words, colour in zip(both, ("width", "weight"), (COLOURS["other"], COLOURS["accent"]), strict=True):
        # The area of a point is what its bin holds: one far off the line may stand for a handful of elements.
        areas = 7.0 + 25.0 * curve.weight / curve.weight.max()
        axes.plot(curve.prediction, curve.target, color=colour, linewidth=1.2, label=f"bins of equal {words}")
        axes.scatter(curve.prediction, curve.target, areas, color=colour, linewidth=0, zorder=3)
    margin = 0.02 * end
    axes.set(xlabel="mean prediction", ylabel="mean target", xlim=(-margin, end), ylim=(-margin, end + margin))
    _legend(axes)


def _scores(axes: Axes, seen: Seen) -> None:
    edges, classes = _by_score(seen.curves)
    for name, weights, colour, alpha in _classes(classes):
        if weights.any():
            shares = 100.0 * weights / weights.sum()
            axes.stairs(shares, edges, fill=True, color=colour, alpha=alpha, label=name, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.0)
    _score_ticks(axes, edges)
    axes.set(xlabel="predicted probability (logit scale)", ylabel="% of its class")
    _legend(axes)


def _losses(axes: Axes, seen: Seen) -> None:
    negatives, positives = seen.curves.negatives, seen.curves.positives
    logits = seen.curves.logits()
    total = (negatives + positives).sum()
    below = [_weight_below(_softplus(logits), negatives), _weight_below(_softplus(-logits[::-1]), positives[::-1])]
    fine = np.linspace(0.0, _softplus(logits[-1]), 4_001)
    end = max(1e-3, fine[np.searchsorted(below[0](fine) + below[1](fine), 0.99 * total)])
    edges = np.linspace(0.0, end, BARS + 1)
    for name, cumulated, colour, alpha in _classes(below):
        if cumulated(fine[-1]):
            shares = 100.0 * np.diff(cumulated(edges)) / total
            axes.stairs(shares, edges, fill=True, color=colour, alpha=alpha, label=name, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.0)
    above = 100.0 * (1.0 - (below[0](end) + below[1](end)) / total)
    axes.set(xlabel="loss (nats)", ylabel="% of all", xlim=(0.0, end), ylim=(0.0, None))
    _legend(axes, f"{above:.1f} % above {end:.2g}" if above >= 0.05 else None)


def _weight_below(losses: np.ndarray, weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The weight of the elements whose loss is less, evenly spread within each bin; ``losses`` are the bins' limits."""
    cumulated = np.concatenate([[0.0], np.cumsum(weights)])
    # What lies beyond the bins counts at their limits: below the least loss there is nothing but it.
    return lambda loss: np.interp(loss, losses, cumulated, left=0.0)


def _roc(axes: Axes, seen: Seen) -> None:
    area = seen.curves.roc_auc().value
    if np.isnan(area):
        _say(axes, "needs both classes")
        return
    false, true, _ = seen.curves.roc()
    axes.plot([0.0, 1.0], [0.0, 1.0], color=COLOURS["muted"], linewidth=0.8, dashes=(4, 3))
    axes.fill_between(*_corners(false, true), color=COLOURS["accent"], alpha=0.1, linewidth=0)
    axes.plot(*_corners(false, true), color=COLOURS["accent"], linewidth=1.6)
    _unit_square(axes, "false positive rate", "true positive rate")
    _note(axes, f"area {area:.4f}")


def _precision_recall(axes: Axes, seen: Seen) -> None:
    average = seen.curves.average_precision().value
    if np.isnan(average):
        _say(axes, "needs positives")
        return
    precision, recall, _ = seen.curves.precision_recall()
    found = recall > 0.0
    base_rate = seen.curves.positives.sum() / (seen.curves.positives + seen.curves.negatives).sum()
    axes.axhline(base_rate, color=COLOURS["muted"], linewidth=0.8, dashes=(4, 3))
    axes.fill_between(*_corners(recall[found], precision[found]), color=COLOURS["accent"], alpha=0.1, linewidth=0)
    axes.plot(*_corners(recall[found], precision[found]), color=COLOURS["accent"], linewidth=1.6)
    _unit_square(axes, "recall", "precision")
    _note(axes, f"average precision {average:.4f}\nbase rate {base_rate:.4f}", y=0.97)


def _loss_by_score(axes: Axes, seen: Seen) -> None:
    logits = seen.curves.logits()
    middles = (logits[:-1] + logits[1:]) / 2.0
    total = (seen.curves.negatives + seen.curves.positives).sum()
    edges, (negatives, positives) = _by_score(
        seen.curves, _softplus(middles) / total, _softplus(-middles) / total
    )  # Each bin has one loss, up to its width.
    for name, (low, high), colour, alpha in _classes(
        [(np.zeros_like(negatives), negatives), (negatives, negatives + positives)]
    ):
        if (high > low).any():
            axes.stairs(high, edges, baseline=low, fill=True, color=colour, alpha=alpha, label=name, linewidth=0)
            axes.stairs(high, edges, color=colour, linewidth=1.0)
    _score_ticks(axes, edges)
    axes.set(xlabel="predicted probability (logit scale)", ylabel="nats, of the mean loss")
    _legend(axes)


def _loss_of_labels(axes: Axes, seen: Seen) -> None:
    order = np.argsort(-seen.losses, kind="stable")
    order = order[np.isfinite(seen.losses[order])]
    if not order.size:
        _say(axes, "no label has a finite loss")
        return
    losses = seen.losses[order]
    if order.size <= MOST_NAMED:
        names = [printable(str(seen.names[k])) for k in order]
        names = [name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…" for name in names]
        axes.barh(np.arange(order.size), losses, color=COLOURS["accent"], height=0.62)
        axes.set_yticks(np.arange(order.size), names, parse_math=False)
        axes.set(xlabel="loss (nats)", ylim=(order.size - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        return
    places = np.arange(1, order.size + 1)
    axes.fill_between(places, losses, color=COLOURS["accent"], alpha=0.15, linewidth=0)
    axes.plot(places, losses, color=COLOURS["accent"], linewidth=1.6)
    axes.set(xlabel="labels, the worst first", ylabel="loss (nats)", xlim=(1, order.size), ylim=(0.0, None))


_OF_CURVES = (
    Panel(
        "Calibration",
        "Mean target against mean prediction, in 15 bins. On the dashed line, what was predicted happened.",
        _calibration,
    ),
    Panel("Scores", "How the predictions of each class are spread. Little overlap is good.", _scores),
    Panel(
        "Losses",
        "How the plain cross-entropy of single elements is spread; the 1 % with the largest is left out.",
        _losses,
    ),
    Panel("ROC", "Positives found against negatives taken for positives, at every threshold.", _roc),
    Panel(
        "Precision and recall",
        "How many of those found are positive, at every threshold. The dashed line is the base rate.",
        _precision_recall,
    ),
)

_LOSS_BY_SCORE = Panel(
    "Where the loss comes from",
    "What elements of each score add to the mean plain cross-entropy, one class upon the other.",
    _loss_by_score,
)

_LOSS_OF_LABELS = Panel("Labels", "The mean loss of each label, the worst first.", _loss_of_labels)


def _classes(values: Sequence) -> list[tuple]:
    """(name, value, colour, opacity) of negatives and positives."""
    return [
        ("negatives", values[0], COLOURS["other"], 0.35),
        ("positives", values[1], COLOURS["accent"], 0.3),
    ]


def _by_score(curves: Curves, *factors: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """(logits between bars, [negatives, positives] in each bar), over the bins that hold something."""
    logits = curves.logits()
    used = np.flatnonzero(curves.negatives + curves.positives)
    first, last = used[0], used[-1] + 1
    group = -(-(last - first) // BARS)
    starts = np.arange(first, last, group)
    weighed = [curves.negatives, curves.positives]
    if factors:
        weighed = [part * factor for part, factor in zip(weighed, factors, strict=True)]
    edges = logits[np.append(starts, min(starts[-1] + group, curves.bins))]
    return edges, [np.add.reduceat(part[: starts[-1] + group], starts) for part in weighed]


def _score_ticks(axes: Axes, edges: np.ndarray) -> None:
    """Probabilities on a scale of logits, as many as have room."""
    low, high = edges[0], edges[-1]
    margin = 0.02 * (high - low)
    taken: list[float] = []
    places: list[float] = []
    for p in TICKS:
        place = float(np.log(p / (1.0 - p)))
        if low - margin <= place <= high + margin and all(abs(place - other) > (high - low) / 8.0 for other in places):
            taken.append(p)
            places.append(place)
    axes.set_xticks(places, [f"{p:.6f}".rstrip("0") for p in taken])
    axes.set(xlim=(low - margin, high + margin), ylim=(0.0, None))


def _unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0.0, 1.0), ylim=(0.0, 1.02))


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve without points that repeat, and to a precision beyond sight: thousands of bins are empty."""
    x, y = np.round(x, 4), np.round(y, 4)
    moved = np.append(True, (np.diff(x) != 0.0) | (np.diff(y) != 0.0))
    return x[moved], y[moved]


def _softplus(logits: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, logits)


# SVG for a page -----------------------------------------------------------------------------------------------------


def _for_page(root: ElementTree.Element, panel: Panel, prefix: str) -> ElementTree.Element:
    """Matplotlib's document as an element of a page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    ids: dict[str, str] = {}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag in ("path", "clipPath") and "id" in element.attrib:
            ids[element.attrib["id"]] = f"{prefix}{len(ids)}"
    for element in root.iter():
        _as_attributes(element, ids)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {"viewBox": box, "role": "img", "aria-label": f"{panel.title}. {panel.text}"}
    return root


def _as_attributes(element: ElementTree.Element, ids: dict[str, str]) -> None:
    """Names without namespaces, declarations as attributes, ids that are counted, colours that the page knows."""
    found: dict[str, str] = {}
    for name, value in element.attrib.items():
        name = name.rpartition("}")[2]
        if name == "style":
            declarations = (part.partition(":") for part in value.split(";") if part.strip())
            found |= {key.strip(): content.strip() for key, _, content in declarations}
        elif name == "id":
            found |= {"id": ids[value]} if value in ids else {}
        else:
            found[name] = value
    if "font" in found:  # A shorthand is not an attribute.
        size = re.search(r"[\d.]+px", found.pop("font"))
        found |= {"font-size": size[0]} if size else {}
    found.pop("font-family", None)  # The page's.
    for name, value in found.items():
        value = re.sub(r"(?<=#)\w+", lambda match: ids.get(match[0], match[0]), value)
        for word, colour in COLOURS.items():
            value = value.replace(colour, f"var(--{word})")
        if name == "d":
            value = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
            value = value.replace("\n", "")
        found[name] = value
    element.attrib.clear()
    element.attrib.update(found)
    if element.tag != "text":
        element.tail = None
        if element.tag != "tspan":
            element.text = None
    else:
        element.tail = None
