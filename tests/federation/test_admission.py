"""What is stored of a peer's record, and what never is.

The straight way for records that resemble each other must give exactly what the careful one gives,
so each is tried against the other.
"""

from __future__ import annotations

import base64
import json
import random
import re
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyop.decode import decode, strip_checksum
from keyop.errors import CorruptRecordError
from keyop.federation.admission import Admission, Admitted, MalformedError
from tests.wire.golden import cases

HUB, PEER = "hub1", "client1"
MAX = 1 << 20
ID = "f15c7b1a-38a3-4c72-ae63-15fe1914e236"
STAMP = "2026-11-23T09:22:37.577812295Z"
FIELDS: dict[str, Any] = {
    "v": 1,
    "id": ID,
    "ts": STAMP,
    "channel": "orders",
    "origin": "there",
    "payload_type": "com.acme.T",
}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
CAPTION = [*FIELDS, "correlation_id", "service_name", "route", "payload", "crc"]


def sealed(body: bytes) -> bytes:
    """Close a line that lacks its last brace with a right checksum."""
    return body + b',"crc":"%08x"}' % zlib.crc32(body)


def record(payload: bytes | str = b'{"n":1}', *, crc: bool = False, **changes: Any) -> bytes:
    """Return a record; a field changed to ``...`` is left out."""
    fields = {**FIELDS, **changes}
    head = json.dumps(
        {name: value for name, value in fields.items() if value is not ...}, separators=(",", ":")
    )
    data = payload.encode() if isinstance(payload, str) else payload
    body = head[:-1].encode() + b',"payload":' + data
    return sealed(body) if crc else body + b"}"


def admission(max_record_bytes: int = MAX, peer: str = PEER, name: str = HUB) -> Admission:
    return Admission(name, peer, max_record_bytes)


def admit(data: bytes, **changes: Any) -> Admitted:
    return admission(**changes).admit(data)


def stored(data: bytes, **changes: Any) -> dict[str, Any]:
    """Return the fields of what is stored, which was checked for its form."""
    return checked(admit(data, **changes))


def checked(admitted: Admitted, peer: str = PEER, name: str = HUB) -> dict[str, Any]:
    """Check what must hold of every line that is stored; return its fields."""
    line = admitted.line
    assert line.endswith(b"}\n")
    assert not re.search(rb"[\x00-\x1f]", line[:-1])
    assert line[:-1] == sealed(line[: line.rindex(b',"crc":"')])
    fields = decode(line[:-1])
    order = list(fields)
    assert order == sorted(order, key=CAPTION.index), "in the order of format.md"
    assert fields["id"] == admitted.message_id
    assert fields["channel"] == admitted.head.channel
    assert fields["origin"] == admitted.head.origin
    assert fields["route"] == [*admitted.head.route, name]
    assert fields["route"][-2:] in ([peer, name], [name])
    assert len(fields["route"]) <= 64
    return fields


def refusal(data: bytes, **changes: Any) -> str:
    with pytest.raises(MalformedError) as raised:
        admit(data, **changes)
    return str(raised.value)


# --- what v0.11.0 stores

# What v0.11.0 takes, and is refused here.
REFUSED = {
    "02_spaces": "control character",
    "08_no_payload": "ends with its payload",
    "16_dup_key": "ends with its payload|there twice",
    "19_null_id": "channel name",
    "26_crlf": "control character",
}


@cases("envelopes/decode_reencode.jsonl")
def test_as_v0_11_0_stores_it(case: dict[str, Any]) -> None:
    """A recorded record becomes what v0.11.0 made of it, with route and checksum added.

    The payload is the exception: its bytes stay, where v0.11.0 writes them anew. What it refuses
    is refused; and so is what could be read in two ways, or on two lines.
    """
    sent = base64.b64decode(case["in_b64"])
    if "error" in case:
        refusal(sent)
        return
    if case["case"] in REFUSED:
        assert re.search(REFUSED[case["case"]], refusal(sent))
        return
    expected = base64.b64decode(case["out_b64"])
    at = expected.index(b',"payload":')
    payload = sent[sent.index(b',"payload":') + 11 : -1]
    line = admit(sent).line
    assert line == sealed(expected[:at] + b',"route":["hub1"],"payload":' + payload) + b"\n"
    assert (
        json.loads(payload.decode(errors="replace"))
        == json.loads(expected.decode(errors="replace"))["payload"]
    )
    # Once more, by the straight way where there is one.
    twice = admission()
    assert [twice.admit(sent).line, twice.admit(sent).line] == [line, line]


