"""Locks between greenlets, processes and forks."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop.fs import SYSTEM_FS, FileSystem
from keyop.offload import Offload
from keyop.storage.locks import HINT_BYTES, ChannelLock, FileLock, LockTimeoutError
from tests.fakes.faulty import FaultyFs

HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that holds a lock until it is told to let go, or killed."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def let_go(self) -> None:
        self.process.communicate(b"\n", timeout=10)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


def opened_by(pid: int) -> list[str]:
    """Return what the descriptors of another process lead to."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:  # closed since the listing
            pass
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


@pytest.fixture
def holder(path: Path) -> Iterator[Holder]:
    made = Holder(path)
    yield made
    if made.process.poll() is None:
        made.kill()


@pytest.fixture
def faulty() -> Iterator[FaultyFs]:
    fs = FaultyFs()
    yield fs
    fs.heal()
    assert fs.open_paths == {}


@pytest.fixture
def offload() -> Iterator[Offload]:
    threads = Offload(2)
    yield threads
    assert threads.close(10)


@pytest.fixture
def lock(path: Path, offload: Offload) -> Iterator[ChannelLock]:
    made = ChannelLock(SYSTEM_FS, str(path), offload)
    made.open()
    yield made
    until(lambda: not made.taken)
    made.close()
    assert made.fd < 0


def until(condition: Callable[[], Any], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.001)


def is_free(path: Path) -> bool:
    """Tell whether nobody holds the lock."""
    probe = FileLock(SYSTEM_FS, str(path))
    taken = probe.try_acquire()
    probe.release()
    return taken


class TestFileLock:
    def test_one_holder_in_a_process(self, path: Path) -> None:
        """Two objects exclude each other, as two processes do."""
        one, two = FileLock(SYSTEM_FS, str(path)), FileLock(SYSTEM_FS, str(path))
        assert one.try_acquire()
        assert not two.try_acquire()
        assert (one.held, two.held) == (True, False)
        one.release()
        assert two.try_acquire()
        two.release()
        assert not two.held

    def test_taking_it_twice(self, path: Path) -> None:
        """Who has it gets it again, and gives it back once."""
        lock = FileLock(SYSTEM_FS, str(path))
        assert lock.try_acquire()
        assert lock.try_acquire()
        lock.release()
        assert is_free(path)
        lock.release()

    def test_another_process(self, path: Path, holder: Holder) -> None:
        """It is taken as long as the other process lives, and not longer."""
        lock = FileLock(SYSTEM_FS, str(path))
        assert not lock.try_acquire()
        holder.kill()
        assert lock.try_acquire()
        lock.release()

    def test_the_file_is_private_and_stays(self, path: Path) -> None:
        """Lock files are never unlinked."""
        lock = FileLock(SYSTEM_FS, str(path))
        lock.try_acquire()
        lock.release()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("operation", ["open", "flock"])
    def test_an_error_is_not_a_refusal(self, faulty: FaultyFs, path: Path, operation: str) -> None:
        """It is raised, and nothing stays open."""
        faulty.fail(operation, errno.EIO)
        with pytest.raises(OSError):
            FileLock(faulty, str(path)).try_acquire()

    def test_not_inherited_by_programs(self, path: Path) -> None:
        """A program that is started does not keep the lock."""
        lock = FileLock(SYSTEM_FS, str(path))
        lock.try_acquire()
        assert lock._fd is not None
        assert not os.get_inheritable(lock._fd)
        lock.release()


