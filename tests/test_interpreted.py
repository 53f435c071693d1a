"""Same bits without a compiler (promises 1 and 2): the specification executed as Python gives the digests."""

import pytest

from tests import backends
from tests.cases import Case, Results, digest, run_case
from tests.interpreted import InterpretedEngine
from tests.matrix import Row, committed, matrix


def interpreted(case: Case) -> Results:
    with backends.replaced(InterpretedEngine, backends.SMALL_PLAN):
        return run_case(case)


@pytest.mark.parametrize("row", [row for row in matrix() if row.small], ids=lambda row: row.name)
def test_python_gives_the_digests(row: Row):
    expected = committed()[row.name]["small"].split()
    for case, known in zip(row.small, expected, strict=True):
        assert digest(interpreted(case)) == known, case
