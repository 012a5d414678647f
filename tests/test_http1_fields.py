"""Heads of HTTP/1: what is read, what is refused and with which status; each row is one rule of RFC 9110 or 9112."""

from __future__ import annotations

import pytest

from planes.l7.codec import Breach
from planes.l7.http1_fields import FIELDS_MAX, HEAD_MAX_BYTES, START_LINE_MAX_BYTES, read_request, read_response
from planes.l7.message import Fields, Request
from tests.http1peers import Client, Server, get


def read(head: bytes, scheme: bytes = b"http") -> Request:
    return read_request(head, scheme)[0]


REFUSED = {
    # RFC 9112 3: the request line
    "two words": (b"GET /\r\nHost: a", 400),
    "four words": (b"GET /a b HTTP/1.1\r\nHost: a", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a", 400),
    "tab for space": (b"GET\t/ HTTP/1.1\r\nHost: a", 400),
    "leading space": (b" GET / HTTP/1.1\r\nHost: a", 400),
    "trailing space": (b"GET / HTTP/1.1 \r\nHost: a", 400),
    "invalid method": (b"G@T / HTTP/1.1\r\nHost: a", 400),
    "long request line": (b"GET /%b HTTP/1.1\r\nHost: a" % (b"a" * START_LINE_MAX_BYTES), 414),
    # RFC 9110 2.5, RFC 9112 2.3: the version
    "version 2": (b"GET / HTTP/2.0\r\nHost: a", 505),
    "version 0.9": (b"GET / HTTP/0.9\r\nHost: a", 505),
    "version in lower case": (b"GET / http/1.1\r\nHost: a", 400),
    "version of two digits": (b"GET / HTTP/1.10\r\nHost: a", 400),
    "preface of HTTP/2": (b"PRI * HTTP/2.0", 505),
    # RFC 9112 3.2: the target
    "no slash": (b"GET a HTTP/1.1\r\nHost: a", 400),
    "fragment": (b"GET /#f HTTP/1.1\r\nHost: a", 400),
    "target that is not ASCII": (b"GET /\xe4 HTTP/1.1\r\nHost: a", 400),
    "target with DEL": (b"GET /\x7f HTTP/1.1\r\nHost: a", 400),
    "star for GET": (b"GET * HTTP/1.1\r\nHost: a", 400),
    "another scheme": (b"GET ftp://a/ HTTP/1.1\r\nHost: a", 400),
    "absolute without host": (b"GET http:///x HTTP/1.1\r\nHost: a", 400),
    "absolute with user": (b"GET http://u@a/ HTTP/1.1\r\nHost: a", 400),
    "absolute with port alone": (b"GET http://:80/ HTTP/1.1\r\nHost: a", 400),
    "CONNECT without port": (b"CONNECT a HTTP/1.1\r\nHost: a", 400),
    "CONNECT without host": (b"CONNECT :80 HTTP/1.1\r\nHost: a", 400),
    "CONNECT to a path": (b"CONNECT /a HTTP/1.1\r\nHost: a", 400),
    "CONNECT with length": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 1", 400),
    "CONNECT with coding": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", 400),
    # RFC 9112 3.2: Host
    "no Host": (b"GET / HTTP/1.1", 400),
    "no Host in absolute-form": (b"GET http://a/ HTTP/1.1", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a", 400),
    "Host with a space": (b"GET / HTTP/1.1\r\nHost: a b", 400),
    "Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b", 400),
    "Host with user": (b"GET / HTTP/1.1\r\nHost: u@a", 400),
    "Host with a list": (b"GET / HTTP/1.1\r\nHost: a, b", 400),
    "Host with a port of letters": (b"GET / HTTP/1.1\r\nHost: a:b", 400),
    "Host with a port too high": (b"GET / HTTP/1.1\r\nHost: a:65536", 400),
    "Host with half a percent sign": (b"GET / HTTP/1.1\r\nHost: a%2", 400),
    "Host with an open bracket": (b"GET / HTTP/1.1\r\nHost: [::1", 400),
    # RFC 9112 5: field lines
    "space before colon": (b"GET / HTTP/1.1\r\nHost : a", 400),
    "tab before colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX\t: b", 400),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nAccept", 400),
    "no name": (b"GET / HTTP/1.1\r\nHost: a\r\n: b", 400),
    "folded": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c", 400),
    "folded with a colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc: d", 400),
    "first line folded": (b"GET / HTTP/1.1\r\n Host: a", 400),
    "name with a slash": (b"GET / HTTP/1.1\r\nHost: a\r\nX/Y: b", 400),
    "name that is not ASCII": (b"GET / HTTP/1.1\r\nHost: a\r\nX\xe4: b", 400),
    "name with brackets": (b"GET / HTTP/1.1\r\nHost: a\r\n(x): b", 400),
    "NUL in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c", 400),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc", 400),
    "bare LF in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nc", 400),
    "bare LF as line end": (b"GET / HTTP/1.1\nHost: a", 400),
    "CR CR LF": (b"GET / HTTP/1.1\r\nHost: a\r\r\nX: b", 400),
    "vertical tab in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x0bc", 400),
    "too many fields": (b"GET / HTTP/1.1\r\nHost: a" + b"\r\nX: b" * FIELDS_MAX, 431),
    # RFC 9112 6: framing
    "length and coding": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
    "coding and length": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1", 400),
    "coding and length zero": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2", 400),
    "one length twice": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\ncontent-length: 1", 400),
    "list of lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1", 400),
    "length with a sign": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1", 400),
    "negative length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1", 400),
    "hexadecimal length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1", 400),
    "length with a line below": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0", 400),
    "empty length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:", 400),
    "length beyond 63 bits": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 19, 400),
    "coding not last": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip", 400),
    "coding alone": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip", 400),
    "coding identity": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity", 400),
    "chunked twice": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked", 400),
    "chunked in two lines": (b"POST / HTTP/1.1\r\nHost: a" + b"\r\nTransfer-Encoding: chunked" * 2, 400),
    "chunked misspelt": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked", 400),
    "chunked in quotes": (b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "chunked"', 400),
    "chunked with parameter": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;a=b", 400),
    "empty coding": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:", 400),
    "coding we lack": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked", 501),
    "coding in HTTP/1.0": (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked", 400),
    # RFC 9110 10.1.1
    "another expectation": (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: tea", 417),
}  # fmt: skip


class TestRefusedRequests:
    @pytest.mark.parametrize(("head", "status"), REFUSED.values(), ids=REFUSED)
    def test_each_is_refused_with_its_status(self, head: bytes, status: int) -> None:
        """By the reader of heads."""
        with pytest.raises(Breach) as refusal:
            read_request(head, b"http")
        assert refusal.value.status == status

    @pytest.mark.parametrize(("head", "status"), REFUSED.values(), ids=REFUSED)
    def test_each_is_answered_closed_and_never_forwarded(self, head: bytes, status: int) -> None:
        """Also what is sent behind it, which would be the smuggled request."""
        server = Server().receive(head + b"\r\n\r\n" + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = server.written()
        server.receive(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in answer
        assert server.codec.closing
        assert server.requests == []
        assert server.written() == b""

    @pytest.mark.parametrize(("head", "status"), REFUSED.values(), ids=REFUSED)
    def test_each_is_refused_byte_by_byte_as_well(self, head: bytes, status: int) -> None:
        """With the same status, however it is cut."""
        server = Server()
        for n in range(len(head) if len(head) < 1000 else 0):
            server.receive(head[n : n + 1])
        server.receive(*([head] if len(head) >= 1000 else []), b"\r\n", b"\r\n")
        assert server.written().startswith(b"HTTP/1.1 %d " % status)


class TestLimits:
    def test_a_head_too_long_is_431_as_soon_as_it_is(self) -> None:
        """Its end is not waited for."""
        server = Server().receive(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", *[b"a" * 1024] * 64)
        assert server.written().startswith(b"HTTP/1.1 431 ")

    def test_a_head_of_the_limit_is_read(self) -> None:
        """Down to the last byte, in one piece or two."""
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        head += b"a" * (HEAD_MAX_BYTES - len(head) - 4) + b"\r\n\r\n"
        assert len(Server().receive(head).requests) == 1
        assert len(Server().receive(head[:-1], head[-1:]).requests) == 1
        longer = head[:-4] + b"a\r\n\r\n"
        assert Server().receive(longer).written().startswith(b"HTTP/1.1 431 ")
        assert Server().receive(longer[:-1], longer[-1:]).written().startswith(b"HTTP/1.1 431 ")

    def test_a_request_line_too_long_is_414_as_soon_as_it_is(self) -> None:
        """Its end is not waited for."""
        server = Server().receive(b"GET /", *[b"a" * 1024] * 32)
        assert server.written().startswith(b"HTTP/1.1 414 ")

    def test_lines_with_bare_lf_are_refused_without_waiting(self) -> None:
        """Such a head would never end."""
        assert Server().receive(b"GET / HTTP/1.1\nHost: a\n\n").written().startswith(b"HTTP/1.1 400 ")

    def test_binary_is_refused_without_waiting(self) -> None:
        """So that a TLS client on a plain port is told at once."""
        assert Server().receive(b"\x16\x03\x01\x02\x00\x01").written().startswith(b"HTTP/1.1 400 ")


TARGETS = {
    "origin": (b"GET /a?b=c|{} HTTP/1.1\r\nHost: h:1", (b"http", b"h:1", b"/a?b=c|{}")),
    "absolute wins": (b"GET http://x:81/p?q HTTP/1.1\r\nHost: other", (b"http", b"x:81", b"/p?q")),
    "absolute without path": (b"GET http://x HTTP/1.1\r\nHost: x", (b"http", b"x", b"/")),
    "absolute with query": (b"GET http://x?q HTTP/1.1\r\nHost: x", (b"http", b"x", b"/?q")),
    "absolute OPTIONS": (b"OPTIONS http://x HTTP/1.1\r\nHost: x", (b"http", b"x", b"*")),
    "absolute https": (b"GET HTTPS://x/ HTTP/1.1\r\nHost: x", (b"https", b"x", b"/")),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x", (b"http", b"x", b"*")),
    "authority": (b"CONNECT x:443 HTTP/1.1\r\nHost: y", (b"http", b"x:443", b"")),
    "IPv6": (b"GET / HTTP/1.1\r\nHost: [::1]:80", (b"http", b"[::1]:80", b"/")),
    "empty Host": (b"GET / HTTP/1.1\r\nHost:", (b"http", b"", b"/")),
    "HTTP/1.0 without Host": (b"GET / HTTP/1.0", (b"http", b"", b"/")),
}


class TestRequests:
    @pytest.mark.parametrize(("head", "expected"), TARGETS.values(), ids=TARGETS)
    def test_every_form_of_target(self, head: bytes, expected: tuple[bytes, bytes, bytes]) -> None:
        """Scheme, authority, path as HTTP/2 would say them."""
        request = read(head)
        assert (request.scheme, request.authority, request.path) == expected

    def test_names_are_lower_case_and_order_is_kept(self) -> None:
        """Values lose their surrounding white space, repetitions stay."""
        request = read(b"GET / HTTP/1.1\r\nX-B: \t1 \t\r\nHost: a\r\nx-a:2\r\nX-b:\r\nAccept: a \xe4 b")
        assert request.fields == [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b""), (b"accept", b"a \xe4 b")]

    def test_unknown_methods_pass(self) -> None:
        """An intermediary has no list of methods."""
        assert read(b"BREW / HTTP/1.1\r\nHost: a").method == b"BREW"

    def test_a_higher_minor_version_is_read_as_ours(self) -> None:
        """RFC 9110 2.5."""
        assert read(b"GET / HTTP/1.7\r\nHost: a").version == "1.1"

    def test_the_scheme_is_the_connections(self) -> None:
        """Unless the target names one."""
        assert read(b"GET / HTTP/1.1\r\nHost: a", b"https").scheme == b"https"

    @pytest.mark.parametrize(("lines", "body", "length"), [
        (b"", False, None), (b"\r\nContent-Length: 0", False, 0), (b"\r\nContent-Length: 007", True, 7),
        (b"\r\nTransfer-Encoding: CHUNKED", True, None), (b"\r\nTransfer-Encoding: , chunked ,", True, None)])
    def test_framing(self, lines: bytes, body: bool, length: int | None) -> None:
        """A request without framing fields has no body."""
        request = read(b"POST / HTTP/1.1\r\nHost: a" + lines)
        assert (request.has_body, request.content_length) == (body, length)
        assert (b"transfer-encoding", b"chunked") not in request.fields

    def test_a_length_has_one_spelling(self) -> None:
        """So that no reader sees another number, and the writer finds what was declared."""
        assert read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007").fields == [(b"content-length", b"7")]
        assert read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00").fields == [(b"content-length", b"0")]

    def test_content_length_stays_among_the_fields(self) -> None:
        """The next hop's framing is the same."""
        assert read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5").fields == [(b"content-length", b"5")]


def passed(lines: bytes, version: bytes = b"1.1") -> Fields:
    return read(b"GET / HTTP/%b\r\nHost: a\r\n%b" % (version, lines)).fields


class TestHopByHop:
    @pytest.mark.parametrize("lines", [
        b"Connection: close", b"Connection: Keep-Alive\r\nKeep-Alive: timeout=5", b"Proxy-Connection: keep-alive",
        b"Connection: x-a, X-B\r\nX-A: 1\r\nx-b: 2", b"Connection: x-a\r\nConnection: x-b\r\nX-A: 1\r\nX-B: 1",
        b"Upgrade: websocket\r\nConnection: upgrade", b"Transfer-Encoding: chunked", b"TE: gzip",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"])
    def test_fields_of_the_connection_go_no_further(self, lines: bytes) -> None:
        """Those with a fixed meaning, and those that Connection names."""
        assert passed(lines) == []

    @pytest.mark.parametrize("name", [b"content-length", b"cache-control"])
    def test_naming_a_field_meant_for_all_takes_nothing_away(self, name: bytes) -> None:
        """Else a client could strip the framing or the caching rules."""
        assert passed(b"Connection: %b\r\n%b: 0" % (name, name)) == [(name, b"0")]

    @pytest.mark.parametrize("te", [b"trailers", b"gzip;q=0.5, Trailers"])
    def test_te_passes_as_trailers_only(self, te: bytes) -> None:
        """Other codings are between neighbours."""
        assert passed(b"Connection: te\r\nTE: " + te) == [(b"te", b"trailers")]

    def test_trailer_passes(self) -> None:
        """It announces what we pass on."""
        assert passed(b"Trailer: x-sum") == [(b"trailer", b"x-sum")]

    @pytest.mark.parametrize(("version", "lines", "last"), [
        (b"1.1", b"", False), (b"1.1", b"\r\nConnection: keep-alive", False), (b"1.1", b"\r\nConnection: CLOSE", True),
        (b"1.1", b"\r\nConnection: keep-alive, close", True), (b"1.0", b"", True),
        (b"1.0", b"\r\nConnection: keep-alive", True)])
    def test_persistence(self, version: bytes, lines: bytes, last: bool) -> None:
        """RFC 9112 9.3: a proxy keeps no connection with an HTTP/1.0 client."""
        assert read_request(b"GET / HTTP/%b\r\nHost: a%b" % (version, lines), b"http")[1] is last


class TestUpgradeAndExpect:
    def test_upgrade_is_told(self) -> None:
        """In lower case, and only if Connection names it."""
        head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket"
        assert read(head + b"\r\nConnection: keep-alive, Upgrade").upgrade == b"websocket"
        assert read(head).upgrade == b""
        assert read(head.replace(b"1.1", b"1.0") + b"\r\nConnection: Upgrade").upgrade == b""

    def test_expect_passes_on(self) -> None:
        """RFC 9110 10.1.1: a proxy forwards it, and ignores it in HTTP/1.0."""
        request = read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-Continue")
        assert request.expects_continue
        assert (b"expect", b"100-continue") in request.fields
        old = read(b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue")
        assert not old.expects_continue
        assert old.fields == [(b"content-length", b"1")]


REFUSED_RESPONSES = {
    "another protocol": b"ICY 200 OK",
    "version 2": b"HTTP/2.0 200 OK",
    "status of two digits": b"HTTP/1.1 99 X",
    "status of four digits": b"HTTP/1.1 2000 OK",
    "status above 599": b"HTTP/1.1 600 X",
    "two spaces": b"HTTP/1.1  200 OK",
    "control in the reason": b"HTTP/1.1 200 O\x01K",
    "bare CR": b"HTTP/1.1 200 OK\r\nX: a\rb",
    "NUL": b"HTTP/1.1 200 OK\r\nX: a\0",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b",
    "space before colon": b"HTTP/1.1 200 OK\r\nX : a",
    "length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
    "invalid length": b"HTTP/1.1 200 OK\r\nContent-Length: x",
    "coding not last": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip",
    "coding we lack": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
    "switch nobody asked for": b"HTTP/1.1 101 X\r\nUpgrade: x",
    "too many fields": b"HTTP/1.1 200 OK" + b"\r\nX: b" * (FIELDS_MAX + 1),
}


class TestRefusedResponses:
    @pytest.mark.parametrize("head", REFUSED_RESPONSES.values(), ids=REFUSED_RESPONSES)
    def test_each_is_a_reset_and_the_end_of_the_connection(self, head: bytes) -> None:
        """Nothing of it is handed on; the exchange answers 502."""
        client = Client(get()).receive(head + b"\r\n\r\nrest")
        assert client.sink.calls == [("reset", False)]
        assert client.codec.closing
        assert not client.codec.usable


class TestResponses:
    @pytest.mark.parametrize(("method", "head", "body", "length", "chunked", "close"), [
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5", True, 5, False, False),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0", False, 0, False, False),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", True, None, True, False),
        (b"GET", b"HTTP/1.1 200 OK", True, None, False, True),
        (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 5", True, 5, False, True),
        (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", True, 5, False, False),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close", True, 5, False, True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5", False, 5, False, False),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", False, None, True, False),
        (b"HEAD", b"HTTP/1.1 200 OK", False, None, False, False),
        (b"GET", b"HTTP/1.1 304 X\r\nContent-Length: 5", False, 5, False, False),
        (b"GET", b"HTTP/1.1 204 X\r\nContent-Length: 5", False, None, False, False),
        (b"GET", b"HTTP/1.1 103 X\r\nTransfer-Encoding: chunked", False, None, False, False),
        (b"CONNECT", b"HTTP/1.1 200 X\r\nContent-Length: 5", False, None, False, False),
        (b"CONNECT", b"HTTP/1.1 403 X\r\nContent-Length: 5", True, 5, False, False)])  # fmt: skip
    def test_framing_follows_rfc_9112_6_3(
        self, method: bytes, head: bytes, body: bool, length: int | None, chunked: bool, close: bool
    ) -> None:
        """Method and status first, then the fields, then the connection's end."""
        response, is_chunked, closes = read_response(head, method)
        assert (response.has_body, response.content_length, is_chunked, closes) == (body, length, chunked, close)

    def test_the_reason_may_be_missing(self) -> None:
        """With its space or without."""
        assert read_response(b"HTTP/1.1 200", b"HEAD")[0].status == 200
        assert read_response(b"HTTP/1.1 299 ", b"HEAD")[0].status == 299

    def test_fields_of_the_connection_go_no_further(self) -> None:
        """As with requests."""
        head = b"HTTP/1.1 200 OK\r\nConnection: x-a, close\r\nX-A: 1\r\nKeep-Alive: timeout=5\r\nX-B: 1\r\nUpgrade: h2"
        assert read_response(head, b"GET")[0].fields == [(b"x-b", b"1")]
