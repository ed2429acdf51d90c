"""Making certificates as v0.11.0 does: a CA of one's own, and instances that it signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errors import ConfigError
from keyop.keygen.hosts import alternative_names, check_name
from keyop.keygen.pem import (
    common_name,
    load_certificates,
    load_key,
    public_bytes,
    readable,
    unwarned,
)

AUTHORITY_NAME = "keyop-ca"
DEFAULT_DAYS = 730
MAX_DAYS = 36_500
# Clocks differ: what was made just now must count as valid on a machine that is a little behind.
BACKDATED = timedelta(minutes=5)

SigningKey = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


@dataclass(frozen=True)
class Issued:
    """A new certificate and its key; nothing is written yet."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as a PEM file."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as a PEM file, not encrypted, of the kind ``EC PRIVATE KEY``."""
        return self.key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        )


@dataclass(frozen=True)
class Authority:
    """A CA that can sign: its certificate is valid, and the key belongs to it."""

    certificate: x509.Certificate
    key: SigningKey

    @property
    def digest(self) -> hashes.SHA384 | None:
        """What it hashes with before it signs; None where the key's algorithm says so itself."""
        if isinstance(self.key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)):
            return None
        return hashes.SHA384()

    @property
    def key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """What a certificate or list of it names its key by."""
        extensions = self.certificate.extensions
        try:
            own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            own = x509.SubjectKeyIdentifier.from_public_key(self.certificate.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def now_of(clock: Clock) -> datetime:
    """Return the clock's time in whole seconds, as certificates have it."""
    return datetime.fromtimestamp(clock.time_ns() // 1_000_000_000, timezone.utc)


def lifetime(days: int) -> timedelta:
    """Return days as a length of time.

    Raises:
        ConfigError: not from 1 to ``MAX_DAYS``.
    """
    if not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"{days!r} is not allowed; use 1 to {MAX_DAYS}", "days")
    return timedelta(days=days)


def create_authority(days: int = DEFAULT_DAYS, clock: Clock = SYSTEM_CLOCK) -> Issued:
    """Return a new CA, ``keyop-ca``, that signs itself.

    Raises:
        ConfigError: ``days`` is not from 1 to ``MAX_DAYS``.
    """
    now, length = now_of(clock), lifetime(days)
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _builder(key, _name(AUTHORITY_NAME), now - BACKDATED, now + length)
    builder = builder.issuer_name(_name(AUTHORITY_NAME))
    # Extensions in the order of v0.11.0, here and below.
    builder = builder.add_extension(_key_usage(certificates=True), critical=True)
    builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return Issued(builder.sign(key, hashes.SHA384()), key)


def load_authority(cert: str, key: str, clock: Clock = SYSTEM_CLOCK) -> Authority:
    """Read a CA's certificate and key, and check that they can sign now.

    Args:
        cert: path; of several certificates in it, that of the key counts.
        key: path.

    Raises:
        ConfigError: a file is damaged, encrypted or of another kind; the key is another one's;
            the certificate is not a CA's, has ended, or is not valid yet.
        OSError: a file cannot be read.
    """
    certificates, private = load_certificates(cert), load_key(key)
    if not isinstance(private, SigningKey):
        raise ConfigError("a key of this kind cannot sign certificates", key)
    own = public_bytes(private)
    with readable(cert, "the certificate"):
        matching = [each for each in certificates if public_bytes(each) == own]
    if not matching:
        raise ConfigError(f"this is not the key of {cert}", key)
    found = matching[0]
    _check_authority(found, cert, now_of(clock))
    return Authority(found, private)


def issue(
    authority: Authority,
    name: str,
    hosts: Sequence[str] = (),
    days: int = DEFAULT_DAYS,
    clock: Clock = SYSTEM_CLOCK,
) -> Issued:
    """Return a new certificate for an instance, for both sides of a connection.

    It never outlives its CA: where ``days`` would take it further, it ends with the CA.

    Args:
        name: the instance name; it becomes the common name.
        hosts: what the instance is dialled as; otherwise its name, if that can be dialled.

    Raises:
        ConfigError: the name, a host or ``days`` is not allowed.
    """
    check_name(name)
    if name == common_name(authority.certificate.subject):
        # Verifiers would take the certificate for one that signed itself.
        raise ConfigError(f"{name!r} is the name of the CA itself; choose another", "instance name")
    names, now, length = alternative_names(name, hosts), now_of(clock), lifetime(days)
    starts = max(now - BACKDATED, authority.certificate.not_valid_before_utc)
    ends = min(now + length, authority.certificate.not_valid_after_utc)
    key = ec.generate_private_key(ec.SECP384R1())
    with unwarned():
        builder = _builder(key, _name(name), starts, ends)
        # As the CA writes it, to the byte: some verifiers compare nothing less.
        builder = builder.issuer_name(authority.certificate.subject)
        builder = builder.add_extension(_key_usage(certificates=False), critical=True)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(authority.key_identifier, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Issued(builder.sign(authority.key, authority.digest), key)


def _check_authority(certificate: x509.Certificate, path: str, now: datetime) -> None:
    extensions = certificate.extensions
    try:
        is_authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise ConfigError("this is the certificate of an instance, not of a CA", path)
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:  # then everything is allowed
        pass
    else:
        if not (usage.key_cert_sign and usage.crl_sign):
            raise ConfigError("this CA may not sign certificates and lists (key usage)", path)
    if now > certificate.not_valid_after_utc:
        ended = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigError(f"the CA ended on {ended}; make a new one, and new certificates", path)
    if now < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        raise ConfigError(f"the CA is not valid before {begins} UTC; is the clock right?", path)


def _name(name: str) -> x509.Name:
    with unwarned():
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)])


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, starts: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(ends)
    )


def _key_usage(certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
