"""Changed files: what applies to live connections, and what becomes of files that are broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keyop import Config, Messenger
from keyop.errors import ConfigError
from keyop.federation import reload
from keyop.federation.client import Condition
from keyop.federation.reload import Reloader
from keyop.storage.watch import Watcher
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.dial import dial
from keyop.transport.tls import TLSError
from keyop.wire.session import NOT_ALLOWED
from tests.fakes.proxy import Proxy
from tests.transport.certificates import Authority, Issued

from .byhand import Hand, PeerByHand
from .helpers import (
    ROOT,
    TYPE,
    Instances,
    audit,
    client_of,
    federation_of,
    lines_of,
    numbers,
    payloads,
    said,
    wait_audit,
    wait_connected,
    wait_payloads,
    wait_until,
)

NEVER_S = 3600.0


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody else may read, as keys are."""
    path.touch(0o600)
    path.write_bytes(content)


class Place:
    """Where the files of an instance lie, and how they are replaced; by writing into them here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def write(self, name: str, content: bytes) -> None:
        write_private(self.directory / name, content)


class Renamed(Place):
    """As editors and configuration management do: a new file in the place of the old one."""

    def write(self, name: str, content: bytes) -> None:
        new = self.directory / f".{name}.new"
        write_private(new, content)
        os.replace(new, self.directory / name)


class Swapped(Place):
    """As Kubernetes does: links to files behind one link to a directory, which is swapped."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._version = 0

    def write(self, name: str, content: bytes) -> None:
        self._version += 1
        new, current = self.directory / f"..{self._version}", self.directory / "..data"
        before = current.resolve() if current.exists() else None
        if before is None:
            new.mkdir()
        else:
            shutil.copytree(before, new)
        write_private(new / name, content)
        link = self.directory / "..data_new"
        link.symlink_to(new.name)
        os.replace(link, current)
        if before is not None:
            shutil.rmtree(before)
        if not (self.directory / name).is_symlink():
            (self.directory / name).symlink_to(f"..data/{name}")


class DirectoryReplaced(Place):
    """The whole directory by another one, which takes its name."""

    def write(self, name: str, content: bytes) -> None:
        new, old = (self.directory.with_name(f"{self.directory.name}-{end}") for end in "no")
        shutil.copytree(self.directory, new)
        write_private(new / name, content)
        self.directory.rename(old)
        new.rename(self.directory)
        shutil.rmtree(old)


WAYS = [Place, Renamed, Swapped, DirectoryReplaced]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made: Place = request.param(tmp_path / "files")
    return made


@pytest.fixture
def renamed(tmp_path: Path) -> Renamed:
    return Renamed(tmp_path / "files")


