"""Publishing: what it returns, what is true when it returns, and what is true when it raises."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import itertools
import os
import threading
import time
import uuid
from pathlib import Path

import gevent
import msgspec
import pydantic
import pytest

import keyop
from keyop import (
    KeyopError,
    LogFailedError,
    Messenger,
    MessengerClosedError,
    PayloadError,
    PublishTimeoutError,
    RecordTooLargeError,
)
from tests.fakes.faulty import FaultyFs

from .helpers import (
    Recorder,
    channel_dir,
    config,
    log_bytes,
    read_all,
    records,
    running,
    segments,
    tree,
    wait_until,
)


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Struct(msgspec.Struct):
    x: int
    y: int


class Model(pydantic.BaseModel):
    x: int
    y: int


def test_constructing_does_no_io(tmp_path: Path) -> None:
    """A messenger that was only constructed has touched nothing on disk."""
    messenger = Messenger(config(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
    messenger.close()
    assert not (tmp_path / "data").exists()


def test_data_dir_is_enough(tmp_path: Path) -> None:
    """``Messenger(data_dir=…)`` works without a configuration."""
    with Messenger(data_dir=str(tmp_path / "data")) as messenger:
        messenger.publish("orders", "t", 1)
        assert messenger.instance_name
        assert messenger.hub_addr == ""
    assert records(tmp_path / "data", "orders")[0]["payload"] == 1


def test_start_is_idempotent(tmp_path: Path) -> None:
    """``start`` may be called again, before and after the first publish."""
    with running(tmp_path) as messenger:
        messenger.start()
        messenger.start()
        messenger.publish("orders", "t", 1)
        messenger.start()
        messenger.publish("orders", "t", 2)
    assert [record["payload"] for record in records(tmp_path, "orders")] == [1, 2]


def test_with_starts(tmp_path: Path) -> None:
    """``with Messenger(…)`` starts: the data directory is open inside the block."""
    with Messenger(config(tmp_path / "data")):
        assert (tmp_path / "data").is_dir()


def test_returns_the_id_of_the_record(tmp_path: Path) -> None:
    """``publish`` returns a UUID v4, and the record with it is in the log already."""
    with running(tmp_path) as messenger:
        message_id = messenger.publish("orders", "com.example.Order", {"n": 1})
        (record,) = records(tmp_path, "orders")
        assert record["id"] == message_id
    assert uuid.UUID(message_id).version == 4
    assert str(uuid.UUID(message_id)) == message_id


def test_ids_differ(tmp_path: Path) -> None:
    """A thousand publishes return a thousand ids."""
    with running(tmp_path) as messenger:
        ids = [messenger.publish("orders", "t", n) for n in range(1000)]
    assert len(set(ids)) == 1000


def test_origin_is_the_instance_name(tmp_path: Path) -> None:
    """``origin`` is the instance name, which ``name`` of the configuration sets."""
    with running(tmp_path, name="shop:1") as messenger:
        messenger.publish("orders", "t", 1)
        assert messenger.instance_name == "shop:1"
    assert records(tmp_path, "orders")[0]["origin"] == "shop:1"


PAYLOADS = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.1,
    -0.0,
    1e308,
    5e-324,
    "",
    'é😀\u2028<&>"\\/\x00\x1f\x7f',
    "\n\r",
    [],
    {},
    [1, [2, [3, {}]]],
    {"": 1, "b": 2, "a": 1, "payload": {"crc": "00000000"}},
    ',"payload":',
    ',"crc":"00000000"}',
    {"v": 1, "x": '{"v":1,"id":"i"},"crc":"12345678"}'},
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
def test_payload_comes_back_as_it_was(tmp_path: Path, payload: object) -> None:
    """Every JSON value arrives unaltered, also one that looks like a part of a record."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", payload)
    (message,) = read_all(tmp_path, "orders", 1)
    assert message.payload == payload
    assert type(message.payload) is type(payload)


def test_key_order_is_kept(tmp_path: Path) -> None:
    """An object's keys arrive in the order in which they were published."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", {"z": 1, "a": 2, "m": 3})
    (message,) = read_all(tmp_path, "orders", 1)
    assert list(message.payload) == ["z", "a", "m"]


@pytest.mark.parametrize("make", [Point, Struct, lambda **at: Model(**at)])
def test_typed_payload_is_published_as_its_fields(tmp_path: Path, make) -> None:
    """A dataclass, a ``msgspec.Struct`` and a pydantic model are stored as JSON objects."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", make(x=1, y=2))
    assert records(tmp_path, "orders")[0]["payload"] == {"x": 1, "y": 2}


