"""Rounds in turn, ratios within one run: what a noisy machine lets one say about speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One result: keyop's value, the limit's, and keyop ÷ limit (or what ``ratio`` says).

    ``goal`` is a bound on the ratio: at least it if ``more_is_better``, at most it otherwise.
    """

    name: str
    unit: str
    keyop: float
    limit_name: str
    limit: float
    ratio: float
    goal: float
    more_is_better: bool = True
    rounds: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio >= self.goal if self.more_is_better else self.ratio <= self.goal

    def as_json(self) -> dict[str, Any]:
        """Return everything, ``met`` included, as plain data."""
        return {**asdict(self), "met": self.met}

    def as_line(self) -> str:
        """Return one line for a person."""
        sign = "≥" if self.more_is_better else "≤"
        spread = f" ({min(self.rounds):.3g}–{max(self.rounds):.3g})" if self.rounds else ""
        return (
            f"{'ok  ' if self.met else 'MISS'} {self.name:<30} {self.keyop:>9,.4g} {self.unit}; "
            f"{self.limit_name} {self.limit:,.4g}; ratio {self.ratio:.3g}{spread}, "
            f"goal {sign} {self.goal:g}"
        )


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work()`` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_turn(
    rounds: int, one: Callable[[], float], other: Callable[[], float]
) -> tuple[float, float, list[float]]:
    """Measure two things in turn, A B A B …, so that a drift of the machine cancels.

    Returns:
        The medians of both, and the ratio one ÷ other of each round.
    """
    pairs = [(one(), other()) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        ratios,
    )


def rate_figure(
    name: str,
    limit_name: str,
    goal: float,
    rounds: int,
    one: Callable[[], float],
    other: Callable[[], float],
    unit: str = "messages/s",
) -> Figure:
    """Return keyop's rate beside the limit's; both functions return a rate."""
    mine, limit, ratios = in_turn(rounds, one, other)
    return Figure(
        name, unit, mine, limit_name, limit, statistics.median(ratios), goal, True, ratios
    )


def percentile(values: list[float], fraction: float) -> float:
    """Return the value below which this fraction of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]
