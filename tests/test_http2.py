"""The HTTP/2 codec, judged by hyper-h2 in both roles and by frames written by hand."""

from __future__ import annotations

import h2.events
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planes.l7.message import Request, Response
from planes.mesh import frames
from planes.mesh.hbone_stream import Limits
from testbed.errors import Bug
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

# -- exchanges, with h2 as the other end ------------------------------------------------------------------------------


def test_our_client_asks_an_h2_server():
    """Head, body and trailers arrive as meant in both directions, an interim response before the final."""
    ours, theirs, heard = client(), oracle(client=False), Heard()
    exchange(ours, theirs)
    stream = ours.open(post(fields=[(b"x-a", b"1")]), heard)
    stream.send_data(b"ping")
    stream.end([(b"x-sum", b"9")])
    events = exchange(ours, theirs)
    assert [tuple(f) for f in of(events, h2.events.RequestReceived)[0].headers] == [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/in"), (b":authority", b"shop:80"), (b"x-a", b"1"),
    ]  # fmt: skip
    assert of(events, h2.events.DataReceived)[0].data == b"ping"
    assert [tuple(f) for f in of(events, h2.events.TrailersReceived)[0].headers] == [(b"x-sum", b"9")]
    theirs.send_headers(1, [(b":status", b"103"), (b"link", b"</a>")])
    theirs.send_headers(1, [(b":status", b"200"), (b"content-length", b"4")])
    theirs.send_data(1, b"pong")
    theirs.send_headers(1, [(b"grpc-status", b"0")], end_stream=True)
    exchange(ours, theirs)
    assert heard.interims == [103]
    (response,) = heard.heads
    assert (response.status, response.version, response.has_body, response.content_length) == (200, "2", True, 4)
    assert (heard.body, heard.trailers, heard.resets) == (b"pong", [(b"grpc-status", b"0")], [])
    assert ours.active == 0 and ours.usable


def test_our_server_answers_an_h2_client():
    """Huffman, dynamic table, crumbled cookies and host beside :authority all become one plain head."""
    server, theirs = Server(), oracle(client=True)
    exchange(server.codec, theirs)
    for number in (1, 3, 5):
        fields = [(b"cookie", b"a=1"), (b"x-b", b"2"), (b"cookie", b"c=3"), (b"te", b"trailers"), (b"host", b"SHOP:80")]
        theirs.send_headers(number, [*GET, *fields], end_stream=True)
        exchange(server.codec, theirs)
        request = server.requests[-1]
        assert (request.method, request.authority, request.path, request.scheme, request.version) == (
            b"GET", b"shop:80", b"/", b"http", "2",
        )  # fmt: skip
        assert request.fields == [(b"cookie", b"a=1; c=3"), (b"x-b", b"2"), (b"te", b"trailers")]
        assert not request.has_body
        stream = server.streams[-1]
        stream.send_head(Response(100, []))
        stream.send_head(Response(200, [(b"content-length", b"5")], has_body=True, content_length=5))
        stream.send_data(b"he")
        stream.send_data(b"llo")
        stream.end()
        events = exchange(server.codec, theirs)
        assert (b":status", b"200") in [tuple(f) for f in of(events, h2.events.ResponseReceived)[0].headers]
        assert b"".join(e.data for e in of(events, h2.events.DataReceived)) == b"hello"
        assert of(events, h2.events.StreamEnded) and of(events, h2.events.InformationalResponseReceived)
    assert server.codec.active == 0


@pytest.mark.parametrize("has_trailers", [False, True])
def test_a_head_alone_ends_its_message(has_trailers: bool):
    """A request and a response without body are one frame each; gRPC's trailers-only answer is such a one."""
    ours, server = pair()
    heard = Heard()
    ours.open(get(fields=[(b"te", b"trailers")]), heard)
    assert [e[3] for e in ours.out] == [frames.HEADERS]
    cross(ours, server.codec)
    fields = [(b"grpc-status", b"5")] if has_trailers else []
    server.streams[0].send_head(Response(200, fields))
    assert server.codec.out[0][4] & frames.END_STREAM
    cross(ours, server.codec)
    assert [(r.status, r.has_body, r.fields) for r in heard.heads] == [(200, False, fields)]
    assert heard.trailers is None and ours.active == server.codec.active == 0


