"""The layout and the README keep their word."""

import ast
import re
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import gpubce
from gpubce.spec.recipe import PARAMETERS, Recipe

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gpubce"
SPEC = [f"spec.{path.stem}" for path in (PACKAGE / "spec").glob("*.py") if path.stem != "__init__"]


def test_backends_have_the_same_files_and_kernels():
    assert {p.name for p in (PACKAGE / "backends/cpu").glob("*.py")} == {
        p.name for p in (PACKAGE / "backends/cuda").glob("*.py")
    }
    kernels = []
    for backend in ("cpu", "cuda"):
        tree = ast.parse((PACKAGE / f"backends/{backend}/kernels.py").read_text())
        kernels.append({node.name for node in tree.body if isinstance(node, ast.FunctionDef)})
    shared = {"whole", "along_axes", "combine", "settle", "_reader", "_writer", "_scalar_reader", "_flat_reader"}
    assert shared <= kernels[0] & kernels[1]


def test_backends_name_no_quantity():
    """A new quantity touches no file in backends/."""
    from gpubce.spec.quantities import QUANTITIES

    for path in (PACKAGE / "backends").rglob("*.py"):
        text = path.read_text()
        for name in set(QUANTITIES) - {"loss", "weight", "count", "predictions"}:
            assert not re.search(rf"[\"']{name}[\"']", text), (path, name)


def test_every_parameter_belongs_to_a_field_of_the_recipe():
    assert set(PARAMETERS.values()) <= {field.name for field in fields(Recipe)}


def test_the_readme_names_every_option_and_every_public_name():
    readme = (ROOT / "README.md").read_text()
    for field in fields(gpubce.BinaryCrossEntropy):
        assert f"`{field.name}`" in readme, field.name
    for name in (
        "BinaryCrossEntropy",
        "Evaluator",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "devices",
    ):
        assert name in readme


def test_records_are_immutable():
    """Equal options are equal objects, and kernels are kept by the recipe they were made from."""
    for name in ("dispatch", "evaluator", "loss", "arrays.buffer", "backends.devices", *SPEC):
        module = import_module(f"gpubce.{name}")
        for kind in vars(module).values():
            if is_dataclass(kind) and isinstance(kind, type):
                assert kind.__dataclass_params__.frozen, kind


def test_users_meet_no_assert():
    for path in PACKAGE.rglob("*.py"):
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text()))), path


def test_every_public_name_has_a_docstring():
    for name in gpubce.__all__:
        assert name == "__version__" or getattr(gpubce, name).__doc__, name
