"""What peers may cost a hub: so many connections, and so many channels that each brings about."""

from __future__ import annotations

import logging

from keyop.backoff import worth_telling
from keyop.config import HubConfig
from keyop.errors import KeyopError
from keyop.storage.store import Store

logger = logging.getLogger(__name__)

# Ephemeral clients may share a name; so many of them.
MAX_SAME_NAME = 64


class LimitError(KeyopError):
    """A peer wants more than it may have."""


class Limits:
    """Counts what each peer has brought about since the hub began; 0 in the configuration is none.

    A channel counts for the peer that was the first to send to it, or to subscribe to it, when it
    was not there. It counts for as long as the hub runs, under whatever connection.
    """

    def __init__(self, store: Store, config: HubConfig) -> None:
        self.config = config
        self._store = store
        self._made: dict[str, set[str]] = {}
        self._refusals: dict[str, int] = {}

    def full(self, connected: int) -> str | None:
        """Say why there may be no further connection; None if there may."""
        most = self.config.max_connections
        if most and connected >= most:
            return f"there are {connected} connections, as many as may be"
        return None

    def crowded(self, of_the_name: int) -> str | None:
        """Say why there may be no further ephemeral connection of a name; None if there may."""
        return "too many connections of this name" if of_the_name >= MAX_SAME_NAME else None

    def may_use(self, peer: str, channel: str) -> bool:
        """Tell whether a channel is there, or may be brought about by this peer."""
        most = self.config.max_channels_per_peer
        if not most or self._store.has_channel(channel):
            return True
        made = self._made.setdefault(peer, set())
        if channel not in made:
            if len(made) >= most:
                self._refuse(peer, channel, most)
                return False
            made.add(channel)
        return True

    def check_use(self, peer: str, channel: str) -> None:
        """Count a channel that a peer wants.

        Raises:
            LimitError: it is not there, and the peer has brought about as many as it may.
        """
        if not self.may_use(peer, channel):
            raise LimitError(f"it has made {self.config.max_channels_per_peer} channels already")

    def _refuse(self, peer: str, channel: str, most: int) -> None:
        count = self._refusals[peer] = self._refusals.get(peer, 0) + 1
        if worth_telling(count):
            logger.warning(
                "%s has made %d channels, as many as hub.max_channels_per_peer allows; "
                "refused %d times, the latest: %s",
                peer,
                most,
                count,
                channel,
            )
