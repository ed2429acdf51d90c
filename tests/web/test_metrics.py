"""``/metrics``, as Prometheus reads it: by its own parsers, of one process and of two."""

from __future__ import annotations

import builtins
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from keyop import Messenger
from keyop.stats import PeerStats
from tests.integration.helpers import Recorder, Worker, running, wait_until, write_offset

from .client import Client

OPEN = "application/openmetrics-text; version=1.0.0"
SOON = 20.0
PAGE = Path(__file__).parents[2] / "docs" / "page.md"
NAMES = {
    "keyop_info",
    "keyop_disk_free_bytes",
    "keyop_channel_stream_bytes",
    "keyop_channel_disk_bytes",
    "keyop_channel_segments",
    "keyop_channel_dead_letters",
    "keyop_subscriber_position_bytes",
    "keyop_subscriber_lag_bytes",
    "keyop_subscriber_lag_messages",
    "keyop_subscriber_oldest_pending_seconds",
    "keyop_subscriber_running",
    "keyop_published",
    "keyop_full_disk_waits",
    "keyop_log_failed",
    "keyop_delivered",
    "keyop_retries",
    "keyop_dead_letters",
    "keyop_corrupt",
    "keyop_expired",
    "keyop_dropped_bytes",
    "keyop_peer_connected",
    "keyop_peer_backlog_bytes",
    "keyop_peer_round_trip_seconds",
    "keyop_peer_failures",
    "keyop_peer_dropped_bytes",
    "keyop_peer_undeliverable",
    "keyop_latency_seconds",
}


@pytest.fixture
def messenger(tmp_path: Path) -> Iterator[Messenger]:
    with running(tmp_path / "data") as messenger:
        yield messenger


def families(client: Client, accept: str = "") -> dict[str, Any]:
    """Return what a parser makes of it, by name."""
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.status == 200
    parse = open_families if accept == OPEN else text_families
    assert answer.headers["Content-Type"].startswith(OPEN if accept == OPEN else "text/plain")
    found = list(parse(answer.body.decode()))
    names = [each.name for each in found]
    assert len(names) == len(set(names)), "a name is introduced twice"
    return {each.name: each for each in found}


