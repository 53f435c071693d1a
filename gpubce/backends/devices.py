"""What there is to compute on, and why a GPU is not used."""

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    index: int
    name: str
    compute_capability: tuple[int, int]


def simulated() -> bool:
    """Whether Numba's CUDA simulator is on."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


@lru_cache(maxsize=1)
def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The usable GPUs, and a sentence that says why there is none ("" where there is one).

    The driver is looked for first, by name (0.2 ms), so a machine without one never pays for importing CUDA.
    """
    if simulated():
        return (Gpu(0, "Numba's CUDA simulator", (0, 0)),), ""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return (), f"no NVIDIA driver was found ({library} cannot be loaded)"
    if importlib.util.find_spec("numba_cuda") is None:
        return (), "numba-cuda is not installed: pip install 'gpubce[cuda12]' or 'gpubce[cuda13]'"
    try:
        from numba import cuda

        if not cuda.is_available():
            return (), "Numba finds no usable CUDA device; `python -m numba -s` says more"
        found = []
        for index, device in enumerate(cuda.list_devices()):
            name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
            found.append(Gpu(index, name, tuple(device.compute_capability)))
        return tuple(found), "" if found else "the driver lists no CUDA device"
    except Exception as error:  # Whatever a broken driver raises means that there is no GPU to use.
        return (), f"CUDA cannot be used: {type(error).__name__}: {error}"
