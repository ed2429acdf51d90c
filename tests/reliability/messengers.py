"""Messengers of the scorecard: small segments, one of the sync policies, quick retries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keyop import Config, Messenger
from keyop.clock import SYSTEM_CLOCK, Clock
from keyop.fs import SYSTEM_FS, FileSystem

from .workload import CHANNEL

POLICIES = ("none", "periodic", "always")
FAST_BACKOFF = (0.001, 0.002)


def make(
    data_dir: Path | str,
    policy: str = "periodic",
    *,
    fs: FileSystem = SYSTEM_FS,
    clock: Clock = SYSTEM_CLOCK,
    name: str = "reliability",
    **storage: Any,
) -> Messenger:
    """Return a messenger that is not started; ``storage`` overrides keys of that section."""
    storage = {
        "data_dir": str(data_dir),
        "sync_policy": policy,
        "sync_interval_ms": 5,
        "max_segment_bytes": 4096,
        **storage,
    }
    return Messenger(Config.from_dict({"name": name, "storage": storage}), fs=fs, clock=clock)


def keep_everything(messenger: Messenger) -> None:
    """Have a position at the beginning of the channel, so that no sweep deletes anything."""
    messenger.subscribe(CHANNEL, "archive", lambda message: None, start="earliest").stop()
