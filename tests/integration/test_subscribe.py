"""Subscribing: where it starts, in what order it delivers, and what it leaves behind."""

from __future__ import annotations

import datetime
import errno
import logging
import os
import time
from pathlib import Path

import gevent
import pytest

import keyop.testing
from keyop import Message, Messenger, MessengerClosedError, OffsetError, SubscriberInUseError
from keyop.fs import FileSystem
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs

from .helpers import (
    FAST_BACKOFF,
    Recorder,
    config,
    log_bytes,
    offset_path,
    record,
    records,
    running,
    segments,
    stored_offset,
    tree,
    wait_until,
    write_segment,
)

# The package's fixture, also where the package itself is not installed.
messenger = keyop.testing.messenger

UTC = datetime.timezone.utc


def at(hour: int) -> str:
    return f"2026-01-02T{hour:02}:00:00Z"


def moment(hour: int, **more: int) -> datetime.datetime:
    return datetime.datetime(2026, 1, 2, hour, tzinfo=UTC, **more)


def hourly(data_dir: Path, count: int = 6) -> list[int]:
    """Write one record per full hour; return the offset of each."""
    lines = [record(n, ts=at(n)) for n in range(count)]
    write_segment(data_dir, "orders", 0, b"".join(lines))
    return [sum(map(len, lines[:n])) for n in range(count)]


def test_starts_at_the_end_by_default(tmp_path: Path) -> None:
    """A new subscriber gets what is published after it subscribed, and nothing older."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", "old")
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", "new")
        drain(messenger)
    assert seen.payloads == ["new"]


def test_earliest_starts_at_the_beginning(tmp_path: Path) -> None:
    """``start="earliest"`` delivers what is in the log already."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish_batch("orders", [("t", n) for n in range(3)])
        messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
    assert seen.payloads == [0, 1, 2]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (moment(0) - datetime.timedelta(days=1), [0, 1, 2, 3, 4, 5]),
        (moment(0), [0, 1, 2, 3, 4, 5]),
        (moment(3), [3, 4, 5]),
        (moment(3, microsecond=1), [4, 5]),
        (moment(5, minute=30), []),
        (
            datetime.datetime(2026, 1, 2, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
            [3, 4, 5],
        ),
    ],
)
def test_start_at_a_time(tmp_path: Path, start: datetime.datetime, expected: list[int]) -> None:
    """A ``datetime`` starts at the first record that is not older."""
    hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start=start)
        drain(messenger)
    assert seen.payloads == expected


def test_start_at_a_time_across_segments(tmp_path: Path) -> None:
    """A time is found in whatever segment it lies."""
    start = 0
    for n in range(6):
        line = record(n, ts=at(n))
        write_segment(tmp_path, "orders", start, line)
        start += len(line)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start=moment(2))
        drain(messenger)
    assert seen.payloads == [2, 3, 4, 5]


def test_start_at_an_offset(tmp_path: Path) -> None:
    """An ``int`` starts at the record that begins there."""
    offsets = hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start=offsets[4])
        drain(messenger)
    assert seen.payloads == [4, 5]
    assert [message.offset for message in seen.messages] == offsets[4:]


def test_start_inside_a_record(tmp_path: Path) -> None:
    """An offset that is not on a boundary is moved back: the record is delivered whole."""
    offsets = hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start=offsets[4] + 7)
        drain(messenger)
    assert seen.payloads == [4, 5]


def test_start_beyond_the_end_skips_nothing_new(tmp_path: Path) -> None:
    """An offset past the end counts as the end: what is published next is delivered."""
    hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start=10**12)
        messenger.publish("orders", "t", "new")
        assert seen.wait(1) == ["new"]


