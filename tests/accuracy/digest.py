"""One number for the bits of many results, so that two machines or devices can be compared without keeping them.

Each result is joined with the bits of its logit to a 64-bit word, the word is mixed one-to-one, and the words are added
modulo 2^64. A single wrong bit always changes the sum, and so does exchanging two results; the order of adding does not
matter. NaN counts as one value.
"""

import json
from pathlib import Path

import numpy as np

from tests.accuracy.reference import ROWS, compiled

COMMITTED = Path(__file__).with_name("digest.json")
"""The digests of the package's results for every float32 logit, made on a CPU: they hold for every device."""

CHUNK = 1 << 24
"""Consecutive logits behind one digest."""

_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_NAN, _HALF = np.uint64(0x7FC00000), np.uint64(32)


@compiled
def digest(logits, results, first):
    """The digest of float32 results from element ``first`` on; both arrays are given as uint32."""
    total = np.uint64(0)
    for i in range(first, logits.size):
        bits = np.uint64(results[i])
        bits = _NAN if results[i] & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000) else bits
        word = (np.uint64(logits[i]) << _HALF | bits) * _FIRST_FACTOR
        word = (word ^ (word >> _HALF)) * _SECOND_FACTOR
        total += word ^ (word >> _HALF)
    return total


def as_text(total: int) -> str:
    """A sum of digests, as it is kept."""
    return f"{total % 2**64:016x}"


def read(path: Path = COMMITTED) -> dict[int, list[str]]:
    """The digests of a file by chunk, one for each of :data:`.reference.ROWS`; none where there is no file."""
    if not path.exists():
        return {}
    return {int(chunk): values for chunk, values in json.loads(path.read_text())["digests"].items()}


def write(digests: dict[int, list[str]], path: Path) -> None:
    """One line for each chunk."""
    rows = json.dumps([f"{output}, y = {target}" for target, output in ROWS])
    lines = ",\n".join(f'  "{chunk}": {json.dumps(digests[chunk])}' for chunk in sorted(digests))
    path.write_text(f'{{\n "logits of a chunk": {CHUNK},\n "rows": {rows},\n "digests": {{\n{lines}\n }}\n}}\n')


def differences(found: dict[int, list[str]], expected: dict[int, list[str]]) -> list[str]:
    """What differs, in words, among the chunks that both have."""
    return [
        f"chunk {chunk}, {output}, y = {target}: digest {one}, expected {other}"
        for chunk in sorted(set(found) & set(expected))
        for (target, output), one, other in zip(ROWS, found[chunk], expected[chunk], strict=True)
        if one != other
    ]
