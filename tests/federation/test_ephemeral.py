"""EphemeralMessenger: what it promises to whoever publishes, to handlers, and when it ends."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timezone
from typing import Any

import gevent
import pytest

import keyop
from keyop import (
    ConfigError,
    ConnectionLostError,
    EphemeralClosedError,
    EphemeralMessenger,
    ForkedError,
    HandshakeRejectedError,
    InvalidChannelNameError,
    KeyopError,
    PayloadError,
    PayloadTypeAlreadyRegisteredError,
    PublishTimeoutError,
    RecordTooLargeError,
    ReservedChannelNameError,
)
from keyop.config import TLSConfig
from tests.fakes.faulty import FaultyFs
from tests.fakes.proxy import Proxy

from .byhand import Hand, HubByHand, made
from .helpers import (
    TYPE,
    Instances,
    Recorder,
    audit,
    federation_of,
    lines_of,
    payloads,
    records,
    said,
    wait_audit,
    wait_payloads,
    wait_until,
)

LOGGER = "federation.ephemeral"
LIVE = "federation.live"


@pytest.fixture
def by_hand(instances: Instances) -> Iterator[HubByHand]:
    """A hub that does as the test says; it is left before its clients close."""
    hub = HubByHand(instances.tls("hub"))
    yield hub
    hub.close()


def connected(hub: HubByHand, eph: EphemeralMessenger) -> Hand:
    """Connect a client to a hub by hand."""
    connecting = gevent.spawn(eph.connect, 10)
    hand = hub.next()
    hub.answer(hand, features=["window"], max_record_bytes=1 << 20)
    connecting.get(timeout=10)
    return hand


def publishing(eph: EphemeralMessenger, count: int, channel: str = "up") -> list[gevent.Greenlet]:
    """Publish numbers, each in a greenlet of its own, in order."""
    return [gevent.spawn(eph.publish, channel, TYPE, number) for number in range(count)]


def outcome(publisher: gevent.Greenlet) -> Any:
    """Return the error of a publisher that has failed."""
    publisher.join(10)
    assert publisher.exception is not None, publisher
    return publisher.exception


# --- publishing


class TestPublish:
    def test_returns_once_it_is_in_the_log(self, instances: Instances) -> None:
        """The record is there when publish returns, and has the id that it returns."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        for number in range(20):
            message_id = eph.publish("up", TYPE, number)
            last = records(instances.data_dir("hub"), "up")[-1]
            assert (last["id"], last["payload"]) == (message_id, number)

    def test_waits_for_the_hubs_disk(self, instances: Instances) -> None:
        """Under ``always`` it returns only when the hub's fsync has."""
        fs = FaultyFs()
        hub = instances.start(instances.hub_settings(storage={"sync_policy": "always"}), fs=fs)
        eph = instances.ephemeral("alpha", hub)
        eph.publish("up", TYPE, 0)
        with fs.hold("fdatasync", "channels/up") as held:
            publisher = gevent.spawn(eph.publish, "up", TYPE, 1)
            held.wait_entered()
            assert payloads(hub, "up") == [0, 1]
            assert not publisher.ready()
        publisher.get(timeout=10)

    def test_what_stands_in_the_record(self, instances: Instances) -> None:
        """Origin, ids and service name as those of a durable publisher; arguments win."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        with keyop.correlation_id("order-7"), keyop.service_name("billing"):
            eph.publish("up", TYPE, {"n": 1})
            eph.publish("up", TYPE, 2, correlation_id="other", service_name="shop")
        eph.publish("up", TYPE, None)
        first, second, third = records(instances.data_dir("hub"), "up")
        assert (first["origin"], first["route"], first["payload"]) == ("alpha", ["hub"], {"n": 1})
        assert (first["correlation_id"], first["service_name"]) == ("order-7", "billing")
        assert (second["correlation_id"], second["service_name"]) == ("other", "shop")
        assert "correlation_id" not in third
        assert third["payload"] is None
        assert eph.instance_name == "alpha"

    def test_a_name_beside_the_certificate(self, instances: Instances) -> None:
        """``instance_name`` is the origin; the hub goes by the certificate all the same."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub, instance_name="alpha:7")
        eph.publish("up", TYPE, 1)
        assert records(instances.data_dir("hub"), "up")[0]["origin"] == "alpha:7"
        assert wait_audit(hub, "client_connected")["peer"] == "alpha"

    def test_without_tls(self, instances: Instances) -> None:
        hub = instances.hub(tls=None)
        eph = instances.ephemeral("alpha", hub, tls=None, instance_name="alpha")
        eph.publish("up", TYPE, 1)
        assert payloads(hub, "up") == [1]

    def test_order_of_one_publisher(self, instances: Instances) -> None:
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)

        def publish(publisher: int) -> None:
            for number in range(50):
                eph.publish("up", TYPE, [publisher, number], timeout=20)

        gevent.joinall([gevent.spawn(publish, each) for each in range(4)], raise_error=True)
        stored = payloads(hub, "up")
        for each in range(4):
            assert [n for publisher, n in stored if publisher == each] == list(range(50))

    def test_what_the_hub_does_not_allow(self, instances: Instances) -> None:
        """It is confirmed and dropped, as from any peer: the hub's audit log tells of it."""
        hub = instances.hub(peers={"alpha": {"publish": ["up"]}})
        eph = instances.ephemeral("alpha", hub)
        message_id = eph.publish("secret", TYPE, 1)
        assert wait_audit(hub, "policy_violation")["message_id"] == message_id
        assert payloads(hub, "secret") == []


