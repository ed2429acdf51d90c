"""Hubs behind hubs: everything arrives everywhere, once, and nothing travels in a circle."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from keyop import Messenger
from keyop.dedup import Dedup, Window
from keyop.federation.client import Condition
from keyop.federation.feed import Feed
from keyop.federation.selection import Selection
from keyop.fs import FileSystem
from tests.fakes.faulty import FaultyFs
from tests.fakes.proxy import Proxy
from tests.integration.helpers import write_segment

from .byhand import PeerByHand, ids, made
from .helpers import (
    TYPE,
    Instances,
    Recorder,
    append,
    audit,
    data_dir_of,
    end_of,
    federation_of,
    lines_of,
    numbers,
    payloads,
    wait_audit,
    wait_connected,
    wait_payloads,
    wait_until,
)

EVERYBODY = ("hub", "hub-2", "hub-3", "alpha", "beta", "gamma")
BOTH_WAYS = {"subscribe": ["all"], "publish": ["all"]}


def relay(
    instances: Instances, name: str, *addresses: str, seams: Mapping[str, Any] | None = None
) -> Messenger:
    """Start a hub for everybody that is a client of those at the addresses."""
    hubs = [{"addr": address, **BOTH_WAYS} for address in addresses]
    client = {"enabled": bool(hubs), "hubs": hubs}
    settings = instances.hub_settings(name, EVERYBODY, client=client)
    return instances.start(settings, **(seams or {}))


def leaf(instances: Instances, name: str, *hubs: Messenger) -> Messenger:
    """Start a client of some hubs, connected to each."""
    sections = [{"addr": hub.hub_addr, **BOTH_WAYS} for hub in hubs]
    messenger = instances.start(
        instances.settings(name, client={"enabled": True, "hubs": sections})
    )
    wait_connected(messenger)
    return messenger


def routes(messenger: Messenger) -> dict[Any, list[str]]:
    """Return who has passed on each record of a log, by payload."""
    records = [json.loads(line) for line in lines_of(messenger, "all")]
    return {record["payload"]: record.get("route", []) for record in records}


def settled(messengers: Sequence[Messenger]) -> None:
    """Wait until nothing is under way between any of them."""

    def idle() -> bool:
        running = [federation_of(each) for each in messengers]
        clients = [client for each in running for client in each.clients]
        links = [link for each in running if each._instance for link in each._instance.links]
        senders = [sender for each in running for sender in each._instance._senders.values()]
        return (
            all(client.condition is Condition.CONNECTED for client in clients)
            and all(link.open and not link.session.acks_due for link in links)
            and all(sender.idle for sender in senders)
        )

    wait_until(idle, 15, "everything to arrive")


def assert_everybody_has(messengers: Sequence[Messenger], count: int) -> None:
    """Everybody has the records 0 to ``count``, each once, and none came back to where it was."""
    for each in messengers:
        wait_payloads(each, "all", count)
    settled(messengers)
    for each in messengers:
        assert sorted(payloads(each, "all")) == list(range(count)), each.instance_name
        assert audit(each, "loop_dropped") == []
        for payload, route in routes(each).items():
            assert len(set(route)) == len(route), (payload, route)


# --- what a peer has sent


def test_what_came_from_a_peer_is_not_read_again_for_it(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is passed over, whoever's it is; what is published between goes to the peer."""
    hub = relay(instances, "hub")
    alpha, beta = leaf(instances, "alpha", hub), leaf(instances, "beta", hub)
    alpha.publish("all", TYPE, 0)
    wait_payloads(beta, "all", 1)

    def feed_of(messenger: Messenger) -> Feed | None:
        (client,) = federation_of(messenger).clients
        assert client._sender is not None
        return client._sender.feeds.get("all")

    def ready() -> bool:
        """A new channel is sent from its beginning, as soon as it was noticed."""
        feeds = [(feed_of(each), end_of(each, "all")) for each in (alpha, beta)]
        return all(feed is not None and feed.acknowledged_to == end for feed, end in feeds)

    wait_until(ready, 15, "both to send the channel")
    looked_at: list[bytes] = []
    of_line = Selection.of_line

    def noted(self: Selection, line: bytes, *args: Any) -> Any:
        if self.addressee.name == "hub" and b'"route":' in line:
            looked_at.append(line)
        return of_line(self, line, *args)

    monkeypatch.setattr(Selection, "of_line", noted)
    for number in range(1, 30, 2):
        alpha.publish("all", TYPE, number)
        wait_payloads(beta, "all", number + 1)
        settled([alpha, hub, beta])
        beta.publish("all", TYPE, number + 1)
        wait_payloads(alpha, "all", number + 2)
        settled([alpha, hub, beta])
    assert_everybody_has([alpha, hub, beta], 31)
    assert looked_at == []
    for each in (alpha, beta):
        feed = feed_of(each)
        assert feed is not None
        assert feed.position == feed.acknowledged_to == end_of(each, "all")
        offset = data_dir_of(each) / "subscribers" / "all"
        saved = {path.read_bytes() for path in offset.glob("*.offset")}
        assert saved == {b"%020d\n" % feed.position}


