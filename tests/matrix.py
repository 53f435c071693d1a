"""The matrix: same bits, everywhere (promise 2), against one committed file of digests.

Its rows are a covering array of the options for each type of input: every pair of target type, reduction, axis, layout
and all other factors occurs. A row is computed at shapes that lie on both sides of every edge of a plan: of the small
plan, which the backends without a device can execute, and of the full one. `tests/digests.json` holds a digest of the
results at each shape. They were computed on a CPU; a CPU with any number of threads and any instruction set, the
interpreter for PTX, Numba's simulator and a GPU have to give the same.

    python -m tests.matrix --check                                    # the CPU, both plans
    python -m tests.matrix --check --backend ptx --compute-capability 8.0
    python -m tests.matrix --check --backend gpu
    python -m tests.matrix --write                                    # from the CPU

A change of the specification (a formula, a coefficient, the order of additions) changes digests: write the file anew
in the same commit, knowing which rows changed and why. Nothing else may change it.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from tqdm import tqdm

from gpubce.spec.plan import PLAN, Plan
from tests import backends
from tests.cases import INPUT_TYPES, LABEL_VECTORS, METHODS, TARGET_TYPES, Case, Results, differences, digest
from tests.pairwise import covering_rows

DIGESTS = Path(__file__).parent / "digests.json"
PLANS = {"small": backends.SMALL_PLAN, "full": PLAN}
COMPUTE_CAPABILITIES = ((7, 5), (9, 0), (12, 0))
"""Rows are compiled for these by turns."""

# The factors --------------------------------------------------------------------------------------------------------

FIRST_TARGETS = ("bool", "int64", "float32", "float64")
FIRST_LAYOUTS = ("C", "strided", "unaligned")
FACTORS = {
    "reduction": [
        {"reduction": "none"},
        {"reduction": "sum"},
        {"reduction": "mean"},
        {"denominator": "weights"},
        {"denominator": "positives"},
    ],
    "target": [*FIRST_TARGETS, *(name for name in TARGET_TYPES if name not in FIRST_TARGETS)],
    "method": list(METHODS),
    "space": [
        {"from_logits": True},
        {},
        {"log_floor": None},
        {"eps": 1e-3},
    ],
    "axis": [{}, {"axis": 0}, {"axis": -1}],
    "weight": [None, "float32", "row", "column"],
    "mask": [None, "full", "row"],
    "pos_weight": [{}, {"pos_weight": 2.5}, {"pos_weight": LABEL_VECTORS["pos_weight"](13)}],
    "label_weight": [{}, {"label_weight": 0.7}, {"label_weight": LABEL_VECTORS["label_weight"](13)}],
    "class_weight": [{}, {"class_weight": (0.3, 1.7)}],
    "smoothing": [{}, {"label_smoothing": 0.1}],
    "focal": [{}, {"gamma": 2.0}, {"gamma": 0.5, "alpha": 0.25}, {"alpha": 0.75}],
    "ignore": [{}, {"ignore_index": 0}, {"ignore_index": 1}],
    "base": [{}, {"base": 2.0}],
    "layout": [*FIRST_LAYOUTS, "F", "reversed"],
}
"""The values of each factor; dictionaries are options. The default suite takes the first targets and layouts."""


@cache
def covering_array() -> tuple[list[tuple[int, ...]], int]:
    """Rows of value numbers in which every pair of values of two factors occurs; so many of them do for the first
    values."""
    sizes = {name: len(values) for name, values in FACTORS.items()}
    first = covering_rows(list((sizes | {"target": len(FIRST_TARGETS), "layout": len(FIRST_LAYOUTS)}).values()))
    return covering_rows(list(sizes.values()), first), len(first)


def _case(input_type: str, k: int, row: tuple[int, ...]) -> Case:
    """What row k of the covering array computes. Three of four sums are asked for in float64: rounded to float32 they
    would hide most differences of one bit in an element."""
    chosen = {name: values[k] for (name, values), k in zip(FACTORS.items(), row, strict=True)}
    options: dict = {}
    for value in chosen.values():
        if isinstance(value, dict):
            options.update(value)
    if options.get("reduction") == "none":
        options.pop("axis", None)
    elif k % 4 < 3:
        options["dtype"] = "float64"
    if chosen["method"] == "state" and options.get("reduction") == "none":
        chosen["method"] = "value"
    return Case(
        tuple(sorted(options.items())),
        input_type,
        chosen["target"],
        weight=chosen["weight"],
        mask=chosen["mask"],
        layout=chosen["layout"],
        methods=(chosen["method"],),
    )


# The shapes ---------------------------------------------------------------------------------------------------------
# No axis is of length 1, where other kernels would do. Where an edge has two shapes, rows take them by turns. Outputs
# are sometimes a multiple of 4, because CUDA then loads four at once.

WHOLE = {
    "small": (
        [(2, 2)],  # a vector load of 4
        [(3, 2)],
        [(8, 4), (10, 3)],  # a row of 32 lanes
        [(11, 3)],
        [(16, 4), (21, 3)],  # a block of 64
        [(13, 5)],
        [(512, 8), (315, 13)],  # a block of 64 blocks
        [(241, 17)],
    ),
    "full": (
        [(2, 2)],
        [(3, 2)],
        [(64, 16), (341, 3)],  # a row of 1,024 lanes
        [(41, 25)],
        [(512, 16), (630, 13)],  # a block of 8,192
        [(2731, 3)],
        [(4099, 41)],  # enough blocks for many threads; a block of blocks is 2^26 elements and has a row of its own
    ),
}
ALONG_AXES = {
    "small": (
        [(8, 4), (7, 3)],  # a run of 8 elements
        [(9, 8), (9, 5)],
        [(8, 32), (8, 31)],  # a row of 32 outputs
        [(9, 36), (9, 33)],
        [(256, 4), (255, 3)],  # a row of 32 runs
        [(257, 4), (257, 5)],
        [(512, 4), (511, 2)],  # a block of 64 runs
        [(513, 8), (513, 3)],
    ),
    "full": (
        [(256, 4), (255, 3)],  # a run of 256
        [(257, 8), (257, 5)],
        [(300, 1024), (300, 1023)],  # a row of 1,024 outputs
        [(3, 1028), (3, 1025)],
    ),
}
"""(reduced, kept)"""
LONG_AXES = [(262_144, 2), (262_145, 2), (2_097_152, 2), (2_097_153, 2)]
"""On both sides of a row and a block of runs, for some of the rows that reduce axis 0."""

SMALL_SIZES = [0, 1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129, 64 * 64, 64 * 64 + 1]
FULL_SIZES = [0, 1, 2, 3, 4, 5, 1023, 1024, 1025, 8191, 8192, 8193, 16_384, 16_385, 100_000]
"""Of arrays with one axis."""

SIMULATED_ELEMENTS = 330
"""What the simulator is given at most: it takes 5 to 25 ms for each element."""

# The rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One computation at several shapes."""

    name: str
    small: tuple[Case, ...]
    full: tuple[Case, ...]
    everyday: bool = False
    """Whether the default suite runs it, and not only the exhaustive one."""
    interpreted: tuple[int, ...] = ()
    """The small cases that the default suite executes as PTX."""
    simulated: tuple[int, ...] = ()
    """The small cases that the simulator is given."""
    compute_capability: tuple[int, int] = (9, 0)

    def cases(self, plan: str) -> tuple[Case, ...]:
        """Those of one plan."""
        return self.small if plan == "small" else self.full

    def inputs(self) -> str:
        """The digest of all arguments."""
        digests = (digest(case.arrays) for case in self.small + self.full)
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:8]


