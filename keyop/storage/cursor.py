"""A read position that moves across a channel's segments, whole lines at a time.

A cursor takes no lock: it reads what is there, up to the last newline, and keeps nothing of what
lies behind it, because an unfinished line may still be cut back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import NamedTuple

from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import FileSystem
from keyop.storage.segment import list_starts, record_boundary, segment_path

logger = logging.getLogger(__name__)

CHUNK_BYTES = 128 << 10


class Lines(NamedTuple):
    """Whole lines, without their newlines, as they follow each other from ``start``."""

    start: int
    lines: list[bytes]


class Skipped(NamedTuple):
    """Bytes that hold no readable record: ``reason`` is ``gap``, ``oversize`` or ``torn``.

    ``head`` is what of them could be kept in memory; nothing of a gap.
    """

    start: int
    end: int
    reason: str
    head: bytes = b""


class Cursor:
    """Reads one channel from a position on. ``position`` is the next byte that ``read`` takes.

    Args:
        is_active: whether the segment that begins at an offset is known to be the active one,
            so that there is no need to look for the next.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        max_line_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        is_active: Callable[[int], bool] = lambda start: False,
    ) -> None:
        self._fs = fs
        self._pread = fs.pread
        self.directory = directory
        self._max_line_bytes = max_line_bytes
        self._chunk_bytes = chunk_bytes
        self._is_active = is_active
        self._fd = -1
        self._start = 0
        self.position = 0

    def open(self, position: int) -> int:
        """Go to a position and return the one that was taken.

        Past the end becomes the end; inside a record, its beginning; before the first surviving
        segment, that segment's start; in a gap, the end of the segment before it.

        Raises:
            OSError: the directory or a segment cannot be read.
        """
        self.close()
        starts = list_starts(self._fs, self.directory)
        if not starts:
            self._start = self.position = 0
            return 0
        start = max((each for each in starts if each <= position), default=starts[0])
        self._enter(start)
        size = self._fs.fstat(self._fd).st_size
        inside = min(max(0, position - start), size)
        self.position = start + record_boundary(self._fs, self._fd, inside)
        return self.position

    @property
    def behind(self) -> bool:
        """Whether there may be segments after the one that it reads."""
        return not self._is_active(self._start)

    def _enter(self, start: int) -> None:
        fd = self._fs.open(segment_path(self.directory, start), os.O_RDONLY | os.O_CLOEXEC)
        self.close()
        self._fd, self._start = fd, start
        drop_in_children(self)

    def read(self, look_around: bool = False) -> Lines | Skipped | None:
        """Return what comes next, or None at the end of the log.

        The position moves past what is returned.

        Args:
            look_around: list the directory where the segment ends. Without it, a segment that
                begins anywhere but at this one's end (after a gap) is not found.

        Raises:
            OSError: a segment cannot be read.
        """
        while True:
            if self._fd < 0 and not self._enter_first():
                return None
            data = self._pread(self._fd, self._chunk_bytes, self.position - self._start)
            end = data.rfind(b"\n")
            if end >= 0:
                start = self.position
                self.position += end + 1
                return Lines(start, data[:end].split(b"\n"))
            if not data:
                if self.behind and self._enter_if_there(self.position):
                    continue
                if not look_around or (after := self._next_start()) is None:
                    return None
                if self._pread(self._fd, 1, self.position - self._start):
                    continue  # appended and sealed while the directory was listed
                if after == self.position:  # rolled since the segment was looked for
                    self._enter(after)
                    continue
                gap = Skipped(self.position, after, "gap")
                self._enter(after)
                self.position = after
                return gap
            found = self._read_long_line() if len(data) == self._chunk_bytes else None
            if found is None:
                found = self._read_torn_end()
            return found

    def _next_start(self) -> int | None:
        starts = list_starts(self._fs, self.directory)
        return min((start for start in starts if start > self._start), default=None)

    def _read_long_line(self) -> Lines | Skipped | None:
        """Read one line of any length; None if it is not finished yet."""
        start = self.position
        pieces: list[bytes] = []
        kept = length = 0
        while True:
            data = self._pread(self._fd, self._chunk_bytes, start + length - self._start)
            if not data:
                return None
            newline = data.find(b"\n")
            part = data if newline < 0 else data[:newline]
            length += len(part)
            if kept <= self._max_line_bytes:
                pieces.append(part)
                kept += len(part)
            if newline >= 0:
                break
        self.position = start + length + 1
        if length >= self._max_line_bytes:
            head = b"".join(pieces)[: self._max_line_bytes]
            return Skipped(start, self.position, "oversize", head)
        return Lines(start, [b"".join(pieces)])

    def _read_torn_end(self) -> Lines | Skipped | None:
        """Read an unfinished line that nobody will finish: one at the end of a sealed segment."""
        after = self._next_start()
        if after is None:
            return None
        # Sealed by now; what was unfinished a moment ago may have been finished before.
        finished = self._read_long_line()
        if finished is not None:
            return finished
        start = self.position
        head = self._pread(self._fd, self._max_line_bytes, start - self._start)
        self._enter(after)
        self.position = after
        return Skipped(start, after, "torn", head)

    def _enter_first(self) -> bool:
        starts = list_starts(self._fs, self.directory)
        if not starts:
            return False
        self._enter(max((start for start in starts if start <= self.position), default=starts[0]))
        self.position = max(self.position, self._start)
        return True

    def _enter_if_there(self, start: int) -> bool:
        if start == self._start:
            return False
        try:
            self._enter(start)
        except FileNotFoundError:
            return False
        return True

    def skip_to(self, position: int, end: int) -> bool:
        """Move from ``position`` to ``end`` without reading; return whether that was possible.

        It is only where the cursor stands at the position, in the segment that holds both.
        """
        if self.position != position:
            return False
        if self._fd < 0:  # the active segment holds whatever is behind
            if self.behind:
                return False
        elif self._fs.lseek(self._fd, 0, os.SEEK_END) < end - self._start:
            return False
        self.position = end
        return True

    def close(self) -> None:
        """Give the descriptor back; reading goes on at ``position``."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            keep_in_children(self)
            self._fs.close(fd)

    def drop_in_child(self) -> None:
        """Close the descriptor in a forked child."""
        self.close()
