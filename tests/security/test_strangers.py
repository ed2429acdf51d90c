"""Who has not said who he is: what he can make a hub hold is bounded, whatever he sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest

from tests.federation.helpers import (
    Instances,
    wait_audit,
    wait_until,
)
from tests.federation.rawpeers import RawGuest
from tests.reliability.hub_child import HubChild
from tests.transport.certificates import Authority, Files
from tests.transport.helpers import CONTINUATION, PING, TEXT, Hand

from .helpers import (
    MIB,
    PATIENCE_S,
    child_serves,
    connect,
    entering,
    shaking_hands,
    shown,
    stranger,
)

PLACES = 16
COUNT = 64
# What so many strangers may cost a hub, with all that TLS keeps for each.
MOST_BYTES = 6 * MIB
HEAD = b"GET / HTTP/1.1\r\nHost: hub\r\nX-Long: "

# Opens connections to an address, as a peer or as none, and returns what keeps each open.
Come = Callable[[HubChild], Any]


def send_all_that_goes(stream: Any, data: bytes) -> Any:
    """Send as much as the other side takes, before it ends the connection or stops reading."""
    with gevent.Timeout(0.5, False):
        try:
            stream.sendall(data)
        except OSError:
            pass
    return stream


def silent(hub: HubChild) -> Any:
    return connect(hub.address)


def half_handshake(hub: HubChild) -> Any:
    """A client's hello of 16 KiB of which the last byte does not come, again and again."""
    return send_all_that_goes(connect(hub.address), b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" * 1800)


def long_head(hub: HubChild) -> Any:
    secured = hub.securing("stranger")(connect(hub.address))
    return send_all_that_goes(secured, HEAD + b"x" * (16 << 10))


def many_headers(hub: HubChild) -> Any:
    secured = hub.securing("stranger")(connect(hub.address))
    return send_all_that_goes(secured, HEAD + b"\r\nX:" * (5 << 10))


def half_hello(hub: HubChild) -> Any:
    """A hello in fragments that does not end."""
    peer = RawGuest(hub.address, hub.securing("stranger"))
    peer.send(TEXT, b"{", fin=False)
    for _ in range(15):
        send_all_that_goes(peer.stream, b"")
        try:
            peer.send(CONTINUATION, b" " * 1000, fin=False)
        except OSError:
            break
    return peer


KINDS = [silent, half_handshake, long_head, many_headers, half_hello]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubChild]:
    """A hub in a process of its own, whose memory can be measured."""
    directory = tmp_path_factory.mktemp("hub")
    with HubChild(directory, ["beta", "stranger"], max_pending=PLACES) as hub:
        for _ in range(3):  # what the first ones load is nobody's cost
            child_serves(hub, "beta")
            long_head(hub).close()
        yield hub


@pytest.fixture
def idle(child: HubChild) -> int:
    """How many descriptors it has when nobody is there; waited for."""
    seen = [child.descriptors()]

    def settled() -> bool:
        gevent.sleep(0.05)
        seen.append(child.descriptors())
        return seen[-1] == seen[-2]

    wait_until(settled)
    return seen[-1]


class TestMemory:
    """What a connection can make a hub hold before its hello was accepted."""

    @pytest.mark.parametrize("come", KINDS, ids=lambda come: come.__name__)
    def test_is_bounded(self, child: HubChild, idle: int, come: Come) -> None:
        """However many come, so many have a place, each costs little, and a good one is let in."""
        before = child.forget_peak()
        with ExitStack() as leaving:
            for _ in range(COUNT):
                leaving.callback(come(child).close)
            wait_until(lambda: child.descriptors() <= idle + PLACES)
            assert child.peak() - before < MOST_BYTES
            child_serves(child, "beta", 2)

    @pytest.mark.parametrize("upgraded", [False, True])
    def test_ends_at_16_kib(self, instances: Instances, upgraded: bool) -> None:
        """What comes before the hello is accepted has so many bytes in all, however it comes."""
        hub = instances.hub()
        if upgraded:
            with stranger(hub.hub_addr, entering(instances, "alpha")) as peer:
                for _ in range(17):
                    peer.send(PING, b"x" * 100)
                    peer.send(TEXT if not _ else CONTINUATION, b" " * 900, fin=False)
                assert peer.closed()[0] == 1009
        else:
            secured = entering(instances, "alpha")(connect(hub.hub_addr))
            with gevent.Timeout(PATIENCE_S, AssertionError("it goes on")):
                send_all_that_goes(secured, HEAD + b"x" * (17 << 10))
                assert Hand(secured, True).at_end()
            secured.close()
        detail = wait_audit(hub, "client_rejected")["detail"]
        assert detail.endswith("too many bytes before the handshake was done")

    def test_of_a_chain_of_certificates(
        self, instances: Instances, files: Files, authority: Authority
    ) -> None:
        """More certificates than any chain has are not read, whoever they are from."""
        hub = instances.hub(tls=files.tls(authority.issue("hub"), authority))
        context = shown(authority.issue("alpha"))
        extra = Authority("another").issue("x" * 60, hosts=["x" * 60] * 400).certificate
        for _ in range(10):
            context.add_extra_chain_cert(extra)
        with pytest.raises((OSError, EOFError)):
            RawGuest(hub.hub_addr, shaking_hands(context))
        assert "excessive message size" in wait_audit(hub, "client_rejected")["detail"]
