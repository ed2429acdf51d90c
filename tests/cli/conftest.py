"""A data directory for each test, and the logging as it was behind it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that commands use unless they are told another; not made yet."""
    path = tmp_path / "data"
    monkeypatch.setenv("KEYOP_DATA_DIR", str(path))
    # A process that a test starts must not think that it writes to a terminal of another width.
    monkeypatch.setenv("COLUMNS", "100")
    return path


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """The command line sets up the library's logging, which other tests have their own ideas of."""
    loggers = [logging.getLogger("keyop"), logging.getLogger("keyop.payloads")]
    before = [(each.level, list(each.handlers)) for each in loggers]
    yield
    for each, (level, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.handlers[:] = handlers