@pytest.fixture
def by_inotify(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not told of is never noticed."""
    monkeypatch.setattr(reload, "_POLL_S", NEVER_S)


@pytest.fixture
def by_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told of, as on a network file system."""
    monkeypatch.setattr(Watcher, "watch", lambda *_: False)
    monkeypatch.setattr(reload, "_POLL_S", 0.05)


def start(instances: Instances, place: Place, settings: dict[str, Any]) -> Messenger:
    """Start an instance from a file."""
    place.write("keyop.yaml", json.dumps(settings).encode())
    messenger = Messenger(Config.load(place.path("keyop.yaml")))
    instances.running.append(messenger)
    messenger.start()
    return messenger


def reread(place: Place, settings: dict[str, Any]) -> None:
    """Change the file of an instance."""
    place.write("keyop.yaml", json.dumps(settings).encode())


def greeted(instances: Instances, name: str, hub: Messenger, *subscribe: str) -> PeerByHand:
    """Return a client of a hub, let in."""
    peer = PeerByHand(instances, name, hub.hub_addr, subscribe=list(subscribe))
    peer.greet()
    return peer


def stays(hub: Messenger, peer: Hand) -> None:
    """Insist that a client is still served, and drop it."""
    peer.connection.send_binary(b"")
    assert peer.acknowledged() == ""
    peer.drop()


# --- how a change is noticed


def remove_a_peer(instances: Instances, place: Place) -> None:
    """Take a peer out of the allowlist: it is closed, at once; the other one stays."""
    settings = instances.hub_settings(peers=["alpha", "beta"])
    hub = start(instances, place, settings)
    alpha, beta = greeted(instances, "alpha", hub), greeted(instances, "beta", hub)
    settings["hub"]["allowed_peers"] = [{"name": "alpha"}]
    reread(place, settings)
    closed = beta.closed()
    assert (closed.code, closed.reason) == (NOT_ALLOWED, "not in allowlist")
    assert wait_audit(hub, "client_rejected")["peer"] == "beta"
    wait_audit(hub, "policy_reloaded")
    stays(hub, alpha)
    again = PeerByHand(instances, "beta", hub.hub_addr)
    again.say(**again.fields)
    assert again.closed().code == NOT_ALLOWED


# Of a directory in the place of another one, only the directory above would tell.
@pytest.mark.parametrize("way", WAYS[:-1], ids=lambda way: way.__name__)
def test_noticed_by_inotify(
    instances: Instances, tmp_path: Path, by_inotify: None, way: Callable[[Path], Place]
) -> None:
    """However a file is replaced, it is noticed as it happens."""
    remove_a_peer(instances, way(tmp_path / "files"))


def test_noticed_by_polling(instances: Instances, place: Place, by_polling: None) -> None:
    """However a file is replaced, it is noticed where nobody tells."""
    remove_a_peer(instances, place)


def test_noticed_twice(instances: Instances, place: Place) -> None:
    """The second change is noticed like the first: another directory is watched by then."""
    settings = instances.hub_settings(peers=["alpha"])
    hub = start(instances, place, settings)
    for number in range(1, 4):
        settings["hub"]["allowed_peers"] = [{"name": f"peer-{number}"}]
        reread(place, settings)
        wait_until(lambda: len(audit(hub, "policy_reloaded")) == number, 10, f"change {number}")  # noqa: B023
    assert [each.name for each in hub.config.hub.allowed_peers] == ["peer-3"]


def test_by_hand(instances: Instances) -> None:
    """A program may hand over a configuration of its own making."""
    settings = instances.hub_settings(peers=["alpha"])
    hub = instances.start(settings)
    alpha = greeted(instances, "alpha", hub)
    settings["hub"]["allowed_peers"] = []
    hub.reload(Config.from_dict(settings))
    assert alpha.closed().code == NOT_ALLOWED


def test_unchanged_it_is_not_read(
    instances: Instances, renamed: Renamed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files of the same directory are not our affair."""
    hub = start(instances, renamed, instances.hub_settings())
    loads = count_calls(monkeypatch, Config, "load")
    looks = count_calls(monkeypatch, Reloader, "_look")
    renamed.write("other", b"x")
    wait_until(lambda: len(looks) >= 2, 10, "two looks")
    assert not loads
    assert not audit(hub, "policy_reloaded")


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Return a list that grows with every call of a function."""
    calls: list[None] = []
    original = getattr(owner, name)

    def counted(*args: Any) -> Any:
        calls.append(None)
        return original(*args)

    monkeypatch.setattr(owner, name, counted)
    return calls


# --- what applies to live connections


def test_channels_that_a_peer_may_receive(instances: Instances, renamed: Renamed) -> None:
    """One that is taken away stops, one that is given begins, and the link stays."""
    settings = instances.hub_settings(peers={"alpha": {"subscribe": ["old", "both"]}})
    hub = start(instances, renamed, settings)
    client = instances.client("alpha", hub, subscribe=["old", "new", "both"])
    hub.publish_batch("old", numbers(0, 2))
    assert wait_payloads(client, "old", 2) == [0, 1]
    settings["hub"]["allowed_peers"] = [{"name": "alpha", "subscribe": ["new", "both"]}]
    reread(renamed, settings)
    (served,) = federation_of(hub).hub._clients  # type: ignore[union-attr] # there is one
    wait_until(lambda: set(served.sender.feeds) == {"new", "both"}, 10, "other channels")
    hub.publish_batch("old", numbers(2, 4))
    hub.publish_batch("new", numbers(4, 6))
    hub.publish_batch("both", numbers(6, 8))
    assert wait_payloads(client, "new", 2) == [4, 5]
    assert wait_payloads(client, "both", 2) == [6, 7]
    assert payloads(client, "old") == [0, 1]
    assert client_of(client).connects == 1
    # Given back, it goes on where it stopped.
    settings["hub"]["allowed_peers"] = [{"name": "alpha", "subscribe": ["old"]}]
    reread(renamed, settings)
    assert wait_payloads(client, "old", 4) == [0, 1, 2, 3]


def test_channels_that_a_peer_may_publish(instances: Instances, renamed: Renamed) -> None:
    """What comes after the change is judged by it."""
    settings = instances.hub_settings(peers={"alpha": {"publish": ["old"]}})
    hub = start(instances, renamed, settings)
    client = instances.client("alpha", hub, publish=["old", "new"])
    client.publish("old", TYPE, 1)
    assert wait_payloads(hub, "old", 1) == [1]
    settings["hub"]["allowed_peers"] = [{"name": "alpha", "publish": ["new"]}]
    reread(renamed, settings)
    wait_audit(hub, "policy_reloaded")
    client.publish("old", TYPE, 2)
    client.publish("new", TYPE, 3)
    assert wait_payloads(hub, "new", 1) == [3]
    assert wait_audit(hub, "policy_violation")["channel"] == "old"
    assert payloads(hub, "old") == [1]


def test_a_peer_that_is_allowed_now(instances: Instances, renamed: Renamed) -> None:
    """It is let in when it comes, without a restart."""
    settings = instances.hub_settings(peers=[])
    hub = start(instances, renamed, settings)
    client = instances.client("alpha", hub.hub_addr)
    wait_until(lambda: client_of(client).condition is Condition.REFUSED, 10, "a refusal")
    settings["hub"]["allowed_peers"] = [{"name": "alpha"}]
    reread(renamed, settings)
    wait_audit(hub, "policy_reloaded")
    # A client that was refused tries again when its own configuration is read again.
    client.reload(client.config)
    wait_connected(client)


@pytest.mark.parametrize(
    ("key", "value"),
    [("listen_addr", "127.0.0.1:1"), ("max_pending", 1), ("fed_client_offset_ttl", "1h")],
)
def test_what_needs_a_restart(
    instances: Instances,
    renamed: Renamed,
    caplog: pytest.LogCaptureFixture,
    key: str,
    value: object,
) -> None:
    """It is said, and the rest applies."""
    settings = instances.hub_settings(peers=["alpha"])
    hub = start(instances, renamed, settings)
    address = hub.hub_addr
    settings["hub"] |= {key: value, "allowed_peers": [{"name": "beta"}]}
    reread(renamed, settings)
    wait_audit(hub, "policy_reloaded")
    told = f"hub.{key}: what was changed applies after the next start"
    assert said(caplog, "federation.federation") == [told]
    assert hub.hub_addr == address
    greeted(instances, "beta", hub).drop()


# --- certificates


class Certificates:
    """The files of an authority's instances in a place, to be replaced."""

    def __init__(self, place: Place, authority: Authority) -> None:
        self.place = place
        self.authority = authority
        self.write_authority(authority)
        self.place.write("crl.pem", authority.revoke())

    def write_authority(self, *authorities: Authority) -> None:
        self.place.write("ca.pem", b"".join(each.pem for each in authorities))

    def issue(self, name: str, authority: Authority | None = None) -> Issued:
        """Issue a certificate and write its files, key first."""
        issued = (authority or self.authority).issue(name)
        self.write(name, issued)
        return issued

    def write(self, name: str, issued: Issued) -> None:
        self.place.write(f"{name}.key", issued.key_pem)
        self.place.write(f"{name}.crt", issued.pem)

    def tls(self, name: str, crl: bool = False) -> dict[str, str]:
        paths = {"cert": f"{name}.crt", "key": f"{name}.key", "ca": "ca.pem"}
        found = {key: self.place.path(file) for key, file in paths.items()}
        return {**found, "crl": self.place.path("crl.pem")} if crl else found

    def connect(self, name: str, address: str) -> Hand:
        """Return a connection that was upgraded; there was no hello yet."""
        return Hand(
            dial(address, Credentials.load(**self.tls(name)).context(SERVER_AUTH)).connection
        )

    def greet(self, name: str, address: str) -> Hand:
        """Return a connection of a client that was let in."""
        hand = self.connect(name, address)
        hand.say(instance_name=name, role="client", version="1")
        hand.hear()
        return hand


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def made(renamed: Renamed, authority: Authority) -> Certificates:
    return Certificates(renamed, authority)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_revoked_peer(
    instances: Instances, tmp_path: Path, authority: Authority, way: Callable[[Path], Place]
) -> None:
    """It is closed with 4403 when the list says so, and not let in again; others stay."""
    made = Certificates(way(tmp_path / "files"), authority)
    made.issue("hub")
    revoked, _ = made.issue("alpha"), made.issue("beta")
    hub = instances.hub(tls=made.tls("hub", crl=True))
    alpha, beta = made.greet("alpha", hub.hub_addr), made.greet("beta", hub.hub_addr)
    made.place.write("crl.pem", authority.revoke(revoked))
    closed = alpha.closed()
    assert (closed.code, closed.reason) == (NOT_ALLOWED, "it has been revoked")
    wait_audit(hub, "tls_reloaded")
    found = wait_audit(hub, "client_rejected")
    assert (found["peer"], found["detail"]) == ("alpha", "it has been revoked")
    stays(hub, beta)
    with pytest.raises(TLSError, match="refused this one's certificate"):
        made.connect("alpha", hub.hub_addr)


def test_a_peer_revoked_before_its_hello(instances: Instances, made: Certificates) -> None:
    """Its handshake was with the list of before; its hello is judged by the one of now."""
    made.issue("hub")
    revoked = made.issue("alpha")
    hub = instances.hub(tls=made.tls("hub", crl=True))
    alpha = made.connect("alpha", hub.hub_addr)
    made.place.write("crl.pem", made.authority.revoke(revoked))
    wait_audit(hub, "tls_reloaded")
    alpha.say(instance_name="alpha", role="client", version="1")
    closed = alpha.closed()
    assert (closed.code, closed.reason) == (NOT_ALLOWED, "it has been revoked")
    assert not audit(hub, "client_connected")


def test_another_authority(instances: Instances, made: Certificates) -> None:
    """Peers of an authority that is not trusted any more are closed, not before."""
    made.issue("hub")
    made.issue("alpha")
    hub = instances.hub(tls=made.tls("hub"))
    alpha = made.greet("alpha", hub.hub_addr)
    newer = Authority("newer")
    made.write_authority(made.authority, newer)
    wait_audit(hub, "tls_reloaded")
    made.issue("beta", newer)
    made.issue("hub", newer)
    wait_until(lambda: len(audit(hub, "tls_reloaded")) >= 2, 10, "the hub's own certificate")
    beta = made.greet("beta", hub.hub_addr)
    made.write_authority(newer)
    assert alpha.closed().code == NOT_ALLOWED
    stays(hub, beta)


def serial_number(made: Certificates, address: str) -> int:
    """Return the number of the certificate that a hub shows to a new connection."""
    hand = made.connect("alpha", address)
    number: int = hand.connection._stream.peer_certificate().serial_number
    hand.drop()
    return number


def test_a_new_certificate_of_the_hub(instances: Instances, made: Certificates) -> None:
    """New connections are shown it; those that there are go on."""
    first = made.issue("hub")
    made.issue("alpha")
    hub = instances.hub(tls=made.tls("hub"))
    assert serial_number(made, hub.hub_addr) == first.certificate.serial_number
    alpha = made.greet("alpha", hub.hub_addr)
    second = made.issue("hub")
    wait_audit(hub, "tls_reloaded")
    assert serial_number(made, hub.hub_addr) == second.certificate.serial_number
    stays(hub, alpha)


def test_a_new_certificate_of_a_client(instances: Instances, made: Certificates) -> None:
    """It dials again with it, and nothing is lost on the way."""
    made.issue("hub")
    made.issue("alpha")
    hub = instances.hub(tls=made.tls("hub"))
    client = instances.client("alpha", hub, tls=made.tls("alpha"))
    client.publish("up", TYPE, 1)
    second = made.issue("alpha")
    wait_until(lambda: client_of(client).connects == 2, 10, "the client to dial again")
    client.publish("up", TYPE, 2)
    assert wait_payloads(hub, "up", 2) == [1, 2]
    number = second.certificate.serial_number

    def with_the_new_one() -> bool:
        clients = federation_of(hub).hub._clients  # type: ignore[union-attr] # there is one
        return [each.certificate.serial_number for each in clients] == [number]

    wait_until(with_the_new_one, 10, "the hub to see the new certificate")


# --- the hubs of a client


def client_settings(instances: Instances, *hubs: dict[str, Any]) -> dict[str, Any]:
    return instances.settings("alpha", client={"enabled": True, "hubs": hubs})


def test_hubs_that_come_and_go(instances: Instances, renamed: Renamed) -> None:
    """A hub that is added gets what is published from then on; one that is left gets nothing."""
    first, second = instances.hub("hub"), instances.hub("hub-2")
    to_first = {"addr": first.hub_addr, "name": "hub"}
    to_second = {"addr": second.hub_addr, "name": "hub-2"}
    client = start(instances, renamed, client_settings(instances, to_first))
    wait_connected(client)
    client.publish("up", TYPE, 1)
    assert wait_payloads(first, "up", 1) == [1]
    reread(renamed, client_settings(instances, to_first, to_second))
    wait_until(lambda: len(federation_of(client).clients) == 2, 10, "a second hub")
    wait_connected(client)
    client.publish("up", TYPE, 2)
    assert wait_payloads(first, "up", 2) == [1, 2]
    assert wait_payloads(second, "up", 1) == [2]
    reread(renamed, client_settings(instances, to_second))
    wait_until(lambda: len(federation_of(client).clients) == 1, 10, "the first hub to be left")
    wait_audit(first, "peer_disconnected")
    client.publish("up", TYPE, 3)
    assert wait_payloads(second, "up", 2) == [2, 3]
    assert payloads(first, "up") == [1, 2]
    assert client_of(client).connects == 1


def test_a_hub_that_has_moved(instances: Instances, renamed: Renamed) -> None:
    """By its name it is the same one: nothing is sent twice, and nothing left out."""
    hub = instances.hub("hub")
    settings = client_settings(instances, {"addr": hub.hub_addr, "name": "hub"})
    client = start(instances, renamed, settings)
    wait_connected(client)
    client.publish("up", TYPE, 1)
    wait_payloads(hub, "up", 1)
    instances.stop(hub)
    client.publish("up", TYPE, 2)
    moved = instances.hub("hub")
    assert moved.hub_addr != hub.config.hub.listen_addr
    reread(renamed, client_settings(instances, {"addr": moved.hub_addr, "name": "hub"}))
    assert wait_payloads(moved, "up", 2) == [1, 2]
    assert len(lines_of(moved, "up")) == 2


def test_a_hub_that_moves_while_it_is_dialled(instances: Instances, renamed: Renamed) -> None:
    """A connection to where it was is given up, although it is made in the end."""
    hub = instances.hub("hub")
    with Proxy(hub.hub_addr) as proxy:
        proxy.stall()
        settings = client_settings(instances, {"addr": proxy.address, "name": "hub"})
        client = start(instances, renamed, settings)
        wait_until(lambda: proxy.open, 10, "the client to dial")
        reread(renamed, client_settings(instances, {"addr": hub.hub_addr, "name": "hub"}))
        wait_until(lambda: client_of(client).hub.addr == hub.hub_addr, 10, "the change")
        proxy.go_on()
        wait_connected(client)
        wait_until(lambda: not proxy.open, 10, "the old connection to end")
        assert client_of(client).condition is Condition.CONNECTED
        assert wait_audit(client, "peer_connected")["peer_addr"] == hub.hub_addr
        client.publish("up", TYPE, 1)
        assert wait_payloads(hub, "up", 1) == [1]


def test_channels_that_a_client_subscribes_to(instances: Instances, renamed: Renamed) -> None:
    """It asks for the new ones; what it publishes goes on."""
    hub = instances.hub("hub")
    own = {"addr": hub.hub_addr, "subscribe": ["old"], "publish": ["up"]}
    client = start(instances, renamed, client_settings(instances, own))
    wait_connected(client)
    reread(renamed, client_settings(instances, {**own, "subscribe": ["new"], "publish": ["more"]}))
    wait_until(lambda: client_of(client).connects == 2, 10, "another hello")
    hub.publish("old", TYPE, 1)
    hub.publish("new", TYPE, 2)
    client.publish("up", TYPE, 3)
    client.publish("more", TYPE, 4)
    assert wait_payloads(client, "new", 1) == [2]
    assert wait_payloads(hub, "more", 1) == [4]
    assert payloads(client, "old") == []
    assert payloads(hub, "up") == []


# --- files that cannot be used


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, by_polling: None) -> Callable[[], None]:
    """Give what waits until the files were looked at a few times more."""
    looks = count_calls(monkeypatch, Reloader, "_look")

    def wait() -> None:
        before = len(looks)
        wait_until(lambda: len(looks) >= before + 4, 10, "more looks")

    return wait


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"name: hub", b"\xff\xfe", b"hub: {enabled: true, listen_adr: ':1'}"],
    ids=["empty", "broken", "not enough", "no text", "unknown key"],
)
def test_a_configuration_that_cannot_be_used(
    instances: Instances,
    renamed: Renamed,
    caplog: pytest.LogCaptureFixture,
    watched: Callable[[], None],
    content: bytes,
) -> None:
    """It is reported once, and the old one stays until there is one that can be used."""
    settings = instances.hub_settings(peers=["alpha", "beta"])
    hub = start(instances, renamed, settings)
    alpha = greeted(instances, "alpha", hub)
    renamed.write("keyop.yaml", content)
    wait_audit(hub, "policy_reload_failed")
    watched()
    assert len(audit(hub, "policy_reload_failed")) == 1
    (line,) = said(caplog, "federation.reload")
    assert renamed.path("keyop.yaml") in line
    assert "the old one stays" in line
    assert not audit(hub, "policy_reloaded")
    stays(hub, alpha)
    greeted(instances, "beta", hub).drop()
    settings["hub"]["allowed_peers"] = [{"name": "beta"}]
    reread(renamed, settings)
    wait_audit(hub, "policy_reloaded")