def test_position_is_stored_on_return(tmp_path: Path) -> None:
    """When ``subscribe`` returns the starting position is on disk."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.subscribe("orders", "s", Recorder())
        assert stored_offset(tmp_path, "orders", "s") == len(log_bytes(tmp_path, "orders"))


def test_start_is_for_new_subscribers_only(tmp_path: Path) -> None:
    """A known subscriber resumes where it was, whatever ``start`` says."""
    for start in ("earliest", "latest", 0):
        seen = Recorder()
        with running(tmp_path) as messenger:
            messenger.subscribe("orders", "s", seen, start=start)
            messenger.publish("orders", "t", start)
            drain(messenger)
        assert seen.payloads == [start]


def test_what_came_in_between_is_delivered(tmp_path: Path) -> None:
    """Messages published while the subscriber was away wait for it."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", Recorder())
    with running(tmp_path) as messenger:
        messenger.publish_batch("orders", [("t", n) for n in range(5)])
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        assert seen.wait(5) == [0, 1, 2, 3, 4]


def test_decorator(tmp_path: Path) -> None:
    """Without a handler ``subscribe`` is a decorator that leaves the function usable."""
    seen = []
    with running(tmp_path) as messenger:

        @messenger.subscribe("orders", "s", start="earliest", max_retries=0)
        def handle(message) -> None:
            seen.append(message.payload)

        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert seen == [1]
    assert callable(handle)


def test_attributes(tmp_path: Path) -> None:
    """A subscription knows its channel, its id, its offset and its lag."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        subscription = messenger.subscribe("orders", "s", Recorder(), start="earliest")
        assert (subscription.channel, subscription.subscriber_id) == ("orders", "s")
        drain(messenger)
        assert subscription.offset == len(log_bytes(tmp_path, "orders"))
        assert subscription.lag_bytes == 0


def test_lag_counts_what_is_not_committed(tmp_path: Path) -> None:
    """While the handler runs its message still counts as lag."""
    gate = gevent.event.Event()
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", lambda message: gate.wait())
        messenger.publish("orders", "t", 1)
        messenger.publish("orders", "t", 2)
        gevent.sleep(0.02)
        assert subscription.lag_bytes == len(log_bytes(tmp_path, "orders"))
        assert subscription.offset == 0
        gate.set()
        wait_until(lambda: subscription.lag_bytes == 0)


def test_log_order(tmp_path: Path) -> None:
    """Messages arrive in log order, across segments."""
    seen = Recorder()
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        messenger.subscribe("orders", "s", seen)
        for n in range(200):
            messenger.publish("orders", "t", n)
        assert seen.wait(200) == list(range(200))
    assert len(segments(tmp_path, "orders")) > 10


def test_subscribers_are_independent(tmp_path: Path) -> None:
    """Each subscriber gets everything, and one that hangs holds up nobody else."""
    fast, stuck = Recorder(), gevent.event.Event()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "stuck", lambda message: stuck.wait())
        messenger.subscribe("orders", "fast", fast)
        for n in range(50):
            messenger.publish("orders", "t", n)
        assert fast.wait(50) == list(range(50))
        stuck.set()


def test_channels_are_independent(tmp_path: Path) -> None:
    """A subscriber gets its channel's messages only, under the same id elsewhere too."""
    orders, invoices = Recorder(), Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", orders)
        messenger.subscribe("invoices", "s", invoices)
        messenger.publish("orders", "t", 1)
        messenger.publish("invoices", "t", 2)
        drain(messenger)
    assert (orders.payloads, invoices.payloads) == ([1], [2])


def test_stop_keeps_the_position(tmp_path: Path) -> None:
    """After ``stop`` nothing more is delivered, and the id may subscribe again at once."""
    first, second = Recorder(), Recorder()
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", first)
        messenger.publish("orders", "t", 1)
        first.wait(1)
        subscription.stop()
        subscription.stop()
        messenger.publish("orders", "t", 2)
        messenger.subscribe("orders", "s", second)
        assert second.wait(1) == [2]
    assert first.payloads == [1]


def test_unsubscribe_forgets(tmp_path: Path) -> None:
    """``unsubscribe`` stops the subscriber and its position is gone; it begins anew."""
    first, second = Recorder(), Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", first)
        messenger.unsubscribe("orders", "s")
        assert not offset_path(tmp_path, "orders", "s").exists()
        messenger.publish("orders", "t", 1)
        messenger.subscribe("orders", "s", second)
        messenger.publish("orders", "t", 2)
        assert second.wait(1) == [2]
    assert first.payloads == []


