"""What is on its way to a peer, or waits for it: bounded, whatever is in the log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from keyop import EphemeralMessenger
from keyop.federation import receiver
from tests.federation.helpers import Instances, federation_of, wait_until
from tests.federation.rawpeers import RawGuest
from tests.integration.helpers import record, write_offset, write_segment
from tests.reliability.hub_child import HubChild
from tests.transport.helpers import BINARY, frame, spawned

from .helpers import MIB, SMALL_BUFFER, child_serves, guest, narrowed, serves

PEER, GOOD = "alpha", "beta"
WINDOW, BATCH_BYTES = 8, 64 << 10
LOG_BYTES = 96 * MIB
# What a peer may cost a hub beside the records that are on their way to it.
SPARE_BYTES = 16 * MIB
QUEUED_BYTES = 64 << 10
CONNECTIONS = 24
UNREAD = 15_000


@contextmanager
def hub_with_a_log(directory: Path, record_bytes: int, channels: int = 1) -> Iterator[HubChild]:
    """Give a hub in a process of its own that has much for alpha, in records of so many bytes."""
    line = record("x" * record_bytes)
    for number in range(channels):
        count = LOG_BYTES // channels // len(line)
        write_segment(directory / "data", f"orders-{number}", 0, line * count)
        write_offset(directory / "data", f"orders-{number}", f"fed-{PEER}", 0)
    with HubChild(directory, [PEER, GOOD]) as hub:
        child_serves(hub, GOOD)  # what the first one loads is nobody's cost
        yield hub


@contextmanager
def connected(hub: HubChild, small: bool = False, channels: int = 1, **hello: Any) -> Iterator[Any]:
    """Give alpha, subscribed to everything that there is for it."""
    wrap = hub.securing(PEER)
    peer = RawGuest(hub.address, narrowed(wrap) if small else wrap)
    try:
        names = [f"orders-{number}" for number in range(channels)]
        hello = {"features": [], "max_record_bytes": 10 * MIB, **hello}
        peer.greet(PEER, *names, **hello)
        yield peer
    finally:
        peer.close()


def test_of_a_peer_that_never_acknowledges(tmp_path: Path) -> None:
    """It is sent one window of batches, and nothing more, however much it reads."""
    with hub_with_a_log(tmp_path, 1000) as hub:
        before = hub.forget_peak()
        with connected(hub) as peer:
            batches = [peer.message().payload for _ in range(WINDOW)]
            peer.stays_silent()
            assert max(map(len, batches)) <= BATCH_BYTES
            child_serves(hub, GOOD)
            peer.stays_silent()
        assert hub.peak() - before < SPARE_BYTES


@pytest.mark.parametrize("record_bytes", [1000, 9 * MIB])
def test_of_a_peer_that_never_reads(tmp_path: Path, record_bytes: int) -> None:
    """Of all that is there for it, what goes into one batch waits in memory for the socket."""
    with hub_with_a_log(tmp_path, record_bytes) as hub:
        before = hub.forget_peak()
        with connected(hub, small=True):
            for _ in range(5):
                child_serves(hub, GOOD, 2)
        # A record is read, checked and put into a batch, of which each takes a copy for a moment.
        assert hub.peak() - before < SPARE_BYTES + 10 * record_bytes


def test_of_many_channels(tmp_path: Path) -> None:
    """The window is the peer's, and not each channel's."""
    with hub_with_a_log(tmp_path, 1000, channels=50) as hub:
        before = hub.forget_peak()
        with connected(hub, channels=50) as peer:
            for _ in range(WINDOW):
                peer.message()
            peer.stays_silent()
            child_serves(hub, GOOD, 2)
        assert hub.peak() - before < 2 * SPARE_BYTES


def test_of_many_connections(tmp_path: Path) -> None:
    """Each connection of one name holds what one may hold, and no more."""
    with hub_with_a_log(tmp_path, 1000) as hub, ExitStack() as leaving:
        for _ in range(CONNECTIONS):
            leaving.enter_context(connected(hub, small=True, ephemeral=True))
        before = hub.forget_peak()
        with EphemeralMessenger(hub.address, tls=hub.tls(GOOD)) as good:
            for _ in range(3):
                good.publish("orders-0", "com.example.Large", "x" * MIB, timeout=5)
        child_serves(hub, GOOD, 5)
        assert hub.peak() - before < SPARE_BYTES + 3 * MIB * CONNECTIONS


def unmasked(batch: bytes) -> bytes:
    return frame(BINARY, batch, mask=b"\0\0\0\0")


# Frames that cost next to nothing to send, and how many of them.
FLOODS = {
    "empty batches": (unmasked(b""), 10_000),
    "empty records": (unmasked(b"\0\0\0\0" * 5000), 80),
    "records of two bytes": (unmasked(b"\0\0\0\2{}" * 5000), 80),
    "records of no use": (unmasked((b"\0\0\3\xe8" + b"x" * 1000) * 50), 40),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_of_a_peer_that_floods(
    instances: Instances, monkeypatch: pytest.MonkeyPatch, flood: str
) -> None:
    """Who never reads its acknowledgements is read no further ahead than a bound of memory."""
    monkeypatch.setattr(receiver, "MAX_QUEUED_BYTES", QUEUED_BYTES)
    hub = instances.hub()
    with guest(instances, hub, PEER) as alpha:
        (client,) = federation_of(hub).hub._clients
        client.link.connection._stream._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER
        )

        data, count = FLOODS[flood]
        sizes: list[int] = []
        receive = client.receiver.receive

        def counted(records: list[bytes]) -> None:
            sizes.append(len(records))
            receive(records)

        def taken() -> bool:
            """Whether the hub has read it all, or reads no further."""
            return client.receiver.waits or len(sizes) == UNREAD + count

        client.receiver.receive = counted
        # First, more acknowledgements than the sockets hold.
        with spawned(alpha.raw, unmasked(b"") * UNREAD + data * count):
            wait_until(taken, 10, "the flood to be read")
            assert held(client.receiver) < 8 * QUEUED_BYTES
        serves(instances, hub)


def held(queue_of: receiver.Receiver) -> int:
    """Return the bytes of memory that a receiver's queue takes."""
    objects = [each for batch in queue_of._queue for each in (batch, *batch)]
    return sum({id(each): sys.getsizeof(each) for each in objects}.values())
