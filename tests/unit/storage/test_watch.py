"""Waking readers when another process appends."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from keyop.storage import watch
from keyop.storage.readers import Readers
from keyop.storage.watch import Watcher

pyinotify = pytest.importorskip("pyinotify")


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


def reader(readers: Readers) -> Event:
    event = Event()
    readers.events.add(event)
    return event


def woken(event: Event) -> bool:
    """Tell whether the event comes; what the kernel has queued is there within the time."""
    return bool(event.wait(5))


def not_woken(event: Event, watcher: Watcher) -> bool:
    """Let the loop take in what the kernel has queued already."""
    for _ in range(5):
        gevent.sleep(0.001)
    return not event.is_set()


@pytest.mark.parametrize("what", ["append", "create", "rename"])
def test_a_change_wakes_the_readers(watcher: Watcher, tmp_path: Path, what: str) -> None:
    """An append, a new segment, and one that is moved in."""
    (tmp_path / "segment").write_bytes(b"x")
    (tmp_path.parent / f"{tmp_path.name}-moved").write_bytes(b"x")
    readers = Readers()
    event = reader(readers)
    assert watcher.watch(str(tmp_path), readers)
    if what == "append":
        with open(tmp_path / "segment", "ab") as file:
            file.write(b"y")
    elif what == "create":
        os.close(os.open(tmp_path / "new", os.O_CREAT | os.O_WRONLY))
    else:
        os.rename(tmp_path.parent / f"{tmp_path.name}-moved", tmp_path / "moved")
    assert woken(event)


def test_only_those_of_the_channel(watcher: Watcher, tmp_path: Path) -> None:
    """Readers of another channel sleep on."""
    one, two = Readers(), Readers()
    events = [reader(one), reader(two)]
    for name, readers in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        assert watcher.watch(str(tmp_path / name), readers)
    (tmp_path / "one" / "segment").write_bytes(b"x")
    assert woken(events[0])
    assert not_woken(events[1], watcher)


def test_watching_twice(watcher: Watcher, tmp_path: Path) -> None:
    """The second time there is nothing to do, and one unwatch ends it."""
    readers = Readers()
    event = reader(readers)
    assert watcher.watch(str(tmp_path), readers)
    assert watcher.watch(str(tmp_path), readers)
    watcher.unwatch(readers)
    (tmp_path / "segment").write_bytes(b"x")
    assert not_woken(event, watcher)


def test_unwatch_of_strangers(watcher: Watcher, tmp_path: Path) -> None:
    """Forgetting readers that are not watched does nothing, before and after others are."""
    watcher.unwatch(Readers())
    assert watcher.watch(str(tmp_path), Readers())
    watcher.unwatch(Readers())


def test_unwatched_while_an_event_waits(watcher: Watcher, tmp_path: Path) -> None:
    """What the kernel queued before is for nobody."""
    readers = Readers()
    event = reader(readers)
    watcher.watch(str(tmp_path), readers)
    (tmp_path / "segment").write_bytes(b"x")
    watcher.unwatch(readers)
    assert not_woken(event, watcher)


def test_several_events_are_one_wake(watcher: Watcher, tmp_path: Path) -> None:
    """However many changes, the readers are woken once for each look."""
    readers = Readers()
    event = reader(readers)
    watcher.watch(str(tmp_path), readers)
    for number in range(50):
        (tmp_path / f"segment-{number}").write_bytes(b"x")
    assert woken(event)
    assert readers.wakes == 1


def test_an_overflow_wakes_everybody(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel's queue was full, anything may have happened."""
    events = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        readers = Readers()
        events.append(reader(readers))
        watcher.watch(str(tmp_path / str(number)), readers)
    overflow = struct.pack("iIII", -1, pyinotify.IN_Q_OVERFLOW, 0, 0)
    monkeypatch.setattr(os, "read", lambda fd, count: overflow)
    watcher._ready()
    assert all(event.is_set() for event in events)


