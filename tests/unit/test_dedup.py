"""The window of ids seen last: what happens when its reader is stopped half way."""

from __future__ import annotations

from pathlib import Path

import pytest
from gevent import GreenletExit

import keyop.dedup
from keyop.dedup import Window
from keyop.fs import SYSTEM_FS
from tests.integration.helpers import channel_dir, record, write_segment


def test_a_reader_that_is_killed_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks next goes on where it was: no id that was read is forgotten."""
    lines = b"".join([record(n, id=f"id-{n}") for n in range(1000)])
    write_segment(tmp_path, "orders", 0, lines)
    steps = 0

    class Deadly(keyop.dedup.Pace):
        def step(self) -> None:
            nonlocal steps
            steps += 1
            if steps == 500:
                raise GreenletExit

    monkeypatch.setattr(keyop.dedup, "Pace", Deadly)
    window = Window(SYSTEM_FS, str(channel_dir(tmp_path, "orders")), 10_000, 1 << 20)
    try:
        with pytest.raises(GreenletExit):
            window.refresh()
        window.refresh()
        assert window.count() == 1000
        assert all(window.contains(f"id-{n}") for n in range(1000))
    finally:
        window.close()
