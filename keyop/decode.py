"""One JSON line → envelope: what counts as a record, and reading many of them fast.

``docs/format.md`` describes the line; :mod:`keyop.envelope` writes it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn
from zlib import crc32

import orjson

from keyop.brief import brief
from keyop.envelope import (
    CRC_MARK,
    MAX_MESSAGE_ID_CHARACTERS,
    OPTIONAL_TEXT_FIELDS,
    PAYLOAD_MARK,
    TEXT_FIELDS,
    VERSION,
    UnknownVersionError,
)
from keyop.errors import CorruptRecordError
from keyop.timestamps import parse

# The fields that every record of ours has: also its version, its payload and its checksum.
_PLAIN_COUNT = len(TEXT_FIELDS) + 3
_MESSAGE_FIELDS = (*TEXT_FIELDS, *OPTIONAL_TEXT_FIELDS, "subscriber", "payload")
_HEAD = b'{"v":1,"id":"'
_OBJECT_AND_CRC = b"}" + CRC_MARK
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
    fields = _split(strip_checksum(line))
    version = fields.get("v")
    if type(version) is not int:
        raise CorruptRecordError(f"the version is {brief(version)}, not a number")
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


def strip_checksum(line: bytes) -> bytes:
    """Return a line without its checksum, if it has one and that is right."""
    if line[-18:-10] != CRC_MARK:
        return line
    body = line[:-18]
    if b'%08x"}' % crc32(body) != line[-10:]:
        raise CorruptRecordError("the checksum does not match")
    return body + b"}"


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


# Any escape of JSON; two halves of a surrogate pair are one.
_HIGH, _LOW = r"u[dD][89abAB][0-9a-fA-F]{2}", r"u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"\\(?:{_HIGH}\\{_LOW}|(?P<half>{_HIGH}|{_LOW})|.)", re.DOTALL)


def _whole_character(escape: re.Match[str]) -> str:
    return r"\ufffd" if escape["half"] else escape[0]


def _split_liberally(line: bytes) -> dict[str, Any]:
    """Read what other writers write: blanks, invalid UTF-8, numbers beyond the double range.

    Bytes that are no UTF-8, and halves of surrogate pairs, become U+FFFD, as they do in v0.11.0.
    """
    outermost: list[tuple[str, Any]] = []

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal outermost
        outermost = pairs  # the last object to end is the outermost one
        return dict(pairs)

    try:
        text = _ESCAPE.sub(_whole_character, line.decode("utf-8", "replace"))
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

    Records of our own have the same fields in the same order, and most of a channel come from
    one instance. For such, what :func:`decode` checks is known from a few comparisons.
    """

    def __init__(self) -> None:
        # What the latest record that decode has checked shares with others of its second.
        self._channel = self._origin = self._second = ""

    def read(self, line: bytes) -> dict[str, Any]:
        """Return what ``decode(line)`` returns of the fields that a message has.

        Raises:
            UnknownVersionError, CorruptRecordError: as :func:`decode`.
        """
        try:
            # A line that begins with the version and a text, and ends with an object, which only
            # a payload is: nothing stands behind it but its checksum.
            if line[-19:-10] == _OBJECT_AND_CRC and line.startswith(_HEAD):
                fields: dict[str, Any] = _loads(line)
                # What ends with an object may be a second version.
                count = _PLAIN_COUNT if fields["v"] == 1 else 0
                if fields["crc"] != f"{crc32(line[:-18]):08x}":
                    raise CorruptRecordError("the checksum does not match")
            else:
                fields = _split(strip_checksum(line))
                count = _PLAIN_COUNT - 1 if type(fields["v"]) is int and fields["v"] == 1 else 0
            stamp = fields["ts"]
            if (
                stamp[:20] == self._second
                and stamp[20:-1].isdecimal()
                and stamp.isascii()
                and stamp[-1] == "Z"
                and fields["channel"] == self._channel
                and fields["origin"] == self._origin
                and type(fields["payload_type"]) is type(fields["id"]) is str
                and "payload" in fields
                and (len(fields) == count or _has_only_known_beside(fields, count))
            ):
                return fields
        except (orjson.JSONDecodeError, KeyError, TypeError):
            pass  # decode says what is wrong, or reads what a strict parser refuses
        fields = decode(line)
        self._channel, self._origin = fields["channel"], fields["origin"]
        # One without a fraction has no dot there, and no other stamp begins as it does.
        self._second = fields["ts"][:20]
        return {name: fields[name] for name in _MESSAGE_FIELDS if name in fields}


def _has_only_known_beside(fields: dict[str, Any], count: int) -> bool:
    """Tell whether what is not in every record is known, and nothing that ends as a payload does.

    What came from a peer has a route, a list, which is left out then: no message has it.
    """
    found = [fields[name] for name in OPTIONAL_TEXT_FIELDS if name in fields]
    count += len(found)
    if "route" in fields:
        if type(fields["route"]) is not list:
            return False
        del fields["route"]
    return len(fields) == count and all(type(each) is str for each in found)


def record_id(line: bytes) -> str | None:
    """Return a record's id, or None if the line is not a record or its id is overlong.

    Records of our own begin with the id at a known place, which spares parsing the line.
    """
    if line.startswith(_HEAD) and line[-18:-10] == CRC_MARK:
        try:
            strip_checksum(line)
        except CorruptRecordError:
            return None
        text = line[len(_HEAD) : line.find(b'"', len(_HEAD))]
        if b"\\" not in text and len(text) <= MAX_MESSAGE_ID_CHARACTERS:
            try:
                return text.decode()
            except UnicodeDecodeError:
                pass  # decode replaces what is wrong with it
    try:
        value: str = decode(line)["id"]
    except CorruptRecordError:
        return None
    return value if len(value) <= MAX_MESSAGE_ID_CHARACTERS else None
