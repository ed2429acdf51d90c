"""What the page asks for, and what it can have done: JSON from and to one messenger."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson

from keyop.brief import brief
from keyop.deadletter_view import Record, read_details
from keyop.deadletters import DeadLetters
from keyop.decode import strip_checksum
from keyop.look.conditions import all_hold, parse_condition
from keyop.look.letters import Page
from keyop.look.moments import place
from keyop.look.records import Found, Reader
from keyop.look.sample import Row
from keyop.names import (
    DEAD_LETTER_SUFFIX,
    check_channel,
    check_publish_channel,
    dead_letter_channel,
)
from keyop.pace import Pace
from keyop.requeue import Requeue
from keyop.stats import ChannelStats, PeerStats
from keyop.storage.position import Position
from keyop.version import __version__
from keyop.web.events import CONTENT_TYPE, event_stream
from keyop.web.host import Host
from keyop.web.http import HTTPError, Request, Response, json_response, printable
from keyop.web.observer import Observer
from keyop.web.paging import PAGE_BYTES, page_before, page_from
from keyop.web.troubles import find_troubles

_MAX_MESSAGES = 500
_RAW_BYTES = 4096
# That a browser has gone is seen when something is sent to it.
_HEARTBEAT_S = 5.0


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
        stats = self._observer.stats()
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
                "data_dir": printable(stats.data_dir),
                "disk": {"free_bytes": sample.disk_free_bytes, "total_bytes": disk_total},
                "totals": sample.totals,
                "latency": stats.latency,
                "channels": [_channel(row, by_name.get(row.channel)) for row in sample.rows],
                "peers": [_peer(each, sample.time) for each in stats.peers],
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
        position = _place(request.one("from", "latest"))
        try:
            conditions = tuple(map(parse_condition, request.all("where")))
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
                page = page_before(reader, start, high, limit, accept)
            elif position == "latest":
                page = page_before(reader, start, end, limit, accept)
            else:
                page = page_from(reader, reader.resolve(position), end, limit, accept)
            pace, messages = Pace(), []
            for found in page.shown:
                messages.append(_message(found))
                pace.step()
        return json_response(
            {
                "channel": channel,
                "start": start,
                "end": end,
                "previous": page.previous if page.previous != start else None,
                "next": page.next,
                "more": page.more,
                "messages": messages,
            }
        )

    def _reader(self, channel: str) -> Reader:
        self._check_there(channel)
        limit = self._messenger.config.storage.max_record_bytes
        return Reader(self._observer.directory, channel, limit, known=True)

    def events(self, request: Request, channel: str) -> Response:
        """Follow a channel."""
        last = request.header("Last-Event-ID")
        position = _place(request.one("from", "latest"))
        self._check_there(channel)  # one that is not there is not made
        if request.method == "HEAD":
            return Response(b"", CONTENT_TYPE)
        stream = event_stream(
            self._messenger, channel, last, start=position, heartbeat_s=_HEARTBEAT_S
        )
        return Response(stream, CONTENT_TYPE, headers=_UNBUFFERED)

    # -- dead letters

    def dead_letters(self, request: Request, channel: str) -> Response:
        """Return dead letters, oldest first."""
        limit = request.number("limit", 100, 1, _MAX_MESSAGES)
        after = request.one("after")
        name = self._check_failed(channel)
        waiting = self._observer.sampler.letters
        count, page = 0, Page([], False)
        if dead_letter_channel(name) in self._observer.directory.names():
            with self._reader(dead_letter_channel(name)) as reader:
                count = waiting.count(name, *reader.bounds())
            page = waiting.page(name, after, limit, PAGE_BYTES)
        pace, shown = Pace(), []
        for record in page.letters:
            shown.append(_letter(record, name))
            pace.step()
        return json_response({"channel": name, "count": count, "letters": shown, "more": page.more})

    def requeue(self, request: Request, channel: str) -> Response:
        """Send dead letters again."""
        body = request.json()
        to = body.get("to", "subscriber")
        if to not in ("subscriber", "channel"):
            raise HTTPError(400, f"to: {brief(to)} must be 'subscriber' or 'channel'")
        done = self._requeue(channel).requeue(_wanted(body), to_channel=to == "channel")
        refused = [{"id": each.id, "reason": each.reason} for each in done.refused]
        return json_response({"sent": len(done.sent), "refused": refused})

    def purge(self, request: Request, channel: str) -> Response:
        """Put dead letters away."""
        return json_response({"purged": self._requeue(channel).purge(_wanted(request.json()))})

    def _check_there(self, *channels: str) -> None:
        if not {check_channel(each) for each in channels} & set(self._observer.directory.names()):
            raise HTTPError(404, f"there is no channel {channels[0]!r}")

    def _check_failed(self, channel: str) -> str:
        """Return the channel in which messages failed; it may be named by its dead letters."""
        name = check_publish_channel(channel.removesuffix(DEAD_LETTER_SUFFIX))
        self._check_there(name, dead_letter_channel(name))
        return name

    def _requeue(self, channel: str) -> Requeue:
        storage = self._messenger.config.storage
        letters = DeadLetters(
            self._observer.directory, self._check_failed(channel), storage.max_record_bytes
        )
        return Requeue(letters, storage.segment_bytes)


# Proxies that gather what they pass on must not do so.
_UNBUFFERED = {"X-Accel-Buffering": "no"}


def _place(text: str) -> Position:
    try:
        return place(text)
    except ValueError as error:
        raise HTTPError(400, f"from: {error}") from None


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
        "subscribers": row.positions,
    }


def _peer(peer: PeerStats, now: datetime) -> dict[str, Any]:
    since = None if peer.connected_s is None else now - timedelta(seconds=peer.connected_s)
    return {
        "name": peer.name,
        "kind": peer.kind,
        "address": peer.address,
        "state": "connecting" if peer.state in ("waiting", "stopped") else peer.state,
        "since": since,
        "detail": peer.detail,
        "reconnects": peer.reconnects,
        "backlog_bytes": peer.backlog_bytes,
        "round_trip_s": peer.round_trip_s,
        "sent": peer.sent,
        "received": peer.received,
        "dropped_bytes": peer.dropped_bytes,
        "undeliverable": peer.undeliverable,
        "failures": peer.failures,
    }


_COUNTED = ("published", "waits", "retries", "dropped_bytes")


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
    details = read_details(record, channel)
    letter = details.letter
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
