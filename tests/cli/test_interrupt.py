"""Ctrl-C: where it is raised, and what it leaves whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.helpers import ROOT

_PROGRAM = """
import os, signal, sys, time
import click, gevent
from gevent.event import Event
from keyop.cli.program import Program, run_program

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # Python looks for signals here

@click.command("program", cls=Program)
def command():
{body}

run_program(command)
"""


def run(body: str, ignoring: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a program whose command does this."""
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(body=lines)],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignoring else None,
    )


def test_what_waits_is_interrupted_where_it_waits() -> None:
    """What the main greenlet does between two waits is done to the end."""
    ended = run("""
interrupt()
print("whole")
gevent.sleep(20)
print("slept")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "whole\n", "")


def test_a_callback_of_the_hub_is_not_interrupted() -> None:
    """Others wait for what it does."""
    ended = run("""
def callback():
    interrupt()
    print("whole")
gevent.get_hub().loop.run_callback(callback)
Event().wait(20)
print("waited")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "whole\n", "")


def test_the_end_of_what_it_waits_for_comes_later() -> None:
    """Ctrl-C in a pipeline ends both ends; who was interrupted does not take that for an end."""
    ended = run("""
from gevent.socket import wait_read
reading, writing = os.pipe()
def callback():
    os.close(writing)
    os.kill(os.getpid(), signal.SIGINT)
gevent.get_hub().loop.run_callback(callback)
wait_read(reading)
print("read")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_another_greenlet_is_not_interrupted() -> None:
    """The main greenlet is, which ends the others as it wants to."""
    ended = run("""
def work():
    interrupt()
    print("whole")
    gevent.sleep(0)
    print("lives", flush=True)
greenlet = gevent.spawn(work)
try:
    Event().wait(20)
except KeyboardInterrupt:
    greenlet.join()
    raise
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "whole\nlives\n", "")


@pytest.mark.parametrize(
    "body",
    [
        "interrupt()\nwhile True:\n    pass",
        "interrupt()\ntime.sleep(20)",
        "gevent.spawn(lambda: (interrupt(), time.sleep(20)))\nEvent().wait(25)",
    ],
    ids=["computing", "blocked", "hub held up"],
)
def test_what_does_not_wait(body: str) -> None:
    """It is interrupted all the same, a moment later."""
    ended = run(body + '\nprint("never")')
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_it_is_raised_once() -> None:
    """Whoever tidies up is not interrupted by the same Ctrl-C."""
    ended = run("""
try:
    interrupt()
    gevent.sleep(20)
finally:
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    gevent.sleep(0.01)
    print("tidy")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "tidy\n", "")


def test_one_that_comes_too_late() -> None:
    """A program that had nothing to wait for any more ends as it would have."""
    ended = run("""
import atexit
atexit.register(time.sleep, 0.5)
interrupt()
print("done")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_the_second_one_kills() -> None:
    """Nobody waits for what hangs."""
    ended = run("""
try:
    interrupt()
    gevent.sleep(20)
finally:
    interrupt()
    print("never")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_where_it_is_ignored() -> None:
    """A program in the background of a script goes on."""
    ended = run('interrupt()\ngevent.sleep(0.01)\nprint("on")', ignoring=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "on\n", "")


@pytest.mark.parametrize("program", ["keyop", "keyop-hub"])
def test_while_the_program_is_loaded(tmp_path: Path, program: str) -> None:
    """Nothing is printed about modules that were being imported."""
    (tmp_path / "gevent.py").write_text("print('importing', flush=True)\ninput()\n")
    with subprocess.Popen(
        [sys.executable, ROOT / "bin" / program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (-signal.SIGINT, b"", b"")
