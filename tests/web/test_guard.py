"""Who is admitted: tokens and cookies, this machine, other people's pages and names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keyop import Messenger
from keyop.web import app, guard
from tests.integration.helpers import running

from .client import Answer, Client

TOKEN = 's3cret~!"\\;,token'
OVERVIEW = "/api/v1/overview"
PURGE = "/api/v1/channels/orders/dead-letters/purge"


@pytest.fixture
def messenger(tmp_path: Path) -> Iterator[Messenger]:
    with running(tmp_path / "data") as messenger:
        messenger.publish("orders", "t", 1)
        yield messenger


@pytest.fixture
def client(messenger: Messenger) -> Client:
    """One that has the page with a token, from another host."""
    return Client(messenger, TOKEN, REMOTE_ADDR="203.0.113.7", HTTP_HOST="keyop.example")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def cookie_of(answer: Answer) -> str:
    assert answer.status == 204
    return answer.headers["Set-Cookie"].partition(";")[0]


class TestToken:
    def test_bearer(self, client: Client) -> None:
        assert client.get(OVERVIEW, headers=bearer(TOKEN)).status == 200
        assert client.get(OVERVIEW, headers={"Authorization": f"bearer  {TOKEN} "}).status == 200

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer ÿþ",
        ],
    )
    def test_a_wrong_one(self, client: Client, header: str) -> None:
        answer = client.get(OVERVIEW, headers={"Authorization": header})
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "token" in answer.error

    @pytest.mark.parametrize(
        "path",
        [
            OVERVIEW,
            "/metrics",
            "/api/v1/history",
            "/api/v1/channels/orders/messages",
            "/api/v1/channels/orders/events",
            "/api/v1/channels/orders/dead-letters",
            "/nothing",
        ],
    )
    def test_nothing_is_told_without(self, client: Client, path: str) -> None:
        """Not even whether there is a channel of that name."""
        assert client.get(path).status == client.get(path.replace("orders", "x")).status == 401

    def test_what_is_there_to_log_in(self, client: Client) -> None:
        """The page itself, which holds no data, and the health."""
        for path in ("/", "/page.js", "/static/page.css", "/healthz"):
            assert client.get(path).status == 200, path

    def test_compared_in_constant_time(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every comparison with a secret goes through the one that tells nothing."""
        compared: list[bytes] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append(one)
            return False

        monkeypatch.setattr(guard.hmac, "compare_digest", compare)
        name = cookie_name(client)
        assert client.get(OVERVIEW, headers=bearer(TOKEN)).status == 401
        assert client.get(OVERVIEW, headers={"Cookie": f"{name}=a"}).status == 401
        assert client.post("/api/v1/login", {"token": TOKEN}).status == 401
        assert compared == [TOKEN.encode(), b"a", TOKEN.encode()]

    def test_that_of_the_configuration(self, tmp_path: Path) -> None:
        with running(tmp_path / "data", web={"token": TOKEN}) as messenger:
            client = Client(messenger, None)
            assert client.get(OVERVIEW).status == 401
            assert client.get(OVERVIEW, headers=bearer(TOKEN)).status == 200


def cookie_name(client: Client) -> str:
    return client.post("/api/v1/logout", {}).headers["Set-Cookie"].partition("=")[0]


class TestCookie:
    def test_log_in_and_out(self, client: Client) -> None:
        answer = client.post("/api/v1/login", {"token": TOKEN})
        cookie = cookie_of(answer)
        assert answer.headers["Set-Cookie"].endswith(
            "; Path=/; Max-Age=604800; HttpOnly; SameSite=Strict"
        )
        assert TOKEN not in cookie
        assert answer.body == b""
        assert client.get(OVERVIEW, headers={"Cookie": cookie}).status == 200
        out = client.post("/api/v1/logout", {})
        assert "; Max-Age=0;" in out.headers["Set-Cookie"]
        assert client.get(OVERVIEW, headers={"Cookie": cookie_of(out)}).status == 401

    def test_among_those_of_others(self, client: Client) -> None:
        """Other programs of the same host set cookies that are none; ours is found all the same."""
        cookie = cookie_of(client.post("/api/v1/login", {"token": TOKEN}))
        for others in (
            'a={"b": [1, 2]}; {cookie}',
            "{cookie}; \xff\x00",
            "=; ;;{cookie}",
            "{cookie}",
        ):
            header = others.replace("{cookie}", cookie)
            assert client.get(OVERVIEW, headers={"Cookie": header}).status == 200, header

    def test_one_for_each_instance(self, messenger: Messenger) -> None:
        """Ports of one host share their cookies: logging in to one logs nobody out of another."""
        cookies = []
        for token in ("one", "other"):
            client = Client(messenger, token)
            cookies.append(cookie_of(client.post("/api/v1/login", {"token": token})))
        assert cookies[0].partition("=")[0] != cookies[1].partition("=")[0]
        for token in ("one", "other"):
            answer = Client(messenger, token).get(OVERVIEW, headers={"Cookie": "; ".join(cookies)})
            assert answer.status == 200

    @pytest.mark.parametrize("body", [{}, {"token": "wrong"}, {"token": None}, {"token": [TOKEN]}])
    def test_a_wrong_token(self, client: Client, body: object) -> None:
        answer = client.post("/api/v1/login", body)
        assert answer.status == 401
        assert "Set-Cookie" not in answer.headers

    def test_nothing_to_log_in_to(self, messenger: Messenger) -> None:
        """Without a token, the empty one gives no cookie."""
        assert Client(messenger, "").post("/api/v1/login", {"token": ""}).status == 401

    def test_below_a_path_and_behind_tls(self, client: Client) -> None:
        answer = client.post(
            "/api/v1/login",
            {"token": TOKEN},
            SCRIPT_NAME="/ops/k\xc3\xa4;op",
            **{"wsgi.url_scheme": "https"},
        )
        assert "; Path=/ops/k%C3%A4%3Bop; " in answer.headers["Set-Cookie"]
        assert answer.headers["Set-Cookie"].endswith("; Secure")


