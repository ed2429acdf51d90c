"""What the page asks for, of a real messenger: the overview, messages, streams, dead letters."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import Message, Messenger
from keyop.look.records import Reader
from keyop.web import api, paging
from tests.cli.helpers import dead_letter
from tests.integration.helpers import (
    Recorder,
    offset_path,
    record,
    records,
    running,
    wait_until,
    write_offset,
    write_segment,
)

from .client import Client

SOON = 20.0


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def messenger(data_dir: Path) -> Iterator[Messenger]:
    with running(data_dir) as messenger:
        yield messenger


@pytest.fixture
def client(messenger: Messenger) -> Client:
    return Client(messenger)


def publish(messenger: Messenger, count: int, channel: str = "orders") -> list[int]:
    """Publish numbers; return where each begins, and the end."""
    ends = [0]
    for number in range(count):
        messenger.publish(channel, "com.example.T", {"n": number, "even": number % 2 == 0})
        assert messenger._store is not None
        ends.append(messenger._store.log(channel).end)
    return ends


def numbers(page: Any) -> list[Any]:
    return [each["record"]["payload"]["n"] for each in page["messages"]]


def give_up(messenger: Messenger, count: int, channel: str = "orders") -> None:
    """Have billing give up on so many messages."""

    def fail(message: Message) -> None:
        raise ValueError("no such customer")

    subscription = messenger.subscribe(channel, "billing", fail, max_retries=0)
    publish(messenger, count, channel)
    wait_until(lambda: subscription.lag_bytes == 0, SOON, "all to be given up")
    subscription.stop()


class TestOverview:
    def test_what_it_has(self, messenger: Messenger, client: Client, data_dir: Path) -> None:
        """Every field of the contract, with what is true of the messenger."""
        publish(messenger, 3)
        seen = Recorder()
        messenger.subscribe("orders", "billing", seen, start="earliest")
        seen.wait(3, SOON)
        write_offset(data_dir, "orders", "slow", 0)
        found = client.read("overview")
        assert found["instance"] == "here"
        assert found["data_dir"] == str(data_dir)
        assert found["disk"]["total_bytes"] > found["disk"]["free_bytes"] > 0
        moments = [datetime.fromisoformat(found[name]) for name in ("started", "time")]
        assert moments == sorted(moments)
        assert moments[1] - datetime.now(timezone.utc) < timedelta(minutes=1)
        (channel,) = found["channels"]
        size = (data_dir / "channels/orders" / f"{0:020}.jsonl").stat().st_size
        billing, slow = channel.pop("subscribers")
        assert channel == {
            "channel": "orders",
            "segments": 1,
            "disk_bytes": size,
            "start": 0,
            "end": size,
            "dead_letters": 0,
            "bytes_per_s": None,
            "messages_per_s": None,
            "failed": None,
            "published": 3,
            "waits": 0,
            "retries": 0,
            "dropped_bytes": 0,
        }
        age = slow.pop("oldest_pending_s")
        assert 0 <= age < 60
        assert slow == {
            "subscriber_id": "slow",
            "kind": "local",
            "running": False,
            "offset": 0,
            "lag_bytes": size,
            "lag_messages": 3,
            "lag_estimated": False,
            "read_bytes_per_s": None,
        }
        assert billing["running"] is True
        assert billing["lag_bytes"] == billing["lag_messages"] == 0
        assert billing["oldest_pending_s"] is None
        assert found["totals"]["channels"] == 1
        assert found["totals"]["subscribers"] == 2
        assert found["totals"]["running"] == 1
        assert found["totals"]["largest_lag_bytes"] == size
        assert found["latency"]["publish"]["count"] >= 1
        assert found["latency"]["handler"]["p99"] >= found["latency"]["handler"]["p50"] > 0
        assert found["peers"] == found["warnings"] == []

    def test_numbers_move(
        self, messenger: Messenger, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From the second sample on there are rates; asked again at once, the same is told."""
        publish(messenger, 1)
        first = client.read("overview")
        publish(messenger, 5)
        assert client.read("overview")["time"] == first["time"]
        monkeypatch.setattr("keyop.web.observer._FRESH_S", 0.0)
        (channel,) = client.read("overview")["channels"]
        assert channel["messages_per_s"] > 0
        assert channel["bytes_per_s"] > 100 * channel["messages_per_s"]
        (channel,) = client.read("overview")["channels"]
        assert channel["messages_per_s"] == 0

    def test_several_ask_at_once(
        self, messenger: Messenger, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One looks, and all are told what it saw."""
        for number in range(30):
            publish(messenger, 1, f"c{number}")
        asking = [gevent.spawn(client.read, "overview") for _ in range(10)]
        found = [each.get(timeout=SOON)["time"] for each in asking]
        assert len(set(found)) == 1

    def test_dead_letters_have_channels_of_their_own(
        self, messenger: Messenger, client: Client
    ) -> None:
        give_up(messenger, 3)
        found = client.read("overview")
        letters = {each["channel"]: each["dead_letters"] for each in found["channels"]}
        assert letters == {"orders": 3, "orders.dead-letter": None}
        assert found["totals"]["dead_letters"] == 3
        (warning,) = found["warnings"]
        assert (warning["kind"], warning["channel"]) == ("dead_letters", "orders")

    def test_damage(self, messenger: Messenger, client: Client, data_dir: Path) -> None:
        """A directory that others have been at is shown as far as it can be."""
        publish(messenger, 2)
        write_offset(data_dir, "orders", "empty", b"")
        write_offset(data_dir, "orders", "beyond", 10**9)
        write_offset(data_dir, "nothing-there", "waits", 0)
        write_segment(data_dir, "rubbish", 0, b"\xff\x00\n{}\n" + record(1, ts="never") + b"torn")
        write_segment(data_dir, "gap", 0, record(1, channel="gap"))
        write_segment(data_dir, "gap", 5000, record(2, channel="gap"))
        write_offset(data_dir, "rubbish", "reader", 0)
        write_offset(data_dir, "gap", "reader", 0)
        (data_dir / "channels" / "a file").write_text("")
        (data_dir / "channels" / "orders" / "notes.txt").write_text("")
        found = client.read("overview")
        channels = {each["channel"]: each for each in found["channels"]}
        assert set(channels) == {"orders", "nothing-there", "rubbish", "gap"}
        positions = {each["subscriber_id"]: each for each in channels["orders"]["subscribers"]}
        assert positions["empty"]["offset"] is positions["empty"]["lag_bytes"] is None
        assert positions["beyond"]["lag_bytes"] == positions["beyond"]["lag_messages"] == 0
        (warning,) = [each for each in found["warnings"] if each["kind"] == "damage"]
        assert "empty cannot be read" in warning["text"]
        for path in ("/metrics", "/healthz", "/api/v1/history"):
            assert client.get(path).status == 200
        for name in channels:
            assert client.get(f"/api/v1/channels/{name}/messages").status == 200
            assert client.get(f"/api/v1/channels/{name}/dead-letters").status == 200

    def test_a_lag_beyond_what_is_counted(
        self, messenger: Messenger, client: Client, data_dir: Path
    ) -> None:
        """It is estimated, so that looking stays cheap."""
        line = record("x" * 1000, channel="big")
        write_segment(data_dir, "big", 0, line * 3000)
        write_offset(data_dir, "big", "slow", 0)
        ((slow,),) = [each["subscribers"] for each in client.read("overview")["channels"]]
        assert slow["lag_estimated"] is True
        assert slow["lag_messages"] == pytest.approx(3000, rel=0.1)
        assert slow["lag_bytes"] == 3000 * len(line)

    def test_many(self, messenger: Messenger, client: Client, data_dir: Path) -> None:
        """Of 200 channels with 2,000 subscribers, everybody else gets a turn in between."""
        line = record(1)
        for channel in range(200):
            write_segment(data_dir, f"c{channel}", 0, line * 10)
            for subscriber in range(10):
                write_offset(data_dir, f"c{channel}", f"s{subscriber}", len(line) * subscriber)
        turns = 0

        def count() -> None:
            nonlocal turns
            while True:
                gevent.sleep(1e-6)
                turns += 1

        counting = gevent.spawn(count)
        try:
            for path in ("/api/v1/overview", "/metrics"):
                before, begun = turns, time.thread_time()
                assert client.get(path).status == 200
                used_s = time.thread_time() - begun
                # A turn every two milliseconds is what is meant.
                assert turns - before > used_s / 0.02, path
        finally:
            counting.kill()
        assert client.read("overview")["totals"]["subscribers"] == 2000


class TestHistory:
    def test_fills_while_nobody_asks(
        self, messenger: Messenger, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From the first request on, until the messenger is closed."""
        monkeypatch.setattr("keyop.web.observer.INTERVAL_S", 0.01)
        monkeypatch.setattr("keyop.web.observer._FRESH_S", 0.0)
        publish(messenger, 1)
        assert client.read("history")["times"] == []
        wait_until(lambda: len(client.read("history")["times"]) > 2, SOON, "three points")
        found = client.read("history")
        assert found["interval_s"] == 2.0
        assert len(found["channels"]["orders"]["lag_bytes"]) == len(found["times"])

    def test_the_observer_survives_a_bad_moment(
        self, messenger: Messenger, client: Client, monkeypatch: pytest.MonkeyPatch, data_dir: Path
    ) -> None:
        monkeypatch.setattr("keyop.web.observer.INTERVAL_S", 0.01)
        monkeypatch.setattr("keyop.web.observer._FRESH_S", 0.0)
        publish(messenger, 1)
        away = data_dir.with_name("away")
        (data_dir / "channels").rename(away)
        (data_dir / "channels").write_text("a file")
        assert client.get("/api/v1/overview").status == 503
        gevent.sleep(0.03)
        (data_dir / "channels").unlink()
        away.rename(data_dir / "channels")
        wait_until(lambda: client.read("history")["times"], SOON, "a point")


class TestMessages:
    def test_the_last_ones(self, messenger: Messenger, client: Client) -> None:
        ends = publish(messenger, 10)
        found = client.read("channels/orders/messages", {"limit": 3})
        assert numbers(found) == [7, 8, 9]
        assert (found["start"], found["end"], found["next"]) == (0, ends[10], ends[10])
        assert (found["previous"], found["more"]) == (ends[7], True)
        last = found["messages"][-1]
        assert (last["offset"], last["next"]) == (ends[9], ends[10])
        assert last["damage"] is last["raw"] is None
        assert last["record"]["channel"] == "orders"
        assert "crc" not in last["record"]

    def test_from_a_place_on(self, messenger: Messenger, client: Client) -> None:
        """Earliest, an offset, the middle of a record, a time, so long ago."""
        ends = publish(messenger, 5)
        second = client.read("channels/orders/messages")["messages"][1]["record"]["ts"]
        for place, first in {
            "earliest": 0,
            str(ends[2]): 2,
            str(ends[2] + 5): 2,
            second: 1,
            "-1h": 0,
            "2999-01-01T00:00:00Z": 5,
            "9" * 20: 5,
        }.items():
            found = client.read("channels/orders/messages", {"from": place, "limit": 2})
            assert numbers(found) == list(range(first, min(first + 2, 5))), place
            assert found["more"] is (first < 3)
            assert found["next"] == ends[min(first + 2, 5)]

    def test_there_and_back(self, messenger: Messenger, client: Client) -> None:
        """Every record is on one page, whichever way one goes."""
        publish(messenger, 25)
        query: dict[str, Any] = {"from": "earliest", "limit": 4}
        forward: list[int] = []
        while True:
            found = client.read("channels/orders/messages", query)
            forward += numbers(found)
            if not found["more"]:
                break
            query["from"] = found["next"]
        back: list[int] = []
        query = {"limit": 4}
        while True:
            found = client.read("channels/orders/messages", query)
            back = numbers(found) + back
            if found["previous"] is None:
                break
            query["before"] = found["previous"]
        assert forward == back == list(range(25))

    def test_filtered(self, messenger: Messenger, client: Client) -> None:
        publish(messenger, 20)
        messenger.publish("orders", "t", "STRASSE")
        path = "channels/orders/messages"
        assert numbers(client.read(path, [("where", "even=true"), ("limit", 3)])) == [14, 16, 18]
        both = [("where", "even=true"), ("where", "payload.n=4"), ("from", "earliest")]
        assert numbers(client.read(path, both)) == [4]
        assert (
            client.read(path, {"text": "straße"})["messages"][0]["record"]["payload"] == "STRASSE"
        )
        assert client.read(path, {"text": "nowhere"})["messages"] == []

    @pytest.mark.parametrize("way", [{"from": "earliest"}, {}])
    def test_when_the_time_is_up(
        self,
        messenger: Messenger,
        client: Client,
        monkeypatch: pytest.MonkeyPatch,
        way: dict[str, str],
    ) -> None:
        """A search that takes too long says how far it came, and goes on there, to its end."""
        monkeypatch.setattr(paging, "LOOK_S", 0.0)
        monkeypatch.setattr(paging, "_FIRST_STEP_BYTES", 1000)
        monkeypatch.setattr(paging, "_LONGEST_STEP_BYTES", 1000)
        publish(messenger, 30)
        query: dict[str, Any] = {"where": "n=15", **way}
        shown, asked = [], 0
        while True:
            found = client.read("channels/orders/messages", query)
            shown += numbers(found)
            asked += 1
            if not found["more"]:
                break
            if way:
                query["from"] = found["next"]
            else:
                query["before"] = found["previous"]
        assert shown == [15]
        assert asked > 5

    @pytest.mark.parametrize("way", [{"from": "earliest"}, {}])
    def test_large_records(self, messenger: Messenger, client: Client, way: dict[str, str]) -> None:
        """A page has at most a few megabytes, or one record alone; none is left out."""
        for number in range(6):
            messenger.publish("orders", "t", {"n": number, "x": "x" * 1_800_000})
        messenger.publish("orders", "t", {"n": 6, "x": "x" * 6_000_000})
        found = client.read("channels/orders/messages", way)
        assert numbers(found) == ([0, 1] if way else [6])
        assert found["more"] is True
        if way:
            assert numbers(client.read("channels/orders/messages", {"from": found["next"]})) == [
                2,
                3,
            ]
        else:
            before = {"before": found["previous"]}
            assert numbers(client.read("channels/orders/messages", before)) == [4, 5]

    def test_damaged_ones(self, messenger: Messenger, client: Client, data_dir: Path) -> None:
        """They are shown as they are, between those that are whole."""
        bad = record(2)[:-8] + b'00000"}\n'
        write_segment(data_dir, "orders", 0, record(1) + bad + b"\xfe<script>\n" + record(3))
        found = client.read("channels/orders/messages")["messages"]
        assert [each["record"] and each["record"]["payload"] for each in found] == [
            1,
            None,
            None,
            3,
        ]
        assert found[1]["damage"]
        assert found[1]["raw"].encode() == bad.rstrip(b"\n")
        assert found[2]["raw"] == "\\xfe<script>"

    def test_to_the_letter(self, messenger: Messenger, client: Client, data_dir: Path) -> None:
        """Numbers keep their digits, whatever a parser would make of them."""
        raw = '{"n":12345678901234567890123,"f":1.000000000000000000001}'
        write_segment(data_dir, "orders", 0, record(raw=raw))
        answer = client.get("/api/v1/channels/orders/messages")
        assert raw.encode() in answer.body

    def test_what_browsers_do_not_read(
        self, messenger: Messenger, client: Client, data_dir: Path
    ) -> None:
        """Records of v0.11.0 that are no JSON in the strict sense do not break the answer."""
        deep = "[" * 600 + "]" * 600
        lone = '"\\ud800"'
        write_segment(data_dir, "orders", 0, record(raw=deep) + record(raw=lone))
        found = client.read("channels/orders/messages")["messages"]
        assert len(found) == 2
        for each in found:
            assert each["record"] is not None or each["raw"]

    def test_nothing(self, messenger: Messenger, client: Client) -> None:
        """A channel that somebody subscribes to and nobody has published to."""
        messenger.subscribe("orders", "billing", Recorder())
        found = client.read("channels/orders/messages", {"from": "earliest"})
        assert found["messages"] == []
        assert (found["start"], found["end"], found["next"], found["more"]) == (0, 0, 0, False)

    @pytest.mark.parametrize(
        "query",
        [
            "from=yesterday",
            "from=",
            "from=-1",
            "from=1e3",
            "limit=0",
            "limit=-1",
            "limit=x",
            "limit=%C2%B2",
            "before=-1",
            "before=x",
            "before=" + "9" * 5000,
            "where=x",
            "where==1",
            "where=" + "a." * 200 + "b=1",
        ],
    )
    def test_what_makes_no_sense(self, messenger: Messenger, client: Client, query: str) -> None:
        publish(messenger, 1)
        answer = client.get("/api/v1/channels/orders/messages", query)
        assert answer.status == 400
        assert answer.error

    def test_a_limit_that_is_too_high(self, messenger: Messenger, client: Client) -> None:
        publish(messenger, 600)
        query = {"limit": 10**9, "from": "earliest"}
        assert numbers(client.read("channels/orders/messages", query)) == list(range(500))


class TestEvents:
    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api, "_HEARTBEAT_S", 0.01)

    @staticmethod
    def until(stream: Iterator[bytes], text: bytes) -> bytes:
        """Read until a text has come."""
        got = b""
        with gevent.Timeout(SOON):
            while text not in got:
                got += next(stream)
        return got

    def test_follow(self, messenger: Messenger, client: Client) -> None:
        """From the end on, as messages come; something is sent also when none does."""
        publish(messenger, 2)
        answer = client.get("/api/v1/channels/orders/events")
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert "Content-Length" not in answer.headers
        stream: Any = answer.pieces
        self.until(stream, b": still here")
        messenger.publish("orders", "t", {"n": 3})
        got = self.until(stream, b'"payload":{"n":3}')
        assert b'{"n":1' not in got
        stream.close()

    def test_from_an_offset(self, messenger: Messenger, client: Client) -> None:
        """The header of a browser that comes back counts more; one that is none, not at all."""
        ends = publish(messenger, 5)
        path = "/api/v1/channels/orders/events"
        for query, headers, first in (
            ({"from": ends[3]}, {}, 3),
            ({"from": "earliest"}, {}, 0),
            ({"from": ends[1]}, {"Last-Event-ID": str(ends[4])}, 4),
            ({"from": ends[1]}, {"Last-Event-ID": "x"}, 1),
            ({"from": ends[1]}, {"Last-Event-ID": "9" * 5000}, 1),
            ({"from": ends[1]}, {"Last-Event-ID": "\xb2"}, 1),
        ):
            stream: Any = client.get(path, query, headers=headers).pieces
            got = self.until(stream, b'"n":4')
            assert b'"n":%d,' % first in got
            assert first == 0 or b'"n":%d,' % (first - 1) not in got
            stream.close()
        assert client.get(path, {"from": "soon"}).status == 400

    @pytest.mark.parametrize("digits", [18, 19, 20])
    def test_from_beyond_the_end(self, messenger: Messenger, client: Client, digits: int) -> None:
        """It is the end, whatever a 64-bit number holds."""
        ends = publish(messenger, 5)
        beyond = "9" * digits
        for query, headers in (({"from": beyond}, {}), ({}, {"Last-Event-ID": beyond})):
            stream: Any = client.get(
                "/api/v1/channels/orders/events", query, headers=headers
            ).pieces
            assert b"id: %d\n" % ends[-1] in next(stream)
            stream.close()

    def test_ends_with_the_messenger(self, messenger: Messenger, client: Client) -> None:
        publish(messenger, 1)
        stream: Any = client.get("/api/v1/channels/orders/events").pieces
        reading = gevent.spawn(b"".join, stream)
        gevent.sleep(0)
        messenger.close()
        reading.get(timeout=SOON)
        stream.close()


