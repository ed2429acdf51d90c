"""The doubles do what the tests that use them believe, and the real clock does it too."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.fs import FileSystem
from tests.fakes.clock import FakeClock
from tests.fakes.faulty import FaultyFs, Held
from tests.fakes.recording import (
    SECTOR,
    CrashState,
    Mkdir,
    Operation,
    RecordingFs,
    SyncBegin,
    SyncEnd,
    Write,
    crash_state,
    crash_states,
    materialise,
    read_tree,
)

CREATE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
APPEND = CREATE | os.O_APPEND


@pytest.fixture
def fs(tmp_path: Path) -> RecordingFs:
    """Return a recorder whose root holds a durable file already."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "old").write_bytes(b"old")
    return RecordingFs(tmp_path / "root")


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """Return threads of the operating system; at the end their calls must be done."""
    pool = ThreadPool(4)
    yield pool
    pool.join()
    pool.kill()


def below(fs: RecordingFs, path: str) -> str:
    return os.path.join(fs.root, path)


def put(
    fs: RecordingFs,
    path: str,
    data: bytes,
    *,
    flags: int = CREATE,
    sync: bool = False,
    sync_dir: bool = False,
) -> None:
    """Write a file, and make durable what is asked for."""
    with fs.opened(below(fs, path), flags) as fd:
        fs.write_all(fd, data)
        if sync:
            fs.fsync(fd)
    if sync_dir:
        fs.fsync_dir(os.path.dirname(below(fs, path)))


def cuts(ops: Sequence[Operation], count: int = 300) -> list[CrashState]:
    """Return many states after all of the operations."""
    rng = Random(1)
    return [crash_state(ops, rng) for _ in range(count)]


def contents(ops: Sequence[Operation], path: str) -> set[bytes | None]:
    """Return what a file may hold after all of the operations; None if it may be missing."""
    return {state.tree.get(path) for state in cuts(ops)}


class TestClocks:
    @pytest.mark.parametrize("clock", [SYSTEM_CLOCK, Clock(), FakeClock()])
    def test_a_sleep_of_nothing_lets_others_run(self, clock: Clock) -> None:
        ran: list[str] = []
        other = gevent.spawn(ran.append, "other")
        clock.sleep(0)
        assert ran == ["other"]
        other.join()

    def test_the_real_clock_tells_the_time(self) -> None:
        before = time.time_ns(), time.monotonic()
        told = SYSTEM_CLOCK.time_ns(), SYSTEM_CLOCK.monotonic()
        after = time.time_ns(), time.monotonic()
        assert before[0] <= told[0] <= after[0]
        assert before[1] <= told[1] <= after[1]

    def test_the_real_clock_sleeps(self) -> None:
        SYSTEM_CLOCK.sleep(0)  # gevent counts from the start of the loop's turn
        before = SYSTEM_CLOCK.monotonic()
        SYSTEM_CLOCK.sleep(0.02)
        assert SYSTEM_CLOCK.monotonic() - before >= 0.01


class TestFakeClock:
    def test_time_passes_only_when_it_is_turned(self) -> None:
        clock = FakeClock(wall_ns=5)
        start = clock.monotonic()
        assert clock.time_ns() == clock.time_ns() == 5
        clock.advance(1.5)
        assert clock.time_ns() == 1_500_000_005
        assert clock.monotonic() - start == 1.5

    def test_the_wall_clock_may_jump_alone(self) -> None:
        clock = FakeClock(wall_ns=10_000_000_000)
        start = clock.monotonic()
        clock.step_wall(-3)
        assert (clock.time_ns(), clock.monotonic()) == (7_000_000_000, start)

    def test_sleepers_wake_in_order_each_at_its_own_time(self) -> None:
        clock = FakeClock()
        start = clock.monotonic()
        woken: list[tuple[str, float]] = []

        def sleep(name: str, seconds: float) -> None:
            clock.sleep(seconds)
            woken.append((name, clock.monotonic() - start))

        greenlets = [
            gevent.spawn(sleep, name, seconds)
            for name, seconds in [("c", 3), ("a", 1), ("b1", 2), ("b2", 2), ("late", 3.5)]
        ]
        clock.wait_for_sleepers(5)
        clock.advance(0.5)
        assert woken == []
        clock.advance(2.5)
        assert woken == [("a", 1), ("b1", 2), ("b2", 2), ("c", 3)]
        assert clock.sleepers == 1
        clock.advance(0.5)
        assert woken[4:] == [("late", 3.5)]
        gevent.joinall(greenlets)

    def test_one_turn_of_the_clock_serves_a_loop_of_sleeps(self) -> None:
        clock = FakeClock()
        ticks: list[float] = []

        def tick() -> None:
            while len(ticks) < 5:
                clock.sleep(1)
                ticks.append(clock.monotonic())

        ticker = gevent.spawn(tick)
        clock.wait_for_sleepers()
        start = clock.monotonic()
        clock.advance(3.5)
        assert [at - start for at in ticks] == [1, 2, 3]
        clock.advance(10)
        assert ticker.ready()
        assert len(ticks) == 5

    def test_a_killed_sleeper_is_forgotten(self) -> None:
        clock = FakeClock()
        greenlet = gevent.spawn(clock.sleep, 1)
        clock.wait_for_sleepers()
        greenlet.kill()
        assert clock.sleepers == 0
        clock.advance(2)

    def test_waiting_for_sleepers_that_never_come_fails(self) -> None:
        with pytest.raises(AssertionError, match="0 of 1 greenlets sleep"):
            FakeClock().wait_for_sleepers(timeout=0)


