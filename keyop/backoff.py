"""How long to wait before trying again, and how often to tell of it: pure schedules."""

from __future__ import annotations

import random

_MAX_DOUBLINGS = 62


def worth_telling(count: int) -> bool:
    """Tell whether what has happened so many times is logged once more: at 1, 2, 4, 8 …"""
    return count & (count - 1) == 0


def backoff_delay(
    attempt: int,
    base_s: float,
    max_s: float,
    jitter: float = 0.0,
    rng: random.Random | None = None,
) -> float:
    """Return the seconds to wait before the given retry.

    ``min(max_s, base_s × 2^(attempt − 1))``, spread evenly over ± ``jitter`` of itself.

    Args:
        attempt: 1 for the first retry.
        base_s: the first delay; 0 means no waiting at all.
        max_s: no delay is longer, jitter included.
        jitter: a fraction from 0 to 1.
    """
    delay = min(max_s, base_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS))
    if jitter:
        delay *= 1 + jitter * (rng or random).uniform(-1.0, 1.0)
    return max(0.0, min(max_s, delay))
