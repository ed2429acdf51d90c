"""What may have become of a subscriber's position, and where it then goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from keyop import OffsetError
from keyop.testing import drain
from tests.integration.helpers import (
    Recorder,
    offset_path,
    stored_offset,
    tree,
    wait_until,
)

from .channels import CHANNEL, COUNT, NEW, PER_SEGMENT, Channel, opened

ALL = list(range(COUNT))


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    channel = Channel(tmp_path / "data")
    offset_path(channel.data_dir, CHANNEL, "old").unlink()
    return channel


class Position(NamedTuple):
    """A file's content, made from the channel's offsets, and what is delivered after it."""

    content: Callable[[list[int]], bytes]
    delivered: list[int]


READABLE = {
    "a number, as v0.11.0 writes it": Position(lambda at: b"%d\n" % at[4], ALL[4:]),
    "a number without a newline": Position(lambda at: b"%d" % at[4], ALL[4:]),
    "padded, as keyop writes it": Position(lambda at: b"%020d\n" % at[4], ALL[4:]),
    "padded without a newline": Position(lambda at: b"%020d" % at[4], ALL[4:]),
    "padded to another width": Position(lambda at: b"%012d\n" % at[4], ALL[4:]),
    "the beginning": Position(lambda at: b"0\n", ALL),
    "a segment's first byte": Position(lambda at: b"%d\n" % at[6], ALL[6:]),
    "the end": Position(lambda at: b"%d\n" % at[12], []),
    "one past the end": Position(lambda at: b"%d\n" % (at[12] + 1), []),
    "far past the end": Position(lambda at: b"9" * 20 + b"\n", []),
    "the second byte of a record": Position(lambda at: b"%d\n" % (at[4] + 1), ALL[4:]),
    "the middle of a record": Position(lambda at: b"%d\n" % (at[4] + 90), ALL[4:]),
    "the newline of a record": Position(lambda at: b"%d\n" % (at[5] - 1), ALL[4:]),
    "the newline of a segment's last record": Position(lambda at: b"%d\n" % (at[6] - 1), ALL[5:]),
    "the middle of the very last record": Position(lambda at: b"%d\n" % (at[12] - 9), ALL[11:]),
}


@pytest.mark.parametrize("position", READABLE.values(), ids=READABLE.keys())
def test_goes_on_at_a_record(channel: Channel, position: Position) -> None:
    """At the record that it names or is in, never after it; and the next message comes."""
    channel.set_offset("old", position.content(channel.offsets))
    seen = Recorder()
    with opened(channel) as messenger:
        subscription = messenger.subscribe(CHANNEL, "old", seen)
        drain(messenger)
        messenger.publish(CHANNEL, "t", NEW)
        drain(messenger)
        assert subscription.counters.dropped_bytes == 0
        assert subscription.counters.corrupt == 0
    assert seen.payloads == [*position.delivered, NEW]
    path = offset_path(channel.data_dir, CHANNEL, "old")
    assert path.stat().st_size == 21
    assert int(path.read_bytes()) == subscription.offset


@pytest.mark.parametrize("position", READABLE.values(), ids=READABLE.keys())
def test_published_before_it_subscribes(channel: Channel, position: Position) -> None:
    """A position past the end is clamped by whoever opens the log, before the first append."""
    channel.set_offset("old", position.content(channel.offsets))
    with opened(channel) as messenger:
        messenger.publish(CHANNEL, "t", NEW)
    seen = Recorder()
    with opened(channel) as messenger:
        messenger.subscribe(CHANNEL, "old", seen)
        drain(messenger)
    assert seen.payloads == [*position.delivered, NEW]


def test_below_the_first_segment(channel: Channel, caplog: pytest.LogCaptureFixture) -> None:
    """It moves up to the first record left; what is missing is counted and told."""
    channel.set_offset("old", channel.offsets[1])
    for path in (channel.segment(0), channel.segment(1)):
        path.unlink()
    seen = Recorder()
    with opened(channel) as messenger, caplog.at_level(logging.ERROR):
        subscription = messenger.subscribe(CHANNEL, "old", seen)
        drain(messenger)
        assert subscription.counters.dropped_bytes == channel.offsets[6] - channel.offsets[1]
    assert seen.payloads == ALL[6:]
    assert "old lost" in caplog.text


def test_in_a_gap(channel: Channel) -> None:
    """It goes on after the gap, and counts the whole gap as lost."""
    channel.set_offset("old", channel.offsets[7])
    channel.segment(2).unlink()
    seen = Recorder()
    with opened(channel) as messenger:
        subscription = messenger.subscribe(CHANNEL, "old", seen)
        drain(messenger)
        assert subscription.counters.dropped_bytes > 0
    assert seen.payloads == ALL[9:]


UNREADABLE = {
    "empty": b"",
    "a newline": b"\n",
    "words": b"garbage\n",
    "negative": b"-5\n",
    "two numbers": b"12 34\n",
    "two lines": b"12\n34\n",
    "two newlines": b"12\n\n",
    "a leading blank": b" 12\n",
    "a trailing blank": b"12 \n",
    "a carriage return": b"12\r\n",
    "a float": b"1e3\n",
    "hexadecimal": b"0x10\n",
    "an underscore": b"1_000\n",
    "a plus": b"+12\n",
    "other digits": "١٢\n".encode(),
    "NULs": bytes(21),
    "a number and NULs": b"12\n" + bytes(18),
    "too many digits": b"1" * 21 + b"\n",
    "long": b"1" * 5000,
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable(channel: Channel, content: bytes) -> None:
    """An error names the file, which stays; others of the channel live on; a mended one works."""
    path = channel.set_offset("old", content)
    seen = Recorder()
    with opened(channel) as messenger:
        for _ in range(2):
            with pytest.raises(OffsetError, match=r"old\.offset"):
                messenger.subscribe(CHANNEL, "old", Recorder())
        assert path.read_bytes() == content
        other = messenger.subscribe(CHANNEL, "other", seen, start="earliest")
        messenger.publish(CHANNEL, "t", NEW)
        drain(messenger)
        assert other.active
        # Nothing is deleted while somebody's position is unknown.
        messenger.sweep()
        assert channel.segment(0).stem == f"{0:020}"
        path.write_bytes(b"%d\n" % channel.offsets[COUNT])
        mended = Recorder()
        messenger.subscribe(CHANNEL, "old", mended)
        drain(messenger)
    assert seen.payloads == [*ALL, NEW]
    assert mended.payloads == [NEW]


def test_unsubscribing_an_unreadable_one(channel: Channel) -> None:
    """A position that cannot be read can be forgotten."""
    path = channel.set_offset("old", b"garbage\n")
    with opened(channel) as messenger:
        messenger.unsubscribe(CHANNEL, "old")
        assert not path.exists()
        messenger.subscribe(CHANNEL, "old", Recorder(), start="earliest")
        drain(messenger)


@pytest.mark.parametrize("left", [b"", b"%020d\n" % 0, b"garbage"])
def test_a_tmp_file_left_over(channel: Channel, left: bytes) -> None:
    """What a crash left of a replacement is no position, and stands in nobody's way."""
    path = channel.set_offset("old", b"%d\n" % channel.offsets[4])
    tmp = path.with_name("old.offset.tmp")
    tmp.write_bytes(left)
    seen = Recorder()
    with opened(channel) as messenger:
        messenger.subscribe(CHANNEL, "old", seen)
        drain(messenger)
    assert seen.payloads == ALL[4:]
    assert stored_offset(channel.data_dir, CHANNEL, "old") == channel.offsets[COUNT]


