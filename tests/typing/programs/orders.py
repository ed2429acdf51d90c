"""Publishing and subscribing: payloads with a type, every way to give a handler."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import keyop
from keyop import Message, Messenger, RetryLater, Subscription


@dataclass
class Order:
    """What is published."""

    id: int
    total: float


def total_of(data: dict[str, float]) -> float:
    """Make of the decoded JSON what handlers want."""
    return data["total"]


messenger = Messenger(data_dir=Path("keyop-data"))
messenger.register_payload_type("com.example.Order", Order)
messenger.register_payload_type("com.example.Count", int)
messenger.register_payload_type("com.example.Total", total_of)


@messenger.subscribe("orders", "billing", start="earliest", max_age=timedelta(days=1))
def bill(message: Message[Order]) -> None:
    """A handler of orders: the payload has their type."""
    total: float = message.payload.total
    if total < 0:
        raise RetryLater(0.5) if message.attempt < 3 else RetryLater()
    moment: datetime = message.timestamp.astimezone(timezone.utc)
    texts: list[str] = [message.id, message.channel, message.origin, message.payload_type]
    texts += [message.correlation_id, message.service_name]
    logging.info("%s %s %d", texts, moment, message.offset)


@messenger.subscribe("orders", "alarm", max_retries=0, retry_backoff=(0.1, 5))
def look(message: Message) -> bool:
    """A handler of whatever comes; what it returns does not matter."""
    letter: dict[str, object] = message.payload
    return bool(letter["last_error"])


class Counter:
    """A handler that is an object."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, message: Message[Any]) -> None:
        """Count a message."""
        self.count += 1

    def count_order(self, message: Message[Order]) -> None:
        """Count what is ordered."""
        self.count += message.payload.id


def order_id(message: Message[Order]) -> int:
    """Keep messages of one order in order."""
    return message.payload.id


counter = Counter()
seen: list[Message] = []
subscription: Subscription = messenger.subscribe("orders", "counter", counter, concurrency=4)
messenger.subscribe("orders", "sum", counter.count_order, concurrency=2, key=order_id)
messenger.subscribe("orders", "kept", seen.append, standby=True, start=0)
messenger.subscribe("orders", "printed", print, start=datetime.now(timezone.utc), max_age=60)
messenger.subscribe("orders", "totals", lambda m: m.payload.total, key=lambda m: m.payload.id)

subscription.seek("latest")
subscription.seek(subscription.offset - subscription.lag_bytes)
subscription.stop()
name: str = subscription.channel + subscription.subscriber_id

# A decorated handler is what it was.
bill(Message("1", "orders", "me", "t", Order(1, 2.5), datetime.now(timezone.utc)))
handled: bool = look(seen[0])
documentation: str | None = bill.__doc__

with keyop.correlation_id("order-7"), keyop.service_name("shop"):
    message_id: str = messenger.publish(
        "orders",
        "com.example.Order",
        Order(7, 12.5),
        correlation_id="c",
        service_name="s",
        message_id="mine",
        timeout=2,
    )
ids: list[str] = messenger.publish_batch("orders", [("t", {"id": 1}), ("t", Order(8, 1))])
ids += messenger.publish_batch("orders", (("t", n) for n in range(3)), timeout=1.5)
messenger.unsubscribe("orders", "kept")
messenger.close(timeout=3)
