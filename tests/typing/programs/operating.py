"""Configuration, life, statistics and errors."""

from collections.abc import Callable
from pathlib import Path

import keyop
from keyop import (
    AllowedPeer,
    AuditConfig,
    ChannelStats,
    ClientConfig,
    ClientHub,
    Config,
    ConfigError,
    DedupConfig,
    FederationConfig,
    HubConfig,
    KeyopError,
    LogFailedError,
    Messenger,
    MessengerClosedError,
    Percentiles,
    PublishTimeoutError,
    Stats,
    StorageConfig,
    StorageError,
    SubscribersConfig,
    SubscriberStats,
    TLSConfig,
    WebConfig,
)

config = Config(
    name="here",
    storage=StorageConfig(data_dir="keyop-data", sync_policy="always", max_files=3),
    subscribers=SubscribersConfig(max_retries=0),
    hub=HubConfig(
        enabled=True,
        listen_addr="127.0.0.1:7740",
        allowed_peers=(AllowedPeer("there", subscribe=("orders",), publish=()),),
    ),
    client=ClientConfig(enabled=True, hubs=(ClientHub("hub:7740", subscribe=("bills",)),)),
    tls=TLSConfig(cert="c.crt", key="c.key", ca="ca.crt", min_version="1.3"),
    federation=FederationConfig(reconnect_jitter=0.1),
    dedup=DedupConfig(seen_id_lru_size=1000),
    audit=AuditConfig(max_files=2),
    web=WebConfig(listen_addr="127.0.0.1:7741", token="t"),
)
same: Config = Config.load("conf/local.yaml")
same = Config.load(Path("conf") / "local.yaml")
same = Config.from_dict({"storage": {"data_dir": "keyop-data", "retention": "7d"}})

try:
    Config.from_dict({})
except ConfigError as error:
    problems: list[str] = [*error.problems]
    where: str = str(error.source)


def publish(messenger: Messenger) -> str:
    """Tell whether the record is in the log."""
    try:
        return messenger.publish("orders", "t", None, timeout=0.1)
    except PublishTimeoutError as error:
        return f"timeout, {int(error.written)} written"
    except MessengerClosedError as error:
        return f"closed, {error.written}"
    except LogFailedError:
        messenger.reopen("orders")
    except (StorageError, KeyopError) as error:
        return str(error)
    return ""


def report(stats: Stats) -> str:
    """Say what there is."""
    channels: list[ChannelStats] = list(stats.channels)
    subscribers: list[SubscriberStats] = [each for of in channels for each in of.subscribers]
    latency: Percentiles = stats.latency.publish
    half: float | None = latency.p50
    return f"{stats.instance_name}: {channels}, {subscribers}, {half} of {latency.count}"


with Messenger(config) as running:
    running.start()
    print(publish(running), report(running.stats()))
    print(running.instance_name + running.hub_addr)
    running.reload(same)

subscribe: Callable[[str], object] = running.reopen
version: str = keyop.__version__
