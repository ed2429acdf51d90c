"""``sync_policy: always``: who shares an fsync, who waits for it, and what its failure means."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from keyop import (
    LogFailedError,
    Messenger,
    MessengerClosedError,
    PublishTimeoutError,
    StorageError,
)
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs, Held
from tests.fakes.recording import (
    Mark,
    Open,
    RecordingFs,
    SyncBegin,
    SyncEnd,
    Write,
    crash_states,
    materialise,
)

from .helpers import (
    Recorder,
    Worker,
    crc_holds,
    log_bytes,
    read_all,
    records,
    running,
    segments,
    wait_until,
)

ALWAYS = {"sync_policy": "always"}
SYNCS = ("fdatasync", "fsync")


@contextmanager
def always(data_dir: Path, fs: Any = None, **storage: Any) -> Iterator[Messenger]:
    """Give a messenger that syncs before each publish returns."""
    seams = {} if fs is None else {"fs": fs}
    with running(data_dir, storage={**ALWAYS, **storage}, seams=seams) as messenger:
        yield messenger


class HeldSyncs:
    """Every sync of a segment stands still, in its thread, until the block ends."""

    def __init__(self, fs: FaultyFs, path: str = ".jsonl") -> None:
        self._holds: list[Held] = [fs.hold(operation, path) for operation in SYNCS]

    @property
    def entered(self) -> int:
        return sum(held.entered for held in self._holds)

    def wait_entered(self, count: int = 1) -> None:
        wait_until(lambda: self.entered >= count, 10, "a sync to begin")

    def release(self) -> None:
        for held in self._holds:
            held.release()

    def __enter__(self) -> HeldSyncs:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FailingSync:
    """The next sync of a segment fails, whichever call makes it, within the block."""

    def __init__(self, fs: FaultyFs, path: str = ".jsonl") -> None:
        self._faults = [fs.fail(op, errno.EIO, path_contains=path) for op in SYNCS]

    @property
    def hits(self) -> int:
        return sum(fault.hits for fault in self._faults)

    def __enter__(self) -> FailingSync:
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self._faults:
            fault.times = 0


def count_syncs(fs: FaultyFs, path: str = ".jsonl") -> Callable[[], int]:
    """Return how to ask for the number of syncs of segments from now on."""
    counters = [fs.fail(op, errno.EIO, nth=10**9, path_contains=path) for op in SYNCS]
    return lambda: sum(counter.seen for counter in counters)


def payloads(data_dir: Path, channel: str = "orders") -> list[Any]:
    return [each["payload"] for each in records(data_dir, channel)]


def assert_contiguous(data_dir: Path, channel: str = "orders") -> None:
    for old, new in itertools.pairwise(segments(data_dir, channel)):
        assert int(old.stem) + old.stat().st_size == int(new.stem)


def assert_covered(fs: RecordingFs) -> int:
    """Check each mark's record: written, then a sync of its file begun, ended, then marked.

    Returns:
        How many marks there were.
    """
    paths: dict[int, str] = {}
    written: dict[str, tuple[int, str]] = {}
    begun: dict[int, tuple[int, str]] = {}
    # For each file, how far a sync that has ended covers the list of operations.
    safe: dict[str, int] = {}
    marks = 0
    for at, operation in enumerate(fs.ops):
        match operation:
            case Open(handle, path, _):
                paths[handle] = path
            case Write(handle, _, data) if paths[handle].endswith(".jsonl"):
                for line in data.splitlines():
                    written[json.loads(line)["id"]] = at, paths[handle]
            case SyncBegin(handle, sync):
                begun[sync] = at, paths[handle]
            case SyncEnd(sync, True):
                since, path = begun[sync]
                safe[path] = max(since, safe.get(path, 0))
            case Mark(message_id):
                at_write, path = written[message_id]
                assert at_write < safe.get(path, -1), f"{message_id} was confirmed too early"
                marks += 1
    return marks


# --- sharing


def test_many_publishers_share_a_sync(tmp_path: Path) -> None:
    """Those who publish during one sync are served by the next: far fewer syncs than records."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", "first")
        syncs = count_syncs(fs)
        for operation in SYNCS:
            fs.delay(operation, 0.005, ".jsonl")

        def work(who: int) -> None:
            for n in range(10):
                messenger.publish("orders", "t", [who, n])

        gevent.joinall([gevent.spawn(work, who) for who in range(64)], raise_error=True)
        assert 10 <= syncs() <= 64
    assert len(records(tmp_path, "orders")) == 641


