"""The answering side of an HTTP/1 connection, by what goes in and what comes out."""

from __future__ import annotations

import pytest

from planes.l7.http1_server import DRAIN_MAX_BYTES, Http1ServerStream
from planes.l7.message import Request, Response
from testbed.errors import Bug
from tests.http1peers import GET, OK, Server, ok

OK_BYTES = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
WEBSOCKET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CONNECT = b"CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\n\r\n"


class TestExchanges:
    def test_a_connection_serves_request_after_request(self) -> None:
        """Keep-alive is the rule in HTTP/1.1."""
        server = Server(ok)
        for _ in range(3):
            assert server.receive(GET).written() == OK_BYTES
        assert not server.codec.closing
        assert server.codec.active == 0

    def test_the_body_streams_as_it_comes(self) -> None:
        """Each piece at once, none kept."""
        server = Server().receive(POST + b"\r\nab")
        assert server.sink.calls == [("data", b"ab")]
        server.receive(b"cde")
        assert server.sink.calls == [("data", b"abcde"), ("ended", [])]
        assert server.codec.active == 1

    def test_chunks_and_trailers_arrive(self) -> None:
        """Extensions do not."""
        server = Server().receive(CHUNKED + b"3;x=y\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n")
        assert server.sink.calls == [("data", b"abc"), ("ended", [(b"x-sum", b"9")])]

    def test_a_bodiless_request_ends_with_its_head(self) -> None:
        """No call says so a second time."""
        assert Server().receive(GET).sink.calls == []

    @pytest.mark.parametrize("lead", [b"\r\n", b"\r\n\r\n"])
    def test_empty_lines_before_a_request_are_ignored(self, lead: bytes) -> None:
        """RFC 9112 2.2; however they are cut, up to a limit."""
        assert len(Server().receive(lead + GET).requests) == 1
        assert len(Server().receive(b"\r", b"\n", lead, GET).requests) == 1
        assert Server().receive(lead * 20).written().startswith(b"HTTP/1.1 400 ")
        assert Server(ok).receive((lead + GET) * 20).written() == OK_BYTES * 20

    def test_close_asked_is_close_done(self) -> None:
        """Said with the response, and nothing is read any more."""
        server = Server(ok).receive(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
        assert b"\r\nconnection: close\r\n" in server.written()
        assert server.codec.closing
        assert len(server.requests) == 1


class TestPipelining:
    def test_the_next_request_waits_for_the_answer(self) -> None:
        """So answers cannot overtake each other; meanwhile reading is held."""
        server = Server().receive(GET + POST + b"\r\nabcde" + GET)
        assert len(server.requests) == 1
        assert server.codec.reading_held
        ok(server.streams[0])
        assert [r.method for r in server.requests] == [b"GET", b"POST"]
        assert server.sink.calls == [("data", b"abcde"), ("ended", [])]
        ok(server.streams[1])
        ok(server.streams[2])
        assert server.written() == OK_BYTES * 3
        assert not server.codec.reading_held

    def test_a_long_pipeline_answered_at_once_does_not_recurse(self) -> None:
        """Thousands of requests in one read."""
        server = Server(ok).receive(GET * 5000)
        assert server.written() == OK_BYTES * 5000
        server = Server().receive(GET * 5000)
        server._answer = ok
        ok(server.stream)
        assert server.written() == OK_BYTES * 5000

    def test_the_shell_is_woken_by_what_happens_outside_of_receive(self) -> None:
        """Answers, and a held connection that may be read again."""
        server = Server().receive(GET + GET)
        assert server.wakes == 0
        ok(server.stream)
        assert server.wakes > 0

    def test_the_shell_is_woken_by_the_answer_to_what_had_to_wait(self) -> None:
        """Also if the exchange before ends without another byte, and the next is answered on the spot."""
        server = Server().receive(GET + GET)
        server.stream.send_head(OK)
        server.stream.send_data(b"ok")
        server.written()
        server._answer = ok
        before = server.wakes
        server.stream.end()
        assert server.written() == OK_BYTES
        assert server.wakes > before

    def test_a_breach_behind_a_good_request_is_answered_in_its_turn(self) -> None:
        """First the answer, then the refusal, then the end."""
        server = Server().receive(GET + b"BAD\r\n\r\n" + GET)
        ok(server.stream)
        written = server.written()
        assert written.startswith(OK_BYTES + b"HTTP/1.1 400 ")
        assert server.codec.closing
        assert len(server.requests) == 1


class TestResponses:
    def test_a_body_without_length_is_chunked(self) -> None:
        """With its trailers."""
        server = Server().receive(GET)
        server.stream.send_head(Response(200, [], has_body=True))
        assert server.stream.send_data(b"abc")
        server.stream.send_data(b"")
        server.stream.end([(b"x", b"1")])
        assert server.written() == (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: 1\r\n\r\n")  # fmt: skip

    def test_an_http_1_0_client_gets_no_chunks(self) -> None:
        """The end of the connection ends the body; trailers are lost."""
        server = Server().receive(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        server.stream.send_head(Response(200, [], has_body=True))
        server.stream.send_data(b"abc")
        assert not server.codec.closing
        server.stream.end([(b"x", b"1")])
        assert server.written() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
        assert server.codec.closing
        assert not server.codec.abort

    def test_an_http_1_0_client_gets_no_interim_response(self) -> None:
        """RFC 9110 15.2."""
        server = Server().receive(b"GET / HTTP/1.0\r\n\r\n")
        server.stream.send_head(Response(103, []))
        assert server.written() == b""

    @pytest.mark.parametrize(("request_", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
    def test_answers_that_have_no_body_get_none(self, request_: bytes, status: int) -> None:
        """Even if the exchange sends one, as for its own error pages."""
        server = Server().receive(request_ + GET[3:])
        server.stream.send_head(Response(status, [], has_body=True))
        server.stream.send_data(b"page")
        server.stream.end()
        assert server.written().endswith(b"\r\n\r\n")
        assert server.receive(GET).codec.active == 1

    def test_interim_responses_come_before_the_final_one(self) -> None:
        """Several of them."""
        server = Server().receive(GET)
        server.stream.send_head(Response(103, [(b"link", b"a")]))
        server.stream.send_head(Response(103, [(b"link", b"b")]))
        ok(server.stream)
        assert server.written() == (
            b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: b\r\n\r\n"
            + OK_BYTES)  # fmt: skip

    def test_misuse_is_a_bug(self) -> None:
        """Never bytes that a client would misread."""
        for misuse in (
            lambda s: s.send_data(b"a"), lambda s: s.end(), lambda s: (s.send_head(OK), s.send_head(OK)),
            lambda s: (s.send_head(OK), s.send_data(b"abc")), lambda s: (s.send_head(OK), s.send_data(b"a"), s.end()),
            lambda s: s.send_head(Response(101, [], upgrade=b"websocket")),
        ):  # fmt: skip
            with pytest.raises(Bug):
                misuse(Server().receive(GET).stream)

    def test_a_body_cut_short_ends_the_connection(self) -> None:
        """The client must not take the next answer for its rest."""
        server = Server().receive(GET)
        server.stream.send_head(OK)
        with pytest.raises(Bug):
            server.stream.end()
        assert server.codec.closing

    def test_what_is_said_after_the_end_is_ignored(self) -> None:
        """An exchange whose client is gone may not have heard of it yet."""
        server = Server().receive(GET)
        server.codec.lost("reset by peer")
        assert server.sink.calls == [("reset", False)]
        ok(server.stream)
        server.stream.hold()
        server.stream.reset()
        assert server.written() == b""
        assert not server.codec.reading_held


class TestContinue:
    EXPECT = POST + b"Expect: 100-continue\r\n\r\n"

    def test_the_upstreams_answer_is_relayed(self) -> None:
        """The codec never says 100 by itself."""
        server = Server().receive(self.EXPECT)
        assert server.written() == b""
        server.stream.send_head(Response(100, []))
        assert server.written() == b"HTTP/1.1 100 Continue\r\n\r\n"
        server.receive(b"abcde")
        ok(server.stream)
        assert server.written() == OK_BYTES
        assert not server.codec.closing

    def test_a_final_answer_instead_ends_the_connection(self) -> None:
        """Whether the body still comes cannot be known, so nothing after it may be read as a request."""
        server = Server(ok).receive(self.EXPECT)
        assert b"\r\nconnection: close\r\n" in server.written()
        assert server.codec.closing
        server.receive(GET)
        assert len(server.requests) == 1

    def test_a_client_that_did_not_wait_is_served_on(self) -> None:
        """Its body is there."""
        server = Server().receive(self.EXPECT + b"abcde")
        ok(server.stream)
        assert server.written() == OK_BYTES
        assert not server.codec.closing


class TestEarlyAnswers:
    def test_the_rest_of_the_request_is_read_and_thrown_away(self) -> None:
        """Then the next one is served."""
        server = Server().receive(POST + b"\r\nab")
        ok(server.stream)
        assert server.codec.active == 0
        assert server.receive(b"cde" + GET).codec.active == 1
        assert server.sinks[0].calls == [("data", b"ab")]

    def test_the_answer_and_the_body_may_overlap(self) -> None:
        """An echo answers while it still reads."""
        server = Server().receive(CHUNKED)
        server.stream.send_head(Response(200, [], has_body=True))
        server.receive(b"1\r\na\r\n")
        server.stream.send_data(b"a")
        server.receive(b"0\r\n\r\n")
        server.stream.end()
        assert server.sink.calls == [("data", b"a"), ("ended", [])]
        assert server.receive(GET).codec.active == 1

    @pytest.mark.parametrize("head", [CHUNKED, POST.replace(b" 5", b" %d" % (4 * DRAIN_MAX_BYTES)) + b"\r\n"])
    def test_a_long_rest_is_not_worth_it(self, head: bytes) -> None:
        """The connection ends instead, at once where the length is known."""
        server = Server(ok).receive(head)
        for _ in range(2 * DRAIN_MAX_BYTES // 0x8000 if head == CHUNKED else 0):
            server.receive(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        assert server.codec.closing
        assert server.receive(GET).codec.active == 0

    def test_a_held_request_is_read_again_after_its_answer(self) -> None:
        """Else the rest would never drain."""
        server = Server().receive(POST + b"\r\n")
        server.stream.hold()
        assert server.codec.reading_held
        ok(server.stream)
        assert not server.codec.reading_held


class TestBreachInBody:
    def test_before_the_answer_it_is_answered(self) -> None:
        """And the exchange hears of it."""
        server = Server().receive(CHUNKED + b"zz\r\n")
        assert server.written().startswith(b"HTTP/1.1 400 ")
        assert server.sink.calls == [("reset", False)]
        assert server.codec.closing
        assert server.codec.breach is not None

    def test_within_the_answer_the_connection_just_ends(self) -> None:
        """A second answer would be read as the first one's body."""
        server = Server().receive(CHUNKED)
        server.stream.send_head(Response(200, [], has_body=True))
        server.written()
        server.receive(b"zz\r\n")
        assert server.written() == b""
        assert server.codec.closing


class TestUpgrade:
    def switched(self, after: bytes = b"") -> Server:
        server = Server().receive(WEBSOCKET + after)
        server.stream.send_head(Response(101, [(b"sec-websocket-accept", b"x")], upgrade=b"websocket"))
        assert server.written() == (
            b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: x\r\nconnection: upgrade\r\n"
            b"upgrade: websocket\r\n\r\n")  # fmt: skip
        return server

    def test_after_101_bytes_are_raw_both_ways(self) -> None:
        """Whatever they look like."""
        server = self.switched().receive(b"\x81\x05hello", GET)
        assert server.sink.calls == [("data", b"\x81\x05hello" + GET)]
        server.stream.send_data(b"\x81\x02hi")
        server.stream.send_data(b"\0\r\n")
        assert server.written() == b"\x81\x02hi\0\r\n"

    def test_bytes_sent_before_the_101_are_raw_too(self) -> None:
        """They wait for it."""
        assert self.switched(b"early").sink.calls == [("data", b"early")]

    def test_without_a_101_it_was_a_request_like_others(self) -> None:
        """What follows is the next request."""
        server = Server(ok).receive(WEBSOCKET + GET)
        assert server.written() == OK_BYTES * 2

    def test_each_direction_ends_by_itself(self) -> None:
        """The connection ends with the second."""
        server = self.switched().receive(b"bye")
        server.codec.receive_eof()
        assert server.sink.calls == [("data", b"bye"), ("ended", [])]
        assert not server.codec.closing
        server.stream.send_data(b"rest")
        server.stream.end()
        assert server.written() == b"rest"
        assert server.codec.closing
        other = self.switched()
        other.stream.end()
        assert other.codec.half_close
        assert not other.codec.closing
        other.receive(b"more")
        other.codec.receive_eof()
        assert other.sink.calls == [("data", b"more"), ("ended", [])]
        assert other.codec.closing

    def test_giving_up_is_a_reset(self) -> None:
        """A FIN would pass for the protocol's own end."""
        server = self.switched()
        server.stream.reset()
        assert server.codec.closing
        assert server.codec.abort

    def test_a_tunnel_opens_with_2xx(self) -> None:
        """CONNECT: no length, no chunks, then raw bytes."""
        server = Server().receive(CONNECT + b"early")
        server.stream.send_head(Response(200, []))
        server.stream.send_data(b"\x16\x03")
        assert server.written() == b"HTTP/1.1 200 OK\r\n\r\n\x16\x03"
        assert server.receive(b"more").sink.calls == [("data", b"earlymore")]

    def test_a_refused_tunnel_is_an_answer_like_others(self) -> None:
        """The connection stays usable."""
        server = Server().receive(CONNECT)
        server.stream.send_head(Response(403, []))
        assert server.written() == b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
        assert server.receive(GET).codec.active == 1


class TestBrakes:
    def test_a_sink_that_holds_stops_reading(self) -> None:
        """Until it releases."""
        server = Server().receive(POST + b"\r\n")
        server.stream.hold()
        assert server.codec.reading_held
        assert server.wakes == 1
        server.stream.release()
        assert not server.codec.reading_held

    def test_a_connection_that_takes_no_more_says_so(self) -> None:
        """And says when it does again, once."""
        server = Server().receive(GET)
        server.stream.send_head(Response(200, [], has_body=True))
        server.codec.set_write_blocked(True)
        assert not server.stream.send_data(b"a")
        server.codec.set_write_blocked(False)
        server.codec.set_write_blocked(False)
        assert server.sink.calls == [("writable",)]
        assert server.stream.send_data(b"b")

    def test_a_client_that_takes_no_answers_gets_no_more_requests_read(self) -> None:
        """Else answers to a pipeline would pile up; a body under way is still read."""
        server = Server(ok).receive(GET)
        server.codec.set_write_blocked(True)
        assert server.codec.reading_held
        server.codec.set_write_blocked(False)
        assert not server.codec.reading_held
        body = Server().receive(POST + b"\r\n")
        body.codec.set_write_blocked(True)
        assert not body.codec.reading_held
        ok(body.receive(b"abcde").stream)
        assert body.codec.reading_held

    def test_no_body_is_ever_kept(self) -> None:
        """A gigabyte through a connection leaves nothing behind in the codec."""
        server = Server().receive(CHUNKED)
        taken = 0
        sink = server.sink
        sink.data = lambda data: sink.calls.append(len(data))  # type: ignore[assignment, method-assign, arg-type]
        for _ in range(64):
            server.receive(b"100000\r\n", *[b"x" * 65536] * 16, b"\r\n")
            taken += sum(sink.calls)  # type: ignore[arg-type]
            sink.calls.clear()
            assert len(server.codec._rest) <= 2
        assert taken == 64 << 20


class TestEnds:
    def test_a_client_that_shut_its_side_gets_its_answers(self) -> None:
        """All that it asked in full; then the connection ends."""
        server = Server().receive(GET + GET)
        server.codec.receive_eof()
        assert not server.codec.closing
        ok(server.streams[0])
        ok(server.streams[1])
        assert server.written().count(b"200 OK") == 2
        assert server.codec.closing

    def test_an_eof_within_a_request_is_the_end_of_it(self) -> None:
        """Head or body; behind a pipeline too."""
        server = Server().receive(POST + b"\r\nab")
        server.codec.receive_eof()
        assert server.sink.calls == [("data", b"ab"), ("reset", False)]
        assert server.codec.closing
        head = Server().receive(GET[:-2])
        head.codec.receive_eof()
        assert head.codec.closing
        behind = Server().receive(GET + GET[:-2])
        behind.codec.receive_eof()
        ok(behind.stream)
        assert behind.codec.closing
        assert len(behind.requests) == 1

    def test_an_idle_eof_is_the_end(self) -> None:
        """Nothing is written."""
        server = Server(ok).receive(GET)
        server.written()
        server.codec.receive_eof()
        assert server.codec.closing
        assert server.written() == b""

    def test_a_drained_connection_ends_with_its_exchange(self) -> None:
        """Announced if there is time, and at once if idle."""
        server = Server().receive(GET)
        server.codec.drain()
        assert not server.codec.closing
        ok(server.stream)
        assert b"\r\nconnection: close\r\n" in server.written()
        assert server.codec.closing
        idle = Server()
        idle.codec.drain()
        assert idle.codec.closing
        assert idle.wakes == 1
        late = Server().receive(GET)
        late.stream.send_head(OK)
        late.codec.drain()
        late.stream.send_data(b"ok")
        late.stream.end()
        assert late.codec.closing

    def test_a_drain_lets_a_request_that_is_coming_in_have_its_answer(self) -> None:
        """Half of its head is there already."""
        server = Server(ok).receive(GET[:5])
        server.codec.drain()
        server.receive(GET[5:])
        assert b"\r\nconnection: close\r\n" in server.written()
        assert server.codec.closing

    def test_a_body_that_lasts_until_the_end_is_reset_by_rst(self) -> None:
        """An HTTP/1.0 client would take a FIN for the end."""
        server = Server().receive(b"GET / HTTP/1.0\r\n\r\n")
        server.stream.send_head(Response(200, [], has_body=True))
        server.stream.reset()
        assert server.codec.closing
        assert server.codec.abort

    @pytest.mark.parametrize(("before", "last"), [
        (POST + b"\r\nab", b"cde"), (CHUNKED, b"5\r\nabcde\r\n0\r\n\r\n"), (WEBSOCKET, b"abcde")])  # fmt: skip
    def test_giving_up_from_within_a_call_stops_what_is_left(self, before: bytes, last: bytes) -> None:
        """A sink that resets at the last byte hears of no end, and nothing behind it is read."""
        server = Server().receive(before)
        if server.request.upgrade:
            server.stream.send_head(Response(101, [], upgrade=b"websocket"))
        sink, stream = server.sink, server.stream
        sink.calls.clear()
        sink.data = lambda data: (sink.calls.append(("data", bytes(data))), stream.reset())  # type: ignore
        server.receive(last + GET)
        assert [call[0] for call in sink.calls] == ["data"]
        assert server.codec.closing
        assert len(server.requests) == 1

    def test_answering_in_the_middle_of_receiving_is_fine(self) -> None:
        """A policy denies at the head, while the body is in the same read."""
        def deny(stream: Http1ServerStream, request: Request) -> None:
            stream.send_head(Response(403, []))

        server = Server(deny).receive(POST + b"\r\nabcde" + GET)
        assert [r.method for r in server.requests] == [b"POST", b"GET"]
        assert server.written().count(b"403 Forbidden") == 2
