"""Names from outside: one rule, at every entrance, before anything touches a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyop import (
    Config,
    ConfigError,
    InvalidChannelNameError,
    InvalidSubscriberIdError,
    Messenger,
    ReservedChannelNameError,
)

from .helpers import Recorder, offset_path, records, running, tree

LONGEST_CHANNEL = 255 - len(".dead-letter")
LONGEST_ID = 255 - len("fedout-") - len(".offset.tmp")

BAD = {
    "empty": "",
    "dot": ".",
    "dot dot": "..",
    "up": "../x",
    "up three": "../../../x",
    "absolute": "/etc/passwd",
    "slash": "a/b",
    "trailing slash": "a/",
    "backslash": "a\\b",
    "space": "a b",
    "leading space": " a",
    "newline": "a\n",
    "only newline": "\n",
    "nul": "a\x00b",
    "star": "a*",
    "percent": "%2e%2e",
    "umlaut": "ä",
    "arabic digit": "a\u0663",
    "full width": "\uff41",
    "surrogate": "\udc80",
    "tilde": "~",
    "dollar": "$HOME",
    "at": "a@b",
    "colon": "a:b",
    "too long": "x" * 256,
}
NOT_STRINGS = {"none": None, "int": 1, "bytes": b"orders", "list": ["orders"], "path": Path("a")}

bad_names = pytest.mark.parametrize("name", BAD.values(), ids=BAD)

CHANNEL_ENTRANCES: dict[str, Callable[[Messenger, Any], Any]] = {
    "publish": lambda m, name: m.publish(name, "t", 1),
    "publish_batch": lambda m, name: m.publish_batch(name, [("t", 1)]),
    "empty batch": lambda m, name: m.publish_batch(name, []),
    "subscribe": lambda m, name: m.subscribe(name, "s", Recorder()),
    "subscribe as a decorator": lambda m, name: m.subscribe(name, "s")(Recorder()),
    "unsubscribe": lambda m, name: m.unsubscribe(name, "s"),
    "reopen": lambda m, name: m.reopen(name),
}
ID_ENTRANCES: dict[str, Callable[[Messenger, Any], Any]] = {
    "subscribe": lambda m, name: m.subscribe("orders", name, Recorder()),
    "subscribe as a decorator": lambda m, name: m.subscribe("orders", name)(Recorder()),
    "standby": lambda m, name: m.subscribe("orders", name, Recorder(), standby=True),
    "unsubscribe": lambda m, name: m.unsubscribe("orders", name),
}
at_channel = pytest.mark.parametrize(
    "enter", CHANNEL_ENTRANCES.values(), ids=CHANNEL_ENTRANCES.keys()
)
at_id = pytest.mark.parametrize("enter", ID_ENTRANCES.values(), ids=ID_ENTRANCES.keys())


@at_channel
def test_bad_channel_names_are_refused(tmp_path: Path, enter) -> None:
    """No call takes a channel name outside the rule, and nothing is created for it."""
    data = tmp_path / "a" / "b" / "data"
    with running(data) as messenger:
        messenger.start()
        before = tree(tmp_path)
        taken = []
        for label, name in BAD.items():
            try:
                enter(messenger, name)
            except InvalidChannelNameError:
                continue
            taken.append(label)
        assert taken == []
        assert tree(tmp_path) == before


@at_channel
def test_a_channel_name_is_a_string(tmp_path: Path, enter) -> None:
    """What is not a string is refused as a channel, with an error of the caller's kind."""
    with running(tmp_path) as messenger:
        messenger.start()
        before = tree(tmp_path)
        for name in NOT_STRINGS.values():
            with pytest.raises((InvalidChannelNameError, TypeError)):
                enter(messenger, name)
        assert tree(tmp_path) == before


@at_id
def test_bad_subscriber_ids_are_refused(tmp_path: Path, enter) -> None:
    """No call takes a subscriber id outside the rule, and nothing is created for it."""
    data = tmp_path / "a" / "b" / "data"
    with running(data) as messenger:
        messenger.start()
        before = tree(tmp_path)
        taken = []
        for label, name in BAD.items():
            try:
                enter(messenger, name)
            except InvalidSubscriberIdError:
                continue
            taken.append(label)
        assert taken == []
        assert tree(tmp_path) == before


@at_id
def test_a_subscriber_id_is_a_string(tmp_path: Path, enter) -> None:
    """What is not a string is refused as a subscriber id."""
    with running(tmp_path) as messenger:
        messenger.start()
        before = tree(tmp_path)
        for name in NOT_STRINGS.values():
            with pytest.raises((InvalidSubscriberIdError, TypeError)):
                enter(messenger, name)
        assert tree(tmp_path) == before


@at_id
@pytest.mark.parametrize("name", ["fed-x", "fedout-x", "fed-", "fedout-"])
def test_federation_prefixes_are_kept_free(tmp_path: Path, enter, name: str) -> None:
    """A subscriber id may not begin as the position of a peer or a hub does."""
    with running(tmp_path) as messenger:
        messenger.start()
        with pytest.raises(InvalidSubscriberIdError):
            enter(messenger, name)


@pytest.mark.parametrize("name", ["fed", "fedx-1", "FED-x", "a-fed-x", "federation"])
def test_other_ids_with_fed_are_fine(tmp_path: Path, name: str) -> None:
    """Only the exact prefixes are reserved."""
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", name, Recorder())
        assert offset_path(tmp_path, "orders", name).exists()


