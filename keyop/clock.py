"""The seam for time: everything that asks for the time or waits does it through a ``Clock``."""

from __future__ import annotations

import time

import gevent


class Clock:
    """Real time. Tests replace it with a clock that they turn themselves."""

    time_ns = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        """Let other greenlets run for this many seconds."""
        gevent.sleep(seconds)


SYSTEM_CLOCK = Clock()


def seconds_left(deadline: float | None) -> float | None:
    """Return how long it is until a deadline in ``time.monotonic()`` seconds; None without one."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