class TestRebuilding:
    def test_a_whole_line(self) -> None:
        """The fields in their order, the own name at the end of the route, the checksum last."""
        data = record(
            b'{"k":[1, 2]}', correlation_id="c", service_name="s", route=["a", PEER], crc=True
        )
        assert (
            admit(data).line
            == sealed(
                b'{"v":1,"id":"f15c7b1a-38a3-4c72-ae63-15fe1914e236",'
                b'"ts":"2026-11-23T09:22:37.577812295Z","channel":"orders","origin":"there",'
                b'"payload_type":"com.acme.T","correlation_id":"c","service_name":"s",'
                b'"route":["a","client1","hub1"],"payload":{"k":[1, 2]}'
            )
            + b"\n"
        )

    def test_fields_in_another_order(self) -> None:
        """Any order before the payload is taken, and mended."""
        shuffled = dict(reversed({**FIELDS, "service_name": "s", "correlation_id": "c"}.items()))
        data = json.dumps(shuffled)[:-1].encode() + b',"payload":1}'
        assert admit(data).line == admit(record("1", correlation_id="c", service_name="s")).line

    def test_blanks_between_tokens(self) -> None:
        """Spaces in the head are gone in what is stored; those in the payload stay."""
        data = json.dumps(FIELDS, separators=(" , ", " : "))[:-1].encode() + b' ,"payload": 1 }'
        assert admit(data).line == admit(record(" 1 ")).line

    @pytest.mark.parametrize(
        "unknown",
        [
            '"zz":1',
            '"subscriber":"s1"',
            '"crc":"00000000"',
            '"zz":{"id":"evil","channel":"evil","id":"again"}',
            '"zz":{"a":1,"payload":2}',
            '"zz":[{"a":1,"payload":{}},{"a":1,"payload":{}}]',
            '"zz":",\\"payload\\":1"',
            '"Channel":"evil"',
        ],
    )
    def test_unknown_fields(self, unknown: str) -> None:
        """Nothing that is not known is passed on, whatever it holds."""
        plain = record("3")
        data = plain.replace(b'"channel"', unknown.encode() + b',"channel"', 1)
        assert admit(data).line == admit(plain).line

    def test_text_is_written_as_we_write_it(self) -> None:
        """Whatever escapes a peer uses in the head, one form of them is stored."""
        data = record("1", origin="é<\u2028\x7f", service_name="a&b", correlation_id='"\\/')
        escaped = data.replace(b"a&b", b"\\u0061\\u0026b").replace(b"orders", b"\\u006frders")
        assert escaped != data
        assert admit(escaped).line == admit(data).line
        assert stored(escaped)["service_name"] == "a&b"

    def test_invalid_utf8_in_the_head(self) -> None:
        """It becomes the replacement character, as with v0.11.0."""
        data = record("1", origin="a?b").replace(b"a?b", b"a\xff\xfeb")
        assert stored(data)["origin"] == "a\ufffd\ufffdb"

    @pytest.mark.parametrize("name", ["correlation_id", "service_name"])
    def test_what_may_be_left_out(self, name: str) -> None:
        """Empty and null are the same as not there."""
        for value in ("", None):
            assert admit(record(**{name: value})).line == admit(record()).line

    @pytest.mark.parametrize("name", ["id", "origin", "payload_type"])
    def test_what_is_empty(self, name: str) -> None:
        """Null, and a field that is not there, are an empty text: v0.11.0 reads them so."""
        for value in (None, ..., ""):
            assert stored(record(**{name: value}))[name] == ""

    def test_a_record_of_ours_on_its_way(self) -> None:
        """From hub to hub, each name is added, until there are 64; no further."""
        line, route = record(), []
        for number in range(64):
            peer, name = f"i{number - 1}" if number else PEER, f"i{number}"
            admitted = admit(line, peer=peer, name=name)
            route.append(name)
            assert checked(admitted, peer, name)["route"] == route
            line = admitted.line[:-1]
        assert "fewer than 64" in refusal(line, peer="i63", name="i64")


