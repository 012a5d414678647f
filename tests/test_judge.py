"""Findings from recorded exchanges: what holds, what is broken, and what is no evidence."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.model.experiment import Finding, Result
from testbed.model.identity import Identity
from testbed.model.placement import Claim, Encryption
from testbed.verify.evidence import Canary, gather
from testbed.verify.journeys import journeys
from testbed.verify.judge import judge
from testbed.verify.segments import LOCAL, WIRE, Layout, Segment
from tests.recorded import CLIENT, SERVER, TO_CLIENT, TO_SERVER, Authority, Exchange, Laid, Tunnels, hbone

TOKEN = b"canary-7f3a9e"
CLIENT_ID = "spiffe://cluster.local/ns/default/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/default/sa/server"
REQUESTS = [
    (b"GET / HTTP/1.1\r\nx-canary: " + TOKEN + b"-%d\r\n\r\n" % n, b"HTTP/1.1 200 OK\r\n\r\n") for n in range(8)
]

SEGMENTS = (
    Segment(sandbox="node-a", device="veth-client", kind=WIRE, label="veth of client", workload="client"),
    Segment(sandbox="node-a", device="to-node-b", kind=WIRE, label="link node-a--node-b", link=("node-a", "node-b")),
    Segment(sandbox="node-b", device="veth-server", kind=WIRE, label="veth of server", workload="server"),
)
LAYOUT = Layout(
    segments=SEGMENTS,
    homes={"client": "node-a", "server": "node-b"},
    addresses={"client": frozenset({"10.0.1.2"}), "server": frozenset({"10.0.2.2", "10.96.0.10"})},
)
CANARY = Canary(token=TOKEN, source="client", destination="server", count=8)
MESH = Claim(
    source="client",
    destination="server",
    segment=WIRE,
    encryption=Encryption.MTLS,
    hbone=True,
    authority="10.0.2.2:8080",
    client_identity=Identity.parse(CLIENT_ID),
    server_identity=Identity.parse(SERVER_ID),
)
CLEAR = Claim(source="client", destination="server", segment=WIRE, encryption=Encryption.CLEAR)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def tunnel(authority: Authority, tmp_path: Path) -> Callable[..., tuple[Exchange, str]]:
    def make(client: str = CLIENT_ID, server: str = SERVER_ID, **changes: object) -> tuple[Exchange, str]:
        return hbone(authority, tmp_path, Tunnels(**{"bodies": REQUESTS, **changes}), client=client, server=server)

    return make


def laid() -> Laid:
    lay = Laid()
    for segment in SEGMENTS:
        lay.point(segment.name)
    return lay


def judged(
    lay: Laid, *, keys: str = "", drops: int | None = 0, claim: Claim = MESH, canary: Canary = CANARY
) -> dict[str, Finding]:
    """Findings by `<device>/<check>`."""
    evidence = gather(lay.recording(drops=drops), SEGMENTS, file="proof.pcapng", key_log=keys)
    findings = judge(plane="ambient-l4", claims=[claim], canaries=[canary], evidence=evidence, layout=LAYOUT)
    assert len({f.id for f in findings}) == len(findings)
    return {f.id.split("/", 2)[2].rpartition(":")[2]: f for f in findings}


def results(findings: dict[str, Finding]) -> set[Result]:
    return {f.result for f in findings.values()}


EVERYWHERE = (0, 1, 2)


def clear_exchange() -> Exchange:
    return [part for request, reply in REQUESTS for part in ((TO_SERVER, request), (TO_CLIENT, reply))]


class TestMesh:
    def test_honest_tunnels_hold_on_every_segment(self, tunnel: Callable) -> None:
        """All that a mesh claims is found, at each of the three places, with packet numbers."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        findings = judged(lay, keys=keys)

        assert {k: f.evidence for k, f in findings.items() if f.result is not Result.HOLDS} == {}
        assert len(findings) == 3 * 6 + 1
        assert findings["veth-client/hidden"].value == "0 of 8 readable"
        assert findings["to-node-b/delivered"].value == "8 of 8 inside"
        assert findings["to-node-b/tls"].value == "TLS 1.3"
        assert findings["to-node-b/alpn"].value == "h2"
        assert findings["veth-server/hbone"].value == "8 CONNECT"
        assert CLIENT_ID in findings["veth-server/identity"].evidence
        assert all(f.packets for f in findings.values())

    def test_packet_numbers_point_at_the_segment(self, tunnel: Callable) -> None:
        """A finding's packets are of its own capture point."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        findings = judged(lay, keys=keys)

        for number, segment in enumerate(SEGMENTS):
            for check in ("delivered", "hbone", "identity", "tls"):
                packets = findings[f"{segment.device}/{check}"].packets
                assert {lay.packets[n - 1].interface for n in packets} == {number}

    def test_reordering_and_retransmission_change_nothing(self, tunnel: Callable) -> None:
        """A lossy link still proves: the streams are put together as a receiver would."""
        exchange, keys = tunnel()
        lay = laid()

        def shake(segments: list[bytes]) -> list[bytes]:
            swapped = segments[:2]
            for at in range(2, len(segments) - 1, 2):
                swapped += [segments[at + 1], segments[at], segments[at]]
            return [*swapped, segments[-1]]

        lay.exchange(exchange, points=EVERYWHERE, mss=300, shake=shake)

        assert results(judged(lay, keys=keys)) == {Result.HOLDS}

    def test_canary_in_many_data_frames_is_counted_once(self, tunnel: Callable) -> None:
        """HTTP/2 may cut the tunnelled bytes anywhere, also inside the token."""
        exchange, keys = tunnel(pieces=9)
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        assert judged(lay, keys=keys)["to-node-b/delivered"].value == "8 of 8 inside"

    def test_without_keys_what_is_inside_is_no_evidence(self, tunnel: Callable) -> None:
        """Only what can be seen from outside is judged: nothing readable, TLS 1.3."""
        exchange, _ = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        findings = judged(lay)

        for segment in SEGMENTS:
            of = {check: findings[f"{segment.device}/{check}"].result for check in ("hidden", "tls")}
            assert of == {"hidden": Result.HOLDS, "tls": Result.HOLDS}
            for check in ("delivered", "identity", "alpn", "hbone"):
                assert findings[f"{segment.device}/{check}"].result is Result.NO_EVIDENCE
                assert "no key log" in findings[f"{segment.device}/{check}"].evidence
        assert findings["way"].result is Result.NO_EVIDENCE

    @pytest.mark.parametrize("drops", [1, None])
    def test_lost_packets_leave_nothing_that_holds(self, tunnel: Callable, drops: int | None) -> None:
        """Neither a capture that lost packets nor one that does not say may ever acquit."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        assert results(judged(lay, keys=keys, drops=drops)) == {Result.NO_EVIDENCE}

    def test_no_packets_is_no_evidence(self) -> None:
        """Silence proves nothing."""
        assert results(judged(laid())) == {Result.NO_EVIDENCE}

    def test_packets_of_others_only_is_no_evidence(self, tunnel: Callable) -> None:
        """That nothing was readable where the pair's traffic never was says nothing about it."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE, client=("10.0.9.9", 40000))

        assert judged(lay, keys=keys)["to-node-b/hidden"].result is Result.NO_EVIDENCE

    def test_too_few_bytes_are_no_evidence(self, tunnel: Callable) -> None:
        """A connection too small to have carried the requests does not show that they were hidden."""
        exchange, _ = tunnel(bodies=REQUESTS[:1])
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        found = judged(lay, canary=Canary(token=TOKEN, source="client", destination="server", count=5000))

        assert found["to-node-b/hidden"].result is Result.NO_EVIDENCE

    def test_missing_bytes_are_no_evidence(self, tunnel: Callable) -> None:
        """A hole in a stream could have held anything."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE, mss=300, shake=lambda s: s[:12] + s[13:])

        assert results(judged(lay, keys=keys)) <= {Result.NO_EVIDENCE, Result.HOLDS}
        assert judged(lay, keys=keys)["to-node-b/hidden"].result is Result.NO_EVIDENCE
        assert judged(lay, keys=keys)["to-node-b/delivered"].result is Result.NO_EVIDENCE

    def test_a_handshake_before_the_capture_is_no_evidence(self, tunnel: Callable) -> None:
        """Records without their handshake cannot be attributed to anybody."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange[5:], points=EVERYWHERE, opening=False)

        assert results(judged(lay, keys=keys)) <= {Result.NO_EVIDENCE, Result.HOLDS}
        assert judged(lay, keys=keys)["to-node-b/tls"].result is Result.NO_EVIDENCE


    def test_a_stream_caught_in_mid_record_is_no_evidence(self, tunnel: Callable) -> None:
        """What began before the capture is not taken for cleartext because its first byte is no record's."""
        exchange, _ = tunnel()
        way, data = exchange[6]
        lay = laid()
        lay.exchange([(way, data[3:]), *exchange[7:]], points=EVERYWHERE, opening=False)

        finding = judged(lay)["to-node-b/tls"]

        assert (finding.result, finding.value) == (Result.NO_EVIDENCE, "no handshake")

    @pytest.mark.parametrize(("replies", "result"), [(8, Result.HOLDS), (7, Result.BROKEN)])
    def test_answers_inside_are_counted_where_it_is_known_how_many(
        self, tunnel: Callable, replies: int, result: Result
    ) -> None:
        """An answer more than were given is as wrong as a request more."""
        answering = [(request, b"HTTP/1.1 200 OK\r\n\r\n" + request) for request, _ in REQUESTS]
        exchange, keys = tunnel(bodies=answering)
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)
        canary = Canary(token=TOKEN, source="client", destination="server", count=8, replies=replies)

        assert judged(lay, keys=keys, canary=canary)["to-node-b/delivered"].result is result


