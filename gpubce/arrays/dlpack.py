"""Arrays of any other library: through the CUDA array interface on a GPU, through DLPack on a CPU."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from types import ModuleType
from typing import Any

import numpy as np

from gpubce.arrays import numpy as host
from gpubce.arrays.buffer import Buffer, Device, first_line
from gpubce.arrays.interface import from_cuda_array_interface
from gpubce.errors import ArrayError

NAME = "DLPack"


def buffer(array: Any) -> Buffer:
    """Where the array is."""
    if isinstance(array, np.ndarray):  # A result on its way: DLPack has no bfloat16 in NumPy.
        return host.buffer(array)
    kind, index = _exporter(array)
    on_cpu = kind in (None, 1, 3)
    if kind is None and hasattr(array, "__cuda_array_interface__"):
        return from_cuda_array_interface(array, Device("cuda", index))
    if not on_cpu:
        return _on_gpu(array, Device("cuda", index))
    try:
        seen = np.from_dlpack(array)
    except Exception as error:  # The exporter may raise anything.
        raise _unreadable(array, error) from None
    found = host.buffer(seen)
    return found._replace(owner=array, holder=seen)


def _on_gpu(array: Any, device: Device) -> Buffer:
    """By DLPack, which orders CuPy's stream behind the one on which the array is made: the interface of JAX's arrays
    does not name theirs. But it says what may be written, and knows types that CuPy may not."""
    described = None
    if hasattr(array, "__cuda_array_interface__"):
        with suppress(ArrayError):
            described = from_cuda_array_interface(array, device)
    try:
        found = _cupy().buffer(_cupy().cupy.from_dlpack(array))
    except Exception as error:  # The exporter may raise anything.
        if described is None:
            raise error if isinstance(error, ArrayError) else _unreadable(array, error) from None
        return described
    return found._replace(owner=array, holder=found.owner, writable=described is None or described.writable)


def _exporter(array: Any) -> tuple[int | None, int]:
    """DLPack's number for the kind of device, None where the array does not say it, and the device's index."""
    if not hasattr(array, "__dlpack_device__"):
        return None, 0
    try:
        kind, index = array.__dlpack_device__()
        return int(kind), int(index)
    except Exception as error:
        raise _unreadable(array, error) from None


def _unreadable(array: Any, error: Exception) -> ArrayError:
    return ArrayError(f"the {type(array).__name__} cannot be read through DLPack: {first_line(error)}")


def _cupy() -> ModuleType:
    """Device memory for libraries that lend theirs is CuPy's."""
    try:
        from gpubce.arrays import cupy
    except ImportError:
        raise ArrayError(
            "results for this device array need CuPy: pip install 'gpubce[cuda12]' or 'gpubce[cuda13]'"
        ) from None
    return cupy


def _maker(like: Buffer) -> ModuleType:
    return host if like.device.kind == "cpu" else _cupy()


def empty(shape: Sequence[int], storage: str, like: Buffer) -> Any:
    """A new NumPy or CuPy array, which :func:`result` hands over."""
    return _maker(like).empty(shape, storage, like)


def from_numbers(values: Sequence[float], storage: str, like: Buffer) -> Any:
    """A new vector with these values, in NumPy or CuPy."""
    return _maker(like).from_numbers(values, storage, like)


def stream(like: Buffer) -> int:
    """CuPy's current stream; the exporting library's own one is not known."""
    return _maker(like).stream(like)


def on_stream(like: Buffer, handle: int) -> AbstractContextManager[Any]:
    """New arrays belong to that stream."""
    return _maker(like).on_stream(like, handle)


def to_host(array: Any) -> np.ndarray:
    """A copy in NumPy; waits for the device."""
    return array if isinstance(array, np.ndarray) else _cupy().to_host(array)


def take(array: Any, rows: np.ndarray) -> Any:
    """Some rows, copied, by the array's own library."""
    return array[rows]


def result(array: Any, like: Buffer) -> Any:
    """The array in the library of ``like`` if that has ``from_dlpack``, else as it is."""
    namespace = getattr(like.owner, "__array_namespace__", None)
    if namespace is None or not hasattr(namespace(), "from_dlpack"):
        return array
    try:
        taken = namespace().from_dlpack(array)
    except Exception as error:  # Of another library: NumPy's bfloat16 cannot be exported.
        raise ArrayError(
            f"the result, {array.dtype} in {type(array).__module__}, cannot be handed over as a "
            f"{type(like.owner).__name__}: {first_line(error)}; choose another dtype"
        ) from None
    if str(taken.dtype).rpartition(".")[2] != str(
        array.dtype
    ):  # JAX without jax_enable_x64 narrows float64 without a word.
        raise ArrayError(
            f"the result is {array.dtype}, but {type(like.owner).__name__} made it {taken.dtype}: choose another dtype"
        )
    return taken
