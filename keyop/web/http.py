"""Requests and responses: the little of HTTP that the page's application needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import gevent
import orjson

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

MAX_BODY_BYTES = 256 << 10
# Whoever takes longer to send one is not waited for.
_BODY_S = 10.0
# A server that gives each piece its time gets a large body through a slow line.
_PIECE_BYTES = 64 << 10
_REASONS = {
    200: "OK",
    204: "No Content",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}
# Nothing is loaded from elsewhere, nobody frames it, nothing stays in a cache.
_ALWAYS = (
    ("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


class HTTPError(Exception):
    """The request is answered with this status and one sentence that says why."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class Response:
    """What is sent. A body of bytes is sent whole, any other piece by piece."""

    body: bytes | Iterable[bytes] = b""
    content_type: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def send(self, start_response: StartResponse, head_only: bool = False) -> Iterable[bytes]:
        """Send the head; return the body, as WSGI wants it, or none."""
        headers = [*_ALWAYS, *self.headers.items()]
        if self.status != 204:
            headers.append(("Content-Type", self.content_type))
            if isinstance(self.body, bytes):
                headers.append(("Content-Length", str(len(self.body))))
        start_response(f"{self.status} {_REASONS[self.status]}", headers)
        if not isinstance(self.body, bytes):
            return self.body
        if head_only:
            return []
        return [
            self.body[begin : begin + _PIECE_BYTES]
            for begin in range(0, len(self.body), _PIECE_BYTES)
        ]


def json_response(value: object) -> Response:
    """Return a response of JSON."""
    return Response(orjson.dumps(value))


def printable(text: str) -> str:
    """Return a text that JSON can hold: what in a path is no UTF-8 is shown escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_response(error: HTTPError) -> Response:
    """Return a response that says what is wrong."""
    body = orjson.dumps({"error": printable(str(error))})
    return Response(body, status=error.status, headers=error.headers)


class Request:
    """One request, as WSGI tells of it."""

    def __init__(self, environ: Environ) -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        # WSGI has the bytes of the path as Latin-1.
        path: str = environ.get("PATH_INFO", "")
        self.path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        self._query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)

    def header(self, name: str) -> str:
        """Return a header's value; empty if it was not sent."""
        value: str = self.environ.get("HTTP_" + name.upper().replace("-", "_"), "")
        return value

    def all(self, name: str) -> list[str]:
        """Return every value of a query parameter."""
        return self._query.get(name, [])

    def one(self, name: str, default: str = "") -> str:
        """Return the value of a query parameter, the last if it is repeated."""
        values: list[str] = self._query.get(name, [default])
        return values[-1]

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a query parameter that is a whole number; what is above ``most`` becomes that.

        Raises:
            HTTPError: it is none, or below ``least``.
        """
        text = self.one(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) < least:
            raise HTTPError(400, f"{name}={text!r} must be a whole number from {least} on")
        return min(int(text), most)

    def json(self) -> dict[str, Any]:
        """Return the body, a JSON object.

        Raises:
            HTTPError: it is none, or too large, or does not come.
        """
        kind = self.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPError(415, "the body must be sent as Content-Type: application/json")
        length = self.environ.get("CONTENT_LENGTH", "")
        if not (length.isascii() and length.isdigit()):
            raise HTTPError(411, "the body must be sent with its Content-Length")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise HTTPError(413, f"the body may have at most {MAX_BODY_BYTES} bytes")
        try:
            with gevent.Timeout(_BODY_S, HTTPError(408, "the body came too slowly")):
                sent = self.environ["wsgi.input"].read(int(length))
            body = orjson.loads(sent)
        except OSError as error:  # the client has gone, or sends what is no body
            raise HTTPError(400, f"the body could not be read: {error}") from None
        except orjson.JSONDecodeError as error:
            raise HTTPError(400, f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise HTTPError(400, "the body must be a JSON object")
        return body
