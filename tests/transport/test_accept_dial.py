"""From an address to an open connection, and the hub's door: on loopback, with and without TLS."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import socket as flags
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket
from OpenSSL import SSL

from keyop.transport import accept, dial, strangers
from keyop.transport.accept import Accepted, Listener
from keyop.transport.contexts import CLIENT_AUTH, SERVER_AUTH
from keyop.transport.dial import UpgradeError
from keyop.transport.identity import CertificateError
from keyop.transport.reader import TooMuchError
from keyop.transport.strangers import Pending
from keyop.transport.tls import TLSError, TLSSocket
from keyop.transport.websocket import Connection, WebSocketClosedError
from tests.wire.golden import CONVERSATIONS, each_conversation, lines

from .certificates import Authority, Files, Issued
from .helpers import BINARY, MASK, PING, TEXT, Hand, frame, spawned, wait_until

# The example of RFC 6455, section 1.3.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
UPGRADE = {
    "Host": "hub.example.org",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


class Door:
    """A listener, and what came of it: who was accepted, who was refused and why."""

    def __init__(self) -> None:
        self.accepted: list[Accepted] = []
        self.refused: list[tuple[str, str]] = []
        self.context: SSL.Context | None = None
        self.trusting = True
        self.listener: Any = None

    @property
    def port(self) -> int:
        return int(self.listener.server_port)

    def serve(self, accepted: Accepted) -> None:
        """Echo, to whoever comes; without trust, to one message only."""
        self.accepted.append(accepted)
        connection = accepted.connection
        if self.trusting:
            accepted.known(1 << 24)
        try:
            while True:
                message = connection.receive()
                if isinstance(message, str):
                    connection.send_text(message)
                else:
                    connection.send_binary(message)
        except OSError:
            pass
        finally:
            connection.finish()

    def only(self) -> Accepted:
        """Wait for the one that was accepted; return it."""
        wait_until(lambda: self.accepted, what="somebody to be accepted")
        (accepted,) = self.accepted
        return accepted

    def refusal(self) -> str:
        """Wait for the one that was refused; return why."""
        wait_until(lambda: self.refused, what="somebody to be refused")
        assert len(self.refused) == 1
        return self.refused[0][1]

    def connect(self) -> socket.socket:
        """Return a connection to it, by hand."""
        return socket.create_connection(("127.0.0.1", self.port))


@contextmanager
def door(
    context: SSL.Context | None = None, max_pending: int = 128, address: str = "127.0.0.1:0"
) -> Iterator[Door]:
    made = Door()
    made.context = context
    made.listener = Listener(
        address,
        lambda: made.context,
        made.serve,
        lambda where, reason: made.refused.append((where, reason)),
        max_pending,
    )
    made.listener.start()
    try:
        yield made
    finally:
        made.listener.end(0.1)


@pytest.fixture
def at_hub(files: Files, authority: Authority, hub: Issued) -> SSL.Context:
    return files.load(hub, authority.pem).context(CLIENT_AUTH)


@pytest.fixture
def at_client(files: Files, authority: Authority, client: Issued) -> SSL.Context:
    return files.load(client, authority.pem).context(SERVER_AUTH)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Deadlines that a test can wait for; return them, in seconds."""
    for module, name in (
        (strangers, "HANDSHAKE_S"),
        (accept, "UPGRADE_S"),
        (dial, "HANDSHAKE_S"),
        (dial, "UPGRADE_S"),
    ):
        monkeypatch.setattr(module, name, 0.2)
    return 0.2


def end(connection: Connection) -> None:
    """Close, and wait for the other side to end it."""
    connection.close()
    with pytest.raises(WebSocketClosedError):
        connection.receive()
    connection.finish()