# --- in a row


class TestInARow:
    def test_two_hubs(self, instances: Instances) -> None:
        """From one end to the other, both ways; each that has passed it on is named."""
        far = relay(instances, "hub-2")
        near = relay(instances, "hub", far.hub_addr)
        alpha, beta = leaf(instances, "alpha", near), leaf(instances, "beta", far)
        alpha.publish("all", TYPE, 0)
        wait_payloads(beta, "all", 1)
        beta.publish("all", TYPE, 1)
        wait_payloads(alpha, "all", 2)
        near.publish("all", TYPE, 2)
        assert_everybody_has([alpha, near, far, beta], 3)
        assert routes(beta) == {
            0: ["hub", "hub-2", "beta"],
            1: [],
            2: ["hub-2", "beta"],
        }
        assert routes(alpha) == {0: [], 1: ["hub-2", "hub", "alpha"], 2: ["alpha"]}

    def test_three_hubs(self, instances: Instances) -> None:
        """What many publish at once, at every place, arrives at every place."""
        third = relay(instances, "hub-3")
        second = relay(instances, "hub-2", third.hub_addr)
        first = relay(instances, "hub", second.hub_addr)
        row = [leaf(instances, "alpha", first), first, second, third]
        row.append(leaf(instances, "beta", third))
        for start, messenger in enumerate(row):
            for number in range(start, 100, len(row)):
                messenger.publish("all", TYPE, number)
        assert_everybody_has(row, 100)
        assert routes(row[-1])[0] == ["hub", "hub-2", "hub-3", "beta"]

    def test_the_record_itself(self, instances: Instances) -> None:
        """Id, time, origin, ids and the payload's bytes are those of the first publisher."""
        far = relay(instances, "hub-2")
        near = relay(instances, "hub", far.hub_addr)
        alpha, beta = leaf(instances, "alpha", near), leaf(instances, "beta", far)
        alpha.publish(
            "all", TYPE, {"é": [1.50, None, "<&>"]}, correlation_id="order-7", service_name="shop"
        )
        wait_payloads(beta, "all", 1)
        (sent,), (arrived,) = lines_of(alpha, "all"), lines_of(beta, "all")
        before, after = json.loads(sent), json.loads(arrived)
        assert after.pop("route") == ["hub", "hub-2", "beta"]
        assert before.pop("crc") != after.pop("crc")
        assert after == before
        payload = sent[sent.index(b',"payload":') : sent.rindex(b',"crc"')]
        assert payload in arrived

    def test_order(self, instances: Instances) -> None:
        """What one instance publishes arrives in its order at the other end."""
        far = relay(instances, "hub-2")
        near = relay(instances, "hub", far.hub_addr)
        alpha, beta = leaf(instances, "alpha", near), leaf(instances, "beta", far)
        for start in range(0, 1000, 50):
            alpha.publish_batch("all", numbers(start, start + 50))
        assert wait_payloads(beta, "all", 1000) == list(range(1000))

    def test_while_the_one_in_the_middle_is_away(self, instances: Instances) -> None:
        """It is restarted; what both ends publish meanwhile arrives, once."""
        far = relay(instances, "hub-2")
        with Proxy() as proxy:
            near = relay(instances, "hub", far.hub_addr)
            proxy.target = near.hub_addr
            alpha = instances.start(
                instances.settings(
                    "alpha",
                    client={"enabled": True, "hubs": [{"addr": proxy.address, **BOTH_WAYS}]},
                )
            )
            wait_connected(alpha)
            alpha.publish("all", TYPE, 0)
            wait_payloads(far, "all", 1)
            instances.stop(near)
            alpha.publish("all", TYPE, 1)
            far.publish("all", TYPE, 2)
            near = relay(instances, "hub", far.hub_addr)
            proxy.target = near.hub_addr
            assert_everybody_has([alpha, near, far], 3)

    def test_ephemeral_clients_at_both_ends(self, instances: Instances) -> None:
        far = relay(instances, "hub-2")
        near = relay(instances, "hub", far.hub_addr)
        wait_connected(near)
        seen = Recorder()
        listening = instances.ephemeral("beta", far)
        listening.subscribe("all", seen)
        listening.connect(10)
        instances.ephemeral("alpha", near).publish("all", TYPE, 1, correlation_id="order-7")
        assert seen.wait(1, 10) == [1]
        assert (seen.messages[0].origin, seen.messages[0].correlation_id) == ("alpha", "order-7")

    def test_dead_letters_stay(self, instances: Instances) -> None:
        """A relay sends no dead letters upwards; who asks a hub for them gets them."""
        far = relay(instances, "hub-2")
        settings = instances.hub_settings(
            "hub",
            EVERYBODY,
            client={"enabled": True, "hubs": [{"addr": far.hub_addr}]},
            subscribers={"max_retries": 0},
        )
        near = instances.start(settings)
        wait_connected(near)
        below = instances.client("alpha", near, subscribe=["all.dead-letter"], publish=["all"])

        def fail(message: object) -> None:
            raise ValueError("no")

        near.subscribe("all", "failing", fail, start="earliest")
        near.publish("all", TYPE, 1)
        wait_payloads(below, "all.dead-letter", 1)
        near.publish("all", TYPE, 2)
        wait_payloads(far, "all", 2)
        assert payloads(far, "all.dead-letter") == []