def test_alone_means_one_sync_each(tmp_path: Path) -> None:
    """A single publisher gets a sync of its own for each record, no more and no fewer."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", "first")
        syncs = count_syncs(fs)
        for n in range(20):
            messenger.publish("orders", "t", n)
            assert syncs() == n + 1


def test_channels_sync_on_their_own(tmp_path: Path) -> None:
    """A sync that hangs holds up its own channel only."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        messenger.publish("invoices", "t", 0)
        with HeldSyncs(fs, "orders/") as held:
            waiting = gevent.spawn(messenger.publish, "orders", "t", 1)
            held.wait_entered()
            for n in range(20):
                messenger.publish("invoices", "t", n, timeout=10)
            messenger.publish("new-channel", "t", 1, timeout=10)
            assert not waiting.ready()
        waiting.get(timeout=10)


# --- waiting


@pytest.mark.parametrize("segment", [1 << 20, 1200], ids=["one segment", "rolls"])
def test_return_means_covered(tmp_path: Path, segment: int) -> None:
    """``publish`` returns only after a sync that began behind its write has ended well."""
    fs = RecordingFs(tmp_path)
    rng = random.Random(7)

    def work(who: int) -> None:
        for n in range(12):
            if rng.random() < 0.2:
                ids = messenger.publish_batch("orders", [("t", [who, n])] * 3)
            else:
                ids = [messenger.publish("orders", "t", [who, n])]
            for each in ids:
                fs.mark(each)
            gevent.sleep(rng.choice((0, 0, 0.001)))

    with always(tmp_path, fs, max_segment_bytes=segment) as messenger:
        gevent.joinall([gevent.spawn(work, who) for who in range(16)], raise_error=True)
    assert assert_covered(fs) == len(records(tmp_path, "orders")) >= 192
    assert_contiguous(tmp_path)


def test_power_cuts_while_many_publish(tmp_path: Path) -> None:
    """After a power cut at any moment, whatever was confirmed to any greenlet is there."""
    data = tmp_path / "data"
    data.mkdir()
    fs = RecordingFs(data)

    def work(who: int) -> None:
        for n in range(6):
            fs.mark(messenger.publish("orders", "t", [who, n]))

    with always(data, fs, max_segment_bytes=1500) as messenger:
        gevent.joinall([gevent.spawn(work, who) for who in range(8)], raise_error=True)
    assert len(segments(data, "orders")) > 4
    for number, state in enumerate(crash_states(fs.ops, random.Random(3), 300)):
        left = tmp_path / f"state-{number}"
        materialise(state, left)
        lines = log_bytes(left, "orders").splitlines(True)
        there = {json.loads(line)["id"] for line in lines if crc_holds(line)}
        assert set(state.marks) <= there, state


