"""Both roles of the HTTP/1 codec with everything that they say written down."""

from __future__ import annotations

from typing import Any

from planes.l7.http1 import Http1Client, Http1ClientStream, Http1Server, Http1ServerStream
from planes.l7.message import Fields, Request, Response

HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = Response(200, [(b"content-length", b"2")], has_body=True, content_length=2)


class Sink:
    """Writes down the calls; neighbouring data are joined, for how bytes are cut is no promise."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.responses: list[Response] = []

    def data(self, data: bytes | memoryview) -> None:
        assert len(data), "a piece of body without bytes"
        if self.calls and self.calls[-1][0] == "data":
            self.calls[-1] = ("data", self.calls[-1][1] + bytes(data))
        else:
            self.calls.append(("data", bytes(data)))

    def ended(self, trailers: Fields) -> None:
        self.calls.append(("ended", trailers))

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        self.calls.append(("reset", unprocessed))

    def writable(self) -> None:
        self.calls.append(("writable",))

    def interim(self, response: Response) -> None:
        self.responses.append(response)
        self.calls.append(("interim", response.status, response.fields))

    def head(self, response: Response) -> None:
        self.responses.append(response)
        self.calls.append(("head", response.status, response.fields, response.has_body, response.content_length))

    @property
    def body(self) -> bytes:
        return b"".join(call[1] for call in self.calls if call[0] == "data")


class Server:
    """A server whose requests are answered by the test, or by `answer` on the spot."""

    def __init__(self, answer: Any = None, scheme: bytes = b"http") -> None:
        self.requests: list[Request] = []
        self.streams: list[Http1ServerStream] = []
        self.sinks: list[Sink] = []
        self.wakes = 0
        self._answer = answer
        self.codec = Http1Server(self._on_request, self._wake, scheme=scheme)

    def _wake(self) -> None:
        self.wakes += 1

    def _on_request(self, stream: Http1ServerStream, request: Request) -> None:
        sink = Sink()
        stream.sink = sink
        self.requests.append(request)
        self.streams.append(stream)
        self.sinks.append(sink)
        if self._answer:
            self._answer(stream, request)

    def receive(self, *pieces: bytes) -> Server:
        for data in pieces:
            self.codec.receive(data)
        return self

    def written(self) -> bytes:
        """What was written since the last call."""
        data = b"".join(self.codec.out)
        self.codec.out.clear()
        return data

    @property
    def request(self) -> Request:
        assert len(self.requests) == 1
        return self.requests[0]

    @property
    def stream(self) -> Http1ServerStream:
        return self.streams[-1]

    @property
    def sink(self) -> Sink:
        return self.sinks[-1]


def ok(stream: Http1ServerStream, request: Request | None = None) -> None:
    """A whole answer with two bytes of body."""
    stream.send_head(OK)
    stream.send_data(b"ok")
    stream.end()


class Client:
    """A client with one request sent."""

    def __init__(self, request: Request | None = None) -> None:
        self.wakes = 0
        self.codec = Http1Client(self._wake)
        self.stream: Http1ClientStream
        self.sink: Sink
        self.sent = self.open(request) if request else b""

    def _wake(self) -> None:
        self.wakes += 1

    def open(self, request: Request) -> bytes:
        self.sink = Sink()
        self.stream = self.codec.open(request, self.sink)
        return self.written()

    def receive(self, *pieces: bytes) -> Client:
        for data in pieces:
            self.codec.receive(data)
        return self

    def written(self) -> bytes:
        data = b"".join(self.codec.out)
        self.codec.out.clear()
        return data


def get(method: bytes = b"GET", fields: Fields | None = None, **more: Any) -> Request:
    return Request(method, b"a", b"/", fields or [], **more)
