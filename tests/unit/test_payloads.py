"""Payloads that are encoded together: as each alone, and refused as each alone is."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from keyop.errors import PayloadError
from keyop.payloads import encode_payload, encode_payloads

GOOD: list[Any] = [
    {"number": 1, "text": "ü", "none": None},
    [None, 1.5],
    "null",
    "nu",
    "ll",
    None,
    {},
    orjson.Fragment(b'{"raw": null}'),
]
BAD: list[Any] = [
    {"number": float("nan")},
    [None, float("inf")],
    {1, 2},
    {5: "key"},
    1 << 70,
    "\ud800",
    orjson.Fragment(b'{\n"raw": 1}'),
]


def test_as_each_alone() -> None:
    """What is null may be, where it was None."""
    assert encode_payloads(GOOD) == [encode_payload(each) for each in GOOD]
    assert encode_payloads([]) == []


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("at", [0, 3, len(GOOD)])
def test_one_that_is_refused(bad: Any, at: int) -> None:
    """Wherever it stands, the error is that of it alone."""
    with pytest.raises(PayloadError) as alone:
        encode_payload(bad)
    with pytest.raises(PayloadError) as among:
        encode_payloads([*GOOD[:at], bad, *GOOD[at:]])
    assert str(among.value) == str(alone.value)
