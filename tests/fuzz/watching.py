"""Feeding a target while looking out for what goes wrong unseen: in logs, in other greenlets."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import gevent

from keyop.logs import JSONFormatter, TextFormatter

from .checks import FILE as CHECKS_FILE
from .places import quick_disk
from .targets import TARGETS, Feed

ROOT = Path(__file__).parents[2]
# What a terminal obeys, or a reader of lines.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_logger = logging.getLogger("keyop")


class _Listening(logging.Handler):
    """Takes keyop's log records: each must be one line, and none tell of what is not foreseen."""

    def __init__(self, failures: list[BaseException]) -> None:
        super().__init__(logging.WARNING)
        self._failures = failures
        self._text, self._json = TextFormatter(), JSONFormatter()

    def handle(self, record: logging.LogRecord) -> bool:
        try:
            if record.exc_info and record.exc_info[1] is not None:
                raise record.exc_info[1]
            text, line = self._text.format(record), self._json.format(record)
            assert text.isprintable(), f"{text!r} is more than a line"
            assert not _OBEYED.search(line), f"{line!r} is more than a line"
            assert json.loads(line)["logger"] == record.name
            (text + line).encode()
        # Raised later, in the greenlet that feeds.
        except Exception as error:
            self._failures.append(error)
        return True


@contextmanager
def _listening(failures: list[BaseException]) -> Iterator[None]:
    handler = _Listening(failures)
    before = _logger.handlers[:], _logger.propagate, _logger.level
    # One input after the other blocks everybody, which is meant here.
    monitor = logging.getLogger("keyop.monitor")
    monitor_level = monitor.level
    monitor.setLevel(logging.ERROR)
    _logger.handlers[:], _logger.propagate = [handler], False
    _logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _logger.handlers[:], _logger.propagate, level = before
        _logger.setLevel(level)
        monitor.setLevel(monitor_level)


@contextmanager
def _no_greenlet_dies(failures: list[BaseException]) -> Iterator[None]:
    hub: Any = gevent.get_hub()

    def died(context: object, kind: object, error: Any, trace: object) -> None:
        failures.append(error)

    # An attribute of the instance, in front of the method.
    hub.handle_error = died
    try:
        yield
    finally:
        del hub.handle_error


@contextmanager
def watched(name: str, directory: Path) -> Iterator[Feed]:
    """Give what feeds the target of this name, and raises also what was only logged."""
    failures: list[BaseException] = []

    def watching(data: bytes) -> None:
        failures.clear()
        try:
            # Deliveries say in the context which handler runs; nobody else is to hear of it.
            copy_context().run(feed, data)
        finally:
            if failures:
                raise failures[0]

    with (
        quick_disk(),
        _listening(failures),
        _no_greenlet_dies(failures),
        TARGETS[name].opened(directory) as feed,
    ):
        yield watching


def signature(error: BaseException) -> str:
    """Return what tells one finding from another: its kind, and where it comes from.

    That is the last function of keyop's; or what does not hold, where something is not as it
    must be.
    """
    frames = [
        each for each in traceback.extract_tb(error.__traceback__) if each.filename != CHECKS_FILE
    ]
    of_keyop = [each for each in frames if Path(each.filename).is_relative_to(ROOT / "keyop")]
    if of_keyop and not isinstance(error, AssertionError):
        where = f"{Path(of_keyop[-1].filename).relative_to(ROOT)}:{of_keyop[-1].name}"
    else:
        here = [each for each in frames if Path(each.filename).is_relative_to(ROOT)] or frames
        where = f"{Path(here[-1].filename).name}:{here[-1].name}: {here[-1].line}"
    return f"{type(error).__name__} {where}"
