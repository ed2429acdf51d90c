"""A clock that stands still until the test turns it."""

from __future__ import annotations

import bisect
import time

import gevent
from gevent.event import Event

from keyop.clock import Clock

_SECOND = 1_000_000_000


class FakeClock(Clock):
    """Time passes only in ``advance``. For greenlets of one thread."""

    def __init__(self, wall_ns: int = 1_700_000_000 * _SECOND) -> None:
        self._elapsed_ns = 0
        self._wall_start_ns = wall_ns
        self._count = 0
        # Kept sorted; the running number keeps those with one deadline in the order they came.
        self._sleepers: list[tuple[int, int, Event]] = []

    def time_ns(self) -> int:
        """Return the wall clock's time."""
        return self._wall_start_ns + self._elapsed_ns

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start, which is not 0 so that 0 is no special case."""
        return 1000 + self._elapsed_ns / _SECOND

    def sleep(self, seconds: float) -> None:
        """Wait until the test has turned the clock this far; 0 only lets others run."""
        if seconds <= 0:
            gevent.sleep(0)
            return
        self._count += 1
        sleeper = (self._elapsed_ns + round(seconds * _SECOND), self._count, Event())
        bisect.insort(self._sleepers, sleeper)
        try:
            sleeper[2].wait()
        finally:  # also when the greenlet is killed, or a timeout strikes
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)

    @property
    def sleepers(self) -> int:
        """How many greenlets sleep now."""
        return len(self._sleepers)

    def wait_for_sleepers(self, count: int = 1, timeout: float = 10) -> None:
        """Let greenlets run until at least ``count`` sleep.

        Raises:
            AssertionError: they did not within ``timeout`` seconds of real time.
        """
        deadline = time.monotonic() + timeout
        while self.sleepers < count:
            assert time.monotonic() < deadline, f"{self.sleepers} of {count} greenlets sleep"
            gevent.sleep(0.001)

    def advance(self, seconds: float) -> None:
        """Let time pass, waking each sleeper at its own time.

        Every sleeper runs up to its next wait before the next one is woken, and wakes again
        within the same call if it goes back to sleep for less than what is left.
        """
        end = self._elapsed_ns + round(seconds * _SECOND)
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, alarm = self._sleepers.pop(0)
            self._elapsed_ns = due
            alarm.set()
            gevent.sleep(0)
        self._elapsed_ns = end
        gevent.sleep(0)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP may; nobody wakes."""
        self._wall_start_ns += round(seconds * _SECOND)
