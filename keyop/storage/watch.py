"""Waking readers when another process appends: inotify, and a poll behind it.

Appends of this process wake its readers directly. The poll serves where inotify does not: after
an overflow of its queue, past its limits, on systems without it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import warnings
from typing import Any

import gevent

from keyop.forks import drop_in_children, keep_in_children
from keyop.storage.readers import Readers

logger = logging.getLogger(__name__)

POLL_S = 1.0
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 << 10


class Watcher:
    """Watches channel directories for one messenger. Starts with the first, ends with close."""

    def __init__(self) -> None:
        self._manager: Any = None
        self._io: Any = None
        self._fd = -1
        self._available = True
        self._endings = 0
        self._channels: dict[int, Readers] = {}
        self._descriptors: dict[Readers, int] = {}

    def watch(self, directory: str, readers: Readers) -> bool:
        """Wake these readers when a file in the directory changes; return whether that works.

        Where it does not, readers that look for themselves every ``POLL_S`` seconds miss nothing.
        """
        if readers in self._descriptors:
            return True
        if self._manager is None and not self._start():
            return False
        pyinotify = _pyinotify()
        mask = pyinotify.IN_MODIFY | pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO
        try:
            descriptor = self._manager.add_watch(directory, mask, quiet=False)[directory]
        except pyinotify.WatchManagerError as error:
            logger.warning(
                "%s cannot be watched, so its readers look every %g s for what other processes "
                "append; raise fs.inotify.max_user_watches (%s)",
                directory,
                POLL_S,
                error,
            )
            return False
        self._channels[descriptor] = readers
        self._descriptors[readers] = descriptor
        return True

    def unwatch(self, readers: Readers) -> None:
        """Stop waking these readers."""
        descriptor = self._descriptors.pop(readers, None)
        if descriptor is not None and self._manager is not None:
            del self._channels[descriptor]
            self._manager.rm_watch(descriptor, quiet=True)

    def _start(self) -> bool:
        if not self._available:
            return False
        endings = self._endings
        try:
            manager = _pyinotify().WatchManager()
        except (ImportError, OSError, RuntimeError) as error:
            # Not Linux, or too many inotify instances: said once, then the poll serves.
            self._available = False
            logger.warning(
                "inotify is not available (%s), so readers look every %g s for what other "
                "processes append",
                error,
                POLL_S,
            )
            return False
        # Under monkey patching, importing and making it lets others run, who may have come first.
        if self._manager is not None or self._endings != endings:
            manager.close()
            return self._manager is not None
        self._manager = manager
        self._fd = manager.get_fd()
        fcntl.fcntl(self._fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        os.set_blocking(self._fd, False)
        self._io = gevent.get_hub().loop.io(self._fd, 1)
        self._io.start(self._ready)
        drop_in_children(self)
        return True

    def _ready(self) -> None:
        """Read what happened, in the hub. Several events of one channel wake its readers once."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        descriptors = set()
        position, end = 0, len(data)
        while position < end:
            descriptor, _, _, name_bytes = _EVENT.unpack_from(data, position)
            descriptors.add(descriptor)
            position += _EVENT.size + name_bytes
        if -1 in descriptors:  # the queue overflowed: anything may have happened
            descriptors = set(self._channels)
        for descriptor in descriptors:
            readers = self._channels.get(descriptor)
            # Of what was appended here they know already.
            if readers is not None and readers.has_foreign_news():
                readers.wake()

    def close(self) -> None:
        """Stop watching and give the descriptor back; it may begin again."""
        self._endings += 1
        if self._manager is None:
            return
        self._io.stop()
        self._io.close()
        keep_in_children(self)
        self._manager.close()
        self._manager = None
        self._channels.clear()
        self._descriptors.clear()

    def drop_in_child(self) -> None:
        """Close the descriptor, which the parent reads too."""
        if self._manager is not None:
            self._io.stop()
            os.close(self._fd)
            self._manager = None


def _pyinotify() -> Any:
    """Return the module, which imports one that Python has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import pyinotify
    return pyinotify
