"""Envelope ↔ one JSON line, and ``Message``, which handlers are given.

The line is built and checked here and nowhere else; ``docs/format.md`` describes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic
from zlib import crc32

import orjson

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errors import CorruptRecordError, PayloadError
from keyop.ids import new_ids
from keyop.timestamps import format_ns, parse_shared, whole_second

if TYPE_CHECKING:
    # A plain ``Message`` is one of anything. Only checkers, which bring it, need the extension.
    from typing_extensions import TypeVar

    PayloadT = TypeVar("PayloadT", default=Any, covariant=True)
else:
    from typing import TypeVar

    PayloadT = TypeVar("PayloadT", covariant=True)

VERSION = 1
CRC_MARK = b',"crc":"'
PAYLOAD_MARK = b',"payload":'
CRC_SUFFIX_BYTES = len(CRC_MARK) + 8 + len(b'"}')

TEXT_FIELDS = ("id", "ts", "channel", "origin", "payload_type")
OPTIONAL_TEXT_FIELDS = ("correlation_id", "service_name")
# Ids are kept by the hundred thousand, so that what is written twice is recognised.
MAX_MESSAGE_ID_CHARACTERS = 255
# Payload types are the users', so what is remembered of them is bounded in number and size.
_MAX_CACHED_MIDDLES = 1024
_MAX_CACHED_BYTES = 4096


class UnknownVersionError(CorruptRecordError):
    """The record is whole, but of a version that this library does not know."""


@dataclass(frozen=True)
class Message(Generic[PayloadT]):
    """One message as a handler gets it.

    ``offset`` is the global byte offset of the record in its channel, ``attempt`` is 1 on the
    first delivery, ``timestamp`` is aware and in UTC. ``payload`` is decoded JSON, or what the
    class registered for ``payload_type`` made of it: ``Message[Order]`` says so to type checkers.
    """

    id: str
    channel: str
    origin: str
    payload_type: str
    payload: PayloadT
    timestamp: datetime
    correlation_id: str = ""
    service_name: str = ""
    offset: int = 0
    attempt: int = 1


class _LazyTimestamp:
    """Parses a message's timestamp when it is first asked for: most handlers never do."""

    def __get__(self, message: Message | None, owner: type) -> Any:
        if message is None:
            return self
        fields = message.__dict__
        moment = fields["timestamp"] = parse_shared(fields["ts"])
        return moment


# A non-data descriptor: a value in the instance, put there by __init__ or by the first look,
# wins over it. Assigned after the decorator ran, which would take it for a default.
setattr(Message, "timestamp", _LazyTimestamp())  # noqa: B010

_new_message = Message.__new__
_set = object.__setattr__


def make_message(fields: dict[str, Any], channel: str, offset: int, attempt: int = 1) -> Message:
    """Make a message of what :class:`EnvelopeReader` read, faster than its constructor does.

    Args:
        fields: become the message's own, so they are given away.
    """
    fields["channel"] = channel
    fields["offset"] = offset
    if attempt != 1:  # otherwise the class says so
        fields["attempt"] = attempt
    message = _new_message(Message)
    _set(message, "__dict__", fields)
    return message


def check_text(value: object, field: str) -> str:
    """Return an envelope field given by a user, if it is text.

    Raises:
        PayloadError: it is not a string.
    """
    if not isinstance(value, str):
        raise PayloadError(f"{field} must be a string, not {type(value).__name__}")
    return value


def check_message_id(value: object) -> str:
    """Return a message id of a user's own, if a record can hold it.

    Raises:
        PayloadError: it is not a string of 1 to 255 characters.
    """
    message_id = check_text(value, "message_id")
    if not 0 < len(message_id) <= MAX_MESSAGE_ID_CHARACTERS:
        raise PayloadError(
            f"message_id has {len(message_id)} characters; use 1 to {MAX_MESSAGE_ID_CHARACTERS}"
        )
    return message_id


def quoted(value: str, field: str) -> str:
    try:
        return orjson.dumps(check_text(value, field)).decode()
    except TypeError as error:  # a lone surrogate
        raise PayloadError(f"{field} {value!r} cannot be encoded: {error}") from None


