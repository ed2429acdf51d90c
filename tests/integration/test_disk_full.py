"""A full disk: who waits, who goes on, what is on the disk meanwhile, and how it ends."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from keyop import (
    Message,
    MessengerClosedError,
    PublishTimeoutError,
    StorageError,
)
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs

from .helpers import (
    FAST_BACKOFF,
    Recorder,
    channel_dir,
    crc_holds,
    dead_letters,
    log_bytes,
    offset_path,
    read_all,
    records,
    running,
    segments,
    stored_offset,
    wait_until,
    write_offset,
)

# Long enough to see that somebody waits, and does nothing wrong meanwhile.
A_WHILE = 0.2
# "Resumes within a second", and some more for a busy machine.
SOON = 5


def payloads(data_dir: Path, channel: str = "orders") -> list[Any]:
    return [each["payload"] for each in records(data_dir, channel)]


def assert_whole(data_dir: Path, channel: str = "orders") -> None:
    """Check that the log is whole lines, each with its checksum, in contiguous segments."""
    content = log_bytes(data_dir, channel)
    assert content.endswith(b"\n") or not content
    assert all(crc_holds(line) for line in content.splitlines(True))
    for old, new in itertools.pairwise(segments(data_dir, channel)):
        assert int(old.stem) + old.stat().st_size == int(new.stem)
    assert not list(channel_dir(data_dir, channel).glob("*.torn-*"))


class FaultyDisk(FaultyFs):
    """Full only for what lies below a directory of that name; the rest has room."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._planned: list[Any] = []

    def fill_up(self) -> None:
        for operation in ("write", "mkdir"):
            self._planned.append(
                self.fail(operation, errno.ENOSPC, times=None, path_contains=self._name)
            )

    def make_room(self) -> None:
        for fault in self._planned:
            fault.times = 0


# --- publishers


def test_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once for each channel when somebody begins to wait, and once when there is room again."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        for _ in range(2):
            fault = fs.fail("write", errno.ENOSPC, times=None, path_contains=".jsonl")
            waiting = [gevent.spawn(messenger.publish, "orders", "t", n) for n in range(5)]
            wait_until(lambda: fault.hits > 10)  # noqa: B023
            fs.heal()
            gevent.joinall(waiting, timeout=SOON, raise_error=True)
    told = [record.getMessage() for record in caplog.records if record.name == "keyop.storage.room"]
    full = f"orders: no room on the disk of {channel_dir(tmp_path, 'orders')}: whoever publishes "
    assert (
        told == [full + "waits until there is some", "orders: there is room on the disk again"] * 2
    )


@pytest.mark.parametrize("policy", ["none", "periodic", "always"])
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_publishers_wait_and_go_on(tmp_path: Path, policy: str, error: str) -> None:
    """Publishers wait for room, in whatever number; when there is some, all go on within a second.

    Meanwhile other greenlets run, and nothing is written.
    """
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": policy}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "first")
        before = log_bytes(tmp_path, "orders")
        fault = fs.fail("write", getattr(errno, error), times=None, path_contains=".jsonl")
        waiting = [gevent.spawn(messenger.publish, "orders", "t", n) for n in range(20)]
        ticks = 0
        until = time.monotonic() + A_WHILE
        while time.monotonic() < until or not fault.hits:
            gevent.sleep(0.001)
            ticks += 1
        assert ticks > 10
        assert not any(each.ready() for each in waiting)
        assert log_bytes(tmp_path, "orders") == before
        fs.heal()
        started = time.monotonic()
        gevent.joinall(waiting, timeout=SOON, raise_error=True)
        assert all(each.successful() for each in waiting)
        assert time.monotonic() - started < SOON
    assert sorted(payloads(tmp_path)[1:]) == list(range(20))
    assert_whole(tmp_path)


