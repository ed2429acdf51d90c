"""Appending whatever stands in the way: locks of others, rolls, crashes, full disks."""

from __future__ import annotations

import os
from collections.abc import Callable

from keyop.clock import seconds_left
from keyop.errors import LogFailedError, MessengerClosedError, PublishTimeoutError
from keyop.fs import NO_ROOM
from keyop.offload import Job
from keyop.storage.active import ActiveSegment, Round, SyncFailedError
from keyop.storage.environment import Environment
from keyop.storage.failstop import FailStop
from keyop.storage.groupcommit import GroupCommit
from keyop.storage.head import Head
from keyop.storage.locks import LockTimeoutError
from keyop.storage.readers import Readers
from keyop.storage.room import Room


class CarefulAppend:
    """The way of an append for which the straight one of :class:`Log` does not do.

    Args:
        make_room: called before descriptors are opened; may wait.
        wrote: called when records were written, under the lock.
    """

    def __init__(
        self,
        environment: Environment,
        head: Head,
        fail_stop: FailStop,
        group: GroupCommit,
        readers: Readers,
        make_room: Callable[[], None],
        wrote: Callable[[ActiveSegment], None],
    ) -> None:
        self.room = Room(head.channel, head.directory, environment.closing.waits)
        self._fs = environment.fs
        self._closing = environment.closing
        self._segment_bytes = environment.options.segment_bytes
        self._always = environment.options.sync_policy == "always"
        self._channel = head.channel
        self._head = head
        self._lock = head.lock
        self._fail_stop = fail_stop
        self._group = group
        self._readers = readers
        self._make_room = make_room
        self._wrote = wrote

    def append(
        self, data: bytes, deadline: float | None, done: int = 0, error: OSError | None = None
    ) -> int:
        """Append what is left of ``data`` from ``done`` on; return the new end offset.

        Args:
            done: how many bytes, of whole records, are in the log already.
            error: what stopped the writing there.

        Raises:
            KeyopError: as :meth:`Log.append` does.
        """
        size = len(data)
        rounds: list[Round] = []
        if done and self._always and self._head.segment is not None:
            rounds.append(self._group.join(self._head.segment))
        end, waited = 0, False
        known = self._head.segment is not None
        while True:
            if done and self._readers.events:
                self._readers.wake()
            if done == size:
                break
            count = done and data.count(b"\n", 0, done)
            if error is not None:
                self._wait_after(error, deadline, count)
                waited = True
            self.acquire(deadline, count)
            fits = self._prepare(data, done, deadline)
            if not fits:
                continue
            segment = self._head.segment
            assert segment is not None
            error = None
            try:
                if known:  # not where a channel is opened for one message, as thousands may be
                    self._lock.map_hint()
                written = self._fs.write(segment.fd, memoryview(data)[done : done + fits])
            except OSError as reason:
                written, error = 0, reason
            if written != fits:
                written, error = self.cut_back(segment, data, done, fits, written, error)
            if written:
                if waited:
                    self.room.found()
                done += written
                segment.size += written
                self._wrote(segment)
                end = segment.start + segment.size
                if self._always:
                    awaited = self._group.join(segment)
                    if awaited not in rounds:
                        rounds.append(awaited)
            self._lock.release()
        for awaited in rounds:
            self._group.wait(awaited, deadline, data)
        return end

    def acquire(self, deadline: float | None, written: int, to_append: bool = True) -> None:
        """Take the channel's lock, opening its file and making its directory where needed.

        Args:
            written: how many records of the caller's are in the log, for the errors.
            to_append: whether a channel that has failed is refused.

        Raises:
            KeyopError: as :meth:`Log.append` does; the lock is not held.
        """
        while True:
            try:
                if self._lock.fd < 0:
                    self._make_room()
                    if not self._head.make_directory(seconds_left(deadline)):
                        raise PublishTimeoutError(
                            f"{self._channel}: its directory was not made within the timeout",
                            written,
                        )
                    if self._closing.writes.is_set():  # close() has overtaken, and closed it
                        raise MessengerClosedError(
                            f"{self._channel}: the messenger was closed", written
                        )
                    if not self._head.open_lock():
                        continue
                self._lock.acquire(deadline)
                break
            except PublishTimeoutError:  # which is an OSError too
                raise
            except LockTimeoutError:
                raise PublishTimeoutError(
                    f"{self._channel}: another process held the channel's lock until the timeout",
                    written,
                ) from None
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise self._head.refused(error, "opened") from error
                self._wait_after(error, deadline, written)
        if self._closing.writes.is_set():
            self._lock.release()
            raise MessengerClosedError(f"{self._channel}: the messenger was closed", written)
        if self._fail_stop.failure is not None and to_append:
            self._lock.release()
            raise LogFailedError(self._fail_stop.failure)

    def _prepare(self, data: bytes, done: int, deadline: float | None) -> int:
        """Make the active segment ready, under the lock.

        Returns:
            How many bytes from ``done`` on fit into it: whole records. 0 if the lock had to be
            given away for that, so that the caller starts again.
        """
        count = done and data.count(b"\n", 0, done)
        opened = self._head.segment is None and self._head.open_clean()
        segment = self._head.segment
        try:
            job = None
            if segment is None:
                job = self._head.start_recovery()
            elif opened:
                pass  # just now: nobody has written since
            elif (hint := self._lock.read_hint()) != segment.hint:
                job = self._head.start_following(hint)
            else:
                size = self._fs.lseek(segment.fd, 0, os.SEEK_END)
                if size != segment.size:
                    if size < segment.size or self._fs.pread(segment.fd, 1, size - 1) != b"\n":
                        job = self._head.start_recovery()
                    else:
                        segment.size = size
                        self._readers.wake()
            if job is None:
                assert segment is not None
                fits = self._fitting(data, done, self._segment_bytes - segment.size)
                if fits:
                    return fits
                if not segment.size:  # a record above the limit gets a segment of its own
                    return data.index(b"\n", done) + 1 - done
                job = self._head.start_roll()
        except OSError as error:
            self._lock.release()
            raise self._head.refused(error, "prepared") from error
        self.finish(job, deadline, count)
        return 0

    @staticmethod
    def _fitting(data: bytes, done: int, room: int) -> int:
        if len(data) - done <= room:
            return len(data) - done
        return max(0, data.rfind(b"\n", done, done + max(0, room)) + 1 - done)

    def cut_back(
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
                written += self._fs.write(segment.fd, view[written:])
            except OSError as reason:
                error = reason
        if error is not None:
            whole = data.rfind(b"\n", done, done + written) + 1 - done if written else 0
            whole = max(0, whole)
            try:
                if self._fs.lseek(segment.fd, 0, os.SEEK_END) != segment.size + whole:
                    self._fs.ftruncate(segment.fd, segment.size + whole)
            except OSError as reason:
                self._fail_stop.fail(reason, "part of a record could not be cut off again")
            written = whole
        return written, error

    def _wait_after(self, error: OSError, deadline: float | None, written: int) -> None:
        """Wait for room after a write that found none; raise for any other error."""
        if self._fail_stop.failure is not None:
            raise LogFailedError(self._fail_stop.failure) from error
        if error.errno not in NO_ROOM:
            raise self._head.refused(error, "written to") from error
        self.room.wait(error, deadline, written)

    def finish(self, job: Job, deadline: float | None, written: int) -> None:
        """Wait for a job that holds the lock.

        Raises:
            StorageError: it failed for another reason than a full disk.
        """
        if not job.wait(seconds_left(deadline)):
            raise PublishTimeoutError(
                f"{self._channel}: the segment could not be made ready within the timeout",
                written,
            )
        if isinstance(job.error, SyncFailedError):
            raise LogFailedError(self._fail_stop.failure or str(job.error)) from job.error
        if isinstance(job.error, OSError):
            self._wait_after(job.error, deadline, written)
        elif job.error is not None:
            raise job.error
