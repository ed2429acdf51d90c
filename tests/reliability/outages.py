"""A messenger at work on a disk that is full now and then, and the books about it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from random import Random

import gevent

from keyop import KeyopError, Message, MessengerClosedError, PublishTimeoutError
from keyop.testing import drain

from .children import wait_for
from .disks import Disk
from .messengers import make
from .reading import payloads
from .row import Row
from .workload import CHANNEL, TYPE, is_whole, payload

RESUME_S = 1.0
CLOSE_S = 5.0
_CLOSE_TIMEOUT_S = 4.0
_REFUSED_EVERY = 10
_SUBSCRIBERS = ("plain", "refusing")
_PATIENCE_S = 60.0

Key = tuple[str, int]


class Outages:
    """Two writers, one of which waits for room and one that gives up, and two subscribers."""

    def __init__(self, row: Row, disk: Disk) -> None:
        self._row = row
        self._disk = disk
        self._data_dir = disk.directory / "data"
        self._closes = 0
        self._came = {own_id: Counter[Key]() for own_id in _SUBSCRIBERS}
        # What is in the log, and what is not, by what publish said.
        self._written: set[Key] = set()
        self._not_written: set[Key] = set()
        self._next = Counter[str]()
        # When somebody last got on, by name.
        self._last: dict[str, float] = {}
        self._start()

    def _start(self, writing: bool = True) -> None:
        self._messenger = make(
            self._data_dir, fs=self._disk.fs, max_segment_bytes=16 << 10, sync_interval_ms=20
        )
        for own_id in _SUBSCRIBERS:
            self._messenger.subscribe(
                CHANNEL, own_id, self._handler(own_id), start="earliest", max_retries=0
            )
        timeouts = {"patient": None, "hurried": 0.1} if writing else {}
        self._writers = [gevent.spawn(self._publish, *each) for each in timeouts.items()]

    def _handler(self, own_id: str) -> Callable[[Message], None]:
        def handle(message: Message) -> None:
            found = message.payload
            self._row.expect(is_whole(found), f"{own_id} got {found}")
            self._last[own_id] = time.monotonic()
            self._came[own_id][found["by"], found["n"]] += 1
            self._row.count(delivered=1)
            if own_id == "refusing" and found["n"] % _REFUSED_EVERY == 0:
                raise ValueError("meant to fail")

        return handle

    def _publish(self, by: str, timeout_s: float | None) -> None:
        rng = Random(by)
        while True:
            key = by, self._next[by]
            self._next[by] += 1
            try:
                self._messenger.publish(CHANNEL, TYPE, payload(*key), timeout=timeout_s)
            except (PublishTimeoutError, MessengerClosedError) as error:
                (self._written if error.written else self._not_written).add(key)
                if isinstance(error, MessengerClosedError):
                    return
            except KeyopError as error:
                self._not_written.add(key)
                self._row.problem(f"publish(): {type(error).__name__}: {error}")
            else:
                self._written.add(key)
                self._last[by] = time.monotonic()
                self._row.count(published=1)
            gevent.sleep(rng.uniform(0.0005, 0.002))

    def suffer(self, kind: str, seconds: float, close: bool) -> None:
        """Fill the disk for so long, and see how soon all goes on; close meanwhile if asked to."""
        gevent.sleep(0.1)
        self._messenger.sweep()
        self._row.count(outages=1)
        self._disk.fill(kind)
        gevent.sleep(seconds)
        if close:
            self._close(f"{kind} full")
        self._disk.make_room()
        room = time.monotonic()
        if close:
            self._start()
        workers = ("patient", "hurried", *_SUBSCRIBERS)
        for worker in workers:
            wait_for(lambda name=worker: self._last.get(name, 0) > room, f"{worker} to go on")
        resumed_s = time.monotonic() - room
        self._row.worst(worst_resume_s=resumed_s)
        self._row.expect(resumed_s < RESUME_S, f"{kind} full: went on after {resumed_s:.1f} s")

    def _close(self, when: str) -> None:
        started = time.monotonic()
        self._messenger.close(_CLOSE_TIMEOUT_S)
        took_s = time.monotonic() - started
        self._closes += 1
        self._row.worst(worst_close_s=took_s)
        self._row.expect(took_s < CLOSE_S, f"{when}: close() took {took_s:.1f} s")
        gevent.joinall(self._writers, timeout=_PATIENCE_S)

    def finish(self) -> None:
        """Let everything be read, and hold it against what publish said."""
        gevent.sleep(0.1)
        self._close("at the end")
        self._start(writing=False)
        drain(self._messenger, _PATIENCE_S)
        self._messenger.close()
        row = self._row
        for own_id, came in self._came.items():
            lost = self._written - set(came)
            row.count(lost=len(lost))
            row.expect(not lost, f"{own_id} lost {sorted(lost)[:5]}")
            lies = self._not_written & set(came)
            row.count(lies=len(lies))
            row.expect(not lies, f"{own_id} got what publish() said was not written: {lies}")
            self._check_repeated(came, own_id)
        letters = Counter(
            (letter["original"]["payload"]["by"], letter["original"]["payload"]["n"])
            for letter in payloads(self._data_dir, f"{CHANNEL}.dead-letter")
        )
        refused = {key for key in self._written if key[1] % _REFUSED_EVERY == 0}
        row.count(dead_letters=letters.total(), lost=len(refused - set(letters)))
        row.expect(set(letters) == refused, "the dead letters are not what was refused")
        self._check_repeated(letters, "the dead-letter channel")

    def _check_repeated(self, came: Counter[Key], who: str) -> None:
        # A position that could not be saved before a close lets one message come again.
        times = came.total() - len(came)
        self._row.expect(times <= self._closes, f"{who} got {times} messages twice")

    def stop(self) -> None:
        """Give everything back, whatever has happened."""
        self._disk.make_room()
        gevent.killall(self._writers)
        self._messenger.close()
