"""What ``import keyop`` gives, and what it does not load before somebody asks for it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import keyop


@pytest.mark.parametrize("name", keyop.__all__)
def test_every_name_is_there(name: str) -> None:
    """Each public name is found, and is the one of the module that says so."""
    found = getattr(keyop, name)
    assert name in dir(keyop)
    home = getattr(found, "__module__", None)
    if home is not None:
        assert getattr(import_module(home), name) is found


def test_a_name_that_is_not_there() -> None:
    """It is missed as in any module."""
    with pytest.raises(AttributeError, match=r"^module 'keyop' has no attribute 'Mesenger'$"):
        keyop.Mesenger  # type: ignore[attr-defined]  # noqa: B018 - which is the point


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        ("import keyop", ["cryptography", "OpenSSL", "yaml", "click", "keyop.messenger"]),
        ("import keyop.testing", ["cryptography", "OpenSSL", "yaml", "click", "keyop.messenger"]),
        ("from keyop import Messenger", ["cryptography", "OpenSSL", "yaml", "click"]),
        ("import keyop.cli.tail", ["cryptography", "OpenSSL", "yaml", "keyop.messenger"]),
    ],
)
def test_what_takes_a_while_waits(program: str, heavy: list[str]) -> None:
    """Nobody waits for the import of what another one needs."""
    report = f"import sys; {program}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


def test_a_directory_for_a_configuration() -> None:
    """What is no configuration is refused at once, with what to give."""
    with pytest.raises(TypeError, match=r"give a Config, or data_dir=; './data' is neither"):
        keyop.Messenger("./data")  # type: ignore[arg-type]


def test_draining_without_pytest() -> None:
    """What a program's tests use does not need pytest, which the program has not."""
    program = (
        "import sys; sys.modules['pytest'] = None; from importlib import util;"
        "found = util.find_spec;"
        "util.find_spec = lambda name, *rest: None if name == 'pytest' else found(name, *rest);"
        "from keyop.testing import drain; print(drain.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("drain\n", "")
