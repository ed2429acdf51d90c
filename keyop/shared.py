"""What subscribers of one channel read: once for all of them that keep up."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from keyop.storage.cursor import Lines
from keyop.storage.recent import RecentReads

# So many reads are kept for those who come a little later, 128 KiB each at most, and about three
# times that once they are parsed.
SIZE = 16
# To keep what was parsed costs more than to parse it once, and less than three times.
_LEAST_SHARERS = 4
_SCALARS = frozenset([str, int, float, bool, type(None)])


class SharedLines:
    """Lines that one subscriber has read, with what was parsed of them.

    Each subscriber gets records of its own: a handler may change what it is given.
    """

    __slots__ = ("_records", "_wanted", "end", "lines", "start")

    def __init__(self, found: Lines) -> None:
        self.start = found.start
        self.lines = found.lines
        self.end = found.start + sum(map(len, found.lines)) + len(found.lines)
        # Whether they were read already, so that others are likely to come.
        self._wanted = False
        # By line. None where a copy would cost more than parsing again does.
        self._records: dict[bytes, dict[str, Any] | None] = {}

    def reader(self, read: Callable[[bytes], dict[str, Any]]) -> Callable[[bytes], dict[str, Any]]:
        """Return what does as ``read`` does for these lines, faster from the third reader on."""
        if not self._wanted:
            self._wanted = True
            return read
        records = self._records

        def read_shared(line: bytes) -> dict[str, Any]:
            try:
                record = records[line]
            except KeyError:
                fields = read(line)
                payload = fields["payload"]
                if _is_flat(payload):  # what is kept is nobody's
                    records[line] = {**fields, "payload": copy(payload)}
                else:
                    records[line] = None
                return fields
            if record is None:
                return read(line)
            fields = record.copy()
            payload = fields["payload"]
            if type(payload) is dict:
                fields["payload"] = payload.copy()
            return fields

        return read_shared


def _is_flat(payload: Any) -> bool:
    """Tell whether a shallow copy shares nothing that can be changed."""
    if type(payload) is dict:
        return _SCALARS.issuperset(map(type, payload.values()))
    return type(payload) in _SCALARS


class SharedReads(RecentReads[SharedLines]):
    """The reads of all channels that were made last, and whose they are."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        # Of each channel, those who would read the same: to share with nobody costs for nothing.
        self._sharers: dict[str, set[object]] = {}
        # Of each channel, where one of them found its end last, and after which wake-up.
        self._ends: dict[str, tuple[int, int]] = {}

    def join(self, directory: str, sharer: object) -> None:
        """Somebody begins to read a channel."""
        self._sharers.setdefault(directory, set()).add(sharer)

    def leave(self, directory: str, sharer: object) -> None:
        """Somebody reads a channel no more; nothing to do if it did not."""
        sharers = self._sharers.get(directory, set())
        sharers.discard(sharer)
        if not sharers:
            self._sharers.pop(directory, None)
            self._ends.pop(directory, None)

    def are_many(self, directory: str) -> bool:
        """Tell whether so many read the channel that to share pays."""
        return len(self._sharers.get(directory, ())) >= _LEAST_SHARERS

    def is_end(self, directory: str, position: int, wakes: int) -> bool:
        """Tell whether one has found nothing at this position, and nobody was woken since."""
        return self._ends.get(directory) == (position, wakes)

    def found_end(self, directory: str, position: int, wakes: int) -> None:
        """Somebody has found nothing at this position after so many wake-ups."""
        self._ends[directory] = position, wakes

    def add(self, directory: str, found: Lines) -> SharedLines:
        """Keep what was just read."""
        return self.keep(directory, found.start, SharedLines(found))
