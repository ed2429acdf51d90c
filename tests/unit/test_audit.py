"""The audit log: what a line looks like, rotation, and that it is never in anybody's way."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop.audit import QUEUE_EVENTS, REPORT_INTERVAL_S, AuditEvent, AuditLog
from keyop.audit_event import MAX_DETAIL_CHARS, MAX_NAME_CHARS, encode_event
from keyop.audit_file import AuditFile
from tests.fakes.clock import FakeClock
from tests.fakes.faulty import FaultyFs
from tests.unit.test_forks import in_child

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("KEYOP_GOLDEN") or ROOT.parent / "shared" / "golden")
GOLDEN_FILES = sorted((GOLDEN / "datadir" / "client" / "audit").glob("*"))
needs_golden = pytest.mark.skipif(
    not GOLDEN_FILES, reason="the recorded v0.11.0 data is not there (set KEYOP_GOLDEN)"
)


@pytest.fixture
def fs() -> FaultyFs:
    return FaultyFs()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


Make = Callable[..., AuditLog]


@pytest.fixture
def make(data_dir: Path, fs: FaultyFs, clock: FakeClock) -> Iterator[Make]:
    """Makes logs and ends them."""
    made: list[AuditLog] = []

    def make(max_size_bytes: int = 0, max_files: int = 0, started: bool = True) -> AuditLog:
        log = AuditLog(str(data_dir), max_size_bytes, max_files, fs, clock)
        made.append(log)
        if started:
            log.start()
        return log

    yield make
    fs.heal()
    for log in made:
        log.close(10)


def wait_for(condition: Callable[[], Any], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        gevent.sleep(0.001)


def settle(log: AuditLog, count: int) -> None:
    """Wait until so many events are written or dropped."""
    wait_for(lambda: log.written + log.dropped >= count)
    assert log.written + log.dropped == count


def texts(path: str | Path) -> list[str]:
    """Return the details of a file's events."""
    return [json.loads(line)["detail"] for line in Path(path).read_text().splitlines()]


def note(log: AuditLog, *details: str) -> None:
    for detail in details:
        log.record(AuditEvent.FORWARD, detail=detail)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


