"""One open connection: the session's decisions carried out on the wire, both directions joined.

Only the greenlet that runs the link reads. It never waits for a send: acknowledgements and batches
are sent by the greenlets that have them, pongs by one of the connection's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from keyop.errors import LogFailedError, MessengerClosedError, ProtocolError
from keyop.transport.websocket import (
    ABNORMAL,
    GOING_AWAY,
    INTERNAL_ERROR,
    Connection,
    WebSocketClosedError,
)
from keyop.wire.session import (
    HANDSHAKE_TIMEOUT,
    Acknowledged,
    Alarm,
    BatchReceived,
    Greeted,
    Session,
    State,
)

logger = logging.getLogger(__name__)


class Sending(Protocol):
    """What has batches to send on a link."""

    def acknowledged(self, token: Any) -> None:
        """The batch of this token is written on the other side."""

    def stop(self) -> None:
        """Send nothing more."""


class Receiving(Protocol):
    """What takes the batches that come on a link, and acknowledges each."""

    @property
    def waits(self) -> bool:
        """Whether ``receive`` waits for room, so that nothing is read meanwhile."""

    def receive(self, records: list[bytes]) -> None:
        """Take a batch."""

    def stop(self) -> None:
        """Take nothing more."""


class Link:
    """A connection with its session, and what sends and receives on it once both are known.

    ``closed`` says how it ended, once it has.
    """

    def __init__(self, connection: Connection, session: Session) -> None:
        self.connection = connection
        self.session = session
        self.sender: Sending | None = None
        self.receiver: Receiving | None = None
        self.opened_at = monotonic()
        self.closed: WebSocketClosedError | None = None

    @property
    def open(self) -> bool:
        """Whether both hellos were exchanged, and the connection lives."""
        return self.session.state is State.OPEN and self.closed is None

    def run(self, greeted: Callable[[Greeted], None]) -> WebSocketClosedError:
        """Read until the connection ends, by either side; return how it did.

        Args:
            greeted: told the other side's hello; sets the sender and the receiver, or closes.
        """
        try:
            while True:
                message = self.connection.receive()
                event = self.session.receive(message, monotonic())
                if isinstance(event, BatchReceived):
                    assert self.receiver is not None
                    self.receiver.receive(event.records)
                elif isinstance(event, Acknowledged):
                    assert self.sender is not None
                    self.sender.acknowledged(event.token)
                else:
                    greeted(event)
        except ProtocolError as error:
            self.close(error.code, str(error))
            self.closed = WebSocketClosedError(error.code, str(error), False)
        except WebSocketClosedError as closed:
            self.closed = closed
        except Exception:  # a fault of keyop's own, which whoever runs this reports
            self.close(INTERNAL_ERROR, "internal error")
            raise
        finally:
            # Also when this greenlet is killed.
            if self.closed is None:
                self.closed = WebSocketClosedError(ABNORMAL, "stopped", False)
            self.stop()
            self.connection.finish()
        return self.closed

    def acknowledge(self, last_id: str) -> None:
        """Tell the other side that the oldest batch of its is written."""
        if self.session.state is not State.OPEN:
            return
        try:
            self.connection.send_text(self.session.ack(last_id))
        except OSError:  # gone, which whoever reads finds out
            pass

    def failed(self, error: Exception) -> None:
        """A batch could not be written: nothing more is taken, the other side sends it again."""
        if isinstance(error, MessengerClosedError):
            self.close(GOING_AWAY, "shutting down")
            return
        kind = "the log has failed" if isinstance(error, LogFailedError) else "cannot write"
        logger.error("a batch could not be written: %s", error)
        self.close(INTERNAL_ERROR, kind)

    def close(self, code: int, reason: str) -> None:
        """Tell the other side why this ends; the greenlet that runs the link ends it."""
        self.session.close()
        self.connection.close(code, reason)

    def stop(self) -> None:
        """Send and store nothing more; positions are given back."""
        if self.session.state is not State.CLOSED:
            self.session.close()
        if self.receiver is not None:
            self.receiver.stop()
        if self.sender is not None:
            self.sender.stop()

    def tick(self) -> None:
        """Look what time demands: called every now and then, by whoever keeps links alive."""
        self.session.heard(self.connection.heard_at)
        alarm = self.session.alarm(monotonic())
        if alarm is Alarm.PING:
            self.connection.ping()
        elif alarm is Alarm.HELLO_OVERDUE:
            self.close(HANDSHAKE_TIMEOUT, "handshake timeout")
        elif alarm is Alarm.SILENT and self.receiver is not None and self.receiver.waits:
            # It is this side that does not listen; the other one has to hear that all is well.
            self.session.heard(monotonic())
            self.connection.ping()
        elif alarm is Alarm.SILENT:
            logger.warning("a peer has sent nothing for a minute, and is dropped")
            self.connection.drop()
