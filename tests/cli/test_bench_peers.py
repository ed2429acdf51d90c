"""``bin/keyop-bench --peers`` in its quick form: that each is measured, not how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from keyop.bench.peers import contenders
from keyop.bench.peers.report import as_text, missing_as_text

ROOT = Path(__file__).parents[2]
BY_KEY = {each.key: each for each in contenders.CONTENDERS}
LOCAL = "publish,batch,publish-64,backlog,latency,latency-idle,memory,first-message"


def bench(
    directory: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bin" / "keyop-bench"), "--peers", "--quick"]
    return subprocess.run(
        [*command, "--rounds", "1", "--dir", directory.name, *options],
        cwd=directory.parent,  # servers have other working directories than the command
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env={**os.environ, **(env or {})},
    )


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of all processes that name this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if str(directory).encode() in line:
                found.append(line.replace(b"\0", b" ").decode())
    return found


def measured(directory: Path, only: str, names: str) -> dict[str, Any]:
    """Return what a run has printed; check that each is there and nothing is left."""
    done = bench(directory, "--json", "--only", only, "--contenders", names)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    assert [each["measure"] for each in printed["measures"]] == only.split(",")
    for measure in printed["measures"]:
        for result in measure["results"]:
            assert result["median"] > 0
            assert result["version"]
            if "latency" in measure["measure"]:
                assert result["p99"] >= result["median"]
    assert os.listdir(directory) == []
    assert processes_of(directory) == []
    return printed


def titles(measure: dict[str, Any]) -> list[str]:
    return [result["name"] for result in measure["results"]]


def needs(*keys: str) -> None:
    """Skip the test, naming what it needs, where that is not installed."""
    for key in keys:
        if why := BY_KEY[key].why_missing():
            pytest.skip(why)


def test_on_one_host(tmp_path: Path) -> None:
    """keyop and SQLite, in all measures that need no server; keyop comes first."""
    printed = measured(tmp_path, LOCAL, "sqlite,keyop")
    for measure in printed["measures"]:
        polled = ", polled each 1 ms" if "latency" in measure["measure"] else ""
        assert titles(measure) == ["keyop", f"SQLite{polled}"]
    assert printed["missing"] == []
    syncs = printed["measures"][2]["results"]
    for result in syncs:
        # Without strace, or where it may not attach, a note says so.
        assert result["syncs_per_message"] or "syncs not counted" in result["note"]


def test_with_servers(tmp_path: Path) -> None:
    """A server is started for each round; mosquitto has nothing that survives a power loss."""
    needs("redis", "nats", "mosquitto")
    printed = measured(tmp_path, "publish-64,backlog,latency", "redis,nats,mosquitto")
    servers = ["Redis Streams", "NATS JetStream", "mosquitto"]
    assert [titles(measure) for measure in printed["measures"]] == [servers[:2], servers, servers]


def test_over_tls(tmp_path: Path) -> None:
    """Mutual TLS to the server, and from it to the subscribers."""
    needs("redis", "nats", "mosquitto")
    printed = measured(tmp_path, "mtls-one", "keyop,redis,nats,mosquitto")
    (rates,) = printed["measures"]
    assert titles(rates) == ["keyop", "Redis Streams", "NATS JetStream", "mosquitto"]
    printed = measured(tmp_path, "mtls-latency", "keyop,nats")
    assert titles(printed["measures"][0]) == ["keyop", "NATS JetStream"]


def test_a_server_near_the_publisher(tmp_path: Path) -> None:
    """A leaf node, a bridge, and keyop's own client keep what they hand on."""
    needs("nats", "mosquitto")
    printed = measured(tmp_path, "mtls-near", "keyop,redis,nats,mosquitto")
    assert titles(printed["measures"][0]) == ["keyop", "NATS JetStream", "mosquitto"]


def test_ephemeral_clients(tmp_path: Path) -> None:
    """keyop's clients that keep no log are a contender of their own."""
    printed = measured(tmp_path, "mtls-one,mtls-latency", "keyop-ephemeral")
    for measure in printed["measures"]:
        assert titles(measure) == ["keyop, ephemeral clients"]


