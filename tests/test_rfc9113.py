"""RFC 9113's MUSTs for a server that takes CONNECT, each as the bytes of a client that breaks one and what must come.

Both servers are asked, HBONE's and the L7 codec's. Their frames are read by hyperframe; a stream error may be made one
of the connection (5.4), and where either is so the code still is the section's.
"""

from __future__ import annotations

import hpack
import hyperframe.frame as hf
import pytest

from planes.l7.http2 import Http2Server
from planes.l7.http2_stream import L7ServerStream
from planes.l7.message import Request, Response
from planes.mesh import frames
from planes.mesh.frames import CONTINUATION, DATA, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS
from planes.mesh.hbone import DataReceived, HboneConnection, RequestReceived

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.5:8080")]
P, F, S, Z, C = "PROTOCOL_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED", "FRAME_SIZE_ERROR", "COMPRESSION_ERROR"
SERVERS = ("hbone", "l7")


class Sink:
    def data(self, data: bytes | memoryview) -> None: ...
    def ended(self, trailers: list) -> None: ...
    def was_reset(self, reason: str, *, unprocessed: bool) -> None: ...
    def writable(self) -> None: ...


class Server:
    """Either server, behind its handshake; a CONNECT is answered with 200 at once."""

    def __init__(
        self, kind: str, hello: bytes = frames.PREFACE + frames.settings(()), *, held: bool = False
    ) -> None:
        """`held`: what comes in tunnels is not taken."""
        self._held = held
        self.requests: list[int] = []
        self.streams: dict[int, object] = {}
        self._hbone = HboneConnection(client=False) if kind == "hbone" else None
        self._l7 = Http2Server(self._take, lambda: None) if kind == "l7" else None
        self.first_flight = self._taken()
        self.came: list[hf.Frame] = []
        self.receive(hello)

    def _take(self, stream: L7ServerStream, request: Request) -> None:
        stream.sink = Sink()  # type: ignore[assignment]
        self.requests.append(stream.id)
        self.streams[stream.id] = stream
        stream.send_head(Response(200, [], has_body=True))
        if self._held:
            stream.hold()

    def receive(self, wire: bytes) -> list[hf.Frame]:
        """What is answered to these bytes."""
        if self._hbone is not None:
            for event in self._hbone.receive(wire):
                if isinstance(event, RequestReceived):
                    self.requests.append(event.stream.id)
                    self.streams[event.stream.id] = event.stream
                    self._hbone.respond(event.stream, 200)
                elif isinstance(event, DataReceived) and not self._held:
                    self._hbone.release(event.stream, len(event.data))
        else:
            assert self._l7 is not None
            self._l7.receive(wire)
        answered = read(self._taken())
        self.came += answered
        return answered

    def send(self, number: int, data: bytes) -> None:
        if self._hbone is not None:
            self._hbone.send(self.streams[number], data)  # type: ignore[arg-type]
        else:
            self.streams[number].send_data(data)  # type: ignore[attr-defined]

    def end(self, number: int) -> None:
        if self._hbone is not None:
            self._hbone.end(self.streams[number])  # type: ignore[arg-type]
        else:
            self.streams[number].end()  # type: ignore[attr-defined]

    def reset(self, number: int) -> None:
        if self._hbone is not None:
            self._hbone.reset(self.streams[number])  # type: ignore[arg-type]
        else:
            self.streams[number].reset("CANCEL")  # type: ignore[attr-defined]

    def _taken(self) -> bytes:
        codec = self._hbone or self._l7
        assert codec is not None
        wire = b"".join(codec.out)
        codec.out.clear()
        return wire

    def taken(self) -> list[hf.Frame]:
        return read(self._taken())


def read(wire: bytes) -> list[hf.Frame]:
    found = []
    while wire:
        frame, size = hf.Frame.parse_frame_header(memoryview(wire[:9]))
        frame.parse_body(memoryview(wire[9 : 9 + size]))
        found.append(frame)
        wire = wire[9 + size :]
    return found


def errors(came: list[hf.Frame]) -> list[tuple[str, str]]:
    """(GOAWAY or the stream, code)."""
    found = []
    for frame in came:
        if isinstance(frame, hf.GoAwayFrame):
            found.append(("GOAWAY", frames.error_name(frame.error_code)))
        elif isinstance(frame, hf.RstStreamFrame):
            found.append((str(frame.stream_id), frames.error_name(frame.error_code)))
    return found


