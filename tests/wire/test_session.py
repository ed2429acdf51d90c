"""One side of a connection: what may come when, what is answered, what time brings about."""

from __future__ import annotations

import itertools
import json

import pytest

from keyop.errors import ProtocolError
from keyop.wire.frames import decode_batch, encode_batch
from keyop.wire.messages import CLIENT, FEATURES, HUB, Hello, encode_ack
from keyop.wire.session import (
    TRANSITIONS,
    Acknowledged,
    Alarm,
    BatchReceived,
    Greeted,
    Input,
    Session,
    State,
)

from .golden import each_conversation, frames

HELLOS = {
    CLIENT: Hello("c1", CLIENT, ("a",), False, FEATURES, 1000),
    HUB: Hello("h1", HUB, (), False, FEATURES, 2000),
}
NOW = 1000.0


def other(role: str) -> str:
    return HUB if role == CLIENT else CLIENT


def session(role: str, state: State = State.HELLO, window: int = 8) -> Session:
    """Return a session that was brought to a state by messages, never by hand."""
    made = Session(HELLOS[role], window, NOW)
    if state in (State.DECIDING, State.OPEN):
        made.receive(HELLOS[other(role)].encode(), NOW)
    if state is State.OPEN and role == HUB:
        made.accept()
    if state is State.CLOSED:
        made.close()
    assert made.state is state
    return made


# What a connection may go through.
ALLOWED = {
    (CLIENT, State.HELLO, Input.HELLO): State.OPEN,
    (CLIENT, State.HELLO, Input.CLOSE): State.CLOSED,
    (CLIENT, State.OPEN, Input.BATCH): State.OPEN,
    (CLIENT, State.OPEN, Input.ACK): State.OPEN,
    (CLIENT, State.OPEN, Input.CLOSE): State.CLOSED,
    (CLIENT, State.CLOSED, Input.CLOSE): State.CLOSED,
    (HUB, State.HELLO, Input.HELLO): State.DECIDING,
    (HUB, State.HELLO, Input.CLOSE): State.CLOSED,
    (HUB, State.DECIDING, Input.ACCEPT): State.OPEN,
    (HUB, State.DECIDING, Input.CLOSE): State.CLOSED,
    (HUB, State.OPEN, Input.BATCH): State.OPEN,
    (HUB, State.OPEN, Input.ACK): State.OPEN,
    (HUB, State.OPEN, Input.CLOSE): State.CLOSED,
    (HUB, State.CLOSED, Input.CLOSE): State.CLOSED,
}
# A client has nothing to decide on.
REACHABLE = [
    (role, state)
    for role, state in itertools.product((CLIENT, HUB), State)
    if (role, state) != (CLIENT, State.DECIDING)
]


