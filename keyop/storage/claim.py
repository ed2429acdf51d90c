"""A position that is held: the lease that says whose it is, and the file that keeps it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from keyop.errors import OffsetError
from keyop.storage.locks import FileLock
from keyop.storage.log import Log
from keyop.storage.offsets import OffsetFile, lease_path, offset_path, write_offset
from keyop.storage.store import Store

logger = logging.getLogger(__name__)


class Claim:
    """A claim to one position of a channel: a subscriber's, a peer's or a hub's.

    While it is held, nobody else moves the position, here or in another process, and segments
    behind it stay.
    """

    def __init__(self, store: Store, log: Log, position_id: str) -> None:
        self._store = store
        self._log = log
        self._position_id = position_id
        directory = log.offsets_directory
        self._lease = FileLock(store.fs, lease_path(directory, position_id))
        self._file = OffsetFile(
            store.fs, offset_path(directory, position_id), store.unsynced_positions
        )
        # One system call; the position is not yet on the disk. Raises OSError: the old one stays.
        self.save: Callable[[int], None] = self._file.save

    @property
    def path(self) -> str:
        """Where the position is kept."""
        return self._file.path

    @property
    def held(self) -> bool:
        """Whether this object holds the lease."""
        return self._lease.held

    def take(self, start: Callable[[], int], must_exist: bool = False) -> int | None:
        """Take the lease and return the position; None if somebody else holds it.

        All of it happens under the channel's lock, so that no segment goes meanwhile.

        Args:
            start: called in a thread, where there is no position yet, for the offset to begin at.
            must_exist: a position that is not there is an error.

        Raises:
            OffsetError: the position cannot be read or kept, or is gone; nothing is held.
            PublishTimeoutError, StorageError: the channel cannot be locked.
        """
        try:
            offset = self._log.run_locked(lambda: self._take(start, must_exist), self._undo)
        except OSError as error:
            raise OffsetError(
                f"the position of {self._position_id!r} in {self._log.channel!r} cannot be kept: "
                f"{error.filename or self._file.path}: {error.strerror}"
            ) from error
        if offset is not None:
            self._store.positions.add(self._file)
        return offset

    def _take(self, start: Callable[[], int], must_exist: bool) -> int | None:
        self._store.make_offsets_directory(self._log.channel)
        if not self._lease.try_acquire():
            return None
        try:
            offset = self._file.open()
            if offset is None and must_exist:
                raise OffsetError(f"{self._file.path} is gone: somebody unsubscribed")
            if offset is None:
                offset = start()
                write_offset(
                    self._store.fs, self._file.path, offset, self._store.options.log.durable
                )
                self._file.open()
        except BaseException:
            self._lease.release()
            raise
        return offset

    def _undo(self, offset: int | None) -> None:
        """Whoever took it was killed before it could know."""
        if offset is not None:
            self._file.close()
            self._lease.release()

    def sync(self) -> None:
        """Wait until the position that was saved is on the disk, or its sync has failed."""
        self._file.settle(self._store.threads.files)

    def release(self, forget: bool = False) -> OSError | None:
        """Give it back; nothing to do if it is not held.

        Args:
            forget: delete the position.

        Returns:
            Why the position could not be deleted.
        """
        if not self._lease.held:
            return None
        failure = None
        if forget:
            try:
                self._store.fs.unlink(self._file.path)
            except OSError as error:
                failure = error
                logger.error("%s cannot be deleted: %s", self._file.path, error)
        self._store.positions.discard(self._file)
        self._store.unsynced_positions.discard(self._file)
        self._file.close()
        self._lease.release()
        return failure


def remove_position(store: Store, channel: str, position_id: str) -> bool:
    """Delete a position that nobody holds; return False, and change nothing, if somebody does.

    To be called under the channel's lock: otherwise whoever starts just then would find the lease
    taken by somebody who wants only to look.

    Raises:
        OSError: it cannot be deleted.
    """
    directory = store.offsets_directory(channel)
    lease = FileLock(store.fs, lease_path(directory, position_id))
    if not lease.try_acquire():
        return False
    try:
        store.fs.unlink(offset_path(directory, position_id))
        if store.options.log.durable:
            store.fs.fsync_dir(directory)
    except FileNotFoundError:
        pass
    finally:
        lease.release()
    return True
