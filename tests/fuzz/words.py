"""What inputs are made of: words that parsers know, and values that they stumble over."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

# What looks like a value: in JSON or YAML, and in a request with its query.
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.0-9Ea-z]+|\[\]|\{\}')
_PARAMETER = re.compile(rb"(?<=[=:])[^&;,\s}]+")


class Words(NamedTuple):
    """``tokens`` may stand anywhere, ``values`` in the place of whatever looks like a value."""

    tokens: tuple[bytes, ...]
    values: tuple[bytes, ...] = ()
    value: re.Pattern[bytes] = _VALUE

    def swapped(self, data: bytes, pick: Callable[[int], int]) -> bytes:
        """Return data with another value in the place of one.

        Args:
            pick: returns a number from 0 to one less than it is given.
        """
        found = list(self.value.finditer(data))
        if not found or not self.values:
            return data
        chosen = found[pick(len(found))]
        return data[: chosen.start()] + self.values[pick(len(self.values))] + data[chosen.end() :]


# Of JSON, some of which are none.
_VALUES = (
    *(b"null", b"true", b"0", b"-1", b"1.5", b'""', b'"x"', b"{}", b"[]", b"[1]", b'{"a":1}'),
    *(b"[\t1]", b"[\r1]", b"[\n1]", b'{"a":1,"a":2}', b"[1,]"),
    *(b"1e999", b"NaN", b"18446744073709551616", b"9" * 30, b"[" * 1010 + b"]" * 1010),
    *(b'"\\ud800"', b'"\xff"', b'"\\u0000"', b'"a\tb"', b'"../x"', b'"' + b"x" * 300 + b'"'),
)
# What parsers stumble over, in JSON and elsewhere.
_JSON = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\t", b"\0", b"\xff"),
    *(b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b'{"a":' * 300, b"../", *_VALUES),
)
_RECORD = (
    *_JSON,
    *(b'{"v":1,"id":"', b'"v":1', b'"v":2', b',"payload":', b',"crc":"00000000"}', b"},"),
    *(b'"ts":"2026-01-02T03:04:05.12Z"', b'"channel":"orders"', b'"origin":"there"'),
    *(b'"payload_type":"t"', b'"correlation_id":"c"', b'"service_name":"s"', b'"route":["there"]'),
    *(b'"subscriber":"reader"', b'"subscriber":"other"', b'"original":', b'"last_error":"e"'),
    *(b'"failed_at":"f"', b'"retries":1', b'"raw":"AAEC"', b"0001-01-01T00:00:00Z", b"+23:59"),
)
_FRAME = (
    *(b"\x81\x80abcd", b"\x82\x80abcd", b"\x88\x82abcd", b"\x89\x80abcd", b"\x01\x00", b"\x80\x00"),
    *(b"\x88\x02\x03\xe8", b"\x82\x7e", b"\x82\x7f", b"\x03\xe8", b"\xe2\x82", b"\x7f\xff\xff\xff"),
)
_HELLO = (
    *_JSON,
    *(b'"instance_name":"a"', b'"role":"client"', b'"role":"hub"', b'"version":"1"'),
    *(b'"subscribe":["a"]', b'"ephemeral":true', b'"features":["crc"]', b'"max_record_bytes":9'),
    *(b'{"last_id":"x"}', b"\0\0\0", b"\1\0\6\0\0\0\2{}", b"\2\0\0", b"\3\0\0", b"\4\0\0"),
)
_YAML = (
    *(b"- ", b": ", b"? ", b"# ", b"&a ", b"*a", b"<<: ", b"---\n", b"...", b"%YAML 1.1\n", b"!!"),
    *(b"!!int ", b"!!float ", b"!!bool ", b"!!binary ", b"| \n", b"> \n", b'"\\U00110000"'),
    *(b'"\\ud800"', b"0x", b"1:30", b".inf", b".nan", b"~", b"on", b"7d", b"1e3", b"_", b"9" * 30),
    *(b"name: ", b"storage:", b"data_dir: ", b"hub:", b"allowed_peers:", b"client:", b"hubs:"),
    *(b"addr: ", b"tls:", b"cert: ", b"web:", b"token: ", b"listen_addr: ", b"[::1]:0", b"\n  "),
)
_HTTP = (
    *(b"\r\n", b"\n", b"\r\n\r\n", b"\n\n", b": ", b"GET / HTTP/1.1\r\n", b"HTTP/1.0", b"HTTP/9"),
    *(b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n", b"Sec-WebSocket-Version: 13\r\n"),
    *(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"Content-Length: 5\r\n", b"Host: h\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"POST ", b"HEAD ", b"\xff"),
    *(b" \t", b"\0", b"-1", b"9" * 5000),
)
_PAGE = (
    *_JSON,
    *(b"GET ", b"HEAD ", b"POST ", b"/api/v1/overview", b"/api/v1/history", b"/metrics"),
    *(b"/api/v1/channels/orders/messages", b"/api/v1/channels/orders/events", b"/healthz"),
    *(b"/api/v1/channels/orders/dead-letters", b"/requeue", b"/purge", b"/api/v1/login"),
    *(b"/api/v1/channels/../messages", b"%2e%2e%2f", b"%00", b"%ff", b"?", b"&", b"from=", b"=1"),
    *(b"from=earliest", b"from=-999999999w", b"from=2026-01-02T03:04:05Z", b"limit=", b"before="),
    *(b"where=payload.n=1", b"where=id=", b"text=", b"after=letter-1", b'"ids":["letter-1"]'),
    *(b'"all":true', b'"to":"channel"', b'"token":"a-token-of-ours"', b"Host: localhost"),
    *(b"Content-Type: application/json", b"Content-Length: ", b"Last-Event-ID: ", b"Cookie: "),
    *(b"Authorization: Bearer a-token-of-ours", b"Origin: http://localhost", b"Accept: "),
    *(b"application/openmetrics-text; version=1.0.0", b"text/plain; version=", b"; escaping="),
    *(b"Sec-Fetch-Site: same-origin", b"X-Forwarded-For: 1", b"Remote-Addr: ::1", b"\n\n"),
)


_SCALARS = (
    *(b'"\\U00110000"', b'"\\ud800"', b'"\\x00"', b"0x", b"0b2", b"1:30", b"1_0", b".inf", b".nan"),
    *(
        b"~",
        b"on",
        b"7d",
        b"1e3",
        b"-1",
        b"9" * 30,
        b"9" * 5000,
        b"''",
        b"{}",
        b"[x]",
        b"<<",
        b"*a",
    ),
    *(b"!!int x", b"!!float ''", b"!!bool x", b"!!binary x", b"!x y", b"&a x", b"|\n x", b"a: b"),
)
_NUMBERS = (b"0", b"-1", b"+1", b"1.5", b"9" * 30, b"9" * 5000, b"x", b"", b"\xb2", b"1,2", b"%ff")
_PARAMETERS = (
    *_NUMBERS,
    *(b"earliest", b"latest", b"-1h30m", b"-999999999w", b"2026-01-02T03:04:05Z", b"letter-1"),
    *(b"0001-01-01T00:00:00%2b14:00", b"9999-12-31T23:59:59-14:00", b"message-1", b"half", b"v"),
    *(b"application/openmetrics-text", b"text/plain", b"dots", b"same-origin", b"localhost", b"["),
)

FRAMES = Words(_FRAME)
HELLOS = Words(_HELLO, _VALUES)
RECORDS = Words(_RECORD, _VALUES)
OFFSETS = Words((b"0", b"9" * 20, b"\n", b"-", b" "), (b"0", b"300", b"9" * 20, b"9" * 30))
YAML = Words(_YAML, _SCALARS)
HTTP = Words(_HTTP, _NUMBERS)
PAGE = Words(_PAGE, (*_VALUES, *_PARAMETERS), _PARAMETER)
