"""``Messenger.stats()``: its figures, and that asking for them disturbs nothing."""

from __future__ import annotations

import datetime
import errno
import time
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from keyop import (
    ChannelStats,
    LogFailedError,
    Message,
    Messenger,
    RetryLater,
    Stats,
    StorageError,
    SubscriberStats,
)
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs

from .helpers import (
    FAST_BACKOFF,
    Recorder,
    Worker,
    config,
    dead_letters,
    log_bytes,
    offset_path,
    record,
    running,
    segments,
    tree,
    wait_until,
    write_offset,
    write_segment,
)


def channel(messenger: Messenger, name: str = "orders") -> ChannelStats:
    (found,) = (each for each in messenger.stats().channels if each.channel == name)
    return found


def subscriber(messenger: Messenger, subscriber_id: str = "s") -> SubscriberStats:
    (found,) = (
        each for each in channel(messenger).subscribers if each.subscriber_id == subscriber_id
    )
    return found


OLD = "2020-01-01T00:00:00Z"


def now_ts() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def fail(message: Message) -> None:
    raise ValueError("no")


def test_of_an_empty_directory(tmp_path: Path) -> None:
    """A messenger without a channel says who and where it is."""
    with running(tmp_path / "data", name="shop") as messenger:
        messenger.start()
        stats = messenger.stats()
    assert isinstance(stats, Stats)
    assert stats.instance_name == "shop"
    assert Path(stats.data_dir) == tmp_path / "data"
    assert list(stats.channels) == []