def test_a_configuration_that_is_gone(
    instances: Instances, renamed: Renamed, watched: Callable[[], None]
) -> None:
    """Likewise; it may come back."""
    settings = instances.hub_settings(peers=["alpha"])
    hub = start(instances, renamed, settings)
    os.unlink(renamed.path("keyop.yaml"))
    wait_audit(hub, "policy_reload_failed")
    watched()
    assert len(audit(hub, "policy_reload_failed")) == 1
    settings["hub"]["allowed_peers"] = [{"name": "beta"}]
    reread(renamed, settings)
    wait_audit(hub, "policy_reloaded")


@pytest.mark.parametrize("which", ["hub.crt", "hub.key", "ca.pem", "crl.pem"])
def test_a_certificate_that_cannot_be_used(
    instances: Instances,
    made: Certificates,
    caplog: pytest.LogCaptureFixture,
    watched: Callable[[], None],
    which: str,
) -> None:
    """The file is named, once, and everybody is served with the old one."""
    first = made.issue("hub")
    made.issue("alpha")
    hub = instances.hub(tls=made.tls("hub", crl=True))
    context = Credentials.load(**made.tls("alpha")).context(SERVER_AUTH)
    good = Path(made.place.path(which)).read_bytes()
    made.place.write(which, b"-----BEGIN NOTHING-----\n")
    assert which in wait_audit(hub, "tls_reload_failed")["detail"]
    watched()
    assert len(audit(hub, "tls_reload_failed")) == 1
    (line,) = said(caplog, "federation.reload")
    assert which in line
    dialled = dial(hub.hub_addr, context)
    shown = dialled.connection._stream.peer_certificate()
    assert shown.serial_number == first.certificate.serial_number
    dialled.connection.drop()
    dialled.connection.finish()
    made.place.write(which, good)
    watched()
    assert len(audit(hub, "tls_reload_failed")) == 1


