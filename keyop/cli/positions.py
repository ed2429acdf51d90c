"""Moving the position of a subscriber that does not run, while other processes may be around."""

from __future__ import annotations

from keyop.errors import StorageError, SubscriberInUseError
from keyop.fs import FileSystem
from keyop.inspection import DataDirectory
from keyop.storage.locks import FileLock
from keyop.storage.offsets import lease_path, offset_path, write_offset
from keyop.storage.position import resolve


def move_position(
    directory: DataDirectory, channel: str, subscriber_id: str, offset: int, max_line_bytes: int
) -> int:
    """Set a position that exists; return the one that was taken.

    That is on a record boundary, within what the channel holds when it is set: retention may
    have come by since it was chosen. It is on the disk when this returns.

    Raises:
        SubscriberInUseError: the subscriber runs; nothing was changed.
        StorageError: it has no position, or it cannot be written; the old one is still there.
    """
    with directory.locked(channel) as locked:
        taken: int = locked.threads.run(
            _move, directory, channel, subscriber_id, offset, max_line_bytes
        )
    return taken


def _move(
    directory: DataDirectory, channel: str, subscriber_id: str, offset: int, max_line_bytes: int
) -> int:
    fs: FileSystem = directory.fs
    positions = directory.offsets_directory(channel)
    path = offset_path(positions, subscriber_id)
    lease = FileLock(fs, lease_path(positions, subscriber_id))
    try:
        if not lease.try_acquire():
            raise in_use(channel, subscriber_id)
        fs.stat(path)
        if directory.segments(channel):
            offset = resolve(fs, directory.channel_directory(channel), offset, max_line_bytes)
        write_offset(fs, path, offset)
    except OSError as error:
        raise StorageError(
            f"{error.filename or path}: the position of {subscriber_id!r} cannot be set: "
            f"{error.strerror or error}"
        ) from error
    finally:
        lease.release()
    return offset


def in_use(channel: str, subscriber_id: str) -> SubscriberInUseError:
    """Return what is said of a subscriber that runs."""
    return SubscriberInUseError(
        f"{subscriber_id!r} of {channel!r} runs in another process; stop it there first"
    )
