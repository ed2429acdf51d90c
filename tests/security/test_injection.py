"""Texts from outside in logs and the audit log: no line of their own, and nothing obeyed."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from keyop import Messenger
from keyop.logs import LogHandler
from tests.cli.conftest import logging_restored
from tests.federation.byhand import made
from tests.federation.helpers import (
    Instances,
    audit,
    client_of,
    data_dir_of,
    wait_audit,
    wait_connected,
    wait_until,
)
from tests.federation.rawpeers import RawGuest
from tests.transport.certificates import Authority, Files
from tests.transport.helpers import CLOSE, close_payload

from .helpers import (
    connect,
    entering,
    guest,
    hub_by_hand,
    shaking_hands,
    shown,
    stranger,
)

__all__ = ["logging_restored"]  # a fixture that each test here uses

# A second line, colours, a terminal's own commands, text turned around, a line separator.
EVIL = "x\r\nERROR root: forged \x1b[31m\x1b]0;title\x07\x9b2J\u202egnp.exe\u2028\x7f\x00"
# What is left of it where it was let in, whatever of it is escaped.
TRACE = "forged"


class Logs:
    """What keyop logs meanwhile: as its own handlers write it, and as a program's own does."""

    def __init__(self) -> None:
        self.text, self.json, self.plain = io.StringIO(), io.StringIO(), io.StringIO()
        self.handlers: list[logging.Handler] = [
            LogHandler(self.text),
            LogHandler(self.json, as_json=True),
            logging.StreamHandler(self.plain),
        ]

    def __enter__(self) -> Logs:
        self._logger = logging.getLogger("keyop")
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        for each in self.handlers:
            self._logger.addHandler(each)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
        for each in self.handlers:
            self._logger.removeHandler(each)

    def lines(self, kind: str) -> list[str]:
        return str(getattr(self, kind).getvalue()).split("\n")[:-1]


@pytest.fixture
def logs() -> Iterator[Logs]:
    with Logs() as found:
        yield found


Attack = Callable[[Instances, Messenger], None]


def close_reason(instances: Instances, hub: Messenger) -> None:
    with guest(instances, hub, "alpha") as peer:
        peer.send(CLOSE, close_payload(4000, EVIL.encode()))
        peer.closed()


def version_of_a_record(instances: Instances, hub: Messenger) -> None:
    send(instances, hub, made(channel="up", v=EVIL))


def type_and_ids_of_a_record(instances: Instances, hub: Messenger) -> None:
    fields = dict.fromkeys(("id", "origin", "payload_type", "correlation_id"), EVIL)
    send(instances, hub, made(channel="up", **fields), made(channel="not/allowed", **fields))


def channel_and_route_of_a_record(instances: Instances, hub: Messenger) -> None:
    send(instances, hub, made(channel=EVIL), made(channel="up", route=[EVIL]), made(ts=EVIL))


def id_of_what_is_not_allowed(instances: Instances, hub: Messenger) -> None:
    send(instances, hub, made(channel="other", id=EVIL), made(channel="up", id=EVIL, origin="hub"))


def hello(instances: Instances, hub: Messenger) -> None:
    for field in ("instance_name", "role", "version", "subscribe", "features", "ephemeral"):
        with stranger(hub.hub_addr, entering(instances, "alpha")) as peer:
            said = {"instance_name": "alpha", "role": "client", "version": "1", field: EVIL}
            peer.say(**said)
            peer.closed()


def request(instances: Instances, hub: Messenger) -> None:
    secured = entering(instances, "alpha")(connect(hub.hub_addr))
    secured.sendall(b"GET /" + EVIL.encode() + b" HTTP/1.1\r\n" + EVIL.encode() + b": x\r\n\r\n")
    while secured.recv(1000):
        pass
    secured.close()


def no_tls(instances: Instances, hub: Messenger) -> None:
    plain = connect(hub.hub_addr)
    plain.sendall(EVIL.encode() * 10)
    while plain.recv(1000):
        pass
    plain.close()


def send(instances: Instances, hub: Messenger, *records: bytes) -> None:
    with guest(instances, hub, "alpha") as peer:
        peer.batch(*records)
        peer.hear()