class TestTransitions:
    def test_the_table(self) -> None:
        """It holds these transitions; what is in it of a state that nobody reaches is closing."""
        unreachable = {(CLIENT, State.DECIDING, Input.CLOSE): State.CLOSED}
        assert {**ALLOWED, **unreachable} == TRANSITIONS

    @staticmethod
    def put_in(target: Session, role: str, what: Input) -> None:
        """Let something happen, as far as it can be told apart in the session's state."""
        if what is Input.HELLO:
            target.receive(HELLOS[other(role)].encode(), NOW)
        elif what is Input.BATCH:
            target.receive(encode_batch([b"record"]), NOW)
        elif what is Input.ACK:
            target.receive(encode_ack("id"), NOW)
        elif what is Input.ACCEPT:
            target.accept()
        else:
            target.close()

    @pytest.mark.parametrize(("role", "state"), REACHABLE)
    @pytest.mark.parametrize("what", Input)
    def test_each(self, role: str, state: State, what: Input) -> None:
        """What is in the table happens; anything else closes with 1002, or is a misuse of ours."""
        target = session(role, state)
        after = ALLOWED.get((role, state, what))
        if what is Input.ACK and after is State.OPEN:
            target.send_batch([b"record"], "token")
        if after is not None:
            self.put_in(target, role, what)
            assert target.state is after
        elif what is Input.ACCEPT:
            with pytest.raises(RuntimeError):
                self.put_in(target, role, what)
            assert target.state is state
        else:
            with pytest.raises(ProtocolError) as raised:
                self.put_in(target, role, what)
            binary_first = (state, what) == (State.HELLO, Input.BATCH)
            assert raised.value.code == (1003 if binary_first else 1002)
            assert target.state is State.CLOSED

    @pytest.mark.parametrize("role", [CLIENT, HUB])
    def test_a_closed_session_takes_nothing(self, role: str) -> None:
        """Once closed, by either side, nothing is taken any more."""
        target = session(role, State.OPEN)
        with pytest.raises(ProtocolError):
            target.receive(b"\0", NOW)
        for message in (encode_batch([b"x"]), encode_ack("x"), HELLOS[other(role)].encode()):
            with pytest.raises(ProtocolError, match="closed"):
                target.receive(message, NOW)
        assert not target.may_send

    @pytest.mark.parametrize("role", [CLIENT, HUB])
    def test_a_second_hello(self, role: str) -> None:
        """A hello in place of an acknowledgement is a protocol error: there is nothing to ack."""
        target = session(role, State.OPEN)
        with pytest.raises(ProtocolError, match="acknowledgement of nothing") as raised:
            target.receive(HELLOS[other(role)].encode(), NOW)
        assert raised.value.code == 1002

    def test_what_comes_while_the_hub_decides(self) -> None:
        """A client waits for the hub's answer before it sends."""
        for message in (encode_batch([b"x"]), encode_ack("x")):
            target = session(HUB, State.DECIDING)
            with pytest.raises(ProtocolError, match="deciding"):
                target.receive(message, NOW)

    @pytest.mark.parametrize("role", [CLIENT, HUB])
    def test_a_bad_hello(self, role: str) -> None:
        """A hello of the wrong role closes the session, and leaves no peer."""
        target = session(role)
        with pytest.raises(ProtocolError):
            target.receive(HELLOS[role].encode(), NOW)
        assert (target.state, target.peer) == (State.CLOSED, None)


class TestGreeting:
    def test_the_event(self) -> None:
        """Each side is told the other's hello, and keeps it."""
        for role in (CLIENT, HUB):
            target = session(role)
            event = target.receive(HELLOS[other(role)].encode(), NOW)
            assert event == Greeted(HELLOS[other(role)])
            assert target.peer == HELLOS[other(role)]

    def test_a_client_says_what_it_can(self) -> None:
        """Its hello carries the added fields always: v0.11.0 ignores them."""
        fields = json.loads(session(CLIENT).greeting())
        assert (fields["features"], fields["max_record_bytes"]) == (list(FEATURES), 1000)

    def test_a_hub_answers_its_like(self) -> None:
        """A client that knows of features is told the hub's."""
        answer = json.loads(session(HUB, State.DECIDING).accept())
        assert (answer["features"], answer["max_record_bytes"]) == (list(FEATURES), 2000)

    def test_a_hub_answers_v0_11_0(self) -> None:
        """One that does not, is told what a v0.11.0 hub says, and no more."""
        target = session(HUB)
        target.receive('{"instance_name":"c1","role":"client","version":"1"}', NOW)
        assert target.accept() == '{"instance_name":"h1","role":"hub","version":"1"}'


class TestWindow:
    def test_only_in_an_open_session(self) -> None:
        """Nothing is sent before both hellos were exchanged, nor after the end."""
        for role, state in REACHABLE:
            target = session(role, state)
            assert target.may_send is (state is State.OPEN)
            if state is not State.OPEN:
                with pytest.raises(RuntimeError, match="may_send"):
                    target.send_batch([b"x"], 1)

    @pytest.mark.parametrize("window", [1, 2, 8])
    def test_so_many_under_way(self, window: int) -> None:
        """A window's worth of batches is sent without an acknowledgement, then one for each."""
        target = session(CLIENT, State.OPEN, window)
        for number in range(window):
            assert target.may_send
            target.send_batch([b"x"], number)
        assert not target.may_send
        with pytest.raises(RuntimeError, match="no room"):
            target.send_batch([b"x"], "more")
        for number in range(20):
            assert target.receive(encode_ack("any"), NOW) == Acknowledged(number, "any")
            assert target.may_send
            target.send_batch([b"x"], window + number)
            assert target.under_way == window

    def test_a_batch_is_its_records(self) -> None:
        """What is sent is the records behind their lengths."""
        message = session(CLIENT, State.OPEN).send_batch([b"one", b"", b"two"], None)
        assert decode_batch(message) == [b"one", b"", b"two"]


