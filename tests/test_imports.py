"""Promise 8: importing loads nothing that is optional, and calls on NumPy arrays need nothing but NumPy and Numba."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

OPTIONAL = ("cupy", "torch", "numba_cuda", "numba.cuda", "pyarrow", "tqdm", "ml_dtypes", "sklearn", "matplotlib")

HIDE = f"""
import sys
assert not set({OPTIONAL!r}) & set(sys.modules), "loaded before the test"
sys.modules.update(dict.fromkeys({OPTIONAL!r}))  # None: neither importable nor found by importlib.util.find_spec.
"""


def run(program: str) -> str:
    """What the program prints in a new process."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_nothing_but_numpy():
    """Neither the compiler nor another library, and few modules of Python's own: `python -m benchmarks.start` says how
    long it takes."""
    seen = run(
        "import sys, numpy\nbefore = set(sys.modules)\nimport gpubce\nprint(*sorted(set(sys.modules) - before))\n"
    ).split()
    own = [name for name in seen if name.partition(".")[0] == "gpubce"]
    assert "gpubce.dispatch" in own
    assert not [name for name in seen if name.partition(".")[0] not in ("gpubce", *sys.stdlib_module_names)]
    assert len(seen) - len(own) < 30  # 21 in Python 3.11, of which statistics, logging and queue bring most.


def test_options_are_checked_without_the_compiler():
    program = "import sys, gpubce; gpubce.Evaluator(pos_weight=2).report; print('numba' in sys.modules)"
    assert run(program) == "False\n"


def test_the_test_hides_what_it_says():
    for name in OPTIONAL:
        said = run(HIDE + f"try: import {name}\nexcept ModuleNotFoundError: print('hidden')")
        assert said == "hidden\n"


def test_calls_on_numpy_arrays_need_nothing_optional():
    program = """
import numpy as np, gpubce
logits, targets = np.float32([2.0, -1.0, 0.5]), np.array([True, False, True])
loss = gpubce.BinaryCrossEntropy(from_logits=True)
value, gradient = loss.value_and_grad(logits, targets)
assert value == loss(logits, targets) == np.float32(np.mean(np.logaddexp(0, np.where(targets, -logits, logits))))
assert gradient.dtype == np.float32
evaluator = gpubce.Evaluator(from_logits=True)
evaluator.update(logits, targets)
assert evaluator.report().count == 3
try:
    loss.state("abc", targets)
except gpubce.errors.ArrayError:
    pass
try:
    gpubce.BinaryCrossEntropy(from_logits=True, dtype="bfloat16")(logits, targets)
except gpubce.errors.ArrayError as error:
    print(error)
print(gpubce.devices())
"""
    said = run(HIDE + program)
    assert "pip install ml_dtypes" in said
    assert "cpu" in said
    assert "not used: " in said
