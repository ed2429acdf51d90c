"""Requests and responses: methods, heads, bodies, names, files. Whatever is sent is answered."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import gevent
import pytest

from keyop import ForkedError, LogFailedError, Messenger
from keyop.errors import WrongThreadError
from keyop.web import app, http
from tests.fakes.faulty import FaultyFs
from tests.integration.helpers import running

from .client import Client

REQUEUE = "/api/v1/channels/orders/dead-letters/requeue"
LOOKS = ["/", "/page.js", "/healthz", "/metrics", "/api/v1/overview", "/api/v1/history"] + [
    f"/api/v1/channels/orders/{what}" for what in ("messages", "dead-letters")
]


@pytest.fixture
def messenger(tmp_path: Path) -> Iterator[Messenger]:
    with running(tmp_path / "data") as messenger:
        messenger.publish("orders", "t", 1)
        yield messenger


@pytest.fixture
def client(messenger: Messenger) -> Client:
    return Client(messenger)


class TestAnswers:
    @pytest.mark.parametrize("path", [*LOOKS, "/nothing", "/api/v1/channels/a/messages"])
    def test_headers(self, client: Client, path: str) -> None:
        """Of errors too: nothing from elsewhere, no frames, no guessing, no caches."""
        answer = client.get(path)
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert int(answer.headers["Content-Length"]) == len(answer.body)

    @pytest.mark.parametrize("path", LOOKS)
    def test_head(self, client: Client, path: str) -> None:
        """As with GET, without the body."""
        answer, full = client.request("HEAD", path), client.get(path)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers.keys() == full.headers.keys()
        assert int(answer.headers["Content-Length"]) > 0

    def test_head_of_a_stream(self, client: Client) -> None:
        """Ends, and reads nothing."""
        answer = client.request("HEAD", "/api/v1/channels/orders/events")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["Content-Type"].startswith("text/event-stream")

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "X"])
    def test_what_can_only_be_looked_at(self, client: Client, method: str) -> None:
        for path in LOOKS:
            answer = client.request(method, path)
            assert answer.status == 405, path
            assert answer.headers["Allow"] == "GET, HEAD"

    def test_large_ones_come_in_pieces(self, messenger: Messenger, client: Client) -> None:
        """So that a slow line has its time for each."""
        messenger.publish("orders", "t", "x" * 300_000)
        answer = client.get("/api/v1/channels/orders/messages")
        pieces = list(answer.pieces)
        assert len(pieces) > 4
        assert sum(map(len, pieces)) == int(answer.headers["Content-Length"])

    def test_as_wsgi_wants_it(self, messenger: Messenger) -> None:
        """By the rules of PEP 3333."""
        application = validator(app(messenger))
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/api/v1/overview",
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        begun: list[str] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            begun.append(status)
            return lambda data: None

        result = application(environ, start_response)
        assert b"".join(result)
        result.close()
        assert begun == ["200 OK"]

    def test_a_fault_of_our_own(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Is logged, and tells a stranger nothing of what it was."""

        def fail(*_: object) -> None:
            raise RuntimeError("inside")

        monkeypatch.setattr("keyop.web.api.find_troubles", fail)
        with caplog.at_level(logging.ERROR, "keyop.web"):
            answer = client.get("/api/v1/overview")
        assert answer.status == 500
        assert "inside" not in answer.error
        assert "RuntimeError: inside" in caplog.text