def test_a_certificate_and_then_its_key(
    instances: Instances, made: Certificates, watched: Callable[[], None]
) -> None:
    """In between they do not fit; once they do, they are used."""
    made.issue("hub")
    made.issue("alpha")
    hub = instances.hub(tls=made.tls("hub"))
    second = made.authority.issue("hub")
    made.place.write("hub.crt", second.pem)
    wait_audit(hub, "tls_reload_failed")
    made.place.write("hub.key", second.key_pem)
    wait_audit(hub, "tls_reloaded")
    assert serial_number(made, hub.hub_addr) == second.certificate.serial_number


def test_a_file_that_is_named_before_it_is_there(
    instances: Instances, made: Certificates, authority: Authority, by_inotify: None
) -> None:
    """The configuration is used as soon as the file has come."""
    made.issue("hub")
    settings = instances.hub_settings(tls=made.tls("hub"))
    hub = start(instances, made.place, settings)
    elsewhere = made.place.directory.with_name("elsewhere")
    elsewhere.mkdir()
    settings["tls"]["crl"] = str(elsewhere / "late.pem")
    reread(made.place, settings)
    wait_audit(hub, "tls_reload_failed")
    (elsewhere / "late.pem").write_bytes(authority.revoke())
    wait_audit(hub, "tls_reloaded")
    assert len(audit(hub, "tls_reload_failed")) == 1
    assert hub.config.tls.crl == str(elsewhere / "late.pem")


