"""The local defects of v0.11.0, one test or more for each: what it did, and what is done here.

Numbers are those of the table in the documentation ("Defects found in v0.11.0 by running it").
"""

from __future__ import annotations

import base64
import errno
import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from keyop import (
    Config,
    ConfigError,
    InvalidChannelNameError,
    InvalidSubscriberIdError,
    LogFailedError,
    Message,
    Messenger,
    MessengerClosedError,
    OffsetError,
    PublishTimeoutError,
    RecordTooLargeError,
    StorageError,
    Subscription,
)
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs
from tests.fakes.recording import (
    Open,
    RecordingFs,
    SyncBegin,
    crash_state,
    crash_states,
    materialise,
)

from .helpers import (
    FAST_BACKOFF,
    ROOT,
    Recorder,
    Worker,
    channel_dir,
    config,
    crc_holds,
    dead_letters,
    log_bytes,
    offset_path,
    read_all,
    record,
    records,
    running,
    segments,
    stored_offset,
    tree,
    wait_until,
    write_offset,
    write_segment,
)

MIB = 1 << 20


def fail(message: Message) -> None:
    raise ValueError(f"cannot do {message.payload!r}")


def contiguous(data_dir: Path, channel: str) -> bool:
    """Tell whether each segment begins where the one before it ends."""
    paths = segments(data_dir, channel)
    return all(
        int(old.stem) + old.stat().st_size == int(new.stem)
        for old, new in itertools.pairwise(paths)
    )


# --- 1: whole lines only


def test_defect_01_part_of_a_line_is_never_read(tmp_path: Path) -> None:
    """A line that is being appended is not a record yet.

    v0.11.0 took the part that was there for a record, could not parse it, and skipped it: 526 of
    200,000 messages were lost. Here a reader waits for the end of the line, wherever the write
    was split.
    """
    seen = Recorder()
    rng = random.Random(1)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 0)
        seen.wait(1)
        (segment,) = segments(tmp_path, "orders")
        lock = os.open(channel_dir(tmp_path, "orders") / ".lock", os.O_RDWR)
        log = os.open(segment, os.O_WRONLY | os.O_APPEND)
        try:
            for n in range(1, 301):
                line = record(n)
                # Within the payload, right before the newline, and anywhere.
                cut = rng.choice([len(line) - 1, len(line) - 2, rng.randrange(1, len(line))])
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.write(log, line[:cut])
                for _ in range(3):  # the reader is woken by this and looks
                    gevent.sleep(0.0005)
                os.write(log, line[cut:])
                fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(log)
            os.close(lock)
        assert seen.wait(301) == list(range(301))
        (stats,) = messenger.stats().channels[0].subscribers
        assert (stats.delivered, stats.corrupt, stats.dead_letters) == (301, 0, 0)


def test_defect_01_lines_that_another_process_writes_in_pieces(tmp_path: Path) -> None:
    """The same while another process appends and each of its writes is cut short by the kernel.

    v0.11.0 lost messages in this way under load; here each arrives once and in order.
    """
    code = """
    from keyop.fs import FileSystem
    class Splitting(FileSystem):
        def write(self, fd, data):
            data = memoryview(data)
            return os.write(fd, data[:max(1, len(data) // 2)])
    config = Config.from_dict({"name": "w", "storage": {"data_dir": data_dir}})
    with Messenger(config, fs=Splitting()) as m:
        for n in range(2000):
            m.publish("orders", "t", [n, "x" * (n % 500)])
    """
    seen = Recorder()
    with running(tmp_path) as messenger, Worker(code, tmp_path) as worker:
        messenger.subscribe("orders", "s", seen, start="earliest")
        worker.wait(40)
        drain(messenger, timeout=20)
        (stats,) = messenger.stats().channels[0].subscribers
    assert [payload[0] for payload in seen.payloads] == list(range(2000))
    assert (stats.corrupt, stats.dead_letters) == (0, 0)


# --- 7: records that are too large


def test_defect_07_too_large_a_record_is_refused(tmp_path: Path) -> None:
    """A record above 10 MiB is refused at publish, and nothing is written.

    v0.11.0 accepted it, and then no subscriber got past it.
    """
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        before = log_bytes(tmp_path, "orders")
        with pytest.raises(RecordTooLargeError):
            messenger.publish("orders", "t", "x" * (10 * MIB))
        with pytest.raises(RecordTooLargeError):
            messenger.publish_batch("orders", [("t", 2), ("t", "x" * (10 * MIB))])
        assert log_bytes(tmp_path, "orders") == before
        # What is a little smaller is not.
        messenger.publish("orders", "t", "x" * (10 * MIB - 1000))


@pytest.mark.parametrize("size", [5_000, 9_000, 50_000, 3 * MIB])
def test_defect_07_too_large_a_record_on_disk_is_passed_over(tmp_path: Path, size: int) -> None:
    """A record above the limit that is on the disk already is counted, dead-lettered, skipped.

    v0.11.0 blocked its subscribers at that record for ever. Here those before and behind it are
    delivered, and what was passed over can be looked at.
    """
    large = record("x" * size, id="large")
    write_segment(tmp_path, "orders", 0, record(1) + large + record(2))
    seen = Recorder()
    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
        assert seen.payloads == [1, 2]
        (stats,) = messenger.stats().channels[0].subscribers
        assert stats.corrupt == 1
        assert stats.dead_letters == 1
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["subscriber"] == "s"
    assert "4096" in letter["last_error"] or "large" in letter["last_error"]
    if letter["original"] is None and "raw" in letter:
        # As much of it as a dead letter holds.
        assert large.startswith(base64.b64decode(letter["raw"]).rstrip(b"\n")[:1000])


