"""Calls through a waypoint, judged leg by leg: also where both cross one link, or one is not as claimed."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.model.experiment import Finding, Result
from testbed.model.identity import Identity
from testbed.model.placement import Claim, Encryption
from testbed.proof import share_out
from testbed.verify.evidence import Canary, first_stops, gather
from testbed.verify.judge import judge
from testbed.verify.segments import WIRE, Layout, Segment
from tests.recorded import TO_CLIENT, TO_SERVER, Authority, Exchange, Laid, Pair, Tunnels, hbone

TOKEN = b"canary-51ab"
ME = {name: f"spiffe://cluster.local/ns/default/sa/{name}" for name in ("client", "waypoint", "server", "intruder")}
CLIENT, WAYPOINT, SERVER, SECOND = "10.0.1.2", "10.0.2.254", "10.0.1.3", "10.0.2.253"
VIP = "10.96.0.10:80"
BODIES = [(b"GET / HTTP/1.1\r\nx-canary: " + TOKEN + b"-%d\r\n\r\n" % n, b"HTTP/1.1 200 OK\r\n\r\n") for n in range(4)]
# Client and server on node-a, the waypoints on node-b: both legs cross the one link, in opposite directions.
SEGMENTS = (
    Segment(sandbox="node-a", device="w-client", kind=WIRE, label="veth of client", workload="client"),
    Segment(sandbox="node-a", device="to-node-b", kind=WIRE, label="link node-a--node-b", link=("node-a", "node-b")),
    Segment(sandbox="node-b", device="w-waypoint", kind=WIRE, label="veth of waypoint", workload="waypoint"),
    Segment(sandbox="node-a", device="w-server", kind=WIRE, label="veth of server", workload="server"),
    Segment(sandbox="node-b", device="w-waypoint-2", kind=WIRE, label="veth of waypoint-2", workload="waypoint-2"),
)
LAYOUT = Layout(
    segments=SEGMENTS,
    homes={"client": "node-a", "server": "node-a", "waypoint": "node-b", "waypoint-2": "node-b"},
    addresses={
        "client": frozenset({CLIENT}), "server": frozenset({SERVER, "10.96.0.10"}), "waypoint": frozenset({WAYPOINT}),
        "waypoint-2": frozenset({SECOND}),
    },
)  # fmt: skip
STOPS = ("client", "waypoint", "server")
CANARY = Canary(token=TOKEN, source="client", destination="server", count=4, via=("waypoint",))


def leg(source: str, destination: str, authority: str) -> Claim:
    return Claim(
        source=source, destination=destination, segment=WIRE, encryption=Encryption.MTLS, hbone=True,
        authority=authority, client_identity=Identity.parse(ME[source]),
        server_identity=Identity.parse(ME[destination]),
        stops=STOPS,
    )  # fmt: skip


CLAIMS = [leg("client", "waypoint", VIP), leg("waypoint", "server", f"{SERVER}:8080")]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def two_legs(authority: Authority, tmp_path: Path) -> Callable[..., tuple[Laid, str]]:
    def make(
        *, onward: list[tuple[bytes, bytes]] = BODIES, asked: str = VIP, onward_as: str = "waypoint",
        clear_onward: bool = False, first: bool = True,
    ) -> tuple[Laid, str]:  # fmt: skip
        def tunnel(bodies: list, to: str, client: str, server: str) -> tuple[Exchange, str]:
            return hbone(authority, tmp_path, Tunnels(authority=to, bodies=bodies), client=client, server=server)

        one, keys = tunnel(BODIES, asked, ME["client"], ME["waypoint"])
        two, more = tunnel(onward, f"{SERVER}:8080", ME[onward_as], ME["server"])
        if clear_onward:
            two = [part for request, reply in BODIES for part in ((TO_SERVER, request), (TO_CLIENT, reply))]
        lay = Laid()
        for segment in SEGMENTS:
            lay.point(segment.name)
        if first:
            lay.exchange(one, points=[0, 1, 2], client=(CLIENT, 40001), server=(WAYPOINT, 15008))
        port = 8080 if clear_onward else 15008
        lay.exchange(two, points=[2, 1, 3], client=(WAYPOINT, 40002), server=(SERVER, port))
        return lay, keys + more

    return make


def judged(lay: Laid, keys: str, claims: list[Claim] = CLAIMS) -> dict[str, Finding]:
    evidence = gather(lay.recording(key_log=keys), SEGMENTS, file="x")
    found = judge(plane="ambient", claims=claims, canaries=[CANARY], evidence=evidence, layout=LAYOUT)
    assert len({f.id for f in found}) == len(found)
    return {f.id.split("/", 1)[1]: f for f in found}


def test_both_legs_hold_each_on_its_own_segments(two_legs: Callable) -> None:
    """Client to waypoint for the service, waypoint to server for the pod, as themselves; each leg counted by itself."""
    findings = judged(*two_legs())

    assert {k: f.evidence for k, f in findings.items() if f.result is not Result.HOLDS} == {}
    for name in ("client>waypoint/node-a:to-node-b", "waypoint>server/node-a:to-node-b"):
        assert findings[f"{name}/delivered"].value == "4 of 4 inside"  # not 8, although both cross that link
    assert VIP in findings["client>waypoint/node-b:w-waypoint/hbone"].evidence
    assert ME["waypoint"] in findings["waypoint>server/node-a:w-server/identity"].evidence
    way = findings["client>waypoint>server/way"]
    assert (way.value, way.segment) == ("4 of 4 whole way", "client → waypoint → server")
    assert "through waypoint" in way.statement


def test_a_waypoint_that_goes_on_in_clear_is_caught_and_the_first_leg_is_not_blamed(two_legs: Callable) -> None:
    """Plain bytes on the second leg, where mutual TLS was claimed."""
    findings = judged(*two_legs(clear_onward=True))

    assert findings["waypoint>server/node-a:w-server/hidden"].result is Result.BROKEN
    assert findings["waypoint>server/node-a:w-server/tls"].result is Result.BROKEN
    for check in ("delivered", "tls", "identity", "hbone"):
        assert findings[f"client>waypoint/node-a:w-client/{check}"].result is Result.HOLDS


def test_a_waypoint_that_poses_as_the_client_is_caught(two_legs: Callable) -> None:
    """The server is to see the waypoint's identity (facts/hbone 3.4)."""
    findings = judged(*two_legs(onward_as="client"))

    wrong = findings["waypoint>server/node-a:to-node-b/identity"]
    assert wrong.result is Result.BROKEN and f"claimed {ME['waypoint']}" in wrong.evidence


