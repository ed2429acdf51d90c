"""Which message ids a channel has seen lately.

The log is the truth: a channel's window is filled from the tail of its log when it is first asked
for, and follows the log from there, so that it holds what every process appended and survives a
restart. Nothing is kept for channels that nobody asks about.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from gevent.event import Event
from gevent.lock import Semaphore

from keyop.clock import seconds_left
from keyop.decode import record_id
from keyop.errors import PublishTimeoutError, StorageError
from keyop.fs import FileSystem
from keyop.pace import Pace
from keyop.storage.cursor import Cursor, Lines
from keyop.storage.segment import list_segments

# At most so much of a log's tail is read to fill a window.
TAIL_BYTES = 64 << 20
# So many windows' worth of ids are kept over all channels; the channels least recently asked
# about are forgotten first, and filled from their logs again when they are needed.
_FULL_WINDOWS = 8
# The windows asked last keep their descriptors; of any other, it is opened when needed.
_OPEN_WINDOWS = 64
# How often it is looked whether the log goes on behind a gap.
_LOOK_AROUND_S = 1.0


# Tells whether a log is known to end at an offset.
IsEnd = Callable[[int], bool]


class Held:
    """How many ids all windows hold."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Window:
    """The ids seen last in one channel, least recently used first.

    Args:
        is_end: spares reading the log where it is known to end.
        held: where its ids are counted.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        size: int,
        max_line_bytes: int,
        is_end: IsEnd = lambda offset: False,
        held: Held | None = None,
    ) -> None:
        self._fs = fs
        self._directory = directory
        self._size = size
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._is_end = is_end
        self._held = held or Held()
        self._cursor = Cursor(fs, directory, max_line_bytes)
        self._filled = False
        # Lines that were read and are still to be looked at.
        self._chunk: Iterator[bytes] = iter(())
        self._following: Any = Semaphore(1)
        self._looked_around = 0.0
        self.pending: dict[str, Event] = {}
        # Written to a log that failed then: whether they are on the disk is not known.
        self._doubtful: set[str] = set()

    def refresh(self) -> None:
        """Take in what was appended since the last look, by whichever process.

        Raises:
            OSError: the log cannot be read.
        """
        with self._following:  # reading the tail lets others run
            self._follow()

    def wrote(self, ids: Iterable[str], size: int, end: int) -> bool:
        """Take in what this process has just appended, without reading it again.

        Returns:
            Whether the log need not be read: it must after a roll and behind what others
            appended, which :meth:`refresh` takes in.

        Args:
            size: of the appended records, in bytes, which end at the offset ``end``.
        """
        ids = list(ids)
        self._doubtful.difference_update(ids)
        # Whatever the log is read for: retention may have dropped them by then.
        for message_id in ids:
            self._add(message_id)
        return self._cursor.skip_to(end - size, end)

    def contains(self, message_id: str) -> bool:
        """Tell whether the id was seen, as of the last refresh; if so, it counts as used now."""
        if message_id not in self._ids or message_id in self._doubtful:
            return False
        self._ids.move_to_end(message_id)
        return True

    def doubt(self, message_ids: Iterable[str]) -> None:
        """These were written, and the log has failed before they were on the disk for certain.

        Whoever tries again writes them again: better twice than not at all.
        """
        self._doubtful.update(message_ids)

    def claim(self, message_id: str, deadline: float | None, claims: ExitStack) -> bool:
        """Return whether the id is new, and then make it the caller's to write.

        Who comes second with an id that is being written waits for the outcome. The claim ends
        with ``claims``; by then the record is in the log, or the id is free again.

        Args:
            deadline: in ``time.monotonic()`` seconds.

        Raises:
            PublishTimeoutError: the deadline passed while another greenlet wrote the id.
            StorageError: the log cannot be read.
        """
        while True:
            # First: what is being written may be in the log, and not on the disk yet.
            writing = self.pending.get(message_id)
            if writing is None:
                try:
                    self.refresh()
                except OSError as error:
                    raise StorageError(f"{self._directory} cannot be read: {error}") from error
                if self.contains(message_id):
                    return False
                if message_id not in self.pending:  # nobody came while the log was read
                    break
                continue
            if not writing.wait(seconds_left(deadline)):
                raise PublishTimeoutError(
                    f"{message_id!r} is being written by another greenlet",
                    written=self._is_there(message_id),
                )
        claims.callback(self.end_claims, [message_id], self.begin_claim(message_id))
        return True

    def _is_there(self, message_id: str) -> bool:
        try:
            self.refresh()
        except OSError:  # unknown; who tries again finds out
            return False
        return self.contains(message_id)

    def begin_claim(self, message_id: str, outcome: Event | None = None) -> Event:
        """Tell others that the id is being written; return what they wait for.

        Args:
            outcome: shared with other ids that are written at the same time.
        """
        outcome = self.pending[message_id] = outcome or Event()
        return outcome

    def end_claims(self, message_ids: Iterable[str], outcome: Event) -> None:
        """These are in the log, or free again."""
        for message_id in message_ids:
            del self.pending[message_id]
        outcome.set()

    def _follow(self) -> None:
        if not self._filled:
            segments = list_segments(self._fs, self._directory)
            if not segments:
                return
            self._cursor.open(max(segments[0].start, segments[-1].end - TAIL_BYTES))
            self._filled = True
        pace = Pace()
        look_around = time.monotonic() - self._looked_around > _LOOK_AROUND_S
        if look_around:
            self._looked_around = time.monotonic()
        while True:
            # What is left of the last chunk first: whoever read it may have been stopped since.
            for line in self._chunk:
                message_id = record_id(line)
                if message_id is not None:
                    self._add(message_id)
                pace.step()
            if not look_around and self._is_end(self._cursor.position):
                return
            found = self._cursor.read(look_around)
            if found is None:
                return
            if isinstance(found, Lines):
                self._chunk = iter(found.lines)
            pace.step()

    def close(self) -> None:
        """Give the descriptor back."""
        self._cursor.close()

    def leave(self) -> None:
        """Count no more; whoever uses it just now goes on with what it holds."""
        self.close()
        self._held.count -= len(self._ids)
        self._held = Held()

    def _add(self, message_id: str) -> None:
        before = len(self._ids)
        self._ids[message_id] = None
        self._ids.move_to_end(message_id)
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)
        self._held.count += len(self._ids) - before


class Dedup:
    """The windows of all channels of one messenger."""

    def __init__(self, fs: FileSystem, size: int, max_line_bytes: int) -> None:
        self._fs = fs
        self._size = size
        self._max_line_bytes = max_line_bytes
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._held = Held()

    def window(self, directory: str, is_end: IsEnd = lambda offset: False) -> Window:
        """Return the window of the channel in this directory.

        Args:
            is_end: whether the log there is known to end at an offset, so that reading it is
                spared.
        """
        window = self._windows.get(directory)
        if window is None:
            window = Window(
                self._fs, directory, self._size, self._max_line_bytes, is_end, self._held
            )
            self._windows[directory] = window
        self._windows.move_to_end(directory)
        while self._held.count > self._size * _FULL_WINDOWS:
            oldest = next(iter(self._windows))
            if oldest == directory or self._windows[oldest].pending:
                break
            self._windows.pop(oldest).leave()
        if len(self._windows) > _OPEN_WINDOWS:
            list(self._windows.values())[-_OPEN_WINDOWS - 1].close()
        return window

    def close(self) -> None:
        """Give all descriptors back."""
        for window in self._windows.values():
            window.close()
