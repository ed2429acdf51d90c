"""The configuration: every key with its rule, its unit and its default.

Attribute names equal the keys of the YAML file. A ``0`` is what was written, never a default.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from keyop.config_federation import (
    AllowedPeer,
    ClientConfig,
    ClientHub,
    FederationConfig,
    HubConfig,
    TLSConfig,
)
from keyop.config_rules import (
    Count,
    InstanceName,
    ListenAddress,
    Megabytes,
    Milliseconds,
    PathName,
    Seconds,
    Secret,
    is_loopback,
    one_of,
    split_address,
    whole,
)
from keyop.config_schema import Conflict, Part, check
from keyop.names import MAX_ID_BYTES, instance_name_fault

__all__ = [
    "AllowedPeer",
    "AuditConfig",
    "ClientConfig",
    "ClientHub",
    "Config",
    "DedupConfig",
    "FederationConfig",
    "HubConfig",
    "StorageConfig",
    "SubscribersConfig",
    "TLSConfig",
    "WebConfig",
    "split_address",
]

MIB = 1 << 20
# Small ones waste files, which is what tests of rolling want. A record takes its segment whole.
MIN_SEGMENT_BYTES = 1
# Less than an envelope around an empty payload needs; a gigabyte is held in memory whole.
MIN_RECORD_BYTES = 64
MAX_RECORD_BYTES = 1 << 30
MAX_CERTIFICATE_BYTES = 1 << 20


@dataclass(frozen=True)
class StorageConfig(Part, section="storage"):
    """Where records are kept, when they reach the disk and when they may go.

    Attributes:
        data_dir: the data directory, relative to the working directory; required.
        sync_policy: when records are fsynced: ``none`` (when the kernel likes), ``periodic``,
            or ``always`` (before ``publish`` returns).
        sync_interval_ms: between two syncs under ``periodic``; 0 syncs back to back.
        offset_flush_interval_ms: between two saves of a position; 0 saves after every message.
        compaction_threshold_mb: segment size in MiB. 0 is refused, unless
            ``max_segment_bytes`` is set: it would put every record into a file of its own.
        max_segment_bytes: segment size in bytes, at least 1; overrides the former.
        max_record_bytes: of one record with its newline, 64 bytes to 1 GiB.
        max_subscriber_lag_mb: warn of a subscriber further behind, in MiB; 0 never warns.
        max_files: keep at most so many segments per channel, read or not; 0 keeps all unread.
        retention: drop segments older than this, in seconds, read or not; 0 keeps all unread.
    """

    data_dir: PathName = ""
    sync_policy: Annotated[str, one_of("none", "periodic", "always")] = "periodic"
    sync_interval_ms: Milliseconds = 200
    offset_flush_interval_ms: Milliseconds = 0
    compaction_threshold_mb: Megabytes = 256
    max_segment_bytes: Annotated[int | None, whole(MIN_SEGMENT_BYTES)] = None
    max_record_bytes: Annotated[int, whole(MIN_RECORD_BYTES, MAX_RECORD_BYTES)] = 10 * MIB
    max_subscriber_lag_mb: Megabytes = 512
    max_files: Count = 0
    retention: Seconds = 0.0

    @property
    def segment_bytes(self) -> int:
        """Size in bytes that an append may not take a segment over."""
        if self.max_segment_bytes is not None:
            return self.max_segment_bytes
        return self.compaction_threshold_mb * MIB

    def _conflicts(self) -> Iterator[Conflict]:
        if not self.data_dir.strip():
            yield Conflict(("data_dir",), f"{self.data_dir!r} is not allowed; name a directory")
        if self.compaction_threshold_mb == 0 and self.max_segment_bytes is None:
            yield Conflict(
                ("compaction_threshold_mb", "max_segment_bytes"),
                "0 is not allowed: every record would get a file of its own; use a number of "
                "MiB from 1 (the default is 256), or set storage.max_segment_bytes",
            )


@dataclass(frozen=True)
class SubscribersConfig(Part, section="subscribers"):
    """What happens when a handler fails.

    Attributes:
        max_retries: deliveries after the first before a message is dead-lettered; 0 for none.
        retry_backoff_base_ms: wait before the first retry.
        retry_backoff_max_ms: longest wait between retries, not below the former.
    """

    max_retries: Count = 5
    retry_backoff_base_ms: Milliseconds = 100
    retry_backoff_max_ms: Milliseconds = 5000

    def _conflicts(self) -> Iterator[Conflict]:
        if self.retry_backoff_max_ms < self.retry_backoff_base_ms:
            yield Conflict(
                ("retry_backoff_max_ms", "retry_backoff_base_ms"),
                f"{self.retry_backoff_max_ms} is not allowed; use at least "
                f"subscribers.retry_backoff_base_ms, which is {self.retry_backoff_base_ms}",
            )


@dataclass(frozen=True)
class DedupConfig(Part, section="dedup"):
    """Recognising records that were seen before.

    Attributes:
        seen_id_lru_size: ids remembered; 0 remembers none.
    """

    seen_id_lru_size: Count = 100_000


@dataclass(frozen=True)
class AuditConfig(Part, section="audit"):
    """Rotation of the audit log.

    Attributes:
        max_size_mb: size in MiB at which it is rotated; 0 never rotates.
        max_files: rotated files kept; 0 keeps none.
    """

    max_size_mb: Megabytes = 100
    max_files: Count = 10


@dataclass(frozen=True)
class WebConfig(Part, section="web"):
    """The hub's own page, metrics and health.

    Attributes:
        listen_addr: ``host:port`` or ``[IPv6]:port``; empty is off.
        token: what a client must present; needed where others than this machine can connect.
    """

    listen_addr: ListenAddress = ""
    token: Secret = field(default="", repr=False)

    def _conflicts(self) -> Iterator[Conflict]:
        if self.listen_addr and not self.token:
            host, _ = split_address(self.listen_addr)
            if not is_loopback(host):
                yield Conflict(
                    ("token", "listen_addr"),
                    f"'' is not allowed while web.listen_addr is {self.listen_addr!r}; "
                    "set a token, or listen on 127.0.0.1, [::1] or localhost",
                )


@dataclass(frozen=True)
class Config(Part):
    """Everything that a messenger can be told. Constructing one does no I/O.

    Lists are tuples, durations are seconds. Each part documents its keys. ``name`` is the
    instance name as written; :meth:`instance_name` resolves its default.

    Raises:
        ConfigError: with every problem at once, each naming its dotted key, the value and what
            is allowed.
    """

    name: InstanceName = ""
    # An unchecked one: that data_dir is missing is reported along with everything else.
    storage: StorageConfig = field(default_factory=lambda: object.__new__(StorageConfig))
    subscribers: SubscribersConfig = field(default_factory=SubscribersConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    tls: TLSConfig = field(default_factory=TLSConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    web: WebConfig = field(default_factory=WebConfig)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Read and check a YAML file; nothing else is opened or created.

        Raises:
            ConfigError: the file cannot be used as YAML (see ``read_yaml``), or has problems,
                all of them listed.
        """
        from keyop.config_yaml import read_yaml  # what most programs do without takes a while

        data, duplicates = read_yaml(path)
        config = check(cls, data, "", os.fsdecode(path), duplicates)
        object.__setattr__(config, "_path", os.path.abspath(os.fsdecode(path)))
        return config

    @property
    def path(self) -> str:
        """The file that it was loaded from; empty if it was not."""
        path: str = getattr(self, "_path", "")
        return path

    def instance_name(self) -> str:
        """Return ``name``; else the common name in ``tls.cert``; else the host name.

        Reads the certificate each time. One that is missing, unreadable or without exactly one
        valid common name is passed over. In a host name, what an instance name may not hold
        becomes ``-``.
        """
        return self.name or _certificate_name(self.tls.cert) or _host_name()

    def _conflicts(self) -> Iterator[Conflict]:
        for role, enabled in (("hub", self.hub.enabled), ("client", self.client.enabled)):
            if enabled and self.tls.configured:
                for name in ("cert", "key", "ca"):
                    if not getattr(self.tls, name):
                        yield Conflict(
                            (f"tls.{name}", f"{role}.enabled"),
                            f"'' is not allowed while {role}.enabled is true and another tls "
                            "file is set; set tls.cert, tls.key and tls.ca, or none",
                        )


def _certificate_name(file_name: str) -> str | None:
    if not file_name:
        return None
    from cryptography import x509  # takes a while too
    from cryptography.x509.oid import NameOID

    try:
        with open(file_name, "rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read(MAX_CERTIFICATE_BYTES))
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (OSError, ValueError, x509.InvalidVersion):
        return None
    if len(names) != 1 or instance_name_fault(names[0].value) is not None:
        return None
    return str(names[0].value)


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._:-]", "-", socket.gethostname())[:MAX_ID_BYTES]
    return name if instance_name_fault(name) is None else "localhost"
