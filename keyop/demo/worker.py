"""The processes of the demo: ``python -m keyop.demo.worker`` publish or subscribe.

They end when their stdin does, so that none outlives the demo.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from gevent.os import tp_read

from keyop.demo.source import as_line, as_payload
from keyop.envelope import Message
from keyop.messenger import Messenger

CHANNEL = "demo"
PAYLOAD_TYPE = "keyop.demo.Line"
# What is published is on the disk only now and then, so as many lines as this go in one write.
_BATCH = 16


def publish(data_dir: str, source: str, half: int) -> None:
    """Publish a file's lines; pause behind ``half`` of them until told to go on."""
    taken = 0.0
    count = 0
    with Messenger(data_dir=data_dir) as messenger, open(source, "rb") as lines:
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


def subscribe(data_dir: str, subscriber_id: str, target: str) -> None:
    """Append every line that is delivered to a file, with its number, until stdin ends."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(message: Message) -> None:
        os.write(fd, b"%d " % message.payload["line"] + as_line(message.payload))

    with Messenger(data_dir=data_dir) as messenger:
        messenger.subscribe(CHANNEL, subscriber_id, write, start="earliest")
        say("ready")
        tp_read(0, 1)
    os.close(fd)


def say(text: str) -> None:
    """Tell the demo something, at once."""
    os.write(1, text.encode() + b"\n")


def main(role: str, *args: str) -> None:
    """Run one of the two roles."""
    # There are no classes to register for payloads, so that is nothing to warn of.
    logging.getLogger("keyop.payloads").setLevel(logging.ERROR)
    if role == "publish":
        data_dir, source, half = args
        publish(data_dir, source, int(half))
    else:
        subscribe(*args)


if __name__ == "__main__":
    main(*sys.argv[1:])