def test_defect_07_largest_default(tmp_path: Path) -> None:
    """The same with the default limit of 10 MiB, which such a record blocked in v0.11.0."""
    large = record("x" * (11 * MIB), id="large")
    write_segment(tmp_path, "orders", 0, record(1) + large + record(2))
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger, timeout=20)
        messenger.publish("orders", "t", 3)
        assert seen.wait(3) == [1, 2, 3]
    assert len(dead_letters(tmp_path, "orders")) == 1


# --- 8: torn tails

TAILS = {
    "a letter": b"{",
    "half a record": record("torn")[:70],
    "all but the newline": record("torn")[:-1],
    "all but two bytes": record("torn")[:-2],
    "nul bytes": b"\x00" * 5000,
    "half and nul bytes": record("torn")[:70] + b"\x00" * 512,
    "rubbish": b"\xff\xfe\x00\x01{]",
    "longer than a record may be": b"x" * 200_000,
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_defect_08_torn_tail(tmp_path: Path, tail: bytes) -> None:
    """What a crash left of an unfinished line is set aside, and the next record is whole.

    v0.11.0 appended to it: the next record merged with the torn one, and both were lost. Here
    the bytes behind the last newline go to a file beside the segment.
    """
    write_segment(tmp_path, "orders", 0, record(1) + record(2) + tail)
    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.publish("orders", "t", 3)
    lines = log_bytes(tmp_path, "orders").splitlines(True)
    assert b"".join(lines[:2]) == record(1) + record(2)
    assert len(lines) == 3
    assert crc_holds(lines[2])
    (aside,) = channel_dir(tmp_path, "orders").glob("*.torn-*")
    assert aside.read_bytes() == tail
    assert aside.name.startswith(f"{0:020}.jsonl.torn-")
    assert [message.payload for message in read_all(tmp_path, "orders", 3)] == [1, 2, 3]
    assert dead_letters(tmp_path, "orders") == []


def test_defect_08_twice(tmp_path: Path) -> None:
    """A second crash does not overwrite what the first one left (v0.11.0 kept neither)."""
    write_segment(tmp_path, "orders", 0, record(1) + b"first")
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 2)
    with open(segments(tmp_path, "orders")[-1], "ab") as log:
        log.write(b"second")
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 3)
    asides = channel_dir(tmp_path, "orders").glob("*.torn-*")
    assert sorted(path.read_bytes() for path in asides) == [b"first", b"second"]
    assert [message.payload for message in read_all(tmp_path, "orders", 3)] == [1, 2, 3]


def test_defect_08_publisher_killed_in_mid_write(tmp_path: Path) -> None:
    """A process dies with half its line written; another one, running, goes on cleanly.

    In v0.11.0 its next record merged with the half. Here it finds the torn tail under the lock
    and sets it aside, though it did not open the log just now.
    """
    code = """
    from tests.fakes.killing import KillingFs
    from keyop.fs import FileSystem
    import signal
    class Dying(FileSystem):
        def write(self, fd, data):
            if b'"payload":"last"' in bytes(data):
                os.write(fd, bytes(data)[:80])
                os.kill(os.getpid(), signal.SIGKILL)
            return os.write(fd, data)
    config = Config.from_dict({"name": "w", "storage": {"data_dir": data_dir}})
    m = Messenger(config, fs=Dying())
    m.publish("orders", "t", "first")
    say("ready")
    wait_for(sys.argv[2])
    m.publish("orders", "t", "last")
    """
    seen = Recorder()
    go = tmp_path / "go"
    data = tmp_path / "data"
    with running(data) as messenger, Worker(code, data, go) as worker:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 0)
        worker.wait_line("ready")
        go.touch()
        wait_until(lambda: worker.process.poll() is not None, 20)
        assert worker.process.returncode == -signal.SIGKILL
        assert not log_bytes(data, "orders").endswith(b"\n")
        messenger.publish("orders", "t", 1)
        messenger.publish("orders", "t", 2)
        drain(messenger)
    assert [r["payload"] for r in records(data, "orders")][-2:] == [1, 2]
    assert seen.payloads[-2:] == [1, 2]
    assert "last" not in seen.payloads
    (aside,) = channel_dir(data, "orders").glob("*.torn-*")
    assert len(aside.read_bytes()) == 80
    assert dead_letters(data, "orders") == []


# --- 9: positions beyond the end


@pytest.mark.parametrize("name", ["s", "fed-peer", "fedout-hub"])
def test_defect_09_position_beyond_the_end(tmp_path: Path, name: str) -> None:
    """A position past the end of a log that shrank is moved to the end when the log is opened.

    v0.11.0 let it stand: new records were appended below it, and skipped.
    """
    content = record(1) + record(2)
    write_segment(tmp_path, "orders", 0, content)
    write_offset(tmp_path, "orders", name, len(content) + 10_000)
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", "new")
    assert stored_offset(tmp_path, "orders", name) == len(content)
    if name == "s":
        seen = Recorder()
        with running(tmp_path) as messenger:
            messenger.subscribe("orders", "s", seen)
            assert seen.wait(1) == ["new"]