class TestLine:
    def test_every_field_in_its_order(self, make: Make, clock: FakeClock) -> None:
        """One JSON object on a line, fields as documented whatever the order of the arguments."""
        clock.step_wall(0.000_000_25)
        log = make()
        log.record(
            AuditEvent.POLICY_VIOLATION,
            detail="d",
            peer_addr="127.0.0.1:1",
            peer="p",
            direction="inbound",
            channel="c",
            message_id="m",
        )
        log.close(10)
        assert Path(log.path).read_text() == (
            '{"ts":"2023-11-14T22:13:20.00000025Z","event":"policy_violation","message_id":"m",'
            '"channel":"c","direction":"inbound","peer":"p","peer_addr":"127.0.0.1:1",'
            '"detail":"d"}\n'
        )

    def test_empty_fields_are_left_out(self, make: Make) -> None:
        """What there is nothing to say about is not there; a whole second has no fraction."""
        log = make()
        log.record(AuditEvent.TLS_RELOADED)
        log.close(10)
        assert Path(log.path).read_text() == (
            '{"ts":"2023-11-14T22:13:20Z","event":"tls_reloaded"}\n'
        )

    def test_the_time_is_that_of_the_event(self, make: Make, clock: FakeClock) -> None:
        """Not that of the write, which may come later."""
        log = make(started=False)
        note(log, "a")
        clock.advance(3661)
        note(log, "b")
        log.start()
        settle(log, 2)
        assert [json.loads(line)["ts"] for line in Path(log.path).read_text().splitlines()] == [
            "2023-11-14T22:13:20Z",
            "2023-11-14T23:14:21Z",
        ]

    @needs_golden
    @pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.name)
    def test_lines_of_v0_11_0(self, path: Path) -> None:
        """Read and written again, every recorded line is the same to the byte."""
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines
        assert [encode_event(json.loads(line)) for line in lines] == lines

    @needs_golden
    def test_events_of_v0_11_0(self, make: Make, clock: FakeClock) -> None:
        """Recorded at the same time with the same fields, an event becomes the same line."""
        line = GOLDEN_FILES[0].read_text().splitlines()[0]
        fields = json.loads(line)
        assert fields.pop("ts") == "2026-11-23T09:23:18.235544936Z"
        clock._wall_start_ns = 1_795_425_798_235_544_936
        log = make()
        log.record(AuditEvent(fields.pop("event")), **fields)
        log.close(10)
        assert Path(log.path).read_text() == line + "\n"

    def test_the_events(self) -> None:
        """Names as format.md has them."""
        names = (
            "forward policy_violation replay_gap peer_connected peer_disconnected "
            "client_connected client_rejected client_drain policy_reloaded policy_reload_failed "
            "loop_dropped undeliverable tls_reloaded tls_reload_failed"
        )
        assert " ".join(event.value for event in AuditEvent) == names

    @pytest.mark.parametrize(
        ("text", "written"),
        [
            ('a"\\\n\x00\x1b[31m', '"a\\"\\\\\\n\\u0000\\u001b[31m"'),
            ("\x7f", '"\\u007f"'),
            ("\x9b31m", '"\\u009b31m"'),
            ("a\u202eb\u2028", '"a\\u202eb\\u2028"'),
            ("\U000e0001", '"\\udb40\\udc01"'),
            ("\ud800\x7f", '"\\ud800\\u007f"'),
            ("größer … 漢字 🙂", '"größer … 漢字 🙂"'),
            ("</script>&", '"</script>&"'),
        ],
    )
    def test_text_from_outside(self, text: str, written: str) -> None:
        """What a terminal would obey or hide is escaped, so that a line stays one; the rest is
        as it came, and everything reads back."""
        line = encode_event({"detail": text})
        assert line.decode() == '{"detail":' + written + "}\n"
        assert json.loads(line) == {"detail": text}

    @pytest.mark.parametrize(
        ("field", "limit"), [("message_id", MAX_NAME_CHARS), ("detail", MAX_DETAIL_CHARS)]
    )
    def test_huge_text_is_cut(self, field: str, limit: int) -> None:
        """A text at its limit stays; a longer one ends in an ellipsis."""
        whole, cut = "x" * limit, "x" * (limit - 1) + "…"
        assert json.loads(encode_event({field: whole})) == {field: whole}
        assert json.loads(encode_event({field: whole + "x"})) == {field: cut}

    def test_an_event_has_a_bounded_size(self) -> None:
        """Even one made of characters that take six bytes each."""
        names = ("event", "message_id", "channel", "direction", "peer", "peer_addr", "detail")
        assert len(encode_event(dict.fromkeys(names, "\x00" * 100_000))) < 16 << 10


