"""TLS recognised by its bytes, hellos read."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from testbed.observe import tlsrecords
from tests.recorded import TO_SERVER, Authority, Pair


@pytest.fixture
def halves(tmp_path: Path) -> tuple[bytes, bytes]:
    """(what the client sent, what the server sent)."""
    authority = Authority(tmp_path)
    client = authority.context(ssl.PROTOCOL_TLS_CLIENT, authority.leaf("spiffe://cluster.local/ns/n/sa/c"))
    server = authority.context(ssl.PROTOCOL_TLS_SERVER, authority.leaf("spiffe://cluster.local/ns/n/sa/s"))
    wire = Pair(client, server).wire
    return tuple(b"".join(d for way, d in wire if (way == TO_SERVER) is forward) for forward in (True, False))


def test_the_hellos_say_what_was_offered_and_chosen(halves: tuple[bytes, bytes]) -> None:
    """A 1.3 server's version stands in an extension."""
    (offer,), (choice,) = (tlsrecords.hellos(half) for half in halves)

    assert offer.versions == ("TLS 1.3",) and offer.alpn == ("h2",) and offer.server_name is None
    assert "x25519" in offer.groups and "TLS_AES_128_GCM_SHA256" in {tlsrecords.CIPHERS.get(c) for c in offer.ciphers}
    assert choice.versions == ("TLS 1.3",) and choice.cipher == "TLS_AES_256_GCM_SHA384" and not choice.is_retry


def test_a_server_name_is_read() -> None:
    """Where there is one: ztunnel sends none."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the default is another with each build of OpenSSL
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="b.example").do_handshake()

    (offer,) = tlsrecords.hellos(out.read())

    assert offer.server_name == "b.example" and offer.versions == ("TLS 1.3", "TLS 1.2")


def test_tls_is_told_from_other_bytes(halves: tuple[bytes, bytes]) -> None:
    """By bytes, never by port."""
    assert tlsrecords.begins_tls(halves[0]) and tlsrecords.begins_tls(halves[1])
    for other in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\x16\x03\x01\x00\x04\x0b", bytes(50)):
        assert not tlsrecords.begins_tls(other)
    assert tlsrecords.middle_of_tls(list(tlsrecords.records(halves[1]))[-1].header + bytes(20000))


def test_records_tile_the_stream_and_stop_at_a_limit(halves: tuple[bytes, bytes]) -> None:
    """Nothing between them, nothing beyond a gap."""
    found = list(tlsrecords.records(halves[1]))

    assert b"".join(r.header + r.body for r in found) == halves[1]
    assert [r.stop for r in tlsrecords.records(halves[1], found[1].stop + 3)] == [r.stop for r in found[:2]]


def test_a_malformed_hello_is_a_value_error(halves: tuple[bytes, bytes]) -> None:
    """And not whatever scapy raises."""
    with pytest.raises(ValueError, match="not a ClientHello"):
        tlsrecords.hello(b"\x0b\x00\x00\x00")