class TestThisMachine:
    """Without a token."""

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:80", "[::1]:8080"])
    def test_is_admitted(self, messenger: Messenger, address: str, host: str) -> None:
        client = Client(messenger, "", REMOTE_ADDR=address, HTTP_HOST=host)
        assert client.get(OVERVIEW).status == 200

    @pytest.mark.parametrize("address", ["203.0.113.7", "::2", "0.0.0.0", "localhost", "", "x"])
    def test_others_are_not(self, messenger: Messenger, address: str) -> None:
        """Neither those who are not known, as behind a Unix socket."""
        answer = Client(messenger, "", REMOTE_ADDR=address).get(OVERVIEW)
        assert answer.status == 403
        assert "web.token" in answer.error

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "",
            "[::1",
            "0",
            "localhost@evil.example",
            "evil.example#localhost",
            "2130706433",
        ],
    )
    def test_names_of_others_do_not_lead_here(self, messenger: Messenger, host: str) -> None:
        """A page of somebody else's, whose name was made to mean this machine, sees nothing."""
        for path in (OVERVIEW, "/metrics"):
            assert Client(messenger, "", HTTP_HOST=host).get(path).status == 403

    @pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
    def test_proxies_are_not_this_machine(self, messenger: Messenger, name: str) -> None:
        """Whatever they say: a stranger could say that he is this machine."""
        answer = Client(messenger, "").get(OVERVIEW, headers={name: "127.0.0.1"})
        assert answer.status == 403

    def test_what_proxies_say_is_not_believed(self, messenger: Messenger) -> None:
        client = Client(messenger, "", REMOTE_ADDR="203.0.113.7")
        believed = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"}
        assert client.get(OVERVIEW, headers=believed).status == 403
        secure = client.post(
            "/api/v1/logout", {}, headers={**believed, "X-Forwarded-Proto": "https"}
        )
        assert "Secure" not in secure.headers["Set-Cookie"]


class TestOtherPages:
    """What another page makes a browser send changes nothing."""

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://["},
            {"Origin": "http://localhost:9090"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8080"},
            {"Origin": "null", "Host": ""},
        ],
    )
    def test_are_refused(self, messenger: Messenger, headers: dict[str, str]) -> None:
        client = Client(messenger, TOKEN)
        for path in (PURGE, "/api/v1/login", "/api/v1/logout"):
            answer = client.post(path, {"all": True}, headers={**bearer(TOKEN), **headers})
            assert answer.status == 403, path
            assert "another origin" in answer.error

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Origin": "http://LocalHost:8080"},
            {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8080"},
            {"Sec-Fetch-Site": "none"},
            # A proxy in between may name another host to us than the browser knows.
            {"Sec-Fetch-Site": "same-origin", "Origin": "https://keyop.example"},
        ],
    )
    def test_this_one_is_not(self, messenger: Messenger, headers: dict[str, str]) -> None:
        answer = Client(messenger, TOKEN).post(
            PURGE, {"all": True}, headers={**bearer(TOKEN), **headers}
        )
        assert answer.json == {"purged": 0}

    def test_a_form_cannot_say_it(self, messenger: Messenger) -> None:
        """Old browsers send no origin with forms, and forms send no JSON."""
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            answer = Client(messenger, "").post(PURGE, {"all": True}, CONTENT_TYPE=kind)
            assert answer.status == 415

    def test_looking_changes_nothing(self, messenger: Messenger) -> None:
        for path in (PURGE, "/api/v1/login", "/api/v1/logout"):
            answer = Client(messenger, "").get(path)
            assert answer.status == 405
            assert answer.headers["Allow"] == "POST"


def test_trusting(messenger: Messenger) -> None:
    """Behind a login of somebody else's, none is asked for; other pages are refused still."""
    client = Client(messenger)
    client.application = app(messenger, trusting=True)
    client.environ = {"REMOTE_ADDR": "203.0.113.7", "HTTP_HOST": "ops.example"}
    assert client.get(OVERVIEW).status == 200
    assert client.post(PURGE, {"all": True}).status == 200
    evil = {"Origin": "https://evil.example"}
    assert client.post(PURGE, {"all": True}, headers=evil).status == 403
