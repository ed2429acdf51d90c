"""Work that is done by a greenlet only while there is some: what is idle costs none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent


def end_greenlets(greenlets: Iterable[gevent.Greenlet[..., Any]], timeout_s: float) -> None:
    """Kill greenlets and wait for their ends, for so many seconds at most.

    One that takes longer, in a call that cannot be stopped, is left; ``killall`` with a timeout
    would raise then.
    """
    ending = list(greenlets)
    gevent.killall(ending, block=False)
    gevent.joinall(ending, timeout=timeout_s)


class Errand:
    """Runs ``work()`` in a greenlet whenever it was called for.

    Calls that come while it runs make it run once more; it never runs twice at once.

    Args:
        work: must not raise; what it does when killed is its own affair.
        crew: whose greenlets do the work; without one, each time a new greenlet does.
    """

    __slots__ = ("_crew", "_greenlet", "_name", "_stopped", "_wanted", "_work")

    def __init__(self, name: str, work: Callable[[], None], crew: Crew | None = None) -> None:
        self._name = name
        self._work = work
        self._crew = crew
        self._wanted = False
        self._stopped = False
        self._greenlet: gevent.Greenlet[[], Any] | None = None

    @property
    def running(self) -> bool:
        """Whether it is at work, or about to be."""
        return self._greenlet is not None

    def call(self) -> None:
        """See that ``work()`` begins after now; may be called from anywhere in the thread."""
        self._wanted = True
        if self._greenlet is None and not self._stopped:
            if self._crew is None:
                self._greenlet = gevent.spawn(self._run)
            else:
                self._greenlet = self._crew.send(self._run)
            self._greenlet.name = self._name

    def _run(self) -> bool:
        """Do what is wanted; return whether the greenlet may do something else afterwards.

        Not one that was told to stop: what kills it may still be under way to it.
        """
        try:
            while self._wanted and not self._stopped:
                self._wanted = False
                self._work()
        finally:
            self._greenlet = None
        return not self._stopped

    def join(self) -> None:
        """Wait until it has done what it was called for; only for one without a crew."""
        assert self._crew is None
        greenlet = self._greenlet
        if greenlet is not None:
            greenlet.join()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Kill it where it is, for good; from inside its own work, it ends with that."""
        self._stopped = True
        greenlet = self._greenlet
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill(timeout=timeout_s)
            if greenlet.dead:  # perhaps before its first instruction, which would clear this
                self._greenlet = None


class Crew:
    """Greenlets that do one errand after another.

    To begin a greenlet costs some ten microseconds more than to wake one that waits.

    Args:
        size: how many wait for errands; there may be more at work.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._idle: list[_Hand] = []
        self._closed = False

    def send(self, errand: Callable[[], bool]) -> gevent.Greenlet[[], None]:
        """Run an errand in a greenlet; which may do others afterwards if it returns True."""
        if not self._idle or self._closed:  # those that are idle end
            hand = _Hand(self, errand)
            hand.start()
            return hand
        hand = self._idle.pop()
        hand.errand = errand
        gevent.get_hub().loop.run_callback(hand.switch)
        return hand

    def close(self) -> None:
        """End the greenlets that wait; others end after their errands."""
        self._closed = True
        gevent.killall(self._idle)

    def wait(self, hand: _Hand) -> bool:
        """Wait for an errand as one of the idle; return False if there are enough of them."""
        if self._closed or len(self._idle) >= self._size:
            return False
        self._idle.append(hand)
        try:
            gevent.get_hub().switch()
        finally:
            if hand in self._idle:  # killed
                self._idle.remove(hand)
        return True


class _Hand(gevent.Greenlet):  # type: ignore[type-arg] # no generic where it runs
    """One of a crew."""

    def __init__(self, crew: Crew, errand: Callable[[], bool]) -> None:
        super().__init__()
        self._crew = crew
        self.errand = errand

    def _run(self) -> None:
        while self.errand() and self._crew.wait(self):
            pass
