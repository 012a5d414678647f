"""The side of an HTTP/1 connection that asks."""

from __future__ import annotations

from collections.abc import Callable

from planes.l7.codec import Breach, ResponseSink
from planes.l7.http1_chunks import ChunkedReader, piece
from planes.l7.http1_connection import (
    BY_LENGTH,
    CHUNKED,
    DEAD,
    HEAD,
    RAW,
    SEND_CHUNKED,
    SEND_LENGTH,
    SEND_RAW,
    SILENT,
    UNTIL_CLOSE,
    WAIT,
    Http1Connection,
    Http1Stream,
)
from planes.l7.http1_fields import HEAD_MAX_BYTES, read_response
from planes.l7.http1_write import write_request
from planes.l7.message import Request, Response
from testbed.errors import Bug

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 9.2.2."""


class Http1ClientStream(Http1Stream):
    """One request and its answer."""

    __slots__ = ("answered", "request")

    _connection: Http1Client
    sink: ResponseSink

    def __init__(self, connection: Http1Client, request: Request, sink: ResponseSink) -> None:
        self._connection = connection
        self._left = 0
        self.sink = sink
        self.blocked = self.over = self.answered = False
        self.request = request
        self.sent = False
        if request.has_body:
            self._sending = SEND_CHUNKED if request.content_length is None else SEND_LENGTH
            self._left = request.content_length or 0
        else:
            self._sending = SILENT
            self.sent = not request.upgrade and request.method != b"CONNECT"  # those wait for the way to open

    def go_raw(self) -> None:
        self._sending = SEND_RAW
        self.sent = False


class Http1Client(Http1Connection):
    """Fits `codec.ClientCodec`."""

    _stream: Http1ClientStream | None

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__(wake)
        self.usable = True
        self._state = WAIT
        self._answers = 0
        self._last = False

    def open(self, request: Request, sink: ResponseSink) -> Http1ClientStream:
        if not self.usable:
            raise Bug(f"open on {self!r}, which is not usable")
        head = write_request(request)
        stream = Http1ClientStream(self, request, sink)
        self._stream = stream
        self.active = 1
        self.usable = False
        self._state = HEAD
        self.write(head)
        return stream

    # -- input -------------------------------------------------------------------------------------------------------

    def _run(self, data: bytes) -> None:
        start, end = 0, len(data)
        while start < end:
            state, stream = self._state, self._stream
            if state == DEAD:
                return
            if state == WAIT or stream is None:
                # Whether the tail of a broken response or an answer (408) to nothing: what follows cannot be trusted.
                self.breach = Breach(502, "bytes after a response")
                self._die()
                return
            if state == HEAD:
                stream.answered = True
                stop = data.find(b"\r\n\r\n", start + self._searched, start + HEAD_MAX_BYTES)
                if stop < 0:
                    self._await_head(data, start)
                    return
                self._searched = 0
                head = data[start:stop]
                start = stop + 4
                self._on_head(stream, head, more=start < end)
            elif state == BY_LENGTH:
                stop = min(end, start + self._body_left)
                self._body_left -= stop - start
                part = piece(data, start, stop)
                start = stop
                stream.sink.data(part)
                if not self._body_left and self._state == BY_LENGTH:
                    self._response_read(more=start < end)
                    stream.sink.ended([])
            elif state == CHUNKED:
                chunks = self._chunks
                assert chunks is not None
                start = chunks.read(data, start, self._deliver)
                if self._state == CHUNKED:
                    if not chunks.done:
                        self._rest = data[start:]
                        return
                    self._response_read(more=start < end)
                    stream.sink.ended(chunks.trailers)
            else:
                stream.sink.data(piece(data, start, end))
                return

    def _on_head(self, stream: Http1ClientStream, head: bytes, *, more: bool) -> None:
        request = stream.request
        response, chunked, close = read_response(head, request.method)
        status = response.status
        if status == 101:
            if not request.upgrade:
                raise Breach(502, "101 to a request without Upgrade")
            self._go_raw(stream, response)
            return
        if status < 200:
            stream.sink.interim(response)
            return
        if request.method == b"CONNECT" and status < 300:
            self._go_raw(stream, response)
            return
        self._last = close
        self._answers += 1
        if not response.has_body:
            self._response_read(more=more)
            stream.sink.head(response)
            return
        if chunked:
            self._state = CHUNKED
            self._chunks = ChunkedReader()
        elif response.content_length is not None:
            self._state = BY_LENGTH
            self._body_left = response.content_length
        else:
            self._state = UNTIL_CLOSE
        stream.sink.head(response)

    def _go_raw(self, stream: Http1ClientStream, response: Response) -> None:
        if stream.request.has_body and not stream.sent:
            raise Breach(502, "switch of protocols within the request's body")
        self._state = RAW
        stream.go_raw()
        stream.sink.head(response)

    def _response_read(self, *, more: bool) -> None:
        """The response is whole, and with it the exchange: what of the request is unsent has lost its purpose."""
        stream = self._stream
        assert stream is not None
        stream.over = True
        self._stream = self._chunks = None
        self.active = 0
        self._held = False
        unsent = stream.request.has_body and not stream.sent
        if self._last or unsent or self._draining or more:
            self._die()
        else:
            self._state = WAIT
            self.usable = True

    def _on_breach(self, breach: Breach) -> None:
        self._reset_stream(str(breach))

    def receive_eof(self) -> None:
        state, stream = self._state, self._stream
        if state == RAW:
            self._raw_ended()
        elif state == UNTIL_CLOSE and stream is not None:
            self._response_read(more=True)
            stream.sink.ended([])
        else:
            self.lost("the server ended the connection within its response" if stream is not None and stream.answered
                      else "the server ended the connection without answering")  # fmt: skip

    def lost(self, reason: str) -> None:
        """A request on a connection that had answered before and then ended without a byte most likely crossed the
        server's closing of an idle connection. Only of an idempotent one may that be presumed (RFC 9110 9.2.2)."""
        stream = self._stream
        stale = stream is not None and not stream.answered and self._answers > 0
        self._reset_stream(reason, unprocessed=stale and stream is not None and stream.request.method in _IDEMPOTENT)

    def drain(self) -> None:
        self._draining = True
        self.usable = False
        if self._stream is None:
            self._die()
            self._changed()

    def _die(self) -> None:
        super()._die()
        self.usable = False

    # -- output ------------------------------------------------------------------------------------------------------

    def message_sent(self, stream: Http1Stream) -> None:
        if stream._sending == SEND_RAW:
            self._raw_sent(stream)
