"""A batch of records ↔ one binary message: each record behind its length, 4 bytes, big-endian."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from keyop.errors import ProtocolError

_LENGTH = Struct(">I")
LENGTH_BYTES = _LENGTH.size
# Records that could be of some use have more bytes than this many empty ones in a default batch.
MAX_BATCH_RECORDS = 16_384


def encode_batch(records: Sequence[bytes]) -> bytes:
    """Return a binary message that holds these records, each a line without its newline."""
    pack = _LENGTH.pack
    return b"".join([piece for record in records for piece in (pack(len(record)), record)])


def decode_batch(message: bytes) -> list[bytes]:
    """Return the records of a binary message; none if it is empty.

    Raises:
        ProtocolError: a length reaches over the end (1002), or there are more than 16,384 records.

    Source: docs/wire.md, "Data".
    """
    records = []
    position, end = 0, len(message)
    unpack = _LENGTH.unpack_from
    while position < end:
        begin = position + LENGTH_BYTES
        if begin > end:
            raise ProtocolError("a batch ends in the middle of a length")
        position = begin + unpack(message, position)[0]
        if position > end:
            raise ProtocolError("a record's length reaches over the end of its batch")
        records.append(message[begin:position])
        if len(records) > MAX_BATCH_RECORDS:
            raise ProtocolError(f"a batch has more than {MAX_BATCH_RECORDS} records")
    return records
