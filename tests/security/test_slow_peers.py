"""Who takes his time, or never reads: cut off or bounded, and a good peer is served meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from keyop import Messenger
from keyop.federation import instance
from keyop.transport import accept, strangers, websocket
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.wire import session
from tests.federation.helpers import (
    TYPE,
    Instances,
    federation_of,
    wait_audit,
    wait_payloads,
)
from tests.federation.rawpeers import RawGuest
from tests.federation.test_hostile import client_hello
from tests.transport.helpers import CONTINUATION, PING, PONG, TEXT, spawned

from .helpers import PATIENCE_S, connect, entering, guest, serves

DEADLINE_S = 1.0
HEAD = b"GET / HTTP/1.1\r\nHost: hub\r\nX-Long: "


class Dripping:
    """A socket on which one byte of something is sent at a time, whatever it is told to send."""

    def __init__(self, plain: Any, data: Iterator[int]) -> None:
        self._plain = plain
        self._data = data
        self.recv, self.close = plain.recv, plain.close

    def sendall(self, _: bytes) -> None:
        self._plain.sendall(bytes([next(self._data)]))


@pytest.fixture
def hub(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> Messenger:
    """One whose deadlines a test can wait for."""
    for module, name in ((strangers, "HANDSHAKE_S"), (accept, "UPGRADE_S")):
        monkeypatch.setattr(module, name, DEADLINE_S)
    monkeypatch.setattr(session, "HELLO_S", DEADLINE_S)
    monkeypatch.setattr(instance, "_TICK_S", 0.05)
    monkeypatch.setattr(websocket, "DRAIN_S", 0.2)
    return instances.hub()


def is_cut_off(instances: Instances, hub: Messenger, stream: Any, piece: bytes) -> None:
    """Send a piece again and again until the hub has had enough; serve somebody meanwhile."""
    begun = time.monotonic()

    def drip() -> None:
        try:
            while True:
                stream.sendall(piece)
                gevent.sleep(0.02)
        except OSError:
            pass

    def read() -> None:
        try:
            while stream.recv(1000):
                pass
        except OSError:
            pass

    try:
        with spawned(drip), spawned(read) as reading:
            serves(instances, hub, DEADLINE_S)
            assert not reading.ready()
            reading.join(DEADLINE_S + PATIENCE_S)
            assert reading.ready()
        assert time.monotonic() - begun > DEADLINE_S / 2
    finally:
        stream.close()


def test_a_slow_tls_handshake(instances: Instances, hub: Messenger) -> None:
    """A client's hello that comes byte by byte."""
    context = Credentials.load(**instances.tls("alpha")).context(SERVER_AUTH)
    hello = iter(client_hello(context))
    plain = connect(hub.hub_addr)
    plain.sendall(bytes([next(hello)]))
    is_cut_off(instances, hub, Dripping(plain, hello), b"")
    assert "TLS handshake" in wait_audit(hub, "client_rejected")["detail"]


def test_slow_http_headers(instances: Instances, hub: Messenger) -> None:
    """A header that never ends."""
    secured = entering(instances, "alpha")(connect(hub.hub_addr))
    secured.sendall(HEAD)
    is_cut_off(instances, hub, secured, b"x")
    assert wait_audit(hub, "client_rejected")["detail"] == "no upgrade in time"


@pytest.mark.parametrize("opcode", [CONTINUATION, PING])
def test_a_slow_hello(instances: Instances, hub: Messenger, opcode: int) -> None:
    """A hello that comes in pieces, or pings in its place: no sign of life puts it off."""
    peer = RawGuest(hub.hub_addr, entering(instances, "alpha"))
    if opcode == CONTINUATION:
        peer.send(TEXT, b"{", fin=False)
    piece = bytes([opcode, 0x81]) if opcode == CONTINUATION else bytes([0x80 | opcode, 0x81])
    is_cut_off(instances, hub, peer.stream, piece + b"\0\0\0\0 ")
    assert wait_audit(hub, "client_rejected")["detail"] == "handshake timeout"


def test_slow_reads(instances: Instances, hub: Messenger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who never reads what it subscribed to holds up nobody, and is dropped when silent."""
    monkeypatch.setattr(session, "PING_AFTER_S", 0.2)
    monkeypatch.setattr(session, "DROP_AFTER_S", 0.8)
    with guest(instances, hub, "alpha", "orders", small=True):
        beta = instances.client("beta", hub, ["orders"], ["none"])
        for start in range(0, 400, 20):
            hub.publish_batch("orders", [(TYPE, "x" * 5000)] * 20)
            wait_payloads(beta, "orders", start + 20)
        found = wait_audit(hub, "peer_disconnected")
        assert (found["peer"], "closed (1006" in found["detail"]) == ("alpha", True)


def test_reads_of_nothing_with_signs_of_life(
    instances: Instances, hub: Messenger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who never reads and says that it lives may stay: one window is all that it holds."""
    monkeypatch.setattr(session, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(session, "DROP_AFTER_S", 0.3)
    with guest(instances, hub, "alpha", "orders", small=True) as alpha:
        hub.publish_batch("orders", [(TYPE, "x" * 60_000)] * 200)
        (link,) = federation_of(hub)._instance.links  # type: ignore[union-attr] # it runs
        begun = time.monotonic()
        while time.monotonic() - begun < 1:
            alpha.send(PONG, b"")
            gevent.sleep(0.05)
            assert link.open
            assert link.session.under_way <= hub.config.federation.window_batches
        serves(instances, hub, 1)
    wait_audit(hub, "peer_disconnected")