@pytest.mark.parametrize("room", [0, 1, 2, 50, 150, 180])
def test_timeout_leaves_nothing_behind(tmp_path: Path, room: int) -> None:
    """When the timeout passes, ``written`` is False and what was written of the record is cut.

    That holds wherever the disk was full: also but for the last byte.
    """
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "x" * 100)
        before = log_bytes(tmp_path, "orders")
        assert room < len(before)
        fs.fill(room)
        started = time.monotonic()
        with gevent.Timeout(10), pytest.raises(PublishTimeoutError) as caught:
            messenger.publish("orders", "t", "y" * 100, timeout=0.1)
        assert caught.value.written is False
        assert 0.09 < time.monotonic() - started < 5
        assert log_bytes(tmp_path, "orders") == before
        fs.full = False
        messenger.publish("orders", "t", "z", timeout=10)
    assert payloads(tmp_path) == ["x" * 100, "z"]
    assert_whole(tmp_path)


def test_timeout_of_zero(tmp_path: Path) -> None:
    """A timeout of 0 does not wait at all on a full disk, and works where there is room."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.full = True
        with gevent.Timeout(5), pytest.raises(PublishTimeoutError) as caught:
            messenger.publish("orders", "t", 1, timeout=0)
        assert caught.value.written is False
        fs.full = False
    assert payloads(tmp_path) == [0]


def test_killed_while_it_waits(tmp_path: Path) -> None:
    """A publisher that is killed while it waits has written nothing, and holds nothing up."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.fill(30)
        waiting = [gevent.spawn(messenger.publish, "orders", "t", n) for n in range(1, 6)]
        gevent.sleep(A_WHILE)
        with gevent.Timeout(5):
            gevent.killall(waiting[:4])
        fs.full = False
        waiting[4].get(timeout=SOON)
        messenger.publish("orders", "t", 6, timeout=SOON)
    assert payloads(tmp_path) == [0, 5, 6]
    assert_whole(tmp_path)


def test_waiting_publisher_holds_no_lock(tmp_path: Path) -> None:
    """Another process, for which there is room, publishes while one waits for some.

    What is a quota for the one may not concern the other. Here the other is a messenger of the
    same process, which the locks keep apart as well as one of another.
    """
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as poor, running(tmp_path) as rich:
        poor.publish("orders", "t", "first")
        fs.fill(60)
        waiting = gevent.spawn(poor.publish, "orders", "t", "poor")
        gevent.sleep(0.05)
        for n in range(20):
            rich.publish("orders", "t", n, timeout=5)
            gevent.sleep(0.005)
        seen = Recorder()
        rich.subscribe("orders", "s", seen, start="earliest")
        assert seen.wait(21) == ["first", *range(20)]
        assert not waiting.ready()
        fs.full = False
        waiting.get(timeout=SOON)
        assert seen.wait(22)[-1] == "poor"
    assert_whole(tmp_path)


def test_other_channels_do_not_wait(tmp_path: Path) -> None:
    """Where only one channel has no room, others are published to and read as before."""
    fs = FaultyDisk("channels/orders/")
    seen = Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        messenger.subscribe("invoices", "s", seen)
        fs.fill_up()
        waiting = gevent.spawn(messenger.publish, "orders", "t", 1)
        gevent.sleep(0.05)
        for n in range(50):
            messenger.publish("invoices", "t", n, timeout=5)
        assert seen.wait(50) == list(range(50))
        assert not waiting.ready()
        fs.make_room()
        waiting.get(timeout=SOON)


@pytest.mark.parametrize("what", ["channel", "segment"])
def test_no_room_for_a_file(tmp_path: Path, what: str) -> None:
    """No room for a new channel's directory, or the next segment: waiting, as for a record."""
    fs = FaultyFs()
    with running(tmp_path, storage={"max_segment_bytes": 400}, seams={"fs": fs}) as messenger:
        messenger.publish("orders" if what == "segment" else "other", "t", "x" * 200)
        fs.full = True
        with gevent.Timeout(10), pytest.raises(PublishTimeoutError) as caught:
            messenger.publish("orders", "t", "late" * 50, timeout=0.1)
        assert caught.value.written is False
        waiting = gevent.spawn(messenger.publish, "orders", "t", "y" * 200)
        gevent.sleep(A_WHILE)
        assert not waiting.ready()
        fs.full = False
        waiting.get(timeout=SOON)
        messenger.publish("orders", "t", "z" * 200, timeout=SOON)
    assert [payload[0] for payload in payloads(tmp_path)] == ["x", "y", "z"][what == "channel" :]
    assert_whole(tmp_path)


