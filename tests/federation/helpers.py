"""What the federation's tests share: instances on loopback, and what can be seen of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from keyop import Config, EphemeralMessenger, Message, Messenger
from keyop.federation.client import Condition, HubClient
from keyop.federation.federation import Federation
from keyop.keygen import DevelopmentCertificates
from tests.integration.helpers import (
    ROOT,
    Recorder,
    records,
    stored_offset,
    wait_until,
)

__all__ = [
    "ROOT",
    "Instances",
    "Recorder",
    "audit",
    "client_of",
    "federation_of",
    "lines_of",
    "payloads",
    "records",
    "stored_offset",
    "wait_connected",
    "wait_until",
]

TYPE = "com.example.Test"
# Waits that a test has to sit out are short; that they are long enough by default, others test.
QUICK = {"reconnect_base_ms": 10, "reconnect_max_ms": 100}
# Every name that has a certificate here.
NAMES = ("hub", "hub-2", "hub-3", "alpha", "beta", "gamma", "stranger", "hub1", "client1", "eph1")

Peers = Iterable[str] | Mapping[str, Mapping[str, Sequence[str]]]


def allowed(peers: Peers) -> list[dict[str, Any]]:
    """Return an allowlist; from names alone, one that allows every channel."""
    if isinstance(peers, Mapping):
        return [{"name": name, **channels} for name, channels in peers.items()]
    return [{"name": name} for name in peers]


class Instances:
    """The instances of one test, each in a directory of its own; all are closed at its end."""

    def __init__(self, directory: Path, certificates: DevelopmentCertificates) -> None:
        self.directory = directory
        self.certificates = certificates
        self.running: list[Messenger | EphemeralMessenger] = []

    def data_dir(self, name: str) -> Path:
        return self.directory / name

    def tls(self, name: str) -> dict[str, str]:
        """Return the certificate files of an instance, as in the configuration."""
        files = self.certificates.instances[name]
        return {"cert": files.cert, "key": files.key, "ca": self.certificates.ca.cert}

    def settings(self, name: str, **sections: Any) -> dict[str, Any]:
        """Return a configuration as it would stand in a file; ``tls=None`` has none."""
        storage = {"data_dir": str(self.data_dir(name)), "sync_policy": "none"}
        settings = {
            "name": name,
            "storage": {**storage, **sections.pop("storage", {})},
            "tls": self.tls(name) if "tls" not in sections else sections.pop("tls"),
            "federation": {**QUICK, **sections.pop("federation", {})},
            **sections,
        }
        return {key: value for key, value in settings.items() if value is not None}

    def hub_settings(
        self, name: str = "hub", peers: Peers = ("alpha", "beta"), **sections: Any
    ) -> dict[str, Any]:
        hub = {
            "enabled": True,
            "listen_addr": "127.0.0.1:0",
            "allowed_peers": allowed(peers),
            **sections.pop("hub", {}),
        }
        return self.settings(name, hub=hub, **sections)

    def client_settings(
        self,
        name: str,
        address: str,
        subscribe: Sequence[str] = (),
        publish: Sequence[str] = (),
        hub_name: str = "",
        **sections: Any,
    ) -> dict[str, Any]:
        hub = {"addr": address, "name": hub_name, "subscribe": subscribe, "publish": publish}
        return self.settings(name, client={"enabled": True, "hubs": [hub]}, **sections)

    def start(self, settings: Mapping[str, Any], **seams: Any) -> Messenger:
        messenger = Messenger(Config.from_dict(settings), **seams)
        self.running.append(messenger)
        messenger.start()
        return messenger

    def hub(
        self, name: str = "hub", peers: Peers = ("alpha", "beta"), **sections: Any
    ) -> Messenger:
        """Start a hub that lets these peers in."""
        return self.start(self.hub_settings(name, peers, **sections))

    def client(
        self,
        name: str,
        hub: Messenger | str,
        subscribe: Sequence[str] = (),
        publish: Sequence[str] = (),
        **sections: Any,
    ) -> Messenger:
        """Start a client of one hub; wait until they are connected if the hub is there."""
        address = hub if isinstance(hub, str) else hub.hub_addr
        client = self.start(self.client_settings(name, address, subscribe, publish, **sections))
        if not isinstance(hub, str):
            wait_connected(client)
        return client

    def ephemeral(self, name: str, hub: Messenger | str, **options: Any) -> EphemeralMessenger:
        """Make an ephemeral client; it is not connected yet."""
        options = {
            "tls": self.tls(name),
            "reconnect_base_ms": QUICK["reconnect_base_ms"],
            "reconnect_max_ms": QUICK["reconnect_max_ms"],
            **options,
        }
        address = hub if isinstance(hub, str) else hub.hub_addr
        messenger = EphemeralMessenger(address, **options)
        self.running.append(messenger)
        return messenger

    def stop(self, messenger: Messenger | EphemeralMessenger) -> None:
        """End one before the test does."""
        self.running.remove(messenger)
        messenger.close()

    def close(self) -> None:
        while self.running:
            self.running.pop().close()


# --- what can be seen of a messenger


def federation_of(messenger: Messenger) -> Federation:
    assert messenger._federation is not None
    return messenger._federation


def client_of(messenger: Messenger) -> HubClient:
    """Return the only hub client of a messenger."""
    (client,) = federation_of(messenger).clients
    return client


def wait_connected(messenger: Messenger, timeout: float = 10) -> None:
    """Wait until every hub of a client is connected."""

    def connected() -> bool:
        clients = federation_of(messenger).clients
        return all(each.condition is Condition.CONNECTED for each in clients)

    wait_until(connected, timeout, "connected")


def data_dir_of(messenger: Messenger) -> Path:
    return Path(messenger.config.storage.data_dir)


def payloads(where: Messenger | Path, channel: str) -> list[Any]:
    """Return the payloads in a channel's log; none where there is no such channel."""
    data_dir = where if isinstance(where, Path) else data_dir_of(where)
    return [record["payload"] for record in records(data_dir, channel)]


