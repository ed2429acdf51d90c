"""Names that lead out of their place, on the command line, in files to import, on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import logging_restored
from tests.cli.helpers import keyop
from tests.integration.helpers import Recorder, record, running, tree
from tests.web.test_listener import Connection

from .helpers import made_of, paths
from .test_names import NAMES

__all__ = ["logging_restored"]  # a fixture that each test here uses

COMMANDS: dict[str, list[str]] = {
    "publish": ["publish", "NAME", "1"],
    "subscribe": ["subscribe", "NAME", "--id", "me", "--count", "1"],
    "an id": ["subscribe", "orders", "--id", "NAME", "--count", "1"],
    "tail": ["tail", "NAME"],
    "export": ["export", "NAME"],
    "import": ["import", "NAME"],
    "replay": ["replay", "NAME", "--subscriber", "me", "--to", "earliest", "--yes"],
    "replay of an id": ["replay", "orders", "--subscriber", "NAME", "--to", "0", "--yes"],
    "replay into": ["replay", "orders", "--into", "NAME", "--yes"],
    "dead letters": ["dead-letter", "requeue", "NAME", "--all", "--yes"],
    "remove a channel": ["channels", "remove", "NAME", "--force", "--yes"],
    "remove a position": ["subscribers", "remove", "NAME", "me", "--yes"],
    "remove an id": ["subscribers", "remove", "orders", "NAME", "--yes"],
    "keygen": ["keygen", "instance", "--ca", "CA", "--ca-key", "CA", "--name", "NAME"],
}


class TestOfACommand:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        """In one line that no terminal obeys; nothing is made, and nothing removed."""
        monkeypatch.chdir(tmp_path)
        data = tmp_path / "a" / "data"
        monkeypatch.setenv("KEYOP_DATA_DIR", str(data))
        assert keyop("keygen", "ca", "--out-cert", "ca.crt", "--out-key", "ca.key").status == 0
        with running(data) as messenger:
            messenger.publish("orders", "t", 1)
            messenger.subscribe("orders", "me", Recorder())
        before = tree(tmp_path)
        for name in NAMES.values():
            if name in ("", "\udc80"):  # which no argument can be
                continue
            given = {"NAME": name}
            if command == "keygen":
                if name == "a:b":
                    continue
                given |= {"CA": "ca.crt"}
            arguments = [given.get(each, each) for each in COMMANDS[command]]
            if command == "keygen":
                arguments[arguments.index("--ca-key") + 1] = "ca.key"
            result = keyop(*arguments, stdin="")
            assert result.status in (1, 2), arguments
            assert result.err.count("\n") == 1, result.err
            assert result.err[:-1].isprintable(), result.err
            assert "Traceback" not in result.err
        assert tree(tmp_path) == before

    def test_in_a_file_to_import(self, tmp_path: Path) -> None:
        """A record of another channel is not taken; with ``--rename``, into the one named."""
        data = tmp_path / "data"
        lines = [
            record(n, channel=name) for n, name in enumerate(NAMES.values()) if name != "\udc80"
        ]
        for line in lines:
            assert keyop("import", "orders", "--data-dir", data, stdin=line).status == 1
        assert not data.exists()
        result = keyop("import", "orders", "--rename", "--data-dir", data, stdin=b"".join(lines))
        assert result.status == 0
        assert {path for path in paths(data) if path.count("/") < 2} <= {
            "channels", "channels/orders", "subscribers", "subscribers/orders"
        }  # fmt: skip
        assert {each.name for each in tmp_path.iterdir()} == {"data"}


SPELLINGS = [
    "..", "%2e%2e", "%2e%2e%2f%2e%2e%2fserver.py", "..%2fguard.py", "..%5cguard.py",
    "%252e%252e", "%c0%ae%c0%ae", "....//guard.py", "..;/guard.py", "%00", "page.js%00",
    "orders%00", "orders%0a", "orders%2f..%2forders", "/etc/passwd", "%2fetc%2fpasswd",
    "x" * 300,
]  # fmt: skip
PATHS = [
    "/api/v1/channels/{}/messages",
    "/api/v1/channels/{}/events",
    "/api/v1/channels/{}/dead-letters",
    "/api/v1/channels/{}.dead-letter/messages",
    "/static/{}",
    "/{}",
]


class TestOnThePage:
    @pytest.mark.parametrize("path", PATHS)
    def test_lead_nowhere(self, tmp_path: Path, path: str) -> None:
        """In a path of the API or of a file, encoded or not: 400 or 404, and nothing is made."""
        with running(tmp_path / "data", web={"listen_addr": "127.0.0.1:0"}) as messenger:
            messenger.publish("orders", "t", 1)
            with Connection(messenger) as connection:
                assert connection.ask("/api/v1/channels/orders/messages")[0] == 200
                before = made_of(messenger)
                for name in SPELLINGS:
                    status, body = connection.ask(path.format(name))
                    assert status in (400, 404), name
                    assert set(json.loads(body)) == {"error"}, name
                assert made_of(messenger) == before
