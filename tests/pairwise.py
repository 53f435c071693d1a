"""A covering array: few rows in which every pair of values of two factors occurs."""

from collections.abc import Sequence
from itertools import combinations


def covering_rows(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Rows of value numbers; factor k has ``sizes[k]`` values.

    Greedy, one row after the other: start from a pair that is not covered yet, then give each other factor the value
    that covers most pairs with the values chosen so far.
    """
    missing = {
        (one, a, two, b)
        for one, two in combinations(range(len(sizes)), 2)
        for a in range(sizes[one])
        for b in range(sizes[two])
    }

    def pair(one: int, a: int, two: int, b: int) -> tuple[int, int, int, int]:
        return (one, a, two, b) if one < two else (two, b, one, a)

    rows = []
    while missing:
        first, a, second, b = min(missing)
        row = {first: a, second: b}
        for factor in sorted(set(range(len(sizes))) - set(row), key=lambda k: -sizes[k]):
            row[factor] = max(
                range(sizes[factor]),
                # The number of the row breaks ties, so that values which no pair asks for are spread too.
                key=lambda v: (
                    sum(pair(factor, v, k, c) in missing for k, c in row.items()),
                    -((v - len(rows)) % sizes[factor]),
                ),
            )
        values = tuple(row[factor] for factor in range(len(sizes)))
        missing -= {(i, values[i], j, values[j]) for i, j in combinations(range(len(sizes)), 2)}
        rows.append(values)
    return rows
