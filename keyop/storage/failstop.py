"""What a channel does after a failed fsync: it takes no more records, until it is reopened.

Source: Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020: the kernel may
drop what it could not write, and the next fsync then succeeds.
"""

from __future__ import annotations

import logging

import gevent

from keyop.clock import seconds_left
from keyop.errors import LogFailedError, PublishTimeoutError
from keyop.storage.active import Round
from keyop.storage.head import Head
from keyop.storage.locks import LockTimeoutError

logger = logging.getLogger(__name__)


class FailStop:
    """Why a log takes no records, if it does not. ``failure`` is None while it does."""

    def __init__(self, head: Head) -> None:
        self.failure: str | None = None
        self._head = head
        self._failed_start = -1
        # Those who wait for a sync that failed, until its segment is out of reach.
        self._unfenced: list[Round] = []
        self._sealer: gevent.Greenlet[[], None] | None = None

    def sync_failed(self, error: Exception, covered: Round | None) -> None:
        """A sync has failed, and with it those who waited for it."""
        if covered is not None:
            self._unfenced.append(covered)
        self.fail(error, "fsync failed")
        if self._sealer is None:  # it has ended: nobody else would tell them
            self._tell_unfenced()

    def fail(self, error: Exception, what: str) -> None:
        """Take no more records from now on."""
        if self.failure is not None:
            return
        channel, segment = self._head.channel, self._head.segment
        self._failed_start = segment.start if segment is not None else -1
        self.failure = (
            f"channel {channel} takes no more records: {what} ({error}), so what of its tail "
            f"is on the disk is unknown. When the disk is well, Messenger.reopen({channel!r}) "
            "goes on in a new segment"
        )
        logger.critical("%s", self.failure)
        if segment is not None and (waiting := segment.take_round()) is not None:
            self._unfenced.append(waiting)
        self._sealer = gevent.spawn(self._fence)
        self._sealer.name = f"keyop-sealer-{channel}"

    def _fence(self) -> None:
        """Put the failed segment out of everybody's reach; only then tell who waited of it.

        Otherwise a process that was killed between the two would leave it to the next one.
        """
        try:
            self._leave_failed_segment()
        finally:
            self._sealer = None
            self._tell_unfenced()

    def _tell_unfenced(self) -> None:
        error = LogFailedError(self.failure or f"channel {self._head.channel} has failed")
        for waiting in self._unfenced:
            waiting.finish(error)
        self._unfenced.clear()

    def _leave_failed_segment(self) -> None:
        """Have other processes go on in a new segment at once; this one waits for reopen."""
        channel = self._head.channel
        try:
            self._head.lock.acquire()
        except OSError as error:
            logger.error("%s: cannot be locked after its failure: %s", channel, error)
            return
        job = self._head.start_after_failure(self._failed_start)
        job.wait()
        if job.error is not None:
            logger.error("%s: no new segment after the failure: %s", channel, job.error)

    def reopen(self, deadline: float | None = None) -> None:
        """Take records again after a failure, in a new segment; nothing to do without one.

        Raises:
            StorageError: the new segment cannot be made; the log stays failed.
            PublishTimeoutError: the deadline passed.
        """
        if self.failure is None:
            return
        if self._sealer is not None:
            self._sealer.join(seconds_left(deadline))
        head = self._head
        if head.segment is None or head.segment.start == self._failed_start:
            try:
                head.lock.acquire(deadline)
            except LockTimeoutError:
                raise PublishTimeoutError(f"{head.channel}: locked until the timeout") from None
            job = head.start_after_failure(self._failed_start)
            if not job.wait(seconds_left(deadline)):
                raise PublishTimeoutError(f"{head.channel}: not reopened within the timeout")
            if isinstance(job.error, OSError):
                raise head.refused(job.error, "reopened") from job.error
            if job.error is not None:
                raise job.error
        self.failure = None

    def close(self) -> None:
        """End the greenlet that leaves the failed segment."""
        sealer, self._sealer = self._sealer, None
        if sealer is not None:
            sealer.kill(block=False)
