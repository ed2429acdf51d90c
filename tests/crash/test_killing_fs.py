"""The file system that kills its process does so in the middle of what it was told to."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.killing import KillingFs


def died_by(work: Callable[[], object]) -> int:
    """Run something in a forked child; return the signal that ended it, 0 if none did."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def put(fs: KillingFs, path: Path, data: bytes) -> None:
    fd = fs.open(str(path), os.O_RDWR | os.O_CREAT, 0o600)
    fs.write(fd, data)
    fs.fsync(fd)


@pytest.mark.parametrize(
    ("at", "share", "left"),
    [
        (1, 0.4, None),
        (1, 0.6, b""),
        (2, 0.1, b""),
        (2, 0.25, b""),
        (2, 0.5, b"01234"),
        (2, 0.75, b"0123456789"),
        (2, 0.9, b"0123456789"),
        (3, 0.1, b"0123456789"),
    ],
)
def test_where_it_ends(tmp_path: Path, at: int, share: float, left: bytes | None) -> None:
    """Of the operation that kills, as much happens as was asked for; nothing comes after it."""
    path = tmp_path / "file"
    assert died_by(lambda: put(KillingFs(at, share), path, b"0123456789")) == signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == left


def test_not_before_its_turn(tmp_path: Path) -> None:
    """A process that does less than that lives."""
    assert died_by(lambda: put(KillingFs(4, 0.5), tmp_path / "file", b"x")) == 0


def test_an_operation_that_fails_kills_too(tmp_path: Path) -> None:
    """A lock that is tried and not got, say, or a file that is missing."""
    path = str(tmp_path / "missing")
    assert died_by(lambda: KillingFs(1, 0.9).unlink(path)) == signal.SIGKILL
    with open(tmp_path / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def try_lock() -> None:
            fs = KillingFs(2, 0.9)
            fd = fs.open(held.name, os.O_RDWR)
            fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

        assert died_by(try_lock) == signal.SIGKILL


def test_a_position_is_never_torn(tmp_path: Path) -> None:
    """A few bytes that are rewritten in place are there whole or not at all."""
    path = tmp_path / "file"
    for share, left in ((0.3, b"0000"), (0.7, b"1111")):
        path.write_bytes(b"0000")

        def rewrite(share: float = share) -> None:
            fs = KillingFs(2, share)
            fs.pwrite(fs.open(str(path), os.O_RDWR), b"1111", 0)

        assert died_by(rewrite) == signal.SIGKILL
        assert path.read_bytes() == left
