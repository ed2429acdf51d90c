"""One segment file: its name ↔ the global offset of its first byte, its whole and torn parts.

Nothing here takes a lock; callers that change a file hold the channel's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from keyop.errors import StorageError
from keyop.fs import FileSystem

OFFSET_DIGITS = 20
SUFFIX = ".jsonl"
_NAME = re.compile(r"(\d{20})\.jsonl", re.ASCII)
_SCAN_BYTES = 64 << 10


class Segment(NamedTuple):
    """A segment as the directory shows it: first offset and size, in bytes."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The offset one past its last byte."""
        return self.start + self.size


def segment_name(start: int) -> str:
    """Return the file name of the segment whose first byte has this global offset."""
    return f"{start:0{OFFSET_DIGITS}d}{SUFFIX}"


def segment_path(directory: str, start: int) -> str:
    """Return the path of a segment in its channel's directory."""
    return f"{directory}/{start:0{OFFSET_DIGITS}d}{SUFFIX}"


def segment_start(name: str) -> int | None:
    """Return the first offset of a segment with this file name; None for any other file."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def list_starts(fs: FileSystem, directory: str) -> list[int]:
    """Return the first offsets of the channel's segments, in order.

    Raises:
        OSError: the directory cannot be read.
    """
    found = map(_NAME.fullmatch, fs.listdir(directory))
    return sorted([int(match[1]) for match in found if match is not None])


def list_segments(
    fs: FileSystem, directory: str, starts: Iterable[int] | None = None
) -> list[Segment]:
    """Return the channel's segments in order. One that is deleted meanwhile is left out.

    Args:
        starts: their first offsets, where the directory was listed already.

    Raises:
        OSError: the directory or a file cannot be read.
    """
    segments = []
    for start in list_starts(fs, directory) if starts is None else starts:
        try:
            size = fs.stat(segment_path(directory, start)).st_size
        except FileNotFoundError:
            continue
        segments.append(Segment(start, size))
    return segments


def refuse_overlap(segments: Iterable[Segment], directory: str) -> None:
    """Check that no two segments claim the same offsets.

    Raises:
        StorageError: two do; the error names them.
    """
    before: Segment | None = None
    for segment in segments:
        if before is not None and before.end > segment.start:
            raise StorageError(
                f"{directory}: {segment_name(before.start)} ({before.size} bytes) reaches into "
                f"{segment_name(segment.start)}; two writers without a common lock, or a file "
                "copied from elsewhere: move one of them away"
            )
        before = segment


def whole_size(fs: FileSystem, fd: int, size: int) -> int:
    """Return how many of the first ``size`` bytes are whole lines: up to the last newline.

    Raises:
        OSError: the file cannot be read.
    """
    end = size
    while end > 0:
        begin = max(0, end - _SCAN_BYTES)
        newline = fs.pread(fd, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def set_torn_tail_aside(
    fs: FileSystem, directory: str, start: int, fd: int, whole: int, size: int
) -> str:
    """Cut the bytes after the last newline off a segment, keeping them in a file beside it.

    They reach the disk before they are cut, so that nothing is destroyed.

    Returns:
        The path of the file that holds them now.

    Raises:
        OSError: the segment may not have been cut.
    """
    number = 0
    while True:
        path = f"{segment_path(directory, start)}.torn-{number}"
        try:
            torn = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            break
        except FileExistsError:
            number += 1
    try:
        position = whole
        while position < size:
            data = fs.pread(fd, min(_SCAN_BYTES, size - position), position)
            if not data:
                break
            fs.write_all(torn, data)
            position += len(data)
        fs.fsync(torn)
    finally:
        fs.close(torn)
    fs.fsync_dir(directory)
    fs.ftruncate(fd, whole)
    fs.fsync(fd)
    return path


def record_boundary(fs: FileSystem, fd: int, position: int) -> int:
    """Return ``position`` if a record begins there, else the boundary before it.

    Args:
        position: in the file, at most its size.

    Raises:
        OSError: the file cannot be read.
    """
    if position == 0 or fs.pread(fd, 1, position - 1) == b"\n":
        return position
    return whole_size(fs, fd, position)
