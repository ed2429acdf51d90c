"""The proof against a bad network, in its small form; and that the proxy is such a network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
from click.testing import CliRunner
from gevent import socket
from gevent.server import StreamServer

from tests.fakes.proxy import BOTH, DOWN, UP, Proxy
from tests.reliability.row import Row, Run

from . import cuts
from .helpers import ROOT, wait_until

SEED = os.environ.get("KEYOP_SEED", "1")


@pytest.mark.patience(120)
def test_nothing_is_lost_whatever_the_network_does() -> None:
    """The command says what was counted, and exits with 0."""
    command = [sys.executable, "-m", "tests.federation.cuts", "--quick", "--seed", SEED]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=110)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # it ends its own processes then
    assert process.returncode == 0, said
    assert f"seed {SEED}" in said
    assert "cuts up 5, cuts down 5, kills 1, terminations 1" in said
    assert "pass" in said


def test_a_broken_promise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is printed, and the exit status is 1."""

    def run(run: Run) -> Row:
        row = Row("R6", cuts.TITLE)
        row.count(lost=7)
        row.problem("hub: 7 have not come")
        return row

    monkeypatch.setattr(cuts, "run", run)
    done = CliRunner().invoke(cuts.main, ["--quick"])
    assert done.exit_code == 1
    assert "hub: 7 have not come" in done.output
    assert "FAIL" in done.output


def test_every_trouble_is_planned(tmp_path: object) -> None:
    """In the full form: 100 cuts, 20 restarts, and each of the others both ways."""
    planned = cuts.troubles(Run(tmp_path, tmp_path, 1, quick=False))  # type: ignore[arg-type] # unused
    count = planned.count
    assert count(("cut", UP)) == count(("cut", DOWN)) == 50
    assert count(("restart", True)) == count(("restart", False)) == 10
    for other in (("half_open",), ("flip", UP), ("flip", DOWN), ("stall", UP), ("stall", *BOTH)):
        assert count(other) == 5
    assert planned == cuts.troubles(Run(tmp_path, tmp_path, 1, quick=False))  # type: ignore[arg-type] # as above


# --- the proxy


@contextmanager
def through(proxy: Proxy) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a connection through the proxy: who dialled, and who was dialled."""
    came: list[socket.socket] = []
    server = StreamServer(("127.0.0.1", 0), lambda stream, _: came.append(stream.dup()))
    server.start()
    proxy.target = f"127.0.0.1:{server.server_port}"
    host, port = proxy.address.split(":")
    near = socket.create_connection((host, int(port)), 10)
    try:
        wait_until(lambda: came, 10, "a connection")
        came[0].settimeout(10)
        yield near, came[0]
    finally:
        near.close()
        for each in came:
            each.close()
        server.stop()


def received(stream: socket.socket, size: int) -> bytes:
    """Return so many bytes, or what came before the connection ended."""
    data = b""
    try:
        while len(data) < size and (piece := stream.recv(size - len(data))):
            data += piece
    except ConnectionError:
        pass
    return data


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as made:
        yield made


def test_it_passes_on_both_ways(proxy: Proxy) -> None:
    """Byte for byte, and counts them."""
    with through(proxy) as (near, far):
        near.sendall(b"up" * 1000)
        assert received(far, 2000) == b"up" * 1000
        far.sendall(b"down")
        assert received(near, 4) == b"down"
        assert (proxy.passed, proxy.connections, proxy.open) == ({UP: 2000, DOWN: 4}, 1, 1)


def test_it_cuts_after_so_many_bytes(proxy: Proxy) -> None:
    """Not one more passes, and both sides notice."""
    with through(proxy) as (near, far):
        proxy.cut_after(UP, 700)
        near.sendall(b"x" * 1000)
        wait_until(lambda: proxy.cuts == 1, 10, "the cut")
        assert len(received(far, 1000)) <= 700
        assert received(near, 1) == b""
        assert proxy.passed[UP] == 700


def test_it_flips_one_bit(proxy: Proxy) -> None:
    """Of the next piece; what comes after is whole."""
    with through(proxy) as (near, far):
        proxy.flip(DOWN)
        far.sendall(bytes(100))
        data = received(near, 100)
        assert sum(byte.bit_count() for byte in data) == 1
        assert proxy.unflipped == 0
        far.sendall(bytes(100))
        assert received(near, 100) == bytes(100)


@pytest.mark.parametrize("direction", BOTH)
def test_it_stalls(proxy: Proxy, direction: str) -> None:
    """In one direction nothing passes until it goes on; the other one is as it was."""
    with through(proxy) as (near, far):
        sender, receiver = (near, far) if direction == UP else (far, near)
        proxy.stall(direction)
        sender.sendall(b"held up")
        receiver.sendall(b"not")
        assert received(sender, 3) == b"not"
        assert proxy.passed[direction] == 0
        proxy.go_on()
        assert received(receiver, 7) == b"held up"


def test_it_loses_connections_without_a_word(proxy: Proxy) -> None:
    """Nothing passes on those there are, and neither side is told; new ones work."""
    with through(proxy) as (near, far):
        proxy.abandon()
        assert proxy.open == 0
        near.sendall(b"lost")
        near.settimeout(0.1)
        for end in (near, far):
            end.settimeout(0.1)
            with pytest.raises(TimeoutError):
                end.recv(1)
        near.close()
        far.settimeout(0.1)
        with pytest.raises(TimeoutError):
            far.recv(1)


def test_it_crawls(proxy: Proxy) -> None:
    """So many bytes in a second, in small pieces."""
    with through(proxy) as (near, far):
        proxy.slow(1000)
        greenlet = gevent.spawn(received, far, 100)
        near.sendall(b"x" * 100)
        assert greenlet.get(timeout=20) == b"x" * 100
        proxy.go_on()
        near.sendall(b"y" * 100_000)
        assert received(far, 100_000) == b"y" * 100_000


def test_without_a_target_it_ends_them(proxy: Proxy) -> None:
    """As where nobody listens."""
    host, port = proxy.address.split(":")
    with socket.create_connection((host, int(port)), 10) as near:
        assert received(near, 1) == b""
    assert proxy.connections == 0
