"""What the CUDA kernels compile to: registers, instructions and bytes, and what they let a GPU do. Needs no GPU.

    python -m benchmarks.machine_code [--output docs/kernels.md]

Numba compiles PTX, ptxas assembles it, nvdisasm reads the machine code back. :data:`KERNELS` is the table of kernels
that this page and the tests of the machine code share.
"""

import argparse
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from gpubce.backends.cuda.compile import ptx
from gpubce.backends.cuda.kernels import QUAD, threads
from gpubce.backends.cuda.launch import CudaEngine, most_sums
from gpubce.backends.kernel_key import KernelKey, SettleKey
from gpubce.dispatch import Reduction, state_names
from gpubce.report import metric_names, sums_for
from gpubce.spec.geometry import FLAT, SCALAR, STRIDED
from gpubce.spec.plan import PLAN, Plan
from gpubce.spec.precision import ITEMSIZE
from gpubce.spec.recipe import PROBABILITY, Recipe

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))


# The kernels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One kernel: its kind (a function of :mod:`gpubce.backends.cuda.kernels`) and its key."""

    kind: str
    key: KernelKey | SettleKey | Plan
    hard: bool = False
    """Of a kernel with a shorter way for targets of 0 and 1: whether that one is meant."""

    @property
    def arrays(self) -> dict[str, tuple[str, str]]:
        """(type, layout) of each array that it reads or writes once for every element; empty for sums of pairs."""
        if not isinstance(self.key, KernelKey):
            return {}
        recipe = self.key.recipe
        types = [getattr(recipe, role) for role in recipe.roles] + [recipe.stored] * len(recipe.outputs)
        return dict(zip(self.key.arrays, zip(types, self.key.layouts, strict=True), strict=True))

    @property
    def bytes_per_element(self) -> int:
        """What has to come from memory or go there: numbers that repeat for every row are found in a cache."""
        if not isinstance(self.key, KernelKey):
            _, loads, stores = next(self.traffic())
            return loads // 8 if self.kind == "combine" else loads + stores
        return sum(
            ITEMSIZE[storage]
            for role, (storage, layout) in self.arrays.items()
            if layout != SCALAR and role not in ("pos_weight", "label_weight", "scale")
        )

    @property
    def team(self) -> int:
        """Threads of a thread block."""
        return threads(PLAN) if self.kind in ("whole", "combine") else CudaEngine.team

    def traffic(self) -> Iterator[tuple[int, int, int]]:
        """(elements, bytes loaded, bytes stored) of one turn of the hot loop as it may be: unrolled or not, and with
        the single numbers in it or before it. An element of a sum of pairs is a pair, and of a settlement an output."""
        if isinstance(self.key, SettleKey):
            sums = self.key.divides_by_sum + (not self.key.makes_scale)
            factor = ITEMSIZE[self.key.factor_storage] if self.key.factor_storage else 0
            yield 1, 16 * sums + factor, ITEMSIZE[self.key.storage]
            return
        for turns in (8, 4, 2, 1):
            if isinstance(self.key, Plan):
                yield turns, 16 * turns, 0
                continue
            sizes = {role: (ITEMSIZE[storage], layout) for role, (storage, layout) in self.arrays.items()}
            stores = sum(size for role, (size, _) in sizes.items() if role in self.key.recipe.outputs)
            flat = sum(size for size, layout in sizes.values() if layout != SCALAR)
            single = sum(size for size, layout in sizes.values() if layout == SCALAR)
            for times in range(turns + 1):
                yield QUAD * turns, QUAD * turns * (flat - stores) + times * single, QUAD * turns * stores
                if not single:
                    break


def _entry(
    kind: str = "whole",
    *,
    strided: tuple[str, ...] = (),
    single: tuple[str, ...] = (),
    dimensions: int = 1,
    vector: int = QUAD,
    hard: bool = False,
    **recipe,
) -> Entry:
    """``strided`` and ``single`` name the arrays that are not flat."""
    made = Recipe(**{"sums": ("loss",), **recipe})
    arrays = made.roles + made.outputs
    layouts = tuple(STRIDED if name in strided else SCALAR if name in single else FLAT for name in arrays)
    return Entry(kind, KernelKey(made, layouts, dimensions, vector=vector), hard)


def _entries(name: str, kind: str = "whole", **recipe) -> dict[str, Entry]:
    """The kernels among which a GPU divides so many sums."""
    entry = _entry(kind, **recipe)
    parts = [key for _, key in entry.key.parts(most_sums(entry.key.recipe))]
    return {f"{name}, {number} of {len(parts)}": Entry(kind, key) for number, key in enumerate(parts, 1)}


_GRADIENT = {"outputs": ("gradient",), "scaled": True}
_DERIVATIVES = {"outputs": ("gradient", "hessian"), "sums": ()}
_PROBABILITY = {"space": PROBABILITY, "floor": True}
_EVALUATOR = ("loss", "count", "invalid", "weight", "positives", "predictions", "squared_error", "cross_entropy")
_EVERYTHING = state_names(Reduction(denominator="weights"), sums_for(metric_names("all"), "weights"))