class TestAcknowledgements:
    def test_in_the_order_of_the_batches(self) -> None:
        """Tokens come back in order, whatever ids the acknowledgements name."""
        target = session(HUB, State.OPEN)
        for token in "abc":
            target.send_batch([token.encode()], token)
        found = [target.receive(encode_ack(said), NOW) for said in ("c", "", "a")]
        assert found == [Acknowledged("a", "c"), Acknowledged("b", ""), Acknowledged("c", "a")]
        assert target.under_way == 0

    @pytest.mark.parametrize("role", [CLIENT, HUB])
    def test_an_unsolicited_one(self, role: str) -> None:
        """An acknowledgement of nothing is a protocol error: it blocks no receiver."""
        target = session(role, State.OPEN)
        with pytest.raises(ProtocolError) as raised:
            target.receive(encode_ack("x"), NOW)
        assert (raised.value.code, target.state) == (1002, State.CLOSED)

    def test_one_too_many(self) -> None:
        """The acknowledgements that are due are taken; the next one is a protocol error."""
        target = session(HUB, State.OPEN)
        for token in range(3):
            target.send_batch([b"x"], token)
        for token in range(3):
            assert target.receive(encode_ack("x"), NOW) == Acknowledged(token, "x")
        with pytest.raises(ProtocolError, match="nothing"):
            target.receive(encode_ack("x"), NOW)

    @pytest.mark.parametrize("text", ["", "[]", '{"last_id":1}', "x" * 5000])
    def test_a_malformed_one(self, text: str) -> None:
        """It is no acknowledgement, so the batch stays under way and the session ends."""
        target = session(CLIENT, State.OPEN)
        target.send_batch([b"x"], "token")
        with pytest.raises(ProtocolError) as raised:
            target.receive(text, NOW)
        assert (raised.value.code, target.under_way) == (1002, 1)

    def test_those_of_ours(self) -> None:
        """Each batch that came is due once, and none before it came."""
        target = session(CLIENT, State.OPEN)
        with pytest.raises(RuntimeError, match="no batch"):
            target.ack("x")
        for count in (1, 2):
            assert target.receive(encode_batch([b"r"]), NOW) == BatchReceived([b"r"])
            assert target.acks_due == count
        assert [target.ack("i"), target.ack("j")] == ['{"last_id":"i"}', '{"last_id":"j"}']
        with pytest.raises(RuntimeError, match="no batch"):
            target.ack("x")

    def test_an_empty_batch(self) -> None:
        """It is acknowledged like any other, with an empty id."""
        target = session(HUB, State.OPEN)
        assert target.receive(b"", NOW) == BatchReceived([])
        assert target.ack("") == '{"last_id":""}'

    def test_a_malformed_batch(self) -> None:
        """A length prefix that overruns its message ends the session, 1002, and nothing is due."""
        target = session(HUB, State.OPEN)
        with pytest.raises(ProtocolError) as raised:
            target.receive(b"\0\0\0\5abc", NOW)
        assert (raised.value.code, target.state, target.acks_due) == (1002, State.CLOSED, 0)


