"""The judge tried: captures that it calls right, each then made wrong in one point, and what it must say of that.

Every mutant changes one capture point only, so that all else must still hold: a table of what does not, per mutant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from testbed.model.experiment import Result
from tests.bending import (
    ALL,
    INSIDE,
    SPLIT,
    Make,
    after,
    bent,
    beside,
    changed,
    doubled,
    exchanged,
    foreign,
    in_head,
    ip,
    late,
    leaked,
    mid_record,
    not_a_request,
    of,
    older,
    orphan,
    other_keys,
    overlapped,
    payload,
    suite,
    swap_pairs,
    tail_lost,
    truncated,
    without,
    wrong_secrets,
)
from tests.judgestudio import (
    CLEAR,
    CLIENT_ID,
    CLIENT_VETH,
    ISTIO,
    LINK,
    NODE_A,
    NODE_A_ID,
    NODE_B,
    NODE_B_ID,
    REQUESTS,
    SEGMENTS,
    SERVER,
    SERVER_ID,
    SERVER_VETH,
    SNI,
    TOKEN,
    VIP,
    WAYPOINT_ID,
    WAYPOINT_VETH,
    Frame,
    Leg,
    Mutation,
    Studio,
    findings,
    request,
)
from tests.recorded import TO_CLIENT, TO_SERVER

B, N = Result.BROKEN, Result.NO_EVIDENCE


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


SCENES = ("ambient-l4", "ambient", "sidecar", "none", "node-l7")


@pytest.mark.parametrize("name", SCENES)
def test_a_good_capture_holds(studio: Studio, name: str) -> None:
    """Without this no mutant below would show anything."""
    assert findings(studio.scene(name), Mutation(), studio.keys, studio.roots) == {}


TUNNELS: dict[str, tuple[Make, dict[str, Result]]] = {
    # TLS
    "TLS 1.2 negotiated": (exchanged(lambda s: s.tunnel(tls12=True)), {"tls": B, **INSIDE, "way": N}),
    "ServerHello says 1.2": (exchanged(lambda s: older(s.tunnel())), {"tls": B, **INSIDE, "way": N}),
    "ChaCha20 chosen": (exchanged(lambda s: suite(s.tunnel(), b"\x13\x03")), {"tls": B, **INSIDE, "way": N}),
    "a suite of TLS 1.2 chosen": (exchanged(lambda s: suite(s.tunnel(), b"\xc0\x2f")), {"tls": B, **INSIDE, "way": N}),
    "ALPN http/1.1": (exchanged(lambda s: s.tunnel(alpn=["http/1.1"])), {"alpn": B}),
    "no ALPN": (exchanged(lambda s: s.tunnel(chosen=["foo"])), {"alpn": B}),
    "application data without a handshake": (
        exchanged(lambda s: s.tunnel()[6:]), {"hidden": N, "tls": B, **INSIDE, "way": N},
    ),
    # identities
    "another client": (exchanged(lambda s: s.tunnel(SERVER_ID.replace("server", "thief"))), {"identity": B}),
    "another server": (exchanged(lambda s: s.tunnel(server=CLIENT_ID.replace("client", "thief"))), {"identity": B}),
    "client and server swapped": (exchanged(lambda s: s.tunnel(SERVER_ID, CLIENT_ID)), {"identity": B}),
    "another namespace": (exchanged(lambda s: s.tunnel(CLIENT_ID.replace("default", "kube"))), {"identity": B}),
    "client of another trust domain": (
        exchanged(lambda s: s.tunnel(CLIENT_ID.replace("cluster.local", "other.test"))),
        {"identity": B},
    ),
    "server of another trust domain": (
        exchanged(lambda s: s.tunnel(server=SERVER_ID.replace("cluster.local", "other.test"))),
        {"identity": B},
    ),
    "the same names of another authority": (exchanged(lambda s: s.tunnel(authority=foreign(s))), {"identity": B}),
    "client without a certificate": (exchanged(lambda s: s.tunnel(anonymous=True)), {"identity": B}),
    "an identity more": (exchanged(lambda s: s.tunnel(f"{CLIENT_ID} {SERVER_ID}")), {"identity": B}),
    # leaks
    "leak between the two": (beside(leaked), {"hidden": B, "tls": B, **INSIDE}),
    "leak between others": (beside(lambda leg: leaked(leg, client="10.0.9.9", server="10.0.9.1")), {"hidden": B}),
    "leak at the client": (
        beside(lambda leg: leaked(leg, client="10.0.9.9"), CLIENT_VETH), {"client/hidden": B},
    ),
    "leak at the server": (
        beside(lambda leg: leaked(leg, client="10.0.9.9"), SERVER_VETH), {"server/hidden": B},
    ),
    "leak off the way": (beside(lambda leg: leaked(leg, client="10.0.9.9"), WAYPOINT_VETH), {"waypoint/hidden": B}),
    "leak split over two packets": (
        beside(lambda leg: leaked(leg, SPLIT, client="10.0.9.9")[:4]), {"hidden": B},
    ),
    "leak split, second part first": (
        beside(lambda leg: swap_pairs(leaked(leg, SPLIT, client="10.0.9.9")[:4])), {"hidden": B},
    ),
    "leak split over IP fragments": (
        beside(lambda leg: [ip(6, bytes(20) + TOKEN[:4], flags=0x2000), ip(6, TOKEN[4:] + bytes(9), flags=3)]),
        {"hidden": N},
    ),
    "leak split inside another IP": (
        beside(lambda leg: [ip(4, leak[14:]) for leak in leaked(leg, SPLIT)]), {"hidden": N},
    ),
    "leak in a datagram": (beside(lambda leg: [ip(17, bytes(8) + request(3))]), {"hidden": B}),
    "leak in an answer": (
        beside(lambda leg: leg.frames([(TO_SERVER, b"x"), (TO_CLIENT, request(3))], client="10.0.9.9")), {"hidden": B},
    ),
    "leak inside a retransmission": (
        bent(lambda f: after(f, of(f, TO_SERVER)[-2], payload(f[of(f, TO_SERVER)[-2]], request(3)[:60]))),
        {"hidden": B},
    ),
    "leak split inside retransmissions": (
        bent(lambda f: after(f, of(f, TO_SERVER)[-2], *(
            payload(f[of(f, TO_SERVER)[-2]], request(3)[at : at + 30], at) for at in (0, 30)))),
        {"hidden": B},
    ),
    "leak before what is retransmitted": (
        bent(lambda f: [*f[: of(f, TO_SERVER)[-2]], payload(f[of(f, TO_SERVER)[-2]], request(3)[:60]),
                        *f[of(f, TO_SERVER)[-2] :]]),
        {"hidden": B, "tls": N, **INSIDE, "way": N},
    ),
    "retransmitted with other content": (
        bent(lambda f: after(f, of(f, TO_SERVER)[-2], payload(f[of(f, TO_SERVER)[-2]], b"something else"))),
        {"hidden": N},
    ),
    "leak behind the records": (
        exchanged(lambda s: [*s.tunnel(), (TO_SERVER, request(3))]), {"hidden": B, "tls": B, **INSIDE},
    ),
    "clear bytes behind the records": (
        exchanged(lambda s: [*s.tunnel(), (TO_SERVER, b"no canary, and no record")]),
        {"hidden": N, "tls": B, **INSIDE},
    ),
    "leak inside a record that is none": (
        exchanged(lambda s: [*s.tunnel(), (TO_SERVER, b"\x17\x03\x03\x00" + bytes((len(request(3)),)) + request(3))]),
        {"hidden": B, **INSIDE},
    ),
    "fields in HPACK, begun before the capture": (
        beside(lambda leg: leg.frames([(TO_SERVER, not_a_request())], opening=False, source_port=50000)),
        {"hidden": N, "tls": N, **INSIDE},
    ),
    "HTTP/2 without TLS on 15008": (exchanged(lambda s: s.h2()), {"hidden": B, "tls": B, **INSIDE}),
    "GETs by HTTP/2 without TLS on 15008": (
        exchanged(lambda s: s.h2(method=b"GET")), {"hidden": B, "tls": B, **INSIDE},
    ),
    # tunnels
    "every authority wrong": (exchanged(lambda s: s.tunnel(to=f"{SERVER}:9999")), {"hbone": B, "delivered": B}),
    "one authority wrong": (
        exchanged(lambda s: s.tunnel(others={3: "10.0.2.9:8080"})), {"hbone": B, "delivered": B},
    ),
    "wrong port": (lambda s, scene, leg: Mutation(frames=leg.frames(port=15009)), {"hbone": B}),
    "no baggage": (exchanged(lambda s: s.tunnel(extra=())), {"hbone": B}),
    "a :path in CONNECT": (
        exchanged(lambda s: s.tunnel(method=b"POST")), {"hbone": B, "delivered": B},
    ),
    "requests without a tunnel": (
        exchanged(lambda s: s.inside(*CLEAR)), {"hbone": B, "delivered": B},
    ),
    "requests in a stream never opened": (exchanged(orphan), {"hbone": B, "delivered": B, "way": N}),
    "a request behind a tunnel's end": (exchanged(late), {"hbone": B, "delivered": B, "way": N}),
    "a canary in the CONNECT itself": (exchanged(in_head), {"delivered": B}),
    "a request less": (exchanged(lambda s: s.tunnel(bodies=REQUESTS[:7])), {"delivered": B, "way": N}),
    "a request more": (exchanged(lambda s: s.tunnel(bodies=[*REQUESTS, (request(8), b"")])),
                       {"delivered": B, "way": B}),
    "one twice, another never": (
        exchanged(lambda s: s.tunnel(bodies=doubled([0, 1, 2, 3, 3, 5, 6, 7]))), {"delivered": B, "way": N},
    ),
    "a refused tunnel": (
        exchanged(lambda s: s.tunnel(status=b"503")), {"hbone": B, "delivered": B, "way": N},
    ),
    # keys
    "no key log": (changed(keys=lambda log: ""), {f"*/{c}": N for c in INSIDE} | {"way": N}),
    "key log of other sessions": (
        lambda s, scene, leg: (lambda others: Mutation(keys=lambda log: others))(other_keys(s)),
        {f"*/{c}": N for c in INSIDE} | {"way": N},
    ),
    "wrong secrets of these sessions": (changed(keys=wrong_secrets), {f"*/{c}": N for c in INSIDE} | {"way": N}),
    "the client's secrets alone": (
        changed(keys=lambda log: "\n".join(x for x in log.splitlines() if x.startswith("CLIENT"))),
        {f"*/{c}": N for c in INSIDE},
    ),
    # packets
    "SYN lost": (bent(lambda f: without(f, 0)), {}),
    "SYN and its answer lost": (bent(lambda f: without(f, 0, 1)), {}),
    "ClientHello lost": (bent(lambda f: without(f, of(f, TO_SERVER)[0])), {**ALL, "way": N}),
    "ServerHello lost": (bent(lambda f: without(f, of(f, TO_CLIENT)[0])), {**ALL, "way": N}),
    "a packet of the handshake lost": (
        bent(lambda f: without(f, of(f, TO_CLIENT)[1])), {"hidden": N, **INSIDE},
    ),
    "a packet of data lost": (bent(lambda f: without(f, of(f, TO_SERVER)[-5])), {"hidden": N, **INSIDE, "way": N}),
    "the last packet of data lost": (bent(lambda f: without(f, of(f, TO_SERVER)[-1])), {"hidden": N, **INSIDE}),
    "the last packets lost, no end seen": (bent(tail_lost), {"hidden": N, **INSIDE}),
    "reordered": (bent(swap_pairs), {}),
    "all packets twice": (bent(lambda f: [x for shot in f for x in (shot, shot)]), {}),
    "all packets again at the end": (bent(lambda f: [*f, *f[2:]]), {}),
    "retransmitted with overlap": (bent(overlapped), {}),
    "lengths of 0, as super-frames have": (bent(lambda f: [x[:16] + bytes(2) + x[18:] for x in f]), {}),
    "in a VLAN from some packet on": (bent(lambda f: [*f[:9], *(x[:12] + b"\x81\0\0\7" + x[12:] for x in f[9:])]), {}),
    "capture ends within a record": (bent(mid_record), {"hidden": N, "delivered": N, "hbone": N, "way": N}),
    "capture file cut": (changed(cut=True), {f"*/{c}": N for c in ALL} | {"way": N}),
    "one packet cut by the snaplen": (
        bent(lambda f: truncated(f, of(f, TO_SERVER)[-3:-2], 60)), {"hidden": N, **INSIDE, "way": N},
    ),
    "last packet cut by the snaplen": (
        bent(lambda f: truncated(f, of(f, TO_SERVER)[-1:], 60)), {"hidden": N, **INSIDE},
    ),
    "all packets cut to 60 bytes": (bent(lambda f: truncated(f, range(len(f)), 60)), {**ALL, "way": N}),
    "all packets cut to 40 bytes": (bent(lambda f: truncated(f, range(len(f)), 40)), {**ALL, "way": N}),
    "a leak, cut behind the canary": (
        beside(lambda leg: [(f[:54 + 60], len(f)) for f in leaked(leg, request(3) + bytes(200), client="10.0.9.9")]),
        {"hidden": B},
    ),
    "a datagram cut by the snaplen": (beside(lambda leg: [(ip(17, bytes(8)), 900)]), {"hidden": N}),
    "packets lost by the capture": (changed(drops=3), {**ALL, "way": N}),
    "capture does not say what it lost": (changed(drops=None), {**ALL, "way": N}),
    "nothing captured": (bent(lambda f: []), {**ALL, "way": N}),
    "packets of others only": (
        lambda s, scene, leg: Mutation(frames=leg.frames(client="10.0.9.9")), {**ALL, "way": N},
    ),
    "captured at another link": (changed(names={LINK: "node-a:elsewhere"}), {**ALL, "way": N}),
}  # fmt: skip


def expand(expected: Mapping[str, Result], points: Sequence[int]) -> dict[str, Result]:
    """`check` is of the link, `*/check` of every point."""
    told = {}
    for name, result in expected.items():
        if name.startswith("*/"):
            told |= {f"{SEGMENTS[p].device}/{name[2:]}": result for p in points}
        else:
            told[name if "/" in name or name == "way" else f"link/{name}"] = result
    return told


@pytest.mark.parametrize("name", TUNNELS)
def test_a_tunnel_made_wrong(studio: Studio, name: str) -> None:
    """Of `ambient-l4`: HBONE over three segments, the one in the middle bent."""
    make, expected = TUNNELS[name]
    scene = studio.scene("ambient-l4")
    mutation = make(studio, scene, scene.legs[0])

    assert findings(scene, mutation, studio.keys, studio.roots) == expand(expected, (0, 1, 2))


def leg_of(number: int, at: int, make: Callable[[Studio, Leg], Sequence[Frame]]) -> Make:
    return lambda studio, scene, leg: Mutation(leg=number, at=at, frames=make(studio, scene.legs[number]))


WAYPOINT_LEG = "waypoint>server"


def at(leg: str, device: str, **checks: Result) -> dict[str, Result]:
    return {f"{leg}/{device}/{check}": result for check, result in checks.items()}


OTHERS: dict[tuple[str, str], tuple[Make, dict[str, Result]]] = {
    # sidecars: Istio's own mutual TLS, HTTP inside
    ("sidecar", "TLS 1.2 negotiated"): (
        exchanged(lambda s: s.sidecars(tls12=True)), {"tls": B, "delivered": N, "identity": N, "way": N},
    ),
    ("sidecar", "ChaCha20 chosen"): (
        exchanged(lambda s: suite(s.sidecars(), b"\x13\x03")),
        {"tls": B, "delivered": N, "identity": N, "way": N},
    ),
    ("sidecar", "not Istio's ALPN"): (exchanged(lambda s: s.sidecars(alpn=["h2", "http/1.1"])), {"offer": B}),
    ("sidecar", "ALPN in another order"): (exchanged(lambda s: s.sidecars(alpn=ISTIO[::-1])), {"offer": B}),
    ("sidecar", "more ALPN between"): (exchanged(lambda s: s.sidecars(alpn=[ISTIO[0], "x", *ISTIO[1:]])), {}),
    ("sidecar", "another SNI"): (exchanged(lambda s: s.sidecars(name=SNI.replace("server", "other"))), {"offer": B}),
    ("sidecar", "no SNI"): (exchanged(lambda s: s.sidecars(name=None)), {"offer": B}),
    ("sidecar", "another client"): (exchanged(lambda s: s.sidecars(client=WAYPOINT_ID)), {"identity": B}),
    ("sidecar", "another server"): (exchanged(lambda s: s.sidecars(server=WAYPOINT_ID)), {"identity": B}),
    ("sidecar", "server of another trust domain"): (
        exchanged(lambda s: s.sidecars(server=SERVER_ID.replace("cluster.local", "other.test"))), {"identity": B},
    ),
    ("sidecar", "the same names of another authority"): (
        exchanged(lambda s: s.sidecars(authority=foreign(s))), {"identity": B},
    ),
    ("sidecar", "client without a certificate"): (exchanged(lambda s: s.sidecars(anonymous=True)), {"identity": B}),
    ("sidecar", "in clear"): (
        exchanged(lambda s: CLEAR), {"hidden": B, "tls": B, "offer": N, "delivered": N, "identity": N},
    ),
    ("sidecar", "leak split, second part first"): (
        beside(lambda leg: swap_pairs(leaked(leg, SPLIT, client="10.0.9.9")[:4])), {"hidden": B},
    ),
    ("sidecar", "ClientHello lost"): (
        bent(lambda f: without(f, of(f, TO_SERVER)[0])),
        {"hidden": N, "tls": N, "offer": N, "delivered": N, "identity": N, "way": N},
    ),
    ("sidecar", "a packet of data lost"): (
        bent(lambda f: without(f, of(f, TO_SERVER)[-2])), {"hidden": N, "delivered": N, "identity": N, "way": N},
    ),
    ("sidecar", "reordered"): (bent(swap_pairs), {}),
    ("sidecar", "all packets twice"): (bent(lambda f: [x for shot in f for x in (shot, shot)]), {}),
    ("sidecar", "no key log"): (
        changed(keys=lambda log: ""), {"*/delivered": N, "*/identity": N, "way": N},
    ),
    # a wrong one beside one that cannot be opened: what was seen was seen
    ("ambient-l4", "a thief, and a packet of another connection lost"): (
        lambda s, scene, leg: Mutation(
            frames=without(leg.frames(), of(leg.frames(), TO_SERVER)[-5]),
            beside=leg.frames(s.tunnel(NODE_A_ID, bodies=REQUESTS[:1]), source_port=40001),
        ),
        {"hidden": N, "delivered": N, "identity": B, "alpn": N, "hbone": N, "way": N},
    ),
    # no mesh: what is claimed is that the search finds
    ("none", "all unreadable"): (exchanged(lambda s: s.tunnel()), {"readable": B}),
    ("none", "one missing"): (exchanged(lambda s: CLEAR[2:]), {"readable": N, "way": N}),
    ("none", "one twice, another never"): (exchanged(lambda s: [*CLEAR[2:], CLEAR[2]]), {"readable": N, "way": N}),
    ("none", "a packet of data lost"): (
        bent(lambda f: without(f, of(f, TO_SERVER)[3])), {"readable": N, "way": N},
    ),
    ("none", "all data lost"): (
        bent(lambda f: without(f, *of(f, TO_SERVER), *of(f, TO_CLIENT))), {"readable": N, "way": N},
    ),
    ("none", "packets lost by the capture"): (changed(drops=1), {"readable": N, "way": N}),
    ("none", "reordered"): (bent(swap_pairs), {}),
    ("none", "all packets twice"): (bent(lambda f: [x for shot in f for x in (shot, shot)]), {}),
    ("none", "nothing captured"): (bent(lambda f: []), {"readable": N, "way": N}),
    ("none", "packets of others only"): (
        lambda s, scene, leg: Mutation(frames=leg.frames(client="10.0.9.9")), {"readable": N, "way": N},
    ),
    # a waypoint between: two legs, each with its own ends
    ("ambient", "the server's address asked of the waypoint"): (
        leg_of(0, LINK, lambda s, leg: leg.frames(s.tunnel(CLIENT_ID, WAYPOINT_ID))),
        at("client>waypoint", "link", hbone=B, delivered=B),
    ),
    ("ambient", "another in the waypoint's place"): (
        leg_of(0, LINK, lambda s, leg: leg.frames(s.tunnel(CLIENT_ID, SERVER_ID, to=f"{VIP}:80"))),
        at("client>waypoint", "link", identity=B),
    ),
    ("ambient", "the waypoint as its client"): (
        leg_of(1, SERVER_VETH, lambda s, leg: leg.frames(s.tunnel(CLIENT_ID, SERVER_ID))),
        at(WAYPOINT_LEG, "server", identity=B),
    ),
    ("ambient", "onward in clear"): (
        leg_of(1, SERVER_VETH, lambda s, leg: leg.frames(CLEAR, port=8080)),
        at(WAYPOINT_LEG, "server", hidden=B, tls=B, **INSIDE) | at("client>waypoint", "server", hidden=B),
    ),
    ("ambient", "one past the waypoint"): (
        leg_of(0, LINK, lambda s, leg: [
            *leg.frames(s.tunnel(CLIENT_ID, WAYPOINT_ID, to=f"{VIP}:80", bodies=REQUESTS[:7])),
            *leg.frames(s.tunnel(bodies=REQUESTS[7:]), server=SERVER, source_port=40001),
        ]),
        at("client>waypoint", "link", delivered=B) | {"way": N},
    ),
    # a proxy for each node
    ("node-l7", "in clear between the nodes"): (
        leg_of(1, LINK, lambda s, leg: leg.frames(CLEAR, port=15008)),
        at("node-a>node-b", "link", hidden=B, tls=B, **INSIDE),
    ),
    ("node-l7", "one in clear between the nodes"): (
        beside(lambda leg: leaked(leg, client=NODE_A, server=NODE_B)),
        at("node-a>node-b", "link", hidden=B, tls=B, **INSIDE),
    ),
    ("node-l7", "as its workload"): (
        leg_of(1, LINK, lambda s, leg: leg.frames(s.tunnel(CLIENT_ID, NODE_B_ID))),
        at("node-a>node-b", "link", identity=B),
    ),
    ("node-l7", "the last leg unreadable"): (
        leg_of(2, SERVER_VETH, lambda s, leg: leg.frames(s.tunnel(NODE_B_ID, SERVER_ID))),
        at("node-b>server", "server", readable=B),
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", OTHERS, ids=lambda key: ": ".join(key))
def test_another_plane_made_wrong(studio: Studio, key: tuple[str, str]) -> None:
    """What is particular to each of them."""
    make, expected = OTHERS[key]
    scene = studio.scene(key[0])
    mutation = make(studio, scene, scene.legs[0])

    assert findings(scene, mutation, studio.keys, studio.roots) == expand(expected, (0, 1, 2))
