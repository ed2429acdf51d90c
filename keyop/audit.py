"""The audit log: who connected, what was forwarded or refused, one JSON line for each event.

It is never in anybody's way. Events wait in a short queue for a greenlet that writes them through
a thread; what does not fit, or cannot be written, is dropped, counted and reported.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event

from keyop.audit_event import AuditEvent, encode_alike, encode_event
from keyop.audit_file import Appended, AuditFile
from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.errand import end_greenlets
from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.offload import Job, Offload
from keyop.timestamps import whole_second

__all__ = ["AuditEvent", "AuditLog"]

logger = logging.getLogger(__name__)

QUEUE_EVENTS = 1000
REPORT_INTERVAL_S = 5.0
# Events that come one by one are written together, unless there are many already: to wake the
# thread for each would take its time from those whose events they are.
_LINGER_S = 0.02
_ENOUGH_EVENTS = QUEUE_EVENTS // 8


class AuditLog:
    """The audit log of one messenger. Only the process that runs federation starts one.

    ``written`` and ``dropped`` count events.
    """

    def __init__(
        self,
        data_dir: str,
        max_size_bytes: int,
        max_files: int,
        fs: FileSystem = SYSTEM_FS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Remember where to write; nothing is opened or created before the first event.

        Args:
            max_size_bytes: the size that a file does not exceed, but for a single longer event;
                0 never rotates.
            max_files: rotated files kept; 0 keeps none.
        """
        self.written = 0
        self.dropped = 0
        self._file = AuditFile(f"{data_dir}/audit", max_size_bytes, max_files, fs, clock)
        self._clock = clock
        self._queue: deque[bytes] = deque()
        self._job: Job | None = None
        self._in_flight = 0
        self._wanted = Event()
        self._enough = Event()
        self._closing = False
        self._second, self._second_text = -1, ""
        self._unreported: Counter[str] = Counter()
        self._threads = Offload(1)
        self._greenlets: list[gevent.Greenlet[[], None]] = []

    @property
    def path(self) -> str:
        """Where events are written now."""
        return self._file.path

    def start(self) -> None:
        """Begin to write, also what was recorded before; nothing to do the second time."""
        if self._greenlets or self._closing:
            return
        drop_in_children(self)
        self._spawn("writer", self._write)
        self._spawn("reporter", self._report_now_and_then)

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        greenlet = gevent.spawn(run)
        greenlet.name = f"keyop-audit-{name}"
        self._greenlets.append(greenlet)

    def record(
        self,
        event: AuditEvent,
        *,
        message_id: str = "",
        channel: str = "",
        direction: str = "",
        peer: str = "",
        peer_addr: str = "",
        detail: str = "",
    ) -> None:
        """Record an event as of now. It never waits and never raises; at worst it is dropped.

        Args:
            direction: ``inbound`` or ``outbound``.
            peer: the other instance's name.
            peer_addr: its ``host:port``.
            detail: for people. Texts from outside may hold anything; long ones are cut.
        """
        if len(self._queue) >= QUEUE_EVENTS:
            self._drop(1, "too many at once")
            return
        if self._closing:
            self._drop(1, "the log is closed")
            return
        try:
            line = encode_event(
                {
                    "ts": self._timestamp(),
                    "event": event,
                    "message_id": message_id,
                    "channel": channel,
                    "direction": direction,
                    "peer": peer,
                    "peer_addr": peer_addr,
                    "detail": detail,
                }
            )
        except Exception as error:  # a fault of the caller's, who is not to suffer for it
            self._drop(1, f"{type(error).__name__}: {error}")
            return
        self._queue.append(line)
        self._wake()

    def record_forwarded(
        self, direction: str, peer: str, channel: str, message_ids: Sequence[str]
    ) -> None:
        """Record that messages were passed on, as one event each, as far as there is room."""
        room = max(0, QUEUE_EVENTS - len(self._queue))
        if self._closing:
            room = 0
        if room:
            shared = {"ts": self._timestamp(), "event": AuditEvent.FORWARD, "channel": channel}
            more = {"direction": direction, "peer": peer}
            self._queue.extend(encode_alike({**shared, **more}, message_ids[:room]))
            self._wake()
        if len(message_ids) > room:
            self._drop(len(message_ids) - room, "too many at once")

    def _wake(self) -> None:
        self._wanted.set()
        if len(self._queue) >= _ENOUGH_EVENTS:
            self._enough.set()

    def _timestamp(self) -> str:
        # As timestamps.format_ns, with the second remembered: that is most of the work.
        second, fraction = divmod(self._clock.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._second_text = second, whole_second(second)
        if not fraction:
            return self._second_text + "Z"
        return f"{self._second_text}.{fraction:09d}".rstrip("0") + "Z"

    def close(self, timeout_s: float) -> None:
        """Write what is in the queue, as far as that takes no longer, and end.

        What could not be written is reported. Nothing to do the second time.
        """
        if self._closing:
            return
        self._closing = True
        deadline = time.monotonic() + timeout_s
        if self._greenlets:
            self._wanted.set()
            self._enough.set()
            self._greenlets[0].join(max(0.0, timeout_s))
            end_greenlets(self._greenlets, 1.0)
            self._greenlets.clear()
            keep_in_children(self)
        left = len(self._queue) + self._in_flight
        self._queue.clear()
        if left:
            self._drop(left, "not written before the end")
        self._threads.close(deadline - time.monotonic())
        if self._job is None or self._job.done:
            self._file.close()
        else:  # the disk hangs: when it answers, if ever
            self._job.then(lambda _: self._file.close())
        self._report()

    def drop_in_child(self) -> None:
        """In a forked child: write nothing, which the parent does."""
        self._closing = True
        self._queue.clear()
        gevent.killall(self._greenlets, block=False)

    # -- in the background

    def _write(self) -> None:
        while self._queue or not self._closing:
            self._wanted.wait()
            self._wanted.clear()
            self._enough.wait(_LINGER_S)
            if not self._closing:
                self._enough.clear()
            while self._queue:
                lines = list(self._queue)
                self._queue.clear()
                self._in_flight = len(lines)
                self._job = job = self._threads.submit(self._file.append, lines)
                job.wait()
                self._in_flight = 0
                self._account(len(lines), job.value, job.error)

    def _account(self, count: int, done: Appended | None, error: Exception | None) -> None:
        if done is None:
            self._drop(count, str(error))
            return
        self.written += done.lines
        if done.error is not None:
            self._drop(count - done.lines, str(done.error))

    def _drop(self, count: int, reason: str) -> None:
        self.dropped += count
        self._unreported[reason] += count

    def _report_now_and_then(self) -> None:
        while True:
            self._clock.sleep(REPORT_INTERVAL_S)
            self._report()

    def _report(self) -> None:
        if not self._unreported:
            return
        reasons, self._unreported = self._unreported, Counter()
        logger.warning(
            "%s: %d events were dropped: %s",
            self.path,
            reasons.total(),
            "; ".join(f"{reason} ({count})" for reason, count in reasons.items()),
        )
