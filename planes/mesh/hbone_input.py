"""What each received frame means to HTTP/2, and to HBONE on it: one method a frame type, and the table of them.

Framing has been done (`hbone`): a payload is whole here, and its length has been judged by `_check_frame`.
"""

from __future__ import annotations

from planes.mesh import frames
from planes.mesh.frames import DATA, END_STREAM, PADDED
from planes.mesh.hbone_output import Output
from planes.mesh.hbone_stream import (
    Breach,
    DataReceived,
    Event,
    Fields,
    GoawayReceived,
    Limits,
    PingAnswered,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    Stream,
    StreamEnded,
    StreamReset,
)  # fmt: skip
from planes.mesh.headers import HeaderReader, MalformedRequest, MalformedResponse, check_request, check_response

CONTROL_FRAMES_LIMIT = 10_000
"""Control frames in a row, without DATA or HEADERS, after which the peer is told to calm down (CVE-2019-9512, kin)."""
EARLY_RESETS_LIMIT = 1_000
"""Streams a client may open and reset before the server has answered them (CVE-2023-44487, "rapid reset"). One
that is answered makes up for one that was reset: callers that give up now and then end no long-lived connection."""
_MAX_BLOCK = 128 * 1024
SETTINGS_LIMIT = 32
"""Of one frame, as in nghttp2. Each INITIAL_WINDOW_SIZE moves the windows of all streams: a frame of 1 MiB full of them
kept the event loop for two seconds."""


