"""The side of an HTTP/1 connection that answers: requests come out in order, each once the one before is answered."""

from __future__ import annotations

from collections.abc import Callable

from planes.l7.codec import Breach
from planes.l7.http1_chunks import ChunkedReader, piece
from planes.l7.http1_connection import (
    BY_LENGTH,
    CHUNKED,
    DEAD,
    DISCARD,
    HEAD,
    RAW,
    SEND_CHUNKED,
    SEND_LENGTH,
    SEND_RAW,
    SEND_UNTIL_CLOSE,
    SILENT,
    UNSENT,
    WAIT,
    Http1Connection,
    Http1Stream,
)
from planes.l7.http1_fields import HEAD_MAX_BYTES, read_request
from planes.l7.http1_write import write_error, write_response
from planes.l7.message import Request, Response
from testbed.errors import Bug

DRAIN_MAX_BYTES = 256 * 1024
"""How much of a request's body is read and thrown away after an early answer, to keep the connection; Node and nginx
read on as well, Envoy closes at once."""
_EMPTY_LINES_MAX = 8


class Http1ServerStream(Http1Stream):
    """One request and its answer."""

    __slots__ = ("_continued", "request")

    _connection: Http1Server

    def __init__(self, connection: Http1Server, request: Request) -> None:
        self._connection = connection
        self._sending = UNSENT
        self._left = 0
        self._continued = False
        self.sink = DISCARD
        self.blocked = self.sent = self.over = False
        self.request = request

    def send_head(self, response: Response) -> None:
        if self.over:
            return
        status, request, connection = response.status, self.request, self._connection
        if self._sending != UNSENT:
            raise Bug("a second head in one response")
        if status < 200:
            self._send_interim(response)
            return
        close = connection.last or connection._draining or (
            request.expects_continue and connection.ends_with(self, continued=self._continued)
        )  # fmt: skip
        chunked = request.version != "1.0"
        tunnel = request.method == b"CONNECT" and status < 300
        silent = request.method == b"HEAD" or status == 204 or status == 304
        if response.has_body and not silent and response.content_length is None and not chunked:
            close = True
        head = write_response(response, request, chunked=chunked, close=close and not tunnel)
        connection.last = close
        if tunnel:
            self._sending = SEND_RAW
            connection.write(head)
            connection.go_raw()
            return
        if silent or not response.has_body:
            self._sending = SILENT
        elif response.content_length is not None:
            self._sending, self._left = SEND_LENGTH, response.content_length
        else:
            self._sending = SEND_CHUNKED if chunked else SEND_UNTIL_CLOSE
        connection.write(head)
        if not response.has_body:
            self.sent = True
            connection.message_sent(self)

    def _send_interim(self, response: Response) -> None:
        request, connection = self.request, self._connection
        if response.status == 101:
            if not request.upgrade:
                raise Bug("101 to a request without Upgrade")
            connection.write(write_response(response, request, chunked=False, close=False))
            self._sending = SEND_RAW
            connection.go_raw()
        elif request.version != "1.0":  # RFC 9110 15.2: MUST NOT be sent to an HTTP/1.0 client
            self._continued = self._continued or response.status == 100
            connection.write(write_response(response, request, chunked=False, close=False))

    @property
    def head_sent(self) -> bool:
        return self._sending != UNSENT


