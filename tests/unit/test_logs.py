"""Formatters and filters for log records: what is added, escaped, left out."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from keyop.context import correlation_id, service_name
from keyop.logs import (
    ContextFilter,
    JSONFormatter,
    LogHandler,
    RepeatFilter,
    Repeats,
    TextFormatter,
    current_subscription,
    escape_control,
    escape_json,
)

# What a terminal obeys, hides or cannot be sent, one of each kind.
HOSTILE = "a\x1b[31m\x00\r\nb\x7f\x9b2J\u2028\u202e\u2066\u061c\ufeff\ud800c"
NEVER_RAW = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def record(message: str = "text", *args: Any, level: int = logging.INFO, **fields: Any) -> Any:
    """Return a record of ``keyop.test``, made at a whole number of microseconds."""
    made = logging.LogRecord("keyop.test", level, __file__, 1, message, args, None)
    made.created = 1767225600.25
    made.__dict__.update(fields)
    return made


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that nobody else hears, without handlers before and after."""
    made = logging.getLogger("keyop-test-logs")
    made.propagate = False
    made.setLevel(logging.DEBUG)
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()


def failure(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError as error:
        return (ValueError, error, error.__traceback__)


class Kept(logging.Handler):
    """Keeps the messages it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


# -- escaping


def test_what_prints_stays() -> None:
    """Letters of any script, and the space, are not escaped."""
    assert escape_control("Grüße, 世界 🙂") == "Grüße, 世界 🙂"


def test_what_does_not_print_is_escaped() -> None:
    """Each character becomes an escape that tells which it was."""
    assert escape_control("a\x1b\n\x7f\x85\u2028\u202e\ud800\U000e0001") == (
        r"a\x1b\n\x7f\x85\u2028\u202e\ud800\U000e0001"
    )


def test_escaped_json_means_the_same() -> None:
    """What hides is escaped; a reader gets the same text back."""
    text = json.dumps({"a": "x\x7f\u202ey"}, ensure_ascii=False)
    escaped = escape_json(text)
    assert NEVER_RAW.search(text)
    assert not NEVER_RAW.search(escaped)
    assert json.loads(escaped) == {"a": "x\x7f\u202ey"}


# -- context


def test_context_of_the_handler_that_runs() -> None:
    """A record has the channel, the subscriber, the correlation id and the service name."""
    made = record()
    token = current_subscription.set(("orders", "billing"))
    try:
        with correlation_id("order-7"), service_name("shop"):
            assert ContextFilter().filter(made)
    finally:
        current_subscription.reset(token)
    assert (made.channel, made.subscriber_id) == ("orders", "billing")
    assert (made.correlation_id, made.service_name) == ("order-7", "shop")


def test_no_context_outside() -> None:
    """Elsewhere the attributes are there, and empty, so that a format may name them."""
    made = record()
    ContextFilter().filter(made)
    text = logging.Formatter("%(channel)s|%(subscriber_id)s|%(correlation_id)s|%(service_name)s")
    assert text.format(made) == "|||"


def test_what_came_with_the_record_stays() -> None:
    """``extra=`` wins over the context."""
    made = record(channel="other")
    ContextFilter().filter(made)
    assert made.channel == "other"


# -- repetition


def test_so_many_pass_and_the_rest_is_counted() -> None:
    """After the interval, one line says how many were left out, and the count begins anew."""
    now, told = [0.0], []
    repeats = RepeatFilter(2, 10, tell=told.append, monotonic=lambda: now[0])
    assert [repeats.filter(record("%d bytes", n)) for n in range(5)] == [True, True, *[False] * 3]
    now[0] = 9.9
    assert not repeats.filter(record("%d bytes", 5))
    assert told == []
    now[0] = 10.0
    assert repeats.filter(record("%d bytes", 6))
    assert [each.getMessage() for each in told] == [
        "4 more like this were left out within 10 s: %d bytes"
    ]
    assert (told[0].name, told[0].levelno) == ("keyop.test", logging.INFO)


def test_other_templates_are_not_concerned() -> None:
    """Another text, level or logger is counted by itself."""
    repeats = RepeatFilter(1, 10, monotonic=lambda: 0.0)
    assert repeats.filter(record("one"))
    assert repeats.filter(record("another"))
    assert repeats.filter(record("one", level=logging.ERROR))
    assert repeats.filter(record("one", name="keyop.other"))
    assert not repeats.filter(record("one"))


def test_any_record_brings_the_count() -> None:
    """What stopped coming is reported with the next record of any kind."""
    now, told = [0.0], []
    repeats = RepeatFilter(1, 10, tell=told.append, monotonic=lambda: now[0])
    for _ in range(3):
        repeats.filter(record("it fails"))
    now[0] = 11.0
    assert repeats.filter(record("something else"))
    assert [each.args[0] for each in told] == [2]


def test_nothing_is_said_where_nothing_was_left_out() -> None:
    """Records that came seldom enough end their interval silently."""
    now, told = [0.0], []
    repeats = RepeatFilter(2, 10, tell=told.append, monotonic=lambda: now[0])
    for _ in range(4):
        assert repeats.filter(record("now and then"))
        now[0] += 6.0
    repeats.tell_left_out()
    assert told == []


def test_the_count_goes_through_the_filter_that_makes_it(logger: logging.Logger) -> None:
    """Without ``tell`` it goes to the logger, whose handler has the filter: it passes."""
    kept = Kept()
    repeats = RepeatFilter(1, 3600)
    kept.addFilter(repeats)
    logger.addHandler(kept)
    for _ in range(3):
        logger.warning("it fails")
    repeats.tell_left_out()
    assert kept.messages == [
        "it fails",
        "2 more like this were left out within 3600 s: it fails",
    ]


def test_the_kinds_that_are_remembered_are_bounded() -> None:
    """Templates made of data, each another one, pass, and cost no more than so much memory."""
    repeats = Repeats(1, 10, lambda: 0.0)
    assert all(repeats.passes(number) for number in range(5000))
    assert not repeats.passes(0)
    assert len(repeats._counts) == len(repeats._ends) <= 1024


@pytest.mark.parametrize("arguments", [(0, 1.0), (1, 0.0)])
def test_a_limit_that_makes_no_sense(arguments: tuple[int, float]) -> None:
    """At least one passes, and the interval is longer than nothing."""
    with pytest.raises(ValueError, match="at least 1"):
        RepeatFilter(*arguments)


# -- text


def test_text() -> None:
    """Time in UTC, level, logger, message."""
    assert TextFormatter().format(record("%s is %d", "a", 7)) == (
        "2026-01-01T00:00:00.25Z INFO keyop.test: a is 7"
    )


def test_text_with_context() -> None:
    """What the context filter added follows; what is not one word is quoted."""
    made = record(channel="orders", subscriber_id="", correlation_id='a" b=c', service_name="shop")
    assert (
        TextFormatter()
        .format(made)
        .endswith(r': text channel=orders correlation_id="a\" b=c" service_name=shop')
    )


def test_text_in_a_format_of_the_users() -> None:
    """A format and a date format are as in logging."""
    made = record(correlation_id="c")
    assert TextFormatter("%(asctime)s|%(message)s", "%Y").format(made) in ("2025|text", "2026|text")


def test_no_record_looks_like_two() -> None:
    """A message is one line, whatever was in it, and lines of a traceback are indented."""
    made = record("%s", HOSTILE, correlation_id=HOSTILE, exc_info=failure(f"{HOSTILE}\nforged"))
    lines = TextFormatter().format(made).split("\n")
    assert not any(NEVER_RAW.search(line) for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1] == "  forged"


def test_what_another_formatter_left_is_escaped_too() -> None:
    """A traceback that is kept in the record as text is not trusted."""
    made = record(exc_text="Traceback\n\x1b[2J", stack_info="Stack\n\x1b[3J")
    assert TextFormatter().format(made).split("\n")[1:] == [
        "  Traceback",
        r"  \x1b[2J",
        "  Stack",
        r"  \x1b[3J",
    ]


def test_the_record_is_left_as_it_was() -> None:
    """Other handlers format it their own way."""
    made = record(exc_info=failure("x"))
    TextFormatter().format(made)
    JSONFormatter().format(made)
    assert made.exc_text is None


# -- JSON


def test_json() -> None:
    """The fields that are always there, and no others."""
    made = record("%s is %d", "a", 7)
    ContextFilter().filter(made)
    assert json.loads(JSONFormatter().format(made)) == {
        "time": "2026-01-01T00:00:00.25Z",
        "level": "INFO",
        "logger": "keyop.test",
        "message": "a is 7",
    }


def test_json_with_all_there_may_be() -> None:
    """Context, extra fields, a traceback, a stack."""
    made = record(
        channel="orders",
        correlation_id="c",
        total=12.5,
        due=datetime(2026, 1, 2, tzinfo=timezone.utc),
        exc_info=failure("too much"),
        stack_info="Stack",
    )
    fields = json.loads(JSONFormatter().format(made))
    assert (fields["channel"], fields["correlation_id"]) == ("orders", "c")
    assert (fields["total"], fields["due"]) == (12.5, "2026-01-02T00:00:00+00:00")
    assert fields["exception"].endswith("ValueError: too much")
    assert fields["stack"] == "Stack"


def test_json_leaves_out_what_it_cannot_hold() -> None:
    """One extra field that is no JSON takes no other one with it, and replaces none of ours."""
    made = record("text", thing=object(), huge=1 << 70, fine=[1], time="mine", logger="mine")
    fields = json.loads(JSONFormatter().format(made))
    assert fields["fine"] == [1]
    assert not {"thing", "huge"} & set(fields)
    assert (fields["time"], fields["logger"]) == ("2026-01-01T00:00:00.25Z", "keyop.test")


def test_json_is_one_line_without_control_characters() -> None:
    """Whatever was in the message, the fields or the exception."""
    made = record("%s", HOSTILE, correlation_id=HOSTILE, mine=HOSTILE, exc_info=failure(HOSTILE))
    text = JSONFormatter().format(made)
    assert not NEVER_RAW.search(text)
    fields = json.loads(text)
    wanted = HOSTILE.replace("\ud800", r"\ud800")
    assert fields["message"] == fields["correlation_id"] == fields["mine"] == wanted


# -- all of it


def test_a_handler_for_a_stream(logger: logging.Logger) -> None:
    """Context, repetition and formatting together; closing says what was left out."""
    stream = io.StringIO()
    handler = LogHandler(stream, as_json=True, limit=1)
    logger.addHandler(handler)
    with correlation_id("c"):
        logger.warning("full")
        logger.warning("full")
    handler.close()
    first, last = map(json.loads, stream.getvalue().splitlines())
    assert (first["message"], first["correlation_id"]) == ("full", "c")
    assert last["message"] == "1 more like this were left out within 60 s: full"
    assert last["left_out"] == 1


def test_a_handler_writes_text_unless_told_otherwise(logger: logging.Logger) -> None:
    """One line of text."""
    stream = io.StringIO()
    logger.addHandler(LogHandler(stream))
    logger.error("a\nb")
    assert stream.getvalue().endswith("Z ERROR keyop-test-logs: a\\nb\n")


def test_making_one_touches_nothing() -> None:
    """No logger is configured by constructing a handler, a filter or a formatter."""
    names = (None, "keyop")
    before = [(logging.getLogger(name).level, *logging.getLogger(name).handlers) for name in names]
    for make in (LogHandler, ContextFilter, RepeatFilter, TextFormatter, JSONFormatter):
        make()
    after = [(logging.getLogger(name).level, *logging.getLogger(name).handlers) for name in names]
    assert before == after


def test_the_library_uses_only_its_own_loggers() -> None:
    """Every module logs below ``keyop``."""
    package = Path(__file__).parents[2] / "keyop"
    calls = [
        (path.name, call)
        for path in package.rglob("*.py")
        for call in re.findall(r"getLogger\(([^)]*)\)", path.read_text("utf-8"))
    ]
    allowed = re.compile(r'__name__|"keyop[\w.]*"|name')
    assert calls
    assert [found for found in calls if not allowed.fullmatch(found[1])] == []
