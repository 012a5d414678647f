"""The ClientHello reader against hellos of OpenSSL, cut and broken."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planes.l7.clienthello import CLIENT_HELLO_MAX_BYTES, ClientHello, NotTls, read_client_hello


def hello(alpn: list[str] | None = None, name: str | None = None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def refragmented(data: bytes, size: int) -> bytes:
    """The same handshake message in records of `size` bytes."""
    message = data[5:]
    parts = [message[i : i + size] for i in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(p).to_bytes(2) + p for p in parts)


def built(extensions: bytes) -> bytes:
    """A minimal hello with these extensions."""
    body = b"\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00" + len(extensions).to_bytes(2) + extensions
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + len(content).to_bytes(2) + content


REAL = hello(["istio-http/1.1", "istio", "h2"], "Back.Example")
EXPECTED = ClientHello(alpn=(b"istio-http/1.1", b"istio", b"h2"), server_name="back.example")


class TestWhole:
    def test_alpn_and_name_of_a_real_client(self) -> None:
        """In the client's order, the name in lower case."""
        assert read_client_hello(REAL) == EXPECTED
        assert read_client_hello(hello()) == ClientHello(alpn=(), server_name=None)

    def test_bytes_behind_it_are_not_its_own(self) -> None:
        """A following record is left to TLS."""
        assert read_client_hello(REAL + b"\x14\x03\x03\x00\x01\x01") == EXPECTED

    @pytest.mark.parametrize("size", [1, 3, 5, 100])
    def test_fragments_are_joined(self, size: int) -> None:
        """Down to one byte of handshake a record."""
        assert read_client_hello(refragmented(REAL, size)) == EXPECTED

    @given(st.integers(1, 600), st.data())
    def test_every_prefix_wants_more(self, size: int, data: st.DataObject) -> None:
        """Never a refusal before a wrong byte."""
        whole = refragmented(REAL, size)
        cut = data.draw(st.integers(0, len(whole) - 1))
        assert read_client_hello(whole[:cut]) is None


def name_of(*entries: bytes) -> bytes:
    names = b"".join(entries)
    return extension(0, len(names).to_bytes(2) + names)


BROKEN = {
    "another record": b"\x17\x03\x01\x00\x01\x01",
    "SSL 2": b"\x80\x2e\x01",
    "TLS 4": b"\x16\x04\x00\x00\x01\x01",
    "an empty record": b"\x16\x03\x01\x00\x00",
    "a long record": b"\x16\x03\x01\x40\x01\x01",
    "a server's hello": b"\x16\x03\x01\x00\x04\x02\x00\x00\x01",
    "an endless message": b"\x16\x03\x01\x00\x04\x01" + (CLIENT_HELLO_MAX_BYTES + 1).to_bytes(3),
    "an extension twice": built(extension(5, b"") * 2),
    "an extension beyond its frame": built(b"\x00\x05\x00\x09a"),
    "no protocols": built(extension(16, b"\x00\x00")),
    "an empty protocol": built(extension(16, b"\x00\x01\x00")),
    "bytes behind the protocols": built(extension(16, b"\x00\x02\x01hx")),
    "two names": built(name_of(b"\x00\x00\x01a", b"\x00\x00\x01b")),
    "an empty name": built(name_of(b"\x00\x00\x00")),
    "a name with NUL": built(name_of(b"\x00\x00\x02a\x00")),
    "a name that is not ASCII": built(name_of(b"\x00\x00\x01\xe4")),
    "a second message in its record": b"\x16\x03\x01" + (len(REAL) - 5 + 1).to_bytes(2) + REAL[5:] + b"\x01",
}  # fmt: skip


class TestBroken:
    @pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
    def test_what_is_malformed_is_not_tls(self, data: bytes) -> None:
        """Said by an exception of its own, once the bytes are there."""
        with pytest.raises(NotTls):
            read_client_hello(data)

    @given(st.binary(max_size=60), st.integers(0, len(REAL) - 1), st.binary(max_size=4))
    def test_nothing_else_is_ever_raised(self, junk: bytes, at: int, patch: bytes) -> None:
        """Random bytes, and real ones with a few changed."""
        for data in (junk, b"\x16\x03\x01" + junk, REAL[:at] + patch + REAL[at + len(patch) :]):
            try:
                read_client_hello(data)
            except NotTls:
                pass