MORE = [
    Case((("denominator", "rows"), ("from_logits", True)), methods=METHODS),
    Case((("axis", (0, 2)), ("denominator", "rows"), ("from_logits", True)), shape=(3, 5, 4), methods=METHODS),
    Case((("from_logits", True), ("log_floor", -5.0)), "float64", "uint8", layout="F", methods=METHODS),
    Case((("from_logits", True), ("ignore_index", float("nan"))), "float16", "float16", methods=METHODS),
    Case((("axis", 1), ("label_axis", 1), ("pos_weight", (1.0, 2.0, 3.0))), shape=(2, 3, 2, 5), layout="reversed"),
    Case((("from_logits", True),), shape=(3, 2, 2, 3, 2), weight="column", layout="strided"),
    Case((("from_logits", True),), shape=(0, 4), methods=METHODS),
    Case((("axis", 0), ("from_logits", True)), shape=(0, 4), methods=METHODS),
    Case((("axis", 0), ("from_logits", True)), "bfloat16", "uint64", shape=(70, 3), methods=METHODS),
]
"""What the factors leave out: rows, several axes, floors of logits, NaN as the ignored value, many axes, nothing."""

RARE = [
    Case((("from_logits", True), ("ignore_index", 255)), "float32", "uint8", shape=(130,)),
    Case((("from_logits", True), ("ignore_index", -100)), "float64", "int64", shape=(130,)),
    Case((("from_logits", True), ("ignore_index", 2**64 - 1)), "float16", "uint64", shape=(130,)),
    Case((("from_logits", True), ("ignore_index", 0.5)), "float32", "bfloat16", shape=(130,)),
    Case((("from_logits", True),), "float64", "float16", weight="float16", shape=(130,)),
    Case((("axis", 0),), "float16", "bool", weight="bfloat16", shape=(65, 3)),
    Case((("from_logits", True),), "bfloat16", "float64", weight="float64", shape=(130,)),
    Case((("from_logits", True),), "float32", "float32", weight="uint8", shape=(130,)),
    Case((("dtype", "float16"), ("from_logits", True)), shape=(130,)),
    Case((("dtype", "bfloat16"), ("from_logits", True)), "float64", shape=(130,)),
    Case((("base", 10.0), ("from_logits", True), ("reduction", "none")), "float64", shape=(130,)),
    Case((("eps", 1e-7), ("reduction", "none")), "float64", shape=(130,)),
]
"""Other ignored values, other types of weights and results, other bases and clips."""

