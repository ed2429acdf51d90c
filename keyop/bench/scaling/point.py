"""One round of one point: measured in this process, which does nothing else."""

from __future__ import annotations

import importlib
import logging
import sys

import orjson

from keyop.bench.scaling.process import raise_limit


def main(module: str, function: str, directory: str, x: str, scale: str) -> None:
    """Measure, and print the results as JSON."""
    logging.getLogger("keyop").setLevel(logging.ERROR)  # payloads without a class are meant
    measure = getattr(importlib.import_module(module), function)
    raise_limit()
    print(orjson.dumps(measure(directory, int(x), float(scale))).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
