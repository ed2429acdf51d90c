"""What users call a position, as an offset."""

from __future__ import annotations

import errno
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyop.envelope import EnvelopeWriter
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.storage.position import check_position, find_time, resolve
from tests.fakes.clock import FakeClock
from tests.fakes.faulty import FaultyFs

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)
BEGIN_NS = 1_767_225_600 * 10**9
MAX = 1 << 20


class Bounded(FileSystem):
    """Fails a search that does not come to an end."""

    def __init__(self, opens: int = 500) -> None:
        self.left = opens

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:  # type: ignore[override]
        self.left -= 1
        assert self.left > 0, "the search does not end"
        return os.open(path, flags, mode)


def record(second: float, size: int = 0) -> bytes:
    writer = EnvelopeWriter("o", FakeClock(BEGIN_NS + round(second * 10**9)))
    return writer.encode("c", "t", b'"' + b"x" * size + b'"')[1]


def at(second: float) -> datetime:
    return BEGIN + timedelta(seconds=second)


def log(directory: Path, *segments: list[bytes], start: int = 0) -> list[int]:
    """Write segments that follow each other; return the offset of each line, and of the end."""
    offsets = [start]
    for lines in segments:
        (directory / f"{start:020}.jsonl").write_bytes(b"".join(lines))
        for line in lines:
            start += len(line)
            offsets.append(start)
    return offsets


@pytest.mark.parametrize("position", ["earliest", "latest", 0, 10**20, BEGIN])
def test_positions(position: Any) -> None:
    """Two words, offsets from 0 on and aware moments."""
    assert check_position(position) is position


@pytest.mark.parametrize(
    "position",
    ["", "Earliest", "0", -1, 1.0, True, None, b"latest", BEGIN.replace(tzinfo=None), BEGIN.date()],
)
def test_what_is_no_position(position: Any) -> None:
    """Anything else is an error that says what is allowed."""
    with pytest.raises(ValueError, match="use 'earliest', 'latest'"):
        check_position(position)


@pytest.mark.parametrize("position", ["earliest", "latest", 7, BEGIN])
def test_an_empty_channel(tmp_path: Path, position: Any) -> None:
    """Every position of it is 0."""
    assert resolve(SYSTEM_FS, str(tmp_path), position, MAX) == 0


@pytest.mark.parametrize("position", ["earliest", "latest", 7, BEGIN])
def test_a_directory_that_cannot_be_read(tmp_path: Path, position: Any) -> None:
    """It is an error, not an empty channel."""
    with pytest.raises(OSError):
        resolve(SYSTEM_FS, str(tmp_path / "none"), position, MAX)


def test_earliest_and_latest(tmp_path: Path) -> None:
    """The first record that is left, and the end."""
    offsets = log(tmp_path, [record(1), record(2)], [record(3)], start=500)
    assert resolve(SYSTEM_FS, str(tmp_path), "earliest", MAX) == 500
    assert resolve(SYSTEM_FS, str(tmp_path), "latest", MAX) == offsets[-1]


def test_latest_is_a_record_boundary(tmp_path: Path) -> None:
    """While another process is in the middle of an append, the end is before its record."""
    offsets = log(tmp_path, [record(1)])
    with open(tmp_path / f"{0:020}.jsonl", "ab") as file:
        file.write(record(2)[:20])
    assert resolve(SYSTEM_FS, str(tmp_path), "latest", MAX) == offsets[-1]


def test_an_offset(tmp_path: Path) -> None:
    """It moves to the boundary before it, to the first record or to the end."""
    offsets = log(tmp_path, [record(1), record(2)], [record(3)], start=500)
    wanted = [
        (0, 500),
        (offsets[1] + 5, offsets[1]),
        (offsets[2], offsets[2]),
        (10**15, offsets[3]),
    ]
    for position, offset in wanted:
        assert resolve(SYSTEM_FS, str(tmp_path), position, MAX) == offset


