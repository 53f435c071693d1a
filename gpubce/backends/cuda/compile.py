"""From a kernel key to machine code for a GPU, or to PTX where there is none."""

import contextlib
import logging
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

from numba import cuda, types

from gpubce.backends.cuda import kernels
from gpubce.backends.devices import simulated
from gpubce.backends.kernel_cache import keep_on_disk, named
from gpubce.backends.signatures import INDEX as _I
from gpubce.backends.signatures import SETTLEMENT, element_arguments

logger = logging.getLogger("gpubce")

KINDS = ("whole", "along_axes", "combine", "settle")


def signature(kind: str, key):
    """The types of a kernel's arguments."""
    if kind == "whole":
        return types.void(_I, *element_arguments(key), _I, _I, _I, _I)
    if kind == "along_axes":
        return types.void(_I, _I, *element_arguments(key), _I, _I, _I, _I)
    if kind == "combine":
        return types.void(_I, _I, _I, _I, _I)
    return types.void(*SETTLEMENT)


def _function(kind: str, key):
    return named(getattr(kernels, kind)(key), kind, key)


def _kept(kind: str, key):
    """The kernel, not compiled yet, with its place on disk."""
    import numba_cuda
    from numba.cuda.dispatcher import CUDACache

    dispatcher = cuda.jit(_function(kind, key))
    keep_on_disk(dispatcher, CUDACache, numba_cuda.__version__)
    return dispatcher


@cache
def kernel(kind: str, key, device: int):
    """The kernel ``kind`` (a function of :mod:`gpubce.backends.cuda.kernels`) for the current device, whose number
    is ``device``. fastmath stays off: it flushes subnormals and approximates division."""
    if simulated():
        return cuda.jit(_function(kind, key))
    dispatcher = _kept(kind, key)
    compiled = dispatcher.compile(signature(kind, key).args)
    if dispatcher.stats.cache_hits:
        try:
            compiled.bind()
        except Exception as error:  # It may have been compiled elsewhere: what the driver refuses is compiled here.
            logger.info("a kernel on disk is not used: %s: %s", type(error).__name__, error)
            dispatcher = cuda.jit(_function(kind, key))
            dispatcher.compile(signature(kind, key).args)
    return dispatcher


def keep_ahead(kind: str, key, compute_capability: tuple[int, int]) -> None:
    """Compile a kernel for GPUs that are not here, and put it where :func:`kernel` looks on a machine that has one.

    Numba asks the current device for its compute capability, and loads what it has compiled before it saves it: here
    it is told the one, and assembles instead of the other.
    """
    with _in_place_of_a_device(compute_capability):
        _kept(kind, key).compile(signature(kind, key).args)


def known_capabilities() -> list[tuple[int, int]]:
    """The compute capabilities that this CUDA compiles for."""
    from numba.cuda.cudadrv import nvrtc

    toolkit: Any = nvrtc  # Without numba-cuda there is another module of this name.
    return sorted(toolkit.get_supported_ccs())


@contextlib.contextmanager
def _in_place_of_a_device(compute_capability: tuple[int, int]) -> Iterator[None]:
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices

    def assemble(kernel) -> None:
        kernel.library.get_cubin()
        kernel.library._llvm_strs = []  # 225 of the 270 KB of a file, and nobody needs it.

    device = SimpleNamespace(compute_capability=compute_capability)
    replaced: list[tuple[Any, str, Any]] = [
        (dispatcher, "get_current_device", lambda: device),
        (devices, "get_context", lambda number=None: SimpleNamespace(device=device)),
        (dispatcher._Kernel, "bind", assemble),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)


def ptx(kind: str, key, compute_capability: tuple[int, int]) -> str:
    """The kernel as PTX, compiled with no device present."""
    text, _ = cuda.compile(
        _function(kind, key),
        signature(kind, key),
        cc=compute_capability,
        device=False,
        abi="numba",
        output="ptx",
    )
    return text