def test_the_last_data_frame_carries_the_end():
    """No empty DATA frame where the body's last bytes have not left yet; one where they have."""
    ours, server = pair()
    stream = ours.open(post(), Heard())
    stream.send_data(b"abc")
    stream.end()
    assert taken(ours).endswith(data(b"abc", end=True))
    stream = ours.open(post(), Heard())
    stream.send_data(b"abc")
    server.codec.receive(taken(ours))
    stream.end()
    assert taken(ours) == data(b"", 3, end=True)


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
@pytest.mark.parametrize("separate_end", [False, True])
def test_answers_without_a_body_end_with_their_head(method: bytes, status: int, separate_end: bool):
    """Also where END_STREAM comes in a frame of its own; their content-length announces nothing."""
    ours, theirs, heard = client(), oracle(client=False), Heard()
    exchange(ours, theirs)
    ours.open(Request(method, b"shop:80", b"/", []), heard)
    exchange(ours, theirs)
    length = [(b"content-length", b"10")] if status != 204 else []
    theirs.send_headers(1, [(b":status", b"%d" % status), *length], end_stream=not separate_end)
    wire = theirs.data_to_send() + (data(b"", end=True) if separate_end else b"")
    ours.receive(wire)
    assert [(r.status, r.has_body, r.content_length) for r in heard.heads] == [(status, False, 10 if length else None)]
    assert (heard.trailers, heard.resets, ours.active) == (None, [], 0)


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=3000),
    trailers=st.sampled_from([[], [(b"grpc-status", b"0")]]),
    cuts=st.lists(st.integers(min_value=1, max_value=50), min_size=1, max_size=40),
)
def test_splits_do_not_matter(body: bytes, trailers: list, cuts: list[int]):
    """The same bytes in any pieces are the same request, and the same response."""

    def trickle(source: object, target: object) -> None:
        wire, at, turn = taken(source), 0, 0
        while at < len(wire):
            size = cuts[turn % len(cuts)]
            target.receive(wire[at : at + size])
            at, turn = at + size, turn + 1

    ours, server, heard = client(), Server(), Heard()
    stream = ours.open(post(len(body), [(b"x-long", b"v" * 200)]), heard)
    stream.send_data(body)
    stream.end(trailers)
    trickle(ours, server.codec)
    assert server.requests[0].fields == [(b"x-long", b"v" * 200), (b"content-length", b"%d" % len(body))]
    assert (server.heard[0].body, server.heard[0].trailers) == (body, trailers)
    server.streams[0].send_head(Response(200, [(b"x-b", b"1")], has_body=True))
    server.streams[0].send_data(body)
    server.streams[0].end(trailers)
    trickle(server.codec, ours)
    assert (heard.heads[0].fields, heard.body, heard.trailers) == ([(b"x-b", b"1")], body, trailers)


def test_header_blocks_longer_than_a_frame_are_continued():
    """40 kB of fields cross in both roles by CONTINUATION."""
    ours, server = pair()
    long = [(b"x-%d" % n, b"v" * 4000) for n in range(10)]
    ours.open(get(fields=long), Heard())
    cross(ours, server.codec)
    assert server.requests[0].fields == long


def test_wake_is_called_for_what_is_not_an_answer_to_bytes():
    """A shell need not look at `out` unless it delivered bytes or was woken."""
    ours, server = pair()
    ours.open(get(), Heard())
    cross(ours, server.codec)
    assert server.wakes == 0
    server.streams[0].send_head(Response(200, []))
    assert server.wakes == 1


# -- malformed messages: RFC 9113 8.1.1, 8.2, 8.3 ---------------------------------------------------------------------

