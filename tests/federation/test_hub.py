"""The hub: who is let in, what each is sent and may send, and that each delays itself only."""

from __future__ import annotations

import base64
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import Config, ConfigError, Messenger
from keyop.clock import SYSTEM_CLOCK
from keyop.config import AllowedPeer, HubConfig
from keyop.federation.policy import Policy
from keyop.federation.stale import forget_stale_positions
from keyop.storage.store import Store
from keyop.transport.websocket import GOING_AWAY, INTERNAL_ERROR, WebSocketClosedError
from keyop.wire.session import NOT_ALLOWED, TAKEN_OVER
from tests.fakes.faulty import FaultyFs
from tests.fakes.proxy import Proxy
from tests.integration.helpers import Worker, dead_letters, offset_path, record, write_offset
from tests.transport.helpers import PING, PONG

from .byhand import PeerByHand, ids, made
from .helpers import (
    TYPE,
    Instances,
    Recorder,
    append,
    audit,
    client_of,
    end_of,
    federation_of,
    lines_of,
    numbers,
    payloads,
    said,
    stored_offset,
    wait_audit,
    wait_connected,
    wait_payloads,
    wait_until,
)
from .rawpeers import raw_guest

CHANNELS = ("a", "b", "c")
# Long enough for a machine that is busy, short enough to be sat out.
PING_S, DROP_S = 0.2, 1.5


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed within a second or two; by default it takes a minute."""
    monkeypatch.setattr("keyop.wire.session.PING_AFTER_S", PING_S)
    monkeypatch.setattr("keyop.wire.session.DROP_AFTER_S", DROP_S)
    monkeypatch.setattr("keyop.federation.instance._TICK_S", 0.05)


def connected_names(hub: Messenger) -> list[str]:
    running = federation_of(hub).hub
    assert running is not None
    return sorted(peer.name for peer in running.connected)


def positions_of(hub: Messenger, peer: str) -> list[str]:
    """Return the channels in which a hub has a position of a peer."""
    found = Path(hub.config.storage.data_dir).glob(f"subscribers/*/fed-{peer}.offset")
    return sorted(path.parent.name for path in found)


def greeted(instances: Instances, name: str, hub: Messenger, **hello: Any) -> PeerByHand:
    peer = PeerByHand(instances, name, hub.hub_addr, **hello)
    peer.greet()
    return peer


# --- who is let in


class TestAllowlist:
    def test_who_is_not_in_it(self, instances: Instances) -> None:
        """It is closed with 4403 before the hub says who it is; nothing is made for it."""
        hub = instances.hub()
        peer = PeerByHand(instances, "stranger", hub.hub_addr, subscribe=["down"])
        with pytest.raises(WebSocketClosedError) as caught:
            peer.greet()
        assert (caught.value.code, caught.value.reason) == (NOT_ALLOWED, "not in allowlist")
        peer.drop()
        event = wait_audit(hub, "client_rejected")
        assert (event["peer"], event["detail"]) == ("stranger", "not in allowlist")
        assert event["peer_addr"].startswith("127.0.0.1:")
        assert positions_of(hub, "stranger") == []
        assert connected_names(hub) == []

    def test_the_certificate_says_who_it_is(self, instances: Instances) -> None:
        """Whatever a peer says of itself: neither more nor less is allowed for it."""
        hub = instances.hub()
        liar = PeerByHand(instances, "stranger", hub.hub_addr, instance_name="alpha")
        liar.say(**liar.fields)
        assert liar.closed().code == NOT_ALLOWED
        peer = greeted(instances, "alpha", hub, instance_name="stranger")
        assert connected_names(hub) == ["alpha"]
        peer.drop()

    def test_an_empty_one(self, instances: Instances) -> None:
        hub = instances.hub(peers=[])
        peer = PeerByHand(instances, "alpha", hub.hub_addr)
        peer.say(**peer.fields)
        assert peer.closed().code == NOT_ALLOWED

    def test_what_is_noted(self, instances: Instances) -> None:
        """Coming and going stand in the audit log, with name and address."""
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub)
        event = wait_audit(hub, "client_connected")
        assert event["peer"] == "alpha"
        peer.connection.close(1000, "done")
        peer.drop()
        assert wait_audit(hub, "peer_disconnected")["peer_addr"] == event["peer_addr"]
        wait_until(lambda: connected_names(hub) == [])


def policy(deny: bool, **peers: dict[str, Any]) -> Policy:
    allowed = tuple(AllowedPeer(name=name, **lists) for name, lists in peers.items())
    return Policy(HubConfig(allowed_peers=allowed, deny_by_default=deny))


@pytest.mark.parametrize(
    ("deny", "listed", "may"),
    [
        (False, (), CHANNELS),
        (True, (), ()),
        (False, ("a", "c"), ("a", "c")),
        (True, ("a", "c"), ("a", "c")),
        (False, ("other",), ()),
    ],
)
class TestRights:
    def test_as_a_table(self, deny: bool, listed: tuple[str, ...], may: tuple[str, ...]) -> None:
        """An empty list is any channel, or none with ``deny_by_default``."""
        rights = policy(deny, alpha={"subscribe": listed, "publish": listed}).rights("alpha")
        assert rights is not None
        assert tuple(rights.effective(CHANNELS)) == may
        assert tuple(each for each in CHANNELS if rights.may_publish(each)) == may
        assert not rights.may_publish("a.dead-letter")
        assert policy(deny, alpha={}).rights("beta") is None

    def test_what_a_peer_is_sent(
        self, instances: Instances, deny: bool, listed: tuple[str, ...], may: tuple[str, ...]
    ) -> None:
        """Of what it asks for, what it may have; of the rest there is not even a position."""
        peers = {"alpha": {"subscribe": listed}}
        hub = instances.hub(peers=peers, hub={"deny_by_default": deny})
        peer = greeted(instances, "alpha", hub, subscribe=CHANNELS)
        for channel in CHANNELS:
            hub.publish(channel, TYPE, channel)
        assert sorted(peer.take_until(len(may))) == sorted(may)
        assert positions_of(hub, "alpha") == sorted(may)
        peer.drop()

    def test_what_a_peer_may_send(
        self, instances: Instances, deny: bool, listed: tuple[str, ...], may: tuple[str, ...]
    ) -> None:
        """The rest is dropped and acknowledged, and stands in the audit log."""
        peers = {"alpha": {"publish": listed}}
        hub = instances.hub(peers=peers, hub={"deny_by_default": deny})
        peer = greeted(instances, "alpha", hub)
        sent = (*CHANNELS, "a.dead-letter")
        peer.send(*[made(channel, channel=channel, id=channel) for channel in sent])
        assert peer.acknowledged() == "a.dead-letter"
        for channel in sent:
            assert payloads(hub, channel) == [channel] * (channel in may)
        denied = [channel for channel in sent if channel not in may]
        wait_audit(hub, "policy_violation", lambda event: event["channel"] == denied[-1])
        events = audit(hub, "policy_violation")
        assert [each["message_id"] for each in events] == denied
        assert {(each["peer"], each["direction"]) for each in events} == {("alpha", "inbound")}
        peer.drop()


def test_only_what_is_asked_for(instances: Instances) -> None:
    """A peer that may have anything is sent what it names, dead letters included, no more."""
    hub = instances.hub()
    peer = greeted(instances, "alpha", hub, subscribe=["b"])
    for channel in CHANNELS:
        hub.publish(channel, TYPE, channel)
    assert peer.take_until(1) == ["b"]
    assert positions_of(hub, "alpha") == ["b"]
    peer.drop()


def test_where_a_peer_begins(instances: Instances) -> None:
    """At the channel's end when it first subscribes; from then on where it was."""
    hub = instances.hub()
    hub.publish("down", TYPE, 0)
    peer = greeted(instances, "alpha", hub, subscribe=["down"])
    hub.publish("down", TYPE, 1)
    assert peer.take_until(1) == [1]
    wait_until(lambda: stored_offset_of(hub, "down") == end_of(hub, "down"))
    peer.drop()
    hub.publish("down", TYPE, 2)
    peer = greeted(instances, "alpha", hub, subscribe=["down", "new"])
    hub.publish("new", TYPE, 3)
    assert sorted(peer.take_until(2)) == [2, 3]
    peer.drop()