def test_is_a_frozen_picture(tmp_path: Path) -> None:
    """What was returned stays as it was, and cannot be changed."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        before = messenger.stats()
        end = before.channels[0].end_offset
        messenger.publish("orders", "t", 2)
        assert before.channels[0].end_offset == end
        assert channel(messenger).end_offset > end
        for each, name in (
            (before, "instance_name"),
            (before.channels[0], "end_offset"),
            (before, "no_such_figure"),
        ):
            with pytest.raises((AttributeError, TypeError)):
                setattr(each, name, 1)


def test_channels_are_listed_once_in_order(tmp_path: Path) -> None:
    """Every channel of the directory is there, by name, dead letters and unused ones included."""
    write_segment(tmp_path, "from-before", 0, record(1))
    with running(tmp_path) as messenger:
        for name in ("zebra", "alpha", "Orders"):
            messenger.publish(name, "t", 1)
        messenger.subscribe("alpha", "s", fail, max_retries=0, start="earliest")
        messenger.subscribe("only-subscribed", "s", Recorder())
        drain(messenger)
        names = [each.channel for each in messenger.stats().channels]
    wanted = {"zebra", "alpha", "Orders", "alpha.dead-letter", "from-before", "only-subscribed"}
    assert names == sorted(wanted)


def test_offsets_and_sizes_through_rolls_and_sweeps(tmp_path: Path) -> None:
    """Offsets are global: a deleted segment moves the start, never the end."""
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        for n in range(40):
            messenger.publish("orders", "t", n)
        drain(messenger)
        before = channel(messenger)
        size = len(log_bytes(tmp_path, "orders"))
        assert (before.start_offset, before.end_offset, before.disk_bytes) == (0, size, size)
        assert before.segments == len(segments(tmp_path, "orders")) > 3
        messenger.sweep()
        after = channel(messenger)
        (left,) = segments(tmp_path, "orders")
        assert (after.start_offset, after.end_offset) == (int(left.stem), size)
        assert (after.segments, after.disk_bytes) == (1, left.stat().st_size)


def test_lag_and_offset(tmp_path: Path) -> None:
    """The lag of a subscriber is what it has not committed, running or not."""
    gate = gevent.event.Event()
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders", "s", lambda message: gate.wait(20))
        messenger.publish_batch("orders", [("t", n) for n in range(3)])
        end = len(log_bytes(tmp_path, "orders"))
        gevent.sleep(0.02)
        now = subscriber(messenger)
        assert (now.offset, now.lag_bytes, now.running) == (0, end, True)
        gate.set()
        drain(messenger)
        now = subscriber(messenger)
        assert (now.offset, now.lag_bytes, now.running) == (end, 0, True)
        subscription.stop()
        messenger.publish("orders", "t", 4)
        now = subscriber(messenger)
        assert (now.offset, now.running) == (end, False)
        assert now.lag_bytes == len(log_bytes(tmp_path, "orders")) - end


def test_positions_at_an_interval_do_not_show_as_lag(tmp_path: Path) -> None:
    """Where positions are saved later, the figures are still those of what is done."""
    storage = {"offset_flush_interval_ms": 60_000}
    with running(tmp_path, storage=storage) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 1)
        drain(messenger)
        assert subscriber(messenger).lag_bytes == 0


@pytest.mark.parametrize("concurrency", [1, 3])
def test_counters(tmp_path: Path, concurrency: int) -> None:
    """Each outcome is counted once: deliveries, retries, dead letters, damage, age, drops."""
    lines = [record(n, ts=OLD) for n in range(3)]
    broken = record("broken", ts=now_ts()).replace(b"broken", b"BROKEN")
    write_segment(tmp_path, "orders", 0, b"".join(lines))
    # A gap: what lies between is gone.
    start = sum(map(len, lines)) + 1000
    young = record("young", ts=now_ts())
    write_segment(tmp_path, "orders", start, young + broken + record("fine", ts=now_ts()))
    later = iter([True, False])

    def handle(message: Message) -> None:
        if message.payload == "fail":
            raise ValueError("no")
        if message.payload == "once" and message.attempt == 1:
            raise ValueError("not yet")
        if message.payload == "later" and next(later):
            raise RetryLater(0.001)

    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders",
            "s",
            handle,
            start="earliest",
            max_age=86400 if concurrency == 1 else None,
            max_retries=2,
            retry_backoff=FAST_BACKOFF,
            concurrency=concurrency,
        )
        messenger.publish_batch("orders", [("t", each) for each in ("fail", "once", "later")])
        drain(messenger)
        now = subscriber(messenger)
    expired = 3 if concurrency == 1 else 0
    assert now.expired == expired
    # Handled well: two behind the gap, "once", "later", and the old ones unless too old.
    assert now.delivered == 4 + 3 - expired
    assert now.corrupt == 1
    assert now.dead_letters == 2  # the damaged one, and the failing one
    assert now.retries >= 3  # two of "fail", one of "once"
    assert now.dropped_bytes == 1000


@pytest.mark.parametrize("age", [None, 86400])
def test_damage_among_old_messages_is_counted(tmp_path: Path, age: float | None) -> None:
    """A damaged record is reported as such though its time, which is not to be trusted, is old."""
    broken = record("broken", ts=OLD).replace(b"broken", b"BROKEN")
    fine = record("fine", ts=now_ts())
    write_segment(tmp_path, "orders", 0, record(1, ts=OLD) + broken + fine)
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen, start="earliest", max_age=age)
        drain(messenger)
        now = subscriber(messenger)
    assert seen.payloads[-1] == "fine"
    assert (now.corrupt, now.dead_letters) == (1, 1)
    assert now.expired == (1 if age else 0)
    assert len(dead_letters(tmp_path, "orders")) == 1


def test_counters_belong_to_the_messenger(tmp_path: Path) -> None:
    """Counters begin with the process; positions and sizes are the directory's."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 1)
        drain(messenger)
        assert subscriber(messenger).delivered == 1
    with running(tmp_path) as messenger:
        messenger.start()
        now = subscriber(messenger)
        assert (now.delivered, now.running, now.lag_bytes) == (0, False, 0)


def test_subscribers_of_another_process(tmp_path: Path) -> None:
    """What runs elsewhere is seen by its position; that it runs, only there."""
    code = """
    m = make()
    m.subscribe("orders", "theirs", lambda message: None)
    say("ready")
    wait_for(sys.argv[2])
    m.close()
    """
    go, data = tmp_path / "go", tmp_path / "data"
    with running(data) as messenger, Worker(code, data, go) as worker:
        worker.wait_line("ready", 30)
        messenger.publish("orders", "t", 1)
        wait_until(lambda: subscriber(messenger, "theirs").lag_bytes == 0, 10)
        now = subscriber(messenger, "theirs")
        assert (now.running, now.delivered) == (False, 0)
        go.touch()
        worker.wait()


def test_peers_positions_are_listed(tmp_path: Path) -> None:
    """Positions of peers and hubs hold segments, so they are shown with their lag."""
    write_segment(tmp_path, "orders", 0, record(1) + record(2))
    write_offset(tmp_path, "orders", "fed-peer", len(record(1)))
    with running(tmp_path) as messenger:
        messenger.start()
        now = subscriber(messenger, "fed-peer")
    assert (now.offset, now.lag_bytes) == (len(record(1)), len(record(2)))


