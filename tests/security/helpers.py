"""What these tests share: peers by hand with a certificate, and a good one among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gevent import socket
from OpenSSL import SSL

from keyop import EphemeralMessenger, Messenger
from keyop.transport.tls import TLSSocket
from tests.federation.byhand import HubByHand
from tests.federation.helpers import TYPE, Instances, data_dir_of
from tests.federation.rawpeers import RawGuest
from tests.reliability.hub_child import HubChild, securing
from tests.transport.certificates import Issued

# Of a socket that nobody reads, so that who sends to it soon has to wait.
SMALL_BUFFER = 4 << 10
MIB = 1 << 20
PATIENCE_S = 10.0

Wrap = Callable[[Any], Any]


def entering(instances: Instances, name: str, small: bool = False) -> Wrap:
    """Return what puts TLS around a socket, with the certificate of that name."""
    return narrowed(securing(instances.tls(name))) if small else securing(instances.tls(name))


def narrowed(wrap: Wrap) -> Wrap:
    """Return the same for a socket that takes next to nothing before it is read."""

    def narrow(plain: Any) -> Any:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        return wrap(plain)

    return narrow


def connect(address: str) -> socket.socket:
    """Return a plain connection, by hand."""
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


@contextmanager
def guest(
    instances: Instances,
    hub: Messenger,
    name: str,
    *subscribe: str,
    small: bool = False,
    **hello: Any,
) -> Iterator[RawGuest]:
    """Give a peer by hand that was let in under its own name, unless its hello says another."""
    peer = RawGuest(hub.hub_addr, entering(instances, name, small))
    try:
        peer.greet(hello.pop("instance_name", name), *subscribe, **hello)
        yield peer
    finally:
        peer.close()


@contextmanager
def stranger(address: str, wrap: Wrap) -> Iterator[RawGuest]:
    """Give a connection that was upgraded, and has not said hello."""
    peer = RawGuest(address, wrap)
    try:
        yield peer
    finally:
        peer.close()


@contextmanager
def hub_by_hand(tls: dict[str, str]) -> Iterator[HubByHand]:
    """Give a hub that does as the test says. To be left before its clients close."""
    hub = HubByHand(tls)
    try:
        yield hub
    finally:
        hub.close()


def shown(issued: Issued | None, first: int = 0, last: int = 0) -> SSL.Context:
    """Return a client's context that shows this certificate, whatever it is, and believes anybody.

    Args:
        first, last: the lowest and the highest version that it speaks; 0 for OpenSSL's own.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    context.set_min_proto_version(first)
    context.set_max_proto_version(last)
    if issued is not None:
        context.use_certificate(issued.certificate)
        context.use_privatekey(issued.key)
    return context


def shaking_hands(context: SSL.Context, session: Any = None) -> Wrap:
    """Return what puts TLS around a socket, with a context of any kind, and a session of before."""

    def secure(plain: Any) -> TLSSocket:
        secured = TLSSocket(context, plain, server_side=False)
        if session is not None:
            secured._ssl.set_session(session)
        secured.handshake()
        return secured

    return secure


def serves(instances: Instances, hub: Messenger, within_s: float = PATIENCE_S) -> None:
    """Insist that a good peer, beta, is let in, and what it publishes is stored, in time."""
    good = instances.ephemeral("beta", hub)
    good.publish("good", TYPE, "good", timeout=within_s)
    instances.stop(good)


def child_serves(hub: HubChild, name: str, within_s: float = PATIENCE_S) -> None:
    """The same of a hub in another process."""
    with EphemeralMessenger(hub.address, tls=hub.tls(name)) as good:
        good.publish("good", TYPE, "good", timeout=within_s)


def made_of(hub: Messenger | Path) -> set[str]:
    """Return every channel and every position of a data directory, as paths in it."""
    data_dir = hub if isinstance(hub, Path) else data_dir_of(hub)
    found = [*data_dir.glob("channels/*"), *data_dir.glob("subscribers/*/*.offset")]
    return {str(each.relative_to(data_dir)) for each in found}


def paths(directory: Path) -> set[str]:
    """Return every path below a directory."""
    return {str(each.relative_to(directory)) for each in directory.rglob("*")}
