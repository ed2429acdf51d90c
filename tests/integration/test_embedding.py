"""keyop inside somebody else's program: at import, before forks, beside threads and patching."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import KeyopError, Messenger, WrongThreadError
from keyop.testing import drain
from tests.fakes.faulty import FaultyFs

from .helpers import (
    ROOT,
    Recorder,
    Worker,
    config,
    log_bytes,
    offset_path,
    records,
    running,
    stored_offset,
    tree,
    wait_until,
)


def run(code: str, *args: Any, timeout: float = 50, options: tuple[str, ...] = ()) -> str:
    """Run a program of its own to its good end; return what it printed."""
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code), *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- import


def test_import_patches_nothing() -> None:
    """After ``import keyop`` the standard library is as it was, and no thread was started."""
    out = run("""
        import os, socket, ssl, threading, time, select, subprocess, queue
        before = [
            socket.socket, ssl.SSLContext, threading.Lock, threading.Thread, time.sleep,
            select.select, subprocess.Popen, queue.SimpleQueue, os.fork,
        ]
        import keyop, keyop.testing
        import gevent.monkey
        after = [
            socket.socket, ssl.SSLContext, threading.Lock, threading.Thread, time.sleep,
            select.select, subprocess.Popen, queue.SimpleQueue, os.fork,
        ]
        assert all(a is b for a, b in zip(before, after))
        assert not gevent.monkey.saved, gevent.monkey.saved
        assert threading.active_count() == 1
        assert len(os.listdir("/proc/self/task")) == 1
        print("fine")
    """)
    assert out == "fine\n"


def test_import_and_use_leave_logging_and_signals_alone(tmp_path: Path) -> None:
    """Neither the root logger nor a signal handler is touched, by import, start, use or close.

    Nothing is printed by a library that has nothing to complain about.
    """
    out = run(
        """
        import gc, logging, signal, sys, threading
        def state():
            root = logging.getLogger()
            handlers = {n: signal.getsignal(n) for n in signal.valid_signals() if n not in (9, 19)}
            return (
                root.level, tuple(root.handlers), tuple(root.filters), logging.root.manager.disable,
                logging.getLoggerClass(), logging.lastResort, tuple(sorted(map(str,
                    handlers.items()))), sys.excepthook, threading.excepthook, sys.unraisablehook,
                signal.getitimer(signal.ITIMER_REAL), sys.getswitchinterval(),
                sys.getrecursionlimit(), gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(),
                signal.set_wakeup_fd(-1),
            )
        # Before anybody: gevent's loop has ideas of its own, which are not keyop's.
        import gevent
        gevent.sleep(0)
        gevent.get_hub().threadpool.apply(int)
        before = state()
        import keyop, keyop.testing
        assert state() == before, (before, state())
        m = keyop.Messenger(data_dir=sys.argv[1])
        m.register_payload_type("t", dict)
        m.subscribe("orders", "s", lambda message: None)
        m.publish("orders", "t", {})
        keyop.testing.drain(m)
        m.sweep()
        assert state() == before, (before, state())
        m.close()
        assert state() == before, (before, state())
        for name in logging.root.manager.loggerDict:
            if name.split(".")[0] == "keyop":
                found = logging.getLogger(name)
                assert found.level == logging.NOTSET, name
                assert found.propagate, name
                assert all(isinstance(h, logging.NullHandler) for h in found.handlers), name
        print("fine")
        """,
        tmp_path / "data",
    )
    assert out == "fine\n"


def test_used_names_only() -> None:
    """``from keyop import *`` gives the public names and nothing from other packages."""
    out = run("""
        before = set(dir())
        from keyop import *
        print(*sorted(set(dir()) - before - {"before"}))
    """)
    names = set(out.split())
    assert {"Messenger", "Config", "Message", "RetryLater", "KeyopError"} <= names
    assert not names & {"os", "sys", "gevent", "orjson", "annotations", "time"}


def test_warnings_as_errors(tmp_path: Path) -> None:
    """A program that runs with ``-W error`` can use keyop: it delivers what is published."""
    out = run(
        """
        import sys
        from keyop import Messenger
        from keyop.testing import drain
        seen = []
        with Messenger(data_dir=sys.argv[1]) as m:
            m.subscribe("orders", "s", seen.append)
            m.publish("orders", "t", 1)
            drain(m)
            print(len(seen))
        """,
        tmp_path / "data",
        options=("-W", "error"),
    )
    assert out == "1\n"


# --- constructing


def test_constructing_starts_nothing(tmp_path: Path) -> None:
    """Making a messenger calls no file system and starts neither a greenlet nor a thread."""
    fs = FaultyFs()

    def greenlets() -> int:
        return sum(isinstance(each, gevent.Greenlet) for each in gc.get_objects())

    before = (threading.active_count(), len(os.listdir("/proc/self/fd")), greenlets())
    made = [Messenger(config(tmp_path / "data"), fs=fs) for _ in range(20)]
    assert (threading.active_count(), len(os.listdir("/proc/self/fd")), greenlets()) == before
    for each in made:
        each.register_payload_type("t", dict)
        assert each.instance_name == "here"
        assert each.hub_addr == ""
        assert each.subscriptions() == []
        each.close()
        each.close()
    assert sum(fs.calls.values()) == 0
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("wrap", [str, Path, os.fsencode])
def test_data_dir_may_be_a_path(tmp_path: Path, wrap: Callable[[Path], Any]) -> None:
    """``data_dir`` is a string or a path object; bytes are refused or work, but never half."""
    try:
        messenger = Messenger(data_dir=wrap(tmp_path / "data"))
    except (TypeError, KeyopError):
        assert wrap is os.fsencode
        return
    with messenger:
        messenger.publish("orders", "t", 1)
    assert len(records(tmp_path / "data", "orders")) == 1


def test_relative_data_dir_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that changes its working directory does not move a started messenger's files."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    with Messenger(data_dir="data") as messenger:
        messenger.publish("orders", "t", 1)
        monkeypatch.chdir(tmp_path / "two")
        messenger.publish("orders", "t", 2)
        messenger.publish("invoices", "t", 3)
        messenger.subscribe("orders", "s", seen := Recorder(), start="earliest")
        seen.wait(2)
        drain(messenger)
    assert list((tmp_path / "two").iterdir()) == []
    assert len(records(tmp_path / "one" / "data", "orders")) == 2
    assert len(records(tmp_path / "one" / "data", "invoices")) == 1


# --- forks

MODULE = """
from keyop import Messenger
messenger = Messenger(data_dir={data_dir!r})
messenger.register_payload_type("t", dict)
"""


@pytest.mark.parametrize("fork", ["os.fork", "gevent.fork", "gevent.os.fork_and_watch"])
def test_module_level_instance_before_forks(tmp_path: Path, fork: str) -> None:
    """An instance that a pre-forking server made while loading works in each child.

    Each worker starts its own when it first publishes or subscribes; the parent may too.
    """
    data = tmp_path / "data"
    (tmp_path / "app.py").write_text(MODULE.format(data_dir=str(data)))
    out = run(
        f"""
        import os, sys
        sys.path.insert(0, sys.argv[1])
        import gevent.os, gevent
        from app import messenger
        children = []
        for who in range(3):
            pid = {fork}()
            if pid == 0:
                try:
                    for n in range(20):
                        messenger.publish("orders", "t", {{"who": who, "n": n}})
                    seen = []
                    messenger.subscribe("orders", f"s{{who}}", seen.append, start="earliest")
                    from keyop.testing import drain
                    drain(messenger)
                    assert len(seen) >= 20
                    messenger.close()
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(pid)
        wait = gevent.os.waitpid if "watch" in {fork!r} else os.waitpid
        statuses = [wait(pid, 0)[1] for pid in children]
        assert statuses == [0, 0, 0], statuses
        for n in range(20):
            messenger.publish("orders", "t", {{"who": 3, "n": n}})
        messenger.close()
        print("fine")
        """,
        tmp_path,
    )
    assert out == "fine\n"
    payloads = [each["payload"] for each in records(data, "orders")]
    for who in range(4):
        assert [each["n"] for each in payloads if each["who"] == who] == list(range(20))


def test_started_before_a_fork_is_refused_in_the_child(tmp_path: Path) -> None:
    """A messenger that was started is the parent's: every call in the child says so, with pids.

    The child may make one of its own; the parent's goes on as if nothing had been.
    """
    out = run(
        """
        import os, sys
        import gevent
        from keyop import *
        from keyop.testing import drain
        seen = []
        m = Messenger(data_dir=sys.argv[1])
        subscription = m.subscribe("orders", "s", seen.append)
        m.publish("orders", "t", "before")
        drain(m)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                calls = {
                    "publish": lambda: m.publish("orders", "t", "child"),
                    "publish_batch": lambda: m.publish_batch("orders", [("t", "child")]),
                    "subscribe": lambda: m.subscribe("orders", "x", print),
                    "unsubscribe": lambda: m.unsubscribe("orders", "s"),
                    "start": lambda: m.start(),
                    "stats": lambda: m.stats(),
                    "reopen": lambda: m.reopen("orders"),
                }
                for name, call in calls.items():
                    try:
                        call()
                    except ForkedError as error:
                        assert str(parent) in str(error), (name, error)
                        assert str(os.getpid()) in str(error), (name, error)
                    else:
                        raise AssertionError(f"{name} worked")
                try:
                    subscription.seek("earliest")
                except KeyopError:
                    pass
                else:
                    raise AssertionError("the parent's position was moved")
                subscription.stop()  # neither may hang, nor end what is the parent's
                m.close(timeout=2)
                own = Messenger(data_dir=sys.argv[1])
                own.publish("orders", "t", "own")
                got = []
                own.subscribe("orders", "own", got.append, start="earliest")
                drain(own)
                assert [each.payload for each in got] == ["before", "own"]
                try:
                    own.subscribe("orders", "s", print)
                except SubscriberInUseError:
                    pass
                else:
                    raise AssertionError("the lease of the parent is gone")
                own.close()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        m.publish("orders", "t", "after")
        drain(m)
        assert [each.payload for each in seen] == ["before", "own", "after"], seen
        m.close()
        print("fine")
        """,
        tmp_path / "data",
    )
    assert out == "fine\n"


def test_subscriptions_do_not_run_on_in_a_child(tmp_path: Path) -> None:
    """A child that gives gevent time does not deliver the parent's messages a second time."""
    out = run(
        """
        import os, sys
        import gevent
        from keyop import *
        from keyop.testing import drain
        where = os.getpid()
        def handle(message):
            os.write(1, f"{message.payload} {'parent' if os.getpid() == where else 'CHILD'}\\n"
                .encode())
            if message.payload == "slow":
                gevent.sleep(0.3)
        m = Messenger(data_dir=sys.argv[1])
        m.subscribe("orders", "s", handle)
        m.subscribe("orders", "many", handle, concurrency=3)
        m.publish("orders", "t", "slow")
        m.publish("orders", "t", "waiting")
        gevent.sleep(0.05)
        pid = os.fork()
        if pid == 0:
            try:
                gevent.reinit()
                gevent.sleep(0.6)
            finally:
                os._exit(0)
        m.publish("orders", "t", "later")
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            gevent.sleep(0.01)
        drain(m, timeout=10)
        m.close()
        """,
        tmp_path / "data",
    )
    lines = out.splitlines()
    assert sorted(lines) == sorted(["slow parent", "waiting parent", "later parent"] * 2)


