"""Functions that kernels call, and how several of them make one.

They compile for the CPU and, but for :func:`over_lanes`, for CUDA, with no device present. That holds for Numba
intrinsics, for functions made with :func:`subroutine`, and for ``inline="always"``.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import cache, partial, wraps
from uuid import uuid4

from llvmlite import ir
from numba import extending, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

from gpubce.spec.processors import is_cuda, vector_bits, vector_registers


def intrinsic(definition):
    """Numba's, with one way to emit it for all targets. Before Numba 0.67 calls found the last one that any target was
    given: a process that had compiled for CUDA could compile nothing more for the CPU."""
    for_types = cache(partial(definition, None))  # No definition asks for the context of a target.

    @wraps(definition)
    def defined_once(typingctx, *arguments):
        return for_types(*arguments)

    return extending.intrinsic(defined_once)


def subroutine(result, inline=True):
    """A decorator: the function, compiled once for each target, inlined by LLVM wherever kernels call it.

    ``result`` is the Numba type it returns. Functions made with ``inline="always"`` are copied into their callers
    before they are compiled, again at each level: for kernels with many options that took 5 s of Python. A plain
    jitted callee would ask for a device on CUDA. This way asks for nothing: the function is compiled as a part of the
    intrinsic that calls it.

    Without ``inline`` a kernel has one copy, which it calls wherever it needs it. Its status is not looked at, because
    LLVM would not see that it never raises: a kernel that may raise is not kept on disk. Its name is like no other:
    Numba's differ within a process alone, and where kernels of several processes are loaded from disk, all would call
    the first function of a name.
    """

    def decorate(function):
        if not inline:
            function.__qualname__ += f"_{uuid4().hex}"

        def definition(typingctx, *argument_types):
            arguments = tuple(types.unliteral(item) for item in argument_types)

            def codegen(context, builder, signature, values):
                # Numba adds the names of arguments where it works a call out, and compiles anew where they differ.
                signature = signature.replace(pysig=None)
                compiled = _compiled(context, builder, function, signature, inline)
                if inline:
                    return context.call_internal(builder, compiled.fndesc, signature, values)
                return context.call_internal_no_propagate(builder, compiled.fndesc, signature, values)[1]

            return result(*arguments), codegen

        called = _named(definition, function.__name__, inspect.signature(function).parameters, function.__doc__)
        called.py_func = function
        return called

    return decorate


@cache
def in_turn(arguments: str, *parts):
    """An intrinsic with these arguments, named as in a call: it calls each of some others with them, one after the
    other. Without any it does nothing.

    A chain of subroutines, each of which calls the one before, is the same to LLVM; but Numba takes 10 to 60 ms for a
    link, and a kernel of nine sums took 4.1 s to compile that takes 2.7.
    """
    return _calling(
        "in_turn", arguments, parts, lambda kinds: types.void, lambda context, *what: context.get_dummy_value()
    )


@cache
def tuple_of(arguments: str, *parts):
    """An intrinsic with these arguments: the tuple of what each of some others gives for them."""
    return _calling(
        "tuple_of", arguments, parts, types.BaseTuple.from_types, lambda context, *what: context.make_tuple(*what)
    )


def _calling(name: str, arguments: str, parts: tuple, result_of: Callable, put_together: Callable):
    """The intrinsic that calls them. A ``partial`` of one is called with its integers first."""
    first = [part.args if isinstance(part, partial) else () for part in parts]
    alone = [part.func if isinstance(part, partial) else part for part in parts]

    def definition(typingctx, *given):
        given = tuple(map(types.unliteral, given))
        kinds = [(*[types.int64] * len(numbers), *given) for numbers in first]
        called = [part._defn(typingctx, *own) for part, own in zip(alone, kinds, strict=True)]
        if None in called:  # A part does not take these types: Numba says so, and where.
            return None

        def codegen(context, builder, signature, values):
            results = [
                _emitted(context, builder, one, own, (*map(ir.IntType(64), numbers), *values))
                for one, own, numbers in zip(called, kinds, first, strict=True)
            ]
            return put_together(context, builder, signature.return_type, results)

        return result_of([own.return_type for own, _ in called])(*given), codegen

    return _named(definition, name, arguments.split())


def _emitted(context, builder, called, kinds, values):
    """The call of an intrinsic, of which Numba has worked out (its signature, what emits it)."""
    own, emit = called
    return emit(context, builder, own, tuple(map(partial(context.cast, builder), values, kinds, own.args)))


@cache
def of_elements(part, kind: types.Type, *places: int):
    """An intrinsic (elements): it calls another with the elements of a tuple at these places, as this ``kind`` of
    number."""

    def definition(typingctx, elements):
        called = part._defn(typingctx, *(kind,) * len(places))
        if called is None:
            return None

        def codegen(context, builder, signature, values):
            own = [builder.extract_value(values[0], place) for place in places]
            return _emitted(context, builder, called, [elements[place] for place in places], own)

        return called[0].return_type(elements), codegen

    return _named(definition, "of_elements", ["elements"])


@intrinsic
def chosen(typingctx, elements, place):
    """Element ``place`` of a tuple of numbers. Numba's own way, ``elements[place]``, raises where there is none, and
    would keep kernels from the disk."""

    def codegen(context, builder, signature, values):
        return _chosen(builder, signature.args[0], *values)

    return elements.dtype(elements, types.int64), codegen


@intrinsic
def chosen_of_each(typingctx, tuples, place):
    """Element ``place`` of each of several tuples of numbers."""

    def codegen(context, builder, signature, values):
        tuples, place = values
        elements = [
            _chosen(builder, kind, builder.extract_value(tuples, number), place)
            for number, kind in enumerate(signature.args[0])
        ]
        return context.make_tuple(builder, signature.return_type, elements)

    return types.BaseTuple.from_types([kind.dtype for kind in tuples])(tuples, types.int64), codegen


def _chosen(builder, kind, elements, place):
    result = builder.extract_value(elements, 0)
    for number in range(1, kind.count):
        result = builder.select(_is(builder, place, number), builder.extract_value(elements, number), result)
    return result


def _is(builder, place, number):
    return builder.icmp_signed("==", place, place.type(number))


@intrinsic
def replaced(typingctx, elements, place, value):
    """The tuple of numbers with ``value`` as element ``place``."""

    def codegen(context, builder, signature, values):
        result, place, value = values
        for number in range(signature.args[0].count):
            element = builder.select(_is(builder, place, number), value, builder.extract_value(result, number))
            result = builder.insert_value(result, element, number)
        return result

    return elements(elements, types.int64, elements.dtype), codegen


def over_lanes(arguments: str, body, mixed: bool = False):
    """An intrinsic (count, *arguments), for a CPU: whether ``body(lane, *arguments)`` is True for each lane below the
    count. It is called for all of them.

    LLVM makes a loop over registers of it, and :data:`SIDE_BY_SIDE` says over how many at once. ``mixed`` says that
    some of its numbers have 64 bits and most have 32: LLVM would take as many lanes as a register holds of the former.
    """

    def definition(typingctx, count, *given):
        kinds = (types.int64, *(types.unliteral(kind) for kind in given))
        called = body._defn(typingctx, *kinds)
        if called is None:
            return None

        def codegen(context, builder, signature, values):
            count, *rest = values
            boolean, before = ir.IntType(1), builder.block
            each, end = builder.append_basic_block("lane"), builder.append_basic_block("end")
            builder.cbranch(builder.icmp_signed("<", count.type(0), count), each, end)
            builder.position_at_end(each)
            lane, held = builder.phi(count.type), builder.phi(boolean)
            holds = builder.and_(held, _emitted(context, builder, called, kinds, (lane, *rest)))
            following = builder.add(lane, count.type(1), flags=["nsw"])
            latch = builder.block
            _side_by_side(context, builder.cbranch(builder.icmp_signed("<", following, count), each, end), mixed)
            builder.position_at_end(end)
            all_held = builder.phi(boolean)
            for value, first, then in (
                (lane, count.type(0), following),
                (held, boolean(1), holds),
                (all_held, boolean(1), holds),
            ):
                value.add_incoming(first, before)
                value.add_incoming(then, latch)
            return all_held

        return types.boolean(*kinds), codegen

    return _named(definition, "over_lanes", ("count", *arguments.split()))


SIDE_BY_SIDE = {16: 2, 32: 4}
"""How many vector registers a loop over lanes works on at once, where the CPU has so many: docs/design.md has what that
saves. Four of 16 took as long as two, but gradients 15% longer. Loops that add took up to 15% longer where they were
told."""


MIXED_SIDE_BY_SIDE = 2
"""The same where a lane's numbers are mixed, and some take two registers. Four of 32 took 2 to 12% longer."""


