"""Batches of records as binary messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyop.errors import ProtocolError
from keyop.wire.frames import MAX_BATCH_RECORDS, decode_batch, encode_batch

from .golden import cases

FRAMING = "envelopes/framing.jsonl"
EMPTY = b"\0\0\0\0"


@cases(FRAMING, lambda case: "hex" in case)
def test_encodes_as_v0_11_0_does(case: dict[str, Any]) -> None:
    """Each record stands behind its length, and the whole is the recorded bytes."""
    assert encode_batch([each.encode() for each in case["records"]]).hex() == case["hex"]


@cases(FRAMING, lambda case: "hex" in case or ("read_hex" in case and "records" in case))
def test_decodes_what_v0_11_0_decodes(case: dict[str, Any]) -> None:
    """The recorded bytes give the recorded records."""
    message = bytes.fromhex(case.get("hex", case.get("read_hex")))
    assert decode_batch(message) == [each.encode() for each in case["records"]]


@cases(FRAMING, lambda case: "read_hex" in case and "error" in case)
def test_refuses_what_v0_11_0_refuses(case: dict[str, Any]) -> None:
    """A message that ends within a length is a protocol error, 1002."""
    with pytest.raises(ProtocolError, match="middle of a length") as raised:
        decode_batch(bytes.fromhex(case["read_hex"]))
    assert raised.value.code == 1002


@pytest.mark.parametrize(
    "message",
    [
        b"\0\0\0\1",
        b"\0\0\0\2a",
        b"\xff\xff\xff\xff" + b"a" * 100,
        b"\0\0\0\1a\0\0\0\2b",
    ],
)
def test_a_length_that_reaches_over_the_end(message: bytes) -> None:
    """A record that would be longer than what is left is a protocol error, 1002."""
    with pytest.raises(ProtocolError, match="over the end") as raised:
        decode_batch(message)
    assert raised.value.code == 1002


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_incomplete_length_behind_a_record(size: int) -> None:
    """A whole record does not excuse bytes behind it that are no length."""
    with pytest.raises(ProtocolError, match="middle of a length"):
        decode_batch(b"\0\0\0\1a" + b"\0" * size)


def test_as_many_records_as_there_may_be() -> None:
    """16,384 records are taken, and not one more: empty ones would cost more than they weigh."""
    assert len(decode_batch(EMPTY * MAX_BATCH_RECORDS)) == MAX_BATCH_RECORDS == 16_384
    with pytest.raises(ProtocolError, match="16384") as raised:
        decode_batch(EMPTY * (MAX_BATCH_RECORDS + 1))
    assert raised.value.code == 1002


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_what_was_encoded_is_decoded(records: list[bytes]) -> None:
    """Any records survive, with their order and whatever bytes they hold."""
    assert decode_batch(encode_batch(records)) == records


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_an_error(message: bytes) -> None:
    """Nothing but ProtocolError comes of bytes; where it does not, encoding gives them back."""
    try:
        records = decode_batch(message)
    except ProtocolError:
        return
    assert encode_batch(records) == message
