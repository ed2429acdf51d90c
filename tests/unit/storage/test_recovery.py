"""Opening a log: a table of what a crash may leave, and what must be read back."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from keyop.errors import StorageError
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.storage.active import ActiveSegment
from keyop.storage.locks import FileLock
from keyop.storage.recovery import (
    clamp_offsets,
    open_clean,
    open_segment,
    recover,
    start_after_failure,
)
from tests.fakes.faulty import FaultyFs
from tests.fakes.recording import RecordingFs, crash_states, materialise


def name(start: int) -> str:
    return f"{start:020}.jsonl"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    (tmp_path / "offsets").mkdir()
    return tmp_path


@pytest.fixture
def faulty() -> Iterator[FaultyFs]:
    fs = FaultyFs()
    yield fs
    assert fs.open_paths == {}


def opened(base: Path, fs: FileSystem = SYSTEM_FS, durable: bool = True) -> tuple[int, int]:
    """Recover; return the active segment's start and size."""
    found = recover(fs, str(base / "log"), str(base / "offsets"), durable)
    assert fs.fstat(found.fd).st_size == found.size
    fs.close(found.fd)
    return found.start, found.size


def tree(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


class Corruption(NamedTuple):
    before: dict[str, bytes]
    active: tuple[int, int]
    after: dict[str, bytes]
    told: str = ""


A, B = name(0), name(6)
TABLE = {
    "a new channel": Corruption({}, (0, 0), {A: b""}),
    "nothing wrong": Corruption({A: b"ab\ncd\n"}, (0, 6), {A: b"ab\ncd\n"}),
    "an empty segment": Corruption({A: b""}, (0, 0), {A: b""}),
    "an empty one behind": Corruption({A: b"ab\ncd\n", B: b""}, (6, 0), {A: b"ab\ncd\n", B: b""}),
    "a torn record": Corruption(
        {A: b"ab\ncd"}, (0, 3), {A: b"ab\n", A + ".torn-0": b"cd"}, "not a whole record"
    ),
    "zeros at the end": Corruption(
        {A: b"ab\n" + b"\0" * 9000},
        (0, 3),
        {A: b"ab\n", A + ".torn-0": b"\0" * 9000},
        "9000 bytes",
    ),
    "nothing but a torn record": Corruption(
        {A: b"ab"}, (0, 0), {A: b"", A + ".torn-0": b"ab"}, "not a whole record"
    ),
    "zeros within stay": Corruption({A: b"ab\n\0\0\n"}, (0, 6), {A: b"ab\n\0\0\n"}),
    "rubbish that ends stays": Corruption({A: b"\xff\xff\n"}, (0, 3), {A: b"\xff\xff\n"}),
    "torn again": Corruption(
        {A: b"ab\ncd", A + ".torn-0": b"old"},
        (0, 3),
        {A: b"ab\n", A + ".torn-0": b"old", A + ".torn-1": b"cd"},
    ),
    "torn in the second segment": Corruption(
        {A: b"ab\ncd\n", B: b"ef\ngh"}, (6, 3), {A: b"ab\ncd\n", B: b"ef\n", B + ".torn-0": b"gh"}
    ),
    "torn in a sealed segment": Corruption(
        {A: b"ab\ncde", B: b"ef\n"}, (6, 3), {A: b"ab\ncde", B: b"ef\n"}
    ),
    "a gap": Corruption(
        {A: b"ab\n", B: b"ef\n"}, (6, 3), {A: b"ab\n", B: b"ef\n"}, "3 bytes are missing"
    ),
    "the first segments deleted": Corruption({B: b"ef\n"}, (6, 3), {B: b"ef\n"}),
    "strangers": Corruption(
        {A: b"ab\n", ".lock": b"", "notes.txt": b"x", "7.jsonl": b"y"},
        (0, 3),
        {A: b"ab\n", ".lock": b"", "notes.txt": b"x", "7.jsonl": b"y"},
    ),
}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_table(
    base: Path, case: Corruption, durable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole lines stay, what was torn is kept beside, strangers are left alone; it is told."""
    for file, content in case.before.items():
        (base / "log" / file).write_bytes(content)
    assert opened(base, durable=durable) == case.active
    assert tree(base / "log") == case.after
    assert case.told in caplog.text
    # A second time, nothing is left to mend.
    assert opened(base, durable=durable) == case.active
    assert tree(base / "log") == case.after


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_table_in_passing(base: Path, faulty: FaultyFs, case: Corruption, durable: bool) -> None:
    """Where nothing is to be mended, made or told, it is opened; anything else is left as it is."""
    for file, content in case.before.items():
        (base / "log" / file).write_bytes(content)
    found = open_clean(faulty, str(base / "log"), str(base / "offsets"), durable)
    assert tree(base / "log") == case.before
    if found is None:
        assert case.told or case.before != case.after or not case.active[1]
    else:
        assert (found.start, found.size) == case.active
        assert case.before == case.after
        assert not case.told
        assert found == recover(faulty, str(base / "log"), str(base / "offsets"), durable)._replace(
            fd=found.fd
        )
        for fd in list(faulty.open_paths):
            faulty.close(fd)


@pytest.mark.parametrize(
    ("positions", "is_opened"),
    [
        ({}, True),
        ({"s": b"%020d\n" % 3}, True),
        ({"s": b"%020d\n" % 4}, False),
        ({"s": b""}, False),
        ({f"s{number}": b"%020d\n" % 0 for number in range(8)}, True),
        ({f"s{number}": b"%020d\n" % 0 for number in range(9)}, False),
    ],
)
def test_positions_in_passing(
    base: Path, faulty: FaultyFs, positions: dict[str, bytes], is_opened: bool
) -> None:
    """Those that are past the end, unreadable or many are work for a thread."""
    (base / "log" / A).write_bytes(b"ab\n")
    for subscriber_id, content in positions.items():
        (base / "offsets" / f"{subscriber_id}.offset").write_bytes(content)
    found = open_clean(faulty, str(base / "log"), str(base / "offsets"), True)
    assert (found is not None) == is_opened
    if found is not None:
        assert not found.entry_is_durable
        faulty.close(found.fd)
    assert len(tree(base / "offsets")) == len(positions)


def test_many_segments_are_not_opened_in_passing(base: Path, faulty: FaultyFs) -> None:
    """Their sizes have to be asked for, each."""
    for number in range(9):
        (base / "log" / name(3 * number)).write_bytes(b"ab\n")
    args = (faulty, str(base / "log"), str(base / "offsets"), True)
    assert open_clean(*args) is None
    assert faulty.calls["stat"] == 0
    (base / "log" / A).unlink()
    found = open_clean(*args)
    assert found is not None
    assert (found.start, found.size) == (24, 3)
    faulty.close(found.fd)


def test_an_overlap_refuses_in_passing(base: Path, faulty: FaultyFs) -> None:
    """As a thread would."""
    (base / "log" / A).write_bytes(b"ab\ncd\nef\n")
    (base / "log" / B).write_bytes(b"gh\n")
    with pytest.raises(StorageError, match=A):
        open_clean(faulty, str(base / "log"), str(base / "offsets"), True)


@pytest.mark.parametrize(
    ("operation", "where"),
    [("listdir", "log"), ("listdir", "offsets"), ("open", A), ("lseek", A), ("pread", A)],
)
def test_a_failure_in_passing_is_raised(
    base: Path, faulty: FaultyFs, operation: str, where: str
) -> None:
    """Nothing stays open."""
    (base / "log" / A).write_bytes(b"ab\n")
    (base / "offsets" / "s.offset").write_bytes(b"%020d\n" % 3)
    faulty.fail(operation, errno.EIO, path_contains=where)
    with pytest.raises(OSError):
        open_clean(faulty, str(base / "log"), str(base / "offsets"), True)


def test_an_overlap_refuses(base: Path, faulty: FaultyFs) -> None:
    """Both files are named, and nothing was changed."""
    before = {A: b"ab\ncd\nef\n", B: b"gh\nij"}
    for file, content in before.items():
        (base / "log" / file).write_bytes(content)
    (base / "offsets" / "s.offset").write_bytes(b"999\n")
    with pytest.raises(StorageError, match=A) as caught:
        opened(base, faulty)
    assert B in str(caught.value)
    assert tree(base / "log") == before
    assert (base / "offsets" / "s.offset").read_bytes() == b"999\n"


@pytest.mark.parametrize(
    ("operation", "where"),
    [
        ("listdir", "log"),
        ("listdir", "offsets"),
        ("stat", A),
        ("open", A),
        ("fsync_dir", "log"),
        ("lseek", A),
        ("pread", A),
        ("ftruncate", A),
        ("fsync", A),
        ("open", "s.offset"),
        ("rename", "s.offset"),
        ("open", "s.lock"),
    ],
)
def test_a_failure_is_raised(base: Path, faulty: FaultyFs, operation: str, where: str) -> None:
    """Nothing stays open, no lease is kept, and the next try does the rest."""
    (base / "log" / A).write_bytes(b"ab\ncd")
    (base / "offsets" / "s.offset").write_bytes(b"999\n")
    fault = faulty.fail(operation, errno.EIO, path_contains=where)
    with pytest.raises(OSError):
        opened(base, faulty)
    assert fault.hits == 1
    assert faulty.open_paths == {}
    assert opened(base, faulty) == (0, 3)
    assert int((base / "offsets" / "s.offset").read_bytes()) == 3


def test_a_new_segment_is_private_and_survives(base: Path) -> None:
    """Its entry is synced, where anything has to be durable."""
    fs = RecordingFs(base)
    old = os.umask(0)
    try:
        opened(base, fs)
    finally:
        os.umask(old)
    assert (base / "log" / A).stat().st_mode & 0o777 == 0o600
    fs.mark("done")
    for state in crash_states(fs.ops, Random(1), 50):
        assert "done" not in state.marks or f"log/{A}" in state.tree


def test_an_entry_found_is_to_be_synced(base: Path, faulty: FaultyFs) -> None:
    """Whoever created it may have died before it could: the first sync of the segment does it."""
    (base / "log" / A).write_bytes(b"ab\n")
    for durable, known, entry_is_durable in [(False, -1, True), (True, -1, False), (True, 0, True)]:
        found = recover(faulty, str(base / "log"), str(base / "offsets"), durable, known)
        segment = ActiveSegment(faulty, str(base / "log"), found, lambda *_: None, lambda: None)
        try:
            assert segment.entry_is_durable == entry_is_durable
            synced = faulty.calls["fsync_dir"]
            segment.fdatasync()
            segment.fdatasync()
            assert faulty.calls["fsync_dir"] == synced + (not entry_is_durable)
        finally:
            segment.release()


def test_a_power_cut_during_recovery(base: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Recovering again after it gives the same log, and the torn bytes are somewhere."""
    (base / "log" / A).write_bytes(b"ab\ncd")
    (base / "offsets" / "s.offset").write_bytes(b"00000000000000000999\n")
    fs = RecordingFs(base)
    opened(base, fs)
    for state in crash_states(fs.ops, Random(1), 60):
        again = tmp_path_factory.mktemp("again") / "root"
        materialise(state, again)
        (again / "log").mkdir(exist_ok=True)
        (again / "offsets").mkdir(exist_ok=True)
        assert opened(again) == (0, 3)
        assert (again / "log" / A).read_bytes() == b"ab\n"
        torn = [path.read_bytes() for path in (again / "log").glob("*.torn-*")]
        assert b"cd" in torn
        assert int((again / "offsets" / "s.offset").read_bytes()) == 3


class TestClamp:
    @pytest.mark.parametrize(
        ("content", "offset"), [(b"100\n", 6), (b"7\n", 6), (b"6\n", 6), (b"5\n", 5), (b"0\n", 0)]
    )
    def test_past_the_end(self, base: Path, content: bytes, offset: int) -> None:
        """Positions past the end move to the end, before the first append; others stay."""
        (base / "log" / A).write_bytes(b"ab\ncd\n")
        path = base / "offsets" / "s.offset"
        path.write_bytes(content)
        opened(base)
        assert int(path.read_bytes()) == offset
        assert (path.read_bytes() == content) == (int(content) == offset)

    def test_to_the_whole_part(self, base: Path) -> None:
        """The end is that of the last whole line, not of a torn one."""
        (base / "log" / A).write_bytes(b"ab\ncd")
        (base / "offsets" / "s.offset").write_bytes(b"5\n")
        opened(base)
        assert int((base / "offsets" / "s.offset").read_bytes()) == 3

    def test_every_kind_of_subscriber(self, base: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Peers' positions too; each is named in the log, and the ids are returned."""
        for subscriber in ("a", "fed-p", "fedout-h"):
            (base / "offsets" / f"{subscriber}.offset").write_bytes(b"9\n")
        with caplog.at_level(logging.WARNING):
            ids = clamp_offsets(SYSTEM_FS, str(base / "offsets"), 3)
        assert ids == ["a", "fed-p", "fedout-h"]
        assert all(each in caplog.text for each in ids)

    def test_a_running_subscriber_is_left_alone(self, base: Path) -> None:
        """Its position is its own."""
        path = base / "offsets" / "s.offset"
        path.write_bytes(b"9\n")
        lease = FileLock(SYSTEM_FS, str(base / "offsets" / "s.lock"))
        assert lease.try_acquire()
        try:
            assert clamp_offsets(SYSTEM_FS, str(base / "offsets"), 3) == []
        finally:
            lease.release()
        assert path.read_bytes() == b"9\n"

    def test_the_lease_is_given_back(self, base: Path) -> None:
        """A probe does not look like a holder."""
        (base / "offsets" / "s.offset").write_bytes(b"9\n")
        clamp_offsets(SYSTEM_FS, str(base / "offsets"), 3)
        lease = FileLock(SYSTEM_FS, str(base / "offsets" / "s.lock"))
        assert lease.try_acquire()
        lease.release()

    def test_a_damaged_position_blocks_nothing(
        self, base: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It stays as it is and is told; the others are clamped."""
        (base / "offsets" / "a.offset").write_bytes(b"")
        (base / "offsets" / "b.offset").write_bytes(b"9\n")
        assert clamp_offsets(SYSTEM_FS, str(base / "offsets"), 3) == ["b"]
        assert (base / "offsets" / "a.offset").read_bytes() == b""
        assert "a.offset" in caplog.text

    def test_a_position_that_moved_before_the_lease_was_taken(self, base: Path) -> None:
        """Its last holder may have moved it back meanwhile: it is never moved forward."""
        path = base / "offsets" / "s.offset"
        path.write_bytes(b"9\n")

        class Late(FileSystem):
            def flock(self, fd: int, how: int) -> None:  # type: ignore[override]
                if path.read_bytes() == b"9\n":
                    path.write_bytes(b"0\n")
                SYSTEM_FS.flock(fd, how)

        clamp_offsets(Late(), str(base / "offsets"), 3)
        assert int(path.read_bytes()) == 0


class TestAfterFailure:
    def begin(self, base: Path, failed: int, fs: FileSystem = SYSTEM_FS) -> tuple[int, int]:
        found = start_after_failure(fs, str(base / "log"), failed, True)
        fs.close(found.fd)
        return found.start, found.size

    def test_a_new_segment_behind_the_failed_one(self, base: Path, faulty: FaultyFs) -> None:
        """The failed one is neither written nor synced again, torn or not."""
        (base / "log" / A).write_bytes(b"ab\ncde")
        assert self.begin(base, 0, faulty) == (6, 0)
        assert tree(base / "log") == {A: b"ab\ncde", B: b""}
        assert faulty.calls["fdatasync"] == 0
        assert faulty.calls["fsync"] == faulty.calls["fsync_dir"]

    def test_an_empty_one_is_replaced(self, base: Path) -> None:
        """A new file takes its name."""
        (base / "log" / A).write_bytes(b"")
        inode = (base / "log" / A).stat().st_ino
        keep = os.open(base / "log" / A, os.O_RDONLY)  # so that the number is not used again
        assert self.begin(base, 0) == (0, 0)
        os.close(keep)
        assert (base / "log" / A).stat().st_ino != inode

    def test_another_process_went_on_already(self, base: Path) -> None:
        """Its segment is opened."""
        (base / "log" / A).write_bytes(b"ab\ncd\n")
        (base / "log" / B).write_bytes(b"ef\ngh")
        assert self.begin(base, 0) == (6, 3)

    def test_the_failed_one_has_gone(self, base: Path) -> None:
        """Deleted by hand, it does not keep the channel from going on."""
        assert self.begin(base, 6) == (6, 0)


def test_open_segment_creates_what_a_roll_left_out(base: Path) -> None:
    """The lock file may name a segment whose creator died."""
    found = open_segment(SYSTEM_FS, str(base / "log"), 6, True)
    os.close(found.fd)
    assert (found.start, found.size) == (6, 0)
    assert tree(base / "log") == {B: b""}