def test_batch_returns_ids_in_order(tmp_path: Path) -> None:
    """``publish_batch`` writes every pair in order and returns their ids in order."""
    with running(tmp_path) as messenger:
        ids = messenger.publish_batch("orders", [("a", 1), ("b", 2), ("a", 3)])
    written = records(tmp_path, "orders")
    assert [record["id"] for record in written] == ids
    assert [(record["payload_type"], record["payload"]) for record in written] == [
        ("a", 1),
        ("b", 2),
        ("a", 3),
    ]


def test_batch_takes_any_iterable(tmp_path: Path) -> None:
    """A generator of pairs is a batch too."""
    with running(tmp_path) as messenger:
        ids = messenger.publish_batch("orders", (("t", n) for n in range(3)))
    assert [record["id"] for record in records(tmp_path, "orders")] == ids


def test_empty_batch_writes_nothing(tmp_path: Path) -> None:
    """An empty batch returns no ids and writes no record."""
    with running(tmp_path) as messenger:
        assert messenger.publish_batch("orders", []) == []
    assert log_bytes(tmp_path, "orders") == b""


def test_batch_stamps_every_record(tmp_path: Path) -> None:
    """The correlation id and service name of a batch are on each of its records."""
    with running(tmp_path) as messenger:
        messenger.publish_batch(
            "orders", [("t", 1), ("t", 2)], correlation_id="c", service_name="s"
        )
    assert [
        (record["correlation_id"], record["service_name"]) for record in records(tmp_path, "orders")
    ] == [("c", "s")] * 2


@pytest.mark.parametrize(
    ("bad", "error"), [(float("nan"), PayloadError), ("x" * 5000, RecordTooLargeError)]
)
def test_batch_is_checked_as_a_whole(tmp_path: Path, bad: object, error: type) -> None:
    """One record of a batch that cannot be written keeps the others out as well."""
    with running(tmp_path, storage={"max_record_bytes": 4096}) as messenger:
        messenger.publish("orders", "t", 0)
        before = log_bytes(tmp_path, "orders")
        with pytest.raises(error):
            messenger.publish_batch("orders", [("t", 1), ("t", bad), ("t", 2)])
        assert log_bytes(tmp_path, "orders") == before


def test_batch_is_one_write_and_one_fsync(tmp_path: Path) -> None:
    """A batch of a hundred costs one write and one fsync under ``always``."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        before = fs.calls.copy()
        messenger.publish_batch("orders", [("t", n) for n in range(100)])
        spent = fs.calls - before
    assert spent["write"] + spent["pwrite"] == 1
    assert spent["fsync"] + spent["fdatasync"] == 1


def test_always_syncs_before_it_returns(tmp_path: Path) -> None:
    """Under ``always`` each publish is followed by a sync before it returns."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        before = fs.calls["fdatasync"] + fs.calls["fsync"]
        for n in range(5):
            messenger.publish("orders", "t", n)
            assert fs.calls["fdatasync"] + fs.calls["fsync"] == before + n + 1


def test_none_never_syncs_records(tmp_path: Path) -> None:
    """Under ``none`` a publish is not followed by a sync of the segment."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "none"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        with fs.hold("fdatasync", ".jsonl") as data, fs.hold("fsync", ".jsonl") as whole:
            for n in range(50):
                messenger.publish("orders", "t", n)
            gevent.sleep(0.3)
            assert data.entered == whole.entered == 0


def test_periodic_syncs_by_itself(tmp_path: Path) -> None:
    """Under ``periodic`` a record is synced within a few intervals, without another call."""
    fs = FaultyFs()
    storage = {"sync_policy": "periodic", "sync_interval_ms": 20}
    with running(tmp_path, storage=storage, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        with fs.hold("fdatasync", ".jsonl") as data, fs.hold("fsync", ".jsonl") as whole:
            messenger.publish("orders", "t", 1)
            wait_until(lambda: data.entered + whole.entered, what="the ticker's sync")


def test_own_message_id_is_used(tmp_path: Path) -> None:
    """A ``message_id`` of the caller's is the record's id and is returned."""
    with running(tmp_path) as messenger:
        assert messenger.publish("orders", "t", 1, message_id="order-7") == "order-7"
    assert records(tmp_path, "orders")[0]["id"] == "order-7"


def test_retried_publish_is_idempotent(tmp_path: Path) -> None:
    """An id in the dedup window is returned as is and not written again."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1, message_id="order-7")
        for n in range(100):
            messenger.publish("orders", "t", n)
        before = log_bytes(tmp_path, "orders")
        assert messenger.publish("orders", "t", 1, message_id="order-7") == "order-7"
        assert log_bytes(tmp_path, "orders") == before


