"""The text messages: a hello each way, then acknowledgements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from keyop.brief import brief
from keyop.errors import InvalidChannelNameError, ProtocolError
from keyop.names import check_channel, instance_name_fault

VERSION = "1"
CLIENT, HUB = "client", "hub"
# What a peer takes that does not say: v0.11.0 takes a record of exactly so many bytes.
V0_11_MAX_RECORD_BYTES = 65_536
MAX_HELLO_BYTES = 16 << 10
_MAX_ACK_BYTES = 4 << 10
_MAX_CHANNELS = 1024
_MAX_FEATURES = 64
# What this implementation can do beyond v0.11.0: several batches under way, records with a
# checksum and a route.
FEATURES = ("window", "crc", "route")


@dataclass(frozen=True)
class Hello:
    """Who one side is.

    Attributes:
        instance_name: as it calls itself; its certificate says who it is.
        subscribe: channels that a client wants to receive.
        ephemeral: a client that wants neither history nor a position kept.
        features: what it can do beyond v0.11.0; None for a v0.11.0 peer.
        max_record_bytes: the largest record that it takes.
    """

    instance_name: str
    role: str
    subscribe: tuple[str, ...] = ()
    ephemeral: bool = False
    features: tuple[str, ...] | None = None
    max_record_bytes: int = V0_11_MAX_RECORD_BYTES

    def encode(self) -> str:
        """Return the message's text, the fields in the order of v0.11.0, the added ones behind."""
        fields: dict[str, Any] = {
            "instance_name": self.instance_name,
            "role": self.role,
            "version": VERSION,
        }
        if self.subscribe:
            fields["subscribe"] = self.subscribe
        if self.ephemeral:
            fields["ephemeral"] = True
        if self.features is not None:
            fields["features"] = self.features
            fields["max_record_bytes"] = self.max_record_bytes
        return orjson.dumps(fields).decode()

    @classmethod
    def decode(cls, text: str, role: str) -> Hello:
        """Read the hello of the side with this role. Unknown fields are ignored.

        Raises:
            ProtocolError: it is no hello, of another role or version, or holds what may not be.
        """
        if len(text) > MAX_HELLO_BYTES:
            raise ProtocolError("the hello is too long")
        fields = _object(text, "hello")
        if fields.get("role") != role:
            raise ProtocolError(f"a hello of the role {brief(fields.get('role'))}, not {role!r}")
        if fields.get("version") != VERSION:
            raise ProtocolError(
                f"version {brief(fields.get('version'))} of the protocol; this is {VERSION!r}"
            )
        features = fields.get("features")
        limit = fields.get("max_record_bytes")
        known = features is not None or limit is not None
        return cls(
            _instance_name(fields.get("instance_name")),
            role,
            _channels(fields.get("subscribe")),
            _flag(fields.get("ephemeral"), "ephemeral"),
            _texts(features, "features", _MAX_FEATURES) if known else None,
            _record_limit(limit),
        )


# Of the fields that may be left out, null is the same as not there: v0.11.0 reads it so.


def _instance_name(name: object) -> str:
    if not isinstance(name, str):
        raise ProtocolError(f"instance_name {brief(name)} is no text")
    fault = instance_name_fault(name)
    if fault is not None:
        raise ProtocolError(f"instance_name {fault}")
    return name


def _record_limit(limit: object) -> int:
    if limit is None:
        return V0_11_MAX_RECORD_BYTES
    if type(limit) is not int or limit < 1:
        raise ProtocolError(f"max_record_bytes {brief(limit)} is not a size")
    return limit


def _flag(value: object, field: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ProtocolError(f"{field} {brief(value)} is neither true nor false")
    return value


def _channels(value: object) -> tuple[str, ...]:
    try:
        return tuple(check_channel(name) for name in _texts(value, "subscribe", _MAX_CHANNELS))
    except InvalidChannelNameError as error:
        raise ProtocolError(f"subscribe: {error}") from None


def _texts(value: object, field: str, most: int) -> tuple[str, ...]:
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or len(value) > most
        or not all(isinstance(each, str) for each in value)
    ):
        raise ProtocolError(f"{field} is not a list of at most {most} texts")
    return tuple(dict.fromkeys(value))


def encode_ack(last_id: str) -> str:
    """Return the acknowledgement of a batch whose last record has this id."""
    return orjson.dumps({"last_id": last_id}).decode()


def decode_ack(text: str) -> str:
    """Return the id in an acknowledgement. It is informative: acks match batches by their order.

    Raises:
        ProtocolError: it is none.
    """
    if len(text) > _MAX_ACK_BYTES:
        raise ProtocolError("an acknowledgement is too long")
    last_id = _object(text, "acknowledgement").get("last_id", "")
    if not isinstance(last_id, str):
        raise ProtocolError("an acknowledgement whose last_id is no text")
    return last_id


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ProtocolError(f"the {what} is not JSON") from None
    if not isinstance(fields, dict):
        raise ProtocolError(f"the {what} is not a JSON object")
    return fields
