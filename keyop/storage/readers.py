"""Who waits for a channel to grow."""

from __future__ import annotations

from gevent.event import Event


class Readers:
    """The readers of one channel in this process. Waking them costs nothing when there are none."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events: set[Event] = set()

    def wake(self) -> None:
        """Let every reader look for new records."""
        for event in self.events:
            event.set()
