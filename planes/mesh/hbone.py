"""HBONE as a pure state machine: CONNECT streams over one HTTP/2 connection, either role.

Holds no socket and no clock: give it bytes, take events and `take_output()`. TLS is a layer below (`tls`), choosing a
peer a layer above (`route`, `pool`). Source: RFC 9113 (§8.5 for CONNECT), facts/hbone 1.3-1.9. Two things differ from a
textbook codec, both for speed: DATA is handed on in pieces as it arrives, never gathered to whole frames; and a stream
with a `sink` gets its bytes by a direct call instead of an event.
Compression is hpack's on receipt, table-free on sending.

A peer's breach ends the connection with a `ConnectionFailed` event and a queued GOAWAY, or one stream with RST_STREAM;
our own misuse raises `testbed.errors.Bug`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from planes.mesh import frames
from planes.mesh.frames import DATA, END_STREAM, HEADER, HEADER_SIZE, PADDED
from planes.mesh.headers import HeaderReader, MalformedRequest, MalformedResponse, check_request, check_response
from testbed.errors import Bug

Fields = list[tuple[bytes, bytes]]
CONTROL_FRAMES_LIMIT = 10_000
"""Control frames in a row, without DATA or HEADERS, after which the peer is told to calm down (CVE-2019-9512, kin)."""
EARLY_RESETS_LIMIT = 1_000
"""Streams a client may open and reset before the server has answered them (CVE-2023-44487, "rapid reset")."""
_MAX_BLOCK = 128 * 1024
_REMEMBERED_RESETS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What we advertise; the defaults are ztunnel's (facts/hbone 1.6)."""

    stream_window_bytes: int = 4 << 20
    connection_window_bytes: int = 16 << 20
    max_frame_bytes: int = 1 << 20
    max_concurrent_streams: int | None = None
    max_header_list_bytes: int = 16 << 10


CLIENT_LIMITS = Limits()
SERVER_LIMITS = Limits(max_concurrent_streams=200, max_header_list_bytes=64 << 10)


class Sink(Protocol):
    """Where a stream's bytes go without the detour over events."""

    def received(self, data: bytes | memoryview) -> bool:
        """False keeps the bytes charged against the stream's window until `HboneConnection.release`."""
        ...

    def ended(self) -> None: ...
    def was_reset(self, code: int) -> None: ...
    def writable(self) -> None:
        """What was queued for want of window has gone out."""
        ...


class Stream:
    """One CONNECT tunnel of a connection; made by `open` or by the peer."""

    __slots__ = (
        "answered", "id", "pending", "pending_bytes", "pending_end", "receive_window", "received_end", "send_window",
        "sent_end", "sink", "takes_data", "unreleased",
    )  # fmt: skip

    def __init__(self, number: int, send_window: int, receive_window: int) -> None:
        self.id = number
        self.sink: Sink | None = None
        self.send_window = send_window
        self.receive_window = receive_window
        self.unreleased = 0
        """Consumed bytes whose window has not been given back yet."""
        self.pending: list[bytes | memoryview] = []
        self.pending_bytes = 0
        self.pending_end = False
        self.sent_end = False
        self.received_end = False
        self.answered = False
        """Final response headers have passed (either role)."""
        self.takes_data = False
        """DATA from the peer is legal now: after the request (server) or the final response (client), until its end."""

    def __repr__(self) -> str:
        ours = "closed" if self.sent_end else "open"
        theirs = "closed" if self.received_end else "open"
        return f"<Stream {self.id} ours {ours} theirs {theirs} pending {self.pending_bytes}>"


@dataclass(frozen=True, slots=True)
class RequestReceived:
    stream: Stream
    fields: Fields
    ended: bool


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    stream: Stream
    status: int
    fields: Fields
    ended: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    stream: Stream
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class StreamEnded:
    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamReset:
    stream: Stream
    code: int


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    max_concurrent_streams: int | None


@dataclass(frozen=True, slots=True)
class PingAnswered:
    payload: bytes


