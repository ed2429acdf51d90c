"""Events of the audit log, and the line that each becomes.

Source: format.md, "Audit record".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import Enum

import orjson

# Every valid name fits into the first; what comes from outside may be of any length.
MAX_NAME_CHARS = 256
MAX_DETAIL_CHARS = 1024
# No name and no stamp holds a slash.
_STAND_IN = "/id/"

_FIELDS = ("ts", "event", "message_id", "channel", "direction", "peer", "peer_addr", "detail")


class AuditEvent(str, Enum):
    """What can be recorded; see format.md, "Audit record"."""

    FORWARD = "forward"
    POLICY_VIOLATION = "policy_violation"
    REPLAY_GAP = "replay_gap"
    PEER_CONNECTED = "peer_connected"
    PEER_DISCONNECTED = "peer_disconnected"
    CLIENT_CONNECTED = "client_connected"
    CLIENT_REJECTED = "client_rejected"
    CLIENT_DRAIN = "client_drain"
    POLICY_RELOADED = "policy_reloaded"
    POLICY_RELOAD_FAILED = "policy_reload_failed"
    # Not in v0.11.0.
    LOOP_DROPPED = "loop_dropped"
    UNDELIVERABLE = "undeliverable"
    TLS_RELOADED = "tls_reloaded"
    TLS_RELOAD_FAILED = "tls_reload_failed"


def encode_event(fields: Mapping[str, str]) -> bytes:
    """Return an event as its line, newline included.

    Empty fields are left out, long ones cut, and what a terminal would obey or hide is escaped.
    """
    shown = {name: _cut(name, value) for name in _FIELDS if (value := fields.get(name))}
    try:
        line = orjson.dumps(shown, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # halves of surrogate pairs, which are no text
        line = json.dumps(shown, separators=(",", ":")).encode() + b"\n"
    if line.isascii() and b"\x7f" not in line:
        return line
    text = line[:-1].decode()
    return "".join(each if each.isprintable() else _escape(each) for each in text).encode() + b"\n"


def encode_alike(fields: Mapping[str, str], message_ids: Iterable[str]) -> list[bytes]:
    """Return one line for each id, as :func:`encode_event` does; all other fields are shared."""
    # A text that is not to be found elsewhere in the line stands for the id.
    line = encode_event({**fields, "message_id": _STAND_IN})
    before, _, after = line.partition(_STAND_IN.encode())
    return [
        before + message_id.encode() + after
        if message_id.isascii() and message_id.replace("-", "").isalnum()
        else encode_event({**fields, "message_id": message_id})
        for message_id in message_ids
    ]


def _cut(name: str, value: str) -> str:
    limit = MAX_DETAIL_CHARS if name == "detail" else MAX_NAME_CHARS
    return value if len(value) <= limit else value[: limit - 1] + "…"


def _escape(char: str) -> str:
    # DEL is ASCII, so json would leave it.
    return "\\u007f" if char == "\x7f" else json.dumps(char)[1:-1]
