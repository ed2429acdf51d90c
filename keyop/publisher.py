"""Publishing: payload → record → log, in one straight way that lets others run in time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from typing import Any

import gevent

from keyop.context import current_correlation_id, current_service_name
from keyop.dedup import Dedup
from keyop.envelope import EnvelopeWriter, check_message_id
from keyop.errors import (
    LogFailedError,
    MessengerClosedError,
    PublishTimeoutError,
    RecordTooLargeError,
)
from keyop.latency import MessengerLatencies
from keyop.names import check_publish_channel
from keyop.pace import SHORTEST_SLEEP_S, SLICE_S
from keyop.payloads import encode_payload, encode_payloads
from keyop.storage.log import Log
from keyop.storage.store import Store

# Encoding so many records takes a fraction of a slice.
_BATCH_PART = 128

_monotonic = time.monotonic


class Publisher:
    """Publishes to the channels of one store. ``Messenger.publish`` says what holds."""

    def __init__(
        self,
        store: Store,
        writer: EnvelopeWriter,
        dedup: Dedup,
        max_record_bytes: int,
        latencies: MessengerLatencies,
    ) -> None:
        self._store = store
        self._writer = writer
        self._dedup = dedup
        self._max_record_bytes = max_record_bytes
        self._latencies = latencies
        # The logs of channels whose names were checked.
        self._logs: dict[str, Log] = {}
        self._run_callback = gevent.get_hub().loop.run_callback
        self._in_slice = False
        self._slice_end = 0.0
        # When the next one is measured.
        self._measure_at = 0.0

    def publish(
        self,
        channel: str,
        payload_type: str,
        payload: Any,
        correlation_id: str | None = None,
        service_name: str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Append one message; return its id."""
        begun = 0.0 if self._in_slice else self._begin()
        try:
            log = self._logs[channel]
        except (KeyError, TypeError):
            log = self._log(channel)
        deadline = None if timeout is None else _deadline(timeout)
        data = encode_payload(payload)
        if correlation_id is None:
            correlation_id = current_correlation_id.get()
        if service_name is None:
            service_name = current_service_name.get()
        new_id, line = self._writer.encode(
            channel, payload_type, data, correlation_id, service_name, message_id
        )
        if len(line) > self._max_record_bytes:
            raise self._too_large(channel, line)
        try:
            if message_id is None:
                log.append(line, deadline)
                log.published += 1
            else:
                self._append_once(log, [(message_id, line)], deadline)
        except (PublishTimeoutError, MessengerClosedError) as error:
            error.written = bool(error.written)
            raise
        if begun:
            self._latencies.publish.add(begun)
        if not self._in_slice or _monotonic() > self._slice_end:
            self._give_way()
        return new_id

    def publish_batch(
        self,
        channel: str,
        messages: Iterable[tuple[str, Any]],
        correlation_id: str | None = None,
        service_name: str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        """Append messages with one write; return their ids."""
        begun = 0.0 if self._in_slice else self._begin()
        log = self._logs.get(channel) or self._log(channel)
        deadline = None if timeout is None else _deadline(timeout)
        stem = None if message_id is None else check_message_id(message_id)
        if correlation_id is None:
            correlation_id = current_correlation_id.get()
        if service_name is None:
            service_name = current_service_name.get()
        ids: list[str] = []
        lines: list[bytes] = []
        pairs = iter(messages)
        # Long batches are encoded in parts, between which others may run.
        while some := list(islice(pairs, _BATCH_PART)):
            encoded = encode_payloads([payload for _, payload in some])
            part = list(zip([payload_type for payload_type, _ in some], encoded, strict=True))
            if stem is None:
                new_ids, new_lines = self._writer.encode_batch(
                    channel, part, correlation_id, service_name
                )
                ids += new_ids
                lines += new_lines
            else:
                for payload_type, data in part:
                    own_id, line = self._writer.encode(
                        channel,
                        payload_type,
                        data,
                        correlation_id,
                        service_name,
                        f"{stem}-{len(ids)}",
                    )
                    ids.append(own_id)
                    lines.append(line)
            self._give_way()
        if not lines:
            return []
        longest = max(lines, key=len)
        if len(longest) > self._max_record_bytes:
            raise self._too_large(channel, longest, lines.index(longest))
        if stem is None:
            log.append(b"".join(lines), deadline)
            log.published += len(lines)
        else:
            self._append_once(log, list(zip(ids, lines, strict=True)), deadline)
        if begun:
            self._latencies.publish.add(begun)
        self._give_way()
        return ids

    def _begin(self) -> float:
        """Return the time if this one is to be measured: one in a slice of time; else 0."""
        now = _monotonic()
        if now < self._measure_at:
            return 0.0
        self._measure_at = now + SLICE_S
        return now

    def _log(self, channel: str) -> Log:
        log = self._logs[channel] = self._store.log(check_publish_channel(channel))
        return log

    def _too_large(
        self, channel: str, line: bytes, index: int | None = None
    ) -> RecordTooLargeError:
        which = "the record" if index is None else f"record {index} of the batch"
        return RecordTooLargeError(
            f"{channel}: {which} has {len(line)} bytes; storage.max_record_bytes allows "
            f"{self._max_record_bytes}"
        )

    def _append_once(
        self, log: Log, records: list[tuple[str, bytes]], deadline: float | None
    ) -> None:
        """Append the records whose ids the channel has not seen."""
        log.open(deadline)
        window = self._dedup.window(log.directory, log.ends_at)
        fresh: list[tuple[str, bytes]] = []
        present = 0
        try:
            with ExitStack() as claims:
                for message_id, line in records:
                    if window.claim(message_id, deadline, claims):
                        fresh.append((message_id, line))
                    else:
                        present += 1
                if fresh:
                    data = b"".join([line for _, line in fresh])
                    try:
                        end = log.append(data, deadline)
                    except LogFailedError:
                        window.doubt([message_id for message_id, _ in fresh])
                        raise
                    window.wrote([message_id for message_id, _ in fresh], len(data), end)
                    log.published += len(fresh)
        except (PublishTimeoutError, MessengerClosedError) as error:
            error.written = int(error.written) + present
            raise
        if present:  # of these it is known only that they are in the log
            try:
                log.confirm(present, deadline)
            except (PublishTimeoutError, MessengerClosedError) as error:
                error.written = len(records)
                raise

    def _give_way(self) -> None:
        """Let others run if publishing has kept them from it for a whole slice of time.

        A slice begins with the first publish since the hub last ran, which a callback tells: so
        one publish now and then costs nothing.
        """
        if not self._in_slice:
            self._in_slice = True
            self._slice_end = _monotonic() + SLICE_S
            self._run_callback(self._end_slice)
        elif _monotonic() > self._slice_end:
            gevent.sleep(SHORTEST_SLEEP_S)

    def _end_slice(self) -> None:
        self._in_slice = False


def _deadline(timeout_s: float) -> float:
    if not timeout_s >= 0:  # not a number is not either
        raise ValueError(f"timeout={timeout_s!r} must be seconds from 0 on")
    return _monotonic() + timeout_s