def test_written_during_a_sync_waits_for_the_next(tmp_path: Path) -> None:
    """A record that was written after a sync had begun is not covered by it."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        with HeldSyncs(fs) as first:
            early = gevent.spawn(messenger.publish, "orders", "t", "early")
            first.wait_entered()
            late = gevent.spawn(messenger.publish, "orders", "t", "late")
            wait_until(lambda: payloads(tmp_path) == [0, "early", "late"])
            # Calls that begin from now on stand still here as well.
            with HeldSyncs(fs) as second:
                first.release()
                early.get(timeout=10)
                second.wait_entered()
                assert not late.ready()
            late.get(timeout=10)


def test_retry_during_the_sync_waits_for_it_too(tmp_path: Path) -> None:
    """An id that is in the log, but not on the disk yet, is not confirmed to the next caller.

    Who got ``PublishTimeoutError`` and tries again with the same id learns the truth.
    """
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        with HeldSyncs(fs):
            with pytest.raises(PublishTimeoutError) as caught:
                messenger.publish("orders", "t", 1, message_id="mine", timeout=0.1)
            assert caught.value.written is True
            with pytest.raises(PublishTimeoutError) as caught:
                messenger.publish("orders", "t", 1, message_id="mine", timeout=0.1)
            assert caught.value.written is True
            with pytest.raises(PublishTimeoutError):
                messenger.publish_batch("orders", [("t", 1)], message_id="mine", timeout=0.1)
            waiting = gevent.spawn(messenger.publish, "orders", "t", 1, message_id="mine")
            gevent.sleep(0.05)
            assert not waiting.ready()
        assert waiting.get(timeout=10) == "mine"
    assert [each["id"] for each in records(tmp_path, "orders")].count("mine") == 1


# --- killed publishers


def test_killed_publisher_strands_nobody(tmp_path: Path) -> None:
    """The first of those who wait for a sync is killed: the others are served all the same."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        with HeldSyncs(fs) as held:
            first = gevent.spawn(messenger.publish, "orders", "t", 1)
            held.wait_entered()
            others = [gevent.spawn(messenger.publish, "orders", "t", n) for n in range(2, 6)]
            wait_until(lambda: len(payloads(tmp_path)) == 6)
            with gevent.Timeout(5):
                first.kill()
            last = gevent.spawn(messenger.publish, "orders", "t", 6)
        gevent.joinall([*others, last], timeout=10, raise_error=True)
        assert all(each.successful() for each in (*others, last))
        messenger.publish("orders", "t", 7, timeout=10)
    assert payloads(tmp_path) == list(range(8))


def test_everybody_who_waits_is_killed(tmp_path: Path) -> None:
    """With all of them killed during the sync, the next one publishes as if nothing had been."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        with HeldSyncs(fs) as held:
            waiting = [gevent.spawn(messenger.publish, "orders", "t", n) for n in range(1, 6)]
            held.wait_entered()
            wait_until(lambda: len(payloads(tmp_path)) == 6)
            with gevent.Timeout(5):
                gevent.killall(waiting)
        messenger.publish("orders", "t", 6, timeout=10)
    assert payloads(tmp_path) == list(range(7))


def test_own_timeout_of_the_caller(tmp_path: Path) -> None:
    """A ``gevent.Timeout`` around ``publish`` ends the wait as a kill does, and harms nobody."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        with HeldSyncs(fs):
            other = gevent.spawn(messenger.publish, "orders", "t", 1)
            gevent.sleep(0)
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
                messenger.publish("orders", "t", 2)
        other.get(timeout=10)
        messenger.publish("orders", "t", 3, timeout=10)
    assert payloads(tmp_path) == [0, 1, 2, 3]


def test_random_kills(tmp_path: Path) -> None:
    """Publishers killed at any moment, through rolls: the rest finish, every line is whole."""
    rng = random.Random(11)
    fs = FaultyFs()
    for operation in SYNCS:
        fs.delay(operation, 0.001)
    confirmed: list[Any] = []

    def work(who: int) -> None:
        for n in range(15):
            messenger.publish("orders", "t", [who, n, "x" * 100])
            confirmed.append([who, n])

    with always(tmp_path, fs, max_segment_bytes=2000) as messenger:
        workers = [gevent.spawn(work, who) for who in range(20)]
        doomed = rng.sample(workers, 12)
        for each in doomed:
            gevent.sleep(rng.random() * 0.01)
            with gevent.Timeout(5):
                each.kill()
        survivors = [each for each in workers if each not in doomed]
        gevent.joinall(survivors, timeout=40)
        assert all(each.successful() for each in survivors)
        messenger.publish("orders", "t", ["end", 0], timeout=10)
    lines = log_bytes(tmp_path, "orders").splitlines(True)
    assert all(crc_holds(line) for line in lines)
    there = [payload[:2] for payload in payloads(tmp_path)]
    assert all(each in there for each in confirmed)
    assert len({tuple(each) for each in there}) == len(there)
    assert_contiguous(tmp_path)


# --- rolls


