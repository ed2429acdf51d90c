"""TLS at a hub's door: versions, sessions, and the certificates of both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import ExtendedKeyUsage
from OpenSSL import SSL

from keyop import Messenger
from keyop.transport.identity import CLIENT_AUTH, SERVER_AUTH
from tests.federation.helpers import (
    Instances,
    audit,
    client_of,
    wait_until,
)
from tests.federation.rawpeers import RawGuest
from tests.transport.certificates import DAY, Authority, Files, Issued, subject

from .helpers import connect, hub_by_hand, shaking_hands, shown

TLS1_1, TLS1_2, TLS1_3 = SSL.TLS1_1_VERSION, SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION


def refused(hub: Messenger, context: SSL.Context) -> str:
    """Insist that somebody is not let in; return what the hub notes of it."""
    before = len(audit(hub, "client_rejected"))
    with pytest.raises((OSError, EOFError)):
        RawGuest(hub.hub_addr, shaking_hands(context))
    wait_until(lambda: len(audit(hub, "client_rejected")) > before, 10, "it to be noted")
    assert not audit(hub, "client_connected")
    return audit(hub, "client_rejected")[-1]["detail"]


def let_in(hub: Messenger, context: SSL.Context) -> str:
    """Insist that alpha is let in; return the version that was spoken."""
    peer = RawGuest(hub.hub_addr, shaking_hands(context))
    peer.greet("alpha")
    version: str = peer.stream._ssl.get_protocol_version_name()
    peer.close()
    return version


@pytest.fixture
def at(instances: Instances, files: Files, authority: Authority) -> Callable[..., Messenger]:
    """Starts a hub with a certificate of the authority, and more keys of ``tls``."""
    return lambda **tls: instances.hub(tls={**files.tls(authority.issue("hub"), authority), **tls})


class TestVersions:
    @pytest.mark.parametrize("last", [TLS1_1, TLS1_2])
    def test_below_the_floor(self, at: Any, authority: Authority, last: int) -> None:
        """TLS 1.3 and nothing else, unless the configuration says so."""
        detail = refused(at(), shown(authority.issue("alpha"), last=last))
        assert "version" in detail or "protocol" in detail

    def test_below_a_lower_floor(self, at: Any, authority: Authority) -> None:
        """With ``min_version: "1.2"``, 1.1 is refused, 1.2 and 1.3 are spoken."""
        hub = at(min_version="1.2")
        refused(hub, shown(authority.issue("alpha"), last=TLS1_1))
        assert let_in(hub, shown(authority.issue("alpha"), last=TLS1_2)) == "TLSv1.2"
        assert let_in(hub, shown(authority.issue("alpha"))) == "TLSv1.3"

    def test_no_step_down_from_a_client(self, instances: Instances, at: Any) -> None:
        """A client of 1.3 speaks to no hub of 1.2, whoever that is."""
        with hub_by_hand({**instances.tls("hub"), "min_version": "1.2"}) as hub:
            context = hub._listener._context()
            context.set_max_proto_version(TLS1_2)
            client = instances.client("alpha", hub.address)
            wait_until(lambda: client_of(client).trouble, 10, "it to say why")
            assert not client_of(client).connects
            assert hub.arrived == 0


class TestSessions:
    @pytest.mark.parametrize("last", [TLS1_2, TLS1_3], ids=["1.2", "1.3"])
    def test_are_not_resumed(self, at: Any, authority: Authority, last: int) -> None:
        """Who comes again with the session that it had shows its certificate again."""
        hub, context = at(min_version="1.2"), shown(authority.issue("alpha"), last=last)
        first = RawGuest(hub.hub_addr, shaking_hands(context))
        first.greet("alpha")  # behind which a ticket would have come
        session = first.stream._ssl.get_session()
        first.close()
        again = RawGuest(hub.hub_addr, shaking_hands(context, session))
        assert not SSL._lib.SSL_session_reused(again.stream._ssl._ssl)
        again.greet("alpha")
        again.close()

    def test_are_not_renegotiated(
        self, instances: Instances, at: Any, authority: Authority
    ) -> None:
        """A client that asks for it in TLS 1.2 is refused, and the hub goes on."""
        hub = at(min_version="1.2")
        peer = RawGuest(hub.hub_addr, shaking_hands(shown(authority.issue("alpha"), last=TLS1_2)))
        peer.greet("alpha")
        assert peer.stream._ssl.renegotiate()
        with pytest.raises(OSError, match="no renegotiation"):
            peer.stream.recv(10)
        peer.close()
        assert let_in(hub, shown(authority.issue("alpha"))) == "TLSv1.3"

    @pytest.mark.parametrize("cipher", [b"aNULL", b"eNULL"])
    def test_are_never_in_the_clear(self, at: Any, authority: Authority, cipher: bytes) -> None:
        """In TLS 1.2 neither, with ciphers that encrypt nothing, or ask for no certificate."""
        context = shown(authority.issue("alpha"), last=TLS1_2)
        context.set_cipher_list(cipher + b":@SECLEVEL=0")
        refused(at(min_version="1.2"), context)


Make = Callable[[Authority], "Issued | None"]
CERTIFICATES: dict[str, tuple[Make, str]] = {
    "none": (lambda ca: None, "did not return a certificate"),
    "of another authority": (lambda ca: Authority().issue("alpha"), "not the authority of tls.ca"),
    "signed by itself": (lambda ca: self_signed("alpha"), "self-signed"),
    "expired": (lambda ca: ca.issue("alpha", begins=-2 * DAY, ends=-DAY), "has expired"),
    "not valid yet": (lambda ca: ca.issue("alpha", begins=DAY), "not valid yet"),
    "a server's": (lambda ca: ca.issue("alpha", usages=[SERVER_AUTH]), "not for"),
    "for no use": (lambda ca: ca.issue("alpha", usages=[]), "not for"),
    "of no stated use": (lambda ca: ca.issue("alpha", usages=None), "not for"),
    "an authority's": (lambda ca: ca.issue("alpha", authority=True), "an authority's own"),
    "the authority's own": (lambda ca: Issued(ca.certificate, ca.key), "authority"),
    "with a short key": (lambda ca: short("alpha", ca), "code"),
    "signed by an instance": (lambda ca: signed_by_an_instance(ca), "its issuer"),
}


def self_signed(name: str) -> Issued:
    other = Authority(name)
    return Issued(other.certificate, other.key)


def short(name: str, ca: Authority) -> Issued:
    key = rsa.generate_private_key(65537, 1024)
    usages = [(ExtendedKeyUsage([CLIENT_AUTH, SERVER_AUTH]), False)]
    return Issued(ca.build(subject(name), key.public_key(), usages), key)  # type: ignore[arg-type]


def signed_by_an_instance(ca: Authority) -> Issued:
    """Return what somebody may sign who has a certificate of the authority's, and is none."""
    beta = ca.issue("beta")
    false = Authority("beta")
    false.key = beta.key
    return false.issue("alpha")


