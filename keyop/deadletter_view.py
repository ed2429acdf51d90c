"""What a dead letter says: its record, read for people and programs.

:mod:`keyop.deadletter` writes them. Whatever a foreign writer left out is empty here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from keyop.decode import decode
from keyop.envelope import CRC_MARK, CRC_SUFFIX_BYTES
from keyop.errors import CorruptRecordError
from keyop.rawjson import members

# What a number of JSON may be for everybody who reads it.
_MOST_RETRIES = 1 << 53


@dataclass(frozen=True)
class Original:
    """The message that failed. ``timestamp`` is the text in its record."""

    id: str
    payload_type: str
    timestamp: str
    origin: str
    correlation_id: str
    service_name: str


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter.

    ``channel`` is the one that the message failed in, ``offset`` the letter's own place in the
    dead-letter channel. ``subscriber`` is None where v0.11.0 wrote it, ``original`` where what
    failed was no message.
    """

    id: str
    channel: str
    offset: int
    subscriber: str | None
    retries: int
    failed_at: str
    error: str
    original: Original | None


@dataclass(frozen=True)
class Details:
    """A dead letter with what failed, as it was written: JSON, or base64 of bytes that are none.

    ``original_json`` is the whole record, ``payload_json`` a part of it.
    """

    letter: DeadLetter
    original_json: bytes | None
    payload_json: bytes | None
    raw_base64: str | None


class Record(NamedTuple):
    """A record of the dead-letter channel: its line without the newline, and where it begins."""

    id: str
    offset: int
    line: bytes


def read_letter(record: Record, channel: str) -> DeadLetter:
    """Return a record of the dead-letter channel of ``channel`` as a dead letter."""
    body = _body(record)
    original = body.get("original")
    retries = body.get("retries")
    return DeadLetter(
        record.id,
        channel,
        record.offset,
        _text(body, "subscriber") or None,
        retries if isinstance(retries, int) and 0 <= retries < _MOST_RETRIES else 0,
        _text(body, "failed_at"),
        _text(body, "last_error"),
        _original(original) if isinstance(original, dict) else None,
    )


def read_details(record: Record, channel: str) -> Details:
    """Return a dead letter with what failed."""
    original = original_json(record)
    return Details(
        read_letter(record, channel),
        original,
        None if original is None else _payload_of(original),
        _text(_body(record), "raw") or None,
    )


def original_json(record: Record) -> bytes | None:
    """Return the record that failed as it is written in its dead letter; None if it is none."""
    line = record.line
    if line[-CRC_SUFFIX_BYTES:].startswith(CRC_MARK):
        line = line[:-CRC_SUFFIX_BYTES] + b"}"
    try:
        original = members(members(line)["payload"])["original"]
    except (KeyError, ValueError):  # no dead letter, whoever wrote it
        return None
    return original if original.startswith(b"{") else None


def _payload_of(original: bytes) -> bytes | None:
    try:
        return members(original).get("payload")
    except ValueError:
        return None


def _body(record: Record) -> dict[str, Any]:
    try:
        payload = decode(record.line)["payload"]
    except CorruptRecordError:  # its checksum holds, so somebody wrote it so
        return {}
    return payload if isinstance(payload, dict) else {}


def _original(fields: dict[str, Any]) -> Original:
    names = ("id", "payload_type", "ts", "origin", "correlation_id", "service_name")
    return Original(*(_text(fields, name) for name in names))


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""
