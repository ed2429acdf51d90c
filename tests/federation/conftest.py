"""Certificates for every test, and instances that are closed behind each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keyop.keygen import DevelopmentCertificates, ensure_development_certificates

from .helpers import NAMES, Instances


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCertificates:
    """One authority, and a certificate for each name; keys take a while to make."""
    directory = tmp_path_factory.mktemp("certificates")
    return ensure_development_certificates(str(directory), NAMES)


@pytest.fixture
def instances(tmp_path: Path, certificates: DevelopmentCertificates) -> Iterator[Instances]:
    made = Instances(tmp_path, certificates)
    try:
        yield made
    finally:
        made.close()
