"""What a target says where something is not as it must be."""

from __future__ import annotations

# Where it is raised says nothing.

FILE = __file__


def insist(holds: object, what: object) -> None:
    """Raise unless it holds: an ``assert`` for the handler of an expected error."""
    if not holds:
        raise AssertionError(what)


def is_printable(text: str) -> bool:
    """Tell whether a text can be written at all, which half of a surrogate pair cannot be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
