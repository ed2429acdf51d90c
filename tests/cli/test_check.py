"""``keyop check``: what is wrong is named, what can be mended is, and nothing else is touched."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keyop.checking.channel import ChannelCheck
from keyop.checking.directory import check_directory
from keyop.checking.problem import Modes, Problem, Report
from keyop.checking.scan import CHUNK_BYTES, Findings, Scanner
from keyop.errors import StorageError
from keyop.fs import SYSTEM_FS
from keyop.inspection import DataDirectory
from tests.fakes.faulty import FaultyFs
from tests.integration.helpers import (
    GOLDEN,
    Recorder,
    Worker,
    channel_dir,
    needs_golden,
    offset_path,
    read_all,
    record,
    running,
    stored_offset,
    tree,
    wait_until,
    write_offset,
    write_segment,
)

from .helpers import dead_letter, keyop, well

MAX = 10 << 20
ONE = record(1)
SIZE = len(ONE)
BROKEN = ONE.replace(b'"payload":1', b'"payload":2')


@pytest.fixture(autouse=True)
def private(data_dir: Path) -> Iterator[None]:
    """Tests make files as private as the library does."""
    before = os.umask(0o077)
    data_dir.mkdir()
    yield
    os.umask(before)


def check(data_dir: Path, *args: object) -> Any:
    """Return the report as JSON; the exit status must fit it."""
    result = keyop("check", "--json", *args)
    assert result.err == ""
    assert result.status == (0 if result.json["ok"] else 1)
    return result.json


def problems(data_dir: Path, *args: object) -> list[tuple[str, str]]:
    """Return what is wrong: paths in the data directory, and what."""
    return [
        (os.path.relpath(each["path"], data_dir), each["what"])
        for each in check(data_dir, *args)["problems"]
        if not each["note"] and not each["repaired"]
    ]


def notes(data_dir: Path, *args: object) -> list[tuple[str, str]]:
    return [
        (os.path.relpath(each["path"], data_dir), each["what"])
        for each in check(data_dir, *args)["problems"]
        if each["note"]
    ]


def segment(start: int = 0, channel: str = "orders") -> str:
    return f"channels/{channel}/{start:020}.jsonl"


def offset(subscriber_id: str = "a", channel: str = "orders") -> str:
    return f"subscribers/{channel}/{subscriber_id}.offset"


def test_all_is_well(data_dir: Path) -> None:
    """What the library wrote has no problems, rolls, dead letters and all."""

    def refuse(_: object) -> None:
        raise ValueError

    with running(data_dir, storage={"max_segment_bytes": 500}) as messenger:
        subscription = messenger.subscribe("orders", "a", refuse, max_retries=0)
        for number in range(20):
            messenger.publish("orders", "t", number)
        wait_until(lambda: subscription.lag_bytes == 0)
    result = well("check")
    assert result.out.startswith("2 channels, 40 records, ")
    assert result.out.endswith(": no problems\n")
    before = tree(data_dir)
    assert well("check", "--repair").out == result.out
    assert tree(data_dir) == before


def test_while_it_is_in_use(data_dir: Path) -> None:
    """Publishing, rolling and reading beside it is never taken for a problem."""
    code = """
    with make(max_segment_bytes=3000) as m:
        m.subscribe("orders", "a", lambda _: None)
        say("ready")
        while not os.path.exists(sys.argv[2]):
            m.publish("orders", "t", "x" * 200)
        say("done")
    """
    stop = data_dir.parent / "stop"
    with Worker(code, data_dir, stop) as worker:
        worker.wait_line("ready")
        for _ in range(30):
            for arguments in ([], ["--repair"]):
                report = check(data_dir, *arguments)
                assert report["problems"] == []
        stop.touch()
        worker.wait()


@pytest.mark.parametrize("make", [lambda path: path.rmdir(), lambda path: None], ids=["no", "bare"])
def test_no_data_directory(data_dir: Path, make: Callable[[Path], None]) -> None:
    """A directory that is missing or not keyop's is an error."""
    make(data_dir)
    result = keyop("check")
    assert result.status == 1
    assert "data directory" in result.err


