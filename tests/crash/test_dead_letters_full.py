"""Dead letters that find no room: they wait, and go on as soon as there is some."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import gevent

from tests.fakes.faulty import FaultyFs
from tests.integration.helpers import Recorder, dead_letters, running, stored_offset, wait_until


def refuse(message: object) -> None:
    raise ValueError("meant to fail")


def test_goes_on_at_once(tmp_path: Path) -> None:
    """It takes less than a second from room to dead letter, however long handlers back off."""
    fs = FaultyFs()
    seen = Recorder(refuse)
    with running(tmp_path, seams={"fs": fs}) as messenger:
        subscription = messenger.subscribe(
            "orders", "s", seen, max_retries=0, retry_backoff=(20.0, 20.0)
        )
        fs.fail("write", errno.ENOSPC, times=None, path_contains=".dead-letter")
        messenger.publish("orders", "t", 1)
        messenger.publish("orders", "t", 2)
        seen.wait(1)
        # Long enough for a first try to have been given up.
        gevent.sleep(1.5)
        assert subscription.offset == stored_offset(tmp_path, "orders", "s") == 0
        fs.heal()
        room = time.monotonic()
        wait_until(lambda: dead_letters(tmp_path, "orders"), 30, "the dead letter")
        took_s = time.monotonic() - room
        wait_until(lambda: len(dead_letters(tmp_path, "orders")) == 2, 30, "the second one")
    assert took_s < 1, f"it went on {took_s:.1f} s after there was room"
    assert seen.payloads == [1, 2]
