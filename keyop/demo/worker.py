"""The processes of the demo: ``python -m keyop.demo.worker`` publish, subscribe or hub.

They end when their stdin does, so that none outlives the demo.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import orjson
from gevent.os import tp_read

from keyop.config import Config
from keyop.demo.source import as_line, as_payload
from keyop.envelope import Message
from keyop.messenger import Messenger

CHANNEL = "demo"
PAYLOAD_TYPE = "keyop.demo.Line"
# What is published is on the disk only now and then, so as many lines as this go in one write.
_BATCH = 16


def publish(config: Config, source: str, half: int) -> None:
    """Publish a file's lines; pause behind ``half`` of them until told to go on."""
    taken = 0.0
    count = 0
    with Messenger(config) as messenger, open(source, "rb") as lines:
        batch: list[tuple[str, object]] = []
        begun = time.perf_counter()

        def send() -> None:
            nonlocal count
            messenger.publish_batch(CHANNEL, batch)
            count += len(batch)
            batch.clear()

        for number, line in enumerate(lines):
            if number == half:
                send()
                taken += time.perf_counter() - begun
                say("half")
                if not tp_read(0, 1):
                    return
                begun = time.perf_counter()
            batch.append((PAYLOAD_TYPE, as_payload(number, line)))
            if len(batch) == _BATCH:
                send()
        send()
        taken += time.perf_counter() - begun
        say(f"published {count} {taken:.6f}")
        tp_read(0, 1)


def subscribe(config: Config, subscriber_id: str, target: str) -> None:
    """Append every line that is delivered to a file, with its number, until stdin ends."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(message: Message) -> None:
        os.write(fd, b"%d " % message.payload["line"] + as_line(message.payload))

    with Messenger(config) as messenger:
        messenger.subscribe(CHANNEL, subscriber_id, write, start="earliest")
        say("ready")
        tp_read(0, 1)
    os.close(fd)


def say(text: str) -> None:
    """Tell the demo something, at once."""
    os.write(1, text.encode() + b"\n")


def hub(config: Config) -> None:
    """Be a hub until stdin ends."""
    with Messenger(config) as messenger:
        say(f"listening {messenger.hub_addr}")
        tp_read(0, 1)


def main(role: str, config: str, *args: str) -> None:
    """Run one of the roles."""
    # There are no classes to register for payloads, so that is nothing to warn of; nor of
    # connections that the demo cuts itself.
    logging.getLogger("keyop.payloads").setLevel(logging.ERROR)
    logging.getLogger("keyop.federation").setLevel(logging.ERROR)
    made = Config.from_dict(orjson.loads(config))
    if role == "publish":
        source, half = args
        publish(made, source, int(half))
    elif role == "subscribe":
        subscribe(made, *args)
    else:
        hub(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
