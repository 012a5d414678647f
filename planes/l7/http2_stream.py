"""One exchange on an HTTP/2 connection, either role: what `codec.ServerStream` and `codec.ClientStream` promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from planes.l7 import codec
from planes.l7.http2_head import listed_response
from planes.l7.message import Fields, Request, Response
from planes.mesh import frames
from planes.mesh.hbone_stream import Limits, Stream
from testbed.errors import Bug

_CODES = {name: code for code, name in enumerate(frames.ERROR_NAMES) if code != frames.NO_ERROR}


class Carrier(Protocol):
    """What streams need of their connection."""

    out: list[bytes | memoryview]
    limits: Limits
    streams: dict[int, L7Stream]
    peer_initial_window: int
    client: bool
    write_blocked: bool
    encode: Callable[[Fields], bytes]

    def stir(self) -> None:
        """Called just before `out` grows from nothing."""
        ...

    def send(self, stream: Stream, data: bytes | memoryview) -> bool: ...
    def end(self, stream: Stream) -> None: ...
    def reset(self, stream: Stream, code: int = ...) -> None: ...
    def write_head(self, stream: L7Stream, block: bytes, *, end: bool) -> None: ...
    def answered_one(self) -> None: ...
    def credit(self, stream: L7Stream, size: int) -> None: ...
    def retire(self) -> None:
        """Called whenever a stream has gone."""
        ...


class L7Stream(Stream):
    __slots__ = ("connection", "expected", "held", "tail", "trailers", "tunnel", "waits", "window", "withheld")

    sink: codec.Sink
    connection: Carrier

    def __init__(self, connection: Carrier, number: int) -> None:
        window = connection.limits.stream_window_bytes
        Stream.__init__(self, number, connection.peer_initial_window, window)  # cheaper than `super()`, once a request
        self.connection = connection
        self.window = window
        """What the peer may have under way; grows with a sink that keeps up."""
        self.expected: int | None = None
        """Bytes of body that content-length still announces."""
        self.held = False
        self.withheld = 0
        """Bytes received while held, for which the peer gets no window yet."""
        self.waits = False
        """Our sender was told to stop, and hears `writable`."""
        self.trailers: Fields | None = None
        self.tail: bytes | None = None
        """The header of our last DATA frame: END_STREAM goes in there if it is still in the output."""
        self.tunnel = False
        """CONNECT, or an upgrade: neither direction's end says anything about the other's."""

    def send_data(self, data: bytes | memoryview) -> bool:
        connection = self.connection
        if self.sent_end or not data:  # sent_end: reset meanwhile, and whoever sends has yet to notice
            return True
        out = connection.out
        if not out:
            connection.stir()
        if connection.send(self, data):
            self.tail = out[-2]  # type: ignore[assignment]
            if not connection.write_blocked:
                return True
        self.waits = True
        return False

    def end(self, trailers: Fields | None = None) -> None:
        connection = self.connection
        if self.sent_end or self.pending_end:
            return
        self.trailers = trailers
        if not connection.out:
            connection.stir()
        connection.end(self)

    def reset(self, reason: str = "") -> None:
        """A reason that is the name of an HTTP/2 error goes out as that, so that it may cross a proxy."""
        connection = self.connection
        if self.id not in connection.streams:
            return
        connection.stir()
        connection.reset(self, _CODES.get(reason, frames.CANCEL if connection.client else frames.INTERNAL_ERROR))
        self.received_end = True
        self.takes_data = False
        connection.retire()

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        if self.held:
            self.held = False
            size, self.withheld = self.withheld, 0
            if size:
                self.connection.credit(self, size)


class L7ServerStream(L7Stream):
    __slots__ = ("upgraded",)

    def __init__(self, connection: Carrier, number: int, request: Request) -> None:
        L7Stream.__init__(self, connection, number)
        self.upgraded = bool(request.upgrade)
        self.tunnel = self.upgraded or request.method == b"CONNECT"
        self.received_end = not request.has_body
        self.takes_data = request.has_body
        self.expected = request.content_length

    def send_head(self, response: Response) -> None:
        connection = self.connection
        if self.sent_end:
            return
        if self.answered:
            raise Bug(f"send_head() on {self!r}, which has its final head")
        status = response.status
        if not connection.out:
            connection.stir()
        if status == 101 and not self.upgraded:
            raise Bug(f"send_head(101) on {self!r}, which asked for no upgrade")
        final = status >= 200 or status == 101
        end = final and not response.has_body and not (self.tunnel and status < 300)
        if final:
            self.answered = True
            connection.answered_one()
            if status >= 300:
                self.tunnel = False
        block = connection.encode(listed_response(response, upgraded=self.upgraded))
        connection.write_head(self, block, end=end)


class L7ClientStream(L7Stream):
    __slots__ = ("bodiless", "silent", "upgrade")

    sink: codec.ResponseSink

    def __init__(self, connection: Carrier, number: int, request: Request, sink: codec.ResponseSink) -> None:
        L7Stream.__init__(self, connection, number)
        self.sink = sink
        self.upgrade = request.upgrade
        self.tunnel = bool(request.upgrade) or request.method == b"CONNECT"
        self.bodiless = request.method == b"HEAD"
        self.silent = False
        """The response ended with its head whatever frames follow: no `ended` for it."""