# --- in a ring


@pytest.fixture
def ring(instances: Instances) -> Iterator[list[Messenger]]:
    """Three hubs, each a client of the next one."""
    names = ("hub", "hub-2", "hub-3")
    with ExitStack() as stack:
        # The certificates are for the host alone, so that a proxy may stand in for its port.
        proxies = [stack.enter_context(Proxy()) for _ in names]
        hubs = [
            relay(instances, name, proxies[(number + 1) % 3].address)
            for number, name in enumerate(names)
        ]
        for proxy, hub in zip(proxies, hubs, strict=True):
            proxy.target = hub.hub_addr
        for hub in hubs:
            wait_connected(hub)
        yield hubs


class TestInARing:
    def test_everything_arrives_once(self, ring: list[Messenger]) -> None:
        """Both ways round it comes to each, who stores it once; nothing goes on for ever."""
        for start, hub in enumerate(ring):
            for number in range(start, 90, 3):
                hub.publish("all", TYPE, number)
        assert_everybody_has(ring, 90)
        for hub in ring:
            assert all(len(route) <= 3 for route in routes(hub).values())

    def test_it_comes_to_rest(self, ring: list[Messenger]) -> None:
        """A record is sent on each connection once at most in each direction."""
        ring[0].publish("all", TYPE, 0)
        assert_everybody_has(ring, 1)
        sent = sum(
            sender.done.sent
            for hub in ring
            for sender in federation_of(hub)._instance._senders.values()
        )
        # From the first one to both others, and at most from each of those to the other.
        assert 2 <= sent <= 4

    def test_with_clients(self, instances: Instances, ring: list[Messenger]) -> None:
        clients = [
            leaf(instances, name, hub)
            for name, hub in zip(("alpha", "beta", "gamma"), ring, strict=True)
        ]
        for start, client in enumerate(clients):
            client.publish_batch("all", [(TYPE, number) for number in range(start, 60, 3)])
        assert_everybody_has([*ring, *clients], 60)

    def test_with_a_broken_connection(self, instances: Instances) -> None:
        """What cannot go one way goes the other one; when it is mended, nothing comes twice."""
        with Proxy() as mended, Proxy() as second_way, Proxy() as third_way:
            first = relay(instances, "hub", mended.address)
            second = relay(instances, "hub-2", third_way.address)
            third = relay(instances, "hub-3", second_way.address)
            second_way.target, third_way.target = first.hub_addr, third.hub_addr
            ring = [first, second, third]
            for hub in (second, third):
                wait_connected(hub)
            first.publish("all", TYPE, 0)
            wait_payloads(second, "all", 1)
            assert routes(second) == {0: ["hub-3", "hub-2"]}
            mended.target = second.hub_addr
            wait_connected(first)
            first.publish("all", TYPE, 1)
            assert_everybody_has(ring, 2)


