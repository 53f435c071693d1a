"""What the compiled CUDA kernels are made of, read from PTX and machine code with no device.

The kernels are those of docs/kernels.md. A law says what is wrong with one of them, in words, or nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import pytest

from benchmarks import machine_code
from benchmarks.machine_code import CAPABILITIES, KERNELS, Examined, MissingTool, Program
from gpubce.backends.cuda.compile import KINDS
from gpubce.backends.cuda.kernels import QUAD
from gpubce.backends.kernel_key import KernelKey
from gpubce.spec.elements import may_be_hard
from gpubce.spec.geometry import FLAT, SCALAR
from gpubce.spec.precision import INTEGERS, ITEMSIZE, PRECISIONS, TARGETS
from gpubce.spec.quantities import QUANTITIES
from gpubce.spec.recipe import OUTPUTS, ROLES, Recipe
from tests.ptx.interpreter import Kernel, PTXError

pytestmark = pytest.mark.emulated

ROOT = Path(__file__).resolve().parent.parent

MAIN = (9, 0)
"""By default every kernel is looked at for this capability, and one for each of the others: 1.5 s each."""

TWINS = {"int16 targets", "uint16 targets", "uint64 targets", "loss by label, unaligned"}
"""But for those that differ from another by the width or sign of an integer, or by what two others differ by."""

OTHERS = [capability for capability in CAPABILITIES if capability != MAIN]
FEW = [(name, MAIN) for name in KERNELS if name not in TWINS] + list(zip([*KERNELS][1::7], OTHERS, strict=False))
ALL = [(name, capability) for capability in CAPABILITIES for name in KERNELS]


def identify(value) -> str:
    return value if isinstance(value, str) else "{}.{}".format(*value)


@lru_cache(maxsize=80)
def examined(name: str, capability: tuple[int, int] = MAIN) -> Examined:
    try:
        return machine_code.examine(name, capability)
    except MissingTool as missing:
        pytest.skip(str(missing))


# The laws -------------------------------------------------------------------------------------------------------------


def ptx_is_exact_and_whole(seen: Examined) -> Iterator[str]:
    """No product that could be fused with a sum, nothing approximate or flushed, no call, no local memory."""
    try:
        Kernel(seen.ptx)
    except PTXError as refused:
        yield f"the interpreter refuses it: {refused}"
    for what, pattern in {
        "a call": r"\bcall\b",
        "a function": r"\.func\b",
        "local memory": r"\.local\b",
        "flushed subnormals": r"\.ftz\b",
        "an approximation": r"\.approx\b|\bdiv\.full\b",
    }.items():
        if found := re.search(pattern, seen.ptx):
            line = seen.ptx.count("\n", 0, found.start())
            yield f"{what}: {seen.ptx.splitlines()[line].strip()}"


def fmas(text: str) -> Counter[str]:
    return Counter(re.findall(r"\bfma\.\S+", text))


def compiler_fuses_nothing(seen: Examined) -> Iterator[str]:
    """NVVM fuses products and sums before there is any PTX: as many fmas in it as when it may not."""
    fused, written = fmas(seen.ptx), fmas(seen.unfused_ptx)
    if fused != written:
        yield f"{dict(fused)} where {dict(written)} are written"


def assembler_fuses_nothing(seen: Examined) -> Iterator[str]:
    """The same number of each instruction with and without fusing, but that an addition may be done once more: ptxas
    does one of the loss of probabilities twice for 8.6 and 8.9. The code may differ: with --fmad ptxas also turns
    a - b < 0 into a < b, which is exact."""
    plain, _ = machine_code.assemble(seen.ptx, seen.capability, fuse=False)
    if plain == seen.cubin:
        return
    with_fusing, without = seen.program.floating_point(), machine_code.disassemble(plain).floating_point()
    more, fewer = with_fusing - without, without - with_fusing
    if fewer or set(more) - {"FADD"}:
        yield f"fused: {dict(more)} in place of {dict(fewer)}"


def registers_suffice(seen: Examined) -> Iterator[str]:
    """Nothing is spilled, and nothing lies in local memory."""
    used = seen.resources
    if used.spill_stores or used.spill_loads or used.stack:
        yield f"{used.stack} bytes of stack, {used.spill_stores} spilled, {used.spill_loads} read back"
    local = [item.name for item in seen.program.instructions if item.base in ("LDL", "STL")]
    if local:
        yield f"local memory: {local}"


OWN_FLOAT64 = {
    "positives": {"w y"},
    "predictions": {"w p"},
    "squared_error": {"p - y", "(p - y)^2", "w (p - y)^2"},
    "cross_entropy": {"1 - y", "-y log p", "-(1 - y) log q", "both", "w both"},
    "positive_entropy": {"w y", "-(w y) log p"},
    "target_entropy": {"w entropy"},
    "found": {"w y"},
    "squared_loss": {"loss^2"},
    "squared_weight": {"w w"},
    "loss_by_weight": {"w loss"},
    "squared_positives": {"w y", "(w y)^2"},
    "loss_by_positives": {"w y", "(w y) loss"},
    "difference": {"difference"},
    "squared_difference": {"difference", "difference^2"},
    "difference_by_weight": {"difference", "w difference"},
    "difference_by_positives": {"difference", "w y", "(w y) difference"},
}
"""Float64 additions and products in the formula of a quantity; the others are widened from float32, or are 0 or 1.
Those that several have in common are done once. Without weights, those that begin with w are 1 x + 0."""


def float64_operations(key: KernelKey) -> tuple[int, int]:
    """How many float64 additions and products a float32 kernel needs for each element, at least and at most.

    In between are additions of 0, which change nothing but -0. NVVM leaves one of them out here and there from 10.0 on,
    where it can prove that there is no -0.
    """
    weighted = key.recipe.weight is not None or key.recipe.label_weight is not None
    own: set[str] = set().union(*(OWN_FLOAT64.get(name, set()) for name in key.recipe.sums))
    most = len(key.recipe.sums) + len(own)
    zeros = 0 if weighted else sum(what.startswith("w ") for what in own)
    return most - zeros, most


def float64_is_for_sums(seen: Examined) -> Iterator[str]:
    """A bare literal would promote a formula to float64. A float32 kernel has one addition for each sum and element,
    and what some sums multiply. Beside the hot path stand the additions of the tree, and the same operations for the
    last elements and for targets of the other kind."""
    entry, hot = seen.entry, seen.hot
    if entry.kind == "settle" or hot is None or (entry.arrays and entry.key.recipe.compute == "float64"):
        return
    # Where NVVM adds before it selects, it also adds 0 to the NaN of invalid samples.
    names = Counter(item.base for item in hot.instructions if item.kind == "FP64" and "QNAN" not in item.operands)
    everywhere = Counter(item.base for item in seen.program.instructions if item.kind == "FP64")
    if entry.kind == "combine":
        if set(everywhere) != {"DADD"}:
            yield f"not only additions: {dict(everywhere)}"
        return
    # With both ends of what is valid, and a target with 0 and 1.
    both_kinds = bool(entry.arrays) and may_be_hard(entry.key.recipe)
    compared = {"target": 2 + 2 * both_kinds, "weight": 2}
    asked = sum(times for role, times in compared.items() if entry.arrays.get(role, ("", ""))[0] == "float64")
    if names["DSETP"] != asked * seen.elements:
        yield f"{names['DSETP']} comparisons of float64 for {seen.elements} elements, not {asked} for each"
    done = names["DADD"] + names["DFMA"]
    least, most = (count * seen.elements for count in float64_operations(entry.key))
    if seen.capability < (10, 0):
        least = most
    if not least <= done <= most or set(names) - {"DADD", "DFMA", "DSETP"}:
        yield f"{dict(names)} for {seen.elements} elements and the sums {entry.key.recipe.sums}, not {most}"
    beside = everywhere - names - names
    if both_kinds:
        beside -= names
    if set(beside) - {"DADD"}:
        yield f"beside the hot path: {dict(beside)}"


def arrays_move_in_wide_pieces(seen: Examined) -> Iterator[str]:
    """Four elements of an aligned flat array are one access (two where they are more than 16 bytes; from 10.0 on an
    access may have 32); of other arrays four; of a single number one, or none if it was read before."""
    if seen.hot is None:
        yield "no way through the machine code moves every array once"
        return
    if not seen.entry.arrays:
        return
    groups = seen.elements // QUAD
    allowed = []
    for widest in (16, 32) if seen.capability >= (10, 0) else (16,):
        pieces: Counter[tuple[str, int]] = Counter()
        for role, (storage, layout) in seen.entry.arrays.items():
            size = ITEMSIZE[storage]
            if layout == SCALAR:
                continue
            if layout == FLAT and seen.entry.key.vector == QUAD:
                size = min(QUAD * size, widest)
            pieces["store" if role in OUTPUTS else "load", size] += groups * QUAD * ITEMSIZE[storage] // size
        allowed.append(pieces)
    single: Counter[tuple[str, int]] = Counter()
    for storage, layout in seen.entry.arrays.values():
        if layout == SCALAR:
            single["load", ITEMSIZE[storage]] += groups
    moved = seen.hot.moves
    if not any(pieces <= moved <= pieces + single for pieces in allowed):
        yield f"{dict(moved)} for {seen.elements} elements, not {dict(allowed[0])} and at most {dict(single)}"


def work_is_unrolled(seen: Examined) -> Iterator[str]:
    """No loop inside the hot path: over the four elements of a thread it would search them by branches."""
    if seen.hot is not None and seen.hot.nested:
        yield "a loop inside the hot loop"


LAWS = (
    ptx_is_exact_and_whole,
    compiler_fuses_nothing,
    assembler_fuses_nothing,
    registers_suffice,
    float64_is_for_sums,
    arrays_move_in_wide_pieces,
    work_is_unrolled,
)


def broken(seen: Examined) -> dict[str, list[str]]:
    """What is wrong, by law."""
    found = {law.__name__: list(law(seen)) for law in LAWS}
    return {law: complaints for law, complaints in found.items() if complaints}


def known_defects(name: str, capability: tuple[int, int]) -> set[str]:
    """Laws that a kernel is known to break. What is mended has to be struck off here."""
    defects = set()
    recipe = getattr(KERNELS[name].key, "recipe", Recipe())
    wide = getattr(KERNELS[name].key, "vector", 1) == QUAD
    if capability < (10, 0) and wide and "float16" in (recipe.prediction, recipe.target, recipe.weight):
        defects.add("arrays_move_in_wide_pieces")  # NVVM cuts a vector of four halves into two words.
    if recipe.gamma:
        defects.add("work_is_unrolled")  # The body is too large for NVVM to unroll.
    if recipe.quantised:
        defects.add("float64_is_for_sums")  # Weights become integers by way of float64.
    return defects


def assert_laws_hold(name: str, capability: tuple[int, int]) -> None:
    found = broken(examined(name, capability))
    assert set(found) == known_defects(name, capability), found


@pytest.mark.parametrize(("name", "capability"), FEW, ids=identify)
def test_the_code_is_what_we_think_it_is(name, capability):
    assert_laws_hold(name, capability)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "capability"), [pair for pair in ALL if pair not in FEW], ids=identify)
def test_the_code_is_what_we_think_it_is_everywhere(name, capability):
    assert_laws_hold(name, capability)


# The table ------------------------------------------------------------------------------------------------------------


def test_the_kernels_leave_out_no_kind_type_option_or_sum():
    keys = [entry.key for entry in KERNELS.values() if isinstance(entry.key, KernelKey)]
    recipes = [key.recipe for key in keys]
    assert {entry.kind for entry in KERNELS.values()} == set(KINDS)
    assert {recipe.target for recipe in recipes} >= set(TARGETS)
    assert {recipe.prediction for recipe in recipes} >= set(PRECISIONS)
    assert {role for recipe in recipes for role in recipe.roles} == set(ROLES)
    assert {name for recipe in recipes for name in recipe.outputs} == set(OUTPUTS)
    assert {name for recipe in recipes for name in recipe.sums} == set(QUANTITIES)
    assert {layout for key in keys for layout in key.layouts} == {"flat", "scalar", "strided"}
    for kind in ("whole", "along_axes"):
        vectors = {entry.key.vector for entry in KERNELS.values() if entry.kind == kind}
        assert vectors == {1, QUAD}, kind
    for field in fields(Recipe):
        if isinstance(field.default, bool):
            assert any(getattr(recipe, field.name) for recipe in recipes), field.name
    assert {recipe.ignore for recipe in recipes} == {None, "value", "nan"}
    assert {recipe.space for recipe in recipes} == {"logit", "probability"}
    assert set(INTEGERS) < set(TARGETS)


def test_few_kernels_are_looked_at_for_every_capability():
    assert len(set(FEW)) == len(FEW)
    assert {capability for _, capability in FEW} == set(CAPABILITIES)


def page() -> str:
    return (ROOT / "docs/kernels.md").read_text()


def test_the_page_names_every_kernel():
    for name in KERNELS:
        assert len(re.findall(rf"^\| {re.escape(name)}(?: \(\*\))? +\|", page(), re.M)) >= 3, name


@pytest.mark.exhaustive
def test_the_page_says_what_the_code_is():
    try:
        named = machine_code.versions()
    except MissingTool as missing:
        pytest.skip(str(missing))
    older = [f"{name} {version}" for name, version in named.items() if f"{name} {version}" not in page()]
    if older:
        pytest.skip(f"docs/kernels.md was made with other versions than {', '.join(older)}")
    assert machine_code.page() == page()


# The laws can be broken -----------------------------------------------------------------------------------------------


def test_the_assembler_would_fuse_a_product():
    """By the interpreter and in the machine code where NVVM leaves it alone, and by the count where it does not."""
    seen = examined("loss")
    assert not list(compiler_fuses_nothing(seen))
    parted = re.sub(
        r"fma\.rn\.f32\s+(%f\d+), (%f\d+), (%f\d+), (%f\d+);", r"mul.f32 \1, \2, \3; add.f32 \1, \1, \4;", seen.ptx
    )
    assert parted != seen.ptx
    assert "a product enters a sum" in " ".join(ptx_is_exact_and_whole(replace(seen, ptx=parted)))
    assert list(assembler_fuses_nothing(seen_with(seen, parted)))
    assert list(compiler_fuses_nothing(replace(seen, unfused_ptx=parted)))


def seen_with(seen: Examined, text: str, *options: str) -> Examined:
    """The same kernel with other PTX, or with other options of ptxas."""
    cubin, resources = machine_code.assemble(text, seen.capability, True, *options)
    return replace(seen, ptx=text, cubin=cubin, resources=resources, program=machine_code.disassemble(cubin))


def test_spilled_registers_are_noticed():
    seen = examined("evaluator")
    assert not list(registers_suffice(seen))
    complaints = list(registers_suffice(seen_with(seen, seen.ptx, "--maxrregcount=32")))
    assert len(complaints) == 2, complaints


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("add.f32", "add.ftz.f32"),
        ("bar.sync", "call dummy; bar.sync"),
        (".reg .pred", ".local .b8 room[8]; .reg .pred"),
        ("rcp.rn.f32", "rcp.approx.f32"),
    ],
)
def test_inexact_ptx_is_noticed(before, after):
    seen = examined("loss and gradient")
    text = re.sub(re.escape(before).replace(r"\ ", r"\s+"), after, seen.ptx)
    assert text != seen.ptx
    assert list(ptx_is_exact_and_whole(replace(seen, ptx=text)))


def test_narrow_loads_are_noticed():
    """The kernel for arrays that are not aligned, taken for the other one."""
    seen = examined("loss, unaligned")
    assert not list(arrays_move_in_wide_pieces(seen))
    assert list(arrays_move_in_wide_pieces(replace(seen, entry=KERNELS["loss"])))


def test_float64_is_noticed():
    """A kernel with more float64 than its sums need, and one with float64 beside its hot path."""
    seen = examined("evaluator")
    assert list(float64_is_for_sums(replace(seen, entry=KERNELS["state"])))
    seen = examined("loss")
    assert not list(float64_is_for_sums(seen))
    program = Program("        /*0000*/                   DMUL R2, R2, R4 ;\n")
    assert "beside" in " ".join(float64_is_for_sums(replace(seen, program=program)))


# The hot path ---------------------------------------------------------------------------------------------------------

TWO_SIDES = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   ISETP.GT.AND P0, PT, R0, c[0x0][0x160], PT ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
        /*0030*/                   LDG.E.128 R4, [R2.64] ;
        /*0040*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0050*/                   LDG.E R4, [R2.64] ;
        /*0060*/                   LDG.E R5, [R2.64+0x4] ;
        /*0070*/                   LDG.E R6, [R2.64+0x8] ;
        /*0080*/                   LDG.E R7, [R2.64+0xc] ;
.L_x_2:
        /*0090*/                   FSETP.GT.AND P1, PT, R4, RZ, PT ;
        /*00a0*/               @P1 BRA `(.L_x_3) ;
        /*00b0*/                   CALL.REL.NOINC `($slow) ;
        /*00c0*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*00d0*/                   MUFU.RCP R4, R4 ;
        /*00e0*/                   FFMA R4, R4, R4, R4 ;
.L_x_4:
        /*00f0*/              @!P0 STG.E.128 [R8.64], R4 ;
        /*0100*/              @!P0 BRA `(.L_x_5) ;
        /*0110*/                   ISETP.GT.AND P2, PT, R0, 0x1, PT ;
        /*0120*/               @P2 STG.E [R8.64], R4 ;
        /*0130*/                   IADD3 R9, P3, R8, 0x4, RZ ;
.L_x_5:
        /*0140*/                   IADD3 R0, R0, 0x1, RZ ;
        /*0150*/                   ISETP.LT.AND P3, PT, R0, 0x8, PT ;
        /*0160*/               @P3 BRA `(.L_x_0) ;
        /*0170*/                   EXIT ;
$slow:
        /*0180*/                   FMUL R4, R4, R4 ;
        /*0190*/                   RET.REL.NODEC R20 `(kernel) ;
"""