def test_defect_09_end_is_behind_the_whole_lines(tmp_path: Path) -> None:
    """The end to which a position is moved is that behind the last whole line.

    A power cut that takes records and leaves a torn one is what made v0.11.0 skip messages.
    """
    content = record(1) + record(2)
    write_segment(tmp_path, "orders", 0, content + record(3)[:50])
    write_offset(tmp_path, "orders", "s", len(content + record(3) + record(4)))
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", "new")
        assert seen.wait(1) == ["new"]


def test_defect_09_empty_log(tmp_path: Path) -> None:
    """The whole log is gone, the position is not: what is published next is delivered.

    v0.11.0 skipped everything up to the old position.
    """
    write_offset(tmp_path, "orders", "s", 5000)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 2)
        assert seen.wait(2) == [1, 2]


# --- 10: segments and those who have not read them


def test_defect_10_segments_wait_for_those_who_are_away(tmp_path: Path) -> None:
    """No segment is deleted that a subscriber has not read, also while it does not run.

    v0.11.0 counted only the subscribers that had registered since the start; those that came a
    moment later had lost what lay between.
    """
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "late", Recorder())
    storage = {"max_segment_bytes": 1000}
    with running(tmp_path, storage=storage) as messenger:
        early = Recorder()
        messenger.subscribe("orders", "early", early)
        for n in range(40):
            messenger.publish("orders", "t", n)
        early.wait(40)
        drain(messenger)
        before = segments(tmp_path, "orders")
        assert len(before) > 5
        messenger.sweep()
        assert segments(tmp_path, "orders") == before
        late = Recorder()
        messenger.subscribe("orders", "late", late)
        assert late.wait(40) == list(range(40))
        drain(messenger)
        messenger.sweep()
        assert segments(tmp_path, "orders") == before[-1:]


def test_defect_10_sweep_right_after_the_start(tmp_path: Path) -> None:
    """A sweep in a process that has not subscribed to anything yet keeps every unread segment.

    This is when v0.11.0 deleted them.
    """
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        messenger.subscribe("orders", "s", Recorder()).stop()
        for n in range(40):
            messenger.publish("orders", "t", n)
    before = segments(tmp_path, "orders")
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        messenger.start()
        messenger.sweep()
    assert segments(tmp_path, "orders") == before
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        assert seen.wait(40) == list(range(40))


# --- 11: payloads that are not objects


def test_defect_11_payloads_that_are_not_objects(tmp_path: Path) -> None:
    """A payload of an unregistered type is delivered whatever kind of JSON it is.

    v0.11.0 decoded it into a map, failed on anything else, and the message vanished.
    """
    payloads = [1, 1.5, "text", "", None, True, False, [], [1, {"a": 2}], {}, {"a": 1}]
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        for payload in payloads:
            messenger.publish("orders", "com.example.Unknown", payload)
        drain(messenger)
        (stats,) = messenger.stats().channels[0].subscribers
    assert seen.payloads == payloads
    assert set(seen.attempts) == {1}
    assert stats.dead_letters == 0


# --- 17: a segment that cannot be created


@pytest.mark.parametrize("error", ["EACCES", "EIO", "EMFILE", "ENFILE", "EROFS"])
@pytest.mark.parametrize("roll", [False, True], ids=["first", "roll"])
def test_defect_17_segment_that_cannot_be_created(tmp_path: Path, error: str, roll: bool) -> None:
    """A segment that cannot be created is an error of that publish; the next one tries again.

    In v0.11.0 the writer died of it, and every publish from then on hung.
    """
    fs = FaultyFs()
    storage = {"max_segment_bytes": 300}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.publish("orders" if roll else "other", "t", "first")
        wanted = [r["payload"] for r in records(tmp_path, "orders")]
        fault = fs.fail("open", getattr(errno, error), times=None, path_contains=".jsonl")
        with gevent.Timeout(10):
            for n in range(3):
                with pytest.raises(StorageError) as caught:
                    messenger.publish("orders", "t", ["failed", n, "x" * 250])
                assert not isinstance(caught.value, LogFailedError)
        assert fault.hits
        assert [r["payload"] for r in records(tmp_path, "orders")] == wanted
        fs.heal()
        with gevent.Timeout(10):
            for n in range(5):
                messenger.publish("orders", "t", [n, "x" * 250])
                wanted.append([n, "x" * 250])
    assert contiguous(tmp_path, "orders")
    assert [message.payload for message in read_all(tmp_path, "orders", len(wanted))] == wanted


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_defect_17_no_room_for_a_segment(tmp_path: Path, error: str) -> None:
    """Without room for the next segment a publish waits, with a deadline, and then goes on.

    In v0.11.0 it hung for good, also when there was room again.
    """
    fs = FaultyFs()
    storage = {"max_segment_bytes": 300}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", ["x" * 250, 0])
        fs.fail("open", getattr(errno, error), times=None, path_contains=".jsonl")
        with gevent.Timeout(10), pytest.raises(PublishTimeoutError) as caught:
            messenger.publish("orders", "t", ["x" * 250, "late"], timeout=0.2)
        assert caught.value.written is False
        waiting = gevent.spawn(messenger.publish, "orders", "t", ["x" * 250, 1])
        gevent.sleep(0.1)
        assert not waiting.ready()
        fs.heal()
        waiting.get(timeout=10)
        messenger.publish("orders", "t", ["x" * 250, 2], timeout=10)
    assert contiguous(tmp_path, "orders")
    assert [r["payload"][1] for r in records(tmp_path, "orders")] == [0, 1, 2]