def test_start_on_a_full_disk(tmp_path: Path) -> None:
    """A messenger starts on a full disk where its directory is there: what it holds can be read."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", Recorder()).stop()
        messenger.publish_batch("orders", [("t", n) for n in range(5)])
    fs = FaultyFs()
    fs.full = True
    seen = Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        with gevent.Timeout(10):
            messenger.start()
            messenger.subscribe("orders", "s", seen)
        assert seen.wait(5) == list(range(5))
        drain(messenger)
    assert stored_offset(tmp_path, "orders", "s") == len(log_bytes(tmp_path, "orders"))


def test_filled_twenty_times(tmp_path: Path) -> None:
    """Full and not full in turn, with publishers and a subscriber at work: nothing is lost."""
    fs = FaultyFs()
    seen = Recorder()
    storage = {"max_segment_bytes": 3000}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.subscribe("orders", "s", seen)

        def work(who: int) -> None:
            for n in range(60):
                messenger.publish("orders", "t", [who, n, "x" * 50])
                gevent.sleep(0.001)

        workers = [gevent.spawn(work, who) for who in range(5)]
        for turn in range(20):
            fs.fill(turn * 37)
            gevent.sleep(0.01)
            fs.full = False
            gevent.sleep(0.005)
        gevent.joinall(workers, timeout=30, raise_error=True)
        assert all(each.successful() for each in workers)
        drain(messenger, timeout=10)
    for who in range(5):
        assert [n for w, n, _ in payloads(tmp_path) if w == who] == list(range(60))
    assert seen.payloads == payloads(tmp_path)
    assert_whole(tmp_path)


# --- batches


def batch(count: int) -> list[tuple[str, Any]]:
    return [("t", [n, "x" * 100]) for n in range(count)]


@pytest.mark.parametrize("room", [0, 10, 260, 300, 777, 2000])
def test_batch_goes_on_with_the_rest(tmp_path: Path, room: int) -> None:
    """A batch for which there is room in part is written in part, and then the rest of it."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "first")
        fs.fill(room)
        waiting = gevent.spawn(messenger.publish_batch, "orders", batch(12))
        gevent.sleep(A_WHILE)
        assert not waiting.ready()
        # What is there is whole: a reader may have it.
        assert log_bytes(tmp_path, "orders").endswith(b"\n")
        fs.full = False
        ids = waiting.get(timeout=SOON)
    written = records(tmp_path, "orders")[1:]
    assert [each["id"] for each in written] == ids
    assert [each["payload"][0] for each in written] == list(range(12))
    assert_whole(tmp_path)


@pytest.mark.parametrize("room", [0, 10, 260, 300, 777, 2000])
def test_timeout_of_a_batch_counts_what_is_there(tmp_path: Path, room: int) -> None:
    """When the timeout passes, ``written`` is the number of its records in the log, in order.

    A retry with the same ``message_id`` writes the others and only those.
    """
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "first")
        fs.fill(room)
        with gevent.Timeout(10), pytest.raises(PublishTimeoutError) as caught:
            messenger.publish_batch("orders", batch(12), message_id="b", timeout=0.1)
        written = caught.value.written
        assert type(written) is int
        assert [payload[0] for payload in payloads(tmp_path)[1:]] == list(range(written))
        assert log_bytes(tmp_path, "orders").endswith(b"\n")
        fs.full = False
        ids = messenger.publish_batch("orders", batch(12), message_id="b", timeout=SOON)
    there = records(tmp_path, "orders")[1:]
    assert [each["payload"][0] for each in there] == list(range(12))
    assert [each["id"] for each in there] == ids
    assert_whole(tmp_path)