def lines_of(where: Messenger | Path, channel: str) -> list[bytes]:
    """Return the lines of a channel's log, without their newlines."""
    data_dir = where if isinstance(where, Path) else data_dir_of(where)
    segments = sorted((data_dir / "channels" / channel).glob("*.jsonl"))
    return [line for path in segments for line in path.read_bytes().splitlines()]


def wait_payloads(where: Messenger | Path, channel: str, count: int, timeout: float = 15) -> Any:
    """Wait until a log has so many records; return their payloads."""
    data_dir = where if isinstance(where, Path) else data_dir_of(where)
    wait_until(
        lambda: len(lines_of(data_dir, channel)) >= count,
        timeout,
        f"{count} records in {channel} of {data_dir.name}",
    )
    return payloads(data_dir, channel)


def append(messenger: Messenger, channel: str, lines: Iterable[bytes]) -> int:
    """Append lines to a channel as they are, as one write; return the log's end."""
    store = messenger._store
    assert store is not None
    log = store.log(channel)
    log.open()
    return log.append(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))


def end_of(where: Messenger | Path, channel: str) -> int:
    """Return the end offset of a channel that was never swept."""
    return sum(len(line) + 1 for line in lines_of(where, channel))


def audit(where: Messenger | Path, event: str | None = None) -> list[dict[str, str]]:
    """Return the audit events that were written so far, or those of one kind."""
    data_dir = where if isinstance(where, Path) else data_dir_of(where)
    path = data_dir / "audit" / "audit.jsonl"
    if not path.exists():
        return []
    events = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [each for each in events if event is None or each["event"] == event]


def wait_audit(
    where: Messenger | Path,
    event: str,
    wanted: Callable[[dict[str, str]], bool] = lambda found: True,
    timeout: float = 10,
) -> dict[str, str]:
    """Wait for an audit event; return the first one."""

    def found() -> dict[str, str] | None:
        return next((each for each in audit(where, event) if wanted(each)), None)

    result: dict[str, str] = wait_until(found, timeout, f"the audit event {event}")
    return result


def said(caplog: pytest.LogCaptureFixture, logger: str, level: int = logging.WARNING) -> list[str]:
    """Return what a part of keyop has logged, of this level and above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(f"keyop.{logger}") and record.levelno >= level
    ]


def numbers(start: int, stop: int) -> list[tuple[str, int]]:
    """Return messages for ``publish_batch`` whose payloads are numbers."""
    return [(TYPE, number) for number in range(start, stop)]


def collect(messenger: Messenger, channel: str, subscriber_id: str = "test") -> Recorder:
    """Subscribe a recorder from the start of a channel."""
    recorder = Recorder()
    messenger.subscribe(channel, subscriber_id, recorder, start="earliest")
    return recorder


def by_payload(message: Message) -> Any:
    return message.payload
