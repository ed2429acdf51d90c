"""One record → its handler → retries → the dead-letter channel.

Whatever happens here ends in one of two answers: the record is done with and its position may be
saved, or it is not, because the subscription stops first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from keyop.backoff import backoff_delay, worth_telling
from keyop.context import current_correlation_id
from keyop.deadletter import DeadLetterWriter, describe_error
from keyop.decode import EnvelopeReader
from keyop.envelope import Message, UnknownVersionError, make_message
from keyop.errors import (
    CorruptRecordError,
    MessengerClosedError,
    PublishTimeoutError,
    RetryLater,
    StorageError,
)
from keyop.latency import MessengerLatencies
from keyop.logs import current_subscription
from keyop.pace import SLICE_S, Pace
from keyop.payloads import PayloadRegistry
from keyop.salvage import salvage
from keyop.shared import SharedLines
from keyop.storage.cursor import Lines, Skipped

logger = logging.getLogger(__name__)

Handler = Callable[[Message], object]

_new_message = Message.__new__
_set_attribute = object.__setattr__

# What is left between two whole records where a flipped bit hit the newline.
_SEPARATOR_BYTES = 1
# How long a dead letter that could not be written waits before it is tried again.
_DEAD_LETTER_RETRY_S = 0.25


class RetryPolicy(NamedTuple):
    """How often a failing handler is called again, and after how many seconds."""

    max_retries: int
    base_s: float
    max_s: float

    def delay_s(self, attempt: int) -> float:
        """Return the seconds before the given retry, the first of which is 1."""
        return backoff_delay(attempt, self.base_s, self.max_s)


class Counters:
    """What one subscription has done since it started."""

    __slots__ = ("corrupt", "dead_letters", "delivered", "dropped_bytes", "expired", "retries")

    def __init__(self) -> None:
        self.delivered = 0
        self.retries = 0
        self.dead_letters = 0
        self.corrupt = 0
        self.expired = 0
        self.dropped_bytes = 0


class Delivery:
    """Delivers the records of one subscription to its handler.

    Every method that returns a bool says whether the record is done with. ``False`` means that
    ``leaving`` was set first, to stop or to go elsewhere, and the record stays where it is.
    """

    def __init__(
        self,
        channel: str,
        subscriber_id: str,
        handler: Handler,
        registry: PayloadRegistry,
        policy: RetryPolicy,
        dead_letters: DeadLetterWriter | None,
        max_record_bytes: int,
        leaving: Event,
        latencies: MessengerLatencies,
    ) -> None:
        self.channel = channel
        self.subscriber_id = subscriber_id
        self.counters = Counters()
        self._subscription = (channel, subscriber_id)
        self._handler = handler
        self._read = EnvelopeReader().read
        self._registry = registry
        self._policy = policy
        # None where the channel itself holds dead letters: they never make others.
        self._dead_letters = dead_letters
        self._max_record_bytes = max_record_bytes
        self._leaving = leaving
        self._latencies = latencies
        # When the next message is measured.
        self._measure_at = 0.0

    @property
    def handler_name(self) -> str:
        """What the program calls its handler, with the module."""
        handler = getattr(self._handler, "func", self._handler)  # of a partial
        name: str = getattr(handler, "__qualname__", type(handler).__qualname__)
        module = getattr(handler, "__module__", None)  # methods of builtin types have none
        return f"{module}.{name}" if module else name

    def deliver_lines(
        self,
        found: Lines | SharedLines,
        commit: Callable[[int], None],
        pace: Pace,
        may_go_on: Callable[[], bool],
    ) -> None:
        """Deliver lines one after the other.

        Args:
            commit: called with the end of each line that is done with.
            may_go_on: asked whenever the slice of ``pace`` is used up; the rest is left if not.
        """
        # The straight way: a sound record for everybody, of a type without a class, whose
        # handler returns. Anything else takes the careful way.
        current_subscription.set(self._subscription)
        handler, counters = self._handler, self.counters
        read = found.reader(self._read) if isinstance(found, SharedLines) else self._read
        offset = found.start
        classes, limit, channel = self._registry.classes, self._max_record_bytes, self.channel
        current_id, set_id = current_correlation_id.get, current_correlation_id.set
        measured = monotonic() >= self._measure_at
        for line in found.lines:
            size = len(line) + 1
            try:
                fields = read(line)
                if classes[fields["payload_type"]] or "subscriber" in fields or size > limit:
                    raise KeyError
            except (KeyError, CorruptRecordError):
                if not self.deliver(line, offset):
                    return
            else:
                correlation_id = fields.get("correlation_id", "")
                if current_id() != correlation_id:
                    set_id(correlation_id)
                fields["channel"] = channel
                fields["offset"] = offset
                message = _new_message(Message)
                _set_attribute(message, "__dict__", fields)
                if measured:
                    begun = monotonic()
                try:
                    handler(message)
                # As in handle.
                except (Exception, gevent.Timeout) as error:
                    if not self._after(error, fields, line, offset):
                        return
                else:
                    counters.delivered += 1
                    if measured:
                        self._latencies.handled(message.timestamp, begun)
                        self._measure_at = begun + SLICE_S
                        measured = False
            offset += size
            commit(offset)
            if monotonic() > pace.until:
                pace.give_way()
                if not may_go_on():
                    return
                measured = True

    def deliver(self, line: bytes, offset: int) -> bool:
        """Deliver the line that begins at this offset, whatever is in it."""
        if len(line) >= self._max_record_bytes:
            return self.skip(Skipped(offset, offset + len(line) + 1, "oversize", line))
        try:
            fields = self._read(line)
        except UnknownVersionError as error:
            logger.warning("%s at %d: skipped: %s", self.channel, offset, error)
            return True
        except CorruptRecordError as error:
            return self._deliver_damaged(line, offset, str(error))
        return self.handle(fields, line, offset)

    def message(self, line: bytes, offset: int) -> Message:
        """Return the line as its handler would get it.

        Raises:
            CorruptRecordError: it is not a record.
            Exception: whatever the class registered for its payload raises.
        """
        fields = self._read(line)
        current_subscription.set(self._subscription)
        current_correlation_id.set(fields.get("correlation_id", ""))
        fields["payload"] = self._registry.decode(fields["payload_type"], fields["payload"])
        return make_message(fields, self.channel, offset)

    def handle(self, fields: dict[str, Any], line: bytes, offset: int) -> bool:
        """Call the handler with a decoded record until it returns or gives up for good."""
        if fields.get("subscriber", self.subscriber_id) != self.subscriber_id:
            return True  # requeued for another one
        current_subscription.set(self._subscription)
        current_correlation_id.set(fields.get("correlation_id", ""))
        try:
            fields["payload"] = self._registry.decode(fields["payload_type"], fields["payload"])
        except (Exception, gevent.Timeout) as error:  # the user's class refuses
            return self.give_up(fields, line, 0, error)
        message = make_message(fields, self.channel, offset)
        begun = monotonic()
        try:
            self._handler(message)
        # Exception: whatever a user's handler raises. gevent.Timeout is not an Exception, and
        # GreenletExit, which is neither, must pass.
        except (Exception, gevent.Timeout) as error:
            return self._after(error, fields, line, offset)
        self.counters.delivered += 1
        if begun >= self._measure_at:
            self._latencies.handled(message.timestamp, begun)
            self._measure_at = begun + SLICE_S
        return True

    def _after(
        self, error: BaseException, fields: dict[str, Any], line: bytes, offset: int
    ) -> bool:
        """After the first attempt has failed: call the handler again, or give up."""
        attempt, failures, postponed = 1, 0, 0
        while True:
            if isinstance(error, RetryLater):
                postponed += 1
                wait_s = error.delay_s
                if wait_s is None:
                    wait_s = self._policy.delay_s(postponed)
            else:
                failures += 1
                self._warn(error, fields, attempt)
                if failures > self._policy.max_retries and self._dead_letters is not None:
                    return self.give_up(fields, line, failures - 1, error)
                self.counters.retries += 1
                wait_s = self._policy.delay_s(failures)
                if failures > self._policy.max_retries:
                    wait_s = self._policy.max_s
            if self._leaving.wait(wait_s):
                return False
            attempt += 1
            # Read again: the handler may have changed the payload in place.
            fields = self._read(line)
            current_correlation_id.set(fields.get("correlation_id", ""))
            try:
                fields["payload"] = self._registry.decode(fields["payload_type"], fields["payload"])
            except (Exception, gevent.Timeout) as refusal:  # as in handle
                return self.give_up(fields, line, max(0, failures - 1), refusal)
            try:
                self._handler(make_message(fields, self.channel, offset, attempt))
            except (Exception, gevent.Timeout) as another:  # as in handle
                error = another
            else:
                self.counters.delivered += 1
                return True

    def _warn(self, error: BaseException, fields: Mapping[str, Any], attempt: int) -> None:
        logger.warning(
            "%s: %s failed on message %s (attempt %d): %s",
            self.channel,
            self.subscriber_id,
            fields["id"],
            attempt,
            describe_error(error),
            exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
        )

    def give_up(
        self, fields: Mapping[str, Any], line: bytes, retries: int, error: BaseException
    ) -> bool:
        """Move a record that cannot be handled to the dead-letter channel."""
        dead_letters = self._dead_letters
        if dead_letters is None:
            # A dead letter never makes another one, so it waits until its handler takes it.
            logger.error(
                "%s: dead letter %s cannot be handled, and stays: %s",
                self.channel,
                fields["id"],
                describe_error(error),
            )
            self._leaving.wait()
            return False
        return self._write_dead_letter(
            lambda: dead_letters.write_message(fields, line, retries, error)
        )

    def skip(self, skipped: Skipped) -> bool:
        """Pass over bytes that hold no readable record, keeping what can be kept of them."""
        if skipped.reason == "gap":
            self.counters.dropped_bytes += skipped.end - skipped.start
            logger.error(
                "%s: %s lost %d bytes: the log has a gap from %d to %d",
                self.channel,
                self.subscriber_id,
                skipped.end - skipped.start,
                skipped.start,
                skipped.end,
            )
            return True
        if skipped.reason == "torn":
            return self._deliver_damaged(
                skipped.head, skipped.start, "the last line of a sealed segment has no end"
            )
        size = skipped.end - skipped.start
        return self._put_aside(
            skipped.head,
            skipped.start,
            f"a line of {size} bytes at {skipped.start} is longer than max_record_bytes "
            f"({self._max_record_bytes})",
        )

    def _deliver_damaged(self, line: bytes, offset: int, reason: str) -> bool:
        """Deliver the whole records in a damaged line; put the rest aside."""
        pieces = salvage(line)
        for piece in pieces:
            if piece.whole:
                try:
                    fields = self._read(piece.data)
                except UnknownVersionError:
                    continue
                except CorruptRecordError as error:
                    if not self._put_aside(piece.data, offset + piece.start, str(error)):
                        return False
                    continue
                if not self.handle(fields, piece.data, offset + piece.start):
                    return False
            elif len(pieces) > 1 and len(piece.data) <= _SEPARATOR_BYTES:
                self.counters.corrupt += 1
                logger.error("%s at %d: a damaged newline", self.channel, offset + piece.start)
            elif not self._put_aside(piece.data, offset + piece.start, reason):
                return False
        return True

    def _put_aside(self, data: bytes, offset: int, reason: str) -> bool:
        self.counters.corrupt += 1
        logger.error("%s at %d: not a record: %s", self.channel, offset, reason)
        dead_letters = self._dead_letters
        if dead_letters is None:
            return True
        return self._write_dead_letter(
            lambda: dead_letters.write_damaged(data, f"at offset {offset}: {reason}")
        )

    def _write_dead_letter(self, write: Callable[[], None]) -> bool:
        """Write a dead letter, however long that takes: nothing may end nowhere."""
        attempt = 0
        while not self._leaving.is_set():
            try:
                write()
            except (StorageError, PublishTimeoutError, MessengerClosedError) as error:
                attempt += 1
                if worth_telling(attempt):
                    logger.error(
                        "%s: %s cannot write a dead letter, so its position stays: %s",
                        self.channel,
                        self.subscriber_id,
                        error,
                    )
                # Not the handler's backoff: it is the disk that has to recover.
                self._leaving.wait(_DEAD_LETTER_RETRY_S)
            else:
                self.counters.dead_letters += 1
                return True
        return False
