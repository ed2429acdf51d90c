"""How the cost of a delivery grows with the number of subscribers that keep up."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

from gevent.event import Event

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.bench.scaling.curve import Curve, Series
from keyop.bench.scaling.process import max_descriptors
from keyop.bench.scaling.work import CHANNEL, count, messenger_at
from keyop.envelope import Message
from keyop.messenger import Messenger

XS = (1, 10, 100, 300, 1_000)
MEASURES = ("single", "batch", "interval")
_BURST = 64
_INTERVAL_MS = 100
CURVES = (
    Curve(
        "subscribers",
        "Cost of a delivery by the number of subscribers",
        "subscribers of one channel, with a live publisher in their process",
        "",
        "µs per delivery",
        (
            Series("single", "published one by one"),
            Series("batch", "in batches of 64"),
            Series("interval", f"in batches, positions saved every {_INTERVAL_MS} ms"),
        ),
        "Publishing included; again once everybody has handled the last 64.",
    ),
)
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


def single(directory: str, x: int, scale: float) -> dict[str, float]:
    """Publish one by one while everybody keeps up."""

    def publish(messenger: Messenger, payloads: list[Any]) -> None:
        for each in payloads:
            messenger.publish(CHANNEL, PAYLOAD_TYPE, each)

    return {"single": _measure(directory, x, scale, publish)}


def batch(directory: str, x: int, scale: float) -> dict[str, float]:
    """Publish batches while everybody keeps up."""
    return {"batch": _measure(directory, x, scale, _publish_batch)}


def interval(directory: str, x: int, scale: float) -> dict[str, float]:
    """Publish batches, and save positions now and then."""
    storage = {"offset_flush_interval_ms": _INTERVAL_MS}
    return {"interval": _measure(directory, x, scale, _publish_batch, **storage)}


def _publish_batch(messenger: Messenger, payloads: list[Any]) -> None:
    messenger.publish_batch(CHANNEL, [(PAYLOAD_TYPE, each) for each in payloads])


def _measure(
    directory: str,
    x: int,
    scale: float,
    publish: Callable[[Messenger, list[Any]], None],
    **storage: Any,
) -> float:
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
        with messenger_at(place, storage={"data_dir": place, **storage}) as messenger:
            for number in range(x):
                messenger.subscribe(CHANNEL, f"s{number}", handle)

            def burst() -> None:
                nonlocal awaited
                awaited += _BURST * x
                all_handled.clear()
                publish(messenger, payloads)
                if not all_handled.wait(_TOO_LONG_S):
                    raise TimeoutError(f"{handled} of {awaited} messages were delivered")

            burst()
            begun = time.perf_counter()
            for _ in range(bursts):
                burst()
            taken = (time.perf_counter() - begun) / (bursts * _BURST * x)
    finally:
        shutil.rmtree(place)
    return taken * 1e6
