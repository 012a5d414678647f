"""The L7 profile of the HTTP/2 engine: what both roles share. Heads, bodies and resets go to sinks; floods end it.

Framing, windows, GOAWAY and the codes of breaches are the engine's (`planes.mesh.hbone`), one for HBONE and for this.
"""

from __future__ import annotations

from collections.abc import Callable

from planes.l7.hpack import Decoder, Encoder
from planes.l7.hpack_tables import CompressionError, Field
from planes.l7.http2_head import Malformed, trailers_of, vet
from planes.l7.http2_stream import L7Stream
from planes.mesh import frames
from planes.mesh.frames import DATA, END_HEADERS, END_STREAM, HEADER, HEADERS
from planes.mesh.hbone import Http2Connection
from planes.mesh.hbone_stream import Breach, Event, GoawayReceived, Limits, PingAnswered, Stream

DRAIN_PING = b"draining"
REFLEX_LIMIT = 10_000
"""Pieces of output that a peer may cause while it takes none: acknowledgements, refusals (CVE-2019-9512, -9515)."""

GROWN_WINDOW_BYTES = 1 << 20
"""The window of a stream whose sink has taken the first one as fast as it came: its sender no longer waits for each
WINDOW_UPDATE, and there are fewer of them."""
GROWN_TOTAL_BYTES = 16 << 20
"""Of a connection's grown windows together."""

KNOWN_BLOCK_BYTES = 48
_KNOWN_BLOCKS = 64


