"""Correlation ids and service names across greenlets and handlers; registered payload types."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.pool
import msgspec
import pydantic
import pytest

import keyop
from keyop import KeyopError, Message, PayloadError, RetryLater
from keyop.testing import drain

from .helpers import FAST_BACKOFF, Recorder, dead_letters, log_bytes, records, running, tree


def stamps(data_dir: Path, channel: str) -> list[tuple[Any, str | None, str | None]]:
    """The payload, correlation id and service name of each record; None where there is none."""
    return [
        (each["payload"], each.get("correlation_id"), each.get("service_name"))
        for each in records(data_dir, channel)
    ]


# --- context and greenlets


def test_blocks_of_many_greenlets(tmp_path: Path) -> None:
    """However greenlets take turns, each publishes under its own blocks, nested ones as well."""
    with running(tmp_path) as messenger:

        def work(who: int) -> None:
            with keyop.service_name(f"service-{who}"):
                for n in range(10):
                    with keyop.correlation_id(f"{who}-{n}"):
                        gevent.sleep(0)
                        messenger.publish("orders", "t", [who, n])
                        gevent.sleep(0)
                    messenger.publish("orders", "t", [who, None])

        pool = gevent.pool.Pool(10)
        for who in range(10):
            pool.spawn(work, who)
        pool.join(raise_error=True)
    assert len(records(tmp_path, "orders")) == 200
    for (who, n), correlation_id, service in stamps(tmp_path, "orders"):
        assert correlation_id == (None if n is None else f"{who}-{n}")
        assert service == f"service-{who}"


def test_killed_inside_a_block(tmp_path: Path) -> None:
    """A greenlet that is killed inside a block takes its id along."""
    with running(tmp_path) as messenger:

        def work() -> None:
            with keyop.correlation_id("mine"):
                gevent.sleep(60)

        worker = gevent.spawn(work)
        gevent.sleep(0)
        worker.kill()
        messenger.publish("orders", "t", 1)
    assert stamps(tmp_path, "orders") == [(1, None, None)]


def test_block_around_a_generator(tmp_path: Path) -> None:
    """A batch made of a generator is stamped by the block around the call."""

    def messages() -> Iterator[tuple[str, int]]:
        for n in range(3):
            yield "t", n

    with running(tmp_path) as messenger, keyop.correlation_id("c"), keyop.service_name("s"):
        messenger.publish_batch("orders", messages())
    assert stamps(tmp_path, "orders") == [(n, "c", "s") for n in range(3)]


def test_empty_argument_wins_too(tmp_path: Path) -> None:
    """An empty argument is an argument: the record has no id although the block has one."""
    with running(tmp_path) as messenger, keyop.correlation_id("c"), keyop.service_name("s"):
        messenger.publish("orders", "t", 1, correlation_id="", service_name="")
        messenger.publish("orders", "t", 2, correlation_id=None, service_name=None)
    assert stamps(tmp_path, "orders") == [(1, None, None), (2, "c", "s")]


@pytest.mark.parametrize("value", [5, b"c", "\ud800"], ids=repr)
def test_odd_value_in_a_block(tmp_path: Path, value: Any) -> None:
    """A value that no record can hold is refused by the block or by the publish inside it.

    Nothing is written, and the next publish is not concerned.
    """
    with running(tmp_path) as messenger:
        messenger.publish("orders", "t", 0)
        before = tree(tmp_path)
        with (
            pytest.raises((PayloadError, TypeError, ValueError)),
            keyop.correlation_id(value),
        ):
            messenger.publish("orders", "t", 1)
        assert tree(tmp_path) == before
        messenger.publish("orders", "t", 2)
    assert [payload for payload, _, _ in stamps(tmp_path, "orders")] == [0, 2]


# --- context in handlers


def test_subscribers_block_is_not_the_handlers(tmp_path: Path) -> None:
    """Blocks around ``subscribe`` do not stamp what the handler publishes later."""
    with running(tmp_path) as messenger:

        def handle(message: Message) -> None:
            messenger.publish("invoices", "t", message.payload)

        with keyop.correlation_id("setup"), keyop.service_name("setup"):
            messenger.subscribe("orders", "s", handle)
            messenger.subscribe("orders", "many", handle, concurrency=3)
        messenger.publish("orders", "t", 1)
        messenger.publish("orders", "t", 2, correlation_id="mine")
        drain(messenger)
    assert sorted(stamps(tmp_path, "invoices"), key=repr) == [
        (1, None, None),
        (1, None, None),
        (2, "mine", None),
        (2, "mine", None),
    ]


def test_concurrent_handlers_have_their_own(tmp_path: Path) -> None:
    """Handlers that run at once each have the id of their own message, and no other."""
    with running(tmp_path) as messenger:

        def handle(message: Message) -> None:
            for step in range(4):
                gevent.sleep(0.001 * (message.payload % 3))
                messenger.publish("invoices", "t", [message.payload, step])

        messenger.subscribe("orders", "s", handle, concurrency=6)
        for n in range(30):
            messenger.publish("orders", "t", n, correlation_id=f"order-{n}" if n % 4 else None)
        drain(messenger, timeout=10)
    assert len(records(tmp_path, "invoices")) == 120
    for (n, _), correlation_id, service in stamps(tmp_path, "invoices"):
        assert correlation_id == (f"order-{n}" if n % 4 else None)
        assert service is None


@pytest.mark.parametrize("concurrency", [1, 3])
def test_next_message_begins_anew(tmp_path: Path, concurrency: int) -> None:
    """Neither a message's id nor a block that an error ended reaches the next message."""

    def handle(message: Message) -> None:
        messenger.publish("invoices", "t", message.payload)
        with keyop.correlation_id("inner"), keyop.service_name("inner"):
            if message.payload == 0 and message.attempt < 3:
                raise ValueError("again")
            if message.payload == 1 and message.attempt < 3:
                raise RetryLater(0.001)

    with running(tmp_path) as messenger:
        messenger.subscribe(
            "orders", "s", handle, retry_backoff=FAST_BACKOFF, concurrency=concurrency
        )
        messenger.publish("orders", "t", 0, correlation_id="zero")
        messenger.publish("orders", "t", 1, correlation_id="one")
        messenger.publish("orders", "t", 2)
        drain(messenger)
    got = stamps(tmp_path, "invoices")
    assert sorted(got) == [(0, "zero", None)] * 3 + [(1, "one", None)] * 3 + [(2, None, None)]


