"""TLS on gevent's sockets: both directions at once, ends of every kind, and what it costs."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket as flags
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket
from OpenSSL import SSL

from keyop.transport.contexts import CLIENT_AUTH, SERVER_AUTH, Credentials
from keyop.transport.tls import RECORD_BYTES, TLSError, TLSSocket

from .certificates import Authority, Files, Issued
from .helpers import small_pair, spawned, tcp_pair, wait_until

LARGE = bytes(range(256)) * 40_000  # 10 MB


@pytest.fixture
def contexts(
    files: Files, authority: Authority, hub: Issued, client: Issued
) -> tuple[SSL.Context, SSL.Context]:
    """A hub's and a client's, which trust each other."""
    return (
        files.load(hub, authority.pem).context(CLIENT_AUTH),
        files.load(client, authority.pem).context(SERVER_AUTH),
    )


@pytest.fixture
def older(
    files: Files, authority: Authority, hub: Issued, client: Issued
) -> tuple[SSL.Context, SSL.Context]:
    """The same with TLS 1.2, which the client cannot go beyond."""
    at_hub = files.load(hub, authority.pem, min_version="1.2").context(CLIENT_AUTH)
    at_client = files.load(client, authority.pem, min_version="1.2").context(SERVER_AUTH)
    at_client.set_max_proto_version(SSL.TLS1_2_VERSION)
    return at_hub, at_client


@contextmanager
def connected(
    contexts: tuple[SSL.Context, SSL.Context],
    sockets: Callable[[], tuple[Any, Any]] = tcp_pair,
) -> Iterator[tuple[TLSSocket, TLSSocket]]:
    """Give the two ends, the hub's first, hands shaken; both are closed at the end."""
    near, far = sockets()
    ends = TLSSocket(contexts[0], near, True), TLSSocket(contexts[1], far, False)
    try:
        gevent.joinall([gevent.spawn(end.handshake) for end in ends], timeout=20, raise_error=True)
        yield ends
    finally:
        for end in ends:
            end.close()