# --- 19: ending from inside a handler


@pytest.mark.parametrize("concurrency", [1, 4])
def test_defect_19_unsubscribe_inside_a_handler(tmp_path: Path, concurrency: int) -> None:
    """A handler may unsubscribe itself: the call returns, and the position is gone.

    v0.11.0 waited for the handler in which the call was made: a deadlock.
    """
    returned: list[bool] = []

    def handle(message: Message) -> None:
        with gevent.Timeout(5):
            messenger.unsubscribe("orders", "s")
        returned.append(True)

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", handle, concurrency=concurrency)
        messenger.publish("orders", "t", 1)
        wait_until(lambda: returned and not messenger.subscriptions())
        assert not offset_path(tmp_path, "orders", "s").exists()
        messenger.subscribe("orders", "s", Recorder())


@pytest.mark.parametrize("concurrency", [1, 4])
def test_defect_19_close_inside_a_handler(tmp_path: Path, concurrency: int) -> None:
    """A handler may close the messenger: the call returns, and its message counts.

    v0.11.0 waited for the handler in which the call was made: a deadlock.
    """
    returned: list[bool] = []

    def handle(message: Message) -> None:
        with gevent.Timeout(5):
            messenger.close()
        returned.append(True)

    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", handle, concurrency=concurrency)
        messenger.publish("orders", "t", 1)
        wait_until(lambda: returned)
        assert subscription.join(5)
        with pytest.raises(MessengerClosedError):
            messenger.publish("orders", "t", 2)
    assert stored_offset(tmp_path, "orders", "s") == len(log_bytes(tmp_path, "orders"))


def test_defect_19_two_handlers_end_each_other(tmp_path: Path) -> None:
    """A handler may stop another subscription whose handler is stopping it: neither hangs.

    In v0.11.0 already one of the two calls hung.
    """
    begun: list[str] = []
    both = gevent.event.Event()
    subscriptions: dict[str, Any] = {}

    def handler(mine: str, other: str) -> Callable[[Message], None]:
        def handle(message: Message) -> None:
            begun.append(mine)
            if len(begun) == 2:
                both.set()
            assert both.wait(5)
            subscriptions[other].stop(timeout=0.5)

        return handle

    with running(tmp_path) as messenger:
        subscriptions["a"] = messenger.subscribe("orders", "a", handler("a", "b"))
        subscriptions["b"] = messenger.subscribe("orders", "b", handler("b", "a"))
        messenger.publish("orders", "t", 1)
        wait_until(lambda: not messenger.subscriptions(), 10)
        messenger.publish("orders", "t", 2, timeout=5)
    assert sorted(begun) == ["a", "b"]


# --- 21: names that leave the data directory

OUTSIDE = ["../../../x", "..", "../x", "/x", "a/../../x", "./x", ".", "", "x\x00", "x\n", "a/b"]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_defect_21_names_stay_inside_the_data_directory(tmp_path: Path, name: str) -> None:
    """A name that could lead out of the data directory is refused wherever it comes in.

    v0.11.0 joined a channel ``../../../x`` to its path and wrote there; ids likewise.
    """
    data = tmp_path / "a" / "b" / "data"
    with running(data) as messenger:
        messenger.start()
        before = tree(tmp_path)
        for enter in (
            lambda: messenger.publish(name, "t", 1),
            lambda: messenger.publish_batch(name, [("t", 1)]),
            lambda: messenger.subscribe(name, "s", Recorder()),
            lambda: messenger.unsubscribe(name, "s"),
            lambda: messenger.reopen(name),
        ):
            with pytest.raises(InvalidChannelNameError):
                enter()
        for enter in (
            lambda: messenger.subscribe("orders", name, Recorder()),
            lambda: messenger.subscribe("orders", name, Recorder(), standby=True),
            lambda: messenger.unsubscribe("orders", name),
        ):
            with pytest.raises(InvalidSubscriberIdError):
                enter()
        assert tree(tmp_path) == before
    with pytest.raises(ConfigError):
        Config.from_dict({"name": name or "/", "storage": {"data_dir": str(data)}})


def test_defect_21_names_within_a_record(tmp_path: Path) -> None:
    """What a record says of its channel never becomes a path.

    v0.11.0 wrote a dead letter to the channel that the record named, wherever that was.
    """
    data = tmp_path / "a" / "b" / "data"
    write_segment(data, "orders", 0, record(1, channel="../../../x") + record(2, origin="../../y"))
    with running(data) as messenger:
        seen = Recorder(fail)
        messenger.subscribe("orders", "s", seen, start="earliest", max_retries=0)
        seen.wait(2)
        drain(messenger)
    assert len(dead_letters(data, "orders")) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (data / "channels").iterdir()} == {"orders", "orders.dead-letter"}


# --- 23: subscribing again


WAYS_TO_END: dict[str, Callable[[Messenger, Subscription], Any]] = {
    "stop": lambda messenger, subscription: subscription.stop(),
    "kill": lambda messenger, subscription: subscription.kill(),
    "unsubscribe": lambda messenger, subscription: messenger.unsubscribe("orders", "s"),
    "request": lambda messenger, subscription: (subscription.request_stop(), subscription.join(5)),
}


