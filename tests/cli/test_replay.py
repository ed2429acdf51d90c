"""``keyop replay``: a position set back or on, and a range delivered to another channel."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from keyop.cli import replay
from keyop.cli.positions import move_position
from keyop.errors import StorageError, SubscriberInUseError
from keyop.inspection import DataDirectory
from tests.integration.helpers import (
    crc_holds,
    log_bytes,
    record,
    records,
    running,
    stored_offset,
    tree,
    write_offset,
    write_segment,
)

from .helpers import Process, keyop, refused, wait_for, well

HOURS = [record(n, ts=f"2026-01-02T{n:02}:00:00Z") for n in range(6)]
ENDS = [len(b"".join(HOURS[: n + 1])) for n in range(6)]


@pytest.fixture(autouse=True)
def hours(data_dir: Path) -> None:
    write_segment(data_dir, "orders", 0, b"".join(HOURS))
    write_offset(data_dir, "orders", "billing", ENDS[3])


def move(*args: object, subscriber: str = "billing") -> list[object]:
    return ["replay", "orders", "--subscriber", subscriber, *args]


# --- to a subscriber


@pytest.mark.parametrize(
    ("to", "offset"),
    [
        ("earliest", 0),
        ("latest", ENDS[5]),
        ("2026-01-02T02:00:00Z", ENDS[1]),
        (ENDS[0], ENDS[0]),
        (ENDS[0] + 7, ENDS[0]),
        (10**12, ENDS[5]),
        ("-1m", ENDS[5]),
    ],
)
def test_a_position_is_set(data_dir: Path, to: object, offset: int) -> None:
    """To the beginning, the end, a time or an offset, always on a record boundary."""
    assert well(*move("--to", to, "--yes")).out == f"billing of orders goes on at {offset}\n"
    assert stored_offset(data_dir, "orders", "billing") == offset


def test_the_messages_come_again(data_dir: Path) -> None:
    """What was set back is delivered once more, from there on."""
    well(*move("--to", ENDS[2], "--yes"))
    assert keyop("subscribe", "orders", "--id", "billing", "--count", 3).out == "3\n4\n5\n"


@pytest.mark.parametrize(
    ("to", "what"),
    [
        (0, f"from {ENDS[3]} to 0, delivering 4 messages again ({ENDS[3]} B)"),
        ("latest", f"from {ENDS[3]} to {ENDS[5]}, SKIPPING 2 messages ({ENDS[5] - ENDS[3]} B)"),
        (ENDS[3], f"from {ENDS[3]} to {ENDS[3]}"),
    ],
)
def test_a_dry_run(data_dir: Path, to: object, what: str) -> None:
    """It says how many messages come again or are skipped, and changes nothing."""
    before = tree(data_dir)
    assert well(*move("--to", to, "--dry-run")).out == f"would set billing of orders {what}\n"
    assert tree(data_dir) == before


def test_it_asks(data_dir: Path) -> None:
    """Without --yes it asks; anything but yes changes nothing."""
    result = keyop(*move("--to", 0), stdin="n\n")
    assert result.status == 1
    assert "delivering 4 messages again" in result.err
    assert stored_offset(data_dir, "orders", "billing") == ENDS[3]
    assert keyop(*move("--to", 0), stdin="y\n").status == 0
    assert stored_offset(data_dir, "orders", "billing") == 0
    assert keyop(*move("--to", "latest"), stdin="").status == 1


def test_one_that_runs_is_refused(data_dir: Path) -> None:
    """While somebody runs it, its position is his; one line says so, also if it began just now."""
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "billing", lambda message: None)
        error = refused(1, *move("--to", 0, "--yes"))
        assert error == "'billing' of 'orders' runs in another process; stop it there first"
        with pytest.raises(SubscriberInUseError):
            move_position(DataDirectory(str(data_dir)), "orders", "billing", 0, 1000)
    assert stored_offset(data_dir, "orders", "billing") == ENDS[5]


def test_a_position_that_cannot_be_read(data_dir: Path) -> None:
    """An empty position file is put right."""
    write_offset(data_dir, "orders", "billing", b"")
    assert "from a position that cannot be read to 0" in well(*move("--to", 0, "--dry-run")).out
    well(*move("--to", 0, "--yes"))
    assert stored_offset(data_dir, "orders", "billing") == 0


def test_retention_came_by(data_dir: Path) -> None:
    """A position that was deleted since it was chosen becomes the first that is left."""
    write_segment(data_dir, "late", 500, HOURS[0])
    write_offset(data_dir, "late", "a", 0)
    assert move_position(DataDirectory(str(data_dir)), "late", "a", 10, 10**6) == 500
    assert stored_offset(data_dir, "late", "a") == 500


def test_a_channel_without_records(data_dir: Path) -> None:
    """Its only position is 0."""
    write_offset(data_dir, "empty", "a", 0)
    assert well("replay", "empty", "--subscriber", "a", "--to", "latest", "--yes").out == (
        "a of empty goes on at 0\n"
    )


def test_a_position_that_cannot_be_written(data_dir: Path) -> None:
    """The error names the file; gone meanwhile is one too."""
    with pytest.raises(StorageError, match="the position of 'gone' cannot be set"):
        move_position(DataDirectory(str(data_dir)), "orders", "gone", 0, 1000)


def test_unknown_names() -> None:
    """Nobody of that name: who there is is said, so that a slip of the pen creates nothing."""
    assert refused(1, *move("--to", 0, "--yes", subscriber="biling")) == (
        "'biling' has no position in channel 'orders', which billing has; "
        "'keyop subscribe --from' begins a new one"
    )
    assert "there is no channel 'other'" in refused(
        1, "replay", "other", "--subscriber", "a", "--to", 0
    )


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ([], "give --subscriber and --to, or --into"),
        (["--subscriber", "a"], "--subscriber needs --to"),
        (["--subscriber", "a", "--to", 0, "--into", "x"], "give --subscriber and --to, or --into"),
        (["--subscriber", "a", "--to", 0, "--new-ids"], "--from, --until, --where and --new-ids"),
        (["--subscriber", "a", "--to", "x"], "Invalid value for '--to': 'x' is not 'earliest'"),
        (["--into", "x", "--to", 0], "--to is for --subscriber"),
        (["--into", "orders"], "--into is the same channel"),
    ],
)
def test_wrong_use(data_dir: Path, args: list[object], what: str) -> None:
    """Wrong use ends with 2 and changes nothing."""
    before = tree(data_dir)
    assert refused(2, "replay", "orders", *args).startswith(what)
    assert tree(data_dir) == before


# --- into another channel


def test_a_range_into_another_channel(data_dir: Path) -> None:
    """Copies keep everything but channel and stamp; the route of the original is not theirs."""
    line = record(raw='{"n":1.50e+3}', id="a", correlation_id="c", route=["hub"], subscriber="x")
    write_segment(data_dir, "source", 0, line + HOURS[1] + HOURS[2])
    result = well("replay", "source", "--into", "copy", "--until", len(line + HOURS[1]), "--yes")
    assert result.out == "delivered 2 messages of source into copy\n"
    first, second = records(data_dir, "copy")
    assert log_bytes(data_dir, "copy").splitlines()[0].count(b'"payload":{"n":1.50e+3}') == 1
    assert all(crc_holds(each + b"\n") for each in log_bytes(data_dir, "copy").splitlines())
    assert (first["id"], first["channel"], first["origin"]) == ("a", "copy", "there")
    assert first["correlation_id"] == "c"
    assert first["ts"] > "2026-01-03"
    assert not {"route", "subscriber"} & set(first)
    assert second["id"] == "id-1"


def test_a_second_replay_adds_nothing(data_dir: Path) -> None:
    """Ids in the window are left out, so an interrupted one can be run again."""
    well("replay", "orders", "--into", "copy", "--until", ENDS[2], "--yes")
    assert well("replay", "orders", "--into", "copy", "--yes").out == (
        "delivered 3 messages of orders into copy; 3 were there already\n"
    )
    assert [each["payload"] for each in records(data_dir, "copy")] == list(range(6))
    well("replay", "orders", "--into", "copy", "--new-ids", "--yes")
    assert len({each["id"] for each in records(data_dir, "copy")}) == 12


def test_only_some(data_dir: Path) -> None:
    """--where chooses; a dry run counts and creates nothing; without --yes it asks."""
    options = ["--where", "id=id-4", "--from", "2026-01-02T02:00:00Z"]
    before = tree(data_dir)
    assert well("replay", "orders", "--into", "copy", *options, "--dry-run").out == (
        "would deliver 1 message of orders into copy, but for ids that copy has had lately\n"
    )
    assert keyop("replay", "orders", "--into", "copy", *options, stdin="n\n").status == 1
    assert tree(data_dir) == before
    assert keyop("replay", "orders", "--into", "copy", *options, stdin="y\n").status == 0
    assert [each["payload"] for each in records(data_dir, "copy")] == [4]


def test_what_cannot_be_delivered_is_named(data_dir: Path, tmp_path: Path) -> None:
    """Damaged and overlong records are left out, said, and the exit status is 1."""
    conf = tmp_path / "c.yaml"
    conf.write_text(f"storage: {{data_dir: {data_dir}, max_record_bytes: {len(HOURS[0]) + 4}}}\n")
    write_segment(data_dir, "o", 0, b"x\n" * 12 + record(7, channel="o") + HOURS[0])
    result = keyop(
        "replay", "o", "--into", "a-long-name-for-a-channel-that-is", "--yes", "-c", conf
    )
    assert result.status == 1
    assert result.out.startswith("delivered 0 messages of o into ")
    lines = result.err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("keyop: o: left out at 0: not a JSON object")
    assert lines[-1] == "keyop: 14 were left out in all"


def test_a_reserved_channel_is_refused() -> None:
    """Nobody but keyop writes to dead-letter channels."""
    assert "dead-letter" in refused(1, "replay", "orders", "--into", "x.dead-letter", "--yes")


def test_an_error_in_the_middle_says_how_far_it_got(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was delivered before something failed, or before Ctrl-C, is said."""
    monkeypatch.setattr("keyop.cli.appender._BATCH_RECORDS", 2)
    real = replay.Appender.append
    calls = iter([real, real])

    def append(self: replay.Appender, lines: object) -> int:
        write = next(calls, None)
        if write is None:
            raise KeyboardInterrupt
        return write(self, lines)  # type: ignore[arg-type]  # what it was given

    monkeypatch.setattr(replay.Appender, "append", append)
    result = keyop("replay", "orders", "--into", "copy", "--yes")
    assert result == (
        130,
        "",
        "keyop: delivered 4 messages of orders into copy until it was stopped\n",
    )
    assert len(records(data_dir, "copy")) == 4


def test_killed_and_run_again(data_dir: Path) -> None:
    """After a kill the rest is delivered by running it again, nothing twice."""
    big = b"".join(record("x" * 3000, id=f"m{n}") for n in range(6000))
    write_segment(data_dir, "big", 0, big)
    with Process("replay", "big", "--into", "copy", "--yes") as process:
        path = data_dir / "channels" / "copy"
        wait_for(lambda: path.is_dir() and log_bytes(data_dir, "copy"), "something to be in")
        process.send(signal.SIGKILL)
        process.popen.wait(20)
    assert keyop("replay", "big", "--into", "copy", "--yes").status == 0
    assert [each["id"] for each in records(data_dir, "copy")] == [f"m{n}" for n in range(6000)]
