"""Parts of a configuration: frozen dataclasses whose annotations carry their rules.

``Annotated[int, whole(1)]`` is a key with a rule, another part is a section, a tuple of either is
a list. YAML files, mappings and direct construction all go through :func:`check`, which collects
every problem before it raises.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from keyop.config_rules import Parse, items, type_name
from keyop.errors import ConfigError

PartT = TypeVar("PartT", bound="Part")


class Conflict(NamedTuple):
    """What is wrong between keys whose values are each allowed.

    Reported under the first key, and only when none of the keys has a problem of its own.
    """

    keys: tuple[str, ...]
    text: str


class _Problems:
    def __init__(self, lines: list[str] | None = None) -> None:
        self._lines = lines or []
        self._keys: set[str] = set()

    def add(self, key: str, text: str) -> None:
        self._keys.add(key)
        self._lines.append(f"{key}: {text}" if key else text)

    def at_fault(self, key: str) -> bool:
        """Tell whether the key, or what it is part of, has a problem already."""
        ends = [0, *(match.start() for match in re.finditer(r"[.\[]", key)), len(key)]
        return any(key[:end] in self._keys for end in ends)

    def raise_any(self, source: str) -> None:
        if self._lines:
            raise ConfigError(self._lines, source)


@dataclasses.dataclass(frozen=True)
class Part:
    """Base of the configuration's dataclasses: an instance that exists has passed every check."""

    _section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str = "") -> None:
        cls._section = section

    def __post_init__(self) -> None:
        checked = check(type(self), vars(self), self._section, "configuration")
        for name, value in vars(checked).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(
        cls: type[PartT], mapping: Mapping[str, Any], source: str = "configuration"
    ) -> PartT:
        """Make one from a mapping of its keys; what is missing or None has its default.

        Raises:
            ConfigError: with every problem found, ``source`` in front.
        """
        return check(cls, mapping, cls._section, source)

    def _conflicts(self) -> Iterator[Conflict]:
        """Yield what does not fit together, with keys relative to this part."""
        return iter(())


class _Field(NamedTuple):
    name: str
    is_part: bool
    read: Callable[[object, str, _Problems], Any]
    default: Any


# Annotations are evaluated once for each class: an allowlist may hold thousands of parts.
_fields_of: dict[type[Part], list[_Field]] = {}


def _fields(cls: type[Part]) -> list[_Field]:
    if cls not in _fields_of:
        hints = get_type_hints(cls, include_extras=True)
        _fields_of[cls] = [
            _Field(
                field.name, _is_part(hints[field.name]), _reader(hints[field.name]), field.default
            )
            for field in dataclasses.fields(cls)
        ]
    return _fields_of[cls]


def _is_part(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Part)


def _reader(hint: Any) -> Callable[[object, str, _Problems], Any]:
    if get_origin(hint) is tuple:
        return partial(_read_list, _reader(get_args(hint)[0]))
    if get_origin(hint) is Annotated:
        return partial(_read_value, get_args(hint)[1])
    return partial(_build, hint)


def _read_value(parse: Parse, raw: object, key: str, problems: _Problems) -> Any:
    try:
        return parse(raw)
    except ValueError as error:
        problems.add(key, str(error))
        return None


def _read_list(
    read: Callable[[object, str, _Problems], Any], raw: object, key: str, problems: _Problems
) -> tuple[Any, ...] | None:
    found = _read_value(items, raw, key, problems)
    if found is None:
        return None
    return tuple(read(item, f"{key}[{i}]", problems) for i, item in enumerate(found))


def _build(cls: type[PartT], raw: object, where: str, problems: _Problems) -> PartT:
    """Make a part without its own check; defaults stand in where a problem was found."""
    given = vars(raw) if isinstance(raw, cls) else {} if raw is None else raw
    if not isinstance(given, Mapping):
        # Only the type: what was put in the place of a section may be a secret of it.
        problems.add(
            where, f"a value of type {type_name(given)} is not allowed; use a mapping of keys"
        )
        given = {}
    dot = where and where + "."
    fields = _fields(cls)
    names = [field.name for field in fields]
    for key in given:
        if key not in names:
            problems.add(dot + str(key), _unknown(str(key), names))
    part = object.__new__(cls)
    for field in fields:
        value = given.get(field.name)
        if value is not None or field.is_part:
            value = field.read(value, dot + field.name, problems)
        object.__setattr__(part, field.name, field.default if value is None else value)
    for conflict in part._conflicts():
        if not any(problems.at_fault(dot + key) for key in conflict.keys):
            problems.add(dot + conflict.keys[0], conflict.text)
    return part


def _unknown(key: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key; did you mean {nearest[0]}?"
    return f"unknown key; known are {', '.join(names)}"


def check(
    cls: type[PartT], raw: object, where: str, source: str, found: list[str] | None = None
) -> PartT:
    """Make a part from raw values, or raise every problem at once.

    Args:
        raw: a mapping of the part's keys, an instance, or None for all defaults.
        where: dotted key of the part; empty for the whole configuration.
        source: what the error's message begins with.
        found: problems known before; any makes this fail.

    Raises:
        ConfigError: with every problem, in the order of the keys.
    """
    problems = _Problems(found)
    part = _build(cls, raw, where, problems)
    problems.raise_any(source)
    return part