def connect(stream: int = 1, more: list | None = None, *, end: bool = False) -> bytes:
    block = frames.encode_fields([*CONNECT, *(more or [])])
    return frames.headers(stream, block, end=end, max_frame_size=16384)


def fields(stream: int, listed: list, *, end: bool = False) -> bytes:
    return frames.headers(stream, hpack.Encoder().encode(listed), end=end, max_frame_size=16384)


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frames.frame(kind, flags, stream, payload)


OPEN = connect(1)
CLOSED = connect(1) + frames.rst_stream(1, 8)
HALF = connect(1, end=True)

# -- what ends the connection: GOAWAY with the section's code ---------------------------------------------------------

CONNECTION = {
    "4.2 a frame longer than advertised": (frames.HEADER.pack(0x1000, 1, DATA, 0, 1), Z),
    "4.2 SETTINGS of a wrong length": (raw(SETTINGS, 0, 0, b"12345"), Z),
    "4.3 a block that cannot be decoded": (raw(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), C),
    "4.3 a block of an ignored stream that cannot be": (CLOSED + raw(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), C),
    "4.3 another frame within a block": (raw(HEADERS, 0, 1) + raw(PING, 0, 0, bytes(8)), P),
    "4.3 another stream's CONTINUATION within a block": (raw(HEADERS, 0, 1) + raw(CONTINUATION, 4, 3), P),
    "5.5 an unknown frame within a block": (raw(HEADERS, 0, 1) + raw(0x40, 0, 1, b"x"), P),
    "5.1 DATA on an idle stream": (raw(DATA, 0, 1, b"x"), P),
    "5.1 RST_STREAM on an idle stream": (frames.rst_stream(1, 8), P),
    "5.1 WINDOW_UPDATE on an idle stream": (frames.window_update(1, 1), P),
    "5.1 HEADERS on a closed stream": (CLOSED + connect(1), S),
    "5.1.1 an even stream": (connect(2), P),
    "5.1.1 a stream below the last": (connect(5) + connect(3), S),
    "6.1 DATA on stream 0": (raw(DATA, 0, 0, b"x"), P),
    "6.1 padding as long as its DATA": (OPEN + raw(DATA, 8, 1, b"\x05abc"), P),
    "6.2 HEADERS on stream 0": (raw(HEADERS, 4, 0, frames.encode_fields(CONNECT)), P),
    "6.2 padding as long as its HEADERS": (raw(HEADERS, 4 | 8, 1, b"\x05\x88"), P),
    "6.3 PRIORITY on stream 0": (raw(PRIORITY, 0, 0, bytes(5)), P),
    "6.3 PRIORITY of a wrong length": (raw(PRIORITY, 0, 1, bytes(4)), Z),
    "6.4 RST_STREAM on stream 0": (raw(RST_STREAM, 0, 0, bytes(4)), P),
    "6.4 RST_STREAM of a wrong length": (OPEN + raw(RST_STREAM, 0, 1, bytes(3)), Z),
    "6.5 SETTINGS on a stream": (raw(SETTINGS, 0, 1), P),
    "6.5 an acknowledgement with settings": (raw(SETTINGS, 1, 0, bytes(6)), Z),
    "6.5.2 ENABLE_PUSH of 2": (frames.settings([(2, 2)]), P),
    "6.5.2 INITIAL_WINDOW_SIZE over 2^31-1": (frames.settings([(4, 2**31)]), F),
    "6.5.2 MAX_FRAME_SIZE under 2^14": (frames.settings([(5, 2**14 - 1)]), P),
    "6.5.2 MAX_FRAME_SIZE over 2^24-1": (frames.settings([(5, 2**24)]), P),
    "6.6 PUSH_PROMISE of a client": (raw(PUSH_PROMISE, 4, 1, bytes(4)), P),
    "6.7 PING on a stream": (raw(PING, 0, 1, bytes(8)), P),
    "6.7 PING of a wrong length": (raw(PING, 0, 0, bytes(7)), Z),
    "6.8 GOAWAY on a stream": (raw(7, 0, 1, bytes(8)), P),
    "6.9 WINDOW_UPDATE of a wrong length": (raw(8, 0, 0, bytes(3)), Z),
    "6.9 WINDOW_UPDATE by 0 of the connection": (frames.window_update(0, 0), P),
    "6.9.1 the connection's window beyond 2^31-1": (frames.window_update(0, 2**31 - 1), F),
    "6.9.2 a stream's window beyond 2^31-1 by SETTINGS": (
        OPEN + frames.window_update(1, 2**31 - 1 - 65_535) + frames.settings([(4, 65_536)]), F
    ),
    "6.10 CONTINUATION without HEADERS": (raw(CONTINUATION, 4, 1), P),
    "6.10 CONTINUATION behind END_HEADERS": (OPEN + raw(CONTINUATION, 4, 1), P),
    "6.10 CONTINUATION on stream 0": (raw(HEADERS, 0, 1) + raw(CONTINUATION, 4, 0), P),
}  # fmt: skip


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("must", CONNECTION)
def test_a_connection_error_is_a_goaway_with_its_code(kind: str, must: str) -> None:
    """5.4.1: with the last stream that was taken; and nothing is read any more."""
    wire, code = CONNECTION[must]
    server = Server(kind)
    came = server.receive(wire)
    assert errors(came)[-1:] == [("GOAWAY", code)]
    (goaway,) = [f for f in came if isinstance(f, hf.GoAwayFrame)]
    assert goaway.last_stream_id == max(server.requests, default=0)
    assert server.receive(connect(9)) == [] and 9 not in server.requests


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("hello", [
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", frames.PREFACE + raw(PING, 0, 0, bytes(8)), frames.PREFACE + connect(1),
    frames.PREFACE + raw(SETTINGS, 1, 0),
])  # fmt: skip
def test_3_4_what_is_no_preface_is_a_connection_error(kind: str, hello: bytes) -> None:
    """The 24 octets, and behind them SETTINGS that are no acknowledgement."""
    server = Server(kind, hello)
    assert errors(server.came) == [("GOAWAY", P)] and server.requests == []


