"""The schedule of retries."""

from __future__ import annotations

import random

import pytest

from keyop.backoff import backoff_delay


@pytest.mark.parametrize(
    ("attempt", "delay"), [(1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, 5), (1000, 5), (10**6, 5)]
)
def test_doubles_up_to_the_longest(attempt: int, delay: float) -> None:
    """Each retry waits twice as long, never longer than the longest."""
    assert backoff_delay(attempt, 0.1, 5) == pytest.approx(delay)


@pytest.mark.parametrize("attempt", [1, 5, 10**6])
def test_a_base_of_zero_never_waits(attempt: int) -> None:
    """0 stays 0."""
    assert backoff_delay(attempt, 0, 5, jitter=1) == 0


def test_a_base_above_the_longest() -> None:
    """The longest holds from the first retry on."""
    assert backoff_delay(1, 10, 5) == 5


def test_jitter_spreads_around_the_delay() -> None:
    """Delays lie within the fraction on both sides and differ."""
    rng = random.Random(1)
    delays = [backoff_delay(2, 1, 60, 0.2, rng) for _ in range(200)]
    assert 1.6 <= min(delays) < 1.7 < 2.3 < max(delays) <= 2.4


def test_jitter_never_exceeds_the_longest() -> None:
    """The longest delay is the longest with jitter included."""
    rng = random.Random(1)
    assert max(backoff_delay(9, 1, 60, 1.0, rng) for _ in range(100)) == 60


def test_jitter_has_a_source_of_its_own() -> None:
    """Without a generator, the process's is used."""
    assert len({backoff_delay(1, 1, 2, 0.5) for _ in range(20)}) > 1
