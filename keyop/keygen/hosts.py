"""What an instance may be dialled as, and what its files are called."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from cryptography import x509

from keyop.errors import ConfigError
from keyop.names import instance_name_fault

_MAX_HOST_CHARS = 253
# RFC 1035, with the underscore that host names in private networks have all the same.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# A mistyped address would pass for a name.
_DOTTED_QUAD = re.compile(r"\d+(\.\d+){3}")
# Beginnings that hide a file, or make it look like an option.
_AWKWARD_START = re.compile(r"^[.-]")


def check_name(name: str) -> str:
    """Return an instance name that is allowed.

    Raises:
        ConfigError: it is not.
    """
    fault = instance_name_fault(name)
    if fault is not None:
        raise ConfigError(fault, "instance name")
    return name


def is_host(name: str) -> bool:
    """Tell whether a name is one that can be dialled: a DNS name or an IP address."""
    return _general_name(name) is not None


def alternative_names(name: str, hosts: Sequence[str] = ()) -> tuple[x509.GeneralName, ...]:
    """Return the subject alternative names of an instance.

    Args:
        name: the instance's own name, which serves where no ``hosts`` are given; if it is neither
            a DNS name nor an IP address, there is no alternative name then.
        hosts: DNS names, whose first label may be ``*``, and IP addresses.

    Raises:
        ConfigError: one of ``hosts`` is neither.
    """
    if not hosts:
        own = _general_name(name)
        return () if own is None else (own,)
    found: dict[x509.GeneralName, None] = {}
    for host in hosts:
        general_name = _general_name(host)
        if general_name is None:
            raise ConfigError(
                f"{host[:80]!r} is neither a DNS name nor an IP address; write names in ASCII "
                "(xn--…) and addresses without port, brackets or zone",
                "alternative name",
            )
        found[general_name] = None
    return tuple(found)


def file_stem(name: str) -> str:
    """Return an instance name as the beginning of a file name; others may have the same one.

    Raises:
        ConfigError: the name is not allowed, so it touches no path.
    """
    return _AWKWARD_START.sub("_", check_name(name).replace(":", "_"))


def _general_name(host: str) -> x509.GeneralName | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return x509.DNSName(host) if _is_dns_name(host) else None
    # A zone means something on one machine only, and is not part of a certificate.
    return None if "%" in host else x509.IPAddress(address)


def _is_dns_name(host: str) -> bool:
    if len(host) > _MAX_HOST_CHARS or _DOTTED_QUAD.fullmatch(host):
        return False
    labels = host.split(".")
    if labels[0] == "*" and len(labels) > 2:
        del labels[0]
    return all(_LABEL.fullmatch(label) for label in labels)
