"""Disks that can be filled up: a small tmpfs where that is permitted, and a file system that says
that it is full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keyop.fs import SYSTEM_FS, FileSystem
from tests.fakes.faulty import FaultyFs

from .workload import CHANNEL

_TMPFS_BYTES = 8 << 20


class Disk:
    """Where a messenger keeps its data. ``kinds`` says what can be full of it."""

    kinds: tuple[str, ...] = ()
    fs: FileSystem = SYSTEM_FS

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fill(self, kind: str) -> None:
        """Leave no room."""
        raise NotImplementedError

    def make_room(self) -> None:
        """Take back what ``fill`` did."""
        raise NotImplementedError


class SmallDisk(Disk):
    """A real file system, which a second file fills to the last byte."""

    kinds = ("everything",)

    def fill(self, kind: str) -> None:
        """Leave no room."""
        with open(self.directory / "ballast", "wb", buffering=0) as ballast:
            chunk = bytes(64 << 10)
            while chunk:
                try:
                    ballast.write(chunk)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    chunk = chunk[: len(chunk) // 2]

    def make_room(self) -> None:
        """Take back what ``fill`` did."""
        (self.directory / "ballast").unlink(missing_ok=True)


class FakeDisk(Disk):
    """A file system that fails: all of it, or for files of one kind only."""

    kinds = ("everything", "log", "positions", "dead letters")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.fs: FaultyFs = FaultyFs()

    def fill(self, kind: str) -> None:
        """Leave no room."""
        if kind == "everything":
            self.fs.full = True
        elif kind == "positions":
            # Rewriting in place needs room as well where the file system copies on write.
            self.fs.fail("pwrite", errno.ENOSPC, times=None, path_contains=".offset")
        else:
            where = f"/{CHANNEL}/" if kind == "log" else ".dead-letter/"
            self.fs.fail("write", errno.ENOSPC, times=None, path_contains=where)

    def make_room(self) -> None:
        """Take back what ``fill`` did."""
        self.fs.heal()


@contextmanager
def small_disk(mount_point: Path) -> Iterator[SmallDisk | None]:
    """Mount a tmpfs for the time of a block; give None where that is not permitted."""
    mount_point.mkdir()
    if os.geteuid() != 0 or not _mount(mount_point):
        yield None
        return
    try:
        yield SmallDisk(mount_point)
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def _mount(mount_point: Path) -> bool:
    options = f"size={_TMPFS_BYTES},mode=0700"
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "keyop-reliability", str(mount_point)],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0
