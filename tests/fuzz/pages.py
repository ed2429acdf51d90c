"""What the operator's page is asked, and what it has to show of a damaged channel."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import gevent
import orjson

from keyop import Messenger
from keyop.web import app
from tests.cli.helpers import dead_letter
from tests.integration.helpers import config, record, write_offset, write_segment

from .places import CHANNEL

TOKEN = "a-token-of-ours"
LETTERS = f"{CHANNEL}.dead-letter"
SUBSCRIBER = "billing"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_JSON = "application/json"
# So long a stream is listened to that may have nothing more to say.
_WAIT_S = 0.005
_CHANNEL_LINES = [
    record({"n": 1, "even": False}, id="message-1", correlation_id="c-1"),
    record({"n": 2, "even": True}, id="message-2", ts="2026-01-02T03:04:06Z"),
    b"this is no record\n",
    record(raw='{"n":1e999,"half":"\\ud800"}', id="message-3"),
    record(raw="[" * 1010 + "]" * 1010, id="message-4"),
]
_LETTER_LINES = [
    dead_letter(_CHANNEL_LINES[0], letter_id="letter-1"),
    dead_letter(_CHANNEL_LINES[3], letter_id="letter-2", subscriber=None),
    dead_letter(None, letter_id="letter-3", raw="AAEC"),
]


class Request(NamedTuple):
    """What is asked, as text on the wire has it."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


def parse(data: bytes) -> Request:
    """Read ``METHOD PATH?QUERY``, headers, an empty line, the body: of whatever is there."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    method, _, target = first.partition(" ")
    path, _, query = target.partition("?")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().upper().replace("-", "_")] = _CONTROL.sub("", value).strip()
    return Request(_CONTROL.sub("", method), path, _CONTROL.sub("", query), headers, body)


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@contextmanager
def _host(directory: Path) -> Iterator[Messenger]:
    """Give a messenger on an empty data directory."""
    made = config(directory / "data", storage={"sync_policy": "none"}, web={"token": TOKEN})
    messenger = Messenger(made)
    messenger.start()
    try:
        yield messenger
    finally:
        messenger.close()


class _Files:
    """The channel's files, put back in place after an input; their inodes stay."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._content: dict[Path, bytes] = {}

    def write(self, channel: bytes, letters: bytes) -> None:
        """Put these records in place."""
        self._content = {
            write_segment(self._data_dir, CHANNEL, 0, channel): channel,
            write_segment(self._data_dir, LETTERS, 0, letters): letters,
            write_offset(self._data_dir, CHANNEL, SUBSCRIBER, 0): b"0\n",
        }

    def restore(self) -> None:
        """Put them back, and remove what has come beside them."""
        for path, content in self._content.items():
            path.write_bytes(content)
        for path in self.here() - set(self._content):
            if not path.name.endswith(".lock"):
                path.unlink()

    def here(self) -> set[Path]:
        """Return every file below the data directory's channels and positions."""
        return {
            Path(parent, name)
            for kind in ("channels", "subscribers")
            for parent, _, names in os.walk(self._data_dir / kind)
            for name in names
        }

    def records(self) -> dict[Path, bytes]:
        """Return the content of what is not a lock."""
        return {path: path.read_bytes() for path in self.here() if not path.name.endswith(".lock")}

    def check(self) -> None:
        """There must be nothing but what belongs to the two channels, and nothing beside."""
        assert os.listdir(self._data_dir.parent) == ["data"]
        shown = {each for each in os.listdir(self._data_dir) if each[0] != "."}
        assert shown <= {"channels", "subscribers"}
        for path in self.here():
            known = path in self._content or path.name == ".done"
            assert known or path.name.endswith(".lock") or ".torn-" in path.name, path
            assert path.parent.name in (CHANNEL, LETTERS), path


