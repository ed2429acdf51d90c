"""Many clients of a hub in one process: they acknowledge, and tell when all have a burst."""

from __future__ import annotations

import sys
from typing import Any

import gevent
import orjson
from gevent import socket
from gevent.os import tp_read
from gevent.pool import Pool
from OpenSSL import SSL

from keyop.bench.scaling.process import raise_limit
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.dial import dial
from keyop.transport.websocket import Connection
from keyop.wire.frames import decode_batch
from keyop.wire.messages import CLIENT, FEATURES, Hello, encode_ack

_MAX_MESSAGE_BYTES = 1 << 20
_AT_ONCE = 32


class Clients:
    """Raw connections: what they cost beside the hub is as little as can be."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task
        self._burst = task["burst"] * task["clients"]
        self._received = 0
        self._telling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._telling.connect(("127.0.0.1", task["port"]))
        self._ack = encode_ack("")
        self._connections: list[Connection] = []

    def run(self) -> None:
        """Connect, and serve until stdin ends."""
        task = self._task
        contexts = [
            Credentials.load(cert, key, task["ca"]).context(SERVER_AUTH)
            for cert, key in task["certificates"]
        ]
        different = len(contexts)

        def connect(number: int) -> Connection:
            which = number % different
            return self._connect(task["names"][which], contexts[which])

        self._connections = Pool(_AT_ONCE).map(connect, range(task["clients"]))
        receivers = [gevent.spawn(self._receive, each) for each in self._connections]
        self._telling.send(b"connected")
        while tp_read(0, 64):
            pass
        gevent.killall(receivers)
        for connection in self._connections:
            connection.drop()
        self._telling.close()

    def _connect(self, name: str, context: SSL.Context) -> Connection:
        connection = dial(self._task["address"], context).connection
        hello = Hello(name, CLIENT, (self._task["channel"],), ephemeral=True, features=FEATURES)
        connection.send_text(hello.encode())
        connection.receive()
        connection.trust(_MAX_MESSAGE_BYTES)
        return connection

    def _receive(self, connection: Connection) -> None:
        while True:
            message = connection.receive()
            assert isinstance(message, bytes)  # of texts, the hub sends its hello only
            self._received += len(decode_batch(message))
            connection.send_text(self._ack)
            if self._received == self._burst:
                self._received = 0
                self._telling.send(b"all")


def main() -> None:
    """Do what the argument says."""
    raise_limit()
    Clients(orjson.loads(sys.argv[1])).run()


if __name__ == "__main__":
    main()