class TestBatches:
    def test_concurrent_publishes_share_one(self, instances: Instances, by_hand: HubByHand) -> None:
        """What many greenlets publish at a time goes together, and is confirmed together."""
        eph = instances.ephemeral("alpha", by_hand.address)
        hand = connected(by_hand, eph)
        publishers = publishing(eph, 100)
        batch = hand.take(acknowledge=False)
        assert [json.loads(each)["payload"] for each in batch] == list(range(100))
        assert not any(each.ready() for each in publishers)
        hand.say(last_id="")  # acknowledgements count by their order
        gevent.joinall(publishers, timeout=10, raise_error=True)
        assert [each.value for each in publishers] == [json.loads(each)["id"] for each in batch]
        hand.drop()

    def test_each_waits_for_its_own(self, instances: Instances, by_hand: HubByHand) -> None:
        """A publish returns with the acknowledgement of its batch, and not before."""
        eph = instances.ephemeral("alpha", by_hand.address)
        hand = connected(by_hand, eph)
        first = publishing(eph, 2)
        hand.take(acknowledge=False)
        second = publishing(eph, 2)
        hand.take(acknowledge=False)
        hand.say(last_id="")
        gevent.joinall(first, timeout=10, raise_error=True)
        assert not any(each.ready() for each in second)
        hand.say(last_id="")
        gevent.joinall(second, timeout=10, raise_error=True)
        hand.drop()

    def test_their_size(self, instances: Instances, by_hand: HubByHand) -> None:
        """``max_batch_bytes`` bounds one; a record above it goes alone."""
        eph = instances.ephemeral("alpha", by_hand.address, max_batch_bytes=1000)
        hand = connected(by_hand, eph)
        publishers = publishing(eph, 10)
        large = gevent.spawn(eph.publish, "up", TYPE, "x" * 5000)
        batches = []
        while sum(map(len, batches)) < 11:
            batches.append(hand.take())
        assert all(sum(len(each) + 4 for each in batch) <= 1000 for batch in batches[:-1])
        assert len(batches[-1]) == 1
        assert max(map(len, batches)) > 1
        gevent.joinall([*publishers, large], timeout=10, raise_error=True)
        hand.drop()

    def test_no_larger_than_a_hub_takes(self, instances: Instances) -> None:
        """Whatever ``max_batch_bytes`` says: a message that is too big would end the connection."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub, max_batch_bytes=1 << 30)
        eph.connect(10)
        large = "x" * 1_000_000
        publishers = [gevent.spawn(eph.publish, "up", TYPE, [n, large]) for n in range(20)]
        gevent.joinall(publishers, timeout=30, raise_error=True)
        assert [n for n, _ in payloads(hub, "up")] == list(range(20))

    def test_so_many_are_under_way(self, instances: Instances, by_hand: HubByHand) -> None:
        """Eight; the ninth goes with the first acknowledgement."""
        eph = instances.ephemeral("alpha", by_hand.address, max_batch_bytes=1)
        hand = connected(by_hand, eph)
        publishers = publishing(eph, 10)
        for number in range(8):
            (record,) = hand.take(acknowledge=False)
            assert json.loads(record)["payload"] == number
        wait_until(lambda: eph._link.session.under_way == 8)
        assert not eph._link.session.may_send
        for number in (8, 9):
            hand.say(last_id="")
            assert json.loads(hand.take(acknowledge=False)[0])["payload"] == number
        for _ in range(8):
            hand.say(last_id="")
        gevent.joinall(publishers, timeout=10, raise_error=True)
        hand.drop()


class TestTimeouts:
    def test_not_connected(self, instances: Instances) -> None:
        """Nothing was sent, and nothing is sent later."""
        with Proxy() as proxy:
            eph = instances.ephemeral("alpha", proxy.address, auto_reconnect=True)
            with pytest.raises(PublishTimeoutError) as caught:
                eph.publish("up", TYPE, 1, timeout=0.05)
            assert caught.value.written is False
            hub = instances.hub()
            proxy.target = hub.hub_addr
            eph.publish("up", TYPE, 2, timeout=20)
            assert payloads(hub, "up") == [2]

    def test_not_confirmed(self, instances: Instances, by_hand: HubByHand) -> None:
        """It was sent, and may arrive."""
        eph = instances.ephemeral("alpha", by_hand.address)
        hand = connected(by_hand, eph)
        with pytest.raises(PublishTimeoutError) as caught:
            eph.publish("up", TYPE, 1, timeout=0.05)
        assert caught.value.written is True
        hand.take()
        publisher = gevent.spawn(eph.publish, "up", TYPE, 2)  # its acknowledgement is its own
        hand.take()
        publisher.get(timeout=10)
        hand.drop()

    def test_a_full_queue(self, instances: Instances, by_hand: HubByHand) -> None:
        """Who finds no room waits for it, until the timeout; nothing of it was sent."""
        eph = instances.ephemeral("alpha", by_hand.address, max_batch_bytes=1, write_queue_size=3)
        hand = connected(by_hand, eph)
        publishers = publishing(eph, 8 + 3)
        wait_until(lambda: len(eph._outgoing._queue) == 3 and not eph._link.session.may_send)
        with pytest.raises(PublishTimeoutError, match="queue was full") as caught:
            eph.publish("up", TYPE, "late", timeout=0.05)
        assert caught.value.written is False
        patient = gevent.spawn(eph.publish, "up", TYPE, "patient", timeout=20)
        assert hand.take_until(12) == [*range(11), "patient"]
        gevent.joinall([*publishers, patient], timeout=10, raise_error=True)
        hand.drop()

    def test_room_that_a_timeout_has_left(self, instances: Instances, by_hand: HubByHand) -> None:
        """Who waits for room gets that of a publisher that has given up."""
        eph = instances.ephemeral("alpha", by_hand.address, auto_reconnect=True, write_queue_size=1)
        hand = connected(by_hand, eph)
        eph._outgoing.detach()  # as in the moment in which a connection ends
        impatient = gevent.spawn(eph.publish, "up", TYPE, 1, timeout=0.05)
        patient = gevent.spawn(eph.publish, "up", TYPE, 2)
        assert outcome(impatient).written is False
        hand.drop()
        hand = by_hand.next()
        by_hand.answer(hand)
        assert json.loads(hand.take()[0])["payload"] == 2
        patient.get(timeout=10)
        hand.drop()

    def test_somebody_elses(self, instances: Instances, by_hand: HubByHand) -> None:
        """A timeout of the caller's own comes out as what it is, and nothing more is sent then."""
        eph = instances.ephemeral("alpha", by_hand.address, auto_reconnect=True)
        hand = connected(by_hand, eph)
        eph._outgoing.detach()
        with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05) as own:
            eph.publish("up", TYPE, 1)
        assert caught.value is own
        hand.drop()
        hand = by_hand.next()
        by_hand.answer(hand)
        publisher = gevent.spawn(eph.publish, "up", TYPE, 2)
        assert json.loads(hand.take()[0])["payload"] == 2
        publisher.get(timeout=10)
        hand.drop()

    def test_connect(self, instances: Instances) -> None:
        """It says what the trouble is, and is tried on."""
        with Proxy() as proxy:
            eph = instances.ephemeral("alpha", proxy.address, auto_reconnect=True)
            with pytest.raises(TimeoutError, match="not connected within"):
                eph.connect(0.2)
            hub = instances.hub()
            proxy.target = hub.hub_addr
            eph.connect(10)
            eph.connect(0)  # nothing to do


