"""R6: see ``tests/federation/cuts.py``, which can be run by itself as well."""

from __future__ import annotations

from tests.federation.cuts import TITLE, run

__all__ = ["TITLE", "run"]
