"""The figures of federation: hub and clients in processes of their own, mutual TLS on loopback."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import orjson
from gevent.pool import Pool
from gevent.socket import create_connection
from gevent.socket import socket as gevent_socket
from OpenSSL import SSL

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.bench.measure import Figure, percentile
from keyop.federation.ephemeral import EphemeralMessenger
from keyop.keygen import DevelopmentCertificates, ensure_development_certificates
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.dial import dial
from keyop.transport.tls import TLSSocket
from keyop.transport.websocket import Connection
from keyop.wire.messages import CLIENT, FEATURES, Hello

CHANNEL = "readings"
_HUB = "hub"
# Ephemeral connections may share a name, up to 64, so these are enough for a thousand.
_CLIENTS = [f"c{number}" for number in range(20)]
_EACH = 50


class _Process:
    """An instance in a process of its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "keyop.bench.instance", orjson.dumps(config).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def tell(self, *words: object) -> None:
        """Have it do something."""
        assert self._child.stdin is not None
        self._child.stdin.write(orjson.dumps(words) + b"\n")
        self._child.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait until it has done that; return what it tells."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has failed")
        heard: dict[str, Any] = orjson.loads(line)
        return heard

    def ask(self, *words: object) -> dict[str, Any]:
        """Tell, and hear."""
        self.tell(*words)
        return self.hear()

    def end(self) -> None:
        """Let it end."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()


class FederationBench:
    """Runs the figures below one directory. ``scale`` is the share of the full counts."""

    def __init__(self, directory: str, scale: float = 1.0, rounds: int = 3) -> None:
        self._directory = directory
        self._scale = scale
        self._rounds = rounds
        self._certificates: DevelopmentCertificates | None = None

    def figures(self) -> Iterator[tuple[str, Callable[[], Figure]]]:
        """Yield each figure's name and what measures it."""
        yield "to-hub", self.to_hub
        yield "from-hub", lambda: self.from_hub(1, 0.5)
        yield "from-hub-10", lambda: self.from_hub(10, 1.0)
        yield "round", self.latency
        yield "idle", self.idle
        yield "silent", self.silent
        yield "start", self.start

    def _count(self, full: int, least: int) -> int:
        return max(least, int(full * self._scale))

    # -- instances

    def _tls(self, name: str) -> dict[str, str]:
        if self._certificates is None:
            names = [_HUB, *_CLIENTS]
            self._certificates = ensure_development_certificates(f"{self._directory}/certs", names)
        files = self._certificates.instances[name]
        return {"cert": files.cert, "key": files.key, "ca": self._certificates.ca.cert}

    def _hub_config(self, directory: str) -> dict[str, Any]:
        return {
            "name": _HUB,
            "storage": {"data_dir": f"{directory}/hub"},
            "tls": self._tls(_HUB),
            "hub": {
                "enabled": True,
                "listen_addr": "127.0.0.1:0",
                "allowed_peers": [{"name": name} for name in _CLIENTS],
            },
        }

    def _client_config(self, directory: str, name: str, address: str, **hub: Any) -> dict[str, Any]:
        return {
            "name": name,
            "storage": {"data_dir": f"{directory}/{name}"},
            "tls": self._tls(name),
            "client": {"enabled": True, "hubs": [{"addr": address, **hub}]},
        }

    @contextmanager
    def _hub(self) -> Iterator[tuple[ExitStack, str, _Process, str]]:
        directory = tempfile.mkdtemp(dir=self._directory)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, directory)
            hub = _Process(self._hub_config(directory))
            stack.callback(hub.end)
            address = hub.ask("start")["address"]
            yield stack, directory, hub, address

    def _client(self, stack: ExitStack, config: dict[str, Any]) -> _Process:
        client = _Process(config)
        stack.callback(client.end)
        client.ask("start")
        client.ask("connected")
        return client

    def _local_rate(self, count: int) -> float:
        """Return how many messages a second one greenlet publishes, without federation."""
        directory = tempfile.mkdtemp(dir=self._directory)
        try:
            alone = _Process({"name": "alone", "storage": {"data_dir": directory}})
            alone.ask("start")
            alone.ask("publish", CHANNEL, 1000)
            told = alone.ask("publish", CHANNEL, count)
            alone.end()
        finally:
            shutil.rmtree(directory)
        return count / float(told["ended"] - told["begun"])

    # -- rates

    def to_hub(self) -> Figure:
        """Published on a client while it sends, until the hub has all of it in its log."""
        count = self._count(200_000, 2_000)

        def measure() -> float:
            with self._hub() as (stack, directory, hub, address):
                client = self._client(stack, self._client_config(directory, "c0", address))
                client.tell("publish", CHANNEL, count)
                hub.tell("await_bytes", CHANNEL, count)
                begun = client.hear()["begun"]
                return count / float(hub.hear()["ended"] - begun)

        return self._rates("client → hub", 0.7, measure, count)

    def from_hub(self, clients: int, goal: float) -> Figure:
        """Published on the hub while it sends, until every client has all of it in its log."""
        count = self._count(200_000 if clients == 1 else 50_000, 2_000)

        def measure() -> float:
            with self._hub() as (stack, directory, hub, address):
                hub.ask("publish", CHANNEL, 1)
                started = [
                    self._client(
                        stack,
                        self._client_config(
                            directory, f"c{number}", address, subscribe=[CHANNEL], publish=["none"]
                        ),
                    )
                    for number in range(clients)
                ]
                hub.tell("publish", CHANNEL, count)
                for client in started:
                    client.tell("await_bytes", CHANNEL, count)
                begun = hub.hear()["begun"]
                ended = max(client.hear()["ended"] for client in started)
                return count * clients / float(ended - begun)

        name = "hub → one client" if clients == 1 else f"hub → {clients} clients, in all"
        return self._rates(name, goal, measure, count)

    def _rates(self, name: str, goal: float, measure: Callable[[], float], count: int) -> Figure:
        pairs = [(measure(), self._local_rate(count)) for _ in range(self._rounds)]
        ratios = [mine / limit for mine, limit in pairs]
        return Figure(
            name,
            "messages/s",
            statistics.median(mine for mine, _ in pairs),
            "local publish",
            statistics.median(limit for _, limit in pairs),
            statistics.median(ratios),
            goal,
            True,
            ratios,
        )

    # -- latency

    def latency(self) -> Figure:
        """Published on a client to handled on the hub, against a round trip of 300 bytes."""
        count = self._count(2_000, 50)
        with self._hub() as (stack, directory, hub, address):
            client = self._client(stack, self._client_config(directory, "c0", address))
            client.ask("publish", CHANNEL, 1)
            hub.ask("await_bytes", CHANNEL, 1)
            hub.ask("handle", CHANNEL, client.ask("listen")["port"])
            taken = client.ask("one_by_one", CHANNEL, count)["taken"]
        mine = percentile(taken, 0.5) / 1e3
        limit = self._round_trip(count) * 1e6
        return Figure(
            "client → handler on hub, p50",
            "µs",
            mine,
            "TLS round trip",
            limit,
            mine / limit,
            2,
            False,
        )

    def _round_trip(self, count: int) -> float:
        """Return what 300 bytes there and back take, between two processes, median in seconds."""
        child = subprocess.Popen(
            [sys.executable, "-m", "keyop.bench.echo", *self._tls(_HUB).values()],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        port = int(child.stdout.readline())
        credentials = Credentials.load(**self._tls("c0"))
        plain = create_connection(("127.0.0.1", port))
        stream = TLSSocket(credentials.context(SERVER_AUTH), plain, server_side=False)
        stream.handshake()
        message, taken = b"x" * 300, []
        for _ in range(count):
            begun = time.perf_counter()
            stream.sendall(message)
            left = len(message)
            while left:
                left -= len(stream.recv(left))
            taken.append(time.perf_counter() - begun)
        stream.close()
        child.wait()
        child.stdout.close()
        return percentile(taken, 0.5)

    # -- many connections

    def idle(self) -> Figure:
        """What an idle connection costs the hub, in KiB; also its processor time, in %."""
        count = self._count(1_000, 20)
        _raise_limit()
        with self._hub() as (_, _directory, hub, address):
            before = hub.ask("usage")
            contexts = {
                name: Credentials.load(**self._tls(name)).context(SERVER_AUTH) for name in _CLIENTS
            }
            names = [_CLIENTS[number // _EACH] for number in range(count)]
            connections = Pool(32).map(lambda name: _greet(address, name, contexts[name]), names)
            gevent.sleep(1.0)
            during = hub.ask("usage")
            gevent.sleep(10.0 if self._scale == 1.0 else 1.0)
            after = hub.ask("usage")
            for connection in connections:
                connection.drop()
        each = (after["rss"] - before["rss"]) / count / 1024
        self.idle_cpu = (after["cpu"] - during["cpu"]) / (10.0 if self._scale == 1.0 else 1.0)
        return Figure(
            f"{count} idle connections, each ({self.idle_cpu:.1%} CPU)", "KiB", each, "allowed", 80,
            each / 80, 1.0, False,
        )  # fmt: skip

    def silent(self) -> Figure:
        """Connecting and being served while 200 others sit silent in the handshake, p99 in ms."""
        count = self._count(300, 20)
        with self._hub() as (_, _directory, _hub, address):
            host, port = address.rsplit(":", 1)
            silent: list[gevent_socket] = []

            def sit() -> None:
                while True:
                    silent.append(create_connection((host, int(port))))
                    if len(silent) > 200:
                        silent.pop(0).close()
                    gevent.sleep(0.001 if len(silent) >= 200 else 0)

            sitter = gevent.spawn(sit)
            while len(silent) < 200:
                gevent.sleep(0.01)
            taken = []
            for _ in range(count):
                begun = time.perf_counter()
                guest = EphemeralMessenger(address, tls=self._tls("c0"))
                guest.publish(CHANNEL, PAYLOAD_TYPE, payload(1))
                taken.append(time.perf_counter() - begun)
                guest.close()
            sitter.kill()
            for each in silent:
                each.close()
        worst = percentile(taken, 0.99) * 1e3
        return Figure(
            "served beside 200 silent, p99", "ms", worst, "allowed", 200, worst / 200, 1.0, False
        )

    def start(self) -> Figure:
        """From exec of keyop-hub to listening, in seconds."""
        taken = []
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        for _ in range(self._rounds):
            directory = tempfile.mkdtemp(dir=self._directory)
            config = f"{directory}/hub.yaml"
            with open(config, "wb") as file:
                file.write(orjson.dumps(self._hub_config(directory)))
            begun = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, f"{root}/bin/keyop-hub", "-c", config],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert child.stdout is not None
            child.stdout.readline()
            taken.append(time.perf_counter() - begun)
            child.terminate()
            child.wait()
            child.stdout.close()
            shutil.rmtree(directory)
        each = statistics.median(taken)
        return Figure(
            "keyop-hub, exec to listening", "s", each, "allowed", 0.5, each / 0.5, 1.0, False, taken
        )


def _greet(address: str, name: str, context: SSL.Context) -> Connection:
    """Return a connection of an ephemeral client that has been let in."""
    connection = dial(address, context).connection
    connection.send_text(Hello(name, CLIENT, ephemeral=True, features=FEATURES).encode())
    connection.receive()
    return connection


def _raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