@pytest.mark.parametrize("end", WAYS_TO_END.values(), ids=WAYS_TO_END)
def test_defect_23_id_may_subscribe_again(tmp_path: Path, end: Any) -> None:
    """When a subscription has ended, however it did, its id may subscribe again at once.

    In v0.11.0 the id stayed taken until the process ended.
    """
    with running(tmp_path) as messenger:
        for n in range(3):
            seen = Recorder()
            subscription = messenger.subscribe("orders", "s", seen)
            messenger.publish("orders", "t", n)
            assert seen.wait(1) == [n]
            drain(messenger)
            end(messenger, subscription)


def test_defect_23_stop_that_had_to_kill(tmp_path: Path) -> None:
    """So it is after a handler did not end in time; its message comes again (v0.11.0: never)."""
    hanging, seen = Recorder(lambda message: gevent.sleep(60)), Recorder()
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", hanging)
        messenger.publish("orders", "t", 1)
        hanging.wait(1)
        subscription.stop(timeout=0.05)
        messenger.subscribe("orders", "s", seen)
        assert seen.wait(1) == [1]


def test_defect_23_greenlet_that_subscribed_is_killed(tmp_path: Path) -> None:
    """Who subscribed may die, at any time, without taking the id along.

    In v0.11.0 a cancelled context left the id registered.
    """
    seen = Recorder()
    with running(tmp_path) as messenger:
        subscriber = gevent.spawn(messenger.subscribe, "orders", "s", Recorder())
        gevent.sleep(0)
        subscriber.kill()
        for subscription in messenger.subscriptions():
            subscription.stop()
        messenger.subscribe("orders", "s", seen, start="earliest")
        messenger.publish("orders", "t", 1)
        seen.wait(1)


