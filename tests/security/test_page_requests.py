"""Requests to the page's listener that two servers would read in two ways, or that never end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from gevent import socket

from keyop import Messenger
from keyop.web import server
from tests.integration.helpers import running, wait_until
from tests.reliability.children import Child
from tests.web.test_listener import Connection, places

from .helpers import MIB, PATIENCE_S

HIDDEN = b"GET /api/v1/hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = "POST /api/v1/logout HTTP/1.1\r\nHost: localhost\r\n"
# What a request may be altogether: a line of 8 KiB, its headers, and a body of 256 KiB.
REQUEST_BYTES = 320 << 10
CONNECTIONS = 40


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Messenger]:
    with running(tmp_path / "data", web={"listen_addr": "127.0.0.1:0"}) as messenger:
        messenger.publish("orders", "t", 1)
        yield messenger


def statuses(messenger: Messenger, data: bytes) -> list[int]:
    """Send something, and then nothing; return the statuses of all that is answered."""
    found = []
    with Connection(messenger) as connection:
        try:
            connection.send(data)
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:  # nor waiting for it
            pass
        try:
            with gevent.Timeout(PATIENCE_S, AssertionError("it does not end")):
                while (line := connection.file.readline()) != b"":
                    if line.startswith(b"HTTP/1.1 "):
                        found.append(int(line.split()[1]))
        except ConnectionResetError:  # it ended without reading all of it
            pass
    return found


# Heads behind which a body of two bytes comes for one reader, and something else for another.
AMBIGUOUS = {
    "two lengths": "Content-Length: 2\r\nContent-Length: {all}\r\n\r\n{{}}",
    "two lengths, the longer first": "Content-Length: {all}\r\nContent-Length: 2\r\n\r\n{{}}",
    "a list of lengths": "Content-Length: 2, 2\r\n\r\n{{}}",
    "a length with a sign": "Content-Length: +2\r\n\r\n{{}}",
    "a length with an underscore": "Content-Length: 0_2\r\n\r\n{{}}",
    "a negative length": "Content-Length: -2\r\n\r\n{{}}",
    "a length in hexadecimal": "Content-Length: 0x2\r\n\r\n{{}}",
    "a blank before the colon": "Content-Length : 2\r\n\r\n{{}}",
    "chunks and a length": (
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    ),
    "chunks of another kind": "Content-Length: 2\r\nTransfer-Encoding: xchunked\r\n\r\n{{}}",
    "chunks, a blank before the colon": (
        "Content-Length: 2\r\nTransfer-Encoding : chunked\r\n\r\n{{}}"
    ),
    "chunks, a tab before the colon": (
        "Content-Length: 2\r\nTransfer-Encoding\t: chunked\r\n\r\n{{}}"
    ),
    "chunks, behind none": (
        "Content-Length: 2\r\nTransfer-Encoding:\r\nTransfer-Encoding: chunked\r\n\r\n{{}}"
    ),
    "chunks, behind no header": (
        "Content-Length: 2\r\nno colon\r\nTransfer-Encoding: chunked\r\n\r\n{{}}"
    ),
    "chunks, behind a bare LF": "Content-Length: 2\nTransfer-Encoding: chunked\r\n\r\n{{}}",
    "chunks, behind a bare CR": "Content-Length: 2\rTransfer-Encoding: chunked\r\n\r\n{{}}",
    "chunks, folded": "Content-Length: 2\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n{{}}",
}


class TestSmuggling:
    """What stands behind a request that can be read in two ways is never read as another one."""

    @pytest.mark.parametrize("kind", AMBIGUOUS)
    def test_by_the_length(self, page: Messenger, kind: str) -> None:
        """It is refused (400, 411), and the connection ends with it."""
        head = AMBIGUOUS[kind].format(all=2 + len(HIDDEN))
        (status,) = statuses(page, (POST + head).encode("latin-1") + HIDDEN)
        assert status in (400, 411)

    def test_by_bare_line_feeds(self, page: Messenger) -> None:
        """A head whose lines all end so is read as one head, or not at all."""
        head = (POST + "Content-Length: 2\r\n\r\n").replace("\r\n", "\n").encode() + b"{}"
        assert statuses(page, head) in ([204], [400])

    def test_by_a_body_that_nobody_wants(self, page: Messenger) -> None:
        """It is passed over as a whole, whatever stands in it."""
        head = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(HIDDEN)}\r\n\r\n"
        assert statuses(page, head.encode() + HIDDEN) == [200]

    @pytest.mark.parametrize(
        "hidden", ["no colon\r\n", "From me\r\n", "X : y\r\n", " folded: x\r\n", "\x01: x\r\n"]
    )
    def test_of_headers(self, page: Messenger, hidden: str) -> None:
        """No line hides the ones behind it, by which a proxy says that others ask."""
        head = "GET /api/v1/overview HTTP/1.1\r\nHost: localhost\r\n" + hidden
        assert statuses(page, f"{head}X-Forwarded-For: 192.0.2.1\r\n\r\n".encode())[0] in (400, 403)

    @pytest.mark.parametrize(
        "hosts",
        ["localhost\r\nHost: evil", "evil\r\nHost: localhost", "x@localhost", "localhost#evil",
         "localhost/evil", "localhost?evil", "localhost evil"],
    )  # fmt: skip
    def test_of_a_host(self, page: Messenger, hosts: str) -> None:
        """There is one host, and it is one: RFC 9112, section 3.2."""
        head = f"GET /api/v1/overview HTTP/1.1\r\nHost: {hosts}\r\n\r\n"
        assert statuses(page, head.encode())[0] in (400, 403)

    def test_in_the_oldest_version(self, page: Messenger) -> None:
        """HTTP/0.9, which has neither headers nor a status, is not spoken."""
        with Connection(page) as connection:
            connection.send(b"GET /api/v1/overview\r\nHost: localhost\r\n\r\n")
            connection.socket.shutdown(socket.SHUT_WR)
            assert b"orders" not in connection.file.read()


class TestSize:
    @pytest.mark.parametrize(
        "sent",
        [
            b"POST /api/v1/login HTTP/1.1\r\nContent-Length: 262145\r\n\r\n",
            b"POST /api/v1/login HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        ],
    )
    def test_of_a_body(self, page: Messenger, sent: bytes) -> None:
        """More than 256 KiB are refused by their length, before one of them is read."""
        assert statuses(page, sent) == [413]

    def test_of_a_first_line(self, page: Messenger) -> None:
        """Nor is a longer one read than is answered."""
        assert statuses(page, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n") == [414]

    @pytest.mark.parametrize(
        "header", [b"X: " + b"y" * 60_000 + b"\r\n", b"X: y\r\n", b"X: \r\n" + b" y\r\n" * 9000]
    )
    def test_of_headers(self, page: Messenger, header: bytes) -> None:
        """However they are made, headers of a megabyte are refused."""
        head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        count = min(200, MIB // len(header))
        assert statuses(page, head + header * count + b"\r\n") in ([400], [431], [])

    def test_in_memory(self, tmp_path: Path) -> None:
        """Whoever reaches the listener, without a token, has it hold no more than a request is."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        web = {"listen_addr": f"127.0.0.1:{port}", "token": "a-token"}
        settings = {"name": "page", "storage": {"data_dir": str(tmp_path / "data")}, "web": web}
        with Child("instance", tmp_path, settings=settings) as child, ExitStack() as leaving:
            child.wait_spoken()
            before = resident(child)
            for _ in range(CONNECTIONS):
                stream = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
                leaving.callback(stream.close)
                stream.settimeout(0.2)
                try:
                    stream.sendall(b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 60_000 + b"\r\n") * 95)
                except OSError:  # it has had enough
                    pass
            assert resident(child) - before < 8 * MIB + CONNECTIONS * REQUEST_BYTES


def resident(child: Child) -> int:
    status = Path(f"/proc/{child.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


class TestTime:
    @pytest.mark.parametrize(
        "sent",
        [b"", b"G", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"],
    )
    def test_of_a_request(
        self, page: Messenger, monkeypatch: pytest.MonkeyPatch, sent: bytes
    ) -> None:
        """Who sends it byte by byte is cut off, and others are answered meanwhile."""
        monkeypatch.setattr(server, "REQUEST_S", 0.5)
        monkeypatch.setattr(server, "IDLE_S", 0.5)

        def drip() -> None:
            try:
                while sent:
                    slow.send(b"a")
                    gevent.sleep(0.02)
            except OSError:
                pass

        with Connection(page) as slow, Connection(page) as good:
            slow.send(sent)
            dripping = gevent.spawn(drip)
            assert good.ask("/healthz")[0] == 200
            assert slow.ended()
            dripping.join(PATIENCE_S)
            assert dripping.ready()
        wait_until(lambda: places(page) == 0, PATIENCE_S)