def test_queues_of_one_host(tmp_path: Path) -> None:
    """persist-queue has no batches, the others do all."""
    needs("persist-queue", "litequeue", "diskcache")
    names, queues = "persist-queue,litequeue,diskcache", ["persist-queue", "litequeue"]
    queues.append("diskcache Deque")
    if not BY_KEY["honker"].why_missing():  # there are no packages of it for every Linux
        names += ",honker"
        queues.append("honker")
    printed = measured(tmp_path, "batch,backlog", names)
    assert [titles(measure) for measure in printed["measures"]] == [queues[1:], queues]


def test_rabbitmq(tmp_path: Path) -> None:
    """It brings a port mapper of its own, which ends with it."""
    needs("rabbitmq")
    printed = measured(tmp_path, "latency", "rabbitmq")
    assert titles(printed["measures"][0]) == ["RabbitMQ"]


def test_for_people(tmp_path: Path) -> None:
    """A table with keyop's ratio, and what is not installed at the end."""
    names = "keyop,sqlite,honker"
    done = bench(tmp_path, "--only", "publish", "--contenders", names)
    assert done.returncode == 0, done.stderr
    head, keyop, sqlite, *_, last = done.stdout.splitlines()
    assert "survives the process" in head
    assert keyop.startswith("  keyop ")
    assert "keyop" in sqlite
    assert "×" in sqlite
    if BY_KEY["honker"].why_missing():
        assert last.startswith("not compared with honker: ")
    else:
        assert "honker" in done.stdout


def test_the_table() -> None:
    """Three digits, thousands set apart, notes below."""
    table = as_text(
        {
            "measure": "publish",
            "title": "One publisher",
            "unit": "messages/s",
            "durability": "survives the process",
            "results": [
                {"name": "keyop", "median": 123456.0, "syncs_per_message": 0.0012},
                {"name": "other", "median": 40000.0, "note": "it is another"},
            ],
        }
    )
    assert table.splitlines() == [
        "One publisher (publish; survives the process)",
        "  keyop    123,000 messages/s, 0.0012 syncs each",
        "  other     40,000 messages/s  keyop 3.09 ×",
        "    other: it is another",
    ]
    assert missing_as_text([{"name": "honker", "why": "not installed"}]) == [
        "not compared with honker: not installed"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "speed"], "no measure 'speed'; there are publish, batch"),
        (
            ["--contenders", "kafka"],
            "no contender 'kafka'; there are keyop, keyop-ephemeral, sqlite",
        ),
        (["--federation"], "only one of --federation, --peers and --scaling"),
    ],
)
def test_called_wrongly(tmp_path: Path, options: list[str], said: str) -> None:
    """One line says what is wrong, and nothing is measured."""
    done = bench(tmp_path, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert os.listdir(tmp_path) == []


def test_ended_meanwhile(tmp_path: Path) -> None:
    """On SIGTERM it ends what it has started, and takes its directory away."""
    command = [sys.executable, str(ROOT / "bin" / "keyop-bench"), "--peers", "--dir", str(tmp_path)]
    command += ["--only", "latency", "--contenders", "keyop"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not any(" subscriber " in line for line in processes_of(tmp_path)):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.01)
        running.terminate()
        assert running.wait(30) == 1
    finally:
        running.kill()
        running.wait()
    assert os.listdir(tmp_path) == []
    assert processes_of(tmp_path) == []


def test_a_server_that_dies(tmp_path: Path) -> None:
    """The error names the contender and repeats what its server said last."""
    pytest.importorskip("redis")
    pytest.importorskip("hiredis")
    programs = tmp_path / "programs"
    programs.mkdir()
    broken = programs / "redis-server"
    broken.write_text("#!/bin/sh\necho out of electricity >&2\nexit 3\n")
    broken.chmod(0o700)
    work = tmp_path / "work"
    work.mkdir()
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = bench(work, "--only", "publish", "--contenders", "redis", env={"PATH": path})
    assert done.returncode == 1
    assert "redis: its server ended with status 3: out of electricity" in done.stderr
    assert os.listdir(work) == []
    assert processes_of(work) == []