class Input(Output):
    __slots__ = (
        "_block", "_block_ends", "_block_stream", "_controls_in_a_row", "_reader", "_settings_due",
        "settings_received",
    )  # fmt: skip

    def __init__(self, *, client: bool, limits: Limits | None) -> None:
        super().__init__(client=client, limits=limits)
        self.settings_received = False
        self._settings_due = True
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = False
        self._reader = HeaderReader(self.limits.max_header_list_bytes)
        self._controls_in_a_row = 0

    def _deliver(self, stream: Stream, data: bytes | memoryview, events: list[Event]) -> None:
        sink = stream.sink
        if sink is None:
            events.append(DataReceived(stream, data))
        elif sink.received(data):
            # `release`, unfolded as far as every frame needs it
            size = len(data)
            stream.unreleased += size
            self.unreleased += size
            if stream.unreleased >= self._half_stream or self.unreleased >= self._half_connection:
                self.release(stream, 0)

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
        raise Breach(frames.FLOW_CONTROL_ERROR, f"more DATA than the window of {where}")

    def _check_frame(self, kind: int, flags: int, number: int, length: int) -> None:
        """What can be said from a frame's header alone, before its payload is gathered."""
        if length > self.limits.max_frame_bytes:
            raise Breach(frames.FRAME_SIZE_ERROR, f"frame of {length} bytes, {self.limits.max_frame_bytes} advertised")
        if self._settings_due:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise Breach(frames.PROTOCOL_ERROR, f"first frame is of type {kind}, not SETTINGS")
            self._settings_due = False
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block_stream):
            raise Breach(frames.PROTOCOL_ERROR, f"frame type {kind} in header block of stream {self._block_stream}")
        if kind in _NEEDS_STREAM and number == 0:
            raise Breach(frames.PROTOCOL_ERROR, f"frame of type {kind} on stream 0")
        if kind in _NEEDS_CONNECTION and number != 0:
            raise Breach(frames.PROTOCOL_ERROR, f"frame of type {kind} on stream {number}")
        fixed = _FIXED_LENGTH.get(kind)
        if fixed is not None and length != fixed:
            raise Breach(frames.FRAME_SIZE_ERROR, f"frame of type {kind} with {length} bytes, {fixed} wanted")
        if kind == frames.SETTINGS and (length % 6 or (flags & frames.ACK and length)):
            raise Breach(frames.FRAME_SIZE_ERROR, f"SETTINGS of {length} bytes")
        if kind == frames.SETTINGS and length > 6 * SETTINGS_LIMIT:
            raise Breach(frames.ENHANCE_YOUR_CALM, f"{length // 6} settings in a frame")
        if kind == frames.GOAWAY and length < 8:
            raise Breach(frames.FRAME_SIZE_ERROR, f"GOAWAY of {length} bytes")
        if kind in (frames.HEADERS, frames.CONTINUATION) and length + len(self._block or b"") > _MAX_BLOCK:
            raise Breach(frames.ENHANCE_YOUR_CALM, "header block is too big")
        if kind == frames.PUSH_PROMISE:
            raise Breach(frames.PROTOCOL_ERROR, "PUSH_PROMISE though push is off")

    def _handle(self, kind: int, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if kind == frames.HEADERS or (kind == DATA and payload):
            self._controls_in_a_row = 0
        else:
            self._count_control()
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, flags, number, payload, events)

    def _count_control(self) -> None:
        """DATA without bytes counts too: it costs its sender as little (CVE-2019-9518)."""
        self._controls_in_a_row += 1
        if self._controls_in_a_row > CONTROL_FRAMES_LIMIT:
            raise Breach(frames.ENHANCE_YOUR_CALM, "too many control frames")

    def _on_data(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        """The rare DATA: padded, or for a stream that is not open."""
        stream = self.streams.get(number)
        size = len(payload)
        self.receive_window -= size
        if self.receive_window < 0:
            raise Breach(frames.FLOW_CONTROL_ERROR, "more DATA than the window of the connection")
        body = _unpad(payload) if flags & PADDED else payload
        if stream is None or not stream.takes_data:
            self._release_connection(size)
            if stream is None and self._is_idle(number):
                raise Breach(frames.PROTOCOL_ERROR, f"DATA on idle stream {number}")
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
                raise Breach(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            block = block[5:]
        self._block_stream, self._block_ends = number, bool(flags & END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(number, block, events)
        else:
            self._block = bytearray(block)

    def _on_continuation(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if self._block is None:
            raise Breach(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(number, block, events)

    def _on_block(self, number: int, block: bytes, events: list[Event]) -> None:
        # Every block is decoded, also one that is then ignored: the table is shared by all streams.
        try:
            fields = self._reader.decode(block)
        except OverflowError as cause:
            raise Breach(frames.ENHANCE_YOUR_CALM, "header list is too big") from cause
        except ValueError as cause:
            raise Breach(frames.COMPRESSION_ERROR, "header block cannot be decoded") from cause
        stream = self.streams.get(number)
        if stream is not None:
            self._on_stream_fields(stream, fields, events)
        elif self.client:
            if self._is_idle(number):
                raise Breach(frames.PROTOCOL_ERROR, f"HEADERS on idle stream {number}")
        elif number > self._last_peer_stream:
            self._on_request(number, fields, events)
        elif number not in self._forgotten:
            raise Breach(frames.STREAM_CLOSED, f"HEADERS on closed stream {number}")

    def _on_request(self, number: int, fields: Fields, events: list[Event]) -> None:
        if number % 2 == 0:
            raise Breach(frames.PROTOCOL_ERROR, f"request on even stream {number}")
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
            self._fail_stream(number, frames.PROTOCOL_ERROR, events)
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
        # RFC 9113 8.5: on a connected stream HEADERS are a stream error. (A server's we take for the end of its body:
        # behind a refusal they are trailers.)
        if not self.client or not self._block_ends or any(name.startswith(b":") for name, _ in fields):
            self._fail_stream(stream.id, frames.PROTOCOL_ERROR, events)
            return
        self._end_received(stream, events)

    def _fail_stream(self, number: int, code: int, events: list[Event]) -> None:
        self.out.append(frames.rst_stream(number, code))
        self._remember(number)
        stream = self.streams.get(number)
        if not self.client and (stream is None or not stream.answered):
            self._count_early_reset()  # whoever makes us reset costs as much as whoever resets (CVE-2025-8671)
        if stream is not None:
            self._was_reset(stream, code, events)

    def _count_early_reset(self) -> None:
        self._early_resets += 1
        if self._early_resets > EARLY_RESETS_LIMIT:
            raise Breach(frames.ENHANCE_YOUR_CALM, "too many streams reset before they were answered")

    def _is_idle(self, number: int) -> bool:
        if number % 2 == 0:
            return True
        return number >= self._next_stream if self.client else number > self._last_peer_stream

    def _on_reset(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise Breach(frames.PROTOCOL_ERROR, f"RST_STREAM on idle stream {number}")
            return
        if not self.client and not stream.answered:
            self._count_early_reset()
        self._was_reset(stream, frames.u32(payload), events)

    def _on_settings(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if flags & frames.ACK:
            return
        for key, value in frames.parse_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise Breach(frames.FLOW_CONTROL_ERROR, f"initial window of {value}")
                self._move_windows(value - self.peer_initial_window)
                self.peer_initial_window = value
            elif key == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= 0xFFFFFF:
                    raise Breach(frames.PROTOCOL_ERROR, f"maximum frame size of {value}")
                self.peer_max_frame = value
            elif key == frames.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            elif key == frames.ENABLE_PUSH and (value > 1 or (value and self.client)):
                raise Breach(frames.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
            else:
                self._on_setting(key, value)
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.settings_received = True
        events.append(SettingsReceived(self.peer_max_streams))
        self._unblock()

    def _on_setting(self, key: int, value: int) -> None:
        """One that the engine has no use for."""

    def _move_windows(self, by: int) -> None:
        for stream in self.streams.values():
            stream.send_window += by
            if stream.send_window > frames.MAX_WINDOW:
                raise Breach(frames.FLOW_CONTROL_ERROR, f"window of stream {stream.id} overflows")

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
                raise Breach(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            before = self.send_window
            self.send_window = before + increment
            if self.send_window > frames.MAX_WINDOW:
                raise Breach(frames.FLOW_CONTROL_ERROR, "window of the connection overflows")
            if before <= 0:  # else whoever is blocked waits for the window of its own stream
                self._unblock()
            return
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise Breach(frames.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {number}")
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

    def _writable(self, stream: Stream) -> None:
        if stream.sink is not None:
            stream.sink.writable()

    def _unblock_one(self, stream: Stream) -> None:
        if self._push(stream):
            self._writable(stream)
        elif stream.id in self._blocked:  # to the back of the queue: the connection's window is shared fairly
            self._blocked[stream.id] = self._blocked.pop(stream.id)


def _unpad(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Breach(frames.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


_NEEDS_STREAM = frozenset((DATA, frames.HEADERS, frames.PRIORITY, frames.RST_STREAM, frames.CONTINUATION))
_NEEDS_CONNECTION = frozenset((frames.SETTINGS, frames.PING, frames.GOAWAY))
_FIXED_LENGTH = {frames.PRIORITY: 5, frames.RST_STREAM: 4, frames.PING: 8, frames.WINDOW_UPDATE: 4}
_HANDLERS = {
    DATA: Input._on_data,
    frames.HEADERS: Input._on_headers,
    frames.RST_STREAM: Input._on_reset,
    frames.SETTINGS: Input._on_settings,
    frames.PING: Input._on_ping,
    frames.GOAWAY: Input._on_goaway,
    frames.WINDOW_UPDATE: Input._on_window_update,
    frames.CONTINUATION: Input._on_continuation,
}