def test_id_goes_through_a_chain(tmp_path: Path) -> None:
    """Three handlers in a row carry the first publisher's id to the end, and the dead letter too.

    The service name is each publisher's own.
    """
    seen = Recorder()

    def end(message: Message) -> None:
        seen(message)
        raise ValueError("the end")

    with running(tmp_path) as messenger:
        messenger.subscribe("c", "s", end, max_retries=0)

        @messenger.subscribe("b", "s")
        def second(message: Message) -> None:
            messenger.publish("c", "t", message.payload, service_name="second")

        @messenger.subscribe("a", "s")
        def first(message: Message) -> None:
            with keyop.service_name("first"):
                messenger.publish("b", "t", message.payload)

        with keyop.correlation_id("order-1"), keyop.service_name("shop"):
            messenger.publish("a", "t", 1)
        seen.wait(1)
        drain(messenger)
    assert stamps(tmp_path, "a") == [(1, "order-1", "shop")]
    assert stamps(tmp_path, "b") == [(1, "order-1", "first")]
    assert stamps(tmp_path, "c") == [(1, "order-1", "second")]
    assert (seen.messages[0].correlation_id, seen.messages[0].service_name) == (
        "order-1",
        "second",
    )
    (letter,) = records(tmp_path, "c.dead-letter")
    assert letter["correlation_id"] == "order-1"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_decoder_and_key_see_no_other_messages_id(tmp_path: Path, concurrency: int) -> None:
    """What a type's callable or ``key`` publishes never carries the id of another message."""
    with running(tmp_path) as messenger:

        def decode(data: Any) -> Any:
            messenger.publish("decoded", "plain", data)
            return data

        def key(message: Message) -> Any:
            messenger.publish("keyed", "plain", message.payload)
            return message.payload

        messenger.register_payload_type("t", decode)
        messenger.subscribe("orders", "s", lambda message: None, concurrency=concurrency, key=key)
        messenger.publish("orders", "t", "one", correlation_id="one")
        messenger.publish("orders", "t", "none")
        messenger.publish("orders", "t", "two", correlation_id="two")
        drain(messenger)
    for channel in ("decoded", "keyed") if concurrency > 1 else ("decoded",):
        got = stamps(tmp_path, channel)
        assert {payload for payload, _, _ in got} == {"one", "none", "two"}
        assert all(correlation_id in (payload, None) for payload, correlation_id, _ in got), got