class TestCertificates:
    @pytest.mark.parametrize("kind", CERTIFICATES)
    def test_that_are_refused(self, at: Any, authority: Authority, kind: str) -> None:
        """Before a byte of the request is read; the hub says which one and why."""
        make, reason = CERTIFICATES[kind]
        assert reason in refused(at(), shown(make(authority)))

    @pytest.mark.parametrize("kind", ["of another authority", "expired", "an authority's"])
    def test_that_a_client_refuses(
        self, instances: Instances, files: Files, authority: Authority, kind: str
    ) -> None:
        """It says nothing to a hub that shows one of these, and tries again."""
        bad = CERTIFICATES[kind][0](authority)
        assert bad is not None
        with hub_by_hand(files.tls(bad, authority)) as hub:
            own = files.tls(authority.issue("alpha"), authority)
            client = instances.client("alpha", hub.address, tls=own)
            wait_until(lambda: client_of(client).trouble, 10, "it to say why")
            assert "certificate was refused" in client_of(client).trouble
            assert hub.arrived == 0

    def test_of_a_client_at_a_hub(
        self, instances: Instances, files: Files, authority: Authority
    ) -> None:
        """A client's certificate is not one that a hub may show."""
        own = authority.issue("hub", usages=[CLIENT_AUTH])
        with hub_by_hand(files.tls(own, authority)) as hub:
            sound = files.tls(authority.issue("alpha"), authority)
            client = instances.client("alpha", hub.address, tls=sound)
            wait_until(lambda: client_of(client).trouble, 10, "it to say why")
            assert "not for" in client_of(client).trouble

    def test_in_the_clear(self, at: Any) -> None:
        """Who speaks no TLS to a hub that does is not answered."""
        plain = connect(at().hub_addr)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert not plain.recv(1000).startswith(b"HTTP")
        plain.close()
