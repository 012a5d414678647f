"""Canaries that HPACK has coded are found: between sidecars by the keys, in clear without, and inside tunnels."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.connection
import h2.events
import pytest

from testbed.model.experiment import Finding, Result
from testbed.model.placement import Claim, Encryption
from testbed.verify.evidence import BACKWARD, FORWARD, Canary, gather, in_clear, opened
from testbed.verify.judge import judge
from testbed.verify.segments import WIRE
from tests.recorded import TO_CLIENT, TO_SERVER, Authority, Exchange, Pair, Tunnels, h2_pair, hbone
from tests.test_judge import CANARY, CLIENT_ID, EVERYWHERE, LAYOUT, MESH, SEGMENTS, SERVER_ID, TOKEN, laid

Say = Callable[[str, bytes], bytes]
BETWEEN_SIDECARS = Claim(source="client", destination="server", segment=WIRE, encryption=Encryption.MTLS)
ISTIO = dataclasses.replace(
    BETWEEN_SIDECARS, alpn=("istio-http/1.1", "istio", "http/1.1"), alpn_http2=("istio-h2", "istio", "h2")
)
PLAIN = Claim(source="client", destination="server", segment=WIRE, encryption=Encryption.CLEAR)
HEAD = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web"), (b":path", b"/")]


def requests(say: Say, *, count: int = 8, where: str = "head") -> None:
    """By the `h2` library, which codes every new value by Huffman's table: no byte of a token stands as it is."""
    client, server = h2_pair()

    def swap() -> None:
        for _ in range(3):
            for way, a, b in ((TO_SERVER, client, server), (TO_CLIENT, server, client)):
                if data := a.data_to_send():
                    for event in b.receive_data(say(way, data)):
                        if isinstance(event, h2.events.DataReceived):
                            b.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    client.initiate_connection()
    server.initiate_connection()
    swap()
    for number in range(count):
        stream, canary = client.get_next_available_stream_id(), (b"x-canary", TOKEN + b"-%d" % number)
        client.send_headers(stream, [*HEAD, canary] if where == "head" else HEAD, end_stream=where != "trailers")
        if where == "trailers":
            client.send_headers(stream, [canary], end_stream=True)
        swap()
        server.send_headers(stream, [(b":status", b"200"), *([canary] if where == "answer" else [])], end_stream=True)
        swap()


def in_the_clear(**how: object) -> Exchange:
    wire: Exchange = []

    def say(way: str, data: bytes) -> bytes:
        wire.append((way, data))
        return data

    requests(say, **how)  # type: ignore[arg-type]
    return wire


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Callable[..., tuple[Exchange, str]]]:
    """What crossed between two sidecars, and its keys."""
    authority = Authority(tmp_path)

    def make(offer: tuple[str, ...] = ("h2",), **how: object) -> tuple[Exchange, str]:
        key_log = tmp_path / "keys.txt"
        client = authority.context(ssl.PROTOCOL_TLS_CLIENT, authority.leaf(CLIENT_ID), key_log)
        client.set_alpn_protocols(list(offer))
        pair = Pair(client, authority.context(ssl.PROTOCOL_TLS_SERVER, authority.leaf(SERVER_ID)))
        requests(pair.say, **how)  # type: ignore[arg-type]
        return pair.wire, key_log.read_text()

    yield make


def findings(wire: Exchange, claim: Claim, canary: Canary = CANARY, *, keys: str = "") -> dict[str, Finding]:
    lay = laid()
    lay.exchange(wire, points=EVERYWHERE)
    evidence = gather(lay.recording(), SEGMENTS, file="proof.pcapng", key_log=keys)
    found = judge(plane="sidecar", claims=[claim], canaries=[canary], evidence=evidence, layout=LAYOUT)
    return {f.id.split("/", 2)[2].rpartition(":")[2]: f for f in found}


def test_the_bytes_themselves_never_show_the_token() -> None:
    """Else the cases here would prove nothing."""
    assert not any(TOKEN in data for _, data in in_the_clear())


