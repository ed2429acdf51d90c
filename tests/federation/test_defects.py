"""The federation's defects of v0.11.0, one test or more for each: what it did, what is done here.

Numbers are those of the table in the documentation ("Defects found in v0.11.0 by running it").
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from keyop import Messenger
from keyop.clock import SYSTEM_CLOCK
from keyop.errors import ConfigError
from keyop.federation.client import Condition
from keyop.federation.stale import forget_stale_positions
from keyop.keygen import DevelopmentCertificates
from keyop.names import MAX_ID_BYTES
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.dial import dial
from keyop.transport.tls import TLSError
from keyop.wire.session import TAKEN_OVER
from tests.fakes.faulty import FaultyFs
from tests.fakes.proxy import Proxy
from tests.integration.helpers import dead_letters, offset_path
from tests.transport.certificates import Authority, Files

from .byhand import HubByHand, PeerByHand, ids, made
from .helpers import (
    TYPE,
    Instances,
    Recorder,
    append,
    audit,
    client_of,
    collect,
    end_of,
    federation_of,
    lines_of,
    numbers,
    payloads,
    stored_offset,
    wait_audit,
    wait_connected,
    wait_payloads,
    wait_until,
)

# What a v0.11.0 peer takes.
V0_11_BYTES = 65_536
PROTOCOL_ERROR, INTERNAL_ERROR = 1002, 1011


def sized(size: int, number: int) -> bytes:
    """Return a record of exactly so many bytes, with no checksum, whose payload begins so."""
    short = made([number, ""], id=f"sized-{number:08}", channel="up")
    record = made([number, "x" * (size - len(short))], id=f"sized-{number:08}", channel="up")
    assert len(record) == size
    return record


def peer_records(hub: Messenger, name: str, channel: str = "up") -> list[bytes]:
    return [line for line in lines_of(hub, channel) if json.loads(line)["origin"] == name]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed within a second or so; by default it takes a minute."""
    monkeypatch.setattr("keyop.wire.session.PING_AFTER_S", 0.2)
    monkeypatch.setattr("keyop.wire.session.DROP_AFTER_S", 0.6)
    monkeypatch.setattr("keyop.wire.session.HELLO_S", 0.3)
    monkeypatch.setattr("keyop.federation.instance._TICK_S", 0.05)


# --- 2: what is published while disconnected


def test_defect_02_published_before_the_hub_was_ever_up(instances: Instances) -> None:
    """What is published while there is no hub is sent when there is one.

    v0.11.0 mostly never sent it.
    """
    with Proxy() as proxy:
        alpha = instances.client("alpha", proxy.address, publish=["up"])
        for number in range(200):
            alpha.publish("up", TYPE, number)
        hub = instances.hub()
        proxy.target = hub.hub_addr
        assert wait_payloads(hub, "up", 200) == list(range(200))
        alpha.publish("up", TYPE, 200)
        assert wait_payloads(hub, "up", 201) == list(range(201))


def test_defect_02_published_while_cut_off_and_restarted(instances: Instances) -> None:
    """The same for what is published during an outage that the client does not survive.

    v0.11.0 did not send it after a restart either, since it sent from memory.
    """
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        alpha = instances.client("alpha", proxy.address, publish=["up"])
        wait_connected(alpha)
        alpha.publish_batch("up", numbers(0, 10))
        wait_payloads(hub, "up", 10)
        proxy.target = ""
        proxy.cut()
        alpha.publish_batch("up", numbers(10, 500))
        instances.stop(alpha)
        assert payloads(hub, "up") == list(range(10))
        proxy.target = hub.hub_addr
        instances.client("alpha", proxy.address, publish=["up"])
        assert wait_payloads(hub, "up", 500) == list(range(500))


# --- 3: the log is the queue


def test_defect_03_more_than_the_send_buffer(instances: Instances) -> None:
    """However much is published during an outage, all of it is sent.

    v0.11.0 dropped what did not fit its queue of ``send_buffer_messages``, and reported nothing.
    """
    with Proxy() as proxy:
        alpha = instances.client(
            "alpha", proxy.address, publish=["up"], federation={"send_buffer_messages": 100}
        )
        alpha.publish_batch("up", numbers(0, 12_000))
        hub = instances.hub()
        proxy.target = hub.hub_addr
        assert wait_payloads(hub, "up", 12_000) == list(range(12_000))


