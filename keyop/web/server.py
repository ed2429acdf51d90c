"""gevent's WSGI server, for an address that strangers may reach: nobody is waited for too long."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.pywsgi import Input, WSGIHandler, WSGIServer

from keyop.web.http import MAX_BODY_BYTES

logger = logging.getLogger(__name__)

# An operator's page has a few readers; each that follows a channel keeps one.
MAX_CONNECTIONS = 256
# A connection on which nothing comes, or nothing can be sent, ends after that.
IDLE_S = 30.0
# All headers of a request together.
MAX_HEAD_BYTES = 32 << 10
_LENGTH = re.compile("[0-9]{1,100}")
# A name without blanks, and a value on one line: anything else, others may read otherwise.
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\0\r\n]*\r?\n")
# So long a request may take to arrive, from its first byte to its last.
REQUEST_S = 10.0


class _RefusedError(ValueError):
    """The request is not answered by the application; ``status`` says why."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class _Handler(WSGIHandler):
    """One connection. A request is there as a whole before the application sees it."""

    server: Server

    def handle(self) -> None:
        """Answer requests until the connection ends."""
        self.socket.settimeout(IDLE_S)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # else a host that has vanished keeps its place
            option = socket.TCP_USER_TIMEOUT
            self.socket.setsockopt(socket.IPPROTO_TCP, option, int(2000 * IDLE_S))
        super().handle()

    def handle_one_request(self) -> Any:
        """Answer a request; as gevent's, but for the time that it may take to arrive."""
        self._deadline = gevent.Timeout(REQUEST_S, _RefusedError("408 Request Timeout"))
        try:
            return super().handle_one_request()
        except _RefusedError:  # not even its first line came
            return None
        finally:
            self._deadline.close()
            self.server.waiting.pop(self, None)

    def read_requestline(self) -> str:
        """Return the first line; empty when the connection ends."""
        self.server.make_room()
        self.server.waiting[self] = None
        if self.server.ended or not self.rfile.peek(1):
            return ""
        self._deadline.start()
        line: str = super().read_requestline()
        return line

    def MessageClass(self, rfile: Any, *_: object) -> Any:
        """Read the headers, so many bytes of them, and none that others may read otherwise.

        Source: RFC 9112, sections 3.2, 5.1, 5.2 and 6.3.
        """
        lines: list[bytes] = []
        left = MAX_HEAD_BYTES
        while not lines or lines[-1] not in (b"\r\n", b"\n", b""):
            lines.append(rfile.readline(left + 1))
            left -= len(lines[-1])
            if left < 0:
                raise _RefusedError("431 Request Header Fields Too Large")
        if not all(map(_FIELD.fullmatch, lines[:-1])):
            raise _RefusedError("400 Bad Request")
        # gevent's takes a file and a number that it does not use.
        headers: Any = super().MessageClass(BytesIO(b"".join(lines)), 0)  # type: ignore[call-arg]
        if len(headers.get_all("Host", [])) > 1:
            raise _RefusedError("400 Bad Request")
        if "Transfer-Encoding" in headers:
            raise _RefusedError("411 Length Required")
        lengths = headers.get_all("Content-Length", [])
        if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            raise _RefusedError("400 Bad Request")
        return headers

    def read_request(self, raw_requestline: str) -> Any:
        """Read the head, and the body behind it."""
        if not super().read_request(raw_requestline):
            return False
        if self.request_version == "HTTP/0.9":
            raise _RefusedError("400 Bad Request")
        length = self.content_length or 0
        if length > MAX_BODY_BYTES:
            raise _RefusedError("413 Content Too Large")
        asks = self.headers.get("Expect", "").lower() == "100-continue"
        self._body = Input(self.rfile, length, self.socket if asks else None).read()
        self._deadline.close()
        del self.server.waiting[self]
        return True

    def get_environ(self) -> dict[str, Any]:
        """Return the environment, with the body that was read."""
        environ: dict[str, Any] = super().get_environ()
        body: Any = BytesIO(self._body)
        self.wsgi_input = environ["wsgi.input"] = Input(body, len(self._body))
        return environ

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """Answer that it failed; but a forked child, whose handlers are killed, has no say."""
        if self.server.is_forked:
            self.close_connection = True
        else:
            super().handle_error(t, v, tb)

    def _handle_client_error(self, ex: BaseException) -> tuple[str, bytes]:
        """Return what is sent to a client that sends no proper request; that is not our trouble."""
        logger.debug("%s: %s", self.client_address, ex)
        status = ex.status if isinstance(ex, _RefusedError) else "400 Bad Request"
        head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        return status, head.encode()


class Server(WSGIServer):
    """Serves an application from ``start`` to ``end``."""

    def __init__(
        self, address: tuple[str, int], application: Callable[..., Iterable[bytes]]
    ) -> None:
        self._places = Pool(MAX_CONNECTIONS)
        super().__init__(
            address,
            application,
            spawn=self._places,
            log=None,
            error_log=logger,
            handler_class=_Handler,
            # Otherwise gevent asks the domain name service for it, and waits.
            environ={"SERVER_NAME": address[0]},
        )
        # Connections whose next request is not there yet, the one that has waited longest first.
        self.waiting: dict[_Handler, None] = {}
        self.ended = False
        self.is_forked = False

    def make_room(self) -> None:
        """See to it that one more can connect, at the cost of who asks for nothing."""
        if self._places.full() and self.waiting:
            _hang_up(next(iter(self.waiting)))

    def end(self, timeout_s: float) -> None:
        """Take no more requests; those that are there have so long to be answered."""
        self.ended = True
        self.close()
        for each in list(self.waiting):
            _hang_up(each)
        self.stop(timeout=timeout_s)

    def drop_in_child(self) -> None:
        """In a forked child: close everything, and say nothing to anybody."""
        self.ended = self.is_forked = True
        self.close()
        self._places.kill(block=False)


def _hang_up(handler: _Handler) -> None:
    try:
        handler.socket.shutdown(socket.SHUT_RDWR)  # it reads an end, and ends
    except OSError:  # it has ended already
        pass
