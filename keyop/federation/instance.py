"""This instance, as hub and clients share it: its log, its dedup window, what it tells peers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic

import gevent

from keyop.audit import AuditEvent, AuditLog
from keyop.clock import Clock
from keyop.config import Config
from keyop.deadletter import dead_letter_writer, max_dead_letter_bytes
from keyop.dedup import Dedup
from keyop.envelope import CRC_SUFFIX_BYTES, EnvelopeWriter
from keyop.errand import Crew
from keyop.errors import SubscriberInUseError
from keyop.federation.feed import Feed
from keyop.federation.link import Link
from keyop.federation.pages import Pages
from keyop.federation.receiver import Receiver
from keyop.federation.selection import Addressee, Selection
from keyop.federation.sender import Sender
from keyop.names import is_dead_letter
from keyop.storage.claim import Claim
from keyop.storage.cursor import Cursor
from keyop.storage.log import Log
from keyop.storage.position import resolve
from keyop.storage.store import Store
from keyop.storage.warm import WarmCursors
from keyop.wire.frames import LENGTH_BYTES
from keyop.wire.messages import FEATURES, Hello
from keyop.wire.session import Session

logger = logging.getLogger(__name__)

# A batch of a peer whose own limit is higher than ours still fits.
_LEAST_BATCH_BYTES = 1 << 20
_TICK_S = 1.0


@dataclass(frozen=True)
class Peer:
    """The other side of a link.

    Attributes:
        name: its instance name, as its certificate says.
        address: where it is, ``host:port``.
        max_record_bytes: the largest record that it takes.
    """

    name: str
    address: str
    max_record_bytes: int


class Instance:
    """What every link of this instance is made of. One greenlet keeps all of them alive."""

    def __init__(
        self,
        name: str,
        config: Config,
        store: Store,
        dedup: Dedup,
        writer: EnvelopeWriter,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self.name = name
        self.config = config
        self.store = store
        self.audit = audit
        self._dedup = dedup
        self._writer = writer
        self._clock = clock
        self.max_record_bytes = config.storage.max_record_bytes
        self.links: set[Link] = set()
        self._crew = Crew()
        self._warm = WarmCursors()
        self._pages = Pages()
        self._senders: dict[Link, Sender] = {}
        self._keeper: gevent.Greenlet[[], None] | None = None

    # -- life

    def start(self) -> None:
        """Begin to keep links alive."""
        self.audit.start()
        self._keeper = gevent.spawn(self._keep)
        self._keeper.name = "keyop-federation-keeper"

    def stop(self, timeout_s: float) -> None:
        """End, after the last link has; the audit log is written out within the timeout."""
        if self._keeper is not None:
            self._keeper.kill()
        self._crew.close()
        self.audit.close(timeout_s)

    def _keep(self) -> None:
        while True:
            self._clock.sleep(_TICK_S)
            # Nothing may end this unseen: it is what notices that a peer is gone.
            try:
                self._look_after_links()
            except Exception:
                logger.exception("looking after connections failed")

    def _look_after_links(self) -> None:
        self._warm.cool()
        self._pages.clear()
        grown = self._grown_channels()
        for link in list(self.links):
            link.tick()
            if link in self._senders:
                self._senders[link].look_around(grown)

    def _grown_channels(self) -> set[str]:
        """Return the channels in which others may have appended without a wake-up."""
        channels = {channel for sender in self._senders.values() for channel in sender.feeds}
        return {channel for channel in channels if self.store.log(channel).has_grown()}

    # -- what is said and taken

    def hello(self, role: str, subscribe: Iterable[str] = (), ephemeral: bool = False) -> Hello:
        """Return this instance's hello."""
        # What is stored of a record has a newline, a checksum and the own name besides.
        added = len("\n") + CRC_SUFFIX_BYTES - len("}") + len(f',"route":["{self.name}"]')
        limit = max(1, self.max_record_bytes - added)
        return Hello(self.name, role, tuple(subscribe), ephemeral, FEATURES, limit)

    def session(self, hello: Hello) -> Session:
        """Return a new session for a connection that has just opened."""
        return Session(hello, self.config.federation.window_batches, monotonic())

    @property
    def max_message_bytes(self) -> int:
        """The largest message that a peer may send."""
        batch = max(self.config.federation.max_batch_bytes, _LEAST_BATCH_BYTES)
        return self.max_record_bytes + batch + LENGTH_BYTES

    # -- the two directions of a link

    def receiver(self, link: Link, peer: Peer, accepts: Callable[[str], bool]) -> Receiver:
        """Return what stores the records of a peer, in the channels that it accepts."""

        def forwarded(channel: str, ids: list[str]) -> None:
            self.audit.record_forwarded("inbound", peer.name, channel, ids)

        def stored(channel: str, start: int, end: int) -> None:
            if link in self._senders:
                self._senders[link].pass_over(channel, start, end)

        return Receiver(
            peer.name,
            self.name,
            self.store,
            self._dedup,
            self.max_record_bytes,
            accepts,
            self.recorder(peer, "inbound"),
            forwarded,
            link.acknowledge,
            link.failed,
            self._crew,
            stored,
        )

    def sender(self, link: Link, peer: Peer) -> Sender:
        """Return what sends to a peer; it has no feeds yet."""
        sender = self._senders[link] = Sender(
            peer.name,
            link.session,
            link.connection.send_binary,
            self.config.federation.max_batch_bytes,
            link.failed,
            self._crew,
        )
        return sender

    def forget(self, link: Link) -> None:
        """A link has ended."""
        self.links.discard(link)
        self._senders.pop(link, None)

    def recorder(self, peer: Peer, direction: str) -> Callable[..., None]:
        """Return what takes notes of a peer for the audit log."""

        def note(
            event: AuditEvent, channel: str = "", message_id: str = "", detail: str = ""
        ) -> None:
            self.audit.record(
                event,
                message_id=message_id,
                channel=channel,
                direction=direction,
                peer=peer.name,
                peer_addr=peer.address,
                detail=detail,
            )

        return note

    def feed(
        self,
        channel: str,
        peer: Peer,
        position_id: str | None,
        start: Callable[[Log], int],
        sender: Sender,
    ) -> Feed:
        """Return a feed of a channel, its position claimed.

        Args:
            position_id: under which the position is kept; None keeps none.
            start: the offset to begin at where there is no position.

        Raises:
            SubscriberInUseError: another process sends this channel to the peer.
            KeyopError: the channel or the position cannot be used.
        """
        log = self.store.log(channel)
        log.open()
        claim = None
        if position_id is None:
            position = log.end
        else:
            claim = Claim(self.store, log, position_id)
            found = claim.take(lambda: start(log))
            if found is None:
                raise SubscriberInUseError(
                    f"{position_id} of {channel} is held by another process, or a link that ends"
                )
            position = found
        self.store.watcher.watch(log.directory, log.readers)
        limit = self.max_record_bytes
        line_limit = max_dead_letter_bytes(limit) if is_dead_letter(channel) else limit
        note = self.recorder(peer, "outbound")
        # For a peer that keeps nothing, nothing is kept: who may only receive writes nothing here.
        dead_letters = None
        if position_id is not None:
            dead_letters = dead_letter_writer(
                self.store, channel, position_id, self._writer, self._clock
            )
        addressee = Addressee(peer.name, peer.max_record_bytes, position_id is not None)
        return Feed(
            log,
            Cursor(self.store.fs, log.directory, line_limit, is_active=log.active_since),
            self._warm,
            self._pages,
            claim,
            position,
            Selection(channel, addressee, dead_letters, note),
            note,
            sender.wake,
        )

    def end_of(self, log: Log) -> int:
        """Return the end of a log, on a record's boundary; blocks the thread."""
        return resolve(self.store.fs, log.directory, "latest", self.max_record_bytes)