class EnvelopeWriter:
    """Builds records for one instance. Not to be shared between processes: it makes the ids."""

    def __init__(self, origin: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._origin = origin
        self._time_ns = clock.time_ns
        # The second of the latest stamp: its beginning, and its text with a dot behind.
        self._second_ns = -1 << 63
        self._second_text = ""
        self._prefixes: dict[tuple[str, str], str] = {}
        self._ids: list[str] = []

    def new_id(self) -> str:
        """Return a fresh UUID, version 4."""
        if not self._ids:
            self._ids = new_ids()
        return self._ids.pop()

    def encode(
        self,
        channel: str,
        payload_type: str,
        payload: bytes,
        correlation_id: str = "",
        service_name: str = "",
        message_id: str | None = None,
        origin: str | None = None,
    ) -> tuple[str, bytes]:
        """Return the id and the line, newline included, of a new record stamped now.

        Args:
            payload: JSON without a newline.
            message_id: the caller's own id; without it, a new UUID.
            origin: another instance than this one, where a record is made on its behalf.

        Raises:
            PayloadError: a field cannot be held in a record.
        """
        if message_id is None:
            try:
                message_id = quoted_id = self._ids.pop()
            except IndexError:
                message_id = quoted_id = self.new_id()
        else:
            quoted_id = quoted(check_message_id(message_id), "message_id")[1:-1]
        now = self._time_ns()
        fraction = now - self._second_ns
        if not 0 < fraction < 1_000_000_000:
            moment = self._begin_second(now)
        elif fraction % 10:
            moment = f"{self._second_text}{fraction:09d}"
        else:
            moment = f"{self._second_text}{fraction:09d}".rstrip("0")
        if correlation_id or service_name or origin is not None:
            middle = self._prefix(channel, payload_type, correlation_id, service_name, origin)
        else:
            try:
                middle = self._prefixes[channel, payload_type]
            except KeyError:
                middle = self._prefix(channel, payload_type, "", "")
                if len(self._prefixes) >= _MAX_CACHED_MIDDLES:
                    self._prefixes.clear()
                if len(middle) < _MAX_CACHED_BYTES:
                    self._prefixes[channel, payload_type] = middle
        body = f'{{"v":1,"id":"{quoted_id}","ts":"{moment}{middle}'.encode() + payload
        return message_id, body + b',"crc":"%08x"}\n' % crc32(body)

    def encode_batch(
        self,
        channel: str,
        messages: Sequence[tuple[str, bytes]],
        correlation_id: str = "",
        service_name: str = "",
    ) -> tuple[list[str], list[bytes]]:
        """Return the ids and the lines of new records that share one stamp.

        Args:
            messages: pairs of payload type and payload, as :meth:`encode` takes them.

        Raises:
            PayloadError: a field cannot be held in a record.
        """
        stamp = f'","ts":"{self._begin_second(self._time_ns())}'
        # What follows the id, of each type.
        rests: dict[str, bytes] = {}
        last_type: object = None
        for payload_type, _ in messages:
            if payload_type != last_type:
                last_type = payload_type
                middle = self._prefix(channel, payload_type, correlation_id, service_name)
                rests[payload_type] = (stamp + middle).encode()
        ids = self._take_ids(len(messages))
        join = b"".join
        bodies = [
            join((b'{"v":1,"id":"', message_id.encode(), rests[payload_type], payload))
            for message_id, (payload_type, payload) in zip(ids, messages, strict=True)
        ]
        return ids, [b'%b,"crc":"%08x"}\n' % (body, crc32(body)) for body in bodies]

    def _take_ids(self, count: int) -> list[str]:
        ids = self._ids
        while len(ids) < count:
            ids += new_ids()
        at = len(ids) - count
        taken = ids[at:]
        del ids[at:]
        return taken

    def _begin_second(self, now: int) -> str:
        """Return the stamp of any moment, without its zone, and remember its second."""
        seconds, fraction = divmod(now, 1_000_000_000)
        self._second_ns = seconds * 1_000_000_000
        self._second_text = whole_second(seconds) + "."
        if not fraction:
            return self._second_text[:-1]
        return f"{self._second_text}{fraction:09d}".rstrip("0")

    def _prefix(
        self,
        channel: str,
        payload_type: str,
        correlation_id: str,
        service_name: str,
        origin: str | None = None,
    ) -> str:
        middle = constant_part(channel, self._origin if origin is None else origin, payload_type)
        if correlation_id:
            middle += f',"correlation_id":{quoted(correlation_id, "correlation_id")}'
        if service_name:
            middle += f',"service_name":{quoted(service_name, "service_name")}'
        return middle + ',"payload":'


def constant_part(channel: str, origin: str, payload_type: str) -> str:
    """Return what stands between the digits of the stamp and the optional fields."""
    return (
        f'Z","channel":"{channel}","origin":{quoted(origin, "origin")}'
        f',"payload_type":{quoted(payload_type, "payload_type")}'
    )


def encode_again(
    fields: Mapping[str, Any],
    channel: str,
    payload: bytes,
    time_ns: int,
    subscriber_id: str | None = None,
) -> bytes:
    """Return the line, newline included, of a record that is sent again: as it was, stamped now.

    Args:
        fields: the record's, as ``decode`` returns them.
        payload: its payload as it stands in the record.
        subscriber_id: the only one to get it; without it, everybody.

    Raises:
        PayloadError: a field cannot be held in a record.
    """
    message_id = quoted(fields["id"], "id")
    moment = format_ns(time_ns)[:-1]
    middle = constant_part(channel, fields["origin"], fields["payload_type"])
    for name in OPTIONAL_TEXT_FIELDS:
        if fields.get(name):
            middle += f',"{name}":{quoted(fields[name], name)}'
    route = fields.get("route")
    if route and isinstance(route, list) and all(isinstance(each, str) for each in route):
        middle += f',"route":[{",".join(quoted(each, "route") for each in route)}]'
    if subscriber_id is not None:
        middle += f',"subscriber":{quoted(subscriber_id, "subscriber")}'
    body = f'{{"v":1,"id":{message_id},"ts":"{moment}{middle},"payload":'.encode() + payload
    return body + b',"crc":"%08x"}\n' % crc32(body)
