"""What README and docs show is run as it stands."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest

from keyop import Config
from tests.cli.conftest import logging_restored
from tests.cli.helpers import keyop

__all__ = ["logging_restored"]  # a fixture that each test here uses

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: the file and line where it begins, its language, its text."""

    where: str
    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of README and docs in these languages."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            if match[1] in languages:
                found.append(Block(f"{path.relative_to(ROOT)}:{line}", match[1], match[2]))
    return found


def environment() -> dict[str, str]:
    """Return an environment in which keyop and its commands are found, and no data directory."""
    here = [str(ROOT / "bin"), os.path.dirname(sys.executable)]
    made = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([*here, "/usr/bin:/bin"]),
    }
    made.pop("KEYOP_DATA_DIR", None)
    return made


def by_place(found: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", found, ids=[each.where for each in found])


@by_place(blocks("python"))
def test_python(block: Block, tmp_path: Path) -> None:
    """A program ends well; what it prints stands in its comments where there are such."""
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", block.text],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=50,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    for wanted in re.findall(r"#> (.*)", block.text):
        assert wanted in done.stdout


# Its commands build on each other, and are followed from top to bottom further down.
OPERATIONS = "docs/operations.md"


@by_place([each for each in blocks("console") if not each.where.startswith(OPERATIONS)])
def test_console(block: Block, tmp_path: Path) -> None:
    """Each command ends well and prints what stands under it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            timeout=50,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if shown.strip():
            assert done.stdout.split() == shown.split(), command


@by_place(blocks("yaml"))
def test_yaml(block: Block) -> None:
    """A configuration, or a part of one, is one that keyop takes."""
    import yaml

    data = yaml.safe_load(block.text)
    data.setdefault("storage", {}).setdefault("data_dir", "./keyop-data")
    Config.from_dict(data)


class Operator:
    """Types in what a document shows, in the working directory, and compares what comes of it."""

    def __init__(self, running: ExitStack) -> None:
        self._directory = Path.cwd()
        self._running = running
        self._shown: list[tuple[str, Path, str]] = []

    def type(self, command: str, shown: str) -> None:
        """Run one command; one that only looks is run until it shows what it should."""
        if command.endswith(" &"):
            self._start(command.removesuffix(" &"), shown)
        elif command.startswith("grep "):
            eventually(lambda: alike(self._run(command).stdout, shown), command)
        elif command.startswith("keyop "):  # in this process, which is quicker
            result = keyop(*shlex.split(command)[1:])
            assert result.status == 0, f"{command}: {result.err}"
            assert not shown or alike(result.out, shown), f"{command}: {result.out}"
        else:
            done = self._run(command)
            assert done.returncode == 0, f"{command}: {done.stderr}"

    def look_again(self) -> None:
        """What runs in the background has written what is shown below it."""
        for command, out, shown in self._shown:
            eventually(lambda out=out, shown=shown: alike(out.read_text(), shown), command)

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command],
            cwd=self._directory,
            env=environment(),
            capture_output=True,
            timeout=50,
            text=True,
            check=False,
        )

    def _start(self, command: str, shown: str) -> None:
        """Start something that goes on; return when it has said that it does."""
        out, err = (self._directory / f"{len(self._shown)}.{name}" for name in ("out", "err"))
        with open(out, "wb") as to_out, open(err, "wb") as to_err:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self._directory,
                env=environment(),
                stdout=to_out,
                stderr=to_err,
            )
        self._running.callback(process.wait, 30)
        self._running.callback(process.send_signal, signal.SIGTERM)
        eventually(lambda: re.search("listens on|following", out.read_text() + err.read_text()),
                   command)  # fmt: skip
        self._shown.append((command, out, shown))


def alike(printed: str, shown: str) -> bool:
    """Tell whether a text is the one shown, whose ``…`` stands for anything."""
    pattern = ".*".join(map(re.escape, " ".join(shown.split()).split("…")))
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_hub_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints what stands there, and what it prints works as it stands."""
    port = free_port()
    monkeypatch.chdir(tmp_path)
    (shown,) = [each.text for each in blocks("text") if each.where.startswith("README.md")]
    shown = shown.replace("7740", port).replace("7741", str(int(port) + 1))
    command, _, shown = shown.removeprefix("$ ").partition("\n")
    with ExitStack() as running:
        operator = Operator(running)
        operator.type(f"{command} --listen 127.0.0.1:{port} &", shown)
        operator.look_again()
        follow, publish = re.findall("^  (.*)", (tmp_path / "0.out").read_text(), re.MULTILINE)
        operator.type(f"{follow} &", '{"hello":"world"}')
        operator.type(publish, "")
        operator.look_again()


@pytest.mark.parametrize(("line", "role"), [(0, "client"), (1, "hub")])
def test_hellos(line: int, role: str) -> None:
    """The hellos that are shown are such, to the byte."""
    from keyop.wire.messages import Hello

    (shown,) = [each.text for each in blocks("text") if each.where.startswith("docs/wire.md")]
    text = shown.splitlines()[line]
    assert Hello.decode(text, role).encode() == text


def free_port() -> str:
    """Return a port that is free, as is the next one, which the page takes."""
    while True:
        with closing(socket.socket()) as unused, closing(socket.socket()) as following:
            unused.bind(("127.0.0.1", 0))
            port: int = unused.getsockname()[1]
            try:
                following.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return str(port)


def test_operations_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who types in what stands there gets what stands there."""
    port = free_port()
    monkeypatch.chdir(tmp_path)
    with ExitStack() as running:
        operator = Operator(running)
        for block in blocks("yaml", "console"):
            if not block.where.startswith(OPERATIONS):
                continue
            text = block.text.replace("7740", port)
            if block.language == "yaml":
                name = text.partition("\n")[0].removeprefix("# ")
                (tmp_path / name).write_text(text)
                continue
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                operator.type(command, shown.strip())
        operator.look_again()


@by_place(blocks("json"))
def test_records(block: Block) -> None:
    """A record that is shown is a sound one."""
    from keyop.decode import decode

    for line in block.text.encode().splitlines():
        assert decode(line)["v"] == 1


def test_the_test_command_is_what_ci_runs() -> None:
    """The README's command runs ``bin/check``, and CI takes it from there."""
    commands = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines()
                if line.endswith("bin/check")]  # fmt: skip
    assert len(commands) == 1
    assert shlex.split(commands[0])[-1] == "bin/check"
    assert "README.md" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_links_lead_somewhere() -> None:
    """Every relative link in README and docs is to a file that is there."""
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_examples_of_configurations() -> None:
    """Every file in ``conf`` is taken as it is."""
    found = sorted((ROOT / "conf").glob("*.yaml"))
    assert len(found) >= 4
    for path in found:
        Config.load(path)
