"""A process that subscribes until it is killed, and says what its handlers were given.

Arguments: ``data_dir``, ``policy``; ``subscribers``, a mapping of ids to ``concurrency`` and
``fail_every``; ``standby``; ``kill_at`` and ``share`` as for
``KillingFs``, or null. Says ``? {id}`` once it has subscribed, ``! {id} {time}`` when it has got
hold of the id, by the clock that all processes share, and ``{id} {offset} {by} {n}`` for each
message whose handler is about to return.
"""

from __future__ import annotations

import signal
import time
from typing import Any

import gevent
from gevent.event import Event

from keyop import Message, Messenger
from keyop.fs import SYSTEM_FS
from tests.fakes.killing import KillingFs

from .children import arguments, say
from .messengers import FAST_BACKOFF, make
from .workload import CHANNEL, is_whole

_LOOK_EVERY_S = 0.005


def main() -> None:
    args = arguments()
    fs = KillingFs(args["kill_at"], args["share"]) if args.get("kill_at") else SYSTEM_FS
    told = Event()
    signals = gevent.signal_handler(signal.SIGTERM, told.set)
    messenger = make(args["data_dir"], args["policy"], fs=fs)
    subscribers = args["subscribers"]
    watchers = [
        gevent.spawn(subscribe, messenger, own_id, how, args.get("standby", False))
        for own_id, how in subscribers.items()
    ]
    told.wait()
    gevent.killall(watchers)
    messenger.close()
    signals.cancel()


def subscribe(messenger: Messenger, own_id: str, how: dict[str, Any], standby: bool) -> None:
    """Subscribe, and say so when the id is ours."""
    fail_every = how.get("fail_every", 0)

    def handle(message: Message) -> None:
        if not is_whole(message.payload):
            say("torn", own_id, message.offset)
            return
        by, n = message.payload["by"], message.payload["n"]
        if fail_every and n % fail_every == 0:
            raise ValueError("meant to fail")
        say(own_id, message.offset, by, n)

    subscription = messenger.subscribe(
        CHANNEL,
        own_id,
        handle,
        start="earliest",
        max_retries=1,
        retry_backoff=FAST_BACKOFF,
        concurrency=how.get("concurrency", 1),
        standby=standby,
    )
    say("?", own_id)
    while not subscription.active:
        gevent.sleep(_LOOK_EVERY_S)
    say("!", own_id, time.monotonic())


if __name__ == "__main__":
    main()