def test_failed_channel_says_why(tmp_path: Path) -> None:
    """A channel that takes no more records is told from one that does, until it is reopened."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.publish("invoices", "t", 1)
        assert channel(messenger).failed is None
        for operation in ("fdatasync", "fsync"):
            fs.fail(operation, errno.EIO, path_contains="orders/")
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 2)
        fs.heal()
        why = channel(messenger).failed
        assert isinstance(why, str)
        assert "Input/output error" in why
        assert channel(messenger, "invoices").failed is None
        messenger.reopen("orders")
        assert channel(messenger).failed is None


def test_asking_changes_nothing(tmp_path: Path) -> None:
    """However often it is asked, no file is made or changed, and no descriptor opened for long."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.subscribe("orders", "s", Recorder(), start="earliest")
        drain(messenger)
        before = tree(tmp_path)
        for _ in range(200):
            messenger.stats()
        assert tree(tmp_path) == before


def test_asking_while_much_happens(tmp_path: Path) -> None:
    """Between publishes, rolls, handlers and sweeps it never fails, and figures fit together."""
    with running(tmp_path, storage={"max_segment_bytes": 2000}) as messenger:
        messenger.subscribe("orders", "s", Recorder())
        stop = gevent.event.Event()

        def ask() -> int:
            count = 0
            while not stop.is_set():
                for each in messenger.stats().channels:
                    assert each.start_offset <= each.end_offset
                    for one in each.subscribers:
                        assert one.offset is not None
                        assert one.lag_bytes is not None
                        assert one.lag_bytes >= 0
                        assert one.offset <= each.end_offset
                count += 1
                gevent.sleep(0.001)
            return count

        asking = gevent.spawn(ask)
        try:
            for n in range(1500):
                messenger.publish("orders", "t", n)
                if n % 100 == 0:
                    messenger.sweep()
        finally:
            stop.set()
        assert asking.get(timeout=10) > 3


def test_many_channels_are_quick(tmp_path: Path) -> None:
    """A directory of hundreds of channels does not make asking slow, nor hold others up."""
    for n in range(300):
        write_segment(tmp_path, f"channel-{n}", 0, record(n))
        write_offset(tmp_path, f"channel-{n}", "s", 0)
    with running(tmp_path) as messenger:
        messenger.start()
        cpu = time.process_time()
        stats = messenger.stats()
        assert time.process_time() - cpu < 2
    assert len(stats.channels) == 300
    assert all(each.subscribers[0].lag_bytes for each in stats.channels)


def test_before_the_start_and_after_the_end(tmp_path: Path) -> None:
    """It starts the messenger or says that it cannot answer; a closed one does no harm either."""
    messenger = Messenger(config(tmp_path / "data"))
    try:
        stats: Any = None
        try:
            stats = messenger.stats()
        except StorageError:
            pass
        assert stats is None or list(stats.channels) == []
        messenger.publish("orders", "t", 1)
    finally:
        messenger.close()
    before = tree(tmp_path)
    try:
        found = messenger.stats()
    except Exception as error:
        found = None
        assert "closed" in str(error)  # noqa: PT017 -- either is fine
    assert found is None or found.channels[0].end_offset == len(
        log_bytes(tmp_path / "data", "orders")
    )
    assert tree(tmp_path) == before


def test_foreign_files_are_passed_over(tmp_path: Path) -> None:
    """What is neither a segment nor a position is not counted."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        size = len(log_bytes(tmp_path, "orders"))
        (tmp_path / "channels" / "orders" / "notes.txt").write_bytes(b"x" * 1000)
        (tmp_path / "channels" / "not a name").mkdir()
        (tmp_path / "subscribers" / "not a name").mkdir(parents=True)
        write_offset(tmp_path, "orders", "s", 0)
        offset_path(tmp_path, "orders", "s").with_suffix(".offset.tmp").write_bytes(b"7\n")
        now = channel(messenger)
        assert (now.disk_bytes, now.segments) == (size, 1)
        assert [each.subscriber_id for each in now.subscribers] == ["s"]
        assert [each.channel for each in messenger.stats().channels] == ["orders"]
        messenger.sweep()


@pytest.mark.parametrize("where", ["channels", "subscribers"])
def test_foreign_file_among_the_directories(tmp_path: Path, where: str) -> None:
    """A file where only directories should be, as an editor or a desktop leaves, stops nothing."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        write_offset(tmp_path, "orders", "s", 0)
        (tmp_path / where / ".directory").write_bytes(b"")
        (tmp_path / where / "notes.txt").write_bytes(b"mine")
        assert [each.channel for each in messenger.stats().channels] == ["orders"]
        messenger.sweep()
    assert (tmp_path / where / "notes.txt").read_bytes() == b"mine"


