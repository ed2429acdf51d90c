"""Positions of peers that stay away for too long: they would hold their channels for ever."""

from __future__ import annotations

import logging
from functools import partial

from keyop.clock import Clock
from keyop.names import PEER_PREFIX
from keyop.storage.claim import remove_position
from keyop.storage.offsets import list_ids, offset_path
from keyop.storage.store import Store

logger = logging.getLogger(__name__)


def forget_stale_positions(store: Store, ttl_s: float, clock: Clock) -> list[str]:
    """Delete the positions of peers that were last here longer ago than ``ttl_s`` seconds.

    A peer that is connected holds the lease of its positions, so it is never among them, however
    long its channels were silent.

    Returns:
        ``{channel}/{peer}`` of each that is gone.

    Raises:
        OSError: a directory cannot be read.
        KeyopError: a channel cannot be locked.
    """
    oldest_s = clock.time_ns() / 1e9 - ttl_s
    forgotten = []
    for channel in store.channels():
        directory = store.offsets_directory(channel)
        for position_id in list_ids(store.fs, directory):
            if not position_id.startswith(PEER_PREFIX) or not _is_stale(
                store, offset_path(directory, position_id), oldest_s
            ):
                continue
            forget = partial(_forget, store, channel, position_id, oldest_s)
            if store.log(channel).run_locked(forget, lambda _: None):
                peer = position_id.removeprefix(PEER_PREFIX)
                forgotten.append(f"{channel}/{peer}")
                logger.warning(
                    "%s: the position of %s is forgotten, which was last here over %g s ago",
                    channel,
                    peer,
                    ttl_s,
                )
    return forgotten


def _is_stale(store: Store, path: str, oldest_s: float) -> bool:
    try:
        return store.fs.stat(path).st_mtime < oldest_s
    except FileNotFoundError:
        return False


def _forget(store: Store, channel: str, position_id: str, oldest_s: float) -> bool:
    """Under the channel's lock: delete the position, unless its peer was here just now."""
    path = offset_path(store.offsets_directory(channel), position_id)
    return _is_stale(store, path, oldest_s) and remove_position(store, channel, position_id)