def test_returned_id_may_be_used_for_a_retry(tmp_path: Path) -> None:
    """An id that keyop made counts as seen too: publishing it again writes nothing."""
    with running(tmp_path) as messenger:
        made = messenger.publish("orders", "t", 1)
        assert messenger.publish("orders", "t", 1, message_id=made) == made
    assert len(records(tmp_path, "orders")) == 1


def test_retried_batch_is_idempotent(tmp_path: Path) -> None:
    """A batch published twice with one ``message_id`` is in the log once, with the same ids."""
    with running(tmp_path) as messenger:
        first = messenger.publish_batch("orders", [("t", 1), ("t", 2)], message_id="b")
        second = messenger.publish_batch("orders", [("t", 1), ("t", 2)], message_id="b")
    assert first == second
    assert len(set(first)) == 2
    assert len(records(tmp_path, "orders")) == 2


def test_failed_publish_does_not_use_up_its_id(tmp_path: Path) -> None:
    """An id whose publish wrote nothing is not taken for seen: the retry writes it."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.full = True
        with pytest.raises(PublishTimeoutError):
            messenger.publish("orders", "t", 1, message_id="mine", timeout=0.1)
        fs.full = False
        messenger.publish("orders", "t", 1, message_id="mine")
    assert [record["id"] for record in records(tmp_path, "orders")][1:] == ["mine"]


def test_same_id_on_another_channel_is_written(tmp_path: Path) -> None:
    """The window tells records of one channel apart: the same id elsewhere is another record."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1, message_id="same")
        messenger.publish("invoices", "t", 1, message_id="same")
    assert len(records(tmp_path, "invoices")) == 1


def test_window_of_zero_remembers_nothing(tmp_path: Path) -> None:
    """With ``dedup.seen_id_lru_size: 0`` the same id is written each time."""
    with running(tmp_path, dedup={"seen_id_lru_size": 0}) as messenger:
        for _ in range(2):
            messenger.publish("orders", "t", 1, message_id="same")
    assert len(records(tmp_path, "orders")) == 2


def test_context_stamps_publishes(tmp_path: Path) -> None:
    """``correlation_id`` and ``service_name`` blocks stamp every publish inside, and no other."""
    with running(tmp_path) as messenger:
        with keyop.correlation_id("outer"), keyop.service_name("billing"):
            messenger.publish("orders", "t", 1)
            with keyop.correlation_id("inner"):
                messenger.publish("orders", "t", 2)
            messenger.publish("orders", "t", 3)
        messenger.publish("orders", "t", 4)
    assert [
        (record.get("correlation_id"), record.get("service_name"))
        for record in records(tmp_path, "orders")
    ] == [("outer", "billing"), ("inner", "billing"), ("outer", "billing"), (None, None)]


def test_argument_wins_over_context(tmp_path: Path) -> None:
    """An argument of ``publish`` wins over the block around it."""
    with running(tmp_path) as messenger, keyop.correlation_id("c"), keyop.service_name("s"):
        messenger.publish("orders", "t", 1, correlation_id="mine", service_name="own")
    (record,) = records(tmp_path, "orders")
    assert (record["correlation_id"], record["service_name"]) == ("mine", "own")


def test_context_ends_with_an_exception(tmp_path: Path) -> None:
    """A block that is left by an exception stamps nothing afterwards."""
    with running(tmp_path) as messenger:
        with pytest.raises(ZeroDivisionError), keyop.correlation_id("c"):
            raise ZeroDivisionError
        messenger.publish("orders", "t", 1)
    assert "correlation_id" not in records(tmp_path, "orders")[0]


def test_context_belongs_to_its_greenlet(tmp_path: Path) -> None:
    """Two greenlets in blocks of their own stamp their own ids."""
    with running(tmp_path) as messenger:

        def work(name: str) -> None:
            with keyop.correlation_id(name):
                for _ in range(3):
                    gevent.sleep(0)
                    messenger.publish("orders", name, 1)

        gevent.joinall([gevent.spawn(work, name) for name in "ab"], raise_error=True)
    assert all(r["correlation_id"] == r["payload_type"] for r in records(tmp_path, "orders"))


