"""``keyop channels``: what there is, and removing it while others go on using it."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from keyop import Messenger, SubscriberInUseError
from keyop.errors import StorageError
from keyop.fs import FileSystem
from keyop.inspection import DataDirectory
from keyop.removal import remove_channel
from tests.fakes.faulty import FaultyFs
from tests.integration.helpers import (
    Recorder,
    Worker,
    channel_dir,
    config,
    log_bytes,
    offset_path,
    read_all,
    record,
    running,
    segments,
    tree,
    wait_until,
    write_offset,
    write_segment,
)

from .helpers import keyop, refused, well


def publish(data_dir: Path, *payloads: object, channel: str = "orders", **storage: int) -> None:
    with running(data_dir, storage=storage) as messenger:
        for payload in payloads:
            messenger.publish(channel, "t", payload)


def consume(data_dir: Path, count: int, channel: str = "orders", subscriber_id: str = "a") -> None:
    """Read so many messages as a subscriber that then goes away."""
    seen = Recorder()
    with running(data_dir) as messenger:
        subscription = messenger.subscribe(channel, subscriber_id, seen, start="earliest")
        seen.wait(count)
        wait_until(lambda: subscription.lag_bytes == 0)


# --- listing


def test_the_table(data_dir: Path) -> None:
    """A line for each channel: segments, size, range, subscribers, largest lag."""
    publish(data_dir, 1, 2, 3, max_segment_bytes=300)
    publish(data_dir, 1, channel="empty")
    write_offset(data_dir, "orders", "a", 10)
    write_offset(data_dir, "orders", "b", 150)
    size, other = len(log_bytes(data_dir, "orders")), len(log_bytes(data_dir, "empty"))
    lines = well("channels").lines
    assert lines[0].split() == (
        ["CHANNEL", "SEGMENTS", "SIZE", "START", "END", "SUBSCRIBERS", "LARGEST", "LAG"]
    )
    assert lines[1].split() == ["empty", "1", f"{other}", "B", "0", f"{other}", "0", "-"]
    assert lines[2].split() == (
        ["orders", "3", f"{size}", "B", "0", f"{size}", "2", f"{size - 10}", "B"]
    )
    assert well("channels", "list").lines == lines


@pytest.mark.parametrize(
    "args", [[], ["--debug"], ["-v", "--json"], ["-v", "list"], ["--verbose", "--debug", "list"]]
)
def test_listing_is_the_default(data_dir: Path, args: list[str]) -> None:
    """Without a command's name the channels are listed, whatever options are given."""
    publish(data_dir, 1)
    assert "orders" in keyop("channels", *args).out


def test_flags_may_stand_before_a_command(data_dir: Path) -> None:
    """-v and --debug do not make it a list."""
    publish(data_dir, 1)
    assert keyop("channels", "-v", "--debug", "remove", "orders", "--yes").status == 0
    assert log_bytes(data_dir, "orders") == b""


def test_counting_records(data_dir: Path) -> None:
    """--count adds how many records there are."""
    publish(data_dir, *range(5), max_segment_bytes=300)
    header, row = well("channels", "--count").lines
    assert header.split()[5] == "RECORDS"
    assert row.split()[6] == "5"


def test_json(data_dir: Path) -> None:
    """--json has numbers in bytes, and the subscribers with each channel."""
    publish(data_dir, 1)
    write_offset(data_dir, "orders", "a", 0)
    write_offset(data_dir, "orders", "b", b"")
    size = len(log_bytes(data_dir, "orders"))
    (channel,) = well("channels", "--json").json
    subscribers = channel.pop("subscribers")
    assert channel == {
        "channel": "orders",
        "segments": 1,
        "disk_bytes": size,
        "start": 0,
        "end": size,
        "records": None,
        "largest_lag_bytes": None,
    }
    assert [each["subscriber_id"] for each in subscribers] == ["a", "b"]
    assert subscribers[0]["lag_bytes"] == size
    assert subscribers[0]["running"] is False
    assert "is empty" in subscribers[1]["problem"]


