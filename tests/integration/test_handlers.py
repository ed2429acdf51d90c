"""Handlers: retries, dead letters, payload types, context, concurrency, and how they end."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import errno
import itertools
import logging
import time
from pathlib import Path

import gevent
import gevent.event
import msgspec
import pydantic
import pytest

import keyop
from keyop import Message, Messenger, PayloadTypeAlreadyRegisteredError, RetryLater
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs

from .helpers import (
    DEAD_LETTER_TYPE,
    FAST_BACKOFF,
    TS,
    Recorder,
    config,
    dead_letters,
    log_bytes,
    offset_path,
    records,
    running,
    stored_offset,
    wait_until,
    write_segment,
)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Struct(msgspec.Struct):
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    x: int
    y: int = 0


def fail(message: Message) -> None:
    raise ValueError(f"cannot do {message.payload}")


def end(data_dir: Path, channel: str = "orders") -> int:
    return len(log_bytes(data_dir, channel))


# --- what a handler is given


def test_message_fields(tmp_path: Path) -> None:
    """A handler gets a frozen ``Message`` with everything that was published."""
    seen = Recorder()
    before = datetime.datetime.now(datetime.timezone.utc)
    with running(tmp_path, name="shop") as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        message_id = messenger.publish(
            "orders", "com.example.T", {"a": 1}, correlation_id="c", service_name="v"
        )
        seen.wait(2)
    first, message = seen.messages
    assert (first.correlation_id, first.service_name, first.offset) == ("", "", 0)
    assert message.id == message_id
    assert (message.channel, message.origin) == ("orders", "shop")
    assert (message.payload_type, message.payload) == ("com.example.T", {"a": 1})
    assert (message.correlation_id, message.service_name) == ("c", "v")
    assert message.attempt == 1
    assert message.offset == len(log_bytes(tmp_path, "orders").splitlines(True)[0])
    assert message.timestamp.utcoffset() == datetime.timedelta(0)
    assert before <= message.timestamp <= datetime.datetime.now(datetime.timezone.utc)
    with pytest.raises(AttributeError):
        message.payload = 2


def test_correlation_id_is_current(tmp_path: Path) -> None:
    """What a handler publishes carries the message's correlation id, unless it says otherwise."""
    with running(tmp_path) as messenger:

        def handle(message: Message) -> None:
            messenger.publish("invoices", "t", message.payload)
            with keyop.correlation_id("own"):
                messenger.publish("invoices", "t", message.payload)

        messenger.subscribe("orders", "s", handle)
        messenger.publish("orders", "t", 1, correlation_id="order-1")
        messenger.publish("orders", "t", 2)
        drain(messenger)
    assert [record.get("correlation_id") for record in records(tmp_path, "invoices")] == [
        "order-1",
        "own",
        None,
        "own",
    ]


def test_one_at_a_time_by_default(tmp_path: Path) -> None:
    """With ``concurrency=1`` a handler is done before the next one begins."""
    running_now, most = 0, 0

    def handle(message: Message) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        gevent.sleep(0.001)
        running_now -= 1

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle)
        messenger.publish_batch("orders", [("t", n) for n in range(20)])
        drain(messenger)
    assert most == 1


