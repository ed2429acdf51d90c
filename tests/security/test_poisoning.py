"""Ids, origins and routes that are not the sender's to use: nobody else goes without for that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keyop import Messenger
from tests.federation.byhand import made
from tests.federation.helpers import (
    TYPE,
    Instances,
    collect,
    lines_of,
    payloads,
    wait_audit,
    wait_connected,
    wait_payloads,
    wait_until,
)
from tests.federation.rawpeers import RawGuest
from tests.integration.helpers import dead_letters

from .helpers import guest, hub_by_hand

ID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
RIGHTS = {
    "alpha": {"subscribe": ["orders", "own"], "publish": ["own"]},
    "beta": {"subscribe": ["orders"], "publish": ["orders"]},
    "gamma": {"subscribe": ["orders"], "publish": ["orders"]},
}


@pytest.fixture
def hub(instances: Instances) -> Messenger:
    """One at which alpha may publish to ``own`` alone, beta and gamma to ``orders`` alone."""
    return instances.hub(peers=RIGHTS)


def sends(peer: RawGuest, *records: bytes) -> None:
    """Send a batch and wait until it is acknowledged, whatever has become of it."""
    peer.batch(*records)
    peer.hear()


def honest(**fields: Any) -> bytes:
    """Return beta's record."""
    return made("honest", channel="orders", id=ID, origin="beta", **fields)


# What a peer may send before an honest record of the same id, and that must not count as that.
POISON = {
    "not allowed": made("poison", channel="orders", id=ID, origin="alpha"),
    "not allowed, as another's": made("poison", channel="orders", id=ID, origin="beta"),
    "of another channel": made("poison", channel="own", id=ID, origin="alpha"),
    "to its dead letters": made("poison", channel="orders.dead-letter", id=ID, origin="alpha"),
    "of no channel": made("poison", channel="../orders", id=ID, origin="alpha"),
    "of no payload": made(channel="orders", id=ID).replace(b',"payload":0', b""),
    "of a broken payload": made(channel="orders", id=ID).replace(b":0}", b":[}"),
    "of a wrong checksum": made(channel="orders", id=ID)[:-1] + b',"crc":"00000000"}',
    "of another version": made(channel="orders", id=ID, v=2),
    "of a false route": made(channel="orders", id=ID, route=["beta"]),
    "that went round": made(channel="own", id=ID, origin="hub"),
    "too large": made("x" * (1 << 20), channel="orders", id=ID),
    "with the id twice": made(channel="orders", id=ID).replace(b'"ts"', b'"id":"x","ts"'),
}


class TestIds:
    """A record counts as seen when it was stored, in its own channel, and not before."""

    @pytest.mark.parametrize("kind", POISON)
    def test_of_a_record_that_is_not_taken(self, instances: Instances, kind: str) -> None:
        """Whoever sends first what is not allowed or no record, the honest one is stored."""
        hub = instances.hub(peers=RIGHTS, storage={"max_record_bytes": 1 << 19})
        with guest(instances, hub, "alpha") as alpha, guest(instances, hub, "beta") as beta:
            sends(alpha, POISON[kind])
            sends(beta, honest())
            sends(alpha, POISON[kind])
        assert payloads(hub, "orders") == ["honest"]
        assert payloads(hub, "own") == (["poison"] if kind == "of another channel" else [])

    def test_of_a_malformed_record_in_an_allowed_channel(
        self, instances: Instances, hub: Messenger
    ) -> None:
        """Also from somebody who may publish there, and in the same batch."""
        broken = honest(route=["beta"])
        with guest(instances, hub, "gamma") as gamma, guest(instances, hub, "beta") as beta:
            sends(gamma, broken, broken[:-1], broken[:-1] + b',"crc":"00000000"}')
            sends(beta, honest()[:-2], honest(), honest())
        assert payloads(hub, "orders") == ["honest"]

    def test_of_the_hubs_own(self, instances: Instances, hub: Messenger) -> None:
        """What the hub publishes under an id of its own is not dropped for a peer's either."""
        with guest(instances, hub, "alpha") as alpha:
            sends(alpha, made("poison", channel="orders", id=ID, origin="hub"))
            hub.publish("orders", TYPE, "honest", message_id=ID)
        assert payloads(hub, "orders") == ["honest"]

    def test_that_are_long_or_many(self, instances: Instances, hub: Messenger) -> None:
        """No id is so long that remembering it costs what it should not; the longest work."""
        with guest(instances, hub, "beta") as beta:
            sends(beta, made("too long", channel="orders", id="x" * 256, origin="beta"))
            for _ in range(2):
                sends(beta, made("long", channel="orders", id="\U0001f600" * 255, origin="beta"))
        assert payloads(hub, "orders") == ["long"]


class TestOrigins:
    def test_of_another_peer(self, instances: Instances, hub: Messenger) -> None:
        """It is taken as it is, and sent to all but who it claims to be from: its own loss."""
        with guest(instances, hub, "gamma") as gamma, guest(instances, hub, "beta", "orders") as at:
            sends(gamma, made("as beta", channel="orders", origin="beta"))
            sends(gamma, made("as itself", channel="orders", origin="gamma"))
            assert [json.loads(line)["payload"] for line in at.take()] == ["as itself"]
        assert payloads(hub, "orders") == ["as beta", "as itself"]
        inbound = wait_audit(hub, "forward", lambda each: each["direction"] == "inbound")
        assert inbound["peer"] == "gamma"

    def test_of_the_hub(self, instances: Instances, hub: Messenger) -> None:
        """What claims to come from the hub itself is not stored; that is noted."""
        with guest(instances, hub, "gamma") as gamma:
            sends(gamma, made("no", channel="orders", origin="hub", id=ID))
            sends(gamma, made("yes", channel="orders", origin="Hub"))
        assert payloads(hub, "orders") == ["yes"]
        found = wait_audit(hub, "loop_dropped")
        assert (found["peer"], found["message_id"]) == ("gamma", ID)


