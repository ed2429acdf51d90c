"""The facade: wires the parts together and owns the order in which they start and end."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import gevent

from keyop.brief import brief
from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.config import Config, StorageConfig
from keyop.dedup import Dedup
from keyop.delivery import Handler
from keyop.envelope import EnvelopeWriter, Message
from keyop.errors import (
    ConfigError,
    ForkedError,
    MessengerClosedError,
    WrongThreadError,
)
from keyop.follow import Follower
from keyop.forks import drop_in_children, get_ident, keep_in_children
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.latency import MessengerLatencies
from keyop.monitor import Watch, watch_hub
from keyop.names import (
    check_channel,
    check_subscriber_id,
)
from keyop.patches import warn_of_patches
from keyop.payloads import PayloadRegistry
from keyop.publisher import Publisher
from keyop.stats import Stats, collect_stats
from keyop.storage.environment import LogOptions
from keyop.storage.position import Position
from keyop.storage.retention import Plan, RetentionOptions
from keyop.storage.store import Store, StoreOptions
from keyop.subscriber import Subscription
from keyop.subscriptions import Subscriptions, check_options, check_policy, line_limit

if TYPE_CHECKING:
    from keyop.federation.federation import Federation
    from keyop.federation.reload import Reloader
    from keyop.web.listener import WebListener

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
# Of the time to close, so much is kept for flushing after handlers were killed.
_FLUSH_SHARE = 0.2
_MAX_FLUSH_S = 1.0
# How long peers are given to take their leave.
_GOODBYE_S = 3.0

_get_ident = get_ident
_monotonic = time.monotonic

_running: weakref.WeakSet[Messenger] = weakref.WeakSet()

# What is decorated stays what it was.
HandlerT = TypeVar("HandlerT", bound=Handler)


class Messenger:
    """Durable channels in one data directory.

    Constructing one does no I/O and starts nothing, so a module-level instance is safe under a
    pre-forking server. The first publish or subscribe starts it.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        fs: FileSystem = SYSTEM_FS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if config is None:
            if data_dir is None:
                raise ConfigError("give a Config, or data_dir=")
            config = Config(storage=StorageConfig(data_dir=os.fspath(data_dir)))
        elif not isinstance(config, Config):
            raise TypeError(f"give a Config, or data_dir=; {brief(config)} is neither")
        elif data_dir is not None:
            raise ConfigError("give a Config or data_dir=, not both")
        self.config = config
        self._fs = fs
        self._clock = clock
        self._registry = PayloadRegistry()
        self._name: str | None = None
        # One look tells the fast path that all is well; why not is found out on the slow one.
        self._ready = False
        self._state = "new"
        self._pid = 0
        self._thread = 0
        self._store: Store | None = None
        self._federation: Federation | None = None
        self._reloader: Reloader | None = None
        self._web: WebListener | None = None
        self._watch: Watch | None = None
        self._closer: gevent.Greenlet[..., None] | None = None
        self._delivers = True
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()

    # -- life

    @property
    def instance_name(self) -> str:
        """The name under which this instance publishes: ``origin`` of its records."""
        if self._name is None:
            self._name = self.config.instance_name()
        return self._name

    @property
    def hub_addr(self) -> str:
        """Where the hub listens, ``host:port``; empty without a hub."""
        return self._federation.hub_addr if self._federation is not None else ""

    def start(self) -> None:
        """Open the data directory and start the background greenlets; nothing to do if started.

        Raises:
            StorageError: the data directory cannot be used; starting may be tried again.
            MessengerClosedError: the messenger was closed, which is for good.
            ForkedError: it was started in another process.
        """
        if self._state == "new":
            self._start()
        else:
            self._check_usable()

    def _start(self) -> None:
        config = self.config
        storage = config.storage
        store = Store(
            os.path.abspath(storage.data_dir),
            StoreOptions(
                LogOptions(storage.segment_bytes, storage.sync_policy),
                storage.sync_interval_ms / 1000,
                RetentionOptions(
                    storage.max_files,
                    storage.retention,
                    config.federation.window_batches * config.federation.max_batch_bytes,
                ),
            ),
            self._fs,
            self._clock,
        )
        store.open()
        self._store = store
        writer = EnvelopeWriter(self.instance_name, self._clock)
        dedup = self._dedup = Dedup(
            self._fs, config.dedup.seen_id_lru_size, storage.max_record_bytes
        )
        latencies = self._latencies = MessengerLatencies(self._clock)
        self._publisher = Publisher(store, writer, dedup, storage.max_record_bytes, latencies)
        self._subscriptions = Subscriptions(store, self._registry, writer, self._clock, latencies)
        if config.hub.enabled or config.client.enabled:
            self._federate(store, dedup, writer)
        if config.web.listen_addr:
            self._serve_page(store)
        self._pid = os.getpid()
        self._thread = _get_ident()
        self._state = "running"
        self._ready = True
        drop_in_children(self)
        _running.add(self)
        warn_of_patches()
        self._watch = watch_hub()

    def _federate(self, store: Store, dedup: Dedup, writer: EnvelopeWriter) -> None:
        # TLS and WebSocket take a while to load, and many programs need neither.
        from keyop.federation.federation import Federation
        from keyop.federation.reload import Reloader

        federation = Federation(self.instance_name, self.config, store, dedup, writer, self._clock)
        try:
            federation.start()
        except BaseException:
            store.close(_monotonic() + _MAX_FLUSH_S)
            raise
        self._federation = federation
        self._reloader = Reloader(store.watcher, self.config, self.reload, federation.reload_failed)
        self._reloader.start()

    def _serve_page(self, store: Store) -> None:
        # As above: it takes a while to load.
        from keyop.web.listener import WebListener

        web = WebListener(self, self._fs)
        try:
            web.start()
        except BaseException:
            if self._reloader is not None:
                self._reloader.stop()
            if self._federation is not None:
                self._federation.stop(_monotonic() + _GOODBYE_S)
            store.close(_monotonic() + _MAX_FLUSH_S)
            raise
        self._web = web

    def _check_usable(self) -> Store:
        """Return the store if this call may use it.

        Raises:
            ForkedError, WrongThreadError, MessengerClosedError: why not.
        """
        if self._state == "new":
            self._start()
        if self._state == "forked":
            raise ForkedError(
                f"this messenger was started in process {self._pid}, and this is process "
                f"{os.getpid()}: locks and greenlets do not survive a fork. Construct it before "
                "the fork if you like, but publish and subscribe after it only, in each process "
                "(under gunicorn --preload: subscribe in the hook post_worker_init)"
            )
        if _get_ident() != self._thread and self._state != "closed":
            raise WrongThreadError(
                f"this messenger belongs to thread {self._thread} and was used from thread "
                f"{_get_ident()}; gevent objects work in one thread only, so hand the work over"
            )
        if self._state == "closed" or (self._state == "closing" and not self._called_by_handler()):
            raise MessengerClosedError("the messenger is closed")
        assert self._store is not None
        return self._store

    def _called_by_handler(self) -> bool:
        """Handlers that still run while the messenger closes may publish what they have to."""
        return any(each.owns_current_greenlet() for each in self.subscriptions())

    def subscriptions(self) -> list[Subscription]:
        """Return the subscriptions of this messenger that have not ended, standbys included."""
        return [] if self._store is None else self._subscriptions.all()

    @property
    def web_addr(self) -> str:
        """Where this process serves the page, ``host:port``; empty if it does not."""
        return self._web.address if self._web is not None else ""

    @property
    def closing(self) -> bool:
        """Whether the messenger is closed, or about to be."""
        return self._state in ("closing", "closed", "forked")

    def wait_closing(self, timeout: float | None = None) -> bool:
        """Wait until closing begins, for so many seconds at most; return whether it has.

        For greenlets that run beside a messenger, and end with it.
        """
        if self.closing or self._store is None:
            return self.closing
        return bool(self._store.closing.waits.wait(timeout)) or self.closing

    @property
    def certificate_expires(self) -> datetime | None:
        """When the own certificate ends, aware, in UTC; None without one in use."""
        return self._federation.certificate_expires if self._federation is not None else None

    def __enter__(self) -> Messenger:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, timeout: float | None = None) -> None:
        """Stop taking work, let running handlers finish, flush positions, close everything.

        It ends within the timeout (10 s unless given), whatever handlers and the disk do; a
        handler that takes longer is killed and its message comes again after the next start.
        Calling it twice is safe; the second call waits no longer than its own timeout. From
        inside a handler, or from a signal that interrupted keyop's own code, it returns at once
        and goes on in a greenlet of its own.
        """
        if self._state in ("new", "forked", "closed"):
            self._state = "closed" if self._state == "new" else self._state
            return
        if _get_ident() != self._thread:
            self._check_usable()
        timeout_s = CLOSE_TIMEOUT_S if timeout is None else max(0.0, timeout)
        first = self._closer is None
        if self._closer is None:
            self._ready = False
            self._state = "closing"
            for subscription in self.subscriptions():
                subscription.request_stop()
            self._closer = gevent.spawn(self._close, _monotonic() + timeout_s)
            self._closer.name = "keyop-closer"
        hub = gevent.get_hub()
        if gevent.getcurrent() is not hub and not _called_from_inside():
            self._closer.join(None if first else timeout_s)

    def _close(self, deadline: float) -> None:
        store = self._store
        assert store is not None
        flush_s = min(_MAX_FLUSH_S, _FLUSH_SHARE * max(0.0, deadline - _monotonic()))
        try:
            store.closing.waits.set()
            if self._web is not None:
                self._web.stop(min(_GOODBYE_S, max(0.0, deadline - _monotonic()) / 4))
            if self._reloader is not None:
                self._reloader.stop()
            if self._federation is not None:
                self._federation.stop(min(deadline - flush_s, _monotonic() + _GOODBYE_S))
            late = []
            for subscription in self.subscriptions():
                if not subscription.join(max(0.0, deadline - flush_s - _monotonic())):
                    logger.warning(
                        "%s: the handler of %s did not end in time; its message comes again",
                        subscription.channel,
                        subscription.subscriber_id,
                    )
                    late.append(gevent.spawn(subscription.kill, flush_s / 4))
            gevent.joinall(late)
            self._dedup.close()
            store.close(deadline)
        finally:
            keep_in_children(self)
            _running.discard(self)
            self._state = "closed"
            if self._watch is not None:
                self._watch.stop()

    def stop_delivering(self, timeout: float = 0.0) -> bool:
        """End every subscription, standby and follower for good; publishing goes on until close.

        For a process that is about to end and still has requests to answer: subscribers of other
        processes that stand by take over meanwhile.

        Args:
            timeout: how many seconds running handlers are waited for; none is killed.

        Returns:
            Whether all have ended.

        Raises:
            WrongThreadError, ForkedError: it is not this thread's, or this process's.
        """
        if self._state == "running":
            self._check_usable()
        self._delivers = False
        subscriptions = self.subscriptions()
        for subscription in subscriptions:
            subscription.request_stop()
        for follower in list(self._followers):
            follower.end()
        deadline = _monotonic() + timeout
        for subscription in subscriptions:
            left_s = deadline - _monotonic()
            if left_s > 0 and not subscription.owns_current_greenlet():
                subscription.join(left_s)
        return not any(each.running for each in subscriptions)

    def drop_in_child(self) -> None:
        """In a forked child: refuse work, and end the greenlets that came along."""
        self._ready = False
        self._state = "forked"
        _running.discard(self)
        for subscription in self.subscriptions():
            subscription.drop_in_child()
        if self._closer is not None:
            self._closer.kill(block=False)
        if self._store is not None:
            self._store.drop_in_child()

    # -- publishing

    def publish(
        self,
        channel: str,
        payload_type: str,
        payload: Any,
        *,
        correlation_id: str | None = None,
        service_name: str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Append one message to a channel; return its id once it is written per ``sync_policy``.

        Args:
            payload: what JSON can hold, a dataclass, a ``msgspec.Struct`` or a pydantic model.
            message_id: the caller's own id; one that the channel has seen lately is not written
                again, so that a publish may be retried.
            timeout: seconds for the whole call; without it, a full disk is waited for as long
                as it takes.

        Raises:
            PublishTimeoutError, MessengerClosedError: ``written`` tells whether the record is in
                the log.
            LogFailedError: a write or fsync failed; whether the record is in the log is unknown.
            KeyopError: any other means that nothing was written.
        """
        if not self._ready or _get_ident() != self._thread:
            self._check_usable()
        return self._publisher.publish(
            channel, payload_type, payload, correlation_id, service_name, message_id, timeout
        )

    def publish_batch(
        self,
        channel: str,
        messages: Iterable[tuple[str, Any]],
        *,
        correlation_id: str | None = None,
        service_name: str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        """Append ``(payload_type, payload)`` pairs with one write and one fsync; return the ids.

        All are checked before any is written. After an error or a crash a prefix of them, in
        order, may be in the log; ``written`` of a timeout counts it.

        Args:
            message_id: the stem of the caller's own ids, ``{message_id}-0`` and so on; those
                that the channel has seen lately are not written again.

        Raises:
            KeyopError: as for :meth:`publish`.
        """
        if not self._ready or _get_ident() != self._thread:
            self._check_usable()
        return self._publisher.publish_batch(
            channel, messages, correlation_id, service_name, message_id, timeout
        )

    # -- subscribing

    @overload
    def subscribe(
        self,
        channel: str,
        subscriber_id: str,
        handler: Handler,
        *,
        start: Position = ...,
        max_age: float | timedelta | None = ...,
        max_retries: int | None = ...,
        retry_backoff: tuple[float, float] | None = ...,
        concurrency: int = ...,
        key: Callable[[Message], object] | None = ...,
        standby: bool = ...,
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        channel: str,
        subscriber_id: str,
        handler: None = None,
        *,
        start: Position = ...,
        max_age: float | timedelta | None = ...,
        max_retries: int | None = ...,
        retry_backoff: tuple[float, float] | None = ...,
        concurrency: int = ...,
        key: Callable[[Message], object] | None = ...,
        standby: bool = ...,
    ) -> Callable[[HandlerT], HandlerT]: ...

    def subscribe(
        self,
        channel: str,
        subscriber_id: str,
        handler: Handler | None = None,
        *,
        start: Position = "latest",
        max_age: float | timedelta | None = None,
        max_retries: int | None = None,
        retry_backoff: tuple[float, float] | None = None,
        concurrency: int = 1,
        key: Callable[[Message], object] | None = None,
        standby: bool = False,
    ) -> Subscription | Callable[[HandlerT], HandlerT]:
        """Call ``handler(message)`` with every message of a channel, in log order.

        The position is stored under ``subscriber_id`` when this returns, and survives crashes.
        Returning from the handler commits. Raising retries with backoff, then moves the message
        to the dead-letter channel; raising ``RetryLater`` keeps it at the head. Without
        ``handler``, returns a decorator.

        Args:
            start: where an id without a position begins: ``"latest"``, ``"earliest"``, an aware
                ``datetime``, or an offset.
            max_age: seconds; older messages at the head are left out, once, at the start.
            max_retries: deliveries after the first; otherwise ``subscribers.max_retries``.
            retry_backoff: ``(base_s, max_s)`` in seconds; otherwise from the configuration.
            concurrency: how many handlers may run at once, none further than so many messages
                beyond the oldest uncommitted one.
            key: keeps messages with equal keys in order where ``concurrency`` is above 1.
            standby: if another subscription holds the id, wait and take over when it ends.

        Raises:
            SubscriberInUseError: another subscription holds the id, here or elsewhere.
            InvalidChannelNameError, InvalidSubscriberIdError, ValueError, TypeError: an argument
                is wrong; nothing was created.
            OffsetError: the stored position cannot be read.
            StorageError: the channel cannot be opened.
        """
        channel = check_channel(channel)
        subscriber_id = check_subscriber_id(subscriber_id)
        options = check_options(self.config, channel, start, max_age, concurrency, key, standby)
        policy = check_policy(self.config, max_retries, retry_backoff)
        self._check_usable()

        def subscribe(handler: Handler) -> Subscription:
            if not callable(handler):
                raise TypeError(f"the handler must be callable, not {type(handler).__name__}")
            self._check_usable()
            self._subscriptions.wait_for_stopping(channel, subscriber_id)
            self._check_usable()  # it may have been closed meanwhile
            self._check_delivers()
            return self._subscriptions.add(channel, subscriber_id, handler, policy, options)

        if handler is not None:
            return subscribe(handler)

        def decorate(handler: HandlerT) -> HandlerT:
            subscribe(handler)
            return handler

        return decorate

    def unsubscribe(self, channel: str, subscriber_id: str) -> None:
        """Stop a subscriber and forget its position; nothing to do if there is none.

        From inside the handler this returns at once, and the subscription ends when the handler
        does. Standbys of the id stop, with a warning.

        Raises:
            SubscriberInUseError: another process holds the id; nothing was changed.
            StorageError: the position cannot be deleted.
        """
        channel, subscriber_id = check_channel(channel), check_subscriber_id(subscriber_id)
        self._check_usable()
        self._subscriptions.remove(channel, subscriber_id)

    def register_payload_type(
        self, payload_type: str, cls: type[Any] | Callable[[Any], Any]
    ) -> None:
        """Deliver payloads of this type as instances of ``cls``.

        Args:
            cls: a dataclass, a ``msgspec.Struct``, a pydantic model, or any callable that takes
                the decoded JSON.

        Raises:
            PayloadTypeAlreadyRegisteredError: the type has a class already, which stays.
        """
        self._registry.register(payload_type, cls)

    # -- operating

    def reload(self, config: Config | None = None) -> None:
        """Go over to another configuration, as far as that is possible while running.

        Allowlists, channels of peers and hubs, and certificates apply at once, to live connections
        as well; everything else with the next start, which is logged. The files of a messenger
        with a hub or hubs are watched, so this is for configurations made in a program.

        Args:
            config: None reads the files again, in a moment; what becomes of it is logged.

        Raises:
            ConfigError: its certificates cannot be used; nothing was changed.
        """
        self._check_usable()
        if config is None:
            if self._reloader is not None:
                self._reloader.trigger()
            return
        for section in ("name", "storage", "subscribers", "federation", "dedup", "audit", "web"):
            if getattr(config, section) != getattr(self.config, section):
                logger.warning("%s: what was changed applies after the next start", section)
        if self._federation is not None:
            self._federation.apply(config)
        self.config = config
        if self._reloader is not None:
            self._reloader.follow(config)

    def reopen(self, channel: str) -> None:
        """Take records again in a channel whose log has failed, in a new segment.

        Raises:
            StorageError: the new segment cannot be made; the channel stays failed.
        """
        self._check_usable().log(check_channel(channel)).reopen()

    def sweep(self) -> dict[str, Plan]:
        """Delete now what the sweeper would delete later; return what went, by channel.

        Raises:
            StorageError: the data directory cannot be read.
        """
        return self._check_usable().sweep()

    def follow(self, channel: str, start: Position = "latest") -> Follower:
        """Return what reads along in a channel and keeps no position; it must be closed.

        Args:
            start: as for :meth:`subscribe`.

        Raises:
            InvalidChannelNameError, ValueError, TypeError: an argument is wrong.
            StorageError: the channel cannot be read.
        """
        store = self._check_usable()
        log = store.log(check_channel(channel))
        self._check_delivers()
        follower = Follower(store, log, line_limit(self.config, channel), start)
        self._followers.add(follower)
        return follower

    def _check_delivers(self) -> None:
        if self._state == "closing" or not self._delivers:
            raise MessengerClosedError("the messenger is closed, or about to be")

    def stats(self, *, pending: bool = True) -> Stats:
        """Return what this messenger and its data directory hold and have done.

        Args:
            pending: look into the channels how many messages subscribers have yet to read, and how
                old the next one is; up to a mebibyte of each is read.

        Raises:
            StorageError: the data directory cannot be read.
        """
        store = self._check_usable()
        peers = self._federation.stats() if self._federation is not None else ()
        found = collect_stats(
            store, self.instance_name, self.subscriptions(), self._latencies, peers
        )
        if not pending:
            return found
        # When it is first asked for: most programs never do.
        from keyop.inspection import DataDirectory
        from keyop.look.lag import with_pending

        directory = DataDirectory(store.data_dir, self._fs)
        now = datetime.fromtimestamp(self._clock.time_ns() / 1e9, timezone.utc)
        return with_pending(found, directory, self.config.storage.max_record_bytes, now)


def running_messengers() -> list[Messenger]:
    """Return the messengers of this process and thread that were started and are not closed."""
    return [each for each in _running if each._thread == _get_ident()]


@atexit.register
def _let_handlers_finish() -> None:
    """What is not closed when the program ends: let running handlers finish, save positions.

    No more than that: threads, which close() may need, cannot be started any more.
    """
    left = running_messengers()
    for messenger in left:
        messenger.stop_delivering()
    deadline = _monotonic() + CLOSE_TIMEOUT_S
    for messenger in left:
        messenger.stop_delivering(max(0.0, deadline - _monotonic()))


def _called_from_inside() -> bool:
    """Whether the caller runs on top of keyop's own code: a handler, or a signal that came then.

    Waiting would wait for the very frames below.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(("keyop.storage.", "keyop.delivery", "keyop.subscriber")):
            return True
        frame = frame.f_back
    return False
