"""The dead letters of a channel: looking through them, sending them again, putting them away.

:mod:`keyop.deadletter` writes them. Nothing is deleted here: what is done with is remembered by
its id and left out from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keyop.deadletter import max_dead_letter_bytes
from keyop.deadletter_view import DeadLetter, Details, Record, read_details, read_letter
from keyop.decode import record_id
from keyop.done import DoneFile
from keyop.errors import StorageError
from keyop.inspection import DataDirectory
from keyop.names import (
    DEAD_LETTER_SUFFIX,
    check_publish_channel,
    dead_letter_channel,
    is_dead_letter,
)
from keyop.pace import Pace
from keyop.salvage import salvage
from keyop.storage.cursor import Cursor, Lines, Skipped

# Of an id that is abbreviated, at least so much is given.
MIN_PREFIX_CHARACTERS = 4
_MAX_CANDIDATES = 5


@dataclass(frozen=True)
class Page:
    """Some of the dead letters, oldest first. ``total`` is how many there are.

    ``unreadable`` counts lines of the dead-letter channel that are no records.
    """

    letters: tuple[DeadLetter, ...]
    total: int
    unreadable: int


class DeadLetters:
    """Those of one channel that are not done with.

    Args:
        channel: the channel in which messages failed, or its dead-letter channel.
        max_record_bytes: ``storage.max_record_bytes``.

    Raises:
        StorageError: there is no such channel.
        InvalidChannelNameError: that is no channel's name.
    """

    def __init__(self, directory: DataDirectory, channel: str, max_record_bytes: int) -> None:
        self.directory = directory
        self.channel = check_publish_channel(channel.removesuffix(DEAD_LETTER_SUFFIX))
        self.log_channel = dead_letter_channel(self.channel)
        if not {self.channel, self.log_channel} & set(directory.names()):
            raise StorageError(f"there is no channel {self.channel!r} in {directory.path}")
        self.max_record_bytes = max_record_bytes
        self.path = directory.channel_directory(self.log_channel)
        self.done = DoneFile(directory.fs, self.path)
        # Lines that were no records, or longer than is allowed, when last looked at.
        self.unreadable = 0

    # -- looking

    def count(self) -> int:
        """Return how many there are.

        Raises:
            StorageError: the channel cannot be read.
        """
        return sum(1 for _ in self.waiting())

    def page(self, offset: int = 0, limit: int | None = None) -> Page:
        """Return those from ``offset`` on, at most ``limit`` of them.

        Raises:
            StorageError: the channel cannot be read.
        """
        letters: list[DeadLetter] = []
        total = 0
        for record in self.waiting():
            if total >= offset and (limit is None or len(letters) < limit):
                letters.append(read_letter(record, self.channel))
            total += 1
        return Page(tuple(letters), total, self.unreadable)

    def show(self, wanted: str) -> Details:
        """Return one, by its id or the beginning of it.

        Raises:
            StorageError: none has that id, or several begin so; the channel cannot be read.
        """
        (message_id,) = self.resolve([wanted])
        for record in self.waiting():
            if record.id == message_id:
                return read_details(record, self.channel)
        raise StorageError(f"{wanted} was requeued or purged just now")

    def resolve(self, wanted: Sequence[str]) -> list[str]:
        """Return the whole ids of some that may be abbreviated.

        Raises:
            StorageError: one is unknown, is done with, is too short or fits several.
        """
        found: dict[str, list[str]] = {each: [] for each in wanted}
        for each in found:
            if len(each) < MIN_PREFIX_CHARACTERS:
                raise StorageError(f"{each!r} is too short; give 4 characters of the id, or more")
        lengths = {len(each) for each in found}
        for record in self.waiting():
            for length in lengths:
                candidates = found.get(record.id[:length])
                if candidates is not None and length <= len(record.id):
                    candidates.append(record.id)
        return [self._only(each, candidates) for each, candidates in found.items()]

    def _only(self, wanted: str, candidates: list[str]) -> str:
        if len(candidates) == 1 or wanted in candidates:
            return candidates[0] if len(candidates) == 1 else wanted
        if candidates:
            shown = ", ".join(candidates[:_MAX_CANDIDATES])
            more = ", …" if len(candidates) > _MAX_CANDIDATES else ""
            raise StorageError(f"{wanted} is ambiguous: {shown}{more}")
        with self.directory.reading():
            was_there = any(each.startswith(wanted) for each in self.done.read())
        why = "was requeued or purged already" if was_there else "is not there"
        raise StorageError(f"{self.channel}: dead letter {wanted} {why}")

    def waiting(self) -> Iterator[Record]:
        """Yield the records of those that are not done with, oldest first.

        Raises:
            StorageError: the channel cannot be read.
        """
        with self.directory.reading():
            done = self.done.read()
        for record in self.records():
            if record.id not in done:
                yield record

    def records(self) -> Iterator[Record]:
        """Yield all that are in the dead-letter channel, done with or not, oldest first.

        Raises:
            StorageError: the channel cannot be read.
        """
        self.unreadable = 0
        cursor = Cursor(self.directory.fs, self.path, max_dead_letter_bytes(self.max_record_bytes))
        pace = Pace()
        try:
            with self.directory.reading():
                try:
                    cursor.open(0)
                except FileNotFoundError:  # nothing has failed yet
                    return
            while True:
                with self.directory.reading():
                    found = cursor.read(look_around=True)
                if found is None:
                    return
                yield from self._records_in(found)
                pace.step()
        finally:
            cursor.close()

    def _records_in(self, found: Lines | Skipped) -> Iterator[Record]:
        if isinstance(found, Skipped):
            self.unreadable += found.reason != "gap"
            return
        offset = found.start
        for line in found.lines:
            message_id = record_id(line)
            if message_id is not None:
                yield Record(message_id, offset, line)
            else:
                self.unreadable += 1
                for piece in salvage(line):
                    if piece.whole and (message_id := record_id(piece.data)) is not None:
                        yield Record(message_id, offset + piece.start, piece.data)
            offset += len(line) + 1


def channels_with_dead_letters(directory: DataDirectory) -> list[str]:
    """Return the channels that have a dead-letter channel, in order.

    Raises:
        StorageError: the data directory cannot be read.
    """
    return [
        name.removesuffix(DEAD_LETTER_SUFFIX) for name in directory.names() if is_dead_letter(name)
    ]