def test_return_commits(tmp_path: Path) -> None:
    """When a handler has returned its message is never delivered again."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert stored_offset(tmp_path, "orders", "s") == end(tmp_path)
    again = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", again)
        messenger.publish("orders", "t", 2)
        assert again.wait(1) == [2]


def test_position_is_saved_before_the_next_message(tmp_path: Path) -> None:
    """By default the position of a message is on disk when the next one is handled."""
    stored = []

    def handle(message: Message) -> None:
        stored.append((message.offset, stored_offset(tmp_path, "orders", "s")))

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle)
        messenger.publish_batch("orders", [("t", n) for n in range(20)])
        drain(messenger)
    assert len(stored) == 20
    assert all(offset == on_disk for offset, on_disk in stored)


# --- retries


def test_retries_until_it_works(tmp_path: Path) -> None:
    """A handler that raises is called again with the same message and a higher ``attempt``."""
    seen = Recorder(lambda message: fail(message) if message.attempt < 3 else None)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 1)
        messenger.publish("orders", "t", 2)
        drain(messenger)
    assert list(zip(seen.payloads, seen.attempts, strict=True)) == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
        (2, 2),
        (2, 3),
    ]
    assert dead_letters(tmp_path, "orders") == []


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_counted(tmp_path: Path, retries: int) -> None:
    """A message is delivered ``max_retries`` times after the first, then dead-lettered."""
    seen = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, max_retries=retries, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert seen.attempts == list(range(1, retries + 2))
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["retries"] == retries


def test_configuration_gives_the_defaults(tmp_path: Path) -> None:
    """``subscribers`` of the configuration rules where the call says nothing."""
    seen = Recorder(fail)
    subscribers = {"max_retries": 2, "retry_backoff_base_ms": 1, "retry_backoff_max_ms": 2}
    with running(tmp_path, subscribers=subscribers) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert seen.attempts == [1, 2, 3]


def test_argument_wins_over_configuration(tmp_path: Path) -> None:
    """``max_retries=0`` of a call wins over the configuration's."""
    seen = Recorder(fail)
    with running(tmp_path, subscribers={"max_retries": 3}) as messenger:
        messenger.subscribe("orders", "s", seen, max_retries=0)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert seen.attempts == [1]


def test_backoff_is_waited(tmp_path: Path) -> None:
    """Between two deliveries lies at least a part of the base, and at most the maximum."""
    times: list[float] = []

    def handle(message: Message) -> None:
        times.append(time.monotonic())
        fail(message)

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, max_retries=3, retry_backoff=(0.1, 0.2))
        messenger.publish("orders", "t", 1)
        drain(messenger)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(gaps) == 3
    assert all(0.02 < gap < 0.6 for gap in gaps)


def test_failing_message_holds_up_the_next(tmp_path: Path) -> None:
    """Order is kept: the next message waits until the failing one is done or dead-lettered."""
    seen = Recorder(lambda message: fail(message) if message.payload == 0 else None)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, max_retries=2, retry_backoff=FAST_BACKOFF)
        messenger.publish_batch("orders", [("t", n) for n in range(3)])
        drain(messenger)
    assert seen.payloads == [0, 0, 0, 1, 2]


def test_gevent_timeout_is_a_failure(tmp_path: Path) -> None:
    """A ``gevent.Timeout`` that leaves the handler counts as a failure, not as the end."""

    def handle(message: Message) -> None:
        with gevent.Timeout(0.01):
            gevent.sleep(5)

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, max_retries=1, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["retries"] == 1


def test_stats_count(tmp_path: Path) -> None:
    """``stats`` counts deliveries, retries and dead letters of a subscriber."""
    with running(tmp_path) as messenger:
        handle = Recorder(lambda message: fail(message) if message.payload else None)
        messenger.subscribe("orders", "s", handle, max_retries=2, retry_backoff=FAST_BACKOFF)
        messenger.publish_batch("orders", [("t", 0), ("t", 1), ("t", 0)])
        drain(messenger)
        channel = next(c for c in messenger.stats().channels if c.channel == "orders")
        (stats,) = channel.subscribers
    assert (stats.retries, stats.dead_letters, stats.running) == (2, 1, True)


# --- RetryLater


def test_retry_later_spends_no_retry(tmp_path: Path) -> None:
    """``RetryLater`` delivers again, however often, and never dead-letters."""

    def later(message: Message) -> None:
        if len(seen.messages) < 10:
            raise RetryLater(0.001)

    seen = Recorder(later)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, max_retries=0)
        messenger.publish("orders", "t", 1)
        messenger.publish("orders", "t", 2)
        drain(messenger)
    assert seen.payloads == [1] * 10 + [2]
    assert dead_letters(tmp_path, "orders") == []


def test_retry_later_waits_so_long(tmp_path: Path) -> None:
    """The delay of ``RetryLater`` is kept."""
    times: list[float] = []

    def handle(message: Message) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise RetryLater(0.2)

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert 0.19 < times[1] - times[0] < 1