@pytest.mark.parametrize("where", ["head", "trailers"])
def test_between_sidecars_each_request_is_counted_inside(secured: Callable, where: str) -> None:
    """In the head or behind the body, with the packets that bore it and the way it took."""
    wire, keys = secured(where=where)

    found = findings(wire, BETWEEN_SIDECARS, keys=keys)

    assert {name: f.evidence for name, f in found.items() if f.result is not Result.HOLDS} == {}
    assert found["to-node-b/delivered"].value == "8 of 8 inside"
    assert found["to-node-b/delivered"].packets
    assert found["to-node-b/hidden"].value == "0 of 8 readable"


@pytest.mark.parametrize(
    ("offer", "keyed", "result"),
    [
        (("istio-h2", "istio", "h2"), True, Result.HOLDS),
        (("istio-h2", "istio", "h2"), False, Result.HOLDS),
        (("istio-http/1.1", "istio", "http/1.1"), True, Result.BROKEN),
        (("istio-http/1.1", "istio", "http/1.1"), False, Result.HOLDS),
        (("h2",), False, Result.BROKEN),
    ],
)
def test_the_offer_is_that_of_what_is_inside(
    secured: Callable, offer: tuple[str, ...], keyed: bool, result: Result
) -> None:
    """HTTP/2 under the name of HTTP/1.1 is told where it could be opened; what could not may be either."""
    wire, keys = secured(offer)

    assert findings(wire, ISTIO, keys=keys if keyed else "")["to-node-b/offer"].result is result


@pytest.mark.parametrize("count", [7, 9])
def test_a_request_too_few_or_too_many_breaks_the_count(secured: Callable, count: int) -> None:
    """The claim is of exactly those that were sent."""
    wire, keys = secured(count=count)

    assert findings(wire, BETWEEN_SIDECARS, keys=keys)["to-node-b/delivered"].result is Result.BROKEN


def test_without_keys_nothing_is_said_of_what_is_inside(secured: Callable) -> None:
    wire, _ = secured()

    assert findings(wire, BETWEEN_SIDECARS)["to-node-b/delivered"].result is Result.NO_EVIDENCE


def test_a_coded_field_in_clear_is_a_leak() -> None:
    """Anybody on the wire can decode HPACK: that the token's bytes do not stand there hides nothing."""
    found = findings(in_the_clear(), BETWEEN_SIDECARS)

    assert found["veth-client/hidden"].result is Result.BROKEN
    assert found["veth-client/hidden"].value == "8 of 8 readable"


def test_a_coded_field_is_readable_where_that_is_meant() -> None:
    """Plane `none` with HTTP/2: the check is not broken, the canary is there."""
    found = findings(in_the_clear(), PLAIN)

    assert found["veth-server/readable"].value == "8 of 8 readable"


def test_answers_are_told_from_requests() -> None:
    """A server that repeats the token has not been asked twice."""
    lay = laid()
    lay.exchange(in_the_clear(where="answer"), points=[0])
    (listening, *_) = gather(lay.recording(), SEGMENTS, file="x").listenings

    assert {s.direction for s in in_clear(listening, TOKEN)} == {BACKWARD}


def test_a_field_inside_a_tunnel_is_found(tmp_path: Path) -> None:
    """gRPC between ambient workloads: HTTP/2 in the DATA of a CONNECT, whatever frames have cut it into."""
    halves = {TO_SERVER: b"", TO_CLIENT: b""}

    def say(way: str, data: bytes) -> bytes:
        halves[way] += data
        return data

    requests(say)
    tunnel = Tunnels(bodies=[(halves[TO_SERVER], halves[TO_CLIENT])], pieces=9)
    wire, keys = hbone(Authority(tmp_path), tmp_path, tunnel, client=CLIENT_ID, server=SERVER_ID)
    lay = laid()
    lay.exchange(wire, points=[0])
    (listening, *_) = gather(lay.recording(), SEGMENTS, file="x", key_log=keys).listenings

    found = opened(listening, TOKEN)

    assert sorted(s.request for s in found) == [str(n) for n in range(8)]
    assert {s.direction for s in found} == {FORWARD}
    assert all(s.exchange is not None and s.exchange.is_connect and s.packets for s in found)
    assert findings(wire, MESH, keys=keys)["to-node-b/delivered"].value == "8 of 8 inside"
