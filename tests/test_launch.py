"""What the driver is told when a CUDA kernel starts. That every number arrives where the kernel reads it is seen by all
tests that execute PTX (backends.PtxEngine). Here, with a library in the driver's place: cuda-bindings hand it on."""

import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import types

from gpubce.backends.cuda.launch import Direct, layout_of
from gpubce.errors import DeviceError
from tests.backends import given
from tests.processes import run

ARGUMENT_TYPES = (types.int64, types.UniTuple(types.int64, 2), types.UniTuple(types.float32, 1), types.float64)
ARGUMENTS = (7, (2**40, -3), (np.float32(0.1),), 0.1)
EXPECTED = (7, 2**40, -3, float(np.float32(0.1)), 0.1)


def test_numbers_lie_at_multiples_of_their_size():
    layout = layout_of((types.float32, types.uint64, types.UniTuple(types.float32, 3), types.float64))
    assert struct.calcsize(layout) == 40
    assert struct.unpack(layout, struct.pack(layout, 1, 2, 3, 4, 5, 6)) == (1, 2, 3, 4, 5, 6)
    assert struct.pack(layout, 0, 2**64 - 1, 0, 0, 0, 0)[8:16] == b"\xff" * 8


def test_threads_start_kernels_at_once():
    """Each tells the driver its own numbers, and none is forgotten."""
    layout = layout_of((types.int64, types.UniTuple(types.int64, 2)))

    def launch(handle, grid, *rest):
        numbers = given(rest[-1])
        sum(range(grid))  # Others may come.
        assert struct.unpack(layout, numbers) == struct.unpack(layout, given(rest[-1])) == (grid, grid + 1, -grid)
        return (0,)

    start = Direct(launch, 1, layout)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: start(k, 1, 0, (k, (k + 1, -k))), range(2_000)))
    assert len(start._spare) <= 8


def test_what_the_driver_refuses_is_an_error():
    start = Direct(lambda *told: ("CUDA_ERROR_LAUNCH_FAILED",), 1, layout_of((types.int64,)))
    with pytest.raises(DeviceError, match="could not start a kernel: CUDA_ERROR_LAUNCH_FAILED"):
        start(1, 1, 0, (1,))


DRIVER = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    unsigned char *buffer = extra[1];
    printf("%p %u %u %u %u %u %u %u %p %d ", f, gx, gy, gz, bx, by, bz, shared, stream, parameters != 0);
    for (size_t k = 0; k < *(size_t *)extra[3]; k++) printf("%02x", buffer[k]);
    printf("\n");
    fflush(stdout);
    return gx == 99 ? 719 : 0;
}
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *found = dlsym(self, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
"""

PROGRAM = """
import numpy as np
from cuda.bindings import driver
from numba import types
from gpubce.backends.cuda.launch import Direct, layout_of
from gpubce.errors import DeviceError
from tests.test_launch import ARGUMENT_TYPES, ARGUMENTS
start = Direct(driver.cuLaunchKernel, 0x1234, layout_of(ARGUMENT_TYPES))
start(5, 256, 0x77, ARGUMENTS)
try:
    start(99, 1, 0, ARGUMENTS)
except DeviceError as error:
    print(error)
"""


@pytest.mark.no_gpu
def test_the_bindings_tell_the_driver(tmp_path):
    pytest.importorskip("cuda.bindings.driver", reason="numba-cuda brings cuda-bindings")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler makes what stands for the driver")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "driver.c", "-ldl"], check=True)
    told, refused, error = run(PROGRAM, LD_LIBRARY_PATH=str(tmp_path)).splitlines()
    *numbers, buffer = told.split()
    assert numbers == ["0x1234", "5", "1", "1", "256", "1", "1", "0", "0x77", "0"]
    assert struct.unpack(layout_of(ARGUMENT_TYPES), bytes.fromhex(buffer)) == EXPECTED
    assert refused.split()[1:9] == ["99", "1", "1", "1", "1", "1", "0", "(nil)"]
    assert "could not start a kernel" in error
    assert "CUDA_ERROR_LAUNCH_FAILED" in error