def test_defect_23_failed_subscribe_leaves_the_id_free(tmp_path: Path) -> None:
    """A subscribe that failed does not hold the id (in v0.11.0 it did)."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        fs.fail("open", errno.EIO, times=None, path_contains="s.offset")
        with pytest.raises(StorageError):
            messenger.subscribe("orders", "s", Recorder())
        fs.heal()
        messenger.subscribe("orders", "s", seen := Recorder())
        messenger.publish("orders", "t", 1)
        seen.wait(1)


# --- 24: several processes on one directory


def test_defect_24_two_processes_on_one_directory(tmp_path: Path) -> None:
    """Processes that publish to one channel, with rolls, lose and overwrite nothing.

    In v0.11.0 each had its own idea of the active segment, and they overwrote each other's.
    """
    code = """
    m = make(max_segment_bytes=3000)
    m.start()
    say("ready")
    wait_for(sys.argv[2])
    for n in range(250):
        m.publish("orders", "t", [sys.argv[3], n])
    m.publish_batch("orders", [("t", [sys.argv[3], n]) for n in range(250, 300)])
    m.close()
    """
    go, data = tmp_path / "go", tmp_path / "data"
    seen = Recorder()
    with ExitStack() as stack:
        messenger = stack.enter_context(running(data, storage={"max_segment_bytes": 3000}))
        messenger.subscribe("orders", "s", seen)
        workers = [stack.enter_context(Worker(code, data, go, name)) for name in "abc"]
        for worker in workers:
            worker.wait_line("ready", 30)
        go.touch()
        for n in range(300):
            messenger.publish("orders", "t", ["d", n])
        for worker in workers:
            worker.wait(50)
        drain(messenger, timeout=20)
    assert contiguous(data, "orders")
    assert len(segments(data, "orders")) > 30
    lines = log_bytes(data, "orders").splitlines(True)
    assert all(crc_holds(line) for line in lines)
    payloads = [json.loads(line)["payload"] for line in lines]
    assert seen.payloads == payloads
    assert Counter(name for name, _ in payloads) == dict.fromkeys("abcd", 300)
    for each in "abcd":
        assert [n for name, n in payloads if name == each] == list(range(300))


# --- 25: deduplication


def test_defect_25_ids_outlive_a_restart(tmp_path: Path) -> None:
    """A ``message_id`` that was published before a restart is not written again.

    v0.11.0 kept its ids in memory alone. Here the window is rebuilt from the end of the log, in
    whatever segments it lies.
    """
    storage = {"max_segment_bytes": 1000}
    with running(tmp_path, storage=storage) as messenger:
        for n in range(20):
            messenger.publish("orders", "t", n, message_id=f"order-{n}")
        messenger.publish_batch("orders", [("t", 20), ("t", 21)], message_id="batch")
    before = log_bytes(tmp_path, "orders")
    with running(tmp_path, storage=storage) as messenger:
        for n in range(20):
            assert messenger.publish("orders", "t", n, message_id=f"order-{n}") == f"order-{n}"
        messenger.publish_batch("orders", [("t", 20), ("t", 21)], message_id="batch")
        assert log_bytes(tmp_path, "orders") == before
        messenger.publish("orders", "t", "new", message_id="order-20")
    assert records(tmp_path, "orders")[-1]["payload"] == "new"


def test_defect_25_ids_outlive_their_records(tmp_path: Path) -> None:
    """An id is known when retention has dropped its record before anybody asked for the id again.

    This one was the first of its segment, which its publisher does not read back.
    """
    storage = {"max_segment_bytes": 300, "max_files": 1}
    with running(tmp_path, storage=storage) as messenger:
        messenger.publish("orders", "t", "x" * 300, message_id="before")
        messenger.publish("orders", "t", 1, message_id="once")
        messenger.publish("orders", "t", "x" * 300)
        messenger.publish("orders", "t", "x" * 300)
        messenger.sweep()
        assert "once" not in [r["id"] for r in records(tmp_path, "orders")]
        messenger.publish("orders", "t", 1, message_id="once")
        assert "once" not in [r["id"] for r in records(tmp_path, "orders")]


def test_defect_25_ids_outlive_a_kill(tmp_path: Path) -> None:
    """So it is when the process was killed right after the publish returned.

    This is the case in which a client tries again; in v0.11.0 the record was stored twice.
    """
    code = """
    m = make()
    for n in range(50):
        m.publish("orders", "t", n, message_id=f"order-{n}")
    say("done")
    gevent.sleep(60)
    """
    with Worker(code, tmp_path) as worker:
        worker.wait_line("done", 30)
        worker.kill()
    with running(tmp_path) as messenger:
        for n in range(51):
            messenger.publish("orders", "t", n, message_id=f"order-{n}")
    assert [r["id"] for r in records(tmp_path, "orders")] == [f"order-{n}" for n in range(51)]


def test_defect_25_ids_in_records_of_v0_11_0_count(tmp_path: Path) -> None:
    """Records without a checksum, as v0.11.0 writes them, are in the rebuilt window as well."""
    lines = [record(n, crc=False, id=f"order-{n}") for n in range(5)]
    write_segment(tmp_path, "orders", 0, b"".join(lines))
    with running(tmp_path) as messenger:
        for n in range(5):
            messenger.publish("orders", "t", n, message_id=f"order-{n}")
    assert log_bytes(tmp_path, "orders") == b"".join(lines)


def test_defect_25_least_recently_used_goes_first(tmp_path: Path) -> None:
    """When the window is full, the id that was used longest ago goes, not the one seen first.

    v0.11.0 called it an LRU and threw out the first that came, though it was used just now.
    """
    with running(tmp_path, dedup={"seen_id_lru_size": 3}) as messenger:

        def publish(name: str) -> bool:
            """Publish and tell whether it was written."""
            before = len(log_bytes(tmp_path, "orders"))
            assert messenger.publish("orders", "t", name, message_id=name) == name
            return len(log_bytes(tmp_path, "orders")) > before

        assert [publish(name) for name in "abc"] == [True, True, True]
        assert not publish("a")  # used again: b is the oldest now
        assert publish("d")  # b goes
        assert not publish("a")
        assert not publish("c")
        assert not publish("d")
        assert publish("b")  # a is the oldest, and goes
        assert publish("a")


def test_defect_25_rebuilt_window_has_its_size_and_order(tmp_path: Path) -> None:
    """After a restart the window holds the newest ids of the log, and no more than its size."""
    with running(tmp_path, dedup={"seen_id_lru_size": 3}) as messenger:
        for name in "abcde":
            messenger.publish("orders", "t", name, message_id=name)
    with running(tmp_path, dedup={"seen_id_lru_size": 3}) as messenger:
        for name in "edc":  # in the window; c is the newest now, e the oldest
            messenger.publish("orders", "t", name, message_id=name)
        assert len(records(tmp_path, "orders")) == 5
        messenger.publish("orders", "t", "a", message_id="a")  # not in it any more; e goes
        messenger.publish("orders", "t", "d", message_id="d")
        messenger.publish("orders", "t", "e", message_id="e")
    assert [r["id"] for r in records(tmp_path, "orders")] == [*"abcde", "a", "e"]


# --- 28: a stop during backoff


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("way", ["stop", "close"])
def test_defect_28_stop_during_backoff(tmp_path: Path, way: str, concurrency: int) -> None:
    """A message whose retry is still to come stays uncommitted when its subscriber is stopped.

    v0.11.0 moved the position behind it, without a dead letter: the message was lost.
    """
    failing = Recorder(fail)
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe(
            "orders", "s", failing, retry_backoff=(60, 60), concurrency=concurrency
        )
        messenger.publish("orders", "t", 1)
        failing.wait(1)
        with gevent.Timeout(8):
            subscription.stop() if way == "stop" else messenger.close()
    assert stored_offset(tmp_path, "orders", "s") == 0
    assert dead_letters(tmp_path, "orders") == []
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        assert seen.wait(1) == [1]


# --- 29: dead letters that cannot be written

DEAD_LETTER_FAULTS = [
    ("mkdir", errno.EACCES),
    ("open", errno.EACCES),
    ("open", errno.EMFILE),
    ("write", errno.EIO),
    ("write", errno.ENOSPC),
]


@pytest.mark.parametrize(("operation", "error"), DEAD_LETTER_FAULTS, ids=str)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_defect_29_dead_letter_that_cannot_be_written(
    tmp_path: Path, operation: str, error: int, concurrency: int
) -> None:
    """While a dead letter cannot be written the position does not move.

    v0.11.0 logged the failure and moved on: the message was in neither place.
    """
    fs = FaultyFs()
    failing = Recorder(fail)
    with running(tmp_path, seams={"fs": fs}) as messenger:
        fault = fs.fail(operation, error, times=None, path_contains="dead-letter")
        subscription = messenger.subscribe(
            "orders",
            "s",
            failing,
            max_retries=1,
            retry_backoff=FAST_BACKOFF,
            concurrency=concurrency,
        )
        messenger.publish("orders", "t", 1)
        failing.wait(2)
        wait_until(lambda: fault.hits, what="the dead letter to be tried")
        gevent.sleep(0.05)
        assert subscription.offset == 0
        assert stored_offset(tmp_path, "orders", "s") == 0
        with gevent.Timeout(12):
            subscription.stop()
    assert stored_offset(tmp_path, "orders", "s") == 0
    assert dead_letters(tmp_path, "orders") == []
    again = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", again, max_retries=0)
        again.wait(1)
        drain(messenger)
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["original"]["payload"] == 1


def test_defect_29_goes_on_by_itself(tmp_path: Path) -> None:
    """When the dead letter can be written again the subscriber goes on, with one of it.

    In v0.11.0 there was nothing left to go on with.
    """
    fs = FaultyFs()
    seen = Recorder(lambda message: fail(message) if message.payload == 0 else None)
    with running(tmp_path, seams={"fs": fs}) as messenger:
        fault = fs.fail("open", errno.EMFILE, times=None, path_contains="dead-letter")
        messenger.subscribe("orders", "s", seen, max_retries=0, retry_backoff=FAST_BACKOFF)
        messenger.publish_batch("orders", [("t", 0), ("t", 1)])
        wait_until(lambda: fault.hits)
        fs.heal()
        drain(messenger, timeout=15)
    assert seen.payloads[-1] == 1
    assert [letter["original"]["payload"] for letter in dead_letters(tmp_path, "orders")] == [0]


# --- 32: zeros in the configuration

ZEROS = [
    ("subscribers", "max_retries"),
    ("subscribers", "retry_backoff_base_ms"),
    ("storage", "offset_flush_interval_ms"),
    ("storage", "max_files"),
    ("storage", "retention"),
    ("storage", "max_subscriber_lag_mb"),
    ("storage", "sync_interval_ms"),
    ("hub", "fed_client_offset_ttl"),
    ("hub", "max_pending"),
    ("tls", "expiry_warn_days"),
    ("federation", "reconnect_jitter"),
    ("federation", "reconnect_base_ms"),
    ("dedup", "seen_id_lru_size"),
    ("audit", "max_files"),
    ("audit", "max_size_mb"),
]


@pytest.mark.parametrize(("part", "key"), ZEROS, ids=".".join)
def test_defect_32_zero_is_zero(tmp_path: Path, part: str, key: str) -> None:
    """A ``0`` stays 0, or is refused by name where it makes no sense.

    v0.11.0 took it for "not set" and put its default in.
    """
    given: dict[str, Any] = {"name": "x", "storage": {"data_dir": str(tmp_path)}}
    given.setdefault(part, {})[key] = 0
    problems = ""
    try:
        loaded = Config.from_dict(given)
    except ConfigError as error:
        problems = str(error)
    if problems:
        assert f"{part}.{key}" in problems
        return
    value = getattr(getattr(loaded, part), key)
    assert not value
    assert value is not None


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("subscribers", "max_retries"),
        ("hub", "fed_client_offset_ttl"),
        ("storage", "offset_flush_interval_ms"),
        ("storage", "max_files"),
        ("storage", "retention"),
        ("dedup", "seen_id_lru_size"),
    ],
    ids=".".join,
)
def test_defect_32_zeros_that_mean_something(tmp_path: Path, part: str, key: str) -> None:
    """Where 0 has a meaning of its own it is accepted, in YAML too (v0.11.0: the default)."""
    path = tmp_path / "keyop.yaml"
    storage = f"storage:\n  data_dir: {tmp_path}\n"
    extra = f"  {key}: 0\n" if part == "storage" else f"{part}:\n  {key}: 0\n"
    path.write_text(storage + extra)
    assert not getattr(getattr(Config.load(path), part), key)


def test_defect_32_no_retries_means_none(tmp_path: Path) -> None:
    """``subscribers.max_retries: 0`` delivers once and then dead-letters (v0.11.0: six times)."""
    failing = Recorder(fail)
    with running(tmp_path, subscribers={"max_retries": 0}) as messenger:
        messenger.subscribe("orders", "s", failing)
        messenger.publish("orders", "t", 1)
        drain(messenger)
    assert failing.attempts == [1]
    (letter,) = dead_letters(tmp_path, "orders")
    assert letter["retries"] == 0


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_defect_32_tls_version_is_kept(tmp_path: Path, version: str) -> None:
    """``tls.min_version`` is what the user wrote (v0.11.0 read it and did not look at it)."""
    assert config(tmp_path, tls={"min_version": version}).tls.min_version == version
    with pytest.raises(ConfigError, match=r"tls\.min_version"):
        config(tmp_path, tls={"min_version": "1.1"})


# --- 33: an empty offset file


def check_repair(data_dir: Path) -> str:
    """Run ``keyop check --repair`` as an operator does; return what it says."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "bin" / "keyop"),
            "check",
            "--repair",
            "--data-dir",
            str(data_dir),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00" * 21, b"12x4\n"], ids=repr)