# --- 4: close right after publishing


def test_defect_04_close_right_after_publishing(instances: Instances) -> None:
    """What had no time to arrive before close() arrives after the next start.

    Of 5,000 messages published before a close, v0.11.0 delivered 3,132.
    """
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        alpha = instances.client("alpha", proxy.address, publish=["up"])
        wait_connected(alpha)
        proxy.stall()
        for number in range(5_000):
            alpha.publish("up", TYPE, number)
        instances.stop(alpha)
        assert payloads(hub, "up") == []
        proxy.go_on()
        instances.client("alpha", proxy.address, publish=["up"])
        assert wait_payloads(hub, "up", 5_000) == list(range(5_000))


# --- 5 and 6: large records


def test_defect_05_a_record_above_the_batch_size(instances: Instances) -> None:
    """A record larger than a batch goes alone, on the same connection as those around it.

    In v0.11.0 it wedged the link for good, and the connection leaked.
    """
    hub = instances.hub()
    alpha = instances.client("alpha", hub, publish=["up"])
    wanted = [0, "x" * 65_000, 2, "y" * 3_000_000, 4, "z" * 70_000, 6]
    alpha.publish_batch("up", [(TYPE, each) for each in wanted])
    assert wait_payloads(hub, "up", len(wanted)) == wanted
    assert client_of(alpha).connects == 1


def test_defect_05_a_record_above_the_limit_of_the_hub(instances: Instances) -> None:
    """A record that the hub cannot take is put aside, and what follows arrives.

    In v0.11.0 nothing was sent any more, however often the client reconnected.
    """
    hub = instances.hub(storage={"max_record_bytes": 4096})
    alpha = instances.client("alpha", hub, publish=["up"])
    alpha.publish("up", TYPE, 0)
    large = alpha.publish("up", TYPE, "x" * 5000)
    alpha.publish("up", TYPE, 2)
    assert wait_payloads(hub, "up", 2) == [0, 2]
    event = wait_audit(alpha, "undeliverable")
    assert (event["message_id"], event["channel"], event["peer"]) == (large, "up", "hub")
    assert event["direction"] == "outbound"
    (letter,) = dead_letters(instances.data_dir("alpha"), "up")
    assert letter["original"]["id"] == large
    assert letter["original"]["payload"] == "x" * 5000
    assert client_of(alpha).connects == 1


def test_defect_05_a_hub_of_v0_11_0(instances: Instances) -> None:
    """A hub that says nothing of its limit is sent records of up to 65,536 bytes, never more.

    A checksum that takes a record over that is left out; v0.11.0 itself sent larger records, at
    which its hub ended the connection, again and again.
    """
    hub = HubByHand(instances.tls("hub"))
    try:
        alpha = instances.client("alpha", hub.address, publish=["up"])
        hand = hub.next()
        hub.answer(hand)
        append(alpha, "up", [sized(V0_11_BYTES, 0), sized(V0_11_BYTES + 1, 1)])
        alpha.publish("up", TYPE, [2])
        (first,) = hand.take()
        assert first == sized(V0_11_BYTES, 0)
        (second,) = hand.take()
        assert json.loads(second)["payload"] == [2]
        assert wait_audit(alpha, "undeliverable")["message_id"] == "sized-00000001"
        # As large as it may be, once the checksum is left out.
        # A time has up to nine digits after the second, fewer where it ends with noughts.
        crc = len(',"crc":"00000000"')
        room = V0_11_BYTES - len(second) + crc - 8
        alpha.publish("up", TYPE, [2, "x" * (room - 3)])
        (third,) = hand.take()
        assert V0_11_BYTES - crc < len(third) <= V0_11_BYTES
        assert "crc" not in json.loads(third)
        hand.drop()
        instances.stop(alpha)
    finally:
        hub.close()


def test_defect_06_a_record_above_the_batch_size_from_the_hub(instances: Instances) -> None:
    """The same from the hub: a large record goes alone, and the connection stays.

    In v0.11.0 the peer never got anything again, and each of its reconnects leaked a descriptor.
    """
    hub = instances.hub()
    beta = instances.client("beta", hub, subscribe=["down"])
    wanted = [0, "x" * 65_000, 2, "y" * 3_000_000, 4]
    hub.publish_batch("down", [(TYPE, each) for each in wanted])
    assert wait_payloads(beta, "down", len(wanted)) == wanted
    assert client_of(beta).connects == 1


