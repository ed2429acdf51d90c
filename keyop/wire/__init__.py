"""The federation protocol without a network: bytes and messages in, bytes and events out.

Nothing in here knows gevent, sockets or the time of day.
"""
