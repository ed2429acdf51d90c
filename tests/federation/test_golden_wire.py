"""The recorded conversations of v0.11.0, each side replayed against ours over real sockets."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket

from keyop import EphemeralMessenger, HandshakeRejectedError, Messenger
from keyop.federation.client import Condition
from keyop.transport.contexts import CLIENT_AUTH, SERVER_AUTH, Credentials
from keyop.transport.tls import TLSSocket
from keyop.wire.frames import decode_batch, encode_batch
from tests.integration.helpers import GOLDEN, needs_golden, record
from tests.transport.helpers import BINARY, CLOSE, CONTINUATION, TEXT, Hand

from .byhand import PeerByHand
from .helpers import (
    Instances,
    Recorder,
    append,
    audit,
    client_of,
    end_of,
    lines_of,
    stored_offset,
    wait_audit,
    wait_until,
)
from .rawpeers import pack, raw_guest

pytestmark = needs_golden

DURABLE, EPHEMERAL, BACKLOG, REJECTED, SECURED = (
    "01_durable_client",
    "02_ephemeral",
    "03_hub_push_backlog_batch",
    "04_rejected_4403",
    "10_mtls_unpatched_binary",
)
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FROM_CLIENT, FROM_HUB = "c2s", "s2c"


def conversation(name: str) -> list[dict[str, Any]]:
    """Return what was recorded; frames have their ``payload`` in the clear."""
    path = GOLDEN / "wire" / f"{name}.jsonl"
    items = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for item in items:
        if item["kind"] == "frame":
            item["payload"] = base64.b64decode(item["payload_b64"])
    return items


def accept_for(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


class Replay:
    """One side of a recorded conversation, speaking with the other one on a stream."""

    def __init__(self, stream: Any, as_client: bool) -> None:
        self.hand = Hand(stream, as_client)
        self._come: deque[tuple[int, bytes]] = deque()

    def http(self) -> list[str]:
        """Read a request or an answer; return its lines."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.hand.exactly(1)
        return head.decode().split("\r\n")[:-2]

    def send(self, item: dict[str, Any]) -> None:
        self.hand.send(item["opcode"], item["payload"], fin=item["fin"])

    def next(self, opcode: int) -> bytes:
        """Return the next message of a kind: only within a kind does the protocol fix the order."""
        for index, (kind, payload) in enumerate(self._come):
            if kind == opcode:
                del self._come[index]
                return payload
        while True:
            kind, payload = self._read()
            if kind == opcode:
                return payload
            assert kind != CLOSE, payload
            self._come.append((kind, payload))

    def _read(self) -> tuple[int, bytes]:
        frame = self.hand.read()
        assert frame.masked == (not self.hand.masks)
        kind, payload = frame.opcode, frame.payload
        assert kind != CONTINUATION
        while not frame.fin:
            frame = self.hand.read()
            payload += frame.payload
        return kind, payload

    def rest(self) -> list[tuple[int, bytes]]:
        """Return what has come that nobody has asked for."""
        return list(self._come)


def headers(lines: list[str]) -> dict[str, str]:
    pairs = [line.partition(":") for line in lines[1:]]
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    with gevent.Timeout(30, AssertionError("the conversation has stopped")):
        yield


# --- a client of v0.11.0 with our hub


