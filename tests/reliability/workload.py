"""Messages that prove themselves: who wrote them, the how many-th they are, that they are whole."""

from __future__ import annotations

from typing import Any

TYPE = "com.example.Reliability"
CHANNEL = "orders"


def payload(by: str, n: int, *, longest: int = 400) -> dict[str, Any]:
    """Return the writer's message number ``n``; its padding follows from the two."""
    return {"by": by, "n": n, "pad": _padding(by, n, longest), "longest": longest}


def is_whole(found: Any) -> bool:
    """Tell whether this is a message exactly as it was published."""
    try:
        return found == payload(found["by"], found["n"], longest=found["longest"])
    except (KeyError, TypeError):
        return False


def _padding(by: str, n: int, longest: int) -> str:
    unit = f"{by}/{n}."
    length = (n * 7919 + len(by) * 31) % (longest + 1)
    return (unit * (length // len(unit) + 1))[:length]


class Sequences:
    """Checks that the messages of every writer come as 0, 1, 2, …

    Args:
        first: the number that each writer begins with.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self.next: dict[str, int] = {}
        self.lost = 0
        self.duplicates = 0

    def take(self, by: str, n: int) -> str | None:
        """Count one message; return what is wrong with its place, or None."""
        expected = self.next.get(by, self._first)
        if n == expected:
            self.next[by] = n + 1
            return None
        if n < expected:
            self.duplicates += 1
            return f"{by}/{n} came again after {by}/{expected - 1}"
        self.lost += n - expected
        self.next[by] = n + 1
        return f"{by}/{n} came where {by}/{expected} should have"

    def missing(self, by: str, count: int) -> int:
        """Return how many of the writer's first ``count`` messages have not come."""
        return max(0, self._first + count - self.next.get(by, self._first))