EVALUATION = [
    Case((("from_logits", True),), "float32", "bool", methods=("evaluation",)),
    Case((), "float16", "float32", weight="float32", mask="full", methods=("evaluation",)),
    Case((("axis", 0), ("from_logits", True)), "float32", "uint8", shape=(40, 3), methods=("evaluation",)),
    Case(
        (("axis", 0), ("label_weight", (0.5, 2.0, 0.1)), ("log_floor", None)),
        "float64",
        "float64",
        shape=(40, 3),
        weight="column",
        layout="strided",
        methods=("evaluation",),
    ),
    Case((("from_logits", True), ("ignore_index", -1)), "bfloat16", "int8", methods=("evaluation",)),
    Case((("from_logits", True), ("gamma", 2.0)), "float64", "float16", weight="row", methods=("evaluation",)),
    Case((("axis", 1),), "float32", "bfloat16", shape=(3, 50), layout="unaligned", methods=("evaluation",)),
]
"""All sums and the histogram."""

FULL = [
    Case((("dtype", "float64"), ("from_logits", True)), "float32", "uint8", shape=(20_011,)),
    Case((("from_logits", True),), "float64", "float32", shape=(9_000,), methods=("value",)),
    Case((("dtype", "float64"),), "bfloat16", "bool", shape=(16_384,), methods=("value",)),
    Case((("axis", 0), ("dtype", "float64"), ("from_logits", True)), "float16", "bool", shape=(1_000, 13)),
]
"""Executed as PTX on the full plan."""

SIZES = Case((("dtype", "float64"), ("from_logits", True)), edges="finite")
BLOCKS_OF_BLOCKS = replace(SIZES, target_type="bool", methods=("value",))


@cache
def matrix() -> tuple[Row, ...]:
    """All rows."""
    rows = list(_covering())
    for name, cases in (("more", MORE), ("rare", RARE)):
        for k, case in enumerate(cases):
            both = case, replace(case, seed=1, edges="finite")
            rows.append(Row(f"{name}-{k}", both, both, name == "more", (0, 1), (0,)))
    for k, case in enumerate(EVALUATION):
        both = case, replace(case, seed=1, edges="finite")
        rows.append(Row(f"evaluation-{k}", both, both, k in (0, 3, 4), (0, 1), (0,)))
    for k, case in enumerate(FULL):
        rows.append(Row(f"full-{k}", (), (case.at(case.shape, k, "finite"),)))
    for layout in ("C", "unaligned"):
        small, full = (
            tuple(replace(SIZES, shape=(size,), layout=layout, seed=size) for size in sizes)
            for sizes in (SMALL_SIZES, FULL_SIZES)
        )
        rows.append(Row(f"sizes-{layout}", small, full, True, tuple(range(len(small)))))
    blocks = tuple(BLOCKS_OF_BLOCKS.at((PLAN.block**2 + k,), k, "finite") for k in (0, 1))
    rows.append(Row("blocks-of-blocks", (), blocks))
    return tuple(rows)