# --- segments


@pytest.mark.parametrize("tail", [b'{"v":1,"id"', b"\0" * 5000, b"x"])
def test_a_torn_tail(data_dir: Path, tail: bytes) -> None:
    """It is named with its place; --repair keeps its bytes beside the segment."""
    path = write_segment(data_dir, "orders", 0, ONE + tail)
    assert problems(data_dir) == [
        (segment(), f"ends with {len(tail)} bytes that are no whole record")
    ]
    assert not (path.parent / ".lock").exists()
    report = check(data_dir, "--repair")
    assert report["ok"]
    assert report["problems"][0]["offsets"] == [SIZE]
    assert path.read_bytes() == ONE
    assert Path(f"{path}.torn-0").read_bytes() == tail
    assert notes(data_dir) == [
        (
            f"{segment()}.torn-0",
            f"holds {len(tail)} bytes that were cut off a segment, being no whole record",
        )
    ]


def test_a_torn_tail_while_others_have_it_open(data_dir: Path) -> None:
    """Cutting it under the lock disturbs no publisher that has the channel open."""
    with running(data_dir) as messenger:
        messenger.publish("orders", "t", 1)
        path = next(channel_dir(data_dir, "orders").glob("*.jsonl"))
        with open(path, "ab") as file:
            file.write(b'{"v":1')
        assert len(problems(data_dir)) == 1
        assert check(data_dir, "--repair")["ok"]
        messenger.publish("orders", "t", 2)
    assert [message.payload for message in read_all(data_dir, "orders", 2)] == [1, 2]


def test_a_tail_that_was_cut_by_somebody_else(data_dir: Path) -> None:
    """Where nothing is torn any more, mending does nothing."""
    path = write_segment(data_dir, "orders", 0, ONE)
    directory = DataDirectory(str(data_dir))
    ChannelCheck(directory, "orders", MAX, Modes())._cut_tail(str(path), 0)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_gap(data_dir: Path) -> None:
    """Missing bytes between two segments are named; nothing mends that."""
    write_segment(data_dir, "orders", 0, ONE)
    write_segment(data_dir, "orders", SIZE + 100, ONE)
    expected = [(segment(), f"100 bytes are missing between it and {SIZE + 100:020}.jsonl")]
    assert problems(data_dir) == expected
    assert problems(data_dir, "--repair") == expected


def test_an_overlap(data_dir: Path) -> None:
    """Two segments that claim the same offsets are named; nothing mends that."""
    write_segment(data_dir, "orders", 0, ONE * 2)
    write_segment(data_dir, "orders", SIZE + 10, ONE)
    expected = [(segment(), f"reaches {SIZE - 10} bytes into {SIZE + 10:020}.jsonl")]
    assert problems(data_dir) == expected
    assert problems(data_dir, "--repair") == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (BROKEN, "the checksum does not match"),
        (b"garbage\n", "not a JSON object"),
        (b"\n", "not a JSON object"),
        (record(1, id=7), "id is not a string"),
        (record(1, ts="yesterday"), "is not an RFC 3339 timestamp"),
        (b'{"v":1,"payload":1,"id":"x"}\n', "something follows the payload"),
        (b"\0" * 100 + b"\n", "not a JSON object"),
    ],
)
def test_a_corrupt_line(data_dir: Path, line: bytes, reason: str) -> None:
    """Its place and what is wrong with it are named; it is left where it is."""
    path = write_segment(data_dir, "orders", 0, ONE + line + ONE)
    for arguments in ([], ["--repair"]):
        report = check(data_dir, *arguments)
        (problem,) = report["problems"]
        assert problem["what"].startswith(f"1 line is no record, at {SIZE} (")
        assert reason in problem["what"]
        assert (problem["count"], problem["offsets"]) == (1, [SIZE])
        assert (problem["repairable"], problem["repaired"]) == (False, False)
        assert report["records"] == 2
    assert path.read_bytes() == ONE + line + ONE