MALFORMED = {
    "upper case name": [*GET, (b"X-A", b"1")],
    "space in a name": [*GET, (b"x a", b"1")],
    "colon in a name": [*GET, (b"x:a", b"1")],
    "empty name": [*GET, (b"", b"1")],
    "high octet in a name": [*GET, (b"x\xff", b"1")],
    "NUL in a value": [*GET, (b"x", b"a\0b")],
    "CR in a value": [*GET, (b"x", b"a\rb")],
    "LF in a value": [*GET, (b"x", b"a\nb: c")],
    "value starts with space": [*GET, (b"x", b" a")],
    "value ends with tab": [*GET, (b"x", b"a\t")],
    "connection": [*GET, (b"connection", b"x-a")],
    "keep-alive": [*GET, (b"keep-alive", b"1")],
    "proxy-connection": [*GET, (b"proxy-connection", b"close")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "upgrade": [*GET, (b"upgrade", b"websocket")],
    "te gzip": [*GET, (b"te", b"gzip")],
    "unknown pseudo-field": [*GET, (b":shop", b"1")],
    ":status in a request": [(b":status", b"200"), *GET],
    "late pseudo-field": [*GET[:3], (b"x", b"1"), GET[3]],
    "pseudo-field twice": [*GET, (b":path", b"/b")],
    ":method twice": [GET[0], *GET],
    "no :method": GET[1:],
    "no :scheme": [GET[0], *GET[2:]],
    "no :path": [*GET[:2], GET[3]],
    "empty :path": [*GET[:2], (b":path", b""), GET[3]],
    "relative :path": [*GET[:2], (b":path", b"a"), GET[3]],
    "* for a GET": [*GET[:2], (b":path", b"*"), GET[3]],
    "space in :path": [*GET[:2], (b":path", b"/a b HTTP/1.1"), GET[3]],
    "control in :path": [*GET[:2], (b":path", b"/a\x01"), GET[3]],
    "fragment in :path": [*GET[:2], (b":path", b"/a#b"), GET[3]],
    "bad :method": [(b":method", b"GET /"), *GET[1:]],
    "no authority at all": GET[:3],
    "empty :authority": [*GET[:3], (b":authority", b"")],
    "userinfo": [*GET[:3], (b":authority", b"me@shop")],
    "host differs": [*GET, (b"host", b"other")],
    "two hosts": [*GET, (b"host", b"shop:80"), (b"host", b"shop:80")],
    "host with a space": [*GET[:3], (b"host", b"shop 80")],
    "content-length without content": [*GET, (b"content-length", b"3")],
    "content-length no number": [*GET, (b"content-length", b"+0")],
    "content-length list": [*GET, (b"content-length", b"0, 0")],
    "two content-lengths": [*GET, (b"content-length", b"0"), (b"content-length", b"00000001")],
    "CONNECT with :path": [(b":method", b"CONNECT"), (b":path", b"/"), GET[3]],
    "CONNECT with host only": [(b":method", b"CONNECT"), (b"host", b"shop:80")],
    ":protocol with GET": [GET[0], (b":protocol", b"websocket"), *GET[1:]],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_a_stream_error(name: str):
    """RST_STREAM(PROTOCOL_ERROR), nothing is made known, and the next request on the connection is served."""
    server = handshaken(Server())
    server.codec.receive(head(MALFORMED[name]))
    assert codes(taken(server.codec)) == [(1, "PROTOCOL_ERROR")]
    assert server.requests == []
    server.codec.receive(head(GET, 3))
    assert len(server.requests) == 1 and not server.codec.closing


def test_a_bad_field_in_the_table_stays_bad():
    """Inserted with a refused request, then referred to by index: refused again, and so for ever."""
    server = handshaken(Server())
    good = frames.encode_fields(GET)
    server.codec.receive(frames.headers(1, good + b"\x40\x01x\x03a\nb", end=True, max_frame_size=16384))
    server.codec.receive(frames.headers(3, good + b"\xbe", end=True, max_frame_size=16384))
    server.codec.receive(frames.headers(5, good, end=True, max_frame_size=16384))
    assert codes(taken(server.codec)) == [(1, "PROTOCOL_ERROR"), (3, "PROTOCOL_ERROR")]
    assert len(server.requests) == 1


def test_a_bad_field_of_a_refused_stream_stays_bad():
    """The block of a stream over the limit is not looked at otherwise, but its fields enter the table."""
    server = handshaken(Server(Limits(max_concurrent_streams=1)))
    server.codec.receive(head(POST, end=False))
    good = frames.encode_fields(GET)
    server.codec.receive(frames.headers(3, good + b"\x40\x01x\x03a\nb", end=True, max_frame_size=16384))
    server.codec.receive(frames.rst_stream(1, 8))
    server.codec.receive(frames.headers(5, good + b"\xbe", end=True, max_frame_size=16384))
    assert codes(taken(server.codec)) == [(3, "REFUSED_STREAM"), (5, "PROTOCOL_ERROR")]
    assert len(server.requests) == 1


def test_a_block_is_read_anew_when_the_table_has_changed():
    """The same octets refer to another field once something was inserted."""
    server = handshaken(Server())
    good = frames.encode_fields(GET[:3]) + b"\x41\x04shop"
    server.codec.receive(frames.headers(1, good, end=True, max_frame_size=16384))
    again = frames.headers(3, b"\x82\x86\x84\xbe", end=True, max_frame_size=16384)
    server.codec.receive(again + again.replace(b"\0\0\0\3", b"\0\0\0\5"))
    other = frames.encode_fields(GET[:3]) + b"\x41\x04cart"
    server.codec.receive(frames.headers(7, other, end=True, max_frame_size=16384))
    server.codec.receive(again.replace(b"\0\0\0\3", b"\0\0\0\x09"))
    assert [request.authority for request in server.requests] == [b"shop", b"shop", b"shop", b"cart", b"cart"]


def test_a_peer_without_a_table_gets_none_used():
    """SETTINGS_HEADER_TABLE_SIZE 0: told back in the next block, and every block can be read by itself."""
    ours = client()
    ours.receive(frames.settings([(frames.HEADER_TABLE_SIZE, 0)]))
    taken(ours)
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    for _ in range(4):
        ours.open(get(fields=[(b"x", b"1")]), Heard())
        assert (b"x", b"1") in [tuple(field) for field in decoder.decode(taken(ours)[9:], raw=True)]


@pytest.mark.parametrize("wire", [
    data(b"abcd"), data(b"ab", end=True), data(b"ab") + data(b"cd"), head([(b"x-sum", b"1")]),
    data(b"abc") + data(b"d", end=True),
])  # fmt: skip
def test_content_that_differs_from_its_length_is_a_stream_error(wire: bytes):
    """Too much or too little against content-length 3: whoever has part of it already hears of a reset, not an end."""
    server = handshaken(Server())
    server.codec.receive(head([*POST, (b"content-length", b"3")], end=False) + wire)
    assert codes(taken(server.codec)) == [(1, "PROTOCOL_ERROR")]
    assert len(server.heard[0].resets) == 1 and server.heard[0].trailers is None
    assert len(server.heard[0].body) <= 3


@pytest.mark.parametrize("trailers", [
    [(b"Upper", b"1")], [(b":path", b"/")], [(b"connection", b"a")], [(b"x", b"a\rb")], [(b"transfer-encoding", b"x")],
])  # fmt: skip
def test_malformed_trailers_reset_the_request(trailers: list):
    """The body was passed on, so its sink hears of a reset instead of an end."""
    server = handshaken(Server())
    server.codec.receive(head(POST, end=False) + data(b"abc") + head(trailers))
    assert codes(taken(server.codec)) == [(1, "PROTOCOL_ERROR")]
    assert server.heard[0].resets and server.heard[0].trailers is None


def test_trailers_without_an_end_are_malformed():
    """RFC 9113 8.1: HEADERS behind a body must end the stream."""
    server = handshaken(Server())
    server.codec.receive(head(POST, end=False) + head([(b"x", b"1")], end=False))
    assert codes(taken(server.codec)) == [(1, "PROTOCOL_ERROR")]


def test_framing_fields_in_trailers_are_left_out():
    """RFC 9110 6.5.1: content-length or host behind the body must not be taken for the message's own."""
    server = handshaken(Server())
    server.codec.receive(head(POST, end=False) + head([(b"content-length", b"9"), (b"x", b"1"), (b"host", b"other")]))
    assert server.heard[0].trailers == [(b"x", b"1")]


@pytest.mark.parametrize("fields", [
    [(b"x", b"1")], [(b":status", b"99")], [(b":status", b"2000")], [(b":status", b"200"), (b":status", b"200")],
    [(b":status", b"200"), (b":path", b"/")], [(b":status", b"200"), (b"connection", b"close")],
    [(b":status", b"101")], [(b":status", b"200"), (b"X", b"1")], [(b"x", b"1"), (b":status", b"200")],
    [(b":status", b"200"), (b"content-length", b"x")],
])  # fmt: skip
def test_a_malformed_response_is_a_stream_error(fields: list):
    """The sink hears of a reset, the peer PROTOCOL_ERROR, and the connection goes on."""
    ours, heard = client(), Heard()
    ours.receive(frames.settings(()))
    ours.open(get(), heard)
    taken(ours)
    ours.receive(head(fields, end=False))
    assert codes(taken(ours)) == [(1, "PROTOCOL_ERROR")]
    assert [unprocessed for _, unprocessed in heard.resets] == [False] and heard.heads == []
    assert ours.usable


def test_content_length_of_a_response_is_checked():
    """A response that is cut short never looks whole."""
    ours, heard = client(), Heard()
    ours.receive(frames.settings(()))
    ours.open(get(), heard)
    ours.receive(head([(b":status", b"200"), (b"content-length", b"5")], end=False) + data(b"abc", end=True))
    assert heard.resets and heard.trailers is None


def test_host_stands_in_for_authority():
    """RFC 9113 8.3.1 lets a request converted from HTTP/1.1 have host alone."""
    server = handshaken(Server())
    server.codec.receive(head([*GET[:3], (b"host", b"shop:80"), (b"x", b"1")]))
    assert (server.requests[0].authority, server.requests[0].fields) == (b"shop:80", [(b"x", b"1")])


# -- CONNECT ----------------------------------------------------------------------------------------------------------


def test_connect_is_a_tunnel_both_ways():
    """Plain CONNECT: bytes flow after 200, each direction ends for itself."""
    ours, server = pair()
    heard = Heard()
    stream = ours.open(Request(b"CONNECT", b"db:5432", b"", [], has_body=True), heard)
    cross(ours, server.codec)
    assert (server.requests[0].method, server.requests[0].authority, server.requests[0].path) == (
        b"CONNECT", b"db:5432", b"",
    )  # fmt: skip
    server.streams[0].send_head(Response(200, [], has_body=True))
    server.streams[0].send_data(b"hello")
    server.streams[0].end()
    cross(ours, server.codec)
    stream.send_data(b"still here")
    stream.end()
    cross(ours, server.codec)
    assert (heard.body, heard.trailers) == (b"hello", [])
    assert (server.heard[0].body, server.heard[0].trailers, server.heard[0].resets) == (b"still here", [], [])
    assert ours.active == server.codec.active == 0


def test_a_websocket_crosses_by_extended_connect():
    """RFC 8441: GET with an upgrade goes as CONNECT with :protocol, its 101 as 200, without HTTP/1's key and proof."""
    ours, server = pair()
    heard = Heard()
    assert ours.extended_connect
    stream = ours.open(get(b"/chat", [(b"sec-websocket-key", b"k"), (b"origin", b"x")], upgrade=b"websocket"), heard)
    cross(ours, server.codec)
    request = server.requests[0]
    assert (request.method, request.path, request.upgrade, request.has_body) == (b"GET", b"/chat", b"websocket", True)
    assert request.fields == [(b"origin", b"x")]
    server.streams[0].send_head(Response(101, [(b"sec-websocket-accept", b"p")], upgrade=b"websocket"))
    server.streams[0].send_data(b"frame")
    stream.send_data(b"other frame")
    cross(ours, server.codec)
    assert [(r.status, r.upgrade, r.fields) for r in heard.heads] == [(101, b"websocket", [])]
    assert (heard.body, server.heard[0].body) == (b"frame", b"other frame")


def test_an_upgrade_needs_a_peer_that_takes_it():
    """h2's server has not said ENABLE_CONNECT_PROTOCOL: asking it nevertheless is our fault."""
    ours, theirs = client(), oracle(client=False)
    exchange(ours, theirs)
    with pytest.raises(Bug):
        ours.open(get(upgrade=b"websocket"), Heard())


# -- resets, refusals, drain ------------------------------------------------------------------------------------------


def test_resets_reach_the_other_side_by_name():
    """A client's reset is CANCEL, a server's INTERNAL_ERROR, and a name that is passed on keeps its code."""
    ours, server = pair()
    heard = [Heard(), Heard(), Heard()]
    streams = [ours.open(post(), each) for each in heard]
    cross(ours, server.codec)
    streams[0].reset()
    server.streams[1].reset("upstream closed")
    server.streams[2].reset("ENHANCE_YOUR_CALM")
    cross(ours, server.codec)
    assert server.heard[0].resets == [("CANCEL", False)]
    assert heard[1].resets == [("INTERNAL_ERROR", False)]
    assert heard[2].resets == [("ENHANCE_YOUR_CALM", False)]
    assert heard[0].resets == [] and ours.active == server.codec.active == 0
    assert streams[1].send_data(b"late") is True and not ours.out


def test_refused_streams_are_unprocessed():
    """One more than MAX_CONCURRENT_STREAMS is refused, and may be sent again; after the answer it may not."""
    server = handshaken(Server(Limits(max_concurrent_streams=2)))
    for number in (1, 3, 5):
        server.codec.receive(head(POST, number, end=False))
    assert codes(taken(server.codec)) == [(5, "REFUSED_STREAM")]
    ours, first, second = client(), Heard(), Heard()
    ours.receive(frames.settings(()))
    ours.open(post(), first)
    ours.open(post(), second)
    ours.receive(head([(b":status", b"200")], 3, end=False))
    ours.receive(frames.rst_stream(1, frames.REFUSED_STREAM) + frames.rst_stream(3, frames.REFUSED_STREAM))
    assert (first.resets, second.resets) == ([("REFUSED_STREAM", True)], [("REFUSED_STREAM", False)])


def test_the_peers_stream_limit_is_kept():
    """`usable` says so before `open` would break it."""
    ours, _ = pair(Limits(max_concurrent_streams=1))
    stream = ours.open(get(), Heard())
    assert not ours.usable
    with pytest.raises(Bug):
        ours.open(get(), Heard())
    stream.reset()
    assert ours.usable


def test_goaway_tells_what_may_be_sent_again():
    """Streams above the last one are unprocessed, those below finish, then the connection closes; nothing is opened."""
    ours, first, second = client(), Heard(), Heard()
    ours.receive(frames.settings(()))
    ours.open(get(), first)
    ours.open(get(), second)
    ours.receive(frames.goaway(1, 0))
    assert (second.resets, first.resets) == ([("REFUSED_STREAM", True)], [])
    assert not ours.usable and not ours.closing
    ours.receive(head([(b":status", b"200")], 1))
    assert first.heads and ours.closing


def test_an_idle_connection_closes_at_goaway():
    """Nothing is in flight, so nothing is waited for."""
    ours = client()
    ours.receive(frames.settings(()) + frames.goaway(0, 0))
    assert ours.closing


def test_a_server_drains_without_losing_what_is_on_its_way():
    """First GOAWAY promises all; what crosses it is served; behind the PING's answer the last is named."""
    ours, server = pair()
    first, second = Heard(), Heard()
    ours.open(get(), first)
    cross(ours, server.codec)
    server.codec.drain()
    ours.open(get(), second)  # has not seen the GOAWAY yet
    wire = taken(server.codec)
    assert codes(wire, frames.GOAWAY) == [(2**31 - 1, "NO_ERROR")]
    server.codec.receive(taken(ours))
    ours.receive(wire)
    assert not ours.usable
    server.codec.receive(taken(ours))
    assert codes(taken(server.codec), frames.GOAWAY) == [(3, "NO_ERROR")]
    assert len(server.requests) == 2 and not server.codec.closing
    for stream in server.streams:
        stream.send_head(Response(200, []))
    assert server.codec.closing
    cross(ours, server.codec)
    assert first.heads and second.heads and ours.closing


def test_a_client_drains():
    """No more are opened; the connection closes with the last answer."""
    ours, server = pair()
    ours.open(get(), Heard())
    ours.drain()
    cross(ours, server.codec)
    assert not ours.usable and not ours.closing
    server.streams[0].send_head(Response(200, []))
    cross(ours, server.codec)
    assert ours.closing and server.codec.closing


def test_an_early_answer_ends_the_request():
    """RFC 9113 8.1: a whole response before the request's end, then RST_STREAM(NO_ERROR); the client has its answer."""
    ours, server = pair()
    heard = Heard()
    stream = ours.open(post(), heard)
    stream.send_data(b"part")
    cross(ours, server.codec)
    server.streams[0].send_head(Response(413, []))
    assert codes(b"".join(server.codec.out)) == [(1, "NO_ERROR")]
    cross(ours, server.codec)
    assert (heard.heads[0].status, heard.resets) == (413, [])
    assert ours.active == server.codec.active == 0
    assert stream.send_data(b"more") is True and not ours.out


@pytest.mark.parametrize("how", ["lost", "eof", "breach"])
def test_a_lost_connection_resets_its_streams(how: str):
    """Each stream hears it once, as processed for all one knows; the codec closes."""
    ours, heard = client(), Heard()
    ours.receive(frames.settings(()))
    ours.open(get(), heard)
    taken(ours)
    if how == "lost":
        ours.lost("reset by peer")
    elif how == "eof":
        ours.receive_eof()
    else:
        ours.receive(frames.frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2"))
        assert codes(taken(ours), frames.GOAWAY) == [(0, "PROTOCOL_ERROR")]
    ours.lost("again")
    assert [unprocessed for _, unprocessed in heard.resets] == [False]
    assert ours.closing and ours.active == 0 and not ours.usable
