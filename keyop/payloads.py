"""Payloads: a user's value → JSON, and JSON → the class registered for its type.

What JSON cannot hold is refused, never altered: orjson turns NaN into null without a word.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import orjson

from keyop.envelope import check_text
from keyop.errors import PayloadError, PayloadTypeAlreadyRegisteredError
from keyop.typed import decoder_for

logger = logging.getLogger(__name__)
_dumps = orjson.dumps

Decoder = Callable[[Any], Any]
_MAX_TYPES = 10_000
_MAX_TYPE_CHARACTERS = 255


def _plain(value: Any) -> Any:
    """Turn what orjson does not know into what it does: msgspec structs, pydantic models."""
    if hasattr(type(value), "__struct_fields__"):
        import msgspec  # only its own classes have that attribute

        return msgspec.to_builtins(value)
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        return dump(mode="json", by_alias=True)
    raise TypeError(f"{type(value).__name__} is not JSON")


def encode_payload(payload: Any) -> bytes:
    """Return the payload as one line of JSON.

    Besides JSON's own types: dataclasses, ``msgspec.Struct`` and pydantic models, enums, UUIDs,
    dates and times.

    Raises:
        PayloadError: it holds NaN, an infinity, an integer outside −2^63…2^64−1, a set, bytes, a
            key that is not a string, a circular reference, more than 254 levels, or anything
            else that JSON has no form for.
    """
    try:
        data = _dumps(payload, _plain)
    except TypeError as error:  # orjson.JSONEncodeError is one
        raise PayloadError(f"the payload cannot be written as JSON: {error}") from None
    if data.rfind(b"null") >= 0 or 10 in data:
        _refuse_altered(payload, data)
    return data


def encode_payloads(payloads: Sequence[Any]) -> list[bytes]:
    """Return what :func:`encode_payload` does of each, in less time for each.

    Raises:
        PayloadError: one of them cannot be written.
    """
    try:
        encoded = [_dumps(payload, _plain) for payload in payloads]
    except TypeError as error:
        raise PayloadError(f"the payload cannot be written as JSON: {error}") from None
    together = b"".join(encoded)
    if together.rfind(b"null") >= 0 or 10 in together:
        for payload, data in zip(payloads, encoded, strict=True):
            _refuse_altered(payload, data)
    return encoded


def _refuse_altered(payload: Any, data: bytes) -> None:
    """Refuse what is not in the output as it was."""
    # Only where the output has a null can a NaN have been; the walk is slow, and rare this way.
    if data.rfind(b"null") >= 0 and (path := _find_not_finite(payload, "payload")) is not None:
        raise PayloadError(f"the payload cannot be written as JSON: {path} is NaN or infinite")
    if 10 in data:  # a newline; only a raw fragment of the user's own can bring one
        raise PayloadError("the payload cannot be written as JSON: a raw fragment has a newline")


def _find_not_finite(value: Any, path: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if value is None or isinstance(value, (str, int)):
        return None
    if isinstance(value, Enum):
        return _find_not_finite(value.value, path)
    if isinstance(value, dict):
        children = [(f"{path}[{key!r}]", child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(f"{path}[{index}]", child) for index, child in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What is kept beside the fields, such as a cached property, is written as well.
        names = dict.fromkeys(
            [*(field.name for field in dataclasses.fields(value)), *getattr(value, "__dict__", ())]
        )
        children = [(f"{path}.{name}", getattr(value, name, None)) for name in names]
    else:
        try:
            children = [(path, _plain(value))]
        except TypeError:  # orjson's own: dates, UUIDs, raw fragments
            return None
    for name, child in children:
        found = _find_not_finite(child, name)
        if found is not None:
            return found
    return None


class PayloadRegistry:
    """Which class a payload type is decoded to."""

    def __init__(self) -> None:
        # What makes an instance of a type's class. None stands for a type that was met without
        # being registered: delivered as plain data.
        self.classes: dict[str, Decoder | None] = {}

    def register(self, payload_type: str, cls: Callable[..., Any]) -> None:
        """Decode payloads of this type to ``cls`` from now on.

        Args:
            cls: a dataclass, a ``msgspec.Struct``, a pydantic model, or any callable that takes
                the decoded JSON.

        Raises:
            PayloadTypeAlreadyRegisteredError: the type has a class already, which stays.
            PayloadError: the type is not a string, or ``cls`` cannot be called.
        """
        if not check_text(payload_type, "payload_type"):
            raise PayloadError("payload_type must not be empty")
        if not callable(cls):
            raise PayloadError(
                f"{payload_type}: register a class or another callable, not {type(cls).__name__}"
            )
        if self.classes.get(payload_type) is not None:
            raise PayloadTypeAlreadyRegisteredError(f"{payload_type!r} is registered already")
        self.classes[payload_type] = decoder_for(cls)

    def decode(self, payload_type: str, payload: Any) -> Any:
        """Return the payload as its class, or as it is where no class is registered.

        Raises:
            Exception: whatever the class raises for a payload that does not fit it.
        """
        try:
            decoder = self.classes[payload_type]
        except KeyError:
            self._note_unregistered(payload_type)
            return payload
        return payload if decoder is None else decoder(payload)

    def _note_unregistered(self, payload_type: str) -> None:
        # Types come from publishers: memory has a bound, in their number and in their size.
        known = payload_type[:_MAX_TYPE_CHARACTERS]
        if known not in self.classes and len(self.classes) < _MAX_TYPES:
            self.classes[known] = None
            logger.warning(
                "payload type %r is not registered; its payloads are delivered as plain data",
                known,
            )
