"""PyTorch tensors, on the CPU and on CUDA. Tensors are read as data: results carry no autograd graph."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from gpubce.arrays.buffer import BOUNDARY, Buffer, Device, Glance, first_line
from gpubce.errors import ArrayError

NAME = "PyTorch"

_STORAGE = {
    torch.bool: "bool",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    **{getattr(torch, name): name for name in ("uint16", "uint32", "uint64") if hasattr(torch, name)},
}
_SMALL = 1 << 17
"""Elements of a tensor that lies in no large page, whoever makes it."""
_DTYPE = {storage: dtype for dtype, storage in _STORAGE.items()}


PLAIN = torch.Tensor, torch.nn.Parameter
"""The classes of tensors that hold what they show."""
_CPU = torch.device("cpu")


def glance(array: Any) -> Glance | None:
    """See :func:`gpubce.arrays.registry.glance`."""
    if type(array) not in PLAIN or array.layout != torch.strided or array.is_neg():
        return None
    try:
        if array.untyped_storage().nbytes() < _needed(array):
            return None
        where = array.data_ptr()
        if array.is_cpu:
            return (array.dtype, array.shape, array.stride()), where
        if array.is_cuda:
            return (array.dtype, array.shape, array.stride(), array.get_device(), where % BOUNDARY), where
        return None
    except RuntimeError:  # A tensor inside of torch.func's transforms.
        return None


def address(array: "torch.Tensor") -> int | None:
    """Where a new tensor is. While PyTorch traces or transforms, it has no memory."""
    try:
        return (array.data_ptr() or None) if type(array) is torch.Tensor else None
    except RuntimeError:
        return None


def _needed(array: "torch.Tensor") -> int:
    """The bytes that the tensor's memory must have."""
    if array.is_contiguous():
        return int(array.nbytes and array.itemsize * array.storage_offset() + array.nbytes)
    reach = sum([stride * (length - 1) for stride, length in zip(array.stride(), array.shape, strict=True)])
    return int(array.itemsize * (array.storage_offset() + reach + 1))


def buffer(array: "torch.Tensor") -> Buffer:
    """Where the tensor is. Those that have no memory of their own are refused: a kernel would read elsewhere."""
    try:
        return _buffer(array)
    except (RuntimeError, ValueError, Warning) as error:  # Transforms, nested and not yet initialised tensors.
        raise ArrayError(f"the memory of this {type(array).__name__} cannot be read: {first_line(error)}") from None


def _buffer(array: "torch.Tensor") -> Buffer:
    tensor = array.detach()
    if tensor.layout != torch.strided:
        raise ArrayError(f"a tensor with layout {tensor.layout} was given: pass tensor.to_dense()")
    if tensor.device.type not in ("cpu", "cuda"):
        raise ArrayError(f"a tensor on {tensor.device} was given: only cpu and cuda are supported; move it with .cpu()")
    writable = not (tensor.is_neg() or tensor.is_conj())
    if not writable:  # A view that means other values than its memory holds: read from a copy, not to be written.
        tensor = tensor.resolve_neg().resolve_conj()
    size = tensor.element_size()
    device = Device(tensor.device.type, tensor.device.index or 0)
    strides = tuple(size * stride for stride in tensor.stride())
    storage = _STORAGE.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    shape = tuple(tensor.shape)
    memory = tensor.untyped_storage()  # 0.5 us
    where = tensor.data_ptr()
    # Inside of torch.func.functionalize tensors say that they have memory, at 0.
    if memory.device != tensor.device or memory.nbytes() < _needed(tensor) or (not where and tensor.numel()):
        raise ArrayError("a tensor whose memory was freed, or that never had any, was given: pass one with its values")
    return Buffer(where, storage, shape, strides, device, tensor, writable)


def _torch_device(like: Buffer) -> "torch.device":
    return torch.device("cpu") if like.device.kind == "cpu" else torch.device("cuda", like.device.index)


def empty(shape: Sequence[int], storage: str, like: Buffer) -> "torch.Tensor":
    """A new tensor on the device of ``like``."""
    dtype = _DTYPE[storage]
    if like.device.kind != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=_torch_device(like))
    # NumPy asks Linux for pages of 2 MiB and PyTorch does not: loss and gradient of 2^24 float32 take 16 and not 32 ms.
    if math.prod(shape) < _SMALL:  # 1 us and not 3.
        return torch.empty(shape, dtype=dtype, device=_CPU)
    try:
        return torch.from_numpy(np.empty(tuple(shape), f"i{dtype.itemsize}")).view(dtype)
    except ValueError as error:  # No memory can hold it.
        raise MemoryError(str(error)) from None


def from_numbers(values: Sequence[float], storage: str, like: Buffer) -> "torch.Tensor":
    """A new vector with these values on the device of ``like``."""
    device, dtype = _torch_device(like), _DTYPE[storage]
    if device.type == "cpu":
        return torch.tensor(list(values), dtype=dtype, device=_CPU)
    if len(values) == 1:
        return torch.full((1,), values[0], dtype=dtype, device=device)
    # A copy from memory that is not page-locked waits for the device.
    return torch.tensor(list(values), dtype=dtype, device=_CPU, pin_memory=True).to(device, non_blocking=True)


def stream(like: Buffer) -> int:
    """PyTorch's current stream on that device."""
    if like.device.kind == "cpu":
        return 0
    return torch.cuda.current_stream(like.device.index).cuda_stream


def on_stream(like: Buffer, handle: int) -> AbstractContextManager[Any]:
    """New tensors belong to that stream: PyTorch gives freed memory to later work of the same stream only."""
    if like.device.kind == "cpu":
        return nullcontext()
    device = torch.device("cuda", like.device.index)
    # ExternalStream(0) would be a new stream of PyTorch's pool.
    return torch.cuda.stream(torch.cuda.ExternalStream(handle, device) if handle else torch.cuda.default_stream(device))


def to_host(array: "torch.Tensor") -> np.ndarray:
    """A copy in NumPy; waits for the device."""
    return array.detach().cpu().numpy()


def take(array: "torch.Tensor", rows: np.ndarray) -> "torch.Tensor":
    """Some rows, copied."""
    return array[torch.from_numpy(rows).to(array.device)]


def result(array: "torch.Tensor", like: Buffer) -> Any:
    """The tensor as it is."""
    return array
