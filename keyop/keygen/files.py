"""Writing keys and certificates: private from the first byte, all of them or none."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from keyop.fs import FILE_MODE, SYSTEM_FS, FileSystem

# What is replaced is kept aside until everything is in place; more than this is no key.
_MAX_REPLACED_BYTES = 16 << 20


def write_files(
    files: Mapping[str, bytes], force: bool = False, fs: FileSystem = SYSTEM_FS
) -> None:
    """Create files that only their owner may read, each whole, and either all of them or none.

    Directories that are missing are made, 0700.

    Args:
        files: content by path, in the order in which they come into being.
        force: replace what is there, which must be a plain file, or a link to one.

    Raises:
        FileExistsError: without ``force``, one of them is there already; nothing was written.
        OSError: one cannot be written; what was there before is there again, and nothing else.
            Only a power cut or SIGKILL in the middle can leave a part of them.
    """
    if force:  # what a link leads to is replaced, as any other program would write to it
        files = {os.path.realpath(path): data for path, data in files.items()}
    kept: dict[str, str] = {}
    with ExitStack() as undo:
        undo.callback(_remove_all, fs, kept)
        for path in files:
            _make_directory(fs, os.path.dirname(os.path.abspath(path)), undo)
        for path in files:
            if force:
                _keep_aside(fs, path, kept)
            else:
                _reserve(fs, path, undo)
        staged = [_stage(fs, path, data, None, undo) for path, data in files.items()]
        for temporary, path in zip(staged, files, strict=True):
            fs.rename(temporary, path)
            undo.callback(_put_back, fs, path, kept)
        for directory in {os.path.dirname(os.path.abspath(path)) for path in files}:
            fs.fsync_dir(directory)
        undo.pop_all()
    _remove_all(fs, kept)


def replace_file(path: str, data: bytes, fs: FileSystem = SYSTEM_FS) -> None:
    """Put a file in place of another, or where there was none (0600), atomically.

    Mode and owner stay as they were, as far as this user may set them: whoever could read the
    file before can still do so.

    Raises:
        OSError: the file is as it was, but for a failure of the directory's fsync, after which
            the new one is in place and may not survive a power cut.
    """
    path = os.path.realpath(path)
    with ExitStack() as undo:
        try:
            before = fs.stat(path)
        except FileNotFoundError:
            before = None
        fs.rename(_stage(fs, path, data, before, undo), path)
        undo.pop_all()
    fs.fsync_dir(os.path.dirname(path))


@contextmanager
def locked(directory: str, fs: FileSystem = SYSTEM_FS) -> Iterator[None]:
    """Keep other processes that ask the same out of a directory, without a lock file in it.

    It blocks the thread, so nothing in the block may let other greenlets run.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with fs.opened(directory, flags) as fd:
        fs.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fs.flock(fd, fcntl.LOCK_UN)


def _make_directory(fs: FileSystem, directory: str, undo: ExitStack) -> None:
    missing = []
    while not fs.is_dir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for path in reversed(missing):  # so that the innermost is taken away first
        undo.callback(_remove_directory, path)
        fs.make_dirs(path)


def _reserve(fs: FileSystem, path: str, undo: ExitStack) -> None:
    """Take a name that nobody has; only then is a rename onto it sure to replace nothing."""
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    undo.callback(_remove, fs, path)
    fs.close(fd)


def _keep_aside(fs: FileSystem, path: str, kept: dict[str, str]) -> None:
    """Copy a file that is to be replaced, if there is one, and enter the copy into ``kept``."""
    try:
        found = fs.stat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a plain file, so it is not replaced", path)
    if found.st_size > _MAX_REPLACED_BYTES:
        raise OSError(errno.EFBIG, "too large for a key, so it is not replaced", path)
    data = fs.read_file(path, _MAX_REPLACED_BYTES)
    with ExitStack() as failed:
        kept[path] = _stage(fs, path, data, found, failed)
        failed.pop_all()


def _stage(
    fs: FileSystem, beside: str, data: bytes, like: os.stat_result | None, undo: ExitStack
) -> str:
    """Write a file of a name of its own beside another; return its path.

    Args:
        like: whose mode and owner it gets, as far as this user may set them; otherwise 0600.
    """
    directory = os.path.dirname(os.path.abspath(beside))
    path = f"{directory}/.keygen-{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = fs.open(path, flags, FILE_MODE)
    undo.callback(_remove, fs, path)
    try:
        if like is not None:
            try:
                os.fchown(fd, like.st_uid, like.st_gid)
            except PermissionError:  # only root gives files away
                pass
        # By hand, because the umask may have taken even the owner's rights.
        os.fchmod(fd, FILE_MODE if like is None else stat.S_IMODE(like.st_mode))
        fs.write_all(fd, data)
        fs.fsync(fd)
    finally:
        fs.close(fd)
    return path


def _put_back(fs: FileSystem, path: str, kept: dict[str, str]) -> None:
    # Out of the list first: a copy that cannot be put back is not to be removed.
    copy = kept.pop(path, None)
    if copy is None:
        _remove(fs, path)
    else:
        fs.rename(copy, path)


def _remove_all(fs: FileSystem, kept: dict[str, str]) -> None:
    for path in kept.values():
        _remove(fs, path)


def _remove(fs: FileSystem, path: str) -> None:
    try:
        fs.unlink(path)
    except OSError:  # it has been renamed, or the disk fails, which was reported
        pass


def _remove_directory(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:  # it was not made after all, or somebody else uses it
        pass
