"""Looking at a data directory from outside: without a messenger, creating and changing nothing.

Whoever owns the directory is not disturbed, so what is shown is the view of a moment: a channel
may grow while it is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from keyop.channel_view import ChannelView, SubscriberView
from keyop.errors import InvalidChannelNameError, OffsetError, StorageError
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.held import HeldLocks
from keyop.names import check_channel
from keyop.offload import Offload
from keyop.storage.locks import LOCK_NAME, ChannelLock, LockTimeoutError
from keyop.storage.offsets import lease_path, read_all
from keyop.storage.segment import Segment, list_segments, segment_path

LOCK_TIMEOUT_S = 10.0
_COUNT_BYTES = 1 << 20


class Locked(NamedTuple):
    """A channel whose lock is held. ``lock`` is None if the channel has no directory."""

    lock: ChannelLock | None
    threads: Offload


class DataDirectory:
    """A data directory as it lies on the disk.

    Raises:
        StorageError: it does not exist, or no messenger has ever used it; nothing was created.
    """

    def __init__(self, path: str, fs: FileSystem = SYSTEM_FS) -> None:
        self.path = os.path.abspath(path)
        self.fs = fs
        with self.reading():
            if not fs.is_dir(self.path):
                raise StorageError(f"there is no data directory {path}; name one with --data-dir")
            if not any(fs.is_dir(f"{self.path}/{name}") for name in ("channels", "subscribers")):
                raise StorageError(
                    f"{path} is not a data directory: it holds neither channels nor subscribers"
                )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn an ``OSError`` of a block into a ``StorageError`` that names the path."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{error.filename or self.path} cannot be read: {error.strerror or error}"
            ) from error

    def channel_directory(self, channel: str) -> str:
        """Return where a channel's segments are."""
        return f"{self.path}/channels/{channel}"

    def offsets_directory(self, channel: str) -> str:
        """Return where the positions of a channel's subscribers are."""
        return f"{self.path}/subscribers/{channel}"

    def names(self) -> list[str]:
        """Return the channels that have records or subscribers, in order.

        Raises:
            StorageError: the data directory cannot be read.
        """
        found: set[str] = set()
        with self.reading():
            for kind in ("channels", "subscribers"):
                parent = f"{self.path}/{kind}"
                try:
                    names = self.fs.listdir(parent)
                except FileNotFoundError:
                    continue
                found.update(
                    name
                    for name in names
                    if _is_channel(name) and is_directory(self.fs, f"{parent}/{name}")
                )
        return sorted(found)

    def channels(
        self, count: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> list[ChannelView]:
        """Return every channel; ``count`` reads all records to count them.

        Args:
            progress: told how many channels are done, and of how many.

        Raises:
            StorageError: the data directory cannot be read.
        """
        held = HeldLocks(self.fs, self.path)
        names = self.names()
        views = []
        for name in names:
            views.append(self._view(name, held, count))
            if progress is not None:
                progress(len(views), len(names))
        return views

    def channel(self, channel: str, count: bool = False) -> ChannelView:
        """Return one channel.

        Raises:
            StorageError: there is no such channel, or it cannot be read.
            InvalidChannelNameError: that is no channel's name.
        """
        if check_channel(channel) not in self.names():
            raise StorageError(f"there is no channel {channel!r} in {self.path}")
        return self._view(channel, HeldLocks(self.fs, self.path), count)

    def _view(self, channel: str, held: HeldLocks, count: bool) -> ChannelView:
        with self.reading():
            # The positions first: whatever they have passed lies before the end seen later.
            positions = list(read_all(self.fs, self.offsets_directory(channel)))
            segments = self.segments(channel)
            end = segments[-1].end if segments else 0
            return ChannelView(
                channel,
                len(segments),
                sum(segment.size for segment in segments),
                segments[0].start if segments else 0,
                end,
                self.count_records(channel, 0, end) if count else None,
                tuple(self._subscriber(channel, *each, end, held) for each in positions),
            )

    def segments(self, channel: str) -> list[Segment]:
        """Return a channel's segments in order; none if it has no directory yet.

        Raises:
            OSError: they cannot be read.
        """
        try:
            return list_segments(self.fs, self.channel_directory(channel))
        except FileNotFoundError:
            return []

    def count_records(self, channel: str, start: int, end: int) -> int:
        """Return how many records begin between two record boundaries, by reading them.

        Raises:
            StorageError: they cannot be read.
        """
        with self.reading():
            return sum(
                self._count(
                    channel, each, max(0, start - each.start), min(each.size, end - each.start)
                )
                for each in self.segments(channel)
            )

    def _count(self, channel: str, segment: Segment, position: int, stop: int) -> int:
        path = segment_path(self.channel_directory(channel), segment.start)
        lines = 0
        if position >= stop:
            return 0
        try:
            with self.fs.opened(path, os.O_RDONLY | os.O_CLOEXEC) as fd:
                while data := self.fs.pread(fd, min(_COUNT_BYTES, stop - position), position):
                    lines += data.count(b"\n")
                    position += len(data)
        except FileNotFoundError:  # everybody has read it, and the sweeper came by
            pass
        return lines

    def _subscriber(
        self, channel: str, name: str, offset: int | OffsetError, end: int, held: HeldLocks
    ) -> SubscriberView:
        running = held.holds(lease_path(self.offsets_directory(channel), name))
        if isinstance(offset, OffsetError):
            return SubscriberView(channel, name, None, None, running, str(offset))
        return SubscriberView(channel, name, offset, max(0, end - offset), running)

    @contextmanager
    def locked(self, channel: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[Locked]:
        """Hold the channel's lock for the time of a block: nobody appends, rolls or subscribes.

        The lock file is created where it is missing. A channel without a directory has no lock,
        and nobody can be using it.

        Raises:
            StorageError: it cannot be locked, or others held it until the timeout.
        """
        threads = Offload(1)
        lock: ChannelLock | None = None
        try:
            if is_directory(self.fs, self.channel_directory(channel)):
                lock = self._acquire(channel, threads, timeout_s)
            yield Locked(lock, threads)
        finally:
            if lock is not None:
                lock.release()
                lock.close()
            threads.close(1)

    def _acquire(self, channel: str, threads: Offload, timeout_s: float) -> ChannelLock:
        lock = ChannelLock(self.fs, f"{self.channel_directory(channel)}/{LOCK_NAME}", threads)
        try:
            lock.open()
            lock.acquire(monotonic() + timeout_s)
        except (OSError, LockTimeoutError) as error:
            lock.close()
            why = error.strerror if isinstance(error, OSError) else "another process holds it"
            raise StorageError(f"{channel}: cannot be locked: {why}") from error
        return lock


def is_directory(fs: FileSystem, path: str) -> bool:
    """Tell whether a directory is there, and nothing else in its place.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        return fs.is_dir(path)
    except NotADirectoryError:
        return False


def _is_channel(name: str) -> bool:
    try:
        check_channel(name)
    except InvalidChannelNameError:
        return False
    return True
