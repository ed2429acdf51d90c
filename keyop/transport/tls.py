"""A TLS connection on a non-blocking socket: only the greenlet that reads or writes waits."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from cryptography import x509
from gevent.socket import socket
from OpenSSL import SSL

_READ, _WRITE = 1, 2
# What one TLS record holds, so more is never returned at once.
RECORD_BYTES = 16 << 10
# How long a greenlet pauses that wants to wait for what another one waits for already.
_SHARED_WAIT_S = 0.01

# Calls what it is given, which does not wait, when its turn has come.
TakeTurn = Callable[[Callable[[], None]], None]


class TLSError(OSError):
    """The TLS layer refused the other side, or was refused by it."""


class Stream(Protocol):
    """What WebSocket messages travel over: a TLS connection, or a plain one on loopback."""

    def recv(self, size: int) -> bytes:
        """Return up to ``size`` bytes as soon as there are some; nothing at the end."""

    def send(self, data: bytes | memoryview) -> int:
        """Send some of it, as soon as there is room; return how many bytes."""

    def sendall(self, data: bytes) -> None:
        """Send all of it."""

    def close(self) -> None:
        """Close it, also while others wait for it, who get an ``OSError``."""


class TLSSocket:
    """A connection over a connected socket, which it owns from now on.

    One greenlet may read and another one write at the same time; not two of a kind.

    Raises:
        OSError: the socket is closed.
    """

    def __init__(self, context: SSL.Context, plain: socket, server_side: bool) -> None:
        if plain.fileno() < 0:
            raise _closed()
        self._socket = plain
        self._refusals: list[str] = []
        self._ssl = SSL.Connection(context, plain)
        self._ssl.set_app_data(self._refusals)
        if server_side:
            self._ssl.set_accept_state()
        else:
            self._ssl.set_connect_state()
        self._hub = gevent.get_hub()
        loop = self._hub.loop
        self._readable = loop.io(plain.fileno(), _READ)
        self._writable = loop.io(plain.fileno(), _WRITE)
        self._closed = False

    def handshake(self, host: str | None = None, take_turn: TakeTurn | None = None) -> None:
        """Agree on keys and verify each other's certificates.

        Args:
            host: told to the other side, for a server that has several names; an address is not.
            take_turn: called with each step of it; None does them at once.

        Raises:
            TLSError: one side refused the other; the error says which, and why.
            OSError: the connection ended.
        """
        name = _server_name(host) if host is not None else b""
        if name:
            self._ssl.set_tlsext_host_name(name)
        if take_turn is None:
            self._retry(self._ssl.do_handshake)
        else:
            self._retry(take_turn, self._step)

    def _step(self) -> None:
        # It may have been closed while it waited for its turn, and its number be another's by now.
        if self._closed:
            raise _closed()
        self._ssl.do_handshake()

    def peer_certificate(self) -> x509.Certificate:
        """Return the certificate that the other side has shown; it was verified."""
        certificate = self._ssl.get_peer_certificate(as_cryptography=True)
        assert certificate is not None
        return certificate

    def recv(self, size: int) -> bytes:
        """Return up to ``size`` bytes as soon as there are some; nothing at the end.

        Raises:
            OSError: the connection broke, or was closed meanwhile.
        """
        try:
            data: bytes = self._retry(self._ssl.recv, min(size, RECORD_BYTES))
        except SSL.ZeroReturnError:
            return b""
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Send some of it, as soon as there is room; return how many bytes.

        Whoever is stopped while it waits has sent nothing of it; but what is sent next must begin
        with the same bytes.

        Raises:
            OSError: the connection broke, or was closed meanwhile.
        """
        sent: int = self._retry(self._ssl.send, data)
        return sent

    def sendall(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            OSError: the connection broke, or was closed meanwhile; a part may have been sent.
        """
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def _retry(self, call: Any, *args: Any) -> Any:
        while True:
            if self._closed:
                raise _closed()
            try:
                return call(*args)
            except SSL.WantReadError:
                self._wait(self._readable)
            except SSL.WantWriteError:
                self._wait(self._writable)
            except SSL.ZeroReturnError:
                raise
            except SSL.SysCallError as error:
                raise _as_os_error(error) from None
            except SSL.Error as error:
                raise TLSError(self._describe(error)) from None

    def _wait(self, watcher: Any) -> None:
        if self._closed:  # since the call: others run before a turn ends
            raise _closed()
        if watcher.callback is None:
            self._hub.wait(watcher)
        else:
            # Keys that the other side renews make a reader write; the writer may wait as well.
            gevent.sleep(_SHARED_WAIT_S)

    def _describe(self, error: SSL.Error) -> str:
        if self._refusals:
            return f"the other side's certificate was refused: {self._refusals[0]}"
        reasons = [reason for _, _, reason in error.args[0]] if error.args else []
        for reason in reasons:
            if "alert" in reason:
                return f"the other side refused this one's certificate or version: {reason}"
        return "TLS: " + ("; ".join(reasons) or "failed")

    def end(self) -> None:
        """Tell the other side that nothing more comes, without waiting for its answer."""
        try:
            self._ssl.shutdown()
        except SSL.Error:
            pass

    def close(self) -> None:
        """Close it, also while others wait for it, who get an ``OSError``."""
        if self._closed:
            return
        self.end()
        self._closed = True
        for watcher in (self._readable, self._writable):
            self._hub.cancel_wait(watcher, _closed(), True)
        # Behind those, so that the number is not used again while something watches it.
        self._hub.loop.run_callback(self._socket.close)


def _server_name(host: str) -> bytes:
    """Return what is told of a host: neither an address nor a last dot, nor what is no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return b""
    try:
        return host.rstrip(".").encode("idna")
    except UnicodeError:  # an empty label, or one that is too long
        return b""


def _closed() -> OSError:
    return OSError(errno.EBADF, "the connection was closed")


def _as_os_error(error: SSL.SysCallError) -> OSError:
    number = error.args[0] if error.args else -1
    if number == -1:
        return ConnectionResetError(errno.ECONNRESET, "the connection ended without a goodbye")
    return OSError(number, os.strerror(number))
