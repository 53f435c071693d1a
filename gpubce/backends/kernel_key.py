"""What identifies a compiled kernel: the recipe, where its arrays lie, and the plan."""

from dataclasses import dataclass

import numpy as np

from gpubce.spec.geometry import STRIDED
from gpubce.spec.job import Settlement
from gpubce.spec.plan import PLAN, Plan
from gpubce.spec.recipe import Recipe


@dataclass(frozen=True)
class KernelKey:
    """``layouts`` and positions follow the kernel's arrays: the recipe's roles, then its outputs."""

    recipe: Recipe
    layouts: tuple[str, ...]
    dimensions: int = 1
    plan: Plan = PLAN
    vector: int = 1
    """How many neighbouring elements one CUDA thread loads at once; 1 where an array is not aligned."""

    @property
    def zero(self) -> np.floating:
        """0 in the compute type."""
        return np.dtype(self.recipe.compute).type(0)

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the kernel's arrays."""
        return self.recipe.roles + self.recipe.outputs

    def position(self, role: str) -> int:
        """Which of the kernel's addresses is that array's."""
        return self.arrays.index(role)

    def slot(self, role: str) -> int:
        """Which of the strided arrays it is."""
        return self.layouts[: self.position(role)].count(STRIDED)

    def staging(self, role: str) -> int:
        """The byte offset of its row in a CPU thread's scratch."""
        return 8 * self.plan.lanes * (2 * max(1, len(self.recipe.sums)) + self.position(role))


@dataclass(frozen=True)
class SettleKey:
    """What a settling kernel does: see :class:`gpubce.spec.job.Settlement`."""

    storage: str
    makes_scale: bool
    divides_by_sum: bool
    factor_storage: str | None

    @classmethod
    def of(cls, settlement: Settlement) -> tuple["SettleKey", tuple]:
        """The key and the kernel's arguments."""
        s = settlement
        factor_storage = s.factor_storage if s.factor else None
        key = cls(s.storage, s.numerator is None, s.denominator is not None, factor_storage)
        positions = (s.outputs, s.states, s.result, s.numerator or 0, s.denominator or 0)
        numbers = (s.divisor, s.least, s.grad_scale, s.unit)
        return key, (*positions, *(float(number) for number in numbers), s.factor)
