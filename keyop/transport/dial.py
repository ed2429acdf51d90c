"""The client's side: from an address to an open WebSocket connection."""

from __future__ import annotations

import base64
import hashlib
import os
import socket as flags
from typing import NamedTuple

import gevent
from gevent.socket import create_connection, socket
from geventwebsocket.handler import WebSocketHandler
from OpenSSL import SSL

from keyop.config_rules import split_address
from keyop.transport.identity import CertificateError, check_host, common_name
from keyop.transport.reader import StreamReader
from keyop.transport.tls import Stream, TLSError, TLSSocket
from keyop.transport.websocket import Connection

CONNECT_S = 10.0
HANDSHAKE_S = 5.0
UPGRADE_S = 5.0
# What a stranger may send before it is known.
MAX_STRANGER_BYTES = 16 << 10
_MAX_LINE_BYTES = 8 << 10


class UpgradeError(OSError):
    """The other side is there, and not a WebSocket server."""


class Dialled(NamedTuple):
    """An open connection, and who the other side is; empty without TLS."""

    connection: Connection
    peer: str


def dial(address: str, context: SSL.Context | None, hub_name: str = "") -> Dialled:
    """Connect, check who answers, and upgrade to WebSocket.

    Args:
        address: ``host:port`` or ``[IPv6]:port``.
        context: None for a plain connection.
        hub_name: who has to answer; if empty, its certificate must be for the host.

    Raises:
        CertificateError: another one answers.
        TLSError: one side refused the other's certificate.
        OSError: there is no connection, or not in time.
    """
    host, port = split_address(address)
    plain = create_connection((host, port), CONNECT_S)
    stream: Stream = plain
    try:
        plain.settimeout(None)
        plain.setsockopt(flags.IPPROTO_TCP, flags.TCP_NODELAY, 1)
        peer = ""
        if context is not None:
            stream = secured = TLSSocket(context, plain, server_side=False)
            with gevent.Timeout(HANDSHAKE_S, TimeoutError("no TLS handshake in time")):
                secured.handshake(host)
            certificate = secured.peer_certificate()
            peer = common_name(certificate)
            if not hub_name:
                check_host(certificate, host)
            elif peer != hub_name:
                raise CertificateError(f"{address} is {peer!r}, not {hub_name!r}")
        reader = StreamReader(stream, MAX_STRANGER_BYTES)
        with gevent.Timeout(UPGRADE_S, TimeoutError("no answer to the upgrade in time")):
            _upgrade(stream, reader, address, context is not None)
    except BaseException:
        stream.close()
        raise
    return Dialled(Connection(stream, reader, True, MAX_STRANGER_BYTES), peer)


def _upgrade(stream: Stream, reader: StreamReader, address: str, secured: bool) -> None:
    """Ask for a WebSocket connection.

    Source: RFC 6455, section 4.1.
    """
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        "GET / HTTP/1.1",
        f"Host: {address}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "",
        "",
    )
    stream.sendall("\r\n".join(request).encode())
    first = reader.readline(_MAX_LINE_BYTES)
    if not first:
        hint = "" if secured else "; if it wants TLS, give a certificate, its key and the CA"
        raise UpgradeError(f"{address} ended the connection without an answer{hint}")
    status = first.decode("latin-1").strip()
    headers: dict[str, str] = {}
    while line := reader.readline(_MAX_LINE_BYTES).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if status.split()[1:2] != ["101"]:
        raise UpgradeError(f"{address} answers {status[:80]!r}, not as a hub")
    if (
        headers.get("upgrade", "").lower() != "websocket"
        or "upgrade" not in map(str.strip, headers.get("connection", "").lower().split(","))
        or headers.get("sec-websocket-accept") != accept_key(key)
        or headers.get("sec-websocket-extensions")
        or headers.get("sec-websocket-protocol")
    ):
        raise UpgradeError(f"{address} answers the upgrade wrongly")


def accept_key(key: str) -> str:
    """Return what proves that a key was read by somebody who speaks WebSocket."""
    digest = hashlib.sha1((key + WebSocketHandler.GUID).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


__all__ = ["CertificateError", "Dialled", "TLSError", "UpgradeError", "dial", "socket"]
