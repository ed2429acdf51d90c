"""Kept inputs, inputs that Hypothesis draws, and the command that looks for more at length."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyop import Config
from keyop.federation.admission import Admission
from keyop.wire.messages import Hello

from . import run, strategies
from .feeder import Keeper, Task, damaged
from .frames import receive
from .records import MAX_RECORD_BYTES, NAME, PEER, with_checksum
from .run import ROOT, FeederError, main
from .seeds import SEEDS, recorded, seeds
from .streams import WHOLE
from .targets import TARGETS
from .upgrades import Door
from .watching import watched

FINDINGS = Path(__file__).parent / "findings"
QUICK_S = 2
# Of those that work on a disk, fewer.
EXAMPLES = {name: 25 if target.needs_directory else 60 for name, target in TARGETS.items()}
EXAMPLES |= {"record": 150, "batch": 100, "config": 60, "letters": 10, "segment": 15}

each_target = pytest.mark.parametrize("name", TARGETS)


def drawing(examples: int) -> settings:
    """Return how to draw: always the same, so that a test fails for what was changed."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class TestKeptInputs:
    @each_target
    def test_seeds(self, name: str, tmp_path: Path) -> None:
        """What keyop itself has written, and what was recorded of v0.11.0, is nothing to it."""
        assert list((SEEDS / name).iterdir())
        with watched(name, tmp_path) as feed:
            for each in seeds(name):
                feed(each)

    @pytest.mark.parametrize(
        "finding", [f"{path.parent.name}/{path.name}" for path in sorted(FINDINGS.glob("*/*"))]
    )
    def test_findings(self, finding: str, tmp_path: Path) -> None:
        """What once did what it must not does it no more."""
        with watched(finding.partition("/")[0], tmp_path) as feed:
            feed((FINDINGS / finding).read_bytes())


class TestDrawnInputs:
    @each_target
    def test_what_is_almost_right(self, name: str, tmp_path: Path) -> None:
        """Right inputs with a small damage do no more than their contract allows."""
        with watched(name, tmp_path) as feed:

            @drawing(EXAMPLES[name])
            @given(strategies.damaged(strategies.RIGHT[name], name))
            def look(data: bytes) -> None:
                feed(data)

            look()

    @drawing(60)
    @given(data=st.data(), masked=st.booleans())
    def test_right_messages_come(self, data: st.DataObject, masked: bool) -> None:
        """Messages come as they were sent, in however many frames, pings between them."""
        messages = data.draw(strategies.messages())
        sent = data.draw(strategies.sent(messages, masked))
        assert receive(sent, client=not masked).messages == messages

    @drawing(60)
    @given(data=st.data(), role=st.sampled_from(("client", "hub")))
    def test_right_hellos_are_taken(self, data: st.DataObject, role: str) -> None:
        """A hello with whatever may be in one is read."""
        fields = data.draw(strategies.hello_fields(role))
        hello = Hello.decode(strategies.as_json(fields).decode(), role)
        assert hello.instance_name == fields["instance_name"]
        assert list(hello.subscribe) == list(dict.fromkeys(fields.get("subscribe", ())))

    @drawing(60)
    @given(strategies.lines(st.just((",", ":"))))
    def test_right_records_are_taken(self, line: bytes) -> None:
        """A record with whatever may be in one is taken from a peer."""
        Admission(NAME, PEER, MAX_RECORD_BYTES).admit(line[:-1])

    @drawing(40)
    @given(made=strategies.settings())
    def test_right_configurations_load(self, made: Any, tmp_path_factory: Any) -> None:
        """A file says the same as the mapping that it was made from."""
        path = tmp_path_factory.mktemp("config") / "keyop.yaml"
        path.write_bytes(strategies.as_yaml(made))
        assert Config.load(path) == Config.from_dict(made)

    def test_right_requests_become_connections(self) -> None:
        """Whatever else is in the head, and whichever path is asked for."""
        door = Door()

        @drawing(40)
        @given(strategies.upgrades())
        def look(data: bytes) -> None:
            assert door.enter(data, WHOLE).received is not None

        try:
            look()
        finally:
            door.close()


