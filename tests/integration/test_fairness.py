"""Tight loops yield: whatever publishing and delivering have to do, a millisecond timer ticks on.

The lateness of the timer is measured in this thread's own CPU time, not by the clock on the wall:
what other processes of a busy machine take from us is nobody's fault here.
"""

from __future__ import annotations

import datetime
import gc
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from keyop import Message, Messenger, PublishTimeoutError, RetryLater
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs

from .helpers import Recorder, record, running, wait_until, write_segment

# A loop gives way every two milliseconds. These bounds are met with room to spare, and missed by
# far where one does not.
MEDIAN_S = 0.01
MAX_S = 0.05


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What pytest keeps of thousands of log records, with their tracebacks, takes its time."""
    caplog.set_level(logging.CRITICAL, "keyop")


class Ticker:
    """A greenlet that sleeps a millisecond again and again, and notes what came in between."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            before = time.thread_time()
            gevent.sleep(0.001)
            self.gaps.append(time.thread_time() - before)

    def stop(self) -> None:
        self._greenlet.kill()


@contextmanager
def fair(least_s: float = 0.02) -> Iterator[None]:
    """Check that the block held up no timer; one that uses less than ``least_s`` says nothing."""
    # A collection takes the longer the more other tests have left behind.
    gc.disable()
    ticker = Ticker()
    gevent.sleep(0)
    started = time.thread_time()
    try:
        yield
    finally:
        spent = time.thread_time() - started
        # The last wait counts, also when the block never gave way at all.
        gevent.sleep(0.002)
        ticker.stop()
        gc.enable()
    assert spent >= least_s, f"too little to say anything: {spent:.3f} s"
    assert max(ticker.gaps) < MAX_S, f"{max(ticker.gaps):.3f} s without a turn"
    assert statistics.median(ticker.gaps) < MEDIAN_S


def publish_singles(messenger: Messenger) -> None:
    for n in range(15_000):
        messenger.publish("orders", "t", n)


def publish_batches(messenger: Messenger) -> None:
    for _ in range(200):
        messenger.publish_batch("orders", [("t", n) for n in range(100)])


def publish_large(messenger: Messenger) -> None:
    payload = ["x" * 1000] * 100
    for _ in range(300):
        messenger.publish("orders", "t", payload)


def publish_seen(messenger: Messenger) -> None:
    for _ in range(30_000):
        messenger.publish("orders", "t", 1, message_id="the same")


def publish_to_many(messenger: Messenger) -> None:
    for n in range(6_000):
        messenger.publish(f"channel-{n % 60}", "t", n)


def publish_under_stamps(messenger: Messenger) -> None:
    for n in range(10_000):
        messenger.publish("orders", f"t{n % 7}", n, correlation_id=str(n), message_id=str(n))


PUBLISHING: dict[str, Callable[[Messenger], None]] = {
    "singles": publish_singles,
    "batches": publish_batches,
    "large": publish_large,
    "seen": publish_seen,
    "many channels": publish_to_many,
    "stamps": publish_under_stamps,
}


@pytest.mark.parametrize("publish", PUBLISHING.values(), ids=PUBLISHING)
@pytest.mark.parametrize("policy", ["none", "periodic"])
def test_publishing(tmp_path: Path, publish: Callable[[Messenger], None], policy: str) -> None:
    """A greenlet that publishes and does nothing else lets the timer tick."""
    with running(tmp_path, storage={"sync_policy": policy}) as messenger, fair():
        publish(messenger)


def test_publishing_with_rolls(tmp_path: Path) -> None:
    """So it does while segments are rolled at every turn."""
    with running(tmp_path, storage={"max_segment_bytes": 20_000}) as messenger, fair():
        publish_singles(messenger)


def test_publishing_by_many(tmp_path: Path) -> None:
    """So do fifty greenlets that publish at once, and under ``always`` wait for each other."""

    def work(who: int) -> None:
        for n in range(100):
            messenger.publish("orders", "t", [who, n])

    with running(tmp_path, storage={"sync_policy": "always"}) as messenger, fair():
        gevent.joinall([gevent.spawn(work, who) for who in range(50)], raise_error=True)


def test_publishing_and_delivering(tmp_path: Path) -> None:
    """So it is when subscribers read along."""
    with running(tmp_path) as messenger:
        for name in "abc":
            messenger.subscribe("orders", name, lambda message: None)
        with fair():
            publish_singles(messenger)
            drain(messenger, timeout=40)


def test_waiting_for_room(tmp_path: Path) -> None:
    """Many who try again and again on a full disk take no turns from others."""
    fs = FaultyFs()

    def work(who: int) -> None:
        for _ in range(3):
            with pytest.raises(PublishTimeoutError):
                messenger.publish("orders", "t", who, timeout=0.15)

    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.full = True
        with fair():
            gevent.joinall([gevent.spawn(work, who) for who in range(100)], raise_error=True)
        fs.full = False


# --- delivering


