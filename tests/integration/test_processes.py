"""Several processes on one data directory: leases, waking each other, forks, rolls, the sweeper."""

from __future__ import annotations

import logging
import os
import signal
import statistics
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import Messenger, SubscriberInUseError
from keyop.clock import Clock
from keyop.testing import drain

from .helpers import (
    Recorder,
    Worker,
    channel_dir,
    log_bytes,
    offset_path,
    record,
    records,
    running,
    segments,
    stored_offset,
    wait_until,
    write_segment,
)

# A busy machine may keep a process waiting for long; what it promises in less is measured.
PATIENCE_S = 30
TAKEOVER_S = 2.0

HOLDER = """
m = make()
def handle(message):
    say("got", message.payload)
s = m.subscribe("orders", "s", handle, start="earliest", standby="standby" in sys.argv)
say("subscribed")
while not s.active:
    gevent.sleep(0.005)
say("active", time.monotonic())
while not os.path.exists(sys.argv[2]):
    gevent.sleep(0.01)
say("stopping")
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(data_dir: Path) -> Iterator[Any]:
    """Start a process that ends, at the latest, with the test."""
    with ExitStack() as workers:
        yield lambda code, *args: workers.enter_context(Worker(code, data_dir, *args))


needs_proc_locks = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="the kernel does not tell who holds which lock"
)


def flock_holder(path: Path) -> int | None:
    """Return the process that holds a lock on the file."""
    if not path.exists():  # whoever comes first makes it
        return None
    inode = str(path.stat().st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return None


def contiguous(data_dir: Path, channel: str = "orders") -> bool:
    position = None
    for path in segments(data_dir, channel):
        if position not in (None, int(path.stem)):
            return False
        position = int(path.stem) + path.stat().st_size
    return True


class TestLeases:
    def test_one_holder(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """An id that another process holds can be neither subscribed nor unsubscribed."""
        holder = start(HOLDER, tmp_path / "never")
        holder.wait_line("active", PATIENCE_S)
        with running(data_dir) as messenger:
            with pytest.raises(SubscriberInUseError, match="'s'"):
                messenger.subscribe("orders", "s", Recorder())
            with pytest.raises(SubscriberInUseError, match="'s'"):
                messenger.unsubscribe("orders", "s")
            assert offset_path(data_dir, "orders", "s").exists()
            # Another id, and the same id of another channel, are free.
            messenger.subscribe("orders", "t", Recorder())
            messenger.subscribe("invoices", "s", Recorder())
            messenger.publish("orders", "t", 1)
            holder.wait_line("got 1", PATIENCE_S)

    def test_free_again(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """Once the holder has ended, whichever way, the next one goes on where it stopped."""
        go = tmp_path / "go"
        holder = start(HOLDER, go)
        holder.wait_line("active", PATIENCE_S)
        with running(data_dir) as messenger:
            messenger.publish("orders", "t", 1)
            holder.wait_line("got 1", PATIENCE_S)
            wait_until(lambda: stored_offset(data_dir, "orders", "s") > 0, PATIENCE_S)
            holder.kill()
            messenger.publish("orders", "t", 2)
            seen = Recorder()
            subscription = messenger.subscribe("orders", "s", seen)
            assert seen.wait(1, PATIENCE_S) == [2]
            subscription.stop()
            second = start(HOLDER, go)
            messenger.publish("orders", "t", 3)
            second.wait_line("got 3", PATIENCE_S)
            go.touch()
            second.wait_line("stopping", PATIENCE_S)
            second.wait(PATIENCE_S)
            seen = Recorder()
            messenger.subscribe("orders", "s", seen)
            messenger.publish("orders", "t", 4)
            assert seen.wait(1, PATIENCE_S) == [4]

    def test_standby_after_a_kill(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """A standby has the id within two seconds, again and again; nothing is lost."""
        never = tmp_path / "never"
        workers = [start(HOLDER, never, "standby")]
        workers[0].wait_line("active", PATIENCE_S)
        with running(data_dir) as messenger:
            published = 0
            for _ in range(3):
                holder = workers[-1]
                workers.append(start(HOLDER, never, "standby"))
                workers[-1].wait_line("subscribed", PATIENCE_S)
                for _ in range(10):
                    messenger.publish("orders", "t", published)
                    published += 1
                holder.wait_line(f"got {published - 5}", PATIENCE_S)
                killed = time.monotonic()
                holder.kill()
                active = float(workers[-1].wait_line("active", PATIENCE_S).split()[1])
                assert active - killed < TAKEOVER_S
            messenger.publish("orders", "t", published)
            workers[-1].wait_line(f"got {published}", PATIENCE_S)
        due = 0
        for worker in workers:
            got = [int(line.split()[1]) for line in worker.lines if line.startswith("got")]
            if got:
                assert due - 1 <= got[0] <= due
                assert got == [*range(got[0], got[-1] + 1)]
                due = max(due, got[-1] + 1)
        assert due == published + 1

    def test_standby_after_a_stop(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """After a clean end as well, and then nothing comes twice."""
        go = tmp_path / "go"
        holder = start(HOLDER, go)
        holder.wait_line("active", PATIENCE_S)
        standby = start(HOLDER, tmp_path / "never", "standby")
        standby.wait_line("subscribed", PATIENCE_S)
        with running(data_dir) as messenger:
            messenger.publish("orders", "t", 1)
            holder.wait_line("got 1", PATIENCE_S)
            go.touch()
            holder.wait_line("stopping", PATIENCE_S)
            stopped = time.monotonic()
            active = float(standby.wait_line("active", PATIENCE_S).split()[1])
            assert active - stopped < TAKEOVER_S
            messenger.publish("orders", "t", 2)
            standby.wait_line("got 2", PATIENCE_S)
            holder.wait(PATIENCE_S)
        assert not [line for line in standby.lines if line == "got 1"]

    def test_one_of_two_standbys(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """Only one of them takes over; the other one is the next."""
        never = tmp_path / "never"
        holder = start(HOLDER, never)
        holder.wait_line("active", PATIENCE_S)
        waiting = [start(HOLDER, never, "standby") for _ in range(2)]
        for each in waiting:
            each.wait_line("subscribed", PATIENCE_S)
        holder.kill()

        def active() -> list[Worker]:
            return [each for each in waiting if "active" in " ".join(each.lines)]

        (first,) = wait_until(active, PATIENCE_S, "a standby to take over")
        # Twice as long as they look for the lease.
        gevent.sleep(0.6)
        assert active() == [first]
        first.kill()
        second = next(each for each in waiting if each is not first)
        second.wait_line("active", PATIENCE_S)

    def test_standby_of_a_forgotten_id(
        self, data_dir: Path, start: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """When the holder unsubscribes, the standby elsewhere stops, and says so."""
        holder = start(
            """
            m = make()
            m.subscribe("orders", "s", print)
            say("active")
            wait_for(sys.argv[2])
            m.unsubscribe("orders", "s")
            say("forgotten")
            gevent.sleep(60)
            """,
            data_dir.parent / "go",
        )
        holder.wait_line("active", PATIENCE_S)
        with running(data_dir) as messenger, caplog.at_level(logging.WARNING):
            standby = messenger.subscribe("orders", "s", Recorder(), standby=True)
            assert (standby.running, standby.active) == (True, False)
            (data_dir.parent / "go").touch()
            holder.wait_line("forgotten", PATIENCE_S)
            wait_until(lambda: not standby.running, PATIENCE_S, "the standby to stop")
            assert "standby of s stops" in caplog.text
            assert not offset_path(data_dir, "orders", "s").exists()
            # The id is free, and new.
            messenger.publish("orders", "t", "old")
            seen = Recorder()
            messenger.subscribe("orders", "s", seen)
            messenger.publish("orders", "t", "new")
            assert seen.wait(1, PATIENCE_S) == ["new"]

    def test_a_standby_stops_at_once(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """Stopping one that waits, and closing its messenger, does not wait for the holder."""
        holder = start(HOLDER, tmp_path / "never")
        holder.wait_line("active", PATIENCE_S)
        with running(data_dir) as messenger:
            standbys = [
                messenger.subscribe("orders", "s", Recorder(), standby=True) for _ in range(2)
            ]
            standbys[0].stop()
            assert not standbys[0].running
            assert standbys[1].running
        assert not standbys[1].running
        assert holder.process.poll() is None


class TestWaking:
    CONSUMER = """
    def handle(message):
        say("got", message.payload["n"], time.monotonic() - message.payload["sent"])
    m = make()
    m.subscribe("orders", "s", handle)
    say("ready")
    gevent.sleep(120)
    """

    @staticmethod
    def publish(data_dir: Path, consumer: Worker, count: int, pause_s: float) -> list[float]:
        """Publish one by one; return how long each was under way, in seconds."""
        consumer.wait_line("ready", PATIENCE_S)
        # A segment for every two, so that the reader has to find new files as well.
        with running(data_dir, storage={"max_segment_bytes": 500}) as messenger:
            for n in range(count):
                messenger.publish("orders", "t", {"n": n, "sent": time.monotonic()})
                gevent.sleep(pause_s)
            consumer.wait_line(f"got {count - 1} ", PATIENCE_S)
        got = [line.split() for line in consumer.lines if line.startswith("got")]
        assert [int(words[1]) for words in got] == [*range(count)]
        assert len(segments(data_dir, "orders")) > count // 3
        return [float(words[2]) for words in got]

    def test_by_inotify(self, data_dir: Path, start: Any) -> None:
        """A reader in another process has a record long before it would look for itself."""
        latencies = self.publish(data_dir, start(self.CONSUMER), 40, 0.02)
        assert statistics.median(latencies) < 0.2

    @pytest.mark.parametrize(
        "without",
        [
            "sys.modules['pyinotify'] = None",
            """
            import pyinotify
            def refuse(*args, **kwargs):
                raise pyinotify.WatchManagerError("no watches left", {})
            pyinotify.WatchManager.add_watch = refuse
            """,
            """
            import pyinotify
            def refuse(*args, **kwargs):
                raise OSError(24, "too many inotify instances")
            pyinotify.WatchManager = refuse
            """,
        ],
        ids=["no pyinotify", "no watches left", "no instances left"],
    )
    def test_by_polling(self, data_dir: Path, start: Any, without: str) -> None:
        """Where inotify does not serve, the reader looks every second, and says so."""
        code = textwrap.dedent(without) + "\n" + textwrap.dedent(self.CONSUMER)
        consumer = start(code)
        latencies = self.publish(data_dir, consumer, 6, 0.3)
        assert max(latencies) < PATIENCE_S
        # On a machine with nothing else to do it is one second at the most.
        assert statistics.median(latencies) < 3
        assert "every 1 s" in consumer._err.read_text()

    def test_a_backlog_of_another_process(self, data_dir: Path, start: Any) -> None:
        """A reader that joins while another process publishes gets everything from its start on."""
        publisher = start(
            """
            m = make(max_segment_bytes=2000)
            for n in range(3000):
                m.publish("orders", "t", n)
                if n % 10 == 0:
                    gevent.sleep(0.001)
                if n == 500:
                    say("under way")
            m.close()
            """
        )
        publisher.wait_line("under way", PATIENCE_S)
        early, late = Recorder(), Recorder()
        with running(data_dir) as messenger:
            messenger.subscribe("orders", "late", late)
            messenger.subscribe("orders", "early", early, start="earliest")
            publisher.wait(PATIENCE_S)
            early.wait(3000, PATIENCE_S)
            drain(messenger)
        assert early.payloads == [*range(3000)]
        assert late.payloads == [*range(late.payloads[0], 3000)]


class TestForks:
    def test_refused_in_the_child(self, data_dir: Path, start: Any) -> None:
        """Every call raises ForkedError, naming both processes; the parent is not disturbed."""
        worker = start(
            """
            m = make()
            seen = []
            s = m.subscribe("orders", "s", lambda message: seen.append(message.payload))
            m.publish("orders", "t", 1)
            parent = os.getpid()
            pid = os.fork()
            if not pid:
                calls = dict(
                    publish=lambda: m.publish("orders", "t", 2),
                    publish_new_channel=lambda: m.publish("invoices", "t", 2),
                    publish_batch=lambda: m.publish_batch("orders", [("t", 2)]),
                    subscribe=lambda: m.subscribe("orders", "other", print),
                    unsubscribe=lambda: m.unsubscribe("orders", "s"),
                    stats=m.stats, sweep=m.sweep, start=m.start,
                    reopen=lambda: m.reopen("orders"),
                )
                for name, call in calls.items():
                    try:
                        call()
                        say("worked", name)
                    except ForkedError as error:
                        named = str(parent) in str(error) and str(os.getpid()) in str(error)
                        say("refused", name, named)
                m.close()
                say("closed")
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            say("child", status)
            m.publish("orders", "t", 3)
            m.publish_batch("orders", [("t", 4), ("t", 5)])
            while len(seen) < 4:
                gevent.sleep(0.005)
            say("seen", seen, s.active)
            m.close()
            """
        )
        worker.wait(PATIENCE_S)
        refused = [line for line in worker.lines if line.startswith("refused")]
        assert len(refused) == 9
        assert all(line.endswith("True") for line in refused), refused
        assert worker.lines[9:] == ["closed", "child 0", "seen [1, 3, 4, 5] True"]
        assert [each["payload"] for each in records(data_dir, "orders")] == [1, 3, 4, 5]
        assert not channel_dir(data_dir, "invoices").exists()

    def test_not_started_before_the_fork(self, data_dir: Path, start: Any) -> None:
        """A messenger made before and used after it works in every child, as does a new one."""
        worker = start(
            """
            from gevent import os as gevent_os
            m = make()
            pids = []
            for number in range(3):
                pid = gevent_os.fork()
                if not pid:
                    for n in range(50):
                        m.publish("orders", "t", [number, n])
                    m.close()
                    os._exit(0)
                pids.append(pid)
            for pid in pids:
                say("child", os.waitpid(pid, 0)[1])
            m.publish("orders", "t", "parent")
            m.close()
            """
        )
        worker.wait(PATIENCE_S)
        assert worker.lines == ["child 0"] * 3
        payloads = [each["payload"] for each in records(data_dir, "orders")]
        for number in range(3):
            own = [each[1] for each in payloads if each[0] == number]
            assert own == [*range(50)]
        assert payloads[-1] == "parent"

    def test_a_new_one_in_the_child(self, data_dir: Path, start: Any) -> None:
        """A child of a process that uses one may use one of its own, the parent's id excepted."""
        worker = start(
            """
            from gevent import os as gevent_os
            m = make()
            m.subscribe("orders", "s", lambda message: None)
            m.publish("orders", "t", "parent")
            pid = gevent_os.fork()
            if not pid:
                own = make()
                own.publish("orders", "t", "child")
                try:
                    own.subscribe("orders", "s", print)
                except SubscriberInUseError:
                    say("in use")
                own.subscribe("orders", "mine", lambda message: say("got", message.payload))
                own.publish("orders", "t", "again")
                from keyop.testing import drain
                drain(own)
                own.close()
                os._exit(0)
            say("child", gevent_os.waitpid(pid, 0)[1])
            m.close()
            """
        )
        worker.wait(PATIENCE_S)
        assert worker.lines == ["in use", "got again", "child 0"]
        payloads = [each["payload"] for each in records(data_dir, "orders")]
        assert payloads == ["parent", "child", "again"]

    def test_a_child_keeps_no_lease(self, data_dir: Path, start: Any) -> None:
        """When the parent dies, its id is free at once, though a child of it lives on."""
        parent = start(
            """
            m = make()
            m.subscribe("orders", "s", print)
            m.publish("orders", "t", 1)
            pid = os.fork()
            if not pid:
                time.sleep(120)
                os._exit(0)
            say("child", pid)
            gevent.sleep(120)
            """
        )
        child = int(parent.wait_line("child", PATIENCE_S).split()[1])
        try:
            parent.kill()
            os.kill(child, 0)  # it lives
            with running(data_dir) as messenger:
                messenger.subscribe("orders", "s", Recorder())
                messenger.publish("orders", "t", 2, timeout=PATIENCE_S)
        finally:
            os.kill(child, signal.SIGKILL)

    @needs_proc_locks
    def test_a_child_keeps_no_channel_lock(self, data_dir: Path, start: Any) -> None:
        """Forked while the parent rolls, which holds the lock, and the parent dies in the roll."""
        parent = start(
            """
            from tests.fakes.faulty import FaultyFs
            fs = FaultyFs()
            m = Messenger(Config.from_dict(
                {"name": "p", "storage": {"data_dir": data_dir, "max_segment_bytes": 300}}), fs=fs)
            m.publish("orders", "t", 1)
            held = fs.hold("fdatasync")
            publisher = gevent.spawn(m.publish, "orders", "t", "x" * 200)
            held.wait_entered()
            pid = os.fork()
            if not pid:
                time.sleep(120)
                os._exit(0)
            say("child", pid)
            gevent.sleep(120)
            """
        )
        child = int(parent.wait_line("child", PATIENCE_S).split()[1])
        try:
            lock = channel_dir(data_dir, "orders") / ".lock"
            assert flock_holder(lock) == parent.pid
            parent.kill()
            os.kill(child, 0)
            assert flock_holder(lock) is None
            with running(data_dir) as messenger:
                messenger.publish("orders", "t", 2, timeout=PATIENCE_S)
        finally:
            os.kill(child, signal.SIGKILL)
        assert [each["payload"] for each in records(data_dir, "orders")] == [1, 2]