def test_a_channel_that_cannot_be_sent(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps the peer from nothing else, and is sent once it can be, on the same connection."""
    hub = instances.hub()
    hub.publish("bad", TYPE, 0)
    write_offset(instances.data_dir("hub"), "bad", "fed-alpha", b"")
    peer = greeted(instances, "alpha", hub, subscribe=["bad", "good"])
    hub.publish("good", TYPE, 1)
    assert peer.take_until(1) == [1]
    peer.send(made(2, channel="up", id="two"))
    assert peer.acknowledged() == "two"
    write_offset(instances.data_dir("hub"), "bad", "fed-alpha", 0)
    assert peer.take_until(1) == [0]
    reports = [each for each in said(caplog, "federation.hub") if "cannot be sent" in each]
    assert len(reports) == 1
    assert "fed-alpha.offset" in reports[0]
    peer.drop()


def stored_offset_of(hub: Messenger, channel: str, peer: str = "alpha") -> int:
    return stored_offset(Path(hub.config.storage.data_dir), channel, f"fed-{peer}")


# --- sending


class TestWindow:
    @pytest.mark.parametrize("window", [1, 3, 8])
    def test_so_many_batches_are_under_way(self, instances: Instances, window: int) -> None:
        """And one more for each acknowledgement, in the log's order."""
        hub = instances.hub(federation={"window_batches": window, "max_batch_bytes": 1})
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        hub.publish_batch("down", numbers(0, 20))
        (client,) = federation_of(hub).hub._clients
        taken = []
        for _ in range(window):
            taken += peer.take(acknowledge=False)
        wait_until(lambda: client.link.session.under_way == window)
        assert not client.link.session.may_send
        for number in range(window, 20):
            peer.say(last_id="")
            taken += peer.take(acknowledge=False)
            assert client.link.session.under_way == window, number
        assert [json.loads(each)["payload"] for each in taken] == list(range(20))
        peer.drop()

    def test_the_position_moves_with_acknowledgements(self, instances: Instances) -> None:
        """By one batch each, and not with sending; what has none is sent to the next connection."""
        hub = instances.hub(federation={"max_batch_bytes": 1})
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        hub.publish_batch("down", numbers(0, 5))
        for _ in range(5):
            peer.take(acknowledge=False)
        assert stored_offset_of(hub, "down") == 0
        ends, end = [], 0
        for line in lines_of(hub, "down"):
            end += len(line) + 1
            ends.append(end)
        for number in range(3):
            peer.say(last_id="whatever")
            wait_until(lambda wanted=ends[number]: stored_offset_of(hub, "down") == wanted)
        peer.drop()
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        assert peer.take_until(2) == [3, 4]
        peer.drop()

    def test_channels_take_turns(self, instances: Instances) -> None:
        """One with a large backlog does not keep the others from what they have."""
        hub = instances.hub(federation={"max_batch_bytes": 1, "window_batches": 1})
        peer = greeted(instances, "alpha", hub, subscribe=["busy", "quiet"])
        hub.publish_batch("busy", numbers(0, 500))
        peer.take()
        hub.publish("quiet", TYPE, "now")
        seen = [json.loads(peer.take()[0])["payload"] for _ in range(10)]
        assert "now" in seen
        peer.drop()

    def test_a_batch_is_filled_from_what_is_there(self, instances: Instances) -> None:
        """Up to ``max_batch_bytes``, and nothing is waited for."""
        hub = instances.hub(federation={"max_batch_bytes": 2000})
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        hub.publish("down", TYPE, 0)
        assert len(peer.take()) == 1
        hub.publish_batch("down", numbers(1, 100))
        batches = []
        while sum(map(len, batches)) < 99:
            batches.append(peer.take())
        sizes = [sum(len(each) + 4 for each in batch) for batch in batches]
        assert max(sizes) <= 2000
        assert min(sizes[:-1]) > 1000
        peer.drop()


class TestSlowPeers:
    def test_one_that_acknowledges_nothing(self, instances: Instances) -> None:
        """It delays neither the hub's publishers nor other peers."""
        hub = instances.hub(federation={"max_batch_bytes": 100})
        slow = greeted(instances, "alpha", hub, subscribe=["down"])
        quick = instances.client("beta", hub, subscribe=["down"])
        for number in range(200):
            hub.publish("down", TYPE, number)
        assert wait_payloads(quick, "down", 200) == list(range(200))
        assert slow.take_until(200) == list(range(200))
        slow.drop()

    def test_one_that_does_not_read(self, instances: Instances) -> None:
        """Its connection fills up, and waits alone; it gets everything later."""
        hub = instances.hub()
        large = "x" * 1_000_000
        with Proxy(hub.hub_addr) as proxy:
            slow = instances.client("alpha", proxy.address, subscribe=["down"])
            wait_connected(slow)
            quick = instances.client("beta", hub, subscribe=["down"])
            proxy.stall()
            for number in range(10):
                hub.publish("down", TYPE, [number, large])
            assert [n for n, _ in wait_payloads(quick, "down", 10)] == list(range(10))
            quick.publish("up", TYPE, 1)
            wait_payloads(hub, "up", 1)
            proxy.go_on()
            assert [n for n, _ in wait_payloads(slow, "down", 10)] == list(range(10))
            assert client_of(slow).connects == 1

    def test_one_whose_disk_is_full(self, instances: Instances, impatient: None) -> None:
        """It stays connected for as long as that takes, and others go on."""
        fs = FaultyFs()
        hub = instances.hub()
        full = instances.start(
            instances.client_settings("alpha", hub.hub_addr, subscribe=["down"]), fs=fs
        )
        wait_connected(full)
        hub.publish("down", TYPE, 0)
        wait_payloads(full, "down", 1)
        quick = instances.client("beta", hub, subscribe=["down"])
        fs.full = True
        hub.publish_batch("down", numbers(1, 100))
        assert wait_payloads(quick, "down", 99) == list(range(1, 100))
        gevent.sleep(1.5 * DROP_S)
        assert payloads(full, "down") == [0]
        fs.full = False
        assert wait_payloads(full, "down", 100) == list(range(100))
        assert client_of(full).connects == 1

    def test_a_hub_whose_disk_is_full(self, instances: Instances, impatient: None) -> None:
        """However much has been sent to it: nobody takes it for dead, and nothing is sent twice."""
        fs = FaultyFs()
        hub = instances.start(instances.hub_settings(), fs=fs)
        alpha = instances.client("alpha", hub, publish=["up"])
        alpha.publish("up", TYPE, [-1, ""])
        wait_payloads(hub, "up", 1)
        fs.full = True
        for number in range(12):  # more than is read before anything is written
            alpha.publish("up", TYPE, [number, "x" * 2_000_000])
        gevent.sleep(1.5 * DROP_S)
        fs.full = False
        assert [n for n, _ in wait_payloads(hub, "up", 13)] == list(range(-1, 12))
        assert client_of(alpha).connects == 1
        assert audit(hub, "peer_disconnected") == []


# --- what lies in the channel


class TestTheChannel:
    def test_many_segments(self, instances: Instances) -> None:
        """A peer is taken from one to the next, in order."""
        hub = instances.hub(storage={"max_segment_bytes": 2000})
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        for number in range(100):
            hub.publish("down", TYPE, number)
        assert len(list((instances.data_dir("hub") / "channels" / "down").glob("*.jsonl"))) > 5
        assert peer.take_until(100) == list(range(100))
        peer.drop()

    @pytest.mark.parametrize("between", [0, 20])
    def test_damage(self, instances: Instances, between: int) -> None:
        """Every whole record is sent, two that a damaged newline has joined as well; nothing else.

        What is none is put aside for whoever looks after the hub.
        """
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        whole = [record(number, channel="down").rstrip(b"\n") for number in range(4 + between)]
        spoilt = whole[0].replace(b"id-0", b"id-9")
        torn = whole[0][:-5]
        lines = [whole[0], spoilt, whole[1] + b"\x0b" + whole[2], torn, b"{}", *whole[3:]]
        append(hub, "down", lines)
        taken: list[bytes] = []
        while len(taken) < len(whole):
            taken += peer.take()
        assert taken == whole
        letters = dead_letters(instances.data_dir("hub"), "down")
        assert [base64.b64decode(letter["raw"]) for letter in letters] == [spoilt, torn, b"{}"]
        wait_until(lambda: len(audit(hub, "undeliverable")) == 3)
        peer.drop()

    def test_another_version(self, instances: Instances) -> None:
        """A record of a later version goes on as it is: the peer may know it."""
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        later = record(1, channel="down", v=2).rstrip(b"\n")
        append(hub, "down", [later])
        assert peer.take(acknowledge=False) == [later]
        peer.drop()

    def test_what_is_for_one_subscriber(self, instances: Instances) -> None:
        """A message that was sent again to the one that had failed stays where it is."""
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        again = record(1, channel="down", subscriber="billing")
        append(hub, "down", [again, record(2, channel="down", id='x,"subscriber":"')])
        assert peer.take_until(1) == [2]
        peer.drop()

    def test_data_that_is_gone(self, instances: Instances) -> None:
        """A peer that was away for too long gets what is left, and the gap is noted."""
        settings = {
            "storage": {"max_segment_bytes": 1000, "max_files": 1},
            "federation": {"max_batch_bytes": 100, "window_batches": 1},
        }
        hub = instances.hub(**settings)
        greeted(instances, "alpha", hub, subscribe=["down"]).drop()
        wait_until(lambda: connected_names(hub) == [])
        for number in range(50):
            hub.publish("down", TYPE, number)
        hub.sweep()
        left = payloads(hub, "down")
        assert 0 < len(left) < 50
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        assert peer.take_until(len(left)) == left
        event = wait_audit(hub, "replay_gap")
        assert (event["peer"], event["channel"]) == ("alpha", "down")
        assert event["detail"].endswith("bytes from 0 on are gone, and were not sent")
        (seen,) = hub.stats().peers
        assert event["detail"].startswith(f"{seen.dropped_bytes} bytes ")
        peer.drop()

    def test_a_disk_that_cannot_be_read(
        self, instances: Instances, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is tried again, the channel's turn after the others'; nothing is left out."""
        fs = FaultyFs()
        hub = instances.start(instances.hub_settings(), fs=fs)
        peer = greeted(instances, "alpha", hub, subscribe=["bad", "good"])
        fault = fs.fail("pread", errno.EIO, times=2, path_contains="channels/bad")
        hub.publish("bad", TYPE, 1)
        hub.publish("good", TYPE, 2)
        assert sorted(peer.take_until(2)) == [1, 2]
        assert fault.hits == 2
        assert "cannot be read" in said(caplog, "federation.sender")[0]
        peer.drop()

    def test_a_dead_letter_that_cannot_be_written(self, instances: Instances) -> None:
        """What the peer cannot take is passed over only once it has been put aside."""
        fs = FaultyFs()
        hub = instances.start(instances.hub_settings(), fs=fs)
        beta = instances.client("beta", hub, subscribe=["down"], storage={"max_record_bytes": 4096})
        fault = fs.fail("write", errno.EIO, times=2, path_contains="down.dead-letter")
        hub.publish("down", TYPE, 0)
        large = hub.publish("down", TYPE, "x" * 5000)
        hub.publish("down", TYPE, 2)
        assert wait_payloads(beta, "down", 2) == [0, 2]
        assert fault.hits == 2
        (letter,) = dead_letters(instances.data_dir("hub"), "down")
        assert letter["original"]["id"] == large

    def test_a_fault_while_sending(
        self,
        instances: Instances,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It ends the connection with 1011, not the sending; the next one gets everything."""
        hub = instances.hub()
        beta = instances.client("beta", hub, subscribe=["down"])

        def fail(*_: object) -> None:
            raise RuntimeError("a fault")

        with monkeypatch.context() as patched:
            patched.setattr("keyop.federation.sender.Sender._send_ready", fail)
            hub.publish("down", TYPE, 1)
            wait_until(lambda: "sending failed" in caplog.text)
        assert wait_payloads(beta, "down", 1) == [1]
        assert "1011" in wait_audit(beta, "peer_disconnected")["detail"]


# --- two of one name


class TestTakeover:
    def test_what_was_not_acknowledged_goes_to_the_newer_one(self, instances: Instances) -> None:
        """The older one is closed with 4409, and its acknowledgements count no more."""
        hub = instances.hub(federation={"max_batch_bytes": 1})
        first = greeted(instances, "alpha", hub, subscribe=["down"])
        hub.publish_batch("down", numbers(0, 4))
        assert first.take_until(1) == [0]
        first.take(acknowledge=False)
        first_end = len(lines_of(hub, "down")[0]) + 1
        wait_until(lambda: stored_offset_of(hub, "down") == first_end)
        second = greeted(instances, "alpha", hub, subscribe=["down"])
        assert first.closed().code == TAKEN_OVER
        assert second.take_until(3) == [1, 2, 3]
        wait_until(lambda: connected_names(hub) == ["alpha"])
        second.drop()

    def test_what_the_older_one_still_sends(self, instances: Instances) -> None:
        """It is not stored; the newer one sends it again."""
        hub = instances.hub()
        first = greeted(instances, "alpha", hub)
        second = greeted(instances, "alpha", hub)
        try:
            first.send(made(1, channel="up", id="one"))
        except OSError:
            pass  # closed already
        assert first.closed().code == TAKEN_OVER
        second.send(made(2, channel="up", id="two"))
        assert second.acknowledged() == "two"
        assert payloads(hub, "up") == [2]
        second.drop()

    def test_many_at_once(self, instances: Instances) -> None:
        """One of them is served, the others are told, and no position stays taken."""
        hub = instances.hub()
        peers = [PeerByHand(instances, "alpha", hub.hub_addr, subscribe=["down"]) for _ in range(5)]
        for peer in peers:
            peer.say(**peer.fields)
        ends = [gevent.spawn(peer.closed) for peer in peers]
        wait_until(lambda: sum(each.ready() for each in ends) == 4)
        assert [each.value.code for each in ends if each.ready()] == [TAKEN_OVER] * 4
        wait_until(lambda: connected_names(hub) == ["alpha"])
        gevent.killall(ends)
        wait_until(lambda: connected_names(hub) == [])
        again = greeted(instances, "alpha", hub, subscribe=["down"])
        hub.publish("down", TYPE, 1)
        assert again.take_until(1) == [1]
        again.drop()

    def test_ephemeral_ones(self, instances: Instances) -> None:
        """They share a name, with a durable one as well, and each gets everything."""
        hub = instances.hub()
        durable = greeted(instances, "alpha", hub, subscribe=["down"])
        seen = [Recorder() for _ in range(3)]
        for recorder in seen:
            eph = instances.ephemeral("alpha", hub)
            eph.subscribe("down", recorder)
            eph.connect(10)
        hub.publish("down", TYPE, 1)
        assert [each.wait(1) for each in seen] == [[1]] * 3
        assert durable.take_until(1) == [1]
        assert connected_names(hub) == ["alpha"] * 4
        durable.drop()


# --- keeping alive


class TestKeepalive:
    def test_pings(self, instances: Instances, impatient: None) -> None:
        """A silent peer is asked for a sign of life; while it gives one, it stays."""
        hub = instances.hub(tls=None)
        with raw_guest(hub.hub_addr, "alpha") as guest:
            for _ in range(int(1.5 * DROP_S / PING_S)):
                frame = guest.frame()
                assert frame.opcode == PING
                guest.send(PONG, frame.payload)
            assert connected_names(hub) == ["alpha"]
            # Without one it is dropped, with no further word.
            wait_audit(hub, "peer_disconnected")
            assert connected_names(hub) == []

    def test_a_batch_is_a_sign_of_life(self, instances: Instances, impatient: None) -> None:
        """Who sends is not asked."""
        hub = instances.hub(tls=None)
        with raw_guest(hub.hub_addr, "alpha") as guest:
            for number in range(12):
                guest.batch(made(number, channel="up", id=f"m{number}"))
                assert guest.hear() == {"last_id": f"m{number}"}
                gevent.sleep(DROP_S / 10)
            assert connected_names(hub) == ["alpha"]
        assert payloads(hub, "up") == list(range(12))

    def test_both_sides_at_rest(self, instances: Instances, impatient: None) -> None:
        """Two instances with nothing to say keep their connection."""
        hub = instances.hub()
        alpha = instances.client("alpha", hub, subscribe=["down"])
        gevent.sleep(1.5 * DROP_S)
        hub.publish("down", TYPE, 1)
        assert wait_payloads(alpha, "down", 1) == [1]
        assert client_of(alpha).connects == 1


# --- positions of peers that stay away


def store_of(messenger: Messenger) -> Store:
    assert messenger._store is not None
    return messenger._store


class TestStalePositions:
    def test_whose(self, instances: Instances) -> None:
        """Those of peers alone: neither local subscribers' nor those towards hubs."""
        hub = instances.hub()
        hub.publish("down", TYPE, 0)
        hub.subscribe("down", "local", Recorder()).stop()
        data_dir = instances.data_dir("hub")
        for name in ("fed-old", "fed-young", "fedout-elsewhere"):
            write_offset(data_dir, "down", name, 0)
        for name in ("fed-old", "fedout-elsewhere", "local"):
            os.utime(offset_path(data_dir, "down", name), (1, 1))
        assert forget_stale_positions(store_of(hub), 3600, SYSTEM_CLOCK) == ["down/old"]
        for name in ("fed-young", "fedout-elsewhere", "local"):
            assert offset_path(data_dir, "down", name).exists()

    def test_who_comes_back_too_late(self, instances: Instances) -> None:
        """A peer that was forgotten begins at the end, like a new one."""
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        peer.drop()
        wait_until(lambda: connected_names(hub) == [])
        hub.publish("down", TYPE, 1)
        os.utime(offset_path(instances.data_dir("hub"), "down", "fed-alpha"), (1, 1))
        assert forget_stale_positions(store_of(hub), 3600, SYSTEM_CLOCK) == ["down/alpha"]
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        hub.publish("down", TYPE, 2)
        assert peer.take_until(1) == [2]
        peer.drop()

    def test_what_they_held(self, instances: Instances) -> None:
        """Segments that only they needed may go afterwards."""
        hub = instances.hub(
            storage={"max_segment_bytes": 1000},
            federation={"max_batch_bytes": 100, "window_batches": 1},
        )
        hub.publish("down", TYPE, 0)
        hub.subscribe("down", "local", Recorder())
        gone = write_offset(instances.data_dir("hub"), "down", "fed-gone", 0)
        for number in range(1, 50):
            hub.publish("down", TYPE, number)
        (subscription,) = hub.subscriptions()
        wait_until(lambda: subscription.lag_bytes == 0)
        channel = instances.data_dir("hub") / "channels" / "down"
        count = len(list(channel.glob("*.jsonl")))
        hub.sweep()
        assert len(list(channel.glob("*.jsonl"))) == count
        os.utime(gone, (1, 1))
        assert forget_stale_positions(store_of(hub), 3600, SYSTEM_CLOCK) == ["down/gone"]
        hub.sweep()
        assert len(list(channel.glob("*.jsonl"))) < count

    def test_closing_while_the_disk_stands_still(self, instances: Instances) -> None:
        """A sweep that cannot end keeps nothing else from ending."""
        fs = FaultyFs()
        settings = instances.hub_settings(hub={"fed_client_offset_ttl": 0.2})
        hub = instances.start(settings, fs=fs)
        hub.publish("down", TYPE, 0)
        gone = write_offset(instances.data_dir("hub"), "down", "fed-gone", 0)
        os.utime(gone, (1, 1))
        peer = greeted(instances, "alpha", hub)
        with fs.hold("unlink", "fed-gone") as held:
            held.wait_entered()
            closing = gevent.spawn(lambda: hub.close(timeout=2))
            assert peer.closed().code == GOING_AWAY
            closing.get(timeout=20)
        assert hub.hub_addr == ""


# --- ending


class TestShutdown:
    def test_everybody_is_told(self, instances: Instances) -> None:
        """1001 to each, durable or not; who has not said who it is is dropped."""
        hub = instances.hub()
        peers = [greeted(instances, name, hub) for name in ("alpha", "beta")]
        ephemeral = greeted(instances, "alpha", hub, ephemeral=True)
        stranger = PeerByHand(instances, "gamma", hub.hub_addr)
        closing = gevent.spawn(instances.stop, hub)
        for peer in (*peers, ephemeral):
            closed = peer.closed()
            assert (closed.code, closed.reason) == (GOING_AWAY, "shutting down")
        stranger.closed()
        closing.get(timeout=20)
        drained = [event["peer"] for event in audit(hub, "client_drain")]
        assert sorted(drained) == ["alpha", "alpha", "beta"]
        assert len(audit(hub, "peer_disconnected")) == 3

    def test_nobody_else_gets_in(self, instances: Instances) -> None:
        hub = instances.hub()
        host, port = hub.hub_addr.rsplit(":", 1)
        instances.stop(hub)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 5)

    def test_a_peer_that_does_not_answer(self, instances: Instances) -> None:
        """It is not waited for, and what it was sent comes again."""
        hub = instances.hub()
        with Proxy(hub.hub_addr) as proxy:
            peer = PeerByHand(instances, "alpha", proxy.address, subscribe=["down"])
            peer.greet()
            proxy.stall()
            hub.publish("down", TYPE, 1)
            instances.stop(hub)
            peer.drop()
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        assert peer.take_until(1) == [1]
        peer.drop()

    def test_what_was_acknowledged_is_there(self, instances: Instances) -> None:
        """A hub that ends while it is sent batch after batch has what it has acknowledged."""
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub)
        batches = [[made([n, m], channel="up") for m in range(20)] for n in range(200)]

        def send() -> None:
            try:
                for batch in batches:
                    peer.send(*batch)
            except OSError:
                pass  # the hub has gone

        sending = gevent.spawn(send)
        acknowledged = [peer.acknowledged() for _ in range(3)]
        closing = gevent.spawn(instances.stop, hub)
        ending: WebSocketClosedError | None = None
        while ending is None:
            try:
                acknowledged.append(peer.acknowledged())
            except WebSocketClosedError as closed:
                ending = closed
        assert ending.code == GOING_AWAY
        closing.get(timeout=20)
        peer.drop()
        sending.get(timeout=20)
        assert acknowledged == [ids(batch)[-1] for batch in batches][: len(acknowledged)]
        stored = payloads(instances.data_dir("hub"), "up")
        assert len(stored) >= 20 * len(acknowledged)
        assert stored == [[n, m] for n in range(200) for m in range(20)][: len(stored)]


