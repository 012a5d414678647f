"""Recorded TLS opened: both suites, both directions, certificates, key updates, and refusal of wrong keys."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from testbed.observe import keylog
from testbed.observe.keylog import TlsConnection, open_connection, parse_key_log
from testbed.observe.streams import ByteStream, Mark, follow
from tests.recorded import TO_CLIENT, TO_SERVER, Authority, Laid, Pair

CLIENT_ID, SERVER_ID = "spiffe://cluster.local/ns/n/sa/client", "spiffe://cluster.local/ns/n/sa/server"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    authority = Authority(tmp_path)
    client = authority.context(ssl.PROTOCOL_TLS_CLIENT, authority.leaf(CLIENT_ID), tmp_path / "keys.txt")
    return Pair(client, authority.context(ssl.PROTOCOL_TLS_SERVER, authority.leaf(SERVER_ID)))


@pytest.fixture
def opened(pair: Pair, tmp_path: Path) -> Callable[..., TlsConnection]:
    def run(keys: str | None = None, **how: object) -> TlsConnection:
        lay = Laid()
        lay.point("a:x")
        lay.exchange(pair.wire, **how)
        (connection,) = follow(lay.packets, tuple(lay.interfaces)).connections
        text = (tmp_path / "keys.txt").read_text() if keys is None else keys
        return open_connection(connection, parse_key_log(text))

    return run


def test_both_directions_and_both_certificates_come_out(pair: Pair, opened: Callable) -> None:
    """Application bytes, identities, and the server's ALPN, all of them encrypted on the wire."""
    pair.say(TO_SERVER, b"q" * 50000)
    pair.say(TO_CLIENT, b"reply")

    tls = opened()

    assert tls.opened and tls.problem == ""
    assert (tls.client.data, tls.server.data) == (b"q" * 50000, b"reply")
    assert (tls.client.certificate.uris, tls.server.certificate.uris) == ((CLIENT_ID,), (SERVER_ID,))
    assert tls.server.alpn == "h2" and tls.version == "TLS 1.3"


def test_bytes_are_traced_to_their_packets(pair: Pair, opened: Callable) -> None:
    """A byte of the second record is not in the first record's packets."""
    pair.say(TO_SERVER, b"a" * 10)
    pair.say(TO_SERVER, b"b" * 10)

    client = opened().client

    first, second = client.carriers(0, 10), client.carriers(10, 20)
    assert len(first) == len(second) == 1 and first[0] < second[0]
    assert client.carriers(9, 11) == first + second


def test_without_its_secrets_only_the_hellos_are_known(pair: Pair, opened: Callable) -> None:
    """And the reason is told."""
    pair.say(TO_SERVER, b"q")

    tls = opened(keys="")

    assert tls.version == "TLS 1.3" and not tls.opened and tls.client.data == b""
    assert "no secrets" in tls.problem


def test_wrong_secrets_open_nothing(pair: Pair, opened: Callable, tmp_path: Path) -> None:
    """AEAD: there is no half-right."""
    pair.say(TO_SERVER, b"q")
    lines = (tmp_path / "keys.txt").read_text().splitlines()
    wrong = "\n".join(line[:-2] + ("00" if line[-2:] != "00" else "11") for line in lines)

    tls = opened(keys=wrong)

    assert not tls.opened and tls.client.data == b"" and "does not open" in tls.problem


def test_a_lost_segment_ends_the_reading_there(pair: Pair, opened: Callable) -> None:
    """What came before is kept, what follows is not guessed."""
    pair.say(TO_SERVER, b"a" * 5000)
    pair.say(TO_SERVER, b"b" * 5000)

    tls = opened(mss=1000, shake=lambda s: s[:-4] + s[-3:])

    assert not tls.opened and "missing from the capture" in tls.problem and tls.client.data == b"a" * 5000


def test_key_log_lines_that_are_none_are_passed_over() -> None:
    """Comments and a line that is still being written."""
    text = "# x\nLABEL ab cd\nLABEL abc\nLABEL zz 00\n"

    assert parse_key_log(text) == {(b"\xab", "LABEL"): b"\xcd"}


@pytest.mark.parametrize("code", [0x1301, 0x1302])
def test_key_updates_and_padding_are_followed(code: int) -> None:
    """Python's ssl cannot ask for a KeyUpdate, so records are sealed here, by RFC 8446 §5.2, with both suites."""
    suite = keylog.SUITES[code]
    secret = b"s" * suite.hash.digest_size
    updated = keylog.expand_label(secret, "traffic upd", suite.hash.digest_size, suite)

    def seal(secret: bytes, sequence: int, kind: int, content: bytes, padding: int = 0) -> bytes:
        key, iv = (keylog.expand_label(secret, n, size, suite) for n, size in (("key", suite.key_bytes), ("iv", 12)))
        nonce = bytes(a ^ b for a, b in zip(iv, sequence.to_bytes(12, "big"), strict=True))
        inner = content + bytes([kind]) + bytes(padding)
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        return header + AESGCM(key).encrypt(nonce, inner, header)

    handshake = b"h" * suite.hash.digest_size
    stream = (
        seal(handshake, 0, 22, b"\x14\x00\x00\x02ok")
        + seal(secret, 0, 23, b"before", padding=30)
        + seal(secret, 1, 22, b"\x18\x00\x00\x01\x00")
        + seal(updated, 0, 23, b" after")
    )
    marks = (Mark(start=0, stop=len(stream), packet=1, time_ns=1),)
    whole = ByteStream(data=stream, marks=marks, longest_mark=len(stream))

    plain = keylog._Opener(whole, keylog._Epoch(handshake, suite), keylog._Epoch(secret, suite)).run()

    assert (plain.data, plain.problem, plain.decrypted) == (b"before after", "", 4)


def test_the_expansion_is_that_of_the_rfc() -> None:
    """RFC 8448 §3: server handshake traffic secret -> write key and iv."""
    secret = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
    suite = keylog.SUITES[0x1301]

    assert keylog.expand_label(secret, "key", 16, suite).hex() == "3fce516009c21727d0f2e4e86ee403bc"
    assert keylog.expand_label(secret, "iv", 12, suite).hex() == "5d313eb2671276ee13000b30"
