"""Giving way: a tight loop lets everybody else run at least every two milliseconds."""

from __future__ import annotations

from time import monotonic

import gevent

# Below the two milliseconds that are promised, because the step is taken after the work.
SLICE_S = 0.0015
# gevent.sleep(0) would run other greenlets that are ready, and never look at sockets and timers.
SHORTEST_SLEEP_S = 1e-6


class Pace:
    """Counts the time since its owner last gave way. One for each loop.

    ``until`` is the end of the slice, in ``time.monotonic()`` seconds. Setting it to 0 makes the
    owner give way after its next piece of work.

    Args:
        slice_s: how long it may go on, in seconds.
    """

    __slots__ = ("_slice_s", "until")

    def __init__(self, slice_s: float = SLICE_S) -> None:
        self._slice_s = slice_s
        self.until = monotonic() + slice_s

    def step(self) -> None:
        """Let the others run if the slice is used up."""
        if monotonic() > self.until:
            self.give_way()

    def renew(self) -> None:
        """Begin a new slice: the others have just run."""
        self.until = monotonic() + self._slice_s

    def give_way(self) -> None:
        """Let the others run and begin a new slice."""
        gevent.sleep(SHORTEST_SLEEP_S)
        self.until = monotonic() + self._slice_s