def _side_by_side(context, latch, mixed: bool) -> None:
    """Tell LLVM how many registers the loop that this branch closes works on at once; and how many lanes they have,
    where it would think of another number."""
    told = {"llvm.loop.interleave.count": MIXED_SIDE_BY_SIDE if mixed else SIDE_BY_SIDE[vector_registers(context)]}
    if mixed:
        told["llvm.loop.vectorize.width"] = vector_bits(context) // 32
    module = latch.parent.module
    numbers = [module.add_metadata([name, ir.IntType(32)(number)]) for name, number in told.items()]
    # LLVM knows a loop by a node that begins with itself. The text is there because llvmlite keeps equal nodes once.
    loop = module.add_metadata([f"loop {len(module.metadata)}", *numbers])
    loop.operands = (loop, *numbers)
    latch.set_metadata("llvm.loop", loop)


def _named(definition, name: str, arguments: Iterable[str], doc: str | None = None):
    """The intrinsic of a definition that takes any number of arguments: with a name, and with one for each of them."""
    own = [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in ("typingctx", *arguments)]
    definition.__signature__ = inspect.Signature(own)
    definition.__name__ = definition.__qualname__ = name
    definition.__doc__ = doc
    return intrinsic(definition)


_NOTHING_TO_DO = {
    "inline_closure_likes",
    "make_function_op_code_to_jit_function",
    "with_lifting",
    "find_literally",
    "literal_unroll",
    "LiteralPropagation",
    "inline_overloads",
    "nopython_rewrites",
    "dump_parfor_diagnostics",
}


