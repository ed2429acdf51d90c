"""Envelope ↔ one JSON line, and ``Message``, which handlers are given.

The line is built and checked here and nowhere else; ``docs/format.md`` describes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn
from zlib import crc32

import orjson

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errors import CorruptRecordError, PayloadError
from keyop.ids import new_ids
from keyop.timestamps import parse, whole_second

VERSION = 1
CRC_MARK = b',"crc":"'
CRC_SUFFIX_BYTES = len(CRC_MARK) + 8 + len(b'"}')

_TEXT_FIELDS = ("id", "ts", "channel", "origin", "payload_type")
_OPTIONAL_TEXT_FIELDS = ("correlation_id", "service_name")
_MAX_FIELD_CHARACTERS = 1024
# One prefix is kept for each pair of channel and payload type; types are the user's, so bounded.
_MAX_CACHED_PREFIXES = 1024


class UnknownVersionError(CorruptRecordError):
    """The record is whole, but of a version that this library does not know."""


@dataclass(frozen=True)
class Message:
    """One message as a handler gets it.

    ``offset`` is the global byte offset of the record in its channel, ``attempt`` is 1 on the
    first delivery, ``timestamp`` is aware and in UTC. ``payload`` is decoded JSON, or what the
    class registered for ``payload_type`` made of it.
    """

    id: str
    channel: str
    origin: str
    payload_type: str
    payload: Any
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
        moment = fields["timestamp"] = parse(fields["_ts"])
        return moment


# A non-data descriptor: a value in the instance, put there by __init__ or by the first look,
# wins over it. Assigned after the decorator ran, which would take it for a default.
setattr(Message, "timestamp", _LazyTimestamp())  # noqa: B010

_new_message = Message.__new__
_set = object.__setattr__


def make_message(
    fields: Mapping[str, Any], channel: str, payload: Any, offset: int, attempt: int = 1
) -> Message:
    """Make a message of decoded fields, faster than its constructor does."""
    message = _new_message(Message)
    _set(
        message,
        "__dict__",
        {
            "id": fields["id"],
            "channel": channel,
            "origin": fields["origin"],
            "payload_type": fields["payload_type"],
            "payload": payload,
            "_ts": fields["ts"],
            "correlation_id": fields.get("correlation_id", ""),
            "service_name": fields.get("service_name", ""),
            "offset": offset,
            "attempt": attempt,
        },
    )
    return message


def check_text(value: object, field: str) -> str:
    """Return an envelope field given by a user, if a record can hold it.

    Raises:
        PayloadError: it is not a string, or has more than 1,024 characters.
    """
    if not isinstance(value, str):
        raise PayloadError(f"{field} must be a string, not {type(value).__name__}")
    if len(value) > _MAX_FIELD_CHARACTERS:
        raise PayloadError(
            f"{field} has {len(value)} characters; at most {_MAX_FIELD_CHARACTERS} are allowed"
        )
    return value


def _quoted(value: str, field: str) -> str:
    try:
        return orjson.dumps(check_text(value, field)).decode()
    except TypeError as error:  # a lone surrogate
        raise PayloadError(f"{field} {value!r} cannot be encoded: {error}") from None


class EnvelopeWriter:
    """Builds records for one instance. Not to be shared between processes: it makes the ids."""

    def __init__(self, origin: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._origin = origin
        self._time_ns = clock.time_ns
        self._second_ns = -1
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
            if not message_id:
                raise PayloadError("message_id must not be empty")
            quoted_id = _quoted(message_id, "message_id")[1:-1]
        now = self._time_ns()
        fraction = now - self._second_ns
        if not 0 < fraction < 1_000_000_000:
            fraction = self._begin_second(now)
        moment = f"{fraction:09d}".rstrip("0")
        if correlation_id or service_name or origin is not None:
            middle = self._prefix(channel, payload_type, correlation_id, service_name, origin)
        else:
            try:
                middle = self._prefixes[channel, payload_type]
            except KeyError:
                middle = self._prefix(channel, payload_type, "", "")
                if len(self._prefixes) >= _MAX_CACHED_PREFIXES:
                    self._prefixes.clear()
                self._prefixes[channel, payload_type] = middle
        body = (
            f'{{"v":1,"id":"{quoted_id}","ts":"{self._second_text}{moment}{middle}'.encode()
            + payload
        )
        return message_id, body + b',"crc":"%08x"}\n' % crc32(body)

    def _begin_second(self, now: int) -> int:
        seconds, fraction = divmod(now, 1_000_000_000)
        self._second_ns = seconds * 1_000_000_000
        self._second_text = whole_second(seconds)
        if fraction:
            self._second_text += "."
        else:
            self._second_ns = -1  # no dot this once, so the next record begins the second again
        return fraction

    def _prefix(
        self,
        channel: str,
        payload_type: str,
        correlation_id: str,
        service_name: str,
        origin: str | None = None,
    ) -> str:
        parts = [
            f'Z","channel":"{channel}","origin":',
            _quoted(self._origin if origin is None else origin, "origin"),
            ',"payload_type":',
            _quoted(payload_type, "payload_type"),
        ]
        if correlation_id:
            parts += ',"correlation_id":', _quoted(correlation_id, "correlation_id")
        if service_name:
            parts += ',"service_name":', _quoted(service_name, "service_name")
        parts.append(',"payload":')
        return "".join(parts)


def decode(line: bytes) -> dict[str, Any]:
    """Return the fields of a record: a line without its newline.

    A line that ends with its payload has no checksum (v0.11.0 writes such lines) and is read as
    it is; of any other, the checksum must match and close the line.

    Raises:
        UnknownVersionError: ``v`` is not 1.
        CorruptRecordError: the checksum or the form is wrong.

    Source: docs/format.md, "Record".
    """
    if line[-18:-10] != CRC_MARK:
        return _decode_unchecked(line)
    if b'%08x"}' % crc32(line[:-18]) != line[-10:]:
        raise CorruptRecordError("the checksum does not match")
    try:
        fields = orjson.loads(line)
        if fields.popitem()[0] == "crc" and next(reversed(fields)) == "payload":
            if fields["v"] == 1:
                return fields  # type: ignore[no-any-return] # a JSON object, shown by popitem
            raise UnknownVersionError(f"envelope version {fields['v']!r} is not known")
    except (orjson.JSONDecodeError, AttributeError, KeyError, StopIteration, RuntimeError):
        # Sealed with a right checksum all the same: numbers or bytes that only a v0.11.0
        # publisher writes, passed on by a hub. The slow path reads them or says what is wrong.
        pass
    return _decode_unchecked(line, checked=True)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _decode_unchecked(line: bytes, checked: bool = False) -> dict[str, Any]:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        # v0.11.0 lets raw payloads through that orjson refuses: invalid UTF-8, numbers beyond
        # the double range. Slower, and more liberal.
        try:
            text = line.decode("utf-8", "replace")
            fields = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CorruptRecordError(f"not a JSON object: {error}") from None
    if type(fields) is not dict:
        raise CorruptRecordError("not a JSON object")
    keys = list(fields)
    if keys[-2:] != ["payload", "crc"] if checked else keys[-1:] != ["payload"]:
        raise CorruptRecordError("something follows the payload, or it is missing")
    if checked:
        del fields["crc"]
    version = fields.get("v")
    if type(version) is not int:
        raise CorruptRecordError(f"the version is {version!r}, not a number")
    if version != VERSION:
        raise UnknownVersionError(f"envelope version {version} is not known")
    for name in _TEXT_FIELDS:
        if fields.get(name) is None:  # v0.11.0 takes both for an empty string
            fields[name] = "0001-01-01T00:00:00Z" if name == "ts" else ""
    for name in _OPTIONAL_TEXT_FIELDS:
        if name in fields and fields[name] is None:
            fields[name] = ""
    for name in (*_TEXT_FIELDS, *_OPTIONAL_TEXT_FIELDS):
        if not isinstance(fields.get(name, ""), str):
            raise CorruptRecordError(f"{name} is not a string")
    try:
        parse(fields["ts"])
    except ValueError as error:
        raise CorruptRecordError(str(error)) from None
    return fields


def record_id(line: bytes) -> str | None:
    """Return a record's id, or None if the line is not a record.

    Records of our own begin with the id at a known place, which spares parsing the line.
    """
    if line.startswith(b'{"v":1,"id":"'):
        end = line.find(b'"', 13)
        text = line[13:end]
        if end > 0 and b"\\" not in text:
            try:
                return text.decode()
            except UnicodeDecodeError:
                return None
    try:
        value: str = decode(line)["id"]
    except CorruptRecordError:
        return None
    return value
