"""The operator's page: who is admitted, and what of messages reaches a browser."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keyop import Config, ConfigError, Messenger
from keyop.web import guard
from tests.cli.conftest import logging_restored
from tests.cli.helpers import keyop
from tests.integration.helpers import Recorder, running
from tests.web.test_listener import Connection

__all__ = ["logging_restored"]  # a fixture that each test here uses

TOKEN = "a-token-that-nobody-guesses"
READS = [
    "/api/v1/overview",
    "/api/v1/history",
    "/api/v1/channels/orders/messages",
    "/api/v1/channels/orders/events",
    "/api/v1/channels/orders/dead-letters",
    "/metrics",
    "/api/v1/nothing",
]
CHANGES = [
    "/api/v1/channels/orders/dead-letters/requeue",
    "/api/v1/channels/orders/dead-letters/purge",
    "/api/v1/login",
    "/api/v1/logout",
]
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Messenger]:
    """The page with a token, at every address."""
    web = {"listen_addr": "0.0.0.0:0", "token": TOKEN}
    with running(tmp_path / "data", web=web) as messenger:
        messenger.publish("orders", "t", 1)
        yield messenger


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Messenger]:
    """The page without a token, on this machine alone; one message has failed."""

    def fail(_: object) -> None:
        raise ValueError(SCRIPT)

    with running(tmp_path / "data", web={"listen_addr": "127.0.0.1:0"}) as messenger:
        seen = Recorder()
        messenger.subscribe("orders.dead-letter", "seen", seen)
        messenger.subscribe("orders", "billing", fail, max_retries=0)
        messenger.publish("orders", SCRIPT, {SCRIPT: SCRIPT}, correlation_id=SCRIPT)
        seen.wait(1)
        yield messenger


class Asked:
    """An answer: its status, its headers, its body."""

    def __init__(
        self, messenger: Messenger, path: str, *headers: str, method: str = "GET", body: Any = None
    ) -> None:
        sent = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", *headers, "Connection: close"]
        if not any(each.startswith("Host:") for each in headers):
            lines.append("Host: localhost")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(sent)}"]
        with Connection(messenger) as connection:
            connection.send("\r\n".join([*lines, "", ""]).encode() + sent)
            self.status, self.headers = connection.read_head()
            self.body = connection.file.read(int(self.headers.get("content-length", 0)))


def change(messenger: Messenger, path: str, *headers: str, **body: Any) -> Asked:
    return Asked(messenger, path, *headers, method="POST", body=body)


class TestToken:
    @pytest.mark.parametrize("address", ["0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:80", "hub:80"])
    def test_is_required_beyond_loopback(self, address: str) -> None:
        """There is no page for others without one."""
        with pytest.raises(ConfigError, match="token"):
            Config.from_dict({"storage": {"data_dir": "x"}, "web": {"listen_addr": address}})

    @pytest.mark.parametrize("path", READS)
    def test_is_asked_for(self, guarded: Messenger, path: str) -> None:
        """Whatever is asked, and whatever comes in its place: on this machine too."""
        for header in (
            "X: y", "Authorization: Bearer", f"Authorization: Bearer {TOKEN[:-1]}",
            f"Authorization: Bearer {TOKEN}x", f"Authorization: Basic {TOKEN}",
            "Cookie: keyop=x", "X-Forwarded-For: 127.0.0.1",
        ):  # fmt: skip
            assert Asked(guarded, path, header).status == 401, header
        assert Asked(guarded, f"{path}?token={TOKEN}&access_token={TOKEN}").status == 401
        if "events" not in path:
            good = Asked(guarded, path, f"Authorization: Bearer {TOKEN}").status
            assert good == (404 if path.endswith("nothing") else 200)

    def test_is_compared_in_constant_time(
        self, guarded: Messenger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each comparison, of the token and of the cookie, is one of ``hmac.compare_digest``."""
        compared: list[tuple[bytes, bytes]] = []
        monkeypatch.setattr(
            guard.hmac, "compare_digest", lambda *both: compared.append(both) or False
        )
        name, _ = cookie(change(guarded, "/api/v1/logout"))
        assert Asked(guarded, READS[0], f"Authorization: Bearer {TOKEN}").status == 401
        assert Asked(guarded, READS[0], f"Cookie: {name}=guess").status == 401
        assert change(guarded, "/api/v1/login", token=TOKEN).status == 401
        assert [each[0] for each in compared] == [TOKEN.encode(), b"guess", TOKEN.encode()]

    def test_is_nowhere_to_be_read(
        self, guarded: Messenger, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        """In no log line, no answer, no cookie, no address, and in no text of the configuration."""
        with caplog.at_level(logging.DEBUG):
            answers = [
                change(guarded, "/api/v1/login", token=TOKEN),
                change(guarded, "/api/v1/login", token=TOKEN + "x"),
                Asked(guarded, f"/{TOKEN}?token={TOKEN}"),
                *(Asked(guarded, path, f"Authorization: Bearer {TOKEN}") for path in READS[:3]),
                Asked(guarded, "/", f"Authorization: Bearer {TOKEN}"),
            ]
        assert [each.status for each in answers] == [204, 401, 401, 200, 200, 200, 200]
        for each in answers:
            assert TOKEN not in json.dumps(each.headers)
            assert TOKEN.encode() not in each.body
        assert not [each for each in caplog.records if TOKEN in each.getMessage()]
        assert TOKEN not in repr(guarded.config)
        with pytest.raises(ConfigError) as raised:
            Config.from_dict({"storage": {"data_dir": "x"}, "web": {"token": TOKEN + " "}})
        assert TOKEN not in str(raised.value)
        file = tmp_path / "keyop.yaml"
        file.write_text(f"storage: {{data_dir: x, oops: 1}}\nweb: {{token: {TOKEN}}}\n")
        result = keyop("config", "check", file)
        assert result.status == 1
        assert TOKEN not in result.out + result.err


def cookie(answer: Asked) -> tuple[str, str]:
    name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
    return name, value


def test_cookie(guarded: Messenger) -> None:
    """No script reads it, no other site sends it, and it is not the token."""
    answer = change(guarded, "/api/v1/login", token=TOKEN)
    flags = {each.strip() for each in answer.headers["set-cookie"].split(";")[1:]}
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= flags
    name, value = cookie(answer)
    assert Asked(guarded, READS[0], f"Cookie: {name}={value}").status == 200
    # It changes nothing from another page, even where a browser would send it.
    evil = (f"Cookie: {name}={value}", "Origin: https://evil.example")
    assert change(guarded, CHANGES[0], *evil, all=True).status == 403


class TestThisMachine:
    @pytest.mark.parametrize("path", CHANGES)
    @pytest.mark.parametrize(
        "header",
        [
            "Origin: https://evil.example", "Origin: null", "Origin: http://localhost.evil.example",
            "Origin: http://localhost:1", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site",
        ],
    )  # fmt: skip
    def test_changes_nothing_for_another_page(
        self, local: Messenger, path: str, header: str
    ) -> None:
        """What another page has a browser send is refused, and nothing is done."""
        assert change(local, path, header, all=True).status == 403
        shown = json.loads(Asked(local, "/api/v1/channels/orders/dead-letters").body)
        assert shown["count"] == 1

    @pytest.mark.parametrize("path", CHANGES)
    def test_changes_nothing_for_a_form(self, local: Messenger, path: str) -> None:
        """What a browser sends to any site without asking, by an old one without an origin."""
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
            assert Asked(local, path, method=method).status == 405, method
        if not path.endswith("logout"):  # which takes no body, and a cookie alone
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                with Connection(local) as connection:
                    headers = (f"Content-Type: {kind}", "Content-Length: 12")
                    status, _ = connection.ask(path, *headers, method="POST", body=b'{"all":true}')
                    assert status == 415, kind

    @pytest.mark.parametrize("path", [*READS[:3], "/metrics"])
    def test_by_no_name_of_others(self, local: Messenger, path: str) -> None:
        """A name of somebody else's that leads here (DNS rebinding) shows nothing."""
        for host in (
            "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "",
            "0.0.0.0", "192.0.2.1", "localhost, evil.example",
        ):  # fmt: skip
            assert Asked(local, path, f"Host: {host}").status == 403, host
        assert Asked(local, path, "Host: localhost").status == 200

    @pytest.mark.parametrize(
        "header", ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 proxy"]
    )
    def test_is_no_proxy(self, local: Messenger, header: str) -> None:
        """Who asks through a proxy on this machine is not on this machine."""
        assert Asked(local, READS[0], header).status == 403


MARKUP = f"/{SCRIPT}".replace(" ", "%20")
PAGES = ["/", "/page.js", "/static/page.css", "/healthz", MARKUP, "/x/../y"]


@pytest.mark.parametrize("path", [*PAGES, *READS[:3], "/metrics"])
def test_headers(local: Messenger, path: str) -> None:
    """With every answer, errors too: no script of others, no frame, no guessing, no cache."""
    answer = Asked(local, path)
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
    assert "unsafe" not in str(policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", [*READS[:3], READS[4], MARKUP])
def test_messages_are_no_markup(local: Messenger, path: str) -> None:
    """Whatever a message holds goes out as JSON, which no browser takes for a page."""
    answer = Asked(local, path)
    assert answer.headers["content-type"] == "application/json"
    json.loads(answer.body)
