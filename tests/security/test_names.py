"""Names that lead out of their place: refused at every entrance, and nothing is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyop import Config, ConfigError, Messenger
from tests.federation.byhand import made
from tests.federation.helpers import Instances, audit, wait_connected, wait_until
from tests.federation.rawpeers import RawGuest
from tests.integration.helpers import Recorder, running, tree
from tests.integration.test_names import BAD, CONFIG_ENTRANCES
from tests.transport.certificates import Authority, Files

from .helpers import (
    entering,
    guest,
    hub_by_hand,
    made_of,
    shaking_hands,
    shown,
    stranger,
)

# What ways out of a directory look like, in any spelling that somebody might take for another.
NAMES = {
    **BAD,
    "up, twice encoded": "%252e%252e%252f",
    "up, overlong": "..%c0%af..",
    "up, doubled": "....//....//x",
    "up, backwards": "..\\..\\x",
    "up, in full width": "\uff0e\uff0e\uff0fx",
    "up, by leaders": "\u2025/\u2025/x",
    "up, behind a name": "orders/../../x",
    "reversed": "x\u202e",
    "nothing to see": "orders\u200b",
    "composed": "o\u0308rders",
    "escape": "\x1b[2J",
    "very long": "x" * 5000,
}
# An instance name may hold a colon.
INSTANCES = {label: name for label, name in NAMES.items() if label != "colon"}
del INSTANCES["empty"]


ENTRANCES: dict[str, Callable[[Messenger, str], Any]] = {
    "publish": lambda m, name: m.publish(name, "t", 1),
    "publish_batch": lambda m, name: m.publish_batch(name, [("t", 1)]),
    "subscribe": lambda m, name: m.subscribe(name, "id", Recorder()),
    "unsubscribe": lambda m, name: m.unsubscribe(name, "id"),
    "reopen": lambda m, name: m.reopen(name),
    "follow": lambda m, name: m.follow(name),
    "a subscriber's id": lambda m, name: m.subscribe("orders", name, Recorder()),
    "a standby's id": lambda m, name: m.subscribe("orders", name, Recorder(), standby=True),
    "unsubscribing an id": lambda m, name: m.unsubscribe("orders", name),
}


class TestOfAProgram:
    @pytest.mark.parametrize("entrance", ENTRANCES)
    def test_are_refused(self, tmp_path: Path, entrance: str) -> None:
        """In publish and subscribe, as channel and as id: an error of the caller's, and no file."""
        with running(tmp_path / "a" / "b" / "data") as messenger:
            messenger.publish("orders", "t", 1)
            before = tree(tmp_path)
            for name in NAMES.values():
                with pytest.raises(ValueError, match=r"is not allowed|has .* characters"):
                    ENTRANCES[entrance](messenger, name)
            assert tree(tmp_path) == before

    def test_with_dots_at_their_end(self, tmp_path: Path) -> None:
        """They are names of their own, and lie where names lie."""
        names = {"orders", "orders.", "orders..", "...", "..x"}
        with running(tmp_path / "data") as messenger:
            for name in names:
                messenger.publish(name, "t", name)
            assert {each.channel for each in messenger.stats().channels} == names
        assert {each.name for each in tmp_path.iterdir()} == {"data"}
        assert {each.name for each in (tmp_path / "data" / "channels").iterdir()} == names


class TestOfAPeer:
    def test_in_its_records(self, instances: Instances) -> None:
        """They are no records: acknowledged, and not stored; a good one between them is."""
        hub = instances.hub(peers=["alpha"])
        with guest(instances, hub, "alpha") as alpha:
            for name in NAMES.values():
                alpha.batch(made(channel=name), made("good", channel="up", origin="alpha"))
                assert alpha.hear()["last_id"]
        assert made_of(hub) == {"channels/up"}
        assert {each.name for each in instances.directory.iterdir()} == {"hub"}

    def test_in_a_hubs_records(self, instances: Instances) -> None:
        """A client takes no others from its hub than a hub from its clients."""
        with hub_by_hand(instances.tls("hub")) as hub:
            client = instances.client("alpha", hub.address, ["down"], ["up"])
            hand = hub.next()
            hub.answer(hand)
            wait_connected(client)
            for name in NAMES.values():
                hand.send(made(channel=name), made("good", channel="down"))
                assert hand.acknowledged()
            hand.drop()
        assert {each for each in made_of(client) if "channels/" in each} == {"channels/down"}

    @pytest.mark.parametrize("field", ["subscribe", "instance_name"])
    def test_in_its_hello(self, instances: Instances, field: str) -> None:
        """It is not let in (1002), and nothing is made of what it wanted."""
        hub = instances.hub(peers=["alpha"])
        wanted = INSTANCES if field == "instance_name" else NAMES
        for name in wanted.values():
            hello = {"instance_name": "alpha", "role": "client", "version": "1"}
            hello[field] = ["orders", name] if field == "subscribe" else name  # type: ignore[assignment]
            with stranger(hub.hub_addr, entering(instances, "alpha")) as alpha:
                alpha.say(**hello)
                assert alpha.closed()[0] == 1002, name[:80]
        assert made_of(hub) == set()
        assert not audit(hub, "client_connected")

    def test_of_itself_without_tls(self, instances: Instances) -> None:
        """Where names are what peers say, positions have to be kept under them."""
        hub = instances.hub(peers=["alpha"], tls=None)
        for name in INSTANCES.values():
            with stranger(hub.hub_addr, lambda plain: plain) as peer:
                peer.say(instance_name=name, role="client", version="1", subscribe=["orders"])
                assert peer.closed()[0] == 1002, name[:80]
        assert made_of(hub) == set()

    def test_in_its_certificate(
        self, instances: Instances, files: Files, authority: Authority
    ) -> None:
        """It is refused in the handshake, whoever has signed it."""
        hub = instances.hub(tls=files.tls(authority.issue("hub"), authority))
        # X.509 has none of more characters.
        names = [each for each in INSTANCES.values() if len(each) <= 64 and each != "\udc80"]
        for count, name in enumerate(names, 1):
            with pytest.raises((OSError, EOFError)):
                RawGuest(hub.hub_addr, shaking_hands(shown(authority.issue(name))))
            wait_until(lambda count=count: len(audit(hub, "client_rejected")) == count)
            assert "common name" in audit(hub, "client_rejected")[-1]["detail"], name
        assert made_of(hub) == set()


class TestOfAConfiguration:
    @pytest.mark.parametrize("key", CONFIG_ENTRANCES)
    def test_are_refused(self, key: str) -> None:
        """Every key that holds a name; the error names the key."""
        for name in (INSTANCES if key.endswith("name") else NAMES).values():
            with pytest.raises(ConfigError, match=key.replace("[", r"\[")):
                Config.from_dict(CONFIG_ENTRANCES[key](name))

    @pytest.mark.parametrize(
        "address", ["../../x:1", "[fe80::1%../../x]:1", "[fe80::1%a\n]:1", "a\0:1", "x/y:1"]
    )
    def test_in_a_hubs_address(self, address: str) -> None:
        """Positions towards a hub without a name are kept under its address."""
        hub = {"addr": address, "publish": ["orders"]}
        parts = {"storage": {"data_dir": "x"}, "client": {"enabled": True, "hubs": [hub]}}
        with pytest.raises(ConfigError, match="addr"):
            Config.from_dict(parts)
