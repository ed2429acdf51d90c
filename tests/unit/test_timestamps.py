"""Timestamps: what is written, what is read, and what is refused."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyop.timestamps import format_ns, parse, parse_shared, whole_second

UTC = timezone.utc
SECOND = 1_000_000_000
SAMPLE = 1_776_256_245  # 2026-04-15T12:30:45Z


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0, "2026-04-15T12:30:45Z"),
        (1, "2026-04-15T12:30:45.000000001Z"),
        (123_456_789, "2026-04-15T12:30:45.123456789Z"),
        (120_000_000, "2026-04-15T12:30:45.12Z"),
        (900_000_000, "2026-04-15T12:30:45.9Z"),
        (999_999_999, "2026-04-15T12:30:45.999999999Z"),
    ],
)
def test_fraction_without_trailing_zeros(fraction: int, text: str) -> None:
    """Up to nine digits are written, trailing zeros and an empty fraction left out."""
    assert format_ns(SAMPLE * SECOND + fraction) == text


def test_zeros_of_the_second_stay() -> None:
    """Only zeros of the fraction are dropped."""
    assert format_ns(0) == "1970-01-01T00:00:00Z"


def test_before_the_epoch() -> None:
    """A clock set before 1970 still gives the right text."""
    assert format_ns(-1) == "1969-12-31T23:59:59.999999999Z"


def test_whole_second() -> None:
    """A second is written without a zone."""
    assert whole_second(SAMPLE) == "2026-04-15T12:30:45"


@settings(max_examples=100)
@given(st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1))
def test_what_is_written_is_read_back(time_ns: int) -> None:
    """Every time that 64 bits of nanoseconds hold comes back, cut to microseconds."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1000)
    assert parse(format_ns(time_ns)) == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05.1Z", datetime(2026, 1, 2, 3, 4, 5, 100_000)),
        ("2026-01-02T03:04:05,5Z", datetime(2026, 1, 2, 3, 4, 5, 500_000)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123_456)),
        ("2026-01-02T03:04:05.1234567899999Z", datetime(2026, 1, 2, 3, 4, 5, 123_456)),
        ("2026-01-02T03:04:05+00:00", datetime(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05-00:00", datetime(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5)),
        ("2026-01-01T23:30:00.5-01:45", datetime(2026, 1, 2, 1, 15, 0, 500_000)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29)),
        ("0001-01-01T00:00:00Z", datetime.min),
        ("9999-12-31T23:59:59.999999999Z", datetime.max),
        ("0001-01-01T00:00:00+01:00", datetime.min),
        ("9999-12-31T23:59:59.5-00:01", datetime.max),
        ("0000-02-29T12:00:00Z", datetime.min),
    ],
)
def test_what_is_read(text: str, moment: datetime) -> None:
    """Any fraction and zone is read; what leaves the years 1 to 9999 becomes the nearest held."""
    assert parse(text) == moment.replace(tzinfo=UTC)
    assert parse(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-02",
        "2026-01-02T03:04:05",
        "2026-01-02T03:04Z",
        "2026-01-02t03:04:05Z",
        "2026-01-02T03:04:05z",
        "2026-01-02 03:04:05Z",
        "20260102T030405Z",
        "2026-01-02T03:04:05.Z",
        "2026-01-02T03:04:05Z\n",
        " 2026-01-02T03:04:05Z",
        "2026-02-30T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-02T24:00:00Z",
        "2026-01-02T03:60:00Z",
        "2026-01-02T03:04:60Z",
        "2026-01-02T03:04:05+24:00",
        "2026-01-02T03:04:05-01:60",
        "2026-01-02T03:04:05+0100",
        "0000-02-30T00:00:00Z",
        "٢٠٢٦-01-02T03:04:05Z",
        "x" * 100_000,
    ],
)
def test_what_is_refused(text: str) -> None:
    """What RFC 3339 does not allow is an error whose text is bounded."""
    for read in (parse, parse_shared, parse_shared):
        with pytest.raises(ValueError) as caught:
            read(text)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("digits", [1, 9, 10, 10_000])
def test_shared(digits: int) -> None:
    """However often it is asked for, and however long it is."""
    text = f"2026-04-15T12:30:45.{'1' * digits}+01:00"
    assert parse_shared(text) == parse_shared(text) == parse(text)
