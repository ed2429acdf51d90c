"""Every exception that keyop raises.

::

    KeyopError
    ├── ConfigError (ValueError)
    ├── InvalidChannelNameError (ValueError)
    │   └── ReservedChannelNameError
    ├── InvalidSubscriberIdError (ValueError)
    ├── PayloadTypeAlreadyRegisteredError
    ├── PayloadError
    ├── RecordTooLargeError
    ├── MessengerClosedError
    ├── ForkedError
    ├── WrongThreadError
    ├── SubscriberInUseError
    ├── PublishTimeoutError (TimeoutError)
    ├── StorageError
    │   ├── LogFailedError
    │   ├── OffsetError
    │   └── CorruptRecordError
    ├── ProtocolError
    ├── HandshakeRejectedError
    ├── ConnectionLostError
    └── EphemeralClosedError

``RetryLater`` stands beside the tree: it is control flow for handlers, not a failure.
"""

from __future__ import annotations

from collections.abc import Sequence


class KeyopError(Exception):
    """The root of every error that keyop raises."""


class ConfigError(KeyopError, ValueError):
    """The configuration cannot be used; ``problems`` lists every fault found in it."""

    def __init__(self, problems: str | Sequence[str], source: str = "configuration") -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        self.source = source
        if len(self.problems) == 1:
            text = f"{source}: {self.problems[0]}"
        else:
            text = "\n  ".join([f"{source}: {len(self.problems)} problems", *self.problems])
        super().__init__(text)


class InvalidChannelNameError(KeyopError, ValueError):
    """The channel's name may not be used; nothing was created."""


class ReservedChannelNameError(InvalidChannelNameError):
    """The channel belongs to keyop itself: dead letters are written by subscribers only."""


class InvalidSubscriberIdError(KeyopError, ValueError):
    """The subscriber id may not be used; nothing was created."""


class PayloadTypeAlreadyRegisteredError(KeyopError):
    """A class is registered for this payload type already; the first one stays."""


class PayloadError(KeyopError):
    """A payload or another field of a message cannot be held in a record; nothing was written."""


class RecordTooLargeError(KeyopError):
    """The record would exceed ``storage.max_record_bytes``; nothing was written."""


class MessengerClosedError(KeyopError):
    """The messenger is closed, or was closed while the call waited.

    ``written`` tells what is in the log: ``False`` nothing, ``True`` the record (its fsync may
    not have been confirmed); for a batch, the number of records.
    """

    def __init__(self, message: str, written: bool | int = False) -> None:
        super().__init__(message)
        self.written = written


class ForkedError(KeyopError):
    """The messenger was started in another process; make or start one in this process."""


class WrongThreadError(KeyopError, RuntimeError):
    """The messenger was used from another OS thread than the one that started it."""


class SubscriberInUseError(KeyopError):
    """Another subscription, here or in another process, holds this subscriber id."""


class PublishTimeoutError(KeyopError, TimeoutError):
    """The timeout passed before the record was written under its sync policy.

    ``written`` tells what is in the log: ``False`` nothing, ``True`` the record (it will be
    delivered; its fsync is still under way); for a batch, the number of records.
    """

    def __init__(self, message: str, written: bool | int = False) -> None:
        super().__init__(message)
        self.written = written


class StorageError(KeyopError):
    """The file system refused an operation; what was asked for was not done."""


class LogFailedError(StorageError):
    """A write or fsync failed and the tail on disk is unknown: the channel takes no more records.

    The records may still be delivered. ``Messenger.reopen(channel)`` goes on in a new segment.
    """


class OffsetError(StorageError):
    """A subscriber's position cannot be read or kept; the position on disk was not changed."""


class CorruptRecordError(StorageError):
    """A line of a segment is not a record: its checksum or its form is wrong."""


class ProtocolError(KeyopError):
    """The remote side broke the federation protocol; ``code`` is the close code to answer with."""

    def __init__(self, message: str, code: int = 1002) -> None:
        super().__init__(message)
        self.code = code


class HandshakeRejectedError(KeyopError):
    """The hub refused this instance; trying again will not help."""


class ConnectionLostError(KeyopError):
    """The connection ended before the hub confirmed: the message may or may not have arrived."""


class EphemeralClosedError(KeyopError):
    """The ephemeral messenger is closed."""


class RetryLater(Exception):
    """Raised by a handler: keep this message at the head and deliver it again later.

    It spends no retry and never ends in the dead-letter channel.

    Args:
        delay_s: seconds to wait; without it, the subscription's own backoff decides.
    """

    def __init__(self, delay_s: float | None = None) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s