KERNELS = {
    # Logits and targets are float32 where nothing else is said. Arrays are flat and aligned.
    "loss": _entry(),
    "loss, targets of 0 and 1": _entry(hard=True),
    "loss, unaligned": _entry(vector=1),
    "loss, strided": _entry(strided=("prediction", "target"), dimensions=2),
    "loss of each element": _entry(outputs=("loss",), unit=True, sums=()),
    "loss and gradient": _entry(**_GRADIENT),
    "loss and gradient, targets of 0 and 1": _entry(hard=True, **_GRADIENT),
    "loss and gradient, unaligned": _entry(**_GRADIENT, vector=1),
    "loss and gradient, strided": _entry(**_GRADIENT, strided=("prediction", "target", "gradient"), dimensions=2),
    "gradient and hessian": _entry(**_DERIVATIVES),
    "state": _entry(sums=("loss", "count", "invalid")),
    "evaluator": _entry(sums=_EVALUATOR),
    "evaluator, targets of 0 and 1": _entry(sums=_EVALUATOR, hard=True),
    "evaluator, weight": _entry(sums=_EVALUATOR, weight="float32"),
    **_entries("all metrics", sums=_EVERYTHING, threshold=True, weight="float32"),
    **_entries("all metrics by label", kind="along_axes", sums=_EVERYTHING, threshold=True, weight="float32"),
    **_entries(
        "float64, all metrics by label",
        kind="along_axes",
        sums=_EVERYTHING,
        threshold=True,
        compute="float64",
        prediction="float64",
        target="float64",
    ),
    "mean by positives, standard error": _entry(
        sums=("loss", "squared_loss", "squared_positives", "loss_by_positives"), weight="float32"
    ),
    "difference from a baseline": _entry(
        baseline="float32",
        sums=("difference", "squared_difference", "difference_by_weight", "difference_by_positives"),
        weight="float32",
    ),
    "histogram, uint8 targets": _entry(target="uint8", bins=4096),
    "histogram, weight": _entry(weight="float32", bins=4096, quantised=True),
    "histogram by label": _entry("along_axes", target="bool", bins=256),
    # Types: every one of them occurs as a target, and those of predictions as predictions.
    "uint8 targets": _entry(target="uint8"),
    "int8 targets, unaligned": _entry(target="int8", vector=1),
    "int16 targets": _entry(target="int16"),
    "uint16 targets": _entry(target="uint16"),
    "int32 targets, gradient": _entry(target="int32", **_GRADIENT),
    "uint32 targets": _entry(target="uint32"),
    "int64 targets": _entry(target="int64"),
    "uint64 targets": _entry(target="uint64"),
    "float64 targets, float16 weight": _entry(target="float64", weight="float16"),
    "float16, bool targets, gradient": _entry(prediction="float16", target="bool", **_GRADIENT),
    "float16, float16 targets": _entry(prediction="float16", target="float16"),
    "bfloat16, uint8 targets": _entry(prediction="bfloat16", target="uint8"),
    "bfloat16, bfloat16 targets, derivatives": _entry(prediction="bfloat16", target="bfloat16", **_DERIVATIVES),
    "bfloat16, bool targets, gradient, unaligned": _entry(prediction="bfloat16", target="bool", **_GRADIENT, vector=1),
    "float64, loss": _entry(compute="float64", prediction="float64", target="float64"),
    "float64, uint8 targets, derivatives": _entry(
        compute="float64", prediction="float64", target="uint8", **_DERIVATIVES
    ),
    # Options.
    "signed weight": _entry(weight="float32", signed=True),
    "weight, mean by weights": _entry(weight="float32", sums=("loss", "weight")),
    "mask, gradient, scale of one number": _entry(
        mask="bool", scale="float64", single=("scale",), outputs=("gradient",), sums=("loss", "count")
    ),
    "ignored value": _entry(target="int64", ignore="value", sums=("loss", "count")),
    "ignored NaN, floor": _entry(target="float32", ignore="nan", floor=True, sums=("loss", "count")),
    "pos_weight by label": _entry(pos_weight="float32", strided=("pos_weight",), dimensions=2, **_GRADIENT),
    "pos_weight, label_weight": _entry(
        pos_weight="float32", label_weight="float32", single=("pos_weight", "label_weight")
    ),
    "class weights, smoothing": _entry(factors=True, smoothing=True, **_GRADIENT),
    "focal, alpha, derivatives": _entry(gamma=True, alpha=True, weight="float32", **_DERIVATIVES),
    "the sums before a gradient": _entry(prediction=None, weight="float32", sums=("positives",)),
    # Probabilities.
    "probability, loss": _entry(**_PROBABILITY),
    "probability, loss, targets of 0 and 1": _entry(**_PROBABILITY, hard=True),
    "probability, gradient": _entry(**_PROBABILITY, **_GRADIENT),
    "probability, evaluator": _entry(**_PROBABILITY, sums=_EVALUATOR),
    "probability, exact, derivatives": _entry(space=PROBABILITY, **_DERIVATIVES),
    "probability, clip, focal, derivatives": _entry(space=PROBABILITY, clip=True, gamma=True, **_DERIVATIVES),
    "probability, bfloat16, uint8 targets": _entry(**_PROBABILITY, prediction="bfloat16", target="uint8"),
    # Along axes: one sum for each label.
    "loss by label": _entry("along_axes"),
    "loss by label, unaligned": _entry("along_axes", vector=1),
    "loss by label, last axis": _entry("along_axes", strided=("prediction", "target"), dimensions=2),
    "gradient by label, scale by label": _entry(
        "along_axes",
        target="bool",
        mask="bool",
        scale="float64",
        strided=("scale",),
        dimensions=2,
        outputs=("gradient",),
        sums=("loss", "count"),
    ),
    "float64, loss by label": _entry("along_axes", compute="float64", prediction="float64", target="float64"),
    # What follows a pass.
    "combine pairs": Entry("combine", PLAN),
    "settle a mean": Entry("settle", SettleKey("float32", False, True, None)),
    "settle a scale": Entry("settle", SettleKey("float64", True, True, "float32")),
}


