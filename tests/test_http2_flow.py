"""The HTTP/2 codec's flow control, and what it does about floods and beyond its limits."""

from __future__ import annotations

import h2.events
import pytest

from planes.l7.http2 import SERVER_LIMITS, Http2Client
from planes.l7.http2_connection import GROWN_TOTAL_BYTES, GROWN_WINDOW_BYTES, REFLEX_LIMIT
from planes.l7.message import Response
from planes.mesh import frames
from planes.mesh.hbone import CONTROL_FRAMES_LIMIT, EARLY_RESETS_LIMIT
from planes.mesh.hbone_stream import Limits
from tests.http2_pairs import (
    GET,
    POST,
    Heard,
    Server,
    client,
    codes,
    cross,
    data,
    exchange,
    get,
    handshaken,
    head,
    of,
    oracle,
    pair,
    post,
    taken,
)

# -- flow control -----------------------------------------------------------------------------------------------------


def test_a_held_sink_stops_its_sender_and_no_other():
    """What arrives for a stalled sink is bounded by the stream's window; beside it another stream moves on freely."""
    ours, server = pair(hold_at=1)
    stalled, lively = ours.open(post(), Heard()), ours.open(post(), Heard())
    cross(ours, server.codec)
    chunk = b"x" * 16_384
    for _ in range(100):
        if not stalled.send_data(chunk):
            break
        cross(ours, server.codec)
    cross(ours, server.codec)
    assert len(server.heard[0].body) == SERVER_LIMITS.stream_window_bytes
    server.heard[1]._hold_at = None
    sent = 0
    while sent < 3 * SERVER_LIMITS.connection_window_bytes:
        assert lively.send_data(chunk), f"the other stream stands after {sent} bytes"
        cross(ours, server.codec)
        server.heard[1].body = b""
        sent += len(chunk)
    assert len(server.heard[0].body) == SERVER_LIMITS.stream_window_bytes
    assert stalled.sink.writables == 0