def test_roll_during_a_sync(tmp_path: Path) -> None:
    """A roll waits for the sync in flight; other greenlets and other channels do not."""
    fs = FaultyFs()
    with always(tmp_path, fs, max_segment_bytes=600) as messenger:
        messenger.publish("orders", "t", "x" * 100)
        with HeldSyncs(fs, "orders/") as held:
            first = gevent.spawn(messenger.publish, "orders", "t", 1)
            held.wait_entered()
            rolling = [
                gevent.spawn(messenger.publish, "orders", "t", [n, "x" * 400]) for n in (2, 3)
            ]
            for n in range(10):  # this greenlet is one of the others
                messenger.publish("invoices", "t", n, timeout=10)
                gevent.sleep(0.005)
            assert not first.ready()
            assert not any(each.ready() for each in rolling)
        gevent.joinall([first, *rolling], timeout=10, raise_error=True)
        assert first.successful()
        assert all(each.successful() for each in rolling)
    assert len(segments(tmp_path, "orders")) >= 2
    assert_contiguous(tmp_path)
    assert sorted(p if p == 1 else p[0] for p in payloads(tmp_path)[1:]) == [1, 2, 3]


@pytest.mark.parametrize("policy", ["none", "periodic", "always"])
def test_sync_of_a_roll_holds_up_nobody(tmp_path: Path, policy: str) -> None:
    """The fsyncs of a roll, of the old segment and of the directory, run beside the loop."""
    fs = FaultyFs()
    storage = {"sync_policy": policy, "max_segment_bytes": 600}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "x" * 400)
        with fs.hold("fsync", "orders") as one, fs.hold("fdatasync", "orders") as two:
            rolling = gevent.spawn(messenger.publish, "orders", "t", "y" * 400)
            # That this greenlet runs on is the point: an fsync in the loop would stop it too.
            wait_until(lambda: one.entered + two.entered, what="an fsync to begin")
            messenger.publish("invoices", "t", 1, timeout=10)
        rolling.get(timeout=10)
    assert len(segments(tmp_path, "orders")) == 2


# --- others


def test_slow_sync_holds_up_nobody(tmp_path: Path) -> None:
    """While each fsync takes 100 ms, another greenlet's millisecond timer goes on ticking."""
    fs = FaultyFs()
    for operation in SYNCS:
        fs.delay(operation, 0.1)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.001)
            ticks += 1

    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        ticker = gevent.spawn(tick)
        try:
            started = time.monotonic()
            for n in range(10):
                messenger.publish("orders", "t", n)
            assert time.monotonic() - started >= 1.0
        finally:
            ticker.kill()
    # With the fsync in the loop it would tick once or twice for each of them.
    assert ticks > 150


def test_slow_sync_does_not_hold_up_subscribers(tmp_path: Path) -> None:
    """Handlers of another channel run while a sync stands still."""
    fs = FaultyFs()
    seen = Recorder()
    with always(tmp_path, fs) as messenger:
        messenger.publish_batch("invoices", [("t", n) for n in range(50)])
        messenger.publish("orders", "t", 0)
        with HeldSyncs(fs, "channels/orders/") as held:
            waiting = gevent.spawn(messenger.publish, "orders", "t", 1)
            held.wait_entered()
            messenger.subscribe("invoices", "s", seen, start="earliest")
            assert seen.wait(50, timeout=20) == list(range(50))
            assert not waiting.ready()
        waiting.get(timeout=10)


# --- deadlines


