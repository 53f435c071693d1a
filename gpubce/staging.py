"""Bring batches from files to a GPU while it computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numba import cuda

from gpubce.backends.cuda.launch import current_device
from gpubce.backends.devices import simulated

SLOTS = 3
"""Batches on the device at once: one that is computed, one that waits, one that arrives."""

Arrays = dict[str, np.ndarray]
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Staged(Generic[Batch]):
    """A batch, and its arrays on the device: Numba's, valid until the batch after the next one is asked for."""

    batch: Batch
    there: dict[str, Any]


class _Slot:
    """Memory for the arrays of one batch: page-locked on the host, from which a copy does not wait, and on the
    device."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.held: dict[str, tuple[np.ndarray, Any]] = {}

    def send(self, arrays: Arrays) -> dict[str, Any]:
        """Begin to copy; the arrays on the device."""
        return {name: self._send(name, array) for name, array in arrays.items()}

    def _send(self, name: str, array: np.ndarray) -> Any:
        rows = len(array)
        if name not in self.held or len(self.held[name][0]) < rows:  # The first batch is the longest.
            pages = cuda.pinned_array(array.shape, array.dtype)
            self.held[name] = pages, cuda.device_array(array.shape, array.dtype)
        here, there = self.held[name]
        here[:rows] = array
        part = there[:rows]
        part.copy_to_device(here[:rows], stream=self.stream)
        return part


def compute_stream() -> Any:
    """A stream to compute on beside the copies; None in the simulator, which has none."""
    return None if simulated() else cuda.stream()


def staged(batches: Iterator[tuple[Batch, Arrays]], device: int) -> Generator[Staged[Batch], None, None]:
    """The same batches with their arrays on the device, for a thread of their own (:func:`gpubce.shards.read_ahead`).
    The types and the shapes of their rows are the same for all.

    The copy of a batch into page-locked memory goes on beside the transfer of the one before it, which is waited for
    here: no other thread has to.
    """
    with current_device(device):
        slots = [_Slot(cuda.stream()) for _ in range(SLOTS)]
        pending: tuple[Staged[Batch], _Slot] | None = None
        for number, (batch, arrays) in enumerate(batches):
            slot = slots[number % SLOTS]
            sent = Staged(batch, slot.send(arrays)), slot
            if pending is not None:
                pending[1].stream.synchronize()
                yield pending[0]
            pending = sent
        if pending is not None:
            pending[1].stream.synchronize()
            yield pending[0]
