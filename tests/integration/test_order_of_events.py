"""What is promised, whatever comes before or in between: calls in handlers, at ends, in retries."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from keyop import (
    Message,
    MessengerClosedError,
    PayloadError,
    PublishTimeoutError,
    RetryLater,
    StorageError,
    SubscriberInUseError,
)
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs

from .helpers import (
    FAST_BACKOFF,
    Recorder,
    dead_letters,
    offset_path,
    records,
    running,
    segments,
    stored_offset,
    wait_until,
)

OVERSIZE = "x" * 5000
SMALL_LINES = {"max_record_bytes": 4000}


# --- subscribing again


@pytest.mark.parametrize("end", ["close", "stop_delivering"])
def test_subscribing_while_it_ends(tmp_path: Path, end: str) -> None:
    """Who waits for an older subscription of the id gets none once the messenger has ended."""
    gate, again, got = gevent.event.Event(), Recorder(), []
    with running(tmp_path) as messenger:
        one = messenger.subscribe("orders", "s", lambda _: gate.wait(), start="earliest")
        messenger.publish("orders", "t", 1)
        wait_until(lambda: one.lag_bytes)

        def subscribe() -> None:
            one.request_stop()
            try:
                got.append(messenger.subscribe("orders", "s", again))
            except MessengerClosedError as error:
                got.append(error)

        waiting = gevent.spawn(subscribe)
        gevent.sleep(0)
        ending = gevent.spawn(getattr(messenger, end), 5)
        gevent.sleep(0)
        gate.set()
        gevent.joinall([waiting, ending], timeout=5, raise_error=True)
        assert isinstance(got[0], MessengerClosedError)
    with running(tmp_path) as other:
        other.subscribe("orders", "s", Recorder())


def test_replacing_itself_in_a_handler(tmp_path: Path) -> None:
    """``unsubscribe`` and ``subscribe`` in a handler: the new one gets what comes from then on."""
    second = Recorder()
    with running(tmp_path) as messenger:

        def first(message: Message) -> None:
            messenger.unsubscribe("orders", "s")
            messenger.subscribe("orders", "s", second, start="latest")
            messenger.publish("orders", "t", "after")

        messenger.subscribe("orders", "s", first)
        messenger.publish("orders", "t", "before")
        assert second.wait(1) == ["after"]
        assert offset_path(tmp_path, "orders", "s").exists()


def test_ending_the_replacement_in_the_handler(tmp_path: Path) -> None:
    """The one that waits for the handler to end does not have to be waited for."""
    taken: list[float] = []
    with running(tmp_path) as messenger:

        def handler(message: Message) -> None:
            subscription.request_stop()
            messenger.subscribe("orders", "s", Recorder())
            begun = time.monotonic()
            messenger.unsubscribe("orders", "s")
            taken.append(time.monotonic() - begun)

        subscription = messenger.subscribe("orders", "s", handler)
        messenger.publish("orders", "t", 1)
        wait_until(lambda: taken)
    assert taken[0] < 5


def test_unsubscribe_of_somebody_elses(tmp_path: Path) -> None:
    """It is refused, and the standby that is here takes over later."""
    seen = Recorder()
    with running(tmp_path) as holder, running(tmp_path) as here:
        held = holder.subscribe("orders", "s", Recorder())
        standby = here.subscribe("orders", "s", seen, standby=True)
        with pytest.raises(SubscriberInUseError):
            here.unsubscribe("orders", "s")
        assert standby.running
        held.stop()
        wait_until(lambda: standby.active)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_position_that_cannot_be_deleted(tmp_path: Path, stopped: bool) -> None:
    """``unsubscribe`` says so, whether the subscription was running or not."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        subscription = messenger.subscribe("orders", "s", Recorder())
        if stopped:
            subscription.stop()
        fs.fail("unlink", errno.EIO, path_contains="s.offset")
        with pytest.raises(StorageError, match="cannot be deleted"):
            messenger.unsubscribe("orders", "s")
        assert offset_path(tmp_path, "orders", "s").exists()


# --- seeking


