"""A web application for gunicorn whose subscribers say what they do; told by the environment.

``KEYOP_DATA_DIR`` is the data directory, ``KEYOP_SAID`` the file that gets a line
``begin|end {id} {pid} {n}`` each time. ``slow`` takes a while for a message, ``failing`` fails at
the first attempt and is in backoff then, ``parallel`` handles four at a time. ``POST /`` publishes
its body under the message id in the header ``X-Id``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import gevent

from keyop import Message

from .messengers import make
from .workload import CHANNEL, TYPE, is_whole

SLOW_S = 0.25
BACKOFF = (0.2, 0.2)
SUBSCRIBERS: dict[str, dict[str, Any]] = {"slow": {}, "failing": {}, "parallel": {"concurrency": 4}}

messenger = make(os.environ.get("KEYOP_DATA_DIR", "keyop-data"))


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Publish what was sent."""
    payload = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    messenger.publish(CHANNEL, TYPE, payload, message_id=environ["HTTP_X_ID"])
    start_response("200 OK", [("Content-Length", "0")])
    return []


def _handler(own_id: str, said: int) -> Callable[[Message], None]:
    def say(what: str, message: Message) -> None:
        what = what if is_whole(message.payload) else "torn"
        line = f"{what} {own_id} {os.getpid()} {message.payload['n']}\n"
        os.write(said, line.encode())

    def handle(message: Message) -> None:
        say("begin", message)
        if own_id == "failing" and message.attempt == 1:
            raise ValueError("meant to fail")
        gevent.sleep(SLOW_S)
        say("end", message)

    return handle


def subscribe() -> None:
    """Start the subscribers, or stand by; in each worker."""
    said = os.open(os.environ["KEYOP_SAID"], os.O_WRONLY | os.O_APPEND)
    for own_id, how in SUBSCRIBERS.items():
        messenger.subscribe(
            CHANNEL,
            own_id,
            _handler(own_id, said),
            start="earliest",
            max_retries=5,
            retry_backoff=BACKOFF,
            standby=True,
            **how,
        )