# --- two paths


class TestTwoPaths:
    def test_a_client_of_two_hubs_of_one_hub(self, instances: Instances) -> None:
        """Each record reaches the top through both, and is stored there once."""
        top = relay(instances, "hub-3")
        left = relay(instances, "hub", top.hub_addr)
        right = relay(instances, "hub-2", top.hub_addr)
        alpha = leaf(instances, "alpha", left, right)
        for messenger in (left, right):
            wait_connected(messenger)
        for number in range(0, 100, 2):
            alpha.publish("all", TYPE, number)
            top.publish("all", TYPE, number + 1)
        assert_everybody_has([alpha, left, right, top], 100)

    @pytest.fixture
    def two_peers(self, instances: Instances) -> tuple[FaultyFs, Messenger, list[PeerByHand]]:
        fs = FaultyFs()
        settings = instances.hub_settings(storage={"sync_policy": "always"})
        hub = instances.start(settings, fs=fs)
        peers = [PeerByHand(instances, name, hub.hub_addr) for name in ("alpha", "beta")]
        for peer in peers:
            peer.greet()
        # The channel is there, and its window filled.
        peers[0].send(made(0, channel="all", id="zero"))
        peers[0].acknowledged()
        return fs, hub, peers

    def test_a_copy_waits_for_the_first(
        self, two_peers: tuple[FaultyFs, Messenger, list[PeerByHand]]
    ) -> None:
        """What another connection is still writing is acknowledged when it is on the disk."""
        fs, hub, (first, second) = two_peers
        with fs.hold("fdatasync", "channels/all") as held:
            first.send(made(1, channel="all", id="one"))
            held.wait_entered()
            second.send(made(1, channel="all", id="one"))
            with pytest.raises(AssertionError, match="nothing came"):
                second.read(timeout=0.2)
        assert [first.acknowledged(), second.acknowledged()] == ["one", "one"]
        assert payloads(hub, "all") == [0, 1]
        for peer in (first, second):
            peer.drop()

    def test_a_copy_takes_the_place_of_one_that_failed(
        self, two_peers: tuple[FaultyFs, Messenger, list[PeerByHand]]
    ) -> None:
        """If the first one cannot be written, its id does not count as seen."""
        fs, hub, (first, second) = two_peers
        fault = fs.fail("write", errno.EIO, path_contains="channels/all")
        first.send(made(1, channel="all", id="one"))
        assert first.closed().code == 1011
        assert fault.hits == 1
        second.send(made(1, channel="all", id="one"))
        assert second.acknowledged() == "one"
        assert payloads(hub, "all") == [0, 1]
        second.drop()

    def test_two_that_hold_what_the_other_one_has(
        self, two_peers: tuple[FaultyFs, Messenger, list[PeerByHand]]
    ) -> None:
        """The same records in opposite order, many times at once: nobody waits for ever."""
        _, hub, (first, second) = two_peers
        batch = [made(number, channel=f"c{number % 3}") for number in range(60)]

        def send(peer: PeerByHand, records: list[bytes]) -> None:
            for start in range(0, 60, 20):
                peer.send(*records[start : start + 20])
            for start in range(0, 60, 20):
                assert peer.acknowledged() == ids(records)[start + 19]

        sending = [gevent.spawn(send, first, batch), gevent.spawn(send, second, batch[::-1])]
        gevent.joinall(sending, timeout=20, raise_error=True)
        stored = [number for channel in range(3) for number in payloads(hub, f"c{channel}")]
        assert sorted(stored) == list(range(60))
        for peer in (first, second):
            peer.drop()

    def test_a_batch_of_which_a_part_was_written(self, instances: Instances) -> None:
        """One channel's log fails, another's does not: the rest comes again, and nothing twice."""
        fs = FaultyFs()
        hub = instances.start(instances.hub_settings(), fs=fs)
        batch = [made(f"{channel}{n}", channel=channel) for n in range(5) for channel in "ab"]
        fs.fail("write", errno.EIO, path_contains="channels/b")
        peer = PeerByHand(instances, "alpha", hub.hub_addr)
        peer.greet()
        peer.send(*batch)
        assert peer.closed().code == 1011
        assert payloads(hub, "a") == [f"a{n}" for n in range(5)]
        peer = PeerByHand(instances, "alpha", hub.hub_addr)
        peer.greet()
        peer.send(*batch)
        assert peer.acknowledged() == ids(batch)[-1]
        for channel in "ab":
            assert payloads(hub, channel) == [f"{channel}{n}" for n in range(5)]
        peer.drop()


