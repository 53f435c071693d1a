"""The specification executed as Python: its formulas, its geometry and its plan, with NumPy in place of a compiler.

The modules that hold formulas are loaded once more, beside those that the package uses, with the operations of
``gpubce.spec.primitives`` and ``gpubce.spec.subroutines`` exchanged for functions of arrays. An element's formula then
takes all samples at once. Nothing is compiled, so a case takes milliseconds, and what a formula gives owes nothing to
Numba or LLVM.
"""

import ctypes
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numba
import numpy as np

import gpubce
from gpubce.backends.kernel_key import KernelKey, SettleKey
from gpubce.spec import bins, plan, primitives
from gpubce.spec.geometry import FLAT, SCALAR
from gpubce.spec.job import Settlement
from gpubce.spec.plan import Plan
from gpubce.spec.precision import ITEMSIZE
from gpubce.spec.recipe import OUTPUTS, ROLES
from tests.cases import dtype
from tests.ptx.arithmetic import fused_multiply_add

SPEC = Path(gpubce.__file__).parent / "spec"

# Memory -------------------------------------------------------------------------------------------------------------


def _bytes_at(addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(the memory that holds them all, the place of each byte of each element)."""
    first = int(addresses.min())
    memory = (ctypes.c_uint8 * (int(addresses.max()) + size - first)).from_address(first)
    return np.frombuffer(memory, np.uint8), (addresses - first)[..., None] + np.arange(size)


def loader(storage: str, count: int = 1, region: str = "operands"):
    """primitives.loader."""
    size = ITEMSIZE[storage]

    def load(address, index):
        memory, places = _bytes_at(np.asarray(address + np.asarray(index) * size), size)
        stored = memory[places].view(np.uint8 if storage == "bool" else dtype(storage))[..., 0]
        if stored.dtype.kind in "iu":
            return stored.astype(np.int64)
        return stored if size > 2 else stored.astype(np.float32)

    return load


def storer(storage: str, count: int = 1, region: str = "outputs"):
    """primitives.storer."""
    size = ITEMSIZE[storage]

    def store(address, index, values):
        memory, places = _bytes_at(np.asarray(address + np.asarray(index) * size), size)
        with np.errstate(over="ignore", under="ignore"):
            stored = np.ascontiguousarray(np.broadcast_to(values, places.shape[:-1]).astype(dtype(storage)))
        memory[places] = stored[..., None].view(np.uint8)

    return store


# Operations ---------------------------------------------------------------------------------------------------------


def product(a, b):
    """primitives.product."""
    return fused_multiply_add(a, b, np.zeros_like(a))


def polynomial(coefficients, real: str):
    """primitives.polynomial."""
    *rest, last = [np.dtype(real).type(c) for c in coefficients]

    def horner(x):
        value = last
        for coefficient in reversed(rest):
            value = fused_multiply_add(value, x, coefficient)
        return value

    return horner


def split_exponent(value):
    """primitives.split_exponent."""
    value = np.asarray(value)
    info = np.finfo(value.dtype)
    word = np.dtype(f"int{info.bits}").type
    whole, fraction = value.view(word), word(info.nmant)
    exponent = (whole - np.sqrt(value.dtype.type(0.5)).view(word)) >> fraction
    return exponent.astype(value.dtype), (whole - (exponent << fraction)).view(value.dtype)


def scale_by_low_bits(value, shifted):
    """primitives.scale_by_low_bits."""
    info = np.finfo(value.dtype)
    word = np.dtype(f"int{info.bits}")
    power = (np.asarray(shifted).view(word) << word.type(info.nmant)).view(value.dtype)
    return product(value, power)


def _plain(function):
    function.py_func = function
    return function


def tuple_of(arguments: str, *parts):
    """subroutines.tuple_of."""
    return lambda *given: tuple(part(*given) for part in parts)


def of_elements(part, kind, *places: int):
    """subroutines.of_elements."""
    return lambda elements: part(*(np.asarray(elements[place]).astype(kind.name) for place in places))


PRIMITIVES = SimpleNamespace(
    fma=fused_multiply_add,
    product=product,
    select=np.where,
    is_nan=np.isnan,
    positive_part=lambda value: np.fmax(value, value.dtype.type(0)),
    polynomial=polynomial,
    split_exponent=split_exponent,
    scale_by_low_bits=scale_by_low_bits,
    floored=lambda value: np.floor(value).astype(np.int32),
    low_bits=lambda shifted: np.asarray(shifted).view(np.int64) & ((1 << 52) - 1),
    loader=loader,
    storer=storer,
)
SUBROUTINES = SimpleNamespace(subroutine=lambda result: _plain, tuple_of=tuple_of, of_elements=of_elements)


@cache
def formulas() -> dict[str, ModuleType]:
    """The modules quantities, histogram and elements of gpubce.spec, as Python."""
    plain = SimpleNamespace(types=numba.types, njit=lambda **options: lambda function: function)
    replaced = {"numba": plain, "gpubce.spec.primitives": PRIMITIVES, "gpubce.spec.subroutines": SUBROUTINES}
    before = {name: sys.modules.get(name) for name in (*replaced, "gpubce.spec.quantities", "gpubce.spec.histogram")}
    modules = {}
    try:
        sys.modules.update(replaced)
        for name in ("quantities", "histogram", "elements"):
            made = spec_from_file_location(f"interpreted_{name}", SPEC / f"{name}.py")
            module = module_from_spec(made)
            made.loader.exec_module(module)
            modules[name] = module
            if name != "elements":
                sys.modules[f"gpubce.spec.{name}"] = module
    finally:
        for name, there in before.items():
            if there is None:
                del sys.modules[name]
            else:
                sys.modules[name] = there
    return modules


# The passes ---------------------------------------------------------------------------------------------------------


def reals_at(address: int, *shape: int) -> np.ndarray:
    """The float64 in memory."""
    return np.ctypeslib.as_array((ctypes.c_double * int(np.prod(shape))).from_address(address)).reshape(shape)


def by_blocks(hi: np.ndarray, lo: np.ndarray, by: Plan, compensated: bool) -> np.ndarray:
    """The pairs of all blocks of the last axis, [hi or lo, ..., block]: the plan, on all blocks at once."""
    blocks = by.blocks(hi.shape[-1])
    room = np.zeros((2, *hi.shape[:-1], blocks * by.block))
    room[0, ..., : hi.shape[-1]], room[1, ..., : hi.shape[-1]] = hi, lo
    rows = room.reshape(2, *hi.shape[:-1], blocks, by.rows, by.lanes)

    merge = plan.addition(compensated).merge
    with np.errstate(invalid="ignore", over="ignore"):
        lanes = np.zeros(rows.shape[:-2] + rows.shape[-1:])
        for row in range(by.rows):
            lanes = np.stack(merge(*lanes, *rows[..., row, :]))
        while lanes.shape[-1] > 1:
            half = lanes.shape[-1] // 2
            lanes = np.stack(merge(*lanes[..., :half], *lanes[..., half:]))
    return lanes[..., 0]


class InterpretedEngine:
    """See :class:`gpubce.backends.pipeline.Engine`."""

    loads_vectors = False
    at_once = True
    along_axes_settled = None

    def _samples(self, key: KernelKey, elements, addresses, geometry, parameters, ignored):
        """Write the outputs of all elements; what they give to the sums and to the histogram."""
        index = np.arange(elements)

        def place(role):
            k = key.position(role)
            if key.layouts[k] == SCALAR:
                return addresses[k], np.zeros_like(index)
            if key.layouts[k] == FLAT:
                return addresses[k], index
            offset = primitives.strided_offset(key.dimensions, key.slot(role)).py_func
            return addresses[k] + offset(index, geometry), 0

        def read(role):
            storage = getattr(key.recipe, role)
            return np.True_ if storage is None else loader(storage)(*place(role))

        with np.errstate(all="ignore"):
            outputs, sample, placed = formulas()["elements"].element(key.recipe)(
                np.ones(elements, bool), tuple(read(role) for role in ROLES), parameters, ignored
            )
            sums = formulas()["quantities"].collector(key.recipe.sums)(sample)
        for role, values in zip(OUTPUTS, outputs, strict=True):
            if role in key.recipe.outputs:
                storer(key.recipe.stored)(*place(role), values)
        return [np.broadcast_to(values, elements) for values in sums[: len(key.recipe.sums)]], placed

    def _count(self, key: KernelKey, histogram: int, unit: int, placed, label):
        """Add to the histogram of each element's label."""
        if not key.recipe.bins:
            return
        cells = bins.cells(key.recipe.bins)
        cell, positive, negative = (np.broadcast_to(part, label.shape) for part in placed)
        counts = np.ctypeslib.as_array((ctypes.c_int64 * (cells * (int(label.max()) + 1))).from_address(histogram))
        if key.recipe.quantised:
            np.add.at(counts, cells * label + cell, negative)
            np.add.at(counts, cells * label + cell + 1, positive)
        else:
            np.add.at(counts, cells * label + cell, unit)

    def whole(self, key, elements, addresses, geometry, parameters, ignored, partials, count, histogram, unit):
        sums, placed = self._samples(key, elements, addresses, geometry, parameters, ignored)
        self._count(key, histogram, unit, placed, np.zeros(elements, np.int64))
        for k, values in enumerate(sums):
            pairs = by_blocks(values, np.zeros(elements), key.plan, key.recipe.compensated)
            reals_at(partials, len(sums), 2, count)[k] = pairs

    def along_axes(
        self, key, reduced, outputs, addresses, geometry, parameters, ignored, partials, count, histogram, unit
    ):
        sums, placed = self._samples(key, reduced * outputs, addresses, geometry, parameters, ignored)
        self._count(key, histogram, unit, placed, np.arange(reduced * outputs) % outputs)
        for k, values in enumerate(sums):
            rows = values.reshape(reduced, outputs)
            for run in range(count):
                pair = np.zeros(outputs), np.zeros(outputs)
                for row in rows[run * key.plan.chunk : (run + 1) * key.plan.chunk]:
                    with np.errstate(invalid="ignore", over="ignore"):
                        pair = plan.addition(key.recipe.compensated).add(*pair, row)
                reals_at(partials, len(sums), 2, count, outputs)[k, :, run] = pair

    def combine(self, by: Plan, sums, size, outputs, source, target):
        pairs = np.moveaxis(reals_at(source, sums, 2, size, outputs), 2, -1)
        left = by_blocks(pairs[:, 0], pairs[:, 1], by, True)
        reals_at(target, sums, 2, by.blocks(size), outputs)[...] = np.moveaxis(left, (0, -1), (1, 2))

    def repeat(self, *what):
        return None

    def settle(self, settlement: Settlement):
        key, arguments = SettleKey.of(settlement)
        value = formulas()["elements"].settlement(key.storage, key.makes_scale, key.divides_by_sum, key.factor_storage)
        with np.errstate(all="ignore"):
            for o in range(arguments[0]):
                value(o, *arguments)

    def clear(self, address, cells):
        ctypes.memset(address, 0, 8 * cells)