def test_an_unreadable_position_is_a_question_mark(data_dir: Path) -> None:
    """Whose position is unknown may be the furthest behind."""
    publish(data_dir, 1)
    write_offset(data_dir, "orders", "a", b"x")
    assert well("channels").lines[1].split()[-1] == "?"


def test_looking_changes_nothing(data_dir: Path) -> None:
    """Not a byte and not a file differs afterwards, lock files included."""
    write_segment(data_dir, "orders", 0, record(1) + b"torn")
    write_offset(data_dir, "orders", "a", b"7")
    before = tree(data_dir)
    for args in (["channels", "--count"], ["subscribers"], ["stats"], ["dead-letter"]):
        keyop(*args)
    assert tree(data_dir) == before


def test_nothing_there(data_dir: Path) -> None:
    """An empty data directory has no channels, which is said beside the output."""
    with running(data_dir) as messenger:
        messenger.start()
    assert keyop("channels") == (0, "", f"keyop: no channels in {data_dir}\n")
    assert well("channels", "--json").json == []


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["no", "bare"])
def test_no_data_directory(make: Callable[[Path], None], data_dir: Path) -> None:
    """A directory that is missing, or not keyop's, is an error and stays as it is."""
    make(data_dir)
    refused(1, "channels")
    assert not data_dir.exists() or list(data_dir.iterdir()) == []


def test_strangers_among_the_channels_are_passed_over(data_dir: Path) -> None:
    """Files, and directories that no channel may be called, are no channels."""
    publish(data_dir, 1)
    (data_dir / "channels" / "README").write_text("hello")
    (data_dir / "channels" / "a b").mkdir()
    assert [each["channel"] for each in well("channels", "--json").json] == ["orders"]


def test_only_positions(tmp_path: Path) -> None:
    """A channel with positions and no directory of its own is shown."""
    write_offset(tmp_path / "d", "orders", "a", 5)
    (channel,) = well("channels", "--json", "--data-dir", tmp_path / "d").json
    assert (channel["segments"], channel["end"]) == (0, 0)


def test_what_cannot_be_read_is_named(data_dir: Path) -> None:
    """An error of the system names the path."""
    publish(data_dir, 1)
    fs = FaultyFs()
    directory = DataDirectory(str(data_dir), fs)
    fs.fail("listdir", errno.EACCES)
    with pytest.raises(StorageError, match="cannot be read"):
        directory.names()


def test_a_segment_that_goes_while_it_is_counted(data_dir: Path) -> None:
    """The sweeper may come by: what is gone holds no records."""
    publish(data_dir, 1, 2, max_segment_bytes=200)
    fs = FaultyFs()
    fs.fail("open", errno.ENOENT, path_contains=segments(data_dir, "orders")[0].name)
    assert DataDirectory(str(data_dir), fs).channel("orders", count=True).records == 1


# --- removing


def test_removing_a_channel(data_dir: Path) -> None:
    """Records and positions are gone, the list no longer has it, and offsets go on."""
    publish(data_dir, 1, 2, 3, max_segment_bytes=200)
    consume(data_dir, 3)
    end = len(log_bytes(data_dir, "orders"))
    assert well("channels", "remove", "orders", "--yes").out == (
        f"removed {end} B in 3 segments of orders and 1 position\n"
    )
    assert well("channels", "--json").json == []
    assert log_bytes(data_dir, "orders") == b""
    assert not offset_path(data_dir, "orders", "a").exists()
    publish(data_dir, 4)
    (channel,) = well("channels", "--json").json
    assert channel["start"] == end
    assert read_all(data_dir, "orders", 1)[0].offset == end


