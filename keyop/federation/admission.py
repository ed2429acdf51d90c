"""A record from a peer → the line that is stored of it, or why it is not.

Nothing of the peer's own text is stored but the payload's bytes: the envelope is built anew from
fields that were checked, with the own name at the end of its route. So a record cannot smuggle in
a second line, a field twice, or a route that it has not taken.

Source: docs/wire.md, "Data".
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn
from zlib import crc32

import orjson

from keyop.brief import brief
from keyop.decode import strip_checksum
from keyop.envelope import (
    MAX_MESSAGE_ID_CHARACTERS,
    OPTIONAL_TEXT_FIELDS,
    PAYLOAD_MARK,
    constant_part,
    quoted,
)
from keyop.errors import CorruptRecordError, InvalidChannelNameError, PayloadError
from keyop.names import check_channel, instance_name_fault
from keyop.timestamps import parse

MAX_ROUTE = 64
# What may separate JSON's tokens, and would split a line: other control characters are no JSON.
_LINE_BREAKERS = re.compile(rb"[\x00-\x1f]")
_HEX = b"0123456789abcdef-"
# A correlation id without anything that JSON escapes; inside another text, its quotes would be.
_CORRELATION = re.compile(rb',"correlation_id":"[ !#-\[\]-~]{1,1024}"')
_ZERO = ord("0")
_ID_AT, _STAMP_AT = 13, 57
_HEAD = b'{"v":1,"id":"'
_BETWEEN = b'","ts":"'
# What is remembered for one peer is bounded: some 10 MiB at the very most.
_MAX_HEADS = 4096
_MAX_HEAD_BYTES = 1024
# A head is texts, a list of names, and what others may have added.
_MAX_HEAD_BRACKETS = 1024
# So much is looked at again, value by value, where a strict parser refuses it.
_MAX_LIBERAL_BYTES = 1 << 20
# From that size on the collector waits while a payload is parsed.
_LARGE_BYTES = 64 << 10
_ZERO_TIME = "0001-01-01T00:00:00Z"
_TEXT_FIELDS = ("id", "ts", "channel", "origin", "payload_type")


class MalformedError(Exception):
    """A record that cannot be stored; it is skipped, counted and acknowledged."""


class Head(NamedTuple):
    """What many records of one channel share: whose they are, and how they go on from here.

    ``stored`` is what stands between the stamp's digits and the payload, the own name in the
    route; ``optional_at`` is where a correlation id stands in it.
    """

    channel: str
    origin: str
    route: tuple[str, ...]
    stored: bytes
    optional_at: int


class Admitted(NamedTuple):
    """A record that may be stored. ``line`` ends with its newline."""

    message_id: str
    head: Head
    line: bytes


class Admission:
    """Checks the records of one peer.

    Args:
        instance_name: this instance's, appended to every route.
        peer: whose records they are; a route that is there must end with it.
        max_record_bytes: of the line that is stored, newline included.
    """

    def __init__(self, instance_name: str, peer: str, max_record_bytes: int) -> None:
        self._name = instance_name
        self._peer = peer
        self._max_record_bytes = max_record_bytes
        self._heads: dict[bytes, Head] = {}
        self._second = b""

    def admit(self, record: bytes) -> Admitted:
        """Check one record and build its line.

        Raises:
            MalformedError: it is not a record, or not one that may come from this peer.
        """
        if len(record) >= self._max_record_bytes:
            raise MalformedError(f"a record of {len(record)} bytes")
        try:
            sound = strip_checksum(record)
        except CorruptRecordError as error:
            raise MalformedError(str(error)) from None
        admitted = self._admit_alike(sound) or self._admit(sound)
        if len(admitted.line) > self._max_record_bytes:
            raise MalformedError(f"a record of {len(admitted.line)} bytes with its route")
        return admitted

    def _admit_alike(self, record: bytes) -> Admitted | None:
        """Admit a record whose head, but for its id and stamp, was checked before.

        {"v":1,"id":"36 characters","ts":"YYYY-MM-DDTHH:MM:SS.fffZ","channel":…,"payload":…}
        """
        if record[49:57] != _BETWEEN or not record.startswith(_HEAD):
            return None
        cut = record.find(PAYLOAD_MARK)
        zone = record.find(b"Z", 78, 87)
        middle = record[zone:cut]
        head = self._heads.get(middle)
        stored = head.stored if head is not None else b""
        if head is None and (found := _CORRELATION.search(middle)) is not None:
            at = found.start()
            head = self._heads.get(middle[:at] + middle[found.end() :])
            if head is None or at != head.optional_at:
                return None
            stored = head.stored[:at] + found[0] + head.stored[at:]
        own_id = record[_ID_AT:49]
        if (
            head is None
            or record[_STAMP_AT:77] != self._second
            or not record[77:zone].isdigit()
            or record[zone - 1] == _ZERO
            or own_id.translate(None, _HEX)
            or record[-1:] != b"}"
        ):
            return None
        payload = record[cut + 11 : -1]
        if _is_line(payload):
            body = b"".join((record[:zone], stored, payload))
            return Admitted(own_id.decode(), head, body + b',"crc":"%08x"}\n' % crc32(body))
        return None

    def _admit(self, record: bytes) -> Admitted:
        fields, payload = _split(record)
        if type(fields.get("v")) is not int or fields["v"] != 1:
            raise MalformedError(f"version {brief(fields.get('v'))}")
        for name in (*_TEXT_FIELDS, *OPTIONAL_TEXT_FIELDS):
            value = fields.get(name)
            if value is None:  # v0.11.0 takes it for a zero value
                fields[name] = _ZERO_TIME if name == "ts" else ""
            elif not isinstance(value, str):
                raise MalformedError(f"{name} is not a text")
        message_id = fields["id"]
        if len(message_id) > MAX_MESSAGE_ID_CHARACTERS:
            raise MalformedError("its id is too long")
        try:
            stamp = _as_written_here(fields["ts"])
            head = self._head(fields)
            stored = _insert_correlation(head, fields["correlation_id"])
            quoted_id, quoted_stamp = quoted(message_id, "id"), quoted(stamp, "ts")
        except (ValueError, InvalidChannelNameError, PayloadError) as error:
            raise MalformedError(str(error)) from None
        body = f'{{"v":1,"id":{quoted_id},"ts":{quoted_stamp[:-1]}"'.encode()
        body += stored[2:] + payload
        if quoted_stamp.endswith('Z"'):
            self._learn(record, quoted_id, quoted_stamp, fields, head)
        return Admitted(message_id, head, body + b',"crc":"%08x"}\n' % crc32(body))

    def _head(self, fields: dict[str, Any]) -> Head:
        channel, origin = check_channel(fields["channel"]), fields["origin"]
        route = _route(fields.get("route"))
        if route and route[-1] != self._peer:
            raise ValueError(f"its route ends with {route[-1]!r}, and not with the peer")
        stored = constant_part(channel, origin, fields["payload_type"])
        optional_at = len(stored.encode())
        stored += _service(fields) + _route_field((*route, self._name))
        return Head(channel, origin, route, stored.encode() + PAYLOAD_MARK, optional_at)

    def _learn(
        self, record: bytes, quoted_id: str, quoted_stamp: str, fields: dict[str, Any], head: Head
    ) -> None:
        """Remember a head that stands in the record just as it would be written here."""
        begin = f'{{"v":1,"id":{quoted_id},"ts":{quoted_stamp[:-2]}'
        constant = constant_part(head.channel, head.origin, fields["payload_type"])
        rest = _service(fields) + (_route_field(head.route) if head.route else "")
        correlation = _correlation(fields["correlation_id"])
        as_written = (begin + constant + correlation + rest).encode()
        if not record.startswith(as_written + PAYLOAD_MARK):
            return
        # Only where an id of 36 characters and a fraction of the second make it stand there.
        if record[49:_STAMP_AT] == _BETWEEN and record[76:77] == b".":
            self._second = record[_STAMP_AT:77]
        if len(self._heads) < _MAX_HEADS and len(constant) + len(rest) < _MAX_HEAD_BYTES:
            # Without the correlation id: it is another one in the next record.
            self._heads[(constant + rest).encode()] = head


def _as_written_here(stamp: str) -> str:
    """Return a stamp in the form of ``format.md``, which is that of v0.11.0.

    Raises:
        ValueError: it is none.
    """
    parse(stamp)
    moment, zone = (stamp[:-1], "Z") if stamp[-1] == "Z" else (stamp[:-6], stamp[-6:])
    second, fraction = moment[:19], moment[20:29].rstrip("0")
    if zone in ("+00:00", "-00:00"):
        zone = "Z"
    return f"{second}.{fraction}{zone}" if fraction else second + zone


def _correlation(value: str) -> str:
    return f',"correlation_id":{quoted(value, "correlation_id")}' if value else ""


def _insert_correlation(head: Head, value: str) -> bytes:
    at = head.optional_at
    return head.stored[:at] + _correlation(value).encode() + head.stored[at:]


def _service(fields: dict[str, Any]) -> str:
    name = fields["service_name"]
    return f',"service_name":{quoted(name, "service_name")}' if name else ""


def _route_field(route: Sequence[str]) -> str:
    return f',"route":[{",".join([quoted(name, "route") for name in route])}]'


def _route(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) >= MAX_ROUTE:
        raise ValueError(f"its route is no list of fewer than {MAX_ROUTE} names")
    for name in value:
        fault = instance_name_fault(name)
        if fault is not None:
            raise ValueError(f"its route: {fault}")
    return tuple(value)


def _split(record: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the head's fields, each there once, and the payload's bytes.

    Raises:
        MalformedError: it is not a JSON object that ends with its payload.
    """
    if _LINE_BREAKERS.search(record) is not None:
        raise MalformedError("a control character between its tokens, or within")
    cut = record.find(PAYLOAD_MARK)
    for _ in range(4):
        if cut < 0 or not record.endswith(b"}"):
            break
        if record.count(b"{", 0, cut) + record.count(b"[", 0, cut) > _MAX_HEAD_BRACKETS:
            raise MalformedError("too many values before its payload")
        payload = record[cut + len(PAYLOAD_MARK) : -1]
        fields = _unique_fields(record[:cut] + b"}")
        if fields is not None and _is_line(payload):
            if "payload" in fields:
                raise MalformedError("its payload is there twice")
            return fields, payload
        cut = record.find(PAYLOAD_MARK, cut + 1)  # it stood within an unknown field
    raise MalformedError("it is not a JSON object that ends with its payload")


