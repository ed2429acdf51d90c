"""One authority for all, since keys take a while to make; a directory for each test's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from .certificates import Authority, Files, Issued


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def other_authority() -> Authority:
    """Another one, which has the same name."""
    return Authority()


@pytest.fixture(scope="session")
def hub(authority: Authority) -> Issued:
    return authority.issue("hub1")


@pytest.fixture(scope="session")
def client(authority: Authority) -> Issued:
    return authority.issue("client1", hosts=())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)
