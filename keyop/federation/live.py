"""What an ephemeral client receives: handlers are called, then batches acknowledged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import gevent

from keyop.context import current_correlation_id
from keyop.deadletter import describe_error
from keyop.decode import EnvelopeReader
from keyop.envelope import Message, make_message
from keyop.errand import Errand
from keyop.errors import CorruptRecordError
from keyop.logs import current_subscription
from keyop.payloads import PayloadRegistry

logger = logging.getLogger(__name__)

LiveHandler = Callable[[Message], object]


class _Batch:
    """A batch whose records are being handled; so many of them are left."""

    __slots__ = ("last_id", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.last_id = ""


class LiveSubscription:
    """One channel's handler. It delays its own channel only."""

    def __init__(self, channel: str, handler: LiveHandler, registry: PayloadRegistry) -> None:
        self.channel = channel
        self._handler = handler
        self._registry = registry
        self._queue: deque[tuple[dict[str, object], Callable[[], None]]] = deque()
        self._errand = Errand(f"keyop-live-{channel}", self._work)

    def deliver(self, fields: dict[str, object], done: Callable[[], None]) -> None:
        """Have the handler called in its turn, and ``done`` once it has returned or failed."""
        self._queue.append((fields, done))
        self._errand.call()

    def _work(self) -> None:
        while self._queue:
            fields, done = self._queue.popleft()
            try:
                self._handle(fields)
            finally:
                done()

    def _handle(self, fields: dict[str, object]) -> None:
        payload_type = str(fields["payload_type"])
        try:
            fields["payload"] = self._registry.decode(payload_type, fields["payload"])
            current_correlation_id.set(str(fields.get("correlation_id", "")))
            current_subscription.set((self.channel, ""))
            self._handler(make_message(fields, self.channel, 0))
        # Whatever a user's class or handler raises; gevent.Timeout is not an Exception. There is
        # no log to keep the message in, so it is reported and gone.
        except (Exception, gevent.Timeout) as error:
            logger.error(
                "%s: a live message was not handled: %s", self.channel, describe_error(error)
            )

    def stop(self) -> None:
        """End; what waits is not handled."""
        self._queue.clear()
        self._errand.stop()


class LiveReceiver:
    """Hands batches to the subscriptions, and acknowledges each once it is handled, in order.

    So a hub sends a slow handler no more than its window.
    """

    waits = False  # ever

    def __init__(
        self, subscriptions: dict[str, LiveSubscription], acknowledge: Callable[[str], None]
    ) -> None:
        self._subscriptions = subscriptions
        self._acknowledge = acknowledge
        self._reader = EnvelopeReader()
        self._batches: deque[_Batch] = deque()
        self._stopped = False

    def receive(self, records: list[bytes]) -> None:
        """Take a batch."""
        batch = _Batch(1)
        self._batches.append(batch)
        for record in records:
            try:
                fields = self._reader.read(record)
            except CorruptRecordError as error:
                logger.warning("the hub has sent a record that is none: %s", error)
                batch.last_id = ""
                continue
            batch.last_id = fields["id"]
            subscription = self._subscriptions.get(fields["channel"])
            if subscription is not None:
                batch.left += 1
                subscription.deliver(fields, lambda: self._done(batch))
        self._done(batch)

    def _done(self, batch: _Batch) -> None:
        batch.left -= 1
        while self._batches and not self._batches[0].left and not self._stopped:
            self._acknowledge(self._batches.popleft().last_id)

    def stop(self) -> None:
        """End; nothing more is acknowledged."""
        self._stopped = True