class TestFile:
    def test_constructing_does_nothing(self, make: Make, data_dir: Path, fs: FaultyFs) -> None:
        """No file, no thread, no greenlet; nor does starting touch the disk."""
        make(started=False).close(0)
        log = make()
        gevent.sleep(0)
        assert not data_dir.exists()
        assert log.path == f"{data_dir}/audit/audit.jsonl"
        log.close(10)
        assert not data_dir.exists()
        assert not fs.calls

    def test_private(self, make: Make, data_dir: Path) -> None:
        """Directory 0700, file 0600."""
        log = make()
        note(log, "a")
        log.close(10)
        assert (data_dir / "audit").stat().st_mode & 0o777 == 0o700
        assert Path(log.path).stat().st_mode & 0o777 == 0o600

    def test_goes_on_in_a_file_that_is_there(self, make: Make) -> None:
        """A restart loses nothing of what was there."""
        for text in "ab":
            log = make()
            note(log, text)
            log.close(10)
        assert texts(log.path) == ["a", "b"]

    @pytest.mark.parametrize("torn", [b'{"ts":"2023', b'{"a":1}\n{"ts"', b"\0\0\0"])
    def test_a_torn_last_line_is_ended(self, make: Make, torn: bytes) -> None:
        """What a crash has left in the middle of a line does not swallow the next event."""
        log = make()
        path = Path(log.path)
        path.parent.mkdir(parents=True)
        path.write_bytes(torn)
        note(log, "a")
        log.close(10)
        assert path.read_bytes().startswith(torn + b'\n{"ts":')
        assert path.read_bytes().count(b"\n") == torn.count(b"\n") + 2

    def test_one_write_for_many(self, make: Make, fs: FaultyFs) -> None:
        """What has gathered is written at once, in order."""
        log = make()
        note(log, *map(str, range(100)))
        settle(log, 100)
        assert fs.calls["write"] == 1
        assert texts(log.path) == list(map(str, range(100)))

    def test_short_writes(self, data_dir: Path, clock: FakeClock) -> None:
        """A write that takes a part is gone on with."""
        fs = FaultyFs()
        write = fs.write
        fs.write = lambda fd, data: write(fd, data[:7])  # type: ignore[method-assign]
        file = AuditFile(str(data_dir), 0, 0, fs, clock)
        lines = [encode_event({"detail": text}) for text in ("first", "second")]
        assert file.append(lines) == (2, None)
        file.close()
        assert texts(file.path) == ["first", "second"]

    def test_the_file_may_be_moved_away(self, make: Make, clock: FakeClock) -> None:
        """A second later the next event goes into a new file of the old name."""
        log = make()
        note(log, "a")
        settle(log, 1)
        moved = Path(log.path).rename(Path(log.path).with_name("kept"))
        note(log, "b")
        settle(log, 2)
        clock.advance(1)
        note(log, "c")
        settle(log, 3)
        assert (texts(moved), texts(log.path)) == (["a", "b"], ["c"])

    def test_a_reader_may_follow(self, make: Make) -> None:
        """An event is in the file as soon as it counts as written, and whole."""
        log = make()
        note(log, "a")
        settle(log, 1)
        with open(log.path) as file:
            assert json.loads(file.readline())["detail"] == "a"
            note(log, "b")
            settle(log, 2)
            assert json.loads(file.readline())["detail"] == "b"

    def test_descriptors_are_given_back(self, make: Make, fs: FaultyFs) -> None:
        """After close none is open."""
        log = make(max_size_bytes=100, max_files=2)
        note(log, *"abcdef")
        settle(log, 6)
        assert list(fs.open_paths.values()) == [log.path]
        log.close(10)
        assert fs.open_paths == {}

    def test_a_failing_close(self, make: Make, fs: FaultyFs) -> None:
        """It changes nothing of what counts."""
        fs.fail("close", errno.EIO, times=None, path_contains="jsonl")
        log = make()
        note(log, "a")
        log.close(10)
        assert (log.written, log.dropped) == (1, 0)