def test_retry_later_without_a_delay(tmp_path: Path) -> None:
    """Without a delay the subscription's own backoff decides, also for the class itself."""

    def handle(message: Message) -> None:
        if len(seen.messages) == 1:
            raise RetryLater
        if len(seen.messages) == 2:
            raise RetryLater()

    seen = Recorder(handle)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, max_retries=0, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 1)
        assert seen.wait(3) == [1, 1, 1]


def test_retry_later_keeps_the_retries(tmp_path: Path) -> None:
    """Failures before and after a ``RetryLater`` add up to ``max_retries`` as if it were not."""
    script = iter([ValueError, RetryLater(0.001), RetryLater(0.001), ValueError, ValueError])

    def handle(message: Message) -> None:
        raise next(script)

    seen = Recorder(handle)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, max_retries=2, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert len(seen.messages) == 5
    assert len(dead_letters(tmp_path, "orders")) == 1


def test_retry_later_across_a_restart(tmp_path: Path) -> None:
    """A message that was put off is still at the head after a restart."""

    def later(message: Message) -> None:
        raise RetryLater(60)

    seen = Recorder(later)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
    again = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", again)
        assert again.wait(1) == [1]


def test_retry_later_is_no_keyop_error() -> None:
    """``RetryLater`` is control flow: catching ``KeyopError`` does not catch it."""
    assert not issubclass(RetryLater, keyop.KeyopError)


# --- dead letters


def test_dead_letter_record(tmp_path: Path) -> None:
    """A dead letter holds the original, the reason and the subscriber; its envelope the trace."""
    with running(tmp_path, name="one") as messenger:
        messenger.publish("orders", "com.example.T", {"a": [1]}, correlation_id="c")
    with running(tmp_path, name="two") as messenger:
        messenger.subscribe(
            "orders", "billing", fail, start="earliest", max_retries=1, retry_backoff=FAST_BACKOFF
        )
        drain(messenger)
    (original,) = records(tmp_path, "orders")
    (record,) = records(tmp_path, "orders.dead-letter")
    assert record["payload_type"] == DEAD_LETTER_TYPE
    assert (record["origin"], record["correlation_id"]) == ("one", "c")
    assert record["channel"] == "orders.dead-letter"
    assert record["id"] != original["id"]
    letter = record["payload"]
    original.pop("crc")
    letter["original"].pop("crc", None)
    assert letter["original"] == original
    assert letter["retries"] == 1
    assert letter["subscriber"] == "billing"
    assert "cannot do" in letter["last_error"]
    assert TS.fullmatch(letter["failed_at"])


