"""What the parent knows of a contender: whether it is there, how to start it, what it can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from keyop.bench.peers.place import PUBLISHER, SERVER, Certificate, Place
from keyop.bench.peers.processes import Process, family, free_port

_RATES = ("publish", "batch", "publish-64", "backlog")
LOCAL = frozenset([*_RATES, "latency", "latency-idle", "memory", "first-message"])
TLS = frozenset(["mtls-one", "mtls-ten", "mtls-latency"])
NEAR = "mtls-near"

# Given a place of its own (its port is free), returns what to start; the last one serves there.
Commands = Callable[[Place], list[list[str]]]
# Given the place of a server near the publisher, which is to be without TLS, and the far one's.
NearCommand = Callable[[Place, Place], list[str]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A thing to compare with.

    Attributes:
        key: its name in options.
        title: its name for people.
        client: what a worker uses, ``module:class`` in this package; "" while there is no code.
        modules: the modules that it needs, by the name of their distributions.
        built_in: the version of what comes with Python.
        program: its server's, or "" if it is embedded.
        program_version: how to learn its version, where ``--version`` does not tell.
        commands: how the server is started.
        near: how one is started near the publisher that keeps everything, and hands it on to the
            server over mutual TLS; None where the client itself does that.
        measures: what it can do.
        polled: whether its readers look for new messages each millisecond.
        notes: what must be known beside a result, by measure; "" for all others.
    """

    key: str
    title: str
    client: str
    modules: Mapping[str, str] = field(default_factory=dict)
    built_in: str = ""
    program: str = ""
    program_version: Callable[[], str] | None = None
    commands: Commands | None = None
    near: NearCommand | None = None
    measures: frozenset[str] = LOCAL
    polled: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)

    def why_missing(self) -> str:
        """Return what is not installed, or ""."""
        for distribution, module in self.modules.items():
            if importlib.util.find_spec(module) is None:
                return f"the Python package {distribution} is not installed"
        if not self.client:
            return "it is installed, but there is no code here that uses it"
        if self.program and find_program(self.program) is None:
            return f"the program {self.program} is not installed"
        return ""

    def version(self) -> str:
        """Return the versions of its library and its server."""
        said = [f"{name} {importlib.metadata.version(name)}" for name in self.modules]
        said += [self.built_in] if self.built_in else []
        if self.program:
            tell = self.program_version or (lambda: _program_version(self.program))
            said.insert(0, f"{self.program} {tell()}")
        return ", ".join(said)

    def name_in(self, measure: str) -> str:
        """Return what to call it in a measure's results."""
        polled = self.polled and "latency" in measure
        return f"{self.title}, polled each 1 ms" if polled else self.title

    def note_in(self, measure: str) -> str:
        """Return what must be known beside its result."""
        return self.notes.get(measure) or self.notes.get("", "")

    @contextmanager
    def serving(
        self, directory: str, power: bool, certificate: Certificate | None
    ) -> Iterator[tuple[Place, list[int]]]:
        """Run its server, if it has one for that, below a directory; yield where, and its pids."""
        if self.commands is None or not (self.program or certificate):
            yield Place(directory, power=power), []
            return
        links_port = free_port() if self.near is not None else 0
        place = Place(directory, free_port(), power, SERVER, certificate, links_port)
        with ExitStack() as stack:
            started = []
            for command in self.commands(place):
                started.append(
                    Process(f"{self.key}: its server", command, f"{directory}/server.log")
                )
                stack.callback(started[-1].end)
            started[-1].await_port(place.port)
            yield place, [pid for each in started for pid in family(each.pid)]

    @contextmanager
    def near_serving(self, far: Place, certificate: Certificate) -> Iterator[Place]:
        """Run a server near the publisher, where it takes one; yield the publisher's place."""
        if self.near is None:
            yield far
            return
        directory = f"{far.directory}/near"
        os.mkdir(directory)
        near = Place(directory, free_port(), far.power, PUBLISHER, certificate)
        command = self.near(near, far)
        with Process(f"{self.key}: its near server", command, f"{directory}/server.log") as started:
            started.await_port(near.port)
            yield replace(near, certificate=None)


def find_program(name: str) -> str | None:
    """Return where a server is: on the path, beside this Python, or where daemons are."""
    places = [os.environ.get("PATH", ""), os.path.dirname(sys.executable), "/usr/sbin"]
    # Debian puts a script before this one that would run it as another user.
    places.insert(0, "/usr/lib/rabbitmq/bin")
    return shutil.which(name, path=os.pathsep.join(places))


def program(name: str) -> str:
    """Return where a server is that ``why_missing`` has found."""
    found = find_program(name)
    assert found is not None, name
    return found


def _program_version(name: str) -> str:
    """Return the first thing that looks like a version in what it says of itself."""
    asked = [program(name), "-h" if name == "mosquitto" else "--version"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    words = (done.stdout + done.stderr).replace("=", " ").split()
    numbers = (word.lstrip("v").rstrip(",") for word in words)
    return next((word for word in numbers if word[:1].isdigit() and "." in word), "")
