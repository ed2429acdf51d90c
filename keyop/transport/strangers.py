"""Connections whose other side has not said who it is: few, for a short time, and none too dear."""

from __future__ import annotations

import socket as flags
from collections.abc import Callable

import gevent
from cryptography import x509
from gevent.lock import BoundedSemaphore
from gevent.socket import socket
from OpenSSL import SSL

from keyop.transport.dial import HANDSHAKE_S, MAX_STRANGER_BYTES
from keyop.transport.identity import common_name
from keyop.transport.reader import EndOfStreamError, StreamReader
from keyop.transport.tls import Stream, TLSSocket

# How long somebody who was refused is heard out.
_HEAR_OUT_S = 1.0
# The loop looks at sockets before a timer of any length is up; before a callback it does not.
_BETWEEN_S = 1e-6


class Pending:
    """The places of strangers. When all are taken, who has waited longest makes room."""

    def __init__(self, places: int) -> None:
        self._places = places
        # In the order in which they came.
        self._streams: dict[int, Stream] = {}
        self._next = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._streams)

    def enter(self, stream: Stream) -> int:
        """Take a place, from somebody else if need be; return its number."""
        if len(self._streams) >= self._places:
            oldest = next(iter(self._streams))
            self.dropped += 1
            self._streams.pop(oldest).close()
        self._next += 1
        self._streams[self._next] = stream
        return self._next

    def replace(self, place: int, stream: Stream) -> None:
        """The same stranger, on another layer."""
        if place in self._streams:
            self._streams[place] = stream

    def leave(self, place: int) -> None:
        """Give the place back; nothing to do if it was taken away."""
        self._streams.pop(place, None)

    def drop(self) -> None:
        """End all that are here."""
        while self._streams:
            self._streams.popitem()[1].close()


class Turns:
    """Handshakes, the dearest thing that strangers can ask for, go one step after another.

    Between two steps everybody else runs once: whoever is known waits for one of them at most,
    however many strangers come at once.
    """

    def __init__(self) -> None:
        self._turn = BoundedSemaphore(1)

    def take(self, step: Callable[[], None]) -> None:
        """Do a step of a handshake, which must not wait, when it is its turn."""
        with self._turn:
            try:
                step()
            finally:
                gevent.sleep(_BETWEEN_S)


class Stranger:
    """A connection whose other side has not said who it is."""

    def __init__(self, pending: Pending, turns: Turns, plain: socket, where: str) -> None:
        self._pending = pending
        self._turns = turns
        self._plain = plain
        self.where = where
        self.stream: Stream = plain
        self._place = self._pending.enter(plain)
        self.reader = StreamReader(plain, MAX_STRANGER_BYTES)
        self.peer = ""
        self.certificate: x509.Certificate | None = None
        self.has_spoken = False
        self.handed_over = False

    def shake_hands(self, context: SSL.Context | None) -> None:
        """Verify each other, where TLS is used.

        Raises:
            OSError, CertificateError: one side refused the other, or took too long.
        """
        self._plain.setsockopt(flags.IPPROTO_TCP, flags.TCP_NODELAY, 1)
        with gevent.Timeout(HANDSHAKE_S, TimeoutError("no TLS handshake in time")):
            # Who only looks whether somebody listens is not worth a word, nor the cost of TLS.
            self.has_spoken = bool(self._plain.recv(1, flags.MSG_PEEK))
            if not self.has_spoken:
                raise EndOfStreamError("the connection ended without a word")
            if context is None:
                return
            self.stream = secured = TLSSocket(context, self._plain, server_side=True)
            self._pending.replace(self._place, secured)
            secured.handshake(take_turn=self._turns.take)
        self.certificate = secured.peer_certificate()
        self.peer = common_name(self.certificate)
        self.reader = StreamReader(secured, MAX_STRANGER_BYTES)

    def hear_out(self) -> None:
        """Read what it still sends: closed over that, the connection would be reset.

        In TLS 1.3 it has sent its request before it learns that it was refused, and a reset
        overtakes the reason.
        """
        left = MAX_STRANGER_BYTES
        try:
            with gevent.Timeout(_HEAR_OUT_S, TimeoutError()):
                self._plain.shutdown(flags.SHUT_WR)
                while left > 0 and (data := self._plain.recv(left)):
                    left -= len(data)
        except OSError:  # it has gone, or goes on and on
            pass

    def leave(self) -> None:
        """It is no stranger any more."""
        self._pending.leave(self._place)

    def end(self) -> None:
        """Close the connection and give its place back."""
        self.leave()
        self.stream.close()
