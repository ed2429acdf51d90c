"""What becomes of a message that cannot be handled: a record in the dead-letter channel."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from keyop.clock import Clock
from keyop.envelope import CRC_MARK, CRC_SUFFIX_BYTES, EnvelopeWriter
from keyop.errors import MessengerClosedError, PublishTimeoutError
from keyop.names import dead_letter_channel, is_dead_letter
from keyop.storage.store import Store
from keyop.timestamps import format_ns

logger = logging.getLogger(__name__)

PAYLOAD_TYPE = "com.keyop.messenger.DeadLetterPayload"
# Beside a record of the greatest size, so much of an error and of the wrapping fits.
_MAX_ERROR_CHARACTERS = 4096
EXTRA_BYTES = 64 << 10
# One is tried for so long at once, so that a stop is noticed on a full disk.
_TRY_S = 0.5


def max_dead_letter_bytes(max_record_bytes: int) -> int:
    """Return the greatest size of a record in a dead-letter channel."""
    return 2 * max_record_bytes + EXTRA_BYTES


def describe_error(error: BaseException) -> str:
    """Return an error as one bounded text that JSON can hold."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:  # a user's class may fail even here
        text = "(its text cannot be had)"
    text = f"{name}: {text}" if text else name
    return text[:_MAX_ERROR_CHARACTERS].encode("utf-8", "replace").decode()


class DeadLetterWriter:
    """Builds dead letters of one channel and appends them to its dead-letter log."""

    def __init__(
        self,
        channel: str,
        subscriber_id: str,
        writer: EnvelopeWriter,
        append: Callable[[bytes], object],
        clock: Clock,
    ) -> None:
        self.channel = channel
        self._target = dead_letter_channel(channel)
        self._subscriber_id = subscriber_id
        self._writer = writer
        self._append = append
        self._clock = clock

    def write_message(
        self, fields: Mapping[str, Any], line: bytes, retries: int, error: BaseException
    ) -> None:
        """Keep a message that its handler refused for good.

        Args:
            line: the record as it stands in the log; its bytes are kept.

        Raises:
            StorageError: it could not be written; the message must not count as handled.
        """
        if line[-CRC_SUFFIX_BYTES:].startswith(CRC_MARK):
            line = line[:-CRC_SUFFIX_BYTES] + b"}"
        self._write(
            line,
            retries,
            describe_error(error),
            origin=fields["origin"],
            correlation_id=fields.get("correlation_id", ""),
        )

    def write_damaged(self, data: bytes, reason: str) -> None:
        """Keep bytes that are not a record.

        Raises:
            StorageError: they could not be written; they must not count as handled.
        """
        raw = b',"raw":' + orjson.dumps(base64.b64encode(data).decode())
        self._write(b"null", 0, reason, raw)

    def _write(
        self,
        original: bytes,
        retries: int,
        reason: str,
        raw: bytes = b"",
        origin: str | None = None,
        correlation_id: str = "",
    ) -> None:
        failed_at = format_ns(self._clock.time_ns())
        parts = (
            (b'{"original":', original),
            (b',"retries":', b"%d" % retries),
            (b',"last_error":', orjson.dumps(reason)),
            (b',"failed_at":', orjson.dumps(failed_at)),
            (b',"subscriber":', orjson.dumps(self._subscriber_id)),
            (raw, b"}"),
        )
        payload = b"".join([piece for part in parts for piece in part])
        message_id, line = self._writer.encode(
            self._target, PAYLOAD_TYPE, payload, correlation_id, origin=origin
        )
        self._append(line)
        logger.error(
            "%s: %s gave up on a message, which is dead letter %s now: %s",
            self.channel,
            self._subscriber_id,
            message_id,
            reason,
        )


def dead_letter_writer(
    store: Store, channel: str, subscriber_id: str, writer: EnvelopeWriter, clock: Clock
) -> DeadLetterWriter | None:
    """Return what keeps the messages of a channel that cannot be handled.

    None for a channel that holds dead letters itself: they never make others.
    """
    if is_dead_letter(channel):
        return None

    def append(line: bytes) -> None:
        log = store.log(dead_letter_channel(channel))
        try:
            log.append(line, time.monotonic() + _TRY_S)
        except (PublishTimeoutError, MessengerClosedError) as error:
            if not error.written:
                raise

    return DeadLetterWriter(channel, subscriber_id, writer, append, clock)
