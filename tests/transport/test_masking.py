"""Masking gives what a loop over the bytes gives."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyop.transport.masking import mask_bytes


def plainly(data: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[index % 4] for index, byte in enumerate(data))


def test_every_size() -> None:
    """Small sizes, those around the one where the method changes, and many between and beyond."""
    data, key = os.urandom(2100), b"\x00\xff\x5a\x01"
    for size in (*range(200), *range(200, 2101, 9), *range(1010, 1040)):
        assert mask_bytes(data[:size], key) == plainly(data[:size], key), size


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 1_000_003])
def test_large_ones(size: int) -> None:
    """Messages as large as batches are."""
    data, key = os.urandom(size), os.urandom(4)
    assert mask_bytes(data, key) == plainly(data, key)


@pytest.mark.parametrize("start", range(9))
def test_every_alignment(start: int) -> None:
    """Where in memory the bytes begin does not matter."""
    buffer, key = os.urandom(5000), b"\x80\x7f\x00\x10"
    for size in (7, 1023, 1024, 1025, 4096):
        piece = buffer[start : start + size]
        assert mask_bytes(piece, key) == plainly(piece, key)
        assert mask_bytes(bytes(memoryview(buffer)[start : start + size]), key) == plainly(
            piece, key
        )


@given(st.binary(max_size=3000), st.binary(min_size=4, max_size=4))
def test_twice_is_not_at_all(data: bytes, key: bytes) -> None:
    """It is its own inverse, with any key."""
    assert mask_bytes(mask_bytes(data, key), key) == data


@given(st.binary(max_size=1100), st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\0\0\0\1"]))
def test_remarkable_keys(data: bytes, key: bytes) -> None:
    """Keys with zeros in them keep leading and trailing zeros of the data."""
    assert mask_bytes(data, key) == plainly(data, key)