def values(family: Any, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a family by some of their labels."""
    found = {tuple(each.labels[name] for name in labels): each.value for each in family.samples}
    assert len(found) == len(family.samples)
    return found


@pytest.mark.parametrize("accept", ["", OPEN])
def test_parsed(messenger: Messenger, accept: str) -> None:
    """All of them, in both formats, with what is true."""
    seen = Recorder()
    messenger.subscribe("orders", "billing", seen)
    for number in range(3):
        messenger.publish("orders", "t", number)
    seen.wait(3, SOON)
    wait_until(lambda: messenger.stats().channels[0].subscribers[0].delivered == 3, SOON)
    end = messenger.stats().channels[0].end_offset
    found = families(Client(messenger), accept)
    assert set(found) == NAMES
    process = str(os.getpid())
    assert values(found["keyop_info"], "instance_name") == {("here",): 1}
    assert values(found["keyop_channel_stream_bytes"], "channel") == {("orders",): end}
    labels = ("channel", "subscriber")
    assert values(found["keyop_subscriber_position_bytes"], *labels) == {("orders", "billing"): end}
    assert values(found["keyop_subscriber_lag_bytes"], *labels) == {("orders", "billing"): 0}
    assert values(found["keyop_subscriber_running"], *labels) == {("orders", "billing"): 1}
    assert values(found["keyop_published"], "process", "channel") == {(process, "orders"): 3}
    delivered = values(found["keyop_delivered"], "process", *labels)
    assert delivered == {(process, "orders", "billing"): 3}
    assert values(found["keyop_log_failed"], "channel") == {("orders",): 0}
    latency = values(found["keyop_latency_seconds"], "what", "quantile")
    assert {what for what, _ in latency} == {"publish", "consume", "handler"}
    assert latency["publish", "0.99"] >= latency["publish", "0.5"] > 0


@pytest.mark.parametrize("accept", ["", OPEN])
def test_more_than_a_piece(messenger: Messenger, tmp_path: Path, accept: str) -> None:
    """Many samples are written some at a time, which nobody sees."""
    for number in range(250):
        write_offset(tmp_path / "data", "orders", f"s{number}", 0)
    found = families(Client(messenger), accept)
    names = {f"s{number}" for number in range(250)}
    assert set(values(found["keyop_subscriber_lag_bytes"], "subscriber")) == {(n,) for n in names}
    # What cannot be known has no sample: nothing of them is pending.
    assert values(found["keyop_subscriber_oldest_pending_seconds"], "subscriber") == {}


def test_a_position_that_cannot_be_read(messenger: Messenger, tmp_path: Path) -> None:
    messenger.publish("orders", "t", 1)
    write_offset(tmp_path / "data", "orders", "empty", b"")
    found = families(Client(messenger))
    assert values(found["keyop_subscriber_position_bytes"], "subscriber") == {}
    assert values(found["keyop_subscriber_running"], "subscriber") == {("empty",): 0}


def test_peers(messenger: Messenger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name once, though ephemeral clients may share one."""
    stats = messenger.stats()
    peers = (
        PeerStats(
            'a"\\\n',
            "hub",
            "a:1",
            "waiting",
            failures=3,
            backlog_bytes=9,
            dropped_bytes=7,
            undeliverable=2,
        ),
        PeerStats("e", "ephemeral", "a:1", "connected", round_trip_s=0.5),
        PeerStats("e", "ephemeral", "a:2", "connected"),
    )
    monkeypatch.setattr(Messenger, "stats", lambda _, pending: replace(stats, peers=peers))
    found = families(Client(messenger))
    connected = values(found["keyop_peer_connected"], "peer", "kind")
    assert connected == {('a"\\\n', "hub"): 0, ("e", "ephemeral"): 1}
    assert values(found["keyop_peer_failures"], "peer")['a"\\\n',] == 3
    assert values(found["keyop_peer_dropped_bytes"], "peer")['a"\\\n',] == 7
    assert values(found["keyop_peer_undeliverable"], "peer")['a"\\\n',] == 2
    assert values(found["keyop_peer_round_trip_seconds"], "peer") == {("e",): 0.5}


def test_documented() -> None:
    """Every metric is in the table of the manual, and no other."""
    named = re.findall(r"^\| `(keyop_\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(name.removesuffix("_total") for name in named) == sorted(NAMES)


def test_two_processes(messenger: Messenger, tmp_path: Path) -> None:
    """Of the directory both say the same; of themselves, each under its own id."""
    code = """
        from keyop.web import app
        with make() as m:
            m.publish("orders", "t", 1)
            m.subscribe("orders", "other", lambda message: None)
            say("ready")
            wait_for(sys.argv[2])
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "QUERY_STRING": ""}
            pieces = app(m, trusting=True)(environ, lambda *head: None)
            with open(sys.argv[3], "wb") as file:
                file.write(b"".join(pieces))
    """
    go, written = tmp_path / "go", tmp_path / "metrics"
    messenger.publish("orders", "t", 0)
    with Worker(code, tmp_path / "data", go, written) as worker:
        worker.wait_line("ready", SOON)
        here = families(Client(messenger))
        go.touch()
        worker.wait(SOON)
    there = {each.name: each for each in text_families(written.read_text())}
    for name in ("keyop_channel_stream_bytes", "keyop_subscriber_running"):
        assert here[name].samples == there[name].samples
        assert len(here[name].samples) == 1
    labels = ("process", "channel")
    assert values(here["keyop_published"], *labels) == {(str(os.getpid()), "orders"): 1}
    assert values(there["keyop_published"], *labels) == {(str(worker.pid), "orders"): 1}
    assert values(here["keyop_delivered"], *labels) == {}
    assert list(values(there["keyop_delivered"], *labels)) == [(str(worker.pid), "orders")]


def test_not_installed(messenger: Messenger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page works without it; whoever asks for metrics is told what to install."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "keyop.web.metrics", raising=False)
    client = Client(messenger)
    answer = client.get("/metrics")
    assert answer.status == 501
    assert "keyop[web]" in answer.error
    assert client.get("/api/v1/overview").status == 200