def test_timeout_during_the_sync(tmp_path: Path) -> None:
    """``written`` is True: the record is in the log, is delivered, and its order is kept."""
    fs = FaultyFs()
    seen = Recorder()
    with always(tmp_path, fs) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", 0)
        with HeldSyncs(fs):
            for n in (1, 2):
                started = time.monotonic()
                with pytest.raises(PublishTimeoutError) as caught:
                    messenger.publish("orders", "t", n, timeout=0.1)
                assert caught.value.written is True
                assert 0.09 < time.monotonic() - started < 5
            assert payloads(tmp_path) == [0, 1, 2]
        messenger.publish("orders", "t", 3, timeout=10)
        assert seen.wait(4) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_timeout_of_a_batch_during_the_sync(tmp_path: Path, count: int) -> None:
    """For a batch ``written`` counts its records, all of which are in the log."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", "first")
        with HeldSyncs(fs), pytest.raises(PublishTimeoutError) as caught:
            messenger.publish_batch("orders", [("t", n) for n in range(count)], timeout=0.1)
        assert caught.value.written == count
        assert type(caught.value.written) is int
    assert payloads(tmp_path) == ["first", *range(count)]


def test_timeout_before_the_write(tmp_path: Path) -> None:
    """Who does not even get to write, behind a roll that stands still, has written nothing."""
    fs = FaultyFs()
    with always(tmp_path, fs, max_segment_bytes=600) as messenger:
        messenger.publish("orders", "t", "x" * 300)
        before = log_bytes(tmp_path, "orders")
        with HeldSyncs(fs, "orders/"):
            for _ in range(2):
                with gevent.Timeout(10), pytest.raises(PublishTimeoutError) as caught:
                    messenger.publish("orders", "t", "y" * 300, timeout=0.1)
                assert caught.value.written is False
            assert log_bytes(tmp_path, "orders") == before
        messenger.publish("orders", "t", "z" * 300, timeout=10)
    assert [payload[0] for payload in payloads(tmp_path)] == ["x", "z"]
    assert_contiguous(tmp_path)


# --- closing


def test_close_during_the_sync(tmp_path: Path) -> None:
    """Closing ends in time though a sync does not; those who wait learn what is in the log."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", "first")
        with HeldSyncs(fs) as held:
            single = gevent.spawn(messenger.publish, "orders", "t", 1)
            held.wait_entered()
            batch = gevent.spawn(messenger.publish_batch, "orders", [("t", 2), ("t", 3)])
            wait_until(lambda: len(payloads(tmp_path)) == 4)
            started = time.monotonic()
            messenger.close(timeout=0.5)
            assert time.monotonic() - started < 5
            for waiting, written in ((single, True), (batch, 2)):
                with pytest.raises(MessengerClosedError) as caught:
                    waiting.get(timeout=5)
                assert caught.value.written == written
                assert type(caught.value.written) is type(written)
        with pytest.raises(MessengerClosedError):
            messenger.publish("orders", "t", 4)
    assert payloads(tmp_path) == ["first", 1, 2, 3]
    assert [message.payload for message in read_all(tmp_path, "orders", 4)] == ["first", 1, 2, 3]


def test_close_lets_a_short_sync_end(tmp_path: Path) -> None:
    """A sync that ends within the timeout of ``close`` leaves no publisher in doubt twice.

    Each either returns, its record synced, or raises ``MessengerClosedError`` that tells.
    """
    fs = FaultyFs()
    results: list[Any] = []

    def work(n: int) -> None:
        try:
            messenger.publish("orders", "t", n)
        except MessengerClosedError as error:
            results.append((n, error.written))
        else:
            results.append((n, True))

    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", "first")
        for operation in SYNCS:
            fs.delay(operation, 0.1, ".jsonl")
        workers = [gevent.spawn(work, n) for n in range(10)]
        gevent.sleep(0.02)
        messenger.close(timeout=8)
        gevent.joinall(workers, timeout=10)
    there = payloads(tmp_path)
    assert sorted(n for n, _ in results) == list(range(10))
    assert all((n in there) == written for n, written in results)


# --- a failed sync


def test_failed_sync_tells_everybody_who_waits(tmp_path: Path) -> None:
    """All who wait for a sync that fails get ``LogFailedError``, those of the next round too.

    The file is not synced again.
    """
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        with FailingSync(fs) as failing, HeldSyncs(fs) as held:
            waiting = [gevent.spawn(messenger.publish, "orders", "t", 1)]
            held.wait_entered()
            waiting += [gevent.spawn(messenger.publish, "orders", "t", n) for n in range(2, 6)]
            waiting.append(gevent.spawn(messenger.publish_batch, "orders", [("t", 6), ("t", 7)]))
            wait_until(lambda: len(payloads(tmp_path)) == 8)
            held.release()
            for each in waiting:
                with pytest.raises(LogFailedError):
                    each.get(timeout=10)
            assert (failing.hits, held.entered) == (1, 1)
        left, syncs = log_bytes(tmp_path, "orders"), count_syncs(fs)
        for _ in range(3):
            with pytest.raises(LogFailedError):
                messenger.publish("orders", "t", "refused", timeout=10)
        assert log_bytes(tmp_path, "orders") == left
        assert syncs() == 0
        (stats,) = messenger.stats().channels
        assert stats.failed


