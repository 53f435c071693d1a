"""The operations that elements are built from."""

import ctypes
import math
import mmap
import sys

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from gpubce.spec import plan
from gpubce.spec.precision import ITEMSIZE, widened
from gpubce.spec.primitives import (
    REGIONS,
    TURNED,
    add_atomically,
    addition,
    first_width,
    floored,
    fma,
    is_nan,
    loader,
    low_bits,
    polynomial,
    positive_part,
    product,
    scale_by_low_bits,
    select,
    split_exponent,
    storer,
    strided_offset,
    transposer,
    two_sum,
)
from tests.cases import aligned_empty, bits, dtype, rounded

CUBIC = polynomial((1.0, 2.0, 3.0, 4.0), "float64")
ONE, ONE_OF_64 = np.float32(1), np.float64(1)
REFUSED = {
    "fma of two types": (lambda a, b: fma(a, a, b), ONE, ONE_OF_64),
    "fma of integers": (lambda a, b: fma(a, b, b), 1, 1),
    "product of two types": (lambda a, b: product(a, b), ONE, ONE_OF_64),
    "product of integers": (lambda a, b: product(a, b), 1, 1),
    "positive_part of an integer": (lambda a, b: positive_part(a), 1, 1),
    "select from two types": (lambda a, b: select(a == a, a, b), ONE, ONE_OF_64),
    "select by a number": (lambda a, b: select(a, b, b), ONE, ONE),
    "is_nan of an integer": (lambda a, b: is_nan(a), 1, 1),
    "scale_by_low_bits of two types": (lambda a, b: scale_by_low_bits(a, b), ONE, ONE_OF_64),
    "scale_by_low_bits of integers": (lambda a, b: scale_by_low_bits(a, b), 1, 1),
    "split_exponent of an integer": (lambda a, b: split_exponent(a), 1, 1),
    "floored of an integer": (lambda a, b: floored(a), 1, 1),
    "low_bits of a float32": (lambda a, b: low_bits(a), ONE, ONE),
    "low_bits of an integer": (lambda a, b: low_bits(a), 1, 1),
    "a polynomial of another type": (lambda a, b: CUBIC(a), ONE, ONE),
}


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_the_positive_part_of_what_is_not_a_number_is_0(real):
    part = njit(lambda value: positive_part(value))
    values = [real(value) for value in (-np.inf, -0.5, -0.0, 0.0, 0.25, 3.0, np.inf, np.nan)]
    found = [part(value) for value in values]
    assert found == [0, 0, 0, 0, 0.25, 3.0, np.inf, 0]


@pytest.mark.parametrize("name", REFUSED)
def test_operations_take_one_type(name):
    """Nothing is converted without a word."""
    operation, *arguments = REFUSED[name]
    with pytest.raises(TypingError):
        njit(operation)(*arguments)


def test_fma_rounds_once_and_a_product_by_itself():
    a = 1.0 + 2.0**-30
    assert njit(lambda a, c: fma(a, a, c))(a, -1.0) == 2.0**-29 + 2.0**-60
    assert njit(lambda a, c: product(a, a) + c)(a, -1.0) == 2.0**-29


REALS = pytest.mark.parametrize("real", ["float32", "float64"])


@REALS
def test_an_exponent_is_split_off(real):
    """At 1, at both ends of what a mantissa can be, and far out."""
    number = np.dtype(real).type
    split = njit(lambda value: split_exponent(value))
    root = np.sqrt(number(0.5))
    far = np.finfo(real).maxexp - 1
    for value in (1.0, 0.75, 1.5, root, np.nextafter(root, number(0)), 2 * root, np.nextafter(2 * root, number(0))):
        for exponent in (0, 1, -1, far - 1, 2 - far):
            whole = np.ldexp(number(value), exponent)
            k, m = split(whole)
            assert math.ldexp(m, int(k)) == whole
            assert root <= m < 2 * root
            assert type(k) is type(m) is float


