"""Some records of a channel at a time: never more than a page holds, or than there is time for."""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

from keyop.look.records import Accept, Found, Reader

# A request looks no longer for what fits a filter, and says where to go on.
LOOK_S = 1.0
# Records may have megabytes each.
PAGE_BYTES = 4 << 20
_FIRST_STEP_BYTES = 64 << 10
_LONGEST_STEP_BYTES = 1 << 20


class Page(NamedTuple):
    """What was found.

    ``next`` is where a page of what follows begins; before ``previous`` there may be older ones
    that were not looked at, None where there are none. ``more`` tells whether the search was
    stopped before its end by one of the limits.
    """

    shown: list[Found]
    previous: int | None
    next: int
    more: bool


def page_from(reader: Reader, begin: int, end: int, limit: int, accept: Accept) -> Page:
    """Return the first accepted ones between two offsets.

    Raises:
        StorageError: the channel cannot be read.
    """
    shown: list[Found] = []
    size, behind, until = 0, begin, monotonic() + LOOK_S
    for found in reader.read(begin, end):
        if accept(found):
            size += len(found.line)
            if shown and (len(shown) >= limit or size > PAGE_BYTES):
                return Page(shown, begin, behind, True)
            shown.append(found)
        behind = found.end
        if monotonic() > until and behind < end:
            return Page(shown, begin, behind, True)
    return Page(shown, begin, behind, False)


def page_before(reader: Reader, start: int, end: int, limit: int, accept: Accept) -> Page:
    """Return the last accepted ones between two offsets, which are looked for from the end.

    Raises:
        StorageError: the channel cannot be read.
    """
    newest_first: list[Found] = []
    size, high, step, until = 0, end, _FIRST_STEP_BYTES, monotonic() + LOOK_S
    while high > start:
        low = max(start, reader.resolve(max(start, high - step)))
        if low >= high:  # retention came by
            return Page(newest_first[::-1], None, end, False)
        for found in reversed([each for each in reader.read(low, high) if accept(each)]):
            size += len(found.line)
            if newest_first and (len(newest_first) >= limit or size > PAGE_BYTES):
                return Page(newest_first[::-1], newest_first[-1].offset, end, True)
            newest_first.append(found)
        high, step = low, min(2 * step, _LONGEST_STEP_BYTES)
        if monotonic() > until and high > start:
            return Page(newest_first[::-1], high, end, True)
    return Page(newest_first[::-1], None, end, False)