def in_child(check: Callable[[], bool]) -> bool:
    """Return what a check says in a forked child."""
    pid = os.fork()
    if pid == 0:
        try:
            code = 0 if check() else 1
        except BaseException:
            code = 2
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class TestFork:
    def test_the_child_does_not_release_it(self, path: Path) -> None:
        """A child that closes everything leaves the parent's lock held."""
        lock = FileLock(SYSTEM_FS, str(path))
        lock.try_acquire()
        assert in_child(lambda: not lock.held and lock.release() is None)
        assert not is_free(path)
        lock.release()

    def test_the_child_does_not_keep_it(self, path: Path) -> None:
        """While a child lives, the parent can give the lock back."""
        lock = FileLock(SYSTEM_FS, str(path))
        lock.try_acquire()
        gate, opener = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            os.read(gate, 1)
            os._exit(0)
        try:
            deadline = time.monotonic() + 10
            while str(path) in opened_by(pid) and time.monotonic() < deadline:
                gevent.sleep(0.001)  # the child may not have come to its first instruction
            assert str(path) not in opened_by(pid)
            os.close(lock._fd)  # type: ignore[arg-type] # as if the parent had died
            assert is_free(path)
        finally:
            lock._fd = None
            os.close(opener)
            os.close(gate)
            os.waitpid(pid, 0)

    def test_the_child_may_take_it_itself(self, path: Path) -> None:
        """After the parent gave it back."""
        lock = FileLock(SYSTEM_FS, str(path))
        lock.try_acquire()
        assert in_child(lambda: not lock.try_acquire())
        lock.release()
        assert in_child(lambda: lock.try_acquire())

    def test_a_channels_lock(self, lock: ChannelLock, path: Path) -> None:
        """The same holds for it; its mapped hint goes too."""
        lock.write_hint(7)
        lock.map_hint()
        lock.acquire()
        assert in_child(lambda: lock.fd < 0 and lock.hint == b"")
        assert not is_free(path)
        lock.release()
        assert is_free(path)

    def test_a_lock_given_back_in_the_child(self, lock: ChannelLock, path: Path) -> None:
        """A greenlet that goes on in the child and releases does not unlock the parent's."""
        lock.acquire()
        assert in_child(lambda: lock.release() is None and lock.close() is None)
        assert not is_free(path)
        lock.release()

    def test_dropping_closes_without_unlocking(self, faulty: FaultyFs, tmp_path: Path) -> None:
        """The descriptor goes by a plain close, past whatever the file system's seam does."""
        file, channel = FileLock(faulty, str(tmp_path / "a")), ChannelLock(faulty, "", None)  # type: ignore[arg-type]
        file.try_acquire()
        channel.path = str(tmp_path / "b")
        channel.open()
        before = len(os.listdir("/proc/self/fd"))
        faulty.calls.clear()
        file.drop_in_child()
        channel.drop_in_child()
        assert len(os.listdir("/proc/self/fd")) == before - 2
        assert faulty.calls["flock"] == 0
        faulty._paths.clear()

    def test_a_closed_one(self, path: Path, offload: Offload) -> None:
        """There is nothing to drop."""
        lock = ChannelLock(SYSTEM_FS, str(path), offload)
        lock.drop_in_child()
        FileLock(SYSTEM_FS, str(path)).drop_in_child()


class TestQueue:
    def test_free(self, lock: ChannelLock, path: Path) -> None:
        """It is taken at once and given back."""
        lock.acquire()
        assert lock.taken
        assert not is_free(path)
        lock.release()
        assert not lock.taken
        assert is_free(path)

    def test_opening_twice(self, lock: ChannelLock) -> None:
        """The second time does nothing."""
        fd = lock.fd
        lock.open()
        assert lock.fd == fd

    def test_try(self, lock: ChannelLock, path: Path) -> None:
        """It is refused while a greenlet or another holder has it."""
        assert lock.try_acquire()
        assert not lock.try_acquire()
        lock.release()
        other = FileLock(SYSTEM_FS, str(path))
        other.try_acquire()
        assert not lock.try_acquire()
        other.release()

    def test_in_the_order_in_which_they_came(self, lock: ChannelLock) -> None:
        """Greenlets that wait get it one after the other, first come, first served."""
        order = []

        def take(number: int) -> None:
            lock.acquire()
            order.append(number)
            gevent.sleep(0)
            lock.release()

        lock.acquire()
        waiting = [gevent.spawn(take, number) for number in range(5)]
        gevent.sleep(0)
        lock.release()
        gevent.joinall(waiting, raise_error=True)
        assert order == list(range(5))

    def test_a_greedy_holder_starves_nobody(self, lock: ChannelLock) -> None:
        """Who takes it again at once does not keep one who waits away for good."""
        got: list[int] = []

        def take() -> None:
            lock.acquire()
            got.append(turns)
            lock.release()

        turns = 0
        lock.acquire()
        waiting = gevent.spawn(take)
        gevent.sleep(0)
        while not got and turns < 100:
            turns += 1
            lock.release()
            lock.acquire()
            gevent.sleep(0)  # as while a segment is rolled
        lock.release()
        waiting.join()
        assert got[0] < 10

    def test_waiters_keep_their_order_behind_a_greedy_holder(self, lock: ChannelLock) -> None:
        """One who was overtaken does not lose its place to those behind it."""
        order: list[int] = []

        def take(number: int) -> None:
            lock.acquire()
            order.append(number)
            lock.release()

        lock.acquire()
        waiting = [gevent.spawn(take, number) for number in range(3)]
        gevent.sleep(0)
        lock.release()
        lock.acquire()
        gevent.sleep(0)
        lock.release()
        gevent.joinall(waiting)
        assert order == [0, 1, 2]

    def test_a_deadline_in_the_queue(self, lock: ChannelLock) -> None:
        """Who waited too long is told, and is not in anybody's way."""
        lock.acquire()
        with pytest.raises(LockTimeoutError):
            lock.acquire(time.monotonic() + 0.01)
        with pytest.raises(LockTimeoutError):
            lock.acquire(time.monotonic() - 1)
        lock.release()
        lock.acquire(time.monotonic() - 1)  # a free one is taken, however late
        lock.release()

    def test_killed_in_the_queue(self, lock: ChannelLock) -> None:
        """Its place is given up, and the next one gets the lock."""
        lock.acquire()
        one, two = gevent.spawn(lock.acquire), gevent.spawn(lock.acquire)
        gevent.sleep(0)
        one.kill()
        lock.release()
        two.join(10)
        assert two.successful()
        lock.release()

    def test_killed_when_its_turn_has_come(self, lock: ChannelLock) -> None:
        """A turn that nobody takes any more goes to the next."""
        lock.acquire()
        one, two = gevent.spawn(lock.acquire), gevent.spawn(lock.acquire)
        gevent.sleep(0)
        one.kill(block=False)  # strikes in the next turn of the loop, before the wake-up
        lock.release()
        two.join(10)
        assert two.successful()
        assert one.dead
        lock.release()

    def test_killed_when_its_turn_has_come_and_nobody_waits(self, lock: ChannelLock) -> None:
        """The lock is simply free."""
        lock.acquire()
        one = gevent.spawn(lock.acquire)
        gevent.sleep(0)
        one.kill(block=False)
        lock.release()
        one.join()
        assert not lock.taken
        assert lock.try_acquire()
        lock.release()

    def test_a_turn_is_not_taken_by_another(self, lock: ChannelLock) -> None:
        """It belongs to the one that waits, also before that one has run again."""
        lock.acquire()
        waiting = gevent.spawn(lock.acquire)
        gevent.sleep(0)
        lock.release()
        assert not lock.try_acquire()
        waiting.join(10)
        assert waiting.successful()
        lock.release()

    @pytest.mark.parametrize("error", [errno.EIO, errno.ENOLCK])
    def test_an_error_passes_the_turn_on(
        self, faulty: FaultyFs, path: Path, offload: Offload, error: int
    ) -> None:
        """Who comes next may have more luck."""
        lock = ChannelLock(faulty, str(path), offload)
        lock.open()
        faulty.fail("flock", error)
        with pytest.raises(OSError) as caught:
            lock.acquire()
        assert caught.value.errno == error
        lock.acquire()
        lock.release()
        faulty.fail("flock", error)
        with pytest.raises(OSError):
            lock.try_acquire()
        assert not lock.taken
        lock.close()