class TestWhatFuzzes:
    """A fuzzer that finds nothing must be one that could."""

    def test_right_checksums_are_put_in_place(self) -> None:
        """A damaged record gets further with the checksum that fits."""
        line = b'{"v":1,"id":"a","payload":1,"crc":"00000000"}'
        mended = with_checksum(line)
        assert mended != line
        assert with_checksum(mended) == mended
        assert TARGETS["record"].mend(b"x\n" + line) == b"x\n" + mended

    @each_target
    def test_damage(self, name: str) -> None:
        """Damaged inputs differ from the one they come from, and are not too long."""
        rng, target = Random(1), TARGETS[name]
        (one, *_) = [each for each in seeds(name) if each]
        made = {damaged(rng, target, one) for _ in range(50)}
        assert len(made) > 20
        assert all(len(each) <= target.max_bytes for each in made)

    def test_a_finding_is_kept_once_and_small(self, tmp_path: Path) -> None:
        """Of a thousand bytes, those two that do it are left."""

        def feed(data: bytes) -> None:
            if b"x" in data and b"y" in data:
                raise ValueError("x and y")

        keep = Keeper(feed, tmp_path)
        for filling in (b"a", b"b"):
            keep(filling * 500 + b"x" + filling * 300 + b"y" + filling * 200)
            keep(filling)
        (kept,) = [path for path in tmp_path.iterdir() if not path.suffix]
        assert kept.read_bytes() == b"xy"
        assert "x and y" in kept.with_suffix(".txt").read_text()

    def test_what_is_only_logged_is_found(self, tmp_path: Path) -> None:
        """An exception that the page answers with 500 is raised as it was."""
        with watched("page", tmp_path) as feed:
            import keyop.web.api

            failing = pytest.MonkeyPatch()
            failing.setattr(keyop.web.api, "place", _fail)
            try:
                with pytest.raises(ZeroDivisionError):
                    feed(b"GET /api/v1/channels/orders/messages\nHost: localhost")
            finally:
                failing.undo()

    def test_recordings(self) -> None:
        """Where the recordings of v0.11.0 are, there is something in them for most targets."""
        if not recorded("frames"):
            pytest.skip("the recorded v0.11.0 data is not there (set KEYOP_GOLDEN)")
        assert all(recorded(each) for each in TARGETS if each not in ("page", "link"))


def _fail(text: str) -> None:
    raise ZeroDivisionError


class TestTheCommand:
    @pytest.fixture
    def command(self, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "tests.fuzz.run", "--out", str(tmp_path), *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
            )

        return run

    @pytest.mark.parametrize("names", [list(TARGETS)[:6], list(TARGETS)[6:]], ids=" ".join)
    @pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris: pip install atheris")
    def test_guided(self, names: list[str], command: Any) -> None:
        """For two seconds each, atheris finds nothing."""
        wanted = [word for name in names for word in ("--target", name)]
        done = command(*wanted, "--seconds", str(QUICK_S), "--seed", "7", "--jobs", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        for name in names:
            told = re.search(rf"^{name}: ([0-9,]+) runs in .* edges, ", done.stdout, re.MULTILINE)
            assert told is not None, done.stdout
            assert told[1] != "0"

    def test_not_guided(self, command: Any) -> None:
        """Without atheris, mutations find nothing either, and how many there were is said."""
        done = command("--target", "record", "--runs", "200", "--unguided", "--seed", "7")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "record: 200 runs in " in done.stdout
        assert "edges" not in done.stdout

    def test_without_atheris(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where it is not installed, that is said, and the mutations do what they can."""
        monkeypatch.setattr(run, "find_spec", lambda name: None)
        assert main(["--target", "offset", "--runs", "10", "--seed", "7"]) == 0
        told = capsys.readouterr().out
        assert "atheris is not installed (pip install atheris)" in told
        assert "offset: 10 runs in " in told

    def test_a_finding(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        """It is kept, the command says how to repeat it, and ends with 1."""

        def find(task: Task, said: Path) -> tuple[int, str]:
            (task.findings / "abc").write_bytes(b"x")
            (task.findings / "abc.txt").write_text("ValueError somewhere\nTraceback")
            return 0, "#17 NEW cov: 5 ft: 6\n#23 DONE cov: 1234 ft: 9\n"

        monkeypatch.setattr(run, "_run", find)
        monkeypatch.setattr(run, "find_spec", lambda name: name)
        assert main(["--target", "offset", "--seed", "7", "--out", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().out
        assert re.search(r"^offset: 23 runs in .* s, 1,234 edges, 1 finding$", told, re.MULTILINE)
        kept = tmp_path / "out" / "offset-abc"
        assert "  ValueError somewhere\n    again: python -m tests.fuzz.run --target offset" in told
        assert told.endswith(f" --input {kept}\n")
        assert kept.read_bytes() == b"x"

    def test_a_process_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What ends by itself, without an input that made it, has found nothing and not looked."""
        monkeypatch.setattr(run, "_run", lambda task, said: (3, "no module of that name"))
        with pytest.raises(FeederError, match=r"ended with 3:\nno module of that name"):
            main(["--target", "offset", "--unguided"])

    def test_one_input(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """An input is fed again with ``--input``."""
        path = tmp_path / "input"
        path.write_bytes(b"17\n")
        assert main(["--target", "offset", "--input", str(path)]) == 0
        assert capsys.readouterr().out == "no finding\n"

    def test_an_input_needs_a_target(self) -> None:
        """Otherwise nobody knows what it is for."""
        with pytest.raises(SystemExit, match="one --target"):
            main(["--input", "x"])
