"""The seam for the file system: every operation that storage does on files goes through here.

``FileSystem`` is a thin set of names for system calls, so that tests can record, fail or replay
each of them. Paths are ``str``; descriptors are ints that the caller owns and closes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

DIR_MODE = 0o700
FILE_MODE = 0o600

# Room comes back, so whoever meets one of these waits; anything else is reported.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class FileSystem:
    """System calls on files. One instance is shared by everything in a messenger."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    write = staticmethod(os.write)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    lseek = staticmethod(os.lseek)
    fstat = staticmethod(os.fstat)
    stat = staticmethod(os.stat)
    ftruncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(os.mkdir)
    listdir = staticmethod(os.listdir)
    flock = staticmethod(fcntl.flock)

    def fsync_dir(self, path: str) -> None:
        """Make the directory's entries durable.

        Raises:
            OSError: which of its entries are durable is unknown.
        """
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)

    def make_dirs(self, path: str, durable: bool = True, within: str | None = None) -> None:
        """Create a directory (0700) and its missing parents, each entry durable in its parent.

        Args:
            within: an absolute path; entries below it are made durable even if they were there
                before, because whoever created them may have died before it could.

        Raises:
            OSError: some of the parents may have been created.
        """
        entries = []
        current = os.path.abspath(path)
        while not self.is_dir(current) or (within is not None and len(current) > len(within)):
            entries.append(current)
            current = os.path.dirname(current)
        for current in reversed(entries):
            try:
                self.mkdir(current, DIR_MODE)
            except FileExistsError:
                if not self.is_dir(current):  # another process may have been faster
                    raise
            if durable:
                self.fsync_dir(os.path.dirname(current))

    def is_dir(self, path: str) -> bool:
        """Tell whether a directory is there.

        Raises:
            NotADirectoryError: something else stands there, or in place of a parent.
            OSError: it cannot be looked at.
        """
        try:
            mode = self.stat(path).st_mode
        except FileNotFoundError:
            return False
        if (mode & 0o170000) != 0o040000:
            raise NotADirectoryError(errno.ENOTDIR, "a file stands in place of a directory", path)
        return True

    def read_file(self, path: str, limit: int = 1 << 20) -> bytes:
        """Return a small file's content, at most ``limit`` bytes of it."""
        with self.opened(path, os.O_RDONLY | os.O_CLOEXEC) as fd:
            return self.pread(fd, limit, 0)

    def replace_file(self, path: str, data: bytes, durable: bool = True) -> None:
        """Put ``data`` in place of the file, whole or not at all, by tmp + fsync + rename.

        Raises:
            OSError: the file is as it was, but for a failure of the directory's fsync, after
                which the new one is in place and may not survive a power cut.
        """
        path = os.path.abspath(path)
        tmp = path + ".tmp"
        try:
            # Left by a process that died; its mode, or where it links to, is not to be trusted.
            self.unlink(tmp)
        except FileNotFoundError:
            pass
        with self.opened(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC) as fd:
            self.write_all(fd, data)
            if durable:
                self.fsync(fd)
        self.rename(tmp, path)
        if durable:
            self.fsync_dir(os.path.dirname(path))

    def write_all(self, fd: int, data: bytes) -> None:
        """Write all of ``data`` at the descriptor's position.

        Raises:
            OSError: a part of it may have been written.
        """
        view = memoryview(data)
        while view:
            view = view[self.write(fd, view) :]

    @contextmanager
    def opened(self, path: str, flags: int) -> Iterator[int]:
        """Open a file (0600 when created) for the time of a ``with`` block."""
        fd = self.open(path, flags, FILE_MODE)
        try:
            yield fd
        finally:
            self.close(fd)


SYSTEM_FS = FileSystem()
