"""Captures made up for the judge, right in every point, and what it says of one that was made wrong in a point."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from testbed.model.experiment import Result
from testbed.model.identity import Identity
from testbed.model.placement import Claim, Encryption
from testbed.observe.pcapng import Interface, Packet, Recording
from testbed.verify.evidence import Canary, gather
from testbed.verify.judge import judge
from testbed.verify.segments import WIRE, Layout, Segment
from tests.recorded import TO_CLIENT, TO_SERVER, Authority, Exchange, Pair, Tunnels, tcp

TOKEN = b"canary-7f3a9e"
COUNT = 8
MSS = 400
CLIENT, SERVER, WAYPOINT = "10.0.1.2", "10.0.2.2", "10.0.2.7"
NODE_A, NODE_B = "10.0.1.1", "10.0.2.1"
VIP = "10.96.0.10"
CLIENT_ID, SERVER_ID, WAYPOINT_ID, NODE_A_ID, NODE_B_ID = (
    f"spiffe://cluster.local/ns/default/sa/{name}" for name in ("client", "server", "waypoint", "l7-a", "l7-b")
)
ISTIO = ("istio-http/1.1", "istio", "http/1.1")
SNI = "outbound_.80_._.server.default.svc.cluster.local"


def request(number: int) -> bytes:
    return b"GET / HTTP/1.1\r\nx-canary: " + TOKEN + b"-%d\r\n\r\n" % number


REQUESTS = [(request(n), b"HTTP/1.1 200 OK\r\n\r\n") for n in range(COUNT)]
CLEAR = [part for sent, answer in REQUESTS for part in ((TO_SERVER, sent), (TO_CLIENT, answer))]

CLIENT_VETH, LINK, SERVER_VETH, WAYPOINT_VETH = range(4)
SEGMENTS = (
    Segment(sandbox="node-a", device="client", kind=WIRE, label="veth of client", workload="client"),
    Segment(sandbox="node-a", device="link", kind=WIRE, label="link a--b", link=("node-a", "node-b")),
    Segment(sandbox="node-b", device="server", kind=WIRE, label="veth of server", workload="server"),
    Segment(sandbox="node-b", device="waypoint", kind=WIRE, label="veth of waypoint", workload="waypoint"),
)
LAYOUT = Layout(
    segments=SEGMENTS,
    homes={
        "client": "node-a", "server": "node-b", "waypoint": "node-b", "node-a": "node-a", "node-b": "node-b",
    },
    addresses={
        "client": frozenset({CLIENT}), "server": frozenset({SERVER, VIP}), "waypoint": frozenset({WAYPOINT}),
        "node-a": frozenset({NODE_A, VIP}), "node-b": frozenset({NODE_B, VIP}),
    },
)  # fmt: skip


def mtls(source: str, destination: str, client: str, server: str, **more: object) -> Claim:
    return Claim(
        source=source, destination=destination, segment=WIRE, encryption=Encryption.MTLS,
        client_identity=Identity.parse(client), server_identity=Identity.parse(server), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def clear(source: str, destination: str) -> Claim:
    return Claim(source=source, destination=destination, segment=WIRE, encryption=Encryption.CLEAR)


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One connection of a good capture, as it is seen at some points."""

    exchange: Exchange
    client: str
    server: str
    port: int
    points: tuple[int, ...]
    source_port: int = 40000

    def frames(self, exchange: Exchange | None = None, *, opening: bool = True, **other: object) -> list[bytes]:
        leg = replace(self, **other)  # type: ignore[arg-type]
        ends = (leg.client, leg.source_port), (leg.server, leg.port)
        return tcp(leg.exchange if exchange is None else exchange, *ends, MSS, opening=opening)


@dataclass(frozen=True, kw_only=True)
class Scene:
    claims: tuple[Claim, ...]
    legs: tuple[Leg, ...]
    via: tuple[str, ...] = ()


