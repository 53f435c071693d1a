"""From a kernel key to machine code for a GPU, or to PTX where there is none."""

from functools import cache

from numba import cuda, types

from gpubce.backends.cuda import kernels
from gpubce.backends.devices import simulated
from gpubce.backends.kernel_cache import keep_on_disk, named
from gpubce.backends.signatures import INDEX as _I
from gpubce.backends.signatures import SETTLEMENT, element_arguments

KINDS = ("whole", "along_axes", "combine", "settle")


def _signature(kind: str, key):
    if kind == "whole":
        return types.void(_I, *element_arguments(key), _I, _I, _I, _I)
    if kind == "along_axes":
        return types.void(_I, _I, *element_arguments(key), _I, _I, _I, _I)
    if kind == "combine":
        return types.void(_I, _I, _I, _I, _I)
    return types.void(*SETTLEMENT)


def _function(kind: str, key):
    return named(getattr(kernels, kind)(key), kind, key)


@cache
def kernel(kind: str, key, device: int):
    """The kernel ``kind`` (a function of :mod:`gpubce.backends.cuda.kernels`) for the current device, whose number
    is ``device``. fastmath stays off: it flushes subnormals and approximates division."""
    if simulated():
        return cuda.jit(_function(kind, key))
    from numba.cuda.dispatcher import CUDACache

    dispatcher = cuda.jit(_function(kind, key))
    keep_on_disk(dispatcher, CUDACache)
    dispatcher.compile(_signature(kind, key).args)
    return dispatcher


def ptx(kind: str, key, compute_capability: tuple[int, int]) -> str:
    """The kernel as PTX, compiled with no device present."""
    text, _ = cuda.compile(
        _function(kind, key),
        _signature(kind, key),
        cc=compute_capability,
        device=False,
        abi="numba",
        output="ptx",
    )
    return text
