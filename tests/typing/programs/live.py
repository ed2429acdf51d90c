"""A client without a data directory, and what logs and tests have."""

import logging
import sys

from keyop import (
    ConnectionLostError,
    EphemeralClosedError,
    EphemeralMessenger,
    HandshakeRejectedError,
    KeyopError,
    Message,
    Messenger,
    TLSConfig,
)
from keyop.logs import (
    ContextFilter,
    JSONFormatter,
    LogHandler,
    RepeatFilter,
    TextFormatter,
    escape_control,
)
from keyop.testing import drain


def stop(error: KeyopError) -> None:
    """Be told that it is over."""
    print(escape_control(str(error)))


def show(message: Message[dict[str, int]]) -> None:
    """Show a payload."""
    print(message.payload["id"] + 1)


client: EphemeralMessenger = EphemeralMessenger(
    "hub:7740",
    instance_name="me",
    tls={"cert": "c.crt", "key": "c.key", "ca": "ca.crt"},
    subscribe=["orders"],
    auto_reconnect=True,
    reconnect_base_ms=100,
    reconnect_max_ms=1000,
    reconnect_jitter=0,
    max_batch_bytes=1000,
    write_queue_size=10,
    on_fatal=stop,
)
with EphemeralMessenger("hub:7740", tls=TLSConfig(), on_fatal=print) as other:
    other.register_payload_type("t", dict)
    other.subscribe("orders", show)
    other.subscribe("bills", lambda message: print(message.payload))
try:
    client.connect(timeout=1)
    sent: str = client.publish("orders", "t", [1], correlation_id="c", service_name="s", timeout=1)
except (HandshakeRejectedError, ConnectionLostError, EphemeralClosedError, TimeoutError):
    client.close()

log = logging.getLogger("keyop")
log.addHandler(LogHandler(sys.stderr, as_json=True, limit=3, interval_s=10))
handler = logging.StreamHandler()
handler.setFormatter(JSONFormatter() if sys.stderr.isatty() else TextFormatter("%(message)s"))
handler.addFilter(ContextFilter())
handler.addFilter(RepeatFilter(3, 60.0, tell=handler.handle))
log.addHandler(handler)


def test_billing(messenger: Messenger) -> None:
    """A test of a program's, with the fixture that keyop brings."""
    seen: list[Message[int]] = []
    messenger.subscribe("orders", "billing", seen.append)
    messenger.publish("orders", "t", 7)
    drain(messenger, timeout=1)
    assert [message.payload for message in seen] == [7]