class TestBreaches:
    def test_another_suite_is_broken(self, tunnel: Callable) -> None:
        """TLS 1.3 alone is not what is claimed."""
        exchange, _ = tunnel()
        number = next(n for n, (way, _) in enumerate(exchange) if way == TO_CLIENT)
        way, hello = exchange[number]
        suite = 9 + 34 + 1 + hello[43]  # record and handshake headers, version and random, session id
        exchange[number] = (way, hello[:suite] + b"\x13\x03" + hello[suite + 2 :])
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        finding = judged(lay)["to-node-b/tls"]

        assert finding.result is Result.BROKEN and "TLS_CHACHA20_POLY1305_SHA256" in finding.evidence

    def test_another_protocol_inside_tls_is_broken(self, tmp_path: Path) -> None:
        """HBONE is h2 by agreement, not by luck."""

        class Elsewhere(Authority):
            def context(self, *given: object, **named: object) -> ssl.SSLContext:
                context = super().context(*given, **named)  # type: ignore[arg-type]
                context.set_alpn_protocols(["http/1.1"])
                return context

        exchange, keys = hbone(
            Elsewhere(tmp_path), tmp_path, Tunnels(bodies=REQUESTS), client=CLIENT_ID, server=SERVER_ID
        )
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        finding = judged(lay, keys=keys)["to-node-b/alpn"]

        assert (finding.result, finding.value) == (Result.BROKEN, "http/1.1")

    def test_a_second_identity_in_a_certificate_is_broken(self, tunnel: Callable) -> None:
        """Who may be two may be taken for either."""
        exchange, keys = tunnel(client=f"{CLIENT_ID} spiffe://cluster.local/ns/default/sa/admin")
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        finding = judged(lay, keys=keys)["to-node-b/identity"]

        assert finding.result is Result.BROKEN and "sa/admin" in finding.evidence

    def test_more_requests_on_the_way_than_were_sent_is_broken(self, tunnel: Callable) -> None:
        """Whoever made the other one had the canary."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        found = judged(lay, keys=keys, canary=Canary(token=TOKEN, source="client", destination="server", count=7))

        assert found["way"].result is Result.BROKEN and "8 requests seen where 7" in found["way"].evidence

    def test_a_leak_on_one_segment_is_found_there(self, tunnel: Callable) -> None:
        """One request in clear beside the tunnel, on the link only."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)
        lay.exchange(clear_exchange()[:2], points=[1], server=("10.0.2.2", 8080), client=("10.0.1.2", 5))

        findings = judged(lay, keys=keys)

        leak = findings["to-node-b/hidden"]
        assert (leak.result, leak.value) == (Result.BROKEN, "1 of 8 readable")
        assert TOKEN in lay.packets[leak.packets[0] - 1].data
        assert findings["to-node-b/tls"].result is Result.BROKEN
        assert findings["veth-client/hidden"].result is Result.HOLDS

    def test_a_leak_counts_though_the_capture_lost_packets(self, tunnel: Callable) -> None:
        """What was seen was seen."""
        lay = laid()
        lay.exchange(clear_exchange(), points=EVERYWHERE)

        assert judged(lay, drops=5)["to-node-b/hidden"].result is Result.BROKEN

    def test_a_canary_split_over_two_segments_is_found(self) -> None:
        """No single packet holds the token."""
        lay = laid()
        lay.exchange([(TO_SERVER, REQUESTS[0][0])], points=EVERYWHERE, mss=7)
        assert not any(TOKEN in p.data for p in lay.packets)

        leak = judged(lay)["to-node-b/hidden"]

        assert (leak.result, leak.value) == (Result.BROKEN, "1 of 8 readable")
        carried = b"".join(lay.packets[n - 1].data[54:] for n in leak.packets)
        assert TOKEN in carried and len(leak.packets) == 3

    def test_a_canary_outside_tcp_is_found(self) -> None:
        """Every frame is searched, whatever its protocol."""
        lay = laid()
        number = lay.add(1, bytes(12) + b"\x08\x06" + TOKEN)

        leak = judged(lay)["to-node-b/hidden"]

        assert (leak.result, leak.packets) == (Result.BROKEN, (number,))

    def test_a_retransmitted_leak_is_one_leak(self) -> None:
        """Both packets are named, the request is counted once."""
        lay = laid()
        lay.exchange([(TO_SERVER, REQUESTS[0][0])], points=[1], shake=lambda s: [*s[:3], s[2], *s[3:]])

        leak = judged(lay)["to-node-b/hidden"]

        assert leak.value == "1 of 8 readable" and len(leak.packets) == 2

    def test_a_leak_in_an_answer_is_found(self) -> None:
        """The way back is searched as well."""
        lay = laid()
        lay.exchange([(TO_SERVER, b"hello"), (TO_CLIENT, REQUESTS[0][0])], points=[1])

        assert judged(lay)["to-node-b/hidden"].result is Result.BROKEN

    @pytest.mark.parametrize("side", ["client", "server"])
    def test_a_wrong_identity_is_broken(self, tunnel: Callable, side: str) -> None:
        """An intruder with a certificate of the right CA and another account."""
        exchange, keys = tunnel(**{side: "spiffe://cluster.local/ns/default/sa/intruder"})
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        finding = judged(lay, keys=keys)["veth-server/identity"]

        assert finding.result is Result.BROKEN
        assert f"{side} of 10.0.1.2:40000" in finding.evidence and "sa/intruder" in finding.evidence

    def test_a_request_that_never_entered_the_tunnel_is_missed(self, tunnel: Callable) -> None:
        """Exactly the expected number has to be inside."""
        exchange, keys = tunnel(bodies=REQUESTS[:7])
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        finding = judged(lay, keys=keys)["veth-server/delivered"]

        assert (finding.result, finding.value) == (Result.BROKEN, "7 of 8 inside")

    def test_a_request_sent_twice_is_noticed(self, tunnel: Callable) -> None:
        """One too many is as wrong as one too few."""
        exchange, keys = tunnel(bodies=[*REQUESTS, REQUESTS[0]])
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        assert judged(lay, keys=keys)["veth-server/delivered"].result is Result.BROKEN

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"authority": "10.0.2.9:8080"}, "asks for 10.0.2.9:8080"),
            ({"extra": ()}, "has no baggage"),
            ({"status": b"503", "bodies": REQUESTS[:1]}, "was answered 503"),
        ],
    )
    def test_a_wrong_connect_is_broken(self, tunnel: Callable, changes: dict, says: str) -> None:
        """Each point of the framing is checked by itself."""
        exchange, keys = tunnel(**changes)
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        finding = judged(lay, keys=keys)["to-node-b/hbone"]

        assert finding.result is Result.BROKEN and says in finding.evidence

    def test_another_port_is_broken(self, tunnel: Callable) -> None:
        """HBONE has one port, and network policies rely on it."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE, server=("10.0.2.2", 15009))

        assert "not on port 15008" in judged(lay, keys=keys)["to-node-b/hbone"].evidence


class TestClear:
    def test_under_none_the_canary_is_found(self) -> None:
        """The check's own proof, also behind a service address."""
        lay = laid()
        lay.exchange(clear_exchange(), points=[0], server=("10.96.0.10", 80))
        lay.exchange(clear_exchange(), points=[1, 2], server=("10.0.2.2", 8080))

        findings = judged(lay, claim=CLEAR)

        assert results(findings) == {Result.HOLDS}
        assert findings["veth-client/readable"].value == "8 of 8 readable"
        assert "as is meant" in findings["veth-client/readable"].statement

    def test_unreadable_traffic_under_none_breaks_the_check(self, tunnel: Callable) -> None:
        """If nothing can be read where everything should be, the search does not work."""
        exchange, _ = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)

        assert judged(lay, claim=CLEAR)["to-node-b/readable"].result is Result.BROKEN

    def test_no_packets_under_none_is_no_evidence(self) -> None:
        """A capture that heard nothing has not found cleartext."""
        assert results(judged(laid(), claim=CLEAR)) == {Result.NO_EVIDENCE}

    def test_a_cleartext_leg_excuses_no_other(self, tunnel: Callable) -> None:
        """A waypoint's clear leg is its own; the same canary in clear on the encrypted leg stays a leak."""
        layout = Layout(
            segments=SEGMENTS,
            homes={**LAYOUT.homes, "waypoint": "node-b"},
            addresses={**LAYOUT.addresses, "waypoint": frozenset({"10.0.2.7"})},
        )
        canary = Canary(token=TOKEN, source="client", destination="server", count=8, via=("waypoint",))
        claims = [
            Claim(source="client", destination="waypoint", segment=WIRE, encryption=Encryption.MTLS),
            Claim(source="waypoint", destination="server", segment=WIRE, encryption=Encryption.CLEAR),
        ]
        exchange, keys = tunnel()

        def findings(leak: bool) -> dict[str, Result]:
            lay = laid()
            lay.exchange(exchange, points=[0, 1], server=("10.0.2.7", 15008))
            lay.exchange(clear_exchange(), points=[2], client=("10.0.2.7", 999), server=("10.0.2.2", 8080))
            if leak:
                lay.exchange(clear_exchange(), points=[1], client=CLIENT, server=("10.0.2.7", 80))
            evidence = gather(lay.recording(key_log=keys), SEGMENTS, file="x")
            found = judge(plane="waypoint", claims=claims, canaries=[canary], evidence=evidence, layout=layout)
            return {f.id.split("/", 1)[1]: f.result for f in found}

        assert set(findings(False).values()) == {Result.HOLDS}
        assert findings(True)["client>waypoint/node-a:to-node-b/hidden"] is Result.BROKEN


