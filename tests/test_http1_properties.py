"""The HTTP/1 codec under random cuts, random bytes, and read by another implementation (h11)."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planes.l7.message import Request, Response
from tests.http1peers import Client, Server, ok

tokens = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.!", min_size=1, max_size=12).map(
    lambda t: b"x-" + t.encode()
)
values = st.binary(max_size=30).map(lambda v: bytes(b for b in v if b == 9 or 32 <= b != 127).strip(b" \t"))
field_lists = st.lists(st.tuples(tokens, values), max_size=8)
bodies = st.none() | st.lists(st.binary(max_size=40), max_size=5)
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"BREW"])
paths = st.text("abc/?&=%20.~", max_size=20).map(lambda p: b"/" + p.encode())
NASTY = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\n", b"Content-Length: 3\r\n\r\nabc",
    b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"\r\n", b"\n", b"\r", b" ", b":", b"\0",
    b"0\r\nX: y\r\n\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Host: a\r\n", b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", b"ffffffffffffffffff\r\n",
]  # fmt: skip
streams = st.lists(st.sampled_from(NASTY) | st.binary(max_size=12), max_size=14).map(b"".join)


def message(start: bytes, fields: list[tuple[bytes, bytes]], body: list[bytes] | None, chunked: bool) -> bytes:
    """A message as any peer might write it."""
    lines = [start, *(n + b":" + v for n, v in fields)]
    if body is None:
        return b"\r\n".join([*lines, b"", b""])
    if chunked:
        chunks = b"".join(b"%x;e=1\r\n%b\r\n" % (len(p), p) for p in body if p)
        return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", chunks + b"0\r\nX-T: 1\r\n\r\n"])
    whole = b"".join(body)
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(whole), b"", whole])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    fields = [(b"Host", b"a.b:80"), *draw(field_lists)]
    start = b"%b %b HTTP/1.1" % (draw(methods), draw(paths))
    return message(start, fields, draw(bodies), draw(st.booleans()))


@st.composite
def cut(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """Bytes, and the same in pieces."""
    data = draw(whole)
    at = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return data, [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def story(server: Server) -> list[Any]:
    """All that a server heard and said."""
    heads = [(r.method, r.authority, r.path, r.fields, r.has_body, r.content_length) for r in server.requests]
    return [heads, [s.calls for s in server.sinks], b"".join(server.codec.out), server.codec.closing]


class TestCuts:
    @given(cut(st.lists(requests(), min_size=1, max_size=4).map(b"".join)))
    def test_requests_are_the_same_however_they_are_cut(self, given: tuple[bytes, list[bytes]]) -> None:
        """Heads, bodies, trailers, answers; each answered on the spot once it is whole."""
        data, pieces = given
        whole, cut_up = Server(), Server()
        for server, parts in ((whole, [data]), (cut_up, pieces)):
            for part in parts:
                server.receive(part)
                finish(server)
        assert whole.requests
        assert story(whole) == story(cut_up)

    @given(cut(streams))
    def test_nonsense_is_the_same_however_it_is_cut(self, given: tuple[bytes, list[bytes]]) -> None:
        """The same requests before the breach, the same refusal."""
        data, pieces = given
        whole, cut_up = Server().receive(data), Server().receive(*pieces)
        finish(whole)
        finish(cut_up)
        assert story(whole) == story(cut_up)

    @given(cut(st.tuples(st.lists(st.sampled_from([100, 103]), max_size=2), field_lists, bodies, st.booleans()).map(
        lambda t: b"".join(b"HTTP/1.1 %d X\r\n\r\n" % s for s in t[0])
        + message(b"HTTP/1.1 200 OK", t[1], t[2], t[3]))))  # fmt: skip
    def test_responses_are_the_same_however_they_are_cut(self, given: tuple[bytes, list[bytes]]) -> None:
        """Interim ones too, and bodies that last until the end."""
        data, pieces = given
        request = Request(b"GET", b"a", b"/", [])
        whole, cut_up = Client(request).receive(data), Client(request).receive(*pieces)
        for client in (whole, cut_up):
            client.codec.receive_eof()
        assert whole.sink.calls == cut_up.sink.calls
        assert not any(call[0] == "reset" for call in whole.sink.calls)


def finish(server: Server) -> None:
    """Answer what is whole until nothing is."""
    done = 0
    while done < len(server.streams):
        stream, sink, request = server.streams[done], server.sinks[done], server.requests[done]
        if not stream.over and (not request.has_body or ("ended" in (call[0] for call in sink.calls))):
            ok(stream)
        done += 1


class TestRandomBytes:
    @given(streams, st.booleans())
    @settings(max_examples=300)
    def test_a_server_survives_and_stops_at_a_breach(self, data: bytes, answers: bool) -> None:
        """Nothing is raised; after a refusal no request comes, whatever follows."""
        server = Server(ok if answers else None).receive(data)
        if server.codec.breach is None:
            return
        heard = len(server.requests)
        assert server.codec.closing
        server.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", data)
        assert len(server.requests) == heard
        assert server.codec.active == 0

    @given(streams, st.sampled_from([b"GET", b"HEAD", b"CONNECT"]))
    @settings(max_examples=300)
    def test_a_client_survives_and_tells_its_sink_once(self, data: bytes, method: bytes) -> None:
        """Of a head at most once, of an end at most once, of nothing after it; a tunnel's other half may be reset."""
        client = Client(Request(method, b"a:1", b"/", [])).receive(data, data)
        client.codec.receive_eof()
        client.codec.lost("gone")
        kinds = [call[0] for call in client.sink.calls]
        assert kinds.count("head") <= 1
        ends = [kind for kind in kinds if kind in ("ended", "reset")]
        assert ends in ([], ["ended"], ["reset"]) or (ends == ["ended", "reset"] and method == b"CONNECT")
        assert kinds[len(kinds) - len(ends) :] == ends
        assert not client.codec.usable

    @given(streams)
    def test_no_request_smuggles_another(self, data: bytes) -> None:
        """What passes is written anew, and h11 reads exactly that one request out of it."""
        server = Server().receive(b"POST /x HTTP/1.1\r\nHost: a\r\n" + data)
        for request, sink in zip(server.requests[:1], server.sinks[:1], strict=True):
            if request.upgrade:
                return
            client = Client(request)
            if request.has_body:
                client.stream.send_data(sink.body)
            if sink.calls and sink.calls[-1][0] == "ended":
                client.stream.end(sink.calls[-1][1])
            elif request.has_body:
                return
            events = h11_events(h11.SERVER, client.sent + client.written())
            assert [type(e) for e in events if not isinstance(e, h11.Data)] == [h11.Request, h11.EndOfMessage]
            assert b"".join(bytes(e.data) for e in events if isinstance(e, h11.Data)) == sink.body


    @given(
        st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404 No\r\n", b"HTTP/1.1 204 No\r\n",
                         b"HTTP/1.1 304 No\r\n"]),
        streams, st.sampled_from([b"GET", b"HEAD"]), st.booleans(),
    )  # fmt: skip
    def test_no_response_splits(self, start: bytes, data: bytes, method: bytes, old: bool) -> None:
        """What passes is written anew, and h11 reads one whole response, or one that is cut, and nothing else."""
        client = Client(Request(method, b"a", b"/", []))
        client.receive(start + data)
        client.codec.receive_eof()
        server = Server().receive(b"%b / HTTP/1.%d\r\nHost: a\r\n\r\n" % (method, not old))
        sink, stream = client.sink, server.stream
        for response in sink.responses:
            stream.send_head(response)
        if not sink.responses or sink.responses[-1].status < 200:
            return
        stream.send_data(sink.body)
        if sink.calls[-1][0] == "reset":
            stream.reset()
            assert server.codec.closing
            return
        stream.end(sink.calls[-1][1] if sink.calls[-1][0] == "ended" else None)
        events = h11_events(h11.CLIENT, server.written(), (method, b"/"), eof=server.codec.closing)
        finals = [type(e) for e in events if not isinstance(e, (h11.Data, h11.InformationalResponse))]
        assert finals == [h11.Response, h11.EndOfMessage]
        assert b"".join(bytes(e.data) for e in events if isinstance(e, h11.Data)) == sink.body


