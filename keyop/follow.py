"""Reading along: what comes to a channel, for those who keep no position."""

from __future__ import annotations

from types import TracebackType

from gevent.event import Event

from keyop.decode import decode, strip_checksum
from keyop.errors import CorruptRecordError, MessengerClosedError, StorageError
from keyop.pace import Pace
from keyop.storage.cursor import Cursor, Lines
from keyop.storage.log import Log
from keyop.storage.position import Position, check_position, resolve
from keyop.storage.store import Store
from keyop.storage.watch import POLL_S


class Follower:
    """Reads a channel from a position on, and waits at its end. Must be closed.

    It claims nothing: retention and the sweeper take no notice of it. What they take away before
    it was read is passed over.

    Args:
        start: as for ``Messenger.subscribe``.

    Raises:
        StorageError: the channel cannot be read.
        ValueError, TypeError: ``start`` makes no sense.
    """

    def __init__(self, store: Store, log: Log, max_line_bytes: int, start: Position) -> None:
        self._store = store
        self._log = log
        self._woken = Event()
        self._ended = False
        self._pace = Pace()
        check_position(start)
        log.open()
        self._cursor = Cursor(store.fs, log.directory, max_line_bytes)
        try:
            self._cursor.open(resolve(store.fs, log.directory, start, max_line_bytes))
        except OSError as error:
            raise StorageError(f"{log.directory} cannot be read: {error}") from error
        log.readers.events.add(self._woken)
        store.watcher.watch(log.directory, log.readers)

    @property
    def position(self) -> int:
        """The offset up to which it has read."""
        return self._cursor.position

    def read(self, timeout_s: float) -> list[tuple[int, bytes]]:
        """Return records with the offsets behind them, waiting for the first one if need be.

        They come without newline and checksum. What is no record is left out.

        Args:
            timeout_s: how long to wait; nothing is returned then.

        Raises:
            MessengerClosedError: the messenger is closed, or delivers no more.
            StorageError: the channel cannot be read.
        """
        waited_s = 0.0
        look_around = True
        while True:
            if self._ended or self._store.closing.waits.is_set():
                raise MessengerClosedError("the messenger is closed")
            self._woken.clear()
            try:
                found = self._cursor.read(look_around)
            except OSError as error:
                raise StorageError(f"{self._log.directory} cannot be read: {error}") from error
            if isinstance(found, Lines):
                records = _sound(found)
                self._pace.step()
                if records:
                    return records
            elif found is None:
                if waited_s >= timeout_s:
                    return []
                wait_s = min(POLL_S, timeout_s - waited_s)
                look_around = not self._woken.wait(wait_s)
                waited_s += wait_s if look_around else 0.0

    def end(self) -> None:
        """Have ``read`` raise from now on, also one that waits."""
        self._ended = True
        self._woken.set()

    def close(self) -> None:
        """Give back what it holds."""
        self._cursor.close()
        self._log.readers.events.discard(self._woken)
        if not self._log.readers.events:
            self._store.watcher.unwatch(self._log.readers)

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _sound(found: Lines) -> list[tuple[int, bytes]]:
    records = []
    offset = found.start
    for line in found.lines:
        offset += len(line) + 1
        try:
            record = strip_checksum(line)
            decode(record)
        except CorruptRecordError:
            continue
        records.append((offset, record))
    return records
