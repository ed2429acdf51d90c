"""Pages: what one feed has read serves the others, and batches are as full as can be."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyop.federation.pages import SIZE, Page, Pages, Portion
from keyop.storage.cursor import Lines
from keyop.wire.frames import LENGTH_BYTES, MAX_BATCH_RECORDS, decode_batch


def line(size: int = 0) -> bytes:
    body = json.dumps({"v": 1, "payload": "x" * size}, separators=(",", ":")).encode()[:-1]
    return body + b',"crc":"%08x"}' % zlib.crc32(body)


def portions(page: Page, room: int) -> list[Portion]:
    found, index = [], 0
    while index < len(page.lines):
        before = index
        index, portion = page.portion(index, room)
        assert index - before == portion.records
        assert page.length(before, index) == sum(len(x) + 1 for x in page.lines[before:index])
        found.append(portion)
    return found


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=60),
    room=st.integers(1, 2_000),
)
def test_every_line_once_in_few_batches(sizes: list[int], room: int) -> None:
    """All lines, in order; none too large a batch but a single line; few batches, none tiny."""
    page = Page(Lines(100, [line(size) for size in sizes]))
    assert page.end == 100 + sum(len(each) + 1 for each in page.lines)
    found = portions(page, room)
    assert [record for each in found for record in decode_batch(each.message)] == page.lines
    for each in found:
        assert len(each.message) <= room or each.records == 1
    longest = max(map(len, page.lines)) + LENGTH_BYTES
    total = sum(len(each) + LENGTH_BYTES for each in page.lines)
    # Each batch but the last lacks less than one record to a full one.
    if room >= 2 * longest:
        assert len(found) <= total // (room - longest) + 1


def test_evenly() -> None:
    """What is left over is no batch of its own as long as the others have room for it."""
    page = Page(Lines(0, [line(100)] * 41))
    one = len(page.lines[0]) + LENGTH_BYTES
    assert [each.records for each in portions(page, 20 * one)] == [14, 14, 13]


def test_many_small_ones() -> None:
    """No batch has more records than the other side takes."""
    page = Page(Lines(0, [line()] * (MAX_BATCH_RECORDS + 1)))
    assert max(each.records for each in portions(page, 1 << 30)) <= MAX_BATCH_RECORDS


def test_encoded_once() -> None:
    """Who asks for the same gets the very same bytes."""
    page = Page(Lines(0, [line()] * 9))
    assert page.portion(2, 1000)[1].message is page.portion(2, 1000)[1].message
    assert page.portion(2, 100)[1].message != page.portion(2, 1000)[1].message


@pytest.mark.parametrize(
    ("marks", "limit", "suits"),
    [
        ([], 1000, True),
        ([b'"beta"'], 1000, True),
        ([b'"beta"', b'"alpha"'], 1000, False),
        ([], len(line(5)), True),
        ([], len(line(5)) - 1, False),
    ],
)
def test_suits(marks: list[bytes], limit: int, suits: bool) -> None:
    """A page suits a peer that may have all of it and can take the longest of its lines."""
    assert b'"alpha"' not in line(5)
    named = b'{"v":1,"origin":"alpha","payload":1}'
    assert len(named) < len(line(5)) + 20
    lines = [line(5)] * 3 + ([named] if limit == 1000 else [])
    assert Page(Lines(0, lines)).suits(marks, limit) is suits


def test_damage() -> None:
    """A page with a damaged line is nobody's: each feed puts that aside for itself."""
    damaged = line(5).replace(b"xxx", b"xyx")
    assert not Page(Lines(0, [line(), damaged, line()])).suits([], 1000)


def test_found_where_it_begins() -> None:
    """Pages are found by channel and position, and nowhere else; a few lines are none."""
    pages = Pages()
    page = pages.add("orders", Lines(7, [line()] * 20))
    assert page is not None
    assert pages.find("orders", 7) is page
    assert pages.find("orders", 8) is None
    assert pages.find("others", 7) is None
    assert pages.add("orders", Lines(9, [line()])) is None
    assert pages.find("orders", 9) is None
    pages.clear()
    assert pages.find("orders", 7) is None


def test_only_so_many() -> None:
    """The oldest go first."""
    pages = Pages()
    for number in range(SIZE + 3):
        pages.add("orders", Lines(number, [line()] * 20))
    kept = [number for number in range(SIZE + 3) if pages.find("orders", number)]
    assert kept == list(range(3, SIZE + 3))