class TestElsewhere:
    def test_a_canary_on_a_link_off_its_way_is_a_leak(self, tunnel: Callable) -> None:
        """Traffic that takes another road in clear does not escape."""
        other = Segment(sandbox="node-a", device="to-node-c", kind=WIRE, label="link a--c", link=("node-a", "node-c"))
        exchange, keys = tunnel()
        lay = laid()
        lay.point(other.name)
        lay.exchange(exchange, points=EVERYWHERE)
        layout = Layout(segments=(*SEGMENTS, other), homes=LAYOUT.homes, addresses=LAYOUT.addresses)

        def verdicts() -> dict[str, Result]:
            evidence = gather(lay.recording(), layout.segments, file="x", key_log=keys)
            found = judge(plane="p", claims=[MESH], canaries=[CANARY], evidence=evidence, layout=layout)
            return {f.id: f.result for f in found}

        assert not any("to-node-c" in name for name in verdicts())
        lay.exchange(clear_exchange(), points=[3], server=("10.0.9.1", 80))
        assert verdicts()["p/client>server/node-a:to-node-c/hidden"] is Result.BROKEN

    def test_a_claim_nobody_listens_to_is_no_evidence(self) -> None:
        """Rather than silently leaving it out."""
        claim = Claim(source="client", destination="server", segment=LOCAL, encryption=Encryption.CLEAR)

        assert [f.result for f in judged(laid(), claim=claim).values()] == [Result.NO_EVIDENCE] * 2