class TestLargeRecords:
    def test_above_the_hubs_limit(self, instances: Instances) -> None:
        """Refused with both sizes; nothing was sent, and the connection stays."""
        hub = instances.hub(storage={"max_record_bytes": 4096})
        eph = instances.ephemeral("alpha", hub)
        eph.connect(10)
        with pytest.raises(RecordTooLargeError, match=r"has \d+ bytes; the hub takes \d+"):
            eph.publish("up", TYPE, "x" * 4096)
        eph.publish("up", TYPE, "x" * 3000)
        assert payloads(hub, "up") == ["x" * 3000]
        assert len(audit(hub, "client_connected")) <= 1

    def test_far_above_the_size_of_a_batch(self, instances: Instances) -> None:
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        eph.publish("up", TYPE, "x" * 5_000_000)
        assert payloads(hub, "up") == ["x" * 5_000_000]

    def test_a_hub_of_v0_11_0(self, instances: Instances, by_hand: HubByHand) -> None:
        """Up to 65,536 bytes, the checksum left out where that suffices."""
        eph = instances.ephemeral("alpha", by_hand.address, instance_name="alpha")
        connecting = gevent.spawn(eph.connect, 10)
        hand = by_hand.next()
        by_hand.answer(hand)
        connecting.get(timeout=10)
        publisher = gevent.spawn(eph.publish, "up", TYPE, "")
        (small,) = hand.take()
        publisher.get(timeout=10)
        crc = len(',"crc":"00000000"')
        # A time has up to nine digits behind the second, fewer where it ends with noughts.
        publisher = gevent.spawn(eph.publish, "up", TYPE, "x" * (65_536 - len(small) + crc - 8))
        (large,) = hand.take()
        publisher.get(timeout=10)
        assert 65_536 - crc < len(large) <= 65_536
        assert "crc" not in json.loads(large)
        with pytest.raises(RecordTooLargeError, match="the hub takes 65536"):
            eph.publish("up", TYPE, "x" * 65_536)
        hand.drop()


# --- receiving


