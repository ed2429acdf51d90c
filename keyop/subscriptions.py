"""The subscriptions of one messenger: checking what is asked for, making them, ending them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial

from gevent.event import Event

from keyop.clock import Clock
from keyop.config import Config
from keyop.deadletter import dead_letter_writer, max_dead_letter_bytes
from keyop.delivery import Delivery, Handler, RetryPolicy
from keyop.envelope import EnvelopeWriter, Message
from keyop.errors import (
    StorageError,
    SubscriberInUseError,
)
from keyop.latency import MessengerLatencies
from keyop.names import is_dead_letter
from keyop.payloads import PayloadRegistry
from keyop.poller import Poller
from keyop.shared import SharedReads
from keyop.storage.claim import remove_position
from keyop.storage.position import Position, check_position
from keyop.storage.store import Store
from keyop.subscriber import Subscription, SubscriptionOptions

logger = logging.getLogger(__name__)


def check_options(
    config: Config,
    channel: str,
    start: Position,
    max_age: float | timedelta | None,
    concurrency: int,
    key: Callable[[Message], object] | None,
    standby: bool,
) -> SubscriptionOptions:
    """Return how a subscription starts and saves, from arguments of a user's.

    Raises:
        ValueError, TypeError: one of them makes no sense.
    """
    if key is not None and not callable(key):
        raise TypeError(f"key must be callable, not {type(key).__name__}")
    storage = config.storage
    return SubscriptionOptions(
        start=check_position(start),
        not_before=_oldest(max_age),
        concurrency=_whole(concurrency, "concurrency", 1),
        key=key,
        standby=standby,
        flush_interval_s=storage.offset_flush_interval_ms / 1000,
        sync_each=storage.sync_policy == "always",
        max_line_bytes=line_limit(config, channel),
        durable=storage.sync_policy != "none",
        lag_warning_bytes=storage.max_subscriber_lag_mb << 20,
    )


def line_limit(config: Config, channel: str) -> int:
    """Return how long a record of a channel may be, in bytes; a dead letter holds another one."""
    limit = config.storage.max_record_bytes
    return max_dead_letter_bytes(limit) if is_dead_letter(channel) else limit


def check_policy(
    config: Config, max_retries: int | None, retry_backoff: tuple[float, float] | None
) -> RetryPolicy:
    """Return how failures are retried; what is None is as configured.

    Raises:
        ValueError, TypeError: one of the arguments makes no sense.
    """
    defaults = config.subscribers
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


class Subscriptions:
    """All subscriptions of one messenger, standbys included, until they have ended."""

    def __init__(
        self,
        store: Store,
        registry: PayloadRegistry,
        writer: EnvelopeWriter,
        clock: Clock,
        latencies: MessengerLatencies,
    ) -> None:
        self._store = store
        self._registry = registry
        self._writer = writer
        self._clock = clock
        self._latencies = latencies
        self._shared = SharedReads()
        self._poller = Poller(self._shared.clear)
        self._by_name: dict[tuple[str, str], list[Subscription]] = {}

    def all(self) -> list[Subscription]:
        """Return those that have not ended."""
        return [each for group in self._by_name.values() for each in group]

    def wait_for_stopping(self, channel: str, subscriber_id: str) -> None:
        """Wait until those of this id have ended that were told to, but for the caller's own."""
        for each in list(self._by_name.get((channel, subscriber_id), [])):
            if each.stopping and not each.owns_current_greenlet():
                each.join()

    def add(
        self,
        channel: str,
        subscriber_id: str,
        handler: Handler,
        policy: RetryPolicy,
        options: SubscriptionOptions,
    ) -> Subscription:
        """Make a subscription and start it.

        Raises:
            SubscriberInUseError, OffsetError, StorageError: as ``Subscription.start``.
        """
        predecessor = None
        for each in self._by_name.get((channel, subscriber_id), []):
            if each.stopping and each.owns_current_greenlet():
                predecessor = each  # its handler, which called us, has to return first
        leaving = Event()
        subscription = Subscription(
            self._store,
            self._store.log(channel),
            Delivery(
                channel,
                subscriber_id,
                handler,
                self._registry,
                policy,
                dead_letter_writer(self._store, channel, subscriber_id, self._writer, self._clock),
                options.max_line_bytes,
                leaving,
                self._latencies,
            ),
            leaving,
            self._shared,
            self._poller,
            options,
            self._forget,
            predecessor,
        )
        group = self._by_name.setdefault((channel, subscriber_id), [])
        group.append(subscription)
        try:
            subscription.start()
        except BaseException:
            self._forget(subscription)
            raise
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        name = (subscription.channel, subscription.subscriber_id)
        group = self._by_name.get(name, [])
        if subscription in group:
            group.remove(subscription)
        if not group:
            self._by_name.pop(name, None)

    def remove(self, channel: str, subscriber_id: str) -> None:
        """Stop a subscriber and its standbys, and forget its position.

        Raises:
            SubscriberInUseError: another process holds the id; nothing was changed.
            StorageError: the position cannot be deleted.
        """
        group = list(self._by_name.get((channel, subscriber_id), []))
        if not any(each.active for each in group):  # before anything is stopped
            self._forget_position(channel, subscriber_id)
        for each in group:
            if not each.active:
                logger.warning("%s: the standby of %s stops: unsubscribed", channel, subscriber_id)
            each.request_stop(forget=True)
            if not each.owns_current_greenlet():
                each.stop()
        for each in group:
            if each.not_deleted is not None:
                raise _not_deleted(channel, subscriber_id, each.not_deleted)

    def _forget_position(self, channel: str, subscriber_id: str) -> None:
        fs = self._store.fs
        directory = self._store.offsets_directory(channel)
        try:
            if not fs.is_dir(directory):
                return
            log = self._store.log(channel)
            removed = log.run_locked(
                partial(remove_position, self._store, channel, subscriber_id), lambda _: None
            )
            if not removed:
                raise SubscriberInUseError(
                    f"{subscriber_id!r} of {channel!r} runs in another process; stop it there first"
                )
        except OSError as error:
            raise _not_deleted(channel, subscriber_id, error) from error


def _not_deleted(channel: str, subscriber_id: str, error: OSError) -> StorageError:
    return StorageError(
        f"the position of {subscriber_id!r} in {channel!r} cannot be deleted: {error}"
    )
