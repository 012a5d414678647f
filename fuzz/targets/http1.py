"""HTTP/1 readers of both roles: pieces do not matter, an accepted request is one request for others, too."""

from __future__ import annotations

import h11

from fuzz.cuts import ways
from planes.l7.http1 import Http1Client, Http1Server, Http1ServerStream
from planes.l7.http1_fields import HEAD_MAX_BYTES
from planes.l7.http1_write import write_request
from planes.l7.message import Fields, Request, Response

ANSWER_MAX_BYTES = 256
"""For each request, however it is refused."""


class Noted:
    """A sink that writes down; a server's answers as soon as the request is whole."""

    def __init__(self, log: list, stream: Http1ServerStream | None = None) -> None:
        self._log, self._stream = log, stream

    def data(self, data: bytes | memoryview) -> None:
        assert len(data), "a piece of body without bytes"
        if self._log and self._log[-1][0] == "data":
            self._log[-1] = ("data", self._log[-1][1] + bytes(data))
        else:
            self._log.append(("data", bytes(data)))

    def ended(self, trailers: Fields) -> None:
        self._log.append(("ended", trailers))
        if self._stream is not None:
            answer(self._stream)

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        self._log.append(("reset", unprocessed))

    def writable(self) -> None:
        raise AssertionError("nobody waits")

    def interim(self, response: Response) -> None:
        self._log.append(("interim", response.status, response.fields))

    def head(self, response: Response) -> None:
        self._log.append(
            ("head", response.status, response.fields, response.has_body, response.content_length, response.upgrade)
        )


def answer(stream: Http1ServerStream) -> None:
    if stream.over or stream.sent or stream.head_sent:
        stream.end()
        return
    stream.send_head(Response(200, [(b"content-length", b"2")], has_body=True, content_length=2))
    if stream.request.method != b"CONNECT":
        stream.send_data(b"ok")
    stream.end()


def _served(pieces: list[bytes]) -> tuple[list, list[Request], bytes, bool]:
    log: list = []
    requests: list[Request] = []

    def take(stream: Http1ServerStream, request: Request) -> None:
        log.append((request.method, request.authority, request.path, request.fields, request.scheme, request.version,
                    request.has_body, request.content_length, request.upgrade))  # fmt: skip
        requests.append(request)
        stream.sink = Noted(log, stream)  # type: ignore[assignment]
        if not request.has_body:
            answer(stream)

    codec = Http1Server(take, lambda: None)
    for piece in pieces:
        codec.receive(piece)
        assert len(codec._rest) <= HEAD_MAX_BYTES + len(piece), "more is kept than a head may have"
    codec.receive_eof()
    written = b"".join(codec.out)
    assert len(written) <= ANSWER_MAX_BYTES * (len(requests) + 1), "more is answered than was asked"
    return log, requests, written, codec.breach is not None


def server(data: bytes) -> None:
    whole = _served([data])
    for pieces in ways(data):
        cut = _served(pieces)
        assert (cut[0], cut[2], cut[3]) == (whole[0], whole[2], whole[3]), "cuts matter"
    for request in whole[1]:
        _forwarded(request)


def _forwarded(request: Request) -> None:
    """What is sent on is one request, and the same one, to us and to h11."""
    wire = write_request(request)
    read: list[Request] = []

    def take(stream: Http1ServerStream, again: Request) -> None:
        read.append(again)
        stream.sink = Noted([])  # type: ignore[assignment]

    codec = Http1Server(take, lambda: None, scheme=request.scheme)
    codec.receive(wire)
    assert codec.breach is None, f"we refuse what we sent: {codec.breach}"
    (again,) = read
    for name in ("method", "authority", "path", "has_body", "upgrade"):
        assert getattr(again, name) == getattr(request, name), f"{name} is another when read again"
    assert (again.content_length or 0) == (request.content_length or 0), "a length that is another when read again"
    assert _without_no_length(again) == _without_no_length(request), "fields are others when read again"
    theirs = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    theirs.receive_data(wire)
    try:
        event = theirs.next_event()
    except h11.RemoteProtocolError:
        return  # it is stricter in some points, and so hides nothing
    assert isinstance(event, h11.Request), "h11 sees no whole head"
    assert event.method == request.method, "h11 reads another method"
    if not request.has_body and not request.upgrade and request.method != b"CONNECT":
        assert isinstance(theirs.next_event(), h11.EndOfMessage), "h11 sees a body"
        assert theirs.trailing_data[0] == b"", "h11 sees bytes behind the request"


def _without_no_length(request: Request) -> Fields:
    """A POST without a body is written with a length of 0 (RFC 9110 8.6)."""
    return sorted(field for field in request.fields if field != (b"content-length", b"0"))


_ASKED = (
    Request(b"GET", b"a", b"/", []),
    Request(b"HEAD", b"a", b"/", []),
    Request(b"CONNECT", b"a:1", b"", []),
    Request(b"GET", b"a", b"/", [], upgrade=b"websocket"),
)


def _asked(request: Request, pieces: list[bytes], *, end: bool) -> tuple[list, bool, bool]:
    log: list = []
    codec = Http1Client(lambda: None)
    codec.open(request, Noted(log))  # type: ignore[arg-type]
    codec.out.clear()
    for piece in pieces:
        codec.receive(piece)
        assert len(codec._rest) <= HEAD_MAX_BYTES + len(piece), "more is kept than a head may have"
    if end:
        codec.receive_eof()
    assert sum(map(len, codec.out)) == 0, "a client answers a response"
    return log, codec.usable, codec.closing


def client(data: bytes) -> None:
    """The first byte chooses the request, and whether the connection ends behind the rest."""
    request, end, wire = _ASKED[data[0] % 4] if data else _ASKED[0], bool(data and data[0] & 4), data[1:]
    whole = _asked(request, [wire] if wire else [], end=end)
    for pieces in ways(wire):
        assert _asked(request, pieces, end=end) == whole, "cuts matter"
    finals = [entry for entry in whole[0] if entry[0] == "head"]
    assert len(finals) <= 1, "two answers to one request"
