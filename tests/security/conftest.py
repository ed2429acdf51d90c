"""Certificates and instances, as the federation's tests and those of connections have them."""

from __future__ import annotations

from tests.federation.conftest import certificates, instances
from tests.transport.conftest import authority, files, other_authority

__all__ = ["authority", "certificates", "files", "instances", "other_authority"]