class AsClient(Replay):
    """The recorded client; what the recorded hub has published, ours publishes, byte by byte."""

    def __init__(self, stream: Any, hub: Messenger) -> None:
        super().__init__(stream, True)
        self._hub = hub

    def run(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            step = getattr(self, f"_{item['kind']}_{item['dir']}", None)
            if step is not None:
                step(item)

    def _http_c2s(self, item: dict[str, Any]) -> None:
        self.hand.raw("\r\n".join([*item["head"], "", ""]).encode())

    def _http_s2c(self, item: dict[str, Any]) -> None:
        answer = self.http()
        assert answer[0] == item["head"][0]
        found, wanted = headers(answer), headers(item["head"])
        # The key is the recorded one, and so is what follows from it.
        assert {name: found.get(name) for name in wanted} == wanted
        assert not {"sec-websocket-protocol", "sec-websocket-extensions"} & found.keys()

    def _frame_c2s(self, item: dict[str, Any]) -> None:
        self.send(item)

    def _frame_s2c(self, item: dict[str, Any]) -> None:
        if item["opcode"] == TEXT:
            assert self.next(TEXT) == item["payload"]
        elif item["opcode"] == CLOSE:
            assert self.hand.read_close().payload == item["payload"]
        else:
            self.batch(decode_batch(item["payload"]))

    def batch(self, records: list[bytes]) -> None:
        if json.loads(records[0])["origin"] == "hub1":
            append(self._hub, json.loads(records[0])["channel"], records)
            # A segment's lines go as they are.
            assert self.next(BINARY) == encode_batch(records)
            return
        # What came from a peer is not stored as it came: it has a route and a checksum now.
        sent = [json.loads(record) for record in decode_batch(self.next(BINARY))]
        assert [record.pop("route") for record in sent] == [["hub1"]] * len(records)
        assert all(record.pop("crc") for record in sent)
        assert sent == [json.loads(record) for record in records]


@contextmanager
def dialled(hub: Messenger, tls: dict[str, str] | None = None) -> Iterator[Any]:
    """Give a stream to the hub."""
    host, port = hub.hub_addr.split(":")
    plain = socket.create_connection((host, int(port)))
    stream: Any = plain
    if tls is not None:
        stream = TLSSocket(Credentials.load(**tls).context(SERVER_AUTH), plain, False)
        stream.handshake()
    try:
        yield stream
    finally:
        stream.close()


def sent_by_client(items: list[dict[str, Any]], channel: str) -> list[dict[str, Any]]:
    """Return the records that the client has sent, decoded."""
    return [
        record
        for item in items
        if item["kind"] == "frame" and item["dir"] == FROM_CLIENT and item["opcode"] == BINARY
        for record in map(json.loads, decode_batch(item["payload"]))
        if record["channel"] == channel
    ]


@pytest.mark.parametrize("name", [DURABLE, EPHEMERAL, SECURED])
def test_a_client_of_v0_11_0_with_our_hub(instances: Instances, name: str) -> None:
    """Hellos, acknowledgements and batches are those of its own hub, and all is stored in order."""
    items = conversation(name)
    secured = name == SECURED
    peers = ["client1", "eph1"]
    hub = instances.hub("hub1", peers, **({} if secured else {"tls": None}))
    with dialled(hub, instances.tls("client1") if secured else None) as stream:
        replay = AsClient(stream, hub)
        replay.run(items)
        assert replay.rest() == []
    # It ends without a goodbye, as v0.11.0 does.
    wait_audit(hub, "peer_disconnected", lambda event: "without a goodbye" in event["detail"])
    for channel in ("a", "b"):
        wanted = sent_by_client(items, channel)
        stored = [json.loads(line) for line in lines_of(hub, channel)]
        received = [record for record in stored if record["origin"] != "hub1"]
        assert [
            {key: value for key, value in record.items() if key not in ("route", "crc")}
            for record in received
        ] == wanted
        assert all(record["route"] == ["hub1"] for record in received)


def test_the_backlog_of_a_client_of_v0_11_0(instances: Instances) -> None:
    """What came together while it was away goes at once, each line as it is.

    Its own hub sent nothing before the next publish.
    """
    items = conversation(BACKLOG)
    (batch,) = [
        decode_batch(item["payload"])
        for item in items
        if item["kind"] == "frame" and item["opcode"] == BINARY
    ]
    hub = instances.hub("hub1", ["client1"], tls=None)
    hello = next(item for item in items if item["kind"] == "frame")
    with dialled(hub) as stream:  # it was here before
        first = AsClient(stream, hub)
        first.run([item for item in items if item["kind"] == "http"])
        first.send(hello)
        first.next(TEXT)
    wait_audit(hub, "peer_disconnected")
    append(hub, "b", batch[:-1])
    with dialled(hub) as stream:
        replay = AsClient(stream, hub)
        replay.run(items[: items.index(hello) + 2])
        received: list[bytes] = []
        while len(received) < len(batch):
            if len(received) == len(batch) - 1:
                append(hub, "b", batch[-1:])
            records = decode_batch(replay.next(BINARY))
            received += records
            last_id = json.loads(records[-1])["id"]
            replay.hand.send(TEXT, f'{{"last_id":"{last_id}"}}'.encode())
        assert received == batch
        # Its last acknowledgement is the recorded one.
        acknowledged = [item for item in items if item["kind"] == "frame"][-1]["payload"]
        assert acknowledged == f'{{"last_id":"{last_id}"}}'.encode()


def test_a_client_of_v0_11_0_that_is_not_allowed(instances: Instances) -> None:
    """It is closed with the same code and reason, in the same bytes."""
    hub = instances.hub("hub1", ["client1"], tls=None)
    with dialled(hub) as stream:
        AsClient(stream, hub).run(conversation(REJECTED))
        assert stream.recv(1) == b""
    event = wait_audit(hub, "client_rejected")
    assert (event["peer"], event["detail"]) == ("stranger", "not in allowlist")


# --- a hub of v0.11.0 with our clients


class AsHub(Replay):
    """The recorded hub. What the recorded client has published, ours publishes."""

    def __init__(self, stream: Any, client: Messenger | EphemeralMessenger) -> None:
        super().__init__(stream, False)
        self._client = client
        self._publishing: list[gevent.Greenlet[..., Any]] = []
        self.closed: bytes | None = None

    def run(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            step = getattr(self, f"_{item['kind']}_{item['dir']}", None)
            if step is not None:
                step(item)
        gevent.joinall(self._publishing, raise_error=True)

    def _http_c2s(self, item: dict[str, Any]) -> None:
        request = self.http()
        assert request[0] == item["head"][0]
        found, wanted = headers(request), headers(item["head"])
        self._key = found.pop("sec-websocket-key")
        assert len(base64.b64decode(self._key)) == 16
        for name in ("upgrade", "connection", "sec-websocket-version"):
            assert found[name] == wanted[name]
        assert not {"sec-websocket-protocol", "sec-websocket-extensions"} & found.keys()

    def _http_s2c(self, item: dict[str, Any]) -> None:
        head = [line for line in item["head"] if not line.startswith("Sec-WebSocket-Accept")]
        head.append(f"Sec-WebSocket-Accept: {accept_for(self._key)}")
        self.hand.raw("\r\n".join([*head, "", ""]).encode())

    def _frame_s2c(self, item: dict[str, Any]) -> None:
        self.send(item)

    def _frame_c2s(self, item: dict[str, Any]) -> None:
        if item["opcode"] == CLOSE:
            self.closed = self.hand.read_close().payload
            return
        if item["opcode"] == TEXT:
            text = self.next(TEXT)
            if b"instance_name" in item["payload"]:
                # Its fields in its order and its bytes, and ours behind them.
                assert text.startswith(item["payload"][:-1] + b",")
                assert json.loads(text)["features"]
            else:
                assert text == item["payload"]
            return
        records = decode_batch(item["payload"])
        if isinstance(self._client, Messenger):
            append(self._client, json.loads(records[0])["channel"], records)
            assert self.next(BINARY) == item["payload"]
            return
        (record,) = records
        published = json.loads(record)
        self._publishing.append(
            gevent.spawn(
                self._client.publish,
                published["channel"],
                published["payload_type"],
                published["payload"],
                correlation_id=published.get("correlation_id"),
            )
        )
        (sent,) = decode_batch(self.next(BINARY))
        own = json.loads(sent)
        for key in ("id", "ts"):
            assert isinstance(own[key], str)
            published[key] = own[key]
        del own["crc"]
        assert own == published
        assert list(own) == list(published)


@contextmanager
def awaited(tls: dict[str, str] | None = None) -> Iterator[tuple[str, Any]]:
    """Give an address, and a function that accepts one connection there."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        streams: list[Any] = []

        def accept() -> Any:
            plain, _ = listening.accept()
            stream: Any = plain
            if tls is not None:
                stream = TLSSocket(Credentials.load(**tls).context(CLIENT_AUTH), plain, True)
                stream.handshake()
            streams.append(stream)
            return stream

        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", accept
        finally:
            for stream in streams:
                stream.close()


def answer_close(replay: Replay, client: Messenger | EphemeralMessenger) -> int:
    """End a client, answering its goodbye; return the code of that."""
    ending = gevent.spawn(lambda: client.close())
    goodbye = replay.hand.read_close()
    replay.hand.send(CLOSE, goodbye.payload)
    replay.hand.close()
    ending.get()
    return goodbye.close_code


def before_the_end(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in items if item["kind"] != "end"]


@pytest.mark.parametrize("name", [DURABLE, BACKLOG, SECURED])
def test_a_hub_of_v0_11_0_with_our_client(instances: Instances, name: str) -> None:
    """Our client sends it the batches of its own client, and acknowledges as that does."""
    items = conversation(name)
    secured = name == SECURED
    subscribe = json.loads(next(item["payload"] for item in items if item["kind"] == "frame"))[
        "subscribe"
    ]
    with awaited(instances.tls("hub1") if secured else None) as (address, accept):
        # What it gets of others has no route, by which it would know not to send it back.
        client = instances.client(
            "client1",
            address,
            subscribe=subscribe,
            publish=["a"],
            **({} if secured else {"tls": None}),
        )
        replay = AsHub(accept(), client)
        replay.run(before_the_end(items))
        assert replay.rest() == []
        assert answer_close(replay, client) == 1001
    received = [
        json.loads(record)
        for item in items
        if item["kind"] == "frame" and item["dir"] == FROM_HUB and item["opcode"] == BINARY
        for record in decode_batch(item["payload"])
    ]
    stored = [json.loads(line) for line in lines_of(client, "b")]
    assert [record.pop("route") for record in stored] == [["client1"]] * len(received)
    assert [{**record, "crc": None} for record in stored] == [
        {**record, "crc": None} for record in received
    ]


def test_a_hub_of_v0_11_0_with_our_ephemeral_client(instances: Instances) -> None:
    """Each publish returns with its acknowledgement; what it sends back is handled."""
    items = conversation(EPHEMERAL)
    seen = Recorder()
    with awaited() as (address, accept):
        client = instances.ephemeral("eph1", address, tls=None, instance_name="eph1")
        client.subscribe("b", seen)
        connecting = gevent.spawn(client.connect, 10)
        replay = AsHub(accept(), client)
        replay.run(before_the_end(items))
        connecting.get()
        assert replay.rest() == []
        assert [(each.origin, each.payload) for each in seen.messages] == [
            ("eph1", {"n": 1}),
            ("eph1", {"n": 2}),
            ("hub1", {"from": "hub"}),
        ]
        assert answer_close(replay, client) == 1000


def test_a_hub_of_v0_11_0_that_refuses_our_client(instances: Instances) -> None:
    """The refusal is answered with its code, reported, and the hub is not dialled again."""
    items = conversation(REJECTED)
    with awaited() as (address, accept):
        client = instances.client("stranger", address, tls=None)
        replay = AsHub(accept(), client)
        replay.run(before_the_end(items))
        replay.hand.close()
        wait_until(lambda: client_of(client).condition is Condition.REFUSED)
        assert replay.closed is not None
        assert replay.closed[:2] == items[-4]["payload"][:2]
        assert client_of(client).trouble == "closed (4403: not in allowlist)"
        assert audit(client, "peer_connected") == []


def test_a_hub_of_v0_11_0_that_refuses_our_ephemeral_client(instances: Instances) -> None:
    """The refusal ends it: ``HandshakeRejectedError``, and nothing is tried again."""
    items = conversation(REJECTED)
    with awaited() as (address, accept):
        client = instances.ephemeral(
            "stranger", address, tls=None, instance_name="stranger", auto_reconnect=True
        )
        connecting = gevent.spawn(client.connect, 10)
        hello = next(item for item in items if item["kind"] == "frame")
        hello["payload"] = hello["payload"].replace(b"}", b',"ephemeral":true}')
        replay = AsHub(accept(), client)
        replay.run(before_the_end(items))
        replay.hand.close()
        with pytest.raises(HandshakeRejectedError, match="not in allowlist"):
            connecting.get()
        with pytest.raises(HandshakeRejectedError):
            client.publish("a", "t", 1)
        instances.stop(client)


def test_a_v0_11_0_peer_is_told_nothing_that_it_does_not_know(instances: Instances) -> None:
    """A hub's hello has added fields only in answer to one that has."""
    hub = instances.hub("hub1", ["client1"])
    old = PeerByHand(instances, "client1", hub.hub_addr)
    assert list(old.greet()) == ["instance_name", "role", "version"]
    old.drop()
    new = PeerByHand(instances, "client1", hub.hub_addr, features=["window"])
    answer = new.greet()
    new.drop()
    assert answer["features"] == ["window", "crc", "route"]
    assert 10 * 2**20 - 1000 < answer["max_record_bytes"] < 10 * 2**20


# --- what of its ways is not in the conversations


def test_messages_in_many_frames(instances: Instances) -> None:
    """v0.11.0 sends what is above 4 KiB in several frames; they are one message here."""
    hub = instances.hub("hub1", ["client1"], tls=None)
    with raw_guest(hub.hub_addr, "client1") as peer:
        batch = pack(*[record("x" * 900, id=f"id-{number}", crc=False) for number in range(20)])
        pieces = [batch[at : at + 4096] for at in range(0, len(batch), 4096)]
        assert len(pieces) > 4
        for number, piece in enumerate(pieces):
            peer.send(CONTINUATION if number else BINARY, piece, fin=number == len(pieces) - 1)
        assert peer.hear() == {"last_id": "id-19"}
        # As its hub does: one great frame, and an empty last one.
        peer.send(BINARY, batch.replace(b"id-", b"ID-"), fin=False)
        peer.send(CONTINUATION, b"", fin=True)
        assert peer.hear() == {"last_id": "ID-19"}
    assert len(lines_of(hub, "orders")) == 40


def test_acknowledgements_without_an_id(instances: Instances) -> None:
    """v0.11.0 acknowledges a batch of nothing new with an empty id, which counts all the same."""
    hub = instances.hub("hub1", ["client1"], tls=None)
    with raw_guest(hub.hub_addr, "client1", "b") as peer:
        hub.publish("b", "t", 1)
        peer.take()
        peer.say(last_id="")
        wait_until(
            lambda: (
                stored_offset(instances.data_dir("hub1"), "b", "fed-client1") == end_of(hub, "b")
            )
        )
