"""One connection's state: hello, batches under way, acknowledgements due, signs of life.

A session is told what arrives and what time it is, and says what has to be sent and what has
happened. It never waits, and two of them can be joined without a network.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any, Union

from keyop.errors import ProtocolError
from keyop.wire.frames import decode_batch, encode_batch
from keyop.wire.messages import CLIENT, HUB, Hello, decode_ack, encode_ack

HELLO_S = 5.0
PING_AFTER_S = 20.0
DROP_AFTER_S = 60.0

WRONG_KIND, TRY_AGAIN_LATER = 1003, 1013
# Close codes of our own; docs/wire.md says what each means.
NOT_ALLOWED, HANDSHAKE_TIMEOUT, TAKEN_OVER = 4403, 4408, 4409


class State(Enum):
    """Where a connection is."""

    HELLO = "hello"  # the other side's hello is still to come
    DECIDING = "deciding"  # a hub has a client's hello, and decides
    OPEN = "open"
    CLOSED = "closed"


class Input(Enum):
    """What can happen to a connection."""

    HELLO = "hello"  # the first text message
    ACCEPT = "accept"  # the hub has decided
    BATCH = "batch"  # a binary message
    ACK = "ack"  # a later text message
    CLOSE = "close"


# Every transition there is. Anything else that comes is the other side's fault; anything else that
# is called is a misuse.
TRANSITIONS = {
    (CLIENT, State.HELLO, Input.HELLO): State.OPEN,
    (HUB, State.HELLO, Input.HELLO): State.DECIDING,
    (HUB, State.DECIDING, Input.ACCEPT): State.OPEN,
    (CLIENT, State.OPEN, Input.BATCH): State.OPEN,
    (HUB, State.OPEN, Input.BATCH): State.OPEN,
    (CLIENT, State.OPEN, Input.ACK): State.OPEN,
    (HUB, State.OPEN, Input.ACK): State.OPEN,
    **{(role, state, Input.CLOSE): State.CLOSED for role in (CLIENT, HUB) for state in State},
}


@dataclass(frozen=True)
class Greeted:
    """The other side's hello has come. A hub has to accept it or close; a client is open."""

    hello: Hello


@dataclass(frozen=True)
class BatchReceived:
    """Records have come; each batch has to be acknowledged, in order, once it is written."""

    records: list[bytes]


@dataclass(frozen=True)
class Acknowledged:
    """The other side has written the batch that was sent with this token."""

    token: Any
    last_id: str


Event = Union[Greeted, BatchReceived, Acknowledged]  # noqa: UP007 - evaluated at run time


class Alarm(Enum):
    """What time has brought about."""

    PING = "ping"  # nothing has come for a while: ask for a sign of life
    HELLO_OVERDUE = "hello overdue"
    SILENT = "silent"  # no sign of life has come either


class Session:
    """The protocol of one side of one connection.

    Args:
        hello: this side's own.
        window: how many batches may be under way before the first acknowledgement.
        now: seconds of a clock that only moves forward.
    """

    def __init__(self, hello: Hello, window: int, now: float) -> None:
        self._hello = hello
        self._role = hello.role
        self._window = window
        self._started = now
        self._heard = now
        self._pinged = now
        self.state = State.HELLO
        self.peer: Hello | None = None
        # Tokens of batches that are under way, oldest first.
        self._under_way: deque[Any] = deque()
        self.acks_due = 0

    # -- what this side does

    def greeting(self) -> str:
        """Return this side's hello, as the text to send: a client's first, a hub's answer.

        What v0.11.0 does not know is added by a client always, by a hub only for one that does.
        """
        hello = self._hello
        if self._role == HUB:
            assert self.peer is not None
            if self.peer.features is None:
                hello = Hello(hello.instance_name, HUB)
        return hello.encode()

    def accept(self) -> str:
        """As a hub: let the client in; return the text to send."""
        if (self._role, self.state, Input.ACCEPT) not in TRANSITIONS:
            raise RuntimeError("only a hub that has a hello to decide on accepts one")
        self._move(Input.ACCEPT)
        return self.greeting()

    @property
    def may_send(self) -> bool:
        """Whether there is room for another batch under way."""
        return self.state is State.OPEN and len(self._under_way) < self._window

    @property
    def under_way(self) -> int:
        """How many batches were sent and not acknowledged yet."""
        return len(self._under_way)

    def send_batch(self, records: list[bytes], token: Any) -> bytes:
        """Return the binary message to send; ``token`` comes back with its acknowledgement."""
        return self.send_encoded(encode_batch(records), token)

    def send_encoded(self, message: bytes, token: Any) -> bytes:
        """As :meth:`send_batch`, of a batch that is encoded already."""
        if not self.may_send:
            raise RuntimeError("no room for a batch: ask may_send first")
        self._under_way.append(token)
        return message

    def ack(self, last_id: str) -> str:
        """Return the text that acknowledges the oldest batch that was received and not yet was."""
        if not self.acks_due:
            raise RuntimeError("there is no batch to acknowledge")
        self.acks_due -= 1
        return encode_ack(last_id)

    def close(self) -> None:
        """Nothing more is sent or received."""
        self._move(Input.CLOSE)

    # -- what the other side does

    def heard(self, now: float) -> None:
        """Something has come, if only a pong; ``now`` is when it did."""
        if now > self._heard:
            self._heard = self._pinged = now

    def receive(self, message: str | bytes, now: float) -> Event:
        """Take in a message; return what it means.

        Raises:
            ProtocolError: it may not come now, or is not what it should be; ``code`` is what to
                close with. The session is closed.
        """
        self.heard(now)
        try:
            if isinstance(message, bytes):
                if self.state is State.HELLO:
                    raise ProtocolError("a binary message in place of a hello", WRONG_KIND)
                self._move(Input.BATCH)
                records = decode_batch(message)
                self.acks_due += 1
                return BatchReceived(records)
            if self.state is State.HELLO:
                self.peer = Hello.decode(message, HUB if self._role == CLIENT else CLIENT)
                self._move(Input.HELLO)
                return Greeted(self.peer)
            self._move(Input.ACK)
            last_id = decode_ack(message)
            if not self._under_way:
                raise ProtocolError("an acknowledgement of nothing")
            return Acknowledged(self._under_way.popleft(), last_id)
        except ProtocolError:
            self.state = State.CLOSED
            raise

    def _move(self, what: Input) -> None:
        after = TRANSITIONS.get((self._role, self.state, what))
        if after is None:
            raise ProtocolError(f"a message of the kind {what.value!r} while {self.state.value!r}")
        self.state = after

    # -- time

    @property
    def deadline(self) -> float:
        """When :meth:`alarm` will have something to say, if nothing comes before."""
        if self.state in (State.HELLO, State.DECIDING):
            return self._started + HELLO_S
        return min(self._pinged + PING_AFTER_S, self._heard + DROP_AFTER_S)

    def alarm(self, now: float) -> Alarm | None:
        """Say what the time demands: a ping, or an end to waiting."""
        if self.state is State.CLOSED or now < self.deadline:
            return None
        if self.state in (State.HELLO, State.DECIDING):
            return Alarm.HELLO_OVERDUE
        if now >= self._heard + DROP_AFTER_S:
            return Alarm.SILENT
        self._pinged = now
        return Alarm.PING
