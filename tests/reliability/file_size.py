"""A process whose files may not grow, now and then: ``RLIMIT_FSIZE``, as ``ulimit -f`` sets it.

The kernel then writes what fits and refuses the rest, so that records are torn on a real disk.

Arguments: ``data_dir``, ``policy``, ``seed``, ``rounds``. Says ``written {n}`` and ``refused {n}``
for what ``publish`` said of each message.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from keyop import LogFailedError, Messenger, StorageError

from .children import arguments, say
from .messengers import make
from .workload import CHANNEL, TYPE, payload

_BY = "limited"
_MAX_BETWEEN = 5
# Room for no byte, up to room for a few records.
_MAX_ROOM = 1500
_MAX_WRITTEN = 20


def main() -> None:
    args = arguments()
    data_dir, rng = Path(args["data_dir"]), Random(args["seed"])
    with make(data_dir, args["policy"], max_segment_bytes=16 << 10) as messenger:
        numbers = iter(range(1 << 30))
        for _ in range(args["rounds"]):
            written, refused = [], []
            for _ in range(rng.randint(1, _MAX_BETWEEN)):
                written.append(publish(messenger, next(numbers)))
            active = max((data_dir / "channels" / CHANNEL).glob("*.jsonl"))
            with _limited_files(active.stat().st_size + rng.randint(0, _MAX_ROOM)):
                # Unless a new segment is begun before this one has grown so far.
                while not refused and len(written) < _MAX_WRITTEN:
                    number = next(numbers)
                    try:
                        written.append(publish(messenger, number))
                    except LogFailedError:
                        raise
                    except StorageError:
                        refused.append(number)
            # Only now: what this goes to is a file as well.
            for number in written:
                say("written", number)
            say("refused", *refused)


def publish(messenger: Messenger, number: int) -> int:
    messenger.publish(CHANNEL, TYPE, payload(_BY, number))
    return number


@contextmanager
def _limited_files(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


if __name__ == "__main__":
    main()
