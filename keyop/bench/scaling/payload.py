"""How the cost grows with the size of a payload."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import Any

import orjson

from keyop.bench.scaling.curve import Curve, Series
from keyop.bench.scaling.work import CHANNEL, count, deliver, messenger_at, publish_each
from keyop.fs import FileSystem
from keyop.messenger import Messenger
from keyop.storage.segment import list_starts, segment_path

XS = (100, 300, 1 << 10, 10 << 10, 100 << 10, 1 << 20)
MEASURES = ("measure",)
CURVES = (
    Curve(
        "payload",
        "Cost of a message by the size of its payload",
        "payload",
        "bytes",
        "µs per message",
        (
            Series("publish", "publish, one greenlet"),
            Series("delivery", "delivery of a backlog"),
            Series("limit", "bare os.write of the lines"),
        ),
        "The bend is of the cost of a byte, from 10 KiB on.",
        bend_from=10 << 10,
        per_x=True,
    ),
)
_MOST, _MOST_BYTES = 50_000, 200 << 20
_DIFFERENT = 16


def refusal(directory: str, x: int, measure: str) -> str:
    """Every size can be measured."""
    return ""


def prepare(directory: str, x: int, scale: float) -> None:
    """Nothing is there before."""


def measure(directory: str, x: int, scale: float) -> dict[str, float]:
    """Publish, deliver what was published, and write the same lines without keyop."""
    number = count(min(_MOST, _MOST_BYTES // x), scale, _DIFFERENT)
    payloads = [_payload(each, x) for each in range(_DIFFERENT)]
    place = tempfile.mkdtemp(dir=directory)
    try:
        with messenger_at(place) as messenger:
            publish_each(messenger, payloads, 2)  # opens the channel
            publish = publish_each(messenger, payloads, number)
            delivery = deliver(messenger, "earliest", number) / (number - 1) * 1e6
            limit = _bare_write(place, _lines(messenger, number))
    finally:
        shutil.rmtree(place)
    return {
        name: value
        for key, taken in (("publish", publish), ("delivery", delivery), ("limit", limit))
        for name, value in (
            (key, taken),
            (f"{key}.mib_s", x / taken * 1e6 / (1 << 20)),
            (f"{key}.limit", limit),
        )
    }


def _payload(number: int, size: int) -> dict[str, Any]:
    """Return a JSON object of so many bytes."""
    made: dict[str, Any] = {"reading": number, "unit": "celsius", "note": ""}
    made["note"] = "x" * (size - len(orjson.dumps(made)))
    return made


def _lines(messenger: Messenger, number: int) -> list[bytes]:
    directory = f"{messenger.config.storage.data_dir}/channels/{CHANNEL}"
    lines: list[bytes] = []
    for start in list_starts(FileSystem(), directory):
        with open(segment_path(directory, start), "rb") as file:
            lines += file
    return lines[:number]


def _bare_write(directory: str, lines: list[bytes]) -> float:
    """Return the µs that ``os.write`` takes for each of these lines."""
    write = os.write
    fd = os.open(f"{directory}/bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        begun = time.perf_counter()
        for line in lines:
            write(fd, line)
        return (time.perf_counter() - begun) / len(lines) * 1e6
    finally:
        os.close(fd)
