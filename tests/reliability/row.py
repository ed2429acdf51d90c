"""One row of the scorecard: what was counted, what went wrong, and how long it took."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

# The first ones tell what is wrong; ten thousand of them tell no more.
_KEPT_PROBLEMS = 20


class Run(NamedTuple):
    """How a row is run.

    ``directory`` is the row's own, and empty. So is ``memory``, which is faster than a disk where
    the system has such a place: for what would not notice a power cut anyway.
    """

    directory: Path
    memory: Path
    seed: int
    quick: bool

    def rng(self, *names: object) -> Random:
        """Return a source of random numbers that depends on the seed and these names alone."""
        return Random(":".join(map(str, (self.seed, *names))))

    def either(self, quick: Any, full: Any) -> Any:
        """Return the size that fits the run."""
        return quick if self.quick else full


class Row:
    """Collects the figures and the problems of one row. It passes without a problem."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.figures: dict[str, int | float | str] = {}
        self.problems: list[str] = []
        self.problem_count = 0
        self.seconds = 0.0

    def count(self, **counts: int) -> None:
        """Add to figures; one that has stayed 0 is shown as well."""
        for name, count in counts.items():
            self.figures[name] = self.figures.get(name, 0) + count  # type: ignore[operator]

    def worst(self, **values: float) -> None:
        """Keep the greatest value of a figure."""
        for name, value in values.items():
            self.figures[name] = max(self.figures.get(name, value), value)  # type: ignore[type-var]

    def note(self, **notes: float | str) -> None:
        """Set figures as they are."""
        self.figures.update(notes)

    def problem(self, text: str) -> None:
        """Let the row fail."""
        self.problem_count += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(text)

    def expect(self, holds: object, text: str) -> None:
        """Let the row fail unless the condition holds."""
        if not holds:
            self.problem(text)

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong."""
        return not self.problem_count

    def as_json(self) -> dict[str, Any]:
        """Return the row as what JSON can hold."""
        return {
            "row": self.name,
            "title": self.title,
            "passed": self.passed,
            "seconds": round(self.seconds, 2),
            "figures": {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in self.figures.items()
            },
            "problems": self.problems,
            "problem_count": self.problem_count,
        }


def timed(name: str, title: str, make: Callable[[Run], Row], run: Run) -> Row:
    """Run a row and note how long it took; one that breaks off has failed."""
    started = time.monotonic()
    try:
        row = make(run)
    except Exception as error:
        row = Row(name, title)
        row.problem("".join(traceback.format_exception(error)))
    row.seconds = time.monotonic() - started
    return row
