"""R5: the disk is full for a while, again and again, under publishers and subscribers at work.

On a small tmpfs, where mounting one is permitted, and on a file system that says that it is full,
for all files or only for logs, positions or dead letters.
"""

from __future__ import annotations

import gevent

from .disks import Disk, FakeDisk, small_disk
from .outages import Outages
from .row import Row, Run

TITLE = "the disk is full for a while"
_CLOSE_EVERY = 3


def run(run: Run) -> Row:
    """Fill both kinds of disk in turn, at the same time."""
    row = Row("R5", TITLE)
    row.count(outages=0, published=0, delivered=0, dead_letters=0, lost=0, lies=0)
    seconds, times = run.either((0.25, 4), (10.0, 20))
    with small_disk(run.directory / "tmpfs") as small:
        fake = FakeDisk(run.directory / "fake")
        fake.directory.mkdir()
        disks: list[Disk] = [fake] if small is None else [fake, small]
        row.note(disks="fake only" if small is None else "fake and tmpfs")
        lanes = [gevent.spawn(_fill, row, disk, seconds, times) for disk in disks]
        try:
            gevent.joinall(lanes, raise_error=True)
        finally:
            gevent.killall(lanes)
    return row


def _fill(row: Row, disk: Disk, seconds: float, times: int) -> None:
    outages = Outages(row, disk)
    try:
        for number in range(times):
            kind = disk.kinds[number % len(disk.kinds)]
            outages.suffer(kind, seconds, close=number % _CLOSE_EVERY == _CLOSE_EVERY - 1)
        outages.finish()
    finally:
        outages.stop()