ATTACKS: list[Attack] = [
    close_reason, version_of_a_record, type_and_ids_of_a_record, channel_and_route_of_a_record,
    id_of_what_is_not_allowed, hello, request, no_tls,
]  # fmt: skip
# As keyop's handlers write it, and as any other does.
each_kind = pytest.mark.parametrize("kind", ["text", "json", "plain"])
each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)


def is_clean(lines: list[str]) -> bool:
    """Tell whether nothing in these lines is obeyed by a terminal, or begins another line."""
    return all(line.isprintable() and not line.startswith("ERROR root") for line in lines)


class TestAHub:
    @pytest.fixture
    def hub(self, instances: Instances, logs: Logs) -> Messenger:
        return instances.hub(peers={"alpha": {"publish": ["up"]}})

    @each_attack
    def test_in_the_audit_log(self, instances: Instances, hub: Messenger, attack: Attack) -> None:
        """Each event is one line of JSON that is safe to look at."""
        attack(instances, hub)
        wait_until(lambda: said_goodbye(hub), 10, "the last event")
        lines = (data_dir_of(hub) / "audit" / "audit.jsonl").read_text().split("\n")
        assert is_clean(lines)
        assert all(json.loads(line)["event"] for line in lines[:-1])

    @each_attack
    @each_kind
    def test_in_log_lines(
        self, instances: Instances, hub: Messenger, logs: Logs, attack: Attack, kind: str
    ) -> None:
        """Through keyop's handlers, and through any other that a program may have."""
        attack(instances, hub)
        wait_until(lambda: said_goodbye(hub), 10, "the last event")
        lines = logs.lines(kind)
        assert lines
        assert is_clean(lines), [line for line in lines if not is_clean([line])]

    def test_that_they_come_so_far(self, instances: Instances, hub: Messenger) -> None:
        """The texts are in the events, escaped: else the tests above look at nothing."""
        close_reason(instances, hub)
        id_of_what_is_not_allowed(instances, hub)
        wait_until(lambda: len(audit(hub, "peer_disconnected")) == 2)
        assert TRACE in audit(hub, "peer_disconnected")[0]["detail"]
        assert audit(hub, "policy_violation")[0]["message_id"] == EVIL
        assert audit(hub, "loop_dropped")[0]["message_id"] == EVIL


def said_goodbye(hub: Messenger) -> bool:
    return bool(audit(hub, "peer_disconnected") or audit(hub, "client_rejected"))


class TestACertificate:
    def test_of_a_client(
        self, instances: Instances, logs: Logs, files: Files, authority: Authority
    ) -> None:
        """Its name is shown escaped where it is refused."""
        hub = instances.hub(tls=files.tls(authority.issue("hub"), authority))
        with pytest.raises((OSError, EOFError)):
            RawGuest(hub.hub_addr, shaking_hands(shown(authority.issue(EVIL[:64]))))
        assert TRACE in wait_audit(hub, "client_rejected")["detail"]
        for kind in ("text", "json", "plain"):
            assert is_clean(logs.lines(kind))

    @each_kind
    def test_of_a_hub(
        self, instances: Instances, logs: Logs, files: Files, authority: Authority, kind: str
    ) -> None:
        """The hosts that it names, where it is not the one that was dialled."""
        evil = EVIL.encode("ascii", "ignore").decode()
        false = authority.issue("hub", hosts=(evil,))
        with hub_by_hand(files.tls(false, authority)) as hub:
            own = files.tls(authority.issue("alpha"), authority)
            client = instances.client("alpha", hub.address, tls=own)
            wait_until(lambda: client_of(client).trouble, 10, "it to be refused")
            assert TRACE in client_of(client).trouble
        assert is_clean(logs.lines(kind))


class TestAClient:
    @each_kind
    def test_what_its_hub_says(self, instances: Instances, logs: Logs, kind: str) -> None:
        """A hub that closes with a reason of its own making, and sends records that are none."""
        with hub_by_hand(instances.tls("hub")) as hub:
            client = instances.client("alpha", hub.address, ["down"], ["none"])
            hand = hub.next()
            hub.answer(hand)
            wait_connected(client)
            hand.send(made(channel="down", v=EVIL))
            hand.acknowledged()
            hand.connection.close(4403, EVIL)
            wait_audit(client, "peer_disconnected")
            hand.drop()
        assert is_clean((data_dir_of(client) / "audit" / "audit.jsonl").read_text().split("\n"))
        assert is_clean(logs.lines(kind))
