"""What is seen of a channel and of its subscribers at one moment, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass

from keyop.names import HUB_PREFIX, PEER_PREFIX


@dataclass(frozen=True)
class SubscriberView:
    """One subscriber's position. ``running`` is None where that cannot be seen.

    ``offset`` and ``lag_bytes`` are None, and ``problem`` says why, where the position cannot be
    read.
    """

    channel: str
    subscriber_id: str
    offset: int | None
    lag_bytes: int | None
    running: bool | None
    problem: str | None = None

    @property
    def kind(self) -> str:
        """``local``; ``peer`` or ``hub`` for the progress of sending to one."""
        if self.subscriber_id.startswith(PEER_PREFIX):
            return "peer"
        return "hub" if self.subscriber_id.startswith(HUB_PREFIX) else "local"


@dataclass(frozen=True)
class ChannelView:
    """One channel: from ``start`` to ``end``. ``records`` is None unless they were counted."""

    channel: str
    segments: int
    disk_bytes: int
    start: int
    end: int
    records: int | None
    subscribers: tuple[SubscriberView, ...]

    @property
    def abandoned(self) -> bool:
        """Whether nothing is in it and nobody subscribes: what removing a channel leaves."""
        return not self.disk_bytes and not self.subscribers

    @property
    def largest_lag(self) -> SubscriberView | None:
        """The subscriber that is furthest behind; one whose position is unknown comes first."""
        return max(
            self.subscribers,
            key=lambda each: (each.lag_bytes is None, each.lag_bytes or 0),
            default=None,
        )