def fail_log(messenger: Messenger, fs: FaultyFs, payload: Any = "unknown") -> None:
    """Publish a record whose sync fails."""
    with FailingSync(fs) as failing, pytest.raises(LogFailedError):
        messenger.publish("orders", "t", payload)
    assert failing.hits == 1


def test_failed_log_is_still_read(tmp_path: Path) -> None:
    """A running subscriber goes on reading what is in the log of a failed channel."""
    fs = FaultyFs()
    gate = gevent.event.Event()
    seen = Recorder(lambda message: gate.wait(10))
    with always(tmp_path, fs) as messenger:
        subscription = messenger.subscribe("orders", "s", seen)
        for n in range(5):
            messenger.publish("orders", "t", n)
        fail_log(messenger, fs)
        gate.set()
        assert seen.wait(5)[:5] == list(range(5))
        drain(messenger)
        subscription.stop()


def test_failed_log_takes_subscribers(tmp_path: Path) -> None:
    """A failed log refuses appends; who wants to read what it holds may subscribe."""
    fs = FaultyFs()
    seen = Recorder()
    with always(tmp_path, fs) as messenger:
        for n in range(5):
            messenger.publish("orders", "t", n)
        fail_log(messenger, fs)
        messenger.subscribe("orders", "s", seen, start="earliest")
        assert seen.wait(5)[:5] == list(range(5))


def test_retry_after_a_failed_sync(tmp_path: Path) -> None:
    """After ``reopen`` an id whose sync failed is not confirmed on the strength of that record.

    Whether the failed segment has it is unknown, so a ``publish`` that returns has written it.
    """
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        with FailingSync(fs), pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 1, message_id="mine")
        messenger.reopen("orders")
        assert messenger.publish("orders", "t", 1, message_id="mine") == "mine"
        messenger.publish("orders", "t", 2)
    lines = segments(tmp_path, "orders")[-1].read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in lines][:1] == ["mine"]


def test_reopen_again_and_again(tmp_path: Path) -> None:
    """Each ``reopen`` goes on in a new segment; readers pass from one to the next."""
    fs = FaultyFs()
    seen = Recorder()
    with always(tmp_path, fs) as messenger:
        messenger.subscribe("orders", "s", seen)
        sizes: dict[str, int] = {}
        for n in range(4):
            messenger.publish("orders", "t", ["good", n])
            fail_log(messenger, fs, ["unknown", n])
            # An empty one may be behind it already, to keep everybody off.
            failed = [path for path in segments(tmp_path, "orders") if path.stat().st_size][-1]
            sizes[failed.name] = failed.stat().st_size
            messenger.reopen("orders")
        messenger.publish("orders", "t", ["good", 4])
        drain(messenger)
    paths = segments(tmp_path, "orders")
    assert {path.name: path.stat().st_size for path in paths[:-1]} == sizes
    assert len(paths) == 5
    assert_contiguous(tmp_path)
    assert [n for kind, n in seen.payloads if kind == "good"] == [0, 1, 2, 3, 4]
    assert [message.payload for message in read_all(tmp_path, "orders", len(seen.messages))] == (
        seen.payloads
    )


