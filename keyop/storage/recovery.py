"""Opening a channel's directory: whatever a crash left is put in order before the first append.

Everything here runs under the channel's lock and may take long, so callers run it in a thread; but
for :func:`open_clean`, which does the usual case, where there is little to look at.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

from keyop.errors import OffsetError
from keyop.fs import FILE_MODE, FileSystem
from keyop.storage.locks import FileLock
from keyop.storage.offsets import (
    lease_path,
    list_ids,
    offset_path,
    read_all,
    read_offset,
    write_offset,
)
from keyop.storage.segment import (
    Segment,
    list_segments,
    list_starts,
    refuse_overlap,
    segment_name,
    segment_path,
    set_torn_tail_aside,
    whole_size,
)

logger = logging.getLogger(__name__)

_APPEND = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
# What is looked at in passing: more segments, or more subscribers, are work for a thread.
_FEW = 8


class Opened(NamedTuple):
    """The active segment: an open descriptor that the caller owns, first offset and size.

    ``entry_is_durable`` says whether its directory entry would survive a power cut.
    """

    fd: int
    start: int
    size: int
    entry_is_durable: bool = True


def recover(
    fs: FileSystem,
    directory: str,
    offsets_directory: str,
    durable: bool,
    durable_start: int = -1,
) -> Opened:
    """Open a channel's active segment, mending what a dead process left.

    Creates the first segment of a new channel, cuts a torn tail and clamps positions that lie
    past the end. Whole lines are never cut.

    Args:
        durable: whether directory entries found or made must survive a power cut.
        durable_start: where the segment begins whose entry is known to do so.

    Raises:
        StorageError: two segments overlap; nothing was changed.
        OSError: the directory or a file cannot be read or mended.

    Source: docs/format.md, "Opening a log".
    """
    segments = list_segments(fs, directory)
    refuse_overlap(segments, directory)
    _report_gaps(segments, directory)
    start = segments[-1].start if segments else 0
    opened = open_segment(fs, directory, start, durable, start == durable_start)
    try:
        clamp_offsets(fs, offsets_directory, start + opened.size)
    except BaseException:
        fs.close(opened.fd)
        raise
    return opened


def open_clean(
    fs: FileSystem,
    directory: str,
    offsets_directory: str,
    durable: bool,
    durable_start: int = -1,
) -> Opened | None:
    """Open a channel's active segment if there is nothing to mend and little to look at.

    A thread and back takes longer than this does, several times.

    Args:
        durable, durable_start: as for :func:`recover`.

    Returns:
        What ``recover`` would; None, with nothing changed, where that has to be called.

    Raises:
        StorageError: two segments overlap.
        OSError: the directory or a file cannot be read.
    """
    starts = list_starts(fs, directory)
    if not 0 < len(starts) <= _FEW:
        return None
    start = starts[-1]
    if len(starts) > 1:
        segments = list_segments(fs, directory, starts)
        refuse_overlap(segments, directory)
        if len(segments) < len(starts) or any(_gaps(segments)):
            return None
    try:
        fd = fs.open(segment_path(directory, start), _APPEND)
    except FileNotFoundError:
        return None
    try:
        size = fs.lseek(fd, 0, os.SEEK_END)
        if (
            size
            and fs.pread(fd, 1, size - 1) == b"\n"
            and _none_is_past(fs, offsets_directory, start + size)
        ):
            opened = Opened(fd, start, size, start == durable_start or not durable)
            fd = -1
            return opened
    finally:
        if fd >= 0:
            fs.close(fd)
    return None


def _none_is_past(fs: FileSystem, offsets_directory: str, end: int) -> bool:
    """Tell whether few positions are there, none of which is past the end, or bad."""
    ids = list_ids(fs, offsets_directory)
    return len(ids) <= _FEW and all(
        not isinstance(offset, OffsetError) and offset <= end
        for _, offset in read_all(fs, offsets_directory, ids)
    )


def open_segment(
    fs: FileSystem, directory: str, start: int, durable: bool, entry_is_durable: bool = False
) -> Opened:
    """Open a segment for appending, create it where it is missing, cut a torn tail.

    The directory of one that was there has to be synced as well, because whoever created it may
    have died before that; but not before something else in it is: what was promised of it until
    now was promised after that sync.

    Raises:
        OSError: it cannot be opened, created or mended.
    """
    path = segment_path(directory, start)
    fd = fs.open(path, _APPEND | os.O_CREAT, FILE_MODE)
    try:
        size = fs.lseek(fd, 0, os.SEEK_END)
        if durable and not size:
            fs.fsync_dir(directory)
        whole = whole_size(fs, fd, size)
        if whole != size:
            torn = set_torn_tail_aside(fs, directory, start, fd, whole, size)
            logger.warning(
                "%s: the last %d bytes were not a whole record (a process died while writing, "
                "or the power failed); they are in %s now",
                path,
                size - whole,
                os.path.basename(torn),
            )
    except BaseException:
        fs.close(fd)
        raise
    return Opened(fd, start, whole, entry_is_durable or not durable or not size)


def _gaps(segments: list[Segment]) -> Iterator[tuple[Segment, Segment]]:
    for before, after in itertools.pairwise(segments):
        if before.end < after.start:
            yield before, after


def _report_gaps(segments: list[Segment], directory: str) -> None:
    for before, after in _gaps(segments):
        logger.warning(
            "%s: %d bytes are missing between %s and %s; readers go on after the gap",
            directory,
            after.start - before.end,
            segment_name(before.start),
            segment_name(after.start),
        )


def clamp_offsets(fs: FileSystem, directory: str, end: int) -> list[str]:
    """Move positions that lie past the end of the log back to it; return their ids.

    The power failed after such a position had reached the disk and before the records had.
    A running subscriber's position is its own: it is left alone.

    Raises:
        OSError: a position cannot be read or written.
    """
    clamped = []
    for subscriber_id, offset in read_all(fs, directory):
        if isinstance(offset, OffsetError):
            logger.error("%s", offset)  # subscribing will refuse; it blocks nothing else
        elif offset > end:
            lease = FileLock(fs, lease_path(directory, subscriber_id))
            if lease.try_acquire():
                try:
                    if _clamp(fs, offset_path(directory, subscriber_id), end):
                        clamped.append(subscriber_id)
                finally:
                    lease.release()
    return clamped


def _clamp(fs: FileSystem, path: str, end: int) -> bool:
    """Clamp a position whose lease is held; return whether that was needed.

    It is read again: its last holder may have moved it back before the lease was taken.
    """
    try:
        offset = read_offset(fs, path)
    except OffsetError as error:
        logger.error("%s", error)
        return False
    if offset is None or offset <= end:
        return False
    write_offset(fs, path, end)
    logger.warning(
        "%s: %d was past the log's end, which is %d; it is moved there", path, offset, end
    )
    return True


def start_after_failure(fs: FileSystem, directory: str, failed_start: int, durable: bool) -> Opened:
    """Open a new segment behind one whose fsync failed, which is never written again.

    The failed one is not synced either: its pages may be marked clean without being on the disk,
    and a second fsync would report success. If the listing shows a later segment already, that
    one is opened.

    Raises:
        OSError: the new segment cannot be created.

    Source: Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020.
    """
    last = list_segments(fs, directory)[-1:]
    start = last[0].start if last else failed_start
    if start == failed_start:
        if last and last[0].size:
            start = last[0].end
        else:  # nothing is in it; a new file of the same name takes its place
            try:
                fs.unlink(segment_path(directory, start))
            except FileNotFoundError:  # by hand, meanwhile
                pass
    return open_segment(fs, directory, start, durable)
