"""Dead letters as a person sees them: a table, or one of them whole."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

import click

from keyop.cli.output import human_bytes, indented_json, print_line, print_table, shorten
from keyop.deadletter_view import DeadLetter, Details
from keyop.logs import escape_control
from keyop.rawjson import as_value

_ID_CHARACTERS = 8
_ERROR_CHARACTERS = 60


def print_letters(letters: list[DeadLetter]) -> None:
    """Print a table of dead letters."""
    length = unique_length([letter.id for letter in letters])
    print_table(
        ["CHANNEL", "ID", "FAILED AT", "SUBSCRIBER", "TYPE", "RETRIES", "ERROR"],
        [
            (
                letter.channel,
                letter.id[:length],
                letter.failed_at,
                letter.subscriber or "-",
                letter.original.payload_type if letter.original is not None else "-",
                letter.retries,
                shorten(letter.error, _ERROR_CHARACTERS),
            )
            for letter in letters
        ],
        "lllllrl",
    )


def unique_length(ids: Iterable[str]) -> int:
    """Return how many characters tell these ids apart, 8 at least."""
    length = _ID_CHARACTERS
    before = ""
    for each in sorted(set(ids)):
        while before and each[:length] == before[:length]:
            length += 1
        before = each
    return length


def print_details(details: Details) -> None:
    """Print a dead letter for a person."""
    letter, original = details.letter, details.letter.original
    rows: list[tuple[str, Any]] = [
        ("dead letter", letter.id),
        ("of channel", letter.channel),
        ("failed at", letter.failed_at),
        ("subscriber", letter.subscriber or "not recorded"),
        ("retries", letter.retries),
        ("error", letter.error),
    ]
    if original is not None:
        rows += [
            ("message", original.id),
            ("type", original.payload_type),
            ("published", f"{original.timestamp} by {original.origin}"),
            ("correlation id", original.correlation_id),
            ("service name", original.service_name),
        ]
    for name, value in rows:
        if value != "":
            print_line(f"{name:<15} {value}")
    payload = details.payload_json
    if payload is not None:
        print_line(f"{'payload':<15} {human_bytes(len(payload))}")
        click.echo(pretty(payload))
    elif details.raw_base64 is not None:
        data = from_base64(details.raw_base64)
        print_line(f"{'no message':<15} {human_bytes(len(data))}")
        print_line(data.decode("utf-8", "backslashreplace"))


def pretty(payload: bytes) -> str:
    """Return JSON for a person; as it is written where it is beyond what Python reads."""
    try:
        return indented_json(as_value(payload))
    except (ValueError, RecursionError):
        return escape_control(payload.decode("utf-8", "backslashreplace"))


def from_base64(text: str) -> bytes:
    """Return the bytes; the text itself where somebody wrote something else there."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text.encode("utf-8", "replace")
