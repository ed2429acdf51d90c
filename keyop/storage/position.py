"""Turning what a user calls a position into an offset: earliest, latest, a moment, a number."""

from __future__ import annotations

import os
from datetime import datetime
from typing import NamedTuple, Union

from keyop.decode import decode
from keyop.errors import CorruptRecordError
from keyop.fs import FileSystem
from keyop.pace import Pace
from keyop.storage.cursor import Cursor, Lines
from keyop.storage.segment import list_starts, record_boundary, segment_path
from keyop.timestamps import parse

Position = Union[str, int, datetime]  # noqa: UP007 - evaluated at run time on Python 3.10

_HEAD_BYTES = 64 << 10


def check_position(position: object) -> Position:
    """Return the position if it is one.

    Raises:
        ValueError: it is not ``"earliest"``, ``"latest"``, an aware ``datetime`` or an offset
            from 0 on.
    """
    allowed = "use 'earliest', 'latest', an aware datetime or an offset"
    if isinstance(position, str):
        if position in ("earliest", "latest"):
            return position
    elif isinstance(position, datetime):
        if position.tzinfo is not None:
            return position
        raise ValueError(f"{position!r} has no time zone; {allowed}")
    elif isinstance(position, int) and not isinstance(position, bool) and position >= 0:
        return position
    raise ValueError(f"{position!r} is not a position; {allowed}")


# Past any end, which a cursor takes for the end.
_BEYOND = 1 << 62


def resolve(fs: FileSystem, directory: str, position: Position, max_line_bytes: int) -> int:
    """Return the offset that a position means in this channel now, on a record boundary.

    An offset past the end means the end; one that retention has passed, the first record left.

    Raises:
        OSError: the channel cannot be read.
    """
    if isinstance(position, datetime):
        return find_time(fs, directory, position, max_line_bytes)
    starts = list_starts(fs, directory)
    if not starts:
        return 0
    if position == "earliest":
        return starts[0]
    # Through a cursor, because an append may be under way, or an offset be in mid-record.
    offset = _BEYOND if position == "latest" else position
    assert isinstance(offset, int)
    cursor = Cursor(fs, directory, max_line_bytes)
    try:
        return cursor.open(offset)
    finally:
        cursor.close()


def find_time(fs: FileSystem, directory: str, moment: datetime, max_line_bytes: int) -> int:
    """Return the offset of the first record stamped at or after a moment; the end if none is.

    Segments are searched by halving, and bytes within one, so records are taken to be in the
    order of their stamps, as those of one host are. Where they are not (clocks set back, records
    passed on by a hub), the record found is next to one that fits.

    Raises:
        OSError: the channel cannot be read.
    """
    starts = list_starts(fs, directory)
    low, high = 0, len(starts)
    while high - low > 1:
        middle = (low + high) // 2
        stamped = _stamp_from(fs, directory, starts[middle], 0)
        if stamped is None or stamped.moment >= moment:
            high = middle
        else:
            low = middle
    if not starts:
        return 0
    cursor = Cursor(fs, directory, max_line_bytes)
    pace = Pace()
    try:
        cursor.open(_halve_segment(fs, directory, starts[low], moment))
        while (found := cursor.read(look_around=True)) is not None:
            if isinstance(found, Lines):
                offset = found.start
                for line in found.lines:
                    stamp = _stamp(line)
                    if stamp is not None and stamp >= moment:
                        return offset
                    offset += len(line) + 1
            pace.step()
        return cursor.position
    finally:
        cursor.close()


def _halve_segment(fs: FileSystem, directory: str, start: int, moment: datetime) -> int:
    """Return an offset in the segment at or before the first record stamped at the moment."""
    try:
        low, high = 0, fs.stat(segment_path(directory, start)).st_size
    except FileNotFoundError:
        return start
    while high - low > _HEAD_BYTES:
        middle = (low + high) // 2
        stamped = _stamp_from(fs, directory, start, middle)
        if stamped is None or stamped.moment >= moment:
            high = middle
        else:
            low = stamped.end
    return start + low


class _Stamped(NamedTuple):
    """A record's end in its segment, and its stamp."""

    end: int
    moment: datetime


def _stamp_from(fs: FileSystem, directory: str, start: int, position: int) -> _Stamped | None:
    """Return the first stamped record that reaches over a byte of a segment or follows it."""
    try:
        with fs.opened(segment_path(directory, start), os.O_RDONLY | os.O_CLOEXEC) as fd:
            begin = record_boundary(fs, fd, position)
            data = fs.pread(fd, _HEAD_BYTES, begin)
    except FileNotFoundError:
        return None
    for line in data.split(b"\n")[:-1]:
        begin += len(line) + 1
        stamp = _stamp(line)
        if stamp is not None:
            return _Stamped(begin, stamp)
    return None


def _stamp(line: bytes) -> datetime | None:
    try:
        return parse(decode(line)["ts"])
    except (CorruptRecordError, ValueError):
        return None
