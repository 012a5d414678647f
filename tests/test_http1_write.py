"""Heads written: framing fields are the codec's own, and nothing that splits a message gets out."""

from __future__ import annotations

import pytest

from planes.l7.http1_write import write_error, write_last_chunk, write_request, write_response
from planes.l7.message import Fields, Request, Response
from testbed.errors import Bug
from tests.http1peers import get


def response(status: int, fields: Fields, method: bytes = b"GET", **more: object) -> bytes:
    return write_response(Response(status, fields, **more), get(method), chunked=True, close=False)  # type: ignore[arg-type]


LENGTH_5: Fields = [(b"content-length", b"5")]


class TestRequests:
    @pytest.mark.parametrize(("request_", "expected"), [
        (get(), b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        (get(fields=[(b"x", b"1"), (b"x", b"")]), b"GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\nx: \r\n\r\n"),
        (get(b"POST"), b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        (get(b"PUT", has_body=True), b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"),
        (get(b"PUT", LENGTH_5, has_body=True, content_length=5),
         b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"),
        (get(b"PUT", has_body=True, content_length=5), b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"),
        (get(fields=[(b"te", b"trailers")]), b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n"),
        (get(upgrade=b"websocket"), b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
        (Request(b"CONNECT", b"b:1", b"", []), b"CONNECT b:1 HTTP/1.1\r\nhost: b:1\r\n\r\n"),
        (Request(b"OPTIONS", b"b", b"*", []), b"OPTIONS * HTTP/1.1\r\nhost: b\r\n\r\n"),
        (Request(b"GET", b"", b"/", []), b"GET / HTTP/1.1\r\nhost: \r\n\r\n")])  # fmt: skip
    def test_each_as_bytes(self, request_: Request, expected: bytes) -> None:
        """Host first, framing after the fields."""
        assert write_request(request_) == expected


class TestResponses:
    @pytest.mark.parametrize(("written", "expected"), [
        (response(200, LENGTH_5, has_body=True, content_length=5), b"200 OK\r\ncontent-length: 5\r\n\r\n"),
        (response(200, [], has_body=True), b"200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (response(200, []), b"200 OK\r\ncontent-length: 0\r\n\r\n"),
        (response(404, [(b"content-length", b"0")], content_length=0), b"404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        (response(204, []), b"204 No Content\r\n\r\n"),
        (response(204, LENGTH_5, content_length=5), b"204 No Content\r\n\r\n"),
        (response(103, [(b"link", b"x")]), b"103 Early Hints\r\nlink: x\r\n\r\n"),
        (response(304, LENGTH_5, content_length=5), b"304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        (response(304, []), b"304 Not Modified\r\n\r\n"),
        (response(200, LENGTH_5, b"HEAD", content_length=5), b"200 OK\r\ncontent-length: 5\r\n\r\n"),
        (response(200, [], b"HEAD"), b"200 OK\r\n\r\n"),
        (response(200, LENGTH_5, b"CONNECT", content_length=5), b"200 OK\r\n\r\n"),
        (response(599, []), b"599 \r\ncontent-length: 0\r\n\r\n"),
        (response(777, []), b"777 \r\ncontent-length: 0\r\n\r\n")])  # fmt: skip
    def test_each_as_bytes(self, written: bytes, expected: bytes) -> None:
        """RFC 9110 8.6 and RFC 9112 6 say where a length may, must and must not stand."""
        assert written == b"HTTP/1.1 " + expected

    def test_close_is_said(self) -> None:
        """With the final response, not with an interim one."""
        assert b"connection: close" in write_response(Response(200, []), get(), chunked=True, close=True)
        assert b"connection: close" not in write_response(Response(103, []), get(), chunked=True, close=True)

    def test_a_body_without_length_or_chunks_needs_no_field(self) -> None:
        """To an HTTP/1.0 client; the connection's end is its end."""
        assert write_response(Response(200, [], has_body=True), get(), chunked=False, close=True) == (
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")  # fmt: skip

    def test_the_answer_to_a_breach(self) -> None:
        """Says no more than the status."""
        assert write_error(414) == (
            b"HTTP/1.1 414 Request-URI Too Long\r\ncontent-type: text/plain\r\ncontent-length: 20\r\n"
            b"connection: close\r\n\r\nRequest-URI Too Long")  # fmt: skip


SPLITTING = [b"a\r\nset-cookie: b", b"a\rb", b"a\nb", b"a\0b", b"\r\n\r\n"]


class TestSplitting:
    @pytest.mark.parametrize("evil", SPLITTING)
    def test_nothing_that_splits_is_written(self, evil: bytes) -> None:
        """In a name, a value, a path, a host, a method, a protocol, a trailer: a bug of ours, not bytes on the wire."""
        for field in ((b"x", evil), (evil, b"x")):
            for write in (lambda f=field: response(200, [f]), lambda f=field: write_request(get(fields=[f]))):
                with pytest.raises(Bug):
                    write()
        for request in (
            Request(evil, b"a", b"/", []), Request(b"GET", evil, b"/", []), Request(b"GET", b"a", evil, []),
            get(upgrade=evil),
        ):  # fmt: skip
            with pytest.raises(Bug):
                write_request(request)
        with pytest.raises(Bug):
            write_last_chunk([(b"x", evil)])

    @pytest.mark.parametrize("request_", [
        Request(b"GET", b"a", b"/a b", []), Request(b"GET X", b"a", b"/", []), Request(b"GET", b"a", b"", []),
        Request(b"", b"a", b"/", []), Request(b"CONNECT", b"", b"", [])])  # fmt: skip
    def test_a_request_line_has_three_words(self, request_: Request) -> None:
        """A space in a path from HTTP/2 would make a fourth."""
        with pytest.raises(Bug):
            write_request(request_)

    def test_framing_fields_of_others_are_not_written(self) -> None:
        """Smuggling by a field that only the next hop heeds."""
        for write in (
            lambda: response(200, [(b"transfer-encoding", b"chunked")]),
            lambda: write_request(get(fields=[(b"transfer-encoding", b"chunked")])),
            lambda: write_request(get(fields=LENGTH_5)),
            lambda: write_request(get(fields=LENGTH_5, has_body=True)),
            lambda: write_request(get(fields=LENGTH_5, has_body=True, content_length=6)),
            lambda: write_request(get(fields=[*LENGTH_5, (b"content-length", b"6")], has_body=True, content_length=5)),
            lambda: write_request(get(content_length=6)),
            lambda: response(200, LENGTH_5, content_length=5),
            lambda: response(200, [], content_length=5),
        ):
            with pytest.raises(Bug):
                write()


class TestLastChunk:
    def test_trailers_follow_it(self) -> None:
        """Without those that would frame or route."""
        assert write_last_chunk(None) == write_last_chunk([]) == b"0\r\n\r\n"
        assert write_last_chunk([(b"x", b"1"), (b"content-length", b"5"), (b"y", b"")]) == b"0\r\nx: 1\r\ny: \r\n\r\n"
