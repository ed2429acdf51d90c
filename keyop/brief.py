"""A value as an error shows it: short, and no fault of its own, however deep or large it is."""

from __future__ import annotations

import reprlib

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 60
_shorten.maxlevel = 3


def brief(value: object) -> str:
    """Return ``repr(value)``, or the beginning and the end of what is too long or too deep."""
    return _shorten.repr(value)
