"""What of a channel may be deleted: a pure plan, and the sweep that carries it out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from keyop.errors import OffsetError
from keyop.fs import FileSystem
from keyop.names import HUB_PREFIX, PEER_PREFIX
from keyop.storage.offsets import read_all
from keyop.storage.segment import list_starts, segment_path

logger = logging.getLogger(__name__)

_FEDERATION_IDS = (PEER_PREFIX, HUB_PREFIX)


class Aged(NamedTuple):
    """A segment: first offset, size in bytes, and when it was last written, in seconds."""

    start: int
    size: int
    modified_s: float


class RetentionOptions(NamedTuple):
    """Caps that drop unread data, both off at 0; bytes kept for peers of a federated channel."""

    max_files: int = 0
    max_age_s: float = 0.0
    federated_tail_bytes: int = 0


class Plan(NamedTuple):
    """Segments to delete, oldest first, and how many bytes of them somebody had yet to read."""

    starts: list[int]
    dropped_bytes: int


def plan(
    segments: Sequence[Aged],
    offsets: Sequence[int],
    options: RetentionOptions,
    now_s: float,
    federated: bool = False,
) -> Plan:
    """Decide which segments may go. The active one, the last, always stays.

    Args:
        segments: the channel's segments in order.
        offsets: every position saved for the channel; with none, nothing counts as read.
    """
    sealed = segments[:-1]
    if not sealed:
        return Plan([], 0)
    end = segments[-1].start + segments[-1].size
    unread = min(offsets, default=0)
    keep_from = end - options.federated_tail_bytes if federated else end
    starts: list[int] = []
    dropped = 0
    for index, segment in enumerate(sealed):
        after = segments[index + 1].start
        consumed = bool(offsets) and unread >= after and keep_from >= after
        too_many = options.max_files > 0 and len(segments) - index > options.max_files
        too_old = options.max_age_s > 0 and now_s - segment.modified_s > options.max_age_s
        if not (consumed or too_many or too_old):
            break  # only from the front, so that no gap arises
        starts.append(segment.start)
        dropped += max(0, after - max(unread, segment.start)) if offsets else segment.size
    return Plan(starts, dropped)


def sweep_channel(
    fs: FileSystem,
    directory: str,
    offsets_directory: str,
    options: RetentionOptions,
    now_s: float,
    durable: bool = True,
) -> Plan:
    """Delete what may go of one channel. The caller holds the channel's lock.

    A position that cannot be read keeps everything that no cap drops.

    Raises:
        OSError: a file cannot be read or deleted; those deleted before stay deleted.
    """
    segments = []
    for start in list_starts(fs, directory):
        status = fs.stat(segment_path(directory, start))
        segments.append(Aged(start, status.st_size, status.st_mtime))
    if len(segments) < 2:
        return Plan([], 0)
    offsets = []
    federated = False
    for subscriber_id, offset in read_all(fs, offsets_directory):
        federated = federated or subscriber_id.startswith(_FEDERATION_IDS)
        offsets.append(0 if isinstance(offset, OffsetError) else offset)
    decided = plan(segments, offsets, options, now_s, federated)
    for start in decided.starts:
        fs.unlink(segment_path(directory, start))
    if decided.starts:
        if durable:
            fs.fsync_dir(directory)
        if decided.dropped_bytes:
            logger.warning(
                "%s: a cap on retention dropped %d bytes that were not read by everybody",
                directory,
                decided.dropped_bytes,
            )
    return decided
