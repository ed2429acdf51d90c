"""Work that is done by a greenlet only while there is some: what is idle costs none."""

from __future__ import annotations

from collections.abc import Callable

import gevent


class Errand:
    """Runs ``work()`` in a greenlet of its own whenever it was called for.

    Calls that come while it runs make it run once more; it never runs twice at once.

    Args:
        work: must not raise; what it does when killed is its own affair.
    """

    __slots__ = ("_greenlet", "_name", "_stopped", "_wanted", "_work")

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name = name
        self._work = work
        self._wanted = False
        self._stopped = False
        self._greenlet: gevent.Greenlet[[], None] | None = None

    @property
    def running(self) -> bool:
        """Whether it is at work, or about to be."""
        return self._greenlet is not None

    def call(self) -> None:
        """See that ``work()`` begins after now; may be called from anywhere in the thread."""
        self._wanted = True
        if self._greenlet is None and not self._stopped:
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = self._name

    def _run(self) -> None:
        try:
            while self._wanted and not self._stopped:
                self._wanted = False
                self._work()
        finally:
            self._greenlet = None

    def join(self) -> None:
        """Wait until it has done what it was called for."""
        greenlet = self._greenlet
        if greenlet is not None:
            greenlet.join()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Kill it where it is, for good; from inside its own work, it ends with that."""
        self._stopped = True
        greenlet = self._greenlet
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill(timeout=timeout_s)
            if not greenlet.started:  # killed before its first instruction, which clears this
                self._greenlet = None
