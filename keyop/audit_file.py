"""The files of the audit log: appending whole lines, and rotation.

Source: format.md, "Audit record".
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from keyop.clock import Clock
from keyop.fs import FILE_MODE, FileSystem

FILE_NAME = "audit.jsonl"
_ROTATED = re.compile(re.escape(FILE_NAME) + r"\.([1-9][0-9]{0,8})", re.ASCII)

# An operator may move the file away at any time: it is written to no longer than this after.
_REOPEN_S = 1.0


class Appended(NamedTuple):
    """How many lines are in the file, and what kept the others out of it."""

    lines: int
    error: OSError | None


class AuditFile:
    """The file that is written and the rotated ones. For one thread at a time, which it blocks."""

    def __init__(
        self, directory: str, max_size_bytes: int, max_files: int, fs: FileSystem, clock: Clock
    ) -> None:
        self.path = f"{directory}/{FILE_NAME}"
        self._directory = directory
        self._max_size_bytes = max_size_bytes
        self._max_files = max_files
        self._fs = fs
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._reopen_at = 0.0

    def append(self, lines: Sequence[bytes]) -> Appended:
        """Write whole lines, rotating before one that would take the file over its size.

        After a failure the file may end in a part of a line, as after a crash: the next append
        ends that line first. Nothing is cut, because a reader may have it already.
        """
        done = 0
        try:
            self._open()
            while done < len(lines):
                count = self._fitting(lines[done:])
                if not count:
                    self._rotate()
                    continue
                data = b"".join(lines[done : done + count])
                written = 0
                try:
                    while written < len(data):
                        written += self._fs.write(self._fd, data[written:])
                finally:
                    self._size += written
                    done += data.count(b"\n", 0, written)
        except OSError as error:
            self.close()
            return Appended(done, error)
        return Appended(done, None)

    def close(self) -> None:
        """Give the descriptor back; the next append opens the file again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                self._fs.close(fd)
            except OSError:  # the descriptor is gone all the same, and nothing was promised
                pass

    def _open(self) -> None:
        """Have the file open, its last line ended."""
        now = self._clock.monotonic()
        if self._fd >= 0:
            if now < self._reopen_at:
                return
            self.close()
        fs, flags = self._fs, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._fd = fs.open(self.path, flags, FILE_MODE)
        except FileNotFoundError:
            fs.make_dirs(self._directory, durable=False)
            self._fd = fs.open(self.path, flags, FILE_MODE)
        self._reopen_at = now + _REOPEN_S
        self._size = fs.lseek(self._fd, 0, os.SEEK_END)
        if self._size and fs.pread(self._fd, 1, self._size - 1) != b"\n":
            self._size += fs.write(self._fd, b"\n")

    def _fitting(self, lines: Sequence[bytes]) -> int:
        """Return how many lines may be written before the next rotation."""
        limit, size = self._max_size_bytes, self._size
        if not limit:
            return len(lines)
        for count, line in enumerate(lines):
            # An empty file takes any line: rotating would make no more room.
            if size and size + len(line) > limit:
                return count
            size += len(line)
        return len(lines)

    def _rotate(self) -> None:
        """Move each file one number on, up to the first number that is free, and drop the rest."""
        self.close()
        fs, path, keep = self._fs, self.path, self._max_files
        names = [_ROTATED.fullmatch(name) for name in fs.listdir(self._directory)]
        taken = {int(match[1]) for match in names if match}
        for number in taken:
            if number > keep:  # there may be such after the configuration has changed
                fs.unlink(f"{path}.{number}")
        if keep:
            free = next((number for number in range(1, keep) if number not in taken), keep)
            for number in range(free, 1, -1):
                fs.rename(f"{path}.{number - 1}", f"{path}.{number}")
            fs.rename(path, f"{path}.1")
        else:
            fs.unlink(path)
        self._open()
