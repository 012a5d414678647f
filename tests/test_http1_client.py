"""The asking side of an HTTP/1 connection, by what goes in and what comes out."""

from __future__ import annotations

import pytest

from planes.l7.message import Request
from testbed.errors import Bug
from tests.http1peers import Client, get

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LENGTH_0, LENGTH_2 = [(b"content-length", b"0")], [(b"content-length", b"2")]
HEAD_OK = ("head", 200, [(b"content-length", b"2")], True, 2)
PUT = get(b"PUT", has_body=True)


class TestAnswers:
    def test_a_connection_is_used_again(self) -> None:
        """Once its answer is whole, and not before."""
        client = Client(get())
        for _ in range(3):
            assert not client.codec.usable
            client.receive(OK[:-1])
            assert not client.codec.usable
            client.receive(OK[-1:])
            assert client.sink.calls == [HEAD_OK, ("data", b"ok"), ("ended", [])]
            assert client.codec.usable
            assert client.open(get()) == b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"

    @pytest.mark.parametrize(("method", "answer", "calls"), [
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", [("head", 200, LENGTH_0, False, 0)]),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", [("head", 200, LENGTH_2, False, 2)]),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", [("head", 200, [], False, None)]),
        (b"GET", b"HTTP/1.1 204 No\r\n\r\n", [("head", 204, [], False, None)]),
        (b"GET", b"HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\n", [("head", 304, LENGTH_2, False, 2)]),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: b\r\n\r\n",
         [("head", 200, [], True, None), ("data", b"a"), ("ended", [(b"x", b"b")])]),
        (b"GET", b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nLink: a\r\n\r\n" + OK,
         [("interim", 100, []), ("interim", 103, [(b"link", b"a")]), HEAD_OK, ("data", b"ok"), ("ended", [])]),
    ])  # fmt: skip
    def test_each_framing(self, method: bytes, answer: bytes, calls: list[object]) -> None:
        """At once and byte by byte, with the connection usable afterwards."""
        for pieces in ([answer], [answer[n : n + 1] for n in range(len(answer))]):
            client = Client(get(method)).receive(*pieces)
            assert client.sink.calls == calls
            assert client.codec.usable
            assert client.codec.active == 0

    def test_a_body_may_last_until_the_end(self) -> None:
        """Of the connection, as HTTP/1.0 servers do."""
        client = Client(get()).receive(b"HTTP/1.0 200 OK\r\n\r\nab", b"c")
        client.codec.receive_eof()
        assert client.sink.calls == [("head", 200, [], True, None), ("data", b"abc"), ("ended", [])]
        assert client.codec.closing

    @pytest.mark.parametrize("answer", [
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"])  # fmt: skip
    def test_a_connection_that_ends_is_not_used_again(self, answer: bytes) -> None:
        """Nor waited for: the answer is whole."""
        client = Client(get()).receive(answer)
        assert client.sink.calls[-1] == ("ended", [])
        assert client.codec.closing
        assert not client.codec.usable

    def test_http_1_0_keep_alive_is_honoured(self) -> None:
        """RFC 9112 9.3: of a response it may be."""
        assert Client(get()).receive(OK.replace(b"1.1 200 OK", b"1.0 200 OK\r\nConnection: keep-alive")).codec.usable

    @pytest.mark.parametrize("extra", [b"x", OK, b"\r\n", b"HTTP/1.1 408 Timeout\r\n\r\n"])
    def test_bytes_after_an_answer_spoil_the_connection(self, extra: bytes) -> None:
        """In the same read or later; they are never taken for the next answer."""
        same = Client(get()).receive(OK + extra)
        assert same.sink.calls[-1] == ("ended", [])
        assert same.codec.closing
        later = Client(get()).receive(OK)
        assert later.codec.usable
        later.receive(extra)
        assert not later.codec.usable
        assert later.codec.closing
        fresh = Client()
        assert fresh.codec.usable
        fresh.receive(extra)
        assert not fresh.codec.usable

    def test_the_next_request_may_go_out_from_within_the_last_call(self) -> None:
        """The pool hands the connection on at once."""
        client = Client(get())
        first = client.sink
        first.ended = lambda trailers: client.open(get())  # type: ignore[method-assign, assignment]
        client.receive(OK)
        assert client.sink is not first
        client.receive(OK)
        assert client.sink.calls == [HEAD_OK, ("data", b"ok"), ("ended", [])]

    def test_a_spoilt_connection_is_never_offered(self) -> None:
        """Not even for the length of the last call, or the bytes behind would answer the next request."""
        client = Client(get())
        client.sink.ended = lambda trailers: client.sink.calls.append(client.codec.usable)  # type: ignore
        client.receive(OK + OK)
        assert client.sink.calls[-1] is False

    def test_open_on_a_busy_connection_is_a_bug(self) -> None:
        """Requests are not pipelined."""
        client = Client(get())
        with pytest.raises(Bug):
            client.open(get())


class TestBodies:
    def test_chunks(self) -> None:
        """With trailers."""
        client = Client(PUT)
        client.stream.send_data(b"abc")
        client.stream.end([(b"x", b"1")])
        assert client.written() == b"3\r\nabc\r\n0\r\nx: 1\r\n\r\n"
        assert client.receive(OK).codec.usable

    def test_a_length(self) -> None:
        """Neither more nor less."""
        request = get(b"PUT", has_body=True, content_length=3)
        client = Client(request)
        client.stream.send_data(b"abc")
        client.stream.end()
        assert client.written() == b"abc"
        with pytest.raises(Bug):
            Client(request).stream.send_data(b"abcd")
        short = Client(request)
        with pytest.raises(Bug):
            short.stream.end()
        assert short.codec.closing

    def test_an_early_answer_ends_the_connection_once_it_is_whole(self) -> None:
        """While it comes, the body may go on."""
        client = Client(PUT)
        client.stream.send_data(b"a")
        client.receive(OK[:-1])
        client.stream.send_data(b"b")
        assert client.written() == b"1\r\na\r\n1\r\nb\r\n"
        client.receive(OK[-1:])
        assert client.sink.calls == [HEAD_OK, ("data", b"ok"), ("ended", [])]
        assert client.codec.closing
        assert client.stream.send_data(b"c")
        client.stream.end()
        assert client.written() == b""

    def test_back_pressure(self) -> None:
        """False while the transport takes no more; `writable` once it does."""
        client = Client(PUT)
        client.codec.set_write_blocked(True)
        assert not client.stream.send_data(b"a")
        client.codec.set_write_blocked(False)
        assert client.sink.calls == [("writable",)]

    def test_a_held_answer_stops_reading(self) -> None:
        """Until it is released, or over."""
        client = Client(get()).receive(OK[:-2])
        client.stream.hold()
        assert client.codec.reading_held
        client.stream.release()
        assert not client.codec.reading_held
        client.stream.hold()
        client.receive(b"ok")
        assert not client.codec.reading_held

    def test_expect_is_sent_on(self) -> None:
        """And the body only when the exchange brings it, once."""
        client = Client(get(b"PUT", [(b"expect", b"100-continue")], has_body=True, expects_continue=True))
        assert b"\r\nexpect: 100-continue\r\n" in client.sent
        client.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert client.written() == b""
        client.stream.send_data(b"a")
        client.stream.end()
        assert client.written() == b"1\r\na\r\n0\r\n\r\n"
        assert client.receive(OK).codec.usable


class TestEnds:
    @pytest.mark.parametrize("came", [
        b"", b"H", OK[:-1], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n"])  # fmt: skip
    def test_an_answer_cut_short_is_a_reset(self, came: bytes) -> None:
        """Not a short answer."""
        client = Client(get()).receive(came)
        client.codec.receive_eof()
        assert client.sink.calls[-1] == ("reset", False)
        assert client.codec.closing

    @pytest.mark.parametrize(("method", "came", "unprocessed"), [
        (b"GET", b"", True), (b"PUT", b"", True), (b"POST", b"", False), (b"PATCH", b"", False), (b"GET", b"H", False),
        (b"GET", b"HTTP/1.1 100 C\r\n\r\n", False)])  # fmt: skip
    def test_a_stale_connection_did_nothing(self, method: bytes, came: bytes, unprocessed: bool) -> None:
        """Kept alive, ended without a byte of answer, idempotent: it may be sent again (RFC 9112 9.3.1)."""
        for end in (lambda c: c.receive_eof(), lambda c: c.lost("reset by peer")):
            client = Client(get()).receive(OK)
            client.open(get(method))
            client.receive(came)
            end(client.codec)
            assert client.sink.calls[-1] == ("reset", unprocessed)

    def test_a_new_connection_that_ends_is_no_stale_one(self) -> None:
        """Its server has seen the request."""
        client = Client(get())
        client.codec.lost("reset by peer")
        assert client.sink.calls == [("reset", False)]

    def test_a_body_until_the_end_that_is_lost_is_not_whole(self) -> None:
        """RST is not FIN."""
        client = Client(get()).receive(b"HTTP/1.1 200 OK\r\n\r\nab")
        client.codec.lost("reset by peer")
        assert client.sink.calls[-1] == ("reset", False)

    def test_an_idle_eof_makes_it_unusable(self) -> None:
        """No sink is told, there is none."""
        client = Client(get()).receive(OK)
        client.codec.receive_eof()
        assert not client.codec.usable
        assert client.codec.closing

    def test_giving_up_ends_the_connection(self) -> None:
        """Its own sink is not told, and late bytes are not read."""
        client = Client(get())
        client.stream.reset("client gone")
        assert client.codec.closing
        assert client.wakes > 0
        client.receive(OK)
        assert client.sink.calls == []

    def test_giving_up_from_within_a_call_stops_what_is_left(self) -> None:
        """A sink that resets at the first chunk hears of no second."""
        client = Client(get())
        sink, stream = client.sink, client.stream
        sink.data = lambda data: (sink.calls.append(("data", bytes(data))), stream.reset())  # type: ignore
        client.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
        assert sink.calls == [("head", 200, [], True, None), ("data", b"a")]

    def test_a_drained_connection_ends_with_its_exchange(self) -> None:
        """Or at once."""
        client = Client(get())
        client.codec.drain()
        assert not client.codec.closing
        client.receive(OK)
        assert client.sink.calls[-1] == ("ended", [])
        assert client.codec.closing
        idle = Client()
        idle.codec.drain()
        assert idle.codec.closing


class TestUpgrade:
    def test_after_101_bytes_are_raw_both_ways(self) -> None:
        """Those in the same read too."""
        client = Client(get(upgrade=b"websocket"))
        client.receive(b"HTTP/1.1 101 S\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nX: 1\r\n\r\n\x81\x00", b"\r\n")
        assert client.sink.calls == [("head", 101, [(b"x", b"1")], False, None), ("data", b"\x81\x00\r\n")]
        client.stream.send_data(b"\x81\x01a")
        assert client.written() == b"\x81\x01a"

    def test_another_answer_is_an_answer_like_others(self) -> None:
        """The upgrade was declined; the connection is used again."""
        client = Client(get(upgrade=b"websocket")).receive(OK)
        assert client.sink.calls == [HEAD_OK, ("data", b"ok"), ("ended", [])]
        assert client.codec.usable

    def test_each_direction_ends_by_itself(self) -> None:
        """A half-closed tunnel still carries the other half."""
        client = Client(Request(b"CONNECT", b"b:1", b"", []))
        client.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")
        client.stream.send_data(b"x")
        client.stream.end()
        assert client.codec.half_close
        assert not client.codec.closing
        client.receive(b"def")
        client.codec.receive_eof()
        assert client.sink.calls == [("head", 200, [], False, None), ("data", b"abcdef"), ("ended", [])]
        assert client.codec.closing
        assert not client.codec.usable
