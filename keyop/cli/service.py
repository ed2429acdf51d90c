"""What a service manager wants of a program: a pid file, notifications, enough descriptors."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def own_pid_file(path: str | None) -> Iterator[None]:
    """Have a file that holds the process id, for the time of a block."""
    if path is None:
        yield
        return
    # Not for others to write, whatever the umask: somebody will kill what stands in there.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(path, flags, 0o644), "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        try:
            with open(path, encoding="ascii") as file:
                is_own = file.read().strip() == str(os.getpid())  # not of who took over from here
            if is_own:
                os.unlink(path)
        except FileNotFoundError:
            pass


def notify(state: str) -> None:
    """Tell systemd, if it has asked to be told.

    Source: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(state.encode(), address)
    except OSError as error:
        logger.warning("systemd cannot be told %s: %s", state, error)


def raise_descriptor_limit() -> None:
    """Every connection is a descriptor: take as many as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.warning("the limit of open files stays: %s", error)