def test_asking_the_waypoint_for_a_pod_is_caught(two_legs: Callable) -> None:
    """The service's address is the authority: the waypoint chooses the endpoint, nobody before it."""
    findings = judged(*two_legs(asked=f"{SERVER}:8080"))

    assert findings["client>waypoint/node-a:w-client/hbone"].result is Result.BROKEN


def test_a_request_that_the_waypoint_swallows_breaks_its_second_leg(two_legs: Callable) -> None:
    """Three of four go on: the first leg has them all."""
    findings = judged(*two_legs(onward=BODIES[:3]))

    assert findings["client>waypoint/node-a:to-node-b/delivered"].value == "4 of 4 inside"
    assert findings["waypoint>server/node-a:to-node-b/delivered"].result is Result.BROKEN
    assert findings["client>waypoint>server/way"].value == "3 of 4 whole way"
    assert findings["client>waypoint>server/way"].result is not Result.HOLDS


def test_traffic_that_goes_around_the_waypoint_is_no_evidence_for_its_legs(
    two_legs: Callable, authority: Authority, tmp_path: Path
) -> None:
    """Straight from client to server: neither leg was there."""
    lay, keys = two_legs(first=False)
    findings = judged(lay, keys)

    assert findings["client>waypoint/node-a:w-client/tls"].result is Result.NO_EVIDENCE
    assert findings["client>waypoint>server/way"].result is not Result.HOLDS


