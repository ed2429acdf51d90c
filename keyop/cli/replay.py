"""``keyop replay``: messages once more, to one subscriber or into another channel."""

from __future__ import annotations

from collections.abc import Iterator

import click

from keyop.cli import complete
from keyop.cli.appender import Appender, Line, batches
from keyop.cli.common import config_options, look_at, yes_option
from keyop.cli.moments import place
from keyop.cli.output import complain, confirm, human_bytes, plural, print_line
from keyop.cli.positions import in_use, move_position
from keyop.cli.progress import Progress
from keyop.cli.where import where_option
from keyop.clock import SYSTEM_CLOCK
from keyop.config import Config
from keyop.envelope import encode_again
from keyop.errors import PayloadError, StorageError
from keyop.ids import new_ids as make_ids
from keyop.inspection import DataDirectory
from keyop.look.conditions import Condition, all_hold
from keyop.look.records import Found, Reader, raw_payload
from keyop.names import check_channel, check_publish_channel
from keyop.removal import check_position_id
from keyop.storage.position import Position

_SHOWN_PROBLEMS = 10


@click.command("replay")
@click.argument("channel", shell_complete=complete.channels)
@click.option(
    "--subscriber",
    "subscriber_id",
    metavar="ID",
    shell_complete=complete.subscribers,
    help="Move the position of this one.",
)
@click.option("--to", metavar="POSITION", type=place, help="With --subscriber: where it goes on.")
@click.option(
    "--into",
    metavar="OTHER",
    shell_complete=complete.channels,
    help="Deliver to this channel instead.",
)
@click.option(
    "--from", "start", metavar="POSITION", type=place, help="With --into: begin there; else all."
)
@click.option(
    "--until", "end", metavar="POSITION", type=place, help="With --into: end before there."
)
@where_option
@click.option("--new-ids", is_flag=True, help="With --into: give the copies ids of their own.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@yes_option
@config_options
def command(
    channel: str,
    subscriber_id: str | None,
    to: Position | None,
    into: str | None,
    start: Position | None,
    end: Position | None,
    where: tuple[Condition, ...],
    new_ids: bool,
    dry_run: bool,
    yes: bool,
    config: Config,
) -> int:
    """Deliver messages of CHANNEL once more.

    With --subscriber the position of ID is set, back to get messages again or on to skip some.
    It must not run; it goes on from there when it starts next. What its handler did for a message
    it does again. Positions are as in "keyop tail": earliest, latest, a time, -10m, an offset; one
    inside a record is moved to its beginning.

    With --into the messages between --from and --until are appended to the channel OTHER, for all
    its subscribers. A copy keeps id, origin, correlation id, type and payload to the byte, and is
    stamped now. Ids that are in the dedup window of OTHER (the last 100,000 of it, at most 64 MiB)
    are left out: so a replay that was interrupted can be run again, and a second one adds nothing
    while the first is in the window. --new-ids makes new messages of them, every time. A peer does
    not get copies of what it published itself. What is damaged is not delivered, and is named.

    It asks first, unless --yes or --dry-run is given.

    \b
    Exit status:
      0    done, or nothing to do
      1    the subscriber runs, something is not there or not writable, some messages were left out
           because they are damaged or too large, or the answer was no
      2    called wrongly
      130  Ctrl-C; what was delivered until then stays

    \b
    Examples:
      keyop replay orders --subscriber billing --to 2026-01-31T14:00:00Z --dry-run
      keyop replay orders --subscriber billing --to -2h --yes
      keyop replay orders --into orders-again --from -1d --where customer.id=7
    """
    check_channel(channel)
    directory = look_at(config)
    if subscriber_id is not None and into is None:
        if to is None:
            raise click.UsageError("--subscriber needs --to, where it is to go on")
        if start is not None or end is not None or where or new_ids:
            raise click.UsageError("--from, --until, --where and --new-ids are for --into")
        check_position_id(subscriber_id)
        with Reader(directory, channel, config.storage.max_record_bytes) as reader:
            offset = reader.resolve(to)
        move = Move(directory, channel, subscriber_id, offset)
        if dry_run:
            print_line(f"would {move.describe()}")
            return 0
        confirm(f"{move.describe()}?", yes)
        taken = move_position(
            directory, channel, subscriber_id, offset, config.storage.max_record_bytes
        )
        print_line(f"{subscriber_id} of {channel} goes on at {taken}")
        return 0
    if into is None or subscriber_id is not None:
        raise click.UsageError("give --subscriber and --to, or --into")
    if to is not None:
        raise click.UsageError("--to is for --subscriber; give --from and --until")
    if check_publish_channel(into) == channel:
        raise click.UsageError("--into is the same channel; --subscriber delivers it again to one")
    with Reader(directory, channel, config.storage.max_record_bytes) as reader:
        copy = Copy(reader, into, where, new_ids, config.storage.max_record_bytes)
        copy.choose(start, end)
        if dry_run or not yes:
            what = f"{plural(copy.count(), 'message')} of {channel} into {into}"
            if dry_run:
                print_line(f"would deliver {what}, but for ids that {into} has had lately")
                return 0
            confirm(f"deliver {what}?", yes)
        return copy.run(directory, config)


class Move:
    """A position that is to be moved, and how far.

    Raises:
        SubscriberInUseError: the subscriber runs.
        StorageError: it has no position.
    """

    def __init__(
        self, directory: DataDirectory, channel: str, subscriber_id: str, offset: int
    ) -> None:
        views = {each.subscriber_id: each for each in directory.channel(channel).subscribers}
        if subscriber_id not in views:
            known = ", ".join(sorted(views)) or "nobody"
            raise StorageError(
                f"{subscriber_id!r} has no position in channel {channel!r}, which {known} "
                f"{'have' if len(views) > 1 else 'has'}; 'keyop subscribe --from' begins a new one"
            )
        self._view = views[subscriber_id]
        if self._view.running:
            raise in_use(channel, subscriber_id)
        self._directory = directory
        self._offset = offset

    def describe(self) -> str:
        """Return what is done, as it follows "would"."""
        view, offset = self._view, self._offset
        at = "from a position that cannot be read" if view.offset is None else f"from {view.offset}"
        text = f"set {view.subscriber_id} of {view.channel} {at} to {offset}"
        if view.offset is None or view.offset == offset:
            return text
        low, high = sorted((view.offset, offset))
        count = self._directory.count_records(view.channel, low, high)
        how = "delivering {} again" if offset < view.offset else "SKIPPING {}"
        return f"{text}, {how.format(plural(count, 'message'))} ({human_bytes(high - low)})"


class Copy:
    """A range of one channel that is to be appended to another."""

    def __init__(
        self,
        reader: Reader,
        into: str,
        where: tuple[Condition, ...],
        new_ids: bool,
        max_record_bytes: int,
    ) -> None:
        self._reader = reader
        self._into = into
        self._where = where
        self._new_ids = new_ids
        self._max_record_bytes = max_record_bytes
        self._range = (0, 0)
        self._ids: list[str] = []
        self._left_out = 0

    def choose(self, start: Position | None, end: Position | None) -> None:
        """Decide on the range now: what is appended later does not belong to it."""
        stop = self._reader.resolve("latest" if end is None else end)
        begin = self._reader.resolve("earliest" if start is None else start)
        self._range = (min(begin, stop), stop)

    def count(self) -> int:
        """Return how many records are meant."""
        with Progress("counting") as progress:
            return sum(found.fields is not None for found in self._found(progress))

    def run(self, directory: DataDirectory, config: Config) -> int:
        """Append them; return the exit status."""
        written = present = 0
        what = f"of {self._reader.channel} into {self._into}"
        try:
            with (
                Appender(directory, self._into, config) as appender,
                Progress("replaying") as progress,
            ):
                for batch in batches(self._lines(progress)):
                    added = appender.append(batch)
                    written += added
                    present += len(batch) - added
        except BaseException:  # Ctrl-C too: what was done must not stay unknown
            complain(f"delivered {plural(written, 'message')} {what} until it was stopped")
            raise
        there = f"; {present:,} were there already" if present else ""
        print_line(f"delivered {plural(written, 'message')} {what}{there}")
        if self._left_out > _SHOWN_PROBLEMS:
            complain(f"{self._left_out:,} were left out in all")
        return 1 if self._left_out else 0

    def _found(self, progress: Progress) -> Iterator[Found]:
        begin, stop = self._range
        for found in self._reader.read(begin, stop):
            progress(min(found.end, stop) - begin, stop - begin)
            if found.fields is None or all_hold(self._where, found.fields):
                yield found

    def _lines(self, progress: Progress) -> Iterator[Line]:
        for found in self._found(progress):
            try:
                yield self._line(found)
            except (StorageError, PayloadError) as error:
                self._left_out += 1
                if self._left_out <= _SHOWN_PROBLEMS:
                    complain(f"{self._reader.channel}: left out at {found.offset}: {error}")

    def _line(self, found: Found) -> Line:
        if found.fields is None:
            raise StorageError(found.damage)
        # Who has committed the original has not committed the copy.
        fields = {name: value for name, value in found.fields.items() if name != "route"}
        if self._new_ids:
            if not self._ids:
                self._ids = make_ids()
            fields["id"] = self._ids.pop()
        now = SYSTEM_CLOCK.time_ns()
        data = encode_again(fields, self._into, raw_payload(found.line), now)
        if len(data) > self._max_record_bytes:
            raise StorageError(
                f"the copy would have {len(data)} bytes; storage.max_record_bytes allows "
                f"{self._max_record_bytes}"
            )
        return Line(fields["id"], data, found.offset)
