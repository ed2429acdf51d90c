"""How the cost of a delivered message grows with the number of a hub's clients."""

from __future__ import annotations

import subprocess
import sys
import time

import gevent
import orjson
from gevent import socket

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.bench.scaling.curve import Curve, Series
from keyop.bench.scaling.process import max_descriptors
from keyop.bench.scaling.work import CHANNEL, count, messenger_at
from keyop.keygen import DevelopmentCertificates, ensure_development_certificates
from keyop.messenger import Messenger

XS = (1, 3, 10, 30, 100, 300, 1_000)
MEASURES = ("measure",)
CURVES = (
    Curve(
        "peers",
        "Cost of a delivered message by the number of a hub's clients",
        "ephemeral clients of one hub, connected by mutual TLS",
        "",
        "µs of the hub per delivered message",
        (
            Series("wall", "wall time, publishing included"),
            Series("processor", "processor time of the hub"),
        ),
        "Published in batches of 100, the next when everybody has the last. The "
        "clients are in one process beside the hub.",
    ),
)
_HUB = "hub"
# Connections may share a name, up to 64.
_NAMES = [f"c{number}" for number in range(20)]
_BURST = 100
_DELIVERIES, _MOST_BURSTS = 200_000, 200
_DESCRIPTORS = 100
_TOO_LONG_S = 60.0


def refusal(directory: str, x: int, measure: str) -> str:
    """Say why so many clients cannot be in one process; empty if they can."""
    if x + _DESCRIPTORS <= max_descriptors():
        return ""
    return f"Left out: {x:,} clients, as a process may have {max_descriptors():,} descriptors."


def prepare(directory: str, x: int, scale: float) -> None:
    """Make certificates."""
    _certificates(directory)


def _certificates(directory: str) -> DevelopmentCertificates:
    return ensure_development_certificates(f"{directory}/certs", [_HUB, *_NAMES])


def measure(directory: str, x: int, scale: float) -> dict[str, float]:
    """Be the hub: publish to clients in another process, and wait until each has everything."""
    made = _certificates(directory)
    tls = {"cert": made.instances[_HUB].cert, "key": made.instances[_HUB].key, "ca": made.ca.cert}
    hub = {
        "enabled": True,
        "listen_addr": "127.0.0.1:0",
        "allowed_peers": [{"name": name} for name in _NAMES],
    }
    bursts = max(2, min(_MOST_BURSTS, count(_DELIVERIES, scale, 1) // (_BURST * x)))
    with messenger_at(f"{directory}/hub", name=_HUB, tls=tls, hub=hub) as messenger:
        messenger.start()
        told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        told.bind(("127.0.0.1", 0))
        told.settimeout(_TOO_LONG_S)
        clients = _start_clients(messenger, made, x, told.getsockname()[1])
        try:
            told.recv(64)  # all are connected
            _publish(messenger, told)
            begun, used = time.perf_counter(), time.process_time()
            for _ in range(bursts):
                _publish(messenger, told)
            wall, processor = time.perf_counter() - begun, time.process_time() - used
        finally:
            _end(clients)
            told.close()
    delivered = bursts * _BURST * x
    return {
        "wall": wall / delivered * 1e6,
        "wall.rate": delivered / wall,
        "processor": processor / delivered * 1e6,
    }


def _publish(messenger: Messenger, told: socket.socket) -> None:
    """Publish a batch, and wait until all clients together have told that they have it."""
    messenger.publish_batch(CHANNEL, [(PAYLOAD_TYPE, payload(each)) for each in range(_BURST)])
    told.recv(64)


def _start_clients(
    messenger: Messenger, made: DevelopmentCertificates, x: int, port: int
) -> subprocess.Popen[bytes]:
    task = {
        "address": messenger.hub_addr,
        "ca": made.ca.cert,
        "certificates": [list(made.instances[name]) for name in _NAMES],
        "names": _NAMES,
        "clients": x,
        "channel": CHANNEL,
        "burst": _BURST,
        "port": port,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "keyop.bench.scaling.clients", orjson.dumps(task).decode()],
        stdin=subprocess.PIPE,
    )


def _end(clients: subprocess.Popen[bytes]) -> None:
    """Let them end, which they do when their stdin does."""
    assert clients.stdin is not None
    clients.stdin.close()
    deadline = time.monotonic() + 10
    while clients.poll() is None and time.monotonic() < deadline:
        gevent.sleep(0.005)  # the hub has its part in their goodbyes
    if clients.poll() is None:
        clients.kill()
        clients.wait()
