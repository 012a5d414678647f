"""The chunked coding read."""

from __future__ import annotations

import pytest

from planes.l7.codec import Breach
from planes.l7.http1_chunks import CHUNK_LINE_MAX_BYTES, VIEW_FROM_BYTES, ChunkedReader
from planes.l7.http1_fields import HEAD_MAX_BYTES
from planes.l7.message import Fields


def read(*pieces: bytes) -> tuple[bytes, Fields, bytes, bool]:
    """Body, trailers, what was left over, and whether it is whole; as a connection would feed it."""
    reader, body, rest = ChunkedReader(), bytearray(), b""
    for piece in pieces:
        data = rest + piece
        rest = data[reader.read(data, 0, body.extend) :]
    return bytes(body), reader.trailers, rest, reader.done


def drip(data: bytes) -> list[bytes]:
    return [data[n : n + 1] for n in range(len(data))]


WHOLE = {
    "empty": (b"0\r\n\r\n", b"", []),
    "two chunks": (b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789", []),
    "leading zeros": (b"0003\r\nabc\r\n000\r\n\r\n", b"abc", []),
    "extensions": (b'3;a=b;c="d e"\r\nabc\r\n2 ; x\r\nde\r\n0;last\r\n\r\n', b"abcde", []),
    "data like framing": (b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n", []),
    "trailers": (b"1\r\na\r\n0\r\nX-Sum: 1\r\nx-b:  2 \r\n\r\n", b"a", [(b"x-sum", b"1"), (b"x-b", b"2")]),
    "trailers not for the recipient": (
        b"0\r\nHost: b\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nTrailer: a\r\nX: 1\r\n\r\n",
        b"", [(b"x", b"1")]),
}  # fmt: skip

BROKEN = {
    "no size": b"\r\nabc",
    "letters": b"xyz\r\n",
    "sign": b"+3\r\nabc\r\n",
    "prefix": b"0x3\r\nabc\r\n",
    "line below": b"1_0\r\n",
    "leading space": b" 3\r\nabc\r\n",
    "trailing space": b"3 \r\nabc\r\n",
    "overflow of 64 bits": b"10000000000000003\r\nabc\r\n",
    "sixteen digits": b"0000000000000003\r\nabc\r\n",
    "bare LF": b"3\nabc\r\n",
    "bare LF in an extension": b"3;a\nb\r\nabc\r\n",
    "bare CR in an extension": b"3;a\rb\r\nabc\r\n",
    "NUL in an extension": b"3;\0\r\nabc\r\n",
    "data too long": b"3\r\nabcd\r\n",
    "data without CR": b"3\r\nabc\n0\r\n\r\n",
    "CR and something": b"3\r\nabc\rx",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "trailer without a colon": b"0\r\nXa\r\n\r\n",
    "trailer with space": b"0\r\nX : a\r\n\r\n",
    "trailer with bare LF": b"0\r\nX: a\nY: b\r\n\r\n",
    "trailers ended by bare LF": b"0\r\nX: a\n\n",
}


class TestWhole:
    @pytest.mark.parametrize(("data", "body", "trailers"), WHOLE.values(), ids=WHOLE)
    def test_body_and_trailers(self, data: bytes, body: bytes, trailers: Fields) -> None:
        """At once and byte by byte; what follows is left alone."""
        assert read(data + b"GET") == (body, trailers, b"GET", True)
        assert read(*drip(data)) == (body, trailers, b"", True)

    @pytest.mark.parametrize(("data", "body", "trailers"), WHOLE.values(), ids=WHOLE)
    def test_a_prefix_is_never_whole(self, data: bytes, body: bytes, trailers: Fields) -> None:
        """The last byte is needed."""
        for n in range(len(data)):
            assert not read(data[:n])[3]

    def test_long_pieces_are_views(self) -> None:
        """A large chunk costs no copy, and no more is kept than was given."""
        pieces: list[bytes | memoryview] = []
        size = VIEW_FROM_BYTES * 2
        data = b"%x\r\n" % (size * 3) + b"x" * size
        assert ChunkedReader().read(data, 0, pieces.append) == len(data)
        assert [type(p) for p in pieces] == [memoryview]


class TestBroken:
    @pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
    def test_each_is_a_breach(self, data: bytes) -> None:
        """At once and byte by byte."""
        for pieces in ([data], drip(data)):
            with pytest.raises(Breach) as refusal:
                read(*pieces)
            assert refusal.value.status == 400

    @pytest.mark.parametrize(("data", "status"), [
        (b"3;" + b"a" * CHUNK_LINE_MAX_BYTES, 400), (b"0\r\nX: " + b"a" * HEAD_MAX_BYTES, 431),
        (b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431)])  # fmt: skip
    def test_what_is_too_long_is_refused_without_its_end(self, data: bytes, status: int) -> None:
        """Extension, trailers, number of trailers."""
        with pytest.raises(Breach) as refusal:
            read(data)
        assert refusal.value.status == status
