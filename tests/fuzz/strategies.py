"""Inputs that are right, or right but for a small damage, for Hypothesis to draw."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import yaml
from hypothesis import strategies as st

from keyop.wire.frames import encode_batch
from tests.cli.helpers import dead_letter
from tests.integration.helpers import record
from tests.transport.helpers import BINARY, CLOSE, PING, PONG, TEXT, close_payload, frame

from .links import MASK as NO_MASK
from .pages import TOKEN
from .targets import TARGETS
from .wire import conversation

Bytes = st.SearchStrategy[bytes]

_texts = st.text(max_size=12)
_names = st.text("abcXYZ019._-", min_size=1, max_size=12).filter(lambda name: name.strip("."))
_numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False, width=32)
)
values = st.recursive(
    st.none() | st.booleans() | _numbers | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, right: Bytes, name: str) -> bytes:
    """Draw what is right, with up to three changes."""
    data = bytearray(draw(right))
    words = TARGETS[name].words
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.sampled_from((0, 1, 2, 8)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            data[at : at + size] = draw(st.sampled_from(words.tokens))
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[:] = words.swapped(bytes(data), lambda count: draw(st.integers(0, count - 1)))
        elif kind == 4:
            data[at:at] = data[at : at + 8 * size]
        else:
            del data[at:]
    result = bytes(data)
    return TARGETS[name].mend(result) if draw(st.booleans()) else result


# -- on the wire


@st.composite
def messages(draw: st.DrawFn) -> list[str | bytes]:
    """Draw messages that are short enough for any connection here."""
    return draw(st.lists(_texts | st.binary(max_size=300), max_size=4))


@st.composite
def sent(draw: st.DrawFn, what: list[str | bytes], masked: bool) -> bytes:
    """Draw a way to send messages: in so many frames, with pings between them."""
    mask = b"\x01\x80\xff\x00" if masked else None
    pieces = []
    for message in what:
        payload = message.encode() if isinstance(message, str) else message
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=2)))
        edges = [0, *cuts, len(payload)]
        for number, (begin, end) in enumerate(pairwise(edges)):
            opcode = 0 if number else TEXT if isinstance(message, str) else BINARY
            last = end == len(payload) and number == len(edges) - 2
            pieces.append(frame(opcode, payload[begin:end], fin=last, mask=mask))
            if draw(st.booleans()):
                opcode = draw(st.sampled_from((PING, PONG)))
                pieces.append(frame(opcode, draw(st.binary(max_size=125)), mask=mask))
    if draw(st.booleans()):
        pieces.append(frame(CLOSE, close_payload(1000, b"done"), mask=mask))
    return b"".join(pieces)


frames = st.tuples(messages(), st.booleans()).flatmap(lambda pair: sent(*pair))


@st.composite
def hello_fields(draw: st.DrawFn, role: str) -> dict[str, Any]:
    """Draw what a hello of this role says."""
    fields: dict[str, Any] = {"instance_name": draw(_names), "role": role, "version": "1"}
    optional: dict[str, Any] = {
        "subscribe": st.lists(_names, max_size=3),
        "ephemeral": st.booleans(),
        "features": st.lists(_texts, max_size=3),
        "max_record_bytes": st.integers(1, 2**40),
        "unknown": values,
    }
    for name, drawn in optional.items():
        if draw(st.booleans()):
            fields[name] = draw(drawn)
    return fields


def as_json(value: Any) -> bytes:
    """Return it as JSON."""
    return json.dumps(value).encode()


_hellos = st.sampled_from(("client", "hub")).flatmap(hello_fields).map(as_json)
_acks = _texts.map(lambda last_id: as_json({"last_id": last_id}))


def _framed(what: list[tuple[int, bytes]]) -> bytes:
    return b"".join(frame(opcode, payload, mask=NO_MASK) for opcode, payload in what)


_steps = st.tuples(st.integers(0, 6), _hellos | _acks | st.binary(max_size=40))
handshakes = _hellos | _acks | st.lists(_steps, max_size=6).map(conversation)


# -- records

_envelopes: dict[str, Any] = {
    "channel": _names,
    "origin": _names,
    "payload_type": _texts,
    "correlation_id": _texts,
    "service_name": _texts,
    "id": st.text(min_size=1, max_size=40) | st.just("id-1"),
    "ts": st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    "route": st.lists(_names, max_size=3).map(lambda names: [*names, "there"]),
    "subscriber": st.sampled_from(("reader", "other")),
}


_separators = st.sampled_from(((",", ":"), (", ", ": "), (",\t", ":"), (",", "\r:")))


@st.composite
def lines(draw: st.DrawFn, separators: st.SearchStrategy[Any] = _separators) -> bytes:
    """Draw a record, newline included."""
    names = draw(st.lists(st.sampled_from(sorted(_envelopes)), max_size=2))
    fields = {name: draw(_envelopes[name]) for name in names}
    fields.setdefault("id", str(draw(st.uuids())))
    payload = json.dumps(draw(values), separators=draw(separators))
    return record(raw=payload, crc=draw(st.integers(0, 3)) > 0, **fields)


_whole = st.lists(lines(), max_size=4).map(b"".join)
batches = st.lists(lines().map(bytes.rstrip), max_size=3).map(encode_batch)
records = st.lists(lines(), min_size=1, max_size=3).map(lambda found: b"".join(found)[:-1])
segments = st.tuples(_whole, st.sampled_from((b"", b"torn", bytes(40)))).map(b"".join)


@st.composite
def dead_letters(draw: st.DrawFn) -> bytes:
    """Draw a dead letter, newline included, of keyop's own or as v0.11.0 writes them."""
    return dead_letter(
        draw(st.none() | lines()),
        letter_id=draw(st.text("letr-1", min_size=1, max_size=8)),
        subscriber=draw(st.none() | _names | st.just("billing")),
        error=draw(_texts),
        raw=draw(st.none() | _texts),
        crc=draw(st.booleans()),
    )


