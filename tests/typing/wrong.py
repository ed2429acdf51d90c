"""Wrong programs. Each marked line must be reported, under these names, by mypy and by pyright."""

# pyright: basic
# Its strict mode would report what follows from each as well.

from dataclasses import dataclass

import keyop
from keyop import Config, EphemeralMessenger, Message, Messenger, StorageConfig


@dataclass
class Order:
    """What is published."""

    id: int


def import_what_is_not_there() -> None:
    """Import a name that keyop does not have."""
    from keyop import NoSuchName  # error: attr-defined, reportAttributeAccessIssue

    print(NoSuchName)


messenger = Messenger(data_dir="keyop-data")
keyop.publish("orders", "t", 1)  # error: attr-defined, reportAttributeAccessIssue
Messenger(data_dir=7)  # error: arg-type, reportArgumentType
Messenger("keyop-data")  # error: arg-type, reportArgumentType
Config(storage={"data_dir": "d"})  # error: arg-type, reportArgumentType
StorageConfig(data_dir="d", max_file=1)  # error: call-arg, reportCallIssue
messenger.config.storage.data_dir = "d"  # error: misc, reportAttributeAccessIssue


@messenger.subscribe("orders", "billing")
def bill(message: Message[Order]) -> None:
    """A handler of orders."""
    print(message.payload.total)  # error: attr-defined, reportAttributeAccessIssue
    message.payload = Order(8)  # error: misc, reportAttributeAccessIssue


@messenger.subscribe("orders", "none")  # error: type-var, reportArgumentType
def takes_no_message() -> None:
    """No handler: it takes nothing."""


bill(Order(7))  # error: arg-type, reportArgumentType
messenger.subscribe("orders", "b", 7)  # error: call-overload, reportCallIssue
messenger.subscribe("orders", "b", bill, start=None)  # error: call-overload, reportCallIssue
messenger.subscribe("orders", "b", bill, retries=1)  # error: call-overload, reportCallIssue
messenger.subscribe("orders", "b", bill).stop("now")  # error: arg-type, reportArgumentType
messenger.publish("orders", Order(7))  # error: call-arg, reportCallIssue
messenger.publish("orders", "t", 1, timeout="1s")  # error: arg-type, reportArgumentType
print(messenger.publish("orders", "t", 1).id)  # error: attr-defined, reportAttributeAccessIssue
messenger.publish_batch("orders", [Order(7)])  # error: list-item, reportArgumentType
messenger.register_payload_type("t", "Order")  # error: arg-type, reportArgumentType
print(messenger.stats().channel)  # error: attr-defined, reportAttributeAccessIssue
messenger.register_payload_type("t", lambda: 7)  # error: arg-type, reportArgumentType
keyop.correlation_id(7)  # error: arg-type, reportArgumentType
EphemeralMessenger()  # error: call-arg, reportCallIssue
EphemeralMessenger("h:1", on_fatal=bill)  # error: arg-type, reportArgumentType
EphemeralMessenger("h:1").subscribe("orders")  # error: call-arg, reportCallIssue