@contextmanager
def pages(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes requests: each is answered, by whichever status but 500."""
    with _host(directory) as messenger:
        files = _Files(directory / "data")
        files.write(b"".join(_CHANNEL_LINES), b"".join(_LETTER_LINES))
        guarded, local = app(messenger, TOKEN), app(messenger, "")
        trusting = app(messenger, trusting=True)
        end = len(b"".join(_CHANNEL_LINES))

        def feed(data: bytes) -> None:
            asked = parse(data)
            before = files.records()
            answer = _ask(guarded, asked, end)
            if asked.path.startswith(("/api/", "/metrics")) and TOKEN not in repr(asked):
                assert answer.status != 200, "the guard lets it pass"
            _ask(local, asked, end)
            answer = _ask(trusting, asked, end)
            files.check()
            if asked.method == "POST":
                files.restore()
            else:
                assert files.records() == before, "a look changes something"

        yield feed


@contextmanager
def letters(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes contents of a channel and its dead letters: all of it can be shown."""
    with _host(directory) as messenger:
        files = _Files(directory / "data")

        def feed(data: bytes) -> None:
            files.write(data, data)
            # One that has not seen anything before.
            page = app(messenger, trusting=True)
            for each in _LOOKS:
                answer = _ask(page, parse(each), len(data))
                assert answer.status == 200, (each, answer)
            for each in _CHANGES:
                answer = _ask(page, parse(each), len(data))
                assert answer.status in (200, 409), (each, answer)
            files.check()
            files.restore()
            page._observer._greenlet.kill()

        yield feed


_LOOKS = [
    b"GET /api/v1/overview",
    b"GET /api/v1/channels/orders/messages?from=earliest&where=a=1&where=payload_type=t",
    b"GET /api/v1/channels/orders/messages?from=2026-01-02T03:04:05Z&limit=2",
    b"GET /api/v1/channels/orders.dead-letter/messages",
    b"GET /api/v1/channels/orders/dead-letters",
    b"GET /api/v1/channels/orders/dead-letters?limit=1&after=letter-1",
    b"GET /api/v1/channels/orders/events?from=earliest",
]
_JSON_HEAD = b"\nContent-Type: application/json\n\n"
_CHANGES = [
    b"POST /api/v1/channels/orders/dead-letters/requeue" + _JSON_HEAD + b'{"all":true}',
    b"POST /api/v1/channels/orders/dead-letters/purge" + _JSON_HEAD + b'{"all":true}',
]


def _ask(application: Any, asked: Request, end: int) -> _Answer:
    """Ask as a WSGI server does; check what holds for every answer."""
    environ = {f"HTTP_{name}": value for name, value in asked.headers.items()}
    body = BytesIO(asked.body)
    environ |= {
        "REQUEST_METHOD": asked.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(asked.path).decode("latin-1"),
        "QUERY_STRING": asked.query,
        "REMOTE_ADDR": asked.headers.get("REMOTE_ADDR", "127.0.0.1"),
        "wsgi.url_scheme": "http",
        "wsgi.input": body,
        "CONTENT_TYPE": asked.headers.get("CONTENT_TYPE", ""),
        "CONTENT_LENGTH": asked.headers.get("CONTENT_LENGTH", str(len(asked.body))),
    }
    begun: list[tuple[str, list[tuple[str, str]]]] = []
    pieces = application(environ, lambda *head: begun.append(head))
    ((status, sent),) = begun
    assert re.fullmatch(r"[1-5][0-9]{2} [A-Za-z -]+", status), status
    code = int(status[:3])
    headers = dict(sent)
    assert len(headers) == len(sent), "a header is sent twice"
    for name, value in sent:
        value.encode("latin-1")
        assert not _CONTROL.search(name + value), (name, value)
    got = _take(pieces, headers, end)
    _check_body(_Answer(code, headers, got), asked.method == "HEAD")
    assert code != 500, got
    return _Answer(code, headers, got)


def _take(pieces: Any, headers: dict[str, str], end: int) -> bytes:
    """Read the body; of a stream what is there, without waiting for more."""
    if not headers.get("Content-Type", "").startswith("text/event-stream"):
        return b"".join(pieces)
    if isinstance(pieces, list):
        return b"".join(pieces)
    got = b""
    try:
        got = next(pieces)
        position = int(got.split(b"id: ")[1])
        assert position <= end
        # What is there comes without waiting.
        with gevent.Timeout(_WAIT_S, False):
            got += next(pieces)
    finally:
        pieces.close()
    for event in got.split(b"\n\n")[1:-1]:
        number, text = event.split(b"\n")
        assert position < int(number.removeprefix(b"id: ")) <= end
        assert text.startswith(b"data: {")
    return got


def _check_body(answer: _Answer, head_only: bool) -> None:
    size = answer.headers.get("Content-Length")
    if head_only:
        assert answer.body == b""
    elif size is not None:
        assert int(size) == len(answer.body)
    if answer.headers.get("Content-Type") == _JSON and not head_only and answer.status != 308:
        value = orjson.loads(answer.body)
        assert (set(value) == {"error"}) == (answer.status >= 400 and "live" not in value)