def test_many_corrupt_lines(data_dir: Path) -> None:
    """All are counted, some are shown, in the segment's own offsets."""
    write_segment(data_dir, "orders", 0, ONE)
    write_segment(data_dir, "orders", SIZE, b"x\n" * 5000)
    (problem,) = check(data_dir)["problems"]
    assert problem["count"] == 5000
    assert problem["offsets"] == list(range(SIZE, SIZE + 20, 2))
    assert problem["what"].startswith("5000 lines are no record, at ")
    assert problem["what"].endswith(", …")


def test_records_without_a_checksum(data_dir: Path) -> None:
    """Those of v0.11.0 are read as they are."""
    write_segment(data_dir, "orders", 0, record(1, crc=False) + record("é", crc=False))
    assert check(data_dir)["records"] == 2


def test_records_of_another_version(data_dir: Path) -> None:
    """A newer keyop's records are worth a note."""
    write_segment(data_dir, "orders", 0, record(1, v=2) + ONE)
    report = check(data_dir)
    assert report["ok"]
    (note,) = report["problems"]
    assert note["what"] == "1 line is of another version, at 0 (envelope version 2 is not known)"


def test_a_sealed_segment_without_an_end(data_dir: Path) -> None:
    """An unfinished line that nobody will finish is corrupt."""
    write_segment(data_dir, "orders", 0, ONE + b'{"v":1')
    write_segment(data_dir, "orders", SIZE + 6, ONE)
    assert problems(data_dir) == [(segment(), f"1 line is no record, at {SIZE} (it has no end)")]


def limit(data_dir: Path, size: int) -> list[object]:
    path = data_dir.parent / "limit.yaml"
    path.write_text(f"storage: {{data_dir: {data_dir}, max_record_bytes: {size}}}\n")
    return ["-c", path]


def test_a_record_above_the_limit(data_dir: Path) -> None:
    """It is named with its size and what the limit is; one at the limit is fine."""
    write_segment(data_dir, "orders", 0, ONE)
    assert problems(data_dir, *limit(data_dir, SIZE)) == []
    (found,) = problems(data_dir, *limit(data_dir, SIZE - 1))
    assert found == (
        segment(),
        f"1 line is longer than storage.max_record_bytes allows ({SIZE - 1}), at 0 ({SIZE} bytes)",
    )


def test_dead_letters_may_be_larger(data_dir: Path) -> None:
    """Their channel takes records of twice the limit and some more."""
    write_segment(data_dir, "orders.dead-letter", 0, dead_letter(record("x" * 300)))
    assert problems(data_dir, *limit(data_dir, SIZE)) == []


@pytest.mark.parametrize(
    "size", [CHUNK_BYTES + delta for delta in (-20, -1, 0, 1, 18, 19)] + [3 * CHUNK_BYTES + 7]
)
@pytest.mark.parametrize("crc", [True, False])
def test_long_records(tmp_path: Path, size: int, crc: bool) -> None:
    """Records longer than what is read at once are checked as others are."""
    line = record("x" * size, crc=crc, id="long")
    for content, sound, corrupt in (
        (ONE + line + ONE, 3, 0),
        (line[:-30] + b"#" + line[-29:] + ONE, 1 if crc else 2, 1 if crc else 0),
        (line[:-1], 0, 1),
        (b"\0" * size + b"\n" + ONE, 1, 1),
    ):
        path = tmp_path / "segment"
        path.write_bytes(content)
        read: list[int] = []
        scanner = Scanner(SYSTEM_FS, str(path), 1000, len(content), MAX, read.append)
        findings = scanner.run()
        assert (findings.records, findings.corrupt.count) == (sound, corrupt)
        assert sum(read) == len(content)


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_long_line_above_the_limit_is_never_held(tmp_path: Path, chunks: int) -> None:
    """Its size is found without reading it into memory."""
    path = tmp_path / "segment"
    size = chunks * CHUNK_BYTES + 5
    path.write_bytes(b"x" * size + b"\n" + ONE)
    asked: list[int] = []

    class Watching(type(SYSTEM_FS)):  # type: ignore[misc]
        def pread(self, fd: int, length: int, position: int) -> bytes:
            asked.append(length)
            return os.pread(fd, length, position)

    scanner = Scanner(Watching(), str(path), 0, path.stat().st_size, 1000, lambda _: None)
    findings = scanner.run()
    assert findings.oversize.samples == [(0, f"{size + 1} bytes")]
    assert findings.records == 1
    assert max(asked) <= CHUNK_BYTES


