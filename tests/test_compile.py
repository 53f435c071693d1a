"""``gpubce compile``: what it compiles is what calls need, and what cannot be kept is said in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
from numba import int64, njit

from gpubce import compile_ahead
from gpubce.backends.cpu.compile import needs_numba
from gpubce.backends.kernel_key import SettleKey
from gpubce.cli import main
from gpubce.spec.precision import PRECISIONS
from tests.processes import run

has_cuda = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")

COMPILE = "import sys; from gpubce.cli import main; sys.exit(main(['compile', {}]))"
NARROW = "'--types', 'float32', '--targets', 'bool'"
KEY = SettleKey("float32", False, False, None)


def kernel_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# The CPU ------------------------------------------------------------------------------------------------------------

CALLS = """
import numpy as np
import gpubce
from gpubce.backends.cpu.compile import known
rng = np.random.default_rng(0)
for shape in ((3,), (70_001,), (300, 5), (5000, 5)):
    y = rng.random(shape) < 0.5
    for x, from_logits in ((rng.normal(size=shape), True), (rng.random(shape), False)):
        x = x.astype(np.float32)
        loss = gpubce.BinaryCrossEntropy(from_logits=from_logits)
        loss(x, y), loss.value_and_grad(x, y), loss.value_and_grad(x, y, grad_out=np.empty_like(x))
        gpubce.BinaryCrossEntropy(from_logits=from_logits, reduction="none")(x, y)
        evaluator = gpubce.Evaluator(from_logits=from_logits)
        evaluator.update(x, y)
        evaluator.report()
        if len(shape) == 2:
            gpubce.BinaryCrossEntropy(from_logits=from_logits, axis=0)(x, y)
def counts():
    stats = [kernel.stats for kernel in known()]
    return [sum(sum(one.values()) for one in ones) for ones in zip(*((s.cache_hits, s.cache_misses) for s in stats))]
import json
before = counts()
loss.grad_and_hess(x, y)  # Which is not compiled ahead: what counts must see it.
print(json.dumps([before, counts()]))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    said = run(COMPILE.format(NARROW), tmp_path)
    kernels, written = (int(number) for number in re.findall(r"^(\d+) ", said, re.M))
    files = kernel_files(tmp_path)
    assert kernels == written == len(files)
    assert f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB" in said
    assert str(files[0].parent) in said
    before, after = json.loads(run(CALLS, tmp_path))
    assert before == [kernels, 0]
    assert after == [kernels, 1]
    again = run(COMPILE.format(NARROW), tmp_path)
    assert "all were on disk already" in again


BY_LABEL = """
import numpy as np
import gpubce
rng = np.random.default_rng(0)
evaluator = gpubce.Evaluator(from_logits=True, metrics="all", per_label=True, max_weight=1.0, bins=256)
evaluator.update(rng.normal(size=(40, 3)).astype(np.float32), rng.random((40, 3)) < 0.5, weight=rng.random((40, 3)))
from gpubce.backends.cpu.compile import known
print(evaluator.report().loss, [sum(kernel.stats.cache_misses.values()) for kernel in known()])
"""


def test_histograms_of_labels_are_loaded(tmp_path):
    """Their kernel had a range whose step is not known, which can raise an exception: the process that loaded it ended
    with a segmentation fault."""
    loss, misses = run(BY_LABEL, tmp_path).split(maxsplit=1)
    assert "1" in misses
    again, misses = run(BY_LABEL, tmp_path).split(maxsplit=1)
    assert again == loss
    assert "1" not in misses


ROWS = """
import numpy as np
import gpubce
rng = np.random.default_rng(0)
x, y = rng.normal(size=(53, 7)), rng.random((53, 7)) < 0.5
for name in {}:
    print(gpubce.BinaryCrossEntropy(from_logits=True, axis=1)(x.astype(name), y).tobytes().hex())
"""


def test_kernels_of_several_processes_are_loaded_into_one(tmp_path):
    """What they call and do not inline has a name of its own, or the kernel that comes second calls what belongs to the
    first."""
    types = ["float32", "float64"]
    alone = [run(ROWS.format([name]), tmp_path) for name in types]
    assert run(ROWS.format(types), tmp_path) == "".join(alone)
    assert run(ROWS.format(types[::-1]), tmp_path) == "".join(alone[::-1])


def test_machine_code_that_needs_numba_is_told():
    @njit
    def divides(a, b):
        return a // b

    divides.compile((int64, int64))
    (assembly,) = divides.inspect_asm().values()
    assert needs_numba(assembly.encode())


