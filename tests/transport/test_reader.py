"""Exact reads, however the bytes come."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyop.transport.reader import EndOfStreamError, StreamReader, TooMuchError


class Pieces:
    """A stream whose bytes come in these pieces; then it ends, or breaks with an error."""

    def __init__(self, pieces: Iterable[bytes], error: OSError | None = None) -> None:
        self._pieces = list(pieces)
        self._error = error
        self.calls = 0

    def recv(self, size: int) -> bytes:
        self.calls += 1
        if self._pieces:
            piece = self._pieces.pop(0)
            assert len(piece) <= size
            return piece
        if self._error is not None:
            raise self._error
        return b""


def reader(*pieces: bytes, limit: int | None = None) -> StreamReader:
    return StreamReader(Pieces(pieces), limit)


class TestRead:
    def test_within_one_piece(self) -> None:
        """What came at once is given out in any portions, without asking for more."""
        stream = Pieces([b"abcdef"])
        under_test = StreamReader(stream)
        assert [under_test.read(size) for size in (1, 0, 2, 3)] == [b"a", b"", b"bc", b"def"]
        assert stream.calls == 1

    def test_across_pieces(self) -> None:
        """What comes byte by byte is put together."""
        under_test = reader(*[b"%c" % byte for byte in b"abcdefgh"])
        assert [under_test.read(3), under_test.read(5)] == [b"abc", b"defgh"]

    def test_what_is_left_stays(self) -> None:
        """A piece that holds more than was asked for is not lost."""
        under_test = reader(b"ab", b"cdefg", b"hi")
        assert [under_test.read(3), under_test.read(1), under_test.read(5)] == [
            b"abc",
            b"d",
            b"efghi",
        ]

    def test_the_end_in_the_middle(self) -> None:
        """Fewer bytes than were asked for are none."""
        under_test = reader(b"ab", b"c")
        assert under_test.read(1) == b"a"
        with pytest.raises(EndOfStreamError):
            under_test.read(3)

    def test_the_end_at_once(self) -> None:
        """Nothing at all is the end as well; asking for nothing is no end."""
        under_test = reader()
        assert under_test.read(0) == b""
        with pytest.raises(EndOfStreamError):
            under_test.read(1)

    def test_a_broken_stream(self) -> None:
        """The stream's error comes through."""
        under_test = StreamReader(Pieces([b"a"], ConnectionResetError(104, "reset")))
        with pytest.raises(ConnectionResetError):
            under_test.read(2)

    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), st.data())
    def test_any_portions(self, pieces: list[bytes], data: st.DataObject) -> None:
        """Bytes, lines and pieces of any sizes: what is read is what came, in order."""
        whole = b"".join(pieces)
        under_test = StreamReader(Pieces(pieces))
        done = 0
        while done < len(whole):
            if data.draw(st.booleans()):
                size = data.draw(st.integers(0, len(whole) - done))
                assert under_test.read(size) == whole[done : done + size]
                done += size
            else:
                limit = data.draw(st.sampled_from([-1, 1, 5, 1000]))
                newline = whole.find(b"\n", done)
                end = len(whole) if newline < 0 else newline + 1
                end = end if limit < 0 else min(end, done + limit)
                assert under_test.readline(limit) == whole[done:end]
                done = end
        assert under_test.readline() == b""


class TestReadline:
    def test_lines(self) -> None:
        """Each comes with its newline, the last one perhaps without."""
        under_test = reader(b"a\r\nb", b"b\n", b"\nlast")
        found = [under_test.readline() for _ in range(5)]
        assert found == [b"a\r\n", b"bb\n", b"\n", b"last", b""]

    def test_a_limit(self) -> None:
        """A line that is too long comes in portions, and no more is waited for than that."""
        stream = Pieces([b"abc", b"def", b"ghi\n"])
        under_test = StreamReader(stream)
        assert under_test.readline(5) == b"abcde"
        assert stream.calls == 2
        assert under_test.readline(5) == b"fghi\n"

    def test_a_limit_of_nothing(self) -> None:
        """Nothing is asked for, and nothing is read."""
        stream = Pieces([b"a"])
        assert StreamReader(stream).readline(0) == b""
        assert stream.calls == 0

    def test_then_bytes(self) -> None:
        """What follows the lines is still there."""
        under_test = reader(b"one\ntwo\n\x81\x02", b"\x03")
        assert under_test.readline() == b"one\n"
        assert under_test.readline() == b"two\n"
        assert under_test.read(3) == b"\x81\x02\x03"


class TestLimit:
    def test_as_many_as_it_may(self) -> None:
        """A stranger may send so many bytes in all, and not one more."""
        under_test = reader(b"a" * 10, b"b" * 6, b"c", limit=16)
        assert under_test.read(16) == b"a" * 10 + b"b" * 6
        with pytest.raises(TooMuchError, match="too many bytes"):
            under_test.read(1)

    def test_read_or_not(self) -> None:
        """What came counts, not what was asked for."""
        with pytest.raises(TooMuchError):
            reader(b"a" * 17, limit=16).read(1)
        with pytest.raises(TooMuchError):
            reader(b"a" * 10, b"a" * 10, limit=16).readline()

    def test_lifted(self) -> None:
        """Who is known may send any number."""
        under_test = reader(b"a" * 16, b"b" * 50_000, b"b" * 50_000 + b"\n", limit=16)
        assert under_test.read(16) == b"a" * 16
        under_test.lift_limit()
        assert len(under_test.readline()) == 100_001


def test_when_bytes_came() -> None:
    """A byte that comes is a sign of life, whether or not what it belongs to is complete."""
    under_test = StreamReader(Pieces([b"ab", b"c"], TimeoutError("nothing more")))
    begun = under_test.heard_at
    assert begun <= time.monotonic()
    time.sleep(0.002)
    with pytest.raises(TimeoutError):
        under_test.read(10)
    assert begun < under_test.heard_at <= time.monotonic()


def test_a_part_of_a_file() -> None:
    """gevent's HTTP server asks for these; the stream belongs to somebody else."""
    under_test = reader(b"a")
    under_test.close()
    assert not under_test.closed
    assert under_test.read(1) == b"a"
