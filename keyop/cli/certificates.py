"""Certificates, keys and lists of revoked ones, printed for people and programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from keyop.cli.output import plural, print_line
from keyop.keygen import CertificateInfo, Info, KeyInfo

_MOMENT = "%Y-%m-%d %H:%M:%S UTC"
_LABEL_WIDTH = 14


def until(ends: datetime) -> str:
    """Return until when something is valid, to the day."""
    return f"valid until {ends:%Y-%m-%d}"


def as_json_values(info: Info) -> dict[str, Any]:
    """Return what JSON can hold, its type first, moments as RFC 3339."""
    values = asdict(info)
    return {"type": values.pop("type"), **_plain(values)}


def print_info(info: Info) -> None:
    """Write a line for everything that is known of it."""
    print_line(info.type)
    for label, value in _lines(info):
        print_line(f"  {label + ':' if label else '':<{_LABEL_WIDTH}} {value}")


def _lines(info: Info) -> Iterator[tuple[str, str]]:
    if isinstance(info, KeyInfo):
        yield "key", info.key_type
        yield "public key", info.public_key_sha256
        return
    if isinstance(info, CertificateInfo):
        yield "subject", info.subject
        yield "names", ", ".join(info.alternative_names) or "none"
    yield "issuer", info.issuer
    if isinstance(info, CertificateInfo):
        yield "serial", info.serial
    yield "from", f"{info.not_before:{_MOMENT}}"
    if info.not_after is None or info.days_left is None:
        yield "until", "no end"
    else:
        yield "until", f"{info.not_after:{_MOMENT}} ({_left(info.days_left)})"
    if isinstance(info, CertificateInfo):
        yield "key", info.key_type
        yield "usages", ", ".join(info.usages) or "any"
        yield "CA", "yes" if info.is_ca else "no"
        yield "SHA-256", info.sha256
        yield "public key", info.public_key_sha256
        return
    yield "SHA-256", info.sha256
    yield "revoked", str(len(info.revoked)) if info.revoked else "none"
    for entry in info.revoked:
        yield "", f"{entry.serial} since {entry.revoked_at:{_MOMENT}}"


def _left(days: int) -> str:
    if days < 0:
        # The day that has begun since the end counts as none.
        return f"ended {plural(-days - 1, 'day')} ago"
    return f"{plural(days, 'day')} left"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
