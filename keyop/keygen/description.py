"""What is in a PEM file, in words and numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errors import ConfigError
from keyop.keygen.authority import now_of
from keyop.keygen.pem import (
    CERTIFICATE,
    PRIVATE_KEY,
    REVOCATION_LIST,
    Block,
    common_name,
    parse_certificate,
    parse_key,
    parse_revocation_list,
    public_bytes,
    read_blocks,
    readable,
)

T = TypeVar("T", bound=x509.ExtensionType)

# Each use with its name in RFC 5280.
_KEY_USAGES = {
    "digital_signature": "digitalSignature",
    "content_commitment": "nonRepudiation",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_EXTENDED_USAGES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}


@dataclass(frozen=True)
class CertificateInfo:
    """A certificate. Numbers and fingerprints are as OpenSSL prints them.

    Attributes:
        alternative_names: such as ``DNS:hub-1`` and ``IP:10.0.0.7``.
        days_left: whole days until it ends; negative after that.
        usages: names of RFC 5280, those of the key and the extended ones.
        public_key_sha256: equal to that of its private key.
    """

    subject: str
    common_name: str
    alternative_names: tuple[str, ...]
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    days_left: int
    key_type: str
    usages: tuple[str, ...]
    is_ca: bool
    sha256: str
    public_key_sha256: str
    type: str = "certificate"


@dataclass(frozen=True)
class KeyInfo:
    """A private key, of which nothing private is told."""

    key_type: str
    public_key_sha256: str
    type: str = "private key"


@dataclass(frozen=True)
class RevokedInfo:
    """A certificate that was taken back."""

    serial: str
    revoked_at: datetime


@dataclass(frozen=True)
class RevocationListInfo:
    """A list of revoked certificates; one without an end has ``not_after`` None."""

    issuer: str
    not_before: datetime
    not_after: datetime | None
    days_left: int | None
    sha256: str
    revoked: tuple[RevokedInfo, ...]
    type: str = "revocation list"


Info = CertificateInfo | KeyInfo | RevocationListInfo


def describe_file(path: str, clock: Clock = SYSTEM_CLOCK) -> list[Info]:
    """Return what a PEM file holds, in its order.

    Raises:
        ConfigError: something in it is damaged, encrypted, or no certificate, key or list.
        OSError: it cannot be read.
    """
    return [_describe(block, path, now_of(clock)) for block in read_blocks(path)]


def _describe(block: Block, path: str, now: datetime) -> Info:
    if block.kind == CERTIFICATE:
        certificate = parse_certificate(block, path)
        with readable(path, "the certificate"):
            return _describe_certificate(certificate, now)
    if block.kind == PRIVATE_KEY:
        key = parse_key(block, path)
        with readable(path, "the key"):
            return KeyInfo(_key_type(key.public_key()), _public_key_sha256(key))
    if block.kind == REVOCATION_LIST:
        listing = parse_revocation_list(block, path)
        with readable(path, "the list of revoked certificates"):
            return _describe_list(listing, now)
    raise ConfigError(f"holds a PEM {block.kind}, which keyop has no use for", path)


def _describe_certificate(certificate: x509.Certificate, now: datetime) -> CertificateInfo:
    ends = certificate.not_valid_after_utc
    constraints = _extension(certificate, x509.BasicConstraints)
    return CertificateInfo(
        certificate.subject.rfc4514_string(),
        common_name(certificate.subject),
        _alternative_names(certificate),
        certificate.issuer.rfc4514_string(),
        serial_text(certificate.serial_number),
        certificate.not_valid_before_utc,
        ends,
        _whole_days(ends - now),
        _key_type(certificate.public_key()),
        _usages(certificate),
        constraints is not None and constraints.ca,
        _colons(certificate.fingerprint(hashes.SHA256())).upper(),
        _public_key_sha256(certificate),
    )


def _describe_list(listing: x509.CertificateRevocationList, now: datetime) -> RevocationListInfo:
    ends = listing.next_update_utc
    return RevocationListInfo(
        listing.issuer.rfc4514_string(),
        listing.last_update_utc,
        ends,
        None if ends is None else _whole_days(ends - now),
        _colons(listing.fingerprint(hashes.SHA256())).upper(),
        tuple(
            RevokedInfo(serial_text(entry.serial_number), entry.revocation_date_utc)
            for entry in listing
        ),
    )


def serial_text(number: int) -> str:
    """Return a serial number as OpenSSL prints it."""
    # There are negative ones, though there should not be.
    digits = _colons(abs(number).to_bytes((number.bit_length() + 7) // 8 or 1, "big"))
    return f"-{digits}" if number < 0 else digits


def _alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return tuple(f"{_name_kind(name)}:{name.value}" for name in names or ())


def _name_kind(name: x509.GeneralName) -> str:
    kind = type(name).__name__
    return {"DNSName": "DNS", "IPAddress": "IP", "UniformResourceIdentifier": "URI"}.get(kind, kind)


def _usages(certificate: x509.Certificate) -> tuple[str, ...]:
    usage = _extension(certificate, x509.KeyUsage)
    found = [text for name, text in _KEY_USAGES.items() if usage and getattr(usage, name)]
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    found += [_EXTENDED_USAGES.get(each, each.dotted_string) for each in extended or ()]
    return tuple(found)


def _key_type(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        known = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
        return f"EC {known.get(key.curve.name, key.curve.name)}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return type(key).__name__.removesuffix("PublicKey")


def _public_key_sha256(owner: PrivateKeyTypes | x509.Certificate) -> str:
    return _colons(hashlib.sha256(public_bytes(owner)).digest()).upper()


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _whole_days(left: timedelta) -> int:
    return left // timedelta(days=1)


def _colons(data: bytes) -> str:
    return data.hex(":")
