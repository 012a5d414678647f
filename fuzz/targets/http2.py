"""The L7 profile of HTTP/2, both roles, behind the preface and SETTINGS: pieces do not matter, floods are bounded."""

from __future__ import annotations

from fuzz.cuts import ways
from planes.l7.http2 import CLIENT_LIMITS, SERVER_LIMITS, Http2Client, Http2Server
from planes.l7.http2_stream import L7ServerStream
from planes.l7.message import Fields, Request, Response
from planes.mesh import frames

BLOCK_MAX_BYTES = 128 << 10
REMEMBERED_MAX = 1_000
OUT_PER_BYTE = 16
"""Bytes out for a byte in: a PING comes back, a refused HEADERS of nine octets costs a response of some thirty."""


class Heard:
    def __init__(self, log: dict, number: int, stream: L7ServerStream | None = None) -> None:
        self._log, self._number, self._stream = log, number, stream
        self._log[number] = [b"", None, None]

    def data(self, data: bytes | memoryview) -> None:
        entry = self._log[self._number]
        assert entry[1] is None and entry[2] is None, "a body's bytes behind its end"
        entry[0] += bytes(data)

    def ended(self, trailers: Fields) -> None:
        entry = self._log[self._number]
        assert entry[1] is None and entry[2] is None, "two ends"
        entry[1] = trailers
        if self._stream is not None:
            respond(self._stream)

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        assert self._log[self._number][2] is None, "reset twice"
        self._log[self._number][2] = unprocessed

    def writable(self) -> None:
        pass

    def interim(self, response: Response) -> None:
        self._log[self._number].append(("interim", response.status, response.fields))

    def head(self, response: Response) -> None:
        self._log[self._number].append(
            ("head", response.status, response.fields, response.has_body, response.content_length)
        )


def respond(stream: L7ServerStream) -> None:
    stream.send_head(Response(200, [], has_body=True))
    stream.send_data(b"ok")
    stream.end()


def _bounded(codec: Http2Server | Http2Client, came: int) -> None:
    assert len(codec._buffer) <= codec.limits.max_frame_bytes + frames.HEADER_SIZE, "more is kept than a frame"
    assert len(codec._block or b"") <= BLOCK_MAX_BYTES, "a header block without end"
    assert len(codec.streams) <= (codec.limits.max_concurrent_streams or 1), "more streams than advertised"
    assert len(codec._forgotten) <= REMEMBERED_MAX, "resets without end are remembered"
    assert sum(map(len, codec.out)) <= OUT_PER_BYTE * came + 4096, "more is answered than was asked"
    assert codec._decoder._bytes <= 4096, "the table outgrew what was advertised"


def _meaning(log: dict, extra: tuple) -> tuple:
    """Of a stream that was reset, how much of its body came before depends on the pieces, as it may."""
    return {n: e if e[2] is None else ["reset", *e[3:]] for n, e in log.items()}, extra


def _served(pieces: list[bytes]) -> tuple:
    log: dict = {}

    def take(stream: L7ServerStream, request: Request) -> None:
        stream.sink = Heard(log, stream.id, stream)
        log[stream.id].append((request.method, request.authority, request.path, request.fields, request.scheme,
                               request.has_body, request.content_length, request.upgrade))  # fmt: skip
        if not request.has_body:
            respond(stream)

    codec = Http2Server(take, lambda: None, limits=SERVER_LIMITS)
    codec.receive(frames.PREFACE + frames.settings(()))
    codec.out.clear()
    came = 0
    for piece in pieces:
        codec.receive(piece)
        came += len(piece)
        _bounded(codec, came)
    # What comes behind a client's GOAWAY is served if it came in the same read, for the connection ends after that.
    if codec.goaway_received:
        return ("goaway",)
    return _meaning(log, (codec.closing or codec.failed, sorted(codec.streams)))


def server(data: bytes) -> None:
    whole = _served([data])
    for pieces in ways(data):
        assert _served(pieces) == whole, "cuts matter"


def _asked(pieces: list[bytes]) -> tuple:
    log: dict = {}
    codec = Http2Client(lambda: None, limits=CLIENT_LIMITS)
    codec.receive(frames.settings(()))
    for request in (
        Request(b"GET", b"a", b"/", []),
        Request(b"HEAD", b"a", b"/", []),
        Request(b"POST", b"a", b"/", [], has_body=True),
        Request(b"CONNECT", b"a:1", b"", [], has_body=True),
    ):
        codec.open(request, Heard(log, codec._next_stream))
    codec.out.clear()
    came = 0
    for piece in pieces:
        codec.receive(piece)
        came += len(piece)
        assert len(codec.streams) <= 4, "streams that nobody opened"
        assert sum(map(len, codec.out)) <= OUT_PER_BYTE * came + 4096, "more is answered than was asked"
        assert len(codec._buffer) <= codec.limits.max_frame_bytes + frames.HEADER_SIZE, "more is kept than a frame"
    if codec.goaway_received:
        return ("goaway",)
    return _meaning(log, (codec.closing or codec.failed, sorted(codec.streams), codec.usable))


def client(data: bytes) -> None:
    """Streams 1 GET, 3 HEAD, 5 POST, 7 CONNECT are open."""
    whole = _asked([data])
    for pieces in ways(data):
        assert _asked(pieces) == whole, "cuts matter"
