"""A process that publishes until it is killed, and says what was acknowledged.

Arguments: ``data_dir``, ``policy``, ``by``, ``greenlets``; ``segment_bytes``; ``count`` messages
for each greenlet, or null; ``kill_at`` and ``share`` as for ``KillingFs``, or null; ``batch``, the
greatest number of messages in one call. Says ``{by} {n} {id}`` for each that was acknowledged.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any

import gevent

from keyop import Messenger
from keyop.fs import SYSTEM_FS
from tests.fakes.killing import KillingFs

from .children import arguments
from .messengers import make
from .workload import CHANNEL, TYPE, payload


def main() -> None:
    args = arguments()
    fs = KillingFs(args["kill_at"], args["share"]) if args.get("kill_at") else SYSTEM_FS
    messenger = make(
        args["data_dir"],
        args["policy"],
        fs=fs,
        name=args["by"],
        max_segment_bytes=args["segment_bytes"],
    )
    writers = [
        gevent.spawn(publish, messenger, f"{args['by']}.{number}", args)
        for number in range(args["greenlets"])
    ]
    gevent.joinall(writers, raise_error=True)
    messenger.close()


def publish(messenger: Messenger, by: str, args: dict[str, Any]) -> None:
    """Publish one by one and in batches, as the writer's own random numbers have it."""
    rng = Random(by)
    count, largest = args.get("count"), args.get("batch", 40)
    done = 0
    while count is None or done < count:
        size = rng.choice((1, 1, 1, rng.randint(2, largest)))
        if count is not None:
            size = min(size, count - done)
        numbers = range(done, done + size)
        if size > 1:
            ids = messenger.publish_batch(CHANNEL, [(TYPE, payload(by, n)) for n in numbers])
        elif rng.random() < 0.2:
            ids = [messenger.publish(CHANNEL, TYPE, payload(by, done), message_id=f"{by}-{done}")]
        else:
            ids = [messenger.publish(CHANNEL, TYPE, payload(by, done))]
        lines = [f"{by} {n} {own_id}\n" for n, own_id in zip(numbers, ids, strict=True)]
        os.write(1, "".join(lines).encode())
        done += size


if __name__ == "__main__":
    main()
