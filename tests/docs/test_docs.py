"""What README and docs show is run as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from keyop import Config

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


@by_place(blocks("console"))
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