def test_latency_percentiles(tmp_path: Path) -> None:
    """How long publishing, waiting and handling took in the last minute."""
    with running(tmp_path) as messenger:
        before = messenger.stats().latency
        assert (before.publish.count, before.consume.count, before.handler.count) == (0, 0, 0)
        assert before.publish.p50 is None
        published = gevent.event.Event()

        def handle(message: Message) -> None:
            published.wait()
            gevent.sleep(0.02)

        messenger.subscribe("orders", "s", handle)
        for n in range(10):
            messenger.publish("orders", "t", n)
            gevent.sleep(0.002)  # of those that come closer together, only some are measured
        published.set()
        drain(messenger)
        latency = messenger.stats().latency
        assert latency.publish.count == latency.handler.count == latency.consume.count == 10
        for each in (latency.publish, latency.consume, latency.handler):
            assert 0 < each.p50 <= each.p90 <= each.p99
        assert latency.handler.p50 >= 0.02 * 15 / 16
        # The tenth waited for nine others.
        assert latency.consume.p99 >= 9 * 0.02 * 15 / 16


def test_latency_of_several_at_once(tmp_path: Path) -> None:
    """Handlers that run side by side are measured too."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", lambda message: gevent.sleep(0.02), concurrency=4)
        for n in range(8):
            messenger.publish("orders", "t", n)
        drain(messenger)
        handler = messenger.stats().latency.handler
        assert handler.count >= 2
        assert handler.p50 >= 0.02 * 15 / 16


def test_pending(tmp_path: Path) -> None:
    """How many messages a subscriber has yet to handle, and how old the next one is."""
    release = gevent.event.Event()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", lambda message: release.wait())
        assert (subscriber(messenger).lag_messages, subscriber(messenger).lag_bytes) == (0, 0)
        for n in range(10):
            messenger.publish("orders", "t", n)
        gevent.sleep(0.02)
        found = subscriber(messenger)
        assert (found.lag_messages, found.lag_estimated) == (10, False)
        assert found.oldest_pending_s is not None
        assert 0.01 < found.oldest_pending_s < 60
        (quick,) = messenger.stats(pending=False).channels[0].subscribers
        assert (quick.lag_messages, quick.oldest_pending_s) == (None, None)
        release.set()
        drain(messenger)
        found = subscriber(messenger)
        assert (found.lag_messages, found.oldest_pending_s) == (0, None)


def test_pending_far_behind(tmp_path: Path) -> None:
    """Of a long backlog a sample is counted."""
    line = record("x" * 1000)
    write_segment(tmp_path, "orders", 0, line * 3000)
    write_offset(tmp_path, "orders", "s", 0)
    with running(tmp_path) as messenger:
        found = subscriber(messenger)
        assert found.lag_estimated
        assert found.lag_messages == pytest.approx(3000, rel=0.05)


def test_published(tmp_path: Path) -> None:
    """Every message counts that was written; an id that was seen before is not."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.publish_batch("orders", [("t", 2), ("t", 3)])
        messenger.publish("orders", "t", 4, message_id="own")
        messenger.publish("orders", "t", 4, message_id="own")
        messenger.publish_batch("orders", [("t", 5), ("t", 6)], message_id="stem")
        messenger.publish_batch("orders", [("t", 5), ("t", 6)], message_id="stem")
        assert channel(messenger).published == 6
    with running(tmp_path) as messenger:
        assert channel(messenger).published == 0


def test_waits_for_room(tmp_path: Path) -> None:
    """A full disk is seen."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        assert channel(messenger).waits == 0
        fs.full = True
        waiting = gevent.spawn(messenger.publish, "orders", "t", 1)
        wait_until(lambda: channel(messenger).waits > 1)
        fs.full = False
        waiting.get()
        assert channel(messenger).published == 2


def test_sums_of_a_channel(tmp_path: Path) -> None:
    """What its subscribers have retried, given up and lost is summed up."""

    def fail(message: Message) -> None:
        raise ValueError("no")

    with running(tmp_path) as messenger:
        for name in "ab":
            messenger.subscribe("orders", name, fail, max_retries=1, retry_backoff=(0, 0))
        messenger.publish("orders", "t", 0)
        drain(messenger)
        found = channel(messenger)
        assert (found.retries, found.dead_letters, found.dropped_bytes) == (2, 2, 0)