class TestFindTime:
    @pytest.mark.parametrize(
        ("second", "index"), [(0, 0), (1, 0), (1.5, 1), (2, 1), (4, 3), (4.5, 4), (7, 6), (9, 7)]
    )
    def test_the_first_at_or_after(self, tmp_path: Path, second: float, index: int) -> None:
        """The offset is that of the first record stamped then or later; the end if none is."""
        offsets = log(
            tmp_path,
            [record(1), record(2), record(3)],
            [record(4), record(5)],
            [record(6), record(7)],
            [],
        )
        assert find_time(SYSTEM_FS, str(tmp_path), at(second), MAX) == offsets[index]

    def test_an_empty_channel(self, tmp_path: Path) -> None:
        """There is only 0."""
        assert find_time(SYSTEM_FS, str(tmp_path), BEGIN, MAX) == 0

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.lists(st.sampled_from([0, 100, 20_000, 50_000, 70_000]), min_size=1, max_size=6),
            min_size=1,
            max_size=4,
        ),
        st.integers(0, 50),
    )
    def test_any_log(
        self, tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], second: int
    ) -> None:
        """Whatever the sizes of records, the search ends, at the right one."""
        directory = tmp_path_factory.mktemp("log")
        seconds = iter(range(2, 1000, 2))
        segments = [[record(next(seconds), size) for size in each] for each in sizes]
        offsets = log(directory, *segments)
        count = len(offsets) - 1
        expected = offsets[min(count, max(0, (second + 1) // 2 - 1))]
        assert find_time(Bounded(), str(directory), at(second), MAX) == expected

    def test_a_long_record_first(self, tmp_path: Path) -> None:
        """A record that reaches over the middle of its segment does not hold the search up."""
        offsets = log(tmp_path, [record(1, 50_000), record(3, 20_000)])
        assert find_time(Bounded(), str(tmp_path), at(2), MAX) == offsets[1]

    def test_many_records_are_halved(self, tmp_path: Path) -> None:
        """A large segment is not read from its beginning."""
        offsets = log(tmp_path, [record(each, 1000) for each in range(600)])
        faulty = FaultyFs()
        assert find_time(faulty, str(tmp_path), at(580), MAX) == offsets[580]
        assert faulty.calls["pread"] < 60

    def test_lines_that_are_no_records(self, tmp_path: Path) -> None:
        """They have no time and are passed over."""
        lines = [b"rubbish\n", record(1), b"\n", b"rubbish\n" * 10, record(3)]
        offsets = log(tmp_path, lines)
        assert find_time(SYSTEM_FS, str(tmp_path), at(2), MAX) == offsets[4]

    def test_a_segment_without_records(self, tmp_path: Path) -> None:
        """Nor does one that holds nothing readable stop the search."""
        offsets = log(tmp_path, [record(1)], [b"rubbish\n" * 20_000], [record(3)])
        assert find_time(Bounded(), str(tmp_path), at(2), MAX) == offsets[2]

    def test_a_gap(self, tmp_path: Path) -> None:
        """The search goes on behind it."""
        log(tmp_path, [record(1)])
        (tmp_path / f"{9000:020}.jsonl").write_bytes(record(3))
        assert find_time(SYSTEM_FS, str(tmp_path), at(2), MAX) == 9000

    @pytest.mark.parametrize("operation", ["open", "stat"])
    def test_a_segment_is_deleted_meanwhile(self, tmp_path: Path, operation: str) -> None:
        """Retention at work does not make it fail."""
        offsets = log(tmp_path, [record(1)], [record(3)], [record(5)])
        faulty = FaultyFs()
        faulty.fail(operation, errno.ENOENT)
        found = find_time(faulty, str(tmp_path), at(2), MAX)
        assert found in (offsets[1], offsets[0])

    def test_nothing_stays_open_after_an_error(self, tmp_path: Path) -> None:
        """A segment that cannot be read is an error."""
        log(tmp_path, [record(1)])
        faulty = FaultyFs()
        faulty.fail("pread", errno.EIO, times=None)
        with pytest.raises(OSError):
            find_time(faulty, str(tmp_path), at(2), MAX)
        assert faulty.open_paths == {}
