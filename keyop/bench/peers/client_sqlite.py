"""SQLite in WAL mode, as a table of messages and one of positions; readers poll."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence

import orjson

from keyop.bench.peers.client import Client, Handle, Payload, batches, in_threads
from keyop.bench.peers.place import Place

_POLL_S = 0.001
_PAGE = 256
_INSERT = "INSERT INTO messages (body) VALUES (?)"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS positions (reader TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
"""


class SqliteClient(Client):
    """A connection in autocommit mode; each INSERT, or BEGIN to COMMIT, is a transaction."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._database = sqlite3.connect(
            f"{place.directory}/messages.db",
            timeout=30,
            isolation_level=None,
            check_same_thread=False,
        )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute(f"PRAGMA synchronous = {'FULL' if place.power else 'NORMAL'}")
        self._database.executescript(_SCHEMA)

    def publish(self, payloads: Iterable[Payload]) -> None:
        execute = self._database.execute
        for each in payloads:
            execute(_INSERT, (orjson.dumps(each),))

    def batch(self, payloads: Sequence[Payload]) -> None:
        for some in batches(payloads):
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(_INSERT, ((orjson.dumps(each),) for each in some))
            self._database.execute("COMMIT")

    def publish_together(self, payloads: Sequence[Payload]) -> None:
        # Faster than 64 connections, which wait for each other by sleeping.
        lock = threading.Lock()

        def publish(share: Sequence[Payload]) -> None:
            for each in share:
                body = orjson.dumps(each)
                with lock:
                    self._database.execute(_INSERT, (body,))

        in_threads(publish, payloads)

    def subscribe(self) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO positions SELECT ?, coalesce((SELECT max(id) FROM messages), 0)",
            (self.place.name,),
        )

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        execute = self._database.execute
        name = self.place.name
        (position,) = execute("SELECT id FROM positions WHERE reader = ?", (name,)).fetchone()
        ready()
        while True:
            page = execute(
                "SELECT id, body FROM messages WHERE id > ? ORDER BY id LIMIT ?", (position, _PAGE)
            ).fetchall()
            for position, body in page:
                last = handle(orjson.loads(body))
                execute("UPDATE positions SET id = ? WHERE reader = ?", (position, name))
                if last:
                    return
            if not page:
                self.sleep(_POLL_S)

    def close(self) -> None:
        self._database.close()