def test_removing_is_asked_for(data_dir: Path) -> None:
    """Without --yes it asks; anything but yes changes nothing and ends with 1."""
    publish(data_dir, 1)
    before = tree(data_dir)
    for answer in ("n\n", "", "\n"):
        result = keyop("channels", "remove", "orders", stdin=answer)
        assert result.status == 1
        assert "remove 1" in result.err
        assert result.err.endswith("keyop: aborted; nothing was changed\n")
    assert tree(data_dir) == before
    assert keyop("channels", "remove", "orders", stdin="y\n").status == 0
    assert log_bytes(data_dir, "orders") == b""


@pytest.mark.parametrize("channel", ["nope", "removed"])
def test_removing_what_is_not_there(data_dir: Path, channel: str) -> None:
    """A channel that never was and one that was removed before are both not there."""
    publish(data_dir, 1, channel="removed")
    well("channels", "remove", "removed", "--yes")
    assert "there is no channel" in refused(1, "channels", "remove", channel, "--yes")
    with pytest.raises(StorageError, match="there is no channel"):
        remove_channel(DataDirectory(str(data_dir)), channel)


@pytest.mark.parametrize("channel", ["..", "a/b"])
def test_removing_checks_the_name(data_dir: Path, channel: str) -> None:
    """A name never leads out of the data directory."""
    publish(data_dir, 1)
    assert "not allowed" in refused(1, "channels", "remove", channel, "--yes")


def test_unread_messages_are_not_removed(data_dir: Path) -> None:
    """Where a subscriber lags it is refused, and said who and how much; --force does it."""
    publish(data_dir, 1, 2)
    write_offset(data_dir, "orders", "a", 0)
    before = tree(data_dir)
    size = len(log_bytes(data_dir, "orders"))
    line = refused(1, "channels", "remove", "orders", "--yes")
    assert f"a has {size} bytes yet to read" in line
    assert {name: data for name, data in tree(data_dir).items() if not name.endswith(".lock")} == {
        name: data for name, data in before.items() if not name.endswith(".lock")
    }
    well("channels", "remove", "orders", "--yes", "--force")
    assert log_bytes(data_dir, "orders") == b""
    assert not offset_path(data_dir, "orders", "a").exists()


def test_an_unknown_lag_counts_as_one(data_dir: Path) -> None:
    """A position that cannot be read may be anywhere; --force removes it too."""
    publish(data_dir, 1)
    write_offset(data_dir, "orders", "a", b"")
    assert "is empty" in refused(1, "channels", "remove", "orders", "--yes")
    well("channels", "remove", "orders", "--yes", "--force")
    assert not offset_path(data_dir, "orders", "a").exists()


def test_a_running_subscriber_is_in_the_way(data_dir: Path) -> None:
    """It is refused, also where everything was read."""
    seen = Recorder()
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "a", seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        assert "a runs" in refused(1, "channels", "remove", "orders", "--yes")
    assert log_bytes(data_dir, "orders") != b""


def test_a_running_subscriber_survives_force(data_dir: Path) -> None:
    """With --force its position stays its own, and it gets what is published next."""
    seen = Recorder()
    with running(data_dir, storage={"max_segment_bytes": 400}) as messenger:
        subscription = messenger.subscribe("orders", "a", seen)
        for number in range(5):
            messenger.publish("orders", "t", number)
        seen.wait(5)
        wait_until(lambda: subscription.lag_bytes == 0)
        write_offset(data_dir, "orders", "b", 0)
        result = keyop("channels", "remove", "orders", "--yes", "--force")
        assert result.status == 0
        assert result.err == "keyop: a runs, so its position stays\n"
        for number in range(5, 10):
            messenger.publish("orders", "t", number)
        assert seen.wait(10) == list(range(10))
        assert subscription.counters.dropped_bytes == 0
        assert messenger.stats().channels[0].subscribers[0].subscriber_id == "a"
    assert offset_path(data_dir, "orders", "a").exists()
    assert not offset_path(data_dir, "orders", "b").exists()


