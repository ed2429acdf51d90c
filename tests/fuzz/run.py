"""Fuzz what comes from outside: ``python -m tests.fuzz.run --help``."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import NamedTuple

from .feeder import TIMEOUT_S, Task
from .targets import TARGETS

ROOT = Path(__file__).parents[2]
# Beyond its time, a process needs some to begin, to take in what is there, and to be timed out.
_GRACE_S = 60.0 + 2 * TIMEOUT_S
_RUNS = re.compile(r"stat::number_of_executed_units: (\d+)|^#(\d+)\s", re.MULTILINE)
_EDGES = re.compile(r" cov: (\d+) ")
_NO_ATHERIS = (
    "atheris is not installed (pip install atheris): mutations of the seeds instead, "
    "which coverage does not guide"
)


class FeederError(Exception):
    """The process that feeds a target has failed by itself."""


class Finding(NamedTuple):
    """An input that does what it must not, and what that is."""

    path: Path
    what: str


class Outcome(NamedTuple):
    """What came of one target; ``edges`` is None where nobody counts them."""

    runs: int
    edges: int | None
    seconds: float
    findings: list[Finding]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return its exit status, 1 for a finding.

    Raises:
        FeederError: a process that feeds did not do that to its end, and left no input behind.
    """
    options = _parser().parse_args(arguments)
    names = options.target or list(TARGETS)
    if options.input is not None:
        if len(names) != 1:
            sys.exit("--input needs one --target")
        return repeat(names[0], options.input)
    guided = not options.unguided and find_spec("atheris") is not None
    if not guided and not options.unguided:
        print(_NO_ATHERIS)
    seed = Random().randrange(1, 1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}, {'guided by coverage' if guided else 'not guided'}")
    found = 0

    def one(name: str) -> Outcome:
        return fuzz(name, guided, options.seconds, options.runs, seed, options.out)

    with ThreadPoolExecutor(options.jobs) as pool:
        for name, outcome in zip(names, pool.map(one, names), strict=True):
            found += len(outcome.findings)
            _tell(name, outcome)
    return 1 if found else 0


def _tell(name: str, outcome: Outcome) -> None:
    edges = "" if outcome.edges is None else f", {outcome.edges:,} edges"
    count = len(outcome.findings)
    found = "1 finding" if count == 1 else f"{count or 'no'} findings"
    print(f"{name}: {outcome.runs:,} runs in {outcome.seconds:.1f} s{edges}, {found}", flush=True)
    for each in outcome.findings:
        print(f"  {each.what}")
        print(f"    again: python -m tests.fuzz.run --target {name} --input {each.path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.run",
        description="Feed everything that takes bytes from outside with what is almost right.",
        epilog="Targets: " + ", ".join(TARGETS),
    )
    add = parser.add_argument
    add("--target", action="append", choices=list(TARGETS), metavar="NAME", help="default: all")
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--seconds", type=float, default=30.0, help="for each target (30)")
    how_long.add_argument("--runs", type=int, default=0, help="for each target, in place of time")
    add("--seed", type=int, help="makes a run like another one with that seed")
    add("--jobs", type=int, default=1, metavar="N", help="so many targets at a time (1)")
    add("--unguided", action="store_true", help="without atheris, also where it is installed")
    add("--out", type=Path, metavar="DIR", help="where findings go (a new temporary directory)")
    add("--input", type=Path, metavar="FILE", help="feed only this to --target")
    return parser


def repeat(name: str, path: Path) -> int:
    """Feed one input; return 1, having shown why, if it is a finding."""
    from .watching import signature, watched

    with tempfile.TemporaryDirectory(prefix="keyop-fuzz-") as directory:
        try:
            with watched(name, Path(directory)) as feed:
                feed(path.read_bytes())
        # What the fuzzer takes for a finding, too.
        except BaseException as error:
            traceback.print_exc()
            print(f"a finding: {signature(error)}")
            return 1
    print("no finding")
    return 0


def fuzz(
    name: str, guided: bool, seconds: float, runs: int, seed: int, out: Path | None
) -> Outcome:
    """Fuzz one target in a process of its own, which may do what it likes to itself."""
    from .seeds import seeds

    with tempfile.TemporaryDirectory(prefix="keyop-fuzz-") as directory:
        task = Task(name, directory, guided, seconds, runs, seed)
        task.corpus.mkdir()
        task.findings.mkdir()
        for number, each in enumerate(seeds(name)):
            (task.corpus / f"seed-{number:03}").write_bytes(each)
        begun = time.monotonic()
        ended, said = _run(task, Path(directory, "said"))
        took_s = time.monotonic() - begun
        findings = _collect(task, ended, said, out)
    counts = [int(first or second) for first, second in _RUNS.findall(said)]
    edges = [int(each) for each in _EDGES.findall(said)]
    return Outcome(max(counts, default=0), edges[-1] if edges else None, took_s, findings)


def _run(task: Task, said: Path) -> tuple[int | None, str]:
    """Return how the process ended, None if it had to be killed, and what it said."""
    command = [sys.executable, "-m", "tests.fuzz.feeder", json.dumps(task)]
    patience_s = None if task.runs else task.seconds + _GRACE_S
    with open(said, "wb") as output:
        try:
            status = subprocess.run(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=patience_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:  # it is killed by then
            status = None
    return status, said.read_text("utf-8", "replace")


def _collect(task: Task, ended: int | None, said: str, out: Path | None) -> list[Finding]:
    """Keep the inputs that were found, and say what each does."""
    inputs = sorted(path for path in task.findings.iterdir() if path.suffix != ".txt")
    if not inputs and ended != 0:
        last = "\n".join(said.splitlines()[-20:])
        raise FeederError(f"the process that fuzzes {task.target} ended with {ended}:\n{last}")
    if not inputs:
        return []
    kept = Path(tempfile.mkdtemp(prefix="keyop-findings-")) if out is None else out
    kept.mkdir(parents=True, exist_ok=True)
    findings = []
    for path in inputs:
        notes = path.with_suffix(".txt")
        text = notes.read_text("utf-8") if notes.exists() else f"{path.name}: {said[-2000:]}"
        copy = kept / f"{task.target}-{path.name}"
        shutil.copyfile(path, copy)
        copy.with_suffix(".txt").write_text(text, "utf-8")
        findings.append(Finding(copy, text.partition("\n")[0]))
    return findings


if __name__ == "__main__":
    sys.exit(main())
