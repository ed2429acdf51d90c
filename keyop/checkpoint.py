"""How far a subscription is: the offset before which everything is done with, and its file."""

from __future__ import annotations

import logging
import time

from gevent.event import Event

from keyop.storage.claim import Claim

logger = logging.getLogger(__name__)

_SAVE_RETRY_S = 0.1


class Checkpoint:
    """The position of one running subscription.

    Args:
        claim: held while anything here is called.
        flush_interval_s: how often the position is saved; 0 saves it after each message.
        sync_each: whether it has to be on the disk before the next message.
        stopping: set when nobody waits any more for a file that cannot be written.
    """

    def __init__(
        self,
        claim: Claim,
        subscriber_id: str,
        flush_interval_s: float,
        sync_each: bool,
        stopping: Event,
    ) -> None:
        self.offset = 0
        # Set while what was in work before the position was moved, or deleted, must not move it.
        self.moved = False
        self._claim = claim
        self._write = claim.save
        self._subscriber_id = subscriber_id
        self._flush_interval_s = flush_interval_s
        self._save_each = not flush_interval_s
        self._sync_each = sync_each
        self._stopping = stopping
        self._saved = -1
        self._saved_at = 0.0

    def commit(self, offset: int) -> None:
        """Everything before this offset is done with."""
        if self.moved:
            return
        self.offset = offset
        if not self._save_each:
            self.save_if_due()
            return
        try:
            self._write(offset)
        except OSError:
            self.save()
        else:
            self._saved = offset
        if self._sync_each:
            self.sync()

    def save_if_due(self) -> float | None:
        """Save the position at its interval; return the seconds until that is due, if it is."""
        if self._saved == self.offset:
            return None
        left_s = self._saved_at + self._flush_interval_s - time.monotonic()
        if left_s <= 0:
            self.save()
            return None
        return left_s

    def save_meanwhile(self) -> None:
        """Save the position if that is due, never waiting; who commits next tells of errors."""
        due = time.monotonic() - self._saved_at >= self._flush_interval_s
        if self._saved != self.offset and due and not self.moved:
            try:
                self._write(self.offset)
            except OSError:
                return
            self._saved, self._saved_at = self.offset, time.monotonic()

    def save(self, may_sync: bool = True) -> None:
        """Save the position, however long that takes: the next message waits for it.

        Args:
            may_sync: whether there is time for the disk, where it is to be waited for.
        """
        if self._saved == self.offset:
            return
        self._saved_at = time.monotonic()
        while True:
            try:
                self._write(self.offset)
                break
            except OSError as error:
                logger.error(
                    "%s cannot be written, so %s waits: %s",
                    self._claim.path,
                    self._subscriber_id,
                    error,
                )
                if self._stopping.wait(_SAVE_RETRY_S):
                    return
        self._saved = self.offset
        if may_sync:
            self.sync()

    def move(self, offset: int) -> None:
        """Go on from another offset, which is saved when this returns.

        Raises:
            OSError: it cannot be saved; nothing has changed.
        """
        self._write(offset)
        self.offset = self._saved = offset
        self.moved = True

    def sync(self) -> None:
        """Wait until what was saved is on the disk, where that is asked for."""
        if self._sync_each:
            self._claim.sync()
