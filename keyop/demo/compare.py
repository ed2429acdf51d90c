"""What arrived, held against what was sent."""

from __future__ import annotations

from typing import NamedTuple


class Received(NamedTuple):
    """What one subscriber got, held against the lines that were sent."""

    lines: int
    missing: int
    twice: int
    altered: int
    in_order: bool
    seconds: float

    @property
    def rate(self) -> float:
        """Deliveries in a second."""
        return (self.lines + self.twice) / self.seconds if self.seconds else 0.0

    @property
    def perfect(self) -> bool:
        """Whether every line came, unaltered and in order."""
        return self.in_order and not self.missing and not self.altered


def compare(source: str, received: str, seconds: float) -> Received:
    """Hold the lines that arrived, with their numbers, against those that were sent."""
    with open(source, "rb") as file:
        sent = file.readlines()
    seen = bytearray(len(sent))
    twice = altered = 0
    latest = -1
    in_order = True
    with open(received, "rb") as file:
        for line in file:
            number_text, _, text = line.partition(b" ")
            number = int(number_text)
            altered += text != sent[number]
            if seen[number]:
                twice += 1
                continue
            seen[number] = 1
            in_order = in_order and number > latest
            latest = number
    count = sum(seen)
    return Received(count, len(sent) - count, twice, altered, in_order, seconds)
