"""One pass over the inputs, ready to run: what to compute, where the arrays are, and the numbers of this call."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from gpubce.made_once import made_once
from gpubce.spec.geometry import Geometry, Operand, lay_out
from gpubce.spec.plan import Plan
from gpubce.spec.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass over the inputs does, whatever they hold and wherever they lie.

    ``operands`` follow the recipe's roles, then its outputs; their strides are over ``shape``. ``kept`` is the number
    of trailing axes of ``shape`` that the sums keep: 0 sums over everything.
    """

    recipe: Recipe
    shape: tuple[int, ...]
    operands: tuple[Operand, ...]
    kept: int
    plan: Plan

    @made_once
    def elements(self) -> int:
        """How many elements there are."""
        return prod(self.shape)

    @made_once
    def outputs(self) -> int:
        """How many values each sum has."""
        return prod(self.shape[len(self.shape) - self.kept :])

    @made_once
    def reduced(self) -> int:
        """How many elements go into each of them."""
        return prod(self.shape[: len(self.shape) - self.kept])

    @made_once
    def geometry(self) -> Geometry:
        """The joint layout of the operands."""
        return lay_out(self.shape, self.operands)


class Job(NamedTuple):
    """A pass over arrays.

    ``addresses`` are those of its operands. The sums go to ``states``, the address of float64 pairs [sum, hi or lo,
    output]. ``histogram`` is the address of the cells, int64 [output, cell], to which each sample adds; one that is not
    quantised adds ``unit``.
    """

    work: Pass
    addresses: tuple[int, ...]
    states: int
    histogram: int
    unit: int
    parameters: dict[str, float]
    ignored: float


class Settlement(NamedTuple):
    """How sums become values: total / denominator * unit, or grad_scale / denominator * unit for derivatives.

    ``denominator`` is the position of the sum to divide by, or None for the number ``divisor``. A sum is first raised
    to ``least``. ``numerator`` is the position of the total; None makes the scale of derivatives instead.
    ``factor`` is the address of one more factor in memory (0 for none) of type ``factor_storage``.
    """

    outputs: int
    states: int
    result: int
    storage: str
    numerator: int | None
    denominator: int | None
    divisor: float
    least: float
    unit: float
    grad_scale: float = 1.0
    factor: int = 0
    factor_storage: str = "float32"
