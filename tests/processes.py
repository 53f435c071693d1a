"""Programs in processes of their own: a hang is a failure, and nothing of them survives it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

SMALL_CALL = """
import numpy as np
import gpubce
x, y = np.float32([0.5, -1.0, 2.0]), np.array([True, False, True])
def call():
    return gpubce.binary_cross_entropy_with_logits(x, y).tobytes()
"""
"""The beginning of a program: the simplest kernel there is, for what compiles it anew."""


def small_call() -> bytes:
    """What it gives in this process."""
    names: dict[str, Any] = {}
    exec(SMALL_CALL, names)
    return names["call"]()


def start(program: str, cache: Path | None = None, **environment: str) -> subprocess.Popen:
    """Start a Python program in a session of its own; ``cache`` is its folder of compiled kernels."""
    place = {} if cache is None else {"NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **place, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float = 100.0, expected: int = 0) -> str:
    """What it prints. Its children end with it."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the program hangs: it printed {out!r} and {err!r}")
    assert process.returncode == expected, (process.returncode, out, err)
    return out


def run(program: str, cache: Path | None = None, seconds: float = 100.0, expected: int = 0, **environment: str) -> str:
    """What a program prints."""
    return finish(start(program, cache, **environment), seconds, expected)
