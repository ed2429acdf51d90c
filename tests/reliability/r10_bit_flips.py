"""R10: single bits flip in sealed segments, newlines among them.

First one at a time, each looked at by a subscriber of its own; then thousands at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from keyop import Message, Messenger, Subscription

from .children import wait_for
from .messengers import make
from .row import Row, Run
from .workload import CHANNEL, TYPE, payload

TITLE = "single bits flip in sealed segments"
_SINGLE_SEGMENT_BYTES = 2500
# Of the flips, so many hit a newline.
_NEWLINES = 0.1


class Record(NamedTuple):
    """Where a record lies: its file, and its first byte and its newline in there."""

    path: Path
    start: int
    newline: int
    id: str


def run(run: Run) -> Row:
    """Flip bits in a small log one after the other, then in half the records of a large one."""
    row = Row("R10", TITLE)
    row.count(flips=0, newlines=0, undetected=0, lost=0, torn=0)
    rng = run.rng("R10")
    with make(run.memory / "one", "none", max_segment_bytes=_SINGLE_SEGMENT_BYTES) as messenger:
        records = _publish(messenger, 24)
        for number in range(run.either(1000, 10_000)):
            _flip_one(row, messenger, records, number, rng)
    with make(run.memory / "many", "none", max_segment_bytes=256 << 10) as messenger:
        records = _publish(messenger, run.either(2000, 20_000))
        _flip_many(row, messenger, records, rng)
    return row


def _publish(messenger: Messenger, count: int) -> list[Record]:
    """Publish messages, the last ones into a segment that stays active."""
    ids = []
    for n in range(count):
        ids.append(messenger.publish(CHANNEL, TYPE, _payload(n)))
    return _records(Path(messenger.config.storage.data_dir), ids)


def _payload(n: int) -> Any:
    """Return a message; some hold what might be taken for the beginning or end of a record."""
    if n % 5 == 1:
        return {
            "v": 1,
            "id": f"inner-{n}",
            "payload": {"v": 1, "crc": "0badcafe"},
            "crc": "00c0ffee",
        }
    if n % 5 == 3:
        return [
            '{"v":1,"id":"text"',
            ',"crc":"01234567"}',
            "Ünïcödé ✓ 🚚",
            n,
            None,
            1.5,
            "J*\n" * 9,
        ]
    return payload("w", n, longest=150)


def _records(data_dir: Path, ids: list[str]) -> list[Record]:
    records = []
    left = iter(ids)
    for path in sorted((data_dir / "channels" / CHANNEL).glob("*.jsonl")):
        start = 0
        for line in path.read_bytes().split(b"\n")[:-1]:
            records.append(Record(path, start, start + len(line), next(left)))
            start += len(line) + 1
    return records


def _sealed(records: list[Record]) -> list[Record]:
    return [each for each in records if each.path != records[-1].path]


class _Flip:
    """One damaged byte; ``undo`` mends it."""

    def __init__(self, record: Record, rng: Random) -> None:
        self.newline = rng.random() < _NEWLINES
        last = record.newline
        self._position = last if self.newline else rng.randint(record.start, last - 1)
        self._path = record.path
        self._mask = 1 << rng.randrange(8)
        self.what = (
            f"byte {self._position - record.start} of {last - record.start}, {self._mask:#x}"
        )
        self.undo()

    def undo(self) -> None:
        """Flip the bit, again."""
        fd = os.open(self._path, os.O_RDWR)
        try:
            byte = os.pread(fd, 1, self._position)[0]
            os.pwrite(fd, bytes((byte ^ self._mask,)), self._position)
        finally:
            os.close(fd)


def _read_all(messenger: Messenger, own_id: str) -> tuple[list[str], Subscription]:
    """Return what a new subscriber gets, from the beginning to the end."""
    came: list[str] = []

    def handle(message: Message) -> None:
        came.append(message.id)

    subscription = messenger.subscribe(CHANNEL, own_id, handle, start="earliest")
    end = subscription.offset + subscription.lag_bytes
    wait_for(lambda: subscription.offset >= end, f"{own_id} to read everything")
    messenger.unsubscribe(CHANNEL, own_id)
    return came, subscription


def _flip_one(
    row: Row, messenger: Messenger, records: list[Record], number: int, rng: Random
) -> None:
    victim = rng.choice(_sealed(records))
    flip = _Flip(victim, rng)
    came, subscription = _read_all(messenger, f"flip-{number}")
    flip.undo()
    expected = [each.id for each in records if flip.newline or each is not victim]
    _judge(row, came, expected, f"{flip.what}{' (newline)' if flip.newline else ''}")
    counters = subscription.counters
    detected = counters.corrupt >= 1 and (flip.newline or counters.dead_letters >= 1)
    row.count(flips=1, newlines=flip.newline, undetected=not detected)
    row.expect(detected, f"undetected: {flip.what}")


def _flip_many(row: Row, messenger: Messenger, records: list[Record], rng: Random) -> None:
    sealed = _sealed(records)
    flips = {each.id: _Flip(each, rng) for each in rng.sample(sealed, len(sealed) // 2)}
    came, subscription = _read_all(messenger, "many")
    expected = [each.id for each in records if each.id not in flips or flips[each.id].newline]
    _judge(row, came, expected, f"{len(flips)} at once")
    newlines = sum(flip.newline for flip in flips.values())
    missed = len(flips) - newlines - subscription.counters.dead_letters
    row.count(flips=len(flips), newlines=newlines, undetected=max(0, missed))
    row.expect(missed <= 0, f"{missed} of {len(flips)} at once are in no dead letter")


def _judge(row: Row, came: list[str], expected: list[str], what: str) -> None:
    lost, torn = set(expected) - set(came), set(came) - set(expected)
    row.count(lost=len(lost), torn=len(torn))
    row.expect(not lost, f"{what}: {len(lost)} undamaged ones were not delivered")
    row.expect(not torn, f"{what}: {len(torn)} damaged ones were delivered")
    row.expect(came == expected or lost or torn, f"{what}: not in order")
