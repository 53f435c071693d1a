"""The table and the plot of a run, from its results file.

    python -m benchmarks.report benchmarks/results/cpu.json --readme README.md --plot docs/speed-cpu.png

The table goes between the README's lines ``<!-- benchmark cpu -->`` and ``<!-- /benchmark cpu -->``; for a GPU the word
is ``cuda``. Several files are put together only where machine, driver, versions and commit are the same: times are
compared within one run, and at least on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, CURVES

ORIGIN = ("machine", "device", "gpu", "threads", "cache", "commit", "table_size")
"""What has to be the same for rows that stand side by side."""

LIBRARIES = {
    **{"numba": "Numba", "numpy": "NumPy", "cupy-cuda12x": "CuPy", "cupy-cuda13x": "CuPy", "torch": "PyTorch"},
    **{"triton": "Triton", "jax": "JAX", "scikit-learn": "scikit-learn"},
}
"""Packages whose versions stand above the table."""

FOR_A_GPU = ("cupy-cuda12x", "cupy-cuda13x", "triton")

COLOURS = {
    "gpubce": "#d62728",
    "gpubce.adapters.torch": "#ff9896",
    "PyTorch": "#1f77b4",
    "torch.compile": "#6baed6",
    "JAX": "#9467bd",
    "scikit-learn": "#e69f00",
    "NumPy": "#7f7f7f",
    "CuPy": "#2ca02c",
    "Triton": "#8c564b",
}


class MixedResults(ValueError):
    """Rows of different machines, versions or commits."""


# Results --------------------------------------------------------------------------------------------------------------


def together(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One document with the rows of all, whose origin has to be the same."""
    first = documents[0]
    for other in documents[1:]:
        for key in ORIGIN:
            if first.get(key) != other.get(key):
                raise MixedResults(
                    f"results of different {key} are not put together: {first.get(key)} and {other.get(key)}. "
                    "Measure them in one run"
                )
    rows = [row for document in documents for row in document["rows"]]
    seen = [(row["case"], row["size"], row["provider"]) for row in rows]
    if twice := {key for key in seen if seen.count(key) > 1}:
        raise MixedResults(f"{sorted(twice)[0]} was measured twice: give one of the files")
    return {**first, "date": max(document["date"] for document in documents), "rows": rows}


