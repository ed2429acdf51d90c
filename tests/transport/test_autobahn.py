"""The Autobahn test suite, run by kosoku, against this library's connections in both roles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import subprocess

from keyop.transport import accept as accepting
from keyop.transport import dial as dialling
from keyop.transport.accept import Accepted, Listener
from keyop.transport.dial import dial
from keyop.transport.websocket import Connection

pytest.importorskip("kosoku", reason="there is no kosoku for this Python")

MAX_MESSAGE_BYTES = 32 << 20
# Compression is not offered.
COMPRESSION = ["12.*", "13.*"]
CASES = 301
# kosoku changes the interpreter that it runs in, and has a loop of its own.
REPORT = """
import asyncio, json, sys
from kosoku import FailureError, run_fuzzingclient, run_fuzzingserver

def report(results):
    print(json.dumps([
        [each.case_id, each.behavior.value, each.behavior_close.value, each.passed]
        for each in results
    ]), flush=True)

async def client(address):
    try:
        report(await run_fuzzingclient(address, None, json.loads(sys.argv[3]), concurrency=4))
    except FailureError as failure:
        report(failure.results)

async def server(_):
    async with run_fuzzingserver(None, json.loads(sys.argv[3]), port=0) as server:
        print(server.port, flush=True)
        try:
            report(await server.get_result())
        except FailureError as failure:
            report(failure.results)

asyncio.run({"client": client, "server": server}[sys.argv[1]](sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def trusted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says hello here: kosoku begins to send with its upgrade."""
    for module in (accepting, dialling):
        monkeypatch.setattr(module, "MAX_STRANGER_BYTES", MAX_MESSAGE_BYTES)


def fuzz(role: str, address: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", REPORT, role, address, json.dumps(COMPRESSION)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )


def echo(connection: Connection) -> None:
    """Send back what comes, until the connection ends."""
    try:
        while True:
            message = connection.receive()
            if isinstance(message, str):
                connection.send_text(message)
            else:
                connection.send_binary(message)
    except OSError:
        pass
    finally:
        connection.finish()


def assert_passed(results: list[Any]) -> None:
    failed = [result for result in results if not result[3]]
    assert not failed, failed
    assert len(results) == CASES, len(results)


def test_as_a_hub() -> None:
    """Every case without compression passes against an echo server on the hub's listener."""

    def serve(accepted: Accepted) -> None:
        accepted.known(MAX_MESSAGE_BYTES)
        echo(accepted.connection)

    listener = Listener("127.0.0.1:0", lambda: None, serve, lambda *_: None, 128)
    listener.start()
    try:
        process = fuzz("client", f"ws://127.0.0.1:{listener.server_port}")
        output, _ = process.communicate()
        assert_passed(json.loads(output))
    finally:
        listener.end(5)


class Elsewhere:
    """A socket that asks for another path: this library's clients always ask for ``/``."""

    def __init__(self, plain: Any, path: str) -> None:
        self._plain = plain
        self._path = path.encode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def sendall(self, data: bytes) -> None:
        """Send the request, which is all that is sent in this way."""
        assert data.startswith(b"GET / ")
        self._plain.sendall(data.replace(b"GET / ", b"GET %s " % self._path, 1))


@pytest.fixture
def dial_path(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], Connection]:
    """Dial a port of this machine, and ask for a path."""
    connect = dialling.create_connection

    def dial_path(port: int, path: str) -> Connection:
        monkeypatch.setattr(
            dialling, "create_connection", lambda *args: Elsewhere(connect(*args), path)
        )
        connection = dial(f"127.0.0.1:{port}", None).connection
        connection.trust(MAX_MESSAGE_BYTES)
        return connection

    return dial_path


def test_as_a_client(dial_path: Callable[[int, str], Connection]) -> None:
    """Every case without compression passes against an echo client."""
    process = fuzz("server")
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        counting = dial_path(port, "/getCaseCount")
        count = int(counting.receive())
        counting.finish()
        for case in range(1, count + 1):
            echo(dial_path(port, f"/runCase?case={case}&agent=keyop"))
        with gevent.Timeout(30):
            echo(dial_path(port, "/updateReports?agent=keyop"))
            output, _ = process.communicate()
        assert_passed(json.loads(output))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
