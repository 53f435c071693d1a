"""The report on finished sweeps, as Markdown."""

import math
from collections.abc import Iterable

import numpy as np

from tests import tolerances
from tests.accuracy.peers import LIBRARIES, LOGITS, PART, PROBABILITIES, SAMPLE
from tests.accuracy.sweep import PARTS, broken

ALL_DIGITS = 2.0**22
"""An error of so many ulp of a float32 leaves one bit of it, or none."""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown; columns after the first are aligned to the right."""
    header = list(header)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def ulp(error: float) -> str:
    """An error, rounded up: what is printed is not exceeded."""
    return "inf" if error == math.inf else f"{math.ceil(error * 1e5) / 1e5:.5f}"


def share(part: int, whole: int) -> str:
    """Per cent, rounded down: only all is called all."""
    if part == whole:
        return "all"
    return f"{math.floor(part / whole * 1e4) / 100:.2f} %"


def place(row: dict, name: str) -> str:
    """The input at which something was found, with as many digits as tell it from its neighbours."""
    value = row[name]
    if value is None:
        return "-"
    return repr(value) if row["type"] == "float64" else str(np.float32(value))


def error_table(rows: list[dict]) -> str:
    header = ("output", "y", "results", "largest error, ulp", "at", "correctly rounded", "within 1 ulp")
    same_result = len({(row["type"], row["result"]) for row in rows}) == 1
    lines = []
    for row in rows:
        name = row["output"] if same_result else f"{row['type']}, {row['output']} in {row['result']}"
        shares = (share(row[count], row["points"]) for count in ("right", "within_one"))
        error = (ulp(row["largest"]), place(row, "largest_at"))
        lines.append((name, str(row["target"]), f"{row['points']:,}", *error, *shares))
    return table(header, lines)


def step_table(rows: list[dict]) -> str:
    header = ("inputs, loss in", "y", "steps back", "longest, ulp", "at")
    return table(
        header,
        (
            (
                f"{row['type']} {row['space']}, {row['result']}",
                str(row["target"]),
                f"{row['steps']:,}",
                str(row["longest"]),
                place(row, "longest_at"),
            )
            for row in rows
            if row["output"] == "loss"
        ),
    )


def reference_table(errors: dict) -> str:
    lines = [
        (name, f"{error['points']:,}", f"2^{math.log2(error['relative']):.1f}", f"2^{exponent(name, error):.1f}")
        for name, error in errors.items()
    ]
    return table(("reference for", "inputs", "largest relative error", "at most, in ulp of the type"), lines)


def exponent(name: str, error: dict) -> float:
    """log2 of a relative error in ulp: a number is at most 2^(bits of fraction + 1) of its ulp."""
    return math.log2(error["relative"]) + (53 if name.startswith("float64") else 24)


def peer_cell(row: dict | None) -> str:
    if row is None:
        return "-"
    error = "all digits" if row["largest"] >= ALL_DIGITS else f"{math.ceil(row['largest'] * 100) / 100:.2f}"
    return f"{error} ({share(row['within_one'], row['points'])})"


def peer_table(rows: list[dict]) -> str:
    cells = {(row["library"], row["space"], row["output"], row["target"]): row for row in rows}
    names = [name for name in LIBRARIES if any(row["library"] == name for row in rows)]
    lines = [
        (f"{space}, {output}", str(target), *(peer_cell(cells.get((name, space, output, target))) for name in names))
        for space in dict.fromkeys(row["space"] for row in rows)
        for output in ("loss", "gradient", "hessian")
        for target in (0, 1)
    ]
    return table(("inputs, output", "y", *names), lines)


def text(results: dict) -> str:
    """The page."""
    whole = [row for row in results["rows"] if not row["space"].startswith("sampled")]
    sampled = [row for row in results["rows"] if row["space"].startswith("sampled")]

    def of(space: str, *types: str) -> list[dict]:
        return [row for row in whole if row["space"] == space and row["type"] in types]

    machine = results["conditions"]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    minutes = sum(results["seconds"].values()) / 60
    asked, undecided = (sum(row[count] for row in whole) for count in ("asked", "undecided"))
    against = broken(results)
    verdict = "No promise is broken by what follows." if not against else "Promises broken by what follows:"
    absent = [name for name in (*PARTS, PART.name) if name not in results["seconds"]]
    missing = "".join(f" {name} was not installed and is left out." for name in results["missing"])
    narrow = " and ".join(f"{limit:.5f} in {name}" for name, limit in tolerances.ULP_NARROW.items())
    low, high = LOGITS
    lines = [
        "# Accuracy",
        "",
        "Written by `python -m tests.accuracy --page docs/accuracy.md` from what `ci/exhaustive` measured; not edited.",
        "",
        f"Measured on {results['date']} at commit {results['commit']}, on one {machine['processor']} with "
        f"{machine['cores']} cores, Python {machine['python']}, {versions}; {minutes:.0f} minutes of one core.",
        "",
        "Hard targets, no options. An error is in units in the last place (ulp) of the true value, in the type of the "
        "result. *Results* counts those whose true value is at least the smallest normal number of the type that is "
        "computed in (2^-126; 2^-1022 for float64). Below it, results along logits have to be 0, which is checked; "
        "along probabilities they are held to the same error. NaN has to give NaN, and a value that rounds to infinity "
        "infinity. Signs, and gradients in [-1, 1] and hessians in [0, 1/4] along logits, are checked for every "
        "result, and that `value_and_grad` and `grad_and_hess` give the same gradient.",
        "",
        f"Promised: at most {tolerances.ULP_HARD_TARGETS:g} ulp in float32 and float64, {narrow}; a loss that goes "
        f"back by at most {tolerances.BACKWARD_STEP_ULP} ulp where the prediction goes on. {verdict}",
        *([""] + [f"* {line}" for line in against] if against else []),
        *(["", f"Not measured: {', '.join(absent)}."] if absent else []),
        "",
        "Shares are over all bit patterns. Most patterns are of tiny or huge numbers, where results are easy; the last "
        "table is about the others.",
        "",
        "## Every float32 logit",
        "",
        error_table(of("logits", "float32")),
        "## Every float32 probability",
        "",
        "Every float32 in [0, 1], exact logarithms (`log_floor=None`).",
        "",
        error_table(of("probabilities", "float32")),
        "## Every float16 and bfloat16",
        "",
        "They are computed in float32 and rounded once more to the type of the result. A reduced loss is that of one "
        "element; in float64 it is the float32 value, and its error is in ulp of that type.",
        "",
        error_table(of("logits", "float16", "bfloat16")),
        "Probabilities:",
        "",
        error_table(of("probabilities", "float16", "bfloat16")),
        "## Float64, sampled",
        "",
        "Random bits, all exponents alike, uniform values, numbers beside the places where the computation changes, "
        "runs of close numbers, powers of two and integers with their neighbours. Logits:",
        "",
        error_table(of("logits", "float64")),
        "Probabilities:",
        "",
        error_table(of("probabilities", "float64")),
        "## Steps back",
        "",
        "The true loss rises with the logit or probability for y = 0, and falls for y = 1. Counted is where the one "
        "computed does the opposite from one input to the next: neighbours of the type, or of the sorted sample.",
        "",
        step_table(whole),
        "## The reference",
        "",
        "For float32 and narrower types: float64 arithmetic with the C library's exp, log and log1p. For float64: "
        f"pairs of float64. Both beside mpmath with 60 digits. {asked:,} results were too near to a rounding boundary "
        f"for the reference to tell whether they are correctly rounded; mpmath decided. {undecided:,} are open, and "
        "not counted as correctly rounded.",
        "",
        reference_table(results["reference"]),
        "## Beside other libraries",
        "",
        f"float32, at most {SAMPLE:,} different inputs, half of them uniform over bit patterns and half over values: "
        f"logits of size 2^{math.log2(low):.0f} to {high:g} (values: to {high:g}), probabilities from "
        f"2^{math.log2(PROBABILITIES[0]):.0f} to 1 - 2^-24. True values below 2^-126 are left out. Largest error in "
        "ulp, and in brackets the share within 1 ulp; *all digits*: the result has no correct digit, as a 0 in place "
        "of 1e-9. PyTorch: `binary_cross_entropy_with_logits`, `binary_cross_entropy` and their gradients by autograd. "
        "optax: `sigmoid_binary_cross_entropy` and `jax.grad`. scikit-learn: `HalfBinomialLoss`, which computes in "
        f"float64; its `log_loss` gives no loss of single elements.{missing}",
        "",
        peer_table(sampled).rstrip(),
        "",
    ]
    return "\n".join(lines)
