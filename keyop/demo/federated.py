"""The federated demo: one instance publishes, one subscribes, the hub between them fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import orjson

from keyop.demo.compare import Received, compare
from keyop.demo.processes import Child, Watch, ended
from keyop.demo.relay import Relay
from keyop.demo.source import Source
from keyop.demo.worker import CHANNEL
from keyop.keygen import ensure_development_certificates

HUB, SENDER, RECEIVER = "hub", "sender", "receiver"
# So much of the whole has arrived when the connections are cut, and when the hub is killed.
_CUT_AT, _KILL_AT = 0.2, 0.4
_RECONNECT = {"reconnect_base_ms": 50, "reconnect_max_ms": 500}


class FederatedOutcome(NamedTuple):
    """How it ended. ``stored`` is the number of records in the hub's log."""

    published: int
    publish_s: float
    cut_at: int
    killed_at: int
    away_s: float
    stored: int
    received: Received

    @property
    def perfect(self) -> bool:
        """Whether every line arrived once, in order, and was stored once on the way."""
        return self.received.perfect and not self.received.twice and self.stored == self.published


class FederatedDemo:
    """One run, in ``directory``, which keeps everything that was written.

    Args:
        progress: told how many of the lines have arrived so far.
        say: told what happens, one line at a time.
    """

    def __init__(
        self,
        directory: str,
        source: Source,
        progress: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._source = source
        self._say = say
        self.target = f"{directory}/{RECEIVER}.txt"
        self._watch = Watch({RECEIVER: self.target}, source.lines, progress)
        self._certificates = ensure_development_certificates(
            f"{directory}/certs", [HUB, SENDER, RECEIVER]
        )

    def run(self) -> FederatedOutcome:
        """Do it, and hold what arrived against what was sent.

        Raises:
            DemoError: a process did not start, or stopped delivering.
        """
        source, watch, relay = self._source, self._watch, Relay()
        address = relay.start()
        with ExitStack() as running:
            running.callback(relay.stop)
            hub = self._hub(relay, running)
            clients = {
                SENDER: {"publish": [CHANNEL]},
                RECEIVER: {"subscribe": [CHANNEL], "publish": ["nothing"]},
            }
            configs = {
                name: self._config(
                    name, client={"enabled": True, "hubs": [{"addr": address, **channels}]}
                )
                for name, channels in clients.items()
            }
            receiver = Child("subscribe", configs[RECEIVER], RECEIVER, self.target)
            running.enter_context(ended(receiver))
            receiver.hear("ready")
            half = max(1, source.lines // 2)
            sender = Child("publish", configs[SENDER], source.path, str(half))
            running.enter_context(ended(sender))
            cut_at = watch.wait_for(RECEIVER, int(source.lines * _CUT_AT))
            count = relay.cut()
            self._say(f"cut {count} connections after {cut_at:,} lines")
            killed_at = watch.wait_for(RECEIVER, int(source.lines * _KILL_AT))
            hub.kill()
            killed = time.monotonic()
            self._say(f"killed the hub (SIGKILL) after {killed_at:,} lines")
            if source.lines > half:
                sender.hear("half")
                sender.go_on()
            published, publish_s = sender.hear("published")
            self._say("published the rest meanwhile; starting the hub again")
            self._hub(relay, running)
            away_s = time.monotonic() - killed
            taken = watch.wait_until_done(RECEIVER)
        return FederatedOutcome(
            int(published),
            float(publish_s),
            cut_at,
            killed_at,
            away_s,
            self._stored(),
            compare(source.path, self.target, max(0.0, taken - away_s)),
        )

    def _hub(self, relay: Relay, running: ExitStack) -> Child:
        hub = Child(
            "hub",
            self._config(
                HUB,
                hub={
                    "enabled": True,
                    "listen_addr": "127.0.0.1:0",
                    "allowed_peers": [{"name": SENDER}, {"name": RECEIVER}],
                },
            ),
        )
        running.enter_context(ended(hub))
        (relay.target,) = hub.hear("listening")
        return hub

    def _config(self, name: str, **sections: Any) -> str:
        files = self._certificates.instances[name]
        config = {
            "name": name,
            "storage": {"data_dir": f"{self._directory}/{name}"},
            "tls": {"cert": files.cert, "key": files.key, "ca": self._certificates.ca.cert},
            "federation": _RECONNECT,
            **sections,
        }
        return orjson.dumps(config).decode()

    def _stored(self) -> int:
        path = f"{self._directory}/{HUB}/channels/{CHANNEL}/{0:020d}.jsonl"
        with open(path, "rb") as file:
            return sum(1 for _ in file)