def test_what_a_running_subscriber_had_not_read_is_dropped(data_dir: Path) -> None:
    """Forced under the feet of one that lags: it counts what it lost, and goes on."""
    go = gevent.event.Event()
    seen = Recorder(lambda _: go.wait())
    with running(data_dir, storage={"max_segment_bytes": 200}) as messenger:
        subscription = messenger.subscribe("orders", "a", seen)
        for number in range(6):
            messenger.publish("orders", "t", number)
        seen.wait(1)
        keyop("channels", "remove", "orders", "--yes", "--force")
        go.set()
        messenger.publish("orders", "t", 99)
        wait_until(lambda: seen.payloads[-1] == 99)
        assert subscription.counters.dropped_bytes > 0
    assert seen.payloads == sorted(seen.payloads)


def test_a_publisher_that_has_it_open_goes_on(data_dir: Path) -> None:
    """Its next message is neither lost in a deleted file nor given an offset used before."""
    with running(data_dir) as messenger:
        messenger.publish("orders", "t", 1)
        end = len(log_bytes(data_dir, "orders"))
        well("channels", "remove", "orders", "--yes")
        messenger.publish("orders", "t", 2)
        assert [path.name for path in segments(data_dir, "orders")] == [f"{end:020}.jsonl"]
        well("channels", "remove", "orders", "--yes")
        messenger.publish("orders", "t", 3)
    (message,) = read_all(data_dir, "orders", 1)
    assert message.payload == 3
    assert message.offset > end


class KeepingFs(FileSystem):
    """Keeps another link to each segment that is deleted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def unlink(self, path: str) -> None:
        if path.endswith(".jsonl"):
            os.link(path, self.directory / os.path.basename(path))
        os.unlink(path)


def test_publishers_of_other_processes_go_on(data_dir: Path, tmp_path: Path) -> None:
    """Removing while others publish and roll: nobody writes into what is gone, or over an offset.

    Of everything that was removed a link is kept, so at the end every message must be found, in
    segments that follow each other without gap or overlap.
    """
    for name in ("data", "kept"):
        (tmp_path / name).mkdir()
    fs = KeepingFs(tmp_path / "kept")
    code = """
    with make(max_segment_bytes=2000) as m:
        say("ready")
        for n in range(3000):
            m.publish("orders", "t", n)
    """
    with Worker(code, data_dir) as one, Worker(code, data_dir) as two:
        one.wait_line("ready")
        two.wait_line("ready")
        removals = 0
        while one.process.poll() is None or two.process.poll() is None:
            directory = DataDirectory(str(data_dir), fs)
            if directory.names() and not directory.channel("orders").abandoned:
                removals += remove_channel(directory, "orders").segments > 0
        one.wait()
        two.wait()
    assert removals
    found = sorted(
        [*fs.directory.iterdir(), *segments(data_dir, "orders")], key=lambda path: path.name
    )
    for before, after in itertools.pairwise(found):
        assert int(before.stem) + before.stat().st_size == int(after.stem)
    lines = b"".join(path.read_bytes() for path in found).splitlines()
    payloads = [json.loads(line)["payload"] for line in lines]
    assert sorted(payloads) == sorted([*range(3000)] * 2)


def test_companions_go_too(data_dir: Path) -> None:
    """What was rescued of torn tails and what marks dead letters go; lock files and others stay."""
    write_segment(data_dir, "orders", 0, record(1) + b"torn")
    directory = channel_dir(data_dir, "orders")
    for name in (f"{0:020}.jsonl.torn-0", ".done", ".done.tmp", "notes.txt"):
        (directory / name).write_text("x")
    well("channels", "remove", "orders", "--yes")
    end = len(record(1))
    assert sorted(path.name for path in directory.iterdir()) == (
        [".lock", f"{end:020}.jsonl", "notes.txt"]
    )


def test_a_torn_tail_alone(data_dir: Path) -> None:
    """Bytes that were no record yet are removed with the rest, and used as if never there."""
    write_segment(data_dir, "orders", 0, b'{"v":1,')
    well("channels", "remove", "orders", "--yes")
    assert [path.name for path in segments(data_dir, "orders")] == [f"{0:020}.jsonl"]
    assert log_bytes(data_dir, "orders") == b""


def test_overlapping_segments_can_be_removed(data_dir: Path) -> None:
    """A channel that does not open any more can be emptied; no offset is used twice."""
    write_segment(data_dir, "orders", 0, record(1) * 3)
    write_segment(data_dir, "orders", 5, record(2))
    well("channels", "remove", "orders", "--yes")
    publish(data_dir, 3)
    (message,) = read_all(data_dir, "orders", 1)
    assert message.offset == 3 * len(record(1))


def test_positions_without_a_channel_are_removed(data_dir: Path) -> None:
    """Where the channel's directory is gone, the positions can go too, and none is created."""
    publish(data_dir, 1, channel="other")
    write_offset(data_dir, "orders", "a", 5)
    assert well("channels", "remove", "orders", "--yes", "--force").out == (
        "removed 0 B in 0 segments of orders and 1 position\n"
    )
    assert not channel_dir(data_dir, "orders").exists()
    assert not offset_path(data_dir, "orders", "a").exists()


