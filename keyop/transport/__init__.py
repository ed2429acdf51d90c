"""Bytes between hosts: TLS over gevent's sockets, WebSocket messages over either."""