# -- what ends one stream: RST_STREAM, and the connection goes on -----------------------------------------------------

STREAM = {
    "5.1 DATA on a stream that its client ended": (HALF + raw(DATA, 0, 1, b"x"), S),
    "5.1 HEADERS on a stream that its client ended": (HALF + fields(1, [(b"x", b"y")], end=True), S),
    "6.9 WINDOW_UPDATE by 0 of a stream": (OPEN + frames.window_update(1, 0), P),
    "6.9.1 a stream's window beyond 2^31-1": (OPEN + frames.window_update(1, 2**31 - 1), F),
    "8.2.1 a name in upper case": (fields(1, [*CONNECT, (b"Baggage", b"x")]), P),
    "8.2.1 a name with a space": (fields(1, [*CONNECT, (b"a b", b"x")]), P),
    "8.2.1 a name with a colon": (fields(1, [*CONNECT, (b"a:b", b"x")]), P),
    "8.2.1 a value with NUL": (fields(1, [*CONNECT, (b"x", b"a\0b")]), P),
    "8.2.1 a value with CR": (fields(1, [*CONNECT, (b"x", b"a\rb")]), P),
    "8.2.1 a value with LF": (fields(1, [*CONNECT, (b"x", b"a\nb")]), P),
    "8.2.1 a value that begins with a space": (fields(1, [*CONNECT, (b"x", b" a")]), P),
    "8.2.2 connection": (fields(1, [*CONNECT, (b"connection", b"close")]), P),
    "8.2.2 transfer-encoding": (fields(1, [*CONNECT, (b"transfer-encoding", b"chunked")]), P),
    "8.2.2 upgrade": (fields(1, [*CONNECT, (b"upgrade", b"x")]), P),
    "8.2.2 te other than trailers": (fields(1, [*CONNECT, (b"te", b"gzip")]), P),
    "8.3 a pseudo-field behind a field": (fields(1, [CONNECT[0], (b"x", b"y"), CONNECT[1]]), P),
    "8.3 an unknown pseudo-field": (fields(1, [*CONNECT, (b":x", b"y")]), P),
    "8.3 a pseudo-field of responses": (fields(1, [*CONNECT, (b":status", b"200")]), P),
    "8.3 a pseudo-field twice": (fields(1, [*CONNECT, CONNECT[1]]), P),
    "8.3.1 no :method": (fields(1, CONNECT[1:]), P),
    "8.5 CONNECT with :scheme": (fields(1, [*CONNECT, (b":scheme", b"http")]), P),
    "8.5 CONNECT with :path": (fields(1, [*CONNECT, (b":path", b"/")]), P),
    "8.5 HEADERS on a connected stream": (OPEN + fields(1, [(b"x", b"y")], end=True), P),
    "8.5 HEADERS on a connected stream, without its end": (OPEN + fields(1, [(b"x", b"y")]), P),
}  # fmt: skip


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("must", STREAM)
def test_a_stream_error_is_a_reset_with_its_code(kind: str, must: str) -> None:
    """5.4.2: that stream alone; the next one is served, and no reset answers the client's own."""
    wire, code = STREAM[must]
    server = Server(kind)
    assert errors(server.receive(wire)) == [("1", code)]
    assert errors(server.receive(frames.rst_stream(1, 8) + connect(3))) == []
    assert 3 in server.requests


