"""Appending records that exist already to a channel, while other processes may use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import NamedTuple

from keyop.config import Config
from keyop.dedup import Dedup
from keyop.errors import StorageError
from keyop.inspection import DataDirectory
from keyop.storage.environment import LogOptions
from keyop.storage.retention import RetentionOptions
from keyop.storage.store import Store, StoreOptions

TIMEOUT_S = 10.0
# One append, and one fsync, serves so many.
_BATCH_RECORDS = 1024
_BATCH_BYTES = 4 << 20


class Line(NamedTuple):
    """A record to append: its id, and its line with the newline. ``number`` is where it is from."""

    id: str
    data: bytes
    number: int


class Appender:
    """Appends to one channel what its dedup window does not hold. Must be closed.

    Closing is left to ``with``. Nothing is created before the first append.
    """

    def __init__(self, directory: DataDirectory, channel: str, config: Config) -> None:
        storage = config.storage
        options = StoreOptions(LogOptions(storage.segment_bytes, "always"), 0, RetentionOptions())
        # Not opened as a messenger's is: it needs no background work.
        self._store = Store(directory.path, options, directory.fs)
        self._log = self._store.log(channel)
        self._dedup = Dedup(directory.fs, config.dedup.seen_id_lru_size, storage.max_record_bytes)

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self._dedup.close()
        self._store.close(monotonic() + TIMEOUT_S)

    def append(self, lines: Iterable[Line]) -> int:
        """Append those whose ids were not seen lately, on the disk when this returns.

        Returns:
            How many were appended; the others are in the channel already.

        Raises:
            StorageError: the channel cannot be read or written; a beginning of the lines may be
                in it, and trying again leaves that out.
            PublishTimeoutError: somebody held the channel's lock, or the disk was full.
        """
        deadline = monotonic() + TIMEOUT_S
        self._log.open(deadline)
        window = self._dedup.window(self._log.directory, self._log.ends_at)
        try:
            window.refresh()
        except OSError as error:
            raise StorageError(f"{self._log.directory} cannot be read: {error}") from error
        fresh: dict[str, bytes] = {}
        for line in lines:
            if not window.contains(line.id):
                fresh.setdefault(line.id, line.data)
        if fresh:
            self._log.append(b"".join(fresh.values()), deadline)
        return len(fresh)


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Yield records in groups that one append takes."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line.data)
        if len(batch) == _BATCH_RECORDS or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
