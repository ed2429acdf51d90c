"""What was read last, of all channels, for readers that come to the same place a little later."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class RecentReads(Generic[T]):
    """Some reads, by the channel's directory and the offset where they begin.

    Args:
        size: how many are kept; the oldest goes first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._reads: OrderedDict[tuple[str, int], T] = OrderedDict()

    def find(self, directory: str, position: int) -> T | None:
        """Return what was read of a channel from this position on, if it is here."""
        return self._reads.get((directory, position))

    def keep(self, directory: str, position: int, read: T) -> T:
        """Keep what was just read, and return it."""
        self._reads[directory, position] = read
        if len(self._reads) > self._size:
            self._reads.popitem(last=False)
        return read

    def clear(self) -> None:
        """Keep none of them: those who were to come have come, or will read for themselves."""
        self._reads.clear()
