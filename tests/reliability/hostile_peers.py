"""The process of the hostile peers of ``tests/federation/hostile.py``."""

from __future__ import annotations

from tests.federation.hostile import attack

if __name__ == "__main__":
    attack()
