"""Hellos and acknowledgements: those of v0.11.0, those of ours, and what is neither."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyop.errors import ProtocolError
from keyop.wire.messages import (
    CLIENT,
    FEATURES,
    HUB,
    MAX_HELLO_BYTES,
    V0_11_MAX_RECORD_BYTES,
    Hello,
    decode_ack,
    encode_ack,
)

from .golden import cases, each_conversation, frames

CONTROL = "envelopes/control_encode.jsonl"
PLAIN = {"instance_name": "c1", "role": "client", "version": "1"}


def hello(**changes: Any) -> str:
    """Return a client's hello; a field changed to None is null, one to ``...`` is not there."""
    fields = {**PLAIN, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def refusal(text: str, role: str = CLIENT) -> str:
    with pytest.raises(ProtocolError) as raised:
        Hello.decode(text, role)
    assert raised.value.code == 1002
    # It goes into a close frame and a log.
    assert len(str(raised.value)) < 500
    return str(raised.value)


class TestWritingHellos:
    @cases(CONTROL, lambda case: "Handshake" in case["type"] and json.loads(case["json"])["role"])
    def test_as_v0_11_0_writes_them(self, case: dict[str, Any]) -> None:
        """What a v0.11.0 peer could have said is written byte for byte as it does."""
        fields = json.loads(case["json"])
        fields.pop("last_id", None)  # never sent
        written = Hello(
            fields["instance_name"], fields["role"], tuple(fields.get("subscribe", ()))
        ).encode()
        expected = case["json"].replace(',"last_id":"x"', "")
        assert written == expected

    def test_an_ephemeral_one(self) -> None:
        """The fields stand in the order of v0.11.0, the added ones behind them."""
        written = Hello("c1", CLIENT, ("a", "b"), True, FEATURES, 10_485_759).encode()
        assert written == (
            '{"instance_name":"c1","role":"client","version":"1","subscribe":["a","b"],'
            '"ephemeral":true,"features":["window","crc","route"],"max_record_bytes":10485759}'
        )

    def test_what_is_empty_is_left_out(self) -> None:
        """No channel, and no to being ephemeral, are not said."""
        assert Hello("h", HUB).encode() == '{"instance_name":"h","role":"hub","version":"1"}'

    def test_no_features_are_said_too(self) -> None:
        """A peer without any feature that knows of them says so, with its limit."""
        fields = json.loads(Hello("h", HUB, features=(), max_record_bytes=9).encode())
        assert (fields["features"], fields["max_record_bytes"]) == ([], 9)


class TestReadingHellos:
    @each_conversation
    def test_those_of_v0_11_0(self, conversation: str) -> None:
        """A recorded peer is read with its channels, and taken for one of v0.11.0."""
        for from_client, role in ((True, CLIENT), (False, HUB)):
            texts = [
                each.payload.decode()
                for each in frames(conversation)
                if each.from_client is from_client and each.opcode == 1
            ]
            if not texts:  # the hub has refused, and said nothing else
                assert (role, conversation) == (HUB, "04_rejected_4403.jsonl")
                continue
            fields = json.loads(texts[0])
            read = Hello.decode(texts[0], role)
            assert read == Hello(
                fields["instance_name"],
                role,
                tuple(fields.get("subscribe", ())),
                fields.get("ephemeral", False),
                None,
                V0_11_MAX_RECORD_BYTES,
            )
            assert read.encode() == texts[0]

    @cases(CONTROL, lambda case: "Handshake" in case["type"] and json.loads(case["json"])["role"])
    def test_a_last_id_is_ignored(self, case: dict[str, Any]) -> None:
        """Everything that v0.11.0 can write is read, whatever it adds."""
        role = json.loads(case["json"])["role"]
        assert Hello.decode(case["json"], role).role == role

    @pytest.mark.parametrize("last_id", ["x", None, 5, ["deep"]])
    def test_a_last_id_of_any_kind(self, last_id: Any) -> None:
        """``last_id`` is not looked at."""
        assert Hello.decode(hello(last_id=last_id), CLIENT) == Hello("c1", CLIENT)

    def test_unknown_fields_are_ignored(self) -> None:
        """What a later version adds does no harm."""
        text = hello(zz={"subscribe": ["x"]}, Role="hub", compression="lz4")
        assert Hello.decode(text, CLIENT) == Hello("c1", CLIENT)

    def test_null_is_not_there(self) -> None:
        """A field that may be left out may be null: v0.11.0 reads it so."""
        text = hello(subscribe=None, ephemeral=None, features=None, max_record_bytes=None)
        assert Hello.decode(text, CLIENT) == Hello("c1", CLIENT)

    def test_a_channel_named_twice(self) -> None:
        """Channels and features count once, in the order in which they were named first."""
        read = Hello.decode(hello(subscribe=["b", "a", "b"], features=["x", "y", "x"]), CLIENT)
        assert (read.subscribe, read.features) == (("b", "a"), ("x", "y"))

    def test_ephemeral_is_read(self) -> None:
        """Either value of it."""
        assert Hello.decode(hello(ephemeral=True), CLIENT).ephemeral
        assert not Hello.decode(hello(ephemeral=False), CLIENT).ephemeral

    @pytest.mark.parametrize("field", list(PLAIN))
    def test_what_must_be_there(self, field: str) -> None:
        """A name, a role and a version have to be said, and not as null."""
        assert field.split("_")[0] in refusal(hello(**{field: ...}))
        assert field.split("_")[0] in refusal(hello(**{field: None}))

    @pytest.mark.parametrize("version", ["", "0", "2", "1.0", "1 ", 1, True, ["1"], {"a": "1"}])
    def test_another_version(self, version: Any) -> None:
        """Only the text 1 is the version that is spoken here."""
        assert "version" in refusal(hello(version=version))

    @pytest.mark.parametrize("role", ["hub", "", "CLIENT", "client ", 1, ["client"], "x" * 9000])
    def test_another_role(self, role: Any) -> None:
        """A hub listens to clients only; what else somebody is comes shortened."""
        assert "role" in refusal(hello(role=role))

    def test_a_client_listens_to_hubs_only(self) -> None:
        """Two clients have nothing to say to each other."""
        assert "role" in refusal(hello(), HUB)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../x", "a b", "a\n", "é", "x" * 238, "x" * 9000, 5, True, ["c1"]]
    )
    def test_a_name_that_may_not_be(self, name: Any) -> None:
        """An instance name passes the one validator before anything is made of it."""
        assert "instance_name" in refusal(hello(instance_name=name))

    def test_a_name_of_another_kind_is_shown_shortened(self) -> None:
        """A name that is a long list does not fill the log."""
        assert "no text" in refusal(hello(instance_name=["x"] * 3000))

    @pytest.mark.parametrize(
        "channel", ["", ".", "..", "../../../x", "a/b", "a b", "a\x00", "é", "x" * 244, "x" * 9000]
    )
    def test_a_channel_that_may_not_be(self, channel: str) -> None:
        """Channels pass the validator: none becomes a path outside the data directory."""
        assert "channel name" in refusal(hello(subscribe=["fine", channel]))

    def test_a_dead_letter_channel_may_be_subscribed_to(self) -> None:
        """It is read like any other."""
        read = Hello.decode(hello(subscribe=["a.dead-letter"]), CLIENT)
        assert read.subscribe == ("a.dead-letter",)

    @pytest.mark.parametrize("field", ["subscribe", "features"])
    @pytest.mark.parametrize("value", ["", "a", 0, 1, False, True, {}, {"a": 1}, [1], [None], [[]]])
    def test_lists_of_something_else(self, field: str, value: Any) -> None:
        """Channels and features are lists of texts, and nothing that is merely empty."""
        assert field in refusal(hello(**{field: value}))

    @pytest.mark.parametrize(("field", "most"), [("subscribe", 1024), ("features", 64)])
    def test_lists_that_are_too_long(self, field: str, most: int) -> None:
        """So many entries and not one more."""
        names = [f"c{number}" for number in range(most + 1)]
        assert len(getattr(Hello.decode(hello(**{field: names[:-1]}), CLIENT), field)) == most
        assert str(most) in refusal(hello(**{field: names}))

    @pytest.mark.parametrize("value", ["true", 0, 1, [], {}])
    def test_ephemeral_is_true_or_false(self, value: Any) -> None:
        """Who cannot say it is not taken for a durable client, which would leave a position."""
        assert "ephemeral" in refusal(hello(ephemeral=value))

    @pytest.mark.parametrize("limit", [0, -1, 1.0, 1e30, True, False, "65536", [], {}])
    def test_a_limit_that_is_no_size(self, limit: Any) -> None:
        """``max_record_bytes`` is a positive whole number."""
        assert "max_record_bytes" in refusal(hello(max_record_bytes=limit))

    @pytest.mark.parametrize(
        ("said", "features", "limit"),
        [
            ({}, None, V0_11_MAX_RECORD_BYTES),
            ({"features": []}, (), V0_11_MAX_RECORD_BYTES),
            ({"features": ["window", "later"]}, ("window", "later"), V0_11_MAX_RECORD_BYTES),
            ({"max_record_bytes": 1}, (), 1),
            ({"features": ["crc"], "max_record_bytes": 1 << 40}, ("crc",), 1 << 40),
        ],
    )
    def test_who_says_neither_is_v0_11_0(
        self, said: dict[str, Any], features: tuple[str, ...] | None, limit: int
    ) -> None:
        """Either field makes a peer one of ours; without a limit it takes what v0.11.0 takes."""
        read = Hello.decode(hello(**said), CLIENT)
        assert (read.features, read.max_record_bytes) == (features, limit)

    @pytest.mark.parametrize(
        "text", ["", " ", "null", "1", '"x"', "[]", "{", "{}x", "hello", '{"role":NaN}', "[" * 2000]
    )
    def test_no_object(self, text: str) -> None:
        """What is not a JSON object is refused, however deep it is nested."""
        assert "hello" in refusal(text)

    def test_a_long_one(self) -> None:
        """16 KiB are enough for a hello; one more is refused before it is parsed."""
        text = hello(zz="")
        fits = text.replace('""', '"' + "z" * (MAX_HELLO_BYTES - len(text)) + '"')
        assert len(fits) == MAX_HELLO_BYTES == 16_384
        assert Hello.decode(fits, CLIENT) == Hello("c1", CLIENT)
        assert "too long" in refusal(fits + " ")

    @given(
        st.text(alphabet="abcXYZ019._:-", min_size=1, max_size=40).filter(
            lambda name: name not in (".", "..")
        ),
        st.lists(st.text("abz09_", min_size=1, max_size=9), max_size=5, unique=True),
        st.booleans(),
        st.none() | st.lists(st.text(max_size=9), max_size=5, unique=True),
        st.integers(1, 1 << 60),
    )
    def test_what_was_written_is_read(
        self,
        name: str,
        channels: list[str],
        ephemeral: bool,
        features: list[str] | None,
        limit: int,
    ) -> None:
        """A hello survives, its limit where it says that it has one."""
        said = Hello(
            name,
            CLIENT,
            tuple(channels),
            ephemeral,
            None if features is None else tuple(features),
            limit if features is not None else V0_11_MAX_RECORD_BYTES,
        )
        assert Hello.decode(said.encode(), CLIENT) == said

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(
                        [*PLAIN, "subscribe", "ephemeral", "features", "max_record_bytes", "zz"]
                    ),
                    inner,
                    max_size=7,
                )
            ),
            max_leaves=12,
        )
    )
    def test_whatever_comes(self, value: Any) -> None:
        """Any JSON is a hello or a protocol error, and nothing else comes of it."""
        for text in (json.dumps(value), hello(**value) if isinstance(value, dict) else "x"):
            try:
                read = Hello.decode(text, CLIENT)
            except ProtocolError:
                continue
            assert Hello.decode(read.encode(), CLIENT) == read


