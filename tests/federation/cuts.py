"""R6: a network that is cut, stalls, crawls, flips bits and goes silent, and a hub that is killed.

A hub and two clients, a process each, publish to one channel and send it to each other over mutual
TLS through a proxy. In the end each must have every message once, those of each writer in order.

``python -m tests.federation.cuts [--quick]`` prints what was counted.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import gevent

from keyop.keygen import ensure_development_certificates
from tests.fakes.proxy import BOTH, Proxy
from tests.reliability.children import Child, wait_for
from tests.reliability.instance import allow
from tests.reliability.messengers import keep_everything, make
from tests.reliability.reading import ChannelTail, saved_offsets
from tests.reliability.row import Row, Run, timed
from tests.reliability.table import as_lines, header
from tests.reliability.workload import CHANNEL, Sequences

TITLE = "cuts, stalls, half-open links, flipped bits, hub restarts"
HUB, CLIENTS = "hub", ("alpha", "beta")
NAMES = (HUB, *CLIENTS)
_PATIENCE_S = 120.0
_DROP_AFTER_S = 1.5
# So many bytes pass after a message was published at the least, before a connection is cut.
_LEAST_BYTES, _BYTES_PER_MESSAGE = 1_000, 60


def troubles(run: Run) -> list[tuple[Any, ...]]:
    """Return what is to happen, in the order in which it does."""
    cuts, restarts, others = run.either((5, 1, 1), (50, 10, 5))
    found: list[tuple[Any, ...]] = [("restart", True), ("restart", False)] * restarts
    found += [("half_open",)] * others
    for direction in BOTH:
        found += [("cut", direction)] * cuts + [("flip", direction)] * others
        found += [("stall", direction)] * others
    found += [("stall", *BOTH), ("slow",)] * others
    run.rng("R6").shuffle(found)
    return found


def run(run: Run) -> Row:
    """Let messages flow both ways through the trouble; then read every data directory."""
    row = Row("R6", TITLE)
    row.count(published=0, lost=0, duplicates=0, cuts_up=0, cuts_down=0, kills=0, terminations=0)
    planned = troubles(run)
    with ExitStack() as stack:
        # Each writer publishes a share of its messages for each trouble.
        share = run.either(250, 100_000 // len(NAMES) // len(planned) + 1)
        network = _Network(row, run, stack, share)
        network.begin()
        for what, *how in planned:
            network.flow()
            getattr(network, what)(*how)
        network.finish()
    return row


class _Network:
    """The three instances and what is between them."""

    def __init__(self, row: Row, run: Run, stack: ExitStack, share: int) -> None:
        self._row = row
        self._directory = run.directory
        self._rng = run.rng("R6", "how")
        self._segment_bytes = run.either(64 << 10, 4 << 20)
        self._long_stalls = run.either(0.0, 0.3)
        self._stack = stack
        self._share = share
        self._published = 0
        self._proxy = stack.enter_context(Proxy())
        self._files = ensure_development_certificates(str(self._directory / "certs"), NAMES)
        self._tails = {name: ChannelTail(self._data_dir(name), CHANNEL) for name in NAMES}
        self._children: dict[str, Child] = {}

    def _data_dir(self, name: str) -> Path:
        return self._directory / name

    def _allowed(self, name: str) -> Path:
        return self._directory / f"{name}.allowed"

    # -- life

    def begin(self) -> None:
        """Start everybody; both clients have a position at the hub before anything is published."""
        for name in NAMES:
            with make(self._data_dir(name), name=name) as messenger:
                keep_everything(messenger)
            allow(self._allowed(name), 0)
            self._start(name, 0)
        wait_for(lambda: len(self._positions()) == len(CLIENTS), "both clients to be known")

    def _positions(self) -> list[str]:
        saved = saved_offsets(self._data_dir(HUB), CHANNEL)
        return [name for name in saved if name.startswith("fed-")]

    def _start(self, name: str, first: int) -> None:
        child = Child(
            "instance",
            self._directory,
            settings=self._settings(name),
            drop_after_s=_DROP_AFTER_S,
            by=name,
            first=first,
            allowed=self._allowed(name),
        )
        self._children[name] = self._stack.enter_context(child)
        child.wait_spoken()
        (line, *_) = child.new_lines()
        if name == HUB:
            self._proxy.target = line.split()[1]

    def _settings(self, name: str) -> dict[str, Any]:
        own = self._files.instances[name]
        settings: dict[str, Any] = {
            "name": name,
            "storage": {
                "data_dir": str(self._data_dir(name)),
                "sync_interval_ms": 5,
                "max_segment_bytes": self._segment_bytes,
            },
            "tls": {"cert": own.cert, "key": own.key, "ca": self._files.ca.cert},
            "federation": {"reconnect_base_ms": 10, "reconnect_max_ms": 200},
        }
        if name == HUB:
            peers = [{"name": each} for each in CLIENTS]
            settings["hub"] = {
                "enabled": True, "listen_addr": "127.0.0.1:0", "allowed_peers": peers,
            }  # fmt: skip
        else:
            hub = {"addr": self._proxy.address, "name": HUB, "subscribe": [CHANNEL]}
            settings["client"] = {"enabled": True, "hubs": [hub]}
        return settings

    # -- what happens

    def flow(self) -> None:
        """Have both clients connected, and let everybody publish some more."""
        wait_for(lambda: self._proxy.open >= len(CLIENTS), "both clients to connect")
        self._published += self._share
        for name in NAMES:
            allow(self._allowed(name), self._published)

    def _wait_flow(self) -> None:
        """Wait until something of it is under way, in both directions."""
        at_least = {way: passed + _LEAST_BYTES for way, passed in self._proxy.passed.items()}
        wait_for(
            lambda: all(self._proxy.passed[way] >= at_least[way] for way in BOTH), "bytes to flow"
        )

    def cut(self, direction: str) -> None:
        """Cut a connection in the middle of a batch that goes in this direction."""
        before = self._proxy.cuts
        most = max(_LEAST_BYTES, self._share * _BYTES_PER_MESSAGE)
        self._proxy.cut_after(direction, self._rng.randint(_LEAST_BYTES, most))
        wait_for(lambda: self._proxy.cuts > before, f"a cut {direction}")
        self._row.count(**{f"cuts_{direction}": 1})

    def flip(self, direction: str) -> None:
        """Flip a bit of what goes in this direction."""
        self._proxy.flip(direction)
        wait_for(lambda: not self._proxy.unflipped, "something to flip a bit of")
        self._row.count(flips=1)

    def stall(self, *directions: str) -> None:
        """Let nothing pass for a while, at times for longer than a peer may be silent."""
        self._wait_flow()
        self._proxy.stall(*directions)
        longest = 2 * _DROP_AFTER_S if self._rng.random() < self._long_stalls else 0.5
        gevent.sleep(self._rng.uniform(0.1, longest))
        self._proxy.go_on()
        self._row.count(stalls=1)

    def half_open(self) -> None:
        """Lose the connections without a word; each side has to find out by itself."""
        before = self._proxy.connections
        self._proxy.abandon()
        wait_for(lambda: self._proxy.connections >= before + len(CLIENTS), "new connections")
        self._row.count(half_open=len(CLIENTS))

    def slow(self) -> None:
        """Let a few bytes pass, for a while."""
        self._proxy.slow(20_000)
        gevent.sleep(self._rng.uniform(0.2, 0.6))
        self._proxy.go_on()
        self._row.count(slow=1)

    def restart(self, kill: bool) -> None:
        """End the hub in the middle of everything, and start it anew."""
        self._wait_flow()
        hub = self._children.pop(HUB)
        if kill:
            hub.kill()
        else:
            hub.stop()
        self._row.count(**{"kills" if kill else "terminations": 1})
        self._check_child(hub)
        tail = self._tails[HUB]
        tail.follow()
        logged = sum(entry.by == HUB for entry in tail.entries)
        acknowledged = max(map(int, hub.new_lines()), default=0)
        self._row.expect(
            acknowledged <= logged, f"the hub had published {acknowledged}, {logged} are there"
        )
        self._start(HUB, logged)

    # -- what has become of it

    def finish(self) -> None:
        """Wait until everybody has everything, end them, and read their files."""
        due = len(NAMES) * self._published
        try:
            for name in NAMES:
                what = f"{name} to have {due} messages"
                wait_for(lambda name=name: self._lines(name) >= due, what, _PATIENCE_S)
        except AssertionError as error:
            self._row.problem(str(error))
        for name in (*CLIENTS, HUB):
            self._children[name].stop()
            self._check_child(self._children[name])
        self._row.count(published=due)
        self._row.note(connections=self._proxy.connections)
        for name in NAMES:
            self._check_log(name)

    def _lines(self, name: str) -> int:
        gevent.sleep(0.1)
        segments = self._tails[name].directory.glob("*.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in segments)

    def _check_log(self, name: str) -> None:
        tail = self._tails[name]
        tail.follow()
        for problem in tail.problems:
            self._row.problem(f"{name}: {problem}")
        order = Sequences()
        for entry in tail.entries:
            wrong = order.take(entry.by, entry.n)
            self._row.expect(not wrong, f"{name}: {wrong}")
        missing = sum(order.missing(writer, self._published) for writer in NAMES)
        self._row.expect(not missing, f"{name}: {missing} have not come")
        self._row.count(lost=order.lost + missing, duplicates=order.duplicates)

    def _check_child(self, child: Child) -> None:
        if "Traceback" in child.errors:
            self._row.problem(f"{child.name} reports a fault of its own: {child.errors}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A few hundred messages and a few cuts only.")
@click.option("--seed", type=int, help="Repeat the random choices of another run.")
@click.pass_context
def main(context: click.Context, quick: bool, seed: int | None) -> None:
    """Cut, stall and flip what three instances send each other; exit with 1 if any is lost."""
    seed = random.randrange(1 << 32) if seed is None else seed
    directory = Path(tempfile.mkdtemp(prefix="keyop-cuts-"))
    try:
        row = timed("R6", TITLE, run, Run(directory, directory, seed, quick))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    click.echo(f"seed {seed}")
    click.echo(header())
    for line in as_lines(row):
        click.echo(line)
    context.exit(not row.passed)


if __name__ == "__main__":
    main()
