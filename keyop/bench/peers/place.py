"""What a process of a contender is told: where its data or its server is, and what must survive."""

from __future__ import annotations

from dataclasses import dataclass

CHANNEL = "readings"
TOGETHER = 64
HOST = "127.0.0.1"
SERVER, PUBLISHER = "hub", "publisher"
SUBSCRIBERS = [f"s{number}" for number in range(10)]


@dataclass(frozen=True)
class Certificate:
    """Paths of a certificate, its key and the authority's certificate."""

    cert: str
    key: str
    ca: str


@dataclass(frozen=True)
class Place:
    """Where one round of one contender happens.

    Attributes:
        directory: its data, fresh for each round.
        port: its server's on 127.0.0.1; 0 without one.
        power: whether what is confirmed must survive a power loss, or else the process.
        name: who this process is: ``hub``, ``publisher``, or ``s0`` and on for subscribers.
        certificate: its own, for mutual TLS; None without TLS.
        links_port: of a server, where servers near publishers connect; 0 if none may.
        mirrors: whether the server keeps what a server near the publisher keeps first.
    """

    directory: str
    port: int = 0
    power: bool = False
    name: str = PUBLISHER
    certificate: Certificate | None = None
    links_port: int = 0
    mirrors: bool = False