class TestRotation:
    # The length of the line of an event with a detail of one character.
    LINE = len(b'{"ts":"2023-11-14T22:13:20Z","event":"forward","detail":"a"}\n')

    def contents(self, log: AuditLog) -> dict[str, list[str]]:
        return {path.name: texts(path) for path in sorted(Path(log.path).parent.iterdir())}

    def test_before_a_line_that_would_not_fit(self, make: Make) -> None:
        """No file exceeds the size; the oldest has the highest number."""
        log = make(2 * self.LINE, 10)
        note(log, *"abcde")
        log.close(10)
        assert self.contents(log) == {
            "audit.jsonl": ["e"],
            "audit.jsonl.1": ["c", "d"],
            "audit.jsonl.2": ["a", "b"],
        }
        assert log.written == 5

    def test_across_restarts(self, make: Make) -> None:
        """What is in the file from before counts too."""
        for text in "abc":
            log = make(2 * self.LINE, 10)
            note(log, text)
            log.close(10)
        assert self.contents(log) == {"audit.jsonl": ["c"], "audit.jsonl.1": ["a", "b"]}

    def test_no_more_files_than_allowed(self, make: Make) -> None:
        """The oldest goes."""
        log = make(self.LINE, 2)
        note(log, *"abcde")
        log.close(10)
        assert self.contents(log) == {
            "audit.jsonl": ["e"],
            "audit.jsonl.1": ["d"],
            "audit.jsonl.2": ["c"],
        }

    def test_keeping_none(self, make: Make) -> None:
        """With 0 the file begins anew."""
        log = make(self.LINE, 0)
        note(log, *"abc")
        log.close(10)
        assert self.contents(log) == {"audit.jsonl": ["c"]}

    def test_never(self, make: Make) -> None:
        """A size of 0 lets the file grow."""
        log = make(0, 5)
        note(log, *"abcdefgh")
        log.close(10)
        assert self.contents(log) == {"audit.jsonl": list("abcdefgh")}

    def test_a_line_that_is_longer_than_a_file(self, make: Make) -> None:
        """It gets a file of its own."""
        log = make(self.LINE, 10)
        note(log, "a", "x" * 500, "b")
        log.close(10)
        assert list(self.contents(log).values()) == [["b"], ["x" * 500], ["a"]]

    @pytest.mark.parametrize("keep", [0, 1, 3])
    def test_fewer_than_before(self, make: Make, keep: int) -> None:
        """Files beyond a number that was lowered go with the next rotation; what only looks like
        one of them stays."""
        log = make(self.LINE, keep)
        directory = Path(log.path).parent
        directory.mkdir(parents=True)
        for number in (1, 2, 3, 4, 12):
            (directory / f"audit.jsonl.{number}").write_text(
                encode_event({"detail": str(number)}).decode()
            )
        others = ["audit.jsonl.0", "audit.jsonl.01", "audit.jsonl.gz", "audit.jsonl.1.gz"]
        for name in others:
            (directory / name).touch()
        note(log, *"ab")
        log.close(10)
        found = self.contents(log)
        assert [found.pop(name) for name in others] == [[]] * 4
        kept = [["a"], ["1"], ["2"]][:keep]
        assert list(found.values()) == [["b"], *kept]

    def test_a_gap(self, make: Make) -> None:
        """Numbers above one that is free stay, so that nothing goes before its time."""
        log = make(self.LINE, 3)
        directory = Path(log.path).parent
        directory.mkdir(parents=True)
        for number in (1, 3):
            (directory / f"audit.jsonl.{number}").write_text(f'{{"detail":"{number}"}}\n')
        note(log, *"ab")
        log.close(10)
        assert list(self.contents(log).values()) == [["b"], ["a"], ["1"], ["3"]]

    @pytest.mark.parametrize("operation", ["rename", "listdir", "open"])
    def test_a_rotation_that_fails(self, make: Make, fs: FaultyFs, operation: str) -> None:
        """The event that needed it is dropped, the file does not grow, and the next one tries
        again."""
        log = make(self.LINE, 2)
        note(log, "a")
        settle(log, 1)
        fault = fs.fail(operation, errno.EIO, times=1)
        note(log, "b")
        settle(log, 2)
        assert fault.hits == 1
        assert log.dropped == 1
        note(log, "c")
        settle(log, 3)
        assert log.dropped == 1
        assert list(self.contents(log).values())[-2:] == [["c"], ["a"]]

    def test_a_torn_line_ends_before_it_moves(self, make: Make) -> None:
        """Rotated files may be joined again, and no line runs into the next."""
        log = make(20, 2)
        path = Path(log.path)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"torn and long enough")
        note(log, "a")
        log.close(10)
        assert path.with_name("audit.jsonl.1").read_bytes() == b"torn and long enough\n"


