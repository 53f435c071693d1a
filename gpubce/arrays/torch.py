"""PyTorch tensors, on the CPU and on CUDA. Tensors are read as data: results carry no autograd graph."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from gpubce.arrays.buffer import Buffer, Device
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
_DTYPE = {storage: dtype for dtype, storage in _STORAGE.items()}


def buffer(array: "torch.Tensor") -> Buffer:
    """Where the tensor is."""
    tensor = array.detach()
    if tensor.layout != torch.strided:
        raise ArrayError(f"a tensor with layout {tensor.layout} was given: pass tensor.to_dense()")
    if tensor.device.type not in ("cpu", "cuda"):
        raise ArrayError(f"a tensor on {tensor.device} was given: only cpu and cuda are supported; move it with .cpu()")
    if tensor.is_neg() or tensor.is_conj():
        tensor = tensor.resolve_neg().resolve_conj()
    size = tensor.element_size()
    device = Device(tensor.device.type, tensor.device.index or 0)
    strides = tuple(size * stride for stride in tensor.stride())
    storage = _STORAGE.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return Buffer(tensor.data_ptr(), storage, tuple(tensor.shape), strides, device, tensor)


def _torch_device(like: Buffer) -> "torch.device":
    return torch.device("cpu") if like.device.kind == "cpu" else torch.device("cuda", like.device.index)


def empty(shape: Sequence[int], storage: str, like: Buffer) -> "torch.Tensor":
    """A new tensor on the device of ``like``."""
    return torch.empty(tuple(shape), dtype=_DTYPE[storage], device=_torch_device(like))


def from_numbers(values: Sequence[float], storage: str, like: Buffer) -> "torch.Tensor":
    """A new vector with these values on the device of ``like``."""
    return torch.tensor(list(values), dtype=_DTYPE[storage], device=_torch_device(like))


def stream(like: Buffer) -> int:
    """PyTorch's current stream on that device."""
    if like.device.kind == "cpu":
        return 0
    return torch.cuda.current_stream(like.device.index).cuda_stream


def on_stream(like: Buffer, handle: int) -> AbstractContextManager[Any]:
    """New tensors belong to that stream: PyTorch gives freed memory to later work of the same stream only."""
    if like.device.kind == "cpu":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.ExternalStream(handle, torch.device("cuda", like.device.index)))


def to_host(array: "torch.Tensor") -> np.ndarray:
    """A copy in NumPy; waits for the device."""
    return array.detach().cpu().numpy()


def result(array: "torch.Tensor", like: Buffer) -> Any:
    """The tensor as it is."""
    return array