def test_every_type_is_compiled_for():
    """By default: every type of predictions, with the usual targets and those of its own type."""
    names = [call.name for call in compile_ahead.calls(tuple(PRECISIONS))]
    assert len(names) == len(set(names)) == 4 * 4 * 2 * 6
    for kind in PRECISIONS:
        for target in ("uint8", "bool", "int64", kind):
            assert f"logits of {kind}, targets of {target}: evaluator" in names


def test_the_help_says_which_targets_are_usual(capsys):
    with pytest.raises(SystemExit):
        main(["compile", "--help"])
    assert "default: uint8, bool, int64, and the type of the predictions" in " ".join(capsys.readouterr().out.split())


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fails(capsys):
    """The one line that the command fails with."""

    def failed(*arguments: str) -> str:
        assert main(["compile", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("gpubce: error: ") and err.count("\n") == 1
        return err

    return failed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--types", "float8"), "--types float8 .* float16, bfloat16, float32, float64"),
        (("--targets", "bool,word"), "--targets word .* bool, int8"),
        (("--cuda", "nine"), "'nine' is not a compute capability"),
        (("--cuda",), "expected at least one argument"),
        pytest.param(("--types", "float32", "--cuda", "1.0"), "--cuda 1.0: .* 9.0", marks=has_cuda),
    ],
)
def test_what_it_does_not_know(fails, arguments, expected):
    assert re.search(expected, fails(*arguments))