def test_what_is_there_of_a_batch_reaches_the_disk(tmp_path: Path) -> None:
    """Under ``always`` the records that fitted are synced, though their publisher has given up."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}, storage={"sync_policy": "always"}) as messenger:
        messenger.start()
        log = messenger._store.log("orders")
        log.open()
        fs.fill(300)
        with pytest.raises(PublishTimeoutError) as caught:
            messenger.publish_batch("orders", batch(12), timeout=0)
        assert caught.value.written
        wait_until(lambda: log.idle, what="the sync")


def test_others_publish_between_the_parts_of_a_batch(tmp_path: Path) -> None:
    """While the rest of a batch waits, what others publish stands whole between its parts."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as poor, running(tmp_path) as rich:
        poor.publish("orders", "t", "first")
        fs.fill(700)
        waiting = gevent.spawn(poor.publish_batch, "orders", batch(12))
        gevent.sleep(0.05)
        rich.publish("orders", "t", "between", timeout=5)
        assert not waiting.ready()
        fs.full = False
        waiting.get(timeout=SOON)
    there = payloads(tmp_path)
    assert [payload[0] for payload in there if payload not in ("first", "between")] == [*range(12)]
    assert there.count("between") == 1
    assert_whole(tmp_path)


def test_subscriber_gets_each_part_once(tmp_path: Path) -> None:
    """A subscriber reads the first part of a batch before the rest is there, and nothing twice."""
    fs = FaultyFs()
    seen = Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "first")
        subscription = messenger.subscribe("orders", "s", seen)
        fs.fill(900)
        waiting = gevent.spawn(messenger.publish_batch, "orders", batch(12))
        wait_until(lambda: len(payloads(tmp_path)) > 2)
        seen.wait(len(payloads(tmp_path)) - 1)
        assert subscription.lag_bytes == 0
        fs.full = False
        waiting.get(timeout=SOON)
        drain(messenger)
    assert [payload[0] for payload in seen.payloads] == list(range(12))


# --- positions


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO"])
@pytest.mark.parametrize("policy", ["none", "always"])
def test_position_that_cannot_be_saved(tmp_path: Path, error: str, policy: str) -> None:
    """While a position cannot be saved, at most one message is handled beyond it.

    Once it can, delivery goes on, and nothing comes twice.
    """
    fs = FaultyFs()
    seen = Recorder()
    with running(tmp_path, storage={"sync_policy": policy}, seams={"fs": fs}) as messenger:
        messenger.subscribe("orders", "s", seen, retry_backoff=FAST_BACKOFF)
        messenger.publish("orders", "t", 0)
        seen.wait(1)
        drain(messenger)
        saved = stored_offset(tmp_path, "orders", "s")
        faults = [
            fs.fail(operation, getattr(errno, error), times=None, path_contains="s.offset")
            for operation in ("pwrite", "write")
        ]
        messenger.publish_batch("orders", [("t", n) for n in range(1, 10)])
        wait_until(lambda: sum(fault.hits for fault in faults))
        gevent.sleep(A_WHILE)
        assert seen.payloads == [0, 1]
        assert stored_offset(tmp_path, "orders", "s") == saved
        fs.heal()
        drain(messenger, timeout=10)
    assert seen.payloads == list(range(10))
    assert stored_offset(tmp_path, "orders", "s") == len(log_bytes(tmp_path, "orders"))
    assert dead_letters(tmp_path, "orders") == []


def test_positions_move_on_a_full_disk(tmp_path: Path) -> None:
    """A position is rewritten in place, which needs no room: delivery goes on on a full disk."""
    fs = FaultyFs()
    seen = Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.subscribe("orders", "s", seen).stop()
        messenger.publish_batch("orders", [("t", n) for n in range(20)])
        fs.full = True
        messenger.subscribe("orders", "s", seen)
        assert seen.wait(20) == list(range(20))
        drain(messenger)
        assert stored_offset(tmp_path, "orders", "s") == len(log_bytes(tmp_path, "orders"))


