"""The facade: wires the parts together and owns the order in which they start and end."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from itertools import islice
from types import FrameType, TracebackType
from typing import Any, overload

import gevent
from gevent.event import Event
from gevent.monkey import get_original

from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.config import Config, StorageConfig
from keyop.context import current_correlation_id, current_service_name
from keyop.deadletter import DeadLetterWriter, max_dead_letter_bytes
from keyop.dedup import Dedup
from keyop.delivery import Delivery, Handler, RetryPolicy
from keyop.envelope import EnvelopeWriter, Message, check_message_id
from keyop.errors import (
    ConfigError,
    ForkedError,
    MessengerClosedError,
    PublishTimeoutError,
    RecordTooLargeError,
    StorageError,
    SubscriberInUseError,
    WrongThreadError,
)
from keyop.forks import drop_in_children, keep_in_children
from keyop.fs import SYSTEM_FS, FileSystem
from keyop.names import (
    check_channel,
    check_publish_channel,
    check_subscriber_id,
    dead_letter_channel,
    is_dead_letter,
)
from keyop.pace import SHORTEST_SLEEP_S, SLICE_S
from keyop.payloads import PayloadRegistry, encode_payload
from keyop.stats import Stats, collect_stats
from keyop.storage.locks import FileLock
from keyop.storage.log import Log, LogOptions
from keyop.storage.offsets import lease_path, offset_path
from keyop.storage.position import Position, check_position
from keyop.storage.retention import Plan, RetentionOptions
from keyop.storage.store import Store, StoreOptions
from keyop.subscriber import Subscription, SubscriptionOptions

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
# Of the time to close, so much is kept for flushing after handlers were killed.
_FLUSH_SHARE = 0.2
_MAX_FLUSH_S = 1.0
# Encoding so many records takes a fraction of a slice.
_BATCH_PART = 128
# A dead letter is tried for so long at once, so that a stop is noticed on a full disk.
_DEAD_LETTER_TRY_S = 0.5

# Under monkey patching, threading's own would tell greenlets apart, not threads.
_get_ident = get_original("_thread", "get_ident")
_monotonic = time.monotonic


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
        self._publish_logs: dict[str, Log] = {}
        self._max_record_bytes = config.storage.max_record_bytes
        self._subscriptions: dict[tuple[str, str], list[Subscription]] = {}
        self._closer: gevent.Greenlet[..., None] | None = None
        self._in_slice = False
        self._slice_end = 0.0

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
        return ""

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
        if config.hub.enabled or config.client.enabled:
            raise ConfigError("hub.enabled and client.enabled: this version does not federate yet")
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
        self._writer = EnvelopeWriter(self.instance_name, self._clock)
        self._dedup = Dedup(self._fs, config.dedup.seen_id_lru_size, self._max_record_bytes)
        self._run_callback = gevent.get_hub().loop.run_callback
        self._pid = os.getpid()
        self._thread = _get_ident()
        self._state = "running"
        self._ready = True
        drop_in_children(self)

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
                f"{os.getpid()}: locks and greenlets do not survive a fork. Make a Messenger in "
                "each process, or do not use it before the fork"
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
        return [each for group in self._subscriptions.values() for each in group]

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
        Calling it twice is safe. From inside a handler, or from a signal that interrupted
        keyop's own code, it returns at once and goes on in a greenlet of its own.
        """
        if self._state in ("new", "forked", "closed"):
            self._state = "closed" if self._state == "new" else self._state
            return
        if _get_ident() != self._thread:
            self._check_usable()
        timeout_s = CLOSE_TIMEOUT_S if timeout is None else max(0.0, timeout)
        if self._closer is None:
            self._ready = False
            self._state = "closing"
            for subscription in self.subscriptions():
                subscription.request_stop()
            self._closer = gevent.spawn(self._close, _monotonic() + timeout_s)
            self._closer.name = "keyop-closer"
        hub = gevent.get_hub()
        if gevent.getcurrent() is not hub and not _called_from_inside():
            self._closer.join()

    def _close(self, deadline: float) -> None:
        store = self._store
        assert store is not None
        flush_s = min(_MAX_FLUSH_S, _FLUSH_SHARE * max(0.0, deadline - _monotonic()))
        try:
            store.closing.waits.set()
            for subscription in self.subscriptions():
                if not subscription.join(max(0.0, deadline - flush_s - _monotonic())):
                    logger.warning(
                        "%s: the handler of %s did not end in time; its message comes again",
                        subscription.channel,
                        subscription.subscriber_id,
                    )
                    subscription.kill(timeout=flush_s / 4)
            store.close(deadline)
        finally:
            keep_in_children(self)
            self._publish_logs.clear()
            self._state = "closed"

    def drop_in_child(self) -> None:
        """In a forked child: refuse work, and end the greenlets that came along."""
        self._ready = False
        self._state = "forked"
        self._publish_logs.clear()
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
        try:
            log = self._publish_logs[channel]
        except (KeyError, TypeError):
            log = self._publish_log(channel)
        deadline = None if timeout is None else _deadline(timeout)
        data = encode_payload(payload)
        if correlation_id is None:
            correlation_id = current_correlation_id.get()
        if service_name is None:
            service_name = current_service_name.get()
        new_id, line = self._writer.encode(
            channel, payload_type, data, correlation_id, service_name, message_id
        )
        if len(line) > self._max_record_bytes:
            raise self._too_large(channel, line)
        try:
            if message_id is None:
                log.append(line, deadline)
            else:
                self._append_once(log, [(message_id, line)], deadline)
        except (PublishTimeoutError, MessengerClosedError) as error:
            error.written = bool(error.written)
            raise
        if not self._in_slice or _monotonic() > self._slice_end:
            self._give_way()
        return new_id

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
        log = self._publish_logs.get(channel) or self._publish_log(channel)
        deadline = None if timeout is None else _deadline(timeout)
        stem = None if message_id is None else check_message_id(message_id)
        if correlation_id is None:
            correlation_id = current_correlation_id.get()
        if service_name is None:
            service_name = current_service_name.get()
        ids: list[str] = []
        lines: list[bytes] = []
        pairs = iter(messages)
        # Long batches are encoded in parts, between which others may run.
        while part := [
            (payload_type, encode_payload(payload))
            for payload_type, payload in islice(pairs, _BATCH_PART)
        ]:
            if stem is None:
                new_ids, new_lines = self._writer.encode_batch(
                    channel, part, correlation_id, service_name
                )
                ids += new_ids
                lines += new_lines
            else:
                for payload_type, data in part:
                    own_id, line = self._writer.encode(
                        channel,
                        payload_type,
                        data,
                        correlation_id,
                        service_name,
                        f"{stem}-{len(ids)}",
                    )
                    ids.append(own_id)
                    lines.append(line)
            self._give_way()
        if not lines:
            return []
        longest = max(lines, key=len)
        if len(longest) > self._max_record_bytes:
            raise self._too_large(channel, longest, lines.index(longest))
        if stem is None:
            log.append(b"".join(lines), deadline)
        else:
            self._append_once(log, list(zip(ids, lines, strict=True)), deadline)
        self._give_way()
        return ids

    def _publish_log(self, channel: str) -> Log:
        store = self._check_usable()
        log = store.log(check_publish_channel(channel))
        if self._ready:
            self._publish_logs[channel] = log
        return log

    def _too_large(
        self, channel: str, line: bytes, index: int | None = None
    ) -> RecordTooLargeError:
        which = "the record" if index is None else f"record {index} of the batch"
        return RecordTooLargeError(
            f"{channel}: {which} has {len(line)} bytes; storage.max_record_bytes allows "
            f"{self._max_record_bytes}"
        )

    def _append_once(
        self, log: Log, records: list[tuple[str, bytes]], deadline: float | None
    ) -> None:
        """Append the records whose ids the channel has not seen."""
        log.open(deadline)
        window = self._dedup.window(log.directory)
        fresh: list[tuple[str, bytes]] = []
        with ExitStack() as claims:
            for message_id, line in records:
                if window.claim(message_id, deadline, claims):
                    fresh.append((message_id, line))
            if fresh:
                log.append(b"".join([line for _, line in fresh]), deadline)

    def _give_way(self) -> None:
        """Let others run if publishing has kept them from it for a whole slice of time.

        A slice begins with the first publish since the hub last ran, which a callback tells: so
        one publish now and then costs nothing.
        """
        if not self._in_slice:
            self._in_slice = True
            self._slice_end = _monotonic() + SLICE_S
            self._run_callback(self._end_slice)
        elif _monotonic() > self._slice_end:
            gevent.sleep(SHORTEST_SLEEP_S)

    def _end_slice(self) -> None:
        self._in_slice = False

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
    ) -> Callable[[Handler], Handler]: ...

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
    ) -> Subscription | Callable[[Handler], Handler]:
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
        not_before = _oldest(max_age)
        options = SubscriptionOptions(
            start=check_position(start),
            not_before=not_before,
            concurrency=_whole(concurrency, "concurrency", 1),
            key=key,
            standby=standby,
            flush_interval_s=self.config.storage.offset_flush_interval_ms / 1000,
            sync_each=self.config.storage.sync_policy == "always",
            max_line_bytes=self._max_line_bytes(channel),
            durable=self.config.storage.sync_policy != "none",
            lag_warning_bytes=self.config.storage.max_subscriber_lag_mb << 20,
        )
        policy = self._retry_policy(max_retries, retry_backoff)
        if key is not None and not callable(key):
            raise TypeError(f"key must be callable, not {type(key).__name__}")
        self._check_usable()
        if handler is None:

            def decorate(handler: Handler) -> Handler:
                self._subscribe(channel, subscriber_id, handler, policy, options)
                return handler

            return decorate
        return self._subscribe(channel, subscriber_id, handler, policy, options)

    def _retry_policy(
        self, max_retries: int | None, retry_backoff: tuple[float, float] | None
    ) -> RetryPolicy:
        defaults = self.config.subscribers
        if retry_backoff is None:
            base_s, max_s = (
                defaults.retry_backoff_base_ms / 1000,
                defaults.retry_backoff_max_ms / 1000,
            )
        else:
            base_s, max_s = retry_backoff
            if not 0 <= base_s <= max_s:
                raise ValueError(
                    f"retry_backoff={retry_backoff!r}: use (base_s, max_s), 0 ≤ base_s ≤ max_s"
                )
        retries = defaults.max_retries if max_retries is None else max_retries
        return RetryPolicy(_whole(retries, "max_retries", 0), base_s, max_s)

    def _max_line_bytes(self, channel: str) -> int:
        if is_dead_letter(channel):
            return max_dead_letter_bytes(self._max_record_bytes)
        return self._max_record_bytes

    def _subscribe(
        self,
        channel: str,
        subscriber_id: str,
        handler: Handler,
        policy: RetryPolicy,
        options: SubscriptionOptions,
    ) -> Subscription:
        store = self._check_usable()
        if self._state == "closing":
            raise MessengerClosedError("the messenger is closed")
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {type(handler).__name__}")
        group = self._subscriptions.setdefault((channel, subscriber_id), [])
        predecessor = None
        for each in list(group):
            if each.stopping and each.owns_current_greenlet():
                predecessor = each  # its handler, which called us, has to return first
            elif each.stopping:
                each.join()
        stopping = Event()
        subscription = Subscription(
            store,
            store.log(channel),
            Delivery(
                channel,
                subscriber_id,
                handler,
                self._registry,
                policy,
                self._dead_letter_writer(store, channel, subscriber_id),
                options.max_line_bytes,
                stopping,
            ),
            stopping,
            options,
            self._forget_subscription,
            predecessor,
        )
        group = self._subscriptions.setdefault((channel, subscriber_id), [])
        group.append(subscription)
        try:
            subscription.start()
        except BaseException:
            self._forget_subscription(subscription)
            raise
        return subscription

    def _forget_subscription(self, subscription: Subscription) -> None:
        name = (subscription.channel, subscription.subscriber_id)
        group = self._subscriptions.get(name, [])
        if subscription in group:
            group.remove(subscription)
        if not group:
            self._subscriptions.pop(name, None)

    def _dead_letter_writer(
        self, store: Store, channel: str, subscriber_id: str
    ) -> DeadLetterWriter | None:
        if is_dead_letter(channel):
            return None

        def append(line: bytes) -> None:
            try:
                store.log(dead_letter_channel(channel)).append(
                    line, _monotonic() + _DEAD_LETTER_TRY_S
                )
            except (PublishTimeoutError, MessengerClosedError) as error:
                if not error.written:
                    raise

        return DeadLetterWriter(channel, subscriber_id, self._writer, append, self._clock)

    def unsubscribe(self, channel: str, subscriber_id: str) -> None:
        """Stop a subscriber and forget its position; nothing to do if there is none.

        From inside the handler this returns at once, and the subscription ends when the handler
        does. Standbys of the id stop, with a warning.

        Raises:
            SubscriberInUseError: another process holds the id; nothing was changed.
            StorageError: the position cannot be deleted.
        """
        channel, subscriber_id = check_channel(channel), check_subscriber_id(subscriber_id)
        store = self._check_usable()
        held = False
        for each in list(self._subscriptions.get((channel, subscriber_id), [])):
            held = held or each.active
            if not each.active:
                logger.warning("%s: the standby of %s stops: unsubscribed", channel, subscriber_id)
            each.request_stop(forget=True)
            if not each.owns_current_greenlet():
                each.stop()
        if not held:
            self._forget_position(store, channel, subscriber_id)

    def _forget_position(self, store: Store, channel: str, subscriber_id: str) -> None:
        directory = store.offsets_directory(channel)
        lease = FileLock(self._fs, lease_path(directory, subscriber_id))
        try:
            if not self._fs.is_dir(directory):
                return
            if not lease.try_acquire():
                raise SubscriberInUseError(
                    f"{subscriber_id!r} of {channel!r} runs in another process; stop it there first"
                )
            try:
                self._fs.unlink(offset_path(directory, subscriber_id))
            except FileNotFoundError:
                pass
            finally:
                lease.release()
        except OSError as error:
            raise StorageError(
                f"the position of {subscriber_id!r} in {channel!r} cannot be deleted: {error}"
            ) from error

    def register_payload_type(self, payload_type: str, cls: Callable[..., Any]) -> None:
        """Deliver payloads of this type as instances of ``cls``.

        Args:
            cls: a dataclass, a ``msgspec.Struct``, a pydantic model, or any callable that takes
                the decoded JSON.

        Raises:
            PayloadTypeAlreadyRegisteredError: the type has a class already, which stays.
        """
        self._registry.register(payload_type, cls)

    # -- operating

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

    def stats(self) -> Stats:
        """Return what this messenger and its data directory hold and have done.

        Raises:
            StorageError: the data directory cannot be read.
        """
        return collect_stats(self._check_usable(), self.instance_name, self.subscriptions())


def _called_from_inside() -> bool:
    """Whether the caller runs on top of keyop's own code: a handler, or a signal that came then.

    Waiting would wait for the very frames below.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(("keyop.storage.", "keyop.delivery", "keyop.subscriber")):
            return True
        frame = frame.f_back
    return False


def _deadline(timeout_s: float) -> float:
    if not timeout_s >= 0:  # not a number is not either
        raise ValueError(f"timeout={timeout_s!r} must be seconds from 0 on")
    return _monotonic() + timeout_s


def _oldest(max_age: float | timedelta | None) -> datetime | None:
    if max_age is None:
        return None
    age = max_age if isinstance(max_age, timedelta) else timedelta(seconds=max_age)
    if age < timedelta(0):
        raise ValueError(f"max_age={max_age!r} must not be negative")
    return datetime.now(timezone.utc) - age


def _whole(value: int, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number from {least} on")
    return value