def left_out(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Who was not timed, where and why; once for each provider and reason."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    cases = set()
    for row in rows:
        cases.add(row["case"])
        if row["status"] != "timed":
            found.setdefault((row["provider"], f"{row['status']}: {row['reason']}"), {})[row["case"]] = None
    return [
        f"{provider} ({'; '.join(where) if len(where) < len(cases) else 'every case'}) {reason}"
        for (provider, reason), where in found.items()
    ]


# The table ------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """With three digits and a unit."""
    units = {"us": 1e6, "ms": 1e3, "s": 1.0}
    values = {unit: float(f"{seconds * factor:.3g}") for unit, factor in units.items()}
    unit, value = next((pair for pair in values.items() if pair[1] < 1000), ("s", values["s"]))
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def heading(document: dict[str, Any]) -> str:
    """What was measured, on what, with what, when."""
    machine, gpu = document["machine"], document["gpu"]
    threads = f"{document['threads']} threads of an {machine['processor']} processor"
    where = f"an {gpu['name']}, driver {gpu['driver']}" if gpu else threads
    versions = [
        f"{name} {machine['versions'][key]}"
        for key, name in LIBRARIES.items()
        if key in machine["versions"] and (gpu or key not in FOR_A_GPU)
    ]
    spreads = [
        (row["middle_half"][1] - row["middle_half"][0]) / row["median"]
        for row in document["rows"]
        if row["status"] == "timed"
    ]
    spread = f"{statistics.median(spreads):.0%} of it, in the worst {max(spreads):.0%}" if spreads else "nothing"
    return textwrap.fill(
        f"{document['table_size']:,} elements on {where}; {', '.join(versions)}; commit {document['commit']}, "
        f"{document['date']}. Times are medians; in a typical row the middle half of the rounds spans {spread}. In "
        "brackets, how many times as long as gpubce. The limit is that of memory.",
        width=120,
    )


def cells(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table, the first with the names of providers."""
    rows = [row for row in document["rows"] if row["size"] == document["table_size"]]
    timed = {(row["case"], row["provider"]): row for row in rows if row["status"] == "timed"}
    marks = {(row["case"], row["provider"]): row["status"] for row in rows if row["status"] in ("wrong", "failed")}
    names = [name for name in ("limit", *COLOURS) if any(provider == name for _, provider in {**timed, **marks})]
    table: list[tuple[str, ...]] = [("", *names)]
    for case in [name for name in CASES if any(row["case"] == name for row in rows)]:
        own = timed.get((case, "gpubce"))
        line = [case]
        for name in names:
            row = timed.get((case, name))
            text = duration(row["median"]) if row else marks.get((case, name), "")
            if row and own and name not in ("gpubce", "limit"):
                text += f" ({row['median'] / own['median']:.1f})"
            elif row and own and name == "limit":
                text += f" ({row['median'] / own['median']:.2f})"
            line.append(text)
        table.append(tuple(line))
    for case in [name for name in CURVES if (name, "gpubce") in timed]:
        # The drop-in finds the kernels that gpubce has compiled for the row before.
        own = [name for name in names if name not in ("limit", "gpubce.adapters.torch")]
        first = {name: duration(timed[case, name]["first_call"]) for name in own if (case, name) in timed}
        table.append((f"first call, {case}", *(first.get(name, "") for name in names)))
    return table


def text(document: dict[str, Any]) -> str:
    """Heading and table in Markdown, and who is wrong."""
    lines = cells(document)
    table = [f"| {' | '.join(line)} |" for line in lines]
    table.insert(1, "|" + "---|" * len(lines[0]))
    if wrong := left_out(row for row in document["rows"] if row["status"] in ("wrong", "failed")):
        table += ["", "Not timed:", "", *(f"* {line}" for line in wrong)]
    return "\n".join([heading(document), "", *table])


def put_into(readme: str, device: str, block: str) -> str:
    """The README with the block between the marks of the device."""
    marks = f"<!-- benchmark {device} -->", f"<!-- /benchmark {device} -->"
    pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise SystemExit(f"the README has no place for the table: add the lines {marks[0]} and {marks[1]}")
    return pattern.sub(lambda found: f"{marks[0]}\n\n{block}\n\n{marks[1]}", readme)


# The plot -------------------------------------------------------------------------------------------------------------


def plot(document: dict[str, Any], path: Path) -> None:
    """Time against the number of elements, a curve for each provider, and the limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in document["rows"] if row["status"] == "timed"]
    cases = [case for case in CURVES if len({row["size"] for row in rows if row["case"] == case}) > 1]
    if not cases:
        raise SystemExit(f"there is nothing to plot: measure {' and '.join(CURVES)} at several sizes")
    width = 4.6 * len(cases) + 2.4
    figure, axes = pyplot.subplots(1, len(cases), figsize=(width, 4.5), sharey=True, squeeze=False)
    for panel, case in zip(axes[0], cases, strict=True):
        for name in ("limit", *COLOURS):
            points = sorted((row["elements"], row) for row in rows if (row["case"], row["provider"]) == (case, name))
            if points:
                n = [elements for elements, _ in points]
                style = {"color": "black", "linestyle": "--"} if name == "limit" else {"color": COLOURS[name]}
                thick = 2.5 if name == "gpubce" else 1.3
                panel.plot(n, [row["median"] for _, row in points], label=name, linewidth=thick, **style)
                low, high = zip(*(row["middle_half"] for _, row in points), strict=True)
                panel.fill_between(n, low, high, alpha=0.2, linewidth=0, color=style["color"])
        panel.set(title=case, xlabel="elements", yscale="log")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("seconds")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False)
    name = document["gpu"]["name"] if document["gpu"] else document["machine"]["processor"]
    figure.suptitle(f"{name}, commit {document['commit']}, {document['date']}", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1 - 2.3 / width, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files that python -m benchmarks --output has written")
    parser.add_argument("--readme", type=Path, help="put the table into this file; without it, print it")
    parser.add_argument("--plot", type=Path, help="draw the plot there")
    arguments = parser.parse_args(words)
    try:
        document = together([json.loads(path.read_text()) for path in arguments.results])
    except MixedResults as error:
        raise SystemExit(str(error)) from None
    block = text(document)
    if arguments.plot:
        plot(document, arguments.plot)
        print(f"wrote {arguments.plot}", file=sys.stderr)
        link = os.path.relpath(arguments.plot, (arguments.readme or Path("README.md")).parent)
        block += f"\n\n![Time against the number of elements: {' and '.join(CURVES)}]({link})"
    if arguments.readme is None:
        print(block)
        return
    arguments.readme.write_text(put_into(arguments.readme.read_text(), document["device"], block))
    print(f"wrote {arguments.readme}", file=sys.stderr)


if __name__ == "__main__":
    main()
