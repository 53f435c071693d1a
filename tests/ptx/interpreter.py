"""Runs the PTX that Numba compiled, on NumPy arrays: no GPU, no driver.

A `Kernel` is parsed once: every instruction becomes a closure. `launch` executes it for a batch of whole blocks at a
time, one instruction for all threads that stand at it. Threads that share a program counter form a group; the group
with the lowest one runs, and groups that meet merge, so that diverged threads meet again where the compiler meant it.

Registers hold one value per thread, or a single value (shape (1,)) where all threads agree. Their arrays are never
written in place. What an inactive or exited thread has in a register is meaningless, and reading a register that a
thread never wrote is an error, as is every access outside of the arrays that were registered. Shared and local memory
start as bytes of 0xFF (NaN).

It is no model of the memory system: there are no races here, the threads run in one fixed order.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap, Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .arithmetic import DTYPES, Array, PTXError
from .instructions import ADDRESS, Decoder, Names, Source, integer, literal
from .machine import Batch, Instruction, Memory, Program, Region

__all__ = ["Kernel", "Memory", "PTXError", "Statistics", "launch"]

BATCH_THREADS = 8192

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_FUNCTION = re.compile(r"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\b([^{;]*)([{;])")
_HEADER = re.compile(r"\s*([\w$]+)\s*(?:\(([^)]*)\))?(.*)", re.S)
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+|\d+\s+)*)?([\w$]+)(?:\[(\d+)\])?\s*$"
)
_VARIABLE = re.compile(
    r"\.(shared|local|const|global)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)\s*(?:=\s*([^;]*?))?\s*;"
)
_STATEMENT = re.compile(r"\s*(?:([{}])|([\w$]+)\s*:(?!:)|([^\s;{}][^;{}]*(?:\{[^}]*\}[^;{}]*)*);)")
_INSTRUCTION = re.compile(r"(?:@(!?)\s*([%\w$.]+)\s+)?([a-z]\w*(?:[.:]+\w+)*)\s*(.*)$", re.S)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


# Text


def _function_bodies(text: str) -> Iterator[tuple[int, int, str, str, str]]:
    """(start, stop, "entry" or "func", header, body) of every function."""
    position = 0
    while match := _FUNCTION.search(text, position):
        position, depth = match.end(), int(match[3] == "{")
        for brace in re.finditer("[{}]", text[match.end() :] if depth else ""):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                position = match.end() + brace.end()
                break
        if depth:
            raise PTXError("a function without its end")
        yield match.start(), position, match[1], match[2], text[match.end() : position - 1]


def _statements(body: str) -> Iterator[tuple[str, str, str]]:
    """(brace, label, statement), one of which is not empty."""
    position = 0
    while match := _STATEMENT.match(body, position):
        yield match[1] or "", match[2] or "", match[3] or ""
        position = match.end()
    if body[position:].strip():
        raise PTXError(f"cannot parse: {body[position:].strip()[:80]}")


# The program


@dataclass
class Param:
    """A parameter. `type` is that of the PTX; `fields` are the (offset, type) of the scalars that fill it."""

    name: str
    type: str
    offset: int
    size: int
    align: int
    fields: list[tuple[int, str]] = field(default_factory=list)


class Kernel:
    """One `.entry` of a PTX program, ready to be launched.

    Refuses, with PTXError, what is not supported, what is not exact (.ftz, .approx, div.full), and, unless
    `allow_contraction`, sums of products that an assembler may fuse.
    """

    def __init__(self, ptx: str, name: str | None = None, *, allow_contraction: bool = False) -> None:
        text = _COMMENT.sub(" ", ptx)
        functions = list(_function_bodies(text))
        entries = {m[1]: (m, f[4]) for f in functions if f[2] == "entry" and (m := _HEADER.match(f[3]))}
        if name is None and len(entries) != 1:
            raise PTXError(f"which of the {len(entries)} entries: {', '.join(entries)}")
        self.name = name if name is not None else next(iter(entries))
        if self.name not in entries:
            raise PTXError(f"no entry {self.name}")
        header, body = entries[self.name]
        limit = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)", header[3])
        self.max_threads = int(limit[1]) if limit else 1024
        self.program = Program()
        self.regions: list[Region] = []  # module-level variables in global and constant memory
        self.params: dict[str, Param] = {}
        self.param_size = 0
        self._names = Names()
        self._dynamic: list[str] = []  # arrays in shared memory whose size the launch decides
        self._declare_params(header[2] or "")
        ends = [0, *(f[1] for f in functions)]
        starts = [*(f[0] for f in functions), len(text)]
        for start, stop in zip(ends, starts, strict=True):
            self._declare_variables(text[start:stop])
        self._sources = self._read_body(body)
        if self._dynamic:  # all of them begin where the others end
            self.program.sizes["shared"] = -(-self.program.sizes["shared"] // 16) * 16
            self._names.symbols |= dict.fromkeys(self._dynamic, self.program.sizes["shared"])
        self._infer_fields()
        if not allow_contraction:
            _refuse_contraction(self._sources)
        for source in self._sources:
            try:
                self.program.code.append(Decoder(self._names, source).instruction())
            except PTXError as error:
                raise PTXError(f"{source.text}: {error}") from error
        self.program.code.append(Instruction("the end of the program", kind="exit"))

    def opcodes(self) -> Counter[str]:
        """How often each full mnemonic stands in the program."""
        return Counter(source.mnemonic for source in self._sources)

    def _declare_params(self, text: str) -> None:
        for declaration in filter(None, map(str.strip, text.split(","))):
            match = _PARAM.match(declaration)
            if not match or match[2] not in DTYPES:
                raise PTXError(f"cannot parse the parameter: {declaration}")
            size = DTYPES[match[2]].itemsize
            align = int(match[1] or size)
            offset = -(-self.param_size // align) * align
            fields = [] if match[4] else [(0, match[2])]
            self.params[match[3]] = Param(match[3], match[2], offset, size * int(match[4] or 1), align, fields)
            self._names.symbols[match[3]] = offset
            self.param_size = offset + self.params[match[3]].size

    def _declare_variables(self, text: str) -> None:
        for space, align, type_, name, dimensions, initial in _VARIABLE.findall(text):
            if type_ not in DTYPES:
                raise PTXError(f"unsupported type .{type_} of {name}")
            dtype = DTYPES[type_]
            count = math.prod(int(n or 0) for n in re.findall(r"\[(\d*)\]", dimensions))
            alignment, size = int(align or dtype.itemsize), dtype.itemsize * count
            if space == "shared" and not size:
                self._dynamic.append(name)
            elif space in ("shared", "local"):
                self._names.symbols[name] = -(-self.program.sizes[space] // alignment) * alignment
                self.program.sizes[space] = self._names.symbols[name] + size
            elif size:
                room = np.zeros(size + alignment, np.uint8)
                room = room[-room.ctypes.data % alignment :][:size]
                numbers = [literal(n, dtype) for n in re.split(r"[\s,{}]+", initial) if n]
                if numbers:
                    room.view(dtype)[: len(numbers)] = np.concatenate(numbers)
                self._names.symbols[name] = room.ctypes.data
                self.regions.append(Region(room.ctypes.data, room, readonly=space == "const"))

    def _read_body(self, body: str) -> list[Source]:
        scope: ChainMap[str, int] = ChainMap()
        sources: list[Source] = []
        label = ""
        for brace, new_label, statement in _statements(body):
            if brace:
                scope = scope.new_child() if brace == "{" else scope.parents
            elif new_label:
                label = new_label
                self._names.labels[label] = len(sources)
            elif statement.startswith(".reg"):
                self._declare_registers(statement, scope)
            elif statement.startswith((".local", ".shared")):
                self._declare_variables(statement + ";")
            elif statement.startswith(".branchtargets"):
                self._names.tables[label] = re.findall(r"[\w$]+", statement)[1:]
            elif not statement.startswith((".pragma", ".loc", ".file")):
                match = _INSTRUCTION.match(statement)
                if not match:
                    raise PTXError(f"cannot parse: {statement}")
                operands = [operand.strip() for operand in _OPERAND.findall(match[4])]
                text = " ".join(statement.split())
                sources.append(Source(text, match[1] == "!", match[2], match[3], operands, scope))
        return sources

    def _declare_registers(self, statement: str, scope: ChainMap[str, int]) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.S)
        if not match or match[1] not in DTYPES:
            raise PTXError(f"cannot parse: {statement}")
        for declared in match[2].split(","):
            name, _, count = declared.strip().rstrip(">").partition("<")
            for register in [f"{name}{k}" for k in range(int(count))] if count else [name]:
                scope[register] = len(self._names.registers)
                self._names.registers.append(match[1])
                self.program.register_names.append(register)

    def _infer_fields(self) -> None:
        """PTX does not say what a parameter that is an array of bytes holds; the loads from it do.

        What is never loaded counts as integers of the alignment of the parameter, or as padding if that does not fit.
        """
        for source in self._sources:
            address = ADDRESS.match(source.operands[-1]) if source.mnemonic.startswith("ld.param") else None
            param = self.params.get(address[1]) if address else None
            if not address or param is None or param.type != "b8":
                continue
            type_ = source.mnemonic.split(".")[-1]
            for k in range(len(source.operands[0].split(","))):
                field_ = (integer(address[2] or "0") + k * DTYPES[type_].itemsize, type_)
                if field_[0] not in dict(param.fields):
                    param.fields.append(field_)
        for param in self.params.values():
            if param.fields != [(0, param.type)]:
                loaded, end = sorted(param.fields), 0
                for offset, type_ in [*loaded, (param.size, "b8")]:
                    if end % param.align == 0:
                        whole = range(end, offset - param.align + 1, param.align)
                        param.fields += [(start, f"b{8 * param.align}") for start in whole]
                    end = offset + DTYPES[type_].itemsize
                param.fields.sort()


def _refuse_contraction(sources: Sequence[Source]) -> None:
    """An assembler may fuse a product with the sum that it enters, and the bits then depend on the assembler.

    Flow-insensitive: a register is a product if any of its definitions is. Local memory counts as one register, since
    arrays in it can be promoted to registers.
    """
    passing = ("mov", "selp", "neg", "abs", "min", "max")
    local = -1
    products: set[int] = set()
    grown = True
    while grown:
        before = len(products)
        for source in sources:
            opcode, *modifiers = source.mnemonic.split(".")
            inputs = source.registers(*source.operands[1:])
            if opcode in ("ld", "st") and not {"global", "shared", "const", "param"} & set(modifiers):
                stored = source.registers(source.operands[1])
                if opcode == "st" and stored & products:
                    products.add(local)
                if opcode == "ld" and local in products:
                    products |= source.registers(source.operands[0])
            elif (opcode == "mul" and modifiers[-1] in ("f32", "f64")) or (opcode in passing and inputs & products):
                products |= source.registers(source.operands[0])
            elif opcode in ("add", "sub") and modifiers[-1] in ("f32", "f64") and inputs & products:
                raise PTXError(f"{source.text}: a product enters a sum, which may be contracted to an fma")
        grown = len(products) > before


# Launch


@dataclass(frozen=True)
class Statistics:
    """What a launch did: instructions executed (one for all threads at it), and batches of blocks."""

    steps: int
    batches: int


def _pack(kernel: Kernel, arguments: Sequence[int | float] | bytes) -> Array:
    """The bytes of the parameters."""
    if isinstance(arguments, bytes):
        if len(arguments) != kernel.param_size:
            raise PTXError(f"{len(arguments)} bytes for the {kernel.param_size} of the parameters of {kernel.name}")
        return np.frombuffer(arguments, np.uint8)
    slots = [(p.offset + offset, type_) for p in kernel.params.values() for offset, type_ in p.fields]
    if len(slots) != len(arguments):
        raise PTXError(f"{len(arguments)} arguments for {len(slots)} scalars in the parameters of {kernel.name}")
    data = np.zeros(kernel.param_size, np.uint8)
    for (offset, type_), argument in zip(slots, arguments, strict=True):
        dtype = DTYPES[type_]
        if isinstance(argument, (float, np.floating)):
            if type_[0] in "us" or dtype.itemsize < 4:
                raise PTXError(f"the argument {argument} for a parameter of type {type_}")
            value = np.array([argument]).astype(f"f{dtype.itemsize}")
        elif type_[0] == "f":
            value = np.array([argument]).astype(dtype)
        else:
            bits = dtype.itemsize * 8
            if not -(1 << (bits - 1)) <= int(argument) < 1 << bits:
                raise PTXError(f"the argument {argument} for a parameter of type {type_}")
            value = np.array([int(argument) % (1 << bits)], f"u{dtype.itemsize}")
        data[offset : offset + dtype.itemsize] = value.view(np.uint8)
    return data


def launch(
    kernel: Kernel,
    memory: Memory,
    grid: int,
    threads: int,
    arguments: Sequence[int | float] | bytes,
    *,
    dynamic_shared: int = 0,
    max_steps: int = 10_000_000,
) -> Statistics:
    """Runs `grid` blocks of `threads` threads. The arguments are scalars, in the order of the parameters, or the bytes
    of all.

    `max_steps` bounds the steps of one batch, for programs that wait for what never happens.
    """
    if grid < 1 or not 1 <= threads <= kernel.max_threads:
        raise PTXError(f"{grid} blocks of {threads} threads (at most {kernel.max_threads})")
    param = _pack(kernel, arguments)
    regions = sorted([*memory.regions, *kernel.regions], key=lambda region: region.start)
    steps, per_batch = 0, max(1, BATCH_THREADS // threads)
    batches = range(0, grid, per_batch)
    with np.errstate(all="ignore"):
        for first in batches:
            blocks = range(first, min(first + per_batch, grid))
            batch = Batch(kernel.program, regions, blocks, grid, threads, dynamic_shared, param)
            steps += batch.run(max_steps)
    return Statistics(steps, len(batches))
