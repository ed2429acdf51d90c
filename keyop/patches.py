"""Monkey patches that came too late for a module, or are missing beside others.

keyop itself needs none: it waits with what it imports from gevent. Handlers do, and what they call:
a module that has imported ``from time import sleep`` before the program patched goes on with the
old one, which blocks everybody. Objects that were made, and classes that were derived, before
patching cannot be found; what they block is named by ``keyop.monitor`` when it happens.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from gevent import monkey

logger = logging.getLogger(__name__)

# What waits, or never wakes a greenlet that waits for it, where gevent has not replaced it.
WAITING: Mapping[str, tuple[str, ...]] = {
    "time": ("sleep",),
    "socket": (
        "socket",
        "create_connection",
        "getaddrinfo",
        "gethostbyaddr",
        "gethostbyname",
        "gethostbyname_ex",
    ),
    "ssl": ("SSLContext", "SSLSocket"),
    "select": ("select", "poll", "epoll"),
    "subprocess": ("Popen", "call", "check_call", "check_output", "run"),
    "threading": ("Lock", "Event", "Thread", "Timer"),
    "queue": ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"),
}
# They know what they do, and so does the standard library, which gevent patches where it must.
_NOT_THEIRS = {"gevent", "greenlet", "keyop", "__future__"} | sys.stdlib_module_names
_NAMED_AT_MOST = 5

_told: set[str] = set()


def late_imports(modules: Iterable[ModuleType]) -> Iterator[str]:
    """Yield ``module: time.sleep`` for each original that a module has kept under its own name."""
    originals = {
        name: (monkey.get_original(module, name), f"{module}.{name}")
        for module, names in WAITING.items()
        for name in names
        if monkey.is_object_patched(module, name)
    }
    if not originals:
        return
    for module in modules:
        if module.__name__.partition(".")[0] in _NOT_THEIRS and module.__name__ != "__main__":
            continue
        namespace = vars(module)
        for name, (original, full_name) in originals.items():
            if namespace.get(name) is original:
                yield f"{module.__name__}: {full_name}"


def missing_patches() -> list[str]:
    """Return the modules that are not patched; none where nothing is: that is the program's choice.

    ``queue`` does without, once ``threading`` is patched.
    """
    missing = [name for name in WAITING if name != "queue" and not monkey.is_module_patched(name)]
    return [] if len(missing) == len(WAITING) - 1 else missing


def warn_of_patches() -> None:
    """Warn of what is found; of the same but once in a process."""
    if not logger.isEnabledFor(logging.WARNING):
        return
    missing = ", ".join(missing_patches())
    if missing:
        _warn(f"a handler that uses {missing} blocks every other greenlet: not monkey-patched")
    modules = [each for each in list(sys.modules.values()) if type(each) is ModuleType]
    found = list(dict.fromkeys(late_imports(modules)))  # one may be there under two names
    if found:
        more = len(found) - _NAMED_AT_MOST
        _warn(
            "imported before the program was monkey-patched, so that their use blocks every other "
            f"greenlet: {', '.join(found[:_NAMED_AT_MOST])}"
            + (f" and {more} more" if more > 0 else "")
        )


def _warn(text: str) -> None:
    if text not in _told:
        _told.add(text)
        logger.warning("%s", text)
