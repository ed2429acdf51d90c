"""Figures of a messenger and its data directory, as one frozen value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import gevent

from keyop.errors import OffsetError, StorageError
from keyop.latency import MessengerLatencies, Percentiles
from keyop.names import HUB_PREFIX, PEER_PREFIX
from keyop.pace import Pace
from keyop.storage.log import Log
from keyop.storage.offsets import read_all
from keyop.storage.segment import list_segments
from keyop.storage.store import Store
from keyop.subscriber import Subscription


@dataclass(frozen=True)
class SubscriberStats:
    """One subscriber. ``running`` and what follows speak of this messenger alone.

    ``offset`` and ``lag_bytes`` are None where the position cannot be read. ``lag_messages`` is
    counted as far as a mebibyte goes, and ``lag_estimated`` beyond; ``oldest_pending_s`` is the age
    of the next message. Both are None where nobody has looked.
    """

    subscriber_id: str
    offset: int | None
    lag_bytes: int | None
    running: bool = False
    delivered: int = 0
    retries: int = 0
    dead_letters: int = 0
    corrupt: int = 0
    expired: int = 0
    dropped_bytes: int = 0
    lag_messages: int | None = None
    lag_estimated: bool = False
    oldest_pending_s: float | None = None


@dataclass(frozen=True)
class ChannelStats:
    """One channel: from ``start_offset`` to ``end_offset``, in ``segments`` files.

    ``published`` counts the messages, and ``waits`` how often one found no room on the disk and
    tried again, of this messenger alone.
    """

    channel: str
    start_offset: int
    end_offset: int
    disk_bytes: int
    segments: int
    failed: str | None
    subscribers: tuple[SubscriberStats, ...]
    published: int = 0
    waits: int = 0

    @property
    def retries(self) -> int:
        """How often handlers of this messenger were called again."""
        return sum(each.retries for each in self.subscribers)

    @property
    def dead_letters(self) -> int:
        """How many messages this messenger has given up."""
        return sum(each.dead_letters for each in self.subscribers)

    @property
    def dropped_bytes(self) -> int:
        """How much was dropped before subscribers of this messenger had read it."""
        return sum(each.dropped_bytes for each in self.subscribers)


@dataclass(frozen=True)
class LatencyStats:
    """What took how long in the last minute, in this messenger.

    ``publish`` until the record was written, or on the disk where the sync policy says so;
    ``consume`` from there, by the record's ``ts``, until its handler began; ``handler`` the
    handler itself.
    """

    publish: Percentiles
    consume: Percentiles
    handler: Percentiles


@dataclass(frozen=True)
class PeerStats:
    """Another instance, as this one sees it.

    Attributes:
        name: its instance name; of a hub that was never reached, its address.
        kind: ``client``, ``ephemeral`` or ``hub``.
        address: ``host:port``, where that is known.
        state: ``connected``, ``connecting``, ``waiting`` to be tried again, ``refused`` for good,
            or ``away``.
        detail: why it is not connected, for people.
        connected_s: for how long it has been connected.
        reconnects: how often a hub was connected again.
        failures: how often a hub could not be reached, or has gone, since this process began.
        position_id: under which id its positions are kept; None for an ephemeral client.
        backlog_bytes: what is in the log for it and has not arrived.
        round_trip_s: between sending a batch and hearing that it is written, smoothed.
        sent, received: records on this connection.
        dropped_bytes: what was dropped by retention or ``max_files`` before it was sent, on this
            connection.
        undeliverable: records that were too large for it, likewise; they became dead letters, but
            those of an ephemeral client.
    """

    name: str
    kind: str
    address: str
    state: str
    detail: str = ""
    connected_s: float | None = None
    position_id: str | None = None
    reconnects: int = 0
    failures: int = 0
    backlog_bytes: int = 0
    round_trip_s: float | None = None
    sent: int = 0
    received: int = 0
    dropped_bytes: int = 0
    undeliverable: int = 0


@dataclass(frozen=True)
class Stats:
    """A messenger's figures at one moment; all sizes in bytes."""

    instance_name: str
    data_dir: str
    channels: tuple[ChannelStats, ...]
    latency: LatencyStats
    peers: tuple[PeerStats, ...] = ()