@pytest.mark.parametrize("policy", ["none", "periodic", "always"])
def test_many_greenlets(tmp_path: Path, policy: str) -> None:
    """Twenty greenlets publish at once: every record is there, whole, in order per publisher."""
    storage = {"sync_policy": policy, "max_segment_bytes": 4096}
    with running(tmp_path, storage=storage) as messenger:

        def work(who: int) -> None:
            for n in range(20):
                messenger.publish("orders", "t", [who, n])

        gevent.joinall([gevent.spawn(work, who) for who in range(20)], raise_error=True)
    pairs = [record["payload"] for record in records(tmp_path, "orders")]
    assert len(pairs) == 400
    assert all([n for w, n in pairs if w == who] == list(range(20)) for who in range(20))


def test_tight_loop_lets_others_run(tmp_path: Path) -> None:
    """A loop of publishes yields: a ticking greenlet is never held up for long."""
    with running(tmp_path) as messenger:
        ticks: list[float] = []

        def tick() -> None:
            while True:
                ticks.append(time.monotonic())
                gevent.sleep(0.001)

        ticker = gevent.spawn(tick)
        try:
            for n in range(20_000):
                messenger.publish("orders", "t", n)
        finally:
            ticker.kill()
    gaps = sorted(b - a for a, b in itertools.pairwise(ticks))
    assert len(ticks) > 10
    assert gaps[len(gaps) // 2] < 0.02


def test_publish_after_close_is_refused(tmp_path: Path) -> None:
    """A closed messenger takes nothing, for good, and says so."""
    messenger = Messenger(config(tmp_path))
    messenger.publish("orders", "t", 1)
    messenger.close()
    messenger.close()
    before = tree(tmp_path)
    with pytest.raises(MessengerClosedError):
        messenger.publish("orders", "t", 2)
    with pytest.raises(MessengerClosedError):
        messenger.publish_batch("orders", [("t", 2)])
    with pytest.raises(MessengerClosedError):
        messenger.start()
    assert tree(tmp_path) == before


def test_full_disk_is_waited_for(tmp_path: Path) -> None:
    """Without a timeout a publish waits for room, other greenlets run, and then it is written."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.full = True
        waiting = gevent.spawn(messenger.publish, "orders", "t", 1)
        gevent.sleep(0.3)
        assert not waiting.ready()
        fs.full = False
        message_id = waiting.get(timeout=3)
    assert [record["id"] for record in records(tmp_path, "orders")][1:] == [message_id]


def test_full_disk_with_a_timeout(tmp_path: Path) -> None:
    """When the timeout passes on a full disk, ``written`` is False and the log is as before."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        before = log_bytes(tmp_path, "orders")
        fs.fill(30)
        with gevent.Timeout(3), pytest.raises(PublishTimeoutError) as caught:
            messenger.publish("orders", "t", 1, timeout=0.2)
        assert caught.value.written is False
        assert log_bytes(tmp_path, "orders") == before
        fs.full = False
        messenger.publish("orders", "t", 2)
    assert [record["payload"] for record in records(tmp_path, "orders")] == [0, 2]


def test_close_frees_a_publisher_that_waits_for_room(tmp_path: Path) -> None:
    """Closing ends the wait for room with ``MessengerClosedError``, nothing written."""
    fs = FaultyFs()
    with running(tmp_path, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.full = True
        waiting = gevent.spawn(messenger.publish, "orders", "t", 1)
        gevent.sleep(0.1)
        messenger.close(timeout=2)
        with pytest.raises(MessengerClosedError) as caught:
            waiting.get(timeout=3)
        assert caught.value.written is False
        fs.heal()
    assert len(records(tmp_path, "orders")) == 1


def test_timeout_during_the_sync(tmp_path: Path) -> None:
    """When the timeout passes during the fsync, ``written`` is True and the record is delivered."""
    fs = FaultyFs()
    seen = Recorder()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        messenger.subscribe("orders", "s", seen, start="earliest")
        seen.wait(1)
        with fs.hold("fdatasync", ".jsonl"), fs.hold("fsync", ".jsonl"):
            with gevent.Timeout(3), pytest.raises(PublishTimeoutError) as caught:
                messenger.publish("orders", "t", 1, timeout=0.2)
            assert caught.value.written is True
        assert seen.wait(2) == [0, 1]


def test_timeout_of_a_batch_counts_its_records(tmp_path: Path) -> None:
    """For a batch ``written`` is the number of records in the log."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        with fs.hold("fdatasync", ".jsonl"), fs.hold("fsync", ".jsonl"):
            with gevent.Timeout(3), pytest.raises(PublishTimeoutError) as caught:
                messenger.publish_batch("orders", [("t", 1), ("t", 2), ("t", 3)], timeout=0.2)
            assert caught.value.written == 3
    assert len(records(tmp_path, "orders")) == 4


def test_timeout_while_another_process_holds_the_lock(tmp_path: Path) -> None:
    """The timeout bounds the wait for the channel's lock as well; nothing is written."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        fd = os.open(channel_dir(tmp_path, "orders") / ".lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with gevent.Timeout(3), pytest.raises(PublishTimeoutError) as caught:
                messenger.publish("orders", "t", 1, timeout=0.2)
            assert caught.value.written is False
        finally:
            os.close(fd)
        messenger.publish("orders", "t", 2, timeout=3)
    assert [record["payload"] for record in records(tmp_path, "orders")] == [0, 2]


def test_timeout_error_is_a_timeout_error() -> None:
    """``PublishTimeoutError`` can be caught as the builtin ``TimeoutError`` and as keyop's."""
    assert issubclass(PublishTimeoutError, TimeoutError)
    assert issubclass(PublishTimeoutError, KeyopError)


def test_failed_fsync_stops_the_log(tmp_path: Path) -> None:
    """After a failed fsync the channel refuses records, also once the disk is well again."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.fail("fdatasync", errno.EIO, path_contains=".jsonl")
        fs.fail("fsync", errno.EIO, path_contains=".jsonl")
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 1)
        fs.heal()
        before = log_bytes(tmp_path, "orders")
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 2)
        assert log_bytes(tmp_path, "orders") == before


def test_failed_log_leaves_other_channels_alone(tmp_path: Path) -> None:
    """A channel whose log failed delays itself only."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        messenger.publish("invoices", "t", 0)
        fs.fail("fdatasync", errno.EIO, path_contains="orders/")
        fs.fail("fsync", errno.EIO, path_contains="orders/")
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 1)
        messenger.publish("invoices", "t", 1)
    assert len(records(tmp_path, "invoices")) == 2


def test_reopen_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    """After ``reopen`` records go to a new segment; the failed one is not written to again."""
    fs = FaultyFs()
    with running(tmp_path, storage={"sync_policy": "always"}, seams={"fs": fs}) as messenger:
        messenger.publish("orders", "t", 0)
        fs.fail("fdatasync", errno.EIO, path_contains=".jsonl")
        fs.fail("fsync", errno.EIO, path_contains=".jsonl")
        with pytest.raises(LogFailedError):
            messenger.publish("orders", "t", 1)
        fs.heal()
        messenger.reopen("orders")
        messenger.publish("orders", "t", 2)
    old, new = segments(tmp_path, "orders")
    assert int(new.stem) == old.stat().st_size
    assert b'"payload":2,' in new.read_bytes()
    assert [m.payload for m in read_all(tmp_path, "orders", 3)][::2] == [0, 2]


def test_use_from_another_thread_is_refused(tmp_path: Path) -> None:
    """Publishing from another OS thread than the messenger's is a clear error."""
    caught: list[BaseException] = []
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)

        def work() -> None:
            try:
                messenger.publish("orders", "t", 1)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: not thread.is_alive(), what="the thread to end")
    assert isinstance(caught[0], KeyopError)
    assert "thread" in str(caught[0])
    assert len(records(tmp_path, "orders")) == 1


def test_stats_of_a_channel(tmp_path: Path) -> None:
    """``stats`` gives a channel's offsets, size and segments, and its subscribers' lag."""
    with running(tmp_path, storage={"max_segment_bytes": 1000}) as messenger:
        messenger.subscribe("orders", "s", lambda message: None).stop()
        for n in range(20):
            messenger.publish("orders", "t", n)
        (channel,) = messenger.stats().channels
        size = len(log_bytes(tmp_path, "orders"))
        assert (channel.channel, channel.start_offset, channel.end_offset) == ("orders", 0, size)
        assert channel.disk_bytes == size
        assert channel.segments == len(segments(tmp_path, "orders")) > 1
        (subscriber,) = channel.subscribers
        assert (subscriber.subscriber_id, subscriber.offset) == ("s", 0)
        assert (subscriber.lag_bytes, subscriber.running) == (size, False)