# --- types


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Item:
    name: str
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Order:
    id: int
    items: list[Item]
    by_name: dict[str, Item] = dataclasses.field(default_factory=dict)
    note: str | None = None
    pair: tuple[int, int] = (0, 0)
    total: float = 0.0
    first: Item | None = None


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("x",)
    x: int


@dataclasses.dataclass(kw_only=True)
class Timed:
    at: datetime.datetime
    day: datetime.date
    key: uuid.UUID
    colour: Colour


class StructItem(msgspec.Struct, frozen=True):
    name: str
    count: int = 1


class StructOrder(msgspec.Struct):
    id: int
    items: list[StructItem]
    at: datetime.datetime
    key: uuid.UUID
    colour: Colour
    note: str | None = None
    raw: bytes = b""


class Renamed(msgspec.Struct, rename="camel"):
    order_id: int
    due_date: str = ""


class Tagged(msgspec.Struct, tag="tagged"):
    x: int


class ModelItem(pydantic.BaseModel):
    name: str
    count: int = 1


class ModelOrder(pydantic.BaseModel):
    id: int
    items: list[ModelItem]
    at: datetime.datetime
    key: uuid.UUID
    colour: Colour
    price: decimal.Decimal
    note: str | None = None


class Aliased(pydantic.BaseModel):
    order_id: int = pydantic.Field(alias="orderId")


class Positive(pydantic.BaseModel):
    n: pydantic.PositiveInt


MOMENT = datetime.datetime(2026, 3, 1, 12, 30, 45, 123456, tzinfo=datetime.timezone.utc)
KEY = uuid.UUID("11111111-2222-4333-8444-555555555555")
INSTANCES: dict[str, Any] = {
    "nested dataclass": Order(
        1, [Item("a"), Item("b", 2)], {"c": Item("c")}, "é", (1, 2), 1.5, Item("d")
    ),
    "defaults": Order(1, []),
    "slots": Slotted(1),
    "dataclass of times": Timed(at=MOMENT, day=MOMENT.date(), key=KEY, colour=Colour.BLUE),
    "struct": StructOrder(1, [StructItem("a", 2)], MOMENT, KEY, Colour.RED, "x", b"\x00\xff"),
    "renamed struct": Renamed(7, "today"),
    "tagged struct": Tagged(3),
    "model": ModelOrder(
        id=1,
        items=[ModelItem(name="a")],
        at=MOMENT,
        key=KEY,
        colour=Colour.BLUE,
        price=decimal.Decimal("1.10"),
    ),
    "model with an alias": Aliased(orderId=5),
}


