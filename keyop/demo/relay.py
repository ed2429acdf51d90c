"""A relay between clients and a hub, whose connections can be cut: a network that fails."""

from __future__ import annotations

import gevent
from gevent.server import StreamServer
from gevent.socket import create_connection, socket

_CHUNK_BYTES = 64 << 10


class Relay:
    """Passes bytes on to ``target``, ``host:port``, which may change."""

    def __init__(self) -> None:
        self.target = ""
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._open: set[socket] = set()

    def start(self) -> str:
        """Listen; return where."""
        self._server.start()
        return f"127.0.0.1:{self._server.server_port}"

    def _serve(self, client: socket, _: object) -> None:
        host, port = self.target.rsplit(":", 1)
        try:
            hub = create_connection((host, int(port)))
        except OSError:
            return
        self._open |= {client, hub}
        passing = [gevent.spawn(self._pass, client, hub), gevent.spawn(self._pass, hub, client)]
        gevent.joinall(passing)
        for each in (client, hub):
            self._open.discard(each)
            each.close()

    @staticmethod
    def _pass(source: socket, sink: socket) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                try:
                    each.shutdown(2)
                except OSError:
                    pass

    def cut(self) -> int:
        """Cut every connection in the middle of whatever is under way; return how many."""
        count = len(self._open) // 2
        for each in list(self._open):
            try:
                each.shutdown(2)
            except OSError:
                pass
        return count

    def stop(self) -> None:
        """End."""
        self._server.stop(timeout=0.1)
        self.cut()