def test_unsubscribe_of_one_that_does_not_run(tmp_path: Path) -> None:
    """The position of a subscriber that is stopped is forgotten as well."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", Recorder())
    with running(tmp_path) as messenger:
        messenger.unsubscribe("orders", "s")
        assert not offset_path(tmp_path, "orders", "s").exists()


def test_unsubscribe_of_nobody(tmp_path: Path) -> None:
    """Unsubscribing an unknown id of an unknown channel does nothing, and leaves no channel."""
    with running(tmp_path) as messenger:
        messenger.unsubscribe("nothing", "nobody")
    assert not (tmp_path / "channels" / "nothing").exists()
    assert not list(tmp_path.rglob("*.offset"))


@pytest.mark.parametrize(
    ("position", "expected"),
    [("earliest", [0, 1, 2, 3, 4, 5]), (moment(4), [4, 5]), (0, [0, 1, 2, 3, 4, 5])],
)
def test_seek_back(tmp_path: Path, position: object, expected: list[int]) -> None:
    """``seek`` moves a running subscriber back; the messages come again."""
    hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
        seen.messages.clear()
        subscription.seek(position)
        assert seen.wait(len(expected)) == expected
        drain(messenger)
    assert seen.payloads == expected


def test_seek_to_an_offset(tmp_path: Path) -> None:
    """``seek(offset)`` goes on at the record that begins there."""
    offsets = hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", seen)
        subscription.seek(offsets[3])
        assert seen.wait(3) == [3, 4, 5]


def test_seek_to_the_end(tmp_path: Path) -> None:
    """``seek("latest")`` leaves the backlog out."""
    seen, gate = Recorder(), gevent.event.Event()
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", lambda m: (seen(m), gate.wait()))
        messenger.publish_batch("orders", [("t", n) for n in range(10)])
        seen.wait(1)
        seeker = gevent.spawn(subscription.seek, "latest")
        gevent.sleep(0.02)
        gate.set()
        seeker.get(timeout=5)
        messenger.publish("orders", "t", "new")
        wait_until(lambda: "new" in seen.payloads)
    assert seen.payloads == [0, "new"]


def test_seek_is_kept(tmp_path: Path) -> None:
    """A position that ``seek`` set outlives the messenger."""
    hourly(tmp_path)
    fails = Recorder(lambda message: 1 / 0)
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", fails, retry_backoff=(60, 60))
        subscription.seek("earliest")
        fails.wait(1)
    assert stored_offset(tmp_path, "orders", "s") == 0


@pytest.mark.parametrize("interval_ms", [0, 100])
@pytest.mark.parametrize("busy", [False, True], ids=["at rest", "in a handler"])
def test_seek_and_stop(tmp_path: Path, interval_ms: int, busy: bool) -> None:
    """A position that ``seek`` set stays, even if nothing was delivered from there."""
    offsets = hourly(tmp_path)
    seen, gate = Recorder(), gevent.event.Event()
    with running(tmp_path, storage={"offset_flush_interval_ms": interval_ms}) as messenger:
        subscription = messenger.subscribe(
            "orders", "s", lambda m: (seen(m), busy and gate.wait()), start="earliest"
        )
        seen.wait(1) if busy else drain(messenger)
        subscription.seek(offsets[2])
        assert subscription.offset == stored_offset(tmp_path, "orders", "s") == offsets[2]
        subscription.request_stop()
        gate.set()
        subscription.join()
    assert stored_offset(tmp_path, "orders", "s") == offsets[2]


def test_seek_that_cannot_be_stored(tmp_path: Path) -> None:
    """It says so, and delivery goes on where it was."""
    hourly(tmp_path)
    fs, seen = FaultyFs(), Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        subscription = messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
        before = subscription.offset
        fs.fail("pwrite", errno.EIO, path_contains="subscribers")
        with pytest.raises(OffsetError, match="cannot seek"):
            subscription.seek("earliest")
        assert subscription.offset == stored_offset(tmp_path, "orders", "s") == before
        messenger.publish("orders", "t", "new")
        assert seen.wait(7) == [0, 1, 2, 3, 4, 5, "new"]


@pytest.mark.parametrize("done", ["before", "after"])
def test_seek_while_taking_over(tmp_path: Path, done: str) -> None:
    """A standby is not active before it knows its position; then ``seek`` moves it."""
    hourly(tmp_path)
    fs, first, second = FaultyFs(), Recorder(), Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        one = messenger.subscribe("orders", "s", first, start="earliest")
        drain(messenger)
        two = messenger.subscribe("orders", "s", second, standby=True)
        # The lease is taken, and then the position is read and its file opened.
        with fs.hold("open" if done == "before" else "stat", "s.offset") as held:
            one.stop()
            held.wait_entered()
            assert not two.active
            with pytest.raises(SubscriberInUseError):
                two.seek("earliest")
        wait_until(lambda: two.active)
        two.seek("earliest")
        assert second.wait(6) == [0, 1, 2, 3, 4, 5]


def test_seek_is_followed_at_once(tmp_path: Path) -> None:
    """Under ``always`` it waits for the disk, but what it has moved does not wait for its end."""
    hourly(tmp_path)
    fs, seen = FaultyFs(), Recorder()
    with running(tmp_path, seams={"fs": fs}, storage={"sync_policy": "always"}) as messenger:
        subscription = messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
        with fs.hold("fdatasync", "s.offset") as held:
            with gevent.Timeout(0.05, False):
                subscription.seek("earliest")
            held.wait_entered()
            assert seen.wait(7)[6:] == [0]
            assert subscription.offset == stored_offset(tmp_path, "orders", "s")


@pytest.mark.parametrize("max_age", [3600, datetime.timedelta(hours=1), 0.5])
def test_max_age_leaves_old_messages_out(tmp_path: Path, max_age: object) -> None:
    """What is older than ``max_age`` at the head is not delivered when the subscriber starts."""
    hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", "young")
        messenger.subscribe("orders", "s", seen, start="earliest", max_age=max_age)
        drain(messenger)
    assert seen.payloads == ["young"]


def test_max_age_applies_to_a_known_subscriber(tmp_path: Path) -> None:
    """Messages that grew old while the subscriber was away are left out too, and counted."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", Recorder())
    hourly(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, max_age=3600)
        messenger.publish("orders", "t", "young")
        assert seen.wait(1) == ["young"]
        assert messenger.stats().channels[0].subscribers[0].expired == 6


