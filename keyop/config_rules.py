"""Rules for single values: what a key of the configuration accepts, and what it makes of it.

A rule takes the raw value, from a YAML file or from Python, and returns it checked and converted;
else it raises ``ValueError`` with the value and what is allowed.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

from keyop.brief import brief
from keyop.names import check_channel, instance_name_fault

# Bounds of what no rule bounds otherwise: far beyond any use, near enough to catch a slip.
MAX_COUNT = 10**12
MAX_MEGABYTES = 10**9
MAX_MILLISECONDS = 10**12
# The longest duration of v0.11.0, 292 years: 64-bit nanoseconds.
MAX_DURATION_S = 2**63 / 1e9
MAX_PORT = 65535

_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # MICRO SIGN
    "μs": 1e-6,  # GREEK SMALL LETTER MU: both are written
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(" + "|".join(_UNIT_S) + ")")
_SPANS = re.compile(f"(?:{_SPAN.pattern})+")
_ADDRESS = re.compile(r"(\[[^\[\]]*\]|[A-Za-z0-9._-]*):([0-9]{1,5})")

Parse = Callable[[object], Any]


class Plain(str):
    """A scalar that YAML takes for a number or a truth value, with its text as written.

    A channel may be called ``on`` or ``2024``: only the rule of the key can tell which is meant.
    """

    value: object

    def __new__(cls, text: str, value: object) -> Plain:
        self = super().__new__(cls, text)
        self.value = value
        return self


def _refuse(raw: object, allowed: str) -> NoReturn:
    shown = raw[:60] if isinstance(raw, Plain) else brief(raw)
    raise ValueError(f"{shown} is not allowed; use {allowed}")


def _value(raw: object) -> object:
    return raw.value if isinstance(raw, Plain) else raw


def _text(raw: object) -> object:
    return str(raw) if isinstance(raw, Plain) else raw


def type_name(raw: object) -> str:
    """Return what a value is called in Python; a YAML number is an ``int`` or ``float``."""
    return type(_value(raw)).__name__


def whole(minimum: int = 0, maximum: int = MAX_COUNT) -> Parse:
    """Return a rule for whole numbers within these bounds; a truth value is none."""

    def parse(raw: object) -> int:
        value = _value(raw)
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return int(value)
        _refuse(raw, f"a whole number from {minimum} to {maximum}")

    return parse


def fraction(raw: object) -> float:
    """Rule for a number from 0 to 1."""
    value = _value(raw)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    _refuse(raw, "a number from 0 to 1")


def flag(raw: object) -> bool:
    """Rule for true and false."""
    value = _value(raw)
    if isinstance(value, bool):
        return value
    _refuse(raw, "true or false")


def one_of(*choices: str) -> Parse:
    """Return a rule for one of these words; a number counts as it is written (``1.3``)."""

    def parse(raw: object) -> str:
        text = _text(raw)
        if isinstance(text, float):
            text = str(text)
        if isinstance(text, str) and text in choices:
            return text
        _refuse(raw, "one of " + ", ".join(choices))

    return parse


def path(raw: object) -> str:
    """Rule for a path, kept as written; empty is not set."""
    text = _text(raw)
    if isinstance(text, os.PathLike):
        text = os.fspath(text)
    if isinstance(text, str) and "\0" not in text:
        return text
    _refuse(raw, "a path: text without NUL characters")


def secret(raw: object) -> str:
    """Rule for a secret of visible ASCII characters, which a message never shows."""
    text = _text(raw)
    if isinstance(text, str) and all("!" <= character <= "~" for character in text):
        return text
    raise ValueError("the value (not shown) is not allowed; use ASCII text without blanks")


def duration(raw: object) -> float:
    """Rule for a duration, read as seconds: a number, or text such as ``1h30m`` or ``7d``."""
    value = _value(raw)
    seconds = math.nan
    if isinstance(value, str):
        text = value.strip()
        if text == "0":
            seconds = 0.0
        elif _SPANS.fullmatch(text):
            seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _SPAN.findall(text))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    if 0 <= seconds <= MAX_DURATION_S:
        return float(seconds)
    _refuse(raw, "seconds, or a duration such as 500ms, 30m, 1h30m, 168h or 7d; not negative")


def instance(raw: object) -> str:
    """Rule for an instance name; empty is not set."""
    name = _text(raw)
    fault = None if name == "" else instance_name_fault(name)
    if fault is not None:
        raise ValueError(fault)
    return str(name)


def channel(raw: object) -> str:
    """Rule for a channel's name; a dead-letter channel is one too."""
    return check_channel(_text(raw))


def items(raw: object) -> list[Any] | tuple[Any, ...]:
    """Rule for a list, whose items have rules of their own."""
    if isinstance(raw, (list, tuple)):
        return raw
    _refuse(raw, "a list")


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[ipv6]:port``; the host comes without brackets and may be empty.

    Raises:
        ValueError: it has another form, or the port is beyond 65535.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > MAX_PORT:
        raise ValueError(f"{address!r} is not host:port")
    host = match[1]
    if host.startswith("["):
        host = host[1:-1]
        ipaddress.IPv6Address(host)
    return host, int(match[2])


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, or ``[ipv6]:port``: what :func:`split_address` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the host; an empty one is every interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen_address(raw: object) -> str:
    """Rule for an address to listen on; no host means every interface, empty is not set."""
    return _address(raw, host_needed=False)


def dial_address(raw: object) -> str:
    """Rule for an address to connect to; empty is not set."""
    return _address(raw, host_needed=True)


def _address(raw: object, host_needed: bool) -> str:
    text = _text(raw)
    if text == "":
        return ""
    if isinstance(text, str):
        try:
            host, _ = split_address(text)
            if host or not host_needed:
                return text
        except ValueError:
            pass  # refused below, like every other form
    empty = "" if host_needed else " (no host: every interface)"
    _refuse(raw, f"host:port or [IPv6]:port with a port from 0 to {MAX_PORT}{empty}")


Flag = Annotated[bool, flag]
Count = Annotated[int, whole()]
Megabytes = Annotated[int, whole(0, MAX_MEGABYTES)]
Milliseconds = Annotated[int, whole(0, MAX_MILLISECONDS)]
Seconds = Annotated[float, duration]
Fraction = Annotated[float, fraction]
PathName = Annotated[str, path]
Secret = Annotated[str, secret]
InstanceName = Annotated[str, instance]
ListenAddress = Annotated[str, listen_address]
DialAddress = Annotated[str, dial_address]
Channels = tuple[Annotated[str, channel], ...]
