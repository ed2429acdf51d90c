"""The configuration's keys about other instances: hub, client, TLS and links."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from keyop.config_rules import (
    Channels,
    Count,
    DialAddress,
    Flag,
    Fraction,
    InstanceName,
    ListenAddress,
    Milliseconds,
    PathName,
    Seconds,
    one_of,
    whole,
)
from keyop.config_schema import Conflict, Part
from keyop.names import instance_name_fault

MAX_WINDOW_BATCHES = 1024


@dataclass(frozen=True)
class AllowedPeer(Part, section="hub.allowed_peers[]"):
    """An instance that may connect to this hub.

    Attributes:
        name: its instance name, as in its certificate; required.
        subscribe: channels that it may receive; empty is any (none with ``deny_by_default``).
        publish: channels that it may send; empty likewise.
    """

    name: InstanceName = ""
    subscribe: Channels = ()
    publish: Channels = ()

    def _conflicts(self) -> Iterator[Conflict]:
        if not self.name:
            yield Conflict(("name",), "'' is not allowed; use the peer's instance name")


@dataclass(frozen=True)
class HubConfig(Part, section="hub"):
    """Accepting connections of other instances.

    Attributes:
        enabled: listen on ``listen_addr``.
        listen_addr: ``host:port`` or ``[IPv6]:port``; no host is every interface.
        allowed_peers: who may connect; nobody else does.
        deny_by_default: an empty list of an allowed peer means no channel, not any.
        max_pending: connections whose hello is still to come, at least 1.
        max_connections: clients that may be connected at once, those of one name included; 0 is
            any number.
        max_channels_per_peer: channels that one peer may bring about, by sending or subscribing
            to such as are not there, while the hub runs; 0 is any number.
        fed_client_offset_ttl: seconds after which the position of a peer that stays away is
            forgotten; 0 never forgets.
    """

    enabled: Flag = False
    listen_addr: ListenAddress = ""
    allowed_peers: tuple[AllowedPeer, ...] = ()
    deny_by_default: Flag = False
    max_pending: Annotated[int, whole(1)] = 128
    max_connections: Count = 4096
    max_channels_per_peer: Count = 1024
    fed_client_offset_ttl: Seconds = 168 * 3600.0

    def _conflicts(self) -> Iterator[Conflict]:
        if self.enabled and not self.listen_addr:
            yield Conflict(
                ("listen_addr", "enabled"),
                "'' is not allowed while hub.enabled is true; use host:port",
            )
        keys = [
            (f"allowed_peers[{i}].name", peer.name) for i, peer in enumerate(self.allowed_peers)
        ]
        yield from _repeated("hub", keys)


@dataclass(frozen=True)
class ClientHub(Part, section="client.hubs[]"):
    """A hub that this instance dials.

    Attributes:
        addr: ``host:port`` or ``[IPv6]:port``.
        name: the identity that the hub's certificate must have; empty: the host that was
            dialled must match the certificate.
        subscribe: channels to receive; empty is none.
        publish: channels to send; empty is every channel but dead letters.
    """

    addr: DialAddress = ""
    name: InstanceName = ""
    subscribe: Channels = ()
    publish: Channels = ()

    @property
    def offset_name(self) -> str:
        """What this hub is called in the names of its offset files; empty without an address."""
        return self.name or self.addr.replace("[", "").replace("]", "")

    def _conflicts(self) -> Iterator[Conflict]:
        fault = instance_name_fault(self.offset_name) if self.offset_name else None
        if fault is not None:
            yield Conflict(("addr", "name"), f"{fault}; or set the hub's name beside it")


@dataclass(frozen=True)
class ClientConfig(Part, section="client"):
    """Dialling hubs.

    Attributes:
        enabled: connect to every hub of ``hubs``.
        hubs: each with an offset file of its own, so none twice.
    """

    enabled: Flag = False
    hubs: tuple[ClientHub, ...] = ()

    def _conflicts(self) -> Iterator[Conflict]:
        for i, hub in enumerate(self.hubs):
            if self.enabled and not hub.addr:
                yield Conflict(
                    (f"hubs[{i}].addr", "enabled"),
                    "'' is not allowed while client.enabled is true; use host:port",
                )
        keys = [
            (f"hubs[{i}].{'name' if hub.name else 'addr'}", hub.offset_name)
            for i, hub in enumerate(self.hubs)
        ]
        yield from _repeated("client", keys)


def _repeated(section: str, keys: list[tuple[str, str]]) -> Iterator[Conflict]:
    first: dict[str, str] = {}
    for key, name in keys:
        if name and first.setdefault(name, key) != key:
            yield Conflict((key,), f"{name!r} is taken by {section}.{first[name]}; use each once")


@dataclass(frozen=True)
class TLSConfig(Part, section="tls"):
    """Files for mutual TLS, in PEM, with paths relative to the working directory.

    Attributes:
        cert: this instance's certificate.
        key: the private key of ``cert``.
        ca: the certificate of the authority that signed every instance's.
        crl: its list of revoked certificates; needs ``ca``.
        min_version: lowest TLS version to speak, ``1.2`` or ``1.3``.
        expiry_warn_days: warn so many days before a certificate ends; 0 warns when it has.
    """

    cert: PathName = ""
    key: PathName = ""
    ca: PathName = ""
    crl: PathName = ""
    min_version: Annotated[str, one_of("1.2", "1.3")] = "1.3"
    expiry_warn_days: Count = 30

    @property
    def configured(self) -> bool:
        """Tell whether any file is named: without one, connections are plain."""
        return bool(self.cert or self.key or self.ca or self.crl)

    def _conflicts(self) -> Iterator[Conflict]:
        if self.cert and not self.key:
            yield Conflict(("key", "cert"), "'' is not allowed while tls.cert is set; name its key")
        if self.key and not self.cert:
            yield Conflict(
                ("cert", "key"), "'' is not allowed while tls.key is set; name its certificate"
            )
        if self.crl and not self.ca:
            yield Conflict(
                ("ca", "crl"), "'' is not allowed while tls.crl is set; name the CA that signed it"
            )


@dataclass(frozen=True)
class FederationConfig(Part, section="federation"):
    """How links to other instances reconnect and fill their batches.

    Attributes:
        reconnect_base_ms: wait before the first reconnect; 0 for none.
        reconnect_max_ms: longest wait between two; where it is less than the former, it wins.
        reconnect_jitter: share of the wait that is random, from 0 to 1.
        send_buffer_messages: accepted and unused: the log is the buffer.
        max_batch_bytes: payload of one batch, unless a single record is larger; 0 is no limit.
        window_batches: batches on the way before an ack must come, 1 to 1024.
    """

    reconnect_base_ms: Milliseconds = 500
    reconnect_max_ms: Milliseconds = 60_000
    reconnect_jitter: Fraction = 0.2
    send_buffer_messages: Count = 10_000
    max_batch_bytes: Count = 65_536
    window_batches: Annotated[int, whole(1, MAX_WINDOW_BATCHES)] = 8