class TestSurface:
    """What is added to FileSystem must not slip past the doubles."""

    OPERATIONS = sorted(n for n, v in vars(FileSystem).items() if isinstance(v, staticmethod))

    def test_the_recorder_knows_every_operation(self, fs: RecordingFs) -> None:
        known = {*vars(RecordingFs), *vars(fs)}
        assert [name for name in self.OPERATIONS if name not in known] == []

    def test_every_operation_can_fail(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        for name in self.OPERATIONS:
            fs.fail(name, errno.EIO)
        for name in self.OPERATIONS:
            with pytest.raises(OSError):
                getattr(fs, name)(os.open(tmp_path, os.O_RDONLY) if name == "close" else "x")
        assert fs.calls == dict.fromkeys(self.OPERATIONS, 1)


class TestRecording:
    def test_works_on_real_files(self, fs: RecordingFs) -> None:
        fs.make_dirs(below(fs, "a/b"))
        put(fs, "a/b/file", b"0123456789", sync=True)
        with fs.opened(below(fs, "a/b/file"), os.O_RDWR) as fd:
            assert fs.lseek(fd, 2, os.SEEK_SET) == 2
            assert fs.write(fd, b"ab") == 2
            assert fs.pwrite(fd, memoryview(b"xy"), 6) == 2
            fs.ftruncate(fd, 9)
            fs.fdatasync(fd)
            assert fs.fstat(fd).st_size == 9
            assert fs.pread(fd, 100, 1) == b"1ab45xy8"
        fs.rename(below(fs, "a/b/file"), below(fs, "a/new"))
        fs.unlink(below(fs, "old"))
        assert sorted(fs.listdir(below(fs, "a"))) == ["b", "new"]
        assert read_tree(fs.root) == {"a": None, "a/b": None, "a/new": b"01ab45xy8"}

    def test_the_model_agrees_with_the_real_files(self, fs: RecordingFs) -> None:
        """Whatever is done, the state in which everything survived is what is really there."""
        rng = Random(2)
        fs.make_dirs(below(fs, "d"))
        open_files: list[int] = []
        appending: set[int] = set()
        for step in range(2000):
            path = below(fs, rng.choice(["a", "b", "c", "d/a", "d/b"]))
            match rng.randrange(10):
                case 0:
                    flags = rng.choice([CREATE, APPEND, CREATE | os.O_TRUNC])
                    open_files.append(fs.open(path, flags, 0o600))
                    (appending.add if flags == APPEND else appending.discard)(open_files[-1])
                case 1 | 2 | 3 if open_files:
                    fs.write(rng.choice(open_files), rng.randbytes(rng.randrange(1500)))
                case 4 if open_files and (fd := rng.choice(open_files)) not in appending:
                    fs.pwrite(fd, rng.randbytes(rng.randrange(700)), rng.randrange(5000))
                case 5 if open_files:
                    fs.ftruncate(rng.choice(open_files), rng.randrange(5000))
                case 6 if open_files:
                    fs.fsync(rng.choice(open_files))
                case 7 if os.path.exists(path):
                    if rng.random() < 0.5:
                        fs.unlink(path)
                    else:
                        fs.rename(path, below(fs, rng.choice(["a", "b", "d/a"])))
                case 8:
                    fs.fsync_dir(rng.choice([fs.root, below(fs, "d")]))
                case 9 if open_files:
                    fs.close(open_files.pop(rng.randrange(len(open_files))))
            if step % 50 == 0:
                assert crash_state(fs.ops, rng, "all").tree == read_tree(fs.root)
        for fd in open_files:
            fs.close(fd)
        assert crash_state(fs.ops, rng, "all").tree == read_tree(fs.root)

    def test_an_append_is_recorded_where_it_went(self, fs: RecordingFs) -> None:
        with fs.opened(below(fs, "old"), APPEND) as fd:
            fs.lseek(fd, 0, os.SEEK_SET)
            fs.write(fd, b"er")
        assert [op.offset for op in fs.ops if isinstance(op, Write)] == [3]

    def test_a_write_in_place_of_an_appending_descriptor_is_refused(self, fs: RecordingFs) -> None:
        with (
            fs.opened(below(fs, "old"), APPEND) as fd,
            pytest.raises(ValueError, match="opened to append"),
        ):
            fs.pwrite(fd, b"new", 0)
        assert Path(below(fs, "old")).read_bytes() == b"old"

    def test_only_what_was_written_of_a_short_write_is_recorded(self, tmp_path: Path) -> None:
        faulty = FaultyFs()
        fs = RecordingFs(tmp_path, inner=faulty)
        faulty.short_write(4)
        with pytest.raises(OSError):
            put(fs, "file", b"0123456789")
        assert [op.data for op in fs.ops if isinstance(op, Write)] == [b"0123"]
        assert crash_state(fs.ops, Random(0), "all").tree == {"file": b"0123"}

    @pytest.mark.parametrize("operation", ["open", "ftruncate", "rename", "unlink", "mkdir"])
    def test_what_failed_is_not_recorded(self, tmp_path: Path, operation: str) -> None:
        (tmp_path / "file").write_bytes(b"kept")
        faulty = FaultyFs()
        fs = RecordingFs(tmp_path, inner=faulty)
        fd = fs.open(below(fs, "file"), os.O_RDWR)
        recorded = list(fs.ops)
        calls: dict[str, tuple[Any, ...]] = {
            "open": (below(fs, "new"), CREATE),
            "ftruncate": (fd, 0),
            "rename": (below(fs, "file"), below(fs, "new")),
            "unlink": (below(fs, "file"),),
            "mkdir": (below(fs, "new"),),
        }
        faulty.fail(operation, errno.EIO)
        with pytest.raises(OSError):
            getattr(fs, operation)(*calls[operation])
        assert fs.ops == recorded
        fs.close(fd)

    def test_nothing_outside_of_the_root_may_be_changed(
        self, fs: RecordingFs, tmp_path: Path
    ) -> None:
        outside = str(tmp_path / "outside")
        with pytest.raises(ValueError, match="not below"):
            fs.open(outside, CREATE)
        with pytest.raises(ValueError, match="not below"):
            fs.mkdir(outside)
        with pytest.raises(ValueError, match="not below"):
            fs.rename(below(fs, "old"), outside)
        with pytest.raises(ValueError, match="not below"):
            fs.unlink(below(fs, "../outside"))
        assert os.listdir(tmp_path) == ["root"]
        assert len(fs.ops) == 1

    def test_outside_of_the_root_may_be_read_and_synced(
        self, fs: RecordingFs, tmp_path: Path
    ) -> None:
        with fs.opened(fs.root, os.O_RDONLY) as inside:
            pass
        recorded = list(fs.ops)
        with fs.opened(str(tmp_path), os.O_RDONLY) as outside:
            assert outside == inside  # the number is used again, and means something else
            fs.fsync(outside)
        assert fs.ops == recorded

    def test_records_of_many_threads_keep_their_order(
        self, fs: RecordingFs, pool: ThreadPool
    ) -> None:
        """Each write is recorded where it went, whichever thread came first."""

        def append(byte: int) -> None:
            with fs.opened(below(fs, "file"), APPEND) as fd:
                for _ in range(200):
                    fs.write_all(fd, bytes([byte]) * 3)
                fs.fsync(fd)

        for job in [pool.spawn(append, byte) for byte in b"abcd"]:
            job.get()
        real = Path(below(fs, "file")).read_bytes()
        assert len(real) == 4 * 200 * 3
        assert crash_state(fs.ops, Random(0), "all").tree["file"] == real
        fs.fsync_dir(fs.root)
        assert crash_state(fs.ops, Random(0), "none").tree["file"] == real


class TestDataSurvival:
    def test_written_bytes_may_be_lost_or_not(self, fs: RecordingFs) -> None:
        put(fs, "file", b"data", sync_dir=True)
        seen = contents(fs.ops, "file")
        assert seen == {b"", b"data", b"\0\0\0\0"}

    @pytest.mark.parametrize("sync", ["fsync", "fdatasync"])
    def test_synced_bytes_never_vanish(self, fs: RecordingFs, sync: str) -> None:
        data = Random(3).randbytes(5 * SECTOR)
        with fs.opened(below(fs, "file"), CREATE) as fd:
            fs.fsync_dir(fs.root)
            fs.write_all(fd, data)
            getattr(fs, sync)(fd)
            assert contents(fs.ops, "file") == {data}
            fs.write_all(fd, b"more")
        after = contents(fs.ops, "file")
        assert {data, data + b"more"} < after
        assert all(content is not None and content.startswith(data) for content in after)

    def test_close_saves_nothing(self, fs: RecordingFs) -> None:
        put(fs, "file", b"data", sync_dir=True)
        assert crash_state(fs.ops, Random(0), "none").tree["file"] == b""

    def test_what_was_there_before_is_durable(self, fs: RecordingFs) -> None:
        assert crash_state(fs.ops, Random(0), "none").tree == {"old": b"old"}

    def test_sectors_are_lost_one_by_one_but_never_torn(self, fs: RecordingFs) -> None:
        put(fs, "file", b"x" * 3 * SECTOR, sync_dir=True)
        sectors = set()
        for content in contents(fs.ops, "file"):
            assert content is not None
            for start in range(0, len(content), SECTOR):
                sectors.add((start // SECTOR, content[start : start + SECTOR]))
        lost, kept = b"\0" * SECTOR, b"x" * SECTOR
        assert sectors == {(number, value) for number in range(3) for value in (lost, kept)}
        # One in the middle may be missing.
        assert kept + lost + kept in contents(fs.ops, "file")

    def test_a_lost_size_cuts_and_a_lost_sector_is_zero(self, fs: RecordingFs) -> None:
        with fs.opened(below(fs, "old"), APPEND) as fd:
            fs.write(fd, b"-new")
        assert contents(fs.ops, "old") == {b"old", b"old-new", b"old\0\0\0\0"}

    def test_a_small_write_in_place_is_old_or_new(self, fs: RecordingFs) -> None:
        put(fs, "offset", b"0" * 21, sync=True, sync_dir=True)
        with fs.opened(below(fs, "offset"), os.O_WRONLY) as fd:
            fs.pwrite(fd, b"1" * 21, 0)
            assert contents(fs.ops, "offset") == {b"0" * 21, b"1" * 21}
            fs.pwrite(fd, b"2" * 21, 0)
            assert contents(fs.ops, "offset") == {b"0" * 21, b"1" * 21, b"2" * 21}
            fs.fdatasync(fd)
            assert contents(fs.ops, "offset") == {b"2" * 21}

    def test_a_write_across_two_sectors_may_be_torn_between_them(self, fs: RecordingFs) -> None:
        put(fs, "file", b"0" * 2 * SECTOR, sync=True, sync_dir=True)
        with fs.opened(below(fs, "file"), os.O_WRONLY) as fd:
            fs.pwrite(fd, b"1" * 4, SECTOR - 2)
        torn = {
            b"0" * (SECTOR - 2) + first + second + b"0" * (SECTOR - 2)
            for first in (b"00", b"11")
            for second in (b"00", b"11")
        }
        assert contents(fs.ops, "file") == torn

    def test_what_is_left_behind_a_hole_is_zero(self, fs: RecordingFs) -> None:
        with fs.opened(below(fs, "old"), os.O_WRONLY) as fd:
            fs.pwrite(fd, b"far", 3000)
            fs.fsync(fd)
        assert contents(fs.ops, "old") == {b"old" + b"\0" * 2997 + b"far"}

    def test_a_cut_may_be_lost_until_it_is_synced(self, fs: RecordingFs) -> None:
        put(fs, "file", b"x" * 1000, sync=True, sync_dir=True)
        with fs.opened(below(fs, "file"), os.O_WRONLY) as fd:
            fs.ftruncate(fd, 100)
            assert {b"x" * 1000, b"x" * 100} <= contents(fs.ops, "file")
            fs.fsync(fd)
            assert contents(fs.ops, "file") == {b"x" * 100}
            fs.ftruncate(fd, 200)
            fs.fsync(fd)
            assert contents(fs.ops, "file") == {b"x" * 100 + b"\0" * 100}

    def test_truncating_on_open_is_a_cut(self, fs: RecordingFs) -> None:
        put(fs, "old", b"", flags=CREATE | os.O_TRUNC)
        assert {b"old", b""} <= contents(fs.ops, "old")
        put(fs, "old", b"", flags=os.O_WRONLY, sync=True)
        assert contents(fs.ops, "old") == {b""}

    def test_a_sync_serves_every_descriptor_of_the_file(self, fs: RecordingFs) -> None:
        put(fs, "file", b"data", sync_dir=True)
        with fs.opened(below(fs, "file"), os.O_RDONLY) as fd:
            fs.fsync(fd)
        assert contents(fs.ops, "file") == {b"data"}

    def test_a_sync_follows_the_file_to_its_new_name(self, fs: RecordingFs) -> None:
        with fs.opened(below(fs, "a"), CREATE) as fd:
            fs.write(fd, b"data")
            fs.rename(below(fs, "a"), below(fs, "b"))
            fs.fsync(fd)
        fs.fsync_dir(fs.root)
        assert cuts(fs.ops)[0].tree == {"old": b"old", "b": b"data"}

    def test_a_sync_covers_what_was_written_before_its_call_once_it_has_returned(
        self, tmp_path: Path, pool: ThreadPool
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        faulty = FaultyFs()
        fs = RecordingFs(tmp_path, inner=faulty)
        with fs.opened(below(fs, "file"), APPEND) as fd:
            fs.write(fd, b"before")
            with faulty.hold("fsync") as held:
                job = pool.spawn(fs.fsync, fd)
                held.wait_entered()
                fs.write(fd, b"-after")
                assert b"" in contents(fs.ops, "file")
            job.get()
            seen = contents(fs.ops, "file")
        assert {b"before", b"before-after"} <= seen
        assert all(content is not None and content.startswith(b"before") for content in seen)

    def test_syncs_may_overlap(self, tmp_path: Path, pool: ThreadPool) -> None:
        """The later one counts as soon as it returns; the earlier one then adds nothing."""
        (tmp_path / "file").write_bytes(b"")
        faulty = FaultyFs()
        fs = RecordingFs(tmp_path, inner=faulty)
        with fs.opened(below(fs, "file"), APPEND) as fd:
            fs.write(fd, b"one")
            with faulty.hold("fsync") as held:
                job = pool.spawn(fs.fsync, fd)
                held.wait_entered()
                fs.write(fd, b"-two")
                fs.fdatasync(fd)
                fs.write(fd, b"-three")
                assert None not in contents(fs.ops, "file")
                assert all(c and c.startswith(b"one-two") for c in contents(fs.ops, "file"))
            job.get()
            assert b"one-two" in contents(fs.ops, "file")

    def test_what_a_failed_sync_covered_is_not_saved_by_the_next(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        faulty = FaultyFs()
        fs = RecordingFs(tmp_path, inner=faulty)
        with fs.opened(below(fs, "file"), APPEND) as fd:
            fs.write(fd, b"x" * SECTOR)
            faulty.fail("fsync", errno.EIO)
            with pytest.raises(OSError):
                fs.fsync(fd)
            fs.fsync(fd)
            assert {b"", b"x" * SECTOR} <= contents(fs.ops, "file")
            fs.write(fd, b"y")
            fs.fsync(fd)
            lost, kept = b"\0" * SECTOR, b"x" * SECTOR
            assert contents(fs.ops, "file") == {lost + b"y", kept + b"y"}
        with fs.opened(below(fs, "file"), os.O_WRONLY) as fd:
            fs.pwrite(fd, b"z", 0)
            fs.fsync(fd)
        assert contents(fs.ops, "file") == {b"z" + b"x" * (SECTOR - 1) + b"y"}


class TestEntrySurvival:
    def test_a_new_file_may_vanish_until_its_directory_is_synced(self, fs: RecordingFs) -> None:
        put(fs, "file", b"data", sync=True)
        assert contents(fs.ops, "file") == {None, b"data"}
        fs.fsync_dir(fs.root)
        assert contents(fs.ops, "file") == {b"data"}

    def test_entries_are_lost_one_by_one(self, fs: RecordingFs) -> None:
        put(fs, "a", b"", sync=True)
        put(fs, "b", b"", sync=True)
        left = {tuple(sorted(state.tree)) for state in cuts(fs.ops)}
        assert left == {("old",), ("a", "old"), ("b", "old"), ("a", "b", "old")}

    def test_an_unlinked_file_may_come_back(self, fs: RecordingFs) -> None:
        fs.unlink(below(fs, "old"))
        assert contents(fs.ops, "old") == {None, b"old"}
        fs.fsync_dir(fs.root)
        assert contents(fs.ops, "old") == {None}

    def test_a_new_directory_takes_along_what_is_below(self, fs: RecordingFs) -> None:
        fs.make_dirs(below(fs, "a/b"), durable=False)
        put(fs, "a/b/file", b"data", sync=True, sync_dir=True)
        fs.fsync_dir(below(fs, "a"))
        whole = ("a", "a/b", "a/b/file", "old")
        assert {tuple(sorted(state.tree)) for state in cuts(fs.ops)} == {("old",), whole}
        fs.fsync_dir(fs.root)
        assert {tuple(sorted(state.tree)) for state in cuts(fs.ops)} == {whole}

    def test_a_file_keeps_its_old_or_its_new_name(self, fs: RecordingFs) -> None:
        fs.rename(below(fs, "old"), below(fs, "new"))
        left = {tuple(sorted(state.tree.items())) for state in cuts(fs.ops)}
        old, new = ("old", b"old"), ("new", b"old")
        assert left == {(old,), (new,), (new, old)}
        fs.fsync_dir(fs.root)
        assert {tuple(state.tree.items()) for state in cuts(fs.ops)} == {(new,)}

    @pytest.mark.parametrize("names", ["12", "21"])
    def test_a_chain_of_renames_loses_no_file(self, fs: RecordingFs, names: str) -> None:
        """As in a rotation of log files."""
        for name in names:
            put(fs, name, name.encode(), sync=True, sync_dir=True)
        fs.rename(below(fs, "2"), below(fs, "3"))
        fs.rename(below(fs, "1"), below(fs, "2"))
        put(fs, "1", b"0", sync=True)
        seen = set()
        for state in cuts(fs.ops, 1000):
            assert {b"1", b"2"} <= set(state.tree.values()), state.tree
            seen.add(tuple(sorted(state.tree.items())))
        assert (("1", b"0"), ("2", b"1"), ("3", b"2"), ("old", b"old")) in seen
        assert (("1", b"1"), ("2", b"2"), ("old", b"old")) in seen

    def test_a_file_holds_the_same_under_both_names(self, fs: RecordingFs) -> None:
        put(fs, "a", b"x" * 9 * SECTOR, sync_dir=True)
        fs.rename(below(fs, "a"), below(fs, "b"))
        trees = [state.tree for state in cuts(fs.ops)]
        both = [(tree["a"], tree["b"]) for tree in trees if {"a", "b"} <= set(tree)]
        assert len(set(both)) > 10
        assert all(a == b for a, b in both)

    def test_the_target_of_a_rename_is_never_missing(self, fs: RecordingFs) -> None:
        put(fs, "new", b"new", sync=True)
        fs.rename(below(fs, "new"), below(fs, "old"))
        assert contents(fs.ops, "old") == {b"old", b"new"}

    def test_a_rename_without_fsync_may_leave_an_empty_or_torn_target(
        self, fs: RecordingFs
    ) -> None:
        data = b"n" * 2 * SECTOR
        put(fs, "old.tmp", data)
        fs.rename(below(fs, "old.tmp"), below(fs, "old"))
        fs.fsync_dir(fs.root)
        seen = contents(fs.ops, "old")
        torn = b"n" * SECTOR + b"\0" * SECTOR
        assert {b"", torn, data} <= seen
        assert b"old" not in seen

    def test_a_synced_rename_leaves_only_the_new_file(self, fs: RecordingFs) -> None:
        data = b"n" * 2 * SECTOR
        put(fs, "old.tmp", data, sync=True)
        fs.rename(below(fs, "old.tmp"), below(fs, "old"))
        assert contents(fs.ops, "old") == {b"old", data}
        fs.fsync_dir(fs.root)
        assert {tuple(state.tree.items()) for state in cuts(fs.ops)} == {(("old", data),)}

    def test_a_move_needs_both_directories_synced(self, fs: RecordingFs) -> None:
        fs.make_dirs(below(fs, "d"))
        fs.rename(below(fs, "old"), below(fs, "d/new"))
        assert all(b"old" in state.tree.values() for state in cuts(fs.ops))
        moved = list(fs.ops)
        fs.fsync_dir(fs.root)
        assert contents(fs.ops, "d/new") == {None, b"old"}
        assert contents(fs.ops, "old") == {None}
        fs.ops[:] = moved
        fs.fsync_dir(below(fs, "d"))
        assert contents(fs.ops, "d/new") == {b"old"}
        assert contents(fs.ops, "old") == {None, b"old"}

    def test_a_renamed_directory_takes_along_what_is_below(self, fs: RecordingFs) -> None:
        fs.make_dirs(below(fs, "d"))
        put(fs, "d/file", b"data", sync=True, sync_dir=True)
        fs.rename(below(fs, "d"), below(fs, "e"))
        put(fs, "e/more", b"", sync_dir=True)
        fs.fsync_dir(fs.root)
        tree = {"old": b"old", "e": None, "e/file": b"data", "e/more": b""}
        assert {tuple(sorted(s.tree)) for s in cuts(fs.ops)} == {tuple(sorted(tree))}
        assert crash_state(fs.ops, Random(0), "none").tree == tree

    def test_renaming_to_the_same_name_changes_nothing(self, fs: RecordingFs) -> None:
        fs.rename(below(fs, "old"), below(fs, "old"))
        assert contents(fs.ops, "old") == {b"old"}

    def test_a_failed_directory_sync_saves_nothing(self, tmp_path: Path) -> None:
        """But other entries made later may be saved: a log goes on in a new segment."""
        faulty = FaultyFs()
        fs = RecordingFs(tmp_path, inner=faulty)
        put(fs, "a", b"", sync=True)
        faulty.fail("fsync_dir", errno.EIO)
        with pytest.raises(OSError):
            fs.fsync_dir(fs.root)
        put(fs, "b", b"", sync=True, sync_dir=True)
        assert contents(fs.ops, "a") == {None, b""}
        assert contents(fs.ops, "b") == {b""}


class TestCrashStates:
    def test_every_change_is_a_point_to_cut_at(self, fs: RecordingFs) -> None:
        fs.make_dirs(below(fs, "d"))
        put(fs, "d/file", b"data", sync=True, sync_dir=True)
        states = list(crash_states(fs.ops, Random(0), 500))
        assert len(states) == 500
        assert [state.prefix for state in states] == sorted(state.prefix for state in states)
        changes = {type(fs.ops[state.prefix - 1]) for state in states}
        assert {Mkdir, Write, SyncEnd} <= changes
        assert SyncBegin not in changes
        assert {state.survives for state in states} == {"none", "all", "mixed"}
        assert all(state.last is fs.ops[state.prefix - 1] for state in states)

    def test_fewer_states_than_points_are_spread(self, fs: RecordingFs) -> None:
        for number in range(50):
            put(fs, str(number), b"x")
        prefixes = [state.prefix for state in crash_states(fs.ops, Random(0), 10)]
        assert len(set(prefixes)) == 10

    def test_one_seed_gives_the_same_states(self, fs: RecordingFs) -> None:
        put(fs, "file", b"x" * 5000)
        first, again, other = (
            [state.tree for state in crash_states(fs.ops, Random(seed), 50)] for seed in (7, 7, 8)
        )
        assert first == again
        assert first != other

    def test_marks_tell_what_was_acknowledged_before_the_cut(self, fs: RecordingFs) -> None:
        fs.mark(0)
        for number in range(1, 4):
            put(fs, "log", b"x", flags=APPEND, sync=True, sync_dir=True)
            fs.mark(number)
        seen = set()
        for state in list(crash_states(fs.ops, Random(0), 300)):
            content = state.tree.get("log") or b""
            assert isinstance(content, bytes)
            assert state.marks == list(range(len(state.marks)))
            assert len(content) >= len(state.marks) - 1
            seen.add(len(state.marks))
        assert seen == {0, 1, 2, 3, 4}

    def test_an_acknowledgement_before_the_sync_is_caught(self, fs: RecordingFs) -> None:
        put(fs, "log", b"", sync_dir=True)
        with fs.opened(below(fs, "log"), APPEND) as fd:
            fs.write(fd, b"record")
            fs.mark("acknowledged")
            fs.fsync(fd)
        lies = [
            state
            for state in crash_states(fs.ops, Random(0), 300)
            if state.marks and state.tree["log"] != b"record"
        ]
        assert lies
        assert all(not isinstance(state.last, SyncEnd) for state in lies)

    def test_a_state_is_written_into_a_fresh_directory(
        self, fs: RecordingFs, tmp_path: Path
    ) -> None:
        fs.make_dirs(below(fs, "a/b"))
        put(fs, "a/b/file", b"data")
        for number, state in enumerate(crash_states(fs.ops, Random(0), 20)):
            directory = tmp_path / f"state-{number}"
            materialise(state, directory)
            assert read_tree(directory) == state.tree

    def test_a_state_is_written_over_nothing(self, fs: RecordingFs) -> None:
        with pytest.raises(ValueError, match="not empty"):
            materialise(crash_state(fs.ops, Random(0)), fs.root)

    def test_work_after_a_power_cut_can_be_cut_again(self, fs: RecordingFs, tmp_path: Path) -> None:
        put(fs, "file", b"data", sync=True, sync_dir=True)
        materialise(crash_state(fs.ops, Random(0), "none"), tmp_path / "next")
        again = RecordingFs(tmp_path / "next")
        with again.opened(below(again, "file"), APPEND) as fd:
            again.write(fd, b"+")
        assert {b"data", b"data+"} <= contents(again.ops, "file")


class TestFaults:
    def test_fails_the_nth_call_and_so_many_after_it(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fault = fs.fail("stat", errno.EACCES, nth=2, times=2)
        outcomes = []
        for _ in range(5):
            try:
                fs.stat(str(tmp_path))
                outcomes.append("done")
            except PermissionError as error:
                outcomes.append(error.filename)
        failed = str(tmp_path)
        assert outcomes == ["done", failed, failed, "done", "done"]
        assert fault.hits == 2
        assert fs.calls == {"stat": 5}

    def test_may_fail_for_ever_and_be_healed(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fs.fail("listdir", errno.EIO, times=None)
        for _ in range(3):
            with pytest.raises(OSError):
                fs.listdir(str(tmp_path))
        fs.heal()
        assert fs.listdir(str(tmp_path)) == []

    def test_counts_from_when_it_was_planned(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fs.stat(str(tmp_path))
        fs.fail("stat", errno.EIO)
        with pytest.raises(OSError):
            fs.stat(str(tmp_path))

    def test_every_plan_counts_every_call(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fs.fail("stat", errno.EIO, nth=1)
        fs.fail("stat", errno.EACCES, nth=2)
        with pytest.raises(OSError) as caught:
            fs.stat(str(tmp_path))
        assert caught.value.errno == errno.EIO
        with pytest.raises(PermissionError):
            fs.stat(str(tmp_path))

    def test_a_descriptor_is_known_by_its_path(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fault = fs.fail("write", errno.EIO, path_contains="b.log")
        with (
            fs.opened(str(tmp_path / "a.log"), CREATE) as a,
            fs.opened(str(tmp_path / "b.log"), CREATE) as b,
        ):
            assert fs.open_paths == {a: str(tmp_path / "a.log"), b: str(tmp_path / "b.log")}
            fs.write(a, b"x")
            with pytest.raises(OSError) as caught:
                fs.write(b, b"x")
        assert caught.value.filename == str(tmp_path / "b.log")
        assert fault.hits == 1
        assert fs.open_paths == {}

    def test_a_number_that_is_used_again_gets_its_new_path(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        with fs.opened(str(tmp_path / "a"), CREATE) as first:
            pass
        fs.fail("write", errno.EIO, path_contains=str(tmp_path / "a"))
        with fs.opened(str(tmp_path / "b"), CREATE) as second:
            assert second == first
            assert fs.write(second, b"x") == 1

    def test_a_rename_matches_by_either_path(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"")
        fs = FaultyFs()
        faults = [fs.fail("rename", errno.EIO, path_contains=part) for part in ("/a", "/b", "/c")]
        with pytest.raises(OSError):
            fs.rename(str(tmp_path / "a"), str(tmp_path / "b"))
        assert [fault.hits for fault in faults] == [1, 1, 0]
        assert os.listdir(tmp_path) == ["a"]

    def test_a_sync_of_a_directory_is_told_from_one_of_a_file(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fs.fail("fsync_dir", errno.EIO)
        with fs.opened(str(tmp_path / "file"), CREATE) as fd:
            fs.fsync(fd)
        with pytest.raises(OSError):
            fs.fsync_dir(str(tmp_path))
        fs.fsync_dir(str(tmp_path))
        with fs.opened(str(tmp_path / "file"), CREATE) as fd:
            fs.fsync(fd)
        assert (fs.calls["fsync"], fs.calls["fsync_dir"]) == (4, 2)

    def test_a_failed_close_has_closed(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fd = fs.open(str(tmp_path / "file"), CREATE)
        fs.fail("close", errno.EIO)
        with pytest.raises(OSError):
            fs.close(fd)
        with pytest.raises(OSError) as caught:
            os.fstat(fd)
        assert caught.value.errno == errno.EBADF
        assert fs.open_paths == {}

    def test_what_fails_has_no_effect(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fs.fail("open", errno.EMFILE)
        with pytest.raises(OSError):
            fs.open(str(tmp_path / "file"), CREATE)
        assert os.listdir(tmp_path) == []

    def test_operations_bound_early_fail_too(self, tmp_path: Path) -> None:
        """Storage binds them once, before a test plans anything."""
        fs = FaultyFs()
        stat = fs.stat
        fs.fail("stat", errno.EIO)
        with pytest.raises(OSError):
            stat(str(tmp_path))

    def test_a_name_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(ValueError, match="fsyncdir"):
            FaultyFs().fail("fsyncdir", errno.EIO)


class TestShortWrites:
    def test_a_short_write_and_then_an_error(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fault = fs.short_write(3, nth=2, path_contains="file")
        with fs.opened(str(tmp_path / "file"), CREATE) as fd:
            assert fs.write(fd, b"first") == 5
            assert fs.write(fd, b"second") == 3
            with pytest.raises(OSError) as caught:
                fs.write(fd, b"ond")
            assert caught.value.errno == errno.ENOSPC
            assert fs.write(fd, b"ond") == 3
        assert (tmp_path / "file").read_bytes() == b"firstsecond"
        assert fault.hits == 1

    def test_a_write_in_place_may_be_short_too(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fs.short_write(1, operation="pwrite")
        with fs.opened(str(tmp_path / "file"), CREATE) as fd:
            assert fs.pwrite(fd, b"xyz", 2) == 1
        assert (tmp_path / "file").read_bytes() == b"\0\0x"

    def test_is_short_whatever_is_kept(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        with fs.opened(str(tmp_path / "file"), CREATE) as fd:
            fs.short_write(100)
            assert fs.write(fd, b"xyz") == 2
            fs.heal()
            fs.short_write(100)
            with pytest.raises(OSError):
                fs.write(fd, b"x")


class TestFullDisk:
    @pytest.fixture
    def fd(self, tmp_path: Path) -> Iterator[int]:
        (tmp_path / "file").write_bytes(b"0123456789")
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_APPEND)
        yield fd
        os.close(fd)

    def test_nothing_grows(self, tmp_path: Path, fd: int) -> None:
        fs = FaultyFs()
        fs.full = True
        attempts: list[tuple[Any, ...]] = [
            (fs.write, fd, b"x"),
            (fs.pwrite, fd, b"x", 10),
            (fs.ftruncate, fd, 11),
            (fs.open, str(tmp_path / "new"), CREATE),
            (fs.mkdir, str(tmp_path / "new")),
        ]
        for do, *args in attempts:
            with pytest.raises(OSError) as caught:
                do(*args)
            assert caught.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["file"]
        assert (tmp_path / "file").read_bytes() == b"0123456789"
        assert fs.full

    def test_what_needs_no_room_works(self, tmp_path: Path, fd: int) -> None:
        fs = FaultyFs()
        fs.full = True
        with fs.opened(str(tmp_path / "file"), CREATE) as other:
            assert fs.pwrite(other, b"x", 9) == 1
            assert fs.write(other, b"") == 0
            fs.ftruncate(other, 10)
            fs.ftruncate(other, 9)
            fs.fsync(other)
        with pytest.raises(FileExistsError):
            fs.mkdir(str(tmp_path))
        fs.rename(str(tmp_path / "file"), str(tmp_path / "new"))
        assert (tmp_path / "new").read_bytes() == b"012345678"
        fs.unlink(str(tmp_path / "new"))

    def test_room_comes_back(self, fd: int) -> None:
        fs = FaultyFs()
        fs.full = True
        with pytest.raises(OSError):
            fs.write(fd, b"x")
        fs.full = False
        assert not fs.full
        assert fs.write(fd, b"x") == 1

    def test_the_last_write_that_fits_is_short(self, tmp_path: Path, fd: int) -> None:
        fs = FaultyFs()
        fs.fill(room=5)
        assert fs.write(fd, b"abc") == 3
        assert fs.write(fd, b"def") == 2
        with pytest.raises(OSError):
            fs.write(fd, b"f")
        assert (tmp_path / "file").read_bytes() == b"0123456789abcde"

    def test_a_write_across_the_end_uses_room_for_what_is_beyond(
        self, tmp_path: Path, fd: int
    ) -> None:
        fs = FaultyFs()
        fs.fill(room=1)
        with fs.opened(str(tmp_path / "file"), os.O_WRONLY) as other:
            assert fs.pwrite(other, b"abcd", 8) == 3
        assert (tmp_path / "file").read_bytes() == b"01234567abc"
        assert fs.room == 0

    def test_what_is_cut_gives_no_room_back(self, fd: int) -> None:
        fs = FaultyFs()
        fs.full = True
        fs.ftruncate(fd, 0)
        with pytest.raises(OSError):
            fs.write(fd, b"x")


class TestSlowCalls:
    def test_a_delay_blocks_the_thread(self, tmp_path: Path) -> None:
        """No greenlet of the thread runs meanwhile, as with a real fsync."""
        fs = FaultyFs()
        fs.delay("stat", 0.02)
        ran: list[str] = []
        other = gevent.spawn(ran.append, "other")
        before = time.monotonic()
        fs.stat(str(tmp_path))
        assert time.monotonic() - before >= 0.019
        assert ran == []
        other.join()

    def test_delays_are_for_what_they_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slept: list[float] = []
        monkeypatch.setattr("tests.fakes.faulty._blocking_sleep", slept.append)
        fs = FaultyFs()
        fs.delay("stat", 1, path_contains=str(tmp_path))
        fs.delay("stat", 2)
        fs.listdir(str(tmp_path))
        assert slept == []
        fs.stat("/")
        fs.stat(str(tmp_path))
        assert slept == [2, 3]
        fs.heal()
        fs.stat(str(tmp_path))
        assert slept == [2, 3]

    def test_calls_are_held_until_released(self, tmp_path: Path, pool: ThreadPool) -> None:
        fs = FaultyFs()
        with fs.hold("stat", path_contains=str(tmp_path)) as held:
            jobs = [pool.spawn(fs.stat, str(tmp_path)) for _ in range(3)]
            held.wait_entered(3)
            fs.stat("/")
            assert not any(job.ready() for job in jobs)
            held.release()
            for job in jobs:
                job.get()
        fs.stat(str(tmp_path))

    def test_healing_releases(self, tmp_path: Path, pool: ThreadPool) -> None:
        fs = FaultyFs()
        held = fs.hold("stat")
        job = pool.spawn(fs.stat, str(tmp_path))
        held.wait_entered()
        fs.heal()
        job.get()

    def test_waiting_for_a_call_that_never_comes_fails(self) -> None:
        with pytest.raises(AssertionError, match="0 of 1 calls"):
            Held("stat", None).wait_entered(timeout=0)

    def test_calls_of_many_threads_are_all_counted(self, tmp_path: Path) -> None:
        fs = FaultyFs()
        fault = fs.fail("stat", errno.EIO, times=None, path_contains="missing")

        def work() -> None:
            for _ in range(500):
                fs.stat(str(tmp_path))
                with pytest.raises(OSError):
                    fs.stat(str(tmp_path / "missing"))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert fs.calls["stat"] == 4000
        assert fault.hits == 2000