GOOD = [
    "a",
    "A-Z_0.9",
    "...",
    ".hidden",
    "-x",
    "_",
    "orders.jsonl",
    "x.offset",
    ".lock",
    "0",
    "CON",
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_work_everywhere(tmp_path: Path, name: str) -> None:
    """Any other string of the allowed characters is a channel and a subscriber id."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe(name, name, seen)
        messenger.publish(name, "t", 1)
        assert seen.wait(1) == [1]
    assert len(records(tmp_path, name)) == 1
    assert offset_path(tmp_path, name, name).exists()


def test_longest_channel(tmp_path: Path) -> None:
    """The longest channel whose dead-letter channel fits works, down to its dead letters."""
    name = "c" * LONGEST_CHANNEL

    def fail(message: object) -> None:
        raise ValueError("no")

    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe(name, "s", fail, max_retries=0)
        messenger.subscribe(f"{name}.dead-letter", "s", seen)
        messenger.publish(name, "t", 1)
        seen.wait(1)


def test_one_byte_more_is_refused(tmp_path: Path) -> None:
    """A channel whose dead-letter channel would not fit is refused with the reason."""
    with running(tmp_path) as messenger:
        messenger.start()
        for enter in CHANNEL_ENTRANCES.values():
            with pytest.raises(InvalidChannelNameError, match="243"):
                enter(messenger, "c" * (LONGEST_CHANNEL + 1))


def test_longest_subscriber_id(tmp_path: Path) -> None:
    """An id of 237 bytes works; one byte more is refused."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s" * LONGEST_ID, seen)
        messenger.publish("orders", "t", 1)
        seen.wait(1)
        with pytest.raises(InvalidSubscriberIdError):
            messenger.subscribe("orders", "s" * (LONGEST_ID + 1), seen)


@pytest.mark.parametrize(
    "name", ["orders.dead-letter", ".dead-letter", "a.dead-letter.dead-letter"]
)
def test_publishing_dead_letters_is_reserved(tmp_path: Path, name: str) -> None:
    """Nobody publishes to a dead-letter channel; nothing is created."""
    with running(tmp_path) as messenger:
        messenger.start()
        before = tree(tmp_path)
        with pytest.raises(ReservedChannelNameError):
            messenger.publish(name, "t", 1)
        with pytest.raises(ReservedChannelNameError):
            messenger.publish_batch(name, [("t", 1)])
        assert tree(tmp_path) == before


def test_dead_letters_may_be_subscribed(tmp_path: Path) -> None:
    """A dead-letter channel takes subscribers, before there is one."""
    with running(tmp_path) as messenger:
        subscription = messenger.subscribe("orders.dead-letter", "s", Recorder())
        assert subscription.channel == "orders.dead-letter"


def test_similar_names_are_not_reserved(tmp_path: Path) -> None:
    """Only the suffix makes a dead-letter channel."""
    with running(tmp_path) as messenger:
        for name in ("dead-letter", "orders.dead-letters", "orders.dead-letter.x", "x-dead-letter"):
            messenger.publish(name, "t", 1)
            assert len(records(tmp_path, name)) == 1


def test_reserved_is_invalid_is_a_value_error() -> None:
    """Both errors of a channel's name can be caught as ``ValueError``."""
    assert issubclass(ReservedChannelNameError, InvalidChannelNameError)
    assert issubclass(InvalidChannelNameError, ValueError)


def _with(**parts: Any) -> dict[str, Any]:
    return {"storage": {"data_dir": "/nowhere"}, **parts}


TLS = {"cert": "a", "key": "b", "ca": "c"}
CONFIG_ENTRANCES: dict[str, Callable[[str], dict[str, Any]]] = {
    "name": lambda name: _with(name=name),
    "hub.allowed_peers[0].name": lambda name: _with(
        hub={"enabled": True, "listen_addr": "localhost:1", "allowed_peers": [{"name": name}]},
        tls=TLS,
    ),
    "hub.allowed_peers[0].subscribe": lambda name: _with(
        hub={
            "enabled": True,
            "listen_addr": "localhost:1",
            "allowed_peers": [{"name": "p", "subscribe": [name]}],
        },
        tls=TLS,
    ),
    "hub.allowed_peers[0].publish": lambda name: _with(
        hub={
            "enabled": True,
            "listen_addr": "localhost:1",
            "allowed_peers": [{"name": "p", "publish": [name]}],
        },
        tls=TLS,
    ),
    "client.hubs[0].subscribe": lambda name: _with(
        client={"enabled": True, "hubs": [{"addr": "localhost:1", "subscribe": [name]}]}, tls=TLS
    ),
    "client.hubs[0].publish": lambda name: _with(
        client={"enabled": True, "hubs": [{"addr": "localhost:1", "publish": [name]}]}, tls=TLS
    ),
}


@pytest.mark.parametrize("key", CONFIG_ENTRANCES)
def test_bad_names_in_a_configuration(key: str) -> None:
    """Names in a configuration pass the same validator; the error gives the dotted key."""
    # An empty name is the default, and an instance name may hold a colon.
    skipped = {"empty", "colon"} if key.endswith("name") else set()
    taken, refusals = [], []
    for label, name in BAD.items():
        if label in skipped:
            continue
        try:
            Config.from_dict(CONFIG_ENTRANCES[key](name))
        except ConfigError as error:
            refusals.append(str(error))
        else:
            taken.append(label)
    assert taken == []
    assert all(key.split("[")[0] in refusal for refusal in refusals)


def test_instance_name_may_hold_a_colon(tmp_path: Path) -> None:
    """``host:port`` is an instance name."""
    assert Config.from_dict(_with(name="host:8080")).instance_name() == "host:8080"
