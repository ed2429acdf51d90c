"""Reading along without a position: ``follow`` and the stream of events for browsers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import InvalidChannelNameError, Messenger, MessengerClosedError
from keyop.web import event_stream

from .helpers import offset_path, record, running, write_segment

SOON = 20.0


def read(messenger: Messenger, **options: Any) -> list[Any]:
    """Return the payloads that one look finds."""
    with messenger.follow("orders", **options) as follower:
        return [json.loads(line)["payload"] for _, line in follower.read(0)]


def events(stream: Any, count: int = 1) -> list[tuple[int, Any]]:
    """Return the next so many events: the id and the payload of each."""
    found: list[tuple[int, Any]] = []
    while len(found) < count:
        for event in next(stream).decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line[1:])
            if "data" in fields:
                found.append((int(fields["id"]), json.loads(fields["data"])["payload"]))
    return found


class TestFollow:
    def test_from_anywhere(self, tmp_path: Path) -> None:
        """From the end, from the beginning, from an offset."""
        with running(tmp_path) as messenger:
            messenger.publish("orders", "t", 1)
            second = messenger.stats().channels[0].end_offset
            messenger.publish("orders", "t", 2)
            assert read(messenger) == []
            assert read(messenger, start="earliest") == [1, 2]
            assert read(messenger, start=second) == [2]

    def test_what_comes(self, tmp_path: Path) -> None:
        """A record wakes whoever waits; where none comes, the wait ends in time."""
        with running(tmp_path) as messenger, messenger.follow("orders") as follower:
            waiting = gevent.spawn(follower.read, SOON)
            gevent.sleep(0)
            messenger.publish("orders", "t", 1)
            ((end, line),) = waiting.get(timeout=SOON)
            assert json.loads(line)["payload"] == 1
            assert "crc" not in json.loads(line)
            assert follower.position == end == messenger.stats().channels[0].end_offset
            assert follower.read(0.01) == []

    def test_damage_is_passed_over(self, tmp_path: Path) -> None:
        """Only sound records are returned."""
        write_segment(tmp_path, "orders", 0, record(1) + b"nonsense\n" + record(2))
        with running(tmp_path) as messenger:
            assert read(messenger, start="earliest") == [1, 2]

    def test_it_claims_nothing(self, tmp_path: Path) -> None:
        """No position is kept, and nothing is held back from the sweeper."""
        with running(tmp_path) as messenger:
            messenger.publish("orders", "t", 1)
            assert read(messenger, start="earliest") == [1]
            assert messenger.stats().channels[0].subscribers == ()
        assert not offset_path(tmp_path, "orders", "s").parent.exists()

    def test_closing_ends_it(self, tmp_path: Path) -> None:
        """Who waits learns that the messenger is closed."""
        messenger = Messenger(data_dir=tmp_path)
        with messenger.follow("orders") as follower:
            waiting = gevent.spawn(follower.read, SOON)
            gevent.sleep(0)
            messenger.close()
            with pytest.raises(MessengerClosedError):
                waiting.get(timeout=SOON)

    @pytest.mark.parametrize(
        ("channel", "start", "error"),
        [("../x", "latest", InvalidChannelNameError), ("orders", "later", ValueError)],
    )
    def test_bad_arguments(
        self, tmp_path: Path, channel: str, start: Any, error: type[Exception]
    ) -> None:
        """They are refused at once."""
        with running(tmp_path) as messenger, pytest.raises(error):
            messenger.follow(channel, start)


class TestEventStream:
    def test_live(self, tmp_path: Path) -> None:
        """First a greeting, then every record as it comes."""
        with running(tmp_path) as messenger:
            messenger.publish("orders", "t", 0)
            stream = event_stream(messenger, "orders")
            begun = messenger.stats().channels[0].end_offset
            assert next(stream) == b"retry: 1000\nid: %d\n\n" % begun
            waiting = gevent.spawn(events, stream)
            gevent.sleep(0)
            messenger.publish("orders", "t", {"line": "a\nb"})
            end = messenger.stats().channels[0].end_offset
            assert waiting.get(timeout=SOON) == [(end, {"line": "a\nb"})]
            stream.close()

    def test_resumes(self, tmp_path: Path) -> None:
        """A browser that was cut off gets what it has missed, and nothing twice."""
        with running(tmp_path) as messenger:
            for n in range(5):
                messenger.publish("orders", "t", n)
            stream = event_stream(messenger, "orders", start="earliest")
            seen = events(stream, 5)
            stream.close()
            assert [payload for _, payload in seen] == [0, 1, 2, 3, 4]
            stream = event_stream(messenger, "orders", str(seen[1][0]))
            assert events(stream, 3) == seen[2:]
            stream.close()

    @pytest.mark.parametrize("last_event_id", [None, "", "abc", "-1", "1e3", "١", "1" * 5000])
    def test_no_id_to_resume_from(self, tmp_path: Path, last_event_id: str | None) -> None:
        """Then it begins where it was asked to."""
        with running(tmp_path) as messenger:
            messenger.publish("orders", "t", 1)
            stream = event_stream(messenger, "orders", last_event_id, start="earliest")
            assert [payload for _, payload in events(stream)] == [1]
            stream.close()

    def test_heartbeat(self, tmp_path: Path) -> None:
        """Where nothing comes, a comment keeps the connection open."""
        with running(tmp_path) as messenger:
            stream = event_stream(messenger, "orders", heartbeat_s=0.01)
            next(stream)
            assert next(stream).startswith(b":")
            assert next(stream).endswith(b"\n\n")
            stream.close()

    def test_it_ends_with_the_messenger(self, tmp_path: Path) -> None:
        """The response is finished in good order."""
        messenger = Messenger(data_dir=tmp_path)
        stream = event_stream(messenger, "orders")
        messenger.close()
        assert len(list(stream)) == 1

    def test_nothing_is_left_of_one_that_never_began(self, tmp_path: Path) -> None:
        """A server closes the body of a response also when the client has gone before."""
        with running(tmp_path) as messenger:
            event_stream(messenger, "orders").close()

    def test_carriage_returns(self, tmp_path: Path) -> None:
        """One between two tokens ends no line of an event."""
        fields = json.loads(record(1))
        fields.pop("crc", None)
        line = json.dumps(fields, separators=(",", ":")).replace('"payload":1', '"payload":\r1')
        write_segment(tmp_path, "orders", 0, line.encode() + b"\n")
        with running(tmp_path) as messenger:
            stream = event_stream(messenger, "orders", start="earliest")
            assert [payload for _, payload in events(stream)] == [1]
            stream.close()
