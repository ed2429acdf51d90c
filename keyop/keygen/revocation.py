"""Taking certificates back: the list of them that a CA signs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errors import ConfigError
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.keygen.authority import BACKDATED, DEFAULT_DAYS, Authority, lifetime, now_of
from keyop.keygen.files import locked, replace_file
from keyop.keygen.pem import load_certificate, load_revocation_list, readable, unwarned


@dataclass(frozen=True)
class Revocation:
    """What was done to a list, each certificate by its path.

    Attributes:
        listing: the list as it is now.
        revoked: newly on it.
        known: on it before.
    """

    listing: x509.CertificateRevocationList
    revoked: tuple[str, ...]
    known: tuple[str, ...]


def revoke(
    authority: Authority,
    crl: str,
    certificates: Sequence[str],
    days: int = DEFAULT_DAYS,
    clock: Clock = SYSTEM_CLOCK,
    fs: FileSystem = SYSTEM_FS,
) -> Revocation:
    """Add certificates to a CA's list of revoked ones and sign it anew, in place of the old one.

    The list is made where there is none, which must not be in a directory that is missing. Two
    processes at once lose nothing of each other's.

    Args:
        crl: path of the list.
        certificates: paths; without any, the list is only made valid for longer.
        days: until the list ends. One that has ended makes its readers refuse every certificate.

    Raises:
        ConfigError: a certificate, or the list that is there, is not of this CA or cannot be
            read; ``days`` is not allowed. Nothing was written.
        OSError: a file cannot be read or written; the list is as it was.
    """
    wanted = {path: _serial_number(path, authority) for path in certificates}
    with locked(os.path.dirname(os.path.realpath(crl)), fs):
        before = _load(crl, authority) if os.path.exists(crl) else None
        listed = set() if before is None else {entry.serial_number for entry in before}
        known = tuple(path for path, number in wanted.items() if number in listed)
        now = now_of(clock)
        builder = x509.CertificateRevocationListBuilder().last_update(now - BACKDATED)
        builder = builder.next_update(now + lifetime(days))
        for entry in before or ():
            builder = builder.add_revoked_certificate(entry)
        for number in sorted(set(wanted.values()) - listed):
            new = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now)
            builder = builder.add_revoked_certificate(new.build())
        builder = builder.add_extension(authority.key_identifier, critical=False)
        builder = builder.add_extension(x509.CRLNumber(_next_number(before)), critical=False)
        with unwarned():
            builder = builder.issuer_name(authority.certificate.subject)
            listing = builder.sign(authority.key, authority.digest)
        replace_file(crl, listing.public_bytes(Encoding.PEM), fs)
    return Revocation(listing, tuple(path for path in wanted if path not in known), known)


def _serial_number(path: str, authority: Authority) -> int:
    certificate = load_certificate(path)
    if certificate == authority.certificate:
        raise ConfigError("this is the CA itself, which cannot revoke its own certificate", path)
    with readable(path, "the certificate"):
        try:
            certificate.verify_directly_issued_by(authority.certificate)
        except (ValueError, InvalidSignature):
            raise ConfigError("the certificate was not issued by this CA", path) from None
    return certificate.serial_number


def _load(path: str, authority: Authority) -> x509.CertificateRevocationList:
    listing = load_revocation_list(path)
    key = authority.certificate.public_key()
    with readable(path, "the list of revoked certificates"):
        # load_authority has made sure that the key is of a kind that signs.
        if not listing.is_signature_valid(key):  # type: ignore[arg-type]
            raise ConfigError("this list was not signed by this CA", path)
    return listing


def _next_number(before: x509.CertificateRevocationList | None) -> int:
    if before is None:
        return 1
    try:
        number = before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 1
    return number + 1
