"""A durable position: the next byte to read, in one small file for each subscriber.

The file holds a decimal number and a newline. It is made by tmp + rename, zero-padded to 20
digits, and from then on rewritten in place: 21 bytes in one sector.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from keyop.errors import OffsetError
from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import FileSystem
from keyop.offload import Job, Offload
from keyop.storage.segment import OFFSET_DIGITS
from keyop.storage.syncing import sync_together
from keyop.wakeup import Gate

logger = logging.getLogger(__name__)

SUFFIX = ".offset"
LEASE_SUFFIX = ".lock"
_FILE_BYTES = OFFSET_DIGITS + 1
_CONTENT = re.compile(rb"([0-9]{1,20})\n?")
_READS = 8


def offset_path(directory: str, subscriber_id: str) -> str:
    """Return the path of a subscriber's position below ``subscribers/{channel}``."""
    return f"{directory}/{subscriber_id}{SUFFIX}"


def lease_path(directory: str, subscriber_id: str) -> str:
    """Return the path of the lock file that says who runs this subscriber."""
    return f"{directory}/{subscriber_id}{LEASE_SUFFIX}"


def list_ids(fs: FileSystem, directory: str) -> list[str]:
    """Return the ids that have a position in this directory, in order; none if it is missing.

    Raises:
        OSError: the directory cannot be read.
    """
    try:
        names = fs.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):  # subscribing says which, and refuses
        return []
    ids = (name[: -len(SUFFIX)] for name in names if name.endswith(SUFFIX))
    return sorted(each for each in ids if _is_text(each))


def _is_text(name: str) -> bool:
    """Tell a name from bytes that are no UTF-8: no id is like that, and nobody could print it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(content: bytes, path: str) -> int:
    match = _CONTENT.fullmatch(content)
    if match is None:
        what = "is empty" if not content else f"holds {content[:40]!r}, which is not a number"
        raise OffsetError(
            f"{path} {what}, so the subscriber's position is unknown. Run 'keyop check --repair', "
            "which moves it to the earliest record (messages come again, none is lost), or write "
            "the offset into it by hand"
        )
    return int(match[1])


def read_offset(fs: FileSystem, path: str) -> int | None:
    """Return the position in a file that another process may be rewriting; None if missing.

    It is read until two reads agree; if they never do, the lowest counts.

    Raises:
        OffsetError: the file is empty, does not hold a number or is a directory; it was not
            changed.
        OSError: it cannot be read.
    """
    seen: list[bytes] = []
    for _ in range(_READS):
        try:
            content = fs.read_file(path, _FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            raise OffsetError(
                f"{path} is a directory, where a subscriber's position should be: move it away"
            ) from None
        if seen and content == seen[-1]:
            return _parse(content, path)
        seen.append(content)
    return min(_parse(content, path) for content in seen)


def write_offset(fs: FileSystem, path: str, offset: int, durable: bool = True) -> None:
    """Put a position in place, whole or not at all, by tmp + fsync + rename.

    Raises:
        OSError: as :meth:`FileSystem.replace_file`.
    """
    fs.replace_file(path, b"%020d\n" % offset, durable)


class OffsetFile:
    """The position of a running subscriber, held open. Only the lease's holder has one.

    Args:
        unsynced: where this puts itself when there is something to sync.
    """

    def __init__(self, fs: FileSystem, path: str, unsynced: set[OffsetFile] | None = None) -> None:
        self._unsynced: set[OffsetFile] = set() if unsynced is None else unsynced
        self._fs = fs
        self._pwrite = fs.pwrite
        self.path = path
        self._fd = -1
        # From asking for a thread until the sync has returned; then what is to be closed.
        self._syncing: Gate | None = None
        self._left_open = -1
        self.dirty = False

    def open(self) -> int | None:
        """Open the file and return the position; None, and nothing opened, if it is missing.

        A file of another length (v0.11.0 does not pad) is replaced by one that can be rewritten
        in place.

        Raises:
            OffsetError: the file is empty or does not hold a number; it was not changed.
            OSError: it cannot be read or replaced.
        """
        offset = read_offset(self._fs, self.path)
        if offset is None:
            return None
        if self._fs.stat(self.path).st_size != _FILE_BYTES:
            write_offset(self._fs, self.path, offset)
        self._fd = self._fs.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        drop_in_children(self)
        return offset

    def save(self, offset: int) -> None:
        """Rewrite the position in place; one system call, not yet on the disk.

        Does nothing once the file is closed.

        Raises:
            OSError: the old position is still there.
        """
        if self._fd >= 0:
            self._pwrite(self._fd, b"%020d\n" % offset, 0)
            if not self.dirty:
                self.dirty = True
                self._unsynced.add(self)

    def sync(self, offload: Offload) -> Job | None:
        """Start bringing the position to the disk; None if it is there, or on its way.

        If that fails, which position is on the disk is unknown; an older one is possible.
        """
        return sync_together((self,), offload)

    def settle(self, offload: Offload) -> None:
        """Wait until what was saved before this call is on the disk, or its sync has failed."""
        if self._syncing is not None:  # it may have begun before the last save
            self._syncing.wait()
        if (job := self.sync(offload)) is not None:
            job.wait()
        elif self._syncing is not None:  # somebody else has begun it
            self._syncing.wait()

    def hold_for_sync(self) -> Callable[[], None] | None:
        """Keep the descriptor for a sync; return what it has to do, None if that is nothing."""
        if self._fd < 0 or not self.dirty or self._syncing is not None:
            return None
        self.dirty = False
        self._syncing = Gate()
        return partial(self._fs.fdatasync, self._fd)

    def give_up_sync(self) -> None:
        """Whoever waited for a thread was killed."""
        self.dirty = True
        self._end_sync()

    def begin_sync(self) -> Callable[[Exception | None], None]:
        """Return who is to be told of the sync's end."""
        return self._synced

    def _synced(self, error: Exception | None) -> None:
        self._end_sync()
        if error is not None:
            logger.error("%s may be older on the disk than in memory: %s", self.path, error)

    def close(self) -> None:
        """Close the file, or have it closed when a sync returns. What was saved survives."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        keep_in_children(self)
        if self._syncing is not None:
            self._left_open = fd
        else:
            self._fs.close(fd)

    def _end_sync(self) -> None:
        ended, self._syncing = self._syncing, None
        if ended is not None:
            ended.open()
        fd, self._left_open = self._left_open, -1
        if fd >= 0:
            self._fs.close(fd)

    def drop_in_child(self) -> None:
        """Close the descriptor: the position is the parent's to save."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def read_all(
    fs: FileSystem, directory: str, ids: Iterable[str] | None = None
) -> Iterator[tuple[str, int | OffsetError]]:
    """Yield each id with its position, or with what is wrong with its file.

    Args:
        ids: those to read; all that have a position where there are none given.

    Raises:
        OSError: the directory or a file cannot be read.
    """
    for subscriber_id in list_ids(fs, directory) if ids is None else ids:
        try:
            offset = read_offset(fs, offset_path(directory, subscriber_id))
        except OffsetError as error:
            yield subscriber_id, error
            continue
        if offset is not None:
            yield subscriber_id, offset
