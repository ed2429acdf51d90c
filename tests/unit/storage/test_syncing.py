"""Syncs that a thread does one after the other."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.monkey import get_original

from keyop.offload import Offload
from keyop.storage.syncing import TOGETHER, handfuls, sync_all, sync_together

allocate_lock = get_original("_thread", "allocate_lock")


class File:
    """Something to sync that says what was done with it."""

    def __init__(self, dirty: bool = True, error: Exception | None = None) -> None:
        self.dirty = dirty
        self.error = error
        self.held = 0
        self.syncs = 0
        self.ends: list[Exception | None] = []

    def sync(self) -> None:
        assert self.held == 1
        self.syncs += 1
        if self.error is not None:
            raise self.error

    def hold_for_sync(self) -> Callable[[], None] | None:
        if not self.dirty:
            return None
        self.held += 1
        return self.sync

    def give_up_sync(self) -> None:
        self.held -= 1

    def begin_sync(self) -> Callable[[Exception | None], None]:
        def end(error: Exception | None) -> None:
            self.held -= 1
            self.ends.append(error)

        return end


@pytest.fixture
def offload() -> Iterator[Offload]:
    offload = Offload(2)
    yield offload
    assert offload.close(10)


def test_each_learns_of_its_own(offload: Offload) -> None:
    """One that fails keeps none of the others from being synced."""
    error = OSError(errno.EIO, "broken")
    files = [File(), File(error=error), File(dirty=False), File()]
    job = sync_together(files, offload)
    assert job is not None
    assert job.wait(10)
    gevent.sleep(0)
    assert job.error is None
    assert [file.ends for file in files] == [[None], [error], [], [None]]
    assert [file.syncs for file in files] == [1, 1, 0, 1]
    assert [file.held for file in files] == [0, 0, 0, 0]


def test_nothing_to_do(offload: Offload) -> None:
    """No thread is asked for."""
    assert sync_together([], offload) is None
    assert sync_together([File(dirty=False)], offload) is None


def test_killed_while_all_threads_are_busy() -> None:
    """None was begun, and none is held any more."""
    offload = Offload(1)
    blocker = allocate_lock()
    blocker.acquire()
    jobs = [offload.submit(blocker.acquire) for _ in range(2)]  # one is under way, one waits
    files = [File(), File()]
    waiting = gevent.spawn(sync_together, files, offload)
    gevent.sleep(0)
    assert [file.held for file in files] == [1, 1]
    waiting.kill()
    assert [file.held for file in files] == [0, 0]
    for job in jobs:
        blocker.release()
        assert job.wait(10)
    assert offload.close(10)
    assert [file.syncs for file in files] == [0, 0]


def test_handfuls() -> None:
    """All of them, in order, so many at a time."""
    files = [File() for _ in range(2 * TOGETHER + 1)]
    parts = list(handfuls(files))
    assert [len(part) for part in parts] == [TOGETHER, TOGETHER, 1]
    assert [file for part in parts for file in part] == files


def test_all(offload: Offload) -> None:
    """Each once, by as few threads as leave one for others."""
    files = [File() for _ in range(5 * TOGETHER)]
    sync_all(files, offload)
    assert offload.close(10)
    gevent.sleep(0)
    assert all(file.ends == [None] and file.syncs == 1 for file in files)
