"""What a log record written within a handler carries."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import gevent
import pytest

import keyop
from keyop import Message
from keyop.logs import LogHandler
from tests.integration.helpers import FAST_BACKOFF, running, wait_until

logger = logging.getLogger("keyop-test-handlers")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the program's logger and keyop's write, as JSON."""
    stream = io.StringIO()
    handler = LogHandler(stream, as_json=True)
    for each in (logger, logging.getLogger("keyop")):
        each.addHandler(handler)
    yield stream
    for each in (logger, logging.getLogger("keyop")):
        each.removeHandler(handler)
    handler.close()


def written(stream: io.StringIO, name: str = logger.name) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [fields for fields in found if fields["logger"] == name]


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("registered", [False, True])
def test_the_context_of_the_message(
    tmp_path: Path, lines: io.StringIO, concurrency: int, registered: bool
) -> None:
    """Channel, subscriber and correlation id of the message being handled, on every path."""

    def handle(message: Message) -> None:
        gevent.sleep(0.001)  # the others run in between
        with keyop.service_name(f"service-{message.payload}"):
            logger.warning("handling", extra={"number": message.payload})

    with running(tmp_path) as messenger:
        if registered:
            messenger.register_payload_type("t", int)
        for channel in ("orders", "bills"):
            messenger.subscribe(channel, f"{channel}-reader", handle, concurrency=concurrency)
            for number in range(2):
                messenger.publish(channel, "t", number, correlation_id=f"{channel}-{number}")
        wait_until(lambda: len(written(lines)) == 4)
    for fields in written(lines):
        channel, number = fields["channel"], fields["number"]
        assert fields["subscriber_id"] == f"{channel}-reader"
        assert fields["correlation_id"] == f"{channel}-{number}"
        assert fields["service_name"] == f"service-{number}"
    assert {fields["channel"] for fields in written(lines)} == {"orders", "bills"}


def test_of_a_failed_handler(tmp_path: Path, lines: io.StringIO) -> None:
    """keyop's own warning about a handler carries the same."""
    failed = ValueError("a\nb")

    def handle(message: Message) -> None:
        raise failed

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "billing", handle, max_retries=0, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 1, correlation_id="c")
        wait_until(lambda: written(lines, "keyop.delivery"))
    fields = written(lines, "keyop.delivery")[0]
    assert (fields["channel"], fields["subscriber_id"]) == ("orders", "billing")
    assert fields["correlation_id"] == "c"
    assert "a\nb" in fields["message"]


def test_a_greenlet_takes_the_context_along_if_told_to(tmp_path: Path, lines: io.StringIO) -> None:
    """One that a handler spawns begins without, or with a copy."""

    def handle(message: Message) -> None:
        gevent.spawn(logger.warning, "without").join()
        gevent.spawn(copy_context().run, logger.warning, "with").join()

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "billing", handle)
        messenger.publish("orders", "t", 1, correlation_id="c")
        wait_until(lambda: len(written(lines)) == 2)
    without, taken = written(lines)
    assert "channel" not in without
    assert "correlation_id" not in without
    assert (taken["channel"], taken["correlation_id"]) == ("orders", "c")


def test_outside_there_is_none(tmp_path: Path, lines: io.StringIO) -> None:
    """What the program itself logs beside a running subscription carries nothing of it."""
    seen = []
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "billing", seen.append)
        messenger.publish("orders", "t", 1, correlation_id="c")
        wait_until(lambda: seen)
        logger.warning("beside")
    assert not {"channel", "subscriber_id", "correlation_id"} & set(written(lines)[0])