def test_nothing_but_a_tmp_file(channel: Channel) -> None:
    """The subscriber was never promised anything: it is a new one."""
    path = offset_path(channel.data_dir, CHANNEL, "old")
    path.with_name("old.offset.tmp").write_bytes(b"%020d\n" % channel.offsets[4])
    seen = Recorder()
    with opened(channel) as messenger:
        messenger.subscribe(CHANNEL, "old", seen)
        messenger.publish(CHANNEL, "t", NEW)
        drain(messenger)
    assert seen.payloads == [NEW]
    assert stored_offset(channel.data_dir, CHANNEL, "old") > channel.offsets[COUNT]


def test_a_directory_in_its_place(channel: Channel) -> None:
    """An error names it; nothing in it is touched, and others of the channel live on."""
    path = offset_path(channel.data_dir, CHANNEL, "old")
    path.mkdir()
    (path / "precious").write_bytes(b"x")
    with opened(channel) as messenger:
        with pytest.raises(OffsetError, match=r"old\.offset"):
            messenger.subscribe(CHANNEL, "old", Recorder())
        seen = Recorder()
        messenger.subscribe(CHANNEL, "other", seen, start="earliest")
        seen.wait(COUNT)
    assert (path / "precious").read_bytes() == b"x"


def test_every_position_is_clamped(channel: Channel) -> None:
    """Opening the log clamps them all, those of peers too, and only those past the end."""
    end = channel.offsets[COUNT]
    past = ["one", "two", "fed-peer", "fedout-hub"]
    for own_id in past:
        channel.set_offset(own_id, end + 1000)
    channel.set_offset("fine", channel.offsets[3])
    channel.set_offset("at-the-end", end)
    with opened(channel) as messenger:
        messenger.publish(CHANNEL, "t", NEW)
    for own_id in (*past, "at-the-end"):
        assert stored_offset(channel.data_dir, CHANNEL, own_id) == end, own_id
    assert stored_offset(channel.data_dir, CHANNEL, "fine") == channel.offsets[3]


def test_a_running_one_is_its_own(channel: Channel) -> None:
    """Another messenger that opens the log leaves the position of a running subscriber alone."""
    seen = Recorder()
    with opened(channel) as holder:
        holder.subscribe(CHANNEL, "old", seen, start="earliest")
        seen.wait(COUNT)
        before = tree(channel.data_dir / "subscribers")
        # As if the other's view of the log were older.
        saved = channel.segment(-1).read_bytes()
        with opened(channel) as other:
            other.subscribe(CHANNEL, "other", Recorder())
        after = tree(channel.data_dir / "subscribers")
        assert after[f"{CHANNEL}/old.offset"] == before[f"{CHANNEL}/old.offset"]
        assert channel.segment(-1).read_bytes() == saved
        holder.publish(CHANNEL, "t", NEW)
        seen.wait(COUNT + 1)
    assert seen.payloads == [*ALL, NEW]


def test_swept_only_when_everybody_has_read(channel: Channel) -> None:
    """A position in the middle of a segment keeps it, also one that is clamped or moved back."""
    channel.set_offset("behind", channel.offsets[4] + 7)
    channel.set_offset("past", 10**9)
    with opened(channel) as messenger:
        messenger.sweep()
        assert channel.segment(0).stem == f"{channel.offsets[PER_SEGMENT]:020}"
        seen = Recorder()
        messenger.subscribe(CHANNEL, "behind", seen)
        wait_until(lambda: len(seen.messages) == COUNT - 4)
    assert seen.payloads == ALL[4:]