class TestOtherProcesses:
    def test_waiting_lets_others_run(self, lock: ChannelLock, holder: Holder) -> None:
        """The lock comes when the other process lets go."""
        waiting = gevent.spawn(lock.acquire)
        for _ in range(50):
            gevent.sleep(0.001)
        assert not waiting.ready()
        assert lock.taken
        holder.let_go()
        waiting.join(10)
        assert waiting.successful()
        lock.release()

    def test_the_holder_is_killed(self, lock: ChannelLock, holder: Holder) -> None:
        """The kernel gives its lock back."""
        waiting = gevent.spawn(lock.acquire)
        gevent.sleep(0.01)
        holder.kill()
        waiting.join(10)
        assert waiting.successful()
        lock.release()

    def test_a_deadline(self, lock: ChannelLock, holder: Holder, path: Path) -> None:
        """The waiting thread, abandoned, gives the lock back as soon as it gets it."""
        with pytest.raises(LockTimeoutError):
            lock.acquire(time.monotonic() + 0.02)
        assert lock.taken  # by its thread
        holder.let_go()
        until(lambda: not lock.taken)
        assert is_free(path)

    def test_killed(self, lock: ChannelLock, holder: Holder, path: Path) -> None:
        """So it does for a greenlet that was killed."""
        waiting = gevent.spawn(lock.acquire)
        gevent.sleep(0.02)
        waiting.kill()
        assert lock.taken
        holder.let_go()
        until(lambda: not lock.taken)
        assert is_free(path)

    def test_queued_behind_an_abandoned_thread(self, lock: ChannelLock, holder: Holder) -> None:
        """The next greenlet gets the lock after it."""
        with pytest.raises(LockTimeoutError):
            lock.acquire(time.monotonic() + 0.02)
        waiting = gevent.spawn(lock.acquire)
        gevent.sleep(0)
        holder.let_go()
        waiting.join(10)
        assert waiting.successful()
        lock.release()

    def test_closed_while_a_thread_waits(
        self, faulty: FaultyFs, path: Path, offload: Offload, holder: Holder
    ) -> None:
        """The descriptor stays until the thread returns, then it goes, and the lock with it."""
        lock = ChannelLock(faulty, str(path), offload)
        lock.open()
        with pytest.raises(LockTimeoutError):
            lock.acquire(time.monotonic() + 0.02)
        lock.close()
        assert lock.fd >= 0
        holder.let_go()
        until(lambda: lock.fd < 0)
        assert faulty.open_paths == {}
        assert is_free(path)

    def test_a_short_hold_needs_no_thread(self, path: Path) -> None:
        """A holder that lets go within a few tries is waited for without one."""

        class Brief(FileSystem):
            tries = 0

            def flock(self, fd: int, how: int) -> None:  # type: ignore[override]
                self.tries += 1
                if self.tries <= 3:
                    raise BlockingIOError

        lock = ChannelLock(Brief(), str(path), None)  # type: ignore[arg-type]
        lock.open()
        lock.acquire()
        lock.release()
        lock.close()

    @pytest.mark.parametrize("nth", [1, 5, 22])
    def test_an_error_while_waiting(self, path: Path, offload: Offload, nth: int) -> None:
        """Whether in a quick try or in the thread, it is raised and the turn passed on."""

        class Failing(FileSystem):
            tries = 0

            def flock(self, fd: int, how: int) -> None:  # type: ignore[override]
                self.tries += 1
                raise BlockingIOError if self.tries < nth else OSError(errno.EIO, "EIO")

        lock = ChannelLock(Failing(), str(path), offload)
        lock.open()
        with pytest.raises(OSError) as caught:
            lock.acquire()
        assert caught.value.errno == errno.EIO
        until(lambda: not lock.taken)
        lock.close()


