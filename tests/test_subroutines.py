"""Functions that kernels call, and how several of them make one."""

import math
import re
from functools import partial

import numpy as np
import pytest
from numba import njit, types
from numba.core.codegen import CPUCodeLibrary
from numba.core.errors import TypingError
from numba.core.registry import cpu_target

from gpubce.backends.cuda.compile import ptx
from gpubce.backends.kernel_key import KernelKey
from gpubce.spec import subroutines
from gpubce.spec.geometry import FLAT
from gpubce.spec.primitives import loader, product, storer
from gpubce.spec.processors import vector_bits
from gpubce.spec.recipe import Recipe
from gpubce.spec.subroutines import (
    KernelCompiler,
    chosen,
    chosen_of_each,
    in_turn,
    of_elements,
    over_lanes,
    replaced,
    subroutine,
    tuple_of,
)

load, store = loader("float64"), storer("float64")


def test_a_subroutine_is_a_function_that_divides_as_ieee_754_says():
    @subroutine(types.float64)
    def quotient(a, b):
        """a / b"""
        return a / b

    assert (quotient.__name__, quotient.__doc__, quotient.py_func(1.0, 4.0)) == ("quotient", "a / b", 0.25)
    assert njit(lambda a, b: quotient(a, b))(1.0, 0.0) == math.inf


def test_a_subroutine_is_compiled_once_however_it_is_called(monkeypatch):
    """By its name, and as a part of something."""
    seen = []
    compile_it = KernelCompiler.compile_extra
    monkeypatch.setattr(KernelCompiler, "compile_extra", lambda *what: (seen.append(what[1]), compile_it(*what))[1])

    @subroutine(types.float64)
    def halved(a):
        return a / 2

    both = tuple_of("a", halved, halved)
    assert njit(lambda a: (halved(a), both(a)))(3.0) == (1.5, (1.5, 1.5))
    assert len(seen) == 1


@pytest.mark.parametrize(("inline", "optimised"), [(True, 1), (False, 2)])
def test_what_is_inlined_is_optimised_with_its_callers_alone(monkeypatch, inline, optimised):
    seen = []
    optimise = CPUCodeLibrary._optimize_final_module
    monkeypatch.setattr(
        CPUCodeLibrary, "_optimize_final_module", lambda library: (seen.append(library), optimise(library))
    )

    @subroutine(types.float64, inline)
    def halved(a):
        return a / 2

    kernel = njit(types.float64(types.float64))(lambda a: halved(halved(a)))
    assert (kernel(3.0), len(seen)) == (0.75, optimised)


@subroutine(types.void)
def twice(address, place):
    store(address, place, 2.0 * load(address, place))


@subroutine(types.void)
def one_more(address, place):
    store(address, place, 1.0 + load(address, place))


@pytest.mark.parametrize(
    ("parts", "expected"), [((), 5.0), ((twice,), 10.0), ((twice, one_more), 11.0), ((one_more, twice, twice), 24.0)]
)
def test_subroutines_are_called_one_after_the_other(parts, expected):
    all_of_them = in_turn("address place", *parts)
    cells = np.full(3, 5.0)
    njit(lambda address: all_of_them(address, 1))(cells.ctypes.data)
    assert [*cells] == [5.0, expected, 5.0]


def test_a_part_may_have_integers_of_its_own():
    """They come first, and LLVM sees what they are."""

    @subroutine(types.void)
    def put(place, number, address):
        store(address, place, float(number))

    put_all = in_turn("address", *(partial(put, place, 3 * place) for place in range(4)))
    cells = np.full(5, np.nan)
    njit(lambda address: put_all(address))(cells.ctypes.data)
    assert np.array_equal(cells, [0.0, 3.0, 6.0, 9.0, np.nan], equal_nan=True)


def test_a_part_of_a_tuple_is_given_as_the_type_that_is_wanted():
    quotient = subroutine(types.float64)(lambda a, b: a / b)
    nothing = of_elements(subroutine(types.float64)(lambda: 7.0), types.float64)
    third_by_first = of_elements(quotient, types.float64, 2, 0)
    given = np.float32(3.0), True, np.int64(1)
    # As float32 the quotient would be another.
    assert njit(lambda a, b, c: (third_by_first((a, b, c)), nothing((a,))))(*given) == (1 / 3, 7.0)