class TestTime:
    """Time is what the session is told; there is no clock."""

    @pytest.mark.parametrize(
        ("role", "state"), [(CLIENT, State.HELLO), (HUB, State.HELLO), (HUB, State.DECIDING)]
    )
    def test_the_hello_is_due_in_5_s(self, role: str, state: State) -> None:
        """A hello that has not been exchanged within 5 s of the connection is overdue."""
        target = session(role, state)
        assert target.deadline == NOW + 5
        assert target.alarm(NOW + 4.999) is None
        assert target.alarm(NOW + 5) is target.alarm(NOW + 500) is Alarm.HELLO_OVERDUE

    def test_signs_of_life_do_not_put_the_hello_off(self) -> None:
        """Who pings in place of saying hello is late all the same."""
        target = session(HUB)
        for second in range(1, 5):
            target.heard(NOW + second)
        assert target.alarm(NOW + 5) is Alarm.HELLO_OVERDUE

    @pytest.mark.parametrize("role", [CLIENT, HUB])
    def test_20_s_of_silence(self, role: str) -> None:
        """After 20 s in which nothing came, a ping is due, once; then after 20 s more."""
        target = session(role, State.OPEN)
        assert target.deadline == NOW + 20
        assert target.alarm(NOW + 19.999) is None
        assert target.alarm(NOW + 20) is Alarm.PING
        assert target.alarm(NOW + 20) is None
        assert target.deadline == NOW + 40
        assert target.alarm(NOW + 40) is Alarm.PING

    def test_60_s_of_silence(self) -> None:
        """A peer that answers neither of the pings is dropped at 60 s, not before."""
        target = session(HUB, State.OPEN)
        pings = [NOW + 20, NOW + 40]
        assert [target.alarm(now) for now in pings] == [Alarm.PING, Alarm.PING]
        assert target.alarm(NOW + 59.999) is None
        assert target.deadline == NOW + 60
        assert target.alarm(NOW + 60) is target.alarm(NOW + 61) is Alarm.SILENT

    def test_nobody_looked_for_a_minute(self) -> None:
        """A process that slept finds a silent peer silent, without a ping before."""
        assert session(CLIENT, State.OPEN).alarm(NOW + 60) is Alarm.SILENT

    @pytest.mark.parametrize("sign", ["pong", "batch", "ack"])
    def test_any_sign_of_life(self, sign: str) -> None:
        """Whatever comes begins the silence anew: a pong, a batch, an acknowledgement."""
        target = session(CLIENT, State.OPEN)
        target.send_batch([b"x"], 1)
        assert target.alarm(NOW + 20) is Alarm.PING
        if sign == "pong":
            target.heard(NOW + 30)
        elif sign == "batch":
            target.receive(encode_batch([b"x"]), NOW + 30)
        else:
            target.receive(encode_ack("x"), NOW + 30)
        assert target.deadline == NOW + 50
        assert target.alarm(NOW + 49.999) is None
        assert target.alarm(NOW + 50) is Alarm.PING
        assert target.alarm(NOW + 90) is Alarm.SILENT

    def test_an_older_sign_of_life(self) -> None:
        """Being told again of what came before changes nothing."""
        target = session(CLIENT, State.OPEN)
        target.heard(NOW + 10)
        target.heard(NOW + 5)
        assert target.deadline == NOW + 30
        assert target.alarm(NOW + 30) is Alarm.PING
        target.heard(NOW + 10)
        assert target.alarm(NOW + 30) is None

    def test_acknowledgements_have_no_deadline(self) -> None:
        """A peer with a full disk that answers pings is waited for as long as it takes."""
        target = session(CLIENT, State.OPEN, window=1)
        target.send_batch([b"x"], "token")
        for minute in range(1, 200):
            now = NOW + 60 * minute
            target.heard(now - 1)
            assert target.alarm(now) is None
        assert target.receive(encode_ack("x"), now) == Acknowledged("token", "x")

    def test_a_closed_session_raises_no_alarm(self) -> None:
        """Nothing is due once it has ended."""
        assert session(HUB, State.CLOSED).alarm(NOW + 1000) is None


class TestRecordedConversations:
    @each_conversation
    def test_with_a_v0_11_0_peer(self, conversation: str) -> None:
        """Both sides of a conversation of v0.11.0 are understood, and answered as they were.

        One session takes the hub's place and another one the client's; each is given what the
        other side said, says what its own side said, and holds nothing against it.
        """
        sides = {
            True: Session(Hello("client1", CLIENT), 8, NOW),
            False: Session(Hello("hub1", HUB), 8, NOW),
        }
        sent: dict[bool, list[list[bytes]]] = {True: [], False: []}
        for frame in frames(conversation):
            speaker, listener = sides[frame.from_client], sides[not frame.from_client]
            assert frame.fin
            if frame.opcode == 8:
                speaker.close()
                listener.close()
                continue
            message = frame.payload if frame.opcode == 2 else frame.payload.decode()
            # What the speaker says, as this library says it.
            if isinstance(message, bytes):
                records = decode_batch(message)
                sent[frame.from_client].append(records)
                assert speaker.send_batch(records, len(records)) == message
            elif "last_id" in message:
                assert speaker.ack(json.loads(message)["last_id"]) == message
            elif not frame.from_client:
                assert speaker.accept() == message
            # What the listener makes of it.
            event = listener.receive(message, NOW)
            if isinstance(event, BatchReceived):
                assert event.records == records
            elif isinstance(event, Acknowledged):
                first = sent[not frame.from_client].pop(0)
                assert event == Acknowledged(len(first), json.loads(first[-1])["id"])
            else:
                assert event.hello.features is None
        assert not any(side.acks_due or side.under_way for side in sides.values())
        rejected = conversation == "04_rejected_4403.jsonl"
        states = {side.state for side in sides.values()}
        assert states == {State.CLOSED if rejected else State.OPEN}
