"""The scorecard as text: one line for each row, then its other figures and its problems."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from .row import Row

# Figures that most rows have, with the width of their column.
_COLUMNS = {"lost": 6, "torn": 6, "duplicates": 12, "worst_takeover_s": 16}
_TITLE_WIDTH = 56
_PAGE_WIDTH = 110
_PROBLEM_LINES = 12


def header() -> str:
    """Return the line above the rows."""
    titles = "".join(
        name.removesuffix("_s").replace("_", " ").rjust(width) for name, width in _COLUMNS.items()
    )
    return f"{'row':<4} {'test':<{_TITLE_WIDTH}}{titles}{'seconds':>9}  result"


def as_lines(row: Row) -> Iterator[str]:
    """Yield the lines of one row."""
    figures = "".join(
        _text(name, row.figures[name], width) if name in row.figures else "–".rjust(width)
        for name, width in _COLUMNS.items()
    )
    result = "pass" if row.passed else "FAIL"
    yield f"{row.name:<4} {row.title:<{_TITLE_WIDTH}}{figures}{row.seconds:>9.1f}  {result}"
    others = ", ".join(
        f"{_words(name)} {_text(name, value)}"
        for name, value in row.figures.items()
        if name not in _COLUMNS
    )
    yield from textwrap.wrap(others, _PAGE_WIDTH, initial_indent="     ", subsequent_indent="     ")
    for problem in row.problems:
        # Of a traceback or of what a process said at its end, the end tells most.
        lines = problem.rstrip().splitlines()
        yield f"     ! {lines[0]}"
        yield from (f"       {line}" for line in lines[1:][-_PROBLEM_LINES:])
    if row.problem_count > len(row.problems):
        yield f"     ! and {row.problem_count - len(row.problems)} more"


def _words(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")


def _text(name: str, value: float | str, width: int = 0) -> str:
    if isinstance(value, float):
        text = f"{value:.3f}\N{NO-BREAK SPACE}s" if name.endswith("_s") else f"{value:.2f}"
    else:
        text = f"{value:,}" if isinstance(value, int) else value
    return text.rjust(width)
