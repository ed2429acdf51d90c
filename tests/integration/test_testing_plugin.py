"""``keyop.testing`` in somebody else's project: the fixture, ``drain``, and their manners."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import gevent
import gevent.event
import pytest

import keyop.testing
from keyop import Messenger, RetryLater
from keyop.testing import drain

from .helpers import FAST_BACKOFF, ROOT, Recorder, dead_letters, running

# The package's fixture, also where the package itself is not installed.
messenger = keyop.testing.messenger


def plugin_options() -> list[str]:
    """The entry point loads the plugin where keyop is installed; else it is named."""
    installed = any(
        point.value == "keyop.testing"
        for point in importlib.metadata.entry_points(group="pytest11")
    )
    return [] if installed else ["-p", "keyop.testing"]


def run_project(project: Path, tests: str, *options: str, conftest: str = "") -> str:
    """Run pytest on a project of one test file in a process of its own; return its report."""
    project.mkdir(exist_ok=True)
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "test_it.py").write_text(textwrap.dedent(tests))
    if conftest:
        (project / "conftest.py").write_text(textwrap.dedent(conftest))
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"),
            f"--basetemp={project / 'temporary'}",
            *plugin_options(),
            *options,
        ],
        cwd=project,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    report = done.stdout + done.stderr
    assert done.returncode in (0, 1), report
    return report


def counts(report: str) -> dict[str, int]:
    """How many tests ended in which way, from the last line of pytest's report."""
    (last,) = re.findall(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s", report, re.MULTILINE)
    found = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    return {word: number for word, number in found.items() if not word.startswith("warning")}


def assert_all_passed(report: str, count: int) -> None:
    assert counts(report) == {"passed": count}, report


# --- in another project


def test_fixture_and_drain_in_a_project(tmp_path: Path) -> None:
    """``def test_x(messenger)`` is all that a project needs: a real one, and ``drain``."""
    report = run_project(
        tmp_path / "project",
        """
        from keyop import Messenger
        from keyop.testing import drain

        def test_billing(messenger):
            assert isinstance(messenger, Messenger)
            seen = []
            messenger.subscribe("orders", "billing", seen.append)
            messenger.publish("orders", "com.example.Order", {"id": 7})
            drain(messenger)
            assert [message.payload["id"] for message in seen] == [7]

        def test_dead_letters(messenger):
            letters = []
            messenger.subscribe("orders", "billing", lambda message: 1 / 0, max_retries=0)
            messenger.subscribe("orders.dead-letter", "alarm", letters.append)
            messenger.publish("orders", "com.example.Order", {"id": 7})
            drain(messenger)
            assert letters[0].payload["original"]["payload"] == {"id": 7}
        """,
    )
    assert_all_passed(report, 2)


def test_each_test_has_its_own(tmp_path: Path) -> None:
    """Each test begins with an empty directory below its ``tmp_path``, and with no subscribers."""
    report = run_project(
        tmp_path / "project",
        """
        import pathlib
        import pytest
        from keyop.testing import drain

        directories = set()

        @pytest.mark.parametrize("n", range(3))
        def test_fresh(messenger, tmp_path, n):
            seen = []
            messenger.subscribe("orders", "s", seen.append, start="earliest")
            drain(messenger)
            assert seen == []
            messenger.publish("orders", "t", n)
            drain(messenger)
            assert [message.payload for message in seen] == [n]
            directory = pathlib.Path(messenger.stats().data_dir)
            assert tmp_path in (directory, *directory.parents)
            assert directory not in directories
            directories.add(directory)
            messenger.register_payload_type("t", dict)
        """,
    )
    assert_all_passed(report, 3)


def test_closed_at_the_end(tmp_path: Path) -> None:
    """The messenger is closed when its test ends, well or not; no greenlet and no file stays."""
    report = run_project(
        tmp_path / "project",
        """
        import gc, os
        import gevent, pytest
        from keyop import MessengerClosedError

        kept = []

        def descriptors():
            return sorted(
                os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{name}")
            )

        def test_well(messenger):
            messenger.subscribe("orders", "s", lambda message: None)
            messenger.publish("orders", "t", 1)
            kept.append(messenger)

        def test_not_well(messenger):
            messenger.subscribe("orders", "s", lambda message: gevent.sleep(0.01))
            messenger.publish("orders", "t", 1)
            kept.append(messenger)
            raise ZeroDivisionError("on purpose")

        def test_not_started(messenger):
            kept.append(messenger)

        def test_closed_by_the_test(messenger):
            messenger.publish("orders", "t", 1)
            messenger.close()
            kept.append(messenger)

        def test_behind_them():
            assert len(kept) == 4
            for messenger in kept:
                with pytest.raises(MessengerClosedError):
                    messenger.publish("orders", "t", 2)
                assert messenger.subscriptions() == []
            data = [target for target in descriptors() if "channels" in target]
            assert data == []
            alive = [g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead]
            assert alive == []
        """,
    )
    assert counts(report) == {"passed": 4, "failed": 1}, report
    assert "on purpose" in report
    assert "FAILED test_it.py::test_not_well" in report


def test_project_may_have_its_own_fixture(tmp_path: Path) -> None:
    """A fixture ``messenger`` of the project's own comes first; it may use the package's."""
    report = run_project(
        tmp_path / "project",
        """
        def test_own(messenger):
            assert messenger == "mine"
        """,
        conftest="""
        import pytest

        @pytest.fixture
        def messenger(messenger, tmp_path):
            messenger.publish("orders", "t", 1)
            return "mine"
        """,
    )
    assert_all_passed(report, 1)


def test_plugin_disturbs_no_project(tmp_path: Path) -> None:
    """Loading the plugin patches nothing, starts nothing, and sets no logging up."""
    report = run_project(
        tmp_path / "project",
        """
        import logging, os, signal, socket, threading, time

        def test_undisturbed(request):
            import gevent.monkey
            assert not gevent.monkey.saved
            assert threading.active_count() == 1
            assert "gevent" not in type(threading._allocate_lock()).__module__
            assert not any("keyop" in type(h).__module__ for h in logging.getLogger().handlers)
            assert logging.getLogger("keyop").level == logging.NOTSET
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            # pytest's own directory apart, nothing was made.
            assert set(os.listdir(".")) <= {"pytest.ini", "test_it.py", "__pycache__", "temporary"}
        """,
    )
    assert_all_passed(report, 1)


def test_project_that_allows_no_warnings(tmp_path: Path) -> None:
    """A project whose warnings are errors can use the fixture: keyop gives none of its own."""
    report = run_project(
        tmp_path / "project",
        """
        from keyop.testing import drain

        def test_strict(messenger):
            seen = []
            messenger.subscribe("orders", "s", seen.append)
            messenger.publish("orders", "t", 1)
            drain(messenger)
            assert len(seen) == 1
        """,
        "-W",
        "error",
    )
    assert_all_passed(report, 1)


def test_drain_tells_who_is_behind(tmp_path: Path) -> None:
    """In a project's report stands which subscription has not caught up."""
    report = run_project(
        tmp_path / "project",
        """
        import keyop
        from keyop.testing import drain

        def later(message):
            raise keyop.RetryLater(60)

        def test_behind(messenger):
            messenger.subscribe("orders", "laggard", later)
            messenger.subscribe("orders", "quick", lambda message: None)
            messenger.publish("orders", "t", 1)
            drain(messenger, timeout=0.2)
        """,
    )
    assert counts(report) == {"failed": 1}, report
    error = next(line for line in report.splitlines() if "TimeoutError" in line and "E " in line)
    assert "laggard" in error
    assert "quick" not in error


# --- drain


def test_drain_with_nobody(messenger: Messenger) -> None:
    """Without subscriptions there is nothing to wait for, started or not."""
    drain(messenger, timeout=0.5)
    messenger.publish("orders", "t", 1)
    drain(messenger, timeout=0.5)


def test_drain_waits_for_chains(messenger: Messenger) -> None:
    """What handlers publish for other subscriptions is waited for too, to the end of the chain."""
    seen = Recorder()
    for n in range(6):

        def handle(message, n=n) -> None:
            gevent.sleep(0.01)
            messenger.publish(f"step-{n + 1}", "t", message.payload)

        messenger.subscribe(f"step-{n}", "s", handle)
    messenger.subscribe("step-6", "s", seen)
    messenger.publish_batch("step-0", [("t", n) for n in range(3)])
    drain(messenger)
    assert seen.payloads == [0, 1, 2]


def test_drain_waits_for_retries_and_dead_letters(tmp_path: Path) -> None:
    """A message in backoff is not done with; when it is a dead letter, it is."""

    def fail(message) -> None:
        raise ValueError("no")

    failing = Recorder(fail)
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", failing, max_retries=3, retry_backoff=(0.02, 0.05))
        messenger.publish("orders", "t", 1)
        drain(messenger)
        assert failing.attempts == [1, 2, 3, 4]
        assert len(dead_letters(tmp_path, "orders")) == 1


def test_drain_waits_for_retry_later(messenger: Messenger) -> None:
    """So it is with a message that was put off."""

    def later(message) -> None:
        if len(seen.messages) < 3:
            raise RetryLater(0.02)

    seen = Recorder(later)
    messenger.subscribe("orders", "s", seen)
    messenger.publish("orders", "t", 1)
    drain(messenger)
    assert seen.payloads == [1, 1, 1]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_drain_waits_for_running_handlers(messenger: Messenger, concurrency: int) -> None:
    """When ``drain`` returns no handler is at work."""
    busy = 0

    def handle(message) -> None:
        nonlocal busy
        busy += 1
        gevent.sleep(0.02)
        busy -= 1

    messenger.subscribe("orders", "s", handle, concurrency=concurrency)
    messenger.publish_batch("orders", [("t", n) for n in range(10)])
    drain(messenger)
    assert busy == 0


def test_drain_again_and_again(messenger: Messenger) -> None:
    """Each ``drain`` waits for what was published before it."""
    seen = Recorder()
    messenger.subscribe("orders", "s", seen, retry_backoff=FAST_BACKOFF)
    for n in range(50):
        messenger.publish("orders", "t", n)
        drain(messenger)
        assert seen.payloads[-1] == n


def test_drain_while_others_publish(messenger: Messenger) -> None:
    """A publisher that goes on and on does not keep ``drain`` past its timeout."""
    seen = Recorder(lambda message: gevent.sleep(0.005))
    stop = gevent.event.Event()

    def work() -> None:
        while not stop.is_set():
            messenger.publish("orders", "t", 1)
            gevent.sleep(0.001)

    messenger.subscribe("orders", "s", seen)
    worker = gevent.spawn(work)
    seen.wait(1)
    try:
        with gevent.Timeout(5), pytest.raises(TimeoutError):
            drain(messenger, timeout=0.3)
    finally:
        stop.set()
        worker.join()
    drain(messenger, timeout=20)