# --- what counts as seen


class TestSeen:
    @pytest.fixture
    def hub(self, instances: Instances) -> Messenger:
        return instances.hub(hub={"deny_by_default": False})

    @pytest.fixture
    def peer(self, instances: Instances, hub: Messenger) -> Iterator[PeerByHand]:
        peer = PeerByHand(instances, "alpha", hub.hub_addr)
        peer.greet()
        yield peer
        peer.drop()

    def test_what_was_published_here(self, hub: Messenger, peer: PeerByHand) -> None:
        """An id of its own that comes back with another origin, through v0.11.0 say."""
        message_id = hub.publish("all", TYPE, 1)
        peer.send(made("copy", channel="all", id=message_id))
        assert peer.acknowledged() == message_id
        assert payloads(hub, "all") == [1]

    def test_what_another_process_has_appended(
        self, instances: Instances, hub: Messenger, peer: PeerByHand
    ) -> None:
        """The window follows the log, whoever writes it."""
        other = instances.start(instances.settings("hub"))
        message_id = other.publish("all", TYPE, 1)
        peer.send(made("copy", channel="all", id=message_id))
        assert peer.acknowledged() == message_id
        message_id = other.publish("all", TYPE, 2)
        peer.send(made("copy", channel="all", id=message_id))
        assert peer.acknowledged() == message_id
        assert payloads(hub, "all") == [1, 2]

    def test_the_same_id_in_two_channels(self, hub: Messenger, peer: PeerByHand) -> None:
        """Each channel has a window of its own."""
        peer.send(made(1, channel="a", id="same"), made(2, channel="b", id="same"))
        assert peer.acknowledged() == "same"
        assert (payloads(hub, "a"), payloads(hub, "b")) == ([1], [2])

    def test_a_loop_does_not_count(
        self, instances: Instances, hub: Messenger, peer: PeerByHand
    ) -> None:
        """A record that names this instance is dropped and noted; its id is free for others."""
        for fields in ({"origin": "hub"}, {"route": ["hub", "alpha"]}):
            peer.send(made("loop", channel="all", id="one", **fields))
            assert peer.acknowledged() == "one"
        wait_until(lambda: len(audit(hub, "loop_dropped")) == 2)
        event = audit(hub, "loop_dropped")[0]
        assert (event["message_id"], event["channel"], event["peer"]) == ("one", "all", "alpha")
        peer.send(made("real", channel="all", id="one"))
        assert peer.acknowledged() == "one"
        assert payloads(hub, "all") == ["real"]

    def test_policy_comes_before_loops(self, instances: Instances) -> None:
        """What a peer may not send at all is told as that."""
        hub = instances.hub(peers={"alpha": {"publish": ["up"]}})
        peer = PeerByHand(instances, "alpha", hub.hub_addr)
        peer.greet()
        peer.send(made("loop", channel="all", id="one", origin="hub"))
        assert peer.acknowledged() == "one"
        assert wait_audit(hub, "policy_violation")["message_id"] == "one"
        assert audit(hub, "loop_dropped") == []
        peer.drop()

    def test_records_without_an_id(self, hub: Messenger, peer: PeerByHand) -> None:
        """They cannot be told apart, and are all stored."""
        peer.send(made(1, channel="all", id=""), made(2, channel="all", id=""))
        assert peer.acknowledged() == ""
        assert payloads(hub, "all") == [1, 2]

    def test_what_stands_in_the_log_already(self, instances: Instances, hub: Messenger) -> None:
        """Of whatever origin: lines of v0.11.0 as well as those written here."""
        append(hub, "all", [made(1, channel="all", id="old")])
        peer = PeerByHand(instances, "beta", hub.hub_addr)
        peer.greet()
        peer.send(made(1, channel="all", id="old"), made(2, channel="all", id="new"))
        assert peer.acknowledged() == "new"
        assert payloads(hub, "all") == [1, 2]
        peer.drop()