def test_dead_letter_is_delivered(tmp_path: Path) -> None:
    """A subscriber of the dead-letter channel gets it, with plain data as its payload."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders.dead-letter", "watch", seen)
        messenger.subscribe("orders", "s", fail, max_retries=0)
        messenger.publish("orders", "t", {"n": 1})
        seen.wait(1)
    assert seen.messages[0].payload_type == DEAD_LETTER_TYPE
    assert seen.messages[0].payload["original"]["payload"] == {"n": 1}


def test_each_failing_subscriber_makes_its_own(tmp_path: Path) -> None:
    """Two subscribers that fail make two dead letters, one that does not makes none."""
    with running(tmp_path) as messenger:
        for name in "ab":
            messenger.subscribe("orders", name, fail, max_retries=0)
        messenger.subscribe("orders", "good", Recorder())
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert sorted(letter["subscriber"] for letter in dead_letters(tmp_path, "orders")) == ["a", "b"]


def test_failing_on_dead_letters_makes_no_more(tmp_path: Path) -> None:
    """A failing handler of a dead-letter channel is retried and keeps its position."""
    seen = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders.dead-letter", "watch", seen, max_retries=0, retry_backoff=FAST_BACKOFF
        )
        messenger.subscribe("orders", "s", fail, max_retries=0)
        messenger.publish("orders", "t", 1)
        seen.wait(5)
    assert stored_offset(tmp_path, "orders.dead-letter", "watch") == 0
    assert not (tmp_path / "channels" / "orders.dead-letter.dead-letter").exists()


def test_largest_record_can_be_dead_lettered(tmp_path: Path) -> None:
    """A record of the largest size, all quotes, still fits into a dead letter."""
    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.subscribe("orders", "s", fail, max_retries=0)
        messenger.publish("orders", "t", '"' * 1900)
        drain(messenger)
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["original"]["payload"] == '"' * 1900


def test_enormous_error_text_does_not_stop_the_dead_letter(tmp_path: Path) -> None:
    """An error of a megabyte is cut to what fits."""

    def handle(message: Message) -> None:
        raise ValueError('"\x00é' * 400_000)

    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.subscribe("orders", "s", handle, max_retries=0)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["original"]["payload"] == 1


def test_error_that_cannot_be_printed(tmp_path: Path) -> None:
    """An exception whose ``str`` fails, or holds a lone surrogate, is dead-lettered too."""

    class BadError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def handle(message: Message) -> None:
        raise BadError if message.payload else ValueError("\udc80")

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, max_retries=0)
        messenger.publish_batch("orders", [("t", 0), ("t", 1)])
        drain(messenger)
    assert len(dead_letters(tmp_path, "orders")) == 2


def test_dead_letter_waits_for_room(tmp_path: Path) -> None:
    """While the dead letter cannot be written the position stays; then it moves on."""
    fs = FaultyFs()
    seen = Recorder(fail)
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.subscribe("orders", "s", seen, max_retries=0, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 0)
        drain(messenger)
        gate = wait_until(lambda: stored_offset(tmp_path, "orders", "s"))
        fault = fs.fail("write", errno.ENOSPC, times=None, path_contains="dead-letter")
        messenger.publish("orders", "t", 1)
        wait_until(lambda: fault.hits)
        assert stored_offset(tmp_path, "orders", "s") == gate
        fs.heal()
        drain(messenger)
    assert [letter["original"]["payload"] for letter in dead_letters(tmp_path, "orders")] == [0, 1]


# --- payload types


@pytest.mark.parametrize("cls", [Point, Struct, Model])
def test_registered_type(tmp_path: Path, cls: type) -> None:
    """A registered dataclass, Struct or model arrives as an instance."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("com.example.Point", cls)
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "com.example.Point", cls(x=1, y=2))
        messenger.publish("orders", "com.example.Point", {"x": 3})
        assert seen.wait(2) == [cls(x=1, y=2), cls(x=3)]
    assert all(isinstance(payload, cls) for payload in seen.payloads)


def test_registered_callable(tmp_path: Path) -> None:
    """Any callable that takes the decoded JSON will do."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", lambda data: sum(data))
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", [1, 2, 3])
        assert seen.wait(1) == [6]


def test_nested_dataclass(tmp_path: Path) -> None:
    """A dataclass inside a dataclass and a list of them arrive typed."""

    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", Line)
        messenger.subscribe("orders", "s", seen)
        line = Line(start=Point(1, 2), more=[Point(3, 4)])
        messenger.publish("orders", "t", line)
        assert seen.wait(1) == [line]


@dataclasses.dataclass
class Line:
    start: Point
    more: list[Point]


@pytest.mark.parametrize(
    "bad",
    [{}, {"x": "one"}, [1], "x", None, 5],
    ids=["missing", "wrong", "list", "str", "null", "int"],
)
@pytest.mark.parametrize("cls", [Point, Struct, Model])
def test_undecodable_payload_is_dead_lettered_at_once(tmp_path: Path, cls: type, bad) -> None:
    """A payload that the class refuses goes to the dead letters without a retry."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", cls)
        messenger.subscribe("orders", "s", seen, max_retries=5, retry_backoff=(30, 30))
        messenger.publish("orders", "t", bad)
        messenger.publish("orders", "t", {"x": 1})
        assert seen.wait(1) == [cls(x=1)]
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["original"]["payload"] == bad
    assert letter["retries"] == 0


def test_type_twice(tmp_path: Path) -> None:
    """A second class for a type is refused and the first one stays."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", Point)
        with pytest.raises(PayloadTypeAlreadyRegisteredError):
            messenger.register_payload_type("t", Struct)
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", {"x": 1})
        assert seen.wait(1) == [Point(1)]


def test_types_belong_to_their_messenger(tmp_path: Path) -> None:
    """What one messenger registers another does not know."""
    with running(tmp_path / "a") as one, running(tmp_path / "b") as other:
        one.register_payload_type("t", Point)
        other.register_payload_type("t", Struct)


def test_unregistered_type_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An unregistered type arrives as plain data, with one warning for each type."""
    caplog.set_level(logging.WARNING)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("known", Point)
        messenger.subscribe("orders", "s", seen)
        for kind in ("com.example.A", "com.example.B"):
            messenger.publish_batch("orders", [(kind, {"n": n}) for n in range(10)])
        seen.wait(20)
    texts = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert seen.payloads[0] == {"n": 0}
    assert sum("com.example.A" in text for text in texts) == 1
    assert sum("com.example.B" in text for text in texts) == 1