def names(program: Program, loads: int, stores: int) -> list[str]:
    path = program.hot_path(loads, stores)
    return [] if path is None else [item.name for item in path.instructions]


def test_the_hot_path_takes_the_vector_loads_and_the_short_side_of_a_division():
    program = Program(TWO_SIDES)
    path = program.hot_path(16, 16)
    assert path.loop and not path.nested
    assert path.moves == {("load", 16): 1, ("store", 16): 1}
    found = names(program, 16, 16)
    assert found == [
        *("ISETP.GT.AND", "BRA", "LDG.E.128", "BRA"),
        *("FSETP.GT.AND", "BRA", "MUFU.RCP", "FFMA"),
        *("STG.E.128", "BRA", "IADD3", "ISETP.LT.AND", "BRA"),
    ]


def test_the_hot_path_believes_the_predicates():
    """Where the vector was not loaded it is not stored either."""
    program = Program(TWO_SIDES)
    assert program.hot_path(16, 4).moves == {("load", 4): 4, ("store", 4): 1}
    assert program.hot_path(16, 20) is None
    assert program.hot_path(12, 16) is None


def test_a_loop_inside_counts_for_each_element_of_a_thread():
    text = TWO_SIDES.replace(
        "        /*00e0*/                   FFMA R4, R4, R4, R4 ;\n",
        ".L_x_9:\n        /*00e0*/                   FFMA R4, R4, R4, R4 ;\n"
        "        /*00e8*/               @P4 BRA `(.L_x_9) ;\n",
    )
    path = Program(text).hot_path(16, 16)
    assert path.nested
    assert sum(item.name == "FFMA" for item in path.instructions) == QUAD


def test_a_program_without_a_loop_is_its_own_hot_path():
    text = re.sub(r".*@P3 BRA.*\n", "", TWO_SIDES)
    path = Program(text).hot_path(16, 16)
    assert not path.loop
    assert path.instructions[0].name == "S2R"
    assert path.instructions[-1].name == "EXIT"


def test_an_unknown_instruction_is_counted_as_nothing_else():
    item = replace(Program(TWO_SIDES).instructions[0], name="FROB.X")
    with pytest.raises(LookupError, match="FROB"):
        _ = item.kind
