"""``keyop config check``: every problem at once, or the values in effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyop.cli.config import effective
from keyop.config import Config

from .helpers import ROOT, keyop, refused, well


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(
        tmp_path / "good.yaml",
        """
name: hub-1
storage: {data_dir: /nowhere, max_files: 0}
hub:
  enabled: true
  listen_addr: "127.0.0.1:7740"
  allowed_peers: [{name: a, subscribe: [x, y]}, {name: b}]
web: {listen_addr: "0.0.0.0:80", token: hunter2}
""",
    )


BAD = "nam: x\nstorage: {data_dir: '', sync_policy: sometimes}\n"


def test_a_good_file(good: Path) -> None:
    """A short line; nothing that the file names is opened or created."""
    assert well("config", "check", good).out == f"{good}: all right\n"
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda each: each.name)
def test_the_examples_are_good(path: Path) -> None:
    """Every example configuration passes."""
    well("config", "check", path)


@pytest.mark.parametrize("args", [["config", "check", "-v"], ["-v", "config", "check"]])
def test_the_values_in_effect(good: Path, args: list[str]) -> None:
    """With -v every key is there with its value, defaults included, secrets not."""
    lines = well(*args, good).lines
    assert '  name: "hub-1"' in lines
    assert "  storage.max_files: 0" in lines
    assert "  storage.max_segment_bytes: null" in lines
    assert "  hub.enabled: true" in lines
    assert '  hub.allowed_peers[0].subscribe: ["x", "y"]' in lines
    assert "  hub.allowed_peers[1].publish: []" in lines
    assert "  client.hubs: []" in lines
    assert '  web.token: "(set)"' in lines
    assert "hunter2" not in "".join(lines)


def test_a_good_file_as_json(good: Path) -> None:
    """--json has the values too, secrets left out."""
    result = well("config", "check", good, "--json")
    assert result.json["ok"] is True
    assert result.json["problems"] == []
    assert result.json["values"]["hub.listen_addr"] == "127.0.0.1:7740"
    assert "hunter2" not in result.out


def test_every_problem_at_once(tmp_path: Path) -> None:
    """Each problem is a line with its key, the value and what is allowed; exit status 1."""
    path = write(tmp_path / "bad.yaml", BAD)
    result = keyop("config", "check", path)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines() == [
        f"keyop: {path}: nam: unknown key; did you mean name?",
        f"keyop: {path}: storage.sync_policy: 'sometimes' is not allowed; use one of none, "
        "periodic, always",
        f"keyop: {path}: storage.data_dir: '' is not allowed; name a directory",
    ]


def test_problems_as_json(tmp_path: Path) -> None:
    """--json lists them, with the same exit status."""
    path = write(tmp_path / "bad.yaml", BAD)
    result = keyop("config", "check", path, "--json")
    assert (result.status, result.err) == (1, "")
    assert result.json["ok"] is False
    assert len(result.json["problems"]) == 3


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\x00"])
def test_what_is_no_yaml(tmp_path: Path, text: str) -> None:
    """A file of another kind is one problem."""
    path = write(tmp_path / "bad.yaml", text)
    assert str(path) in refused(1, "config", "check", path)


def test_no_such_file(tmp_path: Path) -> None:
    """A file that is missing is a failure; none at all is wrong use."""
    assert "No such file" in refused(1, "config", "check", tmp_path / "nope.yaml")
    assert "Missing argument 'FILE'" in refused(2, "config", "check")


def test_a_hostile_file_is_printed_safely(tmp_path: Path) -> None:
    """Control characters in a key or a value do not reach the terminal."""
    path = write(tmp_path / "bad.yaml", '"\\e[31mx": 1\nname: "\\e[31m"\n')
    assert "\x1b" not in keyop("config", "check", path).err


def test_secrets_that_are_not_set_are_empty() -> None:
    """Whether a secret is set can be seen."""
    assert dict(effective(Config.from_dict({"storage": {"data_dir": "d"}})))["web.token"] == ""
