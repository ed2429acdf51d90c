"""Certificates for trying things out: made where they are missing, without a question asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errors import ConfigError
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.keygen.authority import (
    Authority,
    Issued,
    create_authority,
    issue,
    load_authority,
    now_of,
)
from keyop.keygen.files import locked, write_files
from keyop.keygen.hosts import file_stem, is_host
from keyop.keygen.pem import common_name, load_certificate, load_key, public_bytes

# Earlier than the warning about certificates that end soon, which would only confuse here.
_RENEWED_BEFORE = timedelta(days=31)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_AUTHORITY_STEM = "ca"


class CertificateFiles(NamedTuple):
    """Paths of a certificate and its key."""

    cert: str
    key: str


@dataclass(frozen=True)
class DevelopmentCertificates:
    """Where everything is; ``instances`` by name."""

    ca: CertificateFiles
    instances: dict[str, CertificateFiles]


def ensure_development_certificates(
    directory: str,
    names: Sequence[str],
    clock: Clock = SYSTEM_CLOCK,
    fs: FileSystem = SYSTEM_FS,
) -> DevelopmentCertificates:
    """Have a CA and a certificate for each name in a directory, making what is missing.

    Certificates are for this machine: besides its name, each may be dialled as ``localhost`` or
    by loopback's addresses. What is there and good for another month stays; what has ended, is
    damaged, or belongs to another CA is made anew. Two processes at once agree on one outcome.

    Args:
        directory: made where it is missing (0700); it should hold nothing else.
        names: instance names. The files are called after them.

    Raises:
        ConfigError: a name is not allowed, or two have files of one name; the CA's certificate is
            damaged, or the CA is needed to sign and its key is missing or another one's.
        OSError: a file cannot be read or written.
    """
    stems = _stems(names)
    fs.make_dirs(directory)
    with locked(directory, fs):
        ca = _files(directory, _AUTHORITY_STEM)
        authority = _good_authority(ca, clock)
        if authority is None:
            made = create_authority(clock=clock)
            _write(ca, made, fs)
            authority = made.certificate
        instances = {name: _files(directory, stem) for name, stem in stems.items()}
        for name, files in instances.items():
            if not _is_good(files, name, authority, clock):
                signer = load_authority(ca.cert, ca.key, clock)
                _write(files, _issue_here(signer, name, clock), fs)
    return DevelopmentCertificates(ca, instances)


def _stems(names: Sequence[str]) -> dict[str, str]:
    stems: dict[str, str] = {}
    taken = {_AUTHORITY_STEM: "the CA"}
    for name in dict.fromkeys(names):
        stem = file_stem(name)
        if stem in taken:
            raise ConfigError(
                f"{name!r} would have the same files as {taken[stem]}", "instance name"
            )
        taken[stem] = repr(name)
        stems[name] = stem
    return stems


def _issue_here(authority: Authority, name: str, clock: Clock) -> Issued:
    own = (name,) if is_host(name) else ()
    return issue(authority, name, (*own, *_LOOPBACK), clock=clock)


def _files(directory: str, stem: str) -> CertificateFiles:
    return CertificateFiles(f"{directory}/{stem}.crt", f"{directory}/{stem}.key")


def _write(files: CertificateFiles, made: Issued, fs: FileSystem) -> None:
    # The certificate last: where there is one, it has its key.
    write_files({files.key: made.key_pem, files.cert: made.certificate_pem}, force=True, fs=fs)


def _good_authority(files: CertificateFiles, clock: Clock) -> x509.Certificate | None:
    if not os.path.exists(files.cert):
        return None
    certificate = load_certificate(files.cert)
    return certificate if _is_fresh(certificate, clock) else None


def _is_good(files: CertificateFiles, name: str, authority: x509.Certificate, clock: Clock) -> bool:
    try:
        certificate, key = load_certificate(files.cert), load_key(files.key)
        certificate.verify_directly_issued_by(authority)
        return (
            common_name(certificate.subject) == name
            and public_bytes(certificate) == public_bytes(key)
            and _is_fresh(certificate, clock)
        )
    except (FileNotFoundError, ConfigError, ValueError, TypeError, InvalidSignature):
        return False


def _is_fresh(certificate: x509.Certificate, clock: Clock) -> bool:
    now = now_of(clock)
    ends = certificate.not_valid_after_utc
    return certificate.not_valid_before_utc <= now < ends - _RENEWED_BEFORE