def test_max_age_is_applied_once(tmp_path: Path) -> None:
    """A message that grows old while it is retried is not left out."""
    seen = Recorder(lambda message: 1 / 0 if message.attempt < 4 else None)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, max_age=0.05, retry_backoff=(0.05, 0.05))
        messenger.publish("orders", "t", 1)
        seen.wait(4)
    assert seen.attempts == [1, 2, 3, 4]


def test_same_id_twice_is_refused(tmp_path: Path) -> None:
    """A second subscription of an id in one process is refused; the first goes on."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        with pytest.raises(SubscriberInUseError):
            messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 1)
        assert seen.wait(1) == [1]


def test_same_id_in_two_messengers(tmp_path: Path) -> None:
    """Two messengers of one process on one directory respect each other's leases too."""
    with running(tmp_path) as one, running(tmp_path) as other:
        one.subscribe("orders", "s", Recorder())
        with pytest.raises(SubscriberInUseError):
            other.subscribe("orders", "s", Recorder())
        with pytest.raises(SubscriberInUseError):
            other.unsubscribe("orders", "s")
        assert offset_path(tmp_path, "orders", "s").exists()


def test_two_messengers_wake_each_other(tmp_path: Path) -> None:
    """What one messenger publishes reaches the subscriber of another on the directory."""
    seen = Recorder()
    with running(tmp_path) as one, running(tmp_path) as other:
        one.subscribe("orders", "s", seen)
        other.publish("orders", "t", 1)
        assert seen.wait(1) == [1]


