"""R5: the disk is full for a while, again and again, under publishers and subscribers at work.

On a small tmpfs, where mounting one is permitted, and on a file system that says that it is full,
for all files or only for logs, positions or dead letters. Beside those at work, one gives up soon
and publishes again under the same id.
"""

from __future__ import annotations

import gevent

from keyop import PublishTimeoutError

from .disks import Disk, FakeDisk, small_disk
from .messengers import make
from .outages import Outages
from .reading import ChannelTail
from .row import Row, Run
from .workload import CHANNEL, TYPE, payload

TITLE = "the disk is full for a while"
_CLOSE_EVERY = 3
_GIVES_UP_AFTER_S, _PAUSE_S = 0.02, 0.002


def run(run: Run) -> Row:
    """Fill both kinds of disk in turn, at the same time."""
    row = Row("R5", TITLE)
    row.count(outages=0, published=0, delivered=0, dead_letters=0, lost=0, lies=0, repeated=0)
    seconds, times = run.either((1.0, 20), (10.0, 20))
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
    repeating = _Repeating(row, disk)
    try:
        for number in range(times):
            kind = disk.kinds[number % len(disk.kinds)]
            outages.suffer(kind, seconds, close=number % _CLOSE_EVERY == _CLOSE_EVERY - 1)
        outages.finish()
        repeating.finish()
    finally:
        outages.stop()
        repeating.stop()


class _Repeating:
    """A writer that gives up soon and tries again under the same id, on a directory of its own."""

    def __init__(self, row: Row, disk: Disk) -> None:
        self._row = row
        self._data_dir = disk.directory / "repeated"
        self._messenger = make(self._data_dir, fs=disk.fs, max_segment_bytes=16 << 10)
        self._published = 0
        self._finishing = False
        self._writer = gevent.spawn(self._publish)

    def _publish(self) -> None:
        while not self._finishing:
            n = self._published
            try:
                self._messenger.publish(
                    CHANNEL,
                    TYPE,
                    payload("repeated", n),
                    message_id=f"repeated-{n}",
                    timeout=_GIVES_UP_AFTER_S,
                )
            except PublishTimeoutError:
                self._row.count(repeated=1)
            else:
                self._published += 1
            gevent.sleep(_PAUSE_S)

    def finish(self) -> None:
        """Compare: what was published in the end is in the log, and not twice."""
        row = self._row
        self._finishing = True
        self._writer.get()
        self._messenger.close()
        tail = ChannelTail(self._data_dir, CHANNEL)
        tail.follow()
        for problem in tail.problems:
            row.problem(f"published again: {problem}")
        logged = [entry.n for entry in tail.entries]
        lost = sorted(set(range(self._published)) - set(logged))
        row.count(lost=len(lost))
        row.expect(not lost, f"published again, and lost: {lost[:10]}, {len(lost)} in all")
        in_order = logged == sorted(set(logged))
        row.expect(in_order, "published again: the log is out of order, or has some twice")
        row.expect(row.figures["repeated"], "nothing had to be published again")

    def stop(self) -> None:
        """Give everything back, whatever has happened."""
        self._writer.kill()
        self._messenger.close()
