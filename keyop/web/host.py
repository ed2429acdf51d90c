"""What the page asks of a messenger."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from keyop.config import Config
from keyop.follow import Follower
from keyop.stats import Stats
from keyop.storage.position import Position


class Host(Protocol):
    """A ``Messenger``, which starts the page's listener and so cannot be imported by it."""

    config: Config

    @property
    def closing(self) -> bool:
        """Whether it is closed, or about to be."""

    @property
    def certificate_expires(self) -> datetime | None:
        """When the own certificate ends; None without one in use."""

    def start(self) -> None:
        """Start it, if nobody has yet."""

    def wait_closing(self, timeout: float | None = None) -> bool:
        """Wait until closing begins; return whether it has."""

    def stats(self, *, pending: bool = True) -> Stats:
        """Return its figures."""

    def follow(self, channel: str, start: Position = "latest") -> Follower:
        """Return what reads along in a channel."""
