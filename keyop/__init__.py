"""Durable publish/subscribe for gevent programs; channels are append-only files.

``Messenger`` is where to begin. ``docs/`` explains what may be relied on.
"""

from importlib import import_module
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
from keyop.version import __version__

if TYPE_CHECKING:
    from keyop.federation.ephemeral import EphemeralMessenger
    from keyop.latency import Percentiles
    from keyop.messenger import Messenger
    from keyop.stats import ChannelStats, LatencyStats, PeerStats, Stats, SubscriberStats
    from keyop.subscriber import Subscription

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

# Loaded when it is first asked for: somebody who looks at a directory, or whose tests only load
# the plugin, waits for none of it.
_LATER = {
    "ChannelStats": "keyop.stats",
    "EphemeralMessenger": "keyop.federation.ephemeral",
    "LatencyStats": "keyop.stats",
    "Messenger": "keyop.messenger",
    "PeerStats": "keyop.stats",
    "Percentiles": "keyop.latency",
    "Stats": "keyop.stats",
    "SubscriberStats": "keyop.stats",
    "Subscription": "keyop.subscriber",
}

if not TYPE_CHECKING:  # or checkers would take every name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_LATER[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})