class TestHint:
    def test_written_and_read(self, lock: ChannelLock, path: Path) -> None:
        """The first twenty bytes of the file name the active segment."""
        assert lock.read_hint() == b""
        lock.write_hint(17)
        assert lock.read_hint() == path.read_bytes() == b"00000000000000000017"

    def test_mapped(self, lock: ChannelLock, path: Path) -> None:
        """What another process writes is seen without a system call."""
        lock.write_hint(17)
        lock.map_hint()
        lock.map_hint()
        assert lock.hint[:HINT_BYTES] == b"%020d" % 17
        other = ChannelLock(SYSTEM_FS, str(path), None)  # type: ignore[arg-type]
        other.open()
        other.write_hint(18)
        other.close()
        assert lock.hint[:HINT_BYTES] == b"%020d" % 18

    def test_nothing_to_map(self, lock: ChannelLock) -> None:
        """A file that is empty, or was cut off, cannot be mapped; a closed one is not."""
        with pytest.raises(OSError):
            lock.map_hint()
        os.pwrite(lock.fd, b"0", 0)
        with pytest.raises(OSError, match="less than 20 bytes"):
            lock.map_hint()
        lock.close()
        lock.map_hint()
        assert lock.hint == b""

    def test_closing_unmaps(self, path: Path, offload: Offload) -> None:
        """The mapping has a descriptor of its own, which would keep the lock."""
        before = len(os.listdir("/proc/self/fd"))
        lock = ChannelLock(SYSTEM_FS, str(path), offload)
        lock.open()
        lock.write_hint(17)
        lock.map_hint()
        lock.close()
        assert lock.hint == b""
        assert len(os.listdir("/proc/self/fd")) == before


class TestClose:
    def test_twice(self, path: Path, offload: Offload) -> None:
        """The second time does nothing; the lock may be opened again."""
        lock = ChannelLock(SYSTEM_FS, str(path), offload)
        lock.close()
        for _ in range(2):
            lock.open()
            lock.close()
            lock.close()

    def test_while_taken(self, lock: ChannelLock) -> None:
        """Whoever has the lock keeps its descriptor until it gives it back."""
        lock.acquire()
        lock.close()
        assert lock.fd >= 0
        lock.release()
        assert lock.fd < 0

    def test_while_others_wait(self, lock: ChannelLock) -> None:
        """Those in the queue still get their turn; the last one closes."""
        lock.acquire()
        waiting = gevent.spawn(lock.acquire)
        gevent.sleep(0)
        lock.close()
        lock.release()
        waiting.join(10)
        assert waiting.successful()
        assert lock.fd >= 0
        lock.release()
        assert lock.fd < 0

    def test_while_the_last_waiter_dies(self, path: Path, offload: Offload) -> None:
        """Also when the one whose turn had come was killed before it took it."""
        lock = ChannelLock(SYSTEM_FS, str(path), offload)
        lock.open()
        lock.acquire()
        waiting = gevent.spawn(lock.acquire)
        gevent.sleep(0)
        lock.close()
        waiting.kill(block=False)
        lock.release()
        waiting.join()
        try:
            assert lock.fd < 0
        finally:
            lock.close()

    def test_the_lock_is_free_afterwards(self, path: Path, offload: Offload) -> None:
        """Closing keeps nobody out."""
        lock = ChannelLock(SYSTEM_FS, str(path), offload)
        lock.open()
        lock.acquire()
        lock.release()
        lock.close()
        assert is_free(path)
