"""Decoded JSON → an instance of a user's class.

msgspec and pydantic do their own work when a class of theirs is registered. Dataclasses are built
here, with their nested ones, from the types that orjson writes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time
from enum import Enum
from typing import Any
from uuid import UUID


def decoder_for(cls: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a callable that makes an instance of ``cls`` from decoded JSON.

    It raises ``TypeError`` or ``ValueError`` (or what the class itself raises) where the JSON
    does not fit. Members that a dataclass does not have are left out, so that a publisher may
    add some.
    """
    if isinstance(cls, type):
        if hasattr(cls, "__struct_fields__"):
            import msgspec  # only its own classes have that attribute

            return lambda data: msgspec.convert(data, cls)
        if hasattr(cls, "model_validate"):
            validate: Callable[[Any], Any] = cls.model_validate
            return validate
        if dataclasses.is_dataclass(cls):
            return lambda data: _build(cls, data, cls.__name__)
    return cls


def _build(cls: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise TypeError(f"{path}: a {type(data).__name__} in place of an object")
    hints = typing.get_type_hints(cls)
    values = {
        field.name: _convert(hints[field.name], data[field.name], f"{path}.{field.name}")
        for field in dataclasses.fields(cls)
        if field.init and field.name in data
    }
    return cls(**values)


_FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    datetime: lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")),
    date: date.fromisoformat,
    time: time.fromisoformat,
    UUID: UUID,
}


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Return ``value`` as the annotated type; raise TypeError or ValueError if it is not one."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        return _convert_union(args, value, path)
    if origin is typing.Annotated:
        return _convert(args[0], value, path)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{path}: {value!r} is not one of {args}")
        return value
    kind = origin or hint
    if not isinstance(kind, type):  # Any, a type variable: nothing to hold it against
        return value
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    if issubclass(kind, Enum):
        return kind(value)
    if kind in _FROM_TEXT:
        return _FROM_TEXT[kind](_expect(str, value, path))
    if kind in (list, set, frozenset) or kind is tuple:
        return _convert_items(kind, args, value, path)
    if kind is dict:
        _expect(dict, value, path)
        inner = args[1] if len(args) == 2 else Any
        return {key: _convert(inner, item, f"{path}[{key!r}]") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, str, bool, type(None)):
        return _expect(kind, value, path)
    return value


def _expect(kind: type, value: Any, path: str) -> Any:
    # True is an int to Python; in JSON it is not.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{path}: a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _convert_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    problems = []
    for choice in choices:
        try:
            return _convert(choice, value, path)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    raise TypeError("; ".join(problems))


def _convert_items(kind: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    _expect(list, value, path)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise ValueError(f"{path}: {len(value)} items in place of {len(args)}")
        inner = list(args)
    else:
        inner = [args[0] if args else Any] * len(value)
    return kind(
        _convert(hint, item, f"{path}[{index}]")
        for index, (hint, item) in enumerate(zip(inner, value, strict=True))
    )
