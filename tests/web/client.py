"""The page's application, called as a WSGI server does; no sockets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes, urlencode

from keyop import Messenger
from keyop.web import app


@dataclass
class Answer:
    """A response. ``pieces`` is the body, not read yet."""

    status: int
    headers: dict[str, str]
    pieces: Iterable[bytes]

    @property
    def body(self) -> bytes:
        if not isinstance(self.pieces, bytes):
            self.pieces = b"".join(self.pieces)
        return self.pieces

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence that says what is wrong, which is all there is."""
        (text,) = [self.json.pop("error")]
        return str(text)


class Client:
    """Asks an application; by default as a program of this machine does that is trusted.

    ``environ`` is what every request has besides.
    """

    def __init__(self, messenger: Messenger, token: str | None = "", **environ: Any) -> None:
        self.application = app(messenger, token)
        self.environ = environ

    def request(
        self,
        method: str,
        path: str,
        query: Any = (),
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        **environ: Any,
    ) -> Answer:
        """Ask. ``path`` may be percent-encoded; ``query`` is text, or pairs."""
        asked: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query if isinstance(query, str) else urlencode(query),
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost:8080",
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body or b""),
        }
        if body is not None:
            asked["CONTENT_LENGTH"] = str(len(body))
            asked["CONTENT_TYPE"] = "application/json"
        asked |= {
            "HTTP_" + name.upper().replace("-", "_"): value
            for name, value in (headers or {}).items()
        }
        asked |= self.environ | environ
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        pieces = self.application(asked, lambda *head: begun.append(head))
        ((status, sent),) = begun
        names = [name for name, _ in sent]
        assert len(names) == len(set(names)), f"a header is sent twice: {names}"
        return Answer(int(status.split()[0]), dict(sent), pieces)

    def get(self, path: str, query: Any = (), **more: Any) -> Answer:
        return self.request("GET", path, query, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        return self.request("POST", path, body=json.dumps(body).encode(), **more)

    def read(self, path: str, query: Any = ()) -> Any:
        """Return the JSON of an answer that must be a good one."""
        answer = self.get("/api/v1/" + path, query)
        assert answer.status == 200, answer.body
        return answer.json

    def change(self, path: str, body: Any) -> Any:
        answer = self.post("/api/v1/" + path, body)
        assert answer.status == 200, answer.body
        return answer.json