class TestMounted:
    def test_below_a_path(self, client: Client) -> None:
        """The page's addresses are relative, so its own must end in a slash."""
        answer = client.get("", SCRIPT_NAME="/ops/keyop")
        assert (answer.status, answer.headers["Location"]) == (308, "/ops/keyop/")
        answer = client.get("/", SCRIPT_NAME="/ops/keyop")
        assert answer.status == 200
        assert b'="/' not in answer.body
        assert client.get("/api/v1/overview", SCRIPT_NAME="/ops/keyop").status == 200


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("page.js", "text/javascript"),
            ("page.css", "text/css"),
            ("icon.svg", "image/svg+xml"),
            ("index.html", "text/html"),
            ("uPlot.iife.min.js", "text/javascript"),
        ],
    )
    def test_are_there(self, client: Client, name: str, kind: str) -> None:
        for path in (f"/{name}", f"/static/{name}"):
            answer = client.get(path)
            assert answer.status == 200
            assert answer.headers["Content-Type"].split(";")[0] == kind

    @pytest.mark.parametrize(
        "path",
        [
            "/static/../api.py",
            "/static/%2e%2e/api.py",
            "/../http.py",
            "/static/..%2fapi.js",
            "/static//etc/passwd",
            "/static/a/b.js",
            "/static/.hidden.js",
            "/static/page.js%00",
            "/static/page.js%0a",
            "/static/%5c..%5cpage.js",
            "/static/api.py",
            "/static/",
            "/static/nothing.js",
            "/static/uPlot-LICENSE",
            "//page.js",
            "/static/" + "a" * 300 + ".js",
        ],
    )
    def test_and_no_others(self, client: Client, path: str) -> None:
        answer = client.get(path)
        assert answer.status == 404
        assert answer.error


class TestBodies:
    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"null", b'"all"', b"\xff", b'{"all":true}x', b"[" * 5000]
    )
    def test_no_object(self, client: Client, body: bytes) -> None:
        answer = client.request("POST", REQUEUE, body=body)
        assert answer.status == 400
        assert "JSON" in answer.error

    @pytest.mark.parametrize("length", [str(http.MAX_BODY_BYTES + 1), "9" * 9, "9" * 5000])
    def test_too_large(self, client: Client, length: str) -> None:
        """It is not read at all."""
        answer = client.request("POST", REQUEUE, body=b"{}", CONTENT_LENGTH=length, **UNREADABLE)
        assert answer.status == 413
        assert str(http.MAX_BODY_BYTES) in answer.error

    @pytest.mark.parametrize("length", ["", "-1", "1.5", "\xb2", "x", " 2"])
    def test_of_unknown_length(self, client: Client, length: str) -> None:
        """As when it is chunked."""
        answer = client.request("POST", REQUEUE, body=b"{}", CONTENT_LENGTH=length, **UNREADABLE)
        assert answer.status == 411

    def test_the_largest(self, client: Client) -> None:
        body = b'{"ids":["none"],"x":"' + b"x" * (http.MAX_BODY_BYTES - 23) + b'"}'
        assert len(body) == http.MAX_BODY_BYTES
        assert client.request("POST", REQUEUE, body=body).status == 409

    def test_that_does_not_come(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "_BODY_S", 0.01)

        class Silent:
            def read(self, size: int) -> bytes:
                gevent.sleep(30)
                return b"{}"

        answer = client.request("POST", REQUEUE, body=b"{}", **{"wsgi.input": Silent()})
        assert answer.status == 408

    def test_that_breaks_off(self, client: Client) -> None:
        class Broken:
            def read(self, size: int) -> bytes:
                raise OSError("unexpected end of file")

        answer = client.request("POST", REQUEUE, body=b"{}", **{"wsgi.input": Broken()})
        assert answer.status == 400
        assert "unexpected end" in answer.error


class _Unreadable:
    def read(self, size: int) -> bytes:
        raise AssertionError("it was read")


UNREADABLE: dict[str, Any] = {"wsgi.input": _Unreadable()}