Frame = bytes | tuple[bytes, int]
"""A packet as captured; with its length on the wire where the capture cut it."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """What is other at one point. Nothing given: the good capture."""

    at: int = LINK
    leg: int = 0
    frames: Sequence[Frame] | None = None
    """In place of that leg's there."""
    beside: Sequence[Frame] = ()
    """After everything else there."""
    keys: Callable[[str], str] = field(default=lambda log: log)
    drops: int | None = 0
    names: Mapping[int, str] = field(default_factory=dict)
    """Other names of capture points."""
    cut: bool = False


class Studio:
    """Records exchanges; all their secrets are in `keys`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys = folder, ""
        self.authority = Authority(folder)
        self.roots = self.authority.root.read_bytes()
        self._scenes: dict[str, Scene] = {}

    def pair(
        self, client: str, server: str, *, alpn: Sequence[str] = ("h2",), name: str | None = None, tls12: bool = False,
        chosen: Sequence[str] | None = None, anonymous: bool = False, authority: Authority | None = None,
    ) -> Pair:  # fmt: skip
        authority = authority or self.authority
        log = self.folder / "keys.txt"
        log.unlink(missing_ok=True)
        ours = authority.context(ssl.PROTOCOL_TLS_CLIENT, authority.leaf(*client.split()), log)
        theirs = authority.context(ssl.PROTOCOL_TLS_SERVER, authority.leaf(*server.split()))
        if alpn:
            ours.set_alpn_protocols(list(alpn))
        theirs.set_alpn_protocols(list(alpn if chosen is None else chosen))
        if tls12:
            ours.minimum_version = theirs.minimum_version = ssl.TLSVersion.TLSv1_2
            theirs.maximum_version = ssl.TLSVersion.TLSv1_2
        if anonymous:
            theirs.verify_mode = ssl.CERT_NONE
        pair = Pair(ours, theirs, name)
        self.keys += log.read_text()
        return pair

    def tunnel(self, client: str = CLIENT_ID, server: str = SERVER_ID, **changes: object) -> Exchange:
        kinds = ("alpn", "name", "tls12", "chosen", "anonymous", "authority")
        of_pair = {k: changes.pop(k) for k in kinds if k in changes}
        to = changes.pop("to", f"{SERVER}:8080")
        pair = self.pair(client, server, **of_pair)  # type: ignore[arg-type]
        Tunnels(**{"bodies": REQUESTS, "authority": to, **changes}).speak(pair.say)  # type: ignore[arg-type]
        return pair.wire

    def inside(self, *parts: tuple[str, bytes], client: str = CLIENT_ID, server: str = SERVER_ID,
               **of_pair: object) -> Exchange:  # fmt: skip
        """Bytes said inside TLS as they are."""
        pair = self.pair(client, server, **of_pair)  # type: ignore[arg-type]
        for way, data in parts:
            pair.say(way, data)
        return pair.wire

    def sidecars(self, **other: object) -> Exchange:
        return self.inside(*CLEAR, **{"alpn": ISTIO, "name": SNI, **other})  # type: ignore[arg-type]

    def h2(self, *, method: bytes = b"CONNECT", bodies: Sequence[tuple[bytes, bytes]] = REQUESTS) -> Exchange:
        """HTTP/2 without TLS."""
        said: Exchange = []

        def say(way: str, data: bytes) -> bytes:
            said.append((way, data))
            return data

        Tunnels(bodies=bodies, method=method).speak(say)
        return said

    def scene(self, name: str) -> Scene:
        if name not in self._scenes:
            self._scenes[name] = getattr(self, "_" + name.replace("-", "_"))()
        return self._scenes[name]

    def _ambient_l4(self) -> Scene:
        claim = mtls("client", "server", CLIENT_ID, SERVER_ID, hbone=True, authority=f"{SERVER}:8080")
        leg = Leg(exchange=self.tunnel(), client=CLIENT, server=SERVER, port=15008, points=(0, 1, 2))
        return Scene(claims=(claim,), legs=(leg,))

    def _ambient(self) -> Scene:
        first = mtls("client", "waypoint", CLIENT_ID, WAYPOINT_ID, hbone=True, authority=f"{VIP}:80")
        second = mtls("waypoint", "server", WAYPOINT_ID, SERVER_ID, hbone=True, authority=f"{SERVER}:8080")
        to, onward = self.tunnel(CLIENT_ID, WAYPOINT_ID, to=f"{VIP}:80"), self.tunnel(WAYPOINT_ID, SERVER_ID)
        legs = (
            Leg(exchange=to, client=CLIENT, server=WAYPOINT, port=15008, points=(CLIENT_VETH, LINK, WAYPOINT_VETH)),
            Leg(exchange=onward, client=WAYPOINT, server=SERVER, port=15008, points=(WAYPOINT_VETH, SERVER_VETH)),
        )
        return Scene(claims=(first, second), legs=legs, via=("waypoint",))

    def _sidecar(self) -> Scene:
        claim = mtls("client", "server", CLIENT_ID, SERVER_ID, alpn=ISTIO, sni=SNI)
        leg = Leg(exchange=self.sidecars(), client=CLIENT, server=SERVER, port=8080, points=(0, 1, 2))
        return Scene(claims=(claim,), legs=(leg,))

    def _none(self) -> Scene:
        leg = Leg(exchange=CLEAR, client=CLIENT, server=SERVER, port=8080, points=(0, 1, 2))
        return Scene(claims=(clear("client", "server"),), legs=(leg,))

    def _node_l7(self) -> Scene:
        between = mtls("node-a", "node-b", NODE_A_ID, NODE_B_ID, hbone=True, authority=f"{SERVER}:8080")
        tunnel = self.tunnel(NODE_A_ID, NODE_B_ID)
        legs = (
            Leg(exchange=CLEAR, client=CLIENT, server=VIP, port=80, points=(CLIENT_VETH,)),
            Leg(exchange=tunnel, client=NODE_A, server=NODE_B, port=15008, points=(LINK,)),
            Leg(exchange=CLEAR, client=NODE_B, server=SERVER, port=8080, points=(SERVER_VETH,)),
        )
        claims = (clear("client", "node-a"), between, clear("node-b", "server"))
        return Scene(claims=claims, legs=legs, via=("node-a", "node-b"))


def findings(scene: Scene, mutation: Mutation, keys: str, roots: bytes) -> dict[str, Result]:
    """What does not hold, as `<leg>/<device>/<check>` (without the leg where there is one only)."""
    packets: list[Packet] = []

    def lay(point: int, shot: Frame) -> None:
        data, length = shot if isinstance(shot, tuple) else (shot, len(shot))
        number = len(packets) + 1
        packets.append(
            Packet(number=number, interface=point, time_ns=1_700_000_000_000_000_000 + number * 10_000, data=data,
                   wire_length=length)
        )  # fmt: skip

    for number, leg in enumerate(scene.legs):
        good = leg.frames()
        changed = mutation.frames is not None and number == mutation.leg
        shots = [mutation.frames if changed and point == mutation.at else good for point in leg.points]
        for together in zip_longest(*shots):
            for point, shot in zip(leg.points, together, strict=True):
                if shot is not None:
                    lay(point, shot)
    for shot in mutation.beside:
        lay(mutation.at, shot)
    told = dict.fromkeys(range(len(SEGMENTS)), 0) | {mutation.at: mutation.drops}
    recording = Recording(
        interfaces=tuple(Interface(name=mutation.names.get(n, s.name)) for n, s in enumerate(SEGMENTS)),
        packets=tuple(packets),
        drops={n: lost for n, lost in told.items() if lost is not None},
        cut=mutation.cut,
    )
    evidence = gather(recording, SEGMENTS, file="x.pcapng", key_log=mutation.keys(keys), roots=roots)
    canary = Canary(token=TOKEN, source="client", destination="server", count=COUNT, via=scene.via)
    found = judge(plane="p", claims=scene.claims, canaries=[canary], evidence=evidence, layout=LAYOUT)
    named = {}
    for f in found:
        leg, _, place = f.id.removeprefix("p/").partition("/")
        place = place.rpartition(":")[2]
        named["way" if place == "way" else f"{leg}/{place}" if len(scene.claims) > 1 else place] = f.result
    return {name: result for name, result in named.items() if result is not Result.HOLDS}
