"""The figures of one host: publishing, delivering, several processes on one directory."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import orjson
from gevent.event import Event

from keyop.bench.measure import Figure, percentile, rate_figure, seconds
from keyop.config import Config
from keyop.envelope import Message
from keyop.fs import FileSystem
from keyop.messenger import Messenger
from keyop.storage.segment import list_starts, segment_path

PAYLOAD_TYPE = "com.example.Reading"
PAYLOAD_BYTES = 200
_BATCH = 64
_GREENLETS = 64


def payload(number: int) -> dict[str, Any]:
    """Return a JSON object of 200 bytes."""
    made: dict[str, Any] = {"reading": number, "unit": "celsius", "note": ""}
    made["note"] = "x" * (PAYLOAD_BYTES - len(orjson.dumps(made)))
    return made


class Bench:
    """Runs the figures below one directory. ``scale`` is the share of the full counts."""

    def __init__(self, directory: str, scale: float = 1.0, rounds: int = 7) -> None:
        self._directory = directory
        self._scale = scale
        self._rounds = rounds

    def figures(self) -> Iterator[tuple[str, Callable[[], Figure]]]:
        """Yield each figure's name and what measures it."""
        yield "publish", self.publish
        yield "batch", self.batch
        yield "always", self.always
        yield "backlog", self.backlog
        yield "latency", self.latency
        yield "memory", self.memory
        yield "stall", self.stall
        yield "two-writers", self.two_writers

    def _count(self, full: int, least: int = 64) -> int:
        return max(least, int(full * self._scale))

    @contextmanager
    def _messenger(self, fs: FileSystem | None = None, **storage: Any) -> Iterator[Messenger]:
        directory = tempfile.mkdtemp(dir=self._directory)
        config = Config.from_dict({"storage": {"data_dir": directory, **storage}})
        messenger = Messenger(config, fs=fs) if fs else Messenger(config)
        try:
            with messenger:
                yield messenger
        finally:
            shutil.rmtree(directory)

    def _bare_writes(self, lines: list[bytes], sync: bool = False) -> float:
        """Return how many of these lines ``os.write`` takes in a second."""
        path = os.path.join(self._directory, "bare")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        write, fdatasync = os.write, os.fdatasync
        try:
            begun = time.perf_counter()
            for line in lines:
                write(fd, line)
                if sync:
                    fdatasync(fd)
            return len(lines) / (time.perf_counter() - begun)
        finally:
            os.close(fd)
            os.unlink(path)

    # -- publishing

    def publish(self) -> Figure:
        """One greenlet under ``periodic``, against a bare ``os.write`` of the same lines."""
        payloads = [payload(number) for number in range(self._count(50_000))]

        with self._messenger() as messenger:

            def publish() -> float:
                return self._publish_all(messenger, payloads)

            publish()
            lines = self._lines(messenger, "readings", len(payloads))
            return rate_figure(
                "publish, one greenlet", "bare os.write", 0.22, self._rounds,
                publish, lambda: self._bare_writes(lines),
            )  # fmt: skip

    def _publish_all(self, messenger: Messenger, payloads: list[dict[str, Any]]) -> float:
        """Return how many messages one greenlet publishes in a second, one after the other."""
        send = messenger.publish
        begun = time.perf_counter()
        for each in payloads:
            send("readings", PAYLOAD_TYPE, each)
        return len(payloads) / (time.perf_counter() - begun)

    def batch(self) -> Figure:
        """``publish_batch`` of 64, against a bare ``os.write`` of the same lines."""
        count = self._count(50_000) // _BATCH * _BATCH
        pairs = [(PAYLOAD_TYPE, payload(number)) for number in range(count)]
        batches = [pairs[start : start + _BATCH] for start in range(0, count, _BATCH)]

        with self._messenger() as messenger:

            def publish() -> float:
                send = messenger.publish_batch
                begun = time.perf_counter()
                for each in batches:
                    send("readings", each)
                return count / (time.perf_counter() - begun)

            publish()
            lines = self._lines(messenger, "readings", count)
            return rate_figure(
                "publish_batch of 64", "bare os.write", 0.5, self._rounds,
                publish, lambda: self._bare_writes(lines),
            )  # fmt: skip

    def always(self) -> Figure:
        """64 greenlets under ``always``, against one write and fdatasync at a time."""
        each = self._count(400, 8)
        alone = self._count(1_000, 32)

        with self._messenger(sync_policy="always") as messenger:

            def publish_some(number: int) -> None:
                made = payload(number)
                for _ in range(each):
                    messenger.publish("readings", PAYLOAD_TYPE, made)

            def publish() -> float:
                begun = time.perf_counter()
                greenlets = [gevent.spawn(publish_some, number) for number in range(_GREENLETS)]
                gevent.joinall(greenlets, raise_error=True)
                return each * _GREENLETS / (time.perf_counter() - begun)

            publish()
            lines = self._lines(messenger, "readings", alone)
            return rate_figure(
                "64 greenlets, always", "write + fdatasync", 15, self._rounds,
                publish, lambda: self._bare_writes(lines, sync=True),
            )  # fmt: skip

    def _lines(self, messenger: Messenger, channel: str, count: int) -> list[bytes]:
        directory = f"{messenger.config.storage.data_dir}/channels/{channel}"
        lines: list[bytes] = []
        for start in list_starts(FileSystem(), directory):
            with open(segment_path(directory, start), "rb") as file:
                for line in file:
                    lines.append(line)
                    if len(lines) == count:
                        return lines
        return lines

    # -- delivering

    def backlog(self) -> Figure:
        """A backlog, position saved after each message, against parsing the same lines."""
        count = self._count(100_000)
        with self._messenger() as messenger:
            self._fill(messenger, count)
            lines = self._lines(messenger, "readings", count)

            def deliver() -> float:
                return self._deliver_all(messenger, count)

            def parse() -> float:
                loads = orjson.loads
                begun = time.perf_counter()
                for line in lines:
                    loads(line)
                return count / (time.perf_counter() - begun)

            return rate_figure(
                "backlog, position saved each", "orjson.loads", 0.3, self._rounds, deliver, parse
            )

    def _deliver_all(self, messenger: Messenger, count: int) -> float:
        """Return how many messages of a backlog a new subscriber is given in a second."""
        done = Event()
        seen = 0

        def handle(message: Message) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                done.set()

        begun = time.perf_counter()
        messenger.subscribe("readings", "reader", handle, start="earliest")
        done.wait()
        rate = count / (time.perf_counter() - begun)
        messenger.unsubscribe("readings", "reader")
        return rate

    def _fill(self, messenger: Messenger, count: int) -> None:
        pairs = [(PAYLOAD_TYPE, payload(number)) for number in range(1000)]
        for start in range(0, count, len(pairs)):
            messenger.publish_batch("readings", pairs[: count - start])

    def latency(self) -> Figure:
        """Publish to handler, one at a time, against a ping-pong between two gevent Events."""
        count = self._count(3_000)
        mine: list[float] = []
        limits: list[float] = []
        with self._messenger() as messenger:
            handled = Event()
            handled_at = 0.0

            def handle(message: Message) -> None:
                nonlocal handled_at
                handled_at = time.perf_counter()
                handled.set()

            messenger.subscribe("readings", "reader", handle)
            made = payload(1)
            for _ in range(self._rounds):
                taken = []
                for _ in range(count):
                    handled.clear()
                    begun = time.perf_counter()
                    messenger.publish("readings", PAYLOAD_TYPE, made)
                    handled.wait()
                    taken.append(handled_at - begun)
                mine.append(percentile(taken, 0.5) * 1e6)
                limits.append(_ping_pong(count) * 1e6)
        ratios = [a / b for a, b in zip(mine, limits, strict=True)]
        return Figure(
            "publish to handler, p50", "µs", statistics.median(mine), "Event ping-pong",
            statistics.median(limits), statistics.median(ratios), 4, False, ratios,
        )  # fmt: skip

    def memory(self) -> Figure:
        """How much a process grows while it reads a backlog of 1 GiB, in MiB."""
        wanted = self._count(1 << 30, 1 << 20)
        directory = tempfile.mkdtemp(dir=self._directory)
        try:
            config = Config.from_dict({"storage": {"data_dir": directory}})
            with Messenger(config) as messenger:
                pairs = [(PAYLOAD_TYPE, payload(number)) for number in range(1000)]
                while (size := messenger.stats().channels[0].end_offset if size_known(messenger)
                       else 0) < wanted:  # fmt: skip
                    for _ in range(20):
                        messenger.publish_batch("readings", pairs)
            grown = float(_child("read", directory, str(size)))
        finally:
            shutil.rmtree(directory)
        limit = 32.0
        return Figure(
            f"growth over {size / (1 << 20):.0f} MiB read", "MiB", grown, "allowed", limit,
            grown / limit, 1.0, False,
        )  # fmt: skip

    # -- what must not happen

    def stall(self) -> Figure:
        """How long another greenlet is held up while each fsync takes 100 ms, in ms."""
        with self._messenger(fs=_SlowDisk(), sync_policy="always") as messenger:
            gaps: list[float] = []
            running = True

            def tick() -> None:
                last = time.perf_counter()
                while running:
                    gevent.sleep(0.001)
                    now = time.perf_counter()
                    gaps.append(now - last)
                    last = now

            ticker = gevent.spawn(tick)
            made = payload(1)
            for _ in range(self._count(20, 3)):
                messenger.publish("readings", PAYLOAD_TYPE, made)
            running = False
            ticker.join()
        worst = max(gaps) * 1e3
        return Figure(
            "held up, fsync takes 100 ms", "ms", worst, "allowed", 20.0, worst / 20.0, 1.0, False
        )

    def two_writers(self) -> Figure:
        """Two processes publishing to one channel together, against one alone."""
        count = self._count(50_000)

        def run(processes: int) -> float:
            directory = tempfile.mkdtemp(dir=self._directory)
            try:
                children = [_start("write", directory, str(count)) for _ in range(processes)]
                for child in children:
                    assert child.stdout is not None
                    child.stdout.readline()  # ready
                taken = seconds(lambda: _go(children))
                return count * processes / taken
            finally:
                shutil.rmtree(directory)

        return rate_figure(
            "two processes, one channel", "one process", 0.6, self._rounds,
            lambda: run(2), lambda: run(1),
        )  # fmt: skip