class L7Connection(Http2Connection):
    streams: dict[int, L7Stream]  # type: ignore[assignment]
    half_close = unread = False
    """HTTP/2 has its own ways to say these."""

    __slots__ = (
        "_decoder",
        "_distrusts",
        "_draining",
        "_encoder",
        "_fault",
        "_receiving",
        "_reflexes",
        "_wake",
        "abort",
        "closing",
        "encode",
        "reading_held",
        "write_blocked",
    )  # fmt: skip

    def __init__(self, *, client: bool, limits: Limits, wake: Callable[[], None]) -> None:
        super().__init__(client=client, limits=limits)
        self.write_blocked = False
        self.reading_held = False
        self.closing = False
        self.abort = False
        """With `closing`: by RST, for a peer that broke the protocol and takes nothing would keep what waits for it."""
        self._wake = wake
        self._receiving = False
        self._draining = False
        self._reflexes = 0
        self._distrusts = False
        """A bad field may be in the table, so every list is vetted as a whole from now on."""
        self._fault: Malformed | None = None
        """What is wrong with the fields of the last block."""
        self._decoder = Decoder(limits.max_header_list_bytes)
        self._encoder = Encoder()
        self.encode: Callable[[list[Field]], bytes] = self._encoder.encode

    @property
    def active(self) -> int:
        return len(self.streams)

    # -- what the shell calls --------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:  # type: ignore[override]
        if self.failed or self.closing:
            return
        events: list[Event] = []
        self._receiving = True
        before = len(self.out)
        try:
            self._parse(data, events)
            if self.write_blocked:
                self._reflexes += len(self.out) - before
                if self._reflexes > REFLEX_LIMIT:
                    raise Breach(frames.ENHANCE_YOUR_CALM, "asks for answers and takes none")
            for event in events:
                if isinstance(event, PingAnswered) and event.payload == DRAIN_PING and self.goaway_sent:
                    self._finish_drain()
                elif isinstance(event, GoawayReceived):
                    self.retire()
        except Breach as breach:
            self.out.append(frames.goaway(self._last_peer_stream, breach.code, str(breach)))
            self.abort = self.write_blocked
            self._end_all(f"{frames.error_name(breach.code)}: {breach}")
        finally:
            self._receiving = False

    def receive_eof(self) -> None:
        self._end_all("the peer closed the connection")

    def lost(self, reason: str) -> None:
        self._end_all(reason)

    def set_write_blocked(self, blocked: bool) -> None:
        self.write_blocked = blocked
        if not blocked:
            self._reflexes = 0
            for stream in list(self.streams.values()):
                if stream.waits and not stream.pending:
                    self._writable(stream)

    def drain(self) -> None:
        if self.failed or self.closing or self.goaway_sent:
            return
        self.stir()
        self.goaway(graceful=not self.client)
        if self.client:
            self._draining = True
            self.retire()
        else:  # whatever is on its way is served; behind the PING's answer comes nothing that did not know
            self.ping(DRAIN_PING)

    def _finish_drain(self) -> None:
        self.goaway()
        self._draining = True
        self.retire()

    # -- for streams -----------------------------------------------------------------------------------------------

    def stir(self) -> None:
        """Called just before `out` grows from nothing: a shell writes at the end of its turn, never inside `wake`."""
        if not self._receiving:
            self._wake()

    def retire(self) -> None:
        """Called whenever a stream has gone."""
        if (self._draining or self.goaway_received) and not self.streams and not self.closing:
            self.closing = True
            self.stir()

    def credit(self, stream: L7Stream, size: int) -> None:
        """Window of the stream alone; the connection's was given back at once, lest one held stream stop the rest."""
        stream.unreleased += size
        if stream.unreleased >= stream.window >> 1 and not stream.received_end and stream.id in self.streams:
            self.stir()
            self._give(stream)

    def _give(self, stream: L7Stream, more: int = 0) -> None:
        size = stream.unreleased + more
        stream.receive_window += size
        stream.unreleased = 0
        self.out.append(frames.window_update(stream.id, size))

    def _growth(self, stream: L7Stream) -> int:
        """By how much the window of a stream whose sink keeps up may grow."""
        first = self.limits.stream_window_bytes
        more = GROWN_WINDOW_BYTES - first
        if stream.window > first or more <= 0:
            return 0
        if sum(s.window - first for s in self.streams.values()) + more > GROWN_TOTAL_BYTES:
            return 0
        stream.window = GROWN_WINDOW_BYTES
        return more

    def answered_one(self) -> None:
        """Resets before the answer are a flood only in proportion to what is answered."""
        if self._early_resets:
            self._early_resets -= 1

    def write_head(self, stream: L7Stream, block: bytes, *, end: bool) -> None:
        size = len(block)
        if size <= self.peer_max_frame:
            flags = END_HEADERS | END_STREAM if end else END_HEADERS
            self.out.append(HEADER.pack(size >> 8, size & 0xFF, HEADERS, flags, stream.id) + block)
        else:
            self.out.append(frames.headers(stream.id, block, end=end, max_frame_size=self.peer_max_frame))
        if end:
            self._sent_end(stream)

    # -- the engine's hooks ----------------------------------------------------------------------------------------

    def _on_setting(self, key: int, value: int) -> None:
        if key == frames.HEADER_TABLE_SIZE:
            self._encoder.limit(value)

    def _read(self, block: bytes) -> list[Field] | None:
        """None: too long a list. Vets what is new in it whatever becomes of it, because it may stay in the table."""
        decoder = self._decoder
        try:
            listed = decoder.decode(block)
        except CompressionError as cause:
            raise Breach(frames.COMPRESSION_ERROR, str(cause)) from cause
        self._fault = None
        suspects = decoder.fresh if listed is None or not self._distrusts else listed
        if suspects:
            try:
                vet(suspects)
            except Malformed as fault:
                self._fault = fault
                self._distrusts = True
        return listed

    def _keep_known(self, block: bytes, meaning: object) -> None:
        """A good block of indices alone: until the table changes, the same octets come to the same."""
        decoder = self._decoder
        if len(block) <= KNOWN_BLOCK_BYTES and not decoder.fresh:
            if len(decoder.known) >= _KNOWN_BLOCKS:
                decoder.known.clear()
            decoder.known[block] = meaning

    def _on_trailers(self, stream: L7Stream, listed: list[Field] | None) -> None:
        try:
            if stream.received_end:
                self._fail_stream(stream.id, frames.STREAM_CLOSED, [])
                return
            if stream.tunnel:
                raise Malformed("fields in a tunnel")  # 8.5
            if listed is None:
                raise Malformed("trailers are longer than allowed")
            if self._fault is not None:
                raise self._fault
            if not self._block_ends:
                raise Malformed("trailers without the end of the stream")
            trailers = trailers_of(listed)
        except Malformed as malformed:
            self.refuse(stream, str(malformed))
            return
        self._finish(stream, trailers)

    def _deliver(self, stream: L7Stream, data: bytes | memoryview, events: list[Event]) -> None:  # type: ignore[override]
        size = len(data)
        if stream.expected is not None:
            stream.expected -= size
            if stream.expected < 0:
                self._release_connection(size)
                self.refuse(stream, "more content than content-length")
                return
        stream.sink.data(data)
        if stream.held:
            stream.withheld += size
        else:
            stream.unreleased += size
            if stream.unreleased >= stream.window >> 1 and not stream.received_end and stream.id in self.streams:
                self._give(stream, self._growth(stream))
        self._release_connection(size)

    def _end_received(self, stream: L7Stream, events: list[Event]) -> None:  # type: ignore[override]
        if stream.id in self.streams:
            self._finish(stream, [])

    def _finish(self, stream: L7Stream, trailers: list[Field]) -> None:
        if stream.expected:
            self.refuse(stream, "less content than content-length")
            return
        stream.received_end = True
        stream.takes_data = False
        self._maybe_done(stream)
        self._tell_end(stream, trailers)

    def _tell_end(self, stream: L7Stream, trailers: list[Field]) -> None:
        stream.sink.ended(trailers)

    def refuse(self, stream: L7Stream, text: str) -> None:
        """Malformed: never forwarded further, the peer gets PROTOCOL_ERROR, our side its reason."""
        self._fail_stream(stream.id, frames.PROTOCOL_ERROR, [], text)

    def _fail_stream(self, number: int, code: int, events: list[Event], text: str = "") -> None:
        self.out.append(frames.rst_stream(number, code))
        self._remember(number)
        if not self.client:  # whoever makes us reset costs as much as whoever resets (CVE-2025-8671)
            self._count_early_reset()
        stream = self.streams.get(number)
        if stream is not None:
            self._drop(stream, text or frames.error_name(code), unprocessed=False)

    def _was_reset(self, stream: L7Stream, code: int, events: list[Event]) -> None:  # type: ignore[override]
        unprocessed = code == frames.REFUSED_STREAM and self.client and not stream.answered
        self._drop(stream, frames.error_name(code), unprocessed=unprocessed)

    def _drop(self, stream: L7Stream, reason: str, *, unprocessed: bool) -> None:
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        stream.pending.clear()
        stream.pending_end = False
        complete = self.client and stream.received_end and not stream.tunnel
        stream.sent_end = stream.received_end = True
        stream.takes_data = False
        self.retire()
        if not complete:  # an early response counts, whatever becomes of the request's rest (RFC 9113 8.1)
            stream.sink.was_reset(reason, unprocessed=unprocessed)

    def _end_all(self, reason: str) -> None:
        if self.failed:
            return
        self.failed = True
        self.closing = True
        for stream in list(self.streams.values()):
            self._drop(stream, reason, unprocessed=False)
        self.stir()

    def _writable(self, stream: L7Stream) -> None:  # type: ignore[override]
        if stream.waits and not self.write_blocked and not stream.sent_end:
            stream.waits = False
            stream.sink.writable()

    def _send_end(self, stream: L7Stream) -> None:  # type: ignore[override]
        out = self.out
        if stream.trailers:
            self.write_head(stream, self.encode(stream.trailers), end=True)
            return
        if len(out) > 1 and out[-2] is stream.tail:
            size = len(out[-1])
            out[-2] = HEADER.pack(size >> 8, size & 0xFF, DATA, END_STREAM, stream.id)
        else:
            out.append(HEADER.pack(0, 0, DATA, END_STREAM, stream.id))
        self._sent_end(stream)

    def _sent_end(self, stream: L7Stream) -> None:
        stream.sent_end = True
        if not self.client and not stream.received_end and not stream.tunnel:
            # Answered in full: the rest of the request is of no use to anybody (RFC 9113 8.1).
            self.reset(stream, frames.NO_ERROR)
            stream.received_end = True
            stream.takes_data = False
            self.retire()
        else:
            self._maybe_done(stream)

    def _maybe_done(self, stream: Stream) -> None:
        if stream.sent_end and stream.received_end:
            self.streams.pop(stream.id, None)
            self._blocked.pop(stream.id, None)
            if self._draining or self.goaway_received:
                self.retire()