def test_child_keeps_no_lock(tmp_path: Path) -> None:
    """When the parent has closed, or died, its leases are free though a child lives on."""
    code = """
    m = make()
    m.subscribe("orders", "s", lambda message: None)
    m.publish("orders", "t", 1)
    pid = os.fork()
    if pid == 0:
        say("child", os.getpid())
        time.sleep(60)
        os._exit(0)
    say("parent", os.getpid())
    wait_for(sys.argv[2])
    if sys.argv[3] == "close":
        m.close()
        say("closed")
        time.sleep(60)
    os.kill(os.getpid(), 9)
    """
    for end in ("close", "kill"):
        go, data = tmp_path / f"go-{end}", tmp_path / end
        seen = Recorder()
        with Worker(code, data, go, end) as worker:
            child = int(worker.wait_line("child", 30).split()[1])
            try:
                worker.wait_line("parent")
                go.touch()
                if end == "close":
                    worker.wait_line("closed")
                else:
                    wait_until(lambda worker=worker: worker.process.poll() is not None, 20)
                os.kill(child, 0)  # it lives
                with running(data) as messenger:
                    messenger.publish("orders", "t", 2, timeout=5)
                    messenger.subscribe("orders", "s", seen)
                    wait_until(lambda seen=seen: 2 in seen.payloads)
            finally:
                os.kill(child, signal.SIGKILL)