def test_defect_06_a_record_above_the_limit_of_the_peer(instances: Instances) -> None:
    """What a peer cannot take is put aside on the hub, and what follows arrives.

    In v0.11.0 the peer never got anything again.
    """
    hub = instances.hub()
    beta = instances.client("beta", hub, subscribe=["down"], storage={"max_record_bytes": 4096})
    hub.publish("down", TYPE, 0)
    large = hub.publish("down", TYPE, "x" * 5000)
    hub.publish("down", TYPE, 2)
    assert wait_payloads(beta, "down", 2) == [0, 2]
    event = wait_audit(hub, "undeliverable")
    assert (event["message_id"], event["peer"]) == (large, "beta")
    (letter,) = dead_letters(instances.data_dir("hub"), "down")
    assert letter["original"]["id"] == large
    assert [peer.undeliverable for peer in hub.stats().peers] == [1]
    assert client_of(beta).connects == 1
    # It is not met again after a reconnect.
    wait_until(
        lambda: stored_offset(instances.data_dir("hub"), "down", "fed-beta") == end_of(hub, "down")
    )
    instances.stop(beta)
    instances.client("beta", hub, subscribe=["down"], storage={"max_record_bytes": 4096})
    hub.publish("down", TYPE, 3)
    beta_dir = instances.data_dir("beta")
    assert wait_payloads(beta_dir, "down", 3) == [0, 2, 3]
    assert len(audit(hub, "undeliverable")) == 1


def test_defect_06_reconnects_leak_nothing(instances: Instances) -> None:
    """However often a peer comes back to a record that it cannot take, the hub's descriptors stay.

    v0.11.0 leaked one each time.
    """
    hub = instances.hub()
    first = PeerByHand(instances, "alpha", hub.hub_addr, subscribe=["up"])
    first.greet()
    first.drop()
    hub.publish("up", TYPE, "x" * (V0_11_BYTES + 1))
    descriptors = []
    for number in range(8):
        peer = PeerByHand(instances, "alpha", hub.hub_addr, subscribe=["up"])
        peer.greet()
        hub.publish("up", TYPE, number)
        assert peer.take_until(1)[-1] == number
        peer.drop()
        wait_until(lambda: not federation_of(hub).hub.connected)
        descriptors.append(len(os.listdir("/proc/self/fd")))
    assert descriptors[-1] <= descriptors[1]


# --- 12: stale positions


def test_defect_12_the_position_of_a_connected_idle_peer_stays(instances: Instances) -> None:
    """The sweep of stale positions spares those of peers that are connected, however idle.

    v0.11.0 deleted them after a week without traffic: the peer got nothing any more.
    """
    hub = instances.hub(hub={"fed_client_offset_ttl": 0.4})
    beta = instances.client("beta", hub, subscribe=["down"])
    hub.publish("down", TYPE, 0)
    wait_payloads(beta, "down", 1)
    position = offset_path(instances.data_dir("hub"), "down", "fed-beta")
    gone = offset_path(instances.data_dir("hub"), "down", "fed-gone")
    # One sweep after this file is old enough; the other one is no younger.
    gone.write_bytes(b"0\n")
    for path in (position, gone):
        os.utime(path, (1, 1))
    wait_until(lambda: not gone.exists(), what="a sweep")
    assert position.exists()
    hub.publish("down", TYPE, 1)
    assert wait_payloads(beta, "down", 2) == [0, 1]


def test_defect_12_the_position_of_a_peer_that_stays_away_goes(instances: Instances) -> None:
    """A peer's time counts from when it left, not from when it last got something.

    In v0.11.0 it counted from the last message, so that a peer which left after a quiet week lost
    its place within the hour.
    """
    hub = instances.hub()
    store = hub._store
    assert store is not None
    beta = instances.client("beta", hub, subscribe=["down"])
    hub.publish("down", TYPE, 0)
    wait_payloads(beta, "down", 1)
    position = offset_path(instances.data_dir("hub"), "down", "fed-beta")
    os.utime(position, (1, 1))
    assert forget_stale_positions(store, 3600, SYSTEM_CLOCK) == []
    instances.stop(beta)
    wait_until(lambda: not federation_of(hub).hub.connected)
    assert forget_stale_positions(store, 3600, SYSTEM_CLOCK) == []
    assert position.exists()
    os.utime(position, (1, 1))
    assert forget_stale_positions(store, 3600, SYSTEM_CLOCK) == ["down/beta"]
    assert not position.exists()