class TestNeverInTheWay:
    def test_recording_never_waits(self, make: Make, fs: FaultyFs) -> None:
        """While the disk hangs, events fill the queue, and then they are dropped and counted."""
        log = make()
        with fs.hold("write") as held:
            note(log, "first")
            held.wait_entered()
            for number in range(QUEUE_EVENTS + 5):
                note(log, str(number))
            assert log.dropped == 5
        settle(log, QUEUE_EVENTS + 6)
        assert texts(log.path) == ["first", *map(str, range(QUEUE_EVENTS))]

    def test_others_run_while_the_disk_hangs(self, make: Make, fs: FaultyFs) -> None:
        """Only the thread of the log waits for it."""
        log = make()
        with fs.hold("write") as held:
            note(log, "a")
            held.wait_entered()
            gevent.sleep(0.001)
        settle(log, 1)

    @pytest.mark.parametrize("text", [3, object()], ids=lambda text: type(text).__name__)
    def test_recording_never_raises(self, make: Make, text: Any) -> None:
        """What cannot be recorded is dropped and counted."""
        log = make()
        log.record(AuditEvent.FORWARD, detail=text)
        assert log.dropped == 1

    @pytest.mark.parametrize("operation", ["open", "lseek", "write", "mkdir"])
    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EMFILE])
    def test_goes_on_after_a_failure(
        self, make: Make, fs: FaultyFs, operation: str, error: int
    ) -> None:
        """What fails is dropped; the next event is written."""
        fault = fs.fail(operation, error)
        log = make()
        note(log, "a")
        settle(log, 1)
        assert (fault.hits, log.written, log.dropped) == (1, 0, 1)
        note(log, "b")
        settle(log, 2)
        assert (log.written, log.dropped) == (1, 1)
        assert texts(log.path) == ["b"]

    def test_a_failing_look_at_the_last_byte(self, make: Make, fs: FaultyFs) -> None:
        """It is a failure as any other."""
        log = make()
        note(log, "a")
        log.close(10)
        fs.fail("pread", errno.EIO)
        log = make()
        note(log, "b")
        settle(log, 1)
        note(log, "c")
        settle(log, 2)
        assert texts(log.path) == ["a", "c"]

    def test_a_full_disk(self, make: Make, fs: FaultyFs) -> None:
        """Whole lines that found room count as written; the torn one is ended when there is room
        again, and everything that comes then is written."""
        log = make()
        note(log, "a")
        settle(log, 1)
        line = TestRotation.LINE
        fs.fill(2 * line + 10)
        note(log, *"bcde")
        settle(log, 5)
        assert (log.written, log.dropped) == (3, 2)
        note(log, "f")
        settle(log, 6)
        assert log.dropped == 3
        fs.full = False
        note(log, "g")
        settle(log, 7)
        lines = Path(log.path).read_bytes().splitlines()
        assert [json.loads(each)["detail"] for each in lines[:3] + lines[4:]] == list("abcg")
        assert lines[3] == lines[0][:10]

    def test_a_file_in_place_of_the_directory(self, make: Make, data_dir: Path) -> None:
        """It is said, and nothing breaks."""
        data_dir.mkdir()
        (data_dir / "audit").touch()
        log = make()
        note(log, "a")
        settle(log, 1)
        assert log.dropped == 1

    def test_an_error_that_is_no_os_error(self, make: Make, fs: FaultyFs) -> None:
        """Nothing that goes wrong in the thread ends the writer."""

        def fail(*_: object) -> int:
            raise MemoryError("none left")

        real, fs.lseek = fs.lseek, fail  # type: ignore[method-assign]
        log = make()
        note(log, "a")
        settle(log, 1)
        assert log.dropped == 1
        fs.lseek = real  # type: ignore[method-assign]
        note(log, "b")
        settle(log, 2)
        assert log.written == 1


