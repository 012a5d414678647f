"""The HBONE state machine, judged by hyper-h2 in both roles, by arbitrary chunking and by a corpus of breaches."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import hyperframe.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planes.mesh import frames
from planes.mesh.hbone import (
    ConnectionFailed,
    DataReceived,
    HboneConnection,
    RequestReceived,
    ResponseReceived,
    Stream,
    StreamEnded,
    StreamReset,
)

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.5:8080"), (b"baggage", b"k8s.namespace.name=default")]


def oracle(*, client: bool) -> h2.connection.H2Connection:
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding=None))
    made.initiate_connection()
    return made


def exchange(ours: HboneConnection, theirs: h2.connection.H2Connection) -> tuple[list, list]:
    """Bytes to and fro until both are silent; (our events, their events)."""
    mine, other = [], []
    while True:
        sent = ours.take_output()
        if sent:
            other += theirs.receive_data(sent)
        answer = theirs.data_to_send()
        if answer:
            mine += ours.receive(answer)
        if not sent and not answer:
            return mine, other


def of(events: list, kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def handshaken_server() -> HboneConnection:
    """Our server after a client's preface and SETTINGS."""
    server = HboneConnection(client=False)
    server.receive(frames.PREFACE + frames.settings(()))
    server.take_output()
    return server


def connect_frame(stream: int = 1, fields: list | None = None, *, end: bool = False) -> bytes:
    block = frames.encode_fields(fields or CONNECT)
    return frames.headers(stream, block, end=end, max_frame_size=16384)


def test_our_client_opens_a_tunnel_at_an_h2_server():
    """The CONNECT arrives with exactly our fields, bytes flow both ways, and both ends close it cleanly."""
    ours, theirs = HboneConnection(client=True), oracle(client=False)
    exchange(ours, theirs)
    stream = ours.open(CONNECT)
    _, events = exchange(ours, theirs)
    (request,) = of(events, h2.events.RequestReceived)
    assert [tuple(field) for field in request.headers] == CONNECT
    theirs.send_headers(1, [(b":status", b"200")])
    mine, _ = exchange(ours, theirs)
    assert of(mine, ResponseReceived)[0].status == 200
    ours.send(stream, b"ping")
    theirs.send_data(1, b"pong", end_stream=True)
    mine, events = exchange(ours, theirs)
    assert b"".join(bytes(e.data) for e in of(mine, DataReceived)) == b"pong"
    assert of(events, h2.events.DataReceived)[0].data == b"ping"
    assert of(mine, StreamEnded)
    ours.end(stream)
    _, events = exchange(ours, theirs)
    assert of(events, h2.events.StreamEnded)
    assert not ours.streams


@pytest.mark.parametrize("client", [True, False])
def test_the_first_flight_advertises_ztunnels_limits(client: bool):
    """facts/hbone 1.6, read by hyperframe: 4 MiB a stream, 16 MiB in all, frames of 1 MiB, 200 streams at a server."""
    wire = HboneConnection(client=client).take_output().removeprefix(frames.PREFACE)
    seen = []
    while wire:
        frame, size = hyperframe.frame.Frame.parse_frame_header(memoryview(wire[:9]))
        frame.parse_body(memoryview(wire[9 : 9 + size]))
        seen.append(frame)
        wire = wire[9 + size :]
    settings_, window = seen
    role = {2: 0, 6: 16 << 10} if client else {3: 200, 6: 64 << 10}
    assert settings_.settings == {4: 4 << 20, 5: 1 << 20} | role
    assert (window.stream_id, window.window_increment) == (0, (16 << 20) - 65_535)


def test_our_server_answers_an_h2_client():
    """A refused CONNECT ends with its headers; the next one on the same connection is served."""
    ours, theirs = HboneConnection(client=False), oracle(client=True)
    exchange(ours, theirs)
    theirs.send_headers(1, CONNECT)
    mine, _ = exchange(ours, theirs)
    ours.respond(of(mine, RequestReceived)[0].stream, 401, end=True)
    _, events = exchange(ours, theirs)
    assert (b":status", b"401") in [tuple(f) for f in of(events, h2.events.ResponseReceived)[0].headers]
    theirs.send_headers(3, CONNECT)
    mine, _ = exchange(ours, theirs)
    stream = of(mine, RequestReceived)[0].stream
    ours.respond(stream, 200)
    ours.send(stream, b"hello")
    _, events = exchange(ours, theirs)
    assert of(events, h2.events.DataReceived)[0].data == b"hello"


