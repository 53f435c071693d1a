"""Whose arrays a provider computes with: how they get where they are needed, how a result comes back, and how a call is
timed there. A library is imported when its class is called; :class:`LeftOut` says why it cannot be used.
"""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

import numpy as np

from benchmarks import measure
from gpubce.backends.cpu.launch import thread_count

Arrays = dict[str, Any]
"""predictions, targets, and where the case has them weight and mask."""


class LeftOut(Exception):
    """A provider cannot take part; the message says why."""


def module(name: str, package: str) -> Any:
    """The module, or a reason to leave out who needs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LeftOut(f"{package} cannot be imported: {error}") from None


def release(device: str) -> None:
    """Give back what CuPy and PyTorch keep of a GPU's memory for themselves: the next case may need it elsewhere."""
    gc.collect()
    if device == "cpu":
        return
    if cupy := sys.modules.get("cupy"):
        cupy.get_default_memory_pool().free_all_blocks()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


class NumPy:
    """Host arrays as they are."""

    def __init__(self, device: str):
        self.device = device
        self.clock: measure.Clock = measure.on_host

    def place(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """The arguments of a call where the library computes with them."""
        return {name: self.array(array) for name, array in arrays.items()}

    def array(self, array: np.ndarray) -> Any:
        """One of them."""
        return array

    def empty_like(self, array: Any) -> Any:
        """Room for a gradient."""
        return np.empty_like(array)

    def to_host(self, result: Any) -> np.ndarray:
        """A result in NumPy."""
        return np.asarray(result)

    def wait(self, result: Any) -> None:
        """Until the result is there."""


class CuPy(NumPy):
    """Arrays on a GPU."""

    def __init__(self, device: str):
        super().__init__(device)
        self.cupy = module("cupy", "CuPy")
        self.clock = measure.by_events

    def array(self, array):
        return self.cupy.asarray(array)

    def empty_like(self, array):
        return self.cupy.empty_like(array)

    def to_host(self, result):
        return self.cupy.asnumpy(result)

    def wait(self, result):
        self.cupy.cuda.Device().synchronize()


class DeviceBytes(CuPy):
    """As many bytes on a GPU as the arrays have; those of "predictions" are the first of them."""

    def place(self, arrays):
        everything = self.cupy.zeros(sum(array.nbytes for array in arrays.values()), self.cupy.uint8)
        return {"all": everything, "predictions": everything[: arrays["predictions"].nbytes]}


class Torch(NumPy):
    """Tensors."""

    def __init__(self, device: str):
        super().__init__(device)
        self.torch = module("torch", "PyTorch")
        if device == "cuda" and not self.torch.cuda.is_available():
            raise LeftOut(f"PyTorch {self.torch.__version__} uses no GPU")
        self.torch.set_num_threads(thread_count())
        if device == "cuda":
            self.clock = measure.by_events

    def array(self, array):
        if array.dtype.name == "bfloat16":  # PyTorch does not know ml_dtypes.
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16).to(self.device)
        return self.torch.from_numpy(array).to(self.device)

    def empty_like(self, array):
        return self.torch.empty_like(array)

    def to_host(self, result):
        wide = result.detach().float() if result.dtype == self.torch.bfloat16 else result.detach()
        return wide.cpu().numpy()

    def wait(self, result):
        if self.device == "cuda":
            self.torch.cuda.synchronize()


class Jax(NumPy):
    """JAX's arrays. Its streams are its own, and CUDA events of the default stream do not see them: the host times its
    calls, and on a GPU waits for the last of them. On the CPU it takes every processor that the process may use."""

    def __init__(self, device: str):
        super().__init__(device)
        self.jax = module("jax", "JAX")
        self.jax.config.update("jax_enable_x64", True)
        try:
            self.where = self.jax.devices(device)[0]
        except RuntimeError as error:
            raise LeftOut(f"JAX {self.jax.__version__} has no {device}: {str(error).splitlines()[0]}") from None
        self.clock = self._clock

    def array(self, array):
        return self.jax.device_put(array, self.where).block_until_ready()

    def wait(self, result):
        self.jax.block_until_ready(result)

    def _clock(self, function: measure.Function, first: int, calls: int) -> float:
        last = first + calls - 1

        def call(number: int) -> None:
            result = function(number)
            if self.device == "cpu" or number == last:
                self.wait(result)

        return measure.on_host(call, first, calls)
