"""What both roles of an HTTP/1 connection share: output, brakes, and the sending half of the one exchange under way.

A connection runs one exchange at a time. `_run` of a role consumes what came until it needs more bytes or has to wait
for the other direction; what it could not use yet stands in `_rest` (at most a head that is not whole, or one read of
a pipelining peer, since `reading_held` is then set).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from planes.l7.codec import Breach, Sink
from planes.l7.http1_chunks import ChunkedReader, bare_line_feed
from planes.l7.http1_fields import HEAD_MAX_BYTES, START_LINE_MAX_BYTES, TCHAR
from planes.l7.http1_write import write_last_chunk
from planes.l7.message import Fields
from testbed.errors import Bug

# What is being read. WAIT: the message is whole, but the next may not begin yet.
HEAD, WAIT, BY_LENGTH, CHUNKED, UNTIL_CLOSE, RAW, DEAD = range(7)
# How a body is being sent. UNSENT: its head is yet to come. SILENT: there is none (HEAD, 204, 304).
UNSENT, SILENT, SEND_LENGTH, SEND_CHUNKED, SEND_UNTIL_CLOSE, SEND_RAW = range(6)
STATES = ("head", "wait", "length", "chunked", "until close", "raw", "dead")


class DiscardSink:
    """Takes what arrives for an exchange that is over."""

    __slots__ = ()

    def data(self, data: bytes | memoryview) -> None: ...
    def ended(self, trailers: Fields) -> None: ...
    def was_reset(self, reason: str, *, unprocessed: bool) -> None: ...
    def writable(self) -> None: ...


DISCARD = DiscardSink()


class Http1Stream:
    """The sending half of an exchange, either role."""

    __slots__ = ("_connection", "_left", "_sending", "blocked", "over", "sent", "sink")

    _connection: Http1Connection
    _left: int
    _sending: int
    sink: Sink
    blocked: bool
    """`send_data` has answered False and `sink.writable()` is owed."""
    sent: bool
    """The message that this side sends is whole."""
    over: bool
    """The exchange is gone; whatever is still said here is ignored."""

    def send_data(self, data: bytes | memoryview) -> bool:
        if self.over:
            return True
        sending, connection = self._sending, self._connection
        if sending == SEND_LENGTH:
            if len(data) > self._left:
                raise Bug(f"body {len(data) - self._left} bytes longer than its content-length")
            self._left -= len(data)
        elif sending == SILENT:
            return True
        elif sending == UNSENT or self.sent:
            raise Bug("body before its head or after its end")
        if data:
            out = connection.out
            quiet = not out
            if sending == SEND_CHUNKED:
                out += (b"%x\r\n" % len(data), data, b"\r\n")
            else:
                out.append(data)
            if quiet:
                connection.wrote()
        if connection.write_blocked:
            self.blocked = True
            return False
        return True

    def end(self, trailers: Fields | None = None) -> None:
        if self.over or self.sent:
            return
        sending, connection = self._sending, self._connection
        if sending == SEND_CHUNKED:
            connection.write(write_last_chunk(trailers))
        elif sending == SEND_LENGTH and self._left:
            missing = self._left
            connection.fail()
            raise Bug(f"body {missing} bytes shorter than its content-length")
        elif sending == UNSENT:
            raise Bug("end of a message before its head")
        self.sent = True
        connection.message_sent(self)

    def reset(self, reason: str = "") -> None:
        if self.over:
            return
        connection = self._connection
        # An end of the connection would pass for the end of these two, so it has to be a RST.
        connection.abort = self._sending in (SEND_UNTIL_CLOSE, SEND_RAW) or connection.abort
        connection.fail()

    def hold(self) -> None:
        if not self.over:
            self._connection.set_held(True)

    def release(self) -> None:
        if not self.over:
            self._connection.set_held(False)


class Http1Connection(ABC):
    """The common half of `Http1Server` and `Http1Client`; each has `_run`, `message_sent`, `_on_breach`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.out: list[bytes] = []
        self.write_blocked = False
        self.reading_held = False
        self.closing = False
        self.abort = False
        self.half_close = False
        self.unread = False
        self.active = 0
        self.breach: Breach | None = None
        """Why this side gave the connection up, for logs."""
        self._wake = wake
        self._state = HEAD
        self._stream: Http1Stream | None = None
        self._chunks: ChunkedReader | None = None
        self._body_left = 0
        self._rest = b""
        self._searched = 0
        """How much of `_rest` holds no end of a head, so that a head that drips in is not searched anew each time."""
        self._running = False
        self._held = False
        self._draining = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} reading {STATES[self._state]}, active {self.active}, closing {self.closing}>"

    # -- input -------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        if self._state == DEAD or not data:
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        self._running = True
        try:
            self._run(data)
        except Breach as breach:
            self.breach = breach
            self._on_breach(breach)
        finally:
            if self._rest or self._held or self.reading_held or self.write_blocked:
                self._update_held()
            self._running = False

    def _resume(self) -> None:
        """Go on with what had to wait; for a call that comes from the shell, not from within `receive`."""
        rest, self._rest = self._rest, b""
        self.receive(rest)
        self._wake()

    @abstractmethod
    def _run(self, data: bytes) -> None: ...

    @abstractmethod
    def _on_breach(self, breach: Breach) -> None: ...

    @abstractmethod
    def message_sent(self, stream: Http1Stream) -> None:
        """`stream` has sent its whole message."""

    def fail(self) -> None:
        """The current exchange, and so the connection, ends by our own will; its sink hears nothing."""
        stream = self._stream
        self._die()
        if stream is not None:
            stream.over = True
        self._changed()

    def _deliver(self, data: bytes | memoryview) -> None:
        stream = self._stream
        if stream is not None:
            stream.sink.data(data)

    def _await_head(self, data: bytes, start: int) -> None:
        """The head beginning at `start` is not whole. Raises Breach if it can come to no good."""
        size = len(data) - start
        first_line = data.find(b"\r\n", start)
        if (first_line - start if first_line >= 0 else size) > START_LINE_MAX_BYTES:
            raise Breach(414, "start line too long")
        if size >= HEAD_MAX_BYTES:
            raise Breach(431, "head too long")
        new = start + self._searched
        if data[new] == 0x0A and new > start:
            new -= 1  # its CR was looked at before
        if bare_line_feed(data, new):
            raise Breach(400, "bare LF")  # a head whose lines all end so would be waited for in vain
        if data[start] not in TCHAR:
            raise Breach(400, "no HTTP")
        self._rest = data[start:]
        self._searched = max(size - 3, 0)

    # -- output ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.out.append(data)
        if not self._running and len(self.out) == 1:
            self._wake()

    def wrote(self) -> None:
        if not self._running:
            self._wake()

    def _changed(self) -> None:
        """`closing`, `half_close` or `abort` may have changed."""
        if not self._running:
            self._wake()

    def set_write_blocked(self, blocked: bool) -> None:
        self.write_blocked = blocked
        stream = self._stream
        if not blocked and stream is not None and stream.blocked and not stream.over:
            stream.blocked = False
            stream.sink.writable()
        self._update_held()

    # -- brakes ------------------------------------------------------------------------------------------------------

    def set_held(self, held: bool) -> None:
        self._held = held
        if not self._running:
            self._update_held()

    def _must_wait(self) -> bool:
        """Whether what comes next is not to be read yet, though no sink holds."""
        return self._state == WAIT and bool(self._rest)

    def _update_held(self) -> None:
        held = self._state != DEAD and (self._held or self._must_wait())
        if held != self.reading_held:
            self.reading_held = held
            self._changed()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _die(self) -> None:
        """Nothing more is read, no exchange follows."""
        self.unread = self.unread or self._state in (BY_LENGTH, CHUNKED) or bool(self._rest)
        self._state = DEAD
        self._stream = None
        self._rest = b""
        self._held = self.reading_held = False
        self.active = 0
        self.closing = True

    def _reset_stream(self, reason: str, *, unprocessed: bool = False) -> None:
        """The connection is over for `reason`, and with it the exchange, if there is one."""
        stream = self._stream
        self._die()
        if stream is not None and not stream.over:
            stream.over = True
            stream.sink.was_reset(reason, unprocessed=unprocessed)

    def _raw_ended(self) -> None:
        """The peer has ended its direction of raw bytes."""
        stream = self._stream
        assert stream is not None
        self._state = WAIT
        if stream.sent:
            self._finish_raw(stream)
        stream.sink.ended([])

    def _raw_sent(self, stream: Http1Stream) -> None:
        """We have ended ours."""
        if self._state == WAIT:
            self._finish_raw(stream)
        else:
            self.half_close = True
        self._changed()

    def _finish_raw(self, stream: Http1Stream) -> None:
        stream.over = True
        self._die()
