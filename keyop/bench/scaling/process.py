"""Points in processes of their own: memory and state of one do not matter to the next."""

from __future__ import annotations

import resource
import subprocess
import sys

import orjson

_TOO_LONG_S = 1800


def run_point(module: str, function: str, directory: str, x: int, scale: float) -> dict[str, float]:
    """Return what a function of a module measures.

    Raises:
        RuntimeError: the process has failed; it has said why on stderr.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "keyop.bench.scaling.point",
            module,
            function,
            directory,
            str(x),
            str(scale),
        ],
        stdout=subprocess.PIPE,
        timeout=_TOO_LONG_S,
    )
    if done.returncode:
        raise RuntimeError(f"{module} at {x} has failed with status {done.returncode}")
    results: dict[str, float] = orjson.loads(done.stdout)
    return results


def raise_limit() -> None:
    """Allow this process as many descriptors as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_descriptors() -> int:
    """Return how many descriptors that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard


def memory_kib(field: str = "VmRSS") -> int:
    """Return what this process holds of memory now; with ``VmHWM``, the most that it has held."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:"))
