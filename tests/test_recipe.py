"""What a kernel is made from: its recipe, and the job that it does."""

from dataclasses import fields, replace

import pytest

from gpubce.spec.elements import element
from gpubce.spec.job import Pass
from gpubce.spec.plan import PLAN
from gpubce.spec.recipe import PARAMETERS, ROLES, Recipe


def test_a_recipe_is_the_plain_loss_unless_it_says_otherwise():
    """Of float32 logits and targets, with no option, array, output or sum."""
    plain = Recipe()
    assert (plain.roles, plain.parameters, plain.outputs, plain.sums) == (("prediction", "target"), ("unused",), (), ())
    assert (plain.stored, plain.compensated, plain.bins, plain.quantised) == ("float32", False, 0, False)
    assert str(plain) == "Recipe()"


@pytest.mark.parametrize("name", sorted({*PARAMETERS.values()}))
def test_an_option_brings_its_parameters(name):
    recipe = replace(Recipe(), **{name: True})
    assert recipe.parameters == tuple(p for p, field in PARAMETERS.items() if field == name)
    assert str(recipe) == f"Recipe({name}=True)"


def test_parameters_and_roles_keep_their_order():
    """That of a kernel's arguments."""
    every = Recipe(**dict.fromkeys(PARAMETERS.values(), True), **dict.fromkeys(ROLES, "float32"))
    assert every.parameters == tuple(PARAMETERS)
    assert every.roles == ROLES


def test_a_recipe_tells_its_stored_type_without_predictions():
    """A pass that reads weights alone is stored as it computes."""
    assert Recipe(prediction=None, compute="float64").stored == "float64"
    assert Recipe(prediction=None, compute="float64").compensated
    assert Recipe(prediction="float16").stored == "float16"


def test_fields_say_what_differs():
    changed = Recipe(space="probability", bins=64, sums=("loss",))
    assert str(changed) == "Recipe(space='probability', sums=('loss',), bins=64)"
    assert eval(str(changed), {"Recipe": Recipe}) == changed
    assert [field.name for field in fields(Recipe) if f"{field.name}=" in str(changed)] == ["space", "sums", "bins"]


@pytest.mark.parametrize("hard", [False, True])
def test_kernels_share_a_sample_however_they_store_and_whatever_they_sum(hard):
    """What is compiled for one need not be for the other."""
    sample = element(Recipe(), hard)
    for same in (
        {"prediction": "bfloat16"},
        {"target": "float16"},
        {"outputs": ("gradient",)},
        {"sums": ("loss", "positives", "weight")},
    ):
        assert element(replace(Recipe(), **same), hard) is sample, same
    for other in (
        {"target": "float64"},
        {"sums": ("target_entropy",)},
        {"mask": "bool"},
        {"scaled": True},
        {"bins": 8},
    ):
        assert element(replace(Recipe(), **other), hard) is not sample, other


@pytest.mark.parametrize(
    ("shape", "kept", "numbers"),
    [
        ((), 0, (1, 1, 1)),
        ((5,), 0, (5, 1, 5)),
        ((2, 3, 4), 0, (24, 1, 24)),
        ((2, 3, 4), 1, (24, 4, 6)),
        ((2, 3, 4), 2, (24, 12, 2)),
        ((2, 3, 4), 3, (24, 24, 1)),
        ((0, 3), 1, (0, 3, 0)),
    ],
)
def test_a_pass_counts_its_elements(shape, kept, numbers):
    work = Pass(Recipe(), shape, (), kept, PLAN)
    assert (work.elements, work.outputs, work.reduced) == numbers
