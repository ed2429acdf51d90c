"""Waiting for room on a full disk, and telling of it now and then."""

from __future__ import annotations

import logging
import time

from gevent.event import Event

from keyop.errors import MessengerClosedError, PublishTimeoutError

logger = logging.getLogger(__name__)

# How often a publisher that waits for room on the disk tries again, and how often that is told of.
_POLL_S = 0.1
_TELL_EVERY_S = 60.0


class Room:
    """Who publishes to one channel, and finds the disk full.

    Args:
        closing: set when nobody is to wait any more.
    """

    def __init__(self, channel: str, directory: str, closing: Event) -> None:
        # For people: how often somebody had to wait.
        self.waits = 0
        self._channel = channel
        self._directory = directory
        self._closing = closing
        # When a full disk is told of again, if it still is one.
        self._tell_at = 0.0

    def wait(self, error: OSError, deadline: float | None, written: int) -> None:
        """Wait a little, so that there may be room.

        Args:
            deadline: in ``time.monotonic()`` seconds.
            written: how many records of the caller's are in the log.

        Raises:
            PublishTimeoutError: the deadline passed.
            MessengerClosedError: nobody is to wait any more.
        """
        wait_s = _POLL_S
        if deadline is not None:
            wait_s = min(wait_s, deadline - time.monotonic())
            if wait_s <= 0:
                raise PublishTimeoutError(
                    f"{self._channel}: no room on the disk of {self._directory} within the timeout",
                    written,
                ) from error
        self.waits += 1
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            logger.warning(
                "%s: no room on the disk of %s: whoever publishes waits until there is some",
                self._channel,
                self._directory,
            )
        if self._closing.wait(wait_s):
            raise MessengerClosedError(
                f"{self._channel}: the messenger was closed while the disk was full", written
            ) from error

    def found(self) -> None:
        """Whoever waited has written."""
        if self._tell_at:
            self._tell_at = 0.0
            logger.warning("%s: there is room on the disk again", self._channel)
