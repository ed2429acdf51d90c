"""Texts from outside on a terminal: lines stay lines, and the terminal obeys none of it."""

from __future__ import annotations

import os
from pathlib import Path

import gevent
import pytest

from tests.cli.conftest import logging_restored
from tests.cli.helpers import Process, keyop, wait_for
from tests.federation.helpers import Instances
from tests.integration.helpers import Recorder, record, running, write_segment
from tests.transport.certificates import Authority

from .helpers import hub_by_hand
from .test_injection import EVIL, TRACE, is_clean

__all__ = ["logging_restored"]  # a fixture that each test here uses


def fail(_: object) -> None:
    raise ValueError(EVIL)


class TestACommand:
    """What it shows of texts from outside is one line where it stands, and nothing is obeyed."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["tail", "orders"],
            ["tail", "orders", "--json"],
            ["subscribe", "orders", "--id", "me", "--from", "earliest", "--count", "1"],
            ["subscribe", "orders", "--id", "me", "--from", "earliest", "--count", "1", "--json"],
            ["dead-letter", "list", "orders"],
            ["dead-letter", "list", "orders", "--json"],
            ["dead-letter", "show", "orders", "ID"],
            ["tail", "orders.dead-letter"],
            ["tail", "orders", "--where", f"id={EVIL}"],
            ["dead-letter", "requeue", "orders", EVIL.replace("\0", ""), "--yes"],
            ["subscribers", "orders"],
        ],
        ids=" ".join,
    )
    def test_of_a_message(self, tmp_path: Path, arguments: list[str]) -> None:
        with running(tmp_path / "data") as messenger:
            seen = Recorder()
            messenger.subscribe("orders.dead-letter", "seen", seen)
            messenger.subscribe("orders", "billing", fail, max_retries=0)
            messenger.publish("orders", EVIL, {EVIL: EVIL}, correlation_id=EVIL, service_name=EVIL)
            seen.wait(1)
            letter = seen.messages[0].id
        given = [letter if each == "ID" else each for each in arguments]
        result = keyop(*given, "--data-dir", tmp_path / "data")
        assert TRACE in result.out + result.err or "subscribers" in given or "--where" in given
        assert is_clean((result.out + result.err).split("\n"))

    @pytest.mark.parametrize("command", ["tail", "tail --json", "dead-letter list", "show"])
    def test_of_a_deep_message(self, tmp_path: Path, command: str) -> None:
        """One as deep as a peer may send it can be looked at, as can its dead letter."""
        data = tmp_path / "data"
        write_segment(data, "orders", 0, record(raw="[" * 1000 + "1" + "]" * 1000))
        with running(data) as messenger:
            seen = Recorder()
            messenger.subscribe("orders.dead-letter", "seen", seen)
            messenger.subscribe("orders", "billing", fail, start="earliest", max_retries=0)
            seen.wait(1)
        arguments = [*command.split(), "orders"]
        if command == "show":
            arguments = ["dead-letter", "show", "orders", seen.messages[0].id]
        result = keyop(*arguments, "--data-dir", data)
        assert (result.status, result.err) == (0, "")

    def test_of_a_deep_message_that_is_followed(self, tmp_path: Path) -> None:
        """A subscriber prints it, and comes to the next one."""
        payload = "[" * 1000 + "1" + "]" * 1000
        write_segment(tmp_path / "data", "orders", 0, record(raw=payload) + record("next"))
        arguments = ("--id", "me", "--from", "earliest", "--count", "2")
        with Process("subscribe", "orders", *arguments, "--data-dir", tmp_path / "data") as follow:
            wait_for(lambda: follow.popen.poll() is not None, "both messages", 5)
            assert follow.end().out == f'{payload}\n"next"\n'

    def test_of_names_on_the_disk(self, tmp_path: Path) -> None:
        """Files that somebody has put there are shown escaped, or not at all."""
        with running(tmp_path / "data") as messenger:
            messenger.publish("orders", "t", 1)
        evil = EVIL.replace("\0", "")
        (tmp_path / "data" / "channels" / evil).mkdir()
        positions = tmp_path / "data" / "subscribers" / "orders"
        positions.mkdir(parents=True, exist_ok=True)
        (positions / f"{evil}.offset").write_text("x\n")
        Path(os.fsdecode(os.fsencode(positions) + b"/\xff.offset")).write_text("0\n")
        for arguments in (["channels"], ["subscribers"], ["check"], ["stats"], ["stats", "--json"]):
            result = keyop(*arguments, "--data-dir", tmp_path / "data")
            assert is_clean((result.out + result.err).split("\n")), arguments

    def test_of_a_refusal(self, instances: Instances) -> None:
        """The reason that a hub gives, where it refuses a publish."""
        with hub_by_hand(instances.tls("hub")) as hub:

            def refuse() -> None:
                hand = hub.next()
                hand.hear()
                hand.connection.close(4403, EVIL)
                hand.closed()

            refusing = gevent.spawn(refuse)
            tls = instances.tls("alpha")
            files = [f"--{name}={path}" for name, path in tls.items()]
            result = keyop("publish", "orders", "1", "--hub", hub.address, *files)
            refusing.join()
        assert result.status == 1
        assert TRACE in result.err
        assert is_clean(result.err.split("\n"))
        assert result.err.count("\n") == 1

    def test_of_a_certificate(self, tmp_path: Path, authority: Authority) -> None:
        """``keyop keygen inspect`` shows whatever a certificate says, as text."""
        certificate = tmp_path / "evil.crt"
        evil = EVIL.encode("ascii", "ignore").decode()
        certificate.write_bytes(authority.issue(EVIL[:64], hosts=(evil,)).pem)
        for options in ([], ["--json"]):
            result = keyop("keygen", "inspect", certificate, *options)
            assert TRACE in result.out
            assert is_clean(result.out.split("\n"))