def test_standby_takes_over_after_stop(tmp_path: Path) -> None:
    """A standby gets nothing while the holder runs, and goes on where it stopped."""
    first, second = Recorder(), Recorder()
    with running(tmp_path) as messenger:
        holder = messenger.subscribe("orders", "s", first)
        messenger.subscribe("orders", "s", second, standby=True)
        messenger.publish("orders", "t", 1)
        first.wait(1)
        holder.stop()
        messenger.publish("orders", "t", 2)
        second.wait(1)
    assert (first.payloads, second.payloads) == ([1], [2])


def test_standby_without_a_holder_runs(tmp_path: Path) -> None:
    """``standby=True`` without another holder starts at once."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, standby=True)
        messenger.publish("orders", "t", 1)
        assert seen.wait(1) == [1]


def test_standbys_stop_on_unsubscribe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``unsubscribe`` ends the standbys of the id as well, with a warning; nothing comes back."""
    caplog.set_level(logging.WARNING)
    waiting = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        messenger.subscribe("orders", "s", waiting, standby=True)
        messenger.unsubscribe("orders", "s")
        wait_until(lambda: not messenger.subscriptions(), what="the standby to stop")
        messenger.publish("orders", "t", 1)
        gevent.sleep(0.05)
        assert not offset_path(tmp_path, "orders", "s").exists()
    assert waiting.payloads == []
    assert [r for r in caplog.records if r.levelno == logging.WARNING and "s" in r.getMessage()]


def test_standby_can_be_stopped_while_it_waits(tmp_path: Path) -> None:
    """``stop`` of a waiting standby returns at once and leaves the holder alone."""
    first, second = Recorder(), Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", first)
        standby = messenger.subscribe("orders", "s", second, standby=True)
        with gevent.Timeout(2):
            standby.stop()
        messenger.publish("orders", "t", 1)
        assert first.wait(1) == [1]


def test_offsets_at_an_interval(tmp_path: Path) -> None:
    """With ``offset_flush_interval_ms`` the position is saved at that interval, and on stop."""
    fs = FaultyFs()
    storage = {"offset_flush_interval_ms": 60_000}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        subscription = messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 0)
        drain(messenger)
        fault = fs.fail("pwrite", errno.EIO, nth=10**9, path_contains="s.offset")
        for n in range(100):
            messenger.publish("orders", "t", n)
            drain(messenger)
        assert fault.seen <= 1
        subscription.stop()
        assert stored_offset(tmp_path, "orders", "s") == len(log_bytes(tmp_path, "orders"))


def test_close_saves_positions(tmp_path: Path) -> None:
    """``close`` saves what an interval has not saved yet."""
    with running(tmp_path, storage={"offset_flush_interval_ms": 60_000}) as messenger:
        messenger.subscribe("orders", "s", seen := Recorder())
        messenger.publish("orders", "t", 1)
        seen.wait(1)
    assert stored_offset(tmp_path, "orders", "s") == len(log_bytes(tmp_path, "orders"))


def test_interval_saves_by_itself(tmp_path: Path) -> None:
    """A short interval moves the stored position without a stop."""
    with running(tmp_path, storage={"offset_flush_interval_ms": 20}) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 1)
        end = len(log_bytes(tmp_path, "orders"))
        wait_until(lambda: stored_offset(tmp_path, "orders", "s") == end)


def test_subscribe_after_close(tmp_path: Path) -> None:
    """A closed messenger takes no subscribers."""
    messenger = Messenger(config(tmp_path))
    messenger.start()
    messenger.close()
    before = tree(tmp_path)
    with pytest.raises(MessengerClosedError):
        messenger.subscribe("orders", "s", Recorder())
    assert tree(tmp_path) == before


