"""R12: workers of gunicorn are told to end while handlers run and others are in backoff.

The worker that runs a subscriber gets SIGTERM, again and again, while requests publish. Half of the
groups use keyop's hooks, half do not, and every other one loads the application before the fork.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import gevent

from tests.web.gunicorns import CUT, Gunicorn, alive, holder

from .children import ROOT, wait_for
from .reading import ChannelTail
from .row import Row, Run
from .shop import SUBSCRIBERS
from .workload import CHANNEL, payload

TITLE = "SIGTERM of a gunicorn worker, with handlers in flight"
_WORKERS = 3
_GROUP = 25
# After that gunicorn kills, which is what must not be needed.
EXIT_S = 30.0
_EVERY_S = 0.7  # no more than the slowest subscriber takes


def run(run: Run) -> Row:
    """Tell workers to end, in groups, each with a gunicorn of its own."""
    row = Row("R12", TITLE)
    row.count(sigterms=0, answered=0, handled=0, lost=0, duplicates=0, cut_off=0, torn=0)
    sigterms = run.either(20, 200)
    size = min(_GROUP, sigterms // 2)
    for index, first in enumerate(range(0, sigterms, size)):
        directory = run.directory / f"group-{index}"
        directory.mkdir()
        _Group(row, directory, hooks=index % 2 == 0, preload=index % 4 in (1, 2)).run(
            min(size, sigterms - first)
        )
    return row


class _Group:
    """SIGTERMs to the workers of one gunicorn, on one data directory."""

    def __init__(self, row: Row, directory: Path, hooks: bool, preload: bool) -> None:
        self._row = row
        self._data_dir = directory / "data"
        self._said = directory / "said"
        self._said.touch()
        self._name = f"{'with' if hooks else 'without'} hooks{', preloaded' if preload else ''}"
        self._answered = 0
        self._publishing = True
        environment = {
            "KEYOP_DATA_DIR": str(self._data_dir),
            "KEYOP_SAID": str(self._said),
            "KEYOP_HOOKS": "1" if hooks else "",
            "KEYOP_PRELOAD": "1" if preload else "",
        }
        self._server = Gunicorn(
            directory,
            f"--config={ROOT / 'tests' / 'reliability' / 'shop_conf.py'}",
            f"--workers={_WORKERS}",
            "tests.reliability.shop:application",
            env=environment,
        )

    def run(self, sigterms: int) -> None:
        with self._server as server:
            publisher = gevent.spawn(self._publish)
            try:
                for number in range(sigterms):
                    self._end_one(list(SUBSCRIBERS)[number % len(SUBSCRIBERS)])
            finally:
                self._publishing = False
                publisher.join()
            publisher.get()
            wait_for(self._all_handled, f"the last messages to be handled; {server.log}")
            server.wait_workers(_WORKERS)
            started = time.monotonic()
            status = server.stop(2 * EXIT_S)
            # How gunicorn takes it when a worker is told to end while it still starts.
            if "Worker failed to boot" not in server.log:
                self._row.expect(status == 0, f"{self._name}: gunicorn ended with {status}")
                self._row.expect("Traceback" not in server.log, f"{self._name}: {server.log}")
            self._row.worst(worst_exit_s=time.monotonic() - started)
        self._check()

    def _publish(self) -> None:
        """Publish one by one; what is not answered is sent again under its id."""
        while self._publishing:
            body = json.dumps(payload("client", self._answered)).encode()
            headers = {"X-Id": f"id-{self._answered}"}
            try:
                answer = self._server.request("POST", "/", body, headers)
            except CUT:
                self._row.count(requests_cut=1)
                continue
            self._row.expect(answer.status == 200, f"{self._name}: {answer}")
            self._answered += answer.status == 200
            gevent.sleep(_EVERY_S)

    def _end_one(self, own_id: str) -> None:
        """Tell the worker to end that runs this subscriber, while it has something to do."""
        self._server.wait_workers(_WORKERS)
        pid = wait_for(lambda: holder(self._data_dir, CHANNEL, own_id), f"{own_id} to run")
        lines = len(self._lines())
        wait_for(
            lambda: any(
                what == "begin" and (who, by) == (own_id, pid)
                for what, who, by, _ in self._lines()[lines:]
            ),
            f"{own_id} to begin with a message",
        )
        os.kill(pid, signal.SIGTERM)
        told = time.monotonic()
        wait_for(
            lambda: not alive(pid),
            f"the worker to end {self._name}; {self._server.log}",
            2 * EXIT_S,
        )
        took_s = time.monotonic() - told
        self._row.worst(worst_exit_s=took_s)
        self._row.expect(took_s < EXIT_S, f"{self._name}: a worker took {took_s:.1f} s to end")
        self._row.count(sigterms=1)
        wait_for(lambda: holder(self._data_dir, CHANNEL, own_id) not in (None, pid), "a takeover")
        self._row.worst(worst_takeover_s=time.monotonic() - told - took_s)

    def _lines(self) -> list[tuple[str, str, int, int]]:
        found = []
        for line in self._said.read_text().splitlines():
            what, own_id, pid, n = line.split()
            found.append((what, own_id, int(pid), int(n)))
        return found

    def _all_handled(self) -> bool:
        ended = Counter((own_id, n) for what, own_id, _, n in self._lines() if what == "end")
        return all((each, n) in ended for each in SUBSCRIBERS for n in range(self._answered))

    def _check(self) -> None:
        """Nothing is lost, or twice in the log; no handler was cut off or had to be repeated."""
        row, name = self._row, self._name
        tail = ChannelTail(self._data_dir, CHANNEL)
        tail.follow()
        for problem in tail.problems:
            row.problem(f"{name}: {problem}")
        row.count(answered=self._answered)
        row.expect(
            [entry.n for entry in tail.entries] == list(range(self._answered)),
            f"{name}: the log does not hold what was answered, each once",
        )
        lines = self._lines()
        ended = Counter((own_id, n) for what, own_id, _, n in lines if what == "end")
        lost = sum((each, n) not in ended for each in SUBSCRIBERS for n in range(self._answered))
        duplicates = ended.total() - len(ended)
        begun = sum(what == "begin" and own_id != "failing" for what, own_id, _, _ in lines)
        cut_off = begun - sum(n for (own_id, _), n in ended.items() if own_id != "failing")
        torn = sum(what == "torn" for what, *_ in lines)
        row.count(handled=len(ended), lost=lost, duplicates=duplicates, cut_off=cut_off, torn=torn)
        row.expect(not lost, f"{name}: {lost} messages were never handled")
        row.expect(not duplicates, f"{name}: {duplicates} messages were handled twice")
        row.expect(not cut_off, f"{name}: {cut_off} handlers were cut off")
        row.expect(not torn, f"{name}: {torn} messages were torn")
