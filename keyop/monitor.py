"""Names whoever blocks the gevent hub, and with it every other greenlet of its thread.

gevent has a monitor of its own, which is left to the program: it is told of every switch between
greenlets, in place of any other tracer, and prints where this one can name a handler. Here a timer
of the hub's leaves the time four times a second, and one thread, for all messengers of the
process, looks whether it does. Whose handler runs is read from the stack of the thread that does
not get on, so that nothing is done for a message or a switch.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

import gevent
from gevent import monkey
from gevent.hub import Hub

from keyop.delivery import Delivery
from keyop.forks import drop_in_children, get_ident, keep_in_children
from keyop.logs import Repeats

logger = logging.getLogger(__name__)

MAX_BLOCKING_S = 1.0
BEAT_S = 0.25
# What blocks so long is named while it does: perhaps it never ends.
TELL_AFTER_S = 10.0
_TELL_AGAIN_S = 60.0
_STACK_FRAMES = 40
_JOIN_S = 0.5

# The thread must be one, and wait as one, whatever the program has patched.
_start_thread = monkey.get_original("_thread", "start_new_thread")
_make_lock = monkey.get_original("_thread", "allocate_lock")

# The frames in which a handler runs; each has its delivery as ``self``.
_HANDLING = frozenset(
    function.__code__ for function in (Delivery.deliver_lines, Delivery.handle, Delivery._after)
)


class _Blocked(NamedTuple):
    """What was found on the stack of a thread whose hub had stood still since ``beat``."""

    beat: float
    greenlet: str
    handler: str
    channel: str
    subscriber_id: str
    file: str
    line: int
    function: str
    stack: str


class Watch:
    """A hub that is watched, by however many messengers."""

    def __init__(self, monitor: Monitor, beat_s: float) -> None:
        self._monitor = monitor
        self.thread = get_ident()
        self.hub = gevent.get_hub()
        self.users = 0
        self.beat = time.monotonic()
        self.blocked: _Blocked | None = None
        self.told = False
        # It keeps no program alive that waits for its hub to run empty.
        self._timer = self.hub.loop.timer(beat_s, beat_s, ref=False)
        self._timer.start(self._mark)

    def _mark(self) -> None:
        self.beat = time.monotonic()

    def end_timer(self) -> None:
        """Leave the time no more."""
        self._timer.stop()
        self._timer.close()

    def stop(self) -> None:
        """Undo one ``watch()``; after the last one, the monitor's thread ends."""
        self._monitor.unwatch(self)


