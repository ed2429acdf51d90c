"""One line of somebody's file → a record that may be appended to a channel."""

from __future__ import annotations

import json
from zlib import crc32

from keyop.cli.appender import Line
from keyop.decode import decode, strip_checksum
from keyop.envelope import CRC_MARK, CRC_SUFFIX_BYTES, MAX_MESSAGE_ID_CHARACTERS
from keyop.errors import CorruptRecordError
from keyop.rawjson import members


class BadLineError(Exception):
    """A line is no record that the channel can take; says why."""


def check_line(line: bytes, number: int, channel: str, rename: bool, max_record_bytes: int) -> Line:
    """Return the record in a line, byte for byte; with a checksum, where it has none.

    Args:
        rename: a record of another channel is made one of this.

    Raises:
        BadLineError: it is damaged, of another channel or version, or too long.
    """
    line = line.removesuffix(b"\r")
    try:
        fields = decode(line)
        if fields["channel"] != channel:
            if not rename:
                raise BadLineError(
                    f"it is of channel {fields['channel']!r}; --rename takes it all the same"
                )
            line = _renamed(line, channel)
    except CorruptRecordError as error:
        raise BadLineError(str(error)) from None
    message_id: str = fields["id"]
    if not 0 < len(message_id) <= MAX_MESSAGE_ID_CHARACTERS:
        raise BadLineError(
            f"its id has {len(message_id)} characters; use 1 to {MAX_MESSAGE_ID_CHARACTERS}"
        )
    if not line[-CRC_SUFFIX_BYTES:].startswith(CRC_MARK):
        line = _with_checksum(line)
    if len(line) >= max_record_bytes:
        raise BadLineError(
            f"the record has {len(line) + 1} bytes; storage.max_record_bytes allows "
            f"{max_record_bytes}"
        )
    return Line(message_id, line + b"\n", number)


def _renamed(line: bytes, channel: str) -> bytes:
    """Return a record as one of another channel, all other values as they are written."""
    values = members(strip_checksum(line))
    values["payload"] = values.pop("payload")  # where it came twice, the last one counts
    values["channel"] = json.dumps(channel).encode()
    parts = [json.dumps(name).encode() + b":" + value for name, value in values.items()]
    return _with_checksum(b"{" + b",".join(parts) + b"}")


def _with_checksum(line: bytes) -> bytes:
    body = line.rstrip()[:-1]
    return body + CRC_MARK + b'%08x"}' % crc32(body)
