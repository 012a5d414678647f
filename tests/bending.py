"""How a capture is made wrong in one point: frames bent, left out, added, other handshakes, other keys."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import hpack

from testbed.model.experiment import Result
from tests.judgestudio import (
    CLIENT,
    CLIENT_ID,
    LINK,
    MSS,
    REQUESTS,
    SERVER,
    SERVER_ID,
    TOKEN,
    Frame,
    Leg,
    Mutation,
    Scene,
    Studio,
    request,
)
from tests.recorded import TO_CLIENT, TO_SERVER, Authority, Exchange, Tunnels, h2_pair

N = Result.NO_EVIDENCE


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
