"""A publish that is retried under its own id, after whatever has happened, is not stored twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyop import Messenger
from keyop.testing import drain
from tests.integration.helpers import Worker, records, running

SEGMENT_BYTES = 300  # one record or two


def ids(data_dir: Path) -> list[str]:
    return [each["id"] for each in records(data_dir, "orders")]


def fill(messenger: Messenger) -> None:
    for n in range(4):
        messenger.publish("orders", "t", n)


@pytest.mark.parametrize("warm", [True, False])
def test_after_its_segment_was_deleted(tmp_path: Path, warm: bool) -> None:
    """The process that wrote it still knows the id when everybody has read and it was swept."""
    with running(tmp_path, storage={"max_segment_bytes": SEGMENT_BYTES}) as messenger:
        messenger.subscribe("orders", "s", lambda message: None, start="earliest")
        if warm:
            messenger.publish("orders", "t", 0, message_id="another")
        assert messenger.publish("orders", "t", 1, message_id="mine") == "mine"
        fill(messenger)
        drain(messenger)
        assert messenger.sweep()["orders"].starts
        assert "mine" not in ids(tmp_path)
        assert messenger.publish("orders", "t", 1, message_id="mine") == "mine"
        assert "mine" not in ids(tmp_path)


def test_after_a_restart(tmp_path: Path) -> None:
    """The ids are found again in the log, across its segments, batches among them."""
    for _ in range(2):
        with running(tmp_path, storage={"max_segment_bytes": SEGMENT_BYTES}) as messenger:
            messenger.publish("orders", "t", 1, message_id="one")
            messenger.publish_batch("orders", [("t", n) for n in range(5)], message_id="many")
            fill(messenger)
    expected = ["one", *(f"many-{n}" for n in range(5))]
    assert sorted(each for each in ids(tmp_path) if each in expected) == sorted(expected)


def test_after_a_kill(tmp_path: Path) -> None:
    """Whatever of it reached the log before the process died, the next one writes the rest."""
    data_dir = tmp_path / "data"
    code = """
    from tests.fakes.killing import KillingFs
    fs = KillingFs(int(sys.argv[2]), float(sys.argv[3]))
    m = Messenger(Config.from_dict(
        {"name": "p", "storage": {"data_dir": data_dir, "max_segment_bytes": 1000}}), fs=fs)
    for n in range(40):
        m.publish("orders", "t", n, message_id=f"own-{n}")
        m.publish_batch("orders", [("t", k) for k in range(5)], message_id=f"batch-{n}")
    """
    for turn, share in enumerate((0.1, 0.4, 0.5, 0.6, 0.9)):
        with Worker(code, data_dir, 60 + 45 * turn, share) as worker:
            assert worker.process.wait(30) == -9
    with running(data_dir) as messenger:
        for n in range(40):
            messenger.publish("orders", "t", n, message_id=f"own-{n}")
            messenger.publish_batch("orders", [("t", k) for k in range(5)], message_id=f"batch-{n}")
    expected = [f"own-{n}" for n in range(40)]
    expected += [f"batch-{n}-{k}" for n in range(40) for k in range(5)]
    assert sorted(ids(data_dir)) == sorted(expected)
