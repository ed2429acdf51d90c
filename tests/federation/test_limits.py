"""What peers may cost a hub: connections, and channels that they bring about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keyop import Messenger

from .byhand import PeerByHand, made
from .helpers import TYPE, Instances, audit, payloads, said, wait_audit, wait_until


def greeted(instances: Instances, name: str, hub: Messenger, **hello: Any) -> PeerByHand:
    peer = PeerByHand(instances, name, hub.hub_addr, **hello)
    peer.greet()
    return peer


def refused(instances: Instances, name: str, hub: Messenger, **hello: Any) -> tuple[int, str]:
    peer = PeerByHand(instances, name, hub.hub_addr, **hello)
    peer.say(**peer.fields)
    closed = peer.closed()
    return closed.code, closed.reason


def channels(hub: Messenger) -> list[str]:
    return [each.channel for each in hub.stats().channels]


def with_hub(hub: Messenger, **keys: Any) -> None:
    """Go over to a configuration in which these keys of the hub are others."""
    hub.reload(replace(hub.config, hub=replace(hub.config.hub, **keys)))


class TestConnections:
    FULL = (1013, "there are 2 connections, as many as may be")

    def test_one_too_many(self, instances: Instances) -> None:
        """It is told to come again; once somebody has left, it may."""
        hub = instances.hub(peers=("alpha", "beta", "gamma"), hub={"max_connections": 2})
        alpha = greeted(instances, "alpha", hub)
        beta = greeted(instances, "beta", hub)
        assert refused(instances, "gamma", hub) == self.FULL
        assert wait_audit(hub, "client_rejected")["peer"] == "gamma"
        alpha.drop()
        wait_until(lambda: len(hub.stats().peers) == 1)
        gamma = greeted(instances, "gamma", hub)
        for peer in (beta, gamma):
            peer.send(made(channel="up"))
            assert peer.acknowledged()
            peer.drop()

    def test_of_either_kind(self, instances: Instances) -> None:
        """Ephemeral clients take places as well; who takes over its own place needs none."""
        hub = instances.hub(hub={"max_connections": 2})
        alpha = greeted(instances, "alpha", hub)
        guest = greeted(instances, "beta", hub, ephemeral=True)
        assert refused(instances, "beta", hub, ephemeral=True) == self.FULL
        assert refused(instances, "beta", hub) == self.FULL
        again = greeted(instances, "alpha", hub)
        assert alpha.closed().code == 4409
        guest.drop()
        again.drop()

    def test_while_it_runs(self, instances: Instances) -> None:
        """A reload changes it; nobody who is there is sent away."""
        hub = instances.hub()
        peers = [greeted(instances, name, hub) for name in ("alpha", "beta")]
        with_hub(hub, max_connections=1)
        assert refused(instances, "beta", hub, ephemeral=True) == self.FULL
        with_hub(hub, max_connections=0)
        peers.append(greeted(instances, "beta", hub, ephemeral=True))
        for peer in peers:
            peer.send(made(channel="up"))
            assert peer.acknowledged()
            peer.drop()


class TestChannels:
    def test_sent_to(self, instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
        """What a client sends to more is noted and not stored, and nothing is made for it."""
        hub = instances.hub(hub={"max_channels_per_peer": 2})
        hub.publish("there", TYPE, 0)
        alpha = greeted(instances, "alpha", hub)
        alpha.send(*(made(1, channel=name) for name in ("there", "a", "b", "c", "a", "d")))
        assert alpha.acknowledged()
        wait_until(lambda: len(audit(hub, "policy_violation")) >= 2)
        noted = [each["channel"] for each in audit(hub, "policy_violation")]
        assert noted == ["c", "d"]
        assert [payloads(hub, name) for name in ("there", "a", "b")] == [[0, 1], [1, 1], [1]]
        assert channels(hub) == ["a", "b", "there"]
        assert said(caplog, "federation.limits") == [
            "alpha has made 2 channels, as many as hub.max_channels_per_peer allows; "
            f"refused {n} times, the latest: {name}"
            for n, name in ((1, "c"), (2, "d"))
        ]
        alpha.drop()

    def test_of_each_peer(self, instances: Instances) -> None:
        """Another connection begins nothing anew, another peer does; what is there is for all."""
        hub = instances.hub(hub={"max_channels_per_peer": 1})
        for names in (("a", "b"), ("c",)):
            alpha = greeted(instances, "alpha", hub)
            alpha.send(*(made(1, channel=name) for name in names))
            assert alpha.acknowledged()
            alpha.drop()
            wait_until(lambda: not hub.stats().peers)
        assert channels(hub) == ["a"]
        beta = greeted(instances, "beta", hub)
        beta.send(made(2, channel="b"), made(2, channel="a"))
        assert beta.acknowledged()
        beta.drop()
        alpha = greeted(instances, "alpha", hub)
        alpha.send(made(3, channel="b"))
        assert alpha.acknowledged()
        alpha.drop()
        assert (payloads(hub, "a"), payloads(hub, "b")) == ([1, 2], [2, 3])

    def test_subscribed_to(self, instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
        """A client gets those that it may; the others as soon as somebody else has made them."""
        hub = instances.hub(hub={"max_channels_per_peer": 2})
        alpha = greeted(instances, "alpha", hub, subscribe=["a", "b", "c"])
        assert channels(hub) == ["a", "b"]
        assert "c cannot be sent to alpha: it has made 2 channels already" in " ".join(
            said(caplog, "federation.hub", 40)
        )
        hub.publish("a", TYPE, 1)
        assert alpha.take_until(1) == [1]
        hub.publish("c", TYPE, 2)
        position = instances.data_dir("hub") / "subscribers" / "c" / "fed-alpha.offset"
        wait_until(position.exists)
        hub.publish("c", TYPE, 3)
        assert alpha.take_until(1) == [3]
        alpha.drop()

    def test_any_number(self, instances: Instances) -> None:
        """0 is no limit; a reload brings one."""
        hub = instances.hub(hub={"max_channels_per_peer": 0})
        alpha = greeted(instances, "alpha", hub)
        names = [f"c{number}" for number in range(20)]
        alpha.send(*(made(1, channel=name) for name in names))
        assert alpha.acknowledged()
        with_hub(hub, max_channels_per_peer=1)
        alpha.send(made(1, channel="d0"), made(1, channel="d1"), made(2, channel="c0"))
        assert alpha.acknowledged()
        assert channels(hub) == sorted([*names, "d0"])
        alpha.drop()