# --- 13: noticing that the hub is gone


def test_defect_13_an_idle_client_notices_that_the_hub_was_restarted(instances: Instances) -> None:
    """A client that has nothing to send connects again after the hub's restart.

    In v0.11.0 it never did: it would have noticed with its next message.
    """
    hub = instances.hub()
    address = hub.hub_addr
    beta = instances.client("beta", hub, subscribe=["down"])
    instances.stop(hub)
    wait_until(lambda: client_of(beta).condition is Condition.WAITING)
    hub = instances.hub(hub={"listen_addr": address})
    wait_until(lambda: client_of(beta).connects == 2)
    hub.publish("down", TYPE, 1)
    assert wait_payloads(beta, "down", 1) == [1]


def test_defect_13_an_idle_client_notices_that_the_network_is_gone(
    instances: Instances, impatient: None
) -> None:
    """A connection of which nothing comes any more is given up, by both sides, and made anew.

    v0.11.0 kept it for ever: no packet told it that the other side was gone.
    """
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        beta = instances.client("beta", proxy.address, subscribe=["down"])
        wait_connected(beta)
        hub.publish("down", TYPE, 0)
        wait_payloads(beta, "down", 1)
        proxy.abandon()
        hub.publish("down", TYPE, 1)
        assert wait_payloads(beta, "down", 2) == [0, 1]
        assert client_of(beta).connects == 2
        wait_until(lambda: len(audit(hub, "peer_disconnected")) == 1)


# --- 14: the backlog after a reconnect


@pytest.mark.parametrize("direction", ["to the peer", "to the hub"])
def test_defect_14_the_backlog_does_not_wait(instances: Instances, direction: str) -> None:
    """What has come together during an outage goes at once, without a new publish.

    In v0.11.0 it waited for the next one.
    """
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        alpha = instances.client("alpha", proxy.address, subscribe=["down"], publish=["up"])
        wait_connected(alpha)
        sender, receiver, channel = (
            (hub, alpha, "down") if direction == "to the peer" else (alpha, hub, "up")
        )
        sender.publish(channel, TYPE, 0)
        wait_payloads(receiver, channel, 1)
        proxy.target = ""
        proxy.cut()
        wait_until(lambda: client_of(alpha).condition is Condition.WAITING)
        sender.publish_batch(channel, numbers(1, 300))
        proxy.target = hub.hub_addr
        assert wait_payloads(receiver, channel, 300) == list(range(300))


# --- 15: ephemeral clients


def test_defect_15_an_ephemeral_client_has_neither_position_nor_history(
    instances: Instances,
) -> None:
    """An ephemeral client gets what is published from its handshake on, and leaves no file.

    v0.11.0 gave it a position, and sent it the backlog when it came again.
    """
    hub = instances.hub()
    hub.publish("down", TYPE, 0)
    positions = instances.data_dir("hub") / "subscribers"
    for number in (1, 3):
        seen = Recorder()
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("down", seen)
        eph.connect(10)
        hub.publish("down", TYPE, number)
        assert seen.wait(1) == [number]
        instances.stop(eph)
        hub.publish("down", TYPE, number + 1)
        assert not list(positions.rglob("*.offset"))


# --- 16: dead letters wake peers


def test_defect_16_dead_letters_reach_their_peers_at_once(instances: Instances) -> None:
    """A peer that is subscribed to dead letters is woken by each.

    In v0.11.0 they lay there until something else woke the peer.
    """
    hub = instances.hub(subscribers={"max_retries": 0})
    beta = instances.client("beta", hub, subscribe=["orders.dead-letter"])

    def fail(message: object) -> None:
        raise ValueError("no")

    hub.subscribe("orders", "billing", fail, start="earliest")
    hub.publish("orders", TYPE, {"n": 1})
    (letter,) = wait_payloads(beta, "orders.dead-letter", 1)
    assert letter["original"]["payload"] == {"n": 1}
    assert (letter["subscriber"], letter["retries"]) == ("billing", 0)