def test_programs_inherit_no_descriptor(tmp_path: Path) -> None:
    """What a program of the user's starts does not have keyop's files open."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 1)
        messenger.subscribe("orders", "s", Recorder(), start="earliest")
        drain(messenger)
        out = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False
        ).stdout
    assert "/proc" in out
    assert str(tmp_path) not in out
    assert "inotify" not in out


# --- threads


def in_thread(call: Callable[[], Any]) -> BaseException | None:
    """Call in an OS thread; return what it raised."""
    caught: list[BaseException | None] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)
        else:
            caught.append(None)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: not thread.is_alive(), 20, "the thread to end")
    return caught[0]


def test_use_from_another_thread(tmp_path: Path) -> None:
    """Every call from another OS thread than the messenger's is a clear error, and does nothing."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        messenger.subscribe("orders", "s", seen)
        before = tree(tmp_path)
        calls: dict[str, Callable[[], Any]] = {
            "publish": lambda: messenger.publish("orders", "t", 1),
            "publish_batch": lambda: messenger.publish_batch("orders", [("t", 1)]),
            "subscribe": lambda: messenger.subscribe("orders", "x", print),
            "unsubscribe": lambda: messenger.unsubscribe("orders", "s"),
            "reopen": lambda: messenger.reopen("orders"),
            "start": messenger.start,
            "stats": messenger.stats,
            "sweep": messenger.sweep,
        }
        for name, call in calls.items():
            error = in_thread(call)
            assert isinstance(error, WrongThreadError), (name, error)
            assert "thread" in str(error), name
        pool_error = gevent.get_hub().threadpool.spawn(calls["publish"])
        with pytest.raises(WrongThreadError):
            pool_error.get(timeout=10)
        assert tree(tmp_path) == before
        messenger.publish("orders", "t", 1)
        assert seen.wait(1) == [1]