def _unique_fields(head: bytes) -> dict[str, Any] | None:
    outermost: list[tuple[str, Any]] = []

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal outermost
        outermost = pairs  # the last object to end is the outermost one
        return dict(pairs)

    try:
        text = head.decode("utf-8", "replace")
        fields: dict[str, Any] = json.loads(
            text, object_pairs_hook=remember, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        return None
    if len(outermost) != len(fields):  # an object, which is all that ends with a brace
        raise MalformedError("one of its fields is there twice")
    return fields


def _parse(payload: bytes) -> None:
    # Millions of new lists would have the collector look at all of them again and again.
    pausing = len(payload) > _LARGE_BYTES and gc.isenabled()
    if pausing:
        gc.disable()
    try:
        orjson.loads(payload)
    finally:
        if pausing:
            gc.enable()


def _is_line(payload: bytes) -> bool:
    """Tell whether a payload is JSON on one line."""
    if b"\n" in payload or b"\r" in payload or b"\t" in payload:
        return False
    try:
        _parse(payload)
    except orjson.JSONDecodeError:
        if len(payload) > _MAX_LIBERAL_BYTES:  # which would hold everybody up for seconds
            return False
        # v0.11.0 lets through what a strict parser refuses: invalid UTF-8, numbers beyond the
        # double range. Not anything else: a control character would be refused here as well.
        try:
            json.loads(payload.decode("utf-8", "replace"), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
    return True


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
