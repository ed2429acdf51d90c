"""What an ephemeral client sends: messages whose publishers wait, several of them in one batch."""

from __future__ import annotations

from collections import deque
from typing import Any

from gevent.event import AsyncResult, Event

from keyop.clock import seconds_left
from keyop.errand import Errand
from keyop.errors import KeyopError, PublishTimeoutError
from keyop.transport.websocket import Connection
from keyop.wire.frames import LENGTH_BYTES, MAX_BATCH_RECORDS
from keyop.wire.session import Session


class _Waiting:
    """A message on its way: its record, and the outcome that its publisher waits for."""

    __slots__ = ("outcome", "record", "sent")

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.outcome: AsyncResult[None] = AsyncResult()
        self.sent = False


class Outgoing:
    """A bounded queue of messages, sent whenever there is a connection to send them on.

    Args:
        size: how many messages may wait; who comes then waits for room.
    """

    def __init__(self, size: int, max_batch_bytes: int) -> None:
        self._size = size
        self._max_batch_bytes = max_batch_bytes
        self._queue: deque[_Waiting] = deque()
        self._room = Event()
        # In the order in which they were sent.
        self._under_way: dict[_Waiting, None] = {}
        self._ended: KeyopError | None = None
        self._session: Session | None = None
        self._connection: Connection | None = None
        self._errand = Errand("keyop-ephemeral-sender", self._work)

    @property
    def busy(self) -> bool:
        """Whether a message waits to be sent, or to be confirmed."""
        return bool(self._queue or self._under_way)

    @property
    def unconfirmed(self) -> bool:
        """Whether something was sent that the hub has not confirmed."""
        return bool(self._under_way)

    def put(self, record: bytes, deadline: float | None) -> None:
        """Send a record, and return once the hub has confirmed it.

        Args:
            deadline: in ``time.monotonic()`` seconds.

        Raises:
            PublishTimeoutError: not in time; ``written`` is True if it was sent.
            KeyopError: what :meth:`fail` was told meanwhile, or what has ended the queue.
        """
        while len(self._queue) >= self._size and self._ended is None:
            self._room.clear()
            if not self._room.wait(seconds_left(deadline)):
                raise PublishTimeoutError("the queue was full until the timeout")
        if self._ended is not None:
            raise self._ended
        waiting = _Waiting(record)
        self._queue.append(waiting)
        self._errand.call()
        try:
            waiting.outcome.wait(seconds_left(deadline))
        finally:
            # Also where a timeout of somebody else's, or a kill, has ended the waiting.
            if not waiting.sent and waiting in self._queue:
                self._queue.remove(waiting)
                self._room.set()
        if not waiting.outcome.ready():
            raise PublishTimeoutError("not confirmed by the hub within the timeout", waiting.sent)
        waiting.outcome.get()

    def attach(self, session: Session, connection: Connection) -> None:
        """Send on this connection from now on."""
        self._session, self._connection = session, connection
        self._errand.call()

    def detach(self) -> None:
        """The connection is gone; what waits, waits for another one."""
        self._session = self._connection = None

    def _work(self) -> None:
        """Send what waits, as many at once as fit into a batch, while there is room."""
        while self._queue:
            session, connection = self._session, self._connection
            if session is None or connection is None or not session.may_send:
                return
            batch = self._next_batch()
            data = session.send_batch([each.record for each in batch], batch)
            try:
                connection.send_binary(data)
            except OSError:  # whoever reads finds out, and tells those who wait
                return

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH_RECORDS:
            size += len(self._queue[0].record) + LENGTH_BYTES
            if batch and size > self._max_batch_bytes:
                break
            waiting = self._queue.popleft()
            waiting.sent = True
            batch.append(waiting)
        self._room.set()
        self._under_way.update(dict.fromkeys(batch))
        return batch

    def acknowledged(self, token: Any) -> None:
        """The hub has a batch on its disk."""
        batch: list[_Waiting] = token
        for each in batch:
            self._under_way.pop(each, None)
            each.outcome.set(None)
        self._errand.call()

    def fail(self, error: KeyopError) -> None:
        """Tell the publishers of what was sent that it is not known whether it has arrived."""
        failed = list(self._under_way)
        self._under_way.clear()
        for each in failed:
            each.outcome.set_exception(error)

    def stop(self) -> None:
        """The connection ends; see :meth:`detach`."""
        self.detach()

    def end(self, error: KeyopError) -> None:
        """End for good; tell all who wait, and whoever comes from now on."""
        if self._ended is None:
            self._ended = error
        self._errand.stop()
        self.fail(error)
        while self._queue:
            self._queue.popleft().outcome.set_exception(error)
        self._room.set()
