"""What must not survive a fork."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable

import pytest

import keyop.forks
from keyop.forks import drop_in_children, keep_in_children


class Holder:
    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.drops = 0
        self.then = then

    def drop_in_child(self) -> None:
        self.drops += 1
        self.then()


def in_child(tell: Callable[[], int]) -> int:
    """Return the number, below 256, that a forked child has."""
    pid = os.fork()
    if pid == 0:
        try:
            code = tell()
        except BaseException:
            code = 255
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_dropped_in_the_child_only() -> None:
    """The child drops once, before it runs anything else; the parent never does."""
    holder = Holder()
    drop_in_children(holder)
    assert in_child(lambda: holder.drops) == 1
    assert holder.drops == 0
    keep_in_children(holder)


def test_dropping_empties_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child does, done here, where it can be looked at."""
    monkeypatch.setattr(keyop.forks, "_held", weakref.WeakSet())
    holder = Holder()
    drop_in_children(holder)
    keyop.forks._in_child()
    keyop.forks._in_child()
    assert holder.drops == 1


def test_a_grandchild_drops_nothing_again() -> None:
    """What the child dropped is not there any more."""
    holder = Holder()
    drop_in_children(holder)
    assert in_child(lambda: in_child(lambda: holder.drops)) == 1
    keep_in_children(holder)


def test_kept_again() -> None:
    """Who has nothing left to drop is left alone; saying so twice does no harm."""
    holder = Holder()
    drop_in_children(holder)
    drop_in_children(holder)
    keep_in_children(holder)
    keep_in_children(holder)
    assert in_child(lambda: holder.drops) == 0


def test_the_registry_keeps_nobody_alive() -> None:
    """Who is forgotten by its owner is forgotten here."""
    dropped: list[int] = []
    holder = Holder(lambda: dropped.append(1))
    drop_in_children(holder)
    del holder
    gc.collect()
    assert in_child(lambda: len(dropped)) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_fails_does_not_keep_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    """Every other lock is dropped all the same, or the child would keep it."""

    def fail() -> None:
        raise OSError("EBADF")

    holders = [Holder(fail if number % 2 else lambda: None) for number in range(10)]
    for holder in holders:
        drop_in_children(holder)
    try:
        assert in_child(lambda: sum(holder.drops for holder in holders)) == 10
    finally:
        for holder in holders:
            keep_in_children(holder)