@pytest.mark.parametrize("instance", INSTANCES.values(), ids=INSTANCES)
def test_instance_comes_back_equal(tmp_path: Path, instance: Any) -> None:
    """An instance of a registered class that is published arrives as an equal one."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", type(instance))
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", instance)
        messenger.publish_batch("orders", [("t", instance)])
        drain(messenger)
    assert dead_letters(tmp_path, "orders") == []
    assert seen.payloads == [instance, instance]
    assert {type(payload) for payload in seen.payloads} == {type(instance)}


def test_types_side_by_side(tmp_path: Path) -> None:
    """Each payload type has its own class, in one channel, in log order."""
    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("item", Item)
        messenger.register_payload_type("struct", StructItem)
        messenger.register_payload_type("model", ModelItem)
        messenger.register_payload_type("call", lambda data: ("called", data))
        messenger.subscribe("orders", "s", seen)
        data = {"name": "a", "count": 2}
        for kind in ("item", "struct", "model", "call", "unknown", "item"):
            messenger.publish("orders", kind, data)
        drain(messenger)
    assert seen.payloads == [
        Item("a", 2),
        StructItem("a", 2),
        ModelItem(name="a", count=2),
        ("called", data),
        data,
        Item("a", 2),
    ]


def test_registered_while_it_runs(tmp_path: Path) -> None:
    """A class that is registered later serves from then on, for old records as well."""
    seen, later = Recorder(), Recorder()
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", {"name": "a"})
        assert seen.wait(1) == [{"name": "a"}]
        messenger.register_payload_type("t", Item)
        messenger.publish("orders", "t", {"name": "b"})
        assert seen.wait(2)[1] == Item("b")
        messenger.subscribe("orders", "later", later, start="earliest")
        assert later.wait(2) == [Item("a"), Item("b")]


def test_registered_before_the_start(tmp_path: Path) -> None:
    """Registering does not start the messenger and touches no file."""
    with running(tmp_path / "data") as messenger:
        messenger.register_payload_type("t", Item)
        assert not (tmp_path / "data").exists()


class Strange(Exception):
    """An error of the user's own."""


@pytest.mark.parametrize(
    "error", [ValueError("no"), TypeError(), KeyError("x"), Strange("odd"), RecursionError()]
)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_callable_that_fails(tmp_path: Path, error: Exception, concurrency: int) -> None:
    """Whatever a decoder raises, its message is dead-lettered at once and the next is delivered."""

    def decode(data: Any) -> Any:
        if data == "bad":
            raise error
        return data

    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", decode)
        messenger.subscribe("orders", "s", seen, retry_backoff=(60, 60), concurrency=concurrency)
        messenger.publish_batch("orders", [("t", "bad"), ("t", "good")])
        drain(messenger)
        (stats,) = messenger.stats().channels[0].subscribers
        assert stats.dead_letters == 1
    assert seen.payloads == ["good"]
    (letter,) = dead_letters(tmp_path, "orders")
    assert (letter["original"]["payload"], letter["retries"]) == ("bad", 0)
    assert letter["subscriber"] == "s"


def test_validation_is_the_classes(tmp_path: Path) -> None:
    """What a model or ``__post_init__`` refuses goes to the dead letters, with its reason."""

    @dataclasses.dataclass
    class Even:
        n: int

        def __post_init__(self) -> None:
            if self.n % 2:
                raise ValueError("it is odd")

    seen = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("even", Even)
        messenger.register_payload_type("positive", Positive)
        messenger.subscribe("orders", "s", seen)
        messenger.publish_batch(
            "orders",
            [(kind, {"n": n}) for kind in ("even", "positive") for n in (-1, 2)],
        )
        drain(messenger)
    assert seen.payloads == [Even(2), Positive(n=2)]
    reasons = [letter["last_error"] for letter in dead_letters(tmp_path, "orders")]
    assert len(reasons) == 2
    assert "it is odd" in reasons[0]
    assert "greater than 0" in reasons[1]


def test_dead_letter_of_a_registered_type(tmp_path: Path) -> None:
    """A dead letter holds the original's JSON; to its readers it is plain data."""

    def fail(message: Message) -> None:
        raise ValueError("no")

    letters = Recorder()
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", Item)
        messenger.subscribe("orders.dead-letter", "s", letters)
        messenger.subscribe("orders", "s", fail, max_retries=0)
        messenger.publish("orders", "t", Item("a", 2))
        (payload,) = letters.wait(1)
    assert payload["original"]["payload"] == {"name": "a", "count": 2}
    assert payload["original"]["payload_type"] == "t"