def test_a_channel_without_segments(data_dir: Path) -> None:
    """An empty directory with a position loses the position."""
    write_offset(data_dir, "orders", "a", 0)
    channel_dir(data_dir, "orders").mkdir(parents=True)
    well("channels", "remove", "orders", "--yes")
    assert not offset_path(data_dir, "orders", "a").exists()


def test_federation_counts_as_a_subscriber(data_dir: Path) -> None:
    """What a peer or a hub has not got yet is not removed."""
    publish(data_dir, 1)
    write_offset(data_dir, "orders", "fedout-hub-1", 0)
    assert "fedout-hub-1" in refused(1, "channels", "remove", "orders", "--yes")


@pytest.mark.parametrize("operation", ["open", "unlink", "fsync", "listdir", "pread"])
def test_a_failing_disk_leaves_a_channel_that_works(data_dir: Path, operation: str) -> None:
    """Whatever fails on the way, it is reported, publishing goes on, and offsets never repeat."""
    publish(data_dir, 1, 2, 3, max_segment_bytes=200)
    write_offset(data_dir, "orders", "a", len(log_bytes(data_dir, "orders")))
    end = len(log_bytes(data_dir, "orders"))
    for nth in range(1, 40):
        fs = FaultyFs()
        directory = DataDirectory(str(data_dir), fs)
        fs.fail(operation, errno.EIO, nth=nth)
        try:
            remove_channel(directory, "orders", force=True)
        except StorageError:
            pass
        else:
            break
        finally:
            fs.heal()
        publish(data_dir, "again")
        now = max(int(path.stem) + path.stat().st_size for path in segments(data_dir, "orders"))
        assert now > end
        end = now
    else:
        pytest.fail("it never succeeds")


def test_a_held_lock_is_waited_for_only_so_long(data_dir: Path) -> None:
    """A process that hangs with the lock makes it fail, not hang."""
    publish(data_dir, 1)
    directory = DataDirectory(str(data_dir))
    with (
        directory.locked("orders"),
        pytest.raises(StorageError, match="another process holds it"),
        DataDirectory(str(data_dir)).locked("orders", timeout_s=0.05),
    ):
        pass


def test_two_holders_of_one_id(data_dir: Path) -> None:
    """Removing never lets two processes have one id: the lease file stays."""
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "a", lambda _: None)
        keyop("channels", "remove", "orders", "--yes", "--force")
        with running(data_dir, name="there") as other, pytest.raises(SubscriberInUseError):
            other.subscribe("orders", "a", lambda _: None)


def test_config_is_used(data_dir: Path, tmp_path: Path) -> None:
    """-c names the data directory as well."""
    publish(data_dir, 1)
    path = tmp_path / "c.yaml"
    path.write_text(f"storage: {{data_dir: {data_dir}}}\n")
    (channel,) = well("channels", "--json", "-c", path, "--debug").json
    assert channel["channel"] == "orders"
    assert isinstance(Messenger(config(data_dir)), Messenger)