# --- ending from inside, and while handlers run


def test_stop_from_inside(tmp_path: Path) -> None:
    """A handler may stop its own subscription; its message is committed, no other comes."""
    seen = Recorder(lambda message: subscription.stop())
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", seen)
        messenger.publish_batch("orders", [("t", n) for n in range(3)])
        seen.wait(1)
        wait_until(lambda: not messenger.subscriptions())
        assert seen.payloads == [0]
        again = Recorder()
        messenger.subscribe("orders", "s", again)
        assert again.wait(2) == [1, 2]


def test_unsubscribe_from_inside(tmp_path: Path) -> None:
    """A handler may unsubscribe itself; the position is gone when it has returned."""
    with running(tmp_path) as messenger:
        seen = Recorder(lambda message: messenger.unsubscribe("orders", "s"))
        messenger.subscribe("orders", "s", seen)
        messenger.publish_batch("orders", [("t", n) for n in range(3)])
        seen.wait(1)
        wait_until(lambda: not messenger.subscriptions())
        wait_until(lambda: not offset_path(tmp_path, "orders", "s").exists())
        assert seen.payloads == [0]


def test_close_from_inside(tmp_path: Path) -> None:
    """A handler may close the messenger; its own message is committed."""
    messenger = Messenger(config(tmp_path))
    seen = Recorder(lambda message: messenger.close())
    messenger.subscribe("orders", "s", seen)
    messenger.publish_batch("orders", [("t", n) for n in range(3)])
    first = len(log_bytes(tmp_path, "orders").splitlines(True)[0])
    seen.wait(1)
    with gevent.Timeout(5):
        messenger.close()
    assert seen.payloads == [0]
    assert stored_offset(tmp_path, "orders", "s") == first


def test_subscribe_from_inside(tmp_path: Path) -> None:
    """A handler may subscribe to another channel."""
    other = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders", "s", lambda m: messenger.subscribe("more", "s", other) and None
        )
        messenger.publish("orders", "t", 1)
        drain(messenger)
        messenger.publish("more", "t", 2)
        assert other.wait(1) == [2]


def test_publish_to_its_own_channel(tmp_path: Path) -> None:
    """A handler may publish to the channel it reads."""
    seen = Recorder(
        lambda m: messenger.publish("orders", "t", m.payload + 1) if m.payload < 5 else 0
    )
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 0)
        assert seen.wait(6) == [0, 1, 2, 3, 4, 5]