# --- the window itself

LIMIT = 1 << 20


class TestWindow:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return tmp_path / "channels" / "all"

    @pytest.fixture
    def windows(self) -> Iterator[list[Dedup]]:
        """Whatever is put in here is closed."""
        made: list[Dedup] = []
        yield made
        for each in made:
            each.close()

    def window(self, windows: list[Dedup], directory: Path, size: int = 100) -> Window:
        windows.append(Dedup(FileSystem(), size, LIMIT))
        window = windows[-1].window(str(directory))
        window.refresh()
        return window

    def write(self, directory: Path, start: int, *names: str) -> int:
        """Write a segment with these ids; return its end."""
        data = b"".join(made(id=name, channel="all") + b"\n" for name in names)
        write_segment(directory.parents[1], "all", start, data)
        return start + len(data)

    def seen(self, window: Window, *names: str) -> list[str]:
        return [name for name in names if window.contains(name)]

    def test_is_filled_from_the_log(self, windows: list[Dedup], directory: Path) -> None:
        """From all its segments, damaged lines and all."""
        end = self.write(directory, 0, "a", "b")
        with open(directory / f"{0:020}.jsonl", "ab") as segment:
            segment.write(b"damaged\n")
        self.write(directory, end + 8, "c", "d")
        window = self.window(windows, directory)
        assert self.seen(window, "a", "b", "c", "d", "e") == ["a", "b", "c", "d"]

    def test_of_an_empty_channel(self, windows: list[Dedup], directory: Path) -> None:
        """It knows nothing, and is filled once there is something."""
        directory.mkdir(parents=True)
        window = self.window(windows, directory)
        assert self.seen(window, "a") == []
        self.write(directory, 0, "a")
        window.refresh()
        assert self.seen(window, "a") == ["a"]

    def test_holds_so_many(self, windows: list[Dedup], directory: Path) -> None:
        """The last ones of the log."""
        self.write(directory, 0, *"abcdef")
        window = self.window(windows, directory, size=3)
        assert (self.seen(window, *"abcdef"), len(window._ids)) == (["d", "e", "f"], 3)

    def test_forgets_the_least_recently_used(self, windows: list[Dedup], directory: Path) -> None:
        """One that was asked for counts as used."""
        end = self.write(directory, 0, *"abc")
        window = self.window(windows, directory, size=3)
        assert window.contains("a")
        self.write(directory, end, "d")
        window.refresh()
        assert self.seen(window, *"abcd") == ["a", "c", "d"]

    def test_reads_no_more_than_the_tail(
        self, windows: list[Dedup], directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long the log is; a line in whose middle that begins is left out."""
        end = self.write(directory, 0, *"abcd")
        size = end // 4
        self.write(directory, end, *"efgh")
        monkeypatch.setattr("keyop.dedup.TAIL_BYTES", 5 * size + size // 2)
        window = self.window(windows, directory)
        found = self.seen(window, *"abcdefgh")
        assert found[-5:] == ["d", "e", "f", "g", "h"]
        assert "b" not in found

    def test_follows_the_log(self, windows: list[Dedup], directory: Path) -> None:
        """Into segments that come, also behind a gap."""
        end = self.write(directory, 0, "a")
        window = self.window(windows, directory)
        end = self.write(directory, end, "b")
        window.refresh()
        assert self.seen(window, "a", "b") == ["a", "b"]
        self.write(directory, end + 1000, "c")
        window._looked_around = 0.0  # which it does every second
        window.refresh()
        assert self.seen(window, "a", "b", "c") == ["a", "b", "c"]

    def test_of_size_0(self, windows: list[Dedup], directory: Path) -> None:
        self.write(directory, 0, "a")
        window = self.window(windows, directory, size=0)
        assert (self.seen(window, "a"), len(window._ids)) == ([], 0)

    def test_a_claim(self, windows: list[Dedup], directory: Path) -> None:
        """Who comes second waits for the outcome, and then knows or has the id."""
        self.write(directory, 0, "a")
        window = self.window(windows, directory)
        with ExitStack() as claims:
            assert not window.claim("a", None, claims)
            assert window.claim("b", None, claims)
            with ExitStack() as others:
                waiting = gevent.spawn(window.claim, "b", None, others)
                gevent.sleep(0)
                assert not waiting.ready()
                claims.close()  # not written
                assert waiting.get(timeout=10)
        assert window.pending == {}

    def test_one_that_is_in_doubt(self, windows: list[Dedup], directory: Path) -> None:
        """What may not be on the disk is not taken for seen, until it is written again."""
        end = self.write(directory, 0, "a")
        window = self.window(windows, directory)
        window.doubt(["a"])
        assert not window.contains("a")
        again = self.write(directory, end, "a")
        window.refresh()
        window.wrote(["a"], again - end, again)
        assert window.contains("a")

    def test_many_channels(self, windows: list[Dedup], tmp_path: Path) -> None:
        """In all, ids of eight full windows are kept; a window that went is filled again."""
        names = [f"c{number}" for number in range(12)]
        for name in names:
            data = b"".join(made(id=f"{name}-{n}", channel=name) + b"\n" for n in range(10))
            write_segment(tmp_path, name, 0, data)
        windows.append(Dedup(FileSystem(), 10, LIMIT))
        dedup = windows[-1]
        for name in names:
            dedup.window(str(tmp_path / "channels" / name)).refresh()
        held = sum(len(window._ids) for window in dedup._windows.values())
        assert 10 * 7 <= held <= 10 * 9
        assert held == dedup._held.count
        first = dedup.window(str(tmp_path / "channels" / "c0"))
        assert not first.contains("c0-9")
        first.refresh()
        assert first.contains("c0-9")
