"""Durable positions."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import gevent
import pytest

from keyop.errors import OffsetError
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.offload import Offload
from keyop.storage.offsets import (
    OffsetFile,
    lease_path,
    list_ids,
    offset_path,
    read_all,
    read_offset,
    write_offset,
)
from tests.fakes.faulty import FaultyFs
from tests.fakes.recording import RecordingFs, crash_states


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.offset"


@pytest.fixture
def offload() -> Iterator[Offload]:
    threads = Offload(1)
    yield threads
    assert threads.close(10)


@pytest.fixture
def faulty() -> Iterator[FaultyFs]:
    fs = FaultyFs()
    yield fs
    fs.heal()
    assert fs.open_paths == {}


class Rewritten(FileSystem):
    """Another process writes between our reads: each read of a file finds the next content."""

    def __init__(self, contents: list[bytes | None]) -> None:
        self.contents = list(contents)
        self.reads = 0

    def read_file(self, path: str, limit: int = 1 << 20) -> bytes:
        content = self.contents[min(self.reads, len(self.contents) - 1)]
        self.reads += 1
        if content is None:
            raise FileNotFoundError(path)
        return content[:limit]


def test_paths() -> None:
    """A position and its lease lie beside each other, and a lease is no position."""
    assert offset_path("d", "s") == "d/s.offset"
    assert lease_path("d", "s") == "d/s.lock"


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"0\n", 0),
        (b"0", 0),
        (b"17\n", 17),
        (b"17", 17),
        (b"00000000000000000017\n", 17),
        (b"99999999999999999999\n", 10**20 - 1),
    ],
)
def test_what_is_read(path: Path, content: bytes, offset: int) -> None:
    """A decimal number, padded or not, with or without its newline."""
    path.write_bytes(content)
    assert read_offset(SYSTEM_FS, str(path)) == offset


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b" 17\n",
        b"17 \n",
        b"+17\n",
        b"-17\n",
        b"1_7\n",
        b"0x11\n",
        b"17\n\n",
        b"17\r\n",
        b"seventeen",
        b"\0" * 21,
        b"1" * 21,
        b"1" * 21 + b"\n",
        b"1" * 1000,
        "٣".encode(),
        b"17\n18\n",
    ],
    ids=lambda content: repr(content)[:30],
)
def test_what_is_not_a_position(path: Path, content: bytes) -> None:
    """It is an error that names the file and what to do, never zero, and changes nothing."""
    path.write_bytes(content)
    for read in (lambda: read_offset(SYSTEM_FS, str(path)), OffsetFile(SYSTEM_FS, str(path)).open):
        with pytest.raises(OffsetError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert "keyop check --repair" in str(caught.value)
    assert path.read_bytes() == content


def test_a_missing_file_is_a_new_subscriber(path: Path) -> None:
    """None, and nothing is opened or created."""
    assert read_offset(SYSTEM_FS, str(path)) is None
    assert OffsetFile(SYSTEM_FS, str(path)).open() is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("contents", "offset"),
    [
        ([b"5\n", b"5\n"], 5),
        ([b"5\n", b"9\n", b"9\n"], 9),
        ([b"", b"9\n", b"9\n"], 9),
        ([b"19\n", b"20\n", b"1\n", b"1\n"], 1),
        ([b"%d\n" % (50 - each) for each in range(20)], 43),
        ([b"%d\n" % (50 + each) for each in range(20)], 50),
        ([None], None),
        ([b"5\n", None], None),
    ],
    ids=str,
)
def test_read_until_two_agree(contents: list[bytes | None], offset: int | None) -> None:
    """A file that is being rewritten is read until two reads agree; else the lowest counts."""
    assert read_offset(Rewritten(contents), "x") == offset


def test_reads_come_to_an_end() -> None:
    """A file that never stands still is read a few times only."""
    fs = Rewritten([b"%d\n" % each for each in range(1000)])
    read_offset(fs, "x")
    assert 2 <= fs.reads <= 16


def test_ids_in_order(tmp_path: Path) -> None:
    """Only positions count, not leases or what a dead process left."""
    for name in ("b.offset", "a.offset", "fed-x.offset", "a.lock", "c.offset.tmp", "offset"):
        (tmp_path / name).write_bytes(b"0\n")
    assert list_ids(SYSTEM_FS, str(tmp_path)) == ["a", "b", "fed-x"]


def test_no_directory_no_ids(tmp_path: Path) -> None:
    """A channel without subscribers has none."""
    assert list_ids(SYSTEM_FS, str(tmp_path / "none")) == []
    assert list(read_all(SYSTEM_FS, str(tmp_path / "none"))) == []


def test_read_all_goes_on_after_a_bad_one(tmp_path: Path) -> None:
    """Each id comes with its position or with what is wrong."""
    write_offset(SYSTEM_FS, str(tmp_path / "a.offset"), 1)
    (tmp_path / "b.offset").write_bytes(b"")
    write_offset(SYSTEM_FS, str(tmp_path / "c.offset"), 3)
    (a, one), (b, error), (c, three) = read_all(SYSTEM_FS, str(tmp_path))
    assert (a, one, b, c, three) == ("a", 1, "b", "c", 3)
    assert isinstance(error, OffsetError)


def test_read_all_leaves_out_what_has_gone(tmp_path: Path) -> None:
    """A subscriber may be forgotten meanwhile."""
    write_offset(SYSTEM_FS, str(tmp_path / "a.offset"), 1)
    faulty = FaultyFs()
    faulty.fail("open", errno.ENOENT)
    assert list(read_all(faulty, str(tmp_path))) == []


class TestWriting:
    def test_by_rename(self, path: Path) -> None:
        """Twenty digits and a newline, so that it can be rewritten in place."""
        write_offset(SYSTEM_FS, str(path), 17)
        assert path.read_bytes() == b"00000000000000000017\n"

    def test_a_power_cut_leaves_the_old_or_the_new(self, tmp_path: Path, path: Path) -> None:
        """Never an empty or a torn file."""
        write_offset(SYSTEM_FS, str(path), 17)
        fs = RecordingFs(tmp_path)
        write_offset(fs, str(path), 99)
        fs.mark("done")
        for state in crash_states(fs.ops, Random(1), 200):
            content = state.tree["s.offset"]
            assert content in (b"%020d\n" % 17, b"%020d\n" % 99)

    def test_in_place(self, path: Path) -> None:
        """Saving is one write into the open file, which stays the same file."""
        write_offset(SYSTEM_FS, str(path), 17)
        inode = path.stat().st_ino
        faulty = FaultyFs()
        file = OffsetFile(faulty, str(path))
        assert file.open() == 17
        faulty.calls.clear()
        file.save(18)
        assert dict(faulty.calls) == {"pwrite": 1}
        assert path.read_bytes() == b"00000000000000000018\n"
        assert path.stat().st_ino == inode
        file.close()

    @pytest.mark.parametrize("content", [b"17", b"17\n", b"00000000000000000017"])
    def test_another_length_is_replaced_first(self, path: Path, content: bytes) -> None:
        """So that a smaller number written in place does not leave old digits behind."""
        path.write_bytes(content)
        file = OffsetFile(SYSTEM_FS, str(path))
        assert file.open() == 17
        assert path.read_bytes() == b"00000000000000000017\n"
        file.save(3)
        assert read_offset(SYSTEM_FS, str(path)) == 3
        file.close()

    def test_a_power_cut_while_saving(self, tmp_path: Path, path: Path, offload: Offload) -> None:
        """The file holds one of the positions saved, at least the last synced one."""
        write_offset(SYSTEM_FS, str(path), 1)
        fs = RecordingFs(tmp_path)
        file = OffsetFile(fs, str(path))
        file.open()
        for offset in (2, 3, 4):
            file.save(offset)
            job = file.sync(offload)
            assert job is not None
            assert job.wait(10)
            fs.mark(offset)
        file.close()
        for state in crash_states(fs.ops, Random(1), 300):
            promised = max([mark for mark in state.marks if isinstance(mark, int)], default=1)
            content = state.tree["s.offset"]
            assert content is not None
            assert promised <= int(content) <= 4

    @pytest.mark.parametrize("operation", ["rename", "fsync", "open"])
    def test_a_replacement_that_fails(self, faulty: FaultyFs, path: Path, operation: str) -> None:
        """The file is as it was, and nothing stays open."""
        path.write_bytes(b"17\n")
        faulty.fail(operation, errno.EIO, times=None, path_contains=".tmp")
        with pytest.raises(OSError):
            OffsetFile(faulty, str(path)).open()
        assert path.read_bytes() == b"17\n"

    def test_a_write_that_fails(self, faulty: FaultyFs, path: Path) -> None:
        """The old position is still there."""
        write_offset(SYSTEM_FS, str(path), 17)
        file = OffsetFile(faulty, str(path))
        file.open()
        faulty.fail("pwrite", errno.EIO)
        with pytest.raises(OSError):
            file.save(18)
        file.close()
        assert read_offset(SYSTEM_FS, str(path)) == 17


@pytest.fixture
def opened(faulty: FaultyFs, path: Path) -> Iterator[OffsetFile]:
    write_offset(SYSTEM_FS, str(path), 17)
    file = OffsetFile(faulty, str(path))
    file.open()
    yield file
    file.close()


class TestSync:
    def test_nothing_to_do(self, opened: OffsetFile, offload: Offload) -> None:
        """A position that was not saved needs no sync."""
        assert opened.sync(offload) is None

    def test_once_for_each_save(
        self, opened: OffsetFile, faulty: FaultyFs, offload: Offload
    ) -> None:
        """A sync covers what was saved before it; then there is nothing to do."""
        opened.save(18)
        job = opened.sync(offload)
        assert job is not None
        assert job.wait(10)
        assert faulty.calls["fdatasync"] == 1
        assert opened.sync(offload) is None

    def test_one_at_a_time(self, opened: OffsetFile, faulty: FaultyFs, offload: Offload) -> None:
        """While one is under way another is not begun, and what was saved meanwhile comes after."""
        opened.save(18)
        with faulty.hold("fdatasync") as held:
            job = opened.sync(offload)
            assert job is not None
            held.wait_entered()
            opened.save(19)
            assert opened.sync(offload) is None
            assert opened.dirty
        assert job.wait(10)
        second = opened.sync(offload)
        assert second is not None
        assert second.wait(10)
        assert faulty.calls["fdatasync"] == 2

    def test_waiting_for_what_was_saved(
        self, opened: OffsetFile, faulty: FaultyFs, offload: Offload
    ) -> None:
        """What was saved while a sync was under way is waited for until the next one ends."""
        opened.save(18)
        with faulty.hold("fdatasync") as held:
            opened.sync(offload)
            held.wait_entered()
            opened.save(19)
            waiting = [gevent.spawn(opened.settle, offload) for _ in range(2)]
            gevent.sleep(0)
            assert not any(each.dead for each in waiting)
        gevent.joinall(waiting, timeout=10, raise_error=True)
        assert not opened.dirty
        assert faulty.calls["fdatasync"] == 2
        opened.settle(offload)
        assert faulty.calls["fdatasync"] == 2

    def test_a_failure_is_told(
        self,
        opened: OffsetFile,
        faulty: FaultyFs,
        offload: Offload,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is logged with the file's name."""
        faulty.fail("fdatasync", errno.EIO)
        opened.save(18)
        job = opened.sync(offload)
        assert job is not None
        assert job.wait(10)
        gevent.sleep(0)
        assert opened.path in caplog.text

    def test_closing_while_under_way(
        self, opened: OffsetFile, faulty: FaultyFs, offload: Offload
    ) -> None:
        """The descriptor stays open until the sync returns, so that no other file gets it."""
        opened.save(18)
        with faulty.hold("fdatasync") as held:
            job = opened.sync(offload)
            assert job is not None
            held.wait_entered()
            opened.close()
            assert faulty.calls["close"] == 2  # of the reads when it was opened
            assert list(faulty.open_paths.values()) == [opened.path]
        assert job.wait(10)
        gevent.sleep(0)
        assert faulty.open_paths == {}

    def test_closed(self, opened: OffsetFile, faulty: FaultyFs, offload: Offload) -> None:
        """After closing, twice as well, nothing is written or synced any more."""
        opened.save(18)
        opened.close()
        opened.close()
        opened.save(19)
        assert opened.sync(offload) is None
        assert read_offset(SYSTEM_FS, opened.path) == 18


