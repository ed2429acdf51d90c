"""Who waits for a channel to grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Wakeable(Protocol):
    """What can be told that there may be something new: a gevent ``Event``, or the like of one."""

    def set(self) -> None:
        """There may be something; must not wait."""


class Readers:
    """The readers of one channel in this process. Waking them costs nothing when there are none.

    Args:
        has_foreign_news: whether there may be something that nobody here has woken them for.
    """

    __slots__ = ("events", "has_foreign_news", "wakes")

    def __init__(self, has_foreign_news: Callable[[], bool] = lambda: True) -> None:
        self.events: set[Wakeable] = set()
        # How often they were woken: what one found to be the end is it until that changes.
        self.wakes = 0
        self.has_foreign_news = has_foreign_news

    def wake(self) -> None:
        """Let every reader look for new records."""
        self.wakes += 1
        for event in self.events:
            event.set()
