"""A channel's log, for writing: append, roll, fail-stop, group commit.

Any number of processes may append to one channel; each append happens under the channel's lock.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import gevent
from gevent.event import Event

from keyop.errors import (
    LogFailedError,
    MessengerClosedError,
    PublishTimeoutError,
    StorageError,
)
from keyop.fs import NO_ROOM, FileSystem
from keyop.offload import Job, Offload
from keyop.storage.active import ActiveSegment, Round, SyncFailedError
from keyop.storage.locks import HINT_BYTES, LOCK_RELEASE, LOCK_TRY, ChannelLock, LockTimeoutError
from keyop.storage.readers import Readers
from keyop.storage.recovery import (
    Opened,
    open_clean,
    open_segment,
    recover,
    start_after_failure,
)
from keyop.storage.segment import segment_path
from keyop.wakeup import Wakeup

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOCK_NAME = ".lock"
_SEEK_END = os.SEEK_END
# How often a publisher that waits for room on the disk tries again, and how often that is told of.
_ROOM_POLL_S = 0.1
_TELL_FULL_EVERY_S = 60.0


class LogOptions(NamedTuple):
    """How a log writes. ``segment_bytes`` is the size at which a segment is rolled."""

    segment_bytes: int
    sync_policy: str = "periodic"

    @property
    def durable(self) -> bool:
        """Whether anything has to reach the disk at all."""
        return self.sync_policy != "none"


class LogThreads(NamedTuple):
    """Threads for what blocks. Waiting for a lock never keeps an fsync waiting."""

    files: Offload
    locks: Offload


class Closing(NamedTuple):
    """How a messenger ends: first nobody waits for a full disk any more, then nobody writes."""

    waits: Event
    writes: Event


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
        options: LogOptions,
        fs: FileSystem,
        threads: LogThreads,
        closing: Closing,
        opened: Event,
        make_room: Callable[[], None],
        unsynced: set[Log] | None = None,
        directory_is_durable: bool = False,
    ) -> None:
        self.channel = channel
        self.directory = directory
        self.offsets_directory = offsets_directory
        self.readers = Readers(self.has_foreign_news)
        # For people: records that this process has published, and how often that had to wait for
        # room on the disk.
        self.published = 0
        self.waits = 0
        # When a full disk is told of again, if it still is one.
        self._tell_full_at = 0.0
        self._options = options
        self._segment_bytes = options.segment_bytes
        self._always = options.sync_policy == "always"
        self._straight = True
        self._fs = fs
        self._write, self._lseek, self._pread = fs.write, fs.lseek, fs.pread
        self._flock = fs.flock
        self._files = threads.files
        self._lock = ChannelLock(fs, f"{directory}/{LOCK_NAME}", threads.locks)
        self._closing = closing
        self._opened = opened
        self._make_room = make_room
        self._segment: ActiveSegment | None = None
        self._unsynced: set[Log] = set() if unsynced is None else unsynced
        self._directory_made = self._directory_is_assumed = directory_is_durable
        # Where the segment begins whose directory entry this process has synced.
        self._durable_start = -1
        self._looked_at: object = None
        self._failure: str | None = None
        self._failed_start = -1
        # Those who wait for a sync that failed, until its segment is out of reach.
        self._unfenced: list[Round] = []
        self._wanted = Wakeup()
        self._greenlets: dict[str, gevent.Greenlet[[], None]] = {}

    # -- what it is

    @property
    def is_open(self) -> bool:
        """Whether it holds descriptors."""
        return self._segment is not None

    @property
    def failure(self) -> str | None:
        """Why the log takes no more records, or None."""
        return self._failure

    @property
    def end(self) -> int:
        """The offset one past the last byte of the active segment, as this process last saw it."""
        segment = self._segment
        return segment.start + segment.size if segment is not None else 0

    def active_since(self, start: int) -> bool:
        """Tell whether the segment that begins at this offset is known to be the active one."""
        return self._segment is not None and self._lock.hint[:HINT_BYTES] == b"%020d" % start

    def has_foreign_news(self) -> bool:
        """Tell whether another process may have appended: what is there is not all ours."""
        segment = self._segment
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
        segment = self._segment
        return (
            segment is not None
            and offset == segment.start + segment.size
            and not self.has_foreign_news()
        )

    @property
    def unsynced(self) -> ActiveSegment | None:
        """The segment, if bytes were written to it that no sync under way covers."""
        segment = self._segment
        if segment is None or not segment.dirty or self._failure is not None:
            return None
        return segment

    def has_grown(self) -> bool:
        """Tell whether the log may have grown since this was asked last, by whichever process."""
        segment, lock = self._segment, self._lock
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
        while self._segment is None:
            self._acquire(deadline, 0, to_append=False)
            if self._segment is None and not self._open_clean():
                self._finish(self._start_recovery(), deadline, 0)
            else:
                self._lock.release()
        try:
            self._lock.map_hint()
        except OSError as error:
            raise self._refused(error, "opened") from error

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
        self._acquire(deadline, 0, to_append=False)
        job = self._submit(function)
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
        segment, lock = self._segment, self._lock
        size = len(data)
        if (
            segment is None
            or lock.taken
            or not self._straight
            or segment.size + size > self._segment_bytes
        ):
            return self._append_carefully(data, deadline)
        try:
            self._flock(lock.fd, LOCK_TRY)
        except OSError:
            return self._append_carefully(data, deadline)
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
                written, error = self._cut_back(segment, data, 0, size, written, error)
            if written > 0:
                segment.size += written
                if not segment.dirty:
                    segment.dirty = True
                    self._unsynced.add(self)
        finally:
            self._flock(lock.fd, LOCK_RELEASE)
        if written != size:
            return self._append_carefully(data, deadline, max(0, written), error)
        end = segment.start + segment.size
        if self.readers.events:
            self.readers.wake()
        if self._always:
            awaited = segment.join_round()
            self._wanted.set()
            self._await(awaited, deadline, data)
        return end

    def confirm(self, count: int, deadline: float | None = None) -> None:
        """Under ``always``: wait until everything that is in the log now is on the disk.

        Args:
            count: how many records of the caller's that concerns, for ``written``.
            deadline: in ``time.monotonic()`` seconds.

        Raises:
            LogFailedError, PublishTimeoutError, MessengerClosedError: as for :meth:`append`.
        """
        segment = self._segment
        if not self._always or segment is None:
            return
        if self._failure is not None:
            raise LogFailedError(self._failure)
        if segment.dirty or segment.syncing or segment.awaited:
            awaited = segment.join_round()
            self._wanted.set()
            self._await(awaited, deadline, b"\n" * count)

    def _append_carefully(
        self, data: bytes, deadline: float | None, done: int = 0, error: OSError | None = None
    ) -> int:
        """Append what is left of ``data`` from ``done`` on, whatever stands in the way."""
        size = len(data)
        rounds: list[Round] = []
        if done and self._always and self._segment is not None:
            rounds.append(self._segment.join_round())
        end, waited = 0, False
        known = self._segment is not None
        while True:
            if done and self.readers.events:
                self.readers.wake()
            if done == size:
                break
            count = done and data.count(b"\n", 0, done)
            if error is not None:
                self._wait_after(error, deadline, count)
                waited = True
            self._acquire(deadline, count)
            fits = self._prepare(data, done, deadline)
            if not fits:
                continue
            segment = self._segment
            assert segment is not None
            error = None
            try:
                if known:  # not where a channel is opened for one message, as thousands may be
                    self._lock.map_hint()
                written = self._write(segment.fd, memoryview(data)[done : done + fits])
            except OSError as reason:
                written, error = 0, reason
            if written != fits:
                written, error = self._cut_back(segment, data, done, fits, written, error)
            if written:
                if waited and self._tell_full_at:
                    self._tell_full_at = 0.0
                    logger.warning("%s: there is room on the disk again", self.channel)
                done += written
                segment.size += written
                segment.dirty = True
                self._unsynced.add(self)
                end = segment.start + segment.size
                if self._always:
                    awaited = segment.join_round()
                    if awaited not in rounds:
                        rounds.append(awaited)
                    self._wanted.set()
            self._lock.release()
        for awaited in rounds:
            self._await(awaited, deadline, data)
        return end

    def _acquire(self, deadline: float | None, written: int, to_append: bool = True) -> None:
        while True:
            try:
                if self._lock.fd < 0:
                    self._make_room()
                    if not self._directory_made:
                        self._files.run(self._make_directory)
                        self._directory_made = True
                    if self._closing.writes.is_set():  # close() has overtaken, and closed it
                        raise MessengerClosedError(
                            f"{self.channel}: the messenger was closed", written
                        )
                    self._lock.open()
                self._lock.acquire(deadline)
                break
            except LockTimeoutError:
                raise PublishTimeoutError(
                    f"{self.channel}: another process held the channel's lock until the timeout",
                    written,
                ) from None
            except OSError as error:
                if isinstance(error, FileNotFoundError) and self._directory_is_assumed:
                    self._directory_made = self._directory_is_assumed = False
                    self._durable_start = -1
                    continue  # it was there when the messenger started
                if error.errno not in NO_ROOM:
                    raise self._refused(error, "opened") from error
                self._wait_after(error, deadline, written)
        if self._closing.writes.is_set():
            self._lock.release()
            raise MessengerClosedError(f"{self.channel}: the messenger was closed", written)
        if self._failure is not None and to_append:
            self._lock.release()
            raise LogFailedError(self._failure)

    def _prepare(self, data: bytes, done: int, deadline: float | None) -> int:
        """Make the active segment ready, under the lock.

        Returns:
            How many bytes from ``done`` on fit into it: whole records. 0 if the lock had to be
            given away for that, so that the caller starts again.
        """
        count = done and data.count(b"\n", 0, done)
        opened = self._segment is None and self._open_clean()
        segment = self._segment
        try:
            job = None
            if segment is None:
                job = self._start_recovery()
            elif opened:
                pass  # just now: nobody has written since
            elif (hint := self._lock.read_hint()) != segment.hint:
                job = self._start_following(hint)
            else:
                size = self._lseek(segment.fd, 0, os.SEEK_END)
                if size != segment.size:
                    if size < segment.size or self._pread(segment.fd, 1, size - 1) != b"\n":
                        job = self._start_recovery()
                    else:
                        segment.size = size
                        self.readers.wake()
            if job is None:
                assert segment is not None
                fits = self._fitting(data, done, self._segment_bytes - segment.size)
                if fits:
                    return fits
                if not segment.size:  # a record above the limit gets a segment of its own
                    return data.index(b"\n", done) + 1 - done
                job = self._start_roll(segment)
        except OSError as error:
            self._lock.release()
            raise self._refused(error, "prepared") from error
        self._finish(job, deadline, count)
        return 0

    @staticmethod
    def _fitting(data: bytes, done: int, room: int) -> int:
        if len(data) - done <= room:
            return len(data) - done
        return max(0, data.rfind(b"\n", done, done + max(0, room)) + 1 - done)

    def _cut_back(
        self,
        segment: ActiveSegment,
        data: bytes,
        done: int,
        fits: int,
        written: int,
        error: OSError | None,
    ) -> tuple[int, OSError | None]:
        """After a write that ended early: go on, or cut the part of a record off again.

        Returns:
            How many bytes of whole records stay in the segment, and what went wrong.
        """
        view = memoryview(data)[done : done + fits]
        while error is None and written < fits:
            try:
                written += self._write(segment.fd, view[written:])
            except OSError as reason:
                error = reason
        if error is not None:
            whole = data.rfind(b"\n", done, done + written) + 1 - done if written else 0
            whole = max(0, whole)
            try:
                if self._lseek(segment.fd, 0, os.SEEK_END) != segment.size + whole:
                    self._fs.ftruncate(segment.fd, segment.size + whole)
            except OSError as reason:
                self._fail(reason, "part of a record could not be cut off again")
            written = whole
        return written, error

    def _wait_after(self, error: OSError, deadline: float | None, written: int) -> None:
        """Wait for room after a write that found none; raise for any other error."""
        if self._failure is not None:
            raise LogFailedError(self._failure) from error
        if error.errno not in NO_ROOM:
            raise self._refused(error, "written to") from error
        wait_s = _ROOM_POLL_S
        if deadline is not None:
            wait_s = min(wait_s, deadline - time.monotonic())
            if wait_s <= 0:
                raise PublishTimeoutError(
                    f"{self.channel}: no room on the disk of {self.directory} within the timeout",
                    written,
                ) from error
        self.waits += 1
        now = time.monotonic()
        if now >= self._tell_full_at:
            self._tell_full_at = now + _TELL_FULL_EVERY_S
            logger.warning(
                "%s: no room on the disk of %s: whoever publishes waits until there is some",
                self.channel,
                self.directory,
            )
        if self._closing.waits.wait(wait_s):
            raise MessengerClosedError(
                f"{self.channel}: the messenger was closed while the disk was full", written
            ) from error

    def _await(self, awaited: Round, deadline: float | None, data: bytes) -> None:
        """Wait until ``data``, which is written, is on the disk."""
        if "leader" not in self._greenlets:
            self._spawn("leader", self._lead)
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not awaited.gate.wait(timeout_s):
            raise PublishTimeoutError(
                f"{self.channel}: written, but not confirmed by the disk within the timeout",
                data.count(b"\n"),
            )
        if awaited.error is not None:
            if isinstance(awaited.error, MessengerClosedError):
                raise MessengerClosedError(str(awaited.error), data.count(b"\n"))
            raise LogFailedError(self._failure or str(awaited.error))

    # -- changing segments: file operations in a thread that the lock is handed to

    def _hand_over(self, job: Job) -> Job:
        """Let the job hold the lock: whatever becomes of the caller, its result is taken in."""

        def finished(job: Job) -> None:
            try:
                if job.error is None and self._closing.writes.is_set():
                    self._fs.close(job.value.fd)
                elif job.error is None:
                    self._go_on_in(job.value)
            finally:
                self._lock.release()

        job.then(finished)
        return job

    def _go_on_in(self, opened: Opened) -> None:
        left = self._segment
        self._segment = ActiveSegment(
            self._fs, self.directory, opened, self._sync_failed, self._wanted.set
        )
        if left is not None:
            left.release()
        else:
            self._opened.set()

    def _submit(self, function: Callable[..., object], *args: object) -> Job:
        try:
            return self._files.submit(function, *args)
        except BaseException:  # killed while every thread was busy: nothing holds the lock
            self._lock.release()
            raise

    def _finish(self, job: Job, deadline: float | None, written: int) -> None:
        """Wait for a job that holds the lock.

        Raises:
            StorageError: it failed for another reason than a full disk.
        """
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not job.wait(timeout_s):
            raise PublishTimeoutError(
                f"{self.channel}: the segment could not be made ready within the timeout", written
            )
        if isinstance(job.error, SyncFailedError):
            raise LogFailedError(self._failure or str(job.error)) from job.error
        if isinstance(job.error, OSError):
            self._wait_after(job.error, deadline, written)
        elif job.error is not None:
            raise job.error

    def _start_recovery(self) -> Job:
        self._settle(self._segment)
        args = self._to_open()
        return self._hand_over(self._submit(lambda: self._announce(recover(*args))))

    def _open_clean(self) -> bool:
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

    def _to_open(self) -> tuple[FileSystem, str, str, bool, int]:
        return (
            self._fs,
            self.directory,
            self.offsets_directory,
            self._options.durable,
            self._durable_start,
        )

    def _start_following(self, hint: bytes) -> Job:
        """Go over to the segment that another process has begun."""
        old = self._segment
        assert old is not None
        if not hint.isdigit() or int(hint) < old.start:
            return self._start_recovery()
        self._settle(old)
        args = (self._fs, self.directory, int(hint), self._options.durable)
        return self._hand_over(self._submit(open_segment, *args))

    def _start_roll(self, old: ActiveSegment) -> Job:
        """Seal the active segment, synced, and begin the next one."""

        def roll() -> Opened:
            old.fdatasync()
            start = old.start + old.size
            self._lock.write_hint(start)
            return open_segment(self._fs, self.directory, start, self._options.durable)

        return self._hand_over(old.cover(self._submit(roll)))

    def _announce(self, opened: Opened) -> Opened:
        """Write the listed segment into the lock file, so that nobody follows a stale one."""
        try:
            if self._lock.read_hint() != b"%020d" % opened.start:
                self._lock.write_hint(opened.start)
        except BaseException:
            self._fs.close(opened.fd)
            raise
        return opened

    def _settle(self, segment: ActiveSegment | None) -> None:
        """Sync what was written to a segment that is being left."""
        if segment is not None and segment.dirty and self._options.durable:
            try:
                segment.sync(self._files)
            except BaseException:
                self._lock.release()
                raise

    def _make_directory(self) -> None:
        data_dir = os.path.dirname(os.path.dirname(self.directory))
        self._fs.make_dirs(self.directory, self._options.durable, data_dir)

    def _refused(self, error: OSError, what: str) -> StorageError:
        path = error.filename or self.directory
        return StorageError(f"channel {self.channel} cannot be {what}: {path}: {error.strerror}")

    # -- syncing

    def _lead(self) -> None:
        """Sync for those who wait: one fdatasync for all that have come during the last one.

        When one returns, whoever waited for it goes first, and may write for the next.
        """
        while True:
            self._wanted.wait()
            self._wanted.clear()
            segment = self._segment
            if (
                segment is not None
                and segment.awaited
                and not segment.syncing
                and self._failure is None
            ):
                segment.sync(self._files)

    def _sync_failed(self, error: Exception, covered: Round | None) -> None:
        if covered is not None:
            self._unfenced.append(covered)
        self._fail(error, "fsync failed")
        if "sealer" not in self._greenlets:  # it has ended: nobody else would tell them
            self._tell_unfenced()

    def _fail(self, error: Exception, what: str) -> None:
        if self._failure is not None:
            return
        segment = self._segment
        self._failed_start = segment.start if segment is not None else -1
        self._straight = False
        self._failure = (
            f"channel {self.channel} takes no more records: {what} ({error}), so what of its tail "
            f"is on the disk is unknown. When the disk is well, Messenger.reopen({self.channel!r}) "
            "goes on in a new segment"
        )
        logger.critical("%s", self._failure)
        if segment is not None and (waiting := segment.take_round()) is not None:
            self._unfenced.append(waiting)
        self._spawn("sealer", self._fence)

    def _fence(self) -> None:
        """Put the failed segment out of everybody's reach; only then tell who waited of it.

        Otherwise a process that was killed between the two would leave it to the next one.
        """
        try:
            self._leave_failed_segment()
        finally:
            self._greenlets.pop("sealer", None)
            self._tell_unfenced()

    def _tell_unfenced(self) -> None:
        error = LogFailedError(self._failure or f"channel {self.channel} has failed")
        for waiting in self._unfenced:
            waiting.finish(error)
        self._unfenced.clear()

    def _leave_failed_segment(self) -> None:
        """Have other processes go on in a new segment at once; this one waits for reopen."""
        try:
            self._lock.acquire()
        except OSError as error:
            logger.error("%s: cannot be locked after its failure: %s", self.channel, error)
            return
        job = self._hand_over(self._submit(self._begin_after_failure))
        job.wait()
        if job.error is not None:
            logger.error("%s: no new segment after the failure: %s", self.channel, job.error)

    def _begin_after_failure(self) -> Opened:
        return self._announce(
            start_after_failure(self._fs, self.directory, self._failed_start, self._options.durable)
        )

    def reopen(self, deadline: float | None = None) -> None:
        """Take records again after a failure, in a new segment; nothing to do without one.

        Raises:
            StorageError: the new segment cannot be made; the log stays failed.
            PublishTimeoutError: the deadline passed.
        """
        if self._failure is None:
            return
        sealer = self._greenlets.get("sealer")
        if sealer is not None:
            sealer.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        segment = self._segment
        if segment is None or segment.start == self._failed_start:
            try:
                self._lock.acquire(deadline)
            except LockTimeoutError:
                raise PublishTimeoutError(f"{self.channel}: locked until the timeout") from None
            job = self._hand_over(self._submit(self._begin_after_failure))
            if not job.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise PublishTimeoutError(f"{self.channel}: not reopened within the timeout")
            if isinstance(job.error, OSError):
                raise self._refused(job.error, "reopened") from job.error
            if job.error is not None:
                raise job.error
        self._failure = None
        self._straight = True

    # -- closing

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        greenlet = gevent.spawn(run)
        greenlet.name = f"keyop-{name}-{self.channel}"
        self._greenlets[name] = greenlet

    def close(self) -> None:
        """Give descriptors back. What still waits for a sync learns that it will not come.

        A sync or a lock that hangs keeps its own descriptor until it returns. The log may be
        used again, which opens it.
        """
        if self._greenlets:
            gevent.killall(list(self._greenlets.values()), block=False)
            self._greenlets.clear()
        segment, self._segment = self._segment, None
        if segment is not None:
            self._durable_start = segment.start if segment.entry_is_durable else -1
            segment.abandon_rounds(
                MessengerClosedError(f"{self.channel}: the messenger was closed")
            )
            segment.release()
        self._lock.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, so that closing disturbs nobody."""
        segment = self._segment
        return not self._lock.taken and (
            segment is None
            or not ((segment.dirty and self._options.durable) or segment.syncing or segment.awaited)
        )

    def path(self) -> str:
        """Return the path of the active segment."""
        return segment_path(self.directory, self._segment.start if self._segment else 0)
