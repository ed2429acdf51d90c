"""The client: what it sends to which hub, from where, and what it does when a hub is not there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import Config, Messenger
from keyop.federation.client import Condition
from keyop.transport.websocket import GOING_AWAY
from keyop.wire.messages import FEATURES
from keyop.wire.session import NOT_ALLOWED, TAKEN_OVER
from tests.fakes.proxy import Proxy
from tests.integration.helpers import write_offset

from .byhand import Hand, HubByHand, made
from .helpers import (
    TYPE,
    Instances,
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

LOGGER = "federation.client"


@pytest.fixture
def by_hand(instances: Instances) -> Iterator[HubByHand]:
    """A hub that does as the test says; it is left before its clients close."""
    hub = HubByHand(instances.tls("hub"))
    yield hub
    hub.close()


def settings_of(
    instances: Instances, name: str, *hubs: Mapping[str, Any], **sections: Any
) -> dict[str, Any]:
    """Return the configuration of a client of several hubs."""
    return instances.settings(name, client={"enabled": True, "hubs": list(hubs)}, **sections)


def answered(hub: HubByHand) -> Hand:
    """Take the next connection of a client, and greet it."""
    hand = hub.next()
    hub.answer(hand, features=list(FEATURES), max_record_bytes=1 << 20)
    return hand


def positions(data_dir: Path) -> list[str]:
    """Return the positions towards hubs, as ``{channel}/{name}``."""
    found = (data_dir / "subscribers").glob("*/fedout-*.offset")
    return sorted(f"{path.parent.name}/{path.stem.removeprefix('fedout-')}" for path in found)


def known(data_dir: Path) -> list[str]:
    """Return the hubs whose beginning is remembered."""
    return sorted(path.name[len(".fedout-") : -len(".known")] for path in data_dir.glob(".fedout*"))


# --- several hubs


class TestSeveralHubs:
    def test_each_gets_everything(self, instances: Instances) -> None:
        """Each from a position of its own; what comes from one goes to the other as well."""
        hubs = [instances.hub(name, ["alpha"]) for name in ("hub", "hub-2")]
        alpha = instances.start(
            settings_of(
                instances,
                "alpha",
                *[{"addr": hub.hub_addr, "subscribe": ["down"]} for hub in hubs],
            )
        )
        wait_connected(alpha)
        alpha.publish_batch("up", numbers(0, 50))
        for hub in hubs:
            assert wait_payloads(hub, "up", 50) == list(range(50))
        hubs[0].publish("down", TYPE, "from the first")
        assert wait_payloads(alpha, "down", 1) == ["from the first"]
        assert wait_payloads(hubs[1], "down", 1) == ["from the first"]
        names = [hub.hub_addr for hub in hubs]
        wait_until(lambda: len(positions(instances.data_dir("alpha"))) == 4)
        for name in names:
            wait_until(
                lambda wanted=name: (
                    stored_offset(instances.data_dir("alpha"), "up", f"fedout-{wanted}")
                    == end_of(alpha, "up")
                )
            )
        assert payloads(hubs[0], "down") == ["from the first"]

    def test_one_that_is_down_holds_up_nobody(self, instances: Instances) -> None:
        """It gets what it has missed when it is there."""
        up = instances.hub("hub", ["alpha"])
        with Proxy() as proxy:
            alpha = instances.start(
                settings_of(instances, "alpha", {"addr": proxy.address}, {"addr": up.hub_addr})
            )
            alpha.publish_batch("up", numbers(0, 50))
            assert wait_payloads(up, "up", 50) == list(range(50))
            conditions = {each.condition for each in federation_of(alpha).clients}
            assert Condition.CONNECTED in conditions
            late = instances.hub("hub-2", ["alpha"])
            proxy.target = late.hub_addr
            assert wait_payloads(late, "up", 50) == list(range(50))

    def test_each_gets_its_own_channels(self, instances: Instances) -> None:
        hubs = [instances.hub(name, ["alpha"]) for name in ("hub", "hub-2")]
        alpha = instances.start(
            settings_of(
                instances,
                "alpha",
                {"addr": hubs[0].hub_addr, "publish": ["a", "both"]},
                {"addr": hubs[1].hub_addr, "publish": ["b", "both"]},
            )
        )
        wait_connected(alpha)
        for channel in ("a", "b", "neither", "both"):
            alpha.publish(channel, TYPE, channel)
        for hub, own, other in ((hubs[0], "a", "b"), (hubs[1], "b", "a")):
            assert wait_payloads(hub, own, 1) == [own]
            assert wait_payloads(hub, "both", 1) == ["both"]
            assert payloads(hub, other) == payloads(hub, "neither") == []


# --- what is sent


class TestSending:
    def test_where_it_begins(self, instances: Instances, by_hand: HubByHand) -> None:
        """At the end of channels that are there when the hub is first configured; else at 0.

        Not when the hub is first reached.
        """
        alpha = instances.start(instances.settings("alpha"))
        alpha.publish("old", TYPE, "before")
        instances.stop(alpha)
        with Proxy() as proxy:
            alpha = instances.client("alpha", proxy.address)
            alpha.publish("old", TYPE, "after")
            alpha.publish("new", TYPE, "first")
            wait_until(lambda: client_of(alpha).condition is Condition.WAITING)
            proxy.target = by_hand.address
            hand = answered(by_hand)
            assert sorted(hand.take_until(2)) == ["after", "first"]
            hand.drop()

    def test_while_it_is_not_configured(self, instances: Instances, by_hand: HubByHand) -> None:
        """A channel that came into being meanwhile is sent from its beginning."""
        alpha = instances.client("alpha", by_hand.address)
        answered(by_hand).drop()
        instances.stop(alpha)
        disabled = instances.client_settings("alpha", by_hand.address)
        disabled["client"]["enabled"] = False
        alpha = instances.start(disabled)
        alpha.publish_batch("new", numbers(0, 3))
        instances.stop(alpha)
        instances.client("alpha", by_hand.address)
        hand = answered(by_hand)
        assert hand.take_until(3) == [0, 1, 2]
        hand.drop()

    def test_which_channels(self, instances: Instances, by_hand: HubByHand) -> None:
        """Without a list every channel but dead letters, and what comes into being later."""
        alpha = instances.client("alpha", by_hand.address, subscribers={"max_retries": 0})
        hand = answered(by_hand)

        def fail(message: object) -> None:
            raise ValueError("no")

        alpha.subscribe("a", "failing", fail, start="earliest")
        alpha.publish("a", TYPE, 1)
        letters = "a.dead-letter"
        wait_payloads(alpha, letters, 1)
        alpha.publish("b", TYPE, 2)
        assert hand.take_until(2) == [1, 2]
        assert [each.split("/")[0] for each in positions(instances.data_dir("alpha"))] == ["a", "b"]
        hand.drop()

    def test_what_comes_from_its_hub(self, instances: Instances, by_hand: HubByHand) -> None:
        """It is not sent back, and the position moves over it."""
        alpha = instances.client("alpha", by_hand.address, subscribe=["both"])
        hand = answered(by_hand)
        hand.send(made(1, channel="both", id="theirs", origin="elsewhere", route=["hub"]))
        assert hand.acknowledged() == "theirs"
        alpha.publish("both", TYPE, 2)
        assert hand.take_until(1) == [2]
        name = f"fedout-{by_hand.address}"
        data_dir = instances.data_dir("alpha")
        wait_until(lambda: stored_offset(data_dir, "both", name) == end_of(alpha, "both"))
        hand.drop()

    def test_the_position_moves_with_acknowledgements(
        self, instances: Instances, by_hand: HubByHand
    ) -> None:
        """After a restart only what has none is sent again."""
        options = {"federation": {"max_batch_bytes": 1}}
        alpha = instances.client("alpha", by_hand.address, **options)
        hand = answered(by_hand)
        alpha.publish_batch("up", numbers(0, 6))
        for _ in range(6):
            hand.take(acknowledge=False)
        for _ in range(2):
            hand.say(last_id="")
        end = sum(len(line) + 1 for line in lines_of(alpha, "up")[:2])
        name = f"fedout-{by_hand.address}"
        data_dir = instances.data_dir("alpha")
        wait_until(lambda: stored_offset(data_dir, "up", name) == end)
        hand.drop()
        instances.stop(alpha)
        instances.client("alpha", by_hand.address, **options)
        hand = answered(by_hand)
        assert hand.take_until(4) == [2, 3, 4, 5]
        hand.drop()

    def test_so_many_batches_are_under_way(self, instances: Instances, by_hand: HubByHand) -> None:
        alpha = instances.client(
            "alpha", by_hand.address, federation={"max_batch_bytes": 1, "window_batches": 3}
        )
        hand = answered(by_hand)
        alpha.publish_batch("up", numbers(0, 10))
        for _ in range(3):
            hand.take(acknowledge=False)
        link = client_of(alpha)._link
        assert link is not None
        assert (link.session.under_way, link.session.may_send) == (3, False)
        for _ in range(3):
            hand.say(last_id="")
        assert hand.take_until(7) == list(range(3, 10))
        hand.drop()

    def test_what_another_process_publishes(self, instances: Instances) -> None:
        """The one that federates sends for all that use the data directory."""
        hub = instances.hub()
        alpha = instances.client("alpha", hub)
        other = instances.start(instances.settings("alpha"))
        other.publish("fresh", TYPE, 1)
        assert wait_payloads(hub, "fresh", 1) == [1]
        other.publish("fresh", TYPE, 2)
        assert wait_payloads(hub, "fresh", 2) == [1, 2]
        assert client_of(alpha).connects == 1

    def test_a_channel_that_begins_while_the_hub_is_away(self, instances: Instances) -> None:
        """What its subscribers have read is kept for the hub, however often is swept."""
        hub = instances.hub()
        address = hub.hub_addr
        instances.stop(hub)
        alpha = instances.client("alpha", address, storage={"max_segment_bytes": 1000})
        seen: list[Any] = []
        alpha.subscribe("up", "here", lambda message: seen.append(message.payload))
        for number in range(50):
            alpha.publish("up", TYPE, number)
        position = "fedout-" + address
        wait_until(lambda: stored_offset(instances.data_dir("alpha"), "up", position) == 0)
        wait_until(lambda: len(seen) == 50)
        alpha.sweep()
        hub = instances.hub(hub={"listen_addr": address})
        assert wait_payloads(hub, "up", 50) == list(range(50))

    def test_a_channel_that_cannot_be_sent(
        self, instances: Instances, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It keeps no other from being sent, is told once, and is sent once it can be."""
        with Proxy() as proxy:
            alpha = instances.client("alpha", proxy.address)
            alpha.publish("bad", TYPE, 1)
            name = f"fedout-{proxy.address}"
            write_offset(instances.data_dir("alpha"), "bad", name, b"")
            hub = instances.hub()
            proxy.target = hub.hub_addr
            wait_connected(alpha)
            for number in range(3):  # each is a reason to look for channels
                alpha.publish(f"good-{number}", TYPE, number)
                assert wait_payloads(hub, f"good-{number}", 1) == [number]
            assert payloads(hub, "bad") == []
            write_offset(instances.data_dir("alpha"), "bad", name, 0)
            assert wait_payloads(hub, "bad", 1) == [1]
        reports = [each for each in said(caplog, LOGGER) if "cannot be sent" in each]
        assert len(reports) == 1

    def test_a_fault_while_looking_for_channels(
        self, instances: Instances, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        """It is reported, and channels are found again."""
        hub = instances.hub()
        alpha = instances.client("alpha", hub)

        def fail(*_: object) -> None:
            raise RuntimeError("a fault")

        with monkeypatch.context() as patched:
            patched.setattr("keyop.federation.client.Outbox.channels", fail)
            alpha.publish("first", TYPE, 1)
            wait_until(lambda: "a fault" in caplog.text)
        alpha.publish("second", TYPE, 2)
        assert wait_payloads(hub, "second", 1) == [2]
        assert wait_payloads(hub, "first", 1) == [1]


class TestReceiving:
    def test_only_what_it_has_subscribed_to(self, instances: Instances, by_hand: HubByHand) -> None:
        """Whatever a hub sends besides is dropped, acknowledged and noted."""
        alpha = instances.client("alpha", by_hand.address, subscribe=["down"], publish=["up"])
        hand = by_hand.next()
        hello = by_hand.answer(hand)
        assert hello == {
            "instance_name": "alpha",
            "role": "client",
            "version": "1",
            "subscribe": ["down"],
            "features": list(FEATURES),
            "max_record_bytes": hello["max_record_bytes"],
        }
        hand.send(made(1, channel="secret", id="one"), made(2, channel="down", id="two"))
        assert hand.acknowledged() == "two"
        assert payloads(alpha, "down") == [2]
        assert payloads(alpha, "secret") == []
        event = wait_audit(alpha, "policy_violation")
        assert (event["message_id"], event["peer"], event["direction"]) == ("one", "hub", "inbound")
        hand.drop()

    def test_without_subscriptions(self, instances: Instances, by_hand: HubByHand) -> None:
        """An empty list is nothing."""
        alpha = instances.client("alpha", by_hand.address)
        hand = by_hand.next()
        assert "subscribe" not in by_hand.answer(hand)
        hand.send(made(1, channel="down", id="one"))
        assert hand.acknowledged() == "one"
        assert payloads(alpha, "down") == []
        hand.drop()


# --- reaching a hub


class Schedule:
    """Counts what the backoff was asked for, and makes every wait short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempts: list[int] = []
        monkeypatch.setattr("keyop.federation.client.backoff_delay", self)

    def __call__(self, attempt: int, base_s: float, max_s: float, jitter: float) -> float:
        self.attempts.append(attempt)
        self.options = base_s, max_s, jitter
        return 0.001


class TestBackoff:
    def test_while_the_hub_is_down(
        self, instances: Instances, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each failure in a row counts, with the configuration's times."""
        schedule = Schedule(monkeypatch)
        options = {"reconnect_base_ms": 7, "reconnect_max_ms": 900, "reconnect_jitter": 0.5}
        with Proxy() as proxy:
            instances.client("alpha", proxy.address, federation=options)
            wait_until(lambda: len(schedule.attempts) >= 5)
        assert schedule.attempts[:5] == [1, 2, 3, 4, 5]
        assert schedule.options == (0.007, 0.9, 0.5)

    @pytest.mark.parametrize("steady", [False, True])
    def test_after_a_connection(
        self, instances: Instances, monkeypatch: pytest.MonkeyPatch, steady: bool
    ) -> None:
        """It begins anew after one that has lasted, and goes on after one that has not."""
        schedule = Schedule(monkeypatch)
        monkeypatch.setattr("keyop.federation.client.STEADY_S", 0.0 if steady else 1000.0)
        hub = instances.hub()
        with Proxy() as proxy:
            alpha = instances.client("alpha", proxy.address)
            wait_until(lambda: len(schedule.attempts) >= 3)
            proxy.target = hub.hub_addr
            wait_until(lambda: client_of(alpha).condition is Condition.CONNECTED)
            before = len(schedule.attempts)
            proxy.target = ""
            proxy.cut()
            wait_until(lambda: len(schedule.attempts) >= before + 2)
        first = 1 if steady else before + 1
        assert schedule.attempts[before : before + 2] == [first, first + 1]

    def test_after_a_takeover(self, instances: Instances, by_hand: HubByHand) -> None:
        """It waits as long as it may: two of one name do not evict each other for ever."""
        alpha = instances.client("alpha", by_hand.address, federation={"reconnect_max_ms": 60_000})
        hand = answered(by_hand)
        hand.connection.close(TAKEN_OVER, "taken over")
        hand.closed()
        wait_until(lambda: client_of(alpha).condition is Condition.WAITING)
        gevent.sleep(0.3)  # thirty times as long as the first wait would be
        assert by_hand.arrived == 0
        assert "4409" in client_of(alpha).trouble

    def test_two_instances_with_one_certificate(self, instances: Instances) -> None:
        """The second one takes over, and the first one lets it."""
        hub = instances.hub()
        patient = {"reconnect_max_ms": 60_000}
        first = instances.client("alpha", hub, federation=patient)
        second = instances.client("alpha", hub, federation=patient, **elsewhere(instances))
        wait_until(lambda: client_of(first).condition is Condition.WAITING)
        second.publish("up", TYPE, 1)
        assert wait_payloads(hub, "up", 1) == [1]
        assert (client_of(first).connects, client_of(second).connects) == (1, 1)

    def test_when_it_stops(self, instances: Instances) -> None:
        """It does not wait for the wait to end."""
        with Proxy() as proxy:
            alpha = instances.client(
                "alpha", proxy.address, federation={"reconnect_base_ms": 60_000}
            )
            client = client_of(alpha)
            wait_until(lambda: client.condition is Condition.WAITING)
            instances.stop(alpha)
        assert client.condition is Condition.STOPPED


def elsewhere(instances: Instances) -> dict[str, Any]:
    return {"storage": {"data_dir": str(instances.directory / "elsewhere")}}


class TestReaching:
    def test_an_address_that_is_none(
        self, instances: Instances, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is reported, not at every try, and the instance works locally."""
        alpha = instances.client("alpha", "host.invalid:7740")
        wait_until(lambda: client_of(alpha)._failures >= 3, 20)
        alpha.publish("up", TYPE, 1)
        reports = said(caplog, LOGGER)
        assert "cannot be reached" in reports[0]
        assert len(reports) < client_of(alpha)._failures + 1

    def test_the_name_of_the_hub(self, instances: Instances) -> None:
        """With ``name`` it is the certificate's, wherever it is dialled; another one is refused."""
        hub = instances.hub(hub={"listen_addr": "127.0.0.2:0"})
        alpha = instances.client("alpha", hub.hub_addr, hub_name="hub-2")
        wait_until(lambda: "'hub', not 'hub-2'" in client_of(alpha).trouble)
        assert client_of(alpha).condition in (Condition.WAITING, Condition.CONNECTING)
        beta = instances.client("beta", hub.hub_addr, hub_name="hub")
        wait_connected(beta)
        gamma = instances.client("gamma", hub.hub_addr)  # the host is not in the certificate
        wait_until(lambda: "127.0.0.2" in client_of(gamma).trouble)

    def test_one_that_breaks_the_protocol(self, instances: Instances, by_hand: HubByHand) -> None:
        """It is told so, and tried again."""
        instances.client("alpha", by_hand.address)
        hand = by_hand.next()
        by_hand.answer(hand, version="2")
        assert hand.closed().code == 1002
        answered(by_hand).drop()

    def test_a_fault_while_dialling(
        self,
        instances: Instances,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A fault of keyop's own is reported, and ends no client."""
        hub = instances.hub()

        def fail(*_: object) -> None:
            raise RuntimeError("a fault")

        with monkeypatch.context() as patched:
            patched.setattr("keyop.federation.client.dial", fail)
            alpha = instances.client("alpha", hub.hub_addr)
            wait_until(lambda: client_of(alpha).trouble == "a fault")
        wait_connected(alpha)
        assert "dialling failed" in said(caplog, LOGGER, logging.ERROR)[0]

    def test_what_is_noted(self, instances: Instances) -> None:
        """Coming and going stand in the audit log, with the hub's name and address."""
        hub = instances.hub()
        alpha = instances.client("alpha", hub)
        address = hub.hub_addr
        event = wait_audit(alpha, "peer_connected")
        assert (event["peer"], event["peer_addr"]) == ("hub", address)
        instances.stop(hub)
        event = wait_audit(alpha, "peer_disconnected")
        assert (event["peer"], event["peer_addr"]) == ("hub", address)
        assert "1001" in event["detail"]


class TestRefusal:
    def test_is_reported_and_not_tried_again(
        self, instances: Instances, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Before the configuration is reloaded; what is published meanwhile is sent then."""
        hub = instances.hub(peers=["beta"])
        alpha = instances.client("alpha", hub.hub_addr)
        wait_until(lambda: client_of(alpha).condition is Condition.REFUSED)
        assert "refuses this instance: not in allowlist" in said(caplog, LOGGER, logging.ERROR)[0]
        alpha.publish("up", TYPE, 1)
        gevent.sleep(0.3)  # thirty times as long as a retry would take
        assert len(audit(hub, "client_rejected")) == 1
        hub.reload(Config.from_dict(instances.hub_settings(peers=["alpha"])))
        assert client_of(alpha).condition is Condition.REFUSED
        alpha.reload(alpha.config)
        wait_connected(alpha)
        assert wait_payloads(hub, "up", 1) == [1]

    def test_of_one_that_is_connected(self, instances: Instances, by_hand: HubByHand) -> None:
        alpha = instances.client("alpha", by_hand.address)
        hand = answered(by_hand)
        hand.connection.close(NOT_ALLOWED, "certificate revoked")
        hand.closed()
        wait_until(lambda: client_of(alpha).condition is Condition.REFUSED)
        assert "certificate revoked" in client_of(alpha).trouble

    def test_by_one_hub_of_two(self, instances: Instances) -> None:
        """The other one goes on."""
        strict = instances.hub("hub", [])
        kind = instances.hub("hub-2", ["alpha"])
        alpha = instances.start(
            settings_of(instances, "alpha", {"addr": strict.hub_addr}, {"addr": kind.hub_addr})
        )
        clients = federation_of(alpha).clients
        wanted = [Condition.REFUSED, Condition.CONNECTED]
        wait_until(lambda: [each.condition for each in clients] == wanted)
        alpha.publish("up", TYPE, 1)
        assert wait_payloads(kind, "up", 1) == [1]

    def test_when_it_stops(self, instances: Instances) -> None:
        hub = instances.hub(peers=[])
        alpha = instances.client("alpha", hub.hub_addr)
        client = client_of(alpha)
        wait_until(lambda: client.condition is Condition.REFUSED)
        instances.stop(alpha)
        assert client.condition is Condition.STOPPED


# --- ending


class TestStop:
    def test_the_hub_is_told(self, instances: Instances, by_hand: HubByHand) -> None:
        alpha = instances.client("alpha", by_hand.address)
        hand = answered(by_hand)
        stopping = gevent.spawn(instances.stop, alpha)
        closed = hand.closed()
        assert (closed.code, closed.reason) == (GOING_AWAY, "shutting down")
        stopping.get(timeout=20)

    @pytest.mark.parametrize("when", ["while dialling", "before the hub's hello"])
    def test_a_hub_that_does_not_answer(
        self, instances: Instances, by_hand: HubByHand, when: str
    ) -> None:
        """It is not waited for beyond the timeout, and nothing goes on behind it."""
        with Proxy(by_hand.address) as proxy:
            if when == "while dialling":
                proxy.stall()
            alpha = instances.client("alpha", proxy.address)
            client = client_of(alpha)
            if when == "while dialling":
                wait_until(lambda: proxy.connections == 1)
                assert client._link is None
            else:
                by_hand.next().hear()
                proxy.stall()
            instances.running.remove(alpha)
            alpha.close(timeout=1)
            assert client.condition is Condition.STOPPED
            wait_until(lambda: client._greenlet.ready(), 2.5)


# --- hubs that leave the configuration, or get another name


def renamed(config: Config, change: Callable[[Any], Any]) -> Config:
    (hub,) = config.client.hubs
    return replace(config, client=replace(config.client, hubs=(change(hub),)))


class TestOtherHubs:
    @pytest.fixture
    def data_dir(self, instances: Instances) -> Path:
        return instances.data_dir("alpha")

    @pytest.fixture
    def alpha(self, instances: Instances) -> Messenger:
        """A client that has published to a hub which nobody has ever seen."""
        alpha = instances.client("alpha", "127.0.0.1:1")
        alpha.publish_batch("up", numbers(0, 3))
        wait_until(lambda: known(instances.data_dir("alpha")) == ["127.0.0.1:1"])
        return alpha

    def test_one_that_has_left(
        self, instances: Instances, by_hand: HubByHand, data_dir: Path, alpha: Messenger
    ) -> None:
        """Its positions are removed; the new one begins with what is published from now on."""
        instances.stop(alpha)
        alpha = instances.client("alpha", by_hand.address)
        hand = answered(by_hand)
        assert known(data_dir) == [by_hand.address]
        assert positions(data_dir) == [f"up/{by_hand.address}"]
        alpha.publish("up", TYPE, 3)
        assert hand.take_until(1) == [3]
        hand.drop()

    def test_all_have_left(self, instances: Instances, data_dir: Path) -> None:
        """Then nothing keeps the channels' segments any more."""
        hub = instances.hub()
        alpha = instances.client("alpha", hub)
        alpha.publish("up", TYPE, 1)
        wait_payloads(hub, "up", 1)
        assert positions(data_dir) == [f"up/{hub.hub_addr}"]
        instances.stop(alpha)
        instances.start(
            instances.settings("alpha", client={"enabled": True, "hubs": []}, hub=listening())
        )
        assert positions(data_dir) == known(data_dir) == []

    def test_one_that_was_given_a_name(
        self, instances: Instances, by_hand: HubByHand, data_dir: Path
    ) -> None:
        """It goes on where it was, under the name."""
        alpha = instances.client("alpha", by_hand.address)
        hand = answered(by_hand)
        alpha.publish_batch("up", numbers(0, 2))
        assert hand.take_until(2) == [0, 1]
        name = f"fedout-{by_hand.address}"
        wait_until(lambda: stored_offset(data_dir, "up", name) == end_of(alpha, "up"))
        hand.drop()
        instances.stop(alpha)
        alpha = instances.client("alpha", by_hand.address, hub_name="hub")
        alpha.publish("up", TYPE, 2)
        hand = answered(by_hand)
        assert hand.take_until(1) == [2]
        assert (positions(data_dir), known(data_dir)) == (["up/hub"], ["hub"])
        hand.drop()

    def test_one_that_was_never_reached_and_gets_a_name(
        self, instances: Instances, by_hand: HubByHand, data_dir: Path, alpha: Messenger
    ) -> None:
        """What was published before is sent: nothing is forgotten."""
        instances.stop(alpha)
        config = Config.from_dict(instances.client_settings("alpha", "127.0.0.1:1"))
        named = Messenger(renamed(config, lambda hub: replace(hub, name="hub")))
        instances.running.append(named)
        named.start()
        named.reload(renamed(named.config, lambda hub: replace(hub, addr=by_hand.address)))
        hand = answered(by_hand)
        assert hand.take_until(3) == [0, 1, 2]
        assert known(data_dir) == ["hub"]
        hand.drop()

    def test_a_remembered_beginning_that_is_damaged(
        self, instances: Instances, data_dir: Path, alpha: Messenger
    ) -> None:
        """It is no guess: the error names the file and the way out, which works."""
        instances.stop(alpha)
        path = data_dir / ".fedout-127.0.0.1:1.known"
        path.write_bytes(b"{")
        with pytest.raises(Exception, match="is damaged; delete it"):
            instances.client("alpha", "127.0.0.1:1")
        instances.stop(instances.running[-1])
        path.unlink()
        instances.client("alpha", "127.0.0.1:1")
        assert json.loads(path.read_bytes()) == ["up"]


def listening() -> dict[str, Any]:
    """Return a hub's section, without which an instance without hubs has no federation."""
    return {"enabled": True, "listen_addr": "127.0.0.1:0"}
