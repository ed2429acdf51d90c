"""Read positions: whole lines only, across segments, whatever happens between two system calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyop.fs import SYSTEM_FS, FileSystem
from keyop.storage.cursor import Cursor, Lines, Skipped

MAX = 1000
CHUNK = 64


def put(directory: Path, start: int, content: bytes, *, append: bool = False) -> int:
    """Write a segment; return its end."""
    with open(directory / f"{start:020}.jsonl", "ab" if append else "wb") as file:
        file.write(content)
        return start + file.tell()


class Busy(FileSystem):
    """Something else happens right before the n-th call of an operation, or of any."""

    def __init__(self) -> None:
        self.plans: dict[tuple[str, int], Callable[[], Any]] = {}
        self.counts: dict[str, int] = {}
        for name in ("pread", "listdir", "open", "fstat"):
            setattr(self, name, self._busy(name, getattr(SYSTEM_FS, name)))

    def _busy(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any, **kwargs: Any) -> Any:
            for counted in (name, "any"):
                self.counts[counted] = self.counts.get(counted, 0) + 1
                plan = self.plans.pop((counted, self.counts[counted]), None)
                if plan is not None:
                    plan()
            return call(*args, **kwargs)

        return do

    def before(self, name: str, nth: int, action: Callable[[], Any]) -> None:
        """Plan an action, counted from now."""
        self.plans[name, self.counts.get(name, 0) + nth] = action


@pytest.fixture
def fs() -> Busy:
    return Busy()


@pytest.fixture
def cursor(fs: Busy, tmp_path: Path) -> Iterator[Cursor]:
    made = Cursor(fs, str(tmp_path), MAX, CHUNK)
    yield made
    made.close()


def read_all(cursor: Cursor, look_around: bool = True) -> list[Lines | Skipped]:
    found = []
    while (each := cursor.read(look_around)) is not None:
        assert len(found) < 10_000
        found.append(each)
    return found


def lines(found: list[Lines | Skipped]) -> list[bytes]:
    return [line for each in found if isinstance(each, Lines) for line in each.lines]


def offsets(found: list[Lines | Skipped]) -> list[int]:
    """Return where each line begins, checking that nothing overlaps or is left out."""
    result = []
    position: int | None = None
    for each in found:
        assert position in (None, each.start)
        position = each.start
        if isinstance(each, Skipped):
            position = each.end
            continue
        for line in each.lines:
            result.append(position)
            position += len(line) + 1
    return result


class TestOpen:
    @pytest.mark.parametrize(
        ("position", "taken"),
        [
            (0, 100),  # retention has deleted what was before
            (99, 100),
            (100, 100),
            (101, 100),
            (102, 100),
            (103, 103),
            (104, 103),
            (106, 106),  # the end of the first segment, where the second begins
            (107, 106),
            (109, 109),
            (110, 109),  # in the gap
            (200, 200),
            (203, 203),
            (204, 203),  # an unfinished line
            (205, 203),
            (10**19, 203),  # past the end
        ],
    )
    def test_position(self, cursor: Cursor, tmp_path: Path, position: int, taken: int) -> None:
        """The position taken is on a record boundary, never past the end."""
        put(tmp_path, 100, b"ab\ncd\n")
        put(tmp_path, 106, b"ef\n")
        put(tmp_path, 200, b"gh\nij")
        assert cursor.open(position) == cursor.position == taken

    def test_an_empty_channel(self, cursor: Cursor, tmp_path: Path) -> None:
        """There is only 0, and records that come are read from there."""
        assert cursor.open(17) == 0
        assert cursor.read() is None
        put(tmp_path, 0, b"ab\n")
        assert cursor.read() == Lines(0, [b"ab"])

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        """It is an error, not an empty channel."""
        with pytest.raises(FileNotFoundError):
            Cursor(SYSTEM_FS, str(tmp_path / "none"), MAX).open(0)

    def test_again(self, cursor: Cursor, tmp_path: Path) -> None:
        """An open cursor may go anywhere, and keeps one descriptor."""
        put(tmp_path, 0, b"ab\n")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            cursor.open(0)
            assert cursor.read() == Lines(0, [b"ab"])
        assert len(os.listdir("/proc/self/fd")) == before + 1

    def test_reading_needs_no_open(self, cursor: Cursor, tmp_path: Path) -> None:
        """A new cursor begins with the first record there is."""
        put(tmp_path, 100, b"ab\n")
        assert cursor.read() == Lines(100, [b"ab"])


class TestRead:
    def test_lines_with_their_offset(self, cursor: Cursor, tmp_path: Path) -> None:
        """Lines come without newlines, empty ones too, and the position moves past them."""
        put(tmp_path, 0, b"ab\n\ncd\n")
        assert cursor.read() == Lines(0, [b"ab", b"", b"cd"])
        assert cursor.position == 7
        assert cursor.read() is None

    def test_across_segments(self, cursor: Cursor, tmp_path: Path) -> None:
        """A segment that begins where this one ends is found without looking around."""
        end = put(tmp_path, 0, b"ab\n")
        put(tmp_path, put(tmp_path, end, b"cd\n"), b"ef\n")
        assert lines(read_all(cursor, look_around=False)) == [b"ab", b"cd", b"ef"]

    def test_an_empty_active_segment(self, cursor: Cursor, tmp_path: Path) -> None:
        """A segment that was just begun is the end of the log."""
        put(tmp_path, put(tmp_path, 0, b"ab\n"), b"")
        cursor.open(0)
        assert lines(read_all(cursor)) == [b"ab"]
        assert cursor.read(True) is None
        put(tmp_path, 3, b"cd\n")
        assert cursor.read() == Lines(3, [b"cd"])

    def test_a_gap(self, cursor: Cursor, tmp_path: Path) -> None:
        """It is reported when looked for, and reading goes on behind it."""
        put(tmp_path, 0, b"ab\n")
        put(tmp_path, 50, b"cd\n")
        cursor.open(0)
        assert lines(read_all(cursor, look_around=False)) == [b"ab"]
        assert read_all(cursor) == [Skipped(3, 50, "gap"), Lines(50, [b"cd"])]

    def test_a_position_in_a_gap(self, cursor: Cursor, tmp_path: Path) -> None:
        """What is missing is told from the end of the segment before."""
        put(tmp_path, 0, b"ab\n")
        put(tmp_path, 50, b"cd\n")
        assert cursor.open(20) == 3
        assert read_all(cursor) == [Skipped(3, 50, "gap"), Lines(50, [b"cd"])]

    def test_the_segment_being_read_is_deleted(self, cursor: Cursor, tmp_path: Path) -> None:
        """What is open can be read to its end; what was deleted behind it is a gap."""
        put(tmp_path, put(tmp_path, put(tmp_path, 0, b"ab\n"), b"cd\n"), b"ef\n")
        cursor.open(0)
        for start in (0, 3):
            (tmp_path / f"{start:020}.jsonl").unlink()
        assert read_all(cursor) == [
            Lines(0, [b"ab"]),
            Skipped(3, 6, "gap"),
            Lines(6, [b"ef"]),
        ]

    def test_after_close(self, cursor: Cursor, tmp_path: Path) -> None:
        """Reading goes on where it stopped, in the segment or in the next."""
        put(tmp_path, put(tmp_path, 0, b"ab\ncd\n"), b"ef\n")
        cursor.open(3)
        cursor.close()
        assert cursor.read() == Lines(3, [b"cd"])
        cursor.close()
        cursor.close()
        assert cursor.read() == Lines(6, [b"ef"])

    def test_after_close_the_segment_has_gone(self, cursor: Cursor, tmp_path: Path) -> None:
        """What was deleted while nothing was open is skipped."""
        put(tmp_path, 0, b"ab\ncd\n")
        cursor.open(0)
        cursor.close()
        (tmp_path / f"{0:020}.jsonl").unlink()
        put(tmp_path, 6, b"ef\n")
        assert lines(read_all(cursor)) == [b"ef"]

    def test_dropped_in_a_child(self, cursor: Cursor, tmp_path: Path) -> None:
        """The descriptor goes, and the cursor can be used again."""
        put(tmp_path, 0, b"ab\n")
        cursor.open(0)
        before = len(os.listdir("/proc/self/fd"))
        cursor.drop_in_child()
        assert len(os.listdir("/proc/self/fd")) == before - 1
        assert cursor.read() == Lines(0, [b"ab"])


class TestUnfinished:
    @pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    def test_nothing_before_its_newline(self, cursor: Cursor, tmp_path: Path, length: int) -> None:
        """A line is given when its newline is there, however many looks it took."""
        line = b"x" * length
        put(tmp_path, 0, b"ab\n")
        cursor.open(0)
        for byte in line:
            assert lines(read_all(cursor)) in ([b"ab"], [])
            put(tmp_path, 0, bytes([byte]), append=True)
        assert cursor.read(True) is None
        put(tmp_path, 0, b"\n", append=True)
        assert lines(read_all(cursor)) == [line]

    def test_a_tail_that_is_cut_back(self, cursor: Cursor, tmp_path: Path) -> None:
        """Nothing of it is kept from one read to the next."""
        put(tmp_path, 0, b"ab\nhalf")
        cursor.open(0)
        assert lines(read_all(cursor)) == [b"ab"]
        os.truncate(tmp_path / f"{0:020}.jsonl", 3)
        put(tmp_path, 0, b"cd\n", append=True)
        assert lines(read_all(cursor)) == [b"cd"]

    def test_at_the_end_of_a_sealed_segment(self, cursor: Cursor, tmp_path: Path) -> None:
        """Nobody will finish it: it is told as torn, and its neighbours are read."""
        end = put(tmp_path, 0, b"ab\nhalf")
        put(tmp_path, end, b"cd\n")
        cursor.open(0)
        assert read_all(cursor) == [
            Lines(0, [b"ab"]),
            Skipped(3, 7, "torn", b"half"),
            Lines(7, [b"cd"]),
        ]

    def test_torn_before_a_gap(self, cursor: Cursor, tmp_path: Path) -> None:
        """The gap behind it counts as part of what is lost."""
        put(tmp_path, 0, b"half")
        put(tmp_path, 50, b"cd\n")
        cursor.open(0)
        assert read_all(cursor) == [Skipped(0, 50, "torn", b"half"), Lines(50, [b"cd"])]

    def test_a_long_torn_line(self, cursor: Cursor, tmp_path: Path) -> None:
        """What is kept of it is bounded."""
        end = put(tmp_path, 0, b"x" * (2 * MAX))
        put(tmp_path, end, b"cd\n")
        cursor.open(0)
        assert read_all(cursor) == [
            Skipped(0, end, "torn", b"x" * MAX),
            Lines(end, [b"cd"]),
        ]

    @pytest.mark.parametrize("nth", range(1, 6))
    def test_finished_between_two_calls(
        self, cursor: Cursor, fs: Busy, tmp_path: Path, nth: int
    ) -> None:
        """Whichever system call the rest comes before, the line is read whole and once."""
        put(tmp_path, 0, b"ab\n" + b"x" * CHUNK)
        cursor.open(0)
        fs.before("any", nth, lambda: put(tmp_path, 0, b"yz\nnext\n", append=True))
        found = read_all(cursor)
        for plan in list(fs.plans.values()):
            plan()
        fs.plans.clear()
        found += read_all(cursor)
        assert lines(found) == [b"ab", b"x" * CHUNK + b"yz", b"next"]

    @pytest.mark.parametrize("half", [b"half", b"x" * CHUNK, b"x" * 3 * CHUNK])
    @pytest.mark.parametrize("nth", range(1, 8))
    def test_finished_and_sealed_between_two_calls(
        self, cursor: Cursor, fs: Busy, tmp_path: Path, nth: int, half: bytes
    ) -> None:
        """Another process ends the line and rolls: nothing is torn, nothing is lost."""
        put(tmp_path, 0, b"ab\n" + half)

        def go_on() -> None:
            end = put(tmp_path, 0, b"yz\nnext\n", append=True)
            put(tmp_path, end, b"last\n")

        cursor.open(0)
        fs.before("any", nth, go_on)
        found = read_all(cursor)
        for plan in list(fs.plans.values()):
            plan()
        fs.plans.clear()
        found += read_all(cursor)
        assert lines(found) == [b"ab", half + b"yz", b"next", b"last"]
        assert all(isinstance(each, Lines) for each in found)

    def test_a_long_line_finished_and_sealed(
        self, cursor: Cursor, fs: Busy, tmp_path: Path
    ) -> None:
        """A line too long for us takes only itself with it, not what follows in its segment."""
        put(tmp_path, 0, b"x" * 2 * MAX)

        def go_on() -> None:
            end = put(tmp_path, 0, b"yz\nnext\n", append=True)
            put(tmp_path, end, b"last\n")

        cursor.open(0)
        fs.before("listdir", 1, go_on)
        assert lines(read_all(cursor)) == [b"next", b"last"]


class TestGrowth:
    @pytest.mark.parametrize("look_around", [True, False])
    @pytest.mark.parametrize("nth", range(1, 7))
    def test_appended_and_rolled_between_two_calls(
        self, cursor: Cursor, fs: Busy, tmp_path: Path, nth: int, look_around: bool
    ) -> None:
        """Another process appends and rolls while the end is looked at: nothing is skipped."""
        put(tmp_path, 0, b"ab\n")

        def go_on() -> None:
            end = put(tmp_path, 0, b"cd\nef\n", append=True)
            put(tmp_path, end, b"gh\n")

        cursor.open(0)
        fs.before("any", nth, go_on)
        found = read_all(cursor, look_around)
        for plan in list(fs.plans.values()):
            plan()
        fs.plans.clear()
        found += read_all(cursor, look_around)
        assert lines(found) == [b"ab", b"cd", b"ef", b"gh"]
        assert all(isinstance(each, Lines) for each in found)

    @pytest.mark.parametrize("nth", range(1, 7))
    def test_rolled_twice_between_two_calls(
        self, cursor: Cursor, fs: Busy, tmp_path: Path, nth: int
    ) -> None:
        """Several segments may come at once."""
        put(tmp_path, 0, b"ab\n")

        def go_on() -> None:
            put(tmp_path, put(tmp_path, 3, b"cd\n"), b"ef\n")

        cursor.open(0)
        fs.before("any", nth, go_on)
        found = read_all(cursor)
        for plan in list(fs.plans.values()):
            plan()
        fs.plans.clear()
        assert lines(found + read_all(cursor)) == [b"ab", b"cd", b"ef"]


class TestLongLines:
    @pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, MAX - 1])
    def test_up_to_the_limit(self, cursor: Cursor, tmp_path: Path, length: int) -> None:
        """A record of the greatest size, newline included, is read whole."""
        put(tmp_path, 0, b"ab\n" + b"x" * length + b"\ncd\n")
        cursor.open(0)
        assert lines(read_all(cursor)) == [b"ab", b"x" * length, b"cd"]

    @pytest.mark.parametrize("length", [MAX, MAX + 1, 3 * MAX])
    def test_beyond_the_limit(self, cursor: Cursor, tmp_path: Path, length: int) -> None:
        """It is skipped with as much of it as may be kept; its neighbours are read."""
        put(tmp_path, 0, b"ab\n" + b"x" * length + b"\ncd\n")
        cursor.open(0)
        found = read_all(cursor)
        assert found == [
            Lines(0, [b"ab"]),
            Skipped(3, 3 + length + 1, "oversize", b"x" * MAX),
            Lines(4 + length, [b"cd"]),
        ]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 200), max_size=6), min_size=1, max_size=5),
    st.integers(1, 150),
    st.data(),
)
def test_any_log_from_any_position(
    tmp_path_factory: pytest.TempPathFactory,
    segments: list[list[int]],
    chunk_bytes: int,
    data: st.DataObject,
) -> None:
    """From any byte on, the lines are those of the log from that record on, at their offsets."""
    directory = tmp_path_factory.mktemp("log")
    written: list[tuple[int, bytes]] = []
    start = 0
    for number, lengths in enumerate(segments):
        position = start
        for length in lengths:
            line = bytes([97 + number]) * length
            written.append((position, line))
            position += length + 1
        put(directory, start, b"".join(line + b"\n" for at, line in written if at >= start))
        if position == start:
            break  # an empty segment is the last
        start = position
    total = sum(len(line) + 1 for _, line in written)
    position = data.draw(st.integers(0, total + 5))
    cursor = Cursor(SYSTEM_FS, str(directory), MAX, chunk_bytes)
    try:
        taken = cursor.open(position)
        found = read_all(cursor)
    finally:
        cursor.close()
    assert taken == max([at for at, _ in [*written, (total, b"")] if at <= position], default=0)
    assert list(zip(offsets(found), lines(found), strict=True)) == [
        (at, line) for at, line in written if at >= taken
    ]


def test_no_look_for_a_next_segment_while_there_is_none(fs: Busy, tmp_path: Path) -> None:
    """At the end of the segment that is known to be the active one, nothing is opened."""
    active = {0}
    (tmp_path / f"{0:020d}.jsonl").write_bytes(b"one\n")
    cursor = Cursor(fs, str(tmp_path), MAX, CHUNK, active.__contains__)
    try:
        cursor.open(0)
        assert lines(read_all(cursor)) == [b"one"]
        opened = fs.counts["open"]
        assert cursor.read() is None
        assert fs.counts["open"] == opened
        assert not cursor.behind
        active.clear()
        (tmp_path / f"{4:020d}.jsonl").write_bytes(b"two\n")
        assert cursor.behind
        assert lines(read_all(cursor, look_around=False)) == [b"two"]
    finally:
        cursor.close()
