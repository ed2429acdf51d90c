"""What a program can do with keyop's log records, by means of the standard ``logging`` module.

keyop logs below ``logging.getLogger("keyop")`` and configures nothing. What is here is for the
program that does: a handler for its records, or the parts of one. Nothing here starts anything.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

import orjson

from keyop.context import current_correlation_id, current_service_name
from keyop.timestamps import format_ns

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # before Python 3.11 no generic where it runs
    _StreamHandler = logging.StreamHandler

# Channel and subscriber id of the handler that runs; set by who calls it, kept by its greenlet.
current_subscription: ContextVar[tuple[str, str]] = ContextVar(
    "keyop_subscription", default=("", "")
)

CONTEXT_FIELDS = ("channel", "subscriber_id", "correlation_id", "service_name")

# What JSON leaves as it is and a terminal obeys, hides or cannot be sent: DEL, C1 controls, line
# separators, marks that reverse the order of the text around them, halves of surrogate pairs. In
# JSON they occur inside strings only.
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_PLAIN = re.compile(r"[\w.:@/+-]+")
# Templates are remembered by the filter, so they are bounded in number and in size.
_MAX_KINDS = 1024
_MAX_TEMPLATE_CHARACTERS = 200
# What every record has, and what formatters add: the rest was put there with ``extra=``.
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def escape_control(text: str) -> str:
    """Return the text with every character that does not print written as an escape.

    So it is one line, and nothing in it moves a cursor, colours, hides or reverses: control
    characters, line separators, marks of direction, halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def escape_json(text: str) -> str:
    r"""Return JSON, the content of its strings the same, with ``\u`` escapes for what hides."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class ContextFilter(logging.Filter):
    """Adds ``channel``, ``subscriber_id``, ``correlation_id`` and ``service_name`` to records.

    They tell in which handler, for which message, the record was written, and are empty
    elsewhere. A value that came with ``extra=`` stays. Add it to a handler, not to a logger: the
    filters of a logger do not see the records of those below it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes; let every record pass."""
        channel, subscriber_id = current_subscription.get()
        values = (channel, subscriber_id, current_correlation_id.get(), current_service_name.get())
        for name, value in zip(CONTEXT_FIELDS, values, strict=True):
            record.__dict__.setdefault(name, value)
        return True


class Repeats:
    """Counts what comes again and again: of each kind, ``limit`` pass in every interval.

    It has no lock, which a fork could leave locked: threads that come at the same moment may let
    one more pass.
    """

    def __init__(
        self, limit: int, interval_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        if limit < 1 or interval_s <= 0:
            raise ValueError("the limit must be at least 1, and the interval longer than 0 s")
        self.interval_s = interval_s
        self._limit = limit
        self._monotonic = monotonic
        self._counts: dict[Hashable, int] = {}
        # The same kinds, with the ends of their intervals: the first ends first.
        self._ends: deque[tuple[float, Hashable]] = deque()

    def passes(self, kind: Hashable) -> bool:
        """Count one of this kind; return whether it is among the first of its interval."""
        count = self._counts.get(kind, 0)
        if not count:
            if len(self._counts) >= _MAX_KINDS:  # so many kinds are no repetition
                return True
            self._ends.append((self._monotonic() + self.interval_s, kind))
        self._counts[kind] = count + 1
        return count < self._limit

    def take_left_out(self, *, all_kinds: bool = False) -> Iterator[tuple[Any, int]]:
        """Yield the kinds whose intervals are over (or all), and how many did not pass."""
        now = self._monotonic()
        while self._ends and (all_kinds or self._ends[0][0] <= now):
            try:
                kind = self._ends.popleft()[1]
            except IndexError:  # another thread has it
                return
            left_out = self._counts.pop(kind, 0) - self._limit
            if left_out > 0:
                yield kind, left_out


class RepeatFilter(logging.Filter):
    """Lets at most ``limit`` records of one message template pass in each interval.

    How many were left out is said in one further line of the same level, when the first record of
    any kind comes after the interval, or by :meth:`tell_left_out`.

    Args:
        tell: is given that line's record; otherwise the logger that the repeated ones came from,
            with all of its handlers. For a filter of one handler, the handler's ``handle``.
    """

    def __init__(
        self,
        limit: int = 5,
        interval_s: float = 60.0,
        *,
        tell: Callable[[logging.LogRecord], object] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._repeats = Repeats(limit, interval_s, monotonic)
        self._tell = tell

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is among the first of its template."""
        if "left_out" in record.__dict__:
            return True
        self.tell_left_out(ended_only=True)
        template = str(record.msg)[:_MAX_TEMPLATE_CHARACTERS]
        return self._repeats.passes((record.name, record.levelno, template))

    def tell_left_out(self, *, ended_only: bool = False) -> None:
        """Say how many were left out so far, and begin anew."""
        for (name, level, template), left_out in self._repeats.take_left_out(
            all_kinds=not ended_only
        ):
            logger = logging.getLogger(name)
            record = logger.makeRecord(
                name,
                level,
                __file__,
                0,
                "%d more like this were left out within %g s: %s",
                (left_out, self._repeats.interval_s, template),
                None,
                extra={"left_out": left_out},
            )
            (self._tell or logger.handle)(record)