# -- what must be ignored, or answered ---------------------------------------------------------------------------------

IGNORED = {
    "4.1 an unknown type": raw(0x40, 0xFF, 1, b"whatever") + raw(0x41, 0, 0),
    "4.1 unknown flags": raw(PING, 0xFE, 0, bytes(8)) + raw(SETTINGS, 0xFE, 0),
    "4.1 the reserved bit of a stream's number": raw(PRIORITY, 0, 0x8000_0001, bytes(5)),
    "5.1 PRIORITY on an idle stream": raw(PRIORITY, 0, 7, bytes(5)),
    "5.1 PRIORITY on a closed stream": CLOSED + raw(PRIORITY, 0, 1, bytes(5)),
    "5.1 WINDOW_UPDATE on a closed stream": CLOSED + frames.window_update(1, 5),
    "5.1 RST_STREAM on a closed stream": CLOSED + frames.rst_stream(1, 8),
    "6.5.2 unknown settings": frames.settings([(0x99, 7), (0xFFFF, 2**32 - 1)]),
    "6.5.2 ENABLE_PUSH of 1 from a client": frames.settings([(2, 1)]),
    "6.7 an answer to no PING": raw(PING, 1, 0, bytes(8)),
    "6.9 the reserved bit of an increment": frames.window_update(0, 1 | 1 << 31),
    "6.8 GOAWAY of a client, who may open streams nevertheless": frames.goaway(0, 0),
}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("must", IGNORED)
def test_what_must_be_ignored_is(kind: str, must: str) -> None:
    """No error of any kind, and the next request is served."""
    server = Server(kind)
    wire = IGNORED[must]
    assert errors(server.receive(wire)) == []
    if "GOAWAY" not in must:
        server.receive(connect(9))
        assert 9 in server.requests


@pytest.mark.parametrize("kind", SERVERS)
def test_3_4_settings_come_first_and_theirs_are_acknowledged(kind: str) -> None:
    """6.5.3: each frame of them once, in order with what else is answered."""
    server = Server(kind)
    first, *_ = read(server.first_flight)
    assert isinstance(first, hf.SettingsFrame) and "ACK" not in first.flags and first.settings.get(2, 0) == 0
    assert [type(f) for f in server.came] == [hf.SettingsFrame] and "ACK" in server.came[0].flags
    came = server.receive(frames.settings([(3, 5)]) + raw(PING, 0, 0, b"12345678") + frames.settings([(3, 6)]))
    assert [type(f) for f in came] == [hf.SettingsFrame, hf.PingFrame, hf.SettingsFrame]


@pytest.mark.parametrize("kind", SERVERS)
def test_6_7_a_ping_is_answered_with_its_octets(kind: str) -> None:
    """And with ACK set."""
    (answer,) = Server(kind).receive(raw(PING, 0, 0, b"\x00\x01abc\xff\xfe\xfd"))
    assert isinstance(answer, hf.PingFrame) and answer.opaque_data == b"\x00\x01abc\xff\xfe\xfd"
    assert set(answer.flags) == {"ACK"}