def test_a_segment_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """What is not there any more is not waited for."""
    path = tmp_path / "segment"
    path.write_bytes(b"x" * CHUNK_BYTES)
    for size in (CHUNK_BYTES + 50, 3 * CHUNK_BYTES):
        scanner = Scanner(SYSTEM_FS, str(path), 0, size, MAX, lambda _: None)
        assert scanner.run().corrupt.count == 1
    path.write_bytes(ONE)
    scanner = Scanner(SYSTEM_FS, str(path), 0, 10 * SIZE, MAX, lambda _: None)
    assert scanner.run().records == 1


def test_a_segment_that_is_deleted_while_it_is_read(tmp_path: Path) -> None:
    """The sweeper may come by."""
    scanner = Scanner(SYSTEM_FS, str(tmp_path / "gone"), 0, 10, MAX, lambda _: None)
    assert scanner.run() == Findings()


# --- positions


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty, so the subscriber cannot start"),
        (b"x", "does not hold an offset, so the subscriber cannot start"),
        (b"\0" * 21, "does not hold an offset, so the subscriber cannot start"),
        (b"1" * 21 + b"\n", "does not hold an offset, so the subscriber cannot start"),
        (b"-1\n", "does not hold an offset, so the subscriber cannot start"),
    ],
)
def test_a_position_that_cannot_be_read(data_dir: Path, content: bytes, what: str) -> None:
    """--repair moves it to the earliest record that is left."""
    write_segment(data_dir, "orders", 5000, ONE * 2)
    write_offset(data_dir, "orders", "a", content)
    assert problems(data_dir) == [(offset(), what)]
    assert check(data_dir, "--repair")["ok"]
    assert stored_offset(data_dir, "orders", "a") == 5000
    assert check(data_dir)["problems"] == []


@pytest.mark.parametrize("content", [b"%d\n" % (5 * SIZE), b"9" * 20 + b"\n"])
def test_a_position_past_the_end(data_dir: Path, content: bytes) -> None:
    """--repair moves it to the end: to that of the last whole record."""
    write_segment(data_dir, "orders", 0, ONE * 2 + b"torn")
    write_offset(data_dir, "orders", "a", content)
    found = problems(data_dir)
    assert (offset(), f"is at {int(content)}, past the log's end at {2 * SIZE}") in found
    assert check(data_dir, "--repair")["ok"]
    assert stored_offset(data_dir, "orders", "a") == 2 * SIZE


def test_a_position_inside_a_record(data_dir: Path) -> None:
    """--repair moves it to the record's beginning, in whichever segment that is."""
    write_segment(data_dir, "orders", 0, ONE * 2)
    write_segment(data_dir, "orders", 2 * SIZE, ONE * 2)
    write_offset(data_dir, "orders", "a", SIZE + 1)
    write_offset(data_dir, "orders", "b", 4 * SIZE - 1)
    assert problems(data_dir) == [
        (offset("a"), f"is at {SIZE + 1}, inside the record that begins at {SIZE}"),
        (offset("b"), f"is at {4 * SIZE - 1}, inside the record that begins at {3 * SIZE}"),
    ]
    assert check(data_dir, "--repair")["ok"]
    assert stored_offset(data_dir, "orders", "a") == SIZE
    assert stored_offset(data_dir, "orders", "b") == 3 * SIZE


