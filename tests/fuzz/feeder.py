"""The process that feeds one target, guided by coverage where atheris is there.

It is told what to do in one argument, and keeps what it finds in files: ``run`` starts it. A
finding does not end it. What it does not survive (a crash, a hang, too much memory) is left in a
file by libFuzzer, which atheris is made of.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FunctionType, ModuleType
from typing import NamedTuple

from tests.reliability.mutations import mutated

from .targets import TARGETS, Feed, Target
from .watching import signature, watched

TIMEOUT_S = 20
_MEMORY_MB = 2048
# So long a finding is made smaller; that counts as a part of its run, which may be timed out.
_REDUCE_S = 5.0
# More are not looked for: whatever is wrong is wrong everywhere.
_MAX_FINDINGS = 20
# How often the mutation fuzzer says how far it is.
_TELL_S = 0.5


class Task(NamedTuple):
    """What to do: for so many seconds, or so many runs where that is not 0."""

    target: str
    directory: str
    guided: bool
    seconds: float
    runs: int
    seed: int

    @property
    def findings(self) -> Path:
        """Where findings go: the input, and beside it what happened."""
        return Path(self.directory, "findings")

    @property
    def corpus(self) -> Path:
        """Where inputs come from."""
        return Path(self.directory, "corpus")


class Keeper:
    """Feeds, and keeps each kind of finding once, as small as it gets."""

    def __init__(self, feed: Feed, directory: Path) -> None:
        self._feed = feed
        self._directory = directory
        self._known: set[str] = set()

    def __call__(self, data: bytes) -> None:
        found = self._fails(data)
        if found is None or found[0] in self._known or len(self._known) >= _MAX_FINDINGS:
            return
        self._known.add(found[0])
        small, trace = self._reduced(data, *found)
        path = self._directory / hashlib.sha256(small).hexdigest()[:12]
        path.write_bytes(small)
        path.with_suffix(".txt").write_text(f"{found[0]}\n{trace}", "utf-8", "backslashreplace")

    def _fails(self, data: bytes) -> tuple[str, str] | None:
        try:
            self._feed(data)
        # Whatever it is, it is a finding: and gevent.Timeout is not an Exception.
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return signature(error), traceback.format_exc()
        return None

    def _reduced(self, data: bytes, wanted: str, trace: str) -> tuple[bytes, str]:
        """Leave out parts as long as the same happens, large ones first."""
        size, until = len(data) // 2, time.monotonic() + _REDUCE_S
        while size and time.monotonic() < until:
            begin = 0
            while begin < len(data) and time.monotonic() < until:
                shorter = data[:begin] + data[begin + size :]
                found = self._fails(shorter)
                if found is not None and found[0] == wanted:
                    data, trace = shorter, found[1]
                else:
                    begin += size
            size //= 2
        return data, trace


def damaged(rng: Random, target: Target, data: bytes) -> bytes:
    """Return an input that is almost this one."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.random()
        if kind < 0.4:
            data = target.words.swapped(data, rng.randrange)
        elif kind < 0.6:
            at = rng.randrange(len(data) + 1)
            end = at + rng.choice((0, 0, 1, 8))
            data = data[:at] + rng.choice(target.words.tokens) + data[end:]
        else:
            data = mutated(rng, data)
    return (target.mend(data) if rng.random() < 0.5 else data)[: target.max_bytes]


# -- without guidance


def _mutate(task: Task, target: Target, feed: Callable[[bytes], None]) -> None:
    rng = Random(task.seed)
    corpus = [path.read_bytes() for path in sorted(task.corpus.iterdir())]
    end, told, runs = time.monotonic() + task.seconds, 0.0, len(corpus)
    while runs < task.runs if task.runs else time.monotonic() < end:
        feed(damaged(rng, target, rng.choice(corpus)))
        runs += 1
        if time.monotonic() > told:
            told = time.monotonic() + _TELL_S
            _tell(runs)
    _tell(runs)


def _tell(runs: int) -> None:
    print(f"stat::number_of_executed_units: {runs}", flush=True)


# -- guided by coverage


def _guide(task: Task, target: Target, feed: Callable[[bytes], None]) -> None:
    import atheris

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.5:
            return damaged(rng, target, data)[:max_size]
        changed: bytes = atheris.Mutate(data, max_size)
        return (target.mend(changed) if rng.random() < 0.3 else changed)[:max_size]

    dictionary = Path(task.directory, "dictionary")
    dictionary.write_text("".join(map(_quoted, target.words.tokens)))
    limit = f"-runs={task.runs}" if task.runs else f"-max_total_time={max(1, int(task.seconds))}"
    # The options of libFuzzer.
    arguments = [
        "fuzz",
        str(task.corpus),
        limit,
        f"-seed={task.seed % (1 << 31) or 1}",
        f"-max_len={target.max_bytes}",
        f"-timeout={TIMEOUT_S}",
        f"-report_slow_units={TIMEOUT_S}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-artifact_prefix={task.findings}/",
        f"-dict={dictionary}",
        "-print_final_stats=1",
        "-detect_leaks=0",
    ]
    atheris.Setup(arguments, feed, custom_mutator=mutate)
    atheris.Fuzz()


def _quoted(token: bytes) -> str:
    # libFuzzer takes up to 64 bytes.
    return '"' + "".join(f"\\x{each:02x}" for each in token[:64]) + '"\n'


def _instrument(target: Target) -> int:
    """Have the functions of the modules that were loaded counted; return how many there are.

    In place of instrumenting all that is imported, which takes longer than a short run.
    """
    import atheris

    functions = {
        id(function): function
        for name, module in list(sys.modules.items())
        if any(name == each or name.startswith(f"{each}.") for each in target.covers)
        for function in _functions(module)
    }
    for function in functions.values():
        # What keyop compares, inputs are steered towards; with others' parsers, that is too slow.
        compares = function.__module__.startswith("keyop.")
        function.__code__ = atheris.patch_code(function.__code__, trace_dataflow=compares)
    return len(functions)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield a module's functions and methods, whatever they are wrapped in."""
    for value in vars(module).values():
        members = [value]
        if inspect.isclass(value) and value.__module__ == module.__name__:
            members = list(vars(value).values())
        for each in members:
            inner = getattr(each, "fget", None) or getattr(each, "__func__", None) or each
            inner = inspect.unwrap(inner)
            if isinstance(inner, FunctionType) and inner.__module__ == module.__name__:
                yield inner


def main() -> None:
    task = Task(*json.loads(sys.argv[1]))
    target = TARGETS[task.target]
    place = Path(task.directory, "place")
    place.mkdir()
    with watched(task.target, place) as feed:
        keeper = Keeper(feed, task.findings)
        # This also loads what is loaded when it is needed.
        for path in sorted(task.corpus.iterdir()):
            keeper(path.read_bytes())
        if task.guided:
            print(f"{_instrument(target)} functions are counted", flush=True)
            _guide(task, target, keeper)
        else:
            _mutate(task, target, keeper)


if __name__ == "__main__":
    main()
