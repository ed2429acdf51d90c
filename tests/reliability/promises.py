"""What a messenger had promised before the power failed, held against what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keyop import Message, OffsetError
from tests.fakes.recording import RecordingFs

from .children import wait_for
from .messengers import make
from .reading import payloads, saved_offsets
from .recordings import (
    SEGMENT_BYTES,
    SUBSCRIBERS,
    Acknowledged,
    Closed,
    Handled,
    Subscribed,
    Swept,
    is_refused,
    subscribe,
)
from .row import Row
from .workload import CHANNEL, TYPE, is_whole, payload


class Promises:
    """What marks promise.

    Args:
        marks: those made until each crash.
        killed: whether only processes died, so that whatever was written is there, whatever the
            policy.

    Under ``always`` whatever was acknowledged must be there, under ``periodic`` what a close
    brought to the disk. No policy may deliver anything torn, or save a position past the end.
    """

    def __init__(
        self, row: Row, policy: str, marks: list[list[Any]], where: str, killed: bool = False
    ) -> None:
        self._row = row
        self._policy = policy
        self._killed = killed
        self._where = where
        all_marks = [mark for until_cut in marks for mark in until_cut]
        self._handled = {mark for mark in all_marks if isinstance(mark, Handled)}
        self._subscribed = {mark.subscriber for mark in all_marks if isinstance(mark, Subscribed)}
        self._swept = any(isinstance(mark, Swept) for mark in all_marks)
        promised = [mark for until_cut in marks for mark in self._promised(until_cut)]
        self._acknowledged = {mark for mark in promised if isinstance(mark, Acknowledged)}
        self._came: dict[str, list[Any]] = {name: [] for name in ("all", *SUBSCRIBERS)}

    def _promised(self, marks: list[Any]) -> list[Any]:
        """Return the marks that a crash after all of them must not undo."""
        if self._policy == "always" or self._killed:
            return marks
        closes = [at for at, mark in enumerate(marks) if isinstance(mark, Closed)]
        return marks[: closes[-1]] if closes and self._policy == "periodic" else []

    def check(self, data_dir: Path, fs: RecordingFs, times: int) -> None:
        """Recover, deliver, publish one more message, deliver that, and compare.

        Args:
            times: how often there was a crash, for names that are new each time.
        """
        after = f"after-{times}"
        self._row.count(promised=len(self._acknowledged))
        with make(data_dir, self._policy, fs=fs, max_segment_bytes=SEGMENT_BYTES) as messenger:
            everything = messenger.subscribe(
                CHANNEL, f"all-{times}", self._taker("all", fs), start="earliest"
            )
            self._check_positions(data_dir, everything.offset + everything.lag_bytes)
            for subscriber in SUBSCRIBERS:
                try:
                    subscribe(messenger, subscriber, self._taker(subscriber, fs))
                    fs.mark(Subscribed(subscriber))
                except OffsetError:
                    # Under ``none`` nothing of its file was ever synced, so it may be empty.
                    if self._policy != "none" or self._killed:
                        raise
                    self._subscribed.discard(subscriber)
            messenger.publish(CHANNEL, TYPE, payload(after, 0))
            fs.mark(Acknowledged(after, 0))
            end = everything.offset + everything.lag_bytes
            # Not by their lag, which is looked up in the directory each time.
            running = messenger.subscriptions()
            wait_for(lambda: all(each.offset >= end for each in running), "everything to be read")
        fs.mark(Closed())
        for subscriber, found in self._came.items():
            self._check_delivered(subscriber, found, after)
        self._check_dead_letters(data_dir)

    def _taker(self, subscriber: str, fs: RecordingFs) -> Any:
        def take(message: Message) -> None:
            found = message.payload
            self._came[subscriber].append(found)
            if is_whole(found):
                fs.mark(Handled(subscriber, found["by"], found["n"]))

        return take

    def _expect(self, holds: object, what: str) -> None:
        self._row.expect(holds, f"{self._where}: {what}")

    def _check_positions(self, data_dir: Path, end: int) -> None:
        if self._policy == "none" and not self._killed:
            return
        positions = saved_offsets(data_dir, CHANNEL)
        for subscriber in self._subscribed:
            self._expect(subscriber in positions, f"{subscriber} is forgotten")
            position = positions.get(subscriber, 0)
            self._row.count(positions_beyond=position > end)
            self._expect(position <= end, f"{subscriber} is at {position}, the end is {end}")

    def _check_delivered(self, subscriber: str, found: list[Any], after: str) -> None:
        torn = [each for each in found if not is_whole(each)]
        self._row.count(torn=len(torn))
        self._expect(not torn, f"{subscriber} got {torn[:3]}")
        keys = [(each["by"], each["n"]) for each in found if is_whole(each)]
        # Refused messages count as handled once their dead letter is written, which is looked at.
        handled = {(each.by, each.n) for each in self._handled if each.subscriber == subscriber}
        if subscriber in self._subscribed or (subscriber == "all" and not self._swept):
            due = {tuple(each) for each in self._acknowledged}
            lost = due - (handled if subscriber != "all" else set()) - set(keys)
            self._row.count(lost=len(lost))
            self._expect(not lost, f"{subscriber} lost {sorted(lost)[:5]}")
            self._expect(keys[-1:] == [(after, 0)], f"{subscriber} ends with {keys[-2:]}")
        self._expect(len(keys) == len(set(keys)), f"{subscriber} got some twice")
        last: dict[str, int] = {}
        for by, n in keys:
            self._expect(n > last.get(by, -1), f"{subscriber} got {by}/{n} after a later one")
            last[by] = n

    def _check_dead_letters(self, data_dir: Path) -> None:
        letters = set()
        for letter in payloads(data_dir, f"{CHANNEL}.dead-letter"):
            if letter["original"] is not None:
                found = letter["original"]["payload"]
                self._expect(is_whole(found), f"a dead letter holds {found}")
                letters.add((found["by"], found["n"]))
        if "failing" in self._subscribed:
            refused = {tuple(each) for each in self._acknowledged if is_refused(each.n)}
            lost = refused - letters
            self._row.count(lost=len(lost))
            self._expect(not lost, f"no dead letter for {sorted(lost)[:5]}")