def test_more_than_the_peers_window_waits_for_it():
    """200 kB into h2's default 64 kB window: what does not fit is kept, in order, and leaves as the window opens."""
    ours, theirs = HboneConnection(client=True), oracle(client=False)
    exchange(ours, theirs)
    stream = ours.open(CONNECT)
    exchange(ours, theirs)
    theirs.send_headers(1, [(b":status", b"200")])
    exchange(ours, theirs)
    sent = bytes(range(256)) * 800
    assert ours.send(stream, sent) is False
    ours.end(stream)
    got = b""
    while len(got) < len(sent):
        _, events = exchange(ours, theirs)
        data = of(events, h2.events.DataReceived)
        assert data, "no progress although the window was given back"
        for event in data:
            got += event.data
            theirs.acknowledge_received_data(event.flow_controlled_length, 1)
    exchange(ours, theirs)
    assert got == sent
    assert stream.sent_end


def test_consumed_bytes_give_their_window_back():
    """A peer can send far more than our windows in total, because what was consumed is credited."""
    ours, theirs = HboneConnection(client=False), oracle(client=True)
    exchange(ours, theirs)
    theirs.send_headers(1, CONNECT)
    mine, _ = exchange(ours, theirs)
    ours.respond(of(mine, RequestReceived)[0].stream, 200)
    exchange(ours, theirs)
    total = 0
    while total < 40 << 20:
        room = min(theirs.local_flow_control_window(1), theirs.max_outbound_frame_size)
        assert room > 0, f"window ran dry after {total} bytes"
        theirs.send_data(1, b"x" * room)
        for event in of(exchange(ours, theirs)[0], DataReceived):
            ours.release(event.stream, len(event.data))
        total += room


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=4000), cuts=st.lists(st.integers(min_value=1, max_value=60), min_size=1, max_size=60))
def test_chunking_does_not_matter(data: bytes, cuts: list[int]):
    """The same bytes in any pieces give the same requests and the same payload."""
    client = HboneConnection(client=True)
    stream = client.open(CONNECT)
    client.send(stream, data)
    client.end(stream)
    wire, server, events, at, turn = client.take_output(), HboneConnection(client=False), [], 0, 0
    while at < len(wire):
        size = cuts[turn % len(cuts)]
        events += server.receive(wire[at : at + size])
        at, turn = at + size, turn + 1
    assert of(events, RequestReceived)[0].fields == CONNECT
    assert b"".join(bytes(e.data) for e in of(events, DataReceived)) == data
    assert of(events, StreamEnded) or not data
    assert not of(events, ConnectionFailed)


