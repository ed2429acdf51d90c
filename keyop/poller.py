"""Looking every now and then, for all who want to: together they wake the process once."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from keyop.pace import Pace
from keyop.storage.watch import POLL_S


class Poller:
    """Calls each of its looks every ``POLL_S`` seconds; its greenlet lives while there are any.

    A look must not wait, and not raise.

    Args:
        tidy: called after each round of looks.
    """

    def __init__(self, tidy: Callable[[], None]) -> None:
        self._tidy = tidy
        self._looks: dict[Callable[[], None], None] = {}
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def add(self, look: Callable[[], None]) -> None:
        """Call this one too."""
        self._looks[look] = None
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = "keyop-poller"

    def discard(self, look: Callable[[], None]) -> None:
        """Call this one no more; nothing to do if it is not called."""
        self._looks.pop(look, None)
        if not self._looks and self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet = None

    def _run(self) -> None:
        pace = Pace()
        while True:
            gevent.sleep(POLL_S)
            pace.renew()
            for look in list(self._looks):
                if look in self._looks:
                    look()
                pace.step()
            self._tidy()