@pytest.mark.parametrize("call", ["stop", "seek"])
def test_subscription_from_another_thread(tmp_path: Path, call: str) -> None:
    """So is what ends or moves a subscription; it goes on as if nothing had been."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        subscription = messenger.subscribe("orders", "s", seen, start="earliest")
        drain(messenger)
        calls: dict[str, Callable[[], Any]] = {
            "stop": subscription.stop,
            "seek": lambda: subscription.seek("earliest"),
        }
        error = in_thread(calls[call])
        assert isinstance(error, WrongThreadError), error
        messenger.publish("orders", "t", 1)
        drain(messenger)
        assert seen.payloads == [0, 1]


def test_close_from_another_thread(tmp_path: Path) -> None:
    """Closing from another thread is refused too, or works; it breaks nothing and does not hang."""
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        error = in_thread(lambda: messenger.close(timeout=2))
        if error is not None:
            assert isinstance(error, WrongThreadError)
            messenger.publish("orders", "t", 1)
    assert len(records(tmp_path, "orders")) == (1 if error is None else 2)


def test_made_in_one_thread_and_started_in_another(tmp_path: Path) -> None:
    """The messenger belongs to the thread that starts it; each thread may have one of its own."""
    code = """
    import threading
    m = make()
    def work():
        m.publish("orders", "t", "thread")
        seen = []
        m.subscribe("orders", "s", seen.append, start="earliest")
        from keyop.testing import drain
        drain(m)
        say("seen", [each.payload for each in seen])
        m.close()
    thread = threading.Thread(target=work)
    thread.start()
    own = make()
    own.publish("invoices", "t", "main")
    thread.join()
    own.close()
    """
    with Worker(code, tmp_path) as worker:
        assert worker.wait_line("seen", 30) == "seen ['thread']"
        worker.wait()
    assert len(records(tmp_path, "invoices")) == 1


# --- patched programs


def test_under_monkey_patching(tmp_path: Path) -> None:
    """With ``monkey.patch_all()`` threads are greenlets, so they may publish; handlers that sleep
    or wait for locks of the standard library let others run."""
    out = run(
        """
        from gevent import monkey
        monkey.patch_all()
        import sys, threading, time, queue
        from keyop import *
        from keyop.testing import drain
        seen = queue.Queue()
        lock = threading.Lock()
        def handle(message):
            time.sleep(0.02)
            with lock:
                seen.put(message.payload)
        m = Messenger(Config.from_dict({"name": "x", "storage": {
            "data_dir": sys.argv[1], "sync_policy": "always"}}))
        m.subscribe("orders", "s", handle, concurrency=5)
        def work(who):
            for n in range(10):
                m.publish("orders", "t", [who, n])
        threads = [threading.Thread(target=work, args=(who,)) for who in range(5)]
        started = time.monotonic()
        for each in threads: each.start()
        for each in threads: each.join()
        drain(m, timeout=20)
        assert seen.qsize() == 50
        from gevent import get_hub
        try:
            get_hub().threadpool.apply(m.publish, ("orders", "t", 1))
        except WrongThreadError:
            print("refused in a real thread")
        m.close()
        print("fine")
        """,
        tmp_path / "data",
    )
    assert out == "refused in a real thread\nfine\n"
    assert len(records(tmp_path / "data", "orders")) == 50


def test_patched_late(tmp_path: Path) -> None:
    """A program that patches after importing keyop, as some must, still works."""
    out = run(
        """
        import sys, warnings
        import keyop
        from keyop.testing import drain
        m = keyop.Messenger(data_dir=sys.argv[1])
        from gevent import monkey
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            monkey.patch_all()
        import time
        seen = []
        m.subscribe("orders", "s", lambda message: (time.sleep(0.01), seen.append(message.payload)))
        for n in range(5):
            m.publish("orders", "t", n)
        drain(m)
        m.close()
        print(seen)
        """,
        tmp_path / "data",
    )
    assert out == "[0, 1, 2, 3, 4]\n"


# --- how a program ends


@pytest.mark.parametrize(
    "end", ["pass", "raise SystemExit(0)", "sys.exit()", "m.close()", "gevent.sleep(0)"]
)
@pytest.mark.parametrize("policy", ["periodic", "always"])
def test_program_that_just_ends(tmp_path: Path, end: str, policy: str) -> None:
    """A program that does not close ends all the same, at once and without a word; G1 holds."""
    out = run(
        f"""
        import sys
        import gevent
        from keyop import *
        m = Messenger(Config.from_dict({{"name": "x", "storage": {{
            "data_dir": sys.argv[1], "sync_policy": {policy!r}}}}}))
        m.register_payload_type("t", int)
        m.subscribe("orders", "s", lambda message: None)
        for n in range(100):
            m.publish("orders", "t", n)
        print("published")
        {end}
        """,
        tmp_path / "data",
        timeout=30,
    )
    assert out == "published\n"
    assert [each["payload"] for each in records(tmp_path / "data", "orders")] == list(range(100))
    with running(tmp_path / "data") as messenger:
        messenger.subscribe("orders", "s", Recorder())


CLOSING = """
import signal
from keyop.testing import drain
m = make()
m.register_payload_type("t", int)
closed = []
def close(*_):
    m.close(timeout=5)
    closed.append(1)