def collect_stats(
    store: Store,
    instance_name: str,
    running: Iterable[Subscription],
    latencies: MessengerLatencies,
    peers: Iterable[PeerStats] = (),
) -> Stats:
    """Look at the directory and at the running subscriptions; others run meanwhile.

    Raises:
        StorageError: the data directory cannot be read.
    """
    by_name = {(each.channel, each.subscriber_id): each for each in running if each.active}
    logs = {log.channel: log for log in store.logs()}
    try:
        channels = tuple(_channels(store, by_name, logs))
    except OSError as error:
        raise StorageError(f"{store.data_dir} cannot be read: {error}") from error
    latency = LatencyStats(
        latencies.publish.percentiles(),
        latencies.consume.percentiles(),
        latencies.handler.percentiles(),
    )
    return Stats(
        instance_name, store.data_dir, channels, latency, tuple(_with_backlogs(channels, peers))
    )


def _with_backlogs(
    channels: Iterable[ChannelStats], peers: Iterable[PeerStats]
) -> Iterator[PeerStats]:
    """Yield the peers, and those that are away, with what the log has for them."""
    backlogs: Counter[str] = Counter()
    for channel in channels:
        for each in channel.subscribers:
            if each.subscriber_id.startswith((PEER_PREFIX, HUB_PREFIX)):
                backlogs[each.subscriber_id] += each.lag_bytes or 0
    for peer in peers:
        if peer.position_id is None:
            yield peer
        else:
            yield replace(peer, backlog_bytes=backlogs.pop(peer.position_id, 0))
    for own_id, backlog in sorted(backlogs.items()):
        if own_id.startswith(PEER_PREFIX):
            name = own_id.removeprefix(PEER_PREFIX)
            yield PeerStats(name, "client", "", "away", position_id=own_id, backlog_bytes=backlog)


def _channels(
    store: Store, running: dict[tuple[str, str], Subscription], logs: dict[str, Log]
) -> Iterator[ChannelStats]:
    """Yield all; others run meanwhile, unless it is the loop itself that asks."""
    pace = None if gevent.getcurrent() is gevent.get_hub() else Pace()
    for channel in store.channels():
        yield _channel(store, channel, running, logs.get(channel))
        if pace is not None:
            pace.step()


def _channel(
    store: Store,
    channel: str,
    running: dict[tuple[str, str], Subscription],
    log: Log | None,
) -> ChannelStats:
    segments = list_segments(store.fs, store.channel_directory(channel))
    end = segments[-1].end if segments else 0
    return ChannelStats(
        channel,
        segments[0].start if segments else 0,
        end,
        sum(segment.size for segment in segments),
        len(segments),
        None if log is None else log.failure,
        tuple(
            _subscriber(subscriber_id, offset, end, running.get((channel, subscriber_id)))
            for subscriber_id, offset in read_all(store.fs, store.offsets_directory(channel))
        ),
        0 if log is None else log.published,
        0 if log is None else log.waits,
    )


def _subscriber(
    subscriber_id: str, offset: int | OffsetError, end: int, running: Subscription | None
) -> SubscriberStats:
    if isinstance(offset, OffsetError):
        return SubscriberStats(subscriber_id, None, None)
    lag = max(0, end - offset)
    if running is None:
        return SubscriberStats(subscriber_id, offset, lag)
    done = running.counters
    return SubscriberStats(
        subscriber_id,
        running.offset,
        max(0, end - running.offset),
        True,
        done.delivered,
        done.retries,
        done.dead_letters,
        done.corrupt,
        done.expired,
        done.dropped_bytes,
    )
