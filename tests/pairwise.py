"""A covering array: few rows in which every pair of values of two factors occurs."""

from collections.abc import Sequence
from itertools import combinations

CANDIDATES = 10
"""Rows tried for each row taken. For the matrix of the contract: 31 and 88 rows with 1, 28 and 81 with 10, 29 and 82
with 30."""


def covering_rows(sizes: Sequence[int], first_rows: Sequence[tuple[int, ...]] = ()) -> list[tuple[int, ...]]:
    """Rows of value numbers; factor k has ``sizes[k]`` values. The array begins with ``first_rows``.

    Greedy, one row after the other: start from a pair that is not covered yet, then give each other factor the value
    that covers most pairs with the values chosen so far. Of some rows grown so, take the one that covers most.
    """

    def pairs(values: Sequence[int]) -> set[tuple[int, int, int, int]]:
        return {(one, values[one], two, values[two]) for one, two in combinations(range(len(sizes)), 2)}

    missing = {
        (one, a, two, b)
        for one, two in combinations(range(len(sizes)), 2)
        for a in range(sizes[one])
        for b in range(sizes[two])
    }

    def is_missing(one: int, a: int, two: int, b: int) -> bool:
        return ((one, a, two, b) if one < two else (two, b, one, a)) in missing

    def grown(first: int, a: int, second: int, b: int) -> tuple[int, ...]:
        row = {first: a, second: b}
        for factor in sorted(set(range(len(sizes))) - set(row), key=lambda k: -sizes[k]):
            row[factor] = max(
                range(sizes[factor]),
                # The number of the row breaks ties, so that values which no pair asks for are spread too.
                key=lambda v: (
                    sum(is_missing(factor, v, k, c) for k, c in row.items()),
                    -((v - len(rows)) % sizes[factor]),
                ),
            )
        return tuple(row[factor] for factor in range(len(sizes)))

    rows = list(first_rows)
    for row in rows:
        missing -= pairs(row)
    while missing:
        in_order = sorted(missing)
        starts = in_order[:: max(1, len(in_order) // CANDIDATES)][:CANDIDATES]
        row = max((grown(*start) for start in starts), key=lambda values: len(pairs(values) & missing))
        missing -= pairs(row)
        rows.append(row)
    return rows