# --- 18: acknowledgements of nothing, and silence


def test_defect_18_acknowledgements_of_nothing(instances: Instances) -> None:
    """Who acknowledges what it was never sent has broken the protocol: 1002, and others go on.

    In v0.11.0 five such messages blocked the hub's receiver of that peer for ever.
    """
    hub = instances.hub()
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    peer.greet()
    for _ in range(5):
        peer.say(last_id="x")
    closed = peer.closed()
    assert (closed.code, closed.remote) == (PROTOCOL_ERROR, True)
    beta = instances.client("beta", hub, publish=["up"])
    beta.publish("up", TYPE, 1)
    assert wait_payloads(hub, "up", 1) == [1]
    assert "acknowledgement" in wait_audit(hub, "peer_disconnected")["detail"]


def test_defect_18_a_silent_peer_is_dropped(instances: Instances, impatient: None) -> None:
    """A peer that does not even answer pings is dropped; v0.11.0 kept it for ever."""
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        peer = PeerByHand(instances, "alpha", proxy.address)
        peer.greet()
        proxy.stall()
        wait_audit(hub, "peer_disconnected")
        assert not federation_of(hub).hub.connected
        peer.drop()


def test_defect_18_a_silent_stranger_is_dropped(instances: Instances, impatient: None) -> None:
    """Who connects and does not say who it is has 5 seconds; v0.11.0 waited for ever."""
    hub = instances.hub()
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    closed = peer.closed()
    assert (closed.code, closed.reason) == (4408, "handshake timeout")
    assert wait_audit(hub, "client_rejected")["detail"] == "handshake timeout"


# --- 20: sending and receiving at once


def test_defect_20_an_ephemeral_client_sends_and_receives_at_once(instances: Instances) -> None:
    """Frames of one connection never interleave, whoever sends at the same time.

    An ephemeral client of v0.11.0 crashed: its acknowledgements and its messages were written by
    two at once.
    """
    hub = instances.hub()
    seen = Recorder()
    eph = instances.ephemeral("alpha", hub)
    eph.subscribe("down", seen)
    eph.connect(10)
    count, large = 300, "x" * 300_000  # of which each takes several frames

    def publish(start: int) -> None:
        for number in range(start, count, 4):
            eph.publish("up", TYPE, [number, large if number % 50 == 0 else ""], timeout=20)

    publishing = [gevent.spawn(publish, start) for start in range(4)]
    for number in range(count):
        hub.publish("down", TYPE, [number, large if number % 50 == 0 else ""])
        gevent.sleep(0)
    gevent.joinall(publishing, raise_error=True)
    assert [payload[0] for payload in seen.wait(count, timeout=20)] == list(range(count))
    stored = [payload[0] for payload in payloads(hub, "up")]
    assert sorted(stored) == list(range(count))
    for start in range(4):
        assert [number for number in stored if number % 4 == start] == list(range(start, count, 4))


# --- 21: names from outside

BAD_NAMES = ["../../../x", "..", ".", "a/b", "", "a\x00b", "ä", "x" * 256, " up", "up\n"]


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """Nothing may appear beside what the test has made itself."""
    yield
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"hub", "alpha", "beta", "files"}, names
    for root in tmp_path.iterdir():
        if (root / "channels").is_dir():
            found = {path.name for path in (root / "channels").iterdir()}
            assert found <= {"up", "down"}, found


@pytest.mark.parametrize("name", BAD_NAMES)
def test_defect_21_the_channel_of_a_record(
    instances: Instances, untouched: None, name: str
) -> None:
    """A record whose channel is no name is skipped before the name reaches a path.

    A peer of v0.11.0 could create files wherever the hub could, with ``../../../x``.
    """
    hub = instances.hub()
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    peer.greet()
    peer.send(made(0, channel=name), made(1, channel="up", id="good"))
    assert peer.acknowledged() == "good"
    assert payloads(hub, "up") == [1]
    peer.drop()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_defect_21_the_channel_of_a_subscription(
    instances: Instances, untouched: None, name: str
) -> None:
    """A hello that names such a channel ends the connection.

    v0.11.0 made the directories for its position.
    """
    hub = instances.hub()
    peer = PeerByHand(instances, "alpha", hub.hub_addr, subscribe=["up", name])
    peer.say(**peer.fields)
    closed = peer.closed()
    assert closed.code == PROTOCOL_ERROR
    assert "subscribe" in closed.reason
    assert "subscribe" in wait_audit(hub, "client_rejected")["detail"]