DATA_FRAME = frames.frame(frames.DATA, 0, 1, b"x")
BREACHES = {
    "data on stream 0": (frames.frame(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "data on an idle stream": (DATA_FRAME, frames.PROTOCOL_ERROR),
    "even stream": (connect_frame(2), frames.PROTOCOL_ERROR),
    "frame too big": (frames.HEADER.pack(0x1000, 1, frames.DATA, 0, 1), frames.FRAME_SIZE_ERROR),
    "ping of 7": (frames.frame(frames.PING, 0, 0, b"1234567"), frames.FRAME_SIZE_ERROR),
    "ping on a stream": (frames.frame(frames.PING, 0, 1, b"12345678"), frames.PROTOCOL_ERROR),
    "settings of 5": (frames.frame(frames.SETTINGS, 0, 0, b"12345"), frames.FRAME_SIZE_ERROR),
    "settings ack with payload": (frames.frame(frames.SETTINGS, 1, 0, b"123456"), frames.FRAME_SIZE_ERROR),
    "initial window too big": (frames.settings([(4, 2**31)]), frames.FLOW_CONTROL_ERROR),
    "max frame size too small": (frames.settings([(5, 100)]), frames.PROTOCOL_ERROR),
    "window overflow": (frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
    "window update by 0": (frames.window_update(0, 0), frames.PROTOCOL_ERROR),
    "window update on an idle stream": (frames.window_update(7, 1), frames.PROTOCOL_ERROR),
    "rst on an idle stream": (frames.rst_stream(5, 0), frames.PROTOCOL_ERROR),
    "continuation alone": (frames.frame(frames.CONTINUATION, 4, 1, b""), frames.PROTOCOL_ERROR),
    "push promise": (frames.frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), frames.PROTOCOL_ERROR),
    "broken block": (frames.frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
    "padding too long": (frames.frame(frames.HEADERS, 4 | 8, 1, b"\x05\x88"), frames.PROTOCOL_ERROR),
    "frame inside a header block": (
        frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(frames.PING, 0, 0, b"12345678"), frames.PROTOCOL_ERROR,
    ),
    "stream number goes back": (connect_frame(3) + connect_frame(1), frames.STREAM_CLOSED),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_ends_the_connection_with_the_right_code(name: str):
    """RFC 9113 names the code; GOAWAY carries it, and nothing is taken after it."""
    wire, code = BREACHES[name]
    server = handshaken_server()
    (failed,) = of(server.receive(wire), ConnectionFailed)
    assert frames.error_name(failed.code) == frames.error_name(code)
    goaway = server.take_output()[-17 - len(failed.text) :]
    assert goaway[3] == frames.GOAWAY
    assert frames.u32(goaway, 13) == code
    assert server.receive(connect_frame(5)) == []


def test_wrong_preface_fails():
    """Plain HTTP/1.1 on the HBONE port is recognised by its first bytes."""
    assert of(HboneConnection(client=False).receive(b"GET / HTTP/1.1\r\n"), ConnectionFailed)


@pytest.mark.parametrize(
    "fields",
    [
        [*CONNECT[:2], (b":scheme", b"https"), (b":path", b"/")],
        [*CONNECT[:2], (b":path", b"/")],
        [(b":method", b"CONNECT"), *CONNECT],
        [*CONNECT, (b":late", b"x")],
        [*CONNECT[:2], (b"Upper", b"x")],
        [*CONNECT[:2], (b"connection", b"close")],
        [(b":authority", b"a:1")],
    ],
)
def test_malformed_connect_resets_its_stream_only(fields: list):
    """The stream gets RST_STREAM(PROTOCOL_ERROR); the connection serves the next request."""
    server = handshaken_server()
    assert server.receive(connect_frame(1, fields)) == []
    assert server.take_output() == frames.rst_stream(1, frames.PROTOCOL_ERROR)
    assert of(server.receive(connect_frame(3)), RequestReceived)


def test_data_after_end_is_a_stream_error():
    """Bytes on a half-closed stream reset it with STREAM_CLOSED."""
    server = handshaken_server()
    server.receive(connect_frame(1, end=True))
    server.receive(DATA_FRAME)
    assert frames.rst_stream(1, frames.STREAM_CLOSED) in server.take_output()


def test_more_streams_than_advertised_are_refused():
    """The 201st concurrent CONNECT is REFUSED_STREAM, not an error of the connection."""
    server = handshaken_server()
    for number in range(1, 402, 2):
        server.receive(connect_frame(number))
    assert len(server.streams) == 200
    assert frames.rst_stream(401, frames.REFUSED_STREAM) in server.take_output()


def test_rapid_reset_is_stopped():
    """A client that opens and resets without end is told to calm down."""
    server = handshaken_server()
    events = []
    for number in range(1, 4002, 2):
        events += server.receive(connect_frame(number) + frames.rst_stream(number, frames.CANCEL))
    assert of(events, ConnectionFailed)[0].code == frames.ENHANCE_YOUR_CALM


def test_a_flood_of_control_frames_is_stopped():
    """Empty SETTINGS cost an answer each, and no stream limit bounds them."""
    server = handshaken_server()
    flood = frames.settings([]) * 2_000
    events = []
    for _ in range(6):
        events += server.receive(flood)
    assert of(events, ConnectionFailed)[0].code == frames.ENHANCE_YOUR_CALM


def test_control_frames_between_requests_are_no_flood():
    """What counts is how many come in a row."""
    server = handshaken_server()
    events = []
    for number in range(1, 16, 2):
        events += server.receive(frames.settings([]) * 2_000)
        events += server.receive(connect_frame(number))
    assert not of(events, ConnectionFailed)


def test_goaway_takes_the_streams_above_it():
    """A server's GOAWAY(last) resets what it will not serve and lets the rest live; nothing new is opened."""
    client = HboneConnection(client=True)
    client.receive(frames.settings(()))
    first, second = client.open(CONNECT), client.open(CONNECT)
    events = client.receive(frames.goaway(first.id, frames.NO_ERROR))
    assert [e.stream for e in of(events, StreamReset)] == [second]
    assert not client.can_open
    assert list(client.streams) == [first.id]


def test_a_frame_of_many_settings_is_a_flood():
    """Each may move the windows of all streams; 32 pass, as with nghttp2."""
    server = handshaken_server()
    assert not of(server.receive(frames.settings([(4, 1 << 16)] * 32)), ConnectionFailed)
    (failed,) = of(server.receive(frames.settings([(4, 1 << 16)] * 33)), ConnectionFailed)
    assert failed.code == frames.ENHANCE_YOUR_CALM


MADE_TO_RESET = {
    "window update by 0": lambda number: connect_frame(number) + frames.window_update(number, 0),
    "malformed": lambda number: connect_frame(number, [*CONNECT, (b"connection", b"close")]),
    "window overflow": lambda number: connect_frame(number) + frames.window_update(number, 2**31 - 1),
    "DATA behind the end": lambda number: connect_frame(number, end=True) + frames.frame(frames.DATA, 0, number, b"x"),
}


@pytest.mark.parametrize("name", MADE_TO_RESET)
def test_a_client_that_makes_us_reset_is_stopped(name: str):
    """It costs what a rapid reset costs (CVE-2025-8671)."""
    server = handshaken_server()
    events = []
    for number in range(1, 4002, 2):
        events += server.receive(MADE_TO_RESET[name](number))
    assert of(events, ConnectionFailed)[0].code == frames.ENHANCE_YOUR_CALM


def test_callers_that_give_up_end_no_connection_where_others_are_answered():
    """Tunnels of many callers share a connection for hours."""
    server = handshaken_server()
    for number in range(1, 12_001, 4):
        server.receive(connect_frame(number) + frames.rst_stream(number, frames.CANCEL))
        (request,) = of(server.receive(connect_frame(number + 2)), RequestReceived)
        server.respond(request.stream, 200)
        server.reset(request.stream)
    assert not server.failed


class Counting(HboneConnection):
    """Counts how often a stream that waits is looked at."""

    looks = 0

    def _unblock_one(self, stream: Stream) -> None:
        self.looks += 1
        super()._unblock_one(stream)


def test_a_window_of_the_connection_wakes_only_whom_it_stopped():
    """A stream that waits for its own window is not even looked at, however many updates the connection gets."""
    client = Counting(client=True)
    client.receive(frames.settings([(4, 10)]))
    stream = client.open(CONNECT)
    client.take_output()
    assert client.send(stream, b"x" * 20) is False
    client.take_output()
    client.receive(frames.window_update(0, 5) * 3)
    assert client.take_output() == b"" and client.looks == 0
    client.receive(frames.window_update(stream.id, 10))
    assert client.take_output().endswith(b"x" * 10)


def test_what_the_connections_window_stopped_goes_on_with_it():
    """As far as each update reaches."""
    client = HboneConnection(client=True)
    client.receive(frames.settings([(4, 1 << 20), (5, 1 << 17)]))
    first, second = client.open(CONNECT), client.open(CONNECT)
    assert client.send(first, b"\xaa" * 65_000) and client.send(second, b"\xbb" * 1_000) is False
    client.take_output()
    for sent in (400, 65):
        client.receive(frames.window_update(0, 400))
        assert client.take_output().count(b"\xbb") == sent
