"""Faults that a developer might build into keyop, on purpose: the scorecard must find each of them.

Each takes the place of one function of keyop as long as it is switched in, here and in the
processes that the rows start. It notes in a directory that it has struck, because those processes
are killed: a fault that never did shows nothing, and is an error.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent

from keyop.decode import record_id
from keyop.dedup import Window
from keyop.delivery import Delivery
from keyop.errors import MessengerClosedError
from keyop.federation.receiver import Receiver
from keyop.fs import FileSystem
from keyop.storage import recovery
from keyop.storage.active import ActiveSegment, SyncFailedError
from keyop.storage.cursor import Lines
from keyop.storage.environment import Closing
from keyop.storage.locks import LOCK_TRY
from keyop.storage.log import Log
from keyop.storage.offsets import read_all
from keyop.transport.websocket import FrameHeader

from .children import BUG

# How long what was acknowledged too early waits to be written.
_WRITTEN_AFTER_S = 0.05


class Bug:
    """A function of keyop, and what takes its place.

    Args:
        owner: the class or module that the function is looked up in.
        wrong: called with this bug, then with what the function is called with.
    """

    def __init__(self, owner: Any, function: str, wrong: Callable[..., Any]) -> None:
        self.name = wrong.__name__
        self._owner = owner
        self._function = function
        self._wrong = wrong
        self._struck = Path()
        self.original: Callable[..., Any] = self._not_in

    def _not_in(self, *_: object) -> None:
        raise AssertionError(f"{self.name} is not switched in")

    def put_in(self, struck: Path) -> Callable[[], None]:
        """Take the function's place; return what gives it back.

        Args:
            struck: the directory in which each process notes that the bug has struck.

        Raises:
            LookupError: there is no such function any more.
        """
        found = vars(self._owner).get(self._function)
        if found is None:
            raise LookupError(f"{self.name}: {self._owner.__name__} has no {self._function} now")
        kind = type(found) if isinstance(found, (staticmethod, classmethod)) else None
        self.original = found.__func__ if kind else found
        self._struck = struck

        def wrong(*args: Any, **kwargs: Any) -> Any:
            return self._wrong(self, *args, **kwargs)

        setattr(self._owner, self._function, kind(wrong) if kind else wrong)
        return lambda: setattr(self._owner, self._function, found)

    def strikes(self) -> None:
        """Note that it does something wrong now."""
        path = self._struck / f"{self.name}-{os.getpid()}"
        if not path.exists():
            path.touch()


BUGS: dict[str, Bug] = {}


def _bug(owner: Any, function: str) -> Callable[[Callable[..., Any]], Bug]:
    def enter(wrong: Callable[..., Any]) -> Bug:
        return BUGS.setdefault(wrong.__name__, Bug(owner, function, wrong))

    return enter


@contextmanager
def switched_in(bug: Bug, struck: Path) -> Iterator[None]:
    """Have a bug in this process and in the children that are started meanwhile.

    Args:
        struck: an empty directory.

    Raises:
        LookupError: the function is not there any more.
        AssertionError: it was never called where the bug would have shown.
    """
    give_back = bug.put_in(struck)
    os.environ[BUG] = f"{bug.name}:{struck}"
    try:
        yield
    finally:
        del os.environ[BUG]
        give_back()
    assert any(struck.iterdir()), f"{bug.name} never struck: is {bug._function} still in use?"


def switch_in_for_good(named: str) -> None:
    """As a child: have the bug of which the parent's environment tells."""
    name, struck = named.split(":", 1)
    BUGS[name].put_in(Path(struck))


def _later(closing: Closing, write: Callable[[], object]) -> None:
    """Write after a while, unless the messenger is closed by then."""

    def unless_closed() -> None:
        if not closing.writes.is_set():
            with suppress(MessengerClosedError):
                write()

    gevent.spawn_later(_WRITTEN_AFTER_S, unless_closed)


