"""What one kernel computes: everything that is decided when it is compiled."""

from dataclasses import dataclass, fields

from gpubce.spec.precision import PRECISIONS

LOGIT = "logit"
PROBABILITY = "probability"

OUTPUTS = ("loss", "gradient", "hessian")
"""What a kernel can write for each element."""

ROLES = ("prediction", "baseline", "target", "weight", "mask", "pos_weight", "label_weight", "scale")
"""The arrays that a kernel can read, in the order of its arguments."""

PARAMETERS = {
    "negative_factor": "factors",
    "positive_factor": "factors",
    "smoothing_keep": "smoothing",
    "smoothing_half": "smoothing",
    "alpha_positive": "alpha",
    "alpha_negative": "alpha",
    "gamma": "gamma",
    "focal_corner": "gamma",
    "log_cap": "floor",
    "reciprocal_cap": "floor",
    "clip_low": "clip",
    "clip_low_log": "clip",
    "clip_low_rest": "clip",
    "clip_high": "clip",
    "clip_high_log": "clip",
    "clip_high_rest": "clip",
    "unit": "unit",
    "scale": "scaled",
    "quanta": "quantised",
    "threshold": "threshold",
}
"""Each number that a kernel takes at run time, and the field of :class:`Recipe` that asks for it."""


AT_THRESHOLD = frozenset({"predicted", "found"})
"""The sums that compare predictions with a threshold."""

EQUAL_UNWEIGHTED = {
    "weight": "count",
    "squared_weight": "count",
    "loss_by_weight": "loss",
    "difference_by_weight": "difference",
}
"""The sums that are others where every weight is 1."""

WITH_BASELINE = ("difference", "squared_difference", "difference_by_weight", "difference_by_positives")
"""The sums that compare the loss with a baseline's."""


@dataclass(frozen=True)
class Recipe:
    """The static description of a kernel.

    The fields named after roles hold the stored type of that array, or None where there is none.
    """

    space: str = LOGIT
    compute: str = "float32"
    prediction: str | None = "float32"
    baseline: str | None = None
    target: str | None = "float32"
    weight: str | None = None
    mask: str | None = None
    pos_weight: str | None = None
    label_weight: str | None = None
    scale: str | None = None
    factors: bool = False
    smoothing: bool = False
    alpha: bool = False
    gamma: bool = False
    floor: bool = False
    clip: bool = False
    unit: bool = False
    scaled: bool = False
    signed: bool = False
    """Whether weights may be negative."""
    ignore: str | None = None
    """None, "value" (compare the target with a number) or "nan"."""
    outputs: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    bins: int = 0
    """Of the histogram; 0 for none."""
    quantised: bool = False
    """Whether samples add what their weights and targets say, and not 1 to the cell of their class."""
    threshold: bool = False
    """Whether predictions are compared with one."""

    @property
    def stored(self) -> str:
        """The type in which outputs are stored."""
        return self.prediction or self.compute

    @property
    def compensated(self) -> bool:
        """Whether elements are added by TwoSum."""
        return PRECISIONS[self.stored].compensated

    @property
    def roles(self) -> tuple[str, ...]:
        """The arrays that this kernel reads, in order."""
        return tuple(role for role in ROLES if getattr(self, role) is not None)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The numbers that this kernel takes, in order; never empty, because an empty tuple has no type."""
        return tuple(name for name, field in PARAMETERS.items() if getattr(self, field)) or ("unused",)

    def __str__(self) -> str:
        changed = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"Recipe({', '.join(changed)})"
