"""The file system seam: what its compound operations leave behind, also when a step fails."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from keyop.fs import FileSystem
from tests.fakes.faulty import FaultyFs
from tests.fakes.recording import RecordingFs, crash_state, crash_states

CREATE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


@pytest.fixture(params=["real", "recording", "faulty"])
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    """Return the real file system, or a double that must behave as it does."""
    if request.param == "recording":
        return RecordingFs(tmp_path)
    return FaultyFs() if request.param == "faulty" else FileSystem()


@pytest.fixture
def faulty() -> Iterator[FaultyFs]:
    """Return a file system that can fail; at the end no descriptor may be open."""
    fs = FaultyFs()
    yield fs
    assert fs.open_paths == {}


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Take no permission away, so that only what the code asks for keeps others out."""
    old = os.umask(0)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


class TestMakeDirs:
    def test_creates_the_missing_parents(self, fs: FileSystem, tmp_path: Path) -> None:
        fs.make_dirs(str(tmp_path / "a" / "b" / "c"))
        assert (tmp_path / "a" / "b" / "c").is_dir()

    @pytest.mark.usefixtures("no_umask")
    def test_every_new_directory_is_private(self, fs: FileSystem, tmp_path: Path) -> None:
        fs.make_dirs(str(tmp_path / "a" / "b"))
        assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700

    def test_takes_a_relative_path(
        self, fs: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        fs.make_dirs("a/b/")
        assert (tmp_path / "a" / "b").is_dir()

    def test_an_existing_directory_is_left_as_it_is(self, faulty: FaultyFs, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a").chmod(0o755)
        faulty.make_dirs(str(tmp_path / "a"))
        assert mode(tmp_path / "a") == 0o755
        assert set(faulty.calls) == {"stat"}

    def test_every_new_entry_survives_a_power_cut(self, tmp_path: Path) -> None:
        fs = RecordingFs(tmp_path)
        fs.make_dirs(str(tmp_path / "a" / "b"))
        assert crash_state(fs.ops, Random(0), "none").tree == {"a": None, "a/b": None}

    def test_not_durable_means_no_sync(self, faulty: FaultyFs, tmp_path: Path) -> None:
        faulty.make_dirs(str(tmp_path / "a" / "b"), durable=False)
        assert (tmp_path / "a" / "b").is_dir()
        assert faulty.calls["fsync"] == 0

    @pytest.mark.parametrize("wanted", ["file", "file/b", "file/b/c"])
    def test_a_file_in_the_way_is_an_error(
        self, fs: FileSystem, tmp_path: Path, wanted: str
    ) -> None:
        (tmp_path / "file").write_bytes(b"kept")
        with pytest.raises(NotADirectoryError) as caught:
            fs.make_dirs(str(tmp_path / wanted))
        assert str(caught.value.filename).startswith(str(tmp_path / "file"))
        assert (tmp_path / "file").read_bytes() == b"kept"

    def test_a_dangling_link_in_the_way_is_an_error(self, fs: FileSystem, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            fs.make_dirs(str(tmp_path / "link"))
        assert names(tmp_path) == ["link"]

    def test_another_process_may_be_faster(
        self, faulty: FaultyFs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The entry is synced all the same: the other process may not have come to it yet."""
        mkdir = faulty.mkdir

        def late_mkdir(path: str, mode: int) -> None:
            os.mkdir(path)
            mkdir(path, mode)

        monkeypatch.setattr(faulty, "mkdir", late_mkdir)
        faulty.make_dirs(str(tmp_path / "a"))
        assert faulty.calls["fsync_dir"] == 1

    def test_a_file_that_another_process_put_there_first_is_an_error(
        self, faulty: FaultyFs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mkdir = faulty.mkdir

        def late_mkdir(path: str, mode: int) -> None:
            Path(path).write_bytes(b"")
            mkdir(path, mode)

        monkeypatch.setattr(faulty, "mkdir", late_mkdir)
        with pytest.raises(NotADirectoryError):
            faulty.make_dirs(str(tmp_path / "a"))

    @pytest.mark.parametrize(
        ("operation", "created"),
        [("mkdir", ["a"]), ("open", ["a", "a/b"]), ("fsync", ["a", "a/b"])],
    )
    def test_a_failure_is_raised_and_leaves_the_parents(
        self, faulty: FaultyFs, tmp_path: Path, operation: str, created: list[str]
    ) -> None:
        faulty.fail(operation, errno.EIO, nth=2)
        with pytest.raises(OSError) as caught:
            faulty.make_dirs(str(tmp_path / "a" / "b" / "c"))
        assert caught.value.errno == errno.EIO
        assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == created


class TestIsDir:
    def test_tells_what_is_there(self, fs: FileSystem, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "link").symlink_to(tmp_path)
        assert fs.is_dir(str(tmp_path))
        assert fs.is_dir(str(tmp_path / "link"))
        assert not fs.is_dir(str(tmp_path / "missing"))
        assert not fs.is_dir(str(tmp_path / "missing" / "below"))

    @pytest.mark.parametrize("path", ["file", "file/below"])
    def test_a_file_is_an_error(self, fs: FileSystem, tmp_path: Path, path: str) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(NotADirectoryError) as caught:
            fs.is_dir(str(tmp_path / path))
        assert caught.value.filename == str(tmp_path / path)

    def test_what_cannot_be_looked_at_is_not_taken_for_missing(
        self, faulty: FaultyFs, tmp_path: Path
    ) -> None:
        faulty.fail("stat", errno.EACCES)
        with pytest.raises(PermissionError):
            faulty.is_dir(str(tmp_path))


class TestReadFile:
    def test_returns_the_content(self, fs: FileSystem, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * 100_000)
        assert fs.read_file(str(tmp_path / "file")) == b"x" * 100_000

    def test_returns_no_more_than_the_limit(self, fs: FileSystem, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"0123456789")
        assert fs.read_file(str(tmp_path / "file"), limit=4) == b"0123"

    def test_a_missing_file_is_an_error(self, fs: FileSystem, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            fs.read_file(str(tmp_path / "file"))
        assert names(tmp_path) == []

    def test_a_failed_read_closes_the_file(self, faulty: FaultyFs, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        faulty.fail("pread", errno.EIO)
        with pytest.raises(OSError):
            faulty.read_file(str(tmp_path / "file"))
        assert faulty.calls["close"] == 1


class TestReplaceFile:
    def test_creates_the_file(self, fs: FileSystem, tmp_path: Path) -> None:
        fs.replace_file(str(tmp_path / "file"), b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert names(tmp_path) == ["file"]

    def test_replaces_the_file(self, fs: FileSystem, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old and longer")
        fs.replace_file(str(tmp_path / "file"), b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert names(tmp_path) == ["file"]

    @pytest.mark.usefixtures("no_umask")
    def test_the_file_is_private(self, fs: FileSystem, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old")
        assert mode(tmp_path / "file") == 0o666
        fs.replace_file(str(tmp_path / "file"), b"new")
        assert mode(tmp_path / "file") == 0o600

    def test_what_an_earlier_failure_left_is_overwritten(
        self, fs: FileSystem, tmp_path: Path
    ) -> None:
        (tmp_path / "file.tmp").write_bytes(b"left over, and longer than the new content")
        fs.replace_file(str(tmp_path / "file"), b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert names(tmp_path) == ["file"]

    @pytest.mark.parametrize("operation", ["open", "write", "fsync", "close", "rename"])
    @pytest.mark.parametrize("old", [b"old", None])
    def test_a_failure_before_the_rename_leaves_the_file_as_it_was(
        self, faulty: FaultyFs, tmp_path: Path, operation: str, old: bytes | None
    ) -> None:
        path = tmp_path / "file"
        if old is not None:
            path.write_bytes(old)
        faulty.fail(operation, errno.EIO)
        with pytest.raises(OSError) as caught:
            faulty.replace_file(str(path), b"new")
        assert caught.value.errno == errno.EIO
        assert (path.read_bytes() if path.exists() else None) == old
        faulty.replace_file(str(path), b"newer")
        assert path.read_bytes() == b"newer"

    def test_a_disk_that_fills_up_halfway_leaves_the_file_as_it_was(
        self, faulty: FaultyFs, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        faulty.fill(room=2)
        with pytest.raises(OSError) as caught:
            faulty.replace_file(str(path), b"new")
        assert caught.value.errno == errno.ENOSPC
        assert faulty.calls["write"] == 2
        assert path.read_bytes() == b"old"

    def test_a_failed_sync_of_the_directory_is_raised_with_the_new_file_in_place(
        self, faulty: FaultyFs, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        faulty.fail("fsync_dir", errno.EIO)
        with pytest.raises(OSError) as caught:
            faulty.replace_file(str(path), b"new")
        assert caught.value.errno == errno.EIO
        assert path.read_bytes() == b"new"

    def test_a_power_cut_leaves_the_old_or_the_new_content_whole(self, tmp_path: Path) -> None:
        old, new = b"o" * 2000, b"n" * 3000
        (tmp_path / "file").write_bytes(old)
        fs = RecordingFs(tmp_path)
        fs.replace_file(str(tmp_path / "file"), new)
        fs.mark("returned")
        seen = set()
        for state in crash_states(fs.ops, Random(0), 2000):
            assert state.tree["file"] in ((new,) if state.marks else (old, new)), state
            seen.add(state.tree["file"])
        assert seen == {old, new}

    def test_not_durable_means_no_sync(self, faulty: FaultyFs, tmp_path: Path) -> None:
        faulty.replace_file(str(tmp_path / "file"), b"new", durable=False)
        assert (tmp_path / "file").read_bytes() == b"new"
        assert faulty.calls["fsync"] == faulty.calls["fdatasync"] == 0


class TestWriteAll:
    def test_writes_at_the_position(self, fs: FileSystem, tmp_path: Path) -> None:
        with fs.opened(str(tmp_path / "file"), CREATE) as fd:
            for data in (b"one ", b"", b"two"):
                fs.write_all(fd, data)
        assert (tmp_path / "file").read_bytes() == b"one two"

    def test_goes_on_after_short_writes(self, faulty: FaultyFs, tmp_path: Path) -> None:
        faulty.short_write(3, times=0)
        faulty.short_write(1, nth=2, times=0)
        with faulty.opened(str(tmp_path / "file"), CREATE) as fd:
            faulty.write_all(fd, b"0123456789")
        assert (tmp_path / "file").read_bytes() == b"0123456789"
        assert faulty.calls["write"] == 3

    def test_a_failure_may_leave_a_part(self, faulty: FaultyFs, tmp_path: Path) -> None:
        faulty.short_write(3, errno.EIO)
        with (
            faulty.opened(str(tmp_path / "file"), CREATE) as fd,
            pytest.raises(OSError) as caught,
        ):
            faulty.write_all(fd, b"0123456789")
        assert caught.value.errno == errno.EIO
        assert (tmp_path / "file").read_bytes() == b"012"


class TestOpened:
    @pytest.mark.usefixtures("no_umask")
    def test_a_new_file_is_private(self, fs: FileSystem, tmp_path: Path) -> None:
        with fs.opened(str(tmp_path / "file"), CREATE):
            pass
        assert mode(tmp_path / "file") == 0o600

    def test_closes_when_the_block_fails(self, faulty: FaultyFs, tmp_path: Path) -> None:
        with pytest.raises(KeyError), faulty.opened(str(tmp_path / "file"), CREATE):
            raise KeyError
        assert faulty.calls["close"] == 1


class TestFsyncDir:
    def test_makes_the_entries_durable(self, tmp_path: Path) -> None:
        fs = RecordingFs(tmp_path)
        with fs.opened(str(tmp_path / "file"), CREATE):
            pass
        assert crash_state(fs.ops, Random(0), "none").tree == {}
        fs.fsync_dir(str(tmp_path))
        assert crash_state(fs.ops, Random(0), "none").tree == {"file": b""}

    def test_does_not_take_a_file_for_a_directory(self, fs: FileSystem, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(NotADirectoryError):
            fs.fsync_dir(str(tmp_path / "file"))

    @pytest.mark.parametrize("operation", ["open", "fsync", "close"])
    def test_a_failure_is_raised_and_leaks_nothing(
        self, faulty: FaultyFs, tmp_path: Path, operation: str
    ) -> None:
        faulty.fail(operation, errno.EIO)
        with pytest.raises(OSError) as caught:
            faulty.fsync_dir(str(tmp_path))
        assert caught.value.errno == errno.EIO
        assert faulty.calls["close"] == (0 if operation == "open" else 1)
