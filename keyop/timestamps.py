"""RFC 3339 timestamps with up to nine fractional digits, as records carry them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from functools import lru_cache

# What v0.11.0 accepts, which is stricter than ISO 8601: upper-case T and Z, no missing parts.
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)
# In characters: nanoseconds and a time zone. Longer ones are legal, and nobody's.
_LONGEST_KEPT = 35
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MIN = datetime.min.replace(tzinfo=timezone.utc)
_MAX = datetime.max.replace(tzinfo=timezone.utc)


def whole_second(seconds: int) -> str:
    """Return the text up to the second, such as ``2026-01-02T03:04:05``."""
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def format_ns(time_ns: int) -> str:
    """Return nanoseconds since the epoch as UTC text, trailing zeros of the fraction dropped."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    if fraction == 0:
        return whole_second(seconds) + "Z"
    return f"{whole_second(seconds)}.{fraction:09d}".rstrip("0") + "Z"


@lru_cache(maxsize=64)
def _parse_again(text: str) -> datetime:
    return parse(text)


def parse_shared(text: str) -> datetime:
    """Return what :func:`parse` does, faster where many ask for the same text one after another.

    Raises:
        ValueError: the text is not an RFC 3339 timestamp.
    """
    return parse(text) if len(text) > _LONGEST_KEPT else _parse_again(text)


def parse(text: str) -> datetime:
    """Return the moment, aware and in UTC, its fraction cut to microseconds.

    A moment that leaves the years 1–9999 by its time zone becomes the nearest one that is held.

    Raises:
        ValueError: the text is not an RFC 3339 timestamp.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:64]!r} is not an RFC 3339 timestamp")
    second, fraction, zone = match.groups()
    if second.startswith("0000"):  # the year before 1, which v0.11.0 can write
        datetime.fromisoformat("0004" + second[4:])  # still refuse an impossible day
        return _MIN
    moment = datetime.fromisoformat(second)
    if fraction:
        moment = moment.replace(microsecond=int(fraction[:6].ljust(6, "0")))
    moment = moment.replace(tzinfo=timezone.utc)
    if zone == "Z":
        return moment
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    if hours > 23 or minutes > 59:
        raise ValueError(f"{text[:64]!r} has an impossible time zone")
    shift = timedelta(hours=hours, minutes=minutes)
    try:
        return moment - shift if zone[0] == "+" else moment + shift
    except OverflowError:
        return _MIN if zone[0] == "+" else _MAX
