"""What each contender's library does in a process of its own, in the idiom that suits it."""

from __future__ import annotations

import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keyop.bench.peers.place import TOGETHER, Place

Payload = dict[str, Any]
# Given each message's payload in turn; tells whether it was the last to wait for.
Handle = Callable[[Payload], bool]


class Client(ABC):
    """One connection to a contender. Payloads are serialized, and parsed, message by message."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @abstractmethod
    def publish(self, payloads: Iterable[Payload]) -> None:
        """Publish one after the other, each confirmed before the next is asked for."""

    @abstractmethod
    def batch(self, payloads: Sequence[Payload]) -> None:
        """Publish 64 at a time, all confirmed before the next 64."""

    @abstractmethod
    def publish_together(self, payloads: Sequence[Payload]) -> None:
        """Publish from 64 publishers, each waiting for its own confirmation."""

    def stream(self, payloads: Sequence[Payload]) -> None:
        """Publish in the fastest way after which all are confirmed."""
        self.batch(payloads)

    @abstractmethod
    def subscribe(self) -> None:
        """Have what is published from now on kept for this process's name."""

    @abstractmethod
    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        """Handle what is kept and what comes, one after the other, until ``handle`` says so.

        Each message is acknowledged, or the position after it saved, once it is handled.
        ``ready`` is called when what comes next would be handled at once.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""

    # -- waiting, in the way of the contender's loop

    def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        time.sleep(seconds)

    def socket(self) -> socket.socket:
        """Return a datagram socket on a free port of 127.0.0.1."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
        return made

    def await_word(self) -> None:
        """Wait for a line on stdin, or its end."""
        sys.stdin.buffer.readline()


def shares(payloads: Sequence[Payload]) -> list[Sequence[Payload]]:
    """Return what each of 64 publishers publishes."""
    return [payloads[number::TOGETHER] for number in range(TOGETHER)]


def batches(payloads: Sequence[Payload], size: int = TOGETHER) -> Iterable[Sequence[Payload]]:
    """Yield so many at a time."""
    for start in range(0, len(payloads), size):
        yield payloads[start : start + size]


def in_threads(work: Callable[[Sequence[Payload]], None], payloads: Sequence[Payload]) -> None:
    """Have 64 threads do their shares.

    Raises:
        BaseException: what the first of them that failed has raised.
    """
    failed: list[BaseException] = []

    def run(share: Sequence[Payload]) -> None:
        try:
            work(share)
        except BaseException as error:  # a thread's errors would be lost: told to who waits
            failed.append(error)

    threads = [threading.Thread(target=run, args=(share,)) for share in shares(payloads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