def test_seek_after_max_age(tmp_path: Path) -> None:
    """``max_age`` is for the start: whoever seeks wants what is there."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", "old")
        gevent.sleep(0.02)
        subscription = messenger.subscribe("orders", "s", seen, max_age=0.01)
        subscription.seek("earliest")
        assert seen.wait(1) == ["old"]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_seek_in_a_backoff(tmp_path: Path, concurrency: int) -> None:
    """A message that is to be tried again later is left behind."""
    seen = Recorder(_later)
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", seen, concurrency=concurrency)
        messenger.publish("orders", "t", "old")
        seen.wait(1)
        subscription.seek("latest")
        messenger.publish("orders", "t", "new")
        assert seen.wait(2) == ["old", "new"]


def _later(message: Message) -> None:
    if message.payload == "old":
        raise RetryLater(60)


# --- handlers that end in other ways


class _Refusing:
    """A class for payloads that takes none called "bad" once it was told so."""

    def __init__(self) -> None:
        self.refuses = False

    def __call__(self, data: Any) -> Any:
        if self.refuses and data == "bad":
            raise TypeError("does not decode")
        return data


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_payload_that_does_not_decode_any_more(tmp_path: Path, concurrency: int) -> None:
    """It is a dead letter also where that shows before a retry; nothing is passed over."""
    cls = _Refusing()

    def fail(message: Message) -> None:
        if message.payload == "bad":
            cls.refuses = True
            raise ValueError

    seen = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", "bad")
        messenger.publish("orders", "t", OVERSIZE)
        messenger.publish("orders", "t", "good")
    with running(tmp_path, storage=SMALL_LINES) as messenger:
        messenger.register_payload_type("t", cls)
        messenger.subscribe(
            "orders",
            "s",
            seen,
            start="earliest",
            concurrency=concurrency,
            retry_backoff=FAST_BACKOFF,
        )
        seen.wait(2)
        drain(messenger)
    assert seen.payloads == ["bad", "good"]
    letters = dead_letters(tmp_path, "orders")
    assert len(letters) == 2
    assert any("does not decode" in str(letter) for letter in letters)


@pytest.mark.parametrize("payloads", [["a", OVERSIZE, "b"], ["a", "b", "c", "d", "e"]])
def test_a_handler_that_ends_its_greenlet(tmp_path: Path, payloads: list[str]) -> None:
    """With several at once too, the message comes again, and what is behind it after that."""
    first = [True]

    def end(message: Message) -> None:
        if message.payload == "a" and first:
            first.clear()
            raise gevent.GreenletExit

    seen = Recorder(end)
    with running(tmp_path) as messenger:
        for payload in payloads:
            messenger.publish("orders", "t", payload)
    with running(tmp_path, storage=SMALL_LINES) as messenger:
        messenger.subscribe("orders", "s", seen, start="earliest", concurrency=2)
        wait_until(lambda: payloads[-1] in seen.payloads)
        drain(messenger)
    assert seen.payloads.count("a") == 2
    assert set(seen.payloads) == set(payloads) - {OVERSIZE}


# --- keys


def test_closing_with_a_queue_of_one_key(tmp_path: Path) -> None:
    """The running handler ends; those that wait behind it do not begin."""
    gate, seen = gevent.event.Event(), Recorder(lambda _: gate.wait())
    with running(tmp_path) as messenger:
        messenger.publish_batch("orders", [("t", number) for number in range(5)])
        messenger.subscribe(
            "orders", "s", seen, start="earliest", concurrency=5, key=lambda _: "one"
        )
        seen.wait(1)
        gevent.sleep(0.01)
        closing = gevent.spawn(messenger.close, 5)
        gevent.sleep(0)
        gate.set()
        closing.get(timeout=5)
    assert seen.payloads == [0]


def test_keys_behind_a_damaged_newline(tmp_path: Path) -> None:
    """Two records that became one line stay in their order with those of their key."""
    events: list[tuple[str, int]] = []

    def handle(message: Message) -> None:
        events.append(("begin", message.payload))
        gevent.sleep(0.01)
        events.append(("end", message.payload))

    with running(tmp_path) as messenger:
        for number in range(4):
            messenger.publish("orders", "t", number)
    (path,) = segments(tmp_path, "orders")
    data = bytearray(path.read_bytes())
    data[data.index(b"\n")] ^= 1
    path.write_bytes(data)
    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders", "s", handle, start="earliest", concurrency=4, key=lambda _: "one"
        )
        wait_until(lambda: len(events) == 8)
    assert events == [(what, number) for number in range(4) for what in ("begin", "end")]


# --- positions at their interval


@pytest.mark.parametrize("concurrency", [1, 2])
def test_saved_while_a_handler_takes_long(tmp_path: Path, concurrency: int) -> None:
    """What is done is saved though nothing else happens, a second later at most."""
    gate = gevent.event.Event()

    def handle(message: Message) -> None:
        if message.payload == "last":
            gate.wait()

    with running(tmp_path, storage={"offset_flush_interval_ms": 100}) as messenger:
        messenger.publish_batch("orders", [("t", number) for number in range(10)])
        end = sum(path.stat().st_size for path in segments(tmp_path, "orders"))
        messenger.subscribe("orders", "s", handle, start="earliest", concurrency=concurrency)
        messenger.publish("orders", "t", "last")
        wait_until(lambda: stored_offset(tmp_path, "orders", "s") == end)
        gate.set()


# --- closing


class _Survivor:
    """A handler that survives its death once."""

    def __init__(self) -> None:
        self.gate = gevent.event.Event()
        self.called = 0

    def __call__(self, message: Message) -> None:
        self.called += 1
        try:
            self.gate.wait()
        except gevent.GreenletExit:
            self.gate.wait()


def test_closing_with_a_handler_that_survives_and_a_disk_that_hangs(tmp_path: Path) -> None:
    """``close`` ends within its timeout all the same."""
    fs, survivor = FaultyFs(), _Survivor()
    with running(tmp_path, seams={"fs": fs}, storage={"sync_policy": "always"}) as messenger:
        messenger.subscribe("orders", "s", survivor)
        messenger.publish("orders", "t", 1)
        wait_until(lambda: survivor.called)
        with fs.hold("fdatasync"):
            begun = time.monotonic()
            messenger.close(timeout=1)
            assert time.monotonic() - begun < 3
        survivor.gate.set()


def test_a_second_close_has_its_own_timeout(tmp_path: Path) -> None:
    """Whoever closes again does not wait for as long as the first one may."""
    gate, seen = gevent.event.Event(), Recorder(lambda _: gate.wait())
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        first = gevent.spawn(messenger.close, 60)
        gevent.sleep(0)
        begun = time.monotonic()
        messenger.close(timeout=0.1)
        assert time.monotonic() - begun < 5
        gate.set()
        first.get(timeout=5)


def test_many_handlers_that_take_long_to_die(tmp_path: Path) -> None:
    """They are killed together."""
    begun = 0

    def handle(message: Message) -> None:
        nonlocal begun
        begun += 1
        try:
            gevent.sleep(60)
        finally:
            gevent.sleep(0.5)

    with running(tmp_path) as messenger:
        for number in range(30):
            messenger.subscribe("orders", f"s{number}", handle)
        messenger.publish("orders", "t", 1)
        wait_until(lambda: begun == 30)
        before = time.monotonic()
        messenger.close(timeout=2)
        assert time.monotonic() - before < 4


# --- publishing


def test_what_is_there_when_a_timeout_passes(tmp_path: Path) -> None:
    """``written`` counts what others have written, or what was there before."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}, storage={"sync_policy": "always"}) as messenger:
        messenger.publish_batch("orders", [("t", n) for n in range(3)], message_id="b")
        with fs.hold("fdatasync", ".jsonl") as held:
            first = gevent.spawn(messenger.publish, "orders", "t", 1, message_id="x")
            held.wait_entered()
            with pytest.raises(PublishTimeoutError) as caught:
                messenger.publish("orders", "t", 1, message_id="x", timeout=0.05)
            assert caught.value.written is True
            batch = [("t", n) for n in range(5)]
            with pytest.raises(PublishTimeoutError) as caught:
                messenger.publish_batch("orders", batch, message_id="b", timeout=0.05)
            assert caught.value.written == 5
        first.get(timeout=5)
        assert len(records(tmp_path, "orders")) == 6


def test_a_directory_that_takes_long(tmp_path: Path) -> None:
    """The timeout bounds the first publish to a channel as well."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.start()
        with fs.hold("mkdir", "orders"):
            begun = time.monotonic()
            with pytest.raises(PublishTimeoutError) as caught:
                messenger.publish("orders", "t", 1, timeout=0.05)
            assert time.monotonic() - begun < 5
            assert caught.value.written is False
        messenger.publish("orders", "t", 2)
    assert [each["payload"] for each in records(tmp_path, "orders")] == [2]


@dataclass
class _Priced:
    price: float

    @cached_property
    def ratio(self) -> float:
        return self.price / self.price if self.price else float("nan")


def test_a_cached_nan(tmp_path: Path) -> None:
    """What is written besides a dataclass's fields is looked at too."""
    priced = _Priced(0.0)
    assert priced.ratio != priced.ratio
    with (
        running(tmp_path) as messenger,
        pytest.raises(PayloadError, match=r"payload\.ratio is NaN"),
    ):
        messenger.publish("orders", "t", priced)
