"""What type checkers say of programs that use keyop, right ones and wrong ones.

This directory is no package: it would hide the standard library's module of its name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WRONG = HERE / "wrong.py"
PROGRAMS = sorted((HERE / "programs").glob("*.py"))

# Names of what is wrong, by file and line.
Errors = Mapping[tuple[Path, int], set[str]]

_MYPY_LINE = re.compile(r"(.+?):(\d+): error: .*\[([\w-]+)\]")
_MARK = re.compile(r"# error: ([\w-]+), (\w+)$")
# A cold start on a busy machine; the checkers run while a module is set up, before tests are timed.
_PATIENCE_S = 600


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def mypy(request: pytest.FixtureRequest) -> Errors:
    """What mypy says of all programs here."""
    cache = request.config.cache.mkdir("keyop-mypy")
    # Errors in keyop itself are silenced, as they are for a program that has it installed.
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={cache}"]
    form = ["--no-pretty", "--no-color-output", "--no-error-summary", "--show-absolute-path"]
    done = run("-m", "mypy", *options, *form, str(WRONG), *map(str, PROGRAMS), MYPYPATH=str(ROOT))
    assert done.returncode == 1, done.stdout + done.stderr  # there are wrong programs
    errors: dict[tuple[Path, int], set[str]] = defaultdict(set)
    for line in done.stdout.splitlines():
        if match := _MYPY_LINE.fullmatch(line):
            errors[Path(match[1]), int(match[2])].add(match[3])
        else:
            assert ": note: " in line, line
    return errors


@pytest.fixture(scope="module")
def pyright() -> Errors:
    """What pyright says of all programs here, in its strict mode."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed (pip install pyright)")
    done = run("-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(HERE))
    assert done.returncode == 1, done.stdout + done.stderr
    errors: dict[tuple[Path, int], set[str]] = defaultdict(set)
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        if found["severity"] == "error":
            place = Path(found["file"]), found["range"]["start"]["line"] + 1
            errors[place].add(found.get("rule", found["message"]))
    return errors


def expected(checker: int) -> dict[int, str]:
    """Return the names that stand in the comments: mypy's are number 1, pyright's 2."""
    lines = WRONG.read_text("utf-8").splitlines()
    return {
        number: match[checker]
        for number, line in enumerate(lines, 1)
        if (match := _MARK.search(line))
    }


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_mypy_accepts(program: Path, mypy: Errors) -> None:
    """A right program passes ``mypy --strict``."""
    assert {place[1]: names for place, names in mypy.items() if place[0] == program} == {}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_pyright_accepts(program: Path, pyright: Errors) -> None:
    """A right program passes pyright's strict mode."""
    assert {place[1]: names for place, names in pyright.items() if place[0] == program} == {}


def compare(errors: Errors, checker: int) -> None:
    """Every marked line is reported as its mark says, and no other line is."""
    reported = {place[1]: names for place, names in errors.items() if place[0] == WRONG}
    wanted = expected(checker)
    assert len(wanted) > 20
    missed = {line: name for line, name in wanted.items() if name not in reported.get(line, ())}
    assert missed == {}
    assert {line: names for line, names in reported.items() if line not in wanted} == {}


def test_mypy_reports_what_is_wrong(mypy: Errors) -> None:
    """What is marked, and nothing else."""
    compare(mypy, 1)


def test_pyright_reports_what_is_wrong(pyright: Errors) -> None:
    """What is marked, and nothing else."""
    compare(pyright, 2)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built of a copy, so that the build leaves nothing in the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("keyop", "bin"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    done = run("-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(out), str(tree))
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_says_that_keyop_is_typed(wheel: Path) -> None:
    """Without ``py.typed``, checkers would not read the annotations of an installed keyop."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "keyop/py.typed" in names
    assert "keyop/__init__.py" in names
