"""Starts a worker without loading keyop's own modules, when run as a file.

``python -m keyop.bench.peers.worker`` imports the package keyop first, whose time and memory would
be counted as another contender's. Here the package is there only as the place of its modules.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path


def main() -> None:
    """Be ``keyop.bench.peers.worker`` with the same arguments."""
    here = Path(__file__).resolve()
    package = types.ModuleType("keyop")
    package.__path__ = [str(here.parents[2])]
    sys.modules["keyop"] = package
    # Python looks beside a file that it runs: nothing here is to be taken for another's module.
    sys.path[:] = [path for path in sys.path if path != str(here.parent)]
    importlib.import_module("keyop.bench.peers.worker").main()


if __name__ == "__main__":
    main()
