"""How fast the arrays of a case can be moved at all, measured beside everybody in the same rounds.

On the CPU all inputs are read, and as much as the gradient is written, by as many threads as the losses use. On a GPU
it is a copy from one place of its memory to another that moves as many bytes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from benchmarks.cases import Workload
from benchmarks.libraries import Arrays, CuPy

ALONE = 1 << 20
"""Fewer bytes are read by the calling thread alone: to wake another takes about as long."""


def moved_bytes(workload: Workload, arrays: dict[str, np.ndarray]) -> int:
    """What has to come from memory or go there."""
    written = arrays["predictions"].nbytes if workload.gradient else 0
    return written + sum(array.nbytes for array in arrays.values())


@numba.njit(nogil=True)
def _read(words):
    """The sum of the words: as fast as they can be read."""
    total = np.uint64(0)
    for k in range(words.size):
        total += words[k]
    return total


def _words(array: np.ndarray) -> np.ndarray:
    """The memory of an array as words of 8 bytes, but for up to 7 bytes at its end."""
    octets = array.reshape(-1).view(np.uint8)
    return octets[: octets.size // 8 * 8].view(np.uint64)


def reading(workload: Workload, arrays: Arrays, threads: int) -> Callable[[Arrays], None]:
    """What reads host arrays, and writes where the case has a gradient."""
    gradient = np.empty_like(_words(arrays["predictions"])) if workload.gradient else None
    alone = moved_bytes(workload, arrays) < ALONE
    pool = ThreadPoolExecutor(threads)

    def move(given: Arrays, part: int, parts: int) -> None:
        for name, array in given.items():
            words = _words(array)
            own = slice(words.size * part // parts, words.size * (part + 1) // parts)
            if gradient is not None and name == "predictions":
                np.copyto(gradient[own], words[own])
            else:
                _read(words[own])

    def run(given: Arrays) -> None:
        if alone:
            move(given, 0, 1)
        else:
            list(pool.map(lambda part: move(given, part, threads), range(threads)))

    return run


def copying(workload: Workload, arrays: Arrays, library: CuPy) -> Callable[[Arrays], None]:
    """What copies half of the bytes that a case moves: each is read and written."""
    written = arrays["predictions"].nbytes if workload.gradient else 0
    half = (arrays["all"].nbytes + written) // 2
    target = library.cupy.empty(half, library.cupy.uint8)
    return lambda given: library.cupy.copyto(target, given["all"][:half])
