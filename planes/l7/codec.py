"""What `http1` and `http2` look like to an exchange: codecs without I/O, one stream object per exchange and side.

Bytes go in by `receive`, messages come out by calls on a sink (no event objects on the hot path: a body's bytes cost
one call), bytes to be written gather in `out`, which the shell writes at the end of the turn of its event loop. Codecs
are made with `wake`, which they call when `out`, `closing` or `reading_held` changed outside of `receive`.

A codec never blocks and never buffers a body. Back-pressure is told both ways: `send_data` answers False when its peer
(the connection's window, or `write_blocked` set by the shell) takes no more, and calls `sink.writable()` later; a sink
that cannot take more says `stream.hold()`, and `stream.release()` when it can again: HTTP/1 then asks the shell to
pause reading (`reading_held`), HTTP/2 withholds WINDOW_UPDATE.
"""

from __future__ import annotations

from typing import Protocol

from planes.l7.message import Fields, Request, Response


class Breach(Exception):
    """The peer broke the protocol. `status` is what a server answers (400, 413, 414, 417, 426, 431, 501, 505), if it
    still can; the text says what was wrong."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Stream(Protocol):
    """One exchange on one connection, either role; its sending half, and the brakes of its receiving half."""

    sink: Sink
    """Set by whoever serves the stream, before the call that made it known returns."""

    def send_data(self, data: bytes | memoryview) -> bool:
        """Queue body bytes. False: taken, but send no more until `sink.writable()`."""
        ...

    def end(self, trailers: Fields | None = None) -> None:
        """The message is whole. Trailers a version cannot carry (HTTP/1.0, or a body with a length) are dropped."""
        ...

    def reset(self, reason: str = "") -> None:
        """Give up: RST_STREAM (CANCEL), or the end of the connection where the version has no other way."""
        ...

    def hold(self) -> None: ...
    def release(self) -> None: ...


class ServerStream(Stream, Protocol):
    def send_head(self, response: Response) -> None:
        """An interim one (100, 103) or the final. With `has_body` False it ends the message."""
        ...


class ClientStream(Stream, Protocol): ...


class Sink(Protocol):
    """Who takes what arrives on a stream. All calls come from inside the codec's `receive` or the shell's turn."""

    def data(self, data: bytes | memoryview) -> None: ...
    def ended(self, trailers: Fields) -> None:
        """The message is whole; not called for one that ended with its head."""
        ...

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        """The stream is gone before its end: reset, connection lost, or the peer's breach.

        `unprocessed`: the peer surely did nothing with it (REFUSED_STREAM, GOAWAY below it, a kept-alive connection
        closed before a byte of response), so it may be sent again.
        """
        ...

    def writable(self) -> None: ...


class ResponseSink(Sink, Protocol):
    def interim(self, response: Response) -> None: ...
    def head(self, response: Response) -> None: ...


class Codec(Protocol):
    """One connection."""

    out: list[bytes]
    write_blocked: bool
    """Set by the shell from pause_writing/resume_writing through `set_write_blocked`."""
    reading_held: bool
    """HTTP/1 only: the shell should pause reading."""
    closing: bool
    """Close the transport once `out` is written: no further exchange can come on it. Until it is set, the transport
    stays open even after `receive_eof`."""
    abort: bool
    """With `closing`: by RST instead. HTTP/1: a FIN would pass for the proper end of what was being sent;
    HTTP/2: the peer broke the protocol and takes nothing."""
    half_close: bool
    """HTTP/1 only, after a 101 or CONNECT: write EOF once `out` is written, go on reading. A transport that cannot
    (TLS) is left open till `closing`."""
    unread: bool
    """HTTP/1 only, with `closing`: the peer may still be sending. A server's shell reads on for a while, lest a RST
    overtake the answer."""
    active: int
    """Exchanges that are not over."""

    def receive(self, data: bytes) -> None:
        """Never raises for what a peer does: a server answers and sets `closing`, a client resets its streams."""
        ...

    def receive_eof(self) -> None: ...
    def lost(self, reason: str) -> None:
        """The transport is gone: every stream hears `was_reset`."""
        ...

    def set_write_blocked(self, blocked: bool) -> None: ...
    def drain(self) -> None:
        """No new exchanges: GOAWAY, or `connection: close` with the next response."""
        ...


class ServerCodec(Codec, Protocol):
    """Made with `on_request(stream, request)`, called per head; the callee sets `stream.sink`.

    HTTP/1 calls for the next request of a pipeline only when the one before has been answered in full, so order needs
    no care elsewhere.
    """


class ClientCodec(Codec, Protocol):
    usable: bool
    """Whether `open` may be called now: HTTP/1 when idle, HTTP/2 below the peer's stream limit and before GOAWAY."""

    def open(self, request: Request, sink: ResponseSink) -> ClientStream:
        """Writes the head (and END_STREAM if `has_body` is False)."""
        ...