class TestPayload:
    @pytest.mark.parametrize(
        "payload",
        [
            b"null",
            b"-0",
            b"1.10",
            b"1E5",
            b"1e400",
            b"12345678901234567890123456789",
            b'{"a":1,"a":2}',
            b'"\\u003c\\/\\ud83d\\ude00\\ud800"',
            '"é😀\u2028\x7f"'.encode(),
            b'"a\xff\xfeb"',
            b"[ 1 , 2 ]",
            b' "x" ',
            b'{"payload":{"payload":1}}',
            b'",\\"payload\\":"',
            b'{"a":1,"payload":2}',
            b'{"a":1,"crc":"12345678"}',
            b"[" * 900 + b"]" * 900,
            b'"' + b"x" * 100_000 + b'"',
        ],
    )
    def test_stays_byte_for_byte(self, payload: bytes) -> None:
        """Whatever is JSON on one line is stored as it came."""
        for crc in (False, True):
            under_test = admission()
            lines = [under_test.admit(record(payload, crc=crc)).line for _ in range(2)]
            assert lines[0] == lines[1]
            assert b',"payload":%b,"crc":"' % payload in lines[0]
            checked(under_test.admit(record(payload, crc=crc)))

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b" ",
            b"NaN",
            b"[Infinity]",
            b"-Infinity",
            b"nul",
            b"{",
            b'{"a":}',
            b"[1,]",
            b"01",
            b"+1",
            b"'x'",
            b'"\\x"',
            b"1 2",
            b"1}",
            b'1,"channel":"evil"',
            b'1,"zz":2',
            b'{},"payload":{}',
            b'1},{"v":1',
            b"\xff",
            b"/* */ 1",
            b"[" * 100_000 + b"]" * 100_000,
            b"[" * 100_000,
            b"9" * 5000,
            b"\xef\xbb\xbf1",
        ],
    )
    def test_what_is_no_json(self, payload: bytes) -> None:
        """It is refused, at first sight and after records that resembled it."""
        for crc in (False, True):
            under_test = admission()
            with pytest.raises(MalformedError):
                under_test.admit(record(payload, crc=crc))
            under_test.admit(record(crc=crc))
            with pytest.raises(MalformedError):
                under_test.admit(record(payload, crc=crc))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | FINITE | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        ),
        st.booleans(),
        st.sampled_from([(",", ":"), (", ", ": ")]),
    )
    def test_anything_that_is_json(
        self, value: Any, ascii_only: bool, separators: tuple[str, str]
    ) -> None:
        """However it is written, its bytes stay."""
        text = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
        try:
            data = text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair is no UTF-8
            return
        assert b',"payload":%b,"crc":"' % data in admit(record(data)).line


class TestUniqueFields:
    @pytest.mark.parametrize("name", [*FIELDS, "correlation_id", "service_name", "route"])
    @pytest.mark.parametrize("same", [True, False])
    def test_a_field_twice(self, name: str, same: bool) -> None:
        """Which of two would count depends on the reader: refused, even where they are the same."""
        values = {**FIELDS, "correlation_id": "c", "service_name": "s", "route": [PEER]}
        other = values[name] if same else {"v": 1, "route": ["x", PEER]}.get(name, "other")
        data = record(**values)
        again = f',"{name}":{json.dumps(other)},"payload"'.encode()
        assert "there twice" in refusal(data.replace(b',"payload"', again, 1))

    def test_by_another_spelling(self) -> None:
        """Escapes do not hide that it is the same."""
        for again in (b'"\\u0069d":"x"', b'"ch\\u0061nnel":"x"'):
            data = record().replace(b',"payload"', b"," + again + b',"payload"', 1)
            assert "there twice" in refusal(data)

    def test_one_that_is_not_known(self) -> None:
        """A field that is dropped may not be there twice either: it is no JSON of ours."""
        data = record().replace(b',"payload"', b',"zz":1,"zz":1,"payload"', 1)
        assert "there twice" in refusal(data)

    def test_the_payload(self) -> None:
        """In whatever spelling, and on whichever side."""
        for data in (
            record().replace(b',"payload"', b',"payload":{"x":1},"payload"', 1),
            record().replace(b',"payload"', b',"\\u0070ayload":1,"payload"', 1),
            record()[:-1] + b',"payload":2}',
            record()[:-1] + b',"\\u0070ayload":2}',
        ):
            refusal(data)

    def test_nested_ones(self) -> None:
        """Within a payload, and within what is dropped, it is nobody's concern here."""
        data = record(b'{"id":1,"id":2}', zz={"id": 1})
        assert b'"payload":{"id":1,"id":2}' in admit(data).line