# The tools -----------------------------------------------------------------------------------------------------------


class MissingTool(RuntimeError):
    """A program of CUDA that is not installed, or does not know an architecture."""


@cache
def tool(name: str) -> Path:
    """A program of CUDA, from its wheels or the path."""
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        for path in sorted(Path(folder).glob(f"*/bin/{name}")):
            return path
    found = shutil.which(name)
    if found is None:
        raise MissingTool(f"{name} is not installed: pip install nvidia-cuda-nvcc-cu12 nvidia-cuda-nvdisasm")
    return Path(found)


@cache
def versions() -> dict[str, str]:
    """The versions of everything that decides what the machine code is."""
    named = {package: importlib.metadata.version(package) for package in ("numba", "numba-cuda", "llvmlite")}
    for name in ("ptxas", "nvdisasm"):
        said = subprocess.run([tool(name), "--version"], check=True, capture_output=True, text=True).stdout
        match = re.search(r"V(\d[\d.]*)", said)
        named[name] = match[1] if match else said.strip().splitlines()[-1]
    return named


def compiled(entry: Entry, capability: tuple[int, int]) -> tuple[str, str]:
    """The PTX of a kernel, and what NVVM makes of the same program when it may not fuse products and sums.

    Numba has no option for that, so its call of NVVM is recorded and repeated.
    """
    from numba.cuda.cudadrv import nvvm

    calls = []

    def record(program, **options):
        calls.append((program, dict(options)))
        return call(program, **options)

    call, nvvm.compile_ir = nvvm.compile_ir, record
    try:
        text = ptx(entry.kind, entry.key, capability)
    finally:
        nvvm.compile_ir = call
    ((program, options),) = calls
    unfused = call(program, **options | {"fma": False})
    return text, unfused.decode() if isinstance(unfused, bytes) else unfused


@dataclass(frozen=True)
class Resources:
    """What ptxas -v says of one kernel; all but the registers in bytes."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def assemble(text: str, capability: tuple[int, int], fuse: bool = True, *options: str) -> tuple[bytes, Resources]:
    """The machine code of one kernel, with or without ptxas fusing products and sums, and what it uses."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text)
        architecture = f"sm_{capability[0]}{capability[1]}"
        command = [tool("ptxas"), f"-arch={architecture}", "-v", f"--fmad={str(fuse).lower()}", *options]
        done = subprocess.run([*command, source, "-o", binary], capture_output=True, text=True)
        if done.returncode and re.search(r"not defined for option 'gpu-name'", done.stderr):
            raise MissingTool(f"ptxas {versions()['ptxas']} does not know {architecture}")
        if done.returncode:
            raise RuntimeError(f"ptxas refuses the PTX for {architecture}: {done.stderr}")
        said = done.stderr
        used = Resources(
            _number(r"Used (\d+) registers", said),
            _number(r"(\d+) bytes smem", said),
            _number(r"(\d+) bytes stack frame", said),
            _number(r"(\d+) bytes spill stores", said),
            _number(r"(\d+) bytes spill loads", said),
        )
        return binary.read_bytes(), used


