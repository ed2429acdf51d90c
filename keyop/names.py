"""The one validator for channels, subscriber ids and instance names.

Every name that comes from outside (a caller, a YAML file, a handshake, a record, a certificate)
passes here before it touches a path.
"""

from __future__ import annotations

import re
from functools import lru_cache

from keyop.errors import (
    InvalidChannelNameError,
    InvalidSubscriberIdError,
    ReservedChannelNameError,
)

DEAD_LETTER_SUFFIX = ".dead-letter"

# A file name holds 255 bytes on every POSIX file system in use. The longest names made from a
# channel and from an id are "{channel}.dead-letter" and "fedout-{id}.offset.tmp".
_FILE_NAME_BYTES = 255
MAX_CHANNEL_BYTES = _FILE_NAME_BYTES - len(DEAD_LETTER_SUFFIX)
# What is sent to a peer, and to a hub, has a position under its name.
PEER_PREFIX = "fed-"
HUB_PREFIX = "fedout-"
MAX_ID_BYTES = _FILE_NAME_BYTES - len("fedout-.offset.tmp")

# ASCII only, so that characters and bytes count the same.
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_INSTANCE = re.compile(r"[A-Za-z0-9._:-]+")
_RULE = "use 1 to {} of A-Z a-z 0-9 . _ -{}, and not '.' or '..'"


def _fault(name: object, pattern: re.Pattern[str], limit: int, extra: str = "") -> str | None:
    rule = _RULE.format(limit, extra)
    if not isinstance(name, str):
        return f"{name!r} is a {type(name).__name__}, not a string; {rule}"
    if len(name) > limit:
        return f"{name[:40]!r}… has {len(name)} characters; {rule}"
    if not pattern.fullmatch(name) or name in (".", ".."):
        return f"{name!r} is not allowed; {rule}"
    return None


@lru_cache(maxsize=4096)
def _checked_channel(channel: str) -> str:
    limit = _FILE_NAME_BYTES if channel.endswith(DEAD_LETTER_SUFFIX) else MAX_CHANNEL_BYTES
    fault = _fault(channel, _NAME, limit)
    if fault:
        raise InvalidChannelNameError(f"channel name {fault}")
    return channel


def check_channel(channel: object) -> str:
    """Return the channel's name if it may be used for reading.

    Raises:
        InvalidChannelNameError: the name is not 1–243 bytes of ``[A-Za-z0-9._-]`` (255 for a
            dead-letter channel), or is ``.`` or ``..``.
    """
    if not isinstance(channel, str):
        raise InvalidChannelNameError(f"channel name {_fault(channel, _NAME, MAX_CHANNEL_BYTES)}")
    return _checked_channel(channel)


@lru_cache(maxsize=4096)
def _publishable_channel(channel: str) -> str:
    if is_dead_letter(_checked_channel(channel)):
        raise ReservedChannelNameError(
            f"channel {channel!r} is reserved: names that end in {DEAD_LETTER_SUFFIX!r} hold what "
            "subscribers could not handle; publish to another channel"
        )
    return channel


def check_publish_channel(channel: object) -> str:
    """Return the channel's name if users may publish to it.

    Raises:
        InvalidChannelNameError: as for :func:`check_channel`.
        ReservedChannelNameError: it is a dead-letter channel.
    """
    if not isinstance(channel, str):
        return check_channel(channel)
    return _publishable_channel(channel)


def is_dead_letter(channel: str) -> bool:
    """Tell whether the channel holds dead letters."""
    return channel.endswith(DEAD_LETTER_SUFFIX)


def dead_letter_channel(channel: str) -> str:
    """Return the name of the channel that takes what fails in ``channel``."""
    return channel + DEAD_LETTER_SUFFIX


def check_subscriber_id(subscriber_id: object) -> str:
    """Return the subscriber id if a local subscriber may use it.

    Raises:
        InvalidSubscriberIdError: it is not 1–237 bytes of ``[A-Za-z0-9._-]``, is ``.`` or
            ``..``, or begins with ``fed-`` or ``fedout-`` (positions of peers and hubs).
    """
    fault = _fault(subscriber_id, _NAME, MAX_ID_BYTES)
    if fault or not isinstance(subscriber_id, str):
        raise InvalidSubscriberIdError(f"subscriber id {fault}")
    if subscriber_id.startswith((PEER_PREFIX, HUB_PREFIX)):
        raise InvalidSubscriberIdError(
            f"subscriber id {subscriber_id!r} is reserved: 'fed-' and 'fedout-' mark the "
            "positions of federation peers; choose another beginning"
        )
    return subscriber_id


def instance_name_fault(name: object) -> str | None:
    """Return what is wrong with an instance name (1–237 bytes of ``[A-Za-z0-9._:-]``), or None."""
    return _fault(name, _INSTANCE, MAX_ID_BYTES, " :")
