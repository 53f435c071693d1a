"""Which type holds what: the one table of precisions.

Names are NumPy's, with "bfloat16" beside them. No other module writes a floating-point type as a literal.
"""

from dataclasses import dataclass

ACCUMULATOR = "float64"
"""Every sum is a pair (hi, lo) of this type."""


@dataclass(frozen=True)
class Precision:
    """How one input type is computed.

    ``compute`` is the type of every element formula, ``elements`` that of unreduced losses and of derivatives,
    ``reduced`` that of a mean or a sum. ``compensated``: elements are added by TwoSum inside a block or a run too
    (a float64 element fills its accumulator; float32 elements leave room for the 255 additions of a run).
    """

    compute: str
    elements: str
    reduced: str
    compensated: bool


PRECISIONS = {
    "float16": Precision("float32", "float16", "float32", False),
    "bfloat16": Precision("float32", "bfloat16", "float32", False),
    "float32": Precision("float32", "float32", "float32", False),
    "float64": Precision("float64", "float64", "float64", True),
}

INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TARGETS = (*INTEGERS, *PRECISIONS)
WEIGHTS = TARGETS
MASKS = ("bool",)

ITEMSIZE = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}


def widened(storage: str) -> str:
    """The type in which a kernel sees a stored value: exact, and one of float32, float64 and int64.

    uint64 keeps its 64 bits in an int64: only 0, 1 and equality with an ignored value matter.
    """
    if storage in INTEGERS:
        return "int64"
    return PRECISIONS[storage].compute
