"""The records of a channel as they lie on the disk, for commands that look and change nothing.

No lock is taken and nothing is written, so whoever owns the data directory is not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import orjson

from keyop.deadletter import max_dead_letter_bytes
from keyop.decode import decode, strip_checksum
from keyop.envelope import PAYLOAD_MARK, UnknownVersionError
from keyop.errors import CorruptRecordError, StorageError
from keyop.inspection import DataDirectory
from keyop.names import check_channel, is_dead_letter
from keyop.pace import Pace
from keyop.rawjson import members
from keyop.salvage import salvage
from keyop.storage.cursor import Cursor, Lines, Skipped
from keyop.storage.position import Position, resolve

_FIRST_STEP_BYTES = 64 << 10
_LONGEST_STEP_BYTES = 4 << 20
# The sweeper may delete a segment between a listing and a look, which listing again shows.
_TRIES = 8

ShowProgress = Callable[[int, int], None]


class Found(NamedTuple):
    """A stretch of a channel: a record, or something that is none, and then why.

    ``line`` has no newline; of what could not be read, or was deleted, it is empty or a part.
    """

    offset: int
    end: int
    line: bytes
    fields: dict[str, Any] | None
    damage: str = ""


Accept = Callable[[Found], bool]


class Reader:
    """Reads a channel from any place on. Must be closed.

    Args:
        known: that there is such a channel has been seen just now.

    Raises:
        StorageError: there is no such channel.
        InvalidChannelNameError: that is no channel's name.
    """

    def __init__(
        self, directory: DataDirectory, channel: str, max_record_bytes: int, known: bool = False
    ) -> None:
        if not known and check_channel(channel) not in directory.names():
            raise StorageError(
                f"there is no channel {channel!r} in {directory.path}; 'keyop channels' lists them"
            )
        self.channel = channel
        self._directory = directory
        self._path = directory.channel_directory(channel)
        self._max_line_bytes = (
            max_dead_letter_bytes(max_record_bytes) if is_dead_letter(channel) else max_record_bytes
        )
        self._cursor = Cursor(directory.fs, self._path, self._max_line_bytes)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._cursor.close()

    def bounds(self) -> tuple[int, int]:
        """Return where the channel begins and ends; both 0 if nothing was ever in it.

        Raises:
            StorageError: it cannot be read.
        """
        with self._directory.reading():
            segments = self._directory.segments(self.channel)
        return (segments[0].start, segments[-1].end) if segments else (0, 0)

    def resolve(self, position: Position) -> int:
        """Return the offset that a position means now, on a record boundary.

        Raises:
            StorageError: the channel cannot be read.
        """
        with self._directory.reading():
            for _ in range(_TRIES):
                try:
                    return resolve(self._directory.fs, self._path, position, self._max_line_bytes)
                except FileNotFoundError:
                    if not self._directory.segments(self.channel):
                        return 0
        raise StorageError(f"{self._path} changes too fast to be read")

    def start_of_last(
        self, count: int, start: int, end: int, accept: Accept | None, progress: ShowProgress
    ) -> int:
        """Return where the last ``count`` accepted records between two offsets begin.

        It is looked for from the end, in steps that grow, so what lies before is not read. Where
        there are fewer, that is ``start``.

        Args:
            accept: which records count; None for all, and for what is damaged.
        """
        offsets: list[int] = []
        high, step = end, _FIRST_STEP_BYTES
        while high > start and len(offsets) < count:
            low = max(start, self.resolve(max(start, high - step)))
            if low >= high:  # retention came by
                break
            found = [each.offset for each in self.read(low, high) if accept is None or accept(each)]
            offsets = (found + offsets)[-count:]
            high, step = low, min(2 * step, _LONGEST_STEP_BYTES)
            progress(end - high, end - start)
        if not count:
            return end
        return offsets[0] if len(offsets) >= count else start

    def read(self, start: int, end: int | None = None) -> Generator[Found, None, None]:
        """Yield what begins from ``start`` on and before ``end``, or to the end of the log.

        Raises:
            StorageError: the channel cannot be read.
        """
        with self._directory.reading():
            try:
                self._cursor.open(start)
            except FileNotFoundError:
                self._cursor.position = start  # looked for again when it is read
        yield from self.read_on(end)

    def read_on(self, end: int | None = None) -> Iterator[Found]:
        """Yield what follows, as :meth:`read` does, from where that stopped at the log's end."""
        pace = Pace()
        while end is None or self._cursor.position < end:
            found = self._read_some()
            if found is None:
                return
            for each in _found_in(found):
                if end is not None and each.offset >= end:
                    return
                yield each
                pace.step()

    def _read_some(self) -> Lines | Skipped | None:
        with self._directory.reading():
            for _ in range(_TRIES):
                try:
                    return self._cursor.read(look_around=True)
                except FileNotFoundError:
                    if not self._directory.segments(self.channel):
                        return None
        raise StorageError(f"{self._path} changes too fast to be read")


def _found_in(found: Lines | Skipped) -> Iterator[Found]:
    if isinstance(found, Skipped):
        if found.start < found.end:  # else a segment that began while it was looked for
            yield Found(found.start, found.end, found.head, None, _WHY[found.reason])
        return
    offset = found.start
    for line in found.lines:
        end = offset + len(line) + 1
        try:
            yield Found(offset, end, line, decode(line))
        except UnknownVersionError as error:
            yield Found(offset, end, line, None, str(error))
        except CorruptRecordError as error:
            yield from _saved(offset, end, line, str(error))
        offset = end


_WHY = {
    "gap": "missing: no segment holds these bytes",
    "oversize": "longer than storage.max_record_bytes allows",
    "torn": "unfinished: its newline is missing",
}


def _saved(offset: int, end: int, line: bytes, why: str) -> Iterator[Found]:
    """Yield the whole records in a damaged line, and the rest."""
    pieces = salvage(line)
    if not pieces:  # an empty line
        yield Found(offset, end, line, None, why)
    for piece in pieces:
        start = offset + piece.start
        stop = start + len(piece.data)
        stop += stop == end - 1  # the newline
        try:
            if piece.whole:
                yield Found(start, stop, piece.data, decode(piece.data))
                continue
            yield Found(start, stop, piece.data, None, why)
        except CorruptRecordError as error:
            yield Found(start, stop, piece.data, None, str(error))


def raw_payload(line: bytes) -> bytes:
    """Return the payload of a record as it is written: no parser makes other numbers of it.

    Args:
        line: of a record that was decoded.
    """
    text = strip_checksum(line)
    cut = text.find(PAYLOAD_MARK)
    payload = text[cut + len(PAYLOAD_MARK) : -1]
    try:
        # The mark stands where it should if what is before it is an object but for its end.
        orjson.loads(text[:cut] + b"}")
        orjson.loads(payload)
    except orjson.JSONDecodeError:  # as other writers write it
        payload = members(text)["payload"]
    return payload
