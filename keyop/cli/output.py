"""Writing for people and for programs. What comes from messages never reaches a terminal raw."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import orjson

from keyop.logs import escape_control, escape_json

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_BLANKS = bytes.maketrans(b"\t\r\n", b"   ")
# What json writes and is no JSON; strings are matched too, so that nothing is found in them.
_NO_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')
_NUMBERS = {"Infinity": "1e999", "-Infinity": "-1e999", "NaN": "null"}


def printable_lines(text: str) -> str:
    """Return text of several lines, each of them printable."""
    return "\n".join(map(escape_control, text.split("\n")))


def complain(text: str) -> None:
    """Write one line to stderr: what went wrong, or what the user should know."""
    try:
        click.echo(f"keyop: {escape_control(text)}", err=True)
    except (OSError, ValueError):  # nobody listens
        pass


def shorten(text: str, limit: int) -> str:
    """Return the beginning of a text, at most ``limit`` characters of it."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def print_line(text: str) -> None:
    """Write one line to stdout, what does not print in it as escapes."""
    click.echo(escape_control(text))


def json_line(value: Any) -> bytes:
    """Return a value as one line of JSON that is safe on a terminal, newline included.

    A number beyond the double range, which a record of v0.11.0 may have, is read as an infinity.
    JSON has no such, so it is written as a number that is read as one again.
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_UTC_Z)
    except TypeError:  # numbers beyond 64 bits, or deeper than orjson writes
        return _slowly(value) + b"\n"
    if b"null" in data and _has_infinity(value):  # for which orjson writes null
        return _slowly(value) + b"\n"
    return json_text(data).encode() + b"\n"


def json_line_with(fields: dict[str, Any], name: str, raw: bytes) -> bytes:
    """Return an object as :func:`json_line` does, with one more field whose JSON is given."""
    last = f',"{name}":{json_text(raw)}}}\n'
    return json_line(fields)[:-2] + last.encode()


def json_text(data: bytes) -> str:
    """Return JSON, somebody else's perhaps, as one line that is safe on a terminal."""
    # Between the tokens of somebody else's there may be a carriage return; in strings, none.
    data = data.translate(_BLANKS)
    if data.isascii() and b"\x7f" not in data:
        return data.decode()
    return escape_json(data.decode("utf-8", "replace"))


def _slowly(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), default=_default)
    return _NO_JSON.sub(_as_json, text).encode()


def _default(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value)


def _as_json(match: re.Match[str]) -> str:
    return _NUMBERS.get(match[0], match[0])


def _has_infinity(value: Any) -> bool:
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list):
            left += each
        elif isinstance(each, float) and not math.isfinite(each):
            return True
    return False


def indented_json(value: Any) -> str:
    """Return a value as JSON for a person, safe on a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return escape_json(_NO_JSON.sub(_as_json, text))


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


def human_seconds(seconds: float) -> str:
    """Return a duration as a person reads it: ``12s``, ``3m20s``, ``5h07m``, ``2d03h``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], right: str = "") -> None:
    """Write rows under their headers, in columns; as :func:`table_lines`."""
    for line in table_lines(headers, rows, right):
        click.echo(line)


def table_lines(
    headers: Sequence[str], rows: Sequence[Sequence[object]], right: str = ""
) -> list[str]:
    """Return rows under their headers, in columns.

    Args:
        right: one letter for each column that is aligned to the right (``r``) or not (anything).
    """
    cells = [[escape_control(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = right.ljust(len(headers))
    return [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in cells
    ]


def confirm(question: str, yes: bool) -> None:
    """Ask before something is lost.

    Raises:
        click.Abort: the answer was not yes, or nobody can be asked.
    """
    if not yes:
        click.confirm(escape_control(question), abort=True, err=True)
