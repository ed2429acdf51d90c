"""``flock`` on lock files: a channel's lock, leases of subscribers, one holder of a role.

A lock belongs to the open file, so several holders in one process exclude each other as well as
several processes do. Lock files are never unlinked: two processes would hold two files of one name.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import deque

from gevent.event import Event

from keyop.clock import seconds_left
from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import FILE_MODE, FileSystem
from keyop.offload import Job, Offload

LOCK_NAME = ".lock"
LOCK_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
LOCK_RELEASE = fcntl.LOCK_UN
HINT_BYTES = 20
# A lock is held for microseconds, so a few tries usually do; each gives the holder a turn.
_QUICK_TRIES = 20


class LockTimeoutError(Exception):
    """The deadline passed before the lock was free."""


class FileLock:
    """An exclusive lock on a file that is tried without waiting: a lease, or a role."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self._fs = fs
        self.path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it; return whether it was taken.

        Raises:
            OSError: the lock file cannot be created or opened.
        """
        if self._fd is not None:
            return True
        fd = self._fs.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            self._fs.flock(fd, LOCK_TRY)
        except BlockingIOError:
            self._fs.close(fd)
            return False
        except BaseException:
            self._fs.close(fd)
            raise
        self._fd = fd
        drop_in_children(self)
        return True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        fd, self._fd = self._fd, None
        if fd is not None:
            keep_in_children(self)
            # Unlocked by hand, not by closing: a child in the middle of a fork may still have
            # the descriptor, and would keep the lock with it.
            self._fs.flock(fd, LOCK_RELEASE)
            self._fs.close(fd)

    def drop_in_child(self) -> None:
        """Close the descriptor without unlocking: the lock is the parent's."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class ChannelLock:
    """The lock of one channel, held for one append, one roll or one recovery.

    Greenlets of this process queue on ``taken``, because to ``flock`` they are one holder.
    Waiting for another process goes through a thread. ``hint`` is the file's first 20 bytes.
    """

    def __init__(self, fs: FileSystem, path: str, offload: Offload) -> None:
        self._fs = fs
        self.path = path
        self._offload = offload
        self._flock = fs.flock
        self.fd: int = -1
        # The hint in shared memory: reading it is part of every append. Empty until it is mapped.
        self.hint: mmap.mmap | bytes = b""
        # Whether a greenlet of this process holds the lock or waits for other processes.
        self.taken = False
        self._queue: deque[Event] = deque()
        self._close_when_free = False

    def open(self) -> None:
        """Open the lock file, creating it where it is missing.

        Raises:
            OSError: it cannot be opened or created.
        """
        if self.fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self.fd = self._fs.open(self.path, flags, FILE_MODE)
            drop_in_children(self)

    def try_acquire(self) -> bool:
        """Take the lock if it is free; return whether it was taken.

        Raises:
            OSError: the lock file cannot be locked.
        """
        if self.taken:
            return False
        try:
            self._flock(self.fd, LOCK_TRY)
        except BlockingIOError:
            return False
        self.taken = True
        return True

    def acquire(self, deadline: float | None = None) -> None:
        """Take the lock, waiting for whoever has it; other greenlets run meanwhile.

        Args:
            deadline: in ``time.monotonic()`` seconds.

        Raises:
            LockTimeoutError: the deadline passed; the lock is not held.
            OSError: the lock file cannot be locked.
        """
        if self.taken:
            self._wait_in_queue(deadline)
        self.taken = True
        try:
            self._flock(self.fd, LOCK_TRY)
        except BlockingIOError:
            self._acquire_slowly(deadline)
        except BaseException:
            self._pass_on()
            raise

    def _wait_in_queue(self, deadline: float | None) -> None:
        turn = Event()
        self._queue.append(turn)
        try:
            if not turn.wait(seconds_left(deadline)):
                raise LockTimeoutError
        except BaseException:
            # Killed or too late: a turn that came all the same is the next one's now.
            if turn in self._queue:
                self._queue.remove(turn)
            else:
                self._pass_on()
            raise

    def _acquire_slowly(self, deadline: float | None) -> None:
        job: Job | None = None
        try:
            for _ in range(_QUICK_TRIES):
                os.sched_yield()
                try:
                    return self._flock(self.fd, LOCK_TRY)
                except BlockingIOError:
                    pass
            # The kernel queues those who block, so a tight loop elsewhere cannot starve this one.
            job = self._offload.submit(self._flock, self.fd, fcntl.LOCK_EX)
            if not job.wait(seconds_left(deadline)):
                raise LockTimeoutError
            if job.error is not None:
                raise job.error
        except BaseException:  # a killed greenlet too must not leave a thread that takes the lock
            if job is None:
                self._pass_on()
            else:
                job.then(self._give_back)
            raise

    def _give_back(self, job: Job) -> None:
        """Whoever waited has gone; its thread got the lock now, or an error."""
        if job.error is None:
            self.release()
        else:
            self._pass_on()

    def release(self) -> None:
        """Give the lock back."""
        if self.fd >= 0:
            self._flock(self.fd, LOCK_RELEASE)
        self._pass_on()

    def _pass_on(self) -> None:
        if self._queue:
            # It stays taken, for the one whose turn it is: nobody overtakes those who wait.
            self._queue.popleft().set()
            return
        self.taken = False
        if self._close_when_free:
            self.close()

    def read_hint(self) -> bytes:
        """Return the 20 digits that name the active segment, or what stands there."""
        return self._fs.pread(self.fd, HINT_BYTES, 0)

    def map_hint(self) -> None:
        """Let :attr:`hint` show the hint without a system call, once it was written.

        Raises:
            OSError: it cannot be mapped, or was cut off by somebody.
        """
        if not self.hint and self.fd >= 0:
            try:
                self.hint = mmap.mmap(self.fd, HINT_BYTES, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise OSError(errno.EIO, f"has less than {HINT_BYTES} bytes", self.path) from error

    def write_hint(self, start: int) -> None:
        """Tell every process which segment is active.

        Raises:
            OSError: the hint may not have been written.
        """
        self._fs.pwrite(self.fd, b"%020d" % start, 0)

    def close(self) -> None:
        """Close the lock file; while a thread still waits for the lock, as soon as it returns."""
        if self.fd < 0:
            return
        if self.taken:
            self._close_when_free = True
            return
        fd, self.fd = self.fd, -1
        self._close_when_free = False
        keep_in_children(self)
        self._unmap()
        self._fs.close(fd)

    def _unmap(self) -> None:
        hint, self.hint = self.hint, b""
        if isinstance(hint, mmap.mmap):
            hint.close()  # it holds a descriptor of its own, which would keep the lock

    def drop_in_child(self) -> None:
        """Close the descriptor without unlocking: the lock is the parent's."""
        fd, self.fd = self.fd, -1
        self._unmap()
        if fd >= 0:
            os.close(fd)