def test_many_held_sinks_do_not_stop_the_connection():
    """More of them than the connection's window has room for."""
    ours, server = pair(hold_at=1)
    for _ in range(SERVER_LIMITS.connection_window_bytes // SERVER_LIMITS.stream_window_bytes + 4):
        stream = ours.open(post(), Heard())
        stream.send_data(b"x" * SERVER_LIMITS.stream_window_bytes)
        cross(ours, server.codec)
        assert len(server.heard[-1].body) == SERVER_LIMITS.stream_window_bytes


def test_a_sink_that_keeps_up_gets_a_larger_window():
    """Its sender has more under way at a time, and no more than the grown window once the sink stops taking it."""
    ours, server = pair()
    stream = ours.open(post(), Heard())
    chunk = b"x" * 16_384
    for _ in range(GROWN_WINDOW_BYTES // len(chunk)):
        assert stream.send_data(chunk)
        cross(ours, server.codec)
    server.heard[0]._hold_at = 0
    stream.send_data(chunk)
    cross(ours, server.codec)
    began = len(server.heard[0].body)
    for _ in range(2 * GROWN_WINDOW_BYTES // len(chunk)):
        if not stream.send_data(chunk):
            break
        cross(ours, server.codec)
    cross(ours, server.codec)
    more = len(server.heard[0].body) - began
    assert SERVER_LIMITS.stream_window_bytes < more <= GROWN_WINDOW_BYTES


def test_what_all_windows_grow_by_is_bounded():
    """However many sinks keep up, a connection's windows come to no more than the sum that is set."""
    ours, server = pair()
    streams = [ours.open(post(), Heard()) for _ in range(40)]
    for stream in streams:
        for _ in range(SERVER_LIMITS.stream_window_bytes // 16_384):
            assert stream.send_data(b"x" * 16_384)
            cross(ours, server.codec)
    first = SERVER_LIMITS.stream_window_bytes
    grown = sum(s.window - first for s in server.codec.streams.values())
    assert GROWN_TOTAL_BYTES - GROWN_WINDOW_BYTES < grown <= GROWN_TOTAL_BYTES


def test_a_released_sink_lets_its_sender_go_on():
    """`writable` comes once the window is back and what waited is out, and every byte arrives in order."""
    ours, server = pair(hold_at=1)
    heard = Heard()
    stream = ours.open(post(), heard)
    sent = b""
    for number in range(100):
        chunk = b"%08d" % number * 2048
        sent += chunk
        if not stream.send_data(chunk):
            break
        cross(ours, server.codec)
    stream.end([(b"x", b"1")])
    for _ in range(100):
        server.streams[0].release()
        cross(ours, server.codec)
    assert heard.writables == 0  # nothing more is to be sent: it was ended
    assert server.heard[0].body == sent and server.heard[0].trailers == [(b"x", b"1")]


def test_a_full_transport_stops_senders_until_it_is_empty():
    """`write_blocked` is back-pressure as well: taken, but no more until `writable`, which comes once."""
    ours, _ = pair()
    heard = Heard()
    stream = ours.open(post(), heard)
    ours.set_write_blocked(True)
    assert stream.send_data(b"a") is False
    taken(ours)
    ours.set_write_blocked(False)
    assert heard.writables == 1
    assert stream.send_data(b"b") is True
    ours.set_write_blocked(True)
    ours.set_write_blocked(False)
    assert heard.writables == 1


def test_the_window_comes_before_the_transport():
    """Waiting for both: the window's opening alone does not make a sink writable."""
    ours, theirs = client(), oracle(client=False)
    exchange(ours, theirs)
    heard = Heard()
    stream = ours.open(post(), heard)
    assert stream.send_data(b"x" * 70_000) is False
    exchange(ours, theirs)
    ours.set_write_blocked(True)
    theirs.increment_flow_control_window(100_000)
    theirs.increment_flow_control_window(100_000, 1)
    exchange(ours, theirs)
    assert heard.writables == 0
    ours.set_write_blocked(False)
    assert heard.writables == 1


# -- floods and limits ------------------------------------------------------------------------------------------------


def test_too_long_a_header_list_is_answered_431():
    """The stream alone is refused: the connection's tables are right afterwards."""
    server, theirs = Server(Limits(max_header_list_bytes=4_000)), oracle(client=True)
    exchange(server.codec, theirs)
    theirs.remote_settings.acknowledge()
    long = [(b"x-%d" % n, b"v" * 100) for n in range(40)]
    theirs.send_headers(1, [*GET, *long], end_stream=True)
    events = exchange(server.codec, theirs)
    assert (b":status", b"431") in [tuple(f) for f in of(events, h2.events.ResponseReceived)[0].headers]
    theirs.send_headers(3, [*GET, long[-1]], end_stream=True)
    exchange(server.codec, theirs)
    assert [request.fields for request in server.requests] == [[long[-1]]]


def test_too_long_a_response_list_resets_its_stream():
    """Nothing of it is passed on."""
    ours, heard = Http2Client(lambda: None, limits=Limits(max_header_list_bytes=1_000)), Heard()
    ours.receive(frames.settings(()))
    ours.open(get(), heard)
    ours.receive(head([(b":status", b"200"), *((b"x-%d" % n, b"v" * 100) for n in range(20))]))
    assert len(heard.resets) == 1 and heard.heads == []


def flooded(wire: bytes, server: Server) -> list[tuple[int, str]]:
    server.codec.receive(wire)
    assert server.codec.closing
    return codes(taken(server.codec), frames.GOAWAY)


PING = frames.frame(frames.PING, 0, 0, b"12345678")
FLOODS = {
    "ping": PING * (CONTROL_FRAMES_LIMIT + 1),
    "settings": frames.settings([(3, 9)]) * (CONTROL_FRAMES_LIMIT + 1),
    "empty data": head(POST, end=False) + data(b"") * (CONTROL_FRAMES_LIMIT + 1),
    "priority": frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\3\1") * (CONTROL_FRAMES_LIMIT + 1),
    "window updates": head(POST, end=False) + frames.window_update(1, 1) * (CONTROL_FRAMES_LIMIT + 1),
    "empty continuations": frames.frame(frames.HEADERS, 0, 1, b"")
    + frames.frame(frames.CONTINUATION, 0, 1) * (CONTROL_FRAMES_LIMIT + 1),
    "continuations": frames.frame(frames.HEADERS, 0, 1, b"")
    + frames.frame(frames.CONTINUATION, 0, 1, b"\0" * 16_000) * 9,
    "rapid reset": b"".join(
        head(GET, n) + frames.rst_stream(n, 8) for n in range(1, 2 * EARLY_RESETS_LIMIT + 4, 2)
    ),
    "made to reset": b"".join(
        head(POST, n, end=False) + frames.window_update(n, 0) for n in range(1, 2 * EARLY_RESETS_LIMIT + 4, 2)
    ),
    "malformed": b"".join(head(GET[1:], n) for n in range(1, 2 * EARLY_RESETS_LIMIT + 4, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_the_connection(name: str):
    """GOAWAY(ENHANCE_YOUR_CALM), and nothing more is read."""
    assert [code for _, code in flooded(FLOODS[name], handshaken(Server()))] == ["ENHANCE_YOUR_CALM"]


def test_pings_between_requests_are_a_flood_while_nothing_is_taken():
    """A peer that makes us answer and does not read would fill our output, whatever it sends in between."""
    server = handshaken(Server())
    server.codec.set_write_blocked(True)
    wire = PING * 500 + head(GET, 1)
    rounds = 0
    while not server.codec.closing:
        server.codec.receive(wire)
        wire, rounds = PING * 500 + head(GET, 2 * rounds + 3), rounds + 1
        assert rounds * 500 <= REFLEX_LIMIT + 1_000
    assert codes(taken(server.codec), frames.GOAWAY)[0][1] == "ENHANCE_YOUR_CALM"


def test_cancelled_calls_are_no_flood_where_others_are_answered():
    """A long-lived connection whose every third call meets its deadline lives on."""
    server = handshaken(Server())
    number = 1
    for _ in range(EARLY_RESETS_LIMIT * 2):
        server.codec.receive(head(GET, number) + frames.rst_stream(number, 8) + head(GET, number + 2))
        server.streams[-1].send_head(Response(200, []))
        number += 4
    assert not server.codec.closing
