"""Monkey patches that are late or missing are found, in programs of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from keyop.patches import missing_patches

ROOT = Path(__file__).parents[2]


def run(program: str) -> list[str]:
    """Run a program that ends with the messenger's look; return what it has logged."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


LOOK = """
    from keyop.patches import warn_of_patches
    warn_of_patches()
    warn_of_patches()
"""


def test_a_program_that_patches_first() -> None:
    """There is nothing to say."""
    program = """
    from gevent import monkey
    monkey.patch_all()
    import socket, ssl
    from time import sleep
    from threading import Lock
    """
    assert run(program + LOOK) == []


def test_a_program_that_does_not_patch() -> None:
    """That is its choice: keyop needs no patches."""
    assert run("    from time import sleep" + LOOK) == []


def test_what_was_imported_too_early() -> None:
    """Each module that goes on with something that blocks is named, once."""
    program = """
    from time import sleep
    from threading import Lock
    import time as sound
    from time import sleep as under_another_name
    from gevent import monkey
    monkey.patch_all()
    """
    [line] = run(program + LOOK)
    assert "__main__: time.sleep, __main__: threading.Lock" in line
    assert line.count("time.sleep") == 1


def test_a_long_list_is_cut() -> None:
    """So many are named, the rest is counted."""
    program = """
    from subprocess import Popen, call, check_call, check_output, run
    from queue import Queue
    from time import sleep
    from gevent import monkey
    monkey.patch_all()
    """
    [line] = run(program + LOOK)
    assert line.endswith(" and 2 more")


def test_some_are_missing() -> None:
    """A program that patches some of what waits, and not the rest, has overlooked it perhaps."""
    program = """
    from gevent import monkey
    monkey.patch_all(ssl=False, subprocess=False)
    """
    [line] = run(program + LOOK)
    assert "a handler that uses ssl, subprocess blocks" in line


def test_nothing_is_missing_here() -> None:
    """The tests run unpatched."""
    assert missing_patches() == []


@pytest.mark.parametrize("level", ["ERROR", "WARNING"])
def test_it_is_a_warning(level: str) -> None:
    """Switched off like every other one."""
    program = f"""
    from time import sleep
    from gevent import monkey
    monkey.patch_all()
    import logging
    logging.getLogger("keyop.patches").setLevel(logging.{level})
    """
    assert len(run(program + LOOK)) == (level == "WARNING")


def test_keyop_itself_may_be_imported_before_patching(tmp_path: Path) -> None:
    """A messenger works the same, and nothing of keyop's is named."""
    program = f"""
    import gevent, ssl, threading
    import keyop, keyop.federation.federation, keyop.federation.ephemeral
    from gevent import monkey
    monkey.patch_all()
    seen = []
    storage = {{"data_dir": {str(tmp_path)!r}, "sync_policy": "always"}}
    with keyop.Messenger(keyop.Config.from_dict({{"name": "here", "storage": storage}})) as m:
        m.subscribe("orders", "billing", seen.append)
        m.publish("orders", "t", 1)
        with gevent.Timeout(20):
            while not seen:
                gevent.sleep(0.005)
    """
    assert [line for line in run(program) if "not registered" not in line] == []
