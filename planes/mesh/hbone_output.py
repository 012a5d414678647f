"""The sending half of an HBONE connection: opening, answering, DATA within the peer's windows, PING and GOAWAY.

Everything is appended to `out`; whoever holds the connection writes it. What no window allows stays in its stream.
"""

from __future__ import annotations

from collections.abc import Iterable

from planes.mesh import frames
from planes.mesh.frames import DATA, END_STREAM, HEADER
from planes.mesh.hbone_stream import CLIENT_LIMITS, SERVER_LIMITS, Limits, Sink, Stream
from testbed.errors import Bug

_REMEMBERED_RESETS = 1_000


class Output:
    # Slots from here down to every role: a connection has more fields than CPython's instances share a dictionary for
    # (30), and each call of a method then looks into it first.
    __slots__ = (
        "_blocked", "_early_resets", "_forgotten", "_half_connection", "_half_stream", "_last_peer_stream",
        "_next_stream", "_refuse_above", "client", "failed", "goaway_received", "goaway_sent", "limits", "out",
        "peer_initial_window", "peer_max_frame", "peer_max_streams", "receive_window", "send_window", "streams",
        "unreleased",
    )  # fmt: skip

    def __init__(self, *, client: bool, limits: Limits | None) -> None:
        self.client = client
        self.limits = limits or (CLIENT_LIMITS if client else SERVER_LIMITS)
        self.streams: dict[int, Stream] = {}
        self.out: list[bytes | memoryview] = []
        """Encoded output not yet taken. A shell may test its truth; it takes it with `take_output`."""
        self.send_window = frames.DEFAULT_WINDOW
        self.receive_window = self.limits.connection_window_bytes
        self.unreleased = 0
        self.peer_initial_window = frames.DEFAULT_WINDOW
        self.peer_max_frame = frames.DEFAULT_FRAME_SIZE
        self.peer_max_streams: int | None = None
        self.goaway_received = False
        self.goaway_sent = False
        self.failed = False
        self._last_peer_stream = 0
        self._refuse_above: int | None = None
        self._next_stream = 1
        self._early_resets = 0
        self._forgotten: dict[int, None] = {}
        self._blocked: dict[int, Stream] = {}
        self._half_stream = self.limits.stream_window_bytes // 2
        self._half_connection = self.limits.connection_window_bytes // 2
        self._start()

    def __repr__(self) -> str:
        role = "client" if self.client else "server"
        state = "failed" if self.failed else "draining" if self.goaway_sent or self.goaway_received else "open"
        return f"<{type(self).__name__} {role} {state} streams {len(self.streams)}>"

    def _start(self) -> None:
        limits = self.limits
        values = [
            (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
            (frames.MAX_FRAME_SIZE, limits.max_frame_bytes),
            (frames.MAX_HEADER_LIST_SIZE, limits.max_header_list_bytes),
        ]
        if self.client:
            self.out.append(frames.PREFACE)
            values.insert(0, (frames.ENABLE_PUSH, 0))
        if limits.max_concurrent_streams is not None:
            values.append((frames.MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams))
        if limits.extended_connect:
            values.append((frames.ENABLE_CONNECT_PROTOCOL, 1))
        self.out.append(frames.settings(values))
        more = limits.connection_window_bytes - frames.DEFAULT_WINDOW
        if more > 0:
            self.out.append(frames.window_update(0, more))

    def take_output(self) -> bytes:
        out = self.out
        if not out:
            return b""
        data = b"".join(out) if len(out) > 1 else bytes(out[0])
        out.clear()
        return data

    @property
    def can_open(self) -> bool:
        ending = self.failed or self.goaway_received or self.goaway_sent
        return not ending and self._next_stream < frames.MAX_STREAM_ID - 1

    def open(self, fields: Iterable[tuple[bytes, bytes]] | bytes, *, sink: Sink | None = None) -> Stream:
        """A new tunnel; `fields` in order, pseudo-header fields first, or a block made by `frames.encode_fields`."""
        if not self.client or not self.can_open:
            raise Bug(f"open() on {self!r}")
        stream = Stream(self._next_stream, self.peer_initial_window, self.limits.stream_window_bytes)
        stream.sink = sink
        self._next_stream += 2
        self.streams[stream.id] = stream
        block = fields if isinstance(fields, bytes) else frames.encode_fields(fields)
        self.out.append(frames.headers(stream.id, block, end=False, max_frame_size=self.peer_max_frame))
        return stream

    def respond(
        self, stream: Stream, status: int, fields: Iterable[tuple[bytes, bytes]] = (), *, end: bool = False
    ) -> None:
        if self.client or stream.answered:
            raise Bug(f"respond() on {stream!r} of {self!r}")
        if stream.id not in self.streams:
            return
        stream.answered = True
        if self._early_resets:
            self._early_resets -= 1
        block = frames.encode_fields(((b":status", str(status).encode()), *fields))
        self.out.append(frames.headers(stream.id, block, end=end, max_frame_size=self.peer_max_frame))
        if end:
            stream.sent_end = True
            self._maybe_done(stream)

    def send(self, stream: Stream, data: bytes | memoryview) -> bool:
        """False: some of it waits for window (it is kept); stop until the sink's `writable`."""
        size = len(data)
        if size <= stream.send_window and size <= self.send_window and size <= self.peer_max_frame and (
            not stream.pending
        ):
            stream.send_window -= size
            self.send_window -= size
            out = self.out
            out.append(HEADER.pack(size >> 8, size & 0xFF, DATA, 0, stream.id))
            out.append(data)
            return True
        if stream.sent_end or stream.pending_end:
            raise Bug(f"send() after end on {stream!r}")
        stream.pending.append(data)
        stream.pending_bytes += size
        return self._push(stream)

    def head(self, stream: Stream, size: int) -> bytes | None:
        """The header of a DATA frame that the shell writes itself, after `out`; None where only `send` can do it."""
        if size > stream.send_window or size > self.send_window or size > self.peer_max_frame or stream.pending:
            return None
        stream.send_window -= size
        self.send_window -= size
        return HEADER.pack(size >> 8, size & 0xFF, DATA, 0, stream.id)

    def end(self, stream: Stream) -> None:
        """Half-close: no more from us on this stream. What is pending goes first."""
        if stream.sent_end or stream.pending_end or stream.id not in self.streams:
            return
        if stream.pending:
            stream.pending_end = True
            return
        self._send_end(stream)

    def reset(self, stream: Stream, code: int = frames.CANCEL) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        self._blocked.pop(stream.id, None)
        stream.pending.clear()
        stream.pending_end = False
        stream.sent_end = True
        self._remember(stream.id)
        self.out.append(frames.rst_stream(stream.id, code))

    def release(self, stream: Stream, size: int) -> None:
        """`size` received bytes have been consumed: give their window back, in halves of it so as not to chatter."""
        stream.unreleased += size
        if stream.unreleased >= self._half_stream and not stream.received_end and stream.id in self.streams:
            stream.receive_window += stream.unreleased
            self.out.append(frames.window_update(stream.id, stream.unreleased))
            stream.unreleased = 0
        self._release_connection(size)

    def ping(self, payload: bytes) -> None:
        self.out.append(frames.frame(frames.PING, 0, 0, payload))

    def goaway(self, code: int = frames.NO_ERROR, *, graceful: bool = False) -> None:
        """Graceful promises to take everything (2^31-1), so requests in flight land; call again to refuse the rest."""
        if self.failed:
            return
        last = frames.MAX_STREAM_ID if graceful else self._last_peer_stream
        self.goaway_sent = True
        if not graceful:
            self._refuse_above = last
        self.out.append(frames.goaway(last, code))

    def _push(self, stream: Stream) -> bool:
        """Send of `pending` what the windows allow. True when nothing is left."""
        pending = stream.pending
        while pending:
            room = min(stream.send_window, self.send_window)
            if room <= 0:
                self._blocked[stream.id] = stream
                return False
            data = pending[0]
            size = min(len(data), room, self.peer_max_frame)
            if size < len(data):
                view = memoryview(data)
                pending[0] = view[size:]
                data = view[:size]
            else:
                pending.pop(0)
            stream.send_window -= size
            self.send_window -= size
            stream.pending_bytes -= size
            self.out.append(HEADER.pack(size >> 8, size & 0xFF, DATA, 0, stream.id))
            self.out.append(data)
        self._blocked.pop(stream.id, None)
        if stream.pending_end:
            stream.pending_end = False
            self._send_end(stream)
        return True

    def _send_end(self, stream: Stream) -> None:
        self.out.append(HEADER.pack(0, 0, DATA, END_STREAM, stream.id))
        stream.sent_end = True
        self._maybe_done(stream)

    def _maybe_done(self, stream: Stream) -> None:
        if stream.sent_end and stream.received_end:
            self.streams.pop(stream.id, None)
            self._blocked.pop(stream.id, None)

    def _remember(self, number: int) -> None:
        """Frames of a stream we reset may still be on their way and are no breach."""
        self._forgotten[number] = None
        if len(self._forgotten) > _REMEMBERED_RESETS:
            del self._forgotten[next(iter(self._forgotten))]

    def _release_connection(self, size: int) -> None:
        self.unreleased += size
        if self.unreleased >= self._half_connection:
            self.receive_window += self.unreleased
            self.out.append(frames.window_update(0, self.unreleased))
            self.unreleased = 0