def disassemble(cubin: bytes) -> "Program":
    """The machine code as instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool("nvdisasm"), "-c", "-ndf", file.name], capture_output=True, text=True)
    if done.returncode and "architecture" in done.stderr:
        raise MissingTool(f"nvdisasm {versions()['nvdisasm']} does not know this machine code: {done.stderr.strip()}")
    if done.returncode:
        raise RuntimeError(f"nvdisasm cannot read the machine code: {done.stderr.strip()}")
    return Program(done.stdout)


# The machine code ----------------------------------------------------------------------------------------------------

_LABEL = re.compile(r"^([.$\w]+):", re.M)
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.M)
_TARGET = re.compile(r"`\(([.$\w]+)\)")

_CLASSES = {
    "FP32": r"F(FMA|ADD|MUL)2?",
    "FP64": r"D(FMA|ADD|MUL|SETP|MNMX)",
    "half": r"H(FMA|ADD|MUL)2",
    "select": r"([FIH]|VI)?(SETP|SET|MNMX|MNMX3|SEL)2?|FCHK|PLOP3|P2R|R2P|VOTEU?",
    "integer": r"V?(IADD|IADD3|IADDMNMX|IMAD|LEA|LOP3|SHF|SHL|SHR|PRMT|MOV|IABS|FLO|POPC|SGXT|BMSK)|CS2R|R2UR",
    "conversion": r"(F2F|F2I|I2F|I2I|F2FP|I2FP|I2IP|F2IP|FRND)",
    "MUFU": r"MUFU",
    "memory": r"(LD|ST|LDG|STG|LDS|STS|LDL|STL|LDC|LDCU|RED|REDG|ATOMG)",
    "control": r"BRA|BSSY|BSYNC|BMOV|BREAK|EXIT|CALL|RET|NOP|BAR|WARPSYNC|YIELD|DEPBAR|S2R|S2UR",
}
"""What the first part of an instruction's name says about its work; a U before it (the datapath that works once for a
warp) does not matter. "select" holds comparisons, minima and selects of all types but float64; "integer" moves too."""


@cache
def _class_of(base: str) -> str:
    for name, pattern in _CLASSES.items():
        if re.fullmatch(f"U?({pattern})", base):
            return name
    raise LookupError(f"the instruction {base} belongs to no class: add it to benchmarks/machine_code.py")


@dataclass(frozen=True)
class Instruction:
    """One instruction of the machine code. ``guard`` is the predicate that may skip it, or empty."""

    address: int
    guard: str
    name: str
    operands: str

    @cached_property
    def base(self) -> str:
        """The name without its suffixes."""
        return self.name.split(".")[0]

    @property
    def kind(self) -> str:
        """Its class; a half-precision fma of zeros that only writes a constant is a move."""
        if self.base == "HFMA2" and re.match(r"\w+, -?RZ, -?RZ,", self.operands):
            return "integer"
        return _class_of(self.base)

    @cached_property
    def conditions(self) -> tuple[tuple[str, bool], ...]:
        """(predicate, value) that must all hold for the instruction to be done, or for a branch to be taken."""
        named = [self.guard] if self.guard else []
        if self.jumps:
            named += re.findall(r"!?U?P\d", self.operands.split("`")[0])
        return tuple((name.lstrip("!"), not name.startswith("!")) for name in named if name.lstrip("!") != "PT")

    @cached_property
    def writes(self) -> frozenset[str]:
        """The predicates that it sets: at most two, before its inputs and behind the register that it sets."""
        if self.ends or self.moves or self.base in ("BSYNC", "BSSY", "CALL"):
            return frozenset()
        operands = [operand.strip() for operand in self.operands.split(",")]
        leading = operands if re.match(r"U?P", operands[0]) else operands[1:]
        found = set()
        for operand in leading[:2]:
            if not re.fullmatch(r"U?P[T\d]", operand):
                break
            found.add(operand)
        return frozenset(found - {"PT", "UPT"})

    @cached_property
    def target(self) -> str | None:
        """The label that a branch or call names."""
        found = _TARGET.search(self.operands)
        return found[1] if found else None

    @cached_property
    def jumps(self) -> bool:
        """Whether it is a branch. From 8.0 to 8.9 ptxas leaves some loops by a call of a label inside the kernel, which
        never returns; subroutines have names."""
        return self.base == "BRA" or (self.base == "CALL" and (self.target or "").startswith(".L"))

    @property
    def calls(self) -> bool:
        """Whether it calls a subroutine, which comes back."""
        return self.base == "CALL" and not self.jumps

    @property
    def ends(self) -> bool:
        """Whether a basic block ends with it."""
        return self.jumps or self.base in ("EXIT", "RET")

    @cached_property
    def moves(self) -> tuple[str, int] | None:
        """("load" or "store", bytes for a thread) of an access to global memory."""
        if self.base not in ("LDG", "STG", "LD", "ST"):
            return None
        width = re.search(r"\.(?:[US])?(8|16|64|128|256)(?=\.|$)", self.name)
        return "load" if self.base.startswith("L") else "store", int(width[1]) // 8 if width else 4


@dataclass(frozen=True)
class HotPath:
    """What one thread does again and again; see :meth:`Program.hot_path`."""

    instructions: tuple[Instruction, ...]
    moves: Counter[tuple[str, int]]
    loop: bool
    """Whether it is the body of a loop, and not the way through the whole program."""
    nested: bool
    """Whether a loop stands inside it: over the QUAD elements of a thread, which the compiler did not unroll."""


@dataclass(frozen=True)
class _Way:
    """A way from the start of a region: what was moved on it, and the predicates whose value it implies."""

    blocks: tuple[int, ...] = ()
    length: int = 0
    moves: tuple[tuple[str, int], ...] = ()
    known: frozenset[tuple[str, bool]] = frozenset()
    short: bool = False

    @cached_property
    def bytes_moved(self) -> tuple[int, int]:
        """(loaded, stored)"""
        return tuple(sum(size for way, size in self.moves if way == wanted) for wanted in ("load", "store"))

    @property
    def merit(self) -> tuple[int, int]:
        """The larger, the better: few accesses, then many instructions, or few."""
        return -len(self.moves), -self.length if self.short else self.length

    def learn(self, *conditions: tuple[str, bool]) -> "_Way | None":
        """The way on which these hold, or None where they cannot."""
        if any((predicate, not value) in self.known for predicate, value in conditions):
            return None
        return replace(self, known=self.known | set(conditions))

    def step(self, item: Instruction) -> "Iterator[_Way]":
        """The ways behind one more instruction: an access under a predicate is made or not."""
        if item.moves:
            made = self.learn(*item.conditions)
            if made:
                yield replace(made, moves=(*self.moves, item.moves))
            for predicate, value in item.conditions:
                left_out = self.learn((predicate, not value))
                if left_out:
                    yield left_out
        elif item.writes:
            yield replace(self, known=frozenset(fact for fact in self.known if fact[0] not in item.writes))
        else:
            yield self


class Program:
    """The instructions of a kernel, with the internal subroutines that ptxas puts behind it."""

    def __init__(self, text: str) -> None:
        found: list[Instruction] = []
        self.labels: dict[str, int] = {}
        for line in text.splitlines():
            if label := _LABEL.match(line):
                self.labels[label[1]] = len(found)
            elif instruction := _INSTRUCTION.match(line):
                address, guard, name, operands = instruction.groups()
                found.append(Instruction(int(address, 16), guard or "", name, operands))
        if not found:
            raise ValueError("there are no instructions in the disassembly")
        self.instructions = tuple(found)

    def floating_point(self) -> Counter[str]:
        """How often each addition, product and fma stands in the program, in all types and widths."""
        return Counter(
            instruction.base
            for instruction in self.instructions
            if re.fullmatch(r"[FDH](FMA|MUL|ADD)2?", instruction.base) and instruction.kind != "integer"
        )

    @cached_property
    def _blocks(self) -> list[range]:
        """Basic blocks as ranges of positions."""
        leaders = {0, *self.labels.values()}
        leaders |= {k + 1 for k, item in enumerate(self.instructions) if item.ends}
        edges = sorted(leader for leader in leaders if leader < len(self.instructions))
        return [range(start, stop) for start, stop in zip(edges, [*edges[1:], len(self.instructions)], strict=True)]

    def _items(self, block: int) -> tuple[Instruction, ...]:
        return self.instructions[self._blocks[block].start : self._blocks[block].stop]

    @cached_property
    def _successors(self) -> list[list[int]]:
        """The blocks that may follow each block. A call comes back; what it calls is no successor."""
        starting = {block.start: k for k, block in enumerate(self._blocks)}
        following = []
        for block in self._blocks:
            last = self.instructions[block[-1]]
            after = []
            if last.jumps and last.target is not None:
                after.append(starting[self.labels[last.target]])
            if (not last.ends or last.conditions) and block.stop in starting:
                after.append(starting[block.stop])
            following.append(after)
        return following

    @cached_property
    def _order(self) -> tuple[list[int], set[tuple[int, int]]]:
        """(the reachable blocks, each behind those that lead to it but for loops; the edges that close loops)."""
        finished: list[int] = []
        closing: set[tuple[int, int]] = set()
        on_the_way = {0: True}
        stack = [(0, iter(self._successors[0]))]
        while stack:
            block, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                on_the_way[block] = False
                finished.append(block)
                stack.pop()
            elif following not in on_the_way:
                on_the_way[following] = True
                stack.append((following, iter(self._successors[following])))
            elif on_the_way[following]:
                closing.add((block, following))
        return finished[::-1], closing

    @cached_property
    def _loops(self) -> list[tuple[int, set[int], set[int]]]:
        """(first block, all blocks, last blocks) of each loop, the smallest first."""
        order, closing = self._order
        before: dict[int, list[int]] = {block: [] for block in order}
        for block in order:
            for following in self._successors[block]:
                before[following].append(block)
        loops = []
        for first in {first for _, first in closing}:
            lasts = {last for last, target in closing if target == first}
            body, waiting = {first}, [*lasts]
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting += before[block]
            loops.append((first, body, lasts))
        return sorted(loops, key=lambda loop: (sum(len(self._blocks[block]) for block in loop[1]), loop[0]))

    @cached_property
    def _asked(self) -> list[set[str]]:
        """The predicates at the start of each block that an access or branch may ask before they are written again."""
        asked: list[set[str]] = [set() for _ in self._blocks]
        grown = True
        while grown:
            grown = False
            for block in reversed(range(len(self._blocks))):
                live = set().union(*(asked[following] for following in self._successors[block]))
                for item in reversed(self._items(block)):
                    live -= item.writes
                    if item.moves or item.ends:
                        live |= {predicate for predicate, _ in item.conditions}
                if live != asked[block]:
                    asked[block], grown = live, True
        return asked

    def _through(self, block: int, way: _Way, limit: tuple[int, int]) -> list[_Way]:
        """The ways to the end of a block on which no more is moved than the limit. None makes a call."""
        ways = [replace(way, blocks=(*way.blocks, block), length=way.length + len(self._blocks[block]))]
        for item in self._items(block):
            if item.calls:
                return []
            ways = [
                after
                for before in ways
                for after in before.step(item)
                if after.bytes_moved[0] <= limit[0] and after.bytes_moved[1] <= limit[1]
            ]
        return ways

    def _onward(self, block: int, way: _Way) -> Iterator[tuple[int, _Way]]:
        """(the next block, the way with what its last branch tells), for each side that can be taken."""
        last = self._items(block)[-1]
        target = self.labels.get(last.target or "") if last.jumps else None
        for following in self._successors[block]:
            after: _Way | None = way
            if last.ends and last.conditions:
                if self._blocks[following].start == target:
                    after = way.learn(*last.conditions)
                elif len(last.conditions) == 1:  # Of two conditions, nobody knows which one does not hold.
                    after = way.learn((last.conditions[0][0], not last.conditions[0][1]))
            if after:
                asked = self._asked[following]
                yield following, replace(after, known=frozenset(fact for fact in after.known if fact[0] in asked))

    def _best_way(self, region: tuple[int, set[int], set[int]], limit: tuple[int, int], short: bool) -> _Way | None:
        first, body, lasts = region
        order, closing = self._order
        ways: dict[int, dict[tuple, _Way]] = {block: {} for block in body}
        ways[first][(0, 0)] = _Way(short=short)
        arrived = []
        for block in order:
            if block not in body:
                continue
            for start in ways[block].values():
                for way in self._through(block, start, limit):
                    if block in lasts and way.bytes_moved == limit:
                        arrived.append(way)
                    for following, after in self._onward(block, way):
                        if following in body and (block, following) not in closing:
                            key = after.bytes_moved, after.known
                            known = ways[following].get(key)
                            if known is None or after.merit > known.merit:
                                ways[following][key] = after
        return max(arrived, key=lambda way: way.merit, default=None)

    def _assembles_warp(self, body: set[int]) -> bool:
        """Whether a loop does nothing but wait for the threads of a warp to come together. For 7.5, ptxas writes one
        where it keeps numbers in uniform registers."""
        items = [item for block in body for item in self._items(block)]
        return any(item.base == "YIELD" for item in items) and {item.base for item in items} <= {
            "VOTE", "VOTEU", "YIELD", "LOP3", "BRA"
        }  # fmt: skip

    def hot_path(self, loads: int, stores: int, short: bool = False, anywhere: bool = True) -> HotPath | None:
        """What a thread does between moving that many bytes and moving the next ones: the way through a loop's body,
        or through the program where there is no such loop, if it may be ``anywhere``. None where no way moves so much.

        Of several ways: that in the smallest loop; then the one with the fewest accesses, so the vector loads and not
        the single ones that stand behind them for the end of an array; then the longest, so that no branch skips work,
        or the shortest if ``short``.
        A way makes no call: calls are the slow sides of divisions, which ordinary numbers do not take.
        """
        order, _ = self._order
        exits = {block for block in order if self._items(block)[-1].base == "EXIT"}
        for region in [*self._loops, (0, set(order), exits)][: None if anywhere else -1]:
            way = self._best_way(region, (loads, stores), short)
            if way is None:
                continue
            inner = [body for _, body, _ in self._loops if body < region[1] and not self._assembles_warp(body)]
            items: list[Instruction] = []
            for block in way.blocks:
                turns = QUAD if any(block in body for body in inner) else 1
                items += [item for item in self._items(block) if item.base != "NOP"] * turns
            return HotPath(tuple(items), Counter(way.moves), region[0] != 0, bool(inner))
        return None


# What a kernel costs -------------------------------------------------------------------------------------------------

FP64_RATE = {(7, 5): 2, (8, 0): 32, (8, 6): 2, (8, 9): 2, (9, 0): 64, (10, 0): 64, (12, 0): 2}
"""Additions, products or fmas of float64 per clock and SM: CUDA C++ Best Practices Guide 13, "Throughput of Native
Arithmetic Instructions" (in the programming guide up to release 12)."""

