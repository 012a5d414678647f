"""HTTP/2 written by the `h2` library and read back by frames."""

from __future__ import annotations

import pytest
from hyperframe.frame import ContinuationFrame, HeadersFrame, SettingsFrame

from testbed.observe.h2frames import PREFACE, Conversation, converse
from tests.recorded import TO_SERVER, Tunnels

BODIES = [(b"request-%d " % n * 50, b"reply-%d" % n) for n in range(5)]


def spoken(**changes: object) -> tuple[bytes, bytes]:
    halves = {True: b"", False: b""}

    def say(way: str, data: bytes) -> bytes:
        halves[way == TO_SERVER] += data
        return data

    Tunnels(**{"bodies": BODIES, **changes}).speak(say)
    return halves[True], halves[False]


def test_connects_come_back_with_headers_status_and_bodies() -> None:
    """Indexed headers too: from the second request on, HPACK sends references into its table."""
    found = converse(*spoken())

    assert found.problem == "" and len(found.exchanges) == 5
    for n, exchange in enumerate(found.exchanges):
        assert exchange.is_connect and exchange.header(":authority") == "10.0.2.2:8080" and exchange.status == 200
        assert exchange.header("baggage") == "k8s.namespace.name=default"
        assert not {":scheme", ":path"} & set(exchange.names())
        assert (exchange.sent.data, exchange.received.data) == BODIES[n]


def test_pieces_of_a_body_are_found_in_the_bytes() -> None:
    """Spans of the connection's bytes that hold a range which frames have split."""
    client, server = spoken(pieces=7)
    exchange = converse(client, server).exchanges[3]

    spans = exchange.sent.spans(40, 200)

    assert len(spans) > 1 and b"".join(client[a:b] for a, b in spans) == exchange.sent.data[40:200]


@pytest.mark.parametrize("missing", [1, 20, 300])
def test_an_unfinished_last_frame_is_no_problem(missing: int) -> None:
    """The capture ended before it."""
    client, server = spoken()

    assert converse(client[:-missing], server).problem == ""


def test_continuations_are_joined() -> None:
    """A header block may span frames."""
    block = b"\x02\x07CONNECT" + b"\x01\x09h.ns:8080"
    head, rest = HeadersFrame(1, block[:7]), ContinuationFrame(1, block[7:])
    rest.flags.add("END_HEADERS")

    found = converse(PREFACE + SettingsFrame(0).serialize() + head.serialize() + rest.serialize(), b"")

    assert found.exchanges[0].request == ((":method", "CONNECT"), (":authority", "h.ns:8080"))


def test_what_is_not_http2_says_so() -> None:
    """Neither a missing preface nor nonsense after it goes unnoticed."""
    client, _ = spoken()

    assert converse(b"GET / HTTP/1.1\r\n\r\n", b"") == Conversation(
        exchanges=(), frames=0, problem="the client did not begin with the HTTP/2 preface"
    )
    assert "client's header block" in converse(PREFACE + b"\x00\x00\x02\x01\x04\x00\x00\x00\x01\xff\xff", b"").problem
    assert converse(client, b"").exchanges[0].status is None
