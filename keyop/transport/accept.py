"""The hub's side: a listener that makes strangers into open WebSocket connections."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import gevent
from cryptography import x509
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer
from gevent.socket import socket
from geventwebsocket.handler import WebSocketHandler
from OpenSSL import SSL

from keyop.config_rules import join_address, split_address
from keyop.transport.dial import (
    MAX_STRANGER_BYTES,
    UPGRADE_S,
    UpgradeError,
    accept_key,
)
from keyop.transport.identity import CertificateError
from keyop.transport.reader import EndOfStreamError
from keyop.transport.strangers import Pending, Stranger, Turns
from keyop.transport.tls import TLSError
from keyop.transport.websocket import Connection

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_MAX_LINE_BYTES = 8 << 10
# 16 bytes in base64: RFC 6455, section 4.1.
_KEY = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")


class Accepted:
    """A connection that was upgraded, before its hello.

    Attributes:
        peer: the identity in its certificate, empty without TLS.
        certificate: that certificate.
        address: where it comes from, ``host:port``.
    """

    def __init__(
        self,
        connection: Connection,
        peer: str,
        certificate: x509.Certificate | None,
        address: str,
        leave: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.peer = peer
        self.certificate = certificate
        self.address = address
        self._leave = leave

    def known(self, max_message_bytes: int) -> None:
        """Its hello was accepted: it is no stranger any more, and may send more."""
        self._leave()
        self.connection.trust(max_message_bytes)


class Listener(WSGIServer):
    """Accepts connections and hands each, upgraded, to ``serve(accepted)`` in a greenlet.

    Args:
        context: returns the TLS context for the next connection, or None for plain ones.
        serve: owns the connection, and returns when it has ended; it must not raise.
        refused: told the address of who was refused before that, and why.
        max_pending: how many strangers may be here at once.
    """

    def __init__(
        self,
        address: str,
        context: Callable[[], SSL.Context | None],
        serve: Callable[[Accepted], None],
        refused: Callable[[str, str], None],
        max_pending: int,
    ) -> None:
        host, port = split_address(address)
        super().__init__(
            (host, port),
            _not_websocket,
            backlog=_BACKLOG,
            spawn=Pool(),
            log=None,
            error_log=None,
            handler_class=_Handler,
            # Otherwise gevent asks the domain name service for it, and waits.
            environ={"SERVER_NAME": host},
        )
        # That of gevent-websocket.
        self.logger = logger
        self.pending = Pending(max_pending)
        self.turns = Turns()
        self._context = context
        self._serve = serve
        self._refused = refused
        self._served: dict[gevent.Greenlet[..., None], Stranger] = {}
        self._ended = False

    def handle(self, client_socket: socket, address: Any) -> None:
        """Make a stranger into a WebSocket connection, and hand that over."""
        where = join_address(*address[:2])
        stranger = Stranger(self.pending, self.turns, client_socket, where)
        try:
            if self._ended:
                return
            stranger.shake_hands(self._context())
            handler = _Handler(stranger.stream, address, self, stranger.reader)
            handler.stranger = stranger
            handler.handle()
        except (OSError, CertificateError) as error:
            if stranger.has_spoken:
                self._refused(where, str(error))
            if isinstance(error, TLSError):
                stranger.hear_out()
        finally:
            if not stranger.handed_over:
                stranger.end()

    def do_close(self, *args: Any) -> None:
        """Nothing to do when a connection was handled: it has an owner by then, or has ended."""

    def adopt(self, stranger: Stranger, connection: Connection) -> None:
        """Serve a connection in a greenlet of its own, which is all that an idle one costs."""
        stranger.handed_over = True
        accepted = Accepted(
            connection, stranger.peer, stranger.certificate, stranger.where, stranger.leave
        )
        greenlet = gevent.spawn(self._run, stranger, accepted)
        greenlet.name = f"keyop-hub-link-{stranger.where}"
        self._served[greenlet] = stranger
        greenlet.rawlink(self._served.pop)

    def _run(self, stranger: Stranger, accepted: Accepted) -> None:
        try:
            self._serve(accepted)
        finally:
            stranger.end()

    def stop_listening(self) -> None:
        """Take no more connections; those that are there go on."""
        self.close()

    def end(self, timeout_s: float) -> None:
        """Drop strangers, wait for the other connections to end, then kill what is left."""
        self._ended = True
        self.close()
        self.pending.drop()
        gevent.joinall(list(self._served), timeout=timeout_s)
        left = dict(self._served)
        gevent.killall(list(left), block=False)
        for stranger in left.values():
            stranger.end()  # or they would wait for a goodbye
        gevent.joinall(list(left), timeout=1.0)
        self.stop(timeout=0.1)


def _not_websocket(environ: Any, start_response: Any) -> list[bytes]:
    start_response(
        "426 Upgrade Required",
        [("Connection", "close"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
    )
    return [b"keyop speaks WebSocket here\n"]


def _tokens(header: str | None) -> list[str]:
    return [each.strip().lower() for each in (header or "").split(",")]


class _Handler(WebSocketHandler):  # type: ignore[misc] # gevent-websocket has no annotations
    """Upgrades one request, then hands the connection over; any other request ends it."""

    SUPPORTED_VERSIONS = ("13",)
    stranger: Stranger

    def handle(self) -> None:
        """Read one request, in time.

        Raises:
            OSError: it is none that makes a WebSocket connection; it was answered if it could be.
        """
        with gevent.Timeout(UPGRADE_S, TimeoutError("no upgrade in time")):
            # Here, because pywsgi passes over what goes wrong with it.
            self._line = self.rfile.readline(_MAX_LINE_BYTES)
            if not self._line:
                raise EndOfStreamError("the connection ended before a request")
            answer = self.handle_one_request()
            status = self._orig_status
            if isinstance(answer, tuple):  # a status, and all that is to be sent
                status, response = answer
                self.socket.sendall(response)
        if not self.stranger.handed_over:
            raise UpgradeError(f"no WebSocket request; answered with {status}")

    def read_requestline(self) -> str:
        """Return the request's first line."""
        line: bytes = self._line
        return line.decode("latin-1")

    def upgrade_websocket(self) -> Any:
        """Say whether a request is one for a WebSocket connection, and answer one that should be.

        Source: RFC 6455, section 4.2.1.
        """
        environ = self.environ
        if not (
            environ["REQUEST_METHOD"] == "GET"
            and self.request_version == "HTTP/1.1"
            and "websocket" in _tokens(environ.get("HTTP_UPGRADE"))
            and "upgrade" in _tokens(environ.get("HTTP_CONNECTION"))
            and environ.get("HTTP_SEC_WEBSOCKET_VERSION") == "13"
        ):
            return None  # which _not_websocket answers
        if _KEY.fullmatch(environ.get("HTTP_SEC_WEBSOCKET_KEY", "")) is None:
            self.start_response("400 Bad Request", [("Connection", "close")])
            return [b"Sec-WebSocket-Key is not 16 bytes in base64\n"]
        self.websocket: Any = Connection(self.socket, self.rfile, False, MAX_STRANGER_BYTES)
        environ["wsgi.websocket"] = self.websocket
        self.start_response(
            "101 Switching Protocols",
            [
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Sec-WebSocket-Accept", accept_key(environ["HTTP_SEC_WEBSOCKET_KEY"])),
            ],
        )
        return None

    def run_websocket(self) -> None:
        """Hand the connection over."""
        self.server.adopt(self.stranger, self.websocket)

    # What strangers do wrong is no error of ours: nothing of it is printed.

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        if isinstance(ex, OSError):  # gone, too slow, or too much
            raise ex
        answer: tuple[str, bytes] = super()._handle_client_error(ValueError(str(ex)))
        return answer

    def handle_error(self, kind: Any, error: BaseException, traceback: Any) -> None:
        """Let whoever handles the connection see it."""
        raise error