class TestDeadLetters:
    def test_list(self, messenger: Messenger, client: Client) -> None:
        give_up(messenger, 3)
        for name in ("orders", "orders.dead-letter"):
            found = client.read(f"channels/{name}/dead-letters")
            assert (found["channel"], found["count"], found["more"]) == ("orders", 3, False)
        first = found["letters"][0]
        assert first["subscriber"] == "billing"
        assert first["error"] == "ValueError: no such customer"
        assert first["retries"] == 0
        assert first["raw"] is None
        assert first["original"]["payload"] == {"n": 0, "even": True}
        datetime.fromisoformat(first["time"].replace("Z", "+00:00"))

    def test_none(self, messenger: Messenger, client: Client) -> None:
        publish(messenger, 1)
        assert client.read("channels/orders/dead-letters") == {
            "channel": "orders",
            "count": 0,
            "letters": [],
            "more": False,
        }

    def test_what_is_no_message(self, messenger: Messenger, client: Client, data_dir: Path) -> None:
        """Bytes that could not be read are given as base64."""
        raw = base64.b64encode(b"\xff\x00").decode()
        publish(messenger, 1)
        write_segment(data_dir, "orders.dead-letter", 0, dead_letter(None, raw=raw))
        (letter,) = client.read("channels/orders/dead-letters")["letters"]
        assert (letter["original"], letter["raw"]) == (None, raw)

    def test_pages(
        self, messenger: Messenger, client: Client, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of ten thousand, a page is read from where the one before it ended."""
        lines = [dead_letter(record(n), letter_id=f"dead-{n:05}") for n in range(10_000)]
        write_segment(data_dir, "orders.dead-letter", 0, b"".join(lines))
        begins: list[int] = []
        read = Reader.read

        def reading(reader: Reader, start: int, end: int | None = None) -> Any:
            begins.append(start)
            return read(reader, start, end)

        monkeypatch.setattr(Reader, "read", reading)
        path = "channels/orders/dead-letters"
        page, ids = client.read(path), []
        for _ in range(3):
            assert (page["count"], page["more"]) == (10_000, True)
            ids += [each["id"] for each in page["letters"]]
            page = client.read(path, {"after": ids[-1]})
        assert ids == [f"dead-{n:05}" for n in range(300)]
        # Counting, the first page, and those behind it.
        assert begins == [0, *(sum(map(len, lines[:n])) for n in (0, 100, 200, 300))]
        last = client.read(path, {"after": "dead-09899"})
        assert [each["id"] for each in last["letters"]] == [
            f"dead-{n:05}" for n in range(9900, 10_000)
        ]
        assert last["more"] is False

    def test_after_one_that_is_done_with(self, messenger: Messenger, client: Client) -> None:
        """Where one has been stays a place, also when what was there has been put away."""
        give_up(messenger, 6)
        path = "channels/orders/dead-letters"
        ids = [each["id"] for each in client.read(path)["letters"]]
        client.change(f"{path}/purge", {"ids": [ids[2]]})
        found = client.read(path, {"after": ids[2], "limit": 2})
        assert [each["id"] for each in found["letters"]] == ids[3:5]
        assert (found["count"], found["more"]) == (5, True)
        assert client.read(path, {"after": "unknown"})["letters"][0]["id"] == ids[0]

    def test_the_count_keeps_up(
        self, messenger: Messenger, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With those that come and those that go, here and in the overview."""
        monkeypatch.setattr("keyop.web.observer._FRESH_S", 0.0)
        path = "channels/orders/dead-letters"

        def counts() -> list[int]:
            overview = client.read("overview")
            (row,) = [each for each in overview["channels"] if each["channel"] == "orders"]
            return [client.read(path)["count"], row["dead_letters"]]

        give_up(messenger, 3)
        assert counts() == [3, 3]
        give_up(messenger, 2)
        assert counts() == [5, 5]
        first = client.read(path)["letters"][0]["id"]
        assert client.change(f"{path}/purge", {"ids": [first]}) == {"purged": 1}
        assert counts() == [4, 4]
        assert client.change(f"{path}/purge", {"all": True}) == {"purged": 4}
        assert counts() == [0, 0]

    def test_requeue(self, messenger: Messenger, client: Client) -> None:
        """To the one that failed, and to nobody else."""
        give_up(messenger, 3)
        path = "channels/orders/dead-letters"
        ids = [each["id"] for each in client.read(path)["letters"]]
        billing, other = Recorder(), Recorder()
        messenger.subscribe("orders", "billing", billing)
        subscription = messenger.subscribe("orders", "other", other)
        answer = client.change(f"{path}/requeue", {"ids": ids[1:], "to": "subscriber"})
        assert answer == {"sent": 2, "refused": []}
        assert [each["n"] for each in billing.wait(2, SOON)] == [1, 2]
        wait_until(lambda: subscription.lag_bytes == 0, SOON)
        assert other.messages == []
        assert client.read(path)["count"] == 1
        assert client.change(f"{path}/requeue", {"all": True, "to": "channel"})["sent"] == 1
        assert [each["n"] for each in other.wait(1, SOON)] == [0]

    def test_requeue_refused(self, messenger: Messenger, client: Client) -> None:
        """What cannot be sent again is named, with the reason, and stays."""
        give_up(messenger, 1)
        messenger.unsubscribe("orders", "billing")
        path = "channels/orders/dead-letters"
        (letter,) = client.read(path)["letters"]
        answer = client.change(f"{path}/requeue", {"all": True})
        ((refused,),) = [answer.pop("refused")]
        assert answer == {"sent": 0}
        assert refused["id"] == letter["id"]
        assert "billing does not subscribe" in refused["reason"]
        assert client.read(path)["count"] == 1

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"ids": []},
            {"ids": "all"},
            {"ids": [1]},
            {"ids": None, "all": False},
            {"all": 1},
            {"all": "true"},
            {"all": True, "ids": ["x"]},
            {"id": "x"},
        ],
    )
    def test_what_is_meant_must_be_clear(
        self, messenger: Messenger, client: Client, body: object
    ) -> None:
        """Nothing is done by mistake, to all of them least of all."""
        give_up(messenger, 1)
        path = "/api/v1/channels/orders/dead-letters"
        for what in ("requeue", "purge"):
            answer = client.post(f"{path}/{what}", body)
            assert answer.status == 400
            assert '"all"' in answer.error
        assert client.post(f"{path}/requeue", {"all": True, "to": "x"}).status == 400
        assert client.read("channels/orders/dead-letters")["count"] == 1

    def test_one_that_is_not_there(self, messenger: Messenger, client: Client) -> None:
        """Nothing of the request is done, and it is said which one."""
        give_up(messenger, 1)
        (letter,) = client.read("channels/orders/dead-letters")["letters"]
        for what in ("requeue", "purge"):
            answer = client.post(
                f"/api/v1/channels/orders/dead-letters/{what}", {"ids": [letter["id"], "unknown"]}
            )
            assert answer.status == 409
            assert "unknown" in answer.error
        assert client.read("channels/orders/dead-letters")["count"] == 1

    def test_no_channel(self, messenger: Messenger, client: Client) -> None:
        for what in ("requeue", "purge"):
            answer = client.post(f"/api/v1/channels/none/dead-letters/{what}", {"all": True})
            assert answer.status == 404


