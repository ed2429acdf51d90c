"""Segment files: names, listings, whole and torn parts."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyop.errors import StorageError
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.storage.segment import (
    Segment,
    list_segments,
    list_starts,
    record_boundary,
    refuse_overlap,
    segment_name,
    segment_path,
    segment_start,
    set_torn_tail_aside,
    whole_size,
)
from tests.fakes.faulty import FaultyFs
from tests.fakes.recording import RecordingFs, crash_states

SCAN = 64 << 10


def put(directory: Path, start: int, content: bytes) -> Path:
    path = directory / f"{start:020}.jsonl"
    path.write_bytes(content)
    return path


@settings(max_examples=50)
@given(st.integers(0, 10**20 - 1))
def test_a_name_and_its_offset_belong_together(start: int) -> None:
    """Twenty digits and .jsonl; read back as the same offset."""
    name = segment_name(start)
    assert len(name) == 26
    assert segment_start(name) == start
    assert segment_path("dir", start) == f"dir/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".lock",
        "0.jsonl",
        "0" * 19 + ".jsonl",
        "0" * 21 + ".jsonl",
        "0" * 20,
        "0" * 20 + ".jsonl.torn-0",
        "0" * 20 + ".jsonl\n",
        "-" + "0" * 19 + ".jsonl",
        "٣" * 20 + ".jsonl",
        "x" + "0" * 20 + ".jsonl",
    ],
)
def test_other_files_are_no_segments(name: str) -> None:
    """Lock files, torn tails and strangers are left out."""
    assert segment_start(name) is None


def test_listing_in_order_of_offset(tmp_path: Path) -> None:
    """Whatever else lies there, segments come sorted, with their sizes."""
    for start, content in [(30, b""), (10, b"abc"), (0, b"x" * 10)]:
        put(tmp_path, start, content)
    (tmp_path / ".lock").write_bytes(b"")
    (tmp_path / "00000000000000000010.jsonl.torn-0").write_bytes(b"x")
    assert list_starts(SYSTEM_FS, str(tmp_path)) == [0, 10, 30]
    assert list_segments(SYSTEM_FS, str(tmp_path)) == [
        Segment(0, 10),
        Segment(10, 3),
        Segment(30, 0),
    ]
    assert Segment(10, 3).end == 13


def test_one_that_is_deleted_meanwhile_is_left_out(tmp_path: Path) -> None:
    """Retention may be at work."""
    put(tmp_path, 0, b"abc")
    put(tmp_path, 3, b"def")
    faulty = FaultyFs()
    faulty.fail("stat", errno.ENOENT, path_contains="00000.jsonl")
    assert list_segments(faulty, str(tmp_path)) == [Segment(3, 3)]


@pytest.mark.parametrize("operation", ["listdir", "stat"])
def test_what_cannot_be_read_is_an_error(tmp_path: Path, operation: str) -> None:
    """Never taken for an empty log."""
    put(tmp_path, 0, b"abc")
    faulty = FaultyFs()
    faulty.fail(operation, errno.EIO)
    with pytest.raises(OSError):
        list_segments(faulty, str(tmp_path))


@pytest.mark.parametrize(
    "segments",
    [[], [Segment(0, 5)], [Segment(0, 5), Segment(5, 0)], [Segment(0, 5), Segment(9, 1)]],
    ids=str,
)
def test_neighbours_and_gaps_do_not_overlap(segments: list[Segment]) -> None:
    """Segments may follow each other or leave a gap."""
    refuse_overlap(segments, "dir")


def test_an_overlap_names_both_files() -> None:
    """Two writers without a common lock are refused."""
    with pytest.raises(StorageError) as caught:
        refuse_overlap([Segment(0, 5), Segment(5, 6), Segment(10, 1)], "dir")
    assert segment_name(5) in str(caught.value)
    assert segment_name(10) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (b"", 0),
        (b"x", 0),
        (b"\n", 1),
        (b"ab\n", 3),
        (b"ab\ncd", 3),
        (b"ab\n\0\0\0", 3),
        (b"x" * (SCAN * 2 + 5), 0),
        (b"a\n" + b"x" * (SCAN * 2), 2),
        (b"a\n" + b"x" * (SCAN - 2), 2),
        (b"a\n" + b"x" * (SCAN - 1), 2),
        (b"x" * SCAN + b"\n", SCAN + 1),
    ],
    ids=lambda each: repr(each)[:20],
)
def test_whole_part(tmp_path: Path, content: bytes, whole: int) -> None:
    """Everything up to the last newline is whole, however far back that is."""
    path = put(tmp_path, 0, content)
    with SYSTEM_FS.opened(str(path), os.O_RDONLY) as fd:
        assert whole_size(SYSTEM_FS, fd, len(content)) == whole


def test_only_the_first_bytes_count(tmp_path: Path) -> None:
    """A newline past the given size is not seen."""
    path = put(tmp_path, 0, b"ab\ncd\n")
    with SYSTEM_FS.opened(str(path), os.O_RDONLY) as fd:
        assert whole_size(SYSTEM_FS, fd, 5) == 3


@pytest.mark.parametrize(
    ("position", "boundary"),
    [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3), (6, 6), (7, 6), (8, 6)],
)
def test_boundary(tmp_path: Path, position: int, boundary: int) -> None:
    """A position within a record moves back to its beginning."""
    path = put(tmp_path, 0, b"ab\ncd\nef")
    with SYSTEM_FS.opened(str(path), os.O_RDONLY) as fd:
        assert record_boundary(SYSTEM_FS, fd, position) == boundary


def cut(fs: FileSystem, directory: Path, whole: int, size: int) -> str:
    path = str(directory / segment_name(0))
    with fs.opened(path, os.O_RDWR | os.O_APPEND) as fd:
        return set_torn_tail_aside(fs, str(directory), 0, fd, whole, size)


@pytest.mark.parametrize("length", [1, 100, SCAN, SCAN + 1, 3 * SCAN])
def test_a_torn_tail_is_kept_beside(tmp_path: Path, length: int) -> None:
    """The segment ends at its last newline, and not a byte is destroyed."""
    torn = os.urandom(length).replace(b"\n", b"x")
    path = put(tmp_path, 0, b"ab\n" + torn)
    beside = cut(SYSTEM_FS, tmp_path, 3, 3 + length)
    assert path.read_bytes() == b"ab\n"
    assert Path(beside).read_bytes() == torn
    assert Path(beside).name == segment_name(0) + ".torn-0"


def test_an_earlier_torn_tail_stays(tmp_path: Path) -> None:
    """Each gets a number of its own."""
    for number in range(3):
        put(tmp_path, 0, b"ab\nx%d" % number)
        beside = cut(SYSTEM_FS, tmp_path, 3, 5)
        assert beside.endswith(f".torn-{number}")
    found = sorted(path.read_bytes() for path in tmp_path.glob("*.torn-*"))
    assert found == [b"x0", b"x1", b"x2"]


def test_a_tail_that_ends_early(tmp_path: Path) -> None:
    """What is not there cannot be kept; the rest is."""
    put(tmp_path, 0, b"ab\nxyz")
    assert Path(cut(SYSTEM_FS, tmp_path, 3, 100)).read_bytes() == b"xyz"


@pytest.mark.parametrize("operation", ["open", "pread", "write", "fsync", "fsync_dir", "ftruncate"])
def test_a_failure_destroys_nothing(tmp_path: Path, operation: str) -> None:
    """The tail is in one of the two files, and no descriptor is left."""
    path = put(tmp_path, 0, b"ab\nxyz")
    faulty = FaultyFs()
    with faulty.opened(str(path), os.O_RDWR | os.O_APPEND) as fd:
        faulty.fail(operation, errno.EIO)
        with pytest.raises(OSError):
            set_torn_tail_aside(faulty, str(tmp_path), 0, fd, 3, 6)
    assert path.read_bytes() == b"ab\nxyz"
    assert faulty.open_paths == {}


def test_a_power_cut_destroys_nothing(tmp_path: Path) -> None:
    """At every moment the whole part is there, and the tail in the segment or beside it."""
    put(tmp_path, 0, b"ab\nxyz")
    fs = RecordingFs(tmp_path)
    cut(fs, tmp_path, 3, 6)
    for state in crash_states(fs.ops, Random(1), 300):
        segment = state.tree[segment_name(0)]
        assert segment is not None
        if segment != b"ab\nxyz":
            assert segment.rstrip(b"\0") == b"ab\n"
            assert state.tree[segment_name(0) + ".torn-0"] == b"xyz"
