"""Syncs that a thread does one after the other.

To a thread and back takes about as long as a sync does where the disk is fast, and each system call
of a thread costs the event loop a fight for the interpreter. So what is synced in the background
goes there in handfuls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

from keyop.offload import Job, Offload

# So many together: on a disk that takes 10 ms for each, a thread is busy for a third of a second.
TOGETHER = 32
# So many threads at once, which leaves others for what somebody waits for.
_AT_ONCE = 2


class Unsynced(Protocol):
    """A file that may have been written since it was last synced."""

    def hold_for_sync(self) -> Callable[[], None] | None:
        """Return what brings the file to the disk, in a thread; None if there is nothing to do.

        The descriptor stays open until one of the other two has been called.
        """

    def give_up_sync(self) -> None:
        """It was not begun: whoever wanted it was killed."""

    def begin_sync(self) -> Callable[[Exception | None], None]:
        """It has begun, and covers what was written until now; return who is told of its end."""


def sync_together(files: Iterable[Unsynced], offload: Offload) -> Job | None:
    """Start bringing files to the disk, one after the other in one thread.

    Waits while all threads are busy. Each file is told how its own sync ended, also when the
    caller is killed.

    Returns:
        The job, which never fails; None if there is nothing to do.
    """
    held = [(file, sync) for file in files if (sync := file.hold_for_sync()) is not None]
    if not held:
        return None
    errors: list[Exception | None] = [None] * len(held)

    def run() -> None:
        for number, (_, sync) in enumerate(held):
            try:
                sync()
            except Exception as error:  # whichever it is, it is that file's to tell of
                errors[number] = error

    try:
        job = offload.submit(run)
    except BaseException:  # killed while every thread was busy
        for file, _ in held:
            file.give_up_sync()
        raise
    told = [file.begin_sync() for file, _ in held]

    def finished(_: Job) -> None:
        for tell, error in zip(told, errors, strict=True):
            tell(error)

    job.then(finished)
    return job


def handfuls(files: Iterable[Unsynced]) -> Iterator[list[Unsynced]]:
    """Yield the files, a few at a time."""
    rest = iter(files)
    while some := list(islice(rest, TOGETHER)):
        yield some


def sync_all(files: Iterable[Unsynced], offload: Offload) -> None:
    """Bring files to the disk, by handfuls, in few threads; wait until all but the last are."""
    running: deque[Job] = deque()
    for some in handfuls(files):
        if len(running) == _AT_ONCE:
            running.popleft().wait()
        if (job := sync_together(some, offload)) is not None:
            running.append(job)