def test_a_name_of_any_length_is_passed_over(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are of different sizes; each is found behind the one before."""
    readers = Readers()
    event = reader(readers)
    watcher.watch(str(tmp_path), readers)
    descriptor = watcher._descriptors[readers]
    data = struct.pack("iIII16s", 999, 2, 0, 16, b"segment") + struct.pack(
        "iIII", descriptor, 2, 0, 0
    )
    monkeypatch.setattr(os, "read", lambda fd, count: data)
    watcher._ready()
    assert event.is_set()


def test_nothing_to_read(watcher: Watcher, tmp_path: Path) -> None:
    """A wake-up for nothing does not block the loop."""
    watcher.watch(str(tmp_path), Readers())
    watcher._ready()


class TestLimits:
    def test_no_more_watches(
        self,
        watcher: Watcher,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Past the limit of the system it is told what to raise, and the poll serves."""

        def refuse(*_: object, **__: object) -> None:
            raise pyinotify.WatchManagerError("no space left on device", {})

        monkeypatch.setattr(pyinotify.WatchManager, "add_watch", refuse)
        readers = Readers()
        assert not watcher.watch(str(tmp_path), readers)
        assert "max_user_watches" in caplog.text
        monkeypatch.undo()
        assert watcher.watch(str(tmp_path), readers)

    def test_a_directory_that_is_not_there(self, watcher: Watcher, tmp_path: Path) -> None:
        """It cannot be watched."""
        assert not watcher.watch(str(tmp_path / "none"), Readers())

    @pytest.mark.parametrize("error", [OSError("too many instances"), RuntimeError("not Linux")])
    def test_no_inotify(
        self,
        watcher: Watcher,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
    ) -> None:
        """It is said once, then the poll serves."""

        def refuse() -> None:
            raise error

        monkeypatch.setattr(pyinotify, "WatchManager", refuse)
        assert not watcher.watch(str(tmp_path), Readers())
        assert not watcher.watch(str(tmp_path), Readers())
        assert caplog.text.count("inotify is not available") == 1

    def test_no_pyinotify(
        self, watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A system without the package works the same way."""
        monkeypatch.setitem(sys.modules, "pyinotify", None)
        assert not watcher.watch(str(tmp_path), Readers())


class TestEnd:
    def test_the_descriptor_goes(self, tmp_path: Path) -> None:
        """Closing, twice as well, gives it back; unwatching afterwards does nothing."""
        before = len(os.listdir("/proc/self/fd"))
        watcher, readers = Watcher(), Readers()
        watcher.close()
        watcher.watch(str(tmp_path), readers)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        watcher.close()
        watcher.close()
        assert len(os.listdir("/proc/self/fd")) == before
        watcher.unwatch(readers)

    def test_it_may_begin_again(self, watcher: Watcher, tmp_path: Path) -> None:
        """After closing, readers can be watched anew."""
        readers = Readers()
        event = reader(readers)
        watcher.watch(str(tmp_path), readers)
        watcher.close()
        assert watcher.watch(str(tmp_path), readers)
        (tmp_path / "segment").write_bytes(b"x")
        assert woken(event)

    def test_not_inherited_by_programs(self, watcher: Watcher, tmp_path: Path) -> None:
        """The descriptor is closed in a program that is started."""
        watcher.watch(str(tmp_path), Readers())
        assert not os.get_inheritable(watcher._fd)

    def test_dropped_in_a_child(self, tmp_path: Path) -> None:
        """The descriptor goes without a word to the kernel about the parent's watches."""
        before = len(os.listdir("/proc/self/fd"))
        watcher, readers = Watcher(), Readers()
        watcher.drop_in_child()
        watcher.watch(str(tmp_path), readers)
        watcher.drop_in_child()
        assert len(os.listdir("/proc/self/fd")) == before
        watcher.unwatch(readers)
        watcher.close()


@pytest.mark.parametrize("closed", [False, True])
def test_beginning_at_once(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """Where making it lets others run, as under monkey patching, it is made once all the same.

    Nothing is left of those that came too late, nor of one that came after the end.
    """
    real = watch._pyinotify()

    class Slow:
        IN_MODIFY, IN_CREATE, IN_MOVED_TO = real.IN_MODIFY, real.IN_CREATE, real.IN_MOVED_TO

        @staticmethod
        def WatchManager() -> Any:
            made = real.WatchManager()
            gevent.sleep(0.01)
            return made

    monkeypatch.setattr(watch, "_pyinotify", Slow)
    readers = [Readers() for _ in range(3)]
    starting = [gevent.spawn(watcher.watch, str(tmp_path), each) for each in readers]
    gevent.sleep(0)
    if closed:
        watcher.close()
    assert [each.get(timeout=10) for each in starting] == [not closed] * 3


def test_nothing_that_they_do_not_know(watcher: Watcher, tmp_path: Path) -> None:
    """Readers whose own process has written all that is there sleep on."""
    foreign = False
    readers = Readers(lambda: foreign)
    event = reader(readers)
    assert watcher.watch(str(tmp_path), readers)
    (tmp_path / "segment").write_bytes(b"x")
    assert not_woken(event, watcher)
    foreign = True
    (tmp_path / "segment").write_bytes(b"xy")
    assert woken(event)