@pytest.mark.parametrize("position", [0, SIZE, 2 * SIZE, 2 * SIZE + 50, 2 * SIZE + 100])
def test_positions_that_are_fine(data_dir: Path, position: int) -> None:
    """On a record, at an end, and anywhere in a gap."""
    write_segment(data_dir, "orders", 0, ONE * 2)
    write_segment(data_dir, "orders", 2 * SIZE + 100, ONE)
    write_offset(data_dir, "orders", "a", position)
    assert [path for path, _ in problems(data_dir)] == [segment()]  # the gap


def test_a_position_that_retention_has_passed(data_dir: Path) -> None:
    """It is worth a note: the subscriber goes on at the first record that is left."""
    write_segment(data_dir, "orders", 5000, ONE)
    write_offset(data_dir, "orders", "a", 10)
    assert notes(data_dir) == [(offset(), "is at 10; retention has deleted what is before 5000")]
    assert check(data_dir, "--repair")["ok"]
    assert stored_offset(data_dir, "orders", "a") == 10


@pytest.mark.parametrize("make_directory", [True, False])
def test_a_position_of_an_empty_channel(data_dir: Path, make_directory: bool) -> None:
    """Without any segment the end is 0; a channel that is gone is not made for that."""
    write_offset(data_dir, "orders", "a", 7)
    if make_directory:
        channel_dir(data_dir, "orders").mkdir(parents=True)
    assert problems(data_dir) == [(offset(), "is at 7, past the log's end at 0")]
    assert check(data_dir, "--repair")["ok"]
    assert stored_offset(data_dir, "orders", "a") == 0
    assert channel_dir(data_dir, "orders").exists() == make_directory


def test_positions_of_federation_are_checked_too(data_dir: Path) -> None:
    """Those of peers and hubs are mended as others are."""
    write_segment(data_dir, "orders", 0, ONE)
    for name in ("fed-a", "fedout-hub:7740"):
        write_offset(data_dir, "orders", name, b"")
    assert len(problems(data_dir)) == 2
    assert check(data_dir, "--repair")["ok"]


def test_a_position_of_nobody(data_dir: Path) -> None:
    """A file whose id nobody can have keeps segments from deletion: worth a note."""
    write_segment(data_dir, "orders", 0, ONE)
    write_offset(data_dir, "orders", "a b", 0)
    ((path, what),) = notes(data_dir)
    assert path == offset("a b")
    assert what.startswith("belongs to nobody: ")


def test_a_running_subscriber_is_never_touched(data_dir: Path) -> None:
    """Its position is its own, whatever is wrong with it: that it runs is said instead."""
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "a", lambda _: None)
        path = offset_path(data_dir, "orders", "a")
        path.write_bytes(b"")
        report = check(data_dir, "--repair")
        (problem,) = report["problems"]
        assert not report["ok"]
        assert (problem["repairable"], problem["repaired"]) == (True, False)
        assert problem["advice"] == "not repaired: a runs; stop it first"
        assert path.read_bytes() == b""


def test_a_position_that_its_holder_mended_first(data_dir: Path) -> None:
    """What is right by the time the lease is taken is let be."""
    write_segment(data_dir, "orders", 0, ONE)
    write_offset(data_dir, "orders", "a", 999_999)
    fs = FaultyFs()
    open_file = fs.open

    def mend_before_lease(path: str, flags: int, mode: int = 0o777) -> int:
        if path.endswith("a.lock"):
            write_offset(data_dir, "orders", "a", 0)
        return open_file(path, flags, mode)

    fs.open = mend_before_lease  # type: ignore[method-assign,assignment]
    assert check_directory(str(data_dir), MAX, repair=True, fs=fs).remaining == []
    assert stored_offset(data_dir, "orders", "a") == 0