class TextFormatter(logging.Formatter):
    """One line for each record, in which nothing is obeyed by a terminal or taken for another.

    What does not print is escaped, in the message and in tracebacks, whose lines are indented. In
    the format that is used without ``fmt``, times are in UTC, and what :class:`ContextFilter` has
    added follows the message.
    """

    def __init__(self, fmt: str | None = None, datefmt: str | None = None) -> None:
        super().__init__(_TEXT_FORMAT if fmt is None else fmt, datefmt)
        self._with_context = fmt is None

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text, without a newline at its end."""
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        line = self.formatMessage(record)
        if self._with_context:
            line += "".join(f" {name}={_word(value)}" for name, value in _context_of(record))
        below = [
            f"  {each}"
            for _, text in _tracebacks(self, record)
            for each in text.split("\n")
            if each
        ]
        return "\n".join(map(escape_control, [line, *below]))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return when the record was made: RFC 3339 in UTC, unless there is a ``datefmt``."""
        return super().formatTime(record, datefmt) if datefmt else _time_of(record)


class JSONFormatter(logging.Formatter):
    """One JSON object for each record, on one line that is safe on a terminal.

    Its fields: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, then, where there are
    such, ``exception``, ``stack``, what :class:`ContextFilter` has added, and what came with
    ``extra=``. Of the latter, values that JSON cannot hold are left out, as are those with the
    name of a field above.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, without a newline at its end."""
        fields: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update(_tracebacks(self, record))
        fields.update(_context_of(record))
        for name, value in vars(record).items():
            if name not in _STANDARD_FIELDS and name not in CONTEXT_FIELDS:
                fields.setdefault(name, value)
        try:
            data = orjson.dumps(fields)
        except TypeError:  # for one of them; which, is found out
            data = orjson.dumps(dict(_what_json_holds(fields)))
        return escape_json(data.decode())


class LogHandler(_StreamHandler):
    """Writes records to a stream, escaped, with their context, without endless repetition.

    Args:
        stream: stderr, if none is given.
        as_json: with :class:`JSONFormatter` in place of :class:`TextFormatter`.
        limit, interval_s: as for :class:`RepeatFilter`.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        as_json: bool = False,
        limit: int = 5,
        interval_s: float = 60.0,
    ) -> None:
        super().__init__(stream)
        self._repeats = RepeatFilter(limit, interval_s, tell=self.handle)
        self.addFilter(ContextFilter())
        self.addFilter(self._repeats)
        self.setFormatter(JSONFormatter() if as_json else TextFormatter())

    def close(self) -> None:
        """Say what was left out so far; the stream stays open."""
        self._repeats.tell_left_out()
        super().close()


def _time_of(record: logging.LogRecord) -> str:
    # A float holds no more than microseconds.
    return format_ns(round(record.created * 1e6) * 1000)


def _context_of(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    for name in CONTEXT_FIELDS:
        value = getattr(record, name, "")
        if value:
            yield name, value


def _word(value: object) -> str:
    """Return a value as one word, quoted where it is more."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _tracebacks(
    formatter: logging.Formatter, record: logging.LogRecord
) -> Iterator[tuple[str, str]]:
    if record.exc_info and record.exc_info[0] is not None:
        yield "exception", formatter.formatException(record.exc_info)
    elif record.exc_text:  # all that is left of it behind a queue
        yield "exception", record.exc_text
    if record.stack_info:
        yield "stack", formatter.formatStack(record.stack_info)


def _what_json_holds(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, str):  # halves of surrogate pairs, which UTF-8 has none for
            value = value.encode("utf-8", "backslashreplace").decode()
        try:
            orjson.dumps({name: value})
        except TypeError:
            continue
        yield name, value
