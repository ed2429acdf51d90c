"""R9: what would cost a hub memory is refused before it does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from tests.federation.rawpeers import RawGuest
from tests.integration.helpers import record
from tests.transport.helpers import BINARY, MASK, TEXT

from .hub_child import HubChild
from .row import Row, Run
from .workload import CHANNEL, TYPE

TITLE = "lengths of 2^63, JSON 1,024 deep, 20 MB of [],"
_PEER = "alpha"
_MIB = 1 << 20
_MAX_GROWTH = 24 * _MIB
_BIG = 20_000_000
# In a record's payload 1,024 levels can be read, by subscribers too; this is one too many.
_DEEP = 1025
_PROTOCOL_ERROR, _TOO_BIG = 1002, 1009


class _Attack(NamedTuple):
    """What is sent, by whom, and what the hub closes with; 0 if it only skips it."""

    name: str
    known: bool
    send: Callable[[RawGuest], None]
    code: int


def run(run: Run) -> Row:
    """Send each of these to a hub, some times over, and see the most memory that it ever had."""
    row = Row("R9", TITLE)
    row.count(attacks=0, refused=0, skipped=0)
    with HubChild(run.directory, [_PEER]) as hub:
        for attack in _ATTACKS[:1]:  # what the first one warms up is not its cost
            _try(row, hub, attack)
        for attack in _ATTACKS:
            before = hub.forget_peak()
            for _ in range(run.either(5, 50)):
                _try(row, hub, attack)
            growth = hub.peak() - before
            row.worst(worst_growth_mib=growth / _MIB)
            row.expect(growth <= _MAX_GROWTH, f"{attack.name}: {growth:,} bytes more")
        row.expect("Traceback" not in hub.child.errors, hub.child.errors)
        _try_good(row, hub)
        hub.child.stop()
    return row


def _try(row: Row, hub: HubChild, attack: _Attack) -> None:
    guest = RawGuest(hub.address, hub.securing(_PEER))
    try:
        if attack.known:
            guest.greet(_PEER)
        row.count(attacks=1)
        try:
            attack.send(guest)
        except OSError:  # the hub did not wait for the end of it
            pass
        if attack.code:
            code, reason = guest.closed()
            row.count(refused=1)
            row.expect(code == attack.code, f"{attack.name}: closed with {code}: {reason}")
        else:
            row.expect("last_id" in guest.hear(), f"{attack.name}: not acknowledged")
            row.count(skipped=1)
    except (OSError, EOFError, AssertionError) as error:  # the last if none came in time
        row.problem(f"{attack.name}: {error!r} in place of an answer")
    finally:
        guest.close()


def _try_good(row: Row, hub: HubChild) -> None:
    """Behind all that, a good record is stored; nothing before it was."""
    guest = RawGuest(hub.address, hub.securing(_PEER))
    try:
        guest.greet(_PEER)
        guest.batch(record("good", channel=CHANNEL, origin=_PEER, payload_type=TYPE))
        row.expect(guest.hear() == {"last_id": "id-good"}, "a good record is not acknowledged")
    finally:
        guest.close()
    stored = b"".join(path.read_bytes() for path in hub.data_dir.glob("channels/*/*.jsonl"))
    row.expect(stored.count(b"\n") == 1, f"{stored.count(bytes([10]))} records are stored")


def _nested(opening: bytes, closing: bytes) -> bytes:
    return opening * _DEEP + b"1" + closing * _DEEP


def _declares(opcode: int, length: int) -> Callable[[RawGuest], None]:
    return lambda guest: guest.send(opcode, b"x", declared=length, width=8, mask=MASK)


def _says(payload: bytes, opcode: int = TEXT) -> Callable[[RawGuest], None]:
    return lambda guest: guest.send(opcode, payload)


def _sends(payload: bytes) -> Callable[[RawGuest], None]:
    """Send a record with this payload."""
    return lambda guest: guest.batch(record(0, channel=CHANNEL, raw=payload.decode()))


_EMPTY_LISTS = b"[" + b"[]," * (_BIG // 3) + b"[]]"
_DEEP_LISTS, _DEEP_OBJECTS = _nested(b"[", b"]"), _nested(b'{"":', b"}")
_DEEP_FIELD = record(0, channel=CHANNEL, crc=False, x=[]).replace(b'"x":[]', b'"x":' + _DEEP_LISTS)
_OVERRUN = struct.pack(">I", 0xFFFFFFFF) + b"{}"
_ATTACKS = [
    _Attack("2^63 bytes in place of a hello", False, _declares(TEXT, 1 << 63), _TOO_BIG),
    _Attack("2^63 - 1 bytes in its place", False, _declares(BINARY, (1 << 63) - 1), _TOO_BIG),
    _Attack("a hello of 20 MB", False, _says(_EMPTY_LISTS), _TOO_BIG),
    _Attack("a hello that is deep", False, _says(_DEEP_LISTS), _PROTOCOL_ERROR),
    _Attack("2^63 bytes", True, _declares(BINARY, 1 << 63), _TOO_BIG),
    _Attack("20 MB, of which nothing comes", True, _declares(BINARY, _BIG), _TOO_BIG),
    _Attack("a batch of 20 MB", True, _sends(_EMPTY_LISTS), _TOO_BIG),
    _Attack("an acknowledgement of 20 MB", True, _says(_EMPTY_LISTS), _TOO_BIG),
    _Attack("an acknowledgement that is deep", True, _says(_DEEP_LISTS), _PROTOCOL_ERROR),
    _Attack("a record's length of 4 GiB", True, _says(_OVERRUN, BINARY), _PROTOCOL_ERROR),
    _Attack("250,000 empty records", True, _says(bytes(1_000_000), BINARY), _PROTOCOL_ERROR),
    _Attack("a record of deep lists", True, _sends(_DEEP_LISTS), 0),
    _Attack("a record of deep objects", True, _sends(_DEEP_OBJECTS), 0),
    _Attack("an unknown field that is deep", True, lambda guest: guest.batch(_DEEP_FIELD), 0),
]
