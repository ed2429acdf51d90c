"""Percentiles of the last minute: near enough, in constant memory, and forgotten in time."""

from __future__ import annotations

import math
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyop.latency import Latencies, MessengerLatencies, Percentiles
from tests.fakes.clock import FakeClock

NEAR = 1 / 16 + 0.001


def exact(samples: list[float], share: float) -> float:
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


@given(st.lists(st.floats(1e-6, 3600), min_size=1, max_size=300))
def test_near_the_exact_ones(samples: list[float]) -> None:
    """Each is what a sorted list would give, to a sixteenth."""
    clock = FakeClock()
    latencies = Latencies(clock.monotonic)
    for each in samples:
        latencies.add_seconds(each, clock.monotonic())
    found = latencies.percentiles()
    assert found.count == len(samples)
    assert found.p50 == pytest.approx(exact(samples, 0.5), rel=NEAR)
    assert found.p90 == pytest.approx(exact(samples, 0.9), rel=NEAR)
    assert found.p99 == pytest.approx(exact(samples, 0.99), rel=NEAR)


def test_none() -> None:
    """Nothing measured is nothing, not zero."""
    assert Latencies(FakeClock().monotonic).percentiles() == Percentiles(0, None, None, None)


@pytest.mark.parametrize("seconds", [0.0, -5.0, 1e-9, 1e300])
def test_any_duration(seconds: float) -> None:
    """A clock that went back counts as nothing; what is beyond all sense as very long."""
    clock = FakeClock()
    latencies = Latencies(clock.monotonic)
    latencies.add_seconds(seconds, clock.monotonic())
    found = latencies.percentiles().p50
    assert found is not None
    assert found < 1e-7 if seconds < 1 else found > 3600


def test_a_minute_is_remembered() -> None:
    """What is older than that is not counted, also when nothing came after it."""
    clock = FakeClock()
    latencies = Latencies(clock.monotonic)
    for _ in range(200):
        latencies.add_seconds(0.001, clock.monotonic())
        clock.advance(1)
    assert 60 <= latencies.percentiles().count <= 70
    clock.advance(30)
    assert 30 <= latencies.percentiles().count <= 40
    clock.advance(100)
    assert latencies.percentiles().count == 0
    latencies.add_seconds(2.0, clock.monotonic())
    assert latencies.percentiles().p99 == pytest.approx(2, rel=NEAR)


def test_of_a_handler() -> None:
    """Its duration counts, and how long its message had been waiting when it began."""
    clock = FakeClock()
    latencies = MessengerLatencies(clock, clock.monotonic)
    published = datetime.fromtimestamp(clock.time_ns() / 1e9, timezone.utc)
    clock.advance(3)
    begun = clock.monotonic()
    clock.advance(0.25)
    latencies.handled(published, begun)
    assert latencies.handler.percentiles().p50 == pytest.approx(0.25, rel=NEAR)
    assert latencies.consume.percentiles().p50 == pytest.approx(3, rel=NEAR)
