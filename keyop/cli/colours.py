"""Colours, where a person looks at a terminal."""

from __future__ import annotations

import os
import sys

import click


class Palette:
    """Paints text for stdout, or leaves it alone: in a pipe, and where NO_COLOR is set."""

    def __init__(self) -> None:
        self._on = (
            sys.stdout is not None
            and sys.stdout.isatty()
            and not os.environ.get("NO_COLOR")  # set and not empty, as no-color.org has it
            and os.environ.get("TERM") != "dumb"
        )

    def dim(self, text: str) -> str:
        """Paint what is there to be looked up, not read."""
        return click.style(text, dim=True) if self._on else text

    def name(self, text: str) -> str:
        """Paint a name."""
        return click.style(text, fg="cyan") if self._on else text

    def alarm(self, text: str) -> str:
        """Paint what is wrong."""
        return click.style(text, fg="red", bold=True) if self._on else text
