"""How many dead letters wait, and some of them, without reading all of them each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from keyop.deadletter_view import Record
from keyop.decode import record_id
from keyop.done import DoneFile
from keyop.inspection import DataDirectory
from keyop.look.records import Reader
from keyop.names import dead_letter_channel

# So many places are remembered at which somebody may go on reading.
_MAX_PLACES = 1000


class Page(NamedTuple):
    """Some that wait, oldest first, and whether there are more behind them."""

    letters: list[Record]
    more: bool


class _Counted(NamedTuple):
    start: int
    end: int
    done: object
    waiting: int


class WaitingLetters:
    """Those of a data directory that were neither sent again nor put away."""

    def __init__(self, directory: DataDirectory, max_record_bytes: int) -> None:
        self._directory = directory
        self._max_record_bytes = max_record_bytes
        self._counted: dict[str, _Counted] = {}
        # Where the letters end after which pages were asked for.
        self._places: dict[tuple[str, str], int] = {}

    def count(self, channel: str, start: int, end: int) -> int:
        """Return how many there are of a channel; only what has come since is read.

        Args:
            start, end: the bounds of its dead-letter channel, as seen just now.

        Raises:
            StorageError: they cannot be read.
        """
        done = self._done_file(channel)
        stamp = _stamp(done.path)
        known = self._counted.get(channel)
        if known is None or (known.start, known.done) != (start, stamp) or known.end > end:
            known = _Counted(start, start, stamp, 0)
        if known.end < end:
            gone = self._gone(done)
            new = sum(each.id not in gone for each, _ in self._records(channel, known.end, end))
            known = known._replace(end=end, waiting=known.waiting + new)
        self._counted[channel] = known
        return known.waiting

    def page(self, channel: str, after: str, limit: int, max_bytes: int) -> Page:
        """Return those behind one of them, which may be done with by now.

        Args:
            after: its id; empty, or one that is not there, begins with the oldest.
            max_bytes: no more than so much is returned, unless it is one alone.

        Raises:
            StorageError: they cannot be read.
        """
        begin = self._behind(channel, after) if after else 0
        gone = self._gone(self._done_file(channel))
        letters: list[Record] = []
        size = behind = 0
        for each, end in self._records(channel, begin):
            if each.id in gone:
                continue
            size += len(each.line)
            if letters and (len(letters) >= limit or size > max_bytes):
                self._remember(channel, letters[-1].id, behind)
                return Page(letters, True)
            letters.append(each)
            behind = end
        return Page(letters, False)

    def _behind(self, channel: str, wanted: str) -> int:
        place = self._places.get((channel, wanted))
        if place is None:
            ends = (end for each, end in self._records(channel, 0) if each.id == wanted)
            place = next(ends, 0)
            self._remember(channel, wanted, place)
        return place

    def _remember(self, channel: str, message_id: str, place: int) -> None:
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        self._places[channel, message_id] = place

    def _records(
        self, channel: str, begin: int, end: int | None = None
    ) -> Iterator[tuple[Record, int]]:
        """Yield each that is whole, done with or not, and where it ends."""
        name = dead_letter_channel(channel)
        with Reader(self._directory, name, self._max_record_bytes, known=True) as reader:
            for found in reader.read(begin, end):
                message_id = record_id(found.line)
                if message_id is not None:
                    yield Record(message_id, found.offset, found.line), found.end

    def _done_file(self, channel: str) -> DoneFile:
        directory = self._directory
        return DoneFile(directory.fs, directory.channel_directory(dead_letter_channel(channel)))

    def _gone(self, done: DoneFile) -> set[str]:
        with self._directory.reading():
            return done.read()


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:  # nothing is done with yet
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