@pytest.mark.parametrize("is_open", [True, False])
def test_dropped_in_a_child(path: Path, is_open: bool) -> None:
    """A forked child has no descriptor of it and cannot write the parent's position."""
    write_offset(SYSTEM_FS, str(path), 17)
    file = OffsetFile(SYSTEM_FS, str(path))
    file.open()
    if not is_open:
        file.close()
    before = len(os.listdir("/proc/self/fd"))
    file.drop_in_child()
    assert len(os.listdir("/proc/self/fd")) == before - is_open
    file.save(99)
    assert read_offset(SYSTEM_FS, str(path)) == 17


def test_concurrent_rewriting_never_invents_a_number(path: Path) -> None:
    """Against a writer in another thread, every read is one of the numbers written."""
    write_offset(SYSTEM_FS, str(path), 0)
    stop = threading.Event()
    allowed = {int(str(digit) * 15) for digit in range(10)}

    def rewrite() -> None:
        file = OffsetFile(SYSTEM_FS, str(path))
        fd = os.open(path, os.O_RDWR)
        while not stop.is_set():
            for digit in range(10):
                os.pwrite(fd, b"%020d\n" % int(str(digit) * 15), 0)
        os.close(fd)
        del file

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        read: Callable[[], Any] = lambda: read_offset(SYSTEM_FS, str(path))  # noqa: E731
        assert {read() for _ in range(500)} <= allowed
    finally:
        stop.set()
        writer.join()


def test_closed_while_its_sync_waits_for_a_thread(tmp_path: Path) -> None:
    """The descriptor stays open until the sync has returned, however late it begins."""
    synced: list[int] = []

    class Fs(FileSystem):
        @staticmethod
        def fdatasync(fd: int) -> None:  # type: ignore[override] # a builtin
            os.fdatasync(fd)
            synced.append(fd)

    fs = Fs()
    path = str(tmp_path / "reader.offset")
    write_offset(fs, path, 0)
    position = OffsetFile(fs, path)
    position.open()
    position.save(7)
    offload = Offload(1)
    busy = threading.Event()
    occupied = [offload.submit(busy.wait) for _ in range(2)]  # one waits in the thread's queue
    syncing = gevent.spawn(position.sync, offload)
    gevent.sleep(0)
    position.close()
    assert not syncing.ready()
    busy.set()
    for each in occupied:
        each.wait()
    job = syncing.get()
    job.wait()
    assert job.error is None
    assert len(synced) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(synced[0])
    assert offload.close(5)
    assert read_offset(fs, path) == 7
