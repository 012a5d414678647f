"""Protocol detection from first bytes, whole and byte by byte."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planes.l7.detect import FIRST_LINE_MAX_BYTES, HTTP2_PREFACE, Detected, detect


def hello() -> bytes:
    """The first flight of a real TLS client."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


ANSWERS = {
    b"GET / HTTP/1.1\r\n": Detected.HTTP1,
    b"GET / HTTP/1.0\r\n": Detected.HTTP1,
    b"\r\nPOST /x HTTP/1.1\r\n": Detected.HTTP1,
    b"CONNECT a:1 HTTP/1.1\r\n": Detected.HTTP1,
    b"FOO /x HTTP/1.1\r\n": Detected.HTTP1,
    b"GET  /two-spaces HTTP/1.1\r\n": Detected.HTTP1,
    b"get /small HTTP/1.1\n": Detected.HTTP1,
    b"GET / HTTP/3.0\r\n": Detected.HTTP1,
    HTTP2_PREFACE: Detected.HTTP2,
    b"GET /of-http-0.9\r\n": Detected.TCP,
    b"SET key value\r\n": Detected.TCP,
    b"hello": Detected.TCP,
    b"PING 1": Detected.TCP,
    b"*1\r\n$4\r\nPING\r\n": Detected.TCP,
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f": Detected.TCP,
    b"PRI * HTTP/2.0\r\n\r\nXX": Detected.HTTP1,
    b"\x16\x03\x01\x00\x05\x02": Detected.TCP,
    b"\x16nonsense": Detected.TCP,
    b"\n": Detected.TCP,
    b"A" * 33: Detected.TCP,
}


class TestAnswers:
    @pytest.mark.parametrize(("data", "answer"), ANSWERS.items(), ids=lambda v: repr(v)[:40])
    def test_each_protocol_is_named(self, data: bytes, answer: Detected) -> None:
        """Whole, and likewise when it comes byte by byte: the first answer is the last."""
        assert detect(data) is answer
        answers = [detect(data[:n]) for n in range(len(data) + 1)]
        first = next(a for a in answers if a is not None)
        assert first is answer

    @pytest.mark.parametrize("data", [
        b"", b"G", b"GET", b"GET /", b"PRI * HT", b"\r\n", b"\r", b"\x16\x03", b"FOO", b"FOO /"])
    def test_what_is_open_stays_open(self, data: bytes) -> None:
        """No answer before it is sure, so that the shell reads on."""
        assert detect(data) is None

    def test_tls_is_a_whole_client_hello(self) -> None:
        """One byte less is not enough, for ALPN may be in it."""
        data = hello()
        assert detect(data) is Detected.TLS
        assert detect(data[:-1]) is None

    def test_time_decides_where_bytes_do_not(self) -> None:
        """A server that speaks first is TCP once the limit is over, and a client that has spoken is not affected."""
        assert detect(b"", waited_s=0.1, limit_s=0.1) is Detected.TCP
        assert detect(b"", waited_s=0.09, limit_s=0.1) is None
        assert detect(b"", waited_s=9e9) is None
        assert detect(b"GET / HTTP/1.1\r\n", waited_s=1, limit_s=0.1) is Detected.HTTP1

    def test_an_endless_request_line_is_http_if_its_method_is(self) -> None:
        """So that the codec answers 414; an unknown word was TCP all along."""
        assert detect(b"GET /" + b"a" * FIRST_LINE_MAX_BYTES) is Detected.HTTP1
        assert detect(b"FOO /" + b"a" * FIRST_LINE_MAX_BYTES) is Detected.TCP
        assert detect(b"FOO /" + b"a" * 100) is None


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer_or_a_wait(data: bytes) -> None:
    """Never an exception, and never a wait beyond the limit."""
    assert detect(data) in (None, *Detected)
    assert detect(data, waited_s=1, limit_s=1) is not None
