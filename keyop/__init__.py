"""Durable publish/subscribe for gevent programs; channels are append-only files.

``Messenger`` is where to begin. ``docs/`` explains what may be relied on.
"""

from typing import TYPE_CHECKING, Any

from keyop.config import (
    AllowedPeer,
    AuditConfig,
    ClientConfig,
    ClientHub,
    Config,
    DedupConfig,
    FederationConfig,
    HubConfig,
    StorageConfig,
    SubscribersConfig,
    TLSConfig,
    WebConfig,
)
from keyop.context import correlation_id, service_name
from keyop.envelope import Message
from keyop.errors import (
    ConfigError,
    ConnectionLostError,
    CorruptRecordError,
    EphemeralClosedError,
    ForkedError,
    HandshakeRejectedError,
    InvalidChannelNameError,
    InvalidSubscriberIdError,
    KeyopError,
    LogFailedError,
    MessengerClosedError,
    OffsetError,
    PayloadError,
    PayloadTypeAlreadyRegisteredError,
    ProtocolError,
    PublishTimeoutError,
    RecordTooLargeError,
    ReservedChannelNameError,
    RetryLater,
    StorageError,
    SubscriberInUseError,
    WrongThreadError,
)
from keyop.latency import Percentiles
from keyop.messenger import Messenger
from keyop.stats import ChannelStats, LatencyStats, PeerStats, Stats, SubscriberStats
from keyop.subscriber import Subscription
from keyop.version import __version__

if TYPE_CHECKING:
    from keyop.federation.ephemeral import EphemeralMessenger

__all__ = [
    "AllowedPeer",
    "AuditConfig",
    "ChannelStats",
    "ClientConfig",
    "ClientHub",
    "Config",
    "ConfigError",
    "ConnectionLostError",
    "CorruptRecordError",
    "DedupConfig",
    "EphemeralClosedError",
    "EphemeralMessenger",
    "FederationConfig",
    "ForkedError",
    "HandshakeRejectedError",
    "HubConfig",
    "InvalidChannelNameError",
    "InvalidSubscriberIdError",
    "KeyopError",
    "LatencyStats",
    "LogFailedError",
    "Message",
    "Messenger",
    "MessengerClosedError",
    "OffsetError",
    "PayloadError",
    "PayloadTypeAlreadyRegisteredError",
    "PeerStats",
    "Percentiles",
    "ProtocolError",
    "PublishTimeoutError",
    "RecordTooLargeError",
    "ReservedChannelNameError",
    "RetryLater",
    "Stats",
    "StorageConfig",
    "StorageError",
    "SubscriberInUseError",
    "SubscriberStats",
    "SubscribersConfig",
    "Subscription",
    "TLSConfig",
    "WebConfig",
    "WrongThreadError",
    "__version__",
    "correlation_id",
    "service_name",
]


if not TYPE_CHECKING:  # or checkers would take every name for one that exists

    def __getattr__(name: str) -> Any:
        """Load what is for federation alone when it is first asked for: it takes a while."""
        if name == "EphemeralMessenger":
            from keyop.federation.ephemeral import EphemeralMessenger

            return EphemeralMessenger
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