class TestAcknowledgements:
    @cases(CONTROL, lambda case: "Ack" in case["type"])
    def test_as_v0_11_0_writes_them(self, case: dict[str, Any]) -> None:
        """Byte for byte, and read again."""
        last_id = json.loads(case["json"])["last_id"]
        assert encode_ack(last_id) == case["json"]
        assert decode_ack(case["json"]) == last_id

    @pytest.mark.parametrize("last_id", ["", "x", 'quote " and \\', "é\u2028\n", "x" * 255])
    def test_any_id_survives(self, last_id: str) -> None:
        """An id is whatever its publisher made it."""
        assert decode_ack(encode_ack(last_id)) == last_id

    def test_an_id_need_not_be_there(self) -> None:
        """The id is informative; unknown fields are ignored."""
        assert decode_ack("{}") == decode_ack('{"zz":1}') == ""

    @pytest.mark.parametrize(
        "text", ["", "x", "[]", "null", '"id"', '{"last_id":1}', '{"last_id":null}', "[" * 2000]
    )
    def test_what_is_none(self, text: str) -> None:
        """Anything but an object with a text is a protocol error, 1002."""
        with pytest.raises(ProtocolError) as raised:
            decode_ack(text)
        assert raised.value.code == 1002

    def test_a_long_one(self) -> None:
        """4 KiB and not one more."""
        text = encode_ack("x" * (4096 - len(encode_ack(""))))
        assert len(decode_ack(text)) == 4096 - 14
        with pytest.raises(ProtocolError, match="too long"):
            decode_ack(text + " ")