class TestSubscribe:
    def test_what_a_handler_gets(self, instances: Instances) -> None:
        """A message as a durable subscriber's, with its correlation id current."""
        hub = instances.hub()
        current = []
        seen = Recorder(lambda message: current.append(keyop.context.current_correlation_id.get()))
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("down", seen)
        eph.connect(10)
        message_id = hub.publish(
            "down", TYPE, {"n": 1}, correlation_id="order-7", service_name="shop"
        )
        hub.publish("down", TYPE, 2)
        assert seen.wait(2) == [{"n": 1}, 2]
        message = seen.messages[0]
        assert (message.id, message.channel, message.origin) == (message_id, "down", "hub")
        assert (message.payload_type, message.attempt) == (TYPE, 1)
        assert (message.correlation_id, message.service_name) == ("order-7", "shop")
        assert message.timestamp.tzinfo is timezone.utc
        assert current == ["order-7", ""]

    def test_only_what_it_may_have(self, instances: Instances) -> None:
        """The hub's allowlist decides, and says nothing of what it leaves out."""
        hub = instances.hub(peers={"alpha": {"subscribe": ["down"]}})
        seen = Recorder()
        eph = instances.ephemeral("alpha", hub)
        for channel in ("secret", "down"):
            eph.subscribe(channel, seen)
        eph.connect(10)
        hub.publish("secret", TYPE, 1)
        hub.publish("down", TYPE, 2)
        assert seen.wait(1) == [2]

    def test_while_connected(self, instances: Instances) -> None:
        """The channel's messages come from when ``subscribe`` returns on, and others' go on."""
        hub = instances.hub()
        first, second = Recorder(), Recorder()
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("down", first)
        eph.connect(10)
        hub.publish("more", TYPE, 0)
        eph.subscribe("more", second)
        hub.publish("more", TYPE, 1)
        hub.publish("down", TYPE, 2)
        assert (second.wait(1), first.wait(1)) == ([1], [2])
        wait_until(lambda: len(audit(hub, "peer_disconnected")) == 1)
        # One that was named before needs no new connection.
        third = instances.ephemeral("beta", hub, subscribe=["down"])
        third.connect(10)
        third.subscribe("down", second)
        hub.publish("down", TYPE, 3)
        assert second.wait(2) == [1, 3]
        assert len(audit(hub, "peer_disconnected")) == 1

    def test_while_publishing(self, instances: Instances) -> None:
        """Nothing that others publish at that time fails or is lost."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        eph.connect(10)

        def publish(publisher: int) -> None:
            for number in range(100):
                eph.publish("up", TYPE, [publisher, number], timeout=20)

        publishers = [gevent.spawn(publish, each) for each in range(3)]
        wait_until(lambda: len(lines_of(hub, "up")) > 20)
        seen = Recorder()
        eph.subscribe("down", seen)
        gevent.joinall(publishers, raise_error=True)
        assert sorted(payloads(hub, "up")) == [[p, n] for p in range(3) for n in range(100)]
        hub.publish("down", TYPE, 1)
        assert seen.wait(1) == [1]

    def test_two_at_once(self, instances: Instances) -> None:
        hub = instances.hub()
        seen = {channel: Recorder() for channel in ("one", "two", "three")}
        eph = instances.ephemeral("alpha", hub)
        eph.connect(10)
        subscribing = [gevent.spawn(eph.subscribe, *each) for each in seen.items()]
        gevent.joinall(subscribing, timeout=20, raise_error=True)
        for channel, recorder in seen.items():
            hub.publish(channel, TYPE, channel)
            assert recorder.wait(1) == [channel]

    def test_between_the_two_hellos(self, instances: Instances, by_hand: HubByHand) -> None:
        """A channel that came too late for the hello that was sent is in the next one."""
        eph = instances.ephemeral("alpha", by_hand.address)
        connecting = gevent.spawn(eph.connect, 10)
        hand = by_hand.next()
        assert "subscribe" not in hand.hear()
        eph.subscribe("down", Recorder())
        hand.say(instance_name="hub", role="hub", version="1")
        assert hand.closed().code == 1000
        hand = by_hand.next()
        assert by_hand.answer(hand)["subscribe"] == ["down"]
        connecting.get(timeout=10)
        hand.drop()

    def test_of_dead_letters(self, instances: Instances) -> None:
        hub = instances.hub(subscribers={"max_retries": 0})
        seen = Recorder()
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("orders.dead-letter", seen)
        eph.connect(10)

        def fail(message: object) -> None:
            raise ValueError("no")

        hub.subscribe("orders", "billing", fail, start="earliest")
        hub.publish("orders", TYPE, 1)
        assert seen.wait(1)[0]["original"]["payload"] == 1

    def test_what_comes_back(self, instances: Instances) -> None:
        """What it publishes itself, and what others of its name do, comes as any other."""
        hub = instances.hub()
        seen = Recorder()
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("up", seen)
        eph.publish("up", TYPE, 1)
        other = instances.ephemeral("alpha", hub)
        other.publish("up", TYPE, 2)
        assert seen.wait(2) == [1, 2]


class TestHandlers:
    def test_one_that_fails(self, instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
        """The message is reported and gone, also for a ``gevent.Timeout``; the next one comes."""
        hub = instances.hub()

        def fail(message: keyop.Message) -> None:
            if message.payload == 1:
                raise ValueError("no")
            if message.payload == 2:
                raise gevent.Timeout(1)

        seen = Recorder(fail)
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("down", seen)
        eph.connect(10)
        for number in range(1, 4):
            hub.publish("down", TYPE, number)
        assert seen.wait(3) == [1, 2, 3]
        reports = said(caplog, LIVE, logging.ERROR)
        assert len(reports) == 2
        assert "ValueError" in reports[0]

    def test_a_slow_one_delays_its_own_channel_only(self, instances: Instances) -> None:
        hub = instances.hub()
        go_on = gevent.event.Event()
        slow, quick = Recorder(lambda message: go_on.wait()), Recorder()
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("slow", slow)
        eph.subscribe("quick", quick)
        eph.connect(10)
        for number in range(3):
            hub.publish("slow", TYPE, number)
            hub.publish("quick", TYPE, number)
        assert quick.wait(3) == [0, 1, 2]
        assert slow.payloads == [0]
        eph.publish("up", TYPE, 1, timeout=10)
        go_on.set()
        assert slow.wait(3) == [0, 1, 2]

    def test_a_batch_is_acknowledged_when_it_is_handled(
        self, instances: Instances, by_hand: HubByHand
    ) -> None:
        """In order, so that a hub sends a slow handler no more than its window."""
        go_on = gevent.event.Event()
        slow, quick = Recorder(lambda message: go_on.wait()), Recorder()
        eph = instances.ephemeral("alpha", by_hand.address)
        eph.subscribe("slow", slow)
        eph.subscribe("quick", quick)
        hand = connected(by_hand, eph)
        hand.send(made(1, channel="slow", id="one"), made(2, channel="quick", id="two"))
        hand.send(made(3, channel="quick", id="three"))
        assert quick.wait(2) == [2, 3]
        with pytest.raises(AssertionError, match="nothing came"):
            hand.read(timeout=0.1)
        go_on.set()
        assert [hand.acknowledged(), hand.acknowledged()] == ["two", "three"]
        hand.drop()

    def test_what_is_no_record(
        self, instances: Instances, by_hand: HubByHand, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is reported, passed over and acknowledged, and so is what nobody handles."""
        seen = Recorder()
        eph = instances.ephemeral("alpha", by_hand.address, subscribe=["down", "idle"])
        eph.subscribe("down", seen)
        hand = connected(by_hand, eph)
        hand.send(b"{}", made(1, channel="down", id="one"), made(2, channel="idle", id="two"))
        assert hand.acknowledged() == "two"
        hand.send()
        assert hand.acknowledged() == ""
        assert seen.payloads == [1]
        assert len(said(caplog, LIVE)) == 1
        hand.drop()

    def test_types(self, instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
        """Payloads of a registered type come as its instances; one that is none is reported."""

        @dataclass
        class Order:
            number: int

        hub = instances.hub()
        seen = Recorder()
        eph = instances.ephemeral("alpha", hub)
        eph.register_payload_type("com.example.Order", Order)
        with pytest.raises(PayloadTypeAlreadyRegisteredError):
            eph.register_payload_type("com.example.Order", dict)
        eph.subscribe("down", seen)
        eph.connect(10)
        hub.publish("down", "com.example.Order", {"wrong": 1})
        hub.publish("down", "com.example.Order", {"number": 7})
        assert seen.wait(1) == [Order(7)]
        assert len(said(caplog, LIVE, logging.ERROR)) == 1
        eph.publish("up", "com.example.Order", Order(8))
        assert payloads(hub, "up") == [{"number": 8}]

    def test_one_that_publishes_and_subscribes(self, instances: Instances) -> None:
        """A handler may use its messenger for anything."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        second = Recorder()

        def handle(message: keyop.Message) -> None:
            eph.publish("up", TYPE, message.payload)
            eph.subscribe("more", second)

        eph.subscribe("down", Recorder(handle))
        eph.connect(10)
        hub.publish("down", TYPE, 1, correlation_id="order-7")
        assert wait_payloads(hub, "up", 1) == [1]
        assert records(instances.data_dir("hub"), "up")[0]["correlation_id"] == "order-7"
        wait_until(lambda: "more" in eph._channels and eph._is_open())
        hub.publish("more", TYPE, 2)
        assert second.wait(1) == [2]


# --- losing the connection


class TestConnectionLost:
    def test_before_the_acknowledgement(self, instances: Instances, by_hand: HubByHand) -> None:
        """Whether the message has arrived is not known, and it is not sent again."""
        eph = instances.ephemeral("alpha", by_hand.address, auto_reconnect=True)
        hand = connected(by_hand, eph)
        publishers = publishing(eph, 3)
        hand.take(acknowledge=False)
        hand.drop()
        for each in publishers:
            assert isinstance(outcome(each), ConnectionLostError)
        hand = by_hand.next()
        by_hand.answer(hand)
        publisher = gevent.spawn(eph.publish, "up", TYPE, "next")
        assert [json.loads(each)["payload"] for each in hand.take()] == ["next"]
        publisher.get(timeout=10)
        hand.drop()

    def test_what_had_not_been_sent(self, instances: Instances, by_hand: HubByHand) -> None:
        """It waits for the next connection, and nobody notices."""
        eph = instances.ephemeral("alpha", by_hand.address, auto_reconnect=True, max_batch_bytes=1)
        hand = connected(by_hand, eph)
        publishers = publishing(eph, 10)
        for _ in range(8):
            hand.take(acknowledge=False)
        hand.drop()
        for each in publishers[:8]:
            assert isinstance(outcome(each), ConnectionLostError)
        hand = by_hand.next()
        by_hand.answer(hand)
        assert hand.take_until(2) == [8, 9]
        gevent.joinall(publishers[8:], timeout=10, raise_error=True)
        hand.drop()

    def test_live_subscriptions_go_on(self, instances: Instances) -> None:
        """After a reconnect what is published from then on comes; in between, nothing is kept."""
        hub = instances.hub()
        seen = Recorder()
        with Proxy(hub.hub_addr) as proxy:
            eph = instances.ephemeral("alpha", proxy.address, auto_reconnect=True)
            eph.subscribe("down", seen)
            eph.connect(10)
            hub.publish("down", TYPE, 1)
            seen.wait(1)
            proxy.target = ""
            proxy.cut()
            wait_until(lambda: not federation_of(hub).hub.connected)
            hub.publish("down", TYPE, 2)
            proxy.target = hub.hub_addr
            eph.connect(10)
            hub.publish("down", TYPE, 3)
            assert seen.wait(2) == [1, 3]

    def test_the_hub_is_restarted(self, instances: Instances) -> None:
        hub = instances.hub()
        address = hub.hub_addr
        eph = instances.ephemeral("alpha", hub, auto_reconnect=True)
        eph.publish("up", TYPE, 1)
        instances.stop(hub)
        wait_until(lambda: not eph._is_open())
        hub = instances.hub(hub={"listen_addr": address})
        eph.publish("up", TYPE, 2, timeout=20)
        assert payloads(hub, "up") == [1, 2]

    def test_without_reconnecting(self, instances: Instances) -> None:
        """It is the end: told once, and raised by whatever is called."""
        hub = instances.hub()
        told: list[KeyopError] = []
        eph = instances.ephemeral("alpha", hub, on_fatal=told.append)
        eph.connect(10)
        eph.check()
        instances.stop(hub)
        wait_until(lambda: told)
        assert [type(each) for each in told] == [ConnectionLostError]
        assert "1001" in str(told[0])
        for call in (
            eph.connect,
            eph.check,
            lambda: eph.publish("up", TYPE, 1),
            lambda: eph.subscribe("down", Recorder()),
        ):
            with pytest.raises(ConnectionLostError):
                call()
        assert len(told) == 1

    def test_a_hub_that_is_not_there(self, instances: Instances) -> None:
        with Proxy() as proxy:
            eph = instances.ephemeral("alpha", proxy.address)
            with pytest.raises(ConnectionLostError):
                eph.connect(10)
            with pytest.raises(ConnectionLostError):
                eph.publish("up", TYPE, 1)

    def test_a_hub_that_cannot_write(self, instances: Instances) -> None:
        """It confirms nothing that it has not written, and ends the connection."""
        fs = FaultyFs()
        hub = instances.start(instances.hub_settings(), fs=fs)
        eph = instances.ephemeral("alpha", hub, auto_reconnect=True)
        eph.publish("up", TYPE, 1)
        fs.fail("write", 5, path_contains="channels/up")
        with pytest.raises(ConnectionLostError, match="1011"):
            eph.publish("up", TYPE, 2, timeout=20)
        eph.publish("up", TYPE, 3, timeout=20)
        assert payloads(hub, "up") == [1, 3]

    def test_a_fault_while_dialling(
        self, instances: Instances, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        """A fault of keyop's own leaves nobody waiting for ever."""

        def fail(*_: object) -> None:
            raise RuntimeError("a fault")

        eph = instances.ephemeral("alpha", "127.0.0.1:1")
        monkeypatch.setattr("keyop.federation.ephemeral.dial", fail)
        with pytest.raises(ConnectionLostError, match="a fault"):
            eph.connect(10)
        assert said(caplog, LOGGER, logging.ERROR)

    def test_a_hub_that_says_something_else(self, instances: Instances, by_hand: HubByHand) -> None:
        """What breaks the protocol ends the connection, with the code that says so."""
        eph = instances.ephemeral("alpha", by_hand.address)
        connecting = gevent.spawn(eph.connect, 10)
        hand = by_hand.next()
        by_hand.answer(hand, role="client")
        assert hand.closed().code == 1002
        assert isinstance(outcome(connecting), ConnectionLostError)


class TestRejected:
    def test_not_in_the_allowlist(self, instances: Instances) -> None:
        """It is told once, and not tried again, whatever ``auto_reconnect`` says."""
        hub = instances.hub()
        told: list[KeyopError] = []
        eph = instances.ephemeral("stranger", hub, auto_reconnect=True, on_fatal=told.append)
        with pytest.raises(HandshakeRejectedError, match="not in allowlist"):
            eph.publish("up", TYPE, 1)
        wait_until(lambda: told)
        for call in (eph.connect, eph.check, lambda: eph.publish("up", TYPE, 1)):
            with pytest.raises(HandshakeRejectedError):
                call()
        assert eph._greenlets[0].ready()  # who would dial
        assert [type(each) for each in told] == [HandshakeRejectedError]
        assert wait_audit(hub, "client_rejected")["peer"] == "stranger"

    def test_while_connected(self, instances: Instances) -> None:
        """Who leaves the allowlist is closed within a second, and knows why."""
        hub = instances.hub()
        told: list[KeyopError] = []
        eph = instances.ephemeral("alpha", hub, auto_reconnect=True, on_fatal=told.append)
        eph.connect(10)
        without = replace(hub.config.hub, allowed_peers=())
        hub.reload(replace(hub.config, hub=without))
        wait_until(lambda: told)
        assert isinstance(told[0], HandshakeRejectedError)

    def test_another_authority(
        self, instances: Instances, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Neither side lets the other one in."""
        elsewhere = keyop.keygen.ensure_development_certificates(
            str(tmp_path_factory.mktemp("elsewhere")), ["alpha"]
        )
        files = elsewhere.instances["alpha"]
        hub = instances.hub()
        for ca in (elsewhere.ca.cert, instances.certificates.ca.cert):
            tls = TLSConfig(cert=files.cert, key=files.key, ca=ca)
            eph = instances.ephemeral("alpha", hub, tls=tls, auto_reconnect=True)
            with pytest.raises(HandshakeRejectedError, match="certificate"):
                eph.connect(10)
            instances.stop(eph)
        wait_until(lambda: len(audit(hub, "client_rejected")) == 2)

    def test_a_hub_of_another_host(self, instances: Instances) -> None:
        """Its certificate must be for the host that was dialled."""
        hub = instances.hub(hub={"listen_addr": "127.0.0.2:0"})
        eph = instances.ephemeral("alpha", hub, auto_reconnect=True)
        with pytest.raises(HandshakeRejectedError, match=r"127\.0\.0\.2"):
            eph.connect(10)

    def test_files_that_cannot_be_used(self, instances: Instances) -> None:
        tls = {**instances.tls("alpha"), "key": instances.tls("beta")["key"]}
        eph = instances.ephemeral("alpha", "127.0.0.1:1", tls=tls, auto_reconnect=True)
        with pytest.raises(HandshakeRejectedError, match="key"):
            eph.connect(10)

    def test_on_fatal_that_fails(
        self, instances: Instances, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is reported, and changes nothing."""
        hub = instances.hub()

        def fail(error: KeyopError) -> None:
            raise ValueError("no")

        eph = instances.ephemeral("stranger", hub, on_fatal=fail)
        with pytest.raises(HandshakeRejectedError):
            eph.connect(10)
        wait_until(lambda: "on_fatal failed" in said(caplog, LOGGER))

    def test_too_many_of_one_name(
        self, instances: Instances, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is no refusal of this instance: there may be room later."""
        monkeypatch.setattr("keyop.federation.limits.MAX_SAME_NAME", 2)
        hub = instances.hub()
        first, second, third = (
            instances.ephemeral("alpha", hub, auto_reconnect=True) for _ in range(3)
        )
        first.connect(10)
        second.connect(10)
        with pytest.raises(TimeoutError, match="too many connections"):
            third.connect(0.5)
        instances.stop(first)
        third.connect(10)


# --- closing


class TestClose:
    def test_everything_is_refused_afterwards(self, instances: Instances) -> None:
        hub = instances.hub()
        with instances.ephemeral("alpha", hub) as eph:
            eph.publish("up", TYPE, 1)
        eph.close()
        for call in (
            eph.connect,
            eph.check,
            lambda: eph.publish("up", TYPE, 2),
            lambda: eph.subscribe("down", Recorder()),
        ):
            with pytest.raises(EphemeralClosedError):
                call()
        assert "1000" in wait_audit(hub, "peer_disconnected")["detail"]

    def test_before_it_has_begun(self, instances: Instances) -> None:
        eph = instances.ephemeral("alpha", "127.0.0.1:1")
        eph.close()
        with pytest.raises(EphemeralClosedError):
            eph.connect()

    def test_sends_what_waits(self, instances: Instances) -> None:
        """What was published before is confirmed, if that takes a moment only."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub, max_batch_bytes=1)
        eph.connect(10)
        publishers = publishing(eph, 50)
        gevent.sleep(0)  # each has begun
        instances.stop(eph)
        gevent.joinall(publishers, timeout=10, raise_error=True)
        assert payloads(hub, "up") == list(range(50))

    def test_while_publishers_wait(
        self, instances: Instances, by_hand: HubByHand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a hub that confirms nothing it is soon enough, and they are told."""
        monkeypatch.setattr("keyop.federation.ephemeral._CLOSE_S", 0.2)
        eph = instances.ephemeral("alpha", by_hand.address, max_batch_bytes=1, write_queue_size=1)
        hand = connected(by_hand, eph)
        publishers = publishing(eph, 8 + 1 + 2)  # sent, waiting, waiting for room to wait
        for _ in range(8):
            hand.take(acknowledge=False)
        closing = gevent.spawn(eph.close)
        assert hand.closed().code == 1000
        closing.get(timeout=10)
        for each in publishers:
            assert isinstance(outcome(each), EphemeralClosedError)

    def test_while_the_hub_does_not_answer(
        self, instances: Instances, by_hand: HubByHand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever waits for the connection is told."""
        monkeypatch.setattr("keyop.federation.ephemeral._CLOSE_S", 0.2)
        eph = instances.ephemeral("alpha", by_hand.address)
        waiting = [gevent.spawn(eph.connect), gevent.spawn(eph.publish, "up", TYPE, 1)]
        hand = by_hand.next()
        hand.hear()
        eph.close()
        for each in waiting:
            assert isinstance(outcome(each), EphemeralClosedError)
        hand.drop()

    def test_while_it_waits_to_dial_again(self, instances: Instances) -> None:
        with Proxy() as proxy:
            eph = instances.ephemeral(
                "alpha", proxy.address, auto_reconnect=True, reconnect_base_ms=60_000
            )
            waiting = gevent.spawn(eph.publish, "up", TYPE, 1)
            wait_until(lambda: eph._trouble != "not connected")
            eph.close()
            assert isinstance(outcome(waiting), EphemeralClosedError)

    def test_from_a_handler(self, instances: Instances) -> None:
        """It ends with that message: the next one is not handled."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        closed = []

        def close(message: keyop.Message) -> None:
            eph.close()
            closed.append(message.payload)

        seen = Recorder(close)
        eph.subscribe("down", seen)
        eph.connect(10)
        hub.publish_batch("down", [(TYPE, 1), (TYPE, 2)])
        wait_until(lambda: closed)
        wait_until(lambda: not federation_of(hub).hub.connected)
        assert seen.payloads == [1]
        assert all(each.ready() for each in eph._greenlets)

    def test_from_on_fatal(self, instances: Instances) -> None:
        hub = instances.hub()
        closed = []

        def close(error: KeyopError) -> None:
            eph.close()
            closed.append(error)

        eph = instances.ephemeral("stranger", hub, on_fatal=close)
        with pytest.raises((HandshakeRejectedError, EphemeralClosedError)):
            eph.connect(10)
        wait_until(lambda: closed and all(each.ready() for each in eph._greenlets))

    def test_from_many_at_once(self, instances: Instances) -> None:
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        eph.connect(10)
        closing = [gevent.spawn(eph.close) for _ in range(3)]
        gevent.joinall(closing, timeout=10, raise_error=True)
        assert all(each.ready() for each in closing)
        assert all(each.ready() for each in eph._greenlets)

    def test_a_handler_that_does_not_return(self, instances: Instances) -> None:
        """It is stopped where it is."""
        hub = instances.hub()
        stopped = []

        def wait(message: keyop.Message) -> None:
            try:
                gevent.event.Event().wait()
            finally:
                stopped.append(message.payload)

        seen = Recorder(wait)
        eph = instances.ephemeral("alpha", hub)
        eph.subscribe("down", seen)
        eph.connect(10)
        hub.publish("down", TYPE, 1)
        seen.wait(1)
        eph.close()
        assert stopped == [1]

    def test_in_a_forked_child(self, instances: Instances) -> None:
        """A child can use neither the connection nor the greenlets of its parent."""
        hub = instances.hub()
        eph = instances.ephemeral("alpha", hub)
        eph.connect(10)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                eph.publish("up", TYPE, 1)
            except ForkedError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        eph.publish("up", TYPE, 2)
        assert payloads(hub, "up") == [2]


# --- arguments


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("", {}),
        ("host", {}),
        ("host:port", {}),
        (":7740", {}),
        ("host:7740", {"instance_name": "../x"}),
        ("host:7740", {"instance_name": ""}),
        ("host:7740", {"write_queue_size": 0}),
        ("host:7740", {"max_batch_bytes": 0}),
        ("host:7740", {"reconnect_base_ms": -1}),
        ("host:7740", {"reconnect_max_ms": -1}),
        ("host:7740", {"reconnect_jitter": 1.5}),
        ("host:7740", {"subscribe": ["../x"]}),
        ("host:7740", {"tls": {"cert": "a.crt"}}),
        ("host:7740", {"tls": {"sert": "a.crt"}}),
    ],
)
def test_arguments_that_make_no_sense(address: str, options: dict[str, Any]) -> None:
    """They are refused at once, before anything is dialled."""
    with pytest.raises(ValueError) as caught:
        EphemeralMessenger(address, **options)
    assert isinstance(caught.value, ConfigError) == ("tls" in options)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (InvalidChannelNameError, ("../x", TYPE, 1)),
        (ReservedChannelNameError, ("up.dead-letter", TYPE, 1)),
        (PayloadError, ("up", TYPE, float("nan"))),
        (PayloadError, ("up", TYPE, 1 << 70)),
        (PayloadError, ("up", TYPE, object())),
    ],
)
def test_messages_that_make_no_sense(
    instances: Instances, error: type[Exception], arguments: tuple[Any, ...]
) -> None:
    """They are refused as by a Messenger, and nothing is sent."""
    hub = instances.hub()
    eph = instances.ephemeral("alpha", hub)
    eph.connect(10)
    with pytest.raises(error):
        eph.publish(*arguments)
    eph.publish("up", TYPE, 1)
    assert payloads(hub, "up") == [1]


def test_subscriptions_that_make_no_sense(instances: Instances) -> None:
    eph = instances.ephemeral("alpha", "127.0.0.1:1")
    with pytest.raises(InvalidChannelNameError):
        eph.subscribe("../x", Recorder())
    with pytest.raises(TypeError, match="callable"):
        eph.subscribe("down", 7)  # type: ignore[arg-type] # which is the point
    eph.subscribe("down", Recorder())
    with pytest.raises(ValueError, match="has a handler already"):
        eph.subscribe("down", Recorder())


def test_constructing_does_no_io(instances: Instances) -> None:
    """Nothing is read or dialled before the first call that needs it."""
    missing = {"cert": "/nowhere/a.crt", "key": "/nowhere/a.key", "ca": "/nowhere/ca.crt"}
    before = os.listdir("/proc/self/fd")
    eph = EphemeralMessenger("host.invalid:7740", tls=missing, subscribe=["down"])
    assert os.listdir("/proc/self/fd") == before
    assert not eph._greenlets
    eph.close()
