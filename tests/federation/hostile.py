"""Five hostile peers of one hub, and a sixth that is none: what does it notice of the others?

``python -m tests.federation.hostile`` prints how long its messages take from ``publish`` to the
handler of another good peer, without the five and with them.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gevent
from gevent import socket
from gevent.event import Event

from keyop import EphemeralMessenger, Message
from tests.integration.helpers import record
from tests.reliability.children import Child, arguments, say, wait_for
from tests.reliability.hub_child import HubChild, securing
from tests.transport.helpers import BINARY, CONTINUATION, PING, TEXT

from .rawpeers import RawGuest, pack

CHANNEL, TYPE = "good", "com.example.Good"
GOOD, LISTENER = "good", "good-listener"
# What the flooding peer fills is what the silent and the slow one are sent.
FLOOD = "flood"
_FLOOD_BATCH = 50
# Of a socket that nobody reads, so that the hub's sends soon have to wait.
_SMALL_BUFFER = 16 << 10
_SLOW_BYTES, _SLOW_EVERY_S = 512, 0.1
_AGAIN_AFTER_S = 0.05
_PAUSE_S = 0.005
_PATIENCE_S = 60.0

# An address, and what puts TLS around a socket connected to it.
Where = tuple[str, Callable[[Any], Any]]


def silent(where: Where, name: str) -> None:
    """Subscribe, and neither read nor say anything more."""
    guest = RawGuest(*where)
    try:
        _plain(guest).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        guest.greet(name, FLOOD)
        Event().wait()
    finally:
        guest.close()


def slow(where: Where, name: str) -> None:
    """Subscribe, read a few bytes now and then, and send its records byte by byte."""
    guest = RawGuest(*where)
    try:
        _plain(guest).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        guest.greet(name, FLOOD)
        line = _line(name, "slow")
        while True:
            guest.stream.recv(_SLOW_BYTES)
            guest.send(BINARY, pack(line)[:-1], fin=False)
            gevent.sleep(_SLOW_EVERY_S)
            guest.send(CONTINUATION, b"}")
    finally:
        guest.close()


def flooding(where: Where, name: str) -> None:
    """Send as much as goes, and wait for nothing."""
    guest = RawGuest(*where)
    try:
        guest.greet(name)
        while True:
            ids = [f"{random.getrandbits(128):036x}" for _ in range(_FLOOD_BATCH)]
            guest.batch(*(_line(name, FLOOD, id=each) for each in ids))
            guest.send(PING, b"ping")
    finally:
        guest.close()


def lying(where: Where, name: str) -> list[int]:
    """Declare lengths that are not so; return what each was closed with."""
    line = _line(name, "lies")
    lies: list[Callable[[RawGuest], None]] = [
        lambda guest: guest.send(BINARY, b"x", declared=1 << 62, width=8),
        lambda guest: guest.send(BINARY, b"\xff\xff\xff\xff" + line),
        lambda guest: guest.send(BINARY, pack(line)[:-2]),
        lambda guest: guest.send(PING, b"x" * 126),
    ]
    return [_closed_after(where, name, lie) for lie in lies]


LIES = [1009, 1002, 1002, 1002]


def malformed(where: Where, name: str) -> list[int]:
    """Send records that are none, and messages that may not come; return the close codes."""
    guest = RawGuest(*where)
    try:
        guest.greet(name)
        for broken in (b"", b"{}", b"\xff", b'{"v":1}', _line(name, "x")[:-1], _line(name, "../x")):
            guest.batch(broken)
            guest.hear()  # each is skipped, and acknowledged
    finally:
        guest.close()
    return [
        _closed_after(where, name, lambda guest: guest.say(last_id="of nothing")),
        _closed_after(where, name, lambda guest: guest.send(TEXT, b"{")),
        _closed_after(where, name, lambda guest: guest.send(TEXT, b"\xff")),
        _closed_after(where, "", lambda guest: guest.send(TEXT, b"no hello")),
        _closed_after(where, "", lambda guest: guest.send(BINARY, b"no hello")),
    ]


MALFORMED = [1002, 1002, 1007, 1002, 1003]

HOSTILE = {"silent": silent, "slow": slow, "flooding": flooding, "lying": lying,
           "malformed": malformed}  # fmt: skip


def _plain(guest: RawGuest) -> Any:
    return getattr(guest.stream, "_socket", guest.stream)


def _line(name: str, channel: str, **fields: Any) -> bytes:
    fields = {"id": "00000000-0000-4000-8000-000000000000", "origin": name, **fields}
    return record("x" * 100, channel=channel, **fields).rstrip(b"\n")


def _closed_after(where: Where, name: str, does: Callable[[RawGuest], None]) -> int:
    """Connect, say hello if there is a name, do something wrong; return the close code."""
    guest = RawGuest(*where)
    try:
        if name:
            guest.greet(name)
        does(guest)
        return guest.closed()[0]
    finally:
        guest.close()


def keep_on(hostile: Callable[[Where, str], object], where: Where, name: str) -> None:
    """Be hostile again and again; whatever the hub does about it."""
    while True:
        try:
            hostile(where, name)
        except (OSError, EOFError, AssertionError):  # it has closed the connection, or is busy
            pass
        gevent.sleep(_AGAIN_AFTER_S)


class Good:
    """Two peers that are none of these: one publishes, the other one's handler is called."""

    def __init__(self, address: str, publisher: dict[str, str], listener: dict[str, str]) -> None:
        self._publisher = EphemeralMessenger(address, tls=publisher)
        self._listener = EphemeralMessenger(address, tls=listener)
        self._handled: dict[int, float] = {}
        self.came: list[int] = []

    def __enter__(self) -> Good:
        self._listener.subscribe(CHANNEL, self._handle)
        self._listener.connect(_PATIENCE_S)
        self._publisher.connect(_PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.close()
        self._listener.close()

    def _handle(self, message: Message) -> None:
        self._handled[message.payload] = time.monotonic()
        self.came.append(message.payload)

    def talk(self, count: int) -> list[float]:
        """Publish one by one; return how long each took to be handled, in seconds."""
        taken = []
        for _ in range(count):
            number = len(self.came)
            begun = time.monotonic()
            self._publisher.publish(CHANNEL, TYPE, number, timeout=_PATIENCE_S)
            wait_for(lambda number=number: number in self._handled, f"message {number}")
            taken.append(self._handled[number] - begun)
            gevent.sleep(_PAUSE_S)
        return taken


# -- as a command


def attack() -> None:
    """The process of the five: be hostile until killed."""
    args = arguments()
    peers = [
        gevent.spawn(keep_on, hostile, (args["address"], securing(args["tls"][name])), name)
        for name, hostile in HOSTILE.items()
    ]
    say("begun")
    gevent.joinall(peers)


def p99(values: list[float]) -> float:
    """Return what 99 of 100 do not exceed."""
    return sorted(values)[int(0.99 * (len(values) - 1))]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--messages", type=int, default=3000, show_default=True, help="Each time.")
def main(messages: int) -> None:
    """Print the p99 from publish to handler of a good peer, without five hostile ones and with."""
    directory = Path(tempfile.mkdtemp(prefix="keyop-hostile-"))
    try:
        with HubChild(directory, [GOOD, LISTENER, *HOSTILE]) as hub:
            with Good(hub.address, hub.tls(GOOD), hub.tls(LISTENER)) as good:
                good.talk(messages // 10)
                without = p99(good.talk(messages))
                tls = {name: hub.tls(name) for name in HOSTILE}
                with Child("hostile_peers", directory, address=hub.address, tls=tls) as five:
                    five.wait_spoken()
                    among = p99(good.talk(messages))
            hub.child.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    click.echo(f"without: p99 {without * 1000:.2f} ms")
    click.echo(f"with:    p99 {among * 1000:.2f} ms")
    click.echo(f"ratio:   {among / without:.2f}")


if __name__ == "__main__":
    main()