@REALS
def test_a_power_of_two_multiplies(real):
    number, info = np.dtype(real).type, np.finfo(real)
    rounder = number(1.5 * 2**info.nmant + (info.maxexp - 1))
    scale = njit(lambda value, shifted: scale_by_low_bits(value, shifted))
    for k in (0, 1, -1, 7, info.minexp, info.maxexp - 1):
        assert scale(number(1.25), number(k) + rounder) == math.ldexp(1.25, k)
        assert math.isnan(scale(number(math.nan), number(k) + rounder))


@REALS
def test_reals_are_rounded_down(real):
    floor = njit(lambda value: floored(value))
    for value in (-2.0, -1.5, -1.0, -0.25, -0.0, 0.0, 0.75, 1.0, 1.5, 32767.0, -32768.0, -32767.5):
        assert floor(np.dtype(real).type(value)) == math.floor(value)
        assert type(floor(np.dtype(real).type(value))) is int


def test_the_low_bits_of_a_shifted_real_are_an_integer():
    bits_of = njit(lambda value: low_bits(value))
    for k in (0, 1, 2, 255, 2**32 + 1, 2**51 - 1, 2**51, 2**52 - 1):
        assert bits_of(2.0**52 + k) == k


def test_a_polynomial_is_one_fma_a_step():
    x = 1.0 + 2.0**-30
    expected = njit(lambda x: fma(fma(fma(4.0, x, 3.0), x, 2.0), x, 1.0))(x)
    assert njit(lambda x: CUBIC(x))(x) == expected


def test_the_pairs_of_the_plan_are_compiled_as_they_are():
    for hi, lo, other_hi, other_lo in ((1.0, 2.0**-60, 2.0**-53, 2.0**-110), (-3.0, 1e-17, 1e-3, 0.0)):
        for compiled, arguments in (
            (two_sum, (hi, other_hi)),
            *((how.add, (hi, lo, other_hi)) for how in (addition(True), addition(False))),
            *((how.merge, (hi, lo, other_hi, other_lo)) for how in (addition(True), addition(False))),
        ):
            assert compiled(*arguments) == _plain(compiled)(*arguments)
    for count in (1, 3, 31, 32):
        assert first_width(32, count) == _plain(first_width)(32, count)


def _plain(compiled):
    """The function of the plan of that name."""
    return getattr(plan, compiled.py_func.__name__)


# Memory -------------------------------------------------------------------------------------------------------------

STORED = {
    "bool": [False, True],
    **{f"int{b}": [-(2 ** (b - 1)), -1, 0, 1, 2 ** (b - 1) - 1] for b in (8, 16, 32, 64)},
    **{f"uint{b}": [0, 1, 2 ** (b - 1), 2**b - 1] for b in (8, 16, 32, 64)},
    **{
        name: [0.0, -0.0, 1.0, -1.5, 2.0**-14, math.inf, -math.inf, math.nan]
        for name in ("float16", "bfloat16", "float32", "float64")
    },
}
"""Values at the ends of each type."""


def copied(storage: str, values: np.ndarray, count: int, region: str = "operands") -> np.ndarray:
    """Loaded and stored again, from the second group of ``count`` on; the rest is 0. Several are loaded at once from
    aligned memory alone."""
    load, store = loader(storage, count, region), storer(storage, count, region)

    @njit
    def copy(source, target, size):
        for index in range(count, size, count):
            store(target, index, load(source, index))

    source, target = (aligned_empty(values.shape, values.dtype) for _ in range(2))
    source[...], target[...] = values, 0
    copy(source.ctypes.data, target.ctypes.data, values.size)
    return target


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("storage", STORED)
def test_what_is_loaded_is_stored_again(storage, count):
    values = np.array(STORED[storage] * 4, dtype(storage))
    expected = values.copy()
    expected[:count] = 0
    assert np.array_equal(bits(copied(storage, values, count)), bits(expected))


