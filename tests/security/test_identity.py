"""Who somebody is, the certificate says; what it says of itself changes nothing."""

from __future__ import annotations

import pytest

from keyop import Messenger
from tests.federation.byhand import made
from tests.federation.helpers import (
    Instances,
    audit,
    client_of,
    federation_of,
    lines_of,
    payloads,
    wait_audit,
    wait_connected,
    wait_payloads,
    wait_until,
)
from tests.federation.rawpeers import RawGuest
from tests.transport.certificates import Authority, Files

from .helpers import entering, guest, hub_by_hand, made_of, shaking_hands, shown, stranger

RIGHTS = {
    "alpha": {"subscribe": ["own"], "publish": ["own"]},
    "beta": {"subscribe": ["orders"], "publish": ["orders"]},
}


@pytest.fixture
def hub(instances: Instances) -> Messenger:
    """One at which alpha may have ``own``, beta ``orders``, and nobody else anything."""
    return instances.hub(peers=RIGHTS, hub={"deny_by_default": True})


class TestAHello:
    """A hello that claims another name."""

    def test_gives_no_rights(self, instances: Instances, hub: Messenger) -> None:
        """Under whatever name, the rights, the position and the events are the certificate's."""
        with guest(instances, hub, "alpha", "orders", "own", instance_name="beta") as alpha:
            alpha.batch(
                made("for beta alone", channel="orders"),
                made("alpha's", channel="own", origin="alpha"),
            )
            alpha.hear()
            assert payloads(hub, "own") == ["alpha's"]
        assert payloads(hub, "orders") == []
        assert made_of(hub) == {"channels/own", "subscribers/own/fed-alpha.offset"}
        wait_audit(hub, "peer_disconnected")
        assert {each["peer"] for each in audit(hub)} == {"alpha"}
        assert len(audit(hub, "policy_violation")) == 2  # what it asked for, and what it sent

    def test_lets_no_stranger_in(self, instances: Instances, hub: Messenger) -> None:
        """Who is not in the allowlist is refused under the name of somebody who is."""
        with stranger(hub.hub_addr, entering(instances, "stranger")) as peer:
            peer.say(instance_name="alpha", role="client", version="1")
            assert peer.closed() == (4403, "not in allowlist")
        assert wait_audit(hub, "client_rejected")["peer"] == "stranger"
        assert not audit(hub, "client_connected")

    def test_takes_nobody_over(self, instances: Instances, hub: Messenger) -> None:
        """The real one stays connected, and is the one that is sent what is for that name."""
        with (
            guest(instances, hub, "beta", "orders") as beta,
            guest(instances, hub, "alpha", "own", instance_name="beta") as alpha,
        ):
            beta.batch(made("beta's", channel="orders", origin="beta"))
            assert beta.hear()["last_id"]
            assert {each.name for each in federation_of(hub).hub.connected} == {"alpha", "beta"}
            alpha.batch(made("alpha's", channel="own", origin="alpha"))
            assert alpha.hear()["last_id"]

    def test_makes_no_hub(self, instances: Instances, hub: Messenger) -> None:
        """Nor the name of the hub itself, nor its role."""
        with guest(instances, hub, "alpha", "own", instance_name="hub") as alpha:
            alpha.batch(made("alpha's", channel="own", origin="alpha"))
            alpha.hear()
            assert payloads(hub, "own") == ["alpha's"]
        with stranger(hub.hub_addr, entering(instances, "alpha")) as alpha:
            alpha.say(instance_name="hub", role="hub", version="1")
            assert alpha.closed()[0] == 1002


class TestARecord:
    """A record that claims another's."""

    def test_gives_no_rights(self, instances: Instances, hub: Messenger) -> None:
        """Neither its origin nor its route opens a channel; the events name who sent it."""
        with guest(instances, hub, "alpha") as alpha:
            for route in ([], ["beta", "alpha"]):
                alpha.batch(made("no", channel="orders", origin="beta", route=route))
                alpha.hear()
            alpha.batch(made("yes", channel="own", origin="beta"))
            alpha.hear()
        assert payloads(hub, "orders") == []
        assert payloads(hub, "own") == ["yes"]
        forwarded = wait_audit(hub, "forward")
        assert (forwarded["peer"], forwarded["channel"]) == ("alpha", "own")
        assert [each["peer"] for each in audit(hub, "policy_violation")] == ["alpha", "alpha"]


class TestACertificate:
    """Only its one common name counts."""

    @pytest.fixture
    def hub(self, instances: Instances, files: Files, authority: Authority) -> Messenger:
        return instances.hub(tls=files.tls(authority.issue("hub"), authority), peers=RIGHTS)

    def test_of_other_hosts(
        self, instances: Instances, hub: Messenger, files: Files, authority: Authority
    ) -> None:
        """Alternative names are hosts, and no names of an instance."""
        alpha = shaking_hands(shown(authority.issue("alpha", hosts=("beta",))))
        with stranger(hub.hub_addr, alpha) as peer:
            peer.greet("beta", "orders")
            peer.batch(made("for beta alone", channel="orders"))
            peer.hear()
        assert lines_of(hub, "orders") == []
        assert wait_audit(hub, "client_connected")["peer"] == "alpha"

    @pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha"), ()])
    def test_of_several_names_or_none(
        self,
        instances: Instances,
        hub: Messenger,
        files: Files,
        authority: Authority,
        names: tuple[str, ...],
    ) -> None:
        """There is no guessing which one is meant."""
        with pytest.raises((OSError, EOFError)):
            RawGuest(hub.hub_addr, shaking_hands(shown(authority.issue(*names))))
        assert f"{len(names)} common names" in wait_audit(hub, "client_rejected")["detail"]

    @pytest.mark.parametrize("name", ["Alpha", "alpha.", "alpha:", "-alpha"])
    def test_of_a_similar_name(
        self, instances: Instances, hub: Messenger, files: Files, authority: Authority, name: str
    ) -> None:
        """Names are compared letter by letter."""
        similar = shaking_hands(shown(authority.issue(name)))
        with stranger(hub.hub_addr, similar) as peer:
            peer.say(instance_name="alpha", role="client", version="1")
            assert peer.closed()[0] == 4403


class TestAHub:
    """What a client thinks of who answers."""

    def test_of_another_name(self, instances: Instances) -> None:
        """A certificate of the authority is not enough; nothing is said to who has it."""
        with hub_by_hand(instances.tls("stranger")) as hub:
            client = instances.client("alpha", hub.address, hub_name="hub")
            wait_until(lambda: client_of(client).trouble, 10, "the client to say why")
            assert client_of(client).trouble.endswith("is 'stranger', not 'hub'")
            assert hub.arrived == 0

    def test_whose_hello_claims_another(self, instances: Instances) -> None:
        """It stays who its certificate says."""
        with hub_by_hand(instances.tls("hub")) as hub:
            client = instances.client("alpha", hub.address, ["down"], hub_name="hub")
            hand = hub.next()
            hub.answer(hand, instance_name="alpha")
            wait_connected(client)
            hand.send(made("from the hub", channel="down", route=["hub"]))
            assert wait_payloads(client, "down", 1) == ["from the hub"]
            assert wait_audit(client, "peer_connected")["peer"] == "hub"
            hand.drop()