class Monitor:
    """Warns of what blocks a hub for longer than ``max_blocking_s``, once in a minute at most.

    Constructing one starts nothing. The thread runs while there is something to watch.
    """

    def __init__(
        self,
        max_blocking_s: float = MAX_BLOCKING_S,
        beat_s: float = BEAT_S,
        tell_after_s: float = TELL_AFTER_S,
    ) -> None:
        self._max_blocking_s = max_blocking_s
        self._beat_s = beat_s
        self._tell_after_s = tell_after_s
        self._repeats = Repeats(1, _TELL_AGAIN_S)
        self._lock = _make_lock()
        self._watched: dict[int, Watch] = {}
        # Released to end the thread; another one, made by the thread's end, tells that it has.
        self._wake: Any = None
        self._ended: list[bool] = []

    def watch(self) -> Watch | None:
        """Watch the hub of this thread until ``stop()`` of what is returned.

        None if warnings of this module are switched off, or there can be no further thread.
        """
        if not logger.isEnabledFor(logging.WARNING):
            return None
        with self._lock:
            thread = get_ident()
            watch = self._watched.get(thread)
            if watch is None:
                watch = self._watched[thread] = Watch(self, self._beat_s)
            watch.users += 1
            if self._wake is None:
                wake, ended = _make_lock(), list[bool]()
                wake.acquire()
                try:
                    _start_thread(self._run, (wake, ended))
                except RuntimeError as error:
                    logger.warning("nobody watches for what blocks the process: %s", error)
                else:
                    self._wake, self._ended = wake, ended
        drop_in_children(self)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Undo one ``watch()``, in the same thread; nothing to do after a fork."""
        with self._lock:
            if self._watched.get(watch.thread) is not watch:
                return
            watch.users -= 1
            if watch.users:
                return
            del self._watched[watch.thread]
            wake, ended = self._wake, self._ended
            last = not self._watched
            if last:
                self._wake = None
        watch.end_timer()
        if watch.blocked is not None and not watch.told:
            self._tell(watch.blocked, time.monotonic() - watch.blocked.beat)
        if last:
            keep_in_children(self)
            if wake is not None:
                wake.release()
                deadline = time.monotonic() + _JOIN_S
                while not ended and time.monotonic() < deadline:
                    gevent.sleep(0.001)

    def drop_in_child(self) -> None:
        """In a forked child, which has no such thread: begin anew with the next ``watch()``."""
        watched, self._watched = self._watched, {}
        self._lock, self._wake = _make_lock(), None
        for watch in watched.values():
            watch.end_timer()

    # -- in the monitor's thread

    def _run(self, wake: Any, ended: list[bool]) -> None:
        looked, used = time.monotonic(), time.process_time()
        try:
            while not wake.acquire(timeout=self._beat_s):
                now, used_now = time.monotonic(), time.process_time()
                self.look(now, now - looked, used_now - used)
                looked, used = now, used_now
        finally:
            ended.append(True)

    def look(self, now: float, slept_s: float, used_s: float) -> None:
        """Look once at every hub.

        Args:
            now: in ``time.monotonic()`` seconds.
            slept_s: since the look before.
            used_s: processor time of the process since then.
        """
        # If this thread could not run either, and nobody did: the machine or the process stood
        # still, or others had the processors. Nobody here is to blame, so the count begins anew.
        stood_still = slept_s > 2 * self._beat_s and used_s < slept_s / 2
        try:
            for watch in list(self._watched.values()):
                if stood_still and watch.blocked is None:
                    watch.beat = now
                self._look_at(watch, now)
            for kind, left_out in self._repeats.take_left_out():
                logger.warning(
                    "%s has blocked every other greenlet %d more times within %g s",
                    kind,
                    left_out,
                    _TELL_AGAIN_S,
                )
        # Whatever a log handler of the program's raises, the next look is taken.
        except Exception:
            logger.debug("looking for what blocks the process failed", exc_info=True)

    def _look_at(self, watch: Watch, now: float) -> None:
        beat, blocked = watch.beat, watch.blocked
        if blocked is None:
            if now - beat > self._max_blocking_s:
                frame = sys._current_frames().get(watch.thread)
                # In the hub's own loop nobody blocks it: it was about to go on.
                if frame is not None and frame.f_code is not Hub.run.__code__:
                    watch.told, watch.blocked = False, _examine(frame, watch.hub, beat)
        elif beat != blocked.beat:
            watch.blocked = None
            if not watch.told:
                self._tell(blocked, beat - blocked.beat)
        elif now - beat > self._tell_after_s and not watch.told:
            watch.told = True
            self._tell(blocked, now - beat, ", and still does")

    def _tell(self, blocked: _Blocked, seconds: float, more: str = "") -> None:
        who = f"the greenlet {blocked.greenlet}, in {blocked.function},"
        if blocked.handler:
            who = f"the handler {blocked.handler} of {blocked.subscriber_id}"
        kind = f"{blocked.channel}: {who}" if blocked.channel else who
        if not self._repeats.passes(kind):
            return
        text = "%s has blocked every other greenlet for %.1f s%s"
        fields = {name: getattr(blocked, name) for name in ("greenlet", "channel", "subscriber_id")}
        record = logger.makeRecord(
            logger.name,
            logging.WARNING,
            blocked.file,
            blocked.line,
            text,
            (kind, seconds, more),
            None,
            blocked.function,
            {**fields, "handler": blocked.handler, "blocked_s": round(seconds, 3)},
            blocked.stack,
        )
        logger.handle(record)


def _examine(frame: FrameType, hub: Hub, beat: float) -> _Blocked:
    """Return what the stack of a blocked thread tells."""
    delivery = next(_deliveries(frame), None)
    stack = "".join(traceback.format_stack(frame, _STACK_FRAMES))
    return _Blocked(
        beat=beat,
        greenlet=_running_greenlet(hub),
        handler="" if delivery is None else delivery.handler_name,
        channel="" if delivery is None else delivery.channel,
        subscriber_id="" if delivery is None else delivery.subscriber_id,
        file=frame.f_code.co_filename,
        line=frame.f_lineno or 0,
        function=frame.f_code.co_name,
        stack=f"Stack of the greenlet that blocks (most recent call last):\n{stack}".rstrip(),
    )


def _deliveries(frame: FrameType | None) -> Iterator[Delivery]:
    while frame is not None:
        if frame.f_code in _HANDLING:
            yield frame.f_locals["self"]
        frame = frame.f_back


def _running_greenlet(hub: Hub) -> str:
    """Return the name of the greenlet that a hub's thread is in: the one that has no frame.

    Looking through all objects takes a while, but happens only once everything stands still.
    """
    if hub.gr_frame is None:
        return "of the hub"
    main = hub.parent
    if main is not None and main.gr_frame is None:
        return "main"
    for each in gc.get_objects():
        # By its type: to ask a proxy for its class may run somebody's code.
        if not issubclass(type(each), gevent.Greenlet):
            continue
        if each and each.parent is hub and each.gr_frame is None:
            return str(each.name)
    return "unknown"


_monitor = Monitor()


def watch_hub() -> Watch | None:
    """Have this thread's hub watched by the process's one monitor; see :meth:`Monitor.watch`."""
    return _monitor.watch()
