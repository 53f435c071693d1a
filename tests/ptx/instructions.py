"""How one PTX instruction is decoded into a closure over a batch of threads."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arithmetic import DTYPES, Array, PTXError, decode
from .machine import WINDOWS, Batch, Instruction, Reader, Writer

ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+)\s*)?\]$")
_WORD = re.compile(r"[%\w$.]+")
_SPECIAL = re.compile(
    r"%(?:n?tid|n?ctaid)\.[xyz]$|%(?:laneid|n?warpid|dynamic_smem_size)$|%lanemask_(?:eq|l[te]|g[te])$"
)
_SPACES = {"global": "global", "const": "global", "shared": "shared", "local": "local", "param": "param"}
_MEMORY_MODIFIERS = frozenset(
    [
        "volatile",
        "weak",
        "relaxed",
        "acquire",
        "release",
        "acq_rel",
        "cta",
        "gpu",
        "sys",
        "nc",
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "wb",
        "wt",
        "L1",
        "L2",
        "noftz",
    ]
)


def _compare_and_swap(old: Array, expected: Array, new: Array) -> Array:
    return np.where(old == expected, new, old)


_ATOMICS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "exch": lambda old, new: new,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, limit: np.where(old >= limit, 0, old + 1).astype(old.dtype),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - 1).astype(old.dtype),
    "cas": _compare_and_swap,
}
_NOTHING = ("membar", "fence", "nanosleep")  # one step at a time: memory is always consistent


# Operands


def integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text)
    digits = digits.rstrip("U")
    if not re.match(r"(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)$", digits):
        raise PTXError(f"unknown operand {text}")
    octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
    return sign * int(digits, 8 if octal else 0)


def literal(text: str, dtype: np.dtype[Any]) -> Array:
    if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
        value = np.array([int(text[2:], 16)], np.uint32).view(np.float32)
    elif re.match(r"0[dD][0-9a-fA-F]{16}$", text):
        value = np.array([int(text[2:], 16)], np.uint64).view(np.float64)
    elif re.match(r"-?\d+\.\d*(?:[eE][-+]?\d+)?$", text):
        value = np.array([float(text)]).astype(dtype)
    else:
        value = np.array([integer(text) % (1 << 64)], np.uint64)
        if dtype.kind == "b":  # PTX ISA, "Predicate Constants": as in C.
            return value != 0
        if dtype.kind not in "iu":
            raise PTXError(f"the integer {text} is no {dtype}")
        return value.astype(dtype)
    if value.dtype.itemsize != dtype.itemsize:
        raise PTXError(f"the literal {text} is no {dtype}")
    return value.view(dtype)


def _conversion(source: np.dtype[Any], target: np.dtype[Any], widen: bool) -> Callable[[Array], Array] | None:
    """How a value of one type is seen as another. Reading truncates, writing extends by the sign of what is written."""
    if source == target:
        return None
    if "b" not in (source.kind, target.kind):
        if source.itemsize == target.itemsize:
            return lambda value: value.view(target)
        longer = target.itemsize > source.itemsize
        if "f" not in (source.kind, target.kind) and longer == widen:
            return lambda value: value.astype(target)
    raise PTXError(f"{source} does not fit {target}")


# Instructions


@dataclass
class Source:
    """An instruction before decoding, and the registers that its scope knows."""

    text: str
    negated: bool
    guard: str | None
    mnemonic: str
    operands: list[str]
    scope: ChainMap[str, int]

    def registers(self, *operands: str) -> set[int]:
        return {self.scope[word] for operand in operands for word in _WORD.findall(operand) if word in self.scope}


@dataclass
class Names:
    """What the names in a kernel stand for."""

    registers: list[str] = field(default_factory=list)  # their types, by the numbers that scopes give them
    symbols: dict[str, int] = field(default_factory=dict)  # variables and parameters: addresses in their own space
    labels: dict[str, int] = field(default_factory=dict)  # program counters
    tables: dict[str, list[str]] = field(default_factory=dict)  # labels to branch to by an index


class Decoder:
    """Makes one instruction into a closure over a batch."""

    def __init__(self, names: Names, source: Source) -> None:
        self.names, self.source = names, source
        self.opcode, *self.modifiers = [m.split("::")[0] for m in re.split(r"(?<!:)\.", source.mnemonic)]
        self.operands = source.operands

    def instruction(self) -> Instruction:
        if {"ftz", "approx", "full"} & set(self.modifiers):
            raise PTXError("is not exact")
        result = Instruction(self.source.text)
        if self.source.guard:
            result.guard = self.reader(("!" if self.source.negated else "") + self.source.guard, "pred")
        decode_special = getattr(self, f"_decode_{self.opcode}", None)
        if decode_special is not None:
            decode_special(result)
        elif self.opcode in _NOTHING:
            result.run = lambda batch: None
        else:
            self._decode_arithmetic(result)
        return result

    # Operands

    def reader(self, operand: str, type_: str) -> Reader:
        if operand.startswith("!"):
            positive = self.reader(operand[1:].strip(), type_)
            return lambda batch: ~positive(batch)
        dtype = DTYPES[type_]
        if operand in self.source.scope:
            index = self.source.scope[operand]
            convert = _conversion(DTYPES[self.names.registers[index]], dtype, widen=False)

            def read(batch: Batch) -> Array:
                value = batch.registers[index]
                if value is None or batch.undefined:
                    value = batch.read(index)
                return value if convert is None else convert(value)

            return read
        if _SPECIAL.match(operand):
            seen_as = _conversion(DTYPES["u32"], dtype, widen=False) or (lambda value: value)
            return lambda batch: seen_as(batch.special[operand])
        symbol, _, offset = operand.partition("+")
        if symbol.strip() in self.names.symbols:
            address = self.names.symbols[symbol.strip()] + integer(offset.strip() or "0")
            constant = np.array([address], np.uint64).astype(dtype)
        else:
            constant = literal(operand, dtype)
        return lambda batch: constant

    def writer(self, operand: str, type_: str) -> Writer:
        if operand == "_":
            return lambda batch, value: None
        if operand not in self.source.scope:
            raise PTXError(f"undeclared register {operand}")
        index = self.source.scope[operand]
        convert = _conversion(DTYPES[type_], DTYPES[self.names.registers[index]], widen=True)
        if convert is None:
            return lambda batch, value: batch.write(index, value)
        return lambda batch, value: batch.write(index, convert(value))

    def address(self, operand: str) -> Reader:
        match = ADDRESS.match(operand)
        if not match:
            raise PTXError(f"cannot parse the address {operand}")
        base, offset = match[1], np.array([integer(match[2] or "0") % (1 << 64)], np.uint64)
        short = base in self.source.scope and self.names.registers[self.source.scope[base]][1:] == "32"
        read = self.reader(base, "u32" if short else "u64")
        if not short and not offset[0]:
            return read
        return lambda batch: read(batch).astype(np.uint64) + offset

    def _vector(self, operand: str) -> list[str]:
        return [part.strip() for part in operand.strip("{}").split(",")]

    def _take(self, count: int) -> list[str]:
        if len(self.operands) != count:
            raise PTXError(f"{len(self.operands)} operands, not {count}")
        return self.operands

    def _only(self, *allowed: str) -> None:
        if not set(self.modifiers) <= {*allowed, *DTYPES}:
            raise PTXError("unsupported modifier")

    # Arithmetic and moves

    def _decode_arithmetic(self, result: Instruction) -> None:
        operation = decode(self.opcode, self.modifiers)
        destination, *inputs = self._take(1 + len(operation.operands))
        write, function = self.writer(destination, operation.result), operation.function
        readers = [self.reader(i, t) for i, t in zip(inputs, operation.operands, strict=True)]
        first, second, third = (readers + readers[:1] * 2)[:3]
        if self.opcode in ("div", "rem") and operation.result[0] != "f":

            def run(batch: Batch) -> None:
                divisor = second(batch)
                if not batch.active(divisor).all():
                    raise PTXError("division by zero")
                write(batch, function(first(batch), divisor))

        elif len(readers) == 1:

            def run(batch: Batch) -> None:
                write(batch, function(first(batch)))

        elif len(readers) == 2:

            def run(batch: Batch) -> None:
                write(batch, function(first(batch), second(batch)))

        elif len(readers) == 3:

            def run(batch: Batch) -> None:
                write(batch, function(first(batch), second(batch), third(batch)))

        else:

            def run(batch: Batch) -> None:
                write(batch, function(*(r(batch) for r in readers)))

        result.run = run

    def _decode_mov(self, result: Instruction) -> None:
        self._only()
        destination, origin = self._take(2)
        type_ = self.modifiers[-1]
        whole, bits = DTYPES[type_], DTYPES[type_].itemsize * 8
        if "{" not in destination + origin:
            move_from, move_to = self.reader(origin, type_), self.writer(destination, type_)
            result.run = lambda batch: move_to(batch, move_from(batch))
            return
        names = self._vector(destination if "{" in destination else origin)
        width = bits // len(names)
        if type_[0] != "b" or f"u{width}" not in DTYPES:
            raise PTXError("unsupported packing")
        shifts = [whole.type(width * k) for k in range(len(names))]
        if "{" in destination:
            packed = self.reader(origin, type_)
            writers = [self.writer(n, f"u{width}") for n in names]

            def run(batch: Batch) -> None:
                value = packed(batch)
                for write, shift in zip(writers, shifts, strict=True):
                    write(batch, (value >> shift).astype(DTYPES[f"u{width}"]))

        else:
            write_packed = self.writer(destination, type_)
            readers = [self.reader(n, f"u{width}") for n in names]

            def run(batch: Batch) -> None:
                value = np.zeros(1, whole)
                for read, shift in zip(readers, shifts, strict=True):
                    value = value | (read(batch).astype(whole) << shift)
                write_packed(batch, value)

        result.run = run

    def _decode_cvta(self, result: Instruction) -> None:
        self._only("to", *_SPACES)
        destination, origin = self._take(2)
        window = np.array([next((WINDOWS[m] for m in self.modifiers if m in WINDOWS), 0)], np.uint64)
        read, write = self.reader(origin, "u64"), self.writer(destination, "u64")
        if "to" in self.modifiers:
            result.run = lambda batch: write(batch, read(batch) - window)
        else:
            result.run = lambda batch: write(batch, read(batch) + window)

    # Memory

    def _access(self, *operations: str) -> tuple[str, str, int, str]:
        """(state space, type, length of the vectors, atomic operation)."""
        space, count, operation = "generic", 1, ""
        for modifier in self.modifiers[:-1]:
            if modifier in _SPACES:
                space = _SPACES[modifier]
            elif re.match(r"v[248]$", modifier) and not operations:
                count = int(modifier[1:])
            elif modifier in operations:
                operation = modifier
            elif modifier not in _MEMORY_MODIFIERS:
                raise PTXError(f"unsupported modifier .{modifier}")
        if self.modifiers[-1] not in DTYPES:
            raise PTXError("unsupported type")
        return space, self.modifiers[-1], count, operation

    def _decode_ld(self, result: Instruction) -> None:
        space, type_, count, _ = self._access()
        target, origin = self._take(2)
        address, dtype = self.address(origin), DTYPES[type_]
        writers = [self.writer(name, type_) for name in self._vector(target)]
        if len(writers) != count:
            raise PTXError("the vector has another length")
        shareable = space in ("global", "param")

        def run(batch: Batch) -> None:
            where = address(batch)
            if where.size > 1 or not shareable:
                where = batch.active(where)
            values = batch.load(space, where, dtype, count)
            for k, write in enumerate(writers):
                write(batch, batch.spread(values if count == 1 else values[:, k].copy()))

        result.run = run

    def _decode_st(self, result: Instruction) -> None:
        space, type_, count, _ = self._access()
        target, origin = self._take(2)
        address, dtype = self.address(target), DTYPES[type_]
        readers = [self.reader(name, type_) for name in self._vector(origin)]
        if len(readers) != count:
            raise PTXError("the vector has another length")

        def run(batch: Batch) -> None:
            values = [batch.active(read(batch)) for read in readers]
            batch.store(space, batch.active(address(batch)), dtype, values)

        result.run = run

    def _decode_atom(self, result: Instruction) -> None:
        space, type_, _, name = self._access(*_ATOMICS)
        returns = self.opcode == "atom"
        target, *inputs = self._take(2 + returns + (name == "cas"))[returns:]
        if not name:
            raise PTXError("unsupported operation")
        address, dtype, function = self.address(target), DTYPES[type_], _ATOMICS[name]
        readers = [self.reader(i, type_) for i in inputs]
        write = self.writer(self.operands[0] if returns else "_", type_)

        def run(batch: Batch) -> None:
            values = [batch.active(read(batch)) for read in readers]
            old = batch.update(space, batch.active(address(batch)), dtype, function, *values)
            write(batch, batch.spread(old))

        result.run = run

    _decode_red = _decode_atom

    # Warps

    def _decode_shfl(self, result: Instruction) -> None:
        modes = ("up", "down", "bfly", "idx")
        self._only("sync", *modes)
        target, *inputs = self._take(5)
        mode = next(m for m in self.modifiers if m in modes)
        value, by, clamp, _ = [self.reader(i, "b32") for i in inputs]
        write, write_valid = [
            self.writer(n.strip(), t) for n, t in zip((target + "|_").split("|")[:2], ("b32", "pred"), strict=True)
        ]

        def run(batch: Batch) -> None:
            lane = batch.special["%laneid"].astype(np.int64)
            distance, limits = by(batch).astype(np.int64) & 31, clamp(batch).astype(np.int64)
            segment = (limits >> 8) & 31
            first, last = lane & segment, (lane & segment) | (limits & 31 & ~segment)
            sources = {"up": lane - distance, "down": lane + distance, "bfly": lane ^ distance}
            source = sources.get(mode, first | (distance & ~segment))
            valid = source >= last if mode == "up" else source <= last
            read_from = np.arange(batch.size) - lane + np.where(valid, source, lane)
            # Behind the last lane of a block that is no whole number of warps there is nobody.
            there = np.where(valid, source, lane) - lane + batch.thread < batch.threads
            read_from = np.where(there, read_from, 0)
            if not (there & batch.group.mask[read_from])[batch.group.mask].all():
                raise PTXError("reads a lane that is not active")
            write(batch, np.broadcast_to(value(batch), (batch.size,))[read_from])
            write_valid(batch, valid)

        result.run = run

    def _decode_vote(self, result: Instruction) -> None:
        self._only("sync", "all", "any", "uni", "ballot")
        target, condition, _ = self._take(3)
        read = self.reader(condition, "pred")
        mode = next((m for m in self.modifiers if m in ("all", "any", "uni")), "ballot")
        write = self.writer(target, "b32" if mode == "ballot" else "pred")

        def run(batch: Batch) -> None:
            yes = _ballot(batch, batch.group.mask & read(batch))
            everyone = _ballot(batch, batch.group.mask)
            outcomes = {"all": yes == everyone, "any": yes != 0, "uni": (yes == everyone) | (yes == 0), "ballot": yes}
            write(batch, outcomes[mode])

        result.run = run

    def _decode_activemask(self, result: Instruction) -> None:
        write = self.writer(self._take(1)[0], "b32")
        result.run = lambda batch: write(batch, _ballot(batch, batch.group.mask))

    # Control flow

    def _label(self, name: str) -> int:
        if name not in self.names.labels:
            raise PTXError(f"no label {name}")
        return self.names.labels[name]

    def _decode_bra(self, result: Instruction) -> None:
        self._only("uni")
        result.kind, result.targets = "branch", [self._label(self._take(1)[0])]

    def _decode_brx(self, result: Instruction) -> None:
        self._only("idx", "uni")
        index, table = self._take(2)
        if table not in self.names.tables:
            raise PTXError(f"no table {table}")
        result.kind, result.selector = "branch", self.reader(index, "u32")
        result.targets = [self._label(name) for name in self.names.tables[table]]

    def _decode_bar(self, result: Instruction) -> None:
        if self.modifiers == ["warp", "sync"]:
            result.run = lambda batch: None
            return
        self._only("sync", "cta", "aligned")
        result.kind, result.barrier = "barrier", integer(self._take(1)[0])

    _decode_barrier = _decode_bar

    def _decode_ret(self, result: Instruction) -> None:
        self._only("uni")
        result.kind = "exit"

    _decode_exit = _decode_ret

    def _decode_trap(self, result: Instruction) -> None:
        def run(batch: Batch) -> None:
            raise PTXError(f"in {batch.describe(int(batch.group.lanes[0]))}")

        result.run = run


def _ballot(batch: Batch, condition: Array) -> Array:
    """For every thread, the bits of the lanes of its warp for which the condition holds."""
    warps = -(-batch.threads // 32)
    lanes = np.zeros((len(batch.blocks), warps * 32), np.uint32)
    lanes[:, : batch.threads] = condition.reshape(-1, batch.threads)
    words = (lanes.reshape(-1, 32) << np.arange(32, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    return np.repeat(words, 32).reshape(lanes.shape)[:, : batch.threads].ravel()