class TestRoutes:
    @pytest.mark.parametrize(
        ("route", "stored"),
        [
            ([], ["hub"]),
            (["gamma"], ["gamma", "hub"]),
            (["beta", "gamma"], ["beta", "gamma", "hub"]),
            (["gamma", "gamma"], ["gamma", "gamma", "hub"]),
            (["beta"], None),
            (["gamma", "beta"], None),
            (["hub", "gamma"], None),
            (["gamma", "hub"], None),
            (["../x", "gamma"], None),
            (["gamma"] * 64, None),
            ("gamma", None),
            ([["gamma"]], None),
        ],
    )
    def test_that_name_others(
        self, instances: Instances, hub: Messenger, route: Any, stored: list[str] | None
    ) -> None:
        """The last one must be who sends it, the hub adds itself, and takes none that has it."""
        with guest(instances, hub, "gamma") as gamma:
            sends(gamma, made("x", channel="orders", origin="gamma", route=route))
        found = [json.loads(line)["route"] for line in lines_of(hub, "orders")]
        assert found == ([] if stored is None else [stored])

    def test_keep_nothing_of_others_back(self, instances: Instances, hub: Messenger) -> None:
        """A route hides its own record from those that it names, and nobody else's."""
        with guest(instances, hub, "gamma") as gamma, guest(instances, hub, "beta", "orders") as at:
            sends(gamma, made("hidden", channel="orders", id=ID, route=["beta", "gamma"]))
            hub.publish("orders", TYPE, "for all")
            assert [json.loads(line)["payload"] for line in at.take()] == ["for all"]
        assert payloads(hub, "orders") == ["hidden", "for all"]

    def test_go_round_no_circle(self, instances: Instances) -> None:
        """Two hubs that exchange a channel store it once, whatever it claims, and without ids."""
        nothing = {"seen_id_lru_size": 0}
        second = instances.hub("hub-2", peers=["hub", "gamma"], dedup=nothing)
        to_second = {"addr": second.hub_addr, "name": "hub-2", "subscribe": ["orders"]}
        first = instances.hub(
            peers=["gamma"], dedup=nothing, client={"enabled": True, "hubs": [to_second]}
        )
        wait_connected(first)
        with guest(instances, first, "gamma") as at_first, guest(instances, second, "gamma") as at:
            for origin in ("gamma", "beta", "hub", "hub-2"):
                sends(at_first, made(f"{origin} 1", channel="orders", origin=origin))
                sends(at, made(f"{origin} 2", channel="orders", origin=origin))
        both = {"gamma 1", "gamma 2", "beta 1", "beta 2"}
        wait_payloads(first, "orders", 5)
        wait_payloads(second, "orders", 5)
        for hub, other in ((first, second), (second, first)):  # behind all that may still come
            end = f"end of {hub.instance_name}"
            hub.publish("orders", TYPE, end)
            wait_until(lambda other=other, end=end: end in payloads(other, "orders"))
        for hub, own in ((first, "hub-2 1"), (second, "hub 2")):
            expected = [*both, own, "end of hub", "end of hub-2"]
            assert sorted(payloads(hub, "orders")) == sorted(expected)


class TestOtherFields:
    def test_a_subscriber_of_its_own(self, instances: Instances, hub: Messenger) -> None:
        """A peer cannot have its record delivered to one subscriber, and kept from the others."""
        with guest(instances, hub, "beta") as beta:
            sends(beta, made("for all", channel="orders", origin="beta", subscriber="billing"))
        assert b'"subscriber"' not in lines_of(hub, "orders")[0]
        assert collect(hub, "orders", "archive").wait(1) == ["for all"]

    def test_a_size_that_nobody_has(self, instances: Instances, hub: Messenger) -> None:
        """Who may only receive writes nothing: not by saying that it takes records of one byte."""
        with guest(instances, hub, "alpha", "orders", ephemeral=True, max_record_bytes=1) as alpha:
            hub.publish("orders", TYPE, "a record like any other")
            alpha.stays_silent()
        assert dead_letters(instances.data_dir("hub"), "orders") == []

    def test_of_a_hub(self, instances: Instances) -> None:
        """A client believes its hub no more: neither ids nor its own name."""
        with hub_by_hand(instances.tls("hub")) as hub:
            client = instances.client("alpha", hub.address, ["orders"], ["none"])
            hand = hub.next()
            hub.answer(hand)
            for poison in (
                made("own", channel="orders", id=ID, origin="alpha"),
                made("not asked for", channel="own", id=ID),
                made("false", channel="orders", id=ID, route=["beta"]),
                made("honest", channel="orders", id=ID, route=["beta", "hub"]),
            ):
                hand.send(poison)
                hand.acknowledged()
            hand.drop()
        assert payloads(client, "orders") == ["honest"]
        assert payloads(client, "own") == []