@dataclass(frozen=True, slots=True)
class GoawayReceived:
    last_stream: int
    code: int


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The peer broke the protocol; GOAWAY is in the output, write it and close."""

    code: int
    text: str


Event = (
    RequestReceived | ResponseReceived | DataReceived | StreamEnded | StreamReset | SettingsReceived | PingAnswered
    | GoawayReceived | ConnectionFailed
)  # fmt: skip


class _Breach(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class HboneConnection:
    def __init__(self, *, client: bool, limits: Limits | None = None) -> None:
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
        self.settings_received = False
        self.goaway_received = False
        self.goaway_sent = False
        self.failed = False
        self._last_peer_stream = 0
        self._refuse_above: int | None = None
        self._next_stream = 1
        self._buffer = bytearray()
        self._need = HEADER_SIZE if client else len(frames.PREFACE)
        self._preface_due = not client
        self._settings_due = True
        self._body_left = 0
        self._body_stream: Stream | None = None
        self._body_ends = False
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = False
        self._reader = HeaderReader(self.limits.max_header_list_bytes)
        self._forgotten: dict[int, None] = {}
        self._blocked: dict[int, Stream] = {}
        self._half_stream = self.limits.stream_window_bytes // 2
        self._half_connection = self.limits.connection_window_bytes // 2
        self._controls_in_a_row = 0
        self._early_resets = 0
        self._start()

    def __repr__(self) -> str:
        role = "client" if self.client else "server"
        state = "failed" if self.failed else "draining" if self.goaway_sent or self.goaway_received else "open"
        return f"<HboneConnection {role} {state} streams {len(self.streams)}>"

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
        self.out.append(frames.settings(values))
        more = limits.connection_window_bytes - frames.DEFAULT_WINDOW
        if more > 0:
            self.out.append(frames.window_update(0, more))

    # -- output ----------------------------------------------------------------------------------------------------

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

    # -- input -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Events of `data` in order; DATA of streams with a sink goes there at once."""
        events: list[Event] = []
        if self.failed:
            return events
        try:
            self._parse(data, events)
        except _Breach as breach:
            self.failed = True
            self.out.append(frames.goaway(self._last_peer_stream, breach.code, str(breach)))
            events.append(ConnectionFailed(breach.code, str(breach)))
        return events

    def _parse(self, data: bytes, events: list[Event]) -> None:
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        pos, size = 0, len(data)
        if self._preface_due:
            head = data[: len(frames.PREFACE)]
            if not frames.PREFACE.startswith(head):
                raise _Breach(frames.PROTOCOL_ERROR, "not an HTTP/2 preface")
            if size < len(frames.PREFACE):
                self._keep(data, len(frames.PREFACE))
                return
            self._preface_due = False
            pos = len(frames.PREFACE)
        if self._body_left:
            pos = self._continue_body(data, events)
        streams = self.streams
        unpack = HEADER.unpack_from
        while size - pos >= HEADER_SIZE:
            high, low, kind, flags, number = unpack(data, pos)
            length = high << 8 | low
            number &= 0x7FFFFFFF
            start = pos + HEADER_SIZE
            pos = start + length
            if kind == DATA and not flags & PADDED and self._block is None:
                stream = streams.get(number)
                if stream is not None and stream.takes_data and length <= self.limits.max_frame_bytes:
                    self._controls_in_a_row = 0
                    stream.receive_window -= length
                    self.receive_window -= length
                    if stream.receive_window < 0 or self.receive_window < 0:
                        self._window_overrun(stream)
                    if pos > size:
                        self._body_left, self._body_stream = pos - size, stream
                        self._body_ends = bool(flags & END_STREAM)
                        if size > start:
                            self._deliver(stream, memoryview(data)[start:], events)
                        return
                    if length:
                        chunk = data[start:pos] if length < 4096 else memoryview(data)[start:pos]
                        self._deliver(stream, chunk, events)
                    if flags & END_STREAM:
                        self._end_received(stream, events)
                    continue
            self._check_frame(kind, flags, number, length)
            if pos > size:
                if kind > frames.CONTINUATION:  # unknown type: skip it without gathering it
                    self._body_left, self._body_stream, self._body_ends = pos - size, None, False
                    return
                self._keep(data[start - HEADER_SIZE :], HEADER_SIZE + length)
                return
            self._handle(kind, flags, number, data[start:pos], events)
        if pos < size:
            self._keep(data[pos:], HEADER_SIZE)

    def _keep(self, rest: bytes, need: int) -> None:
        self._buffer += rest
        self._need = need

    def _continue_body(self, data: bytes, events: list[Event]) -> int:
        """The rest of a DATA frame whose start was seen earlier; returns where the next frame starts."""
        size = min(self._body_left, len(data))
        self._body_left -= size
        stream = self._body_stream
        if stream is None:
            return size
        if stream.id in self.streams:
            self._deliver(stream, data if size == len(data) else memoryview(data)[:size], events)
        else:
            self._release_connection(size)
        if not self._body_left and self._body_ends and stream.id in self.streams:
            self._end_received(stream, events)
        return size

    def _deliver(self, stream: Stream, data: bytes | memoryview, events: list[Event]) -> None:
        sink = stream.sink
        if sink is None:
            events.append(DataReceived(stream, data))
        elif sink.received(data):
            self.release(stream, len(data))

    def _end_received(self, stream: Stream, events: list[Event]) -> None:
        stream.received_end = True
        stream.takes_data = False
        self._maybe_done(stream)
        if stream.sink is None:
            events.append(StreamEnded(stream))
        else:
            stream.sink.ended()

    def _was_reset(self, stream: Stream, code: int, events: list[Event]) -> None:
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        stream.pending.clear()
        stream.pending_end = False
        stream.sent_end = stream.received_end = True
        stream.takes_data = False
        if stream.sink is None:
            events.append(StreamReset(stream, code))
        else:
            stream.sink.was_reset(code)

    def _window_overrun(self, stream: Stream) -> None:
        where = f"stream {stream.id}" if stream.receive_window < 0 else "the connection"
        raise _Breach(frames.FLOW_CONTROL_ERROR, f"more DATA than the window of {where}")

    def _check_frame(self, kind: int, flags: int, number: int, length: int) -> None:
        """What can be said from a frame's header alone, before its payload is gathered."""
        if length > self.limits.max_frame_bytes:
            raise _Breach(frames.FRAME_SIZE_ERROR, f"frame of {length} bytes, {self.limits.max_frame_bytes} advertised")
        if self._settings_due:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise _Breach(frames.PROTOCOL_ERROR, f"first frame is of type {kind}, not SETTINGS")
            self._settings_due = False
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block_stream):
            raise _Breach(frames.PROTOCOL_ERROR, f"frame type {kind} in header block of stream {self._block_stream}")
        if kind in _NEEDS_STREAM and number == 0:
            raise _Breach(frames.PROTOCOL_ERROR, f"frame of type {kind} on stream 0")
        if kind in _NEEDS_CONNECTION and number != 0:
            raise _Breach(frames.PROTOCOL_ERROR, f"frame of type {kind} on stream {number}")
        fixed = _FIXED_LENGTH.get(kind)
        if fixed is not None and length != fixed:
            raise _Breach(frames.FRAME_SIZE_ERROR, f"frame of type {kind} with {length} bytes, {fixed} wanted")
        if kind == frames.SETTINGS and (length % 6 or (flags & frames.ACK and length)):
            raise _Breach(frames.FRAME_SIZE_ERROR, f"SETTINGS of {length} bytes")
        if kind == frames.GOAWAY and length < 8:
            raise _Breach(frames.FRAME_SIZE_ERROR, f"GOAWAY of {length} bytes")
        if kind in (frames.HEADERS, frames.CONTINUATION) and length + len(self._block or b"") > _MAX_BLOCK:
            raise _Breach(frames.ENHANCE_YOUR_CALM, "header block is too big")
        if kind == frames.PUSH_PROMISE:
            raise _Breach(frames.PROTOCOL_ERROR, "PUSH_PROMISE though push is off")

    def _handle(self, kind: int, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if kind in (DATA, frames.HEADERS):
            self._controls_in_a_row = 0
        else:
            self._controls_in_a_row += 1
            if self._controls_in_a_row > CONTROL_FRAMES_LIMIT:
                raise _Breach(frames.ENHANCE_YOUR_CALM, "too many control frames")
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, flags, number, payload, events)

    def _on_data(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        """The rare DATA: padded, or for a stream that is not open."""
        stream = self.streams.get(number)
        size = len(payload)
        self.receive_window -= size
        if self.receive_window < 0:
            raise _Breach(frames.FLOW_CONTROL_ERROR, "more DATA than the window of the connection")
        body = _unpad(payload) if flags & PADDED else payload
        if stream is None or not stream.takes_data:
            self._release_connection(size)
            if stream is None and self._is_idle(number):
                raise _Breach(frames.PROTOCOL_ERROR, f"DATA on idle stream {number}")
            if number not in self._forgotten:
                early = stream is not None and not stream.received_end
                self._fail_stream(number, frames.PROTOCOL_ERROR if early else frames.STREAM_CLOSED, events)
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            self._window_overrun(stream)
        self.release(stream, size - len(body))
        if body:
            self._deliver(stream, body, events)
        if flags & END_STREAM:
            self._end_received(stream, events)

    def _on_headers(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        block = _unpad(payload) if flags & PADDED else payload
        if flags & frames.PRIORITY_FLAG:
            if len(block) < 5:
                raise _Breach(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            block = block[5:]
        self._block_stream, self._block_ends = number, bool(flags & END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(number, block, events)
        else:
            self._block = bytearray(block)

    def _on_continuation(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if self._block is None:
            raise _Breach(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(number, block, events)

    def _on_block(self, number: int, block: bytes, events: list[Event]) -> None:
        # Every block is decoded, also one that is then ignored: the table is shared by all streams.
        try:
            fields = self._reader.decode(block)
        except OverflowError as cause:
            raise _Breach(frames.ENHANCE_YOUR_CALM, "header list is too big") from cause
        except ValueError as cause:
            raise _Breach(frames.COMPRESSION_ERROR, "header block cannot be decoded") from cause
        stream = self.streams.get(number)
        if stream is not None:
            self._on_stream_fields(stream, fields, events)
        elif self.client:
            if self._is_idle(number):
                raise _Breach(frames.PROTOCOL_ERROR, f"HEADERS on idle stream {number}")
        elif number > self._last_peer_stream:
            self._on_request(number, fields, events)
        elif number not in self._forgotten:
            raise _Breach(frames.STREAM_CLOSED, f"HEADERS on closed stream {number}")

    def _on_request(self, number: int, fields: Fields, events: list[Event]) -> None:
        if number % 2 == 0:
            raise _Breach(frames.PROTOCOL_ERROR, f"request on even stream {number}")
        self._last_peer_stream = number
        limit = self.limits.max_concurrent_streams
        refused = self._refuse_above is not None and number > self._refuse_above
        if refused or (limit is not None and len(self.streams) >= limit):
            self._remember(number)
            self.out.append(frames.rst_stream(number, frames.REFUSED_STREAM))
            return
        try:
            check_request(fields)
        except MalformedRequest:
            self._remember(number)
            self.out.append(frames.rst_stream(number, frames.PROTOCOL_ERROR))
            return
        stream = Stream(number, self.peer_initial_window, self.limits.stream_window_bytes)
        stream.received_end = self._block_ends
        stream.takes_data = not self._block_ends
        self.streams[number] = stream
        events.append(RequestReceived(stream, fields, self._block_ends))

    def _on_stream_fields(self, stream: Stream, fields: Fields, events: list[Event]) -> None:
        if stream.received_end:
            self._fail_stream(stream.id, frames.STREAM_CLOSED, events)
            return
        if self.client and not stream.answered:
            try:
                status = check_response(fields)
            except MalformedResponse:
                self._fail_stream(stream.id, frames.PROTOCOL_ERROR, events)
                return
            if 100 <= status < 200:
                if self._block_ends:
                    self._fail_stream(stream.id, frames.PROTOCOL_ERROR, events)
                return
            stream.answered = True
            stream.received_end = self._block_ends
            stream.takes_data = not self._block_ends
            events.append(ResponseReceived(stream, status, fields, self._block_ends))
            self._maybe_done(stream)
            return
        if not self._block_ends or any(name.startswith(b":") for name, _ in fields):
            self._fail_stream(stream.id, frames.PROTOCOL_ERROR, events)
            return
        self._end_received(stream, events)

    def _fail_stream(self, number: int, code: int, events: list[Event]) -> None:
        self.out.append(frames.rst_stream(number, code))
        self._remember(number)
        stream = self.streams.get(number)
        if stream is not None:
            self._was_reset(stream, code, events)

    def _is_idle(self, number: int) -> bool:
        if number % 2 == 0:
            return True
        return number >= self._next_stream if self.client else number > self._last_peer_stream

    def _on_reset(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise _Breach(frames.PROTOCOL_ERROR, f"RST_STREAM on idle stream {number}")
            return
        if not self.client and not stream.answered:
            self._early_resets += 1
            if self._early_resets > EARLY_RESETS_LIMIT:
                raise _Breach(frames.ENHANCE_YOUR_CALM, "too many streams reset before they were answered")
        self._was_reset(stream, frames.u32(payload), events)

    def _on_settings(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if flags & frames.ACK:
            return
        for key, value in frames.parse_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise _Breach(frames.FLOW_CONTROL_ERROR, f"initial window of {value}")
                self._move_windows(value - self.peer_initial_window)
                self.peer_initial_window = value
            elif key == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= 0xFFFFFF:
                    raise _Breach(frames.PROTOCOL_ERROR, f"maximum frame size of {value}")
                self.peer_max_frame = value
            elif key == frames.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            elif key == frames.ENABLE_PUSH and value > 1:
                raise _Breach(frames.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.settings_received = True
        events.append(SettingsReceived(self.peer_max_streams))
        self._unblock()

    def _move_windows(self, by: int) -> None:
        for stream in self.streams.values():
            stream.send_window += by
            if stream.send_window > frames.MAX_WINDOW:
                raise _Breach(frames.FLOW_CONTROL_ERROR, f"window of stream {stream.id} overflows")

    def _on_ping(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if flags & frames.ACK:
            events.append(PingAnswered(payload))
        else:
            self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_goaway(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        last, code = frames.u32(payload) & 0x7FFFFFFF, frames.u32(payload, 4)
        self.goaway_received = True
        events.append(GoawayReceived(last, code))
        if self.client:
            for stream in [s for s in self.streams.values() if s.id > last]:
                self._was_reset(stream, frames.REFUSED_STREAM, events)

    def _on_window_update(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        increment = frames.u32(payload) & 0x7FFFFFFF
        if number == 0:
            if increment == 0:
                raise _Breach(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self.send_window += increment
            if self.send_window > frames.MAX_WINDOW:
                raise _Breach(frames.FLOW_CONTROL_ERROR, "window of the connection overflows")
            self._unblock()
            return
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise _Breach(frames.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {number}")
            return
        stream.send_window += increment
        if increment == 0 or stream.send_window > frames.MAX_WINDOW:
            self._fail_stream(number, frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR, events)
        elif stream.pending:
            self._unblock_one(stream)

    def _unblock(self) -> None:
        for stream in list(self._blocked.values()):
            if self.send_window <= 0:
                return
            self._unblock_one(stream)

    def _unblock_one(self, stream: Stream) -> None:
        if self._push(stream) and stream.sink is not None:
            stream.sink.writable()
        elif stream.id in self._blocked:  # to the back of the queue: the connection's window is shared fairly
            self._blocked[stream.id] = self._blocked.pop(stream.id)


def _unpad(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _Breach(frames.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


_NEEDS_STREAM = frozenset((DATA, frames.HEADERS, frames.PRIORITY, frames.RST_STREAM, frames.CONTINUATION))
_NEEDS_CONNECTION = frozenset((frames.SETTINGS, frames.PING, frames.GOAWAY))
_FIXED_LENGTH = {frames.PRIORITY: 5, frames.RST_STREAM: 4, frames.PING: 8, frames.WINDOW_UPDATE: 4}
_HANDLERS = {
    DATA: HboneConnection._on_data,
    frames.HEADERS: HboneConnection._on_headers,
    frames.RST_STREAM: HboneConnection._on_reset,
    frames.SETTINGS: HboneConnection._on_settings,
    frames.PING: HboneConnection._on_ping,
    frames.GOAWAY: HboneConnection._on_goaway,
    frames.WINDOW_UPDATE: HboneConnection._on_window_update,
    frames.CONTINUATION: HboneConnection._on_continuation,
}