# --- strangers


def test_leftover_temporary_files(data_dir: Path) -> None:
    """What a crash left of saving is deleted by --repair."""
    write_segment(data_dir, "orders.dead-letter", 0, dead_letter(ONE))
    write_offset(data_dir, "orders.dead-letter", "a", 0)
    left = [
        channel_dir(data_dir, "orders.dead-letter") / ".done.tmp",
        data_dir / "subscribers" / "orders.dead-letter" / "a.offset.tmp",
    ]
    for path in left:
        path.write_bytes(b"x")
    assert [data_dir / path for path, _ in problems(data_dir)] == left
    assert check(data_dir, "--repair")["ok"]
    assert not any(path.exists() for path in left)


def test_a_leftover_of_a_position_that_is_mended(data_dir: Path) -> None:
    """Mending the position takes the leftover's name first, and both are repaired."""
    write_segment(data_dir, "orders", 0, ONE)
    write_offset(data_dir, "orders", "a", b"")
    left = data_dir / "subscribers" / "orders" / "a.offset.tmp"
    left.write_bytes(b"x")
    report = check(data_dir, "--repair")
    assert [each["repaired"] for each in report["problems"]] == [True, True]
    assert not left.exists()


def test_foreign_files(data_dir: Path) -> None:
    """Whatever is not keyop's is worth a note, and left alone."""
    write_segment(data_dir, "orders", 0, ONE)
    write_offset(data_dir, "orders", "a", 0)
    (channel_dir(data_dir, "orders") / "notes.txt").write_text("x")
    (data_dir / "subscribers" / "orders" / "more").mkdir()
    (data_dir / "channels" / "a b").mkdir()
    (data_dir / "app.sqlite").write_text("x")
    before = tree(data_dir)
    assert notes(data_dir, "--repair") == [
        ("channels/a b", "is not keyop's: no channel has that name"),
        ("channels/orders/notes.txt", "is not keyop's"),
        ("subscribers/orders/more", "is not keyop's"),
    ]
    assert tree(data_dir) == before


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("channels/orders", "is a file where a directory should be"),
        ("subscribers/orders", "is a file where a directory should be"),
        ("channels", "is a file where a directory should be"),
    ],
)
def test_a_file_in_place_of_a_directory(data_dir: Path, path: str, what: str) -> None:
    """It is named; the rest is checked where that is possible."""
    (data_dir / path).parent.mkdir(exist_ok=True)
    (data_dir / path).write_text("x")
    assert problems(data_dir) == [(path, what)]
    assert problems(data_dir, "--repair") == [(path, what)]


@pytest.mark.parametrize(
    "path",
    [
        segment(),
        "channels/orders/.lock",
        "channels/orders/.done",
        offset(),
        "subscribers/orders/a.lock",
    ],
)
def test_a_directory_in_place_of_a_file(data_dir: Path, path: str) -> None:
    """It is named, and nothing breaks on it."""
    write_segment(data_dir, "orders", 5000, ONE)
    (data_dir / path).mkdir(parents=True)
    found = problems(data_dir)
    assert found == [(path, "is not a file, but has the name of one")]


def test_a_pipe_in_place_of_a_segment(data_dir: Path) -> None:
    """Nothing waits for a writer that never comes."""
    write_segment(data_dir, "orders", 0, ONE)
    os.mkfifo(data_dir / segment(SIZE))
    assert problems(data_dir) == [(segment(SIZE), "is not a file, but has the name of one")]


# --- what cannot be read