class Http1Server(Http1Connection):
    """Fits `codec.ServerCodec`. `scheme` is that of requests whose target does not name one."""

    _stream: Http1ServerStream | None

    def __init__(
        self, on_request: Callable[[Http1ServerStream, Request], None], wake: Callable[[], None], *,
        scheme: bytes = b"http",
    ) -> None:  # fmt: skip
        super().__init__(wake)
        self._on_request = on_request
        self._scheme = scheme
        self._drained_bytes = 0
        self._empty_lines = 0
        self._eof = False
        self.last = False
        """The current exchange is the last on this connection."""

    # -- input -------------------------------------------------------------------------------------------------------

    def _run(self, data: bytes) -> None:
        start, end = 0, len(data)
        while start < end:
            state = self._state
            if state == HEAD:
                if data[start] == 0x0D:
                    start = self._skip_empty_lines(data, start)
                    continue
                stop = data.find(b"\r\n\r\n", start + self._searched, start + HEAD_MAX_BYTES)
                if stop < 0:
                    self._await_head(data, start)
                    return
                self._searched = 0
                request, last = read_request(data[start:stop], self._scheme)
                start = stop + 4
                self._begin(request, last)
            elif state == BY_LENGTH:
                stop = min(end, start + self._body_left)
                self._body_left -= stop - start
                part = piece(data, start, stop)
                start = stop
                self._deliver(part)
                if not self._body_left and self._state == BY_LENGTH:
                    self._request_read([])
            elif state == CHUNKED:
                chunks = self._chunks
                assert chunks is not None
                start = chunks.read(data, start, self._deliver)
                if self._state == CHUNKED:
                    if not chunks.done:
                        self._rest = data[start:]
                        return
                    self._request_read(chunks.trailers)
            elif state == RAW:
                self._deliver(piece(data, start, end))
                return
            elif state == WAIT:
                self._rest = data[start:]
                return
            else:
                return

    def _skip_empty_lines(self, data: bytes, start: int) -> int:
        """RFC 9112 2.2: at least one empty line before a request line is ignored."""
        if data.startswith(b"\r\n", start) and self._empty_lines < _EMPTY_LINES_MAX:
            self._empty_lines += 1
            return start + 2
        if start + 1 < len(data):
            raise Breach(400, "no HTTP")
        self._rest = b"\r"
        return len(data)

    def _begin(self, request: Request, last: bool) -> None:
        stream = Http1ServerStream(self, request)
        self._stream = stream
        self.active = 1
        self.last = last
        self._empty_lines = 0
        if not request.has_body:
            self._state = WAIT
        elif request.content_length is None:
            self._state = CHUNKED
            self._chunks = ChunkedReader()
        else:
            self._state = BY_LENGTH
            self._body_left = request.content_length
        self._on_request(stream, request)

    def _deliver(self, data: bytes | memoryview) -> None:
        stream = self._stream
        if stream is None:
            return
        if stream.over:
            self._drained_bytes += len(data)
            if self._drained_bytes > DRAIN_MAX_BYTES:
                self._die()
            return
        stream.sink.data(data)

    def _request_read(self, trailers: list[tuple[bytes, bytes]]) -> None:
        stream = self._stream
        assert stream is not None
        self._chunks = None
        if stream.over:
            self._next()
        elif stream._sending == SEND_RAW:
            self._state = RAW
        else:
            self._state = WAIT
            stream.sink.ended(trailers)

    def _on_breach(self, breach: Breach) -> None:
        stream = self._stream
        if stream is None or not (stream.head_sent or stream.over):
            self.out.append(write_error(breach.status))
        elif stream._sending == SEND_UNTIL_CLOSE:
            self.abort = True
        self.unread = True
        self._reset_stream(str(breach))

    def receive_eof(self) -> None:
        """A client that has shut its writing side still gets the answers to what it asked in full. Envoy and nginx take
        it for gone, since from here a close looks the same; who is gone answers the first bytes with a RST."""
        self._eof = True
        self._settle_eof()

    def _settle_eof(self) -> None:
        if self._state == RAW:
            self._raw_ended()
        elif self._state == WAIT:
            self.last = self.last or not self._rest
        elif self._state != DEAD:
            self._reset_stream("the client ended the connection within its request")

    def lost(self, reason: str) -> None:
        self._reset_stream(reason)

    def last_call(self) -> None:
        """The next answer is the last; an idle connection stays open for it, since a request may be on its way."""
        self._draining = True

    def drain(self) -> None:
        self._draining = True
        if (self._stream is None or self._stream.over) and not self._rest:
            self._die()
            self._changed()

    # -- output ------------------------------------------------------------------------------------------------------

    def ends_with(self, stream: Http1ServerStream, *, continued: bool) -> bool:
        """Whether the connection ends with this response, as known when its head is written."""
        # A client that waits for 100 and gets a final answer may or may not send the body: its next bytes are
        # ambiguous.
        body_in_doubt = stream.request.expects_continue and not continued and self._state in (BY_LENGTH, CHUNKED)
        return self.last or self._draining or body_in_doubt

    def go_raw(self) -> None:
        """After 101, or 2xx to CONNECT; a request's own body comes first."""
        if self._state == WAIT:
            self._state = RAW
            self._on_free()

    def message_sent(self, stream: Http1Stream) -> None:
        if stream._sending == SEND_RAW:
            self._raw_sent(stream)
            return
        stream.over = True
        self.active = 0
        if self._state == WAIT and not (
            self.last or self._draining or self._rest or self._eof or self.reading_held or self.write_blocked
        ) and stream._sending != SEND_UNTIL_CLOSE:  # fmt: skip
            self._stream = None  # as `_next` does it when nothing waits
            self._held = False
            self._state = HEAD
        elif self.last or self._draining or stream._sending == SEND_UNTIL_CLOSE:
            self._die()
            self._changed()
        elif self._state == WAIT:
            self._next()
        elif self._state == BY_LENGTH and self._body_left > DRAIN_MAX_BYTES:
            self._die()  # the rest of the request is not worth reading
            self._changed()
        else:
            self._drained_bytes = 0
            self.set_held(False)

    def _next(self) -> None:
        """The exchange is over in both directions."""
        self._stream = None
        self._held = False
        if self._draining:
            self._die()
            self._changed()
            return
        self._state = HEAD
        self._on_free()

    def _on_free(self) -> None:
        """What waited for the end of an exchange, or for a switch of protocols, may be read."""
        if self._running:
            return
        if self._rest:
            self._resume()
        if self._eof and not self._running:
            self._settle_eof()
            self._changed()
        if self.reading_held or self.write_blocked:
            self._update_held()

    def _must_wait(self) -> bool:
        """No further request of a client that does not take its answers."""
        return super()._must_wait() or (self.write_blocked and self._state == HEAD)