def test_close_as_a_greenlet(tmp_path: Path) -> None:
    """Closing may be all that a greenlet does."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        gevent.spawn(messenger.close).get()
        with pytest.raises(keyop.MessengerClosedError):
            messenger.publish("orders", "t", 2)


def test_close_lets_handlers_finish(tmp_path: Path) -> None:
    """``close`` waits for a running handler, whose message is then committed."""
    done = []

    def handle(message: Message) -> None:
        gevent.sleep(0.2)
        done.append(message.payload)

    seen = Recorder(handle)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        messenger.close()
        assert done == [1]
    assert stored_offset(tmp_path, "orders", "s") == end(tmp_path)


def test_close_ends_at_its_deadline(tmp_path: Path) -> None:
    """A handler that never returns does not hold ``close`` up; its message comes again."""
    seen = Recorder(lambda message: gevent.sleep(60))
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        started = time.monotonic()
        messenger.close(timeout=0.3)
        assert 0.2 < time.monotonic() - started < 1.5
    again = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", again)
        assert again.wait(1) == [1]


def test_close_with_no_time_at_all(tmp_path: Path) -> None:
    """``close(timeout=0)`` does not wait for handlers."""
    seen = Recorder(lambda message: gevent.sleep(60))
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        started = time.monotonic()
        messenger.close(timeout=0)
        assert time.monotonic() - started < 1
    assert stored_offset(tmp_path, "orders", "s") == 0


class Stubborn:
    """A handler that swallows its own death until it is let go."""

    def __init__(self) -> None:
        self.let_go = gevent.event.Event()
        self.ended = gevent.event.Event()

    def __call__(self, message: Message) -> None:
        while not self.let_go.is_set():
            try:
                self.let_go.wait(60)
            except BaseException:
                continue
        self.ended.set()


def test_close_despite_a_handler_that_swallows_its_death(tmp_path: Path) -> None:
    """A handler that catches everything and goes on cannot hold ``close`` past its timeout."""
    stubborn = Stubborn()
    seen = Recorder(stubborn)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        started = time.monotonic()
        messenger.close(timeout=0.3)
        assert time.monotonic() - started < 1.5
        assert stored_offset(tmp_path, "orders", "s") == 0
        stubborn.let_go.set()
        assert stubborn.ended.wait(5)


def test_late_handler_does_not_move_its_successors_position(tmp_path: Path) -> None:
    """A handler that ends after ``close`` gave up on it never touches the position again."""
    stubborn = Stubborn()
    seen, again = Recorder(stubborn), Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 0)
        seen.wait(1)
        messenger.close(timeout=0.2)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", again)
        messenger.publish_batch("orders", [("t", n) for n in range(1, 5)])
        assert again.wait(5) == [0, 1, 2, 3, 4]
        drain(messenger)
        stubborn.let_go.set()
        assert stubborn.ended.wait(5)
        gevent.sleep(0.02)
        assert stored_offset(tmp_path, "orders", "s") == end(tmp_path)


def test_close_during_backoff(tmp_path: Path) -> None:
    """A message in backoff does not hold ``close`` up and stays uncommitted."""
    seen = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, retry_backoff=(60, 60))
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        started = time.monotonic()
        messenger.close()
        assert time.monotonic() - started < 1
    assert stored_offset(tmp_path, "orders", "s") == 0
    assert dead_letters(tmp_path, "orders") == []


def test_handler_killed_by_its_user(tmp_path: Path) -> None:
    """``GreenletExit`` inside a handler is not taken for success: the message is not lost."""
    seen = Recorder(lambda m: gevent.getcurrent().kill() if len(seen.messages) == 1 else None)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        gevent.sleep(0.05)
    again = Recorder()
    if len(seen.messages) == 1:
        with running(tmp_path) as messenger:
            messenger.subscribe("orders", "s", again)
            assert again.wait(1) == [1]


# --- concurrency and key


def test_concurrency_runs_so_many(tmp_path: Path) -> None:
    """``concurrency=4`` runs four handlers at once and never a fifth."""
    gate, now, most = gevent.event.Event(), 0, 0

    def handle(message: Message) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        gate.wait()
        now -= 1

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, concurrency=4)
        messenger.publish_batch("orders", [("t", n) for n in range(20)])
        wait_until(lambda: now == 4)
        gevent.sleep(0.02)
        gate.set()
        drain(messenger)
    assert most == 4


def test_concurrency_commits_a_prefix(tmp_path: Path) -> None:
    """While the oldest message is not done the position stays before it."""
    gate = gevent.event.Event()
    done = []

    def handle(message: Message) -> None:
        if message.payload == 0:
            gate.wait()
        done.append(message.payload)

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, concurrency=4)
        messenger.publish_batch("orders", [("t", n) for n in range(20)])
        wait_until(lambda: len(done) >= 3)
        gevent.sleep(0.02)
        assert done == [1, 2, 3]  # none further than four beyond the oldest
        assert stored_offset(tmp_path, "orders", "s") == 0
        gate.set()
        drain(messenger)
    assert sorted(done) == list(range(20))
    assert stored_offset(tmp_path, "orders", "s") == end(tmp_path)


def test_concurrency_across_a_restart(tmp_path: Path) -> None:
    """What was done beyond an uncommitted message comes again; nothing is left out."""
    seen = Recorder(lambda message: gevent.sleep(60) if message.payload == 2 else None)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, concurrency=3)
        messenger.publish_batch("orders", [("t", n) for n in range(10)])
        wait_until(lambda: 4 in seen.payloads)
        messenger.close(timeout=0.2)
    again = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", again, concurrency=3)
        drain(messenger)
    assert sorted(again.payloads) == list(range(2, 10))


def test_key_keeps_order(tmp_path: Path) -> None:
    """Messages with equal keys run one after the other in log order; others run beside them."""
    order: dict[int, list[int]] = collections.defaultdict(list)
    now: collections.Counter[int] = collections.Counter()
    most, together = 0, 0

    def handle(message: Message) -> None:
        nonlocal most, together
        key = message.payload % 3
        now[key] += 1
        most = max(most, now[key])
        together = max(together, sum(now.values()))
        gevent.sleep(0.001 * (message.payload % 4))
        order[key].append(message.payload)
        now[key] -= 1

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, concurrency=6, key=lambda m: m.payload % 3)
        messenger.publish_batch("orders", [("t", n) for n in range(60)])
        drain(messenger)
    assert most == 1
    assert together > 1
    assert all(values == sorted(values) for values in order.values())
    assert sum(map(len, order.values())) == 60


def test_key_holds_back_behind_a_retry(tmp_path: Path) -> None:
    """While a message is retried the next with its key waits, another key does not."""
    done = []

    def handle(message: Message) -> None:
        if message.payload == ["a", 0] and message.attempt < 4:
            raise ValueError
        done.append(message.payload)

    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders",
            "s",
            handle,
            concurrency=4,
            key=lambda m: m.payload[0],
            retry_backoff=(0.02, 0.02),
        )
        messenger.publish_batch("orders", [("t", p) for p in (["a", 0], ["a", 1], ["b", 0])])
        drain(messenger)
    assert done == [["b", 0], ["a", 0], ["a", 1]]


@pytest.mark.parametrize("key", [lambda m: 1 / 0, lambda m: []], ids=["raises", "unhashable"])
def test_key_that_fails(tmp_path: Path, key) -> None:
    """A key function that fails on a message loses none: handled or dead-lettered."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders", "s", seen, concurrency=2, key=key, max_retries=1, retry_backoff=FAST_BACKOFF
        )
        messenger.publish_batch("orders", [("t", n) for n in range(4)])
        drain(messenger)
    letters = [letter["original"]["payload"] for letter in dead_letters(tmp_path, "orders")]
    assert sorted(seen.payloads + letters) == [0, 1, 2, 3]


