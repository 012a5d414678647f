"""The judge tried: captures that it calls right, each then made wrong in one point, and what it must say of that.

Every mutant changes one capture point only, so that all else must still hold: a table of what does not, per mutant.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import hpack
import pytest

from testbed.model.experiment import Result
from testbed.model.identity import Identity
from testbed.model.placement import Claim, Encryption
from testbed.observe.pcapng import Interface, Packet, Recording
from testbed.verify.evidence import Canary, gather
from testbed.verify.judge import judge
from testbed.verify.segments import WIRE, Layout, Segment
from tests.recorded import TO_CLIENT, TO_SERVER, Authority, Exchange, Pair, Tunnels, h2_pair, tcp

B, N = Result.BROKEN, Result.NO_EVIDENCE
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


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


SCENES = ("ambient-l4", "ambient", "sidecar", "none", "node-l7")


@pytest.mark.parametrize("name", SCENES)
def test_a_good_capture_holds(studio: Studio, name: str) -> None:
    """Without this no mutant below would show anything."""
    assert findings(studio.scene(name), Mutation(), studio.keys, studio.roots) == {}


# -- how frames are bent


def of(frames: Sequence[bytes], way: str, client: str = CLIENT) -> list[int]:
    """Which of them carry bytes that way."""
    source = bytes(map(int, client.split(".")))
    return [n for n, f in enumerate(frames) if len(f) > 54 and (f[26:30] == source) == (way == TO_SERVER)]


def without(frames: list[bytes], *numbers: int) -> list[bytes]:
    gone = {n % len(frames) for n in numbers}
    return [f for n, f in enumerate(frames) if n not in gone]


def after(frames: list[bytes], number: int, *more: Frame) -> list[Frame]:
    return [*frames[: number + 1], *more, *frames[number + 1 :]]


def payload(shot: bytes, data: bytes, offset: int = 0) -> bytes:
    """The same TCP packet, `offset` further in its stream, with other bytes."""
    (sequence,) = struct.unpack_from("!I", shot, 38)
    total = 40 + len(data)
    head = shot[:16] + struct.pack("!H", total) + shot[18:38]
    return head + struct.pack("!I", sequence + offset & 0xFFFFFFFF) + shot[42:54] + data


def instead(exchange: Exchange, number: int, data: bytes) -> Exchange:
    return [*exchange[:number], (exchange[number][0], data), *exchange[number + 1 :]]


def hello_at(exchange: Exchange) -> int:
    return next(n for n, (way, _) in enumerate(exchange) if way == TO_CLIENT)


def older(exchange: Exchange) -> Exchange:
    """The ServerHello says 1.2 where it said 1.3."""
    at = hello_at(exchange)
    hello = exchange[at][1]
    assert hello.count(b"\x00\x2b\x00\x02\x03\x04") == 1
    return instead(exchange, at, hello.replace(b"\x00\x2b\x00\x02\x03\x04", b"\x00\x2b\x00\x02\x03\x03"))


def suite(exchange: Exchange, code: bytes) -> Exchange:
    at = hello_at(exchange)
    hello = exchange[at][1]
    place = 9 + 34 + 1 + hello[43]  # record and handshake headers, version and random, session id
    return instead(exchange, at, hello[:place] + code + hello[place + 2 :])


SPLIT = bytes(MSS - 31) + request(3)
"""The canary across the border of two packets."""


def leaked(leg: Leg, data: bytes = request(3), **ends: object) -> list[bytes]:
    """One connection more, in clear."""
    return leg.frames([(TO_SERVER, data)], **{"port": 8080, "source_port": 50000, **ends})


def ip(protocol: int, data: bytes, *, flags: int = 0, number: int = 7) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), number, flags, 64, protocol, 0)
    return bytes(12) + b"\x08\x00" + head + bytes(map(int, f"{CLIENT}.{SERVER}".split("."))) + data


def swap_pairs(frames: list[bytes]) -> list[bytes]:
    shuffled = list(frames[:2])
    rest = frames[2:]
    for at in range(0, len(rest), 3):
        shuffled += reversed(rest[at : at + 3])
    return shuffled


def overlapped(frames: list[bytes]) -> list[Frame]:
    """Each packet once more, joined with the end of the one before it."""
    told: list[Frame] = []
    before: dict[bytes, bytes] = {}
    for shot in frames:
        told.append(shot)
        last = before.get(shot[26:30], b"")
        if last and len(shot) > 54:
            tail = last[54:][-20:]
            told.append(payload(shot, tail + shot[54:], -len(tail)))
        if len(shot) > 54:
            before[shot[26:30]] = shot
    return told


def not_a_request() -> bytes:
    """HPACK's static table and Huffman code: the canary is in no byte of it."""
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("x-canary", TOKEN.decode() + "-3")]
    block = hpack.Encoder().encode(fields, huffman=True)
    assert TOKEN not in block
    return len(block).to_bytes(3, "big") + b"\x01\x05" + (99).to_bytes(4, "big") + block


