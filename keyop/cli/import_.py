"""``keyop import``: records from stdin into a channel, as ``keyop export`` wrote them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import blake2b

import click

from keyop.cli import complete
from keyop.cli.appender import Appender, Line, batches
from keyop.cli.common import config_options, look_at
from keyop.cli.imported import BadLineError, check_line
from keyop.cli.lines import read_lines, stdin_size
from keyop.cli.output import complain, plural, print_line
from keyop.cli.progress import Progress
from keyop.config import Config
from keyop.errors import StorageError
from keyop.fs import SYSTEM_FS
from keyop.inspection import DataDirectory
from keyop.look.records import Reader
from keyop.names import check_publish_channel

_SHOWN_PROBLEMS = 10
_DIGEST_BYTES = 12


@click.command("import")
@click.argument("channel", shell_complete=complete.channels)
@click.option("--skip-bad", is_flag=True, help="Pass over lines that cannot be taken.")
@click.option("--rename", is_flag=True, help="Take records of other channels too.")
@click.option("--dry-run", is_flag=True, help="Check all lines, and write nothing.")
@config_options
def command(channel: str, skip_bad: bool, rename: bool, dry_run: bool, config: Config) -> int:
    """Append the records on stdin, one on a line, to CHANNEL.

    Each line must be a whole envelope, as "keyop export" writes it: its checksum is compared if
    it has one (and made if not), its version, id, time and channel are checked. Ids, times,
    origins and payloads stay byte for byte, so records may come to stand behind younger ones, and
    finding a place by time is then less exact. The data directory and the channel are created
    where they are missing; programs may go on using them.

    Lines are appended in batches of up to 1,024 lines or 4 MiB, each of them durable before the
    next one. A line that cannot be taken ends the import with its number and the reason, and
    nothing of its batch is written. With --skip-bad it is named and passed over.

    Records whose ids are anywhere in the channel are left out. So an import that was interrupted,
    even by a power failure, can be run again with the same file: nothing comes twice. The ids
    are kept in memory meanwhile, about 100 bytes for each record of the channel.

    \b
    Exit status:
      0    all is in the channel, with --skip-bad but for what was passed over
      1    a line cannot be taken, or something cannot be read or written
      2    called wrongly
      130  Ctrl-C; run it again to go on

    \b
    Examples:
      keyop import orders < orders.jsonl
      keyop import orders --dry-run < orders.jsonl
      zcat old.jsonl.gz | keyop import orders-2025 --rename --skip-bad
    """
    check_publish_channel(channel)
    if sys.stdin is not None and sys.stdin.isatty():
        complain("one envelope per line, Ctrl-D ends")
    importer = Importer(channel, skip_bad, rename, config)
    with Progress("importing") as progress:
        importer.run(progress, dry_run)
    print_line(f"{'would import' if dry_run else 'imported'} {importer.summary()}")
    return 0


class Importer:
    """Brings the lines of stdin into a channel."""

    def __init__(self, channel: str, skip_bad: bool, rename: bool, config: Config) -> None:
        self._channel = channel
        self._skip_bad = skip_bad
        self._rename = rename
        self._config = config
        self._max_record_bytes = config.storage.max_record_bytes
        self._seen: set[bytes] = set()
        self._added = self._present = self._bad = 0
        # The last line of the latest batch that is in, and how far the next one was read.
        self._done = self._read = 0

    def summary(self) -> str:
        """Return what was done."""
        parts = [f"{plural(self._added, 'message')} to {self._channel}"]
        if self._present:
            parts.append(f"{self._present:,} were there already")
        if self._bad:
            parts.append(f"{plural(self._bad, 'line')} passed over")
        return "; ".join(parts)

    def run(self, progress: Progress, dry_run: bool) -> None:
        """Check and append all lines.

        Raises:
            click.ClickException: a line cannot be taken.
            KeyopError: the channel cannot be read or written.
        """
        total = stdin_size()
        try:
            if dry_run:
                self._read_ids()
                for batch in self._batches(progress, total):
                    self._count(batch, self._new(batch))
            else:
                self._append_all(progress, total)
        except BadLineError as error:
            before = f"; lines up to {self._done:,} are in" if self._done and not dry_run else ""
            raise click.ClickException(
                f"line {self._read} of stdin: {error}{before}; mend it and run the import again, "
                "or pass over such lines with --skip-bad"
            ) from None
        except BaseException:  # Ctrl-C too: what was done must not stay unknown
            if self._done and not dry_run:
                complain(f"imported {self.summary()}; run it again to go on")
            raise

    def _append_all(self, progress: Progress, total: int | None) -> None:
        pending = self._batches(progress, total)
        first = next(pending, None)  # nothing is created for a file that is no export
        if first is None:
            return
        try:
            SYSTEM_FS.make_dirs(f"{self._config.storage.data_dir}/channels")
        except OSError as error:
            raise StorageError(f"{error.filename}: {error.strerror}") from error
        directory = look_at(self._config)
        self._read_ids()
        with Appender(directory, self._channel, self._config) as appender:
            batch: list[Line] | None = first
            while batch is not None:
                last = self._read
                fresh = self._new(batch)
                # Others may have written some since the channel was read.
                self._count(batch, fresh, appender.append(fresh) if fresh else 0)
                self._done = last
                batch = next(pending, None)

    def _count(self, batch: list[Line], fresh: list[Line], added: int | None = None) -> None:
        added = len(fresh) if added is None else added
        self._added += added
        self._present += len(batch) - added

    def _batches(self, progress: Progress, total: int | None) -> Iterator[list[Line]]:
        return batches(self._lines(progress, total))

    def _lines(self, progress: Progress, total: int | None) -> Iterator[Line]:
        size = 0
        for number, line in enumerate(read_lines(self._max_record_bytes), 1):
            self._read = number
            if line is not None:
                size += len(line) + 1
                if not line.strip():
                    continue
            if total:
                progress(min(size, total), total)
            try:
                if line is None:
                    raise BadLineError(
                        f"it is longer than {self._max_record_bytes} bytes, which "
                        "storage.max_record_bytes allows"
                    )
                yield check_line(line, number, self._channel, self._rename, self._max_record_bytes)
            except BadLineError as error:
                if not self._skip_bad:
                    raise
                self._bad += 1
                if self._bad <= _SHOWN_PROBLEMS:
                    complain(f"line {number} of stdin passed over: {error}")

    def _read_ids(self) -> None:
        """Remember every id that the channel holds."""
        path = self._config.storage.data_dir
        if not SYSTEM_FS.is_dir(f"{path}/channels"):
            return
        directory = DataDirectory(path)
        if self._channel not in directory.names():
            return
        with (
            Reader(directory, self._channel, self._max_record_bytes) as reader,
            Progress("reading ids") as progress,
        ):
            begin, end = reader.bounds()
            for found in reader.read(begin, end):
                progress(found.end - begin, end - begin)
                if found.fields is not None:
                    self._seen.add(_digest(found.fields["id"]))

    def _new(self, batch: list[Line]) -> list[Line]:
        """Return those of a batch that are neither in the channel nor came before."""
        fresh = []
        for line in batch:
            digest = _digest(line.id)
            if digest not in self._seen:
                self._seen.add(digest)
                fresh.append(line)
        return fresh


def _digest(message_id: str) -> bytes:
    """Return something short that stands for an id: of a million, two agree once in 10¹⁷ times."""
    return blake2b(message_id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
