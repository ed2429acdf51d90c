"""Feeds → batches → acknowledgements: one direction of one connection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import NamedTuple

from keyop.backoff import worth_telling
from keyop.errand import Crew, Errand
from keyop.errors import KeyopError
from keyop.federation.feed import Done, Feed
from keyop.pace import Pace
from keyop.wire.session import Session

logger = logging.getLogger(__name__)

NO_LIMIT_BYTES = 1 << 30
# The weight of the newest round trip in the smoothed one.
_NEW = 0.2


class _Batch(NamedTuple):
    """A batch that is under way: whose, where it ends, how many records it has."""

    feed: Feed
    end: int
    records: int
    sent_at: float


class Sender:
    """Sends what its feeds have, each in its turn, while there is room in the window.

    Args:
        send: sends one binary message and returns when it is on its way; ``OSError`` if not.
        failed: told of a fault of keyop's own, after which nothing more is sent.
        max_batch_bytes: fills a batch from what is there, and never waits for more; 0 is no limit.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        send: Callable[[bytes], None],
        max_batch_bytes: int,
        failed: Callable[[Exception], None],
        crew: Crew | None = None,
    ) -> None:
        self._name = name
        self._session = session
        self._send = send
        self._failed = failed
        self._room = max_batch_bytes or NO_LIMIT_BYTES
        self.feeds: dict[str, Feed] = {}
        # Those that may have something, in the order of their turns.
        self._ready: dict[Feed, None] = {}
        # Between sending a batch and its acknowledgement, smoothed; None before the first.
        self.round_trip_s: float | None = None
        # Those that could not be read, and how often in a row.
        self._failures: dict[Feed, int] = {}
        self._errand = Errand(f"keyop-sender-{name}", self._work, crew)
        self._stopped = False
        # On channels that are not sent any more.
        self._done_before = Done()

    def add(self, feed: Feed) -> None:
        """Send this feed too; one that comes too late is closed."""
        if self._stopped:
            feed.close()
            return
        self.feeds[feed.channel] = feed
        feed.open()

    def remove(self, channel: str, forget: bool = False) -> None:
        """Send no more of a channel; what is under way may still arrive."""
        feed = self.feeds.pop(channel, None)
        if feed is not None:
            self._ready.pop(feed, None)
            self._failures.pop(feed, None)
            self._done_before = _sum([self._done_before, feed.done])
            feed.close(forget)

    def wake(self, feed: Feed) -> None:
        """A feed may have something."""
        self._ready[feed] = None
        self._errand.call()

    def look_around(self, channels: Iterable[str]) -> None:
        """Let the feeds of these channels look for what no wake-up has told of.

        Those that could not be read are tried again.
        """
        for failed in self._failures:
            self.wake(failed)
        for channel in channels:
            feed = self.feeds.get(channel)
            if feed is not None:
                feed.look_around()

    def pass_over(self, channel: str, start: int, end: int) -> None:
        """Between these offsets of a channel stands only what came from the other side."""
        feed = self.feeds.get(channel)
        if feed is not None and feed.pass_over(start, end):
            self._ready.pop(feed, None)

    def acknowledged(self, token: _Batch) -> None:
        """The oldest batch has arrived, so there is room for another."""
        taken_s = monotonic() - token.sent_at
        known_s = self.round_trip_s
        self.round_trip_s = taken_s if known_s is None else known_s + (taken_s - known_s) * _NEW
        if self.feeds.get(token.feed.channel) is token.feed:
            token.feed.acknowledged(token.end, token.records)
        self._errand.call()

    def _work(self) -> None:
        try:
            self._send_ready()
        # What is foreseen is dealt with below. Anything else must not leave the peer without what
        # is for it and nobody knowing.
        except Exception as error:
            logger.exception("%s: sending failed", self._name)
            self._failed(error)

    def _send_ready(self) -> None:
        pace = Pace()
        while self._ready and self._session.may_send and not self._stopped:
            feed = self._next_ready()
            if feed is None:
                return
            del self._ready[feed]
            try:
                portion = feed.take(self._room)
            except (OSError, KeyopError) as error:
                # It stays where it is, and is looked at again with the next wake-up or poll.
                self._note_failure(feed, error)
                continue
            self._failures.pop(feed, None)
            # It may have been removed while a dead letter was written.
            if portion is None or self.feeds.get(feed.channel) is not feed:
                continue
            self._ready[feed] = None
            if not portion.records:
                feed.passed()
            else:
                feed.sent(portion.records)
                batch = _Batch(feed, feed.position, portion.records, monotonic())
                try:
                    self._send(self._session.send_encoded(portion.message, batch))
                except OSError:  # the connection is gone, which whoever reads it finds out
                    return
            pace.step()

    def _next_ready(self) -> Feed | None:
        for feed in self._ready:  # those that wait have a batch in the window, so they are few
            if not feed.had_better_wait(self._room):
                return feed
        return None

    def _note_failure(self, feed: Feed, error: Exception) -> None:
        if self.feeds.get(feed.channel) is not feed:
            return
        count = self._failures[feed] = self._failures.get(feed, 0) + 1
        if worth_telling(count):
            logger.error("%s: %s: cannot be read: %s", feed.channel, self._name, error)

    @property
    def backlog_bytes(self) -> int:
        """What is in the log for the peer and has not arrived, of the channels it is sent."""
        return sum(feed.backlog_bytes for feed in self.feeds.values())

    @property
    def done(self) -> Done:
        """What it has done since it began."""
        return _sum([self._done_before, *(feed.done for feed in self.feeds.values())])

    @property
    def idle(self) -> bool:
        """Whether nothing is left to send and everything sent has arrived."""
        return not self._ready and not self._session.under_way

    def stop(self) -> None:
        """End; what was not acknowledged is sent again by the next one."""
        self._stopped = True
        self._errand.stop()
        for feed in self.feeds.values():
            feed.close()
        self.feeds.clear()
        self._ready.clear()
        self._failures.clear()


def _sum(several: Iterable[Done]) -> Done:
    return Done(*map(sum, zip(*several, strict=True)))
