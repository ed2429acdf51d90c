"""``key=value``: which records somebody means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from keyop.envelope import OPTIONAL_TEXT_FIELDS, TEXT_FIELDS
from keyop.rawjson import as_value

_ENVELOPE = (*TEXT_FIELDS, *OPTIONAL_TEXT_FIELDS, "v", "route", "subscriber")
_MISSING = object()
# Nobody means deeper ones; looking them up recurses.
_MAX_NAMES = 100


class Condition(NamedTuple):
    """A field's path, and the text that it must have, or the value that the text is as JSON."""

    path: str
    text: str
    value: object

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Tell whether it holds for the fields of a record."""
        first, _, rest = self.path.partition(".")
        payload = fields.get("payload", _MISSING)
        if first == "payload":
            found = _look_up(payload, rest) if rest else payload
        elif self.path in _ENVELOPE:
            found = fields.get(self.path, _MISSING)
        else:
            found = _look_up(payload, self.path)
        if isinstance(found, str):
            return found == self.text or found == self.value
        return _same(found, self.value)


def _look_up(value: object, path: str) -> object:
    """Return what a dotted path leads to; a name that itself holds dots is found too."""
    if isinstance(value, dict) and path in value:
        return value[path]
    name, dot, rest = path.partition(".")
    if isinstance(value, dict):
        found = value.get(name, _MISSING)
    elif isinstance(value, list) and name.isdecimal() and len(name) < 20 and int(name) < len(value):
        found = value[int(name)]
    else:
        return _MISSING
    return _look_up(found, rest) if dot else found


def _same(found: object, wanted: object) -> bool:
    """Compare as JSON does: true is not 1, and 1 is 1.0. Nobody means what is too deep for that."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    try:
        return found == wanted
    except RecursionError:
        return False


def parse_condition(text: str) -> Condition:
    """Return the condition that ``key=value`` means.

    Raises:
        ValueError: it is not of that form.
    """
    path, equals, value = text.partition("=")
    names = path.split(".")
    if not equals or not all(names) or len(names) > _MAX_NAMES:
        raise ValueError(
            f"{text!r} is not KEY=VALUE, such as payload_type=com.example.T or customer.id=7"
        )
    try:
        return Condition(path, value, as_value(value.encode("utf-8", "surrogateescape")))
    except ValueError:  # no JSON: a text
        return Condition(path, value, value)


def all_hold(conditions: tuple[Condition, ...], fields: Mapping[str, Any] | None) -> bool:
    """Tell whether all conditions hold for a record; for what is none, only no conditions do."""
    return not conditions or (fields is not None and all(each.holds(fields) for each in conditions))
