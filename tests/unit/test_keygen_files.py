"""Keys and certificates on the disk: private, and all of them or none."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from keyop.keygen.files import locked, replace_file, write_files
from tests.fakes.faulty import FaultyFs

NEW = {"a.key": b"new key", "a.crt": b"new certificate"}


@pytest.fixture
def fs() -> FaultyFs:
    return FaultyFs()


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory by its path in there; empty for a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in directory.rglob("*")
    }


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def at(directory: Path, files: dict[str, bytes] = NEW) -> dict[str, bytes]:
    return {str(directory / name): data for name, data in files.items()}


def error_of(call: Callable[..., object], *args: object) -> OSError | None:
    """Return the error that a call ends with, if it does."""
    try:
        call(*args)
    except OSError as error:
        return error
    return None


class TestWriteFiles:
    @pytest.mark.parametrize("umask", [0, 0o022, 0o777])
    @pytest.mark.parametrize("force", [False, True])
    def test_private_whatever_the_umask(self, tmp_path: Path, umask: int, force: bool) -> None:
        """0600, and nothing else is left."""
        before = os.umask(umask)
        try:
            write_files(at(tmp_path), force)
        finally:
            os.umask(before)
        assert contents(tmp_path) == NEW
        assert {mode(path) for path in tmp_path.iterdir()} == {0o600}

    def test_private_from_the_first_byte(self, tmp_path: Path, fs: FaultyFs) -> None:
        """Whoever looks while it is written finds no file that others may read."""
        modes = []
        write = fs.write

        def spy(fd: int, data: bytes) -> int:
            modes.append({mode(path) for path in tmp_path.iterdir()})
            return write(fd, data)

        fs.write = spy  # type: ignore[method-assign]
        before = os.umask(0)
        try:
            write_files(at(tmp_path), fs=fs)
        finally:
            os.umask(before)
        assert modes == [{0o600}] * 2

    def test_missing_directories(self, tmp_path: Path) -> None:
        """They are made, 0700."""
        write_files(at(tmp_path / "x" / "y"))
        assert contents(tmp_path / "x" / "y") == NEW
        assert mode(tmp_path / "x") == mode(tmp_path / "x" / "y") == 0o700

    def test_relative_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """They begin at the working directory."""
        monkeypatch.chdir(tmp_path)
        write_files({"a.key": b"1", "sub/a.crt": b"2"})
        assert contents(tmp_path) == {"a.key": b"1", "sub": b"", "sub/a.crt": b"2"}

    @pytest.mark.parametrize("there", ["a.key", "a.crt"])
    def test_nothing_is_overwritten(self, tmp_path: Path, there: str) -> None:
        """If one of them is there, none is written; the error names it."""
        (tmp_path / there).write_bytes(b"old")
        with pytest.raises(FileExistsError) as caught:
            write_files(at(tmp_path))
        assert caught.value.filename == str(tmp_path / there)
        assert contents(tmp_path) == {there: b"old"}

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        """Even where it leads nowhere."""
        (tmp_path / "a.key").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileExistsError):
            write_files(at(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["a.key"]

    @pytest.mark.parametrize("there", [["a.key"], ["a.crt"], ["a.key", "a.crt"]])
    def test_force(self, tmp_path: Path, there: list[str]) -> None:
        """Both are new, and private, whatever the old ones were."""
        for name in there:
            (tmp_path / name).write_bytes(b"old")
            (tmp_path / name).chmod(0o644)
        write_files(at(tmp_path), force=True)
        assert contents(tmp_path) == NEW
        assert {mode(path) for path in tmp_path.iterdir()} == {0o600}

    def test_force_through_a_link(self, tmp_path: Path) -> None:
        """What it leads to is replaced; the link stays."""
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "key").write_bytes(b"old")
        (tmp_path / "a.key").symlink_to("real/key")
        write_files(at(tmp_path), force=True)
        assert (tmp_path / "a.key").is_symlink()
        assert (tmp_path / "real" / "key").read_bytes() == b"new key"

    def test_force_has_its_limits(self, tmp_path: Path) -> None:
        """A directory, a pipe, or what is much too large, was not meant."""
        (tmp_path / "a.crt").mkdir()
        with pytest.raises(OSError, match="not a plain file"):
            write_files(at(tmp_path), force=True)
        (tmp_path / "a.crt").rmdir()
        os.mkfifo(tmp_path / "a.crt")
        with pytest.raises(OSError, match="not a plain file"):
            write_files(at(tmp_path), force=True)
        (tmp_path / "a.crt").unlink()
        (tmp_path / "a.crt").touch()
        os.truncate(tmp_path / "a.crt", (16 << 20) + 1)
        with pytest.raises(OSError, match="too large for a key"):
            write_files(at(tmp_path), force=True)
        assert [path.name for path in tmp_path.iterdir()] == ["a.crt"]

    @pytest.mark.parametrize("operation", ["open", "write", "fsync", "close", "rename", "mkdir"])
    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("where", [".", "x/y"])
    def test_all_or_nothing(
        self, tmp_path: Path, fs: FaultyFs, operation: str, force: bool, where: str
    ) -> None:
        """Whichever call fails, everything is as it was: with the old files and their modes."""
        if force and where == ".":
            for name in NEW:
                (tmp_path / name).write_bytes(b"old " + name.encode())
                (tmp_path / name).chmod(0o640)
        before = contents(tmp_path)
        struck = 0
        while True:
            fault = fs.fail(operation, errno.EIO, nth=struck + 1)
            error = error_of(write_files, at(tmp_path / where), force, fs)
            if error is None:
                break
            assert error.errno == errno.EIO
            struck += 1
            assert contents(tmp_path) == before
            assert {mode(path) for path in tmp_path.iterdir()} <= {0o640}
            fs.heal()
        assert not fault.hits
        assert struck >= 2 or (operation == "mkdir" and where == ".")
        assert {Path(name).name for name in contents(tmp_path)} >= set(NEW)
        assert fs.open_paths == {}

    @pytest.mark.parametrize("room", [0, 1, 8, 20])
    def test_a_full_disk(self, tmp_path: Path, fs: FaultyFs, room: int) -> None:
        """Nothing is left, however much room there was."""
        fs.fill(room)
        with pytest.raises(OSError, match="No space left"):
            write_files(at(tmp_path), fs=fs)
        assert contents(tmp_path) == {}

    def test_short_writes(self, tmp_path: Path, fs: FaultyFs) -> None:
        """A write that takes a part is gone on with."""
        write = fs.write
        fs.write = lambda fd, data: write(fd, data[:3])  # type: ignore[method-assign]
        write_files(at(tmp_path), fs=fs)
        assert contents(tmp_path) == NEW

    def test_interrupted(self, tmp_path: Path, fs: FaultyFs) -> None:
        """Ctrl-C leaves nothing either."""

        def interrupt(_: int) -> None:
            signal.raise_signal(signal.SIGINT)

        fs.fsync = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            write_files(at(tmp_path / "x"), fs=fs)
        assert contents(tmp_path) == {}

    def test_a_failure_that_cannot_be_undone(self, tmp_path: Path, fs: FaultyFs) -> None:
        """What was replaced is not lost: its copy stays if it cannot be put back."""
        (tmp_path / "a.key").write_bytes(b"old")
        fs.fail("rename", errno.EIO, nth=2, times=None)
        with pytest.raises(OSError, match="Input/output"):
            write_files(at(tmp_path), force=True, fs=fs)
        assert sorted(contents(tmp_path).values()) == [b"new key", b"old"]

    def test_what_others_put_into_a_new_directory_stays(self, tmp_path: Path, fs: FaultyFs) -> None:
        """Only a directory that is empty is taken away again."""

        def fsync(_: int) -> None:
            (tmp_path / "x").mkdir(exist_ok=True)
            (tmp_path / "x" / "other").touch()
            raise OSError(errno.EIO, "")

        fs.fsync_dir = lambda path: None  # type: ignore[method-assign]
        fs.fsync = fsync  # type: ignore[method-assign]
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            write_files(at(tmp_path / "x"), fs=fs)
        assert contents(tmp_path) == {"x": b"", "x/other": b""}

    def test_durable(self, tmp_path: Path, fs: FaultyFs) -> None:
        """Each file and each directory is on the disk when this returns."""
        (tmp_path / "x").mkdir()
        write_files({str(tmp_path / "a"): b"1", str(tmp_path / "x" / "b"): b"2"}, fs=fs)
        assert fs.calls["fsync"] - fs.calls["fsync_dir"] == 2
        assert fs.calls["fsync_dir"] == 2


class TestReplaceFile:
    def test_new(self, tmp_path: Path) -> None:
        """Private."""
        replace_file(str(tmp_path / "a"), b"1")
        assert contents(tmp_path) == {"a": b"1"}
        assert mode(tmp_path / "a") == 0o600

    def test_another_owner(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who may not give files away keeps the new one, with the old one's mode."""
        (tmp_path / "a").touch()
        (tmp_path / "a").chmod(0o644)

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "no")

        monkeypatch.setattr(os, "fchown", refuse)
        replace_file(str(tmp_path / "a"), b"1")
        assert contents(tmp_path) == {"a": b"1"}
        assert mode(tmp_path / "a") == 0o644


class TestLocked:
    def test_others_wait(self, tmp_path: Path) -> None:
        """A second process gets in when the first is done, and nothing is left behind."""
        with locked(str(tmp_path)):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    with locked(str(tmp_path)):
                        status = 0 if (tmp_path / "done").exists() else 2
                finally:
                    os._exit(status)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            (tmp_path / "done").touch()
        assert os.waitpid(pid, 0)[1] == 0
        assert contents(tmp_path) == {"done": b""}

    def test_given_back_after_an_error(self, tmp_path: Path) -> None:
        """The next one gets in."""
        with pytest.raises(KeyError), locked(str(tmp_path)):
            raise KeyError
        with locked(str(tmp_path)):
            pass