def test_reopen_of_a_healthy_log(tmp_path: Path) -> None:
    """``reopen`` where nothing has failed loses nothing."""
    with always(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        messenger.reopen("orders")
        messenger.publish("orders", "t", 1)
        messenger.reopen("never-seen")
    assert payloads(tmp_path) == [0, 1]
    assert_contiguous(tmp_path)


def test_reopen_that_fails(tmp_path: Path) -> None:
    """A ``reopen`` that cannot make its segment says so; the channel stays failed, then works."""
    fs = FaultyFs()
    with always(tmp_path, fs) as messenger:
        messenger.publish("orders", "t", 0)
        fs.fail("open", errno.EIO, times=None, path_contains=".jsonl")
        fail_log(messenger, fs)
        left = log_bytes(tmp_path, "orders")
        with pytest.raises(StorageError):
            messenger.reopen("orders")
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 2)
        fs.heal()
        assert log_bytes(tmp_path, "orders") == left
        messenger.reopen("orders")
        messenger.publish("orders", "t", 3)
    assert payloads(tmp_path)[0] == 0
    assert payloads(tmp_path)[-1] == 3
    assert 2 not in payloads(tmp_path)


def test_periodic_sync_that_fails(tmp_path: Path) -> None:
    """Under ``periodic`` a sync that fails in the background stops the log as well."""
    fs = FaultyFs()
    storage = {"sync_policy": "periodic", "sync_interval_ms": 10}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        with FailingSync(fs) as failing:
            messenger.publish("orders", "t", 1)
            wait_until(lambda: failing.hits, 10, "the ticker's sync")
        wait_until(lambda: messenger.stats().channels[0].failed)
        syncs = count_syncs(fs)
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 2)
        gevent.sleep(0.05)
        assert syncs() == 0
        messenger.reopen("orders")
        messenger.publish("orders", "t", 3)
    assert payloads(tmp_path) == [0, 1, 3]


def test_failed_sync_of_a_roll(tmp_path: Path) -> None:
    """A roll whose fsync fails does not go on as if it had not: the log stops."""
    fs = FaultyFs()
    storage = {"sync_policy": "none", "max_segment_bytes": 600}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", "x" * 400)
        (segment,) = segments(tmp_path, "orders")
        with FailingSync(fs, segment.name) as failing, pytest.raises(LogFailedError):
            messenger.publish("orders", "t", "y" * 400)
        assert failing.hits == 1
        left = segment.read_bytes()
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 1)
        messenger.reopen("orders")
        messenger.publish("orders", "t", 2)
        assert segment.read_bytes() == left
    assert payloads(tmp_path)[-1] == 2


# --- other processes and a failed segment

OTHER = """
m = make(sync_policy="always")
def publish(text):
    try:
        m.publish("orders", "t", text)
    except LogFailedError:
        return "refused"
    return "written"
if sys.argv[2] == "before":
    say("opened", publish("hello"))
wait_for(sys.argv[3])
say("failed", publish("while failed"))
wait_for(sys.argv[4])
answer = publish("after")
if answer == "refused":
    m.reopen("orders")
    answer = publish("after")
say("reopened", answer)
m.close()
"""


@pytest.mark.parametrize("opened", ["before", "after"])
def test_other_processes_never_append_to_a_failed_segment(tmp_path: Path, opened: str) -> None:
    """Whether they opened the log before or after the failure, they leave that segment alone.

    They are refused or go on in a new segment; once the channel was reopened they work.
    """
    fs = FaultyFs()
    data, failed, reopened = tmp_path / "data", tmp_path / "failed", tmp_path / "reopened"
    with always(data, fs) as messenger, Worker(OTHER, data, opened, failed, reopened) as worker:
        messenger.publish("orders", "t", 0)
        if opened == "before":
            assert worker.wait_line("opened", 30) == "opened written"
        messenger.publish("orders", "t", 1)
        (segment,) = segments(data, "orders")
        fail_log(messenger, fs)
        left = segment.read_bytes()
        failed.touch()
        answer = worker.wait_line("failed", 30)
        assert segment.read_bytes() == left
        messenger.reopen("orders")
        messenger.publish("orders", "t", 2)
        reopened.touch()
        assert worker.wait_line("reopened", 30) == "reopened written"
        worker.wait()
        messenger.publish("orders", "t", 3)
        assert segment.read_bytes() == left
    assert_contiguous(data)
    there = payloads(data)
    assert ("while failed" in there) == (answer == "failed written")
    assert [n for n in there if n in (0, 1, 2, 3, "after")] == [0, 1, 2, "after", 3]
    assert len(segments(data, "orders")) >= 2


