"""A file system that kills its own process in the middle of an operation, as ``kill -9`` would."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from gevent.monkey import get_original

from keyop.fs import SYSTEM_FS, FileSystem

# Whatever changes a file, a directory or a lock. Reading leaves nothing behind.
CHANGING = (
    "open",
    "close",
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "fdatasync",
    "rename",
    "unlink",
    "mkdir",
    "flock",
)


class KillingFs(FileSystem):
    """Does everything on ``inner``; the operation number ``at`` is this process's last.

    Args:
        at: which of the operations in ``CHANGING`` kills, counted from 1.
        share: how much of that operation happens: nothing up to 0.5, else all of it; of a write,
            a part from 0.25 to 0.75. (No signal gets into a ``pwrite`` of a few bytes.)
    """

    def __init__(self, at: int, share: float, inner: FileSystem = SYSTEM_FS) -> None:
        self._left = at
        self._share = share
        # A lock of the operating system: fsync comes from threads.
        self._lock = get_original("_thread", "allocate_lock")()
        for name in CHANGING:
            setattr(self, name, partial(self._call, getattr(inner, name), name))

    def _call(self, do: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if not last:
            return do(*args, **kwargs)
        try:
            if name == "write" and 0.25 <= self._share <= 0.75:
                data = memoryview(args[1])
                part = int(data.nbytes * (self._share - 0.25) * 2)
                do(args[0], data[:part])
            elif self._share > 0.5:
                do(*args, **kwargs)
        finally:  # also where it fails, as a lock does that is tried
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a killed process went on")