letters = st.lists(dead_letters() | lines(), max_size=3).map(b"".join)
_clients = (
    hello_fields("client").map(lambda fields: {**fields, "instance_name": "there"}).map(as_json)
)
_said = st.one_of(
    st.tuples(st.just(BINARY), batches),
    st.tuples(st.just(TEXT), _acks | _clients),
    st.tuples(st.sampled_from((PING, PONG, CLOSE)), st.just(b"")),
)
links = st.tuples(_clients, st.lists(_said, max_size=4)).map(
    lambda said: _framed([(TEXT, said[0]), *said[1]])
)
offsets = st.one_of(
    st.integers(0, 10**20).map(lambda offset: b"%d\n" % offset),
    st.integers(0, 600).map(lambda offset: b"%020d\n" % offset),
    st.integers(0, 600).map(lambda offset: b"%d" % offset),
)


# -- configurations

_durations = st.sampled_from(("7d", "1h30m", "500ms", "0", ".5s")) | st.integers(0, 10**6)
_channels = st.lists(_names, max_size=2)
_addresses = st.sampled_from(("127.0.0.1:0", "[::1]:7740", "localhost:80"))
_sections: dict[str, dict[str, Any]] = {
    "storage": {
        "data_dir": _names,
        "sync_policy": st.sampled_from(("none", "periodic", "always")),
        "max_files": st.integers(0, 9),
        "retention": _durations,
        "max_segment_bytes": st.none() | st.integers(1, 10**9),
    },
    "subscribers": {"max_retries": st.integers(0, 9), "retry_backoff_max_ms": st.integers(100)},
    "hub": {
        "listen_addr": _addresses,
        "fed_client_offset_ttl": _durations,
        "allowed_peers": st.lists(
            st.fixed_dictionaries({"name": _names, "subscribe": _channels, "publish": _channels}),
            max_size=3,
            unique_by=lambda peer: peer["name"],
        ),
    },
    "federation": {"reconnect_jitter": st.floats(0, 1), "window_batches": st.integers(1, 1024)},
    "web": {"listen_addr": _addresses, "token": st.text("abc-123", max_size=12)},
}


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a configuration that is allowed."""
    made: dict[str, Any] = {"name": draw(_names), "storage": {"data_dir": draw(_names)}}
    for section, keys in _sections.items():
        for key, drawn in keys.items():
            if draw(st.integers(0, 2)) == 0:
                made.setdefault(section, {})[key] = draw(drawn)
    return made


def as_yaml(made: Any) -> bytes:
    """Return it as a file."""
    return yaml.safe_dump(made, allow_unicode=True).encode()


@st.composite
def _with_a_slip(draw: st.DrawFn) -> bytes:
    """Draw a configuration with anything in the place of one value."""
    made = draw(settings())
    section = draw(st.sampled_from([*_sections, "name", "naem"]))
    keys = [*_sections.get(section, {}), "lisen_addr"]
    slip = draw(values)
    if isinstance(made.get(section), dict) and draw(st.booleans()):
        made[section][draw(st.sampled_from(keys))] = slip
    else:
        made[section] = slip
    return as_yaml(made)


configs = settings().map(as_yaml) | _with_a_slip()


# -- requests

UPGRADE = {
    "Host": "hub:7740",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


@st.composite
def upgrades(draw: st.DrawFn) -> bytes:
    """Draw a request for a WebSocket connection, and frames behind it."""
    headers = list(UPGRADE.items())
    headers += draw(st.lists(st.tuples(_names, st.text("a: \t1,é", max_size=9)), max_size=2))
    headers = draw(st.permutations(headers))
    path = draw(st.sampled_from(("/", "/?a=1", "*", "http://hub/", "/%ff")))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    behind = draw(messages().flatmap(lambda what: sent(what, True)))
    return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace") + behind


_methods = st.sampled_from(("GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "get"))
_paths = st.sampled_from(
    [
        *("/", "", "/healthz", "/metrics", "/index.html", "/api/v1/overview", "/api/v1/history"),
        *("/api/v1/login", "/api/v1/logout", "/static/../api.py", "/api/v1/nothing"),
        *(
            f"/api/v1/channels/{channel}/{what}"
            for channel in ("orders", "orders.dead-letter", "absent", "..", "%ff", "a" * 300)
            for what in ("messages", "events", "dead-letters", "dead-letters/requeue")
        ),
        *("/api/v1/channels/orders/dead-letters/purge", "/api/v1/channels/../orders/messages"),
    ]
)
_moments = st.sampled_from(
    [
        *("earliest", "latest", "0", "150", "9" * 20, "-1h30m", "-999999999w", "-999999999d"),
        *("2026-01-02T03:04:05Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "٣"),
    ]
)
_queries = st.lists(
    st.one_of(
        st.tuples(st.just("from"), _moments | _texts),
        st.tuples(st.sampled_from(("limit", "before")), st.integers(-1, 10**20).map(str) | _texts),
        st.tuples(
            st.just("where"),
            st.tuples(st.sampled_from(("id", "payload.n", "half", "v", "a.b")), values).map(
                lambda pair: f"{pair[0]}={json.dumps(pair[1])}"
            )
            | _texts,
        ),
        st.tuples(st.sampled_from(("text", "after")), st.just("letter-1") | _texts),
    ),
    max_size=3,
)
_request_headers = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(("Host", "Origin", "Remote-Addr", "Forwarded", "Cookie")),
            st.sampled_from(("localhost", "[::1]:80", "http://localhost", "127.0.0.1%eth0", "[")),
        ),
        st.tuples(st.just("Authorization"), st.sampled_from((f"Bearer {TOKEN}", "Bearer", "a b"))),
        st.tuples(
            st.just("Accept"),
            st.tuples(
                st.sampled_from(("application/openmetrics-text", "text/plain", "*/*")),
                st.sampled_from(("", "; version=1.0.0", "; version=1.a", "; escaping=dots", ";=")),
            ).map("".join),
        ),
        st.tuples(
            st.sampled_from(("Last-Event-ID", "Content-Length", "Sec-Fetch-Site")),
            st.sampled_from(("0", "155", "9" * 25, "same-origin", "²")),
        ),
    ),
    max_size=3,
)
_bodies = st.fixed_dictionaries(
    {},
    optional={
        "ids": st.lists(st.sampled_from(("letter-1", "lett", "x")) | _texts, max_size=2) | values,
        "all": st.booleans() | values,
        "to": st.sampled_from(("subscriber", "channel")) | values,
        "token": st.just(TOKEN) | values,
    },
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Draw a request to the page."""
    from urllib.parse import urlencode

    query = urlencode(draw(_queries))
    first = f"{draw(_methods)} {draw(_paths)}{'?' if query else ''}{query}"
    headers = [("Content-Type", "application/json"), *draw(_request_headers)]
    head = "\n".join([first, *(f"{name}: {value}" for name, value in headers)])
    body = draw(st.one_of(_bodies, values).map(as_json))
    return head.encode("latin-1", "replace") + b"\n\n" + body


RIGHT: dict[str, Bytes] = {
    "frames": frames,
    "handshake": handshakes,
    "batch": batches,
    "record": records,
    "offset": offsets,
    "segment": segments,
    "config": configs,
    "upgrade": upgrades(),
    "link": links,
    "page": requests(),
    "letters": letters,
}
