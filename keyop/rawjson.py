"""JSON whose bytes, or whose numbers, must stay as they are.

A parser would make other numbers of some: orjson of integers beyond 64 bits, any of floats with
more digits than a double holds.
"""

from __future__ import annotations

import json
import re

import orjson

# Searched for one by one: a pattern for whole strings would remember each escape in them.
_QUOTE_OR_ESCAPE = re.compile(rb'["\\]')
_QUOTE_OR_BRACKET = re.compile(rb'["\[\]{}]')
_SCALAR = re.compile(rb"[^\s,\]}]+")
_BLANKS = re.compile(rb"[ \t\r\n]*")
# orjson makes a float, and so other digits, of an integer with more than 64 bits.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


def as_value(data: bytes) -> object:
    """Return the value of a JSON text, its integers exact.

    Raises:
        orjson.JSONDecodeError: it is not JSON.
    """
    value: object = orjson.loads(data)
    if _LONG_NUMBER.search(data):
        try:
            value = json.loads(data)
        except RecursionError:  # deeper than a record may be, which publishing will say
            pass
    return value


def members(text: bytes) -> dict[str, bytes]:
    """Return the values of a JSON object as they are written, by their names.

    Args:
        text: JSON, as a parser has found before; an object.

    Raises:
        ValueError: it is not an object.
    """
    found: dict[str, bytes] = {}
    position = _skip(text, 0, b"{")
    while not text.startswith(b"}", position):
        if not text.startswith(b'"', position):
            raise ValueError(f"no name at {position}")
        name_end = _end_of_string(text, position)
        name = json.loads(text[position:name_end].decode("utf-8", "replace"))
        start = _skip(text, _blanks(text, name_end), b":")
        end = _end_of_value(text, start)
        found[name] = text[start:end]
        position = _blanks(text, end)
        if text.startswith(b",", position):
            position = _blanks(text, position + 1)
        elif not text.startswith(b"}", position):
            raise ValueError(f"neither a comma nor a brace at {position}")
    return found


def _blanks(text: bytes, position: int) -> int:
    match = _BLANKS.match(text, position)
    assert match is not None
    return match.end()


def _skip(text: bytes, position: int, mark: bytes) -> int:
    """Return where the next thing begins, past blanks, the mark and blanks."""
    position = _blanks(text, position)
    if not text.startswith(mark, position):
        raise ValueError(f"no {mark.decode()} at {position}")
    return _blanks(text, position + 1)


def _end_of_value(text: bytes, start: int) -> int:
    first = text[start : start + 1]
    if first == b'"':
        return _end_of_string(text, start)
    if first not in (b"{", b"["):
        scalar = _SCALAR.match(text, start)
        if scalar is None:
            raise ValueError(f"no value at {start}")
        return scalar.end()
    depth, position = 0, start
    while (match := _QUOTE_OR_BRACKET.search(text, position)) is not None:
        position = match.end()
        if match[0] == b'"':
            position = _end_of_string(text, match.start())
            continue
        depth += 1 if match[0] in b"{[" else -1
        if not depth:
            return position
    raise ValueError(f"the value at {start} has no end")


def _end_of_string(text: bytes, start: int) -> int:
    position = start + 1
    while (match := _QUOTE_OR_ESCAPE.search(text, position)) is not None:
        if match[0] == b'"':
            return match.end()
        position = match.end() + 1
    raise ValueError(f"the string at {start} has no end")
