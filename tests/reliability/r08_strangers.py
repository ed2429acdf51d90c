"""R8: a thousand strangers take up a hub's time: idle handshakes, slow headers, silence.

Whoever is dropped comes again. A good client is let in all the same, and does not wait for them.
"""

from __future__ import annotations

import resource
import time
from random import Random
from typing import Any

import gevent
from gevent import socket

from keyop import EphemeralMessenger
from tests.federation.rawpeers import RawGuest

from .children import Child, arguments, say, wait_for
from .hub_child import HubChild, securing
from .row import Row, Run
from .workload import CHANNEL, TYPE, payload

TITLE = "idle handshakes, slow headers, silent peers"
_MAX_P99_S = 0.200
_GOOD, _STRANGER = "good", "stranger"
_KINDS = ("silent", "half_handshake", "idle", "slow_headers", "no_hello")
_HEAD = b"GET / HTTP/1.1\r\nHost: hub\r\nX-Long: "
_BYTE_EVERY_S = 0.5
_BACK_AFTER_S = 5.0
_PAUSE_S = 0.01
# What a hub has open beside its clients, may vary by so many.
_DESCRIPTORS_SPARE = 8
_PATIENCE_S = 60.0


def run(run: Run) -> Row:
    """Measure how long the hub takes to store what a good client publishes, in a crowd."""
    row = Row("R8", TITLE)
    strangers, places, messages = run.either((100, 16, 100), (1000, 128, 1000))
    with HubChild(run.directory, (_GOOD, _STRANGER), max_pending=places) as hub:
        before = hub.descriptors()
        quiet = _publish(hub, messages)
        crowd = Child(
            "r08_strangers",
            run.directory,
            address=hub.address,
            tls=hub.tls(_STRANGER),
            count=strangers,
            seed=run.seed,
        )
        with crowd:
            crowd.wait_spoken()
            begun = time.monotonic()
            taken = _publish(hub, messages)
            lasted_s = time.monotonic() - begun
            wait_for(lambda: hub.descriptors() <= before + places + _DESCRIPTORS_SPARE, "room")
            crowd.stop()
            came = max(int(line) for line in crowd.new_lines())
        wait_for(
            lambda: hub.descriptors() <= before + _DESCRIPTORS_SPARE, "strangers to be forgotten"
        )
        row.expect("Traceback" not in hub.child.errors, hub.child.errors)
        hub.child.stop()
    p99 = _percentile(taken, 0.99)
    row.note(
        strangers=strangers,
        connections=came,
        published=len(taken),
        seconds_in_the_crowd=lasted_s,
        alone_p99_s=_percentile(quiet, 0.99),
        p50_s=_percentile(taken, 0.5),
        p99_s=p99,
        max_s=max(taken),
    )
    row.expect(came >= strangers, f"only {came} strangers came")
    row.expect(len(taken) == messages, f"{len(taken)} of {messages} were stored")
    if not run.quick:  # a few say nothing
        row.expect(p99 < _MAX_P99_S, f"a good client waited for {p99:.3f} s (p99)")
    return row


def _publish(hub: HubChild, count: int) -> list[float]:
    """Publish one after the other as the good client; return how long each took, in seconds."""
    taken = []
    client = EphemeralMessenger(hub.address, instance_name=_GOOD, tls=hub.tls(_GOOD))
    try:
        client.connect(_PATIENCE_S)
        for n in range(count):
            begun = time.monotonic()
            client.publish(CHANNEL, TYPE, payload(_GOOD, n), timeout=_PATIENCE_S)
            taken.append(time.monotonic() - begun)
            gevent.sleep(_PAUSE_S)
    finally:
        client.close()
    return taken


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# -- the strangers' process


def main() -> None:
    args = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(args["address"], securing(args["tls"]), args["seed"])
    crowd.run(args["count"])


class Crowd:
    """Strangers, of each kind as many as of any other."""

    def __init__(self, address: str, secure: Any, seed: int) -> None:
        self._address = address
        self._secure = secure
        self._rng = Random(seed)
        self._came = 0

    def run(self, count: int) -> None:
        """Keep so many coming, until this is ended; say how many there were so far."""
        told = gevent.event.Event()
        signals = gevent.signal_handler(15, told.set)
        strangers = [gevent.spawn(self._keep_coming, _KINDS[n % len(_KINDS)]) for n in range(count)]
        wait_for(lambda: self._came >= count, "everybody to come", _PATIENCE_S)
        say(self._came)
        told.wait()
        say(self._came)
        gevent.killall(strangers)
        signals.cancel()

    def _keep_coming(self, kind: str) -> None:
        while True:
            try:
                getattr(self, kind)()
            except (OSError, EOFError, AssertionError):  # dropped, at whichever point
                pass
            gevent.sleep(self._rng.uniform(0.5, 1.5) * _BACK_AFTER_S)

    def _connected(self) -> Any:
        host, port = self._address.split(":")
        stream = socket.create_connection((host, int(port)), _PATIENCE_S)
        self._came += 1
        return stream

    def silent(self) -> None:
        """Connect, and say nothing."""
        with self._connected() as stream:
            _wait_end(stream)

    def half_handshake(self) -> None:
        """Begin a TLS handshake and leave it at that."""
        with self._connected() as stream:
            stream.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            _wait_end(stream)

    def idle(self) -> None:
        """Shake hands, and say nothing."""
        secured = self._secure(self._connected())
        try:
            _wait_end(secured)
        finally:
            secured.close()

    def slow_headers(self) -> None:
        """Send a request byte by byte."""
        secured = self._secure(self._connected())
        try:
            secured.sendall(_HEAD)
            while True:
                gevent.sleep(_BYTE_EVERY_S)
                secured.sendall(b"x")
        finally:
            secured.close()

    def no_hello(self) -> None:
        """Upgrade, and never say hello."""
        self._came += 1
        guest = RawGuest(self._address, self._secure)
        try:
            guest.read()
        finally:
            guest.close()


def _wait_end(stream: Any) -> None:
    while stream.recv(1 << 12):
        pass


if __name__ == "__main__":
    main()
