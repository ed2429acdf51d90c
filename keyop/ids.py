"""Message ids: random UUIDs, version 4 (RFC 9562), made in blocks.

One id at a time costs more than everything else in an envelope, so a block of random bytes is
turned into text column by column: a few operations on strides serve all ids of the block.
"""

from __future__ import annotations

import os
from binascii import hexlify

_COUNT = 256
_BYTES = 16
# An id and a newline, at which the block is split.
_CHARACTERS = 37
_VERSION_BYTE, _VARIANT_BYTE = 6, 8
# What the version and the variant make of a random byte: the high bits fixed, the low ones kept.
_VERSION = bytes(0x40 | (byte & 0x0F) for byte in range(256))
_VARIANT = bytes(0x80 | (byte & 0x3F) for byte in range(256))
# Where each of the 32 hex digits stands in 8-4-4-4-12.
_COLUMNS = [*range(8), *range(9, 13), *range(14, 18), *range(19, 23), *range(24, 36)]
_DASHES = (b"-" * 36 + b"\n") * _COUNT


def new_ids() -> list[str]:
    """Return 256 fresh ids."""
    raw = bytearray(os.urandom(_BYTES * _COUNT))
    raw[_VERSION_BYTE::_BYTES] = raw[_VERSION_BYTE::_BYTES].translate(_VERSION)
    raw[_VARIANT_BYTE::_BYTES] = raw[_VARIANT_BYTE::_BYTES].translate(_VARIANT)
    digits = hexlify(raw)
    block = bytearray(_DASHES)
    for digit, column in enumerate(_COLUMNS):
        block[column::_CHARACTERS] = digits[digit :: 2 * _BYTES]
    return block.decode().splitlines()