RATES = {"issue": 128, "ALU": 64, "XU": 16, "FP64": FP64_RATE[9, 0]}
"""Operations of a thread per clock and SM on compute capability 9.0, from the same table: four schedulers that each
issue one instruction for 32 threads; comparisons, selects and integers; conversions and reciprocals; float64."""


@dataclass(frozen=True)
class Device:
    """What the predictions need to know of a GPU."""

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float

    def __str__(self) -> str:
        return (
            f"{self.name} has {self.multiprocessors} SMs at {self.clock / 1e9:.2f} GHz and reads "
            f"{self.bandwidth / 1e12:.1f} TB/s"
        )


H200 = Device("H200", 132, 1.98e9, 4.8e12)
RTX_4090 = Device("GeForce RTX 4090", 128, 2.52e9, 1.008e12)


@dataclass(frozen=True)
class Examined:
    """One kernel for one compute capability. ``hot`` is None where no way moves every array once."""

    entry: Entry
    capability: tuple[int, int]
    ptx: str
    unfused_ptx: str
    cubin: bytes
    resources: Resources
    program: Program
    hot: HotPath | None
    elements: int
    """Elements of the hot path."""


def examine(name: str, capability: tuple[int, int]) -> Examined:
    """Compile, assemble and read back one of :data:`KERNELS`."""
    entry = KERNELS[name]
    text, unfused = compiled(entry, capability)
    cubin, resources = assemble(text, capability)
    program = disassemble(cubin)
    tried = (
        (elements, program.hot_path(loads, stores, entry.hard, anywhere))
        for anywhere in (False, True)
        for elements, loads, stores in entry.traffic()
    )
    elements, hot = next((found for found in tried if found[1]), (0, None))
    return Examined(entry, capability, text, unfused, cubin, resources, program, hot, elements)