class TestControlCharacters:
    @pytest.mark.parametrize("byte", range(0x20))
    def test_anywhere(self, byte: int) -> None:
        """A byte below 0x20 is refused wherever it stands: it would split the line, or is no JSON.

        Also after records that resembled this one, with and without a checksum.
        """
        sound = record(b'{"n" :"x"}', correlation_id="c")
        for at in [0, *range(10, len(sound) + 1, 7), len(sound) - 1, len(sound)]:
            data = sound[:at] + bytes([byte]) + sound[at:]
            under_test = admission()
            for each in (data, sealed(data[:-1]), data):
                with pytest.raises(MalformedError):
                    under_test.admit(each)
                under_test.admit(sound)

    @pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n", b"\x0b", b"\x0c"])
    def test_a_second_record_behind_a_newline(self, newline: bytes) -> None:
        """Nobody can smuggle in a line of their own making."""
        forged = record(channel="secret", origin="admin")
        for data in (
            record() + newline + forged,
            record(b'{"a":1' + newline + b"}"),
            record(b"[1," + newline + forged + newline + b"]"),
            record().replace(b',"payload"', b',"zz":[' + newline + forged + b'],"payload"', 1),
            record().replace(b'"channel"', newline + b'"channel"', 1),
            newline + record(),
            record() + newline,
        ):
            refusal(data)
            refusal(sealed(data[:-1]))

    def test_other_line_separators(self) -> None:
        """What only some call a line's end is text, and stays within its string."""
        line = admit(record('"a\u2028b\u2029c\x85d\x7f"')).line
        assert line.count(b"\n") == 1

    def test_an_escaped_newline(self) -> None:
        """It is two characters."""
        assert b'"payload":"a\\nb"' in admit(record(b'"a\\nb"', origin="x\ny")).line


class TestChecksum:
    def test_a_right_one(self) -> None:
        """It is taken off, and another one computed; with it or without is the same record."""
        assert admit(record(crc=True)).line == admit(record()).line

    @pytest.mark.parametrize("at", range(0, 250, 9))
    def test_a_flipped_bit(self, at: int) -> None:
        """A record that was damaged on the way is not stored."""
        data = bytearray(record(crc=True))
        data[at % (len(data) - 18)] ^= 0x04
        under_test = admission()
        under_test.admit(record(crc=True))
        with pytest.raises(MalformedError):
            under_test.admit(bytes(data))

    @pytest.mark.parametrize(
        "end",
        [
            b',"crc":"00000000"}',
            b',"crc":"1234567"}',
            b',"crc":"123456789"}',
            b',"crc":12345678}',
            b',"crc":""}',
            b',"CRC":"12345678"}',
            b', "crc":"12345678"}',
        ],
    )
    def test_a_damaged_one(self, end: bytes) -> None:
        """It is not mistaken for a missing one."""
        refusal(record()[:-1] + end)

    def test_upper_case(self) -> None:
        """Digits are lower-case: exactly what is written counts."""
        for number in range(100):
            data = record(str(number), crc=True)
            upper = data[:-10] + data[-10:].upper()
            if upper != data:
                assert "checksum" in refusal(upper)


