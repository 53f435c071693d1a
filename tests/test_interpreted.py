"""Same bits without a compiler (promises 1 and 2): the specification executed as Python gives the digests."""

import pytest

from tests import backends
from tests.cases import Case, Results, digest, run_case
from tests.interpreted import InterpretedEngine
from tests.matrix import Row, committed, matrix

FEW_ELEMENTS = 1_100
"""Larger cases of a row differ in the order of additions alone."""


def interpreted(case: Case) -> Results:
    with backends.replaced(InterpretedEngine, backends.SMALL_PLAN):
        return run_case(case)


def small(row: Row) -> list[int]:
    """The cases that have few elements, sums of sums of blocks among them."""
    return [
        k for k, case in enumerate(row.small) if len(case.shape) != 2 or case.shape[0] * case.shape[1] <= FEW_ELEMENTS
    ]


@pytest.mark.parametrize("row", [row for row in matrix() if row.small], ids=lambda row: row.name)
def test_python_gives_the_digests(row: Row):
    expected = committed()[row.name]["small"].split()
    for k in small(row):
        assert digest(interpreted(row.small[k])) == expected[k], row.small[k]
