"""``keyop subscribe``: messages to stdout, or to a command of the user's."""

from __future__ import annotations

from dataclasses import replace

import click

from keyop.cli import complete
from keyop.cli.consume import Executor, Printer
from keyop.cli.moments import moment
from keyop.cli.output import complain
from keyop.cli.remote import Remote, target_options
from keyop.cli.run import LiveRun, Run
from keyop.config import Config
from keyop.fs import SYSTEM_FS
from keyop.messenger import Messenger
from keyop.names import check_channel, check_subscriber_id
from keyop.storage.offsets import offset_path
from keyop.storage.position import Position


@click.command("subscribe")
@click.argument("channel", shell_complete=complete.channels)
@click.option(
    "--id",
    "subscriber_id",
    metavar="ID",
    required=True,
    shell_complete=complete.subscribers,
    help="The name under which the position is kept; with --hub, of this instance.",
)
@click.option(
    "--from",
    "start",
    metavar="earliest|latest|TIME",
    type=moment,
    help="Where an ID without a position begins: TIME is such as 2026-01-31T15:00 (local time) "
    "or 2026-01-31T14:00:00Z. Otherwise latest.",
)
@click.option("--count", metavar="N", type=click.IntRange(1), help="Stop after N messages.")
@click.option("--json", "whole", is_flag=True, help="Print whole messages, not payloads alone.")
@click.option("--exec", "program", metavar="CMD", help="Run CMD for each message instead.")
@click.option("--standby", is_flag=True, help="If ID is in use, wait and take over when it ends.")
@click.option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="Handle up to N messages at once; their order is then not kept.",
)
@click.option(
    "--max-retries",
    metavar="N",
    type=click.IntRange(0),
    help="How often a failed CMD is run again before its message becomes a dead letter.",
)
@target_options
def command(
    channel: str,
    subscriber_id: str,
    start: Position | None,
    count: int | None,
    whole: bool,
    program: str | None,
    standby: bool,
    concurrency: int,
    max_retries: int | None,
    config: Config,
    remote: Remote | None,
) -> int:
    """Print the messages of CHANNEL, one line of JSON each, and go on where ID stopped.

    A message counts as handled once its line is written, so after a crash, or when the reader of
    a pipe goes away, it comes again with the next start.

    With --exec, CMD is run by the shell for each message, with the payload as JSON on its stdin
    and KEYOP_CHANNEL, KEYOP_ID, KEYOP_TYPE, KEYOP_OFFSET, KEYOP_ATTEMPT, KEYOP_TIMESTAMP,
    KEYOP_ORIGIN, KEYOP_CORRELATION_ID and KEYOP_SERVICE_NAME in its environment. Another exit
    status than 0 is a failure: it is tried again, then the message becomes a dead letter.

    With --hub the messages of a hub come live, from now on; no position is kept, and --from,
    --standby and --max-retries do not apply.

    Ctrl-C (exit 130) and SIGTERM (exit 0) let what is being handled end; a second one does not.

    \b
    Examples:
      keyop subscribe orders --id billing --from earliest
      keyop subscribe orders --id billing --count 1 --json
      keyop subscribe orders --id me --hub hub-1:7740 --cert me.crt --key me.key --ca ca.crt
      keyop subscribe orders --id mailer --exec './send-mail --to "$KEYOP_CORRELATION_ID"'
    """
    check_channel(channel)
    check_subscriber_id(subscriber_id)
    work = Executor(program) if program is not None else Printer(whole)
    if remote is not None:
        if start is not None or standby or max_retries is not None or concurrency > 1:
            raise click.UsageError(
                "--from, --standby, --max-retries and --concurrency are for a data directory"
            )
        live = LiveRun(work, count)
        return live.run(replace(remote, name=remote.name or subscriber_id), channel)
    run = Run(work, count)
    messenger = Messenger(config)
    try:
        messenger.start()
        if start is not None and _has_position(config, channel, subscriber_id):
            complain(f"{subscriber_id} goes on at its saved position; --from is for a new id")
        with run.stopped_by_signals():
            run.subscription = messenger.subscribe(
                channel,
                subscriber_id,
                run.handle,
                start="latest" if start is None else start,
                concurrency=concurrency,
                standby=standby,
                max_retries=max_retries,
            )
            status = run.wait()
            messenger.close(run.work.patience_s)
            return status
    finally:
        messenger.close()


def _has_position(config: Config, channel: str, subscriber_id: str) -> bool:
    directory = f"{config.storage.data_dir}/subscribers/{channel}"
    try:
        SYSTEM_FS.stat(offset_path(directory, subscriber_id))
    except OSError:
        return False
    return True
