"""Group commit: one fdatasync for all publishers that have come during the last one."""

from __future__ import annotations

import gevent

from keyop.clock import seconds_left
from keyop.errors import LogFailedError, MessengerClosedError, PublishTimeoutError
from keyop.offload import Offload
from keyop.storage.active import ActiveSegment, Round
from keyop.storage.failstop import FailStop
from keyop.storage.head import Head
from keyop.wakeup import Wakeup


class GroupCommit:
    """Syncs one channel for those who wait.

    Args:
        wanted: set when there is something to sync, for which somebody waits.
    """

    def __init__(self, head: Head, fail_stop: FailStop, wanted: Wakeup, files: Offload) -> None:
        self._wanted = wanted
        self._head = head
        self._fail_stop = fail_stop
        self._files = files
        self._leader: gevent.Greenlet[[], None] | None = None

    def join(self, segment: ActiveSegment) -> Round:
        """Return the round whose sync will cover everything written so far, and have it done."""
        if self._leader is None:
            self._leader = gevent.spawn(self._lead)
            self._leader.name = f"keyop-leader-{self._head.channel}"
        self._wanted.set()
        return segment.join_round()

    def wait(self, awaited: Round, deadline: float | None, data: bytes) -> None:
        """Wait until ``data``, which is written, is on the disk.

        Raises:
            LogFailedError: what of it is on the disk is unknown.
            PublishTimeoutError: the disk did not answer until the deadline, in
                ``time.monotonic()`` seconds.
            MessengerClosedError: nobody will know.
        """
        if not awaited.gate.wait(seconds_left(deadline)):
            raise PublishTimeoutError(
                f"{self._head.channel}: written, but not confirmed by the disk within the timeout",
                data.count(b"\n"),
            )
        if awaited.error is not None:
            if isinstance(awaited.error, MessengerClosedError):
                raise MessengerClosedError(str(awaited.error), data.count(b"\n"))
            raise LogFailedError(self._fail_stop.failure or str(awaited.error))

    def _lead(self) -> None:
        """When a sync returns, whoever waited for it goes first, and may write for the next."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            segment = self._head.segment
            if (
                segment is not None
                and segment.awaited
                and not segment.syncing
                and self._fail_stop.failure is None
            ):
                segment.sync(self._files)

    def close(self) -> None:
        """End the greenlet. Those who wait are somebody else's to tell."""
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.kill(block=False)
