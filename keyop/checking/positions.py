"""The positions of one channel's subscribers: can each be read, and does it point at a record?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from keyop.checking.problem import Modes, Problem, leftover, unreadable
from keyop.errors import InvalidSubscriberIdError, OffsetError, SubscriberInUseError
from keyop.inspection import DataDirectory
from keyop.removal import check_position_id
from keyop.storage.locks import FileLock
from keyop.storage.offsets import (
    LEASE_SUFFIX,
    SUFFIX,
    lease_path,
    offset_path,
    read_offset,
    write_offset,
)
from keyop.storage.segment import Segment, record_boundary, segment_path

_TMP_SUFFIX = SUFFIX + ".tmp"


class _Fault(NamedTuple):
    """What is wrong with a position, and the offset that is right; None to let it be."""

    what: str
    advice: str
    right: int | None


class PositionCheck:
    """Looks at the files in ``subscribers/{channel}``.

    Args:
        segments: the channel's, the last one without a torn tail.
    """

    def __init__(
        self, directory: DataDirectory, channel: str, segments: Sequence[Segment], modes: Modes
    ) -> None:
        self._fs = directory.fs
        self._channel_path = directory.channel_directory(channel)
        self._path = directory.offsets_directory(channel)
        self._segments = segments
        self._start = segments[0].start if segments else 0
        self._end = segments[-1].end if segments else 0
        self._modes = modes

    def look(self) -> Iterator[Problem]:
        """Yield what is wrong."""
        try:
            names = sorted(self._fs.listdir(self._path))
        except FileNotFoundError:
            return
        except OSError as error:
            yield unreadable(self._path, error)
            return
        for name in names:
            path = f"{self._path}/{name}"
            try:
                status = self._fs.stat(path)
                self._modes.see(path, status.st_mode)
                yield from self._look_at(path, name, stat.S_ISREG(status.st_mode))
            except FileNotFoundError:  # unsubscribed just now
                continue
            except OSError as error:
                yield unreadable(path, error)

    def _look_at(self, path: str, name: str, is_file: bool) -> Iterator[Problem]:
        if not name.endswith((SUFFIX, LEASE_SUFFIX, _TMP_SUFFIX)):
            yield Problem(path, "is not keyop's", "move it away if nobody needs it", note=True)
        elif not is_file:
            yield Problem(path, "is not a file, but has the name of one", "move it away")
        elif name.endswith(_TMP_SUFFIX):
            what = "was left by a process that died while it saved a position"
            yield leftover(self._fs, path, what, "the position itself is whole")
        elif name.endswith(SUFFIX):
            yield from self._look_at_position(path, name[: -len(SUFFIX)])

    def _look_at_position(self, path: str, subscriber_id: str) -> Iterator[Problem]:
        try:
            check_position_id(subscriber_id)
        except InvalidSubscriberIdError as error:
            yield Problem(
                path,
                f"belongs to nobody: {error}",
                "it keeps segments from being deleted; move it away",
                note=True,
            )
        fault = self._fault(path)
        if fault is not None:
            yield Problem(
                path,
                fault.what,
                fault.advice,
                note=fault.right is None,
                mend=None if fault.right is None else lambda: self._mend(subscriber_id),
            )

    def _fault(self, path: str) -> _Fault | None:
        try:
            offset = read_offset(self._fs, path)
        except OffsetError:
            what = "is empty" if not self._fs.stat(path).st_size else "does not hold an offset"
            return _Fault(
                f"{what}, so the subscriber cannot start",
                "--repair moves it to the earliest record: messages come again, none is lost",
                self._start,
            )
        if offset is None:
            return None
        if offset > self._end:
            return _Fault(
                f"is at {offset}, past the log's end at {self._end}",
                "--repair moves it to the end, as opening the channel does",
                self._end,
            )
        if offset < self._start:
            return _Fault(
                f"is at {offset}; retention has deleted what is before {self._start}",
                "the subscriber goes on there and counts the difference as dropped",
                None,
            )
        boundary = self._boundary(offset)
        if boundary != offset:
            return _Fault(
                f"is at {offset}, inside the record that begins at {boundary}",
                "--repair moves it to that record, which is delivered again",
                boundary,
            )
        return None

    def _boundary(self, offset: int) -> int:
        """Return the offset of the record that a position is in."""
        before = [each for each in self._segments if each.start <= offset]
        if not before or offset >= before[-1].end:  # the end, or in a gap
            return offset
        start = before[-1].start
        path = segment_path(self._channel_path, start)
        with self._fs.opened(path, os.O_RDONLY | os.O_CLOEXEC) as fd:
            return start + record_boundary(self._fs, fd, offset - start)

    def _mend(self, subscriber_id: str) -> None:
        """Put the right offset in place, if nobody runs the subscriber.

        Raises:
            SubscriberInUseError: somebody does.
            OSError: it cannot be written.
        """
        path = offset_path(self._path, subscriber_id)
        lease = FileLock(self._fs, lease_path(self._path, subscriber_id))
        if not lease.try_acquire():
            raise SubscriberInUseError(f"{subscriber_id} runs; stop it first")
        try:
            # Looked at again: its holder may have moved it before the lease was taken.
            fault = self._fault(path)
            if fault is not None and fault.right is not None:
                write_offset(self._fs, path, fault.right)
        finally:
            lease.release()