@pytest.mark.parametrize("kind", SERVERS)
def test_5_1_2_streams_beyond_the_limit_are_refused(kind: str) -> None:
    """REFUSED_STREAM says that nothing was done; the others live."""
    server = Server(kind)
    limit = read(server.first_flight)[0].settings[3]
    came = server.receive(b"".join(connect(2 * n + 1) for n in range(limit + 1)))
    assert errors(came) == [(str(2 * limit + 1), "REFUSED_STREAM")] and len(server.requests) == limit


@pytest.mark.parametrize(("kind", "whose"), [("hbone", "stream"), ("l7", "stream"), ("hbone", "connection")])
def test_6_9_1_more_data_than_a_window_is_an_error(kind: str, whose: str) -> None:
    """Of readers that take nothing. (The L7 codec gives the connection's window back at once, 5.2.2.)"""
    server = Server(kind, held=True)
    hello, update = read(server.first_flight)[:2]
    window = hello.settings[4]
    streams = 1 if whose == "stream" else (update.window_increment + 65_535) // window + 1
    server.receive(b"".join(connect(2 * n + 1) for n in range(streams)))
    came: list[hf.Frame] = []
    for n in range(streams):
        for at in range(0, window, 16_384):
            came += server.receive(raw(DATA, 0, 2 * n + 1, bytes(min(16_384, window - at))))
    came += server.receive(raw(DATA, 0, 1, b"x"))
    assert [code for _, code in errors(came)] == [F]


@pytest.mark.parametrize("kind", SERVERS)
def test_6_9_2_a_window_that_shrank_below_zero_stops_us(kind: str) -> None:
    """Until updates have made it positive again."""
    server = Server(kind)
    server.receive(connect(1))
    server.send(1, b"x" * 30_000)
    server.taken()
    server.receive(frames.settings([(4, 10_000)]))  # 35,535 left, less 55,535: 20,000 below zero
    server.send(1, b"y" * 5_000)
    assert [f for f in server.taken() if isinstance(f, hf.DataFrame)] == []
    assert [f for f in server.receive(frames.window_update(1, 20_000)) if isinstance(f, hf.DataFrame)] == []
    sent = [f for f in server.receive(frames.window_update(1, 1_000)) if isinstance(f, hf.DataFrame)]
    assert b"".join(f.data for f in sent) == b"y" * 1_000


@pytest.mark.parametrize("kind", SERVERS)
def test_4_2_no_frame_of_ours_is_longer_than_the_peer_takes(kind: str) -> None:
    """The default until it says otherwise."""
    server = Server(kind)
    server.receive(connect(1))
    server.send(1, b"x" * 60_000)
    sizes = [len(f.data) for f in server.taken() if isinstance(f, hf.DataFrame)]
    assert sum(sizes) == 60_000 and max(sizes) <= 16_384


@pytest.mark.parametrize("kind", SERVERS)
def test_5_1_what_was_on_its_way_when_we_reset_is_no_breach(kind: str) -> None:
    """DATA of it still counts for the connection's window (5.1, 6.9); its HEADERS are decoded (4.3)."""
    server = Server(kind)
    server.receive(connect(1))
    server.reset(1)
    assert errors(server.taken())[0][0] == "1"
    codec = server._hbone or server._l7
    assert codec is not None
    before = codec.receive_window, codec.unreleased
    came = server.receive(raw(DATA, 0, 1, b"x" * 100) + fields(1, [(b"x", b"y")], end=True) + connect(3))
    assert errors(came) == [] and 3 in server.requests
    assert codec.receive_window - before[0] == -100 and codec.unreleased - before[1] == 100


@pytest.mark.parametrize("kind", SERVERS)
def test_8_5_each_direction_of_a_tunnel_ends_by_itself(kind: str) -> None:
    """A client's END_STREAM leaves ours open, and ours theirs."""
    server = Server(kind)
    server.receive(connect(1) + raw(DATA, 1, 1, b"last"))
    server.send(1, b"more of ours")
    server.end(1)
    data = [f for f in server.taken() if isinstance(f, hf.DataFrame)]
    assert b"".join(f.data for f in data) == b"more of ours" and "END_STREAM" in data[-1].flags
    server.receive(connect(3))
    server.end(3)
    came = server.taken()
    assert errors(came) == [] and errors(server.receive(raw(DATA, 0, 3, b"still sent"))) == []


