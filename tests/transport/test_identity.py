"""What a certificate says of its owner."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from keyop.transport.identity import (
    CLIENT_AUTH,
    SERVER_AUTH,
    CertificateError,
    check_host,
    check_leaf,
    common_name,
)
from tests.wire.golden import GOLDEN, needs_golden

from .certificates import BOTH, Authority


class TestCommonName:
    @pytest.mark.parametrize("name", ["a", "hub-1.example.org", "site:7", "x" * 64])
    def test_a_valid_one(self, authority: Authority, name: str) -> None:
        """The one common name is the instance's name."""
        assert common_name(authority.issue(name).certificate) == name

    @pytest.mark.parametrize("names", [(), ("a", "b"), ("a", "a")])
    def test_none_or_several(self, authority: Authority, names: tuple[str, ...]) -> None:
        """There is exactly one: with two it would depend on who looks."""
        with pytest.raises(CertificateError, match=f"{len(names)} common names"):
            common_name(authority.issue(*names).certificate)

    @pytest.mark.parametrize("name", [".", "..", "../../x", "a b", "a/b", "ä", "a\n", "a\x00b"])
    def test_an_invalid_one(self, authority: Authority, name: str) -> None:
        """It becomes a file's name, and passes the validator before that."""
        with pytest.raises(CertificateError, match="common name"):
            common_name(authority.issue(name).certificate)

    @needs_golden
    @pytest.mark.parametrize("name", ["client1", "eph1", "hub-1.example.org"])
    def test_those_of_v0_11_0(self, name: str) -> None:
        """Certificates that v0.11.0 has made are an instance's, for both sides and its host."""
        data = (GOLDEN / "certs" / f"{name}.crt").read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
        assert common_name(certificate) == name
        for usage in BOTH:
            check_leaf(certificate, usage)
        check_host(certificate, name)


class TestLeaf:
    @pytest.mark.parametrize(
        ("usages", "client", "server"),
        [
            (BOTH, True, True),
            ((CLIENT_AUTH,), True, False),
            ((SERVER_AUTH,), False, True),
            ((ExtendedKeyUsageOID.EMAIL_PROTECTION,), False, False),
            ((ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,), False, False),
            (None, False, False),
        ],
    )
    def test_usages(
        self,
        authority: Authority,
        usages: tuple[x509.ObjectIdentifier, ...],
        client: bool,
        server: bool,
    ) -> None:
        """A certificate is for the sides that it names, and for none if it names none."""
        certificate = authority.issue("a", usages=usages).certificate
        for usage, good, role in ((CLIENT_AUTH, client, "client"), (SERVER_AUTH, server, "server")):
            if good:
                check_leaf(certificate, usage)
            else:
                with pytest.raises(CertificateError, match=f"not for a {role}"):
                    check_leaf(certificate, usage)

    def test_an_authority(self, authority: Authority) -> None:
        """An authority's certificate is no instance's, whatever it is for."""
        with pytest.raises(CertificateError, match="authority's own"):
            check_leaf(authority.issue("a", authority=True).certificate, CLIENT_AUTH)
        with pytest.raises(CertificateError, match="authority's own"):
            check_leaf(authority.certificate, SERVER_AUTH)

    def test_who_says_that_it_is_none(self, authority: Authority) -> None:
        """Basic constraints may be there, and say no."""
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = [
            (x509.BasicConstraints(False, None), True),
            (x509.ExtendedKeyUsage(BOTH), False),
        ]
        owner = authority.issue("a").certificate.subject
        check_leaf(authority.build(owner, key.public_key(), extensions), CLIENT_AUTH)

    def test_extensions_that_cannot_be_read(self, authority: Authority) -> None:
        """A damaged extension refuses the certificate, and nothing else happens."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.UnrecognizedExtension(x509.ExtendedKeyUsage.oid, b"\x30\x03\x06\x01")
        owner = authority.issue("a").certificate.subject
        certificate = authority.build(owner, key.public_key(), [(usage, False)])
        with pytest.raises(CertificateError, match="cannot be read"):
            check_leaf(certificate, CLIENT_AUTH)


class TestHost:
    @pytest.mark.parametrize(
        ("held", "dialled"),
        [
            ("hub.example.org", "hub.example.org"),
            ("hub.example.org", "HUB.Example.ORG"),
            ("Hub.example.org", "hub.example.org."),
            ("hub.example.org.", "hub.example.org"),
            ("*.example.org", "hub.example.org"),
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("2001:db8::1", "2001:0db8:0:0::1"),
        ],
    )
    def test_the_same(self, authority: Authority, held: str, dialled: str) -> None:
        """Names regardless of case and a last dot, addresses regardless of how they are written."""
        check_host(authority.issue("h", hosts=("other", held, "::2")).certificate, dialled)

    @pytest.mark.parametrize(
        ("held", "dialled"),
        [
            ("hub.example.org", "example.org"),
            ("hub.example.org", "hub.example.com"),
            ("hub.example.org", "hub.example.org.evil.net"),
            ("*.example.org", "example.org"),
            ("*.example.org", "a.b.example.org"),
            ("h*.example.org", "hub.example.org"),
            ("hub.*.org", "hub.example.org"),
            ("*", "localhost"),
            ("*.org", "example.org"),
            ("*.*.org", "a.b.org"),
            ("127.0.0.1", "127.0.0.2"),
            ("127.0.0.1", "localhost"),
            ("localhost", "127.0.0.1"),
            ("::1", "127.0.0.1"),
            ("*.0.0.1", "127.0.0.1"),
        ],
    )
    def test_another_one(self, authority: Authority, held: str, dialled: str) -> None:
        """A wildcard stands for one whole label at the left, not for a top-level domain."""
        certificate = authority.issue("h", hosts=(held,)).certificate
        with pytest.raises(CertificateError) as raised:
            check_host(certificate, dialled)
        # It says both, and what to do.
        for part in (held, dialled, "give the hub's name"):
            assert part in str(raised.value)

    def test_an_address_as_a_name(self, authority: Authority) -> None:
        """An address that stands among the names is none: RFC 9525."""
        names = x509.SubjectAlternativeName([x509.DNSName("127.0.0.1")])
        key = ec.generate_private_key(ec.SECP256R1())
        owner = authority.issue("h").certificate.subject
        certificate = authority.build(owner, key.public_key(), [(names, False)])
        with pytest.raises(CertificateError):
            check_host(certificate, "127.0.0.1")

    def test_no_common_name_in_its_place(self, authority: Authority) -> None:
        """Without alternative names, no host is right, not even the common name."""
        certificate = authority.issue("hub.example.org", hosts=()).certificate
        with pytest.raises(CertificateError, match="names no host"):
            check_host(certificate, "hub.example.org")

    def test_neither_names_nor_addresses(self, authority: Authority) -> None:
        """Alternative names of other kinds are no host."""
        names = x509.SubjectAlternativeName([x509.RFC822Name("a@example.org")])
        key = ec.generate_private_key(ec.SECP256R1())
        owner = authority.issue("h").certificate.subject
        certificate = authority.build(owner, key.public_key(), [(names, False)])
        with pytest.raises(CertificateError, match="no host"):
            check_host(certificate, "example.org")
