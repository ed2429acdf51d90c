"""What errors show: a value, short however deep or large it is; what the system says."""

from __future__ import annotations

import os
import reprlib

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 60
_shorten.maxlevel = 3


def brief(value: object) -> str:
    """Return ``repr(value)``, or the beginning and the end of what is too long or too deep."""
    return _shorten.repr(value)


def reason(error: OSError) -> str:
    """Return what the system says of an error, without the address that gevent adds to it.

    Resolvers have numbers of their own, below 0, and texts for them.
    """
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
