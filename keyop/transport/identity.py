"""What a certificate says of its owner: its name, the hosts it is reached at, what it is for."""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from keyop.logs import escape_control
from keyop.names import instance_name_fault

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)

CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class CertificateError(Exception):
    """A certificate is sound, but not one that its owner may use here."""


def common_name(certificate: x509.Certificate) -> str:
    """Return the instance that a certificate was made for.

    Raises:
        CertificateError: it does not have exactly one common name, or that is no instance name.
    """
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise CertificateError(f"the certificate has {len(names)} common names; it must have one")
    name = names[0].value
    fault = instance_name_fault(name)
    if fault is not None or not isinstance(name, str):
        raise CertificateError(f"the certificate's common name {fault}")
    return name


def check_leaf(certificate: x509.Certificate, usage: ObjectIdentifier) -> None:
    """Check that a certificate is one of an instance, for this side of a connection.

    Raises:
        CertificateError: it is an authority's own, or not for this use.
    """
    try:
        is_authority = _extension(certificate, x509.BasicConstraints).ca
    except x509.ExtensionNotFound:
        is_authority = False
    if is_authority:
        raise CertificateError("the certificate is an authority's own, not an instance's")
    try:
        usages = list(_extension(certificate, x509.ExtendedKeyUsage))
    except x509.ExtensionNotFound:
        usages = []
    if usage not in usages:
        role = "a client" if usage == CLIENT_AUTH else "a server"
        raise CertificateError(f"the certificate is not for {role} (extended key usage)")


def check_host(certificate: x509.Certificate, host: str) -> None:
    """Check that a certificate is valid for the host that was dialled, a name or an IP address.

    Raises:
        CertificateError: its subject alternative names hold another host, or none.

    Source: RFC 9525, section 6: no common name in place of a missing alternative name; one
    wildcard, as the whole left-most label.
    """
    try:
        names = _extension(certificate, x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise CertificateError("the hub's certificate names no host") from None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        wanted = host.rstrip(".").lower()
        found = names.get_values_for_type(x509.DNSName)
        if any(_matches(name.rstrip(".").lower(), wanted) for name in found):
            return
    else:
        if address in names.get_values_for_type(x509.IPAddress):
            return
    held = ", ".join(
        str(name)
        for kind in (x509.DNSName, x509.IPAddress)
        for name in names.get_values_for_type(kind)
    )
    held = escape_control(held)
    raise CertificateError(
        f"the hub's certificate is for {held[:200] or 'no host'}, not for {host}; dial it by that "
        "name, or give the hub's name in the configuration"
    )


def _matches(pattern: str, host: str) -> bool:
    if pattern == host:
        return True
    first, _, rest = pattern.partition(".")
    return first == "*" and "." in rest and host.partition(".")[2] == rest


def _extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> ExtensionT:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CertificateError("the certificate's extensions cannot be read") from None