@pytest.mark.parametrize("name", ["../../../x", "..", "a/b", "x" * (MAX_ID_BYTES + 1)])
def test_defect_21_the_name_in_a_hello(instances: Instances, untouched: None, name: str) -> None:
    """Without TLS a peer is who it says, so what it says goes through the same validator.

    In v0.11.0 it became a part of a path.
    """
    hub = instances.hub(tls=None, peers=["alpha"])
    connection = dial(hub.hub_addr, None).connection
    hello = {"instance_name": name, "role": "client", "version": "1", "subscribe": ["up"]}
    connection.send_text(json.dumps(hello))
    with pytest.raises(ConnectionError, match="instance_name"):
        connection.receive()
    connection.drop()
    connection.finish()


@pytest.mark.parametrize("name", ["../../../x", "..", "a/b", "a b"])
def test_defect_21_the_name_in_a_certificate(
    instances: Instances, tmp_path: Path, untouched: None, name: str
) -> None:
    """A certificate whose common name is no instance name is refused, whoever signed it.

    In v0.11.0 it became a part of a path.
    """
    authority = Authority()
    (tmp_path / "files").mkdir()
    files = Files(tmp_path / "files")
    own = authority.issue("hub")
    ca = files.write(authority.pem)
    hub = instances.hub(
        tls={"cert": files.write(own.pem), "key": files.write(own.key_pem), "ca": ca}
    )
    client = files.load(authority.issue("alpha"), authority.pem)
    bad = authority.issue(name)
    context = client.context(SERVER_AUTH)
    context.use_certificate(bad.certificate)
    context.use_privatekey(bad.key)
    with pytest.raises(TLSError):
        dial(hub.hub_addr, context)
    assert "common name" in wait_audit(hub, "client_rejected")["detail"]
    # Nor can an instance have one: what it says names the file.
    with pytest.raises(ConfigError, match="common name"):
        files.load(bad, authority.pem)


# --- 22: a hub that is down


def test_defect_22_a_client_starts_while_its_hub_is_down(instances: Instances) -> None:
    """A client starts at once, works locally, and connects when the hub is there.

    v0.11.0 did not start.
    """
    hub = instances.hub()
    address = hub.hub_addr
    instances.stop(hub)
    begun = time.monotonic()
    alpha = instances.client("alpha", address, subscribe=["down"], publish=["up"])
    seen = collect(alpha, "up")
    alpha.publish("up", TYPE, 0)
    assert seen.wait(1) == [0]
    assert time.monotonic() - begun < 2
    wait_until(lambda: client_of(alpha).condition is Condition.WAITING)
    hub = instances.hub(hub={"listen_addr": address})
    wait_connected(alpha)
    assert wait_payloads(hub, "up", 1) == [0]


# --- 25: deduplication


def test_defect_25_what_was_seen_is_known_after_a_restart(instances: Instances) -> None:
    """A batch that is sent again after the hub's restart is acknowledged, and not stored twice.

    v0.11.0 had forgotten.
    """
    batch = [made(number, channel="up") for number in range(50)]
    hub = instances.hub()
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    peer.greet()
    peer.send(*batch)
    peer.acknowledged()
    peer.drop()
    instances.stop(hub)
    hub = instances.hub()
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    peer.greet()
    peer.send(*batch)
    assert peer.acknowledged() == ids(batch)[-1]
    assert payloads(hub, "up") == list(range(50))
    peer.drop()


def test_defect_25_the_least_recently_used_id_is_forgotten_first(instances: Instances) -> None:
    """An id that came again counts as used: it stays longer than those that did not.

    v0.11.0 forgot the oldest, however often it had come since.
    """
    hub = instances.hub(dedup={"seen_id_lru_size": 3})
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    peer.greet()
    for name in ["a", "b", "c", "a", "d", "a", "b"]:
        peer.send(made(name, channel="up", id=name))
        assert peer.acknowledged() == name
    # With d in, b was the least recently used one of a, b and c.
    assert payloads(hub, "up") == ["a", "b", "c", "d", "b"]
    peer.drop()


