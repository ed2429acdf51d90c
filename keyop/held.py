"""Which locks are held just now, seen from outside, without trying to take them."""

from __future__ import annotations

import fcntl
import os

from keyop.fs import FileSystem

_PROC_LOCKS = "/proc/locks"


class HeldLocks:
    """Which lock files are locked just now, by processes that this one can see.

    A probe by ``flock`` could make an owner's own attempt fail, so the kernel's list is read.
    Processes in other containers are not in it.
    """

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._device: str | None = None
        self._held: set[tuple[str, str]] = set()
        try:
            self._read(directory)
        except (OSError, ValueError):  # no such list, no locks on this file system: not known
            self._device = None

    def _read(self, directory: str) -> None:
        """Lock the directory itself, which nobody else does, to learn how the list shows it.

        What the list calls a device is not what ``stat`` does on some file systems.
        """
        with self._fs.opened(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as fd:
            self._fs.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with open(_PROC_LOCKS, encoding="ascii") as file:
                lines = [line.split() for line in file]
            own = str(self._fs.fstat(fd).st_ino)
        for line in lines:
            # 1: FLOCK ADVISORY WRITE 10715 fe:00:2171918 0 EOF; waiting ones have "->" second.
            if len(line) < 6 or line[1] != "FLOCK":
                continue
            device, _, inode = line[5].rpartition(":")
            self._held.add((device, inode))
            if inode == own and line[4] == str(os.getpid()):
                self._device = device

    def holds(self, path: str) -> bool | None:
        """Tell whether somebody holds the lock; None where that cannot be seen."""
        try:
            inode = str(self._fs.stat(path).st_ino)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        return None if self._device is None else (self._device, inode) in self._held
