"""Message ids."""

from __future__ import annotations

import os
from uuid import RFC_4122, UUID

import pytest

from keyop.ids import new_ids


def test_every_id_is_a_uuid_of_version_4() -> None:
    """All ids of a block have the form, the version and the variant."""
    for text in new_ids():
        made = UUID(text)
        assert (made.version, made.variant, str(made)) == (4, RFC_4122, text)


def test_ids_differ() -> None:
    """No id comes twice, within a block or in the next one."""
    ids = new_ids() + new_ids()
    assert len(set(ids)) == len(ids) == 512


@pytest.mark.parametrize(
    ("byte", "text"),
    [
        (0x00, "00000000-0000-4000-8000-000000000000"),
        (0xFF, "ffffffff-ffff-4fff-bfff-ffffffffffff"),
    ],
)
def test_only_version_and_variant_are_fixed(
    monkeypatch: pytest.MonkeyPatch, byte: int, text: str
) -> None:
    """The other 122 bits are the random ones."""
    monkeypatch.setattr(os, "urandom", lambda count: bytes([byte]) * count)
    assert set(new_ids()) == {text}


def test_bytes_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of an id follow each other as they were drawn."""
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(16)) * (count // 16))
    assert new_ids()[255] == "00010203-0405-4607-8809-0a0b0c0d0e0f"