def test_concurrent_failures_are_dead_lettered(tmp_path: Path) -> None:
    """Failing and working messages side by side: each ends where it belongs, once."""
    done = []

    def handle(message: Message) -> None:
        gevent.sleep(0.001)
        if message.payload % 3 == 0:
            raise ValueError
        done.append(message.payload)

    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders", "s", handle, concurrency=5, max_retries=1, retry_backoff=FAST_BACKOFF
        )
        messenger.publish_batch("orders", [("t", n) for n in range(30)])
        drain(messenger)
    letters = sorted(letter["original"]["payload"] for letter in dead_letters(tmp_path, "orders"))
    assert letters == list(range(0, 30, 3))
    assert sorted(done) == [n for n in range(30) if n % 3]


def test_stop_during_concurrent_backoff(tmp_path: Path) -> None:
    """A stop while messages are in backoff leaves them uncommitted."""
    seen = Recorder(fail)
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe(
            "orders", "s", seen, concurrency=3, retry_backoff=(60, 60)
        )
        messenger.publish_batch("orders", [("t", n) for n in range(3)])
        seen.wait(3)
        with gevent.Timeout(3):
            subscription.stop()
    assert stored_offset(tmp_path, "orders", "s") == 0


def test_unparsable_line_is_dead_lettered_raw(tmp_path: Path) -> None:
    """A line that is no record at all is kept in a dead letter as base64, and passed over."""
    from .helpers import record

    garbage = b"\x00\xffthis is no record\n"
    write_segment(tmp_path, "orders", 0, record(1) + garbage + record(2))
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
    assert seen.payloads == [1, 2]
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["original"] is None
    assert base64.b64decode(letter["raw"]).rstrip(b"\n") == garbage.rstrip(b"\n")