WRONG = [
    {"start": "middle"},
    {"start": -1},
    {"start": 1.5},
    {"start": True},
    {"start": None},
    {"start": datetime.datetime(2026, 1, 2)},
    {"max_age": -1},
    {"max_age": "1h"},
    {"max_age": float("nan")},
    {"max_age": datetime.timedelta(seconds=-1)},
    {"max_retries": -1},
    {"max_retries": 1.5},
    {"max_retries": "5"},
    {"retry_backoff": (1,)},
    {"retry_backoff": (2, 1)},
    {"retry_backoff": (-1, 1)},
    {"retry_backoff": 1},
    {"retry_backoff": (float("nan"), 1)},
    {"concurrency": 0},
    {"concurrency": -1},
    {"concurrency": 1.5},
    {"concurrency": None},
    {"key": "payload"},
    {"handler": 5},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_wrong_arguments_create_nothing(tmp_path: Path, wrong: dict) -> None:
    """An argument that makes no sense is refused at once, before anything is on disk."""
    with running(tmp_path) as messenger:
        messenger.start()
        before = tree(tmp_path)
        with pytest.raises((ValueError, TypeError)):
            messenger.subscribe("orders", "s", **{"handler": Recorder(), **wrong})
        assert tree(tmp_path) == before
        messenger.subscribe("orders", "s", Recorder())


def test_sweep_deletes_what_everybody_read(tmp_path: Path) -> None:
    """A sealed segment goes when every subscriber, running or not, is past it."""
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        seen = Recorder()
        messenger.subscribe("orders", "gone", Recorder()).stop()
        messenger.subscribe("orders", "s", seen)
        for n in range(50):
            messenger.publish("orders", "t", n)
        seen.wait(50)
        drain(messenger)
        before = segments(tmp_path, "orders")
        messenger.sweep()
        assert segments(tmp_path, "orders") == before
        messenger.unsubscribe("orders", "gone")
        messenger.sweep()
        assert segments(tmp_path, "orders") == before[-1:]
        messenger.publish("orders", "t", "after")
        assert seen.wait(51)[-1] == "after"


def test_sweep_keeps_a_channel_without_subscribers(tmp_path: Path) -> None:
    """Where there is no position at all nothing is deleted."""
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        for n in range(50):
            messenger.publish("orders", "t", n)
        before = segments(tmp_path, "orders")
        messenger.sweep()
        assert segments(tmp_path, "orders") == before


def test_sweep_counts_positions_of_peers(tmp_path: Path) -> None:
    """Positions of peers and hubs hold segments as those of subscribers do."""
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        seen = Recorder()
        messenger.subscribe("orders", "s", seen)
        for n in range(50):
            messenger.publish("orders", "t", n)
        seen.wait(50)
        drain(messenger)
        before = segments(tmp_path, "orders")
        for name in ("fed-peer", "fedout-hub"):
            offset_path(tmp_path, "orders", name).write_bytes(b"0\n")
            messenger.sweep()
            assert segments(tmp_path, "orders") == before
            offset_path(tmp_path, "orders", name).unlink()


def test_max_files_drops_unread_data_and_counts_it(tmp_path: Path) -> None:
    """``max_files`` deletes the oldest segments, read or not; the reader counts what it lost."""
    storage = {"max_segment_bytes": 1000, "max_files": 3}
    with running(tmp_path, storage=storage) as messenger:
        messenger.subscribe("orders", "s", Recorder()).stop()
        for n in range(50):
            messenger.publish("orders", "t", n)
        messenger.sweep()
        left = segments(tmp_path, "orders")
        assert len(left) == 3
        seen = Recorder()
        messenger.subscribe("orders", "s", seen)
        drain(messenger)
        assert seen.payloads[-1] == 49
        assert seen.messages[0].offset == int(left[0].stem)
        (stats,) = messenger.stats().channels[0].subscribers
        assert stats.dropped_bytes == int(left[0].stem)


def test_fixture_and_drain(messenger: Messenger) -> None:
    """The package's pytest fixture is a real messenger, and ``drain`` waits for its subscribers."""
    seen = Recorder(lambda message: gevent.sleep(0.01))
    messenger.subscribe("orders", "s", seen)
    messenger.publish_batch("orders", [("t", n) for n in range(5)])
    drain(messenger)
    assert seen.payloads == [0, 1, 2, 3, 4]


def test_drain_gives_up(messenger: Messenger) -> None:
    """``drain`` raises ``TimeoutError`` that names who is behind."""
    messenger.subscribe("orders", "slow", Recorder(lambda m: 1 / 0), retry_backoff=(60, 60))
    messenger.publish("orders", "t", 1)
    with pytest.raises(TimeoutError, match="slow"):
        drain(messenger, timeout=0.1)


def test_tight_delivery_lets_others_run(tmp_path: Path) -> None:
    """A long backlog with a trivial handler does not starve other greenlets."""
    with running(tmp_path) as messenger:
        messenger.publish_batch("orders", [("t", n) for n in range(30_000)])
        seen = Recorder()
        messenger.subscribe("orders", "s", seen, start="earliest", retry_backoff=FAST_BACKOFF)
        ticks = 0
        while len(seen.messages) < 30_000:
            gevent.sleep(0.001)
            ticks += 1
            assert ticks < 20_000
        assert ticks > 10


def test_a_gap_while_the_channel_is_busy(tmp_path: Path) -> None:
    """Who has come to a gap goes on behind it, however often the channel wakes it."""
    storage = {"max_segment_bytes": 2000}
    with running(tmp_path, storage=storage) as messenger:
        for n in range(30):
            messenger.publish("orders", "t", n)
    segments(tmp_path, "orders")[1].unlink()
    left = [each["payload"] for each in records(tmp_path, "orders")]
    assert left[0] == 0
    assert left[-1] == 29
    assert len(left) < 30
    seen = Recorder()
    with running(tmp_path, storage=storage) as messenger:
        messenger.subscribe("orders", "s", seen, start="earliest")
        deadline = time.monotonic() + 20
        n = 30
        while 29 not in seen.payloads:
            assert time.monotonic() < deadline, "it waits at the gap"
            messenger.publish("orders", "t", n)
            n += 1
            gevent.sleep(0.02)
        drain(messenger)
    assert seen.payloads == [*left, *range(30, n)]


@pytest.mark.parametrize(("operation", "where"), [("mkdir", "orders"), ("open", ".jsonl")])
def test_closing_overtakes_a_publish(tmp_path: Path, operation: str, where: str) -> None:
    """A publish that waits for a slow disk meanwhile leaves no descriptor behind."""
    fs = FaultyFs()
    messenger = Messenger(config(tmp_path), fs=fs)
    messenger.start()
    with fs.hold(operation, path_contains=where) as held:
        publishing = gevent.spawn(messenger.publish, "orders", "t", 1)
        held.wait_entered()
        messenger.close(0.1)
    publishing.join(10)
    assert isinstance(publishing.exception, MessengerClosedError)
    wait_until(lambda: not fs.open_paths)


def test_many_subscribers_share_a_read(tmp_path: Path) -> None:
    """Each of many gets every message in order, with a payload of its own to change."""
    reads: list[int] = []

    class Counting(FileSystem):
        @staticmethod
        def pread(fd: int, size: int, offset: int) -> bytes:  # type: ignore[override] # a builtin
            data = os.pread(fd, size, offset)
            if len(data) > 1000:
                reads.append(len(data))
            return data

    count, batch = 50, 20
    got: dict[int, list[int]] = {number: [] for number in range(count)}
    with running(tmp_path, seams={"fs": Counting()}) as messenger:

        def subscribe(number: int) -> None:
            def handle(message: Message) -> None:
                got[number].append(message.payload.pop("number"))

            messenger.subscribe("orders", f"s{number}", handle)

        for number in range(count):
            subscribe(number)
        for start in range(0, 5 * batch, batch):
            messenger.publish_batch(
                "orders", [("t", {"number": start + each}) for each in range(batch)]
            )
            wait_until(lambda end=start + batch: all(len(each) == end for each in got.values()))
    assert all(each == list(range(5 * batch)) for each in got.values())
    assert len(reads) < count