@_bug(FileSystem, "fsync_dir")
def no_directory_fsync(bug: Bug, fs: Any, path: str) -> None:
    """A new file's own fsync is taken to bring its entry in the directory to the disk as well."""
    bug.strikes()


@_bug(Log, "append")
def acknowledged_before_written(
    bug: Bug, log: Any, data: bytes, deadline: float | None = None
) -> int:
    """Records are collected for a while to write them together, and nobody waits for that."""

    def write() -> None:
        try:
            bug.original(log, data)
        finally:
            if log._head._closing.writes.is_set():  # meanwhile: nobody else would close it again
                log.close()

    bug.strikes()
    _later(log._head._closing, write)
    return log.end + len(data)


@_bug(Receiver, "_commit")
def peer_acknowledged_before_written(bug: Bug, receiver: Any, batches: Any, pace: Any) -> Any:
    """What a peer has sent is acknowledged when it has come, and written a little later."""
    bug.strikes()
    _later(receiver._store.closing, lambda: bug.original(receiver, batches, pace))
    return [record_id(records[-1]) for records in batches], []


@_bug(Delivery, "deliver_lines")
def saved_before_handled(
    bug: Bug, delivery: Any, found: Any, commit: Any, pace: Any, may_go_on: Any
) -> None:
    """A message counts as done with when its handler is called, not when it returns."""
    offset = found.start
    for line in found.lines:
        if not may_go_on():
            return
        bug.strikes()
        commit(offset + len(line) + 1)
        bug.original(delivery, Lines(offset, [line]), lambda end: None, pace, may_go_on)
        offset += len(line) + 1


@_bug(ActiveSegment, "fdatasync")
def failed_fsync_retried(bug: Bug, segment: Any) -> None:
    """A failed fsync is tried again, and that it succeeds is taken to mean that all is written."""
    try:
        bug.original(segment)
    except SyncFailedError:
        bug.strikes()
        bug.original(segment)


@_bug(recovery, "whole_size")
def torn_tail_kept(bug: Bug, fs: Any, fd: int, size: int) -> int:
    """Appending goes on behind whatever is in the file, a part of a record as well."""
    if bug.original(fs, fd, size) != size:
        bug.strikes()
    return size


@_bug(recovery, "clamp_offsets")
def position_not_clamped(bug: Bug, fs: Any, directory: str, end: int) -> list[str]:
    """A position past the log's end is thought to be impossible: its records were written first."""
    if any(isinstance(found, int) and found > end for _, found in read_all(fs, directory)):
        bug.strikes()
    return []


@_bug(Window, "begin_claim")
def not_unmarked(bug: Bug, window: Any, message_id: str, outcome: Any = None) -> Any:
    """An id counts as seen from when it is to be written, also if the write fails."""
    bug.strikes()
    window._add(message_id)
    return bug.original(window, message_id, outcome)


@_bug(FileSystem, "flock")
def channel_not_locked(bug: Bug, fd: int, operation: int) -> None:
    """A write to a file that was opened to append is atomic, so the channel needs no lock."""
    if os.readlink(f"/proc/self/fd/{fd}").endswith("/.lock"):
        bug.strikes()
    else:
        bug.original(fd, operation)


@_bug(FileSystem, "flock")
def lease_shared(bug: Bug, fd: int, operation: int) -> None:
    """A lease is locked as if it were only read, so that several processes hold it."""
    if operation == LOCK_TRY and "/subscribers/" in os.readlink(f"/proc/self/fd/{fd}"):
        bug.strikes()
        operation = fcntl.LOCK_SH | fcntl.LOCK_NB
    bug.original(fd, operation)


@_bug(FrameHeader, "read")
def length_trusted(bug: Bug, cls: Any, reader: Any, masked: bool, room: int) -> Any:
    """A buffer is made for as many bytes as a frame declares, however many that are."""
    header = bug.original(cls, reader, masked, 1 << 64)
    if header.length > room:
        bug.strikes()
    bytearray(header.length)
    return header