def size_known(messenger: Messenger) -> bool:
    """Tell whether the messenger has a channel yet."""
    return bool(messenger.stats().channels)


class _SlowDisk(FileSystem):
    """A disk that takes 100 ms for each fsync."""

    @staticmethod
    def fdatasync(fd: int) -> None:  # type: ignore[override] # replaces a static builtin
        _block(0.1)
        os.fdatasync(fd)


_block = time.sleep  # the real one: bound before anything could patch it


def _ping_pong(count: int) -> float:
    there, back = Event(), Event()

    def answer() -> None:
        for _ in range(count):
            there.wait()
            there.clear()
            back.set()

    greenlet = gevent.spawn(answer)
    gevent.sleep(0)
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        there.set()
        back.wait()
        back.clear()
        taken.append(time.perf_counter() - begun)
    greenlet.join()
    return percentile(taken, 0.5)


# -- child processes


def _start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "keyop.bench.local", *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _go(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()  # done
    for child in children:
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _child(*args: str) -> str:
    child = _start(*args)
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"a child process failed with status {child.returncode}")
    return out.splitlines()[-1]


def _write(directory: str, count: str) -> None:
    payloads = [payload(number) for number in range(int(count))]
    with Messenger(data_dir=directory) as messenger:
        messenger.publish("readings", PAYLOAD_TYPE, payloads[0])
        print("ready", flush=True)
        sys.stdin.read()
        for each in payloads:
            messenger.publish("readings", PAYLOAD_TYPE, each)
        print("done", flush=True)


def _read(directory: str, size: str) -> None:
    done = Event()
    before = 0.0
    peak = 0.0

    def handle(message: Message) -> None:
        nonlocal before, peak
        if message.offset % (1 << 20) < 400:
            now = _resident_mib()
            before = before or now
            peak = max(peak, now)
        if message.offset > int(size) - 400:
            done.set()

    with Messenger(data_dir=directory) as messenger:
        subscription = messenger.subscribe("readings", "reader", handle, start="earliest")
        while subscription.lag_bytes:
            done.wait(0.05)
    print(peak - before)


def _resident_mib() -> float:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


if __name__ == "__main__":
    {"write": _write, "read": _read}[sys.argv[1]](sys.argv[2], sys.argv[3])
