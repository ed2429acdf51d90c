"""A progress bar for what takes more than a moment."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import click

# Until then nobody wonders what it does.
_PATIENCE_S = 1.0


class Progress:
    """A progress bar on stderr, if that is a terminal and it takes more than a moment."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._show_at = time.monotonic() + _PATIENCE_S
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show how much is done."""
        if self._bar is None:
            if time.monotonic() < self._show_at or sys.stderr is None or not sys.stderr.isatty():
                return
            self._bar = click.progressbar(length=total, label=self._label, file=sys.stderr)
            self._bar.__enter__()
        self._bar.update(done - self._done)
        self._done = done

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, traceback)
