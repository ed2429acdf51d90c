"""PEM files → pyOpenSSL contexts, with everything that both sides insist on."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ObjectIdentifier
from OpenSSL import SSL, crypto

from keyop.errors import ConfigError
from keyop.transport.identity import (
    CLIENT_AUTH,
    SERVER_AUTH,
    CertificateError,
    check_leaf,
    common_name,
)

MAX_FILE_BYTES = 16 << 20
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


@dataclass(frozen=True)
class Credentials:
    """What the TLS files hold, loaded and checked against each other.

    Attributes:
        name: the instance that the certificate was made for.
        expires: when the certificate ends, aware, in UTC.
    """

    name: str
    expires: datetime
    certificate: x509.Certificate
    # Two objects of one key are not equal, and another key comes with another certificate.
    key: Any = field(compare=False)
    authorities: tuple[x509.Certificate, ...]
    revoked: tuple[x509.CertificateRevocationList, ...]
    min_version: str

    @classmethod
    def load(
        cls, cert: str, key: str, ca: str, crl: str = "", min_version: str = "1.3"
    ) -> Credentials:
        """Read the files.

        Args:
            cert, key, ca, crl: paths; ``crl`` may be empty.
            min_version: ``1.2`` or ``1.3``.

        Raises:
            ConfigError: a file cannot be read or used, others may read the key, the certificate
                names no instance, the key is another certificate's, or the list of revoked
                certificates another authority's; the error names the file.
        """
        certificate = _parse("tls.cert", cert, x509.load_pem_x509_certificate)
        private = _parse("tls.key", key, _load_key, secret=True)
        authorities = _parse("tls.ca", ca, x509.load_pem_x509_certificates)
        revoked = (_parse("tls.crl", crl, x509.load_pem_x509_crl),) if crl else ()
        try:
            name = common_name(certificate)
        except CertificateError as error:
            raise ConfigError(str(error), cert) from None
        found = cls(
            name,
            certificate.not_valid_after_utc,
            certificate,
            private,
            tuple(authorities),
            revoked,
            min_version,
        )
        for listing in revoked:
            if not any(_signed(listing, authority) for authority in authorities):
                raise ConfigError("this list was not signed by the authority of tls.ca", crl)
        try:
            found.context(SERVER_AUTH).check_privatekey()
        except SSL.Error:
            raise ConfigError(f"this is not the key of {cert}", key) from None
        return found

    def context(self, peer_usage: ObjectIdentifier) -> SSL.Context:
        """Return a new context. One that has made a connection cannot be changed any more.

        Args:
            peer_usage: what the other side's certificate must be for: ``CLIENT_AUTH`` for a hub,
                ``SERVER_AUTH`` for a client.
        """
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(_VERSIONS[self.min_version])
        context.set_options(
            SSL.OP_NO_TICKET
            | SSL.OP_NO_COMPRESSION
            | SSL.OP_NO_RENEGOTIATION
            | SSL.OP_CIPHER_SERVER_PREFERENCE
        )
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # An idle connection then holds no buffers of 16 KiB each way.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.use_certificate(self.certificate)
        context.use_privatekey(self.key)
        store = context.get_cert_store()
        assert store is not None
        self._fill(store)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _Verifier(peer_usage))
        return context

    def refusal(self, certificate: x509.Certificate) -> str | None:
        """Say why a certificate that was accepted once would be refused now; None if it is well."""
        store = crypto.X509Store()
        self._fill(store)
        found = crypto.X509.from_cryptography(certificate)
        try:
            crypto.X509StoreContext(store, found).verify_certificate()
        except crypto.X509StoreContextError as error:
            return _describe(error.errors[0])
        return None

    def _fill(self, store: crypto.X509Store) -> None:
        for authority in self.authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))
        if self.revoked:
            for listing in self.revoked:
                store.add_crl(listing)
            store.set_flags(crypto.X509StoreFlags.CRL_CHECK)

    def expired(self) -> bool:
        """Tell whether the certificate has ended."""
        return datetime.now(timezone.utc) >= self.expires


class _Verifier:
    """Says yes or no to each certificate of a chain, and why not, in the connection's app data."""

    def __init__(self, usage: ObjectIdentifier) -> None:
        self._usage = usage

    def __call__(
        self, connection: SSL.Connection, found: crypto.X509, code: int, depth: int, ok: int
    ) -> bool:
        reason = _describe(code) if not ok else self._fault(found) if depth == 0 else None
        if reason is not None:
            refusals: list[str] = connection.get_app_data()
            refusals.append(f"{_subject(found)}: {reason}")
        return reason is None

    def _fault(self, found: crypto.X509) -> str | None:
        try:
            certificate = found.to_cryptography()
            check_leaf(certificate, self._usage)
            common_name(certificate)
        except CertificateError as error:
            return str(error)
        except Exception as error:  # whatever a parser makes of what was never a certificate
            return f"it cannot be read: {error}"
        return None


# What pyOpenSSL hands on of OpenSSL's reasons is a number; these are the ones that operators meet.
_REASONS = {
    2: "its issuer is not the authority of tls.ca",
    3: "there is no list of revoked certificates of its issuer",
    7: "its signature is wrong",
    9: "it is not valid yet",
    10: "it has expired",
    11: "the list of revoked certificates is not valid yet",
    12: "the list of revoked certificates has expired; renew the file of tls.crl",
    18: "it is self-signed, not by the authority of tls.ca",
    19: "its chain ends in an authority that is not that of tls.ca",
    20: "its issuer is not the authority of tls.ca",
    21: "its issuer is not the authority of tls.ca",
    23: "it has been revoked",
    26: "it is not for this use (key usage)",
}


def _describe(code: int) -> str:
    return _REASONS.get(code, f"it was not accepted (OpenSSL's code {code})")


def _subject(found: crypto.X509) -> str:
    try:
        return common_name(found.to_cryptography())
    except Exception:  # as above
        return "a certificate without a name"


def _signed(listing: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    return listing.is_signature_valid(authority.public_key())  # type: ignore[arg-type] # any kind


# Whoever is neither the owner nor of its group; and who may put another key into its place.
_OTHERS = stat.S_IRWXO | stat.S_IWGRP


def _load_key(data: bytes) -> Any:
    return load_pem_private_key(data, None)


def _parse(key: str, path: str, parse: Any, secret: bool = False) -> Any:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{key}: cannot be read: {error.strerror}", path) from error
    if secret and mode & _OTHERS:
        raise ConfigError(
            f"{key}: mode {mode & 0o777:04o} lets others use this key; chmod 600 it, or 640 for "
            "its group to read",
            path,
        )
    try:
        return parse(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise ConfigError(
            f"{key}: this is not a PEM file of its kind, or a damaged one", path
        ) from error


__all__ = ["CLIENT_AUTH", "SERVER_AUTH", "Credentials"]