def test_peers(messenger: Messenger, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told of as the page wants it: since when, and one of four states."""
    from dataclasses import replace

    from keyop.stats import PeerStats

    stats = messenger.stats()
    peers = (
        PeerStats("beta", "client", "10.0.0.1:5", "connected", connected_s=60.0, sent=3),
        PeerStats("hub", "hub", "hub:7740", "waiting", "timed out", failures=2),
        PeerStats("gone", "client", "", "away", backlog_bytes=7),
    )
    monkeypatch.setattr(Messenger, "stats", lambda _, pending: replace(stats, peers=peers))
    found = client.read("overview")
    beta, hub, gone = found["peers"]
    since = datetime.fromisoformat(beta.pop("since"))
    assert datetime.fromisoformat(found["time"]) - since == timedelta(seconds=60)
    assert beta == {
        "name": "beta",
        "kind": "client",
        "address": "10.0.0.1:5",
        "state": "connected",
        "detail": "",
        "reconnects": 0,
        "backlog_bytes": 0,
        "round_trip_s": None,
        "sent": 3,
        "received": 0,
        "failures": 0,
        "dropped_bytes": 0,
        "undeliverable": 0,
    }
    assert (hub["state"], hub["detail"], hub["since"]) == ("connecting", "timed out", None)
    assert (gone["state"], gone["backlog_bytes"]) == ("away", 7)
    assert [each["peer"] for each in found["warnings"]] == ["hub", "gone"]


def test_what_is_sent_again_is_the_record(
    messenger: Messenger, client: Client, data_dir: Path
) -> None:
    """With its id, so that whoever remembers ids knows it."""
    give_up(messenger, 1)
    before = records(data_dir, "orders")
    write_offset(data_dir, "orders", "x", 0)
    client.change("channels/orders/dead-letters/requeue", {"all": True})
    first, again = records(data_dir, "orders")
    assert [first] == before
    assert (again["id"], again["payload"]) == (first["id"], first["payload"])
    assert json.loads(offset_path(data_dir, "orders", "x").read_bytes()) == 0


def test_a_position_whose_name_is_no_text(
    messenger: Messenger, client: Client, data_dir: Path
) -> None:
    """Bytes that somebody has made a file of are no subscriber's, and are left alone."""
    publish(messenger, 1)
    directory = data_dir / "subscribers" / "orders"
    directory.mkdir(parents=True, exist_ok=True)
    stray = Path(os.fsdecode(os.fsencode(directory) + b"/\xff.offset"))
    stray.write_text("0\n")
    answer = client.get("/api/v1/overview")
    assert answer.status == 200
    assert b'"subscribers":[]' in answer.body
    assert client.get("/metrics").status == 200
    assert stray.exists()
