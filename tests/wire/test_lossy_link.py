"""Two sessions over a link that delays, cuts and loses: nothing acknowledged is ever missing."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from keyop.wire.messages import CLIENT, FEATURES, HUB, Hello
from keyop.wire.session import Acknowledged, Alarm, BatchReceived, Greeted, Session, State

PING, PONG = object(), object()
WINDOWS = st.integers(1, 4)


class Token(NamedTuple):
    """What a side keeps of a batch that is under way: where it ends."""

    end: int


class Side:
    """One instance: a log that it sends from, and a store of what has come.

    A log is a list, an offset an index into it, and what a cut cannot take away is ``log``,
    ``offset``, ``stored`` alone.
    """

    def __init__(self, role: str, window: int, ours: bool) -> None:
        self.hello = Hello(role, role, (), False, FEATURES if ours else None)
        self.window = window
        self.log: list[bytes] = []
        # Everything before it was acknowledged.
        self.offset = 0
        self.stored: list[bytes] = []
        self.connect(0.0)

    def connect(self, now: float) -> None:
        """Begin anew, with what a cut has left."""
        self.session = Session(self.hello, self.window, now)
        # The next record to send: from the saved offset on.
        self.cursor = self.begin = self.offset
        # Batches that have come and were not written yet, and written ones not acknowledged yet.
        self.unwritten: deque[list[bytes]] = deque()
        self.unacknowledged: deque[list[bytes]] = deque()
        self.stored_before = len(self.stored)
        # Messages on their way to the other side.
        self.sent: deque[object] = deque()

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.log.append(b"%s %d" % (self.hello.role.encode(), len(self.log)))

    @property
    def may_send(self) -> bool:
        return self.session.may_send and self.cursor < len(self.log)

    def send(self, count: int) -> None:
        records = self.log[self.cursor : self.cursor + count]
        self.cursor += len(records)
        self.sent.append(self.session.send_batch(records, Token(self.cursor)))

    def take(self, message: object, now: float) -> None:
        """Something has come from the other side."""
        if message is PING:
            self.session.heard(now)
            self.sent.append(PONG)
        elif message is PONG:
            self.session.heard(now)
        else:
            assert isinstance(message, (str, bytes))
            event = self.session.receive(message, now)
            if isinstance(event, BatchReceived):
                self.unwritten.append(event.records)
            elif isinstance(event, Acknowledged):
                assert event.token.end > self.offset, "an offset never moves back"
                self.offset = event.token.end
            else:
                assert isinstance(event, Greeted)
                if self.hello.role == HUB:
                    self.sent.append(self.session.accept())

    def write(self) -> None:
        records = self.unwritten.popleft()
        self.stored += records
        self.unacknowledged.append(records)

    def acknowledge(self) -> None:
        records = self.unacknowledged.popleft()
        self.sent.append(self.session.ack(records[-1].decode()))


class LossyLink(RuleBasedStateMachine):
    """A hub and a client, both with something to send."""

    @initialize(windows=st.tuples(WINDOWS, WINDOWS), ours=st.booleans())
    def begin(self, windows: tuple[int, int], ours: bool) -> None:
        self.now = 0.0
        self.cuts = 0
        self.client = Side(CLIENT, windows[0], ours)
        self.hub = Side(HUB, windows[1], True)
        self.sides = {CLIENT: self.client, HUB: self.hub}
        self.connected = False
        self.reconnect()

    def other(self, role: str) -> Side:
        return self.hub if role == CLIENT else self.client

    # -- what happens

    @rule(role=st.sampled_from((CLIENT, HUB)), count=st.integers(1, 5))
    def publish(self, role: str, count: int) -> None:
        self.sides[role].publish(count)

    @rule(role=st.sampled_from((CLIENT, HUB)), count=st.integers(1, 4))
    def send(self, role: str, count: int) -> None:
        if self.sides[role].may_send:
            self.sides[role].send(count)

    @precondition(lambda self: any(side.sent for side in self.sides.values()))
    @rule(role=st.sampled_from((CLIENT, HUB)), count=st.integers(1, 6))
    def deliver(self, role: str, count: int) -> None:
        """Some of what a side has sent arrives; the rest is late."""
        sent = self.sides[role].sent
        for _ in range(min(count, len(sent))):
            self.other(role).take(sent.popleft(), self.now)

    @rule(role=st.sampled_from((CLIENT, HUB)))
    def write(self, role: str) -> None:
        if self.sides[role].unwritten:
            self.sides[role].write()

    @rule(role=st.sampled_from((CLIENT, HUB)))
    def acknowledge(self, role: str) -> None:
        if self.sides[role].unacknowledged:
            self.sides[role].acknowledge()

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        """Everything that is on its way is lost, with what was not written yet."""
        self.connected = False
        self.cuts += 1
        for side in self.sides.values():
            side.session.close()
            side.connect(self.now)
            side.session.close()

    @precondition(lambda self: not self.connected)
    @rule()
    def reconnect(self) -> None:
        for side in self.sides.values():
            side.connect(self.now)
        self.client.sent.append(self.client.session.greeting())
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule(seconds=st.sampled_from((1.0, 4.0, 19.0, 25.0)))
    def wait(self, seconds: float) -> None:
        """Time passes; who hears nothing pings, and who is not answered ends the connection."""
        self.now += seconds
        alarms = [(side, side.session.alarm(self.now)) for side in self.sides.values()]
        for side, alarm in alarms:
            if alarm is Alarm.PING:
                side.sent.append(PING)
        if any(alarm in (Alarm.SILENT, Alarm.HELLO_OVERDUE) for _, alarm in alarms):
            self.cut()

    # -- what holds after each step

    @invariant()
    def nothing_acknowledged_is_missing(self) -> None:
        for role, side in self.sides.items():
            there = set(self.other(role).stored)
            assert there.issuperset(side.log[: side.offset])

    @invariant()
    def order_is_kept(self) -> None:
        """What a side has stored is, each record once, the other's log from its beginning."""
        for role, side in self.sides.items():
            stored = list(dict.fromkeys(self.other(role).stored))
            assert stored == side.log[: len(stored)]

    @invariant()
    def duplicates_come_after_a_cut_only(self) -> None:
        """Within one connection each record comes once, from the offset on that it began at."""
        for role, side in self.sides.items():
            other = self.other(role)
            since = other.stored[other.stored_before :]
            assert since == side.log[side.begin : side.begin + len(since)]
            if not self.cuts:
                assert len(other.stored) == len(set(other.stored))

    @invariant()
    def windows_are_kept(self) -> None:
        for side in self.sides.values():
            assert side.session.under_way <= side.window

    @invariant()
    def sessions_are_sound(self) -> None:
        """No side has found fault with the other."""
        if self.connected:
            assert all(side.session.state is not State.CLOSED for side in self.sides.values())

    def teardown(self) -> None:
        """With a link that holds, everything that was published arrives."""
        if not hasattr(self, "sides"):
            return
        if not self.connected:
            self.reconnect()
        for _ in range(10_000):
            for role, side in self.sides.items():
                self.send(role, 4)
                self.deliver(role, 6)
                self.write(role)
                self.acknowledge(role)
                assert side.session.state is not State.CLOSED
            if all(side.offset == len(side.log) for side in self.sides.values()):
                break
        for role, side in self.sides.items():
            assert list(dict.fromkeys(self.other(role).stored)) == side.log
            assert side.session.under_way == 0


TestLossyLink = LossyLink.TestCase
TestLossyLink.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
