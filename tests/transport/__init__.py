"""Bytes between hosts: frames by hand, certificates made on the spot, real sockets on loopback."""
