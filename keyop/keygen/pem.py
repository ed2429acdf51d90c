"""Reading PEM files. Whatever is wrong with one ends in one error that names it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from keyop.errors import ConfigError

# A list of a hundred thousand revoked certificates has 4 MiB.
MAX_PEM_BYTES = 16 << 20

CERTIFICATE, REVOCATION_LIST, PRIVATE_KEY = "CERTIFICATE", "X509 CRL", "PRIVATE KEY"
_KINDS = {
    CERTIFICATE: "a certificate",
    REVOCATION_LIST: "a list of revoked certificates",
    PRIVATE_KEY: "a private key",
    "PUBLIC KEY": "a public key",
    "CERTIFICATE REQUEST": "a certificate request",
}
# OpenSSL writes it in front of a key that it has generated.
_PARAMETERS = "EC PARAMETERS"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n.*?-----END \1-----\r?\n?", re.DOTALL)
# All that cryptography raises for what it cannot read.
_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Block(NamedTuple):
    """One object of a PEM file. ``kind`` is its label, without the algorithm of a key."""

    kind: str
    data: bytes


def read_blocks(path: str) -> list[Block]:
    """Return the objects of a PEM file, at least one.

    Raises:
        ConfigError: there are none, or one has no end.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_PEM_BYTES + 1)
    if len(data) > MAX_PEM_BYTES:
        raise ConfigError(f"has more than {MAX_PEM_BYTES >> 20} MiB, so it is not read", path)
    found = [Block(_kind(match[1].decode()), match[0]) for match in _BLOCK.finditer(data)]
    found = [block for block in found if block.kind != _PARAMETERS]
    if len(found) < data.count(b"-----BEGIN ") - data.count(b"-----BEGIN EC PARAMETERS-----"):
        raise ConfigError("is damaged: something in it begins and does not end", path)
    if not found:
        raise ConfigError("is not a PEM file", path)
    return found


def load_certificate(path: str) -> x509.Certificate:
    """Return the first certificate of a file.

    Raises:
        ConfigError: there is none, or it is damaged.
        OSError: the file cannot be read.
    """
    return load_certificates(path)[0]


def load_certificates(path: str) -> list[x509.Certificate]:
    """Return the certificates of a file, at least one; errors as of :func:`load_certificate`."""
    return [parse_certificate(block, path) for block in _wanted(path, CERTIFICATE)]


def load_key(path: str) -> PrivateKeyTypes:
    """Return the private key of a file; errors as of :func:`load_certificate`."""
    return parse_key(_wanted(path, PRIVATE_KEY)[0], path)


def load_revocation_list(path: str) -> x509.CertificateRevocationList:
    """Return the list of a file; errors as of :func:`load_certificate`."""
    return parse_revocation_list(_wanted(path, REVOCATION_LIST)[0], path)


def parse_certificate(block: Block, path: str) -> x509.Certificate:
    """Return the certificate in a block.

    Raises:
        ConfigError: it is damaged.
    """
    with readable(path, "the certificate"):
        certificate = x509.load_pem_x509_certificate(block.data)
        # The rest is parsed when it is asked for, which must not fail later.
        _ = certificate.subject, certificate.issuer, certificate.extensions
        certificate.public_key()
    return certificate


def parse_key(block: Block, path: str) -> PrivateKeyTypes:
    """Return the private key in a block.

    Raises:
        ConfigError: it is damaged or encrypted.
    """
    if b"ENCRYPTED" in block.data:
        raise ConfigError(
            "the key is encrypted; keyop starts without anybody to ask, so decrypt it first "
            "(openssl pkey -in FILE -out FILE)",
            path,
        )
    with readable(path, "the key"):
        return load_pem_private_key(block.data, None)


def parse_revocation_list(block: Block, path: str) -> x509.CertificateRevocationList:
    """Return the list in a block.

    Raises:
        ConfigError: it is damaged.
    """
    with readable(path, "the list of revoked certificates"):
        listing = x509.load_pem_x509_crl(block.data)
        _ = listing.issuer, listing.extensions, len(listing)
    return listing


@contextmanager
def readable(path: str, what: str) -> Iterator[None]:
    """Turn everything that cryptography raises for bad input into a ``ConfigError``."""
    try:
        with unwarned():
            yield
    except ConfigError:  # said better already
        raise
    except _UNREADABLE as error:
        raise ConfigError(f"{what} is damaged, or of a kind that cannot be used", path) from error


@contextmanager
def unwarned() -> Iterator[None]:
    """Have nobody warned of what cryptography finds odd in a certificate and takes all the same.

    Common names beyond 64 characters above all: X.509 says so, but an instance name may be
    longer, and every TLS library takes it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def common_name(name: x509.Name) -> str:
    """Return the common name in a subject or issuer; empty if there is none."""
    with unwarned():
        found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def public_bytes(owner: PrivateKeyTypes | x509.Certificate) -> bytes:
    """Return the public key of a private one or of a certificate, in a form to compare."""
    return owner.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _kind(label: str) -> str:
    return PRIVATE_KEY if label.endswith(PRIVATE_KEY) else label


def _wanted(path: str, kind: str) -> list[Block]:
    blocks = read_blocks(path)
    found = [block for block in blocks if block.kind == kind]
    if not found:
        held = _KINDS.get(blocks[0].kind, f"a PEM {blocks[0].kind}")
        raise ConfigError(f"holds {held}, not {_KINDS[kind]}", path)
    return found
