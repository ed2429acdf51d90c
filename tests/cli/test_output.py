"""What reaches a terminal: nothing that it would obey, and everything in its column."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone

import orjson
import pytest

from keyop.cli import output
from keyop.cli.moments import moment

HOSTILE = "\x1b]0;pwned\x07\x1b[31m \x9b31m \r\b \x00 \u202e \u2066 \u2028 \ufeff \x7f\nnext"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é, 日本", "plain, é, 日本"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202eabc", "\\u202eabc"),
        ("\udc9b", "\\udc9b"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    """Printable characters of every script stay; all others are written as escapes."""
    assert output.escape_control(text) == shown


def obeys(text: str) -> list[str]:
    """Return the characters that a terminal would obey or hide."""
    return [char for char in text if char != "\n" and not (char.isprintable() or char == "\u2003")]


@pytest.mark.parametrize("value", [HOSTILE, {"k" + HOSTILE: [HOSTILE]}, [1, HOSTILE, 2**80]])
def test_json_for_programs_is_safe_and_says_the_same(value: object) -> None:
    """Every form of JSON output holds no control character, and reads back as the same value."""
    for text in (output.json_line(value).decode(), output.indented_json(value)):
        assert obeys(text) == []
        assert json.loads(text) == value


def test_json_of_half_a_surrogate_pair_can_be_written() -> None:
    """A lone surrogate, which no encoding can hold, is written as its escape."""
    assert output.indented_json("\ud83d").encode() == b'"\\ud83d"'
    assert output.json_line("\ud83d") == b'"\\ud83d"\n'


def test_fragments_are_passed_on() -> None:
    """A record's own text stays as it is, apart from bytes that are no UTF-8."""
    data = output.json_line({"a": orjson.Fragment(b'{"n":1.50e+3,"t":"\xff\x9b\xc2\x9b"}')})
    assert data == '{"a":{"n":1.50e+3,"t":"\ufffd\ufffd\\u009b"}}\n'.encode()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "?"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**4, "5.0 TiB"),
        (1024**6, "1024.0 PiB"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    """Sizes have the unit in which they are short; the largest unit takes what is beyond it."""
    assert output.human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.9, "59s"), (200, "3m20s"), (18_420, "5h07m"), (183_600, "2d03h")],
)
def test_durations(seconds: float, text: str) -> None:
    """Durations have their two largest units."""
    assert output.human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("inf"), "1e999"),
        ({"null": [1.5, -float("inf"), None, "Infinity"]}, '{"null":[1.5,-1e999,null,"Infinity"]}'),
        ([2**70, float("inf"), '"-Infinity'], '[1180591620717411303424,1e999,"\\"-Infinity"]'),
        ({"n": float("nan")}, '{"n":null}'),
    ],
)
def test_numbers_that_json_does_not_have(value: object, text: str) -> None:
    """A number beyond the double range is written as one again: never Infinity, never null."""
    assert output.json_line(value).decode() == text + "\n"
    assert json.loads(output.indented_json(value)) == json.loads(text)


def test_blanks_between_tokens_cannot_play_with_the_terminal() -> None:
    """A carriage return that somebody wrote outside of strings is a blank."""
    assert output.json_text(b'{"a":\r\t1}') == '{"a":  1}'
    assert output.json_line_with({"a": 1}, "b", b'"\xc2\x9b"') == b'{"a":1,"b":"\\u009b"}\n'


def test_slow_json_has_the_same_times() -> None:
    """A message with a number beyond 64 bits has its time in the same form."""
    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert output.json_line([moment, 2**70]).startswith(b'["2026-01-02T00:00:00Z",')
    assert output.json_line([moment]) == b'["2026-01-02T00:00:00Z"]\n'


def test_tables_align(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their widest cell, without blanks at a line's end."""
    output.print_table(["NAME", "N", "TEXT"], [("a\x1b", 1, ""), ("bcd", 22, "x")], "lr")
    assert capsys.readouterr().out == "NAME    N  TEXT\na\\x1b   1\nbcd    22  x\n"


@pytest.mark.parametrize(("value", "text"), [(True, "yes"), (False, "no"), (None, "?")])
def test_yes_no(value: bool | None, text: str) -> None:
    """What is not known is a question mark."""
    assert output.yes_no(value) == text


def test_texts_are_shortened() -> None:
    """A text that is too long ends with an ellipsis, within the limit."""
    assert output.shorten("abcd", 4) == "abcd"
    assert output.shorten("abcde", 4) == "abc…"


def test_complaining_to_nobody_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stderr that cannot be written to changes nothing."""

    class Closed:
        def write(self, _: str) -> None:
            raise ValueError("closed")

        flush = write

    monkeypatch.setattr(sys, "stderr", Closed())
    output.complain("hello")


@pytest.mark.parametrize("text", ["earliest", "latest"])
def test_named_moments(text: str) -> None:
    """The two ends of a channel have names."""
    assert moment(text) == text


@pytest.mark.parametrize(
    "text", ["2026-01-31T14:00:00Z", "2026-01-31T14:00:00z", "2026-01-31T15:00:00+01:00"]
)
def test_moments_in_a_zone(text: str) -> None:
    """A time with a zone is that moment everywhere."""
    found = moment(text)
    assert not isinstance(found, (str, int))
    assert found.timestamp() == 1769868000
    assert found.tzinfo is not None


def test_moments_without_a_zone_are_local() -> None:
    """A time without a zone is what a clock on the wall here would say."""
    found = moment("2026-01-31T15:00")
    assert not isinstance(found, (str, int))
    assert (found.hour, found.utcoffset() is not None) == (15, True)
