"""The head of a channel: its active segment, and how a process goes over to another one.

Going over is file operations under the channel's lock, in a thread that the lock is handed to.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from keyop.errors import StorageError
from keyop.fs import FileSystem
from keyop.offload import Job
from keyop.storage.active import ActiveSegment, Round
from keyop.storage.environment import Environment
from keyop.storage.locks import LOCK_NAME, ChannelLock
from keyop.storage.recovery import (
    Opened,
    open_clean,
    open_segment,
    recover,
    start_after_failure,
)


class Head:
    """The active segment of one channel as this process knows it; None while it is not open.

    What begins with ``start`` needs the channel's lock, which the job gives back: whatever becomes
    of the caller, the job's segment is the active one from then on.

    Args:
        on_sync_failed, on_synced: as for :class:`ActiveSegment`.
        directory_is_durable: whether the channel's directory was there when its parent was synced.
    """

    def __init__(
        self,
        channel: str,
        directory: str,
        offsets_directory: str,
        environment: Environment,
        on_sync_failed: Callable[[Exception, Round | None], None],
        on_synced: Callable[[], None],
        directory_is_durable: bool,
    ) -> None:
        self.segment: ActiveSegment | None = None
        self.channel = channel
        self.directory = directory
        self._offsets_directory = offsets_directory
        self._fs, options, threads, self._closing, self._opened = environment
        self._durable = options.durable
        self._files = threads.files
        self.lock = ChannelLock(self._fs, f"{directory}/{LOCK_NAME}", threads.locks)
        self._on_sync_failed = on_sync_failed
        self._on_synced = on_synced
        self._directory_made = self._directory_is_assumed = directory_is_durable
        # Where the segment begins whose directory entry this process has synced.
        self._durable_start = -1

    def make_directory(self, timeout_s: float | None) -> bool:
        """Create the channel's directory where it is missing; return whether it was in time.

        Raises:
            OSError: it cannot be created.
        """
        if not self._directory_made:
            data_dir = os.path.dirname(os.path.dirname(self.directory))
            job = self._files.submit(self._fs.make_dirs, self.directory, self._durable, data_dir)
            if not job.wait(timeout_s):
                return False
            if job.error is not None:
                raise job.error
            self._directory_made = True
        return True

    def open_lock(self) -> bool:
        """Open the lock file; return False if the directory has gone and must be made again.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            self.lock.open()
        except FileNotFoundError:
            if not self._directory_is_assumed:
                raise
            self._directory_made = self._directory_is_assumed = False
            self._durable_start = -1
            return False
        return True

    def open_clean(self) -> bool:
        """Open the channel here, under the lock, which stays held; tell whether that was enough.

        If not, nothing has changed, and recovery, in a thread, meets what is in the way.
        """
        try:
            opened = open_clean(*self._to_open())
            if opened is None:
                return False
            opened = self._announce(opened)
        except (OSError, StorageError):
            return False
        self._go_on_in(opened)
        return True

    def start_recovery(self) -> Job:
        """Open the channel, whatever a crash has left."""
        self._settle()
        args = self._to_open()
        return self._hand_over(self.submit(lambda: self._announce(recover(*args))))

    def start_following(self, hint: bytes) -> Job:
        """Go over to the segment that another process has begun."""
        assert self.segment is not None
        if not hint.isdigit() or int(hint) < self.segment.start:
            return self.start_recovery()
        self._settle()
        args = (self._fs, self.directory, int(hint), self._durable)
        return self._hand_over(self.submit(open_segment, *args))

    def start_roll(self) -> Job:
        """Seal the active segment, synced, and begin the next one."""
        old = self.segment
        assert old is not None

        def roll() -> Opened:
            old.fdatasync()
            start = old.start + old.size
            self.lock.write_hint(start)
            return open_segment(self._fs, self.directory, start, self._durable)

        return self._hand_over(old.cover(self.submit(roll)))

    def start_after_failure(self, failed_start: int) -> Job:
        """Begin a segment behind one whose tail on the disk is unknown."""
        args = (self._fs, self.directory, failed_start, self._durable)
        return self._hand_over(self.submit(lambda: self._announce(start_after_failure(*args))))

    def submit(self, function: Callable[..., object], *args: object) -> Job:
        """Start a call in a thread, under the lock, which is given back if that cannot be."""
        try:
            return self._files.submit(function, *args)
        except BaseException:  # killed while every thread was busy: nothing holds the lock
            self.lock.release()
            raise

    def refused(self, error: OSError, what: str) -> StorageError:
        """Return what tells a user that the file system has refused something."""
        path = error.filename or self.directory
        return StorageError(f"channel {self.channel} cannot be {what}: {path}: {error.strerror}")

    def close(self, error: Exception) -> None:
        """Give descriptors back. What still waits for a sync gets the error.

        A sync or a lock that hangs keeps its own descriptor until it returns.
        """
        segment, self.segment = self.segment, None
        if segment is not None:
            self._durable_start = segment.start if segment.entry_is_durable else -1
            segment.abandon_rounds(error)
            segment.release()
        self.lock.close()

    def _hand_over(self, job: Job) -> Job:
        def finished(job: Job) -> None:
            try:
                if job.error is None and self._closing.writes.is_set():
                    self._fs.close(job.value.fd)
                elif job.error is None:
                    self._go_on_in(job.value)
            finally:
                self.lock.release()

        job.then(finished)
        return job

    def _go_on_in(self, opened: Opened) -> None:
        left = self.segment
        self.segment = ActiveSegment(
            self._fs, self.directory, opened, self._on_sync_failed, self._on_synced
        )
        if left is not None:
            left.release()
        else:
            self._opened.set()

    def _to_open(self) -> tuple[FileSystem, str, str, bool, int]:
        return (
            self._fs,
            self.directory,
            self._offsets_directory,
            self._durable,
            self._durable_start,
        )

    def _announce(self, opened: Opened) -> Opened:
        """Write the listed segment into the lock file, so that nobody follows a stale one."""
        try:
            if self.lock.read_hint() != b"%020d" % opened.start:
                self.lock.write_hint(opened.start)
        except BaseException:
            self._fs.close(opened.fd)
            raise
        return opened

    def _settle(self) -> None:
        """Sync what was written to the segment that is being left."""
        segment = self.segment
        if segment is not None and segment.dirty and self._durable:
            try:
                segment.sync(self._files)
            except BaseException:
                self.lock.release()
                raise
