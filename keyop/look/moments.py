"""What a user types for a position in a channel."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from keyop.storage.position import Position

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PART = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_AGO = re.compile(rf"-(?:{_PART.pattern})+", re.ASCII)
_OFFSET = re.compile(r"\d{1,20}", re.ASCII)


def moment(text: str) -> Position:
    """Return the position meant by ``earliest``, ``latest`` or a time.

    A time without a zone is local; one such as ``-1h30m`` is so long ago.

    Raises:
        ValueError: it is none of them.
    """
    if text in ("earliest", "latest"):
        return text
    found = _time(text)
    if found is None:
        raise ValueError(f"{text!r} is not 'earliest', 'latest' or {_A_TIME}")
    return found


def place(text: str) -> Position:
    """Return the position meant by what :func:`moment` takes, or by an offset.

    Raises:
        ValueError: it is none of them.
    """
    if _OFFSET.fullmatch(text):
        return int(text)
    try:
        return moment(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not 'earliest', 'latest', an offset in bytes or {_A_TIME}"
        ) from None


def time(text: str) -> datetime:
    """Return the moment that a text means; one without a zone is local.

    Raises:
        ValueError: it is no time.
    """
    found = _time(text)
    if found is None:
        raise ValueError(f"{text!r} is not {_A_TIME}")
    return found


_A_TIME = "a time such as 2026-01-31T15:00 (local), 2026-01-31T14:00:00Z or -10m (ten minutes ago)"


def _time(text: str) -> datetime | None:
    if _AGO.fullmatch(text):
        try:
            spans = (timedelta(**{_UNITS[unit]: int(n)}) for n, unit in _PART.findall(text))
            return datetime.now(timezone.utc) - sum(spans, timedelta())
        except OverflowError:  # before the year 1
            return datetime.min.replace(tzinfo=timezone.utc)
    # Python 3.10 does not know Z.
    iso = text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text
    try:
        return datetime.fromisoformat(iso).astimezone()
    except (ValueError, OverflowError):
        return None