# --- where it listens


class TestAddress:
    def test_while_it_runs(self, instances: Instances) -> None:
        """``hub_addr`` has the port that it was given, and is empty before and after."""
        hub = Messenger(Config.from_dict(instances.hub_settings()))
        instances.running.append(hub)
        assert hub.hub_addr == ""
        hub.start()
        host, port = hub.hub_addr.rsplit(":", 1)
        assert host == "127.0.0.1"
        assert int(port) > 0
        instances.stop(hub)
        assert hub.hub_addr == ""

    def test_without_a_hub(self, instances: Instances) -> None:
        messenger = instances.start(instances.settings("alpha"))
        assert messenger.hub_addr == ""

    def test_of_ipv6(self, instances: Instances) -> None:
        """It is written as a client's configuration takes it."""
        try:
            socket.socket(socket.AF_INET6).bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        hub = instances.hub(hub={"listen_addr": "[::1]:0"})
        assert hub.hub_addr.startswith("[::1]:")
        alpha = instances.client("alpha", hub, publish=["up"])
        alpha.publish("up", TYPE, 1)
        assert wait_payloads(hub, "up", 1) == [1]

    def test_that_is_taken(self, instances: Instances) -> None:
        """The error names the address; nothing is left behind, and starting may be tried again."""
        first = instances.hub()
        settings = instances.hub_settings("hub-2", hub={"listen_addr": first.hub_addr})
        with pytest.raises(ConfigError, match=f"cannot listen on {first.hub_addr}"):
            instances.start(settings)
        second = instances.running[-1]
        instances.stop(first)
        second.start()
        assert second.hub_addr == settings["hub"]["listen_addr"]