def receive(end: TLSSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = end.recv(1 << 16)
        assert piece, f"{len(data)} of {size} bytes"
        data += piece
    return bytes(data)


class TestHandshake:
    def test_identity(self, contexts: tuple[SSL.Context, SSL.Context], client: Issued) -> None:
        """Each side has the other's certificate, which was verified."""
        with connected(contexts) as (at_hub, at_client):
            assert at_hub.peer_certificate() == client.certificate
            assert at_client.peer_certificate().subject.rfc4514_string() == "CN=hub1"

    @pytest.mark.parametrize("side", [0, 1])
    def test_a_peer_that_says_nothing(
        self, contexts: tuple[SSL.Context, SSL.Context], side: int
    ) -> None:
        """A handshake ends when its owner's patience does, and leaves nothing behind."""
        near, far = tcp_pair()
        end = TLSSocket(contexts[side], near, side == 0)
        with (
            pytest.raises(TimeoutError, match="enough"),
            gevent.Timeout(0.05, TimeoutError("enough")),
        ):
            end.handshake("localhost")
        end.close()
        far.close()

    @pytest.mark.parametrize("side", [0, 1])
    def test_a_peer_that_dribbles(
        self, contexts: tuple[SSL.Context, SSL.Context], side: int
    ) -> None:
        """Bytes that come one by one do not put the deadline off."""
        near, far = tcp_pair()
        end = TLSSocket(contexts[side], near, side == 0)

        def dribble() -> None:
            # The header of a long handshake record, then more and more of it.
            far.sendall(b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb\x03\x03")
            while True:
                far.sendall(b"\0")
                gevent.sleep(0.002)

        with (
            spawned(dribble),
            pytest.raises(TimeoutError),
            gevent.Timeout(0.1, TimeoutError("enough")),
        ):
            end.handshake()
        end.close()
        far.close()

    @pytest.mark.parametrize("side", [0, 1])
    @pytest.mark.parametrize(
        "said", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"HTTP/1.1 400 Bad Request\r\n\r\n"]
    )
    def test_a_peer_that_speaks_something_else(
        self, contexts: tuple[SSL.Context, SSL.Context], side: int, said: bytes
    ) -> None:
        """What is no TLS is an error that says so."""
        near, far = tcp_pair()
        end = TLSSocket(contexts[side], near, side == 0)
        far.sendall(said)
        with pytest.raises(TLSError, match="TLS: "):
            end.handshake()
        end.close()
        far.close()

    @pytest.mark.parametrize("side", [0, 1])
    def test_a_peer_that_goes(self, contexts: tuple[SSL.Context, SSL.Context], side: int) -> None:
        """A connection that ends in the handshake is a lost connection, and no fault of TLS."""
        near, far = tcp_pair()
        end = TLSSocket(contexts[side], near, side == 0)
        far.shutdown(flags.SHUT_WR)
        with pytest.raises(ConnectionResetError, match="without a goodbye"):
            end.handshake()
        end.close()
        far.close()

    def test_a_socket_that_is_closed(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """Nothing can be made of one."""
        near, far = tcp_pair()
        near.close()
        far.close()
        with pytest.raises(OSError, match="closed"):
            TLSSocket(contexts[0], near, True)

    @pytest.mark.parametrize(
        ("host", "told"),
        [
            ("hub.example.org", b"hub.example.org"),
            ("hub.example.org.", b"hub.example.org"),
            ("bücher.example", b"xn--bcher-kva.example"),
            ("127.0.0.1", None),
            ("::1", None),
            ("", None),
            ("a..b", None),
            ("x" * 64 + ".org", None),
            (None, None),
        ],
    )
    def test_the_servers_name(
        self,
        contexts: tuple[SSL.Context, SSL.Context],
        host: str | None,
        told: bytes | None,
    ) -> None:
        """A name is told as RFC 6066 has it: no address, no last dot; what is no name is not."""
        seen = []
        contexts[0].set_tlsext_servername_callback(
            lambda connection: seen.append(connection.get_servername())
        )
        near, far = tcp_pair()
        at_hub, at_client = TLSSocket(contexts[0], near, True), TLSSocket(contexts[1], far, False)
        with spawned(at_hub.handshake) as shaking:
            at_client.handshake(host)
            shaking.get(timeout=10)
        assert seen == [told]
        at_hub.close()
        at_client.close()


class TestTransfer:
    def test_large_data_both_ways_at_once(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """10 MB each way, at the same time, by a greenlet for each direction of each end."""
        with connected(contexts) as ends:
            senders = [gevent.spawn(end.sendall, LARGE) for end in ends]
            receivers = [gevent.spawn(receive, end, len(LARGE)) for end in ends]
            gevent.joinall([*senders, *receivers], timeout=50, raise_error=True)
            assert all(each.value == LARGE for each in receivers)

    def test_in_small_buffers(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """The same where every record has to wait for room."""
        data = LARGE[:1_000_000]
        with connected(contexts, small_pair) as ends:
            senders = [gevent.spawn(end.sendall, data) for end in ends]
            receivers = [gevent.spawn(receive, end, len(data)) for end in ends]
            gevent.joinall([*senders, *receivers], timeout=50, raise_error=True)
            assert all(each.value == data for each in receivers)

    @pytest.mark.parametrize("size", [1, RECORD_BYTES, RECORD_BYTES + 1, 100_000])
    def test_pieces_come_as_they_are(
        self, contexts: tuple[SSL.Context, SSL.Context], size: int
    ) -> None:
        """Some bytes are returned as soon as there are some, never more than was asked for."""
        with connected(contexts) as (at_hub, at_client), spawned(at_hub.sendall, LARGE[:size]):
            got = b""
            while len(got) < size:
                piece = at_client.recv(1000)
                assert 0 < len(piece) <= 1000
                got += piece
            assert got == LARGE[:size]

    def test_nothing(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """Sending nothing sends nothing."""
        with connected(contexts) as (at_hub, at_client):
            at_hub.sendall(b"")
            at_hub.sendall(b"x")
            assert at_client.recv(10) == b"x"

    def test_what_waits_lets_others_run(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """Only the greenlet that reads or writes waits."""
        with (
            connected(contexts, small_pair) as (at_hub, at_client),
            spawned(at_hub.recv, 1) as reading,
            spawned(at_hub.sendall, LARGE) as writing,
        ):
            for _ in range(100):
                gevent.sleep(0)
            assert not reading.dead
            assert not writing.dead
            at_client.sendall(b"!")
            assert reading.get(timeout=10) == b"!"

    def test_a_sender_that_is_stopped(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """``send`` sends what it says, and nothing if it is stopped: the same can be sent again."""
        data = LARGE[:1_000_000]
        with connected(contexts, small_pair) as (at_hub, at_client):
            rest = memoryview(data)
            with spawned(lambda: None):
                while rest:
                    with gevent.Timeout(0.01, False):
                        rest = rest[at_hub.send(rest) :]
                        continue
                    # Full: nothing was sent of it. Make some room.
                    got = receive(at_client, 50_000) if len(rest) == len(data) else b""
                    break
            with spawned(receive, at_client, len(data) - len(got)) as receiving:
                while rest:
                    rest = rest[at_hub.send(rest) :]
                assert got + receiving.get(timeout=20) == data

    def test_two_that_wait_for_the_same(
        self, contexts: tuple[SSL.Context, SSL.Context], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A reader that has to write, as TLS may demand, does not take the writer's wake-up.

        OpenSSL's part is played here: no peer could be made to renew its keys at will.
        """
        with connected(contexts, small_pair) as (at_hub, at_client):
            real, tries = at_hub._ssl, []

            class RenewsKeys:
                def __getattr__(self, name: str) -> Any:
                    return getattr(real, name)

                def recv(self, size: int) -> bytes:
                    tries.append(size)
                    if len(tries) < 4:
                        raise SSL.WantWriteError
                    return b"renewed"

            with spawned(at_hub.sendall, LARGE[:500_000]) as writing:
                wait_until(lambda: at_hub._writable.callback is not None)
                monkeypatch.setattr(at_hub, "_ssl", RenewsKeys())
                with spawned(at_hub.recv, 100) as reading:
                    wait_until(lambda: len(tries) > 1)
                    assert receive(at_client, 500_000) == LARGE[:500_000]
                    writing.get(timeout=10)
                    assert reading.get(timeout=10) == b"renewed"
            monkeypatch.undo()


class TestEnds:
    def test_with_a_goodbye(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """A close is told to the other side: it reads the end, again and again."""
        with connected(contexts) as (at_hub, at_client):
            at_hub.sendall(b"last")
            at_hub.close()
            assert at_client.recv(10) == b"last"
            assert [at_client.recv(10), at_client.recv(10)] == [b"", b""]

    def test_without_a_goodbye(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """An end that TLS was not told of may be somebody else's doing: it is an error."""
        with connected(contexts) as (at_hub, at_client):
            at_hub.sendall(b"last")
            at_hub._socket.shutdown(flags.SHUT_WR)
            assert at_client.recv(10) == b"last"
            for _ in range(2):
                with pytest.raises(OSError, match=r"goodbye|TLS"):
                    at_client.recv(10)

    def test_a_reset(
        self, contexts: tuple[SSL.Context, SSL.Context], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection that breaks is an OSError with the system's number and words."""
        with connected(contexts) as (at_hub, at_client):
            at_hub._socket.setsockopt(flags.SOL_SOCKET, flags.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            monkeypatch.setattr(at_hub, "end", lambda: None)
            at_hub.close()
            with pytest.raises(ConnectionResetError) as raised:
                at_client.recv(10)
            assert (raised.value.errno, raised.value.strerror) == (
                errno.ECONNRESET,
                os.strerror(errno.ECONNRESET),
            )
            with pytest.raises(OSError):
                at_client.sendall(b"x")

    def test_tampered_with(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """Bytes that the other side did not send are an error, and never data."""
        with connected(contexts) as (at_hub, at_client):
            at_hub._socket.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
            with pytest.raises(TLSError):
                at_client.recv(10)

    @pytest.mark.parametrize("what", ["read", "write", "both"])
    def test_closed_while_others_wait(
        self, contexts: tuple[SSL.Context, SSL.Context], what: str
    ) -> None:
        """Whoever waits in it gets an error at once; whoever comes later too."""
        with connected(contexts, small_pair) as (at_hub, _):
            waiting = []
            if what != "write":
                waiting.append(gevent.spawn(at_hub.recv, 1))
            if what != "read":
                waiting.append(gevent.spawn(at_hub.sendall, LARGE))
                wait_until(lambda: at_hub._writable.callback is not None)
            gevent.sleep(0)
            assert not any(each.dead for each in waiting)
            at_hub.close()
            for each in waiting:
                with pytest.raises(OSError, match="closed"):
                    each.get(timeout=10)
            for call in (lambda: at_hub.recv(1), lambda: at_hub.sendall(b"x"), at_hub.handshake):
                with pytest.raises(OSError, match="closed"):
                    call()

    def test_closed_during_the_handshake(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """A stranger that is dropped gets an error as well."""
        near, far = tcp_pair()
        end = TLSSocket(contexts[0], near, True)
        with spawned(end.handshake) as shaking:
            gevent.sleep(0)
            end.close()
            with pytest.raises(OSError, match="closed"):
                shaking.get(timeout=10)
        far.close()

    def test_closed_twice(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """Closing is safe at any time, and the descriptor is given back once."""
        with connected(contexts) as (at_hub, at_client):
            number = at_hub._socket.fileno()
            at_hub.close()
            at_hub.close()
            wait_until(lambda: at_hub._socket.fileno() == -1)
            other = socket.socket()
            at_hub.close()
            assert other.fileno() in (number, other.fileno())
            other.close()
            assert at_client.recv(1) == b""

    def test_closed_by_the_loop(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """A timer may close it, for which nothing may wait."""
        with connected(contexts) as (at_hub, _):
            timer = gevent.get_hub().loop.timer(0.001)
            timer.start(at_hub.close)
            with pytest.raises(OSError, match="closed"):
                at_hub.recv(1)
            timer.close()

    def test_a_reader_that_is_killed(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """It leaves a connection that can be read by another one."""
        with connected(contexts) as (at_hub, at_client):
            with spawned(at_hub.recv, 1):
                gevent.sleep(0)
            at_client.sendall(b"for another")
            assert at_hub.recv(100) == b"for another"


class TestSessions:
    @pytest.mark.parametrize("version", ["1.3", "1.2"])
    def test_none_is_resumed(
        self,
        contexts: tuple[SSL.Context, SSL.Context],
        older: tuple[SSL.Context, SSL.Context],
        version: str,
    ) -> None:
        """A client that comes again, and offers the session that it had, is verified again."""
        pair = contexts if version == "1.3" else older
        with connected(pair) as (at_hub, at_client):
            at_hub.sendall(b"x")  # with which tickets would have come
            at_client.recv(1)
            session = at_client._ssl.get_session()
        assert session is not None
        near, far = tcp_pair()
        at_hub, at_client = TLSSocket(pair[0], near, True), TLSSocket(pair[1], far, False)
        at_client._ssl.set_session(session)
        gevent.joinall([gevent.spawn(end.handshake) for end in (at_hub, at_client)], timeout=10)
        # The certificate was shown, which a resumed session leaves out.
        assert at_hub._ssl.get_protocol_version_name() == f"TLSv{version}"
        assert not SSL._lib.SSL_session_reused(at_client._ssl._ssl)
        assert not SSL._lib.SSL_session_reused(at_hub._ssl._ssl)
        for end in (at_hub, at_client):
            end.close()

    @pytest.mark.parametrize("side", ["hub", "client"])
    def test_none_is_renegotiated(
        self,
        older: tuple[SSL.Context, SSL.Context],
        hub: Issued,
        client: Issued,
        side: str,
    ) -> None:
        """In TLS 1.2, a peer that wants to negotiate anew is refused, and what is there goes on."""
        willing = SSL.Context(SSL.TLS_METHOD)
        willing.set_max_proto_version(SSL.TLS1_2_VERSION)
        mine = hub if side == "hub" else client
        willing.use_certificate(mine.certificate)
        willing.use_privatekey(mine.key)
        if side == "hub":
            willing.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        pair = (willing, older[1]) if side == "hub" else (older[0], willing)
        with connected(pair) as (at_hub, at_client):
            asking, asked = (at_hub, at_client) if side == "hub" else (at_client, at_hub)
            assert asked._ssl.get_protocol_version_name() == "TLSv1.2"
            assert asking._ssl.renegotiate()
            with spawned(asked.recv, 10) as reading:
                with pytest.raises(TLSError, match="no renegotiation"):
                    asking.recv(10)
                asked.sendall(b"goes on")
                assert asked._ssl.total_renegotiations() == 0
                assert not reading.successful()


class TestCost:
    def test_an_idle_connection(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """A connection that was busy and is idle costs less than 100 KiB at each of its ends."""
        count = 150

        def use() -> list[Any]:
            """Open connections and send something large through each."""
            made = []
            for _ in range(count):
                manager = connected(contexts)
                ends = manager.__enter__()
                with spawned(ends[0].sendall, LARGE[:100_000]):
                    receive(ends[1], 100_000)
                made.append(manager)
            return made

        def resident() -> int:
            gc.collect()
            if sys.platform == "linux":
                with open("/proc/self/statm") as file:
                    return int(file.read().split()[1]) * resource.getpagesize()
            pytest.skip("there is no way to tell")

        for manager in use():  # what the first ones cost is kept for others
            manager.__exit__(None, None, None)
        gevent.sleep(0)
        before = resident()
        managers = use()
        cost = (resident() - before) / (2 * count)
        for manager in managers:
            manager.__exit__(None, None, None)
        assert cost < 100 * 1024

    def test_many_handshakes(self, contexts: tuple[SSL.Context, SSL.Context]) -> None:
        """A hundred of them take no more than a few seconds, on the slowest machine."""
        begun = time.monotonic()
        for _ in range(100):
            with connected(contexts):
                pass
        assert time.monotonic() - begun < 20


def test_credentials_make_a_new_context_each_time(
    files: Files, authority: Authority, hub: Issued
) -> None:
    """A context that has made a connection is frozen: a rotation makes another one."""
    credentials: Credentials = files.load(hub, authority.pem)
    assert credentials.context(CLIENT_AUTH) is not credentials.context(CLIENT_AUTH)
