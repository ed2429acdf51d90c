"""What is taken from a peer while it is connected: its certificate, its place, its channels."""

from __future__ import annotations

import time
from pathlib import Path

import gevent
import pytest

from keyop import Messenger
from keyop.transport import websocket
from tests.federation.byhand import made
from tests.federation.helpers import (
    TYPE,
    Instances,
    payloads,
    wait_audit,
    wait_until,
)
from tests.federation.rawpeers import RawGuest
from tests.federation.test_reload import Certificates, Renamed, reread, start
from tests.reliability.hub_child import securing
from tests.transport.certificates import Authority
from tests.transport.helpers import spawned

from .helpers import entering, guest, stranger

# From when a reload was noted, everybody has to be gone within that.
SOON_S = 1.0


@pytest.fixture
def place(tmp_path: Path) -> Renamed:
    return Renamed(tmp_path / "files")


def closed_soon(hub: Messenger, event: str, peer: RawGuest) -> tuple[int, str]:
    """Wait for a reload; return how the peer was closed, within a second of it."""
    wait_audit(hub, event)
    begun = time.monotonic()
    closed = peer.closed()
    assert time.monotonic() - begun < SOON_S
    return closed


class TestACertificate:
    """A revoked one."""

    @pytest.fixture
    def made_up(self, place: Renamed, authority: Authority) -> Certificates:
        return Certificates(place, authority)

    def test_ends_a_live_session(self, instances: Instances, made_up: Certificates) -> None:
        """Within a second of the reload; it does not come again, and nobody else goes."""
        made_up.issue("hub")
        revoked, _ = made_up.issue("alpha"), made_up.issue("beta")
        hub = instances.hub(tls=made_up.tls("hub", crl=True))
        alpha, beta = (
            RawGuest(hub.hub_addr, securing(made_up.tls(name))) for name in ("alpha", "beta")
        )
        alpha.greet("alpha")
        beta.greet("beta")
        made_up.place.write("crl.pem", made_up.authority.revoke(revoked))
        assert closed_soon(hub, "tls_reloaded", alpha) == (4403, "it has been revoked")
        alpha.close()
        with pytest.raises((OSError, EOFError)):
            RawGuest(hub.hub_addr, securing(made_up.tls("alpha")))
        beta.batch(made("goes on", channel="up", origin="beta"))
        assert beta.hear()["last_id"]
        beta.close()

    def test_stores_nothing_more(
        self, instances: Instances, made_up: Certificates, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not even of a peer that goes on sending, and closes nothing itself."""
        monkeypatch.setattr(websocket, "DRAIN_S", 0.5)
        made_up.issue("hub")
        revoked = made_up.issue("alpha")
        hub = instances.hub(tls=made_up.tls("hub", crl=True))
        alpha = RawGuest(hub.hub_addr, securing(made_up.tls("alpha")))
        alpha.greet("alpha")
        sent = 0

        def flood() -> None:
            nonlocal sent
            try:
                while True:
                    sent += 1
                    alpha.batch(made(sent, channel="up", origin="alpha"))
                    gevent.sleep(0.002)
            except OSError:
                pass

        with spawned(flood) as flooding:
            wait_until(lambda: payloads(hub, "up"))
            made_up.place.write("crl.pem", made_up.authority.revoke(revoked))
            alpha.closed()
            when_closed = sent
            flooding.join(5)
            assert flooding.ready()
        assert sent > when_closed + 10
        wait_audit(hub, "peer_disconnected")
        assert max(payloads(hub, "up")) <= when_closed
        alpha.close()


class TestAPlace:
    """One in the allowlist."""

    def test_ends_a_live_session(self, instances: Instances, place: Renamed) -> None:
        """Who was removed is cut off within a second, durable and ephemeral ones, all of them."""
        settings = instances.hub_settings(peers=["alpha", "beta"])
        hub = start(instances, place, settings)
        with (
            guest(instances, hub, "alpha") as durable,
            guest(instances, hub, "alpha", "down", ephemeral=True) as ephemeral,
            guest(instances, hub, "beta") as beta,
        ):
            settings["hub"]["allowed_peers"] = [{"name": "beta"}]
            reread(place, settings)
            for alpha in (durable, ephemeral):
                assert closed_soon(hub, "policy_reloaded", alpha) == (4403, "not in allowlist")
            beta.batch(made("goes on", channel="up", origin="beta"))
            assert beta.hear()["last_id"]
        with stranger(hub.hub_addr, entering(instances, "alpha")) as again:
            again.say(instance_name="alpha", role="client", version="1")
            assert again.closed()[0] == 4403


class TestChannels:
    """Those that a peer may have."""

    def test_that_it_was_sent(self, instances: Instances, place: Renamed) -> None:
        """What is published behind the reload is not sent; the rest goes on."""
        settings = instances.hub_settings(peers={"alpha": {"subscribe": ["own", "secret"]}})
        hub = start(instances, place, settings)
        with guest(instances, hub, "alpha", "own", "secret") as alpha:
            hub.publish("secret", TYPE, "before")
            assert b"before" in alpha.take()[0]
            settings["hub"]["allowed_peers"] = [{"name": "alpha", "subscribe": ["own"]}]
            reread(place, settings)
            wait_audit(hub, "policy_reloaded")
            hub.publish("secret", TYPE, "behind")
            hub.publish("own", TYPE, "still")
            assert [b"still" in line for line in alpha.take()] == [True]
            alpha.stays_silent()

    def test_with_much_on_its_way(self, instances: Instances, place: Renamed) -> None:
        """Of a backlog, what was not sent yet is not sent any more."""
        settings = instances.hub_settings(
            peers={"alpha": {"subscribe": ["own", "secret"]}},
            federation={"window_batches": 1, "max_batch_bytes": 1},
        )
        hub = start(instances, place, settings)
        with guest(instances, hub, "alpha", "own", "secret") as alpha:
            hub.publish_batch("secret", [(TYPE, "secret")] * 10)
            alpha.take()
            settings["hub"]["allowed_peers"] = [{"name": "alpha", "subscribe": ["own"]}]
            reread(place, settings)
            wait_audit(hub, "policy_reloaded")
            alpha.say(last_id="")
            alpha.stays_silent()

    def test_that_it_sent(self, instances: Instances, place: Renamed) -> None:
        """What comes behind the reload is not stored."""
        settings = instances.hub_settings(peers={"alpha": {"publish": ["own", "orders"]}})
        hub = start(instances, place, settings)
        with guest(instances, hub, "alpha") as alpha:
            alpha.batch(made("before", channel="orders"))
            alpha.hear()
            settings["hub"]["allowed_peers"] = [{"name": "alpha", "publish": ["own"]}]
            reread(place, settings)
            wait_audit(hub, "policy_reloaded")
            alpha.batch(made("behind", channel="orders"), made("still", channel="own"))
            alpha.hear()
        assert payloads(hub, "orders") == ["before"]
        assert payloads(hub, "own") == ["still"]
        assert wait_audit(hub, "policy_violation")["channel"] == "orders"
