"""How the cost grows with the size of a backlog."""

from __future__ import annotations

import os
import shutil
import statistics

from keyop.bench.scaling.curve import Curve, Series
from keyop.bench.scaling.process import memory_kib
from keyop.bench.scaling.work import CHANNEL, count, deliver, messenger_at, records
from keyop.envelope import EnvelopeWriter
from keyop.storage.segment import segment_path

XS = (1 << 20, 16 << 20, 128 << 20, 1 << 30, 10 << 30)
MEASURES = ("measure",)
CURVES = (
    Curve(
        "backlog",
        "Cost of a message by the size of the backlog",
        "backlog",
        "bytes",
        "µs per message",
        (Series("delivery", "delivery, position saved after each"),),
        "Of a large one, as many messages are delivered at its beginning, middle and end.",
    ),
    Curve(
        "backlog-memory",
        "Memory of a subscriber's process by the size of the backlog",
        "backlog",
        "bytes",
        "MiB resident, at most",
        (Series("memory", "whole process, Python included"),),
    ),
)
_SEGMENT_BYTES = 256 << 20
_BLOCK_RECORDS = 1_000
_DELIVERED = 150_000
_PARTS = 3
_LARGE_BYTES, _FREE_BYTES = 10 << 30, 30 << 30
_MOST_PASSES = 10


def refusal(directory: str, x: int, measure: str) -> str:
    """Say why there is no room for a backlog of this size; empty if there is."""
    free = shutil.disk_usage(directory).free
    if x < _LARGE_BYTES or free >= _FREE_BYTES:
        return ""
    return f"Left out: {x >> 30} GiB, as the disk has {free >> 30} GiB free."


def prepare(directory: str, x: int, scale: float) -> None:
    """Write segments of the default size, full of the same thousand records."""
    place = f"{directory}/channels/{CHANNEL}"
    os.makedirs(place)
    block = b"".join(records(EnvelopeWriter("bench"), CHANNEL, _BLOCK_RECORDS))
    start = 0
    while start < x:
        size = 0
        with open(segment_path(place, start), "wb") as file:
            while start + size < x and size + len(block) <= _SEGMENT_BYTES:
                size += file.write(block)
        start += size


def measure(directory: str, x: int, scale: float) -> dict[str, float]:
    """Deliver all of a small backlog, several times; parts of a large one."""
    wanted = count(_DELIVERED, scale, _BLOCK_RECORDS)
    with messenger_at(directory) as messenger:
        size, block = _sizes(directory)
        there = size // block * _BLOCK_RECORDS
        if there <= wanted:
            starts, each = [0] * min(_MOST_PASSES, wanted // there), there
        else:
            each = wanted // _PARTS
            blocks = size // block - -(-each // _BLOCK_RECORDS)
            starts = [blocks * part // (_PARTS - 1) * block for part in range(_PARTS)]
        taken = statistics.median([deliver(messenger, start, each) for start in starts])
    return {
        "delivery": taken / (each - 1) * 1e6,
        "memory": memory_kib("VmHWM") / 1024,
    }


def _sizes(directory: str) -> tuple[int, int]:
    """Return the bytes of the channel, and of each thousand records."""
    place = f"{directory}/channels/{CHANNEL}"
    size = sum(each.stat().st_size for each in os.scandir(place) if each.name.endswith(".jsonl"))
    with open(segment_path(place, 0), "rb") as file:
        return size, sum(len(file.readline()) for _ in range(_BLOCK_RECORDS))