# --- 26: what a hub received goes on


def test_defect_26_a_relay_passes_on_what_it_received(instances: Instances) -> None:
    """What an instance has of its clients goes to its own hub, and nothing comes back.

    v0.11.0 sent upwards only what was published on the relay itself.
    """
    top = instances.hub("hub", peers=["hub-2"])
    relay = instances.start(
        instances.hub_settings(
            "hub-2",
            peers=["alpha"],
            client={
                "enabled": True,
                "hubs": [{"addr": top.hub_addr, "publish": ["up"], "subscribe": ["up"]}],
            },
        )
    )
    wait_connected(relay)
    alpha = instances.client("alpha", relay, subscribe=["up"], publish=["up"])
    alpha.publish("up", TYPE, 1)
    assert wait_payloads(top, "up", 1) == [1]
    top.publish("up", TYPE, 2)
    assert wait_payloads(alpha, "up", 2) == [1, 2]
    relay.publish("up", TYPE, 3)
    assert wait_payloads(alpha, "up", 3) == [1, 2, 3]
    assert wait_payloads(top, "up", 3) == [1, 2, 3]
    # Everything that any of them could still send has arrived, and was stored once.
    assert payloads(relay, "up") == [1, 2, 3]
    for instance in (top, relay, alpha):
        assert not audit(instance, "loop_dropped")
    routes = [json.loads(line).get("route") for line in lines_of(top, "up")]
    assert routes == [["hub-2", "hub"], None, ["hub-2", "hub"]] or routes == [
        ["hub-2", "hub"],
        None,
        ["hub"],
    ]


# --- 27: two connections of one name


def test_defect_27_a_second_connection_takes_over(instances: Instances) -> None:
    """Of two connections with one name, the newer one is served and the older one is closed.

    In v0.11.0 both got everything.
    """
    hub = instances.hub()
    first = PeerByHand(instances, "alpha", hub.hub_addr, subscribe=["down"])
    first.greet()
    hub.publish("down", TYPE, 0)
    assert first.take_until(1) == [0]
    wait_until(
        lambda: stored_offset(instances.data_dir("hub"), "down", "fed-alpha") == end_of(hub, "down")
    )
    second = PeerByHand(instances, "alpha", hub.hub_addr, subscribe=["down"])
    second.greet()
    closed = first.closed()
    assert (closed.code, closed.remote) == (TAKEN_OVER, True)
    hub.publish("down", TYPE, 1)
    assert second.take_until(1) == [1]
    second.drop()


# --- 30: a write that failed


def test_defect_30_what_was_not_written_is_not_acknowledged(instances: Instances) -> None:
    """A batch that cannot be written is not acknowledged, and comes again until it can.

    v0.11.0 acknowledged it: it was lost.
    """
    fs = FaultyFs()
    hub = instances.start(instances.hub_settings(), fs=fs)
    alpha = instances.client("alpha", hub, publish=["up"])
    alpha.publish("up", TYPE, 0)
    wait_payloads(hub, "up", 1)
    fault = fs.fail("write", errno.EIO, times=3, path_contains="channels/up")
    alpha.publish_batch("up", numbers(1, 100))
    wait_until(lambda: fault.hits == 3, what="the failures")
    assert wait_payloads(hub, "up", 100) == list(range(100))
    assert client_of(alpha).connects > 1
    ended = [each["detail"] for each in audit(alpha, "peer_disconnected")]
    assert ended[:1] == ["closed (1011: cannot write)"]


def test_defect_30_a_peer_by_hand(instances: Instances) -> None:
    """The same byte by byte: the connection is closed with 1011 in place of an acknowledgement."""
    fs = FaultyFs()
    hub = instances.start(instances.hub_settings(), fs=fs)
    batch = [made(number, channel="up") for number in range(5)]
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    peer.greet()
    fs.fail("write", errno.EIO, path_contains="channels/up")
    peer.send(*batch)
    closed = peer.closed()
    assert (closed.code, closed.remote) == (INTERNAL_ERROR, True)
    assert payloads(hub, "up") == []
    again = PeerByHand(instances, "alpha", hub.hub_addr)
    again.greet()
    again.send(*batch)
    again.acknowledged()
    assert payloads(hub, "up") == list(range(5))
    again.drop()