if sys.argv[2] == "signal.signal":
    signal.signal(signal.SIGTERM, close)
else:
    gevent.signal_handler(signal.SIGTERM, close)
m.subscribe("orders", "s", lambda message: gevent.sleep(0.001))
say("ready")
published = 0
try:
    while True:
        m.publish("orders", "t", published)
        published += 1
        if sys.argv[3] == "idle":
            gevent.sleep(0.05)
except MessengerClosedError as error:
    published += error.written
deadline = time.monotonic() + 10
while not closed and time.monotonic() < deadline:
    gevent.sleep(0.01)
m.close(timeout=5)
say("published", published, "closed", len(closed))
"""


@pytest.mark.parametrize("way", ["signal.signal", "gevent.signal_handler"])
@pytest.mark.parametrize("load", ["busy", "idle"])
def test_close_from_a_signal(tmp_path: Path, way: str, load: str) -> None:
    """SIGTERM whose handler calls ``close``, in whatever the process was doing: it ends well.

    What was confirmed is in the log, no more and no less, and the position is saved.
    """
    with Worker(CLOSING, tmp_path, way, load) as worker:
        worker.wait_line("ready", 30)
        wait_until(lambda: len(log_bytes(tmp_path, "orders")) > 1000, 20)
        worker.process.send_signal(signal.SIGTERM)
        line = worker.wait_line("published", 30)
        worker.wait(30)
    match = re.fullmatch(r"published (\d+) closed 1", line)
    assert match is not None, line
    payloads = [each["payload"] for each in records(tmp_path, "orders")]
    assert payloads == list(range(int(match[1])))
    # The position lies on a record's boundary, and lets the rest be delivered.
    offset = stored_offset(tmp_path, "orders", "s")
    rest = log_bytes(tmp_path, "orders")[offset:]
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        drain(messenger, timeout=20)
    assert seen.payloads == payloads[len(payloads) - rest.count(b"\n") :]


def test_two_messengers_in_one_program(tmp_path: Path) -> None:
    """Two messengers of one process, on two directories, know nothing of each other."""
    one_seen, two_seen = Recorder(), Recorder()
    with running(tmp_path / "one") as one, running(tmp_path / "two") as two:
        one.subscribe("orders", "s", one_seen)
        two.subscribe("orders", "s", two_seen)
        one.publish("orders", "t", 1, message_id="same")
        two.publish("orders", "t", 2, message_id="same")
        one_seen.wait(1)
        two_seen.wait(1)
        one.close()
        two.publish("orders", "t", 3)
        two_seen.wait(2)
    assert (one_seen.payloads, two_seen.payloads) == ([1], [2, 3])


def test_forgotten_messenger_can_be_collected(tmp_path: Path) -> None:
    """A closed messenger that nobody holds goes, with all it had: programs make many in tests."""
    import weakref

    def use(n: int) -> weakref.ref:
        messenger = Messenger(config(tmp_path / str(n)))
        messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", 1)
        drain(messenger)
        messenger.close()
        assert offset_path(tmp_path / str(n), "orders", "s").exists()
        return weakref.ref(messenger)

    made = [use(n) for n in range(3)]

    def gone() -> bool:
        gc.collect()
        return all(each() is None for each in made)

    wait_until(gone, 10, "the messengers to be collected")