@pytest.mark.parametrize("end", ["close", "kill"])
def test_failed_segment_after_a_restart(tmp_path: Path, end: str) -> None:
    """Nor is the segment appended to after the process that met the failure has ended.

    When ``LogFailedError`` reaches the caller, others are kept from it already.
    """
    code = """
    import errno
    from tests.fakes.faulty import FaultyFs
    fs = FaultyFs()
    m = Messenger(Config.from_dict({"name": "w", "storage": {"data_dir": data_dir,
        "sync_policy": "always"}}), fs=fs)
    m.publish("orders", "t", 0)
    for sync in ("fdatasync", "fsync"):
        fs.fail(sync, errno.EIO, path_contains=f"{0:020}.jsonl")
    fs.delay("open", 0.3, path_contains="orders")  # whatever is done about it takes its time
    try:
        m.publish("orders", "t", "unknown")
    except LogFailedError:
        say("failed")
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), 9)
    m.close()
    """
    with Worker(code, tmp_path, end) as worker:
        worker.wait_line("failed", 30)
        wait_until(lambda: worker.process.poll() is not None, 20)
    segment = segments(tmp_path, "orders")[0]
    left = segment.read_bytes()
    with always(tmp_path) as messenger:
        try:
            messenger.publish("orders", "t", 1)
        except LogFailedError:
            messenger.reopen("orders")
            messenger.publish("orders", "t", 1)
    assert segment.read_bytes() == left
    assert payloads(tmp_path)[0] == 0
    assert payloads(tmp_path)[-1] == 1
    assert_contiguous(tmp_path)


def test_two_processes_share_a_channel_under_always(tmp_path: Path) -> None:
    """Two processes that publish durably, with rolls: each record once, in order, contiguous."""
    code = """
    m = make(sync_policy="always", max_segment_bytes=2000)
    def work(who):
        for n in range(20):
            m.publish("orders", "t", ["other", who, n])
    m.start()
    say("ready")
    wait_for(sys.argv[2])
    gevent.joinall([gevent.spawn(work, who) for who in range(5)], raise_error=True)
    m.close()
    """
    go, data = tmp_path / "go", tmp_path / "data"
    with always(data, max_segment_bytes=2000) as messenger, Worker(code, data, go) as worker:

        def work(who: int) -> None:
            for n in range(20):
                messenger.publish("orders", "t", ["here", who, n])

        worker.wait_line("ready", 30)
        go.touch()
        gevent.joinall([gevent.spawn(work, who) for who in range(5)], raise_error=True)
        worker.wait(40)
    assert_contiguous(data)
    there = payloads(data)
    assert len(there) == 200
    for place, who in itertools.product(("here", "other"), range(5)):
        mine = [n for where, whose, n in there if (where, whose) == (place, who)]
        assert mine == list(range(20))


def test_no_descriptor_is_synced_after_it_was_closed(tmp_path: Path) -> None:
    """Through many rolls with syncs in flight, no sync meets a descriptor that is gone.

    A number that was closed and given to another file would be synced in silence.
    """
    fs = FaultyFs()
    wrong: list[Any] = []
    inner = {operation: getattr(fs, operation) for operation in SYNCS}

    def checked(operation: str) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            path = fs.open_paths.get(fd)
            before = os.readlink(f"/proc/self/fd/{fd}") if path else None
            inner[operation](fd)
            after = os.readlink(f"/proc/self/fd/{fd}") if fd in fs.open_paths else None
            if path is None or before != after:
                wrong.append((operation, path, before, after))

        return sync

    for operation in SYNCS:
        fs.delay(operation, 0.001)
        setattr(fs, operation, checked(operation))

    def work(who: int) -> None:
        for n in range(10):
            messenger.publish("orders", "t", [who, n, "x" * 200])

    with always(tmp_path, fs, max_segment_bytes=1000) as messenger:
        gevent.joinall([gevent.spawn(work, who) for who in range(10)], raise_error=True)
    assert wrong == []
    assert len(records(tmp_path, "orders")) == 100