@pytest.mark.parametrize("operation", ["stat", "listdir", "open", "pread"])
def test_errors_of_the_system_are_problems(data_dir: Path, operation: str) -> None:
    """Whatever cannot be read is named, and the check goes on."""
    write_segment(data_dir, "orders", 0, ONE)
    write_offset(data_dir, "orders", "a", 0)
    reported = 0
    for nth in itertools.count(1):
        fs = FaultyFs()
        fault = fs.fail(operation, errno.EACCES, nth=nth, times=None)
        try:
            report = check_directory(str(data_dir), MAX, fs=fs)
        except StorageError:
            assert nth < 5
            continue
        if not fault.hits:
            break
        assert report.remaining
        assert any("Permission denied" in problem.what for problem in report.remaining)
        reported += 1
    assert reported
    assert report.remaining == []


def test_what_to_do_about_a_permission(data_dir: Path) -> None:
    """Missing permissions and bad disks have their own advice."""
    write_segment(data_dir, "orders", 0, ONE)
    advice = {}
    for number in (errno.EACCES, errno.EIO):
        fs = FaultyFs()
        fs.fail("open", number, times=None, path_contains=".jsonl")
        report = check_directory(str(data_dir), MAX, fs=fs)
        advice[number] = {problem.advice for problem in report.remaining}
    assert advice[errno.EACCES] == {"run the check as the user who owns the data directory"}
    assert advice[errno.EIO] == {"see what the file system or the disk says"}


def test_files_that_vanish_meanwhile(data_dir: Path) -> None:
    """A segment or a position that goes between two looks is no problem."""
    write_segment(data_dir, "orders", 0, ONE)
    write_offset(data_dir, "orders", "a", 0)
    for operation in ("stat", "open", "pread"):
        for name in (".jsonl", ".offset"):
            fs = FaultyFs()
            fs.fail(operation, errno.ENOENT, times=None, path_contains=name)
            assert check_directory(str(data_dir), MAX, fs=fs).remaining == []


def test_a_channel_that_cannot_be_locked(data_dir: Path) -> None:
    """Without the lock nothing is repaired, which is said; what was seen twice is reported."""
    write_segment(data_dir, "orders", 0, ONE + b"torn")
    (channel_dir(data_dir, "orders") / ".lock").touch()
    fs = FaultyFs()
    fs.fail("flock", errno.ENOLCK, times=None, path_contains="orders/.lock")
    report = check_directory(str(data_dir), MAX, fs=fs)
    assert [os.path.basename(each.path) for each in report.remaining] == [f"{0:020}.jsonl"]
    fs = FaultyFs()
    fs.fail("flock", errno.ENOLCK, times=None, path_contains="orders/.lock")
    report = check_directory(str(data_dir), MAX, repair=True, fs=fs)
    assert "nothing was repaired in this channel" in {each.advice for each in report.remaining}
    assert (data_dir / segment()).read_bytes() == ONE + b"torn"


def test_a_repair_that_fails(data_dir: Path) -> None:
    """The problem remains, with the reason."""
    write_segment(data_dir, "orders", 0, ONE)
    write_offset(data_dir, "orders", "a", b"")
    fs = FaultyFs()
    fs.fail("rename", errno.EROFS)
    (problem,) = check_directory(str(data_dir), MAX, repair=True, fs=fs).remaining
    assert problem.advice == "not repaired: Read-only file system"


def test_something_in_the_making_is_no_problem(data_dir: Path) -> None:
    """What looks wrong without the lock is looked at again under it."""
    path = write_segment(data_dir, "orders", 0, ONE + b"half of a")
    (channel_dir(data_dir, "orders") / ".lock").touch()
    fs = FaultyFs()
    flock = fs.flock

    def finish(fd: int, operation: int) -> None:
        path.write_bytes(ONE * 2)
        flock(fd, operation)

    fs.flock = finish  # type: ignore[method-assign,assignment]
    assert check_directory(str(data_dir), MAX, fs=fs).problems == []


# --- modes