# --- several processes

HUB_PROCESS = """
messenger = Messenger(Config.from_dict(json.loads(sys.argv[2])))
messenger.start()
say("hub", messenger.hub_addr)
while True:
    if os.path.exists(sys.argv[3]):
        os.unlink(sys.argv[3])
        say("published", messenger.publish("down", "com.example.Test", "from the other process"))
    gevent.sleep(0.01)
"""


@pytest.fixture
def free_address() -> str:
    """An address that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def other_process(instances: Instances, free_address: str) -> Iterator[Worker]:
    """A process that is the hub of a data directory."""
    settings = instances.hub_settings(hub={"listen_addr": free_address})
    go = instances.directory / "go"
    with Worker(HUB_PROCESS, instances.data_dir("hub"), json.dumps(settings), go) as worker:
        assert worker.wait_line("hub", 30) == f"hub {free_address}"
        yield worker


class TestSeveralProcesses:
    def test_one_federates_and_another_takes_over(
        self, instances: Instances, free_address: str, other_process: Worker
    ) -> None:
        """Whichever process publishes, peers get it; when one is killed, the next one goes on.

        What the first one stored counts as seen by the second.
        """
        standby = instances.start(instances.hub_settings(hub={"listen_addr": free_address}))
        assert not federation_of(standby).active
        assert standby.hub_addr == ""
        alpha = instances.client("alpha", free_address, subscribe=["down"], publish=["up"])
        wait_connected(alpha)
        standby.publish("down", TYPE, "from the standby")
        assert wait_payloads(alpha, "down", 1) == ["from the standby"]
        alpha.publish_batch("up", numbers(0, 50))
        wait_payloads(standby, "up", 50)
        peer = PeerByHand(instances, "beta", free_address)
        peer.greet()
        known = made("known", channel="up")
        peer.send(known)
        peer.acknowledged()
        peer.drop()

        other_process.kill()
        wait_until(lambda: standby.hub_addr == free_address, 10, "a takeover")
        alpha.publish("up", TYPE, 50)
        standby.publish("down", TYPE, "from the new hub")
        wait_payloads(alpha, "down", 2)
        wait_payloads(standby, "up", 52)
        peer = PeerByHand(instances, "beta", free_address)
        peer.greet()
        peer.send(known)
        peer.acknowledged()
        peer.drop()
        assert payloads(standby, "up") == [*range(50), "known", 50]
        assert payloads(alpha, "down") == ["from the standby", "from the new hub"]

    def test_the_other_ones_publish_too(self, instances: Instances) -> None:
        """The process that federates sends what any process has published, without being told."""
        hub = instances.hub()
        peer = greeted(instances, "alpha", hub, subscribe=["down"])
        go = instances.directory / "go"
        settings = json.dumps(instances.hub_settings())
        with Worker(HUB_PROCESS, instances.data_dir("hub"), settings, go) as worker:
            assert worker.wait_line("hub", 30) == "hub "
            go.touch()
            worker.wait_line("published")
            assert peer.take_until(1) == ["from the other process"]
        peer.drop()

    def test_a_standby_that_closes(self, instances: Instances) -> None:
        """It leaves the other one alone."""
        hub = instances.hub()
        standby = instances.hub()
        instances.stop(standby)
        peer = greeted(instances, "alpha", hub)
        peer.drop()

    def test_a_takeover_that_fails_at_first(
        self, instances: Instances, free_address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is reported and tried again, until it succeeds."""
        taken = instances.hub("hub-2", hub={"listen_addr": free_address})
        first = instances.hub()
        standby = instances.start(instances.hub_settings(hub={"listen_addr": free_address}))
        assert standby.hub_addr == ""
        instances.stop(first)
        wait_until(lambda: "taking over failed" in caplog.text)
        assert not federation_of(standby).active
        instances.stop(taken)
        wait_until(lambda: standby.hub_addr == free_address, 10)


def test_a_fault_of_one_connection_leaves_the_others(
    instances: Instances, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported, and the connection begins anew."""
    hub = instances.hub()
    peer = greeted(instances, "beta", hub)

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patched:
        patched.setattr("keyop.federation.instance.Instance.sender", fail)
        victim = PeerByHand(instances, "alpha", hub.hub_addr)
        victim.say(**victim.fields)
        assert victim.closed().code == INTERNAL_ERROR
    wait_until(lambda: "a fault" in caplog.text)
    wait_until(lambda: connected_names(hub) == ["beta"])
    peer.send(made(1, channel="up", id="one"))
    assert peer.acknowledged() == "one"
    peer.drop()
    greeted(instances, "alpha", hub).drop()
