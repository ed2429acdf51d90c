"""A handler that blocks everybody is named, by the messenger itself."""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from keyop import Message, Messenger, monitor
from keyop.logs import Repeats
from tests.integration.helpers import running, wait_until


def blocking(patience_s: float, message: Message) -> None:
    """Block, unpatched, until the monitor has seen it."""
    deadline = time.monotonic() + patience_s
    while monitor._monitor._watched[monitor.get_ident()].blocked is None:
        assert time.monotonic() < deadline, "nobody has seen it"
        time.sleep(0.01)


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("registered", [False, True])
def test_the_handler_is_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    concurrency: int,
    registered: bool,
) -> None:
    """Whichever way the message took: handler, channel, subscriber, greenlet, seconds, stack."""

    def warnings() -> list[Any]:
        return [each for each in caplog.records if each.name == "keyop.monitor"]

    # What was counted for another messenger of the process has no part in this.
    monkeypatch.setattr(monitor._monitor, "_repeats", Repeats(1, 60))
    with caplog.at_level(logging.WARNING, "keyop"), running(tmp_path) as messenger:
        if registered:
            messenger.register_payload_type("t", int)
        handler = functools.partial(blocking, 30.0)
        messenger.subscribe("orders", "billing", handler, concurrency=concurrency)
        messenger.publish("orders", "t", 1)
        wait_until(warnings, timeout=30)
    [record] = warnings()
    assert (record.channel, record.subscriber_id) == ("orders", "billing")
    assert record.handler == f"{__name__}.blocking"
    kind = "subscriber" if concurrency == 1 else "worker"
    assert record.greenlet == f"keyop-{kind}-orders-billing"
    assert "in blocking" in record.stack_info
    assert record.blocked_s > 1
    text = f"orders: the handler {__name__}.blocking of billing has blocked every other greenlet"
    assert text in record.getMessage()


def test_messengers_share_one_monitor(tmp_path: Path) -> None:
    """Two in one process have one watch; it is gone when both are closed."""
    watched = monitor._monitor._watched
    with Messenger(data_dir=tmp_path / "a"):
        assert [each.users for each in watched.values()] == [1]
        with Messenger(data_dir=tmp_path / "b"):
            assert [each.users for each in watched.values()] == [2]
        assert [each.users for each in watched.values()] == [1]
    assert not watched
    assert monitor._monitor._ended