class TestConnecting:
    def test_plain(self) -> None:
        """Without TLS, messages go both ways, and nobody knows who the other is."""
        with door() as made:
            dialled = dial.dial(f"127.0.0.1:{made.port}", None)
            dialled.connection.trust(1 << 24)
            assert dialled.peer == ""
            for message in ("text", b"x" * 1_000_000):
                with spawned(
                    dialled.connection.send_text
                    if isinstance(message, str)
                    else dialled.connection.send_binary,
                    message,
                ):
                    assert dialled.connection.receive() == message
            accepted = made.only()
            assert (accepted.peer, accepted.certificate) == ("", None)
            end(dialled.connection)
            assert made.refused == []

    def test_mutual_tls(self, at_hub: SSL.Context, at_client: SSL.Context, client: Issued) -> None:
        """With TLS, each knows from the other's certificate who it is."""
        with door(at_hub) as made:
            dialled = dial.dial(f"localhost:{made.port}", at_client)
            dialled.connection.trust(1 << 24)
            assert dialled.peer == "hub1"
            with spawned(dialled.connection.send_binary, b"x" * 1_000_000):
                assert dialled.connection.receive() == b"x" * 1_000_000
            accepted = made.only()
            assert accepted.peer == "client1"
            assert accepted.certificate == client.certificate
            end(dialled.connection)

    def test_where_it_comes_from(self) -> None:
        """The hub is told the client's address and port."""
        with door() as made, made.connect() as plain:
            plain.sendall(request())
            assert status_of(plain) == 101
            assert made.only().address == "{}:{}".format(*plain.getsockname())

    def test_over_ipv6(self, at_hub: SSL.Context, at_client: SSL.Context) -> None:
        """IPv6 addresses stand in brackets, on both sides; the certificate has them as well."""
        try:
            with socket.socket(flags.AF_INET6) as trial:
                trial.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        with door(at_hub, address="[::1]:0") as made:
            dialled = dial.dial(f"[::1]:{made.port}", at_client)
            assert re.fullmatch(r"\[::1\]:\d+", made.only().address)
            end(dialled.connection)

    def test_what_comes_with_the_answer(self) -> None:
        """A message that comes in one piece with the end of the upgrade is not lost."""

        def answer(plain: socket.socket) -> None:
            plain.sendall(good_answer(read_head(plain)) + frame(TEXT, b"at once"))

        with answering(answer) as address:
            dialled = dial.dial(address, None)
            assert dialled.connection.receive() == "at once"
            dialled.connection.drop()

    def test_what_comes_with_the_request(self) -> None:
        """A client may say hello in one piece with its request."""
        with door() as made, made.connect() as plain:
            plain.sendall(request() + frame(TEXT, b"at once", mask=MASK))
            assert status_of(plain) == 101
            assert Hand(plain, True).read().payload == b"at once"

    def test_no_name_is_looked_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Listening asks nobody for the host's name, which may take its time."""
        monkeypatch.setattr("gevent.socket.getfqdn", lambda *_: pytest.fail("asked"))
        with door():
            pass

    def test_another_context_for_those_who_come_later(
        self, files: Files, authority: Authority, at_hub: SSL.Context, at_client: SSL.Context
    ) -> None:
        """After a rotation, the next connection sees the new certificate; the old one goes on."""
        with door(at_hub) as made:
            first = dial.dial(f"localhost:{made.port}", at_client)
            made.context = files.load(authority.issue("hub2"), authority.pem).context(CLIENT_AUTH)
            second = dial.dial(f"localhost:{made.port}", at_client)
            assert (first.peer, second.peer) == ("hub1", "hub2")
            for each in (first, second):
                each.connection.send_text("there?")
                assert each.connection.receive() == "there?"
                end(each.connection)


class TestWhoAnswers:
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_the_host_that_was_dialled(
        self, at_hub: SSL.Context, at_client: SSL.Context, host: str
    ) -> None:
        """The hub's certificate holds the name or the address that was dialled."""
        with door(at_hub) as made:
            end(dial.dial(f"{host}:{made.port}", at_client).connection)

    @pytest.mark.parametrize("hosts", [(), ("elsewhere.example.org",), ("127.0.0.2",)])
    def test_another_host(
        self, files: Files, authority: Authority, at_client: SSL.Context, hosts: tuple[str, ...]
    ) -> None:
        """A certificate of the authority is not enough: it has to be for that host."""
        context = files.load(authority.issue("hub1", hosts=hosts), authority.pem).context(
            CLIENT_AUTH
        )
        with door(context) as made:
            with pytest.raises(CertificateError, match="the hub's certificate"):
                dial.dial(f"127.0.0.1:{made.port}", at_client)
            assert made.accepted == []

    def test_the_hubs_name_in_its_place(
        self, files: Files, authority: Authority, at_client: SSL.Context
    ) -> None:
        """Where the hub's name is configured, that counts, and not the host."""
        context = files.load(authority.issue("hub1", hosts=()), authority.pem).context(CLIENT_AUTH)
        with door(context) as made:
            dialled = dial.dial(f"127.0.0.1:{made.port}", at_client, "hub1")
            assert dialled.peer == "hub1"
            end(dialled.connection)

    def test_another_hub(self, at_hub: SSL.Context, at_client: SSL.Context) -> None:
        """Another instance at the right host is refused, and both names are said."""
        with door(at_hub) as made:
            with pytest.raises(CertificateError, match=r"is 'hub1', not 'hub2'"):
                dial.dial(f"127.0.0.1:{made.port}", at_client, "hub2")
            assert made.accepted == []

    def test_of_another_authority(
        self, files: Files, other_authority: Authority, at_client: SSL.Context
    ) -> None:
        """A stranger's certificate is refused in the handshake; the hub is told so."""
        context = files.load(other_authority.issue("hub1"), other_authority.pem).context(
            CLIENT_AUTH
        )
        with door(context) as made:
            with pytest.raises(TLSError, match=r"certificate was refused: .* authority"):
                dial.dial(f"127.0.0.1:{made.port}", at_client)
            assert "refused this one's certificate" in made.refusal()

    def test_a_client_of_another_authority(
        self,
        files: Files,
        authority: Authority,
        other_authority: Authority,
        at_hub: SSL.Context,
    ) -> None:
        """The hub refuses it, and says whom; the client learns it while it asks for the upgrade."""
        stranger = files.load(other_authority.issue("evil"), authority.pem)
        with door(at_hub) as made:
            with pytest.raises(OSError, match=r"refused this one's certificate|ended|reset|pipe"):
                dial.dial(f"127.0.0.1:{made.port}", stranger.context(SERVER_AUTH))
            assert "certificate was refused: evil: its issuer is not" in made.refusal()
            assert made.accepted == []