@cache
def _everyday() -> set[tuple[str, int]]:
    """(type, row of the covering array) for the default suite: each of the first rows for one type, by turns, and for
    each type as many more as it takes to meet every value that stands in them. So every pair of values occurs, the
    types among them, in a third of the rows."""
    array, first = covering_array()
    chosen = set()

    def values_in(rows: Sequence[tuple[int, ...]]) -> set[tuple[int, int]]:
        return {found for row in rows for found in enumerate(row)}

    for turn, input_type in enumerate(INPUT_TYPES):
        rows = list(range(turn, first, len(INPUT_TYPES)))
        missing = values_in(array[:first]) - values_in([array[k] for k in rows])
        while missing:
            best = max(range(first), key=lambda k: len(missing & values_in([array[k]])))
            rows.append(best)
            missing -= values_in([array[best]])
        chosen |= {(input_type, k) for k in rows}
    return chosen


def _covering() -> Iterator[Row]:
    turns: Counter = Counter()
    everyday_turns: Counter = Counter()
    array, first = covering_array()
    for input_type in INPUT_TYPES:
        for k, values in enumerate(array):
            case = _case(input_type, k, values)
            options = dict(case.options)
            axis = options.get("axis")
            group = k < first, options.get("reduction"), options.get("denominator"), axis is None
            turn = turns[group]
            turns[group] += 1
            everyday = (input_type, k) in _everyday()
            emulated = everyday_turns[everyday, *group]
            everyday_turns[everyday, *group] += 1
            small, full = (_at_shapes(case, plan, turn, 16 * k) for plan in ("small", "full"))
            if axis == 0 and turn % 4 == 3:
                shape = LONG_AXES[turn // 4 % len(LONG_AXES)]
                full += (case.at(shape, 16 * k + len(full), "finite"),)
            few = [j for j, case in enumerate(small) if case.shape[0] * case.shape[1] <= SIMULATED_ELEMENTS]
            yield Row(
                f"{input_type}-{k}",
                small,
                full,
                everyday,
                interpreted=tuple(range(len(small))),
                simulated=(few[turn % len(few)],),
                compute_capability=COMPUTE_CAPABILITIES[emulated % len(COMPUTE_CAPABILITIES)],
            )


def _at_shapes(case: Case, plan: str, turn: int, seed: int) -> tuple[Case, ...]:
    """Infinities and NaN at every third shape: where they are, a sum shows nothing else."""
    axis = dict(case.options).get("axis")
    cases = []
    for k, variants in enumerate(WHOLE[plan] if axis is None else ALONG_AXES[plan]):
        shape = variants[turn // 4 % len(variants)]
        cases.append(case.at(shape[::-1] if axis == -1 else shape, seed + k, "all" if k % 3 == 2 else "finite"))
    return tuple(cases)


def named(name: str) -> Row:
    """The row of that name."""
    return next(row for row in matrix() if row.name == name)


# Digests ------------------------------------------------------------------------------------------------------------

Backend = Callable[[Case, Plan], Results]


@cache
def committed() -> dict[str, dict[str, str]]:
    """For each row: the digest of its inputs, and those of its results, in order, for each plan."""
    return json.loads(DIGESTS.read_text())


def problems(row: Row, plan: str, backend: Backend, chosen: Sequence[int] | None = None) -> list[str]:
    """Where the backend's results are not those of the digests, in words. ``chosen``: only these cases."""
    cases = row.cases(plan)
    expected = committed().get(row.name, {}).get(plan, "").split()
    if len(expected) != len(cases):
        return [f"{row.name}: {len(cases)} cases on the {plan} plan, {len(expected)} digests: see tests.matrix --write"]
    found = []
    for k in range(len(cases)) if chosen is None else chosen:
        results = backend(cases[k], PLANS[plan])
        if digest(results) != expected[k]:
            found.append(f"{_title(row, plan, cases[k])}: {_reason(row, plan, cases[k], results, expected[k])}")
    return found


def _title(row: Row, plan: str, case: Case) -> str:
    options = ", ".join(f"{name}={value!r}" for name, value in case.options if not isinstance(value, tuple))
    return f"{row.name} ({options}; {case.methods[0]}) of shape {case.shape} on the {plan} plan"


def _reason(row: Row, plan: str, case: Case, results: Results, expected: str) -> str:
    if row.inputs() != committed()[row.name]["inputs"]:
        return "the inputs are not those of the digests"
    reference = backends.reference(case, PLANS[plan])
    found = "; ".join(differences(reference, results))
    if digest(reference) == expected:
        return f"the CPU gives the bits of the digest, and here {found}"
    beside = f"from which this differs too: {found}" if found else "and this gives the same"
    return f"one thread of this machine's CPU does not give the bits of the digest, {beside}"


# The command --------------------------------------------------------------------------------------------------------


CHECKED_PLANS = {"cpu": ["small", "full"], "ptx": ["small"], "simulator": ["small"], "gpu": ["full"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the digests; the exit status is 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="compute the digests anew, on the CPU")
    what.add_argument("--check", action="store_true", help="compare with the digests")
    parser.add_argument("--backend", choices=list(CHECKED_PLANS), default="cpu")
    parser.add_argument("--plan", choices=list(PLANS), help="(default: all that the backend can do)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--compute-capability", metavar="X.Y", help="for PTX (default: by turns 7.5, 9.0 and 12.0)")
    parser.add_argument("--rows", metavar="NAME,...", help="only these")
    parser.add_argument("--part", metavar="K/N", default="1/1", help="only every N-th row, beginning with the K-th")
    options = parser.parse_args(arguments)
    part, parts = (int(number) for number in options.part.split("/"))
    names = options.rows.split(",") if options.rows else [row.name for row in matrix()]
    rows = [named(name) for name in names][part - 1 :: parts]
    if options.write:
        _write(rows, options.threads)
        return 0
    plans = [options.plan] if options.plan else CHECKED_PLANS[options.backend]
    found, cases = 0, 0
    for one in tqdm(rows, disable=None, unit="row"):
        for plan in plans:
            chosen = one.simulated if options.backend == "simulator" else range(len(one.cases(plan)))
            cases += len(chosen)
            for problem in problems(one, plan, _backend(options, one), chosen):
                found += 1
                tqdm.write(problem, file=sys.stderr)
    print(f"{len(rows)} rows, {cases} cases on {options.backend}: {found or 'none'} differ from {DIGESTS.name}")
    return int(found > 0)


def _backend(options: argparse.Namespace, row: Row) -> Backend:
    if options.backend == "cpu":
        return partial(backends.cpu, threads=options.threads)
    if options.backend == "ptx":
        capability = row.compute_capability
        if options.compute_capability:
            major, minor = options.compute_capability.split(".")
            capability = int(major), int(minor)
        return partial(backends.ptx, compute_capability=capability)
    return {"simulator": backends.simulator, "gpu": backends.gpu}[options.backend]


def _write(rows: Sequence[Row], threads: int) -> None:
    """The file, with new entries for these rows; says how many changed."""
    before = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    entries = {name: before[name] for name in (row.name for row in matrix()) if name in before}
    for one in tqdm(rows, disable=None, unit="row"):
        entries[one.name] = {"inputs": one.inputs()} | {
            plan: " ".join(digest(backends.cpu(case, PLANS[plan], threads)) for case in one.cases(plan))
            for plan in PLANS
        }
    lines = [f"{json.dumps(one.name)}: {json.dumps(entries[one.name])}" for one in matrix() if one.name in entries]
    DIGESTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    changed = [name for name in before if name in entries and before[name] != entries[name]]
    print(
        f"{len(entries)} rows: {len(set(entries) - set(before))} new, {len(set(before) - set(entries))} gone, "
        f"{len(changed)} changed {' '.join(changed)}"
    )


if __name__ == "__main__":
    sys.exit(main())
