"""What many peers read of the same channels: read, checked and encoded once for all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import NamedTuple

from keyop.decode import decode, strip_checksum
from keyop.errors import CorruptRecordError
from keyop.storage.cursor import Lines
from keyop.storage.recent import RecentReads
from keyop.wire.frames import LENGTH_BYTES, MAX_BATCH_RECORDS, encode_batch

# So many pages are kept for the peers that come behind, some 400 KiB each.
SIZE = 32
# A shorter page is looked at faster than it is found.
_LEAST_LINES = 8


class Portion(NamedTuple):
    """Records for one batch, encoded; ``message`` is empty if there is none for the peer."""

    records: int
    message: bytes


class Page:
    """Some lines of a channel that follow each other, and what holds for all of them."""

    def __init__(self, found: Lines) -> None:
        self.start = found.start
        self.lines = found.lines
        self._text = b"\n".join(found.lines)
        self.end = found.start + len(self._text) + 1
        self._longest = max(map(len, found.lines))
        self._sound = _all_sound(found.lines)
        # What the lines before each one take in a batch.
        self._sizes = [0, *accumulate([len(line) + LENGTH_BYTES for line in found.lines])]
        self._portions: dict[tuple[int, int], tuple[int, Portion]] = {}

    def suits(self, marks: Sequence[bytes], max_record_bytes: int) -> bool:
        """Tell whether every line goes as it stands to a peer that can take so much.

        Args:
            marks: what stands in every line that may not be for the peer.
        """
        return (
            self._sound
            and self._longest <= max_record_bytes
            and not any(mark in self._text for mark in marks)
        )

    def portion(self, index: int, room: int) -> tuple[int, Portion]:
        """Return what of the lines from an index on fits into a batch, and the index behind it.

        The lines are spread evenly over as few batches as hold them all.

        Args:
            room: bytes that the batch may have; a larger record comes alone.
        """
        found = self._portions.get((index, room))
        if found is None:
            behind = self._behind(index, room)
            message = encode_batch(self.lines[index:behind])
            found = self._portions[index, room] = behind, Portion(behind - index, message)
        return found

    def _behind(self, index: int, room: int) -> int:
        sizes = self._sizes
        left = sizes[-1] - sizes[index]
        behind = bisect_left(sizes, sizes[index] + ceil(left / ceil(left / room)))
        if sizes[behind] - sizes[index] > room:
            behind -= 1
        return max(index + 1, min(behind, index + MAX_BATCH_RECORDS))

    def length(self, index: int, behind: int) -> int:
        """Return how many bytes of the log the lines between two indices are."""
        size = self._sizes[behind] - self._sizes[index]
        return size - (LENGTH_BYTES - len("\n")) * (behind - index)


def _all_sound(lines: list[bytes]) -> bool:
    try:
        for line in lines:
            if strip_checksum(line) is line:  # it has none, and may be anything
                decode(line)
    except CorruptRecordError:  # or of a version that is not known
        return False
    return True


class Pages(RecentReads[Page]):
    """The pages that were read last, of all channels."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)

    def add(self, directory: str, found: Lines) -> Page | None:
        """Return the page of lines that were just read; None if they are too few for one."""
        if len(found.lines) < _LEAST_LINES:
            return None
        return self.keep(directory, found.start, Page(found))
