"""A messenger with the page, in a process of its own: ``python -m tests.web.server``.

``orders`` has 250 messages, of which ``billing`` gave up on four; a second time it takes them.
With ``--load``, ``metrics`` gets one every 20 ms, which ``archive`` does not keep up with, a
visitor is connected, and a hub is missing. It ends when its standard input does.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import Any

import gevent
from gevent import pywsgi
from gevent.fileobject import FileObject

from keyop import Config, EphemeralMessenger, Message, Messenger
from keyop.web import app

ORDERS = 250
FAILING = (40, 80, 120, 160)
# Nothing of this may act on the page: markup, what turns the direction of text, control characters.
HOSTILE = "<img src=x onerror=alert(1)> \u202egnp.exe \u0007"
# More digits than a number of the browser has.
EXACT = 12345678901234567890


def configuration(options: argparse.Namespace) -> Config:
    """Return one without TLS: nobody but this process connects."""
    parts: dict[str, Any] = {"name": "here", "storage": {"data_dir": options.data_dir}}
    if options.load:
        allowed = [{"name": "visitor"}]
        parts["hub"] = {"enabled": True, "listen_addr": "127.0.0.1:0", "allowed_peers": allowed}
        # Nobody listens on the first port.
        parts["client"] = {"enabled": True, "hubs": [{"addr": "127.0.0.1:1", "name": "central"}]}
    return Config.from_dict(parts)


def fill(messenger: Messenger) -> None:
    """Publish the orders."""
    for number in range(ORDERS):
        payload: dict[str, Any] = {"id": number, "customer": {"name": f"customer {number % 7}"}}
        if number in FAILING:
            payload["fails"] = True
        if number == ORDERS - 1:
            payload |= {"note": HOSTILE, "exact": EXACT}
        messenger.publish("orders", "com.example.Order", payload)


def subscribe(messenger: Messenger) -> None:
    """Start billing, which does not take everything at once."""
    failed = set()

    def bill(message: Message) -> None:
        if message.payload.get("fails") and message.id not in failed:
            failed.add(message.id)
            raise ValueError("no such customer")

    messenger.subscribe("orders", "billing", bill, start="earliest", max_retries=0)


def keep_busy(messenger: Messenger) -> None:
    """Publish for ever."""
    number = 0
    while True:
        messenger.publish("metrics", "com.example.Load", {"number": number})
        number += 1
        gevent.sleep(0.02)


def archive(message: Message) -> None:
    """Take longer than there is time."""
    gevent.sleep(0.05)


def below(prefix: str, application: Any) -> Any:
    """Return the application, to be found below a path."""

    def shifted(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if not path.startswith(prefix):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"outside"]
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = prefix, path.removeprefix(prefix)
        return application(environ, start_response)

    return shifted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir")
    parser.add_argument("port", type=int)
    parser.add_argument("--token", default="")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--load", action="store_true")
    options = parser.parse_args()
    is_new = not os.path.exists(options.data_dir)
    with ExitStack() as ending:
        messenger = ending.enter_context(Messenger(configuration(options)))
        if is_new:
            fill(messenger)
        subscribe(messenger)
        if options.load:
            load = gevent.spawn(keep_busy, messenger)
            ending.callback(load.kill)
            messenger.subscribe("metrics", "archive", archive)
            visitor = EphemeralMessenger(messenger.hub_addr, instance_name="visitor")
            ending.callback(visitor.close)
            visitor.connect(timeout=20)
        application = below(options.prefix, app(messenger, token=options.token))
        server = pywsgi.WSGIServer(("127.0.0.1", options.port), application, log=None)
        server.start()
        ending.callback(server.stop, timeout=1)
        print("ready", flush=True)
        FileObject(sys.stdin.buffer).read()


if __name__ == "__main__":
    main()