def test_short_position_on_a_full_disk(tmp_path: Path) -> None:
    """A position of v0.11.0's form, which is replaced first, is never damaged for lack of room."""
    fs = FaultyFs()
    with running(tmp_path) as messenger:
        messenger.publish_batch("orders", [("t", n) for n in range(5)])
    path = write_offset(tmp_path, "orders", "s", b"0\n")
    seen = Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        fs.full = True
        try:
            with gevent.Timeout(10):
                subscription = messenger.subscribe("orders", "s", seen)
        except StorageError:
            assert path.read_bytes() == b"0\n"
        else:
            gevent.sleep(A_WHILE)
            assert len(seen.messages) <= 1
            assert int(path.read_bytes()) == 0
            with gevent.Timeout(12):
                subscription.stop()
        fs.full = False
        messenger.subscribe("orders", "s", seen)
        drain(messenger, timeout=10)
    assert seen.payloads[-5:] == list(range(5))
    assert int(path.read_bytes()) == len(log_bytes(tmp_path, "orders"))


@pytest.mark.parametrize("room", [0, 5])
def test_new_subscriber_on_a_full_disk(tmp_path: Path, room: int) -> None:
    """A position that cannot be stored fails ``subscribe``, and leaves nothing in the way.

    An empty file in its place would be an error for ever after.
    """
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.fill(room)
        with gevent.Timeout(15), pytest.raises(StorageError):
            messenger.subscribe("orders", "s", Recorder(), start="earliest")
        path = offset_path(tmp_path, "orders", "s")
        assert not path.exists() or path.read_bytes()
        fs.full = False
        seen = Recorder()
        messenger.subscribe("orders", "s", seen, start="earliest")
        assert seen.wait(1) == [0]


def test_unsubscribe_and_seek_on_a_full_disk(tmp_path: Path) -> None:
    """Both work in place, without room."""
    fs = FaultyFs()
    seen = Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        subscription = messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
        fs.full = True
        with gevent.Timeout(10):
            subscription.seek("earliest")
            seen.wait(2)
            drain(messenger)
            messenger.unsubscribe("orders", "s")
        assert not offset_path(tmp_path, "orders", "s").exists()


def test_sweep_on_a_full_disk_makes_room(tmp_path: Path) -> None:
    """Deleting what everybody has read needs no room: it is what gives some."""
    fs = FaultyFs()
    with running(tmp_path, storage={"max_segment_bytes": 1000}, seams={"fs": fs}) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        for n in range(40):
            messenger.publish("orders", "t", n)
        drain(messenger)
        assert len(segments(tmp_path, "orders")) > 5
        fs.full = True
        with gevent.Timeout(10):
            messenger.sweep()
        assert len(segments(tmp_path, "orders")) == 1


# --- dead letters


def fail(message: Message) -> None:
    raise ValueError(f"cannot do {message.payload}")


def test_dead_letter_on_a_full_disk(tmp_path: Path) -> None:
    """A dead letter waits for room and its message stays the oldest; other subscribers go on.

    There is one dead letter in the end, and the handler is not called again for it.
    """
    fs = FaultyDisk("dead-letter")
    failing, fine = Recorder(fail), Recorder()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        fs.fill_up()
        messenger.subscribe("orders", "s", failing, max_retries=1, retry_backoff=FAST_BACKOFF)
        messenger.subscribe("orders", "fine", fine)
        messenger.publish_batch("orders", [("t", n) for n in range(3)])
        assert fine.wait(3) == [0, 1, 2]
        failing.wait(2)
        gevent.sleep(A_WHILE)
        assert failing.payloads == [0, 0]
        assert stored_offset(tmp_path, "orders", "s") == 0
        fs.make_room()
        drain(messenger, timeout=10)
    assert failing.payloads == [0, 0, 1, 1, 2, 2]
    letters = dead_letters(tmp_path, "orders")
    assert [letter["original"]["payload"] for letter in letters] == [0, 1, 2]
    assert_whole(tmp_path, "orders.dead-letter")


