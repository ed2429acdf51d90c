"""All contenders, keyop first, and how their servers are started."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import orjson

from keyop.bench.peers.contender import LOCAL, NEAR, TLS, Contender, program
from keyop.bench.peers.place import CHANNEL, HOST, PUBLISHER, SUBSCRIBERS, Certificate, Place
from keyop.bench.peers.processes import free_port

_HERE = "keyop.bench.peers"
_HUB = Path(__file__).parents[3] / "bin" / "keyop-hub"


def _keyop(place: Place) -> list[list[str]]:
    assert place.certificate is not None
    config = {
        "name": place.name,
        "storage": {"data_dir": f"{place.directory}/hub"},
        "tls": vars(place.certificate),
        "hub": {
            "enabled": True,
            "listen_addr": f"{HOST}:{place.port}",
            "allowed_peers": [{"name": name} for name in (PUBLISHER, *SUBSCRIBERS)],
        },
    }
    path = f"{place.directory}/hub.yaml"
    with open(path, "wb") as file:
        file.write(orjson.dumps(config))
    return [[sys.executable, str(_HUB), "-c", path]]


def _redis(place: Place) -> list[list[str]]:
    command = [program("redis-server"), "--bind", HOST, "--dir", place.directory, "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always" if place.power else "everysec"]
    if place.certificate is None:
        return [[*command, "--port", str(place.port)]]
    command += ["--port", "0", "--tls-port", str(place.port), "--tls-auth-clients", "yes"]
    command += ["--tls-cert-file", place.certificate.cert, "--tls-key-file", place.certificate.key]
    return [[*command, "--tls-ca-cert-file", place.certificate.ca]]


def _nats(place: Place) -> list[list[str]]:
    lines = _nats_lines(place)
    if place.certificate is not None:
        tls = _nats_tls(place.certificate)
        lines += [*tls, "leafnodes {", f"  listen: '{HOST}:{place.links_port}'", *tls, "}"]
    return [[program("nats-server"), "-c", _written(place, "nats.conf", lines)]]


def _nats_near(near: Place, far: Place) -> list[str]:
    assert near.certificate is not None
    url = f"tls://{HOST}:{far.links_port}"
    remote = ["leafnodes {", f"  remotes: [{{url: '{url}'", *_nats_tls(near.certificate), "}]", "}"]
    lines = [*_nats_lines(near), *remote]
    return [program("nats-server"), "-c", _written(near, "nats.conf", lines)]


def _nats_lines(place: Place) -> list[str]:
    return [
        f"listen: '{HOST}:{place.port}'",
        f"server_name: '{place.name}'",
        "jetstream {",
        f"  store_dir: '{place.directory}'",
        f"  domain: '{place.name}'",
        "  sync_interval: always" if place.power else "",
        "}",
    ]


def _nats_tls(certificate: Certificate) -> list[str]:
    return [
        "tls {",
        f"  cert_file: '{certificate.cert}'",
        f"  key_file: '{certificate.key}'",
        f"  ca_file: '{certificate.ca}'",
        "  verify: true",
        "}",
    ]


def _mosquitto(place: Place) -> list[list[str]]:
    lines = _mosquitto_lines(place)
    if place.certificate is not None:
        lines += [
            f"certfile {place.certificate.cert}",
            f"keyfile {place.certificate.key}",
            f"cafile {place.certificate.ca}",
            "require_certificate true",
        ]
    return [[program("mosquitto"), "-c", _written(place, "mosquitto.conf", lines)]]


def _mosquitto_near(near: Place, far: Place) -> list[str]:
    assert near.certificate is not None
    lines = [
        *_mosquitto_lines(near),
        "connection far",
        f"address {HOST}:{far.port}",
        "remote_clientid near",
        "cleansession false",
        f"topic {CHANNEL} out 1",
        f"bridge_certfile {near.certificate.cert}",
        f"bridge_keyfile {near.certificate.key}",
        f"bridge_cafile {near.certificate.ca}",
    ]
    return [program("mosquitto"), "-c", _written(near, "mosquitto.conf", lines)]


def _mosquitto_lines(place: Place) -> list[str]:
    lines = [
        f"listener {place.port} {HOST}",
        "allow_anonymous true",
        "set_tcp_nodelay true",
        "max_inflight_messages 1000",
        "max_queued_messages 0",
        "persistence true",
        f"persistence_location {place.directory}/",
    ]
    if os.getuid() == 0:
        lines.append("user root")  # another could not write there
    return lines


def _rabbitmq(place: Place) -> list[list[str]]:
    # Erlang's port mapper would go on as a daemon if the server started it.
    names = str(free_port())
    settings = {
        "HOME": place.directory,
        "ERL_EPMD_PORT": names,
        "RABBITMQ_NODENAME": f"bench{place.port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": str(place.port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": f"{place.directory}/mnesia",
        "RABBITMQ_LOG_BASE": f"{place.directory}/log",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": f"{place.directory}/none",
        "RABBITMQ_ENABLED_PLUGINS_FILE": _written(place, "plugins", ["[]."]),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false",
    }
    environment = [f"{name}={value}" for name, value in settings.items()]
    return [
        [program("epmd"), "-port", names, "-address", HOST],
        ["env", *environment, program("rabbitmq-server")],
    ]


def _rabbitmq_version() -> str:
    # Asked, it would start. It lives in a directory that is called after its version.
    _, _, version = os.path.realpath(program("rabbitmq-server")).partition("rabbitmq_server-")
    return version.partition("/")[0]


def _written(place: Place, name: str, lines: list[str]) -> str:
    path = f"{place.directory}/{name}"
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([*lines, ""]))
    return path


CONTENDERS = [
    Contender(
        key="keyop",
        title="keyop",
        client=f"{_HERE}.client_keyop:KeyopClient",
        modules={"keyop": "keyop"},
        commands=_keyop,
        measures=LOCAL | TLS | {NEAR},
    ),
    Contender(
        key="keyop-ephemeral",
        title="keyop, ephemeral clients",
        notes={"": "kept by the hub only, as by the servers of the others"},
        client=f"{_HERE}.client_guest:KeyopGuest",
        modules={"keyop": "keyop"},
        commands=_keyop,
        measures=TLS,
    ),
    Contender(
        key="sqlite",
        title="SQLite",
        client=f"{_HERE}.client_sqlite:SqliteClient",
        built_in=f"sqlite3 {sqlite3.sqlite_version}",
        polled=True,
    ),
    Contender(
        key="redis",
        title="Redis Streams",
        notes={"backlog": "each XACK is waited for"},
        client=f"{_HERE}.client_redis:RedisClient",
        modules={"redis": "redis", "hiredis": "hiredis"},
        program="redis-server",
        commands=_redis,
        measures=LOCAL | TLS,
    ),
    Contender(
        key="nats",
        title="NATS JetStream",
        client=f"{_HERE}.client_nats:NatsClient",
        modules={"nats-py": "nats"},
        notes={"backlog": "acknowledgements are sent, not waited for"},
        program="nats-server",
        commands=_nats,
        near=_nats_near,
        measures=LOCAL | TLS | {NEAR},
    ),
    Contender(
        key="mosquitto",
        title="mosquitto",
        client=f"{_HERE}.client_mosquitto:MosquittoClient",
        modules={"paho-mqtt": "paho"},
        program="mosquitto",
        commands=_mosquitto,
        near=_mosquitto_near,
        measures=(LOCAL | TLS | {NEAR}) - {"publish-64"},
        notes={"": "a broker that is killed loses what came in the last half an hour"},
    ),
    Contender(
        key="rabbitmq",
        title="RabbitMQ",
        client=f"{_HERE}.client_rabbitmq:RabbitClient",
        modules={"pika": "pika"},
        program="rabbitmq-server",
        program_version=_rabbitmq_version,
        commands=_rabbitmq,
        measures=LOCAL - {"batch"},
        notes={
            "publish": "it syncs before it confirms, in each class",
            "backlog": "acknowledgements are sent, not waited for",
        },
    ),
    Contender(
        key="persist-queue",
        title="persist-queue",
        client=f"{_HERE}.client_embedded:PersistQueueClient",
        modules={"persist-queue": "persistqueue"},
        measures=LOCAL - {"batch"},
        polled=True,
        notes={
            "publish": "it syncs each, in each class",
            "backlog": "it syncs each, in each class",
        },
    ),
    Contender(
        key="litequeue",
        title="litequeue",
        client=f"{_HERE}.client_embedded:LiteQueueClient",
        modules={"litequeue": "litequeue"},
        polled=True,
    ),
    Contender(
        key="diskcache",
        title="diskcache Deque",
        client=f"{_HERE}.client_embedded:DiskCacheClient",
        modules={"diskcache": "diskcache"},
        polled=True,
    ),
    Contender(
        key="honker",
        title="honker",
        client=f"{_HERE}.client_honker:HonkerClient",
        modules={"honker": "honker"},
        # It cannot be told to survive a power loss.
        measures=LOCAL - {"publish-64"},
        polled=True,
    ),
]