# --- the watch itself


class Applied:
    """What a reloader was told to use, and what it reported."""

    def __init__(self, path: str) -> None:
        self.configs: list[Config] = []
        self.reports: list[str] = []
        self.error: Exception | None = None
        self.watcher = Watcher()
        self.reloader = Reloader(self.watcher, Config.load(path), self.apply, self.reports.append)

    def apply(self, config: Config) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.configs.append(config)


@pytest.fixture
def applied(renamed: Renamed) -> Iterator[Applied]:
    renamed.write("keyop.yaml", b"{name: first, storage: {data_dir: x}}")
    made = Applied(renamed.path("keyop.yaml"))
    made.reloader.start()
    yield made
    made.reloader.stop()
    made.watcher.close()


def test_a_fault_does_not_end_the_watch(
    renamed: Renamed, applied: Applied, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever applying raises, the next change is applied."""
    applied.error = RuntimeError("a fault")
    renamed.write("keyop.yaml", b"{name: second, storage: {data_dir: x}}")
    wait_until(lambda: said(caplog, "federation.reload"), 10, "the fault to be told")
    renamed.write("keyop.yaml", b"{name: third, storage: {data_dir: x}}")
    wait_until(lambda: applied.configs, 10, "the next change")
    assert [config.name for config in applied.configs] == ["third"]


def test_what_is_written_in_steps_is_applied_once(renamed: Renamed, applied: Applied) -> None:
    """Half a file is not looked at, if the other half comes at once."""
    path = Path(renamed.path("keyop.yaml"))
    with open(path, "wb") as file:
        file.write(b"{name: second, ")
        file.flush()
        file.write(b"storage: {data_dir: x}}")
    wait_until(lambda: applied.configs, 10, "the change")
    assert [config.name for config in applied.configs] == ["second"]
    assert applied.reports == []


def test_one_that_changes_all_the_time_is_read_all_the_same(
    renamed: Renamed, applied: Applied
) -> None:
    """Nobody can keep a change from being applied by making more of them."""
    number = 0

    def change_and_look() -> bool:
        nonlocal number
        number += 1
        renamed.write("keyop.yaml", b"{name: n%d, storage: {data_dir: x}}" % number)
        return bool(applied.configs)

    wait_until(change_and_look, 20, "a change to be applied")


def test_asked_to_it_reads_what_has_not_changed(applied: Applied) -> None:
    """As SIGHUP does."""
    applied.reloader.trigger()
    wait_until(lambda: applied.configs, 10, "the configuration")
    assert applied.configs[0].name == "first"


def test_refused_it_is_reported(applied: Applied) -> None:
    """What ``apply`` says is passed on."""
    applied.error = ConfigError("not like that")
    applied.reloader.trigger()
    wait_until(lambda: applied.reports, 10, "a report")
    assert "not like that" in applied.reports[0]


# --- the command


def test_sighup(instances: Instances, renamed: Renamed, tmp_path: Path) -> None:
    """``keyop-hub`` reads its files again, says so, and goes on."""
    settings = instances.hub_settings(peers=["alpha"])
    reread(renamed, settings)
    err = tmp_path / "err"
    command = [sys.executable, str(ROOT / "bin" / "keyop-hub"), "-c", renamed.path("keyop.yaml")]
    with (
        open(err, "wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1].decode()
            peer = PeerByHand(instances, "alpha", address)
            peer.greet()
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: b"the configuration was reloaded" in err.read_bytes(), 20, "a line")
            settings["hub"]["allowed_peers"] = []
            reread(renamed, settings)
            process.send_signal(signal.SIGHUP)
            assert peer.closed().code == NOT_ALLOWED
        finally:
            process.terminate()
        assert process.wait(20) == 0