class TestFields:
    @pytest.mark.parametrize("version", [0, 2, -1, "1", 1.0, True, None, [1], ..., 10**30])
    def test_the_version(self, version: Any) -> None:
        """Only the number 1."""
        assert "version" in refusal(record(v=version))

    @pytest.mark.parametrize(
        "name", ["id", "ts", "channel", "origin", "payload_type", "correlation_id", "service_name"]
    )
    @pytest.mark.parametrize("value", [1, 0, False, True, [], ["x"], {}, 1.5])
    def test_texts(self, name: str, value: Any) -> None:
        """Every other field but the route is a text."""
        assert refusal(record(**{name: value})) == f"{name} is not a text"

    @pytest.mark.parametrize(
        "channel", ["", ".", "..", "../../../x", "a/b", "a\x00b", "é", "x" * 244, "a\n", None, ...]
    )
    def test_the_channel(self, channel: Any) -> None:
        """It names a directory, and passes the validator before that."""
        assert "channel name" in refusal(record(channel=channel))

    def test_an_id(self) -> None:
        """An id is any text of up to 255 characters: it is remembered."""
        for message_id in ("x", "é" * 255, 'quote"\\', "a b"):
            assert stored(record(id=message_id))["id"] == message_id
        assert "id is too long" in refusal(record(id="x" * 256))

    @pytest.mark.parametrize("name", ["id", "origin", "payload_type", "service_name"])
    def test_half_of_a_surrogate_pair(self, name: str) -> None:
        """What no UTF-8 can hold is refused, and breaks nothing."""
        refusal(record(**{name: "\ud800"}))
        refusal(record(**{name: "a\udfffb"}))

    @pytest.mark.parametrize(
        ("stamp", "kept"),
        [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.000000000Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.100Z", "2026-01-02T03:04:05.1Z"),
            ("2026-01-02T03:04:05.1234567899999Z", "2026-01-02T03:04:05.123456789Z"),
            ("2026-01-02T03:04:05,25Z", "2026-01-02T03:04:05.25Z"),
            ("2026-01-02T03:04:05.50+00:00", "2026-01-02T03:04:05.5Z"),
            ("2026-01-02T03:04:05-00:00", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.120+05:30", "2026-01-02T03:04:05.12+05:30"),
            ("2026-01-02T03:04:05-11:00", "2026-01-02T03:04:05-11:00"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            (None, "0001-01-01T00:00:00Z"),
            (..., "0001-01-01T00:00:00Z"),
        ],
    )
    def test_stamps(self, stamp: Any, kept: str) -> None:
        """A stamp is stored in one form, as v0.11.0 does."""
        assert stored(record(ts=stamp))["ts"] == kept

    @pytest.mark.parametrize(
        "stamp",
        [
            "",
            "now",
            "2026-01-02",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05z",
            "2026-02-30T03:04:05Z",
            "2026-01-02T24:00:00Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T03:04:05+24:00",
            "2026-01-02T03:04:05Z ",
            "٢٠٢٦-01-02T03:04:05Z",
        ],
    )
    def test_what_is_no_stamp(self, stamp: str) -> None:
        """Anything that v0.11.0 could not read either."""
        refusal(record(ts=stamp))

    @pytest.mark.parametrize(
        "data",
        [b"", b" ", b"{}", b"null", b"[]", b"1", b'"x"', b"{", b"}", b"[" * 100_000, b"\x00" * 100,
         b',"payload":', b'{"payload":1}', b',"payload":1}', b'[{"v":1},"payload":1}',
         b'["v",1,"payload":1}', b'"a,"payload":1}', b'1,"payload":1}', b'{"v":1,"payload":1',
         b"x" * 1000],
    )  # fmt: skip
    def test_what_is_no_record(self, data: bytes) -> None:
        """Anything but a JSON object that ends with its payload."""
        refusal(data)

    def test_a_record_with_something_behind(self) -> None:
        """Fields behind the payload, or anything else behind the object."""
        for end in (b"x", b" ", b"}", b"{}", b',"zz":1}', b' {"v":1}'):
            refusal(record() + end)
            if end != b"}":
                refusal(record()[:-1] + end)


class TestRoute:
    @pytest.mark.parametrize("route", [..., None, []])
    def test_none(self, route: Any) -> None:
        """A record without one comes from its origin, or through v0.11.0."""
        admitted = admit(record(route=route))
        assert checked(admitted)["route"] == [HUB]
        assert admitted.head.route == ()

    @pytest.mark.parametrize("route", [[PEER], ["a", PEER], ["a:1", "b.c", PEER], [PEER, PEER]])
    def test_one_that_ends_with_the_peer(self, route: list[str]) -> None:
        """The own name is added; what the route was is told, for loops to be seen."""
        admitted = admit(record(route=route))
        assert checked(admitted)["route"] == [*route, HUB]
        assert admitted.head.route == tuple(route)

    @pytest.mark.parametrize("route", [["a"], [PEER, "a"], [HUB], [PEER.upper()]])
    def test_one_that_does_not(self, route: list[str]) -> None:
        """A peer that says that somebody else has sent this is not believed."""
        assert "not with the peer" in refusal(record(route=route))

    def test_a_loop_is_not_seen_here(self) -> None:
        """A record that was here before is sound; it is dropped by whoever knows the policy."""
        admitted = admit(record(route=[HUB, PEER], origin=HUB))
        assert admitted.head.route == (HUB, PEER)
        assert admitted.head.origin == HUB

    @pytest.mark.parametrize(
        "route",
        ["", PEER, 1, True, {}, {"0": PEER}, [1, PEER], [None, PEER], [[PEER]], ["", PEER],
         ["..", PEER], ["a b", PEER], ["x" * 238, PEER], ["a\n", PEER], ["é", PEER]],
    )  # fmt: skip
    def test_what_is_none(self, route: Any) -> None:
        """A route is a list of instance names."""
        assert "route" in refusal(record(route=route))

    def test_a_long_one(self) -> None:
        """64 names with the own one, and not one more."""
        route = [f"i{number}" for number in range(62)]
        assert len(stored(record(route=[*route, PEER]))["route"]) == 64
        assert "fewer than 64" in refusal(record(route=[*route, "i62", PEER]))


class TestSize:
    def test_of_the_record(self) -> None:
        """One byte less than the limit, which the newline has."""
        assert refusal(record('"' + "x" * 5000 + '"'), max_record_bytes=5000).startswith(
            "a record of"
        )
        data = b"x" * 99
        assert "100 bytes" in refusal(data + b"x", max_record_bytes=100)
        assert "bytes" not in refusal(data, max_record_bytes=100)

    @pytest.mark.parametrize("crc", [False, True])
    @pytest.mark.parametrize("route", [..., [PEER]])
    def test_with_its_route(self, crc: bool, route: Any) -> None:
        """What counts is the line that is stored: to the byte, at first sight and later."""
        data = record(b'"' + b"x" * 1000 + b'"', crc=crc, route=route)
        exact = len(admit(data).line)
        assert exact > len(data) + 1
        for limit, fits in ((exact, True), (exact - 1, False)):
            under_test = admission(limit)
            under_test.admit(record(route=route))
            for _ in range(2):
                if fits:
                    assert len(under_test.admit(data).line) == limit
                else:
                    with pytest.raises(MalformedError, match=f"{exact} bytes with its route"):
                        under_test.admit(data)


class TestCorrelationIds:
    def test_one_for_each_record(self) -> None:
        """The straight way holds where only the correlation id is another one."""
        under_test = admission()
        under_test.admit(record(correlation_id="first"))
        for value in ("x", "a-b_c.d:e/f", "x" * 1024, "~ !#[]", "<&>"):
            data = record(correlation_id=value, service_name="s")
            under_test.admit(data)
            for each in (data, record(correlation_id=value)):
                found = under_test._admit_alike(each)
                assert found is not None
                assert found == admission()._admit(each)

    def test_with_and_without(self) -> None:
        """Records with one and without follow each other."""
        under_test = admission()
        for data in (record(), record(correlation_id="c"), record(), record(correlation_id="d")):
            assert under_test.admit(data) == admit(data)

    @pytest.mark.parametrize("value", ['"', "\\", 'a"b', "é", "\x7f", "x" * 1025, "", "\u2028"])
    def test_odd_ones(self, value: str) -> None:
        """What JSON escapes, or is long, goes the careful way, to the same end."""
        under_test = admission()
        under_test.admit(record(correlation_id="c"))
        for data in (
            record(correlation_id=value),
            record(correlation_id=value).replace(b"\\u", b"\\U"),
            json.dumps({**FIELDS, "correlation_id": value}, separators=(",", ":"),
                       ensure_ascii=False)[:-1].encode() + b',"payload":1}',
        ):  # fmt: skip
            assert outcome(under_test, data) == outcome(admission(), data)

    @pytest.mark.parametrize(
        "trick",
        [
            b',"correlation_id":"a","correlation_id":"b"',
            b',"correlation_id":"a","service_name":"s","correlation_id":"b"',
            b',"service_name":"s","correlation_id":"a"',
            b',"service_name":",\\"correlation_id\\":\\"a\\""',
            b',"correlation_id":"a\\"',
            b',"correlation_id":"a" ',
            b',"correlation_id":["a"]',
        ],
    )
    def test_tricks(self, trick: bytes) -> None:
        """One that stands elsewhere, or twice, or seems to, is seen for what it is."""
        under_test = admission()
        for data in (record(), record(correlation_id="a"), record(service_name="s")):
            under_test.admit(data)
        data = record().replace(b',"payload"', trick + b',"payload"', 1)
        for each in (data, data):
            assert outcome(under_test, each) == outcome(admission(), each)


def outcome(under_test: Admission, data: bytes) -> Admitted | None:
    """Return what is admitted; None if it is refused."""
    try:
        return under_test.admit(data)
    except MalformedError:
        return None


class TestTheStraightWay:
    def test_is_taken(self) -> None:
        """After one record, those that differ in id, stamp, correlation id and payload take it."""
        under_test = admission()
        assert under_test._admit_alike(record()) is None
        under_test.admit(record())
        for data in (
            record(),
            record(b"[1,2,3]", id="0" * 36),
            record(ts="2026-11-23T09:22:37.1Z"),
            record(ts="2026-11-23T09:22:37.999999999Z", correlation_id="c"),
        ):
            assert under_test._admit_alike(data) == admission()._admit(data)

    @pytest.mark.parametrize(
        "changes",
        [
            {"id": "g" * 36},
            {"id": "0" * 35},
            {"id": "0" * 37},
            {"id": "A" * 36},
            {"ts": "2026-11-23T09:22:38.5Z"},
            {"ts": "2026-11-23T09:22:37Z"},
            {"ts": "2026-11-23T09:22:37.50Z"},
            {"ts": "2026-11-23T09:22:37.0Z"},
            {"ts": "2026-11-23T09:22:37.1234567890Z"},
            {"ts": "2026-11-23T09:22:37.1+00:00"},
            {"ts": "2026-11-23T09:22:37.1x2Z"},
            {"ts": "2026-11-23T09:22:37.Z"},
            {"channel": "orders2"},
            {"origin": "elsewhere"},
            {"route": [PEER]},
            {"v": 2},
        ],
    )
    def test_is_not_taken(self, changes: dict[str, Any]) -> None:
        """Anything else that differs goes the careful way, which knows what to make of it."""
        under_test = admission()
        under_test.admit(record())
        assert under_test._admit_alike(record(**changes)) is None
        assert outcome(under_test, record(**changes)) == outcome(admission(), record(**changes))

    @pytest.mark.parametrize("length", [0, 1, 30, 34, 35, 37, 38, 40, 60])
    def test_ids_of_other_lengths_teach_it_nothing_wrong(self, length: int) -> None:
        """A stamp that stands elsewhere because of the id is not taken for one that was checked."""
        shifted = record(id="0" * length, ts="2026-11-23T09:22:37.123456789Z")
        seen = shifted[57:77]
        under_test = admission()
        under_test.admit(record())
        under_test.admit(shifted)
        forged = record().replace(b"2026-11-23T09:22:37.577812295", seen + b"12")
        assert outcome(under_test, forged) == outcome(admission(), forged)

    def test_stamps_without_a_fraction_teach_it_nothing_wrong(self) -> None:
        """Digits behind the zone are no fraction."""
        under_test = admission()
        under_test.admit(record(ts="2026-11-23T09:22:37Z"))
        forged = record(ts="2026-11-23T09:22:37Z123Z")
        assert outcome(under_test, forged) is None
        assert under_test._admit_alike(record(ts="2026-11-23T09:22:37.5Z")) is None

    def test_what_it_remembers_is_bounded(self) -> None:
        """A peer that makes every record another one costs no more than a few megabytes."""
        under_test = admission()
        for number in range(5000):
            under_test.admit(record(payload_type=f"t{number}"))
        assert len(under_test._heads) == 4096
        under_test = admission()
        for number in range(100):
            for name in ("payload_type", "service_name", "origin"):
                under_test.admit(record(**{name: f"{number}" + "x" * 2000}))
        assert len(under_test._heads) == 0

    def test_full_it_still_works(self) -> None:
        """What came first stays fast; what comes later is admitted too."""
        under_test = admission()
        for number in range(4100):
            data = record(payload_type=f"t{number}")
            assert under_test.admit(data) == admission()._admit(data)
        assert under_test._admit_alike(record(payload_type="t0")) is not None
        assert under_test._admit_alike(record(payload_type="t4099")) is None

    IDS = st.sampled_from([ID, "0" * 36, "a" * 35, "b" * 37, "", "c" * 34 + '"\\', "Z" * 36])
    STAMPS = st.sampled_from(
        [STAMP, "2026-11-23T09:22:37Z", "2026-11-23T09:22:37.5Z", "2026-11-23T09:22:37.10Z",
         "2026-11-23T09:22:38.123Z", "2026-11-23T09:22:37.1+00:00", "2026-11-23T09:22:37.12+02:00",
         "2026-11-23T09:22:37,5Z", "2026-11-23T09:22:37.", "2026-11-23T09:22:37Z1Z", ""]
    )  # fmt: skip
    TEXTS = st.sampled_from(["", "x", "s-1", '"', "\\", "é", 'a,"payload":1', "Z", "\u2028"])
    EXTRAS = st.sampled_from(
        [{}, {"route": [PEER]}, {"route": ["a", PEER]}, {"route": []}, {"zz": 1},
         {"service_name": "s"}, {"correlation_id": "c"}, {"correlation_id": "d-1"},
         {"correlation_id": "c", "service_name": "s"}, {"service_name": "s", "route": [PEER]},
         {"correlation_id": 'x","correlation_id":"y'}]
    )  # fmt: skip

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(
            st.tuples(
                IDS,
                STAMPS,
                TEXTS,
                EXTRAS,
                st.sampled_from(["1", '{"n":1}', "[", '"\n"', '1,"x":2', '{"a":1,"payload":2}']),
                st.booleans(),
                st.integers(0, 400),
                st.sampled_from([b"", b"", b"", b'"', b"\\", b",", b"Z", b"0", b"}", b"\n", b" "]),
                st.integers(0, 2),
            ),
            min_size=1,
            max_size=8,
        )
    )
    @example([("a" * 35, STAMP, "x", {}, "1", False, 0, b"", 0)])
    def test_is_exactly_the_careful_one(self, recipes: list[tuple[Any, ...]]) -> None:
        """Whatever came before, and however damaged a record is, both ways agree."""
        under_test = admission()
        under_test.admit(record())
        under_test.admit(record(correlation_id="c", service_name="s"))
        for message_id, stamp, origin, extra, payload, crc, at, inserted, removed in recipes:
            data = record(payload, id=message_id, ts=stamp, origin=origin, crc=crc, **extra)
            if inserted or removed:
                at %= len(data)
                data = data[:at] + inserted + data[at + removed :]
            try:
                sound = strip_checksum(data)
            except CorruptRecordError:
                assert outcome(under_test, data) is None
                continue
            straight = under_test._admit_alike(sound)
            if straight is not None:
                assert straight == admission()._admit(sound)
                checked(straight)
            assert outcome(under_test, data) == outcome(admission(), data)


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Return a record with something done to it."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(result) + 1)
        kind = rng.randrange(8)
        if kind == 0 and result:
            result[at % len(result)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[at:at] = bytes([rng.randrange(256)])
        elif kind == 2:
            del result[at : at + rng.choice((1, 2, 10, 100))]
        elif kind == 3:
            result[at:at] = rng.choice(
                (b'"', b"\\", b"\n", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\\u0000",
                 b',"payload":', b',"crc":"00000000"', b',"v":1', b'"id":"x"', b"null", b"1e999",
                 b"\\ud800", b'"route":["client1"],', b"\xe2\x80\xa8", b"[" * 50)
            )  # fmt: skip
        elif kind == 4:
            end = min(len(result), at + rng.randrange(60))
            result[at:at] = result[at:end]
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            result[at : at + rng.randrange(40)] = other[start : start + rng.randrange(60)]
        elif kind == 6:
            del result[at:]
        else:
            start = rng.randrange(len(result) + 1)
            result[at:at] = result[start : start + rng.randrange(20)]
    return bytes(result)


def test_fuzzed_records() -> None:
    """100,000 damaged records: each is refused, or becomes one sound line; nothing else happens.

    One admission sees all of them, so that whatever it learns is used against it.
    """
    rng = random.Random(20_261_124)
    seeds = [
        record(),
        record(crc=True),
        record(b'{"a":[1,2.5,"x\\n"],"b":null}', correlation_id="c-1", service_name="svc"),
        record(b'"text"', route=["a", PEER], crc=True),
        record(b"[]", ts="2026-11-23T09:22:37Z", id="short"),
        record(b"{}", zz={"a": 1, "payload": 2}, origin="é\u2028"),
    ]
    under_test = admission(2000)
    admitted = 0
    for number in range(100_000):
        data = mutated(rng, rng.choice(seeds), seeds)
        if rng.random() < 0.3 and len(data) > 20:
            # A right checksum, so that what is inside is looked at.
            data = sealed(data[:-1])
        if number % 50 == 0:
            data = rng.choice(seeds)
        try:
            found = under_test.admit(data)
        except MalformedError:
            continue
        admitted += 1
        checked(found)
        assert len(found.line) <= 2000
    # The mutations are neither all harmless nor all fatal.
    assert 3_000 < admitted < 97_000
    for data in seeds:
        assert under_test.admit(data) == admission(2000).admit(data)