class TestReports:
    def test_every_five_seconds_while_there_are_any(
        self, make: Make, fs: FaultyFs, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One warning with the number of each cause since the last one; none without drops."""
        log = make()
        clock.wait_for_sleepers()
        clock.advance(REPORT_INTERVAL_S)
        assert warnings(caplog) == []
        fs.fail("open", errno.ENOSPC, path_contains="audit.jsonl")
        note(log, *"abc")
        settle(log, 3)
        with fs.hold("write") as held:
            note(log, "first")
            held.wait_entered()
            for _ in range(QUEUE_EVENTS + 2):
                note(log, "x")
        settle(log, QUEUE_EVENTS + 6)
        clock.advance(REPORT_INTERVAL_S - 0.1)
        assert warnings(caplog) == []
        clock.advance(0.1)
        no_room = os.strerror(errno.ENOSPC)
        assert warnings(caplog) == [
            f"{log.path}: 5 events were dropped: "
            f"[Errno {errno.ENOSPC}] {no_room}: '{log.path}' (3); too many at once (2)"
        ]
        clock.advance(REPORT_INTERVAL_S)
        assert len(warnings(caplog)) == 1

    def test_at_close(self, make: Make, fs: FaultyFs, caplog: pytest.LogCaptureFixture) -> None:
        """What was not reported yet is then."""
        fs.fail("write", errno.EIO)
        log = make()
        note(log, "a")
        log.close(10)
        assert warnings(caplog) == [
            f"{log.path}: 1 events were dropped: [Errno {errno.EIO}] "
            f"{os.strerror(errno.EIO)}: '{log.path}' (1)"
        ]


class TestLife:
    def test_what_was_recorded_before_the_start(self, make: Make) -> None:
        """It waits in the queue."""
        log = make(started=False)
        note(log, "a")
        log.start()
        settle(log, 1)
        assert texts(log.path) == ["a"]

    def test_starting_twice(self, make: Make, clock: FakeClock) -> None:
        """The second time there is nothing to do."""
        log = make()
        log.start()
        clock.wait_for_sleepers()
        gevent.sleep(0)
        assert clock.sleepers == 1

    def test_close_writes_the_queue(self, make: Make) -> None:
        """Everything that was recorded is in the file then."""
        log = make()
        note(log, *map(str, range(QUEUE_EVENTS)))
        log.close(10)
        assert len(texts(log.path)) == QUEUE_EVENTS

    def test_close_while_writing(self, make: Make, fs: FaultyFs) -> None:
        """It waits for the write, and for what came meanwhile."""
        log = make()
        with fs.hold("write") as held:
            note(log, "a")
            held.wait_entered()
            note(log, "b")
            closing = gevent.spawn(log.close, 10)
            gevent.sleep(0.001)
            assert not closing.dead
        closing.join(10)
        assert texts(log.path) == ["a", "b"]

    def test_closed(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """Closing again does nothing, nor does starting; what is recorded is dropped."""
        log = make()
        log.close(10)
        log.close(10)
        log.start()
        note(log, "a")
        assert (log.written, log.dropped) == (0, 1)
        assert not os.path.exists(log.path)

    def test_closed_without_a_start(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """What nobody ever wrote is reported as dropped."""
        log = make(started=False)
        note(log, *"ab")
        log.close(10)
        assert log.dropped == 2
        assert warnings(caplog) == [
            f"{log.path}: 2 events were dropped: not written before the end (2)"
        ]

    def test_close_keeps_its_deadline(self, make: Make, fs: FaultyFs) -> None:
        """A disk that hangs keeps its thread and its descriptor, until it answers."""
        log = make()
        with fs.hold("write") as held:
            note(log, "a")
            held.wait_entered()
            note(log, *"bc")
            before = time.monotonic()
            log.close(0.02)
            assert time.monotonic() - before < 5
            assert log.dropped == 3
            assert list(fs.open_paths.values()) == [log.path]
        wait_for(lambda: not fs.open_paths)

    def test_no_time_at_all(self, make: Make) -> None:
        """Closing ends at once; what is left counts as dropped."""
        log = make()
        note(log, "a")
        log.close(-1)
        assert log.written + log.dropped == 1

    def test_a_forked_child_writes_nothing(self, make: Make) -> None:
        """The queue is the parent's; what the child records is dropped."""
        log = make(started=True)
        note(log, "a")

        def child() -> int:
            gevent.sleep(0.02)
            note(log, "b")
            log.close(1)
            return log.dropped

        assert in_child(child) == 1
        log.close(10)
        assert texts(log.path) == ["a"]

    def test_in_a_child_everything_ends(self, make: Make) -> None:
        """What a child does, done here, where it can be looked at."""
        log = make()
        note(log, "a")
        log.drop_in_child()
        gevent.sleep(0)
        log.close(10)
        assert (log.written, log.dropped) == (0, 0)