# --- 31: policy before deduplication


def test_defect_31_a_violation_does_not_poison_the_id(instances: Instances) -> None:
    """A record that its sender may not send does not count as seen when another one sends it.

    In v0.11.0 whoever guessed or knew an id could keep its record from everybody.
    """
    hub = instances.hub(peers={"alpha": {"publish": ["other"]}, "beta": {"publish": ["up"]}})
    alpha = PeerByHand(instances, "alpha", hub.hub_addr)
    beta = PeerByHand(instances, "beta", hub.hub_addr)
    for peer in (alpha, beta):
        peer.greet()
    record = made(1, channel="up", id="known")
    alpha.send(record)
    assert alpha.acknowledged() == "known"
    event = wait_audit(hub, "policy_violation")
    assert (event["peer"], event["channel"], event["message_id"]) == ("alpha", "up", "known")
    beta.send(record)
    assert beta.acknowledged() == "known"
    assert payloads(hub, "up") == [1]
    alpha.drop()
    beta.drop()


# --- 32: zeros, and the TLS version


def test_defect_32_no_deduplication(instances: Instances) -> None:
    """``seen_id_lru_size: 0`` remembers nothing; in v0.11.0 it was the default of 100,000."""
    hub = instances.hub(dedup={"seen_id_lru_size": 0})
    peer = PeerByHand(instances, "alpha", hub.hub_addr)
    peer.greet()
    for _ in range(2):
        peer.send(made(1, channel="up", id="same"))
        assert peer.acknowledged() == "same"
    assert payloads(hub, "up") == [1, 1]
    peer.drop()


def test_defect_32_no_limit_of_a_batch(instances: Instances) -> None:
    """``max_batch_bytes: 0`` is no limit; in v0.11.0 it was the default of 65,536."""
    hub = instances.hub(federation={"max_batch_bytes": 0})
    peer = PeerByHand(instances, "alpha", hub.hub_addr, subscribe=["down"])
    peer.greet()
    hub.publish_batch("down", [(TYPE, "x" * 1000)] * 1000)
    sizes = []
    while sum(sizes) < 1000:
        sizes.append(len(peer.take()))
    assert max(sizes) * 1000 > 65_536
    peer.drop()


def test_defect_32_no_wait_before_reconnecting(instances: Instances) -> None:
    """``reconnect_base_ms: 0`` tries again at once; in v0.11.0 it was the default of 500."""
    hub = instances.hub()
    with Proxy(hub.hub_addr) as proxy:
        alpha = instances.client(
            "alpha",
            proxy.address,
            federation={"reconnect_base_ms": 0, "reconnect_max_ms": 60_000},
        )
        wait_connected(alpha)
        for number in range(2, 6):
            proxy.cut()
            wait_until(lambda wanted=number: client_of(alpha).connects == wanted, 2)


def test_defect_32_positions_that_never_go(instances: Instances) -> None:
    """``fed_client_offset_ttl: 0`` never forgets a position; in v0.11.0 it was a week."""
    hub = instances.hub(hub={"fed_client_offset_ttl": 0})
    names = [greenlet.name for greenlet in federation_of(hub)._greenlets]
    assert "keyop-federation-stale" not in names
    other = instances.hub("hub-2")
    names = [greenlet.name for greenlet in federation_of(other)._greenlets]
    assert "keyop-federation-stale" in names


@pytest.mark.parametrize("min_version", ["1.2", "1.3"])
def test_defect_32_the_lowest_tls_version(
    instances: Instances, certificates: DevelopmentCertificates, min_version: str
) -> None:
    """``tls.min_version`` is obeyed; v0.11.0 read it and spoke 1.3 only."""
    hub = instances.hub(tls={**instances.tls("hub"), "min_version": min_version})
    context = Credentials.load(**instances.tls("alpha"), min_version="1.2").context(SERVER_AUTH)
    context.set_max_proto_version(0x0303)
    if min_version == "1.3":
        with pytest.raises(TLSError, match="version"):
            dial(hub.hub_addr, context)
        wait_audit(hub, "client_rejected")
    else:
        connection = dial(hub.hub_addr, context).connection
        connection.drop()
        connection.finish()