class TestNobodyAnswers:
    def test_no_listener(self) -> None:
        """A port that nobody listens on."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                dial.dial(f"127.0.0.1:{taken.getsockname()[1]}", None)

    @pytest.mark.parametrize("tls", [False, True])
    def test_silence(self, at_client: SSL.Context, impatient: float, tls: bool) -> None:
        """Who accepts and says nothing is given up, and the connection closed."""
        ended = []

        def say_nothing(plain: socket.socket) -> None:
            while plain.recv(1 << 16):
                pass
            ended.append(True)

        with answering(say_nothing) as address:
            what = "no TLS handshake in time" if tls else "no answer to the upgrade in time"
            with pytest.raises(TimeoutError, match=what):
                dial.dial(address, at_client if tls else None)
            wait_until(lambda: ended)

    def test_an_answer_that_never_ends(self, impatient: float) -> None:
        """Headers that come one by one do not put the deadline off."""

        def dribble(plain: socket.socket) -> None:
            plain.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
            while True:
                plain.sendall(b"X: y\r\n")
                gevent.sleep(0.005)

        with answering(dribble) as address, pytest.raises(TimeoutError, match="upgrade"):
            dial.dial(address, None)

    def test_an_answer_that_is_too_long(self) -> None:
        """A stranger may say 16 KiB before it is known, the hub as well."""

        def talk(plain: socket.socket) -> None:
            plain.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 4000)
            plain.recv(1)

        with answering(talk) as address, pytest.raises(TooMuchError):
            dial.dial(address, None)

    def test_tls_against_a_plain_hub(self, at_client: SSL.Context, impatient: float) -> None:
        """A client with TLS and a hub without find out that they differ, in time."""
        with door() as made:
            with pytest.raises(OSError, match=r"TLS|ended|reset"):
                dial.dial(f"127.0.0.1:{made.port}", at_client)
            assert made.refusal()
            assert made.accepted == []

    def test_plain_against_a_hub_with_tls(self, at_hub: SSL.Context) -> None:
        """And the other way round."""
        with door(at_hub) as made:
            with pytest.raises(OSError, match=r"answers|ended|reset"):
                dial.dial(f"127.0.0.1:{made.port}", None)
            assert made.refusal() == "TLS: http request"


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Give the address of a server that deals with one connection as it is told."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)

        def run() -> None:
            plain, _ = listening.accept()
            with plain:
                try:
                    answer(plain)
                except OSError:
                    pass

        with spawned(run):
            yield f"127.0.0.1:{listening.getsockname()[1]}"


def read_head(plain: Any) -> str:
    """Read up to the empty line; return it without that."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = plain.recv(1)
        if not piece:
            raise EOFError(data)
        data += piece
    return data.decode("latin-1").removesuffix("\r\n\r\n")


