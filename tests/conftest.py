"""What every test must leave as it was: no greenlet, no descriptor; and none may hang."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import gevent
import greenlet
import pytest
from gevent.threadpool import ThreadPool
from gevent.util import print_run_info

HANG_S = 60.0
# What a test started may need a moment to end: a thread that returns, a descriptor after it.
GRACE_S = 2.0
# gevent's loop and its thread pools open these when they like, and keep them.
LOOP_INTERNALS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "may_leak(reason): this test leaves greenlets or descriptors behind on purpose"
    )


@pytest.fixture(scope="session", autouse=True)
def warm_hub() -> None:
    """Have gevent open what it keeps for good before anybody counts."""
    gevent.sleep(0)
    gevent.get_hub().threadpool.apply(int)
    pool = ThreadPool(1)
    pool.apply(int)
    pool.kill()


def live_greenlets() -> list[gevent.Greenlet[..., Any]]:
    """Return those that were made since the collector was frozen last, and live."""
    return [
        each for each in gc.get_objects() if isinstance(each, gevent.Greenlet) and not each.dead
    ]


def open_descriptors() -> dict[int, str]:
    """Return what each descriptor of this process leads to, but for the loop's own."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed
            continue
        if target not in LOOP_INTERNALS:
            found[int(name)] = target
    return found


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, warm_hub: None) -> Iterator[None]:
    """Fail a test that leaves a greenlet running or a descriptor open."""
    marker = request.node.get_closest_marker("may_leak")
    if marker is not None:
        assert marker.args or marker.kwargs.get("reason"), "may_leak needs a reason"
        yield
        return
    # Nothing made so far is looked at again: that keeps the search for greenlets short.
    gc.collect()
    gc.freeze()
    descriptors_before = open_descriptors() if os.path.isdir("/proc/self/fd") else None
    yield

    def leaked() -> list[str]:
        left = [f"greenlet {each!r}" for each in live_greenlets()]
        if descriptors_before is not None:
            left += [
                f"descriptor {fd} of {target}"
                for fd, target in open_descriptors().items()
                if descriptors_before.get(fd) != target
            ]
        return left

    deadline = time.monotonic() + GRACE_S
    while (left := leaked()) and time.monotonic() < deadline:
        gevent.sleep(0.005)
        gc.collect()
    assert not left, "the test leaks " + ", ".join(left)


@pytest.fixture(autouse=True)
def children_are_waited_for_by_their_parents() -> Iterator[None]:
    """Undo what gevent's own subprocess module does for good: the loop reaps all children.

    Other tests' ``subprocess.Popen`` would take a child that was reaped so for one that ended well.
    """
    yield
    gevent.get_hub().loop.reset_sigchld()  # which makes it install its handler when next needed
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that runs longer than a minute, showing what everybody was doing.

    ``@pytest.mark.patience(seconds)`` gives it another time.
    """
    marked = request.node.get_closest_marker("patience")
    limit_s = HANG_S if marked is None else float(marked.args[0])
    testing = greenlet.getcurrent()
    hub = gevent.get_hub()

    def give_up(_signal: int, _frame: object) -> None:
        print_run_info(file=sys.stderr)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        failed = pytest.fail.Exception(f"the test hangs: not done within {limit_s:g} s")
        if greenlet.getcurrent() is testing:
            raise failed
        # Whoever runs now is not the test, which waits: in the loop, or for a busy greenlet.
        hub.loop.run_callback(testing.throw, failed)
        if greenlet.getcurrent() is not hub:
            raise failed

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