class TestNames:
    @pytest.mark.parametrize(
        "name", ["%2e%2e", "..", "a%20b", "%00", "%ff", "caf%c3%a9", "a%0ab", "a" * 256, ".", "%7f"]
    )
    @pytest.mark.parametrize("what", ["messages", "events", "dead-letters"])
    def test_no_channel_has_such_a_name(self, client: Client, name: str, what: str) -> None:
        answer = client.get(f"/api/v1/channels/{name}/{what}")
        assert answer.status == 400
        assert "channel" in answer.error

    @pytest.mark.parametrize("path", ["a%2f..%2fb/messages", "/messages", "a/b/messages"])
    def test_no_channel_is_named_here(self, client: Client, path: str) -> None:
        assert client.get(f"/api/v1/channels/{path}").status == 404

    @pytest.mark.parametrize("what", ["messages", "events", "dead-letters"])
    def test_a_channel_that_is_not_there(self, client: Client, tmp_path: Path, what: str) -> None:
        """Looking makes none."""
        answer = client.get(f"/api/v1/channels/other/{what}")
        assert answer.status == 404
        assert "'other'" in answer.error
        assert os.listdir(tmp_path / "data" / "channels") == ["orders"]

    def test_percent_encoded(self, client: Client) -> None:
        assert client.read("channels/%6f%72ders/messages")["channel"] == "orders"


class TestUnusable:
    def test_not_started(self, tmp_path: Path) -> None:
        """Making the application does nothing; the first request starts the messenger."""
        messenger = Messenger(data_dir=tmp_path / "data")
        client = Client(messenger)
        assert not (tmp_path / "data").exists()
        assert client.get("/").status == 200
        assert not (tmp_path / "data").exists()
        assert client.read("overview")["channels"] == []
        messenger.close()

    def test_closed(self, messenger: Messenger, client: Client) -> None:
        assert client.get("/api/v1/overview").status == 200
        messenger.close()
        for path in [*LOOKS[3:], "/api/v1/channels/orders/events"]:
            answer = client.get(path)
            assert (answer.status, answer.error) == (503, "the messenger is closed"), path
        assert client.post(REQUEUE, {"all": True}).status == 503
        assert client.get("/").status == 200

    @pytest.mark.parametrize("error", [ForkedError, WrongThreadError])
    def test_of_another_process_or_thread(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        def refuse(_: Messenger) -> None:
            raise error("it is another one's")

        monkeypatch.setattr(Messenger, "start", refuse)
        assert client.get("/api/v1/overview").status == 503

    def test_a_directory_that_cannot_be_used(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("a file")
        client = Client(Messenger(data_dir=tmp_path / "data"))
        answer = client.get("/api/v1/overview")
        assert answer.status == 503
        assert str(tmp_path / "data") in answer.error
        assert client.get("/healthz").status == 503

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        """A path may have any bytes; they are shown escaped."""
        with running(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))) as messenger:
            assert Client(messenger).read("overview")["data_dir"].endswith("/\\udcff")


class TestHealth:
    def test_well(self, client: Client) -> None:
        assert client.get("/healthz").json == {"live": True, "ready": True}

    def test_a_failed_log(self, tmp_path: Path) -> None:
        """Not ready; those who may look at the page are told why."""
        fs = FaultyFs()
        data_dir = tmp_path / "data"
        always = {"sync_policy": "always"}
        with running(data_dir, storage=always, seams={"fs": fs}) as messenger:
            messenger.publish("orders", "t", 0)
            for operation in ("fdatasync", "fsync"):
                fs.fail(operation, errno.EIO, path_contains=".jsonl")
            with pytest.raises(LogFailedError):
                messenger.publish("orders", "t", 1)
            fs.heal()
            answer = Client(messenger).get("/healthz")
            assert answer.status == 503
            assert answer.json == {
                "live": True,
                "ready": False,
                "why": "logs have failed: orders",
            }
            stranger = Client(messenger, "token").get("/healthz")
            assert (stranger.status, stranger.json) == (503, {"live": True, "ready": False})

    def test_closed(self, messenger: Messenger, client: Client) -> None:
        messenger.close()
        answer = client.get("/healthz")
        assert (answer.status, answer.json["why"]) == (503, "the messenger is closed")