def test_one_of_a_tuple_is_chosen_and_nothing_raised():
    choose = njit(types.float64(types.UniTuple(types.float64, 3), types.int64))(lambda few, place: chosen(few, place))
    assert [choose((1.0, math.nan, 3.0), place) for place in (0, 2)] == [1.0, 3.0]
    assert math.isnan(choose((1.0, math.nan, 3.0), 1))
    assert "IndexError" not in "".join(choose.inspect_llvm().values())


def test_one_of_each_tuple_is_chosen():
    numbers, truths = types.UniTuple(types.float64, 2), types.UniTuple(types.boolean, 2)
    choose = njit(types.Tuple((types.float64, types.boolean))(types.Tuple((numbers, truths)), types.int64))(
        lambda tuples, place: chosen_of_each(tuples, place)
    )
    assert [choose(((1.0, 2.0), (True, False)), place) for place in (0, 1)] == [(1.0, True), (2.0, False)]


def test_one_of_a_tuple_is_replaced():
    few = types.UniTuple(types.float64, 3)
    replace = njit(few(few, types.int64, types.float64))(lambda few, place, value: replaced(few, place, value))
    assert [replace((1.0, 2.0, 3.0), place, 9.0) for place in (0, 2)] == [(9.0, 2.0, 3.0), (1.0, 2.0, 9.0)]


def test_kernels_go_through_all_passes_that_find_something(monkeypatch):
    """The others leave the machine code as it is."""

    def assembly():
        @subroutine(types.float64)
        def norm(values, both):
            total = 0.0
            for k in range(3):
                if both:
                    total += values[0] * values[1] / (k + 1)
            return total

        kernel = njit(types.float64(types.UniTuple(types.float64, 2)))(lambda values: norm(values, True))
        return re.sub(r"\d+", "", "".join(kernel.inspect_llvm().values()))

    few = assembly()
    monkeypatch.setattr(subroutines, "_NOTHING_TO_DO", {})
    assert assembly() == few


def test_every_function_of_a_kernel_asks_for_whole_registers(monkeypatch):
    """LLVM would take half of 512 bits on some processors. tests/test_cpu_code.py has what it makes of the wish."""
    seen = []
    add = CPUCodeLibrary.add_ir_module
    monkeypatch.setattr(
        CPUCodeLibrary, "add_ir_module", lambda library, module: (seen.append(str(module)), add(library, module))
    )
    inner, outer = (subroutine(types.float64, inline)(lambda a: a / 2) for inline in (True, False))
    njit(types.float64(types.float64), pipeline_class=KernelCompiler)(lambda a: outer(inner(a)))
    defined = [line for module in seen for line in module.splitlines() if line.startswith("define")]
    assert len(defined) > 2
    assert all('"prefer-vector-width"="512"' in line for line in defined)


def test_kernels_are_called_from_python_alone():
    plain, kernel = (
        "".join(njit(types.float64(types.float64), **by)(lambda a: a / 2).inspect_llvm().values())
        for by in ({}, {"pipeline_class": KernelCompiler})
    )
    assert all(re.search(r"^define .*cpython", text, re.M) for text in (plain, kernel))
    assert [bool(re.search(r"^define .*@cfunc", text, re.M)) for text in (plain, kernel)] == [True, False]


def test_a_process_that_compiles_for_cuda_compiles_for_its_cpu_too():
    """Numba before 0.67 looks an intrinsic up by what emits it, whatever the target that is for."""
    emitters = [load._defn(context, types.int64, types.int64)[1] for context in (None, cpu_target.typing_context)]
    assert emitters[0] is emitters[1]


def test_cuda_has_one_subroutine_for_every_capability(monkeypatch):
    compiler, seen = subroutines._cuda_compiler(), []
    compile_it = compiler.compile_extra

    def record(self, function):
        assert self.state.flags.compute_capability is None
        seen.append(function.__name__)
        return compile_it(self, function)

    monkeypatch.setattr(compiler, "compile_extra", record)
    key = KernelKey(Recipe(prediction="float16", target="uint16", sums=("loss",)), (FLAT, FLAT))
    assert ".target sm_80" in ptx("whole", key, (8, 0))
    assert "step" in seen, "beside what an earlier test did not compile"
    seen.clear()
    assert ".target sm_90" in ptx("whole", key, (9, 0))
    assert set(seen) == {"step"}, "which calls functions that are made anew"