def test_defect_33_empty_position_has_a_way_out(tmp_path: Path, content: bytes) -> None:
    """A position that a power cut emptied is an error that names the file and the remedy.

    v0.11.0 failed to subscribe for ever, without a word on what to do. Here ``keyop check
    --repair`` mends it, and no message is lost: delivery begins with the earliest record.
    """
    write_segment(tmp_path, "orders", 0, record(1) + record(2))
    path = write_offset(tmp_path, "orders", "s", content)
    with running(tmp_path) as messenger:
        with pytest.raises(OffsetError) as caught:
            messenger.subscribe("orders", "s", Recorder())
        assert str(path) in str(caught.value)
        assert "check --repair" in str(caught.value)
        # Others are not concerned.
        messenger.publish("orders", "t", 3)
    assert path.read_bytes() == content
    assert "s.offset" in check_repair(tmp_path)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        assert seen.wait(3) == [1, 2, 3]


# --- 34: the longest names


def test_defect_34_channel_of_255_bytes(tmp_path: Path) -> None:
    """A channel whose dead-letter channel has no room for its name is refused at publish.

    In v0.11.0 a channel of 255 bytes could be published to but never subscribed.
    """
    with running(tmp_path) as messenger:
        messenger.start()
        before = tree(tmp_path)
        for length in (244, 250, 255):
            with pytest.raises(InvalidChannelNameError, match=r"24[34]|dead-letter"):
                messenger.publish("x" * length, "t", 1)
            with pytest.raises(InvalidChannelNameError):
                messenger.subscribe("x" * length, "s", Recorder())
        assert tree(tmp_path) == before


