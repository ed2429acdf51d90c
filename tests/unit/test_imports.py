"""The rooms of the house: imports point one way, and libraries keep their hands off the process."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "keyop"

# A module imports only what stands above it. Everything in a package ending in ".*" stands at its
# place and may import from its own package freely.
ORDER = [
    "errors",
    "version",
    "brief",
    "names",
    "clock",
    "fs",
    "timestamps",
    "ids",
    "backoff",
    "pace",
    "forks",
    "offload",
    "errand",
    "wakeup",
    "context",
    "logs",
    "patches",
    "latency",
    "envelope",
    "decode",
    "salvage",
    "typed",
    "payloads",
    "config_rules",
    "config_yaml",
    "config_schema",
    "config_federation",
    "config",
    "wire",
    "wire.frames",
    "wire.messages",
    "wire.session",
    "transport",
    "transport.tls",
    "transport.reader",
    "transport.masking",
    "transport.websocket",
    "transport.identity",
    "transport.contexts",
    "transport.dial",
    "transport.strangers",
    "transport.accept",
    "storage",
    "storage.segment",
    "storage.syncing",
    "storage.offsets",
    "storage.locks",
    "storage.standby",
    "storage.readers",
    "storage.recovery",
    "storage.active",
    "storage.environment",
    "storage.head",
    "storage.failstop",
    "storage.groupcommit",
    "storage.room",
    "storage.careful",
    "storage.log",
    "storage.cursor",
    "storage.recent",
    "storage.warm",
    "storage.position",
    "storage.retention",
    "storage.watch",
    "storage.store",
    "storage.claim",
    "dedup",
    "deadletter",
    "shared",
    "poller",
    "delivery",
    "monitor",
    "parallel",
    "checkpoint",
    "subscriber",
    "publisher",
    "subscriptions",
    "follow",
    "stats",
    "keygen.*",
    "audit_event",
    "audit_file",
    "audit",
    "federation",
    "federation.policy",
    "federation.limits",
    "federation.pages",
    "federation.selection",
    "federation.admission",
    "federation.feed",
    "federation.sender",
    "federation.receiver",
    "federation.link",
    "federation.instance",
    "federation.hub",
    "federation.outbox",
    "federation.client",
    "federation.outgoing",
    "federation.live",
    "federation.ephemeral",
    "federation.stale",
    "federation.federation",
    "federation.reload",
    "held",
    "channel_view",
    "inspection",
    "removal",
    "rawjson",
    "done",
    "deadletter_view",
    "deadletters",
    "requeue",
    "look.*",
    "web.*",
    "messenger",
    "web.gunicorn",
    "checking.*",
    "testing",
    "demo.*",
    "bench.*",
    "cli.*",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(module: str) -> int | None:
    """Return where a module stands in ORDER, or None if it is not there."""
    names = [module, f"{module.split('.')[0]}.*"]
    return next((ORDER.index(name) for name in names if name in ORDER), None)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """Return the modules of keyop that a file imports anywhere, without the ``keyop.``."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:  # "from keyop import x" may mean the module keyop.x
                below = f"{node.module}.{alias.name}"
                known = PACKAGE.joinpath(*below.split(".")[1:])
                is_module = known.is_dir() or known.with_suffix(".py").is_file()
                found.add(below if below.startswith("keyop.") and is_module else node.module)
    return {
        name.removeprefix("keyop").lstrip(".") for name in found if name.split(".")[0] == "keyop"
    }


MODULES = {
    module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if module_name(path) != ""
}
each_module = pytest.mark.parametrize("module", list(MODULES))


@each_module
def test_every_module_has_its_place(module: str) -> None:
    """A new module is entered into ORDER, so that its direction is decided, not found."""
    assert place(module) is not None, f"keyop.{module} is missing from ORDER in {__file__}"


@each_module
def test_imports_point_one_way(module: str) -> None:
    """A module imports only what stands above it in ORDER."""
    own = place(module)
    if own is None:
        pytest.skip("has no place, which another test reports")
    for name in sorted(imported(MODULES[module])):
        assert name != "", f"keyop.{module} imports from the package keyop itself"
        other = place(name)
        assert other is not None, f"keyop.{module} imports keyop.{name}, which has no place"
        same_package = other == own and ORDER[own].endswith(".*")
        assert other < own or same_package, f"keyop.{module} imports keyop.{name}, which is below"


def test_the_order_names_a_module_once() -> None:
    """No module stands at two places."""
    assert len(ORDER) == len(set(ORDER))


def test_a_backward_import_is_noticed(tmp_path: Path) -> None:
    """The search sees imports inside functions, of modules by name, and of names from modules."""
    path = tmp_path / "module.py"
    path.write_text(
        "import keyop.storage.log\nfrom keyop import messenger\n"
        "def f():\n    from keyop.config import Config\n"
    )
    assert imported(path) == {"storage.log", "messenger", "config"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("storage")])
def test_storage_knows_no_messenger(module: str) -> None:
    """Storage takes plain values: it knows neither subscribers nor the messenger nor Config."""
    above = {"subscriber", "messenger", "delivery", "parallel", "config"}
    assert not imported(MODULES[module]) & above


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.split(".")[0] not in ("cli", "bench", "demo")]
)
def test_only_the_command_line_uses_click(module: str) -> None:
    """A program that embeds keyop does not load a command line parser."""
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "click" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "click"


def intrusions(parsed: ast.Module) -> Iterator[str]:
    """Yield each thing that only the program itself may do to its process."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom) and node.module in ("gevent.monkey", "sys", "os"):
            for alias in node.names:
                if alias.name.startswith("patch_") or alias.name in ("exit", "_exit"):
                    yield f"line {node.lineno}: from {node.module} import {alias.name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rsplit(".", 1)[-1]
        if (
            last.startswith("patch_")
            or called in ("logging.basicConfig", "sys.exit", "os._exit", "exit", "quit")
            or (last == "getLogger" and not node.args and not node.keywords)
        ):
            yield f"line {node.lineno}: {called}()"


@pytest.mark.parametrize(
    "path",
    [*MODULES.values(), PACKAGE / "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_process_belongs_to_the_program(path: Path) -> None:
    """Nothing in the library patches, configures logging or ends the process.

    The entry point of the command line is the program, so it alone may call sys.exit.
    """
    allowed = "sys.exit()" if path == PACKAGE / "cli" / "program.py" else "nothing"
    assert [found for found in intrusions(tree(path)) if not found.endswith(allowed)] == []


@pytest.mark.parametrize(
    "source",
    [
        "monkey.patch_all()",
        "gevent.monkey.patch_socket()",
        "from gevent.monkey import patch_all",
        "logging.basicConfig(level=1)",
        "logging.getLogger()",
        "sys.exit(1)",
        "from sys import exit",
        "os._exit(0)",
    ],
)
def test_an_intrusion_is_noticed(source: str) -> None:
    """The search finds each of them."""
    assert list(intrusions(ast.parse(source)))