@pytest.mark.parametrize("region", [region for group in REGIONS for region in group])
def test_every_region_is_memory(region):
    values = np.arange(12.0)
    assert copied("float64", values, 1, region).tolist() == [0.0, *values[1:]]


@pytest.mark.parametrize("storage", STORED)
def test_elements_are_seen_in_the_widened_type(storage):
    load = loader(storage)
    values = np.array(STORED[storage], dtype(storage))
    wide = np.empty(values.size, widened(storage))

    @njit
    def widen(address, wide):
        for index in range(wide.size):
            wide[index] = load(address, index)

    widen(values.ctypes.data, wide)
    assert np.array_equal(bits(wide), bits(values.astype(widened(storage))))


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_narrow_elements_are_rounded_to_the_nearest_even(storage):
    """All points halfway between two neighbours, and their own neighbours."""
    store = storer(storage)
    every = np.arange(2**16, dtype=np.uint16).view(dtype(storage)).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    middle = every[:-1] + (every[1:] - every[:-1]) / np.float32(2)
    values = np.concatenate([every, middle, *(np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf))])
    found = np.empty(values.size, dtype(storage))

    @njit
    def narrow(values, address):
        for index in range(values.size):
            store(address, index, values[index])

    narrow(values, found.ctypes.data)
    assert np.array_equal(bits(found), bits(rounded(values, storage)))


def test_integers_in_memory_are_added_to():
    counts = np.arange(4)
    njit(lambda address: add_atomically(address, 2, 5))(counts.ctypes.data)
    assert counts.tolist() == [0, 1, 7, 3]


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (3, 1, 4)], ids=str)
def test_offsets_are_those_of_the_strides(shape, slot):
    arrays = np.zeros(shape, np.int16), np.zeros(shape[::-1], np.float64).T
    geometry = (*shape, *arrays[0].strides, *arrays[1].strides)
    offset = strided_offset(len(shape), slot)
    find = njit(lambda index, geometry: offset(index, geometry))
    for index, place in enumerate(np.ndindex(shape)):
        assert find(index, geometry) == sum(k * stride for k, stride in zip(place, arrays[slot].strides, strict=True))


@pytest.fixture
def edge_of_memory():
    """Bytes, behind which nobody has memory: to touch it ends the process."""
    libc = ctypes.CDLL(None)
    room = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    memory = np.frombuffer(room, np.uint8)
    address = memory.ctypes.data + mmap.PAGESIZE
    assert libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 0) == 0
    yield memory[: mmap.PAGESIZE]
    libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is protected by Linux's call")
@pytest.mark.parametrize("itemsize", sorted(set(ITEMSIZE.values())))
def test_rows_become_columns(itemsize, edge_of_memory):
    """Rows lie 3 elements further apart than they are long, columns 5; nothing is read behind the last one, nor written
    between them."""
    transpose = transposer(itemsize)
    turn = njit(lambda a, b, c, d, rows, wide, written: transpose(a, b, c, d, rows, wide, written))
    kind = np.dtype(f"uint{8 * itemsize}")
    for rows, wide in ((TURNED, TURNED), (TURNED, 3), (5, TURNED), (1, 1), (3, 7)):
        held = (rows - 1) * (TURNED + 3) + wide
        last = edge_of_memory[-held * itemsize :].view(kind)
        last[...] = np.arange(held)
        source = np.lib.stride_tricks.as_strided(last, (rows, wide), ((TURNED + 3) * itemsize, itemsize))
        for written in (rows, TURNED):
            target = np.full((TURNED, TURNED + 5), 199, kind)
            turn(source.ctypes.data, source.strides[0], target.ctypes.data, target.strides[0], rows, wide, written)
            assert np.array_equal(target[:wide, :rows], source.T), (rows, wide)
            assert (target[:wide, written:] == 199).all()
            assert (target[wide:] == 199).all()


def test_a_type_of_memory_has_a_size():
    assert {name: dtype(name).itemsize for name in ITEMSIZE} == ITEMSIZE
