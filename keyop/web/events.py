"""Server-sent events: a channel, live, in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

from keyop.errors import MessengerClosedError
from keyop.follow import Follower
from keyop.storage.position import Position
from keyop.web.host import Host

CONTENT_TYPE = "text/event-stream; charset=utf-8"
# Proxies end connections on which nothing comes; half a minute is the shortest that is common.
HEARTBEAT_S = 15.0
# What an offset looks like.
_OFFSET = re.compile("[0-9]{1,20}")
# How soon a browser connects again, in milliseconds, after the stream has ended.
_RECONNECT_MS = 1000


def event_stream(
    messenger: Host,
    channel: str,
    last_event_id: str | None = None,
    *,
    start: Position = "latest",
    heartbeat_s: float = HEARTBEAT_S,
) -> Iterator[bytes]:
    """Return the body of a response of type ``text/event-stream`` that follows a channel.

    Each record is an event: its ``data`` is the record as JSON, its ``id`` the offset behind it.
    A browser that was cut off sends that back as the header ``Last-Event-ID``, and goes on where
    it stopped, as long as the log has it. The stream ends when the messenger is closed, or when
    the server closes it because the client has gone. No position is kept for it.

    The arguments are checked, and the place in the log is taken, before this returns.

    Args:
        last_event_id: the header of that name; None or empty where the client sent none, and
            then ``start`` counts. One that is no offset counts as none.
        start: as for ``Messenger.subscribe``.
        heartbeat_s: seconds after which a comment is sent where there is nothing else.

    Raises:
        InvalidChannelNameError, ValueError, TypeError: an argument is wrong.
        MessengerClosedError, StorageError: the channel cannot be read.

    Source: the HTML standard, "Server-sent events".
    """
    if heartbeat_s <= 0:
        raise ValueError(f"heartbeat_s={heartbeat_s!r} must be more than 0")
    if last_event_id and _OFFSET.fullmatch(last_event_id):
        start = int(last_event_id)
    return _Events(messenger.follow(channel, start), heartbeat_s)


class _Events:
    """The events, and what to give back when the server is done with them, begun or not."""

    def __init__(self, follower: Follower, heartbeat_s: float) -> None:
        self._follower = follower
        self._heartbeat_s = heartbeat_s
        self._greeted = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._greeted:
            # At once, so that the client knows that it is connected, and from where.
            self._greeted = True
            return b"retry: %d\nid: %d\n\n" % (_RECONNECT_MS, self._follower.position)
        try:
            records = self._follower.read(self._heartbeat_s)
        except MessengerClosedError:
            self.close()
            raise StopIteration from None
        if not records:
            return b": still here\n\n"
        return b"".join([_event(end, record) for end, record in records])

    def close(self) -> None:
        self._follower.close()


def _event(end: int, record: bytes) -> bytes:
    # A carriage return, which may stand between tokens, would end the line.
    return b"id: %d\ndata: %s\n\n" % (end, record.replace(b"\r", b" "))
