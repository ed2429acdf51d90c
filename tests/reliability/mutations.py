"""Damage for fuzzing: what is almost right goes further than what is merely random."""

from __future__ import annotations

import struct
from random import Random

# What parsers stumble over.
_TOKENS = (
    *(bytes([each]) for each in b'"\\{}[],:\n\t\0\xff'),
    *(b"\r\n", b"\r\n\r\n", b"../", b"\xed\xa0\x80", b"\\ud800", b"1e999", b"NaN", b"null"),
    *(b',"payload":', b',"crc":"00000000"}', b'"v":1', b"9" * 30, b"[" * 1100, b'{"a":' * 300),
    *(b"\x88\x02\x03\xe8", b"\x81\x7f", b"\x82\xff", bytes(4), b"\xff" * 4),
    struct.pack("!Q", 1 << 63),
)


def mutated(rng: Random, data: bytes) -> bytes:
    """Return the data with a few changes, or none at all."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 2:
            changed[at:at] = rng.choice(_TOKENS)
        elif kind == 3:
            del changed[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 4:
            begin = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[begin : begin + rng.choice((1, 8, 64))]
        else:
            del changed[at:]
    return bytes(changed)