def h11_events(role: Any, data: bytes, request: tuple[bytes, bytes] | None = None, *, eof: bool = False) -> list[Any]:
    """What h11 reads out of bytes, until it needs more."""
    peer = h11.Connection(role)
    if request:
        peer.send(h11.Request(method=request[0], target=request[1], headers=[("host", "a")]))
        peer.send(h11.EndOfMessage())
    events = []
    for part in (data, b"") if eof else (data,):
        peer.receive_data(part)
        while (event := peer.next_event()) not in (h11.NEED_DATA, h11.PAUSED) and not isinstance(
            event, h11.ConnectionClosed
        ):
            events.append(event)
    return events


class TestReadByH11:
    @given(methods, paths, field_lists, bodies, st.booleans())
    def test_requests(self, method: bytes, path: bytes, fields: Any, body: list[bytes] | None, sized: bool) -> None:
        """Written by our client, read by h11: the same head, body and trailers."""
        length = sum(map(len, body)) if body is not None and sized else None
        fields = [(n.lower(), v) for n, v in fields]
        request = Request(method, b"a", path, fields, has_body=body is not None, content_length=length)
        client = Client(request)
        for part in body or ():
            client.stream.send_data(part)
        client.stream.end([(b"x-t", b"1")])
        head, *rest, end = h11_events(h11.SERVER, client.sent + client.written())
        assert (head.method, head.target) == (method, path)
        own = {b"host", b"content-length", b"transfer-encoding"}
        assert [(n, v) for n, v in head.headers if n not in own] == fields
        assert b"".join(bytes(e.data) for e in rest) == b"".join(body or [])
        assert list(end.headers) == ([(b"x-t", b"1")] if body is not None and not sized else [])

    @given(st.sampled_from([b"GET", b"HEAD"]), st.sampled_from([200, 204, 304, 404, 503]), field_lists, bodies,
           st.booleans(), st.booleans())  # fmt: skip
    def test_responses(
        self, method: bytes, status: int, fields: Any, body: list[bytes] | None, sized: bool, old: bool
    ) -> None:
        """Written by our server to a client of HTTP/1.1 or 1.0, read by h11."""
        length = sum(map(len, body)) if body is not None and sized else None
        fields = [(n.lower(), v) for n, v in fields]
        server = Server().receive(b"%b / HTTP/1.%d\r\nHost: a\r\n\r\n" % (method, not old))
        stream = server.stream
        stream.send_head(Response(status, fields, has_body=body is not None, content_length=length))
        for part in body or ():
            stream.send_data(part)
        stream.end([(b"x-t", b"1")])
        head, *rest = h11_events(h11.CLIENT, server.written(), (method, b"/"), eof=server.codec.closing)
        assert head.status_code == status
        own = {b"content-length", b"transfer-encoding", b"connection"}
        assert [(n, v) for n, v in head.headers if n not in own] == fields
        bodiless = method == b"HEAD" or status in (204, 304)
        assert b"".join(bytes(e.data) for e in rest if isinstance(e, h11.Data)) == (
            b"" if bodiless else b"".join(body or []))  # fmt: skip
        assert isinstance(rest[-1], h11.EndOfMessage)

    def test_what_h11_writes_we_read(self) -> None:
        """A request with chunks and trailers, and its answer."""
        peer = h11.Connection(h11.CLIENT)
        headers = [("Host", "a"), ("Transfer-Encoding", "chunked")]
        data = peer.send(h11.Request(method="POST", target="/p", headers=headers))
        data += peer.send(h11.Data(data=b"abc")) + peer.send(h11.EndOfMessage(headers=[("X-T", "1")]))
        server = Server().receive(data)
        assert server.request.path == b"/p"
        assert server.sink.calls == [("data", b"abc"), ("ended", [(b"x-t", b"1")])]
        ok(server.stream)
        peer.receive_data(server.written())
        answer, body = peer.next_event(), peer.next_event()
        assert isinstance(answer, h11.Response)
        assert bytes(body.data) == b"ok"

    @pytest.mark.parametrize("switch", [b"websocket"])
    def test_websocket_handshake(self, switch: bytes) -> None:
        """h11 asks, we relay through both roles, and its side switches too."""
        peer = h11.Connection(h11.CLIENT)
        data = peer.send(h11.Request(method="GET", target="/chat", headers=[
            ("Host", "a"), ("Upgrade", switch), ("Connection", "Upgrade"), ("Sec-WebSocket-Key", "k")]))  # fmt: skip
        peer.send(h11.EndOfMessage())
        server = Server().receive(data)
        client = Client(server.request)
        app = h11.Connection(h11.SERVER)
        app.receive_data(client.sent)
        asked = app.next_event()
        assert (b"sec-websocket-key", b"k") in list(asked.headers)
        app.next_event()
        reply = app.send(h11.InformationalResponse(status_code=101, headers=[
            ("Upgrade", switch), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "s")]))  # fmt: skip
        client.receive(reply + b"\x81\x02hi")
        _, status, fields, *_ = client.sink.calls[0]
        server.stream.send_head(Response(status, fields, upgrade=switch))
        server.stream.send_data(client.sink.body)
        peer.receive_data(server.written())
        switched = peer.next_event()
        assert isinstance(switched, h11.InformationalResponse)
        assert peer.trailing_data[0] == b"\x81\x02hi"
        server.receive(b"\x88\x00")
        client.stream.send_data(server.sink.body)
        assert client.written() == b"\x88\x00"
