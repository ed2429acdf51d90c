"""What the page asks for, and what it can have done: JSON from and to one messenger."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from time import monotonic
from typing import Any

import orjson

from keyop.deadletter_view import Record, read_details, read_letter
from keyop.deadletters import DeadLetters
from keyop.decode import strip_checksum
from keyop.look.conditions import all_hold, parse_condition
from keyop.look.moments import place
from keyop.look.records import Found, Reader
from keyop.look.sample import Row
from keyop.names import DEAD_LETTER_SUFFIX, check_channel, dead_letter_channel
from keyop.requeue import Requeue
from keyop.stats import ChannelStats
from keyop.version import __version__
from keyop.web.events import CONTENT_TYPE, event_stream
from keyop.web.host import Host
from keyop.web.http import HTTPError, Request, Response, json_response
from keyop.web.observer import Observer
from keyop.web.troubles import find_troubles

_MAX_MESSAGES = 500
# A request looks no longer for what fits a filter, and says where to go on.
_LOOK_S = 1.0
_RAW_BYTES = 4096


class Api:
    """Answers for one messenger."""

    def __init__(self, messenger: Host, observer: Observer) -> None:
        self._messenger = messenger
        self._observer = observer
        self._started = datetime.now(timezone.utc)

    # -- at a glance

    def overview(self, request: Request) -> Response:
        """Return how everything stands."""
        sample = self._observer.sample()
        messenger = self._messenger
        stats = messenger.stats()
        try:
            disk_total = shutil.disk_usage(stats.data_dir).total
        except OSError:  # shown as unknown
            disk_total = None
        troubles = find_troubles(
            messenger.config, sample, stats, disk_total, messenger.certificate_expires
        )
        by_name = {each.channel: each for each in stats.channels}
        return json_response(
            {
                "instance": stats.instance_name,
                "version": __version__,
                "time": sample.time,
                "started": self._started,
                "data_dir": stats.data_dir,
                "disk": {"free_bytes": sample.disk_free_bytes, "total_bytes": disk_total},
                "totals": sample.totals,
                "latency": {
                    "publish": asdict(stats.latency.publish),
                    "consume": asdict(stats.latency.consume),
                    "handler": asdict(stats.latency.handler),
                },
                "channels": [_channel(row, by_name.get(row.channel)) for row in sample.rows],
                "peers": [asdict(peer) for peer in stats.peers],
                "warnings": [each.as_json() for each in troubles],
            }
        )

    def history(self, request: Request) -> Response:
        """Return the last ten minutes."""
        self._observer.start()
        return json_response(self._observer.history.as_json())

    # -- messages

    def messages(self, request: Request, channel: str) -> Response:
        """Return some messages, from a place on or before one."""
        limit = request.number("limit", 100, 1, _MAX_MESSAGES)
        text = request.one("text").casefold()
        try:
            conditions = tuple(map(parse_condition, request.all("where")))
            position = place(request.one("from", "latest"))
        except ValueError as error:
            raise HTTPError(400, str(error)) from None

        def accept(found: Found) -> bool:
            if not all_hold(conditions, found.fields):
                return False
            return not text or text in found.line.decode("utf-8", "replace").casefold()

        with self._reader(channel) as reader:
            start, end = reader.bounds()
            if request.all("before"):
                high = request.number("before", 0, 0, end)
                begin = self._so_many_before(reader, limit, start, high, accept)
            elif position == "latest":
                high = end
                begin = self._so_many_before(reader, limit, start, end, accept)
            else:
                high, begin = end, reader.resolve(position)
            shown, behind, more = _collect(reader, begin, high, limit, accept)
        return json_response(
            {
                "channel": channel,
                "start": start,
                "end": end,
                "next": behind,
                "more": more,
                "messages": [_message(each) for each in shown],
            }
        )

    def _reader(self, channel: str) -> Reader:
        self._check_there(channel)
        limit = self._messenger.config.storage.max_record_bytes
        return Reader(self._observer.directory, channel, limit)

    @staticmethod
    def _so_many_before(reader: Reader, limit: int, start: int, end: int, accept: Any) -> int:
        """Return where the last accepted ones before an offset begin, as far as there is time."""
        until = monotonic() + _LOOK_S

        def in_time(found: Found) -> bool:
            # When the time is up everything counts, so that the search ends.
            return monotonic() > until or bool(accept(found))

        return reader.start_of_last(limit, start, end, in_time, lambda done, total: None)

    def events(self, request: Request, channel: str) -> Response:
        """Follow a channel."""
        last = request.header("Last-Event-ID") or request.one("from")
        with self._reader(channel):  # one that is not there is not made
            pass
        return Response(event_stream(self._messenger, channel, last), CONTENT_TYPE)

    # -- dead letters

    def dead_letters(self, request: Request, channel: str) -> Response:
        """Return dead letters, oldest first."""
        limit = request.number("limit", 100, 1, _MAX_MESSAGES)
        after = request.one("after")
        letters, count, seen, more = self._letters(channel), 0, not after, False
        shown: list[Record] = []
        for record in letters.waiting():
            count += 1
            if seen and len(shown) < limit:
                shown.append(record)
            else:
                more = seen
            seen = seen or record.id == after
        return json_response(
            {
                "channel": letters.channel,
                "count": count,
                "letters": [_letter(each, letters.channel) for each in shown],
                "more": more,
            }
        )

    def requeue(self, request: Request, channel: str) -> Response:
        """Send dead letters again."""
        body = request.json()
        to = body.get("to", "subscriber")
        if to not in ("subscriber", "channel"):
            raise HTTPError(400, f"to: {to!r} must be 'subscriber' or 'channel'")
        done = self._requeue(channel).requeue(_wanted(body), to_channel=to == "channel")
        refused = [{"id": each.id, "reason": each.reason} for each in done.refused]
        return json_response({"sent": len(done.sent), "refused": refused})

    def purge(self, request: Request, channel: str) -> Response:
        """Put dead letters away."""
        return json_response({"purged": self._requeue(channel).purge(_wanted(request.json()))})

    def _check_there(self, *channels: str) -> None:
        if not {check_channel(each) for each in channels} & set(self._observer.directory.names()):
            raise HTTPError(404, f"there is no channel {channels[0]!r}")

    def _letters(self, channel: str) -> DeadLetters:
        name = channel.removesuffix(DEAD_LETTER_SUFFIX)
        self._check_there(name, dead_letter_channel(name))
        limit = self._messenger.config.storage.max_record_bytes
        return DeadLetters(self._observer.directory, channel, limit)

    def _requeue(self, channel: str) -> Requeue:
        return Requeue(self._letters(channel), self._messenger.config.storage.segment_bytes)


def _channel(row: Row, stats: ChannelStats | None) -> dict[str, Any]:
    counted = {name: 0 if stats is None else getattr(stats, name) for name in _COUNTED}
    return {
        "channel": row.channel,
        "segments": row.segments,
        "disk_bytes": row.disk_bytes,
        "start": row.start,
        "end": row.end,
        "dead_letters": row.dead_letters,
        "bytes_per_s": row.bytes_per_s,
        "messages_per_s": row.messages_per_s,
        "failed": None if stats is None else stats.failed,
        **counted,
        "subscribers": [asdict(each) for each in row.positions],
    }


_COUNTED = ("published", "waits", "retries", "dropped_bytes")


def _collect(
    reader: Reader, begin: int, end: int, limit: int, accept: Any
) -> tuple[list[Found], int, bool]:
    """Return accepted ones between two offsets, where to go on, and whether there may be more."""
    shown: list[Found] = []
    behind, until = begin, monotonic() + _LOOK_S
    records: Iterator[Found] = reader.read(begin, end)
    for found in records:
        if len(shown) >= limit:
            return shown, found.offset, True
        behind = found.end
        if accept(found):
            shown.append(found)
        elif monotonic() > until:
            return shown, behind, True
    return shown, behind, False


def _message(found: Found) -> dict[str, Any]:
    record = None if found.fields is None else _fragment(strip_checksum(found.line))
    raw = found.line[:_RAW_BYTES].decode("utf-8", "backslashreplace")
    return {
        "offset": found.offset,
        "next": found.end,
        "damage": found.damage or None,
        "record": record,
        "raw": None if record is not None else raw,
    }


def _fragment(text: bytes) -> orjson.Fragment | None:
    """Return JSON as it is written; None for what v0.11.0 lets through and browsers do not."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return orjson.Fragment(text)


def _letter(record: Record, channel: str) -> dict[str, Any]:
    letter, details = read_letter(record, channel), read_details(record, channel)
    original: Any = None
    if details.original_json is not None:
        original = _fragment(details.original_json)
    raw = details.raw_base64
    if original is None and raw is None and details.original_json is not None:
        raw = details.original_json[:_RAW_BYTES].decode("utf-8", "backslashreplace")
    return {
        "id": letter.id,
        "time": letter.failed_at,
        "subscriber": letter.subscriber,
        "error": letter.error,
        "retries": letter.retries,
        "offset": letter.offset,
        "original": original,
        "raw": raw,
    }


def _wanted(body: dict[str, Any]) -> list[str] | None:
    """Return the ids meant; None for all.

    Raises:
        HTTPError: neither is said clearly.
    """
    ids, every = body.get("ids"), body.get("all", False)
    if every is True and ids is None:
        return None
    if every is False and isinstance(ids, list) and ids and all(isinstance(i, str) for i in ids):
        return ids
    raise HTTPError(400, 'say "ids": [...], with at least one, or "all": true')
