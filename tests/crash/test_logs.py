"""A table of what may have become of a channel's files, and what must be read back."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from keyop import StorageError
from tests.integration.helpers import (
    Recorder,
    crc_holds,
    dead_letters,
    log_bytes,
    record,
    stored_offset,
    tree,
    wait_until,
    write_segment,
)

from .channels import (
    CHANNEL,
    COUNT,
    MAX_RECORD_BYTES,
    NEW,
    OLD_AT,
    PER_SEGMENT,
    Channel,
    opened,
    read_back,
)

ALL = list(range(COUNT))


class Damage(NamedTuple):
    """How to damage the channel, and which of the twelve are then delivered, to whom.

    ``old`` is given where it is not simply what follows the sixth. ``torn`` is what must be kept
    of what is cut off. ``letters`` are dead letters, one for each of the two subscribers that
    comes to the damage. ``dropped`` says whether bytes are missing for the new subscriber.
    """

    do: Callable[[Channel], object]
    fresh: list[object] = ALL
    old: list[object] | None = None
    torn: Sequence[bytes] = ()
    letters: int = 0
    dropped: bool = False


def without(*numbers: int) -> list[object]:
    return [n for n in ALL if n not in numbers]


def hint(content: bytes) -> Callable[[Channel], object]:
    return lambda channel: (channel.directory / ".lock").write_bytes(content)


def lose(*numbers: int) -> Callable[[Channel], None]:
    """Delete segments, from the last to the first of those given."""

    def do(channel: Channel) -> None:
        for path in [channel.segment(number) for number in numbers]:
            path.unlink()

    return do


def empty_segment(channel: Channel) -> None:
    write_segment(channel.data_dir, CHANNEL, channel.offsets[COUNT], b"")


def crash_in_roll(channel: Channel) -> None:
    hint(b"%020d" % channel.offsets[COUNT])(channel)


def torn_name_taken(channel: Channel) -> None:
    Path(f"{channel.segment(-1)}.torn-0").write_bytes(b"older")
    channel.append(b"newer")


def torn_behind_the_position(channel: Channel) -> None:
    channel.append(record(12)[:-5])
    channel.set_offset("old", channel.offsets[COUNT] + len(record(12)))


def strangers(channel: Channel) -> None:
    for name in ("notes.txt", "5.jsonl", f"{7:020}.jsonl.tmp", f"{8:020}.jsonl~", ".done"):
        (channel.directory / name).write_bytes(b"not ours\n")
    (channel.directory / "a-directory").mkdir()


def joined(channel: Channel) -> None:
    """The newline of record 9 is a letter now."""
    channel.overwrite(b"n", 9, len(channel.lines[9]) - 1)


def wiped(channel: Channel) -> None:
    for path in channel.directory.iterdir():
        path.unlink()
    channel.directory.rmdir()


PAIR = ("fresh", "old")
HALF = record(12)[:60]
TABLE: dict[str, Damage] = {
    "nothing": Damage(lambda channel: None),
    # -- the tail, as a process leaves it that was killed while it wrote
    "half a record at the end": Damage(lambda channel: channel.append(HALF), torn=[HALF]),
    "one byte at the end": Damage(lambda channel: channel.append(b"{"), torn=[b"{"]),
    "a record without its newline": Damage(
        lambda channel: channel.append(record(12)[:-1]), torn=[record(12)[:-1]]
    ),
    "a batch of which the last is torn": Damage(
        lambda channel: channel.append(record(12) + HALF), fresh=[*ALL, 12], torn=[HALF]
    ),
    "a tail longer than a record may be": Damage(
        lambda channel: channel.append(b"x" * 200_000), torn=[b"x" * 200_000]
    ),
    "a torn tail where one was kept before": Damage(torn_name_taken, torn=[b"older", b"newer"]),
    # -- the tail, as a power cut leaves it
    "NULs at the end": Damage(lambda channel: channel.append(bytes(5000)), torn=[bytes(5000)]),
    "half a record and NULs": Damage(
        lambda channel: channel.append(HALF + bytes(512)), torn=[HALF + bytes(512)]
    ),
    "NULs and then a whole record": Damage(
        lambda channel: channel.append(bytes(100) + record(12)), fresh=[*ALL, 12], letters=2
    ),
    "the end is missing": Damage(
        lambda channel: channel.truncate(len(record(11))), fresh=without(11)
    ),
    "the end is missing in mid-record": Damage(
        lambda channel: channel.truncate(30), fresh=without(11), torn=[record(11)[:-30]]
    ),
    "a position reached the disk, its record did not": Damage(
        torn_behind_the_position, old=[NEW], torn=[record(12)[:-5]]
    ),
    # -- within the log
    "NULs within a record": Damage(
        lambda channel: channel.overwrite(bytes(40), 9, 50), fresh=without(9), letters=2
    ),
    "NULs over the end of one and the beginning of the next": Damage(
        lambda channel: channel.overwrite(bytes(60), 9, len(record(9)) - 30),
        fresh=without(9, 10),
        letters=2,
    ),
    "a whole segment of NULs": Damage(
        lambda channel: channel.segment(-1).write_bytes(
            bytes(channel.offsets[COUNT] - channel.offsets[9] - 1) + b"\n"
        ),
        fresh=without(9, 10, 11),
        letters=2,
    ),
    "a damaged newline": Damage(joined),
    "empty lines, in which nothing is lost": Damage(lambda channel: channel.append(b"\n\n")),
    "a line that is not a record": Damage(
        lambda channel: channel.append(b'{"some": "json"}\n'), letters=2
    ),
    "rubbish that ends in a newline": Damage(
        lambda channel: channel.append(b"\xff\xfe\x00\x01\n"), letters=2
    ),
    "a record of another version": Damage(
        lambda channel: channel.append(record(12, v=2)),
    ),
    "a record without a checksum": Damage(
        lambda channel: channel.append(record(12, crc=False)), fresh=[*ALL, 12]
    ),
    "a record with another's checksum": Damage(
        lambda channel: channel.append(record(12)[:-12] + record(11)[-12:]), letters=2
    ),
    "a line that is longer than a record may be": Damage(
        lambda channel: channel.replace(10, record("x" * MAX_RECORD_BYTES)),
        fresh=without(10),
        letters=2,
    ),
    # -- segments
    "an empty segment at the end": Damage(empty_segment),
    "the active segment is empty": Damage(
        lambda channel: channel.segment(-1).write_bytes(b""), fresh=without(9, 10, 11)
    ),
    "a segment is missing": Damage(lose(2), fresh=without(6, 7, 8), dropped=True),
    "the first segments are missing": Damage(lose(0, 1), fresh=without(*range(6))),
    "all before the position are missing, and more": Damage(
        lose(0, 1, 2), fresh=without(*range(9))
    ),
    "the active segment is missing": Damage(lose(3), fresh=without(9, 10, 11)),
    "all segments are missing": Damage(lose(0, 1, 2, 3), fresh=[]),
    "the whole channel is missing": Damage(wiped, fresh=[]),
    "a sealed segment has lost its last record": Damage(
        lambda channel: channel.truncate(len(record(8)), 2), fresh=without(8), dropped=True
    ),
    "a sealed segment ends in mid-record": Damage(
        lambda channel: channel.truncate(40, 2), fresh=without(8), letters=2
    ),
    "a sealed segment is empty": Damage(
        lambda channel: channel.segment(2).write_bytes(b""), fresh=without(6, 7, 8), dropped=True
    ),
    # -- the hint in the lock file
    "a hint at a sealed segment": Damage(hint(b"%020d" % 0)),
    "a hint at a file that is not there": Damage(crash_in_roll),
    "a hint past everything": Damage(hint(b"9" * 20)),
    "an empty lock file": Damage(hint(b"")),
    "a short hint": Damage(hint(b"00000")),
    "a hint that is no number": Damage(hint(b"not a hint at all!!!")),
    "a hint of NULs": Damage(hint(bytes(20))),
    "no lock file": Damage(lambda channel: (channel.directory / ".lock").unlink()),
    # -- other files
    "strangers": Damage(strangers),
}


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    return Channel(tmp_path / "data")


@pytest.mark.parametrize("publish_first", [True, False], ids=["publish first", "read first"])
@pytest.mark.parametrize("damage", TABLE.values(), ids=TABLE.keys())
def test_table(channel: Channel, damage: Damage, publish_first: bool) -> None:
    """What is whole is delivered in order, the next message is not lost, what is cut is kept."""
    damage.do(channel)
    read = read_back(channel, publish_first=publish_first)
    assert read.fresh == [*damage.fresh, NEW]
    expected = [n for n in damage.fresh if n >= OLD_AT]
    assert read.old == (damage.old if damage.old is not None else [*expected, NEW])
    assert read.letters == damage.letters
    assert bool(read.dropped) == damage.dropped
    assert channel.torn == [*damage.torn]


@pytest.mark.parametrize("damage", TABLE.values(), ids=TABLE.keys())
def test_mended_once(channel: Channel, damage: Damage) -> None:
    """A second start finds nothing to mend: both subscribers stay where they were."""
    damage.do(channel)
    read_back(channel, publish_first=False)
    before = tree(channel.directory)
    positions = {own_id: stored_offset(channel.data_dir, CHANNEL, own_id) for own_id in PAIR}
    seen = Recorder()
    with opened(channel) as messenger:
        for own_id in PAIR:
            subscription = messenger.subscribe(CHANNEL, own_id, seen)
            assert subscription.offset == positions[own_id]
            assert subscription.lag_bytes == 0
    assert seen.messages == []
    assert tree(channel.directory) == before


def overlapping(channel: Channel) -> Path:
    """A copy of the last segment, as if it began in the middle of it."""
    content = channel.segment(-1).read_bytes()
    return write_segment(channel.data_dir, CHANNEL, channel.offsets[10], content)


def grown(channel: Channel) -> Path:
    """A sealed segment that somebody wrote to."""
    channel.append(record(99), 1)
    return channel.segment(1)


@pytest.mark.parametrize("damage", [overlapping, grown])
def test_an_overlap_is_refused(channel: Channel, damage: Callable[[Channel], Path]) -> None:
    """Publishing and subscribing name the files, and nothing is changed or created."""
    path = damage(channel)
    before = {name: content for name, content in tree(channel.data_dir).items() if name[0] != "."}
    with opened(channel) as messenger:
        for _ in range(2):
            with pytest.raises(StorageError, match=path.name):
                messenger.publish(CHANNEL, "t", NEW, timeout=5)
            with pytest.raises(StorageError, match=path.name):
                messenger.subscribe(CHANNEL, "fresh", Recorder())
        # Others are not concerned.
        messenger.publish("invoices", "t", NEW, timeout=5)
    after = tree(channel.data_dir)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if "fresh.offset" in name]


def test_an_overlap_that_was_moved_away(channel: Channel) -> None:
    """Once one of the files is gone, the same messenger takes records."""
    path = overlapping(channel)
    with opened(channel) as messenger:
        with pytest.raises(StorageError):
            messenger.publish(CHANNEL, "t", NEW, timeout=5)
        path.rename(path.with_suffix(".aside"))
        messenger.publish(CHANNEL, "t", NEW, timeout=5)
    assert read_back(channel, publish_first=False).fresh == [*ALL, NEW, NEW]


def test_torn_by_another_process_while_this_one_runs(channel: Channel) -> None:
    """What another process left unfinished is cut before the next append, and never delivered."""
    seen = Recorder()
    with opened(channel) as messenger:
        messenger.subscribe(CHANNEL, "fresh", seen, start="earliest")
        seen.wait(COUNT)
        for number in range(3):
            channel.append(record(100 + number)[:-20])
            messenger.publish(CHANNEL, "t", number)
            seen.wait(COUNT + 1 + number)
    assert seen.payloads == [*ALL, 0, 1, 2]
    assert channel.torn == [record(100 + number)[:-20] for number in range(3)]
    assert all(crc_holds(line) for line in log_bytes(channel.data_dir, CHANNEL).splitlines(True))


def test_cut_short_while_this_one_runs(channel: Channel) -> None:
    """A segment that became shorter under a running process is opened anew, and stays whole."""
    with opened(channel) as messenger:
        messenger.publish(CHANNEL, "t", "lost by hand")
        path = channel.segment(-1)
        path.write_bytes(path.read_bytes()[:-10])
        messenger.publish(CHANNEL, "t", NEW)
    assert read_back(channel, publish_first=False).fresh == [*ALL, NEW, NEW]


def test_another_process_has_rolled(channel: Channel) -> None:
    """A process whose segment is not the active one any more follows the hint."""
    with opened(channel) as messenger:
        messenger.publish(CHANNEL, "t", "before")
        end = channel.offsets[COUNT - PER_SEGMENT] + channel.segment(-1).stat().st_size
        write_segment(channel.data_dir, CHANNEL, end, record("there"))
        (channel.directory / ".lock").write_bytes(b"%020d" % end)
        messenger.publish(CHANNEL, "t", "after")
    assert channel.segment(-1).stem == f"{end:020}"
    assert read_back(channel, publish_first=False).fresh == [*ALL, "before", "there", "after", NEW]


def test_another_process_died_in_a_roll(channel: Channel) -> None:
    """It had named the next segment and not yet created it: whoever runs does that."""
    seen = Recorder()
    with opened(channel) as messenger:
        messenger.subscribe(CHANNEL, "fresh", seen, start="earliest")
        messenger.publish(CHANNEL, "t", "before")
        end = channel.offsets[COUNT - PER_SEGMENT] + channel.segment(-1).stat().st_size
        (channel.directory / ".lock").write_bytes(b"%020d" % end)
        messenger.publish(CHANNEL, "t", "after")
        seen.wait(COUNT + 2)
    assert channel.segment(-1).stem == f"{end:020}"
    assert seen.payloads == [*ALL, "before", "after"]


def test_the_hint_is_put_right_at_once(channel: Channel) -> None:
    """After opening, the lock file names the segment that the listing says is active."""
    for wrong in (b"%020d" % 0, b"9" * 20, b"", bytes(20)):
        hint(wrong)(channel)
        with opened(channel) as messenger:
            messenger.subscribe(CHANNEL, "looks", Recorder())
            content = (channel.directory / ".lock").read_bytes()
            assert content[:20] == channel.segment(-1).stem.encode()


def test_a_dead_letter_holds_the_damaged_bytes(channel: Channel) -> None:
    """What was damaged is kept to the letter, and names where it was."""
    channel.overwrite(bytes(40), 9, 50)
    damaged = channel.segment(-1).read_bytes().split(b"\n")[0]
    seen = Recorder()
    with opened(channel) as messenger:
        messenger.subscribe(CHANNEL, "fresh", seen, start="earliest")
        seen.wait(COUNT - 1)
        letters = wait_until(lambda: dead_letters(channel.data_dir, CHANNEL))
    assert letters[0]["original"] is None
    assert base64.b64decode(letters[0]["raw"]) == damaged
    assert str(channel.offsets[9]) in letters[0]["last_error"]