def test_requests_are_shared_out_over_the_waypoints_replicas_by_what_was_seen(two_legs: Callable) -> None:
    """Balancing is the client's proxy's: which replica a request took stands in the packets only."""
    lay, keys = two_legs()
    evidence = gather(lay.recording(key_log=keys), SEGMENTS, file="x")
    taken = first_stops(evidence, TOKEN, CLIENT)
    other = [
        dataclasses.replace(c, **{end: "waypoint-2"}, stops=("client", "waypoint-2", "server"))
        for c, end in zip(CLAIMS, ("destination", "source"), strict=True)
    ]

    claims, canaries = share_out(
        [*other, *CLAIMS], {"server": frozenset("0123")}, taken | {"3": SECOND}, LAYOUT, token=TOKEN, client="client"
    )

    assert taken == dict.fromkeys("0123", WAYPOINT)
    assert {(c.via, c.requests) for c in canaries} == {
        (("waypoint",), frozenset("012")), (("waypoint-2",), frozenset("3"))
    }  # fmt: skip
    assert len(claims) == 4
    only, _ = share_out(
        [*other, *CLAIMS], {"server": frozenset("0123")}, taken, LAYOUT, token=TOKEN, client="client"
    )  # fmt: skip
    assert {c.destination for c in only} == {"waypoint", "server"}


class TestOffer:
    """What a sidecar's ClientHello says in clear: ALPN and the service."""

    SNI = "outbound_.8080_._.server.default.svc.cluster.local"
    CLAIM = Claim(
        source="client", destination="server", segment=WIRE, encryption=Encryption.MTLS,
        alpn=("istio-http/1.1", "istio", "http/1.1"), sni=SNI,
        client_identity=Identity.parse(ME["client"]), server_identity=Identity.parse(ME["server"]),
    )  # fmt: skip

    def findings(self, authority: Authority, tmp_path: Path, alpn: list[str], name: str | None) -> dict[str, Finding]:
        key_log = tmp_path / "keys.txt"
        client = authority.context(ssl.PROTOCOL_TLS_CLIENT, authority.leaf(ME["client"]), key_log)
        server = authority.context(ssl.PROTOCOL_TLS_SERVER, authority.leaf(ME["server"]))
        client.set_alpn_protocols(alpn)
        server.set_alpn_protocols(["http/1.1"])
        pair = Pair(client, server, name)
        for request, reply in BODIES:
            pair.say(TO_SERVER, request)
            pair.say(TO_CLIENT, reply)
        lay = Laid()
        for segment in SEGMENTS:
            lay.point(segment.name)
        lay.exchange(pair.wire, points=[0, 3], client=(CLIENT, 40001), server=(SERVER, 8080))
        evidence = gather(lay.recording(key_log=key_log.read_text()), SEGMENTS, file="x")
        canary = dataclasses.replace(CANARY, via=())
        found = judge(plane="sidecar", claims=[self.CLAIM], canaries=[canary], evidence=evidence, layout=LAYOUT)
        return {f.id.rpartition(":")[2]: f for f in found}

    def test_istios_offer_holds_with_what_a_real_one_adds(self, authority: Authority, tmp_path: Path) -> None:
        """Order counts; more names between do not."""
        offered = ["istio-http/1.1", "istio-peer-exchange", "istio", "http/1.1"]

        findings = self.findings(authority, tmp_path, offered, self.SNI)

        assert {f.result for f in findings.values()} == {Result.HOLDS}
        assert findings["w-client/offer"].value == ", ".join(offered)
        assert self.SNI in findings["w-server/offer"].evidence

    @pytest.mark.parametrize(
        ("offered", "name"),
        [
            (["http/1.1"], SNI),
            (["istio", "istio-http/1.1", "http/1.1"], SNI),
            (["istio-http/1.1", "istio", "http/1.1"], "server"),
            (["istio-http/1.1", "istio", "http/1.1"], None),
        ],
    )
    def test_another_offer_is_broken(
        self, authority: Authority, tmp_path: Path, offered: list[str], name: str | None
    ) -> None:
        """Plain ALPN, the wrong order, another name, none."""
        assert self.findings(authority, tmp_path, offered, name)["w-client/offer"].result is Result.BROKEN