@dataclass(frozen=True)
class Row:
    """The figures of one kernel for one compute capability; instructions are those of the hot path per element."""

    registers: int
    shared: int
    warps: int
    """Warps that an SM of 65,536 registers, 228 KiB of shared memory and 64 warps holds."""
    instructions: float
    by_kind: dict[str, float]
    uses: dict[str, float]
    """Operations per element on each of :data:`RATES`."""
    loop: bool
    nested: bool


@cache
def row(name: str, capability: tuple[int, int]) -> Row:
    """Examine a kernel and keep the figures."""
    seen = examine(name, capability)
    if seen.hot is None:
        raise RuntimeError(f"{name} for {capability}: no way through the machine code moves every array once")
    hot, elements, used, team = seen.hot, seen.elements, seen.resources, seen.entry.team
    kinds = Counter(item.kind for item in hot.instructions)
    total = len(hot.instructions)
    on_fma_pipe = sum(item.base in ("IMAD", "UIMAD") for item in hot.instructions)
    fast = sum(item.base in ("I2FP", "F2FP", "I2IP", "F2IP") for item in hot.instructions)
    uses = {
        "issue": total,
        "ALU": kinds["select"] + kinds["integer"] - on_fma_pipe + fast,
        "XU": kinds["conversion"] - fast + kinds["MUFU"],
        "FP64": kinds["FP64"],
    }
    blocks = min(65536 // (-(-used.registers // 8) * 8 * team), 2048 // team, 32, 228 * 1024 // (used.shared + 1024))
    return Row(
        used.registers,
        used.shared,
        blocks * team // 32,
        total / elements,
        {kind: count / elements for kind, count in kinds.items()},
        {pipe: count / elements for pipe, count in uses.items()},
        hot.loop,
        hot.nested,
    )


def predicted(name: str) -> dict[str, float]:
    """Seconds for one element on an H200 by each of :data:`RATES` alone, and by memory alone."""
    cycles = H200.multiprocessors * H200.clock
    times = {pipe: count / (RATES[pipe] * cycles) for pipe, count in row(name, (9, 0)).uses.items()}
    return times | {"memory": KERNELS[name].bytes_per_element / H200.bandwidth}


# The page ------------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    widths = [max(len(line[k]) for line in rows) for k in range(len(rows[0]))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [rows[0], ruler, *rows[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _h200_table() -> str:
    kinds = ("FP32", "select", "integer", "FP64", "conversion", "MUFU", "memory", "control")
    pipes = (*RATES, "memory")
    lines = [("kernel", "registers", "shared", "warps", "bytes", "instr.", *kinds[:-2], "ld/st", "control")]
    for name, entry in KERNELS.items():
        figures = row(name, (9, 0))
        by_kind = dict(figures.by_kind)
        by_kind["conversion"] = by_kind.get("conversion", 0.0) + by_kind.pop("half", 0.0)
        lines.append(
            (
                name + (" (*)" if figures.nested else ""),
                str(figures.registers),
                f"{figures.shared:,}",
                str(figures.warps),
                str(entry.bytes_per_element),
                f"{figures.instructions:.1f}",
                *(f"{by_kind.get(kind, 0.0):.1f}" for kind in kinds),
            )
        )
    times = [("kernel", *pipes, "slowest", "over memory")]
    for name in KERNELS:
        seconds = predicted(name)
        work = max(RATES, key=lambda pipe: seconds[pipe])
        times.append(
            (
                name,
                *(f"{1e12 * seconds[pipe]:.2f}" for pipe in pipes),
                max(work, "memory", key=lambda pipe: seconds[pipe]),
                f"{seconds[work] / seconds['memory']:.2f}",
            )
        )
    return _table(lines) + "\n\n## Predicted picoseconds for each element on an H200\n\n" + _table(times)


def _capability_table() -> str:
    lines = [("kernel", *(f"{major}.{minor}" for major, minor in CAPABILITIES))]
    for name in KERNELS:
        figures = [row(name, capability) for capability in CAPABILITIES]
        lines.append((name, *(f"{item.registers} / {item.instructions:.1f}" for item in figures)))
    return _table(lines)


def _float64_lines() -> list[str]:
    """How a GPU with two float64 operations a clock fares: where they take longer than memory."""
    cycles = RTX_4090.multiprocessors * RTX_4090.clock
    ratios = {}
    for name, entry in KERNELS.items():
        count = row(name, (8, 9)).by_kind.get("FP64", 0.0)
        seconds = count / (FP64_RATE[8, 9] * cycles)
        ratios[name] = seconds / (entry.bytes_per_element / RTX_4090.bandwidth), count
    lines = [("kernel", "FP64 instructions", "over memory")]
    lines += [(name, f"{count:.1f}", f"{ratio:.1f}") for name, (ratio, count) in ratios.items() if ratio > 1.0]
    return _table(lines).splitlines()


def page() -> str:
    """docs/kernels.md"""
    named = versions()
    rates = _table(
        [
            ("", *(f"{major}.{minor}" for major, minor in FP64_RATE)),
            ("float64 operations a clock and SM", *(str(rate) for rate in FP64_RATE.values())),
        ]
    )
    return f"""# What the CUDA kernels compile to

This page is made by `python -m benchmarks.machine_code --output docs/kernels.md`, without a GPU. Nothing on it was
measured on one: times are predictions.

Made with {", ".join(f"{name} {version}" for name, version in named.items())}.

The names of the kernels are those of `KERNELS` in `benchmarks/machine_code.py`, which `tests/test_cuda_kernels.py`
compiles too. Logits and targets are float32 where a name says nothing else; arrays are flat and aligned.

## How it is counted

Instructions are those of the machine code, on the *hot path*: the way through the body of the loop over the rows of a
block, on which a thread moves each array once, divided by the elements of that way (4 in every kernel but those that
follow a pass). Of several such ways it is the one with the fewest accesses to memory, which takes the vector loads and
not the single ones for the end of an array; then the longest, so that no branch skips work; where targets are said to
be 0 and 1, the shortest. It makes no call: calls are the slow sides of divisions. Instructions under a predicate
count, because they are issued. What a block does besides (the start, the tree over the lanes, its totals) is not
counted: once for 8,192 elements. A settlement has no loop; the whole program is counted for one output.

* *FP32*: additions, products and fmas. *select*: comparisons, selects, minima. *integer*: indices, moves, logic.
  *conversion*: from one type to another. *MUFU*: the reciprocal that a division begins with. *ld/st*: global, shared
  and constant memory. *control*: branches, and where diverged threads meet again.
* *bytes*: what has to come from memory or go there for one element. Vectors that repeat for every row, and single
  numbers, are found in a cache.
* *shared*: bytes of shared memory of a thread block. *warps*: how many an SM of compute capability 9.0 can hold, of 64.
* (*) the compiler kept a loop over the four elements of a thread; its body is counted four times.

## Compute capability 9.0

{_h200_table()}

An {H200}. Each column is the time if nothing else took any:

* *issue*: 4 schedulers an SM, each with one instruction of 32 threads a clock;
* *ALU*: comparisons, selects and integers but for multiplications, {RATES["ALU"]} a clock and SM;
* *XU*: conversions and reciprocals, {RATES["XU"]};
* *FP64*: {RATES["FP64"]};
* *memory*: the bytes of an element.

*over memory* is the slowest of the first four over the last: below 1, memory is what limits a kernel. The rates are
those of NVIDIA's CUDA C++ Best Practices Guide 13, "Throughput of Native Arithmetic Instructions".

### What the prediction leaves out

* Nothing overlaps perfectly. Near 1 both limits act, and the time is longer than either.
* Latency. A thread asks for the next elements after it has worked on the last ones, so memory is kept busy by other
  warps; where a kernel needs many registers there are few of them (*warps*).
* A copy reaches about nine tenths of the bandwidth. The clock falls under load.
* Divisions of special numbers take the slow side; threads of a warp that disagree at a branch take both sides.
* The tree over the lanes with its barriers, the totals written and combined, and the start of a kernel: a few
  microseconds in all, which matter for small arrays.
* Strided arrays: 64-bit divisions are counted as 32-bit ones, which is what they do for indices below 2^32. Their bytes
  come in pieces, and more than those of an element may have to be moved.

## Other compute capabilities

Registers / instructions for each element:

{_capability_table()}

## float64

Sums of float32 elements are float64, so every sum costs an addition for each element. Weighted sums of the evaluator
multiply in float64 too.

{rates}

Two a clock is little. A {RTX_4090}. By this
reckoning the float64 instructions of these kernels take longer there than memory:

{chr(10).join(_float64_lines())}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the page there; without it, print it")
    arguments = parser.parse_args()
    text = page()
    if arguments.output is None:
        print(text, end="")
        return
    arguments.output.write_text(text)
    print(f"wrote {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
