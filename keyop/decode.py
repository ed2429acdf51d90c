"""One JSON line → envelope: what counts as a record, and reading many of them fast.

``docs/format.md`` describes the line; :mod:`keyop.envelope` writes it.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn
from zlib import crc32

import orjson

from keyop.envelope import (
    CRC_MARK,
    MAX_MESSAGE_ID_CHARACTERS,
    OPTIONAL_TEXT_FIELDS,
    PAYLOAD_MARK,
    TEXT_FIELDS,
    VERSION,
    UnknownVersionError,
    constant_part,
)
from keyop.errors import CorruptRecordError
from keyop.timestamps import parse

_PLAIN_FIELDS = ["v", *TEXT_FIELDS, "payload"]
_MESSAGE_FIELDS = (*TEXT_FIELDS, *OPTIONAL_TEXT_FIELDS, "subscriber", "payload")
# What is remembered of payload types is bounded: they are chosen by whoever publishes.
_MAX_MIDDLES = 1024
_MAX_MIDDLE_BYTES = 4096
# A mark may stand in a field that is not known; looking for the right one has an end.
_MAX_MARKS = 4

_loads = orjson.loads


def decode(line: bytes) -> dict[str, Any]:
    """Return the fields of a record: a line without its newline.

    A line that ends with its payload has no checksum (v0.11.0 writes such lines) and is read as
    it is; of any other, the checksum must match and close the line.

    Raises:
        UnknownVersionError: ``v`` is not 1.
        CorruptRecordError: the checksum or the form is wrong.

    Source: docs/format.md, "Record".
    """
    if line[-18:-10] == CRC_MARK:
        if b'%08x"}' % crc32(line[:-18]) != line[-10:]:
            raise CorruptRecordError("the checksum does not match")
        line = line[:-18] + b"}"
    fields = _split(line)
    version = fields.get("v")
    if type(version) is not int:
        raise CorruptRecordError(f"the version is {version!r}, not a number")
    if version != VERSION:
        raise UnknownVersionError(f"envelope version {version} is not known")
    for name in TEXT_FIELDS:
        if fields.get(name) is None:  # v0.11.0 takes both for an empty string
            fields[name] = "0001-01-01T00:00:00Z" if name == "ts" else ""
    for name in OPTIONAL_TEXT_FIELDS:
        if name in fields and fields[name] is None:
            fields[name] = ""
    for name in (*TEXT_FIELDS, *OPTIONAL_TEXT_FIELDS):
        if not isinstance(fields.get(name, ""), str):
            raise CorruptRecordError(f"{name} is not a string")
    try:
        parse(fields["ts"])
    except ValueError as error:
        raise CorruptRecordError(str(error)) from None
    return fields


def _split(line: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object whose last one is its payload.

    Head and payload are parsed apart, because a parser of the whole line would not tell that one
    of the head's fields stands behind the payload again.
    """
    cut = line.find(PAYLOAD_MARK)
    for _ in range(_MAX_MARKS):
        if cut < 0:
            break
        try:
            fields = orjson.loads(line[:cut] + b"}")
            payload = orjson.loads(line[cut + len(PAYLOAD_MARK) : -1])
        except orjson.JSONDecodeError:
            # Perhaps inside an unknown field; else what the liberal way reads or refuses.
            cut = line.find(PAYLOAD_MARK, cut + 1)
            continue
        if type(fields) is not dict or line[-1:] != b"}" or "payload" in fields:
            break
        fields["payload"] = payload
        return fields
    return _split_liberally(line)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _split_liberally(line: bytes) -> dict[str, Any]:
    """Read what other writers write: blanks, invalid UTF-8, numbers beyond the double range."""
    outermost: list[tuple[str, Any]] = []

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal outermost
        outermost = pairs  # the last object to end is the outermost one
        return dict(pairs)

    try:
        text = line.decode("utf-8", "replace")
        fields = json.loads(text, object_pairs_hook=remember, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptRecordError(f"not a JSON object: {error}") from None
    if type(fields) is not dict:
        raise CorruptRecordError("not a JSON object")
    if not outermost or outermost[-1][0] != "payload":
        raise CorruptRecordError("something follows the payload, or it is missing")
    return fields


class EnvelopeReader:
    """Reads the records of one channel, faster than :func:`decode` where they resemble each other.

    What stands between the stamp and the payload is the same for most records of a channel. Of
    such a middle that :func:`decode` has seen in a sound record, only the payload is parsed.
    """

    def __init__(self) -> None:
        self._middles: dict[bytes, tuple[str, str, str]] = {}
        self._second = b""

    def read(self, line: bytes) -> dict[str, Any]:
        """Return what ``decode(line)`` returns, in the same order, but for the version.

        Raises:
            UnknownVersionError, CorruptRecordError: as :func:`decode`.
        """
        # {"v":1,"id":"36 characters","ts":"YYYY-MM-DDTHH:MM:SS.fffZ","channel":…,"payload":…
        if line[49:57] == b'","ts":"' and line[-18:-10] == CRC_MARK:
            if b'%08x"}' % crc32(line[:-18]) != line[-10:]:
                raise CorruptRecordError("the checksum does not match")
            cut = line.find(PAYLOAD_MARK)
            zone = line.find(b"Z", 78, 87)
            middle = self._middles.get(line[zone:cut])
            if (
                middle is not None
                and line[57:77] == self._second
                and line[77:zone].isdigit()
                and line.startswith(b'{"v":1,"id":"')
                and (own_id := line[13:49]).replace(b"-", b"").isalnum()
            ):
                try:
                    payload = _loads(line[cut + 11 : -18])
                except orjson.JSONDecodeError:
                    return _known(decode(line))
                return {
                    "id": own_id.decode(),
                    "ts": line[57 : zone + 1].decode(),
                    "channel": middle[0],
                    "origin": middle[1],
                    "payload_type": middle[2],
                    "payload": payload,
                }
            fields = decode(line)
            self._learn(line, fields, zone, cut)
            return _known(fields)
        return _known(decode(line))

    def _learn(self, line: bytes, fields: dict[str, Any], zone: int, cut: int) -> None:
        """Remember the middle of a sound record, if it is one of ours and may come again."""
        if list(fields) != _PLAIN_FIELDS:
            return
        names = fields["channel"], fields["origin"], fields["payload_type"]
        middle = line[zone:cut]
        if (
            middle == constant_part(*names).encode()
            and line[13:49] == fields["id"].encode()
            and line[57 : zone + 1] == fields["ts"].encode()
        ):
            self._second = line[57:77]
            if len(self._middles) < _MAX_MIDDLES and len(middle) < _MAX_MIDDLE_BYTES:
                self._middles[middle] = names


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields of a record that a message does not have."""
    return {name: fields[name] for name in _MESSAGE_FIELDS if name in fields}


def record_id(line: bytes) -> str | None:
    """Return a record's id, or None if the line is not a record or its id is overlong.

    Records of our own begin with the id at a known place, which spares parsing the line.
    """
    if line.startswith(b'{"v":1,"id":"') and line[-18:-10] == CRC_MARK:
        if b'%08x"}' % crc32(line[:-18]) != line[-10:]:
            return None
        text = line[13 : line.find(b'"', 13)]
        if b"\\" not in text and len(text) <= MAX_MESSAGE_ID_CHARACTERS:
            try:
                return text.decode()
            except UnicodeDecodeError:
                return None
    try:
        value: str = decode(line)["id"]
    except CorruptRecordError:
        return None
    return value if len(value) <= MAX_MESSAGE_ID_CHARACTERS else None
