"""The masking of WebSocket clients: each byte XOR one of four, fast without a loop over bytes.

Source: RFC 6455, section 5.3.
"""

from __future__ import annotations

from functools import lru_cache

# Below, one XOR of two large numbers is faster; above, a table lookup for each of four lanes.
_LANES_FROM_BYTES = 1024


def mask_bytes(data: bytes, key: bytes) -> bytes:
    """Return the data masked, or unmasked: it is the same operation.

    Args:
        key: four bytes.
    """
    size = len(data)
    if size < _LANES_FROM_BYTES:
        repeated = (key * (size // 4 + 1))[:size]
        number = int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")
        return number.to_bytes(size, "little")
    masked = bytearray(size)
    for lane, byte in enumerate(key):
        masked[lane::4] = data[lane::4].translate(_table(byte))
    return bytes(masked)


@lru_cache(maxsize=256)
def _table(byte: int) -> bytes:
    return bytes(each ^ byte for each in range(256))
