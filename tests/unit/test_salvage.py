"""What is saved of damaged lines."""

from __future__ import annotations

import sys
import zlib
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keyop.salvage
from keyop.salvage import Piece, salvage


def record(number: int, payload: str = "{}") -> bytes:
    body = f'{{"v":1,"id":"i{number}","payload":{payload}'.encode()
    return body + b',"crc":"%08x"}' % zlib.crc32(body)


A, B, C = record(1), record(2, '{"nested":{"v":2}}'), record(3)
SPOILT = A.replace(b"i1", b"i9")

TABLE: list[tuple[str, list[tuple[bytes, bool]]]] = [
    ("one whole record", [(A, True)]),
    ("a spoilt record", [(SPOILT, False)]),
    ("rubbish", [(b"rubbish", False)]),
    ("zeros", [(b"\0" * 100, False)]),
    ("a damaged newline between two", [(A, True), (b"\x0b", False), (B, True)]),
    ("two without anything between", [(A, True), (B, True)]),
    ("three, the middle one spoilt", [(A, True), (b"*" + SPOILT + b"*", False), (C, True)]),
    ("rubbish around one", [(b"xx", False), (B, True), (b"yy", False)]),
    ("a torn one before a whole one", [(A[:-5], False), (B, True)]),
    ("a whole one before a torn one", [(A, True), (B[:-1], False)]),
    ("a beginning that leads nowhere", [(b'{"v":', False), (A, True)]),
    ("an end that belongs to nobody", [(A, True), (b',"crc":"00000000"}', False)]),
]


@pytest.mark.parametrize("parts", [parts for _, parts in TABLE], ids=[name for name, _ in TABLE])
def test_table(parts: list[tuple[bytes, bool]]) -> None:
    """Whole records are cut out; what lies between them is kept, in order."""
    expected, position = [], 0
    for data, whole in parts:
        expected.append(Piece(position, data, whole))
        position += len(data)
    assert salvage(b"".join(data for data, _ in parts)) == expected


def test_nothing() -> None:
    """An empty line has no pieces."""
    assert salvage(b"") == []


@settings(max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([A, B, C, SPOILT])), max_size=8))
def test_nothing_is_left_out(parts: list[bytes]) -> None:
    """The pieces make up the line again, and each says where it was."""
    line = b"".join(parts)
    pieces = salvage(line)
    assert b"".join(piece.data for piece in pieces) == line
    for piece in pieces:
        assert line[piece.start : piece.start + len(piece.data)] == piece.data


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 8 * (len(A) + len(B) + len(C) + 2) - 1))
def test_a_flipped_bit_spoils_one_record_at_most(bit: int) -> None:
    """Of joined records, all that were not hit themselves are saved, and nothing else."""
    damaged = bytearray(A + b"\x0b" + B + b"\x0b" + C)
    damaged[bit // 8] ^= 1 << bit % 8
    saved = [piece.data for piece in salvage(bytes(damaged)) if piece.whole]
    assert len(saved) >= 2
    assert set(saved) <= {A, B, C}


@pytest.mark.parametrize("budget", [0, 10, len(SPOILT)])
def test_the_budget_ends_the_search(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """What is unchecked when it is used up counts as damaged; nothing is lost."""
    monkeypatch.setattr(keyop.salvage, "_CRC_BUDGET_BYTES", budget)
    line = SPOILT + SPOILT + A
    assert salvage(line) == [Piece(0, line, False)]


def test_a_record_within_the_budget_is_saved() -> None:
    """The budget is meant for lines that were made to use it up."""
    line = SPOILT * 50 + A
    assert salvage(line) == [Piece(0, SPOILT * 50, False), Piece(len(SPOILT) * 50, A, True)]


@pytest.mark.parametrize(
    "line",
    [
        b',"crc":"00000000"}' * 300 + b'{"v":' * 300,
        b'{"v":' * 300 + b',"crc":"00000000"}' * 300,
        b'{"v":,"crc":"00000000"}' * 300,
    ],
    ids=["ends first", "beginnings first", "alternating"],
)
def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    """Whatever the line, the work is bounded by the budget, not by beginnings times ends."""
    monkeypatch.setattr(keyop.salvage, "_CRC_BUDGET_BYTES", 10_000)
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != keyop.salvage.__file__:
            return None
        steps += event == "line"
        return count

    tracer = sys.gettrace()
    sys.settrace(count)
    try:
        salvage(line)
    finally:
        sys.settrace(tracer)
    assert steps < 40 * 600