def header(head: str, name: str) -> str | None:
    """Return a header's value; None if it is not there."""
    found = re.search(rf"^{re.escape(name)}: *(.*?) *$", head, re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else None


def good_answer(head: str, **changes: str | None) -> bytes:
    """Return the right answer to a request, with headers changed or left out."""
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": dial.accept_key(header(head, "Sec-WebSocket-Key") or ""),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    said = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *said, "", ""]).encode()


class TestTheClientsUpgrade:
    """RFC 6455, section 4.1."""

    def test_the_request(self) -> None:
        """It asks for ``/`` with the address as host, and offers nothing that is not spoken."""
        heads = []

        def listen(plain: socket.socket) -> None:
            heads.append(read_head(plain))

        for _ in range(2):
            with answering(listen) as address:
                with pytest.raises(UpgradeError, match="without an answer"):
                    dial.dial(address, None)
                expected = (
                    "GET / HTTP/1.1\r\n"
                    f"Host: {address}\r\n"
                    "Upgrade: websocket\r\n"
                    "Connection: Upgrade\r\n"
                    "Sec-WebSocket-Key: KEY\r\n"
                    "Sec-WebSocket-Version: 13"
                )
                assert re.sub("Key: .*==", "Key: KEY", heads[-1]) == expected
        keys = [base64.b64decode(header(head, "Sec-WebSocket-Key") or "") for head in heads]
        assert [len(key) for key in keys] == [16, 16]
        assert keys[0] != keys[1]

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"Upgrade": "WebSocket"},
            {"Connection": "upgrade"},
            {"Connection": "keep-alive, Upgrade"},
            {"Server": "nginx", "Date": "today", "X": ""},
        ],
    )
    def test_good_answers(self, changes: dict[str, str]) -> None:
        """Words regardless of case, lists, and headers that do not matter."""

        def answer(plain: socket.socket) -> None:
            plain.sendall(
                good_answer(read_head(plain), **changes).replace(b"Upgrade:", b"uPgRaDe:")
            )
            plain.recv(1)

        with answering(answer) as address:
            dial.dial(address, None).connection.drop()

    @pytest.mark.parametrize(
        "changes",
        [
            {"Upgrade": None},
            {"Upgrade": "h2c"},
            {"Connection": None},
            {"Connection": "close"},
            {"Connection": "noupgrade"},
            {"Sec_WebSocket_Accept": None},
            {"Sec_WebSocket_Accept": ACCEPT},
            {"Sec_WebSocket_Accept": ""},
            {"Sec_WebSocket_Extensions": "permessage-deflate"},
            {"Sec_WebSocket_Protocol": "chat"},
        ],
    )
    def test_bad_answers(self, changes: dict[str, str | None]) -> None:
        """An answer that does not prove itself, or agrees on what was not offered, is none."""

        def answer(plain: socket.socket) -> None:
            plain.sendall(good_answer(read_head(plain), **changes))
            plain.recv(1)

        wrong = pytest.raises(UpgradeError, match="answers the upgrade wrongly")
        with answering(answer) as address, wrong:
            dial.dial(address, None)

    @pytest.mark.parametrize(
        ("said", "shown"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK"),
            (b"HTTP/1.1 426 Upgrade Required\r\n\r\n", "426"),
            (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", "301"),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "SSH-2.0"),
            (b"x" * 9000 + b"\r\n\r\n", "xxxx"),
            (b"\r\n\r\n", "''"),
            (b"HTTP/1.1\r\n\r\n", "HTTP/1.1"),
            (b"\xff\xfe\r\n\r\n", "ÿþ"),
        ],
    )
    def test_no_hub(self, said: bytes, shown: str) -> None:
        """Whatever else answers is shown, shortened."""

        def answer(plain: socket.socket) -> None:
            read_head(plain)
            plain.sendall(said)

        with answering(answer) as address:
            with pytest.raises(UpgradeError, match=r"not as a hub") as raised:
                dial.dial(address, None)
            assert shown in str(raised.value)
            assert len(str(raised.value)) < 200

    def test_no_answer(self) -> None:
        """It may be that TLS is wanted, which nobody says to whom does not speak it."""
        with answering(read_head) as address:
            with pytest.raises(UpgradeError) as raised:
                dial.dial(address, None)
            assert str(raised.value) == (
                f"{address} ended the connection without an answer; "
                "if it wants TLS, give a certificate, its key and the CA"
            )


def request(method: str = "GET / HTTP/1.1", **changes: str | None) -> bytes:
    """Return a request for an upgrade, with headers changed or left out."""
    headers = {**UPGRADE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    said = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([method, *said, "", ""]).encode()


def status_of(plain: Any) -> int:
    return int(read_head(plain).split()[1])


class TestTheHubsUpgrade:
    """RFC 6455, section 4.2."""

    def test_the_answer(self) -> None:
        """The example of the RFC is answered as it says, with not a word more."""
        with door() as made, made.connect() as plain:
            plain.sendall(request())
            assert read_head(plain) == (
                "HTTP/1.1 101 Switching Protocols\r\n"
                "Upgrade: websocket\r\n"
                "Connection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {ACCEPT}"
            )

    @each_conversation
    def test_a_recorded_request(self, conversation: str) -> None:
        """A v0.11.0 client's request is answered as its hub did."""
        asked, answered = (
            item["head"] for item in lines(f"wire/{conversation}") if item["kind"] == "http"
        )
        with door() as made, made.connect() as plain:
            plain.sendall("\r\n".join([*asked, "", ""]).encode())
            assert read_head(plain).split("\r\n") == answered

    @pytest.mark.parametrize(
        ("method", "changes"),
        [
            ("GET /any/path?with=query HTTP/1.1", {}),
            ("GET / HTTP/1.1", {"Upgrade": "WebSocket"}),
            ("GET / HTTP/1.1", {"Upgrade": "h2c, websocket"}),
            ("GET / HTTP/1.1", {"Connection": "keep-alive, upgrade"}),
            ("GET / HTTP/1.1", {"Sec_WebSocket_Protocol": "chat, superchat"}),
            ("GET / HTTP/1.1", {"Sec_WebSocket_Extensions": "permessage-deflate"}),
            ("GET / HTTP/1.1", {"Origin": "http://evil.example", "Cookie": "a=b"}),
            ("GET / HTTP/1.1", {"Host": None}),
            ("GET / HTTP/1.1", {"X_Long": "x" * 8000}),
        ],
    )
    def test_good_requests(self, method: str, changes: dict[str, str | None]) -> None:
        """At any path; what is offered beyond the plain protocol is not taken up."""
        with door() as made, made.connect() as plain:
            plain.sendall(request(method, **changes))
            head = read_head(plain)
            assert head.startswith("HTTP/1.1 101 ")
            assert header(head, "Sec-WebSocket-Protocol") is None
            assert header(head, "Sec-WebSocket-Extensions") is None

    @pytest.mark.parametrize(
        ("method", "changes"),
        [
            ("GET / HTTP/1.1", {"Upgrade": None, "Connection": None}),
            ("GET / HTTP/1.1", {"Upgrade": None}),
            ("GET / HTTP/1.1", {"Upgrade": "h2c"}),
            ("GET / HTTP/1.1", {"Connection": None}),
            ("GET / HTTP/1.1", {"Connection": "keep-alive"}),
            ("GET / HTTP/1.1", {"Connection": "close"}),
            ("GET / HTTP/1.1", {"Sec_WebSocket_Version": None}),
            ("GET / HTTP/1.1", {"Sec_WebSocket_Version": "8"}),
            ("GET / HTTP/1.1", {"Sec_WebSocket_Version": "14"}),
            ("GET / HTTP/1.1", {"Sec_WebSocket_Version": "thirteen"}),
            ("GET / HTTP/1.0", {}),
            ("GET /", {}),
            ("POST / HTTP/1.1", {"Content_Length": "0"}),
            ("PUT / HTTP/1.1", {}),
            ("OPTIONS * HTTP/1.1", {}),
        ],
    )
    def test_no_upgrade(self, method: str, changes: dict[str, str | None]) -> None:
        """HTTP that is no upgrade gets 426 and what would be one, and the connection ends."""
        with door() as made, made.connect() as plain:
            plain.sendall(request(method, **changes))
            head = read_head(plain)
            assert head.startswith("HTTP/1.1 426 Upgrade Required\r\n")
            assert header(head, "Upgrade") == "websocket"
            assert header(head, "Sec-WebSocket-Version") == "13"
            body = b""
            while piece := plain.recv(1000):
                body += piece
            assert body == b"keyop speaks WebSocket here\n"
            assert made.refusal() == "no WebSocket request; answered with 426 Upgrade Required"
            assert made.accepted == []

    @pytest.mark.parametrize(
        "key",
        [
            None,
            "",
            "abc",
            "dGhlIHNhbXBsZSBub25jZQ",  # no padding
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZR==",  # bits that stand for nothing
            "dGhlIHNhbXBsZSBub25jZTE=",  # 17 bytes
            "dGhlIHNhbXBsZSBub25j",  # 15 bytes
            "!!!lIHNhbXBsZSBub25jZQ==",
            "dGhlIHNhbXBsZSBub25jZQ== dGhlIHNhbXBsZSBub25jZQ==",
            "é" * 22 + "==",
            "a",  # what base64 cannot be
        ],
    )
    def test_bad_keys(self, capfd: pytest.CaptureFixture[str], key: str | None) -> None:
        """A key that is not 16 bytes in base64 gets 400, and nobody a traceback."""
        with door() as made, made.connect() as plain:
            plain.sendall(request(Sec_WebSocket_Key=key))
            assert status_of(plain) == 400
            assert "400" in made.refusal()
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"\r\n\r\n", 400),
            (b"hello\r\n\r\n", 400),
            (b"GET / HTTP/1.1 and more\r\n\r\n", 400),
            (b"GET / HTTP/9.9\r\n\r\n", 400),
            (b"GET / HTTP/1\r\n\r\n", 400),
            (b"GET / HTTP/x.y\r\n\r\n", 400),
            (b"POST /\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\xfc\n", 400),
            (b"\xff\xff\xff\xff\n\n", 400),
            (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
            (b"HEAD / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
            (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 426),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 426),
        ],
    )
    def test_what_is_no_request(
        self, capfd: pytest.CaptureFixture[str], sent: bytes, status: int
    ) -> None:
        """It is answered as well as it can be, reported once, and leaves no traceback."""
        with door() as made, made.connect() as plain:
            plain.sendall(sent)
            assert status_of(plain) == status
            assert made.refusal()
            assert made.accepted == []
        assert capfd.readouterr().err == ""

    def test_over_tls(self, at_hub: SSL.Context, at_client: SSL.Context) -> None:
        """The same within TLS, whose end is told."""
        with door(at_hub) as made:
            secured = TLSSocket(at_client, made.connect(), server_side=False)
            secured.handshake("localhost")
            secured.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert status_of(secured) == 426
            while secured.recv(1000):
                pass
            secured.close()


