"""The state of a kernel that runs: memory, the threads of a batch of blocks, and their control flow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arithmetic import Array, PTXError

# Where the generic address space shows what is not global; host addresses are below 2^48.
WINDOWS = {"shared": 1 << 60, "local": 2 << 60, "param": 3 << 60}
WINDOW_MASK = 3 << 60
NEVER = 1 << 62

Part = tuple["Region", Array, "Array | slice"]  # a region, addresses in it, and which of the accesses they are


# Memory


class Region:
    """Bytes at the addresses [start, stop). Offsets into typed views of them depend on the alignment of the address."""

    def __init__(self, start: int, data: Array, readonly: bool = False) -> None:
        self.start, self.stop, self.data, self.readonly = start, start + data.size, data, readonly
        self.users = 1
        self._views: dict[tuple[np.dtype[Any], int], tuple[Array, np.uint64]] = {}

    def view(self, dtype: np.dtype[Any], count: int) -> tuple[Array, np.uint64]:
        """Aligned vectors of `count` elements as rows (scalars if count is 1), and the address of the first."""
        if (dtype, count) not in self._views:
            size = dtype.itemsize * count
            first = -self.start % size
            rows = max(self.data.size - first, 0) // size
            values = self.data[first : first + rows * size].view(dtype)
            self._views[dtype, count] = (
                (values.reshape(rows, count) if count > 1 else values),
                np.uint64(self.start + first),
            )
        return self._views[dtype, count]


class Memory:
    """The host arrays that kernels may touch, at their true addresses. Keep an array alive while it is registered."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def register(self, array: Array, *, readonly: bool = False) -> int:
        """Makes the bytes of a C-contiguous array accessible, and returns its address. Registering twice is counted."""
        if not array.flags.c_contiguous:
            raise PTXError("only C-contiguous arrays can be registered")
        address, readonly = array.ctypes.data, readonly or not array.flags.writeable
        if array.nbytes == 0:
            return address
        region = self._find(array)
        if region is not None:
            region.users += 1
            region.readonly = region.readonly and readonly
            return address
        if any(address < r.stop and r.start < address + array.nbytes for r in self.regions):
            raise PTXError("the array overlaps one that is registered")
        self.regions.append(Region(address, array.reshape(-1).view(np.uint8), readonly))
        return address

    def forget(self, array: Array) -> None:
        """Takes back one `register`."""
        region = self._find(array)
        if region is None:
            if array.nbytes == 0:
                return
            raise PTXError("the array is not registered")
        region.users -= 1
        if not region.users:
            self.regions.remove(region)

    def _find(self, array: Array) -> Region | None:
        span = (array.ctypes.data, array.ctypes.data + array.nbytes)
        return next((r for r in self.regions if (r.start, r.stop) == span), None)


# The program and its threads


Reader = Callable[["Batch"], Array]
Writer = Callable[["Batch", Array], None]


@dataclass
class Instruction:
    """`run` executes it; control flow has none, and is left to `Batch.run`."""

    text: str
    guard: Reader | None = None
    run: Callable[[Batch], None] | None = None
    kind: str = ""  # of control flow: branch, barrier or exit
    targets: list[int] = field(default_factory=list)
    selector: Reader | None = None  # which of the targets; None: the only one
    barrier: int = 0


@dataclass
class Program:
    """Instructions, and what they need to run."""

    code: list[Instruction] = field(default_factory=list)
    register_names: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=lambda: {"shared": 0, "local": 0})  # per block, per thread


class Group:
    """Threads at one program counter."""

    __slots__ = ("_lanes", "count", "mask")

    def __init__(self, mask: Array) -> None:
        self.mask = mask
        self.count = int(np.count_nonzero(mask))
        self._lanes: Array | None = None

    @property
    def lanes(self) -> Array:
        if self._lanes is None:
            self._lanes = np.flatnonzero(self.mask)
        return self._lanes


