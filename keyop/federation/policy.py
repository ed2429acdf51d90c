"""Who may connect, and what each may send and receive: an allowlist as plain sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from keyop.config import HubConfig
from keyop.names import is_dead_letter


@dataclass(frozen=True)
class Rights:
    """What one peer may do. None means any channel.

    Attributes:
        receive: channels that it may be sent.
        publish: channels that it may send.
    """

    receive: frozenset[str] | None
    publish: frozenset[str] | None

    def may_publish(self, channel: str) -> bool:
        """Whether records of this channel are taken from the peer; dead letters never are."""
        if is_dead_letter(channel):
            return False
        return self.publish is None or channel in self.publish

    def effective(self, requested: Iterable[str]) -> list[str]:
        """Return those of the requested channels that the peer may be sent, in their order."""
        return [each for each in requested if self.receive is None or each in self.receive]


class Policy:
    """The allowlist of a hub.

    Source: docs/wire.md, "Handshake": an empty list of an allowed peer means any channel, or none
    with ``hub.deny_by_default``.
    """

    def __init__(self, config: HubConfig) -> None:
        def allowed(channels: tuple[str, ...]) -> frozenset[str] | None:
            if not channels and not config.deny_by_default:
                return None
            return frozenset(channels)

        self._rights = {
            peer.name: Rights(allowed(peer.subscribe), allowed(peer.publish))
            for peer in config.allowed_peers
        }

    def rights(self, peer: str) -> Rights | None:
        """Return what a peer may do; None if it may not connect."""
        return self._rights.get(peer)
