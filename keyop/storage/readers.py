"""Who waits for a channel to grow."""

from __future__ import annotations

from typing import Protocol


class Wakeable(Protocol):
    """What can be told that there may be something new: a gevent ``Event``, or the like of one."""

    def set(self) -> None:
        """There may be something; must not wait."""


class Readers:
    """The readers of one channel in this process. Waking them costs nothing when there are none."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events: set[Wakeable] = set()

    def wake(self) -> None:
        """Let every reader look for new records."""
        for event in self.events:
            event.set()