def test_cuda_without_numba_cuda(fails, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba_cuda" else found(name))
    assert "pip install 'gpubce[cuda12]'" in fails("--types", "float32", "--cuda", "9.0")


def test_bfloat16_without_ml_dtypes(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    compile_ahead.host_arrays.dtype.cache_clear()
    assert "pip install ml_dtypes" in fails("--types", "bfloat16")


def test_a_folder_that_is_a_file(fails, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    assert re.search("NUMBA_CACHE_DIR .*file cannot be written", fails("--types", "float32"))


def test_a_folder_that_is_read_only(fails, monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert re.search(r"NUMBA_CACHE_DIR .* \(Read-only file system\)", fails("--types", "float32"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no limits of a process")
def test_a_full_disk(tmp_path):
    """Files of at most 100 bytes, which is what a full disk is like."""
    program = f"""
import contextlib, io, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
from gpubce.cli import main
error = io.StringIO()
with contextlib.redirect_stderr(error):
    assert main(["compile", {NARROW}]) == 2
print(error.getvalue())
"""
    said = run(program, tmp_path).strip()
    assert re.fullmatch(r"gpubce: error: a compiled kernel cannot be kept .* \(.*\): set NUMBA_CACHE_DIR .*", said)
    assert kernel_files(tmp_path) == []


# GPUs that are not here ---------------------------------------------------------------------------------------------

DEVICE_CALLS = """
import json
import numpy as np
from numba import cuda
import gpubce
from gpubce import compile_ahead
from gpubce.backends.cuda.launch import CudaEngine

noted = compile_ahead.launched(compile_ahead.calls(["float32"], ["bool"]))
launched = {}
run = CudaEngine.launch
def note(engine, kind, key, grid, team, arguments):
    launched[kind, key] = None
CudaEngine.launch = note
x, y = np.full((8192, 4), 0.5, np.float32), np.zeros((8192, 4), bool)
there = cuda.to_device(x), cuda.to_device(y)
for arrays, options in ((there, {}), ((x, y), {"device": "cuda", "check": False}), ((x, y), {"device": "cuda"})):
    for from_logits in (True, False):
        loss = gpubce.BinaryCrossEntropy(from_logits=from_logits)
        each = gpubce.BinaryCrossEntropy(from_logits=from_logits, reduction="none")
        by_label = gpubce.BinaryCrossEntropy(from_logits=from_logits, axis=0)
        evaluator = gpubce.Evaluator(from_logits=from_logits)
        for call in (loss, loss.value_and_grad, each, by_label, evaluator.update):
            try:
                call(*arrays, **options)
            except gpubce.errors.InvalidValueError:
                pass  # Nothing was computed, so what is found in the sums is chance.
"""


@has_cuda
def test_the_kernels_are_those_of_calls_on_a_device():
    """Numba's simulator holds the arrays; its memory is not always aligned, and a GPU's is."""
    program = (
        DEVICE_CALLS
        + """
from dataclasses import replace
def plain(kernels):
    return {(kind, replace(key, vector=1) if hasattr(key, "vector") else key) for kind, key in kernels}
launched = {(kind, key) for kind, key in launched if getattr(getattr(key, "recipe", None), "sums", 0) != ("invalid",)}
print(len(noted), plain(noted) == plain(launched))
print(sorted({(kind, key.vector) for kind, key in noted if hasattr(key, "vector")}))
"""
    )
    same, vectors = run(program, NUMBA_ENABLE_CUDASIM="1").splitlines()
    assert same == "16 True"
    assert vectors == "[('along_axes', 1), ('along_axes', 4), ('whole', 4)]"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of compiled kernels, of Numba's CUDA target too."""
    from numba.cuda.core import config

    for each in (numba.config, config):
        monkeypatch.setattr(each, "CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def on(monkeypatch):
    """Stand on a machine with a GPU, whose driver loads no module, or refuses to."""
    from cuda.core._utils.cuda_utils import ComputeCapability
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices

    def stand(major: int, minor: int, bind=lambda kernel: None) -> None:
        device = SimpleNamespace(compute_capability=ComputeCapability(major, minor))
        monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
        monkeypatch.setattr(devices, "get_context", lambda number=None: SimpleNamespace(device=device))
        monkeypatch.setattr(dispatcher._Kernel, "bind", bind)

    return stand


@has_cuda
@pytest.mark.no_gpu
def test_a_gpu_finds_what_was_compiled_without_it(folder, on):
    """The machine code for its architecture, of the PTX that the interpreter of the tests executes."""
    from gpubce.backends.cuda import compile as compiled

    compiled.keep_ahead("settle", KEY, (9, 0))
    compiled.keep_ahead("settle", KEY, (8, 6))
    assert len(kernel_files(folder)) == 2
    for capability, architecture in (((9, 0), 90), ((8, 6), 86)):
        on(*capability)
        found = compiled.kernel.__wrapped__("settle", KEY, 0)
        assert (sum(found.stats.cache_hits.values()), sum(found.stats.cache_misses.values())) == (1, 0)
        (kernel,) = found.overloads.values()
        image = kernel.library.get_cubin().code
        assert image[:4] == b"\x7fELF"
        assert architecture in (image[48], image[49])  # Of e_flags; where in them depends on the version of the ABI.
        ours, theirs = (
            re.sub(r"^\.target.*$|\.visible \.entry \S+\(|_param_\d+|\S*gpubce_settle\S*", "", text, flags=re.M)
            for text in (compiled.ptx("settle", KEY, capability), kernel.library.get_asm_str())
        )
        assert ours.split() == theirs.split()
    on(7, 5)
    assert sum(compiled.kernel.__wrapped__("settle", KEY, 0).stats.cache_misses.values()) == 1


@has_cuda
@pytest.mark.no_gpu
def test_what_the_driver_refuses_is_compiled(folder, on):
    from gpubce.backends.cuda import compile as compiled

    compiled.keep_ahead("settle", KEY, (9, 0))
    bound = []

    def bind(kernel) -> None:
        bound.append(kernel)
        if len(bound) == 1:
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")

    on(9, 0, bind)
    found = compiled.kernel.__wrapped__("settle", KEY, 0)
    assert list(found.overloads.values()) == bound[1:]
    assert not found.stats.cache_hits


@has_cuda
@pytest.mark.no_gpu
def test_files_of_another_numba_cuda_are_not_read(folder, on, monkeypatch):
    from gpubce.backends.cuda import compile as compiled

    compiled.keep_ahead("settle", KEY, (9, 0))
    monkeypatch.setattr("numba_cuda.__version__", "0.0")
    on(9, 0)
    assert sum(compiled.kernel.__wrapped__("settle", KEY, 0).stats.cache_misses.values()) == 1


@has_cuda
def test_the_command_compiles_for_gpus(folder, monkeypatch, capsys):
    """One kernel of them: all take minutes."""
    monkeypatch.setattr(compile_ahead, "launched", lambda wanted: [("settle", KEY)])
    assert main(["compile", "--types", "float32", "--targets", "bool", "--cuda", "8.0", "12.0"]) == 0
    said = capsys.readouterr().out
    assert "2 kernels for CUDA 8.0, 12.0\n" in said
    assert len([path for path in kernel_files(folder) if "cuda" in path.parent.name]) == 2


@has_cuda
def test_a_full_disk_and_gpus(folder, monkeypatch, fails):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compile_ahead, "launched", lambda wanted: [("settle", KEY)])
    monkeypatch.setattr("os.replace", full)
    assert "(No space left on device)" in fails("--types", "float32", "--targets", "bool", "--cuda", "8.0")
    assert kernel_files(folder) == []
