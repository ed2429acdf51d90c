"""A file system that fails, fills up, dawdles or stands still on demand."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import gevent
from gevent.monkey import get_original

from keyop.fs import SYSTEM_FS, FileSystem

# A thread of gevent's pool must really block, and a lock must work across threads, patched or not.
_allocate_lock = get_original("_thread", "allocate_lock")
_blocking_sleep = get_original("time", "sleep")

OPERATIONS = tuple(
    name for name, value in vars(FileSystem).items() if isinstance(value, staticmethod)
)
# Not a system call of its own: fsync or fdatasync of a descriptor opened with O_DIRECTORY.
_FSYNC_DIR = "fsync_dir"


@dataclass
class Condition:
    """Which calls are meant."""

    operation: str
    path_contains: str | None

    def __post_init__(self) -> None:
        if self.operation not in (*OPERATIONS, _FSYNC_DIR):
            raise ValueError(f"no operation of FileSystem: {self.operation}")

    def applies(self, names: Iterable[str], paths: Iterable[str]) -> bool:
        """Tell whether a call is one of them."""
        if self.operation not in names:
            return False
        return self.path_contains is None or any(self.path_contains in path for path in paths)


@dataclass
class Fault(Condition):
    """A planned failure; ``hits`` says how often it struck, so that a test can insist on it."""

    error: int
    nth: int
    times: int | None
    keep: int | None = None
    seen: int = 0
    hits: int = 0

    def strikes(self) -> bool:
        """Count one call that is meant; tell whether this one fails."""
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.seen >= self.nth + self.times):
            return False
        self.hits += 1
        return True


@dataclass
class Delay(Condition):
    """Calls that take longer."""

    seconds: float


class Held(Condition):
    """Calls that stand still, each blocking its OS thread, until ``release`` or the block's end."""

    def __init__(self, operation: str, path_contains: str | None) -> None:
        super().__init__(operation, path_contains)
        self.entered = 0
        self._released = False
        self._gate = _allocate_lock()
        self._gate.acquire()

    def wait_entered(self, count: int = 1, timeout: float = 10) -> None:
        """Let greenlets run until at least ``count`` calls have come to a stand.

        Raises:
            AssertionError: they did not within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while self.entered < count:
            assert time.monotonic() < deadline, f"{self.entered} of {count} calls arrived"
            gevent.sleep(0.001)

    def release(self) -> None:
        """Let the calls go on, and those to come pass."""
        # Once only: a call that is passing may have the gate for a moment.
        if not self._released:
            self._released = True
            self._gate.release()

    def pass_through(self) -> None:
        # Whoever gets the gate opens it for the next. The limit turns a deadlock into a failure.
        assert self._gate.acquire(timeout=60), f"{self.operation} was never released"
        self._gate.release()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class FaultyFs(FileSystem):
    """Does everything on ``inner``, but for what the test planned. Safe to use from any thread.

    ``calls`` counts the calls by operation, failed ones included. Operations are named as in
    ``FileSystem``; ``"fsync_dir"`` stands for every sync of a directory's descriptor, which counts
    as an ``"fsync"`` too.
    """

    def __init__(self, inner: FileSystem = SYSTEM_FS) -> None:
        self.calls: Counter[str] = Counter()
        self.room: int | None = None
        self._inner = inner
        self._lock = _allocate_lock()
        self._paths: dict[int, str] = {}
        self._directories: set[int] = set()
        self._faults: list[Fault] = []
        self._delays: list[Delay] = []
        self._holds: list[Held] = []
        special: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "write": self._write,
            "pwrite": self._pwrite,
            "ftruncate": self._ftruncate,
            "mkdir": self._mkdir,
        }
        for name in OPERATIONS:
            do = special.get(name, getattr(inner, name))
            setattr(self, name, partial(self._call, name, do))

    def fail(
        self,
        operation: str,
        error: int,
        *,
        nth: int = 1,
        times: int | None = 1,
        path_contains: str | None = None,
    ) -> Fault:
        """Let calls raise ``OSError(error)`` without effect, but for ``close``, which closes.

        Args:
            error: an ``errno``.
            nth: the first call to fail, counted from now on among those with that path; from 1.
            times: how many in a row fail from there; None for all of them.
            path_contains: a part of the path that was given or that the descriptor was opened by;
                for ``rename``, of either path.
        """
        return self._plan(Fault(operation, path_contains, error, nth, times))

    def short_write(
        self,
        keep: int,
        error: int = errno.ENOSPC,
        *,
        operation: str = "write",
        nth: int = 1,
        times: int | None = 1,
        path_contains: str | None = None,
    ) -> Fault:
        """Let the ``nth`` write write only ``keep`` bytes, and the ``times`` after it raise.

        A write of no more than ``keep`` bytes loses its last one, so that it is short in any case;
        one of a single byte raises at once.
        """
        short = self._plan(Fault(operation, path_contains, error, nth, 1, keep))
        self._plan(Fault(operation, path_contains, error, nth + 1, times))
        return short

    def delay(self, operation: str, seconds: float, path_contains: str | None = None) -> None:
        """Let calls block their OS thread for so long before they are done."""
        delay = Delay(operation, path_contains, seconds)
        with self._lock:
            self._delays.append(delay)

    def hold(self, operation: str, path_contains: str | None = None) -> Held:
        """Let calls stand still, without effect, until released; for use in a ``with`` statement.

        Only for calls in threads of their own: nobody is left to release the calling one.
        """
        held = Held(operation, path_contains)
        with self._lock:
            self._holds.append(held)
        return held

    @property
    def full(self) -> bool:
        """Whether room is limited; set it to fill the disk up or to make room again.

        While there is none, ``write`` and whatever makes a file longer or a new entry raise
        ENOSPC; rewriting in place, renaming and unlinking work. What is cut or unlinked gives no
        room back, so that the disk stays full until the test says otherwise.
        """
        return self.room is not None

    @full.setter
    def full(self, full: bool) -> None:
        self.room = 0 if full else None

    def fill(self, room: int = 0) -> None:
        """Leave room for so many bytes; the write that finds too few of them writes only those."""
        self.room = room

    def heal(self) -> None:
        """Forget every fault, delay and hold, and make room."""
        with self._lock:
            holds, self._holds = self._holds, []
            self._faults, self._delays, self.room = [], [], None
        for held in holds:
            held.release()

    @property
    def open_paths(self) -> dict[int, str]:
        """The descriptors that were opened here and not closed, with their paths."""
        with self._lock:
            return dict(self._paths)

    def _plan(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def _call(self, name: str, do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        target = args[0]
        with self._lock:
            if isinstance(target, int):
                paths = [self._paths.get(target, "")]
            else:
                paths = [arg for arg in args if isinstance(arg, str)]
            names = [name]
            if name in ("fsync", "fdatasync") and target in self._directories:
                names.append(_FSYNC_DIR)
            self.calls.update(names)
            met = [fault for fault in self._faults if fault.applies(names, paths)]
            # All of them count this call, also those that come after one that strikes.
            fault = next(iter([fault for fault in met if fault.strikes()]), None)
            pause = sum(delay.seconds for delay in self._delays if delay.applies(names, paths))
            holds = [held for held in self._holds if held.applies(names, paths)]
            for held in holds:
                held.entered += 1
            if name == "close":
                # Before the call: another thread may be given the same number right after it.
                self._paths.pop(target, None)
                self._directories.discard(target)
        for held in holds:
            held.pass_through()
        if pause:
            _blocking_sleep(pause)
        if fault is None:
            return do(*args, **kwargs)
        if name == "close":
            do(*args)  # a close that fails has released the descriptor all the same
        elif fault.keep is not None:
            view = memoryview(args[1])
            short = min(fault.keep, view.nbytes - 1)
            if short > 0:
                return do(target, view[:short], *args[2:])
        raise OSError(fault.error, os.strerror(fault.error), *paths[:1])

    def _take(self, wanted: int) -> int:
        """Use up room; return for how many bytes there was some."""
        with self._lock:
            if self.room is None:
                return wanted
            granted = min(wanted, self.room)
            self.room -= granted
            return granted

    def _need_entry(self, path: str) -> None:
        if self.room == 0 and not os.path.lexists(path):
            raise _no_room()

    def _open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._need_entry(path)
        fd = self._inner.open(path, flags, mode)
        with self._lock:
            self._paths[fd] = path
            if flags & os.O_DIRECTORY:
                self._directories.add(fd)
        return fd

    def _write(self, fd: int, data: Any) -> int:
        view = memoryview(data)
        granted = self._take(view.nbytes)
        if view.nbytes and not granted:
            raise _no_room()
        return self._inner.write(fd, view[:granted])

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        view = memoryview(data)
        beyond = min(view.nbytes, max(0, offset + view.nbytes - os.fstat(fd).st_size))
        granted = view.nbytes - beyond + self._take(beyond)
        if view.nbytes and not granted:
            raise _no_room()
        return self._inner.pwrite(fd, view[:granted], offset)

    def _ftruncate(self, fd: int, length: int) -> None:
        growth = max(0, length - os.fstat(fd).st_size)
        if self._take(growth) < growth:
            raise _no_room()
        self._inner.ftruncate(fd, length)

    def _mkdir(self, path: str, mode: int = 0o777) -> None:
        self._need_entry(path)
        self._inner.mkdir(path, mode)


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
