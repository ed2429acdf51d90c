"""What comes in the messages of a connection: hellos, acknowledgements, batches."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterable, Iterator

from keyop.errors import ProtocolError
from keyop.names import check_channel, instance_name_fault
from keyop.wire.frames import MAX_BATCH_RECORDS, decode_batch, encode_batch
from keyop.wire.messages import CLIENT, HUB, Hello, decode_ack, encode_ack
from keyop.wire.session import Acknowledged, BatchReceived, Greeted, Session, State

from .checks import insist
from .records import check_record
from .records import mended as with_checksums

WINDOW = 3
# What a step of a conversation is: its first byte, of which what is above counts as below.
TEXT, BINARY, ACCEPT, SEND, ACK, CLOSE, WAIT = range(7)
_CHECKED_RECORDS = 8
_RECORD_START = re.compile(rb'(?=\{"v":)')


def handshake(data: bytes) -> None:
    """Feed a hello or an acknowledgement, or a whole conversation (see :func:`conversation`)."""
    if data.startswith(b"{"):
        text = data.decode("utf-8", "replace")
        for role in (CLIENT, HUB):
            _check_hello(text, role)
        _check_ack(text)
    for role in (CLIENT, HUB):
        _check_conversation(data, role)


def _check_hello(text: str, role: str) -> None:
    try:
        hello = Hello.decode(text, role)
    except ProtocolError as error:
        _check_refusal(error)
        return
    assert hello.role == role
    assert instance_name_fault(hello.instance_name) is None
    assert [check_channel(each) for each in hello.subscribe] == list(hello.subscribe)
    assert hello.max_record_bytes >= 1
    assert Hello.decode(hello.encode(), role) == hello


def _check_ack(text: str) -> None:
    try:
        last_id = decode_ack(text)
    except ProtocolError as error:
        _check_refusal(error)
    else:
        assert decode_ack(encode_ack(last_id)) == last_id


def _check_refusal(error: ProtocolError) -> None:
    """It goes into a close frame and a log."""
    assert error.code in (1002, 1003)
    assert len(str(error).encode()) < 1000


def conversation(steps: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the input that makes these steps: what each is, and its message, if it has one."""
    return b"".join(struct.pack(">BH", what, len(message)) + message for what, message in steps)


def _steps(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 3 <= len(data):
        what, size = struct.unpack_from(">BH", data, position)
        position += 3
        yield what % 7, data[position : position + size]
        position += size


def _check_conversation(data: bytes, role: str) -> None:
    """Do what the steps say, as far as a caller may; what the other side does must be bearable."""
    now = 0.0
    session = Session(Hello("here", role, features=("window",)), WINDOW, now)
    sent: list[int] = []
    owed = 0
    for number, (what, message) in enumerate(_steps(data)):
        if what in (TEXT, BINARY):
            heard = message if what == BINARY else message.decode("utf-8", "replace")
            before = session.state
            try:
                event = session.receive(heard, now)
            except ProtocolError as error:
                _check_refusal(error)
                assert session.state is State.CLOSED
                continue
            if isinstance(event, Greeted):
                assert before is State.HELLO
                assert session.peer == event.hello
            elif isinstance(event, BatchReceived):
                owed += 1
                assert encode_batch(event.records) == message
            else:
                assert isinstance(event, Acknowledged)
                assert event.token == sent.pop(0)
            assert before in (State.HELLO, State.OPEN)
        elif what == ACCEPT and session.state is State.DECIDING:
            answer = Hello.decode(session.accept(), HUB)
            assert session.peer is not None
            assert (answer.features is None) == (session.peer.features is None)
        elif what == SEND and session.may_send:
            sent.append(number)
            assert decode_batch(session.send_batch([message], number)) == [message]
        elif what == ACK and owed:
            owed -= 1
            decode_ack(session.ack("id"))
        elif what == CLOSE:
            session.close()
        elif what == WAIT:
            now += len(message)
            session.alarm(now)
        assert (session.under_way, session.acks_due) == (len(sent), owed)
        assert len(sent) <= WINDOW
        assert session.deadline >= 0.0


def batch(data: bytes) -> None:
    """Feed a binary message: its records are all of it, or it is refused."""
    try:
        found = decode_batch(data)
    except ProtocolError as error:
        insist(error.code == 1002, error)
        return
    assert encode_batch(found) == data
    assert len(found) <= MAX_BATCH_RECORDS
    for each in itertools.islice(found, _CHECKED_RECORDS):
        check_record(each)


def mended(data: bytes) -> bytes:
    """Return a batch of what looks like records in damaged bytes, each with its right length."""
    found = [each for each in _RECORD_START.split(data) if each.startswith(b'{"v":')]
    return encode_batch([with_checksums(each[: each.rfind(b"}") + 1]) for each in found])