def test_unregistered_type_warns_once_in_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for each unregistered type, however many channels and subscribers meet it."""
    caplog.set_level(logging.DEBUG)
    with running(tmp_path) as messenger:
        seen = [Recorder() for _ in range(4)]
        messenger.subscribe("orders", "a", seen[0])
        messenger.subscribe("orders", "b", seen[1], concurrency=3)
        messenger.subscribe("invoices", "a", seen[2])
        for channel in ("orders", "invoices"):
            for n in range(20):
                messenger.publish(channel, f"com.example.T{n % 2}", [n])
        drain(messenger)
        messenger.subscribe("orders", "late", seen[3], start="earliest")
        drain(messenger)
    assert [len(each.messages) for each in seen] == [20, 20, 20, 20]
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    for kind in ("com.example.T0", "com.example.T1"):
        assert sum(kind in each.getMessage() for each in warnings) == 1
    assert len(warnings) == 2
    assert all(each.name.split(".")[0] == "keyop" for each in warnings)


def test_registered_type_does_not_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a registered type, and of dead letters, there is nothing to warn."""
    caplog.set_level(logging.DEBUG)
    with running(tmp_path) as messenger:
        messenger.register_payload_type("t", dict)
        messenger.subscribe("orders", "s", Recorder())
        messenger.publish("orders", "t", {"a": 1})
        drain(messenger)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("wrong", [5, "Item", None, Item("instance")], ids=repr)
def test_what_cannot_be_called_is_refused(tmp_path: Path, wrong: Any) -> None:
    """Registering something that cannot be called is an error at once, not at delivery."""
    with running(tmp_path) as messenger:
        with pytest.raises((KeyopError, TypeError, ValueError)):
            messenger.register_payload_type("t", wrong)
        messenger.register_payload_type("t", Item)


def test_changing_a_payload_changes_nothing_else(tmp_path: Path) -> None:
    """A handler may alter its payload: a retry and another subscriber get it as it was."""
    first, second = Recorder(), Recorder()

    def handle(message: Message) -> None:
        first.messages.append(dataclasses.replace(message, payload=dict(message.payload)))
        message.payload["n"] += 1
        if message.attempt < 3:
            raise ValueError("again")

    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "a", handle, retry_backoff=FAST_BACKOFF)
        messenger.subscribe("orders", "b", second)
        messenger.publish("orders", "t", {"n": 0})
        drain(messenger)
    assert first.payloads == [{"n": 0}] * 3
    assert second.payloads == [{"n": 0}]


def test_publish_does_not_keep_the_payload(tmp_path: Path) -> None:
    """What is done to a payload after ``publish`` returned does not reach the record."""
    seen = Recorder()
    payload = {"n": [1]}
    with running(tmp_path) as messenger:
        messenger.subscribe("orders", "s", seen)
        messenger.publish("orders", "t", payload)
        payload["n"].append(2)
        drain(messenger)
    assert seen.payloads == [{"n": [1]}]
    assert b'"payload":{"n":[1]}' in log_bytes(tmp_path, "orders")


def test_neither_msgspec_nor_pydantic_is_needed(tmp_path: Path) -> None:
    """keyop works, with dataclasses, where neither is installed, and imports neither."""
    code = """
import dataclasses, sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("msgspec", "pydantic", "pydantic_core"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Gone())
from keyop import Messenger
from keyop.testing import drain
@dataclasses.dataclass
class Item:
    name: str
    count: int = 1
seen = []
with Messenger(data_dir=sys.argv[1]) as m:
    m.register_payload_type("t", Item)
    m.subscribe("orders", "s", seen.append)
    m.publish("orders", "t", Item("a"))
    m.publish("orders", "t", {"name": "b", "count": 2})
    drain(m)
assert [message.payload for message in seen] == [Item("a"), Item("b", 2)], seen
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "fine\n", done.stderr
