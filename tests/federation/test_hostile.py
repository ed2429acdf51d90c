"""Hostile peers are closed with the right codes, are audited, and are nobody else's trouble."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent import socket
from OpenSSL import SSL

from keyop import Messenger
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.reader import StreamReader
from keyop.transport.websocket import Connection
from tests.reliability.hub_child import securing
from tests.transport.helpers import MASK, PING, TEXT, frame

from . import hostile
from .helpers import Instances, Recorder, audit, data_dir_of, federation_of, wait_audit, wait_until
from .hostile import FLOOD, HOSTILE, LIES, MALFORMED, Good, Where, keep_on
from .rawpeers import RawGuest

# Those who have a certificate here.
NAMES = dict(zip(HOSTILE, ("alpha", "beta", "gamma", "stranger", "client1"), strict=True))
GOOD, LISTENER = "eph1", "hub1"


@pytest.fixture
def hub(instances: Instances) -> Messenger:
    return instances.hub(peers=[GOOD, LISTENER, *NAMES.values()])


def where(instances: Instances, hub: Messenger, kind: str) -> Where:
    return hub.hub_addr, securing(instances.tls(NAMES[kind]))


def disconnects(hub: Messenger, name: str) -> list[str]:
    """Return how each connection of a peer ended, as the audit log has it."""
    return [each["detail"] for each in audit(hub, "peer_disconnected") if each["peer"] == name]


def test_lies_about_lengths(instances: Instances, hub: Messenger) -> None:
    """1009 for what is too large, before a byte of it is read; 1002 for what is not so."""
    assert hostile.lying(where(instances, hub, "lying"), NAMES["lying"]) == LIES
    wait_until(lambda: len(disconnects(hub, NAMES["lying"])) == len(LIES), 10, "audit events")
    for code, detail in zip(LIES, disconnects(hub, NAMES["lying"]), strict=True):
        assert f"closed ({code}: " in detail


def test_malformed_messages(
    instances: Instances, hub: Messenger, caplog: pytest.LogCaptureFixture
) -> None:
    """Records that are none are skipped, counted and acknowledged; other messages end the link."""
    name = NAMES["malformed"]
    assert hostile.malformed(where(instances, hub, "malformed"), name) == MALFORMED
    with_hello = MALFORMED[:3]
    wait_until(lambda: len(disconnects(hub, name)) == 1 + len(with_hello), 10, "audit events")
    for code, detail in zip(with_hello, disconnects(hub, name)[1:], strict=True):
        assert f"closed ({code}: " in detail
    wait_until(lambda: len(audit(hub, "client_rejected")) == 2, 10, "those without a hello")
    told = [each.getMessage() for each in caplog.records if "malformed" in each.getMessage()]
    assert len(told) == 3  # the first, the second and the fourth of six
    assert not list(data_dir_of(hub).glob("channels/*/*.jsonl"))


def test_all_at_once(instances: Instances, hub: Messenger) -> None:
    """The good ones get everything, in order, each once, while the others do what they can."""
    others = [
        gevent.spawn(keep_on, HOSTILE[kind], where(instances, hub, kind), NAMES[kind])
        for kind in HOSTILE
    ]
    try:
        with Good(hub.hub_addr, instances.tls(GOOD), instances.tls(LISTENER)) as good:
            wait_until(lambda: len(audit(hub, "peer_disconnected")) >= 5, 30, "hostile peers")
            good.talk(50)
            assert good.came == list(range(50))
        assert not any(each.dead for each in others)
    finally:
        gevent.killall(others)
    # What the flooding one had acknowledged is there, for a subscriber of our own as well.
    recorder = Recorder()
    subscription = hub.subscribe(FLOOD, "check", recorder, start="earliest")
    wait_until(lambda: recorder.messages and subscription.lag_bytes == 0, 30, "the flood")
    ids = [message.id for message in recorder.messages]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kind", ["silent", "slow"])
def test_one_that_does_not_read(
    instances: Instances,
    hub: Messenger,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """It is sent no more than its window; who says nothing at all is dropped."""
    monkeypatch.setattr("keyop.wire.session.PING_AFTER_S", 0.2)
    monkeypatch.setattr("keyop.wire.session.DROP_AFTER_S", 1.0)
    monkeypatch.setattr("keyop.federation.instance._TICK_S", 0.05)
    greenlet = gevent.spawn(HOSTILE[kind], where(instances, hub, kind), NAMES[kind])
    try:
        wait_audit(hub, "client_connected")
        (link,) = federation_of(hub)._instance.links  # type: ignore[union-attr] # it runs
        window = hub.config.federation.window_batches
        wait_until(lambda: publish_and_look(hub, lambda: link.session.under_way == window), 20)
        if kind == "silent":
            assert "the connection" in wait_audit(hub, "peer_disconnected")["detail"]
        else:
            assert not audit(hub, "peer_disconnected")
    finally:
        greenlet.kill()


def publish_and_look(hub: Messenger, condition: Callable[[], bool]) -> bool:
    """Publish some more of what it does not read."""
    hub.publish_batch(FLOOD, [("com.example.Flood", "x" * 1000)] * 20)
    return condition()


def test_many_hellos(instances: Instances, hub: Messenger) -> None:
    """A second hello is no acknowledgement: 1002."""
    guest = RawGuest(*where(instances, hub, "lying"))
    try:
        guest.greet(NAMES["lying"])
        guest.say(instance_name=NAMES["lying"], role="client", version="1")
        assert guest.closed()[0] == 1002
    finally:
        guest.close()


def test_handshakes_at_once(
    instances: Instances, hub: Messenger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many strangers come in one moment, others run between any two of their handshakes."""
    context = Credentials.load(**instances.tls(NAMES["lying"])).context(SERVER_AUTH)
    hellos = [client_hello(context) for _ in range(20)]
    rounds, steps = 0, []
    do_handshake = SSL.Connection.do_handshake

    def counted(connection: SSL.Connection) -> None:
        steps.append(rounds)
        do_handshake(connection)

    monkeypatch.setattr(SSL.Connection, "do_handshake", counted)
    host, port = hub.hub_addr.split(":")
    strangers = [socket.create_connection((host, int(port)), 10) for _ in hellos]
    try:
        for stranger, hello in zip(strangers, hellos, strict=True):
            stranger.sendall(hello)
        while len(steps) < len(hellos):
            gevent.sleep(1e-6)
            rounds += 1
        assert max(map(steps.count, steps)) <= 2
    finally:
        for stranger in strangers:
            stranger.close()


class Endless:
    """A stream on which bytes are always there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, size: int) -> bytes:
        data, self._data = self._data[: 16 << 10], self._data[16 << 10 :]
        return data

    def send(self, data: bytes | memoryview) -> int:
        return len(data)

    def sendall(self, data: bytes) -> None:
        raise AssertionError("not used")

    def close(self) -> None:
        self._data = b""


def test_one_whose_bytes_are_always_there() -> None:
    """Who sends more than can be read leaves room for others between two reads."""
    stream = Endless(frame(PING, b"x" * 100, mask=MASK) * 20_000 + frame(TEXT, b"end", mask=MASK))
    connection = Connection(stream, StreamReader(stream), False, 1000)
    reading = gevent.spawn(connection.receive)
    rounds = 0
    while not reading.ready():
        gevent.sleep(1e-6)
        rounds += 1
    assert reading.get() == "end"
    assert rounds > 10
    connection.drop()
    connection.finish()


def client_hello(context: SSL.Context) -> bytes:
    """Return the first bytes of a handshake."""
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    hello: bytes = connection.bio_read(1 << 16)
    return hello
