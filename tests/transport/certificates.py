"""Certificates made in the test: sound ones, and each kind that must be refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from keyop.transport.contexts import Credentials
from keyop.transport.identity import CLIENT_AUTH, SERVER_AUTH

DAY = timedelta(days=1)
BOTH = (CLIENT_AUTH, SERVER_AUTH)
HOSTS = ("localhost", "127.0.0.1", "::1")


def now() -> datetime:
    return datetime.now(timezone.utc)


def subject(*names: str) -> x509.Name:
    """Return a subject with these common names, one for each."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])


def alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Issued(NamedTuple):
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key_pem_with(serialization.NoEncryption())

    def key_pem_with(self, encryption: serialization.KeySerializationEncryption) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )


class Authority:
    """A certificate authority that issues whatever it is asked for.

    Args:
        identified: let it and what it signs name its key, as those of v0.11.0 do, so that another
            one of the same name can be told from it.
    """

    def __init__(self, name: str = "keyop-ca", identified: bool = True) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = subject(name)
        own = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(True, None), True)
        ]
        self._signed: list[tuple[x509.ExtensionType, bool]] = []
        if identified:
            extensions.append((own, False))
            by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
            self._signed.append((by, False))
        self.certificate = self.build(self._name, self.key.public_key(), extensions)

    def build(
        self,
        owner: x509.Name,
        key: Any,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        begins: timedelta = -DAY,
        ends: timedelta = 30 * DAY,
    ) -> x509.Certificate:
        """Sign a certificate; it begins and ends so long from now."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(owner)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() + begins)
            .not_valid_after(now() + ends)
        )
        for extension, critical in (*extensions, *self._signed):
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self,
        *names: str,
        hosts: Sequence[str] = HOSTS,
        usages: Sequence[ObjectIdentifier] | None = BOTH,
        authority: bool = False,
        **times: timedelta,
    ) -> Issued:
        """Issue a certificate with its key.

        Args:
            names: its common names.
            hosts: its subject alternative names; without any there is no such extension.
            usages: its extended key usages; None for no such extension.
            authority: let it say that it is an authority's.
            times: ``begins`` and ``ends``, from now.
        """
        extensions: list[tuple[x509.ExtensionType, bool]] = []
        if authority:
            extensions.append((x509.BasicConstraints(True, None), True))
        if usages is not None:
            extensions.append((x509.ExtendedKeyUsage(usages), False))
        if hosts:
            names_of_hosts = x509.SubjectAlternativeName([alternative(host) for host in hosts])
            extensions.append((names_of_hosts, False))
        key = ec.generate_private_key(ec.SECP256R1())
        return Issued(self.build(subject(*names), key.public_key(), extensions, **times), key)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def revoke(
        self, *revoked: Issued, begins: timedelta = -DAY, ends: timedelta = 30 * DAY
    ) -> bytes:
        """Return the list of revoked certificates, with these in it, in PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now() + begins)
            .next_update(now() + ends)
        )
        for each in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(each.certificate.serial_number)
                .revocation_date(now() - DAY)
                .build()
            )
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


class Files:
    """PEM files in a directory, written anew for each set of credentials."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def write(self, data: bytes) -> str:
        """Write a file of its own; return its path."""
        self._count += 1
        path = self._directory / f"{self._count}.pem"
        path.touch(0o600)
        path.write_bytes(data)
        return str(path)

    def tls(self, own: Issued, authority: Authority, crl: bytes = b"") -> dict[str, str]:
        """Return the TLS files of an instance, written, as a configuration names them."""
        paths = {
            "cert": self.write(own.pem),
            "key": self.write(own.key_pem),
            "ca": self.write(authority.pem),
        }
        return {**paths, "crl": self.write(crl)} if crl else paths

    def load(
        self, issued: Issued, ca: bytes, crl: bytes = b"", min_version: str = "1.3"
    ) -> Credentials:
        """Return what an instance makes of these."""
        return Credentials.load(
            self.write(issued.pem),
            self.write(issued.key_pem),
            self.write(ca),
            self.write(crl) if crl else "",
            min_version,
        )
