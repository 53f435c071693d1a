"""Numba's CUDA simulator, in a process that has the environment variable NUMBA_ENABLE_CUDASIM."""

import threading
import time


def share_processor() -> None:
    """The simulator asks its threads again and again whether they live, and holds the interpreter meanwhile: threads
    that compile took 3 to 10 times as long. From now on, a thread that is asked lets others go on."""
    from numba.cuda.simulator import kernel

    def is_alive(self) -> bool:
        time.sleep(0)
        return threading.Thread.is_alive(self)

    kernel.BlockThread.is_alive = is_alive