def fill(data_dir: Path, count: int, **fields: Any) -> None:
    """Write a segment of so many records."""
    line = record("x", **fields)
    write_segment(data_dir, "orders", 0, line * count)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_backlog(tmp_path: Path, concurrency: int) -> None:
    """A long backlog and a handler that does nothing."""
    fill(tmp_path, 20_000)
    seen = Recorder()
    with running(tmp_path) as messenger, fair():
        messenger.subscribe("orders", "s", seen, start="earliest", concurrency=concurrency)
        wait_until(lambda: len(seen.messages) == 20_000, 50)


def test_backlog_of_a_registered_type(tmp_path: Path) -> None:
    """The same with a type of the user's and a key for each message."""
    fill(tmp_path, 10_000)
    seen = Recorder()
    with running(tmp_path) as messenger, fair():
        messenger.register_payload_type("com.example.T", str.upper)
        messenger.subscribe(
            "orders", "s", seen, start="earliest", concurrency=4, key=lambda message: message.id
        )
        wait_until(lambda: len(seen.messages) == 10_000, 50)
    assert seen.payloads[0] == "X"


def test_backlog_of_another_version(tmp_path: Path) -> None:
    """Records that are only passed over, because a later version wrote them."""
    fill(tmp_path, 20_000, v=2)
    with running(tmp_path) as messenger, fair():
        subscription = messenger.subscribe("orders", "s", Recorder(), start="earliest")
        wait_until(lambda: subscription.lag_bytes == 0, 50)


def test_backlog_of_old_messages(tmp_path: Path) -> None:
    """Records that are only passed over, because they are too old for the subscriber."""
    fill(tmp_path, 20_000, ts="2020-01-01T00:00:00Z")
    with running(tmp_path) as messenger, fair():
        subscription = messenger.subscribe(
            "orders", "s", Recorder(), start="earliest", max_age=3600
        )
        wait_until(lambda: subscription.lag_bytes == 0, 50)
        assert messenger.stats().channels[0].subscribers[0].expired == 20_000


def test_backlog_of_damage(tmp_path: Path) -> None:
    """Damaged records, each of which makes a dead letter."""
    write_segment(tmp_path, "orders", 0, record("x").replace(b'"x"', b'"y"') * 1_000)
    with running(tmp_path) as messenger, fair():
        subscription = messenger.subscribe("orders", "s", Recorder(), start="earliest")
        wait_until(lambda: subscription.lag_bytes == 0, 50)
        assert messenger.stats().channels[0].subscribers[0].corrupt == 1_000


@pytest.mark.parametrize("failure", [ValueError("no"), RetryLater(0)], ids=["fails", "later"])
def test_handler_that_fails_at_once(tmp_path: Path, failure: Exception) -> None:
    """Retries without any delay between them are a tight loop as well."""
    tries = 0
    enough = gevent.event.Event()

    def handle(message: Message) -> None:
        nonlocal tries
        tries += 1
        if tries > 3_000:
            enough.set()
            return
        raise failure

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, max_retries=10**6, retry_backoff=(0, 0))
        messenger.publish("orders", "t", 1)
        with fair():
            assert enough.wait(50)


def test_message_that_publishes_the_next(tmp_path: Path) -> None:
    """A handler that publishes to its own channel goes round and round, and lets others run."""
    rounds = gevent.event.Event()

    def handle(message: Message) -> None:
        if message.payload == 5_000:
            rounds.set()
        else:
            messenger.publish("orders", "t", message.payload + 1)

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle)
        messenger.publish("orders", "t", 0)
        with fair():
            assert rounds.wait(50)


# --- searching


def test_start_at_a_time_far_behind(tmp_path: Path) -> None:
    """Looking for the first record of a moment in a long log holds up nobody."""
    old, new = record("old", ts="2026-01-01T00:00:00Z"), record("new", ts="2026-01-03T00:00:00Z")
    write_segment(tmp_path, "orders", 0, old * 60_000 + new)
    seen = Recorder()
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    with running(tmp_path) as messenger:
        messenger.start()
        with fair(least_s=0):
            messenger.subscribe("orders", "s", seen, start=moment)
            seen.wait(1)
    assert seen.payloads == ["new"]


def test_rebuilding_the_window_of_ids(tmp_path: Path) -> None:
    """Reading the ids of a long log back, when the first one is asked for, holds up nobody."""
    lines = []
    for n in range(60_000):
        line = json.dumps(
            {
                "v": 1,
                "id": f"id-{n}",
                "ts": "2026-01-02T03:04:05Z",
                "channel": "orders",
                "origin": "there",
                "payload_type": "t",
                "payload": "x" * 100,
            },
            separators=(",", ":"),
        )
        lines.append(line.encode() + b"\n")
    content = b"".join(lines)
    write_segment(tmp_path, "orders", 0, content)
    with running(tmp_path) as messenger:
        messenger.start()
        with fair(least_s=0):
            for n in (59_999, 0, 30_000):
                assert messenger.publish("orders", "t", 1, message_id=f"id-{n}") == f"id-{n}"
    assert (tmp_path / "channels" / "orders" / f"{0:020}.jsonl").stat().st_size == len(content)