def test_defect_34_longest_names_work_together(tmp_path: Path) -> None:
    """The longest channel and the longest id are published to, subscribed and dead-lettered."""
    channel, subscriber_id = "x" * 243, "y" * 237
    failing = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.subscribe(channel, subscriber_id, failing, max_retries=0)
        messenger.publish(channel, "t", 1)
        failing.wait(1)
        drain(messenger)
        letters = Recorder()
        messenger.subscribe(f"{channel}.dead-letter", subscriber_id, letters, start="earliest")
        assert letters.wait(1)[0]["original"]["payload"] == 1


# --- 35: fsync of directories, and after a failed fsync


def test_defect_35_entries_survive_a_power_cut(tmp_path: Path) -> None:
    """What ``publish`` confirmed under ``always`` is there after a power cut at any moment.

    v0.11.0 synced its segments but not their directories: after a power cut a segment that was
    created a moment ago was not there at all.
    """
    data = tmp_path / "data"
    data.mkdir()
    fs = RecordingFs(data)
    storage = {"sync_policy": "always", "max_segment_bytes": 500}
    with running(data / "x", storage=storage, seams={"fs": fs}) as messenger:
        for n in range(12):
            messenger.publish("orders", "t", n)
            fs.mark(n)
    assert len(segments(data / "x", "orders")) > 4
    for number, state in enumerate(crash_states(fs.ops, random.Random(35), 400)):
        left = tmp_path / f"state-{number}"
        materialise(state, left)
        there = [
            json.loads(line)["payload"]
            for line in log_bytes(left / "x", "orders").splitlines(True)
            if crc_holds(line)
        ]
        assert set(state.marks) <= set(there), (state.last, state.survives)
    # The whole library reads what the harshest one left.
    state = crash_state(fs.ops, random.Random(1), "none")
    materialise(state, tmp_path / "last")
    got = read_all(tmp_path / "last" / "x", "orders", len(state.marks), storage=storage)
    assert [message.payload for message in got][: len(state.marks)] == state.marks


def test_defect_35_failed_fsync_stops_the_log(tmp_path: Path) -> None:
    """After a failed fsync the file is neither synced nor written to again.

    v0.11.0 tried again: the kernel had marked the pages clean, so the second fsync succeeded,
    and records that were not on the disk were reported as safe.
    """
    faulty = FaultyFs()
    fs = RecordingFs(tmp_path, faulty)
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        (segment,) = segments(tmp_path, "orders")
        faults = [
            faulty.fail(operation, errno.EIO, path_contains=segment.name)
            for operation in ("fdatasync", "fsync")
        ]
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 1)
        assert sum(fault.hits for fault in faults) == 1
        faulty.heal()
        left, done = segment.read_bytes(), len(fs.ops)
        for n in range(3):
            with pytest.raises(LogFailedError):
                messenger.publish("orders", "t", n)
        messenger.reopen("orders")
        messenger.publish("orders", "t", 2)
    assert segment.read_bytes() == left
    names = {op.handle: op.path for op in fs.ops if isinstance(op, Open)}
    synced = [names[op.handle] for op in fs.ops[done:] if isinstance(op, SyncBegin)]
    assert synced
    assert not any(name.endswith(segment.name) for name in synced)
    assert records(tmp_path, "orders")[-1]["payload"] == 2


def test_defect_35_failed_fsync_of_a_directory(tmp_path: Path) -> None:
    """When a directory's fsync fails, ``publish`` does not confirm what depends on it.

    v0.11.0 never called it, and so could not notice.
    """
    fs = FaultyFs()
    storage = {"sync_policy": "always", "max_segment_bytes": 300}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "x" * 200)
        fault = fs.fail("fsync_dir", errno.EIO, path_contains="orders")
        with pytest.raises(StorageError):
            messenger.publish("orders", "t", "y" * 200)
        assert fault.hits == 1
        fs.heal()
        try:
            messenger.publish("orders", "t", "z" * 200)
        except LogFailedError:
            messenger.reopen("orders")
            messenger.publish("orders", "t", "z" * 200)
    assert contiguous(tmp_path, "orders")
    payloads = [r["payload"][0] for r in records(tmp_path, "orders")]
    assert payloads in (["x", "z"], ["x", "y", "z"])
