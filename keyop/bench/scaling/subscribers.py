"""How the cost of a delivery grows with the number of subscribers that keep up."""

from __future__ import annotations

import shutil
import tempfile
import time

from gevent.event import Event

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.bench.scaling.curve import Curve, Series
from keyop.bench.scaling.process import max_descriptors
from keyop.bench.scaling.work import CHANNEL, count, messenger_at
from keyop.envelope import Message

XS = (1, 10, 100, 300, 1_000)
MEASURES = ("measure",)
CURVES = (
    Curve(
        "subscribers",
        "Cost of a delivery by the number of subscribers",
        "subscribers of one channel, with a live publisher in their process",
        "",
        "µs per delivery",
        (Series("delivery", "publishing included"),),
        "Published one by one, and again once everybody has handled the last 64.",
    ),
)
_BURST = 64
_DELIVERIES, _MOST_BURSTS = 200_000, 400
_TOO_LONG_S = 60.0
_DESCRIPTORS_EACH, _DESCRIPTORS = 3, 100


def refusal(directory: str, x: int, measure: str) -> str:
    """Say why so many subscribers cannot be in one process; empty if they can."""
    if x * _DESCRIPTORS_EACH + _DESCRIPTORS <= max_descriptors():
        return ""
    return f"Left out: {x:,} subscribers, as a process may have {max_descriptors():,} descriptors."


def prepare(directory: str, x: int, scale: float) -> None:
    """Nothing is there before."""


def measure(directory: str, x: int, scale: float) -> dict[str, float]:
    """Publish while everybody keeps up."""
    bursts = max(2, min(_MOST_BURSTS, count(_DELIVERIES, scale, 1) // (_BURST * x)))
    payloads = [payload(number) for number in range(_BURST)]
    handled = awaited = 0
    all_handled = Event()

    def handle(message: Message) -> None:
        nonlocal handled
        handled += 1
        if handled == awaited:
            all_handled.set()

    place = tempfile.mkdtemp(dir=directory)
    try:
        with messenger_at(place) as messenger:
            for number in range(x):
                messenger.subscribe(CHANNEL, f"s{number}", handle)

            def burst() -> None:
                nonlocal awaited
                awaited += _BURST * x
                all_handled.clear()
                for each in payloads:
                    messenger.publish(CHANNEL, PAYLOAD_TYPE, each)
                if not all_handled.wait(_TOO_LONG_S):
                    raise TimeoutError(f"{handled} of {awaited} messages were delivered")

            burst()
            begun = time.perf_counter()
            for _ in range(bursts):
                burst()
            taken = (time.perf_counter() - begun) / (bursts * _BURST * x)
    finally:
        shutil.rmtree(place)
    return {"delivery": taken * 1e6, "delivery.rate": 1 / taken}
