"""What can be saved of a damaged line.

A flipped bit in a newline joins two whole records; one inside a record spoils only that record.
So in a line that is not a record, whole ones are looked for: from each ``{"v":`` to each checksum
suffix, and what verifies is delivered.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import islice
from typing import NamedTuple
from zlib import crc32

from keyop.envelope import CRC_SUFFIX_BYTES

_START = re.compile(rb'\{"v":')
_SUFFIX = re.compile(rb',"crc":"[0-9a-f]{8}"\}')
# Looking is quadratic in the worst case, which somebody could construct. What is still
# unchecked when this many bytes have been summed counts as damaged.
_CRC_BUDGET_BYTES = 64 << 20


class Piece(NamedTuple):
    """A part of a line: where it begins in the line, its bytes, and whether it is a record."""

    start: int
    data: bytes
    whole: bool


def salvage(line: bytes) -> list[Piece]:
    """Cut a damaged line into whole records and the damaged rest, in order, nothing left out."""
    ends = [match.start() for match in _SUFFIX.finditer(line)]
    pieces: list[Piece] = []
    budget = _CRC_BUDGET_BYTES
    done = 0
    for match in _START.finditer(line):
        start = match.start()
        if start < done:
            continue
        found, budget = _record_end(line, start, ends, budget)
        if found:
            if start > done:
                pieces.append(Piece(done, line[done:start], False))
            pieces.append(Piece(start, line[start:found], True))
            done = found
        if budget <= 0:
            break
    if done < len(line):
        pieces.append(Piece(done, line[done:], False))
    return pieces


def _record_end(line: bytes, start: int, ends: list[int], budget: int) -> tuple[int, int]:
    """Return the end of the record that begins at ``start``, or 0, and the budget left."""
    view = memoryview(line)
    crc, summed = 0, start
    for end in islice(ends, bisect_right(ends, start), None):
        budget -= end - summed
        crc, summed = crc32(view[summed:end], crc), end
        if b"%08x" % crc == line[end + 8 : end + 16]:
            return end + CRC_SUFFIX_BYTES, budget
        if budget <= 0:
            break
    return 0, budget