Make = Callable[[Studio, Scene, Leg], Mutation]
INSIDE = {"delivered": N, "identity": N, "alpn": N, "hbone": N}
ALL = {"hidden": N, "tls": N, **INSIDE}


def exchanged(make: Callable[[Studio], Exchange], **ends: object) -> Make:
    return lambda studio, scene, leg: Mutation(frames=leg.frames(make(studio), **ends))


def bent(make: Callable[[list[bytes]], Sequence[Frame]]) -> Make:
    return lambda studio, scene, leg: Mutation(frames=make(leg.frames()))


def beside(make: Callable[[Leg], Sequence[Frame]], at: int = LINK) -> Make:
    return lambda studio, scene, leg: Mutation(at=at, beside=make(leg))


def changed(**fields: object) -> Make:
    return lambda studio, scene, leg: Mutation(**fields)  # type: ignore[arg-type]


def foreign(studio: Studio) -> Authority:
    (studio.folder / "foreign").mkdir(exist_ok=True)
    return Authority(studio.folder / "foreign")


def other_keys(studio: Studio) -> str:
    before, studio.keys = studio.keys, ""
    studio.tunnel()
    others, studio.keys = studio.keys, before
    return others


def wrong_secrets(log: str) -> str:
    return "\n".join(line[:-4] + ("0000" if line[-4:] != "0000" else "1111") for line in log.splitlines())


def doubled(numbers: Sequence[int]) -> list[tuple[bytes, bytes]]:
    return [REQUESTS[n] for n in numbers]


def orphan(studio: Studio) -> Exchange:
    """The last request in a stream that no HEADERS ever opened."""
    return _as_data_of(studio, 99)


def late(studio: Studio) -> Exchange:
    """The last request behind the end of the first one's tunnel."""
    return _as_data_of(studio, 1)


def _as_data_of(studio: Studio, stream_id: int) -> Exchange:
    pair = studio.pair(CLIENT_ID, SERVER_ID)
    Tunnels(bodies=REQUESTS[:7]).speak(pair.say)
    data = request(7)
    pair.say(TO_SERVER, len(data).to_bytes(3, "big") + b"\x00\x00" + stream_id.to_bytes(4, "big") + data)
    return pair.wire


def in_head(studio: Studio) -> Exchange:
    """The last canary as a field of a CONNECT, which is for the tunnel's end and not for the server."""
    pair = studio.pair(CLIENT_ID, SERVER_ID)
    client, _ = h2_pair()
    client.initiate_connection()
    Tunnels(bodies=REQUESTS[:7]).speak(pair.say)
    fields = [(":method", "CONNECT"), (":authority", f"{SERVER}:8080"), ("baggage", "a=b"),
              ("x-canary", TOKEN.decode() + "-7")]  # fmt: skip
    block = b"".join(
        b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode() for name, value in fields
    )
    pair.say(TO_SERVER, len(block).to_bytes(3, "big") + b"\x01\x05" + (99).to_bytes(4, "big") + block)
    answer = b"\x88"
    pair.say(TO_CLIENT, len(answer).to_bytes(3, "big") + b"\x01\x05" + (99).to_bytes(4, "big") + answer)
    return pair.wire


def truncated(frames: list[bytes], numbers: Sequence[int], kept: int) -> list[Frame]:
    return [(f[:kept], len(f)) if n in numbers else f for n, f in enumerate(frames)]


def tail_lost(frames: list[bytes]) -> list[bytes]:
    """The client's last bytes and both FINs; the server's answer, which acknowledges them, is there."""
    return without(frames, of(frames, TO_SERVER)[-1], -1, -2)


def mid_record(frames: list[bytes]) -> list[Frame]:
    """The capture ends in the middle of the last but one record of the client."""
    last = of(frames, TO_SERVER)[-2]
    return [*frames[:last], payload(frames[last], frames[last][54:][:20])]


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