def test_files_that_others_may_read(data_dir: Path) -> None:
    """As v0.11.0 makes them: one note on all, and no problem."""
    path = write_segment(data_dir, "orders", 0, ONE)
    path.chmod(0o644)
    path.parent.chmod(0o755)
    data_dir.chmod(0o755)
    assert notes(data_dir) == [
        (
            ".",
            f"1 files and 2 directories may be used by others than their owner, such as {data_dir}",
        )
    ]
    assert check(data_dir)["ok"]


def test_private_files_are_no_news() -> None:
    """0600 and 0700 are as it should be."""
    modes = Modes()
    modes.see("f", stat.S_IFREG | 0o600)
    modes.see("d", stat.S_IFDIR | 0o700)
    assert modes.problems("x") == []


# --- what is printed


def test_for_people(data_dir: Path) -> None:
    """Problems come first, then what was repaired, then notes, then the sum."""
    write_segment(data_dir, "orders", 0, ONE + BROKEN + b"torn")
    (channel_dir(data_dir, "orders") / "\x1b[31m").write_text("x")
    result = keyop("check", "--repair")
    assert (result.status, result.err) == (1, "")
    path = data_dir / segment()
    assert [line for line in result.lines if not line.startswith(" ")] == [
        f"problem  {path}",
        f"repaired {path}",
        f"note     {channel_dir(data_dir, 'orders')}/\\x1b[31m",
        f"1 channel, 1 record, {2 * SIZE} B: 1 problem, 1 repaired, 1 note",
    ]
    assert result.lines[1] == (
        f"         1 line is no record, at {SIZE} (the checksum does not match)"
    )
    assert result.lines[2].startswith("         subscribers put it aside")
    assert result.lines[4] == "         ends with 4 bytes that are no whole record"


def test_several_channels(data_dir: Path) -> None:
    """Sums are over all of them."""
    write_segment(data_dir, "a", 0, ONE)
    write_segment(data_dir, "b", 0, ONE * 2)
    write_segment(data_dir, "b", 2 * SIZE, ONE)
    assert well("check").out == f"2 channels, 4 records, {4 * SIZE} B: no problems\n"


def test_progress_is_told(data_dir: Path) -> None:
    """How much is read, out of how much, counting up to all of it."""
    write_segment(data_dir, "a", 0, ONE)
    write_segment(data_dir, "b", 0, ONE * 2)
    told: list[tuple[int, int]] = []
    check_directory(str(data_dir), MAX, progress=lambda *counts: told.append(counts))
    assert told == [(SIZE, 3 * SIZE), (3 * SIZE, 3 * SIZE)]


def test_a_problem_that_cannot_be_mended() -> None:
    """Repairing it does nothing."""
    problem = Problem("p", "what", "advice")
    problem.repair()
    assert (problem.repaired, problem.repairable, problem.remains) == (False, False, True)
    assert Report("d", problems=[problem]).remaining == [problem]


# --- real directories


@needs_golden
def test_a_directory_of_v0_11_0(tmp_path: Path) -> None:
    """What v0.11.0 wrote has no problems, and notes at most on modes."""
    path = GOLDEN / "datadir" / "client"
    report = json.loads(keyop("check", "--json", "--data-dir", path).out)
    assert report["ok"]
    assert report["records"] > 10
    assert all("may be used by others" in each["what"] for each in report["problems"])


def test_after_a_repair_everything_is_delivered(data_dir: Path) -> None:
    """A subscriber whose position was lost gets everything again, and others go on."""
    seen = Recorder()
    with running(data_dir) as messenger:
        for number in range(3):
            messenger.publish("orders", "t", number)
        messenger.subscribe("orders", "a", seen, start="earliest")
        seen.wait(3)
    offset_path(data_dir, "orders", "a").write_bytes(b"")
    assert check(data_dir, "--repair")["ok"]
    with running(data_dir) as messenger:
        messenger.subscribe("orders", "a", seen)
        assert seen.wait(6) == [0, 1, 2] * 2
