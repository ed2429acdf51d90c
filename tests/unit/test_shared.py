"""One read of the log for all subscribers of a channel, with records of their own for each."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from keyop.decode import EnvelopeReader
from keyop.envelope import EnvelopeWriter
from keyop.errors import CorruptRecordError
from keyop.shared import SharedLines, SharedReads
from keyop.storage.cursor import Lines

PAYLOADS = [
    {"number": 1, "text": "ü", "none": None, "yes": True, "half": 0.5},
    {"nested": {"list": [1, 2]}},
    [1, 2, 3],
    "text",
    7,
    None,
    {},
]


def line_of(payload: Any) -> bytes:
    _, line = EnvelopeWriter("here").encode("orders", "t", orjson.dumps(payload), "c-1")
    return line[:-1]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_each_gets_its_own(payload: Any) -> None:
    """Everybody reads the same; what one changes, the others do not see."""
    line = line_of(payload)
    shared = SharedLines(Lines(0, [line]))
    assert shared.reader(len) is len  # the first one keeps nothing
    read = shared.reader(EnvelopeReader().read)
    expected = EnvelopeReader().read(line)
    for _ in range(3):
        fields = read(line)
        assert {name: fields[name] for name in expected} == expected
        fields["payload"] = _changed(fields["payload"])
        fields["channel"] = "another"
        fields["added"] = 1


def _changed(payload: Any) -> Any:
    if isinstance(payload, dict):
        for value in payload.values():
            if isinstance(value, dict):
                value.clear()
        payload.clear()
    elif isinstance(payload, list):
        payload.clear()
    return "changed"


def test_what_is_no_record() -> None:
    """It is refused to everybody, as it would be to one."""
    shared = SharedLines(Lines(0, [b"{}"]))
    shared.reader(EnvelopeReader().read)
    read = shared.reader(EnvelopeReader().read)
    for _ in range(2):
        with pytest.raises(CorruptRecordError, match="payload"):
            read(b"{}")


def test_where_they_end() -> None:
    """The end is behind the last newline."""
    assert SharedLines(Lines(10, [b"ab", b"", b"c"])).end == 16


def test_only_the_latest_are_kept() -> None:
    """Memory has a bound: the oldest read goes first."""
    reads = SharedReads(2)
    for start in (0, 2, 4):
        reads.add("here", Lines(start, [b"x"]))
    assert reads.find("here", 0) is None
    assert reads.find("there", 2) is None
    found = reads.find("here", 4)
    assert found is not None
    assert found.lines == [b"x"]
    assert not reads.are_many("here")
    for _ in range(2):
        reads.join("here", "one")
        assert not reads.are_many("here")
    reads.join("here", "two")
    reads.join("here", "three")
    assert not reads.are_many("here")
    reads.join("here", "four")
    assert reads.are_many("here")
    assert not reads.are_many("there")
    for _ in range(2):
        reads.leave("here", "two")
        assert not reads.are_many("here")
    for each in ("one", "three", "four"):
        reads.leave("here", each)
    reads.leave("there", "one")
    reads.clear()
    assert reads.find("here", 4) is None


def test_the_end_is_found_once() -> None:
    """Where one has found nothing, others need not look until somebody is woken."""
    reads = SharedReads()
    first, second = object(), object()
    reads.join("a", first)
    reads.join("a", second)
    assert not reads.is_end("a", 10, 3)
    reads.found_end("a", 10, 3)
    assert reads.is_end("a", 10, 3)
    assert not reads.is_end("a", 10, 4)  # woken since
    assert not reads.is_end("a", 11, 3)
    assert not reads.is_end("b", 10, 3)
    reads.leave("a", first)
    assert reads.is_end("a", 10, 3)
    reads.leave("a", second)
    assert not reads.is_end("a", 10, 3)
