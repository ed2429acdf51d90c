"""The other end of a round trip: sends back what comes over TLS, to one connection."""

from __future__ import annotations

import sys

from gevent.server import StreamServer
from gevent.socket import socket

from keyop.transport.contexts import CLIENT_AUTH, Credentials
from keyop.transport.tls import RECORD_BYTES, TLSSocket


def main(cert: str, key: str, ca: str) -> None:
    """Print the port, serve one connection, end with it."""
    context = Credentials.load(cert, key, ca).context(CLIENT_AUTH)

    def echo(plain: socket, _: object) -> None:
        stream = TLSSocket(context, plain, server_side=True)
        stream.handshake()
        while data := stream.recv(RECORD_BYTES):
            stream.sendall(data)
        server.stop(timeout=0)

    server = StreamServer(("127.0.0.1", 0), echo)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