def assert_cut_off(plain: Any, piece: bytes, pause_s: float = 0) -> None:
    """Send a piece again and again until the other side has ended the connection."""
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            plain.sendall(piece)
            gevent.sleep(pause_s)
    except ConnectionError:
        return
    pytest.fail("it was not cut off")


class TestStrangersThatCost:
    """What somebody may cost who has not said who it is."""

    def test_slow_headers(self, capfd: pytest.CaptureFixture[str], impatient: float) -> None:
        """Headers that come one by one are cut off in time, without a traceback."""
        with door() as made, made.connect() as plain:
            begun = time.monotonic()
            plain.sendall(b"GET / HTTP/1.1\r\n")
            assert_cut_off(plain, b"X: y\r\n", pause_s=0.005)
            assert impatient <= time.monotonic() - begun < 20
            assert made.refusal() == "no upgrade in time"
            assert len(made.listener.pending) == 0
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("said", [b"", b"G", b"GET / HT"])
    def test_a_slow_first_line(self, impatient: float, said: bytes) -> None:
        """The first line has no more time than the rest; who says nothing is not reported."""
        with door() as made, made.connect() as plain:
            plain.sendall(said)
            assert plain.recv(1) == b""
            wait_until(lambda: not made.listener.pending)
            assert [reason for _, reason in made.refused] == (
                ["no upgrade in time"] if said else []
            )

    def test_a_body_that_never_comes(
        self, capfd: pytest.CaptureFixture[str], impatient: float
    ) -> None:
        """A request may announce anything: it is answered, and its body not waited for long."""
        with door() as made, made.connect() as plain:
            plain.sendall(request("POST / HTTP/1.1", Content_Length="1000000000000"))
            assert status_of(plain) == 426
            while plain.recv(1000):
                pass
            assert made.refusal()
        assert capfd.readouterr().err == ""

    def test_a_body_that_is_too_long(self, capfd: pytest.CaptureFixture[str]) -> None:
        """More than 16 KiB of it is not read."""
        with door() as made, made.connect() as plain:
            plain.sendall(request("POST / HTTP/1.1", Content_Length="1000000"))
            assert_cut_off(plain, b"x" * 1000)
            assert made.refusal()
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("sent", [b"X: y\r\n" * 4000, b"X: " + b"y" * 20_000, b"\0" * 20_000])
    def test_more_than_16_kib_of_headers(
        self, capfd: pytest.CaptureFixture[str], sent: bytes
    ) -> None:
        """They are cut off, and reported."""
        with door() as made, made.connect() as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n" + sent)
            assert made.refusal() == "[Errno 90] too many bytes before the handshake was done"
        assert capfd.readouterr().err == ""

    def test_more_than_16_kib_of_frames(self) -> None:
        """After the upgrade as well, until the hello was accepted: 1009."""
        with door() as made, made.connect() as plain:
            made.trusting = False
            plain.sendall(request())
            assert status_of(plain) == 101
            hand = Hand(plain, True)
            for _ in range(130):
                hand.send(PING, b"p" * 125)
            assert hand.read_close().close_code == 1009

    def test_a_hello_that_is_too_long(self) -> None:
        """A longer message is refused from its header."""
        with door() as made, made.connect() as plain:
            made.trusting = False
            plain.sendall(request() + frame(TEXT, declared=16_385, mask=MASK))
            assert status_of(plain) == 101
            assert Hand(plain, True).read_close().close_code == 1009

    def test_who_is_known_may_send_more(self) -> None:
        """``known`` lifts both limits."""
        with door() as made, made.connect() as plain:
            plain.sendall(request())
            assert status_of(plain) == 101
            hand = Hand(plain, True)
            for _ in range(3):
                with spawned(hand.send, BINARY, b"x" * 200_000):
                    assert b"".join(iter_payload(hand)) == b"x" * 200_000

    def test_somebody_who_only_looks(self, at_hub: SSL.Context) -> None:
        """A connection that ends without a word is nobody's fault, and nobody is told."""
        for context in (None, at_hub):
            with door(context) as made:
                made.connect().close()
                with made.connect() as plain:
                    plain.shutdown(flags.SHUT_WR)
                    assert plain.recv(1) == b""
                wait_until(lambda made=made: not made.listener.pending)
                assert (made.refused, made.accepted) == ([], [])

    def test_a_reset(self, capfd: pytest.CaptureFixture[str]) -> None:
        """A connection that breaks while it is answered is not worth a traceback."""
        for sent in (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX", request()):
            with door() as made:
                plain = made.connect()
                plain.setsockopt(flags.SOL_SOCKET, flags.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                plain.sendall(sent)
                plain.close()
                gevent.sleep(0.01)
        assert capfd.readouterr().err == ""

    def test_half_a_handshake(self, at_hub: SSL.Context, impatient: float) -> None:
        """Who begins TLS and does not go on is cut off in time, and reported."""
        with door(at_hub) as made, made.connect() as plain:
            plain.sendall(b"\x16\x03\x01\x02\x00\x01")
            assert made.refusal() == "no TLS handshake in time"
            assert len(made.listener.pending) == 0

    def test_an_upgrade_that_never_comes(
        self, at_hub: SSL.Context, at_client: SSL.Context, impatient: float
    ) -> None:
        """A known certificate does not excuse from asking in time."""
        with door(at_hub) as made:
            secured = TLSSocket(at_client, made.connect(), server_side=False)
            secured.handshake()
            assert made.refusal() == "no upgrade in time"
            secured.close()

    def test_an_end_after_the_handshake(self, at_hub: SSL.Context, at_client: SSL.Context) -> None:
        """Who shows a certificate and leaves is reported."""
        with door(at_hub) as made:
            secured = TLSSocket(at_client, made.connect(), server_side=False)
            secured.handshake()
            secured.close()
            assert made.refusal() == "the connection ended before a request"


def iter_payload(hand: Hand) -> Iterator[bytes]:
    """Give the payloads of one message's frames."""
    while True:
        found = hand.read()
        yield found.payload
        if found.fin:
            return


class Stream:
    """A stream that only can be closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class TestPending:
    def test_room_for_all(self) -> None:
        """As long as there is room, nobody has to go."""
        pending, streams = Pending(3), [Stream() for _ in range(3)]
        for stream in streams:
            pending.enter(stream)
        assert (len(pending), pending.dropped) == (3, 0)
        assert not any(stream.closed for stream in streams)

    def test_who_waits_longest_makes_room(self) -> None:
        """When all places are taken, the first that came is closed for the next one."""
        pending, streams = Pending(3), [Stream() for _ in range(5)]
        for stream in streams:
            pending.enter(stream)
        assert [stream.closed for stream in streams] == [1, 1, 0, 0, 0]
        assert (len(pending), pending.dropped) == (3, 2)

    def test_who_has_left_is_not_closed(self) -> None:
        """A place that was given back is free, once."""
        pending, streams = Pending(2), [Stream() for _ in range(4)]
        places = [pending.enter(stream) for stream in streams[:2]]
        pending.leave(places[0])
        pending.leave(places[0])
        pending.enter(streams[2])
        assert not any(stream.closed for stream in streams)
        pending.enter(streams[3])
        assert [stream.closed for stream in streams] == [0, 1, 0, 0]

    def test_on_another_layer(self) -> None:
        """Who goes on in TLS keeps its place, and is closed there."""
        pending, plain, secured = Pending(1), Stream(), Stream()
        place = pending.enter(plain)
        pending.replace(place, secured)
        pending.enter(Stream())
        assert (plain.closed, secured.closed) == (0, 1)

    def test_who_was_dropped_does_not_come_back(self) -> None:
        """A place that was taken away stays so."""
        pending, first = Pending(1), Stream()
        place = pending.enter(first)
        pending.enter(Stream())
        pending.replace(place, Stream())
        pending.leave(place)
        assert len(pending) == 1

    def test_all_at_once(self) -> None:
        """When the hub ends, strangers do."""
        pending, streams = Pending(5), [Stream() for _ in range(4)]
        for stream in streams:
            pending.enter(stream)
        pending.drop()
        assert [stream.closed for stream in streams] == [1, 1, 1, 1]
        assert len(pending) == 0


class TestManyStrangers:
    @pytest.mark.parametrize("tls", [False, True])
    def test_silent_ones_never_keep_a_good_one_out(
        self, at_hub: SSL.Context, at_client: SSL.Context, tls: bool
    ) -> None:
        """With every place taken by silence, whoever speaks is served at once."""
        with door(at_hub if tls else None, max_pending=4) as made:
            silent = [made.connect() for _ in range(30)]
            wait_until(lambda: made.listener.pending.dropped == 26)
            for _ in range(5):
                begun = time.monotonic()
                dialled = dial.dial(f"127.0.0.1:{made.port}", at_client if tls else None)
                dialled.connection.send_text("hello")
                assert dialled.connection.receive() == "hello"
                assert time.monotonic() - begun < 4  # no deadline had to pass
                end(dialled.connection)
            # Who had waited longest was closed; nobody was told of those who had said nothing.
            assert all(each.recv(1) == b"" for each in silent[:26])
            assert made.refused == []
            for each in silent:
                each.close()

    def test_those_within_a_handshake_make_room_too(
        self, at_hub: SSL.Context, at_client: SSL.Context
    ) -> None:
        """Having begun TLS, or a request, does not help to keep a place."""
        with door(at_hub, max_pending=3) as made:
            begun = [made.connect() for _ in range(3)]
            for each in begun:
                each.sendall(b"\x16\x03\x01\x02\x00\x01")
            secured = []
            for _ in range(3):
                secured.append(TLSSocket(at_client, made.connect(), server_side=False))
                secured[-1].handshake()
                secured[-1].sendall(b"GET / HTTP/1.1\r\n")
            wait_until(lambda: len(made.refused) == 3)
            assert all("closed" in reason for _, reason in made.refused)
            end(dial.dial(f"127.0.0.1:{made.port}", at_client).connection)
            for each in (*begun, *secured):
                each.close()

    def test_those_without_a_hello_make_room_too(self) -> None:
        """An upgraded connection is a stranger's until its hello was accepted."""
        with door(max_pending=2) as made:
            made.trusting = False
            silent = []
            for _ in range(3):
                silent.append(made.connect())
                silent[-1].sendall(request())
                assert status_of(silent[-1]) == 101
            assert silent[0].recv(1) == b""
            assert len(made.listener.pending) == 2
            for each in silent:
                each.close()

    def test_a_known_one_keeps_its_connection(self) -> None:
        """Once the hello was accepted, nobody has to make room."""
        with door(max_pending=2) as made:
            dialled = dial.dial(f"127.0.0.1:{made.port}", None)
            dialled.connection.send_text("hello")
            assert dialled.connection.receive() == "hello"
            silent = [made.connect() for _ in range(10)]
            wait_until(lambda: made.listener.pending.dropped == 8)
            dialled.connection.send_text("still here")
            assert dialled.connection.receive() == "still here"
            end(dialled.connection)
            for each in silent:
                each.close()

    def test_places_are_given_back(self) -> None:
        """Whatever became of them, strangers leave no place taken."""
        with door() as made:
            for sent in (b"", b"nonsense\r\n\r\n", request(), b"GET / HTTP/1.1\r\n\r\n"):
                plain = made.connect()
                plain.sendall(sent)
                if sent:
                    read_head(plain)
                plain.close()
            wait_until(lambda: not made.listener.pending)
            assert made.listener.pending.dropped == 0


def test_a_connection_that_cannot_be_served() -> None:
    """Where the system has no room for one more, it is closed and reported, without a traceback."""

    def adopt(*_: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with door() as made, made.connect() as plain:
        made.listener.adopt = adopt
        plain.sendall(request())
        assert status_of(plain) == 101
        assert plain.recv(1) == b""
        assert "Too many open files" in made.refusal()
        assert len(made.listener.pending) == 0


class TestEnding:
    def test_strangers_are_dropped_at_once(self, at_hub: SSL.Context) -> None:
        """Nobody waits for those who have not said who they are."""
        with door(at_hub) as made:
            silent = [made.connect() for _ in range(5)]
            silent[0].sendall(b"\x16\x03\x01")
            wait_until(lambda: len(made.listener.pending) == 5)
            begun = time.monotonic()
            made.listener.end(30)
            assert time.monotonic() - begun < 5
            assert all(each.recv(1) == b"" for each in silent)
            assert len(made.listener.pending) == 0
            for each in silent:
                each.close()

    def test_those_without_a_hello_too(self) -> None:
        """An upgraded connection without a hello is a stranger's."""
        with door() as made, made.connect() as plain:
            made.trusting = False
            plain.sendall(request())
            assert status_of(plain) == 101
            begun = time.monotonic()
            made.listener.end(30)
            assert time.monotonic() - begun < 5

    def test_known_ones_are_waited_for(self) -> None:
        """Who was told goodbye has time to answer."""
        with door() as made:
            dialled = dial.dial(f"127.0.0.1:{made.port}", None)
            made.only().connection.close(1001, "shutting down")
            with spawned(made.listener.end, 30) as ending:
                with pytest.raises(WebSocketClosedError, match="1001: shutting down"):
                    dialled.connection.receive()
                dialled.connection.finish()
                ending.get(timeout=10)

    def test_but_not_longer_than_the_timeout(self) -> None:
        """Then they are killed, and their connections closed."""
        with door() as made, made.connect() as plain:
            plain.sendall(request())
            assert status_of(plain) == 101
            begun = time.monotonic()
            made.listener.end(0.05)
            assert time.monotonic() - begun < 10
            while plain.recv(100):  # a goodbye, perhaps
                pass

    def test_nobody_comes_in_afterwards(self) -> None:
        """Neither a new connection nor one whose turn had not come."""
        with door() as made:
            late = made.connect()  # accepted by the system, not by the listener yet
            made.listener.end(1)
            with pytest.raises(ConnectionRefusedError):
                made.connect()
            try:
                late.sendall(request())
                assert late.recv(100) == b""
            except ConnectionError:
                pass
            late.close()
            assert made.accepted == []

    def test_one_that_was_accepted_in_that_moment(self) -> None:
        """A connection whose greenlet begins after the end is closed."""
        with door() as made:
            made.listener.end(0)
            near, far = socket.socketpair()
            made.listener.handle(near, ("127.0.0.1", 1))
            assert far.recv(1) == b""
            assert len(made.listener.pending) == 0
            far.close()

    def test_stop_listening(self) -> None:
        """Those who are there go on; nobody else comes."""
        with door() as made:
            dialled = dial.dial(f"127.0.0.1:{made.port}", None)
            made.listener.stop_listening()
            with pytest.raises(ConnectionRefusedError):
                made.connect()
            dialled.connection.send_text("still here")
            assert dialled.connection.receive() == "still here"
            end(dialled.connection)


def test_the_recordings_hold_requests() -> None:
    """The conversations that stand for v0.11.0 begin with a request and its answer."""
    for conversation in CONVERSATIONS:
        kinds = [item["kind"] for item in lines(f"wire/{conversation}")]
        assert kinds.count("http") == 2, json.dumps(kinds)
