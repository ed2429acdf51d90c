"""``Messenger.stats().peers``: hubs and clients as they stand, seen from both sides."""

from __future__ import annotations

import socket
from typing import Any

from keyop import Messenger
from keyop.stats import PeerStats
from tests.fakes.proxy import Proxy
from tests.integration.helpers import write_offset

from .helpers import (
    TYPE,
    Instances,
    end_of,
    numbers,
    wait_payloads,
    wait_until,
)

SOON = 20.0


def peers(messenger: Messenger) -> dict[str, PeerStats]:
    """Return what is told of each peer, by name; no name is there twice."""
    found = {each.name: each for each in messenger.stats().peers}
    assert len(found) == len(messenger.stats().peers)
    return found


def wait_peer(messenger: Messenger, name: str, wanted: Any) -> PeerStats:
    """Wait until something is true of a peer."""

    def found() -> PeerStats | None:
        peer = peers(messenger).get(name)
        return peer if peer is not None and wanted(peer) else None

    peer: PeerStats = wait_until(found, SOON, f"{name}: {peers(messenger).get(name)}")
    return peer


def nowhere() -> str:
    """Return an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return f"127.0.0.1:{gone.getsockname()[1]}"


def test_without_federation(instances: Instances) -> None:
    messenger = instances.start(instances.settings("alpha"))
    assert messenger.stats().peers == ()


def test_a_hub_and_its_client(instances: Instances) -> None:
    """Each sees the other: who it is, where, since when, and what has gone which way."""
    hub = instances.hub()
    client = instances.client("alpha", hub, subscribe=["down"], publish=["up"])
    client.publish_batch("up", numbers(0, 5))
    wait_payloads(hub, "up", 5)
    hub.publish_batch("down", numbers(0, 3))
    wait_payloads(client, "down", 3)
    seen = wait_peer(client, "hub", lambda peer: peer.backlog_bytes == 0 and peer.sent == 5)
    assert (seen.kind, seen.state, seen.address) == ("hub", "connected", hub.hub_addr)
    assert seen.detail == ""
    assert (seen.sent, seen.received) == (5, 3)
    assert (seen.reconnects, seen.failures) == (0, 0)
    assert seen.connected_s is not None
    assert seen.connected_s > 0
    assert seen.round_trip_s is not None
    assert 0 < seen.round_trip_s < SOON
    there = wait_peer(hub, "alpha", lambda peer: peer.backlog_bytes == 0 and peer.sent == 3)
    assert (there.kind, there.state) == ("client", "connected")
    assert there.address.startswith("127.0.0.1:")
    assert there.address != hub.hub_addr
    assert (there.sent, there.received) == (3, 5)
    assert there.position_id == "fed-alpha"
    assert there.round_trip_s is not None


def test_an_ephemeral_client(instances: Instances) -> None:
    """It has no position; when it has gone, nothing is left of it."""
    hub = instances.hub(peers=("eph1",))
    ephemeral = instances.ephemeral("eph1", hub, subscribe=["down"])
    ephemeral.connect(SOON)
    ephemeral.publish("up", TYPE, 1)
    hub.publish("down", TYPE, 1)
    seen = wait_peer(hub, "eph1", lambda peer: peer.sent == peer.received == 1)
    assert (seen.kind, seen.state, seen.position_id) == ("ephemeral", "connected", None)
    instances.stop(ephemeral)
    wait_until(lambda: peers(hub) == {}, SOON, "it to be gone")


def test_a_client_that_is_away(instances: Instances) -> None:
    """What waits for it is told, whether it has been seen by this process or not."""
    hub = instances.hub()
    client = instances.client("alpha", hub, subscribe=["down"])
    instances.stop(client)
    wait_peer(hub, "alpha", lambda peer: peer.state == "away")
    begin = end_of(hub, "down")
    hub.publish_batch("down", numbers(0, 4))
    write_offset(instances.data_dir("hub"), "down", "fed-long-ago", 0)
    found = peers(hub)
    assert set(found) == {"alpha", "long-ago"}
    away = found["alpha"]
    assert (away.kind, away.state, away.address) == ("client", "away", "")
    assert away.connected_s is away.round_trip_s is None
    assert away.backlog_bytes == end_of(hub, "down") - begin > 0
    back = instances.client("alpha", hub, subscribe=["down"])
    wait_payloads(back, "down", 4)
    seen = wait_peer(hub, "alpha", lambda peer: peer.backlog_bytes == 0)
    assert (seen.state, seen.sent) == ("connected", 4)


def test_a_hub_that_was_never_there(instances: Instances) -> None:
    """It goes by its address, with the reason; what is published waits, and is counted."""
    address = nowhere()
    before = instances.start(instances.settings("alpha"))
    before.publish("up", TYPE, "before there was a hub")
    begin = end_of(before, "up")
    instances.stop(before)
    client = instances.client("alpha", address)
    client.publish_batch("up", numbers(0, 3))
    seen = wait_peer(
        client, address, lambda peer: peer.failures >= 2 and peer.detail and peer.backlog_bytes
    )
    assert seen.kind == "hub"
    assert seen.state in ("waiting", "connecting")
    assert seen.backlog_bytes == end_of(client, "up") - begin
    assert seen.connected_s is None
    assert (seen.reconnects, seen.sent) == (0, 0)


def test_a_name_of_the_configuration(instances: Instances) -> None:
    """A hub that was not reached yet goes by the name that it must have."""
    address = nowhere()
    client = instances.client("alpha", address, hub_name="hub")
    assert peers(client)["hub"].position_id == "fedout-hub"


def test_refused(instances: Instances) -> None:
    """For good, and why; the hub does not list it."""
    hub = instances.hub(peers=("beta",))
    client = instances.start(instances.client_settings("alpha", hub.hub_addr))
    seen = wait_peer(client, hub.hub_addr, lambda peer: peer.state == "refused")
    assert "not in allowlist" in seen.detail
    assert seen.connected_s is None
    assert peers(hub) == {}


def test_a_connection_that_breaks(instances: Instances) -> None:
    """It is counted, and the figures of the connection begin anew."""
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        client = instances.client("alpha", proxy.address, hub_name="hub")
        wait_peer(client, "hub", lambda peer: peer.state == "connected")
        client.publish("up", TYPE, 1)
        wait_peer(client, "hub", lambda peer: peer.sent == 1 and peer.backlog_bytes == 0)
        proxy.cut()
        seen = wait_peer(
            client, "hub", lambda peer: peer.state == "connected" and peer.reconnects == 1
        )
        assert seen.failures >= 1
        assert (seen.sent, seen.detail) == (0, "")
        instances.stop(client)


def test_a_hub_that_holds_back(instances: Instances) -> None:
    """What has been sent and not acknowledged is backlog still."""
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        client = instances.client("alpha", proxy.address, hub_name="hub")
        wait_peer(client, "hub", lambda peer: peer.state == "connected")
        proxy.stall()
        client.publish_batch("up", numbers(0, 3))
        seen = wait_peer(client, "hub", lambda peer: peer.backlog_bytes > 0)
        assert seen.backlog_bytes == end_of(client, "up")
        proxy.go_on()
        wait_peer(client, "hub", lambda peer: peer.backlog_bytes == 0)
        instances.stop(client)
