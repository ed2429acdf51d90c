"""What is, or is not, a record: as it lies in a segment, and as a peer sends it."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import orjson

from keyop.decode import EnvelopeReader, decode, record_id, strip_checksum
from keyop.envelope import MAX_MESSAGE_ID_CHARACTERS
from keyop.errors import CorruptRecordError
from keyop.federation.admission import MAX_ROUTE, Admission, Admitted, MalformedError
from keyop.look.records import raw_payload
from keyop.names import check_channel
from keyop.rawjson import members
from keyop.salvage import salvage
from keyop.timestamps import parse
from tests.integration.helpers import crc_holds, record

from .checks import insist

NAME, PEER = "here", "there"
MAX_RECORD_BYTES = 4096
MESSAGE_ID = "0b5e9a4c-0000-4000-8000-000000000000"
# What is remembered of these lets others like them take the short ways.
PRIMER = [
    record({"a": 1}, id=MESSAGE_ID).rstrip(b"\n"),
    record({"a": 1}, id=MESSAGE_ID, service_name="svc").rstrip(b"\n"),
    record({"a": 1}, id=MESSAGE_ID, route=["first", PEER], crc=False).rstrip(b"\n"),
]
_FIELDS = (
    *("id", "ts", "channel", "origin", "payload_type"),
    *("correlation_id", "service_name", "subscriber", "payload"),
)
_LONG_NUMBER = re.compile(r"\b[0-9]{19,}\b(?!\.)")
_HALF = re.compile(r"\\ud[89a-f][0-9a-f]{2}")
_CHECKSUM = re.compile(rb',"crc":"[0-9a-f]{8}"\}$')


def records(data: bytes) -> None:
    """Feed lines, one after the other, to all who read records."""
    reader, admission = _warm_reader(), _warm_admission()
    for line in data.split(b"\n"):
        check_record(line, reader, admission)


def with_checksum(line: bytes) -> bytes:
    """Return a line with the right checksum, in the place of the one that it has."""
    body = line[:-18] if _CHECKSUM.search(line) else line[:-1]
    return body + b',"crc":"%08x"}' % zlib.crc32(body)


def mended(data: bytes) -> bytes:
    """Return lines with right checksums where they have some, so that what is inside is read."""
    lines = data.split(b"\n")
    return b"\n".join(with_checksum(each) if _CHECKSUM.search(each) else each for each in lines)


def _warm_reader() -> EnvelopeReader:
    reader = EnvelopeReader()
    for each in PRIMER:
        reader.read(each)
    return reader


def _warm_admission() -> Admission:
    admission = Admission(NAME, PEER, MAX_RECORD_BYTES)
    for each in PRIMER:
        admission.admit(each)
    return admission


def check_record(
    line: bytes, reader: EnvelopeReader | None = None, admission: Admission | None = None
) -> None:
    """Check all that is made of one line, which may be a record or not."""
    fields = check_decoding(line, reader or _warm_reader())
    _check_pieces(line)
    _check_admission(line, fields, admission or _warm_admission())


def check_decoding(line: bytes, reader: EnvelopeReader) -> dict[str, Any] | None:
    """Return the fields of a record, None if it is none; all who read it must agree."""
    try:
        fields = decode(line)
    except CorruptRecordError as error:
        try:
            reader.read(line)
        except CorruptRecordError as other:
            insist(type(other) is type(error), (other, error))
            return None
        raise AssertionError(f"it is read, and not decoded: {error}") from error
    read = reader.read(line)
    for name in _FIELDS:
        assert shown(read.get(name)) == shown(fields.get(name)), name
    fits = len(fields["id"]) <= MAX_MESSAGE_ID_CHARACTERS
    text = strip_checksum(line)
    if _names_are_unique(text):  # otherwise any of them may be meant
        assert record_id(line) == (fields["id"] if fits else None)
    parse(fields["ts"])
    assert shown(_value(raw_payload(line))) == shown(fields["payload"])
    assert members(text)["payload"].strip() == raw_payload(line).strip()
    return fields


def shown(value: object) -> str:
    """Return a value as it is compared: bounded in depth, and numbers as far as all keep them.

    An integer beyond 64 bits is one to one parser, and a float to another; half of a surrogate pair
    is that, or replaced.
    """
    try:
        text = _LONG_NUMBER.sub(lambda match: repr(float(match[0])), repr(value))
        return _HALF.sub("\N{REPLACEMENT CHARACTER}", text)
    except RecursionError:
        return "deep"


def _names_are_unique(text: bytes) -> bool:
    counts: list[bool] = []

    def count(pairs: list[tuple[str, Any]]) -> None:
        counts.append(len(pairs) == len(dict(pairs)))

    try:
        json.loads(text.decode("utf-8", "replace"), object_pairs_hook=count)
    except RecursionError:
        return False
    return counts[-1]  # the outermost ends last


def _value(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return json.loads(payload.decode("utf-8", "replace"))


def _check_pieces(line: bytes) -> None:
    """What is saved of a line is whole, and with the rest it is all of the line."""
    position = 0
    for piece in salvage(line):
        assert piece.start == position
        assert piece.data == line[position : position + len(piece.data)] != b""
        position += len(piece.data)
        if piece.whole:
            assert crc_holds(piece.data + b"\n")
    assert position == len(line)


def _check_admission(line: bytes, fields: dict[str, Any] | None, warm: Admission) -> None:
    """A peer's record becomes one sound line, or nothing, whatever came before it."""
    admitted = _admit(warm, line)
    assert admitted == _admit(Admission(NAME, PEER, MAX_RECORD_BYTES), line)
    if admitted is None:
        return
    stored = admitted.line
    assert len(stored) <= MAX_RECORD_BYTES
    assert crc_holds(stored)
    assert re.search(rb"[\x00-\x1f]", stored[:-1]) is None
    assert stored.endswith(b"\n")
    kept = decode(stored[:-1])
    assert kept["id"] == admitted.message_id
    assert kept["channel"] == check_channel(admitted.head.channel)
    assert kept["route"] == [*admitted.head.route, NAME]
    if fields is not None:
        assert not fields.get("route") or fields["route"][-1] == PEER
        assert shown(kept["payload"]) == shown(fields["payload"])
        assert parse(kept["ts"]) == parse(fields["ts"])
        for name in ("id", "channel", "origin", "payload_type", "correlation_id", "service_name"):
            assert kept.get(name, "") == fields.get(name, ""), name
    if len(kept["route"]) < MAX_ROUTE and len(stored) < MAX_RECORD_BYTES - 300:
        further = _admit(Admission("further", NAME, MAX_RECORD_BYTES), stored[:-1])
        assert further is not None, "it is not taken by the next one"
        assert raw_payload(further.line[:-1]) == raw_payload(stored[:-1])


def _admit(admission: Admission, line: bytes) -> Admitted | None:
    try:
        return admission.admit(line)
    except MalformedError as error:
        insist(len(str(error)) < 1000, error)
        return None
