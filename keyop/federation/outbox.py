"""Where a client's positions towards its hubs begin, are found under another name, and end.

A position is made when a client first starts with a hub in its configuration, and not when the hub
is first reached: what is published in between is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

import orjson

from keyop.config import ClientHub
from keyop.errors import KeyopError, StorageError
from keyop.federation.instance import Instance
from keyop.fs import FileSystem
from keyop.names import HUB_PREFIX, is_dead_letter
from keyop.storage.claim import Claim
from keyop.storage.locks import FileLock
from keyop.storage.log import Log
from keyop.storage.offsets import lease_path, list_ids, offset_path
from keyop.storage.store import Store

logger = logging.getLogger(__name__)

_MAX_BYTES = 16 << 20


def position_id(hub: ClientHub) -> str:
    """Return under which id positions towards this hub are kept."""
    return HUB_PREFIX + hub.offset_name


class Outbox:
    """The channels that go to one hub, and where each begins.

    A file in the data directory says which channels there were when the hub was first configured:
    of those, only what is published from then on is sent; of any other, everything.
    """

    def __init__(self, instance: Instance, hub: ClientHub) -> None:
        self._instance = instance
        self._store = instance.store
        self.hub = hub
        self._path = f"{self._store.data_dir}/.{position_id(hub)}.known"
        self._known: frozenset[str] = frozenset()
        # The channels that have a position, for all that this process knows.
        self._made: set[str] = set()

    def open(self) -> None:
        """Make the positions that are missing.

        Raises:
            StorageError: they cannot be read or made.
        """
        try:
            self._open()
        except OSError as error:
            raise StorageError(
                f"the positions towards {self.hub.offset_name} cannot be kept: "
                f"{error.filename or self._path}: {error.strerror}"
            ) from error

    def _open(self) -> None:
        store, durable = self._store, self._store.options.log.durable
        try:
            self._known = frozenset(orjson.loads(store.fs.read_file(self._path, _MAX_BYTES)))
        except FileNotFoundError:
            self._known = frozenset(store.channels())
            store.fs.replace_file(self._path, orjson.dumps(sorted(self._known)), durable)
        except (ValueError, TypeError):
            raise StorageError(
                f"{self._path} is damaged; delete it, and of channels without a position towards "
                f"{self.hub.offset_name} only what is published from now on is sent"
            ) from None
        for error in self.make_positions().values():
            raise error

    def make_positions(self) -> dict[str, KeyopError | OSError]:
        """Make those that are missing: what has none is deleted once everybody else has read it.

        Returns:
            Of each channel whose position cannot be made, why not.
        """
        failures: dict[str, KeyopError | OSError] = {}
        for channel in self.channels():
            if channel in self._made:
                continue
            try:
                log = self._store.log(channel)
                log.open()
                claim = Claim(self._store, log, position_id(self.hub))
                if claim.take(partial(self.start, log)) is not None:
                    claim.release()
                self._made.add(channel)
            except (KeyopError, OSError) as error:
                failures[channel] = error
        return failures

    def channels(self) -> list[str]:
        """Return the channels that there are and that go to the hub."""
        return [channel for channel in self._store.channels() if self.holds(channel)]

    def holds(self, channel: str) -> bool:
        """Tell whether a channel goes to the hub: one that is named, or any but dead letters."""
        if self.hub.publish:
            return channel in self.hub.publish
        return not is_dead_letter(channel)

    def start(self, log: Log) -> int:
        """Return where a channel without a position begins; blocks the thread."""
        return self._instance.end_of(log) if log.channel in self._known else 0


def settle_positions(instance: Instance, hubs: Iterable[ClientHub]) -> None:
    """Rename the positions of hubs that were given a name, remove those of hubs that have gone.

    Raises:
        StorageError: the directory cannot be read.
    """
    store = instance.store
    configured = {position_id(hub) for hub in hubs}
    renamed = {
        HUB_PREFIX + hub.addr.replace("[", "").replace("]", ""): position_id(hub)
        for hub in hubs
        if hub.name
    }
    try:
        for channel in store.channels():
            for found in list_ids(store.fs, store.offsets_directory(channel)):
                if found.startswith(HUB_PREFIX) and found not in configured:
                    settle = partial(_settle, store, channel, found, renamed.get(found))
                    store.log(channel).run_locked(settle, lambda _: None)
        for name in store.fs.listdir(store.data_dir):
            known = name.removeprefix(".").removesuffix(".known")
            if (
                name == f".{known}.known"
                and known.startswith(HUB_PREFIX)
                and known not in configured
            ):
                _move_known(store, known, renamed.get(known))
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error


def _settle(store: Store, channel: str, found: str, other: str | None) -> None:
    """Under the channel's lock: give a position its other name, or remove it."""
    fs, directory = store.fs, store.offsets_directory(channel)
    lease = FileLock(fs, lease_path(directory, found))
    if not lease.try_acquire():
        return
    try:
        path = offset_path(directory, found)
        if other is not None and not _exists(fs, offset_path(directory, other)):
            fs.rename(path, offset_path(directory, other))
            logger.info("%s is %s now", path, other)
        else:
            fs.unlink(path)
            logger.warning("%s is removed: that hub is not in the configuration any more", path)
        if store.options.log.durable:
            fs.fsync_dir(directory)
    finally:
        lease.release()


def _move_known(store: Store, known: str, other: str | None) -> None:
    path = f"{store.data_dir}/.{known}.known"
    if other is not None:
        store.fs.rename(path, f"{store.data_dir}/.{other}.known")
    else:
        store.fs.unlink(path)


def _exists(fs: FileSystem, path: str) -> bool:
    try:
        fs.stat(path)
    except FileNotFoundError:
        return False
    return True
