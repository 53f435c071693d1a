"""From a kernel key to machine code for this CPU."""

import ctypes
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock

from gpubce.backends.cpu import kernels, require_memory
from gpubce.backends.interruptions import in_one_piece
from gpubce.backends.kernel_cache import keep_on_disk, named
from gpubce.backends.kernel_key import KernelKey, SettleKey
from gpubce.backends.signatures import INDEX as _I
from gpubce.backends.signatures import SETTLEMENT, element_arguments
from gpubce.spec.plan import Plan
from gpubce.spec.subroutines import KernelCompiler

_known: dict[tuple[Callable, Any], Any] = {}
"""Every kernel of this process."""


def known() -> list[Any]:
    """Every kernel of this process, compiled or loaded."""
    return list(_known.values())


def _once(compile_for: Callable) -> Callable:
    """Like functools.cache, but threads that need the same kernel at once compile it once: eight of them took 8 times
    as long where kernels are not kept on disk."""

    @wraps(compile_for)
    def kernel(key):
        found = _known.get((compile_for, key))
        return in_one_piece(partial(compiled, key)) if found is None else found

    def compiled(key):
        with global_compiler_lock:
            found = _known.get((compile_for, key))
            if found is None:
                found = _known[compile_for, key] = compile_for(key)
            return found

    return kernel


class _LoadedAsItIs(FunctionCache):
    """Loads a kernel without what Numba imports and registers before it compiles or loads anything. The kernels need
    none of it: their machine code calls C, the interpreter, and nothing of Numba's memory management. Imports and the
    first call of a second process took 0.26 s less."""

    def load_overload(self, sig, target_context):
        return self._load_overload(sig, target_context)

    def save_overload(self, sig, data):
        """A kernel that does call it would end the process that loads it: one that can raise an exception does."""
        _, _, (code, _) = data.library.serialize_using_object_code()  # Its assembly takes 5% of the time to compile it.
        if needs_numba(code):
            raise OSError(f"{self._name} calls Numba's memory management")
        super().save_overload(sig, data)


def needs_numba(code: bytes) -> bool:
    """Whether machine code calls Numba's memory management."""
    return b"NRT_" in code


def _compiled(function, kind: str, key: object, signature: tuple):
    """Compiled without the GIL, so that threads run it side by side. Division follows IEEE 754: the check for zero
    that Python's model asks for stops vectorisation (6.5 instead of 0.94 ns for loss and gradient)."""
    # Measured: Numba imports and compiles 110 MB for its first kernel, 144 MB of addresses; then at most 28 MB for one
    # of few sums. Others took up to 5 MB for each: 14 sums of few labels between 80 and 100.
    sums = len(key.recipe.sums) if isinstance(key, KernelKey) else 0
    require_memory((32 if _known else 160) + 5 * sums, "compiling a kernel")
    dispatcher = njit(nogil=True, error_model="numpy", pipeline_class=KernelCompiler)(named(function, kind, key))
    keep_on_disk(dispatcher, _LoadedAsItIs)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


@_once
def whole(key: KernelKey):
    """kernels.whole for this key."""
    return _compiled(kernels.whole(key), "whole", key, (_I, _I, _I, _I, *element_arguments(key), _I, _I, _I, _I, _I))


@_once
def along_axes(key: KernelKey):
    """kernels.along_axes for this key."""
    return _compiled(
        kernels.along_axes(key), "axes", key, (_I, _I, _I, _I, _I, *element_arguments(key), _I, _I, _I, _I, _I, _I)
    )


@_once
def combine(plan: Plan):
    """kernels.combine for this plan."""
    return _compiled(kernels.combine(plan), "combine", plan, (_I,) * 8)


@_once
def settle(key: SettleKey):
    """kernels.settle for this key."""
    return _compiled(kernels.settle(key), "settle", key, SETTLEMENT)


def scratch(cells: int) -> tuple[np.ndarray, int]:
    """Private memory of one thread: its owner, and the address, where a cache line begins."""
    memory = np.empty(cells + 8, np.float64)
    # memory.ctypes.data takes 0.7 us longer.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))  # type: ignore[arg-type]
    return memory, address + -address % 64
