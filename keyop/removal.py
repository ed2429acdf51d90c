"""Removing a channel's records or a subscriber's position while other processes may be around."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from keyop.errors import InvalidSubscriberIdError, OffsetError, StorageError, SubscriberInUseError
from keyop.fs import FileSystem
from keyop.inspection import DataDirectory
from keyop.names import check_channel, check_subscriber_id, instance_name_fault
from keyop.storage.locks import ChannelLock, FileLock
from keyop.storage.offsets import lease_path, list_ids, offset_path, read_offset
from keyop.storage.recovery import open_segment
from keyop.storage.segment import list_segments, segment_path, whole_size

_FEDERATION = re.compile(r"(?:fed|fedout)-(.*)", re.DOTALL)
# Beside the segments: rescued torn tails, and which dead letters are done with.
_COMPANIONS = re.compile(r"\d{20}\.jsonl\.torn-\d+|\.done(?:\.tmp)?", re.ASCII)


@dataclass(frozen=True)
class Removed:
    """What went. ``kept`` are the ids of running subscribers, whose positions stayed."""

    segments: int
    disk_bytes: int
    subscribers: tuple[str, ...]
    kept: tuple[str, ...]


def check_position_id(name: str) -> str:
    """Return the id if a position may have it: a subscriber's, ``fed-{peer}``, ``fedout-{hub}``.

    Raises:
        InvalidSubscriberIdError: it may not.
    """
    match = _FEDERATION.fullmatch(name)
    if match is None:
        return check_subscriber_id(name)
    fault = instance_name_fault(match[1])
    if fault is not None:
        raise InvalidSubscriberIdError(f"in {name!r}, the instance name {fault}")
    return name


def remove_channel(directory: DataDirectory, channel: str, force: bool = False) -> Removed:
    """Remove a channel's records and the positions of its subscribers.

    Other processes may have the channel open. For them it is as if a segment had been rolled and
    everybody had read what is before it: an empty segment that begins at the log's end is put in
    place first, so the next append of anybody goes there, and no offset is ever used twice. That
    segment, the directories and the lock files stay.

    Args:
        force: also where somebody has not read everything, or runs. The positions of those who
            run are theirs and stay; what they had not read, they count as dropped.

    Raises:
        StorageError: there is no such channel; a subscriber runs or lags; something cannot be
            removed, in which case a part may be gone and trying again is safe.
    """
    if directory.channel(channel).abandoned:
        raise StorageError(f"there is no channel {channel!r} in {directory.path}")
    with directory.locked(channel) as locked:
        removed: Removed = locked.threads.run(_remove, directory, channel, locked.lock, force)
    return removed


def _remove(
    directory: DataDirectory, channel: str, lock: ChannelLock | None, force: bool
) -> Removed:
    fs, positions = directory.fs, directory.offsets_directory(channel)
    leases: list[tuple[str, FileLock]] = []
    running: list[str] = []
    try:
        # Nobody subscribes while the channel's lock is held, so trying looks like no holder.
        for subscriber_id in list_ids(fs, positions):
            lease = FileLock(fs, lease_path(positions, subscriber_id))
            if lease.try_acquire():
                leases.append((subscriber_id, lease))
            else:
                running.append(subscriber_id)
        if not force:
            if running:
                raise StorageError(
                    f"{channel}: {', '.join(running)} runs; stop it first, or remove all the same "
                    "(--force)"
                )
            _refuse_lag(directory, channel, [subscriber_id for subscriber_id, _ in leases])
        for subscriber_id, _ in leases:
            fs.unlink(offset_path(positions, subscriber_id))
        if leases:
            fs.fsync_dir(positions)
        segments, size = (
            _empty(fs, directory.channel_directory(channel), lock) if lock is not None else (0, 0)
        )
    except OSError as error:
        raise StorageError(f"{channel}: {error.filename or positions}: {error.strerror}") from error
    finally:
        for _, lease in leases:
            lease.release()
    return Removed(
        segments, size, tuple(subscriber_id for subscriber_id, _ in leases), tuple(running)
    )


def _refuse_lag(directory: DataDirectory, channel: str, ids: list[str]) -> None:
    segments = directory.segments(channel)
    end = segments[-1].end if segments else 0
    for subscriber_id in ids:
        path = offset_path(directory.offsets_directory(channel), subscriber_id)
        try:
            offset = read_offset(directory.fs, path)
        except OffsetError as error:
            raise StorageError(f"{channel}: {error}; or remove all the same (--force)") from error
        if offset is not None and offset < end:
            raise StorageError(
                f"{channel}: {subscriber_id} has {end - offset} bytes yet to read; let it read on, "
                "remove the subscriber, or remove all the same (--force)"
            )


def _empty(fs: FileSystem, path: str, lock: ChannelLock) -> tuple[int, int]:
    """Begin an empty segment at the log's end, then delete all before it; return what went.

    In the order of a roll, so that a crash in between leaves a log that anybody can open.
    """
    segments = list_segments(fs, path)
    if not segments:
        return 0, 0
    last = segments[-1]
    with fs.opened(segment_path(path, last.start), os.O_RDWR | os.O_CLOEXEC) as fd:
        # A torn tail was never delivered, so its offsets may be used again, as after a recovery.
        whole = whole_size(fs, fd, last.size)
        if not whole:
            fs.ftruncate(fd, 0)
    end = last.start + whole
    # Where segments overlap, the last one need not be the one that reaches furthest.
    end = max([end, *(segment.end for segment in segments[:-1])])
    lock.write_hint(end)
    fs.close(open_segment(fs, path, end, durable=True).fd)
    gone = [segment for segment in segments if segment.start != end]
    for segment in gone:
        fs.unlink(segment_path(path, segment.start))
    for name in fs.listdir(path):
        if _COMPANIONS.fullmatch(name):
            fs.unlink(f"{path}/{name}")
    fs.fsync_dir(path)
    return len(gone), sum(segment.size for segment in segments)


def remove_subscriber(directory: DataDirectory, channel: str, subscriber_id: str) -> None:
    """Forget the position of a subscriber, a peer or a hub that does not run.

    Raises:
        InvalidChannelNameError, InvalidSubscriberIdError: no position can have that name.
        SubscriberInUseError: it runs; nothing was changed.
        StorageError: it has no position there, or it cannot be deleted.
    """
    check_channel(channel)
    check_position_id(subscriber_id)
    positions = directory.offsets_directory(channel)
    with directory.reading():
        known = list_ids(directory.fs, positions)
    if subscriber_id not in known:
        raise StorageError(f"{subscriber_id!r} has no position in channel {channel!r}")
    with directory.locked(channel) as locked:
        locked.threads.run(_forget, directory.fs, channel, positions, subscriber_id)


def _forget(fs: FileSystem, channel: str, positions: str, subscriber_id: str) -> None:
    lease = FileLock(fs, lease_path(positions, subscriber_id))
    try:
        if not lease.try_acquire():
            raise SubscriberInUseError(
                f"{subscriber_id!r} of {channel!r} runs in another process; stop it there first"
            )
        fs.unlink(offset_path(positions, subscriber_id))
        fs.fsync_dir(positions)
    except OSError as error:
        raise StorageError(
            f"the position of {subscriber_id!r} in {channel!r} cannot be deleted: "
            f"{error.strerror or error}"
        ) from error
    finally:
        lease.release()
