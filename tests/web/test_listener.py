"""keyop's own listener: who may hold it up, who takes over from it, how it begins and ends."""

from __future__ import annotations

import gc
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import socket as cooperative

from keyop import ConfigError, Messenger
from keyop.storage import standby
from keyop.web import api, http, server
from tests.integration.helpers import Worker, config, running, wait_until

SOON = 20.0
LOOPBACK = {"listen_addr": "127.0.0.1:0"}
STANDBY = """
    m = Messenger(Config.from_dict({
        "storage": {"data_dir": data_dir}, "web": {"listen_addr": "127.0.0.1:" + sys.argv[2]}}))
    m.start()
    say("started")
    while not m.web_addr:
        gevent.sleep(0.01)
    say("serves", m.web_addr)
    gevent.sleep(60)
"""


@pytest.fixture
def messenger(tmp_path: Path) -> Iterator[Messenger]:
    with running(tmp_path / "data", web=LOOPBACK) as messenger:
        messenger.publish("orders", "t", 1)
        yield messenger


class Connection:
    """A connection to the page, whose other end runs in this process too."""

    def __init__(self, messenger: Messenger) -> None:
        host, _, port = messenger.web_addr.rpartition(":")
        self.socket = cooperative.create_connection((host, int(port)), SOON)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> Connection:
        self.socket.sendall(data)
        return self

    def ask(self, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> Any:
        """Ask, and return the status and the body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)
        return self.read_answer(method != "HEAD")

    def read_answer(self, has_body: bool = True) -> tuple[int, bytes]:
        status, headers = self.read_head()
        length = int(headers.get("content-length", 0))
        return status, self.file.read(length) if has_body else b""

    def read_head(self) -> tuple[int, dict[str, str]]:
        line = self.file.readline().split()
        assert line, "the connection ended without an answer"
        headers = {}
        while (header := self.file.readline().decode("latin-1").rstrip()) != "":
            name, _, value = header.partition(": ")
            headers[name.lower()] = value
        return int(line[1]), headers

    def ended(self) -> bool:
        """Wait for the end; tell whether it came."""
        try:
            while self.file.read(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def places(messenger: Messenger) -> int:
    """Return how many connections there are."""
    assert messenger._web is not None
    assert messenger._web._server is not None
    return len(messenger._web._server._places)


class TestServing:
    def test_one_connection_for_many_requests(self, messenger: Messenger) -> None:
        with Connection(messenger) as connection:
            for path in ("/", "/healthz", "/api/v1/overview", "/nothing", "/metrics"):
                status, body = connection.ask(path)
                assert status == (404 if path == "/nothing" else 200)
                assert body
            assert connection.ask("/", method="HEAD") == (200, b"")
            status, body = connection.ask("/api/v1/channels/%6frders/messages")
            assert json.loads(body)["channel"] == "orders"
            assert places(messenger) == 1
        wait_until(lambda: places(messenger) == 0, SOON, "the connection to end")

    def test_a_body(self, messenger: Messenger) -> None:
        """Also one that waits to be asked for, and one that comes behind another."""
        path = "/api/v1/channels/orders/dead-letters/purge"
        body = b'{"all":true}'
        headers = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        with Connection(messenger) as connection:
            for _ in range(2):
                answer = connection.ask(path, *headers, method="POST", body=body)
                assert answer == (200, b'{"purged":0}')
            status, _ = connection.ask(path, *headers, "Expect: 100-continue", method="POST")
            assert status == 100
            assert connection.send(body).read_answer() == (200, b'{"purged":0}')

    def test_a_client_of_another_name(self, messenger: Messenger) -> None:
        """The rules of the page hold here: no token, so no other name than this machine's."""
        with Connection(messenger) as connection:
            connection.send(b"GET /api/v1/overview HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert connection.read_answer()[0] == 403
            connection.send(b"GET /api/v1/overview HTTP/1.0\r\n\r\n")
            assert connection.read_answer()[0] == 403

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
            (b"GET / HTTP/9.9\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 411),
            (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        ],
    )
    def test_no_proper_request(
        self,
        messenger: Messenger,
        request_bytes: bytes,
        status: int,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is answered and ends; nothing is printed, and no log is filled by strangers."""
        with Connection(messenger) as connection:
            assert connection.send(request_bytes).read_head()[0] == status
            assert connection.ended()
        wait_until(lambda: places(messenger) == 0, SOON, "the connection to end")
        assert capfd.readouterr().err == ""
        assert [each for each in caplog.records if each.name.startswith("keyop.web")] == []

    def test_an_answer_that_nobody_reads(
        self, messenger: Messenger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is given up, with its connection."""
        monkeypatch.setattr(server, "IDLE_S", 0.5)
        for _ in range(4):
            messenger.publish("orders", "t", "x" * 900_000)
        with Connection(messenger) as connection:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            ask = b"GET /api/v1/channels/orders/messages HTTP/1.1\r\nHost: localhost\r\n\r\n"
            assert connection.ask("/healthz")[0] == 200
            connection.send(ask * 20)
            wait_until(lambda: places(messenger) == 0, SOON, "the connection to end")


class TestSlowClients:
    @pytest.mark.parametrize(
        "sent",
        [
            b"G",
            b"GET / HTTP/1.1\r\nHost: loc",
            b"POST /api/v1/login HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
        ],
    )
    def test_a_request_that_does_not_end(
        self, messenger: Messenger, monkeypatch: pytest.MonkeyPatch, sent: bytes
    ) -> None:
        """However often a byte of it comes, it has so much time in all."""
        monkeypatch.setattr(server, "REQUEST_S", 0.3)

        def drip() -> None:
            try:
                while True:
                    gevent.sleep(0.05)
                    connection.send(b"a")
            except OSError:  # at last
                pass

        with Connection(messenger) as connection:
            connection.send(sent)
            dripping = gevent.spawn(drip)
            assert connection.ended()
            wait_until(lambda: places(messenger) == 0, SOON, "the connection to end")
            dripping.join(SOON)
            assert dripping.ready()

    def test_one_that_says_nothing(
        self, messenger: Messenger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "IDLE_S", 0.5)
        with Connection(messenger) as silent, Connection(messenger) as kept:
            assert kept.ask("/healthz")[0] == 200
            assert silent.ended()
            assert kept.ended()

    def test_many_keep_nobody_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When all places are taken, who has asked for nothing the longest gives his up."""
        monkeypatch.setattr(server, "MAX_CONNECTIONS", 8)
        with running(tmp_path / "data", web=LOOPBACK) as messenger, ExitStack() as stack:
            messenger.start()
            silent = [stack.enter_context(Connection(messenger)) for _ in range(20)]
            for each in silent[::2]:
                each.send(b"GET / HT")
            with Connection(messenger) as good:
                for _ in range(3):
                    assert good.ask("/healthz")[0] == 200
            assert all(each.ended() for each in silent[:12])
            assert places(messenger) <= 8


class TestStreams:
    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api, "_HEARTBEAT_S", 0.02)

    def follow(self, messenger: Messenger) -> Connection:
        connection = Connection(messenger)
        connection.send(b"GET /api/v1/channels/orders/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.read_head()[0] == 200
        return connection

    def test_a_client_that_goes(self, messenger: Messenger, tmp_path: Path) -> None:
        """Its place, descriptors and watch are given back, although nothing is published."""
        self.follow(messenger).close()  # the first one opens what is kept
        wait_until(lambda: places(messenger) == 0, SOON)
        before = open_files()
        followers = [self.follow(messenger) for _ in range(5)]
        assert messenger._store is not None
        readers = messenger._store.log("orders").readers
        assert len(readers.events) == 5
        for each in followers:
            each.close()
        wait_until(lambda: places(messenger) == 0, SOON, "the streams to end")
        assert not readers.events
        gc.collect()
        assert open_files() - before == set()

    def test_the_messenger_closes(self, messenger: Messenger) -> None:
        """Streams end with it, and so does a connection that waits for a request."""
        with self.follow(messenger) as follower, Connection(messenger) as idle:
            assert idle.ask("/healthz")[0] == 200
            messenger.close()
            assert follower.file.read().endswith(b"0\r\n\r\n")
            assert idle.ended()

    def test_one_that_does_not_end(
        self, messenger: Messenger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is waited for no longer than there is time."""

        def overview(*_: object) -> None:
            gevent.sleep(60)

        monkeypatch.setattr(api.Api, "overview", overview)
        with Connection(messenger) as connection:
            connection.send(b"GET /api/v1/overview HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(lambda: places(messenger) == 1, SOON)
            messenger.close(timeout=2)
            assert connection.ended()


class TestBeginning:
    def test_off(self, tmp_path: Path) -> None:
        with running(tmp_path / "data") as messenger:
            messenger.start()
            assert messenger.web_addr == ""
        assert not (tmp_path / "data" / ".web.lock").exists()

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
    def test_where(self, tmp_path: Path, host: str) -> None:
        if host == "[::1]" and not _has_ipv6():
            pytest.skip("this machine has no IPv6 loopback")
        with running(tmp_path / "data", web={"listen_addr": f"{host}:0"}) as messenger:
            messenger.start()
            address, _, port = messenger.web_addr.rpartition(":")
            assert int(port) > 0
            with cooperative.create_connection((address.strip("[]"), int(port)), SOON) as client:
                client.sendall(f"GET /healthz HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                assert client.recv(100).startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize("address", [":0", "0.0.0.0:0", "[::]:0", "203.0.113.7:0", "a.b:0"])
    def test_beyond_this_machine_only_with_a_token(self, tmp_path: Path, address: str) -> None:
        with pytest.raises(ConfigError, match=r"web\.token"):
            config(tmp_path, web={"listen_addr": address})
        config(tmp_path, web={"listen_addr": address, "token": "s3cret"})

    def test_a_port_in_use(self, tmp_path: Path) -> None:
        """One clear error, and nothing is left: with the port free, the same messenger starts."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            messenger = Messenger(
                config(tmp_path / "data", web={"listen_addr": f"127.0.0.1:{port}"})
            )
            before = open_files()
            for _ in range(2):
                with pytest.raises(ConfigError) as caught:
                    messenger.start()
                assert str(caught.value) == (
                    "configuration: "
                    f"web.listen_addr: cannot listen on 127.0.0.1:{port}: Address already in use"
                )
            assert messenger.web_addr == ""
            assert open_files() - before == set()
        messenger.start()
        assert messenger.web_addr == f"127.0.0.1:{port}"
        messenger.close()
        with socket.create_server(("127.0.0.1", port)):
            pass


class TestSeveralProcesses:
    def test_the_second_takes_over(self, tmp_path: Path) -> None:
        """The first is killed, and the page is there again, at the same address."""
        data_dir = tmp_path / "data"
        port = _free_port()
        with Worker(STANDBY, data_dir, port) as first:
            first.wait_line("serves", SOON)
            with Worker(STANDBY, data_dir, port) as second:
                second.wait_line("started", SOON)
                assert "serves" not in " ".join(second.lines)
                assert _status(port) == 200
                first.kill()
                killed = time.monotonic()
                wait_until(lambda: _status(port) == 200, SOON, "the page")
                took_s = time.monotonic() - killed
                second.wait_line("serves", SOON)
        # Half a second, as a rule; more than this is no takeover.
        assert took_s < 8

    def test_standing_by_and_closing(self, tmp_path: Path) -> None:
        """Whoever stands by serves nothing, and ends at once."""
        with running(tmp_path / "data", web=LOOPBACK) as first:
            first.start()
            with running(tmp_path / "data", web=LOOPBACK) as second:
                second.start()
                assert second.web_addr == ""
                assert first.web_addr
            with running(tmp_path / "data", web=LOOPBACK) as third:
                third.start()
                first.close()
                wait_until(lambda: third.web_addr, SOON, "the page")
                with Connection(third) as connection:
                    assert connection.ask("/healthz")[0] == 200

    def test_a_takeover_that_fails(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is tried again, and told now and then."""
        monkeypatch.setattr(standby, "_POLL_S", 0.01)
        with running(tmp_path / "data", web=LOOPBACK) as first, ExitStack() as stack:
            first.start()
            other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"127.0.0.1:{other.getsockname()[1]}"
            second = stack.enter_context(running(tmp_path / "data", web={"listen_addr": address}))
            second.start()
            first.close()
            wait_until(lambda: len(caplog.records) >= 3, SOON, "complaints")
            assert all("tried again" in each.getMessage() for each in caplog.records)
            assert "Address already in use" in caplog.text
            other.close()
            wait_until(lambda: second.web_addr == address, SOON, "the page")
            # Of n failures, those are told that are powers of two.
            assert len(caplog.records) < 12

    def test_a_child_has_nothing_of_it(self, messenger: Messenger) -> None:
        """A forked one holds neither the address nor a connection."""
        with Connection(messenger) as connection:
            assert connection.ask("/healthz")[0] == 200
            address = messenger.web_addr
            before = len(_sockets())
            pid = gevent.fork()
            if pid == 0:
                # The listener and its end of the connection go; this test's own end stays.
                good = _soon(lambda: len(_sockets()) == before - 2)
                os._exit(0 if good and messenger.web_addr == "" and messenger.closing else 1)
            assert _exit_code(pid) == 0
            assert messenger.web_addr == address
            assert connection.ask("/healthz")[0] == 200

    def test_a_child_says_nothing(
        self, messenger: Messenger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was under way when it was forked is answered once, by its parent."""
        go = gevent.event.Event()

        def overview(*_: object) -> http.Response:
            go.wait()
            return http.json_response("once")

        monkeypatch.setattr(api.Api, "overview", overview)
        with Connection(messenger) as asking, Connection(messenger) as following:
            asking.send(b"GET /api/v1/overview HTTP/1.1\r\nHost: localhost\r\n\r\n")
            events = b"GET /api/v1/channels/orders/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
            following.send(events)
            assert following.read_head()[0] == 200
            wait_until(lambda: places(messenger) == 2, SOON)
            before = len(_sockets())
            pid = gevent.fork()
            if pid == 0:
                go.set()
                os._exit(0 if _soon(lambda: len(_sockets()) == before - 3) else 1)
            assert _exit_code(pid) == 0
            go.set()
            assert asking.read_answer() == (200, b'"once"')
            messenger.publish("orders", "t", "follows")
            messenger.close()
            assert following.file.read().count(b'"payload":"follows"') == 1
            assert asking.file.read() == b""


def _soon(condition: Callable[[], bool]) -> bool:
    """Tell whether something comes true, in a child, which must not raise."""
    deadline = time.monotonic() + SOON
    try:
        while not condition():
            if time.monotonic() > deadline:
                return False
            gevent.sleep(0.01)
    except Exception:  # whatever it is: the child must not go on with the tests
        traceback.print_exc()
        return False
    return True


def _exit_code(pid: int) -> int:
    _, status = gevent.os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def open_files() -> set[str]:
    """Return what the descriptors of this process lead to."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that listed
            continue
    return found


def _sockets() -> list[str]:
    """Return the descriptors of this process that are sockets, but for pairs of the runtime's."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(fd))
        except OSError:  # the one that listed
            continue
        try:
            with socket.socket(fileno=copy) as made:
                if made.family in (socket.AF_INET, socket.AF_INET6):
                    found.append(fd)
        except OSError:  # no socket
            os.close(copy)
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _status(port: int) -> int | None:
    """Return how the page's health is answered; None if nobody answers."""
    try:
        with cooperative.create_connection(("127.0.0.1", port), SOON) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return int(client.recv(100).split()[1])
    except (OSError, IndexError):
        return None


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_limits_fit_together() -> None:
    """A body that the page takes is one that the listener lets through."""
    assert server.MAX_BODY_BYTES == http.MAX_BODY_BYTES