@pytest.mark.parametrize("way", ["stop", "close", "unsubscribe"])
def test_ending_while_a_dead_letter_waits(tmp_path: Path, way: str) -> None:
    """A subscriber whose dead letter waits for room can be ended in time; its message is safe."""
    fs = FaultyDisk("dead-letter")
    failing = Recorder(fail)
    with running(tmp_path, seams={"fs": fs}) as messenger:
        fs.fill_up()
        subscription = messenger.subscribe("orders", "s", failing, max_retries=0)
        messenger.publish("orders", "t", 0)
        failing.wait(1)
        gevent.sleep(0.05)
        started = time.monotonic()
        ways: dict[str, Callable[[], Any]] = {
            "stop": subscription.stop,
            "close": lambda: messenger.close(timeout=5),
            "unsubscribe": lambda: messenger.unsubscribe("orders", "s"),
        }
        ways[way]()
        assert time.monotonic() - started < 5
        assert dead_letters(tmp_path, "orders") == []
    if way == "unsubscribe":
        assert not offset_path(tmp_path, "orders", "s").exists()
        return
    assert stored_offset(tmp_path, "orders", "s") == 0
    again = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", again, max_retries=0)
        drain(messenger)
    assert again.payloads == [0]
    assert len(dead_letters(tmp_path, "orders")) == 1


# --- closing


@pytest.mark.parametrize("timeout", [0, 0.5, 5, None])
def test_close_while_full(tmp_path: Path, timeout: float | None) -> None:
    """``close`` ends in less than five seconds on a full disk, whatever waits for room.

    Each publisher that waited learns what is in the log.
    """
    fs = FaultyFs()
    failing = Recorder(fail)
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "first")
        messenger.subscribe("orders", "s", failing, max_retries=0, start="earliest")
        failing.wait(1)
        fs.fill(900)
        partly = gevent.spawn(messenger.publish_batch, "orders", batch(12))
        wait_until(lambda: len(payloads(tmp_path)) > 1)
        singles = [gevent.spawn(messenger.publish, "orders", "t", n) for n in range(5)]
        gevent.sleep(0.05)
        started = time.monotonic()
        messenger.close(timeout=timeout)
        assert time.monotonic() - started < 5
        for waiting in singles:
            with pytest.raises(MessengerClosedError) as caught:
                waiting.get(timeout=2)
            assert caught.value.written is False
        with pytest.raises(MessengerClosedError) as caught:
            partly.get(timeout=2)
        assert caught.value.written == len(payloads(tmp_path)) - 1 > 0
    assert_whole(tmp_path)
    assert [payload[0] for payload in payloads(tmp_path)[1:]] == list(range(caught.value.written))
    # Everything is as it was when there is room again.
    again = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", "end")
        messenger.subscribe("orders", "s", again)
        drain(messenger)
    assert again.payloads[-1] == "end"
    assert again.payloads == payloads(tmp_path)[-len(again.payloads) :]


def test_descriptors_while_full(tmp_path: Path) -> None:
    """Trying again and again does not use up descriptors."""
    fs = FaultyFs()
    with running(tmp_path, storage={"max_segment_bytes": 400}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "x" * 200)
        fs.full = True
        waiting = [gevent.spawn(messenger.publish, "orders", "t", "y" * 200) for _ in range(3)]
        gevent.sleep(0.05)
        before = len(os.listdir("/proc/self/fd"))
        gevent.sleep(0.5)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        fs.full = False
        gevent.joinall(waiting, timeout=SOON, raise_error=True)
        assert all(each.successful() for each in waiting)


def test_messenger_made_while_full(tmp_path: Path) -> None:
    """A second messenger on the directory, made while it is full, works when there is room."""
    fs = FaultyFs()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
    fs.full = True
    with running(tmp_path, seams={"fs": fs}) as messenger:
        with gevent.Timeout(10), pytest.raises((PublishTimeoutError, StorageError)):
            messenger.publish("orders", "t", 1, timeout=0.1)
        fs.full = False
        messenger.publish("orders", "t", 2, timeout=SOON)
    assert [message.payload for message in read_all(tmp_path, "orders", 2)] == [0, 2]
