"""A channel's log, for writing.

Any number of processes may append to one channel; each append happens under the channel's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from keyop.errors import (
    LogFailedError,
    MessengerClosedError,
)
from keyop.storage.active import ActiveSegment, Round
from keyop.storage.careful import CarefulAppend
from keyop.storage.environment import Environment
from keyop.storage.failstop import FailStop
from keyop.storage.groupcommit import GroupCommit
from keyop.storage.head import Head
from keyop.storage.locks import HINT_BYTES, LOCK_RELEASE, LOCK_TRY
from keyop.storage.readers import Readers
from keyop.wakeup import Wakeup

T = TypeVar("T")

_SEEK_END = os.SEEK_END


class Log:
    """The writing side of one channel. Opened by its first use, closed by its owner.

    Args:
        make_room: called before descriptors are opened; may wait.
        unsynced: where this log puts itself when there is something to sync.
        directory_is_durable: whether the channel's directory was there when its parent was synced.
    """

    def __init__(
        self,
        channel: str,
        directory: str,
        offsets_directory: str,
        environment: Environment,
        make_room: Callable[[], None],
        unsynced: set[Log],
        directory_is_durable: bool,
    ) -> None:
        fs, options = environment.fs, environment.options
        self.channel = channel
        self.directory = directory
        self.offsets_directory = offsets_directory
        self.readers = Readers(self.has_foreign_news)
        # For people: records that this process has published.
        self.published = 0
        self._segment_bytes = options.segment_bytes
        self._durable = options.durable
        self._always = options.sync_policy == "always"
        self._write, self._lseek, self._flock = fs.write, fs.lseek, fs.flock
        self._unsynced = unsynced
        wanted = Wakeup()
        self._head = Head(
            channel,
            directory,
            offsets_directory,
            environment,
            self._sync_failed,
            wanted.set,
            directory_is_durable,
        )
        self._lock = self._head.lock
        self._fail_stop = FailStop(self._head)
        self._group = GroupCommit(self._head, self._fail_stop, wanted, environment.threads.files)
        self._careful = CarefulAppend(
            environment,
            self._head,
            self._fail_stop,
            self._group,
            self.readers,
            make_room,
            self._wrote,
        )
        self._looked_at: object = None

    # -- what it is

    @property
    def is_open(self) -> bool:
        """Whether it holds descriptors."""
        return self._head.segment is not None

    @property
    def waits(self) -> int:
        """How often a publisher of this process had to wait for room on the disk."""
        return self._careful.room.waits

    @property
    def failure(self) -> str | None:
        """Why the log takes no more records, or None."""
        return self._fail_stop.failure

    @property
    def end(self) -> int:
        """The offset one past the last byte of the active segment, as this process last saw it."""
        segment = self._head.segment
        return segment.start + segment.size if segment is not None else 0

    def active_since(self, start: int) -> bool:
        """Tell whether the segment that begins at this offset is known to be the active one."""
        return self._head.segment is not None and self._lock.hint[:HINT_BYTES] == b"%020d" % start

    def has_foreign_news(self) -> bool:
        """Tell whether another process may have appended: what is there is not all ours."""
        segment = self._head.segment
        if segment is None:
            return True
        try:
            self._lock.map_hint()
            if self._lock.hint[:HINT_BYTES] != segment.hint:
                return True
            return self._lseek(segment.fd, 0, _SEEK_END) != segment.size
        except OSError:
            return True

    def ends_at(self, offset: int) -> bool:
        """Tell whether nothing is known to be behind this offset, or may be of other processes."""
        segment = self._head.segment
        return (
            segment is not None
            and offset == segment.start + segment.size
            and not self.has_foreign_news()
        )

    @property
    def unsynced(self) -> ActiveSegment | None:
        """The segment, if bytes were written to it that no sync under way covers."""
        segment = self._head.segment
        if segment is None or not segment.dirty or self._fail_stop.failure is not None:
            return None
        return segment

    def has_grown(self) -> bool:
        """Tell whether the log may have grown since this was asked last, by whichever process."""
        segment, lock = self._head.segment, self._lock
        if segment is None:
            return True
        try:
            lock.map_hint()
            seen = (lock.hint[:HINT_BYTES], self._lseek(segment.fd, 0, _SEEK_END))
        except OSError:
            return True
        before, self._looked_at = self._looked_at, seen
        return seen != before

    # -- opening

    def open(self, deadline: float | None = None) -> None:
        """Open the channel, creating it where it is missing, and recover it.

        Raises:
            StorageError: it cannot be opened, or two segments overlap.
            PublishTimeoutError: the deadline passed while another process held the lock.
        """
        while self._head.segment is None:
            self._careful.acquire(deadline, 0, to_append=False)
            if self._head.segment is None and not self._head.open_clean():
                self._careful.finish(self._head.start_recovery(), deadline, 0)
            else:
                self._lock.release()
        try:
            self._lock.map_hint()
        except OSError as error:
            raise self._head.refused(error, "opened") from error

    def run_locked(
        self,
        function: Callable[[], T],
        undo: Callable[[T], None],
        deadline: float | None = None,
    ) -> T:
        """Return ``function()``, called in a thread while this channel's lock is held.

        Args:
            undo: called with the function's value if the caller was killed while waiting for it.

        Raises:
            StorageError: the lock file cannot be opened or locked.
            PublishTimeoutError: the deadline passed while another process held the lock.
            Exception: as the function did.
        """
        self._careful.acquire(deadline, 0, to_append=False)
        job = self._head.submit(function)
        job.then(lambda _: self._lock.release())
        try:
            job.wait()
        except BaseException:
            job.then(lambda job: undo(job.value) if job.error is None else None)
            raise
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value

    # -- appending

    def append(self, data: bytes, deadline: float | None = None) -> int:
        """Append records, as one unit where one segment takes them; return the new end offset.

        One write, one fsync and one wake-up of the readers serve them all, and only the calling
        greenlet waits. Records of others may come between two parts if a roll or a full disk
        divides them; their own order stays, without gaps.

        Args:
            data: encoded records, each one line with its newline.
            deadline: in ``time.monotonic()`` seconds.

        Returns:
            Global byte offset one past the last record. It never decreases, not even when
            retention deletes segments.

        Raises:
            LogFailedError: a write or fsync failed and the tail on disk is unknown; the log
                refuses appends until it is reopened. The records may still be delivered.
            PublishTimeoutError, MessengerClosedError: ``written`` says how many records are in
                the log.
            StorageError: the file system refused; the records that do not fit the log any more
                were cut back.

        Source: format.md, "Opening a log"; fsync rule after Rebello et al., "Can Applications
        Recover from fsync Failures?", ATC 2020.
        """
        # The straight way, without a switch of greenlets: the segment is open, known and has
        # room, the lock is free. Anything else takes the careful way.
        segment, lock = self._head.segment, self._lock
        size = len(data)
        if (
            segment is None
            or lock.taken
            or self._fail_stop.failure is not None
            or segment.size + size > self._segment_bytes
        ):
            return self._careful.append(data, deadline)
        try:
            self._flock(lock.fd, LOCK_TRY)
        except OSError:
            return self._careful.append(data, deadline)
        written, error = -1, None
        try:
            if (
                lock.hint[:HINT_BYTES] == segment.hint
                and self._lseek(segment.fd, 0, _SEEK_END) == segment.size
            ):
                written = 0
                written = self._write(segment.fd, data)
        except OSError as reason:
            error = reason
        try:
            if written != size and written >= 0:
                written, error = self._careful.cut_back(segment, data, 0, size, written, error)
            if written > 0:
                segment.size += written
                if not segment.dirty:
                    self._wrote(segment)
        finally:
            self._flock(lock.fd, LOCK_RELEASE)
        if written != size:
            return self._careful.append(data, deadline, max(0, written), error)
        end = segment.start + segment.size
        if self.readers.events:
            self.readers.wake()
        if self._always:
            awaited = self._group.join(segment)
            self._group.wait(awaited, deadline, data)
        return end

    def confirm(self, count: int, deadline: float | None = None) -> None:
        """Under ``always``: wait until everything that is in the log now is on the disk.

        Args:
            count: how many records of the caller's that concerns, for ``written``.
            deadline: in ``time.monotonic()`` seconds.

        Raises:
            LogFailedError, PublishTimeoutError, MessengerClosedError: as for :meth:`append`.
        """
        segment = self._head.segment
        if not self._always or segment is None:
            return
        if self._fail_stop.failure is not None:
            raise LogFailedError(self._fail_stop.failure)
        if segment.dirty or segment.syncing or segment.awaited:
            awaited = self._group.join(segment)
            self._group.wait(awaited, deadline, b"\n" * count)

    def _wrote(self, segment: ActiveSegment) -> None:
        segment.dirty = True
        self._unsynced.add(self)

    def _sync_failed(self, error: Exception, covered: Round | None) -> None:
        self._fail_stop.sync_failed(error, covered)

    def reopen(self, deadline: float | None = None) -> None:
        """Take records again after a failure, in a new segment; nothing to do without one.

        Raises:
            StorageError: the new segment cannot be made; the log stays failed.
            PublishTimeoutError: the deadline passed.
        """
        self._fail_stop.reopen(deadline)

    # -- closing

    def close(self) -> None:
        """Give descriptors back. What still waits for a sync learns that it will not come.

        A sync or a lock that hangs keeps its own descriptor until it returns. The log may be
        used again, which opens it.
        """
        self._group.close()
        self._fail_stop.close()
        self._head.close(MessengerClosedError(f"{self.channel}: the messenger was closed"))

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, so that closing disturbs nobody."""
        segment = self._head.segment
        return not self._lock.taken and (
            segment is None
            or not ((segment.dirty and self._durable) or segment.syncing or segment.awaited)
        )