class Batch:
    """The state of some blocks while they run."""

    def __init__(
        self,
        program: Program,
        regions: Sequence[Region],
        blocks: range,
        grid: int,
        threads: int,
        dynamic: int,
        param: Array,
    ) -> None:
        self.program, self.blocks, self.threads, self.size = program, blocks, threads, len(blocks) * threads
        self.regions = regions
        self.starts = [r.start for r in regions]
        self.registers: list[Array | None] = [None] * len(program.register_names)
        self.undefined: dict[int, Array] = {}  # by register: the threads that have not written it, if others have
        self.live = np.ones(self.size, bool)
        self.live_count = self.size
        self.group = Group(self.live.copy())
        self.thread = np.tile(np.arange(threads, dtype=np.uint32), len(blocks))
        self.block = np.repeat(np.arange(len(blocks)), threads)
        self.special = self._special_registers(grid, dynamic)
        self.param = Region(0, param)
        self.limits = {"shared": program.sizes["shared"] + dynamic, "local": program.sizes["local"]}
        # One stretch of shared memory per block and one of local memory per thread, far enough apart for any alignment.
        self.strides = {space: -(-size // 64) * 64 for space, size in self.limits.items()}
        owners = {"shared": len(blocks), "local": self.size}
        self.scratch = {
            space: Region(0, np.full(stride * owners[space], 0xFF, np.uint8)) for space, stride in self.strides.items()
        }

    def _special_registers(self, grid: int, dynamic: int) -> dict[str, Array]:
        lane = self.thread % 32
        bit = np.uint64(1) << lane.astype(np.uint64)
        below = bit - np.uint64(1)
        masks = {"eq": bit, "lt": below, "le": below | bit, "gt": ~(below | bit), "ge": ~below}
        special = {f"%lanemask_{k}": v.astype(np.uint32) for k, v in masks.items()}
        one, zero = np.ones(1, np.uint32), np.zeros(1, np.uint32)
        for name, value in (("tid", zero), ("ctaid", zero), ("ntid", one), ("nctaid", one)):
            special |= {f"%{name}.{axis}": value for axis in "yz"}
        special["%tid.x"], special["%laneid"], special["%warpid"] = self.thread, lane, self.thread // 32
        special["%ctaid.x"] = (self.block + self.blocks.start).astype(np.uint32)
        for name, number in (("ntid.x", self.threads), ("nctaid.x", grid), ("nwarpid", -(-self.threads // 32))):
            special["%" + name] = np.array([number], np.uint32)
        special["%dynamic_smem_size"] = np.array([dynamic], np.uint32)
        return special

    def describe(self, lane: int) -> str:
        return f"block {self.blocks.start + int(self.block[lane])}, thread {int(self.thread[lane])}"

    def read(self, index: int) -> Array:
        value = self.registers[index]
        if value is None:
            raise PTXError(f"read of the undefined register {self.program.register_names[index]}")
        if index in self.undefined:
            missing = np.flatnonzero(self.undefined[index] & self.group.mask)
            if missing.size:
                name = self.program.register_names[index]
                raise PTXError(f"read of the register {name}, undefined in {self.describe(missing[0])}")
        return value

    def write(self, index: int, value: Array) -> None:
        mask = self.group.mask
        if self.group.count == self.live_count:
            self.registers[index] = value
            self.undefined.pop(index, None)
            return
        old = self.registers[index]
        if old is None:
            old = np.zeros(1, value.dtype)
            self.undefined[index] = self.live & ~mask
        elif index in self.undefined:
            self.undefined[index] = self.undefined[index] & ~mask
            if not self.undefined[index].any():
                del self.undefined[index]
        self.registers[index] = np.where(mask, value, old)

    def active(self, value: Array) -> Array:
        """The values of the active threads only."""
        if value.size == 1:
            return np.broadcast_to(value, (self.group.count,))
        return value if self.group.count == self.size else value[self.group.lanes]

    def spread(self, value: Array) -> Array:
        """The inverse of `active`."""
        if value.size == 1 or self.group.count == self.size:
            return value
        everyone = np.zeros(self.size, value.dtype)
        everyone[self.group.lanes] = value
        return everyone

    def load(self, space: str, address: Array, dtype: np.dtype[Any], count: int) -> Array:
        """What stands at the addresses (uint64, of the active threads or one for all); rows if `count` is not 1."""
        size = dtype.itemsize * count
        parts = self.locate(space, address, size, store=False)
        if len(parts) == 1:
            view, index = _rows(parts[0], dtype, count)
            return view.take(index, axis=0)
        result = np.empty((address.size, count) if count > 1 else address.size, dtype)
        for part in parts:
            view, index = _rows(part, dtype, count)
            result[part[2]] = view.take(index, axis=0)
        return result

    def store(self, space: str, address: Array, dtype: np.dtype[Any], values: Sequence[Array]) -> None:
        """Every active thread stores its vector of values; where addresses coincide, the last thread wins."""
        count = len(values)
        for part in self.locate(space, address, dtype.itemsize * count, store=True):
            view, index = _rows(part, dtype, count)
            for k, value in enumerate(values):
                (view[:, k] if count > 1 else view)[index] = value[part[2]]

    def update(
        self, space: str, address: Array, dtype: np.dtype[Any], function: Callable[..., Array], *values: Array
    ) -> Array:
        """One atomic operation after the other, in the order of the threads. Returns what was there before."""
        old = np.empty(address.size, dtype)
        for part in self.locate(space, address, dtype.itemsize, store=True):
            view, index = _rows(part, dtype, 1)
            operands = [value[part[2]] for value in values]
            found = np.empty(index.size, dtype)
            if np.unique(index).size == index.size:
                found = view[index]
                view[index] = function(found, *operands)
            else:
                for k, row in enumerate(index):
                    found[k] = view[row]
                    view[row : row + 1] = function(view[row : row + 1], *(v[k : k + 1] for v in operands))
            old[part[2]] = found
        return old

    def locate(self, space: str, address: Array, size: int, store: bool) -> list[Part]:
        """The regions of the accesses of `size` bytes; nearly always one."""
        if int(np.bitwise_or.reduce(address)) & (size - 1):
            self._refuse(space, address, (address & np.uint64(size - 1)) != 0, f"misaligned access of {size} bytes")
        low, high = int(address.min()), int(address.max())
        outside = f"access of {size} bytes out of bounds"
        if space in self.scratch:
            limit = self.limits[space]
            if high + size > limit:
                self._refuse(space, address, (address > np.uint64(max(limit - size, 0))) | (limit < size), outside)
            owner = self.block[self.group.lanes] if space == "shared" else self.group.lanes
            return [(self.scratch[space], address + (owner * self.strides[space]).view(np.uint64), slice(None))]
        if space == "param":
            if store or high + size > self.param.stop:
                raise PTXError(f"bad access to the parameters at offset {high}")
            return [(self.param, address, slice(None))]
        if space == "generic" and high >= WINDOWS["shared"]:
            return self._locate_generic(address, size, store)
        position = bisect_right(self.starts, low) - 1
        if position >= 0 and high + size <= self.regions[position].stop:
            parts: list[Part] = [(self.regions[position], address, slice(None))]
        else:
            positions = np.searchsorted(np.array(self.starts, np.uint64), address, side="right") - 1
            last = np.array([r.stop for r in self.regions] + [size], np.uint64)[positions] - np.uint64(size)
            self._refuse(space, address, (positions < 0) | (address > last), outside)
            parts = [(self.regions[p], address[positions == p], positions == p) for p in np.unique(positions)]
        for region, _, chosen in parts:
            if store and region.readonly:
                bad = np.zeros(address.size, bool)
                bad[chosen] = True
                self._refuse(space, address, bad, "store to a read-only array")
        return parts

    def _locate_generic(self, address: Array, size: int, store: bool) -> list[Part]:
        address = np.broadcast_to(address, (self.group.count,))
        window = address & np.uint64(WINDOW_MASK)
        parts: list[Part] = []
        everyone, lanes = self.group, self.group.lanes
        for space, base in (("global", 0), *WINDOWS.items()):
            chosen = window == np.uint64(base)
            if not chosen.any():
                continue
            mask = np.zeros(self.size, bool)
            mask[lanes[chosen]] = True
            self.group = Group(mask)
            for region, inside, part in self.locate(space, address[chosen] - np.uint64(base), size, store):
                parts.append((region, inside, np.flatnonzero(chosen)[part]))
            self.group = everyone
        return parts

    def _refuse(self, space: str, address: Array, bad: Array, what: str) -> None:
        """Raises PTXError for the first bad access, if there is one."""
        if np.any(bad):
            k = int(np.argmax(bad))
            lane = self.group.lanes[k if address.size > 1 else 0]
            raise PTXError(f"{what} at {space} address {int(address[k]):#x}, {self.describe(lane)}")

    # Control flow

    def run(self, max_steps: int) -> int:
        """Executes until every thread has exited; returns the number of steps."""
        code = self.program.code
        pending: dict[int, Group] = {}
        waiting: dict[tuple[int, int], Group] = {}  # by barrier and program counter after it
        pc, group, meeting, steps = 0, self.group, NEVER, 0

        while True:
            if pc == meeting:
                group = Group(group.mask | pending.pop(pc).mask)
                meeting = min(pending, default=NEVER)
            self.group = group
            instruction = code[pc]
            steps += 1
            try:
                if steps > max_steps:
                    raise PTXError(f"no end after {max_steps} steps")
                active = group
                if instruction.guard is not None:
                    chosen = self._select(instruction.guard(self))
                    if chosen is None:
                        pc += 1
                        continue
                    self.group = active = chosen
                if instruction.run is not None:
                    instruction.run(self)
                    pc += 1
                    continue
                if instruction.kind == "branch":
                    ways = self._ways(instruction)
            except PTXError as error:
                raise PTXError(f"{instruction.text}: {error}") from error
            if active is not group:
                _join(pending, pc + 1, Group(group.mask & ~active.mask))
            if instruction.kind == "branch":
                for target, part in ways:
                    _join(pending, target, part)
            elif instruction.kind == "barrier":
                _join(waiting, (instruction.barrier, pc + 1), active)
            else:
                self.live = self.live & ~active.mask
                self.live_count -= active.count
            if not pending:
                if not waiting:
                    return steps
                for key, part in self._released(waiting):
                    _join(pending, key[1], part)
            pc = min(pending)
            group = pending.pop(pc)
            meeting = min(pending, default=NEVER)

    def _select(self, condition: Array) -> Group | None:
        """The threads of the group for which the condition holds; the group itself if it holds for all."""
        if condition.size == 1:
            return self.group if condition[0] else None
        chosen = Group(self.group.mask & condition)
        if chosen.count == self.group.count:
            return self.group
        return chosen if chosen.count else None

    def _ways(self, branch: Instruction) -> list[tuple[int, Group]]:
        """Where the active threads branch to."""
        if branch.selector is None:
            return [(branch.targets[0], self.group)]
        index = np.broadcast_to(branch.selector(self), (self.size,))
        values = np.unique(index[self.group.lanes])
        if int(values[-1]) >= len(branch.targets):
            raise PTXError(f"index {values[-1]} beyond {len(branch.targets)} targets")
        return [(branch.targets[v], Group(self.group.mask & (index == v))) for v in values]

    def _released(self, waiting: dict[tuple[int, int], Group]) -> list[tuple[tuple[int, int], Group]]:
        """Takes from `waiting` the threads of blocks that have wholly arrived at one barrier. Nobody else can run."""

        def per_block(mask: Array) -> Array:
            return mask.reshape(len(self.blocks), self.threads).sum(axis=1)

        released = []
        for barrier in {key[0] for key in waiting}:
            keys = [key for key in waiting if key[0] == barrier]
            arrived = per_block(np.logical_or.reduce([waiting[key].mask for key in keys]))
            complete = np.repeat((arrived > 0) & (arrived == per_block(self.live)), self.threads)
            for key in keys:
                go, stay = Group(waiting[key].mask & complete), Group(waiting[key].mask & ~complete)
                if go.count:
                    released.append((key, go))
                    del waiting[key]
                    if stay.count:
                        waiting[key] = stay
        if not released:
            lane = int(next(iter(waiting.values())).lanes[0])
            raise PTXError(f"deadlock: the threads of a block wait at different barriers ({self.describe(lane)})")
        return released


def _join(table: dict[Any, Group], key: Any, newcomers: Group) -> None:
    table[key] = Group(table[key].mask | newcomers.mask) if key in table else newcomers


def _rows(part: Part, dtype: np.dtype[Any], count: int) -> tuple[Array, Array]:
    """The view of a region by vectors, and the rows of the addresses in it."""
    region, address, _ = part
    view, first = region.view(dtype, count)
    return view, ((address - first) >> np.uint64((dtype.itemsize * count).bit_length() - 1)).view(np.int64)
