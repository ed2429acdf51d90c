"""Writing for people and for programs. What comes from messages never reaches a terminal raw."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import click
import orjson

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
# What JSON leaves as it is and a terminal obeys, hides or cannot be sent: DEL, C1 controls, line
# separators, marks that reverse the order of the text around them, halves of surrogate pairs. In
# JSON they occur inside strings only.
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text with every character that does not print written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def complain(text: str) -> None:
    """Write one line to stderr: what went wrong, or what the user should know."""
    try:
        click.echo(f"keyop: {printable(text)}", err=True)
    except (OSError, ValueError):  # nobody listens
        pass


def shorten(text: str, limit: int) -> str:
    """Return the beginning of a text, at most ``limit`` characters of it."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def print_line(text: str) -> None:
    """Write one line to stdout, what does not print in it as escapes."""
    click.echo(printable(text))


def json_line(value: Any) -> bytes:
    """Return a value as one line of JSON that is safe on a terminal, newline included."""
    try:
        data = orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # numbers beyond 64 bits, or deeper than orjson writes
        return json.dumps(value, separators=(",", ":"), default=str).encode() + b"\n"
    if data.isascii() and b"\x7f" not in data:
        return data
    # A fragment of somebody else's record may be no UTF-8.
    return _escape_unseen(data.decode("utf-8", "replace")).encode()


def _escape_unseen(text: str) -> str:
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def indented_json(value: Any) -> str:
    """Return a value as JSON for a person, safe on a terminal."""
    return _escape_unseen(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_json(value: Any) -> None:
    """Write a value to stdout as indented JSON."""
    click.echo(json.dumps(value, indent=2, default=str))


def human_bytes(size: int | None) -> str:
    """Return a size as a person reads it; ``?`` where it is not known."""
    if size is None:
        return "?"
    if size < 1024:
        return f"{size} B"
    value, units = size / 1024, iter(_UNITS)
    unit = next(units)
    while value >= 1023.95 and unit != _UNITS[-1]:  # from there on it would read 1024.0
        value, unit = value / 1024, next(units)
    return f"{value:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def yes_no(value: bool | None) -> str:
    """Return yes, no, or ``?`` where it is not known."""
    return "?" if value is None else "yes" if value else "no"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], right: str = "") -> None:
    """Write rows under their headers, in columns.

    Args:
        right: one letter for each column that is aligned to the right (``r``) or not (anything).
    """
    cells = [[printable(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = right.ljust(len(headers))
    for row in cells:
        parts = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def confirm(question: str, yes: bool) -> None:
    """Ask before something is lost.

    Raises:
        click.Abort: the answer was not yes, or nobody can be asked.
    """
    if not yes:
        click.confirm(printable(question), abort=True, err=True)
