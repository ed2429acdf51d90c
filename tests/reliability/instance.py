"""A process with one instance of a federation: a hub, or a client of one.

Arguments: ``settings``, as in a configuration file; ``drop_after_s``, when a silent peer is given
up, if not after a minute; and, for one that publishes, ``by``, ``first``, the number that its
messages begin with, and ``allowed``, a file that says how many it may publish so far. Says
``listens {address}`` once it has begun, and the number of messages that it has published after
each time.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import gevent
from gevent.event import Event

from keyop import Config, Messenger
from keyop.wire import session

from .children import arguments, say
from .workload import CHANNEL, TYPE, payload

_LOOK_EVERY_S = 0.01
_LARGEST_BATCH = 40


def main() -> None:
    args = arguments()
    if args.get("drop_after_s"):
        session.PING_AFTER_S = args["drop_after_s"] / 4
        session.DROP_AFTER_S = args["drop_after_s"]
    told = Event()
    signals = gevent.signal_handler(signal.SIGTERM, told.set)
    messenger = Messenger(Config.from_dict(args["settings"]))
    messenger.start()
    say("listens", messenger.hub_addr)
    publishing = None
    if args.get("allowed"):
        publishing = gevent.spawn(
            publish, messenger, args["by"], args["first"], Path(args["allowed"])
        )
    told.wait()
    if publishing is not None:
        publishing.kill()
    messenger.close()
    signals.cancel()


def publish(messenger: Messenger, by: str, first: int, allowed: Path) -> None:
    """Publish up to the number that the file allows, one by one and in batches."""
    rng = Random(f"{by} {first}")
    done = first
    while True:
        upto = int(allowed.read_text())
        if done >= upto:
            gevent.sleep(_LOOK_EVERY_S)
            continue
        size = min(rng.choice((1, 1, rng.randint(2, _LARGEST_BATCH))), upto - done)
        numbers = range(done, done + size)
        messenger.publish_batch(CHANNEL, [(TYPE, payload(by, n)) for n in numbers])
        done += size
        say(done)


def allow(path: Path, count: int) -> None:
    """Let the instance that reads this file publish so many messages in all."""
    new = path.with_suffix(".new")
    new.write_text(str(count))
    os.replace(new, path)


if __name__ == "__main__":
    main()