class TestJourneys:
    def test_each_request_is_followed_through_the_segments(self, tunnel: Callable) -> None:
        """Request by request: where it was, inside which tunnel, as whom."""
        exchange, keys = tunnel()
        lay = laid()
        lay.exchange(exchange, points=EVERYWHERE)
        evidence = gather(lay.recording(), SEGMENTS, file="x", key_log=keys)

        found = journeys(evidence, CANARY)

        assert [j.request for j in found] == [str(n) for n in range(8)]
        assert [c.segment for c in found[3].crossings] == [s.name for s in SEGMENTS]
        assert {c.traceparent for c in found[3].crossings} == {f"00-{3:032x}-{3:016x}-00"}
        assert {(c.client_identity, c.server_identity) for c in found[3].crossings} == {(CLIENT_ID, SERVER_ID)}

    def test_unnamed_requests_are_numbered(self) -> None:
        """Without a name behind the token the order counts."""
        lay = laid()
        lay.exchange([(TO_SERVER, TOKEN + b" "), (TO_SERVER, TOKEN)], points=[0, 1], server=SERVER)
        evidence = gather(lay.recording(), SEGMENTS, file="x")

        assert [(j.request, len(j.crossings)) for j in journeys(evidence, CANARY)] == [("#1", 2), ("#2", 2)]