class _FewPasses:
    """Beside one of Numba's compilers: without the passes that are for closures, literals, whole arrays and parallel
    loops. Kernels have none of these: a pass would find nothing, and the function was analysed anew behind each. That
    took 7% of the time to compile for a CPU, and 13% for CUDA."""

    def define_pipelines(self):
        """Numba's passes, but for those."""
        (all_passes,) = super().define_pipelines()
        passes = type(all_passes)(all_passes.pipeline_name)
        for each, what in all_passes.passes:
            if each.name() not in _NOTHING_TO_DO:
                passes.add_pass(each, what)
        passes.finalize()
        return [passes]


class KernelCompiler(_FewPasses, Compiler):
    """The compiler for a CPU."""

    def define_pipelines(self):
        """Numba's passes, but for those. A kernel gets its library, and no second entry, for C code that would call it:
        that took 5% of the time to compile."""
        if self.state.library is None:
            self.state.library = _WholeRegisters(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
            self.state.library.enable_object_caching()
            self.state.flags.no_cfunc_wrapper = True
        return super().define_pipelines()


@cache
def _cuda_compiler():
    """The compiler of subroutines for CUDA; kernels are compiled by cuda.jit, with all passes."""
    from numba.cuda.compiler import CUDACompiler

    return type("SubroutineCompiler", (_FewPasses, CUDACompiler), {})


class _WholeRegisters(JITCodeLibrary):
    """Machine code that takes all 512 bits of AVX-512's registers. For Intel's processors LLVM prefers 256 where a
    function does not ask: on Emerald Rapids that took 1.2 to 1.5 times as long where memory is not what takes it."""

    def add_ir_module(self, module):
        """Numba's, after its functions were marked."""
        for function in module.functions:
            if function.blocks:
                # llvmlite writes what is in this set, but its own add() refuses what it does not know.
                set.add(function.attributes, '"prefer-vector-width"="512"')
        super().add_ir_module(module)


class _Inlined(_WholeRegisters):
    """What is inlined wherever it is called. As a module it is optimised, and made machine code of, with its callers
    alone: Numba does both for each function by itself too, and ten kernels took 11 s to compile that take 8."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True


def _compiled(context, builder, function, signature, inline):
    """The function, compiled and linked into what calls it."""
    # What Numba's compile_subroutine does, but for the compiler and its library.
    flags = _flags(context, inline)
    known = context.cached_internal_func
    key = (function.__code__, inline, signature, *(cell.cell_contents for cell in function.__closure__ or ()))
    if key not in known:
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        if is_cuda(context):
            compiler, library = _cuda_compiler(), None
        else:
            # What is not inlined (the movers of tiles) was 3% slower where it was not optimised by itself first.
            compiler = KernelCompiler
            library = (_Inlined if inline else _WholeRegisters)(context.codegen(), function.__name__)
        pipeline = compiler(
            context.typing_context, context, library, signature.args, signature.return_type, flags, locals={}
        )
        known[key] = pipeline.compile_extra(function)
    context.active_code_library.add_linking_library(known[key].library)
    return known[key]


def _flags(context, inline):
    """The flags of the kernel that is being compiled, with division by IEEE 754, and the call inlined. A subroutine is
    the same for every compute capability, and Numba compares flags at each addition: so these have none."""
    if is_cuda(context):
        from numba.cuda.core.targetconfig import ConfigStack
    else:
        from numba.core.targetconfig import ConfigStack
    flags = ConfigStack.top_or_none().copy()
    flags.error_model = "numpy"
    flags.forceinline = inline
    if is_cuda(context):
        flags.discard("compute_capability")
    return flags