class TestAppending:
    def test_a_roll_elsewhere_is_followed(self, data_dir: Path, start: Any) -> None:
        """Whoever rolls, the others go on in the new segment."""
        storage = {"max_segment_bytes": 600}
        with running(data_dir, storage=storage) as messenger:
            messenger.publish("orders", "t", "first")
            for turn in range(4):
                other = start(
                    """
                    m = make(max_segment_bytes=600)
                    for n in range(7):
                        m.publish("orders", "t", [int(sys.argv[2]), n])
                    m.close()
                    """,
                    turn,
                )
                other.wait(PATIENCE_S)
                before = segments(data_dir, "orders")[:-1]
                sizes = [path.stat().st_size for path in before]
                messenger.publish("orders", "t", f"after {turn}")
                assert [path.stat().st_size for path in before] == sizes
        assert contiguous(data_dir)
        expected: list[Any] = ["first"]
        for turn in range(4):
            expected += [[turn, n] for n in range(7)] + [f"after {turn}"]
        assert [each["payload"] for each in records(data_dir, "orders")] == expected
        assert all(path.stat().st_size <= 600 for path in segments(data_dir, "orders"))

    def test_all_begin_at_once(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """Processes that create a directory together find one channel, not each its own."""
        go = tmp_path / "go"
        code = """
        m = make(sync_policy="always", max_segment_bytes=1000)
        say("ready")
        wait_for(sys.argv[2])
        for n in range(20):
            m.publish("orders", "t", [sys.argv[3], n])
        m.close()
        """
        workers = [start(code, go, number) for number in range(4)]
        for worker in workers:
            worker.wait_line("ready", PATIENCE_S)
        go.touch()
        for worker in workers:
            worker.wait(PATIENCE_S)
        assert contiguous(data_dir)
        payloads = [each["payload"] for each in records(data_dir, "orders")]
        assert len(payloads) == 80
        for number in range(4):
            assert [n for by, n in payloads if by == str(number)] == [*range(20)]

    def test_batches_stay_together(self, data_dir: Path, start: Any, tmp_path: Path) -> None:
        """Within a segment, a batch is not divided by what another process appends."""
        go = tmp_path / "go"
        code = """
        m = make()
        say("ready")
        wait_for(sys.argv[2])
        for n in range(60):
            m.publish_batch("orders", [("t", [sys.argv[3], n, k]) for k in range(20)])
        m.close()
        """
        workers = [start(code, go, number) for number in range(2)]
        for worker in workers:
            worker.wait_line("ready", PATIENCE_S)
        go.touch()
        for worker in workers:
            worker.wait(PATIENCE_S)
        payloads = [each["payload"] for each in records(data_dir, "orders")]
        assert len(payloads) == 2 * 60 * 20
        for first in range(0, len(payloads), 20):
            by, n, _ = payloads[first]
            assert payloads[first : first + 20] == [[by, n, k] for k in range(20)]

    def test_a_stopped_process_holds_up_the_others(self, data_dir: Path, start: Any) -> None:
        """While one is stopped within an append, a publish elsewhere times out, having written
        nothing, and its other greenlets run; later it works."""
        holder = start(
            """
            from tests.fakes.faulty import FaultyFs
            fs = FaultyFs()
            m = Messenger(Config.from_dict(
                {"name": "p", "storage": {"data_dir": data_dir, "max_segment_bytes": 300}}), fs=fs)
            m.publish("orders", "t", 1)
            held = fs.hold("fdatasync")
            publisher = gevent.spawn(m.publish, "orders", "t", "x" * 200)
            held.wait_entered()
            say("held")
            wait_for(sys.argv[2])
            held.release()
            publisher.get()
            m.close()
            """,
            data_dir.parent / "go",
        )
        holder.wait_line("held", PATIENCE_S)
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            while True:
                gevent.sleep(0.01)
                ticks += 1

        with running(data_dir) as messenger:
            ticker = gevent.spawn(tick)
            try:
                with pytest.raises(TimeoutError) as caught:
                    messenger.publish("orders", "t", 2, timeout=0.5)
            finally:
                ticker.kill()
            assert caught.value.written is False
            assert ticks > 5
            (data_dir.parent / "go").touch()
            messenger.publish("orders", "t", 3, timeout=PATIENCE_S)
        holder.wait(PATIENCE_S)
        # After the roll, whoever is first appends first.
        first, *others = (each["payload"] for each in records(data_dir, "orders"))
        assert first == 1
        assert sorted(others, key=str) == [3, "x" * 200]


class QuickClock(Clock):
    """The sweeper comes 500 times as often."""

    def sleep(self, seconds: float) -> None:
        gevent.sleep(seconds / 500 if seconds >= 1 else seconds)


class TestSweeper:
    SWEEPING = """
    from tests.integration.test_processes import QuickClock
    m = Messenger(
        Config.from_dict({"name": "p", "storage": {"data_dir": data_dir}}), clock=QuickClock())
    m.start()
    say("started")
    gevent.sleep(120)
    """

    @staticmethod
    def consumed(data_dir: Path, first: int) -> None:
        """Write two segments of which the only subscriber has read the first."""
        line = record(0)
        write_segment(data_dir, "orders", first, line)
        write_segment(data_dir, "orders", first + len(line), record(1))
        path = offset_path(data_dir, "orders", "s")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%020d\n" % (first + len(line)))

    @needs_proc_locks
    def test_one_at_a_time(self, data_dir: Path, start: Any) -> None:
        """One process sweeps; when it dies, another one does."""
        self.consumed(data_dir, 0)
        workers = [start(self.SWEEPING) for _ in range(3)]
        for worker in workers:
            worker.wait_line("started", PATIENCE_S)
        lock = data_dir / ".sweeper.lock"
        left = {worker.pid: worker for worker in workers}
        for turn in range(len(workers)):
            pid = wait_until(lambda: flock_holder(lock), PATIENCE_S, "a sweeper")
            assert pid in left
            first = len(record(0)) * turn
            wait_until(
                lambda first=first: (
                    [int(path.stem) for path in segments(data_dir, "orders")]
                    == [first + len(record(0))]
                ),
                PATIENCE_S,
                "the segment that was read to be deleted",
            )
            # It keeps the role, however often the others try.
            gevent.sleep(0.3)
            assert flock_holder(lock) == pid
            left.pop(pid).kill()
            # The next one finds the next segment.
            self.consumed(data_dir, first + len(record(0)))
        assert flock_holder(lock) is None

    def test_not_while_somebody_has_yet_to_read(self, data_dir: Path, start: Any) -> None:
        """A position that another process holds counts like everybody's."""
        with running(data_dir, storage={"max_segment_bytes": 300}) as messenger:
            for n in range(5):
                messenger.publish("orders", "t", n)
            starts = segments(data_dir, "orders")
            slow = start(
                """
                def handle(message):
                    say("got", message.payload)
                    while message.payload == 1 and not os.path.exists(sys.argv[2]):
                        gevent.sleep(0.01)
                m = make()
                m.subscribe("orders", "slow", handle, start="earliest")
                gevent.sleep(120)
                """,
                data_dir.parent / "go",
            )
            slow.wait_line("got 1", PATIENCE_S)
            seen = Recorder()
            messenger.subscribe("orders", "quick", seen, start="earliest")
            seen.wait(5, PATIENCE_S)
            wait_until(lambda: stored_offset(data_dir, "orders", "slow") > 0, PATIENCE_S)
            drain(messenger)
            messenger.sweep()
            assert segments(data_dir, "orders") == starts[1:]
            (data_dir.parent / "go").touch()
            slow.wait_line("got 4", PATIENCE_S)
            end = len(log_bytes(data_dir, "orders")) + int(starts[1].stem)
            wait_until(lambda: stored_offset(data_dir, "orders", "slow") == end, PATIENCE_S)
            messenger.sweep()
            assert segments(data_dir, "orders") == starts[-1:]


def test_messengers_of_one_process_are_like_processes(data_dir: Path) -> None:
    """Two messengers in one process exclude each other by the same locks, and see each other."""
    seen = Recorder()
    with running(data_dir) as one, running(data_dir) as two:
        assert isinstance(one, Messenger)
        one.subscribe("orders", "s", seen)
        with pytest.raises(SubscriberInUseError):
            two.subscribe("orders", "s", Recorder())
        standby = two.subscribe("orders", "s", Recorder(), standby=True)
        for n in range(20):
            (one, two)[n % 2].publish("orders", "t", n)
        assert seen.wait(20) == [*range(20)]
        one.close()
        wait_until(lambda: standby.active, TAKEOVER_S)
