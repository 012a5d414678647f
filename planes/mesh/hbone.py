"""HBONE as a pure state machine: CONNECT streams over one HTTP/2 connection, either role; and HTTP/2's engine.

Holds no socket and no clock: give it bytes, take events and `take_output()`. TLS is a layer below (`tls`), choosing a
peer a layer above (`route`, `pool`). Source: RFC 9113 (§8.5 for CONNECT), facts/hbone 1.3-1.9. Two things differ from a
textbook codec, both for speed: DATA is handed on in pieces as it arrives, never gathered to whole frames; and a stream
with a `sink` gets its bytes by a direct call instead of an event.
Compression is hpack's on receipt, table-free on sending.

A peer's breach ends the connection with a `ConnectionFailed` event and a queued GOAWAY, or one stream with RST_STREAM;
our own misuse raises `testbed.errors.Bug`.

Four rooms: `hbone_stream` (values), `hbone_output` (sending), `hbone_input` (what each frame means), and here the
framing: bytes to frames, with the way for DATA that costs the least. `Http2Connection` is the engine, whose meaning of
requests, responses and stream events is HBONE's unless a profile overrides it: `planes.l7.http2` does.
"""

from __future__ import annotations

from planes.mesh import frames
from planes.mesh.frames import DATA, END_HEADERS, END_STREAM, HEADER, HEADER_SIZE, HEADERS, PADDED, PRIORITY_FLAG
from planes.mesh.hbone_input import CONTROL_FRAMES_LIMIT, EARLY_RESETS_LIMIT, Input
from planes.mesh.hbone_stream import (
    CLIENT_LIMITS,
    SERVER_LIMITS,
    Breach,
    ConnectionFailed,
    DataReceived,
    Event,
    Fields,
    GoawayReceived,
    Limits,
    PingAnswered,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    Sink,
    Stream,
    StreamEnded,
    StreamReset,
)  # fmt: skip

__all__ = [
    "CLIENT_LIMITS", "CONTROL_FRAMES_LIMIT", "EARLY_RESETS_LIMIT", "SERVER_LIMITS", "ConnectionFailed", "DataReceived",
    "Event", "Fields", "GoawayReceived", "HboneConnection", "Http2Connection", "Limits", "PingAnswered",
    "RequestReceived", "ResponseReceived", "SettingsReceived", "Sink", "Stream", "StreamEnded", "StreamReset",
]  # fmt: skip


_PLAIN_HEADERS = END_HEADERS | PADDED | PRIORITY_FLAG


class Http2Connection(Input):
    __slots__ = ("_body_ends", "_body_left", "_body_stream", "_buffer", "_need", "_preface_due")

    def __init__(self, *, client: bool, limits: Limits | None = None) -> None:
        super().__init__(client=client, limits=limits)
        self._buffer = bytearray()
        self._need = HEADER_SIZE if client else len(frames.PREFACE)
        self._preface_due = not client
        self._body_left = 0
        self._body_stream: Stream | None = None
        self._body_ends = False

    def receive(self, data: bytes) -> list[Event]:
        """Events of `data` in order; DATA of streams with a sink goes there at once."""
        events: list[Event] = []
        if self.failed:
            return events
        try:
            self._parse(data, events)
        except Breach as breach:
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
                raise Breach(frames.PROTOCOL_ERROR, "not an HTTP/2 preface")
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
                        self._controls_in_a_row = 0
                        chunk = data[start:pos] if length < 4096 else memoryview(data)[start:pos]
                        self._deliver(stream, chunk, events)
                    if flags & END_STREAM:
                        self._end_received(stream, events)
                    elif not length:
                        self._count_control()
                    continue
            elif kind == HEADERS and flags & _PLAIN_HEADERS == END_HEADERS and pos <= size and number and (
                length <= frames.DEFAULT_FRAME_SIZE and self._block is None and not self._settings_due
            ):
                self._controls_in_a_row = 0
                self._block_ends = bool(flags & END_STREAM)
                self._on_block(number, data[start:pos], events)
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


class HboneConnection(Http2Connection):
    """The engine with HBONE's meaning."""

    __slots__ = ()