def test_a_tuple_holds_what_each_subroutine_gives_in_its_own_type():
    half = subroutine(types.float32)(lambda a: np.float32(a / 2))
    positive = subroutine(types.boolean)(lambda a: a > 0)
    both, none = tuple_of("a", half, positive), tuple_of("a")
    assert njit(lambda a: (both(a), none(a)))(3) == ((1.5, True), ())


def test_the_same_parts_make_the_same_function():
    """What calls it is compiled once then."""
    for made_of in (in_turn, tuple_of):
        assert made_of("address place", twice, one_more) is made_of("address place", twice, one_more)
        assert made_of("address place", twice) is not made_of("address place", one_more)
    assert of_elements(product, types.float64, 0, 1) is of_elements(product, types.float64, 0, 1)
    assert of_elements(product, types.float64, 0, 1) is not of_elements(product, types.float64, 1, 0)


def test_values_are_converted_to_what_a_part_takes():
    """An intrinsic may ask for a float64 where it is given an integer."""
    put = in_turn("address place value", store)
    cells = np.zeros(2)
    njit(lambda address: put(address, 1, 3))(cells.ctypes.data)
    assert [*cells] == [0.0, 3.0]


@pytest.mark.parametrize("made", [tuple_of("a b", product), over_lanes("a", product)], ids=["tuple_of", "over_lanes"])
def test_types_that_a_part_does_not_take_are_a_typing_error(made):
    """Numba's own, with the line."""
    with pytest.raises(TypingError, match=made.__name__):
        njit(lambda a: made(a, 1))(2)


def test_a_type_that_a_part_does_not_take_is_one_for_elements_too():
    made = of_elements(product, types.int64, 0, 1)
    with pytest.raises(TypingError, match="of_elements"):
        njit(lambda a: made((a, a)))(2)


@pytest.mark.parametrize("count", [-1, 0, 1, 7, 8, 16, 33, 100])
@pytest.mark.parametrize("bad", [None, 0, 5, 32])
def test_all_lanes_are_worked_on_and_tell_whether_all_are_true(count, bad):
    @subroutine(types.boolean)
    def halve(lane, address, limit):
        value = load(address, lane)
        store(address, lane, value / 2)
        return value < limit

    halve_all = over_lanes("address limit", halve)
    cells = np.arange(101.0)
    limit = 1000.0
    if bad is not None:
        cells[bad] = limit
    before, lanes = cells.copy(), max(0, count)
    all_below = njit(lambda count, address, limit: halve_all(count, address, limit))(count, cells.ctypes.data, limit)
    assert all_below == (bad is None or bad >= count)
    assert np.array_equal(cells[:lanes], before[:lanes] / 2) and np.array_equal(cells[lanes:], before[lanes:])


@pytest.mark.parametrize("number", [1, 2, 4])
def test_as_many_registers_side_by_side_as_llvm_is_told(monkeypatch, number):
    monkeypatch.setattr(subroutines, "SIDE_BY_SIDE", {16: number, 32: number})

    @subroutine(types.boolean)
    def invert(lane, address):
        store(address, lane, 1.0 / load(address, lane))
        return True

    invert_all = over_lanes("address", invert)
    kernel = njit(types.boolean(types.int64, types.int64))(lambda count, address: invert_all(count, address))
    text = "".join(kernel.inspect_llvm().values())
    loop = re.search(r"^vector\.body:.*?^  br ", text, re.MULTILINE | re.DOTALL)
    assert len(re.findall(r" fdiv <", loop[0])) == number


def test_mixed_numbers_fill_registers_with_those_of_32_bits():
    """LLVM would take half as many lanes, where one of 64 bits is stored."""
    take, keep = loader("float32"), storer("float32")

    @subroutine(types.boolean)
    def invert(lane, address):
        x = take(address, lane)
        keep(address, lane, np.float32(1) / x)
        store(address, 100 + lane, 2.0 * x)
        return True

    invert_all = over_lanes("address", invert, mixed=True)
    kernel = njit(types.boolean(types.int64, types.int64), error_model="numpy", pipeline_class=KernelCompiler)(
        lambda count, address: invert_all(count, address)
    )
    lanes = vector_bits(cpu_target.target_context) // 32
    found = re.findall(r" fdiv <(\d+) x float>", "".join(kernel.inspect_llvm().values()))
    assert found == [str(lanes)] * subroutines.MIXED_SIDE_BY_SIDE
